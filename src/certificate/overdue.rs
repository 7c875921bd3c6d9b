//! Certificates that somebody else renews and that are late: past the part of their lifetime at
//! which a renewal is due, with nothing newer in their place. Pure: time is an argument.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use time::{Duration, OffsetDateTime};

use super::inventory::{Entry, EntryId};
use super::name::Name;
use super::table::{Claim, LiveCertificate};

/// A certificate of a shorter lifetime than this is due at half of it, any other at two thirds.
const SHORT_LIFETIME: Duration = Duration::days(10);

/// The part of a lifetime after which a renewal is due.
pub fn due_after(lifetime: Duration) -> Duration {
    if lifetime < SHORT_LIFETIME {
        lifetime / 2
    } else {
        lifetime * 2 / 3
    }
}

impl LiveCertificate {
    /// When it should have been replaced.
    pub fn due_at(&self) -> OffsetDateTime {
        let lifetime = self.key.not_after() - self.key.not_before();
        self.key.not_before() + due_after(lifetime)
    }

    /// Whether somebody else renews it and is late.
    pub fn is_overdue(&self, now: OffsetDateTime) -> bool {
        self.source.is_external() && now > self.due_at()
    }
}

/// Some hosts, to be asked whether a certificate's name concerns one of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostSet {
    hosts: HashSet<Name>,
    /// What stands after the first label of the hosts.
    parents: HashSet<Arc<str>>,
}

impl HostSet {
    /// Whether `name` is one of the hosts, or a wildcard that covers one.
    pub fn concerns(&self, name: &Name) -> bool {
        self.hosts.contains(name)
            || matches!(name, Name::Wildcard(parent) if self.parents.contains(parent))
    }
}

impl FromIterator<Name> for HostSet {
    fn from_iter<I: IntoIterator<Item = Name>>(hosts: I) -> HostSet {
        let mut set = HostSet::default();
        for host in hosts {
            if let Name::Dns(dns) = &host
                && let Some((_, parent)) = dns.split_once('.')
            {
                set.parents.insert(parent.into());
            }
            set.hosts.insert(host);
        }
        set
    }
}

/// What a certificate may claim of `name`, where `takeover` are the hosts for which we step in:
/// for them our own certificate is a stopgap, which comes after whatever is renewed in time and
/// before what is not.
pub fn claim(
    live: &LiveCertificate,
    name: &Name,
    takeover: &HostSet,
    now: OffsetDateTime,
) -> Claim {
    if !takeover.concerns(name) {
        Claim::Ordinary
    } else if !live.source.is_external() {
        Claim::Stopgap
    } else if live.is_overdue(now) {
        Claim::Overdue
    } else {
        Claim::Ordinary
    }
}

/// The certificates that are late, and when that has to be asked again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Late {
    pub entries: BTreeMap<EntryId, Overdue>,
    /// The next instant at which another one becomes late.
    pub next: Option<OffsetDateTime>,
}

/// One certificate that was not replaced in time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overdue {
    /// The names that are served with it and have nothing newer.
    pub names: Vec<Name>,
    pub since: OffsetDateTime,
    pub not_after: OffsetDateTime,
}

