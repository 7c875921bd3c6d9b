//! From a [`Config`] to a running server: all wiring on one page. Nobody imports this but the
//! command line.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU16;
use std::time::Instant;

use arc_swap::ArcSwap;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::acme::challenges::Challenges;
use crate::acme::subject::{Assignment, takeover_hosts};
use crate::acme::surroundings::Surroundings;
use crate::acme::worker::{Worker, WorkerHandle};
use crate::admin::api::Api;
use crate::admin::metrics::Metrics;
use crate::admin::server::{AdminError, AdminListener};
use crate::certificate::on_demand::OnDemandDirectory;
use crate::certificate::reloader::{PairFiles, Reloader, Sources};
use crate::certificate::trust::TlsFiles;
use crate::config::watch::{Candidate, ConfigWatch, Outcome};
use crate::config::{Config, Footprint};
use crate::listener::accept::Protocol;
use crate::listener::self_check::OwnConnections;
use crate::listener::sockets::BindError;
use crate::listener::tls;
use crate::listener::workers::Workers;
use crate::on_demand::{self, OnDemand, Permissions};
use crate::proxy::{HealthChecks, Proxy, Routing, access_log};
use crate::store::{StateDir, StoreError};
use listeners::{Listeners, Parts, Socket};
use live::{AdminServer, DEFAULT_HTTPS_PORT, Live};
use tls_files::Trust;
use watching::Watching;

mod banner;
mod listeners;
mod live;
mod plan;
pub mod tls_files;
mod watching;

pub use live::LogControl;

