//! Somebody else's certificate is not renewed in time: that is told, and where the configuration
//! says so, Perennial steps in until the renewer is back.

use std::time::Instant;

use time::Duration as Span;

use crate::reload::LIMIT;
use crate::support::certs::{KeyKind, Leaf, TestCa};
use crate::support::client::{serial, served};
use crate::support::clock;
use crate::support::perennial::Perennial;
use crate::support::place::Place;
use crate::support::wait::{SOON, wait_until};
use crate::support::writers::Pair;

const NAME: &str = "a.example.test";
const OVERDUE: &str = "perennial_certificate_overdue";
const LABEL: [&str; 1] = ["name=\"a.example.test\""];

/// Due for renewal `in_seconds` from now, and valid for as long again and longer.
fn due(ca: &TestCa, in_seconds: i64) -> Leaf {
    let end = clock::now() + Span::seconds(in_seconds) + Span::MINUTE;
    let begin = clock::now() + Span::seconds(in_seconds) - Span::MINUTE;
    ca.leaf_with(&[NAME], begin, end, KeyKind::P256)
}

struct Scene {
    perennial: Perennial,
    ca: TestCa,
    pair: Pair,
    old: Leaf,
}

fn config(pair: &Pair, site: &str) -> String {
    format!(
        "[certificates]\npoll_interval = \"1h\"\n{}\
         [[sites]]\nhosts = [\"{NAME}\"]\nupstreams = [\"respond:hello\"]\n{site}",
        pair.table()
    )
}

async fn scene(site: &str, in_seconds: i64) -> Scene {
    let place = Place::new();
    let ca = TestCa::new();
    let old = due(&ca, in_seconds);
    let pair = Pair::write(&place.path("tls"), &old);
    let perennial = Perennial::run(place, &config(&pair, site)).await;
    Scene {
        perennial,
        ca,
        pair,
        old,
    }
}

impl Scene {
    async fn wait_overdue(&self, wanted: bool) {
        let what = format!("overdue to be {wanted}");
        wait_until(SOON, &what, async || {
            let value = self.perennial.metric(OVERDUE, &LABEL).await?;
            (value == f64::from(u8::from(wanted))).then_some(())
        })
        .await;
    }

    async fn serial(&self) -> Option<String> {
        serial(self.perennial.place.https, NAME).await.ok()
    }

    async fn wait_taken_over(&self) {
        wait_until(SOON, "our own certificate", async || {
            let other = self.serial().await? != self.old.serial;
            other.then_some(())
        })
        .await;
        let entry = self.perennial.certificate_from("internal").await;
        let leaf = served(self.perennial.place.https, Some(NAME)).await;
        let fingerprint = leaf.expect("served").fingerprint;
        assert_eq!(entry["fingerprint"], fingerprint, "{entry}");
    }
}

impl Perennial {
    async fn certificate_from(&self, source: &str) -> serde_json::Value {
        let status = self.status_json().await;
        let mut all = status["certificates"].as_array().expect("a list").iter();
        let found = all.find(|entry| entry["source"] == source);
        found.unwrap_or_else(|| panic!("{status}")).clone()
    }
}

async fn is_taken_over_and_yields(site: &str) {
    let scene = scene(site, 4).await;
    wait_until(SOON, "the file to be served", async || {
        (scene.serial().await? == scene.old.serial).then_some(())
    })
    .await;
    scene.wait_taken_over().await;
    scene.wait_overdue(true).await;
    let new = scene.ca.leaf(&[NAME]);
    scene.pair.overwrite(&new);
    let written = Instant::now();
    wait_until(SOON, "the newer file to be served", async || {
        (scene.serial().await? == new.serial).then_some(())
    })
    .await;
    let took = written.elapsed();
    assert!(took < LIMIT, "served {took:?} after it was written");
    scene.wait_overdue(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn auto_takes_over_when_due_and_yields_to_a_newer_file() {
    is_taken_over_and_yields("takeover = \"internal\"\n").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_takes_over_when_due_and_yields_to_a_newer_file() {
    is_taken_over_and_yields("tls = \"files\"\ntakeover = \"internal\"\n").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_configuration_begins_and_ends_it() {
    let files = "tls = \"files\"\n";
    let scene = scene(files, -1).await;
    scene.wait_overdue(true).await;
    assert_eq!(scene.serial().await.as_ref(), Some(&scene.old.serial));
    let internal = format!("{files}takeover = \"internal\"\n");
    let perennial = &scene.perennial;
    perennial.rewrite_config(&config(&scene.pair, &internal));
    scene.wait_taken_over().await;
    perennial.rewrite_config(&config(&scene.pair, files));
    wait_until(SOON, "the file to be served again", async || {
        (scene.serial().await? == scene.old.serial).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_keeps_what_was_taken_over() {
    let mut scene = scene("takeover = \"internal\"\n", -1).await;
    scene.wait_taken_over().await;
    let ours = scene.serial().await;
    scene.perennial.restart().await;
    // The first load comes in parts: the overdue file may be there a moment before ours.
    wait_until(SOON, "what was taken over", async || {
        (scene.serial().await == ours).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_takeover_it_is_an_alarm_and_nothing_else() {
    let scene = scene("tls = \"files\"\n", 3).await;
    scene.wait_overdue(false).await;
    scene.wait_overdue(true).await;
    let pattern = "certificate is overdue";
    scene.perennial.wait_for_log(pattern, SOON).await;
    let entry = scene.perennial.certificate(NAME).await.expect("an entry");
    assert!(entry["overdue_since"].is_string(), "{entry}");
    let (code, body) = scene.perennial.admin_get("/readyz").await;
    assert_eq!(code, 200, "{body}");
    let body: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    let warning = body["warnings"][0].as_str().expect("a warning");
    assert!(warning.contains(NAME), "{warning}");
    assert_eq!(scene.serial().await.as_ref(), Some(&scene.old.serial));
    // Another look at the same certificate is no news.
    scene.perennial.admin_post("/reload").await;
    let other = due(&scene.ca, -2);
    scene.pair.overwrite(&other);
    wait_until(SOON, "the other one to be told as well", async || {
        let told = scene.perennial.log_lines_with(pattern).len();
        (told == 2).then_some(())
    })
    .await;
    let new = scene.ca.leaf(&[NAME]);
    scene.pair.overwrite(&new);
    scene.wait_overdue(false).await;
    assert_eq!(scene.perennial.log_lines_with(pattern).len(), 2);
    let status = scene.perennial.status_json().await;
    let warnings = status["warnings"].as_array().expect("a list");
    assert!(
        !warnings
            .iter()
            .any(|text| text.as_str().is_some_and(|text| text.contains("was due"))),
        "{status}"
    );
}
