//! Showing control over the names of an order (RFC 8555 section 7.5): an answer for each challenge
//! goes up before the CA is told, and comes down whichever way it ends.

use std::time::Duration as StdDuration;

use instant_acme::{
    AuthorizationHandle, AuthorizationStatus, ChallengeHandle, ChallengeStatus, Order, OrderStatus,
};

use super::Run;
use super::choice::{acme_type, usable};
use super::poll::Poll;
use crate::acme::challenges::ChallengeGuard;
use crate::acme::dns::RecordGuard;
use crate::acme::dns::standing::{StandingRecord, Terms};
use crate::acme::error::{AcmeError, Class};
use crate::acme::http::{of_problem, with_nonce};
use crate::acme::jws::KeyAuthorization;
use crate::certificate::name::Name;
use crate::clock;
use crate::config::ChallengeType;
use crate::store::crash;

/// Validation takes seconds.
const VALIDATION_DEADLINE: StdDuration = StdDuration::from_secs(120);

/// A name whose challenge is being answered.
pub(super) struct Answered {
    identifier: String,
    kind: ChallengeType,
    answer: Answer,
}

/// What takes an answer back when it is dropped.
enum Answer {
    Here(#[expect(dead_code, reason = "it is held, not read")] ChallengeGuard),
    InDns(RecordGuard),
    /// Somebody else put it there, for good.
    Standing,
}

impl Answered {
    pub(super) fn kind(&self) -> ChallengeType {
        self.kind
    }
}

impl Run {
    /// Provides an answer for every name that the CA has not validated yet, and tells it so once
    /// all of them can be seen.
    pub(super) async fn answer_challenges(
        &self,
        order: &mut Order,
    ) -> Result<Vec<Answered>, AcmeError> {
        self.fetch_authorizations(order).await?;
        let mut answered = Vec::new();
        let mut authorizations = order.authorizations();
        // They are here by now: this sends nothing.
        while let Some(next) = authorizations.next().await {
            let authorization = next.map_err(|error| self.explain(error))?;
            answered.extend(self.provide(authorization).await?);
        }
        self.wait_for_dns(&answered).await?;
        self.job.challenges.known_everywhere().await;
        crash::point("challenges-up");
        self.tell(order, &answered).await?;
        Ok(answered)
    }

    /// A refused nonce costs one of them, so that all are asked for again: those that are here are
    /// not.
    async fn fetch_authorizations(&self, order: &mut Order) -> Result<(), AcmeError> {
        let fetched = with_nonce!(async {
            let mut authorizations = order.authorizations();
            while let Some(next) = authorizations.next().await {
                next?;
            }
            Ok::<(), instant_acme::Error>(())
        });
        fetched.map_err(|error| self.explain(error))
    }

