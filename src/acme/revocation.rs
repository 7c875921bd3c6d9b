//! Whether a certificate of ours is revoked, as the lists (RFC 5280) and responders (RFC 6960) say
//! that it names itself. What they say counts only if its issuer signed it and it is of now; what
//! cannot be had or verified is told, and leads to nothing else.

pub(super) mod check;
mod crl;
mod ocsp;
mod signature;

use std::sync::Arc;

use time::{Duration, OffsetDateTime};
use x509_parser::extensions::{DistributionPointName, GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::ledger::KEY_COMPROMISE;

/// Clocks differ: what was signed by so much in the future is of now.
const CLOCK_TOLERANCE: Duration = Duration::minutes(5);
/// Nobody is asked more often, whatever a list says of the next one.
const FLOOR: Duration = Duration::hours(1);
/// Nor more rarely; a date further away comes from a wrong clock.
const CEILING: Duration = Duration::days(10);
/// After something that does not say when there will be more.
const DEFAULT_WAIT: Duration = Duration::hours(12);

const OCSP: &str = "1.3.6.1.5.5.7.48.1";

/// Where to ask.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Source {
    /// One list for all the certificates that name it.
    Crl(Arc<str>),
    /// One question for each certificate.
    Ocsp {
        url: Arc<str>,
        /// The name after which the certificate's directory is called.
        subject: Arc<str>,
        serial: Arc<str>,
    },
}

impl Source {
    pub(super) fn url(&self) -> &str {
        match self {
            Source::Crl(url) | Source::Ocsp { url, .. } => url,
        }
    }
}

/// What a certificate names: the first list and the first responder that can be asked over HTTP.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) crl: Option<Arc<str>>,
    pub(super) ocsp: Option<Arc<str>>,
}

impl Named {
    /// Nothing, where this is no certificate.
    pub(super) fn of(leaf_der: &[u8]) -> Named {
        let Ok((_, leaf)) = X509Certificate::from_der(leaf_der) else {
            return Named::default();
        };
        let mut named = Named::default();
        for extension in leaf.extensions() {
            match extension.parsed_extension() {
                ParsedExtension::CRLDistributionPoints(points) => {
                    let names = points
                        .iter()
                        .filter_map(|it| it.distribution_point.as_ref());
                    named.crl = names.flat_map(full_names).find_map(http_url);
                }
                ParsedExtension::AuthorityInfoAccess(access) => {
                    let descriptions = access.accessdescs.iter();
                    let mut responders =
                        descriptions.filter(|it| it.access_method.to_id_string() == OCSP);
                    named.ocsp = responders.find_map(|it| http_url(&it.access_location));
                }
                _ => {}
            }
        }
        named
    }

    pub(super) fn sources(&self, subject: &str, serial: &str) -> Vec<Source> {
        let crl = self.crl.clone().map(Source::Crl);
        let ocsp = self.ocsp.clone().map(|url| Source::Ocsp {
            url,
            subject: subject.into(),
            serial: serial.into(),
        });
        crl.into_iter().chain(ocsp).collect()
    }
}

fn full_names<'n, 'a>(point: &'n DistributionPointName<'a>) -> &'n [GeneralName<'a>] {
    match point {
        DistributionPointName::FullName(names) => names,
        DistributionPointName::NameRelativeToCRLIssuer(_) => &[],
    }
}

fn http_url(name: &GeneralName<'_>) -> Option<Arc<str>> {
    match name {
        GeneralName::URI(url) if url.starts_with("http://") || url.starts_with("https://") => {
            Some((*url).into())
        }
        _ => None,
    }
}

/// What a list or a responder says of the certificates that it was asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Finding {
    /// Serial numbers as [`Leaf::serial`](crate::store::leaf::Leaf::serial) writes them, with the
    /// reason where one is given.
    revoked: Vec<(String, Option<&'static str>)>,
    next_update: Option<OffsetDateTime>,
}

