//! Jobs: started within limits, and what follows when one ends. What a job does is in
//! [`job`](crate::acme::job).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration as StdDuration;

use time::{Duration, OffsetDateTime};

use super::handle::{SubjectStatus, lock};
use super::{MAX_SLEEP, Worker};
use crate::acme::account::Authority;
use crate::acme::job::{AskJob, Done, InternalJob, OrderJob};
use crate::acme::renewal::{Attempts, IssuerKind, OrderReason};
use crate::clock;
use crate::store::generation::StoredCertificate;

/// Jobs that talk to CAs at the same time, and jobs of the internal CA.
const MAX_ACME_JOBS: usize = 4;
const MAX_INTERNAL_JOBS: usize = 4;
/// After an error of our own disk: no request was sent, so none is owed a longer wait.
const DISK_ERROR_WAIT: Duration = Duration::minutes(1);

impl Worker {
    /// Orders where that is possible, where there is room for it, and from whom it breaks no
    /// limit.
    pub(super) fn order(
        &mut self,
        id: u64,
        now: OffsetDateTime,
        (reason, replaces): (OrderReason, bool),
        authority: Option<Arc<Authority>>,
        mut status: SubjectStatus,
    ) {
        let Some(entry) = self.entries.get(&id) else {
            return;
        };
        if let Some(refusal) = entry.subject.refusal(entry.issuer) {
            return self.refuse(id, now, refusal, status);
        }
        // Before the limits, which many that are due together would look through in vain.
        let issuer = entry.issuer;
        if !self.has_room(id, issuer) {
            return self.publish(id, status);
        }
        let Some(entry) = self.entries.get(&id) else {
            return;
        };
        let broken = self.broken_limit(entry, authority.as_deref(), replaces, now);
        let another = broken.as_ref().zip(authority.as_deref());
        let another = another.and_then(|(_, it)| self.unlimited_authority(entry, it, now));
        let authority = match (broken, another) {
            (Some(broken), None) => return self.hold(id, now, &broken, status),
            (Some(broken), Some(another)) => {
                let ca = another.url();
                tracing::info!(name = %status.name, ca, "{broken}; another CA is asked");
                status.ca = Some(ca.to_owned());
                Some(another)
            }
            (None, _) => authority,
        };
        self.publish(id, status);
        self.start_order(id, now, reason, replaces, authority);
    }

    /// Whether another job of this kind may run now; if not, the entry waits for one to end.
    pub(super) fn has_room(&mut self, id: u64, kind: IssuerKind) -> bool {
        let limit = match kind {
            IssuerKind::Acme => MAX_ACME_JOBS,
            IssuerKind::Internal => MAX_INTERNAL_JOBS,
        };
        let root = self.state.on_demand_dir();
        let is_demanded = |dir: &PathBuf| dir.starts_with(&root);
        let demanded = self.entries.get(&id).is_some_and(|it| it.on_demand);
        // Strangers' names and those of the configuration do not wait for each other.
        let alike =
            |(dir, other): &&(PathBuf, IssuerKind)| *other == kind && is_demanded(dir) == demanded;
        let has_room = self.running.values().filter(alike).count() < limit;
        if !has_room && let Some(entry) = self.entries.get_mut(&id) {
            entry.queued = true;
        }
        has_room
    }

    pub(super) fn start_order(
        &mut self,
        id: u64,
        now: OffsetDateTime,
        reason: OrderReason,
        replaces: bool,
        authority: Option<Arc<Authority>>,
    ) {
        let Some(kind) = self.entries.get(&id).map(|entry| entry.issuer) else {
            return;
        };
        if !self.has_room(id, kind) {
            return;
        }
        let Some(entry) = self.entries.get(&id) else {
            return;
        };
        let subject = entry.subject.clone();
        tracing::debug!(name = %subject.name, reason = reason.as_str(), "a certificate is due");
        match (kind, &entry.ledger, authority) {
            (IssuerKind::Internal, _, _) => {
                let job = InternalJob {
                    subject,
                    local_ca: self.local_ca.clone(),
                    dir: entry.dir.clone(),
                    all_names: Arc::clone(&self.internal_names),
                };
                self.start(id, kind, job.run());
            }
            (IssuerKind::Acme, Some(ledger), Some(authority)) => {
                let same_ca = |stored: &&StoredCertificate| {
                    replaces && stored.meta.ca.as_deref() == Some(authority.url())
                };
                let predecessor = entry.stored.as_ref().filter(same_ca);
                // Whoever waits for it was permitted to just now, and people need no permission.
                let renewal = entry.on_demand && !entry.forced && !entry.is_waited_for();
                let may_renew = renewal.then(|| Arc::clone(&self.surroundings.may_renew));
                let job = OrderJob {
                    may_renew,
                    replaces: predecessor.map(|stored| stored.leaf.der.clone()),
                    subject,
                    ledger: Arc::clone(ledger),
                    authority,
                    dir: entry.dir.clone(),
                    challenges: self.challenges.clone(),
                    dns: self.dns.clone(),
                    reason,
                };
                self.start(id, kind, job.run());
            }
            _ => {
                // Its ledger, or every CA's, could not be opened: that was logged, and is tried
                // again with the next configuration or restart.
                self.check_again(id, now + MAX_SLEEP, None);
            }
        }
    }

