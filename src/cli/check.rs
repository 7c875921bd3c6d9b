//! `perennial check`.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use super::{ConfigArgs, EXIT_USAGE};
use crate::acme::account::on_record;
use crate::acme::public_cas;
use crate::acme::subject::{takeover_hosts, tls_hosts};
use crate::app::tls_files;
use crate::certificate::attention::Attention;
use crate::certificate::certified_key::CertifiedKey;
use crate::certificate::folder;
use crate::certificate::inventory::{EntryId, Inventory};
use crate::certificate::table::{LiveCertificate, SourceKind};
use crate::certificate::unit::{self, Finding};
use crate::clock;
use crate::config::{self, Config, Site};
use crate::listener::sockets;

#[derive(Debug, clap::Args)]
pub(super) struct CheckArgs {
    #[command(flatten)]
    config: ConfigArgs,
}

pub(super) fn main(args: CheckArgs) -> ExitCode {
    match check(args.config) {
        Ok((summary, warnings)) => {
            println!("{summary}");
            for warning in warnings {
                eprintln!("warning: {warning}");
            }
            ExitCode::SUCCESS
        }
        Err(message) => {
            eprintln!("{message}");
            ExitCode::from(EXIT_USAGE)
        }
    }
}

/// Users and groups that this host does not have.
fn unknown_accounts(config: &Config) -> Vec<String> {
    let accounts = config.account_references.iter();
    accounts
        .filter_map(|account| {
            let error = sockets::account_id(account.kind, &account.name).err()?;
            Some(account.diagnostic(error.to_string()).to_string())
        })
        .collect()
}

/// The summary of a good configuration, and what to think about nevertheless.
fn check(args: ConfigArgs) -> Result<(String, Vec<String>), String> {
    let file = args.file()?;
    let config = Config::load(&file).map_err(|error| error.to_string())?;
    let missing = config::check_files(&config);
    if !missing.is_empty() {
        return Err(missing.to_string());
    }
    let strangers = unknown_accounts(&config);
    if !strangers.is_empty() {
        return Err(strangers.join("\n"));
    }
    let refused = public_cas::objections(&config, |directory| may_have_account(&config, directory));
    if !refused.is_empty() {
        return Err(refused.to_string());
    }
    let mut inventory = Inventory::new(None);
    let mut wrong = load_pairs(&config, &mut inventory);
    wrong.extend(wrong_tls_files(&config));
    if !wrong.is_empty() {
        return Err(wrong.join("\n"));
    }
    let hosts: usize = config.sites.iter().map(count_hosts).sum();
    let summary = format!("{}: valid ({hosts} host(s))", file.display());
    load_folders(&config, &mut inventory);
    Ok((summary, warnings(&config, &inventory)))
}

/// Where that cannot be read, by a user who is not the server's, there may be one.
fn may_have_account(config: &Config, directory: &str) -> bool {
    let known = on_record(&config.server.state_dir, directory);
    known.map_or(true, |known| known.account.is_some())
}

fn count_hosts(site: &Site) -> usize {
    site.hosts.len() + usize::from(site.any_host)
}

fn warnings(config: &Config, inventory: &Inventory) -> Vec<String> {
    let attention = Attention::of(
        &inventory.entries(),
        &tls_hosts(config).collect(),
        &takeover_hosts(config).collect(),
        &config.certificates.directories,
        clock::now(),
    );
    attention.warnings()
}

fn load(id: EntryId, private_key: Option<&Path>, key: CertifiedKey, inventory: &mut Inventory) {
    let now = clock::now();
    let live = LiveCertificate {
        key,
        source: id.source,
        path: id.certificate.clone(),
        private_key: private_key.map(Arc::from),
        loaded_at: now,
        changed_at: now,
        asked: Default::default(),
    };
    inventory.loaded(&id, Arc::new(live), now);
}

/// What the drop folders hold, as far as it is good; the rest is no mistake of the configuration.
fn load_folders(config: &Config, inventory: &mut Inventory) {
    let now = clock::now();
    for directory in &config.certificates.directories {
        for (task, finding) in folder::read_once(directory, now) {
            if let Finding::Good { key, .. } = finding {
                load(task.id, task.private_key.as_deref(), *key, inventory);
            }
        }
    }
}

/// Loads the explicit pairs. Those that could not be served come back: what the reloader would say
/// of them, each at the place that names the file at fault.
fn load_pairs(config: &Config, inventory: &mut Inventory) -> Vec<String> {
    let now = clock::now();
    let pairs = config.certificates.files.iter();
    pairs
        .filter_map(|pair| {
            let read = unit::read_pair(
                &pair.certificate,
                &pair.private_key,
                pair.password_file.as_deref(),
                now,
            );
            let id = EntryId {
                source: SourceKind::File,
                certificate: pair.certificate.as_path().into(),
            };
            read.map(|key| load(id, Some(&pair.private_key), key, inventory))
                .err()
        })
        .map(|(path, cause)| at_its_place(config, &path, &cause))
        .collect()
}

/// The same for the other TLS files.
fn wrong_tls_files(config: &Config) -> Vec<String> {
    let wrong = tls_files::wrong(config).into_iter();
    wrong
        .map(|(path, cause)| at_its_place(config, &path, &cause))
        .collect()
}

fn at_its_place(config: &Config, path: &Path, cause: &str) -> String {
    let message = format!("{} {cause}", path.display());
    let mut references = config.file_references.iter();
    match references.find(|reference| reference.path == path) {
        Some(reference) => reference.diagnostic(message, None).to_string(),
        None => message,
    }
}
