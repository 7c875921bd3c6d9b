//! One CA as this process knows it: its directory, our account there, and whether it answers.
//! Everything is opened when an order needs it and not before: a CA that is down never delays
//! anything but its own orders.

mod directory;
mod imported;
mod inquiry;
mod keys;
mod profile;
pub mod revocation;
mod settings;
mod standing;
mod unfit;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use bytes::Bytes;
use instant_acme::Account;
use rustls_pki_types::PrivatePkcs8KeyDer;
use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};

use super::dns::standing::Terms;
use super::error::{AcmeError, Class};
use super::history::{History, Reservation};
use super::http::{JobHttp, Transport};
use super::jws::{self, AccountKey, Signer};
use super::ledger::{AttemptId, Kind, Ledger, Outcome};
use super::limits::{self, Broken};
use crate::certificate::name::Name;
use crate::clock;
use crate::config::CertificateAuthority;
use crate::store::sha2_hex::short_hash;
use crate::store::{self, SECRET_FILE, StateDir, StoreError, atomic};

pub use imported::{Imported, ImportedAccount};
pub use inquiry::{AccountState, DirectoryError, Inquiry};

/// How long a directory is believed. Its URLs change with years, but new features come and go.
const DIRECTORY_LIFETIME: Duration = Duration::hours(12);
/// After so many orders in a row that were told to wait, the limit is the account's, not a name's.
const ACCOUNT_LIMIT_SIGNS: u32 = 3;
/// A CA that offers no renewal information may do so tomorrow.
pub(super) const SILENCE: Duration = Duration::days(1);
/// What the CA's challenges last said of the record of dns-persist-01.
const TERMS_FILE: &str = "dns-persist.json";
/// Longest readable part of a CA's directory name.
const MAX_SLUG: usize = 80;

