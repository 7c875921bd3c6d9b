//! certbot's `/etc/letsencrypt`: `accounts/HOST/PATH/ID/`, `live/NAME/`, `renewal/NAME.conf`.

use std::path::Path;

use super::files::{entries, folders, json, name, pem_key, read as read_file, setting};
use super::{CaHint, Found, FoundAccount, FoundCertificate, Item, jwk};

pub(super) fn read(dir: &Path) -> Found {
    let mut found = Found::default();
    let accounts = dir.join("accounts");
    for host in folders(&accounts) {
        read_accounts(&host, &format!("https://{}", name(&host)), &mut found);
    }
    let renewals = entries(&dir.join("renewal"));
    for file in renewals {
        if file.extension().is_some_and(|it| it == "conf") {
            read_lineage(dir, &file, &mut found);
        }
    }
    found
}

/// The URL of the CA is the path of folders above an account's own.
fn read_accounts(dir: &Path, url: &str, found: &mut Found) {
    for folder in folders(dir) {
        let key_file = folder.join("private_key.json");
        if !key_file.is_file() {
            read_accounts(&folder, &format!("{url}/{}", name(&folder)), found);
            continue;
        }
        match read_account(&folder, url) {
            Ok(account) => found.accounts.push(account),
            Err(cause) => {
                let what = format!("account at {url}");
                found.unreadable.push(Item::failed(what, &key_file, cause));
            }
        }
    }
}

fn read_account(folder: &Path, url: &str) -> Result<FoundAccount, String> {
    let path = folder.join("private_key.json");
    let key = jwk::private_key(&json(&path)?)?;
    // Without it the CA finds the account by its key.
    let registration = json(&folder.join("regr.json")).unwrap_or_default();
    Ok(FoundAccount {
        path,
        ca: CaHint::Url(url.to_owned()),
        url: registration["uri"].as_str().map(str::to_owned),
        key,
        email: super::files::email(&registration["body"]["contact"]),
        uses: 0,
    })
}

/// One certificate over its renewals; what its configuration names is newest.
fn read_lineage(dir: &Path, conf: &Path, found: &mut Found) {
    let lineage = name(conf);
    let lineage = lineage.trim_end_matches(".conf");
    let text = read_file(conf).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let result = text.and_then(|text| {
        let server = setting(&text, "server");
        let server = server.ok_or("it names no server")?;
        count_use(&text, &server, found);
        read_certificate(dir, lineage, server)
    });
    match result {
        Ok(certificate) => found.certificates.push(certificate),
        Err(cause) => {
            let what = format!("certificate {lineage}");
            found.unreadable.push(Item::failed(what, conf, cause));
        }
    }
}

fn count_use(conf: &str, server: &str, found: &mut Found) {
    let Some(id) = setting(conf, "account") else {
        return;
    };
    let is_it = |account: &&mut FoundAccount| {
        let folder = account.path.parent().map(name);
        folder.as_deref() == Some(&id) && account.ca == CaHint::Url(server.to_owned())
    };
    if let Some(account) = found.accounts.iter_mut().find(is_it) {
        account.uses += 1;
    }
}

/// Below the directory that was named, wherever the configuration says it stood before a move.
fn read_certificate(dir: &Path, lineage: &str, server: String) -> Result<FoundCertificate, String> {
    let live = dir.join("live").join(lineage);
    let path = live.join("fullchain.pem");
    let at = |path: &Path, cause: String| format!("{}: {cause}", path.display());
    let key_path = live.join("privkey.pem");
    Ok(FoundCertificate {
        chain_pem: read_file(&path).map_err(|cause| at(&path, cause))?,
        key: pem_key(&key_path).map_err(|cause| at(&key_path, cause))?,
        ca: CaHint::Url(server),
        path,
    })
}
