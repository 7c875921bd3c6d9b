//! `perennial check`.

use std::path::Path;
use std::process::ExitCode;

use super::{ConfigArgs, EXIT_USAGE};
use crate::app::tls_files;
use crate::certificate::unit;
use crate::clock;
use crate::config::{self, Config};

#[derive(Debug, clap::Args)]
pub(super) struct CheckArgs {
    #[command(flatten)]
    config: ConfigArgs,
}

pub(super) fn main(args: CheckArgs) -> ExitCode {
    match check(args.config) {
        Ok(summary) => {
            println!("{summary}");
            ExitCode::SUCCESS
        }
        Err(message) => {
            eprintln!("{message}");
            ExitCode::from(EXIT_USAGE)
        }
    }
}

fn check(args: ConfigArgs) -> Result<String, String> {
    let file = args.file()?;
    let config = Config::load(&file).map_err(|error| error.to_string())?;
    let missing = config::check_files(&config);
    if !missing.is_empty() {
        return Err(missing.to_string());
    }
    let mut wrong = wrong_pairs(&config);
    wrong.extend(wrong_tls_files(&config));
    if !wrong.is_empty() {
        return Err(wrong.join("\n"));
    }
    let hosts: usize = config.sites.iter().map(|site| site.hosts.len()).sum();
    Ok(format!("{}: valid ({hosts} host(s))", file.display()))
}

/// The explicit pairs that could not be served: what the reloader would say of them, each at the
/// place that names the file at fault.
fn wrong_pairs(config: &Config) -> Vec<String> {
    let now = clock::now();
    let pairs = config.certificates.files.iter();
    pairs
        .filter_map(|pair| {
            unit::read_pair(
                &pair.certificate,
                &pair.private_key,
                pair.password_file.as_deref(),
                now,
            )
            .err()
        })
        .map(|(path, cause)| at_its_place(config, &path, &cause))
        .collect()
}

/// The same for the other TLS files.
fn wrong_tls_files(config: &Config) -> Vec<String> {
    let wrong = tls_files::wrong(config).into_iter();
    wrong
        .map(|(path, cause)| at_its_place(config, &path, &cause))
        .collect()
}

fn at_its_place(config: &Config, path: &Path, cause: &str) -> String {
    let message = format!("{} {cause}", path.display());
    let mut references = config.file_references.iter();
    match references.find(|reference| reference.path == path) {
        Some(reference) => reference.diagnostic(message, None).to_string(),
        None => message,
    }
}
