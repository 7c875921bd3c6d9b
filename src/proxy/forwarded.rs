//! A request as the upstream gets it: an HTTP/1.1 head that says who asked, without what the client
//! says about that, which nobody has vouched for, and without what is about the client's connection.

use http::{Method, Version};

use super::answered::nominates;
use super::changes::{self, Changes, Subject};
use super::decision::origin_form;
use super::forward_auth::Granted;
use super::origin::Origin;
use crate::config::Forwarded;
use crate::message::{Field, Framing, Known, RequestHead, write_field, write_length};

/// What is said to the upstream beside what the client has said.
pub struct Outgoing<'o> {
    pub origin: &'o Origin<'o>,
    pub form: Forwarded,
    /// The name of the field, and the identifier.
    pub request_id: Option<(&'o str, &'o str)>,
    /// What somebody else says of the request, in place of what the client says.
    pub granted: Option<&'o Granted>,
    /// What the route changes, and what its templates speak of.
    pub changes: Option<(&'o Changes, &'o Subject<'o>)>,
}

/// Whether the request wants to become a WebSocket (RFC 6455 section 4.1). No other protocol is
/// offered to upstreams: whoever is asked may ignore `Upgrade` (RFC 9110 section 7.8).
pub fn wants_upgrade(request: &RequestHead) -> bool {
    (request.version == Version::HTTP_11 || request.extended_connect)
        && request.method == Method::GET
        && request.framing.is_empty()
        && request.fields.has(Known::Upgrade)
        && request.fields.lists(Known::Connection, b"upgrade")
        && request
            .fields
            .all(Known::Upgrade)
            .all(|protocol| protocol.eq_ignore_ascii_case(b"websocket"))
}

/// Adds the head for the upstream.
pub fn write(output: &mut Vec<u8>, request: &RequestHead, outgoing: &Outgoing<'_>, upgrade: bool) {
    output.reserve(1024);
    match outgoing.changes {
        None => write_line(output, request, origin_form(request.target())),
        Some((changes, subject)) => match &changes.rewrite {
            None => write_line(output, request, subject.target),
            Some(path) => write_line(output, request, &changes::rewritten(path, subject)),
        },
    }
    let rules = outgoing.changes.map(|(changes, _)| &changes.request);
    let keeps = |name: &[u8]| rules.is_none_or(|rules| changes::keeps(rules, name));
    let id = outgoing.request_id;
    write_passed(output, request, |field| {
        let replaced = id.is_some_and(|(name, _)| name.as_bytes().eq_ignore_ascii_case(field.name));
        let forged = outgoing.granted.is_some_and(|it| it.replaces(field.name));
        !replaced && !forged && keeps(field.name)
    });
    if request.framing == Framing::Chunked {
        output.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
    }
    if upgrade {
        output.extend_from_slice(b"Connection: Upgrade\r\nUpgrade: websocket\r\n");
    }
    let wanted = |name: &str| keeps(name.as_bytes());
    outgoing.origin.write(output, outgoing.form, wanted);
    if let Some((name, id)) = id.filter(|(name, _)| wanted(name)) {
        write_field(output, name.as_bytes(), id.as_bytes());
    }
    if let Some(granted) = outgoing.granted {
        let unchanged = |field: &Field<'_>| keeps(field.name);
        granted.fields.write(output, unchanged);
    }
    if let Some((changes, subject)) = outgoing.changes {
        changes::write_added(output, &changes.request, subject, &request.fields);
    }
    output.extend_from_slice(b"\r\n");
}

/// `GET http://host/path` is for proxies: an upstream is asked for `/path`.
fn write_line(output: &mut Vec<u8>, request: &RequestHead, target: &[u8]) {
    output.extend_from_slice(request.method.as_str().as_bytes());
    output.push(b' ');
    if target.first() == Some(&b'?') {
        output.push(b'/');
    }
    output.extend_from_slice(target);
    output.extend_from_slice(b" HTTP/1.1\r\n");
}

fn write_passed(output: &mut Vec<u8>, request: &RequestHead, wanted: impl Fn(&Field<'_>) -> bool) {
    let fields = &request.fields;
    let nominates = nominates(fields);
    let nominated = |field: &Field<'_>| {
        nominates && field.known != Known::Host && fields.lists(Known::Connection, field.name)
    };
    let mut cookies_written = false;
    for field in fields.iter() {
        match field.known {
            Known::Claim => {}
            // In one form, whatever the client made of it.
            Known::ContentLength => {
                if let Framing::Length(length) = request.framing {
                    write_length(output, field.name, length);
                }
            }
            // It did not exist then (RFC 9110 section 10.1.1).
            Known::Expect if request.version == Version::HTTP_10 => {}
            known if known.is_hop_by_hop() => {}
            _ if nominated(&field) || !wanted(&field) => {}
            Known::Cookie => {
                if !std::mem::replace(&mut cookies_written, true) {
                    write_cookies(output, request, field.name);
                }
            }
            _ => write_field(output, field.name, field.value),
        }
    }
}

