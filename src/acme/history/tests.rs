//! What is on disk, and what it means after a restart, for each clock there may be.

use time::macros::datetime;

use super::*;
use crate::acme::limits;

const NOW: OffsetDateTime = datetime!(2026-11-25 12:00 UTC);
const WEEK: Duration = Duration::days(7);

fn past_of(history: &History) -> Vec<Event> {
    history.judge(|past| past.events().map(|(_, event)| event.clone()).collect())
}

#[test]
fn what_was_asked_is_known_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDir::open(directory.path()).unwrap();
    // The times of a test do not pass on the host's clocks.
    let steady = Steady::Simulated(Arc::default());
    let open = |now| History::open_by(steady.clone(), &state, "ca", WEEK, now).unwrap();
    let history = open(NOW);
    assert!(past_of(&history).is_empty());
    let names = ["a.test".parse().unwrap(), "*.a.test".parse().unwrap()];
    history.account(NOW).unwrap();
    let first = history.order(&names, false, NOW).unwrap();
    let second = history.order(&names[..1], true, NOW + Duration::DAY);
    let second = second.unwrap();
    history.failed(first, Some("a.test".to_owned())).unwrap();
    history.placed(first, "https://ca.test/order/1").unwrap();
    let lost = history.order(&names, false, NOW).unwrap();
    history.placed(second, "https://ca.test/order/2").unwrap();
    history.issued(second, NOW + Duration::DAY).unwrap();
    // It was of no use.
    history.failed(second, None).unwrap();
    let running = past_of(&history);
    assert_eq!(running.len(), 4);
    // Its URL is nowhere, so nobody can have finalised it.
    history.failed(lost, None).unwrap();
    let past = past_of(&history);
    assert_ne!(past, running);
    let end_of_second = End::Issued {
        at: NOW + Duration::DAY,
        is_over: true,
    };
    assert!(matches!(&past[2].what, What::Order { end, .. } if *end == end_of_second));
    // Opening writes it anew: the second one reads what the first has written.
    for _ in 0..2 {
        let again = open(NOW + Duration::DAY);
        assert_eq!(past_of(&again), past);
        let urls = again.lock().urls.clone();
        let url = |number| format!("https://ca.test/order/{number}");
        assert_eq!(urls, [(first, url(1)), (second, url(2))].into());
    }
    // Half a line at the end, as a crash leaves it, costs nothing else.
    let path = state.ledger_dir().join("authorities/ca.history.jsonl");
    let mut text = fs::read_to_string(&path).unwrap();
    text.push_str("{\"order\":{\"id\":9,");
    fs::write(&path, text).unwrap();
    assert_eq!(past_of(&open(NOW + Duration::DAY)), past);
    let later = open(NOW + WEEK);
    assert_eq!(past_of(&later), past[2..3]);
    assert_eq!(later.lock().urls.len(), 1);
    assert_eq!(later.order(&names, false, NOW + WEEK).unwrap(), 4);
    let mode = fs::metadata(&path).unwrap();
    assert_eq!(
        std::os::unix::fs::PermissionsExt::mode(&mode.permissions()) & 0o777,
        0o600
    );
}

#[test]
fn a_place_within_the_limits_is_taken_at_once_and_given_up_where_nothing_is_sent() {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDir::open(directory.path()).unwrap();
    let steady = Steady::Simulated(Arc::default());
    let open = || Arc::new(History::open_by(steady.clone(), &state, "ca", WEEK, NOW).unwrap());
    let history = open();
    let names = ["a.test".parse().unwrap()];
    let limits = crate::config::Limits {
        duplicate_certificates: crate::config::Limits::lets_encrypt().new_orders,
        ..Default::default()
    };
    let first = history.reserve(&limits, &names, NOW).unwrap();
    let second = history.reserve(&limits, &names, NOW).unwrap();
    assert_eq!(past_of(&history).len(), 2);
    assert!(past_of(&open()).is_empty(), "nothing was sent yet");
    let id = first.commit().unwrap();
    drop(second);
    assert_eq!(past_of(&history).len(), 1);
    history.failed(id, Some("a.test".to_owned())).unwrap();
    assert_eq!(past_of(&open()), past_of(&history));
}

