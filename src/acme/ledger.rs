//! What was asked of a CA and how it ended, on disk before the first byte leaves: one file per
//! subject, one per CA. A crash therefore counts as what it looks like from the CA's side, an
//! attempt that failed, and a crash loop sends no more than one run would.
//!
//! It records and counts; [`renewal`](super::renewal) decides what the counts mean.

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::error::{AcmeError, Class, ErrorReport};
use super::order::{challenge_from_name, challenge_name};
use super::renewal::{Attempts, RenewalInfo, SuggestedWindow, Window};
use super::renewal_info::Answer;
use crate::certificate::name::Name;
use crate::config::{ChallengeType, KeyType};
use crate::store::{self, SECRET_FILE, StateDir, StoreError};

/// Records kept per file: more than the backoff ever looks at, and a page to read for people.
const MAX_RECORDS: usize = 50;
/// Clean shutdowns in a row that are still no failure. More look like a restart loop.
const FREE_CANCELLATIONS: usize = 2;

/// The reason of a revocation after which the key must not be used again (RFC 5280 section 5.3.1).
pub const KEY_COMPROMISE: &str = "keyCompromise";

/// What was attempted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    Order,
    RenewalInfo,
    Account,
    /// Reaching a CA at all: its directory and a nonce.
    Session,
    Revocation,
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "result")]
pub enum Outcome {
    Ok,
    Failed {
        class: Class,
        message: String,
        #[serde(default, with = "time::serde::rfc3339::option")]
        retry_after: Option<OffsetDateTime>,
        /// The CA will not do it, or not soon: another may.
        #[serde(default)]
        elsewhere: bool,
        /// It waits for a limit, and has not failed: see [`AcmeError::held`].
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        held: bool,
        /// What was wrong, taken apart.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        report: Option<Box<ErrorReport>>,
    },
    /// A clean shutdown in the middle.
    Cancelled,
}

impl From<&AcmeError> for Outcome {
    fn from(error: &AcmeError) -> Outcome {
        Outcome::Failed {
            class: error.class,
            message: error.to_string(),
            retry_after: error.retry_after,
            elsewhere: error.is_for_another_ca(),
            held: error.held.is_some(),
            report: Some(Box::new(error.report())),
        }
    }
}

/// One attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    id: u64,
    pub kind: Kind,
    /// The CA's directory URL.
    pub ca: String,
    #[serde(with = "time::serde::rfc3339")]
    pub started_at: OffsetDateTime,
    #[serde(default, with = "time::serde::rfc3339::option")]
    pub finished_at: Option<OffsetDateTime>,
    /// `None`: it is running, or a crash ended it.
    #[serde(default)]
    pub outcome: Option<Outcome>,
    /// Why it was made, as [`OrderReason`](super::renewal::OrderReason) spells it.
    #[serde(default)]
    pub reason: Option<String>,
    /// The challenge type that failed, or those that an order succeeded with, between commas.
    #[serde(default)]
    pub challenge: Option<String>,
}

impl Record {
    /// Whether it failed under other settings than those since `since`, which may have healed it. A
    /// crash is none of theirs.
    fn is_healed(&self, since: Option<OffsetDateTime>) -> bool {
        let may_be = matches!(&self.outcome, Some(Outcome::Failed { class, retry_after: None, .. })
            if *class != Class::RateLimited);
        may_be && since.is_some_and(|since| self.started_at < since)
    }
}

/// Renewal information for one certificate, as it was last received.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredRenewalInfo {
    /// Which certificate it is about (RFC 9773 section 4.1); for another one it says nothing.
    pub certificate_id: String,
    pub supported: bool,
    #[serde(default)]
    pub window: Option<StoredWindow>,
    #[serde(default)]
    pub explanation_url: Option<String>,
    #[serde(with = "time::serde::rfc3339")]
    pub next_fetch: OffsetDateTime,
    /// Failed questions in a row.
    #[serde(default)]
    pub failures: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredWindow {
    #[serde(with = "time::serde::rfc3339")]
    pub start: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub end: OffsetDateTime,
    /// The instant chosen in it; kept, so that a restart does not draw again.
    #[serde(with = "time::serde::rfc3339")]
    pub selected: OffsetDateTime,
}

