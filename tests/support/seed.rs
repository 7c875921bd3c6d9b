//! Random points that can be chosen again: the seed is printed, and may be given.

use rand::SeedableRng;
use rand::rngs::StdRng;

/// From `PERENNIAL_TEST_SEED`, or a new one. The seed is on stdout, where a failed test shows it.
pub fn seeded() -> StdRng {
    let seed = number("PERENNIAL_TEST_SEED").unwrap_or_else(rand::random);
    println!("PERENNIAL_TEST_SEED={seed}");
    StdRng::seed_from_u64(seed)
}

/// How much of something to do: an ordinary run does less than a thorough one.
pub fn number(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok()?;
    Some(
        value
            .parse()
            .unwrap_or_else(|_| panic!("{variable} is no number")),
    )
}
