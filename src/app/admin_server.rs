//! The admin API of the process: one listener at a time, or none.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::api::Api;
use crate::admin::server::AdminListener;
use crate::config::AdminListen;
use crate::listener::sockets::{Socket, SocketPath};

/// How long answers under way may take at the end of the process: they are made already.
const FINISH_TIMEOUT: Duration = Duration::from_secs(2);

/// The admin API's listener, if there is one.
pub(super) struct AdminServer {
    api: Arc<Api>,
    running: Option<Running>,
    connections: TaskTracker,
}

struct Running {
    stop: CancellationToken,
    /// For whoever takes over.
    socket: Option<Socket>,
    path: Option<SocketPath>,
}

impl AdminServer {
    pub fn new(api: Api) -> AdminServer {
        AdminServer {
            api: Arc::new(api),
            running: None,
            connections: TaskTracker::new(),
        }
    }

    /// Serves on this listener and no other. Requests under way are answered.
    pub fn replace(&mut self, listener: Option<AdminListener>, listen: &AdminListen) {
        self.pause();
        self.running = None;
        let Some(listener) = listener else { return };
        let address = listen.address();
        self.running = Some(Running {
            stop: CancellationToken::new(),
            socket: listener.socket().ok(),
            path: address.as_ref().and_then(SocketPath::of),
        });
        self.serve(listener);
    }

    /// What is listened on, for somebody who takes over.
    pub fn socket(&self) -> io::Result<Option<Socket>> {
        let socket = self.running.as_ref().and_then(|it| it.socket.as_ref());
        socket.map(Socket::try_clone).transpose()
    }

    /// Accepts no more connections; the socket stays, and what comes waits.
    pub fn pause(&mut self) {
        if let Some(running) = &self.running {
            running.stop.cancel();
        }
    }

    /// Goes on as before.
    pub fn resume(&mut self) {
        if let Some(running) = &mut self.running {
            running.stop = CancellationToken::new();
        }
        match self
            .socket()
            .and_then(|it| it.map(AdminListener::of).transpose())
        {
            Ok(Some(listener)) => self.serve(listener),
            Ok(None) => {}
            Err(error) => tracing::error!(%error, "the admin API is lost"),
        }
    }

    /// The socket is another's now, and so is its file.
    pub fn leave(&mut self) {
        if let Some(path) = self.running.as_mut().and_then(|it| it.path.take()) {
            path.leave();
        }
    }

    /// Closes, with the last answers given.
    pub async fn finish(mut self) {
        self.pause();
        self.connections.close();
        // Whoever does not read its answer does not keep us.
        let _ = tokio::time::timeout(FINISH_TIMEOUT, self.connections.wait()).await;
    }

    fn serve(&self, listener: AdminListener) {
        let Some(running) = &self.running else { return };
        let (api, stop) = (self.api.clone(), running.stop.clone());
        let served = listener.serve(api, stop, self.connections.clone());
        tokio::spawn(async move {
            if let Err(error) = served.await {
                tracing::error!(%error, "the admin API cannot be served");
            }
        });
    }
}
