//! From text to heads. Requests are read as RFC 9112 writes them and in no other way: what one
//! recipient forgives and another reads differently is one request to one and two to the other
//! (request smuggling). Of responses a little is mended that the RFC lets a proxy mend, since they
//! come from whom we chose and are written anew before they go on.

use http::{Method, StatusCode, Version};
use memchr::memchr;

use super::fields::{Fields, Span};
use super::head::{Framing, RequestHead, ResponseHead};

/// How much of a head is taken.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// With the empty line at its end.
    pub bytes: usize,
    pub fields: usize,
}

/// Why a text is no head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    #[error("a line that does not end in CRLF")]
    LineEnd,
    #[error("a malformed request line")]
    RequestLine,
    #[error("a malformed status line")]
    StatusLine,
    #[error("a version of HTTP that is not understood here")]
    Version,
    #[error("a malformed field name")]
    FieldName,
    #[error("a malformed field value")]
    FieldValue,
    #[error("a Content-Length that is no length, or more than one")]
    Length,
    #[error("a Transfer-Encoding other than chunked, or beside a Content-Length")]
    TransferEncoding,
    #[error("a head that is too large")]
    TooLarge,
}

/// Finds the end of a head in a text that is still growing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeadEnd {
    scanned: usize,
}

impl HeadEnd {
    /// The length of the head with the empty line at its end; `None` if there is more to come.
    /// `text` must begin with what it began with the last time.
    pub fn find(&mut self, text: &[u8], limits: &Limits) -> Result<Option<usize>, HeadError> {
        self.search(text, limits, |text, at| match text[..at] {
            [.., b'\n', b'\r'] | [b'\r'] => Ok(true),
            [.., b'\r'] => Ok(false),
            _ => Err(HeadError::LineEnd),
        })
    }

    /// The same for a response, whose lines may end in LF alone.
    pub fn find_in_response(
        &mut self,
        text: &[u8],
        limits: &Limits,
    ) -> Result<Option<usize>, HeadError> {
        self.search(text, limits, |text, at| {
            Ok(matches!(
                text[..at],
                [] | [.., b'\n'] | [.., b'\n', b'\r'] | [b'\r']
            ))
        })
    }

    /// `is_empty`: whether the line that ends with the LF at this place is empty.
    fn search(
        &mut self,
        text: &[u8],
        limits: &Limits,
        is_empty: impl Fn(&[u8], usize) -> Result<bool, HeadError>,
    ) -> Result<Option<usize>, HeadError> {
        while let Some(found) = memchr(b'\n', &text[self.scanned..]) {
            let at = self.scanned + found;
            self.scanned = at + 1;
            if is_empty(text, at)? {
                return match at < limits.bytes {
                    true => Ok(Some(at + 1)),
                    false => Err(HeadError::TooLarge),
                };
            }
        }
        self.scanned = text.len();
        match text.len() < limits.bytes {
            true => Ok(None),
            false => Err(HeadError::TooLarge),
        }
    }
}

impl RequestHead {
    /// Reads `text`, a head that [`HeadEnd::find`] has found, in place of what was here.
    pub fn parse(&mut self, text: &[u8], limits: &Limits) -> Result<(), HeadError> {
        self.fields.restart(text);
        let end = memchr(b'\n', text).ok_or(HeadError::RequestLine)?;
        let line = text[..end]
            .strip_suffix(b"\r")
            .ok_or(HeadError::RequestLine)?;
        self.parse_line(line)?;
        parse_fields(&mut self.fields, end + 1, limits, Reading::Strict)?;
        self.framing = request_framing(&self.fields, self.version)?;
        Ok(())
    }

    /// RFC 9112 section 3, single spaces alone between the parts.
    fn parse_line(&mut self, line: &[u8]) -> Result<(), HeadError> {
        let malformed = HeadError::RequestLine;
        let method_end = memchr(b' ', line).ok_or(malformed)?;
        let (method, rest) = (&line[..method_end], &line[method_end + 1..]);
        let target_end = memchr(b' ', rest).ok_or(malformed)?;
        let (target, version) = (&rest[..target_end], &rest[target_end + 1..]);
        if !is_target(target) || !is_token(method) {
            return Err(malformed);
        }
        self.version = parse_version(version)?;
        self.method = Method::from_bytes(method).map_err(|_| malformed)?;
        let start = method_end + 1;
        self.target = span(start, start + target.len());
        Ok(())
    }
}

