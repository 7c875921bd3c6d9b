//! The bytes of a file on their way to the client: one piece is sent while the next is read, and no
//! more is held, however large the file and however slow the client.

use std::future::poll_fn;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

use super::range::Span;
use super::{FileError, on_a_reader};
use crate::message::{Framing, ResponseHead};
use crate::proxy::client::{Client, poll_send};
use crate::proxy::failure::{ClientError, Failure};

/// What is read at once, in bytes: enough that the way to another thread and back does not count.
const READ: u64 = 128 * 1024;

/// How long a client may take nothing.
const STALLED: Duration = Duration::from_secs(60);

/// A response whose body is read as it is sent.
pub struct File {
    pub head: ResponseHead,
    pub body: Body,
    /// In bytes.
    pub length: u64,
}

/// A part of a body.
pub enum Piece {
    Text(Bytes),
    /// Of the file.
    Span(Span),
}

impl Piece {
    pub fn length(&self) -> u64 {
        match self {
            Piece::Text(text) => text.len() as u64,
            Piece::Span(span) => span.length,
        }
    }
}

/// What is still to be read.
pub struct Body {
    file: Arc<std::fs::File>,
    /// The next one last.
    pieces: Vec<Piece>,
}

impl Body {
    pub fn new(file: std::fs::File, mut pieces: Vec<Piece>) -> Body {
        pieces.retain(|piece| piece.length() > 0);
        pieces.reverse();
        let file = Arc::new(file);
        Body { file, pieces }
    }

    /// All of it. Blocks.
    pub fn read_all(mut self) -> Result<Bytes, FileError> {
        let mut all = BytesMut::new();
        while let Some(next) = self.take_next() {
            all.extend_from_slice(&next.read()?);
        }
        Ok(all.freeze())
    }

    fn take_next(&mut self) -> Option<Next> {
        match self.pieces.pop()? {
            Piece::Text(text) => Some(Next::Text(text)),
            Piece::Span(Span { start, length }) => {
                let taken = length.min(READ);
                if taken < length {
                    self.pieces.push(Piece::Span(Span {
                        start: start + taken,
                        length: length - taken,
                    }));
                }
                let file = Arc::clone(&self.file);
                Some(Next::Read(file, start, taken))
            }
        }
    }
}

/// What is to be read next.
enum Next {
    Text(Bytes),
    Read(Arc<std::fs::File>, u64, u64),
}

impl Next {
    /// Blocks.
    fn read(self) -> Result<BytesMut, FileError> {
        match self {
            Next::Text(text) => Ok(BytesMut::from(text)),
            Next::Read(file, start, length) => {
                let mut buffer = BytesMut::zeroed(usize::try_from(length).unwrap_or_default());
                file.read_exact_at(&mut buffer, start)
                    .map_err(|error| match error.kind() {
                        std::io::ErrorKind::UnexpectedEof => FileError::Shorter,
                        _ => FileError::Io(error),
                    })?;
                Ok(buffer)
            }
        }
    }
}

/// Sends it. How many bytes of body were sent is in `sent`, whatever came of it.
pub async fn send<C: Client>(client: &mut C, file: File, sent: &mut u64) -> Result<(), Failure> {
    let File {
        head,
        mut body,
        length,
    } = file;
    client.send_head(&head, Framing::Length(length))?;
    let mut next = body.take_next();
    let mut chunk = BytesMut::new();
    loop {
        let reading = next.take();
        next = body.take_next();
        let last = reading.is_none();
        let read = async {
            match reading {
                Some(reading) => on_a_reader(move || reading.read()).await?.map(Some),
                None => Ok(None),
            }
        };
        // Both at once: neither the disk nor the client waits for the other.
        let (read, pushed) = tokio::join!(read, push(client, &mut chunk, sent, last));
        pushed?;
        match read? {
            Some(read) => chunk = read,
            None => return Ok(()),
        }
    }
}

/// Gives a chunk to the client; the last one until it is written.
async fn push<C: Client>(
    client: &mut C,
    chunk: &mut BytesMut,
    sent: &mut u64,
    last: bool,
) -> Result<(), ClientError> {
    let mut seen = (chunk.len(), client.progress());
    let mut deadline = Instant::now() + STALLED;
    poll_fn(|cx| {
        let pushed = poll_send(client, cx, chunk, sent, last);
        if pushed.is_ready() {
            return pushed;
        }
        let now = (chunk.len(), client.progress());
        if std::mem::replace(&mut seen, now) != now {
            deadline = Instant::now() + STALLED;
        }
        client
            .poll_deadline(cx, deadline)
            .map(|()| Err(ClientError::WriteTimeout))
    })
    .await
}
