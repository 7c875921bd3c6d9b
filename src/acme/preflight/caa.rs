//! Whether CAA records permit a CA to issue (RFC 8659), for this account and by these challenges
//! (RFC 8657).

use super::{Check, Topic};
use crate::acme::dns::{DnsError, Lookup};
use crate::acme::order::challenge_name;
use crate::certificate::name::Name;
use crate::config::ChallengeType;

/// Property tags that need not be understood even where they are critical, because they are.
const KNOWN_TAGS: [&str; 7] = [
    "issue",
    "issuewild",
    "issuemail",
    "issuevmc",
    "iodef",
    "contactemail",
    "contactphone",
];

/// One CAA record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Property {
    pub critical: bool,
    /// Lower-case.
    pub tag: String,
    pub value: String,
}

/// Who wants to issue, and how.
pub struct Policy<'a> {
    /// `caaIdentities` of the CA's directory.
    pub identities: &'a [String],
    /// URL of the account.
    pub account: Option<&'a str>,
    pub challenges: &'a [ChallengeType],
    pub wildcard: bool,
}

/// Looks for the nearest records above a name, and judges them.
pub(super) async fn check(lookup: &Lookup, name: &Name, policy: &Policy<'_>) -> Check {
    match nearest(lookup, name).await {
        Ok(None) => Check::ok(Topic::Caa, "no CAA record: every CA may issue"),
        Ok(Some((owner, records))) => judge(&owner, &records, policy),
        Err(error) => Check::warning(
            Topic::Caa,
            format!("the CAA records cannot be looked up: {error}"),
            "a CA that cannot look them up does not issue: mend the zone's name servers",
        ),
    }
}

/// RFC 8659 section 3: the records of the name itself, else of the nearest parent that has any.
async fn nearest(
    lookup: &Lookup,
    name: &Name,
) -> Result<Option<(String, Vec<Property>)>, DnsError> {
    let whole = name.to_string();
    let mut owner = whole.strip_prefix("*.").unwrap_or(&whole);
    loop {
        let records = lookup.caa(owner).await?;
        if !records.is_empty() {
            return Ok(Some((owner.to_owned(), records)));
        }
        match owner.split_once('.') {
            Some((_, parent)) => owner = parent,
            None => return Ok(None),
        }
    }
}

/// RFC 8659 section 4.
fn judge(owner: &str, records: &[Property], policy: &Policy<'_>) -> Check {
    let unknown = |record: &&Property| record.critical && !KNOWN_TAGS.contains(&&*record.tag);
    if let Some(record) = records.iter().find(unknown) {
        let cause = format!(
            "a CAA record of {owner} has the critical property {:?}, which CAs do not know",
            record.tag
        );
        return Check::fails(Topic::Caa, cause, "take that record out").hopeless();
    }
    let with_tag = |tag: &str| -> Vec<&Property> {
        records.iter().filter(|record| record.tag == tag).collect()
    };
    let wild = with_tag("issuewild");
    let relevant = match policy.wildcard && !wild.is_empty() {
        true => wild,
        false => with_tag("issue"),
    };
    if relevant.is_empty() {
        return Check::ok(
            Topic::Caa,
            format!("the CAA records of {owner} restrict nobody"),
        );
    }
    if policy.identities.is_empty() {
        return Check::warning(
            Topic::Caa,
            format!("{owner} has CAA records, and the CA does not say what it is called in them"),
            "look up what the CA's documentation says",
        );
    }
    let refusals: Vec<String> = relevant
        .iter()
        .filter_map(|record| refusal(record, policy).err())
        .collect();
    if refusals.len() < relevant.len() {
        return Check::ok(
            Topic::Caa,
            format!("the CAA records of {owner} permit the CA"),
        );
    }
    let tag = &relevant[0].tag;
    let cause = format!(
        "the CAA records of {owner} forbid the order: {}",
        refusals.join("; ")
    );
    let remedy = format!("add {owner}. IN CAA 0 {tag} \"{}\"", policy.identities[0]);
    Check::fails(Topic::Caa, cause, remedy).hopeless()
}

