//! Which certificates the configuration asks for: a pure reading of it.

use super::on_demand_names::OnDemandNames;
use super::renewal::IssuerKind;
use crate::certificate::name::Name;
use crate::config::{CertificateAuthority, CertificatePer, Config, Dns, KeyType, Site, TlsMode};

/// All that the worker is to see to.
#[derive(Clone, Debug)]
pub struct Assignment {
    /// In the order in which they are tried. Never empty.
    pub authorities: Vec<CertificateAuthority>,
    /// How records are written and looked for.
    pub dns: Dns,
    pub subjects: Vec<Subject>,
    /// What may be asked for beside them.
    pub on_demand: OnDemandNames,
}

impl From<&Config> for Assignment {
    fn from(config: &Config) -> Assignment {
        Assignment {
            authorities: config.acme.authorities.clone(),
            dns: config.acme.dns.clone(),
            subjects: subjects(config),
            on_demand: OnDemandNames::from(config),
        }
    }
}

/// One certificate to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// The first of `names`, after which its directory is called.
    pub name: Name,
    pub names: Vec<Name>,
    /// Who issues it where no certificate files are there.
    pub issuer: IssuerKind,
    /// Whether a certificate from files makes it unnecessary.
    pub auto: bool,
    /// Who issues it where certificate files are there and overdue; `None`: files are enough until
    /// they expire.
    pub takeover: Option<IssuerKind>,
    /// Without any files it is not wanted: it only stands in for them.
    pub only_takeover: bool,
    pub key_type: KeyType,
    /// Whether some CA can be shown control over wildcards.
    pub wildcards: bool,
}

impl Subject {
    /// Whether this CA may ever be the issuer.
    pub fn may_be_issued_by(&self, issuer: IssuerKind) -> bool {
        self.issuer == issuer || self.takeover == Some(issuer)
    }

    /// Whether certificates from files change what is to be done about it.
    pub fn depends_on_files(&self) -> bool {
        self.auto || self.takeover.is_some()
    }

    /// Who issues it, given whether there are certificate files for it and who issued what is
    /// stored and valid.
    pub fn issuer_now(&self, files_known: bool, stored: Option<IssuerKind>) -> IssuerKind {
        match self.takeover {
            // What clients trust already is not given up for what they need not trust.
            Some(IssuerKind::Internal)
                if stored == Some(IssuerKind::Acme) && !self.only_takeover =>
            {
                IssuerKind::Acme
            }
            Some(takeover) if files_known || self.only_takeover => takeover,
            _ => self.issuer,
        }
    }

