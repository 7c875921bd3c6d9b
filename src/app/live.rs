//! The server that runs, and how another configuration takes over: whole, or not at all.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use arc_swap::ArcSwap;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::listeners::Listeners;
use super::plan::Plan;
use super::sources;
use super::tls_files::Trust;
use super::watching::Watching;
use crate::acme::subject::Assignment;
use crate::acme::worker::WorkerHandle;
use crate::admin::api::Api;
use crate::admin::metrics::Metrics;
use crate::admin::server::AdminListener;
use crate::certificate::reloader::{Change, Reloader};
use crate::config::watch::{Candidate, Refusal};
use crate::config::{AdminListen, Config, LogLevel};
use crate::on_demand::OnDemand;
use crate::proxy::{HealthChecks, Routing, access_log};
use crate::store::StateDir;

/// The port of redirects where nothing is served over TLS.
pub(super) const DEFAULT_HTTPS_PORT: u16 = 443;

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
}

impl Live {
    /// Takes over one configuration after another, until `stop`.
    pub async fn run(
        mut self,
        mut candidates: mpsc::Receiver<Candidate>,
        stop: CancellationToken,
    ) -> Live {
        // What is cut short by the end of the process needs no end of its own.
        stop.run_until_cancelled(async {
            while let Some(Candidate { config, answer }) = candidates.recv().await {
                // Whoever offered it may have gone.
                let _ = answer.send(self.take_over(config).await);
            }
            std::future::pending::<()>().await;
        })
        .await;
        self
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
            true => Some(AdminListener::bind(&new.server.admin_listen).map_err(refusal)?),
            false => None,
        };
        let bound = self.listeners.bind(&plan).await.map_err(refusal)?;

        let changes = self.reloader.reconfigure(sources(&new, &self.state)).await;
        let changes = changes.unwrap_or_default();
        if let Err(error) = self.trust.reconfigure(&new).await {
            tracing::error!(%error, "the session tickets' keys stay as they were");
        }
        self.change_routing(&new, &old).await;
        self.watching.reconfigure(&new);
        self.worker.reassign(Assignment::from(&*new)).await;
        self.on_demand.reconfigure(&new);
        self.config.store(new.clone());
        self.set_log_level(&old, &new);
        self.log.access_log.configure(&new.access_log);
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

/// The admin API's listener, if there is one.
pub(super) struct AdminServer {
    pub api: Arc<Api>,
    running: Option<CancellationToken>,
    /// The socket's file, to be removed when another takes its place.
    path: Option<PathBuf>,
}

impl AdminServer {
    pub fn new(api: Api) -> AdminServer {
        AdminServer {
            api: Arc::new(api),
            running: None,
            path: None,
        }
    }

    /// Serves on this listener and no other. Requests under way are answered.
    pub fn replace(&mut self, listener: Option<AdminListener>, listen: &AdminListen) {
        if let Some(running) = self.running.take() {
            running.cancel();
        }
        if let Some(path) = self.path.take() {
            // Whoever connects to it would only find nobody there.
            let _ = std::fs::remove_file(path);
        }
        let Some(listener) = listener else { return };
        if let AdminListen::Unix(path) = listen {
            self.path = Some(path.clone());
        }
        let (api, stop) = (self.api.clone(), CancellationToken::new());
        self.running = Some(stop.clone());
        tokio::spawn(async move {
            if let Some(Err(error)) = stop.run_until_cancelled(listener.serve(api)).await {
                tracing::error!(%error, "the admin API cannot be served");
            }
        });
    }
}
