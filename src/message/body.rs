//! Where bodies of HTTP/1.1 end (RFC 9112 sections 6 and 7), read piece by piece as they come.

use std::io::Write;

use bytes::{Buf, BytesMut};
use memchr::memchr;

use super::fields::Fields;
use super::head::Framing;
use super::parse::{HeadEnd, HeadError, Limits, Reading, parse_fields};

/// A chunk's size with its extensions, which nobody uses.
const MAX_CHUNK_LINE: usize = 1024;

/// Nobody sends 256 TiB in one piece; what adds to a size like this one overflows somewhere.
const MAX_CHUNK: u64 = 1 << 48;

/// Trailers are checksums and statuses.
const TRAILER_LIMITS: Limits = Limits {
    bytes: 8 * 1024,
    fields: 32,
};

/// Reads one body.
#[derive(Debug)]
pub struct BodyReader {
    state: State,
    trailers: Option<Box<Fields>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// So many bytes are still to come.
    Length(u64),
    UntilClose,
    ChunkSize,
    /// So many bytes of this chunk are still to come.
    Chunk(u64),
    ChunkEnd,
    Trailers,
    End,
}

/// What stands at the front of what has been received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// So many bytes of the body, more than none.
    Data(usize),
    /// Too little to tell.
    More,
    /// What follows is no part of the message.
    End,
}

/// Why something is no body, or no whole one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    #[error("a malformed chunk size")]
    ChunkSize,
    #[error("a chunk that does not end where it says")]
    ChunkEnd,
    #[error("malformed trailers: {0}")]
    Trailers(HeadError),
    #[error("it ended before its body did")]
    Truncated,
}

impl BodyReader {
    pub fn new(framing: Framing) -> BodyReader {
        let state = match framing {
            Framing::None | Framing::Length(0) => State::End,
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::ChunkSize,
            Framing::UntilClose => State::UntilClose,
        };
        BodyReader {
            state,
            trailers: None,
        }
    }

    /// Takes what frames the body away from the front of `received`, and says what is there then.
    /// The caller takes as much of the data as it likes, and says so by [`BodyReader::took`].
    pub fn step(&mut self, received: &mut BytesMut) -> Result<Step, BodyError> {
        loop {
            let next = match self.state {
                State::End => return Ok(Step::End),
                State::UntilClose => return Ok(data(received, u64::MAX)),
                State::Length(left) | State::Chunk(left) => return Ok(data(received, left)),
                State::ChunkSize => match chunk_size(received)? {
                    Some(0) => Some(State::Trailers),
                    size => size.map(State::Chunk),
                },
                State::ChunkEnd => chunk_end(received)?.then_some(State::ChunkSize),
                State::Trailers => self.read_trailers(received)?.then_some(State::End),
            };
            match next {
                Some(next) => self.state = next,
                None => return Ok(Step::More),
            }
        }
    }

    /// The caller has taken so many bytes of data, no more than there were.
    pub fn took(&mut self, length: usize) {
        let length = length as u64;
        self.state = match self.state {
            State::Length(left) if left <= length => State::End,
            State::Length(left) => State::Length(left - length),
            State::Chunk(left) if left <= length => State::ChunkEnd,
            State::Chunk(left) => State::Chunk(left - length),
            other => other,
        };
    }

    /// How much is still to come, where that was announced.
    pub fn left(&self) -> Option<u64> {
        match self.state {
            State::Length(left) => Some(left),
            State::End => Some(0),
            _ => None,
        }
    }

    /// Whether the connection's end is the body's.
    pub fn ends_with_connection(&self) -> bool {
        self.state == State::UntilClose
    }

    /// Whether everything has been read.
    pub fn is_done(&self) -> bool {
        self.state == State::End
    }

    /// What came behind the last chunk.
    pub fn take_trailers(&mut self) -> Option<Box<Fields>> {
        self.trailers.take()
    }

