//! What somebody should know although everything is served: kept up to date beside the reloader,
//! told once in the log, and shown by the admin API. It changes nothing about what is served.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use time::OffsetDateTime;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

use super::name::Name;
use super::overdue::{self, HostSet, Late, Overdue};
use super::reloader::{Reloader, Report};
use crate::clock;

/// How often it is looked whether anything changed, if nothing says so sooner.
const INTERVAL: Duration = Duration::from_secs(20);
/// Changes that come within this are taken together.
const GATHER: Duration = Duration::from_millis(100);
/// Looking takes at most this part of the time: with 100,000 certificates and one change a second
/// it is no longer done for each.
const SHARE: u32 = 50;

/// What deserves attention now.
#[derive(Clone, Debug, Default)]
pub struct Attention {
    pub late: Late,
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
    pub attention: SharedAttention,
}

impl Guard {
    /// Looks whenever something changed or became late, until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        tokio::select! {
            () = self.reloader.table().loaded() => {}
            () = shutdown.cancelled() => return,
        }
        let mut swaps = self.reloader.swaps();
        let mut seen: Option<Arc<Report>> = None;
        loop {
            let report = self.reloader.report();
            let now = clock::now();
            let began = Instant::now();
            if self.is_news(seen.as_deref(), &report, now) {
                self.look(&report, now);
                seen = Some(report);
            }
            let pause = GATHER.max(began.elapsed() * SHARE);
            let wait = self.until_next(now);
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
        !same || self.attention.load().late.next.is_some_and(is_due)
    }

    fn until_next(&self, now: OffsetDateTime) -> Duration {
        let next = self.attention.load().late.next.map(|next| next - now);
        // It is late only after the instant itself.
        let next = next.map(|wait| wait + time::Duration::MILLISECOND);
        let next = next.map(|wait| Duration::try_from(wait).unwrap_or_default());
        next.map_or(INTERVAL, |wait| wait.min(INTERVAL))
    }

    fn look(&self, report: &Report, now: OffsetDateTime) {
        let entries = report.entries.iter().map(|(id, entry)| (id, &**entry));
        let late = overdue::late(entries, &self.served, now);
        let before = self.attention.load();
        for (id, overdue) in &late.entries {
            if before.late.entries.get(id) != Some(overdue) {
                self.tell(&id.certificate.display().to_string(), overdue);
            }
        }
        self.attention.store(Arc::new(Attention { late }));
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

impl Attention {
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
        late.collect()
    }
}
