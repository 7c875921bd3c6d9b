//! From a [`Config`] to a running server: all wiring on one page. Nobody imports this but the
//! command line.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU16;
use std::time::Instant;

use arc_swap::ArcSwap;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::acme::challenges::Challenges;
use crate::acme::subject::{Assignment, takeover_hosts};
use crate::acme::surroundings::Surroundings;
use crate::acme::worker::{Worker, WorkerHandle};
use crate::admin::api::{Api, UpgradeRequest};
use crate::admin::metrics::Metrics;
use crate::admin::server::{AdminError, AdminListener};
use crate::certificate::on_demand::OnDemandDirectory;
use crate::certificate::reloader::{PairFiles, Reloader, Sources};
use crate::certificate::trust::TlsFiles;
use crate::config::watch::{Candidate, ConfigWatch, Outcome};
use crate::config::{Config, Footprint, ListenAddress};
use crate::listener::accept::Protocol;
use crate::listener::admission::Admission;
use crate::listener::passed::{Passed, PassedError};
use crate::listener::self_check::OwnConnections;
use crate::listener::sockets::BindError;
use crate::listener::tls;
use crate::listener::workers::Workers;
use crate::on_demand::{self, OnDemand, Permissions};
use crate::proxy::{HealthChecks, Proxy, Routing, access_log};
use crate::store::{StateDir, StoreError};
use admin_server::AdminServer;
use hand_over::{Program, Turn};
use listeners::{Bound, Ending, Listeners, Parts};
use live::{DEFAULT_HTTPS_PORT, Live, Succession};
use service_manager::ServiceManager;
use tls_files::Trust;
use watching::Watching;

mod admin_server;
mod banner;
mod hand_over;
mod listeners;
mod live;
mod plan;
mod reaper;
mod service_manager;
pub mod tls_files;
mod watching;

pub use hand_over::{HandOverError, Predecessor};
pub use live::LogControl;

