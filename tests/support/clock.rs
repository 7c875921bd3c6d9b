//! The wall clock, as the program under test sees it.

use time::OffsetDateTime;

// The program's own clock is out of reach: nothing here links it.
#[allow(clippy::disallowed_methods)]
pub fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}
