//! Who may have a connection: so many in all, so many for each client, and from whom a connection
//! begins with the word of a proxy (PROXY protocol). It decides and counts; what has to make room is told,
//! and closes itself.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio_util::sync::CancellationToken;

use super::idle::{IdleConnections, Idling};
use crate::admin::metrics::Metrics;
use crate::config::{IpPrefix, ProxyProtocolFrom, Server};

/// Descriptors for everything that is no connection of a client and none to its upstream: listening
/// sockets, certificate files, connections to CAs.
const RESERVED_DESCRIPTORS: u64 = 128;

/// With fewer connections there is nothing to be served.
const LEAST_CONNECTIONS: u64 = 16;

/// A household, or one rented machine, has all addresses of such a network.
const CLIENT_IPV4_BITS: u8 = 32;
const CLIENT_IPV6_BITS: u8 = 64;

/// Locks that no two cores need at once, as a rule.
const SHARDS: usize = 16;

/// How often it is said that connections are refused.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// The rules for connections, and what is open. Cheap to clone.
#[derive(Clone)]
pub struct Admission(Arc<Shared>);

struct Shared {
    policy: ArcSwap<Policy>,
    open: AtomicUsize,
    hasher: RandomState,
    by_client: [Mutex<HashMap<IpPrefix, usize>>; SHARDS],
    metrics: Arc<Metrics>,
    refusals: Mutex<Refusals>,
    /// Of those that are open.
    idle: IdleConnections,
    /// How many descriptors this process may have.
    descriptors: u64,
}

/// What the configuration says.
#[derive(Debug, PartialEq, Eq)]
struct Policy {
    max: usize,
    max_per_client: usize,
    /// Proxies: their connections are many clients'.
    shared: Vec<IpPrefix>,
    announced: ProxyProtocolFrom,
}

/// Why a connection is refused, as the metrics call it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    MaxConnections,
    MaxConnectionsPerClient,
    /// What comes is not what a proxy says first.
    ProxyProtocol,
    /// The host has no more of something.
    Accept,
}

impl Refusal {
    fn label(self) -> &'static str {
        match self {
            Refusal::MaxConnections => "max_connections",
            Refusal::MaxConnectionsPerClient => "max_connections_per_client",
            Refusal::ProxyProtocol => "proxy_protocol",
            Refusal::Accept => "accept",
        }
    }
}

/// What was refused since it was last said.
#[derive(Default)]
struct Refusals {
    count: u64,
    said: Option<Instant>,
}

/// An open connection, which counts until this is dropped.
pub struct Place {
    admission: Admission,
    client: Option<IpPrefix>,
    idling: Arc<Idling>,
}

impl Policy {
    fn new(server: &Server, descriptors: u64) -> Policy {
        let unlimited = |max: usize| if max == 0 { usize::MAX } else { max };
        let max = server.max_connections.map(unlimited);
        let max = max.unwrap_or_else(|| default_max(descriptors));
        let per_client = server.max_connections_per_client.map(unlimited);
        Policy {
            max,
            // One client alone must not keep all others out.
            max_per_client: per_client.unwrap_or(max.div_ceil(2)),
            shared: server.trusted_proxies.clone(),
            announced: server.proxy_protocol_from.clone(),
        }
    }
}

/// A connection takes a descriptor, and a second one while its request is at an upstream.
fn default_max(descriptors: u64) -> usize {
    let connections = descriptors.saturating_sub(RESERVED_DESCRIPTORS) / 2;
    usize::try_from(connections.max(LEAST_CONNECTIONS)).unwrap_or(usize::MAX)
}

impl Admission {
    /// `descriptors`: how many this process may have open.
    pub fn new(server: &Server, descriptors: u64, metrics: Arc<Metrics>) -> Admission {
        let admission = Admission(Arc::new(Shared {
            policy: ArcSwap::from_pointee(Policy::new(server, descriptors)),
            open: AtomicUsize::new(0),
            hasher: RandomState::new(),
            by_client: Default::default(),
            metrics,
            refusals: Mutex::default(),
            idle: IdleConnections::default(),
            descriptors,
        }));
        admission.warn(server);
        admission
    }

    /// Connections that are open already stay.
    pub fn reconfigure(&self, server: &Server) {
        let policy = Policy::new(server, self.0.descriptors);
        if **self.0.policy.load() != policy {
            self.0.policy.store(Arc::new(policy));
            self.warn(server);
        }
    }

    fn warn(&self, server: &Server) {
        let wanted = server.max_connections.unwrap_or_default();
        if wanted as u64 > self.0.descriptors {
            tracing::warn!(
                max_connections = wanted,
                descriptors = self.0.descriptors,
                "there are fewer file descriptors than max_connections: raise the limit \
                 (LimitNOFILE= of systemd, ulimit -n)"
            );
        }
    }

    /// Whether connections of this peer begin with a header of the PROXY protocol. `None`: it is on
    /// a Unix socket.
    pub fn is_announced(&self, peer: Option<IpAddr>) -> bool {
        let announced = &self.0.policy.load().announced;
        match peer {
            Some(ip) => announced.networks.iter().any(|one| one.contains(ip)),
            None => announced.unix,
        }
    }

