//! The path of a request -> the name of a file below a root. What could lead anywhere else, or to
//! what is meant to be hidden, is no name.

use crate::proxy::path::hex;

/// A file or a directory that is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Below the root, decoded, without a slash at either end. Empty: the root itself.
    pub name: Vec<u8>,
    /// Whether a directory is asked for.
    pub is_directory: bool,
}

impl Target {
    /// `path` is in the normal form of [`normal`](crate::proxy::path::normal). `None`: there is
    /// nothing at this path, whatever is on disk.
    pub fn of(path: &[u8], dot_files: bool) -> Option<Target> {
        let path = path.strip_prefix(b"/")?;
        let (path, is_directory) = match path.strip_suffix(b"/") {
            Some(path) => (path, true),
            None => (path, path.is_empty()),
        };
        let mut name = Vec::with_capacity(path.len());
        for (depth, segment) in path.split(|byte| *byte == b'/').enumerate() {
            if path.is_empty() {
                break;
            }
            let segment = decoded(segment)?;
            if !is_served(&segment, depth, dot_files) {
                return None;
            }
            if depth > 0 {
                name.push(b'/');
            }
            name.extend_from_slice(&segment);
        }
        Some(Target { name, is_directory })
    }

    /// Whether the last part of the name has a dot in it.
    pub fn has_extension(&self) -> bool {
        let last = self.name.rsplit(|byte| *byte == b'/').next();
        !self.is_directory && last.is_some_and(|last| last.contains(&b'.'))
    }
}

/// One name in a directory. An encoded slash would be a second one, and what begins with a dot is a
/// configuration, a repository, or one of the two directories that lead elsewhere.
pub(super) fn is_served(segment: &[u8], depth: usize, dot_files: bool) -> bool {
    let is_name = !segment.is_empty() && !segment.iter().any(|byte| matches!(byte, b'/' | 0));
    let leads_elsewhere = matches!(segment, b"." | b"..");
    // RFC 8615: its place is at the top.
    let is_well_known = depth == 0 && segment == b".well-known";
    let is_hidden = segment.first() == Some(&b'.') && !dot_files && !is_well_known;
    is_name && !leads_elsewhere && !is_hidden
}

/// Without percent-encoding; `None` where that is malformed.
fn decoded(segment: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(segment.len());
    let mut rest = segment;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match byte {
            b'%' => {
                out.push(hex(after)?);
                rest = &after[2..];
            }
            byte => out.push(byte),
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng as _, SeedableRng as _};

    use super::super::super::path::normal;
    use super::*;

    fn name(path: &str) -> Option<String> {
        let target = Target::of(&normal(path.as_bytes()), false)?;
        let name = String::from_utf8(target.name).unwrap();
        Some(match target.is_directory {
            true => name + "/",
            false => name,
        })
    }

    #[test]
    fn paths_are_names_below_the_root() {
        for (path, expected) in [
            ("/", Some("/")),
            ("/a", Some("a")),
            ("/a/b.txt", Some("a/b.txt")),
            ("/a/", Some("a/")),
            ("//a//b", Some("a/b")),
            ("/a%20b/%C3%A4", Some("a b/ä")),
            ("/../../etc/passwd", Some("etc/passwd")),
            ("/a/%2e%2e/b", Some("b")),
            ("/%2e%2e%2fetc", None),
            ("/a%2fb", None),
            ("/a%00b", None),
            ("/a%zz", None),
            ("/a%4", None),
            ("/.git/config", None),
            ("/a/.env", None),
            ("/%2Eenv", None),
            (
                "/.well-known/security.txt",
                Some(".well-known/security.txt"),
            ),
            ("/.well-known/.hidden", None),
            ("/a/.well-known/x", None),
            ("/a/..b", None),
            ("/a..b", Some("a..b")),
            ("*", None),
            ("", None),
        ] {
            assert_eq!(name(path).as_deref(), expected, "{path}");
        }
        let target = Target::of(b"/.env", true).unwrap();
        assert_eq!(target.name, b".env");
    }

    /// Whatever is asked for: no name leads up, begins at the top, or has a hidden part.
    #[test]
    fn no_path_leads_out() {
        const PIECES: [&str; 20] = [
            "/",
            "/",
            "/",
            ".",
            "..",
            "a",
            "%2e",
            "%2E",
            "%2f",
            "%5c",
            "\\",
            "%00",
            "%25",
            "%",
            "?",
            "~",
            "%c0%ae",
            "..%2f",
            ".well-known",
            "é",
        ];
        let seed = rand::random();
        let mut random = StdRng::seed_from_u64(seed);
        for _ in 0..50_000 {
            let count = random.random_range(0..12);
            let pieces = (0..count).map(|_| PIECES[random.random_range(0..PIECES.len())]);
            let path = format!("/{}", pieces.collect::<String>());
            for dot_files in [false, true] {
                let Some(target) = Target::of(&normal(path.as_bytes()), dot_files) else {
                    continue;
                };
                let name = &target.name;
                let context = || format!("seed {seed}, {path}: {}", String::from_utf8_lossy(name));
                assert!(
                    !name.starts_with(b"/") && !name.ends_with(b"/"),
                    "{}",
                    context()
                );
                assert!(!name.contains(&0), "{}", context());
                let mut parts = name.split(|byte| *byte == b'/').enumerate();
                let bad = |(depth, part): (usize, &[u8])| {
                    let hidden = part.starts_with(b".") && !dot_files;
                    matches!(part, b"." | b"..")
                        || (part.is_empty() && !name.is_empty())
                        || (hidden && !(depth == 0 && part == b".well-known"))
                };
                assert!(!parts.any(bad), "{}", context());
            }
        }
    }
}
