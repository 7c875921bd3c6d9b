//! Pebble, the test authority by the authors of Let's Encrypt, with its DNS server.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::json;

use super::client::{Served, served};
use super::command::{self, Lines};
use super::perennial::Perennial;
use super::place::Place;
use super::wait::{SOON, wait_until};
use super::{certs, tls};

/// The oldest with `set-renewal-info`.
const OLDEST: (u32, u32) = (2, 8);

/// Set where Pebble is known to be there: not finding it is then a failure.
const REQUIRED: &str = "PERENNIAL_REQUIRE_PEBBLE";

/// Waits until a certificate that Pebble has issued is served for this name.
pub async fn issued_by_pebble(perennial: &Perennial, name: &str) -> Served {
    wait_until(SOON, "a certificate by Pebble", async || {
        let served = served(perennial.place.https, Some(name)).await.ok()?;
        served.issuer.contains("Pebble").then_some(served)
    })
    .await
}

pub struct Options {
    /// Lifetime of issued certificates.
    pub validity_seconds: u64,
    /// Percentage of good nonces that are refused.
    pub nonce_reject: u32,
    /// Percentage of valid authorizations that are used again.
    pub authz_reuse: u32,
    pub always_valid: bool,
    /// `Retry-After` of pending authorizations and orders.
    pub retry_after_seconds: u32,
    /// Where HTTP-01 is asked for; `None`: where the proxy listens.
    pub http_port: Option<u16>,
    /// The DNS server to ask; `None`: one that knows every name and nothing else.
    pub dns: Option<SocketAddr>,
    /// Key identifier and MAC key, without which no account is made.
    pub external_account: Option<(&'static str, &'static str)>,
    /// Further roots, each with a chain of its own.
    pub alternate_roots: u32,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            validity_seconds: 90 * 24 * 3600,
            nonce_reject: 5,
            authz_reuse: 0,
            always_valid: false,
            retry_after_seconds: 1,
            http_port: None,
            dns: None,
            external_account: None,
            alternate_roots: 0,
        }
    }
}

/// Both processes are killed when dropped.
pub struct Pebble {
    pub directory: String,
    /// Trust for Pebble's own HTTPS; another one than issues the certificates.
    pub ca_certificate: PathBuf,
    management: SocketAddr,
    log: Lines,
    // Pebble first: the last thing it does is not a DNS question.
    _children: Vec<Killed>,
}

