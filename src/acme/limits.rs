//! The limits of a CA: whether one more order would break one, and when it would not. A pure
//! decision over what was ordered before; it knows no CA and no clock.
//!
//! A limit is taken as a sliding window, which is at least as strict as the refilling buckets that
//! CAs use, so that an order that passes here passes there.

use std::collections::BTreeSet;

use time::{Duration, OffsetDateTime};

use super::order::PENDING_LIFETIME;
use crate::certificate::name::Name;
use crate::clock;
use crate::config::{Limit, Limits};

/// One order, or one account, of the past.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub at: OffsetDateTime,
    pub what: What,
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

/// How an order ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// Or it runs, or a crash ended it: then there may be a certificate.
    Issued,
    /// The name that was not validated, where it was that.
    Failed(Option<String>),
}

/// A limit that one more order would break, and from when on it would not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    pub until: OffsetDateTime,
    pub limit: String,
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

/// Whether an order for these names may be sent now.
pub fn order(
    now: OffsetDateTime,
    limits: &Limits,
    past: &[Event],
    names: &[Name],
    exempt: bool,
) -> Option<Broken> {
    if exempt {
        return None;
    }
    let wanted: BTreeSet<String> = names.iter().map(Name::to_string).collect();
    let issued = |event: &Event, fits: &dyn Fn(&BTreeSet<String>) -> bool| matches!(&event.what, What::Order { names, exempt: false, end: End::Issued } if fits(names));
    let any = |event: &Event| matches!(event.what, What::Order { exempt: false, .. });
    let same = |event: &Event| issued(event, &|names| *names == wanted);
    // The cheapest to see, and the one that thousands of names would break together.
    let orders = window(now, limits.new_orders, past, "new orders", any);
    if orders.is_some() {
        return orders;
    }
    let duplicates = limits.duplicate_certificates;
    let what = "certificates for the same names";
    let mut broken = vec![window(now, duplicates, past, what, same)];
    for domain in wanted
        .iter()
        .filter_map(|name| registered_domain(name))
        .collect::<BTreeSet<_>>()
    {
        let of_domain = |names: &BTreeSet<String>| {
            let mut domains = names.iter().filter_map(|name| registered_domain(name));
            domains.any(|other| other == domain)
        };
        let what = format!("certificates for {domain}");
        let fits = |event: &Event| issued(event, &of_domain);
        broken.push(window(
            now,
            limits.certificates_per_domain,
            past,
            &what,
            fits,
        ));
    }
    for name in &wanted {
        let bare = name.strip_prefix("*.").unwrap_or(name);
        let failed = |event: &Event| {
            matches!(&event.what, What::Order { end: End::Failed(Some(failed)), .. }
                if failed.strip_prefix("*.").unwrap_or(failed) == bare)
        };
        let what = format!("failed validations of {bare}");
        broken.push(window(now, limits.failed_validations, past, &what, failed));
    }
    broken
        .into_iter()
        .flatten()
        .max_by_key(|broken| broken.until)
}

/// Whether one more account may be made now.
pub fn account(now: OffsetDateTime, limits: &Limits, past: &[Event]) -> Option<Broken> {
    let accounts = |event: &Event| event.what == What::Account;
    window(now, limits.new_accounts, past, "new accounts", accounts)
}

/// An order is resumed for so long, and its end has to find its beginning.
const SHORTEST_MEMORY: Duration = PENDING_LIFETIME;

/// How long what happened matters.
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
    longest.max(SHORTEST_MEMORY)
}

fn window(
    now: OffsetDateTime,
    limit: Option<Limit>,
    past: &[Event],
    what: &str,
    fits: impl Fn(&Event) -> bool,
) -> Option<Broken> {
    let limit = limit?;
    let per = Duration::try_from(limit.per).unwrap_or(Duration::MAX);
    // What lies in the future says that the clock was wrong then, and counts as just now.
    let recent = past
        .iter()
        .filter(|event| now - event.at < per && fits(event));
    let mut times: Vec<OffsetDateTime> = recent.map(|event| event.at.min(now)).collect();
    times.sort_unstable();
    let count = usize::try_from(limit.count).unwrap_or(usize::MAX);
    let oldest = times.len().checked_sub(count)?;
    let until = times.get(oldest).copied().unwrap_or(now) + per;
    Some(Broken {
        until,
        limit: format!("{limit} {what}"),
    })
}

/// The domain that somebody registered, below a public suffix; for addresses none.
pub(crate) fn registered_domain(name: &str) -> Option<&str> {
    let name = name.strip_prefix("*.").unwrap_or(name);
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
        let broken = order(NOW, &limits, past, &names(text), false)?;
        Some(((broken.until - NOW).whole_hours(), broken.limit))
    }

    #[test]
    fn the_same_names_five_times_in_a_week() {
        let mut past: Vec<Event> = (1..=4)
            .map(|hours| event(hours, "a.test b.test", End::Issued))
            .collect();
        assert_eq!(broken(&past, "b.test a.test"), None);
        past.push(event(100, "a.test b.test", End::Issued));
        let limit = "5 in 7d certificates for the same names";
        assert_eq!(broken(&past, "b.test a.test"), Some((68, limit.to_owned())));
        assert_eq!(broken(&past, "a.test"), None, "another set");
        // A failed order left no certificate, and one of more than a week ago does not matter.
        past[4] = event(100, "a.test b.test", End::Failed(None));
        assert_eq!(broken(&past, "a.test b.test"), None);
        past[4] = event(168, "a.test b.test", End::Issued);
        assert_eq!(broken(&past, "a.test b.test"), None);
    }

    #[test]
    fn fifty_certificates_for_a_registered_domain() {
        let one = |at: i64| event(at, &format!("n{at}.example.co.uk"), End::Issued);
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
        assert_eq!(account(NOW, &limits, &vec![one.clone(); 9]), None);
        let until = account(NOW, &limits, &vec![one; 10]).unwrap().until;
        assert_eq!(until, NOW + Duration::hours(2));
        assert_eq!(memory(&limits), Duration::days(7));
    }
}
