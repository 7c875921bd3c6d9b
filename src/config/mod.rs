//! The configuration: what it can say, as types that hold only valid values. [`Config::parse`] is
//! the only way to get one from text.
//!
//! The way of the text: `toml_file` reads it into a draft by the typed `reader` and the parsers of
//! single `value`s, `command_line` reads arguments into the same draft, and `assemble` makes the
//! draft a [`Config`] if everything fits together. All of them report everything they find, as
//! [`Diagnostics`]; none of them touches the disk, but through the [`Environment`] they are given.

mod access;
mod access_log;
mod acme_options;
mod assemble;
mod ca_references;
mod command_line;
mod compress;
mod diagnostic;
mod dns;
mod draft;
mod environment;
mod fields;
mod file_check;
mod files;
mod forward_auth;
mod ip_prefix;
mod keys;
mod limits;
mod listen;
mod load;
mod on_demand;
mod pool;
mod proxy_protocol;
mod reader;
pub mod reference;
mod route;
mod template;
#[cfg(test)]
mod tests;
mod tls_options;
mod toml_file;
mod upstream;
mod value;
pub mod watch;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;

pub use access::{Access, BasicAuth, PasswordHash, RateKey, RateLimit};
pub use access_log::{AccessLog, LogFormat, LogOutput, SECRET_PARAMETERS, SiteLog};
pub use ca_references::CaReferences;
pub use command_line::CommandLine;
pub use compress::Coding;
pub use diagnostic::{Diagnostic, Diagnostics, Place};
pub(crate) use dns::without;
pub use dns::{AcmeDns, AcmeDnsAccount, Dns, DnsProvider, DnsWriter, DnsZones, ServerName};
pub use environment::{DefaultStateDir, Environment};
pub use fields::{FieldCondition, FieldRules, Hsts, Wild};
pub use file_check::{FilePurpose, FileReference, check_files};
pub use files::Files;
pub use forward_auth::ForwardAuth;
pub use ip_prefix::IpPrefix;
pub use limits::{Limit, Limits};
pub use listen::{AccountKind, AccountReference, ListenAddress, SocketFile};
pub use load::{ConfigError, Footprint, Reading, default_path};
pub use on_demand::{Budgets, OnDemand, Permission};
pub use pool::{
    Balancing, CheckKind, Ejection, Forward, HashKey, HealthCheck, HttpCheck, Member, Pending,
    Policy, PoolSettings, Retries, SameSite, Statuses, StickyCookie, Timeouts, Wait,
};
pub use proxy_protocol::{ProxyProtocol, ProxyProtocolFrom};
pub use route::{Action, Glob, PathPattern, Route};
pub use template::{Part, Placeholder, Template};

use crate::certificate::name::Name;
use diagnostic::{Report, Source};
use draft::Draft;

/// A whole, valid configuration. Paths are absolute or relative to the working directory: the
/// parser has already resolved them against the file they stood in.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file it came from; `None` when it was made from command-line arguments.
    pub path: Option<PathBuf>,
    pub server: Server,
    pub certificates: Certificates,
    pub tls: Tls,
    pub acme: Acme,
    pub access_log: AccessLog,
    pub sites: Vec<Site>,
    /// The files and folders that the configuration names, and where it names them.
    pub file_references: Vec<FileReference>,
    /// The users and groups, likewise.
    pub account_references: Vec<AccountReference>,
    /// The CAs, likewise.
    pub ca_references: CaReferences,
}

impl Config {
    /// Parses the text of `file`, which is named in the diagnostics and is what relative paths are
    /// relative to. Everything that is wrong is found at once; if the text is no TOML, only that.
    pub fn parse(
        text: &str,
        file: &Path,
        environment: &Environment<'_>,
    ) -> Result<Config, Diagnostics> {
        // Some editors put a byte order mark before the text; it is no part of it.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let report = Report::new(Source::file(file, text));
        match toml_file::read(text, file, &report, environment) {
            Some(draft) => Config::from_draft(draft, environment, report),
            None => report.finish(None),
        }
    }

