//! A certificate and its key as one unit: a directory of its own per issuance, and one symlink,
//! `current`, whose rename is the moment of the change. A reader that resolves `current` once sees
//! a whole pair, whatever happens beside it.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::atomic::{create_synced, sync_directory};
use super::crash;
use super::leaf::Leaf;
use super::{SECRET_FILE, STATE_DIRECTORY, StoreError, key_type_name, make_directory};
use crate::certificate::name::Name;
use crate::clock;
use crate::config::KeyType;

pub const FULLCHAIN: &str = "fullchain.pem";
pub const PRIVATE_KEY: &str = "privkey.pem";
pub const META: &str = "meta.json";
pub const CURRENT: &str = "current";
/// The directory of an order that is not done.
pub const PENDING: &str = "pending";
const TEMPORARY_LINK: &str = ".current.tmp";

/// Largest chain or meta file that is read back. Ours are a hundredth of that; more is not ours.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// What is written as one generation.
pub struct Generation<'a> {
    pub fullchain_pem: &'a str,
    /// Secret.
    pub private_key_pem: &'a str,
    pub meta: &'a Meta,
}

/// `meta.json`: where a certificate came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    pub source: Source,
    /// The directory URL of the ACME CA.
    #[serde(default)]
    pub ca: Option<String>,
    pub names: Vec<String>,
    pub key_type: String,
    #[serde(with = "time::serde::rfc3339")]
    pub issued_at: OffsetDateTime,
    #[serde(default)]
    pub order_url: Option<String>,
}

impl Meta {
    pub fn new(
        source: Source,
        names: &[Name],
        key_type: KeyType,
        issued_at: OffsetDateTime,
    ) -> Meta {
        Meta {
            source,
            ca: None,
            names: names.iter().map(Name::to_string).collect(),
            key_type: key_type_name(key_type).to_owned(),
            issued_at,
            order_url: None,
        }
    }
}

/// Who issued a certificate of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    Acme,
    Internal,
}

/// A generation as it was found on disk.
#[derive(Clone, Debug)]
pub struct StoredCertificate {
    /// The directory of the generation itself, not `current`.
    pub path: PathBuf,
    pub leaf: Leaf,
    pub meta: Meta,
}

/// Writes a new generation below `dir` and makes it current. Answers its directory.
///
/// The generation that was current before stays; older ones, and what a crash left, are removed.
/// On an error the old generation is still current and whole (or, where only the last sync failed,
/// the new one is).
pub fn write(dir: &Path, generation: &Generation<'_>) -> Result<PathBuf, StoreError> {
    make_directory(dir)?;
    let previous = match current_id(dir) {
        // A link that means nothing is replaced: it protects nothing.
        Err(StoreError::Broken { .. }) => None,
        found => found?,
    };
    clean(dir, previous.as_deref());
    let id = next_id(dir, clock::now())?;
    let path = dir.join(&id);
    fill(&path, generation)
        .and_then(|()| sync_directory(dir))
        .inspect(|()| crash::point("generation-synced"))
        .and_then(|()| point_current_at(dir, &id))
        .inspect_err(|_| {
            // The error that counts is the first; leftovers go at the next write.
            let _ = fs::remove_dir_all(&path);
            let _ = fs::remove_file(dir.join(TEMPORARY_LINK));
        })?;
    crash::point("renamed");
    sync_directory(dir)?;
    crash::point("parent-synced");
    remove_except(dir, &[Some(id.as_str()), previous.as_deref()]);
    Ok(path)
}

fn fill(path: &Path, generation: &Generation<'_>) -> Result<(), StoreError> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new()
        .mode(STATE_DIRECTORY)
        .create(path)
        .map_err(|error| StoreError::io("make directory", path, error))?;
    crash::point("generation-dir");
    let create =
        |name: &str, text: &str| create_synced(&path.join(name), text.as_bytes(), SECRET_FILE);
    create(FULLCHAIN, generation.fullchain_pem)?;
    crash::point("fullchain");
    create(PRIVATE_KEY, generation.private_key_pem)?;
    crash::point("privkey");
    let meta = serde_json::to_string_pretty(generation.meta)
        .map_err(|error| StoreError::broken(&path.join(META), error))?;
    create(META, &meta)?;
    crash::point("meta");
    sync_directory(path)
}

