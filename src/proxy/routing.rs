//! Which site and which route a request belongs to. A [`Routing`] never changes: a new
//! configuration is a new one.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::host::RequestHost;
use super::upstream::Pool;
use crate::admin::metrics::Metrics;
use crate::certificate::name::Name;
use crate::config::{self, Config, PathPattern, TlsMode};

/// All sites, found by host with one or two hash look-ups, however many there are.
#[derive(Default)]
pub struct Routing {
    exact: HashMap<Box<str>, Arc<Site>>,
    /// By the parent: `example.com` for `*.example.com`.
    wildcard: HashMap<Box<str>, Arc<Site>>,
    addresses: HashMap<IpAddr, Arc<Site>>,
    sites: Vec<Arc<Site>>,
}

/// A site's routes with the state of their upstreams.
pub struct Site {
    /// The first host: what metrics and logs call the site.
    pub label: Arc<str>,
    /// Whether it is served over TLS alone; else over plain HTTP alone.
    pub tls: bool,
    pub routes: Vec<Route>,
}

/// The upstreams for requests whose path matches.
pub struct Route {
    pub path: PathPattern,
    pub pool: Pool,
}

impl Routing {
    /// Looks nothing up and connects to nothing: names are resolved when first needed.
    pub fn new(config: &Config) -> Routing {
        let mut routing = Routing::default();
        for site in &config.sites {
            routing.add(site);
        }
        routing
    }

    /// Makes this routing's upstreams the ones that the metrics show.
    pub fn register(&self, metrics: &Metrics) {
        metrics.forget_upstreams();
        for site in &self.sites {
            for upstream in site.routes.iter().flat_map(|route| route.pool.upstreams()) {
                if upstream.is_dialled() {
                    metrics.upstream_healthy(&site.label, upstream.label(), upstream.is_healthy());
                }
            }
        }
    }

    pub fn sites(&self) -> &[Arc<Site>] {
        &self.sites
    }

    /// The site for `host`: its exact name first, then the wildcard above it.
    pub fn site(&self, host: &RequestHost) -> Option<&Arc<Site>> {
        match host {
            RequestHost::Address(address) => self.addresses.get(address),
            RequestHost::Dns { .. } => {
                let name = host.dns()?;
                self.exact.get(name).or_else(|| {
                    let (_, parent) = name.split_once('.')?;
                    self.wildcard.get(parent)
                })
            }
        }
    }

    fn add(&mut self, site: &config::Site) {
        let shared = Arc::new(Site::new(site));
        for host in &site.hosts {
            let shared = Arc::clone(&shared);
            match host {
                Name::Dns(name) => drop(self.exact.insert(Box::from(&**name), shared)),
                Name::Wildcard(parent) => drop(self.wildcard.insert(Box::from(&**parent), shared)),
                Name::Ip(address) => drop(self.addresses.insert(*address, shared)),
            }
        }
        self.sites.push(shared);
    }
}

impl Site {
    fn new(site: &config::Site) -> Site {
        let label = site.hosts.first().map(Name::to_string).unwrap_or_default();
        let routes = site.routes.iter().map(|route| Route {
            path: route.path.clone(),
            pool: Pool::new(&route.upstreams),
        });
        Site {
            label: label.into(),
            tls: site.tls != TlsMode::Off,
            routes: routes.collect(),
        }
    }

    /// The index of the first route that matches `path`, which is raw and without a query.
    pub fn route(&self, path: &[u8]) -> Option<usize> {
        self.routes
            .iter()
            .position(|route| path_matches(&route.path, path))
    }
}

fn path_matches(pattern: &PathPattern, path: &[u8]) -> bool {
    match pattern {
        PathPattern::Exact(exact) => path == exact.as_bytes(),
        // Also `*`, the target of a server-wide OPTIONS (RFC 9110 section 7.1).
        PathPattern::Prefix(prefix) if prefix == "/" => true,
        PathPattern::Prefix(prefix) => {
            path.starts_with(prefix.as_bytes())
                || prefix.strip_suffix('/').map(str::as_bytes) == Some(path)
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::config::{CertificatePer, Upstream};

    pub fn site(hosts: &[&str], tls: TlsMode, routes: &[(&str, &[Upstream])]) -> config::Site {
        let routes = routes.iter().map(|(path, upstreams)| config::Route {
            path: match path.strip_suffix('*') {
                Some(prefix) => PathPattern::Prefix(prefix.into()),
                None => PathPattern::Exact((*path).into()),
            },
            upstreams: upstreams.to_vec(),
        });
        config::Site {
            hosts: hosts.iter().map(|host| host.parse().unwrap()).collect(),
            tls,
            certificate_per: CertificatePer::Host,
            takeover: None,
            routes: routes.collect(),
        }
    }

    pub fn routing(sites: &[config::Site]) -> Routing {
        let mut routing = Routing::default();
        for site in sites {
            routing.add(site);
        }
        routing
    }

    fn respond() -> Vec<Upstream> {
        vec![Upstream::Respond("hello".into())]
    }

    #[test]
    fn exact_hosts_come_before_wildcards() {
        let any: &[(&str, &[Upstream])] = &[("/*", &respond())];
        let routing = routing(&[
            site(&["*.example.com"], TlsMode::Auto, any),
            site(&["www.example.com", "example.com"], TlsMode::Auto, any),
            site(&["192.0.2.1", "2001:db8::1"], TlsMode::Auto, any),
        ]);
        let found = |host: &str| {
            let host = RequestHost::parse(host.as_bytes()).unwrap();
            routing.site(&host).map(|site| site.label.to_string())
        };
        for (host, label) in [
            ("WWW.example.com:443", Some("www.example.com")),
            ("example.com", Some("www.example.com")),
            ("a.example.com", Some("*.example.com")),
            ("a.b.example.com", None),
            ("com", None),
            ("192.0.2.1", Some("192.0.2.1")),
            ("[2001:db8:0::1]:8443", Some("192.0.2.1")),
            ("192.0.2.2", None),
        ] {
            assert_eq!(found(host).as_deref(), label, "{host}");
        }
    }

    #[test]
    fn the_first_matching_route_wins() {
        let respond = respond();
        let site = Site::new(&site(
            &["example.com"],
            TlsMode::Auto,
            &[
                ("/api/v1", &respond),
                ("/api/*", &respond),
                ("/*", &respond),
            ],
        ));
        for (path, route) in [
            ("/api/v1", 0),
            ("/api/v1/", 1),
            ("/api", 1),
            ("/api/", 1),
            ("/api/x/y", 1),
            ("/apix", 2),
            ("/", 2),
            ("*", 2),
        ] {
            assert_eq!(site.route(path.as_bytes()), Some(route), "{path}");
        }
    }

    #[test]
    fn a_site_need_not_match_every_path() {
        let site = Site::new(&site(&["a.test"], TlsMode::Auto, &[("/api/*", &respond())]));
        assert_eq!(site.route(b"/"), None);
    }
}
