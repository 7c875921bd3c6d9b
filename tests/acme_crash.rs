//! `kill -9` in the middle of an order, at each of its steps and at random points: the next start
//! goes on with the order that the CA has, or makes one new; a pair is served whole or not at all;
//! and at most one order is lost, which the ledger shows.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::support::client::served;
use crate::support::ledger;
use crate::support::pebble::{Options, Pebble};
use crate::support::perennial::Perennial;
use crate::support::place::Place;
use crate::support::seed::{number, seeded};
use crate::support::sites::site;
use crate::support::wait::{SOON, wait_until};

const NAME: &str = "a.example.test";
/// Debug builds kill themselves right after the step that this names.
const ABORT_AFTER: &str = "PERENNIAL_TEST_ABORT_AFTER";
const KILL: i32 = 9;

/// The steps of an order, and of the writing of its certificate.
const STEPS: [&str; 11] = [
    "order-key",
    "order-placed",
    "order-url",
    "challenges-up",
    "challenges-told",
    "order-ready",
    "order-finalized",
    "order-chain",
    "fullchain",
    "generation-synced",
    "renamed",
];
/// The one at which the CA has an order that we do not know yet.
const LOST: &str = "order-placed";
/// Before this one nothing was sent.
const SENT_FROM: &str = "order-placed";

/// `PERENNIAL_TEST_KILLS` asks for more.
const KILLS: usize = 50;
/// Programs that are killed side by side, each with an authority of its own.
const LANES: usize = 4;
/// The random points lie in one and a half times what an order takes undisturbed.
const BEYOND_THE_END: f64 = 1.5;

struct Scene {
    perennial: Perennial,
    pebble: Pebble,
}

/// What there was before an order.
struct Before {
    certificate: Option<String>,
    orders: usize,
    lost: usize,
}

/// What one kill came to.
#[derive(Debug)]
struct Crash {
    /// Orders that the CA saw, from before the kill to the certificate.
    orders: usize,
    /// Of those, the ones that we never learned the URL of.
    lost: usize,
    /// Whether an order's URL was on disk when the kill came.
    known: bool,
    /// Whether the next start found that order alive at the CA, and it came to its end.
    resumed: bool,
    /// Whether the certificate was already there, or needed no further request.
    complete: bool,
}

impl Scene {
    /// Not started yet.
    async fn new() -> Option<Scene> {
        let place = Place::new();
        let options = Options {
            retry_after_seconds: 0,
            ..Options::default()
        };
        let pebble = Pebble::start(&place, options).await?;
        let site = site(NAME, "acme", &["respond:hello"]);
        let text = format!("{}{site}", pebble.acme_table());
        let perennial = Perennial::with_config(place, &text);
        Some(Scene { perennial, pebble })
    }

    fn folder(&self) -> PathBuf {
        let state = self.perennial.place.state();
        state.join(format!("certificates/{NAME}/p256"))
    }

    /// The current pair's certificate, PEM.
    fn on_disk(&self) -> Option<String> {
        std::fs::read_to_string(self.folder().join("current/fullchain.pem")).ok()
    }

    /// A whole pair or nothing: the handshake's signature is checked.
    async fn handshake(&self) -> Option<Vec<u8>> {
        let https = self.perennial.place.https;
        let served = served(https, Some(NAME)).await.ok()?;
        assert!(served.issuer.contains("Pebble"), "{served:?}");
        Some(served.der)
    }

