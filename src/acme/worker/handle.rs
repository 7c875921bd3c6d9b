//! The way to a running worker and what it answers: what is known about each certificate, and what
//! follows from a request to renew one. It passes on and never decides.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use time::OffsetDateTime;
use tokio::sync::{mpsc, oneshot};

use super::cleanup::Deleted;
use super::revoke::{RevocationAnswer, RevocationReply};
use crate::acme::account::revocation::RevocationReason;
use crate::acme::error::ErrorReport;
use crate::acme::preflight::Check;
use crate::acme::queue::{Lane, LaneReport, Priority};
use crate::acme::renewal::IssuerKind;
use crate::acme::subject::{Assignment, Subject};
use crate::certificate::name::Name;
use crate::clock;

/// Requests from people that wait for the worker; more than that and they wait themselves.
const COMMAND_QUEUE: usize = 64;

/// What is known about one certificate, for `/status`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubjectStatus {
    pub name: Name,
    pub names: Vec<Name>,
    pub issuer: IssuerKind,
    /// Directory URL of the CA that is next in turn; `None` for the internal CA.
    pub ca: Option<String>,
    /// Of the certificate on disk.
    pub not_after: Option<OffsetDateTime>,
    pub next_renewal: Option<OffsetDateTime>,
    /// Set while a failed attempt keeps the next one waiting.
    pub next_attempt: Option<OffsetDateTime>,
    pub last_error: Option<String>,
    /// Failures in a row.
    pub attempts: u32,
    /// The CA's explanation of its suggested renewal (RFC 9773).
    pub explanation_url: Option<String>,
    /// Until when certificates from files make this one unnecessary.
    pub covered_by_files_until: Option<OffsetDateTime>,
    /// Whether an order or a question to the CA runs now.
    pub running: bool,
    /// Where it waits for its turn, and how urgently.
    pub queued: Option<(Lane, Priority)>,
    /// That the certificate is revoked, why, and who says so.
    pub revoked: Option<String>,
    /// Why it is not known whether it is revoked.
    pub revocation_error: Option<String>,
    /// The last error taken apart, where it is the CA's.
    pub error: Option<Box<ErrorReport>>,
    /// What was seen before the first order, worst first.
    pub preflight: Vec<Check>,
    /// Whether a client asked for it; no site names it.
    pub on_demand: bool,
}

impl SubjectStatus {
    /// Whether there should be another certificate by now.
    fn is_needed_at(&self, now: OffsetDateTime) -> bool {
        let due = self.next_renewal.is_some_and(|at| at <= now);
        let missing = self.not_after.is_none_or(|until| until <= now);
        self.covered_by_files_until.is_none() && (missing || due)
    }
}

/// How a renewal is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenewMode {
    /// Order now, whatever the dates and the failures say.
    Force,
    /// Ask the CA for its renewal information now, and order if that or the dates say so.
    IfDue,
}

/// What follows from a request to renew; the order itself goes on behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Ordering {
        reason: &'static str,
    },
    /// An order or a question to the CA runs already.
    InProgress,
    NotDue {
        next_renewal: OffsetDateTime,
        explanation_url: Option<String>,
    },
    /// Due, but failures or the CA's own wish keep the attempt waiting.
    Waiting {
        until: OffsetDateTime,
    },
    CoveredByFiles {
        until: OffsetDateTime,
    },
}

/// Why a request to renew cannot be followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RenewError {
    #[error("{0} is no certificate of ours: it comes from files, or no site has it")]
    UnknownName(Name),
    #[error("{0}")]
    Refused(String),
    #[error(
        "no CA of the configuration has this directory; [acme] and [[acme.fallback]] name them"
    )]
    UnknownCa,
    #[error("another process writes to this state directory; ask that one")]
    NotWriter,
    #[error("nothing can be written to the state directory, so nothing is ordered: {0}")]
    Unwritable(String),
    #[error("the certificates are still being loaded; ask again in a moment")]
    Loading,
    #[error("the worker has stopped")]
    Stopped,
}

