//! Every TLS file that is not a certificate in service: bundles of authorities, revocation lists,
//! client identities, session ticket keys. They take the way that certificates take: events and
//! the poll say *look*, checksums say *changed*, what does not parse keeps the last good content,
//! and what is good is published in one step.
//!
//! How a file is looked at and read is shared with the certificates (`observe`, `watcher` and
//! `unit`'s patience). The loop is a thread of its own: these are a handful of files with neither
//! names nor rank, and nothing of the reloader's choice among candidates applies to them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use time::OffsetDateTime;
use tokio::sync::oneshot;

use super::observe::{self, Digest, MAX_FILE_BYTES, Stamp};
use super::unit::{PATIENCE, RECHECK};
use super::watcher::{WatchEvent, Watched, Watcher};
use crate::clock;

/// What a file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    ClientCa,
    ClientCrl,
    UpstreamCa,
    UpstreamCertificate,
    UpstreamPrivateKey,
    ForwardAuthCa,
    SessionTicketKey,
}

impl Purpose {
    /// As the admin API names it.
    pub fn as_str(self) -> &'static str {
        match self {
            Purpose::ClientCa => "client_ca",
            Purpose::ClientCrl => "client_crl",
            Purpose::UpstreamCa => "upstream_ca",
            Purpose::UpstreamCertificate => "upstream_certificate",
            Purpose::UpstreamPrivateKey => "upstream_private_key",
            Purpose::ForwardAuthCa => "forward_auth_ca",
            Purpose::SessionTicketKey => "session_ticket_key",
        }
    }

    fn max_bytes(self) -> u64 {
        match self {
            Purpose::ClientCrl => MAX_CRL_BYTES,
            _ => MAX_FILE_BYTES,
        }
    }
}

/// The lists of large authorities have tens of megabytes.
const MAX_CRL_BYTES: u64 = 64 << 20;

/// What the contents of a set's files are.
pub struct Parsed {
    /// How much there is: a young file that holds less than before may still be growing.
    pub weight: usize,
    /// For each file when it goes out of date, where it does.
    pub not_after: Vec<Option<OffsetDateTime>>,
    /// Puts it into service.
    pub publish: Box<dyn FnOnce() + Send>,
}

/// What is wrong with one of the files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The file's position in the set.
    pub file: usize,
    pub cause: String,
}

type Parse = Box<dyn Fn(&[Vec<u8>], &[Digest]) -> Result<Parsed, Fault> + Send>;

/// Files that are read together because only together they mean something.
pub struct FileSet {
    files: Vec<TlsFile>,
    parse: Parse,
    sight: Option<Vec<Option<Stamp>>>,
    digests: Option<Vec<Digest>>,
    weight: usize,
    recheck: bool,
    failing_since: Option<OffsetDateTime>,
}

/// One file and what is known of it.
#[derive(Clone, Debug)]
pub struct TlsFile {
    pub purpose: Purpose,
    pub path: PathBuf,
    /// When the content in service was read; `None` if there never was any.
    pub loaded_at: Option<OffsetDateTime>,
    pub not_after: Option<OffsetDateTime>,
    /// Why what is on disk is not in service.
    pub failure: Option<String>,
}

impl TlsFile {
    /// What is wrong with the file at `now`, if anything is.
    pub fn error(&self, now: OffsetDateTime) -> Option<String> {
        let outdated = || {
            let end = self.not_after.filter(|end| *end < now)?;
            Some(format!("is out of date since {}", clock::rfc3339(end)))
        };
        self.failure.clone().or_else(outdated)
    }
}

/// What one look at a set found.
enum Finding {
    Same {
        young: bool,
    },
    Good {
        parsed: Parsed,
        digests: Vec<Digest>,
        young: bool,
    },
}

/// One reading of all files of a set.
#[derive(Default)]
struct Reading {
    contents: Vec<Vec<u8>>,
    digests: Vec<Digest>,
    young: bool,
}

/// Two readings have to agree across this pause.
const CONFIRM_AFTER: Duration = Duration::from_millis(25);

