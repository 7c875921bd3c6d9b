//! The headers that tell an upstream who asked. What the client says about that is removed, never
//! passed on: nobody has vouched for it.

use std::net::IpAddr;

use http::header::{COOKIE, HOST, HeaderName, HeaderValue};
use pingora::Result;
use pingora::http::RequestHeader;

use super::decision::origin_form;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Who asked, and how.
pub struct Origin<'a> {
    /// `None` when the connection's address is unknown.
    pub client: Option<IpAddr>,
    /// Over TLS.
    pub secure: bool,
    /// As the client wrote it, with the port if there is one.
    pub host: &'a [u8],
}

/// Makes the client's request the one for the upstream.
pub fn rewrite(request: &mut RequestHeader, origin: &Origin<'_>) -> Result<()> {
    remove_claims(request);
    if let Some(client) = origin.client {
        request.insert_header(FORWARDED_FOR, client.to_string())?;
    }
    let proto = if origin.secure { "https" } else { "http" };
    request.insert_header(FORWARDED_PROTO, HeaderValue::from_static(proto))?;
    request.insert_header(FORWARDED_HOST, origin.host)?;
    join_cookies(request)?;
    use_origin_form(request, origin.host)
}

fn remove_claims(request: &mut RequestHeader) {
    let claims: Vec<HeaderName> = request
        .headers
        .keys()
        .filter(|name| is_claim(name.as_str()))
        .cloned()
        .collect();
    for name in &claims {
        request.remove_header(name);
    }
}

/// Whether a header says who the client is. CGI, and what descends from it, does not tell `_` from
/// `-`.
fn is_claim(name: &str) -> bool {
    const EXACT: [&[u8]; 3] = [b"forwarded", b"x-real-ip", b"x-forwarded"];
    const PREFIX: &[u8] = b"x-forwarded-";
    let same = |given: &[u8], wanted: &[u8]| {
        given.len() == wanted.len()
            && given
                .iter()
                .zip(wanted)
                .all(|(&given, &wanted)| given == wanted || (given == b'_' && wanted == b'-'))
    };
    let name = name.as_bytes();
    EXACT.iter().any(|wanted| same(name, wanted))
        || name
            .get(..PREFIX.len())
            .is_some_and(|start| same(start, PREFIX))
}

/// HTTP/2 clients may split cookies, HTTP/1.1 servers know one header (RFC 9113 section 8.2.3).
fn join_cookies(request: &mut RequestHeader) -> Result<()> {
    let mut cookies = request.headers.get_all(COOKIE).iter();
    if cookies.by_ref().nth(1).is_none() {
        return Ok(());
    }
    let cookies: Vec<&[u8]> = request
        .headers
        .get_all(COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    let joined = cookies.join(&b"; "[..]);
    request.insert_header(COOKIE, joined)
}

/// `GET http://host/path` is for proxies: an upstream is asked for `/path` of `Host: host`.
fn use_origin_form(request: &mut RequestHeader, host: &[u8]) -> Result<()> {
    let target = origin_form(request);
    if target.len() == request.raw_path().len() {
        return Ok(());
    }
    let target = match target {
        [b'/', ..] => target.to_vec(),
        query => [b"/", query].concat(),
    };
    request.set_raw_path(&target)?;
    request.insert_header(HOST, host)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 7));

    fn request(target: &str, headers: &[(&'static str, &str)]) -> RequestHeader {
        let mut request = RequestHeader::build("GET", target.as_bytes(), None).unwrap();
        for (name, value) in headers {
            request.append_header(*name, *value).unwrap();
        }
        let origin = Origin {
            client: Some(CLIENT),
            secure: true,
            host: b"example.com:8443",
        };
        rewrite(&mut request, &origin).unwrap();
        request
    }

    fn values<'r>(request: &'r RequestHeader, name: &str) -> Vec<&'r str> {
        let values = request.headers.get_all(name).iter();
        values.map(|value| value.to_str().unwrap()).collect()
    }

    #[test]
    fn the_upstream_learns_who_asked() {
        let request = request("/", &[("Host", "example.com:8443")]);
        assert_eq!(values(&request, "x-forwarded-for"), ["192.0.2.7"]);
        assert_eq!(values(&request, "x-forwarded-proto"), ["https"]);
        assert_eq!(values(&request, "x-forwarded-host"), ["example.com:8443"]);
        assert_eq!(values(&request, "host"), ["example.com:8443"]);
    }

    #[test]
    fn claims_are_not_believed() {
        let request = request(
            "/",
            &[
                ("X-Forwarded-For", "203.0.113.1"),
                ("X-Forwarded-For", "203.0.113.2"),
                ("x_forwarded_for", "203.0.113.3"),
                ("X-Forwarded-Proto", "http"),
                ("X-Forwarded-Port", "80"),
                ("X-Forwarded-Prefix", "/admin"),
                ("Forwarded", "for=203.0.113.1"),
                ("X-Real-IP", "203.0.113.1"),
                ("X-Forward", "stays"),
                ("X-Other", "stays"),
            ],
        );
        assert_eq!(values(&request, "x-forwarded-for"), ["192.0.2.7"]);
        assert_eq!(values(&request, "x-forwarded-proto"), ["https"]);
        for gone in [
            "x_forwarded_for",
            "x-forwarded-port",
            "x-forwarded-prefix",
            "forwarded",
            "x-real-ip",
        ] {
            assert!(values(&request, gone).is_empty(), "{gone}");
        }
        assert_eq!(values(&request, "x-forward"), ["stays"]);
        assert_eq!(values(&request, "x-other"), ["stays"]);
    }

    #[test]
    fn split_cookies_are_joined() {
        let request = request("/", &[("Cookie", "a=1"), ("Cookie", "b=2")]);
        assert_eq!(values(&request, "cookie"), ["a=1; b=2"]);
    }

    #[test]
    fn an_absolute_target_becomes_a_path() {
        for (target, expected) in [
            ("http://example.com:8443/a?b", "/a?b"),
            ("http://example.com:8443?b", "/?b"),
            ("http://example.com:8443", "/"),
            ("/a?b", "/a?b"),
            ("*", "*"),
        ] {
            let request = request(target, &[]);
            assert_eq!(request.raw_path(), expected.as_bytes(), "{target}");
        }
    }
}
