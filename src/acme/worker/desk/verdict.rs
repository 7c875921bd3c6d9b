//! What one certificate needs now: the plan's word, in the light of what files cover, of whose turn
//! it is among the CAs, and of what somebody asked for.

use std::sync::Arc;

use time::OffsetDateTime;

use super::{Desk, RECHECK, RECHECK_FILES, Verdict, Work};
use crate::acme::account::Authority;
use crate::acme::queue::{Priority, Ticket};
use crate::acme::renewal::{self, Action, Facts, IssuerKind, OrderReason, WaitReason, plan};
use crate::acme::worker::MAX_SLEEP;
use crate::acme::worker::entry::Entry;
use crate::acme::worker::handle::{SubjectStatus, lock};
use crate::acme::worker::turn::Covered;

/// What is known about a certificate when it is decided.
struct Known {
    facts: Facts,
    authority: Option<Arc<Authority>>,
    status: SubjectStatus,
    /// When it is looked at again in any case.
    recheck_at: OffsetDateTime,
}

impl Known {
    /// When time alone changes what is needed.
    fn again(&self, now: OffsetDateTime) -> OffsetDateTime {
        again(now, &self.facts, self.recheck_at)
    }
}

fn again(now: OffsetDateTime, facts: &Facts, recheck_at: OffsetDateTime) -> OffsetDateTime {
    renewal::changes_at(now, facts).map_or(recheck_at, |at| at.min(recheck_at))
}

impl Desk {
    pub(super) fn verdict(&mut self, id: u64, now: OffsetDateTime) -> Option<Verdict> {
        let entry = self.entries.get(&id).filter(|entry| !entry.running)?;
        let recheck_at = now
            + match (entry.on_demand, entry.subject.depends_on_files()) {
                (true, _) => MAX_SLEEP,
                (false, true) => RECHECK_FILES,
                (false, false) => RECHECK,
            };
        let Some(Covered { until, file_known }) = self.coverage(&entry.subject) else {
            let (facts, authority) = self.facts(entry, now, None);
            let status = self.status(id, entry, &facts, authority.as_deref(), None);
            self.is_loading = true;
            return Some(wait(recheck_at, status));
        };
        if entry.subject.only_takeover && !file_known && entry.stored.is_none() && !entry.forced {
            // There is nothing yet that could be late.
            lock(&self.statuses).remove(&id);
            let at = recheck_at;
            return Some(Verdict::Wait { at, status: None });
        }
        self.choose_issuer(id, file_known, now);
        let entry = self.entries.get(&id)?;
        let covered = until;
        let (facts, authority) = self.facts(entry, now, covered);
        let status = self.status(id, entry, &facts, authority.as_deref(), covered);
        if !self.is_writer {
            return Some(wait(recheck_at, status));
        }
        if entry.ask_now {
            match self.can_ask(entry, now) {
                Some(authority) => {
                    let again = again(now, &facts, recheck_at);
                    return Some(question(id, entry, authority, again, status));
                }
                None => self.answer_without_asking(id, now),
            }
        }
        let known = Known {
            facts,
            authority,
            status,
            recheck_at,
        };
        self.planned(id, known, now)
    }

    /// What the plan says, or the order that somebody asked for.
    fn planned(&mut self, id: u64, known: Known, now: OffsetDateTime) -> Option<Verdict> {
        let entry = self.entries.get(&id)?;
        let (facts, recheck_at) = (&known.facts, known.recheck_at);
        Some(match entry.forced_action(plan(now, facts), facts, now) {
            Action::FetchRenewalInfo | Action::Order { .. }
                if !self.is_due_on_demand(entry, now) =>
            {
                wait(entry.look_again(now), known.status)
            }
            Action::CoveredByFiles { until } => wait(until.min(recheck_at), known.status),
            Action::Wait { until, reason } => {
                let held = matches!(reason, WaitReason::Backoff | WaitReason::IssuerUnreachable);
                let blocked = renewal::blocked(now, facts).filter(|_| held);
                let next_attempt = blocked.map(|(until, _)| until);
                let status = SubjectStatus {
                    next_attempt,
                    ..known.status
                };
                wait(until.min(recheck_at), status)
            }
            Action::FetchRenewalInfo => match self.issuing_authority(entry) {
                Some(authority) => {
                    let authority = Arc::clone(authority);
                    question(id, entry, authority, known.again(now), known.status)
                }
                None => wait(recheck_at, known.status),
            },
            Action::Order { reason, replaces } => match entry.subject.refusal(entry.issuer) {
                Some(refusal) => self.refuse(id, refusal, known.status, recheck_at),
                None => self.order(id, reason, replaces, known, now)?,
            },
        })
    }

