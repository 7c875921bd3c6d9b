//! `kill -9` at any point of writing a certificate: the next start serves a whole pair.

use std::os::unix::process::ExitStatusExt;

use crate::support::client::served;
use crate::support::perennial::Perennial;
use crate::support::place::Place;
use crate::support::sites::site;
use crate::support::wait::{SOON, wait_until};

const NAME: &str = "localhost";
/// Debug builds kill themselves right after the step that this names.
const ABORT_AFTER: &str = "PERENNIAL_TEST_ABORT_AFTER";
const KILL: i32 = 9;

const STEPS: [&str; 8] = [
    "generation-dir",
    "fullchain",
    "privkey",
    "meta",
    "generation-synced",
    "temp-link",
    "renamed",
    "parent-synced",
];
/// From here on the new pair is the one.
const VISIBLE_FROM: &str = "renamed";

fn perennial() -> Perennial {
    Perennial::with_config(Place::new(), &site(NAME, "internal", &["respond:hello"]))
}

async fn wait_killed(perennial: &mut Perennial, step: &str) {
    let status = perennial.wait_exit(SOON).await;
    assert_eq!(status.signal(), Some(KILL), "after {step}: {status}");
}

/// The serial, of a pair whose key fits: the handshake's signature was checked.
async fn served_serial(perennial: &Perennial) -> String {
    let served = served(perennial.place.https, Some(NAME)).await;
    served.expect("a whole pair").serial
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_first_certificate_is_written() {
    for step in STEPS {
        let mut perennial = perennial().env(ABORT_AFTER, step);
        perennial.start();
        wait_killed(&mut perennial, step).await;
        perennial.forget_env();
        perennial.restart().await;
        perennial.wait_ready().await;
        served_serial(&perennial).await;
        assert_no_litter(&perennial, step);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_certificate_is_renewed() {
    let visible = STEPS.iter().position(|step| *step == VISIBLE_FROM);
    for (place, step) in STEPS.iter().enumerate() {
        let mut perennial = perennial();
        perennial.start_and_wait().await;
        perennial.wait_ready().await;
        let old = served_serial(&perennial).await;
        let mut perennial = perennial.env(ABORT_AFTER, step);
        perennial.restart().await;
        perennial.wait_ready().await;
        let path = format!("/certificates/{NAME}/renew");
        perennial.admin_post_unanswered(&path).await;
        wait_killed(&mut perennial, step).await;
        perennial.forget_env();
        perennial.restart().await;
        perennial.wait_ready().await;
        let now = served_serial(&perennial).await;
        assert_eq!(now != old, Some(place) >= visible, "after {step}");
        renews_again(&perennial, &now).await;
        assert_no_litter(&perennial, step);
    }
}

async fn renews_again(perennial: &Perennial, old: &str) {
    perennial.renew(NAME).await;
    wait_until(SOON, "a renewed certificate", async || {
        (served_serial(perennial).await != old).then_some(())
    })
    .await;
}

/// Half-written generations and temporary links do not pile up: `current`, its generation and the
/// one before it are all that a finished write leaves.
fn assert_no_litter(perennial: &Perennial, step: &str) {
    let folder = perennial
        .place
        .state()
        .join(format!("certificates/{NAME}/p256"));
    let entries = std::fs::read_dir(&folder).expect("a folder").flatten();
    let names: Vec<_> = entries.map(|entry| entry.file_name()).collect();
    assert!(
        names.len() <= 3,
        "after {step} in {}: {names:?}",
        folder.display()
    );
}
