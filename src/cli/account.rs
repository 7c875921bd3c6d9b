//! `perennial account`: asks the running perennial, and does it itself where none runs.

mod stopped;

use std::path::PathBuf;
use std::process::ExitCode;

use serde::Deserialize;

use super::admin_client::{AdminArgs, AdminClientError};
use super::certs::exit;
use super::{ConfigArgs, EXIT_USAGE};
use crate::acme::account::slug;
use stopped::StoppedError;

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
    /// State directory, where no perennial runs [default: the one of the configuration]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    #[command(flatten)]
    config: ConfigArgs,
}

#[derive(Debug, clap::Args)]
struct DeactivateArgs {
    #[command(flatten)]
    ca: CaArgs,
    /// Say that it is meant: nothing brings the account back
    #[arg(long)]
    yes: bool,
}

#[derive(Clone, Copy, Debug)]
enum Change {
    Rollover,
    Deactivate,
}

#[derive(Debug, thiserror::Error)]
enum AccountError {
    #[error(transparent)]
    Admin(#[from] AdminClientError),
    #[error(transparent)]
    Stopped(#[from] StoppedError),
}

/// As the admin API answers.
#[derive(Deserialize)]
struct Changed {
    ca: String,
    account: String,
}

pub(super) fn main(args: AccountArgs) -> ExitCode {
    match args.command {
        AccountCommand::Rollover(args) => exit(change(args, Change::Rollover).map(|changed| {
            println!("new key for {} at {}", changed.account, changed.ca);
        })),
        AccountCommand::Deactivate(args) if !args.yes => {
            eprintln!(
                "perennial: a deactivated account cannot be brought back, and its limits and \
                 authorizations are lost; say --yes if that is meant"
            );
            ExitCode::from(EXIT_USAGE)
        }
        AccountCommand::Deactivate(args) => {
            exit(change(args.ca, Change::Deactivate).map(|changed| {
                println!("deactivated {} at {}", changed.account, changed.ca);
            }))
        }
    }
}

fn change(args: CaArgs, change: Change) -> Result<Changed, AccountError> {
    let ca = args.ca.as_deref().map(slug);
    let query = ca.map(|ca| format!("?ca={ca}")).unwrap_or_default();
    let path = match change {
        Change::Rollover => "/account/rollover",
        Change::Deactivate => "/account/deactivate",
    };
    match args.admin.post(&format!("{path}{query}")) {
        Err(unanswered @ AdminClientError::Connect { .. }) => {
            Ok(stopped::change(args, change, unanswered)?)
        }
        answered => Ok(answered?),
    }
}
