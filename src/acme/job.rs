//! The work that takes time, one future per certificate: an order, a question to a CA, an issuance
//! by the internal CA. Each records itself in the ledger before it sends anything; none decides
//! whether it should run.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration as StdDuration, Instant};

use time::{Duration, OffsetDateTime};

use super::account::{Authority, blocking};
use super::challenges::Challenges;
use super::dns::DnsChallenges;
use super::error::AcmeError;
use super::ledger::{Kind, Ledger, Outcome, StoredRenewalInfo};
use super::order;
use super::renewal::{OrderReason, Window};
use super::renewal_info;
use super::subject::Subject;
use super::surroundings::MayRenew;
use crate::certificate::name::Name;
use crate::clock;
use crate::config::ChallengeType;
use crate::local_ca::LocalCa;
use crate::store::StoreError;
use crate::store::generation::{self, Generation, Meta, Source, StoredCertificate};

/// A CA without renewal information is looked at again after this.
const UNSUPPORTED_WAIT: Duration = Duration::days(1);

/// How a job ended.
pub(super) enum Done {
    Issued {
        stored: Box<StoredCertificate>,
        /// The CA's directory URL; `None` for the internal CA.
        ca: Option<String>,
        took: StdDuration,
    },
    Failed {
        error: String,
        ca: Option<String>,
        /// Whether an order was made and failed; otherwise it did not come to one.
        ordered: bool,
    },
    /// Somebody says that it is not to be renewed: nothing was asked of a CA.
    Withdrawn { cause: String },
    /// The CA was asked for renewal information; the answer is in the ledger.
    Asked { error: Option<String> },
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
    pub replaces: Option<Vec<u8>>,
    /// Who is asked first, if anybody.
    pub may_renew: Option<Arc<MayRenew>>,
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
        if let Err(error) = self.authority.session().await {
            return failed(error.to_string(), Some(ca), false);
        }
        let (ledger, url, reason) = (Arc::clone(&self.ledger), ca.clone(), self.reason.as_str());
        let begun =
            blocking(move || ledger.begin(Kind::Order, &url, Some(reason), clock::now())).await;
        let attempt = match begun {
            Ok(attempt) => attempt,
            Err(error) => return failed(error.to_string(), Some(ca), false),
        };
        let result = self.order().await;
        let error = result.as_ref().err();
        self.authority.learn(error).await;
        let outcome = error.map_or(Outcome::Ok, Outcome::from);
        let answered = match &result {
            Ok((_, answered)) => answered.clone(),
            Err(error) => error.challenge.into_iter().collect(),
        };
        let ledger = Arc::clone(&self.ledger);
        let recorded =
            blocking(move || ledger.finish(attempt, outcome, &answered, clock::now())).await;
        if let Err(error) = recorded {
            tracing::error!(name = %self.subject.name, %error, "cannot record how an order ended");
        }
        match result {
            Ok((stored, _)) => Done::Issued {
                stored: Box::new(stored),
                ca: Some(ca),
                took: started.elapsed(),
            },
            Err(error) => failed(error.to_string(), Some(ca), true),
        }
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
            result => return result,
        }
        self.order_once().await
    }

    async fn order_once(&self) -> Result<Ordered, AcmeError> {
        let session = self.authority.session().await?;
        let configured = &self.authority.config.challenges;
        let preferred = order::learned(configured, &self.ledger.challenges());
        let issued = order::issue(order::Job {
            names: self.subject.names.clone(),
            key_type: self.subject.key_type,
            config: self.authority.config.clone(),
            session,
            history: Arc::clone(&self.authority.history),
            dir: self.dir.clone(),
            challenges: self.challenges.clone(),
            dns: self.dns.clone(),
            preferred,
            replaces: self.replaces.clone(),
        })
        .await?;
        Ok((self.read_back(issued.path).await?, issued.answered))
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

fn failed(error: String, ca: Option<String>, ordered: bool) -> Done {
    Done::Failed { error, ca, ordered }
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
            let unsupported = self.blank(clock::now() + UNSUPPORTED_WAIT);
            return self.store(unsupported).await;
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
        let previous = before.and_then(|before| before.window).map(Window::from);
        let window = Window::choose(previous.as_ref(), answer.start, answer.end, self.fraction);
        if window != previous
            && let Some(window) = &window
        {
            tracing::info!(
                certificate = self.certificate_id,
                renewal = clock::rfc3339(window.selected),
                explanation = answer.explanation_url,
                "the CA suggests when to renew"
            );
        }
        StoredRenewalInfo {
            supported: true,
            window: window.map(Into::into),
            explanation_url: answer.explanation_url.clone(),
            ..self.blank(next_fetch)
        }
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
        StoredRenewalInfo {
            certificate_id: self.certificate_id.clone(),
            supported: false,
            window: None,
            explanation_url: None,
            next_fetch,
            failures: 0,
        }
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
            Err(error) => failed(error, None, true),
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
