//! `[access_log]`: which requests are logged, where, in which form, and what is left out.

use std::path::PathBuf;

use super::diagnostic::{Located, Problem};
use super::draft::Draft;
use super::keys::ACCESS_LOG;
use super::reader::{Kind, Value};
use super::toml_file::Reader;
use super::value::{choice, file_path};

/// Where the line of each request goes, and how it looks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessLog {
    pub output: LogOutput,
    /// That of the rest of the log, if it is not said.
    pub format: Option<LogFormat>,
    /// One of so many requests is logged, and every one that fails; at least 1.
    pub sample: u32,
    /// Whether the query of a request is logged.
    pub query: bool,
    /// Further names of parameters of the query whose values are not, in lower case.
    pub redact: Vec<Box<str>>,
}

impl Default for AccessLog {
    fn default() -> AccessLog {
        AccessLog {
            output: LogOutput::default(),
            format: None,
            sample: 1,
            query: false,
            redact: Vec::new(),
        }
    }
}

/// Where the access log goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum LogOutput {
    #[default]
    Stderr,
    Stdout,
    File(PathBuf),
    Off,
}

/// How a line of the access log looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// `name=value`, for people.
    Human,
    Json,
    /// What Apache and nginx write.
    Combined,
}

/// What gives access to something, by the names that it usually has.
pub const SECRET_PARAMETERS: [&str; 22] = [
    "access_token",
    "api_key",
    "apikey",
    "assertion",
    "auth",
    "client_secret",
    "code",
    "credential",
    "id_token",
    "jwt",
    "key",
    "passwd",
    "password",
    "refresh_token",
    "secret",
    "session",
    "session_id",
    "sig",
    "signature",
    "ticket",
    "token",
    "x-amz-signature",
];

const OUTPUT: Kind = Kind {
    what: "\"stderr\", \"stdout\", \"off\" or the path of a file in quotes",
    example: "\"/var/log/perennial/access.log\"",
};
const FORMAT: Kind = Kind {
    what: "\"human\", \"json\" or \"combined\"",
    example: "\"json\"",
};
const SAMPLE: Kind = Kind {
    what: "a share in quotes",
    example: "\"1/10\"",
};
const REDACT: Kind = Kind {
    what: "an array of names",
    example: "[\"invite\"]",
};

/// Where the lines of one site's requests go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SiteLog {
    /// Where those of the others go.
    #[default]
    Shared,
    Off,
    /// A file of its own, in the form of `[access_log]`.
    File(PathBuf),
}

const SITE_LOG: Kind = Kind {
    what: "true, false or a path in quotes",
    example: "\"/var/log/perennial/example.com.log\"",
};

/// What is written in `[access_log]`.
#[derive(Default)]
pub(super) struct AccessLogDraft {
    output: Option<Located<LogOutput>>,
    format: Option<LogFormat>,
    sample: Option<u32>,
    query: Option<bool>,
    redact: Vec<Box<str>>,
}

impl<'a> Reader<'a> {
    /// `access_log` of a site, and where it is named.
    pub(super) fn site_log(&self, value: Value<'a>) -> Option<Located<SiteLog>> {
        if let Some(on) = value.as_boolean() {
            let log = if on { SiteLog::Shared } else { SiteLog::Off };
            return Some(Located {
                value: log,
                at: value.at,
            });
        }
        value.parse(SITE_LOG, |text| {
            file_path(text, self.base).map(SiteLog::File)
        })
    }

    pub(super) fn access_log(&self, value: Value<'a>) -> AccessLogDraft {
        let Some(table) = value.table(&ACCESS_LOG) else {
            return AccessLogDraft::default();
        };
        let redact = table.get("redact").and_then(|v| v.list(REDACT, parameter));
        let redact = redact.map(|list| list.values).unwrap_or_default();
        AccessLogDraft {
            output: table.get("output").and_then(|v| {
                v.parse(OUTPUT, |text| match text {
                    "stderr" => Ok(LogOutput::Stderr),
                    "stdout" => Ok(LogOutput::Stdout),
                    "off" => Ok(LogOutput::Off),
                    path => file_path(path, self.base).map(LogOutput::File),
                })
            }),
            format: table
                .get("format")
                .and_then(|v| v.parse(FORMAT, format))
                .map(|format| format.value),
            sample: table
                .get("sample")
                .and_then(|v| v.parse(SAMPLE, share))
                .map(|share| share.value),
            query: table.get("query").and_then(Value::boolean),
            redact: redact.into_iter().map(|name| name.value).collect(),
        }
    }
}

impl AccessLogDraft {
    /// The files, and where they are named.
    pub(super) fn files(draft: &Draft) -> Vec<Located<PathBuf>> {
        let own = draft.access_log.output.iter().filter_map(|output| {
            let LogOutput::File(path) = &output.value else {
                return None;
            };
            Some((path, output.at))
        });
        let of_sites = draft.sites.iter().filter_map(|site| {
            let log = site.access_log.as_ref()?;
            let SiteLog::File(path) = &log.value else {
                return None;
            };
            Some((path, log.at))
        });
        own.chain(of_sites)
            .map(|(path, at)| Located {
                value: path.clone(),
                at,
            })
            .collect()
    }
}

pub(super) fn access_log(draft: AccessLogDraft) -> AccessLog {
    let defaults = AccessLog::default();
    AccessLog {
        output: draft.output.map(|output| output.value).unwrap_or_default(),
        format: draft.format,
        sample: draft.sample.unwrap_or(defaults.sample),
        query: draft.query.unwrap_or(defaults.query),
        redact: draft.redact,
    }
}

fn format(text: &str) -> Result<LogFormat, Problem> {
    const FORMATS: [(&str, LogFormat); 3] = [
        ("human", LogFormat::Human),
        ("json", LogFormat::Json),
        ("combined", LogFormat::Combined),
    ];
    choice("log format", text, &FORMATS)
}

/// `1/N`, as N.
fn share(text: &str) -> Result<u32, Problem> {
    let of = text.strip_prefix("1/").filter(|digits| {
        let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
        is_number && !digits.starts_with('0')
    });
    let of = of.and_then(|digits| digits.parse().ok());
    of.ok_or_else(|| {
        Problem::new(format!("{text:?} is no share of the requests"))
            .help("write \"1/10\" for every tenth; requests that fail are always logged")
    })
}

fn parameter(text: &str) -> Result<Box<str>, Problem> {
    match text.is_empty() || text.contains(['=', '&', ';', '%', '?']) {
        false => Ok(text.to_ascii_lowercase().into()),
        true => Err(Problem::new(format!("{text:?} is no name of a parameter"))
            .help("write the name alone, such as redact = [\"invite\"]")),
    }
}
