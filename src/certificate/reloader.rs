//! The one path from disk to the live table. A thread of its own looks at every source, reads
//! what changed, verifies it and publishes. It owns the only [`Publisher`]; it never writes a
//! file, never asks a CA, and no handshake ever waits for it (the first load excepted).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use serde::Serialize;
use time::OffsetDateTime;
use tokio::sync::{broadcast, oneshot};

use super::folder::Folder;
use super::generations::Generations;
use super::inventory::{Entry, EntryId, Failure, Inventory};
use super::name::Name;
use super::overdue::HostSet;
use super::table::{LiveCertificate, Publisher, SourceKind, TableReader, live_table};
use super::unit::{Finding, PATIENCE, RECHECK, Task, Unit, Verdict};
use super::watcher::{WatchEvent, Watcher};
use crate::clock;

/// What the reloader looks at, and how often.
#[derive(Clone, Debug)]
pub struct Sources {
    /// Explicit pairs.
    pub pairs: Vec<PairFiles>,
    /// Drop folders.
    pub folders: Vec<PathBuf>,
    /// `certificates/` of the state directory.
    pub generations: Option<PathBuf>,
    /// The name whose certificate is served where none fits.
    pub default_name: Option<Name>,
    /// The hosts for which our own certificate comes before one that is overdue.
    pub takeover: HostSet,
    pub poll_interval: Duration,
    /// Whether file events shorten the wait for the poll.
    pub watch: bool,
}

/// The files of an explicit pair. Both paths are the same for a combined file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PairFiles {
    pub certificate: PathBuf,
    pub private_key: PathBuf,
    /// Its first line opens the private key, or the PKCS#12 file.
    pub password_file: Option<PathBuf>,
}

/// Talks to a running reloader. Cheap to clone.
#[derive(Clone)]
pub struct Reloader {
    wake: Sender<Wake>,
    table: TableReader,
    report: Arc<ArcSwap<Report>>,
    swaps: broadcast::Sender<Swapped>,
}

/// The names that get other certificates since the table was last published.
pub type Swapped = Arc<Vec<Name>>;

/// Swaps that a listener to them may fall behind by before it misses some.
const SWAPS_KEPT: usize = 64;

/// What the reloader knows, for `/status`, `/readyz` and the metrics.
#[derive(Clone)]
pub struct Report {
    pub entries: imbl::OrdMap<EntryId, Arc<Entry>>,
    /// When the reloader last went round.
    pub heartbeat: OffsetDateTime,
    pub loads: u64,
    pub failures: u64,
}

/// One thing that a scan changed.
#[derive(Clone, Debug, Serialize)]
pub struct Change {
    pub certificate: PathBuf,
    pub names: Vec<String>,
    pub result: ChangeResult,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeResult {
    Loaded,
    Replaced,
    Failed,
    Recovered,
    Vanished,
}

enum Wake {
    Event(WatchEvent),
    /// Something was written here: look now.
    Hint(PathBuf),
    Rescan(oneshot::Sender<Vec<Change>>),
    Stop,
}

/// How often the thread goes round even if nothing happens: the heartbeat's interval, and the
/// longest that a wall-clock boundary (an expiry) can be noticed late after a clock step.
const MAX_WAIT: Duration = Duration::from_secs(20);

/// Two readings of a file that just changed have to agree across this pause.
const CONFIRM_AFTER: Duration = Duration::from_millis(25);

/// Events that arrive within this of the first one are handled in one scan.
const GATHER: Duration = Duration::from_millis(10);

impl Reloader {
    /// Starts the thread. It ends when [`stop`](Self::stop) is called.
    pub fn start(sources: Sources) -> std::io::Result<(Reloader, JoinHandle<()>)> {
        let (publisher, table) = live_table(sources.default_name.clone());
        let (wake, inbox) = mpsc::channel();
        let inventory = Inventory::new(sources.default_name.clone()).taking_over(sources.takeover);
        let report = Arc::new(ArcSwap::from_pointee(Report {
            entries: inventory.entries(),
            heartbeat: clock::now(),
            loads: 0,
            failures: 0,
        }));
        let watcher = sources.watch.then(|| {
            let wake = wake.clone();
            // A send fails only after the thread has ended, when events do not matter.
            Watcher::start(move |event| drop(wake.send(Wake::Event(event))))
        });
        let (swaps, _) = broadcast::channel(SWAPS_KEPT);
        let mut thread = Thread {
            pairs: sources.pairs.into_iter().map(pair_unit).collect(),
            folders: sources
                .folders
                .iter()
                .map(|root| Folder::new(root))
                .collect(),
            generations: sources.generations.map(Generations::new),
            inventory,
            publisher,
            report: report.clone(),
            swaps: swaps.clone(),
            watcher: watcher.and_then(started_watcher),
            poll_interval: sources.poll_interval,
            loads: 0,
            failures: 0,
        };
        let handle = std::thread::Builder::new()
            .name("reloader".to_owned())
            .spawn(move || thread.run(&inbox))?;
        Ok((
            Reloader {
                wake,
                table,
                report,
                swaps,
            },
            handle,
        ))
    }

