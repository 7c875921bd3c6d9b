//! Which certificate a name gets: every rule, one by one, and the rules together under a random
//! schedule.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use time::macros::datetime;
use time::{Duration, OffsetDateTime};

use super::explain;
use super::inventory::{EntryId, Failure, Inventory};
use super::name::Name;
use super::overdue::HostSet;
use super::table::{LiveCertificate, SourceKind};
use super::testing::Request;

const NOW: OffsetDateTime = datetime!(2027-01-01 12:00 UTC);
const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn id(source: SourceKind, file: &str) -> EntryId {
    EntryId {
        source,
        certificate: std::path::Path::new(file).into(),
    }
}

fn live(request: &Request<'_>, id: &EntryId) -> Arc<LiveCertificate> {
    Arc::new(LiveCertificate {
        key: request.issue().certified_key(),
        source: id.source,
        path: id.certificate.clone(),
        private_key: None,
        loaded_at: NOW,
        changed_at: NOW,
        asked: Default::default(),
    })
}

fn served(inventory: &Inventory, name: &str) -> Option<String> {
    let table = inventory.table();
    let choice = table.select(Some(name), LOCAL)?;
    Some(choice.best.path.display().to_string())
}

/// An inventory with one certificate a file, all as `request` makes them.
fn inventory(files: &[(SourceKind, &str, Request<'_>)]) -> Inventory {
    let mut inventory = Inventory::new(None);
    for (source, file, request) in files {
        let id = id(*source, file);
        let certificate = live(request, &id);
        inventory.loaded(&id, certificate, NOW);
    }
    inventory
}

fn request<'a>(names: &'a [&'a str]) -> Request<'a> {
    Request::new(names, NOW)
}

#[test]
fn look_ups_take_any_case_and_a_trailing_dot() {
    let inventory = inventory(&[(SourceKind::File, "a", request(&["a.test", "*.b.test"]))]);
    for name in ["a.test", "A.Test", "a.test.", "x.b.test", "X.B.TEST."] {
        assert_eq!(served(&inventory, name).as_deref(), Some("a"), "{name}");
    }
    for name in [
        "b.test",
        "x.y.b.test",
        "a.test..",
        "",
        ".",
        "test",
        ".b.test",
        &"a".repeat(300),
    ] {
        assert_eq!(served(&inventory, name), None, "{name}");
    }
}

#[test]
fn an_address_is_found_without_a_server_name_and_with_one() {
    let inventory = inventory(&[(SourceKind::File, "a", request(&["127.0.0.1"]))]);
    assert!(inventory.table().select(None, LOCAL).is_some());
    assert!(inventory.table().select(Some("127.0.0.1"), LOCAL).is_some());
    assert!(
        inventory
            .table()
            .select(None, "10.0.0.1".parse().unwrap())
            .is_none()
    );
}

#[test]
fn the_default_is_for_unknown_names_and_for_none() {
    let mut inventory = Inventory::new(Some("a.test".parse().unwrap()));
    let a = id(SourceKind::File, "a");
    inventory.loaded(&a, live(&request(&["a.test"]), &a), NOW);
    assert_eq!(served(&inventory, "other.test").as_deref(), Some("a"));
    assert!(inventory.table().select(None, LOCAL).is_some());
}

#[test]
fn a_valid_certificate_beats_one_that_is_not() {
    let expired = Request {
        not_after: NOW - Duration::MINUTE,
        ..request(&["a.test"])
    };
    let future = Request {
        not_before: NOW + Duration::HOUR,
        ..request(&["a.test"])
    };
    let inventory = inventory(&[
        (SourceKind::File, "expired", expired),
        (SourceKind::File, "future", future),
        (SourceKind::Internal, "valid", request(&["a.test"])),
    ]);
    assert_eq!(served(&inventory, "a.test").as_deref(), Some("valid"));
}

#[test]
fn an_expired_certificate_is_served_where_nothing_better_is_there() {
    let expired = Request {
        not_after: NOW - Duration::MINUTE,
        ..request(&["a.test"])
    };
    let inventory = inventory(&[(SourceKind::File, "expired", expired)]);
    assert_eq!(served(&inventory, "a.test").as_deref(), Some("expired"));
}

#[test]
fn exact_beats_wildcard_unless_it_is_not_valid() {
    let wildcard = || (SourceKind::File, "wildcard", request(&["*.test"]));
    let exact = (SourceKind::Internal, "exact", request(&["a.test"]));
    assert_eq!(
        served(&inventory(&[wildcard(), exact]), "a.test").as_deref(),
        Some("exact")
    );
    let expired = Request {
        not_after: NOW - Duration::MINUTE,
        ..request(&["a.test"])
    };
    let expired = (SourceKind::File, "exact", expired);
    assert_eq!(
        served(&inventory(&[wildcard(), expired]), "a.test").as_deref(),
        Some("wildcard")
    );
}

#[test]
fn sources_have_their_order() {
    let all = [
        (SourceKind::Internal, "internal"),
        (SourceKind::Acme, "acme"),
        (SourceKind::Folder, "folder"),
        (SourceKind::File, "file"),
    ];
    for n in 1..=all.len() {
        let files: Vec<_> = all[..n]
            .iter()
            .map(|(source, file)| (*source, *file, request(&["a.test"])))
            .collect();
        assert_eq!(
            served(&inventory(&files), "a.test").as_deref(),
            Some(all[n - 1].1)
        );
    }
}

#[test]
fn the_newest_start_wins_then_the_longest_chain() {
    let older = Request {
        not_before: NOW - Duration::days(2),
        ..request(&["a.test"])
    };
    let files = [
        (SourceKind::Folder, "z-older", older),
        (SourceKind::Folder, "newer", request(&["a.test"])),
    ];
    assert_eq!(
        served(&inventory(&files), "a.test").as_deref(),
        Some("newer")
    );
    let chain = Request {
        intermediate: true,
        ..request(&["a.test"])
    };
    let files = [
        (SourceKind::Folder, "fullchain", chain),
        (SourceKind::Folder, "z-leaf-only", request(&["a.test"])),
    ];
    assert_eq!(
        served(&inventory(&files), "a.test").as_deref(),
        Some("fullchain")
    );
}

#[test]
fn of_two_that_start_together_the_one_that_was_written_last_wins() {
    let mut inventory = Inventory::new(None);
    let request = request(&["a.test"]);
    for (file, age) in [("a-new", 0), ("z-backup", 1)] {
        let id = id(SourceKind::Folder, file);
        let live = LiveCertificate {
            key: request.issue().certified_key(),
            source: id.source,
            path: id.certificate.clone(),
            private_key: None,
            loaded_at: NOW,
            changed_at: NOW - Duration::seconds(age),
            asked: Default::default(),
        };
        inventory.loaded(&id, Arc::new(live), NOW);
    }
    assert_eq!(served(&inventory, "a.test").as_deref(), Some("a-new"));
}

#[test]
fn another_key_algorithm_stands_by() {
    let rsa = Request {
        algorithm: &rcgen::PKCS_RSA_SHA256,
        ..request(&["a.test"])
    };
    let inventory = inventory(&[
        (SourceKind::File, "ecdsa", request(&["a.test"])),
        (SourceKind::Folder, "rsa", rsa),
    ]);
    let table = inventory.table();
    let choice = table.select(Some("a.test"), LOCAL).unwrap();
    assert_eq!(&*choice.best.path, std::path::Path::new("ecdsa"));
    assert_eq!(
        &*choice.alternate.as_ref().unwrap().path,
        std::path::Path::new("rsa")
    );
}

#[test]
fn choices_change_with_time_alone() {
    let soon = Request {
        not_after: NOW + Duration::MINUTE,
        ..request(&["a.test"])
    };
    let later = Request {
        not_before: NOW + Duration::HOUR,
        ..request(&["a.test"])
    };
    let mut inventory = inventory(&[
        (SourceKind::File, "first", soon),
        (SourceKind::Internal, "second", request(&["a.test"])),
        (SourceKind::File, "third", later),
    ]);
    assert_eq!(served(&inventory, "a.test").as_deref(), Some("first"));
    assert_eq!(inventory.next_boundary(), Some(NOW + Duration::MINUTE));
    assert!(
        inventory.advance(NOW + Duration::MINUTE).is_empty(),
        "the last second is part of the validity"
    );
    assert_eq!(
        inventory
            .advance(NOW + Duration::MINUTE + Duration::SECOND)
            .len(),
        1
    );
    assert_eq!(served(&inventory, "a.test").as_deref(), Some("second"));
    assert_eq!(
        inventory
            .advance(NOW + Duration::HOUR + Duration::SECOND)
            .len(),
        1
    );
    assert_eq!(served(&inventory, "a.test").as_deref(), Some("third"));
}

#[test]
fn a_failure_keeps_the_last_good_one_and_is_news_once() {
    let mut inventory = inventory(&[(SourceKind::File, "a", request(&["a.test"]))]);
    let a = id(SourceKind::File, "a");
    let failure = |cause: &str| Failure {
        path: "a".into(),
        cause: cause.into(),
        since: NOW,
    };
    assert!(inventory.failed(&a, failure("is cut off"), NOW));
    assert!(!inventory.failed(&a, failure("is cut off"), NOW));
    assert!(inventory.failed(&a, failure("is empty"), NOW));
    assert_eq!(served(&inventory, "a.test").as_deref(), Some("a"));
    assert!(inventory.recovered(&a, NOW));
    assert!(!inventory.recovered(&a, NOW));
    assert!(inventory.get(&a).unwrap().failure.is_none());
}

#[test]
fn what_vanished_is_served_below_everything_on_disk() {
    let mut inventory = inventory(&[(SourceKind::File, "a", request(&["a.test"]))]);
    let a = id(SourceKind::File, "a");
    assert!(inventory.vanished(&a, NOW));
    assert!(!inventory.vanished(&a, NOW));
    assert_eq!(served(&inventory, "a.test").as_deref(), Some("a"));
    let b = id(SourceKind::Internal, "b");
    inventory.loaded(&b, live(&request(&["a.test"]), &b), NOW);
    assert_eq!(served(&inventory, "a.test").as_deref(), Some("b"));
    assert!(inventory.get(&a).is_none(), "nothing needs it any more");
}

#[test]
fn names_that_a_new_certificate_drops_are_dropped() {
    let mut inventory = inventory(&[(SourceKind::File, "a", request(&["a.test", "b.test"]))]);
    let a = id(SourceKind::File, "a");
    inventory.loaded(&a, live(&request(&["a.test"]), &a), NOW);
    assert!(served(&inventory, "a.test").is_some());
    assert_eq!(served(&inventory, "b.test"), None);
    assert_eq!(inventory.table().len(), 1);
}

#[test]
fn how_long_files_cover_a_name_is_known() {
    let inventory = inventory(&[
        (SourceKind::Folder, "wildcard", request(&["*.test"])),
        (SourceKind::Acme, "acme", request(&["a.test"])),
    ]);
    let name: Name = "a.test".parse().unwrap();
    let table = inventory.table();
    let until = table
        .covering(&name)
        .filter_map(|choice| choice.file_valid_until)
        .max();
    assert_eq!(until, Some(NOW + Duration::days(90)));
}

fn taken_over() -> HostSet {
    let hosts = ["b.test", "c.b.test"];
    hosts
        .into_iter()
        .map(|host| host.parse().unwrap())
        .collect()
}

/// What must hold after any history: a name is served if any live certificate has it, by one that
/// is live, and by a valid one if there is a valid one.
fn check_invariants(inventory: &Inventory, names: &[&str], now: OffsetDateTime) {
    let table = inventory.table();
    for text in names {
        let name: Name = text.parse().unwrap();
        let covering: Vec<_> = inventory
            .entries()
            .into_iter()
            .filter_map(|(_, entry)| Some((entry.on_disk, entry.live.clone()?)))
            .filter(|(_, live)| live.covers(&name))
            .collect();
        let Some(choice) = table.get(&name) else {
            assert!(
                covering.is_empty(),
                "{text} is not served, though a certificate has it"
            );
            continue;
        };
        assert!(
            covering
                .iter()
                .any(|(_, live)| Arc::ptr_eq(live, &choice.best)),
            "{text}"
        );
        let takeover = taken_over();
        let entries = inventory.entries();
        let entries = entries.iter().map(|(id, entry)| (id, &**entry));
        let explained = explain::candidates(entries, &name, &takeover, now);
        assert!(
            std::ptr::eq(explained[0].live, &*choice.best),
            "{text}: what is explained is not what is chosen"
        );
        let valid = |(_, live): &(bool, Arc<LiveCertificate>)| live.key.is_valid_at(now);
        assert_eq!(
            choice.best.key.is_valid_at(now),
            covering.iter().any(valid),
            "{text}"
        );
        let best_on_disk = covering
            .iter()
            .any(|(on_disk, live)| *on_disk && Arc::ptr_eq(live, &choice.best));
        let better = covering
            .iter()
            .any(|c| c.0 && valid(c) == choice.best.key.is_valid_at(now));
        assert!(
            best_on_disk || !better,
            "{text}: something on disk is as valid"
        );
    }
}

#[test]
fn a_name_that_falls_to_its_wildcard_has_changed() {
    let soon = Request {
        not_after: NOW + Duration::HOUR,
        ..request(&["a.test"])
    };
    let mut inventory = inventory(&[
        (SourceKind::File, "exact", soon),
        (SourceKind::File, "wildcard", request(&["*.test"])),
    ]);
    let _ = inventory.take_changed();
    inventory.advance(NOW + Duration::DAY);
    assert_eq!(served(&inventory, "a.test").unwrap(), "wildcard");
    assert_eq!(inventory.take_changed(), ["a.test".parse().unwrap()]);
}

#[test]
fn what_is_taken_out_of_the_configuration_is_not_served_any_longer() {
    let names = ["a.test", "b.test"];
    let mut inventory = inventory(&[
        (SourceKind::File, "both", request(&names)),
        (SourceKind::Folder, "one", request(&names[..1])),
    ]);
    assert_eq!(served(&inventory, "a.test").unwrap(), "both");
    assert!(inventory.remove(&id(SourceKind::File, "both"), NOW));
    assert_eq!(served(&inventory, "a.test").unwrap(), "one");
    assert_eq!(served(&inventory, "b.test"), None);
    assert!(!inventory.remove(&id(SourceKind::File, "both"), NOW));
    inventory.set_default(Some("a.test".parse().unwrap()));
    assert_eq!(served(&inventory, "b.test").unwrap(), "one");
    // Not even if it had vanished from disk before.
    inventory.vanished(&id(SourceKind::Folder, "one"), NOW);
    assert_eq!(served(&inventory, "a.test").unwrap(), "one");
    assert!(inventory.remove(&id(SourceKind::Folder, "one"), NOW));
    assert!(inventory.table().is_empty());
}

#[test]
fn any_history_keeps_the_invariants() {
    let seed: u64 = match std::env::var("PERENNIAL_TEST_SEED") {
        Ok(text) => text.parse().unwrap(),
        Err(_) => rand::random(),
    };
    println!("PERENNIAL_TEST_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let names = ["a.test", "b.test", "*.test", "c.b.test", "*.b.test"];
    let sources = [
        SourceKind::File,
        SourceKind::Folder,
        SourceKind::Acme,
        SourceKind::Internal,
    ];
    let mut inventory = Inventory::new(None).taking_over(taken_over());
    let mut now = NOW;
    for _ in 0..2_000 {
        let id = id(
            *sources.choose(&mut rng).unwrap(),
            &format!("file-{}", rng.random_range(0..4)),
        );
        match rng.random_range(0..10) {
            0..4 => {
                let count = rng.random_range(1..=3);
                let chosen: Vec<&str> = names.choose_multiple(&mut rng, count).copied().collect();
                let start = now + Duration::minutes(rng.random_range(-100..20));
                let request = Request {
                    not_before: start,
                    not_after: start + Duration::minutes(rng.random_range(1..200)),
                    ..Request::new(&chosen, now)
                };
                inventory.loaded(&id, live(&request, &id), now);
            }
            4 => {
                let failure = Failure {
                    path: "x".into(),
                    cause: "broken".into(),
                    since: now,
                };
                inventory.failed(&id, failure, now);
            }
            5 => drop(inventory.recovered(&id, now)),
            6 => drop(inventory.vanished(&id, now)),
            7 => drop(inventory.remove(&id, now)),
            _ => {
                // Clocks are set back, too.
                now += Duration::seconds(rng.random_range(-600..1_200));
                inventory.advance(now);
            }
        }
        check_invariants(&inventory, &names, now);
    }
}
