//! What people ask of the worker: a renewal now, or if one is due.

use std::sync::Arc;

use time::{Duration, OffsetDateTime};
use tokio::sync::oneshot;

use super::Worker;
use super::handle::{AccountChange, AccountChanged, Command, Decision, RenewError, RenewMode};
use crate::acme::account::{Authority, slug};
use crate::acme::ledger::Kind;
use crate::acme::renewal::{self, Action, OrderReason, WaitReason, plan};
use crate::certificate::name::Name;
use crate::clock;

impl Worker {
    pub(super) async fn obey(&mut self, command: Command) {
        match command {
            Command::Reassign(assignment) => {
                self.assignment = *assignment;
                self.configure().await;
            }
            Command::Demand { subject, reply } => self.demand(*subject, reply).await,
            Command::Renew { name, mode, reply } => self.renew(&name, mode, reply),
            Command::Account { ca, change, reply } => self.change_account(ca, change, reply),
        }
    }

    /// Beside the worker: it waits for orders, which the worker goes on to look after.
    fn change_account(
        &self,
        ca: Option<String>,
        change: AccountChange,
        reply: oneshot::Sender<Result<AccountChanged, RenewError>>,
    ) {
        let wanted = |it: &&Arc<Authority>| ca.as_ref().is_none_or(|ca| slug(it.url()) == *ca);
        let authority = match self.authorities.iter().find(wanted) {
            _ if self.lock.is_none() => Err(RenewError::NotWriter),
            Some(authority) => Ok(Arc::clone(authority)),
            None => Err(RenewError::UnknownCa),
        };
        tokio::spawn(async move {
            let changed = match authority {
                Ok(authority) => change_account(&authority, change).await,
                Err(error) => Err(error),
            };
            // Whoever asked may have gone.
            let _ = reply.send(changed);
        });
    }

    pub(super) fn renew(
        &mut self,
        name: &Name,
        mode: RenewMode,
        reply: oneshot::Sender<Result<Decision, RenewError>>,
    ) {
        let now = clock::now();
        let found = self
            .entries
            .iter()
            .find(|(_, entry)| entry.subject.names.contains(name));
        let answer = match found.map(|(id, entry)| (*id, entry)) {
            None => Err(RenewError::UnknownName(name.clone())),
            Some(_) if self.lock.is_none() => Err(RenewError::NotWriter),
            Some((id, entry)) if entry.running => {
                // The end of an order answers it; behind a question to the CA it comes next.
                self.note(id, mode);
                Ok(Decision::InProgress)
            }
            Some((id, entry)) => match (entry.subject.refusal(entry.issuer), mode) {
                (Some(refusal), _) => Err(RenewError::Refused(refusal)),
                (None, RenewMode::Force) => self.force(id, now),
                (None, RenewMode::IfDue) => {
                    if self.starts_asking(id, now) {
                        if let Some(entry) = self.entries.get_mut(&id) {
                            entry.reply = Some(reply);
                        }
                        return;
                    }
                    self.answer_if_due(id, now)
                }
            },
        };
        // Whoever asked may have gone.
        let _ = reply.send(answer);
    }

    fn note(&mut self, id: u64, mode: RenewMode) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.forced |= mode == RenewMode::Force;
            entry.ask_again |= mode == RenewMode::IfDue;
        }
    }

    /// Orders now, unless the CA itself asked for patience or a limit of it would be broken.
    pub(super) fn force(&mut self, id: u64, now: OffsetDateTime) -> Result<Decision, RenewError> {
        let Some(entry) = self.entries.get(&id) else {
            return Err(RenewError::Stopped);
        };
        let (facts, authority) = self.facts(entry, now, None);
        let asked = facts
            .attempts
            .retry_after
            .into_iter()
            .chain(facts.session.retry_after)
            .max();
        if let Some(until) = asked.filter(|until| *until > now) {
            return Ok(Decision::Waiting { until });
        }
        let replaces = entry
            .stored
            .as_ref()
            .is_some_and(|it| now < it.leaf.not_after);
        if let Some(broken) = self.broken_limit(entry, authority.as_deref(), replaces, now)
            && authority.is_none_or(|it| self.unlimited_authority(entry, &it, now).is_none())
        {
            return Ok(Decision::Waiting {
                until: broken.until,
            });
        }
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.forced = true;
            entry.check_at = now;
        }
        Ok(Decision::Ordering {
            reason: OrderReason::Requested.as_str(),
        })
    }

    /// Starts a question to the CA, where it can be asked about this certificate.
    pub(super) fn starts_asking(&mut self, id: u64, now: OffsetDateTime) -> bool {
        let can_ask = self.entries.get(&id).is_some_and(|entry| {
            let alive = entry
                .stored
                .as_ref()
                .is_some_and(|it| it.leaf.not_after > now);
            let reachable = self
                .issuing_authority(entry)
                .is_some_and(|it| it.ledger.attempts(Kind::Session, None).failures == 0);
            alive && reachable && entry.certificate_id.is_some() && entry.ledger.is_some()
        });
        if can_ask {
            self.start_asking(id, now);
        }
        self.entries.get(&id).is_some_and(|entry| entry.running)
    }

    /// What the plan says, and has it done at once.
    pub(super) fn answer_if_due(
        &mut self,
        id: u64,
        now: OffsetDateTime,
    ) -> Result<Decision, RenewError> {
        let Some(entry) = self.entries.get(&id) else {
            return Err(RenewError::Stopped);
        };
        let covered = self.coverage(&entry.subject).ok_or(RenewError::Loading)?;
        let covered = covered.until;
        let (mut facts, _) = self.facts(entry, now, covered);
        // It was asked just now, or cannot be: the decision stands without another question.
        facts.renewal_info.next_fetch = Some(now + Duration::HOUR);
        let explanation_url = entry
            .ledger
            .as_ref()
            .zip(entry.certificate_id.as_ref())
            .and_then(|(ledger, id)| ledger.renewal_info(id)?.explanation_url);
        let decision = match plan(now, &facts) {
            Action::CoveredByFiles { until } => Decision::CoveredByFiles { until },
            Action::Order { reason, .. } => Decision::Ordering {
                reason: reason.as_str(),
            },
            Action::Wait {
                until,
                reason: WaitReason::Backoff | WaitReason::IssuerUnreachable,
            } => Decision::Waiting { until },
            Action::Wait { until, .. } => Decision::NotDue {
                next_renewal: renewal::next_renewal(&facts).unwrap_or(until),
                explanation_url,
            },
            Action::FetchRenewalInfo => Decision::InProgress,
        };
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.check_at = now;
        }
        Ok(decision)
    }
}

async fn change_account(
    authority: &Authority,
    change: AccountChange,
) -> Result<AccountChanged, RenewError> {
    let changed = match change {
        AccountChange::RollOver => authority.roll_over().await,
        AccountChange::Deactivate => authority.deactivate().await,
    };
    let account = changed.map_err(|error| RenewError::Refused(error.to_string()))?;
    Ok(AccountChanged {
        ca: authority.url().to_owned(),
        account,
    })
}
