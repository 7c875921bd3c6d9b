//! Jobs: what the desk says is started, and what follows when it ends. What a job does is in
//! [`job`](crate::acme::job).

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration as StdDuration;

use time::{Duration, OffsetDateTime};
use tokio::task::AbortHandle;

use super::desk::{Desk, Start, Work};
use super::entry::Entry;
use super::handle::SubjectStatus;
use super::{MAX_SLEEP, Running, Worker};
use crate::acme::account::Authority;
use crate::acme::error::LastError;
use crate::acme::history::Reservation;
use crate::acme::job::{AskJob, Done, FirstLook, InternalJob, OrderJob};
use crate::acme::queue::Lane;
use crate::acme::renewal::{IssuerKind, OrderReason};
use crate::acme::revocation::check::{CheckJob, Checked};
use crate::clock;
use crate::store::generation::StoredCertificate;

/// After an error of our own disk: no request was sent, so none is owed a longer wait.
const DISK_ERROR_WAIT: Duration = Duration::minutes(1);
/// Between an order that turned out to be held and the next look at it.
const HELD_WAIT: Duration = Duration::minutes(1);

impl Worker {
    /// Starts what the desk counts as running from now on.
    pub(super) fn start(&mut self, start: Start) {
        let Start { id, lane, work } = start;
        let started = match work {
            Work::Internal => self.start_internal(id, &lane),
            Work::Order {
                reason,
                replaces,
                authority,
                reservation,
            } => {
                let order = (reason, replaces, reservation);
                self.start_order(id, &lane, order, authority)
            }
            Work::Ask { authority } => self.start_asking(id, &lane, authority),
        };
        if started.is_none() {
            // What it needs was there when it was decided: nothing is lost but a minute.
            self.desk.ended(&lane, Some(id));
            self.desk.check_at(id, clock::now() + MAX_SLEEP);
        }
    }

    fn start_internal(&mut self, id: u64, lane: &Lane) -> Option<()> {
        let entry = self.desk.entry(id)?;
        let job = InternalJob {
            subject: entry.subject.clone(),
            local_ca: self.local_ca.clone(),
            dir: entry.dir.clone(),
            all_names: Arc::clone(&self.internal_names),
        };
        self.spawn(id, lane, job.run())
    }

    fn start_order(
        &mut self,
        id: u64,
        lane: &Lane,
        (reason, replaces, reservation): (OrderReason, bool, Option<Reservation>),
        authority: Arc<Authority>,
    ) -> Option<()> {
        let entry = self.desk.entry(id)?;
        let subject = entry.subject.clone();
        tracing::debug!(name = %subject.name, reason = reason.as_str(), "a certificate is due");
        let replaces = replaces && !entry.is_refused_predecessor();
        let same_ca = |stored: &&StoredCertificate| {
            replaces && stored.meta.ca.as_deref() == Some(authority.url())
        };
        let predecessor = entry.stored.as_ref().filter(same_ca);
        // Whoever waits for it was permitted to just now, and people need no permission.
        let renewal = entry.on_demand && !entry.forced && !entry.is_waited_for();
        let may_renew = renewal.then(|| Arc::clone(&self.desk.surroundings.may_renew));
        // A client waits for one on demand. One that somebody asks for may still be the first.
        let is_first = matches!(reason, OrderReason::First | OrderReason::Requested)
            && entry.stored.is_none()
            && !entry.on_demand;
        let preflight = is_first.then(|| FirstLook {
            dns: self.assignment.dns.clone(),
            state_dir: self.state.root().to_owned(),
            seen: Arc::clone(&entry.look),
        });
        let job = OrderJob {
            may_renew,
            preflight,
            replaces: predecessor.map(|stored| stored.leaf.der.clone()),
            subject,
            ledger: Arc::clone(entry.ledger.as_ref()?),
            authority,
            dir: entry.dir.clone(),
            challenges: self.challenges.clone(),
            dns: self.dns.clone(),
            reuse_key: may_reuse_key(entry),
            reservation: Mutex::new(reservation),
            reason,
        };
        self.spawn(id, lane, job.run())
    }

