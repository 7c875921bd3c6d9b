//! What the plan is asked with, and what people are told: one certificate's stored state, its
//! attempts, its renewal information, whose turn it is. Everything is read; nothing is changed.

use std::sync::Arc;

use time::OffsetDateTime;

use super::Worker;
use super::entry::Entry;
use super::handle::SubjectStatus;
use super::turn::{Covered, covered, whose_turn};
use crate::acme::account::Authority;
use crate::acme::ledger::{Kind, Outcome, Record};
use crate::acme::limits::Broken;
use crate::acme::renewal::{
    self, Attempts, Facts, IssuerKind, Jitter, OrderReason, RenewalInfo, Stored, Wanted, fraction,
};
use crate::acme::subject::{Subject, can_prove_wildcards};
use crate::certificate::name::Name;
use crate::store::generation::StoredCertificate;
use crate::store::key_type_from_name;

impl Worker {
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
        let seed = subject.name.to_string();
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
            renewal_info: self.renewal_info(entry),
            jitter: Jitter {
                due: fraction(&format!("due {seed} {:?}", entry.serial())),
                retry: fraction(&format!("retry {seed} {:?}", attempts.last)),
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
        let last = entry
            .ledger
            .as_ref()
            .and_then(|ledger| ledger.last(Kind::Order));
        let for_renewal_info = last.is_some_and(|record| {
            record.outcome == Some(Outcome::Ok)
                && record.reason.as_deref() == Some(OrderReason::RenewalInfo.as_str())
        });
        Stored {
            not_before: stored.leaf.not_before,
            not_after: stored.leaf.not_after,
            names: stored.leaf.names.clone(),
            key_type: key_type_from_name(&stored.meta.key_type),
            issuer: stored.meta.source.into(),
            issuer_configured: ca.is_none_or(configured),
            issued_at: stored.meta.issued_at,
            ordered_for_renewal_info: for_renewal_info,
        }
    }

    /// Renewal information comes from the CA that issued, which may not be the next in turn.
    pub(super) fn renewal_info(&self, entry: &Entry) -> RenewalInfo {
        let (Some(ledger), Some(id)) = (&entry.ledger, &entry.certificate_id) else {
            return RenewalInfo::default();
        };
        if self.issuing_authority(entry).is_none() {
            return RenewalInfo::default();
        }
        match ledger.renewal_info(id) {
            Some(info) => info.facts(),
            None => RenewalInfo {
                supported: true,
                ..RenewalInfo::default()
            },
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

    /// The limit that an order would break now.
    pub(super) fn broken_limit(
        &self,
        entry: &Entry,
        authority: Option<&Authority>,
        replaces: bool,
        now: OffsetDateTime,
    ) -> Option<Broken> {
        let authority = authority?;
        let stored = entry.stored.as_ref();
        let same_ca = stored.is_some_and(|it| it.meta.ca.as_deref() == Some(authority.url()));
        let informed = entry.certificate_id.is_some() && entry.has_renewal_info();
        let exempt = replaces && same_ca && informed;
        authority.broken_by(&entry.subject.names, exempt, now)
    }

    /// Another authority that can be asked now, where a limit at `limited` holds an order back.
    pub(super) fn unlimited_authority(
        &self,
        entry: &Entry,
        limited: &Authority,
        now: OffsetDateTime,
    ) -> Option<Arc<Authority>> {
        let ledger = entry.ledger.as_ref()?;
        let others = self.able_authorities(&entry.subject).into_iter();
        let mut others = others.filter(|other| other.url() != limited.url());
        let (facts, _) = self.facts(entry, now, None);
        let can_be_asked = |other: &&Arc<Authority>| {
            let attempts = ledger.attempts(Kind::Order, Some(other.url()));
            let session = other.ledger.attempts(Kind::Session, None);
            let given_up = attempts.elsewhere || session.elsewhere;
            let facts = Facts {
                attempts,
                session,
                ..facts.clone()
            };
            // To this one it is a first order, whatever it replaces elsewhere.
            !given_up
                && renewal::blocked(now, &facts).is_none()
                && other.broken_by(&entry.subject.names, false, now).is_none()
        };
        others.find(can_be_asked).map(Arc::clone)
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
                (
                    own.unwrap_or_default(),
                    authority.ledger.attempts(Kind::Session, None),
                )
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

    pub(super) fn status(
        &self,
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
        let recorded = |record: Option<Record>| match record?.outcome {
            Some(Outcome::Failed { message, .. }) => Some(message),
            Some(_) => None,
            None => Some("the last attempt was interrupted".to_owned()),
        };
        let last_error = entry
            .last_error
            .clone()
            .or_else(|| recorded(session_error))
            .or_else(|| recorded(own_error));
        let info = entry.ledger.as_ref().zip(entry.certificate_id.as_ref());
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
            explanation_url: info.and_then(|(ledger, id)| ledger.renewal_info(id)?.explanation_url),
            covered_by_files_until,
            running: entry.running,
            on_demand: entry.on_demand,
        }
    }

    /// The CA that is next in turn, and when an order there may start if something holds it up.
    pub(super) fn next_attempt(
        &self,
        id: u64,
        now: OffsetDateTime,
    ) -> (Option<String>, Option<OffsetDateTime>) {
        let Some(entry) = self.entries.get(&id) else {
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
