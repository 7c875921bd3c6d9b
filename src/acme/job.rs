//! The work that takes time, one future per certificate: an order, a question to a CA, an issuance
//! by the internal CA. Each records itself in the ledger before it sends anything; none decides
//! whether it should run.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration as StdDuration, Instant};

use time::OffsetDateTime;

use super::account::revocation::Revocation;
use super::account::{Authority, SILENCE, Session, blocking};
use super::challenges::Challenges;
use super::dns::DnsChallenges;
use super::error::{AcmeError, Held, LastError};
use super::history::Reservation;
use super::ledger::{AttemptId, Kind, Ledger, Outcome, StoredRenewalInfo};
use super::order::{self, Unfinished};
use super::preflight::{self, Check, Preflight, Verdict};
use super::public_cas;
use super::renewal::OrderReason;
use super::renewal_info::{self, certificate_id};
use super::subject::Subject;
use super::surroundings::MayRenew;
use super::worker::{RenewError, RevocationReply};
use crate::certificate::name::Name;
use crate::clock;
use crate::config::{ChallengeType, Dns};
use crate::local_ca::LocalCa;
use crate::store::StoreError;
use crate::store::generation::{self, Generation, Meta, Source, StoredCertificate};

/// How a job ended.
pub(super) enum Done {
    Issued {
        stored: Box<StoredCertificate>,
        /// The CA's directory URL; `None` for the internal CA.
        ca: Option<String>,
        took: StdDuration,
    },
    Failed {
        error: LastError,
        ca: Option<String>,
        /// Whether an order was made and failed; otherwise it did not come to one.
        ordered: bool,
        /// What that has left on disk for the next one.
        unfinished: Option<Unfinished>,
    },
    /// Nothing has failed: one more order would break a limit of the CA.
    Held {
        error: LastError,
        ca: String,
        until: OffsetDateTime,
        /// As of one that failed.
        unfinished: Option<Unfinished>,
    },
    /// Somebody says that it is not to be renewed: nothing was asked of a CA.
    Withdrawn { cause: String },
    /// The CA was asked for renewal information; the answer is in the ledger.
    Asked { error: Option<String> },
    /// An account is another one, or was not changed; whoever asked for it knows.
    AccountChanged { is_another: bool },
    /// The CA was told to revoke; whoever asked for it waits.
    Revoked {
        result: Box<Result<Revocation, RenewError>>,
        reply: RevocationReply,
    },
}

/// An order at an ACME CA.
pub(super) struct OrderJob {
    pub subject: Subject,
    pub authority: Arc<Authority>,
    pub ledger: Arc<Ledger>,
    pub dir: PathBuf,
    pub challenges: Challenges,
    pub dns: Option<Arc<DnsChallenges>>,
    pub reason: OrderReason,
    /// Whether the key of the certificate that is stored is good, should the configuration want it
    /// kept.
    pub reuse_key: bool,
    /// Its place within the limits of the CA, until it is sent.
    pub reservation: Mutex<Option<Reservation>>,
    pub replaces: Option<Vec<u8>>,
    /// For the first order of a name.
    pub preflight: Option<FirstLook>,
    /// Who is asked first, if anybody.
    pub may_renew: Option<Arc<MayRenew>>,
}

/// What is looked at before the first order of a certificate, and where it is told.
pub(super) struct FirstLook {
    pub dns: Dns,
    pub state_dir: PathBuf,
    pub seen: SharedLook,
}

/// What was seen last, for one certificate.
#[derive(Clone, Debug, Default)]
pub(super) struct Look {
    pub checks: Vec<Check>,
    /// How often its order was put off.
    pub put_off: u32,
}

pub(super) type SharedLook = Arc<Mutex<Look>>;

pub(super) fn lock_look(look: &SharedLook) -> MutexGuard<'_, Look> {
    // It is replaced whole, so a panic cannot have left half of one.
    look.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl FirstLook {
    /// Looks, and says why the order is better put off. A CA that is not public may see the
    /// network with other eyes: then nobody waits for what is seen.
    async fn put_off(&self, job: &OrderJob, session: &Session) -> Option<Check> {
        let public = public_cas::is_public(job.authority.url());
        let look = look(
            self.preflights(job, session),
            Arc::clone(&self.seen),
            public,
        );
        if !public {
            tokio::spawn(look);
            return None;
        }
        look.await;
        let mut seen = lock_look(&self.seen);
        let why = preflight::put_off(&seen.checks, public, seen.put_off).cloned();
        seen.put_off += u32::from(why.is_some());
        why
    }

    fn preflights(&self, job: &OrderJob, session: &Session) -> Vec<Preflight> {
        let names = job.subject.names.iter().take(MAX_LOOKS);
        let preflight = |name: &Name| Preflight {
            name: name.clone(),
            dns: self.dns.clone(),
            identities: session.directory.caa_identities.clone(),
            account: session.account_url().map(str::to_owned),
            challenges: job.authority.config.challenges.clone(),
            clock_offset: session.clock_offset(),
            state_dir: self.state_dir.clone(),
            answers: Some(job.challenges.clone()),
        };
        names.map(preflight).collect()
    }
}

