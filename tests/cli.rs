//! The commands that ask a running server.

use std::process::Command;

use crate::support::client::serial;
use crate::support::command::{self, Finished};
use crate::support::perennial::{Perennial, program};
use crate::support::place::Place;
use crate::support::sites::{FileTls, site};
use crate::support::wait::{SOON, wait_until};

const INTERNAL: &str = "localhost";
const FILED: &str = "a.example.test";

struct Scene {
    perennial: Perennial,
    filed: String,
}

async fn scene() -> Scene {
    let place = Place::new();
    let tls = FileTls::new(&place, &[FILED]);
    let sites = [
        site(INTERNAL, "internal", &["respond:hello"]),
        site(FILED, "files", &["respond:hello"]),
    ];
    let rest = format!("{}{}", tls.pair.table(), sites.concat());
    let mut perennial = Perennial::run(place, &rest).await;
    perennial.wait_ready().await;
    Scene {
        perennial,
        filed: tls.leaf.serial,
    }
}

impl Scene {
    async fn ask(&self, arguments: &[&str]) -> Finished {
        self.perennial.cli(arguments).await.assert_success()
    }

    async fn internal_serial(&self) -> String {
        let served = serial(self.perennial.place.https, INTERNAL).await;
        served.expect("a handshake")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn status_for_people_and_for_programs() {
    let scene = scene().await;
    let text = scene.ask(&["status"]).await.stdout;
    for word in [INTERNAL, FILED, env!("CARGO_PKG_VERSION")] {
        assert!(text.contains(word), "{word} is missing:\n{text}");
    }
    let json = scene.ask(&["status", "--json"]).await.json();
    let api = scene.perennial.status_json().await;
    assert_eq!(json["version"], api["version"]);
    assert_eq!(json["certificates"], api["certificates"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn certs_list_and_show() {
    let scene = scene().await;
    let text = scene.ask(&["certs", "list"]).await.stdout;
    assert!(text.contains(INTERNAL) && text.contains(FILED), "{text}");
    let list = scene.ask(&["certs", "list", "--json"]).await.json();
    assert_eq!(list.as_array().expect("an array").len(), 2);

    let text = scene.ask(&["certs", "show", FILED]).await.stdout;
    let plain = text.replace(':', "").to_lowercase();
    assert!(plain.contains(&scene.filed), "{text}");
    let found = scene.ask(&["certs", "show", FILED, "--json"]).await.json();
    let json = &found[0];
    let shown = json["serial"].as_str().expect("a serial").replace(':', "");
    assert_eq!(shown.to_lowercase(), scene.filed);
    assert_eq!(json["source"], "file");
}

#[tokio::test(flavor = "multi_thread")]
async fn certs_renew_swaps_it() {
    let scene = scene().await;
    let before = scene.internal_serial().await;
    scene.ask(&["certs", "renew", INTERNAL]).await;
    wait_until(SOON, "a renewed certificate", async || {
        (scene.internal_serial().await != before).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_is_said_in_words() {
    let scene = scene().await;
    for command in ["show", "renew"] {
        let done = scene
            .perennial
            .cli(&["certs", command, "nobody.example.test"])
            .await;
        assert_ne!(done.code, Some(0), "{command}: {done:?}");
        assert!(done.stderr.contains("nobody.example.test"), "{done:?}");
    }
    let done = scene.perennial.cli(&["certs", "renew", FILED]).await;
    assert_ne!(done.code, Some(0), "somebody else renews it: {done:?}");
    assert!(done.stderr.contains(FILED), "{done:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_server_is_a_clear_error() {
    let mut scene = scene().await;
    scene.perennial.kill9();
    for arguments in [
        &["status"][..],
        &["certs", "list"],
        &["certs", "renew", INTERNAL],
    ] {
        let done = scene.perennial.cli(arguments).await;
        assert_ne!(done.code, Some(0), "{arguments:?}");
        let admin = scene.perennial.place.admin.to_string();
        assert!(done.stderr.contains(&admin), "{done:?}");
        assert!(!done.stderr.contains("panicked"), "{done:?}");
    }
}

/// Who has only ever used `perennial proxy` has no file to name.
#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_needs_no_configuration() {
    let place = Place::new();
    let doctor = async |arguments: &[&str]| {
        let mut command = Command::new(program());
        command.arg("doctor").args(arguments);
        command.current_dir(place.path(""));
        command::run(command).await
    };
    let done = doctor(&["localhost"]).await;
    assert_eq!(done.code, Some(1), "{}", done.stderr);
    let expected = "no site of the configuration orders localhost from an ACME CA";
    assert!(done.stderr.contains(expected), "{}", done.stderr);
    let done = doctor(&[]).await;
    assert_eq!(done.code, Some(64), "{}", done.stderr);
    assert!(
        done.stderr.contains("or name a host to look at"),
        "{}",
        done.stderr
    );
}
