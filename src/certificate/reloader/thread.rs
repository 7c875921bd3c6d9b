//! The reloader's thread: when it looks at what, and what is watched meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use time::OffsetDateTime;
use tokio::sync::{broadcast, oneshot};

use super::change::{Change, ChangeResult, log_expired, names_of};
use super::scan::Scope;
use super::{Report, Sources, Swapped, Wake, pair_unit, start_watcher};
use crate::certificate::folder::Folder;
use crate::certificate::generations::Generations;
use crate::certificate::inventory::{EntryId, Inventory};
use crate::certificate::on_demand::OnDemandCertificates;
use crate::certificate::table::{Publisher, SourceKind};
use crate::certificate::unit::{PATIENCE, RECHECK, Unit};
use crate::certificate::watcher::{WatchEvent, Watched, Watcher};
use crate::clock;

/// How often the thread goes round even if nothing happens: the heartbeat's interval, and the
/// longest that a wall-clock boundary (an expiry) can be noticed late after a clock step.
const MAX_WAIT: Duration = Duration::from_secs(20);

/// Events that arrive within this of the first one are handled in one scan.
const GATHER: Duration = Duration::from_millis(10);

/// A scan of everything may take this share of one core's time where events are to be relied on.
/// (The poll is then a second look at what events have said already.)
const FULL_SCAN_SHARE: u32 = 200;

/// However expensive a scan of everything is, it is not put off for longer.
const MAX_FULL_SCAN_INTERVAL: Duration = Duration::from_secs(600);

/// What the thread owns.
pub(super) struct Thread {
    pub(super) pairs: Vec<Unit>,
    pub(super) folders: Vec<Folder>,
    pub(super) generations: Option<Generations>,
    pub(super) on_demand: Option<OnDemandCertificates>,
    pub(super) inventory: Inventory,
    pub(super) publisher: Publisher,
    pub(super) report: Arc<ArcSwap<Report>>,
    pub(super) swaps: broadcast::Sender<Swapped>,
    /// Once started it stays: its thread cannot be ended. Without `watch` it watches nothing.
    pub(super) watcher: Option<Watcher>,
    pub(super) watch: bool,
    pub(super) poll_interval: Duration,
    /// Whether an explicit pair changed since the watches were brought up to date.
    pub(super) pairs_changed: bool,
    pub(super) last_full: Instant,
    pub(super) full_interval: Duration,
    pub(super) loads: u64,
    pub(super) failures: u64,
    /// Lets time pass between two readings. A test writes files meanwhile.
    pub(super) pause: Box<dyn FnMut(Duration) + Send>,
}

impl Thread {
    pub(super) fn run(&mut self, inbox: &Receiver<Wake>) {
        self.first_load();
        self.update_watches(true);
        while let Some(scope) = self.wait(inbox) {
            self.scan(&scope, PATIENCE, clock::now());
            self.update_watches(matches!(scope, Scope::All));
        }
    }

    /// What it changed is not kept: it holds certificates, whose memory is to go when they are
    /// replaced.
    fn first_load(&mut self) {
        let started = Instant::now();
        let changes = self.scan(&Scope::All, time::Duration::ZERO, clock::now());
        self.publisher.first_load_done();
        let loaded = changes
            .iter()
            .filter(|change| change.result == ChangeResult::Loaded);
        tracing::info!(
            certificates = loaded.count(),
            failed = self.failures,
            took_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
            "first load done"
        );
    }

    /// Waits for a reason to look, and returns what to look at; `None` to stop.
    fn wait(&mut self, inbox: &Receiver<Wake>) -> Option<Scope> {
        let mut paths = BTreeSet::new();
        loop {
            let poll_in = self.full_interval.saturating_sub(self.last_full.elapsed());
            if poll_in.is_zero() {
                return Some(Scope::All);
            }
            let mut wait = poll_in.min(MAX_WAIT);
            let recheck = self.needs_recheck();
            if recheck {
                wait = wait.min(RECHECK.unsigned_abs());
            }
            let retry_at = self.retry_at();
            if retry_at.is_some_and(|at| at < clock::now()) {
                return Some(Scope::All);
            }
            if let Some(boundary) = self
                .inventory
                .next_boundary()
                .into_iter()
                .chain(retry_at)
                .min()
            {
                let until = boundary - clock::now();
                let until = Duration::try_from(until).unwrap_or(Duration::ZERO);
                // A validity counts whole seconds, both ends included: look just after.
                wait = wait.min(until + Duration::from_millis(1));
            }
            match inbox.recv_timeout(wait) {
                Err(RecvTimeoutError::Disconnected) | Ok(Wake::Stop) => return None,
                Err(RecvTimeoutError::Timeout) if recheck => return Some(Scope::Paths(paths)),
                Err(RecvTimeoutError::Timeout) => self.pass_time(clock::now()),
                Ok(Wake::Load(directory, answer)) => self.load(&directory, answer),
                Ok(Wake::Rescan(answer)) => self.rescan(answer),
                Ok(Wake::Reconfigure(sources, events, answer)) => {
                    self.obey(*sources, events, answer);
                }
                Ok(Wake::Hint(path)) => {
                    paths.insert(path);
                    return self.gather(inbox, paths);
                }
                Ok(Wake::Event(event)) => {
                    if !self.note(event, &mut paths) {
                        return Some(Scope::All);
                    }
                    if !paths.is_empty() {
                        return self.gather(inbox, paths);
                    }
                }
            }
        }
    }

