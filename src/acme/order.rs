//! One order, from the request to the certificate on disk (RFC 8555 section 7.4). What a crash
//! would lose, the key, the order's URL and the chain, is on disk before the step that makes it
//! worth something, so that an order is resumed and not made twice. It never decides whether to
//! order.

mod chains;
mod choice;
mod delivery;
mod notes;
mod pending;
mod poll;
#[cfg(test)]
mod tests;
mod validation;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration as StdDuration;

use instant_acme::{Account, Identifier, NewOrder, Order, OrderStatus};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PublicKeyData};
use time::{Duration, OffsetDateTime};

use super::account::{Session, blocking};
use super::challenges::Challenges;
use super::dns::DnsChallenges;
use super::error::{AcmeError, Class, Held};
use super::history::{History, Reservation};
use super::http::{JobHttp, of_problem, with_nonce};
use super::renewal_info::certificate_id;
use crate::certificate::name::Name;
use crate::clock;
use crate::config::{CertificateAuthority, ChallengeType, KeyType};
use crate::store::crash;
use crate::store::generation;
use crate::store::leaf::Leaf;
use crate::store::{key_type_name, private_key};
pub use choice::{challenge_from_name, challenge_name, learned};
use delivery::{KeepError, keep};
pub use pending::{
    FETCHED_LIFETIME, Histories, PENDING_LIFETIME, Unfinished, complete_pending, discard_key,
    make_known, unfinished,
};
use pending::{Fetched, ORDER_FILE, Pending, PendingDir};
use poll::Poll;
use validation::Answered;

const FINALIZE_DEADLINE: StdDuration = StdDuration::from_secs(180);

/// What to order, of whom, and where to put it.
pub struct Job {
    pub names: Vec<Name>,
    pub key_type: KeyType,
    pub config: CertificateAuthority,
    pub session: Session,
    /// One that the CA has; its own choice if `None`.
    pub profile: Option<String>,
    /// Of the CA: each order is in it before it is sent.
    pub history: Arc<History>,
    /// The place that is kept for it there; without one it is noted anew.
    pub reservation: Mutex<Option<Reservation>>,
    /// Whether the key of the current generation is kept, if it is of the right kind.
    pub reuse_key: bool,
    /// `certificates/<name>/<key_type>`.
    pub dir: PathBuf,
    pub challenges: Challenges,
    /// For DNS-01.
    pub dns: Option<Arc<DnsChallenges>>,
    /// Best first.
    pub preferred: Vec<ChallengeType>,
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
    /// The challenges that were answered for it; none where the CA still knew the names.
    pub answered: Vec<ChallengeType>,
}

/// Orders a certificate, or resumes the order that is pending, and writes it as a generation.
pub async fn issue(job: Job) -> Result<Issued, AcmeError> {
    let (account, http) = job.session.account().await?;
    let thumbprint = job.session.thumbprint()?;
    let run = Run {
        what: format!("order for {}", texts(&job.names).join(", ")),
        pending: PendingDir::of(&job.dir),
        job,
        account,
        thumbprint,
        http,
        number: OnceLock::new(),
    };
    let result = run.to_the_end().await;
    if let Err(error) = &result
        && error.ends_the_order()
    {
        // The next attempt starts from scratch: this order has shown that it leads nowhere.
        let pending = run.pending.clone();
        blocking(move || pending.discard()).await;
        let name = error.identifier.clone();
        let number = run.number.get().copied();
        match name.filter(|_| error.challenge.is_some()) {
            Some(name) => run.note_failure(number, Some(name)).await,
            None => run.note_dropped(number).await,
        }
    }
    result
}

struct Run {
    job: Job,
    what: String,
    pending: PendingDir,
    account: Account,
    /// Of the account's key.
    thumbprint: String,
    http: JobHttp,
    /// The order's number in the history; none in one of an older version.
    number: OnceLock<u64>,
}

