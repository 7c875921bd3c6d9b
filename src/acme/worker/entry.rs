//! One certificate to see to and what the worker knows about it, from disk and from its own
//! attempts. It reads, and finishes what a crash interrupted; it sends nothing and decides nothing.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use time::OffsetDateTime;
use tokio::sync::oneshot;

use super::handle::{Decision, RenewError, Unserved};
use super::revoke::PendingRevocation;
use crate::acme::error::LastError;
use crate::acme::job::SharedLook;
use crate::acme::ledger::{Kind, Ledger, Outcome, StoredRevocation};
use crate::acme::order::{self, Histories, Unfinished};
use crate::acme::renewal::{Action, Attempts, Facts, IssuerKind, OrderReason, fraction};
use crate::acme::renewal_info::certificate_id;
use crate::acme::revocation::Named;
use crate::acme::subject::Subject;
use crate::clock;
use crate::store::generation::{self, Source, StoredCertificate};
use crate::store::{StateDir, StoreError};

/// One subject and what the worker knows about it.
pub(super) struct Entry {
    pub(super) subject: Subject,
    /// Who issues as things stand.
    pub(super) issuer: IssuerKind,
    pub(super) dir: PathBuf,
    /// `None` for the internal CA, which asks nobody.
    pub(super) ledger: Option<Arc<Ledger>>,
    pub(super) stored: Option<StoredCertificate>,
    /// The order on disk that the next one is to go on with.
    pub(super) unfinished: Option<Unfinished>,
    /// Where in the span that jitter has the renewal of `stored` is: see [`Jitter`].
    ///
    /// [`Jitter`]: crate::acme::renewal::Jitter
    pub(super) due_jitter: f64,
    /// Of `stored` (RFC 9773 section 4.1).
    pub(super) certificate_id: Option<String>,
    /// Where `stored` says that its revocation would be told.
    pub(super) named: Named,
    /// Attempts at the internal CA: they bother nobody, so a restart may forget them.
    pub(super) internal_attempts: Attempts,
    pub(super) running: bool,
    /// When it is looked at next; `None` while something runs.
    pub(super) timer: Option<OffsetDateTime>,
    /// Since when it waits for its turn.
    pub(super) waiting_since: Option<OffsetDateTime>,
    /// Somebody asked for an order, whatever the plan says.
    pub(super) forced: bool,
    /// Somebody asked to have the CA asked now.
    pub(super) ask_now: bool,
    /// Somebody asked whether it is due while the CA was being asked: the answer may be older.
    pub(super) ask_again: bool,
    /// Somebody waits for the decision that follows the running question.
    pub(super) reply: Option<oneshot::Sender<Result<Decision, RenewError>>>,
    /// What was seen before its first order.
    pub(super) look: SharedLook,
    /// Somebody waits for a revocation until what runs has ended.
    pub(super) revocation: Option<PendingRevocation>,
    pub(super) last_error: Option<LastError>,
    /// What cannot be ordered was said once.
    pub(super) refusal_logged: bool,
    /// A client asked for it by name; no site wants it by itself.
    pub(super) on_demand: bool,
    /// When permission to renew it was refused last.
    pub(super) withdrawn_at: Option<OffsetDateTime>,
    /// Handshakes that wait for it.
    pub(super) waiting: Vec<oneshot::Sender<Result<(), Unserved>>>,
}

/// What was read from disk for one subject.
pub(super) struct Loaded {
    pub(super) ledger: Option<Arc<Ledger>>,
    pub(super) stored: Option<StoredCertificate>,
    pub(super) unfinished: Option<Unfinished>,
    pub(super) error: Option<StoreError>,
    pub(super) completed: bool,
}

