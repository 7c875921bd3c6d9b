//! `perennial man`.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::CommandFactory;

#[derive(Debug, clap::Args)]
pub(super) struct ManArgs {
    /// Write a page for each command into this directory, instead of the first one to stdout
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
}

pub(super) fn main(args: ManArgs) -> ExitCode {
    let command = super::Cli::command();
    let result = match args.directory {
        Some(directory) => std::fs::create_dir_all(&directory)
            .and_then(|()| clap_mangen::generate_to(command, directory)),
        None => {
            let mut page = Vec::new();
            let rendered = clap_mangen::Man::new(command).render(&mut page);
            rendered.and_then(|()| std::io::stdout().write_all(&page))
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("perennial: cannot write the manual: {error}");
            ExitCode::FAILURE
        }
    }
}
