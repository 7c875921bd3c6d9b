//! So many requests within so long, of each client or whatever they are counted by: a bucket for
//! each that holds as many as the limit and fills up steadily.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::config::Limit;
use crate::token_bucket::TokenBucket;

/// Locks that no two cores need at once, as a rule.
const SHARDS: usize = 16;

/// Buckets of one shard, 32 bytes each. Where there are more clients, full buckets are forgotten,
/// and then any.
const MAX_BUCKETS: usize = 8 * 1024;

type Buckets = HashMap<u64, TokenBucket<Instant>>;

/// The buckets of one limit.
pub struct RateLimiter {
    limit: Limit,
    hasher: RandomState,
    shards: [Mutex<Buckets>; SHARDS],
}

impl RateLimiter {
    pub fn new(limit: Limit) -> RateLimiter {
        RateLimiter {
            limit,
            hasher: RandomState::new(),
            shards: Default::default(),
        }
    }

    /// Takes one. The error is how long until there is one.
    pub fn take(&self, key: &impl Hash, now: Instant) -> Result<(), Duration> {
        let key = self.hasher.hash_one(key);
        let shard = &self.shards[(key % SHARDS as u64) as usize];
        // A bucket is whole whenever the lock is free.
        let mut buckets = shard.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= MAX_BUCKETS && !buckets.contains_key(&key) {
            self.make_room(&mut buckets, now);
        }
        let bucket = buckets.entry(key).or_insert(TokenBucket::full(now));
        let wait = bucket.wait(self.limit, now);
        if wait > 0.0 {
            return Err(Duration::from_secs_f64(wait));
        }
        bucket.take(self.limit, now);
        Ok(())
    }

    fn make_room(&self, buckets: &mut Buckets, now: Instant) {
        buckets.retain(|_, bucket| !bucket.is_full(self.limit, now));
        let mut kept = 0;
        buckets.retain(|_, _| {
            kept += 1;
            kept <= MAX_BUCKETS / 2
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limiter(count: u32, seconds: u64) -> RateLimiter {
        RateLimiter::new(Limit {
            count,
            per: Duration::from_secs(seconds),
        })
    }

    #[test]
    fn a_bucket_empties_and_fills_up_again() {
        let (limiter, now) = (limiter(3, 60), Instant::now());
        for _ in 0..3 {
            assert_eq!(limiter.take(&"a", now), Ok(()));
        }
        let wait = limiter.take(&"a", now).unwrap_err();
        assert_eq!(wait.as_secs(), 20);
        assert_eq!(limiter.take(&"b", now), Ok(()));
        assert!(limiter.take(&"a", now + Duration::from_secs(19)).is_err());
        assert_eq!(limiter.take(&"a", now + Duration::from_secs(21)), Ok(()));
        assert!(limiter.take(&"a", now + Duration::from_secs(22)).is_err());
        let later = now + Duration::from_secs(1000);
        for _ in 0..3 {
            assert_eq!(limiter.take(&"a", later), Ok(()));
        }
        assert!(limiter.take(&"a", later).is_err());
    }

    #[test]
    fn memory_is_bounded() {
        let (limiter, now) = (limiter(1, 60), Instant::now());
        for client in 0..(2 * SHARDS * MAX_BUCKETS) {
            let _ = limiter.take(&client, now);
        }
        for shard in &limiter.shards {
            assert!(shard.lock().unwrap().len() <= MAX_BUCKETS);
        }
    }
}
