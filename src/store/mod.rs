//! The state directory: where what we issue is kept, so that a crash or a full disk at any point
//! leaves the old or the new, never a mix. It never reads the configuration, never talks to a CA,
//! and nothing in it is ever waited for by serving.

pub mod atomic;
pub(crate) mod crash;
pub mod generation;
pub mod leaf;
mod lock;
pub mod places;
pub mod private_key;
pub mod sweep;

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use sha2_hex::short_hash;

use crate::certificate::name::Name;
use crate::config::KeyType;

pub use lock::WriterLock;

/// Mode of a file with a secret in it.
pub const SECRET_FILE: u32 = 0o600;
/// Mode of every directory of the state.
pub const STATE_DIRECTORY: u32 = 0o700;

/// Longest path component made of a name: file systems stop at 255 bytes, and suffixes follow.
const MAX_COMPONENT: usize = 200;

/// What went wrong with a file of the state directory.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot {action} {}: {source}{}", path.display(), remedy(source, path))]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is not what was written there: {cause}", path.display())]
    Broken { path: PathBuf, cause: String },
}

impl StoreError {
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> StoreError {
        StoreError::Io {
            action,
            path: path.to_owned(),
            source,
        }
    }

    /// Whether it is somebody's will, or want of space, that nothing is written there: what is there
    /// already can be good all the same.
    pub fn is_refusal(&self) -> bool {
        use io::ErrorKind::{PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
        let StoreError::Io { source, .. } = self else {
            return false;
        };
        matches!(
            source.kind(),
            PermissionDenied | ReadOnlyFilesystem | StorageFull | QuotaExceeded
        )
    }

    pub(crate) fn broken(path: &Path, cause: impl ToString) -> StoreError {
        StoreError::Broken {
            path: path.to_owned(),
            cause: cause.to_string(),
        }
    }
}

/// What an operator can do about it, as the end of a message.
fn remedy(error: &io::Error, path: &Path) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied => format!(
            "; give this user the directory (chown -R {} DIRECTORY) or choose another `state_dir`",
            rustix::process::getuid().as_raw(),
        ),
        io::ErrorKind::ReadOnlyFilesystem => {
            "; mount it writable or choose another `state_dir`".to_owned()
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; free some space, what is served stays as it was".to_owned()
        }
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => {
            format!("; move {} out of the way", path.display())
        }
        _ => String::new(),
    }
}

/// The state directory. Cheap to clone.
#[derive(Clone, Debug)]
pub struct StateDir {
    root: PathBuf,
}

impl StateDir {
    /// Opens the directory and makes what is missing of it, mode 0700.
    pub fn open(root: impl Into<PathBuf>) -> Result<StateDir, StoreError> {
        let state = StateDir { root: root.into() };
        make_directory(&state.root)?;
        tighten(&state.root);
        state.make()?;
        Ok(state)
    }

    /// What is missing of it.
    fn make(&self) -> Result<(), StoreError> {
        let directories = [
            self.root.clone(),
            self.accounts_dir(),
            self.certificates_dir(),
            self.local_ca_dir(),
            self.ledger_dir(),
        ];
        directories.iter().try_for_each(|it| make_directory(it))
    }

    /// As [`open`](Self::open); where nothing may be written, what is there is looked into.
    pub fn open_as_it_is(root: impl Into<PathBuf>) -> Result<StateDir, StoreError> {
        let root = root.into();
        match StateDir::open(&root) {
            Err(error) if error.is_refusal() => Ok(StateDir::at(root)),
            other => other,
        }
    }

    /// A directory to look into, which is neither made nor changed.
    pub fn at(root: impl Into<PathBuf>) -> StateDir {
        StateDir { root: root.into() }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn certificates_dir(&self) -> PathBuf {
        StateDir::certificates_in(&self.root)
    }

    /// [`certificates_dir`](Self::certificates_dir) of a directory that is not open yet.
    pub fn certificates_in(root: &Path) -> PathBuf {
        root.join("certificates")
    }

    /// `certificates/<name>/<key_type>`, which holds `current` and the generations.
    pub fn certificate_dir(&self, name: &Name, key_type: KeyType) -> PathBuf {
        self.certificates_dir()
            .join(component(name))
            .join(key_type_name(key_type))
    }

    /// Certificates that were taken out of service.
    pub fn archive_dir(&self) -> PathBuf {
        self.root.join("archive")
    }

    /// `on-demand/`: as `certificates/`, for what clients ask for by name.
    pub fn on_demand_dir(&self) -> PathBuf {
        self.root.join("on-demand")
    }

    /// `on-demand/<name>/<key_type>`.
    pub fn on_demand_certificate_dir(&self, name: &Name, key_type: KeyType) -> PathBuf {
        self.on_demand_dir()
            .join(component(name))
            .join(key_type_name(key_type))
    }

    pub fn accounts_dir(&self) -> PathBuf {
        self.root.join("accounts")
    }

    /// The accounts that were registered at acme-dns servers.
    pub fn acme_dns_file(&self) -> PathBuf {
        self.root.join("acme-dns.json")
    }

    pub fn local_ca_dir(&self) -> PathBuf {
        self.root.join("local-ca")
    }

    pub fn ledger_dir(&self) -> PathBuf {
        self.root.join("ledger")
    }

    /// Takes the lock that guards writing, without waiting. `None`: another process holds it, and
    /// this one may serve what is there, but neither order nor write. An error: nobody can write
    /// here as things stand.
    pub fn try_lock_writer(&self) -> Result<Option<WriterLock>, StoreError> {
        // What could not be made at the start.
        self.make()?;
        lock::try_lock(&self.root.join("perennial.lock"))
    }
}

/// A name as one path component, `..` and `/` impossible: names hold letters, digits, `-`, `.`,
/// `_` and `:` alone, no label of them is empty, and a name too long for a file name is cut and
/// marked with a hash of the whole.
pub fn component(name: &Name) -> String {
    let full = name.as_directory();
    if full.len() <= MAX_COMPONENT {
        return full;
    }
    // The name is ASCII, so every byte is a character boundary.
    format!("{}-{}", &full[..MAX_COMPONENT - 20], short_hash(&full, 16))
}

/// The key type as configuration, paths and JSON spell it.
pub fn key_type_name(key_type: KeyType) -> &'static str {
    match key_type {
        KeyType::P256 => "p256",
        KeyType::P384 => "p384",
        KeyType::Rsa2048 => "rsa2048",
        KeyType::Rsa3072 => "rsa3072",
        KeyType::Rsa4096 => "rsa4096",
    }
}

