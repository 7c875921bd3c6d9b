//! From a [`Config`] to a running server: all wiring on one page. Nobody imports this but the
//! command line.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU16;
use std::time::Instant;

use arc_swap::ArcSwap;
use pingora::apps::HttpServerApp;
use pingora::proxy::HttpProxy;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::acme::challenges::Challenges;
use crate::acme::subject::{takeover_hosts, tls_hosts};
use crate::acme::worker::{Coverage, Surroundings, Worker, WorkerHandle};
use crate::admin::api::Api;
use crate::admin::metrics::Metrics;
use crate::admin::server::{AdminError, AdminListener};
use crate::certificate::attention::{Guard, SharedAttention};
use crate::certificate::name::Name;
use crate::certificate::proof::SharedProof;
use crate::certificate::reloader::{PairFiles, Reloader, Sources};
use crate::certificate::table::TableReader;
use crate::config::{Config, TlsMode};
use crate::listener::accept::{Protocol, Service, accept_loop};
use crate::listener::self_check::{Looker, OwnConnections, SelfCheck};
use crate::listener::sockets::{self, BindError};
use crate::listener::tls;
use crate::proxy::{Proxy, Routing, http_proxy};
use crate::store::{StateDir, StoreError};

mod banner;

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
    http: Vec<std::net::TcpListener>,
    https: Vec<std::net::TcpListener>,
    admin: Option<AdminListener>,
}

/// Serves until SIGTERM or SIGINT, then drains.
pub fn run(config: Config) -> Result<(), AppError> {
    raise_file_limit();
    let config = Arc::new(config);
    let bound = Bound::bind(&config)?;
    let state = StateDir::open(&config.server.state_dir)?;
    let threads = worker_threads(config.server.threads);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_name("worker")
        .enable_all()
        .build()?;
    let (reloader, reloading) = Reloader::start(sources(&config, &state))?;
    let result = runtime.block_on(serve(config, bound, state, reloader.clone(), threads));
    reloader.stop();
    // It panicked if it cannot be joined, and said so.
    let _ = reloading.join();
    runtime.shutdown_background();
    result
}

async fn serve(
    config: Arc<Config>,
    bound: Bound,
    state: StateDir,
    reloader: Reloader,
    threads: usize,
) -> Result<(), AppError> {
    let mut signals = Signals::new()?;
    let (stop, shutdown) = watch::channel(false);
    let metrics = Arc::new(Metrics::new());
    let challenges = Challenges::default();
    let (worker, handle) = worker(&config, state, &challenges, &reloader, &metrics);
    let stop_working = CancellationToken::new();
    let working = tokio::spawn(worker.run(stop_working.clone()));

    let routing = Arc::new(ArcSwap::from_pointee(Routing::new(&config)));
    let https_port = Arc::new(AtomicU16::new(bound.https_port().unwrap_or(443)));
    let proxy = Proxy::new(
        routing.clone(),
        challenges.clone(),
        metrics.clone(),
        https_port,
    );
    let service = Arc::new(Service {
        app: Arc::new(http_proxy(proxy, threads)),
        tls: tls::acceptor(reloader.table().clone(), challenges)?,
        table: reloader.table().clone(),
        metrics: metrics.clone(),
        own: OwnConnections::default(),
        shutdown,
        connections: TaskTracker::new(),
    });
    banner::print(&config, &bound);
    let proof = SharedProof::default();
    let looker = Looker::new(
        reloader.table().clone(),
        bound.https_addresses(),
        service.own.clone(),
        proof.clone(),
    )?;
    let swaps = reloader.swaps();
    tokio::spawn(SelfCheck { swaps, looker }.run(stop_working.clone()));
    let attention = SharedAttention::default();
    let guard = guard(&config, &reloader, &attention);
    tokio::spawn(guard.run(stop_working.clone()));
    let api = Api {
        config: config.clone(),
        reloader: reloader.clone(),
        worker: handle,
        metrics,
        routing,
        proof,
        attention,
        started: Instant::now(),
    };
    start_listeners(bound, &service, api)?;

    signals.wait_for_stop(&reloader).await;
    tracing::info!(grace_period = ?config.server.grace_period, "draining");
    stop.send_replace(true);
    // With nobody to answer challenges an order comes to nothing: the next start resumes it.
    stop_working.cancel();
    let drained = drain(&service);
    tokio::select! {
        left = tokio::time::timeout(config.server.grace_period, drained) => match left {
            Ok(()) => tracing::info!("drained"),
            Err(_) => tracing::warn!(connections = service.connections.len(), "cut off at the end of the grace period"),
        },
        () = signals.wait_for_stop(&reloader) => tracing::warn!("told to stop again: not draining any longer"),
    }
    let _ = tokio::time::timeout(WORKER_STOP, working).await;
    Ok(())
}

