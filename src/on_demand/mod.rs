//! Certificates that are ordered when the first client asks for their name. A handshake for an
//! unknown name asks here and waits, suspended; one fetch for each name looks on disk, asks for
//! permission, has the worker order, and has the reloader load what came of it.
//!
//! It never publishes into the live table, sends nothing to a CA, and writes no file. Everything
//! that a stranger can make it remember or do is bounded.

mod budget;
mod gate;
mod permission;
mod refused;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration as StdDuration;

use arc_swap::{ArcSwap, ArcSwapOption};
use time::{Duration, OffsetDateTime};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};

pub use self::gate::GateReport;
use self::gate::{Fetched, Gate, TurnedAway};
use self::permission::Answer;
pub use self::permission::Permissions;
use self::refused::Refusal;
use crate::acme::on_demand_names::OnDemandNames;
use crate::acme::subject::Subject;
use crate::acme::worker::WorkerHandle;
use crate::admin::metrics::Metrics;
use crate::certificate::generations::certificate_in;
use crate::certificate::name::Name;
use crate::certificate::reloader::Reloader;
use crate::clock;
use crate::config::{Budgets, Config, KeyType};
use crate::store::StateDir;

/// How long a "no" holds: whoever gave it may think better of it soon.
const NO_HOLDS: Duration = Duration::minutes(5);
/// How long a name is refused when nobody could say whether it may be had.
const UNKNOWN_HOLDS: Duration = Duration::seconds(15);
/// How long a name is refused whose order failed, where the worker does not say when to try again.
const FAILURE_HOLDS: Duration = Duration::minutes(1);
/// However long the worker wants to wait, it is asked again after this.
const MAX_FAILURE_HOLDS: Duration = Duration::hours(1);
const MIN_FAILURE_HOLDS: Duration = Duration::seconds(5);
/// Looks at the disk at the same time: a flood of names must not become a flood of threads.
const MAX_LOOKS: usize = 4;

/// The way to certificates on demand. Cheap to clone.
#[derive(Clone)]
pub struct OnDemand(Arc<Shared>);

struct Shared {
    names: ArcSwap<OnDemandNames>,
    /// How long a handshake waits; `None`: nothing is had on demand.
    wait: ArcSwapOption<StdDuration>,
    gate: Mutex<Gate>,
    looks: Semaphore,
    surroundings: Surroundings,
}

/// Whom the fetches turn to.
pub struct Surroundings {
    pub state: StateDir,
    pub reloader: Reloader,
    pub worker: WorkerHandle,
    pub permissions: Permissions,
    pub metrics: Arc<Metrics>,
    /// Fetches run here, not where connections are served.
    pub runtime: Handle,
}

impl OnDemand {
    pub fn new(config: &Config, surroundings: Surroundings) -> OnDemand {
        let on_demand = OnDemand(Arc::new(Shared {
            names: ArcSwap::default(),
            wait: ArcSwapOption::empty(),
            gate: Mutex::new(Gate::new(Budgets::default())),
            looks: Semaphore::new(MAX_LOOKS),
            surroundings,
        }));
        on_demand.reconfigure(config);
        on_demand
    }

    /// Goes by this configuration from now on. Fetches under way end by the old one.
    pub fn reconfigure(&self, config: &Config) {
        let wanted = config.acme.on_demand.as_ref();
        self.0.surroundings.permissions.reconfigure(config);
        let wait = wanted.map(|wanted| Arc::new(wanted.wait));
        self.0.wait.store(wait);
        let budgets = wanted.map(|wanted| wanted.budgets).unwrap_or_default();
        self.0.gate().reconfigure(budgets);
        self.0.names.store(Arc::new(OnDemandNames::from(config)));
    }

    /// What to fetch for a server name that has no certificate, if it may have one at all.
    pub fn wanted(&self, server_name: &str) -> Option<Subject> {
        self.0.names.load().subject_of(server_name)
    }

