//! Who writes the records: a provider's API, a program, an acme-dns server. It writes and removes
//! what it is told to and remembers nothing.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use dns_update::{DnsRecord, DnsRecordType, DnsUpdater};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::{Child, Command};

use super::{DnsError, TxtRecord};
use crate::config::{AcmeDns, DnsProvider, DnsWriter, without};
use crate::http_client::{self, causes};

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
        "{asked} does not lead there: add the record {asked} CNAME {subdomain}.DOMAIN, with the domain of your acme-dns server (it leads to {found})"
    )]
    NotDelegated {
        asked: String,
        subdomain: String,
        found: String,
    },
}

impl WriteError {
    /// Whether somebody has to change something first.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(
            self,
            WriteError::Refused(_) | WriteError::NoProgram { .. } | WriteError::NotDelegated { .. }
        )
    }
}

pub(super) enum Writer {
    Provider {
        name: &'static str,
        updater: Box<DnsUpdater>,
        provider: DnsProvider,
    },
    Exec {
        program: PathBuf,
        timeout: Duration,
    },
    AcmeDns {
        account: AcmeDns,
        client: reqwest::Client,
    },
}

impl Writer {
    pub(super) fn new(config: &DnsWriter) -> Result<Writer, String> {
        // Providers speak HTTPS, too.
        http_client::install_tls();
        match config {
            DnsWriter::Provider(provider) => Ok(Writer::Provider {
                name: config.name(),
                updater: Box::new(provider.updater()?),
                provider: provider.clone(),
            }),
            DnsWriter::Exec { program, timeout } => Ok(Writer::Exec {
                program: program.clone(),
                timeout: *timeout,
            }),
            DnsWriter::AcmeDns(account) => Ok(Writer::AcmeDns {
                account: account.clone(),
                client: reqwest::Client::builder()
                    .timeout(ACME_DNS_TIMEOUT)
                    .redirect(reqwest::redirect::Policy::none())
                    .build()
                    .map_err(|error| error.to_string())?,
            }),
        }
    }

    pub(super) fn name(&self) -> &'static str {
        match self {
            Writer::Provider { name, .. } => name,
            Writer::Exec { .. } => "exec",
            Writer::AcmeDns { .. } => "acme-dns",
        }
    }

    /// Whether this writer can write where the challenge name leads.
    pub(super) fn check_target(&self, asked: &str, target: &str) -> Result<(), DnsError> {
        let Writer::AcmeDns { account, .. } = self else {
            return Ok(());
        };
        if target.split('.').next() == Some(&*account.subdomain.to_ascii_lowercase()) {
            return Ok(());
        }
        Err(DnsError::Write {
            provider: self.name(),
            name: asked.to_owned(),
            source: Box::new(WriteError::NotDelegated {
                asked: asked.to_owned(),
                subdomain: account.subdomain.clone(),
                found: target.to_owned(),
            }),
        })
    }

    pub(super) async fn add(&self, record: &TxtRecord, ttl: Duration) -> Result<(), WriteError> {
        match self {
            Writer::Provider {
                updater, provider, ..
            } => {
                let ttl = u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX);
                let added = updater.add_to_rrset(
                    &*record.name,
                    DnsRecordType::TXT,
                    ttl,
                    vec![DnsRecord::TXT(record.value.clone())],
                    &*record.zone,
                );
                limited(added, provider).await
            }
            Writer::Exec { program, timeout } => run(program, "present", record, *timeout).await,
            Writer::AcmeDns { account, client } => update(account, client, record).await,
        }
    }

    /// A record that is not there counts as removed.
    pub(super) async fn remove(&self, record: &TxtRecord) -> Result<(), WriteError> {
        match self {
            Writer::Provider {
                updater, provider, ..
            } => {
                let removed = updater.remove_from_rrset(
                    &*record.name,
                    DnsRecordType::TXT,
                    vec![DnsRecord::TXT(record.value.clone())],
                    &*record.zone,
                );
                let removed = async {
                    match removed.await {
                        Err(dns_update::Error::NotFound) => Ok(()),
                        other => other,
                    }
                };
                limited(removed, provider).await
            }
            Writer::Exec { program, timeout } => run(program, "cleanup", record, *timeout).await,
            // The server keeps the newest two values, and has no request that removes one.
            Writer::AcmeDns { .. } => Ok(()),
        }
    }
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
    account: &AcmeDns,
    client: &reqwest::Client,
    record: &TxtRecord,
) -> Result<(), WriteError> {
    let body = serde_json::json!({"subdomain": account.subdomain, "txt": record.value});
    let request = client
        .post(format!("{}/update", account.server))
        .header("X-Api-User", &account.username)
        .header("X-Api-Key", &account.password)
        .json(&body);
    let clean = |text: String| without(&text, &account.password);
    let answer = request
        .send()
        .await
        .map_err(|error| WriteError::Failed(clean(causes(&error))))?;
    let status = answer.status();
    if status.is_success() {
        return Ok(());
    }
    let text = answer.text().await.unwrap_or_default();
    let told = clean(format!("{status}: {}", shown(text.as_bytes())));
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
