//! Mutual TLS: who is let in, for which site, and what changes while the server runs.

use std::path::{Path, PathBuf};

use time::Duration;

use crate::support::certs::{ClientCa, Leaf};
use crate::support::clock;
use crate::support::http1::KeepAlive;
use crate::support::perennial::Perennial;
use crate::support::place::Place;
use crate::support::session::{Visit, Visitor};
use crate::support::sites::FileTls;
use crate::support::upstream::Upstream;
use crate::support::wait::{SOON, wait_until};

/// Clients must show a certificate; revocations are looked up.
const CLOSED: &str = "closed.example.test";
/// They may; another authority.
const HALF_OPEN: &str = "half-open.example.test";
const OPEN: &str = "open.example.test";

struct Scene {
    perennial: Perennial,
    ca: ClientCa,
    client: Leaf,
    bundle: PathBuf,
    list: PathBuf,
    other_ca: ClientCa,
}

/// One certificate for all three, so that a client may well ask for one over the connection of
/// another.
async fn scene() -> Scene {
    scene_with(clock::now() + Duration::DAY).await
}

async fn scene_with(next_update: time::OffsetDateTime) -> Scene {
    let place = Place::new();
    let tls = FileTls::new(&place, &[CLOSED, HALF_OPEN, OPEN]);
    let (ca, other_ca) = (ClientCa::new("clients"), ClientCa::new("others"));
    let bundle = place.write("clients.pem", &ca.pem);
    let list = place.write("clients.crl", ca.crl(&[], next_update));
    let others = place.write("others.pem", &other_ca.pem);
    let site = |host: &str, rest: &str| {
        format!(
            "[[sites]]\nhosts = [\"{host}\"]\ntls = \"files\"\nupstreams = [\"respond:hello\"]\n{rest}\n"
        )
    };
    let rest = [
        tls.pair.table(),
        site(
            CLOSED,
            &format!("client_auth = {{ ca = {bundle:?}, crl = {list:?} }}"),
        ),
        site(
            HALF_OPEN,
            &format!("client_auth = {{ ca = {others:?}, mode = \"request\" }}"),
        ),
        site(OPEN, ""),
    ];
    let mut perennial = Perennial::run(place, &rest.concat()).await;
    perennial.wait_ready().await;
    Scene {
        perennial,
        client: ca.client("client"),
        ca,
        bundle,
        list,
        other_ca,
    }
}

impl Scene {
    async fn visit(&self, visitor: &Visitor, host: &str) -> Visit {
        visitor.visit(self.perennial.place.https, host).await
    }

    fn showing(&self, leaf: &Leaf) -> Visitor {
        let name = format!("client-{}", leaf.serial);
        Visitor::new().showing(&self.perennial.place, &name, leaf)
    }

    fn friend(&self) -> Visitor {
        self.showing(&self.client)
    }

    fn session(&self) -> PathBuf {
        self.perennial.place.path("session.pem")
    }

    async fn wait_refused(&self, visitor: &Visitor, alert: &str) {
        wait_until(SOON, "the client to be refused", async || {
            let visit = self.visit(visitor, CLOSED).await;
            (visit.status.is_none() && visit.output.contains(alert)).then_some(())
        })
        .await;
    }

    async fn wait_accepted(&self, visitor: &Visitor) {
        wait_until(SOON, "the client to be accepted", async || {
            let visit = self.visit(visitor, CLOSED).await;
            (visit.status == Some(200)).then_some(())
        })
        .await;
    }

