use time::macros::datetime;

use super::*;

const START: OffsetDateTime = datetime!(2026-11-01 0:00 UTC);

fn names(texts: &[&str]) -> Vec<Name> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn facts() -> Facts {
    Facts {
        wanted: Wanted {
            names: names(&["example.com"]),
            key_type: KeyType::P256,
            issuer: IssuerKind::Acme,
        },
        stored: None,
        renewal_info: RenewalInfo::default(),
        attempts: Attempts::default(),
        session: Attempts::default(),
        covered_by_file_until: None,
        jitter: Jitter::default(),
    }
}

fn stored(lifetime: Duration) -> Stored {
    Stored {
        not_before: START,
        not_after: START + lifetime,
        names: names(&["example.com"]),
        key_type: Some(KeyType::P256),
        issuer: IssuerKind::Acme,
        issuer_configured: true,
        issued_at: START,
        ordered_early: false,
        revoked: false,
    }
}

fn with(lifetime: Duration) -> Facts {
    Facts {
        stored: Some(stored(lifetime)),
        ..facts()
    }
}

fn failed(failures: u32, last: OffsetDateTime) -> Attempts {
    Attempts {
        failures,
        last: Some(last),
        ..Attempts::default()
    }
}

fn suggested(start: OffsetDateTime, end: OffsetDateTime) -> SuggestedWindow {
    SuggestedWindow::new(start, end).unwrap()
}

fn window(start: OffsetDateTime, end: OffsetDateTime, selected: OffsetDateTime) -> RenewalInfo {
    RenewalInfo {
        supported: true,
        window: Some(Window::chosen(suggested(start, end), selected)),
        next_fetch: None,
    }
}

fn order(reason: OrderReason, replaces: bool) -> Action {
    Action::Order { reason, replaces }
}

fn wait(until: OffsetDateTime, reason: WaitReason) -> Action {
    Action::Wait { until, reason }
}

#[test]
fn no_certificate_is_ordered_at_once() {
    assert_eq!(plan(START, &facts()), order(OrderReason::First, false));
}

#[test]
fn files_that_cover_the_name_win_until_they_expire() {
    let mut facts = facts();
    let until = START + Duration::days(3);
    facts.covered_by_file_until = Some(until);
    assert_eq!(plan(START, &facts), Action::CoveredByFiles { until });
    assert_eq!(plan(until, &facts), order(OrderReason::First, false));
}

#[test]
fn due_by_lifetime_fraction() {
    for (lifetime, due) in [
        (Duration::days(90), Duration::days(60)),
        (Duration::days(45), Duration::days(30)),
        (Duration::days(10), Duration::hours(160)),
        (Duration::hours(160), Duration::hours(80)),
        (Duration::seconds(40), Duration::seconds(20)),
    ] {
        let facts = with(lifetime);
        let at = START + due;
        let just_before = at - Duration::milliseconds(1);
        assert_eq!(
            plan(just_before, &facts),
            wait(at, WaitReason::NotDue),
            "{lifetime}"
        );
        assert_eq!(
            plan(at, &facts),
            order(OrderReason::Due, true),
            "{lifetime}"
        );
        assert_eq!(next_renewal(&facts), Some(at));
    }
}

#[test]
fn jitter_is_at_most_a_hundredth_of_the_lifetime_and_earlier() {
    let mut facts = with(Duration::days(90));
    facts.jitter.due = 0.5;
    let due = START + Duration::days(60) - Duration::days(90) * 0.005;
    assert_eq!(next_renewal(&facts), Some(due));
    facts.jitter.due = 7.0;
    assert_eq!(
        next_renewal(&facts),
        Some(START + Duration::days(60) - Duration::days(90) / 100)
    );
}

#[test]
fn fractions_repeat_and_spread() {
    assert_eq!(fraction("a"), fraction("a"));
    let all: Vec<f64> = (0..1000).map(|n| fraction(&format!("host-{n}"))).collect();
    assert!(all.iter().all(|f| (0.0..1.0).contains(f)));
    let mean = all.iter().sum::<f64>() / 1000.0;
    assert!((0.45..0.55).contains(&mean), "{mean}");
}

#[test]
fn emergency_and_expiry() {
    let facts = with(Duration::days(100));
    let late = START + Duration::days(96);
    assert_eq!(plan(late, &facts), order(OrderReason::Emergency, true));
    let expired = START + Duration::days(100);
    assert_eq!(plan(expired, &facts), order(OrderReason::Expired, false));
}

