//! The accept loop: takes connections, does the handshake under a deadline, and hands them to the
//! proxy.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use boring::ssl::{ErrorCode, SslAcceptor, SslRef};
use pingora::tls::tokio_ssl::SslStream;
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::admission::{Admission, Place, Refusal};
use super::client_auth;
use super::connection::{ConnectionInfo, TlsInfo, canonical};
use super::drain::Drain;
use super::proxy_protocol::{self, Header, ProxyProtocolError};
use super::self_check::OwnConnections;
use super::sockets::Socket;
use super::stream::{ClientStream, ReadAhead};
use super::tls::{self, Outcome};
use super::workers::{Open, Workers};
use crate::admin::metrics::Metrics;
use crate::certificate::table::TableReader;
use crate::config::ListenAddress;
use crate::on_demand::OnDemand;
use crate::proxy::Proxy;

/// How long a client may take for its TLS handshake, the wait for the first load included.
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);

/// After an error of accept(2) that is the host's and not one connection's (no file descriptors,
/// no memory): trying again at once would only burn the processor.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// How often connections that have ended are forgotten: each is some kilobytes until then, and
/// being told of each one's end would wake this task for nothing else.
const REAP_INTERVAL: Duration = Duration::from_secs(1);

/// What every connection of a listener is served with.
pub struct Service {
    pub workers: Workers,
    pub tls: SslAcceptor,
    pub table: TableReader,
    /// Where certificates that are not in the table can be had.
    pub on_demand: Option<OnDemand>,
    pub metrics: Arc<Metrics>,
    pub admission: Admission,
    /// Those of the self-check: they are no clients.
    pub own: OwnConnections,
    /// Told when the listener goes.
    pub drain: Drain,
    /// Which sites are served, if not those of the server's listeners.
    pub scope: Option<Arc<ListenAddress>>,
}

/// What a listener speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    Http,
    Https,
}

/// A listening socket and the connections that came in on it. They are cut off when it is dropped.
pub struct Accepted {
    pub listener: Listening,
    pub connections: JoinSet<()>,
}

/// A listening socket that waits for connections.
pub enum Listening {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// A connection that has just come in.
struct Incoming {
    /// Of either kind: see [`as_tcp`].
    stream: std::net::TcpStream,
    peer: Peer,
}

/// Who is at the other end of a socket.
#[derive(Clone, Copy)]
enum Peer {
    Tcp(SocketAddr),
    /// Somebody on this host.
    Unix,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::Tcp(client) => canonical(*client).fmt(f),
            Peer::Unix => f.write_str("a Unix socket"),
        }
    }
}

impl Listening {
    /// Of the current runtime.
    pub fn new(socket: Socket) -> io::Result<Listening> {
        match socket {
            Socket::Tcp(listener) => TcpListener::from_std(listener).map(Listening::Tcp),
            Socket::Unix(listener) => UnixListener::from_std(listener).map(Listening::Unix),
        }
    }

    pub fn into_socket(self) -> io::Result<Socket> {
        match self {
            Listening::Tcp(listener) => listener.into_std().map(Socket::Tcp),
            Listening::Unix(listener) => listener.into_std().map(Socket::Unix),
        }
    }

    /// Dropping this loses no connection. What it takes is another runtime's from then on.
    async fn accept(&self) -> io::Result<Incoming> {
        match self {
            Listening::Tcp(listener) => {
                let (stream, client) = listener.accept().await?;
                Ok(Incoming {
                    stream: stream.into_std()?,
                    peer: Peer::Tcp(client),
                })
            }
            Listening::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok(Incoming {
                    stream: as_tcp(stream.into_std()?),
                    peer: Peer::Unix,
                })
            }
        }
    }
}

/// A stream socket is read, written and closed in the same way, whatever its addresses are. Asking
/// for these, and setting what is TCP's own, fails: whoever does knows of [`Peer`].
fn as_tcp(stream: std::os::unix::net::UnixStream) -> std::net::TcpStream {
    std::os::fd::OwnedFd::from(stream).into()
}

