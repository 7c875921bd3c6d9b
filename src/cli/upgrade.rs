//! `perennial upgrade`.

use std::process::ExitCode;

use serde::Deserialize;

use super::admin_client::AdminArgs;

#[derive(Debug, clap::Args)]
pub(super) struct UpgradeArgs {
    #[command(flatten)]
    admin: AdminArgs,
}

#[derive(Deserialize)]
struct Upgraded {
    pid: u32,
}

/// Waits until the new process serves. What keeps it from that is told, and the old one goes on.
pub(super) fn main(args: &UpgradeArgs) -> ExitCode {
    match args.admin.post::<Upgraded>("/upgrade") {
        Ok(Upgraded { pid }) => {
            println!("process {pid} has taken over; the one before drains");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("perennial: {error}");
            ExitCode::FAILURE
        }
    }
}