impl Run {
    async fn to_the_end(&self) -> Result<Issued, AcmeError> {
        self.drop_kept_key().await;
        if let Some(issued) = self.use_fetched().await? {
            return Ok(issued);
        }
        let (mut order, pending, key) = match self.resume().await? {
            Some(resumed) => resumed,
            None => self.start().await?,
        };
        let mut kinds = Vec::new();
        if order.state().status == OrderStatus::Pending {
            let answered = self.answer_challenges(&mut order).await?;
            crash::point("challenges-told");
            self.wait_until_ready(&mut order, &answered).await?;
            crash::point("order-ready");
            kinds.extend(answered.iter().map(Answered::kind));
        }
        if order.state().status == OrderStatus::Ready {
            let csr = csr(&self.job.names, &key).map_err(|error| {
                self.error(Class::Operator, format!("cannot make the CSR: {error}"))
            })?;
            self.finalize(&mut order, &csr).await?;
            crash::point("order-finalized");
        }
        let chain = self.fetch_certificate(&mut order).await?;
        let issued = self.keep(pending, key, chain).await?;
        Ok(Issued {
            answered: kinds,
            ..issued
        })
    }

    /// Has the CA issue, which it may do from here on whatever becomes of its answer.
    async fn finalize(&self, order: &mut Order, csr: &[u8]) -> Result<(), AcmeError> {
        self.note_finalization().await?;
        let result = with_nonce!(order.finalize_csr(csr));
        let error = match result {
            Ok(()) => return Ok(()),
            Err(error) => self.explain(error),
        };
        // One that is not ready may be processed already.
        if error.problem.is_some() && error.ends_the_order() && !error.is("orderNotReady") {
            // The CA says that it will not.
            self.note_failure(self.number.get().copied(), None).await;
        }
        Err(error)
    }

    /// A key that is not kept is not kept by an interrupted order either: it may have ended since.
    async fn drop_kept_key(&self) {
        if self.job.reuse_key {
            return;
        }
        let (dir, pending) = (self.job.dir.clone(), self.pending.clone());
        if let Some(dropped) = blocking(move || pending.discard_key(&dir, |_| true)).await {
            self.note_dropped(self.number_of(&dropped)).await;
        }
    }

    /// The number of an order on disk, if it has one in this history.
    fn number_of(&self, pending: &Pending) -> Option<u64> {
        let ca = &self.job.config.directory;
        self.job.history.judge(|past| pending.number_in(ca, past))
    }

