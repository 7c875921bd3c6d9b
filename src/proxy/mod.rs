//! From a request to an answer: which site, which upstream, which headers, over Pingora's
//! [`HttpProxy`](pingora::proxy::HttpProxy). It owns no sockets and no certificates, and never
//! waits for a CA.

mod access_log;
mod address;
mod answered;
mod context;
mod decision;
mod failure;
mod forwarded;
mod framing;
mod host;
mod read_timeout;
mod resolver;
mod respond;
mod routing;
mod server;
mod upgrade;
mod upstream;
pub mod upstream_tls;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use http::{StatusCode, Version, header};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::modules::http::HttpModules;
use pingora::protocols::Digest;
use pingora::proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorType, Result};

use crate::acme::challenges::Challenges;
use crate::admin::metrics::Metrics;
use crate::listener::ConnectionInfo;

use context::{Context, Forwarding};
use decision::{Action, Decision, Handshake, Refusal, Surroundings};
use failure::Failure;
use read_timeout::ReadTimeout;
use respond::Answer;

pub use routing::{Route, Routing, Site};
pub use server::{http_proxy, server_conf};
pub use upstream::{Pool, Upstream};

/// How long a connection waits for the next request. Pingora waits for ever once a client has
/// asked for HTTP/1.1.
const KEEPALIVE_SECONDS: u64 = 60;

/// For each write to a client: longer than a bad radio link is silent.
const CLIENT_WRITE_TIMEOUT: Duration = Duration::from_secs(60);

/// How long the rest of a body that nobody wants is read, to keep the connection.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// The proxy, for connections with and without TLS. Clones share everything.
#[derive(Clone)]
pub struct Proxy {
    routing: Arc<ArcSwap<Routing>>,
    challenges: Challenges,
    metrics: Arc<Metrics>,
    /// Where redirects lead; known once the listener is bound.
    https_port: Arc<AtomicU16>,
}

impl Proxy {
    /// Whoever stores another [`Routing`] later calls [`Routing::register`] for it.
    pub fn new(
        routing: Arc<ArcSwap<Routing>>,
        challenges: Challenges,
        metrics: Arc<Metrics>,
        https_port: Arc<AtomicU16>,
    ) -> Proxy {
        routing.load().register(&metrics);
        Proxy {
            routing,
            challenges,
            metrics,
            https_port,
        }
    }

    fn decide(&self, session: &Session) -> Decision {
        let tls = connection(session).and_then(|connection| connection.tls.as_ref());
        let served = tls.and_then(|tls| tls.served.as_ref());
        let covers = |name: &_| served.is_some_and(|served| served.covers(name));
        let surroundings = Surroundings {
            routing: &self.routing.load(),
            key_authorization: &|token| self.challenges.http01(token),
            tls: tls.map(|tls| Handshake {
                server_name: tls.server_name.as_deref(),
                client_auth: tls.client_auth.as_deref(),
                covers: &covers,
            }),
            https_port: self.https_port.load(Ordering::Relaxed),
        };
        decision::decide(session.req_header(), &surroundings)
    }

    /// The answer that needs no upstream, if there is one.
    fn answer(action: Action, session: &Session, context: &mut Context) -> Option<Answer> {
        match action {
            Action::KeyAuthorization(text) => Some(Answer::key_authorization(text)),
            Action::Redirect(location) => Some(Answer::redirect(location)),
            Action::Refuse(refusal) => Some(Answer::refusal(refusal)),
            Action::Proxy { route } => {
                let site = context.site.clone()?;
                let read_timeout = ReadTimeout::for_request(
                    &session.req_header().headers,
                    session.is_upgrade_req(),
                );
                let forwarding = Forwarding::new(site, route, read_timeout);
                let fixed = forwarding.pool().fixed_answer(forwarding.turn);
                let answer = fixed.map(Answer::fixed);
                context.forwarding = Some(forwarding);
                answer
            }
        }
    }
}

