//! The command line, one file per command. Commands print; everything else logs.

mod account;
mod admin_client;
mod certs;
mod check;
mod completions;
mod doctor;
mod hash_password;
mod import;
mod logging;
mod man;
mod proxy;
mod run;
mod schema;
mod status;
mod trust;
mod upgrade;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::local_ca::trust_store::Change;
use crate::stderr_log;

/// The configuration is wrong, or the command line is (EX_USAGE of sysexits.h).
pub const EXIT_USAGE: u8 = 64;

/// HTTPS reverse proxy whose certificates never go stale.
#[derive(Debug, Parser)]
#[command(name = "perennial", version, about, disable_help_subcommand = true)]
#[command(after_help = "Try: perennial proxy localhost:8443=respond:hello\n\
                        Or:  perennial proxy example.com=127.0.0.1:3000")]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Proxy sites given on the command line, with certificates that get and renew themselves
    Proxy(proxy::ProxyArgs),
    /// Run with a configuration file
    Run(run::RunArgs),
    /// Check a configuration file: exit status 0, or 64 with diagnostics
    Check(check::CheckArgs),
    /// Show what a running perennial does
    Status(status::StatusArgs),
    /// Show, renew and revoke certificates of a running perennial, or take over another client's
    Certs(certs::CertsArgs),
    /// Change the ACME account, of a running perennial or of one that is stopped
    Account(account::AccountArgs),
    /// Have a new process of the program take over from the running one, without a refused connection
    Upgrade(upgrade::UpgradeArgs),
    /// Look at all that an order depends on (DNS, ports, CAA, clock, disk, limits), and say what to do
    Doctor(doctor::DoctorArgs),
    /// Make this system, and this user's browsers, trust the internal CA
    Trust(trust::TrustArgs),
    /// Take that trust back
    Untrust(trust::TrustArgs),
    /// Print the manual page, or write one for each command
    Man(man::ManArgs),
    /// Hash a password for a file of users
    HashPassword(hash_password::HashPasswordArgs),
    /// Print what a configuration file can have: a JSON schema for editors, or the reference
    Schema(schema::SchemaArgs),
    /// Print a completion script for a shell
    Completions(completions::CompletionsArgs),
}

/// Which configuration file; shared by `run` and `check`.
#[derive(Clone, Debug, clap::Args)]
struct ConfigArgs {
    /// Configuration file [default: ./config/perennial.toml, else /etc/perennial/perennial.toml]
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Parses the command line and does what it says.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Printing fails only when nobody reads; the exit code still tells.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { EXIT_USAGE } else { 0 });
        }
    };
    let code = run(cli.command);
    // What is not taken by then is lost.
    stderr_log::flush(stderr_log::PATIENCE);
    code
}

fn run(command: Command) -> ExitCode {
    match command {
        Command::Proxy(args) => proxy::main(args),
        Command::Run(args) => run::main(args),
        Command::Check(args) => check::main(args),
        Command::Status(args) => status::main(args),
        Command::Certs(args) => certs::main(args),
        Command::Account(args) => account::main(args),
        Command::Upgrade(args) => upgrade::main(&args),
        Command::Doctor(args) => doctor::main(args),
        Command::Trust(args) => trust::main(args, Change::Install),
        Command::Untrust(args) => trust::main(args, Change::Remove),
        Command::Man(args) => man::main(args),
        Command::HashPassword(args) => hash_password::main(&args),
        Command::Schema(args) => schema::main(&args),
        Command::Completions(args) => completions::main(args),
    }
}

impl ConfigArgs {
    /// The file to read, or a message that says where none was found.
    fn file(self) -> Result<PathBuf, String> {
        self.config
            .or_else(crate::config::default_path)
            .ok_or_else(|| {
                "no configuration: neither ./config/perennial.toml nor \
             /etc/perennial/perennial.toml exists; name one with --config, or try \
             `perennial proxy example.com=127.0.0.1:3000`"
                    .to_owned()
            })
    }
}