impl From<Window> for StoredWindow {
    fn from(window: Window) -> StoredWindow {
        StoredWindow {
            start: window.suggested().start(),
            end: window.suggested().end(),
            selected: window.selected(),
        }
    }
}

impl StoredWindow {
    /// `None` where what is on disk is none: a disk holds what it is given.
    fn read(self) -> Option<Window> {
        let suggested = SuggestedWindow::new(self.start, self.end)?;
        Some(Window::chosen(suggested, self.selected))
    }
}

impl StoredRenewalInfo {
    /// Nothing is known yet.
    pub fn blank(certificate_id: &str, next_fetch: OffsetDateTime) -> StoredRenewalInfo {
        StoredRenewalInfo {
            certificate_id: certificate_id.to_owned(),
            supported: false,
            window: None,
            explanation_url: None,
            next_fetch,
            failures: 0,
        }
    }

    /// The CA has answered. `fraction`: where in a window that is new the renewal will be.
    pub fn answered(
        certificate_id: &str,
        before: Option<&StoredRenewalInfo>,
        answer: &Answer,
        next_fetch: OffsetDateTime,
        fraction: f64,
    ) -> StoredRenewalInfo {
        let previous = before.and_then(|before| before.window?.read());
        let window = Window::choose(previous.as_ref(), answer.window, fraction);
        StoredRenewalInfo {
            supported: true,
            window: Some(window.into()),
            explanation_url: answer.explanation_url.clone(),
            ..StoredRenewalInfo::blank(certificate_id, next_fetch)
        }
    }

    pub fn facts(&self) -> RenewalInfo {
        RenewalInfo {
            // One that had none may have some tomorrow: `next_fetch` says when to look.
            supported: true,
            window: self
                .window
                .filter(|_| self.supported)
                .and_then(StoredWindow::read),
            next_fetch: Some(self.next_fetch),
        }
    }
}

/// That one certificate is revoked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredRevocation {
    /// As [`Leaf::serial`](crate::store::leaf::Leaf::serial).
    pub serial: String,
    /// When it was found out, or when the CA revoked it at our word.
    #[serde(with = "time::serde::rfc3339")]
    pub found_at: OffsetDateTime,
    /// The list or responder that says so; `None` where we had it revoked.
    #[serde(default)]
    pub source: Option<String>,
    /// As RFC 5280 section 5.3.1 names it, where one is given.
    #[serde(default)]
    pub reason: Option<String>,
}

impl StoredRevocation {
    /// Whether we had it revoked ourselves.
    pub fn is_ours(&self) -> bool {
        self.source.is_none()
    }

    /// Whether the key must not be used again: somebody else may have it, or whoever had it
    /// revoked wants to be rid of it.
    pub fn ends_key(&self) -> bool {
        self.is_ours() || self.reason.as_deref() == Some(KEY_COMPROMISE)
    }
}

/// In words.
impl fmt::Display for StoredRevocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = self.reason.as_deref().unwrap_or("no reason given");
        match &self.source {
            Some(source) => write!(f, "{reason}, says {source}"),
            None => write!(f, "{reason}, as was asked for"),
        }
    }
}

/// The settings that a CA is used under, as far as they may heal what was wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsedSettings {
    /// Tells a change, and no secret.
    pub digest: String,
    /// When they came in the place of others.
    #[serde(default, with = "time::serde::rfc3339::option")]
    pub since: Option<OffsetDateTime>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Content {
    #[serde(default)]
    records: VecDeque<Record>,
    #[serde(default)]
    renewal_info: Option<StoredRenewalInfo>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    revocation: Option<StoredRevocation>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    settings: Option<UsedSettings>,
    /// The certificate, by its id, that the CA does not take for what an order `replaces`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    refused_predecessor: Option<String>,
}

/// A running attempt.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "an attempt that is not finished counts as a failure after a restart"]
pub struct AttemptId(u64);