    fn order(
        &self,
        id: u64,
        reason: OrderReason,
        replaces: bool,
        known: Known,
        now: OffsetDateTime,
    ) -> Option<Verdict> {
        let entry = self.entries.get(&id)?;
        let again = known.again(now);
        let work = match (entry.issuer, &entry.ledger, known.authority) {
            (IssuerKind::Internal, _, _) => Work::Internal,
            (IssuerKind::Acme, Some(_), Some(authority)) => Work::Order {
                reason,
                replaces,
                authority,
                reservation: None,
            },
            // Its ledger, or every CA's, could not be opened: that was logged, and is tried again
            // with the next configuration or restart.
            _ => return Some(wait(known.recheck_at, known.status)),
        };
        let ticket = self.ticket(id, entry, &work, reason, &known.facts, now);
        Some(Verdict::Work {
            work,
            ticket,
            again,
            status: known.status,
        })
    }

    fn ticket(
        &self,
        id: u64,
        entry: &Entry,
        work: &Work,
        reason: OrderReason,
        facts: &Facts,
        now: OffsetDateTime,
    ) -> Ticket {
        let expiry = facts.stored.as_ref().map(|stored| stored.not_after);
        let since = entry.waiting_since.unwrap_or(now);
        let counted = match work {
            Work::Order {
                replaces,
                authority,
                ..
            } => !self.is_exempt(entry, authority, *replaces, now),
            Work::Internal | Work::Ask { .. } => false,
        };
        Ticket {
            priority: renewal::priority(now, facts, reason),
            deadline: expiry.unwrap_or(since),
            id,
            counted,
        }
    }

    /// Files that come, go or are overdue may change who issues.
    fn choose_issuer(&mut self, id: u64, file_known: bool, now: OffsetDateTime) {
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        let stored = entry.stored.as_ref();
        let stored = stored.filter(|stored| now < stored.leaf.not_after);
        let issued_by = stored.map(|stored| IssuerKind::from(stored.meta.source));
        entry.issuer = entry.subject.issuer_now(file_known, issued_by);
    }

    fn refuse(
        &mut self,
        id: u64,
        refusal: String,
        status: SubjectStatus,
        at: OffsetDateTime,
    ) -> Verdict {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.forced = false;
            if !entry.refusal_logged {
                tracing::error!("{refusal}");
            }
            entry.refusal_logged = true;
        }
        let last_error = Some(refusal);
        wait(
            at,
            SubjectStatus {
                last_error,
                ..status
            },
        )
    }
}

fn wait(at: OffsetDateTime, status: SubjectStatus) -> Verdict {
    let status = Some(status);
    Verdict::Wait { at, status }
}

/// The sooner the certificate expires, the sooner it is asked about.
fn question(
    id: u64,
    entry: &Entry,
    authority: Arc<Authority>,
    again: OffsetDateTime,
    status: SubjectStatus,
) -> Verdict {
    let expiry = entry.stored.as_ref().map(|stored| stored.leaf.not_after);
    let priority = match entry.ask_now {
        true => Priority::Missing,
        false => Priority::Due,
    };
    let ticket = Ticket {
        priority,
        deadline: expiry.unwrap_or(OffsetDateTime::UNIX_EPOCH),
        id,
        counted: false,
    };
    Verdict::Work {
        work: Work::Ask { authority },
        ticket,
        again,
        status,
    }
}
