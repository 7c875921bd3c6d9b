//! The certificates in the state directory: which there are, and through which files the current
//! generation of each is read.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use time::{Duration, OffsetDateTime};

use super::file_path::FilePath;
use super::inventory::EntryId;
use super::table::SourceKind;
use super::unit::{Finding, Served, Task, Unit, Verdict};
use super::units::Units;

/// `certificates/` of the state directory.
pub struct Generations {
    root: PathBuf,
    /// By certificate file, below `<name>/<key_type>/current`.
    units: Units,
    directories: BTreeSet<PathBuf>,
    shape_changed: bool,
}

impl Generations {
    /// `root` is the `certificates` directory.
    pub fn new(root: PathBuf) -> Generations {
        Generations {
            root,
            units: Units::default(),
            directories: BTreeSet::new(),
            shape_changed: true,
        }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The directories in which a change matters.
    pub fn directories(&self) -> &BTreeSet<PathBuf> {
        &self.directories
    }

    /// Whether directories came or went since this was asked last.
    pub fn take_shape_changed(&mut self) -> bool {
        std::mem::take(&mut self.shape_changed)
    }

    /// Whether another look is due soon although nothing says that anything changed.
    pub fn needs_recheck(&self) -> bool {
        !self.units.soon().is_empty()
    }

    /// Looks at everything. Returns the pairs that have to be examined, and in `gone` those whose
    /// directory is not there and which were never served.
    pub fn look_at_all(&mut self, gone: &mut Vec<EntryId>) -> Vec<Task> {
        let mut directories = BTreeSet::from([self.root.clone()]);
        let mut present = BTreeSet::new();
        for name in subdirectories(&self.root) {
            present.extend(subdirectories(&name));
            directories.insert(name);
        }
        directories.extend(present.iter().cloned());
        self.shape_changed |= directories != self.directories;
        self.directories = directories;
        let is_gone = |unit: &&Unit| {
            let directory = unit.id.certificate.parent().and_then(Path::parent);
            // What was served is given time to come back before it counts as gone.
            !unit.has_served() && !directory.is_some_and(|path| present.contains(path))
        };
        let missing: Vec<EntryId> = self
            .units
            .iter()
            .filter(is_gone)
            .map(|unit| unit.id.clone())
            .collect();
        for id in missing {
            self.units.remove(&id.certificate);
            gone.push(id);
        }
        let known = self
            .units
            .iter()
            .filter_map(|unit| unit.id.certificate.parent()?.parent());
        present.extend(known.map(Path::to_owned));
        present
            .iter()
            .filter_map(|directory| self.look_at(directory))
            .collect()
    }

    /// Looks at the certificates to which some paths belong, and at those in doubt.
    pub fn look(&mut self, paths: &BTreeSet<PathBuf>) -> Vec<Task> {
        let doubtful = self.units.soon().iter();
        let doubtful = doubtful.filter_map(|path| path.parent()?.parent());
        let mut directories: BTreeSet<PathBuf> = doubtful.map(Path::to_owned).collect();
        for path in paths {
            directories.extend(self.directories_at(path));
        }
        directories
            .iter()
            .filter_map(|directory| self.look_at(directory))
            .collect()
    }

    /// The `<name>/<key_type>` directories above or below a path.
    fn directories_at(&mut self, path: &Path) -> Vec<PathBuf> {
        if self.root.starts_with(path) {
            // Something happened on the way here: look at all there was and is.
            let names = subdirectories(&self.root).into_iter();
            return names.flat_map(|name| subdirectories(&name)).collect();
        }
        let Ok(relative) = path.strip_prefix(&self.root) else {
            return Vec::new();
        };
        let mut components = relative.components();
        match (components.next(), components.next()) {
            (Some(name), Some(key_type)) => {
                let name = self.root.join(name);
                let directory = name.join(key_type);
                self.add_directory(name);
                self.add_directory(directory.clone());
                vec![directory]
            }
            (Some(name), None) => {
                let name = self.root.join(name);
                let found = subdirectories(&name);
                found
                    .iter()
                    .for_each(|path| self.add_directory(path.clone()));
                self.add_directory(name);
                found
            }
            _ => Vec::new(),
        }
    }

    fn add_directory(&mut self, path: PathBuf) {
        self.shape_changed |= self.directories.insert(path);
    }

    fn look_at(&mut self, directory: &Path) -> Option<Task> {
        look_at(&mut self.units, directory, source_of)
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
}

/// Looks at the certificate in a `<name>/<key_type>` directory; its unit is made if it is there and
/// has none. `source`: what it comes from, by its file.
pub(super) fn look_at(
    units: &mut Units,
    directory: &Path,
    source: impl FnOnce(&Path) -> SourceKind,
) -> Option<Task> {
    let certificate = certificate_in(directory);
    // Not a certificate yet: its first generation is being written.
    if !units.contains(&certificate) && !directory.join("current").exists() {
        return None;
    }
    let certificate = FilePath::from(certificate);
    let unit = units.get_or_make(&certificate, || {
        unit_of(certificate.as_arc().clone(), source(&certificate))
    });
    let sight = unit.stat();
    unit.look(sight).then(|| unit.task(None))
}

/// The file with the certificate that a `<name>/<key_type>` directory has.
pub fn certificate_in(directory: &Path) -> PathBuf {
    directory.join("current/fullchain.pem")
}

fn unit_of(certificate: Arc<Path>, source: SourceKind) -> Unit {
    let private_key = certificate.with_file_name("privkey.pem");
    let id = EntryId {
        source,
        certificate,
    };
    Unit::new(id, Some(private_key.into()))
}

/// Who issued a generation, from the `meta.json` beside its certificate. One without it is taken
/// for ACME's: that only ranks it before the internal CA's.
pub(super) fn source_of(certificate: &Path) -> SourceKind {
    let internal = std::fs::read(certificate.with_file_name("meta.json"))
        .ok()
        .and_then(|bytes| serde_json::from_slice::<serde_json::Value>(&bytes).ok())
        .is_some_and(|meta| meta["source"] == "internal");
    if internal {
        SourceKind::Internal
    } else {
        SourceKind::Acme
    }
}

fn subdirectories(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .filter(|entry| !entry.file_name().as_encoded_bytes().starts_with(b"."))
        .map(|entry| entry.path())
        .collect()
}
