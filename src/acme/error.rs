//! What can go wrong between us and a CA, and what that means for the next attempt.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

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
}

/// One of several problems of one order (RFC 8555 section 6.7.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subproblem {
    pub identifier: Option<String>,
    pub problem: Option<String>,
    pub detail: String,
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

    /// What the operator can do, where the problem type says so much.
    fn remedy(&self) -> Option<&'static str> {
        match self.problem.as_deref()? {
            "caa" => Some("allow this CA in the name's CAA record"),
            "externalAccountRequired" => Some("set [acme.external_account] from the CA's account"),
            "userActionRequired" => Some("agree to what the CA's message links to"),
            "dns" => Some("check that the name resolves to this host"),
            "connection" => Some("check that the CA can reach ports 80 and 443 of this host"),
            "invalidProfile" => Some("set `profile` to one that the CA offers, or leave it out"),
            "unsupportedIdentifier" => Some(
                "this CA does not issue for such names: some need a `profile`, others another CA",
            ),
            _ => None,
        }
    }
}

/// The class that RFC 8555's problem types and the HTTP status speak of.
pub fn classify(problem: Option<&str>, status: Option<u16>) -> Class {
    match (problem, status) {
        (Some("rateLimited"), _) | (_, Some(429)) => Class::RateLimited,
        (Some("externalAccountRequired" | "userActionRequired" | "accountDoesNotExist"), _) => {
            Class::Operator
        }
        (
            Some(
                "caa"
                | "rejectedIdentifier"
                | "unsupportedIdentifier"
                | "invalidProfile"
                | "badPublicKey"
                | "badCSR"
                | "unsupportedContact"
                | "invalidContact",
            ),
            _,
        ) => Class::Permanent,
        _ => Class::Retryable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes() {
        for (problem, status, class) in [
            (Some("rateLimited"), Some(400), Class::RateLimited),
            (None, Some(429), Class::RateLimited),
            (Some("caa"), Some(403), Class::Permanent),
            (Some("rejectedIdentifier"), None, Class::Permanent),
            (Some("externalAccountRequired"), Some(403), Class::Operator),
            (Some("userActionRequired"), Some(403), Class::Operator),
            (Some("serverInternal"), Some(500), Class::Retryable),
            (Some("connection"), Some(400), Class::Retryable),
            (None, None, Class::Retryable),
        ] {
            assert_eq!(classify(problem, status), class, "{problem:?} {status:?}");
        }
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
