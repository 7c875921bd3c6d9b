//! What a command of a person asks of a CA, beside a server that may run: the directory, and how
//! our account there is. It makes no account, and writes nothing.

use std::path::{Path, PathBuf};

use http::StatusCode;
use time::Duration;

use super::{AccountFile, Directory, blocking, job_http, read_account, slug};
use crate::acme::error::{AcmeError, Class};
use crate::acme::http::{HttpError, JobHttp, Transport};
use crate::acme::jws::{self, Signer};
use crate::config::CertificateAuthority;

/// Why there is no directory.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// `ca_certificate`, or the system's roots.
    #[error("{0}")]
    Anchors(String),
    #[error("{0}")]
    Untrusted(HttpError),
    #[error("{0}")]
    Unreachable(HttpError),
    #[error("the directory answers HTTP {0}")]
    Status(StatusCode),
    #[error("its answer is an HTML page, and no ACME directory")]
    Html,
    #[error("its answer is no ACME directory ({0})")]
    Other(serde_json::Error),
}

impl DirectoryError {
    /// What can be done about it. `root`: the `ca_certificate` of the configuration.
    pub fn remedy(&self, root: Option<&Path>) -> String {
        let another = "check `directory`: it has to be the whole URL of the CA's ACME directory";
        match (self, root) {
            (DirectoryError::Anchors(_), _) => {
                "set `ca_certificate` to a PEM file with the root of the CA's own HTTPS".to_owned()
            }
            (DirectoryError::Untrusted(_), Some(root)) => format!(
                "`ca_certificate` is {}, which does not lead to the certificate that the CA shows: \
                 it has to be the root that signed that one, and not the certificate itself",
                root.display()
            ),
            (DirectoryError::Untrusted(_), None) => {
                "for a private CA set `ca_certificate` to its root; at a public one somebody in \
                 between has opened TLS, whose root that is then"
                    .to_owned()
            }
            (DirectoryError::Unreachable(_), _) => {
                "look at the way out of this host (DNS, firewall), and whether `directory` names \
                 the right host and port; then at the CA's status page"
                    .to_owned()
            }
            (DirectoryError::Status(status), _) if is_passing(*status) => {
                "the CA has trouble, or asks for patience: look at its status page, and ask again"
                    .to_owned()
            }
            (DirectoryError::Status(_) | DirectoryError::Html | DirectoryError::Other(_), _) => {
                another.to_owned()
            }
        }
    }
}

/// Whether another time may bring another answer.
fn is_passing(status: StatusCode) -> bool {
    status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS
}

/// A CA that has answered.
pub struct Inquiry {
    pub directory: Directory,
    url: String,
    transport: Transport,
    /// Where what we know of the CA is.
    dir: PathBuf,
}

/// Our account at a CA, as the CA sees it.
#[derive(Debug)]
pub enum AccountState {
    /// We have none.
    Missing,
    Good(String),
    /// With its URL, and what the CA calls it (RFC 8555 section 7.1.6).
    Ended(String, String),
    /// With its URL; the CA does not deal with it.
    Refused(String, AcmeError),
    /// It could not be asked about.
    Unknown(String),
}

impl Inquiry {
    /// Asks for the directory: one plain request.
    pub async fn of(
        config: &CertificateAuthority,
        state_dir: &Path,
    ) -> Result<Inquiry, DirectoryError> {
        let roots = config.ca_certificate.clone();
        let transport = blocking(move || Transport::new(roots.as_deref())).await;
        let transport = transport.map_err(DirectoryError::Anchors)?;
        let http = JobHttp::new(transport.clone());
        let answered = http.get(&config.directory).await;
        let (status, body) = answered.map_err(|error| match error.is_distrust() {
            true => DirectoryError::Untrusted(error),
            false => DirectoryError::Unreachable(error),
        })?;
        if !status.is_success() {
            return Err(DirectoryError::Status(status));
        }
        let is_html = body.trim_ascii_start().starts_with(b"<");
        let directory = Directory::parse(body).map_err(|error| match is_html {
            true => DirectoryError::Html,
            false => DirectoryError::Other(error),
        })?;
        Ok(Inquiry {
            directory,
            url: config.directory.clone(),
            transport,
            dir: state_dir.join("accounts").join(slug(&config.directory)),
        })
    }

    /// By how much the CA's clock is ahead of ours.
    pub fn clock_offset(&self) -> Option<Duration> {
        self.transport.clock_offset()
    }

    /// Asks the account's URL (RFC 8555 section 7.3), where there is an account.
    pub async fn account(&self) -> AccountState {
        let path = self.dir.join("account.json");
        let file = match blocking(move || read_account(&path)).await {
            Ok(Some(file)) => file,
            Ok(None) => return AccountState::Missing,
            Err(error) => return AccountState::Unknown(error.to_string()),
        };
        let Some(url) = file.id.clone() else {
            return AccountState::Missing;
        };
        match self.status_of(&file, &url).await {
            Ok(status) if status == "valid" => AccountState::Good(url),
            Ok(status) => AccountState::Ended(url, status),
            Err(error) if refuses(&error) => AccountState::Refused(url, error),
            Err(error) => AccountState::Unknown(error.to_string()),
        }
    }

    async fn status_of(&self, file: &AccountFile, url: &str) -> Result<String, AcmeError> {
        let what = format!("account at {}", self.url);
        let key = file.signing_key();
        let key = key.map_err(|cause| AcmeError::new(Class::Operator, &what, cause))?;
        let http = job_http(&self.transport, &self.url, &self.directory);
        let signer = Signer::Account(url);
        let answer = jws::post(&http, &what, &key, signer, url, None).await?;
        let account: serde_json::Value = serde_json::from_slice(answer.body()).unwrap_or_default();
        // One that does not say is dealt with all the same.
        Ok(account["status"].as_str().unwrap_or("valid").to_owned())
    }
}

/// Whether it is the account that the CA speaks of: of one that has ended it takes no request
/// (RFC 8555 section 7.3.6).
fn refuses(error: &AcmeError) -> bool {
    error.is("unauthorized") || error.is("accountDoesNotExist")
}
