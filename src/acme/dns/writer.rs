//! Who writes the records: a provider's API, a program, an acme-dns server. It writes and removes
//! what it is told to and remembers nothing.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use dns_update::{DnsRecord, DnsRecordType, DnsUpdater};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::{Child, Command};

use super::registrations::Registrations;
use super::{DnsError, Lookup, TxtRecord};
use crate::config::{AcmeDns, AcmeDnsAccount, DnsProvider, DnsWriter, ServerName, without};
use crate::http_client::{self, causes};
use crate::store::{StateDir, StoreError};

/// One change at a provider, all its requests together.
const PROVIDER_TIMEOUT: Duration = Duration::from_secs(90);
const ACME_DNS_TIMEOUT: Duration = Duration::from_secs(30);
/// Of a program's output in an error.
const MAX_OUTPUT: usize = 1000;

/// Why a record was not written or removed.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The credentials or the settings are not right.
    #[error("{0}")]
    Refused(String),
    #[error("{0}")]
    Failed(String),
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    /// Of a server that is given by name.
    #[error("{0}: {1}")]
    At(SocketAddr, Box<WriteError>),
    #[error(
        "no acme-dns account is for {0}: register one and add it to accounts_file, or set `server`, where one is registered then"
    )]
    NoAccount(String),
    #[error("{program} {action} {name} ended with {status}: {output}")]
    Program {
        program: String,
        action: &'static str,
        name: String,
        status: String,
        output: String,
    },
    #[error("{program} cannot be run: {cause}")]
    NoProgram { program: String, cause: String },
    #[error(
        "{asked} does not lead there: add the record {asked} CNAME {target} (it leads to {found})"
    )]
    NotDelegated {
        asked: String,
        target: String,
        found: String,
    },
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl WriteError {
    /// Whether somebody has to change something first.
    pub(super) fn is_refusal(&self) -> bool {
        match self {
            WriteError::At(_, error) => error.is_refusal(),
            WriteError::Refused(_)
            | WriteError::NoProgram { .. }
            | WriteError::NotDelegated { .. }
            | WriteError::Store(_)
            | WriteError::NoAccount(_) => true,
            WriteError::Failed(_) | WriteError::TimedOut(_) | WriteError::Program { .. } => false,
        }
    }
}

pub(super) enum Writer {
    Provider {
        name: &'static str,
        server: Server,
        provider: DnsProvider,
    },
    Exec {
        program: PathBuf,
        timeout: Duration,
    },
    AcmeDns(AcmeDnsWriter),
}

/// Writes at acme-dns servers.
pub(super) struct AcmeDnsWriter {
    accounts: AcmeDns,
    /// Of domains that have none of these accounts.
    registrations: Option<Registrations>,
    client: reqwest::Client,
}

impl AcmeDnsWriter {
    fn new(accounts: &AcmeDns, state: &StateDir) -> Result<AcmeDnsWriter, String> {
        Ok(AcmeDnsWriter {
            registrations: Registrations::beside(accounts, state),
            accounts: accounts.clone(),
            client: reqwest::Client::builder()
                .timeout(ACME_DNS_TIMEOUT)
                .redirect(reqwest::redirect::Policy::none())
                .build()
                .map_err(|error| error.to_string())?,
        })
    }

    async fn account_of(&self, domain: &str) -> Result<AcmeDnsAccount, WriteError> {
        match (self.accounts.of(domain), &self.registrations) {
            (Some(account), _) => Ok(account.clone()),
            (None, Some(registrations)) => registrations.account_for(domain, &self.client).await,
            (None, None) => Err(WriteError::NoAccount(domain.to_owned())),
        }
    }

    async fn check_target(
        &self,
        domain: &str,
        asked: &str,
        target: &str,
    ) -> Result<(), WriteError> {
        let account = self.account_of(domain).await?;
        if leads_to(target, &account) {
            return Ok(());
        }
        Err(WriteError::NotDelegated {
            asked: asked.to_owned(),
            target: wanted_target(&account),
            found: target.to_owned(),
        })
    }
}

/// Whether an account writes at this name: its server's domain may be known to the server alone.
pub(super) fn leads_to(target: &str, account: &AcmeDnsAccount) -> bool {
    target.split('.').next() == Some(&*account.subdomain.to_ascii_lowercase())
}

pub(super) fn wanted_target(account: &AcmeDnsAccount) -> String {
    account.full_domain.clone().unwrap_or_else(|| {
        format!(
            "{}.DOMAIN, with the domain of your acme-dns server",
            account.subdomain
        )
    })
}

/// Where a provider's client sends to.
pub(super) enum Server {
    Known(Box<DnsUpdater>),
    /// Resolved before each use.
    Named {
        name: ServerName,
        resolvers: Vec<SocketAddr>,
    },
}

