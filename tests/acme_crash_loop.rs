//! A program that is killed right after each start, again and again, while its CA is down, hangs
//! or refuses: the CA sees no more than the plan of one long run allows.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::support::perennial::Perennial;
use crate::support::place::Place;
use crate::support::scripted_ca::{Fault, Kind, ScriptedCa};
use crate::support::seed::seeded;
use crate::support::sites::site;
use crate::support::wait::{SOON, wait_until};

const NAME: &str = "a.example.test";
const RESTARTS: usize = 50;
/// Each is killed somewhere in this time after its start: the first request leaves within it.
const LONGEST_LIFE: Duration = Duration::from_millis(250);

/// How many attempts the plan has in so much time: the first at once, the others after 1, 2, 4 ...
/// minutes (to reach a CA; an order's own waits are longer), with jitter that only makes it later.
fn allowed(elapsed: Duration) -> usize {
    let mut at = Duration::ZERO;
    let mut wait = Duration::from_secs(60);
    let mut attempts = 0;
    while at <= elapsed {
        attempts += 1;
        at += wait;
        wait *= 2;
    }
    attempts
}

#[test]
fn what_the_plan_allows() {
    let of = |seconds| allowed(Duration::from_secs(seconds));
    assert_eq!([of(0), of(59), of(60), of(179), of(180)], [1, 1, 2, 2, 3]);
}

async fn killed_after_each_start(
    what: &str,
    script: impl FnOnce(&ScriptedCa),
    down: bool,
    mut random: StdRng,
) -> usize {
    let place = Place::new();
    let ca = ScriptedCa::start(&place).await;
    script(&ca);
    if down {
        ca.stop().await;
    }
    let text = format!(
        "{}{}",
        ca.acme_table(),
        site(NAME, "acme", &["respond:hello"])
    );
    let mut perennial = Perennial::with_config(place, &text);
    let begun = Instant::now();
    for _ in 0..RESTARTS {
        perennial.start();
        tokio::time::sleep(LONGEST_LIFE.mul_f64(random.random())).await;
        perennial.kill9();
    }
    perennial.start_and_wait().await;
    wait_until(SOON, "the time of the next attempt", async || {
        perennial.status_field(NAME, "next_attempt").await
    })
    .await;
    let most = allowed(begun.elapsed());
    for kind in [Kind::Directory, Kind::NewAccount, Kind::NewOrder] {
        let seen = ca.count(kind);
        assert!(seen <= most, "{what}: {seen} of {kind:?}, {most} allowed");
    }
    // Twice what one undisturbed attempt takes, each of which ends in this fault.
    let all = ca.requests().len();
    assert!(all <= 8 * most, "{what}: {all} requests, {most} attempts");
    all
}

fn everything(fault: Fault) -> impl FnOnce(&ScriptedCa) {
    move |ca| ca.script(|script| script.break_everything(fault))
}

fn orders(fault: Fault) -> impl FnOnce(&ScriptedCa) {
    move |ca| ca.script(|script| script.break_one(Kind::NewOrder, fault))
}

#[tokio::test(flavor = "multi_thread")]
async fn asks_no_more_than_one_long_run() {
    let mut seeds = seeded();
    let mut random = || StdRng::seed_from_u64(seeds.random());
    let busy = || Fault::Unavailable { retry_after: None };
    let until = Fault::Unavailable {
        retry_after: Some("3600".to_owned()),
    };
    let each: Vec<futures_util::future::LocalBoxFuture<'_, usize>> = vec![
        Box::pin(killed_after_each_start("down", |_| (), true, random())),
        Box::pin(killed_after_each_start(
            "hanging",
            everything(Fault::Hang),
            false,
            random(),
        )),
        Box::pin(killed_after_each_start(
            "503",
            everything(busy()),
            false,
            random(),
        )),
        Box::pin(killed_after_each_start(
            "503 with a date",
            everything(until),
            false,
            random(),
        )),
        Box::pin(killed_after_each_start(
            "orders: 503",
            orders(busy()),
            false,
            random(),
        )),
        Box::pin(killed_after_each_start(
            "orders hang",
            orders(Fault::Hang),
            false,
            random(),
        )),
    ];
    let seen = join_all(each).await;
    // A kill may come between the record of the only attempt and its request, but not each time.
    assert!(seen.iter().any(|requests| *requests > 0), "{seen:?}");
}
