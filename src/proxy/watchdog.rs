//! A timer for one thing after the other. Nearly everything that is waited for comes in time: what
//! is set anew for each wait is only the time itself, and the runtime's timer is touched when it
//! rings, once in a while, or when a wait is shorter than the one before.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::time::{Instant, Sleep, sleep_until};

#[derive(Default)]
pub struct Watchdog(Option<Pin<Box<Sleep>>>);

impl Watchdog {
    /// Ready at `deadline`, if it is not asked with another one before.
    pub fn poll(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        let sleep = self
            .0
            .get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if sleep.deadline() > deadline {
            sleep.as_mut().reset(deadline);
        }
        loop {
            ready!(sleep.as_mut().poll(cx));
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(deadline);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_rings_for_the_last_wait_alone() {
        let mut watchdog = Watchdog::default();
        let start = Instant::now();
        for seconds in [60, 61, 5, 70] {
            let deadline = start + Duration::from_secs(seconds);
            let poll = poll_fn(|cx| Poll::Ready(watchdog.poll(cx, deadline))).await;
            assert!(poll.is_pending(), "{seconds}");
        }
        let deadline = start + Duration::from_secs(70);
        poll_fn(|cx| watchdog.poll(cx, deadline)).await;
        assert_eq!(start.elapsed().as_secs(), 70);
    }
}
