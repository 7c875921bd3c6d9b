//! Reading other clients' files: bounded, in the order of their names, each failure with its file.

use std::fs;
use std::path::{Path, PathBuf};

use boring::pkey::{PKey, Private};
use serde_json::Value;

/// Largest file that is read: accounts, keys and chains have some kilobytes.
const MAX_FILE_BYTES: u64 = 1 << 20;

pub(super) fn read(path: &Path) -> Result<Vec<u8>, String> {
    let length = fs::metadata(path).map_err(|error| error.to_string())?.len();
    if length > MAX_FILE_BYTES {
        return Err(format!("it has {length} bytes"));
    }
    fs::read(path).map_err(|error| error.to_string())
}

pub(super) fn json(path: &Path) -> Result<Value, String> {
    serde_json::from_slice(&read(path)?).map_err(|error| format!("it is not JSON: {error}"))
}

pub(super) fn pem_key(path: &Path) -> Result<PKey<Private>, String> {
    let pem = read(path)?;
    PKey::private_key_from_pem(&pem).map_err(|_| "it has no private key that can be read".into())
}

/// What is in a folder, sorted; nothing where it is not there.
pub(super) fn entries(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

pub(super) fn folders(dir: &Path) -> Vec<PathBuf> {
    let mut paths = entries(dir);
    paths.retain(|path| path.is_dir());
    paths
}

/// The last component, as text.
pub(super) fn name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// The address of a `mailto:` contact.
pub(super) fn email(contacts: &Value) -> Option<String> {
    let contacts = contacts.as_array()?.iter();
    let mut emails = contacts.filter_map(|it| it.as_str()?.strip_prefix("mailto:"));
    emails.next().map(str::to_owned)
}

/// The value of `KEY='value'` or `key = value` in a file of such lines.
pub(super) fn setting(text: &str, key: &str) -> Option<String> {
    let mut values = text.lines().filter_map(|line| {
        let (own, value) = line.split_once('=')?;
        (own.trim() == key).then_some(value.trim())
    });
    let value = values.next()?.trim_matches(['\'', '"']);
    (!value.is_empty()).then(|| value.to_owned())
}