/// Answers a request that is a CA's look at an HTTP-01 challenge. `false`: it is none that we know.
pub async fn answer_challenge(session: &mut Session, challenges: &Challenges) -> Result<bool> {
    let request = session.req_header();
    let token = decision::challenge_token(&request.method, request.uri.path().as_bytes());
    let Some(answer) = token.and_then(|token| challenges.http01(token)) else {
        return Ok(false);
    };
    Answer::key_authorization(answer).send(session).await?;
    Ok(true)
}

#[async_trait]
impl ProxyHttp for Proxy {
    type CTX = Context;

    fn new_ctx(&self) -> Context {
        Context::default()
    }

    /// No modules: Pingora's default would be compression.
    fn init_downstream_modules(&self, _modules: &mut HttpModules) {}

    async fn request_filter(&self, session: &mut Session, context: &mut Context) -> Result<bool> {
        bound_waiting(session);
        // RFC 9110 section 15.2: HTTP/1.0 knows no interim responses.
        let is_http_1_0 = session.req_header().version == Version::HTTP_10;
        session.set_ignore_info_resp(is_http_1_0);
        if !framing::is_unambiguous(session.as_downstream()) {
            // Nobody knows where the next request begins.
            session.set_keepalive(None);
            let answer = Answer::refusal(Refusal::Framing);
            return answer.send(session).await.map(|()| true);
        }
        let Decision { site, action } = self.decide(session);
        context.site = site;
        match Proxy::answer(action, session, context) {
            Some(answer) => answer.send(session).await.map(|()| true),
            None => Ok(false),
        }
    }

    async fn upstream_peer(
        &self,
        session: &mut Session,
        context: &mut Context,
    ) -> Result<Box<HttpPeer>> {
        let forwarding = context.forwarding.as_mut().ok_or_else(not_forwarding)?;
        let read_timeout = forwarding.read_timeout;
        let attempt = forwarding.advance().await?;
        let mut peer = attempt.address().peer(read_timeout);
        if session.is_upgrade_req() {
            upgrade::prepare(&mut peer);
        }
        Ok(peer)
    }

    async fn connected_to_upstream(
        &self,
        _session: &mut Session,
        reused: bool,
        _peer: &HttpPeer,
        _fd: std::os::unix::io::RawFd,
        digest: Option<&Digest>,
        context: &mut Context,
    ) -> Result<()> {
        upstream_tls::verify_address(digest)?;
        if let (false, Some(forwarding)) = (reused, &context.forwarding)
            && let Some(attempt) = &forwarding.attempt
            && let Some(upstream) = forwarding.pool().dialled(attempt)
        {
            let site = context.site_label();
            self.metrics.upstream_healthy(site, upstream.label(), true);
            tracing::info!(site, upstream = upstream.label(), "upstream is back");
        }
        Ok(())
    }

    fn fail_to_connect(
        &self,
        _session: &mut Session,
        _peer: &HttpPeer,
        context: &mut Context,
        mut error: Box<Error>,
    ) -> Box<Error> {
        context.note_dial(&error);
        if let Some(forwarding) = &context.forwarding
            && let Some(attempt) = &forwarding.attempt
            && let Some(upstream) = forwarding.pool().dial_failed(attempt)
        {
            let site = context.site_label();
            self.metrics.upstream_healthy(site, upstream.label(), false);
        }
        // Nothing of the request was sent. Whether there is another address to try is for
        // `upstream_peer` to find out: it may have to resolve a name.
        error.set_retry(true);
        error
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        request: &mut RequestHeader,
        _context: &mut Context,
    ) -> Result<()> {
        let connection = connection(session);
        let origin = forwarded::Origin {
            client: connection.map(|connection| connection.client.ip().to_canonical()),
            secure: connection.is_some_and(|connection| connection.tls.is_some()),
            host: decision::authority(session.req_header()).unwrap_or_default(),
        };
        forwarded::rewrite(request, &origin)
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        _context: &mut Context,
    ) -> Result<()> {
        if response.status == StatusCode::SWITCHING_PROTOCOLS && !session.is_upgrade_req() {
            let reason = "a switch of protocols that nobody asked for";
            return Err(Error::explain(ErrorType::InvalidHTTPHeader, reason).into_up());
        }
        answered::rewrite(response)?;
        let chunked = response.headers.contains_key(header::TRANSFER_ENCODING);
        if chunked && session.req_header().version == Version::HTTP_10 {
            // RFC 9112 section 7: it does not know chunks. The body ends with the connection.
            response.remove_header(&header::TRANSFER_ENCODING);
            session.set_keepalive(None);
        }
        Ok(())
    }

