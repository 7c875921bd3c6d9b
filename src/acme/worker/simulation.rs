//! Years in seconds: the desk, the plan, the queue, the limits and the ledgers as they are, before
//! a CA and a host that fail in every way that can be thought of. No clock, no network, no disk.
//!
//! What is asserted: an expired certificate is served only as long as nobody could have got another
//! one; a name is never ordered more often than its lifetime and its failures explain; the limits
//! of the CA are kept although the client only guesses them.
//!
//! `PERENNIAL_TEST_SEED=N` goes through the same years again, `PERENNIAL_SIMULATED_NAMES=2500`
//! through years of that many names for each kind of certificate (10,000 in all).

mod ca;
mod faults;
mod world;

use time::Duration;

use world::{Kind, World};

/// For each kind of certificate, where nobody asks for more: a debug build takes seconds.
const NAMES: usize = 8;
const YEARS: i64 = 2;

fn seed() -> u64 {
    let given = std::env::var("PERENNIAL_TEST_SEED").ok();
    given.map_or_else(rand::random, |seed| seed.parse().unwrap())
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
