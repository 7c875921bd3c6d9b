//! One server in one round of one row: start it, let it warm up, measure, stop it.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use perennial_bench::certificates::name;
use perennial_bench::cores::Split;
use perennial_bench::handshake::Client;
use perennial_bench::load::{Aim, Load, Pace, Plan, Target, tls};
use perennial_bench::servers::{Kind, Running, Service, Setup};
use perennial_bench::window::{self, Place};

pub use perennial_bench::window::Window as Cell;

use crate::options::Options;
use crate::rows::Throughput;

/// How long a server may take to reach the state in which its memory is read.
const SETTLE: Duration = Duration::from_secs(3);
/// How long the idle connections may take to come up.
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Bench<'a> {
    pub options: &'a Options,
    pub directory: &'a Path,
    pub upstream: SocketAddr,
    pub split: &'a Split,
    pub servers: &'a [Kind],
}

/// Certificates on disk: so many below a folder.
#[derive(Clone, Copy)]
pub struct Certificates<'a> {
    pub folder: &'a Path,
    pub count: usize,
}

/// Memory in KiB.
pub struct Memory {
    pub idle: f64,
    pub each_connection: f64,
}

/// With many certificates.
pub struct Many {
    pub first_handshake: Duration,
    pub all_loaded: Duration,
    pub memory_kib: f64,
    pub handshakes: Cell,
}

/// What each server showed, in the order of the servers, a round after the other.
pub type Rounds<T> = Vec<(Kind, Vec<T>)>;

impl Bench<'_> {
    pub fn throughput(
        &self,
        row: Throughput,
        certificates: Certificates<'_>,
        cores: usize,
    ) -> Rounds<Cell> {
        self.rounds(self.options.rounds, row.word(), |kind| {
            let running = self.start(kind, certificates, cores);
            let plan = Plan {
                connections: cores * row.connections(),
                pace: row.pace(),
                ..self.plan(&running, row, &targets(row, certificates.count))
            };
            self.measure(&running, plan, cores)
        })
    }

    /// The latencies at a rate of requests.
    pub fn latency(
        &self,
        row: Throughput,
        rate: f64,
        certificates: Certificates<'_>,
        cores: usize,
    ) -> Rounds<Cell> {
        self.rounds(self.options.rounds, "latency", |kind| {
            let running = self.start(kind, certificates, cores);
            let streams = match row.pace() {
                Pace::Closed { streams } => streams,
                _ => 1,
            };
            let plan = Plan {
                connections: cores * row.connections(),
                pace: Pace::Open { rate, streams },
                ..self.plan(&running, row, &targets(row, certificates.count))
            };
            let mut cell = self.measure(&running, plan, cores);
            cell.outcome.latencies.sort();
            cell
        })
    }

    /// Memory without connections, and with `connections` that idle after a request each.
    pub fn memory(
        &self,
        connections: usize,
        certificates: Certificates<'_>,
        cores: usize,
    ) -> Rounds<Memory> {
        self.rounds(1, "memory", |kind| {
            let running = self.start(kind, certificates, cores);
            std::thread::sleep(SETTLE);
            let idle = running.server.memory_kib() as f64;
            let row = Throughput::Http1;
            let plan = Plan {
                connections,
                pace: Pace::Hold,
                ..self.plan(&running, row, &targets(row, certificates.count))
            };
            let load = Load::start(plan, &self.split.client);
            let begun = Instant::now();
            while load.counts().requests < connections as u64 {
                let counts = load.counts();
                assert!(begun.elapsed() < PATIENCE, "{kind:?} holds {counts:?}");
                std::thread::sleep(Duration::from_millis(20));
            }
            std::thread::sleep(SETTLE);
            let busy = running.server.memory_kib() as f64;
            load.stop();
            Memory {
                idle,
                each_connection: (busy - idle) / connections as f64,
            }
        })
    }

    /// Start, memory and full handshakes with random names.
    pub fn many(&self, certificates: Certificates<'_>, cores: usize) -> Rounds<Many> {
        let row = Throughput::Handshakes;
        let targets = targets(row, certificates.count);
        self.rounds(self.options.rounds.min(3), "certificates", |kind| {
            let mut running = self.launch(kind, certificates, cores);
            let name = name(certificates.count * 3 / 4);
            let first_handshake = running.wait_for(&Client::new(), &name);
            running.wait_until_loaded();
            let all_loaded = running.started.elapsed();
            std::thread::sleep(SETTLE);
            let memory_kib = running.server.memory_kib() as f64;
            let plan = Plan {
                connections: cores * row.connections(),
                pace: row.pace(),
                ..self.plan(&running, row, &targets)
            };
            Many {
                first_handshake,
                all_loaded,
                memory_kib,
                handshakes: self.measure(&running, plan, cores),
            }
        })
    }

    /// Every round begins with another server, so that none always follows the same.
    fn rounds<T>(&self, rounds: usize, what: &str, cell: impl Fn(Kind) -> T) -> Rounds<T> {
        let count = self.servers.len();
        let mut all: Rounds<T> = self
            .servers
            .iter()
            .map(|kind| (*kind, Vec::new()))
            .collect();
        for round in 0..rounds {
            for place in 0..count {
                let (kind, cells) = &mut all[(round + place) % count];
                eprintln!("{what}, round {} of {rounds}: {kind:?}", round + 1);
                cells.push(cell(*kind));
            }
        }
        all
    }

    fn start(&self, kind: Kind, certificates: Certificates<'_>, cores: usize) -> Running {
        let mut running = self.launch(kind, certificates, cores);
        running.wait_for(&Client::new(), &name(certificates.count - 1));
        running.wait_until_loaded();
        running
    }

    fn launch(&self, kind: Kind, certificates: Certificates<'_>, cores: usize) -> Running {
        let own = tempfile::tempdir_in(self.directory).expect("a folder");
        Running::start(&Setup {
            kind,
            perennial: &self.options.perennial,
            directory: &own.keep(),
            certificates: certificates.folder,
            count: certificates.count,
            service: Service::Proxy {
                upstream: self.upstream,
            },
            cores: &self.split.server[..cores],
            under: &[],
        })
    }

    /// One request after the other on one connection; callers change what they want otherwise.
    fn plan(&self, running: &Running, row: Throughput, targets: &Arc<[Target]>) -> Plan {
        Plan {
            address: running.address,
            tls: tls::config(
                self.options.groups,
                row.protocol(),
                row == Throughput::Resumed,
            ),
            targets: targets.clone(),
            aim: Aim::PerConnection,
            protocol: row.protocol(),
            connections: 1,
            pace: Pace::Closed { streams: 1 },
            limit: None,
        }
    }

    fn measure(&self, running: &Running, plan: Plan, cores: usize) -> Cell {
        let place = Place {
            server: &self.split.server[..cores],
            client: &self.split.client,
        };
        let (warm_up, window) = (self.options.warm_up, self.options.window);
        window::measure(&running.server, plan, place, warm_up, window)
    }
}

/// One for each certificate.
fn targets(row: Throughput, count: usize) -> Arc<[Target]> {
    (0..count)
        .map(|number| Target::new(&name(number), row.path()))
        .collect()
}
