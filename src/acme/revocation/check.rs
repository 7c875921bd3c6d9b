//! One look at a list or a responder. When the next is allowed is on disk before anything is sent,
//! so that a crash loop asks no more often than one run would.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::{CEILING, FLOOR, Finding, RevocationError, Source, crl, next_check, ocsp};
use crate::acme::account::{Authority, blocking};
use crate::acme::http::HttpError;
use crate::acme::ledger::{Ledger, StoredRevocation};
use crate::clock;
use crate::store::generation::FULLCHAIN;
use crate::store::leaf::chain_der;
use crate::store::sha2_hex::short_hash;
use crate::store::{self, SECRET_FILE, StateDir, StoreError, atomic};

/// A list of a million certificates has some 40 MB; lists that large are split.
const MAX_CRL_BYTES: usize = 32 << 20;
/// One certificate's status, and the responder's certificate with it.
const MAX_OCSP_BYTES: usize = 64 << 10;

/// `ledger/revocation/*.json`: when a source may be asked next.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct StoredCheck {
    url: String,
    /// Of the certificate that a responder was asked about.
    #[serde(default)]
    serial: Option<String>,
    #[serde(with = "time::serde::rfc3339")]
    next_check: OffsetDateTime,
    /// In a row, one that a crash ended among them.
    #[serde(default)]
    failures: u32,
    #[serde(default)]
    error: Option<String>,
}

/// A certificate that names the source.
pub(in crate::acme) struct Target {
    pub(in crate::acme) id: u64,
    pub(in crate::acme) serial: String,
    /// Of the certificate, as text.
    pub(in crate::acme) issuer: String,
    /// Its generation, where the issuer's certificate is.
    pub(in crate::acme) path: PathBuf,
    pub(in crate::acme) ledger: Arc<Ledger>,
}

/// See the module.
pub(in crate::acme) struct CheckJob {
    pub(in crate::acme) source: Source,
    pub(in crate::acme) targets: Vec<Target>,
    /// Whose roots are trusted, where the source is asked over HTTPS.
    pub(in crate::acme) authority: Arc<Authority>,
    pub(in crate::acme) state: StateDir,
    /// In 0..1.
    pub(in crate::acme) fraction: f64,
}

/// What came of it.
pub(in crate::acme) struct Checked {
    pub(in crate::acme) source: Source,
    pub(in crate::acme) next: OffsetDateTime,
    /// Why nothing is known.
    pub(in crate::acme) error: Option<String>,
    /// Noted in their ledgers already.
    pub(in crate::acme) revoked: Vec<(u64, StoredRevocation)>,
}

impl CheckJob {
    pub(in crate::acme) async fn run(self) -> Checked {
        let now = clock::now();
        let path = self.path();
        let before = {
            let path = path.clone();
            let serial = self.serial();
            blocking(move || read(&path, serial.as_deref())).await
        };
        if let Some(before) = &before
            && before.next_check > now
            && before.next_check - now <= CEILING + FLOOR
        {
            return self.checked(before.next_check, before.error.clone(), Vec::new());
        }
        let failures = before.map_or(0, |before| before.failures) + 1;
        let next = next_check(now, Err(failures), self.fraction);
        if let Err(error) = self.keep(&path, next, failures, None).await {
            // What is not on disk is not sent.
            return self.checked(next, Some(error.to_string()), Vec::new());
        }
        let (next, failures, error, revoked) = match self.look(now).await {
            Ok((next_update, revoked)) => {
                let next = next_check(now, Ok(next_update), self.fraction);
                (next, 0, None, revoked)
            }
            Err(error) => {
                let error = format!(
                    "cannot learn from {} what is revoked: {error}",
                    self.source.url()
                );
                (next, failures, Some(error), Vec::new())
            }
        };
        if let Err(error) = self.keep(&path, next, failures, error.clone()).await {
            tracing::warn!(%error, "cannot note when a revocation list is to be asked for again");
        }
        self.checked(next, error, revoked)
    }

    fn checked(
        self,
        next: OffsetDateTime,
        error: Option<String>,
        revoked: Vec<(u64, StoredRevocation)>,
    ) -> Checked {
        Checked {
            source: self.source,
            next,
            error,
            revoked,
        }
    }

    async fn look(
        &self,
        now: OffsetDateTime,
    ) -> Result<(Option<OffsetDateTime>, Vec<(u64, StoredRevocation)>), RevocationError> {
        let finding = match &self.source {
            Source::Crl(url) => self.ask_for_list(url, now).await?,
            Source::Ocsp { url, serial, .. } => self.ask_responder(url, serial, now).await?,
        };
        let revoked = self.note(&finding, now).await?;
        Ok((finding.next_update, revoked))
    }

