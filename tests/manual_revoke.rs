//! A certificate is revoked by hand: the CA knows it, and its successor has another key.

use crate::acme_accounts::{wait_for_another, with_certificate};
use crate::support::pebble::{Options, issued_by_pebble};
use crate::support::perennial::Perennial;
use crate::support::place::Place;
use crate::support::sites::site;
use crate::support::wait::{SOON, wait_until};

const NAME: &str = "a.example.test";

fn current_key(perennial: &Perennial) -> Vec<u8> {
    let current = format!("certificates/{NAME}/p256/current/privkey.pem");
    std::fs::read(perennial.place.state().join(current)).expect("a key")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ca_knows_it_and_a_new_key_takes_over() {
    let Some((perennial, pebble, first)) = with_certificate(Options::default(), "").await else {
        return;
    };
    let before = current_key(&perennial);
    assert_eq!(pebble.certificate_status(&first).await["Status"], "Valid");
    let arguments = ["certs", "revoke", NAME, "--reason", "keyCompromise"];
    let done = perennial.cli(&arguments).await.assert_success();
    for part in [
        "revoked: the certificate for",
        NAME,
        "reason keyCompromise, signed with the account key",
        "replacement: ordering (revoked)",
    ] {
        assert!(done.stdout.contains(part), "{part}: {}", done.stdout);
    }
    let status = pebble.certificate_status(&first).await;
    assert_eq!(
        (&status["Status"], &status["Reason"]),
        (&"Revoked".into(), &1.into()),
        "{status}"
    );
    let second = wait_for_another(&perennial, &first).await;
    assert_eq!(pebble.certificate_status(&second).await["Status"], "Valid");
    assert_ne!(before, current_key(&perennial));
    // It is the new one that a second word is about, and numbers are reasons, too.
    let arguments = ["certs", "revoke", NAME, "--reason", "4", "--json"];
    // It is served a moment before the worker has done with it.
    let done = wait_until(SOON, "a second revocation", async || {
        let done = perennial.cli(&arguments).await;
        done.success().then(|| done.json())
    })
    .await;
    assert_eq!(done["reason"], "superseded");
    assert_eq!(
        pebble.certificate_status(&second).await["Status"],
        "Revoked"
    );
    wait_for_another(&perennial, &second).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_account_the_certificates_own_key_revokes_it() {
    let Some((mut perennial, pebble, first)) = with_certificate(Options::default(), "").await
    else {
        return;
    };
    perennial.kill9();
    std::fs::remove_dir_all(perennial.place.state().join("accounts")).expect("removed");
    perennial.start_and_wait().await;
    assert_eq!(wait_for_another(&perennial, "").await, first);
    let done = perennial.cli(&["certs", "revoke", NAME, "--json"]).await;
    let done = done.assert_success().json();
    assert_eq!(done["by"], "certificate key", "{done}");
    assert_eq!(done["reason"], "unspecified");
    assert_eq!(pebble.certificate_status(&first).await["Status"], "Revoked");
    wait_for_another(&perennial, &first).await;
}

/// There is an account, and the CA says that it is not the one that may.
#[tokio::test(flavor = "multi_thread")]
async fn where_another_account_ordered_it_the_certificates_own_key_revokes_it() {
    let Some((mut perennial, pebble, first)) = with_certificate(Options::default(), "").await
    else {
        return;
    };
    perennial.kill9();
    std::fs::remove_dir_all(perennial.place.state().join("accounts")).expect("removed");
    // Another name makes another account, which has shown control over nothing else.
    let sites = [NAME, "b.example.test"].map(|name| site(name, "acme", &["respond:hello"]));
    perennial.rewrite_config(&format!("{}{}", pebble.acme_table(), sites.concat()));
    perennial.start_and_wait().await;
    issued_by_pebble(&perennial, "b.example.test").await;
    let done = perennial.cli(&["certs", "revoke", NAME, "--json"]).await;
    let done = done.assert_success().json();
    assert_eq!(done["by"], "certificate key", "{done}");
    assert_eq!(pebble.certificate_status(&first).await["Status"], "Revoked");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_revoked_is_said() {
    let place = Place::new();
    let site = site("a.localhost", "internal", &["respond:hello"]);
    let mut perennial = Perennial::run(place, &site).await;
    perennial.wait_ready().await;
    for (name, reason, expected) in [
        ("a.localhost", "superseded", "internal CA"),
        ("b.example.test", "superseded", "no certificate of ours"),
        ("a.localhost", "boredom", "keyCompromise"),
    ] {
        let arguments = ["certs", "revoke", name, "--reason", reason];
        let refused = perennial.cli(&arguments).await;
        assert!(!refused.success());
        assert!(refused.stderr.contains(expected), "{}", refused.stderr);
    }
}
