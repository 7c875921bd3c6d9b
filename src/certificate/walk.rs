//! What there is below a directory. Asks for names and kinds alone, never for more of a file.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// All files below a directory, through symbolic links. Hidden entries are skipped: `..data` and
/// its kind are Kubernetes' own, `.x.swp` an editor's.
#[derive(Default)]
pub struct Walk {
    /// Regular files.
    pub files: Vec<PathBuf>,
    pub directories: BTreeSet<PathBuf>,
    /// The files and directories that are symbolic links.
    pub links: BTreeSet<PathBuf>,
}

impl Walk {
    /// Everything below a directory, `depth` levels of it.
    pub fn directory(&mut self, directory: &Path, depth: usize) {
        if depth == 0 {
            return;
        }
        let Ok(entries) = std::fs::read_dir(directory) else {
            return;
        };
        self.directories.insert(directory.to_owned());
        for entry in entries.flatten() {
            // On nearly all file systems the name comes with its kind, without another question.
            let (false, Ok(kind)) = (is_hidden(&entry.file_name()), entry.file_type()) else {
                continue;
            };
            let path = entry.path();
            let (mut is_directory, mut is_file) = (kind.is_dir(), kind.is_file());
            if kind.is_symlink() {
                self.links.insert(path.clone());
                let target = std::fs::metadata(&path);
                let target = target.as_ref();
                is_directory = target.is_ok_and(|target| target.is_dir());
                is_file = target.is_ok_and(|target| target.is_file());
            }
            if is_directory {
                self.directory(&path, depth - 1);
            } else if is_file {
                self.files.push(path);
            }
        }
    }

    /// One file, if it is one.
    pub fn file(&mut self, path: &Path) {
        if path.is_symlink() {
            self.links.insert(path.to_owned());
        }
        if path.is_file() {
            self.files.push(path.to_owned());
        }
    }

    /// Sorts the files as [`FilePath`](super::file_path::FilePath) does.
    pub fn sort(&mut self) {
        self.files
            .sort_unstable_by(|a, b| a.as_os_str().cmp(b.as_os_str()));
    }
}

/// Whether an entry of a directory is none of ours.
pub fn is_hidden(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b".")
}
