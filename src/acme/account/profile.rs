//! Under which of the CA's profiles a certificate is ordered (draft-ietf-acme-profiles). One that the
//! CA does not have is known before it is asked.

use std::collections::BTreeMap;

use time::Duration;

use super::{Authority, Session};
use crate::acme::error::{AcmeError, Class};
use crate::certificate::name::Name;
use crate::config::CertificateAuthority;

/// Let's Encrypt's, and the only one under which it issues for addresses. Who calls a profile so means
/// what it says: certificates of days, which every CA gives for addresses, if any.
const FOR_ADDRESSES: &str = "shortlived";
/// A directory that is younger says what is so: it was asked for again for another order a moment ago.
const YOUNG: Duration = Duration::seconds(10);

type Profiles = BTreeMap<String, serde_json::Value>;

impl Authority {
    /// A session to order with, and the profile for a certificate with these names; `None`: the CA
    /// chooses. An error about the profile is [`unsent`](AcmeError::unsent), and by the directory of
    /// now: profiles come and go within the life of a remembered one.
    pub async fn session_for(
        &self,
        names: &[Name],
    ) -> Result<(Session, Option<String>), AcmeError> {
        let session = self.session().await?;
        match self.profile(names, &session) {
            Ok(profile) => return Ok((session, profile)),
            Err(error) if !self.refresh_directory(YOUNG).await? => return Err(error),
            Err(_) => {}
        }
        let session = self.session().await?;
        let profile = self.profile(names, &session)?;
        Ok((session, profile))
    }

    fn profile(&self, names: &[Name], session: &Session) -> Result<Option<String>, AcmeError> {
        let profiles = &session.directory.profiles;
        let wanted = wanted(&self.config, names, profiles);
        offered(wanted, profiles).map_err(|detail| unsent(names, detail))?;
        Ok(wanted.map(str::to_owned))
    }
}

fn unsent(names: &[Name], detail: String) -> AcmeError {
    let names: Vec<String> = names.iter().map(Name::to_string).collect();
    let what = format!("order for {}", names.join(", "));
    AcmeError {
        problem: Some("invalidProfile".to_owned()),
        unsent: true,
        ..AcmeError::new(Class::Operator, what, detail)
    }
}

/// An address may need another profile than names.
fn wanted<'a>(
    config: &'a CertificateAuthority,
    names: &[Name],
    profiles: &Profiles,
) -> Option<&'a str> {
    let has_address = names.iter().any(|name| matches!(name, Name::Ip(_)));
    let for_addresses = config.address_profile.as_deref().filter(|_| has_address);
    let usual = for_addresses.or(config.profile.as_deref());
    usual.or((has_address && profiles.contains_key(FOR_ADDRESSES)).then_some(FOR_ADDRESSES))
}

/// Or what is there instead.
fn offered(wanted: Option<&str>, profiles: &Profiles) -> Result<(), String> {
    let Some(wanted) = wanted.filter(|wanted| !profiles.contains_key(*wanted)) else {
        return Ok(());
    };
    let names: Vec<&str> = profiles.keys().map(String::as_str).collect();
    Err(match names.is_empty() {
        true => format!("the CA has no profile {wanted:?}, nor any other"),
        false => format!("the CA has no profile {wanted:?}, but {}", names.join(", ")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_takes_the_profile_for_addresses() {
        let (name, address) = (&["a.test"][..], &["a.test", "192.0.2.1"][..]);
        let (both, classic) = (&["classic", FOR_ADDRESSES][..], &["classic"][..]);
        for (profile, address_profile, names, offered, expected) in [
            (None, None, name, both, None),
            (None, None, address, both, Some(FOR_ADDRESSES)),
            (None, None, address, classic, None),
            (Some("classic"), None, address, both, Some("classic")),
            (Some("classic"), Some("days"), address, both, Some("days")),
            (Some("classic"), Some("days"), name, both, Some("classic")),
            (None, Some("days"), name, both, None),
            (None, Some("days"), address, both, Some("days")),
        ] {
            let mut config = CertificateAuthority::lets_encrypt();
            config.profile = profile.map(str::to_owned);
            config.address_profile = address_profile.map(str::to_owned);
            let names: Vec<Name> = names.iter().map(|it| it.parse().unwrap()).collect();
            let profiles = offered.iter().map(|it| ((*it).to_owned(), true.into()));
            let found = wanted(&config, &names, &profiles.collect());
            assert_eq!(found, expected, "{profile:?} {address_profile:?} {names:?}");
        }
    }
}
