//! What the proxy knows about one request, from its head to its line in the log.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;

use super::address::Address;
use super::dial::DialError;
use super::failure::{Failure, Fault};
use super::forward_auth::Granted;
use super::routing::{Route, Site};
use super::upstream::{Attempt, Pool, Selection, Turned, Unchosen, Upstream};
use crate::config::{FieldRules, MinRates, ProxyProtocol};

/// The state of one request.
pub struct Context {
    pub started: Instant,
    pub site: Option<Arc<Site>>,
    /// The route of the site that the request is for.
    pub route: Option<usize>,
    pub forwarding: Option<Forwarding>,
    /// The client's address, where that is not the connection's.
    pub client: Option<Box<str>>,
    pub request_id: Option<Box<str>>,
    /// Who the client is, where it had to say so.
    pub user: Option<Box<str>>,
    /// What somebody who was asked about the request says of it.
    pub granted: Option<Arc<Granted>>,
    /// What the client was sent; `None` until it was, or if it left before.
    pub status: Option<StatusCode>,
    /// Bytes of body that it was sent.
    pub bytes: u64,
    /// Whether the connection has changed its protocol.
    pub switched: bool,
    /// What went wrong, in order; it need not have been the end of the request.
    pub failures: Vec<String>,
    /// Whose fault the end of the request was, if it failed.
    pub fault: Option<Fault>,
}

/// A request on its way to an upstream.
pub struct Forwarding {
    site: Arc<Site>,
    route: usize,
    pub selection: Selection,
    pub attempt: Option<Attempt>,
    /// Of what the connection was made under.
    pub version: u64,
    /// What the last failed dial means for the client, should no other succeed.
    dial_status: Option<StatusCode>,
}

impl Default for Context {
    fn default() -> Self {
        Context {
            started: Instant::now(),
            site: None,
            route: None,
            forwarding: None,
            client: None,
            request_id: None,
            user: None,
            granted: None,
            status: None,
            bytes: 0,
            switched: false,
            failures: Vec::new(),
            fault: None,
        }
    }
}

impl Context {
    /// The route that the request is for.
    pub fn route(&self) -> Option<&Route> {
        self.site.as_ref()?.routes.get(self.route?)
    }

    /// The name of the field for it, and the request's identifier.
    pub fn named_request(&self) -> Option<(&str, &str)> {
        let name = self.site.as_ref()?.settings.request_id.as_deref()?;
        Some((name, self.request_id.as_deref()?))
    }

    /// What the route changes of responses, if anything.
    pub fn response_rules(&self) -> Option<&FieldRules> {
        let changes = self.route()?.changes.as_ref()?;
        Some(&changes.response).filter(|rules| !rules.is_empty())
    }

    /// How much body the route takes, in bytes.
    pub fn max_body(&self) -> Option<u64> {
        self.route()?.guard.as_ref()?.max_body()
    }

    /// How slow the client may be.
    pub fn min_rates(&self) -> MinRates {
        let site = self.site.as_ref();
        site.map(|site| site.settings.min_rates).unwrap_or_default()
    }

    /// How upstreams are told on each connection whose it is, if they are.
    pub fn announced(&self) -> Option<ProxyProtocol> {
        self.route()?.proxy_protocol
    }

    /// What the route takes off the front of paths.
    pub fn strip_prefix(&self) -> Option<&str> {
        let changes = self.route()?.changes.as_ref()?;
        changes.strip_prefix.as_deref()
    }

    /// For metrics and logs.
    pub fn site_label(&self) -> &str {
        self.site.as_ref().map_or("-", |site| &site.label)
    }

    /// The address that answered, or was tried last.
    pub fn upstream_label(&self) -> &str {
        match &self.forwarding {
            None => "-",
            Some(forwarding) => match &forwarding.attempt {
                Some(attempt) => attempt.address().label(),
                None => "respond",
            },
        }
    }

    /// Where the request is going. It has a route by then.
    pub fn forwarding_mut(&mut self) -> Result<&mut Forwarding, Failure> {
        self.forwarding.as_mut().ok_or_else(nowhere)
    }

    /// Notes what ended the request. A dial that failed was noted at once.
    pub fn note(&mut self, failure: &Failure) {
        let fault = failure.fault();
        self.fault = Some(fault);
        let reason = match failure {
            Failure::NoUpstream { reason, .. } => reason.clone(),
            Failure::Busy(busy) => busy.to_string(),
            failure => self.blamed(fault, &failure.to_string()),
        };
        if !reason.is_empty() && !self.failures.contains(&reason) {
            self.failures.push(reason);
        }
    }

