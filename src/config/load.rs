//! Configuration files on disk: which one is meant, and reading it.

use std::cell::RefCell;
use std::io;
use std::path::{Path, PathBuf};

use boring::sha::sha256;

use super::Config;
use super::diagnostic::{Diagnostics, Problem, Report, Source};
use super::environment::Environment;
use crate::certificate::observe::Digest;

/// Where a configuration is looked for if none is named, in this order.
const DEFAULT_PATHS: [&str; 2] = ["config/perennial.toml", "/etc/perennial/perennial.toml"];

/// Why a configuration file gives no [`Config`].
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration {}: {source} (name another with --config FILE)", path.display())]
    Read { path: PathBuf, source: io::Error },
    /// Displays as one diagnostic after another.
    #[error("{0}")]
    Invalid(Diagnostics),
}

/// The configuration file to use if none is named: the checkout's, else the system's, if there is
/// one.
pub fn default_path() -> Option<PathBuf> {
    let exists = |path: &PathBuf| path.exists();
    DEFAULT_PATHS.map(PathBuf::from).into_iter().find(exists)
}

/// One reading of a configuration file and of the secret files that it names.
pub struct Reading {
    pub result: Result<Config, ConfigError>,
    pub footprint: Footprint,
}

/// The files that a reading was made of, the configuration first, with the checksum of each or
/// the reason why it could not be read. Two readings with the same footprint have the same result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Footprint(Vec<(PathBuf, Result<Digest, io::ErrorKind>)>);

impl Footprint {
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.0.iter().map(|(path, _)| path.as_path())
    }

    /// What the same files hold now.
    pub fn again(&self) -> Footprint {
        let files = self.files();
        Footprint(
            files
                .map(|path| (path.to_owned(), checksum(&std::fs::read(path))))
                .collect(),
        )
    }
}

fn checksum(content: &io::Result<impl AsRef<[u8]>>) -> Result<Digest, io::ErrorKind> {
    match content {
        Ok(bytes) => Ok(sha256(bytes.as_ref())),
        Err(error) => Err(error.kind()),
    }
}

impl Reading {
    /// Reads and parses `file`, with this process's environment variables, and the secret files
    /// that it names, whether or not it is valid.
    pub fn of(file: &Path) -> Reading {
        let content = std::fs::read(file);
        let files = RefCell::new(vec![(file.to_owned(), checksum(&content))]);
        let read_text = |path: &Path| {
            let bytes = std::fs::read(path);
            files.borrow_mut().push((path.to_owned(), checksum(&bytes)));
            String::from_utf8(bytes?)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
        };
        let environment = Environment {
            read_text: &read_text,
            ..Environment::of_process(Some(file))
        };
        let result = match content {
            Ok(bytes) => decode(&bytes, file)
                .and_then(|text| Config::parse(text, file, &environment))
                .map_err(ConfigError::Invalid),
            Err(source) => Err(ConfigError::Read {
                path: file.to_owned(),
                source,
            }),
        };
        Reading {
            result,
            footprint: Footprint(files.into_inner()),
        }
    }
}

impl Config {
    /// Reads and parses `file`; see [`Reading::of`].
    pub fn load(file: &Path) -> Result<Config, ConfigError> {
        Reading::of(file).result
    }
}

fn decode<'b>(bytes: &'b [u8], file: &Path) -> Result<&'b str, Diagnostics> {
    let error = match std::str::from_utf8(bytes) {
        Ok(text) => return Ok(text),
        Err(error) => error,
    };
    let valid = String::from_utf8_lossy(&bytes[..error.valid_up_to()]);
    let report = Report::new(Source::file(file, &valid));
    let problem = Problem::new("invalid TOML: this byte is not UTF-8");
    report.add(
        valid.len(),
        problem.help("save the file in the encoding UTF-8"),
    );
    report.finish(None)
}
