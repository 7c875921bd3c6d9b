//! One line for each request, and one more with the reason if something went wrong. No request waits
//! for whoever takes the lines: where nobody does, they are counted and lost.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use http::{StatusCode, Version};

use super::context::Context;
use super::decision::{authority, origin_form, path_of};
use super::failure::Fault;
use crate::config::{self, Config, LogFormat, LogOutput, SECRET_PARAMETERS, SiteLog};
use crate::listener::ConnectionInfo;
use crate::message::{Known, RequestHead};
use crate::stderr_log;

use combined::Entry;
pub use line::Format;
use line::Value;
use writer::{LineWriter, Output, Writing};

mod combined;
mod file;
mod line;
mod query;
mod second;
mod writer;

/// How lines are written; whoever takes all events gets them, where that is not said.
static LOG: ArcSwapOption<Log> = ArcSwapOption::const_empty();

/// Where lines go, and which.
struct Log {
    to: To,
    format: Form,
    /// Whether the filters of the rest of the log decide.
    filtered: bool,
    sample: u32,
    query: bool,
    redact: Vec<Box<str>>,
    /// Of sites with one of their own.
    files: HashMap<PathBuf, To>,
}

enum To {
    Writer(Arc<LineWriter>),
    /// The rest of the log: on a terminal its colours are wanted.
    Events,
    Nowhere,
}

#[derive(Clone, Copy)]
enum Form {
    Fields(Format),
    Combined,
}

/// The access log of the process, and the threads that write it. What is still to be written when it
/// is dropped is written then.
pub struct Control {
    /// How the rest of the log looks, and whether that is on a terminal.
    format: Format,
    terminal: bool,
    running: Mutex<Running>,
}

#[derive(Default)]
struct Running {
    output: Option<LogOutput>,
    writer: Option<Started>,
    /// Of sites with a file of their own.
    files: HashMap<PathBuf, Started>,
}

/// Where lines are handed in, and the thread that writes them.
type Started = (Arc<LineWriter>, Writing);

impl Control {
    /// Nothing is written until it is configured.
    pub fn new(format: Format, terminal: bool) -> Control {
        Control {
            format,
            terminal,
            running: Mutex::default(),
        }
    }

    /// Goes by this configuration from now on. Lines of before go where they should have.
    pub fn configure(&self, config: &Config) {
        let mut paths: Vec<&Path> = config.sites.iter().filter_map(own_file).collect();
        let config = &config.access_log;
        if let LogOutput::File(shared) = &config.output {
            // One file has one writer.
            paths.retain(|path| *path != shared);
        }
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let before = match running.output.as_ref() == Some(&config.output) {
            true => None,
            false => running.replace(&config.output),
        };
        let format = match config.format {
            None => Form::Fields(self.format),
            Some(LogFormat::Human) => Form::Fields(Format::Human),
            Some(LogFormat::Json) => Form::Fields(Format::Json),
            Some(LogFormat::Combined) => Form::Combined,
        };
        let is_stderr = config.output == LogOutput::Stderr;
        let like_the_rest = matches!(format, Form::Fields(Format::Human)) && is_stderr;
        let to = match &running.writer {
            _ if config.output == LogOutput::Off => To::Nowhere,
            _ if self.terminal && like_the_rest => To::Events,
            Some((writer, _)) => To::Writer(Arc::clone(writer)),
            None => To::Events,
        };
        LOG.store(Some(Arc::new(Log {
            to,
            format,
            filtered: is_stderr,
            sample: config.sample,
            query: config.query,
            redact: redacted_names(config),
            files: running.own_files(&paths),
        })));
        // They write what they have.
        let gone: Vec<PathBuf> = running
            .files
            .keys()
            .filter(|path| !paths.contains(&path.as_path()))
            .cloned()
            .collect();
        let gone: Vec<_> = gone.iter().map(|path| running.files.remove(path)).collect();
        drop((before, gone));
    }
}

fn redacted_names(config: &config::AccessLog) -> Vec<Box<str>> {
    let known = SECRET_PARAMETERS.map(Box::from);
    known.into_iter().chain(config.redact.clone()).collect()
}

