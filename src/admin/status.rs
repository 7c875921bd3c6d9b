//! What `/status` and `/readyz` say, as data. Reads the live state; changes nothing.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::acme::error::ErrorReport;
use crate::acme::preflight::Check;
use crate::acme::queue::{LaneReport, Priority};
use crate::acme::worker::SubjectStatus;
use crate::certificate::explain;
use crate::certificate::inventory::{Entry, EntryId};
use crate::certificate::name::Name;
use crate::certificate::overdue::{HostSet, Late};
use crate::certificate::proof::Proof;
use crate::certificate::reloader::{OnDemandReport, Report};
use crate::certificate::table::{LiveCertificate, Table};
use crate::certificate::trust::TlsFile;
use crate::clock::rfc3339;
use crate::config::{Config, OnDemand, Site, TlsMode};
use crate::on_demand::GateReport;
use crate::proxy::Routing;

/// The answer of `GET /status`. Instants are RFC 3339 in UTC.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    pub uptime_seconds: u64,
    pub config: Option<PathBuf>,
    /// Why the configuration on disk is not the one that runs, where it is not.
    #[serde(default)]
    pub config_error: Option<String>,
    pub state_dir: PathBuf,
    /// When the reloader last went round.
    pub reloader_heartbeat: String,
    pub sites: Vec<SiteStatus>,
    pub upstreams: Vec<UpstreamStatus>,
    pub certificates: Vec<CertificateStatus>,
    /// What waits for its turn at the CAs, and what runs.
    #[serde(default)]
    pub queue: Vec<QueueStatus>,
    /// Files for TLS that are not certificates in service.
    #[serde(default)]
    pub tls_files: Vec<TlsFileStatus>,
    /// What deserves attention although everything is served.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// Certificates that are ordered when a client asks for their name; none where no site has any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_demand: Option<OnDemandStatus>,
}

/// What is going on with certificates on demand.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OnDemandStatus {
    /// In memory; the others are on disk alone.
    pub loaded: usize,
    pub max_loaded: usize,
    /// How many made room for others.
    pub evictions: u64,
    /// Handshakes that wait for their certificate.
    pub waiting: usize,
    /// Names that are being fetched.
    pub fetching: usize,
    /// Names that are refused for a while without asking anybody.
    pub refused_names: usize,
    /// Some of them.
    pub refusals: Vec<RefusalStatus>,
    pub budgets: Vec<BudgetStatus>,
}

/// A name that cannot be had for now.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RefusalStatus {
    pub name: String,
    pub cause: String,
    pub until: String,
}

/// How one budget for new names stands.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BudgetStatus {
    pub name: String,
    /// As in `30 in 10m`; none: there is no limit.
    pub limit: Option<String>,
    /// Networks or domains that have spent something lately.
    pub tracked: usize,
    /// How often it was spent when a name was asked for.
    pub refusals: u64,
}

/// What is going on with certificates on demand.
pub fn on_demand(settings: &OnDemand, gate: &GateReport, loaded: OnDemandReport) -> OnDemandStatus {
    let refusals = gate.refusals.iter().map(|(name, refusal)| RefusalStatus {
        name: name.to_string(),
        cause: refusal.cause.to_string(),
        until: rfc3339(refusal.until),
    });
    let budgets = gate.budgets.iter().map(|budget| BudgetStatus {
        name: budget.name.to_owned(),
        limit: budget.limit.map(|limit| limit.to_string()),
        tracked: budget.tracked,
        refusals: budget.refusals,
    });
    OnDemandStatus {
        loaded: loaded.loaded,
        max_loaded: settings.max_loaded,
        evictions: loaded.evictions,
        waiting: gate.waiting,
        fetching: gate.fetching,
        refused_names: gate.refused,
        refusals: refusals.collect(),
        budgets: budgets.collect(),
    }
}

/// A bundle of authorities, a revocation list, an upstream's client certificate or its key, or a
/// session ticket key.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TlsFileStatus {
    pub purpose: String,
    pub path: PathBuf,
    /// When the content in service was read; none: there never was any that could be used.
    pub loaded_at: Option<String>,
    /// When it expires or is to be updated, where it says.
    pub not_after: Option<String>,
    pub last_error: Option<String>,
}

/// One kind of work at one CA.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct QueueStatus {
    /// Directory URL, or `internal`.
    pub ca: String,
    /// `orders`, or `questions` for renewal information.
    pub work: String,
    pub running: usize,
    /// By urgency: `missing`, `revoked`, `expiring`, `due`.
    pub waiting: BTreeMap<String, usize>,
    /// Until when a limit of the CA holds back orders, and which one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_until: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_by: Option<String>,
}

