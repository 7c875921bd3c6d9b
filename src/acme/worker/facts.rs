//! What the plan is asked with, and what people are told: one certificate's stored state, its
//! attempts, its renewal information, whose turn it is. Everything is read; nothing is changed.

use std::sync::Arc;

use time::OffsetDateTime;

use super::desk::Desk;
use super::entry::Entry;
use super::handle::SubjectStatus;
use super::turn::{Covered, covered, whose_turn};
use crate::acme::account::Authority;
use crate::acme::error::LastError;
use crate::acme::job::lock_look;
use crate::acme::ledger::{Kind, Outcome, Record, StoredRenewalInfo, StoredRevocation};
use crate::acme::limits::Broken;
use crate::acme::renewal::{
    self, Attempts, Facts, IssuerKind, Jitter, OrderReason, RenewalInfo, Stored, Wanted, fraction,
};
use crate::acme::subject::{Subject, can_prove_wildcards};
use crate::certificate::name::Name;
use crate::store::generation::StoredCertificate;
use crate::store::key_type_from_name;

impl Desk {
    /// What the live table knows about all names of a subject. `None`: not loaded yet.
    pub(super) fn coverage(&self, subject: &Subject) -> Option<Covered> {
        let names = subject.names.iter();
        let each = names.map(|name| (self.surroundings.coverage)(name));
        covered(each, subject.auto, subject.takeover.is_some())
    }

    pub(super) fn facts(
        &self,
        entry: &Entry,
        now: OffsetDateTime,
        covered_by_file_until: Option<OffsetDateTime>,
    ) -> (Facts, Option<Arc<Authority>>) {
        let subject = &entry.subject;
        let (authority, attempts, session) = match entry.issuer {
            IssuerKind::Internal => (None, entry.internal_attempts, Attempts::default()),
            IssuerKind::Acme => self.next_authority(entry, now),
        };
        // Without a failure nothing waits, so nothing waits longer by jitter either.
        let has_failed = attempts.last.or(session.last).is_some();
        let retry_seed = || format!("retry {} {:?}", subject.name, attempts.last);
        let facts = Facts {
            wanted: Wanted {
                names: subject.names.clone(),
                key_type: subject.key_type,
                issuer: entry.issuer,
            },
            stored: entry
                .stored
                .as_ref()
                .map(|stored| self.stored_facts(entry, stored)),
            renewal_info: self.renewal_info(entry, now),
            jitter: Jitter {
                due: entry.due_jitter,
                retry: if has_failed {
                    fraction(&retry_seed())
                } else {
                    0.0
                },
            },
            attempts,
            session,
            covered_by_file_until,
        };
        (facts, authority)
    }

    pub(super) fn stored_facts(&self, entry: &Entry, stored: &StoredCertificate) -> Stored {
        let ca = stored.meta.ca.as_deref();
        let configured = |ca: &str| {
            self.authorities
                .iter()
                .any(|authority| authority.url() == ca)
        };
        let early = [OrderReason::RenewalInfo, OrderReason::Revoked].map(OrderReason::as_str);
        let is_early = |record: &Record| {
            let reason = record.reason.as_deref();
            record.outcome == Some(Outcome::Ok) && reason.is_some_and(|it| early.contains(&it))
        };
        let ledger = entry.ledger.as_ref();
        let ordered_early = ledger.and_then(|ledger| ledger.read_last(Kind::Order, is_early));
        let ordered_early = ordered_early.unwrap_or(false);
        let revocation = entry.known_revocation();
        Stored {
            not_before: stored.leaf.not_before,
            not_after: stored.leaf.not_after,
            names: stored.leaf.names.clone(),
            key_type: key_type_from_name(&stored.meta.key_type),
            issuer: stored.meta.source.into(),
            issuer_configured: ca.is_none_or(configured),
            issued_at: stored.meta.issued_at,
            // What people revoke is replaced at once, however often they do.
            ordered_early: ordered_early
                && !revocation.as_ref().is_some_and(StoredRevocation::is_ours),
            revoked: revocation.is_some(),
        }
    }

    /// Renewal information comes from the CA that issued, which may not be the next in turn.
    pub(super) fn renewal_info(&self, entry: &Entry, now: OffsetDateTime) -> RenewalInfo {
        let (Some(ledger), Some(id)) = (&entry.ledger, &entry.certificate_id) else {
            return RenewalInfo::default();
        };
        let Some(authority) = self.issuing_authority(entry) else {
            return RenewalInfo::default();
        };
        let unknown = RenewalInfo {
            supported: true,
            ..RenewalInfo::default()
        };
        let info = ledger.read_renewal_info(id, StoredRenewalInfo::facts);
        let info = info.unwrap_or(unknown);
        match authority.silent_until(now) {
            None => info,
            // What it has said holds; it is only not asked.
            Some(until) if info.window.is_some() => RenewalInfo {
                next_fetch: Some(until),
                ..info
            },
            Some(_) => RenewalInfo::default(),
        }
    }

    pub(super) fn issuing_authority(&self, entry: &Entry) -> Option<&Arc<Authority>> {
        let ca = entry.stored.as_ref()?.meta.ca.as_deref()?;
        self.authorities
            .iter()
            .find(|authority| authority.url() == ca)
    }

    /// The authorities that the subject can be ordered from: a wildcard needs a challenge that
    /// proves it.
    fn able_authorities(&self, subject: &Subject) -> Vec<&Arc<Authority>> {
        let wildcard = subject.names.iter().any(Name::is_wildcard);
        let able =
            |authority: &&Arc<Authority>| !wildcard || can_prove_wildcards(&authority.config);
        self.authorities.iter().filter(able).collect()
    }