/// What we use of a CA's directory (RFC 8555 section 7.1.1).
#[derive(Clone, Debug)]
pub struct Directory {
    raw: Bytes,
    new_nonce: String,
    new_account: String,
    key_change: Option<String>,
    revoke_cert: Option<String>,
    /// RFC 9773.
    pub renewal_info: Option<String>,
    terms_of_service: Option<String>,
    /// Whether an account is made for somebody with an account elsewhere alone (RFC 8555 section
    /// 7.3.4).
    pub external_account_required: bool,
    /// The issuer names that this CA looks for in DNS (RFC 8555 section 7.1.1).
    pub caa_identities: Vec<String>,
    /// The CA's profiles, each with what it says about it (draft-ietf-acme-profiles).
    pub profiles: BTreeMap<String, serde_json::Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct DirectoryDocument {
    new_nonce: String,
    new_account: String,
    key_change: Option<String>,
    revoke_cert: Option<String>,
    #[serde(rename = "newOrder")]
    _new_order: String,
    renewal_info: Option<String>,
    #[serde(default)]
    meta: DirectoryMeta,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct DirectoryMeta {
    terms_of_service: Option<String>,
    #[serde(default)]
    external_account_required: bool,
    #[serde(default)]
    caa_identities: Vec<String>,
    #[serde(default)]
    profiles: BTreeMap<String, serde_json::Value>,
}

impl Directory {
    pub(super) fn parse(raw: Bytes) -> Result<Directory, serde_json::Error> {
        let document: DirectoryDocument = serde_json::from_slice(&raw)?;
        Ok(Directory {
            raw,
            new_nonce: document.new_nonce,
            new_account: document.new_account,
            key_change: document.key_change,
            revoke_cert: document.revoke_cert,
            renewal_info: document.renewal_info,
            terms_of_service: document.meta.terms_of_service,
            external_account_required: document.meta.external_account_required,
            caa_identities: document.meta.caa_identities,
            profiles: document.meta.profiles,
        })
    }

    /// Where the CA's terms of service are.
    pub fn terms_of_service(&self) -> Option<&str> {
        self.terms_of_service.as_deref()
    }

    /// Whatever else a directory says may come and go.
    fn has_same_urls(&self, other: &Directory) -> bool {
        let urls = |it: &Directory| {
            let document: serde_json::Value = serde_json::from_slice(&it.raw).unwrap_or_default();
            let mut urls = document.as_object().cloned().unwrap_or_default();
            urls.retain(|_, value| value.is_string());
            urls
        };
        urls(self) == urls(other)
    }
}

/// `directory.json`.
#[derive(Serialize, Deserialize)]
struct CachedDirectory {
    #[serde(with = "time::serde::rfc3339")]
    fetched_at: OffsetDateTime,
    directory: serde_json::Value,
}

/// `account.json`. The key is on disk before the CA hears of it; the URL follows.
#[derive(Clone, Serialize, Deserialize)]
struct AccountFile {
    directory: String,
    /// The account URL; `None` until the CA has given one.
    #[serde(default)]
    id: Option<String>,
    /// PKCS#8 DER in base64url. Secret.
    key_pkcs8: String,
    /// The contact the CA was told.
    #[serde(default)]
    email: Option<String>,
}

impl AccountFile {
    fn key(&self) -> Result<PrivatePkcs8KeyDer<'static>, String> {
        let der = BASE64_URL_SAFE_NO_PAD
            .decode(&self.key_pkcs8)
            .map_err(|error| format!("its key is not base64url ({error})"))?;
        Ok(PrivatePkcs8KeyDer::from(der))
    }
}

/// An authority of the configuration, as this process knows it.
pub struct Authority {
    pub config: CertificateAuthority,
    /// That of `config`, for the many who keep it.
    url: Arc<str>,
    pub ledger: Arc<Ledger>,
    pub history: Arc<History>,
    dir: PathBuf,
    /// Held while the CA is first asked, so that it is asked once, by whichever order comes first.
    opened: tokio::sync::Mutex<Opened>,
    /// Orders in a row that were told to wait, whichever they were.
    rate_limited: AtomicU32,
    /// Until when the CA is known to offer no renewal information, so that not every certificate
    /// finds that out for itself, each day.
    silent_until: Mutex<Option<OffsetDateTime>>,
    /// Held for reading by orders, which sign with the account's key, and for writing to change it.
    key_in_use: tokio::sync::RwLock<()>,
}

#[derive(Default)]
struct Opened {
    transport: Option<Transport>,
    directory: Option<(Directory, OffsetDateTime)>,
    account: Option<AccountFile>,
    /// Whether the CA has answered since the last failure.
    answered: bool,
    last_error: Option<AcmeError>,
}

/// An open way to a CA.
#[derive(Clone)]
pub struct Session {
    transport: Transport,
    pub directory: Directory,
    url: String,
    account: AccountFile,
    /// Where what we know of the CA is.
    dir: PathBuf,
}

impl Session {
    /// The account's key, for requests that we sign ourselves.
    pub(super) fn key(&self) -> Result<AccountKey, AcmeError> {
        self.account
            .signing_key()
            .map_err(|cause| AcmeError::new(Class::Operator, self.url.clone(), cause))
    }

    /// Its URL.
    pub fn account_url(&self) -> Option<&str> {
        self.account.id.as_deref()
    }

    /// By how much the CA's clock is ahead of ours.
    pub fn clock_offset(&self) -> Option<Duration> {
        self.transport.clock_offset()
    }

    /// Keeps what a dns-persist-01 challenge says of its record, for whoever asks before the next
    /// order. What cannot be kept is said by that again.
    pub(super) async fn keep_terms(&self, terms: &Terms) {
        let path = self.dir.join(TERMS_FILE);
        let bytes = serde_json::to_vec_pretty(&KeptTerms {
            told: self.account.id.clone(),
            terms: terms.clone(),
        });
        let kept = blocking(move || {
            let bytes = bytes.map_err(|error| StoreError::broken(&path, error))?;
            match fs::read(&path).is_ok_and(|before| before == bytes) {
                true => Ok(()),
                false => atomic::write_file(&path, &bytes, SECRET_FILE),
            }
        });
        if let Err(error) = kept.await {
            tracing::warn!(ca = self.url, %error, "cannot keep what the CA says of dns-persist-01");
        }
    }