impl Server {
    fn of(provider: &DnsProvider, resolvers: &[SocketAddr]) -> Result<Server, String> {
        Ok(match provider.server_name() {
            None => Server::Known(Box::new(provider.updater()?)),
            Some(name) => Server::Named {
                name,
                resolvers: resolvers.to_vec(),
            },
        })
    }
}

impl Writer {
    /// `resolvers`: empty for the system's.
    pub(super) fn new(
        config: &DnsWriter,
        resolvers: &[SocketAddr],
        state: &StateDir,
    ) -> Result<Writer, String> {
        // Providers speak HTTPS, too.
        http_client::install_tls();
        match config {
            DnsWriter::Provider(provider) => Ok(Writer::Provider {
                name: config.name(),
                server: Server::of(provider, resolvers)?,
                provider: provider.clone(),
            }),
            DnsWriter::Exec { program, timeout } => Ok(Writer::Exec {
                program: program.clone(),
                timeout: *timeout,
            }),
            DnsWriter::AcmeDns(accounts) => {
                AcmeDnsWriter::new(accounts, state).map(Writer::AcmeDns)
            }
        }
    }

    pub(super) fn name(&self) -> &'static str {
        match self {
            Writer::Provider { name, .. } => name,
            Writer::Exec { .. } => "exec",
            Writer::AcmeDns(_) => "acme-dns",
        }
    }

    /// Whether this writer can write where the challenge name of `domain` leads.
    pub(super) async fn check_target(
        &self,
        domain: &str,
        asked: &str,
        target: &str,
    ) -> Result<(), DnsError> {
        let Writer::AcmeDns(writer) = self else {
            return Ok(());
        };
        let checked = writer.check_target(domain, asked, target).await;
        checked.map_err(|source| DnsError::Write {
            provider: self.name(),
            name: asked.to_owned(),
            source: Box::new(source),
        })
    }

    /// `domain`: the name that the record proves.
    pub(super) async fn add(
        &self,
        domain: &str,
        record: &TxtRecord,
        ttl: Duration,
    ) -> Result<(), WriteError> {
        match self {
            Writer::Provider {
                server, provider, ..
            } => {
                let ttl = u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX);
                change(server, provider, Change::Add { ttl }, record).await
            }
            Writer::Exec { program, timeout } => run(program, "present", record, *timeout).await,
            Writer::AcmeDns(writer) => {
                let account = writer.account_of(domain).await?;
                update(&account, &writer.client, record).await
            }
        }
    }

    /// A record that is not there counts as removed.
    pub(super) async fn remove(&self, record: &TxtRecord) -> Result<(), WriteError> {
        match self {
            Writer::Provider {
                server, provider, ..
            } => change(server, provider, Change::Remove, record).await,
            Writer::Exec { program, timeout } => run(program, "cleanup", record, *timeout).await,
            // The server keeps the newest two values, and has no request that removes one.
            Writer::AcmeDns(_) => Ok(()),
        }
    }
}

/// What is sent to a provider.
#[derive(Clone, Copy)]
enum Change {
    Add { ttl: u32 },
    Remove,
}

impl Change {
    async fn send(self, updater: &DnsUpdater, record: &TxtRecord) -> Result<(), dns_update::Error> {
        let (name, zone) = (record.name.as_str(), record.zone.as_str());
        let (kind, value) = (
            DnsRecordType::TXT,
            vec![DnsRecord::TXT(record.value.clone())],
        );
        match self {
            Change::Add { ttl } => updater.add_to_rrset(name, kind, ttl, value, zone).await,
            Change::Remove => match updater.remove_from_rrset(name, kind, value, zone).await {
                Err(dns_update::Error::NotFound) => Ok(()),
                other => other,
            },
        }
    }
}

/// Sends a change to the provider, at each address of its server until one takes it.
async fn change(
    server: &Server,
    provider: &DnsProvider,
    change: Change,
    record: &TxtRecord,
) -> Result<(), WriteError> {
    let (name, resolvers) = match server {
        Server::Known(updater) => return limited(change.send(updater, record), provider).await,
        Server::Named { name, resolvers } => (name, resolvers),
    };
    let mut failed = None;
    for address in addresses(name, resolvers).await? {
        let updater = provider.updater_at(name, address);
        let updater = updater.map_err(WriteError::Refused)?;
        match limited(change.send(&updater, record), provider).await {
            Ok(()) => return Ok(()),
            Err(error) => failed = Some(WriteError::At(address, Box::new(error))),
        }
    }
    Err(failed
        .unwrap_or_else(|| WriteError::Failed(format!("`server` {:?} has no address", name.host))))
}

