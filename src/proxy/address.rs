//! One address to dial, with everything that has to be known about it made beforehand.

use std::net::SocketAddr;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use pingora::protocols::ALPN;
use pingora::upstreams::peer::HttpPeer;

use super::multiplexed;
use super::upstream_tls::{TlsTerms, TlsTransport};

/// How long others are preferred after a failed dial: a dead host costs each of its turns a dial
/// timeout otherwise.
const FAILURE_MEMORY: Duration = Duration::from_secs(10);

/// A path that the kernel takes for a socket's: the array that it goes into has 108 bytes, the last
/// of them NUL (unix(7)).
const MAX_SOCKET_PATH: usize = 107;

/// How to talk to an upstream.
#[derive(Clone)]
pub enum Transport {
    Plain,
    Tls(TlsTransport),
    /// HTTP/2, over TLS or by prior knowledge (RFC 9113 section 3.3).
    Http2(Option<TlsTransport>),
}

/// One address of an upstream.
pub struct Address {
    label: String,
    endpoint: Endpoint,
    destination: Arc<Destination>,
    http2: bool,
    /// Among several: the lower comes first, and those with the same by weight (RFC 2782).
    rank: (u16, u16),
    /// Milliseconds since [`START`]; 0 if it has not failed.
    failed_until: AtomicU64,
}

/// What is dialled.
pub enum Endpoint {
    Tcp(SocketAddr),
    Unix(PathBuf),
    /// What Pingora has to know that does not change, and where it finds what does.
    Tls {
        peer: Box<HttpPeer>,
        transport: TlsTransport,
    },
}

/// Where a connection leads, whichever site it was made for: kept connections are found by it.
#[derive(Debug, PartialEq, Eq, Hash)]
pub enum Destination {
    Tcp(SocketAddr),
    Unix(PathBuf),
    Tls(SocketAddr, TlsTerms),
}

/// The addresses of one upstream; never empty.
pub struct Addresses(Box<[Address]>);

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

fn milliseconds_since_start() -> u64 {
    // Half a billion years fit.
    START.elapsed().as_millis() as u64
}

impl Address {
    pub fn tcp(address: SocketAddr, transport: &Transport) -> Address {
        let http2 = matches!(transport, Transport::Http2(_));
        let (endpoint, destination) = match transport {
            Transport::Plain | Transport::Http2(None) => {
                (Endpoint::Tcp(address), Destination::Tcp(address))
            }
            Transport::Tls(transport) | Transport::Http2(Some(transport)) => {
                let mut peer = Box::new(HttpPeer::new(address, true, transport.server_name()));
                // The dial as a whole has its time, by the runtime's timer. Pingora's own are a
                // thread that wakes a hundred times a second from the first one on.
                peer.options.connection_timeout = None;
                peer.options.total_connection_timeout = None;
                transport.prepare(&mut peer);
                if http2 {
                    peer.options.alpn = ALPN::H2;
                    peer.options.tcp_keepalive = Some(multiplexed::keep_alive_of_tls());
                }
                let destination = Destination::Tls(address, transport.terms());
                let transport = transport.clone();
                (Endpoint::Tls { peer, transport }, destination)
            }
        };
        Address {
            http2,
            ..Address::new(address.to_string(), endpoint, destination)
        }
    }

    /// One of several that are not alike.
    pub fn ranked(self, priority: u16, weight: u16) -> Address {
        Address {
            rank: (priority, weight),
            ..self
        }
    }

    /// The error names the path.
    pub fn unix(path: &Path) -> Result<Address, String> {
        let bytes = path.as_os_str().as_encoded_bytes();
        if bytes.len() > MAX_SOCKET_PATH || bytes.contains(&0) {
            return Err(format!(
                "unix:{} is no socket path: it is longer than {MAX_SOCKET_PATH} bytes or has a NUL",
                path.display()
            ));
        }
        let label = format!("unix:{}", path.display());
        let endpoint = Endpoint::Unix(path.to_owned());
        Ok(Address::new(
            label,
            endpoint,
            Destination::Unix(path.to_owned()),
        ))
    }

    fn new(label: String, endpoint: Endpoint, destination: Destination) -> Address {
        Address {
            label,
            endpoint,
            destination: Arc::new(destination),
            http2: false,
            rank: (0, 0),
            failed_until: AtomicU64::new(0),
        }
    }

