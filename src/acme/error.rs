//! What can go wrong between us and a CA, and what that means for the next attempt.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::order::challenge_name;
use crate::config::ChallengeType;
use crate::store::StoreError;

/// Who has to do something about a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// The CA will say the same again until something changes outside; tried daily all the same.
    Permanent,
    /// Time may heal it.
    Retryable,
    /// The CA asks for patience.
    RateLimited,
    /// The operator has to do something first; tried daily all the same.
    Operator,
}

/// A failed attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcmeError {
    pub class: Class,
    /// What was being done: `order for example.com`.
    pub what: String,
    /// What went wrong, in the CA's words where it has any.
    pub detail: String,
    /// The problem type without its `urn:ietf:params:acme:error:` (RFC 8555 section 6.7), or the
    /// whole URN where it is another.
    pub problem: Option<String>,
    /// The name that the problem is about, where it is about one.
    pub identifier: Option<String>,
    pub subproblems: Vec<Subproblem>,
    pub retry_after: Option<OffsetDateTime>,
    /// The CA as a whole did not answer, or not sensibly: other orders would fare no better.
    pub unreachable: bool,
    /// The order itself is still good, and the next attempt should go on with it.
    pub resumable: bool,
    /// What was asked for is not where we looked: the CA's directory may have changed.
    pub gone: bool,
    /// The challenge that failed, so that the next attempt can prefer another.
    pub challenge: Option<ChallengeType>,
    /// Nothing was asked of the CA: what is known of it speaks against the order.
    pub unsent: bool,
    /// What the operator can do, where that is more than the problem type says.
    pub advice: Option<String>,
    /// Nothing has failed: by our own count the order would break a limit before `retry_after`,
    /// and was not sent.
    pub held: Option<Held>,
}

/// Why an order turned out to be held up by a limit only while it was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// It was to go on with another one, which is gone.
    Anew,
    /// It would count for nothing, if the CA took what it replaces (RFC 9773 section 5).
    RefusedPredecessor,
}

/// One of several problems of one order (RFC 8555 section 6.7.1).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subproblem {
    pub identifier: Option<String>,
    pub problem: Option<String>,
    pub detail: String,
}

/// A failed attempt taken apart: for the ledger, `/status` and whoever reads those.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorReport {
    pub class: Class,
    /// As [`AcmeError::problem`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    pub detail: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identifier: Option<String>,
    /// As the configuration names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub challenge: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subproblems: Vec<Subproblem>,
    /// What the operator can do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
    /// Where a pause is ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unpause_url: Option<String>,
    /// As [`AcmeError::unsent`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unsent: bool,
}

/// Why the last attempt failed: as a sentence, and taken apart where it is the CA's error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastError {
    pub text: String,
    pub report: Option<Box<ErrorReport>>,
}

impl From<String> for LastError {
    fn from(text: String) -> LastError {
        LastError { text, report: None }
    }
}

impl From<&AcmeError> for LastError {
    fn from(error: &AcmeError) -> LastError {
        LastError {
            text: error.to_string(),
            report: Some(Box::new(error.report())),
        }
    }
}

impl AcmeError {
    pub fn new(class: Class, what: impl Into<String>, detail: impl Into<String>) -> AcmeError {
        AcmeError {
            class,
            what: what.into(),
            detail: detail.into(),
            problem: None,
            identifier: None,
            subproblems: Vec::new(),
            retry_after: None,
            unreachable: false,
            resumable: false,
            gone: false,
            challenge: None,
            unsent: false,
            advice: None,
            held: None,
        }
    }

    /// A failure of our own disk, before or after the CA was asked.
    pub fn store(what: impl Into<String>, error: &StoreError) -> AcmeError {
        AcmeError::new(Class::Operator, what, error.to_string())
    }

    /// Whether the next attempt should start from scratch: what failed is the order, and neither
    /// the way to the CA, nor a disk, nor somebody's patience.
    pub fn ends_the_order(&self) -> bool {
        let of_the_order = matches!(self.class, Class::Retryable | Class::Permanent);
        of_the_order && !self.unreachable && !self.resumable
    }

