//! The account's key over its life (RFC 8555 sections 7.3.1, 7.3.5 and 7.3.6): told to the CA,
//! found again, changed, given up. A key is on disk before the CA hears of it, so that a crash
//! never leaves an account that nobody has the key of.

use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use boring::pkey::PKey;
use http::header::LOCATION;
use serde_json::{Value, json};

use super::{AccountFile, Authority, Directory, Opened, blocking};
use crate::acme::error::{AcmeError, Class};
use crate::acme::http::JobHttp;
use crate::acme::jws::{self, AccountKey, Signer};
use crate::acme::ledger::Kind;
use crate::store::StoreError;

impl AccountFile {
    pub(super) fn signing_key(&self) -> Result<AccountKey, String> {
        let der = self.key()?;
        AccountKey::from_pkcs8(der.secret_pkcs8_der())
            .map_err(|error| format!("its key cannot be used ({error})"))
    }

    fn with_key(directory: &str, der: &[u8]) -> AccountFile {
        AccountFile {
            directory: directory.to_owned(),
            id: None,
            key_pkcs8: BASE64_URL_SAFE_NO_PAD.encode(der),
            email: None,
        }
    }
}

/// The account of a file that is lost or broken, by the copy of its key. The CA says its URL.
pub(super) fn from_key_file(path: &Path, directory: &str) -> Option<AccountFile> {
    let pem = fs::read(path).ok()?;
    let key = PKey::private_key_from_pem(&pem).ok()?;
    let der = key.private_key_to_der_pkcs8().ok()?;
    AccountKey::from_pkcs8(&der).ok()?;
    Some(AccountFile::with_key(directory, &der))
}

fn key_pem(file: &AccountFile) -> Result<Vec<u8>, String> {
    let der = file.key()?;
    PKey::private_key_from_pkcs8(der.secret_pkcs8_der())
        .and_then(|key| key.private_key_to_pem_pkcs8())
        .map_err(|error| error.to_string())
}

impl Authority {
    /// The copy of the key, beside `account.json`.
    pub(super) fn key_path(&self) -> PathBuf {
        self.dir.join("account.key")
    }

    /// A key that the CA may or may not know yet.
    fn next_key_path(&self) -> PathBuf {
        self.dir.join("account.key.next")
    }

    pub(super) async fn write_key(
        &self,
        path: PathBuf,
        file: &AccountFile,
    ) -> Result<(), AcmeError> {
        let pem = key_pem(file).map_err(|cause| self.error(Class::Operator, cause))?;
        let written = self.write(path, pem).await;
        written.map_err(|error| AcmeError::store(self.what(), &error))
    }

    pub(super) async fn new_key(&self) -> Result<AccountFile, AcmeError> {
        let (_, key) = instant_acme::Key::generate_pkcs8()
            .map_err(|error| self.error(Class::Operator, format!("cannot make a key: {error}")))?;
        let der = key.secret_pkcs8_der();
        Ok(AccountFile::with_key(&self.config.directory, der))
    }

    /// Makes the account at the CA. Answers with its URL.
    pub(super) async fn register(
        &self,
        file: &AccountFile,
        directory: &Directory,
        http: &JobHttp,
    ) -> Result<String, AcmeError> {
        self.check_terms(directory)?;
        let key = self.signing_key(file)?;
        let mut payload = json!({"termsOfServiceAgreed": true});
        if let Some(external) = &self.config.external_account {
            let bound = key.jwk().and_then(|jwk| {
                let url = &directory.new_account;
                jws::external_binding(&jwk, url, &external.kid, &external.hmac_key)
            });
            let bound = bound.map_err(|error| self.error(Class::Operator, error.to_string()))?;
            payload["externalAccountBinding"] = bound;
            // CAs that bind accounts often want to know whom to write to.
            payload["contact"] = json!(self.contact());
        }
        let made = self.new_account(&key, &payload, directory, http).await;
        made.map_err(|error| self.about_the_binding(error))
    }

