//! One request on one stream to an upstream that speaks HTTP/2, and its response back: like `relay`
//! both at once in one task, each side no faster than the other takes it.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use h2::client::ResponseFuture;
use h2::{RecvStream, SendStream};
use http::StatusCode;

use super::client::{Client, Trailers};
use super::failure::{Failure, UpstreamError};
use super::http2::{fields_of, header_map, poll_capacity};
use super::intake::{Intake, Replay};
use super::progress::{Moved, Progress, Waiting};
use super::relay::{MAX_INTERIM, Request};
use super::stream_socket::StreamSocket;
use crate::message::{Framing, ResponseHead};

/// One exchange on one stream. The head of the request is sent already.
pub struct StreamRelay<'r, C> {
    request: Request<'r>,
    client: &'r mut C,
    up: SendStream<Bytes>,
    upload: Upload,
    /// Read of the client, and not taken by the upstream yet.
    buffer: BytesMut,
    download: Download,
    intake: Intake,
    interims: usize,
    heard: bool,
    status: Option<StatusCode>,
    sent: u64,
    progress: Progress,
    /// The `Sec-WebSocket-Accept` of a client of HTTP/1.1 whose stream becomes a WebSocket.
    accept: Option<String>,
    switched: Option<RecvStream>,
}

enum Upload {
    Body,
    /// What is in the buffer, then these.
    Last(Trailers),
    Done,
    /// The upstream takes no more. It may answer, all the same.
    Refused,
}

enum Download {
    Head(ResponseFuture),
    /// With what has come, and found no room yet.
    Body(RecvStream, Bytes),
    Done,
}

