//! A drop folder: which of its files hold certificates, which hold keys, and which key belongs to
//! which certificate. Pairs are found by content; file names mean nothing.
//!
//! A look has three steps, so that the reading in the middle can be done in parallel and in parts:
//! [`survey`](Folder::survey) asks the file system what is new or changed, [`FileReading::read`] reads it,
//! and [`take_in`](Folder::take_in) notes what it is. Then [`due`](Folder::due) says which pairs
//! have to be examined.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use time::{Duration, OffsetDateTime};

use super::file_path::{FilePath, Inside};
use super::inventory::EntryId;
use super::material::{Leaf, Material, MaterialError, PublicKeyHash};
use super::observe::{self, Digest, Observation, ReadError, Stamp};
use super::parallel;
use super::table::SourceKind;
use super::unit::{Content, Finding, Served, Sight, Task, Unit, Verdict};
use super::units::Units;
use super::walk::{Walk, is_hidden};

/// How deep a drop folder is searched: the folder itself, and two levels below it.
const DEPTH: usize = 3;

/// All that is known of one drop folder.
pub struct Folder {
    root: Arc<Path>,
    /// Boxed: a third of a large map's nodes is room to grow.
    files: BTreeMap<FilePath, Box<FileFacts>>,
    holders: HashMap<PublicKeyHash, Holders>,
    units: Units,
    directories: BTreeSet<PathBuf>,
    links: BTreeSet<PathBuf>,
    /// Files that may have changed again without a sign.
    young: BTreeSet<FilePath>,
    /// Certificate files whose pairing or content may have changed since they were last due.
    affected: BTreeSet<FilePath>,
    /// Those of them for which no key was found; they are affected again when one comes.
    keyless: BTreeSet<FilePath>,
    /// What the running look has read of settled files, so that it need not be read twice.
    fresh: HashMap<FilePath, Arc<Content>>,
    shape_changed: bool,
}

/// The files that hold a private key, and those whose leaf has the public one.
#[derive(Debug, Default)]
struct Holders {
    keys: Paths,
    leaves: Paths,
}

/// A sorted set of mostly one path.
#[derive(Debug, Default)]
struct Paths(Vec<FilePath>);

impl Paths {
    fn get(&self, path: &FilePath) -> Option<&FilePath> {
        self.0.binary_search(path).ok().map(|at| &self.0[at])
    }

    fn insert(&mut self, path: FilePath) {
        if let Err(at) = self.0.binary_search(&path) {
            if self.0.is_empty() {
                self.0.reserve_exact(1);
            }
            self.0.insert(at, path);
        }
    }

    fn remove(&mut self, path: &FilePath) {
        if let Ok(at) = self.0.binary_search(path) {
            self.0.remove(at);
        }
    }
}

/// What one file holds.
#[derive(Debug)]
struct FileFacts {
    stamp: Stamp,
    digest: Option<Digest>,
    leaf: Option<Leaf>,
    keys: Box<[PublicKeyHash]>,
    /// It looks like a certificate or a key, but is broken or may not be read.
    broken: bool,
}

/// A file that has to be read.
#[derive(Clone, Debug)]
pub struct ToRead {
    pub path: FilePath,
    /// What its metadata says, if it was asked.
    stamp: Option<Stamp>,
}

/// A file that was read.
pub struct FileReading {
    path: FilePath,
    /// `None`: there is no such file.
    facts: Option<FileFacts>,
    young: bool,
    content: Option<Arc<Content>>,
}

