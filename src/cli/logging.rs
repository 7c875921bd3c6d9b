//! Where log events go: stderr, for people or as JSON.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

#[derive(Debug, clap::Args)]
pub(super) struct LogArgs {
    /// How log lines look
    #[arg(long, value_enum, default_value_t = LogFormat::Human)]
    log_format: LogFormat,
    /// The least important events to log; RUST_LOG overrides it in detail
    #[arg(long, value_enum, default_value_t = LogLevel::Info)]
    log_level: LogLevel,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum LogFormat {
    Human,
    Json,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// What the libraries below say is detail, and much of it repeats what we log ourselves.
const LIBRARIES: &str = "pingora_core=off,pingora_proxy=off,pingora=off,h2=off,hyper=off,\
                         reqwest=off,rustls=off,hyper_util=off,instant_acme=off";

/// Sends log events to stderr from now on.
pub(super) fn start(args: &LogArgs) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| {
        let level = format!("{:?}", args.log_level).to_lowercase();
        EnvFilter::new(format!("{level},{LIBRARIES}"))
    });
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match args.log_format {
        LogFormat::Human => builder.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
}