/// Of a certificate with very many names, so many are looked at.
const MAX_LOOKS: usize = 10;

/// Of a CA that is not `public` what is seen is no more than advice.
async fn look(preflights: Vec<Preflight>, seen: SharedLook, public: bool) {
    let each = preflights.into_iter().map(Preflight::run);
    let all = futures_util::future::join_all(each).await;
    let mut checks: Vec<Check> = all.into_iter().flatten().collect();
    // The clock and the disk are the same for each name.
    checks.sort_by_key(|check| std::cmp::Reverse(check.verdict));
    let mut unique: Vec<Check> = Vec::new();
    for check in checks {
        if !unique.contains(&check) {
            unique.push(check);
        }
    }
    for check in unique.iter().filter(|check| check.verdict != Verdict::Ok) {
        let topic = check.topic.as_str();
        match public {
            true => tracing::warn!(topic, "preflight: {check}"),
            false => tracing::info!(topic, "preflight: {check}"),
        }
    }
    lock_look(&seen).checks = unique;
}

impl OrderJob {
    pub async fn run(self) -> Done {
        let started = Instant::now();
        let ca = self.authority.url().to_owned();
        if let Some(may_renew) = &self.may_renew
            && let Err(cause) = may_renew(self.subject.name.clone()).await
        {
            return Done::Withdrawn { cause };
        }
        let _using_the_key = self.authority.use_key().await;
        // The session has records of its own: a CA that is down is no failure of this subject.
        let session = match self.authority.session_for(&self.subject.names).await {
            Ok((session, _)) => Some(session),
            // Recorded below: it is this certificate's own.
            Err(error) if error.unsent => None,
            Err(error) => return failed(LastError::from(&error), Some(ca), false),
        };
        if let (Some(first), Some(session)) = (&self.preflight, &session)
            && let Some(why) = first.put_off(&self, session).await
        {
            let error = preflight::unsent(format!("order for {}", self.subject.name), &why);
            self.note_unsent(&error).await;
            return failed(LastError::from(&error), Some(ca), false);
        }
        let (ledger, url, reason) = (Arc::clone(&self.ledger), ca.clone(), self.reason.as_str());
        let begun =
            blocking(move || ledger.begin(Kind::Order, &url, Some(reason), clock::now())).await;
        let attempt = match begun {
            Ok(attempt) => attempt,
            Err(error) => return failed(error.to_string().into(), Some(ca), false),
        };
        let result = self.order().await;
        self.authority.learn(result.as_ref().err()).await;
        self.record(attempt, &result).await;
        match result {
            Ok((stored, _)) => Done::Issued {
                stored: Box::new(stored),
                ca: Some(ca),
                took: started.elapsed(),
            },
            Err(error) => self.not_issued(&error, ca).await,
        }
    }

    async fn not_issued(&self, error: &AcmeError, ca: String) -> Done {
        let unfinished = self.unfinished().await;
        match error.retry_after.filter(|_| error.held.is_some()) {
            Some(until) => Done::Held {
                error: LastError::from(error),
                ca,
                until,
                unfinished,
            },
            None => Done::Failed {
                error: LastError::from(error),
                ca: Some(ca),
                ordered: true,
                unfinished,
            },
        }
    }

    /// What this CA is not asked for, another may be at once: its turn is told by the ledger. What
    /// our own disk forbids is not written there.
    async fn note_unsent(&self, error: &AcmeError) {
        if !error.is_for_another_ca() {
            return;
        }
        let (ledger, ca) = (Arc::clone(&self.ledger), self.authority.url().to_owned());
        let (reason, outcome) = (self.reason.as_str(), Outcome::from(error));
        let noted = blocking(move || {
            let now = clock::now();
            let attempt = ledger.begin(Kind::Order, &ca, Some(reason), now)?;
            ledger.finish(attempt, outcome, &[], now)
        });
        if let Err(error) = noted.await {
            tracing::error!(name = %self.subject.name, %error, "cannot record that an order is put off");
        }
    }

