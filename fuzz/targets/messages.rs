//! Heads and bodies of HTTP/1.1: whatever is taken for a head is one in a slow and obvious reading of
//! RFC 9112 too, and a body ends in one place however it comes.

#![no_main]

use bytes::BytesMut;
use http::Method;
use libfuzzer_sys::fuzz_target;
use perennial::message::{
    BodyReader, Fields, Framing, HeadEnd, Limits, RequestHead, ResponseHead, Step,
};
use perennial_fuzz::input::{byte, join};
use perennial_fuzz::write_seeds;

const LIMITS: Limits = Limits {
    bytes: 4096,
    fields: 50,
};

fuzz_target!(init: write_seeds(seeds), |data: &[u8]| {
    let mut rest = data;
    let kind = byte(&mut rest);
    match kind % 3 {
        0 => request(rest),
        1 => response(rest),
        _ => chunked(rest, usize::from(kind / 3) + 1),
    }
});

fn request(text: &[u8]) {
    let Ok(Some(length)) = HeadEnd::default().find(text, &LIMITS) else {
        return;
    };
    let mut grown = HeadEnd::default();
    let early = (0..length).all(|part| grown.find(&text[..part], &LIMITS) == Ok(None));
    assert!(early, "an end before the end");
    let mut head = RequestHead::default();
    if head.parse(&text[..length], &LIMITS).is_ok() {
        let text = std::str::from_utf8(&text[..length]).map(str::to_owned);
        let text = text.unwrap_or_default();
        if !text.is_empty() {
            compare(&head, &text);
        }
        assert!(head.target().iter().all(|byte| *byte > b' '));
        assert_sound(&head.fields);
    }
}

/// Line by line, as the grammar has it.
fn compare(head: &RequestHead, text: &str) {
    let mut lines = text.strip_suffix("\r\n\r\n").unwrap().split("\r\n");
    let words: Vec<&str> = lines.next().unwrap().split(' ').collect();
    let [method, target, version] = words[..] else {
        panic!("no request line: {words:?}");
    };
    assert_eq!(head.method.as_str(), method);
    assert_eq!(head.target(), target.as_bytes());
    assert_eq!(format!("{:?}", head.version), version);
    let mut fields = head.fields.iter();
    for line in lines {
        let (name, value) = line.split_once(':').unwrap();
        let field = fields.next().unwrap();
        assert_eq!(field.name, name.as_bytes());
        assert_eq!(field.value, value.trim_matches([' ', '\t']).as_bytes());
    }
    assert!(fields.next().is_none());
}

/// What is written again is read again as the same.
fn assert_sound(fields: &Fields) {
    for field in fields.iter() {
        assert!(!field.name.is_empty());
        assert!(field.name.iter().all(u8::is_ascii_graphic), "{field:?}");
        let controls = |byte: &u8| byte.is_ascii_control() && *byte != b'\t';
        assert!(!field.value.iter().any(controls), "{field:?}");
    }
}

fn response(text: &[u8]) {
    let Ok(Some(length)) = HeadEnd::default().find_in_response(text, &LIMITS) else {
        return;
    };
    let mut head = ResponseHead::default();
    if head.parse(&text[..length], &LIMITS).is_ok() {
        assert_sound(&head.fields);
        let mut line = Vec::new();
        head.write_line(&mut line);
        // A reason phrase may have tabs (RFC 9112 section 4).
        let controls = line.iter().filter(|byte| **byte < b' ' && **byte != b'\t');
        assert_eq!(controls.count(), 2);
        if head.framing(&Method::HEAD).is_ok() {
            let _ = head.framing(&Method::GET);
        }
    }
}

fn chunked(text: &[u8], part: usize) {
    let (whole, parts) = (read(text, text.len().max(1)), read(text, part));
    assert_eq!(whole, parts, "{part} bytes at a time");
}

/// The data, and where the body ended. `None`: it is none, or not all of one.
fn read(text: &[u8], part: usize) -> Option<(Vec<u8>, usize)> {
    let mut body = BodyReader::new(Framing::Chunked);
    let (mut received, mut data) = (BytesMut::new(), Vec::new());
    let mut parts = text.chunks(part);
    loop {
        match body.step(&mut received).ok()? {
            Step::Data(length) => {
                data.extend_from_slice(&received.split_to(length));
                body.took(length);
            }
            Step::More => received.extend_from_slice(parts.next()?),
            Step::End => {
                let left: usize = parts.map(<[u8]>::len).sum();
                return Some((data, text.len() - left - received.len()));
            }
        }
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let seed = |kind: u8, text: &str| join(kind, [text.as_bytes()]);
    vec![
        seed(0, "GET /a?b HTTP/1.1\r\nHost: a.test\r\nX: y\r\n\r\n"),
        seed(0, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n"),
        seed(0, "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"),
        seed(1, "HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\n"),
        seed(1, "HTTP/1.0 404\nX : a\n b\n\n"),
        seed(2, "5\r\nhello\r\n0\r\n\r\n"),
        seed(11, "5;a=b\r\nhello\r\n000\r\nX: y\r\n\r\nrest"),
    ]
}
