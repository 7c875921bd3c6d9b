//! How many requests each upstream has, how many it may have, and those that wait for a place.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::machine::Machine;
use crate::config::Pending;

/// Of one upstream in one pool.
pub struct Load {
    machine: Arc<Machine>,
    /// How many requests it may have, with those of other pools, before it gets one of this.
    max: usize,
}

/// A request that an upstream has, until this is dropped.
pub struct Held(Arc<Machine>);

/// The requests of a route that wait.
pub struct Queue {
    settings: Pending,
    waiting: AtomicUsize,
    freed: Notify,
}

/// Why a request got no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Busy {
    #[error("every upstream has as many requests as it may have, and {0} wait already")]
    Full(usize),
    #[error("every upstream has had as many requests as it may have for {0:?}")]
    TimedOut(Duration),
}

impl Load {
    pub fn new(machine: Arc<Machine>, max: Option<usize>) -> Load {
        Load {
            machine,
            max: max.unwrap_or(usize::MAX),
        }
    }

    /// A pool that has it hears of its places.
    pub fn join(&self, queue: &Arc<Queue>, counts: &Arc<AtomicBool>) {
        self.machine.join(queue, counts);
    }

    /// Of all pools.
    pub fn under_way(&self) -> usize {
        self.machine.under_way()
    }

    pub fn has_room(&self) -> bool {
        self.machine.under_way() < self.max
    }

    /// Counts one more, if there is room for it.
    pub fn enter(&self) -> Option<Held> {
        let entered = self.machine.enter(self.max);
        entered.then(|| Held(Arc::clone(&self.machine)))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.leave();
    }
}

impl Queue {
    pub fn new(settings: Pending) -> Queue {
        Queue {
            settings,
            waiting: AtomicUsize::new(0),
            freed: Notify::new(),
        }
    }

    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Whoever waits longest looks again.
    pub fn a_place_is_free(&self) {
        if self.waiting.load(Ordering::SeqCst) > 0 {
            self.freed.notify_one();
        }
    }

    /// Until `look` finds something, which it may whenever a place has become free.
    pub async fn wait<T>(&self, mut look: impl FnMut() -> Option<T>) -> Result<T, Busy> {
        let Pending { max, timeout } = self.settings;
        let more = |count| (count < max).then_some(count + 1);
        let (order, fail) = (Ordering::SeqCst, Ordering::SeqCst);
        if self.waiting.fetch_update(order, fail, more).is_err() {
            return Err(Busy::Full(max));
        }
        let _waiting = Waiting(self);
        let deadline = Instant::now() + timeout;
        loop {
            let mut freed = std::pin::pin!(self.freed.notified());
            // A place that becomes free from here on is heard of.
            freed.as_mut().enable();
            if let Some(found) = look() {
                return Ok(found);
            }
            if tokio::time::timeout_at(deadline, freed).await.is_err() {
                return Err(Busy::TimedOut(timeout));
            }
        }
    }
}

impl Busy {
    /// For metrics.
    pub fn label(self) -> &'static str {
        match self {
            Busy::Full(_) => "full",
            Busy::TimedOut(_) => "timeout",
        }
    }

    /// When to ask again, in seconds.
    pub fn retry_after(self) -> u64 {
        match self {
            Busy::Full(_) => 1,
            Busy::TimedOut(timeout) => timeout.as_secs().max(1),
        }
    }
}

/// Counts a request that waits.
struct Waiting<'q>(&'q Queue);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(max: usize) -> Arc<Queue> {
        Arc::new(Queue::new(Pending {
            max,
            timeout: Duration::from_secs(3),
        }))
    }

    /// Two pools with the same machine.
    #[tokio::test(start_paused = true)]
    async fn whoever_waits_gets_the_place_that_becomes_free() {
        let machine = Arc::<Machine>::default();
        let (own, others) = (queue(1), queue(1));
        for queue in [&own, &others] {
            machine.join(queue, &Arc::new(AtomicBool::new(true)));
        }
        let load = Load::new(machine.clone(), Some(1));
        let other = Load::new(machine, Some(1));
        let held = load.enter().unwrap();
        assert!(load.enter().is_none() && !other.has_room());
        let (next, ()) = tokio::join!(others.wait(|| other.enter()), async {
            while others.waiting() == 0 {
                tokio::task::yield_now().await;
            }
            let full = others.wait(|| None::<()>).await;
            assert_eq!(full, Err(Busy::Full(1)));
            drop(held);
        });
        assert!(next.is_ok() && load.under_way() == 1);
        drop(next);
        assert!(load.has_room() && others.waiting() == 0 && own.waiting() == 0);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_ever() {
        let queue = queue(5);
        let waited = queue.wait(|| None::<()>).await;
        assert_eq!(waited, Err(Busy::TimedOut(Duration::from_secs(3))));
        assert_eq!(waited.map_err(Busy::retry_after), Err(3));
        assert_eq!(queue.waiting(), 0);
    }
}
