//! What is to be done with a request, decided from its header alone: no I/O, no clock, no state
//! but the routing.

use std::sync::Arc;

use http::header::HeaderValue;
use http::{Method, StatusCode};

use super::host::{HostError, RequestHost};
use super::path;
use super::routing::{Routing, Site};
use crate::certificate::name::Name;
use crate::config::{ClientAuth, ListenAddress};
use crate::message::{Known, RequestHead};

/// Where RFC 8555 section 8.3 has the CA look.
const CHALLENGE_PREFIX: &[u8] = b"/.well-known/acme-challenge/";

/// What a decision needs besides the request.
pub struct Surroundings<'a> {
    pub routing: &'a Routing,
    /// The key authorization for an HTTP-01 token.
    pub key_authorization: &'a dyn Fn(&str) -> Option<Arc<str>>,
    /// `None` on a plain HTTP connection.
    pub tls: Option<Handshake<'a>>,
    /// The listener, if it is one for some sites alone.
    pub scope: Option<&'a ListenAddress>,
    /// Where redirects lead.
    pub https_port: u16,
}

/// What the client asked for in the TLS handshake, and what it got.
pub struct Handshake<'a> {
    pub server_name: Option<&'a str>,
    /// What the client had to show.
    pub client_auth: Option<&'a ClientAuth>,
    /// Whether the certificate that was served is good for a name.
    pub covers: &'a dyn Fn(&Name) -> bool,
}

/// A decision, and the site it was made for if the request reached one.
pub struct Decision {
    pub site: Option<Arc<Site>>,
    pub action: Action,
}

pub enum Action {
    /// Pass the request on to the site's route of this index.
    Proxy {
        route: usize,
    },
    /// Answer an HTTP-01 challenge.
    KeyAuthorization(Arc<str>),
    /// Send the client to this URL, with the same method.
    Redirect(HeaderValue),
    /// There are routes for this path, but not for this method; those that would do.
    NotAllowed(Box<str>),
    Refuse(Refusal),
}

/// Why a request is not passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("this method is not allowed here")]
    Method,
    #[error(transparent)]
    Host(#[from] HostError),
    #[error("the request's target is malformed")]
    Target,
    #[error("the request's header is ambiguous")]
    Framing,
    #[error("this server does not serve the requested host")]
    UnknownHost,
    #[error("the connection was made for another host")]
    OtherConnection,
    #[error("nothing is served at this path")]
    NoRoute,
}

impl Refusal {
    pub fn status(self) -> StatusCode {
        match self {
            Refusal::Method => StatusCode::METHOD_NOT_ALLOWED,
            Refusal::Host(_) | Refusal::Target | Refusal::Framing => StatusCode::BAD_REQUEST,
            Refusal::UnknownHost | Refusal::OtherConnection => StatusCode::MISDIRECTED_REQUEST,
            Refusal::NoRoute => StatusCode::NOT_FOUND,
        }
    }
}

/// Decides. The order matters: a CA that validates a name must be answered whatever the host is.
pub fn decide(request: &RequestHead, surroundings: &Surroundings<'_>) -> Decision {
    match unrouted(request, surroundings) {
        Ok(action) => Decision { site: None, action },
        Err(target) => routed(request, target, surroundings).unwrap_or_else(Decision::from),
    }
}

impl From<Refusal> for Decision {
    fn from(refusal: Refusal) -> Decision {
        Decision {
            site: None,
            action: Action::Refuse(refusal),
        }
    }
}

/// What is answered for any host; else the target, for [`routed`].
fn unrouted<'r>(
    request: &'r RequestHead,
    surroundings: &Surroundings<'_>,
) -> Result<Action, &'r [u8]> {
    // TRACE would show a script the cookies that it must not read, and CONNECT wants a tunnel.
    if matches!(request.method, Method::TRACE | Method::CONNECT) {
        return Ok(Action::Refuse(Refusal::Method));
    }
    if !has_target(request) {
        return Ok(Action::Refuse(Refusal::Target));
    }
    let target = origin_form(request.target());
    match challenge_token(&request.method, path_of(target)).and_then(surroundings.key_authorization)
    {
        Some(key_authorization) => Ok(Action::KeyAuthorization(key_authorization)),
        None => Err(target),
    }
}

