//! The end of a certificate before its time (RFC 8555 section 7.6): by the account that ordered it,
//! or by the certificate's own key where that account is lost.

use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Authority, Directory};
use crate::acme::error::{AcmeError, Class};
use crate::acme::http::JobHttp;
use crate::acme::jws::{self, AccountKey, Signer};
use crate::acme::ledger::Kind;

/// Why a certificate is revoked (RFC 5280 section 5.3.1), as far as whoever has it may say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RevocationReason {
    Unspecified,
    KeyCompromise,
    AffiliationChanged,
    Superseded,
    CessationOfOperation,
    PrivilegeWithdrawn,
}

/// Every reason, its name in RFC 5280 and its number.
const REASONS: [(RevocationReason, &str, u8); 6] = [
    (RevocationReason::Unspecified, "unspecified", 0),
    (RevocationReason::KeyCompromise, "keyCompromise", 1),
    (
        RevocationReason::AffiliationChanged,
        "affiliationChanged",
        3,
    ),
    (RevocationReason::Superseded, "superseded", 4),
    (
        RevocationReason::CessationOfOperation,
        "cessationOfOperation",
        5,
    ),
    (
        RevocationReason::PrivilegeWithdrawn,
        "privilegeWithdrawn",
        9,
    ),
];

impl RevocationReason {
    fn row(self) -> (&'static str, u8) {
        let row = REASONS.iter().find(|(reason, ..)| *reason == self);
        // Every variant stands in the table; the first says nothing at all.
        row.map_or(("unspecified", 0), |(_, name, code)| (name, *code))
    }

    /// As RFC 5280 spells it.
    pub fn as_str(self) -> &'static str {
        self.row().0
    }

    fn code(self) -> u8 {
        self.row().1
    }
}

impl std::str::FromStr for RevocationReason {
    type Err = String;

    /// By its name, however its words are written together, or by its number.
    fn from_str(text: &str) -> Result<RevocationReason, String> {
        let bare = text.replace(['-', '_', ' '], "");
        let fits = |(_, name, code): &&(RevocationReason, &str, u8)| {
            name.eq_ignore_ascii_case(&bare) || code.to_string() == bare
        };
        let found = REASONS.iter().find(fits).map(|(reason, ..)| *reason);
        found.ok_or_else(|| {
            let names = REASONS.map(|(_, name, _)| name).join(", ");
            format!("{text:?} is no reason for a revocation: {names}")
        })
    }
}

/// Whose word a CA took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RevokedBy {
    Account,
    CertificateKey,
}

impl RevokedBy {
    pub fn as_str(self) -> &'static str {
        match self {
            RevokedBy::Account => "account key",
            RevokedBy::CertificateKey => "certificate key",
        }
    }
}

/// What came of a revocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Revoked {
    pub by: RevokedBy,
    /// The CA had it as revoked before.
    pub already: bool,
}

/// A certificate to revoke, with its own key.
pub struct RevocationRequest {
    /// DER.
    pub certificate: Vec<u8>,
    /// PEM. Secret.
    pub private_key: Vec<u8>,
    pub reason: RevocationReason,
}

impl Authority {
    /// Revokes a certificate that this CA has issued.
    pub async fn revoke(&self, request: &RevocationRequest) -> Result<Revoked, AcmeError> {
        let attempt = self.begin(Kind::Revocation).await?;
        let result = self.revoke_by_either(request).await;
        self.finish(attempt, &result).await;
        result
    }

    async fn revoke_by_either(&self, request: &RevocationRequest) -> Result<Revoked, AcmeError> {
        if self.has_account().await? {
            match self.revoke_by_account(request).await {
                Err(error) if is_not_our_account(&error) => {
                    tracing::info!(ca = self.url(), %error, "revoking by the certificate's own key");
                }
                result => return result,
            }
        }
        let (directory, http) = self.directory().await?;
        let key = AccountKey::from_pem(&request.private_key).map_err(|error| {
            let cause = format!("the certificate's private key cannot sign: {error}");
            self.error(Class::Operator, cause)
        })?;
        let (signer, by) = (Signer::Key, RevokedBy::CertificateKey);
        self.post_revocation(&directory, &http, &key, signer, request, by)
            .await
    }

