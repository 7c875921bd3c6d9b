//! One order, from the request to the certificate on disk (RFC 8555 section 7.4). What a crash
//! would lose, the key, the order's URL and the chain, is on disk before the step that makes it
//! worth something, so that an order is resumed and not made twice. It never decides whether to
//! order.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration as StdDuration, Instant};

use instant_acme::{
    Account, AuthorizationStatus, ChallengeStatus, ChallengeType as AcmeChallenge, Identifier,
    NewOrder, Order, OrderStatus,
};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PublicKeyData};
use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};

use super::account::{Session, blocking};
use super::challenges::{ChallengeGuard, Challenges};
use super::error::{AcmeError, Class};
use super::http::{JobHttp, of_problem, with_nonce};
use super::renewal_info::certificate_id;
use crate::certificate::name::Name;
use crate::clock;
use crate::config::{CertificateAuthority, ChallengeType, KeyType};
use crate::store::generation::{self, Generation, Meta, Source};
use crate::store::leaf::{Leaf, chain_pem};
use crate::store::{self, SECRET_FILE, StoreError, atomic, key_type_name, private_key};

/// Some CAs leave a failed authorization pending for ever: validation takes seconds.
const VALIDATION_DEADLINE: StdDuration = StdDuration::from_secs(120);
const FINALIZE_DEADLINE: StdDuration = StdDuration::from_secs(180);
/// Polls begin close together and grow apart, unless the CA says how far.
const FIRST_POLL: StdDuration = StdDuration::from_millis(250);
const LAST_POLL: StdDuration = StdDuration::from_secs(5);
/// A CA may ask us to poll less often, within the deadline.
const LONGEST_POLL: StdDuration = StdDuration::from_secs(30);
/// A pending order is resumed for so long; CAs drop theirs after a week at the latest.
const PENDING_LIFETIME: Duration = Duration::days(1);

const PENDING: &str = "pending";
const ORDER_FILE: &str = "order.json";

/// What to order, of whom, and where to put it.
pub struct Job {
    pub names: Vec<Name>,
    pub key_type: KeyType,
    pub config: CertificateAuthority,
    pub session: Session,
    /// `certificates/<name>/<key_type>`.
    pub dir: PathBuf,
    pub challenges: Challenges,
    /// The challenge type that failed last: others are preferred now.
    pub avoid: Option<ChallengeType>,
    /// The leaf that the new certificate succeeds, for a CA that wants to know (RFC 9773
    /// section 5).
    pub replaces: Option<Vec<u8>>,
}

/// A certificate that is on disk.
#[derive(Debug)]
pub struct Issued {
    pub leaf: Leaf,
    pub path: PathBuf,
    pub order_url: Option<String>,
}

/// `pending/order.json`: an order that the CA has and that has no certificate yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Pending {
    ca: String,
    order_url: String,
    names: Vec<String>,
    key_type: String,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
}

impl Pending {
    fn is_for(&self, names: &[Name], key_type: KeyType, now: OffsetDateTime) -> bool {
        let age = now - self.created_at;
        self.names == texts(names)
            && self.key_type == key_type_name(key_type)
            && age < PENDING_LIFETIME
            && age > -PENDING_LIFETIME
    }
}

/// The directory of the pending order of one certificate.
#[derive(Clone, Debug)]
struct PendingDir(PathBuf);

impl PendingDir {
    fn of(certificate_dir: &Path) -> PendingDir {
        PendingDir(certificate_dir.join(PENDING))
    }

    /// The order and its key; nothing where either is missing or unreadable: then there is
    /// nothing to resume.
    fn read(&self) -> Option<(Pending, KeyPair)> {
        let pending = serde_json::from_slice(&fs::read(self.0.join(ORDER_FILE)).ok()?).ok()?;
        let key = fs::read_to_string(self.0.join(generation::PRIVATE_KEY)).ok()?;
        Some((pending, KeyPair::from_pem(&key).ok()?))
    }

    fn write(&self, file: &str, bytes: &[u8]) -> Result<(), StoreError> {
        store::make_directory(&self.0)?;
        atomic::write_file(&self.0.join(file), bytes, SECRET_FILE)
    }

    fn discard(&self) {
        match fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(path = %self.0.display(), %error, "cannot remove a finished order");
            }
            _ => {}
        }
    }
}

