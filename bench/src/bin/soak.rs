//! `soak [--mib N] [--bound-mib N] [--perennial FILE]`: sends one body of 10 GiB through Perennial in
//! each direction, by HTTP/1.1 and by HTTP/2, as fast as both ends take it, and fails where resident
//! memory grows by more than the bound meanwhile. The client is curl. See bench/README.md.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use perennial_bench::certificates::{Authority, name, write_all};
use perennial_bench::handshake::Client;
use perennial_bench::servers::{Kind, Running, Service, Setup};

const DEFAULT_MIB: u64 = 10 * 1024;
/// What buffers of both sides, once for each protocol, and the allocator may add.
const DEFAULT_BOUND_MIB: u64 = 24;
const MIB: u64 = 1 << 20;
const CHUNK: usize = 256 * 1024;

struct Options {
    mib: u64,
    bound_mib: u64,
    perennial: PathBuf,
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Options, String> {
        let mut options = Options {
            mib: DEFAULT_MIB,
            bound_mib: DEFAULT_BOUND_MIB,
            perennial: PathBuf::from("target/release/perennial"),
        };
        while let Some(option) = arguments.next() {
            let value = arguments
                .next()
                .ok_or_else(|| format!("{option} needs a value"))?;
            let number = || {
                let number = value.parse().ok().filter(|number| *number > 0);
                number.ok_or_else(|| format!("{option} {value}: not a number of MiB"))
            };
            match option.as_str() {
                "--mib" => options.mib = number()?,
                "--bound-mib" => options.bound_mib = number()?,
                "--perennial" => options.perennial = value.into(),
                _ => return Err(format!("unknown option {option}")),
            }
        }
        Ok(options)
    }
}

fn main() -> ExitCode {
    let result = Options::parse(std::env::args().skip(1)).and_then(|options| soak(&options));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("soak: {error}");
            ExitCode::FAILURE
        }
    }
}

fn soak(options: &Options) -> Result<(), String> {
    let upstream = start_upstream().map_err(|error| format!("the upstream: {error}"))?;
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let certificates = folder.path().join("certificates");
    write_all(&Authority::new(), &certificates, 1);
    let mut perennial = Running::start(&Setup {
        kind: Kind::Perennial,
        perennial: &options.perennial,
        directory: &folder.path().join("perennial"),
        certificates: &certificates,
        count: 1,
        service: Service::Proxy { upstream },
        cores: &[],
        under: &[],
    });
    perennial.wait_for(&Client::new(), &name(0));
    // A sparse file: reading it costs next to nothing.
    let body = folder.path().join("body");
    let size = options.mib * MIB;
    let file = std::fs::File::create(&body);
    file.and_then(|file| file.set_len(size))
        .map_err(|error| format!("{}: {error}", body.display()))?;
    // The first request is what a process takes anyway.
    transfer("--http1.1", None, MIB, perennial.address)?;
    let process = perennial.server.0.id();
    let [_, before] = memory_kib(process)?;
    println!(
        "{:>9} {:<9} {:>8} {:>9} {:>11} {:>12} {:>12}",
        "MiB", "", "seconds", "MiB/s", "CPU s/GiB", "resident KiB", "at most KiB"
    );
    println!(
        "{:>9} {:<9} {:>8} {:>9} {:>11} {before:>12}",
        "", "before", "", "", ""
    );
    for version in ["--http1.1", "--http2"] {
        for (direction, body) in [("down", None), ("up", Some(&*body))] {
            let (begun, cpu) = (Instant::now(), perennial.server.cpu());
            transfer(version, body, size, perennial.address)?;
            let seconds = begun.elapsed().as_secs_f64();
            let cpu = (perennial.server.cpu() - cpu).as_secs_f64();
            let [most, now] = memory_kib(process)?;
            let protocol = if version == "--http2" { "h2" } else { "h1" };
            println!(
                "{:>9} {:<9} {seconds:>8.1} {:>9.0} {:>11.2} {now:>12} {most:>12}",
                options.mib,
                format!("{protocol} {direction}"),
                options.mib as f64 / seconds,
                cpu * 1024.0 / options.mib as f64,
            );
        }
    }
    let [most, _] = memory_kib(process)?;
    let grown = most.saturating_sub(before);
    let bound = options.bound_mib * 1024;
    match grown <= bound {
        true => println!("grown by {grown} KiB at most, of {bound} that it may"),
        false => {
            return Err(format!(
                "resident memory has grown by {grown} KiB, {bound} are the bound"
            ));
        }
    }
    Ok(())
}