impl FileSet {
    /// `parse` gets the contents and checksums of the files in their order.
    pub fn new(
        files: Vec<(Purpose, PathBuf)>,
        parse: impl Fn(&[Vec<u8>], &[Digest]) -> Result<Parsed, Fault> + Send + 'static,
    ) -> FileSet {
        let files = files.into_iter().map(|(purpose, path)| TlsFile {
            purpose,
            path,
            loaded_at: None,
            not_after: None,
            failure: None,
        });
        FileSet {
            files: files.collect(),
            parse: Box::new(parse),
            sight: None,
            digests: None,
            weight: 0,
            recheck: false,
            failing_since: None,
        }
    }

    fn has_files_of(&self, other: &FileSet) -> bool {
        let key = |set: &FileSet| -> Vec<_> {
            let files = set.files.iter();
            files
                .map(|file| (file.purpose, file.path.clone()))
                .collect()
        };
        key(self) == key(other)
    }

    pub fn files(&self) -> &[TlsFile] {
        &self.files
    }

    /// The file at fault and what is wrong with it, without putting anything into service.
    pub fn check(&self, now: OffsetDateTime) -> Result<(), (PathBuf, String)> {
        let fault = match self.examine(now) {
            Ok(Finding::Good { parsed, .. }) => {
                let outdated = |end: &Option<OffsetDateTime>| end.is_some_and(|end| end < now);
                match parsed.not_after.iter().position(outdated) {
                    Some(file) => Fault {
                        file,
                        cause: "is out of date".to_owned(),
                    },
                    None => return Ok(()),
                }
            }
            Ok(Finding::Same { .. }) => return Ok(()),
            Err(fault) => fault,
        };
        Err((self.files[fault.file].path.clone(), fault.cause))
    }

    /// Looks, and reads where the look or an open question says so. A failure is given `patience`
    /// to get better before it is reported. Says whether anything is to be told.
    pub(super) fn look(&mut self, patience: time::Duration, now: OffsetDateTime) -> bool {
        let sight = self.files.iter().map(|file| observe::stat(&file.path));
        let sight = Some(sight.collect());
        let changed = self.sight != sight;
        self.sight = sight;
        if !changed && !self.recheck && self.failing_since.is_none() {
            return false;
        }
        match self.examine(now) {
            Ok(Finding::Same { young }) => {
                self.recheck = young;
                self.recovered()
            }
            Ok(Finding::Good { parsed, young, .. }) if young && parsed.weight < self.weight => {
                self.recheck = true;
                false
            }
            Ok(Finding::Good {
                parsed,
                digests,
                young,
            }) => {
                self.recheck = young;
                self.recovered();
                self.take(parsed, digests, now);
                true
            }
            Err(fault) => {
                let since = *self.failing_since.get_or_insert(now);
                self.recheck = now - since < patience;
                !self.recheck && self.fail(fault)
            }
        }
    }

    fn examine(&self, now: OffsetDateTime) -> Result<Finding, Fault> {
        let first = self.read(now)?;
        if self.digests.as_ref() == Some(&first.digests) {
            return Ok(Finding::Same { young: first.young });
        }
        std::thread::sleep(CONFIRM_AFTER);
        let second = self.read(now)?;
        let differs = |file: &usize| first.digests[*file] != second.digests[*file];
        if let Some(file) = (0..self.files.len()).find(differs) {
            let cause = observe::ReadError::Unstable.to_string();
            return Err(Fault { file, cause });
        }
        Ok(Finding::Good {
            parsed: (self.parse)(&second.contents, &second.digests)?,
            digests: second.digests,
            young: second.young,
        })
    }

    fn read(&self, now: OffsetDateTime) -> Result<Reading, Fault> {
        let mut all = Reading::default();
        for (index, file) in self.files.iter().enumerate() {
            let limit = file.purpose.max_bytes();
            let reading = observe::read_resolved(limit, &file.path, now);
            let (bytes, observation) = reading.map_err(|error| Fault {
                file: index,
                cause: error.to_string(),
            })?;
            all.contents.push(bytes);
            all.digests.push(observation.digest);
            all.young |= observation.young;
        }
        Ok(all)
    }

