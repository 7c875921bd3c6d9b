//! What the worker knows and what follows from it: which certificate is looked at when, what it
//! needs, and whose turn it is. Time is an argument and nothing is sent or written, so that a test
//! can run years; what a turn costs depends on what is due, not on how many certificates there are.

mod revocations;
#[cfg(test)]
mod tests;
mod verdict;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use time::{Duration, OffsetDateTime};

use super::checks::Checks;
use super::entry::Entry;
use super::handle::{Lanes, Statuses, SubjectStatus, Trouble, lock};
use crate::acme::account::Authority;
use crate::acme::error::LastError;
use crate::acme::history::Reservation;
use crate::acme::limits::Broken;
use crate::acme::queue::{Lane, Pace, Queue, Ticket};
use crate::acme::renewal::OrderReason;
use crate::acme::surroundings::Surroundings;
use crate::certificate::name::{self, Name};
use crate::config::Limit;

/// How long a date of ours is trusted where it depends on files, whose changes may come without a
/// word, and where it does not.
const RECHECK_FILES: Duration = Duration::minutes(10);
const RECHECK: Duration = Duration::WEEK;
/// How often the first load of the certificates from files is looked for.
const LOADING_POLL: Duration = Duration::milliseconds(100);
/// Decisions in one turn, so that the end of a job and what people ask for never wait long behind
/// a hundred thousand of them.
const MAX_DECISIONS: usize = 1000;
/// A clock that shows an earlier time than before, by more than this, was set back: the dates that
/// follow from the earlier one mean nothing.
const CLOCK_TOLERANCE: Duration = Duration::seconds(5);
/// Questions about renewal information are small, and CAs answer them from caches; a hundred
/// thousand of them after a start are asked within two hours.
const QUESTIONS: Pace = Pace {
    parallel: 4,
    rate: Some(Limit {
        count: 200,
        per: std::time::Duration::from_secs(10),
    }),
};
/// The internal CA is our own processor.
const INTERNAL: Pace = Pace {
    parallel: 4,
    rate: None,
};

/// See the module.
pub(super) struct Desk {
    pub(super) authorities: Vec<Arc<Authority>>,
    entries: BTreeMap<u64, Entry>,
    next_entry: u64,
    by_dir: HashMap<PathBuf, u64>,
    by_name: HashMap<Name, u64>,
    /// Those whose names a wildcard from files could cover, by what stands after the first label.
    by_parent: HashMap<Arc<str>, Vec<u64>>,
    /// The entries that clients asked for, by name.
    demanded: HashMap<Name, u64>,
    timers: BTreeSet<(OffsetDateTime, u64)>,
    queue: Queue,
    checks: Checks,
    pub(super) surroundings: Surroundings,
    statuses: Statuses,
    lanes: Lanes,
    /// Whether this process may order.
    pub(super) is_writer: bool,
    /// Why nobody can be.
    pub(super) trouble: Trouble,
    /// The process that may order is about to leave that to this one.
    pub(super) takes_over: bool,
    /// The first load of files is not done: nothing is decided yet.
    is_loading: bool,
    /// What was decided in this turn for those that wait, and when it may be more urgent.
    fresh: HashMap<u64, (Work, OffsetDateTime)>,
    /// The latest time that was ever seen.
    latest: OffsetDateTime,
}

/// Something to be done now. It runs until the desk is told of its end.
pub(super) struct Start {
    pub(super) id: u64,
    pub(super) lane: Lane,
    pub(super) work: Work,
}

/// What a certificate needs.
pub(super) enum Work {
    /// From the internal CA.
    Internal,
    Order {
        reason: OrderReason,
        replaces: bool,
        authority: Arc<Authority>,
        /// Its place within the limits of the CA, where that counts it.
        reservation: Option<Reservation>,
    },
    /// For renewal information.
    Ask { authority: Arc<Authority> },
}

impl Work {
    fn lane(&self, on_demand: bool) -> Lane {
        match self {
            Work::Internal => Lane::Internal,
            Work::Order { authority, .. } if on_demand => Lane::OnDemand(authority.shared_url()),
            Work::Order { authority, .. } => Lane::Orders(authority.shared_url()),
            Work::Ask { authority } => Lane::Questions(authority.shared_url()),
        }
    }
}

