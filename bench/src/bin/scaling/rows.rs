//! What is measured for each dimension, and what its table has.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use perennial_bench::certificates::{Authority, name, write_all, write_one};
use perennial_bench::cores::Split;
use perennial_bench::load::{Aim, Pace, Protocol, Target};
use perennial_bench::statistics::Summary;
use perennial_bench::upstream::{self, SMALL};
use perennial_bench::window::Place;

use crate::cell::{Case, Cell, Requests, measure as measure_cell};
use crate::configuration::Sites;
use crate::options::{Dimension, Options};
use crate::table::{Column, Expected, Row, table};

/// A share of the server's cores that is too much: of idling under full load, and of what others
/// do there.
const TOLERATED: f64 = 0.05;
/// In which the kernel counts processor time.
const TICK: Duration = Duration::from_millis(10);
/// Requests a second beside idle connections: what one core can do several times over.
const CONSTANT_RATE: f64 = 2000.0;

/// One row, before it is measured.
struct Plan<'a> {
    series: &'static str,
    size: usize,
    own_cores: bool,
    case: Case<'a>,
}

/// What all rows of one dimension share.
struct Ground<'a> {
    split: &'a Split,
    /// The server's cores and the client's.
    all_cores: Vec<usize>,
    upstreams: &'a [std::net::SocketAddr],
    wildcard: &'a Path,
    many: PathBuf,
}

/// Measures the rows of one dimension and prints its table.
pub fn measure(dimension: Dimension, options: &Options, split: &Split, directory: &Path) -> String {
    let authority = Authority::new();
    let wildcard = directory.join("wildcard");
    write_one(&authority, &wildcard, "*.bench.test");
    let upstreams = match dimension {
        Dimension::Upstreams => dimension.sizes().iter().copied().max().unwrap_or(1),
        _ => 1,
    };
    let ground = Ground {
        split,
        all_cores: all_cores(split),
        upstreams: &upstream::start_many(&split.client, split.client.len(), upstreams),
        wildcard: &wildcard,
        many: directory.join("many"),
    };
    if dimension == Dimension::Certificates {
        for size in dimension.sizes() {
            write_all(&authority, &ground.folder(*size), *size);
        }
    }
    let plans = ground.plans(dimension);
    let rows = take_turns(&plans, dimension, options, directory);
    table(title(dimension), columns(dimension), &rows)
}

