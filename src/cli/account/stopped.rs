//! The account of a perennial that does not run: changed in its state directory, under the lock that
//! keeps a running one out meanwhile.

use std::path::{Path, PathBuf};

use super::{CaArgs, Change, Changed};
use crate::acme::account::{Authority, slug};
use crate::acme::error::AcmeError;
use crate::cli::admin_client::{AdminArgs, AdminClientError};
use crate::cli::import::become_owner;
use crate::clock;
use crate::config::{AdminListen, CertificateAuthority, Config};
use crate::store::{StateDir, StoreError};

/// Why it cannot be changed; nothing was.
#[derive(Debug, thiserror::Error)]
pub(super) enum StoppedError {
    #[error(
        "{unanswered}; where none runs, its configuration says where the account is: {cause}; or \
         name its directory with --state-dir"
    )]
    NoConfiguration {
        unanswered: AdminClientError,
        cause: String,
    },
    #[error("{0}")]
    Configuration(String),
    #[error("--ca {url:?}: {cause}")]
    Url { url: String, cause: String },
    #[error("no CA of the configuration has the directory URL {0}")]
    UnknownCa(String),
    #[error("{} is no state directory: nothing was ever ordered there", .0.display())]
    NoState(PathBuf),
    #[error("{unanswered}; one that runs has the lock on {}: {remedy}, or stop it first", root.display())]
    Running {
        unanswered: AdminClientError,
        root: PathBuf,
        remedy: String,
    },
    #[error("{0}")]
    Owner(String),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot start: {0}")]
    Runtime(std::io::Error),
    #[error(transparent)]
    Refused(#[from] AcmeError),
}

/// Where the account is, and who has to be asked about it.
struct Stopped {
    root: PathBuf,
    authority: CertificateAuthority,
    /// Of the configuration, if there is one.
    admin: Option<AdminListen>,
}

/// As the admin API of a running one, which has not answered.
pub(super) fn change(
    args: CaArgs,
    change: Change,
    unanswered: AdminClientError,
) -> Result<Changed, StoppedError> {
    let (stopped, unanswered) = find(args, unanswered)?;
    if !StateDir::at(&stopped.root).accounts_dir().is_dir() {
        return Err(StoppedError::NoState(stopped.root));
    }
    become_owner(&stopped.root).map_err(StoppedError::Owner)?;
    let state = StateDir::open(&stopped.root)?;
    let Some(_lock) = state.try_lock_writer()? else {
        return Err(StoppedError::Running {
            unanswered,
            remedy: remedy(stopped.admin.as_ref()),
            root: stopped.root,
        });
    };
    let authority = Authority::open(&state, stopped.authority, true, clock::now())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(StoppedError::Runtime)?;
    let account = runtime.block_on(async {
        match change {
            Change::Rollover => authority.roll_over().await,
            Change::Deactivate => authority.deactivate().await,
        }
    })?;
    let ca = authority.url().to_owned();
    Ok(Changed { ca, account })
}

fn find(
    args: CaArgs,
    unanswered: AdminClientError,
) -> Result<(Stopped, AdminClientError), StoppedError> {
    let config = match (args.config.file(), &args.state_dir) {
        (Ok(file), _) => Some(load(&file)?),
        (Err(_), Some(_)) => None,
        (Err(cause), None) => return Err(StoppedError::NoConfiguration { unanswered, cause }),
    };
    let (configured, admin, mut authorities) = match config {
        Some(config) => {
            let server = config.server;
            let admin = Some(server.admin_listen);
            (Some(server.state_dir), admin, config.acme.authorities)
        }
        // As `perennial proxy` has it.
        None => (None, None, vec![of_url(args.ca.as_deref())?]),
    };
    let wanted = args.ca.as_deref().map(slug);
    let is_wanted = |it: &CertificateAuthority| {
        let wanted = wanted.as_ref();
        wanted.is_none_or(|wanted| slug(&it.directory) == *wanted)
    };
    let Some(place) = authorities.iter().position(is_wanted) else {
        return Err(StoppedError::UnknownCa(args.ca.unwrap_or_default()));
    };
    let stopped = Stopped {
        root: args.state_dir.or(configured).unwrap_or_default(),
        authority: authorities.swap_remove(place),
        admin,
    };
    Ok((stopped, unanswered))
}

fn load(file: &Path) -> Result<Config, StoppedError> {
    Config::load(file).map_err(|error| StoppedError::Configuration(error.to_string()))
}

fn of_url(url: Option<&str>) -> Result<CertificateAuthority, StoppedError> {
    let mut authority = CertificateAuthority::lets_encrypt();
    if let Some(url) = url {
        let set = authority.set_directory(url);
        set.map_err(|cause| StoppedError::Url {
            url: url.to_owned(),
            cause,
        })?;
    }
    Ok(authority)
}

/// What lets a running one be asked.
fn remedy(listen: Option<&AdminListen>) -> String {
    match listen.map(|listen| (listen, AdminArgs::of(listen))) {
        Some((_, Some(admin))) => format!("name its admin API, --admin {}", admin.address()),
        Some((_, None)) => "its admin API is off: set `admin_listen` in [server]".to_owned(),
        None => "name its admin API with --admin".to_owned(),
    }
}