    /// Of the account's key (RFC 7638).
    pub(super) fn thumbprint(&self) -> Result<String, AcmeError> {
        let error = |cause: String| AcmeError::new(Class::Operator, self.url.clone(), cause);
        self.key()?.thumbprint().map_err(|it| error(it.to_string()))
    }

    /// The account, with an HTTP client that remembers for one job alone. Sends nothing.
    pub async fn account(&self) -> Result<(Account, JobHttp), AcmeError> {
        let http = job_http(&self.transport, &self.url, &self.directory);
        let id = self.account.id.clone().unwrap_or_default();
        let broken = |cause: String| {
            AcmeError::new(Class::Operator, format!("account at {}", self.url), cause)
        };
        let mut key = self.account.key().map_err(broken)?;
        let mut http = http;
        let own = self.key()?;
        if !own.is_es256() {
            let (_, stand_in) =
                instant_acme::Key::generate_pkcs8().map_err(|error| broken(error.to_string()))?;
            key = stand_in;
            http = http.signing_again(own);
        }
        let account = Account::builder_with_http(Box::new(http.clone()))
            .from_parts(id, key, self.url.clone())
            .await
            .map_err(|error| broken(error.to_string()))?;
        Ok((account, http))
    }
}

impl Authority {
    /// Reads what is known about a CA. `is_writer`: nobody else writes that. Sends nothing; blocks on
    /// the disk.
    pub fn open(
        state: &StateDir,
        config: CertificateAuthority,
        is_writer: bool,
        now: OffsetDateTime,
    ) -> Result<Authority, StoreError> {
        let slug = slug(&config.directory);
        let ledger = Arc::new(Ledger::of_authority(state, &slug, now)?);
        let keep = limits::memory(&config.limits);
        let history = match is_writer {
            true => History::open(state, &slug, keep, now)?,
            false => History::peek(state, &slug, keep, now)?,
        };
        let history = Arc::new(history);
        Ok(Authority::with_records(state, config, ledger, history))
    }

    /// The same CA under a changed configuration: what was recorded goes on.
    pub fn with_records(
        state: &StateDir,
        config: CertificateAuthority,
        ledger: Arc<Ledger>,
        history: Arc<History>,
    ) -> Authority {
        Authority {
            ledger,
            history,
            dir: state.accounts_dir().join(slug(&config.directory)),
            url: config.directory.as_str().into(),
            config,
            opened: tokio::sync::Mutex::default(),
            rate_limited: AtomicU32::new(0),
            silent_until: Mutex::default(),
            key_in_use: tokio::sync::RwLock::default(),
        }
    }

    /// The directory of just now offers no renewal information; others need not look for so long.
    pub fn offers_no_renewal_info(&self, now: OffsetDateTime) {
        let until = now + SILENCE;
        let silent = self.silent_until.lock();
        *silent.unwrap_or_else(PoisonError::into_inner) = Some(until);
    }

    /// Until when renewal information need not be asked for, if it need not.
    pub fn silent_until(&self, now: OffsetDateTime) -> Option<OffsetDateTime> {
        let silent = self.silent_until.lock();
        let until = *silent.unwrap_or_else(PoisonError::into_inner);
        // A date further away was made by a clock that was ahead.
        until.filter(|until| now < *until && *until - now <= SILENCE)
    }

    /// The limit that one more order for these names would break now. `exempt`: the CA is told
    /// which certificate it renews.
    pub fn broken_by(&self, names: &[Name], exempt: bool, now: OffsetDateTime) -> Option<Broken> {
        let limits = &self.config.limits;
        self.history.forget(now, limits::memory(limits));
        self.history
            .judge(|past| limits::order(now, limits, past, names, exempt))
    }

