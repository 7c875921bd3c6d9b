//! The one path from disk to the live table. A thread of its own looks at every source, reads
//! what changed, verifies it and publishes. It owns the only [`Publisher`]; it never writes a
//! file, never asks a CA, and no handshake ever waits for it (the first load excepted).

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use serde::Serialize;
use time::OffsetDateTime;
use tokio::sync::{broadcast, oneshot};

use super::certified_key::CertifiedKey;
use super::folder::{FileReading, Folder, ToRead};
use super::generations::Generations;
use super::inventory::{Entry, EntryId, Failure, Inventory};
use super::name::Name;
use super::overdue::HostSet;
use super::parallel;
use super::table::{LiveCertificate, Publisher, SourceKind, TableReader, live_table};
use super::unit::{Finding, PATIENCE, RECHECK, Replacement, Task, Unit, Verdict};
use super::watcher::{WatchEvent, Watched, Watcher};
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

impl Sources {
    /// Events name absolute paths, so the sources have to, too.
    fn absolute(self) -> Sources {
        let pair = |pair: PairFiles| PairFiles {
            certificate: absolute(pair.certificate),
            private_key: absolute(pair.private_key),
            password_file: pair.password_file.map(absolute),
        };
        Sources {
            pairs: self.pairs.into_iter().map(pair).collect(),
            folders: self.folders.into_iter().map(absolute).collect(),
            generations: self.generations.map(absolute),
            ..self
        }
    }
}

fn absolute(path: PathBuf) -> PathBuf {
    std::path::absolute(&path).unwrap_or(path)
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
    pub certificate: Arc<Path>,
    pub names: Vec<String>,
    pub result: ChangeResult,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// What was loaded.
    #[serde(skip)]
    pub swap: Option<Swap>,
}

/// A certificate that was loaded.
#[derive(Clone, Debug)]
pub struct Swap {
    pub live: Arc<LiveCertificate>,
    /// What it replaced.
    pub old: Option<Arc<LiveCertificate>>,
    /// From the first sight of the change to the swap.
    pub seen: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeResult {
    Loaded,
    Replaced,
    Failed,
    Recovered,
    Vanished,
    /// It was taken out of the configuration.
    Removed,
}

enum Wake {
    Event(WatchEvent),
    /// Something was written here: look now.
    Hint(PathBuf),
    Rescan(oneshot::Sender<Vec<Change>>),
    /// Look at these from now on. The first sender is for the events of a watcher.
    Reconfigure(Box<Sources>, Sender<Wake>, oneshot::Sender<Vec<Change>>),
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
        let (reloader, idle) = Reloader::prepare(sources);
        Ok((reloader, idle.start()?))
    }

