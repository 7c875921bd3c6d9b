//! `[acme.on_demand]`: certificates that are ordered when the first client asks for their name,
//! who may cause that, and how often.

use std::sync::Arc;
use std::time::Duration;

use super::TlsMode;
use super::diagnostic::{Located, Problem, Report};
use super::draft::{Draft, SiteDraft};
use super::keys::{ON_DEMAND, ON_DEMAND_BUDGETS};
use super::limits::{Limit, limit};
use super::reader::{Kind, Value};
use super::value::{domain, duration_between};
use crate::certificate::name::Name;

const URL: Kind = Kind {
    what: "a URL in quotes",
    example: "\"http://127.0.0.1:9000/allowed\"",
};
const SUFFIXES: Kind = Kind {
    what: "an array of domain names",
    example: "[\"customers.example\"]",
};
const DURATION: Kind = Kind {
    what: "a duration in quotes",
    example: "\"30s\"",
};
const COUNT: Kind = Kind {
    what: "a whole number",
    example: "10000",
};
const BUDGET: Kind = Kind {
    what: "a budget in quotes",
    example: "\"30/10m\"",
};

const DEFAULT_ASK_TIMEOUT: Duration = Duration::from_secs(5);
const DEFAULT_WAIT: Duration = Duration::from_secs(30);
const DEFAULT_MAX_LOADED: usize = 10_000;
/// A million certificates are several gigabytes of memory.
const MAX_MAX_LOADED: i128 = 1_000_000;

/// How certificates are had on demand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OnDemand {
    pub permission: Permission,
    /// How long a handshake waits for its certificate.
    pub wait: Duration,
    /// How many certificates are in memory at the same time; the others are on disk.
    pub max_loaded: usize,
    pub budgets: Budgets,
}

/// Which names may be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Permission {
    /// Whatever this URL answers 2xx for.
    Ask { url: String, timeout: Duration },
    /// These domains and all names below them.
    Allow(Vec<Arc<str>>),
}

/// How many new names may be asked about; `None` is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budgets {
    /// By clients of one network (/24 of IPv4, /56 of IPv6).
    pub per_client: Option<Limit>,
    /// Below one registered domain.
    pub per_domain: Option<Limit>,
    pub total: Option<Limit>,
}

impl Default for Budgets {
    fn default() -> Budgets {
        const MINUTE: u64 = 60;
        let budget = |count, minutes| {
            Some(Limit {
                count,
                per: Duration::from_secs(minutes * MINUTE),
            })
        };
        Budgets {
            per_client: budget(30, 10),
            per_domain: budget(50, 60),
            total: budget(300, 60),
        }
    }
}

/// What is written in `[acme.on_demand]`.
pub(super) struct OnDemandDraft {
    at: usize,
    ask: Option<Located<String>>,
    /// Whether either was written, be it wrong.
    has_ask: bool,
    allow: Option<Located<Vec<Arc<str>>>>,
    has_allow: bool,
    ask_timeout: Option<Located<Duration>>,
    wait: Option<Duration>,
    max_loaded: Option<usize>,
    budgets: Budgets,
}

impl OnDemandDraft {
    pub(super) fn read(value: Value<'_>, report: &Report<'_>) -> Option<OnDemandDraft> {
        let table = value.table(&ON_DEMAND)?;
        let duration = |key, least, most| {
            table
                .get(key)?
                .parse(DURATION, |text| duration_between(text, least, most))
        };
        Some(OnDemandDraft {
            at: table.at,
            ask: table.get("ask").and_then(|v| v.parse(URL, ask_url)),
            has_ask: table.get("ask").is_some(),
            allow: table.get("allow").and_then(|v| suffixes(v, report)),
            has_allow: table.get("allow").is_some(),
            ask_timeout: duration("ask_timeout", "100ms", "1m"),
            wait: duration("wait", "1s", "5m").map(|wait| wait.value),
            max_loaded: table.get("max_loaded").and_then(|v| max_loaded(v, report)),
            budgets: table.get("budgets").map(budgets).unwrap_or_default(),
        })
    }
}

