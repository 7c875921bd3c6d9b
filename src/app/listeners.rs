//! The listeners that run: binding new ones, draining dropped ones while the others go on, and
//! pausing all of them for somebody who takes over.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use boring::ssl::SslAcceptor;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use super::plan::{Endpoint, Plan};
use crate::admin::metrics::Metrics;
use crate::certificate::table::TableReader;
use crate::config::{ListenAddress, SocketFile};
use crate::listener::accept::{Accepted, Listening, Protocol, Service, accept_loop};
use crate::listener::admission::Admission;
use crate::listener::drain::Drain;
use crate::listener::passed::Passed;
use crate::listener::self_check::OwnConnections;
use crate::listener::sockets::{self, BindError, Socket, SocketPath};
use crate::listener::workers::Workers;
use crate::on_demand::OnDemand;

/// How long connections between two requests are kept while another process takes over: whoever
/// sends a request by then gets its answer, and hears with it that there is no next one. To close
/// them at once would cross with requests that are on their way.
const HAND_OVER_IDLE: Duration = Duration::from_secs(5);

/// What every listener's service is made of.
pub(super) struct Parts {
    pub workers: Workers,
    pub tls: SslAcceptor,
    pub table: TableReader,
    pub on_demand: OnDemand,
    pub metrics: Arc<Metrics>,
    pub own: OwnConnections,
    pub admission: Admission,
    /// Sockets that somebody else keeps for us.
    pub passed: Passed,
}

/// All listeners.
pub(super) struct Listeners {
    parts: Parts,
    running: Vec<Listener>,
    /// Those that wait for somebody else to take over.
    paused: Vec<Paused>,
    drains: JoinSet<()>,
    /// Of those that run, for whoever looks at them as a client would.
    https: Arc<ArcSwap<Vec<SocketAddr>>>,
}

/// A socket that listens and is not served yet.
pub(super) struct Bound {
    pub endpoint: Endpoint,
    pub socket: Socket,
    pub path: Option<SocketPath>,
}

/// New sockets, and the listeners that had to make room for them.
pub(super) struct Change {
    sockets: Vec<Bound>,
    replaced: Vec<Paused>,
}

/// Why connections have to end.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// Nobody listens at the address any more.
    Closed,
    /// Somebody else does.
    HandedOver,
}

/// A listener that accepts connections.
struct Listener {
    endpoint: Endpoint,
    local: ListenAddress,
    /// For whoever takes over.
    socket: Socket,
    path: Option<SocketPath>,
    serving: Serving,
    stop: CancellationToken,
    accepting: JoinHandle<Accepted>,
}

/// A listener that accepts no more connections. Those that it has live on.
struct Paused {
    endpoint: Endpoint,
    /// `None`: closed, to make room for another.
    socket: Option<Socket>,
    path: Option<SocketPath>,
    serving: Serving,
    connections: JoinSet<()>,
}

#[derive(Clone)]
struct Serving {
    service: Arc<Service>,
    drain: Drain,
}

impl Bound {
    /// Takes the socket that was passed for it, or binds one.
    pub fn bind(
        endpoint: Endpoint,
        file: &SocketFile,
        passed: &mut Passed,
    ) -> Result<Bound, BindError> {
        let socket = match passed.take(&endpoint.address) {
            Some(socket) => socket,
            None => sockets::bind(&endpoint.address, file)?,
        };
        Ok(Bound {
            path: SocketPath::of(&endpoint.address),
            endpoint,
            socket,
        })
    }
}

impl Listeners {
    pub fn new(parts: Parts) -> Listeners {
        Listeners {
            parts,
            running: Vec::new(),
            paused: Vec::new(),
            drains: JoinSet::new(),
            https: Arc::default(),
        }
    }

    pub fn admission(&self) -> &Admission {
        &self.parts.admission
    }

    pub fn workers(&self) -> Workers {
        self.parts.workers.clone()
    }

    /// Where HTTPS is served over TCP, at any time.
    pub fn https_addresses(&self) -> Arc<ArcSwap<Vec<SocketAddr>>> {
        self.https.clone()
    }

    /// Every certificate is shown on each of them.
    fn publish_addresses(&self) {
        let all = self.https(false).chain(self.https(true));
        self.https.store(Arc::new(all.collect()));
    }

