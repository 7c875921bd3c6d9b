//! How a new process takes over from an old one without a connection being refused: the old one
//! starts it and gives it the listening sockets, it loads what it serves, and only then do they
//! change places. At no time do both accept connections; what comes in between waits in the kernel.
//!
//! They talk over a socket that is the new process's standard input, in this order:
//!
//! | old | new |
//! |---|---|
//! | `answers`, with one end of a socket for them | |
//! | `sockets more` or `sockets last`, with descriptors | |
//! | | `ready`, once the first load is in memory |
//! | `go`, once it accepts no more connections | |
//! | | `serving`, once it accepts them |
//! | `yours`, once the service manager knows | |
//!
//! or at any time `failed REASON` by the new one, which then ends. An end of the socket means that
//! the other process is gone. Nothing here decides when to change places.
//!
//! The old process finishes orders that are under way meanwhile, and the new one answers for them
//! (`answers`).

mod answers;
mod channel;
mod predecessor;
mod successor;

pub(super) use answers::Telling;
pub use predecessor::Predecessor;
pub(super) use predecessor::Turn;
pub(super) use successor::{Program, Successor};

/// Tells the new process that its standard input is the socket to the old one.
const HAND_OVER: &str = "PERENNIAL_HAND_OVER";

/// Why nothing came of a hand-over.
#[derive(Debug, thiserror::Error)]
pub enum HandOverError {
    #[error("cannot start {program}: {source}")]
    Start {
        program: String,
        source: std::io::Error,
    },
    #[error("{0}")]
    Refused(String),
    #[error("the new process has ended before it could serve ({status}): {reason}")]
    Ended { status: String, reason: String },
    #[error("the new process {what} within {within:?}")]
    Silent {
        what: &'static str,
        within: std::time::Duration,
    },
    #[error("the other process said {0:?}, which this version does not understand")]
    Unexpected(String),
    #[error("the processes cannot talk to each other: {0}")]
    Channel(#[from] std::io::Error),
}
