//! How many new names may be asked about, by one network, below one domain, and by everybody:
//! token buckets. Pure: time is an argument.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;

use time::{Duration, OffsetDateTime};

use crate::acme::limits::registered_domain;
use crate::config::{Budgets, IpPrefix, Limit};
use crate::token_bucket::TokenBucket;

/// Networks and domains that are remembered at the same time. The total budget keeps them far
/// below; without one, newcomers are refused rather than memory spent.
const MAX_TRACKED: usize = 1 << 16;

/// A look at all of them costs a millisecond or two: a flood must not cause one each.
const CLEAR_INTERVAL: Duration = Duration::seconds(1);

/// What one site's customer usually has: addresses within it are one client.
const IPV4_PREFIX_BITS: u8 = 24;
const IPV6_PREFIX_BITS: u8 = 56;

/// The budgets of this process.
#[derive(Debug)]
pub struct Purse {
    per_client: Budget<Network>,
    per_domain: Budget<Box<str>>,
    total: Budget<()>,
}

/// The network of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Network(IpPrefix);

/// A budget that is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spent {
    PerClient,
    PerDomain,
    Total,
}

impl Spent {
    /// As the configuration calls it.
    pub fn as_str(self) -> &'static str {
        match self {
            Spent::PerClient => "per_client",
            Spent::PerDomain => "per_domain",
            Spent::Total => "total",
        }
    }
}

/// How one budget stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    pub name: &'static str,
    pub limit: Option<Limit>,
    /// Networks or domains that have used some of theirs.
    pub tracked: usize,
    /// How often it was used up when somebody asked.
    pub refusals: u64,
}

impl Network {
    pub fn of(client: IpAddr) -> Network {
        Network(IpPrefix::around(client, IPV4_PREFIX_BITS, IPV6_PREFIX_BITS))
    }
}

impl Purse {
    pub fn new(limits: Budgets) -> Purse {
        Purse {
            per_client: Budget::new(limits.per_client),
            per_domain: Budget::new(limits.per_domain),
            total: Budget::new(limits.total),
        }
    }

    /// Goes on with these limits. A budget that stays the same keeps what was spent of it.
    pub fn set_limits(&mut self, limits: Budgets) {
        self.per_client.set_limit(limits.per_client);
        self.per_domain.set_limit(limits.per_domain);
        self.total.set_limit(limits.total);
    }

    /// Spends one of each, or nothing at all if one of them is used up.
    pub fn spend(&mut self, name: &str, client: IpAddr, now: OffsetDateTime) -> Result<(), Spent> {
        let network = Network::of(client);
        let domain: Box<str> = registered_domain(name).unwrap_or(name).into();
        if !self.per_client.has(&network, now) {
            return Err(Spent::PerClient);
        }
        if !self.per_domain.has(&domain, now) {
            return Err(Spent::PerDomain);
        }
        if !self.total.has(&(), now) {
            return Err(Spent::Total);
        }
        self.per_client.take(network, now);
        self.per_domain.take(domain, now);
        self.total.take((), now);
        Ok(())
    }

    pub fn standings(&self) -> [Standing; 3] {
        [
            self.per_client.standing(Spent::PerClient),
            self.per_domain.standing(Spent::PerDomain),
            self.total.standing(Spent::Total),
        ]
    }
}

/// One kind of budget: a bucket for each key that has spent something.
#[derive(Debug)]
struct Budget<K> {
    limit: Option<Limit>,
    buckets: HashMap<K, TokenBucket<OffsetDateTime>>,
    /// When those that are full again were forgotten.
    cleared_at: OffsetDateTime,
    refusals: u64,
}

impl<K: Hash + Eq> Budget<K> {
    fn new(limit: Option<Limit>) -> Budget<K> {
        Budget {
            limit,
            buckets: HashMap::new(),
            cleared_at: OffsetDateTime::UNIX_EPOCH,
            refusals: 0,
        }
    }

    fn set_limit(&mut self, limit: Option<Limit>) {
        if self.limit != limit {
            self.limit = limit;
            self.buckets.clear();
        }
    }

    fn has(&mut self, key: &K, now: OffsetDateTime) -> bool {
        let Some(limit) = self.limit else {
            return true;
        };
        let has = match self.buckets.get(key) {
            Some(bucket) => bucket.wait(limit, now) == 0.0,
            None => self.has_room(limit, now),
        };
        self.refusals += u64::from(!has);
        has
    }

    fn has_room(&mut self, limit: Limit, now: OffsetDateTime) -> bool {
        let elapsed = (now - self.cleared_at).abs();
        if self.buckets.len() >= MAX_TRACKED && elapsed >= CLEAR_INTERVAL {
            self.cleared_at = now;
            // What is full again is as good as unknown.
            self.buckets.retain(|_, bucket| !bucket.is_full(limit, now));
        }
        self.buckets.len() < MAX_TRACKED
    }

    fn take(&mut self, key: K, now: OffsetDateTime) {
        let Some(limit) = self.limit else { return };
        let bucket = self.buckets.entry(key);
        bucket.or_insert(TokenBucket::full(now)).take(limit, now);
    }

