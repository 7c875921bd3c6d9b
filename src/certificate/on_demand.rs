//! The certificates in the state directory that are had on demand: those that clients asked for
//! lately are in memory, the others on disk alone. It looks where it is told to and never searches
//! the directory, which may hold far more than memory should.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use time::{Duration, OffsetDateTime};

use super::generations;
use super::inventory::EntryId;
use super::table::SourceKind;
use super::unit::{Finding, Served, Task, Unit, Verdict};
use super::units::Units;

/// So many more than must go, as a part of what may stay: to find the least recently used takes a
/// look at all.
const SPARE_DIVISOR: usize = 16;

/// When a client asked for a certificate last. Every handshake notes it, without a lock.
#[derive(Debug, Default)]
pub struct LastAsked(AtomicI64);

impl LastAsked {
    /// Somebody asks now.
    pub fn note(&self, now: OffsetDateTime) {
        let now = milliseconds(now);
        // Read first: a name that everybody asks for would have its cache line written all the time.
        if self.0.load(Ordering::Relaxed) != now {
            self.0.store(now, Ordering::Relaxed);
        }
    }

    /// What stands in for `before`, which was asked for at its times.
    pub fn following(before: Option<&LastAsked>, now: OffsetDateTime) -> LastAsked {
        let at = before.map_or(milliseconds(now), |before| before.0.load(Ordering::Relaxed));
        LastAsked(AtomicI64::new(at))
    }

    /// `None`: never.
    pub fn at(&self) -> Option<OffsetDateTime> {
        let at = i128::from(self.0.load(Ordering::Relaxed));
        (at != 0).then(|| OffsetDateTime::from_unix_timestamp_nanos(at * 1_000_000).ok())?
    }
}

fn milliseconds(at: OffsetDateTime) -> i64 {
    i64::try_from(at.unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX)
}

/// Where the certificates are, and how many of them may be in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OnDemandDirectory {
    /// `on-demand/` of the state directory.
    pub root: PathBuf,
    pub max_loaded: usize,
}

/// The certificates of one directory that are in memory.
pub struct OnDemandCertificates {
    directory: OnDemandDirectory,
    /// By certificate file, below `<name>/<key_type>/current`.
    units: Units,
    evictions: u64,
}

impl OnDemandCertificates {
    pub fn new(directory: OnDemandDirectory) -> OnDemandCertificates {
        OnDemandCertificates {
            directory,
            units: Units::default(),
            evictions: 0,
        }
    }

    /// With other bounds; what is loaded stays so until the next look.
    pub fn set_max_loaded(&mut self, max_loaded: usize) {
        self.directory.max_loaded = max_loaded;
    }

    pub fn loaded(&self) -> usize {
        self.units.len()
    }

    /// How many had to make room for others.
    pub fn evictions(&self) -> u64 {
        self.evictions
    }

    /// Whether another look is due soon although nothing says that anything changed.
    pub fn needs_recheck(&self) -> bool {
        !self.units.soon().is_empty()
    }

    /// Looks at everything that is loaded. Returns the pairs that have to be examined.
    pub fn look_at_all(&mut self) -> Vec<Task> {
        let known = self.units.iter().filter_map(directory_of);
        let known: Vec<PathBuf> = known.map(Path::to_owned).collect();
        known.iter().filter_map(|path| self.look_at(path)).collect()
    }

    /// Looks at the certificates that some paths below the directory belong to, and at those in
    /// doubt.
    pub fn look(&mut self, paths: &BTreeSet<PathBuf>) -> Vec<Task> {
        let doubtful = self.units.soon().iter();
        let doubtful = doubtful.filter_map(|path| path.parent()?.parent());
        let mut directories: BTreeSet<PathBuf> = doubtful.map(Path::to_owned).collect();
        directories.extend(paths.iter().filter_map(|path| self.directory_at(path)));
        let looked = directories.iter().filter_map(|path| self.look_at(path));
        looked.collect()
    }

    /// The `<name>/<key_type>` directory at or above a path.
    fn directory_at(&self, path: &Path) -> Option<PathBuf> {
        let relative = path.strip_prefix(&self.directory.root).ok()?;
        let mut components = relative.components();
        let (name, key_type) = (components.next()?, components.next()?);
        Some(self.directory.root.join(name).join(key_type))
    }

