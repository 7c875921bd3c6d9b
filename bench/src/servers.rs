//! The servers under measurement, each with its own way to be told of a new certificate.

use std::fmt::Write as _;
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::certificates::{files, name};
use crate::process::Server;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Perennial,
    Nginx,
    HaProxy,
    Caddy,
}

impl Kind {
    pub const ALL: [Kind; 4] = [Kind::Perennial, Kind::Nginx, Kind::HaProxy, Kind::Caddy];

    /// The program and its version, or `None` where it is not installed.
    pub fn version(self, perennial: &Path) -> Option<String> {
        let (program, argument) = match self {
            Kind::Perennial => (perennial.to_owned(), "--version"),
            Kind::Nginx => (PathBuf::from("nginx"), "-v"),
            Kind::HaProxy => (PathBuf::from("haproxy"), "-v"),
            Kind::Caddy => (PathBuf::from("caddy"), "version"),
        };
        let output = Command::new(program).arg(argument).output().ok()?;
        let text = [output.stdout, output.stderr].concat();
        Some(
            String::from_utf8_lossy(&text)
                .lines()
                .next()
                .unwrap_or("")
                .to_owned(),
        )
    }
}

/// A server that was started on some certificates.
pub struct Running {
    kind: Kind,
    pub server: Server,
    pub address: SocketAddr,
    directory: PathBuf,
    certificates: PathBuf,
}

impl Running {
    /// Starts a server on the first `count` pairs below `certificates`. `directory` is its own.
    pub fn start(
        kind: Kind,
        perennial: &Path,
        directory: &Path,
        certificates: &Path,
        count: usize,
    ) -> Running {
        fs::create_dir_all(directory).expect("a folder");
        let address = free_address();
        let file = directory.join("configuration");
        let text = configuration(kind, directory, certificates, count, address);
        fs::write(&file, text).expect("written");
        let mut command = command(kind, perennial, directory, &file);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let log = fs::File::create(directory.join("log")).expect("a log");
        command.stderr(log);
        Running {
            kind,
            server: Server::start(&mut command),
            address,
            directory: directory.to_owned(),
            certificates: certificates.to_owned(),
        }
    }

    /// Does what an operator has to do after a pair was replaced.
    pub fn tell(&self, number: usize) {
        match self.kind {
            Kind::Perennial => {}
            Kind::Nginx => run(Command::new("nginx")
                .arg("-c")
                .arg(self.directory.join("configuration"))
                .arg("-p")
                .arg(&self.directory)
                .args(["-s", "reload"])),
            Kind::HaProxy => {
                combine(&self.certificates, &self.directory, number);
                run(Command::new("kill").args(["-USR2", &self.server.0.id().to_string()]));
            }
            Kind::Caddy => run(Command::new("caddy")
                .args(["reload", "--force", "--config"])
                .arg(self.directory.join("configuration"))
                .args(["--adapter", "caddyfile", "--address"])
                .arg(admin_of(self.address).to_string())),
        }
    }

    /// Whether it says that everything is loaded; the others are when they serve.
    pub fn is_loaded(&self) -> bool {
        if self.kind != Kind::Perennial {
            return true;
        }
        let log = fs::read_to_string(self.directory.join("log")).unwrap_or_default();
        log.contains("first load done")
    }
}

fn run(command: &mut Command) {
    let status = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    assert!(
        status.is_ok_and(|status| status.success()),
        "{command:?} failed"
    );
}

fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address")
}

fn admin_of(address: SocketAddr) -> SocketAddr {
    SocketAddr::new([127, 0, 0, 2].into(), address.port())
}

fn command(kind: Kind, perennial: &Path, directory: &Path, file: &Path) -> Command {
    let mut command = match kind {
        Kind::Perennial => Command::new(perennial),
        Kind::Nginx => Command::new("nginx"),
        Kind::HaProxy => Command::new("haproxy"),
        Kind::Caddy => Command::new("caddy"),
    };
    match kind {
        Kind::Perennial => {
            command.arg("run").arg("--config").arg(file);
            command.env("RUST_LOG", "perennial=info,perennial::access=off")
        }
        Kind::Nginx => command
            .arg("-c")
            .arg(file)
            .arg("-p")
            .arg(directory)
            .args(["-g", "daemon off;"]),
        Kind::HaProxy => command.arg("-W").arg("-f").arg(file),
        Kind::Caddy => command
            .args(["run", "--adapter", "caddyfile", "--config"])
            .arg(file)
            .env("XDG_DATA_HOME", directory)
            .env("XDG_CONFIG_HOME", directory),
    };
    command
}

fn configuration(
    kind: Kind,
    directory: &Path,
    certificates: &Path,
    count: usize,
    address: SocketAddr,
) -> String {
    match kind {
        Kind::Perennial => format!(
            "[server]\nhttp_listen = []\nhttps_listen = [\"{address}\"]\nadmin_listen = \"off\"\n\
             state_dir = {:?}\n[certificates]\ndirectories = [{certificates:?}]\n\
             [[sites]]\nhosts = [\"{}\"]\ntls = \"files\"\nupstreams = [\"respond:x\"]\n",
            directory.join("state"),
            name(0),
        ),
        Kind::Nginx => nginx(certificates, count, address),
        Kind::HaProxy => haproxy(directory, certificates, count, address),
        Kind::Caddy => caddy(certificates, count, address),
    }
}

fn nginx(certificates: &Path, count: usize, address: SocketAddr) -> String {
    let mut text = format!(
        "worker_processes auto;\nerror_log stderr;\npid nginx.pid;\n\
         events {{ worker_connections 1024; }}\n\
         http {{\naccess_log off;\nserver_names_hash_max_size {};\nserver_names_hash_bucket_size 128;\n",
        (2 * count).next_power_of_two().max(512),
    );
    for number in 0..count {
        let (certificate, key) = files(certificates, number);
        let _ = writeln!(
            text,
            "server {{ listen {address} ssl; server_name {}; ssl_certificate {}; \
             ssl_certificate_key {}; return 200; }}",
            name(number),
            certificate.display(),
            key.display(),
        );
    }
    text + "}\n"
}

fn haproxy(directory: &Path, certificates: &Path, count: usize, address: SocketAddr) -> String {
    fs::create_dir_all(directory.join("crt")).expect("a folder");
    for number in 0..count {
        combine(certificates, directory, number);
    }
    format!(
        "global\n  ssl-default-bind-options ssl-min-ver TLSv1.2\ndefaults\n  mode http\n  timeout client 30s\n  \
         timeout server 30s\n  timeout connect 3s\nfrontend f\n  bind {address} ssl crt {}\n  \
         http-request return status 200\n",
        directory.join("crt").display(),
    )
}

/// HAProxy wants certificate and key in one file.
fn combine(certificates: &Path, directory: &Path, number: usize) {
    let (certificate, key) = files(certificates, number);
    let both = [
        fs::read(certificate).expect("read"),
        fs::read(key).expect("read"),
    ]
    .concat();
    fs::write(directory.join("crt").join(name(number) + ".pem"), both).expect("written");
}

fn caddy(certificates: &Path, count: usize, address: SocketAddr) -> String {
    let mut text = format!("{{\n admin {}\n auto_https off\n}}\n", admin_of(address));
    for number in 0..count {
        let (certificate, key) = files(certificates, number);
        let _ = writeln!(
            text,
            "https://{}:{} {{\n bind {}\n tls {} {}\n respond 200\n}}",
            name(number),
            address.port(),
            address.ip(),
            certificate.display(),
            key.display(),
        );
    }
    text
}
