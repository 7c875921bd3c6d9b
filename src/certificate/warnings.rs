//! What is served now and will bite later: files whose renewal can never be seen, keys that others
//! can read, sources that fight over a name. Pure over the certificates and the facts about their
//! files; only [`FileFacts::of`] and [`MountedFiles::of_process`] look at the machine.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use time::OffsetDateTime;

use super::certified_key::KeyAlgorithm;
use super::explain;
use super::inventory::{Entry, EntryId};
use super::name::Name;
use super::overdue::HostSet;
use super::table::{LiveCertificate, SourceKind};

/// Names that one sentence lists.
const NAMES_SHOWN: usize = 3;

/// Whoever is not the owner.
const OTHERS: u32 = 0o077;

/// What the machine says about one file, through its links.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileFacts {
    /// Something is mounted on the file itself.
    pub is_mount_point: bool,
    /// The permission bits.
    pub mode: Option<u32>,
}

/// Where something is mounted.
#[derive(Clone, Debug, Default)]
pub struct MountPoints(HashSet<PathBuf>);

/// The files that something is mounted on.
#[derive(Clone, Debug, Default)]
pub struct MountedFiles {
    paths: MountPoints,
    /// Device and inode: a cheap question before the expensive one, where a path really leads.
    inodes: HashSet<(u64, u64)>,
}

impl MountedFiles {
    /// As this process sees them.
    pub fn of_process() -> MountedFiles {
        // Without /proc there is one warning less.
        let text = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
        let paths = MountPoints::parse(&text);
        let files = paths
            .0
            .iter()
            .filter_map(|path| std::fs::metadata(path).ok());
        let files = files.filter(std::fs::Metadata::is_file);
        let inodes = files.map(|file| (file.dev(), file.ino())).collect();
        MountedFiles { paths, inodes }
    }

    fn contains(&self, path: &Path, metadata: &std::fs::Metadata) -> bool {
        self.inodes.contains(&(metadata.dev(), metadata.ino()))
            && std::fs::canonicalize(path).is_ok_and(|target| self.paths.contains(&target))
    }
}

impl MountPoints {
    /// Reads the format of `/proc/self/mountinfo` (proc_pid_mountinfo(5)): the fifth field.
    pub fn parse(text: &[u8]) -> MountPoints {
        let fields = text.split(|byte| *byte == b'\n');
        let fields = fields.filter_map(|line| line.split(|byte| *byte == b' ').nth(4));
        let paths = fields.map(|field| PathBuf::from(OsString::from_vec(unescape(field))));
        MountPoints(paths.collect())
    }

    pub fn contains(&self, path: &Path) -> bool {
        self.0.contains(path)
    }
}

/// Blanks, tabs, line ends and backslashes are written as `\` and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let digits = tail.get(..3).and_then(|it| std::str::from_utf8(it).ok());
        let escaped = digits.and_then(|it| u8::from_str_radix(it, 8).ok());
        match escaped {
            Some(escaped) if byte == b'\\' => {
                bytes.push(escaped);
                rest = &tail[3..];
            }
            _ => {
                bytes.push(byte);
                rest = tail;
            }
        }
    }
    bytes
}

impl FileFacts {
    /// Asks the file system.
    pub fn of(path: &Path, mounted: &MountedFiles) -> FileFacts {
        let metadata = std::fs::metadata(path).ok();
        FileFacts {
            is_mount_point: metadata
                .as_ref()
                .is_some_and(|it| mounted.contains(path, it)),
            mode: metadata.map(|it| it.mode() & 0o7777),
        }
    }
}

