//! The tables and texts as they are written.

use std::time::Duration;

use super::super::diagnostic::{Located, Problem};
use super::super::fields::field_name;
use super::super::keys::{
    EJECTION, HEALTH_CHECK, LOAD_BALANCING, PENDING, RETRIES, Section, TIMEOUTS, UPSTREAM,
};
use super::super::reader::{Kind, Table, Value};
use super::super::toml_file::{Reader, UPSTREAMS};
use super::super::upstream::upstream;
use super::super::value::{choice, duration_between};
use super::{
    Balancing, CheckKind, Ejection, HashKey, HealthCheck, HttpCheck, Member, Pending, Policy,
    PoolSettings, Retries, SameSite, Statuses, StickyCookie, Timeouts, Wait,
};

/// As it is written; what is not, is the site's.
#[derive(Default)]
pub(in super::super) struct PoolDraft {
    pub balancing: Option<Located<Balancing>>,
    pub health_check: Option<Located<Option<HealthCheck>>>,
    pub ejection: Option<Located<Option<Ejection>>>,
    pub retries: Option<Located<Option<Retries>>>,
    pub pending: Option<Located<Pending>>,
    pub timeouts: Option<Located<Timeouts>>,
}

impl PoolDraft {
    /// What is written here, over what the site has.
    pub(in super::super) fn over(self, site: &PoolSettings) -> PoolSettings {
        fn own<T: Clone>(own: Option<Located<T>>, site: &T) -> T {
            own.map_or_else(|| site.clone(), |own| own.value)
        }
        PoolSettings {
            balancing: own(self.balancing, &site.balancing),
            health_check: own(self.health_check, &site.health_check),
            ejection: own(self.ejection, &site.ejection),
            retries: own(self.retries, &site.retries),
            pending: own(self.pending, &site.pending),
            timeouts: own(self.timeouts, &site.timeouts),
        }
    }

    /// The first key that is there.
    pub(super) fn first(&self) -> Option<(&'static str, usize)> {
        fn at<T>(key: &'static str, value: &Option<Located<T>>) -> Option<(&'static str, usize)> {
            value.as_ref().map(|value| (key, value.at))
        }
        at("load_balancing", &self.balancing)
            .or(at("health_check", &self.health_check))
            .or(at("ejection", &self.ejection))
            .or(at("retries", &self.retries))
            .or(at("pending", &self.pending))
            .or(at("timeouts", &self.timeouts))
    }
}

const fn kind(what: &'static str, example: &'static str) -> Kind {
    Kind { what, example }
}

const ELEMENT: Kind = kind("an upstream in quotes, or a table", "\"127.0.0.1:3000\"");
const POLICY: Kind = kind("a policy in quotes, or a table", "\"least_connections\"");
const BY: Kind = kind(
    "\"client\", \"header.NAME\" or \"cookie.NAME\"",
    "\"client\"",
);
const TEXT: Kind = kind("a text in quotes", "\"ok\"");
const PATH: Kind = kind("a path in quotes", "\"/healthz\"");
const COOKIE: Kind = kind("the name of a cookie in quotes", "\"upstream\"");
const SAME_SITE: Kind = kind("\"strict\", \"lax\" or \"none\"", "\"lax\"");
const CHECK: Kind = kind("a table, \"tcp\" or \"off\"", "{ path = \"/healthz\" }");
const OFF: Kind = kind("a table or \"off\"", "\"off\"");
const DURATION: Kind = kind("a duration in quotes", "\"10s\"");
const DURATION_OR_OFF: Kind = kind("a duration in quotes, or \"off\"", "\"60s\"");
const NUMBER: Kind = kind("a whole number", "3");
const STATUSES: Kind = kind("an array of status codes", "[503, \"2xx\"]");

/// Counters and schedules have as many places as weights add up to.
const MAX_WEIGHT: u32 = 100;
const MAX_COUNT: u32 = 1_000_000;

impl<'a> Reader<'a> {
    pub(in super::super) fn pool(&self, table: &Table<'a>) -> PoolDraft {
        PoolDraft {
            balancing: table
                .get("load_balancing")
                .and_then(|v| located(v, self.balancing(v))),
            health_check: table
                .get("health_check")
                .and_then(|v| located(v, self.health_check(v))),
            ejection: table
                .get("ejection")
                .and_then(|v| located(v, self.ejection(v))),
            retries: table
                .get("retries")
                .and_then(|v| located(v, self.retries(v))),
            pending: table
                .get("pending")
                .and_then(|v| located(v, self.pending(v))),
            timeouts: table
                .get("timeouts")
                .and_then(|v| located(v, self.timeouts(v))),
        }
    }

