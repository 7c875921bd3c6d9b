//! What requests carry to the upstream, and what is answered when they cannot go there.

use serde_json::Value;

use crate::proxy::{NAME, get, proxy};
use crate::support::client::{Version, http_client, served};
use crate::support::command::curl;
use crate::support::perennial::Perennial;
use crate::support::place::Place;
use crate::support::raw::{Manner, RawUpstream};
use crate::support::sites::{FileTls, site};
use crate::support::upstream::Upstream;
use crate::support::wait::SOON;

#[tokio::test(flavor = "multi_thread")]
async fn forwarded_headers_are_ours_and_not_the_strangers() {
    let place = Place::new();
    let upstream = Upstream::start(&place, "app").await;
    let sites = site(NAME, "files", &[&upstream.addr.to_string()]);
    let perennial = proxy(place, &sites).await;
    for version in [Version::Http1, Version::Http2] {
        let client = http_client(NAME, perennial.place.https, None, version);
        let url = format!("https://{NAME}:{}/", perennial.place.https.port());
        let request = client.get(url).header("x-forwarded-for", "203.0.113.9");
        let request = request.header("x-forwarded-for", "203.0.113.10");
        let request = request.header("x-forwarded-proto", "gopher");
        let request = request.header("x-forwarded-host", "evil.example");
        let response = request.send().await.expect("an answer");
        let told: Value = response.json().await.expect("JSON");
        let headers = &told["headers"];
        assert_eq!(
            headers["x-forwarded-for"],
            serde_json::json!(["127.0.0.1"]),
            "{version:?}"
        );
        assert_eq!(headers["x-forwarded-proto"], serde_json::json!(["https"]));
        let host = headers["x-forwarded-host"].as_array().expect("set");
        assert_eq!(host.len(), 1);
        assert!(
            host[0].as_str().is_some_and(|host| host.starts_with(NAME)),
            "{host:?}"
        );
        let host = headers["host"][0].as_str().expect("passed on");
        assert!(host.starts_with(NAME), "{host}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_fails_is_502_with_the_reason_in_the_log() {
    let place = Place::new();
    let close = RawUpstream::start(&place, Manner::Close).await;
    let garbage = RawUpstream::start(&place, Manner::Garbage).await;
    let leaf = FileTls::new(&place, &["localhost"]).leaf;
    let untrusted = Upstream::start_tls(&place, "untrusted", &leaf).await;
    let bad = [
        place.free().to_string(),
        close.addr.to_string(),
        garbage.addr.to_string(),
        format!("https://{}", untrusted.addr),
        format!("unix:{}", place.path("nobody.sock").display()),
    ];
    let routes = bad.iter().enumerate().map(|(number, upstream)| {
        format!("[[sites.routes]]\npath = \"/{number}\"\nupstreams = [\"{upstream}\"]\n")
    });
    let site = format!("[[sites]]\nhosts = [\"{NAME}\"]\ntls = \"files\"\n");
    let perennial = proxy(place, &format!("{site}{}", routes.collect::<String>())).await;
    for (number, upstream) in bad.iter().enumerate() {
        let (status, body) = get(&perennial, NAME, &format!("/{number}")).await;
        assert_eq!(status, 502, "{upstream}: {body}");
        assert!(
            body.len() < 200 && !body.contains('<'),
            "short and plain: {body}"
        );
        let address = upstream
            .trim_start_matches("https://")
            .trim_start_matches("unix:");
        assert!(
            !body.contains(address),
            "strangers need not know it: {body}"
        );
        perennial.wait_for_log(address, SOON).await;
    }
    assert_eq!(get(&perennial, NAME, "/unrouted").await.0, 404);
    assert_eq!(untrusted.requests(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_names_are_refused_or_misdirected() {
    let perennial = proxy(Place::new(), &site(NAME, "files", &["respond:hello"])).await;
    let https = perennial.place.https;
    for sni in [Some("unknown.example.test"), None] {
        let shown = served(https, sni).await;
        assert!(
            shown.is_err(),
            "no default certificate was configured: {shown:?}"
        );
    }
    let resolve = format!("{NAME}:{}:{}", https.port(), https.ip());
    let url = format!("https://{NAME}:{}/", https.port());
    for (option, version) in [("--http1.1", "1.1"), ("--http2", "2")] {
        let arguments = [
            option,
            "-k",
            "--resolve",
            &resolve,
            "-H",
            "Host: unknown.example.test",
        ];
        let format = ["-w", "%{stderr}%{http_version} %{http_code}", &url];
        let done = curl(&[&arguments[..], &format].concat())
            .await
            .assert_success();
        assert_eq!(done.stderr, format!("{version} 421"), "{}", done.stdout);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_default_certificate_is_for_clients_without_a_known_name() {
    let place = Place::new();
    let tls = FileTls::new(&place, &[NAME]);
    let certificates = format!("[certificates]\ndefault = \"{NAME}\"\n{}", tls.pair.table());
    let rest = format!("{certificates}{}", site(NAME, "files", &["respond:hello"]));
    let mut perennial = Perennial::run(place, &rest).await;
    perennial.wait_ready().await;
    for sni in [Some("unknown.example.test"), None] {
        let shown = served(perennial.place.https, sni)
            .await
            .expect("the default");
        assert_eq!(shown.serial, tls.leaf.serial);
    }
}
