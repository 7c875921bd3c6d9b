//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use perennial_bench::load::tls::Groups;
use perennial_bench::servers::Kind;

pub struct Options {
    pub servers: Vec<Kind>,
    pub perennial: PathBuf,
    pub rounds: usize,
    /// What is measured, and what comes before it unmeasured.
    pub window: Duration,
    pub warm_up: Duration,
    pub client_cores: Option<usize>,
    pub groups: Groups,
    pub quick: bool,
    rows: Vec<String>,
}

/// What is measured in two minutes.
const QUICK: [&str; 4] = ["handshakes", "resumed", "h1", "h2"];

impl Options {
    pub fn parse() -> Options {
        let mut options = Options {
            servers: Kind::ALL.to_vec(),
            perennial: PathBuf::from("target/release/perennial"),
            rounds: 5,
            window: Duration::from_millis(2500),
            warm_up: Duration::from_millis(700),
            client_cores: None,
            groups: Groups::X25519,
            quick: false,
            rows: Vec::new(),
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().unwrap_or_else(usage);
            match argument.as_str() {
                "--quick" => {
                    options.quick = true;
                    options.rounds = 3;
                    options.window = Duration::from_millis(1500);
                    options.warm_up = Duration::from_millis(400);
                }
                "--only" => {
                    let wanted = value();
                    options.servers.retain(|kind| kind.is_among(&wanted));
                }
                "--rows" => options.rows = value().split(',').map(str::to_owned).collect(),
                "--perennial" => options.perennial = value().into(),
                "--rounds" => options.rounds = number(&value()),
                "--seconds" => options.window = Duration::from_secs(number(&value()) as u64),
                "--client-cores" => options.client_cores = Some(number(&value())),
                "--hybrid" => options.groups = Groups::Hybrid,
                _ => usage(),
            }
        }
        options
    }

    /// Whether a row was asked for; without a word all are, or the quick ones.
    pub fn wants(&self, row: &str) -> bool {
        if self.rows.is_empty() {
            return !self.quick || QUICK.contains(&row);
        }
        self.rows.iter().any(|wanted| wanted == row)
    }
}

fn number(text: &str) -> usize {
    match text.parse() {
        Ok(number) if number > 0 => number,
        _ => usage(),
    }
}

fn usage<T>() -> T {
    eprintln!(
        "usage: serving [--quick] [--only perennial,nginx,haproxy,caddy] [--rows h1,h2,...] \
         [--rounds N] [--seconds N] [--client-cores N] [--hybrid] [--perennial FILE]"
    );
    std::process::exit(64);
}