    /// A place within the limits for an order that counts, or the limit that it would break.
    pub fn reserve(&self, names: &[Name], now: OffsetDateTime) -> Result<Reservation, Broken> {
        self.history.reserve(&self.config.limits, names, now)
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn shared_url(&self) -> Arc<str> {
        Arc::clone(&self.url)
    }

    /// Held as long as the account's key must not change.
    pub async fn use_key(&self) -> tokio::sync::RwLockReadGuard<'_, ()> {
        self.key_in_use.read().await
    }

    /// A session to order with: the CA has answered, and our account is there. Whatever has to be
    /// sent for it stands in the ledger first.
    pub async fn session(&self) -> Result<Session, AcmeError> {
        let mut opened = self.opened_unless_failed_meanwhile().await?;
        let now = clock::now();
        self.load(&mut opened, now).await?;
        let is_known = |account: &AccountFile| account.id.is_some() && self.knows_contact(account);
        let ready = opened.answered
            && opened.directory.is_some()
            && opened.account.as_ref().is_some_and(is_known);
        if !ready {
            let attempt = self.begin(Kind::Session).await?;
            let result = self.connect(&mut opened, now).await;
            self.finish(attempt, &result).await;
            opened.answered = result.is_ok();
            opened.last_error = result.as_ref().err().cloned();
            result?;
        }
        match (&opened.transport, &opened.directory, &opened.account) {
            (Some(transport), Some((directory, _)), Some(account)) => Ok(Session {
                transport: transport.clone(),
                directory: directory.clone(),
                url: self.config.directory.clone(),
                account: account.clone(),
                dir: self.dir.clone(),
            }),
            _ => Err(self.error(Class::Retryable, "the session is incomplete")),
        }
    }

    /// The directory and a way to ask plain questions: for renewal information, which needs
    /// neither nonce nor account.
    pub async fn directory(&self) -> Result<(Directory, JobHttp), AcmeError> {
        let mut opened = self.opened_unless_failed_meanwhile().await?;
        let now = clock::now();
        self.load(&mut opened, now).await?;
        if opened.directory.is_none() {
            let attempt = self.begin(Kind::Session).await?;
            let result = self.fetch_directory(&mut opened, now).await;
            self.finish(attempt, &result).await;
            opened.last_error = result.as_ref().err().cloned();
            result?;
        }
        match (&opened.transport, &opened.directory) {
            (Some(transport), Some((directory, _))) => Ok((
                directory.clone(),
                job_http(transport, self.url(), directory),
            )),
            _ => Err(self.error(Class::Retryable, "the directory is missing")),
        }
    }

    /// A way to other servers of the CA, which trusts what that to the CA trusts. Sends nothing.
    pub(super) async fn http(&self) -> Result<JobHttp, AcmeError> {
        let mut opened = self.opened.lock().await;
        if opened.transport.is_none() {
            self.load(&mut opened, clock::now()).await?;
        }
        let transport = opened.transport.clone();
        let transport =
            transport.ok_or_else(|| self.error(Class::Retryable, "HTTPS is not prepared"))?;
        Ok(JobHttp::new(transport))
    }

    /// An order found the CA unreachable: the next session asks first, and waits its turn.
    async fn lost(&self, error: &AcmeError) {
        let mut opened = self.opened.lock().await;
        opened.answered = false;
        opened.last_error = Some(error.clone());
        if let Ok(attempt) = self.begin(Kind::Session).await {
            self.finish(attempt, &Err::<(), _>(error.clone())).await;
        }
    }

