//! Where requests go, as it is written: `host:port`, a bare port, `https://host`, `h2://host`,
//! `h2c://host`, `unix:/path`, `srv://name` (and `srv+https`, `srv+h2`, `srv+h2c`), `respond:TEXT`.

use std::net::Ipv6Addr;
use std::path::Path;

use super::Upstream;
use super::diagnostic::Problem;
use super::value::socket_path;
use crate::certificate::name::Name;

const FORMS: &str = "it can be host:port, a port of this host, http://host:port, \
                     https://host:port, h2://host:port, h2c://host:port, unix:/path, \
                     srv://name, srv+https://name, srv+h2://name, srv+h2c://name or respond:TEXT";

/// Parses an UPSTREAM; the path of a Unix socket is resolved against `base`.
pub(super) fn upstream(text: &str, base: &Path) -> Result<Upstream, Problem> {
    if let Some(body) = text.strip_prefix("respond:") {
        return match body {
            "" => Err(wrong(text, "it has no text", "write it as respond:Hello")),
            _ => Ok(Upstream::Respond(body.to_owned())),
        };
    }
    if let Some(path) = text.strip_prefix("unix:") {
        return socket_path(path, base).map(Upstream::Unix);
    }
    match text.split_once("://") {
        Some(("http", rest)) => authority(text, rest, (false, false), Some(80)),
        Some(("https", rest)) => authority(text, rest, (true, false), Some(443)),
        Some(("h2c", rest)) => authority(text, rest, (false, true), Some(80)),
        Some(("h2", rest)) => authority(text, rest, (true, true), Some(443)),
        Some(("srv", name)) => srv(text, name, (false, false)),
        Some(("srv+https", name)) => srv(text, name, (true, false)),
        Some(("srv+h2c", name)) => srv(text, name, (false, true)),
        Some(("srv+h2", name)) => srv(text, name, (true, true)),
        Some((scheme, _)) => Err(wrong(
            text,
            &format!("{scheme:?} is no known scheme"),
            FORMS,
        )),
        None if text.is_empty() => Err(wrong(text, "it is empty", FORMS)),
        None if text.bytes().all(|b| b.is_ascii_digit()) => Ok(Upstream::Tcp {
            host: "127.0.0.1".to_owned(),
            port: port(text, text)?,
            tls: false,
            http2: false,
        }),
        None => authority(text, text, (false, false), None),
    }
}

/// `host[:port]` with an optional final slash.
fn authority(
    text: &str,
    authority: &str,
    (tls, http2): (bool, bool),
    default_port: Option<u16>,
) -> Result<Upstream, Problem> {
    let authority = match default_port {
        Some(_) => authority.strip_suffix('/').unwrap_or(authority),
        None => authority,
    };
    if authority.contains(['/', '?', '#']) {
        return Err(wrong(
            text,
            "it has a path",
            "requests keep their own path: write the host and the port alone",
        ));
    }
    if authority.contains('@') {
        return Err(wrong(text, "it has a user name", FORMS));
    }
    if authority.parse::<Ipv6Addr>().is_ok() {
        let help = format!("write the address in brackets: [{authority}]:3000");
        return Err(wrong(
            text,
            "an IPv6 address and its port run together",
            &help,
        ));
    }
    let (host, written_port) = match authority.rsplit_once(':') {
        Some((host, digits)) if !digits.contains(']') => (host, Some(port(text, digits)?)),
        _ => (authority, None),
    };
    let host = self::host(text, host)?;
    let Some(port) = written_port.or(default_port) else {
        let help = format!("write {authority}:3000, or https://{authority}");
        return Err(wrong(text, "it has no port", &help));
    };
    Ok(Upstream::Tcp {
        host,
        port,
        tls,
        http2,
    })
}

/// `_service._protocol.name` (RFC 2782).
fn srv(text: &str, name: &str, (tls, http2): (bool, bool)) -> Result<Upstream, Problem> {
    let name = name.strip_suffix('/').unwrap_or(name);
    let labels: Vec<&str> = name.split('.').collect();
    let label = |label: &&str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        (1..=63).contains(&label.len()) && label.chars().all(plain)
    };
    let begins = labels.iter().take(2).all(|label| label.starts_with('_'));
    match labels.len() > 2 && begins && labels.iter().all(label) && name.len() <= 253 {
        true => Ok(Upstream::Srv {
            name: name.to_ascii_lowercase(),
            tls,
            http2,
        }),
        false => Err(wrong(
            text,
            "it names no SRV records",
            "write srv://_http._tcp.example.com: service, protocol and domain",
        )),
    }
}

fn host(text: &str, host: &str) -> Result<String, Problem> {
    match host.parse::<Name>() {
        Ok(Name::Wildcard(_)) => Err(wrong(text, "its host is a wildcard", FORMS)),
        Ok(name) => Ok(name.to_string()),
        Err(error) => Err(wrong(text, &format!("its host {host:?} {error}"), FORMS)),
    }
}

fn port(text: &str, digits: &str) -> Result<u16, Problem> {
    // `u16::from_str` takes a leading `+`, which no port has.
    let is_number = digits.bytes().all(|b| b.is_ascii_digit());
    match digits.parse() {
        Ok(port) if is_number && port != 0 => Ok(port),
        _ => Err(wrong(
            text,
            &format!("{digits:?} is no port"),
            "a port is a number from 1 to 65535",
        )),
    }
}

fn wrong(text: &str, why: &str, help: &str) -> Problem {
    Problem::new(format!("{text:?} is not an upstream: {why}")).help(help)
}
