//! Who is next, where more is due than a CA should be asked for at once: one lane for each kind of
//! work at each CA, with a bound on what runs together, a token bucket, and an order of urgency. A
//! pure structure: time is an argument, and no step costs more than the logarithm of what waits.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use time::{Duration, OffsetDateTime};

use crate::config::Limit;
use crate::token_bucket::TokenBucket;

/// How urgent an order is. The smaller, the sooner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// There is nothing that could be served: no certificate, an expired one, or one without the
    /// name.
    Missing,
    /// What is served is revoked, or somebody asked for another one.
    Revoked,
    /// Hardly any lifetime is left.
    Expiring,
    /// Its time has come.
    Due,
}

impl Priority {
    /// From the most urgent on.
    pub const ALL: [Priority; 4] = [
        Priority::Missing,
        Priority::Revoked,
        Priority::Expiring,
        Priority::Due,
    ];

    /// As `/status` and the metrics name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Priority::Missing => "missing",
            Priority::Revoked => "revoked",
            Priority::Expiring => "expiring",
            Priority::Due => "due",
        }
    }
}

/// Work that takes turns. CAs are named by the URL of their directory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    Orders(Arc<str>),
    /// Orders of names that clients asked for: strangers' names and those of the configuration do
    /// not wait for each other.
    OnDemand(Arc<str>),
    /// For renewal information (RFC 9773).
    Questions(Arc<str>),
    /// Issuances of the internal CA.
    Internal,
}

impl Lane {
    /// The CA's directory, or `internal`.
    pub fn ca(&self) -> &str {
        match self {
            Lane::Orders(ca) | Lane::OnDemand(ca) | Lane::Questions(ca) => ca,
            Lane::Internal => "internal",
        }
    }

    /// `orders`, `on-demand` or `questions`.
    pub fn kind(&self) -> &'static str {
        match self {
            Lane::Orders(_) | Lane::Internal => "orders",
            Lane::OnDemand(_) => "on-demand",
            Lane::Questions(_) => "questions",
        }
    }
}

/// How much of a lane's work may be done at once, and how fast it may be begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    pub parallel: usize,
    /// A bucket that holds `count` tokens and is full again after `per`; `None`: as fast as it
    /// goes.
    pub rate: Option<Limit>,
}

/// A place in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket {
    pub priority: Priority,
    /// Among equals the earliest is the first: an expiry, or the begin of the wait.
    pub deadline: OffsetDateTime,
    pub id: u64,
    /// Whether the CA counts it against the account: a limit of that holds back these alone.
    pub counted: bool,
}

/// What waits and what runs in one lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneReport {
    pub lane: Lane,
    pub running: usize,
    /// In the order of [`Priority::ALL`].
    pub waiting: [usize; 4],
    /// Until when a limit of the CA holds back what it counts, and which one.
    pub held: Option<(OffsetDateTime, String)>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Queue {
    lanes: BTreeMap<Lane, LaneState>,
    places: HashMap<u64, (Lane, Ticket)>,
}

#[derive(Debug)]
struct LaneState {
    pace: Pace,
    bucket: TokenBucket<OffsetDateTime>,
    running: usize,
    /// What the CA does not count, and what it does.
    waiting: [BTreeSet<Ticket>; 2],
    counts: [usize; 4],
    /// Of what the CA counts.
    held: Option<(OffsetDateTime, String)>,
}

impl LaneState {
    fn new(pace: Pace) -> LaneState {
        LaneState {
            pace,
            bucket: TokenBucket::full(OffsetDateTime::UNIX_EPOCH),
            running: 0,
            waiting: Default::default(),
            counts: [0; 4],
            held: None,
        }
    }

    fn is_idle(&self) -> bool {
        self.running == 0 && self.waiting.iter().all(BTreeSet::is_empty)
    }

    fn has_room(&self) -> bool {
        self.running < self.pace.parallel
    }

    fn of_kind(&mut self, ticket: &Ticket) -> &mut BTreeSet<Ticket> {
        &mut self.waiting[usize::from(ticket.counted)]
    }

