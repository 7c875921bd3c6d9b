//! Configuration files on disk: which one is meant, and reading it.

use std::io;
use std::path::{Path, PathBuf};

use super::Config;
use super::diagnostic::{Diagnostics, Problem, Report, Source};
use super::environment::Environment;

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

impl Config {
    /// Reads and parses `file`, with this process's environment variables, and the secret files
    /// that it names.
    pub fn load(file: &Path) -> Result<Config, ConfigError> {
        let bytes = std::fs::read(file).map_err(|source| ConfigError::Read {
            path: file.to_owned(),
            source,
        })?;
        decode(&bytes, file)
            .and_then(|text| Config::parse(text, file, &Environment::of_process(Some(file))))
            .map_err(ConfigError::Invalid)
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