/// The reverse of [`key_type_name`].
pub fn key_type_from_name(text: &str) -> Option<KeyType> {
    [
        KeyType::P256,
        KeyType::P384,
        KeyType::Rsa2048,
        KeyType::Rsa3072,
        KeyType::Rsa4096,
    ]
    .into_iter()
    .find(|key_type| key_type_name(*key_type) == text)
}

/// Makes a directory and its parents, mode 0700; one that exists is left as it is.
pub(crate) fn make_directory(path: &Path) -> Result<(), StoreError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(STATE_DIRECTORY)
        .create(path)
        .map_err(|error| StoreError::io("make directory", path, error))
}

/// Takes group and others out of a directory that was made by somebody else. Not being its owner
/// is no reason to stop: the files below have modes of their own.
fn tighten(root: &Path) {
    let open_to_others = fs::metadata(root).is_ok_and(|it| it.permissions().mode() & 0o077 != 0);
    if open_to_others
        && let Err(error) = fs::set_permissions(root, fs::Permissions::from_mode(STATE_DIRECTORY))
    {
        tracing::warn!(path = %root.display(), %error, "the state directory is open to other users");
    }
}

/// Hashes as text.
pub(crate) mod sha2_hex {
    /// The first `digits` hexadecimal digits (64 at most) of the SHA-256 of `text`.
    pub fn short_hash(text: &str, digits: usize) -> String {
        let mut hex = String::with_capacity(64);
        for byte in boring::sha::sha256(text.as_bytes()) {
            hex.push_str(&format!("{byte:02x}"));
        }
        hex.truncate(digits);
        hex
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directories_are_private() {
        let parent = tempfile::tempdir().unwrap();
        let root = parent.path().join("a/b");
        let state = StateDir::open(&root).unwrap();
        for path in [root.clone(), state.accounts_dir(), state.ledger_dir()] {
            let mode = fs::metadata(path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o700);
        }
        fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).unwrap();
        StateDir::open(&root).unwrap();
        assert_eq!(
            fs::metadata(&root).unwrap().permissions().mode() & 0o777,
            0o700
        );
    }

    #[test]
    fn a_root_that_is_a_file_is_an_error_with_a_remedy() {
        let parent = tempfile::tempdir().unwrap();
        let root = parent.path().join("state");
        fs::write(&root, "").unwrap();
        let message = StateDir::open(&root).unwrap_err().to_string();
        assert!(message.contains("state"), "{message}");
        assert!(message.contains("out of the way"), "{message}");
    }

    #[test]
    fn names_are_single_components() {
        let state = StateDir {
            root: "/state".into(),
        };
        for (name, expected) in [
            ("example.com", "/state/certificates/example.com/p256"),
            (
                "*.example.com",
                "/state/certificates/_wildcard.example.com/p256",
            ),
            ("2001:db8::1", "/state/certificates/2001_db8__1/p256"),
        ] {
            let path = state.certificate_dir(&name.parse().unwrap(), KeyType::P256);
            assert_eq!(path, Path::new(expected));
        }
        for hostile in ["..", ".", "../x", "a/../b", "a\0b"] {
            assert!(hostile.parse::<Name>().is_err(), "{hostile:?}");
        }
        let label = "a".repeat(62);
        let long = format!("*.{label}.{label}.{label}.{label}");
        let short = component(&long.parse().unwrap());
        assert!(short.len() <= MAX_COMPONENT);
        assert!(!short.contains('/'));
    }

    #[test]
    fn key_types_have_one_spelling() {
        for key_type in [KeyType::P256, KeyType::P384, KeyType::Rsa4096] {
            assert_eq!(key_type_from_name(key_type_name(key_type)), Some(key_type));
        }
        assert_eq!(key_type_from_name("dsa"), None);
    }
}
