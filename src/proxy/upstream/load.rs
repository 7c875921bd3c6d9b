//! How many requests each upstream has, how many it may have, and those that wait for a place.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::config::Pending;

/// Of one upstream.
pub struct Load {
    under_way: AtomicUsize,
    max: usize,
}

/// A request that an upstream has, until this is dropped.
pub struct Held {
    load: Arc<Load>,
    queue: Arc<Queue>,
}

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
    pub fn new(max: Option<usize>) -> Load {
        Load {
            under_way: AtomicUsize::new(0),
            max: max.unwrap_or(usize::MAX),
        }
    }

    pub fn under_way(&self) -> usize {
        self.under_way.load(Ordering::Relaxed)
    }

    pub fn has_room(&self) -> bool {
        self.under_way.load(Ordering::SeqCst) < self.max
    }

    /// Counts one more, if there is room for it. Whoever waits in `queue` hears of its end.
    pub fn enter(self: &Arc<Load>, queue: &Arc<Queue>) -> Option<Held> {
        let more = |count| (count < self.max).then_some(count + 1);
        let (order, fail) = (Ordering::SeqCst, Ordering::SeqCst);
        self.under_way.fetch_update(order, fail, more).ok()?;
        Some(Held {
            load: Arc::clone(self),
            queue: Arc::clone(queue),
        })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.load.under_way.fetch_sub(1, Ordering::SeqCst);
        if self.queue.waiting.load(Ordering::SeqCst) > 0 {
            self.queue.freed.notify_one();
        }
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

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_gets_the_place_that_becomes_free() {
        let (load, queue) = (Arc::new(Load::new(Some(1))), queue(1));
        let held = load.enter(&queue).unwrap();
        assert!(load.enter(&queue).is_none() && !load.has_room());
        let look = || load.enter(&queue);
        let (next, ()) = tokio::join!(queue.wait(look), async {
            while queue.waiting() == 0 {
                tokio::task::yield_now().await;
            }
            let full = queue.wait(|| None::<()>).await;
            assert_eq!(full, Err(Busy::Full(1)));
            drop(held);
        });
        assert!(next.is_ok() && load.under_way() == 1);
        drop(next);
        assert!(load.has_room() && queue.waiting() == 0);
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