    /// Answers one authorization's challenge; `None` where it is valid already.
    async fn provide(
        &self,
        mut authorization: AuthorizationHandle<'_>,
    ) -> Result<Option<Answered>, AcmeError> {
        let identifier = authorization.identifier().to_string();
        match authorization.status {
            AuthorizationStatus::Pending => {}
            AuthorizationStatus::Valid => return Ok(None),
            status => {
                let detail = format!("its authorization is {status:?}");
                return Err(self.about(&identifier, self.error(Class::Retryable, detail)));
            }
        }
        let offered = authorization
            .challenges
            .iter()
            .map(|challenge| &challenge.r#type);
        let usable = usable(&self.job.preferred, offered)
            .map_err(|detail| self.about(&identifier, self.error(Class::Operator, detail)))?;
        let usable = self.writable(usable, &identifier);
        let persist = acme_type(ChallengeType::DnsPersist01);
        let mut challenges = authorization.challenges.iter();
        let persist = challenges.find(|challenge| challenge.r#type == persist);
        let terms = persist.and_then(|challenge| self.http.terms_of(&challenge.url));
        let terms = terms.unwrap_or_default();
        let (kind, standing) = self.first_possible(&usable, &identifier, terms).await?;
        let Some(challenge) = authorization.challenge(acme_type(kind)) else {
            return Ok(None);
        };
        let answer = match standing {
            true => Ok(Answer::Standing),
            false => self.answer(kind, &identifier, &challenge).await,
        };
        let answer = answer.map_err(|error| self.about(&identifier, error))?;
        Ok(Some(Answered {
            identifier,
            kind,
            answer,
        }))
    }

    /// Without dns-01, where another challenge can be answered and no DNS provider is for the name.
    fn writable(&self, usable: Vec<ChallengeType>, identifier: &str) -> Vec<ChallengeType> {
        let domain = identifier.strip_prefix("*.").unwrap_or(identifier);
        let writes = self
            .job
            .dns
            .as_ref()
            .is_some_and(|dns| dns.writes_for(domain));
        let is_other = |kind: &ChallengeType| *kind != ChallengeType::Dns01;
        if writes || !usable.iter().any(is_other) {
            return usable;
        }
        usable.into_iter().filter(is_other).collect()
    }

    /// The first challenge that can be answered now, and whether its answer stands already. A
    /// record that only the operator can write is no reason to wait where another way is open.
    async fn first_possible(
        &self,
        usable: &[ChallengeType],
        identifier: &str,
        terms: Terms,
    ) -> Result<(ChallengeType, bool), AcmeError> {
        let mut missing = None;
        for kind in usable {
            if *kind != ChallengeType::DnsPersist01 {
                return Ok((*kind, false));
            }
            match self.find_standing_record(identifier, terms.clone()).await {
                Ok(()) => return Ok((*kind, true)),
                Err(error) => missing = Some(error),
            }
        }
        let none = || self.error(Class::Operator, "no challenge can be answered");
        Err(self.about(identifier, missing.unwrap_or_else(none)))
    }

    /// `terms`: as the challenge has them.
    async fn find_standing_record(&self, identifier: &str, terms: Terms) -> Result<(), AcmeError> {
        let session = &self.job.session;
        session.keep_terms(&terms).await;
        let terms = terms.or(&session.directory.caa_identities, self.account.id());
        let record = StandingRecord::new(&terms, identifier);
        let record = record.map_err(|cause| self.error(Class::Operator, cause))?;
        let dns = self.job.dns.as_ref();
        let dns = dns.ok_or_else(|| self.error(Class::Operator, "[acme.dns] cannot be used"))?;
        let values = dns.txt(&record.name).await;
        let values = values.map_err(|error| error.into_acme(&self.what))?;
        if values
            .iter()
            .any(|value| record.is_met_by(value, clock::now()))
        {
            return Ok(());
        }
        tracing::warn!(%record, "dns-persist-01 needs this record once and for all");
        Err(AcmeError {
            resumable: true,
            challenge: Some(ChallengeType::DnsPersist01),
            ..self.error(
                Class::Operator,
                format!("dns-persist-01 needs this TXT record, once and for all: {record}"),
            )
        })
    }

    async fn answer(
        &self,
        kind: ChallengeType,
        identifier: &str,
        challenge: &ChallengeHandle<'_>,
    ) -> Result<Answer, AcmeError> {
        let key_authorization = KeyAuthorization::new(&challenge.token, &self.thumbprint);
        let operator = |cause: String| self.error(Class::Operator, cause);
        match kind {
            ChallengeType::Http01 => Ok(Answer::Here(
                self.job
                    .challenges
                    .provide_http01(&challenge.token, key_authorization.as_str()),
            )),
            ChallengeType::TlsAlpn01 => {
                let name: Name = identifier
                    .parse()
                    .map_err(|error| operator(format!("{identifier} {error}")))?;
                let digest = key_authorization.digest();
                self.job
                    .challenges
                    .provide_tls_alpn01(&name, &digest, clock::now())
                    .map(Answer::Here)
                    .map_err(|error| operator(error.to_string()))
            }
            ChallengeType::DnsPersist01 => Ok(Answer::Standing),
            ChallengeType::Dns01 => {
                let dns = self.job.dns.as_ref();
                let dns = dns.ok_or_else(|| operator("[acme.dns] cannot be used".to_owned()))?;
                let domain = identifier.strip_prefix("*.").unwrap_or(identifier);
                dns.present(domain, &key_authorization.dns_value())
                    .await
                    .map(Answer::InDns)
                    .map_err(|error| error.into_acme(&self.what))
            }
        }
    }

    /// The CA is told once its servers could find what it looks for.
    async fn wait_for_dns(&self, answered: &[Answered]) -> Result<(), AcmeError> {
        let guards: Vec<&RecordGuard> = answered
            .iter()
            .filter_map(|it| match &it.answer {
                Answer::InDns(guard) => Some(guard),
                Answer::Here(_) | Answer::Standing => None,
            })
            .collect();
        match &self.job.dns {
            Some(dns) if !guards.is_empty() => dns
                .wait_until_seen(&guards)
                .await
                .map_err(|error| error.into_acme(&self.what)),
            _ => Ok(()),
        }
    }

    async fn tell(&self, order: &mut Order, answered: &[Answered]) -> Result<(), AcmeError> {
        let mut authorizations = order.authorizations();
        while let Some(next) = authorizations.next().await {
            let mut authorization = next.map_err(|error| self.explain(error))?;
            let identifier = authorization.identifier().to_string();
            let Some(one) = answered.iter().find(|it| it.identifier == identifier) else {
                continue;
            };
            let Some(mut challenge) = authorization.challenge(acme_type(one.kind)) else {
                continue;
            };
            // One that an interrupted run has told already is being looked at.
            if challenge.status == ChallengeStatus::Pending {
                with_nonce!(challenge.set_ready()).map_err(|error| AcmeError {
                    challenge: Some(one.kind),
                    ..self.about(&identifier, self.explain(error))
                })?;
            }
        }
        Ok(())
    }

    /// Waits for the CA's verdict. The answers stay up as long as `answered` lives.
    pub(super) async fn wait_until_ready(
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
    pub(super) async fn verdict(
        &self,
        order: &mut Order,
        answered: &[Answered],
    ) -> Result<Option<AcmeError>, AcmeError> {
        self.fetch_authorizations(order).await?;
        let mut authorizations = order.authorizations();
        while let Some(next) = authorizations.next().await {
            let mut authorization = next.map_err(|error| self.explain(error))?;
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
}
