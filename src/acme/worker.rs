//! The one task that keeps certificates fresh: it asks the plan for every subject what to do, runs
//! what it says beside itself, and writes what comes of it to disk. It never touches the live
//! table, and nothing that serves waits for it.
//!
//! It sleeps a minute at most and then compares the wall clock: a monotonic sleep stands still
//! while a host is suspended.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration as StdDuration;

use time::{Duration, OffsetDateTime};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::account::{Authority, blocking, slug};
use super::challenges::Challenges;
use super::job::{AskJob, Done, InternalJob, OrderJob};
use super::ledger::{Kind, Ledger, Outcome};
use super::order;
use super::renewal::{
    self, Action, Attempts, Facts, IssuerKind, Jitter, OrderReason, RenewalInfo, Stored,
    WaitReason, Wanted, fraction, plan,
};
use super::renewal_info::certificate_id;
use super::subject::{Assignment, Subject};
use super::surroundings::Surroundings;
use crate::certificate::name::Name;
use crate::clock;
use crate::local_ca::LocalCa;
use crate::store::generation::{self, Source, StoredCertificate};
use crate::store::{StateDir, StoreError, WriterLock, key_type_from_name};

/// The longest sleep, and how often another process's writer lock is tried.
const MAX_SLEEP: Duration = Duration::minutes(1);
/// How often the first load of the certificates from files is looked for.
const LOADING_POLL: Duration = Duration::milliseconds(100);
/// After an error of our own disk: no request was sent, so none is owed a longer wait.
const DISK_ERROR_WAIT: Duration = Duration::minutes(1);
/// Jobs that talk to CAs at the same time, and jobs of the internal CA.
const MAX_ACME_JOBS: usize = 4;
const MAX_INTERNAL_JOBS: usize = 4;
/// After this many failures in a row the next authority has its turn.
const FAILOVER_AFTER: u32 = 2;
/// Requests from people that wait for the worker; more than that and they wait themselves.
const COMMAND_QUEUE: usize = 64;

/// What the live table knows about all names of one subject.
struct Covered {
    /// Until when files make the subject unnecessary.
    until: Option<OffsetDateTime>,
    file_known: bool,
}

impl From<Source> for IssuerKind {
    fn from(source: Source) -> IssuerKind {
        match source {
            Source::Acme => IssuerKind::Acme,
            Source::Internal => IssuerKind::Internal,
        }
    }
}

/// What is known about one certificate, for `/status`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubjectStatus {
    pub name: Name,
    pub names: Vec<Name>,
    pub issuer: IssuerKind,
    /// Directory URL of the CA that is next in turn; `None` for the internal CA.
    pub ca: Option<String>,
    /// Of the certificate on disk.
    pub not_after: Option<OffsetDateTime>,
    pub next_renewal: Option<OffsetDateTime>,
    /// Set while a failed attempt keeps the next one waiting.
    pub next_attempt: Option<OffsetDateTime>,
    pub last_error: Option<String>,
    /// Failures in a row.
    pub attempts: u32,
    /// The CA's explanation of its suggested renewal (RFC 9773).
    pub explanation_url: Option<String>,
    /// Until when certificates from files make this one unnecessary.
    pub covered_by_files_until: Option<OffsetDateTime>,
    /// Whether an order or a question to the CA runs now.
    pub running: bool,
}

/// How a renewal is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenewMode {
    /// Order now, whatever the dates and the failures say.
    Force,
    /// Ask the CA for its renewal information now, and order if that or the dates say so.
    IfDue,
}

/// What follows from a request to renew; the order itself goes on behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Ordering {
        reason: &'static str,
    },
    /// An order or a question to the CA runs already.
    InProgress,
    NotDue {
        next_renewal: OffsetDateTime,
        explanation_url: Option<String>,
    },
    /// Due, but failures or the CA's own wish keep the attempt waiting.
    Waiting {
        until: OffsetDateTime,
    },
    CoveredByFiles {
        until: OffsetDateTime,
    },
}

