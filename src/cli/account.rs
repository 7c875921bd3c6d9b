//! `perennial account`.

use std::process::ExitCode;

use serde::Deserialize;

use super::EXIT_USAGE;
use super::admin_client::{AdminArgs, AdminClientError};
use super::certs::exit;
use crate::acme::account::slug;

#[derive(Debug, clap::Args)]
pub(super) struct AccountArgs {
    #[command(subcommand)]
    command: AccountCommand,
}

#[derive(Debug, clap::Subcommand)]
enum AccountCommand {
    /// Give the account a new key, once running orders have ended
    Rollover(CaArgs),
    /// Give the account up for good; the next order makes a new one
    Deactivate(DeactivateArgs),
}

#[derive(Debug, clap::Args)]
struct CaArgs {
    /// Directory URL of the CA [default: the one of [acme]]
    #[arg(long, value_name = "URL")]
    ca: Option<String>,
    #[command(flatten)]
    admin: AdminArgs,
}

#[derive(Debug, clap::Args)]
struct DeactivateArgs {
    #[command(flatten)]
    ca: CaArgs,
    /// Say that it is meant: nothing brings the account back
    #[arg(long)]
    yes: bool,
}

/// The answer of the admin API.
#[derive(Deserialize)]
struct Changed {
    ca: String,
    account: String,
}

pub(super) fn main(args: AccountArgs) -> ExitCode {
    match args.command {
        AccountCommand::Rollover(args) => exit(change(&args, "rollover").map(|changed| {
            println!("new key for {} at {}", changed.account, changed.ca);
        })),
        AccountCommand::Deactivate(args) if !args.yes => {
            eprintln!(
                "perennial: a deactivated account cannot be brought back, and its limits and \
                 authorizations are lost; say --yes if that is meant"
            );
            ExitCode::from(EXIT_USAGE)
        }
        AccountCommand::Deactivate(args) => exit(change(&args.ca, "deactivate").map(|changed| {
            println!("deactivated {} at {}", changed.account, changed.ca);
        })),
    }
}

fn change(args: &CaArgs, what: &str) -> Result<Changed, AdminClientError> {
    let ca = args.ca.as_deref().map(slug);
    let query = ca.map(|ca| format!("?ca={ca}")).unwrap_or_default();
    args.admin.post(&format!("/account/{what}{query}"))
}