/// An account's limit, used up under a clock that is 400 days ahead.
struct Host {
    _directory: tempfile::TempDir,
    state: StateDir,
    uptime: Arc<Mutex<Option<clock::Uptime>>>,
}

impl Host {
    fn new() -> Host {
        let directory = tempfile::tempdir().unwrap();
        Host {
            state: StateDir::open(directory.path()).unwrap(),
            _directory: directory,
            uptime: Arc::default(),
        }
    }

    fn at(&self, boot: u64, uptime: Duration) {
        let milliseconds = uptime.whole_milliseconds().try_into().unwrap();
        let uptime = clock::Uptime { boot, milliseconds };
        *self.uptime.lock().unwrap() = Some(uptime);
    }

    fn open(&self, now: OffsetDateTime) -> History {
        let steady = Steady::Simulated(Arc::clone(&self.uptime));
        History::open_by(steady, &self.state, "ca", WEEK, now).unwrap()
    }

    fn used_up(&self, now: OffsetDateTime) -> History {
        let history = self.open(now);
        for number in 0..300 {
            let name = format!("n{number}.test").parse().unwrap();
            history.order(&[name], false, now).unwrap();
        }
        history
    }

    /// Used up by a clock that is ahead, and looked at two hours later by one that is right.
    fn set_back(&self) -> (History, OffsetDateTime) {
        self.at(1, Duration::HOUR);
        let history = self.used_up(NOW + Duration::days(400));
        self.at(1, Duration::hours(3));
        let later = NOW + Duration::hours(2);
        broken_until(&history, later);
        (history, later)
    }
}

/// Until when a certificate for a name that is new would be one too many.
fn broken_until(history: &History, now: OffsetDateTime) -> Option<OffsetDateTime> {
    one_more_until(history, "x.test", now)
}

/// Until when one more certificate for these names would be one too many.
fn duplicate_until(history: &History, now: OffsetDateTime) -> Option<OffsetDateTime> {
    one_more_until(history, "a.test", now)
}

fn one_more_until(history: &History, name: &str, now: OffsetDateTime) -> Option<OffsetDateTime> {
    history.forget(now, WEEK + Duration::DAY);
    let limits = crate::config::Limits::lets_encrypt();
    let names = [name.parse().unwrap()];
    let broken = history.judge(|past| limits::order(now, &limits, past, &names, false));
    broken.map(|broken| broken.until)
}

#[test]
fn a_clock_that_is_set_neither_holds_up_an_order_nor_breaks_a_limit() {
    for wrong_by in [Duration::days(400), -Duration::days(400)] {
        let host = Host::new();
        host.at(1, Duration::HOUR);
        let history = host.used_up(NOW + wrong_by);
        // Set while it runs, two hours later, and while it does not.
        host.at(1, Duration::hours(3));
        let later = NOW + Duration::hours(2);
        for history in [&history, &host.open(later)] {
            assert_eq!(broken_until(history, later), Some(NOW + Duration::hours(3)));
        }
        host.at(1, Duration::hours(4));
        let later = NOW + Duration::hours(3);
        for history in [&history, &host.open(later)] {
            assert_eq!(broken_until(history, later), None);
        }
        // What was noted wrong is written as it was, for another start of the host.
        let path = host.state.ledger_dir().join("authorities/ca.history.jsonl");
        let text = fs::read_to_string(path).unwrap();
        assert!(text.contains("2026-11-25T12:00:00Z"), "{text}");
        host.at(2, Duration::MINUTE);
        assert_eq!(broken_until(&host.open(later), later), None);
    }
}

