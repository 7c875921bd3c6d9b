//! A [`Draft`] -> a [`Config`]: defaults are filled in, and what does not fit together is
//! reported. Nothing here knows how the values were written.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::access::AccessDraft;
use super::access_log::{AccessLogDraft, access_log};
use super::ca_references::CaReferences;
use super::diagnostic::{Located, Problem, Report};
use super::draft::{
    ActionDraft, CertificateFilesDraft, CertificatesDraft, Draft, Listen, RouteDraft, ServerDraft,
    SiteDraft,
};
use super::environment::DefaultStateDir;
use super::file_check::{FilePurpose, FileReference};
use super::listen::overlap;
use super::{
    Access, Action, AdminListen, CertificateFiles, Certificates, ChallengeType, Coding, Config,
    FieldRules, Forward, ListenAddress, PathPattern, PoolSettings, ProxyProtocol, Route, Server,
    Site, Takeover, TlsMode, UpstreamTls,
};
use super::{acme_options, fields, on_demand, pool, tls_options};
use crate::certificate::name::Name;

const DEFAULT_HTTP: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 80);
const DEFAULT_HTTPS: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 443);
const DEFAULT_ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 2019);
const DEFAULT_GRACE_PERIOD: Duration = Duration::from_secs(30);
const DEFAULT_POLL_INTERVAL: Duration = Duration::from_secs(5);

/// Makes the configuration whole. It is one to use only if `report` stays empty.
pub(super) fn assemble(
    draft: Draft,
    default_state_dir: DefaultStateDir,
    report: &Report<'_>,
) -> Config {
    check_listen_addresses(&draft, report);
    check_listeners_suffice(&draft, report);
    check_certificate_sources(&draft.certificates, report);
    check_hosts_unique(&draft.sites, report);
    acme_options::check(&draft, report);
    on_demand::check(&draft, report);
    let wildcards = acme_options::can_order_wildcards(&draft);
    for site in &draft.sites {
        check_tls(site, draft.certificates.has_sources, wildcards, report);
        check_site_takeover(site, &draft.certificates, wildcards, report);
        acme_options::check_addresses(site, &draft, report);
        acme_options::check_providers(site, &draft, report);
        check_routes(site, report);
        pool::check(site, report);
        check_proxy_protocol(site, report);
    }
    tls_options::check(&draft, report);
    check_takeover(&draft.certificates, report);
    let file_references = file_references(&draft, report);
    let ca_references = CaReferences::of(&draft, report);
    let takeover = default_takeover(&draft.certificates);
    Config {
        path: draft.path,
        account_references: draft.server.accounts.clone(),
        server: server(draft.server, default_state_dir),
        certificates: certificates(draft.certificates),
        tls: tls_options::tls(draft.tls),
        acme: acme_options::acme(
            draft.acme,
            draft.fallbacks,
            draft.dns,
            draft.on_demand,
            &report.source,
        ),
        access_log: access_log(draft.access_log),
        sites: draft
            .sites
            .into_iter()
            .map(|draft| site(draft, takeover))
            .collect(),
        file_references,
        ca_references,
    }
}

fn server(draft: ServerDraft, default_state_dir: DefaultStateDir) -> Server {
    let (state_dir, state_dir_note) = match draft.state_dir {
        Some(path) => (path, None),
        None => (default_state_dir.path, default_state_dir.note),
    };
    Server {
        http_listen: addresses(draft.http_listen, DEFAULT_HTTP),
        https_listen: addresses(draft.https_listen, DEFAULT_HTTPS),
        socket_file: draft.socket_file,
        admin_listen: draft
            .admin_listen
            .map_or(AdminListen::Tcp(DEFAULT_ADMIN), |admin| admin.value),
        state_dir,
        state_dir_note,
        threads: draft.threads.unwrap_or(0),
        grace_period: draft.grace_period.unwrap_or(DEFAULT_GRACE_PERIOD),
        trusted_proxies: draft.trusted_proxies,
        proxy_protocol_from: draft.proxy_protocol_from,
        max_connections: draft.max_connections,
        max_connections_per_client: draft.max_connections_per_client,
        min_rates: draft.min_rates,
        idle_timeouts: draft.idle_timeouts,
        forwarded: draft.forwarded.unwrap_or_default(),
        request_id: draft.request_id,
        resolvers: draft.resolvers,
        log_level: draft.log_level.unwrap_or_default(),
    }
}

