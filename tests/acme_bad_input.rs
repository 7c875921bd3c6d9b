//! A CA that is configured wrongly in a way that only asking it shows: one clear message in
//! `/status` and one in the log, no secret in either. What a look at the configuration shows is an
//! error of `check`; those rows are in `tests/configs/broken`.

use std::time::Duration;

use axum::response::{Html, IntoResponse, Response};

use crate::support::certs::TestCa;
use crate::support::pebble::{Options, Pebble};
use crate::support::perennial::{Perennial, cli};
use crate::support::place::Place;
use crate::support::scripted_ca::{Fault, Kind, ScriptedCa};
use crate::support::server::Server;
use crate::support::sites::site;
use crate::support::wait::{SOON, never_within};

const NAME: &str = "a.example.test";
const KID: &str = "kid-1";
const MAC_KEY: &str = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W";

/// `check` has nothing against it; then it is told once, all of `words` in one message.
async fn is_told(place: Place, acme: &str, words: &[&str]) -> String {
    let text = format!("{acme}{}", site(NAME, "acme", &["respond:hello"]));
    let mut perennial = Perennial::with_config(place, &text);
    let file = perennial.place.path("perennial.toml").display().to_string();
    cli(&["check", "--config", &file]).await.assert_success();
    perennial.start_and_wait().await;
    let error = perennial.last_error(NAME).await;
    for word in words {
        assert!(error.contains(word), "no {word:?} in: {error}");
    }
    let warnings = || {
        let log = perennial.log().into_iter();
        let loud = log.filter(|line| line.contains(" WARN ") || line.contains(" ERROR "));
        loud.collect::<Vec<_>>()
    };
    perennial.wait_for_log(words[0], SOON).await;
    never_within(Duration::from_millis(500), async || {
        (warnings().len() != 1).then(|| format!("not one message: {:#?}", warnings()))
    })
    .await;
    let status = perennial.cli(&["status"]).await;
    assert!(status.stdout.contains(words[0]), "{}", status.stdout);
    perennial.log().join("\n")
}

