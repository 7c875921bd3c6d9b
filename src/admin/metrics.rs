//! The metrics, in Prometheus' text format: it owns the registry and every metric name. Label
//! values come from the configuration and from fixed sets, never from what a client sends.

use std::time::Duration;

use prometheus::{
    Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};
use time::OffsetDateTime;

use crate::acme::queue::{LaneReport, Priority};
use crate::acme::worker::SubjectStatus;
use crate::certificate::overdue::Late;
use crate::certificate::proof::Proof;
use crate::certificate::reloader::{OnDemandReport, Report};
use crate::certificate::table::SourceKind;
use crate::certificate::trust::TlsFile;
use crate::config::watch::ConfigReport;
use crate::on_demand::GateReport;

/// Seconds; from an answer in memory to one that runs into the upstream's read timeout.
const DURATION_BUCKETS: [f64; 14] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0,
];

/// Every metric of one server. A process may hold several: each has a registry of its own.
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    request_duration: Histogram,
    upstreams: UpstreamMetrics,
    tls_handshakes: IntCounterVec,
    connections: IntGauge,
    refused_connections: IntCounterVec,
    idle_closed: IntCounter,
    certificate_not_after: GaugeVec,
    certificate_reloads: IntCounterVec,
    certificate_reload_failing: IntGaugeVec,
    doubts: Doubts,
    acme_orders: IntCounterVec,
    acme_next_attempt: GaugeVec,
    queue: QueueMetrics,
    config_reloads: IntCounterVec,
    lost_lines: IntCounter,
    lost_log_lines: IntCounter,
    config_reload_failing: IntGauge,
    on_demand: OnDemandMetrics,
}

/// How upstreams are, and what waits for them.
struct UpstreamMetrics {
    healthy: IntGaugeVec,
    pending: IntGaugeVec,
    pending_refused: IntCounterVec,
    ejections: IntCounterVec,
    retries: IntCounterVec,
    retries_refused: IntCounterVec,
}

/// Why an upstream is ejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EjectionCause {
    Dial,
    Failures,
    Statuses,
}

impl EjectionCause {
    fn label(self) -> &'static str {
        match self {
            EjectionCause::Dial => "dial",
            EjectionCause::Failures => "failures",
            EjectionCause::Statuses => "statuses",
        }
    }
}

impl UpstreamMetrics {
    fn new(registry: &Registry) -> UpstreamMetrics {
        UpstreamMetrics {
            healthy: gauges(
                registry,
                "perennial_upstream_healthy",
                "Whether nothing that requests and health checks have met speaks against the upstream (1, also before the first).",
                &["site", "upstream"],
            ),
            pending: gauges(
                registry,
                "perennial_upstream_pending_requests",
                "Requests that wait for an upstream because each has as many as it may have.",
                &["site"],
            ),
            pending_refused: counters(
                registry,
                "perennial_upstream_pending_refused_total",
                "Requests that got 503 because every upstream had as many as it may have: as many as may wait did (full), or it took too long (timeout).",
                &["site", "cause"],
            ),
            ejections: counters(
                registry,
                "perennial_upstream_ejections_total",
                "Times that an upstream was left alone for a while: it could not be dialled (dial), requests failed (failures), or its answers count as failures (statuses).",
                &["site", "upstream", "cause"],
            ),
            retries: counters(
                registry,
                "perennial_upstream_retries_total",
                "Times that a request was sent on its way again.",
                &["site"],
            ),
            retries_refused: counters(
                registry,
                "perennial_upstream_retries_refused_total",
                "Requests that were not sent again because the budget for retries was spent.",
                &["site"],
            ),
        }
    }
}

/// What is wrong with certificates and TLS files that are used all the same.
struct Doubts {
    served_differs: IntGaugeVec,
    overdue: IntGaugeVec,
    tls_file_reload_failing: IntGaugeVec,
}

/// What waits for its turn at the CAs, and what runs.
struct QueueMetrics {
    waiting: IntGaugeVec,
    running: IntGaugeVec,
    held_until: GaugeVec,
}

impl QueueMetrics {
    fn new(registry: &Registry) -> QueueMetrics {
        QueueMetrics {
            waiting: gauges(
                registry,
                "perennial_acme_queue_waiting",
                "Orders, and questions for renewal information, that wait for their turn, by CA and urgency.",
                &["ca", "work", "priority"],
            ),
            running: gauges(
                registry,
                "perennial_acme_queue_running",
                "Orders, and questions for renewal information, that run, by CA.",
                &["ca", "work"],
            ),
            held_until: float_gauges(
                registry,
                "perennial_acme_queue_held_until_seconds",
                "Until when a limit of the CA holds back orders, in Unix time; absent while none does.",
                &["ca"],
            ),
        }
    }
}