/// What ends a start.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error(transparent)]
    Passed(#[from] PassedError),
    #[error("cannot take over from the running process: {0}")]
    HandOver(#[from] HandOverError),
    #[error(transparent)]
    Admin(#[from] AdminError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] boring::error::ErrorStack),
    #[error("cannot start: {0}")]
    Io(#[from] std::io::Error),
}

/// Sockets that listen, before anything is served.
struct Sockets {
    bound: Vec<Bound>,
    admin: Option<AdminListener>,
    passed: Passed,
}

/// Serves until SIGTERM or SIGINT, or until another process has taken over, then drains. `file` is
/// what the configuration was read from, where that is a file: its changes are taken over. With a
/// predecessor it takes over what that one listens on, as soon as it could serve.
pub fn run(
    config: Config,
    file: Option<Footprint>,
    log: LogControl,
    mut predecessor: Option<Predecessor>,
) -> Result<(), AppError> {
    let program = Program::current()?;
    let passed = match &mut predecessor {
        Some(predecessor) => Passed::from_predecessor(predecessor.take_sockets())?,
        None => Passed::from_service_manager()?,
    };
    let descriptors = raise_file_limit();
    log.access_log.configure(&config);
    let config = Arc::new(config);
    let sockets = Sockets::bind(&config, passed)?;
    // What is there is served all the same: the worker says why nothing is ordered.
    let state = StateDir::open_as_it_is(&config.server.state_dir)?;
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
    let service_manager = ServiceManager::from_environment();
    let rescan = Rescan {
        service_manager: service_manager.clone(),
        config: config_watch,
        reloader: reloader.clone(),
        tls_files: trust.files.clone(),
    };
    let start = Start {
        config,
        sockets,
        state,
        trust,
        rescan: rescan.clone(),
        log,
        program,
        descriptors,
    };
    let result = runtime.block_on(serve(start, candidates, predecessor));
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
    sockets: Sockets,
    state: StateDir,
    trust: Trust,
    rescan: Rescan,
    log: LogControl,
    program: Program,
    /// How many this process may have open.
    descriptors: u64,
}

async fn serve(
    start: Start,
    candidates: mpsc::Receiver<Candidate>,
    mut predecessor: Option<Predecessor>,
) -> Result<(), AppError> {
    let (upgrade, upgrades) = mpsc::channel(1);
    tokio::spawn(reaper::run());
    let mut signals = Signals::new(start.rescan.clone(), upgrade.clone())?;
    let stop = CancellationToken::new();
    let metrics = Arc::new(Metrics::new());
    let challenges = Challenges::default();
    let takes_over = predecessor.is_some();
    if let Some(predecessor) = &mut predecessor {
        predecessor.answer_for_it(&challenges)?;
    }
    let reloader = &start.rescan.reloader;
    let permissions = Permissions::new(&start.config);
    let (worker, handle) = worker(&start, &challenges, &metrics, &permissions);
    let working = tokio::spawn(worker.taking_over(takes_over).run(stop.clone()));

    let on_demand = on_demand::Surroundings {
        state: start.state.clone(),
        reloader: reloader.clone(),
        worker: handle.clone(),
        permissions,
        metrics: metrics.clone(),
        runtime: tokio::runtime::Handle::current(),
    };
    let Some(turn) = its_turn(predecessor, reloader, &mut signals).await? else {
        return Ok(());
    };
    let service_manager = start.rescan.service_manager.clone();
    let ordering = Ordering {
        upgrade,
        challenges,
        worker: handle,
        on_demand: OnDemand::new(&start.config, on_demand),
    };
    let live = live(start, ordering, metrics, &stop)?;
    if let Some(turn) = turn {
        turn.serving().await;
    }
    tokio::spawn(announce(service_manager.clone(), &live));
    let (config, handed_over) = (live.config.clone(), live.succession.done.clone());
    let serving = tokio::spawn(live.run(candidates, upgrades, stop.clone()));

    let ending = tokio::select! {
        () = signals.wait_for_stop() => Ending::Closed,
        () = handed_over.cancelled() => Ending::HandedOver,
    };
    let grace_period = config.load().server.grace_period;
    tracing::info!(?grace_period, "draining");
    if ending == Ending::Closed {
        service_manager.stopping(&format!("Draining, for {grace_period:?} at most"));
    }
    // With nobody to answer challenges an order comes to nothing: the next start resumes it, or the
    // process that has taken over, which still answers for it.
    stop.cancel();
    // It panicked if it cannot be joined, and said so; then there is nothing left to drain.
    if let Ok(mut live) = serving.await {
        tokio::select! {
            () = live.listeners.drain(grace_period, ending) => {}
            () = signals.wait_for_stop() => tracing::warn!("told to stop again: not draining any longer"),
        }
        live.admin.finish().await;
    }
    let _ = tokio::time::timeout(WORKER_STOP, working).await;
    Ok(())
}

/// Whoever orders, and the way to it.
fn worker(
    start: &Start,
    challenges: &Challenges,
    metrics: &Arc<Metrics>,
    permissions: &Permissions,
) -> (Worker, WorkerHandle) {
    let (ordered, renewals) = (metrics.clone(), permissions.clone());
    Worker::new(
        Assignment::from(&*start.config),
        start.state.clone(),
        challenges.clone(),
        Surroundings::of(&start.rescan.reloader, move |ca, ok| {
            ordered.acme_order(ca.unwrap_or("internal"), if ok { "ok" } else { "failed" });
        })
        .with_permission(Arc::new(move |name| {
            let permissions = renewals.clone();
            Box::pin(async move { permissions.may_renew(name).await })
        })),
    )
}

/// How long the worker may take to write down that it was stopped.
const WORKER_STOP: std::time::Duration = std::time::Duration::from_secs(3);

/// Waits until the process that this one takes over from has made way. `None`: told to stop before
/// that. Everything that is on disk is loaded by then, so that nobody waits longer than for a socket
/// to change hands.
async fn its_turn(
    predecessor: Option<Predecessor>,
    reloader: &Reloader,
    signals: &mut Signals,
) -> Result<Option<Option<Turn>>, AppError> {
    let Some(predecessor) = predecessor else {
        return Ok(Some(None));
    };
    let turn = async {
        reloader.table().loaded().await;
        predecessor.turn().await
    };
    tokio::select! {
        turn = turn => Ok(Some(Some(turn?))),
        () = signals.wait_for_stop() => Ok(None),
    }
}

/// Tells the service manager once the first load is served, and that there is life from then on.
fn announce(service_manager: ServiceManager, live: &Live) -> impl Future<Output = ()> + use<> {
    let (table, config) = (live.reloader.table().clone(), live.config.clone());
    let workers = live.listeners.workers();
    async move {
        table.loaded().await;
        service_manager.ready(&status(&config.load()));
        service_manager.watch(workers).await;
    }
}

/// What a service manager shows of us.
fn status(config: &Config) -> String {
    format!("Serving {} sites", config.sites.len())
}

/// What the rest knows of the worker.
struct Ordering {
    upgrade: mpsc::Sender<UpgradeRequest>,
    challenges: Challenges,
    worker: WorkerHandle,
    on_demand: OnDemand,
}

/// The server, serving.
fn live(
    start: Start,
    Ordering {
        upgrade,
        challenges,
        worker,
        on_demand,
    }: Ordering,
    metrics: Arc<Metrics>,
    stop: &CancellationToken,
) -> Result<Live, AppError> {
    let Start {
        config,
        sockets,
        trust,
        ..
    } = start;
    let reloader = start.rescan.reloader;
    let checks = HealthChecks::default();
    let routing = Routing::new(&config, &trust.upstreams, &checks);
    let routing = Arc::new(ArcSwap::from_pointee(routing));
    let https_port = Arc::new(AtomicU16::new(
        sockets.https_port().unwrap_or(DEFAULT_HTTPS_PORT),
    ));
    let own = OwnConnections::default();
    let proxy = Proxy::new(
        routing.clone(),
        challenges.clone(),
        metrics.clone(),
        https_port.clone(),
    );
    let certificates = tls::Certificates::new(reloader.table().clone(), challenges.clone());
    banner::print(&config, &sockets);
    let mut listeners = Listeners::new(Parts {
        passed: sockets.passed,
        own: own.clone(),
        admission: Admission::new(&config.server, start.descriptors, metrics.clone()),
        workers: Workers::start(worker_threads(config.server.threads), &proxy)?,
        tls: tls::acceptor(certificates.or(&on_demand), trust.sessions.clone())?,
        table: reloader.table().clone(),
        on_demand: on_demand.clone(),
        metrics: metrics.clone(),
    });
    for bound in sockets.bound {
        listeners.serve(bound)?;
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
        upgrade,
    });
    admin.replace(sockets.admin, &admin_listen);
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
        succession: Succession::new(start.program, start.rescan.service_manager, challenges),
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

impl Sockets {
    fn bind(config: &Config, mut passed: Passed) -> Result<Sockets, AppError> {
        let (server, endpoints) = (&config.server, plan::endpoints(config));
        let addresses = endpoints.iter().map(|endpoint| endpoint.address.clone());
        let wanted: Vec<_> = addresses.chain(server.admin_listen.address()).collect();
        let bound: Result<Vec<Bound>, BindError> = endpoints
            .into_iter()
            .map(|endpoint| Bound::bind(endpoint, &server.socket_file, &mut passed))
            .collect();
        let bound = bound?;
        let admin = AdminListener::bind(&server.admin_listen, &mut passed)?;
        passed.settle(&wanted)?;
        Ok(Sockets {
            bound,
            admin,
            passed,
        })
    }

    /// Where the first listener of a protocol really is, of the server or of a site with addresses of
    /// its own.
    fn first(&self, protocol: Protocol, own: &[ListenAddress]) -> Option<SocketAddr> {
        let bound = self.bound.iter();
        let mut spoken = bound
            .map(|bound| (&bound.endpoint, bound))
            .filter(|(it, _)| {
                let is_meant = match own.is_empty() {
                    true => !it.own,
                    false => own.contains(&it.address),
                };
                is_meant && it.protocol == protocol
            });
        spoken.find_map(|(_, bound)| match bound.socket.address() {
            Ok(ListenAddress::Tcp(address)) => Some(address),
            _ => None,
        })
    }

    fn https_port(&self) -> Option<u16> {
        Some(self.first(Protocol::Https, &[])?.port())
    }
}

/// Everything that is looked at again when somebody asks.
#[derive(Clone)]
struct Rescan {
    service_manager: ServiceManager,
    config: Option<ConfigWatch>,
    reloader: Reloader,
    tls_files: TlsFiles,
}

impl Rescan {
    async fn run(self) {
        self.service_manager.reloading();
        let (outcome, mut changes) = match &self.config {
            Some(watch) => watch.reload().await,
            None => (Outcome::Unchanged, Vec::new()),
        };
        self.tls_files.rescan().await;
        access_log::reopen();
        changes.extend(self.reloader.rescan().await.unwrap_or_default());
        let configuration = match &outcome {
            Outcome::Unchanged => "unchanged",
            Outcome::Reloaded => "reloaded",
            Outcome::Failed(_) => "failed",
        };
        tracing::info!(
            configuration,
            changes = changes.len(),
            "rescanned on SIGHUP"
        );
        if let Outcome::Failed(_) = outcome {
            let status = "Serving; the configuration on disk cannot run, the one before it does";
            self.service_manager.status(status);
        }
        self.service_manager.reloaded();
    }
}

/// The signals that the process listens to.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    quit: Signal,
    rescan: Rescan,
    upgrade: mpsc::Sender<UpgradeRequest>,
}

impl Signals {
    fn new(rescan: Rescan, upgrade: mpsc::Sender<UpgradeRequest>) -> std::io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            quit: signal(SignalKind::quit())?,
            rescan,
            upgrade,
        })
    }

    /// Waits for SIGTERM or SIGINT; each SIGHUP until then rescans, each SIGQUIT starts a new process
    /// that takes over.
    async fn wait_for_stop(&mut self) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = self.hangup.recv() => drop(tokio::spawn(self.rescan.clone().run())),
                _ = self.quit.recv() => {
                    // What comes of it is in the log. One that waits already is enough.
                    let (answer, _) = oneshot::channel();
                    let _ = self.upgrade.try_send(UpgradeRequest { answer });
                }
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
/// How many there may be then.
fn raise_file_limit() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    let limit = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(error) => {
            tracing::warn!(%error, "cannot raise the limit of open files");
            limit.current
        }
    };
    // Without a limit there is none.
    limit.unwrap_or(u64::MAX)
}
