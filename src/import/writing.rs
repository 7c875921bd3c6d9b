//! What was read, put into the state directory: accounts as ours, certificates as generations. It
//! never replaces an account, nor a certificate by one that started earlier.

use std::path::Path;

use boring::ec::EcKey;
use boring::nid::Nid;
use boring::pkey::{Id, PKey, Private};
use time::OffsetDateTime;

use super::{Directories, Found, FoundAccount, FoundCertificate, Item, Outcome};
use crate::acme::account::{Imported, ImportedAccount};
use crate::clock;
use crate::config::KeyType;
use crate::store::generation::{self, Generation, Meta, Source};
use crate::store::leaf::{Leaf, chain_pem};
use crate::store::{StateDir, StoreError, key_type_name};

/// Writes, or with `dry_run` only says what would be written. Blocks on the disk.
pub fn write(
    found: Found,
    state: &StateDir,
    mut directories: Directories,
    dry_run: bool,
) -> Vec<Item> {
    directories.learn(&found);
    let now = clock::now();
    let mut items = found.unreadable;
    items.extend(write_accounts(found.accounts, state, &directories, dry_run));
    for certificate in &found.certificates {
        let ca = directories.resolve(&certificate.ca);
        let ready = ca
            .map_err(|cause| (Outcome::Skipped, cause))
            .and_then(|ca| Ready::of(certificate, ca, now));
        match ready {
            Ok(ready) => {
                let each = write_certificate(certificate, &ready, state, dry_run);
                items.extend(each.map(|item| ready.warn(item, directories.key_type)));
            }
            Err((outcome, cause)) => {
                let what = format!("certificate {}", certificate.path.display());
                items.push(Item::new(outcome, what, &certificate.path).because(cause));
            }
        }
    }
    items
}

/// One for each CA: the one that most certificates were ordered by, else the last.
fn write_accounts(
    mut accounts: Vec<FoundAccount>,
    state: &StateDir,
    directories: &Directories,
    dry_run: bool,
) -> Vec<Item> {
    accounts.reverse();
    accounts.sort_by_key(|account| std::cmp::Reverse(account.uses));
    let mut taken: Vec<String> = Vec::new();
    let mut items = Vec::new();
    for account in &accounts {
        let name = account.url.clone().unwrap_or_else(|| "account".to_owned());
        let ca = match directories.resolve(&account.ca) {
            Ok(ca) => ca,
            Err(cause) => {
                let what = format!("account {name}");
                items.push(Item::new(Outcome::Skipped, what, &account.path).because(cause));
                continue;
            }
        };
        let what = format!("account {name} at {ca}");
        if taken.contains(&ca) {
            let cause = "there is one account for each CA, and another one is used more";
            items.push(Item::new(Outcome::Skipped, what, &account.path).because(cause));
            continue;
        }
        items.push(write_account(account, &ca, what, state, dry_run));
        taken.push(ca);
    }
    items
}

fn write_account(
    account: &FoundAccount,
    ca: &str,
    what: String,
    state: &StateDir,
    dry_run: bool,
) -> Item {
    let imported = ImportedAccount {
        directory: ca.to_owned(),
        url: account.url.clone(),
        email: account.email.clone(),
    };
    let (dir, result) = imported.write(state, &account.key, dry_run);
    let item = |outcome| Item::new(outcome, what.clone(), &account.path).to(dir.clone());
    match result {
        Ok(Imported::Written) if dry_run => item(Outcome::WouldImport),
        Ok(Imported::Written) => item(Outcome::Imported),
        Ok(Imported::Same) => item(Outcome::Unchanged),
        Ok(Imported::Other(url)) => {
            let url = url
                .as_deref()
                .unwrap_or("one that the CA has not named yet");
            let cause = format!("there is another account, which stays: {url}");
            item(Outcome::Skipped).because(cause)
        }
        Err(cause) => item(Outcome::Failed).because(cause),
    }
}

/// Under each of its names: a site may want its own, and finds it there.
fn write_certificate(
    found: &FoundCertificate,
    ready: &Ready,
    state: &StateDir,
    dry_run: bool,
) -> impl Iterator<Item = Item> {
    ready.leaf.names.iter().map(move |name| {
        let dir = state.certificate_dir(name, ready.key_type);
        let what = format!("certificate for {name} with serial {}", ready.leaf.serial);
        let item = |outcome| Item::new(outcome, what.clone(), &found.path).to(dir.clone());
        match ready.put(&dir, dry_run) {
            Ok((outcome, None)) => item(outcome),
            Ok((outcome, Some(cause))) => item(outcome).because(cause),
            Err(error) => item(Outcome::Failed).because(error),
        }
    })
}

