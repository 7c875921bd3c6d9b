//! Whose turn it is among the authorities, and what files cover: pure decisions.

use time::OffsetDateTime;

use crate::acme::renewal::{self, Attempts};
use crate::acme::surroundings::Coverage;

/// After this many failures in a row the next authority has its turn.
const FAILOVER_AFTER: u32 = 2;

/// What the live table knows about all names of one subject.
pub(super) struct Covered {
    /// Until when files make the subject unnecessary.
    pub(super) until: Option<OffsetDateTime>,
    pub(super) file_known: bool,
}

/// Until when files cover every name of a subject; `None`: not loaded yet. `auto`: files can make
/// it unnecessary; `takeover`: only until they are due for renewal.
pub(super) fn covered(
    each_name: impl Iterator<Item = Coverage>,
    auto: bool,
    takeover: bool,
) -> Option<Covered> {
    let mut until = None;
    let mut file_known = false;
    for (at, coverage) in each_name.enumerate() {
        if !coverage.loaded {
            return None;
        }
        file_known |= coverage.file_known;
        let own = match takeover {
            true => coverage.file_due_at,
            false => coverage.file_valid_until,
        };
        until = match (at, until, own) {
            (0, _, own) => own,
            (_, Some(others), Some(own)) => Some(own.min(others)),
            _ => None,
        };
    }
    Some(Covered {
        until: until.filter(|_| auto),
        file_known,
    })
}

/// Which authority to try next: the first that is not given up for now, else the one whose
/// failure is longest ago. `attempts`: of this subject there, and of anybody to reach it. An
/// unreachable CA is given up only until it may be asked again, one that refuses (a rate limit, a
/// policy, an account) at once; a success anywhere resets the
/// counts of the subject, and with them the turn goes back to the first.
pub(super) fn whose_turn(attempts: &[(Attempts, Attempts)], now: OffsetDateTime) -> usize {
    let given_up = |(own, session): &(Attempts, Attempts)| {
        let lost = session.failures >= FAILOVER_AFTER || session.elsewhere;
        own.failures >= FAILOVER_AFTER
            || own.elsewhere
            || (lost && renewal::is_unreachable(now, session))
    };
    let last = |(own, session): &(Attempts, Attempts)| own.last.max(session.last).unwrap_or(now);
    attempts
        .iter()
        .position(|it| !given_up(it))
        .or_else(|| (0..attempts.len()).min_by_key(|at| last(&attempts[*at])))
        .unwrap_or(0)
}