    pub fn table(&self) -> &TableReader {
        &self.table
    }

    pub fn report(&self) -> Arc<Report> {
        self.report.load_full()
    }

    /// Hears of every publication from now on.
    pub fn swaps(&self) -> broadcast::Receiver<Swapped> {
        self.swaps.subscribe()
    }

    /// Looks at everything now and says what changed. `None`: the reloader has stopped.
    pub async fn rescan(&self) -> Option<Vec<Change>> {
        let (answer, changes) = oneshot::channel();
        self.wake.send(Wake::Rescan(answer)).ok()?;
        changes.await.ok()
    }

    /// Says that something was written at or below `path`, so that it is looked at without
    /// waiting for an event or the poll.
    pub fn hint(&self, path: PathBuf) {
        // Fails only after the thread has ended.
        let _ = self.wake.send(Wake::Hint(path));
    }

    pub fn stop(&self) {
        // Fails only after the thread has ended.
        let _ = self.wake.send(Wake::Stop);
    }
}

fn started_watcher(watcher: std::io::Result<Watcher>) -> Option<Watcher> {
    watcher
        .inspect_err(|error| {
            tracing::warn!(%error, "no file events: changes are found by the poll alone");
        })
        .ok()
}

fn pair_unit(files: PairFiles) -> Unit {
    let id = EntryId {
        source: SourceKind::File,
        certificate: Arc::new(files.certificate.clone()),
    };
    Unit::new(id, files.certificate, Some(files.private_key))
        .with_password_file(files.password_file)
}

/// What a scan looks at.
enum Scope {
    All,
    Paths(BTreeSet<PathBuf>),
}

struct Thread {
    pairs: Vec<Unit>,
    folders: Vec<Folder>,
    generations: Option<Generations>,
    inventory: Inventory,
    publisher: Publisher,
    report: Arc<ArcSwap<Report>>,
    swaps: broadcast::Sender<Swapped>,
    watcher: Option<Watcher>,
    poll_interval: Duration,
    loads: u64,
    failures: u64,
}

impl Thread {
    fn run(&mut self, inbox: &Receiver<Wake>) {
        // Watches first: what changes while the first load runs must not be missed.
        self.scan(&Scope::All, time::Duration::ZERO);
        self.publisher.first_load_done();
        self.update_watches();
        let mut last_full = Instant::now();
        // The first look at what changed between the load and the watches.
        let mut pending = Some(Scope::All);
        loop {
            let scope = match pending.take() {
                Some(scope) => scope,
                None => match self.wait(inbox, last_full) {
                    Some(scope) => scope,
                    None => return,
                },
            };
            let full = matches!(scope, Scope::All);
            self.scan(&scope, PATIENCE);
            if full {
                last_full = Instant::now();
            }
            self.update_watches();
        }
    }

    /// Waits for a reason to look, and returns what to look at; `None` to stop.
    fn wait(&mut self, inbox: &Receiver<Wake>, last_full: Instant) -> Option<Scope> {
        let mut paths = BTreeSet::new();
        loop {
            let poll_in = self.poll_interval.saturating_sub(last_full.elapsed());
            if poll_in.is_zero() {
                return Some(Scope::All);
            }
            let mut wait = poll_in.min(MAX_WAIT);
            let recheck = self.needs_recheck();
            if recheck {
                wait = wait.min(RECHECK.unsigned_abs());
            }
            let retry_at = self.units().filter_map(Unit::retry_at).min();
            if retry_at.is_some_and(|at| at < clock::now()) {
                return Some(Scope::All);
            }
            if let Some(boundary) = self
                .inventory
                .next_boundary()
                .into_iter()
                .chain(retry_at)
                .min()
            {
                let until = boundary - clock::now();
                let until = Duration::try_from(until).unwrap_or(Duration::ZERO);
                // A validity counts whole seconds, both ends included: look just after.
                wait = wait.min(until + Duration::from_millis(1));
            }
            match inbox.recv_timeout(wait) {
                Err(RecvTimeoutError::Disconnected) | Ok(Wake::Stop) => return None,
                Err(RecvTimeoutError::Timeout) if recheck => return Some(Scope::Paths(paths)),
                Err(RecvTimeoutError::Timeout) => self.pass_time(),
                Ok(Wake::Rescan(answer)) => self.rescan(answer),
                Ok(Wake::Hint(path)) => {
                    paths.insert(path);
                    return Some(self.gather(inbox, paths));
                }
                Ok(Wake::Event(event)) => {
                    if !self.note(event, &mut paths) {
                        return Some(Scope::All);
                    }
                    if !paths.is_empty() {
                        return Some(self.gather(inbox, paths));
                    }
                }
            }
        }
    }

