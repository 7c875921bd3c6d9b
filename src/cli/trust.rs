//! `perennial trust` and `perennial untrust`.

use std::path::PathBuf;
use std::process::ExitCode;

use super::{ConfigArgs, EXIT_USAGE};
use crate::config::Config;
use crate::local_ca::trust_store::{Change, Root, change_nss, change_system, lacks_certutil};
use crate::store::StateDir;

#[derive(Debug, clap::Args)]
pub(super) struct TrustArgs {
    /// The root certificate [default: that of the internal CA in the state directory]
    file: Option<PathBuf>,
    /// Print the root certificate (PEM), for other machines, and change nothing
    #[arg(long)]
    print: bool,
    /// The state directory, instead of the one of the configuration
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    #[command(flatten)]
    config: ConfigArgs,
}

pub(super) fn main(args: TrustArgs, change: Change) -> ExitCode {
    let print = args.print;
    let path = match args.root_path() {
        Ok(path) => path,
        Err(message) => {
            eprintln!("{message}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    let root = match Root::read(&path) {
        Ok(root) => root,
        Err(error) => {
            let hint = match error.is_missing() {
                true => {
                    "; the internal CA makes its root when the first site with tls = \"internal\" \
                     is served"
                }
                false => "",
            };
            eprintln!("perennial: {error}{hint}");
            return ExitCode::FAILURE;
        }
    };
    if print {
        print!("{}", root.pem);
        eprintln!("{}, SHA-256 {}", root.name, root.fingerprint);
        return ExitCode::SUCCESS;
    }
    apply(&root, change)
}

impl TrustArgs {
    fn root_path(self) -> Result<PathBuf, String> {
        if let Some(file) = self.file {
            return Ok(file);
        }
        let state_dir = match self.state_dir {
            Some(dir) => dir,
            None => {
                let file = self.config.file()?;
                let config = Config::load(&file).map_err(|error| error.to_string())?;
                config.server.state_dir
            }
        };
        Ok(StateDir::at(state_dir).local_ca_dir().join("root.pem"))
    }
}

fn apply(root: &Root, change: Change) -> ExitCode {
    let verb = match change {
        Change::Install => "trusted",
        Change::Remove => "no longer trusted",
    };
    println!("{}, SHA-256 {}", root.name, root.fingerprint);
    let mut failed = false;
    match change_system(root, change) {
        Ok(Some(what)) => println!("{verb} by the system: {what}"),
        Ok(None) => println!("{verb} by the system already"),
        Err(error) => {
            failed = true;
            eprintln!("perennial: {error}");
        }
    }
    for changed in change_nss(root, change) {
        match changed {
            Ok(store) => println!("{verb} by the browser's store {store}"),
            Err(error) => {
                failed = true;
                eprintln!("perennial: {error}");
            }
        }
    }
    if lacks_certutil() {
        println!("browsers have stores of their own; certutil (libnss3-tools) would change them");
    }
    match failed {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    }
}