pub struct Killed(pub Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Pebble {
    /// `None`, and a loud word on stderr, where there is no Pebble that fits. Validation connects
    /// to the place's own addresses, whatever the name.
    pub async fn start(place: &Place, options: Options) -> Option<Pebble> {
        let Some((program, dns_program)) = installed().await else {
            let required = std::env::var_os(REQUIRED).is_some_and(|value| !value.is_empty());
            assert!(
                !required,
                "no Pebble >= 2.8 was found, and {REQUIRED} is set"
            );
            eprintln!("PEBBLE >= 2.8 NOT FOUND: proven against the scripted CA alone");
            return None;
        };
        let (dns, dns_server) = match options.dns {
            Some(dns) => (dns, None),
            None => {
                let dns = place.free();
                let child = start_dns(&dns_program, place, dns, place.free());
                (dns, Some(child))
            }
        };
        let (listen, management) = (place.free(), place.free());
        let config = configure(place, &options, listen, management);
        let mut command = Command::new(program);
        command
            .arg("-config")
            .arg(config)
            .args(["-dnsserver", &dns.to_string()]);
        command.env("PEBBLE_VA_NOSLEEP", "1");
        command.env("PEBBLE_WFE_NONCEREJECT", options.nonce_reject.to_string());
        command.env("PEBBLE_AUTHZREUSE", options.authz_reuse.to_string());
        let alternates = options.alternate_roots.to_string();
        command.env("PEBBLE_ALTERNATE_ROOTS", alternates);
        if options.always_valid {
            command.env("PEBBLE_VA_ALWAYS_VALID", "1");
        }
        let (child, log) = spawn(command);
        let pebble = Pebble {
            directory: format!("https://{listen}/dir"),
            ca_certificate: place.path("pebble/root.pem"),
            management,
            log,
            _children: [Some(child), dns_server]
                .into_iter()
                .flatten()
                .map(Killed)
                .collect(),
        };
        // A name that it cannot resolve yet would fail an order for good.
        wait_until(SOON, "Pebble's DNS server", async || {
            tokio::net::TcpStream::connect(dns).await.ok()
        })
        .await;
        pebble.wait_answering().await;
        Some(pebble)
    }

    /// One that looks names and records up at a DNS server of the test's own.
    pub async fn asking(place: &Place, dns: SocketAddr) -> Option<Pebble> {
        let options = Options {
            dns: Some(dns),
            ..Options::default()
        };
        Pebble::start(place, options).await
    }

    async fn wait_answering(&self) {
        wait_until(SOON, "Pebble's directory", async || {
            let answer = self.client().get(&self.directory).send().await;
            answer.ok().filter(|answer| answer.status() == 200)
        })
        .await;
    }

    pub async fn directory_document(&self) -> serde_json::Value {
        let answer = self.client().get(&self.directory).send().await;
        answer.expect("an answer").json().await.expect("JSON")
    }

    /// The `[acme]` table that orders here.
    pub fn acme_table(&self) -> String {
        format!(
            "[acme]\ndirectory = \"{}\"\nca_certificate = \"{}\"\n",
            self.directory,
            self.ca_certificate.display()
        )
    }

    /// The root that issued certificates lead to, PEM; new at each start.
    pub async fn issuing_root(&self) -> String {
        self.management_get("/roots/0").await
    }

    /// The common name of one of its roots.
    pub async fn root_name(&self, number: u32) -> String {
        let pem = self.management_get(&format!("/roots/{number}")).await;
        let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).expect("PEM");
        let root = pem.parse_x509().expect("a certificate");
        let mut names = root.subject().iter_common_name();
        let name = names.next().and_then(|name| name.as_str().ok());
        name.expect("a common name").to_owned()
    }

    pub async fn issuing_intermediate(&self) -> String {
        self.management_get("/intermediates/0").await
    }

    /// Every later request for this certificate's renewal information gets `answer`, well-formed
    /// or not.
    pub async fn set_renewal_info(&self, certificate_pem: &str, answer: &str) {
        let url = format!("https://{}/set-renewal-info/", self.management);
        let body = json!({"Certificate": certificate_pem, "ARIResponse": answer});
        let response = self.client().post(url).json(&body).send().await;
        let response = response.expect("Pebble's management answers");
        assert!(response.status().is_success(), "{response:?}");
    }

    pub fn log(&self) -> String {
        self.log.all().join("\n")
    }

    /// How many orders were placed so far; a request refused for its nonce is none.
    pub fn orders(&self) -> usize {
        let log = self.log.all();
        log.iter()
            .filter(|line| line.contains("Added order "))
            .count()
    }

    /// What Pebble says of the certificate with this serial number, in hexadecimal: its `Status`
    /// and `Reason`.
    pub async fn certificate_status(&self, serial: &str) -> serde_json::Value {
        let serial = serial.to_lowercase();
        let path = format!("/cert-status-by-serial/{}", serial.trim_start_matches('0'));
        let text = self.management_get(&path).await;
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}: {text}"))
    }

    /// The numbers of all orders placed so far, as their URLs end, oldest first.
    pub fn order_ids(&self) -> Vec<String> {
        let log = self.log.all();
        let ids = log.iter().filter_map(|line| {
            let (_, rest) = line.split_once("Added order \"")?;
            Some(rest.split_once('"')?.0.to_owned())
        });
        ids.collect()
    }

    async fn management_get(&self, path: &str) -> String {
        let url = format!("https://{}{path}", self.management);
        let response = self.client().get(url).send().await.expect("an answer");
        response.text().await.expect("PEM")
    }

    fn client(&self) -> reqwest::Client {
        let config = tls::trusting(&self.ca_certificate);
        let builder = reqwest::Client::builder()
            .no_proxy()
            .user_agent("perennial-e2e");
        builder
            .tls_backend_preconfigured(config)
            .build()
            .expect("a client")
    }
}

