//! Serving, side by side: handshakes, requests, latency, bodies, memory and start of Perennial
//! beside nginx, HAProxy and Caddy, round by round. Prints Markdown. See bench/README.md.

mod cell;
mod options;
mod report;
mod rows;

use perennial_bench::certificates::{Authority, write_all};
use perennial_bench::cores::Split;
use perennial_bench::servers::Kind;
use perennial_bench::upstream;

use cell::{Bench, Certificates};
use options::Options;
use rows::Throughput;

/// The rows about many certificates have so many.
const MANY: usize = 10_000;
/// So many connections idle, where the process may have as many descriptors, twice.
const IDLE_CONNECTIONS: usize = 10_000;

fn main() {
    let options = Options::parse();
    let split = Split::new(options.client_cores);
    let directory = tempfile::tempdir().expect("a folder");
    let servers = installed(&options);
    println!("{}", report::machine(&options, &split));
    let bench = Bench {
        options: &options,
        directory: directory.path(),
        upstream: upstream::start(&split.client, split.client.len()),
        split: &split,
        servers: &servers,
    };
    let (one, many) = (directory.path().join("one"), directory.path().join("many"));
    let authority = Authority::new();
    write_all(&authority, &one, 1);
    if options.wants("certificates") {
        write_all(&authority, &many, MANY);
    }
    let one = Certificates {
        folder: &one,
        count: 1,
    };
    let many = Certificates {
        folder: &many,
        count: MANY,
    };
    let mut core_counts = vec![1];
    if split.server.len() > 1 && !options.quick {
        core_counts.push(split.server.len());
    }
    for cores in core_counts {
        println!("{}", report::heading(cores, &split));
        full_load(&bench, one, cores);
        if options.wants("memory") {
            let connections = IDLE_CONNECTIONS.min(descriptors() / 2);
            let rounds = bench.memory(connections, one, cores);
            println!("{}", report::memory(&rounds, connections));
        }
        if options.wants("certificates") {
            println!("{}", report::many(&bench.many(many, cores), MANY));
        }
    }
}

/// What the servers can do at most, then how fast they answer at 70 % of what the slowest can.
fn full_load(bench: &Bench<'_>, certificates: Certificates<'_>, cores: usize) {
    println!("{}", report::THROUGHPUT_HEAD);
    let mut rates = Vec::new();
    for row in Throughput::ALL {
        if bench.options.wants(row.word()) {
            let rounds = bench.throughput(row, certificates, cores);
            println!("{}", report::throughput(row, &rounds));
            rates.push((row, 0.7 * report::slowest(row, &rounds)));
        }
    }
    if !bench.options.wants("latency") {
        return;
    }
    println!("\n{}", report::LATENCY_HEAD);
    for (row, rate) in rates {
        if matches!(row, Throughput::Http1 | Throughput::Http2) {
            let rounds = bench.latency(row, rate, certificates, cores);
            println!("{}", report::latency(row, rate, &rounds));
        }
    }
}

fn installed(options: &Options) -> Vec<Kind> {
    let is_there = |kind: &Kind| match kind.version(&options.perennial) {
        Some(version) => {
            println!("- {kind:?}: {version}");
            true
        }
        None => {
            println!("- {kind:?}: not installed");
            false
        }
    };
    options.servers.iter().copied().filter(is_there).collect()
}

/// How many files this process may have open, and those that it starts.
fn descriptors() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current.map_or(usize::MAX, |limit| limit as usize)
}
