//! Showing control over the names of an order (RFC 8555 section 7.5): an answer for each challenge
//! goes up before the CA is told, and comes down whichever way it ends.

use std::time::Duration as StdDuration;

use instant_acme::{AuthorizationStatus, ChallengeStatus, Order, OrderStatus};

use super::choice::{acme_type, choose};
use super::poll::Poll;
use super::{Run, transposed};
use crate::acme::challenges::ChallengeGuard;
use crate::acme::error::{AcmeError, Class};
use crate::acme::http::{of_problem, with_nonce};
use crate::certificate::name::Name;
use crate::clock;
use crate::config::ChallengeType;

/// Validation takes seconds.
const VALIDATION_DEADLINE: StdDuration = StdDuration::from_secs(120);

/// A name whose challenge is being answered.
pub(super) struct Answered {
    identifier: String,
    kind: ChallengeType,
    _guard: ChallengeGuard,
}

impl Run {
    /// Provides an answer for every name that the CA has not validated yet, and tells it so.
    pub(super) async fn answer_challenges(
        &self,
        order: &mut Order,
    ) -> Result<Vec<Answered>, AcmeError> {
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

    pub(super) fn provide(
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
}
