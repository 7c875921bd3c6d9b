//! One address to dial, with everything Pingora has to know about it made beforehand.

use std::net::SocketAddr;
use std::ops::Deref;
use std::path::Path;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pingora::upstreams::peer::{HttpPeer, PeerOptions};

use super::read_timeout::ReadTimeout;
use super::upstream_tls::TlsTransport;

/// For TCP and TLS together. A host that is up answers within milliseconds, or, over the world,
/// within a second and one lost packet.
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(3);

/// For each read while an answer is outstanding.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// For each write of a request.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);

/// How long an unused connection is kept.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// How long others are preferred after a failed dial: a dead host costs each of its turns a dial
/// timeout otherwise.
const FAILURE_MEMORY: Duration = Duration::from_secs(10);

/// How to talk to an upstream.
#[derive(Clone)]
pub enum Transport {
    Plain,
    Tls(TlsTransport),
}

/// One address of an upstream.
pub struct Address {
    label: String,
    peer: HttpPeer,
    tls: Option<TlsTransport>,
    /// Milliseconds since [`START`]; 0 if it has not failed.
    failed_until: AtomicU64,
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
        let peer = match transport {
            Transport::Plain => HttpPeer::new(address, false, String::new()),
            Transport::Tls(tls) => HttpPeer::new(address, true, tls.server_name()),
        };
        let mut address = Address::new(address.to_string(), peer);
        if let Transport::Tls(tls) = transport {
            tls.prepare(&mut address.peer);
            address.tls = Some(tls.clone());
        }
        address
    }

    /// The error names the path.
    pub fn unix(path: &Path) -> Result<Address, String> {
        let unusable = |why: &str| format!("unix:{} is no socket path: {why}", path.display());
        let text = path.to_str().ok_or_else(|| unusable("it is not UTF-8"))?;
        HttpPeer::new_uds(text, false, String::new())
            .map(|peer| Address::new(format!("unix:{text}"), peer))
            .map_err(|_| unusable("it is longer than 107 bytes or has a NUL"))
    }

    fn new(label: String, mut peer: HttpPeer) -> Address {
        peer.options = options();
        Address {
            label,
            peer,
            tls: None,
            failed_until: AtomicU64::new(0),
        }
    }

    /// For logs.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// For Pingora. An answer that comes when something happens, not when it is ready, has no
    /// read timeout.
    pub fn peer(&self, read_timeout: ReadTimeout) -> Box<HttpPeer> {
        let mut peer = Box::new(self.peer.clone());
        if read_timeout == ReadTimeout::None {
            peer.options.read_timeout = None;
        }
        if let Some(tls) = &self.tls {
            tls.apply(&mut peer);
        }
        peer
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
    /// The first that is `wanted`, beginning with the one at `first` modulo their number.
    pub fn find_from(&self, first: usize, wanted: impl Fn(&Address) -> bool) -> Option<usize> {
        (0..self.len())
            .map(|step| first.wrapping_add(step) % self.len())
            .find(|&index| wanted(&self[index]))
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

/// Certificates are verified against the system's roots, which is Pingora's default: the file and
/// directory that `SSL_CERT_FILE` and `SSL_CERT_DIR` name, else where the distribution has them.
/// HTTP/1.1 is the default as well.
fn options() -> PeerOptions {
    let mut options = PeerOptions::new();
    options.connection_timeout = Some(DIAL_TIMEOUT);
    options.total_connection_timeout = Some(DIAL_TIMEOUT);
    options.read_timeout = Some(READ_TIMEOUT);
    options.write_timeout = Some(WRITE_TIMEOUT);
    options.idle_timeout = Some(IDLE_TIMEOUT);
    options
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
        let peer = address().peer(ReadTimeout::Usual);
        assert!(peer.is_tls() && peer.options.verify_cert && peer.options.verify_hostname);
        assert_eq!(peer.sni, "a.test");
        assert_eq!(peer.options.read_timeout, Some(READ_TIMEOUT));
    }

    #[test]
    fn events_may_take_their_time() {
        assert_eq!(address().peer(ReadTimeout::None).options.read_timeout, None);
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