/// One file of the ledger. Writing blocks on the disk: call it where blocking is allowed. Reading
/// never waits for a write.
#[derive(Debug)]
pub struct Ledger {
    /// `None`: in memory alone, for simulations.
    path: Option<PathBuf>,
    memory: Mutex<Memory>,
    /// Held while a new content is made and written, so that writes follow each other.
    writing: Mutex<()>,
}

#[derive(Debug, Default)]
struct Memory {
    content: Content,
    /// Attempts of this process: not finished, and not crashed either.
    running: HashSet<u64>,
}

impl Ledger {
    /// The ledger of a subject.
    pub fn of_subject(
        state: &StateDir,
        name: &Name,
        key_type: KeyType,
        now: OffsetDateTime,
    ) -> Result<Ledger, StoreError> {
        let path = Ledger::path_of_subject(state, name, key_type);
        Ledger::open(path, Kind::Order, now)
    }

    fn path_of_subject(state: &StateDir, name: &Name, key_type: KeyType) -> PathBuf {
        let (name, key_type) = (store::component(name), store::key_type_name(key_type));
        let file = format!("{name}.{key_type}.json");
        state.ledger_dir().join("subjects").join(file)
    }

    /// The ledger of a CA; `slug` as [`account::slug`](super::account::slug) makes it.
    pub fn of_authority(
        state: &StateDir,
        slug: &str,
        now: OffsetDateTime,
    ) -> Result<Ledger, StoreError> {
        let path = Ledger::path_of_authority(state, slug);
        Ledger::open(path, Kind::Session, now)
    }

    fn path_of_authority(state: &StateDir, slug: &str) -> PathBuf {
        let file = format!("{slug}.json");
        state.ledger_dir().join("authorities").join(file)
    }

    /// The ledger of a subject as it is on disk, for commands beside a running server: nothing is
    /// changed. `None` where it cannot be read.
    pub fn peek(state: &StateDir, name: &Name, key_type: KeyType) -> Option<Ledger> {
        let path = Ledger::path_of_subject(state, name, key_type);
        Ledger::read_only(path)
    }

    /// As [`peek`](Self::peek), of a CA.
    pub fn peek_authority(state: &StateDir, slug: &str) -> Option<Ledger> {
        Ledger::read_only(Ledger::path_of_authority(state, slug))
    }

    fn read_only(path: PathBuf) -> Option<Ledger> {
        let content = serde_json::from_slice(&fs::read(&path).ok()?).ok()?;
        Some(Ledger {
            path: Some(path),
            memory: Mutex::new(Memory {
                content,
                running: HashSet::new(),
            }),
            writing: Mutex::new(()),
        })
    }