    /// Whether another CA may do at once what this one will not do, or not soon. What is wrong
    /// here at home would be as wrong there.
    pub fn is_for_another_ca(&self) -> bool {
        let refused = matches!(
            self.class,
            Class::Permanent | Class::RateLimited | Class::Operator
        );
        refused && (self.problem.is_some() || self.class == Class::RateLimited)
    }

    /// For people and for the ledger.
    pub fn report(&self) -> ErrorReport {
        ErrorReport {
            class: self.class,
            problem: self.problem.clone(),
            detail: self.detail.clone(),
            identifier: self.identifier.clone(),
            challenge: self.challenge.map(|it| challenge_name(it).to_owned()),
            subproblems: self.subproblems.clone(),
            remedy: self.remedy().map(str::to_owned),
            unpause_url: self.unpause_url().map(str::to_owned),
            unsent: self.unsent,
        }
    }

    /// Whether the problem is of this ACME type.
    pub fn is(&self, problem: &str) -> bool {
        self.problem.as_deref() == Some(problem)
    }
}

impl std::error::Error for AcmeError {}

impl std::fmt::Display for AcmeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: ", self.what)?;
        if let Some(identifier) = &self.identifier {
            write!(f, "{identifier}: ")?;
        }
        f.write_str(self.detail.trim_end_matches('.'))?;
        if let Some(problem) = &self.problem {
            write!(f, " ({problem})")?;
        }
        for sub in &self.subproblems {
            let detail = sub.detail.trim_end_matches('.');
            match &sub.identifier {
                Some(identifier) if sub.identifier != self.identifier => {
                    write!(f, "; {identifier}: {detail}")?;
                }
                _ => write!(f, "; {detail}")?,
            }
        }
        match (self.unpause_url(), self.remedy()) {
            (Some(url), _) => write!(f, "; visit {url} to end the pause"),
            (None, Some(remedy)) => write!(f, "; {remedy}"),
            (None, None) => Ok(()),
        }
    }
}

impl AcmeError {
    /// Where the operator ends a pause that the CA made after months of failures. It is in the
    /// words of the CA alone.
    pub fn unpause_url(&self) -> Option<&str> {
        if self.class != Class::RateLimited {
            return None;
        }
        let mut words = self.detail.split_whitespace();
        let url = words.find(|word| word.starts_with("https://") && word.contains("unpause"))?;
        Some(url.trim_end_matches(['.', ',', ')']))
    }

    /// What the operator can do, where that is known.
    fn remedy(&self) -> Option<&str> {
        self.advice.as_deref().or_else(|| self.remedy_of_type())
    }

    fn remedy_of_type(&self) -> Option<&'static str> {
        let own = remedy(self.problem.as_deref()?, self.challenge);
        // A compound says nothing itself (RFC 8555 section 6.7.1).
        let mut each = self.subproblems.iter();
        own.or_else(|| each.find_map(|sub| remedy(sub.problem.as_deref()?, self.challenge)))
    }
}

/// What can be done about a problem of this type (RFC 8555 section 6.7), met in this challenge.
fn remedy(problem: &str, challenge: Option<ChallengeType>) -> Option<&'static str> {
    use ChallengeType::{Dns01, DnsPersist01, Http01, TlsAlpn01};
    Some(match (problem, challenge) {
        ("caa", _) => "allow this CA in the name's CAA record",
        ("externalAccountRequired", _) => "set [acme.external_account] from the CA's account",
        ("userActionRequired", _) => "agree to what the CA's message links to",
        ("unsupportedContact" | "invalidContact", _) => {
            "set `email` to an address that the CA takes, or leave it out"
        }
        ("badPublicKey" | "badSignatureAlgorithm", _) => {
            "set `key_type` to one that the CA takes, such as \"p256\" or \"rsa2048\""
        }
        ("rejectedIdentifier", _) => {
            "the CA will not issue for this name: ask it why, or add an [[acme.fallback]]"
        }
        ("unsupportedIdentifier", _) => {
            "this CA does not issue for such names: some need a `profile`, others another CA"
        }
        ("invalidProfile", _) => "set `profile` to one that the CA offers, or leave it out",
        ("dns", Some(Dns01 | DnsPersist01)) => {
            "check that the zone's servers answer, and DNSSEC where it is signed"
        }
        ("dns", _) => "check that the name resolves to this host",
        ("connection", Some(Http01)) => "check that the CA can reach port 80 of this host",
        ("connection", Some(TlsAlpn01)) => "check that the CA can reach port 443 of this host",
        ("connection", _) => "check that the CA can reach ports 80 and 443 of this host",
        ("tls", _) => {
            "check that port 443 leads to this host, with nothing in between that ends TLS"
        }
        ("incorrectResponse" | "unauthorized", Some(Http01)) => {
            "check that the name resolves to this host alone, and that port 80 leads here"
        }
        ("incorrectResponse" | "unauthorized", Some(TlsAlpn01)) => {
            "check that the name resolves to this host alone, and that port 443 leads here"
        }
        ("incorrectResponse" | "unauthorized", Some(Dns01 | DnsPersist01)) => {
            "check that every server of the zone has the TXT record"
        }
        _ => return None,
    })
}

