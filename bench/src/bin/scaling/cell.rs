//! One row in one round: start Perennial, wait until it is ready, measure, stop it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use perennial_bench::certificates::name;
use perennial_bench::handshake::Client;
use perennial_bench::load::tls::{self, Groups};
use perennial_bench::load::{Aim, Load, Pace, Plan, Protocol, Target};
use perennial_bench::servers::{Kind, Running, Service, Setup};
use perennial_bench::window::{self, Place, Window};

use crate::configuration::{Scale, Sites, configuration};
use crate::options::Options;

/// How long a server may take to reach the state in which its memory is read.
const SETTLE: Duration = Duration::from_secs(1);
/// How long the idle connections may take to come up.
const PATIENCE: Duration = Duration::from_secs(180);

/// What is started, and what is asked of it.
pub struct Case<'a> {
    pub threads: usize,
    pub place: Place<'a>,
    pub sites: Sites,
    pub upstreams: &'a [SocketAddr],
    /// The folder from which certificates come.
    pub certificates: PathBuf,
    pub targets: Arc<[Target]>,
    pub load: Requests,
    /// So many connections that idle beside the load.
    pub idle: Option<(Protocol, usize)>,
}

/// The load of a case.
#[derive(Clone, Copy, Debug)]
pub struct Requests {
    pub protocol: Protocol,
    pub connections: usize,
    pub pace: Pace,
    pub aim: Aim,
}

pub struct Cell {
    /// From the start to everything being loaded and served.
    pub ready: Duration,
    /// Processor time until then, of threads that have ended, too.
    pub ready_cpu: Duration,
    /// PSS in KiB: before any load, with the idle connections, after the load.
    pub at_rest: u64,
    pub holding: u64,
    pub after: u64,
    pub window: Window,
}

pub fn measure(case: &Case<'_>, options: &Options, directory: &Path) -> Cell {
    let own = tempfile::tempdir_in(directory).expect("a folder");
    let mut running = start(case, options, own.path());
    let last = name(case.targets.len() - 1);
    running.wait_for(&Client::new(), &last);
    running.wait_until_loaded();
    let ready = running.started.elapsed();
    let ready_cpu = running.server.cpu();
    std::thread::sleep(SETTLE);
    let at_rest = running.server.memory_kib();
    let held = case.idle.map(|idle| hold(case, &running, idle));
    let holding = running.server.memory_kib();
    let window = window::measure(
        &running.server,
        plan(case, &running, case.load),
        case.place,
        options.warm_up,
        options.window,
    );
    let after = running.server.memory_kib();
    if let Some(held) = held {
        held.stop();
    }
    Cell {
        ready,
        ready_cpu,
        at_rest,
        holding,
        after,
        window,
    }
}

fn start(case: &Case<'_>, options: &Options, own: &Path) -> Running {
    let setup = Setup {
        kind: Kind::Perennial,
        perennial: &options.perennial,
        directory: own,
        certificates: &case.certificates,
        count: case.targets.len(),
        service: Service::Proxy {
            upstream: case.upstreams[0],
        },
        cores: case.place.server,
        under: &[],
    };
    let scale = Scale {
        threads: case.threads,
        sites: case.sites,
        upstreams: case.upstreams,
        certificates: &case.certificates,
        state: &own.join("state"),
    };
    Running::start_on(&setup, |address| configuration(&scale, address))
}

/// Opens connections that send one request each and stay.
fn hold(case: &Case<'_>, running: &Running, (protocol, connections): (Protocol, usize)) -> Load {
    let requests = Requests {
        protocol,
        connections,
        pace: Pace::Hold,
        aim: Aim::PerConnection,
    };
    let load = Load::start(plan(case, running, requests), case.place.client);
    let begun = Instant::now();
    while load.counts().requests < connections as u64 {
        let counts = load.counts();
        assert!(
            begun.elapsed() < PATIENCE,
            "{connections} connections do not come up: {counts:?}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(SETTLE);
    load
}

fn plan(case: &Case<'_>, running: &Running, requests: Requests) -> Plan {
    Plan {
        address: running.address,
        tls: tls::config(Groups::X25519, requests.protocol, false),
        targets: case.targets.clone(),
        aim: requests.aim,
        protocol: requests.protocol,
        connections: requests.connections,
        pace: requests.pace,
        limit: None,
    }
}
