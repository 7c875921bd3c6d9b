//! `forward_auth`: who else is asked whether a request is let in.

use std::time::Duration;

use super::diagnostic::Problem;
use super::fields::spare_name;
use super::keys::FORWARD_AUTH;
use super::reader::{Kind, Value};
use super::value::duration_between;

/// Somebody who answers 2xx where a request is let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardAuth {
    pub url: Box<str>,
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
const NAMES: Kind = Kind {
    what: "an array of names of fields",
    example: "[\"Remote-User\"]",
};
const TIMEOUT: Kind = Kind {
    what: "a duration in quotes",
    example: "\"5s\"",
};

/// `None` inside is `"off"`.
pub(super) fn forward_auth(value: Value<'_>) -> Option<Option<ForwardAuth>> {
    if !value.is_table() {
        let url = value.parse(AUTH, |text| match text {
            "off" => Ok(None),
            text => url(text).map(Some),
        });
        let auth = |url| ForwardAuth {
            url,
            copy_headers: Vec::new(),
            timeout: DEFAULT_TIMEOUT,
        };
        return Some(url?.value.map(auth));
    }
    let table = value.table(&FORWARD_AUTH)?;
    let names = table
        .get("copy_headers")
        .and_then(|v| v.list(NAMES, copied));
    let names = names.map(|list| list.values).unwrap_or_default();
    let timeout = table
        .get("timeout")
        .and_then(|v| v.parse(TIMEOUT, |text| duration_between(text, "100ms", "1m")));
    let url = table.require("url", AUTH.example)?.parse(AUTH, url)?;
    Some(Some(ForwardAuth {
        url: url.value,
        copy_headers: names.into_iter().map(|name| name.value).collect(),
        timeout: timeout.map_or(DEFAULT_TIMEOUT, |timeout| timeout.value),
    }))
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
                .help("it looks like http://127.0.0.1:9000/verify"),
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