    fn take(&mut self, parsed: Parsed, digests: Vec<Digest>, now: OffsetDateTime) {
        (parsed.publish)();
        self.weight = parsed.weight;
        self.digests = Some(digests);
        for (file, not_after) in self.files.iter_mut().zip(parsed.not_after) {
            file.loaded_at = Some(now);
            file.not_after = not_after;
            tracing::info!(purpose = file.purpose.as_str(), path = %file.path.display(), "TLS file loaded");
        }
    }

    fn recovered(&mut self) -> bool {
        self.failing_since = None;
        let mut any = false;
        for file in &mut self.files {
            any |= file.failure.take().is_some();
        }
        any
    }

    fn fail(&mut self, fault: Fault) -> bool {
        let kept = self.digests.is_some();
        let mut news = false;
        for (index, file) in self.files.iter_mut().enumerate() {
            let failure = (index == fault.file).then(|| fault.cause.clone());
            news |= file.failure != failure;
            file.failure = failure;
        }
        if news {
            let path = self.files[fault.file].path.display();
            let cause = &fault.cause;
            match kept {
                true => tracing::warn!("{path} {cause}; its last good content stays in service"),
                false => tracing::warn!("{path} {cause}; it is tried again"),
            }
        }
        news
    }
}

/// Something to be done from time to time: does what is due, and says when to call it again.
pub type Chore = Box<dyn FnMut(OffsetDateTime) -> Option<OffsetDateTime> + Send>;

/// Talks to the running thread. Cheap to clone.
#[derive(Clone)]
pub struct TlsFiles {
    wake: Sender<Wake>,
    report: Arc<ArcSwap<Vec<TlsFile>>>,
}

enum Wake {
    Event,
    Rescan(oneshot::Sender<()>),
    Replace(Vec<FileSet>, oneshot::Sender<()>),
    Stop,
}

/// The longest that the thread sleeps: what time alone changes shows no later.
const MAX_WAIT: Duration = Duration::from_secs(20);

impl TlsFiles {
    /// Reads everything once, so that nothing is served without what is there to protect it, and
    /// starts the thread. It ends when [`stop`](Self::stop) is called.
    pub fn start(
        sets: Vec<FileSet>,
        chore: Chore,
        poll_interval: Duration,
        watch: bool,
    ) -> std::io::Result<(TlsFiles, JoinHandle<()>)> {
        let (wake, inbox) = mpsc::channel();
        let report = Arc::new(ArcSwap::from_pointee(Vec::new()));
        let mut thread = Thread {
            sets,
            chore,
            report: report.clone(),
            events: watch.then(|| wake.clone()),
            watcher: None,
            poll_interval,
            outdated: BTreeSet::new(),
        };
        thread.update_watches();
        thread.look(time::Duration::ZERO);
        let handle = std::thread::Builder::new()
            .name("tls-files".to_owned())
            .spawn(move || thread.run(&inbox))?;
        Ok((TlsFiles { wake, report }, handle))
    }

    /// Every file and how it is doing.
    pub fn report(&self) -> Arc<Vec<TlsFile>> {
        self.report.load_full()
    }

    /// Looks at everything now.
    pub async fn rescan(&self) {
        let (answer, done) = oneshot::channel();
        // Both fail only once the thread has ended.
        let _ = self.wake.send(Wake::Rescan(answer));
        let _ = done.await;
    }

    /// Looks after these sets from now on, and has read them when it returns. A set of the same
    /// files that is looked after already stays, with its last good content: whoever replaces sets
    /// has equal ones publish to the same place.
    pub async fn replace(&self, sets: Vec<FileSet>) {
        let (answer, done) = oneshot::channel();
        // Both fail only once the thread has ended.
        let _ = self.wake.send(Wake::Replace(sets, answer));
        let _ = done.await;
    }

