//! Where requests go: by host, by path, to several upstreams, to every kind of upstream.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::support::client::{Version, http_client, served};
use crate::support::http1::KeepAlive;
use crate::support::nginx::Nginx;
use crate::support::perennial::Perennial;
use crate::support::place::Place;
use crate::support::sites::{FileTls, site};
use crate::support::upstream::Upstream;

pub const NAME: &str = "a.example.test";
const NAMES: [&str; 3] = [NAME, "*.wild.example.test", "special.wild.example.test"];

/// Started and ready, with a certificate for all [`NAMES`].
pub async fn proxy(place: Place, sites: &str) -> Perennial {
    let tls = FileTls::new(&place, &NAMES);
    let mut perennial = Perennial::run(place, &format!("{}{sites}", tls.pair.table())).await;
    perennial.wait_ready().await;
    perennial
}

pub async fn get(perennial: &Perennial, host: &str, path: &str) -> (u16, String) {
    let https = perennial.place.https;
    let connection = KeepAlive::open(https, host, None).await;
    let mut connection = connection.expect("a connection");
    connection.get(path).await.expect("an answer")
}

async fn upstream_of(perennial: &Perennial, host: &str, path: &str) -> String {
    let (status, body) = get(perennial, host, path).await;
    assert_eq!(status, 200, "{body}");
    let told: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(told["path"], path);
    told["upstream"].as_str().expect("a name").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_and_paths_choose_the_upstream() {
    let place = Place::new();
    let mut ups = BTreeMap::new();
    for name in ["main", "wild", "special", "api", "deep", "exact"] {
        ups.insert(name, Upstream::start(&place, name).await);
    }
    let addr = |name: &str| ups[name].addr.to_string();
    let route = |path: &str, name: &str| {
        format!(
            "[[sites.routes]]\npath = \"{path}\"\nupstreams = [\"{}\"]\n",
            addr(name)
        )
    };
    let sites = [
        site(NAME, "files", &[&addr("main")]),
        route("/api/*", "api"),
        route("/api/deep/*", "deep"),
        route("/exact", "exact"),
        site("*.wild.example.test", "files", &[&addr("wild")]),
        site("special.wild.example.test", "files", &[&addr("special")]),
    ];
    let perennial = proxy(place, &sites.concat()).await;
    let cases = [
        (NAME, "/", "main"),
        (NAME, "/api", "api"),
        (NAME, "/api/x?y=z", "api"),
        (NAME, "/apix", "main"),
        (NAME, "/api/deep/x", "deep"),
        (NAME, "/exact", "exact"),
        (NAME, "/exact/not", "main"),
        ("one.wild.example.test", "/", "wild"),
        ("special.wild.example.test", "/", "special"),
    ];
    for (host, path, name) in cases {
        assert_eq!(
            upstream_of(&perennial, host, path).await,
            name,
            "{host}{path}"
        );
    }
    let deeper = served(perennial.place.https, Some("a.b.wild.example.test")).await;
    assert!(deeper.is_err(), "a wildcard is one label: {deeper:?}");
    let connection = KeepAlive::open(perennial.place.https, NAME, None).await;
    let mut connection = connection.expect("a connection");
    for host in ["A.Example.TEST", &format!("{NAME}:8443")] {
        assert_eq!(
            connection.get_as("/", host).await.expect("an answer").0,
            200,
            "{host}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn upstreams_take_turns() {
    let place = Place::new();
    let (one, two) = (
        Upstream::start(&place, "1").await,
        Upstream::start(&place, "2").await,
    );
    let both = [&*one.addr.to_string(), &two.addr.to_string()];
    let perennial = proxy(place, &site(NAME, "files", &both)).await;
    for _ in 0..10 {
        get(&perennial, NAME, "/").await;
    }
    assert_eq!((one.requests(), two.requests()), (5, 5));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_refuses_connections_costs_no_request() {
    let place = Place::new();
    let live = Upstream::start(&place, "live").await;
    let both = [&*place.free().to_string(), &live.addr.to_string()];
    let perennial = proxy(place, &site(NAME, "files", &both)).await;
    let client = http_client(NAME, perennial.place.https, None, Version::Http1);
    let url = format!("https://{NAME}:{}/", perennial.place.https.port());
    for _ in 0..10 {
        assert_eq!(get(&perennial, NAME, "/").await.0, 200);
        let posted = client
            .post(&url)
            .body("once")
            .send()
            .await
            .expect("an answer");
        assert_eq!(
            posted.status(),
            200,
            "nothing was sent yet: a POST may be tried again"
        );
    }
    assert_eq!(live.requests(), 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_without_tls_is_plain_and_not_redirected() {
    let place = Place::new();
    let upstream = Upstream::start(&place, "app").await;
    let sites = site("plain.example.test", "off", &[&upstream.addr.to_string()]);
    let perennial = Perennial::run(place, &sites).await;
    let connection = KeepAlive::open_plain(perennial.place.http, "plain.example.test").await;
    let (status, body) = connection
        .expect("a connection")
        .get("/")
        .await
        .expect("an answer");
    assert_eq!(status, 200);
    let told: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(told["headers"]["x-forwarded-proto"][0], "http");
}

#[tokio::test(flavor = "multi_thread")]
async fn nginx_and_a_unix_socket_as_upstreams() {
    let place = Place::new();
    let nginx = Nginx::start(&place).await;
    let socket = place.path("app.sock");
    let _upstream = Upstream::start_unix(&socket, "behind a socket").await;
    let sites = [
        site(NAME, "files", &[&nginx.addr.to_string()]),
        site(
            "*.wild.example.test",
            "files",
            &[&format!("unix:{}", socket.display())],
        ),
    ];
    let perennial = proxy(place, &sites.concat()).await;
    let answer = get(&perennial, NAME, "/some?thing").await;
    assert_eq!(answer, (200, "nginx /some?thing".to_owned()));
    let name = upstream_of(&perennial, "x.wild.example.test", "/").await;
    assert_eq!(name, "behind a socket");
}
