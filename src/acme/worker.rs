//! The one task that keeps certificates fresh: it asks the plan for every subject what to do, runs
//! what it says beside itself, and writes what comes of it to disk. It never touches the live
//! table, and nothing that serves waits for it.
//!
//! It sleeps a minute at most and then compares the wall clock: a monotonic sleep stands still
//! while a host is suspended.

mod demand;
mod entry;
mod facts;
mod handle;
mod jobs;
mod requests;
#[cfg(test)]
mod tests;
mod turn;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration as StdDuration;

use time::{Duration, OffsetDateTime};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::account::{Authority, blocking, slug};
use super::challenges::Challenges;
use super::dns::{self, DnsChallenges};
use super::job::Done;
use super::ledger::Ledger;
use super::limits::Broken;
use super::renewal::{self, Action, IssuerKind, WaitReason, plan};
use super::subject::Assignment;
use super::surroundings::Surroundings;
use crate::certificate::name::Name;
use crate::clock;
use crate::local_ca::LocalCa;
use crate::store::generation::Source;
use crate::store::{StateDir, WriterLock};
use entry::{Entry, Load, Loaded};
pub use handle::{
    AccountChange, AccountChanged, Decision, RenewError, RenewMode, SubjectStatus, Unserved,
    WorkerHandle,
};
use handle::{Command, Statuses, lock};
use turn::Covered;

/// How long a stop waits for TXT records to be removed; the next start removes what is left.
const DNS_REMOVAL_LIMIT: StdDuration = StdDuration::from_secs(2);
/// The longest sleep, and how often another process's writer lock is tried.
const MAX_SLEEP: Duration = Duration::minutes(1);
/// How often an order that a limit holds back is looked at: its date stands, unless the
/// configuration changes, which looks at everything anew.
const LIMIT_POLL: Duration = Duration::minutes(10);
/// How often the first load of the certificates from files is looked for.
const LOADING_POLL: Duration = Duration::milliseconds(100);

impl From<Source> for IssuerKind {
    fn from(source: Source) -> IssuerKind {
        match source {
            Source::Acme => IssuerKind::Acme,
            Source::Internal => IssuerKind::Internal,
        }
    }
}

/// The task. See [`Worker::run`].
pub struct Worker {
    assignment: Assignment,
    state: StateDir,
    challenges: Challenges,
    surroundings: Surroundings,
    local_ca: LocalCa,
    commands: mpsc::Receiver<Command>,
    statuses: Statuses,
    lock: Option<WriterLock>,
    try_lock_at: OffsetDateTime,
    authorities: Vec<Arc<Authority>>,
    /// `None`: before the first configuration, or where it cannot be used.
    dns: Option<Arc<DnsChallenges>>,
    dns_claims: dns::Claims,
    entries: BTreeMap<u64, Entry>,
    next_entry: u64,
    /// The entries that clients asked for, by name.
    demanded: HashMap<Name, u64>,
    internal_names: Arc<Vec<Name>>,
    jobs: JoinSet<Done>,
    /// By the directory they write to: numbers change with the configuration.
    running: HashMap<tokio::task::Id, (PathBuf, IssuerKind)>,
}

impl Worker {
    /// Prepares a worker; nothing is read, written or sent before [`Worker::run`].
    pub fn new(
        assignment: Assignment,
        state: StateDir,
        challenges: Challenges,
        surroundings: Surroundings,
    ) -> (Worker, WorkerHandle) {
        let (handle, commands, statuses) = WorkerHandle::new();
        let worker = Worker {
            local_ca: LocalCa::new(&state),
            assignment,
            state,
            challenges,
            surroundings,
            commands,
            statuses,
            lock: None,
            try_lock_at: OffsetDateTime::UNIX_EPOCH,
            authorities: Vec::new(),
            dns: None,
            dns_claims: dns::Claims::default(),
            entries: BTreeMap::new(),
            next_entry: 0,
            demanded: HashMap::new(),
            internal_names: Arc::default(),
            jobs: JoinSet::new(),
            running: HashMap::new(),
        };
        (worker, handle)
    }

