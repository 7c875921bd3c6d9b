//! The name of a file -> the open file. The kernel itself sees to it that no link and no race leads
//! out of the root (`openat2` with RESOLVE_BENEATH); where it cannot, no link is followed at all.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, statat};
use rustix::io::Errno;
use time::OffsetDateTime;

use super::super::coding::Coding;
use super::listing::Listing;
use super::target::is_served;
use super::{FileError, Question, media};
use crate::config::Files;

/// What is at a path.
pub enum Lookup {
    File(Box<Found>),
    /// A directory whose path was asked for without a slash at its end.
    Directory,
    /// A directory without an index.
    Listing(Listing),
    Missing,
}

/// An open file.
pub struct Found {
    pub file: File,
    pub size: u64,
    pub modified: OffsetDateTime,
    pub content_type: String,
    /// What it was compressed with, on disk.
    pub coding: Option<Coding>,
    /// What the choice depended on, beside the path.
    pub vary: Option<&'static str>,
}

/// What was opened.
enum Opened {
    File(File, Stat),
    Directory(OwnedFd),
}

/// Finds what is served for a question. Blocks.
pub fn find(files: &Files, question: &Question) -> Result<Lookup, FileError> {
    let root = open_root(&files.root)?;
    let below = Below { root, files };
    let name = &*question.target.name;
    match (below.open(name)?, question.target.is_directory) {
        (Some(Opened::File(file, stat)), false) => {
            return below.lookup(name, file, &stat, question, None);
        }
        (Some(Opened::Directory(_)), false) => return Ok(Lookup::Directory),
        (Some(Opened::Directory(directory)), true) => {
            for index in &files.index {
                let name = joined(name, index.as_bytes());
                if let Some(Opened::File(file, stat)) = below.open(&name)? {
                    return below.lookup(&name, file, &stat, question, None);
                }
            }
            if files.browse {
                return below.list(name, &directory).map(Lookup::Listing);
            }
        }
        (Some(Opened::File(..)), true) | (None, _) => {}
    }
    let fallback = files.fallback.as_ref().filter(|_| question.fallback);
    if let Some(fallback) = fallback
        && let Some(Opened::File(file, stat)) = below.open(fallback.as_bytes())?
    {
        let vary = question.fallback_by_accept.then_some("Accept");
        return below.lookup(fallback.as_bytes(), file, &stat, question, vary);
    }
    Ok(Lookup::Missing)
}

fn joined(directory: &[u8], name: &[u8]) -> Vec<u8> {
    match directory {
        [] => name.to_vec(),
        directory => [directory, b"/", name].concat(),
    }
}

/// It may be a link, and may be another one at the next request: so releases are put in place.
fn open_root(path: &Path) -> Result<OwnedFd, FileError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|error| FileError::Root {
        path: path.to_owned(),
        source: error.into(),
    })
}

/// The files below a root.
struct Below<'f> {
    root: OwnedFd,
    files: &'f Files,
}

impl Below<'_> {
    /// The file, or the one beside it that is it in a form that the client likes better.
    fn lookup(
        &self,
        name: &[u8],
        file: File,
        stat: &Stat,
        question: &Question,
        vary: Option<&'static str>,
    ) -> Result<Lookup, FileError> {
        let content_type = media::content_type(name);
        let mut found = Found {
            file,
            size: u64::try_from(stat.st_size).unwrap_or_default(),
            modified: modified(stat),
            coding: None,
            vary,
            content_type,
        };
        if self.files.precompressed && media::is_compressible(found.content_type.as_bytes()) {
            found.vary = Some(match vary {
                Some(_) => "Accept, Accept-Encoding",
                None => "Accept-Encoding",
            });
            for coding in &question.codings {
                if self.take_sibling(&mut found, name, *coding)? {
                    break;
                }
            }
        }
        Ok(Lookup::File(Box::new(found)))
    }

    /// What of a directory is served. A link is what it leads to, if that is.
    fn list(&self, name: &[u8], directory: &OwnedFd) -> Result<Listing, FileError> {
        let wrong = |error: Errno| FileError::Read {
            root: self.files.root.clone(),
            name: String::from_utf8_lossy(name).into_owned(),
            source: io::Error::from(error),
        };
        let mut listing = Listing::of(name);
        for entry in Dir::read_from(directory).map_err(wrong)? {
            let entry = entry.map_err(wrong)?;
            let own = entry.file_name().to_bytes();
            let depth = usize::from(!name.is_empty());
            if !is_served(own, depth, self.files.dot_files) {
                continue;
            }
            if listing.is_full() {
                break;
            }
            let stat = match statat(directory, own, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                // It is gone.
                Err(_) => continue,
            };
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::RegularFile => listing.add_file(own, &stat),
                FileType::Directory => listing.add_directory(own, &stat),
                FileType::Symlink => match self.open(&joined(name, own)) {
                    Ok(Some(Opened::File(_, stat))) => listing.add_file(own, &stat),
                    Ok(Some(Opened::Directory(linked))) => {
                        if let Ok(stat) = rustix::fs::fstat(&linked) {
                            listing.add_directory(own, &stat);
                        }
                    }
                    Ok(None) | Err(_) => {}
                },
                _ => {}
            }
        }
        Ok(listing)
    }

    /// Whether there is one. What is older than the file itself was made of another one.
    fn take_sibling(
        &self,
        found: &mut Found,
        name: &[u8],
        coding: Coding,
    ) -> Result<bool, FileError> {
        let name = [name, b".", coding.extension().as_bytes()].concat();
        let Some(Opened::File(file, stat)) = self.open(&name)? else {
            return Ok(false);
        };
        if modified(&stat) < found.modified {
            return Ok(false);
        }
        found.file = file;
        found.size = u64::try_from(stat.st_size).unwrap_or_default();
        found.modified = modified(&stat);
        found.coding = Some(coding);
        Ok(true)
    }

    /// `None`: there is nothing that is served. No pipe is waited for, and nothing but regular
    /// files and directories is there.
    fn open(&self, name: &[u8]) -> Result<Option<Opened>, FileError> {
        let name = match name {
            [] => b".",
            name => name,
        };
        let opened = match self.files.follow_symlinks {
            true => rustix::fs::openat(&self.root, name, FLAGS, Mode::empty()),
            false => open_beneath(&self.root, name),
        };
        let wrong = |error: Errno| FileError::Read {
            root: self.files.root.clone(),
            name: String::from_utf8_lossy(name).into_owned(),
            source: io::Error::from(error),
        };
        let opened = match opened {
            Ok(opened) => opened,
            Err(error) if is_missing(error) => return Ok(None),
            Err(error) => return Err(wrong(error)),
        };
        let stat = rustix::fs::fstat(&opened).map_err(wrong)?;
        Ok(match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Some(Opened::File(File::from(opened), stat)),
            FileType::Directory => Some(Opened::Directory(opened)),
            _ => None,
        })
    }
}