/// Finishes an order whose certificate had been fetched when a crash came. Sends nothing; blocks
/// on the disk.
pub fn complete_pending(
    dir: &Path,
    names: &[Name],
    key_type: KeyType,
    now: OffsetDateTime,
) -> Option<Issued> {
    let pending_dir = PendingDir::of(dir);
    let chain = fs::read_to_string(pending_dir.0.join(generation::FULLCHAIN)).ok()?;
    let (pending, key) = pending_dir.read()?;
    if !pending.is_for(names, key_type, now) {
        return None;
    }
    match keep(dir, &pending, &key, &chain, names, key_type) {
        Ok(issued) => Some(issued),
        Err(error) => {
            tracing::warn!(%error, "cannot finish an interrupted order");
            if matches!(error, KeepError::Unusable(_)) {
                pending_dir.discard();
            }
            None
        }
    }
}

/// Orders a certificate, or resumes the order that is pending, and writes it as a generation.
pub async fn issue(job: Job) -> Result<Issued, AcmeError> {
    let (account, http) = job.session.account().await?;
    let run = Run {
        what: format!("order for {}", texts(&job.names).join(", ")),
        pending: PendingDir::of(&job.dir),
        job,
        account,
        http,
    };
    let result = run.to_the_end().await;
    if let Err(error) = &result
        && error.ends_the_order()
    {
        // The next attempt starts from scratch: this order has shown that it leads nowhere.
        let pending = run.pending.clone();
        blocking(move || pending.discard()).await;
    }
    result
}

struct Run {
    job: Job,
    what: String,
    pending: PendingDir,
    account: Account,
    http: JobHttp,
}

impl Run {
    async fn to_the_end(&self) -> Result<Issued, AcmeError> {
        let (mut order, pending, key) = match self.resume().await? {
            Some(resumed) => resumed,
            None => self.start().await?,
        };
        if order.state().status == OrderStatus::Pending {
            let guards = self.answer_challenges(&mut order).await?;
            self.wait_until_ready(&mut order, &guards).await?;
        }
        if order.state().status == OrderStatus::Ready {
            let csr = csr(&self.job.names, &key).map_err(|error| {
                self.error(Class::Operator, format!("cannot make the CSR: {error}"))
            })?;
            with_nonce!(order.finalize_csr(&csr)).map_err(|error| self.explain(error))?;
        }
        let chain = self.fetch_certificate(&mut order).await?;
        self.keep(pending, key, chain).await
    }

    /// The order that a crash or a shutdown interrupted, if the CA still has it.
    async fn resume(&self) -> Result<Option<(Order, Pending, Arc<KeyPair>)>, AcmeError> {
        let dir = self.pending.clone();
        let Some((pending, key)) = blocking(move || dir.read()).await else {
            return Ok(None);
        };
        let same = pending.ca == self.job.config.directory
            && pending.is_for(&self.job.names, self.job.key_type, clock::now());
        if !same {
            return Ok(None);
        }
        match with_nonce!(self.account.order(pending.order_url.clone())) {
            Ok(mut order) => {
                let alive = order.state().status != OrderStatus::Invalid;
                tracing::debug!(
                    order = pending.order_url,
                    alive,
                    "found an interrupted order"
                );
                Ok(alive.then(|| (order, pending, Arc::new(key))))
            }
            Err(error) => match self.explain(error) {
                error if error.unreachable || error.is("accountDoesNotExist") => Err(error),
                _ => Ok(None),
            },
        }
    }

    /// A new order. Its key is on disk before the CA hears of it, its URL right after.
    async fn start(&self) -> Result<(Order, Pending, Arc<KeyPair>), AcmeError> {
        let (dir, key_type) = (self.pending.clone(), self.job.key_type);
        let key = blocking(move || {
            dir.discard();
            let key = private_key::generate(key_type).map_err(|error| error.to_string())?;
            dir.write(generation::PRIVATE_KEY, key.serialize_pem().as_bytes())
                .map_err(|error| error.to_string())?;
            Ok(key)
        })
        .await
        .map_err(|cause: String| self.error(Class::Operator, cause))?;
        let order = self.new_order().await?;
        let pending = Pending {
            ca: self.job.config.directory.clone(),
            order_url: order.url().to_owned(),
            names: texts(&self.job.names),
            key_type: key_type_name(key_type).to_owned(),
            created_at: clock::now(),
        };
        let bytes = serde_json::to_vec_pretty(&pending)
            .map_err(|error| self.error(Class::Operator, error.to_string()))?;
        let dir = self.pending.clone();
        blocking(move || dir.write(ORDER_FILE, &bytes))
            .await
            .map_err(|error| AcmeError::store(&self.what, &error))?;
        Ok((order, pending, Arc::new(key)))
    }