    async fn has_account(&self) -> Result<bool, AcmeError> {
        let mut opened = self.opened_unless_failed_meanwhile().await?;
        self.load(&mut opened, crate::clock::now()).await?;
        Ok(opened.account.is_some())
    }

    async fn revoke_by_account(&self, request: &RevocationRequest) -> Result<Revoked, AcmeError> {
        let _using_the_key = self.use_key().await;
        let session = self.session().await?;
        let http = super::job_http(&session.transport, self.url(), &session.directory);
        let key = session.key()?;
        let id = session.account.id.clone().unwrap_or_default();
        let (signer, by) = (Signer::Account(&id), RevokedBy::Account);
        self.post_revocation(&session.directory, &http, &key, signer, request, by)
            .await
    }

    async fn post_revocation(
        &self,
        directory: &Directory,
        http: &JobHttp,
        key: &AccountKey,
        signer: Signer<'_>,
        request: &RevocationRequest,
        by: RevokedBy,
    ) -> Result<Revoked, AcmeError> {
        let none = || {
            self.error(
                Class::Operator,
                "this CA does not revoke: it has no revokeCert",
            )
        };
        let url = directory.revoke_cert.as_ref().ok_or_else(none)?;
        let payload = payload(request);
        match jws::post(http, &self.what(), key, signer, url, Some(&payload)).await {
            Ok(_) => Ok(Revoked { by, already: false }),
            Err(error) if error.is("alreadyRevoked") => Ok(Revoked { by, already: true }),
            Err(error) => Err(error),
        }
    }
}

fn payload(request: &RevocationRequest) -> Value {
    json!({
        "certificate": BASE64_URL_SAFE_NO_PAD.encode(&request.certificate),
        "reason": request.reason.code(),
    })
}

/// Whether the CA would listen to the certificate's own key instead: the account is gone, or it is
/// another one than ordered the certificate.
fn is_not_our_account(error: &AcmeError) -> bool {
    error.is("unauthorized") || error.is("accountDoesNotExist")
}

/// What the admin API and the log say about a certificate that was revoked.
#[derive(Clone, Debug)]
pub struct Revocation {
    pub serial: String,
    pub names: Vec<String>,
    /// Directory URL.
    pub ca: String,
    pub reason: RevocationReason,
    pub revoked: Revoked,
}

/// [`Authority::revoke`] for a certificate in the state directory; `private_key` is read here, where
/// blocking is allowed, and nowhere else.
pub async fn revoke_stored(
    authority: &Arc<Authority>,
    stored: &crate::store::generation::StoredCertificate,
    reason: RevocationReason,
) -> Result<Revocation, AcmeError> {
    let path = stored.path.join(crate::store::generation::PRIVATE_KEY);
    let private_key = super::blocking(move || std::fs::read(path)).await;
    let request = RevocationRequest {
        certificate: stored.leaf.der.clone(),
        // Needed only where the account is lost; then its absence is told.
        private_key: private_key.unwrap_or_default(),
        reason,
    };
    let revoked = authority.revoke(&request).await?;
    Ok(Revocation {
        serial: stored.leaf.serial.clone(),
        names: stored.leaf.names.iter().map(ToString::to_string).collect(),
        ca: authority.url().to_owned(),
        reason,
        revoked,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_by_name_and_by_number() {
        for (text, reason) in [
            ("keyCompromise", RevocationReason::KeyCompromise),
            ("key-compromise", RevocationReason::KeyCompromise),
            ("KEYCOMPROMISE", RevocationReason::KeyCompromise),
            ("1", RevocationReason::KeyCompromise),
            ("superseded", RevocationReason::Superseded),
            ("5", RevocationReason::CessationOfOperation),
        ] {
            assert_eq!(text.parse(), Ok(reason), "{text}");
        }
        // Of CAs alone, or not to be undone.
        for text in ["cACompromise", "2", "6", "certificateHold", "", "bored"] {
            let error = text.parse::<RevocationReason>().unwrap_err();
            assert!(error.contains("keyCompromise"), "{error}");
        }
        for (reason, name, code) in REASONS {
            assert_eq!((reason.as_str(), reason.code()), (name, code));
        }
    }
}
