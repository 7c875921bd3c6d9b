//! The accounts that were registered at acme-dns servers (github.com/joohoi/acme-dns, "Register
//! endpoint"), one for each domain, in a file as acme-dns's own clients keep it. An account is on disk
//! before anybody is told of it, and a domain that has one never gets another at the same server.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::writer::{WriteError, answered};
use crate::acme::account::blocking;
use crate::config::{AcmeDns, AcmeDnsAccount};
use crate::store::{SECRET_FILE, StateDir, StoreError, atomic};

/// The file is read, changed and written whole, and outlives a change of the configuration.
static CHANGING: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Those at one server.
#[derive(Clone, Debug)]
pub(super) struct Registrations {
    file: PathBuf,
    server: String,
}

/// What a server answers to a registration, with its own URL.
#[derive(Clone, Serialize, Deserialize)]
struct Registered {
    username: String,
    password: String,
    fulldomain: String,
    subdomain: String,
    #[serde(default)]
    allowfrom: Vec<String>,
    #[serde(default)]
    server_url: String,
}

impl Registered {
    /// The subdomain is one label, and the first of the whole: a CNAME is to lead there.
    fn is_whole(&self) -> bool {
        let parent = self.fulldomain.strip_prefix(&*self.subdomain);
        let below = parent.and_then(|it| it.strip_prefix('.'));
        let is_label = !self.subdomain.is_empty() && !self.subdomain.contains('.');
        let has_key = !self.username.is_empty() && !self.password.is_empty();
        is_label && has_key && below.is_some_and(|it| !it.is_empty())
    }

    fn account(&self) -> AcmeDnsAccount {
        AcmeDnsAccount {
            server: self.server_url.clone(),
            username: self.username.clone(),
            password: self.password.clone(),
            subdomain: self.subdomain.clone(),
            full_domain: Some(self.fulldomain.trim_end_matches('.').to_owned()),
        }
    }
}

type Accounts = BTreeMap<String, Registered>;

impl Registrations {
    /// Those that belong beside these accounts. `None`: none are registered.
    pub(super) fn beside(accounts: &AcmeDns, state: &StateDir) -> Option<Registrations> {
        let server = accounts.registers_at()?;
        Some(Registrations::at(server, state))
    }

    fn at(server: &str, state: &StateDir) -> Registrations {
        Registrations {
            file: state.acme_dns_file(),
            server: server.to_owned(),
        }
    }

    /// The account of a domain, if it has one. Blocks on the disk.
    pub(super) fn find(&self, domain: &str) -> Result<Option<AcmeDnsAccount>, StoreError> {
        let found = self.read()?.remove(domain);
        let found = found.filter(|it| it.server_url == self.server);
        Ok(found.map(|it| it.account()))
    }

    /// The account of a domain, which is registered first where it has none.
    pub(super) async fn account_for(
        &self,
        domain: &str,
        client: &reqwest::Client,
    ) -> Result<AcmeDnsAccount, WriteError> {
        let _changing = CHANGING.lock().await;
        let (this, name) = (self.clone(), domain.to_owned());
        if let Some(account) = blocking(move || this.find(&name)).await? {
            return Ok(account);
        }
        let registered = self.register(client).await?;
        let account = registered.account();
        let (this, name) = (self.clone(), domain.to_owned());
        blocking(move || this.keep(name, registered)).await?;
        tracing::warn!(
            domain,
            server = self.server,
            cname = account.full_domain,
            "registered an account at the acme-dns server: make _acme-challenge of this domain a CNAME that leads there"
        );
        Ok(account)
    }

    async fn register(&self, client: &reqwest::Client) -> Result<Registered, WriteError> {
        let request = client.post(format!("{}/register", self.server));
        let body = answered(request, "").await?;
        // The parser's words may quote what it reads, and that is secret.
        let registered = serde_json::from_slice::<Registered>(&body).ok();
        let registered = registered.filter(Registered::is_whole).ok_or_else(|| {
            WriteError::Failed(format!("{}/register answers no account", self.server))
        })?;
        Ok(Registered {
            server_url: self.server.clone(),
            ..registered
        })
    }

    fn keep(&self, domain: String, registered: Registered) -> Result<(), StoreError> {
        let mut accounts = self.read()?;
        accounts.insert(domain, registered);
        let bytes = serde_json::to_vec_pretty(&accounts)
            .map_err(|error| StoreError::broken(&self.file, error))?;
        atomic::write_file(&self.file, &bytes, SECRET_FILE)
    }

    fn read(&self) -> Result<Accounts, StoreError> {
        let bytes = match std::fs::read(&self.file) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Accounts::new());
            }
            Err(error) => return Err(StoreError::io("read", &self.file, error)),
        };
        serde_json::from_slice(&bytes).map_err(|error| {
            let place = format!("line {}, column {}", error.line(), error.column());
            StoreError::broken(&self.file, place)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_of_one_domain_at_one_server() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::open(directory.path()).unwrap();
        let here = Registrations::at("https://auth.test", &state);
        let registered = |subdomain: &str, fulldomain: &str| Registered {
            username: "u".to_owned(),
            password: "p".to_owned(),
            fulldomain: fulldomain.to_owned(),
            subdomain: subdomain.to_owned(),
            allowfrom: Vec::new(),
            server_url: "https://auth.test".to_owned(),
        };
        assert!(here.find("a.test").unwrap().is_none());
        for name in ["a", "b"] {
            let account = registered(name, &format!("{name}.auth.test."));
            here.keep(format!("{name}.test"), account).unwrap();
        }
        let found = here.find("a.test").unwrap().unwrap();
        assert_eq!(found.full_domain.as_deref(), Some("a.auth.test"));
        assert!(here.find("x.a.test").unwrap().is_none());
        let elsewhere = Registrations::at("https://other.test", &state);
        assert!(elsewhere.find("a.test").unwrap().is_none());
        for (subdomain, fulldomain) in [("", ".auth.test"), ("a", "a."), ("a", "b.auth.test")] {
            assert!(
                !registered(subdomain, fulldomain).is_whole(),
                "{fulldomain}"
            );
        }
    }
}
