//! A client's connection once it may be spoken on: plain or TLS.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use pingora::tls::tokio_ssl::SslStream;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_util::io::poll_read_buf;

use crate::spare;

/// What is read from the socket at once where less was asked for. BoringSSL asks for the five bytes
/// of a record's header and then for the record: most requests are one read this way, and what is
/// not filled tells that there is nothing more, so that nobody has to ask.
const AHEAD_BYTES: usize = spare::BUFFER_BYTES;

/// How long the other side may take to take our last word.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long what a client still sends is read and thrown away. Closing on it would reset the
/// connection, and the client might not see its answer.
const LINGER_TIMEOUT: Duration = Duration::from_secs(2);

/// A connection whose handshake, if there is one, is over.
pub struct ClientStream(Transport);

enum Transport {
    Plain(TcpStream),
    Tls(Box<SslStream<ReadAhead>>),
}

impl ClientStream {
    pub fn plain(stream: TcpStream) -> ClientStream {
        ClientStream(Transport::Plain(stream))
    }

    pub fn tls(stream: SslStream<ReadAhead>) -> ClientStream {
        ClientStream(Transport::Tls(Box::new(stream)))
    }

    /// Whether the client chose HTTP/2 (RFC 9113 section 3.2).
    pub fn is_http2(&self) -> bool {
        match &self.0 {
            Transport::Plain(_) => false,
            Transport::Tls(stream) => stream.ssl().selected_alpn_protocol() == Some(b"h2"),
        }
    }

    /// Adds what has come to `input`. `Ok(0)`: nothing will come any more.
    pub fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        input: &mut BytesMut,
    ) -> Poll<io::Result<usize>> {
        match &mut self.0 {
            Transport::Plain(stream) => poll_read_buf(Pin::new(stream), cx, input),
            Transport::Tls(stream) => poll_read_buf(Pin::new(&mut **stream), cx, input),
        }
    }

    /// Waits until there may be something to read, at the price of no memory and no system call.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()> {
        let socket = match &self.0 {
            Transport::Plain(stream) => stream,
            Transport::Tls(stream) => {
                let ahead = stream.get_ref();
                if stream.ssl().pending() > 0 || !ahead.buffer.is_empty() {
                    return Poll::Ready(());
                }
                &ahead.socket
            }
        };
        // An error shows when it is read.
        socket.poll_read_ready(cx).map(drop)
    }

    /// Says that nothing more will be sent, and closes. `linger`: the client may be sending still.
    pub async fn close(mut self, linger: bool) {
        // The client has mostly closed by now: that it cannot be told is no news.
        let said = tokio::time::timeout(CLOSE_TIMEOUT, self.shutdown()).await;
        if linger && matches!(said, Ok(Ok(()))) {
            let socket = self.into_socket();
            let _ = tokio::time::timeout(LINGER_TIMEOUT, discard(socket)).await;
        }
    }

    fn into_socket(self) -> Transport {
        self.0
    }
}

/// Reads until the other side has closed, below TLS: nobody wants to know what it is.
async fn discard(mut transport: Transport) {
    let mut waste = BytesMut::with_capacity(64 * 1024);
    let socket = match &mut transport {
        Transport::Plain(stream) => stream,
        Transport::Tls(stream) => &mut stream.get_mut().socket,
    };
    loop {
        waste.clear();
        let read = poll_fn(|cx| poll_read_buf(Pin::new(&mut *socket), cx, &mut waste)).await;
        if !matches!(read, Ok(1..)) {
            return;
        }
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // Whoever reads until nothing comes asks once more than there is to read: TLS would not find
        // that out for less than a sixth of a request's price.
        ready!(self.poll_readable(cx));
        match &mut self.0 {
            Transport::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Transport::Tls(stream) => Pin::new(&mut **stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.0 {
            Transport::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Transport::Tls(stream) => Pin::new(&mut **stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Transport::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Transport::Tls(stream) => Pin::new(&mut **stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Transport::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Transport::Tls(stream) => Pin::new(&mut **stream).poll_shutdown(cx),
        }
    }
}

/// The socket under TLS. It reads more than it is asked for and keeps that; while nothing comes it
/// keeps no memory.
pub struct ReadAhead {
    socket: TcpStream,
    buffer: BytesMut,
}

impl ReadAhead {
    pub fn new(socket: TcpStream) -> ReadAhead {
        let buffer = BytesMut::new();
        ReadAhead { socket, buffer }
    }
}

impl AsyncRead for ReadAhead {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.buffer.is_empty() {
            if buf.remaining() >= AHEAD_BYTES {
                return Pin::new(&mut this.socket).poll_read(cx, buf);
            }
            // Asked before there is any memory: a connection that waits has none.
            ready!(this.socket.poll_read_ready(cx))?;
            this.buffer = spare::buffer();
            let read = poll_read_buf(Pin::new(&mut this.socket), cx, &mut this.buffer);
            if !matches!(read, Poll::Ready(Ok(1..))) {
                spare::give_buffer(&mut this.buffer);
            }
            ready!(read)?;
        }
        let length = this.buffer.len().min(buf.remaining());
        buf.put_slice(&this.buffer[..length]);
        this.buffer.advance(length);
        if this.buffer.is_empty() {
            spare::give_buffer(&mut this.buffer);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ReadAhead {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