/// Every round begins with another row, so that none always follows the same.
fn take_turns(
    plans: &[Plan<'_>],
    dimension: Dimension,
    options: &Options,
    directory: &Path,
) -> Vec<Row> {
    let mut cells: Vec<Vec<Cell>> = plans.iter().map(|_| Vec::new()).collect();
    for round in 0..options.rounds {
        for place in 0..plans.len() {
            let index = (round + place) % plans.len();
            let plan = &plans[index];
            eprintln!(
                "{}, round {} of {}: {} {}",
                dimension.word(),
                round + 1,
                options.rounds,
                plan.size,
                plan.series
            );
            cells[index].push(measure_cell(&plan.case, options, directory));
        }
    }
    let row = |(plan, cells): (&Plan<'_>, Vec<Cell>)| Row {
        series: plan.series,
        size: plan.size,
        rounds: cells
            .iter()
            .map(|cell| figures(dimension, plan, cell))
            .collect(),
        remarks: remarks(plan, &cells),
        rate_is_own: plan.own_cores
            && median(&cells, |cell| cell.window.server_share) >= 1.0 - 2.0 * TOLERATED,
    };
    plans.iter().zip(cells).map(row).collect()
}

const H1: Requests = Requests {
    protocol: Protocol::Http1,
    connections: 64,
    pace: Pace::Closed { streams: 1 },
    aim: Aim::PerConnection,
};
const H2: Requests = Requests {
    protocol: Protocol::Http2,
    connections: 8,
    pace: Pace::Closed { streams: 16 },
    aim: Aim::PerConnection,
};
const HANDSHAKES: Requests = Requests {
    connections: 32,
    pace: Pace::Churn,
    ..H1
};
const CONSTANT: Requests = Requests {
    connections: 16,
    pace: Pace::Open {
        rate: CONSTANT_RATE,
        streams: 1,
    },
    ..H1
};

impl Ground<'_> {
    /// The series after each other, each from the smallest size on.
    fn plans(&self, dimension: Dimension) -> Vec<Plan<'_>> {
        let sizes = || dimension.sizes().iter().copied();
        match dimension {
            Dimension::Threads => [("handshakes", HANDSHAKES), ("h1", H1), ("h2", H2)]
                .iter()
                .flat_map(|(series, load)| sizes().map(|size| self.threads(series, *load, size)))
                .collect(),
            Dimension::Sites => [
                ("sites of one host", Sites::Each as fn(usize) -> Sites),
                ("hosts of one site", Sites::Hosts),
            ]
            .iter()
            .flat_map(|(series, sites)| sizes().map(|size| self.sites(series, sites(size), size)))
            .collect(),
            Dimension::Certificates => sizes().map(|size| self.certificates(size)).collect(),
            Dimension::Upstreams => sizes().map(|size| self.upstreams(size)).collect(),
            Dimension::Connections => [("h1", Protocol::Http1), ("h2", Protocol::Http2)]
                .iter()
                .flat_map(|(series, protocol)| {
                    sizes().map(|size| self.connections(series, *protocol, size))
                })
                .collect(),
        }
    }

    /// Where so many certificates are.
    fn folder(&self, size: usize) -> PathBuf {
        self.many.join(size.to_string())
    }

    /// One site, one certificate, one upstream, a thread for each of the server's cores.
    fn one(&self, series: &'static str, size: usize, load: Requests) -> Plan<'_> {
        Plan {
            series,
            size,
            own_cores: !self.split.is_shared(),
            case: Case {
                threads: self.split.server.len(),
                place: Place {
                    server: &self.split.server,
                    client: &self.split.client,
                },
                sites: Sites::Wildcard,
                upstreams: &self.upstreams[..1],
                certificates: self.wildcard.to_owned(),
                targets: targets(1),
                load,
                idle: None,
            },
        }
    }

    fn threads(&self, series: &'static str, load: Requests, threads: usize) -> Plan<'_> {
        let load = Requests {
            connections: threads * load.connections,
            ..load
        };
        let mut plan = self.one(series, threads, load);
        plan.case.threads = threads;
        match self.split.server.get(..threads) {
            Some(own) => plan.case.place.server = own,
            None => {
                // Wherever there is a core, the client's included.
                let count = threads.min(self.all_cores.len());
                plan.case.place.server = &self.all_cores[..count];
                plan.own_cores = false;
            }
        }
        plan
    }

    /// Requests on each connection are for any of the hosts: the certificate is good for all.
    fn sites(&self, series: &'static str, sites: Sites, count: usize) -> Plan<'_> {
        let load = Requests {
            aim: Aim::PerRequest,
            ..H1
        };
        let mut plan = self.one(series, count, load);
        plan.case.sites = sites;
        plan.case.targets = targets(count);
        plan
    }

    fn certificates(&self, count: usize) -> Plan<'_> {
        let mut plan = self.one("handshakes", count, HANDSHAKES);
        plan.case.certificates = self.folder(count);
        plan.case.targets = targets(count);
        plan
    }

    fn upstreams(&self, count: usize) -> Plan<'_> {
        let mut plan = self.one("h1", count, H1);
        plan.case.upstreams = &self.upstreams[..count];
        plan
    }

    fn connections(&self, series: &'static str, protocol: Protocol, count: usize) -> Plan<'_> {
        let mut plan = self.one(series, count, CONSTANT);
        plan.case.idle = Some((protocol, count));
        plan
    }
}

fn all_cores(split: &Split) -> Vec<usize> {
    let mut all = [&split.server[..], &split.client].concat();
    all.sort_unstable();
    all.dedup();
    all
}

fn targets(count: usize) -> Arc<[Target]> {
    (0..count)
        .map(|number| Target::new(&name(number), SMALL))
        .collect()
}

fn title(dimension: Dimension) -> &'static str {
    match dimension {
        Dimension::Threads => "worker threads",
        Dimension::Sites => "hosts, of which each request is for a random one",
        Dimension::Certificates => "certificates, with random names",
        Dimension::Upstreams => "upstreams of one pool",
        Dimension::Connections => "idle connections beside 2,000 h1 requests a second",
    }
}

