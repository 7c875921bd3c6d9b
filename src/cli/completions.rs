//! `perennial completions SHELL`.

use std::process::ExitCode;

use clap::CommandFactory;

#[derive(Debug, clap::Args)]
pub(super) struct CompletionsArgs {
    shell: clap_complete::Shell,
}

pub(super) fn main(args: CompletionsArgs) -> ExitCode {
    let mut command = super::Cli::command();
    clap_complete::generate(
        args.shell,
        &mut command,
        "perennial",
        &mut std::io::stdout(),
    );
    ExitCode::SUCCESS
}
