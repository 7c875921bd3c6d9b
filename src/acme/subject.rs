//! Which certificates the configuration asks for: a pure reading of it.

use super::renewal::IssuerKind;
use crate::certificate::name::Name;
use crate::config::{CertificatePer, Config, KeyType, Site, TlsMode};

/// One certificate to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// The first of `names`, after which its directory is called.
    pub name: Name,
    pub names: Vec<Name>,
    pub issuer: IssuerKind,
    /// Whether a certificate from files makes it unnecessary.
    pub auto: bool,
    pub key_type: KeyType,
}

impl Subject {
    /// Why no CA can be asked for it at all, if so.
    pub fn refusal(&self) -> Option<String> {
        let wildcard = self.names.iter().find(|name| name.is_wildcard())?;
        (self.issuer == IssuerKind::Acme).then(|| {
            format!(
                "{wildcard} cannot be ordered: a wildcard needs the dns-01 challenge, which this \
                 version does not have; give it certificate files, or list its hosts one by one"
            )
        })
    }
}

/// The certificates of all sites: one per host, or one per site where it says so.
pub fn subjects(config: &Config) -> Vec<Subject> {
    let key_type = config
        .acme
        .authorities
        .first()
        .map(|authority| authority.key_type)
        .unwrap_or_default();
    config
        .sites
        .iter()
        .flat_map(|site| of_site(site, key_type))
        .collect()
}

fn of_site(site: &Site, key_type: KeyType) -> Vec<Subject> {
    let mut subjects: Vec<Subject> = Vec::new();
    for host in &site.hosts {
        let Some(issuer) = issuer(site.tls, host) else {
            return Vec::new();
        };
        // A wildcard that nobody can order must not keep its site's other names waiting.
        let alone = |subject: &Subject| subject.issuer != issuer || subject.refusal().is_some();
        let subject = Subject {
            name: host.clone(),
            names: vec![host.clone()],
            issuer,
            auto: site.tls == TlsMode::Auto,
            key_type,
        };
        let joins = site.certificate_per == CertificatePer::Site && subject.refusal().is_none();
        match subjects.iter_mut().find(|other| joins && !alone(other)) {
            Some(shared) => shared.names.push(host.clone()),
            None => subjects.push(subject),
        }
    }
    subjects
}

/// Who issues for a host; `None`: nobody is asked.
fn issuer(tls: TlsMode, host: &Name) -> Option<IssuerKind> {
    match tls {
        TlsMode::Files | TlsMode::Off => None,
        TlsMode::Internal => Some(IssuerKind::Internal),
        TlsMode::Acme => Some(IssuerKind::Acme),
        TlsMode::Auto if host.is_private() => Some(IssuerKind::Internal),
        TlsMode::Auto => Some(IssuerKind::Acme),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site(hosts: &[&str], tls: TlsMode, certificate_per: CertificatePer) -> Site {
        Site {
            hosts: hosts.iter().map(|host| host.parse().unwrap()).collect(),
            tls,
            certificate_per,
            client_auth: None,
            routes: Vec::new(),
        }
    }

    /// `issuer: name name`, one line per certificate.
    fn shown(site: &Site) -> Vec<String> {
        of_site(site, KeyType::P256)
            .iter()
            .map(|subject| format!("{:?}: {:?}", subject.issuer, subject.names))
            .collect()
    }

    #[test]
    fn one_per_host() {
        let hosts = ["example.com", "www.example.com", "localhost", "10.0.0.1"];
        assert_eq!(
            shown(&site(&hosts, TlsMode::Auto, CertificatePer::Host)),
            [
                "Acme: [example.com]",
                "Acme: [www.example.com]",
                "Internal: [localhost]",
                "Internal: [10.0.0.1]"
            ]
        );
        let all = of_site(
            &site(&hosts, TlsMode::Auto, CertificatePer::Host),
            KeyType::P384,
        );
        assert!(
            all.iter()
                .all(|subject| subject.auto && subject.key_type == KeyType::P384)
        );
    }

    #[test]
    fn one_per_site_and_issuer_and_wildcards_apart() {
        let hosts = [
            "example.com",
            "*.example.com",
            "localhost",
            "www.example.com",
            "a.localhost",
        ];
        assert_eq!(
            shown(&site(&hosts, TlsMode::Auto, CertificatePer::Site)),
            [
                "Acme: [example.com, www.example.com]",
                "Acme: [*.example.com]",
                "Internal: [localhost, a.localhost]"
            ]
        );
        assert_eq!(
            shown(&site(
                &["a.test", "*.a.test"],
                TlsMode::Internal,
                CertificatePer::Site
            )),
            ["Internal: [a.test, *.a.test]"]
        );
    }

    #[test]
    fn files_and_off_ask_nobody() {
        for tls in [TlsMode::Files, TlsMode::Off] {
            assert!(shown(&site(&["example.com"], tls, CertificatePer::Host)).is_empty());
        }
    }

    #[test]
    fn a_wildcard_of_acme_is_refused_in_words() {
        let refused = of_site(
            &site(&["*.a.test"], TlsMode::Acme, CertificatePer::Host),
            KeyType::P256,
        );
        let refusal = refused[0].refusal().unwrap();
        assert!(
            refusal.contains("*.a.test") && refusal.contains("dns-01"),
            "{refusal}"
        );
        assert!(!refused[0].auto);
        let own = of_site(
            &site(&["*.a.test"], TlsMode::Internal, CertificatePer::Host),
            KeyType::P256,
        );
        assert_eq!(own[0].refusal(), None);
    }
}
