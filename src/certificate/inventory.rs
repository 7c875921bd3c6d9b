//! Which certificates there are and which of them each name gets. Pure: time is an argument, and
//! nothing here touches a file or the live table.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use time::{Duration, OffsetDateTime};

use super::name::Name;
use super::overdue::{self, HostSet};
use super::table::{Choice, LiveCertificate, SourceKind, Standing, Table};

/// One certificate's place on disk. It stays the same while the certificate in it is replaced.
#[derive(Clone, Debug)]
pub struct EntryId {
    pub source: SourceKind,
    /// The file that holds the certificate (for the state directory, below `current`).
    pub certificate: Arc<Path>,
}

impl EntryId {
    /// Paths are compared as bytes: component by component, as `Path` does it, takes most of the
    /// time of a bulk load.
    fn key(&self) -> (SourceKind, &OsStr) {
        (self.source, self.certificate.as_os_str())
    }
}

impl PartialEq for EntryId {
    fn eq(&self, other: &EntryId) -> bool {
        self.key() == other.key()
    }
}

impl Eq for EntryId {}

impl Hash for EntryId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}

impl PartialOrd for EntryId {
    fn partial_cmp(&self, other: &EntryId) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for EntryId {
    fn cmp(&self, other: &EntryId) -> Ordering {
        self.key().cmp(&other.key())
    }
}

/// What is known of one certificate.
#[derive(Clone, Debug, Default)]
pub struct Entry {
    /// The last good one; what is served.
    pub live: Option<Arc<LiveCertificate>>,
    /// Whether its files are still there.
    pub on_disk: bool,
    /// Why what is on disk now is not what is served.
    /// Boxed: there are many entries and few failures.
    pub failure: Option<Box<Failure>>,
}

/// A candidate that was not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The file at fault.
    pub path: PathBuf,
    pub cause: String,
    pub since: OffsetDateTime,
}

/// All certificates, and the table that follows from them.
pub struct Inventory {
    entries: imbl::OrdMap<EntryId, Arc<Entry>>,
    by_name: HashMap<Name, Vec<EntryId>>,
    /// Starts and expiries still to come: instants at which a choice can change by itself.
    boundaries: BTreeSet<(OffsetDateTime, EntryId)>,
    /// The latest time that choices were made at.
    elected_at: OffsetDateTime,
    table: Table,
    /// The hosts for which our own certificate comes before one that is overdue.
    takeover: HostSet,
    /// Names that get other certificates than before, since [`Inventory::take_changed`].
    changed: Vec<Name>,
}

impl Inventory {
    pub fn new(default_name: Option<Name>) -> Inventory {
        Inventory {
            entries: imbl::OrdMap::new(),
            by_name: HashMap::new(),
            boundaries: BTreeSet::new(),
            elected_at: OffsetDateTime::UNIX_EPOCH,
            table: Table::new(default_name),
            takeover: HostSet::default(),
            changed: Vec::new(),
        }
    }

    /// The same, still empty, where our own certificates of these hosts come before overdue ones.
    pub fn taking_over(mut self, hosts: HostSet) -> Inventory {
        self.takeover = hosts;
        self
    }

    /// Takes over for these hosts from now on, and chooses again where that matters.
    pub fn set_takeover(&mut self, hosts: HostSet, now: OffsetDateTime) {
        if self.takeover == hosts {
            return;
        }
        self.takeover = hosts;
        let names = self.turn_back(now);
        self.elect_all(&names, now);
    }

    /// The names that get other certificates than when this was last asked.
    pub fn take_changed(&mut self) -> Vec<Name> {
        std::mem::take(&mut self.changed)
    }

    /// The table as it follows from the entries.
    pub fn table(&self) -> Table {
        self.table.clone()
    }

    pub fn entries(&self) -> imbl::OrdMap<EntryId, Arc<Entry>> {
        self.entries.clone()
    }

    pub fn get(&self, id: &EntryId) -> Option<&Arc<Entry>> {
        self.entries.get(id)
    }

