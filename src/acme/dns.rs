//! TXT records for DNS-01 (RFC 8555 section 8.4): written at whoever answers for the name, seen at
//! every authoritative server before the CA is told, and removed whichever way the order ends.
//! What was written stands on disk first, so that a crash leaves no record behind for good.

mod journal;
mod lookup;
mod propagation;
pub mod standing;
mod writer;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tokio_util::task::TaskTracker;

use super::account::blocking;
use super::error::{AcmeError, Class};
use crate::clock;
use crate::config;
use crate::store::{StateDir, StoreError};
use journal::Journal;
pub(super) use lookup::Lookup;
use writer::{WriteError, Writer};

/// Removals of one record before the next start has to try again, and the waits between them.
const REMOVAL_WAITS: [Duration; 3] = [
    Duration::from_secs(1),
    Duration::from_secs(10),
    Duration::from_secs(60),
];

/// Why a record is not where the CA would look for it.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    #[error("cannot look up {what}: {cause}")]
    Lookup { what: String, cause: String },
    #[error("the CNAME records from {0} on lead nowhere: they form a loop or a very long chain")]
    EndlessAlias(String),
    #[error("no DNS zone has {name}, as {resolver} tells: is the domain delegated?")]
    NoZone { name: String, resolver: String },
    #[error("{provider} did not take the TXT record {name}: {source}")]
    Write {
        provider: &'static str,
        name: String,
        source: Box<WriteError>,
    },
    #[error(
        "the TXT record {name} was written, but not seen within {limit:?} at every server of its zone: {servers}"
    )]
    NotSeen {
        name: String,
        limit: Duration,
        servers: String,
    },
    #[error("dns-01 has no DNS provider: add [acme.dns]")]
    NoProvider,
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl DnsError {
    /// As the failure of an order. The order itself is still good: the CA was not told anything.
    pub(super) fn into_acme(self, what: &str) -> AcmeError {
        let class = match &self {
            DnsError::Write { source, .. } if source.is_refusal() => Class::Operator,
            DnsError::Store(_) | DnsError::EndlessAlias(_) | DnsError::NoProvider => {
                Class::Operator
            }
            _ => Class::Retryable,
        };
        AcmeError {
            resumable: true,
            challenge: Some(config::ChallengeType::Dns01),
            ..AcmeError::new(class, what, self.to_string())
        }
    }
}

/// One TXT record of ours.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct TxtRecord {
    /// Its owner, behind all aliases, without the final dot.
    pub(super) name: String,
    pub(super) zone: String,
    pub(super) value: String,
}

/// How many orders need a record: two may need the same one, and the last takes it away. They
/// outlive a change of the configuration, as orders do. Cheap to clone.
#[derive(Clone, Default)]
pub struct Claims(Arc<Mutex<HashMap<TxtRecord, usize>>>);

impl Claims {
    fn add(&self, record: &TxtRecord) {
        *self.lock().entry(record.clone()).or_default() += 1;
    }

    /// Whether nobody needs it any more.
    fn release(&self, record: &TxtRecord) -> bool {
        let mut claims = self.lock();
        let left = claims.get_mut(record).map_or(0, |count| {
            *count -= 1;
            *count
        });
        if left == 0 {
            claims.remove(record);
        }
        left == 0
    }

