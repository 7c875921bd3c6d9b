//! One request to one upstream and its response back, both at once, in one task: nothing is handed
//! from one to another. What has come goes on before anybody waits for more, so that nothing is held
//! back, and what fits together leaves together.

use std::task::{Context, Poll};

use bytes::Buf;
use http::{Method, StatusCode, Version};

use super::changes::Adjustment;
use super::client::Client;
use super::connection::Connection;
use super::failure::{Failure, UpstreamError};
use super::intake::{Intake, Replay};
use super::progress::{Limits as TimeLimits, Moved, Progress, Waiting};
use crate::config::MinRates;
use crate::message::{
    BodyReader, Framing, HeadEnd, Known, Limits, ResponseHead, Step, write_chunk, write_last_chunk,
};

/// Upstreams are ours to trust with more than clients are: cookies and policies are long.
pub const RESPONSE_LIMITS: Limits = Limits {
    bytes: 64 * 1024,
    fields: 200,
};

/// More than that before the final response says nothing to anybody.
pub const MAX_INTERIM: usize = 64;

/// How much of a request's body may wait for the upstream to take it.
pub const UPLOAD_BUFFER: usize = 64 * 1024;

/// What a relay is for.
pub struct Request<'r> {
    pub method: &'r Method,
    pub framing: Framing,
    /// Whether a switch of protocols was asked for.
    pub upgrade: bool,
    /// Whether the upstream is to ask for the body.
    pub expects: bool,
    /// How long which side may take.
    pub limits: TimeLimits,
    /// How much body is taken, in bytes.
    pub max_body: Option<u64>,
    /// How slow the client may be.
    pub rates: MinRates,
    /// Changes the head of the response, if it is to be changed.
    pub adjust: Option<Adjustment<'r>>,
}

/// One exchange on one connection. The head of the request is in the connection's output already.
pub struct Relay<'r, C> {
    request: Request<'r>,
    client: &'r mut C,
    upstream: &'r mut Connection,
    upload: Upload,
    download: Download,
    intake: Intake,
    interims: usize,
    /// Whether anything has come from the upstream.
    heard: bool,
    reusable: bool,
    status: Option<StatusCode>,
    sent: u64,
    progress: Progress,
}

enum Upload {
    Body,
    Flush,
    Done,
    /// The upstream takes no more. It may have answered, all the same.
    Refused(std::io::Error),
}

enum Download {
    Head(HeadEnd),
    Body(BodyReader),
    Done,
}

