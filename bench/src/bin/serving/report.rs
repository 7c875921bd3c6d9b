//! The tables.

use std::fmt::Write as _;
use std::time::Duration;

use perennial_bench::cores::Split;
use perennial_bench::load::tls::Groups;
use perennial_bench::servers::Kind;
use perennial_bench::statistics::{Summary, quantile_of_sorted};

use crate::cell::{Cell, Many, Memory, Rounds};
use crate::options::Options;
use crate::rows::Throughput;

/// A share of the server's cores that is too much: of idling under full load, and of what others
/// do there.
const TOLERATED: f64 = 0.05;

pub fn machine(options: &Options, split: &Split) -> String {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name"));
    let groups = match options.groups {
        Groups::X25519 => "X25519",
        Groups::Hybrid => "X25519MLKEM768, X25519",
    };
    let shared = if split.is_shared() {
        " (the same: nothing here can be trusted)"
    } else {
        ""
    };
    format!(
        "- Machine: {}, Linux {}; the server's cores {:?}, the client's and the upstream's \
         {:?}{shared}\n\
         - {} rounds of {:.1} s, each after {:.1} s of warming up; the servers take turns, and are \
         started anew each time. Medians, and least to most\n\
         - TLS 1.3, P-256 certificates, AES-128-GCM; the client offers {groups}; no access log",
        model.unwrap_or(": ?").trim_start_matches(['\t', ' ', ':']),
        read("/proc/sys/kernel/osrelease").trim(),
        split.server,
        split.client,
        options.rounds,
        options.window.as_secs_f64(),
        options.warm_up.as_secs_f64(),
    )
}

pub fn heading(cores: usize, split: &Split) -> String {
    let plural = if cores == 1 { "" } else { "s" };
    let all = match split.server.len() {
        1 => " (which is all but the client's)",
        _ => "",
    };
    format!("\n### {cores} core{plural}{all}\n")
}

pub const THROUGHPUT_HEAD: &str = "\
| row | server | a second | range | of nginx's | in each round | CPU each (user + system) | of nginx's | \
server busy | client busy | remarks |
|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---|";

/// Requests, or MiB where bodies are what counts.
fn work(row: Throughput, cell: &Cell) -> f64 {
    if row.is_bulk() {
        cell.counts.body_bytes as f64 / f64::from(1 << 20)
    } else {
        cell.counts.requests as f64
    }
}

fn rate(row: Throughput, cell: &Cell) -> f64 {
    work(row, cell) / cell.wall.as_secs_f64()
}

/// The rate of the slowest server.
pub fn slowest(row: Throughput, rounds: &Rounds<Cell>) -> f64 {
    let rates = rounds
        .iter()
        .map(|(_, cells)| median(cells, |cell| rate(row, cell)));
    rates.fold(f64::INFINITY, f64::min)
}

fn median<T>(cells: &[T], value: impl Fn(&T) -> f64) -> f64 {
    Summary::of(cells.iter().map(value)).map_or(f64::NAN, |summary| summary.median)
}

fn nginx<T>(rounds: &Rounds<T>) -> Option<&[T]> {
    let found = rounds.iter().find(|(kind, _)| *kind == Kind::Nginx);
    found.map(|(_, cells)| cells.as_slice())
}

/// The ratio of the medians.
fn of_nginx<T>(cells: &[T], nginx: Option<&[T]>, value: impl Fn(&T) -> f64) -> String {
    nginx.map_or("-".to_owned(), |nginx| {
        format!("{:.2}", median(cells, &value) / median(nginx, &value))
    })
}

fn lines<T>(rounds: &Rounds<T>, line: impl Fn(Kind, &[T]) -> String) -> String {
    let lines: Vec<String> = rounds
        .iter()
        .map(|(kind, cells)| line(*kind, cells))
        .collect();
    lines.join("\n")
}

pub fn throughput(row: Throughput, rounds: &Rounds<Cell>) -> String {
    lines(rounds, |kind, cells| {
        format!(
            "| {} | {kind:?} | {} |",
            row.title(),
            throughput_fields(row, cells, nginx(rounds))
        )
    })
}