    /// Takes in the events that follow closely, so that many of them cost one scan; `None` to stop.
    fn gather(&mut self, inbox: &Receiver<Wake>, mut paths: BTreeSet<PathBuf>) -> Option<Scope> {
        let started = Instant::now();
        while let Ok(wake) = inbox.recv_timeout(GATHER.saturating_sub(started.elapsed())) {
            match wake {
                Wake::Event(event) => {
                    if !self.note(event, &mut paths) {
                        return Some(Scope::All);
                    }
                }
                Wake::Hint(path) => drop(paths.insert(path)),
                Wake::Load(directory, answer) => self.load(&directory, answer),
                Wake::Rescan(answer) => {
                    self.rescan(answer);
                    return Some(Scope::Paths(BTreeSet::new()));
                }
                Wake::Reconfigure(sources, events, answer) => {
                    self.obey(*sources, events, answer);
                    return Some(Scope::Paths(BTreeSet::new()));
                }
                Wake::Stop => return None,
            }
        }
        Some(Scope::Paths(paths))
    }

    /// Adds what an event is about to `paths`. `false`: it says that events were lost.
    fn note(&self, event: WatchEvent, paths: &mut BTreeSet<PathBuf>) -> bool {
        match event {
            WatchEvent::Overflow => false,
            WatchEvent::Changed { directory, name } => {
                let path = match name {
                    // A hidden entry is nothing itself, but `..data` turns what is beside it.
                    Some(name) if !name.as_encoded_bytes().starts_with(b"..") => {
                        directory.join(name)
                    }
                    _ => directory.clone(),
                };
                paths.insert(path);
                // The directory may be where links lead; then it stands for its sources.
                paths.extend(
                    self.watcher
                        .iter()
                        .flat_map(|watcher| watcher.stands_for(&directory)),
                );
                true
            }
        }
    }

    /// A rescan on request: the answer is wanted now, so nothing is given time to get better.
    fn rescan(&mut self, answer: oneshot::Sender<Vec<Change>>) {
        let changes = self.scan(&Scope::All, time::Duration::ZERO, clock::now());
        self.update_watches(true);
        // Whoever asked may have gone.
        let _ = answer.send(changes);
    }

    fn load(&mut self, directory: &Path, answer: oneshot::Sender<bool>) {
        let loaded = self.load_on_demand(directory, clock::now());
        // Whoever asked may have gone.
        let _ = answer.send(loaded);
    }

    fn obey(
        &mut self,
        sources: Sources,
        events: Sender<Wake>,
        answer: oneshot::Sender<Vec<Change>>,
    ) {
        if sources.watch && self.watcher.is_none() {
            self.watcher = start_watcher(events);
        }
        let changes = self.reconfigure(sources);
        // Whoever asked may have gone.
        let _ = answer.send(changes);
    }

    /// Goes on with other sources. What is named before and after keeps its state.
    fn reconfigure(&mut self, sources: Sources) -> Vec<Change> {
        self.poll_interval = sources.poll_interval;
        self.watch = sources.watch;
        self.inventory.set_default(sources.default_name);
        self.inventory.set_takeover(sources.takeover, clock::now());
        self.on_demand = match (self.on_demand.take(), sources.on_demand) {
            (Some(mut known), Some(wanted)) => {
                known.set_max_loaded(wanted.max_loaded);
                Some(known)
            }
            (_, wanted) => wanted.map(OnDemandCertificates::new),
        };
        let mut pairs: BTreeMap<EntryId, Unit> = std::mem::take(&mut self.pairs)
            .into_iter()
            .map(|unit| (unit.id.clone(), unit))
            .collect();
        self.pairs = sources
            .pairs
            .into_iter()
            .map(pair_unit)
            .map(|new| match pairs.remove(&new.id) {
                Some(old) if old.has_files_of(&new) => old,
                _ => new,
            })
            .collect();
        let mut folders: BTreeMap<PathBuf, Folder> = std::mem::take(&mut self.folders)
            .into_iter()
            .map(|folder| (folder.root().to_owned(), folder))
            .collect();
        self.folders = sources
            .folders
            .iter()
            .map(|root| folders.remove(root).unwrap_or_else(|| Folder::new(root)))
            .collect();
        // What comes first, then what goes: a certificate that moved is served all the time.
        let mut changes = self.scan(&Scope::All, time::Duration::ZERO, clock::now());
        let now = clock::now();
        changes.extend(self.take_out_unconfigured(now));
        self.publisher.publish(self.inventory.table());
        self.publish_report(now);
        self.announce();
        self.update_watches(true);
        changes
    }

