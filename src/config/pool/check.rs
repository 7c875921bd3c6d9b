//! What is said of upstreams and cannot be honoured.

use super::super::TlsMode;
use super::super::diagnostic::{Located, Problem, Report};
use super::super::draft::{ActionDraft, SiteDraft};
use super::{CheckKind, HealthCheck, Member, Policy, PoolDraft, SameSite};

/// Reports keys of a site and its routes that would have no effect.
pub(in super::super) fn check(site: &SiteDraft, report: &Report<'_>) {
    let own = site.action.iter();
    let all = own.chain(site.routes.iter().filter_map(|route| route.action.as_ref()));
    let members: Vec<&Member> = all.flat_map(ActionDraft::members).collect();
    check_one(&site.pool, &members, site, report);
    check_announced(site, report);
    for route in &site.routes {
        // What could not be read is reported already.
        if let Some(action) = &route.action {
            let members: Vec<&Member> = action.members().iter().collect();
            check_one(&route.pool, &members, site, report);
        }
    }
}

/// The PROXY protocol says of a connection whose it is.
fn check_announced(site: &SiteDraft, report: &Report<'_>) {
    let own = site
        .action
        .iter()
        .map(|action| (&site.proxy_protocol, &site.pool, action));
    let routes = site.routes.iter().filter_map(|route| {
        let announced = route.proxy_protocol.as_ref().map(|_| &route.proxy_protocol);
        let announced = announced.unwrap_or(&site.proxy_protocol);
        Some((announced, &route.pool, route.action.as_ref()?))
    });
    for (announced, pool, action) in own.chain(routes) {
        let Some(announced) = announced.as_ref().filter(|it| it.value.is_some()) else {
            continue;
        };
        let http2 = |member: &Member| member.upstream.is_http2();
        if action.members().iter().any(http2) {
            let problem = Problem::new("`proxy_protocol` does not go with an upstream of HTTP/2");
            report.add(
                announced.at,
                problem.help("its connections are shared by clients: give it a route with proxy_protocol = \"off\""),
            );
        }
        let check = pool
            .health_check
            .as_ref()
            .or(site.pool.health_check.as_ref());
        let asks = |check: &Located<Option<HealthCheck>>| {
            let check = check.value.as_ref();
            check.is_some_and(|check| matches!(check.kind, CheckKind::Http(_)))
        };
        if let Some(check) = check.filter(|check| asks(check)) {
            let problem =
                Problem::new("`health_check` with `path` does not go with `proxy_protocol`");
            report.add(
                check.at,
                problem.help("a check has no client to announce: write health_check = \"tcp\""),
            );
        }
    }
}

fn check_one(pool: &PoolDraft, members: &[&Member], site: &SiteDraft, report: &Report<'_>) {
    if let Some((key, at)) = pool.first()
        && members.is_empty()
    {
        let problem = Problem::new(format!("`{key}` has no effect: no upstream is here"));
        report.add(
            at,
            problem.help("leave it out, or add `upstreams` with an address"),
        );
        return;
    }
    if let Some(pending) = &pool.pending
        && members
            .iter()
            .all(|member| member.max_connections.is_none())
    {
        let problem = Problem::new("`pending` has no effect: no upstream has `max_connections`");
        report.add(
            pending.at,
            problem.help("write for example upstreams = [{ to = \"a:80\", max_connections = 50 }]"),
        );
    }
    let plain = site
        .tls
        .as_ref()
        .is_some_and(|tls| tls.value == TlsMode::Off);
    if let Some(balancing) = &pool.balancing
        && let Policy::Sticky(cookie) = &balancing.value.policy
        && plain
        && (cookie.secure == Some(true) || cookie.same_site == SameSite::None)
    {
        let problem = Problem::new("browsers drop a secure cookie of a site with tls = \"off\"");
        report.add(
            balancing.at,
            problem.help("leave out secure = true and same_site = \"none\""),
        );
    }
}