    async fn ask_for_list(
        &self,
        url: &Arc<str>,
        now: OffsetDateTime,
    ) -> Result<Finding, RevocationError> {
        let http = self.authority.http().await.map_err(fetch_error)?;
        let (status, body) = http.get_up_to(url, MAX_CRL_BYTES).await.map_err(fetch)?;
        expect_success(status)?;
        let mut by_issuer: BTreeMap<String, (PathBuf, Vec<String>)> = BTreeMap::new();
        for target in &self.targets {
            let group = by_issuer.entry(target.issuer.clone());
            let (_, serials) = group.or_insert_with(|| (target.path.clone(), Vec::new()));
            serials.push(target.serial.clone());
        }
        let url = Arc::clone(url);
        // Lists are long, and each is looked through once.
        blocking(move || {
            let issuer = crl::issuer_of(&body)?;
            let mut issuers = by_issuer.keys().cloned();
            let Some((path, serials)) = by_issuer.get(&issuer) else {
                let expected = issuers.next().unwrap_or_default();
                return Err(RevocationError::OtherIssuer(expected));
            };
            let wanted: HashSet<&str> = serials.iter().map(String::as_str).collect();
            crl::read(&body, &url, &issuer_certificate(path)?, &wanted, now)
        })
        .await
    }

    async fn ask_responder(
        &self,
        url: &str,
        serial: &str,
        now: OffsetDateTime,
    ) -> Result<Finding, RevocationError> {
        let http = self.authority.http().await.map_err(fetch_error)?;
        let path = self.targets.first().map(|target| target.path.clone());
        let path = path.ok_or_else(|| RevocationError::Fetch("nobody asks any more".to_owned()))?;
        let issuer = blocking(move || issuer_certificate(&path)).await?;
        let question = ocsp::Question::new(serial, &issuer)?;
        let body = question.to_der()?;
        let media = "application/ocsp-request";
        let answer = http.post_up_to(url, media, body, MAX_OCSP_BYTES).await;
        let (status, body) = answer.map_err(fetch)?;
        expect_success(status)?;
        question.read(&body, &issuer, now)
    }

    /// On disk before anybody acts on it.
    async fn note(
        &self,
        finding: &Finding,
        now: OffsetDateTime,
    ) -> Result<Vec<(u64, StoredRevocation)>, RevocationError> {
        let mut noted = Vec::new();
        for (serial, reason) in &finding.revoked {
            let targets = self.targets.iter().filter(|it| it.serial == *serial);
            for target in targets {
                let revocation = StoredRevocation {
                    serial: serial.clone(),
                    found_at: now,
                    source: Some(self.source.url().to_owned()),
                    reason: reason.map(str::to_owned),
                };
                let (ledger, kept) = (Arc::clone(&target.ledger), revocation.clone());
                blocking(move || ledger.set_revocation(kept))
                    .await
                    .map_err(|error| RevocationError::Fetch(error.to_string()))?;
                noted.push((target.id, revocation));
            }
        }
        Ok(noted)
    }

    fn serial(&self) -> Option<String> {
        match &self.source {
            Source::Crl(_) => None,
            Source::Ocsp { serial, .. } => Some(serial.to_string()),
        }
    }

    fn path(&self) -> PathBuf {
        let key = match &self.source {
            Source::Crl(url) => url.to_string(),
            Source::Ocsp { url, subject, .. } => format!("{url} {subject}"),
        };
        let file = format!("{}.json", short_hash(&key, 32));
        self.state.ledger_dir().join("revocation").join(file)
    }

    async fn keep(
        &self,
        path: &Path,
        next_check: OffsetDateTime,
        failures: u32,
        error: Option<String>,
    ) -> Result<(), StoreError> {
        let check = StoredCheck {
            url: self.source.url().to_owned(),
            serial: self.serial(),
            next_check,
            failures,
            error,
        };
        let path = path.to_owned();
        blocking(move || write(&path, &check)).await
    }
}

/// Nothing, where it is about another certificate or cannot be read: then one question is too many
/// at most.
fn read(path: &Path, serial: Option<&str>) -> Option<StoredCheck> {
    let check: StoredCheck = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    (check.serial.as_deref() == serial).then_some(check)
}

fn write(path: &Path, check: &StoredCheck) -> Result<(), StoreError> {
    if let Some(parent) = path.parent() {
        store::make_directory(parent)?;
    }
    let bytes =
        serde_json::to_vec_pretty(check).map_err(|error| StoreError::broken(path, error))?;
    atomic::write_file(path, &bytes, SECRET_FILE)
}

/// The certificate after the leaf.
fn issuer_certificate(generation: &Path) -> Result<Vec<u8>, RevocationError> {
    let unreadable = |cause: String| RevocationError::Unreadable {
        what: "certificate of the issuer",
        cause,
    };
    let path = generation.join(FULLCHAIN);
    let pem =
        fs::read(&path).map_err(|error| unreadable(format!("{}: {error}", path.display())))?;
    let chain = chain_der(&pem).map_err(unreadable)?;
    let issuer = chain.into_iter().nth(1);
    issuer.ok_or_else(|| unreadable("the chain has none".to_owned()))
}

fn fetch(error: HttpError) -> RevocationError {
    RevocationError::Fetch(error.to_string())
}

fn fetch_error(error: impl ToString) -> RevocationError {
    RevocationError::Fetch(error.to_string())
}

fn expect_success(status: http::StatusCode) -> Result<(), RevocationError> {
    match status.is_success() {
        true => Ok(()),
        false => Err(RevocationError::Fetch(format!("HTTP {status}"))),
    }
}