    async fn new_order(&self) -> Result<Order, AcmeError> {
        let identifiers: Vec<Identifier> = self.job.names.iter().map(identifier).collect();
        let predecessor = self.job.replaces.as_deref().and_then(certificate_id);
        let new_order = || {
            let new_order = NewOrder::new(&identifiers);
            match &self.job.config.profile {
                Some(profile) => new_order.profile(profile),
                None => new_order,
            }
        };
        if let Some(predecessor) = predecessor
            && self.job.session.directory.renewal_info.is_some()
        {
            let order = new_order().replaces(predecessor);
            match with_nonce!(self.account.new_order(&order)) {
                Ok(order) => return Ok(order),
                Err(error) => {
                    let status = self.http.last().status;
                    let error = self.explain(error);
                    if !refuses_predecessor(&error, status) {
                        return Err(error);
                    }
                    tracing::debug!(%error, "ordering again without `replaces`");
                }
            }
        }
        with_nonce!(self.account.new_order(&new_order())).map_err(|error| self.explain(error))
    }

    /// Provides an answer for every name that the CA has not validated yet, and tells it so.
    async fn answer_challenges(&self, order: &mut Order) -> Result<Vec<Answered>, AcmeError> {
        let mut answered = Vec::new();
        let mut authorizations = order.authorizations();
        while let Some(next) =
            with_nonce!(transposed(authorizations.next())).map_err(|error| self.explain(error))?
        {
            let mut authorization = next;
            let identifier = authorization.identifier().to_string();
            match authorization.status {
                AuthorizationStatus::Pending => {}
                AuthorizationStatus::Valid => continue,
                status => {
                    let detail = format!("its authorization is {status:?}");
                    return Err(self.about(&identifier, self.error(Class::Retryable, detail)));
                }
            }
            let offered = authorization
                .challenges
                .iter()
                .map(|challenge| &challenge.r#type);
            let kind = choose(&self.job.config.challenges, self.job.avoid, offered)
                .map_err(|detail| self.about(&identifier, self.error(Class::Operator, detail)))?;
            let Some(mut challenge) = authorization.challenge(acme_type(kind)) else {
                continue;
            };
            let key_authorization = challenge.key_authorization();
            let guard = self
                .provide(kind, &identifier, &challenge.token, &key_authorization)
                .map_err(|cause| self.about(&identifier, self.error(Class::Operator, cause)))?;
            answered.push(Answered {
                identifier: identifier.clone(),
                kind,
                _guard: guard,
            });
            if challenge.status == ChallengeStatus::Pending {
                with_nonce!(challenge.set_ready()).map_err(|error| AcmeError {
                    challenge: Some(kind),
                    ..self.about(&identifier, self.explain(error))
                })?;
            }
        }
        Ok(answered)
    }

    fn provide(
        &self,
        kind: ChallengeType,
        identifier: &str,
        token: &str,
        key_authorization: &instant_acme::KeyAuthorization,
    ) -> Result<ChallengeGuard, String> {
        match kind {
            ChallengeType::Http01 => Ok(self
                .job
                .challenges
                .provide_http01(token, key_authorization.as_str())),
            ChallengeType::TlsAlpn01 => {
                let name: Name = identifier
                    .parse()
                    .map_err(|error| format!("{identifier} {error}"))?;
                self.job
                    .challenges
                    .provide_tls_alpn01(&name, key_authorization.digest().as_ref(), clock::now())
                    .map_err(|error| error.to_string())
            }
        }
    }

    /// Waits for the CA's verdict. The answers stay up as long as `answered` lives.
    async fn wait_until_ready(
        &self,
        order: &mut Order,
        answered: &[Answered],
    ) -> Result<(), AcmeError> {
        let mut poll = Poll::new(VALIDATION_DEADLINE);
        loop {
            if !poll.wait(self.http.last().retry_after).await {
                let detail = format!("the CA did not validate within {VALIDATION_DEADLINE:?}");
                return Err(AcmeError {
                    challenge: answered.first().map(|it| it.kind),
                    ..self.error(Class::Retryable, detail)
                });
            }
            with_nonce!(async { order.refresh().await.map(|_| ()) })
                .map_err(|error| self.explain(error))?;
            match order.state().status {
                OrderStatus::Pending => {}
                OrderStatus::Invalid => {
                    let verdict = self.verdict(order, answered).await?;
                    return Err(verdict.unwrap_or_else(|| self.invalid(order)));
                }
                OrderStatus::Ready | OrderStatus::Processing | OrderStatus::Valid => return Ok(()),
            }
            // Some CAs leave the order pending when a challenge has failed.
            if poll.count > 3
                && let Some(error) = self.verdict(order, answered).await?
            {
                return Err(error);
            }
        }
    }

    /// The error of the first challenge that failed, if one did.
    async fn verdict(
        &self,
        order: &mut Order,
        answered: &[Answered],
    ) -> Result<Option<AcmeError>, AcmeError> {
        let mut authorizations = order.authorizations();
        while let Some(next) =
            with_nonce!(transposed(authorizations.next())).map_err(|error| self.explain(error))?
        {
            let mut authorization = next;
            with_nonce!(async { authorization.refresh().await.map(|_| ()) })
                .map_err(|error| self.explain(error))?;
            let identifier = authorization.identifier().to_string();
            let kind = answered
                .iter()
                .find(|it| it.identifier == identifier)
                .map(|it| it.kind);
            let failed = authorization
                .challenges
                .iter()
                .find(|challenge| challenge.status == ChallengeStatus::Invalid);
            let error = match failed.map(|challenge| &challenge.error) {
                Some(Some(problem)) => of_problem(&self.what, problem, None),
                None if authorization.status != AuthorizationStatus::Invalid => continue,
                _ => self.error(
                    Class::Retryable,
                    "validation failed, and the CA does not say why",
                ),
            };
            return Ok(Some(AcmeError {
                challenge: kind,
                ..self.about(&identifier, error)
            }));
        }
        Ok(None)
    }

    async fn fetch_certificate(&self, order: &mut Order) -> Result<String, AcmeError> {
        let mut poll = Poll::new(FINALIZE_DEADLINE);
        loop {
            match order.state().status {
                OrderStatus::Valid => {
                    let chain = with_nonce!(order.certificate());
                    let chain = chain.map_err(|error| self.explain(error))?;
                    return chain.ok_or_else(|| {
                        self.error(
                            Class::Retryable,
                            "the order is valid and has no certificate",
                        )
                    });
                }
                OrderStatus::Invalid => return Err(self.invalid(order)),
                _ => {}
            }
            if !poll.wait(self.http.last().retry_after).await {
                let detail = format!("the CA did not issue within {FINALIZE_DEADLINE:?}");
                // The certificate may well be there at the next attempt.
                return Err(AcmeError {
                    resumable: true,
                    ..self.error(Class::Retryable, detail)
                });
            }
            with_nonce!(async { order.refresh().await.map(|_| ()) })
                .map_err(|error| self.explain(error))?;
        }
    }

    async fn keep(
        &self,
        pending: Pending,
        key: Arc<KeyPair>,
        chain: String,
    ) -> Result<Issued, AcmeError> {
        let (dir, pending_dir) = (self.job.dir.clone(), self.pending.clone());
        let (names, key_type) = (self.job.names.clone(), self.job.key_type);
        blocking(move || {
            // With the chain on disk a crash from here on costs no further request.
            pending_dir.write(generation::FULLCHAIN, chain.as_bytes())?;
            keep(&dir, &pending, &key, &chain, &names, key_type)
        })
        .await
        .map_err(|error| match error {
            KeepError::Unusable(cause) => self.error(Class::Retryable, cause),
            KeepError::Store(error) => AcmeError::store(&self.what, &error),
        })
    }

    fn invalid(&self, order: &mut Order) -> AcmeError {
        match &order.state().error {
            Some(problem) => of_problem(&self.what, problem, None),
            None => self.error(
                Class::Retryable,
                "the order is invalid, and the CA does not say why",
            ),
        }
    }

    fn about(&self, identifier: &str, mut error: AcmeError) -> AcmeError {
        error
            .identifier
            .get_or_insert_with(|| identifier.to_owned());
        error
    }

    fn explain(&self, error: instant_acme::Error) -> AcmeError {
        self.http.explain(&self.what, error)
    }

    fn error(&self, class: Class, detail: impl Into<String>) -> AcmeError {
        AcmeError::new(class, &self.what, detail)
    }
}

/// A name whose challenge is being answered.
struct Answered {
    identifier: String,
    kind: ChallengeType,
    _guard: ChallengeGuard,
}

/// Waits between polls, up to a deadline of our own.
struct Poll {
    deadline: Instant,
    delay: StdDuration,
    count: u32,
}

impl Poll {
    fn new(limit: StdDuration) -> Poll {
        Poll {
            deadline: Instant::now() + limit,
            delay: FIRST_POLL,
            count: 0,
        }
    }

