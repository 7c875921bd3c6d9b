//! acme.sh's home: `ca/HOST/PATH/{account.key, account.json, ca.conf}`, and for each certificate
//! `NAME/` or `NAME_ecc/` with `NAME.{conf,key}` and `fullchain.cer`.

use std::path::Path;

use super::files::{email, folders, json, name, pem_key, read as read_file, setting};
use super::{CaHint, Found, FoundAccount, FoundCertificate, Item};

/// `ca/HOST` and a path of this depth at most.
const MAX_DEPTH: usize = 8;

pub(super) fn read(dir: &Path) -> Found {
    let mut found = Found::default();
    let ca = dir.join("ca");
    read_accounts(&ca, &ca, MAX_DEPTH, &mut found);
    for folder in folders(dir) {
        let domain = name(&folder);
        let domain = domain.strip_suffix("_ecc").unwrap_or(&domain);
        let conf = folder.join(format!("{domain}.conf"));
        if conf.is_file() {
            read_certificate(&folder, domain, &conf, &mut found);
        }
    }
    found
}

fn text(path: &Path) -> Result<String, String> {
    read_file(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

fn read_accounts(root: &Path, dir: &Path, depth: usize, found: &mut Found) {
    let path = dir.join("account.key");
    if path.is_file() {
        let ca = dir.strip_prefix(root).unwrap_or(dir).display().to_string();
        match pem_key(&path) {
            Ok(key) => {
                // Without these the CA finds the account by its key.
                let conf = text(&dir.join("ca.conf")).unwrap_or_default();
                let account = json(&dir.join("account.json")).unwrap_or_default();
                found.accounts.push(FoundAccount {
                    path,
                    ca: CaHint::HostAndPath(ca),
                    url: setting(&conf, "ACCOUNT_URL"),
                    key,
                    email: setting(&conf, "CA_EMAIL").or_else(|| email(&account["contact"])),
                    uses: 0,
                });
            }
            Err(cause) => {
                let what = format!("account at {ca}");
                found.unreadable.push(Item::failed(what, &path, cause));
            }
        }
    }
    if depth > 0 {
        for folder in folders(dir) {
            read_accounts(root, &folder, depth - 1, found);
        }
    }
}

fn read_certificate(folder: &Path, domain: &str, conf: &Path, found: &mut Found) {
    let path = folder.join("fullchain.cer");
    let result = text(conf).and_then(|text| {
        let api = setting(&text, "Le_API").ok_or("it has no Le_API, the CA's URL")?;
        Ok(FoundCertificate {
            ca: CaHint::Url(api),
            chain_pem: read_file(&path).map_err(|cause| format!("fullchain.cer: {cause}"))?,
            key: pem_key(&folder.join(format!("{domain}.key")))?,
            path: path.clone(),
        })
    });
    match result {
        Ok(certificate) => found.certificates.push(certificate),
        Err(cause) => {
            let what = format!("certificate {domain}");
            found.unreadable.push(Item::failed(what, conf, cause));
        }
    }
}
