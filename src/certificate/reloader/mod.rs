//! The one path from disk to the live table. A thread of its own looks at every source, reads
//! what changed, verifies it and publishes. It owns the only [`Publisher`]; it never writes a
//! file, never asks a CA, and no handshake ever waits for it (the first load excepted).

mod change;
mod scan;
mod thread;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use time::OffsetDateTime;
use tokio::sync::{broadcast, oneshot};

pub use self::change::{Change, ChangeResult, Swap};
use self::thread::Thread;
use super::folder::Folder;
use super::generations::Generations;
use super::inventory::{Entry, EntryId, Inventory};
use super::name::Name;
use super::on_demand::{OnDemandCertificates, OnDemandDirectory};
use super::overdue::HostSet;
use super::table::{SourceKind, TableReader, live_table};
use super::unit::Unit;
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
    /// The certificates that are had on demand.
    pub on_demand: Option<OnDemandDirectory>,
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
            on_demand: self.on_demand.map(|it| OnDemandDirectory {
                root: absolute(it.root),
                ..it
            }),
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
    /// `None`: nothing is had on demand.
    pub on_demand: Option<OnDemandReport>,
}

/// What is in memory of the certificates that are had on demand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OnDemandReport {
    pub loaded: usize,
    /// How many had to make room for others.
    pub evictions: u64,
}

enum Wake {
    Event(WatchEvent),
    /// Something was written here: look now.
    Hint(PathBuf),
    /// A client asked for the certificate in this directory: whether it can be served now.
    Load(PathBuf, oneshot::Sender<bool>),
    Rescan(oneshot::Sender<Vec<Change>>),
    /// Look at these from now on. The first sender is for the events of a watcher.
    Reconfigure(Box<Sources>, Sender<Wake>, oneshot::Sender<Vec<Change>>),
    Stop,
}

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
            on_demand: None,
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
            on_demand: sources.on_demand.map(OnDemandCertificates::new),
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
            pause: Box::new(std::thread::sleep),
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

    /// Loads the certificate of a client that asks for it, from its directory below
    /// [`Sources::on_demand`], and says whether it can be served. It is in the live table before
    /// this returns.
    pub async fn load_on_demand(&self, directory: PathBuf) -> bool {
        let (answer, loaded) = oneshot::channel();
        let asked = self.wake.send(Wake::Load(absolute(directory), answer));
        // Fails only after the thread has ended.
        asked.is_ok() && loaded.await.unwrap_or(false)
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

#[cfg(test)]
#[path = "../model_tests/mod.rs"]
mod model_tests;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificate::testing::Request;

    fn sources(pairs: Vec<PairFiles>) -> Sources {
        Sources {
            pairs,
            folders: Vec::new(),
            generations: None,
            on_demand: None,
            default_name: None,
            takeover: HostSet::default(),
            poll_interval: Duration::from_secs(3600),
            watch: false,
        }
    }

    fn wait_until(what: &str, condition: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !condition() {
            assert!(Instant::now() < deadline, "{what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// An event and what follows closely are taken together.
    #[test]
    fn it_stops_right_after_an_event_too() {
        let (reloader, running) = Reloader::start(sources(Vec::new())).unwrap();
        reloader.hint("/nowhere".into());
        reloader.stop();
        wait_until("it goes on", || running.is_finished());
    }

    /// Its private key with it.
    #[test]
    fn what_the_first_load_found_is_freed_once_it_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let files = PairFiles {
            certificate: folder.path().join("c.pem"),
            private_key: folder.path().join("k.pem"),
            password_file: None,
        };
        let write = || {
            let pair = Request::new(&["a.test"], clock::now()).issue();
            std::fs::write(&files.certificate, pair.certificate).unwrap();
            std::fs::write(&files.private_key, pair.key).unwrap();
        };
        write();
        let (reloader, running) = Reloader::start(sources(vec![files.clone()])).unwrap();
        wait_until("it is never loaded", || reloader.table().is_loaded());
        let name = "a.test".parse().unwrap();
        let first = Arc::downgrade(&reloader.table().load().get(&name).unwrap().best);
        write();
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.build().unwrap();
        let changes = runtime.block_on(reloader.rescan()).unwrap();
        assert_eq!(changes[0].result, ChangeResult::Replaced);
        drop(changes);
        wait_until("somebody keeps it", || first.strong_count() == 0);
        reloader.stop();
        running.join().unwrap();
    }
}
