//! What another ACME client has, taken over: its accounts and certificates are read where it keeps
//! them, and written into the state directory as our own. Nothing of the other client's is changed,
//! no CA is asked, and nothing is replaced by something older.

mod acme_sh;
mod caddy;
mod certbot;
mod files;
mod jwk;
mod lego;
mod writing;

use std::fmt;
use std::path::{Path, PathBuf};

use boring::pkey::{PKey, Private};
use serde::Serialize;

use crate::acme::public_cas;
use crate::config::KeyType;
pub use writing::write;

/// A client whose files are understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    Certbot,
    Lego,
    AcmeSh,
    Caddy,
}

impl Client {
    /// As its authors write it.
    pub fn name(self) -> &'static str {
        match self {
            Client::Certbot => "certbot",
            Client::Lego => "lego",
            Client::AcmeSh => "acme.sh",
            Client::Caddy => "Caddy",
        }
    }

    /// The folders by which its directory is known, and where that usually is.
    fn landmarks(self) -> (&'static [&'static str], &'static str) {
        match self {
            Client::Certbot => (&["accounts", "live"], "/etc/letsencrypt"),
            Client::Lego => (&["accounts", "certificates"], "the --path of lego, .lego"),
            Client::AcmeSh => (&["ca"], "~/.acme.sh"),
            Client::Caddy => (
                &["acme", "certificates"],
                "/var/lib/caddy/.local/share/caddy",
            ),
        }
    }
}

/// What a client has.
#[derive(Default)]
pub struct Found {
    pub accounts: Vec<FoundAccount>,
    pub certificates: Vec<FoundCertificate>,
    /// What could not be read, and why.
    pub unreadable: Vec<Item>,
}

/// An account at a CA.
pub struct FoundAccount {
    /// The file with its key.
    pub path: PathBuf,
    pub ca: CaHint,
    /// Its URL; `None`: the CA finds it by its key.
    pub url: Option<String>,
    pub key: PKey<Private>,
    pub email: Option<String>,
    /// Certificates that say they were ordered by it: of several accounts, one is taken.
    pub uses: usize,
}

/// A certificate with its key.
pub struct FoundCertificate {
    /// The file with the chain.
    pub path: PathBuf,
    pub ca: CaHint,
    pub chain_pem: Vec<u8>,
    pub key: PKey<Private>,
}

/// What a client keeps of the name of a CA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CaHint {
    /// The URL of its directory.
    Url(String),
    /// Host and port of it, with `_` between.
    Host(String),
    /// Host and path of it, without the port.
    HostAndPath(String),
    /// Host, port and path of it, with `-` in place of what folders cannot have.
    Folder(String),
}

impl CaHint {
    fn fits(&self, url: &str) -> bool {
        let bare = url.split_once("://").map_or(url, |(_, rest)| rest);
        let bare = bare.trim_end_matches('/');
        let (authority, path) = bare.split_once('/').unwrap_or((bare, ""));
        let host = authority
            .split_once(':')
            .map_or(authority, |(host, _)| host);
        match self {
            CaHint::Url(own) => own == url,
            CaHint::Host(own) => *own == authority.replace(':', "_"),
            CaHint::HostAndPath(own) => *own == format!("{host}/{path}"),
            CaHint::Folder(own) => *own == bare.replace(['/', ':'], "-"),
        }
    }
}

impl fmt::Display for CaHint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (CaHint::Url(text)
        | CaHint::Host(text)
        | CaHint::HostAndPath(text)
        | CaHint::Folder(text)) = self;
        f.write_str(text)
    }
}

/// What is known of the configuration: the URLs of directories, and what is ordered there.
#[derive(Clone, Debug, Default)]
pub struct Directories {
    /// Of the configuration, and those that somebody named.
    pub configured: Vec<String>,
    /// Of the certificates that will be ordered.
    pub key_type: KeyType,
}

impl Directories {
    /// The URL that a hint is about.
    fn resolve(&self, hint: &CaHint) -> Result<String, String> {
        if let CaHint::Url(url) = hint {
            return Ok(url.clone());
        }
        let mut configured = self.configured.iter().map(String::as_str);
        let own = configured.find(|url| hint.fits(url));
        let known: Vec<&str> = public_cas::directories()
            .filter(|url| hint.fits(url))
            .collect();
        match (own, &known[..]) {
            (Some(url), _) => Ok(url.to_owned()),
            (None, [url]) => Ok((*url).to_owned()),
            (None, []) => Err(format!(
                "which CA {hint} is cannot be told; name its directory with --ca URL"
            )),
            (None, several) => Err(format!(
                "which directory of {hint} it is cannot be told: name it with --ca, as in --ca {}",
                several.join(" or --ca ")
            )),
        }
    }

