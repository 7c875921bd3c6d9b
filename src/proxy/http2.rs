//! A client's connection that speaks HTTP/2 (RFC 9113): a task for each stream, over the h2 crate,
//! and one that reads and writes the frames of all of them.

use std::future::poll_fn;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use tokio::time::Instant;

use super::answered;
use super::client::{Client, FORGONE_BYTES, Trailers, forgo_rest};
use super::failure::ClientError;
use super::watchdog::Watchdog;
use crate::listener::drain::Drain;
use crate::listener::stream::ClientStream;
use crate::message::{Fields, Framing, ResponseHead, may_trail};

/// Streams at once on one connection: what browsers are content with.
const MAX_STREAMS: u32 = 100;

/// The header list of a request, as HTTP/2 counts it: 32 bytes more for each field.
const MAX_HEADER_BYTES: u32 = 64 * 1024;

/// What a client may send of a body before we have said that we took any.
const STREAM_WINDOW: u32 = 256 * 1024;

/// The same for all streams of a connection.
const CONNECTION_WINDOW: u32 = 1024 * 1024;

/// What a stream holds for a client that does not take it.
const SEND_BUFFER: usize = 64 * 1024;

/// How long a client may keep a connection that it was told to leave, and on which it has no stream:
/// it may have sent one before it knew.
const GOAWAY_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the other side may take for what begins a connection.
const PREFACE_TIMEOUT: Duration = Duration::from_secs(10);

/// Data up to so many bytes is copied out of the buffer that it was read into: a frame that holds on
/// to all of that costs more.
const COPIED_BYTES: usize = 4 * 1024;

type Connection = h2::server::Connection<ClientStream, Bytes>;

/// A stream that has begun.
pub type Begun = (Request<RecvStream>, SendResponse<Bytes>);

/// Reads and writes frames until the connection ends, and gives each stream that begins to `serve`.
/// When `drain` says so no more may begin, and it ends with those that have. `idle_timeout` is asked
/// whenever it has none: how long it stays open like that.
pub async fn connection(
    stream: ClientStream,
    drain: Drain,
    idle_timeout: impl Fn() -> Duration,
    serve: impl FnMut(Begun),
) -> Result<(), h2::Error> {
    let handshake = settings().handshake::<_, Bytes>(stream);
    match tokio::time::timeout(PREFACE_TIMEOUT, handshake).await {
        Ok(connection) => run(connection?, drain, idle_timeout, serve).await,
        Err(_) => Ok(()),
    }
}

async fn run(
    mut connection: Connection,
    drain: Drain,
    idle_timeout: impl Fn() -> Duration,
    mut serve: impl FnMut(Begun),
) -> Result<(), h2::Error> {
    let mut draining = std::pin::pin!(drain.begun());
    let mut making_room = std::pin::pin!(drain.idle_closes());
    // Whether the client knows that no more streams may begin.
    let mut told = false;
    let mut watchdog = Watchdog::default();
    // While there are streams it is set when the watchdog rings, and when the last one has ended.
    let mut idle_since = Instant::now();
    let mut patience = idle_timeout();
    // One that has just come in counts as busy until it is seen to wait.
    let mut was_busy = true;
    poll_fn(|cx| {
        let goes = !told
            && (draining.as_mut().poll(cx).is_ready() || making_room.as_mut().poll(cx).is_ready());
        if goes {
            told = true;
            idle_since = Instant::now();
            connection.graceful_shutdown();
        }
        loop {
            match connection.poll_accept(cx) {
                Poll::Ready(Some(Ok(begun))) => serve(begun),
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Pending => break,
            }
        }
        let is_busy = connection.has_streams();
        match (std::mem::replace(&mut was_busy, is_busy), is_busy) {
            (true, false) => {
                idle_since = Instant::now();
                patience = idle_timeout();
                if !told {
                    drain.waits(idle_since);
                }
            }
            // If it was told to go just now, its streams still end in peace.
            (false, true) => {
                drain.works();
            }
            (true, true) | (false, false) => {}
        }
        loop {
            let timeout = if told { GOAWAY_TIMEOUT } else { patience };
            if watchdog.poll(cx, idle_since + timeout).is_pending() {
                return Poll::Pending;
            }
            if !connection.has_streams() {
                if told {
                    return Poll::Ready(Ok(()));
                }
                told = true;
                connection.graceful_shutdown();
                cx.waker().wake_by_ref();
            }
            idle_since = Instant::now();
        }
    })
    .await
}

