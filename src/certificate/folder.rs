//! A drop folder: which of its files hold certificates, which hold keys, and which key belongs to
//! which certificate. Pairs are found by content; file names mean nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use time::OffsetDateTime;

use super::inventory::EntryId;
use super::material::{Leaf, Material, MaterialError, PublicKeyHash};
use super::observe::{self, Digest, ReadError, Stamp};
use super::table::SourceKind;
use super::unit::{Sight, Task, Unit};

/// How deep a drop folder is searched: the folder itself, and two levels below it.
const DEPTH: usize = 3;

/// All that is known of one drop folder.
pub struct Folder {
    root: Arc<Path>,
    files: BTreeMap<PathBuf, FileFacts>,
    /// The files that hold a key, by its public key.
    keys: HashMap<PublicKeyHash, BTreeSet<PathBuf>>,
    /// By certificate file.
    units: BTreeMap<PathBuf, Unit>,
    directories: BTreeSet<PathBuf>,
}

/// What one file holds.
#[derive(Debug)]
struct FileFacts {
    stamp: Stamp,
    digest: Option<Digest>,
    young: bool,
    leaf: Option<Leaf>,
    keys: Vec<PublicKeyHash>,
    /// It looks like a certificate or a key, but is broken or may not be read.
    broken: bool,
}