    /// `upstreams`: texts, and tables with `to`.
    pub(in super::super) fn members(&self, value: Option<Value<'a>>) -> Vec<Member> {
        let Some((at, elements)) = value.and_then(|v| Some((v.at, v.elements(UPSTREAMS)?))) else {
            return Vec::new();
        };
        if elements.is_empty() {
            let problem = Problem::new("`upstreams` is empty, so requests could go nowhere")
                .help("write upstreams = [\"127.0.0.1:3000\"]");
            self.report.add(at, problem);
        }
        let members = elements.into_iter();
        members
            .filter_map(|element| match element.is_table() {
                true => self.member(&element.table(&UPSTREAM)?),
                false => self.upstream(element, ELEMENT).map(Member::from),
            })
            .collect()
    }

    fn upstream(&self, value: Value<'a>, kind: Kind) -> Option<super::super::Upstream> {
        let parsed = value.parse(kind, |text| upstream(text, self.base));
        parsed.map(|upstream| upstream.value)
    }

    fn member(&self, table: &Table<'a>) -> Option<Member> {
        const TO: Kind = kind("an upstream in quotes", "\"127.0.0.1:3000\"");
        let to = table.require("to", TO.example)?;
        let weight = self.number(table, "weight", 1, MAX_WEIGHT);
        let max_connections = self.number(table, "max_connections", 1, MAX_COUNT);
        let upstream = self.upstream(to, TO)?;
        if let (super::super::Upstream::Respond(_), Some(value)) =
            (&upstream, table.get("max_connections"))
        {
            let problem = Problem::new("`max_connections` of a `respond:` has no effect")
                .help("it has no connections: leave the key out");
            self.report.add(value.at, problem);
        }
        Some(Member {
            upstream,
            weight: weight.unwrap_or(1),
            max_connections: max_connections.map(|max| max as usize),
        })
    }

    fn balancing(&self, value: Value<'a>) -> Option<Balancing> {
        if !value.is_table() {
            let policy = value
                .parse(POLICY, |text| simple_policy(text, false))?
                .value;
            return Some(Balancing {
                policy,
                ..Balancing::default()
            });
        }
        let table = value.table(&LOAD_BALANCING)?;
        let usual = Balancing::default();
        let name = table.get("policy").map_or(Some(Policy::RoundRobin), |v| {
            Some(v.parse(POLICY, |text| simple_policy(text, true))?.value)
        })?;
        let slow_start = self.wait(&table, "slow_start", "1s", "1h");
        Some(Balancing {
            policy: self.policy(name, &table)?,
            panic_threshold: self
                .number(&table, "panic_threshold", 0, 100)
                .map_or(usual.panic_threshold, |percent| percent as u8),
            slow_start: slow_start.flatten().unwrap_or_default(),
        })
    }

    /// A policy with what only it has.
    fn policy(&self, policy: Policy, table: &Table<'a>) -> Option<Policy> {
        const STICKY: [&str; 6] = ["cookie", "path", "secure", "same_site", "max_age", "secret"];
        let (hash, sticky) = (
            matches!(policy, Policy::Hash(_)),
            matches!(policy, Policy::Sticky(_)),
        );
        let misplaced = std::iter::once(("by", hash, "hash"))
            .chain(STICKY.iter().map(|key| (*key, sticky, "sticky")));
        for (key, fits, policy) in misplaced {
            if let Some(value) = table.get(key).filter(|_| !fits) {
                let problem = Problem::new(format!("`{key}` goes with policy = \"{policy}\""));
                self.report
                    .add(value.at, problem.help("leave it out, or name that policy"));
            }
        }
        Some(match policy {
            Policy::Hash(_) => {
                Policy::Hash(table.require("by", BY.example)?.parse(BY, hash_key)?.value)
            }
            Policy::Sticky(cookie) => Policy::Sticky(self.sticky(cookie, table)?),
            other => other,
        })
    }

