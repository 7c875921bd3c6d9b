//! The account at a CA: bound to an external one, given a new key, given up, found by its key.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use crate::support::client::served;
use crate::support::command::Finished;
use crate::support::pebble::{Options, Pebble};
use crate::support::perennial::{Perennial, cli};
use crate::support::place::Place;
use crate::support::scripted_ca::{Kind, ScriptedCa};
use crate::support::sites::site;
use crate::support::wait::{SOON, never_within, wait_until};

const NAME: &str = "a.example.test";

/// Serving Pebble's first certificate.
pub async fn with_certificate(options: Options, acme: &str) -> Option<(Perennial, Pebble, String)> {
    let place = Place::new();
    let pebble = Pebble::start(&place, options).await?;
    let site = site(NAME, "acme", &["respond:hello"]);
    let text = format!("{}{acme}{site}", pebble.acme_table());
    let perennial = Perennial::run(place, &text).await;
    let first = wait_for_another(&perennial, "").await;
    Some((perennial, pebble, first))
}

pub async fn wait_for_another(perennial: &Perennial, serial: &str) -> String {
    wait_until(SOON, "another certificate by Pebble", async || {
        let served = served(perennial.place.https, Some(NAME)).await.ok()?;
        (served.issuer.contains("Pebble") && served.serial != serial).then_some(served.serial)
    })
    .await
}

fn folder(perennial: &Perennial) -> PathBuf {
    let accounts = perennial.place.state().join("accounts");
    let mut entries = std::fs::read_dir(accounts).expect("a folder");
    entries.next().expect("one CA").expect("readable").path()
}

fn account(perennial: &Perennial) -> Value {
    let file = folder(perennial).join("account.json");
    serde_json::from_slice(&std::fs::read(file).expect("an account")).expect("JSON")
}

/// `perennial account`, of the running program or of the one that has run here.
async fn change(perennial: &Perennial, words: &[&str]) -> Finished {
    let config = perennial.place.path("perennial.toml").display().to_string();
    let words = [&["account"], words, &["--config", &config]].concat();
    perennial.cli(&words).await
}

