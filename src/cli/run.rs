//! `perennial run`.

use std::process::ExitCode;

use super::{ConfigArgs, EXIT_USAGE, logging};
use crate::app::{self, LogControl, Predecessor};
use crate::config::{Config, Footprint, Reading};

#[derive(Debug, clap::Args)]
pub(super) struct RunArgs {
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    log: logging::LogArgs,
}

pub(super) fn main(args: RunArgs) -> ExitCode {
    let predecessor = match predecessor() {
        Ok(predecessor) => predecessor,
        Err(code) => return code,
    };
    let loaded = args.config.file().and_then(|file| {
        let Reading { result, footprint } = Reading::of(&file);
        let config = result.map_err(|error| error.to_string())?;
        Ok((config, footprint))
    });
    match loaded {
        Ok((config, footprint)) => {
            let log = logging::start(&args.log, config.server.log_level);
            serve(config, Some(footprint), log, predecessor)
        }
        Err(message) => {
            eprintln!("{message}");
            if let Some(predecessor) = predecessor {
                predecessor.fail(&message);
            }
            ExitCode::from(EXIT_USAGE)
        }
    }
}

/// The process that this one takes over from, if it was started for that.
pub(super) fn predecessor() -> Result<Option<Predecessor>, ExitCode> {
    Predecessor::from_environment().map_err(|error| {
        eprintln!("perennial: cannot take over from the running process: {error}");
        ExitCode::FAILURE
    })
}

/// Serves until told to stop.
pub(super) fn serve(
    config: Config,
    file: Option<Footprint>,
    log: LogControl,
    predecessor: Option<Predecessor>,
) -> ExitCode {
    let waits = predecessor.as_ref();
    let waits = waits.and_then(|predecessor| predecessor.try_clone().ok());
    match app::run(config, file, log, predecessor) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if let Some(waits) = waits {
                waits.fail(&error.to_string());
            }
            eprintln!("perennial: {error}");
            ExitCode::FAILURE
        }
    }
}