    /// Learns from the end of an order. One that could not reach the CA, or the last of several in
    /// a row that were told to wait, keeps the others from finding out for themselves.
    pub async fn learn(&self, error: Option<&AcmeError>) {
        let limited = match error {
            // What our own count holds up says nothing about the account.
            Some(error) if error.class == Class::RateLimited && error.held.is_none() => {
                self.rate_limited.fetch_add(1, Ordering::Relaxed) + 1
            }
            _ => {
                self.rate_limited.store(0, Ordering::Relaxed);
                0
            }
        };
        if let Some(error) = error
            && (error.unreachable || limited >= ACCOUNT_LIMIT_SIGNS)
        {
            self.lost(error).await;
        }
    }

    /// The CA does not know our account (any more): the next session tells it the same key again.
    pub async fn forget_account(&self) -> Result<(), AcmeError> {
        let mut opened = self.opened.lock().await;
        if let Some(mut account) = opened.account.take() {
            tracing::warn!(
                ca = self.url(),
                "the CA does not know our account; it is made anew"
            );
            account.id = None;
            self.keep_account(&account).await?;
            opened.account = Some(account);
        }
        Ok(())
    }

    /// Several orders may wait here while one of them finds out that the CA is down: the others
    /// need not find out again.
    async fn opened_unless_failed_meanwhile(
        &self,
    ) -> Result<tokio::sync::MutexGuard<'_, Opened>, AcmeError> {
        let before = self.ledger.attempts(Kind::Session, None).failures;
        let opened = self.opened.lock().await;
        let after = self.ledger.attempts(Kind::Session, None).failures;
        match &opened.last_error {
            Some(error) if after > before => Err(error.clone()),
            _ => Ok(opened),
        }
    }

    /// Reads trust anchors, the cached directory and the account from disk, as far as needed.
    async fn load(&self, opened: &mut Opened, now: OffsetDateTime) -> Result<(), AcmeError> {
        if opened.transport.is_none() {
            let roots = self.config.ca_certificate.clone();
            let transport = blocking(move || Transport::new(roots.as_deref())).await;
            opened.transport = Some(transport.map_err(|cause| self.error(Class::Operator, cause))?);
        }
        let fresh = |at: OffsetDateTime| at <= now && now - at < DIRECTORY_LIFETIME;
        if opened.directory.as_ref().is_some_and(|(_, at)| !fresh(*at)) {
            opened.directory = None;
        }
        if opened.directory.is_none() {
            let path = self.directory_path();
            let cached = blocking(move || read_directory(&path)).await;
            opened.directory = cached.filter(|(_, at)| fresh(*at));
        }
        if opened.account.is_none() {
            let (path, key_path) = (self.account_path(), self.key_path());
            let url = self.config.directory.clone();
            opened.account = blocking(move || find_account(&path, &key_path, &url))
                .await
                .map_err(|error| AcmeError::store(self.what(), &error))?;
        }
        Ok(())
    }

    async fn connect(&self, opened: &mut Opened, now: OffsetDateTime) -> Result<(), AcmeError> {
        let (directory, http) = self.way_in(opened, now).await?;
        self.settle_key(opened, &directory, &http).await?;
        let account = opened.account.take();
        let account = self.ready_account(account, &directory, &http).await?;
        self.check_account(&account, &http).await?;
        opened.account = Some(account);
        Ok(())
    }

    /// The account with its URL and contact: as it was, or told to the CA now.
    async fn ready_account(
        &self,
        account: Option<AccountFile>,
        directory: &Directory,
        http: &JobHttp,
    ) -> Result<AccountFile, AcmeError> {
        let account = match account {
            Some(account) if account.id.is_some() => account,
            unfinished => {
                self.check_accounts()?;
                let attempt = self.begin(Kind::Account).await?;
                let result = self.create_account(unfinished, directory, http).await;
                self.finish(attempt, &result).await;
                result?
            }
        };
        Ok(self.updated_contact(account, http).await)
    }

    /// One account too many for this address is not asked for.
    fn check_accounts(&self) -> Result<(), AcmeError> {
        let (now, limits) = (clock::now(), &self.config.limits);
        match self
            .history
            .judge(|past| limits::account(now, limits, past))
        {
            Some(broken) => Err(AcmeError {
                retry_after: Some(broken.until),
                ..self.error(Class::RateLimited, broken.to_string())
            }),
            None => Ok(()),
        }
    }

