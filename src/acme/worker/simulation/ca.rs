//! The CA: it counts as Let's Encrypt does, by its own clock, and knows nothing of what its client
//! thinks that it counts.

use std::collections::{HashMap, VecDeque};

use time::{Duration, OffsetDateTime};

pub(super) const NEW_ORDERS: (u32, Duration) = (300, Duration::hours(3));
pub(super) const DUPLICATES: (u32, Duration) = (5, Duration::days(7));
/// What the host remembers, and more.
const MEMORY: Duration = Duration::days(9);
pub(super) const FAILURES: (u32, Duration) = (5, Duration::hours(1));

/// How the CA answers a new order.
pub(super) enum Answer {
    Accepted,
    TooMany { retry_after: OffsetDateTime },
}

#[derive(Default)]
pub(super) struct Ca {
    pub(super) is_down: bool,
    /// Most nonces that it gave away it does not know any more.
    pub(super) forgets_nonces: bool,
    orders: VecDeque<OffsetDateTime>,
    certificates: HashMap<usize, VecDeque<OffsetDateTime>>,
    failures: HashMap<usize, VecDeque<OffsetDateTime>>,
    /// Orders that were refused because of a limit.
    pub(super) refused: u32,
    /// All that were accepted.
    pub(super) accepted: u32,
}

impl Ca {
    pub(super) fn new_order(&mut self, at: OffsetDateTime, name: usize, exempt: bool) -> Answer {
        let full = [
            full(Some(&mut self.orders), NEW_ORDERS, at),
            full(self.certificates.get_mut(&name), DUPLICATES, at),
            full(self.failures.get_mut(&name), FAILURES, at),
        ];
        let until = full.into_iter().flatten().max().filter(|_| !exempt);
        if let Some(retry_after) = until {
            self.refused += 1;
            return Answer::TooMany { retry_after };
        }
        if !exempt {
            self.orders.push_back(at);
        }
        self.accepted += 1;
        Answer::Accepted
    }

    /// The orders that counted, those of the last days.
    pub(super) fn orders_since(&self, at: OffsetDateTime) -> impl Iterator<Item = OffsetDateTime> {
        let newest_first = self.orders.iter().rev().copied();
        newest_first.take_while(move |order| at <= *order)
    }

    /// Places of the limit of new orders that what is known now takes at `at`.
    pub(super) fn taken(&self, at: OffsetDateTime) -> usize {
        let newest_first = self.orders.iter().rev();
        newest_first
            .take_while(|order| at - **order < NEW_ORDERS.1)
            .count()
    }

    pub(super) fn issued(&mut self, at: OffsetDateTime, name: usize, exempt: bool) {
        if !exempt {
            self.certificates.entry(name).or_default().push_back(at);
        }
    }

    pub(super) fn failed(&mut self, at: OffsetDateTime, name: usize) {
        self.failures.entry(name).or_default().push_back(at);
    }
}

/// Until when a limit is used up, if it is.
fn full(
    times: Option<&mut VecDeque<OffsetDateTime>>,
    (count, per): (u32, Duration),
    now: OffsetDateTime,
) -> Option<OffsetDateTime> {
    let times = times?;
    while times.front().is_some_and(|at| now - *at >= MEMORY) {
        times.pop_front();
    }
    let over = times.len().checked_sub(count as usize)?;
    Some(times[over] + per).filter(|until| now < *until)
}