    fn sticky(&self, usual: StickyCookie, table: &Table<'a>) -> Option<StickyCookie> {
        let name = table.get("cookie").map(|v| v.parse(COOKIE, cookie_name));
        let path = table.get("path").map(|v| v.parse(PATH, cookie_path));
        let secret = table
            .get("secret")
            .map(|v| v.parse(TEXT, |text| self.secret("secret", text)));
        let same_site = table
            .get("same_site")
            .map(|v| v.parse(SAME_SITE, same_site));
        let max_age = table
            .get("max_age")
            .map(|v| v.parse(DURATION, |text| duration_between(text, "1s", "400d")));
        let cookie = StickyCookie {
            name: name.map_or(Some(usual.name), |name| Some(name?.value))?,
            path: path.map_or(Some(usual.path), |path| Some(path?.value))?,
            secure: table.get("secure").and_then(Value::boolean),
            same_site: same_site.map_or(Some(usual.same_site), |it| Some(it?.value))?,
            max_age: max_age.map_or(Some(None), |age| Some(Some(age?.value)))?,
            secret: secret.map_or(Some(None), |it| Some(Some(it?.value.into())))?,
        };
        if cookie.same_site == SameSite::None && cookie.secure == Some(false) {
            let problem = Problem::new("same_site = \"none\" needs a secure cookie")
                .help("browsers drop it otherwise: leave `secure` out, or set it to true");
            self.report.add(table.at, problem);
        }
        Some(cookie)
    }

    /// `None` inside is "off".
    fn health_check(&self, value: Value<'a>) -> Option<Option<HealthCheck>> {
        if !value.is_table() {
            let word = |text: &str| {
                choice(
                    "health check",
                    text,
                    &[("tcp", Some(CheckKind::Tcp)), ("off", None)],
                )
            };
            let kind = value.parse(CHECK, word)?.value;
            return Some(kind.map(usual_check));
        }
        let table = value.table(&HEALTH_CHECK)?;
        let path = table.get("path").map(|v| v.parse(PATH, check_path));
        let host = table.get("host").map(|v| v.parse(TEXT, check_host));
        let body = table.get("body").map(|v| v.parse(TEXT, non_empty));
        let statuses = table.get("status").map(|v| self.statuses(v));
        if path.is_none() {
            for key in ["host", "body", "status"] {
                if let Some(value) = table.get(key) {
                    let problem = Problem::new(format!("`{key}` has no effect without `path`"))
                        .help("add path = \"/\": without it, that a connection opens is enough");
                    self.report.add(value.at, problem);
                }
            }
        }
        let kind = match path {
            None => CheckKind::Tcp,
            Some(path) => CheckKind::Http(HttpCheck {
                path: path?.value,
                host: host.map_or(Some(None), |host| Some(Some(host?.value)))?,
                statuses: statuses.unwrap_or_else(|| Some(Statuses(vec![(200, 299)])))?,
                body: body.map_or(Some(None), |body| Some(Some(body?.value)))?,
            }),
        };
        let usual = usual_check(kind);
        let check = HealthCheck {
            interval: self.duration(&table, "interval", "100ms", "1h", usual.interval)?,
            timeout: self.duration(&table, "timeout", "10ms", "5m", usual.timeout)?,
            rise: self.number(&table, "rise", 1, 1000).unwrap_or(usual.rise),
            fall: self.number(&table, "fall", 1, 1000).unwrap_or(usual.fall),
            kind: usual.kind,
        };
        Some(Some(check))
    }

    fn ejection(&self, value: Value<'a>) -> Option<Option<Ejection>> {
        let Some(table) = self.table_or_off(value, &EJECTION)? else {
            return Some(None);
        };
        let usual = Ejection::default();
        let ejection = Ejection {
            failures: self
                .number(&table, "failures", 1, 1000)
                .unwrap_or(usual.failures),
            statuses: match table.get("statuses") {
                Some(value) => self.statuses(value)?,
                None => usual.statuses,
            },
            time: self.duration(&table, "time", "100ms", "1h", usual.time)?,
            max_time: self.duration(&table, "max_time", "100ms", "1d", usual.max_time)?,
        };
        if ejection.max_time < ejection.time {
            let problem = Problem::new("`max_time` is shorter than `time`")
                .help("`time` grows up to `max_time`: make that the longer one");
            self.report.add(table.at, problem);
        }
        Some(Some(ejection))
    }

    fn retries(&self, value: Value<'a>) -> Option<Option<Retries>> {
        let Some(table) = self.table_or_off(value, &RETRIES)? else {
            return Some(None);
        };
        let usual = Retries::default();
        Some(Some(Retries {
            budget: self
                .number(&table, "budget", 0, 1000)
                .unwrap_or(usual.budget),
            min_per_second: self
                .number(&table, "min_per_second", 0, MAX_COUNT)
                .unwrap_or(usual.min_per_second),
        }))
    }