/// Why nothing is known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum RevocationError {
    #[error("{0}")]
    Fetch(String),
    #[error("the answer is no {what}: {cause}")]
    Unreadable { what: &'static str, cause: String },
    #[error("it is not by the certificate's issuer, {0}")]
    OtherIssuer(String),
    #[error("it is not for such certificates: {0}")]
    OtherScope(String),
    #[error("its signature is not by the certificate's issuer")]
    Signature,
    #[error("it is signed with an algorithm that is not known here ({0})")]
    Algorithm(String),
    #[error("it is of {0}, which is in the future: check this host's clock")]
    Future(String),
    #[error("it is out of date since {0}")]
    OutOfDate(String),
    #[error("the responder answers {0}")]
    Responder(String),
}

/// The reason of a revocation (RFC 5280 section 5.3.1); the outer `None`: it is none any more.
fn reason(code: u8) -> Option<Option<&'static str>> {
    Some(Some(match code {
        0 => "unspecified",
        1 => KEY_COMPROMISE,
        2 => "cACompromise",
        3 => "affiliationChanged",
        4 => "superseded",
        5 => "cessationOfOperation",
        6 => "certificateHold",
        8 => return None,
        9 => "privilegeWithdrawn",
        10 => "aACompromise",
        _ => return Some(None),
    }))
}

/// Whether something signed at `this` and replaced at `next` is of now.
fn check_dates(
    now: OffsetDateTime,
    this: OffsetDateTime,
    next: Option<OffsetDateTime>,
) -> Result<(), RevocationError> {
    if this > now + CLOCK_TOLERANCE {
        return Err(RevocationError::Future(crate::clock::rfc3339(this)));
    }
    match next {
        Some(next) if next + CLOCK_TOLERANCE < now => {
            Err(RevocationError::OutOfDate(crate::clock::rfc3339(next)))
        }
        _ => Ok(()),
    }
}

/// When to ask again. `failures`: in a row, this one included. `fraction`: in 0..1, so that not
/// everybody comes at once.
fn next_check(
    now: OffsetDateTime,
    result: Result<Option<OffsetDateTime>, u32>,
    fraction: f64,
) -> OffsetDateTime {
    let wait = match result {
        Ok(Some(next_update)) => (next_update - now).clamp(FLOOR, CEILING),
        Ok(None) => DEFAULT_WAIT,
        Err(failures) => (FLOOR * (1_i32 << failures.saturating_sub(1).min(5))).min(Duration::DAY),
    };
    now + wait + FLOOR * (fraction.clamp(0.0, 1.0) / 4.0)
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    const NOW: OffsetDateTime = datetime!(2026-11-26 12:00 UTC);

    #[test]
    fn nobody_is_asked_before_there_can_be_news() {
        let hours = |hours: i64| NOW + Duration::hours(hours);
        for (result, expected) in [
            (Ok(Some(hours(24))), hours(24)),
            (Ok(Some(hours(0))), hours(1)),
            (Ok(Some(hours(-7))), hours(1)),
            (Ok(Some(hours(9000))), hours(240)),
            (Ok(None), hours(12)),
            (Err(1), hours(1)),
            (Err(3), hours(4)),
            (Err(90), hours(24)),
        ] {
            assert_eq!(next_check(NOW, result, 0.0), expected, "{result:?}");
            assert!(next_check(NOW, result, 1.0) <= expected + Duration::minutes(15));
        }
    }

    #[test]
    fn a_certificate_names_what_it_names() {
        let mut params = rcgen::CertificateParams::new(vec!["a.test".to_owned()]).unwrap();
        let uris = vec![
            "ldap://no.test/x".to_owned(),
            "http://crl.test/1".to_owned(),
        ];
        params.crl_distribution_points = vec![rcgen::CrlDistributionPoint { uris }];
        let key = rcgen::KeyPair::generate().unwrap();
        let leaf = params.self_signed(&key).unwrap();
        let named = Named::of(leaf.der());
        assert_eq!(named.crl.as_deref(), Some("http://crl.test/1"));
        let crl = Source::Crl("http://crl.test/1".into());
        assert_eq!(named.sources("a.test", "01"), [crl]);
        params.crl_distribution_points.clear();
        params.custom_extensions = vec![ocsp::tests::access("http://ocsp.test")];
        let leaf = params.self_signed(&key).unwrap();
        let named = Named::of(leaf.der());
        assert_eq!(named.crl, None);
        assert_eq!(named.ocsp.as_deref(), Some("http://ocsp.test"));
        assert_eq!(Named::of(b"no certificate"), Named::default());
    }
}