fn settings() -> h2::server::Builder {
    let mut settings = h2::server::Builder::new();
    settings
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADER_BYTES)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(SEND_BUFFER)
        // WebSockets (RFC 8441).
        .enable_connect_protocol();
    settings
}

/// One stream: a request and its response.
pub struct Http2 {
    body: RecvStream,
    body_is_read: bool,
    respond: SendResponse<Bytes>,
    /// Once the head of the response is sent, if a body follows.
    response: Option<SendStream<Bytes>>,
    ended: bool,
    /// Whether it is to become a WebSocket.
    websocket: bool,
    watchdog: Watchdog,
}

/// Whether a stream is to become a WebSocket (RFC 8441 section 4).
pub fn is_websocket(parts: &http::request::Parts) -> bool {
    let protocol = parts.extensions.get::<h2::ext::Protocol>();
    parts.method == http::Method::CONNECT
        && protocol.is_some_and(|it| it.as_str().eq_ignore_ascii_case("websocket"))
}

impl Http2 {
    pub fn new(body: RecvStream, respond: SendResponse<Bytes>, websocket: bool) -> Http2 {
        Http2 {
            body_is_read: body.is_end_stream(),
            body,
            respond,
            response: None,
            ended: false,
            websocket,
            watchdog: Watchdog::default(),
        }
    }

    /// Waits for the end of a request that has said that nothing follows its head.
    pub async fn expect_end(&mut self) -> Result<(), ClientError> {
        let mut came = 0;
        while !self.body_is_read {
            let read = poll_fn(|cx| self.poll_body(cx, &mut |data| came += data.len())).await;
            read?;
        }
        match came {
            0 => Ok(()),
            _ => Err(ClientError::Gone),
        }
    }

    /// Reads a little of a body that nobody wants, once the response is whole: to a client in the
    /// middle of sending it the end of the stream (RFC 9113 section 8.1) looks like a failure.
    /// curl before 8.0 is one.
    pub async fn forgo_rest(&mut self) {
        if !self.ended || self.body_is_read {
            return;
        }
        forgo_rest(self, FORGONE_BYTES).await;
    }

    /// Ends the stream. What is queued is sent before: a reset by hand would overtake it, so that
    /// of a stream that is merely dropped is left to tell what there is to be told (CANCEL if the
    /// response is not whole, NO_ERROR if it is and the request is not: RFC 9113 section 8.1).
    pub fn finish(mut self) {
        if !self.ended && self.response.is_none() {
            self.respond.send_reset(Reason::INTERNAL_ERROR);
        }
    }

    /// Refuses what is no request.
    pub fn refuse(mut self) {
        self.respond.send_reset(Reason::PROTOCOL_ERROR);
    }

    fn response(&mut self) -> Result<&mut SendStream<Bytes>, ClientError> {
        self.response.as_mut().ok_or(ClientError::Gone)
    }
}

/// What HTTP/2 has of a response's head.
fn http2_head(head: &ResponseHead, framing: Framing) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = head.status;
    let fields = response.headers_mut();
    fields.reserve(head.fields.len());
    for field in answered::passed(&head.fields) {
        append(fields, field.name, field.value);
    }
    let length = match framing {
        Framing::Length(length) => Some(length),
        Framing::None if head.status.is_informational() || head.status == 204 => None,
        Framing::None => head.length().ok().flatten(),
        Framing::Chunked | Framing::UntilClose => None,
    };
    if let Some(length) = length {
        fields.insert(http::header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    response
}

/// A stream becomes a WebSocket by any status of class 2xx, and by no other (RFC 8441 section 4).
fn say_whether_switched(head: &mut Response<()>, switched: bool) {
    if switched {
        *head.status_mut() = StatusCode::OK;
        head.headers_mut()
            .remove(http::header::SEC_WEBSOCKET_ACCEPT);
    } else if head.status().is_success() {
        *head.status_mut() = StatusCode::BAD_GATEWAY;
    }
}

/// Waits until the other side of a stream takes some of `wanted` bytes; how many. `None`: it takes no
/// more.
pub fn poll_capacity(
    stream: &mut SendStream<Bytes>,
    cx: &mut Context<'_>,
    wanted: usize,
) -> Poll<Option<Result<usize, h2::Error>>> {
    stream.reserve_capacity(wanted);
    loop {
        match stream.capacity() {
            0 => match ready!(stream.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                ended => return Poll::Ready(ended),
            },
            capacity => return Poll::Ready(Some(Ok(capacity))),
        }
    }
}

/// Trailers as HTTP/2 has them.
pub fn fields_of(trailers: &HeaderMap) -> Box<Fields> {
    let mut fields = Box::new(Fields::default());
    for (name, value) in trailers {
        fields.push(name.as_str().as_bytes(), value.as_bytes());
    }
    fields
}

/// Trailers for HTTP/2, those that may be some.
pub fn header_map(trailers: &Fields) -> HeaderMap {
    let mut fields = HeaderMap::new();
    for field in trailers.iter().filter(|field| may_trail(field.name)) {
        append(&mut fields, field.name, field.value);
    }
    fields
}

/// Both were checked when they were read: neither conversion fails.
fn append(fields: &mut HeaderMap, name: &[u8], value: &[u8]) {
    if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
        fields.append(name, value);
    }
}