impl Doubts {
    fn new(registry: &Registry) -> Doubts {
        Doubts {
            served_differs: gauges(
                registry,
                "perennial_certificate_served_differs",
                "1 while our own handshake for a name shows another certificate than is loaded.",
                &["name"],
            ),
            overdue: gauges(
                registry,
                "perennial_certificate_overdue",
                "1 while a certificate from files is past its due date and nothing replaced it.",
                &["name"],
            ),
            tls_file_reload_failing: gauges(
                registry,
                "perennial_tls_file_reload_failing",
                "1 while a TLS file (CA bundle, CRL, ticket key, upstream's client certificate) cannot be used or is out of date.",
                &["path"],
            ),
        }
    }
}

/// Certificates that are ordered when a client asks for their name. The names are no labels: what
/// clients send shall not make time series.
struct OnDemandMetrics {
    results: IntCounterVec,
    questions: IntCounterVec,
    waiting: IntGauge,
    refused_names: IntGauge,
    loaded: IntGauge,
    evictions: IntCounterVec,
    budget_refusals: IntCounterVec,
}

impl OnDemandMetrics {
    fn new(registry: &Registry) -> OnDemandMetrics {
        let gauge = |name, help| register(registry, IntGauge::new(name, help));
        OnDemandMetrics {
            results: counters(
                registry,
                "perennial_on_demand_total",
                "What came of names without a certificate that clients asked for: fetches by result, handshakes that were turned away or waited in vain.",
                &["result"],
            ),
            questions: counters(
                registry,
                "perennial_on_demand_questions_total",
                "Questions whether a name may be had on demand, by answer.",
                &["answer"],
            ),
            waiting: gauge(
                "perennial_on_demand_waiting",
                "Handshakes that wait for their certificate.",
            ),
            refused_names: gauge(
                "perennial_on_demand_refused_names",
                "Names that are refused for a while without asking anybody.",
            ),
            loaded: gauge(
                "perennial_on_demand_loaded",
                "Certificates on demand that are in memory.",
            ),
            evictions: counters(
                registry,
                "perennial_on_demand_evictions_total",
                "Certificates on demand that made room in memory for others.",
                &[],
            ),
            budget_refusals: counters(
                registry,
                "perennial_on_demand_budget_refusals_total",
                "Names that were refused because a budget was spent.",
                &["budget"],
            ),
        }
    }

    fn set(&self, gate: Option<&GateReport>, loaded: Option<OnDemandReport>) {
        let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.waiting.set(gate.map_or(0, |gate| count(gate.waiting)));
        self.refused_names
            .set(gate.map_or(0, |gate| count(gate.refused)));
        self.loaded
            .set(loaded.map_or(0, |loaded| count(loaded.loaded)));
        let evictions = self.evictions.with_label_values::<&str>(&[]);
        let total = loaded.map_or(0, |loaded| loaded.evictions);
        evictions.inc_by(total.saturating_sub(evictions.get()));
        for budget in gate.iter().flat_map(|gate| &gate.budgets) {
            let refusals = self.budget_refusals.with_label_values(&[budget.name]);
            refusals.inc_by(budget.refusals.saturating_sub(refusals.get()));
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics::new()
    }
}

impl Metrics {
    pub fn new() -> Metrics {
        let registry = Registry::new();
        let metrics = Metrics {
            requests: counters(
                &registry,
                "perennial_requests_total",
                "Requests answered, by site (its first host, - for none) and status.",
                &["site", "status"],
            ),
            request_duration: histogram(
                &registry,
                "perennial_request_duration_seconds",
                "From the request's header to the end of the answer, upgraded connections excepted.",
            ),
            upstreams: UpstreamMetrics::new(&registry),
            tls_handshakes: counters(
                &registry,
                "perennial_tls_handshakes_total",
                "TLS handshakes, by result and protocol version.",
                &["result", "version"],
            ),
            connections: register(
                &registry,
                IntGauge::new("perennial_connections", "Open client connections."),
            ),
            refused_connections: refused_connections(&registry),
            idle_closed: idle_closed(&registry),
            certificate_not_after: float_gauges(
                &registry,
                "perennial_certificate_not_after_seconds",
                "End of validity of the certificate served for a name, in Unix time.",
                &["name", "source"],
            ),
            certificate_reloads: counters(
                &registry,
                "perennial_certificate_reloads_total",
                "Certificates read after a change on disk, by result.",
                &["result"],
            ),
            certificate_reload_failing: gauges(
                &registry,
                "perennial_certificate_reload_failing",
                "1 while what is on disk for a name cannot be used and the last good one is served.",
                &["name"],
            ),
            doubts: Doubts::new(&registry),
            acme_orders: counters(
                &registry,
                "perennial_acme_orders_total",
                "ACME orders, by CA and result.",
                &["ca", "result"],
            ),
            acme_next_attempt: float_gauges(
                &registry,
                "perennial_acme_next_attempt_seconds",
                "When the next order for a name is due after a failure, in Unix time.",
                &["name"],
            ),
            queue: QueueMetrics::new(&registry),
            config_reloads: config_reloads(&registry),
            config_reload_failing: config_reload_failing(&registry),
            on_demand: OnDemandMetrics::new(&registry),
            lost_lines: lost_lines(&registry),
            lost_log_lines: lost_log_lines(&registry),
            registry,
        };
        metrics.set_build_info();
        metrics
    }