    /// The longest chain, in certificates, that is served for one of the names by what is on disk
    /// in sources of this kind.
    pub fn chain_served(&self, source: SourceKind, names: &[Name]) -> usize {
        let choices = names.iter().filter_map(|name| self.table.get(name));
        choices
            .filter(|choice| choice.best.source == source && choice.standing.on_disk)
            .map(|choice| choice.best.key.chain_length())
            .max()
            .unwrap_or(0)
    }

    /// A good certificate was read: it replaces what the entry had.
    pub fn loaded(&mut self, id: &EntryId, live: Arc<LiveCertificate>, now: OffsetDateTime) {
        let old = self.entries.get(id).and_then(|entry| entry.live.clone());
        let entry = Entry {
            live: Some(live.clone()),
            on_disk: true,
            failure: None,
        };
        self.entries.insert(id.clone(), Arc::new(entry));
        self.add_boundaries(id, &live, now);
        let mut names: BTreeSet<Name> = live.key.names().iter().cloned().collect();
        for name in &names {
            let ids = self.by_name.entry(name.clone()).or_default();
            if ids.is_empty() {
                // Nearly all names have one.
                ids.reserve_exact(1);
            }
            if !ids.contains(id) {
                ids.push(id.clone());
            }
        }
        if let Some(old) = old {
            for name in old.key.names() {
                if !live.key.names().contains(name) {
                    self.unlist(name, id);
                    names.insert(name.clone());
                }
            }
        }
        self.elect_all(&names, now);
    }

    /// What is on disk is not good: the entry keeps what it had. Returns whether this is news.
    pub fn failed(&mut self, id: &EntryId, failure: Failure, now: OffsetDateTime) -> bool {
        let old = self.entries.get(id).map(|entry| Entry::clone(entry));
        let mut entry = old.unwrap_or_default();
        if let Some(known) = &entry.failure
            && known.path == failure.path
            && known.cause == failure.cause
            && entry.on_disk
        {
            return false;
        }
        entry.failure = Some(Box::new(failure));
        entry.on_disk = true;
        self.replace(id, entry, now);
        true
    }

    /// What is on disk is again what is served, after a failure. Returns whether there was one.
    pub fn recovered(&mut self, id: &EntryId, now: OffsetDateTime) -> bool {
        let Some(entry) = self.entries.get(id) else {
            return false;
        };
        if entry.failure.is_none() && entry.on_disk {
            return false;
        }
        let entry = Entry {
            failure: None,
            on_disk: true,
            live: entry.live.clone(),
        };
        self.replace(id, entry, now);
        true
    }

    /// The files of the entry are gone. What it served is kept, below everything on disk, until
    /// no name needs it. Returns whether this is news.
    pub fn vanished(&mut self, id: &EntryId, now: OffsetDateTime) -> bool {
        match self.entries.get(id) {
            None => return false,
            Some(entry) if entry.live.is_none() => {
                self.entries.remove(id);
                return true;
            }
            Some(entry) if !entry.on_disk => return false,
            Some(entry) => {
                let mut entry = Entry::clone(entry);
                entry.on_disk = false;
                entry.failure = Some(Box::new(Failure {
                    path: id.certificate.to_path_buf(),
                    cause: "is gone; what it held is served until something better is there"
                        .to_owned(),
                    since: now,
                }));
                self.replace(id, entry, now);
            }
        }
        self.forget_if_unused(id, now);
        true
    }

    /// The entry was taken out of the configuration: unlike one that vanished from disk it is not
    /// served any longer. Returns whether there was one.
    pub fn remove(&mut self, id: &EntryId, now: OffsetDateTime) -> bool {
        let Some(entry) = self.entries.remove(id) else {
            return false;
        };
        let Some(live) = &entry.live else {
            return true;
        };
        for name in live.key.names() {
            self.unlist(name, id);
        }
        let names = live.key.names().iter().cloned().collect();
        self.elect_all(&names, now);
        true
    }

    /// [`remove`](Self::remove) for what only makes room in memory: that is no change to tell of.
    pub fn evict(&mut self, id: &EntryId, now: OffsetDateTime) {
        let told = self.changed.len();
        self.remove(id, now);
        self.changed.truncate(told);
    }

