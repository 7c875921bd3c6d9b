//! The listeners that run: binding new ones, draining dropped ones while the others go on.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use boring::ssl::SslAcceptor;
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use super::plan::{Endpoint, Plan};
use crate::admin::metrics::Metrics;
use crate::certificate::table::TableReader;
use crate::listener::accept::{Accepted, Protocol, Service, accept_loop};
use crate::listener::self_check::OwnConnections;
use crate::listener::sockets::{self, BindError};
use crate::listener::workers::Workers;
use crate::on_demand::OnDemand;

/// What every listener's service is made of.
pub(super) struct Parts {
    pub workers: Workers,
    pub tls: SslAcceptor,
    pub table: TableReader,
    pub on_demand: OnDemand,
    pub metrics: Arc<Metrics>,
    pub own: OwnConnections,
}

/// All listeners.
pub(super) struct Listeners {
    parts: Parts,
    running: Vec<Listener>,
    drains: JoinSet<()>,
    /// Of those that run, for whoever looks at them as a client would.
    https: Arc<ArcSwap<Vec<SocketAddr>>>,
}

/// A socket that is bound and not served yet.
pub(super) struct Socket {
    pub endpoint: Endpoint,
    pub listener: std::net::TcpListener,
}

/// New sockets, and the listeners that had to make room for them.
pub(super) struct Bound {
    sockets: Vec<Socket>,
    replaced: Vec<Paused>,
}

/// A listener that accepts connections.
struct Listener {
    endpoint: Endpoint,
    local: SocketAddr,
    serving: Serving,
    stop: CancellationToken,
    accepting: JoinHandle<Accepted>,
}

/// A listener that accepts no more connections. Those that it has live on.
struct Paused {
    endpoint: Endpoint,
    /// `None`: closed, to make room for another.
    socket: Option<std::net::TcpListener>,
    serving: Serving,
    connections: JoinSet<()>,
}

#[derive(Clone)]
struct Serving {
    service: Arc<Service>,
    drain: CancellationToken,
}

impl Socket {
    pub fn bind(endpoint: Endpoint) -> Result<Socket, BindError> {
        let listener = sockets::bind(endpoint.address)?;
        Ok(Socket { endpoint, listener })
    }
}

impl Listeners {
    pub fn new(parts: Parts) -> Listeners {
        Listeners {
            parts,
            running: Vec::new(),
            drains: JoinSet::new(),
            https: Arc::default(),
        }
    }

    /// Where HTTPS is served, at any time.
    pub fn https_addresses(&self) -> Arc<ArcSwap<Vec<SocketAddr>>> {
        self.https.clone()
    }

    fn publish_addresses(&self) {
        let running = self.running.iter();
        let https = running.filter(|one| one.endpoint.protocol == Protocol::Https);
        self.https
            .store(Arc::new(https.map(|one| one.local).collect()));
    }

    /// The port of the first listener for HTTPS.
    pub fn https_port(&self) -> Option<u16> {
        let mut running = self.running.iter();
        let first = running.find(|one| one.endpoint.protocol == Protocol::Https)?;
        Some(first.local.port())
    }

    pub fn serve(&mut self, socket: Socket) -> std::io::Result<()> {
        let drain = CancellationToken::new();
        let service = Service {
            workers: self.parts.workers.clone(),
            tls: self.parts.tls.clone(),
            table: self.parts.table.clone(),
            on_demand: Some(self.parts.on_demand.clone()),
            metrics: self.parts.metrics.clone(),
            own: self.parts.own.clone(),
            drain: drain.clone(),
        };
        let serving = Serving {
            service: Arc::new(service),
            drain,
        };
        let listener = Listener::start(socket, JoinSet::new(), serving)?;
        self.running.push(listener);
        self.publish_addresses();
        Ok(())
    }

    /// Binds what a plan wants bound. Where a dropped listener stands in the way, it is closed for
    /// it first. If anything fails, everything is as it was.
    pub async fn bind(&mut self, plan: &Plan) -> Result<Bound, BindError> {
        let (free, blocked): (Vec<Endpoint>, Vec<Endpoint>) = plan
            .bind
            .iter()
            .partition(|endpoint| plan.in_the_way_of(endpoint).next().is_none());
        let free: Result<Vec<Socket>, BindError> = free.into_iter().map(Socket::bind).collect();
        let mut bound = Bound {
            sockets: free?,
            replaced: Vec::new(),
        };
        for endpoint in &blocked {
            for old in plan.in_the_way_of(endpoint) {
                bound.replaced.extend(self.pause(old).await);
            }
        }
        for endpoint in blocked {
            match bound.take_or_bind(endpoint) {
                Ok(socket) => bound.sockets.push(socket),
                Err(error) => {
                    self.undo(bound);
                    return Err(error);
                }
            }
        }
        Ok(bound)
    }

