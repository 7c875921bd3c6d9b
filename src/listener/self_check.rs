//! Proof that what is loaded is what is served: after each swap the process does a handshake with
//! its own HTTPS listener, as any client would, and looks at the leaf. It changes nothing.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use boring::error::ErrorStack;
use boring::sha::sha256;
use boring::ssl::{Ssl, SslContext, SslMethod, SslVerifyMode};
use pingora::protocols::tls::SslStream;
use tokio::io::AsyncReadExt;
use tokio::net::TcpSocket;
use tokio::sync::broadcast;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::certificate::certified_key::Fingerprint;
use crate::certificate::name::Name;
use crate::certificate::proof::{self, News, SharedProof};
use crate::certificate::reloader::Swapped;
use crate::certificate::table::TableReader;
use crate::clock;

/// How long one look may take; a healthy listener needs milliseconds.
const DEADLINE: Duration = Duration::from_secs(5);
/// How long the listener may take to end a connection of ours; it does so at once.
const HANG_UP: Duration = Duration::from_secs(1);
/// Looks at the same time: proof must not compete with clients.
const MAX_CHECKS: usize = 2;
/// Names that wait to be looked at. Where swaps come faster, the newest are looked at.
const MAX_QUEUE: usize = 256;
/// What differs may be in the middle of another swap: it is looked at again after these waits.
const RETRIES: [Duration; 3] = [
    Duration::from_millis(100),
    Duration::from_millis(900),
    Duration::from_secs(3),
];

/// The connections that the process has with itself, so that the listener knows them from
/// clients'. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct OwnConnections(Arc<Mutex<HashSet<SocketAddr>>>);

/// A connection of our own, until it is dropped.
struct OwnConnection {
    all: OwnConnections,
    address: SocketAddr,
}

impl OwnConnections {
    /// Whether the client at this address is this process.
    pub fn contains(&self, client: SocketAddr) -> bool {
        self.with(|addresses| addresses.contains(&client))
    }

    fn note(&self, address: SocketAddr) -> OwnConnection {
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        self.with(|addresses| addresses.insert(address));
        OwnConnection {
            all: self.clone(),
            address,
        }
    }

    fn with<T>(&self, action: impl FnOnce(&mut HashSet<SocketAddr>) -> T) -> T {
        // An insertion or a removal is whole even if another thread panicked.
        let mut addresses = self
            .0
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        action(&mut addresses)
    }
}

impl Drop for OwnConnection {
    fn drop(&mut self) {
        self.all.with(|addresses| addresses.remove(&self.address));
    }
}

/// The task. See [`SelfCheck::run`].
pub struct SelfCheck {
    /// Names whose certificate was swapped.
    pub swaps: broadcast::Receiver<Swapped>,
    pub looker: Looker,
}

/// What a look needs. Cheap to clone.
#[derive(Clone)]
pub struct Looker {
    pub table: TableReader,
    /// The bound HTTPS addresses.
    pub addresses: Arc<ArcSwap<Vec<SocketAddr>>>,
    pub own: OwnConnections,
    pub proof: SharedProof,
    context: SslContext,
}

impl SelfCheck {
    /// Looks after each swap, until `shutdown`. What was loaded before it ran is looked at first.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut queue = VecDeque::new();
        let mut checks = JoinSet::new();
        tokio::select! {
            () = self.looker.table.loaded() => {}
            () = shutdown.cancelled() => return,
        }
        let loaded: Vec<Name> = self.looker.table.load().names().collect();
        enqueue(&mut queue, &loaded);
        loop {
            while checks.len() < MAX_CHECKS
                && let Some(name) = queue.pop_front()
            {
                let looker = self.looker.clone();
                checks.spawn(async move { looker.check(&name).await });
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                Some(_) = checks.join_next(), if !checks.is_empty() => {}
                swapped = self.swaps.recv() => match swapped {
                    Ok(names) => enqueue(&mut queue, &names),
                    // So many swaps at once are proved by those that were not missed.
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return,
                },
            }
        }
    }
}

fn enqueue(queue: &mut VecDeque<Name>, names: &[Name]) {
    for name in proof::sample(names) {
        if !queue.contains(&name) {
            queue.push_back(name);
        }
    }
    let excess = queue.len().saturating_sub(MAX_QUEUE);
    queue.drain(..excess);
}

impl Looker {
    pub fn new(
        table: TableReader,
        addresses: Arc<ArcSwap<Vec<SocketAddr>>>,
        own: OwnConnections,
        proof: SharedProof,
    ) -> Result<Looker, ErrorStack> {
        let mut builder = SslContext::builder(SslMethod::tls())?;
        // Whether clients trust the certificate is not the question here.
        builder.set_verify(SslVerifyMode::NONE);
        Ok(Looker {
            table,
            addresses,
            own,
            proof,
            context: builder.build(),
        })
    }

