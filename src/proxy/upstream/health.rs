//! What is known of how an upstream is: what requests have met, and what checks have found. Time is
//! an argument; nothing here asks for it.

use std::sync::Arc;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::check::Checked;
use super::machine::Machine;
use crate::config::Ejection;

/// Grows with every change of any upstream's health: what follows from it is made anew then. They
/// are too rare to be told apart.
static CHANGES: AtomicU64 = AtomicU64::new(0);

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// How long one request may take to find out whether an upstream is back, before another one tries.
const TRIAL: Duration = Duration::from_secs(5);

/// Milliseconds of this process, never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tick(pub u64);

impl Tick {
    pub const NEVER: Tick = Tick(u64::MAX);

    pub fn now() -> Tick {
        // Half a billion years fit.
        Tick(START.elapsed().as_millis() as u64 + 1)
    }

    pub fn after(self, duration: Duration) -> Tick {
        Tick(self.0.saturating_add(duration.as_millis() as u64))
    }

    pub fn since(self, earlier: Tick) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// The number of changes until now.
pub fn changes() -> u64 {
    CHANGES.load(Ordering::Acquire)
}

pub fn note_change() {
    CHANGES.fetch_add(1, Ordering::AcqRel);
}

/// Of one upstream in one pool.
pub struct Health {
    /// What is the machine's: it cannot be dialled, or does not speak. All pools with it know.
    machine: Arc<Machine>,
    /// What it answers to requests of this pool: it may be this route alone that fails.
    answers: Passive,
    /// Whether whoever fails is left out.
    ejects: bool,
    checked: Option<Arc<Checked>>,
}

/// What requests have met.
#[derive(Default)]
pub struct Passive {
    /// Failures in a row.
    failures: AtomicU32,
    /// How often it was ejected without a success between.
    ejections: AtomicU32,
    ejected_at: AtomicU64,
    /// 0: it is not.
    ejected_until: AtomicU64,
    /// Whether the last dial failed.
    unreachable: AtomicBool,
    /// When it came back; 0: it was never away.
    back_at: AtomicU64,
}

/// How an upstream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    Up,
    /// Requests failed, until then.
    Ejected(Tick),
    /// Checks failed.
    Failing,
    /// It could not be dialled, until then.
    Unreachable(Tick),
}

impl Health {
    pub fn new(machine: Arc<Machine>, ejects: bool, checked: Option<Arc<Checked>>) -> Health {
        Health {
            machine,
            answers: Passive::default(),
            ejects,
            checked,
        }
    }

    pub fn checked(&self) -> Option<&Arc<Checked>> {
        self.checked.as_ref()
    }

    fn risen_at(&self) -> Tick {
        self.checked.as_ref().map_or(Tick(0), |it| it.risen_at())
    }

    pub fn state(&self) -> State {
        let risen = self.risen_at();
        let machine = self.machine.health.away(risen).filter(|_| self.ejects);
        if let Some(away) = machine.max(self.answers.away(risen)) {
            return away;
        }
        match self
            .checked
            .as_ref()
            .is_none_or(|checked| checked.is_healthy())
        {
            true => State::Up,
            false => State::Failing,
        }
    }

    /// Whether nothing speaks against it.
    pub fn is_healthy(&self) -> bool {
        let unreachable = &self.machine.health.unreachable;
        self.state() == State::Up && !unreachable.load(Ordering::Relaxed)
    }

    /// The time of an ejection is over: whether the caller is the one to try it. Nobody else does
    /// for a while.
    pub fn begin_trial(&self, until: Tick, now: Tick) -> bool {
        let [machine, answers] = [&self.machine.health, &self.answers];
        machine.begin_trial(until, now) | answers.begin_trial(until, now)
    }

    /// Since when it is back, if it was away.
    pub fn back_at(&self) -> Option<Tick> {
        let back = |passive: &Passive| passive.back_at.load(Ordering::Relaxed);
        let back = back(&self.machine.health).max(back(&self.answers));
        let back = back.max(self.risen_at().0);
        (back != 0).then_some(Tick(back))
    }

    /// A dial succeeded. Whether it counted as unreachable.
    pub fn dialled(&self, now: Tick) -> bool {
        self.machine.health.dialled(now)
    }

    /// None of its addresses can be dialled, which is no matter of chance. For how long it is left
    /// alone, if it was not unreachable already.
    pub fn dial_failed(&self, policy: Option<&Ejection>, now: Tick) -> Option<Duration> {
        self.machine.health.dial_failed(policy, now)
    }

