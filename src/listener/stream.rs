//! A client's connection as Pingora sees it: plain or TLS, with what is known of it attached.

use std::fmt;
use std::io;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

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

/// A connection whose handshake is over.
pub struct ClientStream {
    transport: Transport,
    id: UniqueIDType,
    info: Arc<ProxyDigest>,
    socket: Arc<SocketDigest>,
}

enum Transport {
    Plain(TcpStream),
    Tls(Box<SslStream<TcpStream>>),
}

impl ClientStream {
    pub fn plain(stream: TcpStream, info: ConnectionInfo) -> ClientStream {
        let id = stream.as_raw_fd();
        ClientStream::new(Transport::Plain(stream), id, info)
    }

    pub fn tls(stream: SslStream<TcpStream>, info: ConnectionInfo) -> ClientStream {
        let id = stream.get_ref().as_raw_fd();
        ClientStream::new(Transport::Tls(Box::new(stream)), id, info)
    }

    fn new(transport: Transport, id: UniqueIDType, info: ConnectionInfo) -> ClientStream {
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
        ClientStream {
            transport,
            id,
            info: Arc::new(info),
            socket: Arc::new(socket),
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
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.transport {
            Transport::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Transport::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.transport {
            Transport::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Transport::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.transport {
            Transport::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Transport::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.transport {
            Transport::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Transport::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.transport {
            Transport::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Transport::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.transport {
            Transport::Plain(stream) => stream.is_write_vectored(),
            Transport::Tls(stream) => stream.is_write_vectored(),
        }
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
    fn get_ssl(&self) -> Option<&TlsRef> {
        match &self.transport {
            Transport::Plain(_) => None,
            Transport::Tls(stream) => stream.get_ssl(),
        }
    }

    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        match &self.transport {
            Transport::Plain(_) => None,
            Transport::Tls(stream) => stream.get_ssl_digest(),
        }
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        match &self.transport {
            Transport::Plain(_) => None,
            Transport::Tls(stream) => stream.selected_alpn_proto(),
        }
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
