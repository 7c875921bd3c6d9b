//! How connections are told that their listener goes.

use std::sync::Arc;

use tokio_util::sync::{
    CancellationToken, WaitForCancellationFuture, WaitForCancellationFutureOwned,
};

/// In two steps: no request is the last but one any more, and then nobody waits for another. Clones
/// are told together.
#[derive(Clone, Default)]
pub struct Drain(Arc<Steps>);

#[derive(Default)]
struct Steps {
    begun: CancellationToken,
    idle: CancellationToken,
}

impl Drain {
    /// From now on each answer says that it is the connection's last.
    pub fn begin(&self) {
        self.0.begun.cancel();
    }

    /// Connections between two requests are closed as well. Implies [`begin`](Self::begin).
    pub fn close_idle(&self) {
        self.0.begun.cancel();
        self.0.idle.cancel();
    }

    pub fn has_begun(&self) -> bool {
        self.0.begun.is_cancelled()
    }

    pub fn begun(&self) -> WaitForCancellationFuture<'_> {
        self.0.begun.cancelled()
    }

    /// When connections between two requests have to close.
    pub fn idle_closes(&self) -> WaitForCancellationFutureOwned {
        self.0.idle.clone().cancelled_owned()
    }
}