    /// Whether requests have failed of late, so that a success says something.
    pub fn is_marked(&self) -> bool {
        self.machine.health.is_marked() || self.answers.is_marked()
    }

    /// A request was answered. Whether it counted as ejected.
    pub fn succeeded(&self, now: Tick) -> bool {
        self.machine.health.succeeded(now) | self.answers.succeeded(now)
    }

    /// A request was answered in a way that counts as a failure here. For how long it is ejected, if
    /// it is now, and was not.
    pub fn answered_badly(&self, policy: &Ejection, now: Tick) -> Option<Duration> {
        // It speaks.
        self.machine.health.succeeded(now);
        self.answers.failed(policy, now)
    }

    /// A request failed. For how long it is ejected, if it is now, and was not.
    pub fn failed(&self, policy: &Ejection, now: Tick) -> Option<Duration> {
        self.machine.health.failed(policy, now)
    }
}

impl Passive {
    /// How it is away, if it is, and no check has found it well since: at `risen`.
    fn away(&self, risen: Tick) -> Option<State> {
        let until = self.ejected_until.load(Ordering::Relaxed);
        if until == 0 || risen.0 > self.ejected_at.load(Ordering::Relaxed) {
            return None;
        }
        Some(match self.unreachable.load(Ordering::Relaxed) {
            true => State::Unreachable(Tick(until)),
            false => State::Ejected(Tick(until)),
        })
    }

    fn begin_trial(&self, until: Tick, now: Tick) -> bool {
        let next = now.after(TRIAL).0;
        let (order, fail) = (Ordering::AcqRel, Ordering::Relaxed);
        let trial = &self.ejected_until;
        trial.compare_exchange(until.0, next, order, fail).is_ok()
    }

    fn dialled(&self, now: Tick) -> bool {
        let was = self.unreachable.load(Ordering::Relaxed)
            && self.unreachable.swap(false, Ordering::AcqRel);
        if was {
            self.come_back(now);
        }
        was
    }

    fn dial_failed(&self, policy: Option<&Ejection>, now: Tick) -> Option<Duration> {
        let known = self.unreachable.swap(true, Ordering::AcqRel);
        let time = policy.and_then(|policy| self.eject(policy, now));
        (!known).then(|| time.unwrap_or_default())
    }

    fn is_marked(&self) -> bool {
        let failures = self.failures.load(Ordering::Relaxed);
        failures != 0 || self.ejected_until.load(Ordering::Relaxed) != 0
    }