impl Folder {
    pub fn new(root: &Path) -> Folder {
        Folder {
            root: root.into(),
            files: BTreeMap::new(),
            keys: HashMap::new(),
            units: BTreeMap::new(),
            directories: BTreeSet::new(),
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

    pub fn unit_mut(&mut self, certificate: &Path) -> Option<&mut Unit> {
        self.units.get_mut(certificate)
    }

    pub fn units(&self) -> impl Iterator<Item = &Unit> {
        self.units.values()
    }

    /// Whether a file changed so recently that it has to be read again.
    pub fn has_young_files(&self) -> bool {
        self.files.values().any(|facts| facts.young)
    }

    /// Looks at the whole folder; see [`look`](Self::look).
    pub fn look_at_all(&mut self, now: OffsetDateTime, gone: &mut Vec<EntryId>) -> Vec<Task> {
        let mut found = Vec::new();
        self.directories.clear();
        walk(&self.root, DEPTH, &mut found, &mut self.directories);
        let present: BTreeSet<&PathBuf> = found.iter().map(|(path, _)| path).collect();
        let missing: Vec<PathBuf> = self
            .files
            .keys()
            .filter(|path| !present.contains(path))
            .cloned()
            .collect();
        let mut touched = BTreeSet::new();
        for path in missing {
            self.remove(&path, &mut touched);
        }
        for (path, stamp) in found {
            self.observe(path, stamp, now, &mut touched);
        }
        self.pair_up(touched, true, gone)
    }

    /// Looks at some paths, each a file or a directory in the folder that something happened to.
    /// Returns what has to be read, and in `gone` the certificates whose file is not there any
    /// more.
    pub fn look(
        &mut self,
        paths: &BTreeSet<PathBuf>,
        now: OffsetDateTime,
        gone: &mut Vec<EntryId>,
    ) -> Vec<Task> {
        let mut touched = BTreeSet::new();
        for path in paths {
            self.look_at(path, now, &mut touched);
        }
        let young: Vec<PathBuf> = self
            .files
            .iter()
            .filter(|(_, f)| f.young)
            .map(|(path, _)| path.clone())
            .collect();
        for path in young {
            match observe::stat(&path) {
                Some(stamp) => self.observe(path, stamp, now, &mut touched),
                None => self.remove(&path, &mut touched),
            }
        }
        self.pair_up(touched, false, gone)
    }

    fn look_at(&mut self, path: &Path, now: OffsetDateTime, touched: &mut BTreeSet<PublicKeyHash>) {
        let Ok(relative) = path.strip_prefix(&self.root) else {
            return;
        };
        if relative
            .components()
            .any(|c| is_hidden(Path::new(c.as_os_str())))
        {
            return;
        }
        let mut found = Vec::new();
        let depth = relative.components().count();
        if path.is_dir() {
            walk(
                path,
                DEPTH.saturating_sub(depth),
                &mut found,
                &mut self.directories,
            );
        } else if let Some(stamp) = observe::stat(path)
            && depth <= DEPTH
        {
            found.push((path.to_owned(), stamp));
        }
        let present: BTreeSet<&PathBuf> = found.iter().map(|(path, _)| path).collect();
        let missing: Vec<PathBuf> = self
            .files
            .range(path.to_owned()..)
            .map(|(known, _)| known)
            .take_while(|known| known.starts_with(path))
            .filter(|known| !present.contains(known))
            .cloned()
            .collect();
        for path in missing {
            self.remove(&path, touched);
        }
        for (path, stamp) in found {
            self.observe(path, stamp, now, touched);
        }
    }

    /// Notes a file that is there, reading it if its metadata says so. Public keys whose pairing
    /// may change go into `touched`.
    fn observe(
        &mut self,
        path: PathBuf,
        stamp: Stamp,
        now: OffsetDateTime,
        touched: &mut BTreeSet<PublicKeyHash>,
    ) {
        let known = self.files.get(&path);
        if known.is_some_and(|facts| facts.stamp == stamp && !facts.young) {
            return;
        }
        let facts = FileFacts::read(&path, stamp, now);
        if let Some(known) = known
            && known.digest.is_some()
            && known.digest == facts.digest
        {
            self.files.insert(path, facts);
            return;
        }
        self.remove_facts(&path, touched);
        for key in &facts.keys {
            self.keys.entry(*key).or_default().insert(path.clone());
        }
        touched.extend(facts.public_keys());
        self.files.insert(path, facts);
    }

    fn remove(&mut self, path: &Path, touched: &mut BTreeSet<PublicKeyHash>) {
        self.remove_facts(path, touched);
        self.files.remove(path);
    }

    fn remove_facts(&mut self, path: &Path, touched: &mut BTreeSet<PublicKeyHash>) {
        let Some(facts) = self.files.get(path) else {
            return;
        };
        touched.extend(facts.public_keys());
        for key in &facts.keys {
            if let Some(paths) = self.keys.get_mut(key) {
                paths.remove(path);
                if paths.is_empty() {
                    self.keys.remove(key);
                }
            }
        }
    }

    /// Brings the units up to date with the files and returns those that have to be read.
    fn pair_up(
        &mut self,
        touched: BTreeSet<PublicKeyHash>,
        all: bool,
        gone: &mut Vec<EntryId>,
    ) -> Vec<Task> {
        // Files that are gone, and files that turned out to be none of ours (a broken file that
        // was mended and holds a key alone).
        let Folder {
            units, files, keys, ..
        } = self;
        units.retain(|path, unit| {
            let candidate = files
                .get(path)
                .is_some_and(|facts| facts.is_candidate(keys));
            // What was served is given time to come back before it counts as gone.
            let keep = candidate || unit.has_served();
            if !keep {
                gone.push(unit.id.clone());
            }
            keep
        });
        let mut tasks = Vec::new();
        for (path, unit) in &mut self.units {
            if !self.files.contains_key(path)
                && unit.look(sight(&self.files, path, unit.private_key.as_deref()))
            {
                tasks.push(unit.task(Some(self.root.clone())));
            }
        }
        for (path, facts) in &self.files {
            let known = self.units.contains_key(path);
            if !known && !facts.is_candidate(&self.keys) {
                continue;
            }
            let affected = all
                || facts
                    .leaf
                    .is_none_or(|leaf| touched.contains(&leaf.public_key));
            let unit = self.units.entry(path.clone()).or_insert_with(|| {
                let id = EntryId {
                    source: SourceKind::Folder,
                    certificate: Arc::new(path.clone()),
                };
                Unit::new(id, path.clone(), None)
            });
            if affected {
                let before = unit.private_key.as_deref();
                let key = key_for(&self.files, &self.keys, path, facts, before);
                unit.set_private_key(key);
            }
            if unit.look(sight(&self.files, path, unit.private_key.as_deref())) {
                tasks.push(unit.task(Some(self.root.clone())));
            }
        }
        tasks
    }
}

fn sight(
    files: &BTreeMap<PathBuf, FileFacts>,
    certificate: &Path,
    private_key: Option<&Path>,
) -> Sight {
    let stamp = |path: &Path| files.get(path).map(|facts| facts.stamp);
    Sight {
        certificate: stamp(certificate),
        private_key: private_key.and_then(stamp),
    }
}

/// The file with the key for a certificate: its own, then one beside it, then any. Where there is
/// none, the file that had it and is broken now, so that the report names the right file.
fn key_for(
    files: &BTreeMap<PathBuf, FileFacts>,
    keys: &HashMap<PublicKeyHash, BTreeSet<PathBuf>>,
    certificate: &Path,
    facts: &FileFacts,
    before: Option<&Path>,
) -> Option<PathBuf> {
    let found = facts
        .leaf
        .and_then(|leaf| keys.get(&leaf.public_key))
        .and_then(|paths| {
            paths
                .get(certificate)
                .or_else(|| {
                    paths
                        .iter()
                        .find(|path| path.parent() == certificate.parent())
                })
                .or_else(|| paths.first())
        });
    match found {
        Some(path) => Some(path.clone()),
        None => before
            .filter(|path| files.get(*path).is_some_and(|facts| facts.broken))
            .map(Path::to_owned),
    }
}

impl FileFacts {
    /// The public keys that the pairing of this file depends on.
    fn public_keys(&self) -> impl Iterator<Item = PublicKeyHash> + '_ {
        let leaf = self.leaf.map(|leaf| leaf.public_key);
        self.keys.iter().copied().chain(leaf)
    }

    /// Whether a certificate is to be had from this file, or would be if it were not broken.
    fn is_candidate(&self, keys: &HashMap<PublicKeyHash, BTreeSet<PathBuf>>) -> bool {
        self.broken
            || self
                .leaf
                .is_some_and(|leaf| !leaf.is_ca || keys.contains_key(&leaf.public_key))
    }

    fn read(path: &Path, stamp: Stamp, now: OffsetDateTime) -> FileFacts {
        let mut facts = FileFacts {
            stamp,
            digest: None,
            young: false,
            leaf: None,
            keys: Vec::new(),
            broken: false,
        };
        match observe::read(path, now) {
            Ok((bytes, observation)) => {
                facts.stamp = observation.stamp;
                facts.digest = Some(observation.digest);
                facts.young = observation.young;
                match Material::parse(&bytes, None) {
                    Ok(material) => {
                        facts.leaf = material.leaf();
                        facts.keys = material.keys.iter().map(|key| key.public_key).collect();
                    }
                    // Not ours to judge: a README, a JSON file, an empty lock file.
                    Err(MaterialError::Foreign | MaterialError::Empty) => {}
                    Err(_) => facts.broken = true,
                }
            }
            Err(ReadError::Unstable) => facts.young = true,
            Err(ReadError::TooLarge | ReadError::NotAFile | ReadError::Missing) => {}
            Err(_) => facts.broken = true,
        }
        facts
    }
}

/// All regular files below a directory, through symbolic links, with their stamps. Hidden entries
/// are skipped: `..data` and its kind are Kubernetes' own, `.x.swp` an editor's.
fn walk(
    directory: &Path,
    depth: usize,
    found: &mut Vec<(PathBuf, Stamp)>,
    directories: &mut BTreeSet<PathBuf>,
) {
    if depth == 0 {
        return;
    }
    directories.insert(directory.to_owned());
    let Ok(entries) = std::fs::read_dir(directory) else {
        return;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        if is_hidden(Path::new(&entry.file_name())) {
            continue;
        }
        let is_directory = match entry.file_type() {
            Ok(kind) if kind.is_symlink() => path.is_dir(),
            Ok(kind) => kind.is_dir(),
            Err(_) => false,
        };
        if is_directory {
            walk(&path, depth - 1, found, directories);
        } else if let Some(stamp) = observe::stat(&path) {
            found.push((path, stamp));
        }
    }
}

fn is_hidden(name: &Path) -> bool {
    name.as_os_str().as_encoded_bytes().starts_with(b".")
}