    fn start_asking(&mut self, id: u64, lane: &Lane, authority: Arc<Authority>) -> Option<()> {
        let entry = self.desk.entry(id)?;
        let job = AskJob {
            authority,
            ledger: Arc::clone(entry.ledger.as_ref()?),
            certificate_id: entry.certificate_id.clone()?,
            fraction: rand::random(),
        };
        self.spawn(id, lane, job.run())
    }

    fn spawn(
        &mut self,
        id: u64,
        lane: &Lane,
        job: impl Future<Output = Done> + Send + 'static,
    ) -> Option<()> {
        let dir = self.desk.entry(id)?.dir.clone();
        let task = self.jobs.spawn(job);
        self.note_running(task, dir, Some(lane.clone()));
        Some(())
    }

    /// What people ask for does not wait for its turn.
    pub(super) fn spawn_beside(
        &mut self,
        id: u64,
        job: impl Future<Output = Done> + Send + 'static,
    ) {
        if let Some(entry) = self.desk.entry(id) {
            let dir = entry.dir.clone();
            let task = self.jobs.spawn(job);
            self.note_running(task, dir, None);
            self.desk.busy(id);
        }
    }

    fn note_running(&mut self, task: AbortHandle, dir: PathBuf, lane: Option<Lane>) {
        let running = Running {
            dir,
            lane,
            task: task.clone(),
            given_up: false,
        };
        self.running.insert(task.id(), running);
    }

    /// Lists and responders that are due are asked beside everything else.
    pub(super) fn look_for_revocations(&mut self) {
        while let Some((source, targets, authority)) = self.desk.next_check(clock::now()) {
            let job = CheckJob {
                source,
                targets,
                authority,
                state: self.state.clone(),
                fraction: rand::random(),
            };
            self.looks.spawn(job.run());
        }
    }

    pub(super) fn looked(&mut self, looked: Result<Checked, tokio::task::JoinError>) {
        match looked {
            Ok(checked) => self.desk.checked(checked),
            // Its source is looked at again after a restart; certificates are renewed all the same.
            Err(error) => tracing::error!(%error, "a look for revocations died"),
        }
    }

    pub(super) fn job_ended(
        &mut self,
        ended: Result<(tokio::task::Id, Done), tokio::task::JoinError>,
    ) {
        let now = clock::now();
        let (task, done) = match ended {
            Ok((task, done)) => (task, done),
            Err(error) if error.is_cancelled() => {
                let running = self.running.remove(&error.id());
                self.desk.left(running.and_then(|it| it.lane).as_ref());
                return;
            }
            Err(error) => {
                tracing::error!(%error, "a job of the certificate worker died");
                let done = Done::Failed {
                    error: LastError::from("an internal error, see the log".to_owned()),
                    ca: None,
                    ordered: false,
                    unfinished: None,
                };
                (error.id(), done)
            }
        };
        if let Done::AccountChanged { is_another } = done {
            self.desk.account_changed(is_another);
            return;
        }
        let Some(running) = self.running.remove(&task) else {
            return;
        };
        let id = self.desk.by_dir(&running.dir);
        self.desk.left(running.lane.as_ref());
        let Some(id) = id else { return };
        self.desk.idle(id);
        match done {
            Done::Issued { stored, ca, took } => self.desk.issued(id, *stored, ca, took),
            Done::Failed {
                error,
                ca,
                ordered,
                unfinished,
            } => {
                if ordered && let Some(entry) = self.desk.entry_mut(id) {
                    entry.unfinished = unfinished;
                }
                self.desk.failed(id, now, error, ca, ordered);
            }
            Done::Held {
                error,
                ca,
                until,
                unfinished,
            } => {
                if let Some(entry) = self.desk.entry_mut(id) {
                    entry.unfinished = unfinished;
                }
                self.desk.held(id, now, error, &ca, until);
            }
            Done::Withdrawn { cause } => self.desk.withdrawn(id, now, &cause),
            Done::Asked { error } => self.desk.asked(id, now, error),
            Done::Revoked { result, reply } => self.revoked(id, *result, reply),
            Done::AccountChanged { .. } => {}
        }
        self.resume_revocation(id);
        self.desk.settle(id, now);
    }
}

