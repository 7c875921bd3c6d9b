//! `perennial run`.

use std::process::ExitCode;

use super::{ConfigArgs, EXIT_USAGE, logging};
use crate::app::{self, LogControl};
use crate::config::{Config, Footprint, Reading};

#[derive(Debug, clap::Args)]
pub(super) struct RunArgs {
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    log: logging::LogArgs,
}

pub(super) fn main(args: RunArgs) -> ExitCode {
    let loaded = args.config.file().and_then(|file| {
        let Reading { result, footprint } = Reading::of(&file);
        let config = result.map_err(|error| error.to_string())?;
        Ok((config, footprint))
    });
    match loaded {
        Ok((config, footprint)) => {
            let log = logging::start(&args.log, config.server.log_level);
            serve(config, Some(footprint), log)
        }
        Err(message) => {
            eprintln!("{message}");
            ExitCode::from(EXIT_USAGE)
        }
    }
}

/// Serves until told to stop.
pub(super) fn serve(config: Config, file: Option<Footprint>, log: LogControl) -> ExitCode {
    match app::run(config, file, log) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("perennial: {error}");
            ExitCode::FAILURE
        }
    }
}