    /// Makes the certificate of `name` the one of last resort.
    pub fn set_default(&mut self, name: Option<Name>) {
        self.table.set_default(name);
    }

    /// Time has come to `now`: choices that a start or an expiry changes are made again. Returns
    /// the certificates whose start or expiry has passed; all of them, if time went back.
    pub fn advance(&mut self, now: OffsetDateTime) -> Vec<EntryId> {
        let mut passed = Vec::new();
        let mut names = BTreeSet::new();
        if now < self.elected_at {
            names = self.turn_back(now);
            passed.extend(self.entries.keys().cloned());
        }
        self.elected_at = now;
        while let Some((instant, id)) = self.boundaries.first().cloned() {
            if instant >= now {
                break;
            }
            self.boundaries.pop_first();
            if let Some(live) = self.entries.get(&id).and_then(|entry| entry.live.as_ref()) {
                names.extend(live.key.names().iter().cloned());
                passed.push(id);
            }
        }
        self.elect_all(&names, now);
        passed
    }

    /// The clock was set back: boundaries that had passed are to come again.
    fn turn_back(&mut self, now: OffsetDateTime) -> BTreeSet<Name> {
        for (id, entry) in &self.entries.clone() {
            if let Some(live) = &entry.live {
                self.add_boundaries(id, live, now);
            }
        }
        self.by_name.keys().cloned().collect()
    }

    fn add_boundaries(&mut self, id: &EntryId, live: &LiveCertificate, now: OffsetDateTime) {
        let mut concerned = live.key.names().iter();
        let due = live.source.is_external() && concerned.any(|name| self.takeover.concerns(name));
        let due = due.then(|| live.due_at());
        // Choices change after these instants; at its start a certificate is valid already.
        let before_start = live.key.not_before() - Duration::NANOSECOND;
        for instant in [before_start, live.key.not_after()].into_iter().chain(due) {
            if instant >= now {
                self.boundaries.insert((instant, id.clone()));
            }
        }
    }

    /// The next instant at which [`advance`](Self::advance) may change something.
    pub fn next_boundary(&self) -> Option<OffsetDateTime> {
        self.boundaries.first().map(|(instant, _)| *instant)
    }

    /// All entries that cover a name, with the best first.
    pub fn candidates(&self, name: &Name, now: OffsetDateTime) -> Vec<(&EntryId, &Entry)> {
        let mut found: Vec<(&EntryId, &Entry, &Arc<LiveCertificate>)> = self
            .by_name
            .get(name)
            .into_iter()
            .flatten()
            .filter_map(|id| {
                let (id, entry) = self.entries.get_key_value(id)?;
                Some((id, &**entry, entry.live.as_ref()?))
            })
            .collect();
        found.sort_by_key(|(id, entry, live)| {
            let standing = self.standing(name, entry, live, now);
            std::cmp::Reverse((rank(standing, live), *id))
        });
        found
            .into_iter()
            .map(|(id, entry, _)| (id, entry))
            .collect()
    }

    fn replace(&mut self, id: &EntryId, entry: Entry, now: OffsetDateTime) {
        let names: BTreeSet<Name> = entry
            .live
            .iter()
            .flat_map(|live| live.key.names().iter().cloned())
            .collect();
        self.entries.insert(id.clone(), Arc::new(entry));
        self.elect_all(&names, now);
    }

    /// Drops vanished entries that no name is served from, this one's rivals included: else a
    /// renewer that gives each certificate a new file name would fill the memory.
    fn forget_if_unused(&mut self, id: &EntryId, now: OffsetDateTime) {
        let Some(live) = self.entries.get(id).and_then(|entry| entry.live.clone()) else {
            return;
        };
        let used = live.key.names().iter().any(|name| {
            self.table.get(name).is_some_and(|choice| {
                Arc::ptr_eq(&choice.best, &live)
                    || choice
                        .alternate
                        .as_ref()
                        .is_some_and(|a| Arc::ptr_eq(a, &live))
            })
        });
        if used {
            return;
        }
        self.entries.remove(id);
        for name in live.key.names() {
            self.unlist(name, id);
        }
        let names = live.key.names().iter().cloned().collect();
        self.elect_all(&names, now);
    }