/// A certificate that can be taken over.
struct Ready {
    leaf: Leaf,
    key_type: KeyType,
    fullchain_pem: String,
    private_key_pem: String,
    meta: Meta,
}

impl Ready {
    fn of(
        found: &FoundCertificate,
        ca: String,
        now: OffsetDateTime,
    ) -> Result<Ready, (Outcome, String)> {
        let failed = |cause: String| (Outcome::Failed, cause);
        let skipped = |cause: String| (Outcome::Skipped, cause);
        let (leaf, chain) = Leaf::from_chain_pem(&found.chain_pem).map_err(failed)?;
        let public_key = found.key.public_key_to_der();
        if public_key.map_err(|error| failed(error.to_string()))? != leaf.public_key {
            return Err(failed("its key is that of another certificate".to_owned()));
        }
        if leaf.not_after <= now {
            let at = clock::rfc3339(leaf.not_after);
            return Err(skipped(format!("it expired at {at}")));
        }
        if leaf.names.is_empty() {
            return Err(skipped("it has no name that a site could have".to_owned()));
        }
        let key_type = key_type(&found.key).ok_or_else(|| {
            let kinds = "P-256, P-384 and RSA of 2,048, 3,072 or 4,096 bits";
            skipped(format!(
                "its key is of a kind that is not ordered here ({kinds} are)"
            ))
        })?;
        let pem = found.key.private_key_to_pem_pkcs8();
        let pem = pem.map_err(|error| failed(error.to_string()))?;
        let meta = Meta {
            ca: Some(ca),
            // Its age counts from when it was issued, not from when it came here.
            ..Meta::new(Source::Acme, &leaf.names, key_type, leaf.not_before)
        };
        Ok(Ready {
            fullchain_pem: chain_pem(&chain),
            private_key_pem: String::from_utf8_lossy(&pem).into_owned(),
            leaf,
            key_type,
            meta,
        })
    }

    /// What is not as it would be ordered is replaced as soon as somebody looks after it.
    fn warn(&self, item: Item, wanted: KeyType) -> Item {
        let is_new = matches!(item.outcome, Outcome::Imported | Outcome::WouldImport);
        if !is_new || self.key_type == wanted {
            return item;
        }
        let (own, wanted) = (key_type_name(self.key_type), key_type_name(wanted));
        item.because(format!(
            "its key is {own} and `key_type` is {wanted}: it is replaced at the next start; set \
             key_type = \"{own}\" in [acme] to keep it until it is due"
        ))
    }

    fn put(&self, dir: &Path, dry_run: bool) -> Result<(Outcome, Option<String>), StoreError> {
        let stored = match generation::read_current(dir) {
            // What cannot be used is replaced.
            Err(StoreError::Broken { .. }) => None,
            found => found?,
        };
        if let Some(stored) = stored {
            if stored.leaf.der == self.leaf.der {
                return Ok((Outcome::Unchanged, None));
            }
            if stored.leaf.not_before >= self.leaf.not_before {
                let since = clock::rfc3339(stored.leaf.not_before);
                let serial = &stored.leaf.serial;
                let cause = format!("there is a newer one: serial {serial}, from {since} on");
                return Ok((Outcome::Skipped, Some(cause)));
            }
        }
        if dry_run {
            return Ok((Outcome::WouldImport, None));
        }
        let generation = Generation {
            fullchain_pem: &self.fullchain_pem,
            private_key_pem: &self.private_key_pem,
            meta: &self.meta,
        };
        generation::write(dir, &generation)?;
        Ok((Outcome::Imported, None))
    }
}

fn key_type(key: &PKey<Private>) -> Option<KeyType> {
    let curve = |key: EcKey<Private>| key.group().curve_name();
    match (key.id(), key.bits()) {
        (Id::EC, _) => match curve(key.ec_key().ok()?)? {
            Nid::X9_62_PRIME256V1 => Some(KeyType::P256),
            Nid::SECP384R1 => Some(KeyType::P384),
            _ => None,
        },
        (Id::RSA, 2048) => Some(KeyType::Rsa2048),
        (Id::RSA, 3072) => Some(KeyType::Rsa3072),
        (Id::RSA, 4096) => Some(KeyType::Rsa4096),
        _ => None,
    }
}
