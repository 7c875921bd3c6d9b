//! Where a host keeps whom it trusts, and how the internal CA's root gets in and out: the system's
//! anchors, and the databases of NSS (Firefox, Chromium) of whoever asks. It is a command's
//! business alone; nothing that serves ever comes here.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use x509_parser::prelude::{FromDer, X509Certificate};

use crate::store::leaf::{chain_der, chain_pem};
use crate::store::sha2_hex::short_hash;

/// Digits of the root's fingerprint in the name of its file, so that two roots are two files.
const FINGERPRINT_DIGITS: usize = 12;
const PUBLIC_FILE: u32 = 0o644;
/// A certificate has some kilobytes.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Install,
    Remove,
}

/// Why a store is not as was asked.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is no root to trust: {cause}", path.display())]
    NoRoot { path: PathBuf, cause: String },
    #[error("cannot write {}: {source}{}", path.display(), rights(source))]
    Write { path: PathBuf, source: io::Error },
    #[error("`{command}` failed: {cause}")]
    Command { command: String, cause: String },
    #[error(
        "this system has no store that is known here; `--print` prints the root, to be installed \
         by hand"
    )]
    NoStore,
}

impl TrustError {
    /// Whether there is no such file.
    pub fn is_missing(&self) -> bool {
        let not_found = |source: &io::Error| source.kind() == io::ErrorKind::NotFound;
        matches!(self, TrustError::Read { source, .. } if not_found(source))
    }
}

fn rights(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "; whom the system trusts is root's business: run it with sudo"
        }
        _ => "",
    }
}

/// A root certificate to trust.
#[derive(Debug)]
pub struct Root {
    path: PathBuf,
    /// PEM, of this one certificate.
    pub pem: String,
    /// Its common name.
    pub name: String,
    /// SHA-256 of its DER, hex.
    pub fingerprint: String,
}

impl Root {
    /// Reads a root, and refuses what is none.
    pub fn read(path: &Path) -> Result<Root, TrustError> {
        let read = |source| TrustError::Read {
            path: path.to_owned(),
            source,
        };
        let none = |cause: String| TrustError::NoRoot {
            path: path.to_owned(),
            cause,
        };
        let length = fs::metadata(path).map_err(read)?.len();
        if length > MAX_FILE_BYTES {
            return Err(none(format!("it has {length} bytes")));
        }
        let chain = chain_der(&fs::read(path).map_err(read)?).map_err(none)?;
        let [der] = &chain[..] else {
            return Err(none(format!(
                "it has {} certificates, not one",
                chain.len()
            )));
        };
        let (_, certificate) =
            X509Certificate::from_der(der).map_err(|error| none(error.to_string()))?;
        if !certificate.is_ca() || certificate.subject() != certificate.issuer() {
            return Err(none(
                "it is not the certificate of a CA by itself".to_owned(),
            ));
        }
        let mut names = certificate.subject().iter_common_name();
        let name = names.next().and_then(|name| name.as_str().ok());
        Ok(Root {
            path: path.to_owned(),
            pem: chain_pem(&chain),
            name: name.unwrap_or("internal CA").to_owned(),
            fingerprint: boring::sha::sha256(der)
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect(),
        })
    }

    fn file_name(&self, extension: &str) -> String {
        let digits = self.fingerprint.get(..FINGERPRINT_DIGITS);
        let digits =
            digits.map_or_else(|| short_hash(&self.name, FINGERPRINT_DIGITS), str::to_owned);
        format!("perennial-{digits}.{extension}")
    }

    fn nickname(&self) -> String {
        let digits = self
            .fingerprint
            .get(..FINGERPRINT_DIGITS)
            .unwrap_or_default();
        format!("{} ({digits})", self.name)
    }
}

/// A folder of anchors, as a family of systems has it.
struct Anchors {
    folder: &'static str,
    extension: &'static str,
    after_install: &'static [&'static str],
    after_removal: &'static [&'static str],
}

/// Debian, Ubuntu and Alpine; Fedora and its kin; openSUSE; Arch.
const ANCHORS: [Anchors; 4] = [
    Anchors {
        folder: "/usr/local/share/ca-certificates",
        extension: "crt",
        after_install: &["update-ca-certificates"],
        after_removal: &["update-ca-certificates", "--fresh"],
    },
    Anchors {
        folder: "/etc/pki/ca-trust/source/anchors",
        extension: "pem",
        after_install: &["update-ca-trust", "extract"],
        after_removal: &["update-ca-trust", "extract"],
    },
    Anchors {
        folder: "/etc/pki/trust/anchors",
        extension: "pem",
        after_install: &["update-ca-certificates"],
        after_removal: &["update-ca-certificates"],
    },
    Anchors {
        folder: "/etc/ca-certificates/trust-source/anchors",
        extension: "crt",
        after_install: &["trust", "extract-compat"],
        after_removal: &["trust", "extract-compat"],
    },
];

/// Changes the system's store. Answers what was changed; `None`: it was so already.
pub fn change_system(root: &Root, change: Change) -> Result<Option<String>, TrustError> {
    if cfg!(target_os = "macos") {
        return change_keychain(root, change).map(Some);
    }
    let there = |anchors: &&Anchors| {
        let known = program(anchors.after_install[0]).is_some();
        known && folder(anchors).is_dir()
    };
    let anchors = ANCHORS.iter().find(there).ok_or(TrustError::NoStore)?;
    let path = folder(anchors).join(root.file_name(anchors.extension));
    let write = |source| TrustError::Write {
        path: path.clone(),
        source,
    };
    let present = fs::read_to_string(&path).is_ok_and(|text| text == root.pem);
    let words = match change {
        Change::Install if present => return Ok(None),
        Change::Install => {
            fs::write(&path, &root.pem).map_err(write)?;
            // Everybody reads it, whatever this user's umask says.
            fs::set_permissions(&path, fs::Permissions::from_mode(PUBLIC_FILE)).map_err(write)?;
            anchors.after_install
        }
        Change::Remove => match fs::remove_file(&path) {
            Ok(()) => anchors.after_removal,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(write(error)),
        },
    };
    run(words)?;
    Ok(Some(format!("{} ({})", path.display(), words.join(" "))))
}