fn addresses(listen: Listen, default: SocketAddr) -> Vec<ListenAddress> {
    match listen {
        Listen::Default => vec![ListenAddress::Tcp(default)],
        Listen::Nowhere(_) => Vec::new(),
        Listen::On(addresses) => addresses.into_iter().map(|one| one.value).collect(),
    }
}

fn certificates(draft: CertificatesDraft) -> Certificates {
    let takeover = default_takeover(&draft);
    let files = draft.files.into_iter().map(|files| CertificateFiles {
        private_key: files
            .private_key
            .map_or_else(|| files.certificate.value.clone(), |key| key.value),
        certificate: files.certificate.value,
        password_file: files.password_file.map(|path| path.value),
    });
    Certificates {
        directories: draft.directories.into_iter().map(|one| one.value).collect(),
        poll_interval: draft.poll_interval.unwrap_or(DEFAULT_POLL_INTERVAL),
        watch: draft.watch.unwrap_or(true),
        takeover,
        default: draft.default,
        files: files.collect(),
    }
}

fn site(draft: SiteDraft, default_takeover: Option<Takeover>) -> Site {
    let takeover = site_takeover(&draft, default_takeover);
    let on_demand = draft.on_demand_at().is_some();
    let site_tls = draft
        .upstream_tls
        .map(|tls| tls_options::upstream(tls.value));
    let response_fields = match draft.security_headers {
        true => fields::security().then(draft.response_fields),
        false => draft.response_fields,
    };
    let site_wide = SiteWide {
        proxy_protocol: draft.proxy_protocol.and_then(|version| version.value),
        upstream_tls: site_tls,
        request_fields: draft.request_fields,
        response_fields,
        access: draft.access.over(&Access::default()),
        pool: draft.pool.over(&PoolSettings::default()),
        compress: draft.compress.unwrap_or_default(),
    };
    let own = draft.action.map(|action| {
        let path = Located {
            value: everything(),
            at: 0,
        };
        RouteDraft::new(path, action)
    });
    let routes = draft.routes.into_iter().chain(own);
    let mut routes: Vec<Route> = routes.filter_map(|route| site_wide.route(route)).collect();
    routes.sort_by_key(Route::specificity);
    Site {
        on_demand,
        any_host: draft.any_host.is_some(),
        hosts: draft.hosts.into_iter().map(|host| host.value).collect(),
        tls: draft.tls.map(|tls| tls.value).unwrap_or_default(),
        listen: draft
            .listen
            .into_iter()
            .flatten()
            .map(|one| one.value)
            .collect(),
        certificate_per: draft.certificate_per,
        client_auth: draft
            .client_auth
            .and_then(|auth| tls_options::client_auth(auth.value)),
        takeover,
        routes,
        hsts: draft.hsts.map(|hsts| hsts.value),
        access_log: draft.access_log.map(|log| log.value).unwrap_or_default(),
        error_pages: draft.error_pages,
    }
}

/// What a site says for all its routes.
struct SiteWide {
    proxy_protocol: Option<ProxyProtocol>,
    upstream_tls: Option<UpstreamTls>,
    request_fields: FieldRules,
    response_fields: FieldRules,
    access: Access,
    pool: PoolSettings,
    compress: Vec<Coding>,
}

