//! `guard [--record] [--keep DIR] [--perennial FILE]`: counts the instructions that Perennial's user
//! code takes for a request and for a handshake, and the memory of a connection that waits, which
//! neither noise nor the clock moves, and fails where it is more than 5 % above what bench/guard.toml
//! records. With `--keep` callgrind's files stay, for callgrind_annotate. See bench/README.md.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use perennial_bench::certificates::{Authority, name, write_all};
use perennial_bench::cores::Split;
use perennial_bench::handshake::Client;
use perennial_bench::load::tls::{self, Groups};
use perennial_bench::load::{Aim, Load, Pace, Plan, Protocol, Target};
use perennial_bench::process::raise_descriptors;
use perennial_bench::servers::{Kind, Running, Service, Setup};
use perennial_bench::upstream;

/// More than this above the record is a regression.
const TOLERATED: f64 = 0.05;
/// Answers that come in other portions, and a start that is never quite the same, only add: of so
/// many measurements the least is what counts.
const ATTEMPTS: usize = 3;
/// Under valgrind everything takes fifty times as long.
const PATIENCE: Duration = Duration::from_secs(180);

struct Measured {
    key: &'static str,
    what: &'static str,
    protocol: Protocol,
    quantity: Quantity,
}

/// What is measured with so many, and with more: what the start costs is in both and drops out.
#[derive(Clone, Copy)]
enum Quantity {
    /// Of user code, for each request; with `count` of them, and twice as many.
    Instructions { pace: Pace, count: u64 },
    /// Resident, for each connection that has had an answer and waits.
    Bytes,
}

impl Quantity {
    fn unit(self) -> &'static str {
        match self {
            Quantity::Instructions { .. } => "instructions",
            Quantity::Bytes => "bytes",
        }
    }
}

/// Connections that wait, and so many more of them.
const WAITING: [usize; 2] = [500, 2000];
/// What a server may still do about connections that have had their answer.
const SETTLE: Duration = Duration::from_secs(2);

const ALL: [Measured; 5] = [
    Measured {
        key: "http1_request",
        what: "h1 request on a kept connection",
        protocol: Protocol::Http1,
        quantity: Quantity::Instructions {
            pace: Pace::Closed { streams: 1 },
            count: 3000,
        },
    },
    Measured {
        key: "http2_request",
        what: "h2 request on a kept connection",
        protocol: Protocol::Http2,
        quantity: Quantity::Instructions {
            pace: Pace::Closed { streams: 1 },
            count: 3000,
        },
    },
    Measured {
        key: "full_handshake",
        what: "connection with a full handshake and one h1 request",
        protocol: Protocol::Http1,
        quantity: Quantity::Instructions {
            pace: Pace::Churn,
            count: 300,
        },
    },
    Measured {
        key: "http1_waiting",
        what: "memory of an h1 connection that waits",
        protocol: Protocol::Http1,
        quantity: Quantity::Bytes,
    },
    Measured {
        key: "http2_waiting",
        what: "memory of an h2 connection that waits",
        protocol: Protocol::Http2,
        quantity: Quantity::Bytes,
    },
];

fn main() -> ExitCode {
    let (mut record, mut keep) = (false, None);
    let mut perennial = PathBuf::from("target/release/perennial");
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match (argument.as_str(), &mut arguments) {
            ("--record", _) => record = true,
            ("--keep", rest) if keep.is_none() => keep = rest.next().map(PathBuf::from),
            ("--perennial", rest) => match rest.next() {
                Some(file) => perennial = file.into(),
                None => return usage(),
            },
            _ => return usage(),
        }
    }
    raise_descriptors();
    let directory = tempfile::tempdir().expect("a folder");
    write_all(&Authority::new(), &directory.path().join("certificates"), 1);
    let split = Split::new(None);
    let guard = Guard {
        directory: directory.path(),
        upstream: upstream::start(&split.client, 1),
        split,
        keep,
        perennial,
    };
    if record {
        write_record(&ALL.map(|measured| guard.least(&measured, 0)));
        return ExitCode::SUCCESS;
    }
    let record = read_record();
    let mut result = ExitCode::SUCCESS;
    for measured in &ALL {
        let before = recorded(&record, measured);
        let count = guard.least(measured, before.map_or(u64::MAX, most));
        let unit = measured.quantity.unit();
        println!("{}: {}", measured.what, verdict(count, before, unit));
        if before.is_none_or(|before| count > most(before)) {
            result = ExitCode::FAILURE;
        }
    }
    if result != ExitCode::SUCCESS {
        eprintln!("if that is wanted: make bench-guard RECORD=1");
    }
    result
}

fn usage() -> ExitCode {
    eprintln!("usage: guard [--record] [--keep DIR] [--perennial FILE]");
    ExitCode::from(64)
}

/// What is not a regression yet.
fn most(before: u64) -> u64 {
    (before as f64 * (1.0 + TOLERATED)) as u64
}

fn verdict(count: u64, before: Option<u64>, unit: &str) -> String {
    let Some(before) = before else {
        return format!("{count} {unit}, nothing recorded");
    };
    let change = count as f64 / before as f64 - 1.0;
    let judgement = if count > most(before) {
        format!("MORE than {:.0} % above", 100.0 * TOLERATED)
    } else if change < -TOLERATED {
        "less; record it".to_owned()
    } else {
        "ok".to_owned()
    };
    format!(
        "{count} {unit}, recorded {before} ({:+.1} %): {judgement}",
        100.0 * change
    )
}

struct Guard<'a> {
    directory: &'a Path,
    upstream: std::net::SocketAddr,
    split: Split,
    keep: Option<PathBuf>,
    perennial: PathBuf,
}