/// The most memory that a process has had, and what it has now.
fn memory_kib(process: u32) -> Result<[u64; 2], String> {
    let path = format!("/proc/{process}/status");
    let text = std::fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
    let number = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key))?;
        line.split_whitespace().next()?.parse().ok()
    };
    let both = number("VmHWM:").zip(number("VmRSS:"));
    let (most, now) =
        both.ok_or_else(|| format!("{path} says nothing of memory: has it ended?"))?;
    Ok([most, now])
}

/// Sends `body`, or asks for as much; fails where not all of it arrives.
fn transfer(
    version: &str,
    body: Option<&Path>,
    size: u64,
    address: SocketAddr,
) -> Result<(), String> {
    let host = name(0);
    let mut curl = Command::new("curl");
    curl.args(["--insecure", "--silent", "--show-error", "--fail", version]);
    curl.args([
        "--write-out",
        "\n%{http_version} %{size_download} %{size_upload}",
    ]);
    let resolve = format!("{host}:{}:{}", address.port(), address.ip());
    curl.args(["--resolve", &resolve]);
    match body {
        // What the upstream has counted is what comes back.
        Some(body) => curl
            .args([
                "--request",
                "POST",
                "--expect100-timeout",
                "60",
                "--upload-file",
            ])
            .arg(body),
        None => curl.args(["--output", "/dev/null"]),
    };
    curl.arg(format!("https://{host}:{}/{size}", address.port()));
    let done = curl.output().map_err(|error| format!("curl: {error}"))?;
    let (out, errors) = (
        String::from_utf8_lossy(&done.stdout),
        String::from_utf8_lossy(&done.stderr),
    );
    let protocol = if version == "--http2" { "2" } else { "1.1" };
    let wanted = match body {
        None => format!("\n{protocol} {size} 0"),
        Some(_) => format!("{size}\n{protocol} {} {size}", size.to_string().len()),
    };
    match done.status.success() && out == wanted {
        true => Ok(()),
        false => Err(format!(
            "{curl:?} ended with {}: {errors}{out:?} instead of {wanted:?}",
            done.status
        )),
    }
}

/// `GET /N` is answered with N bytes, anything with a body with the number of its bytes.
fn start_upstream() -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // Whoever closes a connection has what it wanted.
            std::thread::spawn(move || drop(serve(stream)));
        }
    });
    Ok(address)
}

fn serve(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::with_capacity(CHUNK, stream.try_clone()?);
    let chunk = vec![b'x'; CHUNK];
    loop {
        let (mut first, mut length, mut line) = (String::new(), None, String::new());
        if reader.read_line(&mut first)? == 0 {
            return Ok(());
        }
        let mut expects = false;
        while reader.read_line(&mut line)? > 2 {
            let lower = line.to_ascii_lowercase();
            if let Some(value) = lower.strip_prefix("content-length:") {
                length = value.trim().parse::<u64>().ok();
            }
            expects |= lower.starts_with("expect:");
            line.clear();
        }
        if expects {
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        if let Some(length) = length {
            let counted = count(&mut reader, length)?.to_string();
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n",
                counted.len()
            );
            stream.write_all(format!("{head}{counted}").as_bytes())?;
            continue;
        }
        let size = first
            .split('/')
            .nth(1)
            .and_then(|rest| rest.split(' ').next());
        let size: u64 = size.and_then(|size| size.parse().ok()).unwrap_or_default();
        stream
            .write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n").as_bytes())?;
        let mut left = size;
        while left > 0 {
            let part = left.min(CHUNK as u64) as usize;
            stream.write_all(&chunk[..part])?;
            left -= part as u64;
        }
    }
}

fn count(reader: &mut impl BufRead, length: u64) -> std::io::Result<u64> {
    std::io::copy(&mut reader.take(length), &mut std::io::sink())
}