    /// One more connection, whosever it is, which goes with `listener`. Where there are as many as there
    /// may be, the one that has waited longest for a request has to go: for a moment there is one more.
    pub fn enter(&self, listener: &CancellationToken) -> Result<Place, Refusal> {
        let max = self.0.policy.load().max;
        let before = self.0.open.fetch_add(1, Ordering::Relaxed);
        let place = Place {
            admission: self.clone(),
            client: None,
            idling: self.0.idle.enter(listener),
        };
        if before < max {
            return Ok(place);
        }
        match self.0.idle.make_room() {
            true => {
                self.0.metrics.connection_made_room();
                Ok(place)
            }
            false => Err(Refusal::MaxConnections),
        }
    }

    /// Counts a refused connection, and says so once in a while.
    pub fn refused(&self, refusal: Refusal, detail: &dyn std::fmt::Display) {
        self.0.metrics.connection_refused(refusal.label());
        let mut refusals = lock(&self.0.refusals);
        refusals.count += 1;
        let now = Instant::now();
        let is_late = |said| now.duration_since(said) >= LOG_INTERVAL;
        if refusals.said.is_none_or(is_late) {
            tracing::warn!(
                reason = refusal.label(), %detail, count = refusals.count,
                "connections are refused"
            );
            *refusals = Refusals {
                count: 0,
                said: Some(now),
            };
        }
    }

    fn shard(&self, client: &IpPrefix) -> MutexGuard<'_, HashMap<IpPrefix, usize>> {
        let shard = self.0.hasher.hash_one(client) % SHARDS as u64;
        lock(&self.0.by_client[shard as usize])
    }
}

impl Place {
    /// How the connection says what it does, and hears that it has to go.
    pub fn idling(&self) -> Arc<Idling> {
        Arc::clone(&self.idling)
    }

    /// Whose the connection is, if it is one client's alone.
    pub fn belongs_to(&mut self, client: IpAddr) -> Result<(), Refusal> {
        let policy = self.admission.0.policy.load();
        let is_shared = policy.shared.iter().any(|one| one.contains(client));
        if is_shared || policy.max_per_client == usize::MAX {
            return Ok(());
        }
        let client = IpPrefix::around(client, CLIENT_IPV4_BITS, CLIENT_IPV6_BITS);
        let mut clients = self.admission.shard(&client);
        let open = clients.entry(client).or_default();
        if *open >= policy.max_per_client {
            return Err(Refusal::MaxConnectionsPerClient);
        }
        *open += 1;
        drop(clients);
        self.client = Some(client);
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.admission.0.open.fetch_sub(1, Ordering::Relaxed);
        self.admission.0.idle.leave(&self.idling);
        let Some(client) = self.client else { return };
        let mut clients = self.admission.shard(&client);
        if let Entry::Occupied(mut open) = clients.entry(client) {
            *open.get_mut() -= 1;
            if *open.get() == 0 {
                open.remove();
            }
        }
    }
}

/// Every change is whole: a panic elsewhere leaves nothing half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn admission(server: &str) -> Admission {
        let config = Config::of_server(server);
        Admission::new(&config.server, 1128, Arc::new(Metrics::new()))
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn there_are_so_many_places_in_all() {
        let admission = admission("max_connections = 2");
        let one = admission.enter(&CancellationToken::new()).unwrap();
        let _two = admission.enter(&CancellationToken::new()).unwrap();
        assert_eq!(
            admission.enter(&CancellationToken::new()).err(),
            Some(Refusal::MaxConnections)
        );
        drop(one);
        assert!(admission.enter(&CancellationToken::new()).is_ok());
    }

    #[test]
    fn the_default_leaves_descriptors_for_upstreams() {
        let admission = admission("");
        let policy = admission.0.policy.load();
        assert_eq!((policy.max, policy.max_per_client), (500, 250));
        let server = &Config::of_server("max_connections = 0").server;
        assert_eq!(Policy::new(server, 1128).max, usize::MAX);
        assert_eq!(default_max(10), 16);
    }

    #[test]
    fn a_client_has_so_many_and_one_network_is_one_client() {
        let admission =
            admission("max_connections_per_client = 1\ntrusted_proxies = [\"10.0.0.0/8\"]");
        let enter = |client: &str| {
            let mut place = admission.enter(&CancellationToken::new()).unwrap();
            place.belongs_to(ip(client)).map(|()| place)
        };
        let first = enter("192.0.2.1").unwrap();
        let _other = enter("192.0.2.2").unwrap();
        let refused = Some(Refusal::MaxConnectionsPerClient);
        assert_eq!(enter("192.0.2.1").err(), refused);
        assert_eq!(enter("::ffff:192.0.2.1").err(), refused);
        drop(first);
        let _again = enter("192.0.2.1").unwrap();
        let _v6 = enter("2001:db8::1").unwrap();
        assert_eq!(enter("2001:db8::ffff:2").err(), refused);
        let _next = enter("2001:db8:0:1::1").unwrap();
        let _proxies = [enter("10.0.0.1").unwrap(), enter("10.0.0.1").unwrap()];
        drop((_other, _again, _v6, _next, _proxies));
        assert_eq!(admission.0.open.load(Ordering::Relaxed), 0);
        assert!(
            admission
                .0
                .by_client
                .iter()
                .all(|shard| lock(shard).is_empty())
        );
    }

    #[test]
    fn a_new_limit_holds_at_once() {
        let admission = admission("max_connections = 1");
        let _one = admission.enter(&CancellationToken::new()).unwrap();
        assert!(admission.enter(&CancellationToken::new()).is_err());
        let config = Config::of_server("max_connections = 2");
        admission.reconfigure(&config.server);
        assert!(admission.enter(&CancellationToken::new()).is_ok());
    }
}
