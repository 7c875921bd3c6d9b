//! Waiting for a condition with a deadline. No test sleeps and hopes.

use std::time::{Duration, Instant};

/// How long anything that should happen soon may take on a busy machine.
pub const SOON: Duration = Duration::from_secs(30);

const BETWEEN_LOOKS: Duration = Duration::from_millis(25);

/// The first value that `look` finds.
///
/// # Panics
/// When there is none before the deadline; the message says what was waited for.
pub async fn wait_until<T>(
    deadline: Duration,
    what: &str,
    mut look: impl AsyncFnMut() -> Option<T>,
) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(
            begun.elapsed() < deadline,
            "waited {deadline:?} in vain for {what}"
        );
        tokio::time::sleep(BETWEEN_LOOKS).await;
    }
}

/// Looks again and again for the whole time: for things that must not happen.
///
/// # Panics
/// As soon as `look` finds something; the message is what it found.
pub async fn never_within(time: Duration, mut look: impl AsyncFnMut() -> Option<String>) {
    let begun = Instant::now();
    while begun.elapsed() < time {
        if let Some(found) = look().await {
            panic!("{found}");
        }
        tokio::time::sleep(BETWEEN_LOOKS).await;
    }
}
