//! Somebody else renews a certificate file, and the next handshake shows it.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::certs::{KeyKind, Leaf, TestCa};
use crate::support::client::serial;
use crate::support::clock;
use crate::support::handshakes::Handshakes;
use crate::support::http1::KeepAlive;
use crate::support::perennial::Perennial;
use crate::support::place::Place;
use crate::support::sites::{FileTls, site};
use crate::support::wait::{SOON, never_within, wait_until};
use crate::support::writers::{Pair, cp, dribble};

pub const NAME: &str = "a.example.test";
/// Between an operator's two copies.
const GAP: Duration = Duration::from_secs(2);
/// From the last write to the first handshake with the new certificate. The promise is 1 s; a
/// machine that runs other tests beside this one may take longer to look. It is below what a pair
/// that does not fit yet is given.
pub const LIMIT: Duration = Duration::from_secs(5);

/// Nothing but events can find a change within the test.
pub const EVENTS: &str = "[certificates]\npoll_interval = \"1h\"\n";
pub const POLL: &str = "[certificates]\nwatch = false\npoll_interval = \"200ms\"\n";
/// Files that were written this recently are read again without any event.
const SETTLED: Duration = Duration::from_secs(4);
/// Nothing but a request to rescan can.
const NEITHER: &str = "[certificates]\nwatch = false\npoll_interval = \"1h\"\n";

struct Scene {
    perennial: Perennial,
    ca: TestCa,
    old: Leaf,
    pair: Pair,
}

async fn scene(certificates: &str) -> Scene {
    let place = Place::new();
    let FileTls { ca, leaf, pair, .. } = FileTls::new(&place, &[NAME]);
    let perennial = start(place, &format!("{certificates}{}", pair.table())).await;
    wait_served(&perennial, &leaf, SOON).await;
    Scene {
        perennial,
        ca,
        old: leaf,
        pair,
    }
}

pub async fn start(place: Place, certificates: &str) -> Perennial {
    let site = site(NAME, "files", &["respond:hello"]);
    Perennial::run(place, &format!("{certificates}{site}")).await
}

pub async fn wait_served(perennial: &Perennial, leaf: &Leaf, deadline: Duration) {
    let what = format!("serial {}", leaf.serial);
    wait_until(deadline, &what, async || {
        let served = serial(perennial.place.https, NAME).await.ok()?;
        (served == leaf.serial).then_some(())
    })
    .await;
}

async fn assert_stays(perennial: &Perennial, leaf: &Leaf, time: Duration) {
    never_within(time, async || {
        let served = serial(perennial.place.https, NAME).await;
        (served.as_ref() != Ok(&leaf.serial)).then(|| format!("served: {served:?}"))
    })
    .await;
}

enum First {
    Certificate,
    Key,
}

async fn operator_copies(certificates: &str, first: First) {
    let scene = scene(certificates).await;
    let https = scene.perennial.place.https;
    let new = scene.ca.leaf(&[NAME]);
    let mut kept = KeepAlive::open(https, NAME, None)
        .await
        .expect("a connection");
    kept.get("/").await.expect("served");
    let handshakes = Handshakes::start(https, NAME);
    let certificate = (new.chain_pem(), &scene.pair.certificate);
    let key = (new.key_pem.clone(), &scene.pair.key);
    let [one, two] = match first {
        First::Certificate => [certificate, key],
        First::Key => [key, certificate],
    };
    cp(&one.0, one.1).await;
    assert_stays(&scene.perennial, &scene.old, GAP).await;
    cp(&two.0, two.1).await;
    let written = Instant::now();
    wait_served(&scene.perennial, &new, SOON).await;
    let took = written.elapsed();
    handshakes.stop(&[&scene.old.serial, &new.serial]).await;
    assert!(took < LIMIT, "served {took:?} after the second write");
    let answer = kept.get("/").await.expect("the old connection lives");
    assert_eq!(answer.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn cp_of_the_certificate_then_the_key_with_events() {
    operator_copies(EVENTS, First::Certificate).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cp_of_the_key_then_the_certificate_with_events() {
    operator_copies(EVENTS, First::Key).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cp_of_the_certificate_then_the_key_with_the_poll() {
    operator_copies(POLL, First::Certificate).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cp_of_the_key_then_the_certificate_with_the_poll() {
    operator_copies(POLL, First::Key).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_written_slowly_is_never_served_half() {
    let scene = scene(POLL).await;
    let kind = KeyKind::Rsa2048;
    let now = clock::now();
    let new = scene.ca.leaf_with(
        &[NAME],
        now - time::Duration::HOUR,
        now + time::Duration::DAY,
        kind,
    );
    let handshakes = Handshakes::start(scene.perennial.place.https, NAME);
    let pause = Duration::from_millis(100);
    dribble(&new.key_pem, &scene.pair.key, pause).await;
    dribble(&new.chain_pem(), &scene.pair.certificate, pause).await;
    wait_served(&scene.perennial, &new, SOON).await;
    handshakes.stop(&[&scene.old.serial, &new.serial]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sighup_rescans_at_once() {
    let scene = scene(NEITHER).await;
    tokio::time::sleep(SETTLED).await;
    let new = scene.ca.leaf(&[NAME]);
    scene.pair.overwrite(&new);
    assert_stays(&scene.perennial, &scene.old, Duration::from_millis(500)).await;
    scene.perennial.signal(Signal::HUP);
    wait_served(&scene.perennial, &new, SOON).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn post_reload_rescans_at_once_and_tells() {
    let scene = scene(NEITHER).await;
    tokio::time::sleep(SETTLED).await;
    let new = scene.ca.leaf(&[NAME]);
    scene.pair.overwrite(&new);
    assert_stays(&scene.perennial, &scene.old, Duration::from_millis(500)).await;
    let (status, body) = scene.perennial.admin_post("/reload").await;
    assert_eq!(status, 200, "{body}");
    assert!(body.contains(NAME), "it says what changed: {body}");
    wait_served(&scene.perennial, &new, LIMIT).await;
    let (_, body) = scene.perennial.admin_post("/reload").await;
    assert!(!body.contains(&new.serial), "nothing changed since: {body}");
}