    /// The certificate that was fetched before, if it can be used now: nothing is sent for it, and
    /// no other is ordered while only this host's clock speaks against it, which the CA is asked.
    async fn use_fetched(&self) -> Result<Option<Issued>, AcmeError> {
        let (dir, pending) = (self.job.dir.clone(), self.pending.clone());
        let (names, key_type) = (self.job.names.clone(), self.job.key_type);
        let ca = self.job.config.directory.clone();
        let used = blocking(move || {
            let fetched = Fetched::read(&pending, &names, key_type);
            let fetched = fetched.filter(|it| it.pending.ca == ca)?;
            let kept = fetched.keep(&dir, &names, key_type, clock::now());
            Some((fetched.pending, kept))
        });
        let Some((pending, kept)) = used.await else {
            return Ok(None);
        };
        if let Err(KeepError::Expired(_)) = &kept {
            let asked = self.http.ask_the_time().await;
            asked.map_err(|error| self.explain(instant_acme::Error::Other(Box::new(error))))?;
        }
        match kept.map_err(|error| self.not_kept(error)) {
            Ok(issued) => Ok(Some(issued)),
            Err(error) if error.ends_the_order() => {
                tracing::debug!(%error, "dropping an interrupted order");
                let dir = self.pending.clone();
                blocking(move || dir.discard()).await;
                self.note_dropped(self.number_of(&pending)).await;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// The order that a crash or a shutdown interrupted, if the CA still has it.
    async fn resume(&self) -> Result<Option<(Order, Pending, Arc<KeyPair>)>, AcmeError> {
        let dir = self.pending.clone();
        let Some((pending, key)) = blocking(move || dir.read()).await else {
            return Ok(None);
        };
        let number = self.number_of(&pending);
        let same = pending.ca == self.job.config.directory
            && pending.is_for(&self.job.names, self.job.key_type, clock::now());
        if !same {
            self.note_dropped(number).await;
            return Ok(None);
        }
        let found = match with_nonce!(self.account.order(pending.order_url.clone())) {
            Ok(mut order) => {
                let alive = order.state().status != OrderStatus::Invalid;
                if !alive {
                    self.note_failure(number, None).await;
                }
                alive.then_some(order)
            }
            Err(error) => match self.explain(error) {
                // Some CAs say of what they do not have no more than 404.
                error if error.gone => None,
                error if error.unreachable || error.is("accountDoesNotExist") => {
                    return Err(error);
                }
                _ => None,
            },
        };
        let (url, alive) = (&pending.order_url, found.is_some());
        tracing::debug!(order = url, alive, "found an interrupted order");
        match found {
            Some(order) => {
                self.note_place(number, url, None).await?;
                Ok(Some((order, pending, Arc::new(key))))
            }
            None => {
                self.note_dropped(number).await;
                Ok(None)
            }
        }
    }

    /// A new order. Its key is on disk before the CA hears of it, its URL right after.
    async fn start(&self) -> Result<(Order, Pending, Arc<KeyPair>), AcmeError> {
        let (dir, key_type) = (self.pending.clone(), self.job.key_type);
        let keeps = self.job.reuse_key.then(|| self.job.dir.clone());
        let key = blocking(move || {
            dir.discard();
            let kept = keeps.and_then(|dir| current_key(&dir, key_type));
            let key = match kept {
                Some(key) => key,
                None => private_key::generate(key_type).map_err(|error| error.to_string())?,
            };
            dir.write(generation::PRIVATE_KEY, key.serialize_pem().as_bytes())
                .map_err(|error| error.to_string())?;
            Ok(key)
        })
        .await
        .map_err(|cause: String| self.error(Class::Operator, cause))?;
        crash::point("order-key");
        let (order, number) = self.new_order().await?;
        crash::point("order-placed");
        let pending = Pending {
            ca: self.job.config.directory.clone(),
            order_url: order.url().to_owned(),
            names: texts(&self.job.names),
            key_type: key_type_name(key_type).to_owned(),
            created_at: clock::now(),
            number: Some(number),
        };
        let bytes = serde_json::to_vec_pretty(&pending)
            .map_err(|error| self.error(Class::Operator, error.to_string()))?;
        let dir = self.pending.clone();
        blocking(move || dir.write(ORDER_FILE, &bytes))
            .await
            .map_err(|error| AcmeError::store(&self.what, &error))?;
        crash::point("order-url");
        self.note_place(Some(number), order.url(), Some(pending.created_at))
            .await?;
        Ok((order, pending, Arc::new(key)))
    }

    /// The order, and its number in the history.
    async fn new_order(&self) -> Result<(Order, u64), AcmeError> {
        let identifiers: Vec<Identifier> = self.job.names.iter().map(identifier).collect();
        let predecessor = self.job.replaces.as_deref().and_then(certificate_id);
        let new_order = || {
            let new_order = NewOrder::new(&identifiers);
            match &self.job.profile {
                Some(profile) => new_order.profile(profile),
                None => new_order,
            }
        };
        if let Some(predecessor) = predecessor
            && self.job.session.directory.renewal_info.is_some()
        {
            let order = new_order().replaces(predecessor);
            match self.place(&order, true).await {
                Err((refusal, status)) if refuses_predecessor(&refusal, status) => {
                    tracing::debug!(error = %refusal, "ordering again without `replaces`");
                    let placed = self.place(&new_order(), false).await;
                    return placed.map_err(|(error, _)| without_predecessor(error, refusal));
                }
                placed => return placed.map_err(|(error, _)| error),
            }
        }
        let placed = self.place(&new_order(), false).await;
        placed.map_err(|(error, _)| error)
    }

    /// For an order without a place: it was to go on with another one, or to be a renewal that
    /// counts against nothing.
    fn reserve(&self) -> Result<Reservation, AcmeError> {
        let (history, limits) = (&self.job.history, &self.job.config.limits);
        let reserved = history.reserve(limits, &self.job.names, clock::now());
        reserved.map_err(|broken| AcmeError {
            retry_after: Some(broken.until),
            held: Some(Held::Anew),
            ..self.error(Class::RateLimited, broken.to_string())
        })
    }

    /// One newOrder, in the history before it leaves. `exempt`: the CA is told which certificate it
    /// renews. An error comes with the HTTP status.
    async fn place(
        &self,
        new_order: &NewOrder<'_>,
        exempt: bool,
    ) -> Result<(Order, u64), (AcmeError, Option<u16>)> {
        let (history, names) = (Arc::clone(&self.job.history), self.job.names.clone());
        let reservation = match self.reservation().filter(|_| !exempt) {
            None if !exempt => Some(self.reserve().map_err(|error| (error, None))?),
            reservation => reservation,
        };
        let note = move || match reservation {
            Some(reservation) => reservation.commit(),
            None => history.order(&names, exempt, clock::now()),
        };
        let noted = blocking(note).await;
        let number = noted.map_err(|error| (AcmeError::store(&self.what, &error), None))?;
        match with_nonce!(self.account.new_order(new_order)) {
            Ok(order) => Ok((order, number)),
            Err(error) => {
                let status = self.http.last().status;
                let now = clock::now();
                self.note_end(Some(number), move |it, number| it.refused(number, now))
                    .await;
                Err((self.explain(error), status))
            }
        }
    }

    /// Taken by the first order that is sent: where that counts nothing, the place is given up.
    fn reservation(&self) -> Option<Reservation> {
        let reservation = self.job.reservation.lock();
        // It is replaced whole, so a panic cannot have left half of it.
        reservation.unwrap_or_else(PoisonError::into_inner).take()
    }

    async fn fetch_certificate(&self, order: &mut Order) -> Result<String, AcmeError> {
        let mut poll = Poll::new(FINALIZE_DEADLINE);
        loop {
            match order.state().status {
                OrderStatus::Valid => {
                    self.note_certificate().await?;
                    let chain = with_nonce!(order.certificate());
                    let links = self.http.last().links;
                    let chain = chain.map_err(|error| self.explain(error))?;
                    let none = "the order is valid and has no certificate";
                    let chain = chain.ok_or_else(|| self.error(Class::Retryable, none))?;
                    return Ok(self.preferred_chain(chain, &links).await);
                }
                OrderStatus::Invalid => {
                    self.note_failure(self.number.get().copied(), None).await;
                    return Err(self.invalid(order));
                }
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
            crash::point("order-chain");
            keep(&dir, &pending, &key, &chain, &names, key_type)
        })
        .await
        .map_err(|error| self.not_kept(error))
    }

    fn not_kept(&self, error: KeepError) -> AcmeError {
        let class = match &error {
            KeepError::Unusable(_) => Class::Retryable,
            KeepError::Expired(at)
                if has_expired(*at, clock::now(), self.job.session.clock_offset()) =>
            {
                Class::Retryable
            }
            // The order stays: once the clock is right its certificate is good, and no other has
            // to be had until then.
            KeepError::Expired(_) => Class::Operator,
            KeepError::Store(error) => return AcmeError::store(&self.what, error),
        };
        self.error(class, error.to_string())
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

/// Whether the CA's clock, which is ahead of ours by `offset`, says the same as ours. One that does
/// not tell its time has nothing to say against it, and nothing ever would.
fn has_expired(at: OffsetDateTime, now: OffsetDateTime, offset: Option<Duration>) -> bool {
    offset.is_none_or(|offset| at <= now + offset)
}

/// The key of the current generation, if that is of this kind and can be read.
fn current_key(dir: &Path, key_type: KeyType) -> Option<KeyPair> {
    let current = generation::read_current(dir).ok()??;
    if current.meta.key_type != key_type_name(key_type) {
        return None;
    }
    let path = current.path.join(generation::PRIVATE_KEY);
    let key = KeyPair::from_pem(&std::fs::read_to_string(path).ok()?).ok()?;
    // A file that somebody else put there is no key of this certificate.
    (key.subject_public_key_info() == current.leaf.public_key).then_some(key)
}

/// Whether the CA takes offence at `replaces`, and not at the order.
fn refuses_predecessor(error: &AcmeError, status: Option<u16>) -> bool {
    let refused = [
        "alreadyReplaced",
        "malformed",
        "unauthorized",
        "notFound",
        // Some stumble over a predecessor that they do not find.
        "serverInternal",
    ];
    let mismatch = error.problem.is_none() && error.detail.contains("replaces field mismatch");
    refused.iter().any(|problem| error.is(problem)) || matches!(status, Some(404 | 409)) || mismatch
}

/// An order that is sent once more, as the CA has refused what it replaces, and so counts. Where
/// that is held, a CA that has merely stumbled may take the first one yet: then that has failed.
fn without_predecessor(error: AcmeError, refusal: AcmeError) -> AcmeError {
    match error.held {
        Some(_) if refusal.unreachable => refusal,
        Some(_) => AcmeError {
            held: Some(Held::RefusedPredecessor),
            ..error
        },
        None => error,
    }
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

fn texts(names: &[Name]) -> Vec<String> {
    names.iter().map(Name::to_string).collect()
}