/// What is wrong with the files of one certificate that somebody else writes.
pub fn of_files(id: &EntryId, entry: &Entry, facts: impl Fn(&Path) -> FileFacts) -> Vec<String> {
    if !id.source.is_external() || !entry.on_disk {
        return Vec::new();
    }
    let certificate: &Path = &id.certificate;
    let private_key = entry.live.as_ref().and_then(|it| it.private_key.as_deref());
    let mut files = vec![(certificate, facts(certificate))];
    let key_facts = private_key.map(|key| match key == certificate {
        true => files[0],
        false => (key, facts(key)),
    });
    files.extend(key_facts.filter(|(key, _)| *key != certificate));
    let pinned_files = files.iter().filter(|(_, facts)| facts.is_mount_point);
    let mut found: Vec<String> = pinned_files.map(|(file, _)| pinned(file)).collect();
    if let Some((key, facts)) = key_facts
        && let Some(mode) = facts.mode.filter(|mode| mode & OTHERS != 0)
    {
        let key = key.display();
        found.push(format!(
            "the private key {key} is open to others than its owner (mode {mode:04o}); chmod 600 \
             {key}"
        ));
    }
    found
}

fn pinned(file: &Path) -> String {
    format!(
        "{} is mounted by itself (a bind mount of one file, or a Kubernetes subPath), so that a \
         file which replaces it outside is never seen here; mount its directory instead",
        file.display()
    )
}

/// The names over which certificates from different places fight: explicit pairs and folders, not
/// two files of one folder, and not an ECDSA and an RSA certificate, which serve side by side.
pub fn contested<'e>(
    entries: impl Iterator<Item = (&'e EntryId, &'e Entry)>,
    folders: &[PathBuf],
    takeover: &HostSet,
    now: OffsetDateTime,
) -> Vec<String> {
    let mut by_name: HashMap<(&Name, KeyAlgorithm), Vec<(&EntryId, &Entry)>> = HashMap::new();
    for (id, entry) in entries {
        let Some(live) = rival(id, entry, now) else {
            continue;
        };
        for name in live.key.names() {
            let key = (name, live.key.algorithm());
            by_name.entry(key).or_default().push((id, entry));
        }
    }
    let mut fights: BTreeMap<(&EntryId, &EntryId), (Vec<&Name>, String)> = BTreeMap::new();
    for ((name, _), rivals) in by_name {
        if rivals.len() < 2 {
            continue;
        }
        let candidates = explain::candidates(rivals.into_iter(), name, takeover, now);
        let Some((best, others)) = candidates.split_first() else {
            continue;
        };
        for loser in others {
            if place(best.id, folders) != place(loser.id, folders) {
                let why = || explain::reason(loser, best).to_string();
                let fight = fights
                    .entry((best.id, loser.id))
                    .or_insert_with(|| (Vec::new(), why()));
                fight.0.push(name);
            }
        }
    }
    fights.into_iter().map(in_words).collect()
}

/// What can fight: external, there, and valid.
fn rival<'e>(id: &EntryId, entry: &'e Entry, now: OffsetDateTime) -> Option<&'e LiveCertificate> {
    let live = entry.live.as_deref()?;
    (id.source.is_external() && entry.on_disk && live.key.is_valid_at(now)).then_some(live)
}

/// The explicit pair, or the drop folder.
fn place<'p>(id: &'p EntryId, folders: &'p [PathBuf]) -> &'p Path {
    let own: &Path = &id.certificate;
    match id.source {
        SourceKind::Folder => folders
            .iter()
            .map(PathBuf::as_path)
            .find(|folder| own.starts_with(folder))
            .unwrap_or(own),
        _ => own,
    }
}

