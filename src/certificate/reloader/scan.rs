//! One scan: looks, reads, verifies and publishes, in parts.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use time::OffsetDateTime;

use super::change::{Change, ChangeResult, loaded, log_changes, names_of, recovered, vanished};
use super::thread::Thread;
use super::{OnDemandReport, Report};
use crate::certificate::certified_key::CertifiedKey;
use crate::certificate::folder::{FileReading, ToRead};
use crate::certificate::generations;
use crate::certificate::inventory::{EntryId, Failure};
use crate::certificate::observe::ReadError;
use crate::certificate::on_demand::LastAsked;
use crate::certificate::parallel;
use crate::certificate::table::{LiveCertificate, SourceKind};
use crate::certificate::unit::{Finding, Replacement, Served, Task, Verdict};

/// What a scan looks at.
pub(super) enum Scope {
    All,
    Paths(BTreeSet<PathBuf>),
}

/// Two readings of a file that just changed have to agree across this pause.
const CONFIRM_AFTER: Duration = Duration::from_millis(25);

/// How many files are read, or pairs examined, before what they hold is published. Small enough
/// for the first handshakes of a bulk load not to wait, large enough for all cores to have work.
const CHUNK: usize = 1024;

/// One scan under way.
struct Scan {
    now: OffsetDateTime,
    patience: time::Duration,
    changes: Vec<Change>,
    unpublished: bool,
}

impl Scan {
    fn new(now: OffsetDateTime, patience: time::Duration) -> Scan {
        Scan {
            now,
            patience,
            changes: Vec::new(),
            unpublished: false,
        }
    }
}

impl Thread {
    /// Looks, reads, verifies and publishes.
    pub(super) fn scan(
        &mut self,
        scope: &Scope,
        patience: time::Duration,
        now: OffsetDateTime,
    ) -> Vec<Change> {
        let started = Instant::now();
        let mut scan = Scan::new(now, patience);
        self.scan_pairs(&mut scan);
        self.scan_generations(scope, &mut scan);
        self.scan_on_demand(scope, &mut scan);
        for index in 0..self.folders.len() {
            self.scan_folder(index, scope, &mut scan);
        }
        let passed = self.inventory.advance(scan.now);
        scan.unpublished |= !passed.is_empty();
        self.publish(&mut scan);
        self.warn_of_expired(&passed, scan.now);
        self.publish_report(scan.now);
        log_changes(&scan.changes);
        if matches!(scope, Scope::All) {
            self.last_full = Instant::now();
            self.full_interval = self.pace(started.elapsed());
        }
        self.announce();
        self.tidies_after(scan.changes.len());
        scan.changes
    }

    fn scan_pairs(&mut self, scan: &mut Scan) {
        let mut tasks = Vec::new();
        for unit in &mut self.pairs {
            let sight = unit.stat();
            if unit.look(sight) {
                tasks.push(unit.task(None));
            }
        }
        // Their links may lead elsewhere now.
        self.pairs_changed |= !tasks.is_empty();
        self.examine(tasks, scan);
    }

    fn scan_generations(&mut self, scope: &Scope, scan: &mut Scan) {
        let Some(generations) = &mut self.generations else {
            return;
        };
        let mut gone = Vec::new();
        let tasks = match scope {
            Scope::All => generations.look_at_all(&mut gone),
            Scope::Paths(paths) => generations.look(paths),
        };
        self.gone(gone, scan);
        self.examine(tasks, scan);
    }

    fn scan_on_demand(&mut self, scope: &Scope, scan: &mut Scan) {
        let Some(on_demand) = &mut self.on_demand else {
            return;
        };
        let tasks = match scope {
            Scope::All => on_demand.look_at_all(),
            Scope::Paths(paths) => on_demand.look(paths),
        };
        self.examine(tasks, scan);
        self.evict(scan);
    }

    /// Loads what a client asked for, and says whether it can be served.
    pub(super) fn load_on_demand(&mut self, directory: &Path, now: OffsetDateTime) -> bool {
        let Some(on_demand) = &mut self.on_demand else {
            return false;
        };
        let task = on_demand.look_at(directory);
        let mut scan = Scan::new(now, time::Duration::ZERO);
        self.examine(task.into_iter().collect(), &mut scan);
        self.evict(&mut scan);
        self.publish(&mut scan);
        self.publish_report(now);
        self.announce();
        for change in &scan.changes {
            tracing::debug!(names = ?change.names, result = ?change.result, "had on demand");
        }
        let id = EntryId {
            source: SourceKind::OnDemand,
            certificate: generations::certificate_in(directory).into(),
        };
        self.inventory
            .get(&id)
            .is_some_and(|entry| entry.live.is_some())
    }

