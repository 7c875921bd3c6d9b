//! `forward_auth`: who else is asked whether a request is let in.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::diagnostic::{Located, Problem};
use super::fields::spare_name;
use super::keys::FORWARD_AUTH;
use super::reader::{Kind, Value};
use super::value::{duration_between, file_path, socket_path};

/// Somebody who answers 2xx where a request is let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardAuth {
    /// As it is written.
    pub url: Box<str>,
    /// Where it is asked: on a Unix socket the host is none.
    pub asked: Box<str>,
    pub socket: Option<PathBuf>,
    /// Trusted instead of the system's authorities.
    pub ca: Option<PathBuf>,
    /// Fields of that answer that the request gets, in place of any that the client has sent.
    pub copy_headers: Vec<Box<str>>,
    pub timeout: Duration,
}

/// As long as people wait for a page.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);

const AUTH: Kind = Kind {
    what: "a URL in quotes, or a table",
    example: "\"http://127.0.0.1:9000/verify\"",
};
const CA: Kind = Kind {
    what: "a path in quotes",
    example: "\"/etc/perennial/auth-ca.pem\"",
};
const NAMES: Kind = Kind {
    what: "an array of names of fields",
    example: "[\"Remote-User\"]",
};
const TIMEOUT: Kind = Kind {
    what: "a duration in quotes",
    example: "\"5s\"",
};

/// What is written.
#[derive(Clone, Debug)]
pub(super) struct Read {
    /// `None` is `"off"`.
    pub auth: Option<ForwardAuth>,
    /// And where it is named.
    pub ca: Option<Located<PathBuf>>,
}

pub(super) fn forward_auth(value: Value<'_>, base: &Path) -> Option<Read> {
    if !value.is_table() {
        let auth = value.parse(AUTH, |text| match text {
            "off" => Ok(None),
            text => asked(text, base).map(Some),
        });
        let auth = auth?.value;
        return Some(Read { auth, ca: None });
    }
    let table = value.table(&FORWARD_AUTH)?;
    let names = table
        .get("copy_headers")
        .and_then(|v| v.list(NAMES, copied));
    let names = names.map(|list| list.values).unwrap_or_default();
    let timeout = table
        .get("timeout")
        .and_then(|v| v.parse(TIMEOUT, |text| duration_between(text, "100ms", "1m")));
    let url = table.require("url", AUTH.example)?;
    let auth = url.parse(AUTH, |text| asked(text, base))?.value;
    let ca = match table.get("ca") {
        Some(value) => Some(value.parse(CA, |text| trusted(text, base, &auth))?),
        None => None,
    };
    let auth = Some(ForwardAuth {
        ca: ca.as_ref().map(|ca| ca.value.clone()),
        copy_headers: names.into_iter().map(|name| name.value).collect(),
        timeout: timeout.map_or(DEFAULT_TIMEOUT, |timeout| timeout.value),
        ..auth
    });
    Some(Read { auth, ca })
}

/// A URL, or `unix:/path/of/socket:/path`.
fn asked(text: &str, base: &Path) -> Result<ForwardAuth, Problem> {
    let auth = |asked: Box<str>, socket| ForwardAuth {
        url: text.into(),
        asked,
        socket,
        ca: None,
        copy_headers: Vec::new(),
        timeout: DEFAULT_TIMEOUT,
    };
    let Some(rest) = text.strip_prefix("unix:") else {
        return Ok(auth(url(text)?, None));
    };
    let (socket, path) = match rest.split_once(":/") {
        Some((socket, path)) => (socket, path),
        None => (rest, ""),
    };
    // Of no matter on the way, but a request has one.
    let asked = url(&format!("http://localhost/{path}"))?;
    Ok(auth(asked, Some(socket_path(socket, base)?)))
}

/// A bundle of authorities.
fn trusted(text: &str, base: &Path, auth: &ForwardAuth) -> Result<PathBuf, Problem> {
    if !auth.asked.starts_with("https://") {
        let problem = Problem::new("`ca` has no effect: forward_auth is not asked over TLS");
        return Err(problem.help("write the URL with https://, or remove `ca`"));
    }
    file_path(text, base)
}

/// A name of a field that somebody else may set.
fn copied(text: &str) -> Result<Box<str>, Problem> {
    let name = spare_name(text)?;
    let lower = name.to_ascii_lowercase().replace('_', "-");
    let is_claim = lower.starts_with("x-forwarded-for")
        || matches!(
            &*lower,
            "x-forwarded-proto" | "x-forwarded-host" | "forwarded" | "x-real-ip"
        );
    match is_claim {
        false => Ok(name),
        true => Err(Problem::new(format!(
            "the field {name} says who asked, which we know better"
        ))
        .help("leave it out; upstreams are told in any case")),
    }
}

fn url(text: &str) -> Result<Box<str>, Problem> {
    let wrong = |why: &str| {
        Err(
            Problem::new(format!("{text:?} cannot be asked who is let in: {why}"))
                .help("it looks like http://127.0.0.1:9000/verify, or unix:/run/auth.sock:/verify"),
        )
    };
    let Ok(url) = text.parse::<http::Uri>() else {
        return wrong("it is not a URL");
    };
    let (Some("http" | "https"), Some(authority)) = (url.scheme_str(), url.authority()) else {
        return wrong("it does not begin with http:// or https://");
    };
    match authority.host().is_empty() || authority.as_str().contains('@') || text.contains('#') {
        true => wrong("it needs a host, and can have neither user nor fragment"),
        false => Ok(text.into()),
    }
}
