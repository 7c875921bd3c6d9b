//! Whether a CA as its directory shows it, and our account there, would take an order: pure.

use std::path::Path;

use super::{Check, Topic};
use crate::acme::account::{AccountState, Directory};
use crate::config::CertificateAuthority;

/// What the directory wants and has, held against the configuration. `has_account`: what the first
/// order would have to bring is there.
pub fn demands(
    directory: &Directory,
    config: &CertificateAuthority,
    has_account: bool,
) -> Vec<Check> {
    let profiles = [
        ("profile", &config.profile),
        ("address_profile", &config.address_profile),
    ];
    let wanted = profiles.into_iter();
    let wanted = wanted.filter_map(|(key, wanted)| Some((key, wanted.as_deref()?)));
    let mut checks: Vec<Check> = wanted
        .map(|(key, wanted)| profile_check(directory, key, wanted))
        .collect();
    if has_account {
        return checks;
    }
    if directory.external_account_required && config.external_account.is_none() {
        checks.push(Check::fails(
            Topic::Account,
            "the CA makes accounts for its customers alone (externalAccountRequired), and no \
             [acme.external_account] is configured",
            "set [acme.external_account] with `kid` and `hmac_key` from the CA's website",
        ));
    }
    if let Some(terms) = directory.terms_of_service()
        && !config.agree_to_terms
    {
        checks.push(Check::fails(
            Topic::Account,
            format!("agree_to_terms is false, and the CA has terms of service, {terms}"),
            "read them, and set `agree_to_terms` to true",
        ));
    }
    checks
}

fn profile_check(directory: &Directory, key: &str, wanted: &str) -> Check {
    let offered: Vec<&str> = directory.profiles.keys().map(String::as_str).collect();
    if offered.contains(&wanted) {
        return Check::ok(Topic::Profile, format!("the CA has the profile {wanted:?}"));
    }
    let (cause, remedy) = match offered.is_empty() {
        true => (
            format!("the CA has no profile {wanted:?}, nor any other"),
            format!("take `{key}` out"),
        ),
        false => (
            format!(
                "the CA has no profile {wanted:?}, but {}",
                offered.join(", ")
            ),
            format!("set `{key}` to one of these, or take it out"),
        ),
    };
    Check::fails(Topic::Profile, cause, remedy)
}

/// `ca`: the URL of the directory; `dir`: where the account is kept.
pub fn account(state: &AccountState, ca: &str, dir: &Path) -> Check {
    let anew = || {
        let file = dir.join("account.json");
        format!(
            "`perennial account deactivate --yes --ca {ca}` puts {} away, and the next order makes a \
             new account",
            file.display()
        )
    };
    let fails = |cause: String| Check::fails(Topic::Account, cause, anew());
    match state {
        AccountState::Missing => Check::ok(
            Topic::Account,
            "there is none yet: the first order makes one",
        ),
        AccountState::Good(url) => Check::ok(Topic::Account, format!("{url} is valid")),
        AccountState::Ended(url, status) => fails(format!("{url} is {status}")),
        AccountState::Refused(url, error) => {
            let detail = error.detail.trim_end_matches('.');
            fails(format!("the CA does not take requests of {url}: {detail}"))
        }
        AccountState::Unknown(cause) => Check::warning(
            Topic::Account,
            format!("it is not known how it is: {cause}"),
            "ask again",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    fn directory(meta: &str) -> Directory {
        let text =
            format!(r#"{{"newNonce": "n", "newAccount": "a", "newOrder": "o", "meta": {meta}}}"#);
        Directory::parse(text.into()).unwrap()
    }

    fn told(
        meta: &str,
        change: impl FnOnce(&mut CertificateAuthority),
        has_account: bool,
    ) -> String {
        let mut config = CertificateAuthority::lets_encrypt();
        change(&mut config);
        let checks = demands(&directory(meta), &config, has_account);
        let bad = checks.iter().filter(|it| it.verdict == Verdict::Fails);
        bad.map(|check| format!("{}: {check}", check.topic.as_str()))
            .collect::<Vec<_>>()
            .join("\n")
    }

    #[test]
    fn what_a_ca_wants_for_its_first_order() {
        let bound = r#"{"externalAccountRequired": true}"#;
        let missing = told(bound, |_| {}, false);
        assert!(missing.contains("set [acme.external_account]"), "{missing}");
        assert_eq!(told(bound, |_| {}, true), "");
        assert_eq!(told("{}", |_| {}, false), "");
        let terms = r#"{"termsOfService": "https://ca.test/terms"}"#;
        assert_eq!(told(terms, |_| {}, false), "");
        let refused = told(terms, |config| config.agree_to_terms = false, false);
        assert!(refused.contains("https://ca.test/terms"), "{refused}");
    }

    #[test]
    fn profiles_that_it_has_and_has_not() {
        let meta = r#"{"profiles": {"classic": "", "shortlived": ""}}"#;
        let with = |name: &str, meta: &str| {
            let name = name.to_owned();
            told(meta, |config| config.profile = Some(name), true)
        };
        assert_eq!(with("classic", meta), "");
        let unknown = with("classical", meta);
        assert!(unknown.contains("but classic, shortlived"), "{unknown}");
        assert!(with("classic", "{}").contains("nor any other"));
        let of_addresses = |config: &mut CertificateAuthority| {
            config.address_profile = Some("days".to_owned());
        };
        let unknown = told(meta, of_addresses, true);
        assert!(unknown.contains("set `address_profile`"), "{unknown}");
    }
}