const fn column(title: &'static str, decimals: usize, expected: Expected) -> Column {
    Column {
        title,
        decimals,
        expected,
    }
}

const fn grows(unit: &'static str, factor: f64) -> Expected {
    Expected::FlatOrLinear { unit, factor }
}

const RATE: Column = column("a second", 0, Expected::FlatRate);
const CPU: Column = column("CPU us each", 1, grows("ns", 1e3));
const AT_REST: Column = column("MiB at rest", 1, grows("KiB", 1024.0));
const AFTER: Column = column("MiB after the load", 1, grows("KiB", 1024.0));
const READY: Column = column("ms until ready", 0, Expected::Anything);
const READY_CPU: Column = column("CPU ms until ready", 0, grows("us", 1e3));

fn columns(dimension: Dimension) -> &'static [Column] {
    const THREADS: [Column; 4] = [
        column("a second", 0, Expected::ProportionalRate),
        CPU,
        AT_REST,
        AFTER,
    ];
    const CONNECTIONS: [Column; 4] = [
        column("a second", 0, Expected::Anything),
        CPU,
        column("MiB with them", 1, grows("KiB", 1024.0)),
        column("KiB for each", 1, Expected::Anything),
    ];
    match dimension {
        Dimension::Threads => &THREADS,
        Dimension::Connections => &CONNECTIONS,
        _ => &[RATE, CPU, AT_REST, AFTER, READY, READY_CPU],
    }
}

/// In the order of the columns.
fn figures(dimension: Dimension, plan: &Plan<'_>, cell: &Cell) -> Vec<f64> {
    let window = &cell.window;
    let requests = window.counts.requests as f64;
    let rate = requests / window.wall.as_secs_f64();
    let cpu = 1e6 * window.server_exact.as_secs_f64() / requests;
    let mib = |kib: u64| kib as f64 / 1024.0;
    if dimension == Dimension::Connections {
        let added = cell.holding.saturating_sub(cell.at_rest) as f64;
        return vec![rate, cpu, mib(cell.holding), added / plan.size as f64];
    }
    vec![
        rate,
        cpu,
        mib(cell.at_rest),
        mib(cell.after),
        1e3 * cell.ready.as_secs_f64(),
        // Less than a tick is not seen.
        1e3 * cell.ready_cpu.max(TICK).as_secs_f64(),
    ]
}

fn median(cells: &[Cell], value: fn(&Cell) -> f64) -> f64 {
    Summary::of(cells.iter().map(value)).map_or(f64::NAN, |summary| summary.median)
}

/// Why a row is not to be believed.
fn remarks(plan: &Plan<'_>, cells: &[Cell]) -> String {
    let median = |value: fn(&Cell) -> f64| median(cells, value);
    let mut remarks = Vec::new();
    if !plan.own_cores {
        remarks.push(format!(
            "**{} threads, the client and the upstream share the machine's cores**: \
             the rate says nothing",
            plan.case.threads
        ));
    }
    let idle = median(|cell| cell.window.server_idle);
    let is_full = !matches!(plan.case.load.pace, Pace::Open { .. });
    if plan.own_cores && is_full && idle > TOLERATED {
        let idle = 100.0 * idle;
        remarks.push(format!("**client-bound**: the server idled {idle:.0} %"));
    }
    let others = median(|cell| cell.window.others());
    if plan.own_cores && others > TOLERATED {
        remarks.push(format!("disturbed: others took {:.0} %", 100.0 * others));
    }
    let answered =
        median(|cell| cell.window.counts.requests as f64 / cell.window.wall.as_secs_f64());
    if !is_full && answered < 0.99 * CONSTANT_RATE {
        remarks.push(format!("**{answered:.0} a second were answered**"));
    }
    let errors: u64 = cells.iter().map(|cell| cell.window.counts.errors).sum();
    if errors > 0 {
        let fault = cells
            .iter()
            .find_map(|cell| cell.window.outcome.fault.clone());
        remarks.push(format!(
            "**{errors} errors**: {}",
            fault.unwrap_or_default()
        ));
    }
    remarks.join("; ")
}
