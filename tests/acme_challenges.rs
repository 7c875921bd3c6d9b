//! Which challenge is answered, and where: an order that is learned from failures, tokens that are
//! gone afterwards, HTTP-01 over HTTPS, and records that stand for good.

use std::net::SocketAddr;
use std::time::Duration;

use axum::extract::Request;
use axum::response::{IntoResponse, Redirect};
use rustix::process::Signal;
use serde_json::json;

use crate::support::bind::Bind;
use crate::support::client::{serial, served, served_with};
use crate::support::http1::KeepAlive;
use crate::support::pebble::{Options, Pebble, issued_by_pebble};
use crate::support::perennial::{Perennial, cli};
use crate::support::place::Place;
use crate::support::scripted_ca::{Kind, ScriptedCa, Validation};
use crate::support::server::Server;
use crate::support::sites::site;
use crate::support::wait::{SOON, never_within, wait_until};

const NAME: &str = "a.example.test";

async fn start(place: Place, ca: &ScriptedCa) -> Perennial {
    let site = site(NAME, "acme", &["respond:hello"]);
    Perennial::run(place, &format!("{}{site}", ca.acme_table())).await
}

async fn wait_for_certificates(perennial: &Perennial, ca: &ScriptedCa, count: usize) {
    wait_until(SOON, "one more certificate", async || {
        let served = serial(perennial.place.https, NAME).await.ok()?;
        (ca.serials().get(count - 1) == Some(&served)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_challenge_after_a_failure_and_first_from_then_on() {
    let place = Place::new();
    let ca = ScriptedCa::start(&place).await;
    ca.script(|script| {
        script.validation = Validation::Real;
        script.failing = vec!["tls-alpn-01"];
    });
    let mut perennial = start(place, &ca).await;
    let error = perennial.last_error(NAME).await;
    assert!(error.contains("lets tls-alpn-01 fail"), "{error}");
    perennial.renew(NAME).await;
    wait_for_certificates(&perennial, &ca, 1).await;
    assert_eq!(ca.challenges(), ["tls-alpn-01", "http-01"]);
    // What was learned outlives the process.
    perennial.restart().await;
    perennial.wait_ready().await;
    perennial.renew(NAME).await;
    wait_for_certificates(&perennial, &ca, 2).await;
    assert_eq!(ca.challenges(), ["tls-alpn-01", "http-01", "http-01"]);
    // And is unlearned: each failed once since it went well.
    ca.script(|script| script.failing = vec!["http-01"]);
    perennial.renew(NAME).await;
    perennial.last_error(NAME).await;
    perennial.renew(NAME).await;
    wait_for_certificates(&perennial, &ca, 3).await;
    assert_eq!(ca.challenges()[3..], ["http-01", "tls-alpn-01"]);
}

/// What the plain listener says about a token.
async fn answer(http: SocketAddr, token: &str) -> Option<String> {
    let mut connection = KeepAlive::open_plain(http, NAME).await.ok()?;
    let path = format!("/.well-known/acme-challenge/{token}");
    let (status, body) = connection.get(&path).await.ok()?;
    (status == 200).then_some(body)
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_gone_when_the_order_has_ended() {
    let place = Place::new();
    let ca = ScriptedCa::start(&place).await;
    ca.script(|script| {
        script.challenges = vec!["http-01"];
        script.validation = Validation::PendingForEver;
    });
    let perennial = start(place, &ca).await;
    let http = perennial.place.http;
    let token = wait_until(SOON, "a challenge", async || {
        let token = ca.tokens().pop()?;
        answer(http, &token).await.map(|_| token)
    })
    .await;
    ca.fail_pending();
    wait_until(SOON, "the answer to be taken back", async || {
        answer(http, &token).await.is_none().then_some(())
    })
    .await;
    perennial.last_error(NAME).await;
    ca.script(|script| script.validation = Validation::Real);
    perennial.renew(NAME).await;
    wait_for_certificates(&perennial, &ca, 1).await;
    for token in ca.tokens() {
        wait_until(SOON, "the answer to be taken back", async || {
            answer(http, &token).await.is_none().then_some(())
        })
        .await;
    }
}

/// The order is given up and not failed: the next start goes on with it at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_in_the_middle_is_resumed_by_the_next_start() {
    let place = Place::new();
    let ca = ScriptedCa::start(&place).await;
    ca.script(|script| {
        script.challenges = vec!["http-01"];
        script.validation = Validation::PendingForEver;
    });
    let mut perennial = start(place, &ca).await;
    let http = perennial.place.http;
    let token = wait_until(SOON, "a challenge", async || {
        let (_, token) = ca.pending().pop()?;
        answer(http, &token).await.map(|_| token)
    })
    .await;
    perennial.signal(Signal::TERM);
    assert!(perennial.wait_exit(SOON).await.success());
    let file = format!("ledger/subjects/{NAME}.p256.json");
    let ledger = std::fs::read_to_string(perennial.place.state().join(file));
    assert!(ledger.expect("a ledger").contains("cancelled"));
    perennial.start_and_wait().await;
    wait_until(SOON, "the same answer", async || {
        answer(http, &token).await.map(drop)
    })
    .await;
    ca.script(|script| script.validation = Validation::Real);
    ca.pass_pending();
    wait_for_certificates(&perennial, &ca, 1).await;
    assert_eq!(ca.count(Kind::NewOrder), 1);
}

/// Nobody would serve what it gets, and nobody has to answer the CA for it any more.
#[tokio::test(flavor = "multi_thread")]
async fn the_order_of_a_site_that_is_taken_out_is_given_up() {
    const OTHER: &str = "other.example.test";
    let place = Place::new();
    let ca = ScriptedCa::start(&place).await;
    ca.script(|script| {
        script.challenges = vec!["http-01"];
        script.validation = Validation::PendingForEver;
    });
    let site = |host: &str| format!("[[sites]]\nhosts = [{host:?}]\nupstreams = [\"1\"]\n");
    let config = |sites: &[&str]| {
        let sites: String = sites.iter().map(|host| site(host)).collect();
        ca.acme_table() + &sites
    };
    let perennial = Perennial::run(place, &config(&[NAME, OTHER])).await;
    let http = perennial.place.http;
    let pending = wait_until(SOON, "two challenges", async || {
        let pending = ca.pending();
        for (_, token) in &pending {
            answer(http, token).await?;
        }
        (pending.len() == 2).then_some(pending)
    })
    .await;
    perennial.rewrite_config(&config(&[NAME]));
    for (name, token) in &pending {
        let is_answered = name == NAME;
        wait_until(SOON, "the answer of one alone", async || {
            (answer(http, token).await.is_some() == is_answered).then_some(())
        })
        .await;
    }
    let file = format!("ledger/subjects/{OTHER}.p256.json");
    let ledger = perennial.place.state().join(file);
    wait_until(SOON, "the record of it", async || {
        let text = std::fs::read_to_string(&ledger).ok()?;
        text.contains("cancelled").then_some(())
    })
    .await;
    // Taken in again, it goes on where it was.
    perennial.rewrite_config(&config(&[NAME, OTHER]));
    ca.script(|script| script.validation = Validation::Real);
    ca.pass_pending();
    let mut perennial = perennial;
    perennial.wait_ready().await;
    assert_eq!(ca.count(Kind::NewOrder), 2);
}

/// Whether a name's challenge is answered: at the plain listener, or in a handshake.
async fn is_answered(perennial: &Perennial, challenge: &str, name: &str, token: &str) -> bool {
    if challenge == "http-01" {
        let body = answer(perennial.place.http, token).await;
        return body.is_some_and(|body| body.starts_with(&format!("{token}.")));
    }
    let shown = served_with(perennial.place.https, Some(name), &["acme-tls/1"]).await;
    shown.is_ok_and(|shown| shown.names == [name] && shown.alpn.as_deref() == Some("acme-tls/1"))
}

/// One of several orders ends, and its answer goes; those of the others stay.
async fn orders_at_once(challenge: &'static str) {
    let place = Place::new();
    let ca = ScriptedCa::start(&place).await;
    ca.script(|script| {
        script.challenges = vec![challenge];
        script.validation = Validation::PendingForEver;
    });
    let hosts = ["a.example.test", "b.example.test", "c.example.test"];
    let site = format!("[[sites]]\nhosts = {hosts:?}\nupstreams = [\"respond:hello\"]\n");
    let perennial = Perennial::run(place, &format!("{}{site}", ca.acme_table())).await;
    let answered =
        async |name: &str, token: &str| is_answered(&perennial, challenge, name, token).await;
    let pending = wait_until(SOON, "three challenges to be answered", async || {
        let pending = ca.pending();
        for (name, token) in &pending {
            if !answered(name, token).await {
                return None;
            }
        }
        (pending.len() == hosts.len()).then_some(pending)
    })
    .await;
    for (ended, token) in &pending {
        assert_eq!(ca.fail_oldest_pending().as_ref(), Some(ended));
        wait_until(SOON, "the answer to be taken back", async || {
            (!answered(ended, token).await).then_some(())
        })
        .await;
        for (name, token) in ca.pending() {
            assert!(answered(&name, &token).await, "{name} after {ended}");
        }
    }
    ca.script(|script| script.validation = Validation::Real);
    for host in hosts {
        perennial.renew(host).await;
    }
    let mut perennial = perennial;
    perennial.wait_ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_at_once_by_http_01_do_not_disturb_each_other() {
    orders_at_once("http-01").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_at_once_by_tls_alpn_01_do_not_disturb_each_other() {
    orders_at_once("tls-alpn-01").await;
}

/// Whatever routes a site has, for everything or for the very path, on either port.
#[tokio::test(flavor = "multi_thread")]
async fn http_01_is_not_shadowed_by_routes_of_the_site() {
    let place = Place::new();
    let ca = ScriptedCa::start(&place).await;
    ca.script(|script| script.challenges = vec!["http-01"]);
    let route = |path: &str| {
        format!("[[sites.routes]]\npath = \"{path}\"\nupstreams = [\"respond:the site's own\"]\n")
    };
    let routes = ["/*", "/.well-known/*", "/.well-known/acme-challenge/*"].map(route);
    let site = format!(
        "[[sites]]\nhosts = [\"{NAME}\"]\ntls = \"acme\"\n{}",
        routes.concat()
    );
    let perennial = Perennial::run(place, &format!("{}{site}", ca.acme_table())).await;
    wait_for_certificates(&perennial, &ca, 1).await;
    ca.script(|script| script.validation = Validation::PendingForEver);
    perennial.renew(NAME).await;
    let token = wait_until(SOON, "a challenge", async || {
        let (_, token) = ca.pending().pop()?;
        answer(perennial.place.http, &token).await.map(|_| token)
    })
    .await;
    let https = perennial.place.https;
    let mut connection = KeepAlive::open(https, NAME, None).await.expect("TLS");
    let path = format!("/.well-known/acme-challenge/{token}");
    let (status, body) = connection.get(&path).await.expect("an answer");
    assert!(
        status == 200 && body.starts_with(&format!("{token}.")),
        "{status} {body}"
    );
    // What is no token of ours is the site's.
    let (status, body) = connection
        .get(&format!("{path}x"))
        .await
        .expect("an answer");
    assert_eq!((status, body.as_str()), (200, "the site's own"));
    ca.fail_pending();
    wait_until(SOON, "the answer to be taken back", async || {
        let (_, body) = connection.get(&path).await.expect("an answer");
        (body == "the site's own").then_some(())
    })
    .await;
}

/// A CA follows redirects, and does not mind the certificate at the end (RFC 8555 section 8.3).
#[tokio::test(flavor = "multi_thread")]
async fn http_01_through_a_redirect_to_the_https_port() {
    let place = Place::new();
    let redirecting = place.free();
    let https = place.https;
    let to_https = move |request: Request| async move {
        let path = request.uri().path().to_owned();
        Redirect::permanent(&format!("https://{NAME}:{}{path}", https.port())).into_response()
    };
    let router = axum::Router::new().fallback(to_https);
    let _redirecting = Server::tcp(redirecting, router).await;
    let options = Options {
        http_port: Some(redirecting.port()),
        ..Options::default()
    };
    let Some(pebble) = Pebble::start(&place, options).await else {
        return;
    };
    // A certificate of our own first, so that there is something to connect to. The site's route
    // for everything must not shadow the challenge.
    let perennial = Perennial::run(place, &site(NAME, "internal", &["respond:hello"])).await;
    wait_until(SOON, "an internal certificate", async || {
        serial(perennial.place.https, NAME).await.ok()
    })
    .await;
    let acme = format!("{}challenges = [\"http-01\"]\n", pebble.acme_table());
    perennial.rewrite_config(&format!("{acme}{}", site(NAME, "acme", &["respond:hello"])));
    issued_by_pebble(&perennial, NAME).await;
    let log = pebble.log();
    assert!(log.contains("Attempting to validate w/ HTTP"), "{log}");
}

/// The exact record is told; once it is there it serves every order, a wildcard's, too.
#[tokio::test(flavor = "multi_thread")]
async fn dns_persist_01_tells_its_record_and_uses_it_from_then_on() {
    let place = Place::new();
    let bind = Bind::of_place(&place).await;
    let Some(pebble) = Pebble::asking(&place, bind.addr).await else {
        return;
    };
    let text = format!(
        "{}challenges = [\"dns-persist-01\"]\n[acme.dns]\nresolvers = [\"{}\"]\n\
         [[sites]]\nhosts = [\"*.example.test\"]\nupstreams = [\"respond:hello\"]\n",
        pebble.acme_table(),
        bind.addr
    );
    let perennial = Perennial::run(place, &text).await;
    let name = "*.example.test";
    let error = perennial.last_error(name).await;
    let record = error.split_once("for all: ").expect("the record").1;
    assert!(
        record.starts_with("_validation-persist.example.test. IN TXT \"pebble.letsencrypt.org; "),
        "{record}"
    );
    assert!(record.ends_with("; policy=wildcard\""), "{record}");
    perennial
        .wait_for_log("dns-persist-01 needs this record", SOON)
        .await;
    let file = perennial.place.path("perennial.toml").display().to_string();
    let doctor = ["doctor", "--config", &file];
    let told = cli(&doctor).await;
    assert_eq!(told.code, Some(1), "{told:#?}");
    assert!(told.stdout.contains(&format!("add {record}")), "{told:#?}");
    // The CA was not told that anything is ready.
    assert!(!pebble.log().contains("Pulled a task"), "{}", pebble.log());
    let change = record.replacen(" IN TXT ", " 60 TXT ", 1);
    bind.update(&format!("update add {change}")).await;
    let told = cli(&doctor).await.assert_success();
    assert!(told.stdout.contains("its TXT record is there"), "{told:#?}");
    perennial.renew(name).await;
    let first = issued_by_pebble(&perennial, "x.example.test").await;
    assert_eq!(first.names, [name]);
    // It was the same order all the time, and nothing is written for the next one.
    assert_eq!(pebble.orders(), 1);
    perennial.renew(name).await;
    wait_until(SOON, "a renewed certificate", async || {
        let served = served(perennial.place.https, Some("x.example.test"))
            .await
            .ok()?;
        (served.serial != first.serial).then_some(())
    })
    .await;
    let updates = bind.log();
    let updates = updates.iter().filter(|line| line.contains("adding an RR"));
    assert_eq!(updates.count(), 1, "the operator's own alone");
}

/// The CA checks against what its challenge says, whatever its directory does.
#[tokio::test(flavor = "multi_thread")]
async fn dns_persist_01_goes_by_what_the_challenge_says() {
    let place = Place::new();
    let bind = Bind::of_place(&place).await;
    let Some(pebble) = Pebble::asking(&place, bind.addr).await else {
        return;
    };
    let mut directory = pebble.directory_document().await;
    directory["meta"]["caaIdentities"] = json!(["wrong.test"]);
    let addr = place.free();
    let router = axum::Router::new().fallback(move || async move { axum::Json(directory) });
    let _server = Server::tcp(addr, router).await;
    let text = format!(
        "[acme]\ndirectory = \"http://{addr}/directory\"\nca_certificate = \"{}\"\n\
         challenges = [\"dns-persist-01\"]\n[acme.dns]\nresolvers = [\"{}\"]\n{}",
        pebble.ca_certificate.display(),
        bind.addr,
        site(NAME, "acme", &["respond:hello"])
    );
    let perennial = Perennial::run(place, &text).await;
    let error = perennial.last_error(NAME).await;
    let record = error.split_once("for all: ").expect("the record").1;
    assert!(
        record.contains("\"pebble.letsencrypt.org; accounturi=https:"),
        "{record}"
    );
    let file = perennial.place.path("perennial.toml").display().to_string();
    let told = cli(&["doctor", "--config", &file]).await;
    assert!(told.stdout.contains(&format!("add {record}")), "{told:#?}");
    let change = record.replacen(" IN TXT ", " 60 TXT ", 1);
    bind.update(&format!("update add {change}")).await;
    perennial.renew(NAME).await;
    issued_by_pebble(&perennial, NAME).await;
}

/// Where the operator's record is missing, a challenge that can be answered is answered.
#[tokio::test(flavor = "multi_thread")]
async fn a_missing_standing_record_does_not_hold_up_another_challenge() {
    let place = Place::new();
    let bind = Bind::of_place(&place).await;
    let Some(pebble) = Pebble::asking(&place, bind.addr).await else {
        return;
    };
    let text = format!(
        "{}challenges = [\"dns-persist-01\", \"tls-alpn-01\"]\n[acme.dns]\nresolvers = [\"{}\"]\n{}",
        pebble.acme_table(),
        bind.addr,
        site(NAME, "acme", &["respond:hello"])
    );
    let perennial = Perennial::run(place, &text).await;
    issued_by_pebble(&perennial, NAME).await;
    perennial
        .wait_for_log("dns-persist-01 needs this record", SOON)
        .await;
    never_within(Duration::from_millis(500), async || {
        let error = perennial.status_field(NAME, "last_error").await?;
        Some(error.to_string())
    })
    .await;
}
