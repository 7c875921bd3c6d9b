//! Which site and which route a request belongs to. A [`Routing`] never changes: a new
//! configuration is a new one.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use foldhash::fast::RandomState;
use http::{Method, StatusCode};

use super::access::Guard;
use super::changes::Changes;
use super::dns::Dns;
use super::files::Folder;
use super::host::RequestHost;
use super::upstream::check::HealthChecks;
use super::upstream::{Pool, Services};
use super::upstream_tls::UpstreamTrusts;
use crate::admin::metrics::Metrics;
use crate::certificate::name::Name;
use crate::certificate::table::{LiveCertificate, SourceKind};
use crate::config::{
    self, Action, ClientAuth, Coding, Config, ErrorPages, FieldCondition, Forwarded, IdleTimeouts,
    IpPrefix, ListenAddress, MinRates, PathPattern, ProxyProtocol, SiteLog, Template, TlsMode,
};
use crate::listener::TlsInfo;
use crate::message::RequestHead;

/// Sites by name, in lower case. The hash need not be one that a client cannot aim at: names come from
/// the configuration, and a client's are looked for among them and never added.
type ByName = HashMap<Box<[u8]>, Arc<Site>, RandomState>;

/// All sites, found by host with one or two hash look-ups, however many there are.
#[derive(Default)]
pub struct Routing {
    /// On the server's listeners.
    shared: Hosts,
    /// On listeners of their own.
    own: HashMap<ListenAddress, Hosts>,
    sites: Vec<Arc<Site>>,
    dns: Dns,
    /// Of connections, which belong to no site.
    pub idle_timeouts: IdleTimeouts,
}

/// The sites of some listeners.
#[derive(Default)]
struct Hosts {
    exact: ByName,
    /// By the parent: `example.com` for `*.example.com`.
    wildcard: ByName,
    addresses: HashMap<IpAddr, Arc<Site>>,
    /// For every other name.
    any: Option<Arc<Site>>,
    /// For every other address: none is had on demand.
    any_address: Option<Arc<Site>>,
}

/// A site's routes with the state of their upstreams.
pub struct Site {
    /// The first host: what metrics and logs call the site.
    pub label: Arc<str>,
    /// Whether it is served over TLS alone; else over plain HTTP alone.
    pub tls: bool,
    /// What clients have to show before they may ask for it.
    pub client_auth: Option<ClientAuth>,
    pub routes: Vec<Route>,
    pub error_pages: ErrorPages,
    /// Where the lines of its requests go.
    pub access_log: SiteLog,
    hsts: Option<Hsts>,
    pub settings: Arc<Settings>,
}

/// `Strict-Transport-Security` of a site.
struct Hsts {
    value: Box<str>,
    /// Whether it is for certificates of the internal CA, too, which browsers need not trust.
    internal: bool,
}

/// What is the same for all sites.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    pub trusted_proxies: Vec<IpPrefix>,
    pub forwarded: Forwarded,
    /// The field with the identifier that each request gets.
    pub request_id: Option<Box<str>>,
    resolvers: Vec<SocketAddr>,
    pub min_rates: MinRates,
}

impl Settings {
    fn of(config: &Config) -> Settings {
        let server = &config.server;
        Settings {
            trusted_proxies: server.trusted_proxies.clone(),
            forwarded: server.forwarded,
            request_id: server.request_id.clone(),
            resolvers: server.resolvers.clone(),
            min_rates: server.min_rates,
        }
    }
}

/// What happens to the requests that match.
pub struct Route {
    path: PathPattern,
    methods: Vec<Method>,
    conditions: Vec<FieldCondition>,
    /// Empty where there is an `answer`, or files are.
    pub pool: Pool,
    pub answer: Option<FixedAnswer>,
    /// Whose files are the answers.
    pub files: Option<Folder>,
    /// In which codings bodies are sent that are in none, the best first.
    pub compress: Box<[Coding]>,
    pub changes: Option<Box<Changes>>,
    pub guard: Option<Box<Guard>>,
    /// How connections to its upstreams begin, if they say who the client is.
    pub proxy_protocol: Option<ProxyProtocol>,
}

/// An answer of ours that the configuration wants.
pub enum FixedAnswer {
    Redirect {
        status: StatusCode,
        location: Template,
    },
    Respond {
        status: StatusCode,
        body: Bytes,
    },
}

