//! TXT records for DNS-01 (RFC 8555 section 8.4): written at whoever answers for the name, seen at
//! every authoritative server before the CA is told, and removed whichever way the order ends.
//! What was written stands on disk first, so that a crash leaves no record behind for good.

pub mod delegation;
mod journal;
mod lookup;
mod propagation;
mod registrations;
pub mod standing;
mod writer;

use std::collections::HashMap;
use std::net::SocketAddr;
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
    #[error(
        "dns-01 has no DNS provider for {0}: add it to `domains` of one in [[acme.dns.providers]], or a `provider` for everything to [acme.dns]"
    )]
    NoProvider(String),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl DnsError {
    /// As the failure of an order. The order itself is still good: the CA was not told anything.
    pub(super) fn into_acme(self, what: &str) -> AcmeError {
        let class = match &self {
            DnsError::Write { source, .. } if source.is_refusal() => Class::Operator,
            DnsError::Store(_) | DnsError::EndlessAlias(_) | DnsError::NoProvider(_) => {
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
    /// As in the configuration.
    places: Vec<Arc<Place>>,
    journal: Journal,
    claims: Claims,
    removals: TaskTracker,
}

/// Where records are written: one provider, and what is its alone.
struct Place {
    writer: Writer,
    lookup: Lookup,
    config: config::DnsZones,
    /// Held while the provider changes a record set: some read it, and write it back changed.
    writing: tokio::sync::Mutex<()>,
}

impl Place {
    fn new(
        zones: &config::DnsZones,
        resolvers: &[SocketAddr],
        state: &StateDir,
    ) -> Result<Arc<Place>, String> {
        Ok(Arc::new(Place {
            writer: Writer::new(&zones.writer, resolvers, state)?,
            lookup: Lookup::new(resolvers.to_vec(), zones.nameservers.clone()),
            config: zones.clone(),
            writing: tokio::sync::Mutex::default(),
        }))
    }

    /// The zone of a name, for a provider that wants to know, and to find its servers. Where those are
    /// configured nobody else need be asked: programs and acme-dns servers know the zone themselves,
    /// and the servers tell it.
    async fn zone_of(&self, name: &str) -> Result<String, DnsError> {
        let nameservers = &self.config.nameservers;
        if nameservers.is_empty() {
            return self.lookup.zone_of(name).await;
        }
        match &self.writer {
            Writer::Provider { .. } => match self.lookup.zone_of(name).await {
                Ok(zone) => Ok(zone),
                Err(error) => {
                    let own = Lookup::new(nameservers.clone(), Vec::new());
                    own.zone_of(name).await.map_err(|_| error)
                }
            },
            Writer::Exec { .. } | Writer::AcmeDns(_) => Ok(String::new()),
        }
    }

    async fn wait_until_seen(&self, records: &[TxtRecord]) -> Result<(), DnsError> {
        propagation::wait(&self.lookup, records, self.config.propagation_timeout).await?;
        tokio::time::sleep(self.config.propagation_delay).await;
        Ok(())
    }
}

impl DnsChallenges {
    /// Sends nothing. The error names what cannot be used.
    pub fn new(
        config: &config::Dns,
        state: &StateDir,
        claims: Claims,
    ) -> Result<Arc<DnsChallenges>, String> {
        let places = config.zones.iter();
        let places = places.map(|zones| Place::new(zones, &config.resolvers, state));
        Ok(Arc::new(DnsChallenges {
            lookup: Lookup::new(config.resolvers.clone(), Vec::new()),
            places: places.collect::<Result<_, _>>()?,
            config: config.clone(),
            journal: Journal::of(state),
            claims,
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
        let place = self.place_for(domain);
        let place = place.ok_or_else(|| DnsError::NoProvider(domain.to_owned()))?;
        let writer = &place.writer;
        let asked = format!("_acme-challenge.{domain}");
        let name = self.lookup.behind_aliases(&asked).await?;
        writer.check_target(domain, &asked, &name).await?;
        let record = TxtRecord {
            zone: place.zone_of(&name).await?,
            name,
            value: value.to_owned(),
        };
        tracing::debug!(asked, record.name, record.zone, "writing a TXT record");
        // From here on the guard takes it away again, even if it is half written.
        let guard = self.claim(record.clone(), Arc::clone(place));
        let noted = Noted {
            provider: writer.name().to_owned(),
            domain: Some(domain.to_owned()),
            record: record.clone(),
            written_at: clock::now(),
        };
        let journal = self.journal.clone();
        blocking(move || journal.note(&noted)).await?;
        let _writing = place.writing.lock().await;
        let written = writer.add(domain, &record, place.config.ttl).await;
        written.map_err(|source| DnsError::Write {
            provider: writer.name(),
            name: record.name,
            source: Box::new(source),
        })?;
        Ok(guard)
    }

    /// Whether there is somebody who can write the records of this name.
    pub(super) fn writes_for(&self, domain: &str) -> bool {
        self.config.writes_for(domain)
    }

    fn place_for(&self, domain: &str) -> Option<&Arc<Place>> {
        self.places.get(self.config.zones_of(domain)?)
    }

    /// Waits until every authoritative server has the records; those of several providers have
    /// their time together.
    pub(super) async fn wait_until_seen(&self, guards: &[&RecordGuard]) -> Result<(), DnsError> {
        let of = |place: &Arc<Place>| {
            let own = guards.iter().filter(|it| Arc::ptr_eq(&it.place, place));
            own.map(|guard| guard.record.clone()).collect::<Vec<_>>()
        };
        let waits = self.places.iter().map(|place| async move {
            match of(place) {
                records if records.is_empty() => Ok(()),
                records => place.wait_until_seen(&records).await,
            }
        });
        futures_util::future::try_join_all(waits).await.map(|_| ())
    }

    /// The TXT records that resolvers find at `name`, behind aliases.
    pub(crate) async fn txt(&self, name: &str) -> Result<Vec<String>, DnsError> {
        self.lookup.txt(name).await
    }

    fn claim(self: &Arc<Self>, record: TxtRecord, place: Arc<Place>) -> RecordGuard {
        self.claims.add(&record);
        RecordGuard {
            challenges: Arc::clone(self),
            record,
            place,
        }
    }

    /// Who wrote this, as far as that is still configured. Earlier versions did not note for which
    /// name, and had one provider.
    fn place_of(&self, noted: &Noted) -> Option<&Arc<Place>> {
        let is_it = |place: &&Arc<Place>| place.writer.name() == noted.provider;
        match &noted.domain {
            Some(domain) => self.place_for(domain).filter(is_it),
            None => self.places.iter().find(is_it),
        }
    }

    /// Takes away what a crash left behind. What another provider wrote is only told.
    pub async fn remove_left_over(self: &Arc<Self>) {
        let journal = self.journal.clone();
        let left = blocking(move || journal.read()).await;
        let in_use = |noted: &Noted| self.claims.has(&noted.record);
        for noted in left.into_iter().filter(|noted| !in_use(noted)) {
            if let Some(place) = self.place_of(&noted) {
                tracing::info!(
                    name = noted.record.name,
                    "removing a TXT record that was left"
                );
                self.remove_soon(noted.record, Arc::clone(place));
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

    fn remove_soon(self: &Arc<Self>, record: TxtRecord, place: Arc<Place>) {
        let challenges = Arc::clone(self);
        self.removals
            .spawn(async move { challenges.remove(record, &place).await });
    }

    async fn remove(&self, record: TxtRecord, place: &Place) {
        let mut waits = REMOVAL_WAITS.into_iter();
        loop {
            let error = match self.remove_once(&record, place).await {
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

    async fn remove_once(&self, record: &TxtRecord, place: &Place) -> Result<(), WriteError> {
        let _writing = place.writing.lock().await;
        if self.claims.has(record) {
            // Another order needs it by now, and takes it away.
            return Ok(());
        }
        place.writer.remove(record).await?;
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
    place: Arc<Place>,
}

impl Drop for RecordGuard {
    fn drop(&mut self) {
        if self.challenges.claims.release(&self.record) {
            let place = Arc::clone(&self.place);
            self.challenges.remove_soon(self.record.clone(), place);
        }
    }
}

/// A record in the journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Noted {
    provider: String,
    /// The name that the record proves, by which its provider was chosen.
    #[serde(default)]
    domain: Option<String>,
    #[serde(flatten)]
    record: TxtRecord,
    #[serde(with = "time::serde::rfc3339")]
    written_at: OffsetDateTime,
}