/// The address that clients on a Unix socket, and the socket itself, have for everything that asks
/// for one: it is somebody on this host.
const LOCAL: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// Accepts connections until `stop`.
pub async fn accept_loop(
    mut accepted: Accepted,
    protocol: Protocol,
    service: Arc<Service>,
    stop: CancellationToken,
) -> Accepted {
    let stopped = stop.cancelled();
    tokio::pin!(stopped);
    let mut reap = tokio::time::interval(REAP_INTERVAL);
    loop {
        let connections = &mut accepted.connections;
        let connection = tokio::select! {
            connection = accepted.listener.accept() => connection,
            _ = reap.tick(), if !connections.is_empty() => {
                reap_ended(connections);
                continue;
            }
            () = &mut stopped => return accepted,
        };
        match connection {
            Ok(incoming) => {
                let arrival = match admit(&incoming, &service) {
                    Ok(arrival) => arrival,
                    Err(refusal) => {
                        service.admission.refused(refusal, &incoming.peer);
                        continue;
                    }
                };
                // There is a worker at least.
                let Some(seat) = service.workers.seat() else {
                    continue;
                };
                let service = service.clone();
                seat.serve(connections, move |proxy, open| {
                    serve(incoming, arrival, protocol, service, proxy, open)
                });
            }
            Err(error) if concerns_one_connection(&error) => {}
            Err(error) => {
                service.admission.refused(Refusal::Accept, &error);
                tokio::time::sleep(ACCEPT_BACKOFF).await;
            }
        }
    }
}

/// Forgets those that are over.
fn reap_ended(connections: &mut JoinSet<()>) {
    while connections.try_join_next().is_some() {}
}

fn concerns_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
    )
}

/// Where a connection stands that has just come in.
enum Arrival {
    /// Of this process; it counts as nobody's.
    Own,
    Client(Place),
    /// Whose it is, the proxy has still to say.
    Announced(Place),
}

fn admit(incoming: &Incoming, service: &Service) -> Result<Arrival, Refusal> {
    let ip = match incoming.peer {
        Peer::Tcp(client) if service.own.contains(canonical(client)) => return Ok(Arrival::Own),
        Peer::Tcp(client) => Some(client.ip().to_canonical()),
        Peer::Unix => None,
    };
    let mut place = service.admission.enter(service.drain.idle())?;
    if service.admission.is_announced(ip) {
        return Ok(Arrival::Announced(place));
    }
    if let Some(ip) = ip {
        place.belongs_to(ip)?;
    }
    Ok(Arrival::Client(place))
}

async fn serve(
    Incoming { stream, peer }: Incoming,
    arrival: Arrival,
    protocol: Protocol,
    service: Arc<Service>,
    proxy: Proxy,
    _seat: Open,
) {
    let _open = service.metrics.connection();
    let stream = match TcpStream::from_std(stream) {
        Ok(stream) => stream,
        Err(error) => {
            tracing::error!(%error, "cannot serve a connection");
            return;
        }
    };
    let mut stream = stream;
    let mut info = match peer {
        Peer::Tcp(client) => {
            // Fails only on a connection that is gone already.
            let _ = stream.set_nodelay(true);
            let Ok(local) = stream.local_addr() else {
                return;
            };
            ConnectionInfo::new(client, local)
        }
        Peer::Unix => ConnectionInfo::new(LOCAL, LOCAL),
    };
    info.scope = service.scope.clone();
    let is_own = matches!(arrival, Arrival::Own);
    let place = match arrival {
        Arrival::Own => None,
        Arrival::Client(place) => Some(place),
        Arrival::Announced(place) => {
            // Boxed: few connections need the room.
            let announced = Box::pin(announced(&mut stream, place, &mut info, &service));
            match announced.await {
                Some(place) => Some(place),
                None => return,
            }
        }
    };
    let stream = match protocol {
        Protocol::Http => ClientStream::plain(stream),
        Protocol::Https => {
            // Boxed: it is over soon, and the connection's memory need not have room for it.
            let handshake = handshake(stream, &info, is_own, &service);
            let Some(stream) = Box::pin(handshake).await else {
                return;
            };
            info.tls = Some(describe(&stream));
            ClientStream::tls(stream)
        }
    };
    let idling = place.as_ref().map(Place::idling);
    let drain = service.drain.of(idling);
    proxy.serve(stream, Arc::new(info), drain).await;
    drop(place);
}

/// Lets the proxy say whose the connection is. `None`: it is refused.
async fn announced(
    stream: &mut TcpStream,
    mut place: Place,
    info: &mut ConnectionInfo,
    service: &Service,
) -> Option<Place> {
    let peer = info.client;
    match proxy_protocol::read(stream).await {
        Ok(Header::Local) => return Some(place),
        Ok(Header::Proxied { client, local }) => {
            let scope = info.scope.take();
            *info = ConnectionInfo::new(client, local);
            info.scope = scope;
        }
        // A proxy, or whoever looks whether we listen, has hung up.
        Err(ProxyProtocolError::Closed) => return None,
        Err(error) => {
            let detail = format!("{peer}: {error}");
            service.admission.refused(Refusal::ProxyProtocol, &detail);
            return None;
        }
    }
    match place.belongs_to(info.client.ip()) {
        Ok(()) => Some(place),
        Err(refusal) => {
            service.admission.refused(refusal, &info.client);
            None
        }
    }
}

