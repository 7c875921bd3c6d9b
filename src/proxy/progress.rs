//! How long the two sides of an exchange may let each other wait.

use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;

use super::client::Client;
use super::failure::{ClientError, Failure, UpstreamError};
use super::pace::{Direction, Pace};
use crate::config::{MinRates, Timeouts};

/// How long which wait may be; `None`: as long as it likes.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// For the head of the response, once the request is sent.
    head: Option<Duration>,
    /// For anything else of the upstream's, and of a client that sends.
    idle: Option<Duration>,
    /// For a client that is sent something.
    takes: Option<Duration>,
    /// When everything has to be over.
    end: Option<Instant>,
    /// Whether silence is a part of the matter.
    patient: bool,
}

impl Limits {
    /// `patient`: whether silence is a part of the matter. `started`: when the request came.
    pub fn new(timeouts: &Timeouts, patient: bool, started: std::time::Instant) -> Limits {
        Limits {
            head: timeouts.response_header.limit(patient),
            idle: timeouts.idle.limit(patient),
            takes: timeouts.idle.limit(false),
            end: timeouts.total.map(|total| (started + total).into()),
            patient,
        }
    }
}

/// What is waited for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Waiting {
    ClientTakes,
    ClientSends,
    UpstreamTakes,
    /// The head of the response.
    Head,
    UpstreamSends,
}

/// Whether anything moves.
pub struct Progress {
    /// Whether something has moved since it was last asked.
    pub moved: bool,
    taken: u64,
    /// What the client had taken before.
    first_taken: u64,
    /// When something moved last. `None` before it is asked for the first time.
    since: Option<Instant>,
    pace: Pace,
}

/// The first of two that are there.
fn earlier(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

/// Bytes of body that have moved until now.
#[derive(Clone, Copy)]
pub struct Moved {
    pub request: u64,
    pub response: u64,
}

/// How much of a response a connection may hold for a client that does not take it, in bytes.
const ON_ITS_WAY: u64 = 64 * 1024;

impl Progress {
    /// `rates`: how slow the client may be.
    pub fn new<C: Client>(client: &C, rates: MinRates) -> Progress {
        let taken = client.progress();
        Progress {
            moved: false,
            taken,
            first_taken: taken,
            since: None,
            pace: Pace::new(rates),
        }
    }

    /// When the client has been too slow on average, if it is waited for.
    fn rate_deadline(&mut self, waiting: Waiting, patient: bool, moved: Moved) -> Option<Instant> {
        let (direction, moved) = match waiting {
            Waiting::ClientSends if !patient => (Direction::Request, moved.request),
            Waiting::ClientTakes => (Direction::Response, self.taken_by_client(moved.response)),
            _ => {
                self.pace.goes_on();
                return None;
            }
        };
        self.pace.wait(direction, moved, Instant::now())
    }

    /// How much of the response the client has, at least.
    fn taken_by_client(&self, sent: u64) -> u64 {
        match self.taken - self.first_taken {
            // Nothing, or nobody knows: then what may still be on its way is not there.
            0 => sent.saturating_sub(ON_ITS_WAY),
            written => written,
        }
    }

    /// Ready with what is to be said when it has taken too long.
    pub fn poll<C: Client>(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut C,
        limits: &Limits,
        waiting: Waiting,
        moved: Moved,
    ) -> Poll<Result<(), Failure>> {
        let taken = client.progress();
        if std::mem::take(&mut self.moved) || taken != self.taken {
            self.taken = taken;
            self.since = None;
        }
        let since = *self.since.get_or_insert_with(Instant::now);
        let limit = match waiting {
            Waiting::ClientTakes => limits.takes,
            Waiting::Head => limits.head,
            Waiting::ClientSends | Waiting::UpstreamTakes | Waiting::UpstreamSends => limits.idle,
        };
        let silence = limit.map(|limit| since + limit);
        let rate = self.rate_deadline(waiting, limits.patient, moved);
        let Some(deadline) = earlier(earlier(silence, limits.end), rate) else {
            return Poll::Pending;
        };
        let is_slow = rate == Some(deadline) && silence != rate;
        client.poll_deadline(cx, deadline).map(|()| {
            Err(match waiting {
                _ if limits.end == Some(deadline) => UpstreamError::Overdue.into(),
                Waiting::ClientTakes if is_slow => ClientError::SlowReader.into(),
                Waiting::ClientSends if is_slow => ClientError::SlowBody.into(),
                Waiting::ClientTakes => ClientError::WriteTimeout.into(),
                Waiting::ClientSends => ClientError::BodyTimeout.into(),
                Waiting::UpstreamTakes | Waiting::Head | Waiting::UpstreamSends => {
                    UpstreamError::Silent.into()
                }
            })
        })
    }
}