fn point_current_at(dir: &Path, id: &str) -> Result<(), StoreError> {
    let link = dir.join(TEMPORARY_LINK);
    let current = dir.join(CURRENT);
    symlink(id, &link).map_err(|error| StoreError::io("write", &link, error))?;
    crash::point("temp-link");
    fs::rename(&link, &current).map_err(|error| StoreError::io("write", &current, error))
}

/// Reads the current generation. `None`: there is none. `current` is resolved once, so that a
/// change in the middle of the read cannot mix two generations.
pub fn read_current(dir: &Path) -> Result<Option<StoredCertificate>, StoreError> {
    let Some(id) = current_id(dir)? else {
        return Ok(None);
    };
    let path = dir.join(id);
    let chain_path = path.join(FULLCHAIN);
    let (leaf, _) = Leaf::from_chain_pem(&read_bounded(&chain_path)?)
        .map_err(|cause| StoreError::broken(&chain_path, cause))?;
    let meta_path = path.join(META);
    let meta = serde_json::from_slice(&read_bounded(&meta_path)?)
        .map_err(|error| StoreError::broken(&meta_path, error))?;
    let key_path = path.join(PRIVATE_KEY);
    if !key_path.is_file() {
        return Err(StoreError::broken(&key_path, "the private key is missing"));
    }
    Ok(Some(StoredCertificate { path, leaf, meta }))
}

/// What stands beside `dir`, for the same name under another type of key; the one that is valid for
/// longest. What cannot be read is not there.
pub fn read_beside(dir: &Path) -> Option<StoredCertificate> {
    let parent = dir.parent()?;
    let all = KeyType::ALL.map(|key_type| parent.join(key_type_name(key_type)));
    let others = all.iter().filter(|other| *other != dir);
    let stored = others.filter_map(|other| read_current(other).ok().flatten());
    stored.max_by_key(|stored| stored.leaf.not_after)
}

/// Where `current` points; `None` where there is no such link.
fn current_id(dir: &Path) -> Result<Option<String>, StoreError> {
    let link = dir.join(CURRENT);
    match fs::read_link(&link) {
        Ok(target) => match target.to_str() {
            Some(id) if is_id(id) => Ok(Some(id.to_owned())),
            _ => Err(StoreError::broken(
                &link,
                format!("it points to {}, which is no generation", target.display()),
            )),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StoreError::io("read", &link, error)),
    }
}

fn read_bounded(path: &Path) -> Result<Vec<u8>, StoreError> {
    let missing = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => StoreError::broken(path, "the file is missing"),
        _ => StoreError::io("read", path, error),
    };
    let length = fs::metadata(path).map_err(missing)?.len();
    if length > MAX_FILE_BYTES {
        return Err(StoreError::broken(path, format!("it has {length} bytes")));
    }
    fs::read(path).map_err(missing)
}

/// `20261123T060504Z-1a2b`: sorts by time; within one second the suffix counts on.
pub(super) fn next_id(dir: &Path, now: OffsetDateTime) -> Result<String, StoreError> {
    let second = format!(
        "{:04}{:02}{:02}T{:02}{:02}{:02}Z",
        now.year(),
        u8::from(now.month()),
        now.day(),
        now.hour(),
        now.minute(),
        now.second()
    );
    let taken = ids(dir)?
        .into_iter()
        .filter_map(|id| u16::from_str_radix(id.strip_prefix(&second)?.strip_prefix('-')?, 16).ok())
        .max();
    let suffix = match taken {
        Some(suffix) => suffix.wrapping_add(1),
        // The top bit is left free, so that counting on has room.
        None => rand::random::<u16>() >> 1,
    };
    Ok(format!("{second}-{suffix:04x}"))
}