/// Why one record does not permit the order.
fn refusal(record: &Property, policy: &Policy<'_>) -> Result<(), String> {
    let mut parts = record.value.split(';').map(str::trim);
    let issuer = parts.next().unwrap_or_default();
    let text = format!("{} {:?}", record.tag, record.value);
    let mut identities = policy.identities.iter();
    if !identities.any(|own| own.eq_ignore_ascii_case(issuer)) {
        return Err(format!(
            "{text} is not for {}",
            policy.identities.join(", ")
        ));
    }
    for parameter in parts.filter(|part| !part.is_empty()) {
        let (tag, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        let value = value.trim();
        match tag.trim().to_ascii_lowercase().as_str() {
            "accounturi" if policy.account != Some(value) => {
                let own = policy.account.unwrap_or("not there yet");
                return Err(format!("{text} is for another account; ours is {own}"));
            }
            "validationmethods" if !has_method(value, policy) => {
                return Err(format!("{text} permits none of the configured challenges"));
            }
            _ => {}
        }
    }
    Ok(())
}

fn has_method(value: &str, policy: &Policy<'_>) -> bool {
    let mut methods = value.split(',').map(str::trim);
    methods.any(|method| {
        let mut own = policy.challenges.iter();
        own.any(|kind| challenge_name(*kind) == method)
    })
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    const ACCOUNT: &str = "https://ca.test/acct/1";

    fn verdict(records: &[(&str, &str)], wildcard: bool) -> Check {
        let records: Vec<Property> = records
            .iter()
            .map(|(tag, value)| Property {
                critical: tag.starts_with('!'),
                tag: tag.trim_start_matches('!').to_owned(),
                value: (*value).to_owned(),
            })
            .collect();
        let policy = Policy {
            identities: &["ca.test".to_owned(), "ca.example".to_owned()],
            account: Some(ACCOUNT),
            challenges: &[ChallengeType::Http01, ChallengeType::TlsAlpn01],
            wildcard,
        };
        judge("a.test", &records, &policy)
    }

    #[test]
    fn who_may_issue() {
        use Verdict::{Fails, Ok};
        let of_us = format!("ca.test; accounturi={ACCOUNT}; validationmethods=dns-01,http-01");
        for (records, exact, wildcard) in [
            (&[("issue", "ca.test")][..], Ok, Ok),
            (&[("issue", "CA.Example")], Ok, Ok),
            (&[("issue", "other.test")], Fails, Fails),
            (&[("issue", ";")], Fails, Fails),
            (&[("issue", "other.test"), ("issue", "ca.test")], Ok, Ok),
            (
                &[("issue", "ca.test"), ("issuewild", "other.test")],
                Ok,
                Fails,
            ),
            (
                &[("issue", "other.test"), ("issuewild", "ca.test")],
                Fails,
                Ok,
            ),
            (&[("issuewild", ";")], Ok, Fails),
            (&[("iodef", "mailto:a@a.test")], Ok, Ok),
            (&[("!iodef", "mailto:a@a.test")], Ok, Ok),
            (&[("!tbs", "x"), ("issue", "ca.test")], Fails, Fails),
            (&[("tbs", "x"), ("issue", "ca.test")], Ok, Ok),
            (&[("issue", &of_us)], Ok, Ok),
            (
                &[("issue", "ca.test; accounturi=https://ca.test/acct/2")],
                Fails,
                Fails,
            ),
            (
                &[("issue", "ca.test; validationmethods=dns-01")],
                Fails,
                Fails,
            ),
            (&[("issue", "ca.test; policy=ev;")], Ok, Ok),
        ] {
            assert_eq!(verdict(records, false).verdict, exact, "{records:?}");
            assert_eq!(verdict(records, true).verdict, wildcard, "* {records:?}");
        }
    }

    #[test]
    fn a_refusal_says_which_record_and_what_to_add() {
        let check = verdict(&[("issue", "other.test")], false);
        assert!(check.hopeless);
        let text = check.to_string();
        assert!(text.contains("issue \"other.test\""), "{text}");
        assert!(
            text.contains("a.test. IN CAA 0 issue \"ca.test\""),
            "{text}"
        );
        let wild = verdict(&[("issuewild", ";")], true).to_string();
        assert!(wild.contains("CAA 0 issuewild \"ca.test\""), "{wild}");
    }
}