    /// Waits until there is a certificate in the live table, or none to be had.
    pub async fn obtain(&self, subject: Subject, client: IpAddr) {
        let Some(wait) = self.0.wait.load_full() else {
            return;
        };
        let joined = self.0.gate().join(&subject.name, client, clock::now());
        let waiting = match joined {
            Ok(waiting) => waiting,
            Err(TurnedAway::Known) => return self.0.count("known_refusal"),
            Err(TurnedAway::Busy) => return self.0.count("busy"),
        };
        let _seat = Seat {
            shared: self.0.clone(),
            client,
        };
        let mut fetched = waiting.fetched;
        if let Some(lead) = waiting.lead {
            let fetch = Fetch {
                shared: self.0.clone(),
                name: subject.name.clone(),
                result: lead,
            };
            let runtime = &self.0.surroundings.runtime;
            runtime.spawn(fetch.run(subject, client));
        }
        let ended = fetched.wait_for(Option::is_some);
        if tokio::time::timeout(*wait, ended).await.is_err() {
            self.0.count("timeout");
        }
    }

    /// How long a handshake waits. `None`: nothing is had on demand.
    pub fn wait(&self) -> Option<StdDuration> {
        self.0.wait.load().as_deref().copied()
    }

    /// Whether any handshake waits for what is being had.
    pub fn is_fetching(&self) -> bool {
        self.0.gate().is_fetching()
    }

    /// For `/status` and the metrics. `None`: nothing is had on demand.
    pub fn report(&self) -> Option<GateReport> {
        self.0.wait.load().as_ref()?;
        Some(self.0.gate().report())
    }
}

impl Shared {
    fn gate(&self) -> MutexGuard<'_, Gate> {
        // Its methods leave it whole, or panic before they change anything.
        self.gate
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn count(&self, result: &'static str) {
        self.surroundings.metrics.on_demand(result);
    }
}

/// A handshake's place among those that wait.
struct Seat {
    shared: Arc<Shared>,
    client: IpAddr,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.shared.gate().leave(self.client);
    }
}

/// The one that fetches a name, for all that wait for it.
struct Fetch {
    shared: Arc<Shared>,
    name: Name,
    result: watch::Sender<Option<Fetched>>,
}

impl Drop for Fetch {
    fn drop(&mut self) {
        self.shared.gate().fetch_ended(&self.name);
    }
}

/// Why a name is not served.
struct Denied {
    result: &'static str,
    cause: String,
    /// For how long nobody is asked again; `None`: the next handshake may try.
    holds: Option<Duration>,
}

impl Fetch {
    async fn run(self, subject: Subject, client: IpAddr) {
        let fetched = match self.fetch(subject, client).await {
            Ok(result) => {
                self.shared.count(result);
                Fetched::Served
            }
            Err(denied) => {
                self.deny(denied);
                Fetched::Refused
            }
        };
        self.result.send_replace(Some(fetched));
    }

    fn deny(&self, denied: Denied) {
        let Denied {
            result,
            cause,
            holds,
        } = denied;
        self.shared.count(result);
        tracing::debug!(name = %self.name, result, cause, "not to be had on demand");
        if let Some(holds) = holds {
            let now = clock::now();
            let refusal = Refusal {
                until: now + holds,
                cause: cause.into(),
            };
            self.shared.gate().refuse(self.name.clone(), refusal, now);
        }
    }