#[test]
fn the_emergency_of_short_lifetimes_leaves_time_for_an_order() {
    for (lifetime, left) in [
        (Duration::days(90), Duration::hours(108)),
        (Duration::hours(160), Duration::hours(8)),
        (Duration::minutes(20), Duration::minutes(2)),
        (Duration::seconds(40), Duration::seconds(10)),
    ] {
        let mut facts = with(lifetime);
        let end = START + lifetime;
        facts.renewal_info = window(START, end, end - Duration::MILLISECOND);
        assert_eq!(next_renewal(&facts), Some(end - left), "{lifetime}");
    }
}

#[test]
fn what_does_not_fit_is_ordered_anew() {
    let now = START + Duration::days(1);
    let mut changed = with(Duration::days(90));
    changed.wanted.names = names(&["example.com", "www.example.com"]);
    assert_eq!(plan(now, &changed), order(OrderReason::NamesChanged, true));
    changed.wanted.names = names(&["other.org"]);
    assert_eq!(plan(now, &changed), order(OrderReason::NamesChanged, false));

    let mut fewer = with(Duration::days(90));
    fewer.stored.as_mut().unwrap().names = names(&["example.com", "www.example.com"]);
    assert!(
        matches!(plan(now, &fewer), Action::Wait { .. }),
        "one name less is no hurry"
    );

    let mut key = with(Duration::days(90));
    key.wanted.key_type = KeyType::P384;
    assert_eq!(plan(now, &key), order(OrderReason::KeyTypeChanged, true));

    let mut issuer = with(Duration::days(90));
    issuer.stored.as_mut().unwrap().issuer = IssuerKind::Internal;
    assert_eq!(plan(now, &issuer), order(OrderReason::IssuerChanged, false));
    let mut ca = with(Duration::days(90));
    ca.stored.as_mut().unwrap().issuer_configured = false;
    assert!(matches!(
        plan(now, &ca),
        Action::Order {
            reason: OrderReason::IssuerChanged,
            ..
        }
    ));
}

#[test]
fn renewal_information_moves_the_renewal_but_not_past_the_emergency() {
    let at = |days| START + Duration::days(days);
    let mut facts = with(Duration::days(100));
    let later = Some(at(1) + Duration::hours(6));
    for (selected, now, expected) in [
        // Earlier than two thirds.
        (at(10), at(10), order(OrderReason::RenewalInfo, true)),
        // In the past: now.
        (at(-5), at(1), order(OrderReason::RenewalInfo, true)),
        // Later than two thirds is the CA's wish.
        (at(80), at(79), wait(at(80), WaitReason::NotDue)),
        (at(80), at(80), order(OrderReason::RenewalInfo, true)),
        // Never past the last twentieth.
        (at(99), at(94), wait(at(95), WaitReason::NotDue)),
        (at(99), at(95), order(OrderReason::Emergency, true)),
        (at(500), at(95), order(OrderReason::Emergency, true)),
    ] {
        facts.renewal_info = window(selected - Duration::DAY, selected + Duration::DAY, selected);
        facts.renewal_info.next_fetch = later.map(|_| now + Duration::HOUR * 24);
        let action = plan(now, &facts);
        // Questions that are due sooner than the renewal only shorten the wait.
        match (&action, &expected) {
            (Action::Wait { until, .. }, Action::Wait { until: wanted, .. }) => {
                assert_eq!(*until, (*wanted).min(now + Duration::DAY));
            }
            _ => assert_eq!(action, expected, "selected {selected}, now {now}"),
        }
    }
}

#[test]
fn an_instant_in_the_past_still_waits_for_the_backoff() {
    let mut facts = with(Duration::days(90));
    let now = START + Duration::days(2);
    facts.renewal_info = window(START, START + Duration::DAY, START + Duration::HOUR);
    facts.renewal_info.next_fetch = Some(now + Duration::HOUR);
    facts.attempts = failed(2, now);
    let until = now + Duration::minutes(10);
    assert_eq!(plan(now, &facts), wait(until, WaitReason::Backoff));
    assert_eq!(plan(until, &facts), order(OrderReason::RenewalInfo, true));
}

#[test]
fn a_window_that_is_none_is_ignored() {
    assert_eq!(SuggestedWindow::new(START, START), None);
    assert_eq!(SuggestedWindow::new(START, START - Duration::HOUR), None);
    let mut facts = with(Duration::days(90));
    facts.renewal_info = window(START, START + Duration::HOUR, START);
    facts.renewal_info.supported = false;
    assert_eq!(next_renewal(&facts), Some(START + Duration::days(60)));
}