fn routed(
    request: &RequestHead,
    target: &[u8],
    surroundings: &Surroundings<'_>,
) -> Result<Decision, Refusal> {
    let host = RequestHost::parse(authority(request)?)?;
    let site = surroundings
        .routing
        .site(&host, surroundings.scope)
        .ok_or(Refusal::UnknownHost)?;
    let action = action_for(site, request, &host, target, surroundings);
    let action = action.unwrap_or_else(Action::Refuse);
    Ok(Decision {
        site: Some(Arc::clone(site)),
        action,
    })
}

fn action_for(
    site: &Site,
    request: &RequestHead,
    host: &RequestHost,
    target: &[u8],
    surroundings: &Surroundings<'_>,
) -> Result<Action, Refusal> {
    match &surroundings.tls {
        Some(_) if !site.tls => return Err(Refusal::UnknownHost),
        Some(handshake) if !handshake.is_for(host) => return Err(Refusal::OtherConnection),
        // Whoever was let in for one site has shown nothing to another.
        Some(handshake) if handshake.client_auth != site.client_auth.as_ref() => {
            return Err(Refusal::OtherConnection);
        }
        None if site.tls => return redirect(host, target, surroundings.https_port),
        _ => {}
    }
    let path = path::normal(path_of(target));
    match site.route(request, &path) {
        Some(route) => Ok(Action::Proxy { route }),
        None => match site.allowed(request, &path) {
            Some(methods) => Ok(Action::NotAllowed(methods)),
            None => Err(Refusal::NoRoute),
        },
    }
}

impl Handshake<'_> {
    /// A browser reuses a connection for every host that the certificate names (RFC 9110 section
    /// 7.4): that is as good as the name it began with.
    fn is_for(&self, host: &RequestHost) -> bool {
        self.server_name
            .is_some_and(|server_name| host.is_server_name(server_name))
            || (self.covers)(&host.to_name())
    }
}

fn redirect(host: &RequestHost, target: &[u8], https_port: u16) -> Result<Action, Refusal> {
    let mut url = match https_port {
        443 => format!("https://{host}"),
        port => format!("https://{host}:{port}"),
    }
    .into_bytes();
    // `OPTIONS *` is about the server as a whole, whose URL has no path.
    if target != b"*" {
        url.extend_from_slice(target);
    }
    HeaderValue::from_bytes(&url)
        .map(Action::Redirect)
        .map_err(|_| Refusal::Target)
}

/// The host that is asked for, as the client wrote it; `:authority` in HTTP/2 (see
/// [`RequestHead::from_http2`]). An absolute target has to name the same one (RFC 9112 section 3.2.2
/// lets it win, but somebody before us may have looked at the other), and so must all that say it.
pub fn authority(request: &RequestHead) -> Result<&[u8], HostError> {
    let mut hosts = request.fields.all(Known::Host);
    let host = hosts.next().ok_or(HostError::Missing)?;
    let agrees = match absolute_form(request.target()) {
        Some((authority, _)) => authority.eq_ignore_ascii_case(host),
        None => true,
    };
    match agrees && hosts.next().is_none() {
        true => Ok(host),
        false => Err(HostError::Malformed),
    }
}

/// Whether the target has one of the forms of RFC 9112 section 3.2.
fn has_target(request: &RequestHead) -> bool {
    let target = request.target();
    match target {
        b"*" => request.method == Method::OPTIONS,
        [b'/', ..] => true,
        _ => absolute_form(target).is_some(),
    }
}

/// Authority, and path and query, of an absolute-form target (RFC 9112 section 3.2.2).
fn absolute_form(target: &[u8]) -> Option<(&[u8], &[u8])> {
    const SCHEMES: [&[u8]; 2] = [b"http://", b"https://"];
    let rest = SCHEMES.iter().find_map(|scheme| {
        let (start, rest) = target.split_at_checked(scheme.len())?;
        start.eq_ignore_ascii_case(scheme).then_some(rest)
    })?;
    let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?'));
    Some(rest.split_at(end.unwrap_or(rest.len())))
}

/// Path and query of a target, also of an absolute one. Where that has no path it is empty or
/// begins with the query.
pub fn origin_form(target: &[u8]) -> &[u8] {
    match absolute_form(target) {
        Some((_, [])) => b"/",
        Some((_, path_and_query)) => path_and_query,
        None => target,
    }
}

/// The path without the query.
pub fn path_of(target: &[u8]) -> &[u8] {
    let end = target.iter().position(|&byte| byte == b'?');
    &target[..end.unwrap_or(target.len())]
}

