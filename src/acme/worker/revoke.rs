//! What people ask of the worker: an end of a certificate before its time. What is served stays
//! served until its successor is there, which is ordered as soon as the CA has confirmed.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::Worker;
use super::handle::{Decision, RenewError};
use crate::acme::account::revocation::{Revocation, RevocationReason, revoke_stored};
use crate::acme::account::{Authority, blocking};
use crate::acme::job::Done;
use crate::acme::ledger::{Ledger, StoredRevocation};
use crate::certificate::name::Name;
use crate::clock;
use crate::store::generation::{self, Source, StoredCertificate};
use crate::store::sweep::directories_of;
use crate::store::{StateDir, key_type_from_name};

/// What is told to whoever asked.
#[derive(Clone, Debug)]
pub struct RevocationAnswer {
    pub revocation: Revocation,
    /// What follows; `None` where no site has the certificate, so that nothing replaces it.
    pub next: Option<Decision>,
}

pub(in crate::acme) type RevocationReply = oneshot::Sender<Result<RevocationAnswer, RenewError>>;

/// A revocation that runs.
pub(super) struct RevocationJob {
    authority: Arc<Authority>,
    stored: StoredCertificate,
    ledger: Arc<Ledger>,
    reason: RevocationReason,
}

/// A revocation that waits for what runs for the same certificate.
pub(super) struct PendingRevocation {
    /// Of the certificate that it is about; `None`: the first one, which is served a moment before
    /// its order has ended.
    serial: Option<String>,
    reason: RevocationReason,
    reply: RevocationReply,
}

impl RevocationJob {
    async fn run(self) -> Result<Revocation, RenewError> {
        let revoked = revoke_stored(&self.authority, &self.stored, self.reason).await;
        let revocation = revoked.map_err(|error| RenewError::Refused(error.to_string()))?;
        let note = StoredRevocation {
            serial: revocation.serial.clone(),
            found_at: clock::now(),
            source: None,
            reason: Some(self.reason.as_str().to_owned()),
        };
        let ledger = self.ledger;
        let noted = blocking(move || ledger.set_revocation(note)).await;
        if let Err(error) = noted {
            // This process knows it; after a restart the CA's renewal information tells.
            tracing::error!(%error, "cannot record a revocation");
        }
        tracing::warn!(
            names = ?revocation.names,
            serial = revocation.serial,
            ca = revocation.ca,
            reason = self.reason.as_str(),
            by = revocation.revoked.by.as_str(),
            "certificate revoked"
        );
        Ok(revocation)
    }
}

impl Worker {
    /// Starts a revocation, or says why there is none.
    pub(super) async fn revoke(
        &mut self,
        name: Name,
        reason: RevocationReason,
        reply: RevocationReply,
    ) {
        self.recall(&name).await;
        match self.desk.by_name(&name) {
            _ if self.lock.is_none() => {
                // Whoever asked may have gone.
                let _ = reply.send(Err(self.desk.not_writer()));
            }
            Some(id) => self.revoke_of_entry(id, reason, reply),
            None => {
                let job = self.revocation_of_unused(&name, reason).await;
                tokio::spawn(async move {
                    let answer = match job {
                        Ok(job) => job.run().await,
                        Err(error) => Err(error),
                    };
                    let answer = answer.map(|revocation| RevocationAnswer {
                        revocation,
                        next: None,
                    });
                    let _ = reply.send(answer);
                });
            }
        }
    }