/// The class that RFC 8555's problem types and the HTTP status speak of. Of a `compound` it is for
/// its subproblems to say: see [`gravest`].
pub fn classify(problem: Option<&str>, status: Option<u16>) -> Class {
    match (problem, status) {
        (Some("rateLimited"), _) | (_, Some(429)) => Class::RateLimited,
        (
            Some(
                "externalAccountRequired"
                | "userActionRequired"
                | "accountDoesNotExist"
                | "unsupportedContact"
                | "invalidContact"
                | "invalidProfile",
            ),
            _,
        ) => Class::Operator,
        (
            Some(
                "caa"
                | "rejectedIdentifier"
                | "unsupportedIdentifier"
                | "badPublicKey"
                | "badCSR"
                | "badSignatureAlgorithm"
                | "badRevocationReason"
                | "alreadyRevoked",
            ),
            _,
        ) => Class::Permanent,
        _ => Class::Retryable,
    }
}

/// The class of several problems together: the one that waits longest for somebody.
pub fn gravest(classes: impl Iterator<Item = Class>) -> Class {
    let weight = |class: &Class| match class {
        Class::Retryable => 0,
        Class::RateLimited => 1,
        Class::Permanent => 2,
        Class::Operator => 3,
    };
    classes.max_by_key(weight).unwrap_or(Class::Retryable)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every type of RFC 8555 section 6.7, of RFC 9773 and of the profiles' draft: its class, and a
    /// word of what the operator is told to do.
    #[test]
    fn every_problem_type_has_its_class_and_remedy() {
        use Class::{Operator, Permanent, RateLimited, Retryable};
        for (problem, class, told) in [
            ("accountDoesNotExist", Operator, ""),
            ("alreadyRevoked", Permanent, ""),
            ("badCSR", Permanent, ""),
            ("badNonce", Retryable, ""),
            ("badPublicKey", Permanent, "key_type"),
            ("badRevocationReason", Permanent, ""),
            ("badSignatureAlgorithm", Permanent, "key_type"),
            ("caa", Permanent, "CAA record"),
            ("compound", Retryable, ""),
            ("connection", Retryable, "ports 80 and 443"),
            ("dns", Retryable, "resolves"),
            ("externalAccountRequired", Operator, "external_account"),
            ("incorrectResponse", Retryable, ""),
            ("invalidContact", Operator, "email"),
            ("malformed", Retryable, ""),
            ("orderNotReady", Retryable, ""),
            ("rateLimited", RateLimited, ""),
            ("rejectedIdentifier", Permanent, "fallback"),
            ("serverInternal", Retryable, ""),
            ("tls", Retryable, "443"),
            ("unauthorized", Retryable, ""),
            ("unsupportedContact", Operator, "email"),
            ("unsupportedIdentifier", Permanent, "profile"),
            ("userActionRequired", Operator, "message links to"),
            ("alreadyReplaced", Retryable, ""),
            ("invalidProfile", Operator, "profile"),
        ] {
            assert_eq!(classify(Some(problem), Some(403)), class, "{problem}");
            let mut error = AcmeError::new(class, "order for a.test", "no");
            error.problem = Some(problem.to_owned());
            let report = error.report();
            let remedy = report.remedy.unwrap_or_default();
            assert_eq!(remedy.is_empty(), told.is_empty(), "{problem}: {remedy}");
            assert!(remedy.contains(told), "{problem}: {remedy}");
            assert!(error.to_string().ends_with(&remedy), "{error}");
            // What it will not do, another CA may; what time heals stays.
            assert_eq!(error.is_for_another_ca(), class != Retryable, "{problem}");
        }
        assert_eq!(classify(None, Some(429)), RateLimited);
        assert_eq!(classify(Some("malformed"), Some(429)), RateLimited);
        assert_eq!(classify(None, Some(503)), Retryable);
        assert_eq!(classify(None, None), Retryable);
    }

    #[test]
    fn the_remedy_is_that_of_the_challenge() {
        use ChallengeType::{Dns01, Http01, TlsAlpn01};
        for (problem, challenge, told) in [
            ("connection", Http01, "port 80 "),
            ("connection", TlsAlpn01, "port 443 "),
            ("unauthorized", Http01, "port 80 "),
            ("unauthorized", TlsAlpn01, "port 443 "),
            ("unauthorized", Dns01, "TXT record"),
            ("incorrectResponse", Dns01, "TXT record"),
            ("dns", Dns01, "DNSSEC"),
        ] {
            let mut error = AcmeError::new(Class::Retryable, "order for a.test", "no");
            error.problem = Some(problem.to_owned());
            error.challenge = Some(challenge);
            let text = error.to_string();
            assert!(text.contains(told), "{text}");
        }
    }

    #[test]
    fn several_problems_are_as_grave_as_the_gravest() {
        use Class::{Operator, Permanent, RateLimited, Retryable};
        for (classes, expected) in [
            (&[][..], Retryable),
            (&[Retryable, RateLimited], RateLimited),
            (&[Permanent, Retryable], Permanent),
            (&[RateLimited, Permanent], Permanent),
            (&[Operator, Permanent], Operator),
        ] {
            assert_eq!(gravest(classes.iter().copied()), expected, "{classes:?}");
        }
    }

    #[test]
    fn a_report_is_read_back_from_the_ledger() {
        let mut error = AcmeError::new(Class::Permanent, "order for a.test", "several");
        error.problem = Some("compound".to_owned());
        error.challenge = Some(ChallengeType::Http01);
        error.subproblems.push(Subproblem {
            identifier: Some("b.test".to_owned()),
            problem: Some("caa".to_owned()),
            detail: "no".to_owned(),
        });
        let report = error.report();
        assert_eq!(report.challenge.as_deref(), Some("http-01"));
        assert!(report.remedy.as_ref().unwrap().contains("CAA"));
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<ErrorReport>(&text).unwrap(), report);
    }

    #[test]
    fn a_pause_names_where_it_ends() {
        let detail = "paused, visit (https://portal.test/sfe/v1/unpause?jwt=a.b), please";
        let detail = detail.replace('(', "");
        let mut error = AcmeError::new(Class::RateLimited, "order for a.test", detail);
        assert_eq!(
            error.unpause_url(),
            Some("https://portal.test/sfe/v1/unpause?jwt=a.b")
        );
        assert!(error.to_string().ends_with("to end the pause"));
        error.detail = "too many, see https://letsencrypt.org/docs/rate-limits/".to_owned();
        assert_eq!(error.unpause_url(), None);
    }

    #[test]
    fn messages_name_thing_cause_and_remedy() {
        let mut error = AcmeError::new(
            Class::Permanent,
            "order for example.com",
            "CAA record for example.com prevents issuance.",
        );
        error.problem = Some("caa".to_owned());
        error.identifier = Some("example.com".to_owned());
        assert_eq!(
            error.to_string(),
            "order for example.com: example.com: CAA record for example.com prevents issuance \
             (caa); allow this CA in the name's CAA record"
        );
        error.subproblems.push(Subproblem {
            identifier: Some("a.example.com".to_owned()),
            problem: None,
            detail: "no.".to_owned(),
        });
        assert!(error.to_string().contains("; a.example.com: no;"));
    }
}