pub fn start_dns(program: &Path, place: &Place, dns: SocketAddr, management: SocketAddr) -> Child {
    let mut command = Command::new(program);
    command.args(["-dnsserver", &dns.to_string()]);
    command.args(["-management", &management.to_string()]);
    command.args(["-defaultIPv4", &place.ip.to_string(), "-defaultIPv6", ""]);
    // The proxy answers the challenges; this program must not.
    command.args(["-http01", "", "-https01", "", "-tlsalpn01", "", "-doh", ""]);
    spawn(command).0
}

fn configure(
    place: &Place,
    options: &Options,
    listen: SocketAddr,
    management: SocketAddr,
) -> PathBuf {
    let ca = certs::TestCa::new();
    let leaf = ca.leaf(&[&place.ip.to_string(), "localhost"]);
    place.write("pebble/root.pem", &ca.root_pem);
    let certificate = place.write("pebble/cert.pem", leaf.chain_pem());
    let private_key = place.write("pebble/key.pem", &leaf.key_pem);
    let default_profile = json!({
        "description": "the one this test asked for",
        "validityPeriod": options.validity_seconds,
    });
    let external_keys = options
        .external_account
        .iter()
        .map(|(kid, key)| ((*kid).to_owned(), json!(key)));
    let external_keys = serde_json::Map::from_iter(external_keys);
    let config = json!({"pebble": {
        "listenAddress": listen.to_string(),
        "managementListenAddress": management.to_string(),
        "certificate": certificate,
        "privateKey": private_key,
        "httpPort": options.http_port.unwrap_or(place.http.port()),
        "tlsPort": place.https.port(),
        "ocspResponderURL": "",
        "externalAccountBindingRequired": options.external_account.is_some(),
        "externalAccountMACKeys": external_keys,
        "domainBlocklist": ["blocked-domain.example"],
        "retryAfter": {
            "authz": options.retry_after_seconds,
            "order": options.retry_after_seconds,
        },
        "keyAlgorithm": "ecdsa",
        "profiles": {"default": default_profile},
    }});
    place.write("pebble/config.json", config.to_string())
}

fn spawn(mut command: Command) -> (Child, Lines) {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut child = command
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let pipe = child.stdout.take().expect("a pipe");
    let log = Lines::default();
    command::collect(pipe, &log);
    (child, log)
}

/// Pebble and its DNS server, if they are here and not too old. A distribution's old one may stand
/// before a fitting one in PATH.
async fn installed() -> Option<(PathBuf, PathBuf)> {
    let dns = command::find("pebble-challtestsrv")?;
    for pebble in command::find_all("pebble") {
        if version(&pebble).await.is_some_and(|found| found >= OLDEST) {
            let beside = pebble.with_file_name("pebble-challtestsrv");
            return Some((pebble, if beside.is_file() { beside } else { dns }));
        }
    }
    None
}

async fn version(program: &Path) -> Option<(u32, u32)> {
    let mut asked = Command::new(program);
    asked.arg("-version");
    if let Some(version) = first_version(&command::run(asked).await.stdout) {
        return Some(version);
    }
    // One that `go install` built calls itself "dev"; Go knows better.
    let mut go = Command::new(command::find("go")?);
    go.args(["version", "-m"]).arg(program);
    let told = command::run(go).await.stdout;
    let module = told
        .lines()
        .find(|line| line.trim_start().starts_with("mod\t"))?;
    first_version(module)
}

/// The first `N.N` in a text, after an optional `v`.
fn first_version(text: &str) -> Option<(u32, u32)> {
    text.split_whitespace().find_map(|word| {
        let mut numbers = word.trim_start_matches('v').split('.');
        Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
    })
}
