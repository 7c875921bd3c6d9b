//! Waiting between polls, up to a deadline of our own: some CAs leave things pending for ever.

use std::time::{Duration as StdDuration, Instant};

use time::OffsetDateTime;

use crate::acme::patience;
use crate::clock;

/// Polls begin close together and grow apart, unless the CA says how far.
const FIRST_POLL: StdDuration = StdDuration::from_millis(250);
const LAST_POLL: StdDuration = StdDuration::from_secs(5);
/// A CA may ask us to poll less often, within the deadline.
const LONGEST_POLL: StdDuration = StdDuration::from_secs(30);

/// Waits between polls, up to a deadline of our own.
pub(super) struct Poll {
    deadline: Instant,
    delay: StdDuration,
    pub(super) count: u32,
}

impl Poll {
    pub(super) fn new(limit: StdDuration) -> Poll {
        Poll {
            deadline: Instant::now() + patience::up_to(limit),
            delay: FIRST_POLL,
            count: 0,
        }
    }

    /// Waits; false where the deadline has passed.
    pub(super) async fn wait(&mut self, asked: Option<OffsetDateTime>) -> bool {
        let now = Instant::now();
        if now >= self.deadline {
            return false;
        }
        let asked = asked.and_then(|at| StdDuration::try_from(at - clock::now()).ok());
        let delay = asked.map_or(self.delay, |asked| asked.clamp(FIRST_POLL, LONGEST_POLL));
        self.delay = (self.delay * 3 / 2).min(LAST_POLL);
        self.count += 1;
        tokio::time::sleep(delay.min(self.deadline - now)).await;
        true
    }
}
