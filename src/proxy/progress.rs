//! How long the two sides of an exchange may let each other wait.

use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;

use super::client::Client;
use super::failure::{ClientError, Failure, UpstreamError};
use crate::config::Timeouts;

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
}

impl Limits {
    /// `patient`: whether silence is a part of the matter. `started`: when the request came.
    pub fn new(timeouts: &Timeouts, patient: bool, started: std::time::Instant) -> Limits {
        Limits {
            head: timeouts.response_header.limit(patient),
            idle: timeouts.idle.limit(patient),
            takes: timeouts.idle.limit(false),
            end: timeouts.total.map(|total| (started + total).into()),
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
    since: Instant,
}

impl Progress {
    pub fn new<C: Client>(client: &C) -> Progress {
        Progress {
            moved: false,
            taken: client.progress(),
            since: Instant::now(),
        }
    }

    /// Ready with what is to be said when it has taken too long.
    pub fn poll<C: Client>(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut C,
        limits: &Limits,
        waiting: Waiting,
    ) -> Poll<Result<(), Failure>> {
        let taken = client.progress();
        if std::mem::take(&mut self.moved) || taken != self.taken {
            self.taken = taken;
            self.since = Instant::now();
        }
        let limit = match waiting {
            Waiting::ClientTakes => limits.takes,
            Waiting::Head => limits.head,
            Waiting::ClientSends | Waiting::UpstreamTakes | Waiting::UpstreamSends => limits.idle,
        };
        let silence = limit.map(|limit| self.since + limit);
        let Some(deadline) = silence.into_iter().chain(limits.end).min() else {
            return Poll::Pending;
        };
        client.poll_deadline(cx, deadline).map(|()| {
            Err(match waiting {
                _ if limits.end == Some(deadline) => UpstreamError::Overdue.into(),
                Waiting::ClientTakes => ClientError::WriteTimeout.into(),
                Waiting::ClientSends => ClientError::BodyTimeout.into(),
                Waiting::UpstreamTakes | Waiting::Head | Waiting::UpstreamSends => {
                    UpstreamError::Silent.into()
                }
            })
        })
    }
}