    fn has(&self, record: &TxtRecord) -> bool {
        self.lock().contains_key(record)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TxtRecord, usize>> {
        // Counts are changed in one step: a panic cannot leave half of one.
        self.0
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// The records of all orders that run.
pub struct DnsChallenges {
    config: config::Dns,
    lookup: Lookup,
    /// `None`: no provider is configured.
    writer: Option<Writer>,
    journal: Journal,
    claims: Claims,
    /// Held while the provider changes a record set: some read it, and write it back changed.
    writing: tokio::sync::Mutex<()>,
    removals: TaskTracker,
}

impl DnsChallenges {
    /// Sends nothing. The error names what cannot be used.
    pub fn new(
        config: &config::Dns,
        state: &StateDir,
        claims: Claims,
    ) -> Result<Arc<DnsChallenges>, String> {
        Ok(Arc::new(DnsChallenges {
            lookup: Lookup::new(config.resolvers.clone(), config.nameservers.clone()),
            writer: config.writer.as_ref().map(Writer::new).transpose()?,
            config: config.clone(),
            journal: Journal::of(state),
            claims,
            writing: tokio::sync::Mutex::default(),
            removals: TaskTracker::new(),
        }))
    }

    pub fn config(&self) -> &config::Dns {
        &self.config
    }

    /// Writes the answer to a challenge for `domain`; it stays as long as the guard lives.
    pub(super) async fn present(
        self: &Arc<Self>,
        domain: &str,
        value: &str,
    ) -> Result<RecordGuard, DnsError> {
        let writer = self.writer.as_ref().ok_or(DnsError::NoProvider)?;
        let asked = format!("_acme-challenge.{domain}");
        let name = self.lookup.behind_aliases(&asked).await?;
        writer.check_target(&asked, &name)?;
        let record = TxtRecord {
            zone: self.lookup.zone_of(&name).await?,
            name,
            value: value.to_owned(),
        };
        tracing::debug!(asked, record.name, record.zone, "writing a TXT record");
        // From here on the guard takes it away again, even if it is half written.
        let guard = self.claim(record.clone());
        let (journal, provider) = (self.journal.clone(), writer.name());
        let noted = record.clone();
        blocking(move || journal.note(&noted, provider, clock::now())).await?;
        let _writing = self.writing.lock().await;
        let written = writer.add(&record, self.config.ttl).await;
        written.map_err(|source| DnsError::Write {
            provider: writer.name(),
            name: record.name,
            source: Box::new(source),
        })?;
        Ok(guard)
    }

    /// Waits until every authoritative server has the records.
    pub(super) async fn wait_until_seen(&self, records: &[TxtRecord]) -> Result<(), DnsError> {
        propagation::wait(&self.lookup, records, self.config.propagation_timeout).await?;
        tokio::time::sleep(self.config.propagation_delay).await;
        Ok(())
    }

    /// The TXT records that resolvers find at `name`, behind aliases.
    pub(crate) async fn txt(&self, name: &str) -> Result<Vec<String>, DnsError> {
        self.lookup.txt(name).await
    }

    fn claim(self: &Arc<Self>, record: TxtRecord) -> RecordGuard {
        self.claims.add(&record);
        RecordGuard {
            challenges: Arc::clone(self),
            record,
        }
    }

    /// Takes away what a crash left behind. What another provider wrote is only told.
    pub async fn remove_left_over(self: &Arc<Self>) {
        let journal = self.journal.clone();
        let left = blocking(move || journal.read()).await;
        let own = self.writer.as_ref().map(Writer::name);
        let in_use = |noted: &Noted| self.claims.has(&noted.record);
        for noted in left.into_iter().filter(|noted| !in_use(noted)) {
            if own == Some(&*noted.provider) {
                tracing::info!(
                    name = noted.record.name,
                    "removing a TXT record that was left"
                );
                self.remove_soon(noted.record);
            } else {
                tracing::warn!(
                    name = noted.record.name,
                    value = noted.record.value,
                    provider = noted.provider,
                    "a TXT record may have been left at a DNS provider that is not configured any more: remove it by hand"
                );
                let journal = self.journal.clone();
                blocking(move || journal.forget(&noted.record)).await;
            }
        }
    }

    fn remove_soon(self: &Arc<Self>, record: TxtRecord) {
        let challenges = Arc::clone(self);
        self.removals
            .spawn(async move { challenges.remove(record).await });
    }

    async fn remove(&self, record: TxtRecord) {
        let mut waits = REMOVAL_WAITS.into_iter();
        loop {
            let error = match self.remove_once(&record).await {
                Ok(()) => return,
                Err(error) => error,
            };
            let Some(wait) = waits.next() else {
                tracing::error!(
                    name = record.name, value = record.value, %error,
                    "cannot remove a TXT record; the next start tries again"
                );
                return;
            };
            tokio::time::sleep(wait).await;
        }
    }

    async fn remove_once(&self, record: &TxtRecord) -> Result<(), WriteError> {
        let _writing = self.writing.lock().await;
        if self.claims.has(record) {
            // Another order needs it by now, and takes it away.
            return Ok(());
        }
        if let Some(writer) = &self.writer {
            writer.remove(record).await?;
        }
        tracing::debug!(name = record.name, "removed a TXT record");
        let (journal, record) = (self.journal.clone(), record.clone());
        blocking(move || journal.forget(&record)).await;
        Ok(())
    }

    /// Waits for removals that run, so long at most. What is not done then is on disk.
    pub async fn finish(&self, limit: Duration) {
        self.removals.close();
        // What is left is removed by the next start.
        let _ = tokio::time::timeout(limit, self.removals.wait()).await;
    }
}

/// One record of one order: dropping it takes the record away, behind the order.
#[must_use = "the record stays only while the guard lives"]
pub(super) struct RecordGuard {
    challenges: Arc<DnsChallenges>,
    record: TxtRecord,
}

impl RecordGuard {
    pub(super) fn record(&self) -> &TxtRecord {
        &self.record
    }
}

impl Drop for RecordGuard {
    fn drop(&mut self) {
        if self.challenges.claims.release(&self.record) {
            self.challenges.remove_soon(self.record.clone());
        }
    }
}

/// A record in the journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Noted {
    provider: String,
    #[serde(flatten)]
    record: TxtRecord,
    #[serde(with = "time::serde::rfc3339")]
    written_at: OffsetDateTime,
}
