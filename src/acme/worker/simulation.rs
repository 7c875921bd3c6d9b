//! Years in seconds: the desk, the plan, the queue, the limits and the ledgers as they are, before
//! a CA and a host that fail in every way that can be thought of. No clock, no network, no disk.
//!
//! What is asserted: an expired certificate is served only as long as nobody could have got another
//! one; a name is never ordered more often than its lifetime and its failures explain; the limits
//! of the CA are kept although the client only guesses them.
//!
//! The years are the same each time, so that a red run speaks of what was changed.
//! `PERENNIAL_TEST_SEED=N` goes through others, `PERENNIAL_TEST_SEED=random` through any, and
//! `PERENNIAL_SIMULATED_NAMES=2500` through years of that many names for each kind of certificate
//! (10,000 in all).

mod ca;
mod faults;
mod world;

use rand::SeedableRng;
use rand::rngs::StdRng;
use time::Duration;

use faults::{Event, crash_loop};
use world::{Kind, Sent, World};

/// For each kind of certificate, where nobody asks for more: a debug build takes seconds.
const NAMES: usize = 5;
const YEARS: i64 = 2;

fn seed() -> u64 {
    match std::env::var("PERENNIAL_TEST_SEED").as_deref() {
        Ok("random") => rand::random(),
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => 1,
    }
}

fn names() -> usize {
    let given = std::env::var("PERENNIAL_SIMULATED_NAMES").ok();
    given.map_or(NAMES, |names| names.parse().unwrap())
}

fn two_years(lifetime: Duration, renewal_info: bool) {
    let (seed, names) = (seed(), names());
    let began = std::time::Instant::now();
    println!("PERENNIAL_TEST_SEED={seed} ({names} names, {lifetime}, ARI: {renewal_info})");
    let kind = Kind {
        lifetime,
        renewal_info,
    };
    let mut world = World::new(seed, names, kind);
    world.run(Duration::days(365 * YEARS));
    let told = world.finish();
    println!("{told} in {:.1?}", began.elapsed());
}

#[test]
fn two_years_of_ninety_days() {
    two_years(Duration::days(90), false);
}

#[test]
fn two_years_of_ninety_days_with_renewal_information() {
    two_years(Duration::days(90), true);
}

#[test]
fn two_years_of_a_hundred_and_sixty_hours() {
    two_years(Duration::hours(160), false);
}

#[test]
fn two_years_of_a_hundred_and_sixty_hours_with_renewal_information() {
    two_years(Duration::hours(160), true);
}

/// The crashes, and a while more.
const LOOP: Duration = Duration::hours(4);

/// A thousand crashes within some three hours, seconds after each start.
fn a_thousand_crashes(happens: impl Fn(usize) -> Vec<Event>, span: Duration) -> (Sent, u32) {
    const NAMES: usize = 10;
    const CRASHES: u32 = 1000;
    let seed = seed();
    println!("PERENNIAL_TEST_SEED={seed}");
    let kind = Kind {
        lifetime: Duration::days(90),
        renewal_info: true,
    };
    let first: Vec<Event> = (0..NAMES).flat_map(happens).collect();
    let mut rng = StdRng::seed_from_u64(seed);
    let timeline = crash_loop(&mut rng, world::START, CRASHES, &first);
    let mut world = World::new(seed, NAMES, kind);
    world.run_through(timeline, span);
    let sent = world.sent();
    println!("{sent:?}");
    (sent, NAMES as u32)
}

#[test]
fn a_thousand_crashes_before_a_ca_that_is_down() {
    let (sent, _) = a_thousand_crashes(|_| vec![Event::CaDown], LOOP);
    // 1, 2, 4 ... 64 minutes, whoever asks.
    assert!(sent.sessions <= 10, "{sent:?}");
    assert_eq!(sent.orders, 0);
}

#[test]
fn a_thousand_crashes_while_nothing_can_be_validated() {
    let (sent, names) = a_thousand_crashes(|name| vec![Event::Broken(name)], LOOP);
    // 1, 10 and 100 minutes after the first: four in four hours, whether they fail or are killed.
    assert!(sent.orders_for_one <= 4, "{sent:?}");
    assert!(sent.sessions <= 4 * names, "{sent:?}");
    assert_eq!((sent.issued, sent.questions), (0, 0), "{sent:?}");
}

#[test]
fn a_thousand_crashes_while_all_is_well() {
    let (sent, names) = a_thousand_crashes(|_| Vec::new(), Duration::days(4));
    // Killed in the middle of some orders, at last after a day, and never of one that is done; one
    // of fifty fails at the CA, and is tried again a day later.
    assert_eq!(sent.issued, u64::from(names), "{sent:?}");
    assert!(sent.orders_for_one <= 6, "{sent:?}");
    // Killed in the middle of some questions, which are asked again after 1, 2, 4 ... minutes.
    assert!(sent.questions <= 12 * names, "{sent:?}");
    assert!(sent.sessions <= 6 * names, "{sent:?}");
}
