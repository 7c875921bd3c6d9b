//! Names of upstreams: asked of DNS again when their TTL says so, and services by SRV records.

use crate::support::bind::{Bind, Zone};
use crate::support::client::{Version, http_client};
use crate::support::perennial::Perennial;
use crate::support::place::Place;
use crate::support::sites::FileTls;
use crate::support::upstream::Upstream;
use crate::support::wait::{SOON, wait_until};

const NAME: &str = "a.example.test";

async fn run(place: Place, bind: &Bind, upstream: &str) -> Perennial {
    let tls = FileTls::new(&place, &[NAME]);
    let rest = format!(
        "resolvers = [\"{}\"]\n{}[[sites]]\nhosts = [\"{NAME}\"]\ntls = \"files\"\n\
         upstreams = [\"{upstream}\"]\n",
        bind.addr,
        tls.pair.table()
    );
    let mut perennial = Perennial::run(place, &rest).await;
    perennial.wait_ready().await;
    perennial
}

/// Who answers; nothing if nobody does.
async fn answered_by(perennial: &Perennial) -> Option<String> {
    let https = perennial.place.https;
    let client = http_client(NAME, https, None, Version::Http1);
    let url = format!("https://{NAME}:{}/", https.port());
    let response = client.get(url).send().await.expect("an answer");
    if response.status() != 200 {
        return None;
    }
    let told: serde_json::Value = response.json().await.expect("JSON");
    told["upstream"].as_str().map(str::to_owned)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_asked_for_again_by_its_ttl() {
    let (place, other) = (Place::new(), Place::new());
    let first = Upstream::start(&place, "first").await;
    // The same port at another address.
    let second = std::net::SocketAddr::new(other.ip.into(), first.addr.port());
    let bind = Bind::start(
        &place,
        "bind",
        &[Zone {
            name: "example.test",
            records: &format!("app 1 IN A {}\nlong 86400 IN A {}", place.ip, place.ip),
            takes_updates: true,
        }],
    )
    .await;
    let router = axum::Router::new().fallback(axum::routing::any(async || {
        axum::Json(serde_json::json!({ "upstream": "second" }))
    }));
    let _second = crate::support::server::Server::tcp(second, router).await;
    let upstream = format!("app.example.test:{}", first.addr.port());
    let perennial = run(place, &bind, &upstream).await;
    assert_eq!(answered_by(&perennial).await.as_deref(), Some("first"));
    let change = format!(
        "zone example.test\nupdate delete app.example.test A\nupdate add app.example.test 1 A {}",
        other.ip
    );
    bind.update(&change).await;
    // Nobody has to fail for that: the first still answers.
    wait_until(SOON, "the new address", async || {
        let name = answered_by(&perennial).await.expect("an answer");
        (name == "second").then_some(())
    })
    .await;
    assert_eq!(answered_by(&perennial).await.as_deref(), Some("second"));
}

#[tokio::test(flavor = "multi_thread")]
async fn services_have_priorities() {
    let place = Place::new();
    let mut upstreams = Vec::new();
    for name in ["first", "second", "spare"] {
        upstreams.push(Upstream::start(&place, name).await);
    }
    let ports = upstreams.iter().map(|upstream| upstream.addr.port());
    let [first, second, spare] = ports.collect::<Vec<_>>()[..] else {
        panic!("three")
    };
    let records = format!(
        "node IN A {ip}\n_http._tcp 60 IN SRV 10 1 {first} node\n\
         _http._tcp 60 IN SRV 10 3 {second} node\n_http._tcp 60 IN SRV 20 1 {spare} node",
        ip = place.ip
    );
    let zone = Zone {
        name: "example.test",
        records: &records,
        takes_updates: false,
    };
    let bind = Bind::start(&place, "bind", &[zone]).await;
    let perennial = run(place, &bind, "srv://_http._tcp.example.test").await;
    let mut seen = std::collections::HashMap::new();
    for _ in 0..60 {
        let name = answered_by(&perennial).await.expect("an answer");
        *seen.entry(name).or_insert(0) += 1;
    }
    assert!(
        !seen.contains_key("spare") && seen["second"] > seen["first"],
        "{seen:?}"
    );
    for upstream in &upstreams[..2] {
        upstream.server.stop().await;
    }
    wait_until(SOON, "the spare one", async || {
        (answered_by(&perennial).await? == "spare").then_some(())
    })
    .await;
}

/// SRV records of upstreams with TLS and HTTP/2: the certificate has to be for the domain that was
/// asked for, whatever name a record gives.
#[tokio::test(flavor = "multi_thread")]
async fn services_speak_tls_and_http2() {
    let place = Place::new();
    let tls = FileTls::new(&place, &[NAME, "example.test"]);
    let node = crate::support::node::Node::start(&place, &tls.pair).await;
    let records = format!(
        "node IN A {}\n_https._tcp 60 IN SRV 1 1 {} node\n_h2._tcp 60 IN SRV 1 1 {} node\n\
         _h2c._tcp 60 IN SRV 1 1 {} node\n_https._tcp.sub 60 IN SRV 1 1 {} node",
        place.ip,
        node.either.port(),
        node.h2.port(),
        node.h2c.port(),
        node.either.port(),
    );
    let zone = Zone {
        name: "example.test",
        records: &records,
        takes_updates: false,
    };
    let bind = Bind::start(&place, "bind", &[zone]).await;
    let mut config = format!(
        "resolvers = [\"{}\"]\n{}[[sites]]\nhosts = [\"{NAME}\"]\ntls = \"files\"\n\
         upstream_tls = {{ ca = {:?} }}\n",
        bind.addr,
        tls.pair.table(),
        tls.root
    );
    for (path, upstream) in [
        ("https", "srv+https://_https._tcp.example.test"),
        ("h2", "srv+h2://_h2._tcp.example.test"),
        ("h2c", "srv+h2c://_h2c._tcp.example.test"),
        ("sub", "srv+https://_https._tcp.sub.example.test"),
    ] {
        let route = format!("[[sites.routes]]\npath = \"/{path}\"\nupstreams = [\"{upstream}\"]\n");
        config.push_str(&route);
    }
    let mut perennial = Perennial::run(place, &config).await;
    perennial.wait_ready().await;
    let https = perennial.place.https;
    let client = http_client(NAME, https, None, Version::Http1);
    for (path, version) in [("https", "1.1"), ("h2", "2.0"), ("h2c", "2.0")] {
        let url = format!("https://{NAME}:{}/{path}", https.port());
        let response = client.get(url).send().await.expect("an answer");
        let seen: serde_json::Value = response.json().await.expect("JSON");
        assert_eq!(seen["version"], version, "{path}: {seen}");
    }
    let url = format!("https://{NAME}:{}/sub", https.port());
    let response = client.get(url).send().await.expect("an answer");
    assert_eq!(response.status(), 502);
    let cause = perennial
        .wait_for_log("upstream cannot be dialled", SOON)
        .await;
    assert!(cause.contains("sub.example.test"), "{cause}");
}
