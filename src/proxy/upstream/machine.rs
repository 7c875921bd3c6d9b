//! What is known of an upstream whichever pool it is in: the same address, spoken to in the same way,
//! is one machine. Pools have it as long as they are there; a new configuration finds it as it was.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use arc_swap::ArcSwap;

use super::health::Passive;
use super::load::Queue;
use crate::config::{Member, Upstream, UpstreamTls};
use crate::proxy::upstream_tls::UpstreamTrust;

/// The machines that pools have. Clones share them.
#[derive(Clone, Default)]
pub struct Machines(Arc<Mutex<HashMap<Key, Weak<Machine>>>>);

/// Where it is, and how it is spoken to.
type Key = (Upstream, Option<UpstreamTls>);

/// One upstream, for all pools that have it.
#[derive(Default)]
pub struct Machine {
    /// Whether it can be reached, and speaks.
    pub health: Passive,
    /// Requests that it has, where that is counted.
    under_way: AtomicUsize,
    /// Whether it matters to any pool how many these are.
    counted: AtomicBool,
    pools: ArcSwap<Vec<Pool>>,
}

/// What has to hear of the machine.
#[derive(Clone)]
struct Pool {
    /// Of requests that may wait for a place on it.
    queue: Weak<Queue>,
    /// Whether the pool counts.
    counts: Weak<AtomicBool>,
}

impl Machines {
    /// The machine of a pool's member. A fixed answer comes from none: each has one of its own.
    pub fn get(&self, member: &Member, trust: Option<&Arc<UpstreamTrust>>) -> Arc<Machine> {
        if matches!(member.upstream, Upstream::Respond(_)) {
            return Arc::default();
        }
        let trust = trust.filter(|_| member.upstream.is_tls());
        let key = (
            member.upstream.clone(),
            trust.map(|trust| trust.settings.clone()),
        );
        // Every change is whole: a panic elsewhere leaves nothing half done.
        let mut machines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(machine) = machines.get(&key).and_then(Weak::upgrade) {
            return machine;
        }
        machines.retain(|_, machine| machine.strong_count() > 0);
        let machine = Arc::<Machine>::default();
        machines.insert(key, Arc::downgrade(&machine));
        machine
    }
}

impl Machine {
    /// From here on a pool hears of places that become free, and counts when another does: what one
    /// pool may send to a machine depends on what all have sent.
    pub fn join(&self, queue: &Arc<Queue>, counts: &Arc<AtomicBool>) {
        let pool = Pool {
            queue: Arc::downgrade(queue),
            counts: Arc::downgrade(counts),
        };
        self.pools.rcu(|pools| {
            let mut pools: Vec<Pool> = (**pools).clone();
            pools.retain(|pool| pool.queue.strong_count() > 0);
            pools.push(pool.clone());
            pools
        });
        if counts.load(Ordering::SeqCst) {
            self.counted.store(true, Ordering::SeqCst);
        }
        if self.counted.load(Ordering::SeqCst) {
            for pool in self.pools.load().iter() {
                if let Some(counts) = pool.counts.upgrade() {
                    counts.store(true, Ordering::SeqCst);
                }
            }
        }
    }

    pub fn under_way(&self) -> usize {
        self.under_way.load(Ordering::SeqCst)
    }

    /// Counts one more, if there are less than `max`.
    pub fn enter(&self, max: usize) -> bool {
        let more = |count| (count < max).then_some(count + 1);
        let (order, fail) = (Ordering::SeqCst, Ordering::SeqCst);
        self.under_way.fetch_update(order, fail, more).is_ok()
    }

    /// One less. Somebody of each pool who waits hears of it: which of them may have the place is
    /// theirs to find out.
    pub fn leave(&self) {
        self.under_way.fetch_sub(1, Ordering::SeqCst);
        for pool in self.pools.load().iter() {
            if let Some(queue) = pool.queue.upgrade() {
                queue.a_place_is_free();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(to: &str, http2: bool) -> Member {
        Member::from(Upstream::Tcp {
            host: to.to_owned(),
            port: 80,
            tls: false,
            http2,
        })
    }

    #[test]
    fn the_same_place_spoken_to_in_the_same_way_is_one() {
        let machines = Machines::default();
        let one = machines.get(&member("a.test", false), None);
        let same = |other: &Arc<Machine>| Arc::ptr_eq(&one, other);
        assert!(same(&machines.get(&member("a.test", false), None)));
        assert!(!same(&machines.get(&member("a.test", true), None)));
        assert!(!same(&machines.get(&member("b.test", false), None)));
        let fixed = Member::from(Upstream::Respond("hello".to_owned()));
        let (first, second) = (machines.get(&fixed, None), machines.get(&fixed, None));
        assert!(!Arc::ptr_eq(&first, &second));
    }

    #[test]
    fn whoever_counts_makes_the_others_count() {
        let machine = Machine::default();
        let queue = || Arc::new(Queue::new(crate::config::Pending::default()));
        let queues = [queue(), queue(), queue()];
        let counts = [false, true, false].map(|it| Arc::new(AtomicBool::new(it)));
        machine.join(&queues[0], &counts[0]);
        assert!(!counts[0].load(Ordering::Relaxed));
        machine.join(&queues[1], &counts[1]);
        machine.join(&queues[2], &counts[2]);
        assert!(counts.iter().all(|it| it.load(Ordering::Relaxed)));
    }
}