    fn revoke_of_entry(&mut self, id: u64, reason: RevocationReason, reply: RevocationReply) {
        let Some(entry) = self.desk.entry_mut(id) else {
            let _ = reply.send(Err(RenewError::Stopped));
            return;
        };
        let name = entry.subject.name.clone();
        let job = match (&entry.stored, entry.running) {
            (None, false) => Err(RenewError::Refused(nothing_stored(&name))),
            (_, true) if entry.revocation.is_some() => Err(RenewError::Refused(format!(
                "a revocation of the certificate for {name} is asked for already"
            ))),
            (stored, true) => {
                let serial = stored.as_ref().map(|stored| stored.leaf.serial.clone());
                entry.revocation = Some(PendingRevocation {
                    serial,
                    reason,
                    reply,
                });
                return;
            }
            (Some(stored), false) => {
                let (stored, ledger) = (stored.clone(), entry.ledger.clone());
                self.revocation(&name, stored, reason, ledger)
            }
        };
        match job {
            Ok(job) => self.spawn_beside(id, async move {
                Done::Revoked {
                    result: Box::new(job.run().await),
                    reply,
                }
            }),
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    /// What ran has ended. If it was an order, what was to be revoked has a successor that nobody
    /// has spoken of.
    pub(super) fn resume_revocation(&mut self, id: u64) {
        let Some(entry) = self.desk.entry_mut(id) else {
            return;
        };
        let Some(pending) = entry.revocation.take() else {
            return;
        };
        let same = pending.serial.as_deref() == entry.serial();
        if same || pending.serial.is_none() {
            return self.revoke_of_entry(id, pending.reason, pending.reply);
        }
        let text = format!(
            "the certificate for {} has just been replaced, and nothing was revoked; ask again to \
             revoke the new one",
            entry.subject.name
        );
        let _ = pending.reply.send(Err(RenewError::Refused(text)));
    }

    /// Of a certificate that is on disk although no site has its name.
    async fn revocation_of_unused(
        &self,
        name: &Name,
        reason: RevocationReason,
    ) -> Result<RevocationJob, RenewError> {
        let (state, wanted) = (self.state.clone(), name.clone());
        let found = blocking(move || find_unused(&state, &wanted)).await;
        let (stored, ledger) = found.ok_or_else(|| RenewError::UnknownName(name.clone()))?;
        self.revocation(name, stored, reason, ledger)
    }

    fn revocation(
        &self,
        name: &Name,
        stored: StoredCertificate,
        reason: RevocationReason,
        ledger: Option<Arc<Ledger>>,
    ) -> Result<RevocationJob, RenewError> {
        let refused = |text: String| Err(RenewError::Refused(text));
        if stored.meta.source == Source::Internal {
            return refused(format!(
                "the certificate for {name} is of the internal CA, which nobody asks about \
                 revocation; `certs renew {name}` replaces it and its key"
            ));
        }
        let ca = stored.meta.ca.as_deref().unwrap_or_default();
        let authority = self.desk.authorities.iter().find(|it| it.url() == ca);
        match (authority, ledger) {
            (Some(authority), Some(ledger)) => Ok(RevocationJob {
                authority: Arc::clone(authority),
                stored,
                ledger,
                reason,
            }),
            (None, _) => refused(format!(
                "the certificate for {name} was issued by {ca}, which the configuration does not \
                 have any more; add it as [[acme.fallback]], then ask again"
            )),
            (_, None) => refused(format!(
                "the ledger of {name} cannot be read; the log says why"
            )),
        }
    }

    /// A revocation has ended: what it was about is replaced now.
    pub(super) fn revoked(
        &mut self,
        id: u64,
        result: Result<Revocation, RenewError>,
        reply: RevocationReply,
    ) {
        let answer = result.map(|revocation| RevocationAnswer {
            next: self.desk.answer_if_due(id, clock::now()).ok(),
            revocation,
        });
        let _ = reply.send(answer);
    }
}

fn nothing_stored(name: &Name) -> String {
    format!("there is no certificate of ours for {name} that could be revoked")
}

/// The newest certificate in the state directory that is named after `name`, with its ledger.
fn find_unused(state: &StateDir, name: &Name) -> Option<(StoredCertificate, Option<Arc<Ledger>>)> {
    let kinds = directories_of(state, name).into_iter();
    let stored = kinds.filter_map(|kind| generation::read_current(&kind).ok().flatten());
    let stored = stored.max_by_key(|stored| stored.leaf.not_before)?;
    let key_type = key_type_from_name(&stored.meta.key_type)?;
    let ledger = Ledger::of_subject(state, name, key_type, clock::now()).ok();
    Some((stored, ledger.map(Arc::new)))
}
