//! `[[sites.routes]]`, and what a site has of the same: which requests are meant, what is changed
//! about them, and what happens to them.

use http::{Method, StatusCode};

use super::diagnostic::{Located, Problem};
use super::draft::{ActionDraft, RouteDraft};
use super::fields::{self, FieldCondition, FieldRules, Wild};
use super::keys::ROUTE_UPSTREAM_TLS;
use super::reader::{Kind, List, Table};
use super::template::{Part, Placeholder, Template};
use super::toml_file::{Reader, UPSTREAMS};
use super::{Access, Coding, Files, Forward, ProxyProtocol, Upstream, UpstreamTls};

/// Requests that match, and what happens to them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub path: PathPattern,
    /// The methods that it is for; any if there is none. GET stands for HEAD, too.
    pub methods: Vec<Method>,
    /// What the request has to say beside.
    pub conditions: Vec<FieldCondition>,
    /// Taken off the front of the path.
    pub strip_prefix: Option<Box<str>>,
    /// The path that is asked for instead, after that.
    pub rewrite: Option<Template>,
    /// The site's rules, then the route's own.
    pub request_fields: FieldRules,
    pub response_fields: FieldRules,
    pub access: Access,
    /// Whether connections to upstreams begin with who the client is.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// In which codings bodies are sent that are in none, the best first.
    pub compress: Vec<Coding>,
    pub action: Action,
}

impl Route {
    /// Where its requests go; nowhere if they are answered.
    pub fn upstreams(&self) -> impl Iterator<Item = &Upstream> {
        let members = self.forward().map(|forward| &forward.members[..]);
        let members = members.unwrap_or_default().iter();
        members.map(|member| &member.upstream)
    }

    /// Where its requests go, and how, unless they are answered.
    pub fn forward(&self) -> Option<&Forward> {
        match &self.action {
            Action::Forward(forward) => Some(forward),
            Action::Redirect { .. } | Action::Respond { .. } | Action::Files(_) => None,
        }
    }

    /// The route's own, or else the site's.
    pub fn upstream_tls(&self) -> Option<&UpstreamTls> {
        self.forward()?.upstream_tls.as_ref()
    }

    /// Smaller is more specific: paths that are whole, then those with more in them, then more
    /// conditions.
    pub(super) fn specificity(&self) -> impl Ord + use<> {
        let (kind, literals) = self.path.specificity();
        let conditions = self.conditions.len() + usize::from(!self.methods.is_empty());
        (kind, std::cmp::Reverse((literals, conditions)))
    }
}

/// What happens to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Forward(Box<Forward>),
    Redirect {
        status: StatusCode,
        location: Template,
    },
    Respond {
        status: StatusCode,
        body: Box<str>,
    },
    /// The files below a folder are the answers.
    Files(Files),
}

/// A path to match. `/api/v1` matches that path alone, `/api/*` everything below `/api/` and
/// `/api` itself, `/*` everything; a `*` elsewhere stands for text within one segment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PathPattern {
    Exact(String),
    /// The text before the `*`, with its trailing slash: `/api/` or `/`.
    Prefix(String),
    Glob(Glob),
}

/// A path with stars within its segments.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Glob {
    /// What stands between slashes, without the empty one before the first.
    segments: Vec<Wild>,
    /// Whether what is below matches, too.
    below: bool,
}

impl Glob {
    pub(super) fn new(text: &str) -> Glob {
        let (text, below) = match text.strip_suffix("/*") {
            Some(text) => (text, true),
            None => (text, false),
        };
        Glob {
            segments: text.split('/').skip(1).map(Wild::new).collect(),
            below,
        }
    }

    fn matches(&self, path: &[u8]) -> bool {
        let mut given = path.split(|byte| *byte == b'/').skip(1);
        let all = self.segments.iter().all(|wanted| {
            let segment = given.next();
            segment.is_some_and(|segment| wanted.matches(segment))
        });
        all && (self.below || given.next().is_none())
    }
}

impl PathPattern {
    /// Whether a path, without a query, is meant.
    pub fn matches(&self, path: &[u8]) -> bool {
        match self {
            PathPattern::Exact(exact) => path == exact.as_bytes(),
            // Also `*`, the target of a server-wide OPTIONS (RFC 9110 section 7.1).
            PathPattern::Prefix(prefix) if prefix == "/" => true,
            PathPattern::Prefix(prefix) => {
                path.starts_with(prefix.as_bytes())
                    || prefix.strip_suffix('/').map(str::as_bytes) == Some(path)
            }
            PathPattern::Glob(glob) => glob.matches(path),
        }
    }