impl Entry {
    /// `before`: another subject that wrote to the same directory, whose job may still run.
    pub(super) fn new(subject: Subject, dir: PathBuf, before: Option<Entry>) -> Entry {
        let running = before.as_ref().is_some_and(|before| before.running);
        Entry {
            issuer: subject.issuer,
            subject,
            dir,
            ledger: before.and_then(|before| before.ledger),
            stored: None,
            unfinished: None,
            due_jitter: 0.0,
            certificate_id: None,
            named: Named::default(),
            internal_attempts: Attempts::default(),
            running,
            timer: None,
            waiting_since: None,
            forced: false,
            ask_now: false,
            ask_again: false,
            reply: None,
            look: SharedLook::default(),
            revocation: None,
            last_error: None,
            refusal_logged: false,
            on_demand: false,
            withdrawn_at: None,
            waiting: Vec::new(),
        }
    }

    pub(super) fn take_in(&mut self, loaded: Loaded) {
        if let Some(error) = &loaded.error {
            tracing::error!(name = %self.subject.name, "{error}");
        }
        self.ledger = loaded.ledger;
        self.unfinished = loaded.unfinished;
        let error = loaded.error.map(|error| error.to_string());
        self.last_error = error.map(LastError::from);
        self.set_stored(loaded.stored);
    }

    pub(super) fn set_stored(&mut self, stored: Option<StoredCertificate>) {
        let acme = stored
            .as_ref()
            .filter(|stored| stored.meta.source == Source::Acme);
        let id = acme.and_then(|stored| certificate_id(&stored.leaf.der));
        self.certificate_id = id.map(|id| id.to_string());
        self.named = acme.map_or_else(Named::default, |stored| Named::of(&stored.leaf.der));
        self.stored = stored;
        // Here, because a decision is made often, and a digest is most of what it would cost.
        let (name, serial) = (&self.subject.name, self.serial());
        self.due_jitter = fraction(&format!("due {name} {serial:?}"));
    }

    /// What was wrong is over.
    pub(super) fn succeeded(&mut self) {
        self.internal_attempts = Attempts::default();
        self.unfinished = None;
        self.last_error = None;
        self.forced = false;
        self.ask_again = false;
    }

    pub(super) fn serial(&self) -> Option<&str> {
        self.stored
            .as_ref()
            .map(|stored| stored.leaf.serial.as_str())
    }

    /// Whether the CA that issued the certificate takes it for what an order `replaces`: whoever
    /// says anything about its renewal does, unless it has refused that before.
    pub(super) fn can_be_replaced(&self) -> bool {
        let known = self.ledger.as_ref().zip(self.certificate_id.as_ref());
        known.is_some_and(|(ledger, id)| {
            let is_told = ledger.read_renewal_info(id, |it| it.supported);
            is_told == Some(true) && !ledger.is_refused_predecessor(id)
        })
    }

    /// Whether the CA has refused to take the certificate for what an order replaces.
    pub(super) fn is_refused_predecessor(&self) -> bool {
        let known = self.ledger.as_ref().zip(self.certificate_id.as_ref());
        known.is_some_and(|(ledger, id)| ledger.is_refused_predecessor(id))
    }

    /// Where its certificates are: its own directory, and that of a predecessor with another type
    /// of key.
    pub(super) fn directories(&self) -> Vec<PathBuf> {
        let stored = self.stored.as_ref();
        let elsewhere = stored.and_then(|stored| stored.path.parent());
        let elsewhere = elsewhere.filter(|dir| *dir != self.dir);
        [Some(self.dir.as_path()), elsewhere]
            .into_iter()
            .flatten()
            .map(Path::to_owned)
            .collect()
    }

    /// The CA's explanation of the renewal that it suggests.
    pub(super) fn explanation_url(&self) -> Option<String> {
        let (ledger, id) = self.ledger.as_ref().zip(self.certificate_id.as_ref())?;
        ledger
            .read_renewal_info(id, |info| info.explanation_url.clone())
            .flatten()
    }

    /// That what is stored is revoked, as far as we know.
    pub(super) fn known_revocation(&self) -> Option<StoredRevocation> {
        self.ledger.as_ref()?.revocation(self.serial()?)
    }

