//! A certificate from a real authority, from an empty state directory, by either challenge.

use std::path::Path;
use std::time::Duration;

use crate::support::client::{Served, served};
use crate::support::command::curl;
use crate::support::pebble::{Options, Pebble};
use crate::support::perennial::Perennial;
use crate::support::place::Place;
use crate::support::sites::site;
use crate::support::upstream::Upstream;
use crate::support::wait::{SOON, never_within, wait_until};
use crate::support::websocket::WebSocket;

const NAME: &str = "a.example.test";

async fn wait_for_pebbles_certificate(perennial: &Perennial, name: &str) -> Served {
    wait_until(SOON, "a certificate by Pebble", async || {
        let served = served(perennial.place.https, Some(name)).await.ok()?;
        served.issuer.contains("Pebble").then_some(served)
    })
    .await
}

/// curl and a WebSocket client, both trusting Pebble's root and nothing else.
async fn assert_usable(perennial: &Perennial, pebble: &Pebble) {
    let root = perennial
        .place
        .write("issuing-root.pem", pebble.issuing_root().await);
    assert_eq!(fetch(perennial, &root, "--http1.1").await, "1.1 200");
    assert_eq!(fetch(perennial, &root, "--http2").await, "2 200");
    let https = perennial.place.https;
    let socket = WebSocket::open(https, NAME, "/ws", Some(&root)).await;
    let echoed = socket.expect("upgraded").exchange("are you there").await;
    assert_eq!(echoed.as_deref(), Ok("are you there"));
}

async fn fetch(perennial: &Perennial, root: &Path, version: &str) -> String {
    let https = perennial.place.https;
    let resolve = format!("{NAME}:{}:{}", https.port(), https.ip());
    let url = format!("https://{NAME}:{}/some/path", https.port());
    let root = root.display().to_string();
    let format = "%{stderr}%{http_version} %{http_code}";
    let arguments = [
        version,
        "--cacert",
        &root,
        "--resolve",
        &resolve,
        "-w",
        format,
        &url,
    ];
    let done = curl(&arguments).await.assert_success();
    assert_eq!(done.json()["path"], "/some/path");
    done.stderr
}

async fn assert_a_second_start_orders_nothing(perennial: &mut Perennial, pebble: &Pebble) {
    let (before, orders) = (
        wait_for_pebbles_certificate(perennial, NAME).await,
        pebble.orders(),
    );
    perennial.restart().await;
    perennial.wait_ready().await;
    never_within(Duration::from_secs(3), async || {
        let now = pebble.orders();
        (now != orders).then(|| format!("{now} orders after the second start, {orders} before"))
    })
    .await;
    let after = wait_for_pebbles_certificate(perennial, NAME).await;
    assert_eq!(after.serial, before.serial);
}

async fn one_challenge_only(challenge: &str) {
    let place = Place::new();
    let Some(pebble) = Pebble::start(&place, Options::default()).await else {
        return;
    };
    let upstream = Upstream::start(&place, "app").await;
    let acme = format!("{}challenges = [\"{challenge}\"]\n", pebble.acme_table());
    let site = site(NAME, "auto", &[&upstream.addr.to_string()]);
    let mut perennial = Perennial::run(place, &format!("{acme}{site}")).await;
    wait_for_pebbles_certificate(&perennial, NAME).await;
    // Pebble logs the requests of HTTP-01 and says nothing about TLS-ALPN-01.
    let over_http = pebble.log().contains("Attempting to validate w/ HTTP");
    assert_eq!(over_http, challenge == "http-01", "{}", pebble.log());
    assert_eq!(pebble.orders(), 1);
    assert_usable(&perennial, &pebble).await;
    assert_a_second_start_orders_nothing(&mut perennial, &pebble).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_tls_alpn_01_only() {
    one_challenge_only("tls-alpn-01").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_http_01_only() {
    one_challenge_only("http-01").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_proxy_command_needs_no_configuration() {
    let place = Place::new();
    let Some(pebble) = Pebble::start(&place, Options::default()).await else {
        return;
    };
    let upstream = Upstream::start(&place, "app").await;
    let root = pebble.ca_certificate.display().to_string();
    let acme = [
        "--acme-directory",
        &pebble.directory,
        "--acme-ca-certificate",
        &root,
    ];
    let site = format!("{NAME}={}", upstream.addr);
    let email = ["--email", "ops@example.test"];
    let mut perennial = Perennial::with_proxy(place, &[&[&*site], &acme[..], &email].concat());
    perennial.start_and_wait().await;
    wait_for_pebbles_certificate(&perennial, NAME).await;
    assert_usable(&perennial, &pebble).await;
    assert_a_second_start_orders_nothing(&mut perennial, &pebble).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_host_of_a_site_gets_a_certificate_of_its_own() {
    let place = Place::new();
    // A fifth of the nonces refused: orders must come through all the same.
    let options = Options {
        nonce_reject: 20,
        ..Options::default()
    };
    let Some(pebble) = Pebble::start(&place, options).await else {
        return;
    };
    let hosts = ["one.example.test", "two.example.test", "three.example.test"];
    let site = format!("[[sites]]\nhosts = {hosts:?}\nupstreams = [\"respond:hello\"]\n");
    let rest = format!("{}{site}", pebble.acme_table());
    let mut perennial = Perennial::run(place, &rest).await;
    for host in hosts {
        let served = wait_for_pebbles_certificate(&perennial, host).await;
        assert_eq!(served.names, [host]);
        assert_eq!(served.chain_len, 2, "leaf and intermediate");
    }
    perennial.wait_ready().await;
    assert_eq!(pebble.orders(), hosts.len());
}
