//! What is known about a client connection once it has been accepted: the proxy reads it, from the
//! stream's digest, for every request on that connection. It never changes afterwards.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::certificate::table::LiveCertificate;
use crate::config::{ClientAuth, ListenAddress};

/// A connection from a client.
#[derive(Clone)]
pub struct ConnectionInfo {
    /// The client's address; an IPv4-mapped IPv6 address is given as IPv4.
    pub client: SocketAddr,
    /// Its IP address as text: every request needs it.
    pub client_ip: Box<str>,
    /// The address it connected to.
    pub local: SocketAddr,
    /// `None` on a plain HTTP listener.
    pub tls: Option<TlsInfo>,
    /// The listener, if it is one for some sites alone.
    pub scope: Option<Arc<ListenAddress>>,
}

impl ConnectionInfo {
    /// Before a handshake, if there will be one.
    pub fn new(client: SocketAddr, local: SocketAddr) -> ConnectionInfo {
        let client = canonical(client);
        ConnectionInfo {
            client,
            client_ip: client.ip().to_string().into(),
            local: canonical(local),
            tls: None,
            scope: None,
        }
    }
}

/// IPv4 clients of an IPv6 socket appear as `::ffff:a.b.c.d`.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// What the TLS handshake settled.
#[derive(Clone)]
pub struct TlsInfo {
    /// The server name the client asked for (RFC 6066 section 3), lower case.
    pub server_name: Option<Arc<str>>,
    /// `TLSv1.2` or `TLSv1.3`.
    pub version: &'static str,
    /// The certificate that was served; `None` when a resumed session needed none.
    pub served: Option<Arc<LiveCertificate>>,
    /// What the client had to show for the name it asked for; `None` if nothing.
    pub client_auth: Option<Arc<ClientAuth>>,
    /// The subject of the certificate that the client showed and that was verified.
    pub client_subject: Option<Arc<str>>,
}