impl SiteWide {
    /// Nothing where it is not said what happens, which is reported.
    fn route(&self, draft: RouteDraft) -> Option<Route> {
        let own_tls = draft
            .upstream_tls
            .map(|own| tls_options::upstream(own.value));
        let action = match draft.action? {
            ActionDraft::Forward(members) => Action::Forward(Box::new(Forward {
                members,
                upstream_tls: own_tls.or_else(|| self.upstream_tls.clone()),
                settings: draft.pool.over(&self.pool),
            })),
            ActionDraft::Redirect { status, location } => Action::Redirect { status, location },
            ActionDraft::Respond { status, body } => Action::Respond { status, body },
            ActionDraft::Files { files, .. } => Action::Files(files),
        };
        Some(Route {
            path: draft.path.value,
            methods: draft.methods,
            conditions: draft.conditions,
            strip_prefix: draft.strip_prefix.map(|prefix| prefix.value),
            rewrite: draft.rewrite,
            request_fields: self.request_fields.then(draft.request_fields),
            response_fields: self.response_fields.then(draft.response_fields),
            access: draft.access.over(&self.access),
            proxy_protocol: match draft.proxy_protocol {
                Some(own) => own.value,
                None => self.proxy_protocol,
            },
            compress: draft.compress.unwrap_or_else(|| self.compress.clone()),
            action,
        })
    }
}

fn everything() -> PathPattern {
    PathPattern::Prefix("/".to_owned())
}

/// One wish to listen. Without a place it is a default.
struct Claim {
    key: &'static str,
    address: ListenAddress,
    at: Option<usize>,
    /// Of a site that shares it with sites that say the same; whether it has TLS.
    site: Option<bool>,
}

fn site_claims(site: &SiteDraft) -> impl Iterator<Item = Claim> {
    let has_tls = mode(site) != Some(TlsMode::Off);
    site.listen.iter().flatten().map(move |one| Claim {
        key: "listen",
        address: one.value.clone(),
        at: Some(one.at),
        site: Some(has_tls),
    })
}

/// Sites may share an address if they speak the same there.
fn may_share(one: &Claim, other: &Claim) -> bool {
    one.site.is_some() && one.site == other.site && one.address == other.address
}

fn claims(key: &'static str, listen: &Listen, default: SocketAddr) -> Vec<Claim> {
    let claim = |address, at| Claim {
        key,
        address,
        at,
        site: None,
    };
    match listen {
        Listen::Default => vec![claim(ListenAddress::Tcp(default), None)],
        Listen::Nowhere(_) => Vec::new(),
        Listen::On(addresses) => addresses
            .iter()
            .map(|one| claim(one.value.clone(), Some(one.at)))
            .collect(),
    }
}

fn check_listen_addresses(draft: &Draft, report: &Report<'_>) {
    let server = &draft.server;
    let mut all = claims("http_listen", &server.http_listen, DEFAULT_HTTP);
    all.extend(claims("https_listen", &server.https_listen, DEFAULT_HTTPS));
    let admin = match &server.admin_listen {
        None => Some((ListenAddress::Tcp(DEFAULT_ADMIN), None)),
        Some(Located { value, at }) => value.address().map(|address| (address, Some(*at))),
    };
    all.extend(admin.map(|(address, at)| Claim {
        key: "admin_listen",
        address,
        at,
        site: None,
    }));
    all.extend(draft.sites.iter().flat_map(site_claims));
    for (i, claim) in all.iter().enumerate() {
        let mut earlier = all[..i].iter();
        let overlaps =
            |other: &&Claim| overlap(&other.address, &claim.address) && !may_share(other, claim);
        if let Some(other) = earlier.find(overlaps) {
            report_overlap(claim, other, report);
        }
    }
}

fn report_overlap(claim: &Claim, other: &Claim, report: &Report<'_>) {
    // The defaults do not overlap, so at least one of the two was written.
    let (written, at, other) = match (claim.at, other.at) {
        (Some(at), _) => (claim, at, other),
        (None, Some(at)) => (other, at, claim),
        (None, None) => return,
    };
    let whence = match other.at {
        Some(at) => report.source.reference(at),
        None => "its default".to_owned(),
    };
    let problem = Problem::new(format!(
        "`{}` {:?} overlaps `{}` {:?} ({whence})",
        written.key,
        written.address.to_string(),
        other.key,
        other.address.to_string(),
    ));
    report.add(
        at,
        problem.help("give each of them an address or a port of its own"),
    );
}