    fn https(&self, own: bool) -> impl Iterator<Item = SocketAddr> {
        let running = self.running.iter();
        let https = running
            .filter(move |one| one.endpoint.protocol == Protocol::Https && one.endpoint.own == own);
        https.filter_map(|one| match one.local {
            ListenAddress::Tcp(address) => Some(address),
            ListenAddress::Unix(_) => None,
        })
    }

    /// The port of the first listener for HTTPS that is no site's own.
    pub fn https_port(&self) -> Option<u16> {
        Some(self.https(false).next()?.port())
    }

    /// What is listened on, for somebody who takes over.
    pub fn sockets(&self) -> std::io::Result<Vec<Socket>> {
        let running = self.running.iter();
        running.map(|one| one.socket.try_clone()).collect()
    }

    pub fn serve(&mut self, bound: Bound) -> std::io::Result<()> {
        let drain = Drain::default();
        let service = Service {
            workers: self.parts.workers.clone(),
            tls: self.parts.tls.clone(),
            table: self.parts.table.clone(),
            on_demand: Some(self.parts.on_demand.clone()),
            metrics: self.parts.metrics.clone(),
            admission: self.parts.admission.clone(),
            own: self.parts.own.clone(),
            drain: drain.clone(),
            scope: bound
                .endpoint
                .own
                .then(|| Arc::new(bound.endpoint.address.clone())),
        };
        let serving = Serving {
            service: Arc::new(service),
            drain,
        };
        let listener = Listener::start(bound, JoinSet::new(), serving)?;
        self.running.push(listener);
        self.publish_addresses();
        Ok(())
    }

    /// Binds what a plan wants bound. Where a dropped listener stands in the way, it is closed for
    /// it first. If anything fails, everything is as it was.
    pub async fn bind(&mut self, plan: &Plan, file: &SocketFile) -> Result<Change, BindError> {
        let (free, blocked): (Vec<Endpoint>, Vec<Endpoint>) = plan
            .bind
            .iter()
            .cloned()
            .partition(|endpoint| plan.in_the_way_of(endpoint).next().is_none());
        let free = free.into_iter();
        let free: Result<Vec<Bound>, BindError> = free
            .map(|endpoint| Bound::bind(endpoint, file, &mut self.parts.passed))
            .collect();
        let mut change = Change {
            sockets: free?,
            replaced: Vec::new(),
        };
        for endpoint in &blocked {
            for old in plan.in_the_way_of(endpoint) {
                change.replaced.extend(self.pause(old).await);
            }
        }
        for endpoint in blocked {
            match change.take_or_bind(endpoint, file, &mut self.parts.passed) {
                Ok(socket) => change.sockets.push(socket),
                Err(error) => {
                    self.undo(change);
                    return Err(error);
                }
            }
        }
        Ok(change)
    }

    /// Serves what was bound, and drains what the plan drops.
    pub async fn change(
        &mut self,
        change: Change,
        plan: &Plan,
        grace_period: Duration,
    ) -> std::io::Result<()> {
        for bound in change.sockets {
            self.serve(bound)?;
        }
        for paused in change.replaced {
            self.drains
                .spawn(paused.drain(grace_period, Ending::Closed));
        }
        for endpoint in &plan.drop {
            if let Some(paused) = self.pause(endpoint).await {
                self.drains
                    .spawn(paused.drain(grace_period, Ending::Closed));
            }
        }
        while self.drains.try_join_next().is_some() {}
        Ok(())
    }

    /// Drains all listeners. Those that were dropped before have their own grace periods.
    pub async fn drain(&mut self, grace_period: Duration, ending: Ending) {
        for paused in self.paused.drain(..) {
            self.drains.spawn(paused.drain(grace_period, ending));
        }
        let pausing: Vec<_> = self.running.drain(..).map(Listener::pause).collect();
        for paused in pausing {
            self.drains.spawn(async move {
                if let Some(paused) = paused.await {
                    paused.drain(grace_period, ending).await;
                }
            });
        }
        while self.drains.join_next().await.is_some() {}
    }

    /// Accepts no more connections, on any listener; the sockets stay, and what comes waits.
    pub async fn pause_all(&mut self) {
        while let Some(listener) = self.running.pop() {
            // In their order again.
            let paused = listener.pause().await;
            self.paused.splice(0..0, paused);
        }
        self.publish_addresses();
    }

    /// Goes on as before.
    pub fn resume_all(&mut self) {
        for paused in std::mem::take(&mut self.paused) {
            self.resume(paused);
        }
    }