    /// With its key on disk before the CA hears of it.
    async fn create_account(
        &self,
        unfinished: Option<AccountFile>,
        directory: &Directory,
        http: &JobHttp,
    ) -> Result<AccountFile, AcmeError> {
        // A key from disk may be that of an account already.
        let may_exist = unfinished.is_some();
        let file = match unfinished {
            Some(file) => file,
            None => self.new_key().await?,
        };
        self.write_key(self.key_path(), &file).await?;
        self.keep_account(&file).await?;
        let found = match may_exist {
            true => self.find(&file, directory, http).await?,
            false => None,
        };
        let (id, how) = match found {
            Some(id) => (id, "found the account by its key"),
            None => {
                let history = Arc::clone(&self.history);
                blocking(move || history.account(clock::now()))
                    .await
                    .map_err(|error| AcmeError::store(self.what(), &error))?;
                let id = self.register(&file, directory, http).await?;
                (id, "made an account; the CA's terms of service apply")
            }
        };
        let file = AccountFile {
            id: Some(id),
            ..file
        };
        self.keep_account(&file).await?;
        let terms = directory.terms_of_service.as_deref();
        tracing::info!(ca = self.url(), id = file.id, terms, "{how}");
        Ok(file)
    }

    /// The directory and an open way to the CA, with a lock on what changes there.
    async fn ready_for_change(
        &self,
    ) -> Result<(tokio::sync::MutexGuard<'_, Opened>, Directory, JobHttp), AcmeError> {
        {
            let mut opened = self.opened_unless_failed_meanwhile().await?;
            self.load(&mut opened, clock::now()).await?;
            if opened.account.is_none() {
                return Err(self.error(Class::Operator, "there is no account at this CA yet"));
            }
        }
        let ready = self.session().await;
        let mut opened = self.opened.lock().await;
        if let Err(error) = ready {
            self.load(&mut opened, clock::now()).await?;
            let has_url = opened.account.as_ref().is_some_and(|it| it.id.is_some());
            // An account that the CA refuses can be put away.
            if !has_url || !error.is("unauthorized") {
                return Err(error);
            }
        }
        match (&opened.transport, &opened.directory) {
            (Some(transport), Some((directory, _))) => {
                let http = job_http(transport, self.url(), directory);
                let directory = directory.clone();
                Ok((opened, directory, http))
            }
            _ => Err(self.error(Class::Retryable, "the directory is missing")),
        }
    }

    /// Whether the CA has the contact of the configuration. Without one there it keeps what it has,
    /// from another client perhaps.
    fn knows_contact(&self, file: &AccountFile) -> bool {
        self.config.email.is_none() || file.email == self.config.email
    }

    /// Tells the CA a contact that has changed. It is for its mails to the operator: a refusal
    /// stops no order.
    async fn updated_contact(&self, mut file: AccountFile, http: &JobHttp) -> AccountFile {
        if self.knows_contact(&file) {
            return file;
        }
        match self.update_contact(&file, http).await {
            Ok(()) => tracing::info!(ca = self.url(), "told the CA another contact address"),
            Err(error) => {
                tracing::warn!(ca = self.url(), %error, "cannot tell the CA the contact address");
            }
        }
        // A refused address is not told again until it changes.
        file.email.clone_from(&self.config.email);
        if let Err(error) = self.keep_account(&file).await {
            tracing::warn!(ca = self.url(), %error, "cannot keep the contact address");
        }
        file
    }

    async fn update_contact(&self, file: &AccountFile, http: &JobHttp) -> Result<(), AcmeError> {
        let key = file.signing_key();
        let key = key.map_err(|cause| self.error(Class::Operator, cause))?;
        let id = file.id.as_deref().unwrap_or_default();
        let payload = serde_json::json!({"contact": self.contact()});
        let signer = Signer::Account(id);
        jws::post(http, &self.what(), &key, signer, id, Some(&payload)).await?;
        Ok(())
    }