    /// Takes in the events that follow closely, so that many of them cost one scan.
    fn gather(&mut self, inbox: &Receiver<Wake>, mut paths: BTreeSet<PathBuf>) -> Scope {
        let started = Instant::now();
        while let Ok(wake) = inbox.recv_timeout(GATHER.saturating_sub(started.elapsed())) {
            match wake {
                Wake::Event(event) => {
                    if !self.note(event, &mut paths) {
                        return Scope::All;
                    }
                }
                Wake::Hint(path) => drop(paths.insert(path)),
                Wake::Rescan(answer) => {
                    self.rescan(answer);
                    return Scope::Paths(BTreeSet::new());
                }
                Wake::Stop => break,
            }
        }
        Scope::Paths(paths)
    }

    /// Adds what an event is about to `paths`. `false`: it says that events were lost.
    fn note(&self, event: WatchEvent, paths: &mut BTreeSet<PathBuf>) -> bool {
        match event {
            WatchEvent::Overflow => false,
            WatchEvent::Changed { directory, name } => {
                let path = match name {
                    // A hidden entry is nothing itself, but `..data` turns what is beside it.
                    Some(name) if !name.as_encoded_bytes().starts_with(b"..") => {
                        directory.join(name)
                    }
                    _ => directory.clone(),
                };
                paths.insert(path);
                // The directory may be where links lead; then it stands for its sources.
                paths.extend(
                    self.watcher
                        .iter()
                        .flat_map(|watcher| watcher.stands_for(&directory)),
                );
                true
            }
        }
    }

    /// A rescan on request: the answer is wanted now, so nothing is given time to get better.
    fn rescan(&mut self, answer: oneshot::Sender<Vec<Change>>) {
        let changes = self.scan(&Scope::All, time::Duration::ZERO);
        self.update_watches();
        // Whoever asked may have gone.
        let _ = answer.send(changes);
    }

    /// Choices change with time too.
    fn pass_time(&mut self) {
        let now = clock::now();
        if self.inventory.advance(now) {
            self.publisher.publish(self.inventory.table());
            self.warn_of_expired(now);
        }
        self.publish_report(now);
        self.announce();
    }

    fn warn_of_expired(&self, now: OffsetDateTime) {
        for (_, entry) in &self.inventory.entries() {
            let Some(live) = &entry.live else { continue };
            if now > live.key.not_after() && now - live.key.not_after() < MAX_WAIT * 2 {
                log_expired(live);
            }
        }
    }

    fn scan(&mut self, scope: &Scope, patience: time::Duration) -> Vec<Change> {
        let now = clock::now();
        let mut gone = Vec::new();
        let tasks = self.look(scope, now, &mut gone);
        let findings = examine(tasks, now);
        let mut changes = Vec::new();
        for id in gone {
            if self.inventory.vanished(&id, now) {
                changes.push(vanished(&id));
            }
        }
        for (id, finding) in findings {
            changes.extend(self.apply(&id, finding, patience, now));
        }
        let advanced = self.inventory.advance(now);
        if advanced || !changes.is_empty() {
            self.publisher.publish(self.inventory.table());
        }
        if advanced {
            self.warn_of_expired(now);
        }
        self.publish_report(now);
        self.announce();
        changes
    }

    /// Tells whoever listens what the table that was just published changes.
    fn announce(&mut self) {
        let names = self.inventory.take_changed();
        if !names.is_empty() {
            // Nobody has to listen.
            let _ = self.swaps.send(Arc::new(names));
        }
    }

