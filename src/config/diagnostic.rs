//! What is wrong with a configuration, and where. This module owns the form of the messages; it
//! never decides whether something is wrong.

use std::cell::RefCell;
use std::fmt;
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;

/// Where a value was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A configuration file. Line and column count from 1, the column in characters.
    File {
        file: Arc<Path>,
        line: usize,
        column: usize,
    },
    /// An argument of the command line, as it was typed.
    Argument(Arc<str>),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::File { file, line, column } => write!(f, "{}:{line}:{column}", file.display()),
            Place::Argument(argument) => write!(f, "command line: {argument}"),
        }
    }
}

/// One thing that is wrong. It displays as `FILE:LINE:COLUMN: message`, and on a line of its own
/// `  help: ...` where there is more to say about what would be right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    pub place: Place,
    pub message: String,
    pub help: Option<String>,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)?;
        match &self.help {
            Some(help) => write!(f, "\n  help: {help}"),
            None => Ok(()),
        }
    }
}

/// Everything that one look at a configuration found, in the order of the text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diagnostics(Vec<Diagnostic>);

impl Diagnostics {
    /// Sorts by line and column. What came from the command line keeps its order.
    pub fn new(mut found: Vec<Diagnostic>) -> Diagnostics {
        found.sort_by_key(|diagnostic| match diagnostic.place {
            Place::File { line, column, .. } => (line, column),
            Place::Argument(_) => (0, 0),
        });
        Diagnostics(found)
    }
}

impl Deref for Diagnostics {
    type Target = [Diagnostic];

    fn deref(&self) -> &[Diagnostic] {
        &self.0
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, diagnostic) in self.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{diagnostic}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostics {}

/// What is wrong with a value, before it is known where the value stood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) message: String,
    pub(super) help: Option<String>,
}

impl Problem {
    pub(super) fn new(message: impl Into<String>) -> Problem {
        Problem {
            message: message.into(),
            help: None,
        }
    }

    pub(super) fn help(mut self, help: impl Into<String>) -> Problem {
        self.help = Some(help.into());
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.help {
            Some(help) => write!(f, "; {help}"),
            None => Ok(()),
        }
    }
}

/// A value and where it was written, in the measure of its [`Source`].
#[derive(Clone, Debug)]
pub(super) struct Located<T> {
    pub(super) value: T,
    pub(super) at: usize,
}

/// What a configuration was written in. It turns the measure that a [`Located`] carries into a
/// [`Place`], which costs a search and so is done for the few that are shown.
pub(super) enum Source<'a> {
    /// Measured in bytes from the start of the text.
    File {
        file: Arc<Path>,
        text: &'a str,
        line_starts: Vec<usize>,
    },
    /// Measured in the order in which they were added.
    Arguments(RefCell<Vec<Arc<str>>>),
}

impl<'a> Source<'a> {
    pub(super) fn file(file: &Path, text: &'a str) -> Source<'a> {
        let after_newlines = text.match_indices('\n').map(|(at, _)| at + 1);
        Source::File {
            file: file.into(),
            text,
            line_starts: std::iter::once(0).chain(after_newlines).collect(),
        }
    }

    /// Notes an argument as it is to be shown, and returns its place. A file has none.
    pub(super) fn add_argument(&self, argument: &str) -> usize {
        match self {
            Source::File { .. } => 0,
            Source::Arguments(arguments) => {
                let mut arguments = arguments.borrow_mut();
                arguments.push(argument.into());
                arguments.len() - 1
            }
        }
    }

    pub(super) fn place(&self, at: usize) -> Place {
        match self {
            Source::File {
                file,
                text,
                line_starts,
            } => {
                // At least 1, because the first line starts at 0.
                let line = line_starts.partition_point(|&start| start <= at);
                let start = line_starts[line - 1];
                // A position past the end or inside a character can only come from the TOML
                // parser's own errors: the byte distance is close enough.
                let column = text
                    .get(start..at)
                    .map_or(at - start, |before| before.chars().count());
                Place::File {
                    file: file.clone(),
                    line,
                    column: column + 1,
                }
            }
            Source::Arguments(arguments) => Place::Argument(arguments.borrow()[at].clone()),
        }
    }

    /// How a message about something else refers to this place: `line 12`.
    pub(super) fn reference(&self, at: usize) -> String {
        match self.place(at) {
            Place::File { line, .. } => format!("line {line}"),
            Place::Argument(argument) => format!("`{argument}`"),
        }
    }
}

/// Collects what is wrong with one [`Source`].
pub(super) struct Report<'a> {
    pub(super) source: Source<'a>,
    found: RefCell<Vec<Diagnostic>>,
}

impl<'a> Report<'a> {
    pub(super) fn new(source: Source<'a>) -> Report<'a> {
        Report {
            source,
            found: RefCell::default(),
        }
    }

    pub(super) fn add(&self, at: usize, problem: Problem) {
        self.found.borrow_mut().push(Diagnostic {
            place: self.source.place(at),
            message: problem.message,
            help: problem.help,
        });
    }

    /// The value, or nothing and the problem noted.
    pub(super) fn keep<T>(&self, at: usize, result: Result<T, Problem>) -> Option<T> {
        result.map_err(|problem| self.add(at, problem)).ok()
    }

    /// `value` if nothing was found to be wrong.
    pub(super) fn finish<T>(self, value: Option<T>) -> Result<T, Diagnostics> {
        let found = self.found.into_inner();
        match value {
            Some(value) if found.is_empty() => Ok(value),
            _ => Err(Diagnostics::new(found)),
        }
    }
}