    fn specificity(&self) -> (u8, usize) {
        match self {
            // Only one of them matches.
            PathPattern::Exact(_) => (0, 0),
            PathPattern::Prefix(prefix) => (1, prefix.len()),
            PathPattern::Glob(glob) => {
                let literals = glob.segments.iter().map(|segment| 1 + segment.literals());
                (1, literals.sum::<usize>() + usize::from(glob.below))
            }
        }
    }
}

const METHODS: Kind = Kind {
    what: "an array of methods",
    example: "[\"GET\"]",
};
const PREFIX: Kind = Kind {
    what: "a path in quotes",
    example: "\"/api\"",
};
const PATH: Kind = Kind {
    what: "a path in quotes",
    example: "\"/new{path}\"",
};
const LOCATION: Kind = Kind {
    what: "a URL in quotes",
    example: "\"https://www.example.com{uri}\"",
};
const TEXT: Kind = Kind {
    what: "a text in quotes",
    example: "\"gone\"",
};
const STATUS: Kind = Kind {
    what: "a status code",
    example: "404",
};

const PROXY_PROTOCOL: Kind = Kind {
    what: "\"v1\", \"v2\" or \"off\"",
    example: "\"v2\"",
};

/// Of a site or a route.
pub(super) fn proxy_protocol(table: &Table<'_>) -> Option<Located<Option<ProxyProtocol>>> {
    let value = table.get("proxy_protocol")?;
    value.parse(PROXY_PROTOCOL, super::proxy_protocol::version)
}

impl<'a> Reader<'a> {
    pub(super) fn routes(&self, tables: &List<Table<'a>>) -> Vec<RouteDraft> {
        let tables = tables.values.iter();
        tables
            .filter_map(|table| self.route(&table.value))
            .collect()
    }

    fn route(&self, table: &Table<'a>) -> Option<RouteDraft> {
        let path = table
            .require("path", super::toml_file::PATTERN.example)
            .and_then(|v| v.parse(super::toml_file::PATTERN, super::value::path_pattern));
        let upstream_tls = table
            .get("upstream_tls")
            .and_then(|v| v.table(&ROUTE_UPSTREAM_TLS));
        let action = self.action(table);
        if action.is_none() && !has_action(table) {
            table.require("upstreams", UPSTREAMS.example);
        }
        Some(RouteDraft {
            path: path?,
            methods: methods(table),
            conditions: table
                .get("headers")
                .map(fields::conditions)
                .unwrap_or_default(),
            strip_prefix: strip_prefix(table),
            rewrite: rewrite(table),
            request_fields: fields::rules(table, "request_headers"),
            response_fields: fields::rules(table, "response_headers"),
            access: self.access(table),
            compress: self.compress(table),
            action,
            proxy_protocol: proxy_protocol(table),
            upstream_tls: upstream_tls.map(|table| self.upstream_tls(&table)),
            pool: self.pool(table),
        })
    }

    /// What a site or a route does with its requests, if it says so.
    pub(super) fn action(&self, table: &Table<'a>) -> Option<ActionDraft> {
        let upstreams = self.members(table.get("upstreams"));
        let redirect = table
            .get("redirect")
            .and_then(|v| v.parse(LOCATION, location));
        let respond = table
            .get("respond")
            .and_then(|v| v.parse(TEXT, |text| Ok(text.to_owned())));
        let files = self.files(table);
        self.check_one_action(table);
        let status = self.status(table);
        if let Some(location) = redirect {
            let status = status.unwrap_or(StatusCode::FOUND);
            let location = location.value;
            return Some(ActionDraft::Redirect { status, location });
        }
        if let Some(body) = respond {
            let status = status.unwrap_or(StatusCode::OK);
            let body = body.value.into();
            return Some(ActionDraft::Respond { status, body });
        }
        if let Some((files, at)) = files {
            return Some(ActionDraft::Files { files, at });
        }
        (!upstreams.is_empty()).then_some(ActionDraft::Forward(upstreams))
    }

    fn check_one_action(&self, table: &Table<'a>) {
        let mut said = ACTIONS
            .iter()
            .filter_map(|key| Some((key, table.get(key)?)));
        if let (Some((first, _)), Some((second, value))) = (said.next(), said.next()) {
            let problem = Problem::new(format!("`{first}` and `{second}` are both set"));
            self.report.add(
                value.at,
                problem.help("a request can go one way only: remove one of them, or give it a route of its own"),
            );
        }
    }