/// The lanes of the queue.
pub fn queue(lanes: &[LaneReport]) -> Vec<QueueStatus> {
    let row = |lane: &LaneReport| {
        let waiting = Priority::ALL.iter().zip(lane.waiting);
        let (until, limit) = lane.held.clone().unzip();
        QueueStatus {
            ca: lane.lane.ca().to_owned(),
            work: lane.lane.kind().to_owned(),
            running: lane.running,
            waiting: waiting
                .map(|(priority, count)| (priority.as_str().to_owned(), count))
                .collect(),
            held_until: until.map(rfc3339),
            held_by: limit,
        }
    };
    lanes.iter().map(row).collect()
}

/// The TLS files and how they are doing.
pub fn tls_files(files: &[TlsFile], now: OffsetDateTime) -> Vec<TlsFileStatus> {
    let row = |file: &TlsFile| TlsFileStatus {
        purpose: file.purpose.as_str().to_owned(),
        path: file.path.clone(),
        loaded_at: file.loaded_at.map(rfc3339),
        not_after: file.not_after.map(rfc3339),
        last_error: file.error(now),
    };
    files.iter().map(row).collect()
}

/// The answer of `GET /certificates/NAME`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NameStatus {
    pub name: String,
    /// The one that the name gets first.
    pub certificates: Vec<CertificateStatus>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SiteStatus {
    pub hosts: Vec<String>,
    pub tls: String,
    /// Whether certificates are ordered when a client asks for their name.
    #[serde(default)]
    pub on_demand: bool,
    /// The hosts for which no certificate can be served now.
    pub without_certificate: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct UpstreamStatus {
    pub site: String,
    pub upstream: String,
    pub healthy: bool,
    /// Why it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// Requests that it has now, where they are counted.
    #[serde(default)]
    pub requests: usize,
}

/// One certificate: what is served of it, and what is wrong with it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct CertificateStatus {
    /// The first name, or the file where nothing good was ever read from it.
    pub name: String,
    pub names: Vec<String>,
    /// `acme`, `internal` or `file`.
    pub source: String,
    pub path: Option<PathBuf>,
    pub serial: Option<String>,
    /// SHA-256 of the leaf's DER, hex.
    pub fingerprint: Option<String>,
    pub issuer: Option<String>,
    pub not_before: Option<String>,
    pub not_after: Option<String>,
    pub loaded_at: Option<String>,
    /// Whether the files are still there.
    pub on_disk: bool,
    pub next_renewal: Option<String>,
    /// When the CA is asked next, where an attempt failed or is still to come.
    pub next_attempt: Option<String>,
    /// Whether an order, or a question to its CA, is on its way.
    #[serde(default)]
    pub in_progress: bool,
    pub last_error: Option<String>,
    /// The last error taken apart, where it is the CA's: its class, its problem document, the
    /// challenge, and what the operator can do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Box<ErrorReport>>,
    /// That the CA has revoked it, why, and who says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<String>,
    /// Why it is not known whether it is revoked, where it names a CRL or an OCSP responder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revocation_error: Option<String>,
    /// How urgent the order is that waits for its turn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queued: Option<String>,
    /// The file that the last error is about, where it is about one.
    pub failing_file: Option<PathBuf>,
    /// The CA that issues it.
    pub ca: Option<String>,
    /// Since when whoever renews its files is late.
    pub overdue_since: Option<String>,
    /// The CA's explanation of an early renewal (RFC 9773).
    pub explanation_url: Option<String>,
    /// What was seen before the first order of an ACME CA, worst first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub preflight: Vec<Check>,
    #[serde(default)]
    pub fingerprints: Fingerprints,
    /// Only where a name was asked about: `chosen`, `alternate`, or the rule by which another one
    /// is better for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<String>,
    /// The verdict as a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// How what is on disk, what is loaded and what is served differ; `None` where they agree.
    pub difference: Option<String>,
}

