//! The text of a configuration file -> a [`Draft`]. Here is what every key means; whether the
//! values fit together is not asked here.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use toml::de::DeTable;

use super::access::size;
use super::diagnostic::{Located, Problem, Report};
use super::draft::{
    AuthorityDraft, CertificateFilesDraft, CertificatesDraft, ClientAuthDraft, Draft, Listen,
    ServerDraft, SiteDraft, TlsDraft, UpstreamTlsDraft,
};
use super::environment::Environment;
use super::fields;
use super::keys::{
    ACME, CERTIFICATE_FILES, CERTIFICATES, CLIENT_AUTH, EXTERNAL_ACCOUNT, FALLBACK, ROUTE, SERVER,
    SITE, TLS, TOP, UPSTREAM_TLS,
};
use super::limits::{LIMIT, LimitsDraft, limit};
use super::listen::{account_name, listen, socket_mode};
use super::on_demand::OnDemandDraft;
use super::proxy_protocol;
use super::reader::{Kind, List, Table, Value};
use super::route::{self, has_action};
use super::value::{
    admin_listen, certificate_per, challenge_type, client_auth_mode, directory_url,
    duration_between, email, file_path, forwarded, hmac_key, host, ip_prefix, key_type, log_level,
    secret, server_name, takeover, tls_mode, token,
};
use super::{
    AccountKind, AccountReference, AdminListen, ChallengeType, ErrorPages, ExternalAccount,
    IdleTimeouts, ListenAddress, MinRates, SocketFile, TlsMode,
};
use crate::certificate::name::Name;

const DURATION: Kind = kind("a duration in quotes", "\"30s\"");
const PATH: Kind = kind("a path in quotes", "\"/etc/perennial/name\"");
const PATHS: Kind = kind("an array of paths", "[\"/etc/perennial/certs\"]");
const ADDRESSES: Kind = kind("an array of listen addresses", "[\"[::]:8443\"]");
const SOCKET_MODE: Kind = kind("a file mode in quotes", "\"0660\"");
const ACCOUNT: Kind = kind("a user or a group in quotes", "\"www-data\"");
const ADMIN_ADDRESS: Kind = kind("a listen address in quotes", "\"127.0.0.1:2019\"");
pub(super) const PREFIXES: Kind = kind("an array of addresses and networks", "[\"10.0.0.0/8\"]");
const PEERS: Kind = kind(
    "an array of addresses and networks, or \"unix\"",
    "[\"10.0.0.0/8\"]",
);
const CONNECTIONS: Kind = kind("a number of connections", "10000");
const RATE: Kind = kind("a size in quotes, or \"off\"", "\"240B\"");
const FORWARDED: Kind = kind(
    "\"x-forwarded\", \"rfc7239\", \"both\" or \"off\"",
    "\"both\"",
);
const FIELD: Kind = kind("the name of a field", "\"X-Request-Id\"");
const THREADS: Kind = kind("a whole number", "0");
const NAME: Kind = kind("a host name in quotes", "\"example.com\"");
const NAMES: Kind = kind("an array of host names", "[\"example.com\"]");
const EMAIL: Kind = kind("an e-mail address in quotes", "\"ops@example.com\"");
const URL: Kind = kind("a URL in quotes", "\"https://ca.example.com/directory\"");
const CHALLENGES: Kind = kind("an array of challenges", "[\"tls-alpn-01\", \"http-01\"]");
const KEY_TYPE: Kind = kind("a key type in quotes", "\"p256\"");
const TOKEN: Kind = kind("a string", "\"...\"");
const MODE: Kind = kind("a TLS mode in quotes", "\"auto\"");
const CLIENT_AUTH_MODE: Kind = kind("\"require\" or \"request\"", "\"require\"");
const CERTIFICATE_PER: Kind = kind("\"host\" or \"site\"", "\"host\"");
const LOG_LEVEL: Kind = kind("a log level in quotes", "\"info\"");
const TAKEOVER: Kind = kind("\"acme\", \"internal\" or \"off\"", "\"acme\"");
pub(super) const PATTERN: Kind = kind("a path in quotes", "\"/api/*\"");
const PARALLEL_ORDERS: Kind = kind("a number of orders", "8");
pub(super) const UPSTREAMS: Kind = kind("an array of upstreams", "[\"127.0.0.1:3000\"]");