#[test]
fn what_a_running_process_finds_out_about_dates_is_on_disk_with_the_next_order() {
    let host = Host::new();
    let (history, later) = host.set_back();
    history
        .order(&["x.test".parse().unwrap()], true, later)
        .unwrap();
    drop(history);
    host.at(2, Duration::MINUTE);
    let later = NOW + Duration::hours(3);
    assert_eq!(broken_until(&host.open(later), later), None);
}

#[test]
fn of_another_start_of_the_host_a_date_in_the_future_counts_once_as_just_now() {
    let host = Host::new();
    host.at(1, Duration::HOUR);
    host.used_up(NOW + Duration::days(400));
    host.at(2, Duration::MINUTE);
    let until = NOW + Duration::hours(3);
    assert_eq!(broken_until(&host.open(NOW), NOW), Some(until));
    // Other processes, and other starts, add nothing to that.
    let later = NOW + Duration::hours(2);
    for boot in [2, 3] {
        host.at(boot, Duration::hours(2));
        assert_eq!(broken_until(&host.open(later), later), Some(until));
    }
    assert_eq!(broken_until(&host.open(until), until), None);
}

#[test]
fn a_clock_that_was_wrong_for_hours_makes_no_certificate_of_before_as_new_as_the_hosts_next_start()
{
    let host = Host::new();
    let hours = Duration::hours;
    let at = |boot, passed: i64| {
        host.at(boot, hours(passed + 1));
        NOW + hours(passed)
    };
    let issue = |history: &History, now| {
        let names = ["a.test".parse().unwrap()];
        let id = history.order(&names, false, now).unwrap();
        history
            .placed(id, &format!("https://ca.test/{id}"))
            .unwrap();
        history.issued(id, now).unwrap();
    };
    let history = host.open(at(1, 0));
    for day in 0..4 {
        issue(&history, at(1, 24 * day));
    }
    // Four days later the clock is ahead, and the fifth certificate comes; then it is right again,
    // and nobody orders anything before the host starts anew.
    let ahead = at(1, 96) + Duration::days(400);
    duplicate_until(&history, ahead);
    issue(&history, ahead);
    let right = at(1, 98);
    assert!(history.is_misdated(right));
    history.date(right).unwrap();
    assert!(!history.is_misdated(right));
    drop(history);
    let later = at(2, 120);
    let week = NOW + WEEK;
    assert_eq!(duplicate_until(&host.open(later), later), Some(week));
    assert_eq!(
        duplicate_until(&host.open(at(3, 169)), NOW + hours(169)),
        None
    );
}

#[test]
fn what_was_dated_by_a_wrong_clock_alone_before_a_start_counts_by_the_right_one_of_before() {
    let host = Host::new();
    host.at(1, Duration::HOUR);
    let history = host.used_up(NOW);
    host.at(1, Duration::hours(2));
    history.date(NOW + Duration::days(400)).unwrap();
    host.at(2, Duration::MINUTE);
    let later = NOW + Duration::hours(2);
    let until = NOW + Duration::hours(3);
    assert_eq!(broken_until(&host.open(later), later), Some(until));
}

#[test]
fn lines_of_earlier_versions_have_a_date_and_no_uptime() {
    let host = Host::new();
    host.at(1, Duration::HOUR);
    let path = host.state.ledger_dir().join("authorities/ca.history.jsonl");
    let line =
        r#"{"order":{"id":3,"at":"2026-11-25T11:00:00Z","names":["a.test"],"exempt":false}}"#;
    let placed = r#"{"placed":{"id":3,"url":"https://ca.test/order/1"}}"#;
    append(&path, format!("{line}\n{placed}\n").as_bytes()).unwrap();
    let past = past_of(&host.open(NOW));
    assert_eq!(past[0].at, NOW - Duration::HOUR);
    assert!(matches!(&past[0].what, What::Order { end, .. } if *end == End::Placed));
}

fn one_order_an_hour() -> Limits {
    Limits {
        new_orders: Some(crate::config::Limit {
            count: 1,
            per: std::time::Duration::from_secs(3600),
        }),
        ..Limits::default()
    }
}

