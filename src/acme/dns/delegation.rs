//! Whether the challenge names of domains lead to where their accounts at acme-dns servers write. It
//! looks, and registers nothing.

use super::registrations::Registrations;
use super::writer::{leads_to, wanted_target};
use super::{DnsError, Lookup};
use crate::config::{AcmeDns, AcmeDnsAccount, Dns, DnsWriter};
use crate::store::StateDir;

/// What a domain with an acme-dns server has.
#[derive(Debug, PartialEq, Eq)]
pub enum Delegation {
    /// Its challenge name leads to where its account writes.
    Leads,
    /// It leads elsewhere, or nowhere.
    Missing {
        /// A line of a zone file.
        wanted: String,
        found: String,
    },
    /// It has no account, and the first order registers one at this server.
    Unregistered { server: String },
}

/// Looks at one domain. `None`: no acme-dns server is for it.
pub async fn delegation(
    config: &Dns,
    state: &StateDir,
    domain: &str,
) -> Option<Result<Delegation, DnsError>> {
    let zones = config.zones.get(config.zones_of(domain)?)?;
    let DnsWriter::AcmeDns(accounts) = &zones.writer else {
        return None;
    };
    let account = match account_of(accounts, state, domain) {
        Ok(account) => account,
        Err(error) => return Some(Err(error)),
    };
    let Some(account) = account else {
        let server = accounts.registers_at()?.to_owned();
        return Some(Ok(Delegation::Unregistered { server }));
    };
    let asked = format!("_acme-challenge.{domain}");
    let lookup = Lookup::new(config.resolvers.clone(), Vec::new());
    let found = lookup.behind_aliases(&asked).await;
    Some(found.map(|found| match leads_to(&found, &account) {
        true => Delegation::Leads,
        false => Delegation::Missing {
            wanted: format!("{asked}. IN CNAME {}", wanted_target(&account)),
            found,
        },
    }))
}

fn account_of(
    accounts: &AcmeDns,
    state: &StateDir,
    domain: &str,
) -> Result<Option<AcmeDnsAccount>, DnsError> {
    if let Some(account) = accounts.of(domain) {
        return Ok(Some(account.clone()));
    }
    let registrations = Registrations::beside(accounts, state);
    let found = registrations.map(|it| it.find(domain)).transpose()?;
    Ok(found.flatten())
}