    /// Everything but the thread. What is asked of the reloader before that runs is done then.
    pub fn prepare(sources: Sources) -> (Reloader, IdleReloader) {
        let sources = sources.absolute();
        let (publisher, table) = live_table(sources.default_name.clone());
        let (wake, inbox) = mpsc::channel();
        let inventory = Inventory::new(sources.default_name.clone()).taking_over(sources.takeover);
        let report = Arc::new(ArcSwap::from_pointee(Report {
            entries: inventory.entries(),
            heartbeat: clock::now(),
            loads: 0,
            failures: 0,
        }));
        let (swaps, _) = broadcast::channel(SWAPS_KEPT);
        let thread = Thread {
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
            watcher: None,
            watch: sources.watch,
            swaps: swaps.clone(),
            poll_interval: sources.poll_interval,
            pairs_changed: true,
            last_full: Instant::now(),
            full_interval: sources.poll_interval,
            loads: 0,
            failures: 0,
        };
        let idle = IdleReloader {
            thread,
            inbox,
            wake: wake.clone(),
        };
        let reloader = Reloader {
            wake,
            table,
            report,
            swaps,
        };
        (reloader, idle)
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

    /// Looks at other sources from now on, and says what changed: certificates of new sources are
    /// loaded, those of sources that are no longer named are not served any more. What is named
    /// before and after keeps its state; the state directory cannot be changed. `None`: the
    /// reloader has stopped.
    pub async fn reconfigure(&self, sources: Sources) -> Option<Vec<Change>> {
        let (answer, changes) = oneshot::channel();
        let events = self.wake.clone();
        self.wake
            .send(Wake::Reconfigure(Box::new(sources), events, answer))
            .ok()?;
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

/// A reloader whose thread does not run yet. For a process that forks between its set-up and its
/// service: no thread would live on.
pub struct IdleReloader {
    thread: Thread,
    inbox: Receiver<Wake>,
    wake: Sender<Wake>,
}

impl IdleReloader {
    /// Looks at the generations in this directory as well, as [`Sources::generations`] says.
    pub fn add_generations(&mut self, directory: PathBuf) {
        self.thread.generations = Some(Generations::new(absolute(directory)));
    }

    /// Starts the thread, and the one that waits for file events.
    pub fn start(self) -> std::io::Result<JoinHandle<()>> {
        let IdleReloader {
            mut thread,
            inbox,
            wake,
        } = self;
        thread.watcher = thread.watch.then(|| start_watcher(wake)).flatten();
        std::thread::Builder::new()
            .name("reloader".to_owned())
            .spawn(move || thread.run(&inbox))
    }
}

fn start_watcher(wake: Sender<Wake>) -> Option<Watcher> {
    // A send fails only after the thread has ended, when events do not matter.
    Watcher::start(move |event| drop(wake.send(Wake::Event(event))))
        .inspect_err(|error| {
            tracing::warn!(%error, "no file events: changes are found by the poll alone");
        })
        .ok()
}

fn pair_unit(files: PairFiles) -> Unit {
    let id = EntryId {
        source: SourceKind::File,
        certificate: files.certificate.into(),
    };
    Unit::new(id, Some(files.private_key.into())).with_password_file(files.password_file)
}

/// What a scan looks at.
enum Scope {
    All,
    Paths(BTreeSet<PathBuf>),
}

/// How many files are read, or pairs examined, before what they hold is published. Small enough
/// for the first handshakes of a bulk load not to wait, large enough for all cores to have work.
const CHUNK: usize = 1024;

/// A scan of everything may take this share of one core's time where events are to be relied on.
/// (The poll is then a second look at what events have said already.)
const FULL_SCAN_SHARE: u32 = 200;

/// However expensive a scan of everything is, it is not put off for longer.
const MAX_FULL_SCAN_INTERVAL: Duration = Duration::from_secs(600);

/// More changes than this in one scan are logged as one line; each for itself at debug level.
const LOGGED_ONE_BY_ONE: usize = 50;

struct Thread {
    pairs: Vec<Unit>,
    folders: Vec<Folder>,
    generations: Option<Generations>,
    inventory: Inventory,
    publisher: Publisher,
    report: Arc<ArcSwap<Report>>,
    swaps: broadcast::Sender<Swapped>,
    /// Once started it stays: its thread cannot be ended. Without `watch` it watches nothing.
    watcher: Option<Watcher>,
    watch: bool,
    poll_interval: Duration,
    /// Whether an explicit pair changed since the watches were brought up to date.
    pairs_changed: bool,
    last_full: Instant,
    full_interval: Duration,
    loads: u64,
    failures: u64,
}

/// One scan under way.
struct Scan {
    now: OffsetDateTime,
    patience: time::Duration,
    changes: Vec<Change>,
    unpublished: bool,
}

impl Thread {
    fn run(&mut self, inbox: &Receiver<Wake>) {
        let started = Instant::now();
        let changes = self.scan(&Scope::All, time::Duration::ZERO);
        self.publisher.first_load_done();
        let loaded = changes
            .iter()
            .filter(|change| change.result == ChangeResult::Loaded);
        tracing::info!(
            certificates = loaded.count(),
            failed = self.failures,
            took_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
            "first load done"
        );
        self.update_watches(true);
        while let Some(scope) = self.wait(inbox) {
            self.scan(&scope, PATIENCE);
            self.update_watches(matches!(scope, Scope::All));
        }
    }

    /// Waits for a reason to look, and returns what to look at; `None` to stop.
    fn wait(&mut self, inbox: &Receiver<Wake>) -> Option<Scope> {
        let mut paths = BTreeSet::new();
        loop {
            let poll_in = self.full_interval.saturating_sub(self.last_full.elapsed());
            if poll_in.is_zero() {
                return Some(Scope::All);
            }
            let mut wait = poll_in.min(MAX_WAIT);
            let recheck = self.needs_recheck();
            if recheck {
                wait = wait.min(RECHECK.unsigned_abs());
            }
            let retry_at = self.retry_at();
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
                Ok(Wake::Reconfigure(sources, events, answer)) => {
                    self.obey(*sources, events, answer);
                }
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
                Wake::Reconfigure(sources, events, answer) => {
                    self.obey(*sources, events, answer);
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
        self.update_watches(true);
        // Whoever asked may have gone.
        let _ = answer.send(changes);
    }

    fn obey(
        &mut self,
        sources: Sources,
        events: Sender<Wake>,
        answer: oneshot::Sender<Vec<Change>>,
    ) {
        if sources.watch && self.watcher.is_none() {
            self.watcher = start_watcher(events);
        }
        let changes = self.reconfigure(sources);
        // Whoever asked may have gone.
        let _ = answer.send(changes);
    }

    /// Goes on with other sources. What is named before and after keeps its state.
    fn reconfigure(&mut self, sources: Sources) -> Vec<Change> {
        self.poll_interval = sources.poll_interval;
        self.watch = sources.watch;
        self.inventory.set_default(sources.default_name);
        self.inventory.set_takeover(sources.takeover, clock::now());
        let mut pairs: BTreeMap<EntryId, Unit> = std::mem::take(&mut self.pairs)
            .into_iter()
            .map(|unit| (unit.id.clone(), unit))
            .collect();
        self.pairs = sources
            .pairs
            .into_iter()
            .map(pair_unit)
            .map(|new| match pairs.remove(&new.id) {
                Some(old) if old.has_files_of(&new) => old,
                _ => new,
            })
            .collect();
        let mut folders: BTreeMap<PathBuf, Folder> = std::mem::take(&mut self.folders)
            .into_iter()
            .map(|folder| (folder.root().to_owned(), folder))
            .collect();
        self.folders = sources
            .folders
            .iter()
            .map(|root| folders.remove(root).unwrap_or_else(|| Folder::new(root)))
            .collect();
        // What comes first, then what goes: a certificate that moved is served all the time.
        let mut changes = self.scan(&Scope::All, time::Duration::ZERO);
        let now = clock::now();
        changes.extend(self.take_out_unconfigured(now));
        self.publisher.publish(self.inventory.table());
        self.publish_report(now);
        self.announce();
        self.update_watches(true);
        changes
    }

    /// Also what vanished from a folder and is served still belongs to that folder.
    fn take_out_unconfigured(&mut self, now: OffsetDateTime) -> Vec<Change> {
        let pairs: BTreeSet<&EntryId> = self.pairs.iter().map(|unit| &unit.id).collect();
        let is_configured = |id: &EntryId| match id.source {
            SourceKind::File => pairs.contains(id),
            SourceKind::Folder => self
                .folders
                .iter()
                .any(|folder| folder.reaches(&id.certificate)),
            SourceKind::Acme | SourceKind::Internal => true,
        };
        let entries = self.inventory.entries();
        let gone: Vec<&EntryId> = entries.keys().filter(|id| !is_configured(id)).collect();
        gone.into_iter()
            .filter_map(|id| self.take_out(id, now))
            .collect()
    }

    fn take_out(&mut self, id: &EntryId, now: OffsetDateTime) -> Option<Change> {
        let names = self
            .inventory
            .get(id)?
            .live
            .as_deref()
            .map_or_else(Vec::new, names_of);
        self.inventory.remove(id, now);
        tracing::info!(
            file = %id.certificate.display(), ?names,
            "certificate is no longer configured: it is not served any more"
        );
        Some(Change {
            certificate: id.certificate.clone(),
            names,
            result: ChangeResult::Removed,
            serial: None,
            cause: None,
            swap: None,
        })
    }

    /// Choices change with time too.
    fn pass_time(&mut self) {
        let now = clock::now();
        let passed = self.inventory.advance(now);
        if !passed.is_empty() {
            self.publisher.publish(self.inventory.table());
            self.warn_of_expired(&passed, now);
        }
        self.publish_report(now);
        self.announce();
    }

    fn warn_of_expired(&self, passed: &[EntryId], now: OffsetDateTime) {
        let entries = passed.iter().filter_map(|id| self.inventory.get(id));
        for live in entries.filter_map(|entry| entry.live.as_ref()) {
            if now > live.key.not_after() {
                log_expired(live);
            }
        }
    }

    /// Looks, reads, verifies and publishes.
    fn scan(&mut self, scope: &Scope, patience: time::Duration) -> Vec<Change> {
        let started = Instant::now();
        let mut scan = Scan {
            now: clock::now(),
            patience,
            changes: Vec::new(),
            unpublished: false,
        };
        self.scan_pairs(&mut scan);
        self.scan_generations(scope, &mut scan);
        for index in 0..self.folders.len() {
            self.scan_folder(index, scope, &mut scan);
        }
        let passed = self.inventory.advance(scan.now);
        scan.unpublished |= !passed.is_empty();
        self.publish(&mut scan);
        self.warn_of_expired(&passed, scan.now);
        self.publish_report(scan.now);
        log_changes(&scan.changes);
        if matches!(scope, Scope::All) {
            self.last_full = Instant::now();
            self.full_interval = self.pace(started.elapsed());
        }
        self.announce();
        scan.changes
    }

    /// Tells whoever listens what the tables that were just published change.
    fn announce(&mut self) {
        let names = self.inventory.take_changed();
        if !names.is_empty() {
            // Nobody has to listen.
            let _ = self.swaps.send(Arc::new(names));
        }
    }

    /// How long until the next scan of everything, if one takes this long.
    fn pace(&self, took: Duration) -> Duration {
        let watcher = self.watcher.as_ref().filter(|_| self.watch);
        let relied_on = watcher.is_some_and(Watcher::is_reliable);
        if !relied_on {
            return self.poll_interval;
        }
        let paced = (took * FULL_SCAN_SHARE).min(MAX_FULL_SCAN_INTERVAL);
        self.poll_interval.max(paced)
    }

    fn scan_pairs(&mut self, scan: &mut Scan) {
        let mut tasks = Vec::new();
        for unit in &mut self.pairs {
            let sight = unit.stat();
            if unit.look(sight) {
                tasks.push(unit.task(None));
            }
        }
        // Their links may lead elsewhere now.
        self.pairs_changed |= !tasks.is_empty();
        self.examine(tasks, scan);
    }

    fn scan_generations(&mut self, scope: &Scope, scan: &mut Scan) {
        let Some(generations) = &mut self.generations else {
            return;
        };
        let mut gone = Vec::new();
        let tasks = match scope {
            Scope::All => generations.look_at_all(&mut gone),
            Scope::Paths(paths) => generations.look(paths),
        };
        self.gone(gone, scan);
        self.examine(tasks, scan);
    }

    fn scan_folder(&mut self, index: usize, scope: &Scope, scan: &mut Scan) {
        let folder = &mut self.folders[index];
        let to_read = match scope {
            Scope::All => folder.survey_all(),
            Scope::Paths(paths) => folder.survey(paths),
        };
        let now = scan.now;
        let mut gone = Vec::new();
        let mut heard = 0;
        let mut rest = to_read.into_iter();
        while !rest.as_slice().is_empty() {
            let waiting = rest.as_mut_slice();
            self.publisher
                .bring_forward(waiting, &mut heard, |file: &ToRead| &file.path);
            let part = rest.by_ref().take(CHUNK).collect();
            let readings = parallel::map(part, |file| FileReading::read(file, now));
            let folder = &mut self.folders[index];
            folder.take_in(readings);
            let tasks = folder.due(false, &mut gone);
            self.examine(tasks, scan);
        }
        let tasks = self.folders[index].due(true, &mut gone);
        self.gone(gone, scan);
        self.examine(tasks, scan);
    }

    fn gone(&mut self, gone: Vec<EntryId>, scan: &mut Scan) {
        for id in gone {
            if self.inventory.vanished(&id, scan.now) {
                scan.changes.push(vanished(&id));
                scan.unpublished = true;
            }
        }
    }

    /// Reads and verifies, a chunk at a time, and publishes each.
    fn examine(&mut self, tasks: Vec<Task>, scan: &mut Scan) {
        let mut heard = 0;
        let mut rest = tasks.into_iter();
        while !rest.as_slice().is_empty() {
            if rest.len() > CHUNK {
                let waiting = rest.as_mut_slice();
                self.publisher
                    .bring_forward(waiting, &mut heard, |task: &Task| &task.id.certificate);
            }
            let part = rest.by_ref().take(CHUNK).collect();
            for (id, finding) in examine(part, scan.now) {
                if let Some(change) = self.apply(&id, finding, scan) {
                    scan.changes.push(change);
                    scan.unpublished = true;
                }
            }
            self.publish(scan);
        }
    }

    fn publish(&mut self, scan: &mut Scan) {
        if std::mem::take(&mut scan.unpublished) {
            self.publisher.publish(self.inventory.table());
        }
    }

    fn judge(
        &mut self,
        id: &EntryId,
        finding: Finding,
        served: Option<&CertifiedKey>,
        scan: &Scan,
    ) -> Option<Verdict> {
        let (patience, now) = (scan.patience, scan.now);
        let path = &id.certificate;
        match id.source {
            SourceKind::File => {
                let unit = self.pairs.iter_mut().find(|unit| unit.id == *id)?;
                Some(unit.judge(finding, served, patience, now))
            }
            SourceKind::Folder => self
                .folders
                .iter_mut()
                .find(|folder| path.starts_with(folder.root()) && folder.has_unit(path))?
                .judge(path, finding, served, patience, now),
            SourceKind::Acme | SourceKind::Internal => self
                .generations
                .as_mut()?
                .judge(path, finding, served, patience, now),
        }
    }

    fn apply(&mut self, id: &EntryId, finding: Finding, scan: &Scan) -> Option<Change> {
        let now = scan.now;
        let served = self.inventory.get(id).and_then(|entry| entry.live.clone());
        let key = served.as_ref().map(|live| &live.key);
        match self.judge(id, finding, key, scan)? {
            Verdict::Wait => None,
            Verdict::Unchanged => {
                let news = self.inventory.recovered(id, now);
                news.then(|| recovered(id, served.as_deref()))
            }
            Verdict::Vanished => self.inventory.vanished(id, now).then(|| vanished(id)),
            Verdict::Failed { path, cause } => self.fail(id, path, cause, now),
            Verdict::Replace(Replacement {
                key,
                changed_at,
                private_key,
                seen,
            }) => {
                let live = Arc::new(LiveCertificate {
                    key: *key,
                    source: self.source_of(id),
                    path: id.certificate.clone(),
                    private_key,
                    loaded_at: now,
                    changed_at,
                });
                self.loads += 1;
                self.inventory.loaded(id, live.clone(), now);
                Some(loaded(live, served, seen))
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
            certificate: id.certificate.clone(),
            names,
            result: ChangeResult::Failed,
            serial: None,
            cause: Some(format!("{} {cause}", path.display())),
            swap: None,
        })
    }

    fn needs_recheck(&self) -> bool {
        self.pairs.iter().any(Unit::needs_recheck)
            || self.folders.iter().any(Folder::needs_recheck)
            || self
                .generations
                .as_ref()
                .is_some_and(Generations::needs_recheck)
    }

    fn retry_at(&self) -> Option<OffsetDateTime> {
        let pairs = self.pairs.iter().filter_map(Unit::retry_at);
        pairs
            .chain(self.folders.iter().filter_map(Folder::retry_at))
            .min()
    }

    fn publish_report(&self, now: OffsetDateTime) {
        self.report.store(Arc::new(Report {
            entries: self.inventory.entries(),
            heartbeat: now,
            loads: self.loads,
            failures: self.failures,
        }));
    }

    /// Watches what there is now: after a scan of everything, and whenever directories or links
    /// came or went.
    fn update_watches(&mut self, full: bool) {
        let changed = self.folders.iter_mut().map(Folder::take_shape_changed);
        let changed = changed.fold(false, |any, one| any | one);
        let generations = self.generations.as_mut();
        let changed = generations.is_some_and(Generations::take_shape_changed) | changed;
        let changed = std::mem::take(&mut self.pairs_changed) | changed;
        let Some(watcher) = self.watcher.as_mut().filter(|_| full || changed) else {
            return;
        };
        if !self.watch {
            watcher.watch(&Watched::default());
            return;
        }
        let mut wanted = Watched::default();
        for unit in &self.pairs {
            wanted.files.push(&unit.id.certificate);
            wanted.files.extend(unit.private_key.as_deref());
            wanted.files.extend(unit.password_file());
        }
        for folder in &self.folders {
            wanted.directories.push(folder.root());
            wanted
                .directories
                .extend(folder.directories().iter().map(PathBuf::as_path));
            wanted
                .links
                .extend(folder.links().iter().map(PathBuf::as_path));
        }
        if let Some(generations) = &self.generations {
            wanted.directories.push(generations.root());
            wanted
                .directories
                .extend(generations.directories().iter().map(PathBuf::as_path));
        }
        watcher.watch(&wanted);
    }
}

/// Reads and verifies. What just changed is read twice, with a pause between, and both readings
/// have to agree.
fn examine(tasks: Vec<Task>, now: OffsetDateTime) -> Vec<(EntryId, Finding)> {
    let mut findings = parallel::map(tasks, |task| {
        let finding = task.examine(now);
        (task, finding)
    });
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
    let second = task.examine_afresh(now);
    let agree = match (&*finding, &second) {
        (Finding::Good { digest: a, .. }, Finding::Good { digest: b, .. }) => a == b,
        _ => false,
    };
    if !agree {
        *finding = Finding::Bad {
            path: task.id.certificate.to_path_buf(),
            cause: super::observe::ReadError::Unstable.to_string(),
        };
    }
}

fn names_of(live: &LiveCertificate) -> Vec<String> {
    live.key.names().iter().map(Name::to_string).collect()
}

fn loaded(
    live: Arc<LiveCertificate>,
    old: Option<Arc<LiveCertificate>>,
    seen: Option<Duration>,
) -> Change {
    let result = match old {
        Some(_) => ChangeResult::Replaced,
        None => ChangeResult::Loaded,
    };
    Change {
        certificate: live.path.clone(),
        names: names_of(&live),
        result,
        serial: Some(live.key.serial().to_owned()),
        cause: None,
        swap: Some(Swap { live, old, seen }),
    }
}

/// What was loaded, one line each; in a bulk load, one line for all.
fn log_changes(changes: &[Change]) {
    let loads = changes.iter().filter_map(|change| change.swap.as_ref());
    let bulk = changes.len() > LOGGED_ONE_BY_ONE;
    for swap in loads.clone() {
        let live = &swap.live;
        if !live.key.is_valid_at(live.loaded_at) {
            log_expired(live);
        }
        if bulk {
            tracing::debug!(names = ?names_of(live), file = %live.path.display(), "certificate loaded");
        } else {
            log_load(swap);
        }
    }
    if bulk {
        tracing::info!(
            certificates = loads.count(),
            "certificates loaded or replaced"
        );
    }
}

fn log_load(Swap { live, old, seen }: &Swap) {
    let old = old.as_ref();
    tracing::info!(
        names = ?names_of(live),
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
    for note in live.key.chain_notes() {
        tracing::warn!(file = %live.path.display(), "{note}");
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
        certificate: id.certificate.clone(),
        names: live.map_or_else(Vec::new, names_of),
        result: ChangeResult::Recovered,
        serial: live.map(|live| live.key.serial().to_owned()),
        cause: None,
        swap: None,
    }
}

fn vanished(id: &EntryId) -> Change {
    tracing::warn!(
        file = %id.certificate.display(),
        "certificate is gone from disk; it stays in service where nothing better is there"
    );
    Change {
        certificate: id.certificate.clone(),
        names: Vec::new(),
        result: ChangeResult::Vanished,
        serial: None,
        cause: None,
        swap: None,
    }
}
