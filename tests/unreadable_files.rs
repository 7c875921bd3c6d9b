//! A certificate file that the program may not read.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use serde_json::Value;

use crate::broken_files::{NAME, POLL, Scene};
use crate::reload::EVENTS;
use crate::reload::LIMIT;
use crate::support::command;
use crate::support::handshakes::Handshakes;
use crate::support::perennial::{Perennial, program};
use crate::support::place::Place;
use crate::support::sites::{FileTls, site};
use crate::support::wait::{SOON, wait_until};
use crate::support::writers::chmod;

/// Root may read everything, so the program runs as somebody else where the test is root.
/// `None`: that cannot be done here.
async fn scene(certificates: &str) -> Option<Scene> {
    const NOBODY: u32 = 65534;
    let place = Place::new();
    let FileTls { ca, leaf, pair, .. } = FileTls::new(&place, &[NAME]);
    let site = site(NAME, "files", &["respond:hello"]);
    let config = format!("{certificates}{}{site}", pair.table());
    let mut perennial = Perennial::with_config(place, &config);
    if rustix::process::getuid().is_root() {
        let drop_root = [
            "setpriv",
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
        ];
        if !starts_through(&drop_root).await {
            eprintln!("THE PROGRAM CANNOT BE STARTED AS nobody: unreadable files not proven");
            return None;
        }
        give_to(&perennial.place.path(""), NOBODY);
        perennial = perennial.through(&drop_root);
    }
    perennial.start_and_wait().await;
    perennial.wait_ready().await;
    Some(Scene {
        perennial,
        ca,
        good: leaf,
        pair,
    })
}

/// What is served stays, `/status` tells why, and once the permission is back all is well.
async fn permission_is_lost_and_given_back(certificates: &str) {
    let Some(scene) = scene(certificates).await else {
        return;
    };
    let new = scene.ca.leaf(&[NAME]);
    fs::write(&scene.pair.certificate, new.chain_pem()).expect("written");
    fs::write(&scene.pair.key, &new.key_pem).expect("written");
    scene.wait_served(&new).await;
    let handshakes = Handshakes::start(scene.perennial.place.https, NAME);
    chmod(&scene.pair.key, 0o000);
    scene.wait_reported(&scene.pair.key).await;
    assert_permission_is_named(&scene).await;
    chmod(&scene.pair.key, 0o644);
    wait_until(SOON, "the failure to be over", async || {
        let entry = scene.perennial.certificate(NAME).await?;
        (entry["last_error"] == Value::Null).then_some(())
    })
    .await;
    handshakes.stop(&[&new.serial]).await;
}

/// A renewer with a umask of its own: the new pair is there, but only its owner may read the key.
async fn the_new_key_is_unreadable_at_first(certificates: &str) {
    let Some(scene) = scene(certificates).await else {
        return;
    };
    let new = scene.ca.leaf(&[NAME]);
    let handshakes = Handshakes::start(scene.perennial.place.https, NAME);
    let temporary = scene.pair.key.with_extension("tmp");
    fs::write(&temporary, &new.key_pem).expect("written");
    chmod(&temporary, 0o000);
    fs::rename(&temporary, &scene.pair.key).expect("renamed");
    fs::write(&scene.pair.certificate, new.chain_pem()).expect("written");
    scene.wait_reported(&scene.pair.key).await;
    assert_permission_is_named(&scene).await;
    chmod(&scene.pair.key, 0o644);
    let given_back = Instant::now();
    scene.wait_served(&new).await;
    let took = given_back.elapsed();
    handshakes.stop(&[&scene.good.serial, &new.serial]).await;
    assert!(took < LIMIT, "served {took:?} after it could be read");
}

async fn assert_permission_is_named(scene: &Scene) {
    let entry = scene.perennial.certificate(NAME).await.expect("an entry");
    let error = entry["last_error"]
        .as_str()
        .unwrap_or_default()
        .to_lowercase();
    assert!(error.contains("permission"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn permission_is_lost_and_given_back_with_events() {
    permission_is_lost_and_given_back(EVENTS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn permission_is_lost_and_given_back_with_the_poll() {
    permission_is_lost_and_given_back(POLL).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_new_key_is_unreadable_at_first_with_events() {
    the_new_key_is_unreadable_at_first(EVENTS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_new_key_is_unreadable_at_first_with_the_poll() {
    the_new_key_is_unreadable_at_first(POLL).await;
}

async fn starts_through(before: &[&str]) -> bool {
    let mut probe = Command::new(before[0]);
    probe.args(&before[1..]).arg(program()).arg("--version");
    command::find(before[0]).is_some() && command::run(probe).await.success()
}

fn give_to(path: &Path, owner: u32) {
    std::os::unix::fs::chown(path, Some(owner), Some(owner)).expect("root may");
    if path.is_dir() {
        for entry in fs::read_dir(path).expect("readable").flatten() {
            give_to(&entry.path(), owner);
        }
    }
}
