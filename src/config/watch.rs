//! Notices that the configuration on disk is another one: like a certificate, by metadata, by file
//! events and by being told. A thread of its own reads it and offers what is valid to whoever runs
//! the server; it applies nothing itself.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use serde::Serialize;
use tokio::sync::oneshot;

use super::load::{Footprint, Reading};
use super::{Certificates, Config};
use crate::certificate::observe::{self, Stamp};
use crate::certificate::reloader::Change;
use crate::certificate::watcher::{Watched, Watcher};
use crate::clock;

/// A valid configuration that could run from now on.
pub struct Candidate {
    pub config: Config,
    /// What changed among the certificates, or why everything stays as it was.
    pub answer: oneshot::Sender<Result<Vec<Change>, Refusal>>,
}

/// Why a valid configuration cannot run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub message: String,
    /// Whether time can mend it: an address that is taken may become free.
    pub may_pass: bool,
}

/// What came of a look at the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// What is on disk is what runs.
    Unchanged,
    Reloaded,
    /// The running configuration stays; why.
    Failed(String),
}

/// What there is to say about reloads, for `/status` and the metrics.
#[derive(Clone, Debug, Default)]
pub struct ConfigReport {
    /// Why what is on disk is not what runs.
    pub error: Option<String>,
    pub reloads: u64,
    pub failures: u64,
}

/// Talks to the thread. Cheap to clone.
#[derive(Clone)]
pub struct ConfigWatch {
    wake: Sender<Wake>,
    report: Arc<ArcSwap<ConfigReport>>,
}

enum Wake {
    Event,
    Reload(oneshot::Sender<(Outcome, Vec<Change>)>),
    Stop,
}

/// How soon a file is looked at again that is young or being written.
const RECHECK: Duration = Duration::from_millis(250);

/// A file that has just changed is taken once two readings agree across this pause. Half a
/// configuration can be a valid one, with fewer sites: it has to be longer than a writer pauses.
const QUIET: Duration = Duration::from_millis(250);

/// Whoever asks for a reload has finished writing; this only keeps two writers apart.
const QUIET_WHEN_ASKED: Duration = Duration::from_millis(25);

/// How often a reading is tried for somebody who waits for it.
const TRIES_WHEN_ASKED: usize = 40;

/// How long until a configuration is tried again that something outside of it kept from running.
const RETRY: Duration = Duration::from_secs(10);

impl ConfigWatch {
    /// Starts the thread. `running` is what the running configuration was read from.
    pub fn start(
        file: PathBuf,
        running: Footprint,
        certificates: &Certificates,
        candidates: tokio::sync::mpsc::Sender<Candidate>,
    ) -> std::io::Result<ConfigWatch> {
        let (wake, inbox) = mpsc::channel();
        let report = Arc::new(ArcSwap::from_pointee(ConfigReport::default()));
        let mut thread = Thread {
            file,
            poll_interval: certificates.poll_interval,
            watch: certificates.watch,
            watcher: None,
            wake: wake.clone(),
            candidates,
            // Nothing was seen of the files yet, so the first look looks.
            sights: Vec::new(),
            unsettled: true,
            seen: running.clone(),
            running,
            retry_at: None,
            report: report.clone(),
        };
        std::thread::Builder::new()
            .name("configuration".to_owned())
            .spawn(move || thread.run(&inbox))?;
        Ok(ConfigWatch { wake, report })
    }

    pub fn report(&self) -> Arc<ConfigReport> {
        self.report.load_full()
    }

    /// Reads the configuration now. Also returns what changed among the certificates with it.
    pub async fn reload(&self) -> (Outcome, Vec<Change>) {
        let (answer, outcome) = oneshot::channel();
        // It fails only after the thread has ended; then there is no answer either.
        let _ = self.wake.send(Wake::Reload(answer));
        outcome.await.unwrap_or_else(|_| (stopping(), Vec::new()))
    }

    pub fn stop(&self) {
        // Fails only after the thread has ended.
        let _ = self.wake.send(Wake::Stop);
    }
}

fn stopping() -> Outcome {
    Outcome::Failed("the process is stopping".to_owned())
}

struct Thread {
    file: PathBuf,
    poll_interval: Duration,
    watch: bool,
    /// Once started it stays: its thread cannot be ended. Without `watch` it watches nothing.
    watcher: Option<Watcher>,
    wake: Sender<Wake>,
    candidates: tokio::sync::mpsc::Sender<Candidate>,
    running: Footprint,
    /// What was last judged, good or not, and the metadata of its files then.
    seen: Footprint,
    sights: Vec<Option<Stamp>>,
    /// Whether a file may have changed without its metadata showing it.
    unsettled: bool,
    retry_at: Option<Instant>,
    report: Arc<ArcSwap<ConfigReport>>,
}