/// When an id was made; `None`: it is none.
pub(super) fn time_of_id(id: &str) -> Option<OffsetDateTime> {
    let id = Some(id).filter(|id| is_id(id))?;
    let at = time::macros::format_description!("[year][month][day]T[hour][minute][second]Z");
    let at = time::PrimitiveDateTime::parse(id.split('-').next()?, at).ok()?;
    Some(at.assume_utc())
}

/// Whether we give this name to what is in a certificate's directory.
pub(super) fn is_own_name(name: &str) -> bool {
    is_id(name) || [CURRENT, TEMPORARY_LINK, PENDING].contains(&name)
}

/// Removes the generations before the one that was current before the current one. A newer one may
/// just be being written, and stays. Answers how many went.
pub(super) fn remove_old(dir: &Path) -> usize {
    let Ok(Some(current)) = current_id(dir) else {
        return 0;
    };
    let mut old = ids(dir).unwrap_or_default();
    old.retain(|id| *id < current);
    // The last of them is the previous one.
    old.pop();
    let removed = old.iter().filter(|id| {
        let path = dir.join(id);
        let removed = fs::remove_dir_all(&path);
        if let Err(error) = &removed {
            tracing::warn!(path = %path.display(), %error, "cannot remove an old generation");
        }
        removed.is_ok()
    });
    removed.count()
}

fn is_id(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() == 21
        && bytes.iter().enumerate().all(|(at, byte)| match at {
            8 => *byte == b'T',
            15 => *byte == b'Z',
            16 => *byte == b'-',
            17.. => byte.is_ascii_hexdigit(),
            _ => byte.is_ascii_digit(),
        })
}

/// The generations of a directory, oldest first.
fn ids(dir: &Path) -> Result<Vec<String>, StoreError> {
    let entries = fs::read_dir(dir).map_err(|error| StoreError::io("read", dir, error))?;
    let mut ids: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| is_id(name))
        .collect();
    ids.sort_unstable();
    Ok(ids)
}

/// Removes what earlier writes left unfinished, before a new one needs the space: all but the
/// current generation and the one before it.
fn clean(dir: &Path, current: Option<&str>) {
    let _ = fs::remove_file(dir.join(TEMPORARY_LINK));
    let before = ids(dir)
        .unwrap_or_default()
        .into_iter()
        .rfind(|id| current.is_some_and(|current| id.as_str() < current));
    remove_except(dir, &[current, before.as_deref()]);
}

