//! File events (inotify). They only shorten the wait for the poll: a lost event costs time, never
//! a certificate. Watches directories alone, so that files may come, go and be renamed over.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};

/// Something happened.
#[derive(Debug)]
pub enum WatchEvent {
    /// To `name` in `directory`, or to the directory itself.
    Changed {
        directory: PathBuf,
        name: Option<OsString>,
    },
    /// The kernel dropped events: anything may have changed.
    Overflow,
}

/// A set of watched directories.
pub struct Watcher {
    deliver: Deliver,
    inotify: Arc<OwnedFd>,
    /// Shared with the thread that reads the events.
    paths: Arc<Mutex<BTreeMap<i32, (PathBuf, Interest)>>>,
    watched: BTreeMap<PathBuf, Watch>,
    /// Directories that are watched because links of these files lead there.
    stands_for: BTreeMap<PathBuf, BTreeSet<PathBuf>>,
    refused: BTreeSet<PathBuf>,
    /// Directories on file systems that may change without an event.
    silent: BTreeSet<PathBuf>,
}

/// What is to be watched.
#[derive(Default)]
pub struct Watched<'a> {
    pub directories: Vec<&'a Path>,
    /// Files outside these directories.
    pub files: Vec<&'a Path>,
    /// Files inside them that are symbolic links.
    pub links: Vec<&'a Path>,
}

/// Which entries of a watched directory matter.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Interest {
    Everything,
    /// These alone: directories on the way to something that is watched. If one of them is
    /// renamed or replaced, another thing stands at the end of the way.
    Names(BTreeSet<OsString>),
}

impl Interest {
    fn in_entry(&self, name: Option<&OsStr>) -> bool {
        match (self, name) {
            (Interest::Everything, _) | (Interest::Names(_), None) => true,
            (Interest::Names(names), Some(name)) => names.contains(name),
        }
    }
}

/// The directories that are wanted, and why.
#[derive(Default)]
struct Wanted(BTreeMap<PathBuf, Interest>);

impl Wanted {
    /// Watches a directory, and every step of the way to it.
    fn everything(&mut self, directory: &Path) {
        let directory = existing(directory);
        self.way_to(&directory);
        self.0.insert(directory, Interest::Everything);
    }

    fn way_to(&mut self, path: &Path) {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return;
        };
        let known = self.0.get_mut(parent);
        match known {
            Some(Interest::Everything) => return,
            Some(Interest::Names(names)) => {
                if !names.insert(name.to_owned()) {
                    return;
                }
            }
            None => {
                let names = BTreeSet::from([name.to_owned()]);
                self.0.insert(parent.to_owned(), Interest::Names(names));
            }
        }
        self.way_to(parent);
    }
}

/// A watch stays with the directory it was made for, even if another takes over its path.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Watch {
    watch: i32,
    device: u64,
    inode: u64,
}

type Deliver = Arc<dyn Fn(WatchEvent) + Send + Sync>;

/// More directories than this that are watched anew are told of in one event for everything.
const TOLD_ONE_BY_ONE: usize = 64;

/// How many links a path may lead through before we stop following it, as in the kernel.
const MAX_LINKS: usize = 40;

impl Watcher {
    /// Starts a thread that hands each event to `deliver`. Errors: the host has no inotify, or no
    /// instance is left (`fs.inotify.max_user_instances`).
    pub fn start(deliver: impl Fn(WatchEvent) + Send + Sync + 'static) -> io::Result<Watcher> {
        let deliver: Deliver = Arc::new(deliver);
        let tell = deliver.clone();
        let inotify = Arc::new(inotify::init(CreateFlags::CLOEXEC)?);
        let paths = Arc::new(Mutex::new(BTreeMap::new()));
        let (fd, known) = (inotify.clone(), paths.clone());
        // The thread ends with the process: a blocking read has no other way to be woken.
        std::thread::Builder::new()
            .name("file-events".to_owned())
            .spawn(move || read_events(&fd, &known, &*tell))?;
        Ok(Watcher {
            deliver,
            inotify,
            paths,
            watched: BTreeMap::new(),
            stands_for: BTreeMap::new(),
            refused: BTreeSet::new(),
            silent: BTreeSet::new(),
        })
    }

