//! Every table of the configuration file with its keys: what the reader knows, and what the
//! reference and the schema are made of. What the values mean is said where they are read.

mod acme;
mod pools;
mod server;
mod sites;

pub(super) use acme::{
    ACME, DNS, DNS_PROVIDERS, EXTERNAL_ACCOUNT, FALLBACK, LIMITS, ON_DEMAND, ON_DEMAND_BUDGETS,
};
pub(super) use pools::{
    EJECTION, HEALTH_CHECK, LOAD_BALANCING, PENDING, RETRIES, TIMEOUTS, UPSTREAM,
};
pub(super) use server::{ACCESS_LOG, CERTIFICATE_FILES, CERTIFICATES, SERVER, TLS};
pub(super) use sites::{
    BASIC_AUTH, CLIENT_AUTH, FIELD_RULES, FORWARD_AUTH, HSTS, RATE_LIMIT, ROUTE,
    ROUTE_UPSTREAM_TLS, SITE, UPSTREAM_TLS,
};

/// The keys that one kind of table can have.
pub(super) struct Section {
    /// As it is written in a file; empty for the top level.
    pub(super) header: &'static str,
    /// Its name in the schema.
    pub(super) id: &'static str,
    /// What the table is for, in Markdown.
    pub(super) doc: &'static str,
    pub(super) keys: &'static [Key],
}

impl Section {
    pub(super) fn has(&self, key: &str) -> bool {
        self.names().any(|name| name == key)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &'static str> + use<> {
        self.keys.iter().map(|key| key.name)
    }
}

/// One key of a table.
pub(super) struct Key {
    pub(super) name: &'static str,
    pub(super) shape: Shape,
    /// As it would stand after the `=`; empty where leaving the key out is not the same as
    /// writing some value.
    pub(super) default: &'static str,
    /// One or two sentences, in Markdown.
    pub(super) doc: &'static str,
}

/// What can stand after the `=`.
pub(super) enum Shape {
    /// Any string; what it has to look like, in words.
    Text(&'static str),
    Duration,
    /// `"50/7d"` or `"off"`.
    Limit,
    /// `"10MiB"` or `"off"`.
    Size,
    Path,
    Flag,
    /// From the first to the second.
    Whole(i64, i64),
    /// One of these strings.
    Words(&'static [&'static str]),
    List(&'static Shape),
    /// A table of strings whose keys are free.
    Pairs,
    Table(&'static Section),
    Tables(&'static Section),
    Either(&'static [Shape]),
}

const fn key(name: &'static str, shape: Shape, default: &'static str, doc: &'static str) -> Key {
    Key {
        name,
        shape,
        default,
        doc,
    }
}

use Shape::{List, Table, Tables, Text, Words};

const URL: Shape = Text("a URL");
const NETWORKS: Shape = List(&Text("an address or a network"));
const TAKEOVERS: Shape = Words(&["acme", "internal", "off"]);

pub(super) const TOP: Section = Section {
    header: "",
    id: "configuration",
    doc: "",
    keys: &[
        key("server", Table(&SERVER), "", "The server itself."),
        key(
            "certificates",
            Table(&CERTIFICATES),
            "",
            "Certificates that somebody else renews.",
        ),
        key("tls", Table(&TLS), "", "How TLS sessions are resumed."),
        key(
            "acme",
            Table(&ACME),
            "",
            "Where certificates are ordered that no file has.",
        ),
        key(
            "access_log",
            Table(&ACCESS_LOG),
            "",
            "Where the line of each request goes, and what is in it.",
        ),
        key(
            "sites",
            Tables(&SITE),
            "",
            "What is served. At least one is needed.",
        ),
    ],
};

/// Every section, in the order in which a misplaced key is looked for.
pub(super) const SECTIONS: [&Section; 31] = [
    &TOP,
    &SERVER,
    &CERTIFICATES,
    &CERTIFICATE_FILES,
    &TLS,
    &ACME,
    &FALLBACK,
    &EXTERNAL_ACCOUNT,
    &LIMITS,
    &DNS,
    &DNS_PROVIDERS,
    &ON_DEMAND,
    &ON_DEMAND_BUDGETS,
    &ACCESS_LOG,
    &SITE,
    &ROUTE,
    &UPSTREAM,
    &LOAD_BALANCING,
    &HEALTH_CHECK,
    &EJECTION,
    &RETRIES,
    &PENDING,
    &TIMEOUTS,
    &RATE_LIMIT,
    &BASIC_AUTH,
    &FORWARD_AUTH,
    &FIELD_RULES,
    &HSTS,
    &CLIENT_AUTH,
    &UPSTREAM_TLS,
    &ROUTE_UPSTREAM_TLS,
];