    /// Runs until `shutdown`. What is in flight then is given up cleanly: recorded as cancelled,
    /// and resumed by the next start.
    pub async fn run(mut self, shutdown: CancellationToken) {
        self.take_lock().await;
        self.configure().await;
        loop {
            self.take_lock().await;
            let wake_at = self.decide_all(clock::now());
            let sleep = (wake_at - clock::now()).clamp(Duration::ZERO, MAX_SLEEP);
            let sleep = StdDuration::try_from(sleep).unwrap_or_default();
            tokio::select! {
                () = shutdown.cancelled() => break,
                Some(done) = self.jobs.join_next_with_id(), if !self.jobs.is_empty() => {
                    self.job_ended(done);
                }
                Some(command) = self.commands.recv() => self.obey(command).await,
                () = tokio::time::sleep(sleep) => {}
            }
        }
        self.stop().await;
    }

    async fn stop(&mut self) {
        self.jobs.shutdown().await;
        if let Some(dns) = &self.dns {
            dns.finish(DNS_REMOVAL_LIMIT).await;
        }
        let ledgers: Vec<Arc<Ledger>> = self
            .entries
            .values()
            .filter_map(|entry| entry.ledger.clone())
            .chain(
                self.authorities
                    .iter()
                    .map(|authority| Arc::clone(&authority.ledger)),
            )
            .collect();
        blocking(move || {
            for ledger in ledgers {
                if let Err(error) = ledger.cancel_running(clock::now()) {
                    tracing::warn!(%error, "cannot record a cancelled attempt");
                }
            }
        })
        .await;
    }

    /// Tries for the writer lock, once a minute. With it, everything is read again: whoever had
    /// it before may have written.
    async fn take_lock(&mut self) {
        let now = clock::now();
        if self.lock.is_some() || now < self.try_lock_at {
            return;
        }
        let waited = self.try_lock_at != OffsetDateTime::UNIX_EPOCH;
        self.try_lock_at = now + MAX_SLEEP;
        let state = self.state.clone();
        match blocking(move || state.try_lock_writer()).await {
            Ok(Some(lock)) => {
                self.lock = Some(lock);
                if waited {
                    tracing::info!("this process orders certificates now");
                }
                let ids: Vec<u64> = self.entries.keys().copied().collect();
                self.load(&ids).await;
                self.remove_left_over_records().await;
            }
            Ok(None) if !waited => tracing::warn!(
                state = %self.state.root().display(),
                "another process orders certificates into this state directory; this one serves them"
            ),
            Ok(None) => {}
            Err(error) => tracing::error!(%error, "no certificate can be ordered"),
        }
    }

    /// Makes authorities and entries fit the assignment. Entries that stay keep what they know,
    /// running jobs among it.
    async fn configure(&mut self) {
        self.open_authorities().await;
        self.open_dns().await;
        let demanded = self.still_demanded();
        let mut old: HashMap<PathBuf, Entry> = std::mem::take(&mut self.entries)
            .into_values()
            .map(|entry| (entry.dir.clone(), entry))
            .collect();
        lock(&self.statuses).clear();
        let wanted = self.assignment.subjects.clone();
        let internal = wanted
            .iter()
            .filter(|it| it.may_be_issued_by(IssuerKind::Internal));
        self.internal_names = Arc::new(internal.flat_map(|it| it.names.clone()).collect());
        let mut new = Vec::new();
        let wanted = wanted.into_iter().map(|subject| (subject, false));
        let demanded = demanded.into_iter().map(|subject| (subject, true));
        for (subject, on_demand) in wanted.chain(demanded) {
            let id = self.next_entry;
            self.next_entry += 1;
            let dir = self.directory(&subject, on_demand);
            if on_demand {
                self.demanded.insert(subject.name.clone(), id);
            }
            let entry = match old.remove(&dir) {
                Some(entry) if entry.subject == subject => Entry {
                    check_at: OffsetDateTime::UNIX_EPOCH,
                    ..entry
                },
                before => {
                    new.push(id);
                    Entry {
                        on_demand,
                        ..Entry::new(subject, dir, before)
                    }
                }
            };
            self.entries.insert(id, entry);
        }
        self.load(&new).await;
    }