/// Of the server now: it may move between two orders.
async fn addresses(
    server: &ServerName,
    resolvers: &[SocketAddr],
) -> Result<Vec<SocketAddr>, WriteError> {
    let failed = |cause: String| {
        WriteError::Failed(format!(
            "cannot look up `server` {:?}: {cause}",
            server.host
        ))
    };
    if resolvers.is_empty() {
        let found = tokio::net::lookup_host((&*server.host, server.port)).await;
        return Ok(found.map_err(|error| failed(error.to_string()))?.collect());
    }
    let lookup = Lookup::new(resolvers.to_vec(), Vec::new());
    let found = lookup.addresses(&server.host).await;
    let ips = found.map_err(|error| failed(error.to_string()))?;
    Ok(ips
        .into_iter()
        .map(|ip| SocketAddr::new(ip, server.port))
        .collect())
}

async fn limited(
    change: impl Future<Output = Result<(), dns_update::Error>>,
    provider: &DnsProvider,
) -> Result<(), WriteError> {
    match tokio::time::timeout(PROVIDER_TIMEOUT, change).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => {
            let text = provider.without_secrets(&error.to_string());
            Err(match error {
                dns_update::Error::Unauthorized | dns_update::Error::Unsupported(_) => {
                    WriteError::Refused(text)
                }
                _ => WriteError::Failed(text),
            })
        }
        Err(_) => Err(WriteError::TimedOut(PROVIDER_TIMEOUT)),
    }
}

async fn run(
    program: &Path,
    action: &'static str,
    record: &TxtRecord,
    timeout: Duration,
) -> Result<(), WriteError> {
    let failed = |error: std::io::Error| WriteError::NoProgram {
        program: program.display().to_string(),
        cause: error.to_string(),
    };
    let mut command = Command::new(program);
    command.args([action, &record.name, &record.value]);
    command.stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.process_group(0).spawn().map_err(failed)?;
    let group = ProcessGroup::of(&child);
    let ended = match tokio::time::timeout(timeout, child.wait_with_output()).await {
        Ok(ended) => ended.map_err(failed)?,
        Err(_) => return Err(WriteError::TimedOut(timeout)),
    };
    group.has_ended();
    match ended.status.success() {
        true => Ok(()),
        false => Err(WriteError::Program {
            program: program.display().to_string(),
            action,
            name: record.name.clone(),
            status: ended.status.to_string(),
            output: shown(&[ended.stderr, ended.stdout].concat()),
        }),
    }
}

/// A program and what it started: killed together when dropped, so that neither a limit nor a
/// stop leaves anything behind.
struct ProcessGroup(Option<Pid>);

impl ProcessGroup {
    fn of(leader: &Child) -> ProcessGroup {
        let id = leader.id().and_then(|id| i32::try_from(id).ok());
        ProcessGroup(id.and_then(Pid::from_raw))
    }

    /// Its number may be somebody else's from now on.
    fn has_ended(mut self) {
        self.0 = None;
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // It may have ended by itself just now.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// A program's output on one line, its end where it is long.
fn shown(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let line = lines.join(" ");
    let line = line.trim();
    if line.is_empty() {
        return "it says nothing".to_owned();
    }
    let skipped = line.chars().count().saturating_sub(MAX_OUTPUT);
    line.chars().skip(skipped).collect()
}

/// See github.com/joohoi/acme-dns, "Update endpoint".
async fn update(
    account: &AcmeDnsAccount,
    client: &reqwest::Client,
    record: &TxtRecord,
) -> Result<(), WriteError> {
    let body = serde_json::json!({"subdomain": account.subdomain, "txt": record.value});
    let request = client
        .post(format!("{}/update", account.server))
        .header("X-Api-User", &account.username)
        .header("X-Api-Key", &account.password)
        .json(&body);
    answered(request, &account.password).await.map(drop)
}

/// The body of a good answer by an acme-dns server.
pub(super) async fn answered(
    request: reqwest::RequestBuilder,
    secret: &str,
) -> Result<Vec<u8>, WriteError> {
    let clean = |text: String| without(&text, secret);
    let answer = request
        .send()
        .await
        .map_err(|error| WriteError::Failed(clean(causes(&error))))?;
    let status = answer.status();
    let body = answer.bytes().await.unwrap_or_default();
    if status.is_success() {
        return Ok(body.to_vec());
    }
    let told = clean(format!("{status}: {}", shown(&body)));
    Err(match status.is_client_error() {
        true => WriteError::Refused(told),
        false => WriteError::Failed(told),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_one_line_and_bounded() {
        assert_eq!(shown(b""), "it says nothing");
        assert_eq!(shown(b" a\n b \n"), "a b");
        let long = "x".repeat(5000) + "end";
        let shown = shown(long.as_bytes());
        assert!(shown.len() == MAX_OUTPUT && shown.ends_with("end"));
    }
}
