//! What goes wrong in the years to come, drawn from the seed beforehand.

use std::collections::BTreeMap;

use rand::Rng;
use rand::rngs::StdRng;
use time::{Duration, OffsetDateTime};

/// Something happens to the CA, to the host or to a name.
#[derive(Clone, Copy, Debug)]
pub(super) enum Event {
    CaDown,
    CaUp,
    /// The process dies, and starts again after so long.
    Crash {
        back_in: Duration,
    },
    /// The whole host dies, and is up again after so long.
    Reboot {
        back_in: Duration,
    },
    /// It is stopped in an orderly way, and starts again at once.
    Restart,
    Suspend,
    Resume,
    /// The clock shows this much more than it should.
    Clock {
        offset: Duration,
    },
    /// The CA cannot validate this name.
    Broken(usize),
    Mended(usize),
    /// What the CA issues for this name is of no use, and counts.
    Useless(usize),
    Useful(usize),
    /// The CA tells by renewal information that it is about to revoke the name's certificate.
    Recalled(usize),
}

/// Events by when they happen.
pub(super) type Timeline = BTreeMap<(OffsetDateTime, u64), Event>;

pub(super) struct Plan<'a> {
    rng: &'a mut StdRng,
    start: OffsetDateTime,
    span: Duration,
    timeline: Timeline,
}

/// Draws everything that goes wrong in `span` from `start` on.
pub(super) fn draw(
    rng: &mut StdRng,
    start: OffsetDateTime,
    span: Duration,
    names: usize,
) -> Timeline {
    let timeline = Timeline::new();
    let mut plan = Plan {
        rng,
        start,
        span,
        timeline,
    };
    plan.outages();
    plan.host();
    plan.clocks();
    plan.names(names);
    plan.timeline
}

/// A supervisor that starts again and again what dies after seconds; `first` happens before.
pub(super) fn crash_loop(
    rng: &mut StdRng,
    start: OffsetDateTime,
    crashes: u32,
    first: &[Event],
) -> Timeline {
    let mut timeline = Timeline::new();
    for event in first {
        timeline.insert((start, timeline.len() as u64), *event);
    }
    let mut at = start;
    for _ in 0..crashes {
        at += Duration::milliseconds(rng.random_range(200..25_000));
        let back_in = Duration::milliseconds(rng.random_range(0..2000));
        timeline.insert((at, timeline.len() as u64), Event::Crash { back_in });
    }
    timeline
}

impl Plan<'_> {
    fn at(&mut self, at: OffsetDateTime, event: Event) {
        let number = self.timeline.len() as u64;
        self.timeline.insert((at, number), event);
    }

    fn any_time(&mut self) -> OffsetDateTime {
        self.start + self.span * self.rng.random_range(0.0..1.0)
    }

    fn between(&mut self, least: Duration, most: Duration) -> Duration {
        least + (most - least) * self.rng.random_range(0.0..1.0)
    }

    fn outages(&mut self) {
        // One of a week, and many short ones. They do not overlap with each other's ends: an end
        // ends all.
        let week = self.any_time();
        self.at(week, Event::CaDown);
        self.at(week + Duration::days(7), Event::CaUp);
        for _ in 0..30 {
            let at = self.any_time();
            let during_the_week = at > week - Duration::days(1) && at < week + Duration::days(7);
            if !during_the_week {
                let long = self.between(Duration::minutes(5), Duration::hours(12));
                self.at(at, Event::CaDown);
                self.at(at + long, Event::CaUp);
            }
        }
    }

    fn host(&mut self) {
        for _ in 0..60 {
            let at = self.any_time();
            let back_in = self.between(Duration::ZERO, Duration::minutes(10));
            self.at(at, Event::Crash { back_in });
        }
        // A supervisor that starts again and again what dies after seconds.
        for _ in 0..3 {
            let mut at = self.any_time();
            for _ in 0..30 {
                at += self.between(Duration::seconds(1), Duration::seconds(20));
                let back_in = Duration::SECOND;
                self.at(at, Event::Crash { back_in });
            }
        }
        for _ in 0..40 {
            let at = self.any_time();
            self.at(at, Event::Restart);
        }
        for _ in 0..20 {
            let at = self.any_time();
            let back_in = self.between(Duration::SECOND, Duration::minutes(10));
            self.at(at, Event::Reboot { back_in });
        }
        for _ in 0..30 {
            let at = self.any_time();
            let long = self.between(Duration::minutes(10), Duration::days(2));
            self.at(at, Event::Suspend);
            self.at(at + long, Event::Resume);
        }
    }

    fn clocks(&mut self) {
        for _ in 0..24 {
            let at = self.any_time();
            let long = self.between(Duration::minutes(1), Duration::hours(4));
            let most = match self.rng.random_range(0..8) {
                0 => Duration::days(400),
                1..=3 => Duration::days(2),
                _ => Duration::minutes(20),
            };
            let offset = self.between(-most, most);
            self.at(at, Event::Clock { offset });
            // Often it is somebody's remedy for a wrong clock, or the wrong clock's.
            if self.rng.random_bool(0.2) {
                let back_in = Duration::MINUTE;
                self.at(at + long, Event::Reboot { back_in });
            }
            let offset = Duration::ZERO;
            self.at(at + long, Event::Clock { offset });
        }
    }

    fn names(&mut self, names: usize) {
        for name in 0..names {
            if self.rng.random_bool(0.2) {
                let at = self.any_time();
                let long = self.between(Duration::hours(2), Duration::days(20));
                self.at(at, Event::Broken(name));
                self.at(at + long, Event::Mended(name));
            }
            if self.rng.random_bool(0.2) {
                let at = self.any_time();
                let long = self.between(Duration::minutes(10), Duration::days(20));
                self.at(at, Event::Useless(name));
                self.at(at + long, Event::Useful(name));
            }
        }
        // Some incidents, each with a tenth of all certificates.
        for _ in 0..4 {
            let at = self.any_time();
            for name in 0..names {
                if self.rng.random_bool(0.1) {
                    self.at(at, Event::Recalled(name));
                }
            }
        }
    }
}