    /// What a whole file with this text means, which has to be a good one.
    #[cfg(test)]
    pub fn of_text(text: &str) -> Config {
        let environment = Environment {
            variable: &|_| None,
            read_text: &|_| Err(std::io::ErrorKind::NotFound.into()),
            default_state_dir: DefaultStateDir {
                path: "/var/lib/perennial".into(),
                note: None,
            },
        };
        Config::parse(text, Path::new("p.toml"), &environment)
            .unwrap_or_else(|found| panic!("{text}\n{found}"))
    }

    /// What a `[server]` table with this text makes of everything.
    #[cfg(test)]
    pub fn of_server(server: &str) -> Config {
        let site = "[[sites]]\nhosts = [\"a.test\"]\nupstreams = [\"3000\"]\n";
        Config::of_text(&format!("[server]\n{server}\n{site}"))
    }

    fn from_draft(
        draft: Draft,
        environment: &Environment<'_>,
        report: Report<'_>,
    ) -> Result<Config, Diagnostics> {
        let default_state_dir = environment.default_state_dir.clone();
        let config = assemble::assemble(draft, default_state_dir, &report);
        report.finish(Some(config))
    }
}

/// `[server]`: where to listen and how to run.
#[derive(Clone, Debug)]
pub struct Server {
    /// Plain HTTP: ACME challenges, redirects, and sites with `tls = "off"`.
    pub http_listen: Vec<ListenAddress>,
    pub https_listen: Vec<ListenAddress>,
    /// Whose the files of Unix sockets among them are.
    pub socket_file: SocketFile,
    pub admin_listen: AdminListen,
    pub state_dir: PathBuf,
    /// What to tell the user about a default `state_dir` that is not the documented one.
    pub state_dir_note: Option<String>,
    /// Worker threads; 0 means one per core.
    pub threads: usize,
    /// How long a drain may take before what is left is cut off.
    pub grace_period: Duration,
    /// Proxies in front of this one, whose word for who asked is taken.
    pub trusted_proxies: Vec<IpPrefix>,
    /// Whose connections begin with a header of the PROXY protocol.
    pub proxy_protocol_from: ProxyProtocolFrom,
    /// Connections of clients at a time; 0 is no limit. Made from what there is if `None`.
    pub max_connections: Option<usize>,
    /// The same for each client.
    pub max_connections_per_client: Option<usize>,
    pub min_rates: MinRates,
    pub idle_timeouts: IdleTimeouts,
    /// How upstreams are told who asked.
    pub forwarded: Forwarded,
    /// The field with the identifier that each request gets, if it gets one.
    pub request_id: Option<Box<str>>,
    /// DNS servers that upstreams' names are asked of; empty for the system's.
    pub resolvers: Vec<SocketAddr>,
    /// The least important events to log, where neither `--log-level` nor `RUST_LOG` says so.
    pub log_level: LogLevel,
}

/// How slow a client may be, once the grace is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MinRates {
    /// Bytes of a request's body in a second; any if `None`.
    pub request: Option<u64>,
    /// Bytes of a response in a second; any if `None`.
    pub response: Option<u64>,
    pub grace: Duration,
}

impl Default for MinRates {
    fn default() -> MinRates {
        // A tenth of what a telephone line had, for a body that somebody waits for.
        MinRates {
            request: Some(240),
            response: Some(240),
            grace: Duration::from_secs(20),
        }
    }
}

/// How long a client's connection may wait for the next request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdleTimeouts {
    pub http1: Duration,
    /// Without a stream under way.
    pub http2: Duration,
}

impl Default for IdleTimeouts {
    fn default() -> IdleTimeouts {
        // A browser has one of HTTP/2 in place of six, and loses more with it.
        IdleTimeouts {
            http1: Duration::from_secs(60),
            http2: Duration::from_secs(180),
        }
    }
}

/// In which fields upstreams are told who asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Forwarded {
    /// `X-Forwarded-For`, `-Proto` and `-Host`.
    #[default]
    XForwarded,
    /// `Forwarded` (RFC 7239).
    Rfc7239,
    Both,
    Off,
}

/// How important an event has to be to be logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogLevel {
    Error,
    Warn,
    #[default]
    Info,
    Debug,
    Trace,
}