/// It says the same and leaves the same, whoever makes the change.
async fn a_new_key(is_stopped: bool) {
    let Some((mut perennial, pebble, first)) = with_certificate(Options::default(), "").await
    else {
        return;
    };
    let before = account(&perennial);
    if is_stopped {
        perennial.kill9();
    }
    let done = change(&perennial, &["rollover"]).await.assert_success();
    let id = before["id"].as_str().expect("a URL");
    let told = format!("new key for {id} at {}\n", pebble.directory);
    assert_eq!((done.stdout, done.stderr), (told, String::new()));
    let after = account(&perennial);
    assert_eq!(before["id"], after["id"]);
    assert_ne!(before["key_pkcs8"], after["key_pkcs8"]);
    assert!(!folder(&perennial).join("account.key.next").exists());
    if is_stopped {
        perennial.start_and_wait().await;
    }
    perennial.renew(NAME).await;
    let second = wait_for_another(&perennial, &first).await;
    perennial.restart().await;
    perennial.renew(NAME).await;
    wait_for_another(&perennial, &second).await;
    assert_eq!(account(&perennial), after);
    let log = perennial.log().join("\n");
    for secret in [&before["key_pkcs8"], &after["key_pkcs8"]] {
        assert!(!log.contains(secret.as_str().expect("a key")));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_key_takes_over_and_is_used_after_a_restart() {
    a_new_key(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_key_while_the_program_is_stopped() {
    a_new_key(true).await;
}

/// The CA took the new key, and the answer was lost: as if the process had died in between.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_keys_that_broke_off_is_settled_by_asking_the_ca() {
    let Some((mut perennial, _pebble, first)) = with_certificate(Options::default(), "").await
    else {
        return;
    };
    let folder = folder(&perennial);
    let read = |file: &str| std::fs::read(folder.join(file)).expect(file);
    let (old_json, old_key) = (read("account.json"), read("account.key"));
    perennial
        .cli(&["account", "rollover"])
        .await
        .assert_success();
    let new_key = read("account.key");
    perennial.kill9();
    for (file, content) in [
        ("account.json", old_json),
        ("account.key", old_key),
        ("account.key.next", new_key.clone()),
    ] {
        std::fs::write(folder.join(file), content).expect(file);
    }
    perennial.start_and_wait().await;
    perennial.renew(NAME).await;
    wait_for_another(&perennial, &first).await;
    assert!(read("account.key") == new_key, "the new key is the key");
    assert!(!folder.join("account.key.next").exists());
    // And where the CA never heard of the new key, the old one stays.
    perennial.kill9();
    let stranger = rcgen::KeyPair::generate().expect("a key").serialize_pem();
    std::fs::write(folder.join("account.key.next"), stranger).expect("a key");
    perennial.start_and_wait().await;
    let now = wait_for_another(&perennial, "").await;
    perennial.renew(NAME).await;
    wait_for_another(&perennial, &now).await;
    assert!(read("account.key") == new_key);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_or_broken_file_is_made_up_from_the_key() {
    let Some((mut perennial, _pebble, mut serial)) = with_certificate(Options::default(), "").await
    else {
        return;
    };
    let before = account(&perennial);
    let file = folder(&perennial).join("account.json");
    for content in [None, Some("{\"directory\": \"ht")] {
        perennial.kill9();
        match content {
            None => std::fs::remove_file(&file).expect("removed"),
            Some(content) => std::fs::write(&file, content).expect("written"),
        }
        perennial.start_and_wait().await;
        perennial.renew(NAME).await;
        serial = wait_for_another(&perennial, &serial).await;
        assert_eq!(account(&perennial)["id"], before["id"]);
        perennial
            .wait_for_log("found the account by its key", SOON)
            .await;
    }
}

async fn a_deactivated_account(is_stopped: bool) {
    let Some((mut perennial, pebble, first)) = with_certificate(Options::default(), "").await
    else {
        return;
    };
    let before = account(&perennial);
    let asked = change(&perennial, &["deactivate"]).await;
    assert_eq!(asked.code, Some(64), "it wants --yes: {}", asked.stderr);
    if is_stopped {
        perennial.kill9();
    }
    let done = change(&perennial, &["deactivate", "--yes"]).await;
    let id = before["id"].as_str().expect("a URL");
    let told = format!("deactivated {id} at {}\n", pebble.directory);
    assert_eq!(done.assert_success().stdout, told);
    assert!(folder(&perennial).join("account.deactivated.json").exists());
    if is_stopped {
        perennial.start_and_wait().await;
    }
    perennial.renew(NAME).await;
    wait_for_another(&perennial, &first).await;
    let after = account(&perennial);
    assert_ne!(before["id"], after["id"]);
    assert_ne!(before["key_pkcs8"], after["key_pkcs8"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deactivated_account_is_followed_by_a_new_one() {
    a_deactivated_account(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_that_is_deactivated_while_the_program_is_stopped() {
    a_deactivated_account(true).await;
}

/// It runs, and cannot be asked: nothing is changed behind its back.
#[tokio::test(flavor = "multi_thread")]
async fn a_running_program_that_does_not_answer_is_told_with_the_remedy() {
    let place = Place::new();
    let ca = ScriptedCa::start(&place).await;
    let site = site(NAME, "acme", &["respond:hello"]);
    let perennial = Perennial::run(place, &format!("{}{site}", ca.acme_table())).await;
    wait_until(SOON, "an account", async || {
        served(perennial.place.https, Some(NAME)).await.ok()
    })
    .await;
    let before = account(&perennial);
    let config = perennial.place.path("perennial.toml");
    let admin = perennial.place.admin.to_string();
    let off = std::fs::read_to_string(&config).expect("a configuration");
    let off = perennial
        .place
        .write("off.toml", off.replace(&admin, "off"));
    let named = format!("--admin {admin}");
    for (config, remedy) in [(config, named.as_str()), (off, "its admin API is off")] {
        let config = config.display().to_string();
        let words = ["account", "rollover", "--admin", "127.0.0.1:9"];
        let refused = cli(&[&words[..], &["--config", &config]].concat()).await;
        assert!(!refused.success());
        for part in ["is it running?", "has the lock on", remedy, "stop it first"] {
            assert!(refused.stderr.contains(part), "{part}: {}", refused.stderr);
        }
    }
    assert_eq!(account(&perennial), before);
    // And where nothing ever ran, nothing is made.
    let nowhere = perennial.place.path("nowhere");
    let state_dir = nowhere.display().to_string();
    let words = ["account", "rollover", "--admin", "127.0.0.1:9"];
    let refused = cli(&[&words[..], &["--state-dir", &state_dir]].concat()).await;
    let told = "is no state directory";
    assert!(refused.stderr.contains(told), "{}", refused.stderr);
    assert!(!nowhere.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn another_ca_than_the_first_can_be_named() {
    let Some((perennial, pebble, _)) = with_certificate(Options::default(), "").await else {
        return;
    };
    let url = pebble.directory.clone();
    let named = perennial.cli(&["account", "rollover", "--ca", &url]).await;
    named.assert_success();
    let other = "https://other.example.test/directory";
    let unknown = perennial.cli(&["account", "rollover", "--ca", other]).await;
    assert!(!unknown.success());
    assert!(
        unknown.stderr.contains("no CA of the configuration"),
        "{}",
        unknown.stderr
    );
}

const KID: &str = "kid-1";
const MAC_KEY: &str = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W";

fn external_account(key: &str) -> String {
    format!("[acme.external_account]\nkid = \"{KID}\"\nhmac_key = \"{key}\"\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_bound_to_an_external_one() {
    let options = Options {
        external_account: Some((KID, MAC_KEY)),
        ..Options::default()
    };
    let bound = external_account(MAC_KEY);
    let Some((perennial, _pebble, _)) = with_certificate(options, &bound).await else {
        return;
    };
    perennial
        .cli(&["account", "rollover"])
        .await
        .assert_success();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_mac_is_told_in_one_message() {
    let place = Place::new();
    let options = Options {
        external_account: Some((KID, MAC_KEY)),
        ..Options::default()
    };
    let Some(pebble) = Pebble::start(&place, options).await else {
        return;
    };
    let site = site(NAME, "acme", &["respond:hello"]);
    let wrong = external_account(&MAC_KEY.replace('z', "y"));
    let text = format!("{}{wrong}{site}", pebble.acme_table());
    let perennial = Perennial::run(place, &text).await;
    let error = wait_until(SOON, "last_error in /status", async || {
        perennial.status_field(NAME, "last_error").await
    })
    .await;
    let error = error.as_str().expect("a text");
    assert!(error.to_lowercase().contains("external account"), "{error}");
    assert!(!error.contains(MAC_KEY));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_consent_to_the_terms_no_account_is_made() {
    let place = Place::new();
    let ca = ScriptedCa::start(&place).await;
    let site = site(NAME, "acme", &["respond:hello"]);
    let acme = format!("{}agree_to_terms = false\n", ca.acme_table());
    let perennial = Perennial::run(place, &format!("{acme}{site}")).await;
    let error = wait_until(SOON, "last_error in /status", async || {
        perennial.status_field(NAME, "last_error").await
    })
    .await;
    let error = error.as_str().expect("a text");
    assert!(error.contains("agree_to_terms is false"), "{error}");
    assert!(error.contains("/terms"), "the URL of the terms: {error}");
    never_within(Duration::from_secs(1), async || {
        (ca.count(Kind::NewAccount) > 0).then(|| "an account was asked for".to_owned())
    })
    .await;
}
