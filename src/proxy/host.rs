//! The host that a request is for, in the canonical form that sites are looked up by. It never
//! allocates: every request passes here.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::certificate::name::Name;

/// A DNS name without its trailing dot is no longer (RFC 1035 section 2.3.4).
const MAX_NAME_LEN: usize = 253;

/// Between two dots.
const MAX_LABEL_LEN: usize = 63;

/// A host as in [`Name`], but never a wildcard, and on the stack.
#[expect(
    clippy::large_enum_variant,
    reason = "it lives on the stack for one look-up"
)]
pub enum RequestHost {
    /// Lower case, without a trailing dot.
    Dns {
        text: [u8; MAX_NAME_LEN],
        length: usize,
    },
    /// Never an IPv4-mapped IPv6 address.
    Address(IpAddr),
}

/// Why an authority (RFC 3986 section 3.2) has no usable host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    #[error("the request names no host")]
    Missing,
    #[error("the request's host is malformed")]
    Malformed,
}

impl RequestHost {
    /// From `host` or `host:port`, as in a `Host` header or `:authority`.
    pub fn parse(authority: &[u8]) -> Result<RequestHost, HostError> {
        match split_port(authority)? {
            [] => Err(HostError::Missing),
            [b'[', inner @ .., b']'] => parse_ipv6(inner),
            host => parse_dns_or_ipv4(host),
        }
    }

    /// The DNS name, unless it is an address.
    pub fn dns(&self) -> Option<&str> {
        std::str::from_utf8(self.dns_bytes()?).ok()
    }

    /// The same as bytes, all of them ASCII.
    pub fn dns_bytes(&self) -> Option<&[u8]> {
        match self {
            RequestHost::Dns { text, length } => Some(&text[..*length]),
            RequestHost::Address(_) => None,
        }
    }

    /// Allocates: for what is off the usual path.
    pub fn to_name(&self) -> Name {
        match self {
            RequestHost::Dns { .. } => Name::Dns(self.dns().unwrap_or_default().into()),
            RequestHost::Address(address) => Name::Ip(*address),
        }
    }

    /// Whether this is the name in a TLS ClientHello.
    pub fn is_server_name(&self, server_name: &str) -> bool {
        let server_name = server_name.strip_suffix('.').unwrap_or(server_name);
        self.dns_bytes()
            .is_some_and(|host| host.eq_ignore_ascii_case(server_name.as_bytes()))
    }
}

/// As in a URL: an IPv6 address stands in brackets.
impl fmt::Display for RequestHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RequestHost::Dns { .. } => f.write_str(self.dns().unwrap_or_default()),
            RequestHost::Address(IpAddr::V4(address)) => address.fmt(f),
            RequestHost::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
        }
    }
}

/// The host without `:port`; an empty port is legal (RFC 3986 section 3.2.3).
fn split_port(authority: &[u8]) -> Result<&[u8], HostError> {
    let host_end = match authority.first() {
        Some(b'[') => 1 + position(authority, b']').ok_or(HostError::Malformed)?,
        _ => position(authority, b':').unwrap_or(authority.len()),
    };
    let (host, port) = authority.split_at(host_end);
    match port {
        [] => Ok(host),
        [b':', digits @ ..] if digits.len() <= 5 && digits.iter().all(u8::is_ascii_digit) => {
            Ok(host)
        }
        _ => Err(HostError::Malformed),
    }
}

fn position(text: &[u8], wanted: u8) -> Option<usize> {
    text.iter().position(|&byte| byte == wanted)
}

fn parse_ipv6(text: &[u8]) -> Result<RequestHost, HostError> {
    std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.parse::<Ipv6Addr>().ok())
        .map(|address| RequestHost::Address(IpAddr::V6(address).to_canonical()))
        .ok_or(HostError::Malformed)
}

fn parse_dns_or_ipv4(host: &[u8]) -> Result<RequestHost, HostError> {
    let host = host.strip_suffix(b".").unwrap_or(host);
    let mut text = [0; MAX_NAME_LEN];
    let lower = text.get_mut(..host.len()).ok_or(HostError::Malformed)?;
    let mut label = 0;
    for (lower, &byte) in lower.iter_mut().zip(host) {
        *lower = LOWER[usize::from(byte)];
        label = match *lower {
            b'.' if label > 0 => 0,
            b'.' | 0 => return Err(HostError::Malformed),
            _ => label + 1,
        };
        if label > MAX_LABEL_LEN {
            return Err(HostError::Malformed);
        }
    }
    if label == 0 {
        return Err(HostError::Malformed);
    }
    if let Some(address) = parse_ipv4(lower) {
        return Ok(RequestHost::Address(IpAddr::V4(address)));
    }
    let length = host.len();
    Ok(RequestHost::Dns { text, length })
}

/// Each byte in lower case, 0 if it is none that a name may have. The same characters as in
/// [`Name`]: what no site can be called need not be looked up.
const LOWER: [u8; 256] = {
    let mut table = [0; 256];
    let mut byte = 0_u8;
    while byte < 128 {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.') {
            table[byte as usize] = byte.to_ascii_lowercase();
        }
        byte += 1;
    }
    table
};

fn parse_ipv4(lower: &[u8]) -> Option<Ipv4Addr> {
    // No top-level domain ends in a digit: most names are told from addresses by one byte.
    if !lower.last()?.is_ascii_digit() {
        return None;
    }
    std::str::from_utf8(lower).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(authority: &str) -> Result<String, HostError> {
        RequestHost::parse(authority.as_bytes()).map(|host| host.to_string())
    }

    #[test]
    fn hosts_are_canonical() {
        for (authority, expected) in [
            ("Example.COM", "example.com"),
            ("example.com.", "example.com"),
            ("example.com:8443", "example.com"),
            ("example.com:", "example.com"),
            ("localhost", "localhost"),
            ("192.0.2.1:80", "192.0.2.1"),
            ("[2001:DB8::1]:443", "[2001:db8::1]"),
            ("[::1]", "[::1]"),
            ("[::ffff:192.0.2.1]", "192.0.2.1"),
            ("my_app.internal", "my_app.internal"),
        ] {
            assert_eq!(host(authority).as_deref(), Ok(expected), "{authority}");
        }
    }

    #[test]
    fn what_is_no_host_is_told_from_none() {
        assert_eq!(host(""), Err(HostError::Missing));
        assert_eq!(host(":80"), Err(HostError::Missing));
        let long = "a.".repeat(127) + "b";
        for authority in [
            "a b", "a/b", "a..b", ".a", "a:b", "a:123456", "a:80:80", "[::1", "[::1]x", "[a]",
            "::1", "a@b", "*.a", "ä", "a\\b", &long,
        ] {
            assert_eq!(host(authority), Err(HostError::Malformed), "{authority}");
        }
    }

    #[test]
    fn the_server_name_is_compared_without_case_and_final_dot() {
        let host = RequestHost::parse(b"Example.com:443").unwrap();
        assert!(host.is_server_name("example.COM."));
        assert!(!host.is_server_name("www.example.com"));
        assert!(
            !RequestHost::parse(b"192.0.2.1")
                .unwrap()
                .is_server_name("192.0.2.1")
        );
        assert_eq!(host.to_name(), "example.com".parse().unwrap());
    }
}