    /// When the pace lets the next one begin.
    fn token_at(&self, now: OffsetDateTime) -> OffsetDateTime {
        let wait = |rate| self.bucket.wait(rate, now);
        match self.pace.rate.map_or(0.0, wait) {
            0.0 => now,
            // Rounded up, so that whoever comes then finds a whole token.
            wait => now + Duration::seconds_f64(wait) + Duration::MILLISECOND,
        }
    }

    /// The most urgent of what may be taken now.
    fn first(&self, now: OffsetDateTime) -> Option<Ticket> {
        let is_held = self.held.as_ref().is_some_and(|(until, _)| *until > now);
        let counted = self.waiting[1].first().filter(|_| !is_held);
        let first = self.waiting[0].first().into_iter().chain(counted).min();
        first
            .filter(|_| self.has_room() && self.token_at(now) <= now)
            .copied()
    }

    /// From when on something may be taken, if nothing ends before.
    fn opens_at(&self, now: OffsetDateTime) -> Option<OffsetDateTime> {
        if !self.has_room() {
            return None;
        }
        let by_pace = self.token_at(now);
        let held = self
            .held
            .as_ref()
            .map_or(by_pace, |(until, _)| by_pace.max(*until));
        let free = (!self.waiting[0].is_empty()).then_some(by_pace);
        let counted = (!self.waiting[1].is_empty()).then_some(held);
        free.into_iter().chain(counted).min()
    }
}

impl Queue {
    /// Sets how fast a lane may be. What runs there already goes on.
    pub fn set_pace(&mut self, lane: Lane, pace: Pace) {
        let state = self.lanes.entry(lane);
        state.or_insert_with(|| LaneState::new(pace)).pace = pace;
    }

    /// Drops the lanes that `keep` says no to, as soon as nothing runs or waits in them.
    pub fn retain(&mut self, keep: impl Fn(&Lane) -> bool) {
        self.lanes
            .retain(|lane, state| keep(lane) || !state.is_idle());
    }

    /// Takes a place, instead of the one that `ticket.id` may have. A lane that nobody set the pace
    /// of has room for one.
    pub fn push(&mut self, lane: Lane, ticket: Ticket) {
        if self.places.get(&ticket.id) == Some(&(lane.clone(), ticket)) {
            return;
        }
        self.remove(ticket.id);
        let one_by_one = Pace {
            parallel: 1,
            rate: None,
        };
        let state = self.lanes.entry(lane.clone());
        let state = state.or_insert_with(|| LaneState::new(one_by_one));
        state.of_kind(&ticket).insert(ticket);
        state.counts[ticket.priority as usize] += 1;
        self.places.insert(ticket.id, (lane, ticket));
    }

    /// Gives the place up, where there is one.
    pub fn remove(&mut self, id: u64) {
        if let Some((lane, ticket)) = self.places.remove(&id)
            && let Some(state) = self.lanes.get_mut(&lane)
            && state.of_kind(&ticket).remove(&ticket)
        {
            state.counts[ticket.priority as usize] -= 1;
        }
    }

    /// Forgets everything that waits; what runs stays.
    pub fn clear(&mut self) {
        self.places.clear();
        for state in self.lanes.values_mut() {
            state.waiting = Default::default();
            state.counts = [0; 4];
        }
    }

    /// Whether `id` waits, and how urgently.
    pub fn priority_of(&self, id: u64) -> Option<Priority> {
        self.places.get(&id).map(|(_, ticket)| ticket.priority)
    }

    /// The most urgent work that may begin now. It counts as running until [`ended`](Self::ended)
    /// or [`give_back`](Self::give_back).
    pub fn take(&mut self, now: OffsetDateTime) -> Option<(Lane, Ticket)> {
        let mut lanes = self.lanes.iter_mut();
        let (lane, state, ticket) = lanes.find_map(|(lane, state)| {
            let ticket = state.first(now)?;
            Some((lane, state, ticket))
        })?;
        state.of_kind(&ticket).remove(&ticket);
        state.counts[ticket.priority as usize] -= 1;
        state.running += 1;
        if let Some(rate) = state.pace.rate {
            state.bucket.take(rate, now);
        }
        self.places.remove(&ticket.id);
        Some((lane.clone(), ticket))
    }

