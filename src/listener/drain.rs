//! How connections are told that their listener goes, and that they make room for others.

use std::sync::Arc;

use tokio::time::Instant;
use tokio_util::sync::{
    CancellationToken, WaitForCancellationFuture, WaitForCancellationFutureOwned,
};

use super::idle::Idling;

/// In two steps: no request is the last but one any more, and then nobody waits for another. Clones
/// are told together.
#[derive(Clone, Default)]
pub struct Drain {
    steps: Arc<Steps>,
    /// Of one connection, which may have to go while the others stay.
    own: Option<Arc<Idling>>,
}

#[derive(Default)]
struct Steps {
    begun: CancellationToken,
    idle: CancellationToken,
}

impl Drain {
    /// The same for one connection.
    pub fn of(&self, own: Option<Arc<Idling>>) -> Drain {
        Drain {
            steps: Arc::clone(&self.steps),
            own,
        }
    }

    /// From now on each answer says that it is the connection's last.
    pub fn begin(&self) {
        self.steps.begun.cancel();
    }

    /// Connections between two requests are closed as well. Implies [`begin`](Self::begin).
    pub fn close_idle(&self) {
        self.steps.begun.cancel();
        self.steps.idle.cancel();
    }

    /// What is cancelled when idle connections have to close.
    pub fn idle(&self) -> &CancellationToken {
        &self.steps.idle
    }

    pub fn has_begun(&self) -> bool {
        self.steps.begun.is_cancelled()
    }

    pub fn begun(&self) -> WaitForCancellationFuture<'_> {
        self.steps.begun.cancelled()
    }

    /// When the connection has to close, if it is between two requests.
    pub fn idle_closes(&self) -> WaitForCancellationFutureOwned {
        match &self.own {
            Some(own) => own.goes(),
            None => self.steps.idle.clone().cancelled_owned(),
        }
    }

    /// The connection waits for its next request since then.
    pub fn waits(&self, since: Instant) {
        if let Some(own) = &self.own {
            own.waits(since);
        }
    }

    /// A request has come. Whether it has to be the connection's last: it was told to go.
    pub fn works(&self) -> bool {
        self.own.as_ref().is_some_and(|own| own.works())
    }

    /// Whether the connection was told to make room for another.
    pub fn makes_room(&self) -> bool {
        self.own.as_ref().is_some_and(|own| own.has_to_go())
    }
}