/// Why there is no certificate for a name that a client asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{cause}")]
pub struct Unserved {
    pub cause: String,
    /// When the next attempt may be made, where that is known.
    pub until: Option<OffsetDateTime>,
}

impl Unserved {
    pub(super) fn stopped() -> Unserved {
        Unserved {
            cause: RenewError::Stopped.to_string(),
            until: None,
        }
    }
}

pub(super) enum Command {
    Renew {
        name: Name,
        mode: RenewMode,
        reply: oneshot::Sender<Result<Decision, RenewError>>,
    },
    /// A client asked for a name.
    Demand {
        subject: Box<Subject>,
        reply: oneshot::Sender<Result<(), Unserved>>,
    },
    Reassign(Box<Assignment>),
    Account {
        /// As [`slug`](crate::acme::account::slug) makes it; `None`: the first.
        ca: Option<String>,
        change: AccountChange,
        reply: oneshot::Sender<Result<AccountChanged, RenewError>>,
    },
    Preflight {
        name: Name,
        reply: oneshot::Sender<Result<Vec<Check>, RenewError>>,
    },
    Delete {
        name: Name,
        force: bool,
        reply: oneshot::Sender<Result<Deleted, RenewError>>,
    },
    Revoke {
        name: Name,
        reason: RevocationReason,
        reply: RevocationReply,
    },
}

/// What can be done to an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccountChange {
    /// A new key for it.
    RollOver,
    /// Its end.
    Deactivate,
}

/// The account that was changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccountChanged {
    /// Directory URL of its CA.
    pub ca: String,
    /// Its URL.
    pub account: String,
}

pub(super) type Statuses = Arc<Mutex<BTreeMap<u64, SubjectStatus>>>;
pub(super) type Lanes = Arc<Mutex<Vec<LaneReport>>>;
/// Why nobody can write to the state directory, where that is so.
pub(super) type Trouble = Arc<Mutex<Option<String>>>;

/// The way to a running worker. Cheap to clone.
#[derive(Clone)]
pub struct WorkerHandle {
    commands: mpsc::Sender<Command>,
    pub(super) statuses: Statuses,
    pub(super) lanes: Lanes,
    pub(super) trouble: Trouble,
}

impl WorkerHandle {
    /// A handle, and the worker's end of it.
    pub(super) fn new() -> (WorkerHandle, mpsc::Receiver<Command>) {
        let (commands, receiver) = mpsc::channel(COMMAND_QUEUE);
        let handle = WorkerHandle {
            commands,
            statuses: Statuses::default(),
            lanes: Lanes::default(),
            trouble: Trouble::default(),
        };
        (handle, receiver)
    }

    /// Asks for a renewal of the certificate that has `name`.
    pub async fn renew(&self, name: &Name, mode: RenewMode) -> Result<Decision, RenewError> {
        let (reply, answer) = oneshot::channel();
        let command = Command::Renew {
            name: name.clone(),
            mode,
            reply,
        };
        let sent = self.commands.send(command).await;
        sent.map_err(|_| RenewError::Stopped)?;
        answer.await.unwrap_or(Err(RenewError::Stopped))
    }

    /// Sees to a certificate that a client asks for: one that is valid is on disk when this
    /// returns, and is kept fresh for as long as it is asked for.
    pub async fn demand(&self, subject: Subject) -> Result<(), Unserved> {
        let (reply, answer) = oneshot::channel();
        let subject = Box::new(subject);
        let sent = self.commands.send(Command::Demand { subject, reply });
        sent.await.map_err(|_| Unserved::stopped())?;
        answer.await.unwrap_or_else(|_| Err(Unserved::stopped()))
    }

    /// Keeps a certificate that a client asked for fresh, for as long as it is asked for.
    pub async fn look_after(&self, subject: Subject) {
        let (reply, _) = oneshot::channel();
        let subject = Box::new(subject);
        // A worker that has stopped looks after nothing.
        let _ = self.commands.send(Command::Demand { subject, reply }).await;
    }

