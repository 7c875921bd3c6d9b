//! Who may ask: a browser that was tricked into asking (DNS rebinding, cross-site requests) may
//! not. There is no login; the listener is reachable from this host alone.

use std::net::SocketAddr;

use http::header::{HOST, ORIGIN};
use http::{HeaderMap, Uri};

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The Host is none of this listener's.
    Host,
    /// A web page of another origin sent it.
    Origin,
}

impl Refusal {
    pub fn message(self) -> &'static str {
        match self {
            Refusal::Host => "the Host header names another host than this listener's",
            Refusal::Origin => "requests from other web pages (Origin) are refused",
        }
    }
}

/// Checks a request to a TCP listener. (On a Unix socket no browser can be tricked.)
pub fn check(headers: &HeaderMap, listener: SocketAddr) -> Result<(), Refusal> {
    let text = |name| {
        headers
            .get(name)
            .map(|value: &http::HeaderValue| value.to_str().ok())
    };
    let host = text(HOST).flatten().ok_or(Refusal::Host)?;
    if !is_ours(host, listener) {
        return Err(Refusal::Host);
    }
    match text(ORIGIN) {
        None => Ok(()),
        Some(Some(origin)) if is_our_origin(origin, listener) => Ok(()),
        Some(_) => Err(Refusal::Origin),
    }
}

fn is_our_origin(origin: &str, listener: SocketAddr) -> bool {
    origin
        .strip_prefix("http://")
        .is_some_and(|host| is_ours(host, listener))
}

/// `localhost` or the listener's address, with the listener's port.
fn is_ours(authority: &str, listener: SocketAddr) -> bool {
    let Ok(uri) = authority.parse::<Uri>() else {
        return false;
    };
    let (Some(host), port) = (uri.host(), uri.port_u16().unwrap_or(80)) else {
        return false;
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let is_host = host.eq_ignore_ascii_case("localhost")
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|ip| ip == listener.ip() || ip.is_loopback());
    is_host && port == listener.port()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tricked_browser_is_refused() {
        let listener = "127.0.0.1:2019".parse().unwrap();
        let refused = |host: &str, origin: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, host.parse().unwrap());
            if let Some(origin) = origin {
                headers.insert(ORIGIN, origin.parse().unwrap());
            }
            check(&headers, listener).err()
        };
        assert_eq!(refused("localhost:2019", None), None);
        assert_eq!(
            refused("127.0.0.1:2019", Some("http://localhost:2019")),
            None
        );
        assert_eq!(refused("[::1]:2019", None), None);
        assert_eq!(refused("evil.example:2019", None), Some(Refusal::Host));
        assert_eq!(refused("localhost:2020", None), Some(Refusal::Host));
        assert_eq!(
            refused("localhost:2019", Some("https://evil.example")),
            Some(Refusal::Origin)
        );
        assert_eq!(
            refused("localhost:2019", Some("null")),
            Some(Refusal::Origin)
        );
        assert_eq!(check(&HeaderMap::new(), listener), Err(Refusal::Host));
    }
}