    /// What is planned, or the order that somebody asked for.
    pub(super) fn forced_action(
        &self,
        planned: Action,
        facts: &Facts,
        now: OffsetDateTime,
    ) -> Action {
        if !self.forced {
            return planned;
        }
        let alive = facts
            .stored
            .as_ref()
            .is_some_and(|stored| now < stored.not_after);
        match planned {
            order @ Action::Order { .. } => order,
            _ => Action::Order {
                reason: OrderReason::Requested,
                replaces: alive && self.issuer == IssuerKind::Acme,
            },
        }
    }
}

/// What to read for one subject.
pub(super) struct Load {
    pub(super) subject: Subject,
    pub(super) dir: PathBuf,
    pub(super) ledger: Option<Arc<Ledger>>,
    /// Where what a crash interrupted is noted; `None`: it may not be finished here.
    pub(super) histories: Option<Arc<Histories>>,
}

impl Load {
    /// Blocks on the disk.
    pub(super) fn read(self, state: &StateDir) -> Loaded {
        let (subject, now) = (&self.subject, clock::now());
        let is_acme = subject.may_be_issued_by(IssuerKind::Acme);
        let mut loaded = Loaded {
            ledger: self.ledger,
            stored: None,
            unfinished: None,
            error: None,
            completed: false,
        };
        if is_acme && loaded.ledger.is_none() {
            match Ledger::of_subject(state, &subject.name, subject.key_type, now) {
                Ok(ledger) => loaded.ledger = Some(Arc::new(ledger)),
                Err(error) => loaded.error = Some(error),
            }
        }
        if let Some(histories) = self.histories.as_deref().filter(|_| is_acme) {
            order::make_known(&self.dir, histories);
            let ledger = loaded.ledger.as_deref();
            loaded.completed = complete(subject, &self.dir, ledger, histories, now);
        }
        if is_acme {
            loaded.unfinished = order::unfinished(&self.dir, &subject.names, subject.key_type);
        }
        match generation::read_current(&self.dir) {
            Ok(Some(stored)) => loaded.stored = Some(stored),
            Ok(None) => loaded.stored = is_acme.then(|| predecessor(&self.dir, now)).flatten(),
            Err(error @ StoreError::Broken { .. }) => {
                tracing::error!(name = %subject.name, "{error}; a new one is made");
            }
            Err(error) => {
                // What cannot be read may be good: nothing is ordered in its place.
                loaded.ledger = None;
                loaded.error = Some(error);
            }
        }
        loaded
    }
}

/// With another type of key, from a CA, and still valid: it is what the first one of this type
/// replaces.
fn predecessor(dir: &Path, now: OffsetDateTime) -> Option<StoredCertificate> {
    generation::read_beside(dir)
        .filter(|stored| stored.meta.source == Source::Acme && now < stored.leaf.not_after)
}

/// Finishes an order that a crash interrupted after the certificate was fetched.
fn complete(
    subject: &Subject,
    dir: &Path,
    ledger: Option<&Ledger>,
    histories: &Histories,
    now: OffsetDateTime,
) -> bool {
    order::discard_key(dir, histories, now, |serial| {
        let revocation = ledger.and_then(|ledger| ledger.revocation(serial));
        revocation.is_some_and(|it| it.ends_key())
    });
    let (names, key_type) = (&subject.names, subject.key_type);
    let issued = order::complete_pending(dir, names, key_type, histories, now);
    let (Some(issued), Some(ledger)) = (issued, ledger) else {
        return false;
    };
    let last = ledger.last(Kind::Order);
    let ca = last.as_ref().map_or("", |record| record.ca.as_str());
    let reason = last.as_ref().and_then(|record| record.reason.as_deref());
    let recorded = ledger
        .begin(Kind::Order, ca, reason, now)
        .and_then(|attempt| ledger.finish(attempt, Outcome::Ok, &[], now));
    if let Err(error) = recorded {
        tracing::warn!(%error, "cannot record the end of an interrupted order");
    }
    tracing::info!(
        names = ?issued.leaf.names,
        serial = issued.leaf.serial,
        not_after = clock::rfc3339(issued.leaf.not_after),
        "finished an interrupted order"
    );
    true
}