    /// A status of a kind that what it is written beside can have.
    fn status(&self, table: &Table<'a>) -> Option<StatusCode> {
        const REDIRECTS: [u16; 5] = [301, 302, 303, 307, 308];
        let value = table.get("status")?;
        let status = value.integer(STATUS)?;
        let code = u16::try_from(status.value).ok();
        let (fits, help) = match (table.get("redirect"), table.get("respond")) {
            (Some(_), _) => (
                code.is_some_and(|code| REDIRECTS.contains(&code)),
                "a redirect has 301, 302, 303, 307 or 308",
            ),
            (None, Some(_)) => (
                code.is_some_and(|code| (200..600).contains(&code) && code != 304),
                "a response has a status from 200 to 599, except 304",
            ),
            (None, None) => (false, "`status` goes with `redirect` or `respond`"),
        };
        let code = code
            .and_then(|code| StatusCode::from_u16(code).ok())
            .filter(|_| fits);
        let problem =
            || Problem::new(format!("status {} does not fit here", status.value)).help(help);
        self.report.keep(status.at, code.ok_or_else(problem))
    }
}

/// The keys that say what happens to a request.
const ACTIONS: [&str; 4] = ["upstreams", "redirect", "respond", "root"];

/// Whether it is said what happens, be it rightly or not.
pub(super) fn has_action(table: &Table<'_>) -> bool {
    ACTIONS.iter().any(|key| table.get(key).is_some())
}

fn methods(table: &Table<'_>) -> Vec<Method> {
    let method = |text: &str| {
        let known = [
            Method::GET,
            Method::HEAD,
            Method::POST,
            Method::PUT,
            Method::PATCH,
            Method::DELETE,
            Method::OPTIONS,
        ];
        let parsed = Method::from_bytes(text.as_bytes()).ok();
        let upper = text.to_ascii_uppercase();
        match parsed {
            Some(Method::TRACE | Method::CONNECT) => {
                Err(Problem::new(format!("{text} is always refused")).help("leave it out"))
            }
            Some(method) if known.contains(&method) || upper == text => Ok(method),
            Some(_) => Err(Problem::new(format!("method {text:?} is not in capitals"))
                .help(format!("methods are: write {upper:?}"))),
            None => Err(Problem::new(format!("{text:?} is no method"))
                .help("write for example methods = [\"GET\", \"POST\"]")),
        }
    };
    let list = table.get("methods").and_then(|v| v.list(METHODS, method));
    let values = list.map(|list| list.values).unwrap_or_default();
    values.into_iter().map(|method| method.value).collect()
}

fn strip_prefix(table: &Table<'_>) -> Option<Located<Box<str>>> {
    let prefix = |text: &str| {
        let plain = super::value::path_pattern(text)?;
        match plain {
            PathPattern::Exact(path) if !path.ends_with('/') => Ok(path.into_boxed_str()),
            _ => Err(
                Problem::new(format!("{text:?} is no prefix to strip")).help(
                    "write the path without `*` and without a slash at its end, such as \"/api\"",
                ),
            ),
        }
    };
    table
        .get("strip_prefix")
        .and_then(|v| v.parse(PREFIX, prefix))
}

/// A template for a path: it begins with a slash.
fn rewrite(table: &Table<'_>) -> Option<Template> {
    let path = |text: &str| {
        let template = Template::parse(text)?;
        let begins = match template.parts().first() {
            Some(Part::Text(text)) => text.starts_with('/'),
            Some(Part::Value(Placeholder::Path)) => true,
            _ => false,
        };
        let is_path = |text: &str| {
            text.bytes()
                .all(|byte| byte.is_ascii_graphic() && !b"?#".contains(&byte))
        };
        let clean = template.parts().iter().all(|part| match part {
            Part::Text(text) => is_path(text),
            Part::Value(value) => matches!(value, Placeholder::Path),
        });
        match begins && clean {
            true => Ok(template),
            false => Err(Problem::new(format!("{text:?} is no path to ask for"))
                .help("it begins with / or {path}, has no query (the request's stays), and no other placeholder than {path}")),
        }
    };
    let parsed = table.get("rewrite").and_then(|v| v.parse(PATH, path));
    parsed.map(|template| template.value)
}

fn location(text: &str) -> Result<Template, Problem> {
    let template = Template::parse(text)?;
    let begins = match template.parts().first() {
        Some(Part::Text(text)) => {
            text.starts_with('/') || text.starts_with("https://") || text.starts_with("http://")
        }
        Some(Part::Value(Placeholder::Scheme)) => true,
        _ => false,
    };
    match begins && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        true => Ok(template),
        false => Err(Problem::new(format!("{text:?} is no place to redirect to"))
            .help("write for example https://www.example.com{uri}, or a path")),
    }
}
