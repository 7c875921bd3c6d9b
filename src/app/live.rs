//! The server that runs, and how another configuration takes over: whole, or not at all.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::admin_server::AdminServer;
use super::hand_over::{HandOverError, Program, Successor};
use super::listeners::Listeners;
use super::plan::Plan;
use super::service_manager::ServiceManager;
use super::tls_files::Trust;
use super::watching::Watching;
use super::{sources, status};
use crate::acme::challenges::Challenges;
use crate::acme::subject::Assignment;
use crate::acme::worker::WorkerHandle;
use crate::admin::api::UpgradeRequest;
use crate::admin::metrics::Metrics;
use crate::admin::server::AdminListener;
use crate::certificate::reloader::{Change, Reloader};
use crate::config::watch::{Candidate, Refusal};
use crate::config::{Config, LogLevel};
use crate::listener::passed::Passed;
use crate::on_demand::OnDemand;
use crate::proxy::{HealthChecks, Routing, access_log};
use crate::store::StateDir;

/// The port of redirects where nothing is served over TLS.
pub(super) const DEFAULT_HTTPS_PORT: u16 = 443;

/// How often is looked whether handshakes still wait for a certificate on demand.
const ON_DEMAND_POLL: Duration = Duration::from_millis(50);

/// How much longer than such a handshake may wait the old process stays whole for it.
const ON_DEMAND_SPARE: Duration = Duration::from_secs(2);

/// How the log level of the running process is changed.
pub struct LogControl {
    pub set: Box<dyn Fn(LogLevel) + Send + Sync>,
    /// What was said when the process was started, and so wins over the configuration.
    pub fixed_by: Option<&'static str>,
    /// Writes what is left of it when this is dropped.
    pub access_log: access_log::Control,
}

/// Everything that a configuration changes.
pub(super) struct Live {
    /// The running configuration. Written here only.
    pub config: Arc<ArcSwap<Config>>,
    pub listeners: Listeners,
    pub admin: AdminServer,
    pub routing: Arc<ArcSwap<Routing>>,
    pub checks: HealthChecks,
    pub https_port: Arc<AtomicU16>,
    pub state: StateDir,
    pub reloader: Reloader,
    pub trust: Trust,
    pub watching: Watching,
    pub worker: WorkerHandle,
    pub on_demand: OnDemand,
    pub metrics: Arc<Metrics>,
    pub log: LogControl,
    pub succession: Succession,
}

/// What is needed for another process to take over.
pub(super) struct Succession {
    pub program: Program,
    pub service_manager: ServiceManager,
    pub challenges: Challenges,
    /// Cancelled once one has.
    pub done: CancellationToken,
}

impl Succession {
    pub fn new(
        program: Program,
        service_manager: ServiceManager,
        challenges: Challenges,
    ) -> Succession {
        Succession {
            program,
            service_manager,
            challenges,
            done: CancellationToken::new(),
        }
    }
}

impl Live {
    /// Takes over one configuration after another, until `stop`, or until another process has taken
    /// over.
    pub async fn run(
        mut self,
        mut candidates: mpsc::Receiver<Candidate>,
        mut upgrades: mpsc::Receiver<UpgradeRequest>,
        stop: CancellationToken,
    ) -> Live {
        let done = self.succession.done.clone();
        // What is cut short by the end of the process needs no end of its own.
        stop.run_until_cancelled(async {
            // Whoever asked may have gone, so that nobody takes the answers.
            while !done.is_cancelled() {
                tokio::select! {
                    Some(Candidate { config, answer }) = candidates.recv() => {
                        let _ = answer.send(self.take_over(config).await);
                    }
                    Some(UpgradeRequest { answer }) = upgrades.recv() => {
                        let _ = answer.send(self.upgrade().await);
                    }
                    else => break,
                }
            }
            std::future::pending::<()>().await;
        })
        .await;
        self
    }

    /// Has a new process of the program take over. Its id, or why it has not, and this one goes on.
    async fn upgrade(&mut self) -> Result<u32, String> {
        let result = self.hand_over().await;
        match &result {
            Ok(pid) => tracing::info!(pid, "a new process has taken over"),
            Err(error) => tracing::error!(%error, "no new process takes over: this one goes on"),
        }
        result.map_err(|error| error.to_string())
    }

    async fn hand_over(&mut self) -> Result<u32, HandOverError> {
        let mut sockets = self.listeners.sockets()?;
        sockets.extend(self.admin.socket()?);
        let mut successor = Successor::start(&self.succession.program, &sockets)?;
        drop(sockets);
        let pid = successor.pid();
        tracing::info!(pid, "a new process loads, to take over");
        successor.ready().await?;
        // It answers for our orders: a CA that looks from here on may find either.
        let telling = successor.tell(&self.succession.challenges);
        self.succession.challenges.known_everywhere().await;
        self.listeners.pause_all().await;
        self.admin.pause();
        if let Err(error) = successor.take_over().await {
            drop(successor);
            self.listeners.resume_all();
            self.admin.resume();
            return Err(error);
        }
        // Before the new one says anything: the service manager listens to the main process alone.
        self.succession.service_manager.main_process(pid);
        successor.confirm().await;
        self.nobody_waits_on_demand().await;
        if let Some(telling) = telling {
            telling.stop().await;
        }
        self.listeners.leave();
        self.admin.leave();
        self.succession.done.cancel();
        Ok(pid)
    }

