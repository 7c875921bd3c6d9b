//! The CAs that everybody trusts: the one list of what is known without asking.

use crate::certificate::name::Name;
use crate::config::{CertificateAuthority, Config, Diagnostic, Diagnostics};

/// A CA of that kind, or one of its directories.
struct PublicCa {
    directory: &'static str,
    /// Whether it makes accounts for its customers alone (RFC 8555 section 7.3.4).
    is_bound: bool,
    /// Since when it issues nothing any more.
    ended: Option<&'static str>,
}

impl PublicCa {
    const fn open(directory: &'static str) -> PublicCa {
        PublicCa {
            directory,
            is_bound: false,
            ended: None,
        }
    }

    const fn bound(directory: &'static str) -> PublicCa {
        PublicCa {
            is_bound: true,
            ..PublicCa::open(directory)
        }
    }
}

const KNOWN: [PublicCa; 11] = [
    PublicCa::open("https://acme-v02.api.letsencrypt.org/directory"),
    PublicCa::open("https://acme-staging-v02.api.letsencrypt.org/directory"),
    PublicCa::bound("https://acme.zerossl.com/v2/DV90"),
    PublicCa::bound("https://dv.acme-v02.api.pki.goog/directory"),
    PublicCa::bound("https://dv.acme-v02.test-api.pki.goog/directory"),
    PublicCa::bound("https://acme.ssl.com/sslcom-dv-ecc"),
    PublicCa::bound("https://acme.ssl.com/sslcom-dv-rsa"),
    PublicCa::bound("https://acme-api.actalis.com/acme/directory"),
    PublicCa::bound("https://acme.sectigo.com/v2/DV"),
    PublicCa::bound("https://acme.sectigo.com/v2/OV"),
    // Kept for what other clients have had from it.
    PublicCa {
        ended: Some("October 2025"),
        ..PublicCa::open("https://api.buypass.com/acme/directory")
    },
];

/// Directory URLs.
pub fn directories<'a>() -> impl Iterator<Item = &'a str> {
    KNOWN.iter().map(|known| known.directory)
}

/// Whether a directory is that of a public CA, by its host: those look from outside, and so care
/// about what DNS and the network say there.
pub fn is_public(directory: &str) -> bool {
    find(directory).is_some() || is_test_public(directory)
}

/// By its host: what is known of a CA holds for all its directories.
fn find(directory: &str) -> Option<&'static PublicCa> {
    let mut known = KNOWN.iter();
    known.find(|known| host(known.directory) == host(directory))
}

fn host(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split('/').next().unwrap_or_default()
}

/// Lets a test's CA be a public one. Debug builds only.
fn is_test_public(directory: &str) -> bool {
    cfg!(debug_assertions)
        && std::env::var_os("PERENNIAL_TEST_PUBLIC_CA").is_some_and(|wanted| wanted == directory)
}

/// Profiles of Let's Encrypt that have no addresses; `shortlived` has.
const FOR_NAMES_ALONE: [&str; 2] = ["classic", "tlsserver"];

/// What these CAs would refuse, as far as that is known without asking them. `has_account`: whether
/// we have an account at a directory, or may have one.
pub fn objections(config: &Config, has_account: impl Fn(&str) -> bool) -> Diagnostics {
    let authorities = &config.acme.authorities;
    let places = config.ca_references.directories.iter();
    let each = authorities.iter().zip(places);
    let mut found: Vec<Diagnostic> = each
        .filter_map(|(authority, place)| {
            let (message, help) = objection(authority, &has_account)?;
            Some(Diagnostic {
                place: place.clone()?,
                message,
                help: Some(help),
            })
        })
        .collect();
    let addresses = config.ca_references.addresses.iter();
    found.extend(addresses.filter_map(|(address, place)| {
        let (message, help) = no_address(authorities, address)?;
        Some(Diagnostic {
            place: place.clone(),
            message,
            help: Some(help),
        })
    }));
    Diagnostics::new(found)
}