    /// Whether the trailers have been read, too.
    fn read_trailers(&mut self, received: &mut BytesMut) -> Result<bool, BodyError> {
        if received.starts_with(b"\r\n") {
            received.advance(2);
            return Ok(true);
        }
        let found = HeadEnd::default().find(received, &TRAILER_LIMITS);
        let Some(length) = found.map_err(BodyError::Trailers)? else {
            return Ok(false);
        };
        let mut trailers = Box::new(Fields::default());
        trailers.restart(&received[..length]);
        parse_fields(&mut trailers, 0, &TRAILER_LIMITS, Reading::Strict)
            .map_err(BodyError::Trailers)?;
        received.advance(length);
        self.trailers = Some(trailers);
        Ok(true)
    }
}

fn data(received: &BytesMut, left: u64) -> Step {
    match usize::try_from(left).map_or(received.len(), |left| left.min(received.len())) {
        0 => Step::More,
        length => Step::Data(length),
    }
}

/// RFC 9112 section 7.1: hexadecimal digits, and extensions that mean nothing here.
fn chunk_size(received: &mut BytesMut) -> Result<Option<u64>, BodyError> {
    let malformed = BodyError::ChunkSize;
    let window = &received[..received.len().min(MAX_CHUNK_LINE)];
    let Some(end) = memchr(b'\n', window) else {
        return match window.len() {
            MAX_CHUNK_LINE => Err(malformed),
            _ => Ok(None),
        };
    };
    let line = window[..end].strip_suffix(b"\r").ok_or(malformed)?;
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit());
    let (digits, extensions) = line.split_at(digits.count());
    let first = extensions.trim_ascii_start().first();
    let wrong_extensions = !extensions.is_empty() && first != Some(&b';');
    if digits.is_empty() || wrong_extensions || super::parse::has_controls(extensions) {
        return Err(malformed);
    }
    let digits = std::str::from_utf8(digits).map_err(|_| malformed)?;
    let size = u64::from_str_radix(digits, 16).map_err(|_| malformed)?;
    if size > MAX_CHUNK {
        return Err(malformed);
    }
    received.advance(end + 1);
    Ok(Some(size))
}

/// Whether the CRLF behind a chunk's data has come.
fn chunk_end(received: &mut BytesMut) -> Result<bool, BodyError> {
    match received[..] {
        [b'\r', b'\n', ..] => {
            received.advance(2);
            Ok(true)
        }
        [] | [b'\r'] => Ok(false),
        _ => Err(BodyError::ChunkEnd),
    }
}

/// Adds `data`, which is not empty, as one chunk.
pub fn write_chunk(out: &mut Vec<u8>, data: &[u8]) {
    out.reserve(data.len() + 20);
    // A vector takes everything.
    let _ = write!(out, "{:x}\r\n", data.len());
    out.extend_from_slice(data);
    out.extend_from_slice(b"\r\n");
}

/// Ends a chunked body.
pub fn write_last_chunk(out: &mut Vec<u8>, trailers: Option<&Fields>) {
    out.extend_from_slice(b"0\r\n");
    if let Some(trailers) = trailers {
        trailers.write(out, |field| may_trail(field.name));
    }
    out.extend_from_slice(b"\r\n");
}

/// RFC 9110 section 6.5.1: nothing that frames, routes, authenticates or describes the message. A
/// recipient that merges trailers into the head must not be deceived by them.
pub fn may_trail(name: &[u8]) -> bool {
    const FORBIDDEN: [&[u8]; 12] = [
        b"authorization",
        b"cache-control",
        b"content-encoding",
        b"content-range",
        b"content-type",
        b"cookie",
        b"location",
        b"max-forwards",
        b"proxy-authorization",
        b"range",
        b"set-cookie",
        b"www-authenticate",
    ];
    let known = super::Known::of(name);
    known == super::Known::Other
        && super::head::is_field_name(name)
        && !FORBIDDEN
            .iter()
            .any(|forbidden| name.eq_ignore_ascii_case(forbidden))
}
