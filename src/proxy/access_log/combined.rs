//! A line of the access log as Apache and nginx write it, so that what reads theirs reads ours.

use std::io::Write;

use http::StatusCode;
use time::OffsetDateTime;

use super::second::Second;
use crate::clock;

/// What such a line says.
pub struct Entry<'e> {
    pub client: &'e str,
    pub user: Option<&'e str>,
    /// Empty where it was no request.
    pub method: &'e str,
    pub path: &'e [u8],
    /// Without its `?`.
    pub query: Option<&'e [u8]>,
    pub protocol: &'e str,
    pub status: StatusCode,
    pub bytes: u64,
    pub referer: Option<&'e [u8]>,
    pub agent: Option<&'e [u8]>,
}

impl<'e> Entry<'e> {
    /// Of what is no request.
    pub fn malformed(client: &'e str, status: StatusCode) -> Entry<'e> {
        Entry {
            client,
            user: None,
            method: "",
            path: b"",
            query: None,
            protocol: "",
            status,
            bytes: 0,
            referer: None,
            agent: None,
        }
    }
}

/// Adds the line.
pub fn write(out: &mut Vec<u8>, entry: &Entry<'_>) {
    // A vector takes everything, here and below.
    let _ = write!(out, "{} - ", entry.client);
    match entry.user {
        // A space would be the end of it.
        Some(user) => write_escaped(out, user.replace(' ', "_").as_bytes()),
        None => out.push(b'-'),
    }
    out.extend_from_slice(b" [");
    write_time(out);
    out.extend_from_slice(b"] \"");
    match entry.method {
        "" => out.push(b'-'),
        method => {
            let _ = write!(out, "{method} ");
            write_escaped(out, entry.path);
            if let Some(query) = entry.query {
                out.push(b'?');
                write_escaped(out, query);
            }
            let _ = write!(out, " {}", entry.protocol);
        }
    }
    let _ = write!(out, "\" {} {} \"", entry.status.as_u16(), entry.bytes);
    write_escaped(out, entry.referer.unwrap_or(b"-"));
    out.extend_from_slice(b"\" \"");
    write_escaped(out, entry.agent.unwrap_or(b"-"));
    out.extend_from_slice(b"\"\n");
}

/// As nginx does: whatever could end the quotes or the line is `\xHH`.
fn write_escaped(out: &mut Vec<u8>, text: &[u8]) {
    for &byte in text {
        match byte {
            b' '..=b'~' if byte != b'"' && byte != b'\\' => out.push(byte),
            byte => {
                let _ = write!(out, "\\x{byte:02X}");
            }
        }
    }
}

/// `26/Nov/2026:05:00:00 +0000`, the same text for a whole second.
fn write_time(out: &mut Vec<u8>) {
    thread_local!(static SECOND: Second = const { Second::new() });
    SECOND.with(|second| second.write(out, clock::now(), time_text));
}

fn time_text(now: OffsetDateTime) -> String {
    let month = now.month().to_string();
    let (hour, minute, second) = now.to_hms();
    let (day, month, year) = (now.day(), month.get(..3).unwrap_or_default(), now.year());
    format!("{day:02}/{month}/{year}:{hour:02}:{minute:02}:{second:02} +0000")
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn it_looks_like_the_others() {
        let text = time_text(datetime!(2026-03-05 07:08:09 UTC));
        assert_eq!(text, "05/Mar/2026:07:08:09 +0000");
        let mut entry = Entry {
            client: "192.0.2.1",
            user: Some("a b\""),
            method: "GET",
            path: b"/a\"\n\xff",
            query: Some(b"b=c"),
            protocol: "HTTP/2",
            status: StatusCode::OK,
            bytes: 12,
            referer: Some(b"https://a.test/"),
            agent: None,
        };
        let written = |entry: &Entry<'_>| {
            let mut out = Vec::new();
            write(&mut out, entry);
            let line = String::from_utf8(out).unwrap();
            let (start, rest) = line.split_once('[').unwrap();
            format!("{start}{}", rest.split_once(']').unwrap().1)
        };
        assert_eq!(
            written(&entry),
            "192.0.2.1 - a_b\\x22  \"GET /a\\x22\\x0A\\xFF?b=c HTTP/2\" 200 12 \
             \"https://a.test/\" \"-\"\n"
        );
        entry = Entry::malformed("192.0.2.1", StatusCode::BAD_REQUEST);
        assert_eq!(written(&entry), "192.0.2.1 - -  \"-\" 400 0 \"-\" \"-\"\n");
    }
}
