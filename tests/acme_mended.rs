//! A configuration that an order failed with is mended: what is mended is tried at once, live and
//! after a restart, and not when the wait for what was wrong is over. Who was asked for patience has it.

use std::time::Duration;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::support::clock;
use crate::support::perennial::Perennial;
use crate::support::place::Place;
use crate::support::scripted_ca::{Fault, Kind, ScriptedCa, problem};
use crate::support::sites::site;
use crate::support::wait::{SOON, never_within, wait_until};

const NAME: &str = "a.example.test";
/// So often it has failed, so that the next attempt is far away.
const FAILURES: usize = 4;
const KEYS: [&str; 2] = [
    "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W",
    "yWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W",
];

struct Scene {
    perennial: Perennial,
    ca: ScriptedCa,
}

impl Scene {
    /// `acme` continues the `[acme]` table. Every attempt fails, and somebody has asked for some.
    async fn failing(acme: &str, script: impl FnOnce(&ScriptedCa)) -> Scene {
        let place = Place::new();
        let ca = ScriptedCa::start(&place).await;
        script(&ca);
        let perennial = Perennial::run(place, &rest(&ca, acme)).await;
        let scene = Scene { perennial, ca };
        for failures in 1..=FAILURES {
            scene.has_failed(failures).await;
            if failures < FAILURES {
                scene.perennial.renew(NAME).await;
            }
        }
        scene
    }

    async fn has_failed(&self, times: usize) {
        let what = format!("{times} failures");
        wait_until(SOON, &what, async || {
            (self.warnings().len() == times).then_some(())
        })
        .await;
    }

    fn warnings(&self) -> Vec<String> {
        let lines = self.perennial.log_lines_with(" WARN ").into_iter();
        lines.filter(|line| line.contains("next_attempt")).collect()
    }

    async fn wait(&self) -> time::Duration {
        let next = wait_until(SOON, "next_attempt in /status", async || {
            self.perennial.status_field(NAME, "next_attempt").await
        })
        .await;
        let next = OffsetDateTime::parse(next.as_str().expect("a text"), &Rfc3339);
        next.expect("RFC 3339") - clock::now()
    }

    async fn reload_with(&self, acme: &str) {
        self.perennial.rewrite_config(&rest(&self.ca, acme));
        let (status, body) = self.perennial.admin_post("/reload").await;
        // Unless the change was noticed before.
        assert_eq!(status, 200, "{body}");
    }

    async fn restart_with(&mut self, acme: &str) {
        self.perennial.kill9();
        self.perennial.rewrite_config(&rest(&self.ca, acme));
        self.perennial.start_and_wait().await;
    }

    async fn has_a_certificate(&self) {
        wait_until(SOON, "a certificate", async || {
            (self.ca.issued().len() == 1).then_some(())
        })
        .await;
        wait_until(SOON, "no error in /status", async || {
            let error = self.perennial.status_field(NAME, "last_error").await;
            error.is_none().then_some(())
        })
        .await;
    }

    async fn nothing_is_tried(&self) {
        never_within(Duration::from_secs(1), async || {
            let failures = self.warnings().len();
            let issued = self.ca.issued().len();
            (failures > FAILURES || issued > 0).then(|| format!("{failures}, {issued} issued"))
        })
        .await;
    }
}

fn rest(ca: &ScriptedCa, acme: &str) -> String {
    let site = site(NAME, "acme", &["respond:hello"]);
    format!("{}{acme}{site}", ca.acme_table())
}

async fn without_the_profile() -> Scene {
    let classic = |ca: &ScriptedCa| ca.script(|script| script.profiles = vec!["classic"]);
    Scene::failing("profile = \"nosuch\"\n", classic).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_profile_is_tried_at_once() {
    let scene = without_the_profile().await;
    // Nothing was asked of the CA, so no limit is near: 8 minutes, not a day.
    let wait = scene.wait().await;
    assert!(
        wait > time::Duration::minutes(7) && wait < time::Duration::minutes(9),
        "{wait}"
    );
    assert_eq!(scene.ca.count(Kind::NewOrder), 0);
    // What has nothing to do with it heals nothing.
    scene
        .reload_with("profile = \"nosuch\"\nparallel_orders = 3\n")
        .await;
    scene.nothing_is_tried().await;
    scene.reload_with("profile = \"classic\"\n").await;
    scene.has_a_certificate().await;
    assert_eq!(scene.ca.ordered_profiles(), [Some("classic".to_owned())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_profile_is_tried_after_a_restart() {
    let mut scene = without_the_profile().await;
    scene.restart_with("profile = \"nosuch\"\n").await;
    scene.nothing_is_tried().await;
    scene.restart_with("profile = \"classic\"\n").await;
    scene.has_a_certificate().await;
}

fn bound(key: usize) -> String {
    let key = KEYS[key];
    format!("[acme.external_account]\nkid = \"kid-1\"\nhmac_key = \"{key}\"\n")
}

/// No account is made, as with a wrong key of the external one; then the CA takes the binding.
async fn without_an_account() -> Scene {
    let refusal = problem(403, "unauthorized", "the binding's MAC is wrong");
    let refuse = |ca: &ScriptedCa| {
        ca.script(|script| script.break_one(Kind::NewAccount, Fault::Refuse(refusal)));
    };
    let scene = Scene::failing(&bound(0), refuse).await;
    scene.ca.script(|script| script.behave());
    scene
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_of_an_external_account_is_tried_at_once() {
    let scene = without_an_account().await;
    assert!(scene.wait().await > time::Duration::minutes(7));
    scene.reload_with(&bound(1)).await;
    scene.has_a_certificate().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_of_an_external_account_is_tried_after_a_restart() {
    let mut scene = without_an_account().await;
    scene.restart_with(&bound(0)).await;
    scene.nothing_is_tried().await;
    scene.restart_with(&bound(1)).await;
    scene.has_a_certificate().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_patience_that_a_ca_asked_for_is_kept() {
    let place = Place::new();
    let ca = ScriptedCa::start(&place).await;
    let retry_after = Some("7200".to_owned());
    ca.script(|script| script.break_one(Kind::NewOrder, Fault::TooMany { retry_after }));
    let perennial = Perennial::run(place, &rest(&ca, "")).await;
    let scene = Scene { perennial, ca };
    scene.has_failed(1).await;
    scene.reload_with("email = \"a@example.com\"\n").await;
    scene
        .perennial
        .wait_for_log("used with other settings", SOON)
        .await;
    never_within(Duration::from_secs(1), async || {
        (scene.ca.count(Kind::NewOrder) > 1).then(|| "another order".to_owned())
    })
    .await;
    assert!(scene.wait().await > time::Duration::minutes(110));
    let error = scene.perennial.last_error(NAME).await;
    assert!(error.contains("too many of everything"), "{error}");
}
