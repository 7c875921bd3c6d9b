//! What the worker knows and what follows from it: which certificate is looked at when, what it
//! needs, and whose turn it is. Time is an argument and nothing is sent or written, so that a test
//! can run years; what a turn costs depends on what is due, not on how many certificates there are.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use time::{Duration, OffsetDateTime};

use super::checks::Checks;
use super::entry::Entry;
use super::handle::{Lanes, Statuses, SubjectStatus, lock};
use super::turn::Covered;
use crate::acme::account::Authority;
use crate::acme::error::LastError;
use crate::acme::history::Reservation;
use crate::acme::ledger::StoredRevocation;
use crate::acme::limits::Broken;
use crate::acme::queue::{Lane, Pace, Priority, Queue, Ticket};
use crate::acme::renewal::{self, Action, Facts, IssuerKind, OrderReason, WaitReason, plan};
use crate::acme::revocation::Source;
use crate::acme::revocation::check::{Checked, Target};
use crate::acme::surroundings::Surroundings;
use crate::certificate::name::{self, Name};
use crate::config::Limit;

/// How long a date of ours is trusted where it depends on files, whose changes may come without a
/// word, and where it does not.
const RECHECK_FILES: Duration = Duration::minutes(10);
const RECHECK: Duration = Duration::hours(12);
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
    timers: BTreeSet<(OffsetDateTime, u64)>,
    queue: Queue,
    checks: Checks,
    pub(super) surroundings: Surroundings,
    statuses: Statuses,
    lanes: Lanes,
    /// Whether this process may order.
    pub(super) is_writer: bool,
    /// The first load of files is not done: nothing is decided yet.
    is_loading: bool,
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
    fn lane(&self) -> Lane {
        match self {
            Work::Internal => Lane::Internal,
            Work::Order { authority, .. } => Lane::Orders(authority.url().into()),
            Work::Ask { authority } => Lane::Questions(authority.url().into()),
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
            timers: BTreeSet::new(),
            queue: Queue::default(),
            checks: Checks::default(),
            surroundings,
            statuses,
            lanes,
            is_writer: false,
            is_loading: false,
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

    pub(super) fn by_dir(&self, dir: &Path) -> Option<u64> {
        self.by_dir.get(dir).copied()
    }

    /// Other authorities, or others' settings: the pace of each is set.
    pub(super) fn set_authorities(&mut self, authorities: Vec<Arc<Authority>>) {
        for authority in &authorities {
            let url: Arc<str> = authority.url().into();
            let orders = Pace {
                parallel: usize::try_from(authority.config.parallel_orders).unwrap_or(1),
                rate: authority.config.order_rate,
            };
            self.queue.set_pace(Lane::Orders(Arc::clone(&url)), orders);
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
            self.decide(id, now);
        }
        let mut starts = Vec::new();
        // The most urgent of all may be among those that are not decided yet.
        if self.due(now).is_empty() {
            for _ in 0..MAX_DECISIONS {
                let Some((lane, ticket)) = self.queue.take(now) else {
                    break;
                };
                starts.extend(self.begin(lane, ticket, now));
            }
        }
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

    /// Whether it is revoked is looked up as long as that would change anything.
    fn watch(&mut self, id: u64, now: OffsetDateTime) {
        let sources = self.entry(id).and_then(|entry| self.sources(entry, now));
        self.checks.watch(id, sources.unwrap_or_default());
    }

    fn sources(&self, entry: &Entry, now: OffsetDateTime) -> Option<Vec<Source>> {
        let leaf = &entry.stored.as_ref()?.leaf;
        let asks = self.is_writer && self.issuing_authority(entry)?.config.check_revocation;
        let is_revoked = entry.ledger.as_ref()?.revocation(&leaf.serial).is_some();
        (asks && !is_revoked && now < leaf.not_after).then(|| {
            entry
                .named
                .sources(&entry.subject.name.to_string(), &leaf.serial)
        })
    }

    /// Why it is not known whether a certificate is revoked.
    pub(super) fn revocation_error(&self, entry: &Entry) -> Option<String> {
        let id = self.by_dir(&entry.dir)?;
        self.checks.error_of(id).map(str::to_owned)
    }

    /// The next list or responder to be asked now, and what it is asked about.
    pub(super) fn next_check(
        &mut self,
        now: OffsetDateTime,
    ) -> Option<(Source, Vec<Target>, Arc<Authority>)> {
        loop {
            let (source, ids) = self.checks.take(now)?;
            let entries = || ids.iter().filter_map(|id| Some((*id, self.entry(*id)?)));
            let targets: Vec<Target> = entries().filter_map(target).collect();
            let authority = entries().find_map(|(_, entry)| self.issuing_authority(entry));
            match authority.map(Arc::clone) {
                Some(authority) if !targets.is_empty() => {
                    return Some((source, targets, authority));
                }
                _ => {
                    self.checks.ended(&source, now + RECHECK, None);
                }
            }
        }
    }

    /// What a list or a responder said.
    pub(super) fn checked(&mut self, checked: Checked) {
        let Checked {
            source,
            next,
            error,
            revoked,
        } = checked;
        let concerned = self.checks.ended(&source, next, error.clone());
        if let (Some(error), false) = (error, concerned.is_empty()) {
            tracing::warn!("{error}");
        }
        for id in concerned {
            self.check_at(id, OffsetDateTime::UNIX_EPOCH);
        }
        for (id, revocation) in revoked {
            if let Some(entry) = self.entry(id) {
                let name = &entry.subject.name;
                let StoredRevocation {
                    serial,
                    source,
                    reason,
                    ..
                } = revocation;
                tracing::error!(%name, serial, source, reason, "the certificate is revoked; it is replaced now");
            }
            self.check_at(id, OffsetDateTime::UNIX_EPOCH);
        }
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
                let lane = work.lane();
                let queued = Some((lane.clone(), ticket.priority));
                self.queue.push(lane, ticket);
                self.check_at(id, again);
                self.publish(id, Some(SubjectStatus { queued, ..status }));
            }
        }
    }

    /// Its turn has come: what was decided when it began to wait is decided again.
    fn begin(&mut self, lane: Lane, ticket: Ticket, now: OffsetDateTime) -> Option<Start> {
        let id = ticket.id;
        let (mut work, ticket, again, status) = match self.verdict(id, now) {
            Some(Verdict::Work {
                work,
                ticket,
                again,
                status,
            }) if work.lane() == lane => (work, ticket, again, status),
            other => {
                self.queue.give_back(&lane);
                self.follow(id, other, now);
                return None;
            }
        };
        if let Err(broken) = self.reserve(id, &mut work, now) {
            self.queue.give_back(&lane);
            self.hold(lane, ticket, again, broken, status);
            return None;
        }
        let entry = self.entries.get_mut(&id)?;
        entry.running = true;
        entry.ask_now = false;
        entry.waiting_since = None;
        self.stop_timer(id);
        let running = true;
        self.publish(id, Some(SubjectStatus { running, ..status }));
        Some(Start { id, lane, work })
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
        if self.is_exempt(entry, authority, *replaces) {
            return Ok(());
        }
        *reservation = Some(authority.reserve(&entry.subject.names, now)?);
        Ok(())
    }

    /// Nothing is sent that would break a limit of the CA: `/status` says when it will be.
    fn hold(
        &mut self,
        lane: Lane,
        ticket: Ticket,
        again: OffsetDateTime,
        broken: Broken,
        status: SubjectStatus,
    ) {
        let id = ticket.id;
        let until = broken.until;
        if broken.of_account {
            // All that wait behind it would break it as well: nobody looks at each of them.
            tracing::warn!("orders at {}: {broken}", lane.ca());
            self.queue.hold(&lane, until, broken.to_string());
            let queued = Some((lane.clone(), ticket.priority));
            self.queue.push(lane, ticket);
            self.check_at(id, again);
            return self.publish(id, Some(SubjectStatus { queued, ..status }));
        }
        let text = format!("order for {}: {broken}", status.name);
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.forced = false;
            entry.waiting_since = None;
            if entry.last_error.as_ref().is_none_or(|it| it.text != text) {
                tracing::warn!("{text}");
            }
            entry.last_error = Some(LastError::from(text.clone()));
        }
        self.check_at(id, until);
        let held = SubjectStatus {
            next_attempt: Some(until),
            last_error: Some(text),
            ..status
        };
        self.publish(id, Some(held));
    }

    fn verdict(&mut self, id: u64, now: OffsetDateTime) -> Option<Verdict> {
        let entry = self.entries.get(&id).filter(|entry| !entry.running)?;
        let recheck_at = now
            + match entry.subject.depends_on_files() {
                true => RECHECK_FILES,
                false => RECHECK,
            };
        let Some(Covered { until, file_known }) = self.coverage(&entry.subject) else {
            let (facts, authority) = self.facts(entry, now, None);
            let status = self.status(entry, &facts, authority.as_deref(), None);
            self.is_loading = true;
            return Some(wait(recheck_at, status));
        };
        if entry.subject.only_takeover && !file_known && entry.stored.is_none() && !entry.forced {
            // There is nothing yet that could be late.
            lock(&self.statuses).remove(&id);
            let at = recheck_at;
            return Some(Verdict::Wait { at, status: None });
        }
        self.choose_issuer(id, file_known, now);
        let entry = self.entries.get(&id)?;
        let covered = until;
        let (facts, authority) = self.facts(entry, now, covered);
        let status = self.status(entry, &facts, authority.as_deref(), covered);
        if !self.is_writer {
            return Some(wait(recheck_at, status));
        }
        let again = renewal::changes_at(now, &facts).map_or(recheck_at, |at| at.min(recheck_at));
        if entry.ask_now {
            match self.can_ask(entry, now) {
                Some(authority) => return Some(question(id, entry, authority, again, status)),
                None => self.answer_without_asking(id, now),
            }
        }
        let entry = self.entries.get(&id)?;
        Some(match entry.forced_action(plan(now, &facts), &facts, now) {
            Action::CoveredByFiles { until } => wait(until.min(recheck_at), status),
            Action::Wait { until, reason } => {
                let held = matches!(reason, WaitReason::Backoff | WaitReason::IssuerUnreachable);
                let blocked = renewal::blocked(now, &facts).filter(|_| held);
                let next_attempt = blocked.map(|(until, _)| until);
                let status = SubjectStatus {
                    next_attempt,
                    ..status
                };
                wait(until.min(recheck_at), status)
            }
            Action::FetchRenewalInfo => match self.issuing_authority(entry) {
                Some(authority) => question(id, entry, Arc::clone(authority), again, status),
                None => wait(recheck_at, status),
            },
            Action::Order { reason, replaces } => {
                if let Some(refusal) = entry.subject.refusal(entry.issuer) {
                    return Some(self.refuse(id, refusal, status, recheck_at));
                }
                let wanted = match (entry.issuer, &entry.ledger, authority) {
                    (IssuerKind::Internal, _, _) => Work::Internal,
                    (IssuerKind::Acme, Some(_), Some(authority)) => Work::Order {
                        reason,
                        replaces,
                        authority,
                        reservation: None,
                    },
                    // Its ledger, or every CA's, could not be opened: that was logged, and is
                    // tried again with the next configuration or restart.
                    _ => return Some(wait(recheck_at, status)),
                };
                let ticket = self.ticket(id, entry, &wanted, reason, &facts, now);
                Verdict::Work {
                    work: wanted,
                    ticket,
                    again,
                    status,
                }
            }
        })
    }

    fn ticket(
        &self,
        id: u64,
        entry: &Entry,
        work: &Work,
        reason: OrderReason,
        facts: &Facts,
        now: OffsetDateTime,
    ) -> Ticket {
        let expiry = facts.stored.as_ref().map(|stored| stored.not_after);
        let since = entry.waiting_since.unwrap_or(now);
        let counted = match work {
            Work::Order {
                replaces,
                authority,
                ..
            } => !self.is_exempt(entry, authority, *replaces),
            Work::Internal | Work::Ask { .. } => false,
        };
        Ticket {
            priority: renewal::priority(now, facts, reason),
            deadline: expiry.unwrap_or(since),
            id,
            counted,
        }
    }

    /// Files that come, go or are overdue may change who issues.
    fn choose_issuer(&mut self, id: u64, file_known: bool, now: OffsetDateTime) {
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        let stored = entry.stored.as_ref();
        let stored = stored.filter(|stored| now < stored.leaf.not_after);
        let issued_by = stored.map(|stored| IssuerKind::from(stored.meta.source));
        entry.issuer = entry.subject.issuer_now(file_known, issued_by);
    }

    fn refuse(
        &mut self,
        id: u64,
        refusal: String,
        status: SubjectStatus,
        at: OffsetDateTime,
    ) -> Verdict {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.forced = false;
            if !entry.refusal_logged {
                tracing::error!("{refusal}");
            }
            entry.refusal_logged = true;
        }
        let last_error = Some(refusal);
        wait(
            at,
            SubjectStatus {
                last_error,
                ..status
            },
        )
    }

    /// The end of what ran in a lane: there is room for another.
    pub(super) fn ended(&mut self, lane: &Lane, id: Option<u64>) {
        self.queue.ended(lane);
        if let Some(id) = id
            && let Some(entry) = self.entries.get_mut(&id)
        {
            entry.running = false;
            self.check_at(id, OffsetDateTime::UNIX_EPOCH);
        }
    }

    pub(super) fn publish(&self, id: u64, status: Option<SubjectStatus>) {
        if let Some(status) = status {
            lock(&self.statuses).insert(id, status);
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

fn target((id, entry): (u64, &Entry)) -> Option<Target> {
    let stored = entry.stored.as_ref()?;
    Some(Target {
        id,
        serial: stored.leaf.serial.clone(),
        issuer: stored.leaf.issuer.clone(),
        path: stored.path.clone(),
        ledger: Arc::clone(entry.ledger.as_ref()?),
    })
}

fn wait(at: OffsetDateTime, status: SubjectStatus) -> Verdict {
    let status = Some(status);
    Verdict::Wait { at, status }
}

/// The sooner the certificate expires, the sooner it is asked about.
fn question(
    id: u64,
    entry: &Entry,
    authority: Arc<Authority>,
    again: OffsetDateTime,
    status: SubjectStatus,
) -> Verdict {
    let expiry = entry.stored.as_ref().map(|stored| stored.leaf.not_after);
    let priority = match entry.ask_now {
        true => Priority::Missing,
        false => Priority::Due,
    };
    let ticket = Ticket {
        priority,
        deadline: expiry.unwrap_or(OffsetDateTime::UNIX_EPOCH),
        id,
        counted: false,
    };
    Verdict::Work {
        work: Work::Ask { authority },
        ticket,
        again,
        status,
    }
}