/// Finds what is late among the certificates for the `served` hosts.
pub fn late<'e>(
    entries: impl Iterator<Item = (&'e EntryId, &'e Entry)> + Clone,
    served: &HostSet,
    now: OffsetDateTime,
) -> Late {
    let external = entries.filter_map(|(id, entry)| {
        let live = entry.live.as_deref().filter(|_| entry.on_disk)?;
        live.source.is_external().then_some((id, live))
    });
    let mut fresh: HashSet<&Name> = HashSet::new();
    for (_, live) in external.clone() {
        if !live.is_overdue(now) && live.key.is_valid_at(now) {
            fresh.extend(live.key.names());
        }
    }
    let is_fresh = |name: &Name| {
        let wildcard = match name {
            Name::Dns(dns) => dns.split_once('.'),
            Name::Wildcard(_) | Name::Ip(_) => None,
        };
        let wildcard = wildcard.map(|(_, parent)| Name::Wildcard(parent.into()));
        fresh.contains(name) || wildcard.is_some_and(|wildcard| fresh.contains(&wildcard))
    };
    let mut late = Late::default();
    for (id, live) in external {
        let names = || live.key.names().iter().filter(|name| served.concerns(name));
        if !live.is_overdue(now) {
            let due = names().next().map(|_| live.due_at());
            late.next = late.next.into_iter().chain(due).min();
            continue;
        }
        let names: Vec<Name> = names().filter(|name| !is_fresh(name)).cloned().collect();
        if !names.is_empty() {
            let overdue = Overdue {
                names,
                since: live.due_at(),
                not_after: live.key.not_after(),
            };
            late.entries.insert(id.clone(), overdue);
        }
    }
    late
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificate::inventory::Inventory;
    use crate::certificate::table::SourceKind;
    use crate::certificate::testing::Request;
    use time::macros::datetime;

    const NOW: OffsetDateTime = datetime!(2027-01-01 12:00 UTC);

    fn hosts(names: &[&str]) -> HostSet {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    fn id(source: SourceKind, file: &str) -> EntryId {
        EntryId {
            source,
            certificate: std::path::Path::new(file).into(),
        }
    }

    /// Adds a certificate of 90 days that began so many days ago.
    fn add(inventory: &mut Inventory, id: &EntryId, names: &[&str], age: i64) {
        let not_before = NOW - Duration::days(age);
        let request = Request {
            not_before,
            not_after: not_before + Duration::days(90),
            ..Request::new(names, NOW)
        };
        let live = LiveCertificate {
            key: request.issue().certified_key(),
            source: id.source,
            path: id.certificate.clone(),
            private_key: None,
            loaded_at: NOW,
            changed_at: NOW,
            asked: Default::default(),
        };
        inventory.loaded(id, Arc::new(live), NOW);
    }

    fn served(inventory: &Inventory, name: &str) -> String {
        let table = inventory.table();
        let choice = table.get(&name.parse().unwrap()).unwrap();
        choice.best.path.display().to_string()
    }

    fn late_files(inventory: &Inventory, served: &HostSet, now: OffsetDateTime) -> Vec<String> {
        let entries = inventory.entries();
        let entries = entries.iter().map(|(id, entry)| (id, &**entry));
        let late = late(entries, served, now);
        let files = late.entries.keys();
        files
            .map(|id| id.certificate.display().to_string())
            .collect()
    }

    #[test]
    fn due_at_two_thirds_and_short_ones_at_half() {
        assert_eq!(due_after(Duration::days(90)), Duration::days(60));
        assert_eq!(due_after(Duration::days(9)), Duration::hours(108));
        assert_eq!(due_after(Duration::seconds(40)), Duration::seconds(20));
    }

    #[test]
    fn a_host_set_knows_the_wildcards_above_its_hosts() {
        let set = hosts(&["a.b.test", "192.0.2.1", "*.c.test"]);
        for name in ["a.b.test", "*.b.test", "192.0.2.1", "*.c.test"] {
            assert!(set.concerns(&name.parse().unwrap()), "{name}");
        }
        for name in ["b.test", "*.a.b.test", "x.c.test", "*.test"] {
            assert!(!set.concerns(&name.parse().unwrap()), "{name}");
        }
    }

    #[test]
    fn late_is_what_is_served_and_has_nothing_newer() {
        let mut inventory = Inventory::new(None);
        let file = |file| id(SourceKind::File, file);
        add(&mut inventory, &file("old"), &["a.test", "x.test"], 61);
        add(&mut inventory, &file("young"), &["b.test"], 59);
        add(&mut inventory, &file("unserved"), &["z.test"], 80);
        add(
            &mut inventory,
            &id(SourceKind::Acme, "own"),
            &["a.test"],
            80,
        );
        let served = hosts(&["a.test", "b.test"]);
        assert_eq!(late_files(&inventory, &served, NOW), ["old"]);
        let entries = inventory.entries();
        let entries = entries.iter().map(|(id, entry)| (id, &**entry));
        let found = late(entries, &served, NOW);
        let old = &found.entries[&file("old")];
        assert_eq!(old.names, ["a.test".parse().unwrap()]);
        assert_eq!(old.since, NOW - Duration::DAY);
        assert_eq!(found.next, Some(NOW + Duration::DAY));
        assert_eq!(
            late_files(&inventory, &served, NOW + Duration::days(2)),
            ["old", "young"]
        );
        add(
            &mut inventory,
            &id(SourceKind::Folder, "new"),
            &["*.test"],
            1,
        );
        assert!(late_files(&inventory, &served, NOW).is_empty());
    }

    #[test]
    fn what_is_late_yields_to_ours_where_we_take_over() {
        let mut inventory = Inventory::new(None).taking_over(hosts(&["a.test"]));
        let file = id(SourceKind::File, "theirs");
        add(&mut inventory, &file, &["a.test", "b.test"], 59);
        let ours = id(SourceKind::Internal, "ours");
        add(&mut inventory, &ours, &["a.test", "b.test"], 1);
        assert_eq!(served(&inventory, "a.test"), "theirs");
        let due = NOW + Duration::DAY;
        assert_eq!(inventory.next_boundary(), Some(due));
        inventory.take_changed();
        inventory.advance(due + Duration::SECOND);
        assert_eq!(served(&inventory, "a.test"), "ours");
        assert_eq!(served(&inventory, "b.test"), "theirs");
        assert_eq!(inventory.take_changed(), ["a.test".parse().unwrap()]);
        add(&mut inventory, &file, &["a.test", "b.test"], 1);
        assert_eq!(served(&inventory, "a.test"), "theirs");
    }

    #[test]
    fn what_is_late_stays_before_ours_that_has_expired() {
        let mut inventory = Inventory::new(None).taking_over(hosts(&["a.test"]));
        add(
            &mut inventory,
            &id(SourceKind::File, "theirs"),
            &["a.test"],
            80,
        );
        add(
            &mut inventory,
            &id(SourceKind::Internal, "ours"),
            &["a.test"],
            91,
        );
        assert_eq!(served(&inventory, "a.test"), "theirs");
    }

    #[test]
    fn a_wildcard_in_time_beats_our_exact_stopgap_and_a_late_one_does_not() {
        let mut inventory = Inventory::new(None).taking_over(hosts(&["a.test"]));
        let wildcard = id(SourceKind::Folder, "wildcard");
        add(&mut inventory, &wildcard, &["*.test"], 61);
        assert_eq!(served(&inventory, "a.test"), "wildcard");
        add(
            &mut inventory,
            &id(SourceKind::Acme, "ours"),
            &["a.test"],
            0,
        );
        assert_eq!(served(&inventory, "a.test"), "ours");
        add(&mut inventory, &wildcard, &["*.test"], 1);
        assert_eq!(served(&inventory, "a.test"), "wildcard");
    }

    #[test]
    fn files_cover_a_name_until_the_last_of_them_is_due() {
        let mut inventory = Inventory::new(None);
        add(
            &mut inventory,
            &id(SourceKind::File, "old"),
            &["a.test"],
            61,
        );
        add(
            &mut inventory,
            &id(SourceKind::Folder, "new"),
            &["a.test"],
            10,
        );
        let table = inventory.table();
        let choice = table.get(&"a.test".parse().unwrap()).unwrap();
        assert_eq!(choice.file_due_at, Some(NOW + Duration::days(50)));
        assert!(choice.file_known);
    }
}