const FLAGS: OFlags = OFlags::RDONLY
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY)
    .union(OFlags::CLOEXEC);

/// Whether an error says that there is no such file, or none that is served: a link that leads out
/// (EXDEV), links in circles, sockets (ENXIO).
fn is_missing(error: Errno) -> bool {
    matches!(
        error,
        Errno::NOENT
            | Errno::NOTDIR
            | Errno::LOOP
            | Errno::XDEV
            | Errno::NAMETOOLONG
            | Errno::NXIO
            | Errno::NODEV
    )
}

#[cfg(target_os = "linux")]
fn open_beneath(root: impl AsFd, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    use rustix::fs::ResolveFlags;
    /// So often may somebody rename something while we look.
    const TRIES: usize = 16;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    for _ in 0..TRIES {
        match rustix::fs::openat2(root.as_fd(), name, FLAGS, Mode::empty(), resolve) {
            Err(Errno::AGAIN) => {}
            // A kernel before 5.6, or a container that does not know the call.
            Err(Errno::NOSYS | Errno::PERM) => return open_without_links(root, name),
            opened => return opened,
        }
    }
    Err(Errno::AGAIN)
}

#[cfg(not(target_os = "linux"))]
fn open_beneath(root: impl AsFd, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    open_without_links(root, name)
}

/// One part of the name after the other, none of them a link.
fn open_without_links(root: impl AsFd, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    let open = |directory: &dyn AsFd, part: &[u8]| {
        let flags = FLAGS | OFlags::NOFOLLOW;
        rustix::fs::openat(directory.as_fd(), part, flags, Mode::empty())
    };
    let mut parts = name.split(|byte| *byte == b'/');
    let mut opened = open(&root, parts.next().unwrap_or(b"."))?;
    for part in parts {
        opened = open(&opened, part)?;
    }
    Ok(opened)
}

pub(super) fn modified(stat: &Stat) -> OffsetDateTime {
    let seconds = i128::from(stat.st_mtime) * 1_000_000_000;
    let nanos = seconds + i128::from(stat.st_mtime_nsec);
    OffsetDateTime::from_unix_timestamp_nanos(nanos).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// Both ways to open: what the kernel does, and what is done without it.
    #[test]
    fn no_link_leads_out() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().join("root");
        std::fs::create_dir_all(root.join("sub")).unwrap();
        std::fs::write(root.join("sub/file"), "in").unwrap();
        std::fs::write(place.path().join("secret"), "out").unwrap();
        symlink("../secret", root.join("up")).unwrap();
        symlink(place.path().join("secret"), root.join("absolute")).unwrap();
        symlink("..", root.join("parent")).unwrap();
        symlink("sub/file", root.join("inside")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        symlink("/proc/self/root", root.join("magic")).unwrap();
        let fd = open_root(&root).unwrap();
        for name in [
            "up",
            "absolute",
            "parent/secret",
            "loop",
            "magic/etc/passwd",
        ] {
            let kernel = open_beneath(&fd, name.as_bytes());
            assert!(kernel.is_err_and(is_missing), "{name}");
            assert!(open_without_links(&fd, name.as_bytes()).is_err(), "{name}");
        }
        assert!(open_beneath(&fd, b"inside").is_ok());
        assert!(open_without_links(&fd, b"inside").is_err());
        for name in ["sub/file", "sub", "."] {
            assert!(open_beneath(&fd, name.as_bytes()).is_ok(), "{name}");
            assert!(open_without_links(&fd, name.as_bytes()).is_ok(), "{name}");
        }
    }
}
