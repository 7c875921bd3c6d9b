//! What people ask of the worker: a renewal now, or if one is due.

use std::sync::Arc;

use time::{Duration, OffsetDateTime};
use tokio::sync::oneshot;

use super::Worker;
use super::desk::Desk;
use super::entry::Entry;
use super::handle::{
    AccountChange, AccountChanged, Command, Decision, RenewError, RenewMode, lock,
};
use crate::acme::account::{Authority, slug};
use crate::acme::job::Done;
use crate::acme::preflight::{Check, Preflight};
use crate::acme::renewal::{self, Action, OrderReason, WaitReason, plan};
use crate::certificate::name::Name;
use crate::clock;
use crate::store::generation::StoredCertificate;

impl Worker {
    pub(super) async fn obey(&mut self, command: Command) {
        match command {
            Command::Reassign(assignment) => {
                let before = std::mem::replace(&mut self.assignment, *assignment);
                self.configure(Some(before)).await;
            }
            Command::Demand { subject, reply } => self.demand(*subject, reply).await,
            Command::Renew { name, mode, reply } => {
                self.recall(&name).await;
                self.desk.renew(&name, mode, reply, clock::now());
            }
            Command::Account { ca, change, reply } => self.change_account(ca, change, reply),
            Command::Preflight { name, reply } => self.preflight(&name, reply),
            Command::Delete { name, force, reply } => {
                // Whoever asked may have gone.
                let _ = reply.send(self.delete(&name, force).await);
            }
            Command::Revoke {
                name,
                reason,
                reply,
            } => self.revoke(name, reason, reply).await,
        }
    }

    /// Beside the worker: it waits for orders, which the worker goes on to look after.
    fn change_account(
        &mut self,
        ca: Option<String>,
        change: AccountChange,
        reply: oneshot::Sender<Result<AccountChanged, RenewError>>,
    ) {
        let wanted = |it: &&Arc<Authority>| ca.as_ref().is_none_or(|ca| slug(it.url()) == *ca);
        let authority = match self.desk.authorities.iter().find(wanted) {
            _ if !self.desk.is_writer => Err(self.desk.not_writer()),
            Some(authority) => Ok(Arc::clone(authority)),
            None => Err(RenewError::UnknownCa),
        };
        self.jobs.spawn(async move {
            let changed = match authority {
                Ok(authority) => change_account(&authority, change).await,
                Err(error) => Err(error),
            };
            let is_another = matches!((&changed, change), (Ok(_), AccountChange::Deactivate));
            // Whoever asked may have gone.
            let _ = reply.send(changed);
            Done::AccountChanged { is_another }
        });
    }

    /// Beside the worker: it asks DNS and our own listeners.
    fn preflight(&self, name: &Name, reply: oneshot::Sender<Result<Vec<Check>, RenewError>>) {
        let known = self.desk.by_name(name).is_some();
        let authority = self.desk.authorities.first().filter(|_| known);
        let Some(authority) = authority.map(Arc::clone) else {
            let _ = reply.send(Err(RenewError::UnknownName(name.clone())));
            return;
        };
        let preflight = Preflight {
            name: name.clone(),
            dns: self.assignment.dns.clone(),
            identities: Vec::new(),
            account: None,
            challenges: authority.config.challenges.clone(),
            clock_offset: None,
            state_dir: self.state.root().to_owned(),
            answers: Some(self.challenges.clone()),
        };
        tokio::spawn(async move {
            let _ = reply.send(Ok(preflight.here().await));
        });
    }
}

impl Desk {
    /// Why this process neither orders nor writes.
    pub(super) fn not_writer(&self) -> RenewError {
        match lock(&self.trouble).clone() {
            Some(cause) => RenewError::Unwritable(cause),
            None => RenewError::NotWriter,
        }
    }