    /// Opens a file or starts a new one. One that cannot be understood is kept beside it, and
    /// counts as one failure just now: what it would have said is unknown, so the careful reading
    /// is right.
    fn open(path: PathBuf, kind: Kind, now: OffsetDateTime) -> Result<Ledger, StoreError> {
        let content = match fs::read(&path) {
            Ok(bytes) => match serde_json::from_slice(&bytes) {
                Ok(content) => content,
                Err(error) => replace_corrupt(&path, kind, now, &error)?,
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Content::default(),
            Err(error) => return Err(StoreError::io("read", &path, error)),
        };
        Ok(Ledger {
            path: Some(path),
            memory: Mutex::new(Memory {
                content,
                running: HashSet::new(),
            }),
            writing: Mutex::new(()),
        })
    }

    /// One that is nowhere on disk.
    #[cfg(test)]
    pub(super) fn in_memory() -> Ledger {
        Ledger {
            path: None,
            memory: Mutex::default(),
            writing: Mutex::default(),
        }
    }

    /// What a crash and a restart make of one that is nowhere on disk: the records stay, and what
    /// ran runs no more.
    #[cfg(test)]
    pub(super) fn crash(&self) {
        self.read().running.clear();
    }

    /// Records an attempt, on disk before this returns. Only then may a request leave.
    pub fn begin(
        &self,
        kind: Kind,
        ca: &str,
        reason: Option<&str>,
        now: OffsetDateTime,
    ) -> Result<AttemptId, StoreError> {
        let mut id = 0;
        self.change(|memory| {
            let records = &mut memory.content.records;
            id = records.back().map_or(0, |record| record.id + 1);
            records.push_back(Record {
                id,
                kind,
                ca: ca.to_owned(),
                started_at: now,
                finished_at: None,
                outcome: None,
                reason: reason.map(str::to_owned),
                challenge: None,
            });
            while records.len() > MAX_RECORDS {
                records.pop_front();
            }
            memory.running.insert(id);
        })
        .inspect_err(|_| {
            // Nothing was sent, so it was no attempt.
            let mut memory = self.read();
            memory.content.records.retain(|record| record.id != id);
            memory.running.remove(&id);
        })?;
        Ok(AttemptId(id))
    }

    /// Records how an attempt ended. Where the disk refuses, this process still knows, and after
    /// a restart the attempt counts as crashed, which is the careful reading.
    pub fn finish(
        &self,
        attempt: AttemptId,
        outcome: Outcome,
        challenges: &[ChallengeType],
        now: OffsetDateTime,
    ) -> Result<(), StoreError> {
        self.change(|memory| {
            memory.running.remove(&attempt.0);
            let record = memory
                .content
                .records
                .iter_mut()
                .find(|record| record.id == attempt.0);
            if let Some(record) = record {
                record.finished_at = Some(now);
                record.outcome = Some(outcome.clone());
                record.challenge = spelt(challenges);
            }
        })
    }

    /// Ends everything that runs, at a clean shutdown.
    pub fn cancel_running(&self, now: OffsetDateTime) -> Result<(), StoreError> {
        if self.read().running.is_empty() {
            return Ok(());
        }
        self.change(|memory| {
            for record in &mut memory.content.records {
                if memory.running.contains(&record.id) {
                    record.finished_at = Some(now);
                    record.outcome = Some(Outcome::Cancelled);
                }
            }
            memory.running.clear();
        })
    }

    /// Replaces the renewal information.
    pub fn set_renewal_info(&self, info: Option<StoredRenewalInfo>) -> Result<(), StoreError> {
        self.change(|memory| memory.content.renewal_info = info.clone())
    }

    /// What was last received about this certificate.
    pub fn renewal_info(&self, certificate_id: &str) -> Option<StoredRenewalInfo> {
        self.read_renewal_info(certificate_id, StoredRenewalInfo::clone)
    }

    /// The same for whoever needs a part of it; nothing else is copied.
    pub fn read_renewal_info<T>(
        &self,
        certificate_id: &str,
        part: impl FnOnce(&StoredRenewalInfo) -> T,
    ) -> Option<T> {
        let memory = self.read();
        let info = memory.content.renewal_info.as_ref();
        info.filter(|info| info.certificate_id == certificate_id)
            .map(part)
    }

    /// Notes that a certificate is revoked, so that a restart replaces it as well.
    pub fn set_revocation(&self, revocation: StoredRevocation) -> Result<(), StoreError> {
        self.change(|memory| memory.content.revocation = Some(revocation))
    }

    /// Whether the certificate with this serial number is revoked, and who says so.
    pub fn revocation(&self, serial: &str) -> Option<StoredRevocation> {
        let memory = self.read();
        let revocation = memory.content.revocation.as_ref();
        revocation.filter(|it| it.serial == serial).cloned()
    }

    /// Notes the settings that a CA is used under.
    pub fn set_settings(&self, settings: UsedSettings) -> Result<(), StoreError> {
        self.change(|memory| memory.content.settings = Some(settings))
    }

    pub fn settings(&self) -> Option<UsedSettings> {
        self.read().content.settings.clone()
    }

    /// Since when they are used in the place of others. It is asked at each decision.
    pub fn settings_since(&self) -> Option<OffsetDateTime> {
        self.read().content.settings.as_ref()?.since
    }

    /// Notes that the CA counts an order that renews this certificate like any other, whatever it
    /// is told.
    pub fn set_refused_predecessor(&self, certificate_id: String) -> Result<(), StoreError> {
        self.change(|memory| memory.content.refused_predecessor = Some(certificate_id))
    }

    pub fn is_refused_predecessor(&self, certificate_id: &str) -> bool {
        let memory = self.read();
        memory.content.refused_predecessor.as_deref() == Some(certificate_id)
    }

    /// The failures of `kind` since its last success, at `ca` or at any.
    pub fn attempts(&self, kind: Kind, ca: Option<&str>) -> Attempts {
        self.attempts_under(kind, ca, None)
    }

    /// The same, under the settings since `since`: what failed under those before them counts no
    /// more, unless the CA has said until when it is to be left alone.
    pub fn attempts_under(
        &self,
        kind: Kind,
        ca: Option<&str>,
        since: Option<OffsetDateTime>,
    ) -> Attempts {
        let memory = self.read();
        count(
            memory
                .content
                .records
                .iter()
                .rev()
                .filter(|record| record.kind == kind && !memory.running.contains(&record.id))
                .filter(|record| !record.is_healed(since)),
            ca,
        )
    }

    /// The newest finished or crashed record of a kind.
    pub fn last(&self, kind: Kind) -> Option<Record> {
        self.read_last(kind, Record::clone)
    }

    /// The same for whoever needs a part of it; nothing else is copied.
    pub fn read_last<T>(&self, kind: Kind, part: impl FnOnce(&Record) -> T) -> Option<T> {
        let memory = self.read();
        let mut records = memory.content.records.iter().rev();
        records
            .find(|record| record.kind == kind && !memory.running.contains(&record.id))
            .map(part)
    }

    /// The challenges of earlier orders, newest first, and whether each went well.
    pub fn challenges(&self) -> Vec<(ChallengeType, bool)> {
        let memory = self.read();
        let orders = memory.content.records.iter().rev();
        let orders = orders.filter(|record| record.kind == Kind::Order);
        let each = orders.flat_map(|record| {
            let went_well = record.outcome == Some(Outcome::Ok);
            let names = record.challenge.iter().flat_map(|names| names.split(','));
            names.filter_map(move |name| Some((challenge_from_name(name)?, went_well)))
        });
        each.collect()
    }

    fn read(&self) -> std::sync::MutexGuard<'_, Memory> {
        // A panic while it was held cannot have left it half changed: changes are made on copies.
        self.memory
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Applies `change` in memory and writes the result. It is kept in memory even if the write
    /// fails: this process knows what it did.
    fn change(&self, change: impl FnOnce(&mut Memory)) -> Result<(), StoreError> {
        let _writing = self
            .writing
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut memory = self.read();
        change(&mut memory);
        let Some(path) = &self.path else {
            return Ok(());
        };
        let bytes = serde_json::to_vec_pretty(&memory.content)
            .map_err(|error| StoreError::broken(path, error))?;
        drop(memory);
        write(path, &bytes)
    }
}

fn spelt(challenges: &[ChallengeType]) -> Option<String> {
    let mut names: Vec<&str> = challenges.iter().copied().map(challenge_name).collect();
    names.sort_unstable();
    names.dedup();
    (!names.is_empty()).then(|| names.join(","))
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    if let Some(parent) = path.parent() {
        store::make_directory(parent)?;
    }
    store::atomic::write_file(path, bytes, SECRET_FILE)
}

/// Keeps the unreadable file for people and starts a new one that holds a failure.
fn replace_corrupt(
    path: &Path,
    kind: Kind,
    now: OffsetDateTime,
    error: &serde_json::Error,
) -> Result<Content, StoreError> {
    let aside = path.with_extension("json.corrupt");
    tracing::error!(
        path = %path.display(), aside = %aside.display(), %error,
        "a ledger file is unreadable: it is moved aside and counts as one failed attempt"
    );
    fs::copy(path, &aside).map_err(|error| StoreError::io("move aside", path, error))?;
    let content = Content {
        records: VecDeque::from([Record {
            id: 0,
            kind,
            ca: String::new(),
            started_at: now,
            finished_at: Some(now),
            outcome: Some(Outcome::Failed {
                class: Class::Retryable,
                message: format!("the ledger was unreadable: {error}"),
                retry_after: None,
                elsewhere: false,
                held: false,
                report: None,
            }),
            reason: None,
            challenge: None,
        }]),
        renewal_info: None,
        revocation: None,
        settings: None,
        refused_predecessor: None,
    };
    let bytes =
        serde_json::to_vec_pretty(&content).map_err(|error| StoreError::broken(path, error))?;
    write(path, &bytes)?;
    Ok(content)
}

/// Counts failures, newest record first. A success at any CA ends the count at every CA. A record
/// without a CA (of an unreadable ledger) counts at each.
fn count<'a>(newest_first: impl Iterator<Item = &'a Record>, ca: Option<&str>) -> Attempts {
    let mut attempts = Attempts::default();
    let mut cancelled = 0;
    for record in newest_first {
        let counts_here = ca.is_none_or(|ca| record.ca == ca || record.ca.is_empty());
        let failed = match &record.outcome {
            Some(Outcome::Ok) => break,
            _ if !counts_here => continue,
            Some(Outcome::Cancelled) => {
                cancelled += 1;
                cancelled > FREE_CANCELLATIONS
            }
            Some(Outcome::Failed { held, .. }) => !held,
            None => true,
        };
        if !failed {
            continue;
        }
        attempts.failures += 1;
        let is_unsent = matches!(&record.outcome, Some(Outcome::Failed { report: Some(report), .. })
            if report.unsent);
        attempts.unsent += u32::from(is_unsent);
        if attempts.last.is_none() {
            attempts.is_unsent = is_unsent;
            attempts.last = Some(record.finished_at.unwrap_or(record.started_at));
            if let Some(Outcome::Failed {
                retry_after,
                elsewhere,
                ..
            }) = &record.outcome
            {
                attempts.retry_after = *retry_after;
                attempts.elsewhere = *elsewhere;
            }
        }
    }
    attempts
}

