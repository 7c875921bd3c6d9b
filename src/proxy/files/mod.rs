//! Files as answers: from the path of a request to an open file, its head and the pieces of it that
//! are sent. Nothing below a root leads out of it, unless the configuration says so; files are read
//! on threads for work that blocks, few at once, and a piece at a time.

mod body;
mod conditions;
mod listing;
mod lookup;
mod media;
mod range;
mod reply;
mod target;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use http::{Method, StatusCode};
use tokio::sync::Semaphore;

use super::coding::{Coding, accepted};
use super::respond::Answer;
use crate::clock;
use crate::config::Files;
use crate::message::{Known, RequestHead};
use conditions::Conditions;
use reply::Reply;
use target::Target;

pub use body::send;
pub use media::is_compressible;

/// There is nothing to be done with a file but to read it.
const ALLOWED_METHODS: &[u8] = b"GET, HEAD";

/// What may be read at once, by all sites together: as many threads wait for the disk at most. One
/// that hangs must not take a thread for each request that comes.
static READERS: Semaphore = Semaphore::const_new(64);

/// In the order in which siblings are looked for: the smallest first.
const SIBLINGS: [Coding; 3] = [Coding::Brotli, Coding::Zstd, Coding::Gzip];

/// A folder that is served.
pub struct Folder(Arc<Files>);

/// What is sent for a request.
pub enum Found {
    Answer(Answer),
    /// The pieces of a file that is too large to be held.
    File(body::File),
}

/// Why a file cannot be served that may well be there.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("the root {} cannot be opened: {source}", path.display())]
    Root { path: PathBuf, source: io::Error },
    #[error("{name} below {} cannot be read: {source}", root.display())]
    Read {
        root: PathBuf,
        name: String,
        source: io::Error,
    },
    #[error("the file became shorter while it was sent")]
    Shorter,
    #[error("reading failed: {0}")]
    Io(#[from] io::Error),
    #[error("the thread that reads has ended")]
    Thread,
}

impl FileError {
    /// What the client is told.
    pub fn status(&self) -> StatusCode {
        let denied = |error: &io::Error| error.kind() == io::ErrorKind::PermissionDenied;
        match self {
            FileError::Read { source, .. } if denied(source) => StatusCode::FORBIDDEN,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// A request for a file, with all that the answer depends on: it goes to another thread.
struct Question {
    is_head: bool,
    target: Target,
    conditions: Conditions,
    /// What the client takes, the best first.
    codings: Vec<Coding>,
    /// Whether the fallback is an answer where there is no file, and whether that hangs on what the
    /// client takes.
    fallback: bool,
    fallback_by_accept: bool,
    /// Whether a directory is listed for a program.
    wants_json: bool,
}

impl Folder {
    pub fn new(files: &Files) -> Folder {
        if !files.root.is_dir() {
            let root = files.root.display();
            tracing::warn!(%root, "this root is no directory: its files cannot be served until it is");
        }
        Folder(Arc::new(files.clone()))
    }

    /// What is sent for a request whose path, behind what the route changes of it, is `path`, in
    /// its normal form.
    pub async fn find(&self, request: &RequestHead, path: &[u8]) -> Result<Found, FileError> {
        if !matches!(request.method, Method::GET | Method::HEAD) {
            return Ok(Found::Answer(Answer::not_allowed(ALLOWED_METHODS)));
        }
        let Some(target) = Target::of(path, self.0.dot_files) else {
            return Ok(Found::Answer(not_found()));
        };
        let question = Question::of(request, target, &self.0);
        let files = Arc::clone(&self.0);
        let reply = on_a_reader(move || reply_to(&files, &question)).await?;
        Ok(match reply? {
            Reply::Answer(answer) => Found::Answer(answer),
            Reply::File(file) => Found::File(file),
            Reply::Missing => Found::Answer(not_found()),
            Reply::Directory => Found::Answer(below(request)),
        })
    }
}

impl Question {
    fn of(request: &RequestHead, target: Target, files: &Files) -> Question {
        let is_html = |value: &[u8]| {
            value
                .windows(9)
                .any(|part| part.eq_ignore_ascii_case(b"text/html"))
        };
        let takes_html = || request.fields.all(Known::Accept).any(is_html);
        let has_extension = target.has_extension();
        let codings = match files.precompressed {
            true => accepted(&request.fields, &SIBLINGS),
            false => Vec::new(),
        };
        Question {
            is_head: request.method == Method::HEAD,
            conditions: Conditions::of(request),
            codings,
            // A missing script must not be a page; a page may well have a dot in its name.
            fallback: files.fallback.is_some() && (!has_extension || takes_html()),
            fallback_by_accept: has_extension,
            wants_json: files.browse && listing::wants_json(request),
            target,
        }
    }
}

fn reply_to(files: &Files, question: &Question) -> Result<Reply, FileError> {
    let found = match lookup::find(files, question)? {
        lookup::Lookup::File(found) => *found,
        lookup::Lookup::Directory => return Ok(Reply::Directory),
        lookup::Lookup::Listing(listing) => {
            return Ok(Reply::Answer(listing.answer(question)));
        }
        lookup::Lookup::Missing => return Ok(Reply::Missing),
    };
    reply::reply(found, question, clock::now())
}

/// Runs what blocks on a thread that may. It keeps its place as long as it runs, whoever waits for
/// it.
async fn on_a_reader<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, FileError> {
    // Never closed.
    let place = READERS.acquire().await.map_err(|_| FileError::Thread)?;
    let done = tokio::task::spawn_blocking(move || {
        let _place = place;
        work()
    });
    done.await.map_err(|_| FileError::Thread)
}

fn not_found() -> Answer {
    Answer::failure(StatusCode::NOT_FOUND)
}

/// To the same path with a slash at its end: only so do the links of an index lead where they
/// should.
pub fn below(request: &RequestHead) -> Answer {
    let target = super::decision::origin_form(request.target());
    let path = super::decision::path_of(target);
    // In its normal form it begins with one slash: with two it would be another host's.
    let mut location = super::path::normal(path).into_owned();
    location.push(b'/');
    location.extend_from_slice(&target[path.len()..]);
    Answer::elsewhere(StatusCode::PERMANENT_REDIRECT, &location)
}