impl LogLevel {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            LogLevel::Error => "error",
            LogLevel::Warn => "warn",
            LogLevel::Info => "info",
            LogLevel::Debug => "debug",
            LogLevel::Trace => "trace",
        }
    }
}

/// Where the admin API listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminListen {
    /// A loopback address.
    Tcp(SocketAddr),
    Unix(PathBuf),
    Off,
}

impl AdminListen {
    /// `None`: nowhere.
    pub fn address(&self) -> Option<ListenAddress> {
        match self {
            AdminListen::Tcp(address) => Some(ListenAddress::Tcp(*address)),
            AdminListen::Unix(path) => Some(ListenAddress::Unix(path.clone())),
            AdminListen::Off => None,
        }
    }
}

/// `[certificates]`: certificates that somebody else writes.
#[derive(Clone, Debug)]
pub struct Certificates {
    /// Drop folders, searched to a depth of 3; pairs are found by content.
    pub directories: Vec<PathBuf>,
    pub poll_interval: Duration,
    /// File events on top of the poll.
    pub watch: bool,
    /// The name whose certificate is served to clients without SNI or with an unknown one.
    pub default: Option<Name>,
    /// Who issues where these certificates are overdue; a site may say otherwise.
    pub takeover: Option<Takeover>,
    pub files: Vec<CertificateFiles>,
}

/// `[[certificates.files]]`: one explicit pair. Both paths are the same for a combined file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    pub certificate: PathBuf,
    pub private_key: PathBuf,
    /// Its first line opens the private key, or the PKCS#12 file.
    pub password_file: Option<PathBuf>,
}

/// `[tls]`: how TLS sessions are resumed.
#[derive(Clone, Debug)]
pub struct Tls {
    /// The first key encrypts session tickets, all of them decrypt. Empty: keys are made and
    /// rotated in memory.
    pub session_ticket_key_files: Vec<PathBuf>,
    /// How long a key made in memory encrypts; it decrypts for two more of these.
    pub session_ticket_rotation: Duration,
    /// Whether sessions made under a certificate that has been replaced may be resumed.
    pub resume_after_swap: bool,
}

impl Default for Tls {
    fn default() -> Tls {
        Tls {
            session_ticket_key_files: Vec::new(),
            session_ticket_rotation: Duration::from_secs(12 * 60 * 60),
            resume_after_swap: true,
        }
    }
}

/// `[acme]`: the certificate authorities, in the order in which they are tried. Never empty.
#[derive(Clone, Debug)]
pub struct Acme {
    pub authorities: Vec<CertificateAuthority>,
    /// For all of them.
    pub dns: Dns,
    /// How certificates are ordered when a client asks for their name; there where a site wants
    /// it.
    pub on_demand: Option<OnDemand>,
}

/// One ACME certificate authority: `[acme]` itself, or one `[[acme.fallback]]`, which inherits
/// what it does not set from `[acme]` (except `external_account`, `profile`, `address_profile`,
/// `preferred_chain` and `limits`, which belong to one CA alone).
#[derive(Clone, Debug)]
pub struct CertificateAuthority {
    /// The directory URL (RFC 8555 section 7.1.1).
    pub directory: String,
    pub email: Option<String>,
    /// PEM file with extra trust anchors for the CA's own HTTPS.
    pub ca_certificate: Option<PathBuf>,
    /// Challenge types to use, in order of preference. Never empty.
    pub challenges: Vec<ChallengeType>,
    pub key_type: KeyType,
    /// The CA's certificate profile; the CA's own default if `None`.
    pub profile: Option<String>,
    /// The same for certificates with an address among their names; `None`: see
    /// [`profile`](Self::profile), or what the CA has for them.
    pub address_profile: Option<String>,
    /// The common name of the issuer of the chain to choose, where the CA has several; its first
    /// one if `None`.
    pub preferred_chain: Option<String>,
    /// Whether an account may be made where that means to agree to the CA's terms of service.
    pub agree_to_terms: bool,
    /// How much may be asked for.
    pub limits: Limits,
    /// Orders at this CA at the same time; at least one.
    pub parallel_orders: u32,
    /// How fast orders may be begun: a bucket of so many, full again after so long; `None`: as
    /// fast as it goes.
    pub order_rate: Option<Limit>,
    /// Whether a renewal keeps the private key, unless that is known to be compromised.
    pub reuse_key: bool,
    /// Whether revocation lists and OCSP responders that certificates name are asked.
    pub check_revocation: bool,
    /// External account binding (RFC 8555 section 7.3.4).
    pub external_account: Option<ExternalAccount>,
    pub spelling: Spelling,
}