/// The token of the HTTP-01 challenge that a request asks for.
pub fn challenge_token<'p>(method: &Method, path: &'p [u8]) -> Option<&'p str> {
    let token = path.strip_prefix(CHALLENGE_PREFIX)?;
    let readable = matches!(*method, Method::GET | Method::HEAD);
    std::str::from_utf8(token).ok().filter(|_| readable)
}

#[cfg(test)]
mod tests {
    use super::super::routing::tests::{routing, site};
    use super::*;
    use crate::config::{TlsMode, Upstream};
    use crate::message::Limits;

    fn sites() -> Routing {
        let upstream = &[Upstream::Respond("hello".into())];
        routing(&[
            site(&["example.com"], TlsMode::Auto, &[("/*", upstream)]),
            site(&["other.test"], TlsMode::Auto, &[("/*", upstream)]),
            site(&["api.test", "::1"], TlsMode::Auto, &[("/api/*", upstream)]),
            site(&["plain.test"], TlsMode::Off, &[("/*", upstream)]),
        ])
    }

    fn request(method: &str, target: &str, host: Option<&str>) -> RequestHead {
        const LIMITS: Limits = Limits {
            bytes: 4096,
            fields: 10,
        };
        let host = host.map(|host| format!("Host: {host}\r\n"));
        let text = format!(
            "{method} {target} HTTP/1.1\r\n{}\r\n",
            host.unwrap_or_default()
        );
        let mut request = RequestHead::default();
        request.parse(text.as_bytes(), &LIMITS).unwrap();
        request
    }

    /// A short text of the decision, for tables.
    fn decided(request: &RequestHead, tls: Option<Handshake<'_>>, https_port: u16) -> String {
        let decision = decide(
            request,
            &Surroundings {
                routing: &sites(),
                key_authorization: &|token| (token == "known").then(|| "known.thumb".into()),
                tls,
                scope: None,
                https_port,
            },
        );
        match decision.action {
            Action::Proxy { route } => format!("{} {route}", decision.site.unwrap().label),
            Action::KeyAuthorization(text) => text.to_string(),
            Action::Redirect(url) => url.to_str().unwrap().to_owned(),
            Action::NotAllowed(methods) => format!("405 {methods}"),
            Action::Refuse(refusal) => refusal.status().as_str().to_owned(),
        }
    }

    fn plain(method: &str, target: &str, host: Option<&str>) -> String {
        decided(&request(method, target, host), None, 443)
    }

    /// Over a connection made for `example.com` with a certificate that names `other.test` too.
    fn secure(method: &str, target: &str, host: &str) -> String {
        let handshake = Handshake {
            server_name: Some("example.com"),
            client_auth: None,
            covers: &|name| *name == "other.test".parse().unwrap(),
        };
        decided(&request(method, target, Some(host)), Some(handshake), 443)
    }

    #[test]
    fn plain_http_redirects_to_the_site() {
        for (target, host, expected) in [
            ("/a?b=c", "Example.com", "https://example.com/a?b=c"),
            ("/", "example.com:80", "https://example.com/"),
            ("http://example.com", "example.com", "https://example.com/"),
            (
                "http://example.com/x?y",
                "example.com",
                "https://example.com/x?y",
            ),
            (
                "//evil.test/",
                "example.com",
                "https://example.com//evil.test/",
            ),
            ("/nowhere", "[::1]:8080", "https://[::1]/nowhere"),
        ] {
            assert_eq!(
                plain("POST", target, Some(host)),
                expected,
                "{target} {host}"
            );
        }
        let request = request("GET", "/a", Some("example.com"));
        assert_eq!(decided(&request, None, 8443), "https://example.com:8443/a");
    }

    #[test]
    fn plain_sites_are_served_without_tls_alone() {
        assert_eq!(plain("GET", "/", Some("plain.test")), "plain.test 0");
        assert_eq!(secure("GET", "/", "plain.test"), "421");
    }

    #[test]
    fn a_host_is_wanted() {
        assert_eq!(plain("GET", "/", None), "400");
        assert_eq!(plain("GET", "/", Some("")), "400");
        assert_eq!(plain("GET", "/", Some("a b")), "400");
        assert_eq!(plain("GET", "/", Some("unknown.test")), "421");
        assert_eq!(secure("GET", "/", "unknown.test"), "421");
    }