    fn pending(&self, value: Value<'a>) -> Option<Pending> {
        let usual = Pending::default();
        let Some(table) = self.table_or_off(value, &PENDING)? else {
            return Some(Pending { max: 0, ..usual });
        };
        Some(Pending {
            max: self
                .number(&table, "max", 1, MAX_COUNT)
                .map_or(usual.max, |max| max as usize),
            timeout: self.duration(&table, "timeout", "1ms", "1h", usual.timeout)?,
        })
    }

    fn timeouts(&self, value: Value<'a>) -> Option<Timeouts> {
        let table = value.table(&TIMEOUTS)?;
        let usual = Timeouts::default();
        let wait = |key| match self.wait(&table, key, "10ms", "7d") {
            None => Wait::Usual,
            Some(None) => Wait::Forever,
            Some(Some(limit)) => Wait::AtMost(limit),
        };
        Some(Timeouts {
            dial: self.duration(&table, "dial", "10ms", "5m", usual.dial)?,
            response_header: wait("response_header"),
            idle: wait("idle"),
            total: self.wait(&table, "total", "10ms", "7d").flatten(),
            ping: self
                .wait(&table, "ping", "50ms", "1h")
                .unwrap_or(usual.ping),
        })
    }

    /// `None` inside is "off".
    fn table_or_off(
        &self,
        value: Value<'a>,
        section: &'static Section,
    ) -> Option<Option<Table<'a>>> {
        if value.is_table() {
            return value.table(section).map(Some);
        }
        let off = |text: &str| match text {
            "off" => Ok(()),
            _ => Err(
                Problem::new(format!("{text:?} is neither a table nor \"off\""))
                    .help("write a table, or \"off\""),
            ),
        };
        value.parse(OFF, off).map(|_| None)
    }

    fn number(&self, table: &Table<'a>, key: &'static str, least: u32, most: u32) -> Option<u32> {
        let number = table.get(key)?.integer(NUMBER)?;
        let fits = u32::try_from(number.value).ok();
        let fits = fits.filter(|number| (least..=most).contains(number));
        let problem = || {
            Problem::new(format!("`{key}` cannot be {}", number.value))
                .help(format!("write a number from {least} to {most}"))
        };
        self.report.keep(number.at, fits.ok_or_else(problem))
    }

    fn duration(
        &self,
        table: &Table<'a>,
        key: &'static str,
        least: &str,
        most: &str,
        usual: Duration,
    ) -> Option<Duration> {
        match table.get(key) {
            None => Some(usual),
            Some(value) => value
                .parse(DURATION, |text| duration_between(text, least, most))
                .map(|duration| duration.value),
        }
    }

    /// The outer `None`: it is not there, or cannot be read; the inner: "off".
    fn wait(
        &self,
        table: &Table<'a>,
        key: &'static str,
        least: &str,
        most: &str,
    ) -> Option<Option<Duration>> {
        let parse = |text: &str| match text {
            "off" => Ok(None),
            text => duration_between(text, least, most).map(Some),
        };
        let parsed = table.get(key)?.parse(DURATION_OR_OFF, parse);
        parsed.map(|wait| wait.value)
    }

    fn statuses(&self, value: Value<'a>) -> Option<Statuses> {
        let elements = match value.is_array() {
            true => value.elements(STATUSES)?,
            false => vec![value],
        };
        let range = |element: Value<'a>| match element.is_string() {
            true => element.parse(STATUSES, status_class).map(|it| it.value),
            false => {
                let code = element.integer(STATUSES)?;
                let fits = u16::try_from(code.value).ok();
                let fits = fits.filter(|code| (100..600).contains(code));
                let problem = || {
                    Problem::new(format!("{} is no status code", code.value))
                        .help("it is a number from 100 to 599, or a class such as \"5xx\"")
                };
                let code = self.report.keep(code.at, fits.ok_or_else(problem))?;
                Some((code, code))
            }
        };
        let ranges: Option<Vec<_>> = elements.into_iter().map(range).collect();
        ranges.map(Statuses)
    }
}

fn located<T>(value: Value<'_>, read: Option<T>) -> Option<Located<T>> {
    let at = value.at;
    read.map(|value| Located { value, at })
}

fn usual_check(kind: CheckKind) -> HealthCheck {
    HealthCheck {
        kind,
        interval: Duration::from_secs(10),
        timeout: Duration::from_secs(2),
        rise: 2,
        fall: 3,
    }
}