    pub(super) fn renew(
        &mut self,
        name: &Name,
        mode: RenewMode,
        reply: oneshot::Sender<Result<Decision, RenewError>>,
        now: OffsetDateTime,
    ) {
        let found = self.by_name(name);
        let answer = match found.and_then(|id| Some((id, self.entry(id)?))) {
            None => Err(RenewError::UnknownName(name.clone())),
            Some(_) if !self.is_writer => Err(self.not_writer()),
            Some((id, entry)) if entry.running => {
                // The end of an order answers it; behind a question to the CA it comes next.
                self.note(id, mode);
                Ok(Decision::InProgress)
            }
            Some((id, entry)) => match (entry.subject.refusal(entry.issuer), mode) {
                (Some(refusal), _) => Err(RenewError::Refused(refusal)),
                (None, RenewMode::Force) => self.force(id, now),
                (None, RenewMode::IfDue) => return self.ask_for(id, reply, now),
            },
        };
        // Whoever asked may have gone.
        let _ = reply.send(answer);
    }

    fn note(&mut self, id: u64, mode: RenewMode) {
        if let Some(entry) = self.entry_mut(id) {
            entry.forced |= mode == RenewMode::Force;
            entry.ask_again |= mode == RenewMode::IfDue;
        }
    }

    /// Orders now, unless the CA itself asked for patience or a limit of it would be broken.
    fn force(&mut self, id: u64, now: OffsetDateTime) -> Result<Decision, RenewError> {
        let Some(entry) = self.entry(id) else {
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
        let alive = |it: &StoredCertificate| now < it.leaf.not_after;
        let replaces = entry.stored.as_ref().is_some_and(alive);
        let broken = authority.and_then(|it| self.broken_limit(entry, &it, replaces, now));
        if let Some(broken) = broken {
            return Ok(Decision::Waiting {
                until: broken.until,
            });
        }
        if let Some(entry) = self.entry_mut(id) {
            entry.forced = true;
        }
        self.check_at(id, now);
        Ok(Decision::Ordering {
            reason: OrderReason::Requested.as_str(),
        })
    }

    /// Has the CA asked, where it can be, and answers with what follows.
    fn ask_for(
        &mut self,
        id: u64,
        reply: oneshot::Sender<Result<Decision, RenewError>>,
        now: OffsetDateTime,
    ) {
        if let Some(entry) = self.entry_mut(id) {
            entry.ask_now = true;
            if let Some(before) = entry.reply.replace(reply) {
                let _ = before.send(Ok(Decision::InProgress));
            }
        }
        self.decide(id, now);
    }

    /// The CA to be asked about this certificate, if it can be asked.
    pub(super) fn can_ask(&self, entry: &Entry, now: OffsetDateTime) -> Option<Arc<Authority>> {
        let authority = self.issuing_authority(entry)?;
        let alive = entry
            .stored
            .as_ref()
            .is_some_and(|it| it.leaf.not_after > now);
        let reachable = authority.sessions().failures == 0;
        let askable = alive && reachable && entry.certificate_id.is_some();
        (askable && entry.ledger.is_some()).then(|| Arc::clone(authority))
    }

    /// The decision stands without a question.
    pub(super) fn answer_without_asking(&mut self, id: u64, now: OffsetDateTime) {
        let Some(entry) = self.entry_mut(id) else {
            return;
        };
        entry.ask_now = false;
        if let Some(reply) = entry.reply.take() {
            // Whoever asked may have gone.
            let _ = reply.send(self.answer_if_due(id, now));
        }
    }

    /// What the plan says.
    pub(super) fn answer_if_due(
        &self,
        id: u64,
        now: OffsetDateTime,
    ) -> Result<Decision, RenewError> {
        let Some(entry) = self.entry(id) else {
            return Err(RenewError::Stopped);
        };
        let covered = self.coverage(&entry.subject).ok_or(RenewError::Loading)?;
        let covered = covered.until;
        let (mut facts, _) = self.facts(entry, now, covered);
        // It was asked just now, or cannot be: the decision stands without another question.
        facts.renewal_info.next_fetch = Some(now + Duration::HOUR);
        let explanation_url = entry.explanation_url();
        Ok(match plan(now, &facts) {
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
        })
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