impl Routing {
    /// Looks nothing up and connects to nothing: names are resolved when first needed. Health checks
    /// begin; they need a runtime.
    pub fn new(config: &Config, trusts: &UpstreamTrusts, checks: &HealthChecks) -> Routing {
        let services = Services {
            checks: checks.clone(),
            dns: Dns::new(&config.server.resolvers),
        };
        let settings = Arc::new(Settings::of(config));
        let mut routing = Routing {
            dns: services.dns.clone(),
            idle_timeouts: config.server.idle_timeouts,
            ..Routing::default()
        };
        for site in &config.sites {
            routing.add(site, trusts, &services, &settings);
        }
        routing
    }

    /// The routing for `config`, which follows `old` made from `old_config`: a site that is the
    /// same in both keeps whose turn it is and what is known of its upstreams.
    pub fn following(
        config: &Config,
        old: &Routing,
        old_config: &Config,
        trusts: &UpstreamTrusts,
        checks: &HealthChecks,
    ) -> Routing {
        let settings = Settings::of(config);
        if settings != Settings::of(old_config) {
            return Routing::new(config, trusts, checks);
        }
        let settings = Arc::new(settings);
        let known = old_config.sites.iter().zip(&old.sites);
        // One site at most has no host but `*`.
        let known: HashMap<Option<&Name>, (&config::Site, &Arc<Site>)> = known
            .map(|(site, shared)| (site.hosts.first(), (site, shared)))
            .collect();
        let services = Services {
            checks: checks.clone(),
            dns: old.dns.clone(),
        };
        let mut routing = Routing {
            dns: old.dns.clone(),
            idle_timeouts: config.server.idle_timeouts,
            ..Routing::default()
        };
        for site in &config.sites {
            let same = known.get(&site.hosts.first());
            let same = same.filter(|(old, _)| *old == site);
            match same {
                Some((_, shared)) => routing.share(site, Arc::clone(shared)),
                None => routing.add(site, trusts, &services, &settings),
            }
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
            let pools = site.routes.iter().map(|route| &route.pool);
            let waiting: usize = pools.map(Pool::waiting).sum();
            metrics.upstream_pending(&site.label, waiting);
        }
    }

    pub fn sites(&self) -> &[Arc<Site>] {
        &self.sites
    }

    /// The site for `host`: its exact name first, then the wildcard above it, then the one for
    /// any name.
    /// `scope` is the listener, if it is one for some sites alone.
    pub fn site(&self, host: &RequestHost, scope: Option<&ListenAddress>) -> Option<&Arc<Site>> {
        match scope {
            None => self.shared.site(host),
            Some(scope) => self.own.get(scope)?.site(host),
        }
    }

    fn add(
        &mut self,
        site: &config::Site,
        trusts: &UpstreamTrusts,
        services: &Services,
        settings: &Arc<Settings>,
    ) {
        let shared = Site::new(site, trusts, services, settings.clone());
        self.share(site, Arc::new(shared));
    }

    fn share(&mut self, site: &config::Site, shared: Arc<Site>) {
        if site.listen.is_empty() {
            self.shared.add(site, &shared);
        }
        for address in &site.listen {
            let own = self.own.entry(address.clone()).or_default();
            own.add(site, &shared);
        }
        self.sites.push(shared);
    }
}

impl Hosts {
    fn site(&self, host: &RequestHost) -> Option<&Arc<Site>> {
        match host {
            RequestHost::Address(address) => {
                let found = self.addresses.get(address);
                found.or(self.any_address.as_ref())
            }
            RequestHost::Dns { .. } => {
                let name = host.dns_bytes()?;
                let wildcard = || {
                    let dot = name.iter().position(|&byte| byte == b'.')?;
                    self.wildcard.get(&name[dot + 1..])
                };
                let found = self.exact.get(name).or_else(wildcard);
                found.or(self.any.as_ref())
            }
        }
    }

    fn add(&mut self, site: &config::Site, shared: &Arc<Site>) {
        for host in &site.hosts {
            let shared = Arc::clone(shared);
            match host {
                Name::Dns(name) => drop(self.exact.insert(name.as_bytes().into(), shared)),
                Name::Wildcard(parent) => {
                    drop(self.wildcard.insert(parent.as_bytes().into(), shared))
                }
                Name::Ip(address) => drop(self.addresses.insert(*address, shared)),
            }
        }
        if site.any_host {
            self.any = Some(Arc::clone(shared));
            self.any_address = (!site.on_demand).then(|| Arc::clone(shared));
        }
    }
}