    /// How the order ended, and what the CA has said of the certificate that it was to replace.
    async fn record(&self, attempt: AttemptId, result: &Result<Ordered, AcmeError>) {
        let error = result.as_ref().err();
        let outcome = error.map_or(Outcome::Ok, Outcome::from);
        let answered = match result {
            Ok((_, answered)) => answered.clone(),
            Err(error) => error.challenge.into_iter().collect(),
        };
        let held = error.and_then(|error| error.held);
        let refused = held.filter(|held| *held == Held::RefusedPredecessor);
        let refused = refused.and_then(|_| certificate_id(self.replaces.as_deref()?));
        let ledger = Arc::clone(&self.ledger);
        let recorded = blocking(move || {
            if let Some(id) = refused {
                ledger.set_refused_predecessor(id.to_string())?;
            }
            ledger.finish(attempt, outcome, &answered, clock::now())
        });
        if let Err(error) = recorded.await {
            tracing::error!(name = %self.subject.name, %error, "cannot record how an order ended");
        }
    }

    async fn unfinished(&self) -> Option<Unfinished> {
        let (dir, names) = (self.dir.clone(), self.subject.names.clone());
        let key_type = self.subject.key_type;
        blocking(move || order::unfinished(&dir, &names, key_type)).await
    }

    async fn order(&self) -> Result<Ordered, AcmeError> {
        match self.order_once().await {
            Err(error) if error.is("accountDoesNotExist") => {
                self.authority.forget_account().await?;
            }
            Err(error) if error.gone || error.is("malformed") => {
                // Perhaps the URLs of a directory that has changed.
                if !self.authority.directory_has_changed().await {
                    return Err(error);
                }
                tracing::info!(ca = self.authority.url(), "the CA's directory has changed");
            }
            Err(error) if error.is("unauthorized") && error.challenge.is_none() => {
                return Err(self.authority.about_the_account(error).await);
            }
            result => return result,
        }
        self.order_once().await
    }

    async fn order_once(&self) -> Result<Ordered, AcmeError> {
        let (session, profile) = self.authority.session_for(&self.subject.names).await?;
        let configured = &self.authority.config.challenges;
        let preferred = order::learned(configured, &self.ledger.challenges());
        let issued = order::issue(order::Job {
            names: self.subject.names.clone(),
            key_type: self.subject.key_type,
            config: self.authority.config.clone(),
            session,
            profile,
            history: Arc::clone(&self.authority.history),
            reservation: Mutex::new(self.reserved()),
            reuse_key: self.reuse_key && self.authority.config.reuse_key,
            dir: self.dir.clone(),
            challenges: self.challenges.clone(),
            dns: self.dns.clone(),
            preferred,
            replaces: self.replaces.clone(),
        })
        .await?;
        Ok((self.read_back(issued.path).await?, issued.answered))
    }

    fn reserved(&self) -> Option<Reservation> {
        let mut reservation = self.reservation.lock();
        let reservation = reservation.as_deref_mut().ok();
        reservation.and_then(Option::take)
    }

    /// What is on disk now is what counts from here on.
    async fn read_back(&self, path: PathBuf) -> Result<StoredCertificate, AcmeError> {
        let dir = self.dir.clone();
        let what = || format!("order for {}", self.subject.name);
        match blocking(move || generation::read_current(&dir)).await {
            Ok(Some(stored)) => Ok(stored),
            Ok(None) => {
                let missing = StoreError::broken(&path, "it vanished after it was written");
                Err(AcmeError::store(what(), &missing))
            }
            Err(error) => Err(AcmeError::store(what(), &error)),
        }
    }
}

/// What is on disk now, and which challenges were answered for it.
type Ordered = (StoredCertificate, Vec<ChallengeType>);

fn failed(error: LastError, ca: Option<String>, ordered: bool) -> Done {
    Done::Failed {
        error,
        ca,
        ordered,
        unfinished: None,
    }
}

/// A question about one certificate (RFC 9773).
pub(super) struct AskJob {
    pub authority: Arc<Authority>,
    pub ledger: Arc<Ledger>,
    pub certificate_id: String,
    /// In 0..1: where in a new window the renewal will be.
    pub fraction: f64,
}

impl AskJob {
    pub async fn run(self) -> Done {
        let error = self.ask().await.err().map(|error| error.to_string());
        Done::Asked { error }
    }