    /// Serving what is on disk now.
    async fn wait_served(&self) {
        wait_until(SOON, "the certificate on disk to be served", async || {
            let pem = self.on_disk()?;
            let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).ok()?;
            (self.handshake().await? == pem.contents).then_some(())
        })
        .await;
    }

    async fn wait_for_another(&self, before: &Option<String>) {
        wait_until(SOON, "another certificate on disk", async || {
            let now = self.on_disk();
            (now.is_some() && now != *before).then_some(())
        })
        .await;
        self.wait_served().await;
    }

    /// Has a certificate ordered as an operator does, who need not wait as the program does after
    /// a failure; unless there is another one already, or one is on its way.
    async fn order_unless_done(&self, before: &Option<String>) {
        wait_until(SOON, "an attempt to be waiting or over", async || {
            if self.on_disk() != *before {
                return Some(());
            }
            let held = self.perennial.status_field(NAME, "next_attempt").await;
            let stands = before.is_some()
                && self
                    .perennial
                    .status_field(NAME, "next_renewal")
                    .await
                    .is_some();
            (held.is_some() || stands).then_some(())
        })
        .await;
        if self.on_disk() == *before {
            self.perennial.renew(NAME).await;
        }
    }

    /// Whether that order fails: the CA may have looked for its challenge while nobody was there,
    /// and say so only now.
    async fn fails(&self, before: &Option<String>) -> bool {
        wait_until(SOON, "the end of the order", async || {
            if self.on_disk() != *before {
                return Some(false);
            }
            let error = self.perennial.status_field(NAME, "last_error").await?;
            let error = error.as_str().unwrap_or_default();
            (!error.contains("the last attempt was interrupted")).then_some(true)
        })
        .await
    }

    fn resumptions(&self) -> usize {
        let found = self.perennial.log_lines_with("found an interrupted order");
        found
            .iter()
            .filter(|line| line.contains("alive=true"))
            .count()
    }

    fn before(&self) -> Before {
        Before {
            certificate: self.on_disk(),
            orders: self.pebble.orders(),
            lost: self.lost().len(),
        }
    }

    /// What the process that was just killed leaves is looked at, then the next one goes on to a
    /// certificate.
    async fn recover(&mut self, before: &Before) -> Crash {
        let folder = self.folder();
        let known = folder.join("pending/order.json").exists();
        let fetched = folder.join("pending/fullchain.pem").exists();
        let complete = fetched || self.on_disk() != before.certificate;
        let resumed_before = self.resumptions();
        let old = self.on_disk();
        self.perennial.forget_env();
        self.perennial.restart().await;
        if old.is_none() && !fetched {
            // A key without its certificate is served to nobody.
            let shown = self.handshake().await;
            assert!(shown.is_none() || self.on_disk().is_some());
        }
        self.order_unless_done(&before.certificate).await;
        let failed = self.fails(&before.certificate).await;
        if failed {
            self.perennial.renew(NAME).await;
        }
        self.wait_for_another(&before.certificate).await;
        let ledger = ledger::orders(&self.perennial.place);
        self.assert_the_ledger_knows_no_other_orders();
        let crash = Crash {
            orders: self.orders_since(before.orders).await,
            lost: self.lost().len() - before.lost,
            known,
            resumed: self.resumptions() > resumed_before && !failed,
            complete,
        };
        let without_url = ledger.iter().filter(|order| order.url.is_none()).count();
        assert!(
            self.lost().len() <= without_url,
            "the ledger does not show what was lost: {ledger:#?}"
        );
        crash
    }

    /// Every order that the ledger names is one that Pebble has placed, and once.
    fn assert_the_ledger_knows_no_other_orders(&self) {
        let placed: BTreeSet<String> = self.pebble.order_ids().into_iter().collect();
        let named = self.named();
        let unique: BTreeSet<&String> = named.iter().collect();
        assert_eq!(unique.len(), named.len(), "an order is there twice");
        let unknown: Vec<_> = named.iter().filter(|id| !placed.contains(*id)).collect();
        assert!(unknown.is_empty(), "Pebble knows nothing of {unknown:?}");
    }

    /// The orders that the ledger has a URL for, as Pebble numbers them.
    fn named(&self) -> Vec<String> {
        let orders = ledger::orders(&self.perennial.place).into_iter();
        let urls = orders.filter_map(|order| order.url);
        let ids = urls.filter_map(|url| Some(url.rsplit('/').next()?.to_owned()));
        ids.collect()
    }

    /// The orders that Pebble has placed and that the ledger has no URL for.
    fn lost(&self) -> Vec<String> {
        let named: BTreeSet<String> = self.named().into_iter().collect();
        let placed = self.pebble.order_ids().into_iter();
        placed.filter(|id| !named.contains(id)).collect()
    }

    /// Pebble's log comes through a pipe: the order of the certificate that is served is in it
    /// soon.
    async fn orders_since(&self, before: usize) -> usize {
        let named = self.named();
        wait_until(SOON, "Pebble's log of these orders", async || {
            let placed = self.pebble.order_ids();
            named.iter().all(|id| placed.contains(id)).then_some(())
        })
        .await;
        self.pebble.orders() - before
    }
}

