//! A request as an upstream of HTTP/2 gets it (RFC 9113 section 8.3.1): the same head that one of
//! HTTP/1.1 would get, said in the other way.

use bytes::Bytes;
use h2::ext::Protocol;
use http::uri::{Authority, PathAndQuery};
use http::{HeaderName, HeaderValue, Method, Request, Uri, header};

use super::failure::UpstreamError;
use crate::message::{Known, RequestHead};

/// `text`: the head for HTTP/1.1, as [`super::forwarded::write`] makes it. `request`: the client's.
pub fn request(
    text: &[u8],
    request: &RequestHead,
    tls: bool,
) -> Result<Request<()>, UpstreamError> {
    let mut lines = text.split(|byte| *byte == b'\n').map(|line| {
        let end = line.strip_suffix(b"\r");
        end.unwrap_or(line)
    });
    let line = lines.next().unwrap_or_default();
    let target = line.split(|byte| *byte == b' ').nth(1);
    let path = path(&request.method, target.unwrap_or_default())?;
    let mut head = Request::new(());
    *head.method_mut() = request.method.clone();
    let fields = head.headers_mut();
    fields.reserve(request.fields.len() + 4);
    let mut authority = None;
    for line in lines.take_while(|line| !line.is_empty()) {
        let at = memchr::memchr(b':', line).unwrap_or(line.len());
        let (name, value) = line.split_at(at);
        let value = value.get(1..).unwrap_or_default().trim_ascii();
        match Known::of(name) {
            Known::Host => authority = Some(value),
            known if known.is_hop_by_hop() => {}
            _ => {
                // Both were checked when they were read: neither conversion fails.
                let name = HeaderName::from_bytes(name);
                if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(value)) {
                    fields.append(name, value);
                }
            }
        }
    }
    // It is about the way to the next, but says that the client takes trailers: servers of gRPC
    // want to hear it.
    if request.fields.lists(Known::Te, b"trailers") {
        fields.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    let authority = authority.and_then(|host| Authority::try_from(host).ok());
    let authority = authority.ok_or_else(|| unsayable("its Host is no authority"))?;
    let mut uri = http::uri::Parts::default();
    uri.scheme = Some(match tls {
        true => http::uri::Scheme::HTTPS,
        false => http::uri::Scheme::HTTP,
    });
    uri.authority = Some(authority);
    uri.path_and_query = Some(path);
    *head.uri_mut() = Uri::from_parts(uri).map_err(|error| unsayable(&error.to_string()))?;
    Ok(head)
}

/// Makes of a request for a WebSocket what it is in HTTP/2 (RFC 8441 section 5).
pub fn extended_connect(head: &mut Request<()>) {
    *head.method_mut() = Method::CONNECT;
    let protocol = Protocol::from_static("websocket");
    head.extensions_mut().insert(protocol);
    head.headers_mut().remove(header::SEC_WEBSOCKET_KEY);
}

fn unsayable(why: &str) -> UpstreamError {
    UpstreamError::Unsayable(why.to_owned())
}

/// What the library takes for no path, though clients send it, goes on percent-encoded.
fn path(method: &Method, target: &[u8]) -> Result<PathAndQuery, UpstreamError> {
    if target == b"*" && *method == Method::OPTIONS {
        return Ok(PathAndQuery::from_static("*"));
    }
    if let Ok(path) = PathAndQuery::from_maybe_shared(Bytes::copy_from_slice(target)) {
        return Ok(path);
    }
    let mut encoded = Vec::with_capacity(target.len() + 16);
    for &byte in target {
        match byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/?%".contains(&byte) {
            true => encoded.push(byte),
            false => encoded.extend_from_slice(format!("%{byte:02X}").as_bytes()),
        }
    }
    PathAndQuery::from_maybe_shared(Bytes::from(encoded))
        .map_err(|error| unsayable(&error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Limits;

    const LIMITS: Limits = Limits {
        bytes: 4096,
        fields: 10,
    };

    fn said(text: &str) -> Request<()> {
        let mut head = RequestHead::default();
        head.parse(text.as_bytes(), &LIMITS).unwrap();
        request(text.as_bytes(), &head, true).unwrap()
    }

    #[test]
    fn a_head_in_the_other_way() {
        let head = said(
            "POST /a?b=c HTTP/1.1\r\nHost: a.test:8443\r\nX-CaSe: 1\r\nx-case: 2\r\n\
             Transfer-Encoding: chunked\r\nTE: trailers\r\nX-Empty:\r\n\r\n",
        );
        assert_eq!(head.method(), "POST");
        assert_eq!(head.uri().to_string(), "https://a.test:8443/a?b=c");
        let values: Vec<_> = head.headers().get_all("x-case").iter().collect();
        assert_eq!(values, ["1", "2"]);
        assert_eq!(head.headers()["te"], "trailers");
        assert_eq!(head.headers()["x-empty"], "");
        assert_eq!(head.headers().len(), 4);
    }

    #[test]
    fn targets_that_the_library_does_not_take() {
        for (target, path) in [
            ("/a<b>?c`", "/a%3Cb%3E?c%60"),
            ("/a%20b", "/a%20b"),
            ("/", "/"),
        ] {
            let head = said(&format!("GET {target} HTTP/1.1\r\nHost: a.test\r\n\r\n"));
            assert_eq!(head.uri().path_and_query().unwrap().as_str(), path);
        }
        let head = said("OPTIONS * HTTP/1.1\r\nHost: a.test\r\n\r\n");
        assert_eq!(head.uri().path(), "*");
    }
}