    /// Waits; false where the deadline has passed.
    async fn wait(&mut self, asked: Option<OffsetDateTime>) -> bool {
        let now = Instant::now();
        if now >= self.deadline {
            return false;
        }
        let asked = asked.and_then(|at| StdDuration::try_from(at - clock::now()).ok());
        let delay = asked.map_or(self.delay, |asked| asked.clamp(FIRST_POLL, LONGEST_POLL));
        self.delay = (self.delay * 3 / 2).min(LAST_POLL);
        self.count += 1;
        tokio::time::sleep(delay.min(self.deadline - now)).await;
        true
    }
}

/// `Option<Result>` as `Result<Option>`, so that a nonce can be tried again.
async fn transposed<T, E>(
    next: impl Future<Output = Option<Result<T, E>>>,
) -> Result<Option<T>, E> {
    next.await.transpose()
}

/// The challenge to answer: the first configured one that is offered, other than the one that
/// failed last if there is another. The error says what would help.
fn choose<'a>(
    configured: &[ChallengeType],
    avoid: Option<ChallengeType>,
    offered: impl Iterator<Item = &'a AcmeChallenge> + Clone,
) -> Result<ChallengeType, String> {
    let is_offered = |kind: &ChallengeType| offered.clone().any(|it| *it == acme_type(*kind));
    let mut usable = configured.iter().copied().filter(is_offered);
    let first = usable.next();
    match (first, usable.next()) {
        (Some(first), Some(second)) if avoid == Some(first) => Ok(second),
        (Some(first), _) => Ok(first),
        (None, _) => {
            let offered: Vec<String> = offered.map(|it| format!("{it:?}")).collect();
            Err(format!(
                "the CA offers none of the configured challenges, but {}; add one of them to `challenges`",
                offered.join(", ")
            ))
        }
    }
}

