//! The new process's half.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use super::answers::give;
use super::channel::{self, Channel};
use super::{HAND_OVER, HandOverError};
use crate::acme::challenges::Challenges;

/// How long the old process may take to make way.
const GO_TIMEOUT: Duration = Duration::from_secs(60);

/// How long it may take to tell the service manager.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(10);

/// The process that this one takes over from.
pub struct Predecessor {
    channel: OwnedFd,
    sockets: Vec<OwnedFd>,
    /// `None`: the old process is of a version that tells nothing.
    answers: Option<OwnedFd>,
}

/// The old process, which waits for this one to be ready.
pub(in crate::app) struct Turn(Channel);

impl Predecessor {
    /// `None`: this process was started in the usual way. To be called before anything reads
    /// standard input.
    pub fn from_environment() -> Result<Option<Predecessor>, HandOverError> {
        if std::env::var_os(HAND_OVER).is_none() {
            return Ok(None);
        }
        let stdin = io::stdin();
        let channel = rustix::io::fcntl_dupfd_cloexec(&stdin, 3).map_err(io::Error::from)?;
        // What this process starts must not have it.
        rustix::stdio::dup2_stdin(File::open("/dev/null")?).map_err(io::Error::from)?;
        let (mut sockets, mut answers) = (Vec::new(), None);
        loop {
            let (message, descriptors) = channel::receive(channel.as_fd())?;
            match message.as_deref() {
                Some("answers") => answers = descriptors.into_iter().next(),
                Some("sockets more") => sockets.extend(descriptors),
                Some("sockets last") => {
                    sockets.extend(descriptors);
                    break;
                }
                Some(other) => return Err(HandOverError::Unexpected(other.to_owned())),
                None => {
                    let reason = "the old process has ended before it handed anything over";
                    return Err(HandOverError::Refused(reason.to_owned()));
                }
            }
        }
        Ok(Some(Predecessor {
            channel,
            sockets,
            answers,
        }))
    }

    /// Gives the answers to challenges that the old process tells of.
    pub(in crate::app) fn answer_for_it(&mut self, challenges: &Challenges) -> io::Result<()> {
        if let Some(end) = self.answers.take() {
            tokio::spawn(give(challenges.clone(), Channel::new(end)?));
        }
        Ok(())
    }

    /// What the old process listens on.
    pub(in crate::app) fn take_sockets(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.sockets)
    }

    /// Says why nothing comes of it. It may be gone.
    pub fn fail(&self, reason: &str) {
        let message = format!("failed {reason}");
        let _ = channel::send(self.channel.as_fd(), &message, &[]);
    }

    /// For words that do not fail it any more: a copy.
    pub fn try_clone(&self) -> io::Result<Predecessor> {
        Ok(Predecessor {
            channel: self.channel.try_clone()?,
            sockets: Vec::new(),
            answers: None,
        })
    }

    /// This process could serve: waits until the old one has stopped accepting connections. One that
    /// is gone has stopped as well.
    pub(in crate::app) async fn turn(self) -> Result<Turn, HandOverError> {
        let channel = Channel::new(self.channel)?;
        // If it is gone, nobody answers.
        let _ = channel.say("ready").await;
        let heard = tokio::time::timeout(GO_TIMEOUT, channel.hear()).await;
        match heard {
            Ok(Ok(Some(said))) if said == "go" => Ok(Turn(channel)),
            Ok(Ok(Some(said))) => Err(HandOverError::Unexpected(said)),
            Ok(Ok(None)) => {
                tracing::warn!("the old process is gone: serving at once");
                Ok(Turn(channel))
            }
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(HandOverError::Refused(format!(
                "the old process has not made way within {GO_TIMEOUT:?}"
            ))),
        }
    }
}

impl Turn {
    /// This process serves: waits until the service manager knows. Whatever comes of that, there is
    /// nobody else who serves.
    pub async fn serving(self) {
        let heard = async {
            self.0.say("serving").await?;
            self.0.hear().await
        };
        match tokio::time::timeout(CONFIRM_TIMEOUT, heard).await {
            Ok(Ok(Some(said))) if said == "yours" => {}
            _ => tracing::warn!("the old process has not confirmed that this one is in its place"),
        }
    }
}
