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
    inotify: Arc<OwnedFd>,
    /// Shared with the thread that reads the events.
    paths: Arc<Mutex<BTreeMap<i32, PathBuf>>>,
    watched: BTreeMap<PathBuf, Watched>,
    /// Directories that are watched because links of these files lead there.
    stands_for: BTreeMap<PathBuf, BTreeSet<PathBuf>>,
    refused: BTreeSet<PathBuf>,
}

/// A watch stays with the directory it was made for, even if another takes over its path.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Watched {
    watch: i32,
    device: u64,
    inode: u64,
}

/// How many links a path may lead through before we stop following it, as in the kernel.
const MAX_LINKS: usize = 40;

impl Watcher {
    /// Starts a thread that hands each event to `deliver`. Errors: the host has no inotify, or no
    /// instance is left (`fs.inotify.max_user_instances`).
    pub fn start(deliver: impl Fn(WatchEvent) + Send + 'static) -> io::Result<Watcher> {
        let inotify = Arc::new(inotify::init(CreateFlags::CLOEXEC)?);
        let paths = Arc::new(Mutex::new(BTreeMap::new()));
        let (fd, known) = (inotify.clone(), paths.clone());
        // The thread ends with the process: a blocking read has no other way to be woken.
        std::thread::Builder::new()
            .name("file-events".to_owned())
            .spawn(move || read_events(&fd, &known, &deliver))?;
        Ok(Watcher {
            inotify,
            paths,
            watched: BTreeMap::new(),
            stands_for: BTreeMap::new(),
            refused: BTreeSet::new(),
        })
    }

    /// Watches exactly these directories, and what the files (and their links) stand in.
    pub fn watch(&mut self, directories: &BTreeSet<&Path>, files: &[&Path]) {
        let mut wanted: BTreeSet<PathBuf> = directories
            .iter()
            .map(|directory| existing(directory))
            .collect();
        self.stands_for.clear();
        for directory in directories {
            self.add_link_targets(directory, &mut wanted);
            if directory.is_symlink() {
                wanted.insert(existing(directory.parent().unwrap_or(Path::new("."))));
                self.follow(directory, directory, &mut wanted);
            }
        }
        for file in files {
            wanted.insert(existing(file.parent().unwrap_or(Path::new("."))));
            self.follow(file, file, &mut wanted);
        }
        let stale: Vec<PathBuf> = self
            .watched
            .keys()
            .filter(|path| !wanted.contains(*path))
            .cloned()
            .collect();
        for path in stale {
            self.remove(&path);
        }
        for path in wanted {
            self.add(path);
        }
    }

    /// The files whose links lead into a directory.
    pub fn stands_for(&self, directory: &Path) -> impl Iterator<Item = PathBuf> + '_ {
        self.stands_for
            .get(directory)
            .into_iter()
            .flatten()
            .cloned()
    }

    /// Files of a drop folder may be links to elsewhere (certbot's `live` leads to `archive`).
    fn add_link_targets(&mut self, directory: &Path, wanted: &mut BTreeSet<PathBuf>) {
        let Ok(entries) = std::fs::read_dir(directory) else {
            return;
        };
        let links: Vec<PathBuf> = entries
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_symlink()))
            .map(|entry| entry.path())
            .collect();
        for link in links {
            self.follow(&link, &link, wanted);
        }
    }

    /// Watches every directory that a path's links lead through.
    fn follow(&mut self, path: &Path, origin: &Path, wanted: &mut BTreeSet<PathBuf>) {
        let mut current = path.to_owned();
        for _ in 0..MAX_LINKS {
            let Ok(target) = std::fs::read_link(&current) else {
                return;
            };
            let Some(parent) = current.parent() else {
                return;
            };
            current = parent.join(target);
            if let Some(directory) = current.parent() {
                let directory = existing(directory);
                self.stands_for
                    .entry(directory.clone())
                    .or_default()
                    .insert(origin.to_owned());
                wanted.insert(directory);
            }
        }
    }

    fn add(&mut self, path: PathBuf) {
        let Ok(metadata) = std::fs::metadata(&path) else {
            return;
        };
        let (device, inode) = (metadata.dev(), metadata.ino());
        if let Some(known) = self.watched.get(&path) {
            let alive = self.lock().contains_key(&known.watch);
            if alive && (known.device, known.inode) == (device, inode) {
                return;
            }
            self.remove(&path);
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
        match inotify::add_watch(&self.inotify, &path, events) {
            Ok(watch) => {
                self.refused.remove(&path);
                self.lock().insert(watch, path.clone());
                let watched = Watched {
                    watch,
                    device,
                    inode,
                };
                self.watched.insert(path, watched);
            }
            Err(error) => {
                if self.refused.insert(path.clone()) {
                    tracing::warn!(
                        directory = %path.display(), %error,
                        "no file events from this directory: changes in it are found by the poll \
                         (fs.inotify.max_user_watches may be too low)"
                    );
                }
            }
        }
    }

    fn remove(&mut self, path: &Path) {
        if let Some(Watched { watch, .. }) = self.watched.remove(path)
            && self.lock().remove(&watch).is_some()
        {
            // It is gone already where the directory was deleted.
            let _ = inotify::remove_watch(&self.inotify, watch);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<i32, PathBuf>> {
        // A poisoned map is still a map: no code panics halfway through changing it.
        self.paths.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The directory itself, or the nearest one above it that is there: its creation shows there.
fn existing(directory: &Path) -> PathBuf {
    let mut candidate = directory;
    while !candidate.is_dir() {
        match candidate.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => candidate = parent,
            _ => return PathBuf::from("."),
        }
    }
    candidate.to_owned()
}

fn read_events(
    inotify: &OwnedFd,
    paths: &Mutex<BTreeMap<i32, PathBuf>>,
    deliver: &impl Fn(WatchEvent),
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
        let directory = {
            let mut paths = paths.lock().unwrap_or_else(PoisonError::into_inner);
            if event.events().contains(ReadFlags::IGNORED) {
                paths.remove(&event.wd())
            } else {
                paths.get(&event.wd()).cloned()
            }
        };
        if let Some(directory) = directory {
            let name = event
                .file_name()
                .map(|name| OsStr::from_bytes(name.to_bytes()).to_owned());
            deliver(WatchEvent::Changed { directory, name });
        }
    }
}