fn describe(stream: &SslStream<ReadAhead>) -> TlsInfo {
    let ssl = stream.ssl();
    TlsInfo {
        server_name: ssl
            .servername(boring::ssl::NameType::HOST_NAME)
            .map(|name| name.trim_end_matches('.').to_ascii_lowercase().into()),
        version: ssl.version_str(),
        served: tls::served(ssl),
        client_auth: tls::demand(ssl).map(|demand| demand.config.clone()),
        client_subject: tls::demand(ssl).and_then(|_| client_auth::subject(ssl)),
    }
}

/// Does the handshake. `None`: it failed, or it was a challenge validation, which is over with it.
async fn handshake(
    stream: TcpStream,
    info: &ConnectionInfo,
    is_own: bool,
    service: &Service,
) -> Option<SslStream<ReadAhead>> {
    let ssl = match tls::new_handshake(&service.tls, info.local.ip(), !is_own) {
        Ok(ssl) => ssl,
        Err(error) => {
            tracing::error!(%error, "cannot begin a TLS handshake");
            return None;
        }
    };
    let mut stream = SslStream::new(ssl, ReadAhead::new(stream)).ok()?;
    let result = drive(&mut stream, info, service).await;
    let outcome = tls::outcome(stream.ssl());
    let version = stream.ssl().version_str();
    let refused = match result {
        Ok(Ok(())) => refused_resumption(stream.ssl()),
        _ => None,
    };
    let (label, cause) = match (&result, outcome) {
        (Ok(Ok(())), _) if refused.is_some() => ("failed", refused),
        (Ok(Ok(())), Outcome::Challenge) => ("challenge", None),
        (Ok(Ok(())), _) => ("ok", None),
        (_, Outcome::Refused) => ("unknown_name", None),
        (Ok(Err(error)), _) => ("failed", Some(error.to_string())),
        (Err(_), _) => ("timeout", None),
    };
    let label = match is_own {
        true => "self_check",
        false => label,
    };
    service.metrics.tls_handshake(label, version);
    if label == "ok" {
        return Some(stream);
    }
    tracing::debug!(
        client = %info.client, result = label, cause,
        server_name = stream.ssl().servername(boring::ssl::NameType::HOST_NAME),
        "TLS handshake"
    );
    None
}

type Driven = Result<Result<(), boring::ssl::Error>, tokio::time::error::Elapsed>;

/// Drives the handshake to its end. While it waits for a certificate that is had on demand, which
/// has a limit of its own, the client's time does not run.
async fn drive(
    stream: &mut SslStream<ReadAhead>,
    info: &ConnectionInfo,
    service: &Service,
) -> Driven {
    let first = tokio::time::timeout(HANDSHAKE_DEADLINE, complete(stream, service)).await;
    let subject = tls::wanted(stream.ssl()).cloned();
    let (Some(subject), Some(on_demand)) = (subject, &service.on_demand) else {
        return first;
    };
    if !matches!(&first, Ok(Err(error)) if error.code() == ErrorCode::PENDING_CERTIFICATE) {
        return first;
    }
    // Boxed: few connections need the room.
    Box::pin(on_demand.obtain(subject, info.client.ip())).await;
    tls::make_do(stream.ssl());
    tokio::time::timeout(HANDSHAKE_DEADLINE, complete(stream, service)).await
}

/// Drives the handshake, waiting for the first load where it asks for a certificate that may
/// still come.
async fn complete(
    stream: &mut SslStream<ReadAhead>,
    service: &Service,
) -> Result<(), boring::ssl::Error> {
    let mut parts = service.table.parts();
    loop {
        match Pin::new(&mut *stream).accept().await {
            Err(error)
                if error.code() == ErrorCode::PENDING_CERTIFICATE
                    && tls::wanted(stream.ssl()).is_none() =>
            {
                parts.next().await;
            }
            result => return result,
        }
    }
}

/// Why a session that BoringSSL resumed must not be: its client would not be let in today.
fn refused_resumption(ssl: &SslRef) -> Option<String> {
    let demand = tls::demand(ssl).filter(|_| ssl.session_reused())?;
    let error = demand.still_met(ssl).err()?;
    Some(format!(
        "the client certificate of a resumed session: {error}"
    ))
}
