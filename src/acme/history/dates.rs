//! When a record was really made, whatever the wall clock has shown since: a pure function of the
//! dates on it and of the time now.
//!
//! A limit of a CA looks back over a time that has passed, and the wall clock is a poor witness of
//! that: it is set forward and back, while the host sleeps and while nothing runs. So each record
//! says, beside the wall clock's date, how long the host had been up. In the same start of the host
//! that alone counts, and a jump of the clock changes nothing: neither is a limit broken because
//! orders of just now look old, nor does anybody wait because orders of yesterday look like
//! tomorrow's.
//!
//! Of records from before the host's start only the wall clock's dates are known: the one when it
//! was made, and where the clock was set later on, those that followed from that. The latest in the
//! past is believed: it is the bound of them, and no more, as a clock that was ahead by less than
//! has passed since leaves a date in the past, too. One in the future is a wrong clock's; where all
//! are, only the bound is known: it was made before anybody else saw it. It counts as of the first
//! look at it, so that it holds up an order for no longer than the limit says, once, and not again
//! after each restart.

use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};

use crate::clock::Uptime;

/// Further in the future than this nothing can have been noted, unless by a wrong clock.
const CLOCK_TOLERANCE: Duration = Duration::minutes(1);
/// When wall clock and uptime have come apart by so much, dates are looked at anew: clocks that are
/// kept right drift and are pulled back all the time, by less.
const DRIFT: Duration = Duration::seconds(5);
/// Dates of one record that a clock was set away from, the last ones: more often than that no clock
/// is set within the week or so for which a record matters, unless in vain.
const MAX_BEFORE: usize = 8;

/// Now, by both clocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    pub wall: OffsetDateTime,
    pub uptime: Option<Uptime>,
}

impl Moment {
    /// When `earlier` was, by the wall clock of now.
    fn wall_at(&self, earlier: Uptime) -> Option<OffsetDateTime> {
        Some(self.wall - self.uptime?.since(earlier)?)
    }

    /// Whether the wall clock was set since then.
    pub fn was_set_since(&self, earlier: &Moment) -> bool {
        match earlier.uptime.and_then(|uptime| self.wall_at(uptime)) {
            Some(then) => (then - earlier.wall).abs() > DRIFT,
            // Without an uptime only a clock that goes back is seen.
            None => earlier.wall - self.wall > DRIFT,
        }
    }
}

/// By a wall clock that may have been wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Date(#[serde(with = "time::serde::rfc3339")] OffsetDateTime);

/// The dates on one record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Dates {
    /// By the wall clock when it was made; in the same start of the host, by that of the last look.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// What `at` was before the clock was set in the same start of the host: which of them was the
    /// right clock's, the next start can tell only where the others are in the future.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub before: Vec<Date>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uptime: Option<Uptime>,
    /// By the wall clock of the start that was the first to find all of them in the future.
    #[serde(
        default,
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none"
    )]
    pub seen: Option<OffsetDateTime>,
}

impl Dates {
    pub fn new(now: &Moment) -> Dates {
        Dates {
            at: now.wall,
            before: Vec::new(),
            uptime: now.uptime,
            seen: None,
        }
    }

    /// The process has read the record, and goes on from here.
    pub fn are_read(&mut self, opened: &Moment) {
        let known = self.uptime.and_then(|uptime| opened.wall_at(uptime));
        if known.is_none() && self.possible(opened.wall).is_none() {
            self.seen = self.seen.or(Some(opened.wall));
        }
    }

    /// The latest that the record can have been made, by the wall clock of now; never in the
    /// future. `opened`: when this process read what others had noted.
    pub fn settle(&mut self, now: &Moment, opened: &Moment) -> OffsetDateTime {
        if let Some(at) = self.uptime.and_then(|uptime| now.wall_at(uptime)) {
            self.moves_to(at);
            return at;
        }
        if let Some(at) = self.possible(now.wall) {
            return at.min(now.wall);
        }
        let opened = opened
            .uptime
            .and_then(|uptime| now.wall_at(uptime))
            .unwrap_or(opened.wall);
        let bounds = [self.seen, Some(opened)].into_iter().flatten();
        let possible = bounds.filter(|at| *at <= now.wall).min();
        possible.unwrap_or_else(|| *self.seen.insert(now.wall))
    }

