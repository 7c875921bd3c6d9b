//! Who asked, and how: the connection's client, or the one that a proxy in front of us names, if its
//! word is taken.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

use crate::config::{Forwarded, IpPrefix, ProxyProtocol};
use crate::listener::{ConnectionInfo, proxy_protocol};
use crate::message::{Fields, Known, RequestHead, write_field};

/// Who asked, as upstreams are told and the log says.
#[derive(Debug)]
pub struct Origin<'o> {
    /// The client's IP address.
    pub client: Cow<'o, str>,
    /// Whether the client has it over TLS.
    pub secure: bool,
    /// The host that the client asked for.
    pub host: &'o [u8],
    /// The trusted proxies between the client and us, in the order of the way.
    hops: Vec<String>,
}

impl<'o> Origin<'o> {
    /// What a proxy says is believed if it is `trusted`, and what it says of others as long as they
    /// are, too.
    pub fn of(
        request: &'o RequestHead,
        connection: &'o ConnectionInfo,
        trusted: &[IpPrefix],
    ) -> Origin<'o> {
        let host = request.fields.get(Known::Host).unwrap_or_default();
        let mut origin = Origin {
            client: Cow::Borrowed(&connection.client_ip),
            secure: connection.tls.is_some(),
            host,
            hops: Vec::new(),
        };
        let is_trusted = |ip: IpAddr| trusted.iter().any(|prefix| prefix.contains(ip));
        if is_trusted(connection.client.ip()) {
            origin.believe(&request.fields, &connection.client_ip, is_trusted);
        }
        origin
    }

    fn believe(&mut self, fields: &'o Fields, peer: &str, is_trusted: impl Fn(IpAddr) -> bool) {
        let claims = Claims::of(fields);
        let mut last = peer.to_owned();
        // From the nearest on. What stands before somebody who is not trusted may be anything.
        for address in claims
            .addresses
            .iter()
            .rev()
            .map_while(|text| address(text))
        {
            self.hops
                .push(std::mem::replace(&mut last, address.to_string()));
            if !is_trusted(address) {
                break;
            }
        }
        self.hops.reverse();
        self.client = Cow::Owned(last);
        if let Some(secure) = claims.secure {
            self.secure = secure;
        }
        if let Some(host) = claims.host {
            self.host = host;
        }
    }

    pub fn scheme(&self) -> &'static str {
        if self.secure { "https" } else { "http" }
    }

    /// The client, if it is not the connection's.
    pub fn named_client(&self) -> Option<&str> {
        match &self.client {
            Cow::Borrowed(_) => None,
            Cow::Owned(client) => Some(client),
        }
    }

    /// What a connection to an upstream begins with. Of a client that somebody else names the port
    /// is not known.
    pub fn announcement(&self, version: ProxyProtocol, connection: &ConnectionInfo) -> Vec<u8> {
        let named = self.named_client().and_then(|client| client.parse().ok());
        let client = match named {
            Some(ip) if ip != connection.client.ip() => SocketAddr::new(ip, 0),
            _ => connection.client,
        };
        proxy_protocol::write(version, client, connection.local)
    }

    /// The client and the trusted proxies between it and us, as `X-Forwarded-For` lists them.
    pub fn way(&self) -> String {
        let mut way = self.client.to_string();
        for hop in &self.hops {
            way.push_str(", ");
            way.push_str(hop);
        }
        way
    }

    /// Adds the fields that tell an upstream, those that are `wanted`.
    pub fn write(&self, out: &mut Vec<u8>, form: Forwarded, wanted: impl Fn(&str) -> bool) {
        if matches!(form, Forwarded::XForwarded | Forwarded::Both) {
            if wanted("X-Forwarded-For") {
                out.extend_from_slice(b"X-Forwarded-For: ");
                out.extend_from_slice(self.client.as_bytes());
                for hop in &self.hops {
                    out.extend_from_slice(b", ");
                    out.extend_from_slice(hop.as_bytes());
                }
                out.extend_from_slice(b"\r\n");
            }
            if wanted("X-Forwarded-Proto") {
                write_field(out, b"X-Forwarded-Proto", self.scheme().as_bytes());
            }
            if wanted("X-Forwarded-Host") {
                write_field(out, b"X-Forwarded-Host", self.host);
            }
        }
        if matches!(form, Forwarded::Rfc7239 | Forwarded::Both) && wanted("Forwarded") {
            self.write_forwarded(out);
        }
    }

    /// RFC 7239 section 4.
    fn write_forwarded(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"Forwarded: ");
        write_node(out, &self.client);
        out.extend_from_slice(b";host=\"");
        // Without what would end the quotes.
        let quoted = self
            .host
            .iter()
            .filter(|byte| !matches!(byte, b'"' | b'\\'));
        out.extend(quoted);
        out.extend_from_slice(b"\";proto=");
        out.extend_from_slice(self.scheme().as_bytes());
        for hop in &self.hops {
            out.extend_from_slice(b", ");
            write_node(out, hop);
        }
        out.extend_from_slice(b"\r\n");
    }
}

