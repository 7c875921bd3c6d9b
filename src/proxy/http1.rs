//! A client's connection that speaks HTTP/1.1 or HTTP/1.0 (RFC 9112): one request after the other,
//! each answered before the next is looked at.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http::{StatusCode, Version};
use tokio::io::AsyncWrite;
use tokio::time::Instant;
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::answered;
use super::client::{Client, FORGONE_BYTES, Trailers, forgo_rest};
use super::failure::ClientError;
use super::watchdog::Watchdog;
use crate::listener::drain::Drain;
use crate::listener::stream::ClientStream;
use crate::message::{
    BodyReader, Fields, Framing, HeadEnd, HeadError, Known, Limits, RequestHead, ResponseHead,
    Step, write_chunk, write_last_chunk, write_length,
};
use crate::spare;

/// What servers take from clients: nginx 32 KiB, Apache 100 fields.
const REQUEST_LIMITS: Limits = Limits {
    bytes: 32 * 1024,
    fields: 100,
};

/// How long the head of a request may take from its first byte to its last, however slowly it
/// comes.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a connection that has had no request yet is waited for while its listener goes: its
/// client has just opened it to ask for something, and would take its end for a failure.
const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

/// What is asked for at first: most requests.
const FIRST_READ: usize = 2 * 1024;

/// Room is made for so much at once: a head, and a body that is sent with it.
const USUAL_RESPONSE: usize = 1024;

const CONTENT_LENGTH: &[u8] = b"Content-Length";

/// What is asked for while a body flows.
const LARGE_READ: usize = 32 * 1024;

/// How much is read of what a client sends before it has its answer.
const PIPELINE_BYTES: usize = 16 * 1024;

/// How much of a response may wait for the client to take it: four TLS records.
const DOWNLOAD_BUFFER: usize = 64 * 1024;

/// A client's connection.
pub struct Http1 {
    stream: ClientStream,
    /// Read and not used yet.
    input: BytesMut,
    /// To be written.
    output: Vec<u8>,
    written: usize,
    total_written: u64,
    body: BodyReader,
    exchange: Exchange,
    closing: Pin<Box<WaitForCancellationFutureOwned>>,
    drain: Drain,
    life: Life,
    watchdog: Watchdog,
    /// The client must not take what it got for a whole response.
    cut_off: bool,
    /// What it sends is no request: nobody knows how much of that is still to come.
    is_malformed: bool,
}

/// What has to be known about the request under way.
#[derive(Default)]
struct Exchange {
    version: Version,
    /// Whether another request may follow.
    goes_on: bool,
    /// Whether the rest of a body that nobody wants is read, so that one may.
    drains: bool,
    expects_continue: bool,
    wants_trailers: bool,
    /// How the body of the response is framed.
    chunked: bool,
    /// Whether the connection has changed its protocol.
    switched: bool,
}

/// How far a connection has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Life {
    /// There has been no request.
    Fresh,
    /// Neither, and the listener goes.
    Late,
    Used,
}

/// What came instead of a request, or with it.
pub enum Incoming {
    Request,
    Malformed(HeadError),
    /// It began, and did not go on.
    TooSlow,
    End,
}

impl Http1 {
    pub fn new(stream: ClientStream, drain: Drain) -> Http1 {
        Http1 {
            stream,
            input: BytesMut::new(),
            output: Vec::new(),
            written: 0,
            total_written: 0,
            body: BodyReader::new(Framing::None),
            exchange: Exchange::default(),
            closing: Box::pin(drain.idle_closes()),
            drain,
            life: Life::Fresh,
            watchdog: Watchdog::default(),
            cut_off: false,
            is_malformed: false,
        }
    }

    /// Waits for the next request, until `idle_timeout` is over.
    pub async fn next(&mut self, head: &mut RequestHead, idle_timeout: Duration) -> Incoming {
        let mut end = HeadEnd::default();
        let now = Instant::now();
        self.drain.waits(now);
        let mut deadline = now + idle_timeout;
        let mut begun = false;
        loop {
            // RFC 9112 section 2.2: an empty line before a request is none.
            if end_is_new(&end) && self.input.starts_with(b"\r\n") {
                self.input.advance(2);
            }
            match end.find(&self.input, &REQUEST_LIMITS) {
                Ok(Some(length)) => return self.begin(head, length),
                Ok(None) => {}
                Err(error) => {
                    self.give_up_reading();
                    return Incoming::Malformed(error);
                }
            }
            if !begun && !self.input.is_empty() {
                begun = true;
                self.drain.works();
                deadline = Instant::now() + HEAD_TIMEOUT;
            }
            match poll_fn(|cx| self.poll_more(cx, head, deadline)).await {
                More::Some => {}
                More::Closing if self.life == Life::Used || self.drain.makes_room() => {
                    return Incoming::End;
                }
                More::Closing => {
                    self.life = Life::Late;
                    deadline = deadline.min(Instant::now() + FIRST_REQUEST_TIMEOUT);
                }
                More::End => return Incoming::End,
                More::TooLate if begun => {
                    self.give_up_reading();
                    return Incoming::TooSlow;
                }
                More::TooLate => return Incoming::End,
            }
        }
    }