#[cfg(test)]
mod tests {
    use time::Duration;
    use time::macros::datetime;

    use super::*;

    const NOW: OffsetDateTime = datetime!(2026-11-23 6:00 UTC);
    const CA: &str = "https://ca.test/dir";
    const OTHER: &str = "https://other.test/dir";

    fn open(state: &StateDir) -> Ledger {
        let name = "*.example.com".parse().unwrap();
        Ledger::of_subject(state, &name, KeyType::P256, NOW).unwrap()
    }

    fn state() -> (tempfile::TempDir, StateDir) {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::open(directory.path()).unwrap();
        (directory, state)
    }

    fn failure() -> Outcome {
        Outcome::Failed {
            class: Class::Retryable,
            message: "no".to_owned(),
            retry_after: Some(NOW + Duration::HOUR),
            elsewhere: false,
            held: false,
            report: None,
        }
    }

    fn run(ledger: &Ledger, ca: &str, at: OffsetDateTime, outcome: Outcome) {
        let attempt = ledger.begin(Kind::Order, ca, Some("due"), at).unwrap();
        let end = at + Duration::SECOND;
        ledger
            .finish(attempt, outcome, &[ChallengeType::Http01], end)
            .unwrap();
    }

    #[test]
    fn a_revocation_says_who_says_so_and_what_becomes_of_the_key() {
        let revocation = |source: Option<&str>, reason: Option<&str>| StoredRevocation {
            serial: "01".to_owned(),
            found_at: OffsetDateTime::UNIX_EPOCH,
            source: source.map(str::to_owned),
            reason: reason.map(str::to_owned),
        };
        let list = Some("http://crl.test/");
        for (revocation, text, ends_key) in [
            (
                revocation(list, None),
                "no reason given, says http://crl.test/",
                false,
            ),
            (
                revocation(list, Some("keyCompromise")),
                "keyCompromise, says http://crl.test/",
                true,
            ),
            (
                revocation(None, Some("superseded")),
                "superseded, as was asked for",
                true,
            ),
        ] {
            assert_eq!(revocation.to_string(), text);
            assert_eq!(revocation.ends_key(), ends_key, "{text}");
        }
    }