    fn unlist(&mut self, name: &Name, id: &EntryId) {
        if let Some(ids) = self.by_name.get_mut(name) {
            ids.retain(|other| other != id);
            if ids.is_empty() {
                self.by_name.remove(name);
            }
        }
    }

    fn elect_all(&mut self, names: &BTreeSet<Name>, now: OffsetDateTime) {
        self.elected_at = self.elected_at.max(now);
        for name in names {
            self.elect_one(name, now);
        }
        // A better certificate may have made a vanished one superfluous.
        let unused: BTreeMap<EntryId, ()> = names
            .iter()
            .filter_map(|name| self.by_name.get(name))
            .flatten()
            .filter(|id| self.entries.get(*id).is_some_and(|entry| !entry.on_disk))
            .map(|id| (id.clone(), ()))
            .collect();
        for id in unused.into_keys() {
            self.forget_if_unused(&id, now);
        }
    }

    fn elect_one(&mut self, name: &Name, now: OffsetDateTime) {
        let choice = self.elect(name, now);
        let before = self.table.set(name, choice.clone());
        let same = match (&choice, &before) {
            // Another standing turns the look-up from the name to its wildcard, or back.
            (Some(choice), Some(before)) => {
                choice.serves_the_same(before) && choice.standing == before.standing
            }
            (choice, before) => choice.is_none() && before.is_none(),
        };
        if !same {
            self.changed.push(name.clone());
        }
    }

    fn standing(
        &self,
        name: &Name,
        entry: &Entry,
        live: &LiveCertificate,
        now: OffsetDateTime,
    ) -> Standing {
        Standing {
            valid: live.key.is_valid_at(now),
            on_disk: entry.on_disk,
            claim: overdue::claim(live, name, &self.takeover, now),
        }
    }

    fn elect(&self, name: &Name, now: OffsetDateTime) -> Option<Choice> {
        let candidates = self.candidates(name, now);
        let (_, first) = candidates.first()?;
        let best = first.live.clone()?;
        let standing = self.standing(name, first, &best, now);
        let alternate = candidates
            .iter()
            .filter_map(|(_, entry)| Some((entry, entry.live.as_ref()?)))
            .find(|(entry, live)| {
                // A late one is good enough for clients that cannot use the best.
                let is_as_good = (live.key.is_valid_at(now), entry.on_disk)
                    >= (standing.valid, standing.on_disk);
                live.key.algorithm() != best.key.algorithm() && is_as_good
            })
            .map(|(_, live)| live.clone());
        let files = || {
            candidates
                .iter()
                .filter(|(_, entry)| entry.on_disk)
                .filter_map(|(_, entry)| entry.live.as_ref())
                .filter(|live| live.source.is_external())
        };
        let valid_files = || files().filter(|live| live.key.is_valid_at(now));
        Some(Choice {
            best,
            alternate,
            standing,
            file_valid_until: valid_files().map(|live| live.key.not_after()).max(),
            file_due_at: valid_files().map(|live| live.due_at()).max(),
            file_known: files().next().is_some(),
        })
    }
}

/// Greater is better: standing, then source, then the newest start, then the longest chain, then
/// the latest end and the latest change on disk (a CA that starts its certificates at midnight
/// gives two of one day the same start). Exact before wildcard is decided at the look-up, where
/// both are known.
pub(super) fn rank(
    standing: Standing,
    live: &LiveCertificate,
) -> (
    Standing,
    std::cmp::Reverse<SourceKind>,
    OffsetDateTime,
    usize,
    OffsetDateTime,
    OffsetDateTime,
) {
    (
        standing,
        std::cmp::Reverse(live.source),
        live.key.not_before(),
        live.key.chain_length(),
        live.key.not_after(),
        live.changed_at,
    )
}
