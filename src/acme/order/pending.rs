//! An order that the CA has and that has no certificate yet, on disk: what a crash would lose, so
//! that the next start resumes it. It sends nothing.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{KeyPair, PublicKeyData};
use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};

use super::Issued;
use super::delivery::{KeepError, keep, verified};
use super::texts;
use crate::acme::history::History;
use crate::acme::limits::Past;
use crate::certificate::name::Name;
use crate::clock;
use crate::config::KeyType;
use crate::store::generation::PENDING;
use crate::store::{self, SECRET_FILE, StoreError, atomic, generation, key_type_name};

/// A pending order is resumed for so long; CAs drop theirs after a week at the latest.
pub const PENDING_LIFETIME: Duration = Duration::days(1);
/// A certificate that was fetched and could not be used, as this host's clock was ahead, is as good
/// as a new one for so long. CAs count no longer than that, so the next one can be had then.
pub const FETCHED_LIFETIME: Duration = Duration::days(7);

pub(super) const ORDER_FILE: &str = "order.json";

/// What was asked of each CA, by its directory URL.
pub type Histories = HashMap<String, Arc<History>>;

/// `pending/order.json`: an order that the CA has and that has no certificate yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pending {
    pub(super) ca: String,
    pub(super) order_url: String,
    pub(super) names: Vec<String>,
    pub(super) key_type: String,
    #[serde(with = "time::serde::rfc3339")]
    pub(super) created_at: OffsetDateTime,
    /// Its number in the history of the CA.
    #[serde(default)]
    pub(super) number: Option<u64>,
}

impl Pending {
    pub(super) fn is_for(&self, names: &[Name], key_type: KeyType, now: OffsetDateTime) -> bool {
        let age = now - self.created_at;
        self.is_like(names, key_type) && age < PENDING_LIFETIME && age > -PENDING_LIFETIME
    }

    /// Its number among what was asked of a CA, if that is this order: another CA numbers others,
    /// and this one does where nobody remembers the order any more.
    pub(super) fn number_in(&self, ca: &str, past: &Past) -> Option<u64> {
        let number = self.number.filter(|_| self.ca == ca);
        number.filter(|number| past.is_for(*number, &self.names))
    }

    /// Where it is noted that it was sent, and under which number.
    fn noted<'a>(&self, histories: &'a Histories) -> Option<(&'a History, u64)> {
        let history = histories.get(&self.ca)?;
        let number = history.judge(|past| self.number_in(&self.ca, past))?;
        Some((history, number))
    }

    /// Nobody goes on with it.
    fn note_dropped(&self, histories: &Histories, now: OffsetDateTime) {
        let Some((history, number)) = self.noted(histories) else {
            return;
        };
        if let Err(error) = history.dropped(number, now) {
            tracing::warn!(%error, "cannot record how an interrupted order ended");
        }
    }

    fn is_like(&self, names: &[Name], key_type: KeyType) -> bool {
        self.names == texts(names) && self.key_type == key_type_name(key_type)
    }
}

/// The directory of the pending order of one certificate.
#[derive(Clone, Debug)]
pub(super) struct PendingDir(pub(super) PathBuf);

impl PendingDir {
    pub(super) fn of(certificate_dir: &Path) -> PendingDir {
        PendingDir(certificate_dir.join(PENDING))
    }

    /// The order and its key; nothing where either is missing or unreadable: then there is
    /// nothing to resume.
    pub(super) fn read(&self) -> Option<(Pending, KeyPair)> {
        let pending = serde_json::from_slice(&fs::read(self.0.join(ORDER_FILE)).ok()?).ok()?;
        let key = fs::read_to_string(self.0.join(generation::PRIVATE_KEY)).ok()?;
        Some((pending, KeyPair::from_pem(&key).ok()?))
    }

    pub(super) fn write(&self, file: &str, bytes: &[u8]) -> Result<(), StoreError> {
        store::make_directory(&self.0)?;
        atomic::write_file(&self.0.join(file), bytes, SECRET_FILE)
    }