    fn look(&mut self, scope: &Scope, now: OffsetDateTime, gone: &mut Vec<EntryId>) -> Vec<Task> {
        let mut tasks = Vec::new();
        for unit in &mut self.pairs {
            let sight = unit.stat();
            if unit.look(sight) {
                tasks.push(unit.task(None));
            }
        }
        for folder in &mut self.folders {
            match scope {
                Scope::All => tasks.extend(folder.look_at_all(now, gone)),
                Scope::Paths(paths) => tasks.extend(folder.look(paths, now, gone)),
            }
        }
        if let Some(generations) = &mut self.generations {
            match scope {
                Scope::All => tasks.extend(generations.look_at_all(gone)),
                Scope::Paths(paths) => tasks.extend(generations.look(paths)),
            }
        }
        tasks
    }

    fn unit_mut(&mut self, id: &EntryId) -> Option<&mut Unit> {
        let path = id.certificate.as_path();
        match id.source {
            SourceKind::File => self.pairs.iter_mut().find(|unit| unit.id == *id),
            SourceKind::Folder => self
                .folders
                .iter_mut()
                .filter(|folder| path.starts_with(folder.root()))
                .find_map(|folder| folder.unit_mut(path)),
            SourceKind::Acme | SourceKind::Internal => self.generations.as_mut()?.unit_mut(path),
        }
    }

    fn apply(
        &mut self,
        id: &EntryId,
        finding: Finding,
        patience: time::Duration,
        now: OffsetDateTime,
    ) -> Option<Change> {
        let served = self.inventory.get(id).and_then(|entry| entry.live.clone());
        let key = served.as_ref().map(|live| &live.key);
        let unit = self.unit_mut(id)?;
        let verdict = unit.judge(finding, key, patience, now);
        let seen = unit.take_seen(&verdict);
        let private_key = unit.private_key.as_deref();
        let private_key = private_key.filter(|_| id.source.is_external());
        let private_key = private_key.map(Arc::from);
        match verdict {
            Verdict::Wait => None,
            Verdict::Unchanged => {
                let news = self.inventory.recovered(id, now);
                news.then(|| recovered(id, served.as_deref()))
            }
            Verdict::Vanished => self.inventory.vanished(id, now).then(|| vanished(id)),
            Verdict::Failed { path, cause } => self.fail(id, path, cause, now),
            Verdict::Replace(key) => {
                let live = Arc::new(LiveCertificate {
                    key: *key,
                    source: self.source_of(id),
                    path: id.certificate.as_path().into(),
                    private_key,
                    loaded_at: now,
                });
                self.loads += 1;
                self.inventory.loaded(id, live.clone(), now);
                Some(loaded(&live, served.as_deref(), seen, now))
            }
        }
    }

    /// In the state directory one issuer may follow another.
    fn source_of(&self, id: &EntryId) -> SourceKind {
        match id.source {
            SourceKind::Acme | SourceKind::Internal => {
                super::generations::source_of(&id.certificate)
            }
            source => source,
        }
    }

    fn fail(
        &mut self,
        id: &EntryId,
        path: PathBuf,
        cause: String,
        now: OffsetDateTime,
    ) -> Option<Change> {
        let failure = Failure {
            path: path.clone(),
            cause: cause.clone(),
            since: now,
        };
        if !self.inventory.failed(id, failure, now) {
            return None;
        }
        self.failures += 1;
        let served = self.inventory.get(id).and_then(|entry| entry.live.clone());
        let names = served.as_ref().map_or_else(Vec::new, |live| names_of(live));
        match &served {
            Some(live) => tracing::warn!(
                file = %path.display(), %cause, ?names, serial = live.key.serial(),
                "certificate not taken: the last good one stays in service"
            ),
            None => tracing::warn!(file = %path.display(), %cause, "certificate not loaded"),
        }
        Some(Change {
            certificate: id.certificate.to_path_buf(),
            names,
            result: ChangeResult::Failed,
            serial: None,
            cause: Some(format!("{} {cause}", path.display())),
        })
    }

    fn needs_recheck(&self) -> bool {
        self.units().any(Unit::needs_recheck) || self.folders.iter().any(Folder::has_young_files)
    }

    fn units(&self) -> impl Iterator<Item = &Unit> {
        let folders = self.folders.iter().flat_map(Folder::units);
        let generations = self.generations.iter().flat_map(Generations::units);
        self.pairs.iter().chain(folders).chain(generations)
    }

    fn publish_report(&self, now: OffsetDateTime) {
        self.report.store(Arc::new(Report {
            entries: self.inventory.entries(),
            heartbeat: now,
            loads: self.loads,
            failures: self.failures,
        }));
    }