fn throughput_fields(row: Throughput, cells: &[Cell], nginx: Option<&[Cell]>) -> String {
    let (factor, unit, suffix) = if row.is_bulk() {
        (1024.0 * 1e3, "ms/GiB", " MiB")
    } else {
        (1e6, "us", "")
    };
    let user = |cell: &Cell| factor * cell.server.user.as_secs_f64() / work(row, cell);
    let system = |cell: &Cell| factor * cell.server.system.as_secs_f64() / work(row, cell);
    let cost = |cell: &Cell| user(cell) + system(cell);
    let rate = |cell: &Cell| rate(row, cell);
    let Some(rates) = Summary::of(cells.iter().map(rate)) else {
        return String::new();
    };
    let pairs = nginx.and_then(|nginx| {
        let pairs = cells.iter().zip(nginx);
        Summary::of(pairs.map(|(own, nginx)| rate(own) / rate(nginx)))
    });
    format!(
        "{:.0}{suffix} | {:.0} to {:.0} | {} | {} | {:.1} {unit} ({:.1} + {:.1}) | {} | {:.0} % | {:.0} % | {}",
        rates.median,
        rates.least,
        rates.most,
        of_nginx(cells, nginx, rate),
        pairs.map_or("-".to_owned(), |pairs| format!(
            "{:.2} to {:.2}",
            pairs.least, pairs.most
        )),
        median(cells, cost),
        median(cells, user),
        median(cells, system),
        of_nginx(cells, nginx, cost),
        100.0 * median(cells, |cell| cell.server_share),
        100.0 * median(cells, |cell| cell.client_share),
        remarks(row, &cells.iter().collect::<Vec<_>>()),
    )
}

/// Why a row is not to be believed, and what was negotiated where the row is about that.
fn remarks(row: Throughput, cells: &[&Cell]) -> String {
    let mut remarks = Vec::new();
    let idle = median(cells, |cell| cell.server_idle);
    if idle > TOLERATED {
        remarks.push(format!(
            "**client-bound**: the server idled {:.0} %",
            100.0 * idle
        ));
    }
    remarks.extend(disturbed(cells));
    remarks.extend(errors(cells));
    let resumed = |cell: &&Cell| cell.counts.resumed as f64 / cell.counts.handshakes.max(1) as f64;
    if row == Throughput::Resumed && median(cells, resumed) < 0.99 {
        remarks.push(format!(
            "**{:.0} % resumed**",
            100.0 * median(cells, resumed)
        ));
    }
    if row == Throughput::Handshakes {
        let negotiated = cells
            .iter()
            .find_map(|cell| cell.outcome.negotiated.clone());
        remarks.extend(negotiated.map(|agreed| format!("{}, {}", agreed.group, agreed.suite)));
    }
    remarks.join("; ")
}

/// Whether others ran on the server's cores.
fn disturbed(cells: &[&Cell]) -> Option<String> {
    let others = median(cells, |cell| cell.others());
    (others > TOLERATED).then(|| format!("disturbed: others took {:.0} %", 100.0 * others))
}

fn errors(cells: &[&Cell]) -> Option<String> {
    let errors: u64 = cells.iter().map(|cell| cell.counts.errors).sum();
    let fault = cells.iter().find_map(|cell| cell.outcome.fault.clone());
    (errors > 0).then(|| format!("**{errors} errors**: {}", fault.unwrap_or_default()))
}

pub const LATENCY_HEAD: &str = "\
| latency at 70 % of the slowest | server | p50 ms | range | of nginx's | p99 ms | range | \
of nginx's | p99.9 ms | range | of nginx's | server busy | client busy | remarks |
|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|";