    #[test]
    fn an_attempt_is_on_disk_before_it_starts_and_counts_after_a_crash() {
        let (_directory, state) = state();
        let ledger = open(&state);
        let _running = ledger.begin(Kind::Order, CA, Some("first"), NOW).unwrap();
        assert_eq!(ledger.attempts(Kind::Order, None), Attempts::default());
        let path = state
            .ledger_dir()
            .join("subjects/_wildcard.example.com.p256.json");
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        // The process dies here.
        let restarted = open(&state).attempts(Kind::Order, Some(CA));
        assert_eq!((restarted.failures, restarted.last), (1, Some(NOW)));
        assert_eq!(open(&state).attempts(Kind::Session, None).failures, 0);
    }

    #[test]
    fn failures_count_until_a_success_at_any_ca() {
        let (_directory, state) = state();
        let ledger = open(&state);
        run(&ledger, CA, NOW, failure());
        run(&ledger, CA, NOW + Duration::MINUTE, failure());
        run(&ledger, OTHER, NOW + Duration::HOUR, failure());
        for ledger in [&ledger, &open(&state)] {
            let at = |ca| ledger.attempts(Kind::Order, ca);
            assert_eq!(at(Some(CA)).failures, 2);
            assert_eq!(at(Some(OTHER)).failures, 1);
            assert_eq!(at(None).failures, 3);
            let last = NOW + Duration::MINUTE + Duration::SECOND;
            assert_eq!(at(Some(CA)).last, Some(last));
            assert_eq!(at(Some(CA)).retry_after, Some(NOW + Duration::HOUR));
            let newest = ledger.last(Kind::Order).unwrap();
            assert_eq!(
                (newest.ca.as_str(), newest.challenge.as_deref()),
                (OTHER, Some("http-01"))
            );
        }
        run(&ledger, OTHER, NOW + Duration::HOUR, Outcome::Ok);
        assert_eq!(
            open(&state).attempts(Kind::Order, Some(CA)),
            Attempts::default()
        );
    }