    /// Notes a dial that failed; its upstream will not be tried again for this request.
    pub fn note_dial(&mut self, error: &DialError) {
        let reason = self.blamed(Fault::Upstream, &error.to_string());
        self.failures.push(reason);
        if let Some(forwarding) = &mut self.forwarding {
            forwarding.dial_status = Some(match error.timed_out {
                true => StatusCode::GATEWAY_TIMEOUT,
                false => StatusCode::BAD_GATEWAY,
            });
            if let Some(attempt) = &forwarding.attempt {
                forwarding.selection.note_tried(attempt);
            }
        }
    }

    fn blamed(&self, fault: Fault, reason: &str) -> String {
        match fault {
            Fault::Client => format!("client: {reason}"),
            Fault::Upstream => format!("{}: {reason}", self.upstream_label()),
            Fault::Server => reason.to_owned(),
        }
    }
}

impl Forwarding {
    pub fn new(site: Arc<Site>, route: usize, selection: Selection) -> Forwarding {
        Forwarding {
            site,
            route,
            selection,
            attempt: None,
            version: 0,
            dial_status: None,
        }
    }

    /// For metrics.
    pub fn site_label(&self) -> &str {
        &self.site.label
    }

    pub fn pool(&self) -> &Pool {
        &self.site.routes[self.route].pool
    }

    /// Chooses the next address. The error carries the status for the client: that of the last
    /// failed dial, or 503 if there was nothing to dial.
    pub async fn advance(&mut self) -> Result<(), Failure> {
        // The place that it had is free for others, and for itself.
        if let Some(attempt) = &mut self.attempt {
            attempt.release();
        }
        let pool = &self.site.routes[self.route].pool;
        let chosen = match pool.choose_at_once(&mut self.selection) {
            Some(attempt) => Ok(attempt),
            None => Box::pin(pool.choose(&mut self.selection)).await,
        };
        match chosen {
            Ok(attempt) => {
                self.attempt = Some(attempt);
                Ok(())
            }
            Err(Unchosen::Busy(busy)) => Err(busy.into()),
            Err(Unchosen::Nowhere(reason)) => Err(self.nowhere(reason)),
        }
    }

    /// There is no other address, or none to be tried.
    pub fn nowhere(&self, reason: String) -> Failure {
        Failure::NoUpstream {
            status: self.dial_status.unwrap_or(StatusCode::SERVICE_UNAVAILABLE),
            reason,
        }
    }

    /// The cookie for the client, if it has none that leads to its upstream.
    pub fn cookie(&self, secure: bool) -> Option<String> {
        let attempt = self.attempt.as_ref()?;
        self.pool()
            .cookie(&self.selection, attempt.upstream, secure)
    }

    /// The address that was chosen last.
    pub fn address(&self) -> Result<&Address, Failure> {
        match &self.attempt {
            Some(attempt) => Ok(attempt.address()),
            None => Err(nowhere()),
        }
    }

    /// Notes what a connection to the address would be made under now.
    pub fn note_version(&mut self) {
        if let Some(attempt) = &self.attempt {
            self.version = attempt.address().version();
        }
    }

    /// The dial succeeded. The upstream, if it counted as unreachable until now.
    pub fn dialled(&self) -> Option<&Upstream> {
        self.pool().dialled(self.attempt.as_ref()?)
    }

    /// The dial failed. The upstream, if it counted as reachable until now, and for how long it is
    /// left alone.
    pub fn dial_failed(&self) -> Option<(&Upstream, Duration)> {
        self.pool().dial_failed(self.attempt.as_ref()?)
    }

    /// The upstream answered, or failed the request. The upstream, if that makes a difference.
    pub fn ended(&self, status: Option<StatusCode>) -> Option<(&Upstream, Turned)> {
        let attempt = self.attempt.as_ref()?;
        match status {
            Some(status) => self.pool().answered(attempt, status),
            None => self.pool().failed(attempt),
        }
    }
}

/// A request without a route has no upstream. It is answered before anybody looks for one.
fn nowhere() -> Failure {
    Failure::NoUpstream {
        status: StatusCode::INTERNAL_SERVER_ERROR,
        reason: "a request without a route reached the upstreams".to_owned(),
    }
}