    /// Until no handshake waits for an order: they are on our connections, and nobody else can finish
    /// them.
    async fn nobody_waits_on_demand(&self) {
        let over = async {
            while self.on_demand.is_fetching() {
                tokio::time::sleep(ON_DEMAND_POLL).await;
            }
        };
        let limit = self.on_demand.wait().unwrap_or_default() + ON_DEMAND_SPARE;
        let _ = tokio::time::timeout(limit, over).await;
    }

    /// Up to the last bind everything can be undone, and after it nothing can fail.
    async fn take_over(&mut self, new: Config) -> Result<Vec<Change>, Refusal> {
        let old = self.config.load_full();
        let plan = Plan::new(&old, &new);
        if !plan.immutable.is_empty() {
            return Err(Refusal {
                message: plan.immutable.join("\n"),
                may_pass: false,
            });
        }
        let new = Arc::new(new);
        let admin = match plan.admin {
            true => {
                let listen = &new.server.admin_listen;
                Some(AdminListener::bind(listen, &mut Passed::default()).map_err(refusal)?)
            }
            false => None,
        };
        let bound = self.listeners.bind(&plan, &new.server.socket_file).await;
        let bound = bound.map_err(refusal)?;

        let changes = self.reloader.reconfigure(sources(&new, &self.state)).await;
        let changes = changes.unwrap_or_default();
        if let Err(error) = self.trust.reconfigure(&new).await {
            tracing::error!(%error, "the session tickets' keys stay as they were");
        }
        self.change_routing(&new, &old).await;
        self.watching.reconfigure(&new);
        self.worker.reassign(Assignment::from(&*new)).await;
        self.on_demand.reconfigure(&new);
        self.listeners.admission().reconfigure(&new.server);
        self.config.store(new.clone());
        self.set_log_level(&old, &new);
        self.log.access_log.configure(&new);
        let grace_period = new.server.grace_period;
        if let Err(error) = self.listeners.change(bound, &plan, grace_period).await {
            tracing::error!(%error, "a listener cannot be served");
        }
        let port = self.listeners.https_port().unwrap_or(DEFAULT_HTTPS_PORT);
        self.https_port.store(port, Ordering::Relaxed);
        if let Some(listener) = admin {
            self.admin.replace(listener, &new.server.admin_listen);
        }
        let certificates = changes.len();
        self.succession.service_manager.status(&status(&new));
        off_the_request_path(move || log_change(&old, &new, &plan, certificates));
        Ok(changes)
    }

    /// With very many sites this takes a while: requests need not wait for it.
    async fn change_routing(&self, new: &Arc<Config>, old: &Arc<Config>) {
        let (new, old, current) = (new.clone(), old.clone(), self.routing.load_full());
        let (trusts, metrics) = (self.trust.upstreams.clone(), self.metrics.clone());
        let (routing, checks) = (self.routing.clone(), self.checks.clone());
        let built = tokio::task::spawn_blocking(move || {
            let next = Arc::new(Routing::following(&new, &current, &old, &trusts, &checks));
            // Freed here, off the request path: that takes a while as well.
            drop(current);
            drop(routing.swap(next.clone()));
            next.register(&metrics);
        });
        if let Err(error) = built.await {
            tracing::error!(%error, "the sites cannot be prepared and stay as they were");
        }
    }

    fn set_log_level(&self, old: &Config, new: &Config) {
        let level = new.server.log_level;
        if old.server.log_level == level {
            return;
        }
        match self.log.fixed_by {
            Some(by) => tracing::info!("log_level is not used: {by} was given at the start"),
            None => (self.log.set)(level),
        }
    }
}

/// To count or to free very many sites takes a while, too.
fn off_the_request_path(work: impl FnOnce() + Send + 'static) {
    drop(tokio::task::spawn_blocking(work));
}

fn refusal(error: impl std::fmt::Display) -> Refusal {
    Refusal {
        message: error.to_string(),
        may_pass: true,
    }
}

fn log_change(old: &Config, new: &Config, plan: &Plan, certificates: usize) {
    let before: HashMap<_, _> = sites(old).collect();
    let after: HashSet<_> = sites(new).map(|(host, _)| host).collect();
    let count = |wanted: fn(Option<bool>) -> bool| {
        sites(new)
            .filter(|(host, site)| wanted(before.get(host).map(|old| old == site)))
            .count()
    };
    let addresses = |endpoints: &[super::plan::Endpoint]| {
        let texts: Vec<String> = endpoints.iter().map(|e| e.address.to_string()).collect();
        texts.join(" ")
    };
    tracing::info!(
        sites = new.sites.len(),
        added = count(|same| same.is_none()),
        changed = count(|same| same == Some(false)),
        removed = before.keys().filter(|host| !after.contains(*host)).count(),
        bound = addresses(&plan.bind),
        dropped = addresses(&plan.drop),
        certificates,
        "configuration reloaded"
    );
}

/// By their first host, which is what logs and metrics call them.
fn sites(
    config: &Config,
) -> impl Iterator<Item = (&crate::certificate::name::Name, &crate::config::Site)> {
    let sites = config.sites.iter();
    sites.filter_map(|site| Some((site.hosts.first()?, site)))
}
