//! `perennial check`.

use std::process::ExitCode;

use super::{ConfigArgs, EXIT_USAGE};
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
    let hosts: usize = config.sites.iter().map(|site| site.hosts.len()).sum();
    Ok(format!("{}: valid ({hosts} host(s))", file.display()))
}
