//! Health checks: each upstream of a pool that wants it is asked again and again how it is, off the
//! way of requests. Pools with the same upstream and the same check share one; it ends with the last
//! of them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio_util::sync::CancellationToken;

use super::health::{Tick, note_change};
use super::machine::Machines;
use super::{Target, label};
use crate::config::{HealthCheck, Member, Upstream, UpstreamTls};
use crate::proxy::dns::Dns;
use crate::proxy::upstream_tls::UpstreamTrust;

mod probe;

/// What all pools know of upstreams together: the checks that run, and the machines. Clones share it.
#[derive(Clone, Default)]
pub struct HealthChecks {
    running: Arc<Mutex<Running>>,
    machines: Machines,
}

type Running = HashMap<Key, Weak<Checked>>;

/// What is asked how.
type Key = (Upstream, Option<UpstreamTls>, HealthCheck);

/// What a check has found. It ends when this is dropped.
pub struct Checked {
    label: String,
    healthy: AtomicBool,
    /// When it was found healthy after it was not; 0: never.
    risen_at: AtomicU64,
    last_error: Mutex<Option<Arc<str>>>,
    stop: CancellationToken,
}

impl HealthChecks {
    pub fn machines(&self) -> &Machines {
        &self.machines
    }

    /// The check of an upstream, which begins with this where there is none yet. Nothing for one
    /// that is not dialled.
    pub fn get(
        &self,
        member: &Member,
        trust: Option<&Arc<UpstreamTrust>>,
        check: &HealthCheck,
        dns: &Dns,
    ) -> Option<Arc<Checked>> {
        if matches!(member.upstream, Upstream::Respond(_)) {
            return None;
        }
        let settings = trust.map(|trust| trust.settings.clone());
        let key = (member.upstream.clone(), settings, check.clone());
        // Every change is whole: a panic elsewhere leaves nothing half done.
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(checked) = running.get(&key).and_then(Weak::upgrade) {
            return Some(checked);
        }
        running.retain(|_, checked| checked.strong_count() > 0);
        let checked = Arc::new(Checked::new(&label(&member.upstream)));
        running.insert(key, Arc::downgrade(&checked));
        let round = Round {
            target: Target::new(&member.upstream, trust, dns),
            name: checked.label.clone(),
            check: check.clone(),
            streak: Streak::default(),
            checked: Arc::downgrade(&checked),
        };
        let stop = checked.stop.clone();
        tokio::spawn(async move { stop.run_until_cancelled(round.run()).await });
        Some(checked)
    }
}

impl Drop for Checked {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Checked {
    /// One that was not asked yet, and so is taken for healthy.
    pub fn new(label: &str) -> Checked {
        Checked {
            label: label.to_owned(),
            healthy: AtomicBool::new(true),
            risen_at: AtomicU64::new(0),
            last_error: Mutex::default(),
            stop: CancellationToken::new(),
        }
    }

    pub fn is_healthy(&self) -> bool {
        self.healthy.load(Ordering::Acquire)
    }

    pub fn risen_at(&self) -> Tick {
        Tick(self.risen_at.load(Ordering::Acquire))
    }

    /// What the last check found wrong.
    pub fn last_error(&self) -> Option<Arc<str>> {
        let error = self.last_error.lock();
        error.unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn set(&self, healthy: bool, now: Tick) {
        if healthy && !self.is_healthy() {
            self.risen_at.store(now.0, Ordering::Release);
        }
        self.healthy.store(healthy, Ordering::Release);
        note_change();
    }

    fn note(&self, result: &Result<(), String>) {
        let error = result.as_ref().err().map(|error| Arc::from(error.as_str()));
        *self
            .last_error
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = error;
    }
}

/// One answer after another.
struct Round {
    target: Target,
    name: String,
    check: HealthCheck,
    streak: Streak,
    checked: Weak<Checked>,
}

impl Round {
    async fn run(mut self) {
        loop {
            let result = probe::probe(&self.target, &self.name, &self.check).await;
            let Some(checked) = self.checked.upgrade() else {
                return;
            };
            checked.note(&result);
            let turned = self
                .streak
                .note(result.is_ok(), checked.is_healthy(), &self.check);
            if let Some(healthy) = turned {
                checked.set(healthy, Tick::now());
                match &result {
                    Ok(()) => {
                        tracing::info!(upstream = %self.name, "health check: it is well again")
                    }
                    Err(cause) => {
                        tracing::warn!(upstream = %self.name, %cause, "health check failed")
                    }
                }
            }
            drop(checked);
            tokio::time::sleep(self.check.interval).await;
        }
    }
}

/// How many answers of one kind came in a row.
#[derive(Default)]
struct Streak {
    count: u32,
    asked: bool,
}

impl Streak {
    /// What an answer makes of an upstream, if it changes. The first one is believed at once.
    fn note(&mut self, good: bool, healthy: bool, check: &HealthCheck) -> Option<bool> {
        let first = !std::mem::replace(&mut self.asked, true);
        if good == healthy {
            self.count = 0;
            return None;
        }
        self.count += 1;
        let wanted = if good { check.rise } else { check.fall };
        if !first && self.count < wanted {
            return None;
        }
        self.count = 0;
        Some(good)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::CheckKind;
    use std::time::Duration;

    fn check(interval: u64) -> HealthCheck {
        HealthCheck {
            kind: CheckKind::Tcp,
            interval: Duration::from_secs(interval),
            timeout: Duration::from_secs(1),
            rise: 2,
            fall: 3,
        }
    }

    #[test]
    fn thresholds() {
        let check = check(1);
        let mut streak = Streak::default();
        let mut healthy = true;
        let mut seen = Vec::new();
        for good in "-+-+++-+--+---++".chars().map(|c| c == '+') {
            healthy = streak.note(good, healthy, &check).unwrap_or(healthy);
            seen.push(if healthy { '+' } else { '-' });
        }
        let seen: String = seen.into_iter().collect();
        assert_eq!(seen, "----+++++++++--+");
    }

    #[tokio::test]
    async fn the_same_check_runs_once_and_ends_with_its_last_user() {
        let checks = HealthChecks::default();
        let member = |port| {
            Member::from(Upstream::Tcp {
                host: "192.0.2.1".into(),
                port,
                tls: false,
                http2: false,
            })
        };
        let one = checks
            .get(&member(1), None, &check(1), &Dns::default())
            .unwrap();
        let same = checks
            .get(&member(1), None, &check(1), &Dns::default())
            .unwrap();
        let other = checks
            .get(&member(2), None, &check(1), &Dns::default())
            .unwrap();
        let slower = checks
            .get(&member(1), None, &check(2), &Dns::default())
            .unwrap();
        assert!(Arc::ptr_eq(&one, &same));
        assert!(!Arc::ptr_eq(&one, &other) && !Arc::ptr_eq(&one, &slower));
        let stop = one.stop.clone();
        drop(one);
        assert!(!stop.is_cancelled());
        drop(same);
        assert!(stop.is_cancelled());
    }
}