impl ResponseHead {
    /// Reads `text`, a head that [`HeadEnd::find_in_response`] has found, in place of what was here.
    pub fn parse(&mut self, text: &[u8], limits: &Limits) -> Result<(), HeadError> {
        self.fields.restart(text);
        let end = memchr(b'\n', text).ok_or(HeadError::StatusLine)?;
        let line = text[..end].strip_suffix(b"\r").unwrap_or(&text[..end]);
        self.parse_line(line)?;
        parse_fields(&mut self.fields, end + 1, limits, Reading::Lenient)?;
        Ok(())
    }

    /// RFC 9112 section 4. The space before a reason that is not there may be missing.
    fn parse_line(&mut self, line: &[u8]) -> Result<(), HeadError> {
        let malformed = HeadError::StatusLine;
        let (version, rest) = line.split_at_checked(9).ok_or(malformed)?;
        self.version = parse_version(version.strip_suffix(b" ").ok_or(malformed)?)?;
        let (code, reason) = rest.split_at_checked(3).ok_or(malformed)?;
        self.status = StatusCode::from_bytes(code).map_err(|_| malformed)?;
        let spaces = match reason {
            [] => 0,
            [b' ', ..] => 1,
            _ => return Err(malformed),
        };
        if has_controls(reason) {
            return Err(malformed);
        }
        self.reason = span(12 + spaces, line.len());
        Ok(())
    }

    /// Where the body ends (RFC 9112 section 6.3) of the response to a request with this method.
    /// A length that is given more than once, but always the same, counts once.
    pub fn framing(&self, method: &Method) -> Result<Framing, HeadError> {
        let code = self.status.as_u16();
        if code < 200 || code == 204 || code == 304 || *method == Method::HEAD {
            return Ok(Framing::None);
        }
        let mut codings = self.fields.tokens(super::Known::TransferEncoding);
        if let Some(coding) = codings.next() {
            let chunked = coding.eq_ignore_ascii_case(b"chunked") && codings.next().is_none();
            return match chunked && self.version == Version::HTTP_11 {
                true => Ok(Framing::Chunked),
                false => Err(HeadError::TransferEncoding),
            };
        }
        match self.length()? {
            Some(length) => Ok(Framing::Length(length)),
            None => Ok(Framing::UntilClose),
        }
    }

    /// What `Content-Length` says, whether there is a body or not.
    pub fn length(&self) -> Result<Option<u64>, HeadError> {
        let mut length = None;
        for value in self.fields.all(super::Known::ContentLength) {
            for one in value.split(|byte| *byte == b',') {
                let one = parse_length(one.trim_ascii()).ok_or(HeadError::Length)?;
                if length.replace(one).is_some_and(|other| other != one) {
                    return Err(HeadError::Length);
                }
            }
        }
        Ok(length)
    }
}

/// One field at most says where the body ends, and says it plainly.
fn request_framing(fields: &Fields, version: Version) -> Result<Framing, HeadError> {
    let mut lengths = fields.all(super::Known::ContentLength);
    let mut codings = fields.all(super::Known::TransferEncoding);
    let (length, coding) = (lengths.next(), codings.next());
    if lengths.next().is_some() {
        return Err(HeadError::Length);
    }
    match (length, coding) {
        (None, None) => Ok(Framing::None),
        (Some(length), None) => parse_length(length)
            .map(Framing::Length)
            .ok_or(HeadError::Length),
        (None, Some(coding))
            if coding.eq_ignore_ascii_case(b"chunked")
                && codings.next().is_none()
                && version == Version::HTTP_11 =>
        {
            Ok(Framing::Chunked)
        }
        _ => Err(HeadError::TransferEncoding),
    }
}

/// RFC 9110 section 8.6: digits alone.
pub(super) fn parse_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() {
        return None;
    }
    value.iter().try_fold(0_u64, |length, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        length.checked_mul(10)?.checked_add(digit)
    })
}

fn parse_version(version: &[u8]) -> Result<Version, HeadError> {
    match version {
        b"HTTP/1.1" => Ok(Version::HTTP_11),
        b"HTTP/1.0" => Ok(Version::HTTP_10),
        _ => Err(HeadError::Version),
    }
}

/// How a head is read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Reading {
    Strict,
    /// RFC 9112 sections 2.2, 5.1 and 5.2: bare LF ends a line, white space before a colon is
    /// removed, and a folded line becomes a long one.
    Lenient,
}

