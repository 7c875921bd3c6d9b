//! `perennial run`.

use std::process::ExitCode;

use super::{ConfigArgs, EXIT_USAGE, logging};
use crate::app;
use crate::config::Config;

#[derive(Debug, clap::Args)]
pub(super) struct RunArgs {
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    log: logging::LogArgs,
}

pub(super) fn main(args: RunArgs) -> ExitCode {
    let loaded = args
        .config
        .file()
        .and_then(|file| Config::load(&file).map_err(|error| error.to_string()));
    match loaded {
        Ok(config) => {
            logging::start(&args.log);
            serve(config)
        }
        Err(message) => {
            eprintln!("{message}");
            ExitCode::from(EXIT_USAGE)
        }
    }
}

/// Serves until told to stop.
pub(super) fn serve(config: Config) -> ExitCode {
    match app::run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("perennial: {error}");
            ExitCode::FAILURE
        }
    }
}
