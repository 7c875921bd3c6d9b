//! One line for each request, and one more with the reason if something went wrong.

use std::cell::RefCell;
use std::io;
use std::sync::OnceLock;
use std::time::Duration;

use http::{StatusCode, Version};

use super::context::Context;
use super::decision::{authority, origin_form, path_of};
use super::failure::Fault;
use crate::listener::ConnectionInfo;
use crate::message::{Known, RequestHead};

pub use line::Format;
use line::Value;
use writer::LineWriter;
pub use writer::Writing;

mod line;
mod writer;

/// Where lines go, unless to whoever takes all events.
static LOG: OnceLock<AccessLog> = OnceLock::new();

struct AccessLog {
    format: Format,
    writer: LineWriter,
}

/// Sends the access log to stderr from now on, past the rest of the log. Filters decide as before
/// whether there is one. Once in a process.
pub fn to_stderr(format: Format) -> io::Result<Writing> {
    let (writer, writing) = LineWriter::start(io::stderr())?;
    match LOG.set(AccessLog { format, writer }) {
        Ok(()) => Ok(writing),
        Err(_) => Err(io::ErrorKind::AlreadyExists.into()),
    }
}

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
    if tracing::enabled!(target: TARGET, tracing::Level::INFO) {
        emit(&[
            ("client", Value::Word(&connection.client_ip)),
            ("status", Value::Number(status.as_u16().into())),
            ("malformed", Value::Text(reason.as_bytes())),
        ]);
    }
}

fn record_access(
    request: &RequestHead,
    context: &Context,
    connection: &ConnectionInfo,
    status: StatusCode,
    duration: Duration,
) {
    let tls = connection.tls.as_ref();
    let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    let client = context.client.as_ref().unwrap_or(&connection.client_ip);
    const ABSENT: (&str, Value<'_>) = ("", Value::Word(""));
    let mut fields = [
        ("client", Value::Word(client)),
        ("method", Value::Text(request.method.as_str().as_bytes())),
        ("host", Value::Text(authority(request).unwrap_or_default())),
        ("path", Value::Text(path_of(origin_form(request.target())))),
        ("status", Value::Number(status.as_u16().into())),
        ("bytes", Value::Number(context.bytes)),
        ("duration_ms", Value::Micros(micros)),
        ("upstream", Value::Text(context.upstream_label().as_bytes())),
        (
            "protocol",
            Value::Text(protocol(request.version).as_bytes()),
        ),
        (
            "tls",
            Value::Text(tls.map_or("-", |tls| tls.version).as_bytes()),
        ),
        ABSENT,
        ABSENT,
        ABSENT,
    ];
    let mut count = fields.len() - 3;
    // A client need not say what it is, and a request need not have a name.
    let agent = request.fields.get(Known::UserAgent);
    let id = context.request_id.as_deref();
    let user = context.user.as_deref();
    let optional = [
        agent.map(|agent| ("user_agent", Value::Text(agent))),
        user.map(|user| ("user", Value::Text(user.as_bytes()))),
        id.map(|id| ("request_id", Value::Text(id.as_bytes()))),
    ];
    for field in optional.into_iter().flatten() {
        fields[count] = field;
        count += 1;
    }
    emit(&fields[..count]);
}

/// Writes a line of the access log. The thread's own buffer is reused.
fn emit(fields: &[(&str, Value<'_>)]) {
    thread_local! {
        static LINE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    LINE.with_borrow_mut(|text| {
        text.clear();
        match LOG.get() {
            Some(log) => {
                line::write(text, log.format, TARGET, fields);
                log.writer.write(text);
            }
            None => {
                line::write_fields(text, fields);
                let text = String::from_utf8_lossy(text);
                tracing::info!(target: TARGET, "{}", text.trim_start());
            }
        }
    });
}

fn record_failure(request: &RequestHead, context: &Context, status: StatusCode) {
    let reason = context.failures.join("; ");
    let site = context.site_label();
    let path = text(path_of(origin_form(request.target())));
    let (reason, path, status) = (&*reason, &*path, status.as_u16());
    match context.fault {
        Some(Fault::Upstream | Fault::Server) => {
            tracing::warn!(site, path, status, reason, "request failed")
        }
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
