//! Which certificate a handshake gets, with openssl as the client that says precisely what it
//! wants.

use std::net::SocketAddr;
use std::time::Duration;

use crate::reload::EVENTS;
use crate::reload::LIMIT;
use crate::support::certs::{KeyKind, Leaf, TestCa, serial_of_pem};
use crate::support::client::{serial, served};
use crate::support::clock;
use crate::support::command::{Finished, s_client};
use crate::support::perennial::Perennial;
use crate::support::place::Place;
use crate::support::sites::site;
use crate::support::wait::{SOON, never_within, wait_until};
use crate::support::writers::Pair;

const NAME: &str = "a.example.test";
/// RFC 6066 section 3.
const UNRECOGNIZED_NAME: &str = "SSL alert number 112";

/// A program that serves these leaves for one site; `first` continues `[certificates]`.
async fn serving(place: Place, first: &str, host: &str, leaves: &[&Leaf]) -> Perennial {
    let numbered = leaves.iter().enumerate();
    let tables: String = numbered
        .map(|(number, leaf)| Pair::write(&place.path(number.to_string()), leaf).table())
        .collect();
    let site = site(host, "files", &["respond:hello"]);
    let config = format!("{EVENTS}{first}{tables}{site}");
    let mut perennial = Perennial::run(place, &config).await;
    perennial.wait_ready().await;
    perennial
}

/// A handshake by openssl with these options.
async fn handshake(addr: SocketAddr, options: &[&str]) -> Finished {
    let addr = addr.to_string();
    s_client(&[&["-connect", &addr], options].concat()).await
}