/// RFC 7239 section 6: IPv6 addresses stand in brackets and quotes.
fn write_node(out: &mut Vec<u8>, address: &str) {
    let (before, after): (&[u8], &[u8]) = match address.contains(':') {
        true => (b"for=\"[", b"]\""),
        false => (b"for=", b""),
    };
    out.extend_from_slice(before);
    out.extend_from_slice(address.as_bytes());
    out.extend_from_slice(after);
}

/// What fields of a request say of who asked.
#[derive(Default)]
struct Claims<'f> {
    /// Clients and proxies, in the order of the way.
    addresses: Vec<&'f [u8]>,
    secure: Option<bool>,
    host: Option<&'f [u8]>,
}

impl<'f> Claims<'f> {
    /// `X-Forwarded-*`, or `Forwarded` where there is none of them.
    fn of(fields: &'f Fields) -> Claims<'f> {
        let mut claims = Claims::default();
        claims.addresses.extend(list(fields, "x-forwarded-for"));
        if let Some(proto) = list(fields, "x-forwarded-proto").last() {
            claims.say_proto(proto);
        }
        claims.host = list(fields, "x-forwarded-host").last();
        if claims.addresses.is_empty() && claims.secure.is_none() && claims.host.is_none() {
            for element in list(fields, "forwarded") {
                claims.read_element(element);
            }
        }
        claims
    }

    fn read_element(&mut self, element: &'f [u8]) {
        for pair in element.split(|byte| *byte == b';') {
            let Some(at) = pair.iter().position(|byte| *byte == b'=') else {
                continue;
            };
            let (name, value) = (pair[..at].trim_ascii(), pair[at + 1..].trim_ascii());
            let unquoted = value
                .strip_prefix(b"\"")
                .and_then(|rest| rest.strip_suffix(b"\""));
            let value = unquoted.unwrap_or(value);
            match name.to_ascii_lowercase().as_slice() {
                b"for" => self.addresses.push(value),
                b"proto" if self.secure.is_none() => self.say_proto(value),
                b"host" if self.host.is_none() => self.host = Some(value),
                _ => {}
            }
        }
    }

    fn say_proto(&mut self, proto: &[u8]) {
        if proto.eq_ignore_ascii_case(b"https") {
            self.secure = Some(true);
        } else if proto.eq_ignore_ascii_case(b"http") {
            self.secure = Some(false);
        }
    }
}

/// The members of the list that all fields of this name make.
fn list<'f>(fields: &'f Fields, name: &str) -> impl Iterator<Item = &'f [u8]> {
    fields
        .named(name)
        .flat_map(|value| value.split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|member| !member.is_empty())
}

