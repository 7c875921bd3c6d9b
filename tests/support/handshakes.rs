//! Handshakes without a pause while something else happens, to catch what is served in between.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::task::JoinHandle;

use super::client;

struct Shown {
    serial: String,
    chain_len: usize,
}

/// Runs until [`Handshakes::stop`].
pub struct Handshakes {
    done: Arc<AtomicBool>,
    task: JoinHandle<Vec<Result<Shown, String>>>,
}

impl Handshakes {
    pub fn start(addr: SocketAddr, sni: &str) -> Handshakes {
        let done = Arc::new(AtomicBool::new(false));
        let (stop, sni) = (Arc::clone(&done), sni.to_owned());
        let task = tokio::spawn(async move {
            let mut seen = Vec::new();
            while !stop.load(Ordering::SeqCst) {
                let served = client::served(addr, Some(&sni)).await;
                seen.push(served.map(|served| Shown {
                    serial: served.serial,
                    chain_len: served.chain_len,
                }));
            }
            seen
        });
        Handshakes { done, task }
    }

    /// Ends it.
    ///
    /// # Panics
    /// If a handshake failed, showed a serial that is not among these in this order, or a chain
    /// that was shorter than the first.
    pub async fn stop(self, serials: &[&str]) {
        self.done.store(true, Ordering::SeqCst);
        let seen = self.task.await.expect("the loop does not panic");
        let count = seen.len();
        let failed: Vec<_> = seen.iter().filter_map(|one| one.as_ref().err()).collect();
        assert!(
            failed.is_empty(),
            "of {count} handshakes failed: {failed:?}"
        );
        let shown: Vec<_> = seen.into_iter().flatten().collect();
        let first = shown.first().map_or(0, |first| first.chain_len);
        let short = shown.iter().find(|shown| shown.chain_len < first);
        if let Some(Shown { serial, chain_len }) = short {
            panic!("{serial} came with {chain_len} certificates, the first had {first}");
        }
        let mut order: Vec<_> = shown.into_iter().map(|shown| shown.serial).collect();
        order.dedup();
        let allowed = serials
            .iter()
            .filter(|one| order.iter().any(|seen| seen == *one));
        let allowed: Vec<_> = allowed.copied().collect();
        assert_eq!(order, allowed, "{count} handshakes showed this sequence");
    }
}
