//! The one task that keeps certificates fresh: it asks the desk what is to be done, runs that
//! beside itself, and tells the desk how it ended. It decides nothing, never touches the live
//! table, and nothing that serves waits for it.
//!
//! It sleeps a minute at most and then compares the wall clock: a monotonic sleep stands still
//! while a host is suspended.

mod checks;
mod cleanup;
mod demand;
mod desk;
mod entry;
mod facts;
mod handle;
mod jobs;
mod requests;
mod revoke;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
mod turn;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration as StdDuration;

use time::{Duration, OffsetDateTime};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc};
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use super::account::{Authority, blocking, slug};
use super::challenges::Challenges;
use super::dns::{self, DnsChallenges};
use super::job::Done;
use super::ledger::Ledger;
use super::order::Histories;
use super::queue::Lane;
use super::renewal::IssuerKind;
use super::revocation::check::Checked;
use super::subject::Assignment;
use super::surroundings::Surroundings;
use crate::certificate::name::Name;
use crate::certificate::reloader::Swapped;
use crate::clock;
use crate::config::CertificateAuthority;
use crate::local_ca::LocalCa;
use crate::store::generation::Source;
use crate::store::{StateDir, StoreError, WriterLock};
pub use cleanup::Deleted;
use desk::Desk;
use entry::{Entry, Load, Loaded};
pub use handle::{
    AccountChange, AccountChanged, Decision, RenewError, RenewMode, SubjectStatus, Unserved,
    WorkerHandle,
};
use handle::{Command, lock};
pub use revoke::RevocationAnswer;
pub(super) use revoke::RevocationReply;

/// How long a stop waits for TXT records to be removed; the next start removes what is left.
const DNS_REMOVAL_LIMIT: StdDuration = StdDuration::from_secs(2);
/// The longest sleep.
const MAX_SLEEP: Duration = Duration::minutes(1);
/// How often another process's writer lock is tried: one that hands over lets it go within moments.
const LOCK_INTERVAL: Duration = Duration::seconds(5);
/// The same for a process that takes over from the lock's holder, which ends soon; so often at most.
const SUCCESSOR_LOCK_INTERVAL: Duration = Duration::milliseconds(250);
const SUCCESSOR_LOCK_TRIES: u32 = 240;

impl From<Source> for IssuerKind {
    fn from(source: Source) -> IssuerKind {
        match source {
            Source::Acme => IssuerKind::Acme,
            Source::Internal => IssuerKind::Internal,
        }
    }
}

/// A job that runs.
struct Running {
    /// What it writes to: numbers change with the configuration.
    dir: PathBuf,
    /// `None`: it took no turn.
    lane: Option<Lane>,
    task: AbortHandle,
    /// Whether it is told to end at once.
    given_up: bool,
}

/// The task. See [`Worker::run`].
pub struct Worker {
    assignment: Assignment,
    state: StateDir,
    challenges: Challenges,
    desk: Desk,
    local_ca: LocalCa,
    commands: mpsc::Receiver<Command>,
    lock: Option<WriterLock>,
    try_lock_at: OffsetDateTime,
    /// How often the lock's holder is still expected to let it go at once.
    hasty_tries: u32,
    told_of_writer: bool,
    sweep_at: OffsetDateTime,
    /// `None`: before the first configuration, or where it cannot be used.
    dns: Option<Arc<DnsChallenges>>,
    dns_claims: dns::Claims,
    internal_names: Arc<Vec<Name>>,
    jobs: JoinSet<Done>,
    looks: JoinSet<Checked>,
    running: HashMap<tokio::task::Id, Running>,
}

