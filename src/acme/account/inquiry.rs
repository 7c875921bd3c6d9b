//! What a command of a person asks of a CA, beside a server that may run: the directory, and how
//! our account there is. It makes no account, and writes nothing.

use std::path::{Path, PathBuf};

use time::Duration;

use super::standing::{VALID, account_status};
use super::unfit::{self, Unfit};
use super::{AccountFile, Directory, blocking, job_http, read_account, slug};
use crate::acme::error::{AcmeError, Class};
use crate::acme::http::{HttpError, JobHttp, Transport};
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
    /// Something else answers there.
    #[error("{}", .0.text)]
    Unfit(Unfit),
}

impl DirectoryError {
    /// What can be done about it.
    pub fn remedy(&self, config: &CertificateAuthority) -> String {
        let setting = &config.spelling.directory;
        match self {
            DirectoryError::Anchors(_) => format!(
                "set {} to a PEM file with the root of the CA's own HTTPS",
                config.spelling.ca_certificate
            ),
            DirectoryError::Untrusted(error) => unfit::distrust(&error.to_string(), config),
            DirectoryError::Unreachable(_) => format!(
                "look at the way out of this host (DNS, firewall), and whether {setting} names the \
                 right host and port; then at the CA's status page"
            ),
            DirectoryError::Unfit(unfit) => unfit.advice(config).unwrap_or_else(|| {
                "the CA has trouble, or asks for patience: look at its status page, and ask again"
                    .to_owned()
            }),
        }
    }
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
        let answered = http.get_whole(&config.directory).await;
        let answer = answered.map_err(|error| match error.is_distrust() {
            true => DirectoryError::Untrusted(error),
            false => DirectoryError::Unreachable(error),
        })?;
        let directory = unfit::directory(&answer).map_err(DirectoryError::Unfit)?;
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
            Ok(status) if status == VALID => AccountState::Good(url),
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
        account_status(&http, &what, &key, url).await
    }
}

/// Whether it is the account that the CA speaks of: of one that has ended it takes no request
/// (RFC 8555 section 7.3.6).
fn refuses(error: &AcmeError) -> bool {
    error.is("unauthorized") || error.is("accountDoesNotExist")
}
