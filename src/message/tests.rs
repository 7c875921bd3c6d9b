//! Heads and bodies: what is read, and what is refused.

use bytes::BytesMut;
use http::{Method, StatusCode};

use super::*;

const LIMITS: Limits = Limits {
    bytes: 4096,
    fields: 8,
};

fn request(text: &[u8]) -> Result<RequestHead, HeadError> {
    let mut head = RequestHead::default();
    let length = HeadEnd::default().find(text, &LIMITS)?.expect("an end");
    assert_eq!(length, text.len());
    head.parse(text, &LIMITS)?;
    Ok(head)
}

fn response(text: &[u8]) -> Result<ResponseHead, HeadError> {
    let mut head = ResponseHead::default();
    let length = HeadEnd::default().find_in_response(text, &LIMITS)?;
    assert_eq!(length, Some(text.len()));
    head.parse(text, &LIMITS)?;
    Ok(head)
}

fn with(fields: &str) -> Result<RequestHead, HeadError> {
    request(format!("GET / HTTP/1.1\r\n{fields}\r\n").as_bytes())
}

#[test]
fn a_request_is_read_as_it_stands() {
    let head = with("Host: a.test\r\nX-CaSe:\t b c \r\nEmpty:\r\nx-case: d\r\n").unwrap();
    assert_eq!((&head.method, head.target()), (&Method::GET, &b"/"[..]));
    let fields: Vec<_> = head.fields.iter().map(|f| (f.name, f.value)).collect();
    let expected: [(&[u8], &[u8]); 4] = [
        (b"Host", b"a.test"),
        (b"X-CaSe", b"b c"),
        (b"Empty", b""),
        (b"x-case", b"d"),
    ];
    assert_eq!(fields, expected);
    assert_eq!(head.fields.get(Known::Host), Some(&b"a.test"[..]));
    assert_eq!(head.framing, Framing::None);
}

#[test]
fn a_head_is_found_as_it_comes() {
    let text = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\nrest";
    let mut end = HeadEnd::default();
    for length in 0..text.len() - 4 {
        assert_eq!(end.find(&text[..length], &LIMITS), Ok(None), "{length}");
    }
    assert_eq!(end.find(text, &LIMITS), Ok(Some(text.len() - 4)));
}

#[test]
fn lines_end_in_crlf() {
    for odd in [
        "GET / HTTP/1.1\n",
        "GET / HTTP/1.1\r\nX: y\n",
        "\nGET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\n\n",
    ] {
        let found = HeadEnd::default().find(odd.as_bytes(), &LIMITS);
        assert_eq!(found, Err(HeadError::LineEnd), "{odd:?}");
    }
}

#[test]
fn request_lines_have_one_form() {
    for odd in [
        "GET  / HTTP/1.1",
        " GET / HTTP/1.1",
        "GET / HTTP/1.1 ",
        "GET /\tHTTP/1.1",
        "GET /a b HTTP/1.1",
        "GET /a\tb HTTP/1.1",
        "GET /a\0b HTTP/1.1",
        "GET /a\rb HTTP/1.1",
        "GET /#a HTTP/1.1",
        "GE(T / HTTP/1.1",
        "GET /",
        "GET",
        "/ HTTP/1.1",
        "GET  HTTP/1.1",
    ] {
        let error = request(format!("{odd}\r\nHost: a\r\n\r\n").as_bytes()).unwrap_err();
        let malformed = [HeadError::RequestLine, HeadError::Version];
        assert!(malformed.contains(&error), "{odd:?}: {error}");
    }
    for version in ["HTTP/0.9", "HTTP/1.2", "HTTP/2.0", "http/1.1", "HTTP/1.10"] {
        let text = format!("GET / {version}\r\n\r\n");
        assert_eq!(request(text.as_bytes()).unwrap_err(), HeadError::Version);
    }
}

#[test]
fn fields_have_one_form() {
    for (odd, error) in [
        ("X : y\r\n", HeadError::FieldName),
        (" X: y\r\n", HeadError::FieldName),
        (": y\r\n", HeadError::FieldName),
        ("X\r\n", HeadError::FieldName),
        ("X: a\r\n b\r\n", HeadError::FieldName),
        ("X: a\0b\r\n", HeadError::FieldValue),
        ("X: a\rb\r\n", HeadError::FieldValue),
        ("X: \x0ba\r\n", HeadError::FieldValue),
        ("X: a\x7f\r\n", HeadError::FieldValue),
        ("X: a\r\r\n", HeadError::FieldValue),
    ] {
        assert_eq!(with(odd).unwrap_err(), error, "{odd:?}");
    }
    assert_eq!(
        with(&"X: y\r\n".repeat(9)).unwrap_err(),
        HeadError::TooLarge
    );
    let long = format!("X: {}\r\n", "y".repeat(4096));
    assert_eq!(with(&long).unwrap_err(), HeadError::TooLarge);
}

