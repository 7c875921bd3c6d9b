//! The units of one source, and which of them want another look. Looks at nothing itself.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use time::{Duration, OffsetDateTime};

use super::file_path::FilePath;
use super::unit::{Finding, Served, Unit, Verdict};

/// Units by certificate file.
#[derive(Default)]
pub struct Units {
    /// Boxed: a third of a large map's nodes is room to grow.
    all: BTreeMap<FilePath, Box<Unit>>,
    soon: BTreeSet<FilePath>,
    failing: BTreeSet<FilePath>,
}

impl Units {
    pub fn get(&self, path: &Path) -> Option<&Unit> {
        self.all.get(path.as_os_str()).map(|unit| &**unit)
    }

    pub fn len(&self) -> usize {
        self.all.len()
    }

    pub fn contains(&self, path: &Path) -> bool {
        self.all.contains_key(path.as_os_str())
    }

    pub fn iter(&self) -> impl Iterator<Item = &Unit> {
        self.all.values().map(|unit| &**unit)
    }

    /// The unit there; it is made where there is none.
    pub fn get_or_make(&mut self, path: &FilePath, make: impl FnOnce() -> Unit) -> &mut Unit {
        let unit = self.all.entry(path.clone());
        unit.or_insert_with(|| Box::new(make()))
    }

    pub fn remove(&mut self, path: &Path) -> Option<Unit> {
        let unit = self.all.remove(path.as_os_str())?;
        self.soon.remove(path.as_os_str());
        self.failing.remove(path.as_os_str());
        Some(*unit)
    }

    /// Those that have to be examined again soon although nothing says that anything changed.
    pub fn soon(&self) -> &BTreeSet<FilePath> {
        &self.soon
    }

    /// Those whose candidate was not taken.
    pub fn failing(&self) -> &BTreeSet<FilePath> {
        &self.failing
    }

    /// When time alone makes a candidate good.
    pub fn retry_at(&self) -> Option<OffsetDateTime> {
        let failing = self.failing.iter();
        failing.filter_map(|path| self.get(path)?.retry_at()).min()
    }

    /// Judges what examining a unit found; see [`Unit::judge`]. `None`: there is no such unit.
    pub fn judge(
        &mut self,
        path: &Path,
        finding: Finding,
        served: Served<'_>,
        patience: Duration,
        now: OffsetDateTime,
    ) -> Option<Verdict> {
        let unit = self.all.get_mut(path.as_os_str())?;
        let verdict = unit.judge(finding, served, patience, now);
        let path = FilePath::from(&unit.id.certificate);
        keep(&mut self.soon, &path, unit.needs_recheck());
        keep(&mut self.failing, &path, unit.is_failing());
        Some(verdict)
    }
}

/// Makes a set contain a path, or not.
fn keep(set: &mut BTreeSet<FilePath>, path: &FilePath, wanted: bool) {
    if wanted {
        set.insert(path.clone());
    } else {
        set.remove(path);
    }
}
