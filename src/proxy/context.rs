//! What the proxy knows about one request, from its header to its line in the log.

use std::sync::Arc;
use std::time::Instant;

use http::StatusCode;
use pingora::{Error, ErrorType};

use super::failure::{Fault, reason, upstream_status};
use super::read_timeout::ReadTimeout;
use super::routing::Site;
use super::upstream::{Attempt, Pool, Tried};

/// The state of one request.
pub struct Context {
    pub started: Instant,
    pub site: Option<Arc<Site>>,
    pub forwarding: Option<Forwarding>,
    /// What went wrong, in order; it need not have been the end of the request.
    pub failures: Vec<String>,
    /// Whose fault the end of the request was, if it failed.
    pub fault: Option<Fault>,
}

/// A request on its way to an upstream.
pub struct Forwarding {
    site: Arc<Site>,
    route: usize,
    pub turn: usize,
    pub read_timeout: ReadTimeout,
    pub attempt: Option<Attempt>,
    pub tried: Tried,
    /// What the last failed dial means for the client, should no other succeed.
    dial_status: Option<StatusCode>,
}

impl Default for Context {
    fn default() -> Self {
        Context {
            started: Instant::now(),
            site: None,
            forwarding: None,
            failures: Vec::new(),
            fault: None,
        }
    }
}

impl Context {
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

    /// Notes what ended the request. A dial that failed was noted at once.
    pub fn note(&mut self, error: &Error, fault: Fault) {
        self.fault = Some(fault);
        let reason = match error.etype() {
            ErrorType::HTTPStatus(_) => error.context.as_ref().map(|text| text.to_string()),
            _ => Some(self.blamed(fault, &reason(error))),
        };
        let news = reason.filter(|reason| !reason.is_empty() && !self.failures.contains(reason));
        self.failures.extend(news);
    }

    /// Notes a dial that failed; its upstream will not be tried again for this request.
    pub fn note_dial(&mut self, error: &Error) {
        let reason = self.blamed(Fault::Upstream, &reason(error));
        self.failures.push(reason);
        if let Some(forwarding) = &mut self.forwarding {
            forwarding.dial_status = Some(upstream_status(error.etype()));
            let tried = forwarding.attempt.as_ref().map(Attempt::as_tried);
            forwarding.tried.extend(tried);
        }
    }

    fn blamed(&self, fault: Fault, reason: &str) -> String {
        match fault {
            Fault::Client => format!("client: {reason}"),
            Fault::Upstream => format!("{}: {reason}", self.upstream_label()),
            Fault::Proxy => reason.to_owned(),
        }
    }
}

impl Forwarding {
    pub fn new(site: Arc<Site>, route: usize, read_timeout: ReadTimeout) -> Forwarding {
        let turn = site.routes[route].pool.take_turn();
        Forwarding {
            site,
            route,
            turn,
            read_timeout,
            attempt: None,
            tried: Tried::new(),
            dial_status: None,
        }
    }

    pub fn pool(&self) -> &Pool {
        &self.site.routes[self.route].pool
    }

    /// Chooses the next address. The error carries the status for the client: that of the last
    /// failed dial, or 503 if there was nothing to dial.
    pub async fn advance(&mut self) -> Result<&Attempt, Box<Error>> {
        match self.pool().choose(self.turn, &self.tried).await {
            Ok(attempt) => Ok(self.attempt.insert(attempt)),
            Err(reason) => {
                let status = self.dial_status.unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
                let kind = ErrorType::HTTPStatus(status.as_u16());
                Err(Error::explain(kind, reason).into_up())
            }
        }
    }
}
