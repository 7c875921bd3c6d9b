//! Looking at files that others write: what their metadata says, what their bytes are, and how
//! sure one can be of both. Never keeps a file's content.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::num::NonZeroU32;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use boring::sha::sha256;
use time::{Duration, OffsetDateTime};

/// No certificate file is larger; a larger one is not read, so that a log file or a disk image in
/// a drop folder costs nothing.
pub const MAX_FILE_BYTES: u64 = 1 << 20;

/// A file that changed less than this before it was read may change again without its times
/// showing it: the coarsest clock that file systems stamp with (ext3, FAT) ticks every 1 to 2 s.
pub const SETTLED_AFTER: Duration = Duration::seconds(2);

/// What `stat` says. A difference means *look*; that the content changed only its checksum can say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Seconds since 1970; the nanoseconds stand apart, because there are many stamps.
    modified: i64,
    changed: i64,
    size: u64,
    device: u64,
    inode: u64,
    modified_nanoseconds: u32,
    changed_nanoseconds: u32,
    /// Of a regular file, so never zero.
    mode: NonZeroU32,
}

impl Stamp {
    fn of(metadata: &Metadata) -> Stamp {
        Stamp {
            modified: metadata.mtime(),
            changed: metadata.ctime(),
            size: metadata.size(),
            device: metadata.dev(),
            inode: metadata.ino(),
            modified_nanoseconds: nanoseconds(metadata.mtime_nsec()),
            changed_nanoseconds: nanoseconds(metadata.ctime_nsec()),
            mode: NonZeroU32::new(metadata.mode()).unwrap_or(NonZeroU32::MIN),
        }
    }

    /// Whether the last change is so recent at `now` that another one need not show.
    pub fn is_young(&self, now: OffsetDateTime) -> bool {
        now - self.changed_at() < SETTLED_AFTER
    }

    /// The later of the content's and the metadata's last change. Programs that keep an older
    /// modification time cannot keep the other.
    pub fn changed_at(&self) -> OffsetDateTime {
        let modified = (self.modified, self.modified_nanoseconds);
        let (seconds, nanoseconds) = modified.max((self.changed, self.changed_nanoseconds));
        let nanoseconds = i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
        OffsetDateTime::from_unix_timestamp_nanos(nanoseconds).unwrap_or(OffsetDateTime::UNIX_EPOCH)
    }
}

/// There are less than 2^30 of them in a second, whatever a file system may claim.
fn nanoseconds(claimed: i64) -> u32 {
    u32::try_from(claimed).unwrap_or(0)
}

/// The checksum of a file's content.
pub type Digest = [u8; 32];

/// One reading of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observation {
    pub stamp: Stamp,
    pub digest: Digest,
    /// Whether the file could have changed again without a sign: it has to be read again.
    pub young: bool,
}

/// Why a file could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("does not exist")]
    Missing,
    #[error("is a symbolic link that leads nowhere")]
    Dangling,
    #[error("may not be read: {0} (give the user that runs perennial read access)")]
    Permission(#[source] io::Error),
    #[error("is not a regular file")]
    NotAFile,
    #[error("is larger than {0} bytes, the most that such a file can have")]
    TooLarge(u64),
    #[error("is being written")]
    Unstable,
    #[error("cannot be read: {0}")]
    Io(#[source] io::Error),
}

/// The stamp of a regular file, through symbolic links. `None`: there is no such thing, or it is
/// no regular file.
pub fn stat(path: &Path) -> Option<Stamp> {
    let metadata = std::fs::metadata(path).ok()?;
    metadata.is_file().then(|| Stamp::of(&metadata))
}

/// Reads a whole file and says how sure the reading is.
pub fn read(path: &Path, now: OffsetDateTime) -> Result<(Vec<u8>, Observation), ReadError> {
    read_up_to(MAX_FILE_BYTES, path, now)
}

fn read_up_to(
    limit: u64,
    path: &Path,
    now: OffsetDateTime,
) -> Result<(Vec<u8>, Observation), ReadError> {
    let mut file = open(path)?;
    let before = file.metadata().map_err(ReadError::Io)?;
    if !before.is_file() {
        return Err(ReadError::NotAFile);
    }
    if before.len() > limit {
        return Err(ReadError::TooLarge(limit));
    }
    let bytes = read_whole(&mut file, before.len()).map_err(ReadError::Io)?;
    let after = Stamp::of(&file.metadata().map_err(ReadError::Io)?);
    if after != Stamp::of(&before) || after.size != bytes.len() as u64 {
        return Err(ReadError::Unstable);
    }
    let observation = Observation {
        stamp: after,
        digest: sha256(&bytes),
        young: after.is_young(now),
    };
    Ok((bytes, observation))
}

/// Reads a whole file of up to `limit` bytes through its links, and makes sure that they led to the
/// same place before and after: a `..data` link that is swapped meanwhile would mix two
/// generations.
pub fn read_resolved(
    limit: u64,
    path: &Path,
    now: OffsetDateTime,
) -> Result<(Vec<u8>, Observation), ReadError> {
    let before = resolve(path);
    let reading = read_up_to(limit, path, now)?;
    if resolve(path) != before {
        return Err(ReadError::Unstable);
    }
    Ok(reading)
}

/// Reads what should be `size` bytes, and a little more: a file that has grown meanwhile shows by
/// its length. A regular file gives less than was asked for only at its end, so one call does.
fn read_whole(file: &mut File, size: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(size).unwrap_or(0) + 1];
    let mut filled = 0;
    while filled < bytes.len() {
        match file.read(&mut bytes[filled..]) {
            Ok(0) => break,
            Ok(count) => {
                filled += count;
                if filled as u64 == size {
                    break;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

fn open(path: &Path) -> Result<File, ReadError> {
    // Opening a FIFO would wait for a writer; like this it does not, and for a regular file it
    // makes no difference.
    File::options()
        .read(true)
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32)
        .open(path)
        .map_err(|error| classify(path, error))
}

fn classify(path: &Path, error: io::Error) -> ReadError {
    match error.kind() {
        io::ErrorKind::NotFound if path.is_symlink() => ReadError::Dangling,
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => ReadError::Missing,
        io::ErrorKind::PermissionDenied => ReadError::Permission(error),
        _ => ReadError::Io(error),
    }
}

/// Where a path leads through all its links, or the path itself if that cannot be told.
pub fn resolve(path: &Path) -> PathBuf {
    std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}