/// HTTP/2 clients may split cookies, HTTP/1.1 servers know one header (RFC 9113 section 8.2.3).
fn write_cookies(output: &mut Vec<u8>, request: &RequestHead, name: &[u8]) {
    output.extend_from_slice(name);
    output.extend_from_slice(b": ");
    for (number, cookie) in request.fields.all(Known::Cookie).enumerate() {
        if number > 0 {
            output.extend_from_slice(b"; ");
        }
        output.extend_from_slice(cookie);
    }
    output.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::listener::{ConnectionInfo, TlsInfo};
    use crate::message::{HeadEnd, Limits};

    const LIMITS: Limits = Limits {
        bytes: 4096,
        fields: 50,
    };

    fn parsed(target: &str, fields: &str) -> RequestHead {
        let text = format!("GET {target} HTTP/1.1\r\nHost: example.com:8443\r\n{fields}\r\n");
        let mut request = RequestHead::default();
        let length = HeadEnd::default().find(text.as_bytes(), &LIMITS).unwrap();
        request
            .parse(&text.as_bytes()[..length.unwrap()], &LIMITS)
            .unwrap();
        request
    }

    fn connection() -> ConnectionInfo {
        let client = "192.0.2.7:4711".parse().unwrap();
        ConnectionInfo::new(client, "192.0.2.9:443".parse().unwrap())
    }

    fn tls() -> TlsInfo {
        TlsInfo {
            server_name: Some("example.com".into()),
            version: "TLSv1.3",
            served: None,
            client_auth: None,
            client_subject: None,
        }
    }

    fn written(target: &str, fields: &str) -> String {
        let request = parsed(target, fields);
        let mut connection = connection();
        connection.tls = Some(tls());
        let outgoing = Outgoing {
            origin: &Origin::of(&request, &connection, &[]),
            form: Forwarded::XForwarded,
            request_id: None,
            granted: None,
            changes: None,
        };
        let mut output = Vec::new();
        write(&mut output, &request, &outgoing, wants_upgrade(&request));
        String::from_utf8(output).unwrap()
    }

    const ORIGIN: &str = "X-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Proto: https\r\n\
                          X-Forwarded-Host: example.com:8443\r\n\r\n";

    #[test]
    fn the_upstream_learns_who_asked() {
        let head = "GET /a?b HTTP/1.1\r\nHost: example.com:8443\r\nX-CaSe: d\r\n";
        assert_eq!(written("/a?b", "X-CaSe: d\r\n"), format!("{head}{ORIGIN}"));
    }

    #[test]
    fn claims_are_not_believed() {
        let head = written(
            "/",
            "X-Forwarded-For: 203.0.113.1\r\nX-Forwarded-For: 203.0.113.2\r\n\
             x_forwarded_for: 203.0.113.3\r\nX-Forwarded-Port: 80\r\n\
             Forwarded: for=203.0.113.1\r\nX-Real-IP: 203.0.113.1\r\nX-Forward: stays\r\n",
        );
        assert!(
            !head.contains("203.0.113") && !head.contains("Port"),
            "{head}"
        );
        assert!(head.contains("X-Forward: stays\r\n"), "{head}");
        assert!(head.ends_with(ORIGIN), "{head}");
    }

    #[test]
    fn what_is_about_the_connection_stays_here() {
        let head = written(
            "/",
            "Connection: keep-alive, X-Hop, Host, X-Forwarded-For\r\nX-Hop: 1\r\nKeep-Alive: 5\r\n\
             TE: trailers\r\nUpgrade: h2c\r\nHTTP2-Settings: a\r\nProxy-Connection: close\r\n",
        );
        let expected = format!("GET / HTTP/1.1\r\nHost: example.com:8443\r\n{ORIGIN}");
        assert_eq!(head, expected);
    }

    #[test]
    fn web_sockets_alone_are_offered() {
        let upgrade = |protocol: &str, more: &str| {
            let fields = format!("Connection: Upgrade\r\nUpgrade: {protocol}\r\n{more}");
            written("/", &fields).contains("Connection: Upgrade\r\nUpgrade: websocket\r\n")
        };
        assert!(upgrade("WebSocket", ""));
        assert!(!upgrade("h2c", ""));
        assert!(!upgrade("websocket, h2c", ""));
        assert!(!upgrade("websocket", "Content-Length: 5\r\n"));
        let unasked = written("/", "Upgrade: websocket\r\n");
        assert!(!unasked.contains("websocket"), "{unasked}");
    }

    #[test]
    fn split_cookies_are_joined() {
        let head = written("/", "Cookie: a=1\r\nX: y\r\nCookie: b=2\r\n");
        assert!(head.contains("Cookie: a=1; b=2\r\nX: y\r\n"), "{head}");
        assert_eq!(head.matches("Cookie").count(), 1);
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
            let head = written(target, "");
            let line = format!("GET {expected} HTTP/1.1\r\n");
            assert!(head.starts_with(&line), "{target}: {head}");
        }
    }
}