/// A key that switches a listener off must not take away what a site lives on.
fn check_listeners_suffice(draft: &Draft, report: &Report<'_>) {
    let shared = draft.sites.iter().filter(|site| site.listen.is_none());
    let mut modes = shared.filter_map(mode);
    if let Listen::Nowhere(at) = draft.server.https_listen
        && modes.clone().any(|mode| mode != TlsMode::Off)
    {
        let problem = Problem::new("`https_listen` is empty, but there are sites that need HTTPS");
        report.add(
            at,
            problem.help("leave the key out, or set tls = \"off\" in every site"),
        );
    }
    let Listen::Nowhere(at) = draft.server.http_listen else {
        return;
    };
    if modes.any(|mode| mode == TlsMode::Off) {
        let problem =
            Problem::new("`http_listen` is empty, but there are sites with tls = \"off\"");
        report.add(at, problem.help("leave the key out, or give it an address"));
    }
    let only_http01 = draft.acme.challenges.as_ref().is_some_and(|challenges| {
        challenges
            .iter()
            .all(|one| one.value == ChallengeType::Http01)
    });
    if only_http01
        && draft
            .sites
            .iter()
            .any(|site| may_order(site, default_takeover(&draft.certificates)))
    {
        let problem = Problem::new("`http_listen` is empty, but http-01 is the only challenge");
        report.add(
            at,
            problem.help("give it an address, or allow the challenge tls-alpn-01"),
        );
    }
}

/// Whether certificates for the site may be ordered from an ACME CA.
fn may_order(site: &SiteDraft, default_takeover: Option<Takeover>) -> bool {
    if site_takeover(site, default_takeover) == Some(Takeover::Acme) {
        return true;
    }
    match mode(site) {
        Some(TlsMode::Acme) => true,
        Some(TlsMode::Auto) => {
            site.any_host.is_some() || site.hosts.iter().any(|host| !host.value.is_private())
        }
        Some(TlsMode::Internal | TlsMode::Files | TlsMode::Off) | None => false,
    }
}

fn default_takeover(certificates: &CertificatesDraft) -> Option<Takeover> {
    certificates.takeover.as_ref()?.value
}

/// Only a site that is served from files can have its files taken over.
fn site_takeover(site: &SiteDraft, default: Option<Takeover>) -> Option<Takeover> {
    if site.on_demand_at().is_some() {
        return None;
    }
    match mode(site)? {
        TlsMode::Auto | TlsMode::Files => match &site.takeover {
            Some(takeover) => takeover.value,
            None => default,
        },
        TlsMode::Acme | TlsMode::Internal | TlsMode::Off => None,
    }
}

fn check_takeover(certificates: &CertificatesDraft, report: &Report<'_>) {
    if let Some(takeover) = &certificates.takeover
        && takeover.value.is_some()
        && !certificates.has_sources
    {
        let problem = Problem::new("`takeover` is set, but no certificate files are configured");
        report.add(
            takeover.at,
            problem.help("add `directories` or [[certificates.files]], or leave the key out"),
        );
    }
}

fn check_site_takeover(
    site: &SiteDraft,
    certificates: &CertificatesDraft,
    can_order_wildcards: bool,
    report: &Report<'_>,
) {
    if let (Some(takeover), Some(tls)) = (&site.takeover, mode(site))
        && takeover.value.is_some()
    {
        let from_files = matches!(tls, TlsMode::Auto | TlsMode::Files);
        if !from_files || !certificates.has_sources {
            let problem = Problem::new(
                "`takeover` is set, but the certificate of this site never comes from files",
            );
            report.add(
                takeover.at,
                problem.help("leave the key out, or serve the site from certificate files"),
            );
            return;
        }
    }
    let takeover = site_takeover(site, default_takeover(certificates));
    if takeover != Some(Takeover::Acme) || can_order_wildcards {
        return;
    }
    for host in site.hosts.iter().filter(|host| host.value.is_wildcard()) {
        let problem = Problem::new(format!(
            "takeover = \"acme\" cannot have a certificate for the wildcard {}, which needs the \
             challenge dns-01",
            host.value
        ));
        report.add(
            host.at,
            problem.help("add [acme.dns] with your DNS provider, or set takeover = \"internal\" or \"off\" in this site"),
        );
    }
}