    /// Looks at what `name` gets until it is what the table says, a few times, and notes it.
    async fn check(&self, name: &Name) {
        let host = proof::host_of(name);
        let mut waits = RETRIES.into_iter();
        loop {
            let before = self.expected(&host);
            if before.is_empty() {
                return self.proof.lock().forget(name);
            }
            let Some(served) = self.look(&host).await else {
                return;
            };
            // A swap during the look makes both right.
            let after = self.expected(&host);
            let expected = match &served {
                Ok(served) if before.contains(served) => before,
                _ => after,
            };
            if proof::difference(&served, &expected).is_some()
                && let Some(wait) = waits.next()
            {
                tokio::time::sleep(wait).await;
                continue;
            }
            return self.record(name, served, &expected);
        }
    }

    fn expected(&self, host: &Name) -> Vec<Fingerprint> {
        proof::expected(&self.table.load(), host)
    }

    fn record(&self, name: &Name, served: Result<Fingerprint, String>, expected: &[Fingerprint]) {
        let now = clock::now();
        match self.proof.lock().record(name, served, expected, now) {
            News::Nothing => tracing::debug!(%name, "looked at our own listener"),
            News::Differs(difference) => tracing::error!(
                %name, difference,
                "what is served is not what is loaded"
            ),
            News::Agrees => tracing::info!(%name, "what is served is again what is loaded"),
        }
    }

    /// The leaf that our listener shows for a host. `None`: there is no listener.
    async fn look(&self, host: &Name) -> Option<Result<Fingerprint, String>> {
        let addresses = self.addresses.load_full();
        let bound = addresses.first()?;
        let mut result = Err("it was not tried".to_owned());
        for address in reachable(*bound) {
            let look = tokio::time::timeout(DEADLINE, self.handshake(address, host)).await;
            result = look.unwrap_or_else(|_| Err(format!("no answer within {DEADLINE:?}")));
            if result.is_ok() {
                break;
            }
        }
        Some(result)
    }

    async fn handshake(&self, address: SocketAddr, host: &Name) -> Result<Fingerprint, String> {
        let failed = |error: io::Error| format!("{address}: {error}");
        let (socket, local) = bound_beside(address).map_err(failed)?;
        // Before it connects: it counts as nobody's, and no proxy announces it.
        let _own = self.own.note(local);
        let stream = socket.connect(address).await.map_err(failed)?;
        let ssl = self.client(host).map_err(|error| error.to_string())?;
        let stream = SslStream::new(ssl, stream);
        let mut stream = stream.map_err(|error| error.to_string())?;
        let result = stream.connect().await;
        let leaf = stream.ssl().peer_certificate();
        let der = leaf.and_then(|leaf| leaf.to_der().ok());
        let fingerprint = match (der, result) {
            (Some(der), _) => Fingerprint(sha256(&der)),
            (None, Err(error)) => return Err(error.to_string()),
            (None, Ok(())) => return Err("no certificate was shown".to_owned()),
        };
        // The listener hangs up when it is through with its side; until then it must know us.
        let _ = tokio::time::timeout(HANG_UP, stream.read(&mut [0; 1])).await;
        Ok(fingerprint)
    }

    fn client(&self, host: &Name) -> Result<Ssl, ErrorStack> {
        let mut ssl = Ssl::new(&self.context)?;
        // An address, too: the listener takes it as a name, whichever address it was asked on.
        ssl.set_hostname(&host.to_string())?;
        Ok(ssl)
    }
}

