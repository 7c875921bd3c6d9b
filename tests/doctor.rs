//! `perennial doctor` about the CA: whether it would take an order, how our account there is, what
//! came of the last order, and what to do where the directory cannot be had.

use std::process::Command;

use axum::http::StatusCode;
use axum::response::{Html, IntoResponse, Response};
use serde_json::Value;

use crate::support::bind::{Bind, Zone};
use crate::support::certs::TestCa;
use crate::support::command::{Finished, run};
use crate::support::pebble::{Options, Pebble, issued_by_pebble};
use crate::support::perennial::{Perennial, cli, program};
use crate::support::place::Place;
use crate::support::server::Server;
use crate::support::sites::site;
use crate::support::wait::{SOON, wait_until};

const NAME: &str = "here.example.test";
const KID: &str = "kid-1";
const MAC_KEY: &str = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W";

/// A DNS server that knows one name, which leads here.
async fn dns(place: &Place) -> Bind {
    let zone = Zone {
        name: "test",
        records: &format!("here.example IN A {}", place.ip),
        takes_updates: false,
    };
    Bind::start(place, "bind", &[zone]).await
}

async fn pebble(place: &Place, bind: &Bind, bound: bool) -> Option<Pebble> {
    let options = Options {
        dns: Some(bind.addr),
        external_account: bound.then_some((KID, MAC_KEY)),
        ..Options::default()
    };
    Pebble::start(place, options).await
}

fn rest(bind: &Bind, acme: &str, name: &str) -> String {
    let dns = format!("[acme.dns]\nresolvers = [\"{}\"]\n", bind.addr);
    format!("{acme}{dns}{}", site(name, "acme", &["respond:hello"]))
}

/// Without a server.
async fn config(place: &Place, rest: &str) {
    place.write("perennial.toml", place.server_table() + rest);
    std::fs::create_dir_all(place.state()).expect("a state directory");
}

async fn doctor(place: &Place, env: &[(&str, &str)]) -> (Finished, Vec<Value>) {
    let mut command = Command::new(program());
    command.args(["doctor", "--json", "--config"]);
    command.arg(place.path("perennial.toml"));
    command.envs(env.iter().copied());
    let done = run(command).await;
    let findings = done.json().as_array().expect("a list").clone();
    (done, findings)
}

/// What is said about a topic, each part of it in one line.
fn said(findings: &[Value], topic: &str, verdict: &str) -> String {
    let on_topic = findings.iter().filter(|it| it["topic"] == topic);
    let found: Vec<&Value> = on_topic.filter(|it| it["verdict"] == verdict).collect();
    assert!(!found.is_empty(), "{verdict} {topic}: {findings:#?}");
    let text = |it: &Value, key: &str| it[key].as_str().unwrap_or_default().to_owned();
    let lines = found
        .iter()
        .map(|it| format!("{}; {}", text(it, "cause"), text(it, "remedy")));
    lines.collect::<Vec<_>>().join("\n")
}

