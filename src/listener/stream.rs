//! A client's connection as Pingora sees it: plain or TLS, with what is known of it attached.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::os::fd::AsRawFd;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use async_trait::async_trait;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::tls::{SslDigest, SslStream, TlsRef};
use pingora::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl,
    TimingDigest, UniqueID, UniqueIDType,
};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;

use super::connection::ConnectionInfo;

/// The most that a TLS record carries (RFC 8446 section 5.1). What is larger is no better joined.
const RECORD_BYTES: usize = 16 * 1024;

/// What a connection that has anything to send sets aside for it at first: most response headers.
const HELD_BYTES: usize = 1024;

/// A connection whose handshake is over.
///
/// Over HTTP/1.1 Pingora writes a response's header, each piece of its body, and even the frame
/// around a chunk by themselves. They are held together here, and leave as one TLS record in one
/// system call: when Pingora flushes, when a record is full, and at the latest when the
/// connection's task has nothing left to do (see [`Held::driving`]), so nothing waits for what may
/// never come. HTTP/2 joins its frames by itself.
pub struct ClientStream {
    shared: Arc<Mutex<Shared>>,
    ssl: Option<Arc<SslDigest>>,
    alpn: Option<ALPN>,
    id: UniqueIDType,
    info: Arc<ProxyDigest>,
    socket: Arc<SocketDigest>,
}

/// What a [`ClientStream`] was told to write and has not written yet.
pub struct Held(Arc<Mutex<Shared>>);

struct Shared {
    transport: Transport,
    joins: bool,
    held: Vec<u8>,
    /// How much of `held` is written already.
    written: usize,
}

enum Transport {
    Plain(TcpStream),
    Tls(Box<SslStream<TcpStream>>),
}

impl ClientStream {
    pub fn plain(stream: TcpStream, info: ConnectionInfo) -> (ClientStream, Held) {
        let id = stream.as_raw_fd();
        ClientStream::new(Transport::Plain(stream), id, info)
    }

    pub fn tls(stream: SslStream<TcpStream>, info: ConnectionInfo) -> (ClientStream, Held) {
        let id = stream.get_ref().as_raw_fd();
        ClientStream::new(Transport::Tls(Box::new(stream)), id, info)
    }

    fn new(transport: Transport, id: UniqueIDType, info: ConnectionInfo) -> (ClientStream, Held) {
        let socket = SocketDigest::from_raw_fd(id);
        // Set here so that Pingora never asks the kernel, and never sees an IPv4-mapped address.
        // `set` fails only on a cell that has a value, and these are new.
        let _ = socket.peer_addr.set(Some(info.client.into()));
        let _ = socket.local_addr.set(Some(info.local.into()));
        // Pingora carries the user data of one digest kind from the stream to each request: that
        // of a CONNECT proxy. It asks for a response header, which nobody reads.
        let response = pingora::http::ResponseHeader::build_no_case(200, Some(0));
        let info = ProxyDigest::new(
            Box::new(response.unwrap_or_else(|_| no_header())),
            Some(Box::new(info)),
        );
        let (ssl, alpn) = match &transport {
            Transport::Plain(_) => (None, None),
            Transport::Tls(stream) => (stream.get_ssl_digest(), stream.selected_alpn_proto()),
        };
        let shared = Arc::new(Mutex::new(Shared {
            transport,
            joins: alpn != Some(ALPN::H2),
            held: Vec::new(),
            written: 0,
        }));
        let stream = ClientStream {
            shared: shared.clone(),
            ssl,
            alpn,
            id,
            info: Arc::new(info),
            socket: Arc::new(socket),
        };
        (stream, Held(shared))
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        lock(&self.shared)
    }
}

/// Only one task ever asks, so nobody waits; a panic in it ends the connection.
fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Held {
    /// Runs what serves the connection, and writes what is held whenever that waits or ends.
    pub async fn driving<F: Future>(self, serve: F) -> F::Output {
        let mut serve = pin!(serve);
        poll_fn(|cx| {
            let served = serve.as_mut().poll(cx);
            // An error shows at Pingora's next write or read.
            let _ = lock(&self.0).poll_held(cx);
            served
        })
        .await
    }
}

impl Shared {
    /// Holds what fits into the record that is being filled.
    fn poll_write(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let room = RECORD_BYTES - self.held.len();
        if !self.joins || (self.held.is_empty() && buf.len() >= room) {
            return self.transport.poll_write(cx, buf);
        }
        if room == 0 {
            ready!(self.poll_held(cx))?;
            return self.poll_write(cx, buf);
        }
        let taken = buf.len().min(room);
        self.held.reserve(taken.max(HELD_BYTES).min(room));
        self.held.extend_from_slice(&buf[..taken]);
        Poll::Ready(Ok(taken))
    }

    /// Writes what is held.
    fn poll_held(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.held.len() {
            let rest = &self.held[self.written..];
            match ready!(self.transport.poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.written += written,
            }
        }
        self.written = 0;
        // An idle connection keeps no memory for what it may say next.
        self.held = Vec::new();
        Poll::Ready(Ok(()))
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_held(cx))?;
        match &mut self.transport {
            Transport::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Transport::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_held(cx))?;
        match &mut self.transport {
            Transport::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Transport::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

impl Transport {
    fn poll_write(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Transport::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Transport::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self {
            Transport::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Transport::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

/// 200 is a status code, so building a header with it does not fail; this is what the type wants.
fn no_header() -> pingora::http::ResponseHeader {
    let (parts, ()) = http::Response::new(()).into_parts();
    parts.into()
}

impl AsyncRead for ClientStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.shared().transport.poll_read(cx, buf)
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.shared().poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shared().poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shared().poll_shutdown(cx)
    }
}

#[async_trait]
impl Shutdown for ClientStream {
    async fn shutdown(&mut self) {
        // The client has mostly closed by now: that it cannot be told is no news.
        let _ = AsyncWriteExt::shutdown(self).await;
    }
}

impl UniqueID for ClientStream {
    fn id(&self) -> UniqueIDType {
        self.id
    }
}

impl Ssl for ClientStream {
    /// What is asked of it was found out when the handshake was over.
    fn get_ssl(&self) -> Option<&TlsRef> {
        None
    }

    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.ssl.clone()
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.alpn.clone()
    }
}

impl GetTimingDigest for ClientStream {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        Vec::new()
    }
}

impl GetProxyDigest for ClientStream {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        Some(self.info.clone())
    }
}

impl GetSocketDigest for ClientStream {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        Some(self.socket.clone())
    }
}

impl Peek for ClientStream {}

impl fmt::Debug for ClientStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientStream")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}