/// More threads than any machine has cores are a slip of the finger.
const MAX_THREADS: i128 = 1024;

/// More connections than any machine has memory for.
const MAX_CONNECTIONS: i128 = 100_000_000;

/// Each holds connections, answers to challenges and perhaps TXT records.
const MAX_PARALLEL_ORDERS: i128 = 256;

const fn kind(what: &'static str, example: &'static str) -> Kind {
    Kind { what, example }
}

/// What a file is read with.
pub(super) struct Reader<'a> {
    pub(super) report: &'a Report<'a>,
    pub(super) environment: &'a Environment<'a>,
    /// What relative paths are relative to.
    pub(super) base: &'a Path,
}

/// Reads the text that `report` is about. Nothing is returned where the text is no TOML: what its
/// errors hide would only be reported as missing.
pub(super) fn read(
    text: &str,
    file: &Path,
    report: &Report<'_>,
    environment: &Environment<'_>,
) -> Option<Draft> {
    let (tree, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        let span = error.span().unwrap_or(0..0);
        report.add(span.start, syntax_problem(error.message(), text.get(span)));
    }
    if !errors.is_empty() {
        return None;
    }
    let reader = Reader {
        report,
        environment,
        base: file.parent().unwrap_or(Path::new("")),
    };
    let top = Table::open(report, &TOP, tree.get_ref(), 0);
    Some(reader.top(&top, file))
}

/// The values themselves stay out of these messages: one may be a secret.
fn syntax_problem(message: &str, found: Option<&str>) -> Problem {
    let message = message.replace(", expected literal string", "");
    match (message.as_str(), found) {
        ("duplicate key", Some(key)) => Problem::new(format!(
            "invalid TOML: duplicate key {key:?}"
        ))
        .help("a key and a [table] can stand once; what can stand several times is [[sites]]"),
        ("string values must be quoted", _) => {
            Problem::new(format!("invalid TOML: {message}")).help("put it between double quotes")
        }
        _ => Problem::new(format!("invalid TOML: {message}")),
    }
}

impl<'a> Reader<'a> {
    fn top(&self, top: &Table<'a>, file: &Path) -> Draft {
        let server = top.get("server").and_then(|v| v.table(&SERVER));
        let certificates = top.get("certificates").and_then(|v| v.table(&CERTIFICATES));
        let tls = top.get("tls").and_then(|v| v.table(&TLS));
        let acme = top.get("acme").and_then(|v| v.table(&ACME));
        let fallbacks = acme.as_ref().and_then(|acme| acme.get("fallback"));
        let dns = acme.as_ref().and_then(|acme| acme.get("dns"));
        let on_demand = acme.as_ref().and_then(|acme| acme.get("on_demand"));
        Draft {
            path: Some(file.to_owned()),
            server: server.map(|table| self.server(&table)).unwrap_or_default(),
            certificates: certificates
                .map(|table| self.certificates(&table))
                .unwrap_or_default(),
            tls: tls.map(|table| self.tls(&table)).unwrap_or_default(),
            acme: acme
                .as_ref()
                .map(|table| self.authority(table))
                .unwrap_or_default(),
            dns: dns.and_then(|value| super::dns::read::dns(self, value)),
            on_demand: on_demand.and_then(|value| OnDemandDraft::read(value, self.report)),
            fallbacks: fallbacks
                .and_then(|value| value.tables(&FALLBACK))
                .map(|tables| self.fallbacks(&tables))
                .unwrap_or_default(),
            access_log: top
                .get("access_log")
                .map(|value| self.access_log(value))
                .unwrap_or_default(),
            sites: self.sites(top.get("sites")),
        }
    }

