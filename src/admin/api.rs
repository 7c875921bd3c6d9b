//! The admin API's requests and answers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use serde::Serialize;
use serde_json::json;
use tokio::sync::{mpsc, oneshot};

use super::guard;
use super::metrics::Metrics;
use super::status::{self, CertificateStatus, NameStatus, OnDemandStatus, Status};
use crate::acme::account::revocation::RevocationReason;
use crate::acme::subject::takeover_hosts;
use crate::acme::worker::{
    AccountChange, AccountChanged, Decision, Deleted, RenewError, RenewMode, RevocationAnswer,
    WorkerHandle,
};
use crate::certificate::attention::SharedAttention;
use crate::certificate::name::Name;
use crate::certificate::proof::SharedProof;
use crate::certificate::reloader::{Reloader, Report};
use crate::certificate::trust::TlsFiles;
use crate::clock;
use crate::config::Config;
use crate::config::watch::{ConfigReport, ConfigWatch, Outcome};
use crate::on_demand::OnDemand;
use crate::proxy::{Routing, access_log};
use crate::stderr_log;

/// What the admin API shows, and what it can set off.
pub struct Api {
    /// The running one.
    pub config: Arc<ArcSwap<Config>>,
    /// `None` where the configuration is no file.
    pub config_watch: Option<ConfigWatch>,
    pub reloader: Reloader,
    pub tls_files: TlsFiles,
    pub worker: WorkerHandle,
    pub on_demand: OnDemand,
    pub metrics: Arc<Metrics>,
    pub routing: Arc<ArcSwap<Routing>>,
    pub proof: SharedProof,
    pub attention: SharedAttention,
    pub started: Instant,
    pub upgrade: mpsc::Sender<UpgradeRequest>,
}

/// A wish that a new process takes over.
pub struct UpgradeRequest {
    /// Its process id, or why nothing came of it.
    pub answer: oneshot::Sender<Result<u32, String>>,
}

type Answer = Response<Full<Bytes>>;

impl Api {
    /// Answers a request. `listener` is the TCP address it came in on; `None` for a Unix socket.
    pub async fn answer<B>(&self, request: &Request<B>, listener: Option<SocketAddr>) -> Answer {
        let path = request.uri().path();
        let probe = matches!(path, "/healthz" | "/readyz");
        if let Some(listener) = listener
            && !probe
            && let Err(refusal) = guard::check(request.headers(), listener)
        {
            return error(StatusCode::FORBIDDEN, refusal.message());
        }
        match (request.method(), path) {
            (&Method::GET | &Method::HEAD, _) => self.get(path),
            (&Method::POST, "/reload") => self.reload().await,
            (&Method::POST, "/upgrade") => self.upgrade().await,
            (&Method::POST, "/account/rollover") => {
                self.change_account(AccountChange::RollOver, request.uri().query())
                    .await
            }
            (&Method::POST, "/account/deactivate") => {
                self.change_account(AccountChange::Deactivate, request.uri().query())
                    .await
            }
            (&Method::POST, _) => self.change_certificate(path, request.uri().query()).await,
            _ => {
                let mut answer = error(
                    StatusCode::METHOD_NOT_ALLOWED,
                    "only GET and POST are known",
                );
                let allowed = http::HeaderValue::from_static("GET, HEAD, POST");
                answer.headers_mut().insert(ALLOW, allowed);
                answer
            }
        }
    }

    fn get(&self, path: &str) -> Answer {
        match path {
            "/healthz" => text(StatusCode::OK, "ok\n".to_owned()),
            "/readyz" => self.ready(),
            "/status" => json_answer(StatusCode::OK, &self.status()),
            "/metrics" => text(StatusCode::OK, self.render_metrics()),
            _ => match path.strip_prefix("/certificates/") {
                Some(name) => self.certificates_for(name),
                None => not_found(path),
            },
        }
    }

    fn certificates_for(&self, name: &str) -> Answer {
        let Ok(name) = name.parse::<Name>() else {
            return error(StatusCode::BAD_REQUEST, &format!("{name:?} is not a name"));
        };
        let report = self.reloader.report();
        let takeover = takeover_hosts(&self.config.load()).collect();
        let rows = self.certificates(&report);
        let found = status::for_name(&name, rows, &report, &takeover, clock::now());
        if found.is_empty() {
            let message = format!("there is no certificate for {name}; /status has them all");
            return error(StatusCode::NOT_FOUND, &message);
        }
        let answer = NameStatus {
            name: name.to_string(),
            certificates: found,
        };
        json_answer(StatusCode::OK, &answer)
    }

    fn certificates(&self, report: &Report) -> Vec<CertificateStatus> {
        status::certificates(
            report,
            &self.worker.status(),
            &self.proof.lock(),
            &self.attention.load().late,
            clock::now(),
        )
    }