    fn contact(&self) -> Vec<String> {
        self.config
            .email
            .iter()
            .map(|email| format!("mailto:{email}"))
            .collect()
    }

    async fn keep_account(&self, file: &AccountFile) -> Result<(), AcmeError> {
        let bytes = serde_json::to_vec_pretty(file)
            .map_err(|error| self.error(Class::Operator, error.to_string()))?;
        self.write(self.account_path(), bytes)
            .await
            .map_err(|error| AcmeError::store(self.what(), &error))
    }

    async fn write(&self, path: PathBuf, bytes: Vec<u8>) -> Result<(), StoreError> {
        let dir = self.dir.clone();
        blocking(move || {
            store::make_directory(&dir)?;
            atomic::write_file(&path, &bytes, SECRET_FILE)
        })
        .await
    }

    async fn begin(&self, kind: Kind) -> Result<AttemptId, AcmeError> {
        let (ledger, url) = (Arc::clone(&self.ledger), self.config.directory.clone());
        blocking(move || ledger.begin(kind, &url, None, clock::now()))
            .await
            .map_err(|error| AcmeError::store(self.what(), &error))
    }

    async fn finish<T>(&self, attempt: AttemptId, result: &Result<T, AcmeError>) {
        let ledger = Arc::clone(&self.ledger);
        let outcome = match result {
            Ok(_) => Outcome::Ok,
            Err(error) => Outcome::from(error),
        };
        let result = blocking(move || ledger.finish(attempt, outcome, &[], clock::now())).await;
        if let Err(error) = result {
            tracing::error!(ca = self.url(), %error, "cannot record how an attempt ended");
        }
    }

    fn account_path(&self) -> PathBuf {
        self.dir.join("account.json")
    }

    fn directory_path(&self) -> PathBuf {
        self.dir.join("directory.json")
    }

    fn what(&self) -> String {
        format!("session with {}", self.config.directory)
    }

    fn error(&self, class: Class, detail: impl Into<String>) -> AcmeError {
        AcmeError::new(class, self.what(), detail)
    }

    fn unreachable(&self, http: &JobHttp, detail: String) -> AcmeError {
        let note = http.last();
        AcmeError {
            unreachable: true,
            retry_after: note
                .retry_after
                .filter(|_| note.status.is_some_and(|it| it >= 400)),
            ..self.error(Class::Retryable, detail)
        }
    }
}

fn job_http(transport: &Transport, url: &str, directory: &Directory) -> JobHttp {
    JobHttp::new(transport.clone()).with_directory(url, directory.raw.clone(), &directory.new_nonce)
}

/// Runs what blocks on the disk or the CPU beside the runtime.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        // Such work is cancelled with the runtime alone, so what is left is a panic in it.
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// A cached directory, and nothing where it is missing or unreadable: then the CA is asked.
fn read_directory(path: &std::path::Path) -> Option<(Directory, OffsetDateTime)> {
    let cached: CachedDirectory = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    let raw = Bytes::from(cached.directory.to_string());
    Some((Directory::parse(raw).ok()?, cached.fetched_at))
}

/// `dns-persist.json`.
#[derive(Serialize, Deserialize)]
struct KeptTerms {
    /// The account that was told so.
    told: Option<String>,
    #[serde(flatten)]
    terms: Terms,
}

/// What a challenge has told this account; another one is told something else.
fn read_terms(path: &std::path::Path, account: Option<&str>) -> Option<Terms> {
    let kept: KeptTerms = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    (kept.told.as_deref() == account).then_some(kept.terms)
}

/// What the state directory knows about a CA.
#[derive(Default)]
pub struct OnRecord {
    /// The URL of our account there.
    pub account: Option<String>,
    /// The issuer names that the CA looks for in DNS.
    pub caa_identities: Vec<String>,
    /// What its challenges last said of the record of dns-persist-01.
    pub terms: Terms,
}