    /// How many lines of the access log were lost.
    /// `access`: of the access log, `other`: of the rest of the log.
    pub fn set_lost_lines(&self, access: u64, other: u64) {
        for (counter, lines) in [(&self.lost_lines, access), (&self.lost_log_lines, other)] {
            counter.inc_by(lines.saturating_sub(counter.get()));
        }
    }

    /// All metrics in Prometheus' text exposition format, version 0.0.4.
    pub fn render(&self) -> String {
        let mut text = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            tracing::error!(%error, "metrics cannot be written as text");
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    /// One request is over. `duration` is `None` for an upgraded connection: how long a WebSocket
    /// lives says nothing about how fast requests are answered.
    pub fn request(&self, site: &str, status: http::StatusCode, duration: Option<Duration>) {
        self.requests
            .with_label_values(&[site, status.as_str()])
            .inc();
        if let Some(duration) = duration {
            self.request_duration.observe(duration.as_secs_f64());
        }
    }

    pub fn upstream_healthy(&self, site: &str, upstream: &str, healthy: bool) {
        self.upstreams
            .healthy
            .with_label_values(&[site, upstream])
            .set(i64::from(healthy));
    }

    /// How many requests of a site wait for an upstream.
    pub fn upstream_pending(&self, site: &str, waiting: usize) {
        let waiting = i64::try_from(waiting).unwrap_or(i64::MAX);
        self.upstreams
            .pending
            .with_label_values(&[site])
            .set(waiting);
    }

    /// An upstream is left alone for a while.
    pub fn upstream_ejected(&self, site: &str, upstream: &str, cause: EjectionCause) {
        let labels = [site, upstream, cause.label()];
        self.upstreams.ejections.with_label_values(&labels).inc();
    }

    /// A request is sent again, or would be if it were `allowed`.
    pub fn upstream_retry(&self, site: &str, allowed: bool) {
        let counter = match allowed {
            true => &self.upstreams.retries,
            false => &self.upstreams.retries_refused,
        };
        counter.with_label_values(&[site]).inc();
    }

    /// A request found no place with an upstream. `cause`: `full` or `timeout`.
    pub fn upstream_busy(&self, site: &str, cause: &'static str) {
        let refused = &self.upstreams.pending_refused;
        refused.with_label_values(&[site, cause]).inc();
    }

    /// Drops all upstreams: a new configuration names its own.
    pub fn forget_upstreams(&self) {
        self.upstreams.healthy.reset();
        self.upstreams.pending.reset();
    }

    /// `result` is one of a fixed few words, `version` the protocol's name or `-`.
    pub fn tls_handshake(&self, result: &'static str, version: &'static str) {
        self.tls_handshakes
            .with_label_values(&[result, version])
            .inc();
    }

    /// Counts an open connection until the guard is dropped.
    pub fn connection(&self) -> OpenConnection {
        self.connections.inc();
        OpenConnection(self.connections.clone())
    }

    /// A connection that waited for a request was closed to make room for another.
    pub fn connection_made_room(&self) {
        self.idle_closed.inc();
    }

    /// A connection was closed before anything was said on it; why, one of a fixed few words.
    pub fn connection_refused(&self, reason: &'static str) {
        self.refused_connections.with_label_values(&[reason]).inc();
    }

    /// Brings everything about certificates up to date with what the reloader and the worker
    /// know. Called for each scrape: certificates change far less often than they are looked at.
    pub fn set_certificates(&self, report: &Report, subjects: &[SubjectStatus]) {
        self.certificate_not_after.reset();
        self.certificate_reload_failing.reset();
        for (id, entry) in &report.entries {
            if id.source == SourceKind::OnDemand {
                continue;
            }
            let label = match &entry.live {
                Some(live) => live.key.names()[0].to_string(),
                None => id.certificate.display().to_string(),
            };
            if let Some(live) = &entry.live {
                self.certificate_not_after
                    .with_label_values(&[&label, live.source.as_str()])
                    .set(unix_seconds(live.key.not_after()));
            }
            self.certificate_reload_failing
                .with_label_values(&[&label])
                .set(i64::from(entry.failure.is_some()));
        }
        self.acme_next_attempt.reset();
        for subject in subjects.iter().filter(|subject| !subject.on_demand) {
            if let Some(at) = subject.next_attempt {
                self.acme_next_attempt
                    .with_label_values(&[&subject.name.to_string()])
                    .set(unix_seconds(at));
            }
        }
        for (result, total) in [("ok", report.loads), ("failed", report.failures)] {
            let counter = self.certificate_reloads.with_label_values(&[result]);
            counter.inc_by(total.saturating_sub(counter.get()));
        }
    }

    /// Brings what is known of TLS files up to date. A file with two purposes fails if one does.
    pub fn set_tls_files(&self, files: &[TlsFile], now: OffsetDateTime) {
        self.doubts.tls_file_reload_failing.reset();
        for file in files {
            let path = file.path.display().to_string();
            let gauge = self
                .doubts
                .tls_file_reload_failing
                .with_label_values(&[&path]);
            gauge.set(gauge.get().max(i64::from(file.error(now).is_some())));
        }
    }

    /// Brings everything about the configuration up to date. Called for each scrape.
    pub fn set_config(&self, report: &ConfigReport) {
        self.config_reload_failing
            .set(i64::from(report.error.is_some()));
        for (result, total) in [("ok", report.reloads), ("failed", report.failures)] {
            let counter = self.config_reloads.with_label_values(&[result]);
            counter.inc_by(total.saturating_sub(counter.get()));
        }
    }

    /// Brings the queue up to date.
    pub fn set_queue(&self, lanes: &[LaneReport]) {
        let QueueMetrics {
            waiting,
            running,
            held_until,
        } = &self.queue;
        waiting.reset();
        running.reset();
        held_until.reset();
        let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        for report in lanes {
            let (ca, work) = (report.lane.ca(), report.lane.kind());
            running
                .with_label_values(&[ca, work])
                .set(count(report.running));
            for (priority, number) in Priority::ALL.iter().zip(report.waiting) {
                waiting
                    .with_label_values(&[ca, work, priority.as_str()])
                    .set(count(number));
            }
            if let Some((until, _)) = &report.held {
                held_until
                    .with_label_values(&[ca])
                    .set(unix_seconds(*until));
            }
        }
    }

    /// Which certificates from files are late.
    pub fn set_overdue(&self, report: &Report, late: &Late) {
        self.doubts.overdue.reset();
        for (id, entry) in &report.entries {
            if let Some(live) = entry.live.as_ref().filter(|live| live.source.is_external()) {
                let gauge = self
                    .doubts
                    .overdue
                    .with_label_values(&[&live.key.names()[0].to_string()]);
                // Of several certificates for a name one that is late is enough.
                let is_late = late.entries.contains_key(id);
                gauge.set(gauge.get().max(i64::from(is_late)));
            }
        }
    }

    /// What the self-check found, for each name that it looked at.
    pub fn set_proof(&self, proof: &Proof) {
        self.doubts.served_differs.reset();
        for (name, check) in proof.checks() {
            self.doubts
                .served_differs
                .with_label_values(&[&name.to_string()])
                .set(i64::from(check.difference.is_some()));
        }
    }

    /// A handshake asked for a name without a certificate; how that ended, one of a fixed few
    /// words.
    pub fn on_demand(&self, result: &'static str) {
        self.on_demand.results.with_label_values(&[result]).inc();
    }

    /// Permission for a name was asked for; `yes`, `no` or `unknown`.
    pub fn on_demand_question(&self, answer: &'static str) {
        self.on_demand.questions.with_label_values(&[answer]).inc();
    }

    /// Brings what is had on demand up to date. Called for each scrape.
    pub fn set_on_demand(&self, gate: Option<&GateReport>, loaded: Option<OnDemandReport>) {
        self.on_demand.set(gate, loaded);
    }

    pub fn acme_order(&self, ca: &str, result: &'static str) {
        self.acme_orders.with_label_values(&[ca, result]).inc();
    }

    fn set_build_info(&self) {
        let info = Opts::new("perennial_build_info", "Always 1; the version is a label.")
            .const_label("version", env!("CARGO_PKG_VERSION"));
        register(&self.registry, Gauge::with_opts(info)).set(1.0);
    }
}

/// A client connection that counts as open. See [`Metrics::connection`].
pub struct OpenConnection(IntGauge);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.dec();
    }
}

