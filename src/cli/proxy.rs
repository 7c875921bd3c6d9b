//! `perennial proxy`.

use std::path::PathBuf;
use std::process::ExitCode;

use super::{EXIT_USAGE, logging, run};
use crate::config::{CommandLine, Config};

#[derive(Debug, clap::Args)]
pub(super) struct ProxyArgs {
    /// A host and where its requests go: host:port, a port of this host, https://host:port,
    /// unix:/path, respond:TEXT, or a folder of files, as /path or ./path. The same host again adds
    /// an upstream, HOST/path/* a route
    #[arg(value_name = "SITE=UPSTREAM", required = true)]
    sites: Vec<String>,
    /// Listen here for HTTP [default: [::]:80]
    #[arg(long, value_name = "ADDRESS")]
    http_listen: Vec<String>,
    /// Listen here for HTTPS [default: [::]:443]
    #[arg(long, value_name = "ADDRESS")]
    https_listen: Vec<String>,
    /// Listen here for the admin API: a loopback address, unix:/path or off [default: 127.0.0.1:2019]
    #[arg(long, value_name = "ADDRESS")]
    admin_listen: Option<String>,
    /// Keep accounts, keys and certificates here [default: /var/lib/perennial]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// The ACME CA's directory [default: Let's Encrypt]
    #[arg(long, value_name = "URL")]
    acme_directory: Option<String>,
    /// Further roots to trust for the CA's own HTTPS (PEM)
    #[arg(long, value_name = "FILE")]
    acme_ca_certificate: Option<PathBuf>,
    /// Where the CA can write to about your certificates
    #[arg(long)]
    email: Option<String>,
    /// Use the internal CA for all sites
    #[arg(long)]
    internal: bool,
    #[command(flatten)]
    log: logging::LogArgs,
}

pub(super) fn main(args: ProxyArgs) -> ExitCode {
    let command_line = CommandLine {
        sites: args.sites,
        http_listen: args.http_listen,
        https_listen: args.https_listen,
        admin_listen: args.admin_listen,
        state_dir: args.state_dir,
        acme_directory: args.acme_directory,
        acme_ca_certificate: args.acme_ca_certificate,
        email: args.email,
        internal: args.internal,
    };
    let predecessor = match run::predecessor() {
        Ok(predecessor) => predecessor,
        Err(code) => return code,
    };
    match Config::from_command_line(command_line) {
        Ok(config) => {
            let log = logging::start(&args.log, config.server.log_level);
            run::serve(config, None, log, predecessor)
        }
        Err(diagnostics) => {
            eprintln!("{diagnostics}");
            ExitCode::from(EXIT_USAGE)
        }
    }
}