/// An address, with or without a port; an IPv6 one may be in brackets.
fn address(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text).ok()?;
    let bare = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(text);
    let ip = bare.parse().ok();
    let with_port = || text.parse().ok().map(|address: SocketAddr| address.ip());
    ip.or_else(with_port).map(|ip: IpAddr| ip.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{HeadEnd, Limits};

    const LIMITS: Limits = Limits {
        bytes: 4096,
        fields: 50,
    };

    fn request(fields: &str) -> RequestHead {
        let text = format!("GET / HTTP/1.1\r\nHost: a.test\r\n{fields}\r\n");
        let mut request = RequestHead::default();
        let length = HeadEnd::default().find(text.as_bytes(), &LIMITS).unwrap();
        let head = &text.as_bytes()[..length.unwrap()];
        request.parse(head, &LIMITS).unwrap();
        request
    }

    fn told(peer: &str, fields: &str, form: Forwarded) -> String {
        let peer = SocketAddr::new(peer.parse().unwrap(), 1);
        let connection = ConnectionInfo::new(peer, "192.0.2.9:80".parse().unwrap());
        let trusted = ["10.0.0.0/8", "fd00::/8"].map(|text| IpPrefix::parse(text).unwrap());
        let request = request(fields);
        let origin = Origin::of(&request, &connection, &trusted);
        let mut out = Vec::new();
        origin.write(&mut out, form, |_| true);
        String::from_utf8(out).unwrap()
    }

    fn chain(peer: &str, claimed: &str) -> String {
        let fields = format!("X-Forwarded-For: {claimed}\r\n");
        let told = told(peer, &fields, Forwarded::XForwarded);
        let line = told.lines().next().unwrap();
        line.strip_prefix("X-Forwarded-For: ").unwrap().to_owned()
    }

    #[test]
    fn only_the_word_of_trusted_proxies_is_taken() {
        for (peer, claimed, expected) in [
            ("192.0.2.1", "203.0.113.1", "192.0.2.1"),
            ("10.0.0.1", "203.0.113.1", "203.0.113.1, 10.0.0.1"),
            (
                "10.0.0.1",
                "203.0.113.1, 10.9.9.9",
                "203.0.113.1, 10.9.9.9, 10.0.0.1",
            ),
            // Whoever is not trusted has written what stands before.
            ("10.0.0.1", "1.1.1.1, 203.0.113.1", "203.0.113.1, 10.0.0.1"),
            ("10.0.0.1", "1.1.1.1, junk, 10.9.9.9", "10.9.9.9, 10.0.0.1"),
            ("10.0.0.1", "junk", "10.0.0.1"),
            ("10.0.0.1", "203.0.113.1:4711", "203.0.113.1, 10.0.0.1"),
            ("fd00::1", "[2001:db8::1]:80", "2001:db8::1, fd00::1"),
            (
                "10.0.0.1",
                "10.0.0.2, 10.0.0.3",
                "10.0.0.2, 10.0.0.3, 10.0.0.1",
            ),
        ] {
            assert_eq!(chain(peer, claimed), expected, "{peer} {claimed}");
        }
    }

    #[test]
    fn scheme_and_host_are_theirs_too() {
        let fields = "X-Forwarded-Proto: https\r\nX-Forwarded-Host: b.test\r\n";
        let expected = "X-Forwarded-For: 10.0.0.1\r\nX-Forwarded-Proto: https\r\n\
                        X-Forwarded-Host: b.test\r\n";
        assert_eq!(told("10.0.0.1", fields, Forwarded::XForwarded), expected);
        let own = "X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: http\r\n\
                   X-Forwarded-Host: a.test\r\n";
        assert_eq!(told("192.0.2.1", fields, Forwarded::XForwarded), own);
    }

    #[test]
    fn rfc_7239_is_read_and_written() {
        let fields =
            "Forwarded: for=\"[2001:db8::1]:99\";proto=https;host=b.test, for=10.0.0.2\r\n";
        let expected = "Forwarded: for=\"[2001:db8::1]\";host=\"b.test\";proto=https, \
                        for=10.0.0.2, for=10.0.0.1\r\n";
        assert_eq!(told("10.0.0.1", fields, Forwarded::Rfc7239), expected);
        let own = "Forwarded: for=192.0.2.1;host=\"a.test\";proto=http\r\n";
        assert_eq!(told("192.0.2.1", fields, Forwarded::Rfc7239), own);
        assert_eq!(told("192.0.2.1", fields, Forwarded::Off), "");
    }
}