/// The file that the lines of a site alone go to.
fn own_file(site: &config::Site) -> Option<&Path> {
    match &site.access_log {
        SiteLog::File(path) => Some(path),
        SiteLog::Shared | SiteLog::Off => None,
    }
}

fn start(out: Output) -> Option<Started> {
    let started = LineWriter::start(out)
        .inspect_err(|error| tracing::warn!(%error, "the access log has no thread of its own"));
    let (writer, writing) = started.ok()?;
    Some((Arc::new(writer), writing))
}

impl Running {
    /// The writers of these files. What runs already goes on.
    fn own_files(&mut self, paths: &[&Path]) -> HashMap<PathBuf, To> {
        let mut found = HashMap::new();
        for path in paths.iter().map(|path| path.to_path_buf()) {
            if !self.files.contains_key(&path)
                && let Some(started) = start(Output::File(file::LogFile::new(path.clone())))
            {
                self.files.insert(path.clone(), started);
            }
            if let Some((writer, _)) = self.files.get(&path) {
                found.insert(path, To::Writer(Arc::clone(writer)));
            }
        }
        found
    }

    /// The writer of before.
    fn replace(&mut self, output: &LogOutput) -> Option<Started> {
        self.output = Some(output.clone());
        let out = match output {
            LogOutput::Stderr => Output::Stream(Box::new(stderr_log::Turned)),
            LogOutput::Stdout => Output::Stream(Box::new(io::stdout())),
            LogOutput::File(path) => Output::File(file::LogFile::new(path.clone())),
            LogOutput::Off => return self.writer.take(),
        };
        std::mem::replace(&mut self.writer, start(out))
    }
}

/// Has the file opened anew: it may have been moved away.
pub fn reopen() {
    file::GENERATION.fetch_add(1, Ordering::Relaxed);
}

/// How many lines were lost so far, because nobody took them.
pub fn lost_lines() -> u64 {
    writer::LOST.load(Ordering::Relaxed)
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
    let log = LOG.load();
    let log = log.as_deref();
    let site = context.site.as_ref().map(|site| &site.access_log);
    let own = match site {
        // Without a thread for the file there is the log of all.
        Some(SiteLog::File(path)) => log.and_then(|log| log.files.get(path)),
        _ => None,
    };
    let is_on = match own {
        Some(_) => true,
        None => site != Some(&SiteLog::Off) && is_on(log),
    };
    if is_on && is_wanted(log, context, status) {
        let facts = Facts {
            request,
            context,
            connection,
            status,
            duration,
            own,
        };
        facts.record(log);
    }
    if !context.failures.is_empty() {
        record_failure(request, context, status);
    }
}

/// Whether there is anybody who wants a line at all.
fn is_on(log: Option<&Log>) -> bool {
    let enabled = || tracing::enabled!(target: TARGET, tracing::Level::INFO);
    match log {
        None => enabled(),
        Some(log) => match log.to {
            To::Nowhere => false,
            To::Events => enabled(),
            To::Writer(_) => !log.filtered || enabled(),
        },
    }
}

fn is_wanted(log: Option<&Log>, context: &Context, status: StatusCode) -> bool {
    thread_local! {
        static SKIPPED: Cell<u32> = const { Cell::new(0) };
    }
    let sample = log.map_or(1, |log| log.sample);
    let failed = status.is_client_error() || status.is_server_error();
    if sample <= 1 || failed || !context.failures.is_empty() {
        return true;
    }
    let skipped = SKIPPED.get() + 1;
    let is_turn = skipped >= sample;
    SKIPPED.set(if is_turn { 0 } else { skipped });
    is_turn
}

/// A line for what is no request: there is hardly anything to say of it.
pub fn record_malformed(connection: &ConnectionInfo, status: StatusCode, reason: &str) {
    let log = LOG.load();
    let log = log.as_deref();
    if !is_on(log) {
        return;
    }
    if let Some(log) = log
        && let Form::Combined = log.format
    {
        let entry = Entry::malformed(&connection.client_ip, status);
        return emit(Some(log), None, |text| combined::write(text, &entry));
    }
    emit_fields(
        log,
        None,
        &[
            ("client", Value::Word(&connection.client_ip)),
            ("status", Value::Number(status.as_u16().into())),
            ("malformed", Value::Text(reason.as_bytes())),
        ],
    );
}