    /// Also what vanished from a folder and is served still belongs to that folder.
    fn take_out_unconfigured(&mut self, now: OffsetDateTime) -> Vec<Change> {
        let pairs: BTreeSet<&EntryId> = self.pairs.iter().map(|unit| &unit.id).collect();
        let is_configured = |id: &EntryId| match id.source {
            SourceKind::File => pairs.contains(id),
            SourceKind::Folder => self
                .folders
                .iter()
                .any(|folder| folder.reaches(&id.certificate)),
            SourceKind::OnDemand => self.on_demand.is_some(),
            SourceKind::Acme | SourceKind::Internal => true,
        };
        let entries = self.inventory.entries();
        let gone: Vec<&EntryId> = entries.keys().filter(|id| !is_configured(id)).collect();
        gone.into_iter()
            .filter_map(|id| self.take_out(id, now))
            .collect()
    }

    fn take_out(&mut self, id: &EntryId, now: OffsetDateTime) -> Option<Change> {
        let names = self
            .inventory
            .get(id)?
            .live
            .as_deref()
            .map_or_else(Vec::new, names_of);
        self.inventory.remove(id, now);
        tracing::info!(
            file = %id.certificate.display(), ?names,
            "certificate is no longer configured: it is not served any more"
        );
        Some(Change {
            certificate: id.certificate.clone(),
            names,
            result: ChangeResult::Removed,
            serial: None,
            cause: None,
            swap: None,
        })
    }

    /// Choices change with time too.
    pub(super) fn pass_time(&mut self, now: OffsetDateTime) {
        let passed = self.inventory.advance(now);
        if !passed.is_empty() {
            self.publisher.publish(self.inventory.table());
            self.warn_of_expired(&passed, now);
        }
        self.publish_report(now);
        self.announce();
    }

    pub(super) fn warn_of_expired(&self, passed: &[EntryId], now: OffsetDateTime) {
        let entries = passed.iter().filter_map(|id| self.inventory.get(id));
        for live in entries.filter_map(|entry| entry.live.as_ref()) {
            if now > live.key.not_after() {
                log_expired(live);
            }
        }
    }

    /// Tells whoever listens what the tables that were just published change.
    pub(super) fn announce(&mut self) {
        let mut names = self.inventory.take_changed();
        // What is had on demand comes and goes far too often to be looked at each time.
        let table = self.inventory.table();
        names.retain(|name| {
            let choice = table.get(name);
            choice.is_none_or(|choice| choice.best.source != SourceKind::OnDemand)
        });
        if !names.is_empty() {
            // Nobody has to listen.
            let _ = self.swaps.send(Arc::new(names));
        }
    }

    /// How long until the next scan of everything, if one takes this long.
    pub(super) fn pace(&self, took: Duration) -> Duration {
        let watcher = self.watcher.as_ref().filter(|_| self.watch);
        let relied_on = watcher.is_some_and(Watcher::is_reliable);
        if !relied_on {
            return self.poll_interval;
        }
        let paced = (took * FULL_SCAN_SHARE).min(MAX_FULL_SCAN_INTERVAL);
        self.poll_interval.max(paced)
    }

    pub(super) fn needs_recheck(&self) -> bool {
        self.pairs.iter().any(Unit::needs_recheck)
            || self.folders.iter().any(Folder::needs_recheck)
            || self
                .on_demand
                .as_ref()
                .is_some_and(OnDemandCertificates::needs_recheck)
            || self
                .generations
                .as_ref()
                .is_some_and(Generations::needs_recheck)
    }

    pub(super) fn retry_at(&self) -> Option<OffsetDateTime> {
        let pairs = self.pairs.iter().filter_map(Unit::retry_at);
        pairs
            .chain(self.folders.iter().filter_map(Folder::retry_at))
            .min()
    }

    /// Watches what there is now: after a scan of everything, and whenever directories or links
    /// came or went.
    fn update_watches(&mut self, full: bool) {
        let changed = self.folders.iter_mut().map(Folder::take_shape_changed);
        let changed = changed.fold(false, |any, one| any | one);
        let generations = self.generations.as_mut();
        let changed = generations.is_some_and(Generations::take_shape_changed) | changed;
        let changed = std::mem::take(&mut self.pairs_changed) | changed;
        let Some(watcher) = self.watcher.as_mut().filter(|_| full || changed) else {
            return;
        };
        if !self.watch {
            watcher.watch(&Watched::default());
            return;
        }
        let mut wanted = Watched::default();
        for unit in &self.pairs {
            wanted.files.push(&unit.id.certificate);
            wanted.files.extend(unit.private_key.as_deref());
            wanted.files.extend(unit.password_file());
        }
        for folder in &self.folders {
            wanted.directories.push(folder.root());
            wanted
                .directories
                .extend(folder.directories().iter().map(PathBuf::as_path));
            wanted
                .links
                .extend(folder.links().iter().map(PathBuf::as_path));
        }
        if let Some(generations) = &self.generations {
            wanted.directories.push(generations.root());
            wanted
                .directories
                .extend(generations.directories().iter().map(PathBuf::as_path));
        }
        watcher.watch(&wanted);
    }
}
