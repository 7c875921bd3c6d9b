//! Under which of the CA's profiles a certificate is ordered (draft-ietf-acme-profiles). One that the
//! CA does not have is known before it is asked.

use std::collections::BTreeMap;

use time::Duration;

use super::{Authority, Session};
use crate::acme::error::{AcmeError, Class};
use crate::certificate::name::Name;

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
        let profile = self.config.profile.as_deref();
        offered(profile, &session.directory.profiles).map_err(|detail| unsent(names, detail))?;
        Ok(profile.map(str::to_owned))
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