fn in_words(fight: ((&EntryId, &EntryId), (Vec<&Name>, String))) -> String {
    let ((winner, loser), (mut names, why)) = fight;
    names.sort();
    let shown: Vec<String> = names
        .iter()
        .take(NAMES_SHOWN)
        .map(ToString::to_string)
        .collect();
    let more = match names.len().saturating_sub(NAMES_SHOWN) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!(
        "{} and {} both have a valid certificate for {}{more}: the first is served ({why})",
        winner.certificate.display(),
        loser.certificate.display(),
        shown.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::certificate::testing::Request;
    use time::Duration;
    use time::macros::datetime;

    const NOW: OffsetDateTime = datetime!(2027-01-01 12:00 UTC);

    type Named = (EntryId, Entry);

    fn entry(source: SourceKind, file: &str, key: Option<&str>, request: &Request<'_>) -> Named {
        let id = EntryId {
            source,
            certificate: Path::new(file).into(),
        };
        let live = LiveCertificate {
            key: request.issue().certified_key(),
            source,
            path: id.certificate.clone(),
            private_key: key.map(|key| Path::new(key).into()),
            loaded_at: NOW,
            changed_at: NOW,
            asked: Default::default(),
        };
        let entry = Entry {
            live: Some(Arc::new(live)),
            on_disk: true,
            failure: None,
        };
        (id, entry)
    }

    fn contested_in(entries: &[Named]) -> Vec<String> {
        let folders = ["/one".into(), "/two".into()];
        let entries = entries.iter().map(|(id, entry)| (id, entry));
        contested(entries, &folders, &HostSet::default(), NOW)
    }

    #[test]
    fn mount_points_are_read_with_their_escapes() {
        let mounts = MountPoints::parse(
            b"22 27 0:21 / /proc rw,relatime - proc proc rw\n\
              31 27 254:0 /x /etc/my\\040certs/tls.crt rw - ext4 /dev/vda rw\n\
              a line that is none\n",
        );
        assert!(mounts.contains(Path::new("/etc/my certs/tls.crt")));
        assert!(mounts.contains(Path::new("/proc")));
        assert!(!mounts.contains(Path::new("/etc")));
        assert_eq!(unescape(b"a\\"), b"a\\");
    }

    #[test]
    fn a_file_that_is_mounted_by_itself_and_an_open_key_are_told() {
        let request = Request::new(&["a.test"], NOW);
        let (id, entry) = entry(SourceKind::File, "/c.pem", Some("/k.pem"), &request);
        let quiet = |_: &Path| FileFacts {
            mode: Some(0o600),
            ..FileFacts::default()
        };
        assert!(of_files(&id, &entry, quiet).is_empty());
        let found = of_files(&id, &entry, |path| FileFacts {
            is_mount_point: path == Path::new("/c.pem"),
            mode: Some(0o640),
        });
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].starts_with("/c.pem is mounted"), "{found:?}");
        assert!(
            found[1].contains("/k.pem") && found[1].contains("0640"),
            "{found:?}"
        );
        let ours = EntryId {
            source: SourceKind::Acme,
            ..id
        };
        let open = |_: &Path| FileFacts {
            mode: Some(0o644),
            ..FileFacts::default()
        };
        assert!(of_files(&ours, &entry, open).is_empty());
    }

    #[test]
    fn different_places_fight_and_the_winner_is_named() {
        use SourceKind::{Acme, File, Folder};
        let names = ["a.test", "b.test", "c.test", "d.test"];
        let request = || Request::new(&names, NOW);
        let found = contested_in(&[
            entry(File, "/pair.pem", None, &request()),
            entry(Folder, "/one/x.pem", None, &request()),
            entry(Acme, "/own.pem", None, &request()),
        ]);
        let expected = "/pair.pem and /one/x.pem both have a valid certificate for a.test, b.test, \
                        c.test and 1 more: the first is served ([[certificates.files]] before a \
                        folder)";
        assert_eq!(found, [expected]);
        let found = contested_in(&[
            entry(Folder, "/one/x.pem", None, &request()),
            entry(Folder, "/two/x.pem", None, &request()),
        ]);
        assert_eq!(found.len(), 1, "{found:?}");
    }

    #[test]
    fn what_gets_along_is_not_told() {
        use SourceKind::{File, Folder};
        const NAMES: &[&str] = &["a.test"];
        let request = || Request::new(NAMES, NOW);
        let rsa = Request {
            algorithm: &rcgen::PKCS_RSA_SHA256,
            ..request()
        };
        let expired = Request {
            not_after: NOW - Duration::SECOND,
            ..request()
        };
        let other = Request::new(&["*.test"], NOW);
        let one_folder = [
            entry(Folder, "/one/x.pem", None, &request()),
            entry(Folder, "/one/y.pem", None, &request()),
        ];
        assert!(contested_in(&one_folder).is_empty());
        let quiet = [
            entry(File, "/ecdsa.pem", None, &request()),
            entry(File, "/rsa.pem", None, &rsa),
            entry(File, "/expired.pem", None, &expired),
            entry(Folder, "/one/wildcard.pem", None, &other),
        ];
        assert!(contested_in(&quiet).is_empty());
    }
}
