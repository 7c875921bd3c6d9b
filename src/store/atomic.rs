//! One file, replaced whole or not at all.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::StoreError;

/// Writes `bytes` to `path`: a temporary file beside it, of `mode` from its creation on, synced,
/// then renamed over it, then the directory synced. Whatever fails, the old content stays.
///
/// The temporary name is fixed, so that one left over by a crash is reused and not piled up. It
/// follows that a path has one writer at a time: the holder of the
/// [`WriterLock`](super::WriterLock).
pub fn write_file(path: &Path, bytes: &[u8], mode: u32) -> Result<(), StoreError> {
    let temporary = temporary_path(path);
    remove_leftover(&temporary)?;
    create_synced(&temporary, bytes, mode)
        .and_then(|()| {
            fs::rename(&temporary, path).map_err(|error| StoreError::io("write", path, error))
        })
        .inspect_err(|_| {
            // The error that counts is the first one; a leftover goes at the next write.
            let _ = fs::remove_file(&temporary);
        })?;
    sync_directory(parent(path))
}

/// Creates a file that must not exist yet, with `mode`, and syncs it.
pub(super) fn create_synced(path: &Path, bytes: &[u8], mode: u32) -> Result<(), StoreError> {
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(|error| StoreError::io("write", path, error))
}

/// Makes the entries of a directory durable: a rename is only on disk once its directory is.
pub(super) fn sync_directory(path: &Path) -> Result<(), StoreError> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(|error| StoreError::io("sync", path, error))
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn temporary_path(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".tmp");
    path.with_file_name(name)
}

fn remove_leftover(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(StoreError::io("remove", path, error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn content_and_mode() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        write_file(&path, b"one", 0o600).unwrap();
        assert_eq!(
            (fs::read(&path).unwrap(), mode(&path)),
            (b"one".to_vec(), 0o600)
        );
        // A file that was open to everybody does not stay so.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        write_file(&path, b"two", 0o600).unwrap();
        assert_eq!(
            (fs::read(&path).unwrap(), mode(&path)),
            (b"two".to_vec(), 0o600)
        );
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_leftover_is_replaced_and_its_mode_with_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        fs::write(directory.path().join(".key.tmp"), "half").unwrap();
        write_file(&path, b"whole", 0o600).unwrap();
        assert_eq!(
            (fs::read(&path).unwrap(), mode(&path)),
            (b"whole".to_vec(), 0o600)
        );
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failure_leaves_the_old_content() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("missing/key");
        assert!(write_file(&path, b"x", 0o600).is_err());
        // A directory in the place of the file: the rename fails, the temporary file goes.
        let path = directory.path().join("taken");
        fs::create_dir_all(path.join("inside")).unwrap();
        assert!(write_file(&path, b"x", 0o600).is_err());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