    /// Watches exactly these directories, and what the files (and all links) stand in.
    pub fn watch(&mut self, sources: &Watched<'_>) {
        let mut wanted = Wanted::default();
        self.stands_for.clear();
        for directory in &sources.directories {
            wanted.everything(directory);
            self.follow(directory, &mut wanted);
        }
        for link in &sources.links {
            self.follow(link, &mut wanted);
        }
        for file in &sources.files {
            wanted.everything(file.parent().unwrap_or(Path::new("/")));
            self.follow(file, &mut wanted);
        }
        let wanted = wanted.0;
        let stale: Vec<PathBuf> = self
            .watched
            .keys()
            .filter(|path| !wanted.contains_key(*path))
            .cloned()
            .collect();
        for path in stale {
            self.remove(&path);
        }
        self.refused.retain(|path| wanted.contains_key(path));
        self.silent.retain(|path| wanted.contains_key(path));
        let refused_before = self.refused.len();
        let mut reason = None;
        let mut fresh = Vec::new();
        for (path, interest) in wanted {
            match self.add(path.clone(), interest) {
                Ok(true) => fresh.push(path),
                Ok(false) => {}
                Err(error) => reason = Some(error),
            }
        }
        self.tell_of_fresh(fresh);
        if let Some(error) = reason.filter(|_| self.refused.len() > refused_before) {
            tracing::warn!(
                directories = self.refused.len(), %error,
                "no file events from some directories: changes in them are found by the poll \
                 (fs.inotify.max_user_watches may be too low)"
            );
        }
    }

    /// What happened in a directory between the last look at it and its first watch had no event:
    /// it gets one now.
    fn tell_of_fresh(&self, directories: Vec<PathBuf>) {
        if directories.len() > TOLD_ONE_BY_ONE {
            (self.deliver)(WatchEvent::Overflow);
            return;
        }
        for directory in directories {
            let name = None;
            (self.deliver)(WatchEvent::Changed { directory, name });
        }
    }

    /// Whether every wanted directory is watched, and lies on a file system that is known to
    /// deliver all events. Network file systems, FUSE and overlays are not.
    pub fn is_reliable(&self) -> bool {
        self.refused.is_empty() && self.silent.is_empty()
    }