impl Client for Http2 {
    fn poll_body(
        &mut self,
        cx: &mut Context<'_>,
        take: &mut dyn FnMut(&[u8]),
    ) -> Poll<Result<Option<Trailers>, ClientError>> {
        if self.body_is_read {
            return Poll::Ready(Ok(Some(None)));
        }
        if let Some(data) = ready!(self.body.poll_data(cx)) {
            let data = data?;
            take(&data);
            self.body.flow_control().release_capacity(data.len())?;
            return Poll::Ready(Ok(None));
        }
        let trailers = ready!(self.body.poll_trailers(cx))?;
        self.body_is_read = true;
        Poll::Ready(Ok(Some(trailers.as_ref().map(fields_of))))
    }

    fn body_is_read(&self) -> bool {
        self.body_is_read
    }

    /// The stream ends with its response, and the connection goes on.
    fn forgo_body(&mut self) {}

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<ClientError> {
        let reset = match &mut self.response {
            Some(response) => response.poll_reset(cx),
            None => self.respond.poll_reset(cx),
        };
        reset.map(|reset| match reset {
            Ok(_) => ClientError::Gone,
            Err(error) => error.into(),
        })
    }

    fn send_interim(&mut self, head: &ResponseHead) -> Result<(), ClientError> {
        let head = http2_head(head, Framing::None);
        Ok(self.respond.send_informational(head)?)
    }

    fn send_head(&mut self, head: &ResponseHead, framing: Framing) -> Result<(), ClientError> {
        let switched = head.status == StatusCode::SWITCHING_PROTOCOLS;
        self.ended = framing.is_empty() && !switched;
        let mut head = http2_head(head, framing);
        if self.websocket {
            say_whether_switched(&mut head, switched);
        }
        let response = self.respond.send_response(head, self.ended)?;
        self.response = Some(response);
        Ok(())
    }

    fn poll_room(
        &mut self,
        cx: &mut Context<'_>,
        wanted: usize,
    ) -> Poll<Result<usize, ClientError>> {
        match ready!(poll_capacity(self.response()?, cx, wanted)) {
            Some(capacity) => Poll::Ready(Ok(capacity?)),
            None => Poll::Ready(Err(ClientError::Gone)),
        }
    }

    fn send_data(
        &mut self,
        input: &mut BytesMut,
        length: usize,
        last: bool,
    ) -> Result<(), ClientError> {
        let data = match length {
            ..=COPIED_BYTES => {
                let data = Bytes::copy_from_slice(&input[..length]);
                bytes::Buf::advance(input, length);
                data
            }
            _ => input.split_to(length).freeze(),
        };
        self.ended = last;
        Ok(self.response()?.send_data(data, last)?)
    }

    fn send_piece(&mut self, data: Bytes, last: bool) -> Result<(), ClientError> {
        self.ended = last;
        Ok(self.response()?.send_data(data, last)?)
    }

    fn send_end(&mut self, trailers: Option<&Fields>) -> Result<(), ClientError> {
        self.ended = true;
        let response = self.response()?;
        let Some(trailers) = trailers else {
            return Ok(response.send_data(Bytes::new(), true)?);
        };
        Ok(response.send_trailers(header_map(trailers))?)
    }

    /// The connection's own task writes.
    fn poll_flush(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), ClientError>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), ClientError>> {
        Poll::Ready(self.send_end(None))
    }

    fn progress(&self) -> u64 {
        0
    }

    fn poll_deadline(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        self.watchdog.poll(cx, deadline)
    }

    fn cut_off(&mut self) {
        self.ended = false;
    }
}