    fn server(&self, table: &Table<'a>) -> ServerDraft {
        let state_dir = table.get("state_dir").and_then(|v| self.path(v));
        let grace_period = table.get("grace_period");
        let owner = self.account(table, "socket_owner", AccountKind::User);
        let group = self.account(table, "socket_group", AccountKind::Group);
        ServerDraft {
            http_listen: self.listen(table.get("http_listen")),
            https_listen: self.listen(table.get("https_listen")),
            socket_file: SocketFile {
                mode: socket_mode_of(table),
                owner: owner.as_ref().map(|account| account.name.clone()),
                group: group.as_ref().map(|account| account.name.clone()),
            },
            accounts: owner.into_iter().chain(group).collect(),
            admin_listen: table.get("admin_listen").map(|v| self.admin_listen(v)),
            state_dir: state_dir.map(|path| path.value),
            threads: table.get("threads").and_then(|v| self.threads(v)),
            grace_period: grace_period.and_then(|v| duration_of(v, "0s", "7d")),
            trusted_proxies: table
                .get("trusted_proxies")
                .and_then(|v| v.list(PREFIXES, ip_prefix))
                .map(|list| list.values.into_iter().map(|one| one.value).collect())
                .unwrap_or_default(),
            proxy_protocol_from: table
                .get("proxy_protocol_from")
                .and_then(|v| v.list(PEERS, proxy_protocol::peer))
                .map(|list| list.values.into_iter().map(|one| one.value).collect())
                .unwrap_or_default(),
            max_connections: connections(table, "max_connections"),
            max_connections_per_client: connections(table, "max_connections_per_client"),
            min_rates: min_rates(table),
            idle_timeouts: idle_timeouts(table),
            forwarded: table
                .get("forwarded")
                .and_then(|v| v.parse(FORWARDED, forwarded))
                .map(|forwarded| forwarded.value),
            request_id: table
                .get("request_id")
                .and_then(|v| v.parse(FIELD, fields::field_name))
                .map(|name| name.value.into()),
            resolvers: super::dns::read::addresses(table, "resolvers"),
            log_level: table
                .get("log_level")
                .and_then(|v| v.parse(LOG_LEVEL, log_level))
                .map(|level| level.value),
        }
    }

    fn listen(&self, value: Option<Value<'a>>) -> Listen {
        let Some(value) = value else {
            return Listen::Default;
        };
        match value.list(ADDRESSES, |text| listen(text, self.base)) {
            Some(list) if list.is_empty => Listen::Nowhere(list.at),
            Some(list) => Listen::On(list.values),
            // What could not be read claims no address, not even the default one.
            None => Listen::On(Vec::new()),
        }
    }

    fn own_listen(&self, value: Value<'a>) -> Vec<Located<ListenAddress>> {
        let Some(list) = value.list(ADDRESSES, |text| listen(text, self.base)) else {
            return Vec::new();
        };
        if list.is_empty {
            let problem = Problem::new("`listen` is empty, so the site could not be reached")
                .help("leave the key out to serve it on http_listen and https_listen");
            self.report.add(list.at, problem);
        }
        list.values
    }

    /// Whether there is one is for `perennial check`, and for whoever makes a socket, to see.
    fn account(
        &self,
        table: &Table<'a>,
        key: &'static str,
        kind: AccountKind,
    ) -> Option<AccountReference> {
        let name = table.get(key)?.parse(ACCOUNT, account_name)?;
        Some(AccountReference {
            kind,
            name: name.value,
            place: self.report.source.place(name.at),
        })
    }

    fn admin_listen(&self, value: Value<'a>) -> Located<AdminListen> {
        let parsed = value.parse(ADMIN_ADDRESS, |text| admin_listen(text, self.base));
        // What could not be read claims no address, not even the default one.
        parsed.unwrap_or(Located {
            value: AdminListen::Off,
            at: value.at,
        })
    }

    fn threads(&self, value: Value<'a>) -> Option<usize> {
        let threads = value.integer(THREADS)?;
        let in_bounds = (0..=MAX_THREADS).contains(&threads.value);
        let count = usize::try_from(threads.value).ok().filter(|_| in_bounds);
        let problem = || {
            Problem::new(format!("{} is no number of threads", threads.value))
                .help(format!("write 0 for one per core, or up to {MAX_THREADS}"))
        };
        self.report.keep(threads.at, count.ok_or_else(problem))
    }