    /// The sockets are another's now, and so are their files.
    pub fn leave(&mut self) {
        for paused in &mut self.paused {
            if let Some(path) = paused.path.take() {
                path.leave();
            }
        }
    }

    async fn pause(&mut self, endpoint: &Endpoint) -> Option<Paused> {
        let mut running = self.running.iter();
        let at = running.position(|one| one.endpoint == *endpoint)?;
        let listener = self.running.remove(at);
        self.publish_addresses();
        listener.pause().await
    }

    fn resume(&mut self, paused: Paused) {
        let address = paused.endpoint.address.clone();
        match paused.resume() {
            Ok(listener) => {
                self.running.push(listener);
                self.publish_addresses();
            }
            Err(error) => tracing::error!(%address, %error, "a listener is lost"),
        }
    }

    fn undo(&mut self, change: Change) {
        drop(change.sockets);
        for paused in change.replaced {
            self.resume(paused);
        }
    }
}

impl Change {
    /// The same address with another protocol takes the socket over: no connection is refused.
    fn take_or_bind(
        &mut self,
        endpoint: Endpoint,
        file: &SocketFile,
        passed: &mut Passed,
    ) -> Result<Bound, BindError> {
        let same = self
            .replaced
            .iter_mut()
            .filter(|old| old.endpoint.address == endpoint.address)
            .find_map(|old| Some((old.socket.as_ref()?.try_clone().ok()?, old)));
        if let Some((socket, old)) = same {
            let path = SocketPath::of(&endpoint.address);
            if let Some(path) = old.path.take() {
                path.leave();
            }
            return Ok(Bound {
                endpoint,
                socket,
                path,
            });
        }
        for old in &mut self.replaced {
            if port(&old.endpoint.address) == port(&endpoint.address) {
                old.socket = None;
            }
        }
        Bound::bind(endpoint, file, passed)
    }
}

fn port(address: &ListenAddress) -> Option<u16> {
    match address {
        ListenAddress::Tcp(address) => Some(address.port()),
        ListenAddress::Unix(_) => None,
    }
}

impl Listener {
    fn start(
        bound: Bound,
        connections: JoinSet<()>,
        serving: Serving,
    ) -> std::io::Result<Listener> {
        let Bound {
            endpoint,
            socket,
            path,
        } = bound;
        let local = socket.address()?;
        let accepted = Accepted {
            listener: Listening::new(socket.try_clone()?)?,
            connections,
        };
        let stop = CancellationToken::new();
        let service = serving.service.clone();
        let accepting = accept_loop(accepted, endpoint.protocol, service, stop.clone());
        Ok(Listener {
            endpoint,
            local,
            socket,
            path,
            serving,
            stop,
            accepting: tokio::spawn(accepting),
        })
    }

    /// `None`: the accept loop panicked, and said so.
    async fn pause(self) -> Option<Paused> {
        self.stop.cancel();
        let accepted = self.accepting.await.ok()?;
        Some(Paused {
            endpoint: self.endpoint,
            socket: Some(self.socket),
            path: self.path,
            serving: self.serving,
            connections: accepted.connections,
        })
    }
}

impl Paused {
    fn resume(self) -> std::io::Result<Listener> {
        let socket = match self.socket {
            Some(socket) => socket,
            // Only TCP's are closed to make room, which have no file.
            None => sockets::bind(&self.endpoint.address, &SocketFile::private())
                .map_err(|error| error.source)?,
        };
        let bound = Bound {
            endpoint: self.endpoint,
            socket,
            path: self.path,
        };
        Listener::start(bound, self.connections, self.serving)
    }

    /// Closes the socket and the connections that wait for a request, and lets the others finish.
    async fn drain(mut self, grace_period: Duration, ending: Ending) {
        drop((self.socket.take(), self.path.take()));
        let drain = &self.serving.drain;
        drain.begin();
        let connections = &mut self.connections;
        let finish = async {
            if ending == Ending::Closed {
                drain.close_idle();
            }
            let finish = async { while connections.join_next().await.is_some() {} };
            tokio::pin!(finish);
            if tokio::time::timeout(HAND_OVER_IDLE, &mut finish)
                .await
                .is_err()
            {
                drain.close_idle();
                finish.await;
            }
        };
        let address = &self.endpoint.address;
        match tokio::time::timeout(grace_period, finish).await {
            Ok(()) => tracing::info!(%address, "drained"),
            Err(_) => tracing::warn!(
                %address, connections = self.connections.len(),
                "cut off at the end of the grace period"
            ),
        }
    }
}
