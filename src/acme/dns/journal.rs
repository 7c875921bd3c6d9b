//! The TXT records that were written and not removed yet, one file each in the ledger. Only what
//! stands here is written at a provider, and it stands here until it is gone there.

use std::fs;
use std::io;
use std::path::PathBuf;

use super::{Noted, TxtRecord};
use crate::store::sha2_hex::short_hash;
use crate::store::{self, SECRET_FILE, StateDir, StoreError, atomic};

/// Enough hexadecimal digits that two records never share a file.
const HASH_DIGITS: usize = 32;

#[derive(Clone, Debug)]
pub(super) struct Journal {
    dir: PathBuf,
}

impl Journal {
    pub(super) fn of(state: &StateDir) -> Journal {
        Journal {
            dir: state.ledger_dir().join("dns"),
        }
    }

    fn file(&self, record: &TxtRecord) -> PathBuf {
        let key = format!("{} {} {}", record.zone, record.name, record.value);
        self.dir
            .join(format!("{}.json", short_hash(&key, HASH_DIGITS)))
    }

    /// On disk before this returns.
    pub(super) fn note(&self, noted: &Noted) -> Result<(), StoreError> {
        let path = self.file(&noted.record);
        let bytes =
            serde_json::to_vec_pretty(noted).map_err(|error| StoreError::broken(&path, error))?;
        store::make_directory(&self.dir)?;
        atomic::write_file(&path, &bytes, SECRET_FILE)
    }

    pub(super) fn forget(&self, record: &TxtRecord) {
        let path = self.file(record);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %path.display(), %error, "cannot forget a removed TXT record");
            }
            _ => {}
        }
    }

    /// What earlier runs left. A file that cannot be read is told and left alone.
    pub(super) fn read(&self) -> Vec<Noted> {
        let Ok(entries) = fs::read_dir(&self.dir) else {
            return Vec::new();
        };
        let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
        let notes = paths.filter(|path| path.extension().is_some_and(|it| it == "json"));
        notes
            .filter_map(|path| {
                let read = fs::read(&path).map_err(|error| error.to_string());
                let noted = read.and_then(|bytes| {
                    serde_json::from_slice(&bytes).map_err(|error| error.to_string())
                });
                noted
                    .inspect_err(|error| {
                        tracing::warn!(path = %path.display(), error, "cannot read which TXT record was written");
                    })
                    .ok()
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[test]
    fn what_is_noted_is_read_until_it_is_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::open(directory.path()).unwrap();
        let journal = Journal::of(&state);
        assert!(journal.read().is_empty());
        let record = |value: &str| TxtRecord {
            name: "_acme-challenge.a.test".to_owned(),
            zone: "a.test".to_owned(),
            value: value.to_owned(),
        };
        for value in ["one", "two"] {
            let noted = Noted {
                provider: "exec".to_owned(),
                domain: Some("a.test".to_owned()),
                record: record(value),
                written_at: clock::now(),
            };
            journal.note(&noted).unwrap();
        }
        assert_eq!(journal.read().len(), 2);
        journal.forget(&record("one"));
        journal.forget(&record("one"));
        let left = Journal::of(&state).read();
        assert_eq!((left.len(), &left[0].record), (1, &record("two")));
        assert_eq!(left[0].provider, "exec");
        assert_eq!(left[0].domain.as_deref(), Some("a.test"));
    }
}