    /// Serves what was bound, and drains what the plan drops.
    pub async fn change(
        &mut self,
        bound: Bound,
        plan: &Plan,
        grace_period: Duration,
    ) -> std::io::Result<()> {
        for socket in bound.sockets {
            self.serve(socket)?;
        }
        for paused in bound.replaced {
            self.drains.spawn(paused.drain(grace_period));
        }
        for endpoint in &plan.drop {
            if let Some(paused) = self.pause(endpoint).await {
                self.drains.spawn(paused.drain(grace_period));
            }
        }
        while self.drains.try_join_next().is_some() {}
        Ok(())
    }

    /// Drains all listeners. Those that were dropped before have their own grace periods.
    pub async fn drain(&mut self, grace_period: Duration) {
        let pausing: Vec<_> = self.running.drain(..).map(Listener::pause).collect();
        for paused in pausing {
            self.drains.spawn(async move {
                if let Some(paused) = paused.await {
                    paused.drain(grace_period).await;
                }
            });
        }
        while self.drains.join_next().await.is_some() {}
    }

    async fn pause(&mut self, endpoint: &Endpoint) -> Option<Paused> {
        let mut running = self.running.iter();
        let at = running.position(|one| one.endpoint == *endpoint)?;
        let listener = self.running.remove(at);
        self.publish_addresses();
        listener.pause().await
    }

    fn undo(&mut self, bound: Bound) {
        drop(bound.sockets);
        for paused in bound.replaced {
            let address = paused.endpoint.address;
            match paused.resume() {
                Ok(listener) => {
                    self.running.push(listener);
                    self.publish_addresses();
                }
                Err(error) => tracing::error!(%address, %error, "a listener is lost"),
            }
        }
    }
}

impl Bound {
    /// The same address with another protocol takes the socket over: no connection is refused.
    fn take_or_bind(&mut self, endpoint: Endpoint) -> Result<Socket, BindError> {
        let same = self
            .replaced
            .iter_mut()
            .filter(|old| old.endpoint.address == endpoint.address)
            .find_map(|old| old.socket.as_ref()?.try_clone().ok());
        if let Some(listener) = same {
            return Ok(Socket { endpoint, listener });
        }
        for old in &mut self.replaced {
            if old.endpoint.address.port() == endpoint.address.port() {
                old.socket = None;
            }
        }
        Socket::bind(endpoint)
    }
}

impl Listener {
    fn start(
        socket: Socket,
        connections: JoinSet<()>,
        serving: Serving,
    ) -> std::io::Result<Listener> {
        let Socket { endpoint, listener } = socket;
        let listener = TcpListener::from_std(listener)?;
        let local = listener.local_addr()?;
        let accepted = Accepted {
            listener,
            connections,
        };
        let stop = CancellationToken::new();
        let service = serving.service.clone();
        let accepting = accept_loop(accepted, endpoint.protocol, service, stop.clone());
        Ok(Listener {
            endpoint,
            local,
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
            socket: accepted.listener.into_std().ok(),
            serving: self.serving,
            connections: accepted.connections,
        })
    }
}

impl Paused {
    fn resume(self) -> std::io::Result<Listener> {
        let listener = match self.socket {
            Some(listener) => listener,
            None => sockets::bind(self.endpoint.address).map_err(|error| error.source)?,
        };
        let socket = Socket {
            endpoint: self.endpoint,
            listener,
        };
        Listener::start(socket, self.connections, self.serving)
    }

    /// Closes the socket and the connections that wait for a request, and lets the others finish.
    async fn drain(mut self, grace_period: Duration) {
        drop(self.socket.take());
        self.serving.drain.cancel();
        let connections = &mut self.connections;
        let finish = async { while connections.join_next().await.is_some() {} };
        let address = self.endpoint.address;
        match tokio::time::timeout(grace_period, finish).await {
            Ok(()) => tracing::info!(%address, "drained"),
            Err(_) => tracing::warn!(
                %address, connections = self.connections.len(),
                "cut off at the end of the grace period"
            ),
        }
    }
}