fn unix_seconds(at: OffsetDateTime) -> f64 {
    at.unix_timestamp() as f64
}

/// Names, labels and buckets are constants of this file, each used once in a registry of its own:
/// what could fail here would fail in every run, the tests' among them.
#[expect(clippy::expect_used, reason = "constants, see above")]
fn register<C>(registry: &Registry, collector: prometheus::Result<C>) -> C
where
    C: prometheus::core::Collector + Clone + 'static,
{
    let collector = collector.expect("metric names and labels are valid constants");
    registry
        .register(Box::new(collector.clone()))
        .expect("metric names are unique");
    collector
}

fn refused_connections(registry: &Registry) -> IntCounterVec {
    counters(
        registry,
        "perennial_connections_refused_total",
        "Connections that were closed at once, by reason: a limit, a missing PROXY protocol header, nothing left of what the host has (accept).",
        &["reason"],
    )
}

fn idle_closed(registry: &Registry) -> IntCounter {
    let name = "perennial_connections_idle_closed_total";
    let help = "Connections that waited for a request and were closed to make room for others.";
    register(registry, IntCounter::new(name, help))
}

fn config_reloads(registry: &Registry) -> IntCounterVec {
    counters(
        registry,
        "perennial_config_reloads_total",
        "Changes of the configuration while running, by result.",
        &["result"],
    )
}