/// What follows for one certificate now.
enum Verdict {
    /// Nothing before `at`.
    Wait {
        at: OffsetDateTime,
        status: Option<SubjectStatus>,
    },
    Work {
        work: Work,
        ticket: Ticket,
        /// When it may be more urgent.
        again: OffsetDateTime,
        status: SubjectStatus,
    },
}

impl Desk {
    pub(super) fn new(surroundings: Surroundings, statuses: Statuses, lanes: Lanes) -> Desk {
        Desk {
            authorities: Vec::new(),
            entries: BTreeMap::new(),
            next_entry: 0,
            by_dir: HashMap::new(),
            by_name: HashMap::new(),
            by_parent: HashMap::new(),
            demanded: HashMap::new(),
            timers: BTreeSet::new(),
            queue: Queue::default(),
            checks: Checks::default(),
            surroundings,
            statuses,
            lanes,
            is_writer: false,
            trouble: Trouble::default(),
            takes_over: false,
            is_loading: false,
            fresh: HashMap::new(),
            latest: OffsetDateTime::UNIX_EPOCH,
        }
    }

    pub(super) fn entry(&self, id: u64) -> Option<&Entry> {
        self.entries.get(&id)
    }

    pub(super) fn entry_mut(&mut self, id: u64) -> Option<&mut Entry> {
        self.entries.get_mut(&id)
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = (u64, &Entry)> {
        self.entries.iter().map(|(id, entry)| (*id, entry))
    }

    pub(super) fn by_name(&self, name: &Name) -> Option<u64> {
        self.by_name.get(name).copied()
    }

    pub(super) fn demanded(&self, name: &Name) -> Option<u64> {
        self.demanded.get(name).copied()
    }

    /// Forgets which entries clients asked for, and names them.
    pub(super) fn take_demanded(&mut self) -> HashMap<Name, u64> {
        std::mem::take(&mut self.demanded)
    }

    pub(super) fn is_queued(&self, id: u64) -> bool {
        self.queue.priority_of(id).is_some()
    }

    pub(super) fn by_dir(&self, dir: &Path) -> Option<u64> {
        self.by_dir.get(dir).copied()
    }

    /// What is known of attempts has to be read anew.
    pub(super) fn forget_ledgers(&mut self) {
        for entry in self.entries.values_mut() {
            entry.ledger = None;
        }
    }

    /// Since when each CA is used under the settings of now.
    pub(super) fn settings(&self) -> HashMap<String, Option<OffsetDateTime>> {
        let authorities = self.authorities.iter();
        let each = authorities.map(|it| (it.url().to_owned(), it.settings_since()));
        each.collect()
    }

    /// Whether a CA of then is used under others now.
    pub(super) fn settings_differ_from(
        &self,
        before: &HashMap<String, Option<OffsetDateTime>>,
    ) -> bool {
        let now = self.settings().into_iter();
        let mut known = now.filter_map(|(url, since)| Some((before.get(&url)?, since)));
        known.any(|(before, since)| *before != since)
    }

    /// Other authorities, or others' settings: the pace of each is set.
    pub(super) fn set_authorities(&mut self, authorities: Vec<Arc<Authority>>) {
        for authority in &authorities {
            let url = authority.shared_url();
            let orders = Pace {
                parallel: usize::try_from(authority.config.parallel_orders).unwrap_or(1),
                rate: authority.config.order_rate,
            };
            self.queue.set_pace(Lane::Orders(Arc::clone(&url)), orders);
            self.queue
                .set_pace(Lane::OnDemand(Arc::clone(&url)), orders);
            self.queue.set_pace(Lane::Questions(url), QUESTIONS);
        }
        self.queue.set_pace(Lane::Internal, INTERNAL);
        let known = |ca: &str| authorities.iter().any(|it| it.url() == ca);
        self.queue
            .retain(|lane| *lane == Lane::Internal || known(lane.ca()));
        self.authorities = authorities;
    }

    /// Takes all entries out, to be put back as far as they are still wanted.
    pub(super) fn take_entries(&mut self) -> HashMap<PathBuf, Entry> {
        lock(&self.statuses).clear();
        self.by_dir.clear();
        self.by_name.clear();
        self.by_parent.clear();
        self.timers.clear();
        self.queue.clear();
        self.checks.clear();
        std::mem::take(&mut self.entries)
            .into_values()
            .map(|entry| (entry.dir.clone(), entry))
            .collect()
    }

    /// Takes an entry in; it is looked at in the next turn.
    pub(super) fn add(&mut self, entry: Entry) -> u64 {
        let id = self.next_entry;
        self.next_entry += 1;
        self.by_dir.insert(entry.dir.clone(), id);
        for name in &entry.subject.names {
            self.by_name.entry(name.clone()).or_insert(id);
            if let Name::Dns(dns) = name
                && let Some(parent) = name::parent(dns)
                && entry.subject.depends_on_files()
            {
                self.by_parent.entry(parent.into()).or_default().push(id);
            }
        }
        if entry.on_demand {
            self.demanded.insert(entry.subject.name.clone(), id);
        }
        self.entries.insert(
            id,
            Entry {
                timer: None,
                ..entry
            },
        );
        self.check_at(id, OffsetDateTime::UNIX_EPOCH);
        id
    }

    /// Nobody wants it any more.
    pub(super) fn drop_entry(&mut self, id: u64) {
        self.stop_timer(id);
        self.queue.remove(id);
        self.checks.unwatch(id);
        lock(&self.statuses).remove(&id);
        let Some(entry) = self.entries.remove(&id) else {
            return;
        };
        self.demanded.remove(&entry.subject.name);
        self.by_dir.remove(&entry.dir);
        for name in &entry.subject.names {
            if self.by_name.get(name) == Some(&id) {
                self.by_name.remove(name);
            }
            if let Name::Dns(dns) = name
                && let Some(ids) = name::parent(dns).and_then(|it| self.by_parent.get_mut(it))
            {
                ids.retain(|own| *own != id);
            }
        }
    }

    /// What CAs have said is no news any more.
    pub(super) fn forget_errors(&mut self) {
        let entries = self.entries.values_mut();
        entries.for_each(|entry| entry.forget_error_if(true));
    }

    /// Looks at everything anew: with another configuration, another writer, another clock.
    pub(super) fn recheck_all(&mut self) {
        let ids: Vec<u64> = self.entries.keys().copied().collect();
        for id in ids {
            self.check_at(id, OffsetDateTime::UNIX_EPOCH);
        }
    }

    /// Certificates for these names came, went or changed in the live table.
    pub(super) fn names_changed(&mut self, names: &[Name]) {
        if self.is_loading {
            // All of them are looked at when that is done.
            return;
        }
        let mut ids = BTreeSet::new();
        for name in names {
            if let Some(id) = self.by_name(name) {
                ids.insert(id);
            }
            if let Name::Wildcard(parent) = name {
                ids.extend(self.by_parent.get(parent).into_iter().flatten());
            }
        }
        for id in ids {
            if self
                .entry(id)
                .is_some_and(|it| it.subject.depends_on_files())
            {
                self.check_at(id, OffsetDateTime::UNIX_EPOCH);
            }
        }
    }

    /// Names changed, and nobody knows which.
    pub(super) fn names_missed(&mut self) {
        if !self.is_loading {
            self.recheck_all();
        }
    }

    /// What is due is decided, and as much of what waits as there is room for is begun.
    pub(super) fn turn(&mut self, now: OffsetDateTime) -> Vec<Start> {
        self.notice_clock(now);
        self.notice_loading();
        for id in self.due(now) {
            match self.is_wanted(id) {
                true => self.decide(id, now),
                false => self.check_at(id, now + RECHECK_FILES),
            }
            self.settle(id, now);
        }
        let mut starts = Vec::new();
        // The most urgent of all may be among those that are not decided yet.
        if self.due(now).is_empty() {
            for _ in 0..MAX_DECISIONS {
                let Some((lane, ticket)) = self.queue.take(now) else {
                    break;
                };
                starts.extend(self.begin(lane, ticket, now));
                self.settle(ticket.id, now);
            }
        }
        self.fresh.clear();
        *lock(&self.lanes) = self.queue.report(now);
        starts
    }

    /// When the next turn is to be, if nothing happens before.
    pub(super) fn wake_at(&self, now: OffsetDateTime) -> Option<OffsetDateTime> {
        let timer = self.timers.first().map(|(at, _)| *at);
        let loading = self.is_loading.then(|| now + LOADING_POLL);
        let next = [
            timer,
            loading,
            self.queue.wake_at(now),
            self.checks.wake_at(),
        ];
        next.into_iter().flatten().min()
    }

    fn due(&self, now: OffsetDateTime) -> Vec<u64> {
        let due = self.timers.iter().take_while(|(at, _)| *at <= now);
        due.take(MAX_DECISIONS).map(|(_, id)| *id).collect()
    }

    /// After a suspend the clock is late, and the timers that passed meanwhile are due. After it
    /// was set back, dates that were made in the future are not waited for.
    fn notice_clock(&mut self, now: OffsetDateTime) {
        if now + CLOCK_TOLERANCE < self.latest {
            tracing::warn!("the clock was set back: every certificate is looked at anew");
            self.recheck_all();
            self.queue.release(now);
            self.checks.release(now);
        }
        self.latest = now;
    }

    fn notice_loading(&mut self) {
        if !self.is_loading {
            return;
        }
        let first = self.entries.values().next();
        let loaded = first.is_none_or(|entry| self.coverage(&entry.subject).is_some());
        if loaded {
            self.is_loading = false;
            self.recheck_all();
        }
    }

    /// Looks at one certificate: it waits for its time, or for its turn.
    pub(super) fn decide(&mut self, id: u64, now: OffsetDateTime) {
        self.watch(id, now);
        let verdict = self.verdict(id, now);
        self.follow(id, verdict, now);
    }

    fn follow(&mut self, id: u64, verdict: Option<Verdict>, now: OffsetDateTime) {
        match verdict {
            // It runs, or is gone: the end of what runs looks at it again.
            None => self.stop_timer(id),
            Some(Verdict::Wait { at, status }) => {
                self.queue.remove(id);
                if let Some(entry) = self.entries.get_mut(&id) {
                    entry.waiting_since = None;
                }
                self.answer_without_asking(id, now);
                self.check_at(id, at);
                self.publish(id, status);
            }
            Some(Verdict::Work {
                work,
                ticket,
                again,
                status,
            }) => {
                if let Some(entry) = self.entries.get_mut(&id) {
                    entry.waiting_since.get_or_insert(now);
                }
                let lane = self.lane_of(id, &work);
                let queued = Some((lane.clone(), ticket.priority));
                self.queue.push(lane, ticket);
                self.check_at(id, again);
                self.publish(id, Some(SubjectStatus { queued, ..status }));
                self.fresh.insert(id, (work, again));
            }
        }
    }

    fn lane_of(&self, id: u64, work: &Work) -> Lane {
        work.lane(self.entry(id).is_some_and(|it| it.on_demand))
    }

    /// Its turn has come.
    fn begin(&mut self, lane: Lane, ticket: Ticket, now: OffsetDateTime) -> Option<Start> {
        let id = ticket.id;
        let (mut work, ticket, again) = self.decided(&lane, ticket, now)?;
        if let Err(broken) = self.reserve(id, &mut work, now) {
            self.queue.give_back(&lane);
            self.hold(lane, ticket, again, broken);
            return None;
        }
        let entry = self.entries.get_mut(&id)?;
        entry.running = true;
        entry.ask_now = false;
        entry.waiting_since = None;
        self.stop_timer(id);
        self.amend(id, |status| {
            status.running = true;
            status.queued = None;
        });
        Some(Start { id, lane, work })
    }

    /// What was decided when it began to wait is decided again, unless it began in this turn.
    fn decided(
        &mut self,
        lane: &Lane,
        ticket: Ticket,
        now: OffsetDateTime,
    ) -> Option<(Work, Ticket, OffsetDateTime)> {
        let id = ticket.id;
        if let Some((work, again)) = self.fresh.remove(&id) {
            return Some((work, ticket, again));
        }
        match self.verdict(id, now) {
            Some(Verdict::Work {
                work,
                ticket,
                again,
                status,
            }) if self.lane_of(id, &work) == *lane => {
                self.publish(id, Some(status));
                Some((work, ticket, again))
            }
            other => {
                self.queue.give_back(lane);
                self.follow(id, other, now);
                None
            }
        }
    }

    /// Takes a place within the limits of the CA, so that orders which begin together do not
    /// break one together.
    fn reserve(&self, id: u64, work: &mut Work, now: OffsetDateTime) -> Result<(), Broken> {
        let (
            Work::Order {
                replaces,
                authority,
                reservation,
                ..
            },
            Some(entry),
        ) = (work, self.entry(id))
        else {
            return Ok(());
        };
        if self.is_exempt(entry, authority, *replaces, now) {
            return Ok(());
        }
        *reservation = Some(authority.reserve(&entry.subject.names, now)?);
        Ok(())
    }

    /// Nothing is sent that would break a limit of the CA: `/status` says when it will be.
    fn hold(&mut self, lane: Lane, ticket: Ticket, again: OffsetDateTime, broken: Broken) {
        let id = ticket.id;
        let until = broken.until;
        // A client that waits is told now.
        if broken.of_account && !matches!(lane, Lane::OnDemand(_)) {
            // All that wait behind it would break it as well: nobody looks at each of them.
            tracing::warn!("orders at {}: {broken}", lane.ca());
            self.queue.hold(&lane, until, broken.to_string());
            let queued = Some((lane.clone(), ticket.priority));
            self.queue.push(lane.clone(), ticket);
            self.check_at(id, again);
            self.amend(id, |status| status.queued = queued);
            return self.look_for_others(&lane);
        }
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        let text = format!("order for {}: {broken}", entry.subject.name);
        entry.forced = false;
        entry.waiting_since = None;
        if entry.last_error.as_ref().is_none_or(|it| it.text != text) {
            tracing::warn!("{text}");
        }
        entry.last_error = Some(LastError::from(text.clone()));
        self.check_at(id, until);
        self.amend(id, |status| {
            status.next_attempt = Some(until);
            status.last_error = Some(text);
            status.queued = None;
        });
    }

    /// Those that a limit of their CA holds up may have their turn at another.
    fn look_for_others(&mut self, held: &Lane) {
        if self.authorities.len() > 1 {
            for id in self.queue.counted(held) {
                self.check_at(id, OffsetDateTime::UNIX_EPOCH);
            }
        }
    }

    /// The end of what ran in a lane: there is room for another.
    pub(super) fn ended(&mut self, lane: &Lane, id: Option<u64>) {
        self.left(Some(lane));
        if let Some(id) = id {
            self.idle(id);
        }
    }

    /// What ran in a lane, if it was in one, runs there no more.
    pub(super) fn left(&mut self, lane: Option<&Lane>) {
        if let Some(lane) = lane {
            self.queue.ended(lane);
        }
    }

    /// Something runs for it that took no turn.
    pub(super) fn busy(&mut self, id: u64) {
        self.queue.remove(id);
        self.stop_timer(id);
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.running = true;
        }
        self.amend(id, |status| status.running = true);
    }

    /// Nothing runs for it any more: it is looked at in the next turn.
    pub(super) fn idle(&mut self, id: u64) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.running = false;
            self.check_at(id, OffsetDateTime::UNIX_EPOCH);
        }
    }

    /// What is shown of it.
    pub(super) fn published(&self, id: u64) -> Option<SubjectStatus> {
        lock(&self.statuses).get(&id).cloned()
    }

    pub(super) fn publish(&self, id: u64, status: Option<SubjectStatus>) {
        if let Some(status) = status {
            lock(&self.statuses).insert(id, status);
        }
    }

    /// Changes what is shown of it.
    fn amend(&self, id: u64, change: impl FnOnce(&mut SubjectStatus)) {
        if let Some(status) = lock(&self.statuses).get_mut(&id) {
            change(status);
        }
    }

    /// Looks at it then, and not before.
    pub(super) fn check_at(&mut self, id: u64, at: OffsetDateTime) {
        self.stop_timer(id);
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.timer = Some(at);
            self.timers.insert((at, id));
        }
    }

    fn stop_timer(&mut self, id: u64) {
        let timer = self.entries.get_mut(&id).and_then(|it| it.timer.take());
        if let Some(at) = timer {
            self.timers.remove(&(at, id));
        }
    }
}