/// The fields from `start` in the fields' own text to the empty line.
pub(super) fn parse_fields(
    fields: &mut Fields,
    mut start: usize,
    limits: &Limits,
    reading: Reading,
) -> Result<(), HeadError> {
    loop {
        let rest = &fields.text()[start..];
        let length = memchr(b'\n', rest).ok_or(HeadError::LineEnd)?;
        let line = match (rest[..length].strip_suffix(b"\r"), reading) {
            (Some(line), _) => line,
            (None, Reading::Lenient) => &rest[..length],
            (None, Reading::Strict) => return Err(HeadError::LineEnd),
        };
        let end = start + line.len();
        match line.first() {
            None => return Ok(()),
            Some(b' ' | b'\t') if reading == Reading::Lenient && !fields.is_empty() => {
                unfold(fields, start, end)?;
            }
            _ if fields.len() == limits.fields => return Err(HeadError::TooLarge),
            _ => {
                let (name, value) = field(line, reading)?;
                fields.push_span(name.moved(start), value.moved(start));
            }
        }
        start += length + 1;
    }
}

impl Span {
    fn moved(self, by: usize) -> Span {
        let by = by as u32;
        Span {
            start: self.start + by,
            end: self.end + by,
        }
    }
}

/// Makes the line from `start` to `end` a part of the value before it.
fn unfold(fields: &mut Fields, start: usize, end: usize) -> Result<(), HeadError> {
    if has_controls(&fields.text()[start..end]) {
        return Err(HeadError::FieldValue);
    }
    let text = fields.text_mut();
    let before = text[..start]
        .iter()
        .rposition(|byte| !matches!(byte, b'\r' | b'\n'))
        .map_or(start, |last| last + 1);
    text[before..start].fill(b' ');
    fields.extend_last(end as u32);
    Ok(())
}

/// RFC 9112 section 5.
fn field(line: &[u8], reading: Reading) -> Result<(Span, Span), HeadError> {
    let name = token_length(line);
    let after = match reading {
        Reading::Strict => &line[name..],
        Reading::Lenient => line[name..].trim_ascii_start(),
    };
    let value = match (name, after) {
        (1.., [b':', value @ ..]) => value,
        _ => return Err(HeadError::FieldName),
    };
    // What `trim_ascii` takes for white space and RFC 9110 does not is refused here.
    if has_controls(value) {
        return Err(HeadError::FieldValue);
    }
    let value = value.trim_ascii_start();
    let start = line.len() - value.len();
    let end = start + value.trim_ascii_end().len();
    Ok((span(0, name), span(start, end)))
}

fn span(start: usize, end: usize) -> Span {
    Span {
        start: start as u32,
        end: end as u32,
    }
}

/// RFC 9110 section 5.6.2.
pub(super) fn is_token(text: &[u8]) -> bool {
    !text.is_empty() && token_length(text) == text.len()
}

/// How much of the text could be a token.
fn token_length(text: &[u8]) -> usize {
    const TOKEN: [bool; 256] = token_bytes();
    let end = text.iter().position(|byte| !TOKEN[*byte as usize]);
    end.unwrap_or(text.len())
}

const fn token_bytes() -> [bool; 256] {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 128 {
        let other = b"!#$%&'*+-.^_`|~";
        let mut at = 0;
        while at < other.len() {
            if other[at] == byte {
                table[byte as usize] = true;
            }
            at += 1;
        }
        if byte.is_ascii_alphanumeric() {
            table[byte as usize] = true;
        }
        byte += 1;
    }
    table
}

/// Whether there is a control character other than tab: NUL, CR and LF among them (RFC 9110 section
/// 5.5). Looks at every byte, which lets the compiler look at many at once.
pub(super) fn has_controls(text: &[u8]) -> bool {
    let control = |byte: u8| (byte < b' ' && byte != b'\t') | (byte == 0x7f);
    text.iter()
        .fold(false, |found, byte| found | control(*byte))
}

/// Visible characters, without a fragment (RFC 9112 section 3.2). Bytes beyond ASCII go on as they
/// are: no recipient ends a line at one.
pub(super) fn is_target(text: &[u8]) -> bool {
    let odd = |byte: u8| (byte <= b' ') | (byte == 0x7f) | (byte == b'#');
    !text.is_empty() && !text.iter().fold(false, |found, byte| found | odd(*byte))
}