    /// The latest of the dates that is not in the future.
    fn possible(&self, now: OffsetDateTime) -> Option<OffsetDateTime> {
        let before = self.before.iter().map(|date| date.0);
        let all = std::iter::once(self.at).chain(before);
        all.filter(|at| *at <= now + CLOCK_TOLERANCE).max()
    }

    /// The clock says now that it was made then.
    fn moves_to(&mut self, at: OffsetDateTime) {
        let differs = |other: OffsetDateTime| (other - at).abs() > DRIFT;
        if differs(self.at) {
            self.before.push(Date(self.at));
            self.before.retain(|date| differs(date.0));
            let excess = self.before.len().saturating_sub(MAX_BEFORE);
            self.before.drain(..excess);
        }
        self.at = at;
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    const NOW: OffsetDateTime = datetime!(2026-11-25 12:00 UTC);
    const AHEAD: Duration = Duration::days(400);

    /// `hours` after noon and after the boot, by a clock that is wrong by so much.
    fn moment(boot: u64, hours: i64, wrong_by: Duration) -> Moment {
        Moment {
            wall: NOW + Duration::hours(hours) + wrong_by,
            uptime: Some(Uptime {
                boot,
                milliseconds: hours * 3_600_000,
            }),
        }
    }

    fn right(boot: u64, hours: i64) -> Moment {
        moment(boot, hours, Duration::ZERO)
    }

    #[test]
    fn in_one_start_of_the_host_the_wall_clock_may_show_what_it_likes() {
        for wrong_by in [AHEAD, -AHEAD, Duration::ZERO] {
            let noted = moment(1, 5, wrong_by);
            let mut dates = Dates::new(&noted);
            let at = |dates: &mut Dates, now: Moment| dates.settle(&now, &right(1, 0));
            assert_eq!(at(&mut dates, noted), noted.wall);
            assert_eq!(at(&mut dates, right(1, 53)), NOW + Duration::hours(5));
            // A process that starts anew reads what it knew.
            dates.are_read(&moment(1, 54, -AHEAD));
            assert_eq!(dates.seen, None);
            let read = dates.settle(&right(1, 55), &moment(1, 54, -AHEAD));
            assert_eq!(read, NOW + Duration::hours(5));
        }
    }

    #[test]
    fn what_another_start_noted_in_the_future_counts_as_of_the_first_look_and_no_later() {
        let mut dates = Dates::new(&moment(1, 5, AHEAD));
        let opened = right(2, 10);
        dates.are_read(&opened);
        for hours in [10, 12, 200] {
            assert_eq!(dates.settle(&right(2, hours), &opened), opened.wall);
        }
        // Neither later processes nor later starts make it newer.
        for boot in [2, 3] {
            dates.are_read(&right(boot, 300));
            let at = dates.settle(&right(boot, 301), &right(boot, 300));
            assert_eq!(at, opened.wall);
        }
        // Nor does a clock that is set back when nobody had found anything wrong.
        let mut dates = Dates::new(&moment(1, 5, AHEAD));
        let opened = moment(2, 10, AHEAD);
        dates.are_read(&opened);
        assert_eq!(
            dates.settle(&right(2, 12), &opened),
            NOW + Duration::hours(10)
        );
    }

    /// It was made at 5 by a clock that is right, or wrong, and that is set to and fro afterwards.
    #[test]
    fn a_later_start_believes_the_clock_that_was_right_of_all_that_were_shown_before() {
        let ways = [
            [Duration::ZERO, AHEAD, Duration::ZERO, AHEAD],
            [AHEAD, Duration::ZERO, AHEAD, 2 * AHEAD],
            [Duration::ZERO, -AHEAD, AHEAD, -AHEAD],
            [-AHEAD, AHEAD, -AHEAD, Duration::ZERO],
        ];
        for way in ways {
            let mut dates = Dates::new(&moment(1, 5, way[0]));
            for (hours, wrong_by) in (6..).zip(&way[1..]) {
                dates.settle(&moment(1, hours, *wrong_by), &moment(1, 0, way[0]));
            }
            let text = serde_json::to_string(&dates).unwrap();
            let mut dates: Dates = serde_json::from_str(&text).unwrap();
            dates.are_read(&right(2, 30));
            assert_eq!(dates.seen, None, "{text}");
            let at = dates.settle(&right(2, 31), &right(2, 30));
            assert_eq!(at, NOW + Duration::hours(5), "{text}");
        }
    }

    /// Nothing tells the date of a clock that was ahead from a right one, once both have passed: the
    /// later one is the bound.
    #[test]
    fn a_clock_that_was_ahead_by_less_than_has_passed_since_makes_records_younger_by_that() {
        for (ahead, read_as) in [(3, 3), (6, 0)] {
            let mut dates = Dates::new(&right(1, 0));
            let opened = right(1, 0);
            dates.settle(&moment(1, 24, Duration::days(ahead)), &opened);
            dates.settle(&right(1, 25), &opened);
            let opened = right(2, 5 * 24);
            dates.are_read(&opened);
            let at = dates.settle(&opened, &opened);
            assert_eq!(at, NOW + Duration::days(read_as));
        }
    }

    #[test]
    fn of_a_clock_that_is_set_without_end_the_last_dates_are_kept() {
        let mut dates = Dates::new(&right(1, 5));
        for hours in 6..30 {
            dates.settle(&moment(1, hours, Duration::days(hours)), &right(1, 0));
        }
        assert_eq!(dates.before.len(), MAX_BEFORE);
    }

    #[test]
    fn a_host_whose_clock_begins_at_nought_believes_its_records_once_that_is_right() {
        let mut dates = Dates::new(&right(1, 5));
        let opened = moment(2, 100, -20 * AHEAD);
        dates.are_read(&opened);
        assert_eq!(dates.settle(&opened, &opened), opened.wall);
        assert_eq!(
            dates.settle(&right(2, 101), &opened),
            NOW + Duration::hours(5)
        );
    }

    #[test]
    fn without_an_uptime_the_wall_clock_is_all_there_is() {
        let none = |moment: Moment| Moment {
            uptime: None,
            ..moment
        };
        let mut dates = Dates::new(&none(moment(1, 5, AHEAD)));
        assert_eq!(dates.settle(&none(right(1, 6)), &none(right(1, 0))), NOW);
        let mut dates = Dates::new(&none(right(1, 5)));
        let at = dates.settle(&none(right(1, 6)), &none(right(1, 0)));
        assert_eq!(at, NOW + Duration::hours(5));
        assert!(!none(right(1, 6)).was_set_since(&none(right(1, 5))));
        assert!(none(right(1, 5)).was_set_since(&none(right(1, 6))));
        // Found by nobody before the clock was set back: the first look is the one that counts.
        let opened = none(moment(1, 0, AHEAD));
        let mut dates = Dates::new(&none(moment(1, 5, AHEAD)));
        for hours in [6, 9] {
            let at = dates.settle(&none(right(1, hours)), &opened);
            assert_eq!(at, NOW + Duration::hours(6));
        }
    }

    #[test]
    fn a_clock_that_is_pulled_right_is_not_set() {
        let second = Duration::SECOND;
        assert!(!moment(1, 6, 4 * second).was_set_since(&right(1, 5)));
        assert!(moment(1, 6, 6 * second).was_set_since(&right(1, 5)));
        assert!(moment(1, 6, -6 * second).was_set_since(&right(1, 5)));
        assert!(
            !right(1, 48).was_set_since(&right(1, 0)),
            "a suspended host"
        );
    }
}
