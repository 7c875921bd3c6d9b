use std::sync::atomic::{AtomicUsize, Ordering};

use time::macros::datetime;

use super::*;
use crate::acme::history::History;
use crate::acme::ledger::{Ledger, StoredRenewalInfo};
use crate::acme::order::Unfinished;
use crate::acme::renewal::{IssuerKind, SuggestedWindow};
use crate::acme::subject::Subject;
use crate::acme::surroundings::Coverage;
use crate::config::{CertificateAuthority, KeyType};
use crate::store::StateDir;
use crate::store::generation::{Meta, Source as Issued, StoredCertificate};
use crate::store::leaf::Leaf;

const NOW: OffsetDateTime = datetime!(2026-11-26 12:00 UTC);
const URL: &str = "https://ca.test/directory";
const LIFETIME: Duration = Duration::days(90);

struct Place {
    desk: Desk,
    /// Decisions: each asks once what files cover.
    decisions: Arc<AtomicUsize>,
    statuses: Statuses,
    _state: tempfile::TempDir,
}

impl Place {
    /// A desk with these names, each with a certificate of so many days of age, or none.
    fn new(certificates: &[(&str, Option<i64>)]) -> Place {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::open(directory.path()).unwrap();
        let mut config = CertificateAuthority::lets_encrypt();
        config.set_directory(URL).unwrap();
        config.parallel_orders = 2;
        config.order_rate = None;
        let (ledger, history) = (
            Arc::new(Ledger::in_memory()),
            Arc::new(History::in_memory()),
        );
        let authority = Authority::with_records(&state, config, ledger, history);
        let decisions = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&decisions);
        let surroundings = Surroundings {
            coverage: Arc::new(move |_| {
                count.fetch_add(1, Ordering::SeqCst);
                Coverage {
                    loaded: true,
                    ..Coverage::default()
                }
            }),
            may_renew: Arc::new(|_| Box::pin(std::future::ready(Ok(())))),
            asked: Arc::new(|_: &Name| None),
            reload_hint: Arc::new(|_| {}),
            ordered: Arc::new(|_, _| {}),
            swaps: None,
        };
        let statuses = Statuses::default();
        let mut desk = Desk::new(surroundings, Arc::clone(&statuses), Lanes::default());
        desk.is_writer = true;
        desk.set_authorities(vec![Arc::new(authority)]);
        for (name, age) in certificates {
            let age = age.map(Duration::days);
            desk.add(entry(name, age.map(|age| NOW - age)));
        }
        Place {
            desk,
            decisions,
            statuses,
            _state: directory,
        }
    }

    /// Turns until there is nothing more to do now; the names whose orders began.
    fn settle(&mut self, now: OffsetDateTime) -> Vec<String> {
        let mut begun = Vec::new();
        for _ in 0..1000 {
            let starts = self.desk.turn(now);
            for start in starts {
                let entry = self.desk.entry(start.id).unwrap();
                begun.push(entry.subject.name.to_string());
            }
            if self.desk.wake_at(now).is_none_or(|at| at > now) {
                return begun;
            }
        }
        panic!("it never settles");
    }

    fn decided(&self) -> usize {
        self.decisions.swap(0, Ordering::SeqCst)
    }

    fn fails(&mut self, name: &str, now: OffsetDateTime) {
        let id = self.desk.by_name(&name.parse().unwrap()).unwrap();
        let lane = Lane::Orders(URL.into());
        self.desk.ended(&lane, Some(id));
        let error = LastError::from("no".to_owned());
        let ledger = self.desk.entry(id).unwrap().ledger.clone().unwrap();
        let attempt = ledger.begin(crate::acme::ledger::Kind::Order, URL, None, now);
        let outcome = crate::acme::ledger::Outcome::Failed {
            class: crate::acme::error::Class::Retryable,
            message: "no".to_owned(),
            retry_after: None,
            elsewhere: false,
            held: false,
            report: None,
        };
        ledger.finish(attempt.unwrap(), outcome, &[], now).unwrap();
        self.desk.failed(id, now, error, Some(URL.to_owned()), true);
    }
}