fn lost_lines(registry: &Registry) -> IntCounter {
    let name = "perennial_access_log_lost_lines_total";
    let help = "Lines of the access log that nobody took in time.";
    register(registry, IntCounter::new(name, help))
}

fn lost_log_lines(registry: &Registry) -> IntCounter {
    let name = "perennial_log_lost_lines_total";
    let help =
        "Lines of the log on stderr that nobody took in time, those of the access log apart.";
    register(registry, IntCounter::new(name, help))
}

fn config_reload_failing(registry: &Registry) -> IntGauge {
    let help = "1 while the configuration on disk cannot run and the one before it does.";
    register(
        registry,
        IntGauge::new("perennial_config_reload_failing", help),
    )
}

fn counters(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    register(registry, IntCounterVec::new(Opts::new(name, help), labels))
}

fn gauges(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
    register(registry, IntGaugeVec::new(Opts::new(name, help), labels))
}

fn float_gauges(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> GaugeVec {
    register(registry, GaugeVec::new(Opts::new(name, help), labels))
}

fn histogram(registry: &Registry, name: &str, help: &str) -> Histogram {
    let options = HistogramOpts::new(name, help).buckets(DURATION_BUCKETS.to_vec());
    register(registry, Histogram::with_opts(options))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_is_rendered() {
        let metrics = Metrics::new();
        metrics.request(
            "example.com",
            http::StatusCode::OK,
            Some(Duration::from_millis(3)),
        );
        metrics.upstream_healthy("example.com", "127.0.0.1:3000", false);
        metrics.tls_handshake("ok", "TLSv1.3");
        metrics.acme_order("https://ca.example/directory", "issued");
        let open = metrics.connection();
        let text = metrics.render();
        for line in [
            r#"perennial_requests_total{site="example.com",status="200"} 1"#,
            "perennial_request_duration_seconds_count 1",
            r#"perennial_upstream_healthy{site="example.com",upstream="127.0.0.1:3000"} 0"#,
            r#"perennial_tls_handshakes_total{result="ok",version="TLSv1.3"} 1"#,
            "perennial_connections 1",
            r#"perennial_build_info{version="#,
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        drop(open);
        assert!(metrics.render().contains("perennial_connections 0"));
    }
}