    fn evict(&mut self, scan: &mut Scan) {
        let Some(on_demand) = &mut self.on_demand else {
            return;
        };
        let inventory = &self.inventory;
        let asked = |id: &EntryId| inventory.get(id)?.live.as_ref()?.asked.at();
        for id in on_demand.evict(asked) {
            self.inventory.evict(&id, scan.now);
            scan.unpublished = true;
        }
    }

    fn scan_folder(&mut self, index: usize, scope: &Scope, scan: &mut Scan) {
        let folder = &mut self.folders[index];
        let to_read = match scope {
            Scope::All => folder.survey_all(),
            Scope::Paths(paths) => folder.survey(paths),
        };
        let now = scan.now;
        let mut gone = Vec::new();
        let mut heard = 0;
        let mut rest = to_read.into_iter();
        let next = |thread: &mut Thread| {
            let waiting = rest.as_mut_slice();
            thread
                .publisher
                .bring_forward(waiting, &mut heard, |file: &ToRead| file.path.as_arc());
            rest.by_ref().take(CHUNK).collect()
        };
        let read = |file| FileReading::read(file, now);
        parallel::pipeline(self, next, read, |thread, readings| {
            let folder = &mut thread.folders[index];
            folder.take_in(readings);
            let tasks = folder.due(false, &mut gone);
            thread.examine(tasks, scan);
        });
        let tasks = self.folders[index].due(true, &mut gone);
        self.gone(gone, scan);
        self.examine(tasks, scan);
    }

    fn gone(&mut self, gone: Vec<EntryId>, scan: &mut Scan) {
        for id in gone {
            if self.inventory.vanished(&id, scan.now) {
                scan.changes.push(vanished(&id));
                scan.unpublished = true;
            }
        }
    }

    /// Reads and verifies, a chunk at a time, and publishes each.
    fn examine(&mut self, tasks: Vec<Task>, scan: &mut Scan) {
        let mut heard = 0;
        let mut rest = tasks.into_iter();
        while !rest.as_slice().is_empty() {
            if rest.len() > CHUNK {
                let waiting = rest.as_mut_slice();
                self.publisher
                    .bring_forward(waiting, &mut heard, |task: &Task| &task.id.certificate);
            }
            let part = rest.by_ref().take(CHUNK).collect();
            for (id, finding) in examine(part, scan.now, &mut self.pause) {
                if let Some(change) = self.apply(&id, finding, scan) {
                    scan.changes.push(change);
                    scan.unpublished = true;
                }
            }
            self.publish(scan);
        }
    }

    fn publish(&mut self, scan: &mut Scan) {
        if std::mem::take(&mut scan.unpublished) {
            self.publisher.publish(self.inventory.table());
        }
    }

    fn judge(
        &mut self,
        id: &EntryId,
        finding: Finding,
        served: Served<'_>,
        scan: &Scan,
    ) -> Option<Verdict> {
        let (patience, now) = (scan.patience, scan.now);
        let path = &id.certificate;
        match id.source {
            SourceKind::File => {
                let unit = self.pairs.iter_mut().find(|unit| unit.id == *id)?;
                Some(unit.judge(finding, served, patience, now))
            }
            SourceKind::Folder => self
                .folders
                .iter_mut()
                .find(|folder| path.starts_with(folder.root()) && folder.has_unit(path))?
                .judge(path, finding, served, patience, now),
            SourceKind::OnDemand => self
                .on_demand
                .as_mut()?
                .judge(path, finding, served, patience, now),
            SourceKind::Acme | SourceKind::Internal => self
                .generations
                .as_mut()?
                .judge(path, finding, served, patience, now),
        }
    }