    async fn ask(&self) -> Result<(), AcmeError> {
        let before = self.ledger.renewal_info(&self.certificate_id);
        let failures = before.as_ref().map_or(0, |before| before.failures) + 1;
        let (directory, http) = match self.authority.directory().await {
            Ok(found) => found,
            Err(error) => {
                let at = renewal_info::next_fetch(clock::now(), Err(&error), failures);
                self.keep(before, failures, at).await?;
                return Err(error);
            }
        };
        let Some(base) = directory.renewal_info else {
            self.authority.offers_no_renewal_info(clock::now());
            // What it has said before holds.
            return self.keep(before, 0, clock::now() + SILENCE).await;
        };
        // If a crash comes now, this question counts as one that failed.
        let crashed = AcmeError {
            unreachable: true,
            ..AcmeError::new(
                super::error::Class::Retryable,
                "renewal information",
                "unfinished",
            )
        };
        let at = renewal_info::next_fetch(clock::now(), Err(&crashed), failures);
        self.keep(before.clone(), failures, at).await?;
        let (ledger, url) = (Arc::clone(&self.ledger), self.authority.url().to_owned());
        let attempt = blocking(move || ledger.begin(Kind::RenewalInfo, &url, None, clock::now()))
            .await
            .map_err(|error| AcmeError::store("renewal information", &error))?;
        let result = renewal_info::fetch(&http, &base, &self.certificate_id).await;
        let outcome = result.as_ref().map_or_else(Outcome::from, |_| Outcome::Ok);
        let now = clock::now();
        let at = renewal_info::next_fetch(now, result.as_ref(), failures);
        match &result {
            Ok(answer) => {
                self.store(self.answered(before.as_ref(), answer, at))
                    .await?
            }
            Err(_) => self.keep(before, failures, at).await?,
        }
        let ledger = Arc::clone(&self.ledger);
        blocking(move || ledger.finish(attempt, outcome, &[], now))
            .await
            .map_err(|error| AcmeError::store("renewal information", &error))?;
        result.map(|_| ())
    }

    fn answered(
        &self,
        before: Option<&StoredRenewalInfo>,
        answer: &renewal_info::Answer,
        next_fetch: OffsetDateTime,
    ) -> StoredRenewalInfo {
        let previous = before.and_then(|before| before.window);
        let info = StoredRenewalInfo::answered(
            &self.certificate_id,
            before,
            answer,
            next_fetch,
            self.fraction,
        );
        if info.window != previous
            && let Some(window) = &info.window
        {
            tracing::info!(
                certificate = self.certificate_id,
                renewal = clock::rfc3339(window.selected),
                explanation = answer.explanation_url,
                "the CA suggests when to renew"
            );
        }
        info
    }

    /// The answer before, if any, with a new time for the next question.
    async fn keep(
        &self,
        before: Option<StoredRenewalInfo>,
        failures: u32,
        next_fetch: OffsetDateTime,
    ) -> Result<(), AcmeError> {
        self.store(StoredRenewalInfo {
            next_fetch,
            failures,
            ..before.unwrap_or_else(|| self.blank(next_fetch))
        })
        .await
    }

    fn blank(&self, next_fetch: OffsetDateTime) -> StoredRenewalInfo {
        StoredRenewalInfo::blank(&self.certificate_id, next_fetch)
    }

    async fn store(&self, info: StoredRenewalInfo) -> Result<(), AcmeError> {
        let ledger = Arc::clone(&self.ledger);
        blocking(move || ledger.set_renewal_info(Some(info)))
            .await
            .map_err(|error| AcmeError::store("renewal information", &error))
    }
}

/// An issuance by the internal CA.
pub(super) struct InternalJob {
    pub subject: Subject,
    pub local_ca: LocalCa,
    pub dir: PathBuf,
    /// Every name of the internal CA.
    pub all_names: Arc<Vec<Name>>,
}

impl InternalJob {
    pub async fn run(self) -> Done {
        let started = Instant::now();
        match blocking(move || self.issue()).await {
            Ok(stored) => Done::Issued {
                stored: Box::new(stored),
                ca: None,
                took: started.elapsed(),
            },
            Err(error) => failed(LastError::from(error), None, true),
        }
    }

    fn issue(&self) -> Result<StoredCertificate, String> {
        let (names, key_type) = (&self.subject.names, self.subject.key_type);
        let now = clock::now();
        let issued = self
            .local_ca
            .issue(names, key_type, &self.all_names, now)
            .map_err(|error| error.to_string())?;
        let meta = Meta::new(Source::Internal, names, key_type, now);
        let generation = Generation {
            fullchain_pem: &issued.fullchain_pem,
            private_key_pem: &issued.private_key_pem,
            meta: &meta,
        };
        let path = generation::write(&self.dir, &generation).map_err(|error| error.to_string())?;
        Ok(StoredCertificate {
            path,
            leaf: issued.leaf,
            meta,
        })
    }
}
