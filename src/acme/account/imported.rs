//! An account that another client has made: its key and its URL become ours. The CA is not asked.

use std::path::PathBuf;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use boring::pkey::{PKey, Private};

use super::{AccountFile, read_account, slug};
use crate::acme::jws::AccountKey;
use crate::store::{self, SECRET_FILE, StateDir, StoreError, atomic};

/// All of an account but its key.
pub struct ImportedAccount {
    /// Directory URL of its CA.
    pub directory: String,
    /// `None`: the CA finds it by its key.
    pub url: Option<String>,
    pub email: Option<String>,
}

/// What came of an import.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Imported {
    Written,
    /// It was there.
    Same,
    /// There is one with another key, with this URL; it stays.
    Other(Option<String>),
}

impl ImportedAccount {
    /// Writes the account, where there is none, and says where it is. Blocks on the disk.
    pub fn write(
        &self,
        state: &StateDir,
        key: &PKey<Private>,
        dry_run: bool,
    ) -> (PathBuf, Result<Imported, String>) {
        let dir = state.accounts_dir().join(slug(&self.directory));
        let result = self.write_to(&dir, key, dry_run);
        (dir, result)
    }

    fn write_to(
        &self,
        dir: &std::path::Path,
        key: &PKey<Private>,
        dry_run: bool,
    ) -> Result<Imported, String> {
        let text = |error: StoreError| error.to_string();
        let signing = AccountKey::from_private_key(key)
            .map_err(|error| format!("its key cannot be used: {error}"))?;
        let print = |key: &AccountKey| key.thumbprint().map_err(|error| error.to_string());
        let path = dir.join("account.json");
        if let Some(present) = read_account(&path).map_err(text)? {
            return Ok(match print(&present.signing_key()?)? == print(&signing)? {
                true => Imported::Same,
                false => Imported::Other(present.id),
            });
        }
        if dry_run {
            return Ok(Imported::Written);
        }
        let crypto = |error: boring::error::ErrorStack| error.to_string();
        let der = key.private_key_to_der_pkcs8().map_err(crypto)?;
        let file = AccountFile {
            directory: self.directory.clone(),
            id: self.url.clone(),
            key_pkcs8: BASE64_URL_SAFE_NO_PAD.encode(der),
            email: self.email.clone(),
        };
        let json = serde_json::to_vec_pretty(&file).map_err(|error| error.to_string())?;
        let pem = key.private_key_to_pem_pkcs8().map_err(crypto)?;
        store::make_directory(dir).map_err(text)?;
        atomic::write_file(&dir.join("account.key"), &pem, SECRET_FILE).map_err(text)?;
        atomic::write_file(&path, &json, SECRET_FILE).map_err(text)?;
        Ok(Imported::Written)
    }
}