/// What whoever wrote the configuration calls these settings, and where: for what is said of them
/// while it runs.
#[derive(Clone)]
pub struct Spelling {
    pub directory: String,
    pub ca_certificate: String,
}

impl Default for Spelling {
    fn default() -> Spelling {
        Spelling {
            directory: "`directory` in [acme]".to_owned(),
            ca_certificate: "`ca_certificate` in [acme]".to_owned(),
        }
    }
}

/// It is no part of what is configured.
impl std::fmt::Debug for Spelling {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Spelling").finish_non_exhaustive()
    }
}

impl CertificateAuthority {
    /// Let's Encrypt, with every setting at its default.
    pub fn lets_encrypt() -> CertificateAuthority {
        acme_options::default_authority()
    }

    /// Sets the directory URL, and with it the limits that are known, or says what is wrong with it.
    pub fn set_directory(&mut self, url: &str) -> Result<(), String> {
        self.directory = value::directory_url(url).map_err(|problem| problem.to_string())?;
        self.limits = Limits::known(&self.directory);
        Ok(())
    }

    /// Sets the e-mail address, or says what is wrong with it.
    pub fn set_email(&mut self, email: &str) -> Result<(), String> {
        self.email = Some(value::email(email).map_err(|problem| problem.to_string())?);
        Ok(())
    }
}

/// Key identifier and MAC key that bind an ACME account to one that exists elsewhere.
#[derive(Clone)]
pub struct ExternalAccount {
    pub kid: String,
    /// The decoded MAC key. Secret.
    pub hmac_key: Vec<u8>,
}

impl std::fmt::Debug for ExternalAccount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExternalAccount")
            .field("kid", &self.kid)
            .finish_non_exhaustive()
    }
}

/// How control over a name is shown to the CA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChallengeType {
    /// RFC 8737.
    TlsAlpn01,
    /// RFC 8555 section 8.3.
    Http01,
    /// RFC 8555 section 8.4.
    Dns01,
    /// draft-ietf-acme-dns-persist: a record that stands for good.
    DnsPersist01,
}

impl ChallengeType {
    /// Whether it shows control over every name below one: only DNS can.
    pub fn proves_wildcards(self) -> bool {
        match self {
            ChallengeType::Dns01 | ChallengeType::DnsPersist01 => true,
            ChallengeType::TlsAlpn01 | ChallengeType::Http01 => false,
        }
    }

    /// Whether it can show control over an IP address.
    pub fn proves_addresses(self) -> bool {
        match self {
            ChallengeType::TlsAlpn01 | ChallengeType::Http01 => true,
            ChallengeType::Dns01 | ChallengeType::DnsPersist01 => false,
        }
    }
}

/// The kind of key that a certificate is ordered for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum KeyType {
    #[default]
    P256,
    P384,
    Rsa2048,
    Rsa3072,
    Rsa4096,
}

impl KeyType {
    pub const ALL: [KeyType; 5] = [
        KeyType::P256,
        KeyType::P384,
        KeyType::Rsa2048,
        KeyType::Rsa3072,
        KeyType::Rsa4096,
    ];
}

/// `[[sites]]`: some hosts and where their requests go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// Exact names, wildcards or IP addresses; unique over all sites, and empty only with
    /// `any_host`.
    pub hosts: Vec<Name>,
    /// `*`: every name that no other site has, and without `on_demand` every address, too.
    pub any_host: bool,
    /// Whether certificates are ordered when a client asks for their name, and not before.
    pub on_demand: bool,
    pub tls: TlsMode,
    /// Where it is served, and nowhere else; on the server's listeners if there is none.
    pub listen: Vec<ListenAddress>,
    pub certificate_per: CertificatePer,
    /// Whether clients have to show a certificate.
    pub client_auth: Option<ClientAuth>,
    /// Who issues where the certificate files of the site are overdue. Only with `auto` and
    /// `files`.
    pub takeover: Option<Takeover>,
    /// In order of specificity: the first that matches wins. Never empty; what the site itself does
    /// with requests, if it says so, is the last route, `/*`.
    pub routes: Vec<Route>,
    pub hsts: Option<Hsts>,
    /// Where the lines of its requests go.
    pub access_log: SiteLog,
    /// What is shown instead of our own error texts.
    pub error_pages: ErrorPages,
}

