//! What people ask of the worker: an end of a certificate before its time. What is served stays
//! served until its successor is there, which is ordered as soon as the CA has confirmed.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::Worker;
use super::handle::{Decision, RenewError};
use crate::acme::account::revocation::{Revocation, RevocationReason, revoke_stored};
use crate::acme::account::{Authority, blocking};
use crate::acme::job::Done;
use crate::acme::ledger::{Ledger, RevokedCertificate};
use crate::acme::renewal::IssuerKind;
use crate::certificate::name::Name;
use crate::clock;
use crate::store::generation::{self, Source, StoredCertificate};
use crate::store::{self, StateDir, key_type_from_name};

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

impl RevocationJob {
    async fn run(self) -> Result<Revocation, RenewError> {
        let revoked = revoke_stored(&self.authority, &self.stored, self.reason).await;
        let revocation = revoked.map_err(|error| RenewError::Refused(error.to_string()))?;
        let note = RevokedCertificate {
            serial: revocation.serial.clone(),
            reason: self.reason,
            at: clock::now(),
        };
        let ledger = self.ledger;
        let noted = blocking(move || ledger.set_revoked(note)).await;
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
        let found = self
            .entries
            .iter()
            .find(|(_, entry)| entry.subject.names.contains(&name))
            .map(|(id, _)| *id);
        let job = match found {
            _ if self.lock.is_none() => Err(RenewError::NotWriter),
            Some(id) => self.revocation_of_entry(id, &name, reason),
            None => self.revocation_of_unused(&name, reason).await,
        };
        match (job, found) {
            (Err(error), _) => {
                // Whoever asked may have gone.
                let _ = reply.send(Err(error));
            }
            (Ok(job), Some(id)) => {
                let job = async move {
                    Done::Revoked {
                        result: Box::new(job.run().await),
                        reply,
                    }
                };
                self.start(id, IssuerKind::Acme, job);
            }
            (Ok(job), None) => drop(tokio::spawn(async move {
                let answer = job.run().await;
                let answer = answer.map(|revocation| RevocationAnswer {
                    revocation,
                    next: None,
                });
                let _ = reply.send(answer);
            })),
        }
    }

    fn revocation_of_entry(
        &self,
        id: u64,
        name: &Name,
        reason: RevocationReason,
    ) -> Result<RevocationJob, RenewError> {
        let unknown = || RenewError::UnknownName(name.clone());
        let entry = self.entries.get(&id).ok_or_else(unknown)?;
        if entry.running {
            let text = format!("an order for {name} is in progress; ask again when it has ended");
            return Err(RenewError::Refused(text));
        }
        let stored = entry.stored.clone();
        let stored = stored.ok_or_else(|| RenewError::Refused(nothing_stored(name)))?;
        let ledger = entry.ledger.clone();
        self.revocation(name, stored, reason, ledger)
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
        let authority = self.authorities.iter().find(|it| it.url() == ca);
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
            next: self.answer_if_due(id, clock::now()).ok(),
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
    let dir = state.certificates_dir().join(store::component(name));
    let kinds = std::fs::read_dir(dir).ok()?.flatten();
    let stored = kinds.filter_map(|kind| generation::read_current(&kind.path()).ok().flatten());
    let stored = stored.max_by_key(|stored| stored.leaf.not_before)?;
    let key_type = key_type_from_name(&stored.meta.key_type)?;
    let ledger = Ledger::of_subject(state, name, key_type, clock::now()).ok();
    Some((stored, ledger.map(Arc::new)))
}
