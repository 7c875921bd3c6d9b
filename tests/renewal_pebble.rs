//! A short-lived certificate is renewed by itself under load, and nobody notices.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::client::serial;
use crate::support::http1::KeepAlive;
use crate::support::pebble::{Options, Pebble};
use crate::support::perennial::Perennial;
use crate::support::place::Place;
use crate::support::sites::site;
use crate::support::upstream::Upstream;
use crate::support::wait::{SOON, wait_until};

const NAME: &str = "a.example.test";
const CONNECTIONS: usize = 200;
const LIFETIME_SECONDS: u64 = 40;
/// Between two requests on one connection: load, but not a benchmark.
const PAUSE: Duration = Duration::from_millis(400);

#[derive(Default)]
struct Load {
    over: AtomicBool,
    answered: AtomicUsize,
}

impl Load {
    /// One connection, used until the load is over; what went wrong if something did.
    async fn keep_asking(self: Arc<Self>, mut connection: KeepAlive) -> Result<(), String> {
        while !self.over.load(Ordering::SeqCst) {
            let (status, body) = connection.get("/").await?;
            if status != 200 {
                return Err(format!("{status}: {body}"));
            }
            self.answered.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(PAUSE).await;
        }
        match connection.is_closed() {
            true => Err("the connection was closed".to_owned()),
            false => Ok(()),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_notices_a_renewal() {
    let place = Place::new();
    let options = Options {
        validity_seconds: LIFETIME_SECONDS,
        ..Options::default()
    };
    let Some(pebble) = Pebble::start(&place, options).await else {
        return;
    };
    let upstream = Upstream::start(&place, "app").await;
    let site = site(NAME, "auto", &[&upstream.addr.to_string()]);
    let rest = format!("{}{site}", pebble.acme_table());
    let mut perennial = Perennial::run(place, &rest).await;
    perennial.wait_ready().await;
    let https = perennial.place.https;

    let load = Arc::new(Load::default());
    let mut tasks = Vec::new();
    for _ in 0..CONNECTIONS {
        let connection = KeepAlive::open(https, NAME, None)
            .await
            .expect("a connection");
        tasks.push(tokio::spawn(Arc::clone(&load).keep_asking(connection)));
    }
    let first = serial(https, NAME).await.expect("a handshake");
    let renewal = Duration::from_secs(2 * LIFETIME_SECONDS);
    wait_until(renewal, "the first renewal", async || {
        let now = serial(https, NAME).await.expect("every handshake succeeds");
        (now != first).then_some(())
    })
    .await;
    // Every connection gets to ask again after the swap.
    let more = load.answered.load(Ordering::SeqCst) + 2 * CONNECTIONS;
    wait_until(SOON, "requests after the swap", async || {
        (load.answered.load(Ordering::SeqCst) >= more).then_some(())
    })
    .await;
    load.over.store(true, Ordering::SeqCst);
    let mut failures = Vec::new();
    for task in tasks {
        failures.extend(task.await.expect("no panic").err());
    }
    assert!(
        failures.is_empty(),
        "of {CONNECTIONS} connections {}: {failures:?}",
        failures.len()
    );
    assert!(pebble.orders() >= 2);
    // A window that Pebble draws over the whole lifetime may renew early, but not all the time.
    assert!(pebble.orders() <= 6, "{} orders", pebble.orders());
}
