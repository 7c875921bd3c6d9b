//! How long a CA is waited for. A test that has a CA hang cannot wait as long as a server can.

use std::time::Duration;

/// The limit; in debug builds, where `PERENNIAL_TEST_PATIENCE_MS` says so, no more than that.
pub(super) fn up_to(limit: Duration) -> Duration {
    if !cfg!(debug_assertions) {
        return limit;
    }
    let shorter = std::env::var("PERENNIAL_TEST_PATIENCE_MS");
    let shorter = shorter.ok().and_then(|text| text.parse().ok());
    shorter.map_or(limit, |ms| limit.min(Duration::from_millis(ms)))
}
