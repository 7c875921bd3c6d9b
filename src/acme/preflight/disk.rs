//! Whether the state directory takes what an order has to write.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::{Check, Topic};
use crate::acme::account::blocking;
use crate::store::{SECRET_FILE, StoreError};

/// More than an order writes.
const BYTES: usize = 64 << 10;

pub(super) async fn check(state_dir: PathBuf) -> Check {
    let written = {
        let state_dir = state_dir.clone();
        blocking(move || write(&state_dir)).await
    };
    let place = state_dir.display();
    match written {
        Ok(()) => Check::ok(Topic::StateDirectory, format!("{place} can be written to")),
        Err(error) => {
            let remedy = "until then nothing is ordered: a certificate would be lost";
            Check::fails(Topic::StateDirectory, error.to_string(), remedy).hopeless()
        }
    }
}

/// Writes, syncs and removes a file of its own.
fn write(state_dir: &Path) -> Result<(), StoreError> {
    let id: u64 = rand::random();
    let path = state_dir.join(format!(".preflight-{id:016x}"));
    let create = || -> std::io::Result<()> {
        let mut options = OpenOptions::new();
        let mut file = options
            .write(true)
            .create_new(true)
            .mode(SECRET_FILE)
            .open(&path)?;
        file.write_all(&vec![0; BYTES])?;
        file.sync_all()
    };
    let written = create();
    // What cannot be removed was not made, or is told by the next attempt.
    let _ = fs::remove_file(&path);
    written.map_err(|error| StoreError::io("write", &path, error))
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[tokio::test]
    async fn nothing_is_left_behind() {
        let directory = tempfile::tempdir().unwrap();
        let good = check(directory.path().to_owned()).await;
        assert_eq!(good.verdict, Verdict::Ok);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
        let missing = check(directory.path().join("missing")).await;
        assert!(
            missing.hopeless && missing.cause.contains("missing"),
            "{missing}"
        );
    }
}