    /// What was taken came to nothing: nothing was sent for it.
    pub fn give_back(&mut self, lane: &Lane) {
        if let Some(state) = self.lanes.get_mut(lane) {
            state.running = state.running.saturating_sub(1);
            state.bucket.give_back();
        }
    }

    /// What was taken has ended.
    pub fn ended(&mut self, lane: &Lane) {
        if let Some(state) = self.lanes.get_mut(lane) {
            state.running = state.running.saturating_sub(1);
        }
    }

    /// Nothing that the CA counts is taken from this lane before `until`, on account of `limit`.
    pub fn hold(&mut self, lane: &Lane, until: OffsetDateTime, limit: String) {
        if let Some(state) = self.lanes.get_mut(lane) {
            state.held = Some((until, limit));
        }
    }

    /// What waits in a lane and is counted by the CA, the most urgent first.
    pub fn counted(&self, lane: &Lane) -> Vec<u64> {
        let waiting = self.lanes.get(lane).map(|state| &state.waiting[1]);
        waiting.into_iter().flatten().map(|it| it.id).collect()
    }

    /// Ends every hold, and lets the buckets fill from now on: the clock that they were made by was
    /// wrong.
    pub fn release(&mut self, now: OffsetDateTime) {
        for state in self.lanes.values_mut() {
            state.held = None;
            state.bucket.fill_from(now);
        }
    }

    /// When something may be taken next without anything ending before; `None`: never.
    pub fn wake_at(&self, now: OffsetDateTime) -> Option<OffsetDateTime> {
        let lanes = self.lanes.values();
        lanes.filter_map(|state| state.opens_at(now)).min()
    }