#[test]
fn the_chosen_instant_stays_while_the_window_does() {
    let end = START + Duration::days(2);
    let same = suggested(START, end);
    let first = Window::choose(None, same, 0.25);
    assert_eq!(first.selected, START + Duration::hours(12));
    assert_eq!(Window::choose(Some(&first), same, 0.9), first);
    let later = suggested(START, end + Duration::DAY);
    let moved = Window::choose(Some(&first), later, 0.5);
    assert_eq!(moved.selected, START + Duration::hours(36));
}

#[test]
fn questions_to_the_ca() {
    let mut facts = with(Duration::days(90));
    let now = START + Duration::DAY;
    facts.renewal_info.supported = true;
    assert_eq!(plan(now, &facts), Action::FetchRenewalInfo, "never asked");
    let soon = now + Duration::hours(6);
    facts.renewal_info.next_fetch = Some(soon);
    assert_eq!(plan(now, &facts), wait(soon, WaitReason::NotDue));
    assert_eq!(plan(soon, &facts), Action::FetchRenewalInfo);
    // A date that only a wrong clock can have written.
    facts.renewal_info.next_fetch = Some(now + Duration::days(400));
    assert_eq!(plan(now, &facts), Action::FetchRenewalInfo);
    // At the due date the CA is asked once more, and only then is ordered.
    let due = START + Duration::days(60);
    facts.renewal_info.next_fetch = Some(due);
    assert_eq!(plan(due, &facts), Action::FetchRenewalInfo);
    facts.renewal_info.next_fetch = Some(due + Duration::HOUR);
    assert_eq!(plan(due, &facts), order(OrderReason::Due, true));
    // Not in an emergency, and never for an expired one.
    facts.renewal_info.next_fetch = None;
    assert_eq!(
        plan(START + Duration::days(88), &facts),
        order(OrderReason::Emergency, true)
    );
    assert_eq!(
        plan(START + Duration::days(90), &facts),
        order(OrderReason::Expired, false)
    );
    // Nor of our own CA.
    facts.wanted.issuer = IssuerKind::Internal;
    facts.stored.as_mut().unwrap().issuer = IssuerKind::Internal;
    assert_eq!(plan(now, &facts), wait(due, WaitReason::NotDue));
}

#[test]
fn an_unreachable_ca_is_not_asked() {
    let mut facts = with(Duration::days(90));
    let now = START + Duration::DAY;
    facts.renewal_info.supported = true;
    facts.session = failed(3, now);
    let until = now + Duration::minutes(4);
    assert_eq!(
        plan(now, &facts),
        wait(until, WaitReason::IssuerUnreachable)
    );
    assert_eq!(plan(until, &facts), Action::FetchRenewalInfo);
    facts.stored = None;
    assert_eq!(
        plan(now, &facts),
        wait(until, WaitReason::IssuerUnreachable)
    );
    assert_eq!(plan(until, &facts), order(OrderReason::First, false));
}

#[test]
fn the_schedule_of_failures() {
    let mut facts = facts();
    for (failures, wait_for) in [
        (1, Duration::minutes(1)),
        (2, Duration::minutes(10)),
        (3, Duration::minutes(100)),
        (4, Duration::days(1)),
        (1000, Duration::days(1)),
    ] {
        facts.attempts = failed(failures, START);
        facts.jitter.retry = 0.0;
        let until = START + wait_for;
        assert_eq!(plan(START, &facts), wait(until, WaitReason::Backoff));
        assert_eq!(plan(until, &facts), order(OrderReason::First, false));
        facts.jitter.retry = 1.0;
        let until = START + wait_for * 1.1;
        assert_eq!(plan(START, &facts), wait(until, WaitReason::Backoff));
    }
    facts.attempts = failed(0, START);
    assert_eq!(plan(START, &facts), order(OrderReason::First, false));
}

#[test]
fn the_session_schedule_stops_at_an_hour() {
    let mut facts = facts();
    for (failures, minutes) in [(1, 1), (2, 2), (3, 4), (6, 32), (7, 60), (500, 60)] {
        facts.session = failed(failures, START);
        let until = START + Duration::minutes(minutes);
        assert_eq!(
            plan(START, &facts),
            wait(until, WaitReason::IssuerUnreachable)
        );
    }
}