    /// Whether the CA counts an order as nothing: it is told what that renews (RFC 9773 section 5),
    /// or it has that order already.
    pub(super) fn is_exempt(
        &self,
        entry: &Entry,
        authority: &Authority,
        replaces: bool,
        now: OffsetDateTime,
    ) -> bool {
        let stored = entry.stored.as_ref();
        let same_ca = stored.is_some_and(|it| it.meta.ca.as_deref() == Some(authority.url()));
        let renews = replaces && same_ca && entry.certificate_id.is_some();
        // Without renewal information in its directory it is not told.
        let is_told = entry.can_be_replaced() && authority.silent_until(now).is_none();
        renews && is_told || goes_on(entry, authority, now)
    }

    /// The limit that an order would break now.
    pub(super) fn broken_limit(
        &self,
        entry: &Entry,
        authority: &Authority,
        replaces: bool,
        now: OffsetDateTime,
    ) -> Option<Broken> {
        let exempt = self.is_exempt(entry, authority, replaces, now);
        authority.broken_by(&entry.subject.names, exempt, now)
    }

    /// The authority whose turn it is, with the attempts that count there.
    pub(super) fn next_authority(
        &self,
        entry: &Entry,
        now: OffsetDateTime,
    ) -> (Option<Arc<Authority>>, Attempts, Attempts) {
        let able = self.able_authorities(&entry.subject);
        let attempts: Vec<(Attempts, Attempts)> = able
            .iter()
            .map(|authority| {
                let own = entry
                    .ledger
                    .as_ref()
                    .map(|ledger| ledger.attempts(Kind::Order, Some(authority.url())));
                let own = own.unwrap_or_default();
                let elsewhere = own.elsewhere || self.is_limited(entry, authority, &able, now);
                let own = Attempts { elsewhere, ..own };
                (own, authority.ledger.attempts(Kind::Session, None))
            })
            .collect();
        let turn = whose_turn(&attempts, now);
        match (able.get(turn), attempts.get(turn)) {
            (Some(authority), Some((own, session))) => {
                (Some(Arc::clone(authority)), *own, *session)
            }
            _ => (None, Attempts::default(), Attempts::default()),
        }
    }

    /// Whether one more order would break a limit of this CA, so that another has its turn.
    fn is_limited(
        &self,
        entry: &Entry,
        authority: &Authority,
        able: &[&Arc<Authority>],
        now: OffsetDateTime,
    ) -> bool {
        let alive = |it: &StoredCertificate| now < it.leaf.not_after;
        let replaces = entry.stored.as_ref().is_some_and(alive);
        able.len() > 1 && self.broken_limit(entry, authority, replaces, now).is_some()
    }

    pub(super) fn status(
        &self,
        id: u64,
        entry: &Entry,
        facts: &Facts,
        authority: Option<&Authority>,
        covered_by_files_until: Option<OffsetDateTime>,
    ) -> SubjectStatus {
        let session_error = authority
            .filter(|_| facts.session.failures > 0)
            .and_then(|authority| authority.ledger.last(Kind::Session));
        let own_error = entry
            .ledger
            .as_ref()
            .filter(|_| facts.attempts.failures > 0);
        let own_error = own_error.and_then(|ledger| ledger.last(Kind::Order));
        let last_error = entry
            .last_error
            .clone()
            .or_else(|| recorded(session_error))
            .or_else(|| recorded(own_error));
        let (last_error, error) = match last_error {
            Some(LastError { text, report }) => (Some(text), report),
            None => (None, None),
        };
        SubjectStatus {
            name: entry.subject.name.clone(),
            names: entry.subject.names.clone(),
            issuer: entry.issuer,
            ca: authority.map(|authority| authority.url().to_owned()),
            not_after: entry.stored.as_ref().map(|stored| stored.leaf.not_after),
            next_renewal: renewal::next_renewal(facts),
            next_attempt: None,
            last_error,
            attempts: facts.attempts.failures.max(facts.session.failures),
            explanation_url: entry.explanation_url(),
            covered_by_files_until,
            running: entry.running,
            queued: None,
            revoked: entry.known_revocation().map(|it| it.to_string()),
            revocation_error: self.revocation_error(id),
            error,
            preflight: lock_look(&entry.look).checks.clone(),
            on_demand: entry.on_demand,
        }
    }

    /// The CA that is next in turn, and when an order there may start if something holds it up.
    pub(super) fn next_attempt(
        &self,
        id: u64,
        now: OffsetDateTime,
    ) -> (Option<String>, Option<OffsetDateTime>) {
        let Some(entry) = self.entry(id) else {
            return (None, None);
        };
        let (facts, authority) = self.facts(entry, now, None);
        let blocked = renewal::blocked(now, &facts).map(|(until, _)| until);
        (
            authority.map(|authority| authority.url().to_owned()),
            blocked,
        )
    }
}

/// Whether the next order is to be one that the CA has: whoever runs it and finds that gone looks
/// at the limits.
fn goes_on(entry: &Entry, authority: &Authority, now: OffsetDateTime) -> bool {
    let unfinished = entry.unfinished.as_ref();
    unfinished
        .filter(|it| it.ca == authority.url())
        .is_some_and(|it| {
            let names: Vec<String> = entry.subject.names.iter().map(Name::to_string).collect();
            let history = &authority.history;
            history.judge(|past| past.is_open(it.number, &names, now))
        })
}

/// What the ledger says of a failed attempt.
fn recorded(record: Option<Record>) -> Option<LastError> {
    match record?.outcome {
        Some(Outcome::Failed {
            message, report, ..
        }) => Some(LastError {
            text: message,
            report,
        }),
        Some(_) => None,
        None => Some(LastError::from(
            "the last attempt was interrupted".to_owned(),
        )),
    }
}
