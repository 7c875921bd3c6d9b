//! What a scan changed, for whoever asked and for the log.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::certificate::inventory::EntryId;
use crate::certificate::name::Name;
use crate::certificate::table::LiveCertificate;
use crate::clock;

/// One thing that a scan changed.
#[derive(Clone, Debug, Serialize)]
pub struct Change {
    pub certificate: Arc<Path>,
    pub names: Vec<String>,
    pub result: ChangeResult,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// What was loaded.
    #[serde(skip)]
    pub swap: Option<Swap>,
}

/// A certificate that was loaded.
#[derive(Clone, Debug)]
pub struct Swap {
    pub live: Arc<LiveCertificate>,
    /// What it replaced.
    pub old: Option<Arc<LiveCertificate>>,
    /// From the first sight of the change to the swap.
    pub seen: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeResult {
    Loaded,
    Replaced,
    Failed,
    Recovered,
    Vanished,
    /// It was taken out of the configuration.
    Removed,
}

/// More changes than this in one scan are logged as one line; each for itself at debug level.
const LOGGED_ONE_BY_ONE: usize = 50;

pub(super) fn names_of(live: &LiveCertificate) -> Vec<String> {
    live.key.names().iter().map(Name::to_string).collect()
}

pub(super) fn loaded(
    live: Arc<LiveCertificate>,
    old: Option<Arc<LiveCertificate>>,
    seen: Option<Duration>,
) -> Change {
    let result = match old {
        Some(_) => ChangeResult::Replaced,
        None => ChangeResult::Loaded,
    };
    Change {
        certificate: live.path.clone(),
        names: names_of(&live),
        result,
        serial: Some(live.key.serial().to_owned()),
        cause: None,
        swap: Some(Swap { live, old, seen }),
    }
}

/// What was loaded, one line each; in a bulk load, one line for all.
pub(super) fn log_changes(changes: &[Change]) {
    let loads = changes.iter().filter_map(|change| change.swap.as_ref());
    let bulk = changes.len() > LOGGED_ONE_BY_ONE;
    for swap in loads.clone() {
        let live = &swap.live;
        if !live.key.is_valid_at(live.loaded_at) {
            log_expired(live);
        }
        if bulk {
            tracing::debug!(names = ?names_of(live), file = %live.path.display(), "certificate loaded");
        } else {
            log_load(swap);
        }
    }
    if bulk {
        tracing::info!(
            certificates = loads.count(),
            "certificates loaded or replaced"
        );
    }
}

fn log_load(Swap { live, old, seen }: &Swap) {
    let old = old.as_ref();
    tracing::info!(
        names = ?names_of(live),
        serial = live.key.serial(),
        old_serial = old.map(|old| old.key.serial()),
        fingerprint = %live.key.fingerprint(),
        issuer = live.key.issuer(),
        not_after = %clock::rfc3339(live.key.not_after()),
        source = live.source.as_str(),
        file = %live.path.display(),
        seen_ms = seen.map(|seen| u64::try_from(seen.as_millis()).unwrap_or(u64::MAX)),
        "{}", if old.is_some() { "certificate replaced" } else { "certificate loaded" }
    );
    for note in live.key.chain_notes() {
        tracing::warn!(file = %live.path.display(), "{note}");
    }
}

pub(super) fn log_expired(live: &LiveCertificate) {
    tracing::error!(
        names = ?names_of(live),
        file = %live.path.display(),
        not_before = %clock::rfc3339(live.key.not_before()),
        not_after = %clock::rfc3339(live.key.not_after()),
        "certificate is not valid now; it is served where nothing better is there"
    );
}

pub(super) fn recovered(id: &EntryId, live: Option<&LiveCertificate>) -> Change {
    tracing::info!(file = %id.certificate.display(), "certificate on disk is again the one in service");
    Change {
        certificate: id.certificate.clone(),
        names: live.map_or_else(Vec::new, names_of),
        result: ChangeResult::Recovered,
        serial: live.map(|live| live.key.serial().to_owned()),
        cause: None,
        swap: None,
    }
}

pub(super) fn vanished(id: &EntryId) -> Change {
    tracing::warn!(
        file = %id.certificate.display(),
        "certificate is gone from disk; it stays in service where nothing better is there"
    );
    Change {
        certificate: id.certificate.clone(),
        names: Vec::new(),
        result: ChangeResult::Vanished,
        serial: None,
        cause: None,
        swap: None,
    }
}
