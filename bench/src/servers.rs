//! The servers under measurement, each with its own way to be told of a new certificate.

mod configuration;

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::handshake::Client;
use crate::process::Server;
use configuration::{admin_of, combine, configuration};

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

    fn program(self, perennial: &Path) -> PathBuf {
        match self {
            Kind::Perennial => perennial.to_owned(),
            Kind::Nginx => "nginx".into(),
            Kind::HaProxy => "haproxy".into(),
            Kind::Caddy => "caddy".into(),
        }
    }

    /// Whether it is one of these names, with commas between them.
    pub fn is_among(self, names: &str) -> bool {
        let own = format!("{self:?}");
        names.split(',').any(|name| name.eq_ignore_ascii_case(&own))
    }

    /// What the program says of its version, or `None` where it is not installed.
    pub fn version(self, perennial: &Path) -> Option<String> {
        let argument = match self {
            Kind::Perennial => "--version",
            Kind::Nginx | Kind::HaProxy => "-v",
            // Its `version` is "unknown" where it was built by go install.
            Kind::Caddy => "build-info",
        };
        let program = self.program(perennial);
        let output = Command::new(program).arg(argument).output().ok()?;
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        let module = text.lines().find_map(|line| line.strip_prefix("mod\t"));
        let line = module.or(text.lines().next()).unwrap_or("");
        Some(line.split_whitespace().collect::<Vec<_>>().join(" "))
    }
}

/// What a server does with requests.
#[derive(Clone, Copy, Debug)]
pub enum Service {
    /// Answers them itself, at the number of threads it chooses.
    Fixed,
    /// Hands them to the upstream, over connections that stay open. As many threads as cores.
    Proxy { upstream: SocketAddr },
}

/// How a server is to be started.
#[derive(Clone, Copy, Debug)]
pub struct Setup<'a> {
    pub kind: Kind,
    pub perennial: &'a Path,
    /// Its own.
    pub directory: &'a Path,
    /// It serves the first `count` pairs below here.
    pub certificates: &'a Path,
    pub count: usize,
    pub service: Service,
    /// Its cores; all, where there are none.
    pub cores: &'a [usize],
    /// A program that runs it, with arguments; none, where there are none.
    pub under: &'a [String],
}

/// A server that was started on some certificates.
pub struct Running {
    kind: Kind,
    pub server: Server,
    pub address: SocketAddr,
    /// When its process was started.
    pub started: Instant,
    directory: PathBuf,
    certificates: PathBuf,
}

impl Running {
    pub fn start(setup: &Setup<'_>) -> Running {
        Running::start_on(setup, |address| configuration(setup, address))
    }

    /// Starts it on a configuration of the caller's own, which listens on the address it is given;
    /// what the setup says of certificates and service is the configuration's to heed.
    pub fn start_on(
        setup: &Setup<'_>,
        configuration: impl FnOnce(SocketAddr) -> String,
    ) -> Running {
        let directory = setup.directory;
        fs::create_dir_all(directory).expect("a folder");
        let address = free_address();
        let file = directory.join("configuration");
        fs::write(&file, configuration(address)).expect("written");
        let mut command = command(setup, &file);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let log = fs::File::create(directory.join("log")).expect("a log");
        command.stderr(log);
        Running {
            kind: setup.kind,
            started: Instant::now(),
            server: Server::start(&mut command, setup.cores),
            address,
            directory: directory.to_owned(),
            certificates: setup.certificates.to_owned(),
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
                self.wait_until_reloaded();
                run(Command::new("kill").args(["-USR2", &self.server.0.id().to_string()]));
            }
            Kind::Caddy => {
                combine(&self.certificates, &self.directory, number);
                run(Command::new("caddy")
                    .args(["reload", "--force", "--config"])
                    .arg(self.directory.join("configuration"))
                    .arg("--address")
                    .arg(admin_of(self.address).to_string()));
            }
        }
    }

    /// HAProxy's master loses a signal that comes before the last one is dealt with, which it is
    /// when the worker that was replaced has gone.
    fn wait_until_reloaded(&self) {
        loop {
            let log = self.log();
            let times = |line| log.matches(line).count();
            let gone = times("Former worker");
            if times("Loading success.") > gone && times("Reloading HAProxy") == gone {
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Whether it says that everything is loaded; the others are when they serve.
    pub fn is_loaded(&self) -> bool {
        if self.kind != Kind::Perennial {
            return true;
        }
        self.log().contains("first load done")
    }

    /// Waits until it says that everything is loaded.
    pub fn wait_until_loaded(&mut self) {
        while !self.is_loaded() {
            self.assert_alive();
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn assert_alive(&mut self) {
        let alive = self.server.is_alive();
        assert!(alive, "{:?} has ended:\n{}", self.kind, self.log());
    }

    /// Waits until it serves a name, and returns how long that took from its start.
    pub fn wait_for(&mut self, client: &Client, name: &str) -> Duration {
        while client.leaf(self.address, name).is_err() {
            self.assert_alive();
            let patience = Duration::from_secs(1200);
            assert!(self.started.elapsed() < patience, "{name} is never served");
            std::thread::sleep(Duration::from_millis(2));
        }
        self.started.elapsed()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.join("log")).unwrap_or_default()
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

fn command(setup: &Setup<'_>, file: &Path) -> Command {
    let directory = setup.directory;
    let program = setup.kind.program(setup.perennial);
    let mut command = match setup.under {
        [] => Command::new(program),
        [first, rest @ ..] => {
            let mut command = Command::new(first);
            command.args(rest).arg(program);
            command
        }
    };
    match setup.kind {
        Kind::Perennial => {
            command.arg("run").arg("--config").arg(file);
            // The others have no access log either.
            command.env("RUST_LOG", "perennial=info,perennial::access=off")
        }
        Kind::Nginx => command
            .arg("-c")
            .arg(file)
            .arg("-p")
            .arg(directory)
            .args(["-g", "daemon off;"]),
        Kind::HaProxy => command.arg("-W").arg("-f").arg(file),
        Kind::Caddy => {
            if let Service::Proxy { .. } = setup.service {
                command.env("GOMAXPROCS", setup.cores.len().to_string());
            }
            command
                .args(["run", "--config"])
                .arg(file)
                .env("XDG_DATA_HOME", directory)
                .env("XDG_CONFIG_HOME", directory)
        }
    };
    command
}