    /// Looks at one certificate, which is loaded from now on if it is there.
    pub fn look_at(&mut self, directory: &Path) -> Option<Task> {
        generations::look_at(&mut self.units, directory, |_| SourceKind::OnDemand)
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

    /// Takes out what makes room for the others: nothing while there is room, else those that
    /// were asked for longest ago. `asked`: when that was; `None`: it cannot be served at all.
    pub fn evict(&mut self, asked: impl Fn(&EntryId) -> Option<OffsetDateTime>) -> Vec<EntryId> {
        let all = self.units.iter().map(|unit| (asked(&unit.id), &unit.id));
        let evicted: Vec<EntryId> = match surplus(self.units.len(), self.directory.max_loaded) {
            0 => return Vec::new(),
            surplus => least_recent(all.collect(), surplus).cloned().collect(),
        };
        for id in &evicted {
            self.units.remove(&id.certificate);
        }
        self.evictions += u64::try_from(evicted.len()).unwrap_or(u64::MAX);
        evicted
    }
}

/// How many of `loaded` have to go.
fn surplus(loaded: usize, max: usize) -> usize {
    match loaded.checked_sub(max) {
        None | Some(0) => 0,
        Some(excess) => excess + max / SPARE_DIVISOR,
    }
}

/// The `count` items with the smallest keys, in no order.
fn least_recent<K: Ord, T>(mut items: Vec<(K, T)>, count: usize) -> impl Iterator<Item = T> {
    let count = count.min(items.len());
    if (1..items.len()).contains(&count) {
        items.select_nth_unstable_by(count - 1, |(a, _), (b, _)| a.cmp(b));
    }
    items.truncate(count);
    items.into_iter().map(|(_, item)| item)
}

fn directory_of(unit: &Unit) -> Option<&Path> {
    unit.id.certificate.parent()?.parent()
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn the_least_recently_used_go_and_some_more_where_there_are_many() {
        assert_eq!(surplus(0, 2), 0);
        assert_eq!(surplus(2, 2), 0);
        assert_eq!(surplus(3, 2), 1);
        assert_eq!(surplus(1601, 1600), 101);
        let pick = |count| {
            let items = vec![(5, 'a'), (1, 'b'), (9, 'c'), (2, 'd')];
            let mut picked: Vec<char> = least_recent(items, count).collect();
            picked.sort_unstable();
            picked.into_iter().collect::<String>()
        };
        assert_eq!(pick(0), "");
        assert_eq!(pick(1), "b");
        assert_eq!(pick(2), "bd");
        assert_eq!(pick(4), "abcd");
        assert_eq!(pick(9), "abcd");
    }

    #[test]
    fn a_successor_was_asked_for_when_its_predecessor_was() {
        let now = datetime!(2026-11-25 12:00 UTC);
        let asked = LastAsked::default();
        assert_eq!(asked.at(), None);
        asked.note(now);
        assert_eq!(asked.at(), Some(now));
        let later = now + Duration::HOUR;
        assert_eq!(LastAsked::following(Some(&asked), later).at(), Some(now));
        assert_eq!(LastAsked::following(None, later).at(), Some(later));
    }

    #[test]
    fn what_is_evicted_is_looked_at_no_more() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().to_owned();
        let mut certificates = OnDemandCertificates::new(OnDemandDirectory {
            root: root.clone(),
            max_loaded: 1,
        });
        let directory = |name: &str| root.join(name).join("p256");
        for name in ["a.test", "b.test"] {
            assert!(certificates.look_at(&directory(name)).is_none(), "{name}");
            std::fs::create_dir_all(directory(name).join("current")).unwrap();
            assert!(certificates.look_at(&directory(name)).is_some(), "{name}");
        }
        let at = datetime!(2026-11-25 12:00 UTC);
        let asked = |id: &EntryId| {
            let newer = id.certificate.starts_with(directory("b.test"));
            Some(if newer { at + Duration::SECOND } else { at })
        };
        let evicted = certificates.evict(asked);
        assert_eq!(evicted.len(), 1);
        assert!(evicted[0].certificate.starts_with(directory("a.test")));
        assert_eq!((certificates.loaded(), certificates.evictions()), (1, 1));
        let changed = BTreeSet::from([directory("a.test").join("current")]);
        assert_eq!(
            certificates.look(&changed).len(),
            1,
            "a hint loads it again"
        );
        assert_eq!(certificates.look(&BTreeSet::from([root])).len(), 0);
    }
}