    /// Changes the account at a CA, once the orders that run there have ended. `ca`: its slug;
    /// `None`: the first.
    pub async fn change_account(
        &self,
        ca: Option<String>,
        change: AccountChange,
    ) -> Result<AccountChanged, RenewError> {
        let (reply, answer) = oneshot::channel();
        let sent = self.commands.send(Command::Account { ca, change, reply });
        sent.await.map_err(|_| RenewError::Stopped)?;
        answer.await.unwrap_or(Err(RenewError::Stopped))
    }

    /// Looks at all that an order of `name` depends on.
    pub async fn preflight(&self, name: &Name) -> Result<Vec<Check>, RenewError> {
        let (reply, answer) = oneshot::channel();
        let name = name.clone();
        let sent = self.commands.send(Command::Preflight { name, reply }).await;
        sent.map_err(|_| RenewError::Stopped)?;
        answer.await.unwrap_or(Err(RenewError::Stopped))
    }

    /// Takes the certificate that has `name` out of service; `force`: even if a site has it.
    pub async fn delete(&self, name: &Name, force: bool) -> Result<Deleted, RenewError> {
        let (reply, answer) = oneshot::channel();
        let command = Command::Delete {
            name: name.clone(),
            force,
            reply,
        };
        let sent = self.commands.send(command).await;
        sent.map_err(|_| RenewError::Stopped)?;
        answer.await.unwrap_or(Err(RenewError::Stopped))
    }

    /// Has the CA revoke the certificate that has `name`, and replaces it.
    pub async fn revoke(
        &self,
        name: &Name,
        reason: RevocationReason,
    ) -> Result<RevocationAnswer, RenewError> {
        let (reply, answer) = oneshot::channel();
        let command = Command::Revoke {
            name: name.clone(),
            reason,
            reply,
        };
        let sent = self.commands.send(command).await;
        sent.map_err(|_| RenewError::Stopped)?;
        answer.await.unwrap_or(Err(RenewError::Stopped))
    }

    /// Goes on with another assignment: what is the same in both is left alone.
    pub async fn reassign(&self, assignment: Assignment) {
        // A worker that has stopped needs none.
        let _ = self
            .commands
            .send(Command::Reassign(Box::new(assignment)))
            .await;
    }

    /// A snapshot, in the order of the assignment.
    pub fn status(&self) -> Vec<SubjectStatus> {
        let lanes = self.queue();
        let held = |status: &SubjectStatus| {
            let (lane, _) = status.queued.as_ref()?;
            let report = lanes.iter().find(|report| report.lane == *lane)?;
            report.held.clone()
        };
        let statuses = lock(&self.statuses);
        let each = statuses.values().cloned().map(|mut status| {
            if let Some((until, limit)) = held(&status) {
                status.next_attempt.get_or_insert(until);
                let text = || format!("order for {}: {limit}", status.name);
                status.last_error = status.last_error.or_else(|| Some(text()));
            }
            status
        });
        let trouble = lock(&self.trouble).clone();
        let Some(trouble) = trouble.map(|cause| RenewError::Unwritable(cause).to_string()) else {
            return each.collect();
        };
        let now = clock::now();
        let each = each.map(|mut status| {
            if status.is_needed_at(now) {
                status.last_error.get_or_insert_with(|| trouble.clone());
            }
            status
        });
        each.collect()
    }

    /// What somebody should know although everything that is there is served.
    pub fn warnings(&self) -> Vec<String> {
        let trouble = lock(&self.trouble).clone();
        let warning = trouble.map(|cause| RenewError::Unwritable(cause).to_string());
        warning.into_iter().collect()
    }

    /// What waits for its turn and what runs, by CA.
    pub fn queue(&self) -> Vec<LaneReport> {
        lock(&self.lanes).clone()
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Entries are replaced whole, so a panic cannot have left half of one.
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}
