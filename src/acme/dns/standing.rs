//! The record of DNS-PERSIST-01 (draft-ietf-acme-dns-persist): it names the CA and our account, and
//! stands for good, so that nothing has to be written at each renewal. What it has to say and
//! whether it says so are decided purely.

use std::fmt;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::DnsError;
use super::lookup::Lookup;
use crate::clock;
use crate::config::Dns;

/// What a CA says of the record: in the challenge, and where that says nothing, in its directory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// Issuer names of which the record has to have one.
    #[serde(rename = "issuer-domain-names", default)]
    pub issuers: Vec<String>,
    /// Our account, as the record has to name it.
    #[serde(
        rename = "accounturi",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub account: Option<String>,
}

impl Terms {
    /// Those of the challenges in the document of an authorization (RFC 8555 section 7.1.4), with the
    /// challenges' URLs; none of any other document.
    pub fn in_authorization(document: &[u8]) -> Vec<(String, Terms)> {
        #[derive(Deserialize)]
        struct Authorization {
            challenges: Vec<serde_json::Value>,
        }
        let challenges = serde_json::from_slice::<Authorization>(document)
            .map(|authorization| authorization.challenges)
            .unwrap_or_default();
        let standing = challenges.into_iter().filter(|it| it["type"] == TYPE);
        let each = standing.filter_map(|challenge| {
            let url = challenge["url"].as_str()?.to_owned();
            Some((url, serde_json::from_value(challenge).ok()?))
        });
        each.collect()
    }

    /// With what the directory and the account's URL say, where the challenge is silent.
    pub fn or(self, identities: &[String], account: &str) -> Terms {
        let issuers = match self.issuers.is_empty() {
            true => identities.to_vec(),
            false => self.issuers,
        };
        let account = self.account.unwrap_or_else(|| account.to_owned());
        Terms {
            issuers,
            account: Some(account),
        }
    }
}

/// As RFC 8555 names challenges.
const TYPE: &str = "dns-persist-01";

/// A record that shows control over one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StandingRecord {
    /// Its owner.
    pub name: String,
    issuers: Vec<String>,
    account: String,
    wildcard: bool,
}

impl StandingRecord {
    /// For an identifier of an order. The error says why the CA or the account cannot be named.
    pub fn new(terms: &Terms, identifier: &str) -> Result<StandingRecord, String> {
        let (issuers, Some(account)) = (&terms.issuers, &terms.account) else {
            return Err("dns-persist-01 cannot be used: there is no account to name".into());
        };
        if issuers.is_empty() {
            return Err(
                "dns-persist-01 cannot be used: neither the challenge (issuer-domain-names) nor \
                 the CA's directory (caaIdentities) says what to call the CA"
                    .into(),
            );
        }
        let parent = identifier.strip_prefix("*.");
        Ok(StandingRecord {
            name: format!("_validation-persist.{}", parent.unwrap_or(identifier)),
            issuers: issuers.to_vec(),
            account: account.to_owned(),
            wildcard: parent.is_some(),
        })
    }

    /// What to write.
    pub fn value(&self) -> String {
        let issuer = self.issuers.first().map_or("", String::as_str);
        let policy = if self.wildcard {
            "; policy=wildcard"
        } else {
            ""
        };
        format!("{issuer}; accounturi={}{policy}", self.account)
    }

    /// Whether a TXT record shows what has to be shown at this moment.
    pub fn is_met_by(&self, value: &str, now: OffsetDateTime) -> bool {
        let mut parts = value.split(';').map(str::trim);
        let issuer = parts.next().unwrap_or_default();
        if !self
            .issuers
            .iter()
            .any(|own| own.eq_ignore_ascii_case(issuer))
        {
            return false;
        }
        let parameters: Option<Vec<(&str, &str)>> =
            parts.map(|part| part.split_once('=')).collect();
        let Some(parameters) = parameters else {
            return false;
        };
        let parameter = |tag: &str| {
            let mut found = parameters
                .iter()
                .filter(|(own, _)| own.trim().eq_ignore_ascii_case(tag));
            found.next().map(|(_, value)| value.trim())
        };
        let of_account = parameter("accounturi") == Some(&self.account);
        let wide = parameter("policy").is_some_and(|it| it.eq_ignore_ascii_case("wildcard"));
        let alive = match parameter("persistUntil").map(str::parse::<i64>) {
            None => true,
            Some(Ok(until)) => now.unix_timestamp() <= until,
            Some(Err(_)) => false,
        };
        of_account && alive && (wide || !self.wildcard)
    }
}