    fn apply(&mut self, id: &EntryId, finding: Finding, scan: &Scan) -> Option<Change> {
        let now = scan.now;
        let served = self.inventory.get(id).and_then(|entry| entry.live.clone());
        let key = served.as_ref().map(|live| &live.key);
        let shown = match &finding {
            Finding::Good { key, .. } => self.inventory.chain_served(id.source, key.names()),
            _ => 0,
        };
        let in_service = Served {
            key,
            chain_length: key.map_or(0, CertifiedKey::chain_length).max(shown),
        };
        match self.judge(id, finding, in_service, scan)? {
            Verdict::Wait => None,
            Verdict::Unchanged => {
                let news = self.inventory.recovered(id, now);
                news.then(|| recovered(id, served.as_deref()))
            }
            Verdict::Vanished => self.inventory.vanished(id, now).then(|| vanished(id)),
            Verdict::Failed { path, cause } => self.fail(id, path, cause, now),
            Verdict::Replace(Replacement {
                key,
                changed_at,
                private_key,
                seen,
            }) => {
                let live = Arc::new(LiveCertificate {
                    key: *key,
                    source: self.source_of(id),
                    path: id.certificate.clone(),
                    private_key,
                    loaded_at: now,
                    changed_at,
                    asked: LastAsked::following(served.as_deref().map(|old| &old.asked), now),
                });
                self.loads += 1;
                self.inventory.loaded(id, live.clone(), now);
                Some(loaded(live, served, seen))
            }
        }
    }

    /// In the state directory one issuer may follow another.
    fn source_of(&self, id: &EntryId) -> SourceKind {
        match id.source {
            SourceKind::Acme | SourceKind::Internal => generations::source_of(&id.certificate),
            source => source,
        }
    }

    fn fail(
        &mut self,
        id: &EntryId,
        path: PathBuf,
        cause: String,
        now: OffsetDateTime,
    ) -> Option<Change> {
        let failure = Failure {
            path: path.clone(),
            cause: cause.clone(),
            since: now,
        };
        if !self.inventory.failed(id, failure, now) {
            return None;
        }
        self.failures += 1;
        let served = self.inventory.get(id).and_then(|entry| entry.live.clone());
        let names = served.as_ref().map_or_else(Vec::new, |live| names_of(live));
        match &served {
            Some(live) => tracing::warn!(
                file = %path.display(), %cause, ?names, serial = live.key.serial(),
                "certificate not taken: the last good one stays in service"
            ),
            None => tracing::warn!(file = %path.display(), %cause, "certificate not loaded"),
        }
        Some(Change {
            certificate: id.certificate.clone(),
            names,
            result: ChangeResult::Failed,
            serial: None,
            cause: Some(format!("{} {cause}", path.display())),
            swap: None,
        })
    }

    pub(super) fn publish_report(&self, now: OffsetDateTime) {
        self.report.store(Arc::new(Report {
            entries: self.inventory.entries(),
            heartbeat: now,
            loads: self.loads,
            failures: self.failures,
            on_demand: self.on_demand.as_ref().map(|it| OnDemandReport {
                loaded: it.loaded(),
                evictions: it.evictions(),
            }),
        }));
    }
}

/// Reads and verifies. What just changed is read twice, with a pause between, and both readings
/// have to agree.
fn examine(
    tasks: Vec<Task>,
    now: OffsetDateTime,
    pause: &mut dyn FnMut(Duration),
) -> Vec<(EntryId, Finding)> {
    let mut findings = parallel::map(tasks, |task| {
        let finding = task.examine(now);
        (task, finding)
    });
    let in_doubt = |finding: &Finding| matches!(finding, Finding::Good { young: true, .. });
    if findings.iter().any(|(_, finding)| in_doubt(finding)) {
        pause(CONFIRM_AFTER);
        for (task, finding) in &mut findings {
            if in_doubt(finding) {
                confirm(task, finding, now);
            }
        }
    }
    findings
        .into_iter()
        .map(|(task, finding)| (task.id, finding))
        .collect()
}

fn confirm(task: &Task, finding: &mut Finding, now: OffsetDateTime) {
    let second = task.examine_afresh(now);
    let agree = match (&*finding, &second) {
        (Finding::Good { digest: a, .. }, Finding::Good { digest: b, .. }) => a == b,
        _ => false,
    };
    if !agree {
        *finding = Finding::Bad {
            path: task.id.certificate.to_path_buf(),
            cause: ReadError::Unstable.to_string(),
        };
    }
}