impl Worker {
    /// Prepares a worker; nothing is read, written or sent before [`Worker::run`].
    pub fn new(
        assignment: Assignment,
        state: StateDir,
        challenges: Challenges,
        surroundings: Surroundings,
    ) -> (Worker, WorkerHandle) {
        let (handle, commands) = WorkerHandle::new();
        let (statuses, lanes) = (handle.statuses.clone(), handle.lanes.clone());
        let mut desk = Desk::new(surroundings, statuses, lanes);
        desk.trouble = handle.trouble.clone();
        let worker = Worker {
            local_ca: LocalCa::new(&state),
            assignment,
            state,
            challenges,
            desk,
            commands,
            lock: None,
            try_lock_at: OffsetDateTime::UNIX_EPOCH,
            hasty_tries: 0,
            told_of_writer: false,
            sweep_at: OffsetDateTime::UNIX_EPOCH,
            dns: None,
            dns_claims: dns::Claims::default(),
            internal_names: Arc::default(),
            jobs: JoinSet::new(),
            looks: JoinSet::new(),
            running: HashMap::new(),
        };
        (worker, handle)
    }

    /// Whether it takes over from a process that has the lock, and lets it go soon: who waits for a
    /// name meanwhile goes on waiting.
    pub fn taking_over(mut self, takes_over: bool) -> Worker {
        self.hasty_tries = if takes_over { SUCCESSOR_LOCK_TRIES } else { 0 };
        self.desk.takes_over = takes_over;
        self
    }

