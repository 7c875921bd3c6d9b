//! Header and trailer fields (RFC 9110 section 5), kept as one text with the places of names and
//! values in it.

use std::mem;

use crate::spare::{self, Pile};

/// Room is made for so many at once: browsers send as many.
const USUAL_FIELDS: usize = 16;

/// The memory of more fields than that is not left to the next head.
const MOST_SPARE: usize = 8 * USUAL_FIELDS;

thread_local! {
    static SPARE: Pile<(Vec<u8>, Vec<Line>)> = const { Pile::new() };
}

/// The fields of a head or of a trailer section, in order. Dropped, they leave their memory to the
/// next.
#[derive(Clone, Debug, Default)]
pub struct Fields {
    text: Vec<u8>,
    lines: Vec<Line>,
}

impl Drop for Fields {
    fn drop(&mut self) {
        let (mut text, mut lines) = (mem::take(&mut self.text), mem::take(&mut self.lines));
        if text.capacity() <= spare::MOST_BYTES && (1..=MOST_SPARE).contains(&lines.capacity()) {
            text.clear();
            lines.clear();
            Pile::give(&SPARE, (text, lines));
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Line {
    known: Known,
    name: Span,
    value: Span,
}

/// A place in the text. Four bytes each: no head has gigabytes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Span {
    pub start: u32,
    pub end: u32,
}

impl Span {
    pub fn of(self, text: &[u8]) -> &[u8] {
        &text[self.start as usize..self.end as usize]
    }

    fn range(start: usize, end: usize) -> Span {
        Span {
            start: start as u32,
            end: end as u32,
        }
    }
}

/// One field.
#[derive(Clone, Copy, Debug)]
pub struct Field<'f> {
    pub known: Known,
    /// A token, in the case in which it was written.
    pub name: &'f [u8],
    /// Without white space around it.
    pub value: &'f [u8],
}

/// The fields that mean something to a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    Accept,
    Connection,
    ContentLength,
    ContentType,
    Cookie,
    Expect,
    Host,
    Http2Settings,
    KeepAlive,
    ProxyConnection,
    Te,
    Trailer,
    TransferEncoding,
    Upgrade,
    UserAgent,
    /// What says who the client is: `Forwarded`, `X-Forwarded-*`, `X-Real-IP`.
    Claim,
    Other,
}

impl Known {
    pub fn of(name: &[u8]) -> Known {
        let is = |lower: &[u8]| name.eq_ignore_ascii_case(lower);
        match name.len() {
            2 if is(b"te") => Known::Te,
            4 if is(b"host") => Known::Host,
            6 if is(b"accept") => Known::Accept,
            6 if is(b"cookie") => Known::Cookie,
            6 if is(b"expect") => Known::Expect,
            7 if is(b"upgrade") => Known::Upgrade,
            7 if is(b"trailer") => Known::Trailer,
            10 if is(b"connection") => Known::Connection,
            10 if is(b"user-agent") => Known::UserAgent,
            10 if is(b"keep-alive") => Known::KeepAlive,
            12 if is(b"content-type") => Known::ContentType,
            14 if is(b"content-length") => Known::ContentLength,
            14 if is(b"http2-settings") => Known::Http2Settings,
            16 if is(b"proxy-connection") => Known::ProxyConnection,
            17 if is(b"transfer-encoding") => Known::TransferEncoding,
            _ if is_claim(name) => Known::Claim,
            _ => Known::Other,
        }
    }

    /// Whether it is about one connection and stays there (RFC 9110 section 7.6.1), whatever
    /// `Connection` says.
    pub fn is_hop_by_hop(self) -> bool {
        matches!(
            self,
            Known::Connection
                | Known::Http2Settings
                | Known::KeepAlive
                | Known::ProxyConnection
                | Known::Te
                | Known::TransferEncoding
                | Known::Upgrade
        )
    }
}

/// Whether a field says who the client is. CGI, and what descends from it, does not tell `_` from
/// `-`.
fn is_claim(name: &[u8]) -> bool {
    const PREFIX: &[u8] = b"x-forwarded-";
    let same = |given: &[u8], wanted: &[u8]| {
        given.len() == wanted.len()
            && given.iter().zip(wanted).all(|(given, &wanted)| {
                given.to_ascii_lowercase() == wanted || (*given == b'_' && wanted == b'-')
            })
    };
    match name.first() {
        Some(b'x' | b'X') => {
            same(name, b"x-real-ip")
                || same(name, b"x-forwarded")
                || name
                    .get(..PREFIX.len())
                    .is_some_and(|start| same(start, PREFIX))
        }
        Some(b'f' | b'F') => name.eq_ignore_ascii_case(b"forwarded"),
        _ => false,
    }
}