fn suffixes(value: Value<'_>, report: &Report<'_>) -> Option<Located<Vec<Arc<str>>>> {
    let list = value.list(SUFFIXES, |text| domain("allow", text))?;
    if list.is_empty {
        let problem = Problem::new("`allow` is empty, so no name could be had")
            .help("write allow = [\"customers.example\"]");
        report.add(list.at, problem);
    }
    Some(Located {
        value: list.values.into_iter().map(|one| one.value).collect(),
        at: list.at,
    })
}

fn ask_url(text: &str) -> Result<String, Problem> {
    let wrong = |why: &str| {
        Err(
            Problem::new(format!("{text:?} cannot be asked for permission: {why}"))
                .help("it looks like http://127.0.0.1:9000/allowed"),
        )
    };
    let Ok(url) = text.parse::<http::Uri>() else {
        return wrong("it is not a URL");
    };
    let (Some(scheme), Some(authority)) = (url.scheme_str(), url.authority()) else {
        return wrong("it does not begin with http:// or https://");
    };
    if authority.host().is_empty() || authority.as_str().contains('@') || text.contains('#') {
        return wrong("it needs a host, and can have neither user nor fragment");
    }
    match scheme {
        "http" | "https" => Ok(text.to_owned()),
        _ => wrong("it does not begin with http:// or https://"),
    }
}

fn max_loaded(value: Value<'_>, report: &Report<'_>) -> Option<usize> {
    let count = value.integer(COUNT)?;
    let in_bounds = (1..=MAX_MAX_LOADED).contains(&count.value);
    let problem = || {
        Problem::new(format!("`max_loaded` cannot be {}", count.value))
            .help(format!("it can be from 1 to {MAX_MAX_LOADED}"))
    };
    let parsed = usize::try_from(count.value).ok().filter(|_| in_bounds);
    report.keep(count.at, parsed.ok_or_else(problem))
}

fn budgets(value: Value<'_>) -> Budgets {
    let defaults = Budgets::default();
    let Some(table) = value.table(&ON_DEMAND_BUDGETS) else {
        return defaults;
    };
    let budget = |key, default| {
        let written = table.get(key).and_then(|v| v.parse(BUDGET, limit));
        written.map_or(default, |budget| budget.value)
    };
    Budgets {
        per_client: budget("per_client", defaults.per_client),
        per_domain: budget("per_domain", defaults.per_domain),
        total: budget("total", defaults.total),
    }
}

/// `None` where it was not written, or is wrong and reported.
pub(super) fn on_demand(draft: Option<OnDemandDraft>) -> Option<OnDemand> {
    let draft = draft?;
    let timeout = draft.ask_timeout.map(|timeout| timeout.value);
    let permission = match (draft.ask, draft.allow) {
        (Some(url), _) => Permission::Ask {
            url: url.value,
            timeout: timeout.unwrap_or(DEFAULT_ASK_TIMEOUT),
        },
        (None, Some(allow)) => Permission::Allow(allow.value),
        (None, None) => return None,
    };
    Some(OnDemand {
        permission,
        wait: draft.wait.unwrap_or(DEFAULT_WAIT),
        max_loaded: draft.max_loaded.unwrap_or(DEFAULT_MAX_LOADED),
        budgets: draft.budgets,
    })
}

/// Whoever may have a certificate ordered for any name that comes along has the account's limits
/// at the mercy of strangers: there is no on-demand without somebody who says yes.
pub(super) fn check(draft: &Draft, report: &Report<'_>) {
    let first = draft.sites.iter().find_map(|site| site.on_demand_at());
    match (&draft.on_demand, first) {
        (None, Some(at)) => {
            let problem = Problem::new("`on_demand` is set, but there is no [acme.on_demand]");
            report.add(at, problem.help(PERMISSION_HELP));
        }
        (Some(on_demand), None) => {
            let problem = Problem::new("[acme.on_demand] is set, but no site has `on_demand`");
            let help = "set on_demand = true in the site whose hosts are had on demand";
            report.add(on_demand.at, problem.help(help));
        }
        _ => {}
    }
    if let Some(on_demand) = &draft.on_demand {
        check_permission(on_demand, report);
    }
    check_one_for_any_host(&draft.sites, report);
    for site in &draft.sites {
        check_site(site, report);
    }
}

