//! The certificates in the state directory: which there are, and through which files the current
//! generation of each is read.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::inventory::EntryId;
use super::table::SourceKind;
use super::unit::{Task, Unit};

/// `certificates/` of the state directory.
pub struct Generations {
    root: PathBuf,
    /// By `<name>/<key_type>` directory.
    units: BTreeMap<PathBuf, Unit>,
    directories: BTreeSet<PathBuf>,
}

impl Generations {
    /// `root` is the `certificates` directory.
    pub fn new(root: PathBuf) -> Generations {
        Generations {
            root,
            units: BTreeMap::new(),
            directories: BTreeSet::new(),
        }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn directories(&self) -> &BTreeSet<PathBuf> {
        &self.directories
    }

    pub fn units(&self) -> impl Iterator<Item = &Unit> {
        self.units.values()
    }

    /// The unit whose certificate file this is.
    pub fn unit_mut(&mut self, certificate: &Path) -> Option<&mut Unit> {
        self.units.get_mut(certificate.parent()?.parent()?)
    }

    /// Looks at everything.
    pub fn look_at_all(&mut self, gone: &mut Vec<EntryId>) -> Vec<Task> {
        self.directories.clear();
        self.directories.insert(self.root.clone());
        let mut present = BTreeSet::new();
        for name in subdirectories(&self.root) {
            for key_type in subdirectories(&name) {
                present.insert(key_type);
            }
            self.directories.insert(name);
        }
        self.directories.extend(present.iter().cloned());
        self.units.retain(|directory, unit| {
            // What was served is given time to come back before it counts as gone.
            let keep = present.contains(directory) || unit.has_served();
            if !keep {
                gone.push(unit.id.clone());
            }
            keep
        });
        present.extend(self.units.keys().cloned());
        present
            .iter()
            .filter_map(|directory| self.look_at(directory))
            .collect()
    }

    /// Looks at the certificates to which some paths belong, and at those in doubt.
    pub fn look(&mut self, paths: &BTreeSet<PathBuf>) -> Vec<Task> {
        let mut directories: BTreeSet<PathBuf> = self
            .units
            .iter()
            .filter(|(_, unit)| unit.needs_recheck())
            .map(|(directory, _)| directory.clone())
            .collect();
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
        let Ok(relative) = path.strip_prefix(&self.root) else {
            return Vec::new();
        };
        let mut components = relative.components();
        match (components.next(), components.next()) {
            (Some(name), Some(key_type)) => {
                let name = self.root.join(name);
                let directory = name.join(key_type);
                self.directories.extend([name, directory.clone()]);
                vec![directory]
            }
            (Some(name), None) => {
                let name = self.root.join(name);
                let found = subdirectories(&name);
                self.directories.extend(found.iter().cloned().chain([name]));
                found
            }
            _ => Vec::new(),
        }
    }

    fn look_at(&mut self, directory: &Path) -> Option<Task> {
        let unit = match self.units.get_mut(directory) {
            Some(unit) => unit,
            None => {
                // Not a certificate yet: its first generation is being written.
                if !directory.join("current").exists() {
                    return None;
                }
                self.units
                    .entry(directory.to_owned())
                    .or_insert_with(|| unit_in(directory))
            }
        };
        let sight = unit.stat();
        unit.look(sight).then(|| unit.task(None))
    }
}

fn unit_in(directory: &Path) -> Unit {
    let certificate = directory.join("current/fullchain.pem");
    let id = EntryId {
        source: source_of(&certificate),
        certificate: Arc::new(certificate.clone()),
    };
    Unit::new(id, certificate, Some(directory.join("current/privkey.pem")))
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