    fn poll_more(
        &mut self,
        cx: &mut Context<'_>,
        head: &mut RequestHead,
        deadline: Instant,
    ) -> Poll<More> {
        let idle = self.input.is_empty();
        if self.stream.poll_readable(cx).is_ready() {
            self.make_room(FIRST_READ);
            match self.stream.poll_fill(cx, &mut self.input) {
                Poll::Ready(Ok(1..)) => return Poll::Ready(More::Some),
                Poll::Ready(_) => return Poll::Ready(More::End),
                Poll::Pending => {}
            }
        }
        if idle {
            self.release();
            head.release();
            if self.life != Life::Late && self.closing.as_mut().poll(cx).is_ready() {
                return Poll::Ready(More::Closing);
            }
        }
        self.watchdog.poll(cx, deadline).map(|()| More::TooLate)
    }

    /// A connection that waits has no memory for what may come.
    fn release(&mut self) {
        spare::give_buffer(&mut self.input);
        spare::give_text(&mut self.output);
    }

    fn make_room(&mut self, bytes: usize) {
        if self.input.capacity() == 0 {
            self.input = spare::buffer();
        }
        self.input.reserve(bytes);
    }

    fn begin(&mut self, head: &mut RequestHead, length: usize) -> Incoming {
        if let Err(error) = head.parse(&self.input[..length], &REQUEST_LIMITS) {
            self.give_up_reading();
            return Incoming::Malformed(error);
        }
        self.input.advance(length);
        self.life = Life::Used;
        let is_last = self.drain.works();
        self.body = BodyReader::new(head.framing);
        self.exchange = Exchange {
            version: head.version,
            goes_on: head.keeps_alive() && !is_last,
            expects_continue: head.fields.has(Known::Expect),
            wants_trailers: head.fields.lists(Known::Te, b"trailers"),
            ..Exchange::default()
        };
        Incoming::Request
    }

    /// Nobody knows where the next request begins.
    fn give_up_reading(&mut self) {
        self.exchange = Exchange::default();
        self.is_malformed = true;
    }

    /// Ends an exchange. Whether another may follow.
    pub async fn finish(&mut self) -> bool {
        if !self.exchange.goes_on || self.cut_off {
            return false;
        }
        if self.body.is_done() {
            return true;
        }
        // `forgo_body` has seen to it that it is little.
        forgo_rest(self, u64::MAX).await
    }

    /// Closes. A client that is still sending is listened to for a while.
    pub async fn close(self) {
        if !self.cut_off {
            let sending = !self.body.is_done() || !self.input.is_empty();
            let linger = sending || self.is_malformed;
            self.stream.close(linger).await;
        }
    }

    /// Adds what has come to the input.
    fn poll_fill(&mut self, cx: &mut Context<'_>, more: usize) -> Poll<Result<(), ClientError>> {
        if self.input.capacity() - self.input.len() < FIRST_READ / 2 {
            self.make_room(more);
        }
        match ready!(self.stream.poll_fill(cx, &mut self.input)) {
            Ok(0) => Poll::Ready(Err(ClientError::Gone)),
            Ok(_) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(ClientError::Read(error))),
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ClientError>> {
        while self.written < self.output.len() {
            let rest = &self.output[self.written..];
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, rest));
            match written.map_err(ClientError::Write)? {
                0 => return Poll::Ready(Err(ClientError::Gone)),
                written => {
                    self.written += written;
                    self.total_written += written as u64;
                }
            }
        }
        self.written = 0;
        self.output.clear();
        Poll::Ready(Ok(()))
    }

    fn unwritten(&self) -> usize {
        self.output.len() - self.written
    }

    fn write_data(&mut self, data: &[u8]) {
        match self.exchange.chunked {
            true => write_chunk(&mut self.output, data),
            false => self.output.extend_from_slice(data),
        }
    }

    /// What says where the response ends, and whether the connection does, too.
    fn write_framing(&mut self, head: &ResponseHead, framing: Framing) {
        let old = self.exchange.version == Version::HTTP_10;
        self.exchange.chunked = !old && matches!(framing, Framing::Chunked | Framing::UntilClose);
        match framing {
            Framing::Length(length) => write_length(&mut self.output, CONTENT_LENGTH, length),
            Framing::None if has_length(head) => {
                if let Ok(Some(length)) = head.length() {
                    write_length(&mut self.output, CONTENT_LENGTH, length);
                }
            }
            Framing::None => {}
            Framing::Chunked | Framing::UntilClose if old => self.exchange.goes_on = false,
            Framing::Chunked | Framing::UntilClose => {
                self.output
                    .extend_from_slice(b"Transfer-Encoding: chunked\r\n");
            }
        }
        match (self.exchange.goes_on, old) {
            (false, _) => self.output.extend_from_slice(b"Connection: close\r\n"),
            (true, true) => self.output.extend_from_slice(b"Connection: keep-alive\r\n"),
            (true, false) => {}
        }
    }
}