impl Site {
    fn new(
        site: &config::Site,
        trusts: &UpstreamTrusts,
        services: &Services,
        settings: Arc<Settings>,
    ) -> Site {
        let label = site.hosts.first().map(Name::to_string);
        let label = label.unwrap_or_else(|| "*".to_owned());
        let routes = site.routes.iter();
        let routes = routes.map(|route| Route::new(route, trusts, services));
        Site {
            label: label.into(),
            tls: site.tls != TlsMode::Off,
            client_auth: site.client_auth.clone(),
            routes: routes.collect(),
            error_pages: site.error_pages.clone(),
            access_log: site.access_log.clone(),
            hsts: site.hsts.as_ref().map(|hsts| Hsts {
                value: hsts.value.clone(),
                internal: site.tls != TlsMode::Auto,
            }),
            settings,
        }
    }

    /// The index of the first route that a request is for. `path` is in its normal form.
    pub fn route(&self, request: &RequestHead, path: &[u8]) -> Option<usize> {
        let mut routes = self.routes.iter();
        routes.position(|route| route.is_for(request, path))
    }

    /// The methods of the routes that a request would be for with another method, as `Allow` lists
    /// them. `None`: there is no such route.
    pub fn allowed(&self, request: &RequestHead, path: &[u8]) -> Option<Box<str>> {
        let mut methods: Vec<&str> = Vec::new();
        for route in &self.routes {
            for method in &route.methods {
                let known = methods.contains(&method.as_str());
                if !known && route.is_for_any_method(request, path) {
                    methods.push(method.as_str());
                }
            }
        }
        if methods.contains(&"GET") && !methods.contains(&"HEAD") {
            methods.push("HEAD");
        }
        (!methods.is_empty()).then(|| methods.join(", ").into())
    }

    /// What to tell the client about TLS, on a connection with this certificate.
    pub fn hsts(&self, tls: Option<&TlsInfo>) -> Option<&str> {
        let hsts = self.hsts.as_ref()?;
        let is_public = |served: &Arc<LiveCertificate>| served.source != SourceKind::Internal;
        let served = tls?.served.as_ref();
        (hsts.internal || served.is_some_and(is_public)).then_some(&*hsts.value)
    }
}

impl Route {
    fn new(route: &config::Route, trusts: &UpstreamTrusts, services: &Services) -> Route {
        let trust = route.upstream_tls().and_then(|tls| trusts.get(tls));
        let answer = match &route.action {
            Action::Forward(_) | Action::Files(_) => None,
            Action::Redirect { status, location } => Some(FixedAnswer::Redirect {
                status: *status,
                location: location.clone(),
            }),
            Action::Respond { status, body } => Some(FixedAnswer::Respond {
                status: *status,
                body: Bytes::copy_from_slice(body.as_bytes()),
            }),
        };
        let files = match &route.action {
            Action::Files(files) => Some(Folder::new(files)),
            _ => None,
        };
        Route {
            path: route.path.clone(),
            methods: route.methods.clone(),
            conditions: route.conditions.clone(),
            pool: match route.forward() {
                Some(forward) => Pool::new(forward, trust.as_ref(), services),
                None => Pool::none(),
            },
            answer,
            files,
            compress: route.compress.clone().into(),
            changes: Changes::of(route),
            guard: Guard::of(&route.access, trusts),
            proxy_protocol: route.proxy_protocol,
        }
    }

    fn is_for(&self, request: &RequestHead, path: &[u8]) -> bool {
        let allowed = |method: &Method| {
            *method == request.method || (*method == Method::GET && request.method == Method::HEAD)
        };
        (self.methods.is_empty() || self.methods.iter().any(allowed))
            && self.is_for_any_method(request, path)
    }