    /// Where it came from.
    async fn fetch(&self, subject: Subject, client: IpAddr) -> Result<&'static str, Denied> {
        let around = &self.shared.surroundings;
        if self.load_from_disk(&subject).await {
            around.worker.look_after(subject).await;
            return Ok("disk");
        }
        self.spend(client)?;
        self.ask(client).await?;
        let dir = around
            .state
            .on_demand_certificate_dir(&subject.name, subject.key_type);
        let ordered = around.worker.demand(subject.clone()).await;
        ordered.map_err(|unserved| Denied {
            result: "failed",
            holds: Some(holds(unserved.until, clock::now())),
            cause: unserved.cause,
        })?;
        if !around.reloader.load_on_demand(dir).await && !self.is_served() {
            return Err(Denied {
                result: "failed",
                cause: "the certificate was issued and cannot be loaded".to_owned(),
                holds: Some(FAILURE_HOLDS),
            });
        }
        // Once more: the worker looks after what is in memory, and before it was not.
        around.worker.look_after(subject).await;
        Ok("issued")
    }

    /// Loads what is there, and says whether it is good for clients now.
    async fn load_from_disk(&self, subject: &Subject) -> bool {
        for dir in self.stored(subject).await {
            let loaded = self.shared.surroundings.reloader.load_on_demand(dir);
            if loaded.await && self.is_served() {
                return true;
            }
        }
        false
    }

    /// The directories that hold a certificate for the name; that of its key type first.
    async fn stored(&self, subject: &Subject) -> Vec<PathBuf> {
        let wanted = subject.key_type;
        let others = KeyType::ALL.into_iter().filter(|other| *other != wanted);
        let state = &self.shared.surroundings.state;
        let dirs: Vec<PathBuf> = std::iter::once(wanted)
            .chain(others)
            .map(|key_type| state.on_demand_certificate_dir(&subject.name, key_type))
            .collect();
        // Never closed.
        let _turn = self.shared.looks.acquire().await;
        let looked = tokio::task::spawn_blocking(move || {
            let has_one = |dir: &PathBuf| certificate_in(dir).exists();
            dirs.into_iter().filter(has_one).collect()
        });
        // It cannot panic, and a runtime that ends needs no answer.
        looked.await.unwrap_or_default()
    }

    fn is_served(&self) -> bool {
        let table = self.shared.surroundings.reloader.table().load();
        let choice = table.get(&self.name);
        choice.is_some_and(|choice| choice.best.key.is_valid_at(clock::now()))
    }

    fn spend(&self, client: IpAddr) -> Result<(), Denied> {
        let spent = self.shared.gate().spend(&self.name, client, clock::now());
        spent.map_err(|(budget, tell)| {
            let budget = budget.as_str();
            if tell {
                tracing::warn!(
                    budget, name = %self.name, %client,
                    "a budget for names on demand is spent; new names are refused until it refills"
                );
            }
            Denied {
                result: "over_budget",
                cause: format!("the budget {budget} is spent"),
                holds: None,
            }
        })
    }

    async fn ask(&self, client: IpAddr) -> Result<(), Denied> {
        let permissions = &self.shared.surroundings.permissions;
        // The list was asked before the handshake was made to wait.
        let Some(answer) = permissions.ask(&self.name, Some(client)).await else {
            return Ok(());
        };
        let (result, holds, cause) = match answer {
            Answer::Yes => {
                self.shared.surroundings.metrics.on_demand_question("yes");
                return Ok(());
            }
            Answer::No(cause) => ("no", NO_HOLDS, cause),
            Answer::Unknown(cause) => ("unknown", UNKNOWN_HOLDS, cause),
        };
        self.shared.surroundings.metrics.on_demand_question(result);
        Err(Denied {
            result: "not_permitted",
            cause: format!("no permission: {cause}"),
            holds: Some(holds),
        })
    }
}

/// How long a name is refused whose order cannot be sent before `until`.
fn holds(until: Option<OffsetDateTime>, now: OffsetDateTime) -> Duration {
    let wait = until.map_or(FAILURE_HOLDS, |until| until - now);
    wait.clamp(MIN_FAILURE_HOLDS, MAX_FAILURE_HOLDS)
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn a_failed_name_is_refused_for_as_long_as_the_worker_waits_within_bounds() {
        let now = datetime!(2026-11-25 12:00 UTC);
        assert_eq!(holds(None, now), Duration::MINUTE);
        let after = |wait| holds(Some(now + wait), now);
        assert_eq!(after(Duration::minutes(10)), Duration::minutes(10));
        assert_eq!(after(Duration::DAY), Duration::HOUR);
        assert_eq!(after(-Duration::DAY), Duration::seconds(5));
    }
}
