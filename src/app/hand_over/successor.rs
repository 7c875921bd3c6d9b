//! The old process's half.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::channel::{self, Channel, MAX_DESCRIPTORS};
use super::{HAND_OVER, HandOverError, Telling};
use crate::acme::challenges::Challenges;
use crate::app::service_manager::WATCHDOG_PID;
use crate::listener::sockets::Socket;

/// How long the new process may take to load: as much as a hundred thousand certificates on a slow
/// disk. The old one serves meanwhile.
const LOAD_TIMEOUT: Duration = Duration::from_secs(120);

/// How long it may take to serve once nobody else does: everything is loaded and bound.
const SERVE_TIMEOUT: Duration = Duration::from_secs(15);

/// How long a process that has said nothing more may take to end.
const END_TIMEOUT: Duration = Duration::from_secs(5);
const END_POLL: Duration = Duration::from_millis(20);

/// How this process was started, to be started again: noted before the program's file is replaced.
#[derive(Clone, Debug)]
pub(in crate::app) struct Program {
    path: PathBuf,
    arguments: Vec<OsString>,
}

impl Program {
    pub fn current() -> std::io::Result<Program> {
        Ok(Program {
            path: std::env::current_exe()?,
            arguments: std::env::args_os().skip(1).collect(),
        })
    }
}

/// The new process. It is killed when this is dropped, unless it has taken over.
pub(in crate::app) struct Successor {
    // Before the channel: a process that is to be killed must not take our end for a word to go on.
    process: Process,
    channel: Channel,
    /// Where it hears what to answer to CAs.
    answers: Option<Channel>,
}

struct Process {
    child: Child,
    is_on_its_own: bool,
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.is_on_its_own {
            // It may have ended by itself.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

impl Successor {
    /// Starts the program as this one was started, and gives it the sockets.
    pub fn start(program: &Program, sockets: &[Socket]) -> Result<Successor, HandOverError> {
        if std::process::id() == 1 {
            let reason = "this is process 1 of its container, which would end with it: start a new \
                          container instead";
            return Err(HandOverError::Refused(reason.to_owned()));
        }
        let (ours, theirs) = channel::pair()?;
        let child = Command::new(&program.path)
            .args(&program.arguments)
            .stdin(Stdio::from(theirs))
            .env(HAND_OVER, "stdin")
            // Those are about this process.
            .env_remove(WATCHDOG_PID)
            .env_remove("LISTEN_PID")
            .env_remove("LISTEN_FDS")
            .env_remove("LISTEN_FDNAMES")
            .spawn()
            .map_err(|source| HandOverError::Start {
                program: program.path.display().to_string(),
                source,
            })?;
        let process = Process {
            child,
            is_on_its_own: false,
        };
        let (answers, its_answers) = channel::pair()?;
        say(&ours, "answers", &[its_answers.as_fd()])?;
        let descriptors: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
        let mut parts = descriptors.chunks(MAX_DESCRIPTORS).peekable();
        while let Some(part) = parts.next() {
            let message = match parts.peek() {
                Some(_) => "sockets more",
                None => "sockets last",
            };
            say(&ours, message, part)?;
        }
        Ok(Successor {
            process,
            channel: Channel::new(ours)?,
            answers: Some(Channel::new(answers)?),
        })
    }

    /// Has it answer what this process answers, from now on.
    pub fn tell(&mut self, challenges: &Challenges) -> Option<Telling> {
        let channel = self.answers.take()?;
        Some(Telling::start(challenges, channel))
    }

    pub fn pid(&self) -> u32 {
        self.process.child.id()
    }

    /// Returns once it could serve.
    pub async fn ready(&mut self) -> Result<(), HandOverError> {
        self.expect("ready", "has not loaded", LOAD_TIMEOUT).await
    }

    /// Has it serve. This process accepts no more connections by now.
    pub async fn take_over(&mut self) -> Result<(), HandOverError> {
        // If it has ended, that is what is heard next.
        let _ = self.channel.say("go").await;
        self.expect("serving", "does not serve", SERVE_TIMEOUT)
            .await
    }

    /// It is on its own from now on.
    pub async fn confirm(mut self) {
        self.process.is_on_its_own = true;
        // It may have ended: that is for others to see.
        let _ = self.channel.say("yours").await;
    }

    async fn expect(
        &mut self,
        wanted: &str,
        what: &'static str,
        within: Duration,
    ) -> Result<(), HandOverError> {
        let heard = tokio::time::timeout(within, self.channel.hear()).await;
        match heard.map_err(|_| HandOverError::Silent { what, within })?? {
            Some(said) if said == wanted => Ok(()),
            Some(said) => match said.strip_prefix("failed ") {
                Some(reason) => Err(self.ended(reason.to_owned()).await),
                None => Err(HandOverError::Unexpected(said)),
            },
            None => Err(self
                .ended("it did not say why; its log may".to_owned())
                .await),
        }
    }

    async fn ended(&mut self, reason: String) -> HandOverError {
        let deadline = Instant::now() + END_TIMEOUT;
        let status = loop {
            match self.process.child.try_wait() {
                Ok(Some(status)) => break status.to_string(),
                Ok(None) if Instant::now() < deadline => tokio::time::sleep(END_POLL).await,
                Ok(None) => break "it still runs".to_owned(),
                Err(error) => break error.to_string(),
            }
        };
        HandOverError::Ended { status, reason }
    }
}

fn say(end: &OwnedFd, message: &str, descriptors: &[BorrowedFd<'_>]) -> std::io::Result<()> {
    match channel::send(end.as_fd(), message, descriptors) {
        // It has ended already: whoever waits for it to be ready hears how.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        sent => sent,
    }
}
