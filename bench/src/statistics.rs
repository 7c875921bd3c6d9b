//! Quantiles of a handful of measurements.

use std::time::Duration;

/// The value below which `fraction` (0 to 1) of the sorted measurements lie.
pub fn quantile(measurements: &mut [Duration], fraction: f64) -> Duration {
    measurements.sort();
    quantile_of_sorted(measurements, fraction)
}

/// The same of measurements that are sorted already.
pub fn quantile_of_sorted(measurements: &[Duration], fraction: f64) -> Duration {
    let last = measurements.len().saturating_sub(1);
    let index = (fraction * last as f64).round() as usize;
    measurements.get(index).copied().unwrap_or_default()
}

/// Milliseconds with one decimal.
pub fn ms(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1e3)
}

/// Median and range of some rounds.
#[derive(Clone, Copy, Debug)]
pub struct Summary {
    pub median: f64,
    pub least: f64,
    pub most: f64,
}

impl Summary {
    /// `None` where there is nothing to sum up.
    pub fn of(rounds: impl IntoIterator<Item = f64>) -> Option<Summary> {
        let mut sorted: Vec<f64> = rounds.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (least, most) = (*sorted.first()?, *sorted.last()?);
        let (low, high) = (sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
        Some(Summary {
            median: (low + high) / 2.0,
            least,
            most,
        })
    }
}