/// Why a request to renew cannot be followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RenewError {
    #[error("{0} is no certificate of ours: it comes from files, or no site has it")]
    UnknownName(Name),
    #[error("{0}")]
    Refused(String),
    #[error("another process writes to this state directory; ask that one")]
    NotWriter,
    #[error("the certificates are still being loaded; ask again in a moment")]
    Loading,
    #[error("the worker has stopped")]
    Stopped,
}

enum Command {
    Renew {
        name: Name,
        mode: RenewMode,
        reply: oneshot::Sender<Result<Decision, RenewError>>,
    },
    Reassign(Assignment),
}

type Statuses = Arc<Mutex<BTreeMap<u64, SubjectStatus>>>;

/// The way to a running worker. Cheap to clone.
#[derive(Clone)]
pub struct WorkerHandle {
    commands: mpsc::Sender<Command>,
    statuses: Statuses,
}

impl WorkerHandle {
    /// Asks for a renewal of the certificate that has `name`.
    pub async fn renew(&self, name: &Name, mode: RenewMode) -> Result<Decision, RenewError> {
        let (reply, answer) = oneshot::channel();
        let command = Command::Renew {
            name: name.clone(),
            mode,
            reply,
        };
        let sent = self.commands.send(command).await;
        sent.map_err(|_| RenewError::Stopped)?;
        answer.await.unwrap_or(Err(RenewError::Stopped))
    }

    /// Goes on with another assignment: what is the same in both is left alone.
    pub async fn reassign(&self, assignment: Assignment) {
        // A worker that has stopped needs none.
        let _ = self.commands.send(Command::Reassign(assignment)).await;
    }

    /// A snapshot, in the order of the assignment.
    pub fn status(&self) -> Vec<SubjectStatus> {
        lock(&self.statuses).values().cloned().collect()
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
    entries: BTreeMap<u64, Entry>,
    next_entry: u64,
    internal_names: Arc<Vec<Name>>,
    jobs: JoinSet<Done>,
    /// By the directory they write to: numbers change with the configuration.
    running: HashMap<tokio::task::Id, (PathBuf, IssuerKind)>,
}

/// One subject and what the worker knows about it.
struct Entry {
    subject: Subject,
    /// Who issues as things stand.
    issuer: IssuerKind,
    dir: PathBuf,
    /// `None` for the internal CA, which asks nobody.
    ledger: Option<Arc<Ledger>>,
    stored: Option<StoredCertificate>,
    /// Of `stored` (RFC 9773 section 4.1).
    certificate_id: Option<String>,
    /// Attempts at the internal CA: they bother nobody, so a restart may forget them.
    internal_attempts: Attempts,
    running: bool,
    check_at: OffsetDateTime,
    /// Due, and only waiting for another job to end.
    queued: bool,
    /// Somebody asked for an order, whatever the plan says.
    forced: bool,
    /// Somebody waits for the decision that follows the running question.
    reply: Option<oneshot::Sender<Result<Decision, RenewError>>>,
    last_error: Option<String>,
    /// What cannot be ordered was said once.
    refusal_logged: bool,
}

/// What was read from disk for one subject.
struct Loaded {
    ledger: Option<Arc<Ledger>>,
    stored: Option<StoredCertificate>,
    error: Option<StoreError>,
    completed: bool,
}

impl Worker {
    /// Prepares a worker; nothing is read, written or sent before [`Worker::run`].
    pub fn new(
        assignment: Assignment,
        state: StateDir,
        challenges: Challenges,
        surroundings: Surroundings,
    ) -> (Worker, WorkerHandle) {
        let (sender, commands) = mpsc::channel(COMMAND_QUEUE);
        let statuses = Statuses::default();
        let handle = WorkerHandle {
            commands: sender,
            statuses: Arc::clone(&statuses),
        };
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
            entries: BTreeMap::new(),
            next_entry: 0,
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
        for subject in wanted {
            let id = self.next_entry;
            self.next_entry += 1;
            let dir = self.state.certificate_dir(&subject.name, subject.key_type);
            let entry = match old.remove(&dir) {
                Some(entry) if entry.subject == subject => Entry {
                    check_at: OffsetDateTime::UNIX_EPOCH,
                    ..entry
                },
                before => {
                    new.push(id);
                    Entry::new(subject, dir, before)
                }
            };
            self.entries.insert(id, entry);
        }
        self.load(&new).await;
    }

