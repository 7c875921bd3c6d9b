//! Where log events go: stderr, for people or as JSON.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::app::LogControl;
use crate::config::LogLevel;
use crate::proxy::access_log;
use crate::stderr_log;

#[derive(Debug, clap::Args)]
pub(super) struct LogArgs {
    /// How log lines look
    #[arg(long, value_enum, default_value_t = LogFormat::Human)]
    log_format: LogFormat,
    /// The least important events to log [default: log_level of the configuration, else info];
    /// RUST_LOG overrides it in detail
    #[arg(long, value_enum)]
    log_level: Option<LogLevel>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum LogFormat {
    Human,
    Json,
}

/// What the libraries below say is detail, and much of it repeats what we log ourselves.
const LIBRARIES: &str = "pingora_core=off,pingora_proxy=off,pingora=off,h2=off,hyper=off,\
                         reqwest=off,rustls=off,hyper_util=off,instant_acme=off,\
                         hickory_net=off,hickory_proto=off";

/// Sends log events to stderr from now on. `configured` is the level where neither the arguments
/// nor the environment have one.
pub(super) fn start(args: &LogArgs, configured: LogLevel) -> LogControl {
    let from_environment = EnvFilter::try_from_default_env().ok();
    let fixed_by = match (&from_environment, args.log_level) {
        (Some(_), _) => Some("RUST_LOG"),
        (None, Some(_)) => Some("--log-level"),
        (None, None) => None,
    };
    let level = args.log_level.unwrap_or(configured);
    let lines = stderr_log::start();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(from_environment.unwrap_or_else(|| filter(level)))
        .with_writer(move || lines);
    let set: Box<dyn Fn(LogLevel) + Send + Sync> = match args.log_format {
        LogFormat::Human => {
            let builder = builder.with_ansi(std::io::stderr().is_terminal());
            let builder = builder.with_filter_reloading();
            let handle = builder.reload_handle();
            builder.init();
            Box::new(move |level| report(handle.reload(filter(level))))
        }
        LogFormat::Json => {
            let builder = builder.json().flatten_event(true).with_filter_reloading();
            let handle = builder.reload_handle();
            builder.init();
            Box::new(move |level| report(handle.reload(filter(level))))
        }
    };
    LogControl {
        set,
        fixed_by,
        access_log: access_log(args.log_format),
    }
}

/// The access log is written past the subscriber, which is made for a few events and not for one a
/// request; but colours, for a terminal, are its own.
fn access_log(format: LogFormat) -> access_log::Control {
    let format = match format {
        LogFormat::Human => access_log::Format::Human,
        LogFormat::Json => access_log::Format::Json,
    };
    access_log::Control::new(format, std::io::stderr().is_terminal())
}

fn filter(level: LogLevel) -> EnvFilter {
    EnvFilter::new(format!("{},{LIBRARIES}", level.as_str()))
}

fn report(changed: Result<(), tracing_subscriber::reload::Error>) {
    if let Err(error) = changed {
        tracing::error!(%error, "the log level cannot be changed");
    }
}