fn remove_except(dir: &Path, keep: &[Option<&str>]) {
    for id in ids(dir).unwrap_or_default() {
        if !keep.contains(&Some(&id))
            && let Err(error) = fs::remove_dir_all(dir.join(&id))
        {
            tracing::warn!(path = %dir.join(&id).display(), %error, "cannot remove an old generation");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    struct Issued {
        chain: String,
        key: String,
        serial: u8,
    }

    fn issued(serial: u8) -> Issued {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["example.com".to_owned()]).unwrap();
        params.serial_number = Some(vec![serial].into());
        Issued {
            chain: params.self_signed(&key).unwrap().pem(),
            key: key.serialize_pem(),
            serial,
        }
    }

    fn meta() -> Meta {
        Meta::new(
            Source::Internal,
            &["example.com".parse().unwrap()],
            KeyType::P256,
            time::macros::datetime!(2026-11-23 6:05:04 UTC),
        )
    }

    fn put(dir: &Path, issued: &Issued) -> Result<PathBuf, StoreError> {
        write(
            dir,
            &Generation {
                fullchain_pem: &issued.chain,
                private_key_pem: &issued.key,
                meta: &meta(),
            },
        )
    }

    fn current_serial(dir: &Path) -> String {
        read_current(dir).unwrap().unwrap().leaf.serial
    }

    /// The current pair belongs together.
    fn assert_whole(dir: &Path) {
        let stored = read_current(dir).unwrap().unwrap();
        let key = fs::read_to_string(stored.path.join(PRIVATE_KEY)).unwrap();
        let key = rcgen::KeyPair::from_pem(&key).unwrap();
        use rcgen::PublicKeyData;
        assert_eq!(key.subject_public_key_info(), stored.leaf.public_key);
    }

    #[test]
    fn nothing_is_there_at_first() {
        let directory = tempfile::tempdir().unwrap();
        assert!(read_current(directory.path()).unwrap().is_none());
        assert!(
            read_current(&directory.path().join("missing"))
                .unwrap()
                .is_none()
        );
    }

    #[test]
    fn a_generation_is_read_back_and_private() {
        let directory = tempfile::tempdir().unwrap();
        let dir = directory.path().join("example.com/p256");
        let path = put(&dir, &issued(1)).unwrap();
        let stored = read_current(&dir).unwrap().unwrap();
        assert_eq!((stored.path, stored.meta), (path.clone(), meta()));
        assert_eq!(stored.leaf.serial, "01");
        assert_whole(&dir);
        let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(path.clone()), 0o700);
        for file in [FULLCHAIN, PRIVATE_KEY, META] {
            assert_eq!(mode(path.join(file)), 0o600);
        }
        let meta = fs::read_to_string(path.join(META)).unwrap();
        assert!(
            meta.contains(r#""issued_at": "2026-11-23T06:05:04Z""#),
            "{meta}"
        );
        assert!(meta.contains(r#""source": "internal""#), "{meta}");
        assert!(meta.contains(r#""ca": null"#), "{meta}");
    }

    #[test]
    fn the_previous_generation_stays_and_older_ones_go() {
        let directory = tempfile::tempdir().unwrap();
        let dir = directory.path();
        let mut written = Vec::new();
        for serial in 1..=4 {
            written.push(put(dir, &issued(serial)).unwrap());
        }
        assert!(written.is_sorted(), "{written:?}");
        assert_eq!(current_serial(dir), "04");
        let left: Vec<PathBuf> = ids(dir)
            .unwrap()
            .into_iter()
            .map(|id| dir.join(id))
            .collect();
        assert_eq!(left, written[2..]);
    }

    #[test]
    fn what_a_crash_left_is_cleaned_and_never_the_current_pair() {
        let directory = tempfile::tempdir().unwrap();
        let dir = directory.path();
        put(dir, &issued(1)).unwrap();
        put(dir, &issued(2)).unwrap();
        fs::create_dir(dir.join("29991231T000000Z-0000")).unwrap();
        symlink("29991231T000000Z-0000", dir.join(TEMPORARY_LINK)).unwrap();
        put(dir, &issued(3)).unwrap();
        assert_eq!(current_serial(dir), "03");
        assert_eq!(ids(dir).unwrap().len(), 2);
        assert!(fs::symlink_metadata(dir.join(TEMPORARY_LINK)).is_err());
    }

    #[test]
    fn a_failed_write_leaves_the_old_pair() {
        let directory = tempfile::tempdir().unwrap();
        let dir = directory.path();
        put(dir, &issued(1)).unwrap();
        // A directory that cannot be removed as a file stands where the temporary link goes, as
        // an error in the middle of the write does.
        fs::create_dir(dir.join(TEMPORARY_LINK)).unwrap();
        assert!(put(dir, &issued(2)).is_err());
        assert_eq!(current_serial(dir), "01");
        assert_eq!(ids(dir).unwrap().len(), 1, "the half generation is gone");
        fs::remove_dir(dir.join(TEMPORARY_LINK)).unwrap();
        put(dir, &issued(3)).unwrap();
        assert_eq!(current_serial(dir), "03");
    }

    #[test]
    fn a_full_disk_leaves_the_old_pair() {
        // RLIMIT_FSIZE of a child makes writes fail half way, as a full disk does.
        let directory = tempfile::tempdir().unwrap();
        put(directory.path(), &issued(1)).unwrap();
        let mut huge = issued(2);
        huge.key.push_str(&"#".repeat(3 << 20));
        let limited = std::process::Command::new("bash")
            .args(["-c", "trap '' XFSZ; ulimit -f 1024; exec \"$@\"", "-"])
            .arg(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "store::generation::tests::child_that_writes",
                "--nocapture",
            ])
            .env("PERENNIAL_TEST_CHILD_DIR", directory.path())
            .env("PERENNIAL_TEST_CHILD_HUGE", "1")
            .output()
            .unwrap();
        assert!(!limited.status.success());
        assert_eq!(current_serial(directory.path()), "01");
        assert_eq!(ids(directory.path()).unwrap().len(), 1);
        assert_whole(directory.path());
    }

    /// Runs in a child process of the tests around it; does nothing on its own.
    #[test]
    fn child_that_writes() {
        let Some(dir) = std::env::var_os("PERENNIAL_TEST_CHILD_DIR") else {
            return;
        };
        let mut second = issued(2);
        if std::env::var_os("PERENNIAL_TEST_CHILD_HUGE").is_some() {
            second.key.push_str(&"#".repeat(3 << 20));
        }
        put(Path::new(&dir), &second).unwrap();
    }

    #[test]
    fn a_kill_after_any_step_leaves_a_whole_pair() {
        for (name, expected) in [
            ("generation-dir", "01"),
            ("fullchain", "01"),
            ("privkey", "01"),
            ("meta", "01"),
            ("generation-synced", "01"),
            ("temp-link", "01"),
            ("renamed", "02"),
            ("parent-synced", "02"),
        ] {
            let directory = tempfile::tempdir().unwrap();
            let first = issued(1);
            assert_eq!(first.serial, 1);
            put(directory.path(), &first).unwrap();
            let killed = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "store::generation::tests::child_that_writes"])
                .env("PERENNIAL_TEST_CHILD_DIR", directory.path())
                .env("PERENNIAL_TEST_ABORT_AFTER", name)
                .output()
                .unwrap();
            assert!(!killed.status.success(), "{name}");
            assert_eq!(current_serial(directory.path()), expected, "{name}");
            assert_whole(directory.path());
            put(directory.path(), &issued(3)).unwrap();
            assert_eq!(current_serial(directory.path()), "03", "{name}");
            assert_eq!(ids(directory.path()).unwrap().len(), 2, "{name}");
        }
    }

    #[test]
    fn broken_states_are_errors_that_name_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let dir = directory.path();
        let path = put(dir, &issued(1)).unwrap();
        fs::remove_file(path.join(PRIVATE_KEY)).unwrap();
        let message = read_current(dir).unwrap_err().to_string();
        assert!(message.contains("privkey.pem"), "{message}");
        fs::write(path.join(FULLCHAIN), "nonsense").unwrap();
        let message = read_current(dir).unwrap_err().to_string();
        assert!(message.contains("fullchain.pem"), "{message}");
        fs::remove_file(dir.join(CURRENT)).unwrap();
        symlink("../../../etc", dir.join(CURRENT)).unwrap();
        assert!(read_current(dir).is_err());
        put(dir, &issued(2)).unwrap();
        assert_eq!(current_serial(dir), "02");
    }

    #[test]
    fn ids_sort_by_time() {
        let directory = tempfile::tempdir().unwrap();
        let at = time::macros::datetime!(2026-11-23 6:05:04 UTC);
        let first = next_id(directory.path(), at).unwrap();
        assert!(
            first.starts_with("20261123T060504Z-") && is_id(&first),
            "{first}"
        );
        fs::create_dir(directory.path().join(&first)).unwrap();
        let second = next_id(directory.path(), at).unwrap();
        assert!(first < second);
        assert!(second < next_id(directory.path(), at + time::Duration::SECOND).unwrap());
    }
}