    #[test]
    fn what_failed_under_other_settings_counts_no_more() {
        let (_directory, state) = state();
        let ledger = open(&state);
        let of = |class, retry_after| Outcome::Failed {
            class,
            message: "no".to_owned(),
            retry_after,
            elsewhere: true,
            held: false,
            report: None,
        };
        run(&ledger, CA, NOW, of(Class::Operator, None));
        let _crashed = ledger.begin(Kind::Order, CA, None, NOW).unwrap();
        run(&ledger, CA, NOW, of(Class::RateLimited, None));
        run(
            &ledger,
            CA,
            NOW,
            of(Class::Retryable, Some(NOW + Duration::HOUR)),
        );
        let since = NOW + Duration::MINUTE;
        let ledger = open(&state);
        let count = |since| ledger.attempts_under(Kind::Order, Some(CA), since).failures;
        assert_eq!((count(None), count(Some(since))), (4, 3));
        run(&ledger, CA, since, of(Class::Operator, None));
        assert_eq!((count(Some(NOW)), count(Some(since))), (5, 4));
        let since = since + Duration::SECOND;
        let attempts = ledger.attempts_under(Kind::Order, Some(CA), Some(since));
        assert_eq!(
            (attempts.failures, attempts.retry_after),
            (3, Some(NOW + Duration::HOUR))
        );
    }

    #[test]
    fn a_clean_shutdown_is_no_failure_but_a_restart_loop_is() {
        let (_directory, state) = state();
        for (cancelled, failures) in [(1, 0), (2, 0), (3, 1), (4, 2)] {
            let ledger = open(&state);
            run(&ledger, CA, NOW, Outcome::Cancelled);
            let counted = open(&state).attempts(Kind::Order, None).failures;
            assert_eq!(counted, failures, "{cancelled} in a row");
        }
    }

    #[test]
    fn a_clean_shutdown_ends_what_runs() {
        let (_directory, state) = state();
        let ledger = open(&state);
        let _running = ledger.begin(Kind::Order, CA, None, NOW).unwrap();
        ledger.cancel_running(NOW).unwrap();
        let restarted = open(&state);
        assert_eq!(restarted.attempts(Kind::Order, None), Attempts::default());
        let last = restarted.last(Kind::Order).unwrap();
        assert_eq!(last.outcome, Some(Outcome::Cancelled));
    }