    fn certificates(&self, table: &Table<'a>) -> CertificatesDraft {
        let directories = table
            .get("directories")
            .and_then(|v| v.list(PATHS, |text| file_path(text, self.base)));
        let files = table.get("files");
        let is_empty = directories.as_ref().is_some_and(|list| list.is_empty);
        let poll_interval = table.get("poll_interval");
        CertificatesDraft {
            has_sources: files.is_some() || (table.get("directories").is_some() && !is_empty),
            directories: directories.map(|list| list.values).unwrap_or_default(),
            files: files
                .and_then(|value| value.tables(&CERTIFICATE_FILES))
                .map(|tables| self.certificate_files(tables))
                .unwrap_or_default(),
            poll_interval: poll_interval.and_then(|v| duration_of(v, "100ms", "1d")),
            watch: table.get("watch").and_then(Value::boolean),
            default: table
                .get("default")
                .and_then(|v| v.parse(NAME, host))
                .map(|name| name.value),
            takeover: table
                .get("takeover")
                .and_then(|v| v.parse(TAKEOVER, takeover)),
        }
    }

    fn certificate_files(&self, tables: List<Table<'a>>) -> Vec<CertificateFilesDraft> {
        let pair = |table: Located<Table<'a>>| {
            let private_key = table.value.get("private_key").and_then(|v| self.path(v));
            let password_file = table.value.get("password_file").and_then(|v| self.path(v));
            let certificate = table
                .value
                .require("certificate", "\"/etc/perennial/fullchain.pem\"")?;
            Some(CertificateFilesDraft {
                certificate: self.path(certificate)?,
                private_key,
                password_file,
            })
        };
        tables.values.into_iter().filter_map(pair).collect()
    }

    fn path(&self, value: Value<'a>) -> Option<Located<PathBuf>> {
        value.parse(PATH, |text| file_path(text, self.base))
    }

    fn tls(&self, table: &Table<'a>) -> TlsDraft {
        let files = table
            .get("session_ticket_key_files")
            .and_then(|v| v.list(PATHS, |text| file_path(text, self.base)));
        if let Some(list) = files.as_ref().filter(|list| list.is_empty) {
            let problem = Problem::new("`session_ticket_key_files` is empty")
                .help("leave the key out: keys are then made and rotated in memory");
            self.report.add(list.at, problem);
        }
        let rotation = table.get("session_ticket_rotation");
        let rotation =
            rotation.and_then(|v| v.parse(DURATION, |text| duration_between(text, "1m", "7d")));
        TlsDraft {
            session_ticket_key_files: files.map(|list| list.values).unwrap_or_default(),
            session_ticket_rotation: rotation,
            resume_after_swap: table.get("resume_after_swap").and_then(Value::boolean),
        }
    }

    fn client_auth(&self, value: Value<'a>) -> Option<Located<ClientAuthDraft>> {
        let table = value.table(&CLIENT_AUTH)?;
        let mode = table
            .get("mode")
            .and_then(|v| v.parse(CLIENT_AUTH_MODE, client_auth_mode));
        let draft = ClientAuthDraft {
            ca: table
                .require("ca", "\"/etc/perennial/clients.pem\"")
                .and_then(|v| self.path(v)),
            crl: table.get("crl").and_then(|v| self.path(v)),
            mode: mode.map(|mode| mode.value).unwrap_or_default(),
        };
        Some(Located {
            value: draft,
            at: table.at,
        })
    }

    pub(super) fn upstream_tls(&self, table: &Table<'a>) -> Located<UpstreamTlsDraft> {
        let path = |key| table.get(key).and_then(|v| self.path(v));
        let server_name = table
            .get("server_name")
            .and_then(|v| v.parse(NAME, server_name));
        let verify = table.get("verify").and_then(|v| {
            let (value, at) = (v.boolean()?, v.at);
            Some(Located { value, at })
        });
        let value = UpstreamTlsDraft {
            ca: path("ca"),
            certificate: path("certificate"),
            private_key: path("private_key"),
            server_name: server_name.map(|name| name.value),
            verify,
        };
        Located {
            value,
            at: table.at,
        }
    }

    fn authority(&self, table: &Table<'a>) -> AuthorityDraft {
        let external_account = table
            .get("external_account")
            .and_then(|v| v.table(&EXTERNAL_ACCOUNT));
        let profile = |text: &str| token("profile", text);
        let issuer = |text: &str| token("issuer name", text);
        AuthorityDraft {
            directory: table
                .get("directory")
                .and_then(|v| v.parse(URL, directory_url)),
            email: table
                .get("email")
                .and_then(|v| v.parse(EMAIL, email))
                .map(|email| email.value),
            ca_certificate: table.get("ca_certificate").and_then(|v| self.path(v)),
            challenges: table.get("challenges").and_then(|v| self.challenges(v)),
            key_type: table
                .get("key_type")
                .and_then(|v| v.parse(KEY_TYPE, key_type))
                .map(|key_type| key_type.value),
            profile: table
                .get("profile")
                .and_then(|v| v.parse(TOKEN, profile))
                .map(|profile| profile.value),
            address_profile: table
                .get("address_profile")
                .and_then(|v| v.parse(TOKEN, profile))
                .map(|profile| profile.value),
            preferred_chain: table
                .get("preferred_chain")
                .and_then(|v| v.parse(TOKEN, issuer))
                .map(|issuer| issuer.value),
            agree_to_terms: table.get("agree_to_terms").and_then(Value::boolean),
            limits: table
                .get("limits")
                .and_then(LimitsDraft::read)
                .unwrap_or_default(),
            parallel_orders: table
                .get("parallel_orders")
                .and_then(|v| self.parallel_orders(v)),
            order_rate: table
                .get("order_rate")
                .and_then(|v| v.parse(LIMIT, limit))
                .map(|rate| rate.value),
            reuse_key: table.get("reuse_key").and_then(Value::boolean),
            check_revocation: table.get("check_revocation").and_then(Value::boolean),
            external_account: external_account.and_then(|table| self.external_account(&table)),
        }
    }

    fn parallel_orders(&self, value: Value<'a>) -> Option<u32> {
        let orders = value.integer(PARALLEL_ORDERS)?;
        let in_bounds = (1..=MAX_PARALLEL_ORDERS).contains(&orders.value);
        let count = u32::try_from(orders.value).ok().filter(|_| in_bounds);
        let problem = || {
            Problem::new(format!("{} is no number of orders at a time", orders.value))
                .help(format!("write a number from 1 to {MAX_PARALLEL_ORDERS}"))
        };
        self.report.keep(orders.at, count.ok_or_else(problem))
    }

    fn fallbacks(&self, tables: &List<Table<'a>>) -> Vec<AuthorityDraft> {
        let fallback = |table: &Located<Table<'a>>| {
            table
                .value
                .require("directory", "\"https://acme.zerossl.com/v2/DV90\"")?;
            Some(self.authority(&table.value))
        };
        tables.values.iter().filter_map(fallback).collect()
    }

    fn challenges(&self, value: Value<'a>) -> Option<Vec<Located<ChallengeType>>> {
        let list = value.list(CHALLENGES, challenge_type)?;
        if list.is_empty {
            let problem = Problem::new("`challenges` is empty, so no order could succeed")
                .help("leave the key out for tls-alpn-01 and http-01");
            self.report.add(list.at, problem);
        }
        let mut challenges: Vec<Located<ChallengeType>> = Vec::new();
        for one in list.values {
            if challenges.iter().any(|other| other.value == one.value) {
                let problem = Problem::new("this challenge is already listed");
                self.report.add(
                    one.at,
                    problem.help("the order is the order of preference; remove one"),
                );
            }
            challenges.push(one);
        }
        Some(challenges)
    }

    fn external_account(&self, table: &Table<'a>) -> Option<ExternalAccount> {
        let kid = table
            .require(
                "kid",
                "\"...\", the key identifier that the CA gave with the key",
            )
            .and_then(|value| value.parse(TOKEN, |text| self.secret("kid", text)));
        let hmac_key = self.external_account_key(table);
        Some(ExternalAccount {
            kid: kid?.value,
            hmac_key: hmac_key?,
        })
    }

    fn external_account_key(&self, table: &Table<'a>) -> Option<Vec<u8>> {
        match (table.get("hmac_key"), table.get("hmac_key_file")) {
            (Some(value), None) => value
                .parse(TOKEN, |text| hmac_key(&self.secret("hmac_key", text)?))
                .map(|key| key.value),
            (None, Some(value)) => {
                let path = self.path(value)?;
                self.report.keep(path.at, self.key_from_file(&path.value))
            }
            (Some(_), Some(file)) => {
                let problem = Problem::new("`hmac_key` and `hmac_key_file` are both set");
                self.report.add(file.at, problem.help("remove one of them"));
                None
            }
            (None, None) => {
                let problem = Problem::new("[acme.external_account] has no HMAC key")
                    .help("add hmac_key_file = \"FILE\" or hmac_key = \"${ENV_NAME}\"");
                self.report.add(table.at, problem);
                None
            }
        }
    }

    /// A text that is written out, or named as `${NAME}`.
    pub(super) fn secret(&self, key: &str, text: &str) -> Result<String, Problem> {
        token(key, &secret(key, text, self.environment.variable)?)
    }

    fn key_from_file(&self, path: &Path) -> Result<Vec<u8>, Problem> {
        let text = (self.environment.read_text)(path).map_err(|error| {
            Problem::new(format!("cannot read {}: {error}", path.display()))
                .help("the file holds the HMAC key and must be readable for the server's user")
        })?;
        hmac_key(&text)
    }

    fn sites(&self, value: Option<Value<'a>>) -> Vec<SiteDraft> {
        let at = value.map_or(0, |value| value.at);
        let tables = match value {
            Some(value) => match value.tables(&SITE) {
                Some(tables) => tables,
                None => return Vec::new(),
            },
            None => List {
                at,
                is_empty: true,
                values: Vec::new(),
            },
        };
        if tables.is_empty {
            let problem = Problem::new("there is no site, so there is nothing to serve");
            let help = "add [[sites]] with hosts = [\"example.com\"] and upstreams = [\"3000\"]";
            self.report.add(at, problem.help(help));
        }
        let sites = tables.values.iter();
        sites.map(|table| self.site(&table.value)).collect()
    }

    fn site(&self, table: &Table<'a>) -> SiteDraft {
        let tls = match table.get("tls") {
            Some(value) => value.parse(MODE, tls_mode),
            None => Some(Located {
                value: TlsMode::default(),
                at: table.at,
            }),
        };
        let certificate_per = table
            .get("certificate_per")
            .and_then(|v| v.parse(CERTIFICATE_PER, certificate_per));
        let action = self.action(table);
        let routes = table.get("routes");
        let routes = routes.and_then(|value| value.tables(&ROUTE));
        let has_routes = match &routes {
            Some(routes) => !routes.is_empty,
            None => table.get("routes").is_some(),
        };
        if !has_action(table) && !has_routes {
            let problem = Problem::new("[[sites]] has neither `upstreams` nor routes")
                .help("add for example upstreams = [\"127.0.0.1:3000\"]");
            self.report.add(table.at, problem);
        }
        let upstream_tls = table
            .get("upstream_tls")
            .and_then(|v| v.table(&UPSTREAM_TLS));
        let hosts = self.hosts(table).unwrap_or_default();
        let any_host = hosts.iter().find(|host| host.value.is_none());
        let on_demand = table.get("on_demand").and_then(|v| {
            let (value, at) = (v.boolean()?, v.at);
            Some(Located { value, at })
        });
        SiteDraft {
            any_host: any_host.map(|any| any.at),
            hosts: hosts.into_iter().filter_map(known_host).collect(),
            on_demand,
            tls,
            listen: table.get("listen").map(|v| self.own_listen(v)),
            certificate_per: certificate_per.map(|unit| unit.value).unwrap_or_default(),
            client_auth: table.get("client_auth").and_then(|v| self.client_auth(v)),
            takeover: table
                .get("takeover")
                .and_then(|v| v.parse(TAKEOVER, takeover)),
            hsts: table.get("hsts").and_then(fields::hsts),
            security_headers: table
                .get("security_headers")
                .and_then(Value::boolean)
                .unwrap_or_default(),
            request_fields: fields::rules(table, "request_headers"),
            response_fields: fields::rules(table, "response_headers"),
            error_pages: table
                .get("error_pages")
                .map(|v| self.error_pages(v))
                .unwrap_or_default(),
            access_log: table.get("access_log").and_then(|v| self.site_log(v)),
            access: self.access(table),
            compress: self.compress(table),
            action,
            proxy_protocol: route::proxy_protocol(table),
            upstream_tls: upstream_tls.map(|table| self.upstream_tls(&table)),
            pool: self.pool(table),
            routes: routes.map(|list| self.routes(&list)).unwrap_or_default(),
        }
    }

    /// `None` inside is `*`.
    fn hosts(&self, table: &Table<'a>) -> Option<Vec<Located<Option<Name>>>> {
        let one = |text: &str| match text {
            "*" => Ok(None),
            text => host(text).map(Some),
        };
        let hosts = table.require("hosts", NAMES.example)?.list(NAMES, one)?;
        if hosts.is_empty {
            let problem = Problem::new("`hosts` is empty").help("write hosts = [\"example.com\"]");
            self.report.add(hosts.at, problem);
        }
        Some(hosts.values)
    }

    /// The texts are read now, and again whenever they change.
    fn error_pages(&self, value: Value<'a>) -> ErrorPages {
        let pages = value.pairs(
            |text| Ok(text.to_owned()),
            |text| file_path(text, self.base),
        );
        let mut found = ErrorPages::default();
        for (status, path) in pages.unwrap_or_default() {
            let page = self.error_page(&status, &path.value, &mut found);
            self.report.keep(path.at, page);
        }
        found
    }

    fn error_page(&self, status: &str, path: &Path, found: &mut ErrorPages) -> Result<(), Problem> {
        let read = || {
            let text = (self.environment.read_text)(path).map_err(|error| {
                Problem::new(format!("cannot read {}: {error}", path.display()))
                    .help("it is a page of HTML, and must be readable for the server's user")
            })?;
            Ok::<Arc<str>, Problem>(text.into())
        };
        let code = status
            .parse()
            .ok()
            .and_then(|code| StatusCode::from_u16(code).ok());
        match (status, code) {
            ("4xx", _) => found.classes[0] = Some(read()?),
            ("5xx", _) => found.classes[1] = Some(read()?),
            (_, Some(code)) if code.is_client_error() || code.is_server_error() => {
                found.exact.push((code, read()?));
            }
            _ => {
                return Err(Problem::new(format!("{status:?} is no status of an error"))
                    .help("write for example \"404\", \"4xx\" or \"5xx\""));
            }
        }
        Ok(())
    }
}

