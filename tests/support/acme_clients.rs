//! Real ACME clients that keep their certificates in files: certbot and lego. Each answers HTTP-01
//! by itself, on an address of the test.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use super::command;
use super::pebble::Pebble;
use super::place::Place;
use super::writers::Pair;

const EMAIL: &str = "ops@example.test";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Certbot,
    Lego,
}

/// A client with its own account and folder.
pub struct AcmeClient {
    kind: Kind,
    name: String,
    program: PathBuf,
    root: PathBuf,
    /// Where it answers challenges.
    http: SocketAddr,
    directory: String,
    ca_certificate: PathBuf,
    pub reuse_key: bool,
}

impl AcmeClient {
    /// For one name. Pebble has to ask for HTTP-01 on the port of `http`.
    pub fn new(
        kind: Kind,
        name: &str,
        place: &Place,
        pebble: &Pebble,
        http: SocketAddr,
    ) -> AcmeClient {
        let program = match kind {
            Kind::Certbot => "certbot",
            Kind::Lego => "lego",
        };
        let found = command::find(program);
        let found = found.unwrap_or_else(|| {
            panic!("this test needs {program}: `apt-get install {program}` (make test does)")
        });
        AcmeClient {
            kind,
            name: name.into(),
            program: found,
            root: place.path(program),
            http,
            directory: pebble.directory.clone(),
            ca_certificate: pebble.ca_certificate.clone(),
            reuse_key: false,
        }
    }

    /// Where it keeps certificates; not there before the first.
    pub fn folder(&self) -> PathBuf {
        match self.kind {
            Kind::Certbot => self.root.join("live"),
            Kind::Lego => self.root.join("certificates"),
        }
    }

    /// The files that its manual tells a web server to use.
    pub fn pair(&self) -> Pair {
        let folder = self.folder();
        match self.kind {
            Kind::Certbot => Pair::at(&folder.join(&self.name)),
            Kind::Lego => Pair {
                certificate: folder.join(format!("{}.crt", self.name)),
                key: folder.join(format!("{}.key", self.name)),
            },
        }
    }

    pub async fn issue(&self) {
        let words: &[&str] = match self.kind {
            Kind::Certbot => &["certonly", "--standalone", "-d", &self.name],
            Kind::Lego => &["run"],
        };
        self.run(words).await;
    }

    pub async fn renew(&self) {
        let mut words = match self.kind {
            Kind::Certbot => vec![
                "renew",
                "--force-renewal",
                "--no-random-sleep-on-renew",
                "--cert-name",
                &self.name,
            ],
            Kind::Lego => vec!["renew", "--days", "9999", "--no-random-sleep"],
        };
        if self.reuse_key {
            words.push("--reuse-key");
        }
        self.run(&words).await;
    }

    async fn run(&self, words: &[&str]) {
        let mut command = Command::new(&self.program);
        match self.kind {
            Kind::Certbot => {
                command.args(words);
                self.add_certbot_options(&mut command);
            }
            Kind::Lego => {
                self.add_lego_options(&mut command);
                command.args(words);
            }
        }
        command::run(command).await.assert_success();
    }

    fn add_certbot_options(&self, command: &mut Command) {
        command.env("REQUESTS_CA_BUNDLE", &self.ca_certificate);
        command.args(["--non-interactive", "--agree-tos", "-m", EMAIL]);
        command.args(["--server", &self.directory]);
        command.args(["--http-01-address", &self.http.ip().to_string()]);
        command.args(["--http-01-port", &self.http.port().to_string()]);
        command.arg("--config-dir").arg(&self.root);
        command.arg("--work-dir").arg(self.root.join("work"));
        command.arg("--logs-dir").arg(self.root.join("logs"));
    }

    fn add_lego_options(&self, command: &mut Command) {
        command.env("LEGO_CA_CERTIFICATES", &self.ca_certificate);
        command.args(["--accept-tos", "--email", EMAIL]);
        command.args(["--server", &self.directory]);
        command.args(["--http", "--http.port", &self.http.to_string()]);
        command.args(["--domains", &self.name]);
        command.arg("--path").arg(&self.root);
    }
}