/// The serial that openssl was shown.
async fn shown(addr: SocketAddr, options: &[&str]) -> String {
    let done = handshake(addr, options).await;
    serial_of_pem(&done.stdout).unwrap_or_else(|| panic!("{options:?}: {done:#?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn rsa_and_ecdsa_side_by_side() {
    let (place, ca) = (Place::new(), TestCa::new());
    let begin = clock::now() - time::Duration::HOUR;
    let end = begin + time::Duration::days(90);
    let [rsa, ecdsa] =
        [KeyKind::Rsa2048, KeyKind::P256].map(|kind| ca.leaf_with(&[NAME], begin, end, kind));
    let perennial = serving(place, "", NAME, &[&rsa, &ecdsa]).await;
    let name = ["-servername", NAME];
    for (offer, leaf) in [
        (["-tls1_3", "-sigalgs", "RSA-PSS+SHA256"], &rsa),
        (["-tls1_3", "-sigalgs", "ECDSA+SHA256"], &ecdsa),
        (["-tls1_2", "-cipher", "ECDHE-RSA-AES128-GCM-SHA256"], &rsa),
        (
            ["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"],
            &ecdsa,
        ),
    ] {
        let options = [&name[..], &offer].concat();
        let serial = shown(perennial.place.https, &options).await;
        assert_eq!(serial, leaf.serial, "{offer:?}");
    }
}

/// The site's host may be a name of either kind; a renewal of one leaves the other in service.
#[tokio::test(flavor = "multi_thread")]
async fn the_one_of_two_kinds_that_is_renewed() {
    let (place, ca) = (Place::new(), TestCa::new());
    let begin = clock::now() - time::Duration::HOUR;
    let end = begin + time::Duration::days(90);
    let make = |kind| ca.leaf_with(&[NAME], begin, end, kind);
    let (rsa, ecdsa) = (make(KeyKind::Rsa2048), make(KeyKind::P256));
    let folder = place.path("0");
    let perennial = serving(place, "", NAME, &[&rsa, &ecdsa]).await;
    let renewed = make(KeyKind::Rsa2048);
    Pair::at(&folder).overwrite(&renewed);
    let rsa_only = ["-servername", NAME, "-sigalgs", "RSA-PSS+SHA256"];
    wait_until(LIMIT, "the renewed RSA certificate", async || {
        let serial = shown(perennial.place.https, &rsa_only).await;
        (serial == renewed.serial).then_some(())
    })
    .await;
    let ecdsa_only = ["-servername", NAME, "-sigalgs", "ECDSA+SHA256"];
    assert_eq!(
        shown(perennial.place.https, &ecdsa_only).await,
        ecdsa.serial
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_without_a_server_name() {
    let (place, ca) = (Place::new(), TestCa::new());
    let ip = place.ip.to_string();
    let (by_address, by_name) = (ca.leaf(&[&ip]), ca.leaf(&[NAME]));
    let perennial = serving(place, "", NAME, &[&by_address, &by_name]).await;
    let https = perennial.place.https;
    assert_eq!(shown(https, &["-noservername"]).await, by_address.serial);
    let served = served(https, None).await.expect("a handshake");
    assert_eq!(served.names, [ip]);
    assert_eq!(serial(https, NAME).await, Ok(by_name.serial));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_internationalised_name() {
    const ASCII: &str = "xn--bcher-kva.example";
    let (place, ca) = (Place::new(), TestCa::new());
    let leaf = ca.leaf(&[ASCII]);
    let perennial = serving(place, "", "bücher.example", &[&leaf]).await;
    let https = perennial.place.https;
    assert_eq!(serial(https, ASCII).await, Ok(leaf.serial));
}

#[tokio::test(flavor = "multi_thread")]
async fn upper_case_and_a_trailing_dot() {
    let (place, ca) = (Place::new(), TestCa::new());
    let leaf = ca.leaf(&["A.Example.test", "*.wild.example.test"]);
    let perennial = serving(place, "", NAME, &[&leaf]).await;
    for name in [
        "A.EXAMPLE.TEST",
        "a.example.test.",
        "A.Example.TEST.",
        "Some.WILD.example.test.",
    ] {
        let serial = shown(perennial.place.https, &["-servername", name]).await;
        assert_eq!(serial, leaf.serial, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_name_is_refused_without_a_default() {
    let (place, ca) = (Place::new(), TestCa::new());
    let leaf = ca.leaf(&[NAME, "*.wild.example.test"]);
    let perennial = serving(place, "", NAME, &[&leaf]).await;
    let https = perennial.place.https;
    for options in [
        &["-servername", "other.example.test"][..],
        &["-servername", "two.labels.wild.example.test"],
        &["-servername", "wild.example.test"],
        &["-servername", "other.example.test", "-tls1_2"],
        &["-noservername"],
    ] {
        let done = handshake(https, options).await;
        assert!(!done.success(), "{options:?}: {done:#?}");
        assert!(
            done.stderr.contains(UNRECOGNIZED_NAME),
            "{options:?}: {done:#?}"
        );
        assert_eq!(serial_of_pem(&done.stdout), None, "{options:?}");
    }
    assert_eq!(serial(https, NAME).await, Ok(leaf.serial));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_default_is_for_every_other_name() {
    let (place, ca) = (Place::new(), TestCa::new());
    let (fallback, other) = (ca.leaf(&[NAME]), ca.leaf(&["b.example.test"]));
    let default = format!("default = \"{NAME}\"\n");
    let perennial = serving(place, &default, NAME, &[&fallback, &other]).await;
    let https = perennial.place.https;
    for options in [&["-servername", "c.example.test"][..], &["-noservername"]] {
        assert_eq!(shown(https, options).await, fallback.serial, "{options:?}");
    }
    assert_eq!(serial(https, "b.example.test").await, Ok(other.serial));
}

/// An exact name before a wildcard, whichever is newer.
#[tokio::test(flavor = "multi_thread")]
async fn an_exact_name_before_a_wildcard() {
    let (place, ca) = (Place::new(), TestCa::new());
    let exact = ca.leaf(&[NAME]);
    let wildcard = ca.leaf_with(
        &["*.example.test"],
        clock::now() - time::Duration::MINUTE,
        clock::now() + time::Duration::days(300),
        KeyKind::P256,
    );
    let perennial = serving(place, "", NAME, &[&exact, &wildcard]).await;
    let https = perennial.place.https;
    assert_eq!(serial(https, NAME).await, Ok(exact.serial));
    assert_eq!(serial(https, "b.example.test").await, Ok(wildcard.serial));
}

/// The choice changes with time alone: nobody touches a file.
#[tokio::test(flavor = "multi_thread")]
async fn the_next_one_takes_over_when_it_begins_and_when_the_other_ends() {
    const AHEAD: time::Duration = time::Duration::seconds(4);
    let (place, ca) = (Place::new(), TestCa::new());
    let hour = time::Duration::HOUR;
    let ends_with = |end: &str| format!("{end}.example.test");
    let (begins, ends) = (ends_with("begins"), ends_with("ends"));
    let turn = clock::now() + AHEAD;
    let leaf = |name: &str, from, to| ca.leaf_with(&[name], from, to, KeyKind::P256);
    let before = leaf(&begins, turn - hour, turn + hour);
    let begun = leaf(&begins, turn, turn + hour);
    // The newer one comes first while it is valid.
    let ended = leaf(&ends, turn - hour, turn);
    let after = leaf(&ends, turn - hour - hour, turn + hour);
    let all = [&before, &begun, &ended, &after];
    let perennial = serving(place, "", &begins, &all).await;
    let https = perennial.place.https;
    let left = turn - clock::now() - time::Duration::SECOND;
    never_within(Duration::try_from(left).unwrap_or_default(), async || {
        let now = [serial(https, &begins).await, serial(https, &ends).await];
        let wanted = [Ok(before.serial.clone()), Ok(ended.serial.clone())];
        (now != wanted).then(|| format!("too early: {now:?}"))
    })
    .await;
    wait_until(SOON, "the others", async || {
        let now = [serial(https, &begins).await, serial(https, &ends).await];
        (now == [Ok(begun.serial.clone()), Ok(after.serial.clone())]).then_some(())
    })
    .await;
}