    pub(super) fn start_asking(&mut self, id: u64, now: OffsetDateTime) {
        if !self.has_room(id, IssuerKind::Acme) {
            return;
        }
        let job = self.entries.get(&id).and_then(|entry| {
            Some(AskJob {
                authority: Arc::clone(self.issuing_authority(entry)?),
                ledger: Arc::clone(entry.ledger.as_ref()?),
                certificate_id: entry.certificate_id.clone()?,
                fraction: rand::random(),
            })
        });
        match job {
            Some(job) => self.start(id, IssuerKind::Acme, job.run()),
            None => self.check_again(id, now + MAX_SLEEP, None),
        }
    }

    pub(super) fn start(
        &mut self,
        id: u64,
        kind: IssuerKind,
        job: impl Future<Output = Done> + Send + 'static,
    ) {
        let task = self.jobs.spawn(job);
        if let Some(entry) = self.entries.get_mut(&id) {
            self.running.insert(task.id(), (entry.dir.clone(), kind));
            entry.running = true;
            entry.queued = false;
        }
        if let Some(status) = lock(&self.statuses).get_mut(&id) {
            status.running = true;
        }
    }

    pub(super) fn job_ended(
        &mut self,
        ended: Result<(tokio::task::Id, Done), tokio::task::JoinError>,
    ) {
        let now = clock::now();
        let (task, done) = match ended {
            Ok((task, done)) => (task, done),
            Err(error) => {
                tracing::error!(%error, "a job of the certificate worker died");
                let done = Done::Failed {
                    error: "an internal error, see the log".to_owned(),
                    ca: None,
                    ordered: false,
                };
                (error.id(), done)
            }
        };
        for entry in self.entries.values_mut().filter(|entry| entry.queued) {
            entry.queued = false;
            entry.check_at = now;
        }
        let Some((dir, _)) = self.running.remove(&task) else {
            return;
        };
        let ended = self.entries.iter_mut().find(|(_, entry)| entry.dir == dir);
        let Some((id, entry)) = ended.map(|(id, entry)| (*id, entry)) else {
            return;
        };
        entry.running = false;
        entry.check_at = now;
        match done {
            Done::Issued { stored, ca, took } => self.issued(id, *stored, ca, took),
            Done::Failed { error, ca, ordered } => self.failed(id, now, error, ca, ordered),
            Done::Withdrawn { cause } => self.withdrawn(id, now, &cause),
            Done::Asked { error } => self.asked(id, now, error),
        }
        self.settle(id, now);
    }

    pub(super) fn issued(
        &mut self,
        id: u64,
        stored: StoredCertificate,
        ca: Option<String>,
        took: StdDuration,
    ) {
        let Some(entry) = self.entries.get_mut(&id) else {
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
        entry.internal_attempts = Attempts::default();
        entry.last_error = None;
        entry.forced = false;
        entry.ask_again = false;
        (self.surroundings.reload_hint)(entry.dir.clone());
        (self.surroundings.ordered)(ca.as_deref(), true);
    }

    pub(super) fn failed(
        &mut self,
        id: u64,
        now: OffsetDateTime,
        error: String,
        ca: Option<String>,
        ordered: bool,
    ) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.forced = false;
            entry.ask_again = false;
            entry.last_error = Some(error.clone());
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
        let next = blocked.unwrap_or(if another_turn {
            now
        } else {
            now + DISK_ERROR_WAIT
        });
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.check_at = next.min(now + MAX_SLEEP);
            let next_attempt = clock::rfc3339(next);
            tracing::warn!(name = %entry.subject.name, next_attempt, "{error}");
        }
        self.republish(id, now, Some(next));
    }

    pub(super) fn republish(
        &self,
        id: u64,
        now: OffsetDateTime,
        next_attempt: Option<OffsetDateTime>,
    ) {
        let Some(entry) = self.entries.get(&id) else {
            return;
        };
        let covered = self.coverage(&entry.subject).and_then(|it| it.until);
        let (facts, authority) = self.facts(entry, now, covered);
        let status = SubjectStatus {
            next_attempt,
            ..self.status(entry, &facts, authority.as_deref(), covered)
        };
        self.publish(id, status);
    }

    pub(super) fn asked(&mut self, id: u64, now: OffsetDateTime, error: Option<String>) {
        if let (Some(error), Some(entry)) = (&error, self.entries.get(&id)) {
            tracing::warn!(name = %entry.subject.name, "{error}");
        }
        let reply = self
            .entries
            .get_mut(&id)
            .and_then(|entry| entry.reply.take());
        if let Some(reply) = reply {
            // Whoever asked may have gone.
            let _ = reply.send(self.answer_if_due(id, now));
        }
        let entry = self.entries.get_mut(&id);
        if entry.is_some_and(|entry| std::mem::take(&mut entry.ask_again)) {
            self.starts_asking(id, now);
        }
    }
}