impl Folder {
    pub fn new(root: &Path) -> Folder {
        Folder {
            root: root.into(),
            files: BTreeMap::new(),
            holders: HashMap::new(),
            units: Units::default(),
            directories: BTreeSet::new(),
            links: BTreeSet::new(),
            young: BTreeSet::new(),
            affected: BTreeSet::new(),
            keyless: BTreeSet::new(),
            fresh: HashMap::new(),
            shape_changed: true,
        }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Whether a file there would be this folder's.
    pub fn reaches(&self, path: &Path) -> bool {
        path.strip_prefix(&self.root)
            .is_ok_and(|relative| relative.components().count() <= DEPTH)
    }

    /// The directories in which a change matters.
    pub fn directories(&self) -> &BTreeSet<PathBuf> {
        &self.directories
    }

    /// The files that are symbolic links: a change where they lead matters too.
    pub fn links(&self) -> &BTreeSet<PathBuf> {
        &self.links
    }

    /// Whether directories or links came or went since this was asked last.
    pub fn take_shape_changed(&mut self) -> bool {
        std::mem::take(&mut self.shape_changed)
    }

    /// Whether another look is due soon although nothing says that anything changed.
    pub fn needs_recheck(&self) -> bool {
        !self.young.is_empty() || !self.units.soon().is_empty()
    }

    /// When time alone makes a candidate good.
    pub fn retry_at(&self) -> Option<OffsetDateTime> {
        self.units.retry_at()
    }

    /// Looks at the metadata of the whole folder; see [`survey`](Self::survey).
    pub fn survey_all(&mut self) -> Vec<ToRead> {
        let mut walk = Walk::default();
        walk.directory(&self.root, DEPTH);
        self.shape_changed |= walk.directories != self.directories || walk.links != self.links;
        self.directories = std::mem::take(&mut walk.directories);
        self.links = std::mem::take(&mut walk.links);
        walk.sort();
        // Both in the same order.
        let mut found = walk.files.iter().peekable();
        let known = self.files.keys();
        let missing = known.filter(|path| {
            while found
                .next_if(|found| found.as_os_str() < path.as_os_str())
                .is_some()
            {}
            found
                .peek()
                .is_none_or(|found| found.as_os_str() != path.as_os_str())
        });
        let missing = missing.cloned().collect();
        self.remove_all(missing);
        self.affected.extend(self.units.failing().iter().cloned());
        self.sift(walk.files)
    }

    /// Looks at the metadata of some paths, each a file or a directory that something happened to,
    /// and of the files that are in doubt. Returns the files that have to be read.
    pub fn survey(&mut self, paths: &BTreeSet<PathBuf>) -> Vec<ToRead> {
        let mut found: Vec<PathBuf> = self.young.iter().map(|path| path.to_path_buf()).collect();
        for path in paths {
            found.extend(self.survey_path(path));
        }
        found.sort_unstable_by(|a, b| a.as_os_str().cmp(b.as_os_str()));
        found.dedup();
        self.sift(found)
    }

    fn survey_path(&mut self, path: &Path) -> Vec<PathBuf> {
        // Something happened on the way here: another folder may stand at its end, or there is
        // more of the way to watch.
        let on_the_way = self.root.starts_with(path);
        self.shape_changed |= on_the_way;
        let root = self.root.clone();
        let path = if on_the_way { &root } else { path };
        let Ok(relative) = path.strip_prefix(&self.root) else {
            return Vec::new();
        };
        let depth = relative.components().count();
        if depth > DEPTH || relative.components().any(|c| is_hidden(c.as_os_str())) {
            return Vec::new();
        }
        let mut walk = Walk::default();
        // A directory may have come, or another one be in its place, which nobody watches yet.
        self.shape_changed |= path.is_dir() || self.directories.contains(path);
        if path.is_dir() {
            walk.directory(path, DEPTH - depth);
        } else {
            walk.file(path);
        }
        self.directories.append(&mut walk.directories);
        for link in std::mem::take(&mut walk.links) {
            // One that was there before may lead elsewhere now.
            self.shape_changed = true;
            self.links.insert(link);
        }
        let found: BTreeSet<&OsStr> = walk.files.iter().map(|path| path.as_os_str()).collect();
        let inside = self.files.range::<OsStr, _>(Inside::of(path));
        let itself = self.files.get_key_value(path.as_os_str());
        let known = itself.into_iter().chain(inside).map(|(known, _)| known);
        let missing = known.filter(|known| !found.contains(known.as_os_str()));
        let missing = missing.cloned().collect();
        // A unit can fail without a file: its link leads nowhere.
        let failing = self.units.failing();
        let inside = failing.range::<OsStr, _>(Inside::of(path));
        let itself = failing.get(path.as_os_str());
        self.affected
            .extend(itself.into_iter().chain(inside).cloned());
        self.remove_all(missing);
        walk.files
    }

    /// Those of the files that are not known, whose metadata differs from what is known, or which
    /// are young.
    fn sift(&mut self, found: Vec<PathBuf>) -> Vec<ToRead> {
        let sifted = parallel::map(found, |path| self.sift_one(path));
        let mut to_read = Vec::new();
        for look in sifted {
            match look {
                Look::Same => {}
                Look::Gone(path) => self.remove(&path),
                Look::Read(file) => to_read.push(file),
            }
        }
        to_read
    }

    fn sift_one(&self, path: PathBuf) -> Look {
        let Some((path, facts)) = self.files.get_key_value(path.as_os_str()) else {
            // Reading it asks for its metadata anyway.
            let path = path.into();
            return Look::Read(ToRead { path, stamp: None });
        };
        match observe::stat(path) {
            None => Look::Gone(path.clone()),
            Some(stamp) if facts.stamp == stamp && !self.young.contains(path) => Look::Same,
            stamp => Look::Read(ToRead {
                path: path.clone(),
                stamp,
            }),
        }
    }

    /// Notes what was read.
    pub fn take_in(&mut self, readings: Vec<FileReading>) {
        self.fresh.clear();
        for reading in readings {
            self.note(reading);
        }
    }

    fn note(&mut self, reading: FileReading) {
        let FileReading {
            path,
            facts,
            young,
            content,
        } = reading;
        let Some(facts) = facts else {
            return self.remove(&path);
        };
        if young {
            self.young.insert(path.clone());
        } else {
            self.young.remove(&path);
        }
        let known = self.files.get(&path);
        let same =
            known.is_some_and(|known| known.digest.is_some() && known.digest == facts.digest);
        if same {
            // Its stamp is another, which the unit has to hear of.
            self.affect_sharers(&facts);
            self.files.insert(path, Box::new(facts));
            return;
        }
        self.forget(&path);
        if let Some(content) = content {
            self.fresh.insert(path.clone(), content);
        }
        for key in &facts.keys {
            self.holders
                .entry(*key)
                .or_default()
                .keys
                .insert(path.clone());
        }
        if let Some(leaf) = facts.leaf {
            self.holders
                .entry(leaf.public_key)
                .or_default()
                .leaves
                .insert(path.clone());
        }
        self.affect_sharers(&facts);
        self.affected.insert(path.clone());
        self.files.insert(path, Box::new(facts));
    }

    fn remove_all(&mut self, paths: Vec<FilePath>) {
        for path in paths {
            self.remove(&path);
        }
    }

    fn remove(&mut self, path: &FilePath) {
        self.forget(path);
        self.young.remove(path);
        self.affected.insert(path.clone());
    }

    /// Forgets what a file held.
    fn forget(&mut self, path: &FilePath) {
        let Some(facts) = self.files.remove(path) else {
            return;
        };
        self.affect_sharers(&facts);
        if facts.broken {
            // What it was thought to be the key of may have to be reported for another reason.
            self.affected.extend(self.units.failing().iter().cloned());
        }
        for key in facts.public_keys() {
            if let Some(holders) = self.holders.get_mut(&key) {
                holders.keys.remove(path);
                holders.leaves.remove(path);
                if holders.keys.0.is_empty() && holders.leaves.0.is_empty() {
                    self.holders.remove(&key);
                }
            }
        }
    }

    /// The certificates with the same public key as something in this file may have another pair.
    fn affect_sharers(&mut self, facts: &FileFacts) {
        for key in facts.public_keys() {
            if let Some(holders) = self.holders.get(&key) {
                self.affected.extend(holders.leaves.0.iter().cloned());
            }
        }
    }

    /// The pairs that have to be examined. Without `all`, certificates whose key was not found
    /// are left for later: it may not have been read yet. In `gone`: what is no certificate of
    /// this folder any more and never was served.
    pub fn due(&mut self, all: bool, gone: &mut Vec<EntryId>) -> Vec<Task> {
        let mut candidates = std::mem::take(&mut self.affected);
        if all {
            candidates.append(&mut self.keyless);
            candidates.extend(self.units.soon().iter().cloned());
        }
        let mut tasks = Vec::new();
        for path in candidates {
            match self.due_unit(&path, all, gone) {
                Due::No => {}
                Due::Later => drop(self.keyless.insert(path)),
                Due::Now(task) => tasks.push(*task),
            }
        }
        if all {
            self.fresh.clear();
        }
        tasks
    }

    fn due_unit(&mut self, path: &FilePath, all: bool, gone: &mut Vec<EntryId>) -> Due {
        let facts = self.files.get(path);
        let candidate = facts.is_some_and(|facts| facts.is_candidate(&self.holders));
        let served = self.units.get(path).is_some_and(|unit| unit.has_served());
        // What was served is given time to come back before it counts as gone.
        if !candidate && !served {
            // A key may still come for a certificate that is marked as a CA's.
            let undecided = !all && facts.is_some_and(|facts| facts.leaf.is_some());
            if undecided {
                return Due::Later;
            }
            if let Some(unit) = self.units.remove(path) {
                gone.push(unit.id);
            }
            return Due::No;
        }
        let before = self.units.get(path);
        let before = before.and_then(|unit| unit.private_key.as_ref());
        let before = before.map(FilePath::from);
        let key = match facts {
            Some(facts) => self.key_for(path, facts, before.as_ref()),
            None => before,
        };
        if key.is_none() && !all && facts.is_some_and(|facts| !facts.broken) {
            return Due::Later;
        }
        let sight = Sight {
            certificate: facts.map(|facts| facts.stamp),
            private_key: key
                .as_ref()
                .and_then(|key| self.files.get(key))
                .map(|key| key.stamp),
        };
        let unit = self.units.get_or_make(path, || {
            let id = EntryId {
                source: SourceKind::Folder,
                certificate: path.as_arc().clone(),
            };
            Unit::new(id, None)
        });
        unit.set_private_key(key.as_ref().map(|key| key.as_arc().clone()));
        if !unit.look(sight) {
            return Due::No;
        }
        let mut task = unit.task(Some(self.root.clone()));
        task.certificate_content = self.fresh.get(path).cloned();
        task.key_content = key.and_then(|key| self.fresh.get(&key).cloned());
        Due::Now(Box::new(task))
    }

    pub fn has_unit(&self, path: &Path) -> bool {
        self.units.contains(path)
    }

    /// Judges what examining a unit found; see [`Unit::judge`].
    pub fn judge(
        &mut self,
        path: &Arc<Path>,
        finding: Finding,
        served: Served<'_>,
        patience: Duration,
        now: OffsetDateTime,
    ) -> Option<Verdict> {
        self.units.judge(path, finding, served, patience, now)
    }

    /// The file with the key for a certificate: its own, then one beside it, then any. Where there
    /// is none, the file that had it and is broken now, so that the report names the right file.
    fn key_for(
        &self,
        certificate: &FilePath,
        facts: &FileFacts,
        before: Option<&FilePath>,
    ) -> Option<FilePath> {
        let leaf = facts
            .leaf
            .and_then(|leaf| self.holders.get(&leaf.public_key));
        let found = leaf.and_then(|holders| {
            holders
                .keys
                .get(certificate)
                .or_else(|| {
                    holders
                        .keys
                        .0
                        .iter()
                        .find(|path| path.parent() == certificate.parent())
                })
                .or_else(|| holders.keys.0.first())
        });
        let broken = || {
            let (path, facts) = self.files.get_key_value(before?)?;
            facts.broken.then_some(path)
        };
        found.or_else(broken).cloned()
    }
}

/// Reads a whole folder once, for whoever serves nothing from it.
pub fn read_once(root: &Path, now: OffsetDateTime) -> Vec<(Task, Finding)> {
    let mut folder = Folder::new(root);
    let files = folder.survey_all();
    folder.take_in(parallel::map(files, |file| FileReading::read(file, now)));
    let tasks = folder.due(true, &mut Vec::new());
    parallel::map(tasks, |task| {
        let finding = task.examine(now);
        (task, finding)
    })
}

/// Whether a unit has to be examined.
enum Due {
    No,
    Later,
    Now(Box<Task>),
}

/// What asking for a file's metadata comes to.
enum Look {
    Same,
    Gone(FilePath),
    Read(ToRead),
}

impl FileFacts {
    /// Of a file of which no more is known than its metadata.
    fn new(stamp: Stamp) -> FileFacts {
        FileFacts {
            stamp,
            digest: None,
            leaf: None,
            keys: Box::default(),
            broken: false,
        }
    }

