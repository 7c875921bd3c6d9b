//! Many names at a CA that refuses half of the nonces, of which a third cannot be validated at each
//! attempt: all get their certificates, and the ledger is what the CA has in its own log.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use perennial::clock;
use rand::Rng;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::support::client::served;
use crate::support::http1::KeepAlive;
use crate::support::ledger;
use crate::support::pebble::{Options, Pebble};
use crate::support::perennial::Perennial;
use crate::support::place::Place;
use crate::support::seed::{number, seeded};
use crate::support::server::Server;
use crate::support::wait::{SOON, wait_until};

/// `PERENNIAL_TEST_NAMES` asks for fewer or more.
const NAMES: u64 = 200;
const PERCENT_OF_NONCES_REFUSED: u32 = 50;
const PERCENT_OF_VALIDATIONS_FAILED: u64 = 30;
/// The wait after a first failure, jitter included.
const FIRST_RETRY: time::Duration = time::Duration::seconds(90);
/// For each name; all of them take two minutes on a quiet machine.
const PATIENCE: Duration = Duration::from_secs(3);

/// Stands between Pebble and the program, and answers for some tokens that there is nothing.
struct Liar {
    seed: u64,
    http: SocketAddr,
    lied: Mutex<BTreeSet<String>>,
}

impl Liar {
    fn lies_about(&self, path: &str) -> bool {
        let mut hasher = DefaultHasher::new();
        (self.seed, path).hash(&mut hasher);
        hasher.finish() % 100 < PERCENT_OF_VALIDATIONS_FAILED
    }

    async fn answer(&self, request: Request) -> Response {
        let path = request.uri().path().to_owned();
        if self.lies_about(&path) {
            self.lied.lock().unwrap().insert(path);
            return StatusCode::NOT_FOUND.into_response();
        }
        let host = request.headers().get(header::HOST);
        let host = host.and_then(|host| host.to_str().ok()).unwrap_or_default();
        let name = host.split(':').next().unwrap_or_default();
        match self.pass_on(name, &path).await {
            Ok(answer) => answer.into_response(),
            Err(error) => (StatusCode::BAD_GATEWAY, error).into_response(),
        }
    }

    async fn pass_on(&self, name: &str, path: &str) -> Result<(StatusCode, String), String> {
        let mut connection = KeepAlive::open_plain(self.http, name).await?;
        let (status, body) = connection.get(path).await?;
        let status = StatusCode::from_u16(status).map_err(|error| error.to_string())?;
        Ok((status, body))
    }
}

/// A first retry comes by itself, a minute after the failure. What has failed again waits for longer
/// than a test can: that is tried again at once, as an operator does, until all names have their
/// certificates.
async fn until_all_are_there(perennial: &Perennial, names: &[String]) {
    let folder = perennial.place.state().join("certificates");
    let is_missing = |name: &&String| !folder.join(name).join("p256/current").exists();
    let limit = SOON + PATIENCE * u32::try_from(names.len()).expect("few");
    wait_until(limit, "a certificate for every name", async || {
        let missing: Vec<&String> = names.iter().filter(is_missing).collect();
        let status = perennial.status_json().await;
        let all = status["certificates"].as_array().cloned();
        for entry in all.unwrap_or_default() {
            let next = entry["next_attempt"].as_str().unwrap_or_default();
            let next = OffsetDateTime::parse(next, &Rfc3339);
            let held = next.is_ok_and(|at| at - clock::now() > FIRST_RETRY);
            let name = entry["name"].as_str().unwrap_or_default().to_owned();
            if held && missing.contains(&&name) {
                perennial.renew(&name).await;
            }
        }
        missing.is_empty().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn at_a_ca_that_refuses_and_fails_all_end_with_certificates() {
    let mut random = seeded();
    let place = Place::new();
    let liar = Arc::new(Liar {
        seed: random.random(),
        http: place.http,
        lied: Mutex::default(),
    });
    let between = place.free();
    let options = Options {
        nonce_reject: PERCENT_OF_NONCES_REFUSED,
        retry_after_seconds: 0,
        http_port: Some(between.port()),
        ..Options::default()
    };
    let Some(pebble) = Pebble::start(&place, options).await else {
        return;
    };
    let shared = Arc::clone(&liar);
    let router = axum::Router::new().fallback(move |request: Request| {
        let liar = Arc::clone(&shared);
        async move { liar.answer(request).await }
    });
    let _server = Server::tcp(between, router).await;
    let count = number("PERENNIAL_TEST_NAMES").unwrap_or(NAMES);
    let names: Vec<String> = (0..count).map(|at| format!("n{at}.example.test")).collect();
    let text = format!(
        "{}challenges = [\"http-01\"]\n[[sites]]\nhosts = {names:?}\nupstreams = [\"respond:hello\"]\n",
        pebble.acme_table()
    );
    let mut perennial = Perennial::run(place, &text).await;
    until_all_are_there(&perennial, &names).await;
    perennial.wait_ready().await;
    for name in &names {
        let served = served(perennial.place.https, Some(name)).await;
        let served = served.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(served.issuer.contains("Pebble"), "{served:?}");
        assert_eq!(served.names, std::slice::from_ref(name));
    }
    the_ledger_agrees(&perennial, &pebble, &liar, names.len()).await;
}

async fn the_ledger_agrees(perennial: &Perennial, pebble: &Pebble, liar: &Liar, names: usize) {
    let orders = ledger::orders(&perennial.place);
    let urls = orders.iter().map(|order| order.url.clone());
    let ids = urls.map(|url| {
        let url = url.expect("nothing was lost: the program was not killed");
        url.rsplit('/').next().unwrap_or_default().to_owned()
    });
    let recorded: BTreeSet<String> = ids.collect();
    let placed = wait_until(SOON, "Pebble's log to be whole", async || {
        let placed: BTreeSet<String> = pebble.order_ids().into_iter().collect();
        recorded.is_subset(&placed).then_some(placed)
    })
    .await;
    assert_eq!(recorded, placed);
    assert_eq!(recorded.len(), orders.len(), "each order is there once");
    let failed = orders.iter().filter(|order| order.failed).count();
    let lies = liar.lied.lock().unwrap().len();
    // Each failure cost one order. Pebble may have been impatient, too, on a busy machine.
    assert_eq!(orders.len(), names + failed);
    assert!(failed >= lies, "{failed} failures of {lies}");
    println!(
        "{names} certificates, {} orders, {failed} failed",
        orders.len()
    );
    // Both faults were there, or nothing was shown.
    assert!(failed * 10 > names, "{failed} of {names} failed");
    assert!(pebble.log().contains("reject 50% of good nonces"));
}
