//! A certificate file that the program may not read.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::broken_files::{NAME, POLL, Scene};
use crate::support::client::serial;
use crate::support::command;
use crate::support::perennial::{Perennial, program};
use crate::support::place::Place;
use crate::support::sites::{FileTls, site};
use crate::support::wait::{SOON, wait_until};
use crate::support::writers::chmod;

/// Root may read everything, so the program runs as somebody else where the test is root.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_may_not_be_read() {
    const NOBODY: u32 = 65534;
    let place = Place::new();
    let FileTls { ca, leaf, pair, .. } = FileTls::new(&place, &[NAME]);
    let site = site(NAME, "files", &["respond:hello"]);
    let mut perennial = Perennial::with_config(place, &format!("{POLL}{}{site}", pair.table()));
    if rustix::process::getuid().is_root() {
        let drop_root = [
            "setpriv",
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
        ];
        if !starts_through(&drop_root).await {
            eprintln!("THE PROGRAM CANNOT BE STARTED AS nobody: unreadable files not proven");
            return;
        }
        give_to(&perennial.place.path(""), NOBODY);
        perennial = perennial.through(&drop_root);
    }
    perennial.start_and_wait().await;
    perennial.wait_ready().await;
    let scene = Scene {
        perennial,
        ca,
        good: leaf,
        pair,
    };
    let new = scene.ca.leaf(&[NAME]);
    fs::write(&scene.pair.certificate, new.chain_pem()).expect("written");
    fs::write(&scene.pair.key, &new.key_pem).expect("written");
    scene.wait_served(&new).await;
    chmod(&scene.pair.key, 0o000);
    scene.wait_reported(&scene.pair.key).await;
    assert_eq!(
        serial(scene.perennial.place.https, NAME).await,
        Ok(new.serial.clone())
    );
    let entry = scene.perennial.certificate(NAME).await.expect("an entry");
    let error = entry["last_error"]
        .as_str()
        .unwrap_or_default()
        .to_lowercase();
    assert!(error.contains("permission"), "{error}");
    chmod(&scene.pair.key, 0o644);
    wait_until(SOON, "the failure to be over", async || {
        let entry = scene.perennial.certificate(NAME).await?;
        (entry["last_error"] == Value::Null).then_some(())
    })
    .await;
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
