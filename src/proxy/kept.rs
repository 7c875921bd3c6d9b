//! Connections to upstreams between two exchanges.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;

use super::address::{Address, Destination};
use super::connection::Connection;

/// How long an unused connection is kept.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// How often what is too old, or was closed by the upstream, is thrown out. A request never gets
/// such a one, sooner or later: it is looked at again when it is taken.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Unused connections to one address. What is beyond is closed: a peak is no reason to hold
/// thousands for a minute.
const MAX_FOR_AN_ADDRESS: usize = 512;

/// The same for all addresses, of which there may be more than descriptors.
const MAX_FOR_ALL: usize = 4096;

/// The connections that are free. Clones share them.
#[derive(Clone, Default)]
pub struct Kept(Arc<Mutex<Shelf>>);

#[derive(Default)]
struct Shelf {
    /// The one used last is taken first, so that a peak's others grow old.
    free: HashMap<Arc<Destination>, Vec<Free>, RandomState>,
    /// How many there are.
    count: usize,
    /// Whether somebody throws out what is too old.
    swept: bool,
}

struct Free {
    connection: Connection,
    /// Of what it was made under.
    version: u64,
    since: Instant,
}

impl Kept {
    /// One to this address that is as good as a new one, as far as anybody can know.
    pub fn take(&self, address: &Address) -> Option<Connection> {
        let mut shelf = self.shelf();
        let shelf = &mut *shelf;
        let free = shelf.free.get_mut(address.destination())?;
        let version = address.version();
        while let Some(mut one) = free.pop() {
            shelf.count -= 1;
            if one.version == version && one.connection.is_idle() {
                return Some(one.connection);
            }
        }
        None
    }

    /// Keeps one whose exchange is over, to the last byte, in both directions.
    pub fn put(&self, address: &Address, version: u64, mut connection: Connection) {
        connection.release();
        let mut shelf = self.shelf();
        let shelf = &mut *shelf;
        if shelf.count >= MAX_FOR_ALL {
            shelf.make_room();
        }
        let destination = address.destination();
        let free = match shelf.free.get_mut(destination) {
            Some(free) => free,
            None => shelf.free.entry(destination.clone()).or_default(),
        };
        if free.len() >= MAX_FOR_AN_ADDRESS {
            return;
        }
        free.push(Free {
            connection,
            version,
            since: Instant::now(),
        });
        shelf.count += 1;
        if !std::mem::replace(&mut shelf.swept, true) {
            tokio::spawn(self.clone().sweep());
        }
    }

    /// Runs for as long as there is something to throw out.
    async fn sweep(self) {
        loop {
            tokio::time::sleep(SWEEP_INTERVAL).await;
            let mut shelf = self.shelf();
            let now = Instant::now();
            shelf.free.retain(|_, free| {
                free.retain_mut(|one| {
                    now.duration_since(one.since) < IDLE_TIMEOUT && one.connection.is_idle()
                });
                !free.is_empty()
            });
            shelf.count = shelf.free.values().map(Vec::len).sum();
            if shelf.free.is_empty() {
                shelf.swept = false;
                return;
            }
        }
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        // Every change is whole: a panic elsewhere leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shelf {
    /// Closes the oldest to an address, whichever.
    fn make_room(&mut self) {
        let found = self.free.iter().find(|(_, free)| !free.is_empty());
        let Some(destination) = found.map(|(destination, _)| destination.clone()) else {
            return;
        };
        if let Some(free) = self.free.get_mut(&destination) {
            free.remove(0);
            self.count -= 1;
            if free.is_empty() {
                self.free.remove(&destination);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpStream};

    use super::super::address::Transport;
    use super::super::connection::Socket;
    use super::*;

    /// Both ends: without the other it is no idle one.
    async fn connection(listener: &TcpListener) -> (Connection, TcpStream) {
        let near = TcpStream::connect(listener.local_addr().unwrap()).await;
        let (far, _) = listener.accept().await.unwrap();
        (Connection::new(Socket::Tcp(near.unwrap())), far)
    }

    #[tokio::test]
    async fn whoever_means_the_same_address_shares() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = |port| Address::tcp(([127, 0, 0, 1], port).into(), &Transport::Plain);
        let (one, same, other) = (address(1), address(1), address(2));
        let kept = Kept::default();
        let (near, _far) = connection(&listener).await;
        kept.put(&one, 0, near);
        assert!(kept.take(&other).is_none());
        assert!(kept.take(&same).is_some());
        assert!(kept.take(&one).is_none());
    }

    #[tokio::test]
    async fn what_was_closed_or_made_under_something_else_is_nobodys() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = Address::tcp(([127, 0, 0, 1], 1).into(), &Transport::Plain);
        let kept = Kept::default();
        let (near, _far) = connection(&listener).await;
        kept.put(&address, 1, near);
        let (mut near, far) = connection(&listener).await;
        drop(far);
        // The end has to be noticed by whoever waits for sockets.
        while near.is_idle() {
            tokio::task::yield_now().await;
        }
        kept.put(&address, 0, near);
        assert!(kept.take(&address).is_none());
        assert_eq!(kept.shelf().count, 0);
    }

    #[tokio::test]
    async fn there_is_a_bound_for_all() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let kept = Kept::default();
        kept.shelf().count = MAX_FOR_ALL - 1;
        let mut others = Vec::new();
        for port in 1..4 {
            let address = Address::tcp(([127, 0, 0, 1], port).into(), &Transport::Plain);
            let (near, far) = connection(&listener).await;
            others.push(far);
            kept.put(&address, 0, near);
        }
        assert_eq!(kept.shelf().count, MAX_FOR_ALL);
        assert_eq!(kept.shelf().free.len(), 1);
    }
}