fn usual_cookie() -> StickyCookie {
    StickyCookie {
        name: "upstream".into(),
        path: "/".into(),
        secure: None,
        same_site: SameSite::default(),
        max_age: None,
        secret: None,
    }
}

/// A policy by its name. `table`: whether what it needs may stand beside it.
fn simple_policy(text: &str, table: bool) -> Result<Policy, Problem> {
    let name = choice(
        "policy",
        text,
        &[
            ("round_robin", 0),
            ("least_connections", 1),
            ("random", 2),
            ("hash", 3),
            ("sticky", 4),
        ],
    )?;
    match name {
        0 => Ok(Policy::RoundRobin),
        1 => Ok(Policy::LeastConnections),
        2 => Ok(Policy::Random),
        3 if !table => Err(
            Problem::new("the policy \"hash\" needs to know what to hash").help(
                "write { policy = \"hash\", by = \"client\" }, \"header.NAME\" or \"cookie.NAME\"",
            ),
        ),
        3 => Ok(Policy::Hash(HashKey::Client)),
        _ => Ok(Policy::Sticky(usual_cookie())),
    }
}

fn hash_key(text: &str) -> Result<HashKey, Problem> {
    if text == "client" {
        return Ok(HashKey::Client);
    }
    match text.split_once('.') {
        Some(("header", name)) => field_name(name).map(|name| HashKey::Field(name.into())),
        Some(("cookie", name)) => cookie_name(name).map(HashKey::Cookie),
        _ => Err(Problem::new(format!("{text:?} is nothing to hash"))
            .help("write \"client\", \"header.NAME\" or \"cookie.NAME\"")),
    }
}

/// RFC 6265 section 4.1.1: a token.
fn cookie_name(text: &str) -> Result<Box<str>, Problem> {
    match field_name(text) {
        Ok(name) => Ok(name.into()),
        Err(_) => Err(Problem::new(format!("{text:?} is no name of a cookie"))
            .help("use letters, digits, - and _")),
    }
}

fn cookie_path(text: &str) -> Result<Box<str>, Problem> {
    let plain = |c: char| c.is_ascii_graphic() && c != ';';
    match text.starts_with('/') && text.chars().all(plain) {
        true => Ok(text.into()),
        false => Err(Problem::new(format!("{text:?} is no path of a cookie"))
            .help("it begins with / and has no spaces or semicolons")),
    }
}

fn check_path(text: &str) -> Result<Box<str>, Problem> {
    let plain = |c: char| c.is_ascii_graphic() && c != '#';
    match text.starts_with('/') && text.chars().all(plain) {
        true => Ok(text.into()),
        false => Err(Problem::new(format!("{text:?} is no path to ask for"))
            .help("write it as it is sent, such as \"/healthz\"; a query may follow")),
    }
}

fn check_host(text: &str) -> Result<Box<str>, Problem> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._:[]".contains(c);
    match !text.is_empty() && text.chars().all(plain) {
        true => Ok(text.into()),
        false => Err(Problem::new(format!("{text:?} is no host to ask for"))
            .help("write for example \"app.internal\" or \"app.internal:8080\"")),
    }
}

fn non_empty(text: &str) -> Result<Box<str>, Problem> {
    match text.is_empty() {
        false => Ok(text.into()),
        true => Err(Problem::new("an empty text is in every body").help("leave the key out")),
    }
}

fn same_site(text: &str) -> Result<SameSite, Problem> {
    choice(
        "value of SameSite",
        text,
        &[
            ("strict", SameSite::Strict),
            ("lax", SameSite::Lax),
            ("none", SameSite::None),
        ],
    )
}

/// `"5xx"`, or `"200-204"`, or `"503"`.
fn status_class(text: &str) -> Result<(u16, u16), Problem> {
    let code = |text: &str| {
        let code: u16 = text.parse().ok()?;
        (100..600).contains(&code).then_some(code)
    };
    let range = match text.strip_suffix("xx") {
        Some(class) => code(&format!("{class}00")).map(|first| (first, first + 99)),
        None => {
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            code(first)
                .zip(code(last))
                .filter(|(first, last)| first <= last)
        }
    };
    range.ok_or_else(|| {
        Problem::new(format!("{text:?} is no status code"))
            .help("write a number, a class such as \"2xx\", or a range such as \"200-204\"")
    })
}
