//! Connections to upstreams between two exchanges.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::address::Address;
use super::connection::Connection;

/// How long an unused connection is kept.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// How often what is too old, or was closed by the upstream, is thrown out. A request never gets
/// such a one, sooner or later: it is looked at again when it is taken.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Unused connections to one address. What is beyond is closed: a peak is no reason to hold
/// thousands for a minute.
const MAX_FOR_AN_ADDRESS: usize = 512;

/// The connections that are free. Clones share them.
#[derive(Clone, Default)]
pub struct Kept(Arc<Mutex<Shelf>>);

#[derive(Default)]
struct Shelf {
    /// By the address's id; the one used last is taken first, so that a peak's others grow old.
    free: HashMap<u64, Vec<Free>>,
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
        let free = shelf.free.get_mut(&address.id())?;
        let version = address.version();
        while let Some(mut one) = free.pop() {
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
        let free = shelf.free.entry(address.id()).or_default();
        if free.len() >= MAX_FOR_AN_ADDRESS {
            return;
        }
        free.push(Free {
            connection,
            version,
            since: Instant::now(),
        });
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
