//! The body of a request as it is read of the client: how much of it, and kept for as long as it may
//! have to be sent again.

use std::task::{Context, Poll, ready};

use super::client::{Client, Trailers};
use super::failure::ClientError;

/// How much of a body is kept in case the request has to be sent again.
const REPLAY_BYTES: usize = 64 * 1024;

/// The body as far as it has been sent, as long as that is little enough to be sent again.
#[derive(Debug, Default)]
pub enum Replay {
    Kept(Vec<u8>),
    #[default]
    Lost,
}

/// What is read of one body.
pub struct Intake {
    /// How much is taken, in bytes.
    max: u64,
    taken: u64,
    replay: Replay,
}

impl Intake {
    /// `replay`: what an attempt before this one has read of the body, or nothing yet.
    pub fn new(max: Option<u64>, replay: Replay) -> Intake {
        Intake {
            max: max.unwrap_or(u64::MAX),
            taken: replay.kept().len() as u64,
            replay,
        }
    }

    /// What was read before.
    pub fn before(&self) -> &[u8] {
        self.replay.kept()
    }

    /// Bytes of the body that were read.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    pub fn take_replay(&mut self) -> Replay {
        std::mem::take(&mut self.replay)
    }

    /// Gives the next piece to `take`, as [`Client::poll_body`] does.
    pub fn poll<C: Client>(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut C,
        mut take: impl FnMut(&[u8]),
    ) -> Poll<Result<Option<Trailers>, ClientError>> {
        let Intake { max, taken, replay } = self;
        let read = client.poll_body(cx, &mut |data| {
            *taken += data.len() as u64;
            if *taken <= *max {
                take(data);
                replay.keep(data);
            }
        });
        if self.taken > self.max {
            return Poll::Ready(Err(ClientError::BodyTooLarge));
        }
        let end = ready!(read)?;
        if let Some(Some(_)) = end {
            // Trailers are given once.
            self.replay = Replay::Lost;
        }
        Poll::Ready(Ok(end))
    }
}

impl Replay {
    /// Whether nothing of it is missing.
    pub fn is_whole(&self) -> bool {
        matches!(self, Replay::Kept(_))
    }

    fn kept(&self) -> &[u8] {
        match self {
            Replay::Kept(body) => body,
            Replay::Lost => &[],
        }
    }

    fn keep(&mut self, data: &[u8]) {
        match self {
            Replay::Kept(kept) if kept.len() + data.len() <= REPLAY_BYTES => {
                kept.extend_from_slice(data);
            }
            _ => *self = Replay::Lost,
        }
    }
}
