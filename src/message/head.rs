//! The heads of requests and responses.

use http::{Method, StatusCode, Version};

use super::fields::{Fields, Known, Span};
use super::parse::{is_target, parse_length};

/// Where a body ends (RFC 9112 section 6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Framing {
    /// There is none.
    #[default]
    None,
    Length(u64),
    Chunked,
    /// With the connection: responses alone.
    UntilClose,
}

impl Framing {
    /// Whether not a byte of a body follows.
    pub fn is_empty(self) -> bool {
        matches!(self, Framing::None | Framing::Length(0))
    }
}

/// The head of a request, of whatever version: over HTTP/2, too, it has a target and a `Host`.
#[derive(Clone, Debug)]
pub struct RequestHead {
    pub method: Method,
    pub version: Version,
    pub(super) target: Span,
    pub fields: Fields,
    /// What the fields say of the body.
    pub framing: Framing,
    /// Whether an HTTP/2 stream is to become a WebSocket (RFC 8441).
    pub extended_connect: bool,
}

impl Default for RequestHead {
    /// As before anything is read.
    fn default() -> RequestHead {
        RequestHead {
            method: Method::GET,
            version: Version::HTTP_11,
            target: Span::default(),
            fields: Fields::default(),
            framing: Framing::None,
            extended_connect: false,
        }
    }
}

impl RequestHead {
    /// The request of an HTTP/2 stream (RFC 9113 section 8.3.1); `None` if what it says of itself
    /// does not agree. `ends`: whether nothing follows the head.
    pub fn from_http2(parts: &http::request::Parts, ends: bool) -> Option<RequestHead> {
        let mut head = RequestHead {
            method: parts.method.clone(),
            version: Version::HTTP_2,
            ..RequestHead::default()
        };
        head.fields.restart(b"");
        let target = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        if !is_target(target.as_bytes()) {
            return None;
        }
        head.set_target(target.as_bytes());
        if let Some(authority) = parts.uri.authority() {
            head.fields.push(b"host", authority.as_str().as_bytes());
        }
        for (name, value) in &parts.headers {
            let (name, value) = (name.as_str().as_bytes(), value.as_bytes());
            if !is_field_name(name) {
                return None;
            }
            let said = (head.fields.get(Known::Host)).filter(|_| name == b"host");
            match said {
                Some(authority) if authority.eq_ignore_ascii_case(value) => {}
                Some(_) => return None,
                None => head.fields.push(name, value),
            }
        }
        head.framing = head.http2_framing(ends)?;
        Some(head)
    }

    /// The request of an HTTP/2 stream that is to become a WebSocket (RFC 8441 section 5), as a client
    /// of HTTP/1.1 would ask for one; what follows it is no body. `key`: for `Sec-WebSocket-Key`.
    pub fn from_extended_connect(parts: &http::request::Parts, key: &str) -> Option<RequestHead> {
        let mut head = RequestHead::from_http2(parts, false)?;
        head.method = Method::GET;
        head.framing = Framing::None;
        head.extended_connect = true;
        let ours = |name: &[u8]| {
            let ours: [&[u8]; 2] = [b"sec-websocket-key", b"content-length"];
            ours.iter().any(|it| name.eq_ignore_ascii_case(it))
        };
        head.fields.retain(|field| !ours(field.name));
        head.fields.push(b"Connection", b"Upgrade");
        head.fields.push(b"Upgrade", b"websocket");
        head.fields.push(b"Sec-WebSocket-Key", key.as_bytes());
        Some(head)
    }

    /// HTTP/2 ends bodies by itself; a length that is given all the same has to be one.
    fn http2_framing(&self, ends: bool) -> Option<Framing> {
        let mut lengths = self.fields.all(Known::ContentLength);
        let length = match lengths.next() {
            Some(length) => Some(parse_length(length)?),
            None => None,
        };
        match (lengths.next(), length, ends) {
            (Some(_), ..) | (None, Some(1..), true) => None,
            (None, None, true) => Some(Framing::None),
            (None, Some(length), _) => Some(Framing::Length(length)),
            (None, None, false) => Some(Framing::Chunked),
        }
    }

    /// As the client wrote it; over HTTP/2 path and query.
    pub fn target(&self) -> &[u8] {
        self.target.of(self.fields.text())
    }

    pub(super) fn set_target(&mut self, target: &[u8]) {
        let text = self.fields.text_mut();
        let start = text.len() as u32;
        text.extend_from_slice(target);
        let end = text.len() as u32;
        self.target = Span { start, end };
    }

    /// Whether the client lets the connection go on after this request (RFC 9112 section 9.3).
    pub fn keeps_alive(&self) -> bool {
        keeps_alive(self.version, &self.fields)
    }

    /// Forgets everything, memory included.
    pub fn release(&mut self) {
        *self = RequestHead::default();
    }
}

/// The head of a response.
#[derive(Clone, Debug)]
pub struct ResponseHead {
    pub status: StatusCode,
    pub version: Version,
    pub(super) reason: Span,
    pub fields: Fields,
}

impl Default for ResponseHead {
    fn default() -> ResponseHead {
        ResponseHead::new(StatusCode::OK)
    }
}

impl ResponseHead {
    /// One of our own, without fields.
    pub fn new(status: StatusCode) -> ResponseHead {
        ResponseHead {
            status,
            version: Version::HTTP_11,
            reason: Span::default(),
            fields: Fields::default(),
        }
    }

    /// The response of an HTTP/2 stream.
    pub fn from_http2(parts: &http::response::Parts) -> ResponseHead {
        let mut head = ResponseHead {
            version: Version::HTTP_2,
            ..ResponseHead::new(parts.status)
        };
        for (name, value) in &parts.headers {
            let name = name.as_str().as_bytes();
            if is_field_name(name) {
                head.fields.push(name, value.as_bytes());
            }
        }
        head
    }

    /// As it was written, or as the RFC calls the status.
    pub fn reason(&self) -> &[u8] {
        match self.reason.of(self.fields.text()) {
            [] => self.status.canonical_reason().unwrap_or("").as_bytes(),
            reason => reason,
        }
    }

    /// Whether the sender lets the connection go on after this response.
    pub fn keeps_alive(&self) -> bool {
        keeps_alive(self.version, &self.fields)
    }

    /// Adds the status line of an HTTP/1.1 response.
    pub fn write_line(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"HTTP/1.1 ");
        out.extend_from_slice(self.status.as_str().as_bytes());
        out.push(b' ');
        out.extend_from_slice(self.reason());
        out.extend_from_slice(b"\r\n");
    }
}

/// What the `http` crate takes for a name is one, but for this: a quotation mark is no part of a token
/// (RFC 9110 section 5.6.2), and what another recipient makes of it nobody knows.
pub fn is_field_name(name: &[u8]) -> bool {
    memchr::memchr(b'"', name).is_none()
}

fn keeps_alive(version: Version, fields: &Fields) -> bool {
    match version {
        Version::HTTP_10 => {
            fields.lists(Known::Connection, b"keep-alive")
                && !fields.lists(Known::Connection, b"close")
        }
        _ => !fields.lists(Known::Connection, b"close"),
    }
}