pub fn latency(row: Throughput, rate: f64, rounds: &Rounds<Cell>) -> String {
    lines(rounds, |kind, cells| {
        let seen: Vec<&Cell> = cells.iter().collect();
        let mut text = format!("| {}, {rate:.0} a second | {kind:?} |", row.title());
        for fraction in [0.5, 0.99, 0.999] {
            let value =
                |cell: &Cell| milliseconds(quantile_of_sorted(&cell.outcome.latencies, fraction));
            if let Some(summary) = Summary::of(cells.iter().map(value)) {
                let _ = write!(
                    text,
                    " {:.2} | {:.2} to {:.2} | {} |",
                    summary.median,
                    summary.least,
                    summary.most,
                    of_nginx(cells, nginx(rounds), value),
                );
            }
        }
        let answered = median(cells, |cell| {
            cell.counts.requests as f64 / cell.wall.as_secs_f64()
        });
        let mut remarks: Vec<String> = disturbed(&seen).into_iter().chain(errors(&seen)).collect();
        if answered < 0.99 * rate {
            remarks.push(format!("**{answered:.0} a second were answered**"));
        }
        let _ = write!(
            text,
            " {:.0} % | {:.0} % | {} |",
            100.0 * median(cells, |cell| cell.server_share),
            100.0 * median(cells, |cell| cell.client_share),
            remarks.join("; ")
        );
        text
    })
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

pub fn memory(rounds: &Rounds<Memory>, connections: usize) -> String {
    let head = format!(
        "\n| server | idle, MiB | of nginx's | KiB for each of {connections} idle TLS connections | \
         of nginx's |\n|---|---:|---:|---:|---:|\n"
    );
    head + &lines(rounds, |kind, cells| {
        let idle = |cell: &Memory| cell.idle / 1024.0;
        let each = |cell: &Memory| cell.each_connection;
        format!(
            "| {kind:?} | {:.1} | {} | {:.1} | {} |",
            median(cells, idle),
            of_nginx(cells, nginx(rounds), idle),
            median(cells, each),
            of_nginx(cells, nginx(rounds), each),
        )
    })
}

pub fn many(rounds: &Rounds<Many>, count: usize) -> String {
    let head = format!(
        "\n| with {count} certificates: server | ms to the first handshake | range | of nginx's | \
         ms to all | MiB | of nginx's | full handshakes a second, random names | range | \
         of nginx's | CPU each (user + system) | of nginx's | server busy | client busy | remarks |\n\
         |---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|\n"
    );
    head + &lines(rounds, |kind, cells| {
        format!("| {kind:?} | {} |", many_fields(cells, nginx(rounds)))
    })
}

fn many_fields(cells: &[Many], nginx: Option<&[Many]>) -> String {
    let row = Throughput::Handshakes;
    let first = |cell: &Many| milliseconds(cell.first_handshake);
    let memory = |cell: &Many| cell.memory_kib / 1024.0;
    let rate = |cell: &Many| rate(row, &cell.handshakes);
    let user =
        |cell: &Many| 1e6 * cell.handshakes.server.user.as_secs_f64() / work(row, &cell.handshakes);
    let system = |cell: &Many| {
        1e6 * cell.handshakes.server.system.as_secs_f64() / work(row, &cell.handshakes)
    };
    let cost = |cell: &Many| user(cell) + system(cell);
    let (Some(firsts), Some(rates)) = (
        Summary::of(cells.iter().map(first)),
        Summary::of(cells.iter().map(rate)),
    ) else {
        return String::new();
    };
    let handshakes: Vec<&Cell> = cells.iter().map(|cell| &cell.handshakes).collect();
    format!(
        "{:.0} | {:.0} to {:.0} | {} | {:.0} | {:.1} | {} | {:.0} | {:.0} to {:.0} | {} | \
         {:.1} us ({:.1} + {:.1}) | {} | {:.0} % | {:.0} % | {}",
        firsts.median,
        firsts.least,
        firsts.most,
        of_nginx(cells, nginx, first),
        median(cells, |cell| milliseconds(cell.all_loaded)),
        median(cells, memory),
        of_nginx(cells, nginx, memory),
        rates.median,
        rates.least,
        rates.most,
        of_nginx(cells, nginx, rate),
        median(cells, cost),
        median(cells, user),
        median(cells, system),
        of_nginx(cells, nginx, cost),
        100.0 * median(cells, |cell| cell.handshakes.server_share),
        100.0 * median(cells, |cell| cell.handshakes.client_share),
        remarks(row, &handshakes),
    )
}