fn entry(name: &str, not_before: Option<OffsetDateTime>) -> Entry {
    let parsed: Name = name.parse().unwrap();
    let subject = Subject {
        name: parsed.clone(),
        names: vec![parsed.clone()],
        issuer: IssuerKind::Acme,
        auto: true,
        takeover: None,
        only_takeover: false,
        key_type: KeyType::P256,
        wildcards: false,
    };
    let mut entry = Entry::new(subject, PathBuf::from(name), None);
    entry.ledger = Some(Arc::new(Ledger::in_memory()));
    let stored = not_before.map(|not_before| StoredCertificate {
        path: PathBuf::from(name),
        leaf: Leaf {
            der: Vec::new(),
            not_before,
            not_after: not_before + LIFETIME,
            names: vec![parsed.clone()],
            serial: "01".to_owned(),
            issuer: "CN=test".to_owned(),
            public_key: Vec::new(),
        },
        meta: Meta {
            ca: Some(URL.to_owned()),
            ..Meta::new(
                Issued::Acme,
                std::slice::from_ref(&parsed),
                KeyType::P256,
                not_before,
            )
        },
    });
    entry.set_stored(stored);
    entry
}

#[test]
fn what_has_nothing_to_serve_is_ordered_first() {
    let mut place = Place::new(&[
        ("due.test", Some(61)),
        ("fresh.test", Some(1)),
        ("revoked.test", Some(1)),
        ("late.test", Some(70)),
        ("expiring.test", Some(88)),
        ("none.test", None),
        ("expired.test", Some(93)),
    ]);
    // It expires last of all, and comes before what expires first.
    let revoked = place.desk.by_name(&"revoked.test".parse().unwrap());
    let entry = place.desk.entry(revoked.unwrap()).unwrap();
    let revocation = crate::acme::ledger::StoredRevocation {
        serial: "01".to_owned(),
        found_at: NOW,
        source: Some("http://crl.test".to_owned()),
        reason: None,
    };
    let ledger = entry.ledger.as_ref().unwrap();
    ledger.set_revocation(revocation).unwrap();
    assert_eq!(place.settle(NOW), ["expired.test", "none.test"]);
    for (ended, next) in [
        ("none.test", &["revoked.test"][..]),
        ("revoked.test", &["expiring.test"]),
        ("expired.test", &["late.test"]),
        ("late.test", &["due.test"]),
        ("due.test", &[]),
    ] {
        place.fails(ended, NOW);
        assert_eq!(place.settle(NOW), next);
    }
}

#[test]
fn a_host_that_wakes_up_finds_what_became_due_meanwhile() {
    let mut place = Place::new(&[("a.test", Some(0)), ("b.test", Some(20))]);
    assert!(place.settle(NOW).is_empty());
    let wake = place.desk.wake_at(NOW).unwrap();
    assert!(wake > NOW);
    // A month passes that no timer saw.
    let now = NOW + Duration::days(45);
    assert_eq!(place.settle(now), ["b.test"]);
}

#[test]
fn a_clock_that_is_set_back_is_believed_again() {
    let mut place = Place::new(&[("a.test", Some(70))]);
    // It was a year ahead, and everything failed there.
    let ahead = NOW + Duration::days(365);
    assert_eq!(place.settle(ahead), ["a.test"]);
    place.fails("a.test", ahead);
    assert!(place.settle(ahead).is_empty());
    assert!(place.desk.wake_at(ahead).unwrap() > ahead);
    assert_eq!(place.settle(NOW), ["a.test"], "at once, not in a year");
}

#[test]
fn one_event_is_one_decision_however_many_there_are() {
    let names: Vec<String> = (0..20_000).map(|n| format!("n{n}.test")).collect();
    let all: Vec<(&str, Option<i64>)> = names.iter().map(|it| (it.as_str(), Some(1))).collect();
    let mut place = Place::new(&all);
    assert!(place.settle(NOW).is_empty());
    assert!(place.decided() >= names.len());
    let now = NOW + Duration::SECOND;
    place.desk.names_changed(&["n7.test".parse().unwrap()]);
    place.settle(now);
    assert_eq!(place.decided(), 1);
    place.desk.names_changed(&["*.n7.test".parse().unwrap()]);
    let id = place.desk.by_name(&"n9.test".parse().unwrap());
    place.desk.ended(&Lane::Orders(URL.into()), id);
    place.settle(now);
    assert_eq!(place.decided(), 1);
    place.settle(now);
    assert_eq!(place.decided(), 0);
}