impl Guard<'_> {
    /// The least of some measurements, of which the first that is not above `enough` is the last.
    fn least(&self, measured: &Measured, enough: u64) -> u64 {
        let mut least = u64::MAX;
        for _ in 0..ATTEMPTS {
            least = least.min(self.measure(measured));
            if least <= enough {
                break;
            }
        }
        least
    }

    fn measure(&self, measured: &Measured) -> u64 {
        match measured.quantity {
            Quantity::Instructions { pace, count } => {
                let once = self.instructions(measured, pace, count);
                let twice = self.instructions(measured, pace, 2 * count);
                (twice - once) / count
            }
            Quantity::Bytes => self.bytes_each(measured.protocol),
        }
    }

    /// Of one run of the server from start to end.
    fn instructions(&self, measured: &Measured, pace: Pace, count: u64) -> u64 {
        let own = tempfile::tempdir_in(self.directory).expect("a folder");
        let result = match &self.keep {
            Some(folder) => folder.join(format!("{}-{count}.callgrind", measured.key)),
            None => own.path().join("callgrind"),
        };
        let under = [
            "valgrind".to_owned(),
            "--tool=callgrind".to_owned(),
            format!("--callgrind-out-file={}", result.display()),
        ];
        let mut running = self.start(own.path(), &under);
        let load = Load::start(
            Plan {
                limit: Some(count),
                // What answers are together in a buffer would depend on the clock.
                ..self.plan(&running, measured.protocol, pace, 1)
            },
            &self.split.client[..1],
        );
        wait_until("the answers", || load.counts().requests >= count);
        let (errors, fault) = (load.counts().errors, load.stop().fault);
        assert!(errors == 0, "{fault:?}");
        running.server.terminate();
        wait_until("the end", || !running.server.is_alive());
        total(&result)
    }

    /// What one connection more adds.
    fn bytes_each(&self, protocol: Protocol) -> u64 {
        let own = tempfile::tempdir_in(self.directory).expect("a folder");
        let running = self.start(own.path(), &[]);
        let resident = WAITING.map(|connections| {
            let plan = self.plan(&running, protocol, Pace::Hold, connections);
            let load = Load::start(plan, &self.split.client[..1]);
            wait_until("the answers", || {
                load.counts().requests >= connections as u64
            });
            std::thread::sleep(SETTLE);
            // The load stays: what it holds is what is measured.
            (load, running.server.memory_kib())
        });
        let [(few, before), (more, after)] = resident;
        few.stop();
        more.stop();
        after.saturating_sub(before) * 1024 / WAITING[1] as u64
    }

    /// The server with one worker and everything loaded.
    fn start(&self, own: &Path, under: &[String]) -> Running {
        let mut running = Running::start(&Setup {
            kind: Kind::Perennial,
            perennial: &self.perennial,
            directory: own,
            certificates: &self.directory.join("certificates"),
            count: 1,
            service: Service::Proxy {
                upstream: self.upstream,
            },
            cores: &self.split.server[..1],
            under,
        });
        running.wait_for(&Client::new(), &name(0));
        wait_until("the first load", || running.is_loaded());
        running
    }

    fn plan(&self, running: &Running, protocol: Protocol, pace: Pace, connections: usize) -> Plan {
        Plan {
            address: running.address,
            tls: tls::config(Groups::X25519, protocol, false),
            targets: Arc::new([Target::new(&name(0), upstream::SMALL)]),
            aim: Aim::PerConnection,
            protocol,
            connections,
            pace,
            limit: None,
        }
    }
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < PATIENCE, "{what} did not come");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The number that callgrind calls `totals` or `summary`.
fn total(path: &Path) -> u64 {
    let text = std::fs::read_to_string(path).expect("callgrind's result");
    let line = ["totals: ", "summary: "]
        .iter()
        .find_map(|prefix| text.lines().find_map(|line| line.strip_prefix(prefix)));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.expect("a total")
}

fn record_file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("guard.toml")
}

/// The recorded figure for this architecture.
fn recorded(table: &toml::Table, measured: &Measured) -> Option<u64> {
    let figure = table.get(std::env::consts::ARCH)?.get(measured.key)?;
    u64::try_from(figure.as_integer()?).ok()
}

fn read_record() -> toml::Table {
    let text = std::fs::read_to_string(record_file()).unwrap_or_default();
    text.parse().expect("bench/guard.toml is TOML")
}

fn write_record(counts: &[u64; ALL.len()]) {
    let mut table = read_record();
    let mut figures = toml::Table::new();
    for (measured, count) in ALL.iter().zip(counts) {
        println!("{}: {count} {}", measured.what, measured.quantity.unit());
        let count = i64::try_from(*count).expect("a number that TOML has");
        figures.insert(measured.key.to_owned(), count.into());
    }
    figures.insert("cpu".to_owned(), cpu().into());
    table.insert(std::env::consts::ARCH.to_owned(), figures.into());
    let mut text =
        "# Instructions of user code and bytes of memory, by `make bench-guard`, which fails above 5 % more.\n\
         # Written by `make bench-guard RECORD=1`; see README.md.\n"
            .to_owned();
    let _ = write!(text, "\n{table}");
    std::fs::write(record_file(), text).expect("written");
}

/// What BoringSSL chooses its code by; under valgrind it sees a part of it.
fn cpu() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.map_or("", |rest| rest.trim_start_matches(['\t', ' ', ':']))
            .to_owned()
    };
    let known = [
        "aes",
        "adx",
        "avx",
        "avx2",
        "avx512f",
        "bmi2",
        "sha_ni",
        "vaes",
        "vpclmulqdq",
    ];
    let features: Vec<String> = field("flags")
        .split_whitespace()
        .filter(|flag| known.contains(flag))
        .map(str::to_owned)
        .collect();
    format!("{}: {}", field("model name"), features.join(" "))
}
