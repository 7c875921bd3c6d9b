//! The file of the access log: always appended to, and opened anew when somebody has moved it away,
//! removed it, or says so. Whoever copies and truncates it needs nothing of us.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

/// Grows when the file has to be opened anew.
pub static GENERATION: AtomicU64 = AtomicU64::new(0);

/// The owner writes, the group may read.
const MODE: u32 = 0o640;

/// An access log on disk.
pub struct LogFile {
    path: PathBuf,
    file: Option<File>,
    generation: u64,
    /// Whether the last line in it is not whole.
    torn: bool,
}

impl LogFile {
    /// Opened when there is something to write.
    pub fn new(path: PathBuf) -> LogFile {
        LogFile {
            path,
            file: None,
            generation: 0,
            torn: false,
        }
    }

    pub fn path(&self) -> &std::path::Path {
        &self.path
    }

    /// Writes lines; how many bytes of them it did before it failed is added to `written`.
    pub fn write(&mut self, lines: &[u8], written: &mut usize) -> io::Result<()> {
        self.open_anew()?;
        let Some(file) = &mut self.file else {
            return Err(io::ErrorKind::NotFound.into());
        };
        if self.torn {
            file.write_all(b"\n")?;
            self.torn = false;
        }
        while *written < lines.len() {
            match file.write(&lines[*written..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(length) => *written += length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.torn = *written > 0 && lines[*written - 1] != b'\n';
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Where it cannot be, what is open is better than nothing.
    fn open_anew(&mut self) -> io::Result<()> {
        let generation = GENERATION.load(Ordering::Relaxed);
        if generation == self.generation && self.is_current() {
            return Ok(());
        }
        let opened = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(MODE)
            .open(&self.path);
        match opened {
            Ok(file) => {
                self.file = Some(file);
                self.generation = generation;
                self.torn = false;
                Ok(())
            }
            Err(_) if self.file.is_some() => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Whether what is open is what the path leads to.
    fn is_current(&self) -> bool {
        let identity = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
        let open = self.file.as_ref().and_then(|file| file.metadata().ok());
        let there = std::fs::metadata(&self.path).ok();
        open.is_some() && open.map(identity) == there.map(identity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_follows_its_path() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("access.log");
        let mut log = LogFile::new(path.clone());
        let mut write = |line: &str| log.write(line.as_bytes(), &mut 0);
        let read = |path: &std::path::Path| std::fs::read_to_string(path).unwrap();
        write("1\n").unwrap();
        assert_eq!(path.metadata().unwrap().mode() & 0o777 & !MODE, 0);
        // logrotate's create ...
        let moved = place.path().join("access.log.1");
        std::fs::rename(&path, &moved).unwrap();
        write("2\n").unwrap();
        assert_eq!((read(&moved), read(&path)), ("1\n".into(), "2\n".into()));
        // ... and its copytruncate.
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(0)
            .unwrap();
        write("3\n").unwrap();
        assert_eq!(read(&path), "3\n");
        std::fs::remove_file(&path).unwrap();
        write("4\n").unwrap();
        assert_eq!(read(&path), "4\n");
        // Where it cannot be opened, it goes on in what it has.
        let folder = place.path().join("folder");
        std::fs::create_dir(&folder).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::rename(&folder, &path).unwrap();
        write("5\n").unwrap();
    }

    #[test]
    fn what_was_cut_off_does_not_spoil_the_next_line() {
        let place = tempfile::tempdir().unwrap();
        let mut log = LogFile::new(place.path().join("log"));
        log.write(b"1\n", &mut 0).unwrap();
        log.torn = true;
        log.write(b"2\n", &mut 0).unwrap();
        assert_eq!(std::fs::read_to_string(log.path()).unwrap(), "1\n\n2\n");
        // A full disk.
        let mut full = LogFile::new("/dev/full".into());
        let mut written = 0;
        assert!(full.write(b"1\n", &mut written).is_err());
        assert_eq!((written, full.torn), (0, false));
    }
}
