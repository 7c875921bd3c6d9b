//! The wall clock. Nothing else in the crate asks what time it is: decisions take the time as an
//! argument, so that a test can run a year in a millisecond.

use time::OffsetDateTime;

/// The current wall-clock time, in UTC.
#[expect(clippy::disallowed_methods, reason = "this is the one place")]
pub fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

/// `at` in RFC 3339, to the second, for messages and JSON.
pub fn rfc3339(at: OffsetDateTime) -> String {
    let seconds = at.replace_nanosecond(0).unwrap_or(at);
    seconds
        .format(&time::format_description::well_known::Rfc3339)
        .unwrap_or_else(|_| at.unix_timestamp().to_string())
}

/// Microseconds of the clock that no one sets (`CLOCK_MONOTONIC`), as service managers compare them.
pub fn monotonic_usec() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    seconds * 1_000_000 + u64::try_from(now.tv_nsec).unwrap_or_default() / 1000
}