impl<'r, C: Client> Relay<'r, C> {
    /// `replay`: what an attempt before this one has read of the body, or nothing yet.
    pub fn new(
        request: Request<'r>,
        client: &'r mut C,
        upstream: &'r mut Connection,
        replay: Replay,
    ) -> Relay<'r, C> {
        let upload = match request.framing.is_empty() {
            true => Upload::Flush,
            false => Upload::Body,
        };
        let intake = Intake::new(request.max_body, replay);
        write_body(&mut upstream.output, request.framing, intake.before());
        let progress = Progress::new(client, request.rates);
        Relay {
            request,
            client,
            upstream,
            upload,
            download: Download::Head(HeadEnd::default()),
            intake,
            interims: 0,
            heard: false,
            reusable: false,
            status: None,
            sent: 0,
            progress,
        }
    }

    /// The status that the client was sent, and how many bytes of body.
    pub fn sent(&self) -> (Option<StatusCode>, u64) {
        (self.status, self.sent)
    }

    /// Whether the upstream may never have seen the request, as far as it has said.
    pub fn was_ignored(&self) -> bool {
        !self.heard
    }

    pub fn take_replay(&mut self) -> Replay {
        self.intake.take_replay()
    }

    /// Whether the connection is good for another exchange, now that this one is over.
    pub fn is_reusable(&self) -> bool {
        self.reusable && matches!(self.upload, Upload::Done) && self.upstream.input.is_empty()
    }

    /// Ready when the client has been sent the whole response, or has been switched.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.poll_upload(cx)?;
        let download = self.poll_download(cx)?;
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
        let waiting = match (&self.upload, download) {
            _ if flushed.is_pending() => Waiting::ClientTakes,
            (_, Stopped::NoRoom) => Waiting::ClientTakes,
            (Upload::Body, _) if self.upstream.unwritten() == 0 => Waiting::ClientSends,
            (Upload::Body | Upload::Flush, _) => Waiting::UpstreamTakes,
            _ if self.status.is_none() => Waiting::Head,
            _ => Waiting::UpstreamSends,
        };
        let moved = Moved {
            request: self.intake.taken(),
            response: self.sent,
        };
        let limits = &self.request.limits;
        self.progress.poll(cx, self.client, limits, waiting, moved)
    }

    /// Sends what there is of the request.
    fn poll_upload(&mut self, cx: &mut Context<'_>) -> Result<(), Failure> {
        loop {
            match self.upload {
                Upload::Body if self.upstream.unwritten() >= UPLOAD_BUFFER => {
                    if self.flush_upstream(cx).is_pending() {
                        return Ok(());
                    }
                }
                Upload::Body => {
                    let (output, framing) = (&mut self.upstream.output, self.request.framing);
                    let body = self.intake.poll(cx, self.client, |data| {
                        write_body(output, framing, data);
                    });
                    match body? {
                        Poll::Ready(None) => self.progress.moved = true,
                        Poll::Ready(Some(trailers)) => {
                            if self.request.framing == Framing::Chunked {
                                write_last_chunk(&mut self.upstream.output, trailers.as_deref());
                            }
                            self.upload = Upload::Flush;
                        }
                        Poll::Pending => {
                            let _ = self.flush_upstream(cx);
                            return Ok(());
                        }
                    }
                }
                Upload::Flush => {
                    if self.flush_upstream(cx).is_pending() {
                        return Ok(());
                    }
                    if matches!(self.upload, Upload::Flush) {
                        self.upload = Upload::Done;
                    }
                }
                Upload::Done | Upload::Refused(_) => return Ok(()),
            }
        }
    }

    fn flush_upstream(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let unwritten = self.upstream.unwritten();
        let flushed = self.upstream.poll_flush(cx);
        self.progress.moved |= self.upstream.unwritten() != unwritten;
        match flushed {
            Poll::Ready(Err(error)) => self.upload = Upload::Refused(error),
            Poll::Ready(Ok(())) => {}
            Poll::Pending => return Poll::Pending,
        }
        Poll::Ready(())
    }

    /// Passes on what there is of the response.
    fn poll_download(&mut self, cx: &mut Context<'_>) -> Result<Stopped, Failure> {
        loop {
            let input = &mut self.upstream.input;
            match &mut self.download {
                Download::Head(end) => {
                    let found = end.find_in_response(input, &RESPONSE_LIMITS);
                    match found.map_err(UpstreamError::Head)? {
                        Some(length) => self.take_head(length)?,
                        None => match self.fill(cx)? {
                            Poll::Ready(0) => return Err(self.ended_early().into()),
                            Poll::Ready(_) => {}
                            Poll::Pending => return Ok(Stopped::NoData),
                        },
                    }
                }
                Download::Body(body) => match body.step(input).map_err(UpstreamError::Body)? {
                    Step::Data(length) => match self.client.poll_room(cx, length)? {
                        Poll::Ready(room) => {
                            let length = length.min(room);
                            body.took(length);
                            let last = body.is_done();
                            self.client.send_data(input, length, last)?;
                            self.sent += length as u64;
                            self.progress.moved = true;
                            if last {
                                self.download = Download::Done;
                            }
                        }
                        Poll::Pending => return Ok(Stopped::NoRoom),
                    },
                    Step::End => self.end_body()?,
                    Step::More => match self.fill(cx)? {
                        Poll::Ready(0) => self.end_with_connection()?,
                        Poll::Ready(_) => {}
                        Poll::Pending => return Ok(Stopped::NoData),
                    },
                },
                Download::Done => return Ok(Stopped::Done),
            }
        }
    }

    fn fill(&mut self, cx: &mut Context<'_>) -> Result<Poll<usize>, UpstreamError> {
        match self.upstream.poll_fill(cx) {
            Poll::Ready(Ok(length)) => {
                self.heard |= length > 0;
                self.progress.moved = true;
                Ok(Poll::Ready(length))
            }
            Poll::Ready(Err(error)) => Err(UpstreamError::Read(error)),
            Poll::Pending => Ok(Poll::Pending),
        }
    }

    /// Why there is no head. That it took no more of the request is the better reason.
    fn ended_early(&mut self) -> UpstreamError {
        match std::mem::replace(&mut self.upload, Upload::Done) {
            Upload::Refused(error) => UpstreamError::Write(error),
            _ => UpstreamError::Closed,
        }
    }

    fn take_head(&mut self, length: usize) -> Result<(), Failure> {
        let mut head = ResponseHead::default();
        let input = &mut self.upstream.input;
        head.parse(&input[..length], &RESPONSE_LIMITS)
            .map_err(UpstreamError::Head)?;
        input.advance(length);
        match head.status.as_u16() {
            101 if !self.request.upgrade => Err(UpstreamError::Switch.into()),
            101 => self.begin(&head, Framing::None),
            100..200 => self.pass_interim(&head),
            _ => {
                let framing = head.framing(self.request.method);
                let framing = framing.map_err(UpstreamError::Head)?;
                // What it would be if there were a body is passed on: it has to be one.
                head.length().map_err(UpstreamError::Head)?;
                let contradicts =
                    framing == Framing::Chunked && head.fields.has(Known::ContentLength);
                // Whoever has not asked for a body may not have read it.
                let unasked = self.request.expects && self.interims == 0;
                self.reusable = head.keeps_alive()
                    && head.version == Version::HTTP_11
                    && framing != Framing::UntilClose
                    && !contradicts
                    && !unasked;
                if let Some(adjustment) = &self.request.adjust {
                    adjustment.apply(&mut head);
                }
                self.begin(&head, framing)
            }
        }
    }

    fn pass_interim(&mut self, head: &ResponseHead) -> Result<(), Failure> {
        self.interims += 1;
        if self.interims > MAX_INTERIM {
            return Err(UpstreamError::Interim.into());
        }
        self.download = Download::Head(HeadEnd::default());
        Ok(self.client.send_interim(head)?)
    }

    fn begin(&mut self, head: &ResponseHead, framing: Framing) -> Result<(), Failure> {
        self.status = Some(head.status);
        self.client.send_head(head, framing)?;
        self.download = match framing.is_empty() {
            true => Download::Done,
            false => Download::Body(BodyReader::new(framing)),
        };
        Ok(())
    }

    fn end_body(&mut self) -> Result<(), Failure> {
        let trailers = match std::mem::replace(&mut self.download, Download::Done) {
            Download::Body(mut body) => body.take_trailers(),
            Download::Head(_) | Download::Done => None,
        };
        Ok(self.client.send_end(trailers.as_deref())?)
    }

    fn end_with_connection(&mut self) -> Result<(), Failure> {
        match &self.download {
            Download::Body(body) if body.ends_with_connection() => self.end_body(),
            _ => Err(UpstreamError::Body(crate::message::BodyError::Truncated).into()),
        }
    }
}

/// Why a response does not go on now.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stopped {
    NoData,
    NoRoom,
    Done,
}

fn write_body(output: &mut Vec<u8>, framing: Framing, data: &[u8]) {
    match framing {
        _ if data.is_empty() => {}
        Framing::Chunked => write_chunk(output, data),
        _ => output.extend_from_slice(data),
    }
}
