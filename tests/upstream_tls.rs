//! TLS towards upstreams: whom we trust, what we show, and both replaced while requests go through.

use std::path::PathBuf;

use crate::support::certs::{ClientCa, Leaf, TestCa};
use crate::support::http1::KeepAlive;
use crate::support::perennial::Perennial;
use crate::support::place::Place;
use crate::support::sites::FileTls;
use crate::support::upstream::Upstream;
use crate::support::wait::{SOON, wait_until};

const NAME: &str = "a.example.test";
/// What upstreams' certificates are for; nothing resolves it.
const APP: &str = "app.internal";

struct Scene {
    perennial: Perennial,
    upstream: Upstream,
}

/// One upstream at its address, with these settings.
async fn scene(place: Place, upstream: Upstream, settings: &str) -> Scene {
    let tls = FileTls::new(&place, &[NAME]);
    let rest = format!(
        "{}[[sites]]\nhosts = [\"{NAME}\"]\ntls = \"files\"\nupstreams = [\"https://{}\"]\n\
         upstream_tls = {{ {settings} }}\n",
        tls.pair.table(),
        upstream.addr
    );
    let mut perennial = Perennial::run(place, &rest).await;
    perennial.wait_ready().await;
    Scene {
        perennial,
        upstream,
    }
}

impl Scene {
    async fn status(&self) -> u16 {
        let https = self.perennial.place.https;
        let mut client = KeepAlive::open(https, NAME, None).await.expect("served");
        client.get("/").await.expect("an answer").0
    }

    async fn wait_status(&self, expected: u16) {
        let what = format!("status {expected}");
        wait_until(SOON, &what, async || {
            (self.status().await == expected).then_some(())
        })
        .await;
    }

    async fn error_of(&self, purpose: &str) -> Option<String> {
        let status = self.perennial.status_json().await;
        let mut files = status["tls_files"].as_array()?.iter();
        let file = files.find(|file| file["purpose"] == purpose)?;
        file["last_error"].as_str().map(str::to_owned)
    }
}

fn root(place: &Place, ca: &TestCa) -> PathBuf {
    place.write("upstream-ca.pem", &ca.root_pem)
}

fn identity(place: &Place, leaf: &Leaf) -> (PathBuf, PathBuf) {
    let certificate = place.write("client.pem", &leaf.certificate_pem);
    (certificate, place.write("client.key", &leaf.key_pem))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bundle_is_replaced_and_kept_connections_do_not_outlive_it() {
    let (place, ca, other) = (Place::new(), TestCa::new(), TestCa::new());
    let bundle = root(&place, &ca);
    let upstream = Upstream::start_tls(&place, "app", &ca.leaf(&[APP])).await;
    let settings = format!("ca = {bundle:?}, server_name = \"{APP}\"");
    let scene = scene(place, upstream, &settings).await;
    assert_eq!(scene.status().await, 200);

    std::fs::write(&bundle, "nothing of the kind").expect("written");
    wait_until(SOON, "the broken bundle to be reported", async || {
        scene.error_of("upstream_ca").await
    })
    .await;
    assert_eq!(scene.status().await, 200, "the last good one stays");

    std::fs::write(&bundle, &other.root_pem).expect("written");
    scene.wait_status(502).await;
    assert_eq!(scene.error_of("upstream_ca").await, None);
    std::fs::write(&bundle, format!("{}{}", other.root_pem, ca.root_pem)).expect("written");
    scene.wait_status(200).await;
    assert!(scene.upstream.requests() >= 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_certificate_is_shown_and_replaced() {
    let (place, ca) = (Place::new(), TestCa::new());
    let (clients, strangers) = (ClientCa::new("clients"), ClientCa::new("strangers"));
    let bundle = root(&place, &ca);
    let (certificate, key) = identity(&place, &clients.client("perennial"));
    let leaf = ca.leaf(&[APP]);
    let upstream = Upstream::start_mutual_tls(&place, "app", &leaf, &clients.pem).await;
    let settings = format!(
        "ca = {bundle:?}, server_name = \"{APP}\", certificate = {certificate:?}, \
         private_key = {key:?}"
    );
    let scene = scene(place, upstream, &settings).await;
    assert_eq!(scene.status().await, 200);

    let wrong = strangers.client("perennial");
    std::fs::write(&certificate, &wrong.certificate_pem).expect("written");
    wait_until(SOON, "the mismatch to be reported", async || {
        scene.error_of("upstream_private_key").await
    })
    .await;
    assert_eq!(scene.status().await, 200, "half a change changes nothing");
    std::fs::write(&key, &wrong.key_pem).expect("written");
    scene.wait_status(502).await;
    assert_eq!(scene.error_of("upstream_private_key").await, None);

    identity(&scene.perennial.place, &clients.client("perennial"));
    scene.wait_status(200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_is_verified_as_such() {
    let (place, ca) = (Place::new(), TestCa::new());
    let bundle = root(&place, &ca);
    let own_address = place.ip.to_string();
    let fitting = Upstream::start_tls(&place, "app", &ca.leaf(&[&own_address])).await;
    let scene = scene(place, fitting, &format!("ca = {bundle:?}")).await;
    assert_eq!(scene.status().await, 200);
    assert_eq!(scene.status().await, 200, "a kept connection too");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_for_another_address_is_refused_before_anything_is_sent() {
    let (place, ca) = (Place::new(), TestCa::new());
    let bundle = root(&place, &ca);
    let other = Upstream::start_tls(&place, "app", &ca.leaf(&["127.0.0.1", APP])).await;
    let scene = scene(place, other, &format!("ca = {bundle:?}")).await;
    for _ in 0..2 {
        assert_eq!(scene.status().await, 502);
    }
    assert_eq!(scene.upstream.requests(), 0);
    scene
        .perennial
        .wait_for_log("is not for the address", SOON)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_for_another_name_is_refused() {
    let (place, ca) = (Place::new(), TestCa::new());
    let bundle = root(&place, &ca);
    let other = Upstream::start_tls(&place, "app", &ca.leaf(&["other.internal"])).await;
    let settings = format!("ca = {bundle:?}, server_name = \"{APP}\"");
    let scene = scene(place, other, &settings).await;
    assert_eq!(scene.status().await, 502);
    assert_eq!(scene.upstream.requests(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_verification_anybody_will_do_and_it_is_said() {
    let (place, ca) = (Place::new(), TestCa::new());
    let anybody = Upstream::start_tls(&place, "app", &ca.leaf(&["other.internal"])).await;
    let scene = scene(place, anybody, "verify = false").await;
    assert_eq!(scene.status().await, 200);
    let said = scene.perennial.log_lines_with("verify = false");
    assert_eq!(said.len(), 1, "{said:?}");
}
