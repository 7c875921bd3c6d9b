//! The limits of a CA: whether one more order would break one, and when it would not. A pure
//! decision over what was ordered before; it knows no CA and no clock.
//!
//! A limit is taken as a sliding window, which is at least as strict as the refilling buckets that
//! CAs use, so that an order that passes here passes there. It has no margin: an order has the date
//! of the CA's answer to it, which is no earlier than the CA's own, and a certificate the date when
//! it was seen to be there. Only where a crash lost the answer an order is dated when it was noted,
//! before it left, and the CA may count it for longer by what it was under way.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use time::{Duration, OffsetDateTime};

use super::order::{FETCHED_LIFETIME, PENDING_LIFETIME};
use crate::certificate::name::Name;
use crate::clock;
use crate::config::{Limit, Limits};

/// One order, or one account, of the past.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub at: OffsetDateTime,
    pub what: What,
}

impl Event {
    fn place(&self) -> Place {
        let is_placed = matches!(
            self.what,
            What::Order {
                end: End::Placed,
                ..
            }
        );
        Place {
            at: self.at,
            is_placed,
            counts: self.counts(),
        }
    }

    fn counts(&self) -> Counts {
        match &self.what {
            What::Account => Counts::Account,
            What::Order { exempt, end, .. } => match end {
                End::Failed(Some(name)) => Counts::Failure(bare(name).to_owned()),
                End::Failed(None) => Counts::Order,
                _ if *exempt => Counts::Order,
                End::Issued { at, .. } => Counts::Certificate(*at),
                End::Sent | End::Placed | End::Finalized => Counts::Certificate(self.at),
            },
        }
    }
}

/// Where the limits look for an event.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    at: OffsetDateTime,
    /// The CA waits for somebody to go on with it.
    is_placed: bool,
    counts: Counts,
}

/// What an event counts as, beside the order that it is, if the CA counts that.
#[derive(Debug, PartialEq, Eq)]
enum Counts {
    Account,
    Order,
    /// Since then.
    Certificate(OffsetDateTime),
    /// Of the validation of this name, without the `*.` of a wildcard.
    Failure(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    Account,
    Order {
        names: BTreeSet<String>,
        /// A renewal that the CA was told of (RFC 9773 section 5), which counts against nothing.
        exempt: bool,
        end: End,
    },
}

/// How far an order has come. A certificate counts whether or not it is of any use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// It is being sent: its certificate will count, should there be one.
    Sent,
    /// The CA has it: its certificate will count, should somebody go on with it.
    Placed,
    /// The CA is told to issue: from here on only its own word says that it did not.
    Finalized,
    /// There is a certificate since then, or was by then for all that is known. `is_over`: nobody
    /// goes on with the order, as what the CA sent is of no use, or nothing ever came.
    Issued { at: OffsetDateTime, is_over: bool },
    /// There is none. The name that was not validated, where it was that.
    Failed(Option<String>),
}

impl End {
    /// What one more word about the order makes of it: a certificate is never unmade.
    fn then(self, word: End) -> End {
        match (self, word) {
            (End::Issued { at, .. }, End::Failed(_)) => End::Issued { at, is_over: true },
            // Given up for lost by somebody who read the file while it was being sent, or before
            // what a crash had left on disk was found.
            (End::Sent | End::Failed(None), End::Placed) => End::Placed,
            (End::Placed | End::Failed(None), End::Finalized) => End::Finalized,
            (end, End::Sent | End::Placed | End::Finalized) => end,
            (_, word) => word,
        }
    }

    /// For how long somebody may go on with the order; `None`: there is nothing to go on with.
    fn lifetime(&self) -> Option<Duration> {
        match self {
            End::Placed | End::Finalized => Some(PENDING_LIFETIME),
            End::Issued { is_over: false, .. } => Some(FETCHED_LIFETIME),
            End::Sent | End::Issued { .. } | End::Failed(_) => None,
        }
    }
}

/// A limit that one more order would break, and from when on it would not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    pub until: OffsetDateTime,
    pub limit: String,
    /// Whether every other order at this CA would break it, too.
    pub of_account: bool,
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let until = clock::rfc3339(self.until);
        write!(
            f,
            "one more would break the CA's limit of {}; not sent before {until}",
            self.limit
        )
    }
}

/// Instants, and whose they are.
type Times = BTreeSet<(OffsetDateTime, u64)>;

