//! Handshakes without a pause while something else happens, to catch what is served in between.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::task::JoinHandle;

use super::client;

/// Runs until [`Handshakes::stop`].
pub struct Handshakes {
    done: Arc<AtomicBool>,
    task: JoinHandle<Vec<Result<String, String>>>,
}

impl Handshakes {
    pub fn start(addr: SocketAddr, sni: &str) -> Handshakes {
        let done = Arc::new(AtomicBool::new(false));
        let (stop, sni) = (Arc::clone(&done), sni.to_owned());
        let task = tokio::spawn(async move {
            let mut seen = Vec::new();
            while !stop.load(Ordering::SeqCst) {
                seen.push(client::serial(addr, &sni).await);
            }
            seen
        });
        Handshakes { done, task }
    }

    /// Ends it.
    ///
    /// # Panics
    /// If a handshake failed, or showed a serial that is not among these in this order.
    pub async fn stop(self, serials: &[&str]) {
        self.done.store(true, Ordering::SeqCst);
        let seen = self.task.await.expect("the loop does not panic");
        let count = seen.len();
        let failed: Vec<_> = seen.iter().filter_map(|one| one.as_ref().err()).collect();
        assert!(
            failed.is_empty(),
            "of {count} handshakes failed: {failed:?}"
        );
        let mut order: Vec<_> = seen.into_iter().flatten().collect();
        order.dedup();
        let allowed = serials
            .iter()
            .filter(|one| order.iter().any(|seen| seen == *one));
        let allowed: Vec<_> = allowed.copied().collect();
        assert_eq!(order, allowed, "{count} handshakes showed this sequence");
    }
}