    /// Notes what the bytes hold. Returns it, unless it is young: then it has to be read a second
    /// time anyway.
    fn understand(&mut self, bytes: &[u8], observation: Observation) -> Option<Content> {
        self.digest = Some(observation.digest);
        match Material::parse(bytes, None) {
            Ok(material) => {
                self.leaf = material.leaf();
                self.keys = material.keys.iter().map(|key| key.public_key).collect();
                (!observation.young).then_some(Content {
                    material,
                    observation,
                })
            }
            // Not ours to judge: a README, a JSON file, an empty lock file.
            Err(MaterialError::Foreign | MaterialError::Empty) => None,
            Err(_) => {
                self.broken = true;
                None
            }
        }
    }

    /// The public keys that the pairing of this file depends on.
    fn public_keys(&self) -> impl Iterator<Item = PublicKeyHash> + '_ {
        let leaf = self.leaf.map(|leaf| leaf.public_key);
        self.keys.iter().copied().chain(leaf)
    }

    /// Whether a certificate is to be had from this file, or would be if it were not broken.
    fn is_candidate(&self, holders: &HashMap<PublicKeyHash, Holders>) -> bool {
        let has_key = |leaf: Leaf| {
            holders
                .get(&leaf.public_key)
                .is_some_and(|holders| !holders.keys.0.is_empty())
        };
        self.broken || self.leaf.is_some_and(|leaf| !leaf.is_ca || has_key(leaf))
    }
}

impl FileReading {
    /// Reads a file and finds out what it holds. Touches nothing but the file, so that many can
    /// be read at once.
    pub fn read(file: ToRead, now: OffsetDateTime) -> FileReading {
        let ToRead { path, stamp } = file;
        let read = observe::read(&path, now);
        let stamp = match &read {
            Ok((_, observation)) => Some(observation.stamp),
            Err(_) => stamp.or_else(|| observe::stat(&path)),
        };
        let mut reading = FileReading {
            path,
            facts: stamp.map(FileFacts::new),
            young: matches!(read, Err(ReadError::Unstable)),
            content: None,
        };
        if let Some(facts) = &mut reading.facts {
            match read {
                Ok((bytes, observation)) => {
                    reading.young = observation.young;
                    reading.content = facts.understand(&bytes, observation).map(Arc::new);
                }
                Err(
                    ReadError::Unstable
                    | ReadError::TooLarge(_)
                    | ReadError::NotAFile
                    | ReadError::Missing,
                ) => {}
                Err(_) => facts.broken = true,
            }
        }
        reading
    }
}