#[test]
fn orders_that_ask_together_take_one_place_only_once() {
    let limits = one_order_an_hour();
    for _ in 0..100 {
        let history = Arc::new(History::in_memory());
        let names = ["a.test".parse().unwrap()];
        let reserve = || history.reserve(&limits, &names, NOW);
        let all = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(reserve)).collect();
            let each = threads.into_iter().map(|thread| thread.join().unwrap());
            each.collect::<Vec<_>>()
        });
        assert_eq!(all.iter().filter(|it| it.is_ok()).count(), 1);
        let broken = all.into_iter().find_map(Result::err).unwrap();
        assert_eq!(broken.until, NOW + Duration::HOUR);
    }
}

/// A process beside the one that orders, and one that starts after a crash, take an order that was
/// not answered for lost; where it turns out that it was not, it counts again.
#[test]
fn an_order_that_another_process_took_for_lost_counts_once_the_ca_has_answered() {
    let host = Host::new();
    host.at(1, Duration::HOUR);
    let history = host.open(NOW);
    let id = history
        .order(&["a.test".parse().unwrap()], false, NOW)
        .unwrap();
    let path = host.state.ledger_dir().join("authorities/ca.history.jsonl");
    drop(host.open(NOW));
    assert!(fs::read_to_string(&path).unwrap().contains("failed"));
    history.placed(id, "https://ca.test/order/1").unwrap();
    for _ in 0..2 {
        let past = past_of(&host.open(NOW));
        let what = &past[0].what;
        assert!(matches!(what, What::Order { end, .. } if *end == End::Placed));
    }
}

#[test]
fn only_the_process_that_orders_writes_the_history_anew() {
    let host = Host::new();
    let mut config = crate::config::CertificateAuthority::lets_encrypt();
    config.set_directory("https://ca.test/directory").unwrap();
    let open = |is_writer| {
        let now = clock::now();
        crate::acme::account::Authority::open(&host.state, config.clone(), is_writer, now).unwrap()
    };
    let names = ["a.test".parse().unwrap()];
    let history = open(true).history;
    history.order(&names, false, clock::now()).unwrap();
    let text = || {
        let folder = fs::read_dir(host.state.ledger_dir().join("authorities")).unwrap();
        let mut paths = folder.map(|entry| entry.unwrap().path());
        let path = paths.find(|path| path.to_string_lossy().ends_with(".history.jsonl"));
        fs::read_to_string(path.unwrap()).unwrap()
    };
    let before = text();
    open(false);
    assert_eq!(text(), before);
    open(true);
    assert_ne!(text(), before);
}

/// Whoever looks at the limits has dated everything anew in passing, and a disk may have refused.
#[test]
fn that_the_clock_was_set_is_on_disk_whoever_finds_it_out_first() {
    let host = Host::new();
    let (history, later) = host.set_back();
    let folder = host.state.ledger_dir().join("authorities");
    let aside = folder.with_extension("aside");
    fs::rename(&folder, &aside).unwrap();
    fs::write(&folder, "").unwrap();
    assert!(history.is_misdated(later));
    history.date(later).unwrap_err();
    fs::remove_file(&folder).unwrap();
    fs::rename(&aside, &folder).unwrap();
    assert!(history.is_misdated(later), "the disk refused");
    history.date(later).unwrap();
    assert!(!history.is_misdated(later));
    host.at(2, Duration::MINUTE);
    let later = NOW + Duration::hours(3);
    assert_eq!(broken_until(&host.open(later), later), None);
}

/// The end of the one order in the history, in memory and on disk alike.
fn end_of_the_order(host: &Host, history: &History, now: OffsetDateTime) -> End {
    let ends = [past_of(history), past_of(&host.open(now))].map(|past| match &past[0].what {
        What::Order { end, .. } => end.clone(),
        What::Account => panic!("an account"),
    });
    let [in_memory, on_disk] = ends;
    assert_eq!(in_memory, on_disk);
    on_disk
}

