//! An order that the CA has and that has no certificate yet, on disk: what a crash would lose, so
//! that the next start resumes it. It sends nothing.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::KeyPair;
use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};

use super::Issued;
use super::delivery::{KeepError, keep};
use super::texts;
use crate::certificate::name::Name;
use crate::config::KeyType;
use crate::store::generation::PENDING;
use crate::store::{self, SECRET_FILE, StoreError, atomic, generation, key_type_name};

/// A pending order is resumed for so long; CAs drop theirs after a week at the latest.
pub const PENDING_LIFETIME: Duration = Duration::days(1);

pub(super) const ORDER_FILE: &str = "order.json";

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
        self.names == texts(names)
            && self.key_type == key_type_name(key_type)
            && age < PENDING_LIFETIME
            && age > -PENDING_LIFETIME
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

    pub(super) fn discard(&self) {
        match fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(path = %self.0.display(), %error, "cannot remove a finished order");
            }
            _ => {}
        }
    }
}

/// Finishes an order whose certificate had been fetched when a crash came. Sends nothing; blocks
/// on the disk.
pub fn complete_pending(
    dir: &Path,
    names: &[Name],
    key_type: KeyType,
    now: OffsetDateTime,
) -> Option<Issued> {
    let pending_dir = PendingDir::of(dir);
    let chain = fs::read_to_string(pending_dir.0.join(generation::FULLCHAIN)).ok()?;
    let (pending, key) = pending_dir.read()?;
    if !pending.is_for(names, key_type, now) {
        return None;
    }
    match keep(dir, &pending, &key, &chain, names, key_type) {
        Ok(issued) => Some(issued),
        Err(error) => {
            tracing::warn!(%error, "cannot finish an interrupted order");
            if matches!(error, KeepError::Unusable(_)) {
                pending_dir.discard();
            }
            None
        }
    }
}
