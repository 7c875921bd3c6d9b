//! One line for each request, and one more with the reason if something went wrong.

use std::time::Duration;

use http::{StatusCode, Version};

use super::context::Context;
use super::decision::{authority, origin_form, path_of};
use super::failure::Fault;
use crate::listener::ConnectionInfo;
use crate::message::{Known, RequestHead};

/// The name of the access log's events, for filters.
const TARGET: &str = "perennial::access";

/// What nginx calls a request whose client left before the answer; no client ever sees it.
const CLIENT_CLOSED_REQUEST: u16 = 499;

/// The status of a request that was not answered.
pub fn client_closed() -> StatusCode {
    // 499 is within 100..=999.
    StatusCode::from_u16(CLIENT_CLOSED_REQUEST).unwrap_or(StatusCode::BAD_REQUEST)
}

/// Writes both lines. Values are given as strings, which the log's formats escape: a client cannot
/// forge lines.
pub fn record(
    request: &RequestHead,
    context: &Context,
    connection: &ConnectionInfo,
    status: StatusCode,
    duration: Duration,
) {
    if tracing::enabled!(target: TARGET, tracing::Level::INFO) {
        record_access(request, context, connection, status, duration);
    }
    if !context.failures.is_empty() {
        record_failure(request, context, status);
    }
}

/// A line for what is no request: there is hardly anything to say of it.
pub fn record_malformed(connection: &ConnectionInfo, status: StatusCode, reason: &str) {
    let client = connection.client.ip();
    let status = status.as_u16();
    tracing::info!(target: TARGET, %client, status, reason, "not a request");
}

fn record_access(
    request: &RequestHead,
    context: &Context,
    connection: &ConnectionInfo,
    status: StatusCode,
    duration: Duration,
) {
    let tls = connection.tls.as_ref();
    let user_agent = request.fields.get(Known::UserAgent);
    tracing::info!(
        target: TARGET,
        client = tracing::field::display(&connection.client_ip),
        method = request.method.as_str(),
        host = &*text(authority(request).unwrap_or_default()),
        path = &*text(path_of(origin_form(request.target()))),
        status = status.as_u16(),
        bytes = context.bytes,
        duration_ms = duration.as_micros() as f64 / 1000.0,
        upstream = context.upstream_label(),
        protocol = protocol(request.version),
        tls = tls.map_or("-", |tls| tls.version),
        user_agent = user_agent.map(text).as_deref(),
    );
}

fn record_failure(request: &RequestHead, context: &Context, status: StatusCode) {
    let reason = context.failures.join("; ");
    let site = context.site_label();
    let path = text(path_of(origin_form(request.target())));
    let (reason, path, status) = (&*reason, &*path, status.as_u16());
    match context.fault {
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