impl Thread {
    fn run(&mut self, inbox: &Receiver<Wake>) {
        self.update_watches();
        loop {
            let mut wait = match self.unsettled {
                true => RECHECK.min(self.poll_interval),
                false => self.poll_interval,
            };
            if let Some(at) = self.retry_at {
                wait = wait.min(at.saturating_duration_since(Instant::now()));
            }
            match inbox.recv_timeout(wait) {
                Ok(Wake::Event) | Err(RecvTimeoutError::Timeout) => drop(self.look(false)),
                Ok(Wake::Reload(answer)) => {
                    let outcome = self.look(true);
                    // Whoever asked may have gone.
                    let _ = answer.send(outcome);
                }
                Ok(Wake::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn look(&mut self, asked: bool) -> (Outcome, Vec<Change>) {
        let retry = self.retry_at.is_some_and(|at| Instant::now() >= at);
        let looks_the_same = !self.unsettled && sights(&self.seen) == self.sights;
        if looks_the_same && !retry && !asked {
            return (Outcome::Unchanged, Vec::new());
        }
        if !retry && !asked && self.seen.again() == self.seen {
            self.note_sights();
            return (Outcome::Unchanged, Vec::new());
        }
        match self.read(asked) {
            Some(reading) => {
                let changed = reading.footprint != self.seen;
                self.seen = reading.footprint.clone();
                self.note_sights();
                let judged = self.judge(reading, changed);
                self.update_watches();
                judged
            }
            None => {
                self.unsettled = true;
                let message = format!("{}: is being written", self.file.display());
                (Outcome::Failed(message), Vec::new())
            }
        }
    }

    /// A reading that no writer was in the middle of; `None`: there is none yet.
    fn read(&self, asked: bool) -> Option<Reading> {
        let (tries, pause) = match asked {
            true => (TRIES_WHEN_ASKED, QUIET_WHEN_ASKED),
            false => (1, QUIET),
        };
        for _ in 0..tries {
            let reading = Reading::of(&self.file);
            let (stamps, now) = (sights(&reading.footprint), clock::now());
            let settled = |stamp: &Option<Stamp>| stamp.is_some_and(|stamp| !stamp.is_young(now));
            if stamps.iter().all(settled) {
                return Some(reading);
            }
            std::thread::sleep(pause);
            if reading.footprint.again() == reading.footprint {
                return Some(reading);
            }
        }
        None
    }

    fn note_sights(&mut self) {
        // What changes between the reading and this is young now, and so is read again.
        self.sights = sights(&self.seen);
        let now = clock::now();
        let young = |stamp: &Stamp| stamp.is_young(now);
        self.unsettled = self.sights.iter().flatten().any(young);
    }

    fn judge(&mut self, reading: Reading, changed: bool) -> (Outcome, Vec<Change>) {
        self.retry_at = None;
        if reading.footprint == self.running {
            if self.report.load().error.is_some() {
                tracing::info!(
                    file = %self.file.display(),
                    "the configuration on disk is again the running one"
                );
            }
            self.update_report(|report| report.error = None);
            return (Outcome::Unchanged, Vec::new());
        }
        let config = match reading.result {
            Ok(config) => config,
            Err(error) => return self.fail(error.to_string(), changed),
        };
        let (poll_interval, watch) = (config.certificates.poll_interval, config.certificates.watch);
        match self.offer(config) {
            None => (stopping(), Vec::new()),
            Some(Err(refusal)) => {
                self.retry_at = refusal.may_pass.then(|| Instant::now() + RETRY);
                let message = format!("{}: {}", self.file.display(), refusal.message);
                self.fail(message, changed)
            }
            Some(Ok(changes)) => {
                (self.poll_interval, self.watch) = (poll_interval, watch);
                self.running = reading.footprint;
                self.update_report(|report| {
                    report.error = None;
                    report.reloads += 1;
                });
                (Outcome::Reloaded, changes)
            }
        }
    }

    /// `None`: nobody is there to take it, because the process is stopping.
    fn offer(&self, config: Config) -> Option<Result<Vec<Change>, Refusal>> {
        let (answer, result) = oneshot::channel();
        let candidate = Candidate { config, answer };
        self.candidates.blocking_send(candidate).ok()?;
        result.blocking_recv().ok()
    }

    /// Said once for each change, and again if the reason is another.
    fn fail(&self, message: String, changed: bool) -> (Outcome, Vec<Change>) {
        if changed || self.report.load().error.as_ref() != Some(&message) {
            tracing::error!("configuration not taken, the running one stays:\n{message}");
            self.update_report(|report| {
                report.error = Some(message.clone());
                report.failures += 1;
            });
        }
        (Outcome::Failed(message), Vec::new())
    }

    fn update_report(&self, change: impl FnOnce(&mut ConfigReport)) {
        let mut report = ConfigReport::clone(&self.report.load());
        change(&mut report);
        self.report.store(Arc::new(report));
    }

    fn update_watches(&mut self) {
        if self.watch && self.watcher.is_none() {
            let wake = self.wake.clone();
            // A send fails only after the thread has ended, when events do not matter.
            let started = Watcher::start(move |_| drop(wake.send(Wake::Event)));
            self.watcher = started
                .inspect_err(|error| {
                    tracing::warn!(%error, "no file events: a change of the configuration is found by the poll");
                })
                .ok();
            // Tried once: the poll does without.
            self.watch = self.watcher.is_some();
        }
        let mut wanted = Watched::default();
        if self.watch {
            wanted.files.extend(self.seen.files());
        }
        if let Some(watcher) = &mut self.watcher {
            watcher.watch(&wanted);
        }
    }
}

fn sights(footprint: &Footprint) -> Vec<Option<Stamp>> {
    footprint.files().map(observe::stat).collect()
}