/// A key that somebody else may have is not used again, whatever the configuration says.
fn may_reuse_key(entry: &Entry) -> bool {
    let is_known = entry.ledger.is_some() && entry.serial().is_some();
    is_known && !entry.known_revocation().is_some_and(|it| it.ends_key())
}

impl Desk {
    pub(super) fn issued(
        &mut self,
        id: u64,
        stored: StoredCertificate,
        ca: Option<String>,
        took: StdDuration,
    ) {
        let Some(entry) = self.entry_mut(id) else {
            return;
        };
        tracing::info!(
            names = ?stored.leaf.names,
            serial = stored.leaf.serial,
            issuer = stored.leaf.issuer,
            not_after = clock::rfc3339(stored.leaf.not_after),
            ca = ca.as_deref().unwrap_or("internal"),
            took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            "certificate issued"
        );
        entry.set_stored(Some(stored));
        entry.succeeded();
        let dir = entry.dir.clone();
        (self.surroundings.reload_hint)(dir);
        (self.surroundings.ordered)(ca.as_deref(), true);
    }

    pub(super) fn failed(
        &mut self,
        id: u64,
        now: OffsetDateTime,
        error: LastError,
        ca: Option<String>,
        ordered: bool,
    ) {
        let text = error.text.clone();
        if let Some(entry) = self.entry_mut(id) {
            entry.forced = false;
            entry.ask_again = false;
            entry.last_error = Some(error);
            if entry.issuer == IssuerKind::Internal {
                entry.internal_attempts.failures += 1;
                entry.internal_attempts.last = Some(now);
            }
        }
        if ordered {
            (self.surroundings.ordered)(ca.as_deref(), false);
        }
        let (turn, blocked) = self.next_attempt(id, now);
        let another_turn = turn.is_some() && turn != ca;
        // Where nothing was recorded, nothing else keeps the next attempt from starting now.
        let next = blocked.unwrap_or(match another_turn {
            true => now,
            false => now + DISK_ERROR_WAIT,
        });
        self.check_at(id, next.min(now + DISK_ERROR_WAIT));
        if let Some(entry) = self.entry(id) {
            let next_attempt = clock::rfc3339(next);
            tracing::warn!(name = %entry.subject.name, next_attempt, "{text}");
        }
        self.republish(id, now, Some(next));
    }

    /// One more order would break a limit of the CA, which has come out only while it was made. That
    /// is no failure: another CA has its turn, or the desk holds the order from here on.
    pub(super) fn held(
        &mut self,
        id: u64,
        now: OffsetDateTime,
        error: LastError,
        ca: &str,
        until: OffsetDateTime,
    ) {
        let Some(entry) = self.entry_mut(id) else {
            return;
        };
        tracing::warn!(name = %entry.subject.name, "{}", error.text);
        entry.forced = false;
        entry.ask_again = false;
        entry.last_error = Some(error);
        let (turn, _) = self.next_attempt(id, now);
        let next = match turn.is_some_and(|turn| turn != ca) {
            true => now,
            false => until,
        };
        // Not at once, should whatever it is come out again.
        self.check_at(id, next.min(now + HELD_WAIT));
        self.republish(id, now, Some(next));
    }

    fn republish(&self, id: u64, now: OffsetDateTime, next_attempt: Option<OffsetDateTime>) {
        let Some(entry) = self.entry(id) else {
            return;
        };
        let covered = self.coverage(&entry.subject).and_then(|it| it.until);
        let (facts, authority) = self.facts(entry, now, covered);
        let status = SubjectStatus {
            next_attempt,
            ..self.status(id, entry, &facts, authority.as_deref(), covered)
        };
        self.publish(id, Some(status));
    }

    /// What failed with the account before is looked at anew.
    fn account_changed(&mut self, is_another: bool) {
        if is_another {
            self.forget_errors();
            self.recheck_all();
        }
    }

    pub(super) fn asked(&mut self, id: u64, now: OffsetDateTime, error: Option<String>) {
        if let (Some(error), Some(entry)) = (&error, self.entry(id)) {
            tracing::warn!(name = %entry.subject.name, "{error}");
        }
        self.answer_without_asking(id, now);
        if let Some(entry) = self.entry_mut(id)
            && std::mem::take(&mut entry.ask_again)
        {
            entry.ask_now = true;
        }
    }
}