#[test]
fn one_field_says_where_a_request_ends() {
    for (fields, framing) in [
        ("Content-Length: 005\r\n", Framing::Length(5)),
        ("content-length:0\r\n", Framing::Length(0)),
        ("Transfer-Encoding: CHUNKED\r\n", Framing::Chunked),
    ] {
        assert_eq!(with(fields).unwrap().framing, framing, "{fields:?}");
    }
    for odd in [
        "Content-Length: 5\r\nContent-Length: 5\r\n",
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "Content-Length: 5, 5\r\n",
        "Content-Length: +5\r\n",
        "Content-Length:\r\n",
        "Content-Length: 18446744073709551616\r\n",
        "Transfer-Encoding: gzip, chunked\r\n",
        "Transfer-Encoding:\r\n",
    ] {
        let error = with(odd).unwrap_err();
        let framing = [HeadError::Length, HeadError::TransferEncoding];
        assert!(framing.contains(&error), "{odd:?}: {error}");
    }
    let old = request(b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n");
    assert_eq!(old.unwrap_err(), HeadError::TransferEncoding);
}

#[test]
fn responses_are_mended_a_little() {
    let head = response(b"HTTP/1.1 200\nX : a\n  b\r\n\tc\nContent-Length: 5, 5\n\n").unwrap();
    let fields: Vec<_> = head.fields.iter().map(|f| (f.name, f.value)).collect();
    let value = fields[0].1.to_vec();
    assert_eq!(fields[0].0, b"X");
    let words: Vec<&[u8]> = value
        .split(|byte| *byte == b' ' || *byte == b'\t')
        .collect();
    let words: Vec<&[u8]> = words.into_iter().filter(|word| !word.is_empty()).collect();
    assert_eq!(words, [b"a", b"b", b"c"], "{value:?}");
    assert_eq!(head.reason(), b"OK");
    assert_eq!(head.framing(&Method::GET), Ok(Framing::Length(5)));
    for odd in [
        "HTTP/3.7 200 OK\r\n\r\n",
        "HTTP/1.1 2000 OK\r\n\r\n",
        "HTTP/1.1 OK\r\n\r\n",
        "HTTP/1.1 200 O\rK\r\n\r\n",
        "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX\x0c: a\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX\r: a\r\n\r\n",
        "HTTP/1.1 200 OK\r\n folded\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: a\r\n b\0c\r\n\r\n",
    ] {
        assert!(response(odd.as_bytes()).is_err(), "{odd:?}");
    }
}

#[test]
fn responses_end_where_the_rfc_says() {
    let framing = |status: u16, method: &Method, fields: &str| {
        let text = format!("HTTP/1.1 {status} X\r\n{fields}\r\n");
        response(text.as_bytes()).unwrap().framing(method)
    };
    let get = &Method::GET;
    assert_eq!(framing(200, get, ""), Ok(Framing::UntilClose));
    let length = "Content-Length: 5\r\n";
    assert_eq!(framing(200, get, length), Ok(Framing::Length(5)));
    assert_eq!(framing(304, get, length), Ok(Framing::None));
    assert_eq!(framing(200, &Method::HEAD, length), Ok(Framing::None));
    let both = "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n";
    assert_eq!(framing(200, get, both), Ok(Framing::Chunked));
    for odd in [
        "Transfer-Encoding: gzip, chunked\r\n",
        "Transfer-Encoding: gzip\r\n",
        "Content-Length: 5\r\nContent-Length: 6\r\n",
        "Content-Length: -5\r\n",
    ] {
        assert!(framing(200, get, odd).is_err(), "{odd:?}");
    }
}

/// The data of a chunked body that comes in parts of `part` bytes, and what is left behind it.
fn unchunked(text: &str, part: usize) -> Result<(Vec<u8>, usize), BodyError> {
    let mut reader = BodyReader::new(Framing::Chunked);
    let (mut received, mut data) = (BytesMut::new(), Vec::new());
    let mut parts = text.as_bytes().chunks(part);
    loop {
        match reader.step(&mut received)? {
            // As if there were hardly any room.
            Step::Data(length) => {
                let taken = length.min(3);
                data.extend_from_slice(&received.split_to(taken));
                reader.took(taken);
            }
            Step::More => match parts.next() {
                Some(part) => received.extend_from_slice(part),
                None => return Err(BodyError::Truncated),
            },
            Step::End => {
                assert!(reader.is_done());
                let rest: usize = parts.map(<[u8]>::len).sum();
                return Ok((data, received.len() + rest));
            }
        }
    }
}

#[test]
fn chunks_are_read_however_they_come() {
    let text = "5\r\nhello\r\n1;name=value\r\n \r\n0005\r\nworld\r\n0\r\nX: y\r\n\r\nrest";
    for part in 1..text.len() {
        let read = unchunked(text, part).unwrap();
        assert_eq!(read, (b"hello world".to_vec(), 4), "{part}");
    }
    for (odd, error) in [
        ("\r\n\r\n", BodyError::ChunkSize),
        (";a\r\n\r\n", BodyError::ChunkSize),
        ("5\nhello\r\n0\r\n\r\n", BodyError::ChunkSize),
        ("5 \r\nhello\r\n0\r\n\r\n", BodyError::ChunkSize),
        ("0x5\r\nhello\r\n0\r\n\r\n", BodyError::ChunkSize),
        ("-5\r\nhello\r\n0\r\n\r\n", BodyError::ChunkSize),
        ("5;a\rb\r\nhello\r\n0\r\n\r\n", BodyError::ChunkSize),
        ("5;a\0b\r\nhello\r\n0\r\n\r\n", BodyError::ChunkSize),
        ("10000000000000000\r\n", BodyError::ChunkSize),
        ("fffffffffffffffe\r\n", BodyError::ChunkSize),
        ("5\r\nhelloXX0\r\n\r\n", BodyError::ChunkEnd),
        ("5\r\nhello\n0\r\n\r\n", BodyError::ChunkEnd),
        ("3\r\nhello\r\n0\r\n\r\n", BodyError::ChunkEnd),
        ("5\r\nhello\r\n0\r\n", BodyError::Truncated),
        ("5\r\nhel", BodyError::Truncated),
        ("", BodyError::Truncated),
    ] {
        for part in [1, 2, 100] {
            assert_eq!(unchunked(odd, part), Err(error), "{odd:?}");
        }
    }
    for odd in ["0\r\nX: y\nZ: z\r\n\r\n", "0\r\nnothing\r\n\r\n", "0\r\n\n"] {
        let error = unchunked(odd, 100).unwrap_err();
        assert!(matches!(error, BodyError::Trailers(_)), "{odd:?}: {error}");
    }
    let endless = format!("5;{}", "x".repeat(5000));
    assert_eq!(unchunked(&endless, 7), Err(BodyError::ChunkSize));
}

#[test]
fn trailers_say_nothing_about_the_message() {
    let mut trailers = Fields::default();
    for name in [
        "X-Sum",
        "Content-Length",
        "Host",
        "authorization",
        "X-Forwarded-For",
        "x\"y",
    ] {
        trailers.push(name.as_bytes(), b"5");
    }
    let mut out = Vec::new();
    write_chunk(&mut out, b"hello world 0123");
    write_last_chunk(&mut out, Some(&trailers));
    assert_eq!(out, b"10\r\nhello world 0123\r\n0\r\nX-Sum: 5\r\n\r\n");
}

#[test]
fn connections_go_on_unless_somebody_says_otherwise() {
    for (text, keeps) in [
        ("GET / HTTP/1.1\r\n\r\n", true),
        ("GET / HTTP/1.1\r\nConnection: Foo, CLOSE\r\n\r\n", false),
        ("GET / HTTP/1.0\r\n\r\n", false),
        ("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", true),
    ] {
        assert_eq!(
            request(text.as_bytes()).unwrap().keeps_alive(),
            keeps,
            "{text}"
        );
    }
}

#[test]
fn claims_are_recognised_in_disguise() {
    for name in [
        "X-Forwarded-For",
        "x_forwarded_proto",
        "Forwarded",
        "X-Real_IP",
    ] {
        assert_eq!(Known::of(name.as_bytes()), Known::Claim, "{name}");
    }
    assert_eq!(Known::of(b"X-Forward"), Known::Other);
}

fn http2(uri: &str, fields: &[(&'static str, &str)], ends: bool) -> Option<RequestHead> {
    let mut builder = http::Request::builder().uri(uri);
    for (name, value) in fields {
        // As the h2 crate reads names.
        let name = http::HeaderName::from_lowercase(name.as_bytes()).unwrap();
        builder = builder.header(name, *value);
    }
    let (parts, ()) = builder.body(()).unwrap().into_parts();
    RequestHead::from_http2(&parts, ends)
}

#[test]
fn http2_requests_become_the_same_heads() {
    let head = http2(
        "https://a.test/x?y",
        &[("host", "A.test"), ("x", "z")],
        true,
    )
    .unwrap();
    assert_eq!(head.target(), b"/x?y");
    assert_eq!(head.fields.all(Known::Host).count(), 1);
    assert_eq!(head.framing, Framing::None);
    assert!(http2("https://a.test/", &[("host", "b.test")], true).is_none());
    assert!(http2("https://a.test/", &[("content-length", "5")], true).is_none());
    assert!(http2("https://a.test/", &[("content-length", "+5")], false).is_none());
    assert!(
        http2(
            "https://a.test/",
            &[("transfer-encoding\"", "chunked")],
            false
        )
        .is_none()
    );
    let framing = |fields: &[_]| http2("https://a.test/", fields, false).unwrap().framing;
    assert_eq!(framing(&[]), Framing::Chunked);
    assert_eq!(framing(&[("content-length", "5")]), Framing::Length(5));
}

#[test]
fn our_own_heads_have_reasons() {
    let mut out = Vec::new();
    ResponseHead::new(StatusCode::BAD_GATEWAY).write_line(&mut out);
    assert_eq!(out, b"HTTP/1.1 502 Bad Gateway\r\n");
}
