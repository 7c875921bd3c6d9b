//! `perennial schema`.

use std::io::Write;
use std::process::ExitCode;

use crate::config::reference;

#[derive(Debug, clap::Args)]
pub(super) struct SchemaArgs {
    /// Print the reference for readers, in Markdown
    #[arg(long)]
    markdown: bool,
}

pub(super) fn main(args: &SchemaArgs) -> ExitCode {
    let text = match args.markdown {
        true => reference::markdown(),
        // The alternate form is indented.
        false => format!("{:#}\n", reference::schema()),
    };
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
