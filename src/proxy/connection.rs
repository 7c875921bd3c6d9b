//! A connection to an upstream with what was read from it and what is to be written to it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use bytes::BytesMut;
use pingora::protocols::Stream as TlsStream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_util::io::poll_read_buf;

use crate::spare;

/// What is asked for while bodies flow.
const LARGE_READ: usize = 64 * 1024;

/// A connection, used for one exchange after the other.
pub struct Connection {
    socket: Socket,
    /// Read and not used yet.
    pub input: BytesMut,
    /// To be written.
    pub output: Vec<u8>,
    written: usize,
}

/// What a connection runs on.
pub enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(TlsStream),
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
            Socket::Unix(stream) => Pin::new(stream).poll_read(cx, buffer),
            Socket::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Socket::Tcp(stream) => Pin::new(stream).poll_write(cx, data),
            Socket::Unix(stream) => Pin::new(stream).poll_write(cx, data),
            Socket::Tls(stream) => Pin::new(stream).poll_write(cx, data),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Socket::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Socket::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Socket::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Socket::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

impl Connection {
    pub fn new(socket: Socket) -> Connection {
        Connection {
            socket,
            input: BytesMut::new(),
            output: Vec::new(),
            written: 0,
        }
    }

    /// Reads more. `Ok(0)`: nothing will come any more.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.input.capacity() - self.input.len() < spare::BUFFER_BYTES / 2 {
            match self.input.capacity() {
                0 => self.input = spare::buffer(),
                _ => self.input.reserve(LARGE_READ),
            }
        }
        let input = &mut self.input;
        match &mut self.socket {
            Socket::Tcp(stream) => poll_read_buf(Pin::new(stream), cx, input),
            Socket::Unix(stream) => poll_read_buf(Pin::new(stream), cx, input),
            Socket::Tls(stream) => poll_read_buf(Pin::new(stream), cx, input),
        }
    }

    /// Writes what there is.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.output.len() {
            let rest = &self.output[self.written..];
            let written = match &mut self.socket {
                Socket::Tcp(stream) => Pin::new(stream).poll_write(cx, rest),
                Socket::Unix(stream) => Pin::new(stream).poll_write(cx, rest),
                Socket::Tls(stream) => Pin::new(stream).poll_write(cx, rest),
            };
            match ready!(written)? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.written += written,
            }
        }
        if self.written > 0 {
            self.written = 0;
            self.output.clear();
            if let Socket::Tls(stream) = &mut self.socket {
                return Pin::new(stream).poll_flush(cx);
            }
        }
        Poll::Ready(Ok(()))
    }

    /// How much has not been written yet.
    pub fn unwritten(&self) -> usize {
        self.output.len() - self.written
    }

    /// Whether it is as silent as a connection between two exchanges has to be: it has not been
    /// closed, and nothing has come that nobody asked for. Asks the kernel only where something
    /// has happened.
    pub fn is_idle(&mut self) -> bool {
        let mut byte = [0];
        let read = match &mut self.socket {
            Socket::Tcp(stream) => stream.try_read(&mut byte),
            Socket::Unix(stream) => stream.try_read(&mut byte),
            Socket::Tls(stream) => {
                let mut buffer = ReadBuf::new(&mut byte);
                let mut cx = Context::from_waker(Waker::noop());
                match Pin::new(stream).poll_read(&mut cx, &mut buffer) {
                    Poll::Pending => return true,
                    Poll::Ready(_) => return false,
                }
            }
        };
        matches!(read, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Where the head of a request is to be written.
    pub fn head(&mut self) -> &mut Vec<u8> {
        if self.output.capacity() == 0 {
            self.output = spare::text();
        }
        &mut self.output
    }

    /// Gives memory back: nothing is under way.
    pub fn release(&mut self) {
        spare::give_buffer(&mut self.input);
        spare::give_text(&mut self.output);
        self.written = 0;
    }

    /// Says that nothing more will be sent.
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.socket {
            Socket::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Socket::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Socket::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