    async fn open_authorities(&mut self) {
        let known: HashMap<String, Arc<Authority>> = self
            .authorities
            .iter()
            .map(|authority| (slug(authority.url()), Arc::clone(authority)))
            .collect();
        let (state, configs) = (self.state.clone(), self.assignment.authorities.clone());
        self.authorities = blocking(move || {
            let open = |config: crate::config::CertificateAuthority| {
                let Some(known) = known.get(&slug(&config.directory)) else {
                    return Authority::open(&state, config, clock::now());
                };
                let (ledger, history) = (known.ledger.clone(), known.history.clone());
                Ok(Authority::with_records(&state, config, ledger, history))
            };
            configs
                .into_iter()
                .filter_map(|config| {
                    let opened = open(config).inspect_err(|error| {
                        tracing::error!(%error, "a CA cannot be used");
                    });
                    opened.ok().map(Arc::new)
                })
                .collect()
        })
        .await;
    }

    /// With the same settings it goes on as it is, running removals and all.
    async fn open_dns(&mut self) {
        let wanted = &self.assignment.dns;
        if self.dns.as_ref().is_some_and(|dns| dns.config() == wanted) {
            return;
        }
        let opened = DnsChallenges::new(wanted, &self.state, self.dns_claims.clone());
        self.dns = opened
            .inspect_err(|error| tracing::error!(error, "DNS-01 cannot be used"))
            .ok();
        if self.lock.is_some() {
            self.remove_left_over_records().await;
        }
    }

    /// Of runs that a crash ended. Only the writer may: a record of another process is in use.
    async fn remove_left_over_records(&self) {
        if let Some(dns) = &self.dns {
            dns.remove_left_over().await;
        }
    }

    /// Reads what is on disk for these entries; with the lock, finishes what a crash interrupted.
    async fn load(&mut self, ids: &[u64]) {
        let writer = self.lock.is_some();
        let requests: Vec<(u64, Load)> = ids
            .iter()
            .filter_map(|id| {
                let entry = self.entries.get(id)?;
                let load = Load {
                    subject: entry.subject.clone(),
                    dir: entry.dir.clone(),
                    ledger: entry.ledger.clone(),
                    may_complete: writer && !entry.running,
                };
                Some((*id, load))
            })
            .collect();
        let state = self.state.clone();
        let loaded: Vec<(u64, Loaded)> = blocking(move || {
            let read = |(id, load): (u64, Load)| (id, load.read(&state));
            requests.into_iter().map(read).collect()
        })
        .await;
        for (id, loaded) in loaded {
            let Some(entry) = self.entries.get_mut(&id) else {
                continue;
            };
            if loaded.completed {
                (self.surroundings.reload_hint)(entry.dir.clone());
            }
            entry.take_in(loaded);
        }
    }

    /// Decides for every entry whose time has come. Answers when to wake up.
    fn decide_all(&mut self, now: OffsetDateTime) -> OffsetDateTime {
        let due: Vec<u64> = self
            .entries
            .iter()
            .filter(|(_, entry)| !entry.running && entry.check_at <= now)
            .map(|(id, _)| *id)
            .collect();
        for id in due {
            if self.is_wanted(id) {
                self.decide(id, now);
            }
            self.settle(id, now);
        }
        let checks = self
            .entries
            .values()
            .filter(|entry| !entry.running && !entry.queued);
        let lock_at = self.lock.is_none().then_some(self.try_lock_at);
        checks
            .map(|entry| entry.check_at)
            .chain(lock_at)
            .min()
            .unwrap_or(now + MAX_SLEEP)
    }