/// Whether the CA takes offence at `replaces`, and not at the order.
fn refuses_predecessor(error: &AcmeError, status: Option<u16>) -> bool {
    let refused = ["alreadyReplaced", "malformed", "unauthorized", "notFound"];
    let mismatch = error.problem.is_none() && error.detail.contains("replaces field mismatch");
    refused.iter().any(|problem| error.is(problem)) || matches!(status, Some(404 | 409)) || mismatch
}

/// The signing request: the names alone, as CAs take the subject from nowhere else.
fn csr(names: &[Name], key: &KeyPair) -> Result<Vec<u8>, rcgen::Error> {
    let mut params = CertificateParams::new(texts(names))?;
    params.distinguished_name = DistinguishedName::new();
    Ok(params.serialize_request(key)?.der().to_vec())
}

fn identifier(name: &Name) -> Identifier {
    match name {
        Name::Ip(ip) => Identifier::Ip(*ip),
        dns => Identifier::Dns(dns.to_string()),
    }
}

fn acme_type(kind: ChallengeType) -> AcmeChallenge {
    match kind {
        ChallengeType::TlsAlpn01 => AcmeChallenge::TlsAlpn01,
        ChallengeType::Http01 => AcmeChallenge::Http01,
    }
}

/// A challenge type as configuration and ledger spell it.
pub fn challenge_name(kind: ChallengeType) -> &'static str {
    match kind {
        ChallengeType::TlsAlpn01 => "tls-alpn-01",
        ChallengeType::Http01 => "http-01",
    }
}