/// What there is to say of a request.
struct Facts<'f> {
    request: &'f RequestHead,
    context: &'f Context,
    connection: &'f ConnectionInfo,
    status: StatusCode,
    duration: Duration,
    /// Where it goes, if not where those of other sites do.
    own: Option<&'f To>,
}

impl Facts<'_> {
    fn record(&self, log: Option<&Log>) {
        match log {
            Some(log) if matches!(log.format, Form::Combined) => self.record_combined(log),
            _ => self.record_fields(log),
        }
    }

    fn client(&self) -> &str {
        let named = self.context.client.as_ref();
        named.unwrap_or(&self.connection.client_ip)
    }

    fn record_combined(&self, log: &Log) {
        let target = origin_form(self.request.target());
        let path = path_of(target);
        let query = query::shown(target, log.query, &log.redact);
        let referer = self.request.fields.named("referer").next();
        let referer = referer.map(|referer| query::of_url(referer, log.query, &log.redact));
        let entry = Entry {
            client: self.client(),
            user: self.context.user.as_deref(),
            method: self.request.method.as_str(),
            path,
            query: query.as_deref(),
            protocol: protocol(self.request.version),
            status: self.status,
            bytes: self.context.bytes,
            referer: referer.as_deref(),
            agent: self.request.fields.get(Known::UserAgent),
        };
        emit(Some(log), self.own, |text| combined::write(text, &entry));
    }

    fn record_fields(&self, log: Option<&Log>) {
        let (request, context) = (self.request, self.context);
        let tls = self.connection.tls.as_ref();
        let micros = u64::try_from(self.duration.as_micros()).unwrap_or(u64::MAX);
        const ABSENT: (&str, Value<'_>) = ("", Value::Word(""));
        let target = origin_form(request.target());
        let mut fields = [
            ("client", Value::Word(self.client())),
            ("method", Value::Text(request.method.as_str().as_bytes())),
            ("host", Value::Text(authority(request).unwrap_or_default())),
            ("path", Value::Text(path_of(target))),
            ("status", Value::Number(self.status.as_u16().into())),
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
            ABSENT,
            ABSENT,
        ];
        let mut count = fields.len() - 5;
        // A client need not say what it is, and a request need not have a name.
        let agent = request.fields.get(Known::UserAgent);
        let id = context.request_id.as_deref();
        let user = context.user.as_deref();
        let query = log.and_then(|log| query::shown(target, log.query, &log.redact));
        let reason = (!context.failures.is_empty()).then(|| context.failures.join("; "));
        let optional = [
            query.as_deref().map(|query| ("query", Value::Text(query))),
            agent.map(|agent| ("user_agent", Value::Text(agent))),
            user.map(|user| ("user", Value::Text(user.as_bytes()))),
            id.map(|id| ("request_id", Value::Text(id.as_bytes()))),
            reason
                .as_ref()
                .map(|reason| ("error", Value::Text(reason.as_bytes()))),
        ];
        for field in optional.into_iter().flatten() {
            fields[count] = field;
            count += 1;
        }
        emit_fields(log, self.own, &fields[..count]);
    }
}

fn emit_fields(log: Option<&Log>, own: Option<&To>, fields: &[(&str, Value<'_>)]) {
    emit(log, own, |text| {
        match (own.or(log.map(|log| &log.to)), log.map(|log| log.format)) {
            (Some(To::Writer(_)), Some(Form::Fields(format))) => {
                line::write(text, format, TARGET, fields);
            }
            _ => line::write_fields(text, fields),
        }
    });
}

/// Hands a line on. The thread's own buffer is reused.
fn emit(log: Option<&Log>, own: Option<&To>, write: impl FnOnce(&mut Vec<u8>)) {
    thread_local! {
        static LINE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    LINE.with_borrow_mut(|text| {
        text.clear();
        write(text);
        match own.or(log.map(|log| &log.to)) {
            Some(To::Writer(writer)) => writer.write(text),
            _ => {
                let text = String::from_utf8_lossy(text);
                tracing::info!(target: TARGET, "{}", text.trim());
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
            tracing::warn!(site, path, status, reason, "request failed");
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