    #[test]
    fn the_file_stays_short() {
        let (_directory, state) = state();
        let ledger = open(&state);
        for n in 0..120 {
            run(&ledger, CA, NOW + Duration::minutes(n), failure());
        }
        let content: Content =
            serde_json::from_slice(&fs::read(ledger.path.as_ref().unwrap()).unwrap()).unwrap();
        assert_eq!(content.records.len(), MAX_RECORDS);
        assert_eq!(content.records.back().unwrap().id, 119);
        assert_eq!(
            open(&state).attempts(Kind::Order, None).failures,
            MAX_RECORDS as u32
        );
    }

    #[test]
    fn an_unreadable_file_is_kept_and_counts_as_one_failure() {
        let (_directory, state) = state();
        let ledger = open(&state);
        run(&ledger, CA, NOW, Outcome::Ok);
        fs::write(ledger.path.as_ref().unwrap(), "{\"records\": [tru").unwrap();
        for _ in 0..2 {
            let attempts = open(&state).attempts(Kind::Order, Some(CA));
            assert_eq!((attempts.failures, attempts.last), (1, Some(NOW)));
        }
        let aside = ledger.path.as_ref().unwrap().with_extension("json.corrupt");
        assert_eq!(fs::read_to_string(aside).unwrap(), "{\"records\": [tru");
    }

    #[test]
    fn no_attempt_without_a_record() {
        let (directory, state) = state();
        let ledger = open(&state);
        fs::remove_dir_all(directory.path().join("ledger")).unwrap();
        fs::write(directory.path().join("ledger"), "in the way").unwrap();
        assert!(ledger.begin(Kind::Order, CA, None, NOW).is_err());
    }

    #[test]
    fn renewal_information_belongs_to_one_certificate() {
        let (_directory, state) = state();
        let ledger = open(&state);
        let suggested = SuggestedWindow::new(NOW, NOW + Duration::DAY).unwrap();
        let window = Window::chosen(suggested, NOW + Duration::HOUR);
        let info = StoredRenewalInfo {
            certificate_id: "a.b".to_owned(),
            supported: true,
            window: Some(window.into()),
            explanation_url: Some("https://ca.test/why".to_owned()),
            next_fetch: NOW + Duration::hours(6),
            failures: 0,
        };
        ledger.set_renewal_info(Some(info.clone())).unwrap();
        let restarted = open(&state);
        assert_eq!(restarted.renewal_info("a.b"), Some(info.clone()));
        assert_eq!(restarted.renewal_info("a.c"), None);
        assert_eq!(info.facts().window, Some(window));
        let unsupported = StoredRenewalInfo {
            supported: false,
            ..info.clone()
        };
        assert_eq!(unsupported.facts().window, None);
        // What only another hand can have written is no window.
        let backwards = StoredRenewalInfo {
            window: info.window.map(|window| StoredWindow {
                end: window.start,
                ..window
            }),
            ..info
        };
        assert_eq!(backwards.facts().window, None);
    }

    #[test]
    fn what_waits_for_a_limit_has_not_failed() {
        let (_directory, state) = state();
        let ledger = open(&state);
        let held = Outcome::Failed {
            class: Class::RateLimited,
            message: "one more would break the limit".to_owned(),
            retry_after: None,
            elsewhere: true,
            held: true,
            report: None,
        };
        run(&ledger, CA, NOW, held);
        let attempts = |ledger: &Ledger| ledger.attempts(Kind::Order, Some(CA));
        assert_eq!(attempts(&ledger), Attempts::default());
        ledger.set_refused_predecessor("ca.1".to_owned()).unwrap();
        let again = open(&state);
        assert_eq!(attempts(&again), Attempts::default());
        assert!(again.is_refused_predecessor("ca.1"));
        assert!(!again.is_refused_predecessor("ca.2"));
        run(&ledger, CA, NOW, failure());
        assert_eq!(attempts(&ledger).failures, 1);
    }
}
