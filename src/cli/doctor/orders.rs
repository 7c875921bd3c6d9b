//! What came of the last order of a name, and when the next one is made: in the words of the
//! running process, or else of the ledger on disk.

use time::OffsetDateTime;

use crate::acme::account::slug;
use crate::acme::error::{Class, ErrorReport};
use crate::acme::ledger::{Kind, Ledger, Outcome, Record};
use crate::acme::order::challenge_name;
use crate::acme::preflight::{Check, Topic};
use crate::acme::renewal::{self, Facts, IssuerKind, Jitter, RenewalInfo, Wanted};
use crate::acme::subject::Subject;
use crate::admin::status::{CertificateStatus, Status};
use crate::certificate::name::Name;
use crate::clock;
use crate::config::{CertificateAuthority, ChallengeType, KeyType};
use crate::store::StateDir;

/// As the running process has it; `None` where it has nothing of the name.
pub(super) fn of_server(status: &Status, name: &Name) -> Option<Check> {
    let name = name.to_string();
    let rows = status.certificates.iter();
    // A file beside it is not ours to order.
    let mut ours = rows.filter(|row| row.source != "file" && row.names.contains(&name));
    Some(judge(ours.next()?))
}

fn judge(row: &CertificateStatus) -> Check {
    let next = row.next_attempt.as_ref();
    let next = next.map(|at| format!("the next attempt is at {at}"));
    match (&row.last_error, &row.not_after) {
        (Some(error), served) => failed(error, row.error.as_deref(), next, served.is_some()),
        (None, _) if row.in_progress => Check::ok(Topic::Order, "one is in progress"),
        (None, Some(until)) => {
            let renewal = row.next_renewal.as_ref();
            let renewal = renewal.map(|at| format!(", renewed at {at}"));
            let renewal = renewal.unwrap_or_default();
            Check::ok(
                Topic::Order,
                format!("a certificate is served, valid until {until}{renewal}"),
            )
        }
        (None, None) => {
            let next = next.unwrap_or_else(|| "it waits for its turn".to_owned());
            Check::ok(Topic::Order, format!("none was made yet; {next}"))
        }
    }
}

/// What time heals, what is only late, and what was looked at anew is no failure.
fn failed(error: &str, report: Option<&ErrorReport>, next: Option<String>, served: bool) -> Check {
    let class = report.map(|report| report.class);
    let passes = matches!(class, Some(Class::Retryable | Class::RateLimited))
        || report.is_some_and(is_looked_at);
    let remedy = match (class, next) {
        (Some(Class::Operator), Some(next)) => {
            format!(
                "{next}; once this is mended, `perennial certs renew NAME` need not wait for it"
            )
        }
        (_, Some(next)) => next,
        (_, None) => "`perennial certs renew NAME` tries it again".to_owned(),
    };
    match passes || (class.is_none() && served) {
        true => Check::warning(Topic::Order, error, remedy),
        false => Check::fails(Topic::Order, error, remedy),
    }
}

/// Whether another finding says how it is now: it may have been mended since.
fn is_looked_at(report: &ErrorReport) -> bool {
    let by_problem = [
        "accountDoesNotExist",
        "caa",
        "externalAccountRequired",
        "invalidProfile",
        "userActionRequired",
    ];
    let is_one = |problem: &String| by_problem.contains(&problem.as_str());
    let in_dns = [ChallengeType::Dns01, ChallengeType::DnsPersist01].map(challenge_name);
    let is_in_dns = |challenge: &String| in_dns.contains(&challenge.as_str());
    report.problem.as_ref().is_some_and(is_one) || report.challenge.as_ref().is_some_and(is_in_dns)
}

/// As the ledger has it, of one CA; `None` where nothing failed there last.
pub(super) fn on_disk(
    state: &StateDir,
    authority: &CertificateAuthority,
    subject: &Subject,
) -> Option<Check> {
    let url = &authority.directory;
    let own = Ledger::peek(state, &subject.name, subject.key_type);
    let session = Ledger::peek_authority(state, &slug(url));
    let count = |ledger: &Option<Ledger>, kind, ca| {
        let ledger = ledger.as_ref();
        ledger.map(|it| it.attempts(kind, ca)).unwrap_or_default()
    };
    let facts = Facts {
        attempts: count(&own, Kind::Order, Some(url)),
        session: count(&session, Kind::Session, None),
        ..nothing_else(&subject.names, subject.key_type)
    };
    let (ledger, kind) = match (facts.session.failures, facts.attempts.failures) {
        (0, 0) => return None,
        (0, _) => (own, Kind::Order),
        _ => (session, Kind::Session),
    };
    let next = renewal::blocked(clock::now(), &facts).map(|(at, _)| at);
    Some(recorded(&ledger?.last(kind)?, next))
}

fn nothing_else(names: &[Name], key_type: KeyType) -> Facts {
    Facts {
        wanted: Wanted {
            names: names.to_vec(),
            key_type,
            issuer: IssuerKind::Acme,
        },
        stored: None,
        renewal_info: RenewalInfo::default(),
        jitter: Jitter {
            due: 0.0,
            retry: 0.0,
        },
        attempts: Default::default(),
        session: Default::default(),
        covered_by_file_until: None,
    }
}

fn recorded(record: &Record, next: Option<OffsetDateTime>) -> Check {
    let next = match next {
        Some(at) => format!("not before {} unless it is asked for", clock::rfc3339(at)),
        None => "as soon as perennial runs".to_owned(),
    };
    let next = Some(format!("the next attempt is made {next}"));
    let at = clock::rfc3339(record.finished_at.unwrap_or(record.started_at));
    match &record.outcome {
        Some(Outcome::Failed {
            message, report, ..
        }) => {
            let error = format!("the last one failed at {at}: {message}");
            failed(&error, report.as_deref(), next, false)
        }
        _ => {
            let error = format!("the last one, of {at}, was interrupted");
            // Whatever it was, it is gone on with.
            failed(&error, None, next, true)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::acme::error::AcmeError;
    use crate::acme::preflight::Verdict;

    #[test]
    fn what_time_heals_is_no_failure() {
        use Class::{Operator, Permanent, RateLimited, Retryable};
        let verdict = |class: Option<Class>, served| {
            let report = class.map(|class| AcmeError::new(class, "order", "no").report());
            failed("no", report.as_ref(), None, served).verdict
        };
        let mended = ErrorReport {
            problem: Some("invalidProfile".to_owned()),
            ..AcmeError::new(Operator, "order", "no").report()
        };
        let looked_at = failed("no", Some(&mended), None, false);
        assert_eq!(looked_at.verdict, Verdict::Warning);
        for (class, served, expected) in [
            (Some(Retryable), false, Verdict::Warning),
            (Some(RateLimited), false, Verdict::Warning),
            (Some(Operator), true, Verdict::Fails),
            (Some(Permanent), true, Verdict::Fails),
            (None, true, Verdict::Warning),
            (None, false, Verdict::Fails),
        ] {
            assert_eq!(verdict(class, served), expected, "{class:?} {served}");
        }
    }
}