    /// The entry of `/status` for the bundle or the list.
    async fn file(&self, path: &Path) -> serde_json::Value {
        let status = self.perennial.status_json().await;
        let mut files = status["tls_files"].as_array().expect("an array").iter();
        let found = files.find(|file| file["path"] == path.display().to_string());
        found.expect("its entry").clone()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_with_a_certificate_are_let_in_and_no_others() {
    let scene = scene().await;
    let (nobody, friend) = (Visitor::new(), scene.friend());
    scene.visit(&friend, CLOSED).await.assert_answered();
    scene
        .visit(&friend.clone().tls12(), CLOSED)
        .await
        .assert_answered();
    let visit = scene.visit(&nobody, CLOSED).await;
    visit.assert_refused("certificate required");
    let visit = scene.visit(&nobody.clone().tls12(), CLOSED).await;
    visit.assert_refused("alert");
    let stranger = scene.showing(&scene.other_ca.client("stranger"));
    let visit = scene.visit(&stranger, CLOSED).await;
    visit.assert_refused("unknown ca");
    scene.visit(&nobody, OPEN).await.assert_answered();
}

#[tokio::test(flavor = "multi_thread")]
async fn where_a_certificate_is_only_requested_a_wrong_one_is_still_refused() {
    let scene = scene().await;
    scene
        .visit(&Visitor::new(), HALF_OPEN)
        .await
        .assert_answered();
    let welcome = scene.showing(&scene.other_ca.client("welcome"));
    scene.visit(&welcome, HALF_OPEN).await.assert_answered();
    let visit = scene.visit(&scene.friend(), HALF_OPEN).await;
    visit.assert_refused("unknown ca");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_revoked_meanwhile_is_refused_its_ticket_notwithstanding() {
    for tls12 in [false, true] {
        let scene = scene().await;
        let friend = match tls12 {
            true => scene.friend().tls12(),
            false => scene.friend(),
        };
        let keeping = friend.clone().keeping(&scene.session());
        scene.visit(&keeping, CLOSED).await.assert_answered();
        let returning = friend.offering(&scene.session());
        let visit = scene.visit(&returning, CLOSED).await;
        visit.assert_answered().assert_reused();
        let other = scene.showing(&scene.ca.client("other"));
        let list = scene.ca.crl(&[&scene.client], clock::now() + Duration::DAY);
        std::fs::write(&scene.list, list).expect("written");
        scene.wait_refused(&returning, "certificate revoked").await;
        scene.visit(&other, CLOSED).await.assert_answered();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bundle_can_be_replaced_and_a_broken_one_keeps_the_last_good() {
    let scene = scene().await;
    let newcomer = scene.showing(&scene.other_ca.client("newcomer"));
    scene
        .visit(&newcomer, CLOSED)
        .await
        .assert_refused("unknown ca");

    std::fs::write(&scene.bundle, "-----BEGIN CERTIFICATE-----\nMIIB").expect("written");
    wait_until(SOON, "the broken bundle to be reported", async || {
        let error = scene.file(&scene.bundle).await["last_error"].clone();
        error.as_str()?.contains("is cut off").then_some(())
    })
    .await;
    let path = format!("path=\"{}\"", scene.bundle.display());
    let failing = "perennial_tls_file_reload_failing";
    assert_eq!(scene.perennial.metric(failing, &[&path]).await, Some(1.0));
    scene.visit(&scene.friend(), CLOSED).await.assert_answered();

    // Lists for both authorities first: without its list an authority's clients are refused.
    let tomorrow = clock::now() + Duration::DAY;
    let lists = scene.ca.crl(&[], tomorrow) + &scene.other_ca.crl(&[], tomorrow);
    std::fs::write(&scene.list, lists).expect("written");
    let both = format!("{}{}", scene.ca.pem, scene.other_ca.pem);
    std::fs::write(&scene.bundle, both).expect("written");
    scene.wait_accepted(&newcomer).await;
    scene.visit(&scene.friend(), CLOSED).await.assert_answered();
    assert!(scene.file(&scene.bundle).await["last_error"].is_null());
    assert_eq!(scene.perennial.metric(failing, &[&path]).await, Some(0.0));

    std::fs::write(&scene.bundle, &scene.other_ca.pem).expect("written");
    scene.wait_refused(&scene.friend(), "unknown ca").await;
    scene.visit(&newcomer, CLOSED).await.assert_answered();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_is_out_of_date_lets_nobody_in_and_is_reported() {
    let scene = scene_with(clock::now() - Duration::HOUR).await;
    let visit = scene.visit(&scene.friend(), CLOSED).await;
    visit.assert_refused("alert");
    let file = scene.file(&scene.list).await;
    let error = file["last_error"].as_str().expect("an error");
    assert!(error.contains("is out of date since"), "{error}");
    let list = scene.ca.crl(&[], clock::now() + Duration::DAY);
    std::fs::write(&scene.list, list).expect("written");
    scene.wait_accepted(&scene.friend()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_of_one_site_is_no_way_into_another() {
    let scene = scene().await;
    let keep = scene.session();
    for tls12 in [false, true] {
        let version = |visitor: Visitor| match tls12 {
            true => visitor.tls12(),
            false => visitor,
        };
        for (from, to) in [(OPEN, CLOSED), (HALF_OPEN, CLOSED)] {
            let nobody = version(Visitor::new());
            let visit = scene.visit(&nobody.clone().keeping(&keep), from).await;
            visit.assert_answered();
            let visit = scene.visit(&nobody.offering(&keep), to).await;
            visit.assert_new().assert_refused("alert");
        }
        let friend = version(scene.friend());
        for to in [OPEN, HALF_OPEN] {
            let visit = scene.visit(&friend.clone().keeping(&keep), CLOSED).await;
            visit.assert_answered();
            let visit = scene.visit(&friend.clone().offering(&keep), to).await;
            visit.assert_new();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_for_one_site_carries_no_request_to_another() {
    let scene = scene().await;
    let https = scene.perennial.place.https;
    for (name, host, status) in [
        (OPEN, CLOSED, 421),
        (HALF_OPEN, CLOSED, 421),
        (OPEN, HALF_OPEN, 421),
        (OPEN, OPEN, 200),
    ] {
        let visit = Visitor::new().visit_as(https, name, host).await;
        assert_eq!(visit.status, Some(status), "{name} {host} {}", visit.output);
    }
    let visit = scene.friend().visit_as(https, CLOSED, OPEN).await;
    assert_eq!(visit.status, Some(421), "{}", visit.output);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_bundle_that_can_be_read_nobody_is_let_in() {
    let place = Place::new();
    let tls = FileTls::new(&place, &[CLOSED]);
    let ca = ClientCa::new("clients");
    let bundle = place.path("late.pem");
    let rest = format!(
        "{}[[sites]]\nhosts = [\"{CLOSED}\"]\ntls = \"files\"\nupstreams = [\"respond:hello\"]\n\
         client_auth = {{ ca = {bundle:?} }}\n",
        tls.pair.table()
    );
    let mut perennial = Perennial::run(place, &rest).await;
    perennial.wait_ready().await;
    let friend = Visitor::new().showing(&perennial.place, "client", &ca.client("client"));
    let https = perennial.place.https;
    friend.visit(https, CLOSED).await.assert_refused("alert");
    std::fs::write(&bundle, &ca.pem).expect("written");
    wait_until(SOON, "the bundle to be found", async || {
        (friend.visit(https, CLOSED).await.status == Some(200)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resumed_session_is_judged_by_today() {
    // Long enough to visit twice on a busy machine.
    let scene = scene_with(clock::now() + Duration::seconds(12)).await;
    let (friend, keep) = (scene.friend(), scene.session());
    let visit = scene.visit(&friend.clone().keeping(&keep), CLOSED).await;
    visit.assert_answered();
    let returning = friend.offering(&keep);
    let visit = scene.visit(&returning, CLOSED).await;
    visit.assert_answered().assert_reused();
    // No file changes: the list goes out of date, and BoringSSL would not ask again.
    let refused = wait_until(SOON, "the session to be refused", async || {
        let visit = scene.visit(&returning, CLOSED).await;
        visit.status.is_none().then_some(visit)
    })
    .await;
    refused.assert_reused();
    let said = scene.perennial.log_lines_with("of a resumed session");
    assert!(!said.is_empty());
}

/// Upstreams learn who was let in, by a field that no client can forge.
#[tokio::test(flavor = "multi_thread")]
async fn the_upstream_is_told_the_verified_subject() {
    let place = Place::new();
    let upstream = Upstream::start(&place, "app").await;
    let tls = FileTls::new(&place, &[CLOSED]);
    let ca = ClientCa::new("clients");
    let bundle = place.write("clients.pem", &ca.pem);
    let rest = format!(
        "{}[[sites]]\nhosts = [\"{CLOSED}\"]\ntls = \"files\"\nupstreams = [\"{}\"]\n\
         client_auth = {{ ca = {bundle:?}, mode = \"request\" }}\n\
         request_headers.set.X-Client-Subject = \"{{client_subject}}\"\n",
        tls.pair.table(),
        upstream.addr
    );
    let mut perennial = Perennial::run(place, &rest).await;
    perennial.wait_ready().await;
    let (place, https) = (&perennial.place, perennial.place.https);
    let known = Visitor::new().showing(place, "known", &ca.client("alice"));
    let visit = known.visit(https, CLOSED).await;
    let told = "\"x-client-subject\":[\"CN=alice\"]";
    assert!(visit.assert_answered().output.contains(told), "{visit:?}");
    let mut stranger = KeepAlive::open(https, CLOSED, None).await.expect("open");
    let request = hyper::Request::get("/")
        .header("host", CLOSED)
        .header("x-client-subject", "CN=alice")
        .body(axum::body::Body::empty());
    let answer = stranger.send(request.expect("a request")).await;
    let answer =
        crate::support::upstream::text(axum::body::Body::new(answer.expect("one").into_body()));
    let answer = answer.await;
    assert!(answer.contains("\"path\":\"/\""), "{answer}");
    assert!(!answer.contains("alice"), "{answer}");
}