    fn update_watches(&mut self) {
        let Some(watcher) = &mut self.watcher else {
            return;
        };
        let mut files: Vec<&Path> = Vec::new();
        for unit in &self.pairs {
            files.push(&unit.certificate);
            files.extend(unit.private_key.as_deref());
        }
        let mut directories: BTreeSet<&Path> = BTreeSet::new();
        for folder in &self.folders {
            directories.insert(folder.root());
            directories.extend(folder.directories().iter().map(PathBuf::as_path));
        }
        if let Some(generations) = &self.generations {
            directories.insert(generations.root());
            directories.extend(generations.directories().iter().map(PathBuf::as_path));
        }
        watcher.watch(&directories, &files);
    }
}

/// Reads and verifies. What just changed is read twice, with a pause between, and both readings
/// have to agree.
fn examine(tasks: Vec<Task>, now: OffsetDateTime) -> Vec<(EntryId, Finding)> {
    let mut findings: Vec<(Task, Finding)> = tasks
        .into_iter()
        .map(|task| {
            let finding = task.examine(now);
            (task, finding)
        })
        .collect();
    let in_doubt = |finding: &Finding| matches!(finding, Finding::Good { young: true, .. });
    if findings.iter().any(|(_, finding)| in_doubt(finding)) {
        std::thread::sleep(CONFIRM_AFTER);
        for (task, finding) in &mut findings {
            if in_doubt(finding) {
                confirm(task, finding, now);
            }
        }
    }
    findings
        .into_iter()
        .map(|(task, finding)| (task.id, finding))
        .collect()
}

fn confirm(task: &Task, finding: &mut Finding, now: OffsetDateTime) {
    let second = task.examine(now);
    let agree = match (&*finding, &second) {
        (Finding::Good { digest: a, .. }, Finding::Good { digest: b, .. }) => a == b,
        _ => false,
    };
    if !agree {
        *finding = Finding::Bad {
            path: task.certificate.clone(),
            cause: super::observe::ReadError::Unstable.to_string(),
        };
    }
}

fn names_of(live: &LiveCertificate) -> Vec<String> {
    live.key.names().iter().map(Name::to_string).collect()
}

fn loaded(
    live: &LiveCertificate,
    old: Option<&LiveCertificate>,
    seen: Option<Duration>,
    now: OffsetDateTime,
) -> Change {
    let names = names_of(live);
    tracing::info!(
        ?names,
        serial = live.key.serial(),
        old_serial = old.map(|old| old.key.serial()),
        fingerprint = %live.key.fingerprint(),
        issuer = live.key.issuer(),
        not_after = %clock::rfc3339(live.key.not_after()),
        source = live.source.as_str(),
        file = %live.path.display(),
        seen_ms = seen.map(|seen| u64::try_from(seen.as_millis()).unwrap_or(u64::MAX)),
        "{}", if old.is_some() { "certificate replaced" } else { "certificate loaded" }
    );
    if !live.key.is_valid_at(now) {
        log_expired(live);
    }
    Change {
        certificate: live.path.to_path_buf(),
        names,
        result: if old.is_some() {
            ChangeResult::Replaced
        } else {
            ChangeResult::Loaded
        },
        serial: Some(live.key.serial().to_owned()),
        cause: None,
    }
}

fn log_expired(live: &LiveCertificate) {
    tracing::error!(
        names = ?names_of(live),
        file = %live.path.display(),
        not_before = %clock::rfc3339(live.key.not_before()),
        not_after = %clock::rfc3339(live.key.not_after()),
        "certificate is not valid now; it is served where nothing better is there"
    );
}

fn recovered(id: &EntryId, live: Option<&LiveCertificate>) -> Change {
    tracing::info!(file = %id.certificate.display(), "certificate on disk is again the one in service");
    Change {
        certificate: id.certificate.to_path_buf(),
        names: live.map_or_else(Vec::new, names_of),
        result: ChangeResult::Recovered,
        serial: live.map(|live| live.key.serial().to_owned()),
        cause: None,
    }
}

fn vanished(id: &EntryId) -> Change {
    tracing::warn!(
        file = %id.certificate.display(),
        "certificate is gone from disk; it stays in service where nothing better is there"
    );
    Change {
        certificate: id.certificate.to_path_buf(),
        names: Vec::new(),
        result: ChangeResult::Vanished,
        serial: None,
        cause: None,
    }
}
