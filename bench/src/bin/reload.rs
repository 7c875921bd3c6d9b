//! The reload path at scale: start, memory, swaps and idling with 1 to 100,000 certificates,
//! beside the other servers. Prints one table. See bench/README.md.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use perennial_bench::certificates::{Authority, name, replace, write_all};
use perennial_bench::handshake::Client;
use perennial_bench::servers::{Kind, Running, Service, Setup};
use perennial_bench::statistics::{ms, quantile};

fn main() {
    let options = Options::parse();
    let directory = tempfile::tempdir().expect("a folder");
    let authority = Authority::new();
    let largest = options.counts.iter().copied().max().unwrap_or(1);
    for kind in options.servers.iter().copied() {
        match kind.version(&options.perennial) {
            Some(version) => println!("{kind:?}: {version}"),
            None => println!("{kind:?}: not installed"),
        }
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    println!("cores: {cores}; the client runs beside the server\n");
    println!(
        "| certificates | server | first handshake | all loaded | KiB a certificate | \
         change served p50 | p99 | idle CPU | handshake p99 | with swaps | failed |\n\
         |---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
    );
    for count in options.counts.iter().copied() {
        let certificates = directory.path().join(format!("certificates-{count}"));
        write_all(&authority, &certificates, count);
        // Files that were just written have to be looked at again; that is not what is measured.
        std::thread::sleep(Duration::from_secs(4));
        for kind in options.servers.iter().copied() {
            if kind.version(&options.perennial).is_none() || kind.gives_up_at(count) {
                continue;
            }
            let own = directory.path().join(format!("{kind:?}-{count}"));
            let row = Row::measure(kind, &options, &own, &certificates, count, &authority);
            println!("{}", row.line(kind, count));
        }
        if count != largest {
            std::fs::remove_dir_all(&certificates).expect("removed");
        }
    }
}

struct Options {
    counts: Vec<usize>,
    servers: Vec<Kind>,
    perennial: PathBuf,
    swaps: usize,
    /// How long handshakes are timed, without and with swaps, and the idle process is watched.
    time: Duration,
}

impl Options {
    fn parse() -> Options {
        let mut options = Options {
            counts: vec![1, 1_000, 10_000, 100_000],
            servers: Kind::ALL.to_vec(),
            perennial: PathBuf::from("target/release/perennial"),
            swaps: 100,
            time: Duration::from_secs(30),
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().unwrap_or_else(usage);
            match argument.as_str() {
                "--counts" => {
                    let texts = value();
                    let counts = texts
                        .split(',')
                        .map(|text| text.parse().unwrap_or_else(|_| usage()));
                    options.counts = counts.collect();
                }
                "--only" => {
                    let wanted = value();
                    options.servers.retain(|kind| kind.is_among(&wanted));
                }
                "--perennial" => options.perennial = value().into(),
                "--swaps" => options.swaps = value().parse().unwrap_or_else(|_| usage()),
                "--seconds" => {
                    let seconds = value().parse().unwrap_or_else(|_| usage());
                    options.time = Duration::from_secs(seconds);
                }
                _ => usage(),
            }
        }
        options
    }
}

fn usage<T>() -> T {
    eprintln!(
        "usage: reload [--counts 1,1000,...] [--only perennial,nginx,haproxy,caddy] [--perennial FILE] [--swaps N] [--seconds N]"
    );
    std::process::exit(64);
}

trait Patience {
    fn gives_up_at(self, count: usize) -> bool;
}

impl Patience for Kind {
    /// A reload of so many takes the others minutes each.
    fn gives_up_at(self, count: usize) -> bool {
        match self {
            Kind::Perennial => false,
            Kind::Nginx | Kind::HaProxy | Kind::Caddy => count > 10_000,
        }
    }
}

struct Row {
    first: Duration,
    all: Duration,
    kib: f64,
    changes: Vec<Duration>,
    idle: f64,
    quiet: Vec<Duration>,
    swapping: Vec<Duration>,
    failed: usize,
}

impl Row {
    fn measure(
        kind: Kind,
        options: &Options,
        own: &Path,
        certificates: &Path,
        count: usize,
        authority: &Authority,
    ) -> Row {
        let client = Client::new();
        let setup = Setup {
            kind,
            perennial: &options.perennial,
            directory: own,
            certificates,
            count,
            service: Service::Fixed,
            cores: &[],
            under: &[],
        };
        let empty = Running::start(&Setup {
            directory: &own.join("empty"),
            certificates: &own.join("no"),
            count: 0,
            ..setup
        });
        std::thread::sleep(Duration::from_secs(1));
        let base = empty.server.memory_kib();
        drop(empty);

        let mut running = Running::start(&setup);
        let first = running.wait_for(&client, &name(count * 3 / 4));
        while !running.is_loaded() {
            std::thread::sleep(Duration::from_millis(5));
        }
        let all = running.started.elapsed();
        std::thread::sleep(Duration::from_secs(5));
        let kib = running.server.memory_kib().saturating_sub(base) as f64 / count as f64;
        let idle = idle_share(&running, options.time);
        let swaps = if kind == Kind::Perennial {
            options.swaps
        } else {
            options.swaps.min(5)
        };
        let changes = (0..swaps)
            .map(|swap| {
                change(
                    &running,
                    &client,
                    certificates,
                    swap * 7919 % count,
                    authority,
                )
            })
            .collect();
        let (quiet, failed_quiet) = handshakes(&running, &client, options.time, || {});
        let mut swap = 0;
        let (swapping, failed_swapping) = handshakes(&running, &client, options.time, || {
            let number = swap * 104_729 % count;
            swap += 1;
            replace(certificates, number, &authority.issue(&name(number)));
            running.tell(number);
        });
        Row {
            first,
            all,
            kib,
            changes,
            idle,
            quiet,
            swapping,
            failed: failed_quiet + failed_swapping,
        }
    }

    fn line(mut self, kind: Kind, count: usize) -> String {
        format!(
            "| {count} | {kind:?} | {} | {} | {:.1} | {} | {} | {:.2} % | {} | {} | {} |",
            ms(self.first),
            ms(self.all),
            self.kib,
            ms(quantile(&mut self.changes, 0.5)),
            ms(quantile(&mut self.changes, 0.99)),
            100.0 * self.idle,
            ms(quantile(&mut self.quiet, 0.99)),
            ms(quantile(&mut self.swapping, 0.99)),
            self.failed,
        )
    }
}

/// The share of one core that the process takes while nothing happens.
fn idle_share(running: &Running, time: Duration) -> f64 {
    let before = running.server.cpu();
    std::thread::sleep(time);
    (running.server.cpu() - before).as_secs_f64() / time.as_secs_f64()
}

/// From the rename of one pair to the first handshake that gets it.
fn change(
    running: &Running,
    client: &Client,
    certificates: &Path,
    number: usize,
    authority: &Authority,
) -> Duration {
    let name = name(number);
    let before = client.leaf(running.address, &name).expect("served");
    let pair = authority.issue(&name);
    replace(certificates, number, &pair);
    let renamed = Instant::now();
    running.tell(number);
    client.time_to_change(running.address, &name, &before, renamed)
}

/// Handshakes one after the other, at most 200 a second, while `each_second` is done once a
/// second. Returns how long they took and how many failed.
fn handshakes(
    running: &Running,
    client: &Client,
    time: Duration,
    mut each_second: impl FnMut(),
) -> (Vec<Duration>, usize) {
    let stop = AtomicBool::new(false);
    let failed = AtomicUsize::new(0);
    let times = std::thread::scope(|scope| {
        let timed = scope.spawn(|| {
            let mut times = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let started = Instant::now();
                if client.leaf(running.address, &name(0)).is_err() {
                    failed.fetch_add(1, Ordering::Relaxed);
                }
                let took = started.elapsed();
                times.push(took);
                std::thread::sleep(Duration::from_millis(5).saturating_sub(took));
            }
            times
        });
        let begun = Instant::now();
        while begun.elapsed() < time {
            each_second();
            std::thread::sleep(Duration::from_secs(1));
        }
        stop.store(true, Ordering::Relaxed);
        timed.join().expect("no panic")
    });
    (times, failed.into_inner())
}