    async fn fail_to_proxy(
        &self,
        session: &mut Session,
        error: &Error,
        context: &mut Context,
    ) -> FailToProxy {
        let failure = Failure::of(error);
        context.note(error, failure.fault);
        if let Some(status) = failure.status.filter(|_| can_answer(session)) {
            // Pingora closes the connection after an error: the client had better know.
            session.set_keepalive(None);
            // If this fails, the client is gone, and the reason for it all is noted already.
            let _ = Answer::failure(status).send(session).await;
            drain(session).await;
        }
        FailToProxy {
            error_code: failure.status.map_or(0, |status| status.as_u16()),
            can_reuse_downstream: false,
        }
    }

    async fn logging(&self, session: &mut Session, _error: Option<&Error>, context: &mut Context) {
        let duration = context.started.elapsed();
        let measured = (!session.was_upgraded()).then_some(duration);
        self.metrics
            .request(context.site_label(), access_log::status(session), measured);
        access_log::record(session, context, connection(session), duration);
    }

    /// The access log has the reason.
    fn suppress_error_log(&self, _: &Session, _: &Context, _: &Error) -> bool {
        true
    }

    /// So it has for what was tried again.
    fn suppress_proxy_warn_log(
        &self,
        _: &Session,
        _: &Context,
        _: &Error,
        _: ProxyWarnLogContext,
    ) -> bool {
        true
    }
}

/// What the listener knows about the client.
fn connection(session: &Session) -> Option<&ConnectionInfo> {
    let proxy_digest = session.digest()?.proxy_digest.as_ref()?;
    proxy_digest.user_data.as_ref()?.downcast_ref()
}

/// Ends what Pingora would wait for without end.
fn bound_waiting(session: &mut Session) {
    // `None`: the client or a shutdown wants the connection closed.
    if session.get_keepalive().is_some() {
        session.set_keepalive(Some(KEEPALIVE_SECONDS));
    }
    session.set_write_timeout(Some(CLIENT_WRITE_TIMEOUT));
    session.set_total_drain_timeout(Some(DRAIN_TIMEOUT));
    // RFC 9112 section 9.3.2: otherwise the second of two requests in a row is lost.
    session.set_pipelining_enabled(true);
    if session.is_upgrade_req() {
        // A WebSocket may be silent as long as it likes.
        session.set_read_timeout(None);
    }
}

/// Reads on for a moment: closing on a client that is still sending resets the connection, and the
/// client would not see its answer.
async fn drain(session: &mut Session) {
    let body_comes = !session.req_header().headers.contains_key(header::EXPECT);
    if body_comes && !session.is_http2() {
        // If this fails, the client is gone, which is what is about to happen anyway.
        let _ = session.drain_request_body().await;
    }
}

/// Whether the client has not been sent any final response yet.
fn can_answer(session: &Session) -> bool {
    session
        .response_written()
        .is_none_or(|response| response.status.is_informational() && response.status != 101)
}

fn not_forwarding() -> Box<Error> {
    Error::explain(
        ErrorType::InternalError,
        "a request without a route reached the upstream phase",
    )
    .into_in()
}