    /// URLs that other files of the same client name in full.
    fn learn(&mut self, found: &Found) {
        let certificates = found.certificates.iter().map(|it| &it.ca);
        let hints = found.accounts.iter().map(|it| &it.ca).chain(certificates);
        let urls = hints.filter_map(|hint| match hint {
            CaHint::Url(url) => Some(url.clone()),
            _ => None,
        });
        self.configured.extend(urls);
    }
}

/// What became of one thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    Imported,
    WouldImport,
    /// It is there already.
    Unchanged,
    /// It was left, for the reason that stands with it.
    Skipped,
    Failed,
}

impl Outcome {
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Imported => "imported",
            Outcome::WouldImport => "would import",
            Outcome::Unchanged => "unchanged",
            Outcome::Skipped => "skipped",
            Outcome::Failed => "FAILED",
        }
    }
}

/// One thing and what became of it.
#[derive(Clone, Debug, Serialize)]
pub struct Item {
    pub outcome: Outcome,
    /// `account at URL`, `certificate for NAMES`.
    pub what: String,
    pub from: PathBuf,
    pub to: Option<PathBuf>,
    pub cause: Option<String>,
}

impl Item {
    fn new(outcome: Outcome, what: impl Into<String>, from: &Path) -> Item {
        Item {
            outcome,
            what: what.into(),
            from: from.to_owned(),
            to: None,
            cause: None,
        }
    }

    fn to(self, to: PathBuf) -> Item {
        Item {
            to: Some(to),
            ..self
        }
    }

    fn because(self, cause: impl ToString) -> Item {
        Item {
            cause: Some(cause.to_string()),
            ..self
        }
    }

    fn failed(what: impl Into<String>, from: &Path, cause: impl ToString) -> Item {
        Item::new(Outcome::Failed, what, from).because(cause)
    }
}

/// Reads everything that a client keeps below `dir`. The error says what was looked for in vain.
pub fn read(client: Client, dir: &Path) -> Result<Found, String> {
    let (landmarks, usual) = client.landmarks();
    if !landmarks.iter().any(|name| dir.join(name).is_dir()) {
        return Err(format!(
            "{} has none of the folders of {} ({}); its directory is usually {usual}",
            dir.display(),
            client.name(),
            landmarks.join(", ")
        ));
    }
    Ok(match client {
        Client::Certbot => certbot::read(dir),
        Client::Lego => lego::read(dir),
        Client::AcmeSh => acme_sh::read(dir),
        Client::Caddy => caddy::read(dir),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_lead_to_directories() {
        let directories = Directories {
            configured: vec!["https://127.0.0.1:14000/dir".to_owned()],
            key_type: KeyType::default(),
        };
        let lets_encrypt = "https://acme-v02.api.letsencrypt.org/directory";
        for (hint, url) in [
            (
                CaHint::Host("acme-v02.api.letsencrypt.org".into()),
                lets_encrypt,
            ),
            (
                CaHint::HostAndPath("acme-v02.api.letsencrypt.org/directory".into()),
                lets_encrypt,
            ),
            (
                CaHint::Folder("acme-v02.api.letsencrypt.org-directory".into()),
                lets_encrypt,
            ),
            (
                CaHint::Host("127.0.0.1_14000".into()),
                "https://127.0.0.1:14000/dir",
            ),
            (
                CaHint::HostAndPath("127.0.0.1/dir".into()),
                "https://127.0.0.1:14000/dir",
            ),
            (
                CaHint::Folder("127.0.0.1-14000-dir".into()),
                "https://127.0.0.1:14000/dir",
            ),
        ] {
            assert_eq!(directories.resolve(&hint).as_deref(), Ok(url), "{hint}");
        }
        // Of several directories there the right one is a guess.
        let several = directories.resolve(&CaHint::Host("acme.sectigo.com".into()));
        let several = several.unwrap_err();
        for url in [
            "https://acme.sectigo.com/v2/DV",
            "https://acme.sectigo.com/v2/OV",
        ] {
            assert!(several.contains(&format!("--ca {url}")), "{several}");
        }
        let path = CaHint::HostAndPath("acme.sectigo.com/v2/OV".into());
        let sectigo = "https://acme.sectigo.com/v2/OV";
        assert_eq!(directories.resolve(&path).as_deref(), Ok(sectigo));
        let unknown = directories.resolve(&CaHint::Host("ca.test".into()));
        assert!(unknown.unwrap_err().contains("--ca"));
    }
}