/// What was asked before, found by what the limits count: no question looks through all of it.
#[derive(Clone, Debug, Default)]
pub struct Past {
    /// By number, in the order in which they were noted.
    events: BTreeMap<u64, Event>,
    by_time: Times,
    /// What may be gone on with.
    placed: Times,
    accounts: Times,
    orders: Times,
    /// By registered domain.
    certificates: HashMap<String, Times>,
    /// By all names together.
    sets: HashMap<String, Times>,
    /// By name, without the `*.` of a wildcard.
    failures: HashMap<String, Times>,
}

impl Past {
    /// Every event with its number, the first noted first.
    pub fn events(&self) -> impl Iterator<Item = (u64, &Event)> {
        self.events.iter().map(|(id, event)| (*id, event))
    }

    pub fn get(&self, id: u64) -> Option<&Event> {
        self.events.get(&id)
    }

    pub fn len(&self) -> usize {
        self.events.len()
    }

    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// Notes an event under a number of its own.
    pub fn add(&mut self, id: u64, event: Event) {
        self.index(id, &event.what, event.place(), true);
        self.events.insert(id, event);
    }

    /// Notes how far the order with this number has come.
    pub fn end(&mut self, id: u64, word: End) {
        self.change(id, |event| {
            if let What::Order { end, .. } = &mut event.what {
                *end = end.clone().then(word);
            }
        });
    }

    /// It turns out that the event with this number was then, and its certificate there since.
    pub fn redate(&mut self, id: u64, at: OffsetDateTime, issued: Option<OffsetDateTime>) {
        self.change(id, |event| {
            event.at = at;
            if let What::Order { end, .. } = &mut event.what
                && let (End::Issued { at, .. }, Some(issued)) = (end, issued)
            {
                *at = issued;
            }
        });
    }

    /// Most changes leave an event where the limits look for it.
    fn change(&mut self, id: u64, change: impl FnOnce(&mut Event)) {
        let Some(mut event) = self.events.remove(&id) else {
            return;
        };
        let before = event.place();
        change(&mut event);
        let after = event.place();
        if before != after {
            self.index(id, &event.what, before, false);
            self.index(id, &event.what, after, true);
        }
        self.events.insert(id, event);
    }

    /// The orders that the CA has not answered, for all that is known.
    pub fn sent(&self) -> Vec<u64> {
        let is_sent = |event: &Event| matches!(event.what, What::Order { end: End::Sent, .. });
        let sent = self.events.iter().filter(|(_, event)| is_sent(event));
        sent.map(|(id, _)| *id).collect()
    }

    /// Whether the event with this number is an order for these names. Where nobody remembers an
    /// order any more, its number may be another's.
    pub fn is_for(&self, id: u64, names: &[String]) -> bool {
        let what = self.get(id).map(|event| &event.what);
        let wanted: BTreeSet<&String> = names.iter().collect();
        matches!(what, Some(What::Order { names, .. }) if names.iter().eq(wanted))
    }

    /// Whether the CA may have issued for the order with this number, which nobody knows.
    pub fn may_be_issued(&self, id: u64) -> bool {
        let what = self.get(id).map(|event| &event.what);
        matches!(
            what,
            Some(What::Order {
                end: End::Finalized,
                ..
            })
        )
    }

    /// Whether the order with this number is one for these names to go on with: the CA has it, and
    /// it did not come to nothing yet.
    pub fn is_open(&self, id: u64, names: &[String], now: OffsetDateTime) -> bool {
        let Some(event) = self.get(id).filter(|_| self.is_for(id, names)) else {
            return false;
        };
        let lifetime = match &event.what {
            What::Order { end, .. } => end.lifetime(),
            What::Account => None,
        };
        lifetime.is_some_and(|lifetime| now - event.at < lifetime)
    }

    /// Drops what is older than `keep`, and answers the numbers of that. An order that nobody goes
    /// on with any more, and that nobody has had finalized, is no certificate and becomes none.
    pub fn forget(&mut self, now: OffsetDateTime, keep: Duration) -> Vec<u64> {
        while let Some((at, id)) = self.placed.first().copied()
            && now - at >= PENDING_LIFETIME
        {
            self.end(id, End::Failed(None));
        }
        let mut dropped = Vec::new();
        while let Some((at, id)) = self.by_time.first().copied()
            && now - at >= keep
        {
            self.remove(id);
            dropped.push(id);
        }
        dropped
    }

    /// As if it had never been.
    pub fn remove(&mut self, id: u64) -> Option<Event> {
        let event = self.events.remove(&id)?;
        self.index(id, &event.what, event.place(), false);
        Some(event)
    }

