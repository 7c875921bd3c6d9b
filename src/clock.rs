//! The wall clock. Nothing else in the crate asks what time it is: decisions take the time as an
//! argument, so that a test can run a year in a millisecond.

use std::sync::OnceLock;

use nix::sys::time::TimeValLike;
use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};

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

/// How long this start of the host has lasted, suspends included (`CLOCK_BOOTTIME`): a clock that
/// nobody sets, and that says nothing about another start or another host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uptime {
    /// The first half of the random number that the kernel gives each of its starts.
    pub boot: u64,
    pub milliseconds: i64,
}

impl Uptime {
    /// What has passed since; `None`: that was not in this start of the host.
    pub fn since(self, earlier: Uptime) -> Option<Duration> {
        let passed = self.milliseconds.checked_sub(earlier.milliseconds)?;
        let known = self.boot == earlier.boot && passed >= 0;
        known.then(|| Duration::milliseconds(passed))
    }
}

/// `None` where the kernel does not say which start this is.
pub fn uptime() -> Option<Uptime> {
    static BOOT: OnceLock<Option<u64>> = OnceLock::new();
    let boot = (*BOOT.get_or_init(boot))?;
    let milliseconds = since_boot()?.num_milliseconds();
    Some(Uptime { boot, milliseconds })
}

/// By libc: rustix looks for the kernel's own code for it, and dies of that under valgrind, where there
/// is none.
#[cfg(target_os = "linux")]
fn since_boot() -> Option<nix::sys::time::TimeSpec> {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).ok()
}

/// No other system counts the time that it sleeps.
#[cfg(not(target_os = "linux"))]
fn since_boot() -> Option<nix::sys::time::TimeSpec> {
    None
}

fn boot() -> Option<u64> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let digits: String = id
        .chars()
        .filter(char::is_ascii_hexdigit)
        .take(16)
        .collect();
    u64::from_str_radix(&digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uptimes_compare_within_one_start_of_the_host() {
        let at = |boot, milliseconds| Uptime { boot, milliseconds };
        assert_eq!(at(1, 2500).since(at(1, 500)), Some(Duration::seconds(2)));
        assert_eq!(at(1, 2500).since(at(2, 500)), None);
        assert_eq!(at(1, 500).since(at(1, 2500)), None);
        let (first, second) = (uptime().unwrap(), uptime().unwrap());
        assert!(second.since(first).unwrap() < Duration::MINUTE);
    }
}