/// `[sites.error_pages]`: HTML by status, and by the first digit of it for what is left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ErrorPages {
    pub exact: Vec<(StatusCode, Arc<str>)>,
    /// For 400 to 499, and 500 to 599.
    pub classes: [Option<Arc<str>>; 2],
}

impl ErrorPages {
    /// The page for an error with this status.
    pub fn get(&self, status: StatusCode) -> Option<&str> {
        let mut exact = self.exact.iter();
        let exact = exact
            .find(|(code, _)| *code == status)
            .map(|(_, page)| page);
        let class = usize::from(status.as_u16() / 100).checked_sub(4);
        let class = || self.classes.get(class?)?.as_ref();
        exact.or_else(class).map(|page| &**page)
    }
}

/// Where a site's certificate comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsMode {
    /// Files that cover the name if there are any, else the internal CA for names that no public
    /// CA can issue for, else ACME.
    #[default]
    Auto,
    Acme,
    Internal,
    /// Files alone: nothing is ever ordered.
    Files,
    /// Plain HTTP on `http_listen`, no redirect.
    Off,
}

/// `[sites.client_auth]`: whose clients a site is for (mutual TLS). Two sites with equal ones share
/// connections and sessions, any others never do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ClientAuth {
    /// The bundle of the authorities that clients' certificates come from.
    pub ca: PathBuf,
    /// Revocation lists (RFC 5280 section 5) of all these authorities.
    pub crl: Option<PathBuf>,
    pub mode: ClientAuthMode,
}

/// What happens to a client without a certificate. A wrong one is refused in either mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ClientAuthMode {
    /// It is refused.
    #[default]
    Require,
    /// It is served.
    Request,
}

/// `upstream_tls` of a site or a route: TLS towards upstreams with `https://`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UpstreamTls {
    /// Trusted instead of the system's authorities.
    pub ca: Option<PathBuf>,
    /// What to show to upstreams that ask for a certificate.
    pub identity: Option<ClientIdentity>,
    /// The name to ask for and to verify, instead of the upstream's host.
    pub server_name: Option<Name>,
    /// Whether the upstream's certificate is looked at, at all.
    pub verify: bool,
}

/// A client certificate and its key. Both paths are the same for a combined file.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientIdentity {
    pub certificate: PathBuf,
    pub private_key: PathBuf,
}

/// Who issues in place of a renewer that is late.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takeover {
    Acme,
    Internal,
}

/// Whether the hosts of one site share a certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CertificatePer {
    #[default]
    Host,
    Site,
}

/// Where a request is sent.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Upstream {
    /// `host:port`, `https://host:port`; the host is a name or an address, an IPv6 one without
    /// its brackets. `http2`: `h2c://` and, with TLS, `h2://`.
    Tcp {
        host: String,
        port: u16,
        tls: bool,
        http2: bool,
    },
    /// `srv://name`: the targets of the SRV records (RFC 2782) of a name. `tls` and `http2`:
    /// `srv+https://`, `srv+h2c://` and `srv+h2://`.
    Srv {
        name: String,
        tls: bool,
        http2: bool,
    },
    /// `unix:/path`.
    Unix(PathBuf),
    /// `respond:TEXT`: a fixed 200 with this text, for trying things out.
    Respond(String),
}

impl Upstream {
    /// Whether connections to it have TLS.
    pub fn is_tls(&self) -> bool {
        matches!(
            self,
            Upstream::Tcp { tls: true, .. } | Upstream::Srv { tls: true, .. }
        )
    }

    /// Whether it speaks HTTP/2.
    pub fn is_http2(&self) -> bool {
        matches!(
            self,
            Upstream::Tcp { http2: true, .. } | Upstream::Srv { http2: true, .. }
        )
    }
}