    fn ready(&self) -> Answer {
        let now = clock::now();
        let report = self.reloader.report();
        let sites = status::sites(&self.config.load(), &self.reloader.table().load(), now);
        let reasons = status::unready_reasons(&sites, &report, now);
        let code = if reasons.is_empty() {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        };
        json_answer(
            code,
            &json!({
                "ready": reasons.is_empty(),
                "reasons": reasons,
                "warnings": self.warnings(),
            }),
        )
    }

    fn status(&self) -> Status {
        let report = self.reloader.report();
        let now = clock::now();
        let config = self.config.load();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: self.started.elapsed().as_secs(),
            config: config.path.clone(),
            config_error: self.config_report().error.clone(),
            state_dir: config.server.state_dir.clone(),
            reloader_heartbeat: clock::rfc3339(report.heartbeat),
            sites: status::sites(&config, &self.reloader.table().load(), now),
            upstreams: status::upstreams(&self.routing.load()),
            certificates: self.certificates(&report),
            queue: status::queue(&self.worker.queue()),
            tls_files: status::tls_files(&self.tls_files.report(), now),
            warnings: self.warnings(),
            on_demand: self.on_demand_status(&config, &report),
        }
    }

    fn warnings(&self) -> Vec<String> {
        let mut warnings = self.worker.warnings();
        warnings.extend(self.attention.load().warnings());
        warnings
    }

    fn on_demand_status(&self, config: &Config, report: &Report) -> Option<OnDemandStatus> {
        let settings = config.acme.on_demand.as_ref()?;
        let loaded = report.on_demand?;
        Some(status::on_demand(
            settings,
            &self.on_demand.report()?,
            loaded,
        ))
    }

    fn render_metrics(&self) -> String {
        let report = self.reloader.report();
        self.metrics
            .set_certificates(&report, &self.worker.status());
        self.metrics
            .set_tls_files(&self.tls_files.report(), clock::now());
        self.metrics.set_queue(&self.worker.queue());
        self.metrics.set_config(&self.config_report());
        self.routing.load().register(&self.metrics);
        self.metrics
            .set_lost_lines(access_log::lost_lines(), stderr_log::lost());
        let gate = self.on_demand.report();
        self.metrics.set_on_demand(gate.as_ref(), report.on_demand);
        self.metrics.set_proof(&self.proof.lock());
        self.metrics
            .set_overdue(&report, &self.attention.load().late);
        self.metrics.render()
    }

    fn config_report(&self) -> Arc<ConfigReport> {
        let watch = self.config_watch.as_ref();
        watch.map(ConfigWatch::report).unwrap_or_default()
    }

    async fn reload(&self) -> Answer {
        let (config, mut changes) = match &self.config_watch {
            Some(watch) => watch.reload().await,
            None => (Outcome::Unchanged, Vec::new()),
        };
        self.tls_files.rescan().await;
        match self.reloader.rescan().await {
            Some(found) => {
                changes.extend(found);
                json_answer(
                    StatusCode::OK,
                    &json!({ "changes": changes, "config": config }),
                )
            }
            None => error(StatusCode::SERVICE_UNAVAILABLE, "the process is stopping"),
        }
    }

    /// Answers once the new process serves.
    async fn upgrade(&self) -> Answer {
        let (answer, result) = oneshot::channel();
        if self.upgrade.try_send(UpgradeRequest { answer }).is_err() {
            let message = "a new process is about to take over already";
            return error(StatusCode::CONFLICT, message);
        }
        match result.await {
            Ok(Ok(pid)) => json_answer(StatusCode::OK, &json!({ "pid": pid })),
            Ok(Err(reason)) => error(StatusCode::CONFLICT, &reason),
            Err(_) => error(StatusCode::SERVICE_UNAVAILABLE, "the process is stopping"),
        }
    }

    /// `?ca=` is the name of the CA's folder in the state directory.
    async fn change_account(&self, change: AccountChange, query: Option<&str>) -> Answer {
        let ca = parameter(query, "ca").map(str::to_owned);
        match self.worker.change_account(ca, change).await {
            Ok(AccountChanged { ca, account }) => {
                json_answer(StatusCode::OK, &json!({ "ca": ca, "account": account }))
            }
            Err(reason) => error(status_of(&reason), &reason.to_string()),
        }
    }

    /// `POST /certificates/NAME/VERB`.
    async fn change_certificate(&self, path: &str, query: Option<&str>) -> Answer {
        let target = path.strip_prefix("/certificates/");
        let Some((name, verb)) = target.and_then(|target| target.rsplit_once('/')) else {
            return not_found(path);
        };
        let Ok(name) = name.parse::<Name>() else {
            return error(StatusCode::BAD_REQUEST, &format!("{name:?} is not a name"));
        };
        match verb {
            "renew" => self.renew(name, query).await,
            "revoke" => self.revoke(name, query).await,
            "preflight" => self.preflight(&name).await,
            "delete" => self.delete(&name, query).await,
            _ => not_found(path),
        }
    }

    async fn preflight(&self, name: &Name) -> Answer {
        match self.worker.preflight(name).await {
            Ok(checks) => json_answer(StatusCode::OK, &checks),
            Err(reason) => error(status_of(&reason), &reason.to_string()),
        }
    }

    async fn delete(&self, name: &Name, query: Option<&str>) -> Answer {
        let force = parameter(query, "force") == Some("true");
        match self.worker.delete(name, force).await {
            Ok(Deleted { archived, used }) => json_answer(
                StatusCode::OK,
                &json!({ "name": name.to_string(), "archived": archived, "used": used }),
            ),
            Err(reason) => error(status_of(&reason), &reason.to_string()),
        }
    }

    /// `?reason=` as RFC 5280 spells it.
    async fn revoke(&self, name: Name, query: Option<&str>) -> Answer {
        let reason = parameter(query, "reason").unwrap_or("unspecified");
        let reason = match reason.parse::<RevocationReason>() {
            Ok(reason) => reason,
            Err(cause) => return error(StatusCode::BAD_REQUEST, &cause),
        };
        match self.worker.revoke(&name, reason).await {
            Ok(answer) => json_answer(StatusCode::OK, &RevocationStatus::of(&name, answer)),
            Err(reason) => error(status_of(&reason), &reason.to_string()),
        }
    }

    async fn renew(&self, name: Name, query: Option<&str>) -> Answer {
        let if_due = parameter(query, "if_due") == Some("true");
        let mode = if if_due {
            RenewMode::IfDue
        } else {
            RenewMode::Force
        };
        match self.worker.renew(&name, mode).await {
            Ok(decision) => json_answer(StatusCode::ACCEPTED, &Renewal::of(decision)),
            Err(reason) => error(status_of(&reason), &reason.to_string()),
        }
    }
}