/// The leaf in its three places, SHA-256 of its DER in hex. Each is absent where it was not seen.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Fingerprints {
    /// In the files; without a fingerprint where what is there cannot be taken.
    pub on_disk: Option<Sighting>,
    pub loaded: Option<Sighting>,
    /// By a handshake of the process with its own listener, after a swap.
    pub served: Option<Sighting>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Sighting {
    pub fingerprint: Option<String>,
    pub seen_at: String,
    /// The name that the handshake asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// All certificates: those that were read, then those that are still to be issued.
pub fn certificates(
    report: &Report,
    subjects: &[SubjectStatus],
    proof: &Proof,
    late: &Late,
    now: OffsetDateTime,
) -> Vec<CertificateStatus> {
    let mut pending: BTreeMap<String, &SubjectStatus> = subjects
        .iter()
        .map(|subject| (subject.name.to_string(), subject))
        .collect();
    let mut rows: Vec<CertificateStatus> = Vec::new();
    for (id, entry) in &report.entries {
        let mut row = of_entry(id, entry, now);
        compare(&mut row, entry, proof);
        let overdue = late.entries.get(id);
        row.overdue_since = overdue.map(|overdue| rfc3339(overdue.since));
        if row.source != "file"
            && let Some(subject) = row.names.iter().find_map(|name| pending.remove(name))
        {
            add_plan(&mut row, subject);
        }
        rows.push(row);
    }
    let wanted = pending.into_values().filter(|subject| !stands_by(subject));
    rows.extend(wanted.map(of_subject));
    rows
}

fn of_entry(id: &EntryId, entry: &Entry, now: OffsetDateTime) -> CertificateStatus {
    let mut row = CertificateStatus {
        name: id.certificate.display().to_string(),
        source: id.source.as_str().to_owned(),
        path: Some(id.certificate.to_path_buf()),
        on_disk: entry.on_disk,
        ..CertificateStatus::default()
    };
    if let Some(live) = &entry.live {
        fill(&mut row, live);
        if now > live.key.not_after() {
            row.last_error = Some(format!("expired at {}", rfc3339(live.key.not_after())));
        }
    }
    if let Some(failure) = &entry.failure {
        row.last_error = Some(format!("{} {}", failure.path.display(), failure.cause));
        row.failing_file = Some(failure.path.clone());
    }
    row
}

/// On disk, loaded and served, and whether they are the same.
fn compare(row: &mut CertificateStatus, entry: &Entry, proof: &Proof) {
    let live = entry.live.as_ref();
    let loaded = live.map(|live| Sighting {
        fingerprint: Some(live.key.fingerprint().to_string()),
        seen_at: rfc3339(live.loaded_at),
        name: None,
    });
    let check = live.and_then(|live| proof.of_any(live.key.names()));
    let served = check.map(|(name, check)| Sighting {
        fingerprint: check.served.map(|served| served.to_string()),
        seen_at: rfc3339(check.seen_at),
        name: Some(name.to_string()),
    });
    let on_disk = match &entry.failure {
        _ if !entry.on_disk => None,
        Some(failure) => Some(Sighting {
            seen_at: rfc3339(failure.since),
            ..Sighting::default()
        }),
        None => loaded.clone(),
    };
    let disk_difference = entry.failure.as_ref().map(|failure| match entry.on_disk {
        true => format!(
            "what is on disk is not loaded: {} {}",
            failure.path.display(),
            failure.cause
        ),
        false => "the files of what is loaded are gone".to_owned(),
    });
    row.difference = check
        .and_then(|(name, check)| Some(format!("for {name}, {}", check.difference.as_ref()?)))
        .or(disk_difference.filter(|_| live.is_some()));
    row.fingerprints = Fingerprints {
        on_disk,
        loaded,
        served,
    };
}

fn fill(row: &mut CertificateStatus, live: &LiveCertificate) {
    let key = &live.key;
    row.names = key.names().iter().map(Name::to_string).collect();
    row.name = row.names[0].clone();
    row.source = live.source.as_str().to_owned();
    row.serial = Some(key.serial().to_owned());
    row.fingerprint = Some(key.fingerprint().to_string());
    row.issuer = Some(key.issuer().to_owned());
    row.not_before = Some(rfc3339(key.not_before()));
    row.not_after = Some(rfc3339(key.not_after()));
    row.loaded_at = Some(rfc3339(live.loaded_at));
}

fn add_plan(row: &mut CertificateStatus, subject: &SubjectStatus) {
    row.next_renewal = subject.next_renewal.map(rfc3339);
    row.next_attempt = subject.next_attempt.map(rfc3339);
    row.in_progress = subject.running;
    row.ca = subject.ca.clone();
    row.queued = subject
        .queued
        .as_ref()
        .map(|(_, priority)| priority.as_str().to_owned());
    row.explanation_url = subject.explanation_url.clone();
    row.revoked = subject.revoked.clone();
    row.revocation_error = subject.revocation_error.clone();
    row.preflight = subject.preflight.clone();
    if row.last_error.is_none() {
        row.last_error = subject.last_error.clone();
        row.error = subject.error.clone();
    }
}

/// The certificates for one name, the one it gets first, each with the verdict on it; then what is
/// still to be issued for it.
pub fn for_name(
    name: &Name,
    rows: Vec<CertificateStatus>,
    report: &Report,
    takeover: &HostSet,
    now: OffsetDateTime,
) -> Vec<CertificateStatus> {
    let entries = report.entries.iter().map(|(id, entry)| (id, &**entry));
    let candidates = explain::candidates(entries, name, takeover, now);
    let covers = |row: &CertificateStatus| {
        let mut names = row
            .names
            .iter()
            .filter_map(|text| text.parse::<Name>().ok());
        names.any(|own| own.covers(name))
    };
    let mut rows: Vec<CertificateStatus> = rows.into_iter().filter(covers).collect();
    let mut found = Vec::new();
    for (id, verdict) in explain::explain(&candidates) {
        let is_it = |row: &CertificateStatus| row.path.as_deref() == Some(&*id.certificate);
        if let Some(at) = rows.iter().position(is_it) {
            found.push(CertificateStatus {
                verdict: Some(verdict.as_str().to_owned()),
                why: Some(verdict.to_string()),
                ..rows.remove(at)
            });
        }
    }
    found.extend(rows);
    found
}

/// Whether nothing is planned: files cover its names, or it made room in memory for others.
fn stands_by(subject: &SubjectStatus) -> bool {
    let covered = subject.covered_by_files_until.is_some() && subject.not_after.is_none();
    let evicted = subject.on_demand && subject.not_after.is_some() && !subject.running;
    covered || evicted
}

fn of_subject(subject: &SubjectStatus) -> CertificateStatus {
    let mut row = CertificateStatus {
        name: subject.name.to_string(),
        names: subject.names.iter().map(Name::to_string).collect(),
        source: subject.issuer.as_str().to_owned(),
        ..CertificateStatus::default()
    };
    add_plan(&mut row, subject);
    row
}

/// The sites and what they lack.
pub fn sites(config: &Config, table: &Table, now: OffsetDateTime) -> Vec<SiteStatus> {
    config
        .sites
        .iter()
        .map(|site| SiteStatus {
            hosts: hosts_of(site),
            tls: mode_name(site.tls).to_owned(),
            on_demand: site.on_demand,
            without_certificate: match site.tls {
                TlsMode::Off => Vec::new(),
                // Nothing is amiss before somebody asks.
                _ if site.on_demand => Vec::new(),
                _ => lacking(&site.hosts, table, now),
            },
        })
        .collect()
}

fn hosts_of(site: &Site) -> Vec<String> {
    let any = site.any_host.then(|| "*".to_owned());
    site.hosts.iter().map(Name::to_string).chain(any).collect()
}

fn lacking(hosts: &[Name], table: &Table, now: OffsetDateTime) -> Vec<String> {
    hosts
        .iter()
        .filter(|host| {
            let choice = table.get(host);
            choice.is_none_or(|choice| now > choice.best.key.not_after())
        })
        .map(Name::to_string)
        .collect()
}

/// The upstreams of all sites, those with an address.
pub fn upstreams(routing: &Routing) -> Vec<UpstreamStatus> {
    let mut rows = Vec::new();
    for site in routing.sites() {
        for upstream in site.routes.iter().flat_map(|route| route.pool.upstreams()) {
            if upstream.is_dialled() {
                rows.push(UpstreamStatus {
                    site: site.label.to_string(),
                    upstream: upstream.label().to_owned(),
                    healthy: upstream.is_healthy(),
                    trouble: upstream.trouble().map(|trouble| trouble.into_owned()),
                    requests: upstream.under_way(),
                });
            }
        }
    }
    rows
}

fn mode_name(mode: TlsMode) -> &'static str {
    match mode {
        TlsMode::Auto => "auto",
        TlsMode::Acme => "acme",
        TlsMode::Internal => "internal",
        TlsMode::Files => "files",
        TlsMode::Off => "off",
    }
}

/// The reloader goes round at least every 20 s; one that is later than this is stuck.
const HEARTBEAT_FRESH: time::Duration = time::Duration::seconds(60);

/// Why the process is not ready; empty if it is.
pub fn unready_reasons(sites: &[SiteStatus], report: &Report, now: OffsetDateTime) -> Vec<String> {
    let mut reasons: Vec<String> = sites
        .iter()
        .flat_map(|site| &site.without_certificate)
        .map(|host| format!("no valid certificate to serve for {host}"))
        .collect();
    if now - report.heartbeat > HEARTBEAT_FRESH {
        let since = rfc3339(report.heartbeat);
        reasons.push(format!(
            "the certificate reloader has not gone round since {since}"
        ));
    }
    reasons
}
