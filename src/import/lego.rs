//! lego's folder: `accounts/HOST_PORT/EMAIL/{account.json, keys/EMAIL.key}` and
//! `certificates/NAME.{crt,key,json}`.

use std::path::Path;

use super::files::{email, entries, folders, json, name, pem_key, read as read_file};
use super::{CaHint, Found, FoundAccount, FoundCertificate, Item};

pub(super) fn read(dir: &Path) -> Found {
    let mut found = Found::default();
    for ca in folders(&dir.join("accounts")) {
        for folder in folders(&ca) {
            match read_account(&folder, &name(&ca)) {
                Ok(account) => found.accounts.push(account),
                Err(cause) => {
                    let what = format!("account at {}", name(&ca));
                    found.unreadable.push(Item::failed(what, &folder, cause));
                }
            }
        }
    }
    for file in entries(&dir.join("certificates")) {
        if file.extension().is_some_and(|it| it == "json") {
            read_certificate(&file, &mut found);
        }
    }
    found
}

fn read_account(folder: &Path, ca: &str) -> Result<FoundAccount, String> {
    let account = json(&folder.join("account.json"))?;
    let keys = entries(&folder.join("keys"));
    let mut keys = keys
        .iter()
        .filter(|it| it.extension().is_some_and(|it| it == "key"));
    let path = keys.next().ok_or("it has no key in keys/")?;
    let address = account["email"].as_str().filter(|it| it.contains('@'));
    let registration = &account["registration"];
    Ok(FoundAccount {
        path: path.clone(),
        ca: CaHint::Host(ca.to_owned()),
        url: registration["uri"].as_str().map(str::to_owned),
        key: pem_key(path)?,
        email: address
            .map(str::to_owned)
            .or_else(|| email(&registration["body"]["contact"])),
        uses: 0,
    })
}

fn read_certificate(resource: &Path, found: &mut Found) {
    let path = resource.with_extension("crt");
    let result = json(resource).and_then(|resource_json| {
        let url = resource_json["certUrl"].as_str().unwrap_or_default();
        let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
        let authority = rest.split('/').next().unwrap_or_default();
        if authority.is_empty() {
            return Err("its certUrl does not say which CA issued it".to_owned());
        }
        Ok(FoundCertificate {
            ca: CaHint::Host(authority.replace(':', "_")),
            chain_pem: read_file(&path)?,
            key: pem_key(&resource.with_extension("key"))?,
            path: path.clone(),
        })
    });
    match result {
        Ok(certificate) => found.certificates.push(certificate),
        Err(cause) => {
            let what = format!("certificate {}", name(resource).trim_end_matches(".json"));
            found.unreadable.push(Item::failed(what, resource, cause));
        }
    }
}
