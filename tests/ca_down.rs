//! An authority that is unreachable, refuses, talks nonsense or hangs delays nothing and stops
//! nothing, and a crash loop does not make it worse.

use std::time::Duration;

use crate::support::client::serial;
use crate::support::perennial::Perennial;
use crate::support::place::Place;
use crate::support::scripted_ca::{Fault, ScriptedCa};
use crate::support::sites::{FileTls, site};
use crate::support::wait::{SOON, never_within, wait_until};

const FILED: &str = "filed.example.test";
const ORDERED: &str = "ordered.example.test";
const RESTARTS: usize = 20;

struct Scene {
    perennial: Perennial,
    ca: ScriptedCa,
    serial: String,
}

/// One site with a certificate from files, one that needs the authority. Not started yet.
async fn scene() -> Scene {
    let place = Place::new();
    let ca = ScriptedCa::start(&place).await;
    let tls = FileTls::new(&place, &[FILED]);
    let sites = [
        site(FILED, "files", &["respond:hello"]),
        site(ORDERED, "acme", &["respond:hi"]),
    ];
    let rest = format!("{}{}{}", ca.acme_table(), tls.pair.table(), sites.concat());
    Scene {
        perennial: Perennial::with_config(place, &rest),
        ca,
        serial: tls.leaf.serial,
    }
}

impl Scene {
    async fn assert_serves(&mut self) {
        self.perennial.restart().await;
        let served = wait_until(SOON, "the other site", async || {
            serial(self.perennial.place.https, FILED).await.ok()
        });
        assert_eq!(served.await, self.serial);
    }

    /// The time, as `/status` gives it.
    async fn next_attempt(&self) -> String {
        let next = wait_until(
            SOON,
            "the time of the next attempt in /status",
            async || self.perennial.status_field(ORDERED, "next_attempt").await,
        );
        next.await.as_str().expect("a time").to_owned()
    }

    /// Kills and starts again, and again, and compares what the authority got to see.
    async fn assert_a_crash_loop_asks_no_more(&mut self) {
        let before = self.ca.requests().len();
        for _ in 0..RESTARTS {
            self.perennial.restart().await;
            self.next_attempt().await;
        }
        let requests = self.ca.requests();
        let after: Vec<_> = requests[before..].iter().map(|one| &one.path).collect();
        assert!(
            after.is_empty(),
            "{RESTARTS} restarts sent, on top of {before}: {after:?}"
        );
    }
}

fn ledger_text(perennial: &Perennial) -> String {
    let mut folders = vec![perennial.place.state().join("ledger")];
    let mut text = String::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.path() {
                path if path.is_dir() => folders.push(path),
                path => text += &std::fs::read_to_string(path).unwrap_or_default(),
            }
        }
    }
    text
}

async fn the_failure_is_told(scene: &Scene) {
    scene.next_attempt().await;
    let error = wait_until(SOON, "last_error in /status", async || {
        scene.perennial.status_field(ORDERED, "last_error").await
    });
    let error = error.await;
    assert!(
        error.as_str().is_some_and(|text| !text.is_empty()),
        "{error}"
    );
    let label = format!("name=\"{ORDERED}\"");
    let labels = [&*label];
    let metric = scene
        .perennial
        .metric("perennial_acme_next_attempt_seconds", &labels);
    assert!(metric.await.is_some());
    assert_eq!(
        scene.perennial.admin_get("/readyz").await.0,
        503,
        "one host has no certificate"
    );
    let ledger = ledger_text(&scene.perennial);
    assert!(
        ledger.contains(&scene.ca.directory) && ledger.contains("started_at"),
        "the attempt is in the ledger: {ledger:?}"
    );
}

async fn with_fault(fault: Fault) {
    let mut scene = scene().await;
    scene.ca.script(|script| script.break_everything(fault));
    scene.assert_serves().await;
    the_failure_is_told(&scene).await;
    scene.assert_a_crash_loop_asks_no_more().await;
    scene.assert_serves().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusing_with_html() {
    with_fault(Fault::Html500).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn talking_nonsense() {
    with_fault(Fault::Garbage).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unreachable() {
    let mut scene = scene().await;
    scene.ca.stop().await;
    scene.assert_serves().await;
    the_failure_is_told(&scene).await;
    // It is back, but the crash loop must not be the first to know.
    scene.ca.resume().await;
    scene.assert_a_crash_loop_asks_no_more().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hanging() {
    let mut scene = scene().await;
    scene
        .ca
        .script(|script| script.break_everything(Fault::Hang));
    scene.assert_serves().await;
    let asked = async || (!scene.ca.requests().is_empty()).then_some(());
    wait_until(SOON, "the first request", asked).await;
    // Killed in the middle of it: the attempt was written down before it was sent.
    let ledger = ledger_text(&scene.perennial);
    assert!(
        ledger.contains(&scene.ca.directory) && ledger.contains("started_at"),
        "the attempt is in the ledger: {ledger:?}"
    );
    scene.assert_a_crash_loop_asks_no_more().await;
    scene.assert_serves().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_need_not_wait_once_it_is_back() {
    let mut scene = scene().await;
    scene
        .ca
        .script(|script| script.break_everything(Fault::Html500));
    scene.assert_serves().await;
    scene.next_attempt().await;
    scene.ca.script(|script| script.behave());
    let path = format!("/certificates/{ORDERED}/renew");
    let (status, body) = scene.perennial.admin_post(&path).await;
    assert_eq!(status, 202, "{body}");
    let served = wait_until(SOON, "the ordered certificate", async || {
        serial(scene.perennial.place.https, ORDERED).await.ok()
    });
    assert_eq!(vec![served.await], scene.ca.serials());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_loop_after_success_asks_nothing() {
    let mut scene = scene().await;
    scene.perennial.start_and_wait().await;
    scene.perennial.wait_ready().await;
    let served = serial(scene.perennial.place.https, ORDERED).await;
    let before = scene.ca.requests().len();
    for _ in 0..RESTARTS {
        scene.perennial.restart().await;
        scene.perennial.wait_ready().await;
    }
    never_within(Duration::from_secs(1), async || {
        let requests = scene.ca.requests();
        requests
            .get(before)
            .map(|one| format!("asked again: {one:?}"))
    })
    .await;
    assert_eq!(serial(scene.perennial.place.https, ORDERED).await, served);
}