/// How long the worker may take to write down that it was stopped.
const WORKER_STOP: std::time::Duration = std::time::Duration::from_secs(3);

async fn drain(service: &Service<HttpProxy<Proxy>>) {
    service.connections.close();
    // Connections that wait for their next request.
    service.app.http_cleanup().await;
    service.connections.wait().await;
}

fn start_listeners(
    bound: Bound,
    service: &Arc<Service<HttpProxy<Proxy>>>,
    api: Api,
) -> Result<(), AppError> {
    let plain = bound
        .http
        .into_iter()
        .map(|listener| (listener, Protocol::Http));
    let tls = bound
        .https
        .into_iter()
        .map(|listener| (listener, Protocol::Https));
    for (listener, protocol) in plain.chain(tls) {
        let listener = TcpListener::from_std(listener)?;
        tokio::spawn(accept_loop(listener, protocol, service.clone()));
    }
    if let Some(admin) = bound.admin {
        let api = Arc::new(api);
        tokio::spawn(async move {
            if let Err(error) = admin.serve(api).await {
                tracing::error!(%error, "the admin API cannot be served");
            }
        });
    }
    Ok(())
}

fn guard(config: &Config, reloader: &Reloader, attention: &SharedAttention) -> Guard {
    Guard {
        reloader: reloader.clone(),
        served: tls_hosts(config).collect(),
        takeover: takeover_hosts(config).collect(),
        folders: config.certificates.directories.clone(),
        attention: attention.clone(),
    }
}

fn sources(config: &Config, state: &StateDir) -> Sources {
    let pairs = config.certificates.files.iter();
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
        default_name: config.certificates.default.clone(),
        takeover: takeover_hosts(config).collect(),
        poll_interval: config.certificates.poll_interval,
        watch: config.certificates.watch,
    }
}

/// The worker writes files; the live table it sees only through the question what covers a name,
/// and the reloader only through the hint that there is something to look at.
fn worker(
    config: &Arc<Config>,
    state: StateDir,
    challenges: &Challenges,
    reloader: &Reloader,
    metrics: &Arc<Metrics>,
) -> (Worker, WorkerHandle) {
    let (table, hint) = (reloader.table().clone(), reloader.clone());
    let metrics = metrics.clone();
    let surroundings = Surroundings {
        coverage: Arc::new(move |name: &Name| coverage(&table, name)),
        reload_hint: Arc::new(move |directory| hint.hint(directory)),
        ordered: Arc::new(move |ca, ok| {
            metrics.acme_order(ca.unwrap_or("internal"), if ok { "ok" } else { "failed" });
        }),
    };
    Worker::new(config.clone(), state, challenges.clone(), surroundings)
}

fn coverage(table: &TableReader, name: &Name) -> Coverage {
    let live = table.load();
    let choices = || live.covering(name);
    Coverage {
        loaded: table.is_loaded(),
        file_valid_until: choices().filter_map(|it| it.file_valid_until).max(),
        file_due_at: choices().filter_map(|it| it.file_due_at).max(),
        file_known: choices().any(|it| it.file_known),
    }
}

impl Bound {
    fn bind(config: &Config) -> Result<Bound, AppError> {
        let bind_all = |addresses: &[SocketAddr]| {
            addresses
                .iter()
                .map(|address| sockets::bind(*address))
                .collect::<Result<Vec<_>, _>>()
        };
        let wants_tls = config.sites.iter().any(|site| site.tls != TlsMode::Off);
        Ok(Bound {
            http: bind_all(&config.server.http_listen)?,
            https: if wants_tls {
                bind_all(&config.server.https_listen)?
            } else {
                Vec::new()
            },
            admin: AdminListener::bind(&config.server.admin_listen)?,
        })
    }

    fn https_addresses(&self) -> Arc<ArcSwap<Vec<SocketAddr>>> {
        let listeners = self.https.iter();
        let addresses = listeners.filter_map(|listener| listener.local_addr().ok());
        Arc::new(ArcSwap::from_pointee(addresses.collect()))
    }

    fn https_port(&self) -> Option<u16> {
        Some(self.https.first()?.local_addr().ok()?.port())
    }
}

/// The signals that the process listens to.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for SIGTERM or SIGINT; each SIGHUP until then rescans.
    async fn wait_for_stop(&mut self, reloader: &Reloader) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = self.hangup.recv() => {
                    let changes = reloader.rescan().await.map_or(0, |changes| changes.len());
                    tracing::info!(changes, "rescanned on SIGHUP");
                }
            }
        }
    }
}

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