/// What follows from a request to renew, as JSON.
#[derive(Serialize)]
struct Renewal {
    decision: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    explanation_url: Option<String>,
}

impl Renewal {
    fn of(decision: Decision) -> Renewal {
        let plain = |decision: String| Renewal {
            decision,
            until: None,
            explanation_url: None,
        };
        let until = |decision: &str, at| Renewal {
            until: Some(clock::rfc3339(at)),
            ..plain(decision.to_owned())
        };
        match decision {
            Decision::Ordering { reason } => plain(format!("ordering ({reason})")),
            Decision::InProgress => plain("an order is in progress".to_owned()),
            Decision::NotDue {
                next_renewal,
                explanation_url,
            } => Renewal {
                explanation_url,
                ..until("not due", next_renewal)
            },
            Decision::Waiting { until: at } => until("due, but waiting after failures", at),
            Decision::CoveredByFiles { until: at } => until("covered by files", at),
        }
    }
}

/// What was revoked, as JSON.
#[derive(Serialize)]
struct RevocationStatus {
    name: String,
    names: Vec<String>,
    serial: String,
    ca: String,
    reason: &'static str,
    /// Whose word the CA took: `account key` or `certificate key`.
    by: &'static str,
    /// The CA had it as revoked before.
    already_revoked: bool,
    /// What replaces it; absent where no site has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    replacement: Option<Renewal>,
}

impl RevocationStatus {
    fn of(name: &Name, answer: RevocationAnswer) -> RevocationStatus {
        let RevocationAnswer { revocation, next } = answer;
        RevocationStatus {
            name: name.to_string(),
            names: revocation.names,
            serial: revocation.serial,
            ca: revocation.ca,
            reason: revocation.reason.as_str(),
            by: revocation.revoked.by.as_str(),
            already_revoked: revocation.revoked.already,
            replacement: next.map(Renewal::of),
        }
    }
}

fn status_of(error: &RenewError) -> StatusCode {
    match error {
        RenewError::UnknownName(_) | RenewError::UnknownCa => StatusCode::NOT_FOUND,
        RenewError::Refused(_) | RenewError::NotWriter | RenewError::Unwritable(_) => {
            StatusCode::CONFLICT
        }
        RenewError::Loading | RenewError::Stopped => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// A parameter of a query. What we take has no characters that need an escape.
fn parameter<'a>(query: Option<&'a str>, name: &str) -> Option<&'a str> {
    let mut pairs = query.unwrap_or_default().split('&');
    pairs.find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

fn not_found(path: &str) -> Answer {
    error(StatusCode::NOT_FOUND, &format!("there is no {path} here"))
}

fn error(code: StatusCode, message: &str) -> Answer {
    json_answer(code, &json!({ "error": message }))
}

fn json_answer(code: StatusCode, body: &impl Serialize) -> Answer {
    match serde_json::to_vec_pretty(body) {
        Ok(mut bytes) => {
            bytes.push(b'\n');
            build(code, "application/json", bytes.into())
        }
        Err(problem) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{problem}\n")),
    }
}

fn text(code: StatusCode, body: String) -> Answer {
    build(code, "text/plain; charset=utf-8", body.into())
}

fn build(code: StatusCode, content_type: &'static str, body: Bytes) -> Answer {
    let mut answer = Response::new(Full::new(body));
    *answer.status_mut() = code;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, http::HeaderValue::from_static("no-store"));
    answer
}
