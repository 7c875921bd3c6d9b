//! Whether a response is compressed, decided from its head alone, and what its head says then.

use http::{Method, StatusCode};

use super::super::coding::Coding;
use super::super::files::is_compressible;
use crate::message::{Framing, Known, ResponseHead};

/// What is shorter hardly becomes smaller, in bytes: with its frames it fits into one packet either
/// way.
const MIN_LENGTH: u64 = 1024;

/// What is to be done with a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    Leave,
    /// Another client would have got it compressed, and caches have to know.
    Mark,
    Compress(Coding),
}

/// `codings`: those that the client takes, the best first.
pub fn plan(head: &ResponseHead, framing: Framing, method: &Method, codings: &[Coding]) -> Plan {
    let is_head = *method == Method::HEAD;
    let length = match framing {
        Framing::Length(length) => Some(length),
        Framing::None if is_head => head.length().ok().flatten(),
        Framing::None => return unread(head),
        Framing::Chunked | Framing::UntilClose => None,
    };
    let is_long = length.is_none_or(|length| length >= MIN_LENGTH);
    match codings.first() {
        _ if !has_own_body(head.status) || !is_long || !may_change(head) => Plan::Leave,
        Some(coding) if !is_head => Plan::Compress(*coding),
        _ => Plan::Mark,
    }
}

/// The other responses without a body: that one would have been compressed is only said where a
/// stored one is confirmed.
fn unread(head: &ResponseHead) -> Plan {
    match head.status {
        StatusCode::NOT_MODIFIED => Plan::Mark,
        _ => Plan::Leave,
    }
}

/// Whether the body is a whole representation: a part of one means bytes that it has uncoded.
fn has_own_body(status: StatusCode) -> bool {
    !status.is_informational() && !status.is_redirection() && status != StatusCode::PARTIAL_CONTENT
}

fn may_change(head: &ResponseHead) -> bool {
    let fields = &head.fields;
    let is_there = |name: &str| fields.named(name).next().is_some();
    let is_final = fields.named("cache-control").any(|value| {
        let mut directives = value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
        directives.any(|directive| directive.eq_ignore_ascii_case(b"no-transform"))
    });
    let mut types = fields.all(Known::ContentType);
    let is_compressible = types.next().is_some_and(is_compressible);
    is_compressible && !is_final && !is_there("content-encoding") && !is_there("content-range")
}

/// Says that the response depends on what the client takes.
pub fn mark(head: &mut ResponseHead) {
    let said = head.fields.named("vary").any(|value| {
        let mut names = value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
        names.any(|name| name == b"*" || name.eq_ignore_ascii_case(b"accept-encoding"))
    });
    if !said {
        head.fields.push(b"Vary", b"Accept-Encoding");
    }
}

/// The head of a body that will be in this coding. What is said of its bytes is not true any more,
/// and a tag that means the same bytes becomes one that means the same content (RFC 9110 section
/// 8.8.1).
pub fn rewrite(head: &mut ResponseHead, coding: Coding) {
    const ABOUT_BYTES: [&[u8]; 5] = [
        b"accept-ranges",
        b"content-md5",
        b"content-digest",
        b"repr-digest",
        b"digest",
    ];
    mark(head);
    let fields = &mut head.fields;
    fields.retain(|field| {
        field.known != Known::ContentLength
            && !ABOUT_BYTES
                .iter()
                .any(|name| field.name.eq_ignore_ascii_case(name))
    });
    let etag = fields.named("etag").next().map(<[u8]>::to_vec);
    if let Some(etag) = etag.filter(|etag| etag.first() == Some(&b'"')) {
        fields.set(b"ETag", &[b"W/", &etag[..]].concat());
    }
    fields.push(b"Content-Encoding", coding.as_str().as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(status: u16, fields: &[(&str, &str)]) -> ResponseHead {
        let mut head = ResponseHead::new(StatusCode::from_u16(status).unwrap());
        for (name, value) in fields {
            head.fields.push(name.as_bytes(), value.as_bytes());
        }
        head
    }

    #[test]
    fn what_becomes_smaller_is_compressed() {
        const HTML: (&str, &str) = ("Content-Type", "text/html");
        let compressed = Plan::Compress(Coding::Zstd);
        for (status, fields, framing, expected) in [
            (200, &[HTML][..], Framing::Length(1024), compressed),
            (200, &[HTML], Framing::Chunked, compressed),
            (200, &[HTML], Framing::UntilClose, compressed),
            (404, &[HTML], Framing::Length(5000), compressed),
            (200, &[HTML], Framing::Length(1023), Plan::Leave),
            (200, &[], Framing::Length(5000), Plan::Leave),
            (206, &[HTML], Framing::Length(5000), Plan::Leave),
            (302, &[HTML], Framing::Length(5000), Plan::Leave),
            (204, &[HTML], Framing::None, Plan::Leave),
            (304, &[], Framing::None, Plan::Mark),
            (
                200,
                &[("Content-Type", "image/png")],
                Framing::Length(5000),
                Plan::Leave,
            ),
            (
                200,
                &[("Content-Type", "text/event-stream")],
                Framing::Chunked,
                Plan::Leave,
            ),
            (
                200,
                &[("Content-Type", "application/grpc")],
                Framing::Chunked,
                Plan::Leave,
            ),
            (
                200,
                &[HTML, ("Content-Encoding", "gzip")],
                Framing::Chunked,
                Plan::Leave,
            ),
            (
                200,
                &[HTML, ("Content-Encoding", "identity")],
                Framing::Chunked,
                Plan::Leave,
            ),
            (
                200,
                &[HTML, ("Cache-Control", "public, No-Transform")],
                Framing::Chunked,
                Plan::Leave,
            ),
            (
                200,
                &[HTML, ("Content-Range", "bytes 0-1/2")],
                Framing::Chunked,
                Plan::Leave,
            ),
        ] {
            let head = head(status, fields);
            let found = plan(&head, framing, &Method::GET, &[Coding::Zstd, Coding::Gzip]);
            assert_eq!(found, expected, "{status} {fields:?} {framing:?}");
            let for_others = plan(&head, framing, &Method::GET, &[]);
            let marked = expected != Plan::Leave;
            assert_eq!(for_others == Plan::Mark, marked, "{status} {fields:?}");
        }
        let long = head(200, &[HTML, ("Content-Length", "5000")]);
        let found = plan(&long, Framing::None, &Method::HEAD, &[Coding::Zstd]);
        assert_eq!(found, Plan::Mark);
    }

    #[test]
    fn the_head_says_what_the_body_is() {
        let mut head = head(
            200,
            &[
                ("ETag", "\"a\""),
                ("Content-Length", "5000"),
                ("Accept-Ranges", "bytes"),
                ("Content-MD5", "x"),
                ("Vary", "Cookie"),
            ],
        );
        rewrite(&mut head, Coding::Brotli);
        let fields = head.fields.iter().map(|field| {
            let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
            format!("{}: {}", text(field.name), text(field.value))
        });
        let fields: Vec<String> = fields.collect();
        let expected = [
            "Vary: Cookie",
            "Vary: Accept-Encoding",
            "ETag: W/\"a\"",
            "Content-Encoding: br",
        ];
        assert_eq!(fields, expected);
    }
}