    async fn open_authorities(&mut self) {
        let known: HashMap<String, Arc<Ledger>> = self
            .authorities
            .iter()
            .map(|authority| (slug(authority.url()), Arc::clone(&authority.ledger)))
            .collect();
        let (state, configs) = (self.state.clone(), self.assignment.authorities.clone());
        self.authorities = blocking(move || {
            let open = |config: crate::config::CertificateAuthority| match known
                .get(&slug(&config.directory))
            {
                Some(ledger) => Ok(Authority::with_ledger(&state, config, Arc::clone(ledger))),
                None => Authority::open(&state, config, clock::now()),
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
            self.decide(id, now);
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
        match entry.forced_action(plan(now, &facts), &facts, now) {
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
                if let Some(refusal) = entry.subject.refusal(entry.issuer) {
                    return self.refuse(id, now, refusal, status);
                }
                self.publish(id, status);
                self.start_order(id, now, reason, replaces, authority);
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

    /// Until when files cover every name of an `auto` subject. `None`: not loaded yet.
    fn coverage(&self, subject: &Subject) -> Option<Covered> {
        let mut until = None;
        let mut file_known = false;
        for (at, name) in subject.names.iter().enumerate() {
            let coverage = (self.surroundings.coverage)(name);
            if !coverage.loaded {
                return None;
            }
            file_known |= coverage.file_known;
            let own = match subject.takeover {
                Some(_) => coverage.file_due_at,
                None => coverage.file_valid_until,
            };
            until = match (at, until, own) {
                (0, _, own) => own,
                (_, Some(others), Some(own)) => Some(own.min(others)),
                _ => None,
            };
        }
        Some(Covered {
            until: until.filter(|_| subject.auto),
            file_known,
        })
    }

    fn facts(
        &self,
        entry: &Entry,
        now: OffsetDateTime,
        covered_by_file_until: Option<OffsetDateTime>,
    ) -> (Facts, Option<Arc<Authority>>) {
        let subject = &entry.subject;
        let (authority, attempts, session) = match entry.issuer {
            IssuerKind::Internal => (None, entry.internal_attempts, Attempts::default()),
            IssuerKind::Acme => self.next_authority(entry, now),
        };
        let seed = subject.name.to_string();
        let facts = Facts {
            wanted: Wanted {
                names: subject.names.clone(),
                key_type: subject.key_type,
                issuer: entry.issuer,
            },
            stored: entry
                .stored
                .as_ref()
                .map(|stored| self.stored_facts(entry, stored)),
            renewal_info: self.renewal_info(entry),
            jitter: Jitter {
                due: fraction(&format!("due {seed} {:?}", entry.serial())),
                retry: fraction(&format!("retry {seed} {:?}", attempts.last)),
            },
            attempts,
            session,
            covered_by_file_until,
        };
        (facts, authority)
    }

    fn stored_facts(&self, entry: &Entry, stored: &StoredCertificate) -> Stored {
        let ca = stored.meta.ca.as_deref();
        let configured = |ca: &str| {
            self.authorities
                .iter()
                .any(|authority| authority.url() == ca)
        };
        let last = entry
            .ledger
            .as_ref()
            .and_then(|ledger| ledger.last(Kind::Order));
        let for_renewal_info = last.is_some_and(|record| {
            record.outcome == Some(Outcome::Ok)
                && record.reason.as_deref() == Some(OrderReason::RenewalInfo.as_str())
        });
        Stored {
            not_before: stored.leaf.not_before,
            not_after: stored.leaf.not_after,
            names: stored.leaf.names.clone(),
            key_type: key_type_from_name(&stored.meta.key_type),
            issuer: stored.meta.source.into(),
            issuer_configured: ca.is_none_or(configured),
            issued_at: stored.meta.issued_at,
            ordered_for_renewal_info: for_renewal_info,
        }
    }

    /// Renewal information comes from the CA that issued, which may not be the next in turn.
    fn renewal_info(&self, entry: &Entry) -> RenewalInfo {
        let (Some(ledger), Some(id)) = (&entry.ledger, &entry.certificate_id) else {
            return RenewalInfo::default();
        };
        if self.issuing_authority(entry).is_none() {
            return RenewalInfo::default();
        }
        match ledger.renewal_info(id) {
            Some(info) => info.facts(),
            None => RenewalInfo {
                supported: true,
                ..RenewalInfo::default()
            },
        }
    }

    fn issuing_authority(&self, entry: &Entry) -> Option<&Arc<Authority>> {
        let ca = entry.stored.as_ref()?.meta.ca.as_deref()?;
        self.authorities
            .iter()
            .find(|authority| authority.url() == ca)
    }

    /// The authority whose turn it is, with the attempts that count there.
    fn next_authority(
        &self,
        entry: &Entry,
        now: OffsetDateTime,
    ) -> (Option<Arc<Authority>>, Attempts, Attempts) {
        let attempts: Vec<(Attempts, Attempts)> = self
            .authorities
            .iter()
            .map(|authority| {
                let own = entry
                    .ledger
                    .as_ref()
                    .map(|ledger| ledger.attempts(Kind::Order, Some(authority.url())));
                (
                    own.unwrap_or_default(),
                    authority.ledger.attempts(Kind::Session, None),
                )
            })
            .collect();
        let turn = whose_turn(&attempts, now);
        match (self.authorities.get(turn), attempts.get(turn)) {
            (Some(authority), Some((own, session))) => {
                (Some(Arc::clone(authority)), *own, *session)
            }
            _ => (None, Attempts::default(), Attempts::default()),
        }
    }

    fn status(
        &self,
        entry: &Entry,
        facts: &Facts,
        authority: Option<&Authority>,
        covered_by_files_until: Option<OffsetDateTime>,
    ) -> SubjectStatus {
        let session_error = authority
            .filter(|_| facts.session.failures > 0)
            .and_then(|authority| authority.ledger.last(Kind::Session));
        let own_error = entry
            .ledger
            .as_ref()
            .filter(|_| facts.attempts.failures > 0);
        let own_error = own_error.and_then(|ledger| ledger.last(Kind::Order));
        let recorded = |record: Option<super::ledger::Record>| match record?.outcome {
            Some(Outcome::Failed { message, .. }) => Some(message),
            Some(_) => None,
            None => Some("the last attempt was interrupted".to_owned()),
        };
        let last_error = entry
            .last_error
            .clone()
            .or_else(|| recorded(session_error))
            .or_else(|| recorded(own_error));
        let info = entry.ledger.as_ref().zip(entry.certificate_id.as_ref());
        SubjectStatus {
            name: entry.subject.name.clone(),
            names: entry.subject.names.clone(),
            issuer: entry.issuer,
            ca: authority.map(|authority| authority.url().to_owned()),
            not_after: entry.stored.as_ref().map(|stored| stored.leaf.not_after),
            next_renewal: renewal::next_renewal(facts),
            next_attempt: None,
            last_error,
            attempts: facts.attempts.failures.max(facts.session.failures),
            explanation_url: info.and_then(|(ledger, id)| ledger.renewal_info(id)?.explanation_url),
            covered_by_files_until,
            running: entry.running,
        }
    }

    fn publish(&self, id: u64, status: SubjectStatus) {
        lock(&self.statuses).insert(id, status);
    }

    fn check_again(&mut self, id: u64, at: OffsetDateTime, status: Option<SubjectStatus>) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.check_at = at;
            entry.queued = false;
        }
        if let Some(status) = status {
            self.publish(id, status);
        }
    }

    fn refuse(&mut self, id: u64, now: OffsetDateTime, refusal: String, status: SubjectStatus) {
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

    /// Whether another job of this kind may run now; if not, the entry waits for one to end.
    fn has_room(&mut self, id: u64, kind: IssuerKind) -> bool {
        let limit = match kind {
            IssuerKind::Acme => MAX_ACME_JOBS,
            IssuerKind::Internal => MAX_INTERNAL_JOBS,
        };
        let has_room = self
            .running
            .values()
            .filter(|(_, other)| *other == kind)
            .count()
            < limit;
        if !has_room && let Some(entry) = self.entries.get_mut(&id) {
            entry.queued = true;
        }
        has_room
    }

    fn start_order(
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
                let job = OrderJob {
                    replaces: predecessor.map(|stored| stored.leaf.der.clone()),
                    subject,
                    ledger: Arc::clone(ledger),
                    authority,
                    dir: entry.dir.clone(),
                    challenges: self.challenges.clone(),
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

    fn start_asking(&mut self, id: u64, now: OffsetDateTime) {
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

    fn start(
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

    fn job_ended(&mut self, ended: Result<(tokio::task::Id, Done), tokio::task::JoinError>) {
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
            Done::Asked { error } => self.asked(id, now, error),
        }
    }

    fn issued(
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
        (self.surroundings.reload_hint)(entry.dir.clone());
        (self.surroundings.ordered)(ca.as_deref(), true);
    }

    fn failed(
        &mut self,
        id: u64,
        now: OffsetDateTime,
        error: String,
        ca: Option<String>,
        ordered: bool,
    ) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.forced = false;
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

    /// The CA that is next in turn, and when an order there may start if something holds it up.
    fn next_attempt(
        &self,
        id: u64,
        now: OffsetDateTime,
    ) -> (Option<String>, Option<OffsetDateTime>) {
        let Some(entry) = self.entries.get(&id) else {
            return (None, None);
        };
        let (facts, authority) = self.facts(entry, now, None);
        let blocked = renewal::blocked(now, &facts).map(|(until, _)| until);
        (
            authority.map(|authority| authority.url().to_owned()),
            blocked,
        )
    }

    fn republish(&self, id: u64, now: OffsetDateTime, next_attempt: Option<OffsetDateTime>) {
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

    fn asked(&mut self, id: u64, now: OffsetDateTime, error: Option<String>) {
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
    }

    async fn obey(&mut self, command: Command) {
        match command {
            Command::Reassign(assignment) => {
                self.assignment = assignment;
                self.configure().await;
            }
            Command::Renew { name, mode, reply } => self.renew(&name, mode, reply),
        }
    }

    fn renew(
        &mut self,
        name: &Name,
        mode: RenewMode,
        reply: oneshot::Sender<Result<Decision, RenewError>>,
    ) {
        let now = clock::now();
        let found = self
            .entries
            .iter()
            .find(|(_, entry)| entry.subject.names.contains(name));
        let answer = match found.map(|(id, entry)| (*id, entry)) {
            None => Err(RenewError::UnknownName(name.clone())),
            Some(_) if self.lock.is_none() => Err(RenewError::NotWriter),
            Some((_, entry)) if entry.running => Ok(Decision::InProgress),
            Some((id, entry)) => match (entry.subject.refusal(entry.issuer), mode) {
                (Some(refusal), _) => Err(RenewError::Refused(refusal)),
                (None, RenewMode::Force) => self.force(id, now),
                (None, RenewMode::IfDue) => {
                    if self.starts_asking(id, now) {
                        if let Some(entry) = self.entries.get_mut(&id) {
                            entry.reply = Some(reply);
                        }
                        return;
                    }
                    self.answer_if_due(id, now)
                }
            },
        };
        // Whoever asked may have gone.
        let _ = reply.send(answer);
    }

    /// Orders now, unless the CA itself asked for patience.
    fn force(&mut self, id: u64, now: OffsetDateTime) -> Result<Decision, RenewError> {
        let Some(entry) = self.entries.get(&id) else {
            return Err(RenewError::Stopped);
        };
        let (facts, _) = self.facts(entry, now, None);
        let asked = facts
            .attempts
            .retry_after
            .into_iter()
            .chain(facts.session.retry_after)
            .max();
        if let Some(until) = asked.filter(|until| *until > now) {
            return Ok(Decision::Waiting { until });
        }
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.forced = true;
            entry.check_at = now;
        }
        Ok(Decision::Ordering {
            reason: OrderReason::Requested.as_str(),
        })
    }

    /// Starts a question to the CA, where it can be asked about this certificate.
    fn starts_asking(&mut self, id: u64, now: OffsetDateTime) -> bool {
        let can_ask = self.entries.get(&id).is_some_and(|entry| {
            let alive = entry
                .stored
                .as_ref()
                .is_some_and(|it| it.leaf.not_after > now);
            let reachable = self
                .issuing_authority(entry)
                .is_some_and(|it| it.ledger.attempts(Kind::Session, None).failures == 0);
            alive && reachable && entry.certificate_id.is_some() && entry.ledger.is_some()
        });
        if can_ask {
            self.start_asking(id, now);
        }
        self.entries.get(&id).is_some_and(|entry| entry.running)
    }

    /// What the plan says, and has it done at once.
    fn answer_if_due(&mut self, id: u64, now: OffsetDateTime) -> Result<Decision, RenewError> {
        let Some(entry) = self.entries.get(&id) else {
            return Err(RenewError::Stopped);
        };
        let covered = self.coverage(&entry.subject).ok_or(RenewError::Loading)?;
        let covered = covered.until;
        let (mut facts, _) = self.facts(entry, now, covered);
        // It was asked just now, or cannot be: the decision stands without another question.
        facts.renewal_info.next_fetch = Some(now + Duration::HOUR);
        let explanation_url = entry
            .ledger
            .as_ref()
            .zip(entry.certificate_id.as_ref())
            .and_then(|(ledger, id)| ledger.renewal_info(id)?.explanation_url);
        let decision = match plan(now, &facts) {
            Action::CoveredByFiles { until } => Decision::CoveredByFiles { until },
            Action::Order { reason, .. } => Decision::Ordering {
                reason: reason.as_str(),
            },
            Action::Wait {
                until,
                reason: WaitReason::Backoff | WaitReason::IssuerUnreachable,
            } => Decision::Waiting { until },
            Action::Wait { until, .. } => Decision::NotDue {
                next_renewal: renewal::next_renewal(&facts).unwrap_or(until),
                explanation_url,
            },
            Action::FetchRenewalInfo => Decision::InProgress,
        };
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.check_at = now;
        }
        Ok(decision)
    }
}

impl Entry {
    /// `before`: another subject that wrote to the same directory, whose job may still run.
    fn new(subject: Subject, dir: PathBuf, before: Option<Entry>) -> Entry {
        let running = before.as_ref().is_some_and(|before| before.running);
        Entry {
            issuer: subject.issuer,
            subject,
            dir,
            ledger: before.and_then(|before| before.ledger),
            stored: None,
            certificate_id: None,
            internal_attempts: Attempts::default(),
            running,
            check_at: OffsetDateTime::UNIX_EPOCH,
            queued: false,
            forced: false,
            reply: None,
            last_error: None,
            refusal_logged: false,
        }
    }

    fn take_in(&mut self, loaded: Loaded) {
        if let Some(error) = &loaded.error {
            tracing::error!(name = %self.subject.name, "{error}");
        }
        self.ledger = loaded.ledger;
        self.last_error = loaded.error.map(|error| error.to_string());
        self.set_stored(loaded.stored);
        self.check_at = OffsetDateTime::UNIX_EPOCH;
    }

    fn set_stored(&mut self, stored: Option<StoredCertificate>) {
        let acme = stored
            .as_ref()
            .filter(|stored| stored.meta.source == Source::Acme);
        let id = acme.and_then(|stored| certificate_id(&stored.leaf.der));
        self.certificate_id = id.map(|id| id.to_string());
        self.stored = stored;
    }

    fn serial(&self) -> Option<&str> {
        self.stored
            .as_ref()
            .map(|stored| stored.leaf.serial.as_str())
    }

    /// What is planned, or the order that somebody asked for.
    fn forced_action(&self, planned: Action, facts: &Facts, now: OffsetDateTime) -> Action {
        if !self.forced {
            return planned;
        }
        let alive = facts
            .stored
            .as_ref()
            .is_some_and(|stored| now < stored.not_after);
        match planned {
            order @ Action::Order { .. } => order,
            _ => Action::Order {
                reason: OrderReason::Requested,
                replaces: alive && self.issuer == IssuerKind::Acme,
            },
        }
    }
}

/// What to read for one subject.
struct Load {
    subject: Subject,
    dir: PathBuf,
    ledger: Option<Arc<Ledger>>,
    /// Whether what a crash interrupted may be finished.
    may_complete: bool,
}

impl Load {
    /// Blocks on the disk.
    fn read(self, state: &StateDir) -> Loaded {
        let (subject, now) = (&self.subject, clock::now());
        let is_acme = subject.may_be_issued_by(IssuerKind::Acme);
        let mut loaded = Loaded {
            ledger: self.ledger,
            stored: None,
            error: None,
            completed: false,
        };
        if is_acme && loaded.ledger.is_none() {
            match Ledger::of_subject(state, &subject.name, subject.key_type, now) {
                Ok(ledger) => loaded.ledger = Some(Arc::new(ledger)),
                Err(error) => loaded.error = Some(error),
            }
        }
        if is_acme && self.may_complete {
            loaded.completed = complete(subject, &self.dir, loaded.ledger.as_deref(), now);
        }
        match generation::read_current(&self.dir) {
            Ok(stored) => loaded.stored = stored,
            Err(error @ StoreError::Broken { .. }) => {
                tracing::error!(name = %subject.name, "{error}; a new one is made");
            }
            Err(error) => {
                // What cannot be read may be good: nothing is ordered in its place.
                loaded.ledger = None;
                loaded.error = Some(error);
            }
        }
        loaded
    }
}

/// Finishes an order that a crash interrupted after the certificate was fetched.
fn complete(
    subject: &Subject,
    dir: &std::path::Path,
    ledger: Option<&Ledger>,
    now: OffsetDateTime,
) -> bool {
    let issued = order::complete_pending(dir, &subject.names, subject.key_type, now);
    let (Some(issued), Some(ledger)) = (issued, ledger) else {
        return false;
    };
    let last = ledger.last(Kind::Order);
    let ca = last.as_ref().map_or("", |record| record.ca.as_str());
    let reason = last.as_ref().and_then(|record| record.reason.as_deref());
    let recorded = ledger
        .begin(Kind::Order, ca, reason, now)
        .and_then(|attempt| ledger.finish(attempt, Outcome::Ok, None, now));
    if let Err(error) = recorded {
        tracing::warn!(%error, "cannot record the end of an interrupted order");
    }
    tracing::info!(
        names = ?issued.leaf.names,
        serial = issued.leaf.serial,
        not_after = clock::rfc3339(issued.leaf.not_after),
        "finished an interrupted order"
    );
    true
}

/// Which authority to try next: the first that is not given up for now, else the one whose
/// failure is longest ago. `attempts`: of this subject there, and of anybody to reach it. An
/// unreachable CA is given up only until it may be asked again; a success anywhere resets the
/// counts of the subject, and with them the turn goes back to the first.
fn whose_turn(attempts: &[(Attempts, Attempts)], now: OffsetDateTime) -> usize {
    let given_up = |(own, session): &(Attempts, Attempts)| {
        own.failures >= FAILOVER_AFTER
            || (session.failures >= FAILOVER_AFTER && renewal::is_unreachable(now, session))
    };
    let last = |(own, session): &(Attempts, Attempts)| own.last.max(session.last).unwrap_or(now);
    attempts
        .iter()
        .position(|it| !given_up(it))
        .or_else(|| (0..attempts.len()).min_by_key(|at| last(&attempts[*at])))
        .unwrap_or(0)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Entries are replaced whole, so a panic cannot have left half of one.
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

#[cfg(test)]
#[path = "worker_tests.rs"]
mod tests;
