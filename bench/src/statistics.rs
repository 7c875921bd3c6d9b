//! Quantiles of a handful of measurements.

use std::time::Duration;

/// The value below which `fraction` (0 to 1) of the sorted measurements lie.
pub fn quantile(measurements: &mut [Duration], fraction: f64) -> Duration {
    measurements.sort();
    let last = measurements.len().saturating_sub(1);
    let index = (fraction * last as f64).round() as usize;
    measurements.get(index).copied().unwrap_or_default()
}

/// Milliseconds with one decimal.
pub fn ms(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1e3)
}
