//! `perennial certs import`.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use rustix::process::{Gid, Uid};

use super::{ConfigArgs, EXIT_USAGE};
use crate::config::Config;
use crate::import::{self, Client, Directories, Item, Outcome};
use crate::store::StateDir;

#[derive(Debug, clap::Args)]
pub(super) struct ImportArgs {
    /// Whose files they are
    #[arg(value_enum)]
    client: ClientName,
    /// Where that client keeps them, such as /etc/letsencrypt
    dir: PathBuf,
    /// Say what would be taken over, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Write here instead of into the state_dir of the configuration
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Directory URL of a CA that is neither well known nor in the configuration
    #[arg(long, value_name = "URL")]
    ca: Vec<String>,
    #[command(flatten)]
    config: ConfigArgs,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum ClientName {
    Certbot,
    Lego,
    #[value(name = "acme.sh")]
    AcmeSh,
    Caddy,
}

impl From<ClientName> for Client {
    fn from(name: ClientName) -> Client {
        match name {
            ClientName::Certbot => Client::Certbot,
            ClientName::Lego => Client::Lego,
            ClientName::AcmeSh => Client::AcmeSh,
            ClientName::Caddy => Client::Caddy,
        }
    }
}

pub(super) fn main(args: ImportArgs) -> ExitCode {
    let (json, dry_run) = (args.json, args.dry_run);
    let (root, directories) = match target(args.state_dir, args.config, args.ca) {
        Ok(target) => target,
        Err(message) => {
            eprintln!("{message}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    match import(args.client.into(), &args.dir, &root, directories, dry_run) {
        Ok(items) => report(&items, json),
        Err(message) => {
            eprintln!("perennial: {message}");
            ExitCode::FAILURE
        }
    }
}

/// The state directory to write to, and the CAs that are known by their URL.
fn target(
    state_dir: Option<PathBuf>,
    config: ConfigArgs,
    mut known: Vec<String>,
) -> Result<(PathBuf, Directories), String> {
    let file = match (config.file(), &state_dir) {
        (Ok(file), _) => Some(file),
        (Err(_), Some(_)) => None,
        (Err(error), None) => {
            return Err(format!("{error}; or name the directory with --state-dir"));
        }
    };
    let config = file.map(|file| Config::load(&file).map_err(|error| error.to_string()));
    let config = config.transpose()?;
    let configured = config.iter().flat_map(|config| &config.acme.authorities);
    known.extend(configured.map(|authority| authority.directory.clone()));
    let first = config.iter().find_map(|it| it.acme.authorities.first());
    let directories = Directories {
        configured: known,
        key_type: first
            .map(|authority| authority.key_type)
            .unwrap_or_default(),
    };
    let configured = config.map(|config| config.server.state_dir);
    let root = state_dir.or(configured).unwrap_or_default();
    Ok((root, directories))
}

fn import(
    client: Client,
    dir: &Path,
    root: &Path,
    directories: Directories,
    dry_run: bool,
) -> Result<Vec<Item>, String> {
    let found = import::read(client, dir)?;
    if dry_run {
        return Ok(import::write(found, &StateDir::at(root), directories, true));
    }
    become_owner(root)?;
    let state = StateDir::open(root).map_err(|error| error.to_string())?;
    let lock = state.try_lock_writer().map_err(|error| error.to_string())?;
    let Some(_lock) = lock else {
        return Err(format!(
            "a running perennial orders and writes into {}, and two would write over each other; \
             nothing was changed: stop it, import, and start it again (--dry-run works beside it)",
            root.display()
        ));
    };
    Ok(import::write(found, &state, directories, false))
}

/// Other clients' files may be root's alone to read, and what is written has to be the service's
/// own: root reads, and from here on this thread is the owner of the state directory.
pub(super) fn become_owner(root: &Path) -> Result<(), String> {
    use rustix::thread::{set_thread_gid, set_thread_groups, set_thread_uid};
    let Ok(owner) = std::fs::metadata(root) else {
        return Ok(());
    };
    if !rustix::process::geteuid().is_root() || owner.uid() == 0 {
        return Ok(());
    }
    set_thread_groups(&[])
        .and_then(|()| set_thread_gid(Gid::from_raw(owner.gid())))
        .and_then(|()| set_thread_uid(Uid::from_raw(owner.uid())))
        .map_err(|error| format!("cannot write as the owner of {}: {error}", root.display()))
}

fn report(items: &[Item], json: bool) -> ExitCode {
    if json {
        match serde_json::to_string_pretty(items) {
            Ok(text) => println!("{text}"),
            Err(error) => eprintln!("perennial: {error}"),
        }
    } else {
        items.iter().for_each(print);
    }
    let failed = items.iter().filter(|item| item.outcome == Outcome::Failed);
    if items.is_empty() && !json {
        println!("there is neither an account nor a certificate");
    }
    match failed.count() {
        0 => ExitCode::SUCCESS,
        failed => {
            eprintln!(
                "perennial: {failed} of {} could not be taken over",
                items.len()
            );
            ExitCode::FAILURE
        }
    }
}

fn print(item: &Item) {
    println!("{:12} {}", item.outcome.as_str(), item.what);
    println!("             from {}", item.from.display());
    if let Some(to) = &item.to {
        println!("             to   {}", to.display());
    }
    if let Some(cause) = &item.cause {
        println!("             {cause}");
    }
}