    /// Runs until `shutdown`. What is in flight then is given up cleanly: recorded as cancelled,
    /// and resumed by the next start.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let subscribe = self.desk.surroundings.swaps.clone();
        let mut swaps = subscribe.map(|subscribe| subscribe());
        self.take_lock().await;
        self.configure(None).await;
        loop {
            self.take_lock().await;
            self.date_records(clock::now()).await;
            for start in self.desk.turn(clock::now()) {
                self.start(start);
            }
            self.look_for_revocations();
            self.sweep_if_due(clock::now()).await;
            let sleep = self.sleep(clock::now());
            tokio::select! {
                () = shutdown.cancelled() => break,
                Some(done) = self.jobs.join_next_with_id(), if !self.jobs.is_empty() => {
                    self.job_ended(done);
                }
                Some(looked) = self.looks.join_next(), if !self.looks.is_empty() => {
                    self.looked(looked);
                }
                Some(command) = self.commands.recv() => self.obey(command).await,
                names = next_swap(&mut swaps) => match names {
                    Some(names) => self.desk.names_changed(&names),
                    None => self.desk.names_missed(),
                },
                () = tokio::time::sleep(sleep) => {}
            }
        }
        self.stop().await;
    }

    /// Until the next turn; a minute at most, see the module.
    fn sleep(&self, now: OffsetDateTime) -> StdDuration {
        let lock_at = (!self.desk.is_writer).then_some(self.try_lock_at);
        let next = [self.desk.wake_at(now), lock_at];
        let wake_at = next.into_iter().flatten().min().unwrap_or(now + MAX_SLEEP);
        let sleep = (wake_at - now).clamp(Duration::ZERO, MAX_SLEEP);
        StdDuration::try_from(sleep).unwrap_or_default()
    }

    async fn stop(&mut self) {
        self.jobs.shutdown().await;
        self.looks.shutdown().await;
        if let Some(dns) = &self.dns {
            dns.finish(DNS_REMOVAL_LIMIT).await;
        }
        let of_subjects = self.desk.entries().filter_map(|(_, it)| it.ledger.clone());
        let authorities = self.desk.authorities.iter();
        let of_authorities = authorities.map(|authority| Arc::clone(&authority.ledger));
        record_cancelled(of_subjects.chain(of_authorities).collect()).await;
    }

    /// Tries for the writer lock, every few seconds. With it, everything is read again: whoever had
    /// it before may have written.
    async fn take_lock(&mut self) {
        let now = clock::now();
        // A date further away than that was made by another clock.
        let is_early = now < self.try_lock_at && self.try_lock_at - now <= LOCK_INTERVAL;
        if self.lock.is_some() || is_early {
            return;
        }
        let waited = self.try_lock_at != OffsetDateTime::UNIX_EPOCH;
        self.try_lock_at = now + self.lock_interval();
        let state = self.state.clone();
        match blocking(move || state.try_lock_writer()).await {
            Ok(Some(lock)) => {
                self.tell_of_trouble(None);
                self.lock = Some(lock);
                self.desk.is_writer = true;
                self.desk.takes_over = false;
                if waited {
                    tracing::info!("this process orders certificates now");
                    self.forget_records().await;
                    self.put_in_place().await;
                }
                let ids: Vec<u64> = self.desk.entries().map(|(id, _)| id).collect();
                self.load(&ids).await;
                self.remove_left_over_records().await;
            }
            Ok(None) => {
                self.tell_of_trouble(None);
                self.tell_of_writer();
            }
            Err(error) => self.tell_of_trouble(Some(error.to_string())),
        }
    }

    /// Says once why nothing can be written, and when that is another reason than before.
    fn tell_of_trouble(&self, trouble: Option<String>) {
        let before = std::mem::replace(&mut *lock(&self.desk.trouble), trouble.clone());
        match trouble {
            Some(error) if before.as_ref() != Some(&error) => {
                tracing::error!(error, "no certificate can be ordered or renewed");
            }
            None if before.is_some() => tracing::info!("the state directory can be written to"),
            _ => {}
        }
    }

    /// A clock that was set moves the dates of what was asked of the CAs.
    async fn date_records(&self, now: OffsetDateTime) {
        let authorities = self.desk.authorities.iter();
        let misdated = authorities.filter(|it| it.history.is_misdated(now));
        let misdated: Vec<Arc<Authority>> = misdated.cloned().collect();
        if self.lock.is_none() || misdated.is_empty() {
            return;
        }
        blocking(move || {
            for authority in misdated {
                if let Err(error) = authority.history.date(now) {
                    tracing::warn!(%error, "cannot note that the clock was set");
                }
            }
        })
        .await;
    }

    /// Says once that somebody else orders, unless that is about to end.
    fn tell_of_writer(&mut self) {
        if self.desk.takes_over || std::mem::replace(&mut self.told_of_writer, true) {
            return;
        }
        tracing::warn!(
            state = %self.state.root().display(),
            "another process orders certificates into this state directory; this one serves them"
        );
    }

    /// Ledgers and histories were read when another process wrote them: they are read again, so that
    /// what it has asked of a CA counts, and is not written over.
    async fn forget_records(&mut self) {
        self.desk.forget_ledgers();
        self.desk.set_authorities(Vec::new());
        self.open_authorities().await;
    }

    fn lock_interval(&mut self) -> Duration {
        let left = self.hasty_tries.checked_sub(1);
        self.hasty_tries = left.unwrap_or_default();
        self.desk.takes_over &= left.is_some();
        match left {
            Some(_) => SUCCESSOR_LOCK_INTERVAL,
            None => LOCK_INTERVAL,
        }
    }

    /// Makes authorities and entries fit the assignment, which was `before`. Entries that stay keep
    /// what they know, running jobs among it.
    async fn configure(&mut self, before: Option<Assignment>) {
        let known = self.desk.settings();
        self.open_authorities().await;
        self.open_dns().await;
        if before.is_some_and(|before| before.dns != self.assignment.dns) {
            self.dns_has_changed().await;
        }
        let has_changed = self.desk.settings_differ_from(&known);
        let demanded = self.still_demanded();
        let mut old = self.desk.take_entries();
        let wanted = self.assignment.subjects.clone();
        let internal = wanted
            .iter()
            .filter(|it| it.may_be_issued_by(IssuerKind::Internal));
        self.internal_names = Arc::new(internal.flat_map(|it| it.names.clone()).collect());
        let mut new = Vec::new();
        let wanted = wanted.into_iter().map(|subject| (subject, false));
        let demanded = demanded.into_iter().map(|subject| (subject, true));
        for (subject, on_demand) in wanted.chain(demanded) {
            let dir = self.directory(&subject, on_demand);
            match old.remove(&dir) {
                Some(mut entry) if entry.subject == subject => {
                    entry.forget_error_if(has_changed);
                    self.desk.add(entry);
                }
                before => new.push(self.desk.add(Entry {
                    on_demand,
                    ..Entry::new(subject, dir, before)
                })),
            }
        }
        self.give_up(old).await;
        self.put_in_place().await;
        self.load(&new).await;
    }

    /// Ends the orders for what is not configured any more: nobody would serve what they got, and
    /// their answers to the CA would stay up. What somebody has asked for goes on.
    async fn give_up(&mut self, dropped: HashMap<PathBuf, Entry>) {
        for running in self.running.values_mut() {
            running.given_up = running.lane.is_some() && dropped.contains_key(&running.dir);
            if running.given_up {
                tracing::info!(dir = %running.dir.display(), "no longer configured: its order is given up");
                running.task.abort();
            }
        }
        // They end where they wait next, which is now.
        while self.running.values().any(|running| running.given_up) {
            let Some(ended) = self.jobs.join_next_with_id().await else {
                break;
            };
            self.job_ended(ended);
        }
        record_cancelled(dropped.into_values().filter_map(|it| it.ledger).collect()).await;
    }

    async fn open_authorities(&mut self) {
        let known: HashMap<String, Arc<Authority>> = self
            .desk
            .authorities
            .iter()
            .map(|authority| (slug(authority.url()), Arc::clone(authority)))
            .collect();
        let (state, configs) = (self.state.clone(), self.assignment.authorities.clone());
        let is_writer = self.lock.is_some();
        let opened = blocking(move || {
            let now = clock::now();
            let open = |config: CertificateAuthority| -> Result<Authority, StoreError> {
                if let Some(known) = known.get(&slug(&config.directory)) {
                    return Ok(known.under(&state, config, is_writer, now));
                }
                let opened = Authority::open(&state, config, is_writer, now)?;
                if is_writer {
                    opened.note_settings(now);
                }
                Ok(opened)
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
        self.desk.set_authorities(opened);
    }

    /// What DNS-01 failed with may be healed.
    async fn dns_has_changed(&self) {
        let authorities = self.desk.authorities.clone();
        if self.lock.is_some() {
            blocking(move || {
                let each = authorities.iter().filter(|it| it.proves_by_records());
                each.for_each(|authority| authority.settings_have_changed(clock::now()));
            })
            .await;
        }
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

    fn histories(&self) -> Arc<Histories> {
        let authorities = self.desk.authorities.iter();
        let each = authorities.map(|it| (it.url().to_owned(), Arc::clone(&it.history)));
        Arc::new(each.collect())
    }

    /// Reads what is on disk for these entries; with the lock, finishes what a crash interrupted.
    async fn load(&mut self, ids: &[u64]) {
        let histories = self.lock.is_some().then(|| self.histories());
        let requests: Vec<(u64, Load)> = ids
            .iter()
            .filter_map(|id| {
                let entry = self.desk.entry(*id)?;
                let load = Load {
                    subject: entry.subject.clone(),
                    dir: entry.dir.clone(),
                    ledger: entry.ledger.clone(),
                    histories: histories.clone().filter(|_| !entry.running),
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
            let completed = loaded.completed;
            let Some(entry) = self.desk.entry_mut(id) else {
                continue;
            };
            entry.take_in(loaded);
            let dir = entry.dir.clone();
            if completed {
                (self.desk.surroundings.reload_hint)(dir);
            }
            self.desk.check_at(id, OffsetDateTime::UNIX_EPOCH);
        }
    }
}

/// What runs there has been given up.
async fn record_cancelled(ledgers: Vec<Arc<Ledger>>) {
    blocking(move || {
        for ledger in ledgers {
            if let Err(error) = ledger.cancel_running(clock::now()) {
                tracing::warn!(%error, "cannot record a cancelled attempt");
            }
        }
    })
    .await;
}

/// The names that changed in the live table; `None` where some were missed. Without anybody who
/// tells, never.
async fn next_swap(swaps: &mut Option<broadcast::Receiver<Swapped>>) -> Option<Swapped> {
    loop {
        let Some(receiver) = swaps else {
            return std::future::pending().await;
        };
        match receiver.recv().await {
            Ok(names) => return Some(names),
            Err(RecvError::Lagged(_)) => return None,
            Err(RecvError::Closed) => *swaps = None,
        }
    }
}