    fn succeeded(&self, now: Tick) -> bool {
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
        }
        let ejected = self.ejected_until.load(Ordering::Relaxed) != 0;
        if ejected {
            self.come_back(now);
        }
        ejected
    }

    fn failed(&self, policy: &Ejection, now: Tick) -> Option<Duration> {
        let failures = self
            .failures
            .fetch_add(1, Ordering::AcqRel)
            .saturating_add(1);
        let on_trial = self.ejected_until.load(Ordering::Relaxed) != 0;
        if failures < policy.failures && !on_trial {
            return None;
        }
        let time = self.eject(policy, now);
        time.filter(|_| !on_trial)
    }

    /// `None`: it is ejected already, and nobody expected anything else.
    fn eject(&self, policy: &Ejection, now: Tick) -> Option<Duration> {
        let until = self.ejected_until.load(Ordering::Acquire);
        let at = self.ejected_at.load(Ordering::Relaxed);
        // What began before the ejection says nothing new; a trial does.
        let on_trial = until > now.0 && until - now.0 <= TRIAL.as_millis() as u64;
        let on_trial = on_trial && now.since(Tick(at)) >= policy.time;
        if until > now.0 && !on_trial {
            return None;
        }
        let before = self.ejections.fetch_add(1, Ordering::AcqRel).min(20);
        let time = policy.time.saturating_mul(1 << before).min(policy.max_time);
        self.ejected_at.store(now.0, Ordering::Relaxed);
        self.ejected_until
            .store(now.after(time).0, Ordering::Release);
        note_change();
        Some(time)
    }

    fn come_back(&self, now: Tick) {
        self.failures.store(0, Ordering::Relaxed);
        self.ejections.store(0, Ordering::Relaxed);
        self.ejected_until.store(0, Ordering::Release);
        self.back_at.store(now.0, Ordering::Relaxed);
        note_change();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(failures: u32) -> Ejection {
        Ejection {
            failures,
            time: Duration::from_secs(10),
            max_time: Duration::from_secs(35),
            ..Ejection::default()
        }
    }

    fn health(checked: Option<Arc<Checked>>) -> Health {
        Health::new(Arc::default(), true, checked)
    }

    fn seconds(seconds: u64) -> Tick {
        Tick(1 + seconds * 1000)
    }

    #[test]
    fn failures_in_a_row_eject() {
        let (health, policy) = (health(None), policy(3));
        for _ in 0..2 {
            assert_eq!(health.failed(&policy, seconds(1)), None);
        }
        assert!(!health.succeeded(seconds(1)));
        for _ in 0..2 {
            assert_eq!(health.failed(&policy, seconds(1)), None);
        }
        assert_eq!(health.state(), State::Up);
        assert_eq!(
            health.failed(&policy, seconds(2)),
            Some(Duration::from_secs(10))
        );
        assert_eq!(health.state(), State::Ejected(seconds(12)));
        // Requests that were on their way add nothing.
        assert_eq!(health.failed(&policy, seconds(3)), None);
        assert_eq!(health.state(), State::Ejected(seconds(12)));
        assert!(health.succeeded(seconds(13)));
        assert_eq!(health.state(), State::Up);
        assert_eq!(health.back_at(), Some(seconds(13)));
    }

    #[test]
    fn each_trial_that_fails_doubles_the_time() {
        let (health, policy) = (health(None), policy(1));
        health.failed(&policy, seconds(0));
        let mut now = 10;
        for time in [20, 35, 35] {
            let State::Ejected(until) = health.state() else {
                panic!("not ejected");
            };
            assert_eq!(until, seconds(now));
            assert!(health.begin_trial(until, seconds(now)));
            assert!(!health.begin_trial(until, seconds(now)), "one at a time");
            health.failed(&policy, seconds(now + 1));
            now += 1 + time;
        }
        assert_eq!(health.state(), State::Ejected(seconds(now)));
    }

    #[test]
    fn a_dial_that_fails_is_enough() {
        let (health, policy) = (health(None), policy(5));
        let time = health.dial_failed(Some(&policy), seconds(0));
        assert_eq!(time, Some(Duration::from_secs(10)));
        assert_eq!(health.dial_failed(Some(&policy), seconds(1)), None);
        assert_eq!(health.state(), State::Unreachable(seconds(10)));
        assert!(health.dialled(seconds(2)) && !health.dialled(seconds(2)));
        assert!(health.is_healthy());
    }

    #[test]
    fn without_ejection_it_is_known_and_used() {
        let health = Health::new(Arc::default(), false, None);
        assert!(health.dial_failed(None, seconds(0)).is_some());
        assert_eq!(health.state(), State::Up);
        assert!(!health.is_healthy());
        assert!(health.dialled(seconds(1)) && health.is_healthy());
    }

    #[test]
    fn what_a_check_finds_outweighs_what_was_before() {
        let checked = Arc::new(Checked::new("a.test:80"));
        let (health, policy) = (health(Some(checked.clone())), policy(1));
        checked.set(false, seconds(1));
        assert_eq!(health.state(), State::Failing);
        health.failed(&policy, seconds(2));
        assert_eq!(health.state(), State::Ejected(seconds(12)));
        checked.set(true, seconds(3));
        assert_eq!(health.state(), State::Up);
        assert_eq!(health.back_at(), Some(seconds(3)));
    }

    /// Two routes to one machine.
    #[test]
    fn what_is_the_machines_all_pools_know_and_what_it_answers_one() {
        let machine = Arc::<Machine>::default();
        let pool = |ejects| Health::new(machine.clone(), ejects, None);
        let (one, other, lenient) = (pool(true), pool(true), pool(false));
        let policy = policy(2);
        one.failed(&policy, seconds(1));
        assert!(other.failed(&policy, seconds(1)).is_some());
        let ejected = State::Ejected(seconds(11));
        assert_eq!((one.state(), other.state()), (ejected, ejected));
        assert_eq!(lenient.state(), State::Up);
        assert!(lenient.succeeded(seconds(2)));
        assert_eq!((one.state(), other.state()), (State::Up, State::Up));
        for _ in 0..2 {
            one.answered_badly(&policy, seconds(3));
        }
        assert_eq!(one.state(), State::Ejected(seconds(13)));
        assert_eq!(other.state(), State::Up);
        // The other's success is none of this route.
        other.succeeded(seconds(4));
        assert_eq!(one.state(), State::Ejected(seconds(13)));
    }
}