fn end_is_new(end: &HeadEnd) -> bool {
    *end == HeadEnd::default()
}

/// Whether a response without a body may say how long it would be (RFC 9110 section 8.6).
fn has_length(head: &ResponseHead) -> bool {
    !head.status.is_informational() && head.status != StatusCode::NO_CONTENT
}

/// What came of waiting for more of a head.
enum More {
    Some,
    End,
    /// The listener goes, and nothing is under way.
    Closing,
    TooLate,
}

impl Client for Http1 {
    fn poll_body(
        &mut self,
        cx: &mut Context<'_>,
        take: &mut dyn FnMut(&[u8]),
    ) -> Poll<Result<Option<Trailers>, ClientError>> {
        loop {
            match self.body.step(&mut self.input)? {
                Step::Data(length) => {
                    take(&self.input[..length]);
                    self.input.advance(length);
                    self.body.took(length);
                    return Poll::Ready(Ok(None));
                }
                Step::End => return Poll::Ready(Ok(Some(self.body.take_trailers()))),
                Step::More => match ready!(self.poll_fill(cx, LARGE_READ)) {
                    Ok(()) => {}
                    Err(ClientError::Gone) if self.exchange.switched => {
                        return Poll::Ready(Ok(Some(None)));
                    }
                    Err(error) => return Poll::Ready(Err(error)),
                },
            }
        }
    }

    fn body_is_read(&self) -> bool {
        self.body.is_done()
    }

    fn forgo_body(&mut self) {
        while let Ok(Step::Data(length)) = self.body.step(&mut self.input) {
            self.input.advance(length);
            self.body.took(length);
        }
        let little = self.body.left().is_some_and(|left| left <= FORGONE_BYTES);
        // Whoever waits for a word before the body may send it or not: it would be unclear what
        // comes next (RFC 9110 section 10.1.1).
        self.exchange.drains = little && !self.exchange.expects_continue;
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<ClientError> {
        while self.input.len() < PIPELINE_BYTES {
            ready!(self.stream.poll_readable(cx));
            if let Err(error) = ready!(self.poll_fill(cx, FIRST_READ)) {
                return Poll::Ready(error);
            }
        }
        Poll::Pending
    }

    fn send_interim(&mut self, head: &ResponseHead) -> Result<(), ClientError> {
        // RFC 9110 section 15.2: HTTP/1.0 knows none.
        if self.exchange.version == Version::HTTP_11 {
            head.write_line(&mut self.output);
            answered::write_fields(&mut self.output, head);
            self.output.extend_from_slice(b"\r\n");
        }
        Ok(())
    }

    fn send_head(&mut self, head: &ResponseHead, framing: Framing) -> Result<(), ClientError> {
        if self.output.capacity() == 0 {
            self.output = spare::text();
        }
        self.output.reserve(USUAL_RESPONSE);
        head.write_line(&mut self.output);
        answered::write_fields(&mut self.output, head);
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            self.exchange.switched = true;
            self.exchange.goes_on = false;
            self.body = BodyReader::new(Framing::UntilClose);
        } else {
            // An answer that does not wait for the end of its request may be all there is to say.
            let ended = self.body.is_done() || self.exchange.drains;
            self.exchange.goes_on &= ended && !self.drain.has_begun();
            self.write_framing(head, framing);
        }
        self.output.extend_from_slice(b"\r\n");
        Ok(())
    }

    fn poll_room(
        &mut self,
        cx: &mut Context<'_>,
        wanted: usize,
    ) -> Poll<Result<usize, ClientError>> {
        if self.unwritten() >= DOWNLOAD_BUFFER {
            ready!(self.poll_write(cx))?;
        }
        Poll::Ready(Ok(wanted))
    }

    fn send_data(
        &mut self,
        input: &mut BytesMut,
        length: usize,
        last: bool,
    ) -> Result<(), ClientError> {
        self.write_data(&input[..length]);
        input.advance(length);
        if last {
            self.send_end(None)?;
        }
        Ok(())
    }

    fn send_piece(&mut self, data: Bytes, last: bool) -> Result<(), ClientError> {
        self.write_data(&data);
        if last {
            self.send_end(None)?;
        }
        Ok(())
    }

    fn send_end(&mut self, trailers: Option<&Fields>) -> Result<(), ClientError> {
        if self.exchange.chunked {
            let trailers = trailers.filter(|_| self.exchange.wants_trailers);
            write_last_chunk(&mut self.output, trailers);
        }
        Ok(())
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ClientError>> {
        self.poll_write(cx)
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ClientError>> {
        let shutdown = Pin::new(&mut self.stream).poll_shutdown(cx);
        shutdown.map_err(ClientError::Write)
    }

    fn progress(&self) -> u64 {
        self.total_written
    }

    fn poll_deadline(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        self.watchdog.poll(cx, deadline)
    }

    fn cut_off(&mut self) {
        self.cut_off = true;
    }
}
