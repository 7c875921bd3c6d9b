//! Authorities by other people than Pebble's: Caddy's `acme_server` and step-ca, each with a place
//! of its own and killed when dropped.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::json;

use super::certs::TestCa;
use super::command::{self, Lines};
use super::pebble::{self, Killed};
use super::place::Place;
use super::tls;
use super::wait::wait_until;

/// Set where step-ca is known to be there: not finding it is then a failure.
const STEP_CA_REQUIRED: &str = "PERENNIAL_REQUIRE_STEP_CA";

/// These are large programs that make their own roots first; on a machine where a dozen others start
/// at once one of them took more than half a minute.
const START: Duration = Duration::from_secs(120);

/// An authority that answers.
pub struct OtherCa {
    pub directory: String,
    /// Trust for its own HTTPS.
    pub ca_certificate: PathBuf,
    log: Lines,
    _children: Vec<Killed>,
}

impl OtherCa {
    /// Caddy's `acme_server`. It validates at ports 80 and 443 alone, and looks names up where the
    /// system does: the place gets those ports, and is ordered for by its address.
    ///
    /// `None`, and a loud word on stderr, where these ports cannot be had.
    pub async fn caddy(place: &mut Place) -> Option<OtherCa> {
        let program = command::find("caddy").expect("caddy: scripts/setup-test.sh installs it");
        let wanted = [80, 443].map(|port| SocketAddr::from((place.ip, port)));
        if let Some(error) = wanted.iter().find_map(|addr| TcpListener::bind(addr).err()) {
            eprintln!("PORTS 80 AND 443 NOT TO BE HAD ({error}): not proven against Caddy's CA");
            return None;
        }
        [place.http, place.https] = wanted;
        let listen = place.free();
        let config = place.write("caddy/config.json", caddy_config(place, listen));
        let mut command = Command::new(program);
        command.args(["run", "--config"]).arg(config);
        // It keeps nothing of its own in the home of whoever runs the tests.
        command.env("XDG_DATA_HOME", place.path("caddy"));
        command.env("XDG_CONFIG_HOME", place.path("caddy"));
        let root = place.path("caddy/storage/pki/authorities/local/root.crt");
        let directory = format!("https://{listen}/acme/local/directory");
        Some(OtherCa::start(command, directory, root, None).await)
    }

    /// step-ca, which validates at the place's own ports and asks a DNS server that knows every
    /// name.
    ///
    /// `None`, and a loud word on stderr, where there is no step-ca.
    pub async fn step_ca(place: &Place) -> Option<OtherCa> {
        let Some(program) = command::find("step-ca") else {
            let required = std::env::var_os(STEP_CA_REQUIRED).is_some_and(|it| !it.is_empty());
            assert!(
                !required,
                "no step-ca was found, and {STEP_CA_REQUIRED} is set"
            );
            eprintln!("STEP-CA NOT FOUND: not proven against it (scripts/setup-test.sh says how)");
            return None;
        };
        let dns_program = command::find("pebble-challtestsrv")?;
        let (listen, dns) = (place.free(), place.free());
        let dns_server = pebble::start_dns(&dns_program, place, dns, place.free());
        let config = step_ca_config(place, listen);
        let mut command = Command::new(program);
        command.arg(config).arg("--insecure");
        command.args(["--resolver", &dns.to_string()]);
        command.args(["--acme-http-port", &place.http.port().to_string()]);
        command.args(["--acme-tls-port", &place.https.port().to_string()]);
        command.env("STEPPATH", place.path("step-ca"));
        let directory = format!("https://{listen}/acme/acme/directory");
        let root = place.path("step-ca/root.pem");
        Some(OtherCa::start(command, directory, root, Some(Killed(dns_server))).await)
    }

    async fn start(
        mut command: Command,
        directory: String,
        ca_certificate: PathBuf,
        beside: Option<Killed>,
    ) -> OtherCa {
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let mut child = command.stderr(Stdio::piped()).spawn().expect("a CA");
        let log = Lines::default();
        command::collect(child.stderr.take().expect("a pipe"), &log);
        let children = [Some(Killed(child)), beside];
        let ca = OtherCa {
            directory,
            ca_certificate,
            log,
            _children: children.into_iter().flatten().collect(),
        };
        wait_until(START, "the CA's directory", async || {
            ca.answers().await.then_some(())
        })
        .await;
        ca
    }

    async fn answers(&self) -> bool {
        if !self.ca_certificate.exists() {
            return false;
        }
        let config = tls::trusting(&self.ca_certificate);
        let builder = reqwest::Client::builder().no_proxy();
        let client = builder.tls_backend_preconfigured(config).build();
        let answer = client.expect("a client").get(&self.directory).send().await;
        answer.is_ok_and(|answer| answer.status() == 200)
    }

    /// The `[acme]` table that orders here.
    pub fn acme_table(&self) -> String {
        format!(
            "[acme]\ndirectory = \"{}\"\nca_certificate = \"{}\"\n",
            self.directory,
            self.ca_certificate.display()
        )
    }
}

impl Drop for OtherCa {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the log of {} ---", self.directory);
            let log = self.log.all();
            let from = log.len().saturating_sub(30);
            log[from..].iter().for_each(|line| eprintln!("{line}"));
        }
    }
}

fn caddy_config(place: &Place, listen: SocketAddr) -> String {
    let ip = place.ip.to_string();
    let own_certificate = json!({"subjects": [ip], "issuers": [{"module": "internal"}]});
    let server = json!({
        "listen": [listen.to_string()],
        "automatic_https": {"disable_redirects": true},
        "tls_connection_policies": [{}],
        "routes": [{
            "match": [{"host": [ip]}],
            "handle": [{"handler": "acme_server", "ca": "local"}],
        }],
    });
    json!({
        "admin": {"disabled": true, "config": {"persist": false}},
        "storage": {"module": "file_system", "root": place.path("caddy/storage")},
        "apps": {
            "pki": {"certificate_authorities": {"local": {"install_trust": false}}},
            "tls": {"automation": {"policies": [own_certificate]}},
            "http": {"servers": {"acme": server}},
        },
    })
    .to_string()
}

fn step_ca_config(place: &Place, listen: SocketAddr) -> PathBuf {
    let ca = TestCa::new();
    let write = |name: &str, text: &str| place.write(Path::new("step-ca").join(name), text);
    let config = json!({
        "root": write("root.pem", &ca.root_pem),
        "crt": write("intermediate.pem", &ca.intermediate_pem),
        "key": write("intermediate.key", &ca.intermediate.key().serialize_pem()),
        "address": listen.to_string(),
        "dnsNames": [place.ip.to_string()],
        "logger": {"format": "text"},
        "db": {"type": "bbolt", "dataSource": place.path("step-ca/db")},
        "authority": {"provisioners": [{"type": "ACME", "name": "acme"}]},
    });
    write("ca.json", &config.to_string())
}
