//! A connection that has changed its protocol (RFC 9110 section 7.8): bytes both ways, until both
//! sides have said all they have to say.

use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::Instant;

use super::client::Client;
use super::connection::Connection;
use super::failure::{ClientError, Failure, UpstreamError};

/// How much may wait for the upstream to take it.
const UPLOAD_BUFFER: usize = 64 * 1024;

/// How long the other side may go on once one side has closed, without a word. As long as neither
/// has, both may be silent for ever.
const HALF_CLOSED_TIMEOUT: Duration = Duration::from_secs(60);

/// Both directions.
pub struct Tunnel<'t, C> {
    client: &'t mut C,
    upstream: &'t mut Connection,
    up: Way,
    down: Way,
    moved: bool,
    sent: u64,
    deadline: Option<Instant>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Open,
    /// Nothing more will come; what has come is on its way.
    Ending,
    Closed,
}

impl<'t, C: Client> Tunnel<'t, C> {
    pub fn new(client: &'t mut C, upstream: &'t mut Connection) -> Tunnel<'t, C> {
        Tunnel {
            client,
            upstream,
            up: Way::Open,
            down: Way::Open,
            moved: false,
            sent: 0,
            deadline: None,
        }
    }

    /// How many bytes went to the client.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Ready when both sides have closed, or one has failed.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        let (up, down) = (self.poll_up(cx)?, self.poll_down(cx)?);
        if up.is_ready() && down.is_ready() {
            return Poll::Ready(Ok(()));
        }
        let half_closed = self.up == Way::Closed || self.down == Way::Closed;
        if std::mem::take(&mut self.moved) || !half_closed {
            self.deadline = None;
        }
        if half_closed {
            let after = || Instant::now() + HALF_CLOSED_TIMEOUT;
            let deadline = *self.deadline.get_or_insert_with(after);
            ready!(self.client.poll_deadline(cx, deadline));
            return Poll::Ready(Ok(()));
        }
        Poll::Pending
    }

    fn poll_up(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        while self.up == Way::Open {
            if self.upstream.unwritten() >= UPLOAD_BUFFER {
                ready!(self.flush_upstream(cx))?;
            }
            let output = &mut self.upstream.output;
            let read = self
                .client
                .poll_body(cx, &mut |data| output.extend_from_slice(data));
            match read? {
                Poll::Ready(None) => self.moved = true,
                Poll::Ready(Some(_)) => self.up = Way::Ending,
                Poll::Pending => {
                    let _ = self.flush_upstream(cx)?;
                    return Poll::Pending;
                }
            }
        }
        if self.up == Way::Ending {
            ready!(self.flush_upstream(cx))?;
            // It may have closed before: then it need not be told.
            let _ = ready!(self.upstream.poll_shutdown(cx));
            self.up = Way::Closed;
        }
        Poll::Ready(Ok(()))
    }

    fn flush_upstream(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), UpstreamError>> {
        self.upstream.poll_flush(cx).map_err(UpstreamError::Write)
    }

    fn poll_down(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        while self.down == Way::Open {
            let waiting = self.upstream.input.len();
            if waiting > 0 {
                let Poll::Ready(room) = self.client.poll_room(cx, waiting)? else {
                    return Poll::Pending;
                };
                let length = waiting.min(room);
                self.client
                    .send_data(&mut self.upstream.input, length, false)?;
                self.sent += length as u64;
                continue;
            }
            match self.upstream.poll_fill(cx).map_err(UpstreamError::Read)? {
                Poll::Ready(0) => self.down = Way::Ending,
                Poll::Ready(_) => self.moved = true,
                Poll::Pending => {
                    let _ = self.client.poll_flush(cx)?;
                    return Poll::Pending;
                }
            }
        }
        if self.down == Way::Ending {
            ready!(self.client.poll_flush(cx))?;
            // It may have closed before: then it need not be told.
            let _: Result<(), ClientError> = ready!(self.client.poll_shutdown(cx));
            self.down = Way::Closed;
        }
        Poll::Ready(Ok(()))
    }
}
