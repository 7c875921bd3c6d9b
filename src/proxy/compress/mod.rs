//! A client that gets bodies compressed: it stands between what makes a response and the client
//! itself, and is one to either. What is not to be compressed passes through untouched.
//!
//! A body whose end is not known may be a stream: whatever has come of it leaves before anybody waits
//! for more. Compressing is work, so a little is done at a time, and others have their turn between.

mod encoder;
mod policy;

use std::io;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use http::Method;
use tokio::time::Instant;

use super::client::{Client, Trailers};
use super::coding::Coding;
use super::failure::ClientError;
use crate::message::{Fields, Framing, ResponseHead};
use encoder::Encoder;
use policy::Plan;

/// What is compressed before others have their turn, in bytes: a millisecond's work.
const TURN: usize = 64 * 1024;

/// How much may wait for the client to take it, in bytes.
const MAX_WAITING: usize = 64 * 1024;

/// The other end of a response that may be compressed.
pub struct Compressing<'c, C> {
    client: &'c mut C,
    method: &'c Method,
    /// Those that the client takes, the best first.
    codings: Vec<Coding>,
    encoding: Option<Box<Encoding>>,
    /// Bytes of body that the client was sent.
    sent: u64,
}

/// A body that is compressed.
struct Encoding {
    encoder: Encoder,
    /// To be sent.
    output: BytesMut,
    /// Whether what has come leaves before more has.
    streams: bool,
    /// Whether the encoder holds anything back.
    holds: bool,
    /// How much more is compressed in this turn.
    turn: usize,
    end: End,
}

enum End {
    Open,
    /// Everything has come, and may have to be sent still.
    Come(Trailers),
    Sent,
}

impl<'c, C: Client> Compressing<'c, C> {
    pub fn new(client: &'c mut C, method: &'c Method, codings: Vec<Coding>) -> Self {
        Compressing {
            client,
            method,
            codings,
            encoding: None,
            sent: 0,
        }
    }

    /// Bytes of body that the client was sent.
    pub fn sent(&self) -> u64 {
        self.sent
    }
}

impl Encoding {
    fn new(coding: Coding, streams: bool) -> io::Result<Encoding> {
        Ok(Encoding {
            encoder: Encoder::new(coding)?,
            output: BytesMut::new(),
            streams,
            holds: false,
            turn: TURN,
            end: End::Open,
        })
    }

    fn step(
        &mut self,
        step: impl FnOnce(&mut Encoder, &mut Vec<u8>) -> io::Result<()>,
    ) -> Result<(), ClientError> {
        let mut out = Vec::new();
        // It writes to memory: nothing but a broken compressor fails here.
        step(&mut self.encoder, &mut out).map_err(ClientError::Write)?;
        self.output.extend_from_slice(&out);
        Ok(())
    }

    fn write(&mut self, data: &[u8]) -> Result<(), ClientError> {
        self.turn = self.turn.saturating_sub(data.len());
        self.holds = true;
        self.step(|encoder, out| encoder.write(data, out))
    }

    fn flush(&mut self) -> Result<(), ClientError> {
        self.holds = false;
        self.step(Encoder::flush)
    }

    fn finish(&mut self, trailers: Trailers) -> Result<(), ClientError> {
        self.holds = false;
        self.end = End::Come(trailers);
        self.step(Encoder::finish)
    }

    /// Gives what there is to the client; ready when it has all of it.
    fn poll_drain<C: Client>(
        &mut self,
        client: &mut C,
        cx: &mut Context<'_>,
        sent: &mut u64,
    ) -> Poll<Result<(), ClientError>> {
        while !self.output.is_empty() {
            let room = ready!(client.poll_room(cx, self.output.len()))?;
            let length = room.min(self.output.len());
            let is_end = length == self.output.len() && matches!(self.end, End::Come(None));
            client.send_data(&mut self.output, length, is_end)?;
            *sent += length as u64;
            if is_end {
                self.end = End::Sent;
            }
        }
        if let End::Come(trailers) = &mut self.end {
            let trailers = trailers.take();
            self.end = End::Sent;
            client.send_end(trailers.as_deref())?;
        }
        Poll::Ready(Ok(()))
    }
}