#[test]
fn orders_that_begin_together_break_no_limit_together() {
    let mut place = Place::new(&[("a.test", None), ("b.test", None), ("c.test", None)]);
    let config = CertificateAuthority {
        limits: crate::config::Limits {
            new_orders: Some(Limit {
                count: 1,
                per: std::time::Duration::from_secs(3600),
            }),
            ..crate::config::Limits::default()
        },
        ..place.desk.authorities[0].config.clone()
    };
    let state = StateDir::open(place._state.path()).unwrap();
    let (ledger, history) = (
        Arc::new(Ledger::in_memory()),
        Arc::new(History::in_memory()),
    );
    let authority = Authority::with_records(&state, config, ledger, history);
    place.desk.set_authorities(vec![Arc::new(authority)]);
    let starts = place.desk.turn(NOW);
    assert_eq!(starts.len(), 1);
    let later = NOW + Duration::HOUR;
    for minutes in [10, 20, 40, 59] {
        assert!(place.desk.turn(NOW + Duration::minutes(minutes)).is_empty());
    }
    assert!(place.desk.wake_at(NOW).unwrap() <= later);
    // It came to nothing before anything was sent: its place is free.
    drop(starts);
    place.fails("a.test", NOW);
    assert_eq!(place.desk.turn(later).len(), 1);
    let statuses = lock(&place.statuses);
    let queued = statuses.values().filter(|status| status.queued.is_some());
    assert_eq!(queued.count(), 2);
}

#[test]
fn a_limit_of_the_first_authority_is_an_order_at_the_next() {
    let mut place = Place::new(&[("a.test", None), ("b.test", None), ("due.test", Some(70))]);
    let state = StateDir::open(place._state.path()).unwrap();
    let base = place.desk.authorities[0].config.clone();
    let open = |url: &str, count: Option<u32>| {
        let mut config = base.clone();
        config.set_directory(url).unwrap();
        config.parallel_orders = if url == URL { 2 } else { 1 };
        config.limits.new_orders = count.map(|count| Limit {
            count,
            per: std::time::Duration::from_secs(3600),
        });
        let (ledger, history) = (
            Arc::new(Ledger::in_memory()),
            Arc::new(History::in_memory()),
        );
        Arc::new(Authority::with_records(&state, config, ledger, history))
    };
    let other = "https://other.test/directory";
    let both = vec![open(URL, Some(1)), open(other, None)];
    place.desk.set_authorities(both);
    let lanes = |starts: &[Start]| -> Vec<String> {
        let each = starts.iter().map(|start| start.lane.ca().to_owned());
        each.collect()
    };
    let mut starts = place.desk.turn(NOW);
    starts.extend(place.desk.turn(NOW));
    assert_eq!(lanes(&starts), [URL, other]);
    let statuses = lock(&place.statuses);
    let due = statuses
        .values()
        .find(|it| it.name.to_string() == "due.test");
    let (lane, _) = due.unwrap().queued.clone().unwrap();
    assert_eq!(
        lane.ca(),
        other,
        "there is no room there, but nothing else in the way"
    );
}

#[test]
fn a_ca_without_renewal_information_is_asked_about_one_certificate_a_day() {
    let names = ["a.test", "b.test", "c.test", "d.test", "e.test", "f.test"];
    let fresh = names.map(|name| (name, Some(1)));
    let mut place = Place::new(&fresh);
    let ids: Vec<u64> = place.desk.entries().map(|(id, _)| id).collect();
    for id in ids {
        place.desk.entry_mut(id).unwrap().certificate_id = Some(format!("ca.{id}"));
    }
    let first = place.settle(NOW);
    assert_eq!(first.len(), QUESTIONS.parallel, "nothing is known yet");
    place.desk.authorities[0].offers_no_renewal_info(NOW);
    for name in &first {
        let id = place.desk.by_name(&name.parse().unwrap());
        place.desk.ended(&Lane::Questions(URL.into()), id);
    }
    let (none, day) = (Vec::<String>::new(), Duration::days(1));
    assert_eq!(place.settle(NOW), none);
    assert_eq!(place.settle(NOW + Duration::hours(13)), none);
    // A clock that was ahead when that was found out proves nothing.
    place.desk.authorities[0].offers_no_renewal_info(NOW + 30 * day);
    assert_eq!(place.settle(NOW + 2 * day).len(), QUESTIONS.parallel);
}