/// What ends a start.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error(transparent)]
    Admin(#[from] AdminError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] boring::error::ErrorStack),
    #[error("cannot start: {0}")]
    Io(#[from] std::io::Error),
}

/// Listeners that are bound, before anything is served.
struct Bound {
    sockets: Vec<Socket>,
    admin: Option<AdminListener>,
}

/// Serves until SIGTERM or SIGINT, then drains. `file` is what the configuration was read from,
/// where that is a file: its changes are taken over.
pub fn run(config: Config, file: Option<Footprint>, log: LogControl) -> Result<(), AppError> {
    raise_file_limit();
    log.access_log.configure(&config.access_log);
    let config = Arc::new(config);
    let bound = Bound::bind(&config)?;
    let state = StateDir::open(&config.server.state_dir)?;
    // For everything but connections of clients.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(BACKGROUND_THREADS)
        .thread_name("background")
        .enable_all()
        .build()?;
    let (reloader, reloading) = Reloader::start(sources(&config, &state))?;
    let (offer, candidates) = mpsc::channel(1);
    let config_watch = match (config.path.clone(), file) {
        (Some(path), Some(file)) => {
            Some(ConfigWatch::start(path, file, &config.certificates, offer)?)
        }
        _ => None,
    };
    let (trust, watching) = Trust::start(&config)?;
    let rescan = Rescan {
        config: config_watch,
        reloader: reloader.clone(),
        tls_files: trust.files.clone(),
    };
    let start = Start {
        config,
        bound,
        state,
        trust,
        rescan: rescan.clone(),
        log,
    };
    let result = runtime.block_on(serve(start, candidates));
    if let Some(watch) = rescan.config {
        watch.stop();
    }
    reloader.stop();
    rescan.tls_files.stop();
    // It panicked if it cannot be joined, and said so.
    let _ = reloading.join();
    let _ = watching.join();
    runtime.shutdown_background();
    result
}

/// What a server is started with.
struct Start {
    config: Arc<Config>,
    bound: Bound,
    state: StateDir,
    trust: Trust,
    rescan: Rescan,
    log: LogControl,
}

async fn serve(start: Start, candidates: mpsc::Receiver<Candidate>) -> Result<(), AppError> {
    let mut signals = Signals::new(start.rescan.clone())?;
    let stop = CancellationToken::new();
    let metrics = Arc::new(Metrics::new());
    let challenges = Challenges::default();
    let reloader = &start.rescan.reloader;
    let ordered = metrics.clone();
    let permissions = Permissions::new(&start.config);
    let renewals = permissions.clone();
    let (worker, handle) = Worker::new(
        Assignment::from(&*start.config),
        start.state.clone(),
        challenges.clone(),
        Surroundings::of(reloader, move |ca, ok| {
            ordered.acme_order(ca.unwrap_or("internal"), if ok { "ok" } else { "failed" });
        })
        .with_permission(Arc::new(move |name| {
            let permissions = renewals.clone();
            Box::pin(async move { permissions.may_renew(name).await })
        })),
    );
    let working = tokio::spawn(worker.run(stop.clone()));

    let on_demand = on_demand::Surroundings {
        state: start.state.clone(),
        reloader: reloader.clone(),
        worker: handle.clone(),
        permissions,
        metrics: metrics.clone(),
        runtime: tokio::runtime::Handle::current(),
    };
    let ordering = Ordering {
        challenges,
        worker: handle,
        on_demand: OnDemand::new(&start.config, on_demand),
    };
    let live = live(start, ordering, metrics, &stop)?;
    let config = live.config.clone();
    let serving = tokio::spawn(live.run(candidates, stop.clone()));

    signals.wait_for_stop().await;
    let grace_period = config.load().server.grace_period;
    tracing::info!(?grace_period, "draining");
    // With nobody to answer challenges an order comes to nothing: the next start resumes it.
    stop.cancel();
    // It panicked if it cannot be joined, and said so; then there is nothing left to drain.
    if let Ok(mut live) = serving.await {
        tokio::select! {
            () = live.listeners.drain(grace_period) => {}
            () = signals.wait_for_stop() => tracing::warn!("told to stop again: not draining any longer"),
        }
    }
    let _ = tokio::time::timeout(WORKER_STOP, working).await;
    Ok(())
}

/// How long the worker may take to write down that it was stopped.
const WORKER_STOP: std::time::Duration = std::time::Duration::from_secs(3);

/// What the rest knows of the worker.
struct Ordering {
    challenges: Challenges,
    worker: WorkerHandle,
    on_demand: OnDemand,
}

/// The server, serving.
fn live(
    start: Start,
    Ordering {
        challenges,
        worker,
        on_demand,
    }: Ordering,
    metrics: Arc<Metrics>,
    stop: &CancellationToken,
) -> Result<Live, AppError> {
    let Start {
        config,
        bound,
        trust,
        ..
    } = start;
    let reloader = start.rescan.reloader;
    let checks = HealthChecks::default();
    let routing = Routing::new(&config, &trust.upstreams, &checks);
    let routing = Arc::new(ArcSwap::from_pointee(routing));
    let https_port = Arc::new(AtomicU16::new(
        bound.https_port().unwrap_or(DEFAULT_HTTPS_PORT),
    ));
    let own = OwnConnections::default();
    let proxy = Proxy::new(
        routing.clone(),
        challenges.clone(),
        metrics.clone(),
        https_port.clone(),
    );
    let threads = worker_threads(config.server.threads);
    let certificates = tls::Certificates::new(reloader.table().clone(), challenges);
    let mut listeners = Listeners::new(Parts {
        own: own.clone(),
        workers: Workers::start(threads, &proxy)?,
        tls: tls::acceptor(certificates.or(&on_demand), trust.sessions.clone())?,
        table: reloader.table().clone(),
        on_demand: on_demand.clone(),
        metrics: metrics.clone(),
    });
    banner::print(&config, &bound);
    for socket in bound.sockets {
        listeners.serve(socket)?;
    }
    let watching = Watching::start(&config, &reloader, own, listeners.https_addresses(), stop)?;
    let admin_listen = config.server.admin_listen.clone();
    let config = Arc::new(ArcSwap::new(config));
    let mut admin = AdminServer::new(Api {
        config: config.clone(),
        config_watch: start.rescan.config,
        reloader: reloader.clone(),
        tls_files: trust.files.clone(),
        worker: worker.clone(),
        on_demand: on_demand.clone(),
        proof: watching.proof.clone(),
        attention: watching.attention.clone(),
        metrics: metrics.clone(),
        routing: routing.clone(),
        started: Instant::now(),
    });
    admin.replace(bound.admin, &admin_listen);
    Ok(Live {
        config,
        listeners,
        admin,
        routing,
        checks,
        https_port,
        state: start.state,
        reloader,
        trust,
        watching,
        worker,
        on_demand,
        metrics,
        log: start.log,
    })
}

fn sources(config: &Config, state: &StateDir) -> Sources {
    let pairs = config.certificates.files.iter();
    let on_demand = config.acme.on_demand.as_ref();
    Sources {
        pairs: pairs
            .map(|pair| PairFiles {
                certificate: pair.certificate.clone(),
                private_key: pair.private_key.clone(),
                password_file: pair.password_file.clone(),
            })
            .collect(),
        folders: config.certificates.directories.clone(),
        generations: Some(state.certificates_dir()),
        on_demand: on_demand.map(|on_demand| OnDemandDirectory {
            root: state.on_demand_dir(),
            max_loaded: on_demand.max_loaded,
        }),
        default_name: config.certificates.default.clone(),
        takeover: takeover_hosts(config).collect(),
        poll_interval: config.certificates.poll_interval,
        watch: config.certificates.watch,
    }
}

impl Bound {
    fn bind(config: &Config) -> Result<Bound, AppError> {
        let sockets: Result<Vec<Socket>, BindError> = plan::endpoints(config)
            .into_iter()
            .map(Socket::bind)
            .collect();
        Ok(Bound {
            sockets: sockets?,
            admin: AdminListener::bind(&config.server.admin_listen)?,
        })
    }

    /// Where the first listener of a protocol really is.
    fn first(&self, protocol: Protocol) -> Option<SocketAddr> {
        let mut sockets = self.sockets.iter();
        let socket = sockets.find(|socket| socket.endpoint.protocol == protocol)?;
        socket.listener.local_addr().ok()
    }

    fn https_port(&self) -> Option<u16> {
        Some(self.first(Protocol::Https)?.port())
    }
}

/// Everything that is looked at again when somebody asks.
#[derive(Clone)]
struct Rescan {
    config: Option<ConfigWatch>,
    reloader: Reloader,
    tls_files: TlsFiles,
}

impl Rescan {
    async fn run(self) {
        let (outcome, mut changes) = match &self.config {
            Some(watch) => watch.reload().await,
            None => (Outcome::Unchanged, Vec::new()),
        };
        self.tls_files.rescan().await;
        access_log::reopen();
        changes.extend(self.reloader.rescan().await.unwrap_or_default());
        let configuration = match outcome {
            Outcome::Unchanged => "unchanged",
            Outcome::Reloaded => "reloaded",
            Outcome::Failed(_) => "failed",
        };
        tracing::info!(
            configuration,
            changes = changes.len(),
            "rescanned on SIGHUP"
        );
    }
}

/// The signals that the process listens to.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    rescan: Rescan,
}

impl Signals {
    fn new(rescan: Rescan) -> std::io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            rescan,
        })
    }

    /// Waits for SIGTERM or SIGINT; each SIGHUP until then rescans.
    async fn wait_for_stop(&mut self) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = self.hangup.recv() => drop(tokio::spawn(self.rescan.clone().run())),
            }
        }
    }
}

/// One more than is needed, should one task keep a thread for a while.
const BACKGROUND_THREADS: usize = 2;

fn worker_threads(configured: usize) -> usize {
    match configured {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    }
}

/// Every connection takes a descriptor or two; the soft limit is 1,024 for no good reason.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}
