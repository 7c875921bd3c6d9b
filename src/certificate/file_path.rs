//! The path of a file, compared as bytes. Says nothing about what is there.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::ffi::{OsStr, OsString};
use std::hash::{Hash, Hasher};
use std::ops::{Bound, Deref, RangeBounds};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A path as a key of large maps: to compare it component by component, as `Path` does, took most
/// of the time of a bulk load. So `a//b` is not `a/b` here: paths have to come from one place.
#[derive(Clone, Debug)]
pub struct FilePath(Arc<Path>);

impl FilePath {
    pub fn as_arc(&self) -> &Arc<Path> {
        &self.0
    }
}

/// The range in which the paths of everything inside a directory stand. Others stand between it and
/// the directory itself: `a.b` comes after `a` and before `a/b`.
pub struct Inside {
    before: OsString,
    behind: OsString,
}

impl Inside {
    pub fn of(directory: &Path) -> Inside {
        let bytes = directory.as_os_str().as_bytes();
        let bytes = bytes.strip_suffix(b"/").unwrap_or(bytes);
        let bound = |last: u8| OsString::from_vec([bytes, &[last]].concat());
        Inside {
            before: bound(b'/'),
            // No byte comes between the two.
            behind: bound(b'/' + 1),
        }
    }
}

impl RangeBounds<OsStr> for Inside {
    fn start_bound(&self) -> Bound<&OsStr> {
        Bound::Excluded(&self.before)
    }

    fn end_bound(&self) -> Bound<&OsStr> {
        Bound::Excluded(&self.behind)
    }
}

impl Deref for FilePath {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

impl Borrow<OsStr> for FilePath {
    fn borrow(&self) -> &OsStr {
        self.0.as_os_str()
    }
}

impl From<PathBuf> for FilePath {
    fn from(path: PathBuf) -> FilePath {
        FilePath(path.into())
    }
}

impl From<&Arc<Path>> for FilePath {
    fn from(path: &Arc<Path>) -> FilePath {
        FilePath(path.clone())
    }
}

impl PartialEq for FilePath {
    fn eq(&self, other: &FilePath) -> bool {
        self.as_os_str() == other.as_os_str()
    }
}

impl Eq for FilePath {}

impl Hash for FilePath {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_os_str().hash(state);
    }
}

impl PartialOrd for FilePath {
    fn partial_cmp(&self, other: &FilePath) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for FilePath {
    fn cmp(&self, other: &FilePath) -> Ordering {
        self.as_os_str().cmp(other.as_os_str())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn what_is_inside_a_directory_is_that_alone() {
        let paths = [
            "/a", "/a-b/c", "/a.b", "/a/b", "/a/b/c", "/a0", "/ab/c", "/b/a",
        ];
        let paths: BTreeSet<FilePath> = paths.map(|path| PathBuf::from(path).into()).into();
        for (directory, expected) in [
            ("/a", &["/a/b", "/a/b/c"][..]),
            ("/a/", &["/a/b", "/a/b/c"]),
            ("/a/b", &["/a/b/c"]),
            ("/c", &[]),
        ] {
            let found = paths.range::<OsStr, _>(Inside::of(Path::new(directory)));
            let found: Vec<&Path> = found.map(|path| &**path).collect();
            assert_eq!(found, expected.iter().map(Path::new).collect::<Vec<_>>());
        }
        let all = paths.range::<OsStr, _>(Inside::of(Path::new("/")));
        assert_eq!(all.count(), paths.len());
    }
}