    /// Puts an event where the limits look for it, or takes it out.
    fn index(&mut self, id: u64, what: &What, place: Place, add: bool) {
        let Place {
            at,
            is_placed,
            counts,
        } = place;
        let put = |times: &mut Times, at| {
            match add {
                true => times.insert((at, id)),
                false => times.remove(&(at, id)),
            };
        };
        let put_under = |map: &mut HashMap<String, Times>, key: String, at| {
            let times = map.entry(key.clone()).or_default();
            put(times, at);
            if times.is_empty() {
                map.remove(&key);
            }
        };
        put(&mut self.by_time, at);
        if is_placed {
            put(&mut self.placed, at);
        }
        if let What::Order { exempt: false, .. } = what {
            put(&mut self.orders, at);
        }
        match (counts, what) {
            (Counts::Account, _) => put(&mut self.accounts, at),
            (Counts::Failure(name), _) => put_under(&mut self.failures, name, at),
            (Counts::Certificate(since), What::Order { names, .. }) => {
                put_under(&mut self.sets, all_of(names), since);
                for domain in domains(names) {
                    put_under(&mut self.certificates, domain.to_owned(), since);
                }
            }
            (Counts::Certificate(_) | Counts::Order, _) => {}
        }
    }
}

impl FromIterator<Event> for Past {
    fn from_iter<I: IntoIterator<Item = Event>>(events: I) -> Past {
        let mut past = Past::default();
        for (id, event) in (0..).zip(events) {
            past.add(id, event);
        }
        past
    }
}

/// Whether an order for these names may be sent now.
pub fn order(
    now: OffsetDateTime,
    limits: &Limits,
    past: &Past,
    names: &[Name],
    exempt: bool,
) -> Option<Broken> {
    if exempt {
        return None;
    }
    let wanted: BTreeSet<String> = names.iter().map(Name::to_string).collect();
    let of_account = window(now, limits.new_orders, Some(&past.orders), || {
        "new orders".to_owned()
    });
    if let Some(broken) = of_account {
        return Some(Broken {
            of_account: true,
            ..broken
        });
    }
    let same = past.sets.get(&all_of(&wanted));
    let duplicates = window(now, limits.duplicate_certificates, same, || {
        "certificates for the same names".to_owned()
    });
    let of_domains = domains(&wanted).into_iter().filter_map(|domain| {
        let times = past.certificates.get(domain);
        window(now, limits.certificates_per_domain, times, || {
            format!("certificates for {domain}")
        })
    });
    let failed = wanted.iter().filter_map(|name| {
        let times = past.failures.get(bare(name));
        window(now, limits.failed_validations, times, || {
            format!("failed validations of {}", bare(name))
        })
    });
    duplicates
        .into_iter()
        .chain(of_domains)
        .chain(failed)
        .max_by_key(|broken| broken.until)
}

/// Whether one more account may be made now.
pub fn account(now: OffsetDateTime, limits: &Limits, past: &Past) -> Option<Broken> {
    window(now, limits.new_accounts, Some(&past.accounts), || {
        "new accounts".to_owned()
    })
}

fn all_of(names: &BTreeSet<String>) -> String {
    names
        .iter()
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join(" ")
}

fn domains(names: &BTreeSet<String>) -> BTreeSet<&str> {
    names
        .iter()
        .filter_map(|name| registered_domain(name))
        .collect()
}

fn bare(name: &str) -> &str {
    name.strip_prefix("*.").unwrap_or(name)
}

/// How long what happened matters: as long as a limit looks back from the certificate, which may
/// be so much younger than its order.
pub fn memory(limits: &Limits) -> Duration {
    let all = [
        limits.new_orders,
        limits.certificates_per_domain,
        limits.duplicate_certificates,
        limits.failed_validations,
        limits.new_accounts,
    ];
    let longest = all.into_iter().flatten().map(|limit| limit.per).max();
    let longest = longest.map_or(Duration::ZERO, |per| {
        per.try_into().unwrap_or(Duration::MAX)
    });
    longest.saturating_add(PENDING_LIFETIME)
}

/// `times`: of what counts. A look at those that are within the limit's time, and at no more of
/// them than the limit has.
fn window(
    now: OffsetDateTime,
    limit: Option<Limit>,
    times: Option<&Times>,
    what: impl FnOnce() -> String,
) -> Option<Broken> {
    let limit = limit?;
    let per = Duration::try_from(limit.per).unwrap_or(Duration::MAX);
    let before = usize::try_from(limit.count)
        .unwrap_or(usize::MAX)
        .saturating_sub(1);
    let times = times?;
    let mut recent = match now.checked_sub(per) {
        Some(since) => times.range((since, u64::MAX)..),
        None => times.range(..),
    };
    let (at, _) = recent.nth_back(before)?;
    // What the history has not dated anew yet counts as just now.
    let at = (*at).min(now);
    Some(Broken {
        until: at + per,
        limit: format!("{limit} {}", what()),
        of_account: false,
    })
}