    /// Every lane, for people.
    pub fn report(&self, now: OffsetDateTime) -> Vec<LaneReport> {
        let lanes = self.lanes.iter();
        lanes
            .map(|(lane, state)| LaneReport {
                lane: lane.clone(),
                running: state.running,
                waiting: state.counts,
                held: state.held.clone().filter(|(until, _)| *until > now),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    const NOW: OffsetDateTime = datetime!(2026-11-26 12:00 UTC);

    fn lane(name: &str) -> Lane {
        Lane::Orders(name.into())
    }

    fn pace(parallel: usize, rate: Option<(u32, u64)>) -> Pace {
        Pace {
            parallel,
            rate: rate.map(|(count, seconds)| Limit {
                count,
                per: std::time::Duration::from_secs(seconds),
            }),
        }
    }

    fn ticket(id: u64, priority: Priority, minutes: i64) -> Ticket {
        Ticket {
            priority,
            deadline: NOW + Duration::minutes(minutes),
            id,
            counted: true,
        }
    }

    fn ids(queue: &mut Queue, now: OffsetDateTime) -> Vec<u64> {
        std::iter::from_fn(|| queue.take(now))
            .map(|(_, ticket)| ticket.id)
            .collect()
    }

    #[test]
    fn the_most_urgent_comes_first_and_among_equals_the_earliest() {
        let mut queue = Queue::default();
        queue.set_pace(lane("a"), pace(9, None));
        for ticket in [
            ticket(1, Priority::Due, 0),
            ticket(2, Priority::Missing, 9),
            ticket(3, Priority::Expiring, 1),
            ticket(4, Priority::Missing, 5),
            ticket(5, Priority::Revoked, 0),
        ] {
            queue.push(lane("a"), ticket);
        }
        assert_eq!(queue.report(NOW)[0].waiting, [2, 1, 1, 1]);
        assert_eq!(queue.priority_of(3), Some(Priority::Expiring));
        // One that waits may become more urgent, or drop out.
        queue.push(lane("a"), ticket(1, Priority::Missing, 1));
        queue.remove(5);
        assert_eq!(ids(&mut queue, NOW), [1, 4, 2, 3]);
        let report = &queue.report(NOW)[0];
        assert_eq!((report.running, report.waiting), (4, [0; 4]));
    }

    #[test]
    fn no_more_at_once_than_there_is_room_and_lanes_do_not_wait_for_each_other() {
        let mut queue = Queue::default();
        queue.set_pace(lane("a"), pace(2, None));
        queue.set_pace(lane("b"), pace(1, None));
        for id in 0..4 {
            queue.push(lane("a"), ticket(id, Priority::Due, id as i64));
        }
        queue.push(lane("b"), ticket(9, Priority::Due, 0));
        assert_eq!(ids(&mut queue, NOW), [0, 1, 9]);
        assert_eq!(queue.wake_at(NOW), None, "only an end makes room");
        queue.ended(&lane("a"));
        assert_eq!(queue.wake_at(NOW), Some(NOW));
        assert_eq!(ids(&mut queue, NOW), [2]);
        queue.give_back(&lane("a"));
        assert_eq!(ids(&mut queue, NOW), [3]);
        // A lane that is gone from the configuration stays until it is done.
        queue.retain(|lane| lane.ca() == "a");
        assert_eq!(queue.report(NOW).len(), 2);
        queue.ended(&lane("b"));
        queue.retain(|lane| lane.ca() == "a");
        assert_eq!(queue.report(NOW).len(), 1);
    }

    #[test]
    fn a_burst_and_then_one_token_at_a_time() {
        let mut queue = Queue::default();
        queue.set_pace(lane("a"), pace(100, Some((10, 60))));
        for id in 0..30 {
            queue.push(lane("a"), ticket(id, Priority::Due, 0));
        }
        assert_eq!(ids(&mut queue, NOW).len(), 10);
        let next = queue.wake_at(NOW).unwrap();
        assert!(next > NOW + Duration::seconds(5) && next < NOW + Duration::seconds(7));
        assert!(ids(&mut queue, next - Duration::seconds(1)).is_empty());
        assert_eq!(ids(&mut queue, next).len(), 1);
        // What came to nothing costs no token.
        queue.give_back(&lane("a"));
        assert_eq!(ids(&mut queue, next).len(), 1);
        // Never more than a full bucket, however long nobody came.
        assert_eq!(ids(&mut queue, NOW + Duration::days(9)).len(), 10);
        // A clock that went back stops nothing for longer than the bucket takes to fill.
        queue.release(NOW);
        let wake = queue.wake_at(NOW).unwrap();
        assert!(wake <= NOW + Duration::seconds(7), "{wake}");
        assert_eq!(ids(&mut queue, wake).len(), 1);
    }

    #[test]
    fn a_limit_holds_back_all_that_counts_and_nothing_else() {
        let mut queue = Queue::default();
        queue.set_pace(lane("a"), pace(9, None));
        queue.push(lane("a"), ticket(1, Priority::Missing, 0));
        queue.push(lane("a"), ticket(2, Priority::Due, 0));
        let free = Ticket {
            counted: false,
            ..ticket(3, Priority::Due, 5)
        };
        queue.push(lane("a"), free);
        let until = NOW + Duration::hours(3);
        queue.hold(&lane("a"), until, "300 in 3h".to_owned());
        assert_eq!(ids(&mut queue, NOW), [3]);
        assert_eq!(queue.wake_at(NOW), Some(until));
        assert_eq!(
            queue.report(NOW)[0].held,
            Some((until, "300 in 3h".to_owned()))
        );
        assert_eq!(ids(&mut queue, until), [1, 2]);
        assert_eq!(queue.report(until)[0].held, None);
        queue.push(lane("a"), ticket(4, Priority::Missing, 0));
        queue.hold(&lane("a"), until + Duration::days(400), String::new());
        queue.release(until);
        assert_eq!(ids(&mut queue, until), [4]);
    }

    #[test]
    fn a_hundred_thousand_wait_and_no_step_looks_through_them() {
        let mut queue = Queue::default();
        queue.set_pace(lane("a"), pace(8, Some((60, 10))));
        for id in 0..100_000 {
            let priority = Priority::ALL[id as usize % 4];
            queue.push(lane("a"), ticket(id, priority, (id % 977) as i64));
        }
        let mut now = NOW;
        let mut running = 0;
        // Ten thousand steps over all of them would be a thousand million.
        for _ in 0..10_000 {
            while queue.take(now).is_some() {
                running += 1;
            }
            if running > 0 {
                queue.ended(&lane("a"));
                running -= 1;
            }
            now = queue.wake_at(now).unwrap_or(now);
        }
        let waiting: usize = queue.report(now)[0].waiting.iter().sum();
        assert!(waiting <= 90_008, "{waiting}");
    }
}