fn mode(site: &SiteDraft) -> Option<TlsMode> {
    site.tls.as_ref().map(|tls| tls.value)
}

fn check_certificate_sources(certificates: &CertificatesDraft, report: &Report<'_>) {
    let files = certificates.files.iter().map(|files| &files.certificate);
    check_paths_differ("certificate", files, report);
    check_paths_differ("directory", certificates.directories.iter(), report);
}

pub(super) fn check_paths_differ<'p>(
    what: &str,
    paths: impl Iterator<Item = &'p Located<PathBuf>>,
    report: &Report<'_>,
) {
    let mut seen: HashMap<&PathBuf, usize> = HashMap::new();
    for Located { value: path, at } in paths {
        match seen.entry(path) {
            Entry::Vacant(entry) => {
                entry.insert(*at);
            }
            Entry::Occupied(first) => {
                let problem = Problem::new(format!(
                    "the {what} {} is already listed ({})",
                    path.display(),
                    report.source.reference(*first.get())
                ));
                report.add(*at, problem.help("remove one of the two"));
            }
        }
    }
}

fn check_hosts_unique(sites: &[SiteDraft], report: &Report<'_>) {
    let mut seen: HashMap<&Name, (usize, usize)> = HashMap::new();
    for (index, site) in sites.iter().enumerate() {
        for Located { value: name, at } in &site.hosts {
            let Some((first_site, first)) = seen.get(name).copied() else {
                seen.insert(name, (index, *at));
                continue;
            };
            let whose = match first_site == index {
                true => "this site already has",
                false => "another site already has",
            };
            let reference = report.source.reference(first);
            let problem = Problem::new(format!("{whose} the host {name} ({reference})"));
            report.add(
                *at,
                problem.help("a host belongs to one site: remove one of the two"),
            );
        }
    }
}

/// Whether certificates for the site can come from where it says.
fn check_tls(
    site: &SiteDraft,
    has_certificate_files: bool,
    can_order_wildcards: bool,
    report: &Report<'_>,
) {
    let Some(tls) = &site.tls else { return };
    if tls.value == TlsMode::Files && !has_certificate_files {
        let problem = Problem::new("tls = \"files\", but no certificate files are configured")
            .help("add `directories` or [[certificates.files]] to [certificates]");
        report.add(tls.at, problem);
    }
    for host in site.hosts.iter().filter(|host| host.value.is_wildcard()) {
        let needs_order = match tls.value {
            // Its names are ordered one by one.
            _ if site.on_demand_at().is_some() => false,
            TlsMode::Acme => true,
            TlsMode::Auto => !host.value.is_private() && !has_certificate_files,
            TlsMode::Internal | TlsMode::Files | TlsMode::Off => false,
        };
        if needs_order && !can_order_wildcards {
            report.add(host.at, acme_options::wildcard_problem(&host.value));
        }
    }
}

fn check_routes(site: &SiteDraft, report: &Report<'_>) {
    let mut seen: Vec<&RouteDraft> = Vec::new();
    let everything = everything();
    for route in &site.routes {
        let same = |other: &&&RouteDraft| {
            other.path.value == route.path.value
                && other.methods == route.methods
                && other.conditions == route.conditions
        };
        if let Some(first) = seen.iter().find(same) {
            let reference = report.source.reference(first.path.at);
            let problem = Problem::new(format!(
                "this site already has a route for this path ({reference})"
            ));
            report.add(
                route.path.at,
                problem.help(
                    "put all upstreams into one route, or give one of them `methods` or `headers`",
                ),
            );
        }
        seen.push(route);
        let unconditional = route.methods.is_empty() && route.conditions.is_empty();
        if route.path.value == everything && unconditional && site.action.is_some() {
            let problem = Problem::new(
                "the route \"/*\" and the `upstreams` of the site mean the same requests",
            );
            report.add(route.path.at, problem.help("remove one of the two"));
        }
        check_strip_prefix(route, report);
    }
}