/// What never came to an order is near no limit: it waits as for a CA that cannot be reached, and
/// makes no order wait longer.
#[test]
fn what_is_not_sent_climbs_no_ladder_to_a_day() {
    let waits = |unsent, is_unsent, sent: u32| {
        let mut facts = facts();
        facts.attempts = Attempts {
            unsent,
            is_unsent,
            ..failed(unsent + sent, START)
        };
        blocked(START, &facts).map(|(until, _)| (until - START).whole_minutes())
    };
    for (unsent, expected) in [(1, 1), (2, 2), (4, 8), (7, 60), (40, 60)] {
        assert_eq!(waits(unsent, true, 0), Some(expected), "{unsent} in a row");
    }
    assert_eq!(waits(1, true, 3), Some(1));
    assert_eq!(waits(9, false, 1), Some(1));
    assert_eq!(waits(9, false, 2), Some(10));
}

#[test]
fn the_backoff_leaves_attempts_before_the_expiry() {
    // Lifetime, lifetime left at the failure, failures in a row, seconds to wait.
    const DAY: i64 = 86_400;
    const HOUR: i64 = 3_600;
    for (lifetime, left, failures, expected) in [
        // Long ago enough: the schedule.
        (90 * DAY, 20 * DAY, 4, 86_400.0),
        // An eighth of what is left.
        (90 * DAY, 80 * HOUR, 4, 36_000.0),
        (160 * HOUR, 80 * HOUR, 4, 36_000.0),
        (160 * HOUR, 8 * HOUR, 9, 3_600.0),
        // The floor.
        (160 * HOUR, 600, 9, 900.0),
        (12 * HOUR, 60, 9, 86.4),
        (1_200, 60, 9, 60.0),
        // The floor never prolongs the schedule.
        (90 * DAY, 60, 1, 60.0),
        // Laboratory certificates.
        (40, 20, 1, 2.5),
        (40, 5, 7, 2.0),
        // After the expiry it grows again.
        (90 * DAY, 0, 9, 900.0),
        (90 * DAY, -8 * HOUR, 9, 3_600.0),
        (90 * DAY, -30 * DAY, 9, 86_400.0),
    ] {
        let mut facts = with(Duration::seconds(lifetime));
        let now = START + Duration::seconds(lifetime - left);
        facts.attempts = failed(failures, now);
        assert_eq!(
            plan(now, &facts),
            wait(now + Duration::seconds_f64(expected), WaitReason::Backoff),
            "{lifetime} s with {left} s left after {failures} failures"
        );
    }
}

#[test]
fn retry_after_is_honoured_within_reason() {
    let mut facts = facts();
    facts.attempts = failed(1, START);
    facts.attempts.retry_after = Some(START + Duration::hours(30));
    let until = START + Duration::hours(30);
    assert_eq!(plan(START, &facts), wait(until, WaitReason::Backoff));
    // Shorter than the backoff: the backoff.
    facts.attempts.retry_after = Some(START + Duration::SECOND);
    let minute = START + Duration::MINUTE;
    assert_eq!(plan(START, &facts), wait(minute, WaitReason::Backoff));
    // A year is a mistake.
    facts.attempts.retry_after = Some(START + Duration::days(365));
    let week = START + Duration::days(7);
    assert_eq!(plan(START, &facts), wait(week, WaitReason::Backoff));
}

#[test]
fn attempts_in_the_future_say_nothing() {
    let mut facts = facts();
    facts.attempts = failed(4, START + Duration::days(300));
    assert_eq!(plan(START, &facts), order(OrderReason::First, false));
}

#[test]
fn a_new_certificate_that_looks_due_is_not_replaced_at_once() {
    // The clock is 70 days ahead of the CA's.
    let mut facts = with(Duration::days(90));
    let now = START + Duration::days(70);
    facts.stored.as_mut().unwrap().issued_at = now;
    let tomorrow = now + Duration::days(1);
    assert_eq!(plan(now, &facts), wait(tomorrow, WaitReason::JustIssued));
    assert_eq!(plan(tomorrow, &facts), order(OrderReason::Due, true));
    // A CA whose every window lies in the past: one renewal, then a pause.
    let now = START + Duration::HOUR;
    let mut facts = with(Duration::days(90));
    facts.renewal_info = window(START - Duration::DAY, START, START - Duration::HOUR);
    facts.renewal_info.next_fetch = Some(now + Duration::HOUR);
    assert_eq!(plan(now, &facts), order(OrderReason::RenewalInfo, true));
    facts.stored.as_mut().unwrap().ordered_early = true;
    assert_eq!(
        plan(now, &facts),
        wait(START + Duration::DAY, WaitReason::JustIssued)
    );
    // 40 seconds are not held up by it.
    let facts = with(Duration::seconds(40));
    assert_eq!(
        plan(START + Duration::seconds(20), &facts),
        order(OrderReason::Due, true)
    );
}

