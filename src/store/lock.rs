//! The writer lock: who may order and write. Serving and the hand-over of sockets never ask for
//! it.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use super::{SECRET_FILE, StoreError};

/// The right to write into a state directory, for as long as this lives. The kernel gives it back
/// when the process ends, however it ends.
#[derive(Debug)]
pub struct WriterLock {
    _file: File,
}

pub(super) fn try_lock(path: &Path) -> Result<Option<WriterLock>, StoreError> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(SECRET_FILE)
        .open(path)
        .map_err(|error| StoreError::io("open", path, error))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(WriterLock { _file: file })),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(StoreError::io("lock", path, error.into())),
    }
}

#[cfg(test)]
mod tests {
    use crate::store::StateDir;

    #[test]
    fn one_writer_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::open(directory.path()).unwrap();
        let first = state.try_lock_writer().unwrap();
        assert!(first.is_some());
        assert!(state.try_lock_writer().unwrap().is_none());
        drop(first);
        assert!(state.try_lock_writer().unwrap().is_some());
    }
}