const PERMISSION_HELP: &str = "add [acme.on_demand] with ask = \"http://127.0.0.1:9000/allowed\", \
     which answers 2xx for the names that may be had, or with allow = [\"customers.example\"]";

fn check_permission(draft: &OnDemandDraft, report: &Report<'_>) {
    match (draft.has_ask, draft.has_allow) {
        (false, false) => {
            let problem = Problem::new(
                "[acme.on_demand] has neither `ask` nor `allow`, so anybody could have \
                 certificates ordered",
            );
            report.add(draft.at, problem.help(PERMISSION_HELP));
        }
        (true, true) => {
            let problem = Problem::new("[acme.on_demand] has both `ask` and `allow`");
            report.add(draft.at, problem.help("remove one of them"));
        }
        (false, true) => {
            if let Some(timeout) = &draft.ask_timeout {
                let problem = Problem::new("`ask_timeout` is set, but nobody is asked");
                report.add(timeout.at, problem.help("remove it, or use `ask`"));
            }
        }
        (true, false) => {}
    }
}

fn check_one_for_any_host(sites: &[SiteDraft], report: &Report<'_>) {
    let mut places = sites.iter().filter_map(|site| site.any_host);
    let first = places.next();
    for at in places {
        let reference = first.map(|at| report.source.reference(at));
        let problem = Problem::new(format!(
            "another site already has the host * ({})",
            reference.unwrap_or_default()
        ));
        report.add(
            at,
            problem.help("a host belongs to one site: remove one of the two"),
        );
    }
}

/// Whatever certificates it has are there already, or none are needed, or they are ordered on demand.
fn check_any_host(site: &SiteDraft, report: &Report<'_>) {
    let Some(at) = site.any_host else {
        return;
    };
    let mode = site.tls.as_ref().map(|tls| tls.value);
    let is_ready = matches!(mode, Some(TlsMode::Files | TlsMode::Off));
    if !is_ready && site.on_demand_at().is_none() {
        let problem = Problem::new("the host * is every name, and none can be ordered ahead");
        let help = "set on_demand = true in this site; or tls = \"files\" where files have the \
                    certificates; or tls = \"off\"";
        report.add(at, problem.help(help));
    }
    if let Some(auth) = &site.client_auth {
        let problem = Problem::new("`client_auth` cannot be combined with the host *");
        let help = "list the hosts whose clients have to show a certificate, or wildcards";
        report.add(auth.at, problem.help(help));
    }
}

fn check_site(site: &SiteDraft, report: &Report<'_>) {
    check_any_host(site, report);
    let Some(at) = site.on_demand_at() else {
        return;
    };
    let mode = site.tls.as_ref().map(|tls| tls.value);
    if let Some(TlsMode::Internal | TlsMode::Files | TlsMode::Off) = mode {
        let problem = Problem::new("`on_demand` is set, but nothing is ordered for this site");
        report.add(at, problem.help("set tls = \"auto\" or tls = \"acme\""));
    }
    if site.certificate_per == super::CertificatePer::Site {
        let problem = Problem::new(
            "`on_demand` and certificate_per = \"site\" contradict each other: each name is \
             ordered when it is asked for",
        );
        report.add(at, problem.help("remove certificate_per"));
    }
    if let Some(takeover) = site.takeover.as_ref().filter(|it| it.value.is_some()) {
        let problem = Problem::new("`takeover` and `on_demand` cannot be combined");
        report.add(
            takeover.at,
            problem.help("put the hosts whose files are taken over into a site of their own"),
        );
    }
    for host in &site.hosts {
        let wrong = match &host.value {
            Name::Ip(_) => "is an address, and only names can be had on demand",
            name if mode == Some(TlsMode::Auto) && name.is_private() => {
                "is private: the default for it is the internal CA, which needs no demand"
            }
            _ => continue,
        };
        let problem = Problem::new(format!("{} {wrong}", host.value));
        let help = "put it into a site without `on_demand`, or set tls = \"acme\" if your CA \
                    issues for it";
        report.add(host.at, problem.help(help));
    }
}
