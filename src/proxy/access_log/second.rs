//! A text that is the same for a whole second, and made once for it.

use std::cell::RefCell;

use time::OffsetDateTime;

/// The last one. For each thread, as nothing is shared on the way of a request.
pub struct Second(RefCell<(i64, String)>);

impl Second {
    pub const fn new() -> Second {
        Second(RefCell::new((i64::MIN, String::new())))
    }

    /// Writes what `text` makes of the second that `now` is in.
    pub fn write(
        &self,
        out: &mut Vec<u8>,
        now: OffsetDateTime,
        text: fn(OffsetDateTime) -> String,
    ) {
        let (second, written) = &mut *self.0.borrow_mut();
        if *second != now.unix_timestamp() {
            *second = now.unix_timestamp();
            *written = text(now);
        }
        out.extend_from_slice(written.as_bytes());
    }
}