#[test]
fn our_own_ca_is_tried_again_soon() {
    let mut facts = facts();
    facts.wanted.issuer = IssuerKind::Internal;
    for (failures, seconds) in [(1, 1), (2, 10), (3, 60), (50, 60)] {
        facts.attempts = failed(failures, START);
        let until = START + Duration::seconds(seconds);
        assert_eq!(plan(START, &facts), wait(until, WaitReason::Backoff));
    }
}

/// A CA of a simulated year: it fails at random, and altogether during outages.
struct SimulatedCa {
    rng: rand::rngs::StdRng,
    lifetime: Duration,
    failure_rate: f64,
    outage: Duration,
    every: Duration,
    renewal_info: bool,
}

impl SimulatedCa {
    fn is_out(&self, now: OffsetDateTime) -> bool {
        let since = (now - START)
            .whole_seconds()
            .rem_euclid(self.every.whole_seconds());
        since < self.outage.whole_seconds()
    }

    fn answers(&mut self, now: OffsetDateTime) -> bool {
        use rand::Rng;
        !self.is_out(now) && !self.rng.random_bool(self.failure_rate)
    }
}

#[derive(Default, Debug)]
struct Year {
    issued: u32,
    failed: u32,
    fetches: u32,
    expired_for: Duration,
    steps: u32,
}

fn simulate(mut ca: SimulatedCa) -> Year {
    use rand::Rng;
    let mut year = Year::default();
    let mut facts = facts();
    let mut now = START;
    while now < START + Duration::days(365) {
        year.steps += 1;
        let before = now;
        let expiry = facts.stored.as_ref().map(|stored| stored.not_after);
        facts.jitter.retry = fraction(&now.unix_timestamp().to_string());
        match plan(now, &facts) {
            Action::Wait { until, .. } => {
                assert!(until > now, "a wait goes forward");
                now = until;
            }
            Action::FetchRenewalInfo => {
                year.fetches += 1;
                let stored = facts.stored.clone().unwrap();
                now += Duration::SECOND;
                if ca.renewal_info && ca.answers(now) {
                    let start = stored.not_before + stored.lifetime() * 0.6;
                    let end = start + stored.lifetime() / 20;
                    let previous = facts.renewal_info.window;
                    let chosen = ca.rng.random();
                    facts.renewal_info.window = Some(Window::choose(
                        previous.as_ref(),
                        suggested(start, end),
                        chosen,
                    ));
                }
                facts.renewal_info.next_fetch = Some(now + Duration::hours(6));
            }
            Action::Order { reason, .. } => {
                facts.attempts.last = Some(now);
                now += Duration::seconds(20);
                if ca.answers(now) {
                    year.issued += 1;
                    facts.attempts = Attempts::default();
                    facts.stored = Some(Stored {
                        not_before: now - Duration::HOUR,
                        not_after: now - Duration::HOUR + ca.lifetime,
                        issued_at: now,
                        ordered_early: reason == OrderReason::RenewalInfo,
                        ..stored(ca.lifetime)
                    });
                    facts.renewal_info = RenewalInfo {
                        supported: ca.renewal_info,
                        ..RenewalInfo::default()
                    };
                    facts.jitter.due = fraction(&now.to_string());
                } else {
                    year.failed += 1;
                    facts.attempts.failures += 1;
                }
            }
            Action::CoveredByFiles { .. } => unreachable!(),
        }
        if let Some(expiry) = expiry
            && now > expiry
        {
            year.expired_for += now - expiry.max(before);
        }
    }
    year
}