impl Fields {
    /// In order.
    pub fn iter(&self) -> impl Iterator<Item = Field<'_>> {
        self.lines.iter().map(|line| Field {
            known: line.known,
            name: line.name.of(&self.text),
            value: line.value.of(&self.text),
        })
    }

    pub fn len(&self) -> usize {
        self.lines.len()
    }

    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// The values of all fields of this kind.
    pub fn all(&self, known: Known) -> impl Iterator<Item = &[u8]> {
        let lines = self.lines.iter().filter(move |line| line.known == known);
        lines.map(|line| line.value.of(&self.text))
    }

    /// The values of all fields of this name, in any case.
    pub fn named(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        let lines = self.lines.iter().filter(move |line| {
            let given = line.name.of(&self.text);
            given.eq_ignore_ascii_case(name.as_bytes())
        });
        lines.map(|line| line.value.of(&self.text))
    }

    /// Leaves out those that are not `wanted`.
    pub fn retain(&mut self, wanted: impl Fn(&Field<'_>) -> bool) {
        let text = &self.text;
        self.lines.retain(|line| {
            wanted(&Field {
                known: line.known,
                name: line.name.of(text),
                value: line.value.of(text),
            })
        });
    }

    /// One field of this name, instead of all that there are.
    pub fn set(&mut self, name: &[u8], value: &[u8]) {
        self.retain(|field| !field.name.eq_ignore_ascii_case(name));
        self.push(name, value);
    }

    /// The value of the first.
    pub fn get(&self, known: Known) -> Option<&[u8]> {
        self.all(known).next()
    }

    pub fn has(&self, known: Known) -> bool {
        self.lines.iter().any(|line| line.known == known)
    }

    /// Whether a comma-separated list, spread over any number of fields, has `token`, in any case.
    pub fn lists(&self, known: Known, token: &[u8]) -> bool {
        self.tokens(known)
            .any(|given| given.eq_ignore_ascii_case(token))
    }

    /// The members of a comma-separated list, spread over any number of fields.
    pub fn tokens(&self, known: Known) -> impl Iterator<Item = &[u8]> {
        self.all(known)
            .flat_map(|value| value.split(|byte| *byte == b','))
            .map(<[u8]>::trim_ascii)
            .filter(|token| !token.is_empty())
    }

    /// Adds one at the end. Name and value must be such as a head may have.
    pub fn push(&mut self, name: &[u8], value: &[u8]) {
        let start = self.text.len();
        self.text.extend_from_slice(name);
        self.text.extend_from_slice(value);
        let middle = start + name.len();
        self.lines.push(Line {
            known: Known::of(name),
            name: Span::range(start, middle),
            value: Span::range(middle, self.text.len()),
        });
    }

    /// Adds `Name: value` CRLF for each field that is `wanted`.
    pub fn write(&self, out: &mut Vec<u8>, wanted: impl Fn(&Field<'_>) -> bool) {
        for field in self.iter().filter(wanted) {
            write_field(out, field.name, field.value);
        }
    }

    /// Begins anew with a text whose fields are still to be found.
    pub(super) fn restart(&mut self, text: &[u8]) {
        if self.lines.capacity() == 0
            && let Some(spare) = Pile::take(&SPARE)
        {
            (self.text, self.lines) = spare;
        }
        self.text.clear();
        self.text.extend_from_slice(text);
        self.lines.clear();
        self.lines.reserve(USUAL_FIELDS);
    }

    pub(super) fn text(&self) -> &[u8] {
        &self.text
    }

    pub(super) fn text_mut(&mut self) -> &mut Vec<u8> {
        &mut self.text
    }

    /// Adds one whose name and value stand in the text already.
    pub(super) fn push_span(&mut self, name: Span, value: Span) -> Known {
        let known = Known::of(name.of(&self.text));
        self.lines.push(Line { known, name, value });
        known
    }

    /// Makes the last field's value longer.
    pub(super) fn extend_last(&mut self, end: u32) {
        if let Some(last) = self.lines.last_mut() {
            last.value.end = end;
        }
    }
}

/// Adds `Name: value` CRLF.
pub fn write_field(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.reserve(name.len() + value.len() + 4);
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Adds `Name: length` CRLF.
pub fn write_length(out: &mut Vec<u8>, name: &[u8], length: u64) {
    write_field(out, name, itoa::Buffer::new().format(length).as_bytes());
}