/// The domain that somebody registered, below a public suffix; for addresses none.
pub(crate) fn registered_domain(name: &str) -> Option<&str> {
    let name = bare(name);
    let is_address = name.parse::<std::net::IpAddr>().is_ok();
    psl::domain_str(name).filter(|_| !is_address)
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    const NOW: OffsetDateTime = datetime!(2026-11-25 12:00 UTC);

    fn names(text: &str) -> Vec<Name> {
        text.split(' ').map(|name| name.parse().unwrap()).collect()
    }

    /// At the time of the order.
    fn issued() -> End {
        End::Placed
    }

    fn event(hours: i64, text: &str, end: End) -> Event {
        Event {
            at: NOW - Duration::hours(hours),
            what: What::Order {
                names: text.split(' ').map(str::to_owned).collect(),
                exempt: false,
                end,
            },
        }
    }

    fn broken(past: &[Event], text: &str) -> Option<(i64, String)> {
        let limits = Limits::lets_encrypt();
        let past = past.iter().cloned().collect();
        let broken = order(NOW, &limits, &past, &names(text), false)?;
        Some(((broken.until - NOW).whole_hours(), broken.limit))
    }

    #[test]
    fn the_same_names_five_times_in_a_week() {
        let mut past: Vec<Event> = (1..=4)
            .map(|hours| event(hours, "a.test b.test", issued()))
            .collect();
        assert_eq!(broken(&past, "b.test a.test"), None);
        past.push(event(100, "a.test b.test", issued()));
        let limit = "5 in 7d certificates for the same names";
        assert_eq!(broken(&past, "b.test a.test"), Some((68, limit.to_owned())));
        assert_eq!(broken(&past, "a.test"), None, "another set");
        // A failed order left no certificate, and one of more than a week ago does not matter.
        past[4] = event(100, "a.test b.test", End::Failed(None));
        assert_eq!(broken(&past, "a.test b.test"), None);
        past[4] = event(168, "a.test b.test", issued());
        assert_eq!(broken(&past, "a.test b.test"), None);
    }

    #[test]
    fn fifty_certificates_for_a_registered_domain() {
        let one = |at: i64| event(at, &format!("n{at}.example.co.uk"), issued());
        let mut past: Vec<Event> = (1..=50).map(one).collect();
        let limit = "50 in 7d certificates for example.co.uk".to_owned();
        assert_eq!(broken(&past, "*.example.co.uk"), Some((118, limit)));
        assert_eq!(broken(&past, "other.co.uk"), None, "co.uk is nobody's");
        past.pop();
        assert_eq!(broken(&past, "new.example.co.uk"), None);
    }

    #[test]
    fn failed_validations_and_new_orders() {
        let failed = || End::Failed(Some("a.test".to_owned()));
        let past = vec![event(0, "a.test b.test", failed()); 5];
        let limit = "5 in 1h failed validations of a.test".to_owned();
        assert_eq!(broken(&past, "*.a.test"), Some((1, limit)));
        assert_eq!(broken(&past, "b.test"), None);
        let past: Vec<Event> = (0..300)
            .map(|number| event(1, &format!("a.n{number}.test"), End::Failed(None)))
            .collect();
        assert_eq!(broken(&past, "x.test").unwrap().0, 2);
        let limits = Limits::lets_encrypt();
        let past: Past = past.into_iter().collect();
        assert!(
            order(NOW, &limits, &past, &names("x.test"), false)
                .unwrap()
                .of_account
        );
        assert_eq!(
            order(NOW, &limits, &past, &names("x.test"), true),
            None,
            "a renewal"
        );
        assert_eq!(
            order(NOW, &Limits::default(), &past, &names("x.test"), false),
            None
        );
    }

    #[test]
    fn accounts() {
        let one = Event {
            at: NOW - Duration::hours(1),
            what: What::Account,
        };
        let limits = Limits::lets_encrypt();
        let past = |count| std::iter::repeat_n(one.clone(), count).collect::<Past>();
        assert_eq!(account(NOW, &limits, &past(9)), None);
        let until = account(NOW, &limits, &past(10)).unwrap().until;
        assert_eq!(until, NOW + Duration::hours(2));
        assert_eq!(memory(&limits), Duration::days(8));
    }

    #[test]
    fn a_certificate_counts_from_its_own_date_on_and_whatever_became_of_it() {
        let limits = Limits::lets_encrypt();
        let mut past: Past = (0..5).map(|_| event(20, "a.test", End::Sent)).collect();
        let until = |past: &Past| {
            let broken = order(NOW, &limits, past, &names("a.test"), false);
            broken.map(|broken| (broken.until - NOW).whole_hours())
        };
        assert_eq!(until(&past), Some(148));
        past.end(2, End::Placed);
        let at = NOW - Duration::HOUR;
        let is_over = false;
        past.end(2, End::Issued { at, is_over });
        assert_eq!(until(&past), Some(148));
        for id in [0, 1, 3, 4] {
            past.end(id, End::Issued { at, is_over });
        }
        assert_eq!(until(&past), Some(167));
        // It was for another key, and the CA counts it.
        past.end(2, End::Failed(None));
        assert_eq!(until(&past), Some(167));
        past.redate(2, NOW - Duration::days(9), Some(NOW - Duration::days(8)));
        assert_eq!(until(&past), None);
    }

    #[test]
    fn an_order_is_open_until_it_has_come_to_nothing() {
        let mut past: Past = [event(1, "a.test b.test", End::Sent)].into_iter().collect();
        let wanted = ["b.test".to_owned(), "a.test".to_owned()];
        let is_open = |past: &Past, now| past.is_open(0, &wanted, now);
        assert!(!is_open(&past, NOW), "the CA has not answered");
        // A crash came before it was noted where the CA has it.
        past.end(0, End::Failed(None));
        assert!(!is_open(&past, NOW));
        past.end(0, End::Placed);
        assert!(is_open(&past, NOW) && !past.is_open(1, &wanted, NOW));
        assert!(!past.is_open(0, &wanted[..1], NOW), "another's number");
        assert!(!is_open(&past, NOW + Duration::DAY));
        let (at, is_over) = (NOW, false);
        past.end(0, End::Issued { at, is_over });
        past.end(0, End::Placed);
        assert!(is_open(&past, NOW + Duration::DAY));
        assert!(!is_open(&past, NOW + Duration::WEEK));
        past.end(0, End::Failed(None));
        past.end(0, End::Placed);
        assert!(!is_open(&past, NOW));
        past.remove(0);
        assert!(past.sets.is_empty() && past.certificates.is_empty());
    }

    /// A CA issues when it is told to, and not before.
    #[test]
    fn an_order_that_nobody_goes_on_with_is_a_certificate_only_if_it_was_finalized() {
        let placed = [25, 24, 23, 1].map(|hours| event(hours, "a.test", End::Placed));
        let finalized = event(30, "a.test", End::Finalized);
        let mut past: Past = placed.into_iter().chain([finalized]).collect();
        let counted = |past: &Past| past.sets["a.test"].len();
        assert_eq!(counted(&past), 5);
        past.forget(NOW, Duration::days(7));
        assert_eq!((past.len(), counted(&past)), (5, 3));
        // Somebody was just about to, by a clock that is a little late.
        past.end(1, End::Finalized);
        assert_eq!(counted(&past), 4);
        past.forget(NOW + Duration::DAY, Duration::days(7));
        assert_eq!(counted(&past), 2);
        assert!(past.placed.is_empty());
    }

    #[test]
    fn what_was_not_validated_stays_so_whatever_is_found_out_later() {
        let failed = End::Failed(Some("a.test".to_owned()));
        let mut past: Past = [event(1, "a.test", failed.clone())].into_iter().collect();
        past.end(0, End::Placed);
        assert_eq!(past.get(0), Some(&event(1, "a.test", failed)));
    }

    #[test]
    fn what_is_over_or_ended_otherwise_counts_no_more() {
        let mut past: Past = (0..5).map(|_| event(1, "a.test", issued())).collect();
        let limits = Limits::lets_encrypt();
        let broken = |past: &Past| order(NOW, &limits, past, &names("a.test"), false);
        assert!(broken(&past).is_some());
        past.end(3, End::Failed(Some("*.a.test".to_owned())));
        assert_eq!(broken(&past), None);
        past.remove(3);
        past.add(3, event(1, "a.test", issued()));
        assert!(broken(&past).is_some());
        past.forget(NOW + Duration::days(6), Duration::days(7));
        assert_eq!(past.len(), 5);
        past.forget(NOW + Duration::days(7), Duration::days(7));
        assert!(past.is_empty() && past.orders.is_empty() && past.sets.is_empty());
        assert!(past.certificates.is_empty() && past.failures.is_empty());
    }
}
