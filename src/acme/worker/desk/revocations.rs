//! Which certificates are looked up for revocation, and what follows. It asks nobody.

use std::sync::Arc;

use time::OffsetDateTime;

use super::{Desk, RECHECK};
use crate::acme::account::Authority;
use crate::acme::ledger::StoredRevocation;
use crate::acme::revocation::Source;
use crate::acme::revocation::check::{Checked, Target};
use crate::acme::worker::entry::Entry;

impl Desk {
    /// Whether it is revoked is looked up as long as that would change anything.
    pub(super) fn watch(&mut self, id: u64, now: OffsetDateTime) {
        let sources = self.entry(id).and_then(|entry| self.sources(entry, now));
        self.checks.watch(id, sources.unwrap_or_default());
    }

    fn sources(&self, entry: &Entry, now: OffsetDateTime) -> Option<Vec<Source>> {
        let leaf = &entry.stored.as_ref()?.leaf;
        let asks = self.is_writer && self.issuing_authority(entry)?.config.check_revocation;
        (asks && entry.known_revocation().is_none() && now < leaf.not_after).then(|| {
            entry
                .named
                .sources(&entry.subject.name.to_string(), &leaf.serial)
        })
    }

    /// Why it is not known whether a certificate is revoked.
    pub(in crate::acme::worker) fn revocation_error(&self, id: u64) -> Option<String> {
        self.checks.error_of(id).map(str::to_owned)
    }

    /// The next list or responder to be asked now, and what it is asked about.
    pub(in crate::acme::worker) fn next_check(
        &mut self,
        now: OffsetDateTime,
    ) -> Option<(Source, Vec<Target>, Arc<Authority>)> {
        loop {
            let (source, ids) = self.checks.take(now)?;
            let entries = || ids.iter().filter_map(|id| Some((*id, self.entry(*id)?)));
            let targets: Vec<Target> = entries().filter_map(target).collect();
            let authority = entries().find_map(|(_, entry)| self.issuing_authority(entry));
            match authority.map(Arc::clone) {
                Some(authority) if !targets.is_empty() => {
                    return Some((source, targets, authority));
                }
                _ => {
                    self.checks.ended(&source, now + RECHECK, None);
                }
            }
        }
    }

    /// What a list or a responder said.
    pub(in crate::acme::worker) fn checked(&mut self, checked: Checked) {
        let Checked {
            source,
            next,
            error,
            revoked,
        } = checked;
        let concerned = self.checks.ended(&source, next, error.clone());
        if let (Some(error), false) = (error, concerned.is_empty()) {
            tracing::warn!("{error}");
        }
        for id in concerned {
            self.check_at(id, OffsetDateTime::UNIX_EPOCH);
        }
        for (id, revocation) in revoked {
            if let Some(entry) = self.entry(id) {
                let name = &entry.subject.name;
                let StoredRevocation {
                    serial,
                    source,
                    reason,
                    ..
                } = revocation;
                tracing::error!(%name, serial, source, reason, "the certificate is revoked; it is replaced now");
            }
            self.check_at(id, OffsetDateTime::UNIX_EPOCH);
        }
    }
}

fn target((id, entry): (u64, &Entry)) -> Option<Target> {
    let stored = entry.stored.as_ref()?;
    Some(Target {
        id,
        serial: stored.leaf.serial.clone(),
        issuer: stored.leaf.issuer.clone(),
        path: stored.path.clone(),
        ledger: Arc::clone(entry.ledger.as_ref()?),
    })
}
