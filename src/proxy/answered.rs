//! The header of an upstream's response, made one for the client: what is about the upstream's
//! connection stays there, and what says where the body ends says it once.

use http::header::{CONNECTION, CONTENT_LENGTH, HeaderName, HeaderValue, TRANSFER_ENCODING};
use http::{HeaderMap, StatusCode};
use pingora::Result;
use pingora::http::ResponseHeader;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Makes the upstream's response the one for the client.
pub fn rewrite(response: &mut ResponseHeader) -> Result<()> {
    // What a switch of protocols says about the connection is for both.
    if response.status != StatusCode::SWITCHING_PROTOCOLS {
        remove_hop_by_hop(response);
    }
    match repeated_length(&response.headers) {
        Some(length) => response.insert_header(CONTENT_LENGTH, length),
        None => Ok(()),
    }
}

/// RFC 9110 section 7.6.1. Pingora writes a `Connection` of its own, and keeps `Upgrade` from
/// clients of HTTP/2; a 426 must have it (section 15.5.22).
fn remove_hop_by_hop(response: &mut ResponseHeader) {
    for name in nominated(&response.headers) {
        response.remove_header(&name);
    }
    response.remove_header(&KEEP_ALIVE);
    response.remove_header(&PROXY_CONNECTION);
}

/// What `Connection` names, but never what says where the body ends.
fn nominated(headers: &HeaderMap) -> Vec<HeaderName> {
    headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        .filter(|name| ![CONTENT_LENGTH, TRANSFER_ENCODING, http::header::UPGRADE].contains(name))
        .collect()
}

/// The one length of a message that gives it more than once (RFC 9110 section 8.6). Pingora has
/// refused those whose lengths differ.
fn repeated_length(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let first = lengths.next()?;
    let end = first.as_bytes().iter().position(|byte| *byte == b',');
    if end.is_none() && lengths.next().is_none() {
        return None;
    }
    let one = &first.as_bytes()[..end.unwrap_or(first.len())];
    HeaderValue::from_bytes(one.trim_ascii()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewritten(status: u16, fields: &[(&'static str, &str)]) -> ResponseHeader {
        let mut response = ResponseHeader::build(status, None).unwrap();
        for (name, value) in fields {
            response.append_header(*name, *value).unwrap();
        }
        rewrite(&mut response).unwrap();
        response
    }

    fn names(response: &ResponseHeader) -> Vec<&str> {
        let mut names: Vec<&str> = response.headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn what_is_about_the_connection_stays_there() {
        let fields = [
            ("Connection", "close, X-Hop"),
            ("Connection", "content-length,,bad name"),
            ("X-Hop", "1"),
            ("Keep-Alive", "timeout=5"),
            ("Proxy-Connection", "close"),
            ("Content-Length", "5"),
            ("Upgrade", "websocket"),
        ];
        let response = rewritten(200, &fields);
        assert_eq!(
            names(&response),
            ["connection", "content-length", "upgrade"]
        );
        assert!(names(&rewritten(101, &fields)).contains(&"x-hop"));
    }

    #[test]
    fn the_length_is_given_once() {
        for lengths in [&["5", "5"][..], &["5, 5"], &[" 5 ,5", "5"], &["5"]] {
            let fields: Vec<_> = lengths
                .iter()
                .map(|value| ("Content-Length", *value))
                .collect();
            let response = rewritten(200, &fields);
            let lengths: Vec<_> = response.headers.get_all("content-length").iter().collect();
            assert_eq!(lengths, ["5"], "{fields:?}");
        }
    }
}
