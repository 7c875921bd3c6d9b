//! Which names may have a certificate on demand, and what is then ordered: a pure reading of the
//! configuration.

use std::collections::HashMap;
use std::sync::Arc;

use super::renewal::IssuerKind;
use super::subject::Subject;
use crate::certificate::name::{self, Name};
use crate::config::{Config, KeyType, Permission, Site, TlsMode};

/// The names that sites have on demand. Empty where none has.
#[derive(Clone, Debug, Default)]
pub struct OnDemandNames(Option<Arc<Names>>);

#[derive(Debug)]
struct Names {
    /// Every host of every site, those that are not had on demand included: an exact name hides
    /// the wildcard above it. `None`: not on demand.
    exact: HashMap<Arc<str>, Option<Mode>>,
    wildcard: HashMap<Arc<str>, Option<Mode>>,
    /// Of every other name.
    any: Option<Mode>,
    /// The domains that a name has to be in; `None`: somebody else is asked.
    allowed: Option<Vec<Arc<str>>>,
    key_type: KeyType,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Certificate files for the name make an order unnecessary.
    Auto,
    Acme,
}

impl From<&Config> for OnDemandNames {
    fn from(config: &Config) -> OnDemandNames {
        let Some(on_demand) = &config.acme.on_demand else {
            return OnDemandNames::default();
        };
        let mut names = Names {
            exact: HashMap::new(),
            wildcard: HashMap::new(),
            any: None,
            allowed: match &on_demand.permission {
                Permission::Allow(domains) => Some(domains.clone()),
                Permission::Ask { .. } => None,
            },
            key_type: config
                .acme
                .authorities
                .first()
                .map(|authority| authority.key_type)
                .unwrap_or_default(),
        };
        for site in &config.sites {
            names.add(site);
        }
        OnDemandNames(Some(Arc::new(names)))
    }
}

impl OnDemandNames {
    /// What to order for `name`, if that can be had on demand.
    pub fn subject(&self, name: &Name) -> Option<Subject> {
        let names = self.0.as_ref()?;
        let Name::Dns(dns) = name else {
            return None;
        };
        let mode = names.mode(dns)?;
        let wanted = is_public_name(dns)
            && names.is_allowed(dns)
            && (mode == Mode::Acme || !name.is_private());
        wanted.then(|| Subject {
            name: name.clone(),
            names: vec![name.clone()],
            issuer: IssuerKind::Acme,
            auto: mode == Mode::Auto,
            takeover: None,
            only_takeover: false,
            key_type: names.key_type,
            wildcards: false,
        })
    }

    /// The same for what a client sends as its server name.
    pub fn subject_of(&self, server_name: &str) -> Option<Subject> {
        // Most servers have nothing on demand: their misses shall cost nothing.
        self.0.as_ref()?;
        self.subject(&server_name.parse().ok()?)
    }
}

impl Names {
    fn add(&mut self, site: &Site) {
        let mode = match site.tls {
            _ if !site.on_demand => None,
            TlsMode::Auto => Some(Mode::Auto),
            TlsMode::Acme => Some(Mode::Acme),
            TlsMode::Internal | TlsMode::Files | TlsMode::Off => None,
        };
        for host in &site.hosts {
            match host {
                Name::Dns(name) => drop(self.exact.insert(name.clone(), mode)),
                Name::Wildcard(parent) => drop(self.wildcard.insert(parent.clone(), mode)),
                Name::Ip(_) => {}
            }
        }
        if site.any_host {
            self.any = mode;
        }
    }

    /// By the rules that requests are routed by.
    fn mode(&self, dns: &str) -> Option<Mode> {
        let wildcard = || self.wildcard.get(name::parent(dns)?);
        match self.exact.get(dns).or_else(wildcard) {
            Some(mode) => *mode,
            None => self.any,
        }
    }

    fn is_allowed(&self, dns: &str) -> bool {
        let within = |domain: &Arc<str>| {
            dns.strip_suffix(&**domain)
                .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        self.allowed
            .as_ref()
            .is_none_or(|domains| domains.iter().any(within))
    }
}

/// Whether it is a name as RFC 1123 section 2.1 has them, below some top-level domain; CAs refuse
/// everything else, and a flood of it shall not get that far.
fn is_public_name(dns: &str) -> bool {
    let is_label =
        |label: &str| !label.starts_with('-') && !label.ends_with('-') && !label.contains('_');
    let top = dns.rsplit('.').next().unwrap_or_default();
    dns.contains('.') && dns.split('.').all(is_label) && !top.bytes().all(|b| b.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Environment;

    fn names(acme: &str, sites: &[(&str, &str)]) -> OnDemandNames {
        let site = |(hosts, rest): &(&str, &str)| {
            format!("[[sites]]\nhosts = [{hosts}]\nupstreams = [\"1\"]\n{rest}\n")
        };
        let sites: String = sites.iter().map(site).collect();
        let text = format!("[acme.on_demand]\n{acme}\n{sites}");
        let environment = Environment::of_process(None);
        let config = Config::parse(&text, Path::new("p.toml"), &environment);
        OnDemandNames::from(&config.unwrap_or_else(|found| panic!("{text}\n{found}")))
    }

    #[test]
    fn the_site_that_gets_the_requests_decides() {
        let names = names(
            "ask = \"http://127.0.0.1:1/\"",
            &[
                ("\"*\"", "on_demand = true"),
                ("\"own.example.com\"", ""),
                ("\"*.files.example.com\"", "tls = \"internal\""),
                ("\"in.files.example.com\"", "on_demand = true"),
            ],
        );
        for (name, wanted) in [
            ("shop.customer.com", true),
            ("SHOP.customer.com.", true),
            ("own.example.com", false),
            ("x.files.example.com", false),
            ("in.files.example.com", true),
            ("y.x.files.example.com", true),
            // No names that a CA would issue for.
            ("localhost", false),
            ("host", false),
            ("printer.local", false),
            ("192.0.2.1", false),
            ("2001:db8::1", false),
            ("1.2.3", false),
            ("a_b.example.com", false),
            ("-a.example.com", false),
            ("*.example.com", false),
            ("", false),
            ("a..b", false),
        ] {
            assert_eq!(names.subject_of(name).is_some(), wanted, "{name:?}");
        }
        let subject = names.subject_of("Shop.Customer.com").unwrap();
        assert_eq!(subject.names, ["shop.customer.com".parse().unwrap()]);
        assert!(subject.auto && subject.issuer == IssuerKind::Acme);
    }

    #[test]
    fn a_list_allows_domains_and_what_is_below_them() {
        let names = names(
            "allow = [\"customers.example\", \"b.internal\"]",
            &[("\"*\"", "on_demand = true\ntls = \"acme\"")],
        );
        for (name, wanted) in [
            ("customers.example", true),
            ("a.customers.example", true),
            ("a.b.customers.example", true),
            ("notcustomers.example", false),
            ("example", false),
            ("other.example", false),
            // A CA of one's own may issue for it: the site says so.
            ("a.b.internal", true),
        ] {
            assert_eq!(names.subject_of(name).is_some(), wanted, "{name:?}");
        }
        assert!(!names.subject_of("customers.example").unwrap().auto);
        assert!(OnDemandNames::default().subject_of("a.example").is_none());
    }
}