fn known_host(host: Located<Option<Name>>) -> Option<Located<Name>> {
    let at = host.at;
    host.value.map(|value| Located { value, at })
}

fn socket_mode_of(table: &Table<'_>) -> u32 {
    let mode = table.get("socket_mode");
    let mode = mode.and_then(|v| v.parse(SOCKET_MODE, socket_mode));
    mode.map_or(SocketFile::default().mode, |mode| mode.value)
}

fn connections(table: &Table<'_>, key: &'static str) -> Option<usize> {
    let value = table.get(key)?;
    let count = value.integer(CONNECTIONS)?;
    let in_bounds = (0..=MAX_CONNECTIONS).contains(&count.value);
    let number = usize::try_from(count.value).ok().filter(|_| in_bounds);
    let problem = || {
        Problem::new(format!("{} is no number of connections", count.value))
            .help("write how many there may be at a time, or 0 for no limit")
    };
    value.keep(number.ok_or_else(problem))
}

fn min_rates(table: &Table<'_>) -> MinRates {
    let default = MinRates::default();
    let rate = |key, default| {
        let rate = table.get(key).and_then(|v| v.parse(RATE, size));
        // At no bytes a second anything is fast enough.
        rate.map_or(default, |rate| rate.value.filter(|bytes| *bytes > 0))
    };
    let grace = table.get("min_rate_after");
    MinRates {
        request: rate("min_request_rate", default.request),
        response: rate("min_response_rate", default.response),
        grace: grace
            .and_then(|v| duration_of(v, "1s", "1d"))
            .unwrap_or(default.grace),
    }
}

fn idle_timeouts(table: &Table<'_>) -> IdleTimeouts {
    let default = IdleTimeouts::default();
    let timeout = |key, default| {
        let timeout = table.get(key).and_then(|v| duration_of(v, "1s", "1d"));
        timeout.unwrap_or(default)
    };
    IdleTimeouts {
        http1: timeout("http1_idle_timeout", default.http1),
        http2: timeout("http2_idle_timeout", default.http2),
    }
}

fn duration_of(value: Value<'_>, least: &str, most: &str) -> Option<Duration> {
    value
        .parse(DURATION, |text| duration_between(text, least, most))
        .map(|duration| duration.value)
}