impl<'r, C: Client> StreamRelay<'r, C> {
    /// `replay`: what an attempt before this one has read of the body, or nothing yet.
    pub fn new(
        request: Request<'r>,
        client: &'r mut C,
        (response, up): (ResponseFuture, SendStream<Bytes>),
        replay: Replay,
    ) -> StreamRelay<'r, C> {
        let intake = Intake::new(request.max_body, replay);
        let progress = Progress::new(client, request.rates);
        StreamRelay {
            upload: match request.framing.is_empty() {
                true => Upload::Done,
                false => Upload::Body,
            },
            request,
            client,
            up,
            buffer: BytesMut::from(intake.before()),
            download: Download::Head(response),
            intake,
            interims: 0,
            heard: false,
            status: None,
            sent: 0,
            progress,
            accept: None,
            switched: None,
        }
    }

    /// The stream is to become a WebSocket: `accept` is the answer to the client's key.
    pub fn switching(self, accept: Option<String>) -> StreamRelay<'r, C> {
        StreamRelay { accept, ..self }
    }

    /// The stream, if it has become a WebSocket.
    pub fn into_switched(self) -> Option<StreamSocket> {
        let down = self.switched?;
        Some(StreamSocket::new(self.up, down))
    }

    /// The status that the client was sent, and how many bytes of body.
    pub fn sent(&self) -> (Option<StatusCode>, u64) {
        (self.status, self.sent)
    }

    /// Whether nothing of a response has come.
    pub fn was_ignored(&self) -> bool {
        !self.heard
    }

    pub fn take_replay(&mut self) -> Replay {
        self.intake.take_replay()
    }

    /// Ready when the client has been sent the whole response.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        let upload = self.poll_upload(cx)?;
        let room = self.poll_download(cx)?;
        let flushed = self.client.poll_flush(cx)?;
        let done = matches!(self.download, Download::Done);
        if done && flushed.is_ready() {
            return Poll::Ready(Ok(()));
        }
        if !done
            && self.client.body_is_read()
            && let Poll::Ready(error) = self.client.poll_gone(cx)
        {
            return Poll::Ready(Err(error.into()));
        }
        let waiting = match upload {
            _ if flushed.is_pending() || !room => Waiting::ClientTakes,
            Poll::Pending if self.buffer.is_empty() => Waiting::ClientSends,
            Poll::Pending => Waiting::UpstreamTakes,
            Poll::Ready(()) if self.status.is_none() => Waiting::Head,
            Poll::Ready(()) => Waiting::UpstreamSends,
        };
        let moved = Moved {
            request: self.intake.taken(),
            response: self.sent,
        };
        let limits = &self.request.limits;
        self.progress.poll(cx, self.client, limits, waiting, moved)
    }

    /// Sends what there is of the request.
    fn poll_upload(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        loop {
            if matches!(self.upload, Upload::Body | Upload::Last(_)) && !self.buffer.is_empty() {
                ready!(self.poll_send(cx));
                continue;
            }
            match &mut self.upload {
                Upload::Body => ready!(self.poll_client(cx))?,
                Upload::Last(trailers) => {
                    let sent = match trailers.take() {
                        Some(trailers) => self.up.send_trailers(header_map(&trailers)),
                        None => self.up.send_data(Bytes::new(), true),
                    };
                    self.upload = match sent {
                        Ok(()) => Upload::Done,
                        Err(_) => Upload::Refused,
                    };
                    self.progress.moved = true;
                }
                Upload::Done | Upload::Refused => return Poll::Ready(Ok(())),
            }
        }
    }

    /// Reads a piece of the body.
    fn poll_client(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        let (buffer, intake) = (&mut self.buffer, &mut self.intake);
        let read = intake.poll(cx, self.client, |data| buffer.extend_from_slice(data));
        if let Some(trailers) = ready!(read)? {
            self.upload = Upload::Last(trailers);
        }
        self.progress.moved = true;
        Poll::Ready(Ok(()))
    }

    /// Sends some of the buffer, as much as the upstream takes.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let capacity = poll_capacity(&mut self.up, cx, self.buffer.len());
        let Some(Ok(capacity)) = ready!(capacity) else {
            self.refuse();
            return Poll::Ready(());
        };
        let piece = self
            .buffer
            .split_to(capacity.min(self.buffer.len()))
            .freeze();
        if !piece.is_empty() && self.up.send_data(piece, false).is_err() {
            self.refuse();
        }
        self.progress.moved = true;
        Poll::Ready(())
    }

    fn refuse(&mut self) {
        self.buffer.clear();
        self.upload = Upload::Refused;
    }

    /// Passes on what there is of the response. False: the client has no room for more.
    fn poll_download(&mut self, cx: &mut Context<'_>) -> Result<bool, Failure> {
        loop {
            match &mut self.download {
                Download::Head(response) => {
                    if let Poll::Ready(Some(interim)) = response.poll_informational(cx) {
                        let interim = interim.map_err(UpstreamError::Http2)?;
                        self.pass_interim(interim)?;
                        continue;
                    }
                    match Pin::new(response).poll(cx) {
                        Poll::Ready(response) => {
                            self.take_head(response.map_err(UpstreamError::Http2)?)?;
                        }
                        Poll::Pending => return Ok(true),
                    }
                }
                Download::Body(body, data) if data.is_empty() => match body.poll_data(cx) {
                    Poll::Ready(Some(more)) => {
                        *data = more.map_err(UpstreamError::Http2)?;
                        self.progress.moved = true;
                        if data.is_empty() && body.is_end_stream() {
                            self.end(None)?;
                        }
                    }
                    Poll::Ready(None) => match body.poll_trailers(cx) {
                        Poll::Ready(trailers) => {
                            let trailers = trailers.map_err(UpstreamError::Http2)?;
                            self.end(trailers.as_ref().map(fields_of))?;
                        }
                        Poll::Pending => return Ok(true),
                    },
                    Poll::Pending => return Ok(true),
                },
                Download::Body(body, data) => {
                    let Poll::Ready(room) = self.client.poll_room(cx, data.len())? else {
                        return Ok(false);
                    };
                    let piece = data.split_to(room.min(data.len()));
                    let length = piece.len();
                    let last = data.is_empty() && body.is_end_stream();
                    self.client.send_piece(piece, last)?;
                    // The upstream may send as much as the client has been given room for.
                    let released = body.flow_control().release_capacity(length);
                    released.map_err(UpstreamError::Http2)?;
                    self.sent += length as u64;
                    self.progress.moved = true;
                    if last {
                        self.download = Download::Done;
                    }
                }
                Download::Done => return Ok(true),
            }
        }
    }

    fn pass_interim(&mut self, interim: http::Response<()>) -> Result<(), Failure> {
        self.heard = true;
        self.interims += 1;
        self.progress.moved = true;
        if self.interims > MAX_INTERIM {
            return Err(UpstreamError::Interim.into());
        }
        let head = ResponseHead::from_http2(&interim.into_parts().0);
        Ok(self.client.send_interim(&head)?)
    }

    /// By any status of class 2xx the stream becomes a WebSocket (RFC 8441 section 4).
    fn switch(&mut self, parts: &http::response::Parts, body: RecvStream) -> Result<(), Failure> {
        let mut head = ResponseHead::from_http2(parts);
        head.status = StatusCode::SWITCHING_PROTOCOLS;
        head.fields.push(b"Upgrade", b"websocket");
        if let Some(accept) = self.accept.take() {
            head.fields.set(b"Sec-WebSocket-Accept", accept.as_bytes());
        }
        if let Some(adjustment) = &self.request.adjust {
            adjustment.apply(&mut head);
        }
        self.status = Some(head.status);
        self.client.send_head(&head, Framing::None)?;
        self.switched = Some(body);
        self.download = Download::Done;
        Ok(())
    }

    fn take_head(&mut self, response: http::Response<RecvStream>) -> Result<(), Failure> {
        self.heard = true;
        self.progress.moved = true;
        let (parts, body) = response.into_parts();
        if self.request.upgrade && parts.status.is_success() {
            return self.switch(&parts, body);
        }
        let mut head = ResponseHead::from_http2(&parts);
        let framing = match head
            .framing(self.request.method)
            .map_err(UpstreamError::Head)?
        {
            _ if body.is_end_stream() => Framing::None,
            // HTTP/2 ends bodies by itself.
            Framing::UntilClose => Framing::Chunked,
            framing => framing,
        };
        head.length().map_err(UpstreamError::Head)?;
        if let Some(adjustment) = &self.request.adjust {
            adjustment.apply(&mut head);
        }
        self.status = Some(head.status);
        self.client.send_head(&head, framing)?;
        self.download = match framing.is_empty() {
            true => Download::Done,
            false => Download::Body(body, Bytes::new()),
        };
        Ok(())
    }

    fn end(&mut self, trailers: Trailers) -> Result<(), Failure> {
        self.download = Download::Done;
        Ok(self.client.send_end(trailers.as_deref())?)
    }
}
