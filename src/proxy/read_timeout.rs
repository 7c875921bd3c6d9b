//! Which answers may take as long as they like: those that come when something happens.

use http::HeaderMap;
use http::header::{ACCEPT, CONTENT_TYPE};

/// Whether reads from the upstream time out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReadTimeout {
    #[default]
    Usual,
    None,
}

impl ReadTimeout {
    /// None for WebSockets, server-sent events and gRPC streams.
    pub fn for_request(headers: &HeaderMap, is_upgrade: bool) -> ReadTimeout {
        let events = has(headers, ACCEPT, |value| {
            contains(value, b"text/event-stream")
        });
        let grpc = has(headers, CONTENT_TYPE, |value| {
            value
                .get(..16)
                .is_some_and(|start| start.eq_ignore_ascii_case(b"application/grpc"))
        });
        match is_upgrade || events || grpc {
            true => ReadTimeout::None,
            false => ReadTimeout::Usual,
        }
    }
}

fn has(headers: &HeaderMap, name: http::HeaderName, wanted: impl Fn(&[u8]) -> bool) -> bool {
    headers
        .get_all(name)
        .iter()
        .any(|value| wanted(value.as_bytes()))
}

fn contains(value: &[u8], wanted: &[u8]) -> bool {
    value
        .windows(wanted.len())
        .any(|window| window.eq_ignore_ascii_case(wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_and_streams_have_none() {
        for (name, value, expected) in [
            ("accept", "text/event-stream", ReadTimeout::None),
            (
                "accept",
                "text/html, Text/Event-Stream;q=0.9",
                ReadTimeout::None,
            ),
            ("accept", "*/*", ReadTimeout::Usual),
            ("content-type", "application/grpc+proto", ReadTimeout::None),
            ("content-type", "application/grpc", ReadTimeout::None),
            ("content-type", "application/json", ReadTimeout::Usual),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            assert_eq!(
                ReadTimeout::for_request(&headers, false),
                expected,
                "{value}"
            );
            assert_eq!(ReadTimeout::for_request(&headers, true), ReadTimeout::None);
        }
    }
}