/// A certificate of the week, and an attempt after it that came to no order: the next order is a
/// new one, and waits for the date of the limit.
#[test]
fn an_order_goes_on_with_what_is_on_disk_and_with_nothing_else() {
    let mut place = Place::new(&[("a.test", None)]);
    let config = CertificateAuthority {
        limits: crate::config::Limits {
            duplicate_certificates: Some(Limit {
                count: 1,
                per: std::time::Duration::from_secs(7 * 86_400),
            }),
            ..crate::config::Limits::default()
        },
        ..place.desk.authorities[0].config.clone()
    };
    let state = StateDir::open(place._state.path()).unwrap();
    let history = Arc::new(History::in_memory());
    let ledger = Arc::new(Ledger::in_memory());
    let authority = Authority::with_records(&state, config, ledger, Arc::clone(&history));
    place.desk.set_authorities(vec![Arc::new(authority)]);
    let number = history.order(&["a.test".parse().unwrap()], false, NOW);
    let number = number.unwrap();
    history.placed(number, "https://ca.test/order/1").unwrap();
    history.issued(number, NOW).unwrap();
    place.fails("a.test", NOW);
    let later = NOW + Duration::HOUR;
    let id = place.desk.by_name(&"a.test".parse().unwrap()).unwrap();
    let mut begin = |unfinished: Option<Unfinished>| {
        place.desk.entry_mut(id).unwrap().unfinished = unfinished;
        place.desk.check_at(id, OffsetDateTime::UNIX_EPOCH);
        let mut starts = place.desk.turn(later);
        let held = lock(&place.statuses)[&id].next_attempt;
        assert_eq!(starts.is_empty(), held == Some(NOW + Duration::WEEK));
        starts.pop().map(|start| start.work)
    };
    let order = |ca: &str, number| {
        let ca = ca.to_owned();
        Some(Unfinished { ca, number })
    };
    assert!(begin(None).is_none());
    assert!(begin(order("https://other.test/directory", number)).is_none());
    assert!(begin(order(URL, number + 1)).is_none());
    let work = begin(order(URL, number)).unwrap();
    assert!(matches!(
        work,
        Work::Order {
            reservation: None,
            ..
        }
    ));
}

#[test]
fn what_a_ca_has_said_of_a_renewal_holds_while_it_says_nothing_more() {
    let mut place = Place::new(&[("recalled.test", Some(20)), ("told.test", Some(20))]);
    for (name, days) in [("recalled.test", -2), ("told.test", 10)] {
        let id = place.desk.by_name(&name.parse().unwrap()).unwrap();
        let entry = place.desk.entry_mut(id).unwrap();
        entry.certificate_id = Some(name.to_owned());
        let start = NOW + Duration::days(days);
        let answer = crate::acme::renewal_info::Answer {
            window: SuggestedWindow::new(start, start + Duration::DAY).unwrap(),
            explanation_url: None,
            retry_after: None,
        };
        let info = StoredRenewalInfo::answered(name, None, &answer, NOW, 0.5);
        let ledger = entry.ledger.as_ref().unwrap();
        ledger.set_renewal_info(Some(info)).unwrap();
    }
    // Of some other certificate, just now.
    place.desk.authorities[0].offers_no_renewal_info(NOW);
    assert_eq!(place.settle(NOW), ["recalled.test"]);
    place.fails("recalled.test", NOW);
    assert!(place.settle(NOW).is_empty(), "nobody is asked");
    let id = place.desk.by_name(&"told.test".parse().unwrap()).unwrap();
    let told = lock(&place.statuses)[&id].next_renewal.unwrap();
    assert_eq!(told, NOW + Duration::days(10) + Duration::hours(12));
    let later = NOW + Duration::DAY + Duration::MINUTE;
    assert!(
        place.settle(later).contains(&"told.test".to_owned()),
        "the question"
    );
}