    /// Why this issuer cannot be asked for it at all, if so.
    pub fn refusal(&self, issuer: IssuerKind) -> Option<String> {
        let wildcard = self.names.iter().find(|name| name.is_wildcard())?;
        (issuer == IssuerKind::Acme && !self.wildcards).then(|| {
            format!(
                "{wildcard} cannot be ordered: a wildcard needs the dns-01 challenge; add \
                 [acme.dns], give it certificate files, or list its hosts one by one"
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
    let wildcards = config.acme.authorities.iter().any(can_prove_wildcards);
    config
        .sites
        .iter()
        .flat_map(|site| of_site(site, key_type, wildcards))
        .collect()
}

/// Whether this CA can be shown control over a wildcard.
pub fn can_prove_wildcards(authority: &CertificateAuthority) -> bool {
    let mut challenges = authority.challenges.iter();
    challenges.any(|challenge| challenge.proves_wildcards())
}

fn of_site(site: &Site, key_type: KeyType, wildcards: bool) -> Vec<Subject> {
    if site.on_demand {
        return Vec::new();
    }
    let mut subjects: Vec<Subject> = Vec::new();
    for host in &site.hosts {
        let takeover = site.takeover.map(IssuerKind::from);
        let only_takeover = site.tls == TlsMode::Files;
        let stand_in = takeover.filter(|_| only_takeover);
        let Some(issuer) = issuer(site.tls, host).or(stand_in) else {
            return Vec::new();
        };
        // A wildcard that nobody can order must not keep its site's other names waiting.
        let alone =
            |subject: &Subject| subject.issuer != issuer || subject.refusal(issuer).is_some();
        let subject = Subject {
            name: host.clone(),
            names: vec![host.clone()],
            issuer,
            auto: site.tls == TlsMode::Auto || only_takeover,
            takeover,
            only_takeover,
            key_type,
            wildcards,
        };
        let joins =
            site.certificate_per == CertificatePer::Site && subject.refusal(issuer).is_none();
        match subjects.iter_mut().find(|other| joins && !alone(other)) {
            Some(shared) => shared.names.push(host.clone()),
            None => subjects.push(subject),
        }
    }
    subjects
}

/// The hosts of all sites that are served over TLS.
pub fn tls_hosts(config: &Config) -> impl Iterator<Item = Name> {
    let sites = config.sites.iter().filter(|site| site.tls != TlsMode::Off);
    sites.flat_map(|site| site.hosts.iter().cloned())
}

/// The hosts that are served from files for as long as those are renewed in time.
pub fn takeover_hosts(config: &Config) -> impl Iterator<Item = Name> {
    let sites = config.sites.iter().filter(|site| site.takeover.is_some());
    sites.flat_map(|site| site.hosts.iter().cloned())
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
    use crate::config::Takeover;

    fn site(hosts: &[&str], tls: TlsMode, certificate_per: CertificatePer) -> Site {
        Site {
            hosts: hosts.iter().map(|host| host.parse().unwrap()).collect(),
            tls,
            any_host: false,
            on_demand: false,
            listen: Vec::new(),
            certificate_per,
            client_auth: None,
            takeover: None,
            routes: Vec::new(),
            hsts: None,
            access_log: crate::config::SiteLog::Shared,
            error_pages: crate::config::ErrorPages::default(),
        }
    }

    /// `issuer: name name`, one line per certificate.
    fn shown(site: &Site) -> Vec<String> {
        of_site(site, KeyType::P256, false)
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
            false,
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
    fn a_takeover_changes_the_issuer_only_where_files_are_known() {
        use IssuerKind::{Acme, Internal};
        let of = |tls, takeover| {
            let site = Site {
                takeover: Some(takeover),
                ..site(&["example.com"], tls, CertificatePer::Host)
            };
            of_site(&site, KeyType::P256, false).remove(0)
        };
        let auto = of(TlsMode::Auto, Takeover::Internal);
        assert_eq!(auto.issuer_now(false, None), Acme);
        assert_eq!(auto.issuer_now(true, None), Internal);
        assert_eq!(auto.issuer_now(true, Some(Acme)), Acme);
        assert_eq!(auto.issuer_now(true, Some(Internal)), Internal);
        let files = of(TlsMode::Files, Takeover::Internal);
        assert!(files.auto && files.only_takeover);
        assert_eq!(files.issuer_now(true, None), Internal);
        let acme = of(TlsMode::Files, Takeover::Acme);
        assert_eq!(acme.issuer_now(true, Some(Internal)), Acme);
    }

    #[test]
    fn a_wildcard_of_acme_is_refused_in_words() {
        let refused = of_site(
            &site(&["*.a.test"], TlsMode::Acme, CertificatePer::Host),
            KeyType::P256,
            false,
        );
        let refusal = refused[0].refusal(IssuerKind::Acme).unwrap();
        assert!(
            refusal.contains("*.a.test") && refusal.contains("dns-01"),
            "{refusal}"
        );
        assert!(!refused[0].auto);
        let own = of_site(
            &site(&["*.a.test"], TlsMode::Internal, CertificatePer::Host),
            KeyType::P256,
            false,
        );
        assert_eq!(own[0].refusal(IssuerKind::Internal), None);
    }
}