/// A socket on the address that a listener of this host has, and its own.
fn bound_beside(listener: SocketAddr) -> io::Result<(TcpSocket, SocketAddr)> {
    let socket = match listener {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.bind(SocketAddr::new(listener.ip(), 0))?;
    let local = socket.local_addr()?;
    Ok((socket, local))
}

/// Where a listener is reached from this host.
fn reachable(bound: SocketAddr) -> Vec<SocketAddr> {
    let v4 = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let v6 = IpAddr::V6(Ipv6Addr::LOCALHOST);
    let addresses = match bound.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => vec![v4],
        IpAddr::V6(ip) if ip.is_unspecified() => vec![v4, v6],
        ip => vec![ip],
    };
    addresses
        .into_iter()
        .map(|ip| SocketAddr::new(ip, bound.port()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::acme::challenges::Challenges;
    use crate::certificate::inventory::{EntryId, Inventory};
    use crate::certificate::table::{LiveCertificate, Publisher, SourceKind, live_table};
    use crate::certificate::testing::Request;
    use crate::listener::client_auth::ClientAuthTable;
    use crate::listener::tickets::SessionTickets;
    use crate::listener::tls;

    fn load(inventory: &mut Inventory, names: &[&str]) {
        let now = clock::now();
        let id = EntryId {
            source: SourceKind::File,
            certificate: std::path::Path::new("a").into(),
        };
        let live = LiveCertificate {
            key: Request::new(names, now).issue().certified_key(),
            source: SourceKind::File,
            path: id.certificate.clone(),
            private_key: None,
            loaded_at: now,
            changed_at: now,
            asked: Default::default(),
        };
        inventory.loaded(&id, Arc::new(live), now);
    }

    /// A listener that serves what another table than the looker's says.
    async fn listener() -> (Publisher, Vec<SocketAddr>) {
        let (publisher, table) = live_table(None);
        publisher.first_load_done();
        let rotation = std::time::Duration::from_secs(3600);
        let sessions = tls::Sessions {
            tickets: SessionTickets::new(rotation, clock::now()).unwrap(),
            policy: Arc::new(ArcSwap::from_pointee(tls::SessionPolicy {
                resume_after_swap: true,
                client_auth: ClientAuthTable::default(),
            })),
        };
        let certificates = tls::Certificates::new(table, Challenges::default());
        let acceptor = tls::acceptor(certificates, sessions).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let ssl = tls::new_handshake(&acceptor, address.ip(), false).unwrap();
                // A handshake that fails is the other side's to tell.
                let _ = SslStream::new(ssl, stream).unwrap().accept().await;
            }
        });
        (publisher, vec![address])
    }

    #[tokio::test]
    async fn what_is_served_is_compared_with_what_is_loaded() {
        let (served, addresses) = listener().await;
        let (loaded, table) = live_table(None);
        let addresses = Arc::new(ArcSwap::from_pointee(addresses));
        let own = OwnConnections::default();
        let looker = Looker::new(table, addresses, own, SharedProof::default()).unwrap();
        let mut inventory = Inventory::new(None);
        load(&mut inventory, &["a.test", "*.b.test", "192.0.2.1"]);
        loaded.publish(inventory.table());
        served.publish(inventory.table());
        let mut changed = inventory.take_changed();
        changed.sort();
        assert_eq!(changed.len(), 3);
        for name in &changed {
            looker.check(name).await;
            let check = looker.proof.lock().get(name).cloned().unwrap();
            assert_eq!(check.difference, None, "{name}");
            assert!(check.served.is_some(), "{name}");
        }
        load(&mut inventory, &["a.test"]);
        loaded.publish(inventory.table());
        let a: Name = "a.test".parse().unwrap();
        looker.check(&a).await;
        let check = looker.proof.lock().get(&a).cloned().unwrap();
        let difference = check.difference.unwrap();
        assert!(
            difference.contains(&check.served.unwrap().to_string()),
            "{difference}"
        );
        served.publish(inventory.table());
        looker.check(&a).await;
        assert_eq!(looker.proof.lock().get(&a).unwrap().difference, None);
        let gone: Name = "*.b.test".parse().unwrap();
        looker.check(&gone).await;
        assert_eq!(looker.proof.lock().get(&gone), None);
    }

    #[test]
    fn a_listener_on_every_address_is_reached_on_loopback() {
        let at = |text: &str| -> Vec<String> {
            let found = reachable(text.parse().unwrap());
            found.iter().map(ToString::to_string).collect()
        };
        assert_eq!(at("0.0.0.0:443"), ["127.0.0.1:443"]);
        assert_eq!(at("[::]:443"), ["127.0.0.1:443", "[::1]:443"]);
        assert_eq!(at("192.0.2.1:8443"), ["192.0.2.1:8443"]);
    }

    #[test]
    fn our_own_connections_are_known_while_they_last() {
        let own = OwnConnections::default();
        let address: SocketAddr = "127.0.0.1:50000".parse().unwrap();
        let connection = own.note("[::ffff:127.0.0.1]:50000".parse().unwrap());
        assert!(own.contains(address));
        drop(connection);
        assert!(!own.contains(address));
    }

    #[test]
    fn the_queue_holds_each_name_once_and_is_bounded() {
        let name = |n: usize| -> Name { format!("n{n}.test").parse().unwrap() };
        let mut queue = VecDeque::new();
        enqueue(&mut queue, &[name(1), name(2)]);
        enqueue(&mut queue, &[name(2), name(3)]);
        assert_eq!(queue.len(), 3);
        for n in 0..2 * MAX_QUEUE {
            enqueue(&mut queue, &[name(n)]);
        }
        assert_eq!(queue.len(), MAX_QUEUE);
        assert_eq!(queue.back(), Some(&name(2 * MAX_QUEUE - 1)));
    }
}