    /// The files whose links lead into a directory.
    pub fn stands_for(&self, directory: &Path) -> impl Iterator<Item = PathBuf> + '_ {
        self.stands_for
            .get(directory)
            .into_iter()
            .flatten()
            .cloned()
    }

    /// Watches every directory that a path's links lead through, those of the directories above
    /// it included.
    fn follow(&mut self, origin: &Path, wanted: &mut Wanted) {
        for step in origin.ancestors() {
            self.follow_link(step, origin, wanted);
        }
    }

    fn follow_link(&mut self, link: &Path, origin: &Path, wanted: &mut Wanted) {
        let mut current = link.to_owned();
        for _ in 0..MAX_LINKS {
            let Ok(target) = std::fs::read_link(&current) else {
                return;
            };
            let Some(parent) = current.parent() else {
                return;
            };
            wanted.way_to(&current);
            current = parent.join(target);
            if let Some(directory) = current.parent() {
                let directory = existing(directory);
                self.stands_for
                    .entry(directory.clone())
                    .or_default()
                    .insert(origin.to_owned());
                wanted.everything(&directory);
            }
        }
    }

    /// Returns whether everything in the directory matters, and did not before.
    fn add(&mut self, path: PathBuf, interest: Interest) -> rustix::io::Result<bool> {
        let Ok(metadata) = std::fs::metadata(&path) else {
            return Ok(false);
        };
        let everything = interest == Interest::Everything;
        let (device, inode) = (metadata.dev(), metadata.ino());
        if let Some(known) = self.watched.get(&path) {
            let mut paths = self.lock();
            if let Some((_, known_interest)) = paths.get_mut(&known.watch)
                && (known.device, known.inode) == (device, inode)
            {
                let before = std::mem::replace(known_interest, interest);
                return Ok(everything && before != Interest::Everything);
            }
            drop(paths);
            self.remove(&path);
        }
        // A way that changes without an event is a rare thing; the poll finds it.
        if !everything || delivers_events(&path) {
            self.silent.remove(&path);
        } else {
            self.silent.insert(path.clone());
        }
        let events = WatchFlags::CREATE
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::MOVED_TO
            | WatchFlags::MOVED_FROM
            | WatchFlags::DELETE
            | WatchFlags::ATTRIB
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR;
        let watch = inotify::add_watch(&self.inotify, &path, events).inspect_err(|_| {
            self.refused.insert(path.clone());
        })?;
        self.refused.remove(&path);
        self.lock().insert(watch, (path.clone(), interest));
        let watched = Watch {
            watch,
            device,
            inode,
        };
        self.watched.insert(path, watched);
        Ok(everything)
    }

    fn remove(&mut self, path: &Path) {
        if let Some(Watch { watch, .. }) = self.watched.remove(path)
            && self.lock().remove(&watch).is_some()
        {
            // It is gone already where the directory was deleted.
            let _ = inotify::remove_watch(&self.inotify, watch);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<i32, (PathBuf, Interest)>> {
        // A poisoned map is still a map: no code panics halfway through changing it.
        self.paths.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the file system is one on which nothing changes without an event: those whose only way
/// in is this kernel.
fn delivers_events(directory: &Path) -> bool {
    /// ext2/3/4, XFS, Btrfs, tmpfs, ramfs, F2FS, ZFS, bcachefs (statfs(2), linux/magic.h).
    const LOCAL: [u64; 8] = [
        0xef53,
        0x5846_5342,
        0x9123_683e,
        0x0102_1994,
        0x8584_58f6,
        0xf2f5_2010,
        0x2fc1_2fc1,
        0xca45_1a4e,
    ];
    // The type of the field differs between platforms, and all its values are positive.
    rustix::fs::statfs(directory)
        .is_ok_and(|statfs| LOCAL.contains(&u64::try_from(statfs.f_type).unwrap_or(0)))
}

/// The directory itself, or the nearest one above it that is there: its creation shows there.
fn existing(directory: &Path) -> PathBuf {
    let mut candidate = directory;
    while !candidate.is_dir() {
        match candidate.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => candidate = parent,
            _ => return PathBuf::from("/"),
        }
    }
    candidate.to_owned()
}

fn read_events(
    inotify: &OwnedFd,
    paths: &Mutex<BTreeMap<i32, (PathBuf, Interest)>>,
    deliver: &(dyn Fn(WatchEvent) + Send + Sync),
) {
    let mut buffer = [MaybeUninit::uninit(); 16 * 1024];
    let mut reader = inotify::Reader::new(inotify, &mut buffer);
    loop {
        let event = match reader.next() {
            Ok(event) => event,
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => {
                tracing::error!(%error, "file events ended: changes are found by the poll alone");
                return;
            }
        };
        if event.events().contains(ReadFlags::QUEUE_OVERFLOW) {
            deliver(WatchEvent::Overflow);
            continue;
        }
        let watched = {
            let mut paths = paths.lock().unwrap_or_else(PoisonError::into_inner);
            if event.events().contains(ReadFlags::IGNORED) {
                paths.remove(&event.wd())
            } else {
                paths.get(&event.wd()).cloned()
            }
        };
        let name = event
            .file_name()
            .map(|name| OsStr::from_bytes(name.to_bytes()).to_owned());
        if let Some((directory, interest)) = watched
            && interest.in_entry(name.as_deref())
        {
            deliver(WatchEvent::Changed { directory, name });
        }
    }
}
