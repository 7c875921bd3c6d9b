//! New connections to upstreams. Plain ones are made here; TLS is Pingora's.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use async_trait::async_trait;
use pingora::ErrorType::ConnectError;
use pingora::OrErr;
use pingora::connectors::TransportConnector;
use pingora::connectors::l4::Connect;
use pingora::protocols::ALPN;
use pingora::protocols::l4::stream::Stream;
use pingora::upstreams::peer::HttpPeer;
use tokio::io::AsyncWriteExt;
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

/// Connects, within `limit`. `header`: what the connection begins with, before TLS.
pub async fn dial(
    address: &Address,
    limit: Duration,
    header: Option<Vec<u8>>,
) -> Result<Connection, DialError> {
    if let Endpoint::Tls { peer, transport } = address.endpoint() {
        let socket = in_time(limit, tls(peer, transport, header)).await?;
        return Ok(Connection::new(socket));
    }
    let mut connection = Connection::new(socket(address, limit).await?);
    // It leaves with the head of the request.
    connection.output.extend(header.unwrap_or_default());
    Ok(connection)
}

/// A connection to an upstream of HTTP/2 on which HTTP/1.1 is spoken, for what it cannot do over
/// HTTP/2. `None`: its TLS says that it speaks nothing else. Without TLS that shows by its answer.
pub async fn http1(address: &Address, limit: Duration) -> Result<Option<Connection>, DialError> {
    let Endpoint::Tls { peer, transport } = address.endpoint() else {
        return Ok(Some(Connection::new(socket(address, limit).await?)));
    };
    let mut peer = peer.clone();
    peer.options.alpn = ALPN::H1;
    let socket = in_time(limit, tls(&peer, transport, None)).await?;
    Ok(match &socket {
        Socket::Tls(stream) if stream.selected_alpn_proto() == Some(ALPN::H2) => None,
        _ => Some(Connection::new(socket)),
    })
}

/// The same, for whoever speaks something else on it.
pub async fn socket(address: &Address, limit: Duration) -> Result<Socket, DialError> {
    match address.endpoint() {
        Endpoint::Tcp(address) => in_time(limit, tcp(*address)).await,
        Endpoint::Unix(path) => in_time(limit, unix(path)).await,
        Endpoint::Tls { peer, transport } => in_time(limit, tls(peer, transport, None)).await,
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
async fn tls(
    peer: &HttpPeer,
    transport: &TlsTransport,
    header: Option<Vec<u8>>,
) -> pingora::Result<Socket> {
    // It reads the system's roots, which takes its time: only where there is such an upstream.
    static CONNECTOR: LazyLock<TransportConnector> =
        LazyLock::new(|| TransportConnector::new(None));
    let mut peer = peer.clone();
    transport.apply(&mut peer);
    if let Some(header) = header {
        peer.options.custom_l4 = Some(Arc::new(Announcing { header }));
    }
    let stream = CONNECTOR.new_stream(&peer).await?;
    verify_address(stream.get_ssl_digest().as_deref())?;
    Ok(Socket::Tls(stream))
}

/// The connection below TLS, of which the upstream is told whose it is.
#[derive(Debug)]
struct Announcing {
    header: Vec<u8>,
}

#[async_trait]
impl Connect for Announcing {
    async fn connect(
        &self,
        address: &pingora::protocols::l4::socket::SocketAddr,
    ) -> pingora::Result<Stream> {
        let Some(address) = address.as_inet() else {
            return pingora::Error::e_explain(ConnectError, "TLS is spoken over TCP alone");
        };
        let connected = async {
            let mut stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            stream.write_all(&self.header).await?;
            Ok::<_, io::Error>(stream)
        };
        let stream = connected.await.or_err(ConnectError, "before TLS")?;
        Ok(stream.into())
    }
}

impl From<Box<pingora::Error>> for DialError {
    fn from(error: Box<pingora::Error>) -> DialError {
        DialError {
            timed_out: *error.etype() == pingora::ErrorType::ConnectTimedout,
            reason: failure::in_words(&error),
        }
    }
}
