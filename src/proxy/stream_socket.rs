//! A stream of HTTP/2 to an upstream, read and written like a socket: what a WebSocket runs on
//! (RFC 8441 section 5).

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::{RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::http2::poll_capacity;

/// Both directions.
pub struct StreamSocket {
    up: SendStream<Bytes>,
    down: RecvStream,
    /// Has come, and has not been read.
    data: Bytes,
    finished: bool,
}

impl StreamSocket {
    pub fn new(up: SendStream<Bytes>, down: RecvStream) -> StreamSocket {
        StreamSocket {
            up,
            down,
            data: Bytes::new(),
            finished: false,
        }
    }
}

impl AsyncRead for StreamSocket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.data.is_empty() {
            match ready!(self.down.poll_data(cx)) {
                Some(data) => self.data = data.map_err(io::Error::other)?,
                None => return Poll::Ready(Ok(())),
            }
        }
        let length = self.data.len().min(buffer.remaining());
        buffer.put_slice(&self.data[..length]);
        self.data.advance(length);
        let flow = self.down.flow_control();
        flow.release_capacity(length).map_err(io::Error::other)?;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for StreamSocket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let capacity = match ready!(poll_capacity(&mut self.up, cx, data.len())) {
            Some(capacity) => capacity.map_err(io::Error::other)?,
            None => return Poll::Ready(Ok(0)),
        };
        let length = capacity.min(data.len());
        let piece = Bytes::copy_from_slice(&data[..length]);
        let sent = self.up.send_data(piece, false);
        Poll::Ready(sent.map(|()| length).map_err(io::Error::other))
    }

    /// The connection's own task writes.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if std::mem::replace(&mut self.finished, true) {
            return Poll::Ready(Ok(()));
        }
        let sent = self.up.send_data(Bytes::new(), true);
        Poll::Ready(sent.map_err(io::Error::other))
    }
}