/// What is answered here is announced to nobody.
fn check_proxy_protocol(site: &SiteDraft, report: &Report<'_>) {
    let goes_on = |action: &Option<ActionDraft>| {
        let action = action.as_ref();
        action.is_some_and(|action| !action.members().is_empty())
    };
    let routes_go_on = || site.routes.iter().any(|route| goes_on(&route.action));
    let of_site = site.proxy_protocol.iter();
    let of_site = of_site.filter(|_| !goes_on(&site.action) && !routes_go_on());
    let of_routes = site.routes.iter().filter(|route| !goes_on(&route.action));
    let of_routes = of_routes.filter_map(|route| route.proxy_protocol.as_ref());
    for version in of_site.chain(of_routes).filter(|it| it.value.is_some()) {
        let problem = Problem::new("`proxy_protocol` is set, but there are no `upstreams` here");
        report.add(version.at, problem.help("leave the key out"));
    }
}

/// A prefix that the path of the route does not have would never be there to be stripped.
fn check_strip_prefix(route: &RouteDraft, report: &Report<'_>) {
    let Some(prefix) = &route.strip_prefix else {
        return;
    };
    let matched = match &route.path.value {
        PathPattern::Exact(path) | PathPattern::Prefix(path) => path.as_str(),
        PathPattern::Glob(_) => return,
    };
    let below = matched
        .strip_prefix(&*prefix.value)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    if !below {
        let problem = Problem::new(format!(
            "paths of this route do not begin with {:?}, so there is nothing to strip",
            prefix.value
        ));
        report.add(
            prefix.at,
            problem.help("strip what the `path` of the route begins with"),
        );
    }
}

fn file_references(draft: &Draft, report: &Report<'_>) -> Vec<FileReference> {
    let reference = |purpose, path: &Located<PathBuf>| FileReference {
        purpose,
        path: path.value.clone(),
        place: report.source.place(path.at),
    };
    let pair = |files: &CertificateFilesDraft| {
        let key = files.private_key.as_ref().unwrap_or(&files.certificate);
        let mut references = vec![
            reference(FilePurpose::Certificate, &files.certificate),
            reference(FilePurpose::PrivateKey, key),
        ];
        let password = files.password_file.as_ref();
        references.extend(password.map(|path| reference(FilePurpose::Password, path)));
        references
    };
    let authorities = std::iter::once(&draft.acme).chain(&draft.fallbacks);
    let directories = draft.certificates.directories.iter();
    directories
        .map(|path| reference(FilePurpose::DropFolder, path))
        .chain(draft.certificates.files.iter().flat_map(pair))
        .chain(
            authorities
                .filter_map(|authority| authority.ca_certificate.as_ref())
                .map(|path| reference(FilePurpose::TrustAnchors, path)),
        )
        .chain(
            draft
                .dns
                .iter()
                .flat_map(|dns| &dns.programs)
                .map(|path| reference(FilePurpose::DnsProgram, path)),
        )
        .chain(
            AccessLogDraft::files(draft)
                .iter()
                .map(|path| reference(FilePurpose::AccessLog, path)),
        )
        .chain(
            draft
                .sites
                .iter()
                .flat_map(|site| {
                    let routes = site.routes.iter().map(|route| &route.access);
                    std::iter::once(&site.access).chain(routes)
                })
                .filter_map(AccessDraft::auth_ca)
                .map(|path| reference(FilePurpose::AuthCa, path)),
        )
        .chain(
            roots(draft)
                .iter()
                .map(|path| reference(FilePurpose::Root, path)),
        )
        .chain(tls_options::files(draft).map(|(purpose, path)| reference(purpose, path)))
        .collect()
}

/// The folders that are served.
fn roots(draft: &Draft) -> Vec<Located<PathBuf>> {
    let sites = draft.sites.iter();
    let actions = sites.flat_map(|site| {
        let routes = site.routes.iter().filter_map(|route| route.action.as_ref());
        site.action.iter().chain(routes)
    });
    actions.filter_map(ActionDraft::root).collect()
}
