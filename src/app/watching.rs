//! Two watchmen over what is served: one proves after each swap that it is what was loaded, the
//! other says what deserves attention. Neither changes anything.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;
use boring::error::ErrorStack;
use tokio_util::sync::CancellationToken;

use crate::acme::subject::{takeover_hosts, tls_hosts};
use crate::certificate::attention::{Guard, SharedAttention};
use crate::certificate::proof::SharedProof;
use crate::certificate::reloader::Reloader;
use crate::config::Config;
use crate::listener::self_check::{Looker, OwnConnections, SelfCheck};

/// Where the watchmen write down what they find.
pub(super) struct Watching {
    pub proof: SharedProof,
    pub attention: SharedAttention,
    reloader: Reloader,
    stop: CancellationToken,
    /// Of the guard that knows the running configuration.
    guard: CancellationToken,
}

impl Watching {
    /// `https` are the addresses to look at, as they are at the time.
    pub fn start(
        config: &Config,
        reloader: &Reloader,
        own: OwnConnections,
        https: Arc<ArcSwap<Vec<SocketAddr>>>,
        stop: &CancellationToken,
    ) -> Result<Watching, ErrorStack> {
        let proof = SharedProof::default();
        let looker = Looker::new(reloader.table().clone(), https, own, proof.clone())?;
        let swaps = reloader.swaps();
        tokio::spawn(SelfCheck { swaps, looker }.run(stop.clone()));
        let mut watching = Watching {
            proof,
            attention: SharedAttention::default(),
            reloader: reloader.clone(),
            stop: stop.clone(),
            guard: stop.child_token(),
        };
        watching.reconfigure(config);
        Ok(watching)
    }

    /// Pays attention to what this configuration serves.
    pub fn reconfigure(&mut self, config: &Config) {
        self.guard.cancel();
        self.guard = self.stop.child_token();
        // The reloader's certificates are named by absolute paths.
        let absolute = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
        let guard = Guard {
            reloader: self.reloader.clone(),
            served: tls_hosts(config).collect(),
            takeover: takeover_hosts(config).collect(),
            folders: config
                .certificates
                .directories
                .iter()
                .map(absolute)
                .collect(),
            attention: self.attention.clone(),
        };
        tokio::spawn(guard.run(self.guard.clone()));
    }
}
