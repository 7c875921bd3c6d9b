//! One request of a client, of whatever version of HTTP, as what passes it on sees it: a body to be
//! read, and a response to be written. What is about the client's connection is the business of who
//! implements this.

use std::future::poll_fn;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

use super::failure::ClientError;
use crate::message::{Fields, Framing, ResponseHead};

/// The client's side of one exchange.
pub trait Client {
    /// Gives the next piece of the request's body to `take`; `Some` with the trailers, if there are
    /// any, once there is no more, and again whenever it is asked after that.
    fn poll_body(
        &mut self,
        cx: &mut Context<'_>,
        take: &mut dyn FnMut(&[u8]),
    ) -> Poll<Result<Option<Trailers>, ClientError>>;

    /// Whether the request has been read to its end.
    fn body_is_read(&self) -> bool;

    /// Throws away what has come of a body that nobody wants, so that the connection may go on
    /// where that is little enough.
    fn forgo_body(&mut self);

    /// Waits for the client to leave. Only once the body is read.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<ClientError>;

    /// Sends a response of class 1xx, 101 excepted, if the client understands it.
    fn send_interim(&mut self, head: &ResponseHead) -> Result<(), ClientError>;

    /// Begins the final response, or switches protocols. Nothing follows if `framing` is empty. What
    /// the fields say about the connection and the length does not go on: `framing` does, and
    /// without a body the length that one would have.
    fn send_head(&mut self, head: &ResponseHead, framing: Framing) -> Result<(), ClientError>;

    /// Waits until some of `wanted` bytes of body may be sent; how many.
    fn poll_room(
        &mut self,
        cx: &mut Context<'_>,
        wanted: usize,
    ) -> Poll<Result<usize, ClientError>>;

    /// Sends so many bytes from the front of `input`, no more than there was room for. `last`:
    /// nothing follows.
    fn send_data(
        &mut self,
        input: &mut BytesMut,
        length: usize,
        last: bool,
    ) -> Result<(), ClientError>;

    /// The same for data that is in a piece of its own.
    fn send_piece(&mut self, data: Bytes, last: bool) -> Result<(), ClientError>;

    /// Ends a body whose last data was not known to be the last.
    fn send_end(&mut self, trailers: Option<&Fields>) -> Result<(), ClientError>;

    /// Writes what is ready, as far as the client takes it.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ClientError>>;

    /// Says that nothing more will be sent, after a switch of protocols.
    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ClientError>>;

    /// Grows whenever the client has taken something.
    fn progress(&self) -> u64;

    /// Waits for a time.
    fn poll_deadline(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()>;

    /// Lets the client see that the response is not whole.
    fn cut_off(&mut self);
}

/// What came behind a body; mostly nothing.
pub type Trailers = Option<Box<Fields>>;

/// How much of a body that nobody wants is read, in bytes: more is dearer than another connection or
/// stream. And how long.
pub const FORGONE_BYTES: u64 = 64 * 1024;
const FORGO_TIMEOUT: Duration = Duration::from_secs(2);

/// Reads what is left of a body that nobody wants, so many bytes at the most. Whether that was all.
pub async fn forgo_rest<C: Client>(client: &mut C, most: u64) -> bool {
    let deadline = Instant::now() + FORGO_TIMEOUT;
    let mut left = most;
    poll_fn(|cx| {
        while left > 0 {
            let mut take = |data: &[u8]| left = left.saturating_sub(data.len() as u64);
            match client.poll_body(cx, &mut take) {
                Poll::Ready(Ok(None)) => {}
                Poll::Ready(Ok(Some(_))) => return Poll::Ready(true),
                Poll::Ready(Err(_)) => return Poll::Ready(false),
                Poll::Pending => return client.poll_deadline(cx, deadline).map(|()| false),
            }
        }
        Poll::Ready(false)
    })
    .await
}

/// Sends what is left of a piece; ready when the client has it, if it is the `last` one when it is
/// written. How much of it was sent is added to `sent`.
pub fn poll_send<C: Client>(
    client: &mut C,
    cx: &mut Context<'_>,
    piece: &mut BytesMut,
    sent: &mut u64,
    last: bool,
) -> Poll<Result<(), ClientError>> {
    while !piece.is_empty() {
        let Poll::Ready(room) = client.poll_room(cx, piece.len())? else {
            // What there is leaves, and so makes room.
            let _ = client.poll_flush(cx)?;
            return Poll::Pending;
        };
        let length = room.min(piece.len());
        client.send_data(piece, length, last && length == piece.len())?;
        *sent += length as u64;
    }
    match client.poll_flush(cx)? {
        Poll::Pending if last => Poll::Pending,
        _ => Poll::Ready(Ok(())),
    }
}