    /// A CA that does not take the binding says so in words of its own, and not where it came from.
    fn about_the_binding(&self, error: AcmeError) -> AcmeError {
        let external = self.config.external_account.as_ref();
        let Some(external) = external.filter(|_| error.is("unauthorized") || error.is("malformed"))
        else {
            return error;
        };
        let (detail, kid) = (error.detail.trim_end_matches('.'), &external.kid);
        AcmeError {
            class: Class::Operator,
            detail: format!(
                "{detail}; check `kid` ({kid:?}) and the HMAC key of [acme.external_account]"
            ),
            ..error
        }
    }

    /// The URL of the account that has this key, if the CA has one.
    pub(super) async fn find(
        &self,
        file: &AccountFile,
        directory: &Directory,
        http: &JobHttp,
    ) -> Result<Option<String>, AcmeError> {
        let key = self.signing_key(file)?;
        let payload = json!({"onlyReturnExisting": true});
        match self.new_account(&key, &payload, directory, http).await {
            Ok(id) => Ok(Some(id)),
            Err(error) if error.is("accountDoesNotExist") => Ok(None),
            // Some CAs look at the binding or at the terms before they look for the account.
            Err(error) if is_about_a_new_account(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn new_account(
        &self,
        key: &AccountKey,
        payload: &Value,
        directory: &Directory,
        http: &JobHttp,
    ) -> Result<String, AcmeError> {
        let url = &directory.new_account;
        let what = self.what();
        let answer = jws::post(http, &what, key, Signer::Key, url, Some(payload)).await?;
        let location = answer.headers().get(LOCATION);
        let id = location.and_then(|value| value.to_str().ok());
        id.map(str::to_owned)
            .ok_or_else(|| self.error(Class::Retryable, "the CA names no URL of the account"))
    }

    fn check_terms(&self, directory: &Directory) -> Result<(), AcmeError> {
        match &directory.terms_of_service {
            Some(terms) if !self.config.agree_to_terms => Err(AcmeError {
                problem: Some("userActionRequired".to_owned()),
                ..self.error(
                    Class::Operator,
                    format!("no account is made: agree_to_terms is false, and the CA has terms of service, {terms}"),
                )
            }),
            _ => Ok(()),
        }
    }

    fn signing_key(&self, file: &AccountFile) -> Result<AccountKey, AcmeError> {
        file.signing_key()
            .map_err(|cause| self.error(Class::Operator, cause))
    }

    /// Settles a change of keys that a crash or a silent CA left open.
    pub(super) async fn settle_key(
        &self,
        opened: &mut Opened,
        directory: &Directory,
        http: &JobHttp,
    ) -> Result<(), AcmeError> {
        let (path, url) = (self.next_key_path(), self.config.directory.clone());
        let Some(next) = blocking(move || from_key_file(&path, &url)).await else {
            return Ok(());
        };
        match self.find(&next, directory, http).await? {
            Some(id) => {
                let email = opened.account.as_ref().and_then(|it| it.email.clone());
                let next = AccountFile {
                    id: Some(id),
                    email,
                    ..next
                };
                tracing::info!(ca = self.url(), "the CA had taken the new account key");
                self.adopt(opened, next).await
            }
            None => {
                self.forget_next_key().await;
                Ok(())
            }
        }
    }

    /// From here on this is the account.
    async fn adopt(&self, opened: &mut Opened, file: AccountFile) -> Result<(), AcmeError> {
        self.write_key(self.key_path(), &file).await?;
        self.keep_account(&file).await?;
        self.forget_next_key().await;
        opened.account = Some(file);
        Ok(())
    }

    async fn forget_next_key(&self) {
        let path = self.next_key_path();
        // One that stays is found not to be known to the CA at the next start.
        let _ = blocking(move || fs::remove_file(path)).await;
    }

    /// Changes the account's key (RFC 8555 section 7.3.5). Waits for running orders, which sign
    /// with the old one. Answers with the account's URL.
    pub async fn roll_over(&self) -> Result<String, AcmeError> {
        let _alone = self.key_in_use.write().await;
        let (mut opened, directory, http) = self.ready_for_change().await?;
        let (id, old) = self.account_of(&opened)?;
        let url = directory.key_change.clone();
        let url = url.ok_or_else(|| {
            self.error(
                Class::Operator,
                "this CA does not change account keys: it has no keyChange",
            )
        })?;
        let next = self.new_key().await?;
        self.write_key(self.next_key_path(), &next).await?;
        let attempt = self.begin(Kind::Account).await?;
        let result = self.change_key(&id, &old, &next, &url, &http).await;
        self.finish(attempt, &result).await;
        if let Err(error) = result {
            match error.unreachable {
                // Perhaps it was taken: the next session asks.
                true => opened.answered = false,
                false => self.forget_next_key().await,
            }
            let account = opened.account.as_ref().filter(|_| error.is("unauthorized"));
            let refused = match account {
                Some(account) => self.refused(account, &http).await,
                None => None,
            };
            return Err(refused.unwrap_or(error));
        }
        let email = opened.account.as_ref().and_then(|it| it.email.clone());
        let next = AccountFile {
            id: Some(id.clone()),
            email,
            ..next
        };
        self.adopt(&mut opened, next).await?;
        tracing::info!(ca = self.url(), id, "changed the account's key");
        Ok(id)
    }

    async fn change_key(
        &self,
        id: &str,
        old: &AccountKey,
        next: &AccountFile,
        url: &str,
        http: &JobHttp,
    ) -> Result<(), AcmeError> {
        let cannot_sign = |error: boring::error::ErrorStack| {
            self.error(Class::Operator, format!("cannot sign: {error}"))
        };
        let payload = json!({"account": id, "oldKey": old.jwk().map_err(cannot_sign)?});
        let next = self.signing_key(next)?;
        let inner = next.sign(Signer::Key, url, None, Some(&payload));
        let inner = inner.map_err(cannot_sign)?;
        let (what, signer) = (self.what(), Signer::Account(id));
        jws::post(http, &what, old, signer, url, Some(&inner)).await?;
        Ok(())
    }

    /// Gives the account up for good (RFC 8555 section 7.3.6): the next order makes a new one. Its
    /// file is kept under another name. Answers with the account's URL.
    pub async fn deactivate(&self) -> Result<String, AcmeError> {
        let _alone = self.key_in_use.write().await;
        let (mut opened, _, http) = self.ready_for_change().await?;
        let (id, key) = self.account_of(&opened)?;
        let payload = json!({"status": "deactivated"});
        let attempt = self.begin(Kind::Account).await?;
        let (what, signer) = (self.what(), Signer::Account(&id));
        let result = jws::post(&http, &what, &key, signer, &id, Some(&payload)).await;
        self.finish(attempt, &result).await;
        if let Err(error) = result {
            let is_over = error.is("unauthorized") && self.is_refused(&opened, &http).await;
            if !is_over {
                return Err(error);
            }
            tracing::info!(ca = self.url(), id, "the account was given up before");
        }
        let (file, key_file) = (self.account_path(), self.key_path());
        let put_away = blocking(move || put_away(&file, &key_file)).await;
        put_away.map_err(|error| AcmeError::store(self.what(), &error))?;
        opened.account = None;
        opened.answered = false;
        tracing::warn!(ca = self.url(), id, "deactivated the account");
        self.account_has_changed().await;
        Ok(id)
    }

    async fn is_refused(&self, opened: &Opened, http: &JobHttp) -> bool {
        match &opened.account {
            Some(account) => self.refused(account, http).await.is_some(),
            None => false,
        }
    }

    fn account_of(&self, opened: &Opened) -> Result<(String, AccountKey), AcmeError> {
        let account = opened.account.as_ref();
        let none = || self.error(Class::Operator, "there is no account at this CA yet");
        let account = account.ok_or_else(none)?;
        let id = account.id.clone().ok_or_else(none)?;
        Ok((id, self.signing_key(account)?))
    }
}

/// Whether the CA speaks of what a new account would need, and so has none with this key.
fn is_about_a_new_account(error: &AcmeError) -> bool {
    error.is("externalAccountRequired") || error.is("userActionRequired")
}

fn put_away(file: &Path, key_file: &Path) -> Result<(), StoreError> {
    let aside = file.with_extension("deactivated.json");
    fs::rename(file, &aside).map_err(|error| StoreError::io("rename", file, error))?;
    match fs::remove_file(key_file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(StoreError::io("remove", key_file, error))
        }
        _ => Ok(()),
    }
}