    #[test]
    fn the_host_must_fit_the_connection() {
        assert_eq!(secure("GET", "/", "example.com:443"), "example.com 0");
        assert_eq!(secure("GET", "/", "other.test"), "other.test 0");
        assert_eq!(secure("GET", "/api", "api.test"), "421");
    }

    #[test]
    fn a_client_is_let_in_for_one_site_alone() {
        let auth = |ca: &str| ClientAuth {
            ca: ca.into(),
            crl: None,
            mode: crate::config::ClientAuthMode::Require,
        };
        let upstream = &[Upstream::Respond("hello".into())];
        let with = |host: &str, ca: &str| crate::config::Site {
            client_auth: Some(auth(ca)),
            ..site(&[host], TlsMode::Auto, &[("/*", upstream)])
        };
        let routing = routing(&[
            with("a.test", "one.pem"),
            with("also-a.test", "one.pem"),
            with("b.test", "two.pem"),
            site(&["open.test"], TlsMode::Auto, &[("/*", upstream)]),
        ]);
        let status = |shown: Option<&ClientAuth>, host: &str| {
            let surroundings = Surroundings {
                routing: &routing,
                key_authorization: &|_| None,
                tls: Some(Handshake {
                    server_name: None,
                    client_auth: shown,
                    covers: &|_| true,
                }),
                scope: None,
                https_port: 443,
            };
            match decide(&request("GET", "/", Some(host)), &surroundings).action {
                Action::Refuse(refusal) => refusal.status().as_u16(),
                _ => 200,
            }
        };
        let (one, two) = (auth("one.pem"), auth("two.pem"));
        for (shown, host, expected) in [
            (Some(&one), "a.test", 200),
            (Some(&one), "also-a.test", 200),
            (Some(&one), "b.test", 421),
            (Some(&two), "a.test", 421),
            (Some(&one), "open.test", 421),
            (None, "a.test", 421),
            (None, "open.test", 200),
        ] {
            assert_eq!(status(shown, host), expected, "{shown:?} {host}");
        }
    }

    #[test]
    fn without_a_server_name_the_certificate_decides() {
        let over = |host: &str| {
            let handshake = Handshake {
                server_name: None,
                client_auth: None,
                covers: &|name| *name == "::1".parse().unwrap(),
            };
            decided(
                &request("GET", "/api/x?q", Some(host)),
                Some(handshake),
                443,
            )
        };
        assert_eq!(over("[::1]:8443"), "api.test 0");
        assert_eq!(over("example.com"), "421");
    }

    #[test]
    fn the_authority_of_http2_is_the_host() {
        let request = http::Request::get("https://plain.test/x").body(()).unwrap();
        let request = RequestHead::from_http2(&request.into_parts().0, true).unwrap();
        assert_eq!(decided(&request, None, 443), "plain.test 0");
    }

    #[test]
    fn challenges_come_before_the_host() {
        let path = "/.well-known/acme-challenge/known";
        for host in [None, Some("unknown.test"), Some("example.com"), Some("a b")] {
            assert_eq!(plain("GET", path, host), "known.thumb", "{host:?}");
        }
        assert_eq!(plain("HEAD", path, None), "known.thumb");
        assert_eq!(plain("GET", &format!("{path}?x=y"), None), "known.thumb");
        assert_eq!(secure("GET", path, "unknown.test"), "known.thumb");
        assert_eq!(plain("POST", path, Some("plain.test")), "plain.test 0");
        let unknown = "/.well-known/acme-challenge/unknown";
        assert_eq!(plain("GET", unknown, Some("plain.test")), "plain.test 0");
        assert!(plain("GET", unknown, Some("example.com")).starts_with("https://"));
    }

    #[test]
    fn tunnels_and_echoes_are_refused() {
        assert_eq!(plain("TRACE", "/", Some("plain.test")), "405");
        assert_eq!(
            plain("CONNECT", "plain.test:80", Some("plain.test:80")),
            "405"
        );
        assert_eq!(secure("OPTIONS", "*", "example.com"), "example.com 0");
    }

    #[test]
    fn a_path_without_a_route_is_not_found() {
        let handshake = Handshake {
            server_name: Some("api.test"),
            client_auth: None,
            covers: &|_| false,
        };
        let request = request("GET", "/", Some("api.test"));
        assert_eq!(decided(&request, Some(handshake), 443), "404");
    }
}