fn objection(
    authority: &CertificateAuthority,
    has_account: impl Fn(&str) -> bool,
) -> Option<(String, String)> {
    let url = &authority.directory;
    let known = find(url)?;
    if let Some(ended) = known.ended {
        return Some((
            format!("the CA with the directory {url:?} has ended: it issues nothing since {ended}"),
            "choose another `directory`, or take it out for Let's Encrypt".to_owned(),
        ));
    }
    let bound = known.is_bound && authority.external_account.is_none() && !has_account(url);
    bound.then(|| {
        (
            format!(
                "the CA with the directory {url:?} makes accounts for its customers alone, and no \
                 external account is configured"
            ),
            "add external_account = { kid = \"...\", hmac_key_file = \"FILE\" } with both from the \
             CA's website, or take an account of another client over with `perennial certs import`"
                .to_owned(),
        )
    })
}

/// Where each CA would refuse an address.
fn no_address(authorities: &[CertificateAuthority], address: &Name) -> Option<(String, String)> {
    let refuses = |authority: &CertificateAuthority| {
        let is_lets_encrypt = host(&authority.directory).ends_with(".letsencrypt.org");
        let profile = profile_for_addresses(authority);
        is_lets_encrypt && profile.is_some_and(|it| FOR_NAMES_ALONE.contains(&it))
    };
    let profile = profile_for_addresses(authorities.first()?)?;
    authorities.iter().all(refuses).then(|| {
        (
            format!(
                "Let's Encrypt issues no certificate for the address {address} under the profile \
                 {profile:?}, but under \"shortlived\" alone"
            ),
            "set `address_profile` to \"shortlived\"".to_owned(),
        )
    })
}

/// What is configured for certificates with an address.
fn profile_for_addresses(authority: &CertificateAuthority) -> Option<&str> {
    let own = authority.address_profile.as_deref();
    own.or(authority.profile.as_deref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_the_host_alone() {
        assert!(is_public("https://acme-v02.api.letsencrypt.org/directory"));
        assert!(is_public("https://acme.zerossl.com/v2/other"));
        assert!(is_public("https://acme.sectigo.com/v2/EV"));
        assert!(!is_public(
            "https://acme-v02.api.letsencrypt.org.ca.test/directory"
        ));
        assert!(!is_public("https://127.0.0.1:14000/dir"));
    }

    fn objections_to(acme: &str, host: &str, has_account: bool) -> String {
        let site = format!("[[sites]]\nhosts = [\"{host}\"]\nupstreams = [\"3000\"]\n");
        let config = Config::of_text(&format!("[acme]\n{acme}\n{site}"));
        objections(&config, |_| has_account).to_string()
    }

    #[test]
    fn a_ca_for_customers_alone_wants_an_external_account_or_one_that_is_there() {
        let zerossl = "directory = \"https://acme.zerossl.com/v2/DV90\"";
        let told = objections_to(zerossl, "a.example.com", false);
        assert!(told.starts_with("p.toml:2:13:"), "{told}");
        assert!(told.contains("add external_account"), "{told}");
        assert_eq!(objections_to(zerossl, "a.example.com", true), "");
        let bound = format!(
            "{zerossl}\nexternal_account = {{ kid = \"a\", hmac_key = \"zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W\" }}"
        );
        assert_eq!(objections_to(&bound, "a.example.com", false), "");
        let fallback = format!("[[acme.fallback]]\n{zerossl}");
        let told = objections_to(&fallback, "a.example.com", false);
        assert!(told.starts_with("p.toml:3:13:"), "{told}");
        assert_eq!(objections_to("", "a.example.com", false), "");
        let buypass = "directory = \"https://api.buypass.com/acme/directory\"";
        let told = objections_to(buypass, "a.example.com", true);
        assert!(told.contains("has ended"), "{told}");
    }

    #[test]
    fn addresses_need_a_profile_that_has_them() {
        for (profile, host, refused) in [
            ("classic", "8.8.8.8", true),
            ("tlsserver", "8.8.8.8", true),
            ("shortlived", "8.8.8.8", false),
            ("of-tomorrow", "8.8.8.8", false),
            ("classic", "10.0.0.1", false),
            ("classic", "a.example.com", false),
        ] {
            let profile = format!("profile = \"{profile}\"");
            let told = objections_to(&profile, host, true);
            assert_eq!(!told.is_empty(), refused, "{profile} {host}: {told}");
        }
        assert_eq!(objections_to("", "8.8.8.8", true), "");
        let both = |address: &str| {
            let profiles = format!("profile = \"classic\"\naddress_profile = \"{address}\"");
            objections_to(&profiles, "8.8.8.8", true)
        };
        assert_eq!(both("shortlived"), "");
        assert!(both("tlsserver").contains("the profile \"tlsserver\""));
    }
}