    fn standing(&self, name: Spent) -> Standing {
        Standing {
            name: name.as_str(),
            limit: self.limit,
            tracked: self.buckets.len(),
            refusals: self.refusals,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration as StdDuration;

    use time::macros::datetime;

    use super::*;

    const NOW: OffsetDateTime = datetime!(2026-11-25 12:00 UTC);

    fn limit(count: u32, seconds: u64) -> Option<Limit> {
        Some(Limit {
            count,
            per: StdDuration::from_secs(seconds),
        })
    }

    fn purse(per_client: Option<Limit>, per_domain: Option<Limit>, total: Option<Limit>) -> Purse {
        Purse::new(Budgets {
            per_client,
            per_domain,
            total,
        })
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn addresses_of_one_network_are_one_client() {
        for (a, b, same) in [
            ("192.0.2.1", "192.0.2.254", true),
            ("192.0.2.1", "192.0.3.1", false),
            ("::ffff:192.0.2.1", "192.0.2.9", true),
            ("2001:db8:0:ff::1", "2001:db8::2", true),
            ("2001:db8:0:100::1", "2001:db8::2", false),
        ] {
            assert_eq!(Network::of(ip(a)) == Network::of(ip(b)), same, "{a} {b}");
        }
    }

    #[test]
    fn a_bucket_empties_and_refills_evenly() {
        let mut purse = purse(limit(2, 60), None, None);
        let mut spend = |client: &str, seconds: i64| {
            let now = NOW + Duration::seconds(seconds);
            purse.spend("a.test", ip(client), now)
        };
        assert_eq!(spend("192.0.2.1", 0), Ok(()));
        assert_eq!(spend("192.0.2.2", 0), Ok(()));
        assert_eq!(spend("192.0.2.3", 0), Err(Spent::PerClient));
        assert_eq!(spend("198.51.100.1", 0), Ok(()), "another network");
        assert_eq!(spend("192.0.2.1", 29), Err(Spent::PerClient));
        assert_eq!(spend("192.0.2.1", 30), Ok(()), "one in half a minute");
        assert_eq!(spend("192.0.2.1", 30), Err(Spent::PerClient));
        // The clock is set back: nothing refills, and nothing is lost.
        assert_eq!(spend("192.0.2.1", -3600), Err(Spent::PerClient));
        // After a long time there are two again, not more.
        assert_eq!(spend("192.0.2.1", 7200), Ok(()));
        assert_eq!(spend("192.0.2.1", 7200), Ok(()));
        assert_eq!(spend("192.0.2.1", 7200), Err(Spent::PerClient));
        assert_eq!(purse.standings()[0].refusals, 5);
    }

    #[test]
    fn names_below_one_registered_domain_share_theirs() {
        let mut purse = purse(None, limit(1, 60), None);
        let mut spend = |name: &str| purse.spend(name, ip("192.0.2.1"), NOW);
        assert_eq!(spend("a.example.co.uk"), Ok(()));
        assert_eq!(spend("b.c.example.co.uk"), Err(Spent::PerDomain));
        assert_eq!(spend("example.co.uk"), Err(Spent::PerDomain));
        assert_eq!(spend("other.co.uk"), Ok(()));
        // A public suffix itself is a domain of its own.
        assert_eq!(spend("co.uk"), Ok(()));
    }

    #[test]
    fn what_one_budget_refuses_costs_the_others_nothing() {
        let mut purse = purse(limit(5, 60), limit(5, 60), limit(2, 60));
        let mut spend = |name: &str| purse.spend(name, ip("192.0.2.1"), NOW);
        assert_eq!(spend("a.one.test"), Ok(()));
        assert_eq!(spend("a.two.test"), Ok(()));
        for _ in 0..10 {
            assert_eq!(spend("a.three.test"), Err(Spent::Total));
        }
        purse.set_limits(Budgets {
            per_client: limit(5, 60),
            per_domain: limit(5, 60),
            total: None,
        });
        let mut spend = |name: &str| purse.spend(name, ip("192.0.2.1"), NOW);
        for name in ["b.one.test", "b.two.test", "b.three.test"] {
            assert_eq!(spend(name), Ok(()), "of five, two were spent");
        }
        assert_eq!(spend("c.one.test"), Err(Spent::PerClient));
    }

    #[test]
    fn memory_is_bounded_whatever_comes() {
        let mut purse = purse(limit(1, 60), None, None);
        for network in 0..70_000_u32 {
            let client = IpAddr::V4((network << 8).into());
            let result = purse.spend("a.test", client, NOW);
            let room = usize::try_from(network).unwrap() < MAX_TRACKED;
            assert_eq!(result.is_ok(), room, "{network}");
        }
        assert_eq!(purse.standings()[0].tracked, MAX_TRACKED);
        let later = NOW + Duration::minutes(1);
        let newcomer = ip("203.0.113.1");
        assert_eq!(purse.spend("a.test", newcomer, later), Ok(()));
        assert_eq!(purse.standings()[0].tracked, 1, "refilled is forgotten");
    }
}
