//! What somebody should know although everything is served: kept up to date beside the reloader,
//! told once in the log, and shown by the admin API. It changes nothing about what is served.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use time::OffsetDateTime;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

use super::inventory::{Entry, EntryId};
use super::name::Name;
use super::overdue::{self, HostSet, Late, Overdue};
use super::reloader::{Reloader, Report};
use super::warnings::{self, FileFacts, MountedFiles};
use crate::clock;

/// How often it is looked whether anything changed, if nothing says so sooner.
const INTERVAL: Duration = Duration::from_secs(1);
/// Changes that come within this are taken together.
const GATHER: Duration = Duration::from_millis(100);
/// Looking takes at most this part of the time: with 100,000 certificates and one change a second
/// it is no longer done for each.
const SHARE: u32 = 100;
/// Warnings of one kind that are told one by one; a folder of 100,000 keys with the wrong mode is
/// no 100,000 lines.
const MAX_TOLD: usize = 50;

/// What deserves attention now.
#[derive(Clone, Debug, Default)]
pub struct Attention {
    pub late: Late,
    /// Of names that several sources have.
    pub contested: Vec<String>,
    /// Of the files themselves.
    pub files: Vec<String>,
}

/// The latest [`Attention`], for whoever shows it.
pub type SharedAttention = Arc<ArcSwap<Attention>>;

/// What attention is paid to.
pub struct Guard {
    pub reloader: Reloader,
    /// The hosts of all sites that are served over TLS.
    pub served: HostSet,
    /// Those of them for which we step in.
    pub takeover: HostSet,
    /// The drop folders.
    pub folders: Vec<PathBuf>,
    pub attention: SharedAttention,
}

/// The certificates about whose files there is something to warn of.
type OfFiles = BTreeMap<EntryId, Vec<String>>;

impl Guard {
    /// Looks whenever something changed or became late, until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        tokio::select! {
            () = self.reloader.table().loaded() => {}
            () = shutdown.cancelled() => return,
        }
        let mut swaps = self.reloader.swaps();
        let mut seen: Option<Arc<Report>> = None;
        let mut of_files = OfFiles::new();
        loop {
            let report = self.reloader.report();
            let now = clock::now();
            let began = Instant::now();
            if self.is_news(seen.as_deref(), &report, now) {
                // It asks the file system.
                let before = seen.as_deref();
                tokio::task::block_in_place(|| self.look(&report, before, &mut of_files, now));
                seen = Some(report);
            }
            let pause = GATHER.max(began.elapsed() * SHARE);
            let wait = self.until_next(now).max(pause);
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
                swapped = swaps.recv() => {
                    if matches!(swapped, Err(RecvError::Closed)) {
                        return;
                    }
                    tokio::time::sleep(pause).await;
                    while swaps.try_recv().is_ok() {}
                }
            }
        }
    }

    fn is_news(&self, seen: Option<&Report>, report: &Report, now: OffsetDateTime) -> bool {
        let same = seen.is_some_and(|seen| seen.entries.ptr_eq(&report.entries));
        let is_due = |next| next < now;
        let attention = self.attention.load();
        // A mode that is mended changes no certificate.
        !same || !attention.files.is_empty() || attention.late.next.is_some_and(is_due)
    }

    fn until_next(&self, now: OffsetDateTime) -> Duration {
        let next = self.attention.load().late.next.map(|next| next - now);
        // It is late only after the instant itself.
        let next = next.map(|wait| wait + time::Duration::MILLISECOND);
        let next = next.map(|wait| Duration::try_from(wait).unwrap_or_default());
        next.map_or(INTERVAL, |wait| wait.min(INTERVAL))
    }

    fn look(
        &self,
        report: &Report,
        before: Option<&Report>,
        of_files: &mut OfFiles,
        now: OffsetDateTime,
    ) {
        let entries = || report.entries.iter().map(|(id, entry)| (id, &**entry));
        let late = overdue::late(entries(), &self.served, now);
        let contested = warnings::contested(entries(), &self.folders, &self.takeover, now);
        look_at_files(report, before, of_files);
        // One file may belong to several certificates.
        let files: BTreeSet<&String> = of_files.values().flatten().collect();
        let files: Vec<String> = files.into_iter().cloned().collect();
        let before = self.attention.load();
        let is_new =
            |(id, overdue): &(&EntryId, &Overdue)| before.late.entries.get(*id) != Some(*overdue);
        let new: Vec<_> = late.entries.iter().filter(is_new).collect();
        for (id, overdue) in new.iter().take(MAX_TOLD) {
            self.tell(&id.certificate.display().to_string(), overdue);
        }
        tell_more(new.len());
        tell_new(&before.contested, &contested);
        tell_new(&before.files, &files);
        self.attention.store(Arc::new(Attention {
            late,
            contested,
            files,
        }));
    }

    fn tell(&self, file: &str, overdue: &Overdue) {
        let takes_over = |name: &Name| self.takeover.concerns(name);
        let takeover = overdue.names.iter().any(takes_over);
        tracing::warn!(
            names = ?overdue.names,
            file,
            since = clock::rfc3339(overdue.since),
            not_after = clock::rfc3339(overdue.not_after),
            takeover,
            "certificate is overdue: whoever renews it has not done so in time"
        );
    }
}

