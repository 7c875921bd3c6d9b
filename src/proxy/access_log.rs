//! One line for each request, and one more with the reason if something went wrong.

use std::time::Duration;

use http::{StatusCode, Version};
use pingora::proxy::Session;

use super::context::Context;
use super::decision::{authority, origin_form, path_of};
use super::failure::Fault;
use crate::listener::ConnectionInfo;

/// The name of the access log's events, for filters.
const TARGET: &str = "perennial::access";

/// What nginx calls a request whose client left before the answer; no client ever sees it.
const CLIENT_CLOSED_REQUEST: u16 = 499;

/// The status that the client was sent.
pub fn status(session: &Session) -> StatusCode {
    match session.response_written() {
        Some(response) => response.status,
        // 499 is within 100..=999.
        None => StatusCode::from_u16(CLIENT_CLOSED_REQUEST).unwrap_or(StatusCode::BAD_REQUEST),
    }
}

/// Writes both lines. Values are given as strings, which the log's formats escape: a client cannot
/// forge lines.
pub fn record(
    session: &Session,
    context: &Context,
    connection: Option<&ConnectionInfo>,
    duration: Duration,
) {
    let status = status(session).as_u16();
    record_access(session, context, connection, status, duration);
    if !context.failures.is_empty() {
        record_failure(session, context, status);
    }
}

fn record_access(
    session: &Session,
    context: &Context,
    connection: Option<&ConnectionInfo>,
    status: u16,
    duration: Duration,
) {
    if !tracing::enabled!(target: TARGET, tracing::Level::INFO) {
        return;
    }
    let request = session.req_header();
    let client = connection.map(|connection| connection.client.ip());
    let tls = connection.and_then(|connection| connection.tls.as_ref());
    let user_agent = request.headers.get(http::header::USER_AGENT);
    tracing::info!(
        target: TARGET,
        client = client.map(tracing::field::display),
        method = request.method.as_str(),
        host = &*text(authority(request).unwrap_or_default()),
        path = &*text(path_of(origin_form(request))),
        status,
        bytes = session.body_bytes_sent(),
        duration_ms = duration.as_micros() as f64 / 1000.0,
        upstream = context.upstream_label(),
        protocol = protocol(request.version),
        tls = tls.map_or("-", |tls| tls.version),
        user_agent = user_agent.map(|value| text(value.as_bytes())).as_deref(),
    );
}

fn record_failure(session: &Session, context: &Context, status: u16) {
    let reason = context.failures.join("; ");
    let site = context.site_label();
    let path = text(path_of(origin_form(session.req_header())));
    let (reason, path) = (&*reason, &*path);
    match context.fault {
        Some(Fault::Proxy) => tracing::error!(site, path, status, reason, "request failed"),
        Some(Fault::Upstream) => tracing::warn!(site, path, status, reason, "request failed"),
        // Clients leave all the time.
        Some(Fault::Client) => tracing::debug!(site, path, status, reason, "request failed"),
        None => tracing::warn!(
            site,
            path,
            status,
            reason,
            "an upstream failed, another answered"
        ),
    }
}

fn text(bytes: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_2 => "HTTP/2",
        Version::HTTP_11 => "HTTP/1.1",
        Version::HTTP_10 => "HTTP/1.0",
        _ => "-",
    }
}
