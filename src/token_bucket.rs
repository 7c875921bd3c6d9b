//! Token buckets: so many at once, then evenly, as a [`Limit`] says. Pure: time is an argument.

use std::time::Instant;

use time::OffsetDateTime;

use crate::config::Limit;

/// A time that others can be compared with.
pub trait Time: Copy {
    /// Seconds since `earlier`; a clock that went back takes nothing and gives nothing.
    fn seconds_since(self, earlier: Self) -> f64;
}

impl Time for Instant {
    fn seconds_since(self, earlier: Instant) -> f64 {
        self.saturating_duration_since(earlier).as_secs_f64()
    }
}

impl Time for OffsetDateTime {
    fn seconds_since(self, earlier: OffsetDateTime) -> f64 {
        (self - earlier).as_seconds_f64().max(0.0)
    }
}

/// What is missing of a full bucket, as it was at a time.
#[derive(Clone, Copy, Debug)]
pub struct TokenBucket<T> {
    missing: f64,
    at: T,
}

impl<T: Time> TokenBucket<T> {
    pub fn full(at: T) -> TokenBucket<T> {
        TokenBucket { missing: 0.0, at }
    }

    pub fn is_full(&self, limit: Limit, now: T) -> bool {
        self.missing_at(limit, now) <= 0.0
    }

    /// Seconds until there is a whole token; none if there is one.
    pub fn wait(&self, limit: Limit, now: T) -> f64 {
        let lacking = self.missing_at(limit, now) + 1.0 - f64::from(limit.count);
        lacking.max(0.0) * seconds_per_token(limit)
    }

    /// Takes one, be it there or not.
    pub fn take(&mut self, limit: Limit, now: T) {
        self.missing = self.missing_at(limit, now) + 1.0;
        self.at = now;
    }

    pub fn give_back(&mut self) {
        self.missing = (self.missing - 1.0).max(0.0);
    }

    /// Fills from this time on at the latest: the clock that said a later one was wrong.
    pub fn fill_from(&mut self, now: T)
    where
        T: Ord,
    {
        self.at = self.at.min(now);
    }

    fn missing_at(&self, limit: Limit, now: T) -> f64 {
        let filled = now.seconds_since(self.at) / seconds_per_token(limit);
        (self.missing - filled).max(0.0)
    }
}

fn seconds_per_token(limit: Limit) -> f64 {
    limit.per.as_secs_f64() / f64::from(limit.count.max(1))
}