    /// Asks the plan, and starts what it says.
    fn decide(&mut self, id: u64, now: OffsetDateTime) {
        let Some(entry) = self.entries.get(&id) else {
            return;
        };
        let Some(Covered { until, file_known }) = self.coverage(&entry.subject) else {
            let (facts, authority) = self.facts(entry, now, None);
            let status = self.status(entry, &facts, authority.as_deref(), None);
            return self.check_again(id, now + LOADING_POLL, Some(status));
        };
        if entry.subject.only_takeover && !file_known && entry.stored.is_none() && !entry.forced {
            // There is nothing yet that could be late.
            lock(&self.statuses).remove(&id);
            return self.check_again(id, now + MAX_SLEEP, None);
        }
        self.choose_issuer(id, file_known, now);
        let Some(entry) = self.entries.get(&id) else {
            return;
        };
        let covered = until;
        let (facts, authority) = self.facts(entry, now, covered);
        let next_attempt = renewal::blocked(now, &facts).map(|(until, _)| until);
        let mut status = self.status(entry, &facts, authority.as_deref(), covered);
        if self.lock.is_none() {
            return self.check_again(id, now + MAX_SLEEP, Some(status));
        }
        let action = match entry.forced_action(plan(now, &facts), &facts, now) {
            Action::FetchRenewalInfo | Action::Order { .. }
                if !self.is_due_on_demand(entry, now) =>
            {
                let at = entry.look_again(now);
                return self.check_again(id, at, Some(status));
            }
            action => action,
        };
        match action {
            Action::CoveredByFiles { until } => {
                self.check_again(id, until.min(now + MAX_SLEEP), Some(status));
            }
            Action::Wait { until, reason } => {
                let held = matches!(reason, WaitReason::Backoff | WaitReason::IssuerUnreachable);
                status.next_attempt = next_attempt.filter(|_| held);
                self.check_again(id, until.min(now + MAX_SLEEP), Some(status));
            }
            Action::FetchRenewalInfo => {
                self.publish(id, status);
                self.start_asking(id, now);
            }
            Action::Order { reason, replaces } => {
                self.order(id, now, (reason, replaces), authority, status);
            }
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

    pub(super) fn publish(&self, id: u64, status: SubjectStatus) {
        lock(&self.statuses).insert(id, status);
    }

    pub(super) fn check_again(
        &mut self,
        id: u64,
        at: OffsetDateTime,
        status: Option<SubjectStatus>,
    ) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.check_at = at;
            entry.queued = false;
        }
        if let Some(status) = status {
            self.publish(id, status);
        }
    }

    /// Nothing is sent that would break a limit of the CA: `/status` says when it will be.
    pub(super) fn hold(
        &mut self,
        id: u64,
        now: OffsetDateTime,
        broken: &Broken,
        status: SubjectStatus,
    ) {
        let text = format!("order for {}: {broken}", status.name);
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.forced = false;
            if entry.last_error.as_ref() != Some(&text) {
                tracing::warn!("{text}");
            }
            entry.last_error = Some(text.clone());
        }
        let status = SubjectStatus {
            next_attempt: Some(broken.until),
            last_error: Some(text),
            ..status
        };
        self.check_again(id, broken.until.min(now + LIMIT_POLL), Some(status));
    }

    pub(super) fn refuse(
        &mut self,
        id: u64,
        now: OffsetDateTime,
        refusal: String,
        status: SubjectStatus,
    ) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.forced = false;
            if !entry.refusal_logged {
                tracing::error!("{refusal}");
            }
            entry.refusal_logged = true;
        }
        let status = SubjectStatus {
            last_error: Some(refusal),
            ..status
        };
        self.check_again(id, now + MAX_SLEEP, Some(status));
    }
}
