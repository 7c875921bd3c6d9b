//! Whether a request is let in: its client's address, how often it asks, who it says it is, and how
//! much it brings.

use std::net::IpAddr;
use std::time::Instant;

use super::forward_auth::Asker;
use super::login::Logins;
use super::rate_limit::RateLimiter;
use super::upstream_tls::UpstreamTrusts;
use crate::config::{self, RateKey};
use crate::message::{Framing, RequestHead};

/// What a route asks of requests, with what it remembers of them.
pub struct Guard {
    access: config::Access,
    limiter: Option<RateLimiter>,
    logins: Option<Logins>,
    asker: Option<Asker>,
}

/// Why a request is not let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denial {
    /// Not from this address.
    Address,
    /// It has to wait for so many seconds.
    TooMany { retry_after: u64 },
    /// It has not said who it is, or not rightly; the realm.
    Login { realm: Box<str> },
    /// Its body is larger than what is taken.
    TooLarge,
}

impl Guard {
    /// `None`: everybody is let in.
    pub fn of(access: &config::Access, trusts: &UpstreamTrusts) -> Option<Box<Guard>> {
        let limiter = access.rate_limit.as_ref();
        let auth = access.forward_auth.as_ref();
        (*access != config::Access::default()).then(|| {
            Box::new(Guard {
                limiter: limiter.map(|rate| RateLimiter::new(rate.limit)),
                logins: access.basic_auth.as_ref().map(Logins::new),
                asker: auth.map(|auth| Asker::new(auth, trusts)),
                access: access.clone(),
            })
        })
    }

    /// Who else is asked.
    pub fn forward_auth(&self) -> Option<&Asker> {
        self.asker.as_ref()
    }

    /// In bytes.
    pub fn max_body(&self) -> Option<u64> {
        self.access.max_body
    }

    /// Lets a request in, or says why not; who it is, where it has to say so.
    pub async fn admit(
        &self,
        request: &RequestHead,
        client: &str,
    ) -> Result<Option<Box<str>>, Denial> {
        // An address that we have written ourselves.
        let address: Option<IpAddr> = client.parse().ok();
        let is_in = |list: &[config::IpPrefix]| {
            address.is_some_and(|address| list.iter().any(|prefix| prefix.contains(address)))
        };
        let access = &self.access;
        if is_in(&access.deny) || (!access.allow.is_empty() && !is_in(&access.allow)) {
            return Err(Denial::Address);
        }
        self.take_turn(request, address)?;
        let user = match &self.logins {
            Some(logins) => Some(
                logins
                    .verify(request.fields.named("authorization").next())
                    .await?,
            ),
            None => None,
        };
        match (request.framing, access.max_body) {
            (Framing::Length(length), Some(max)) if length > max => Err(Denial::TooLarge),
            _ => Ok(user),
        }
    }

    fn take_turn(&self, request: &RequestHead, address: Option<IpAddr>) -> Result<(), Denial> {
        let (Some(limiter), Some(rate)) = (&self.limiter, &self.access.rate_limit) else {
            return Ok(());
        };
        let now = Instant::now();
        let client = |address| config::IpPrefix::around(address, 32, 64);
        let taken = match &rate.by {
            RateKey::Everybody => limiter.take(&(), now),
            RateKey::Client => limiter.take(&address.map(client), now),
            RateKey::Field(name) => {
                let value = request.fields.named(name).next();
                limiter.take(&value.unwrap_or_default(), now)
            }
        };
        taken.map_err(|wait| Denial::TooMany {
            retry_after: wait.as_secs() + 1,
        })
    }
}
