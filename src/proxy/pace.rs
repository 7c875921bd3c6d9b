//! How slow a client may be on average: so much time, and more for what it moves. Pure: time is an
//! argument.

use std::time::Duration;

use tokio::time::Instant;

use crate::config::MinRates;

/// Which way the bytes go that a client is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Request,
    Response,
}

/// The client's time in one exchange. Only what it is waited for counts: not an upstream's.
pub struct Pace {
    rates: MinRates,
    request: Duration,
    response: Duration,
    /// What is waited for, and since when.
    waits: Option<(Direction, Instant)>,
}

impl Pace {
    pub fn new(rates: MinRates) -> Pace {
        Pace {
            rates,
            request: Duration::ZERO,
            response: Duration::ZERO,
            waits: None,
        }
    }

    /// The client is waited for, which has moved so many bytes of this until now. When its time is
    /// over, if it ever is.
    pub fn wait(&mut self, direction: Direction, moved: u64, now: Instant) -> Option<Instant> {
        self.settle(now);
        let (rate, waited) = match direction {
            Direction::Request => (self.rates.request, self.request),
            Direction::Response => (self.rates.response, self.response),
        };
        self.waits = Some((direction, now));
        let earned = Duration::from_secs(moved.checked_div(rate?)?);
        let allowed = self.rates.grace.saturating_add(earned);
        now.checked_add(allowed.saturating_sub(waited))
    }

    /// Somebody else is waited for.
    pub fn goes_on(&mut self) {
        if self.waits.is_some() {
            self.settle(Instant::now());
        }
    }

    fn settle(&mut self, now: Instant) {
        let Some((direction, since)) = self.waits.take() else {
            return;
        };
        let waited = now.saturating_duration_since(since);
        match direction {
            Direction::Request => self.request += waited,
            Direction::Response => self.response += waited,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATES: MinRates = MinRates {
        request: Some(100),
        response: None,
        grace: Duration::from_secs(10),
    };

    #[tokio::test(start_paused = true)]
    async fn a_client_has_its_grace_and_what_it_earns() {
        let mut pace = Pace::new(RATES);
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(pace.wait(Direction::Request, 0, start), Some(at(10)));
        // 99 bytes are not a second.
        assert_eq!(pace.wait(Direction::Request, 99, at(4)), Some(at(10)));
        assert_eq!(pace.wait(Direction::Request, 500, at(8)), Some(at(15)));
        // An upstream's time is nobody's fault.
        tokio::time::advance(Duration::from_secs(9)).await;
        pace.goes_on();
        assert_eq!(pace.wait(Direction::Request, 500, at(100)), Some(at(106)));
        assert_eq!(pace.wait(Direction::Response, 0, at(101)), None);
        assert_eq!(pace.wait(Direction::Request, 500, at(200)), Some(at(205)));
    }
}