impl<C: Client> Client for Compressing<'_, C> {
    fn poll_body(
        &mut self,
        cx: &mut Context<'_>,
        take: &mut dyn FnMut(&[u8]),
    ) -> Poll<Result<Option<Trailers>, ClientError>> {
        self.client.poll_body(cx, take)
    }

    fn body_is_read(&self) -> bool {
        self.client.body_is_read()
    }

    fn forgo_body(&mut self) {
        self.client.forgo_body();
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<ClientError> {
        self.client.poll_gone(cx)
    }

    fn send_interim(&mut self, head: &ResponseHead) -> Result<(), ClientError> {
        self.client.send_interim(head)
    }

    fn send_head(&mut self, head: &ResponseHead, framing: Framing) -> Result<(), ClientError> {
        match policy::plan(head, framing, self.method, &self.codings) {
            Plan::Leave => self.client.send_head(head, framing),
            Plan::Mark => {
                let mut head = head.clone();
                policy::mark(&mut head);
                self.client.send_head(&head, framing)
            }
            Plan::Compress(coding) => {
                let streams = !matches!(framing, Framing::Length(_));
                let encoding = Encoding::new(coding, streams).map_err(ClientError::Write)?;
                self.encoding = Some(Box::new(encoding));
                let mut head = head.clone();
                policy::rewrite(&mut head, coding);
                self.client.send_head(&head, Framing::Chunked)
            }
        }
    }

    fn poll_room(
        &mut self,
        cx: &mut Context<'_>,
        wanted: usize,
    ) -> Poll<Result<usize, ClientError>> {
        let Some(encoding) = &mut self.encoding else {
            return self.client.poll_room(cx, wanted);
        };
        if encoding.output.len() >= MAX_WAITING {
            ready!(encoding.poll_drain(self.client, cx, &mut self.sent))?;
        }
        if encoding.turn == 0 {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Ok(wanted.min(encoding.turn)))
    }

    fn send_data(
        &mut self,
        input: &mut BytesMut,
        length: usize,
        last: bool,
    ) -> Result<(), ClientError> {
        let Some(encoding) = &mut self.encoding else {
            self.sent += length as u64;
            return self.client.send_data(input, length, last);
        };
        encoding.write(&input[..length])?;
        input.advance(length);
        match last {
            true => encoding.finish(None),
            false => Ok(()),
        }
    }

    fn send_piece(&mut self, data: Bytes, last: bool) -> Result<(), ClientError> {
        let Some(encoding) = &mut self.encoding else {
            self.sent += data.len() as u64;
            return self.client.send_piece(data, last);
        };
        encoding.write(&data)?;
        match last {
            true => encoding.finish(None),
            false => Ok(()),
        }
    }

    fn send_end(&mut self, trailers: Option<&Fields>) -> Result<(), ClientError> {
        match &mut self.encoding {
            None => self.client.send_end(trailers),
            Some(encoding) => encoding.finish(trailers.map(|fields| Box::new(fields.clone()))),
        }
    }

    /// Whoever calls this waits for more, or has done all that there was to do in this turn.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ClientError>> {
        if let Some(encoding) = &mut self.encoding {
            encoding.turn = TURN;
            // What the client does not take yet need not be more.
            if encoding
                .poll_drain(self.client, cx, &mut self.sent)?
                .is_pending()
            {
                let _ = self.client.poll_flush(cx)?;
                return Poll::Pending;
            }
            if encoding.streams && encoding.holds {
                encoding.flush()?;
                if encoding
                    .poll_drain(self.client, cx, &mut self.sent)?
                    .is_pending()
                {
                    let _ = self.client.poll_flush(cx)?;
                    return Poll::Pending;
                }
            }
        }
        self.client.poll_flush(cx)
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ClientError>> {
        self.client.poll_shutdown(cx)
    }

    fn progress(&self) -> u64 {
        self.client.progress() + self.sent
    }

    fn poll_deadline(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        self.client.poll_deadline(cx, deadline)
    }

    fn cut_off(&mut self) {
        self.client.cut_off();
    }
}

#[cfg(test)]
mod tests;
