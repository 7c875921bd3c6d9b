//! How many requests may be sent a second time: a share of those that there are, so that a failing
//! upstream is not asked twice as much as a good one.

use std::sync::{Mutex, PoisonError};

use super::health::Tick;
use crate::config::Retries;

/// Requests of so long count.
const WINDOW_MS: u64 = 10_000;

/// What is left to be spent. It is touched only when something is spent.
pub struct Budget {
    settings: Option<Retries>,
    state: Mutex<State>,
}

struct State {
    /// From the share of requests.
    earned: f64,
    /// From what there is in any case.
    reserve: f64,
    requests: usize,
    at: Tick,
}

impl Budget {
    pub fn new(settings: Option<Retries>, now: Tick) -> Budget {
        let reserve = settings.map_or(0.0, |it| reserve(it.min_per_second));
        Budget {
            settings,
            state: Mutex::new(State {
                earned: 0.0,
                reserve,
                requests: 0,
                at: now,
            }),
        }
    }

    /// Takes one retry. `requests`: how many there were, ever.
    pub fn spend(&self, requests: usize, now: Tick) -> bool {
        let Some(settings) = self.settings else {
            return false;
        };
        // Every change is whole: a panic elsewhere leaves nothing half done.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.refill(settings, requests, now);
        let State {
            earned, reserve, ..
        } = &mut *state;
        for left in [earned, reserve] {
            if *left >= 1.0 {
                *left -= 1.0;
                return true;
            }
        }
        false
    }
}

impl State {
    fn refill(&mut self, settings: Retries, requests: usize, now: Tick) {
        let passed = now.0.saturating_sub(self.at.0) as f64;
        let new = requests.wrapping_sub(self.requests) as f64;
        let window = WINDOW_MS as f64;
        // Of a longer time the requests of the last seconds are guessed: as many as at any other.
        let recent = new * (window / passed.max(window));
        self.earned *= (1.0 - passed / window).max(0.0);
        self.earned += recent * f64::from(settings.budget) / 100.0;
        let min = f64::from(settings.min_per_second);
        self.reserve = (self.reserve + passed / 1000.0 * min).min(reserve(settings.min_per_second));
        (self.requests, self.at) = (requests, now);
    }
}

fn reserve(min_per_second: u32) -> f64 {
    f64::from(min_per_second) * (WINDOW_MS / 1000) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(budget: u32, min_per_second: u32) -> Budget {
        let settings = Retries {
            budget,
            min_per_second,
        };
        Budget::new(Some(settings), Tick(1))
    }

    fn spent(budget: &Budget, requests: usize, at: u64) -> usize {
        let spend = |_: &usize| budget.spend(requests, Tick(at));
        (0..10_000).take_while(spend).count()
    }

    #[test]
    fn it_is_a_share_of_the_requests() {
        let budget = budget(20, 0);
        assert_eq!(spent(&budget, 1000, 1001), 200);
        assert_eq!(spent(&budget, 1000, 2001), 0);
        assert_eq!(spent(&budget, 1100, 3001), 20);
        // A million in a quarter of an hour is some 11,000 in ten seconds.
        let after = spent(&budget, 1_001_100, 903_001);
        assert!((2200..2240).contains(&after), "{after}");
    }

    #[test]
    fn some_are_there_in_any_case() {
        let budget = budget(0, 2);
        assert_eq!(spent(&budget, 1, 1), 20);
        assert_eq!(spent(&budget, 2, 1501), 3);
        assert_eq!(spent(&budget, 3, 100_000), 20);
    }

    #[test]
    fn off_is_none() {
        assert!(!Budget::new(None, Tick(1)).spend(1000, Tick(2)));
    }
}
