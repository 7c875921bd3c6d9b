//! Connections that wait for their next request, and how the oldest of them make room for new ones when
//! there are as many as there may be. What is under way is never touched.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// Locks that no two cores need at once, as a rule.
const SHARDS: usize = 16;

/// How many of the oldest are found at once: at the limit every new connection needs one.
const CANDIDATES: usize = 64;

/// Something is under way.
const BUSY: u64 = 0;
/// It was told to go.
const LEAVING: u64 = u64::MAX;

/// All of a process that may wait.
#[derive(Default)]
pub struct IdleConnections {
    shards: [Mutex<HashMap<u64, Arc<Idling>>>; SHARDS],
    next: AtomicU64,
    /// Those that had waited longest, the longest last, and since when.
    candidates: Mutex<Vec<(u64, Weak<Idling>)>>,
}

/// One of them.
pub struct Idling {
    number: u64,
    /// Since when it waits, or what it does instead.
    since: AtomicU64,
    goes: CancellationToken,
}

impl IdleConnections {
    /// A connection that has just come in. It goes with `listener`, too.
    pub fn enter(&self, listener: &CancellationToken) -> Arc<Idling> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let idling = Arc::new(Idling {
            number,
            since: AtomicU64::new(BUSY),
            goes: listener.child_token(),
        });
        self.shard(number).insert(number, Arc::clone(&idling));
        idling
    }

    pub fn leave(&self, idling: &Idling) {
        self.shard(idling.number).remove(&idling.number);
    }

    /// Has the one go that has waited longest. Whether there was any.
    pub fn make_room(&self) -> bool {
        let mut candidates = lock(&self.candidates);
        // What was found last may be busy by now, or gone.
        let tell = |candidates: &mut Vec<(u64, Weak<Idling>)>| {
            while let Some((since, idling)) = candidates.pop() {
                if idling.upgrade().is_some_and(|it| it.give_way(since)) {
                    return true;
                }
            }
            false
        };
        if tell(&mut candidates) {
            return true;
        }
        *candidates = self.oldest();
        tell(&mut candidates)
    }

    fn oldest(&self) -> Vec<(u64, Weak<Idling>)> {
        let mut found: Vec<(u64, Weak<Idling>)> = Vec::new();
        for shard in &self.shards {
            let idling = lock(shard);
            let waiting = idling.values().filter_map(|it| it.waits_since(it));
            found.extend(waiting);
            found.sort_unstable_by_key(|(since, _)| *since);
            found.truncate(CANDIDATES);
        }
        found.reverse();
        found
    }

    fn shard(&self, number: u64) -> MutexGuard<'_, HashMap<u64, Arc<Idling>>> {
        lock(&self.shards[(number % SHARDS as u64) as usize])
    }
}

impl Idling {
    /// It was busy, and waits for a request since then.
    pub fn waits(&self, since: Instant) {
        // It was busy: nobody else changes that.
        self.since.store(stamp(since), Ordering::Release);
    }

    /// A request has come. Whether it was told to go: this one is its last then, and stays it.
    pub fn works(&self) -> bool {
        let busy = |since| (since != LEAVING).then_some(BUSY);
        let (order, fail) = (Ordering::AcqRel, Ordering::Acquire);
        self.since.fetch_update(order, fail, busy).is_err()
    }

    /// Whether it was told to go while it waited.
    pub fn has_to_go(&self) -> bool {
        self.since.load(Ordering::Acquire) == LEAVING
    }

    /// When it has to go if nothing is under way.
    pub fn goes(&self) -> WaitForCancellationFutureOwned {
        self.goes.clone().cancelled_owned()
    }

    fn waits_since(&self, this: &Arc<Idling>) -> Option<(u64, Weak<Idling>)> {
        let since = self.since.load(Ordering::Acquire);
        (since != BUSY && since != LEAVING).then(|| (since, Arc::downgrade(this)))
    }

    /// Goes, if it still waits as it did.
    fn give_way(&self, since: u64) -> bool {
        let (order, fail) = (Ordering::AcqRel, Ordering::Relaxed);
        let told = self.since.compare_exchange(since, LEAVING, order, fail);
        if told.is_ok() {
            self.goes.cancel();
        }
        told.is_ok()
    }
}

/// Comparable, and neither of the two that mean something else.
fn stamp(time: Instant) -> u64 {
    let since = time.saturating_duration_since(*START);
    (since.as_secs() << 30) | u64::from(since.subsec_nanos()) | 1
}

static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);

/// Every change is whole: a panic elsewhere leaves nothing half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_one_that_has_waited_longest_goes() {
        let (all, listener) = (IdleConnections::default(), CancellationToken::new());
        let now = Instant::now();
        let connections: Vec<_> = (0..4).map(|_| all.enter(&listener)).collect();
        assert!(!all.make_room(), "all are busy");
        for (connection, seconds) in connections.iter().zip([3, 1, 2]) {
            connection.waits(now + Duration::from_secs(seconds));
        }
        let going = || -> Vec<usize> {
            let going = connections.iter().enumerate();
            let going = going.filter(|(_, it)| it.has_to_go() && it.goes.is_cancelled());
            going.map(|(number, _)| number).collect()
        };
        assert!(all.make_room());
        assert_eq!(going(), [1]);
        // A request has come in the meantime.
        assert!(!connections[2].works());
        assert!(all.make_room());
        assert_eq!(going(), [0, 1]);
        assert!(!all.make_room());
        // It comes too late for this one: it is its last.
        assert!(connections[0].works());
        for connection in &connections {
            all.leave(connection);
        }
        assert!(all.shards.iter().all(|shard| lock(shard).is_empty()));
        assert!(!listener.is_cancelled());
    }
}
