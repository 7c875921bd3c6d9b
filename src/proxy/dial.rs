//! New connections to upstreams. Plain ones are made here; TLS is Pingora's.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::LazyLock;
use std::time::Duration;

use pingora::connectors::TransportConnector;
use pingora::upstreams::peer::HttpPeer;
use tokio::net::{TcpStream, UnixStream};

use super::address::{Address, Endpoint};
use super::connection::{Connection, Socket};
use super::failure;
use super::upstream_tls::{TlsTransport, verify_address};

/// A connection that could not be made.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{reason}")]
pub struct DialError {
    /// Whether it took too long.
    pub timed_out: bool,
    reason: String,
}

impl DialError {
    pub fn timeout(limit: Duration) -> DialError {
        DialError {
            timed_out: true,
            reason: format!("no connection in time: {limit:?}"),
        }
    }

    /// A connection that is of no use.
    pub fn unfit(reason: String) -> DialError {
        DialError {
            timed_out: false,
            reason,
        }
    }
}

impl From<io::Error> for DialError {
    fn from(error: io::Error) -> DialError {
        use io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable, TimedOut};
        let kind = match error.kind() {
            ConnectionRefused => "connection refused",
            HostUnreachable | NetworkUnreachable => "no route",
            TimedOut => "no connection in time",
            _ => "cannot connect",
        };
        DialError {
            timed_out: error.kind() == TimedOut,
            reason: format!("{kind}: {error}"),
        }
    }
}

/// Connects, within `limit`.
pub async fn dial(address: &Address, limit: Duration) -> Result<Connection, DialError> {
    Ok(Connection::new(socket(address, limit).await?))
}

/// The same, for whoever speaks something else on it.
pub async fn socket(address: &Address, limit: Duration) -> Result<Socket, DialError> {
    match address.endpoint() {
        Endpoint::Tcp(address) => in_time(limit, tcp(*address)).await,
        Endpoint::Unix(path) => in_time(limit, unix(path)).await,
        Endpoint::Tls { peer, transport } => in_time(limit, tls(peer, transport)).await,
    }
}

async fn in_time<E>(
    limit: Duration,
    dial: impl Future<Output = Result<Socket, E>>,
) -> Result<Socket, DialError>
where
    DialError: From<E>,
{
    match tokio::time::timeout(limit, dial).await {
        Ok(dialled) => Ok(dialled?),
        Err(_) => Err(DialError::timeout(limit)),
    }
}

async fn tcp(address: SocketAddr) -> io::Result<Socket> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(Socket::Tcp(stream))
}

async fn unix(path: &Path) -> io::Result<Socket> {
    Ok(Socket::Unix(UnixStream::connect(path).await?))
}

/// Certificates are verified against the system's roots, unless the transport says otherwise: the
/// file and directory that `SSL_CERT_FILE` and `SSL_CERT_DIR` name, else where the distribution has
/// them.
async fn tls(peer: &HttpPeer, transport: &TlsTransport) -> pingora::Result<Socket> {
    // It reads the system's roots, which takes its time: only where there is such an upstream.
    static CONNECTOR: LazyLock<TransportConnector> =
        LazyLock::new(|| TransportConnector::new(None));
    let mut peer = peer.clone();
    transport.apply(&mut peer);
    let stream = CONNECTOR.new_stream(&peer).await?;
    verify_address(stream.get_ssl_digest().as_deref())?;
    Ok(Socket::Tls(stream))
}

impl From<Box<pingora::Error>> for DialError {
    fn from(error: Box<pingora::Error>) -> DialError {
        DialError {
            timed_out: *error.etype() == pingora::ErrorType::ConnectTimedout,
            reason: failure::in_words(&error),
        }
    }
}