/// A test's folders stand below one of its own. Debug builds only.
fn folder(anchors: &Anchors) -> PathBuf {
    let root = match cfg!(debug_assertions) {
        true => std::env::var_os("PERENNIAL_TEST_SYSTEM_ROOT"),
        false => None,
    };
    match root {
        Some(root) => Path::new(&root).join(anchors.folder.trim_start_matches('/')),
        None => PathBuf::from(anchors.folder),
    }
}

fn change_keychain(root: &Root, change: Change) -> Result<String, TrustError> {
    const KEYCHAIN: &str = "/Library/Keychains/System.keychain";
    let path = root.path.display().to_string();
    let words: &[&str] = match change {
        Change::Install => &[
            "security",
            "add-trusted-cert",
            "-d",
            "-r",
            "trustRoot",
            "-k",
            KEYCHAIN,
            &path,
        ],
        Change::Remove => &["security", "remove-trusted-cert", "-d", &path],
    };
    run(words)?;
    Ok(words.join(" "))
}

/// Changes the NSS databases of this user. Each that was changed, or why it was not.
pub fn change_nss(root: &Root, change: Change) -> Vec<Result<String, TrustError>> {
    let (Some(_), Some(home)) = (program("certutil"), std::env::home_dir()) else {
        return Vec::new();
    };
    let databases = nss_databases(&home).into_iter();
    let changed = databases.filter_map(|database| {
        let store = format!("sql:{}", database.display());
        let nickname = root.nickname();
        let listed = run(&["certutil", "-L", "-d", &store, "-n", &nickname]).is_ok();
        let path = root.path.display().to_string();
        let result = match (change, listed) {
            (Change::Install, true) | (Change::Remove, false) => return None,
            (Change::Install, false) => run(&[
                "certutil", "-A", "-d", &store, "-t", "C,,", "-n", &nickname, "-i", &path,
            ]),
            (Change::Remove, true) => run(&["certutil", "-D", "-d", &store, "-n", &nickname]),
        };
        Some(result.map(|()| store))
    });
    changed.collect()
}

/// Whether there are databases that cannot be changed, as NSS's own tool is missing.
pub fn lacks_certutil() -> bool {
    let home = std::env::home_dir();
    program("certutil").is_none() && home.is_some_and(|home| !nss_databases(&home).is_empty())
}

/// Those of Chromium and of each profile of Firefox.
fn nss_databases(home: &Path) -> Vec<PathBuf> {
    let single = [".pki/nssdb", "snap/chromium/current/.pki/nssdb"];
    let profiles = [
        ".mozilla/firefox",
        "snap/firefox/common/.mozilla/firefox",
        "Library/Application Support/Firefox/Profiles",
    ];
    let profiles = profiles.iter().flat_map(|folder| {
        let entries = fs::read_dir(home.join(folder)).into_iter().flatten();
        entries.flatten().map(|entry| entry.path())
    });
    let all = single
        .iter()
        .map(|folder| home.join(folder))
        .chain(profiles);
    all.filter(|folder| folder.join("cert9.db").is_file())
        .collect()
}

/// In PATH, or where administrators' programs are.
fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    let mut candidates = folders.map(|folder| folder.join(name));
    candidates.find(|candidate| candidate.is_file())
}

fn run(words: &[&str]) -> Result<(), TrustError> {
    let failed = |cause: String| TrustError::Command {
        command: words.join(" "),
        cause,
    };
    let (name, arguments) = words.split_first().ok_or(TrustError::NoStore)?;
    let program = program(name).ok_or_else(|| failed("it is not installed".to_owned()))?;
    let output = Command::new(program).args(arguments).output();
    let output = output.map_err(|error| failed(error.to_string()))?;
    match output.status.success() {
        true => Ok(()),
        false => {
            let text = String::from_utf8_lossy(&output.stderr);
            Err(failed(format!("{}: {}", output.status, text.trim())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_root_is_trusted() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("root.pem");
        assert!(matches!(Root::read(&path), Err(TrustError::Read { .. })));
        let key = rcgen::KeyPair::generate().unwrap();
        let leaf = rcgen::CertificateParams::new(vec!["a.test".to_owned()]).unwrap();
        let mut ca = rcgen::CertificateParams::default();
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        ca.distinguished_name
            .push(rcgen::DnType::CommonName, "Sample Root");
        let (leaf, ca) = (
            leaf.self_signed(&key).unwrap(),
            ca.self_signed(&key).unwrap(),
        );
        for (text, cause) in [
            ("nothing".to_owned(), "0 certificates"),
            (format!("{}{}", ca.pem(), ca.pem()), "2 certificates"),
            (leaf.pem(), "not the certificate of a CA"),
        ] {
            fs::write(&path, text).unwrap();
            let error = Root::read(&path).unwrap_err().to_string();
            assert!(error.contains(cause), "{error}");
        }
        fs::write(&path, ca.pem()).unwrap();
        let root = Root::read(&path).unwrap();
        assert_eq!((&*root.name, root.fingerprint.len()), ("Sample Root", 64));
        assert!(root.file_name("crt").starts_with("perennial-"));
    }
}
