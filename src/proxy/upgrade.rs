//! Connections to upstreams for requests that want to change the protocol.
//!
//! Pingora ends an upgraded connection at once if it reads the upstream's 101 before it has dealt
//! with the end of the request's empty body (cloudflare/pingora#946), which it does in any order
//! once both are there. These connections let a read wait for one turn of the task after each
//! write, and in that turn the end of the body is dealt with.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use pingora::connectors::L4Connect;
use pingora::protocols::l4::socket::SocketAddr;
use pingora::protocols::l4::stream::Stream;
use pingora::protocols::l4::virt::{VirtualSockOpt, VirtualSocket, VirtualSocketStream};
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorType, Result};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use super::address::DIAL_TIMEOUT;

/// Keeps these connections from being pooled with the others, whose keys are hashes or 0.
const GROUP: u64 = 1 << 63;

/// Has `peer` dialled by [`Dialler`].
pub fn prepare(peer: &mut HttpPeer) {
    peer.group_key ^= GROUP;
    // After a refused upgrade the connection is not kept.
    peer.options.idle_timeout = Some(Duration::ZERO);
    peer.options.custom_l4 = Some(Arc::new(Dialler));
}

#[derive(Debug)]
struct Dialler;

#[async_trait]
impl L4Connect for Dialler {
    async fn connect(&self, address: &SocketAddr) -> Result<Stream> {
        match tokio::time::timeout(DIAL_TIMEOUT, dial(address)).await {
            Ok(dialled) => dialled.map_err(|error| {
                let kind = kind_of(&error);
                Error::because(kind, format!("cannot connect to {address}"), error)
            }),
            Err(_) => Error::e_explain(
                ErrorType::ConnectTimedout,
                format!("no connection to {address}"),
            ),
        }
    }
}

async fn dial(address: &SocketAddr) -> io::Result<Stream> {
    let socket: Box<dyn VirtualSocket> = match address {
        SocketAddr::Inet(address) => {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            Box::new(Patient::new(stream))
        }
        SocketAddr::Unix(address) => {
            let path = address.as_pathname().ok_or(io::ErrorKind::InvalidInput)?;
            Box::new(Patient::new(UnixStream::connect(path).await?))
        }
    };
    Ok(VirtualSocketStream::new(socket).into())
}

fn kind_of(error: &io::Error) -> ErrorType {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => ErrorType::ConnectRefused,
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
            ErrorType::ConnectNoRoute
        }
        io::ErrorKind::TimedOut => ErrorType::ConnectTimedout,
        _ => ErrorType::ConnectError,
    }
}

/// A socket on which the first read after a write waits for the task's next turn.
#[derive(Debug)]
struct Patient<S> {
    socket: S,
    written: bool,
}

impl<S> Patient<S> {
    fn new(socket: S) -> Patient<S> {
        let written = false;
        Patient { socket, written }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if std::mem::take(&mut self.written) {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        Pin::new(&mut self.socket).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.written = true;
        Pin::new(&mut self.socket).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}

impl<S> VirtualSocket for Patient<S>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + Sync + std::fmt::Debug,
{
    /// Set when it was dialled.
    fn set_socket_option(&self, _option: VirtualSockOpt) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn a_read_behind_a_write_lets_others_go_first() {
        let (near, mut far) = tokio::io::duplex(64);
        let mut socket = Patient::new(near);
        socket.write_all(b"request").await.unwrap();
        far.write_all(b"answer").await.unwrap();
        let mut buffer = [0; 6];
        let first = tokio::select! {
            biased;
            _ = socket.read_exact(&mut buffer) => "the answer",
            () = std::future::ready(()) => "something else",
        };
        assert_eq!(first, "something else");
        socket.read_exact(&mut buffer).await.unwrap();
        assert_eq!(&buffer, b"answer");
    }
}