/// The files of a certificate are looked at again only if it is another than `before`, or if there
/// was something to warn of.
fn look_at_files(report: &Report, before: Option<&Report>, found: &mut OfFiles) {
    let mounted = MountedFiles::of_process();
    found.retain(|id, _| report.entries.contains_key(id));
    let is_same = |id: &EntryId, entry: &Arc<Entry>| {
        let before = before.and_then(|before| before.entries.get(id));
        before.is_some_and(|before| Arc::ptr_eq(before, entry))
    };
    for (id, entry) in &report.entries {
        if !id.source.is_external() || (is_same(id, entry) && !found.contains_key(id)) {
            continue;
        }
        let warnings = warnings::of_files(id, entry, |path| FileFacts::of(path, &mounted));
        if warnings.is_empty() {
            found.remove(id);
        } else {
            found.insert(id.clone(), warnings);
        }
    }
}

fn tell_new(before: &[String], now: &[String]) {
    let before: BTreeSet<&String> = before.iter().collect();
    let new: Vec<&String> = now.iter().filter(|it| !before.contains(it)).collect();
    for warning in new.iter().take(MAX_TOLD) {
        tracing::warn!("{warning}");
    }
    tell_more(new.len());
}

fn tell_more(all: usize) {
    let more = all.saturating_sub(MAX_TOLD);
    if more > 0 {
        tracing::warn!(more, "and more warnings of this kind");
    }
}

fn shortened(warnings: Vec<String>) -> Vec<String> {
    let more = warnings.len().saturating_sub(MAX_TOLD);
    let mut shown: Vec<String> = warnings.into_iter().take(MAX_TOLD).collect();
    if more > 0 {
        shown.push(format!("and {more} more warnings of this kind"));
    }
    shown
}

impl Attention {
    /// The same for certificates that nobody serves yet.
    pub fn of(
        entries: &imbl::OrdMap<EntryId, Arc<Entry>>,
        served: &HostSet,
        takeover: &HostSet,
        folders: &[PathBuf],
        now: OffsetDateTime,
    ) -> Attention {
        let all = || entries.iter().map(|(id, entry)| (id, &**entry));
        let mounted = MountedFiles::of_process();
        let facts = |path: &std::path::Path| FileFacts::of(path, &mounted);
        let files = all().flat_map(|(id, entry)| warnings::of_files(id, entry, facts));
        let files: BTreeSet<String> = files.collect();
        Attention {
            late: overdue::late(all(), served, now),
            contested: warnings::contested(all(), folders, takeover, now),
            files: files.into_iter().collect(),
        }
    }

    /// What is wrong, one sentence each, the same that `/readyz` and `/status` show.
    pub fn warnings(&self) -> Vec<String> {
        let late = self.late.entries.iter().map(|(id, overdue)| {
            let names: Vec<String> = overdue.names.iter().map(Name::to_string).collect();
            format!(
                "the certificate {} for {} was due for renewal at {} and has not been replaced; \
                 it expires at {}",
                id.certificate.display(),
                names.join(", "),
                clock::rfc3339(overdue.since),
                clock::rfc3339(overdue.not_after)
            )
        });
        [late.collect(), self.contested.clone(), self.files.clone()]
            .into_iter()
            .flat_map(shortened)
            .collect()
    }
}