/// The reverse of [`challenge_name`].
pub fn challenge_from_name(text: &str) -> Option<ChallengeType> {
    [ChallengeType::TlsAlpn01, ChallengeType::Http01]
        .into_iter()
        .find(|kind| challenge_name(*kind) == text)
}

fn texts(names: &[Name]) -> Vec<String> {
    names.iter().map(Name::to_string).collect()
}

/// Why a certificate that the CA sent is not on disk as the current one.
#[derive(Debug, thiserror::Error)]
enum KeepError {
    #[error("{0}")]
    Unusable(String),
    /// The pending order is kept: the certificate is good.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Checks what the CA sent and makes it the current generation; the pending order is over then.
fn keep(
    dir: &Path,
    pending: &Pending,
    key: &KeyPair,
    chain: &str,
    names: &[Name],
    key_type: KeyType,
) -> Result<Issued, KeepError> {
    let now = clock::now();
    let (leaf, chain) = verified(chain, key, names, now).map_err(KeepError::Unusable)?;
    let meta = Meta {
        ca: Some(pending.ca.clone()),
        order_url: Some(pending.order_url.clone()),
        ..Meta::new(Source::Acme, names, key_type, now)
    };
    let generation = Generation {
        fullchain_pem: &chain_pem(&chain),
        private_key_pem: &key.serialize_pem(),
        meta: &meta,
    };
    let path = generation::write(dir, &generation)?;
    PendingDir::of(dir).discard();
    Ok(Issued {
        leaf,
        path,
        order_url: Some(pending.order_url.clone()),
    })
}

/// The chain, if it is one that can be served: our key, our names, and alive.
fn verified(
    chain: &str,
    key: &KeyPair,
    names: &[Name],
    now: OffsetDateTime,
) -> Result<(Leaf, Vec<Vec<u8>>), String> {
    let (leaf, chain) = Leaf::from_chain_pem(chain.as_bytes())
        .map_err(|cause| format!("the CA's certificate is unusable: {cause}"))?;
    if leaf.public_key != key.subject_public_key_info() {
        return Err("the CA's certificate is for another key than the one asked for".to_owned());
    }
    if !leaf.covers(names) {
        return Err(format!(
            "the CA's certificate is for {}, not for all of {}",
            texts(&leaf.names).join(", "),
            texts(names).join(", ")
        ));
    }
    if leaf.not_after <= now {
        return Err(format!(
            "the CA's certificate expired at {}: check this host's clock",
            clock::rfc3339(leaf.not_after)
        ));
    }
    Ok((leaf, chain))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(texts: &[&str]) -> Vec<Name> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn the_challenge_in_configured_order_and_another_after_a_failure() {
        use ChallengeType::{Http01, TlsAlpn01};
        let all = [
            AcmeChallenge::Dns01,
            AcmeChallenge::Http01,
            AcmeChallenge::TlsAlpn01,
        ];
        let http_only = [AcmeChallenge::Http01];
        for (configured, avoid, offered, expected) in [
            (&[TlsAlpn01, Http01][..], None, &all[..], Some(TlsAlpn01)),
            (&[Http01, TlsAlpn01], None, &all, Some(Http01)),
            (&[TlsAlpn01, Http01], Some(TlsAlpn01), &all, Some(Http01)),
            (&[TlsAlpn01, Http01], Some(Http01), &all, Some(TlsAlpn01)),
            (&[TlsAlpn01], Some(TlsAlpn01), &all, Some(TlsAlpn01)),
            (&[TlsAlpn01, Http01], Some(Http01), &http_only, Some(Http01)),
            (&[TlsAlpn01, Http01], None, &all[..1], None),
        ] {
            assert_eq!(choose(configured, avoid, offered.iter()).ok(), expected);
        }
        let message = choose(&[TlsAlpn01], None, all[..1].iter()).unwrap_err();
        assert!(message.contains("Dns01"), "{message}");
    }

    #[test]
    fn an_offence_at_replaces() {
        let mut error = AcmeError::new(Class::Retryable, "order", "x");
        assert!(!refuses_predecessor(&error, Some(400)));
        assert!(refuses_predecessor(&error, Some(409)));
        error.problem = Some("alreadyReplaced".to_owned());
        assert!(refuses_predecessor(&error, Some(400)));
        error.problem = Some("rateLimited".to_owned());
        assert!(!refuses_predecessor(&error, Some(429)));
        error.problem = None;
        error.detail = "replaces field mismatch: expected ..".to_owned();
        assert!(refuses_predecessor(&error, Some(201)));
    }

    struct Made {
        key: KeyPair,
        chain: String,
    }

    fn made(texts: &[&str], not_after: OffsetDateTime) -> Made {
        let key = KeyPair::generate().unwrap();
        let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
        let mut params = CertificateParams::new(texts).unwrap();
        params.not_before = not_after - Duration::DAY;
        params.not_after = not_after;
        let chain = params.self_signed(&key).unwrap().pem();
        Made { key, chain }
    }

    #[test]
    fn what_the_ca_sends_is_checked() {
        let now = clock::now();
        let good = made(&["a.test", "b.test"], now + Duration::HOUR);
        let wanted = names(&["a.test", "b.test"]);
        assert!(verified(&good.chain, &good.key, &wanted, now).is_ok());
        let other = KeyPair::generate().unwrap();
        let fails = |chain: &str, key: &KeyPair, wanted: &[Name]| {
            verified(chain, key, wanted, now).unwrap_err()
        };
        assert!(fails(&good.chain, &other, &wanted).contains("another key"));
        assert!(fails(&good.chain, &good.key, &names(&["c.test"])).contains("c.test"));
        assert!(fails("", &good.key, &wanted).contains("unusable"));
        let old = made(&["a.test"], now - Duration::HOUR);
        assert!(fails(&old.chain, &old.key, &names(&["a.test"])).contains("clock"));
    }

    fn put_pending(dir: &Path, made: &Made, created_at: OffsetDateTime) -> PendingDir {
        let pending = Pending {
            ca: "https://ca.test/dir".to_owned(),
            order_url: "https://ca.test/order/1".to_owned(),
            names: vec!["a.test".to_owned()],
            key_type: "p256".to_owned(),
            created_at,
        };
        let pending_dir = PendingDir::of(dir);
        pending_dir
            .write(ORDER_FILE, &serde_json::to_vec(&pending).unwrap())
            .unwrap();
        let key = made.key.serialize_pem();
        pending_dir
            .write(generation::PRIVATE_KEY, key.as_bytes())
            .unwrap();
        pending_dir
            .write(generation::FULLCHAIN, made.chain.as_bytes())
            .unwrap();
        pending_dir
    }

    #[test]
    fn a_fetched_certificate_survives_a_crash_without_a_request() {
        let directory = tempfile::tempdir().unwrap();
        let dir = directory.path();
        let now = clock::now();
        let wanted = names(&["a.test"]);
        assert!(complete_pending(dir, &wanted, KeyType::P256, now).is_none());
        let made = made(&["a.test"], now + Duration::DAY);
        let pending = put_pending(dir, &made, now);
        // Not for other names, and not after a day.
        assert!(complete_pending(dir, &names(&["b.test"]), KeyType::P256, now).is_none());
        assert!(complete_pending(dir, &wanted, KeyType::P384, now).is_none());
        assert!(complete_pending(dir, &wanted, KeyType::P256, now + Duration::days(2)).is_none());
        let issued = complete_pending(dir, &wanted, KeyType::P256, now).unwrap();
        let stored = generation::read_current(dir).unwrap().unwrap();
        assert_eq!(stored.leaf.serial, issued.leaf.serial);
        assert_eq!(stored.meta.ca.as_deref(), Some("https://ca.test/dir"));
        assert_eq!(
            stored.meta.order_url.as_deref(),
            Some("https://ca.test/order/1")
        );
        assert!(!pending.0.exists());
    }

    #[test]
    fn an_interrupted_order_with_a_useless_chain_is_dropped() {
        let directory = tempfile::tempdir().unwrap();
        let now = clock::now();
        let mut made = made(&["a.test"], now + Duration::DAY);
        made.key = KeyPair::generate().unwrap();
        let pending = put_pending(directory.path(), &made, now);
        let wanted = names(&["a.test"]);
        assert!(complete_pending(directory.path(), &wanted, KeyType::P256, now).is_none());
        assert!(!pending.0.exists());
    }
}