/// Something that is no CA answers.
async fn answered(answer: fn() -> Response, words: &[&str]) {
    let place = Place::new();
    let addr = place.free();
    let router = axum::Router::new().fallback(move || async move { answer() });
    let _server = Server::tcp(addr, router).await;
    let acme = format!("[acme]\ndirectory = \"http://{addr}/directory\"\n");
    let url = format!("http://{addr}/directory");
    is_told(place, &acme, &[&[&*url], words].concat()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_is_html() {
    let page = || Html("<html>Welcome</html>").into_response();
    let told = "its answer is no ACME directory, but text/html: \"Welcome\"";
    answered(page, &[told, "check `directory` (", "perennial.toml:"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_is_other_json() {
    let json = || axum::Json(serde_json::json!({"hello": 1})).into_response();
    answered(json, &["its answer is no ACME directory", "newNonce"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_is_not_there() {
    let nothing = || axum::http::StatusCode::NOT_FOUND.into_response();
    answered(
        nothing,
        &["the directory answers HTTP 404", "check `directory` ("],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_is_elsewhere() {
    let moved = || axum::response::Redirect::permanent("https://example.test/").into_response();
    let words = [
        "the directory answers HTTP 308",
        "may have to be https://example.test/",
    ];
    answered(moved, &words).await;
}

/// `perennial proxy` has options, and no tables.
#[tokio::test(flavor = "multi_thread")]
async fn a_directory_of_the_command_line_that_is_html() {
    let place = Place::new();
    let addr = place.free();
    let page = || async { Html("<html>Welcome</html>") };
    let _server = Server::tcp(addr, axum::Router::new().fallback(page)).await;
    let url = format!("http://{addr}/directory");
    let site = format!("{NAME}=respond:hello");
    let mut perennial = Perennial::with_proxy(place, &["--acme-directory", &url, &site]);
    perennial.start_and_wait().await;
    let error = perennial.last_error(NAME).await;
    assert!(error.contains("check `--acme-directory`"), "{error}");
    let report = perennial.status_field(NAME, "error").await.expect("it");
    assert_eq!(report["class"], "operator", "{report}");
    assert!(report["remedy"].is_string(), "{report}");
}

/// It has been right: what answers now may be a balancer that has lost the CA.
#[tokio::test(flavor = "multi_thread")]
async fn a_known_ca_whose_directory_is_html_for_a_while() {
    let place = Place::new();
    let ca = ScriptedCa::start(&place).await;
    let site = site(NAME, "acme", &["respond:hello"]);
    let text = format!("{}{site}", ca.acme_table());
    let mut perennial = Perennial::run(place, &text).await;
    perennial.wait_ready().await;
    perennial.kill9();
    let state = perennial.place.state();
    for of_certificates in ["certificates", "ledger/subjects"] {
        std::fs::remove_dir_all(state.join(of_certificates)).expect("a folder");
    }
    let accounts = std::fs::read_dir(state.join("accounts")).expect("a folder");
    let account = accounts.flatten().next().expect("one").path();
    std::fs::remove_file(account.join("directory.json")).expect("a file");
    ca.script(|script| script.break_one(Kind::Directory, Fault::Page));
    perennial.start_and_wait().await;
    let error = perennial.last_error(NAME).await;
    assert!(error.contains("text/html: \"Maintenance\""), "{error}");
    let report = perennial.status_field(NAME, "error").await.expect("it");
    assert_eq!(report["class"], "retryable", "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_nobody_answers() {
    let place = Place::new();
    let url = format!("https://{}/directory", place.free());
    let acme = format!("[acme]\ndirectory = \"{url}\"\n");
    is_told(place, &acme, &[&url, "cannot reach", "refused"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_of_a_host_that_does_not_exist() {
    let acme = "[acme]\ndirectory = \"https://ca.invalid/directory\"\n";
    is_told(
        Place::new(),
        acme,
        &["https://ca.invalid/directory", "cannot reach"],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_wrong_root_for_a_private_ca() {
    let place = Place::new();
    let Some(pebble) = Pebble::start(&place, Options::default()).await else {
        return;
    };
    let root = place.write("another-root.pem", TestCa::new().root_pem);
    let acme = format!(
        "[acme]\ndirectory = \"{}\"\nca_certificate = \"{}\"\n",
        pebble.directory,
        root.display()
    );
    is_told(
        place,
        &acme,
        &[
            &pebble.directory,
            "another-root.pem has no root that the server's certificate leads to",
            "`ca_certificate` (",
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_root_for_a_private_ca_of_the_command_line() {
    let place = Place::new();
    let Some(pebble) = Pebble::start(&place, Options::default()).await else {
        return;
    };
    let site = format!("{NAME}=respond:hello");
    let url = &pebble.directory;
    let mut perennial = Perennial::with_proxy(place, &["--acme-directory", url, &site]);
    perennial.start_and_wait().await;
    let error = perennial.last_error(NAME).await;
    assert!(
        error.contains("set `--acme-ca-certificate` to its root"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_profile_that_does_not_exist() {
    let place = Place::new();
    let ca = ScriptedCa::start(&place).await;
    ca.script(|script| script.profiles = vec!["classic", "shortlived"]);
    let acme = format!("{}profile = \"shortlive\"\n", ca.acme_table());
    let words = ["no profile \"shortlive\"", "classic, shortlived"];
    is_told(place, &acme, &words).await;
}

/// With Pebble asking for an external account.
async fn bound(table: &str, words: &[&str]) {
    let place = Place::new();
    let options = Options {
        external_account: Some((KID, MAC_KEY)),
        ..Options::default()
    };
    let Some(pebble) = Pebble::start(&place, options).await else {
        return;
    };
    let log = is_told(place, &format!("{}{table}", pebble.acme_table()), words).await;
    assert!(!log.contains(&MAC_KEY[4..]), "the key is in the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_external_account_where_the_ca_wants_one() {
    bound(
        "",
        &["externalAccountRequired", "set [acme.external_account]"],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_external_account_with_a_wrong_mac() {
    let wrong = MAC_KEY.replacen('z', "y", 1);
    let table = format!("[acme.external_account]\nkid = \"{KID}\"\nhmac_key = \"{wrong}\"\n");
    bound(&table, &["account binding", "[acme.external_account]"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_external_account_that_the_ca_does_not_know() {
    let table = format!("[acme.external_account]\nkid = \"kid-2\"\nhmac_key = \"{MAC_KEY}\"\n");
    bound(&table, &["kid-2", "[acme.external_account]"]).await;
}
