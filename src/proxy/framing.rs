//! Whether the header of a request can be read in one way alone. Pingora forgives some of what
//! RFC 9112 lets a recipient forgive; whoever stands before us may not, or may forgive something
//! else, and then one request is two (request smuggling). No honest client sends any of this.

use http::HeaderMap;
use http::header::CONTENT_LENGTH;
use pingora::protocols::http::ServerSession;

/// Whether request line, fields and length leave no choice. What is said of the length is checked
/// again after Pingora, which removes a length beside a transfer coding.
pub fn is_unambiguous(session: &ServerSession) -> bool {
    match session.as_http1() {
        Some(session) => raw_header(&session.get_headers_raw_bytes()),
        None => one_length(&session.req_header().headers),
    }
}

/// All lines end in CRLF, with no CR elsewhere, and one field at most says where the body ends.
fn raw_header(raw: &[u8]) -> bool {
    let Some(lines) = raw.strip_suffix(b"\n") else {
        return false;
    };
    let mut framings = 0;
    lines.split(|byte| *byte == b'\n').all(|line| {
        let Some(field) = line.strip_suffix(b"\r") else {
            return false;
        };
        let framing = framing(field);
        framings += usize::from(framing != Framing::None);
        !field.contains(&b'\r') && framing != Framing::Malformed && framings <= 1
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    /// Another field.
    None,
    /// A length, or `chunked` and nothing else: no coding but this one is understood here, and
    /// Pingora passes on none.
    WellFormed,
    Malformed,
}

/// What a line says about the end of the body.
fn framing(line: &[u8]) -> Framing {
    const LENGTH: &[u8] = b"content-length";
    const CODING: &[u8] = b"transfer-encoding";
    let Some(colon) = line.iter().position(|byte| *byte == b':') else {
        return Framing::None;
    };
    let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
    let well_formed = if name.eq_ignore_ascii_case(LENGTH) {
        is_length(value)
    } else if name.eq_ignore_ascii_case(CODING) {
        value.eq_ignore_ascii_case(b"chunked")
    } else {
        return Framing::None;
    };
    match well_formed {
        true => Framing::WellFormed,
        false => Framing::Malformed,
    }
}

fn one_length(headers: &HeaderMap) -> bool {
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let first = lengths.next();
    first.is_none_or(|length| is_length(length.as_bytes())) && lengths.next().is_none()
}

fn is_length(value: &[u8]) -> bool {
    !value.is_empty() && value.iter().all(u8::is_ascii_digit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(fields: &str) -> bool {
        raw_header(
            format!("POST http://a.test/ HTTP/1.1\r\nHost: a.test\r\n{fields}\r\n").as_bytes(),
        )
    }

    #[test]
    fn usual_headers_are_unambiguous() {
        for usual in [
            "",
            "X:\r\n",
            "Content-Length: 5\r\n",
            "content-length:\t05 \r\nX: y\r\n",
            "Transfer-Encoding: Chunked\r\nX-Content-Length: 5\r\n",
        ] {
            assert!(fields(usual), "{usual:?}");
        }
        assert!(
            raw_header(b"\r\nGET / HTTP/1.1\r\n\r\n"),
            "an empty line before"
        );
    }

    #[test]
    fn line_endings_are_crlf() {
        for odd in ["X: y\n", "X: y\r\r\n", "X: y\rz\r\n", "\n", "X: y\n\r\n"] {
            assert!(!fields(odd), "{odd:?}");
        }
        assert!(!raw_header(b"GET / HTTP/1.1\n\n"));
        assert!(!raw_header(b"GET / HTTP/1.1\r\n\n"));
        assert!(!raw_header(b"GET / HTTP/1.1\n\r\n"));
        assert!(!raw_header(b"\nGET / HTTP/1.1\r\n\r\n"));
    }

    #[test]
    fn one_field_says_where_the_body_ends() {
        for odd in [
            "Content-Length: 5\r\nContent-Length: 5\r\n",
            "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Content-Length: 5, 5\r\n",
            "Content-Length: +5\r\n",
            "Content-Length:\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding:\r\n",
        ] {
            assert!(!fields(odd), "{odd:?}");
        }
    }
}