/// A CA that was told to issue may have done so, whoever has lost patience with it meanwhile.
#[test]
fn an_order_that_is_dropped_may_be_a_certificate_once_the_ca_was_told_to_issue() {
    let later = NOW + Duration::hours(30);
    let dropped = |note: &dyn Fn(&History, u64)| {
        let host = Host::new();
        host.at(1, Duration::HOUR);
        let history = host.open(NOW);
        let names = ["a.test".parse().unwrap()];
        let id = history.order(&names, false, NOW).unwrap();
        history.placed(id, "https://ca.test/order/1").unwrap();
        note(&history, id);
        host.at(1, Duration::hours(31));
        history.dropped(id, later).unwrap();
        let end = end_of_the_order(&host, &history, later);
        let wanted = ["a.test".to_owned()];
        assert!(!history.judge(|past| past.is_open(id, &wanted, later)));
        end
    };
    let finalize = |history: &History, id| {
        for _ in 0..2 {
            history.finalized(id).unwrap();
        }
    };
    let (at, is_over) = (later, true);
    assert_eq!(dropped(&finalize), End::Issued { at, is_over });
    assert_eq!(dropped(&|_, _| {}), End::Failed(None));
    // The CA's own word that there is none.
    let refused = |history: &History, id| {
        finalize(history, id);
        history.failed(id, None).unwrap();
    };
    assert_eq!(dropped(&refused), End::Failed(None));
    // A certificate that is known is as old as it is.
    let issued = |history: &History, id| {
        finalize(history, id);
        history.issued(id, NOW).unwrap();
    };
    let at = NOW;
    assert_eq!(dropped(&issued), End::Issued { at, is_over });
}

#[test]
fn an_order_that_the_ca_was_told_to_issue_for_is_still_one_to_go_on_with_after_a_restart() {
    let host = Host::new();
    host.at(1, Duration::HOUR);
    let history = host.open(NOW);
    let names = ["a.test".parse().unwrap()];
    let id = history.order(&names, false, NOW).unwrap();
    history.placed(id, "https://ca.test/order/1").unwrap();
    history.finalized(id).unwrap();
    // Found again by the next start.
    history.placed(id, "https://ca.test/order/1").unwrap();
    assert_eq!(end_of_the_order(&host, &history, NOW), End::Finalized);
    let wanted = ["a.test".to_owned()];
    let is_open = |now| host.open(NOW).judge(|past| past.is_open(id, &wanted, now));
    assert!(is_open(NOW) && !is_open(NOW + Duration::DAY));
}

/// It is noted before it leaves, and may be under way for a while: by the CA's date it is younger.
#[test]
fn an_order_counts_from_the_cas_answer_on() {
    let limits = one_order_an_hour();
    let until = |history: &History, now| {
        history.forget(now, WEEK);
        let names = ["b.test".parse().unwrap()];
        let broken = history.judge(|past| limits::order(now, &limits, past, &names, false));
        broken.map(|broken| broken.until)
    };
    let answered = NOW + Duration::seconds(20);
    for is_refused in [false, true] {
        let host = Host::new();
        host.at(1, Duration::HOUR);
        let history = host.open(NOW);
        let id = history.order(&["a.test".parse().unwrap()], false, NOW);
        let id = id.unwrap();
        host.at(1, Duration::HOUR + Duration::seconds(20));
        match is_refused {
            false => history.accepted(id, "https://ca.test/order/1", answered),
            true => history.refused(id, answered),
        }
        .unwrap();
        host.at(1, Duration::hours(2) + Duration::seconds(10));
        let almost = NOW + Duration::HOUR + Duration::seconds(10);
        let anew = [host.open(almost), host.open(almost)];
        for history in [&history, &anew[0], &anew[1]] {
            assert_eq!(until(history, almost), Some(answered + Duration::HOUR));
        }
        host.at(2, Duration::MINUTE);
        let again = host.open(almost);
        assert_eq!(until(&again, almost), Some(answered + Duration::HOUR));
    }
}