    fn is_for_any_method(&self, request: &RequestHead, path: &[u8]) -> bool {
        let holds = |condition: &FieldCondition| {
            let mut values = request.fields.named(&condition.name);
            values.any(|value| condition.value.matches(value))
        };
        self.path.matches(path) && self.conditions.iter().all(holds)
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
            methods: Vec::new(),
            conditions: Vec::new(),
            strip_prefix: None,
            rewrite: None,
            request_fields: config::FieldRules::default(),
            response_fields: config::FieldRules::default(),
            access: config::Access::default(),
            proxy_protocol: None,
            compress: Vec::new(),
            action: Action::Forward(Box::new(config::Forward {
                members: upstreams
                    .iter()
                    .cloned()
                    .map(config::Member::from)
                    .collect(),
                upstream_tls: None,
                settings: config::PoolSettings::default(),
            })),
        });
        config::Site {
            hosts: hosts.iter().map(|host| host.parse().unwrap()).collect(),
            tls,
            listen: Vec::new(),
            any_host: false,
            on_demand: false,
            certificate_per: CertificatePer::Host,
            client_auth: None,
            takeover: None,
            routes: routes.collect(),
            hsts: None,
            error_pages: ErrorPages::default(),
            access_log: SiteLog::Shared,
        }
    }

    pub fn routing(sites: &[config::Site]) -> Routing {
        let mut routing = Routing::default();
        for site in sites {
            routing.add(
                site,
                &UpstreamTrusts::default(),
                &Services::default(),
                &Arc::default(),
            );
        }
        routing
    }

    fn respond() -> Vec<Upstream> {
        vec![Upstream::Respond("hello".into())]
    }

    #[test]
    fn a_site_that_stays_the_same_keeps_its_state() {
        let parse = |text: &str| {
            let environment = config::Environment::of_process(None);
            Config::parse(text, std::path::Path::new("p.toml"), &environment).unwrap()
        };
        let site = |host: &str, port: u16| {
            format!("[[sites]]\nhosts = [\"{host}\"]\nupstreams = [\"{port}\"]\n")
        };
        let old_config = parse(&[site("a.test", 1), site("b.test", 2)].concat());
        let trusts = UpstreamTrusts::default();
        let checks = HealthChecks::default();
        let old = Routing::new(&old_config, &trusts, &checks);
        let config = parse(&[site("c.test", 1), site("b.test", 3), site("a.test", 1)].concat());
        let new = Routing::following(&config, &old, &old_config, &trusts, &checks);
        let find = |routing: &Routing, host: &str| {
            let host = RequestHost::parse(host.as_bytes()).unwrap();
            routing.site(&host, None).cloned()
        };
        let kept = |host| Arc::ptr_eq(&find(&old, host).unwrap(), &find(&new, host).unwrap());
        assert!(kept("a.test"));
        assert!(!kept("b.test"));
        assert!(find(&new, "c.test").is_some());
        assert_eq!(new.sites().len(), 3);
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
            routing.site(&host, None).map(|site| site.label.to_string())
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
        let site = site(
            &["example.com"],
            TlsMode::Auto,
            &[
                ("/api/v1", &respond),
                ("/api/*", &respond),
                ("/*", &respond),
            ],
        );
        let site = Site::new(
            &site,
            &UpstreamTrusts::default(),
            &Services::default(),
            Arc::default(),
        );
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
            let request = RequestHead::default();
            assert_eq!(site.route(&request, path.as_bytes()), Some(route), "{path}");
        }
    }

    #[test]
    fn where_the_method_alone_does_not_fit_the_others_are_named() {
        let mut site = site(
            &["a.test"],
            TlsMode::Auto,
            &[("/a", &respond()), ("/a", &respond()), ("/b", &respond())],
        );
        site.routes[0].methods = vec![Method::GET];
        site.routes[1].methods = vec![Method::POST, Method::GET];
        site.routes[2].methods = vec![Method::PUT];
        let site = Site::new(
            &site,
            &UpstreamTrusts::default(),
            &Services::default(),
            Arc::default(),
        );
        let mut request = RequestHead::default();
        request.method = Method::DELETE;
        assert_eq!(site.route(&request, b"/a"), None);
        let allowed = |path: &[u8]| site.allowed(&request, path);
        assert_eq!(allowed(b"/a").as_deref(), Some("GET, POST, HEAD"));
        assert_eq!(allowed(b"/b").as_deref(), Some("PUT"));
        assert_eq!(allowed(b"/c"), None);
    }

    #[test]
    fn a_site_need_not_match_every_path() {
        let site = site(&["a.test"], TlsMode::Auto, &[("/api/*", &respond())]);
        let site = Site::new(
            &site,
            &UpstreamTrusts::default(),
            &Services::default(),
            Arc::default(),
        );
        assert_eq!(site.route(&RequestHead::default(), b"/"), None);
    }
}