    /// The order, where it has the key of the current certificate and that, whose serial number is
    /// asked about, has ended: it is on disk no more.
    pub(super) fn discard_key(
        &self,
        dir: &Path,
        is_ended: impl FnOnce(&str) -> bool,
    ) -> Option<Pending> {
        let (pending, key) = self.read()?;
        let leaf = generation::read_current(dir).ok()??.leaf;
        let is_current = key.subject_public_key_info() == leaf.public_key;
        (is_current && is_ended(&leaf.serial)).then(|| {
            self.discard();
            pending
        })
    }

    pub(super) fn discard(&self) {
        match fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(path = %self.0.display(), %error, "cannot remove a finished order");
            }
            _ => {}
        }
    }
}

/// An order of which the CA may have a certificate for us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfinished {
    /// Its directory URL.
    pub ca: String,
    /// In the history of the CA.
    pub number: u64,
}

/// The order in the directory of this certificate that the next one goes on with. Blocks on the
/// disk.
pub fn unfinished(dir: &Path, names: &[Name], key_type: KeyType) -> Option<Unfinished> {
    let (pending, _) = PendingDir::of(dir).read()?;
    let pending = Some(pending).filter(|it| it.is_like(names, key_type))?;
    Some(Unfinished {
        number: pending.number?,
        ca: pending.ca,
    })
}

/// Has the history know the order in this directory: a crash that came between its URL on disk and
/// the note of it makes it look like one that the CA never answered. Blocks on the disk.
pub fn make_known(dir: &Path, histories: &Histories) {
    let Some((pending, _)) = PendingDir::of(dir).read() else {
        return;
    };
    let Some((history, number)) = pending.noted(histories) else {
        return;
    };
    if let Err(error) = history.placed(number, &pending.order_url) {
        tracing::warn!(%error, "cannot record where an interrupted order is");
    }
}

/// Drops the order with the key of the current certificate, if that key is not to be used again.
/// Blocks on the disk.
pub fn discard_key(
    dir: &Path,
    histories: &Histories,
    now: OffsetDateTime,
    is_ended: impl FnOnce(&str) -> bool,
) {
    if let Some(dropped) = PendingDir::of(dir).discard_key(dir, is_ended) {
        dropped.note_dropped(histories, now);
    }
}

/// An order whose certificate is on disk, and no generation yet: a crash came between, or this
/// host's clock says that it has expired.
pub(super) struct Fetched {
    pub(super) pending: Pending,
    key: KeyPair,
    chain: String,
}

impl Fetched {
    /// The one of these names, if there is any.
    pub(super) fn read(dir: &PendingDir, names: &[Name], key_type: KeyType) -> Option<Fetched> {
        let chain = fs::read_to_string(dir.0.join(generation::FULLCHAIN)).ok()?;
        let (pending, key) = dir.read()?;
        let same = pending.is_like(names, key_type);
        same.then_some(Fetched {
            pending,
            key,
            chain,
        })
    }

    /// Makes it the current generation.
    pub(super) fn keep(
        &self,
        dir: &Path,
        names: &[Name],
        key_type: KeyType,
        now: OffsetDateTime,
    ) -> Result<Issued, KeepError> {
        let (leaf, _) = verified(&self.chain, &self.key, names, now)?;
        let half = (leaf.not_after - leaf.not_before) / 2;
        if now - leaf.not_before >= FETCHED_LIFETIME.min(half) {
            let since = clock::rfc3339(leaf.not_before);
            let old = format!("the certificate of an interrupted order is of {since}: too old");
            return Err(KeepError::Unusable(old));
        }
        keep(dir, &self.pending, &self.key, &self.chain, names, key_type)
    }
}

/// Finishes an order whose certificate had been fetched when a crash came. Sends nothing; blocks
/// on the disk.
pub fn complete_pending(
    dir: &Path,
    names: &[Name],
    key_type: KeyType,
    histories: &Histories,
    now: OffsetDateTime,
) -> Option<Issued> {
    let pending_dir = PendingDir::of(dir);
    let fetched = Fetched::read(&pending_dir, names, key_type)?;
    match fetched.keep(dir, names, key_type, now) {
        Ok(issued) => Some(issued),
        // The next attempt asks the CA whose clock is wrong.
        Err(KeepError::Expired(_)) => None,
        Err(error) => {
            tracing::warn!(%error, "cannot finish an interrupted order");
            if matches!(error, KeepError::Unusable(_)) {
                pending_dir.discard();
                fetched.pending.note_dropped(histories, now);
            }
            None
        }
    }
}