/// Reads it, and neither makes nor locks anything: for commands beside a running server.
pub fn on_record(state_dir: &std::path::Path, directory: &str) -> Result<OnRecord, StoreError> {
    let dir = state_dir.join("accounts").join(slug(directory));
    let account = read_account(&dir.join("account.json"))?;
    let directory = read_directory(&dir.join("directory.json"));
    let account = account.and_then(|account| account.id);
    let terms = read_terms(&dir.join(TERMS_FILE), account.as_deref());
    Ok(OnRecord {
        terms: terms.unwrap_or_default(),
        account,
        caa_identities: directory.map_or_else(Vec::new, |(it, _)| it.caa_identities),
    })
}

/// The account, by its file, else by the copy of its key.
fn find_account(
    path: &std::path::Path,
    key_path: &std::path::Path,
    url: &str,
) -> Result<Option<AccountFile>, StoreError> {
    let by_key = || keys::from_key_file(key_path, url);
    match read_account(path) {
        Ok(None) => Ok(by_key().inspect(|_| {
            tracing::warn!(path = %path.display(), "the account's file is lost; its key finds it");
        })),
        Err(error @ StoreError::Broken { .. }) => match by_key() {
            Some(account) => {
                tracing::warn!(%error, "the account is found by its key");
                Ok(Some(account))
            }
            None => Err(error),
        },
        other => other,
    }
}

/// The account. A file that is there and unreadable is an error: a new account would lose the old
/// one's authorizations and limits, silently.
fn read_account(path: &std::path::Path) -> Result<Option<AccountFile>, StoreError> {
    match fs::read(path) {
        Ok(bytes) => {
            let file: AccountFile = serde_json::from_slice(&bytes).map_err(|error| {
                StoreError::broken(
                    path,
                    format!("{error}; restore it, or remove it to make a new account"),
                )
            })?;
            Ok(Some(file))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StoreError::io("read", path, error)),
    }
}

/// The name of a CA's directory: readable, and different for every URL.
pub fn slug(url: &str) -> String {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let mut readable = String::new();
    for c in rest.chars().take(MAX_SLUG) {
        match c.to_ascii_lowercase() {
            c if c.is_ascii_alphanumeric() => readable.push(c),
            '.' if !readable.is_empty() && !readable.ends_with('.') => readable.push('.'),
            _ if !readable.is_empty() && !readable.ends_with('-') => readable.push('-'),
            _ => {}
        }
    }
    let readable = readable.trim_end_matches(['-', '.']);
    format!("{readable}-{}", short_hash(url, 8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slugs_are_readable_and_unique() {
        let production = slug("https://acme-v02.api.letsencrypt.org/directory");
        assert!(
            production.starts_with("acme-v02.api.letsencrypt.org-directory-"),
            "{production}"
        );
        let mut all: Vec<String> = [
            "https://ca.test/a",
            "https://ca.test/b",
            "http://ca.test/a",
            "https://ca.test:8443/a",
            "https://../..",
            "",
        ]
        .map(slug)
        .to_vec();
        for slug in &all {
            assert!(
                !slug.contains('/') && !slug.contains("..") && slug.len() < 100,
                "{slug}"
            );
        }
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 6);
    }

    #[test]
    fn a_directory_needs_its_urls() {
        let good = r#"{"newNonce": "n", "newAccount": "a", "newOrder": "o", "renewalInfo": "r",
            "meta": {"termsOfService": "t", "profiles": {}}}"#;
        let directory = Directory::parse(good.into()).unwrap();
        assert_eq!(directory.renewal_info.as_deref(), Some("r"));
        for bad in ["{}", "<html>", "[]", r#"{"newNonce": "n"}"#] {
            assert!(Directory::parse(bad.into()).is_err(), "{bad}");
        }
    }
}