    pub fn stop(&self) {
        // Fails only after the thread has ended.
        let _ = self.wake.send(Wake::Stop);
    }
}

struct Thread {
    sets: Vec<FileSet>,
    chore: Chore,
    report: Arc<ArcSwap<Vec<TlsFile>>>,
    /// Where events go, if they are wanted and can be had.
    events: Option<Sender<Wake>>,
    /// Made for the first file that there is.
    watcher: Option<Watcher>,
    poll_interval: Duration,
    /// Files of which it was said that they are out of date.
    outdated: BTreeSet<PathBuf>,
}

impl Thread {
    fn run(&mut self, inbox: &Receiver<Wake>) {
        let mut last_look = Instant::now();
        loop {
            let next = (self.chore)(clock::now());
            let mut wait = self
                .poll_interval
                .saturating_sub(last_look.elapsed())
                .min(MAX_WAIT);
            if self.sets.iter().any(|set| set.recheck) {
                wait = wait.min(RECHECK.unsigned_abs());
            }
            if let Some(next) = next {
                let until = Duration::try_from(next - clock::now()).unwrap_or(Duration::ZERO);
                wait = wait.min(until + Duration::from_millis(1));
            }
            let answer = match inbox.recv_timeout(wait) {
                Err(RecvTimeoutError::Disconnected) | Ok(Wake::Stop) => return,
                Err(RecvTimeoutError::Timeout) | Ok(Wake::Event) => None,
                Ok(Wake::Rescan(answer)) => Some(answer),
                Ok(Wake::Replace(sets, answer)) => {
                    self.replace(sets);
                    Some(answer)
                }
            };
            let patience = match answer {
                Some(_) => time::Duration::ZERO,
                None => PATIENCE,
            };
            self.look(patience);
            self.update_watches();
            last_look = Instant::now();
            if let Some(answer) = answer {
                // Whoever asked may have gone.
                let _ = answer.send(());
            }
        }
    }

    fn replace(&mut self, sets: Vec<FileSet>) {
        let mut before = std::mem::take(&mut self.sets);
        for set in sets {
            let same = before.iter().position(|one| one.has_files_of(&set));
            self.sets
                .push(same.map_or(set, |index| before.swap_remove(index)));
        }
        self.publish_report();
        self.update_watches();
    }

    fn publish_report(&self) {
        let files = self.sets.iter().flat_map(|set| set.files.iter().cloned());
        self.report.store(Arc::new(files.collect()));
    }

    fn look(&mut self, patience: time::Duration) {
        let now = clock::now();
        let mut news = self.report.load().is_empty();
        for set in &mut self.sets {
            news |= set.look(patience, now);
        }
        if news {
            self.publish_report();
        }
        self.warn_of_outdated(now);
    }

    fn warn_of_outdated(&mut self, now: OffsetDateTime) {
        for file in self.sets.iter().flat_map(|set| &set.files) {
            let outdated = file.not_after.is_some_and(|end| end < now);
            if !outdated {
                self.outdated.remove(&file.path);
            } else if self.outdated.insert(file.path.clone()) {
                let purpose = file.purpose.as_str();
                tracing::warn!(purpose, path = %file.path.display(), "TLS file is out of date");
            }
        }
    }

    fn start_watching(&mut self) {
        if let Some(events) = self.events.take_if(|_| !self.sets.is_empty()) {
            // A send fails only after the thread has ended, when events do not matter.
            let deliver = move |_: WatchEvent| drop(events.send(Wake::Event));
            self.watcher = Watcher::start(deliver)
                .inspect_err(|error| tracing::warn!(%error, "no file events for TLS files"))
                .ok();
        }
    }

    fn update_watches(&mut self) {
        self.start_watching();
        if let Some(watcher) = &mut self.watcher {
            let files = self.sets.iter().flat_map(|set| &set.files);
            let files: Vec<&Path> = files.map(|file| file.path.as_path()).collect();
            watcher.watch(&Watched {
                files,
                ..Watched::default()
            });
        }
    }
}