#[test]
fn a_simulated_year() {
    use rand::SeedableRng;
    for seed in 0..40 {
        for (lifetime, outage, every) in [
            (
                Duration::hours(160),
                Duration::hours(40),
                Duration::days(30),
            ),
            (Duration::days(90), Duration::days(10), Duration::days(100)),
            (Duration::days(45), Duration::days(5), Duration::days(60)),
        ] {
            for renewal_info in [false, true] {
                let year = simulate(SimulatedCa {
                    rng: rand::rngs::StdRng::seed_from_u64(seed),
                    lifetime,
                    failure_rate: 0.4,
                    outage,
                    every,
                    renewal_info,
                });
                let context = format!("{lifetime} seed {seed} ari {renewal_info}: {year:?}");
                assert_eq!(year.expired_for, Duration::ZERO, "{context}");
                let ideal = 365.0 * 86400.0 / (lifetime.as_seconds_f64() * 0.49);
                assert!(f64::from(year.issued) <= ideal + 2.0, "{context}");
                // Failures: at 40 % two for three issued, and a bounded number in each outage.
                let outages = 365 / every.whole_days() + 1;
                let bound = 2.0 * ideal + 25.0 * outages as f64;
                assert!(f64::from(year.failed) <= bound, "{context}");
                assert!(year.steps < 10_000, "{context}");
            }
        }
    }
}

#[test]
fn a_dead_ca_gets_few_requests_and_the_outage_ends_soon_after() {
    use rand::SeedableRng;
    // The CA is out for 30 days from the start of each 180: a 160-hour certificate expires.
    let year = simulate(SimulatedCa {
        rng: rand::rngs::StdRng::seed_from_u64(1),
        lifetime: Duration::hours(160),
        failure_rate: 0.0,
        outage: Duration::days(30),
        every: Duration::days(180),
        renewal_info: false,
    });
    // 30 days twice and the start: daily where nothing is at stake, denser around the expiry.
    assert!(year.failed < 400, "{year:?}");
    assert!(year.expired_for < Duration::days(60), "{year:?}");
}

#[test]
fn what_is_revoked_is_replaced_at_once_but_not_in_circles() {
    let mut facts = with(Duration::days(90));
    let now = START + Duration::HOUR;
    facts.renewal_info.next_fetch = Some(now + Duration::HOUR);
    facts.stored.as_mut().unwrap().revoked = true;
    assert_eq!(plan(now, &facts), order(OrderReason::Revoked, true));
    assert_eq!(
        priority(now, &facts, OrderReason::Revoked),
        Priority::Revoked
    );
    // The failures of its orders are waited for as those of any other.
    facts.attempts = failed(2, now);
    let until = now + Duration::minutes(10);
    assert_eq!(plan(now, &facts), wait(until, WaitReason::Backoff));
    facts.attempts = Attempts::default();
    // Its successor, if that is revoked, too, has to live for a while first.
    facts.stored.as_mut().unwrap().ordered_early = true;
    let mature = START + Duration::DAY;
    assert_eq!(plan(now, &facts), wait(mature, WaitReason::JustIssued));
    assert_eq!(plan(mature, &facts), order(OrderReason::Revoked, true));
    let expired = START + Duration::days(91);
    assert_eq!(plan(expired, &facts), order(OrderReason::Expired, false));
}

#[test]
fn what_cannot_be_served_comes_first() {
    use Priority::{Due, Expiring, Missing, Revoked};
    let at = |days| START + Duration::days(days);
    let mut facts = with(Duration::days(100));
    for (reason, now, expected) in [
        (OrderReason::First, at(1), Missing),
        (OrderReason::NamesChanged, at(1), Missing),
        (OrderReason::Expired, at(101), Missing),
        (OrderReason::RenewalInfo, at(101), Missing),
        (OrderReason::Revoked, at(1), Revoked),
        (OrderReason::Requested, at(1), Revoked),
        (OrderReason::Due, at(70), Due),
        (OrderReason::KeyTypeChanged, at(1), Due),
        (OrderReason::IssuerChanged, at(1), Due),
        (OrderReason::Emergency, at(96), Expiring),
        (OrderReason::KeyTypeChanged, at(96), Expiring),
    ] {
        assert_eq!(priority(now, &facts, reason), expected, "{reason:?} {now}");
    }
    let reason = OrderReason::RenewalInfo;
    facts.renewal_info = window(at(-2), at(-1), at(-1));
    assert_eq!(priority(at(1), &facts, reason), Revoked, "the CA calls");
    facts.renewal_info = window(at(60), at(62), at(61));
    assert_eq!(priority(at(61), &facts, reason), Due);
    assert_eq!(
        priority(at(70), &facts, reason),
        Due,
        "late, but as planned"
    );
    facts.stored = None;
    assert_eq!(priority(at(1), &facts, OrderReason::First), Missing);
}