fn assert_fair(crash: &Crash, when: &str) {
    assert!(crash.lost <= 1, "{when}: {crash:?}");
    assert!(crash.orders <= 2, "{when}: {crash:?}");
    if crash.complete {
        assert_eq!((crash.orders, crash.lost), (1, 0), "{when}: {crash:?}");
    } else if crash.known {
        // The CA may have given it up: it looked for the challenge while nobody was there.
        let expected = if crash.resumed { 1 } else { 2 };
        assert_eq!(
            (crash.orders, crash.lost),
            (expected, 0),
            "{when}: {crash:?}"
        );
    } else {
        assert_eq!(crash.orders, 1 + crash.lost, "{when}: {crash:?}");
    }
}

async fn killed_at(step: &str, first: bool) {
    let Some(mut scene) = Scene::new().await else {
        return;
    };
    if !first {
        scene.perennial.start_and_wait().await;
        scene.wait_for_another(&None).await;
        scene.perennial.kill9();
    }
    let before = scene.before();
    scene.perennial.set_env(ABORT_AFTER, step);
    scene.perennial.start();
    if !first {
        scene.perennial.wait_healthy().await;
        let path = format!("/certificates/{NAME}/renew");
        scene.perennial.admin_post_unanswered(&path).await;
    }
    let status = scene.perennial.wait_exit(SOON).await;
    assert_eq!(status.signal(), Some(KILL), "after {step}: {status}");
    let crash = scene.recover(&before).await;
    assert_fair(&crash, step);
    assert_eq!(crash.lost, usize::from(step == LOST), "{step}: {crash:?}");
    if step != LOST && step != "challenges-told" {
        assert_eq!(crash.orders, 1, "{step}: {crash:?}");
    }
    let position = |wanted: &str| STEPS.iter().position(|step| *step == wanted);
    let known = position(step) > position(SENT_FROM);
    assert_eq!(known, crash.known || crash.complete, "{step}: {crash:?}");
}

async fn killed_at_each_step(first: bool) {
    let lanes = STEPS.chunks(STEPS.len().div_ceil(LANES));
    let each_lane = lanes.map(async |steps| {
        for step in steps {
            killed_at(step, first).await;
        }
    });
    join_all(each_lane).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn at_each_step_of_a_first_order() {
    killed_at_each_step(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn at_each_step_of_a_renewal() {
    killed_at_each_step(false).await;
}

/// How long a renewal takes when nobody disturbs it.
async fn undisturbed(scene: &Scene) -> Duration {
    let (before, begun) = (scene.on_disk(), Instant::now());
    scene.perennial.renew(NAME).await;
    scene.wait_for_another(&before).await;
    begun.elapsed()
}

async fn lane(kills: usize, mut random: StdRng) {
    let Some(mut scene) = Scene::new().await else {
        return;
    };
    scene.perennial.start_and_wait().await;
    scene.wait_for_another(&None).await;
    let span = undisturbed(&scene).await.mul_f64(BEYOND_THE_END);
    for _ in 0..kills {
        let point = span.mul_f64(random.random());
        let before = scene.before();
        scene.perennial.renew(NAME).await;
        // The point itself: nothing is waited for here.
        tokio::time::sleep(point).await;
        scene.perennial.kill9();
        let crash = scene.recover(&before).await;
        println!("{point:?} after the beginning: {crash:?}");
        assert_fair(&crash, &format!("{point:?} after the beginning"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn at_random_points() {
    let mut random = seeded();
    let kills = number("PERENNIAL_TEST_KILLS").unwrap_or(KILLS as u64) as usize;
    let lanes = (0..LANES).map(|at| {
        let share = (at..kills).step_by(LANES).count();
        lane(share, StdRng::seed_from_u64(random.random()))
    });
    join_all(lanes).await;
}
