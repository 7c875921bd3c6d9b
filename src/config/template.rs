//! Texts with placeholders: `https://www.example.com{uri}`.

use super::diagnostic::Problem;
use super::reader::nearest;

/// A text whose placeholders stand for something of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(Vec<Part>);

/// A piece of a [`Template`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    Text(Box<str>),
    Value(Placeholder),
}

/// What a placeholder stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Placeholder {
    /// The client's IP address: the one that a trusted proxy names, else the connection's.
    ClientIp,
    /// `http` or `https`, as the client has it.
    Scheme,
    /// The host that was asked for, with its port where the client gave one.
    Host,
    Method,
    /// The path, still encoded; what `strip_prefix` leaves of it.
    Path,
    /// The query, without its `?`.
    Query,
    /// Path and query.
    Uri,
    RequestId,
    /// The server name of the TLS handshake.
    ServerName,
    /// `TLSv1.3` or `TLSv1.2`.
    TlsVersion,
    /// The subject of the client certificate, where one was verified.
    ClientSubject,
    /// Who the client is, with `basic_auth`.
    User,
    /// The value of a field of the request, by its name.
    Field(Box<str>),
}

/// All but `header.NAME`.
const PLACEHOLDERS: [(&str, Placeholder); 12] = [
    ("client_ip", Placeholder::ClientIp),
    ("scheme", Placeholder::Scheme),
    ("host", Placeholder::Host),
    ("method", Placeholder::Method),
    ("path", Placeholder::Path),
    ("query", Placeholder::Query),
    ("uri", Placeholder::Uri),
    ("request_id", Placeholder::RequestId),
    ("server_name", Placeholder::ServerName),
    ("tls_version", Placeholder::TlsVersion),
    ("client_subject", Placeholder::ClientSubject),
    ("user", Placeholder::User),
];

impl Template {
    /// Parses a text; `{{` and `}}` are braces.
    pub(super) fn parse(text: &str) -> Result<Template, Problem> {
        let mut parts = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            plain.push_str(&rest[..at]);
            let brace = &rest[at..=at];
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix(brace) {
                plain.push_str(brace);
                rest = after;
                continue;
            }
            let (name, after) = (brace == "{")
                .then(|| rest.split_once('}'))
                .flatten()
                .ok_or_else(|| unbalanced(text))?;
            if !plain.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut plain).into()));
            }
            parts.push(Part::Value(placeholder(name)?));
            rest = after;
        }
        plain.push_str(rest);
        if !plain.is_empty() {
            parts.push(Part::Text(plain.into()));
        }
        Ok(Template(parts))
    }

    /// A text without placeholders.
    pub fn of_text(text: &str) -> Template {
        Template(vec![Part::Text(text.into())])
    }

    pub fn parts(&self) -> &[Part] {
        &self.0
    }
}

fn unbalanced(text: &str) -> Problem {
    Problem::new(format!("{text:?} has a brace without its other half"))
        .help("a placeholder is written {client_ip}, a brace that is meant as such {{ or }}")
}

fn placeholder(name: &str) -> Result<Placeholder, Problem> {
    if let Some((_, value)) = PLACEHOLDERS.iter().find(|(known, _)| *known == name) {
        return Ok(value.clone());
    }
    if let Some(field) = name.strip_prefix("header.") {
        return super::fields::field_name(field).map(|name| Placeholder::Field(name.into()));
    }
    let known: Vec<&str> = PLACEHOLDERS.iter().map(|(name, _)| *name).collect();
    let problem = Problem::new(format!("{{{name}}} is no placeholder"));
    Err(match nearest(name, &known) {
        Some(nearest) => problem.help(format!("did you mean {{{nearest}}}?")),
        None => problem.help(format!(
            "known are {}, and header.NAME for a field of the request",
            known.join(", ")
        )),
    })
}