fn assert_has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "no {part:?} in: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_ca_wants_is_held_against_the_configuration() {
    let place = Place::new();
    let bind = dns(&place).await;
    let Some(pebble) = pebble(&place, &bind, true).await else {
        return;
    };
    let acme = format!("{}profile = \"short\"\n", pebble.acme_table());
    config(&place, &rest(&bind, &acme, NAME)).await;
    let (done, findings) = doctor(&place, &[]).await;
    assert_eq!(done.code, Some(1), "{findings:#?}");
    let account = said(&findings, "account", "fails");
    assert_has(
        &account,
        &["externalAccountRequired", "[acme.external_account]"],
    );
    let profile = said(&findings, "profile", "fails");
    assert_has(&profile, &["\"short\"", "but default"]);
    let bound = format!(
        "{}profile = \"default\"\n[acme.external_account]\nkid = \"{KID}\"\nhmac_key = \"{MAC_KEY}\"\n",
        pebble.acme_table()
    );
    config(&place, &rest(&bind, &bound, NAME)).await;
    let (done, findings) = doctor(&place, &[]).await;
    assert_eq!(done.code, Some(0), "{findings:#?}");
    assert_has(
        &said(&findings, "account", "ok"),
        &["the first order makes"],
    );
    said(&findings, "profile", "ok");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ca_is_asked_how_our_account_is() {
    let place = Place::new();
    let bind = dns(&place).await;
    let Some(pebble) = pebble(&place, &bind, false).await else {
        return;
    };
    let rest = rest(&bind, &pebble.acme_table(), NAME);
    let perennial = Perennial::run(place, &rest).await;
    order_over(&perennial).await;
    let (_, findings) = doctor(&perennial.place, &[]).await;
    assert_has(&said(&findings, "account", "ok"), &["is valid"]);
    assert_has(
        &said(&findings, "order", "ok"),
        &["valid until", "renewed at"],
    );
    // Another client ends it, with the same key; here nobody is told.
    let done = perennial.cli(&["account", "deactivate", "--yes"]).await;
    done.assert_success();
    let accounts = perennial.place.state().join("accounts");
    let of_ca = std::fs::read_dir(accounts).expect("accounts").next();
    let of_ca = of_ca.expect("one").expect("readable").path();
    let file = of_ca.join("account.json");
    std::fs::rename(of_ca.join("account.deactivated.json"), &file).expect("as it was");
    let (done, findings) = doctor(&perennial.place, &[]).await;
    assert_eq!(done.code, Some(1));
    let account = said(&findings, "account", "fails");
    assert_has(
        &account,
        &["deactivated", "account.json", "makes a new account"],
    );
    assert!(file.exists(), "nothing is changed");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_came_of_the_last_order_is_told() {
    let place = Place::new();
    let bind = dns(&place).await;
    let Some(pebble) = pebble(&place, &bind, true).await else {
        return;
    };
    let wrong = MAC_KEY.replacen('z', "y", 1);
    let acme = format!(
        "{}[acme.external_account]\nkid = \"{KID}\"\nhmac_key = \"{wrong}\"\n",
        pebble.acme_table()
    );
    let mut perennial = Perennial::run(place, &rest(&bind, &acme, NAME)).await;
    perennial.last_error(NAME).await;
    let parts = [
        "account binding",
        "[acme.external_account]",
        "the next attempt",
    ];
    let (done, findings) = doctor(&perennial.place, &[]).await;
    assert_eq!(done.code, Some(1));
    assert_has(&said(&findings, "order", "fails"), &parts);
    // Nobody runs any more: the ledger knows.
    perennial.kill9();
    let (done, findings) = doctor(&perennial.place, &[]).await;
    assert_eq!(done.code, Some(1));
    let order = said(&findings, "order", "fails");
    assert_has(&order, &parts);
    assert_has(&order, &["failed at", "not before"]);
    assert!(!done.stdout.contains(&wrong[4..]), "the key is told");
}

/// A CA that is not public may see the network with other eyes.
#[tokio::test(flavor = "multi_thread")]
async fn the_way_to_a_name_is_advice_where_the_ca_is_not_public() {
    let place = Place::new();
    let bind = dns(&place).await;
    let Some(pebble) = pebble(&place, &bind, false).await else {
        return;
    };
    let nowhere = rest(&bind, &pebble.acme_table(), "nowhere.example.test");
    config(&place, &nowhere).await;
    let (done, findings) = doctor(&place, &[]).await;
    assert_eq!(done.code, Some(0), "{findings:#?}");
    let address = said(&findings, "address", "warning");
    assert_has(&address, &["neither an A nor an AAAA", "not public"]);
    let public = [("PERENNIAL_TEST_PUBLIC_CA", &*pebble.directory)];
    let (done, findings) = doctor(&place, &public).await;
    assert_eq!(done.code, Some(1));
    assert_has(&said(&findings, "address", "fails"), &["neither an A"]);
}

/// Whoever has no configuration says on the command line what `perennial proxy` was told there.
#[tokio::test(flavor = "multi_thread")]
async fn it_takes_what_proxy_takes_and_says_what_it_looked_at() {
    let place = Place::new();
    let bind = dns(&place).await;
    let Some(pebble) = pebble(&place, &bind, false).await else {
        return;
    };
    let root = pebble.ca_certificate.display().to_string();
    let ca = [
        "--acme-directory",
        &pebble.directory,
        "--acme-ca-certificate",
        &root,
    ];
    let site = format!("{NAME}=respond:hello");
    let mut perennial = Perennial::with_proxy(place, &[&[&*site], &ca[..]].concat());
    perennial.start_and_wait().await;
    order_over(&perennial).await;
    let state = perennial.place.state().display().to_string();
    let admin = perennial.place.admin.to_string();
    let ask = async |state: &str| {
        let words = ["doctor", NAME, "--state-dir", state, "--admin", &admin];
        cli(&[&words, &ca[..]].concat()).await
    };
    let done = ask(&state).await.assert_success();
    let (directory, api) = (&pebble.directory, format!("admin API {admin}"));
    let looked = [
        &*format!("state directory {state}"),
        &*format!("CA {directory}"),
        &*api,
    ];
    assert_has(&done.stdout, &looked);
    assert_has(&done.stdout, &["is valid", "a certificate is served"]);
    // Another state directory is that of another one.
    let elsewhere = perennial.place.path("elsewhere");
    std::fs::create_dir(&elsewhere).expect("a directory");
    let done = ask(&elsewhere.display().to_string()).await;
    let other = format!("has another one, {state}");
    assert_has(&done.stdout, &[&*other, "there is none yet"]);
    assert!(
        !done.stdout.contains("a certificate is served"),
        "{done:#?}"
    );
    let done = cli(&["doctor", "--state-dir", &state]).await;
    assert_eq!(done.code, Some(64), "{done:#?}");
}

/// A certificate is served a moment before its order has ended.
async fn order_over(perennial: &Perennial) {
    issued_by_pebble(perennial, NAME).await;
    wait_until(SOON, "the end of the order", async || {
        let running = perennial.status_field(NAME, "in_progress").await;
        (running != Some(Value::Bool(true))).then_some(())
    })
    .await;
}

/// What the doctor says of a directory that cannot be had.
async fn of_directory(place: &Place, bind: &Bind, acme: &str) -> String {
    config(place, &rest(bind, acme, NAME)).await;
    let (done, findings) = doctor(place, &[]).await;
    assert_eq!(done.code, Some(1), "{findings:#?}");
    said(&findings, "directory", "fails")
}

async fn answered(answer: fn() -> Response, parts: &[&str]) {
    let place = Place::new();
    let bind = dns(&place).await;
    let addr = place.free();
    let router = axum::Router::new().fallback(move || async move { answer() });
    let _server = Server::tcp(addr, router).await;
    let acme = format!("[acme]\ndirectory = \"http://{addr}/directory\"\n");
    assert_has(&of_directory(&place, &bind, &acme).await, parts);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_remedy_fits_what_is_wrong_with_the_directory() {
    let page = || Html("<html>Welcome</html>").into_response();
    answered(page, &["text/html", "check `directory`"]).await;
    let missing = || StatusCode::NOT_FOUND.into_response();
    answered(missing, &["HTTP 404", "check `directory`"]).await;
    let trouble = || StatusCode::BAD_GATEWAY.into_response();
    answered(trouble, &["HTTP 502", "status page"]).await;

    let place = Place::new();
    let bind = dns(&place).await;
    let nobody = format!("[acme]\ndirectory = \"https://{}/\"\n", place.free());
    let told = of_directory(&place, &bind, &nobody).await;
    assert_has(&told, &["refused", "way out of this host"]);
    let Some(pebble) = pebble(&place, &bind, false).await else {
        return;
    };
    let acme = format!("[acme]\ndirectory = \"{}\"\n", pebble.directory);
    let told = of_directory(&place, &bind, &acme).await;
    assert_has(&told, &["set `ca_certificate` in [acme] to its root"]);
    let another = place.write("another.pem", TestCa::new().root_pem);
    let another = another.display().to_string();
    let acme = format!("{acme}ca_certificate = \"{another}\"\n");
    let told = of_directory(&place, &bind, &acme).await;
    assert_has(
        &told,
        &[&*format!("{another} has no root"), "see `ca_certificate` ("],
    );
}
