//! Caddy's data directory, as CertMagic lays it out: `acme/CA/users/EMAIL/*.{json,key}` and
//! `certificates/CA/NAME/NAME.{crt,key,json}`.

use std::path::Path;

use super::files::{email, entries, folders, json, name, pem_key, read as read_file};
use super::{CaHint, Found, FoundAccount, FoundCertificate, Item};

/// The folder of Caddy's own CA, which has no accounts and whose certificates nobody renews.
const INTERNAL: &str = "local";

pub(super) fn read(dir: &Path) -> Found {
    let mut found = Found::default();
    for ca in folders(&dir.join("acme")) {
        for user in folders(&ca.join("users")) {
            for file in entries(&user) {
                if file.extension().is_some_and(|it| it == "json") {
                    read_account(&file, &name(&ca), &mut found);
                }
            }
        }
    }
    for ca in folders(&dir.join("certificates")) {
        for folder in folders(&ca).iter().filter(|_| name(&ca) != INTERNAL) {
            for file in entries(folder) {
                if file.extension().is_some_and(|it| it == "crt") {
                    read_certificate(&file, &name(&ca), &mut found);
                }
            }
        }
    }
    found
}

fn read_account(file: &Path, ca: &str, found: &mut Found) {
    let path = file.with_extension("key");
    let result = json(file).and_then(|account| {
        Ok(FoundAccount {
            ca: CaHint::Folder(ca.to_owned()),
            url: account["location"].as_str().map(str::to_owned),
            key: pem_key(&path)?,
            email: email(&account["contact"]),
            path: path.clone(),
            uses: 0,
        })
    });
    match result {
        Ok(account) => found.accounts.push(account),
        Err(cause) => {
            let what = format!("account at {ca}");
            found.unreadable.push(Item::failed(what, file, cause));
        }
    }
}

fn read_certificate(path: &Path, ca: &str, found: &mut Found) {
    let meta = json(&path.with_extension("json")).unwrap_or_default();
    // Newer versions write the URL down.
    let url = meta["issuer_data"]["ca"].as_str();
    let ca = url.map_or_else(
        || CaHint::Folder(ca.to_owned()),
        |url| CaHint::Url(url.to_owned()),
    );
    let result = read_file(path).and_then(|chain_pem| {
        Ok(FoundCertificate {
            ca,
            chain_pem,
            key: pem_key(&path.with_extension("key"))?,
            path: path.to_owned(),
        })
    });
    match result {
        Ok(certificate) => found.certificates.push(certificate),
        Err(cause) => {
            let what = format!("certificate {}", name(path).trim_end_matches(".crt"));
            found.unreadable.push(Item::failed(what, path, cause));
        }
    }
}
