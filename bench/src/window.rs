//! One window of a load on one server: what was done, and what it cost whom.

use std::time::{Duration, Instant};

use crate::cores::Ticks;
use crate::load::{Counts, Load, Outcome, Plan};
use crate::process::{Server, Usage};

/// On which cores everything runs.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    pub server: &'a [usize],
    /// The client's and the upstream's.
    pub client: &'a [usize],
}

/// What was seen in one window.
pub struct Window {
    pub counts: Counts,
    pub wall: Duration,
    pub server: Usage,
    /// The same processor time to the nanosecond, but not parted into user and system.
    pub server_exact: Duration,
    /// Of the server's cores: the share that it used, and the share that nobody did.
    pub server_share: f64,
    pub server_idle: f64,
    /// Of the client's cores, client and upstream together.
    pub client_share: f64,
    pub outcome: Outcome,
}

impl Window {
    /// The share of the server's cores that others took.
    pub fn others(&self) -> f64 {
        1.0 - self.server_idle - self.server_share
    }
}

/// Starts the load, lets it warm up, and measures.
pub fn measure(
    server: &Server,
    plan: Plan,
    place: Place<'_>,
    warm_up: Duration,
    window: Duration,
) -> Window {
    let load = Load::start(plan, place.client);
    std::thread::sleep(warm_up);
    load.record();
    let started = Instant::now();
    let ticks = Ticks::now(place.server);
    let own = Usage::own();
    let (used, exact, counts) = (server.usage(), server.cpu_exact(), load.counts());
    std::thread::sleep(window);
    let counts = load.counts() - counts;
    let exact = server.cpu_exact().saturating_sub(exact);
    let used = server.usage() - used;
    let wall = started.elapsed();
    let own = Usage::own() - own;
    let server_idle = Ticks::now(place.server).idle_since(ticks);
    let share =
        |used: Usage, cores: usize| used.total().as_secs_f64() / wall.as_secs_f64() / cores as f64;
    Window {
        counts,
        wall,
        server: used,
        server_exact: exact,
        server_share: share(used, place.server.len()),
        server_idle,
        client_share: share(own, place.client.len()),
        outcome: load.stop(),
    }
}