/// Whether resolvers find the record now.
pub async fn is_there(config: &Dns, record: &StandingRecord) -> Result<bool, DnsError> {
    let lookup = Lookup::new(config.resolvers.clone(), Vec::new());
    let values = lookup.txt(&record.name).await?;
    let now = clock::now();
    Ok(values.iter().any(|value| record.is_met_by(value, now)))
}

/// A line of a zone file.
impl fmt::Display for StandingRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}. IN TXT \"{}\"", self.name, self.value())
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    const NOW: OffsetDateTime = datetime!(2026-11-25 0:00 UTC);
    const ACCOUNT: &str = "https://ca.test/acct/1";

    fn record(identifier: &str) -> StandingRecord {
        let issuers = ["ca.test".to_owned(), "old.ca.test".to_owned()];
        let terms = Terms::default().or(&issuers, ACCOUNT);
        StandingRecord::new(&terms, identifier).unwrap()
    }

    #[test]
    fn the_challenge_says_more_than_the_directory() {
        let document = r#"{"status": "pending", "challenges": [
            {"type": "http-01", "url": "https://ca.test/1", "token": "x"},
            {"type": "dns-persist-01", "url": "https://ca.test/2",
             "issuer-domain-names": ["issuer.test"], "accounturi": "https://ca.test/a/1"},
            {"type": "dns-persist-01", "url": "https://ca.test/3"}]}"#;
        let found = Terms::in_authorization(document.as_bytes());
        let directory = ["directory.test".to_owned()];
        let record = |number: usize| {
            let (url, terms) = found[number].clone();
            let terms = terms.or(&directory, ACCOUNT);
            (url, StandingRecord::new(&terms, "a.test").unwrap().value())
        };
        assert_eq!(
            record(0),
            (
                "https://ca.test/2".to_owned(),
                "issuer.test; accounturi=https://ca.test/a/1".to_owned()
            )
        );
        let silent = format!("directory.test; accounturi={ACCOUNT}");
        assert_eq!(record(1), ("https://ca.test/3".to_owned(), silent));
        for other in ["", "[]", r#"{"challenges": 1}"#, r#"{"status": "pending"}"#] {
            assert_eq!(Terms::in_authorization(other.as_bytes()), []);
        }
    }

    #[test]
    fn what_to_write() {
        assert_eq!(
            record("*.example.com").to_string(),
            "_validation-persist.example.com. IN TXT \
             \"ca.test; accounturi=https://ca.test/acct/1; policy=wildcard\""
        );
        assert_eq!(
            record("www.example.com").to_string(),
            "_validation-persist.www.example.com. IN TXT \
             \"ca.test; accounturi=https://ca.test/acct/1\""
        );
        assert!(StandingRecord::new(&Terms::default().or(&[], ACCOUNT), "a.test").is_err());
        assert!(StandingRecord::new(&Terms::default(), "a.test").is_err());
    }

    #[test]
    fn what_meets_it() {
        let (exact, wildcard) = (record("a.test"), record("*.a.test"));
        for value in [exact.value(), wildcard.value()] {
            assert!(exact.is_met_by(&value, NOW), "{value}");
        }
        assert!(wildcard.is_met_by(&wildcard.value(), NOW));
        assert!(!wildcard.is_met_by(&exact.value(), NOW));
        let (before, after) = (NOW.unix_timestamp() - 1, NOW.unix_timestamp() + 1);
        for (value, met) in [
            (
                "OLD.ca.test;AccountURI=https://ca.test/acct/1".to_owned(),
                true,
            ),
            (
                "other.test; accounturi=https://ca.test/acct/1".to_owned(),
                false,
            ),
            (
                "ca.test; accounturi=https://ca.test/acct/2".to_owned(),
                false,
            ),
            ("ca.test".to_owned(), false),
            ("".to_owned(), false),
            (format!("{}; persistUntil={after}", exact.value()), true),
            (format!("{}; persistUntil={before}", exact.value()), false),
            (format!("{}; persistUntil=soon", exact.value()), false),
            (format!("{}; x=y", exact.value()), true),
            (format!("{};", exact.value()), false),
        ] {
            assert_eq!(exact.is_met_by(&value, NOW), met, "{value}");
        }
    }
}