    pub fn destination(&self) -> &Arc<Destination> {
        &self.destination
    }

    /// For logs.
    pub fn label(&self) -> &str {
        &self.label
    }

    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Whether it speaks HTTP/2, and nothing else.
    pub fn is_http2(&self) -> bool {
        self.http2
    }

    /// Whether connections to it have TLS.
    pub fn is_tls(&self) -> bool {
        matches!(self.endpoint, Endpoint::Tls { .. })
    }

    /// Changes whenever what connections to it are made under does: whom to trust, what to show.
    pub fn version(&self) -> u64 {
        match &self.endpoint {
            Endpoint::Tls { transport, .. } => transport.version(),
            Endpoint::Tcp(_) | Endpoint::Unix(_) => 0,
        }
    }

    pub fn failed_recently(&self) -> bool {
        match self.failed_until.load(Ordering::Relaxed) {
            0 => false,
            until => milliseconds_since_start() < until,
        }
    }

    pub fn note_failure(&self) {
        let until = milliseconds_since_start() + FAILURE_MEMORY.as_millis() as u64;
        self.failed_until.store(until, Ordering::Relaxed);
    }

    pub fn clear_failure(&self) {
        self.failed_until.store(0, Ordering::Relaxed);
    }
}

impl Addresses {
    /// Whether they lead to the same places, ranked in the same way.
    pub fn is_same(&self, other: &Addresses) -> bool {
        let key = |address: &Address| (address.destination.clone(), address.rank);
        self.len() == other.len() && self.iter().map(key).eq(other.iter().map(key))
    }

    /// One that is `wanted`, of those the ones that come first. Without weights it is the first from
    /// the one at `turn` modulo their number.
    pub fn find_from(&self, turn: usize, wanted: impl Fn(&Address) -> bool) -> Option<usize> {
        let length = self.len();
        let order = (0..length).map(|step| turn.wrapping_add(step) % length);
        let mut order = order.filter(|&index| wanted(&self[index]));
        let first = order.next()?;
        if self.iter().all(|address| address.rank == (0, 0)) {
            return Some(first);
        }
        let mut among: Vec<usize> = std::iter::once(first).chain(order).collect();
        let best = among.iter().map(|&index| self[index].rank.0).min()?;
        among.retain(|&index| self[index].rank.0 == best);
        let weights = among.iter().map(|&index| u64::from(self[index].rank.1));
        let total: u64 = weights.clone().sum();
        if total == 0 {
            return among.first().copied();
        }
        let mut point = rand::random_range(0..total);
        let mut chosen = among.iter().zip(weights);
        let chosen = chosen.find(|(_, weight)| {
            let here = point < *weight;
            point = point.saturating_sub(*weight);
            here
        });
        chosen.map(|(&index, _)| index)
    }
}

impl From<Vec<Address>> for Addresses {
    fn from(addresses: Vec<Address>) -> Addresses {
        Addresses(addresses.into())
    }
}

impl Deref for Addresses {
    type Target = [Address];

    fn deref(&self) -> &[Address] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address() -> Address {
        let transport = Transport::Tls(TlsTransport::new("a.test".parse().unwrap(), None));
        Address::tcp("192.0.2.1:443".parse().unwrap(), &transport)
    }

    #[test]
    fn certificates_are_verified() {
        let address = address();
        let Endpoint::Tls { peer, .. } = address.endpoint() else {
            panic!("not TLS");
        };
        assert!(peer.options.verify_cert && peer.options.verify_hostname);
        assert_eq!(peer.sni, "a.test");
        assert_eq!(peer.options.total_connection_timeout, None);
    }

    #[test]
    fn destinations_are_told_apart_by_all_that_matters() {
        assert_eq!(address().destination(), address().destination());
        let ip = "192.0.2.1:443".parse().unwrap();
        let other = Transport::Tls(TlsTransport::new("b.test".parse().unwrap(), None));
        for other in [Transport::Plain, other] {
            let other = Address::tcp(ip, &other);
            assert_ne!(address().destination(), other.destination());
        }
    }

    #[test]
    fn failures_are_remembered_until_a_success() {
        let address = address();
        assert!(!address.failed_recently());
        address.note_failure();
        assert!(address.failed_recently());
        address.clear_failure();
        assert!(!address.failed_recently());
    }
}
