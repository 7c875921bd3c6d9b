//! Reading `[acme.dns]`: which keys it has depends on its `provider`.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::acme_dns;
use super::providers::{self, ACME_DNS_KEYS, EXEC_KEYS, Form, Key, PROVIDERS};
use super::{ACME_DNS, DNS_PORT, Dns, DnsProvider, DnsWriter, DnsZones, EXEC, Setting, Settings};
use crate::config::diagnostic::{Located, Problem};
use crate::config::keys::{DNS, DNS_PROVIDERS};
use crate::config::reader::{Kind, Table, Value, nearest};
use crate::config::toml_file::Reader;
use crate::config::value::{domain, duration_between, file_path};

const PROVIDER: Kind = Kind {
    what: "the name of a DNS provider in quotes",
    example: "\"cloudflare\"",
};
const TEXT: Kind = Kind {
    what: "a string",
    example: "\"...\"",
};
const PATH: Kind = Kind {
    what: "a path in quotes",
    example: "\"/etc/perennial/name\"",
};
const ADDRESSES: Kind = Kind {
    what: "an array of addresses",
    example: "[\"192.0.2.53\"]",
};
const DURATION: Kind = Kind {
    what: "a duration in quotes",
    example: "\"2m\"",
};

const DOMAINS: Kind = Kind {
    what: "an array of domains",
    example: "[\"example.com\"]",
};

/// Most providers are done within seconds; secondaries that are told by NOTIFY within a minute.
const DEFAULT_PROPAGATION_TIMEOUT: Duration = Duration::from_secs(120);
/// Short, because resolvers that have seen an old value keep it for as long.
const DEFAULT_TTL: Duration = Duration::from_secs(60);
const DEFAULT_EXEC_TIMEOUT: Duration = Duration::from_secs(60);

/// The table, and the programs that it names, for `check`.
pub(in crate::config) struct DnsDraft {
    pub(in crate::config) dns: Dns,
    /// Where a provider is named first, be it a wrong one.
    pub(in crate::config) provider_at: Option<usize>,
    pub(in crate::config) programs: Vec<Located<PathBuf>>,
    /// Whether nothing of it was wrong, and left out.
    pub(in crate::config) is_whole: bool,
}

/// The keys that a table with this `provider` has beside those of all.
fn keys_for(provider: Option<&str>) -> Vec<&'static str> {
    let names = |keys: &'static [Key]| keys.iter().flat_map(names_of).collect::<Vec<_>>();
    match provider.and_then(keys_of) {
        Some(keys) => names(keys),
        // The provider is reported; its keys are not wrong before it is known.
        None => provider_keys().map(|(name, _)| name).collect(),
    }
}

/// The keys that some provider has, and whether each is a flag and no text.
pub(in crate::config) fn provider_keys() -> impl Iterator<Item = (&'static str, bool)> {
    PROVIDERS
        .iter()
        .map(|provider| provider.keys)
        .chain([EXEC_KEYS, ACME_DNS_KEYS])
        .flatten()
        .flat_map(|key| names_of(key).map(|name| (name, matches!(key.form, Form::Flag))))
}

fn names_of(key: &Key) -> impl Iterator<Item = &'static str> {
    let file = match key.form {
        Form::Secret(file) => Some(file),
        Form::Text | Form::Flag => None,
    };
    std::iter::once(key.name).chain(file)
}

fn keys_of(provider: &str) -> Option<&'static [Key]> {
    match provider {
        EXEC => Some(EXEC_KEYS),
        ACME_DNS => Some(ACME_DNS_KEYS),
        other => providers::find(other).map(|provider| provider.keys),
    }
}

fn all_names() -> Vec<&'static str> {
    let names = PROVIDERS.iter().map(|provider| provider.name);
    let mut all: Vec<_> = names.chain([EXEC, ACME_DNS]).collect();
    all.sort_unstable();
    all
}

fn provider_name(text: &str) -> Result<&'static str, Problem> {
    let names = all_names();
    if let Some(name) = names.iter().find(|name| **name == text) {
        return Ok(name);
    }
    let problem = Problem::new(format!("{text:?} is no DNS provider"));
    Err(match nearest(text, &names) {
        Some(name) => problem.help(format!("did you mean {name:?}?")),
        None => problem.help(format!("it can be {}", names.join(", "))),
    })
}

/// The table; what is wrong with it is reported and left out.
pub(in crate::config) fn dns(reader: &Reader<'_>, value: Value<'_>) -> Option<DnsDraft> {
    let table = value.table_by(&DNS, "provider", keys_for)?;
    let mut draft = DnsDraft {
        dns: Dns {
            resolvers: addresses(&table, "resolvers"),
            zones: Vec::new(),
        },
        provider_at: None,
        programs: Vec::new(),
        is_whole: true,
    };
    let waits = Waits::read(&table, &Waits::default());
    if table.has_more() || table.get("provider").is_some() {
        draft.take_in(reader, &table, vec!["".into()], &waits);
    }
    let others = table.get("providers");
    let others = others.and_then(|others| others.tables_by(&DNS_PROVIDERS, "provider", keys_for));
    for other in others.map(|list| list.values).unwrap_or_default() {
        let other = other.value;
        let domains = domains(reader, &other, &draft.dns);
        draft.is_whole &= !domains.is_empty();
        let waits = Waits::read(&other, &waits);
        draft.take_in(reader, &other, domains, &waits);
    }
    Some(draft)
}

impl DnsDraft {
    /// Takes the provider of a table in.
    fn take_in(
        &mut self,
        reader: &Reader<'_>,
        table: &Table<'_>,
        domains: Vec<Arc<str>>,
        waits: &Waits,
    ) {
        let provider = table.require("provider", PROVIDER.example);
        let at = provider.as_ref().map(|value| value.at);
        self.provider_at = self.provider_at.or(at);
        let name = provider.and_then(|value| value.parse(PROVIDER, provider_name));
        let written = name.and_then(|name| {
            let settings = settings(reader, table, name.value)?;
            writer(reader, table, &name, settings)
        });
        let Some((writer, program)) = written else {
            self.is_whole = false;
            return;
        };
        self.programs.extend(program);
        self.dns.zones.push(DnsZones {
            domains,
            writer,
            nameservers: addresses(table, "nameservers"),
            propagation_timeout: waits.propagation_timeout,
            propagation_delay: waits.propagation_delay,
            ttl: waits.ttl,
        });
    }
}

/// What one table may leave to the other.
struct Waits {
    propagation_timeout: Duration,
    propagation_delay: Duration,
    ttl: Duration,
}

impl Default for Waits {
    fn default() -> Waits {
        Waits {
            propagation_timeout: DEFAULT_PROPAGATION_TIMEOUT,
            propagation_delay: Duration::ZERO,
            ttl: DEFAULT_TTL,
        }
    }
}

impl Waits {
    fn read(table: &Table<'_>, default: &Waits) -> Waits {
        let duration = |key, least, most, default| {
            let value = table.get(key);
            let parsed = value.and_then(|value| {
                value.parse(DURATION, |text| duration_between(text, least, most))
            });
            parsed.map_or(default, |duration| duration.value)
        };
        Waits {
            propagation_timeout: duration(
                "propagation_timeout",
                "1s",
                "12h",
                default.propagation_timeout,
            ),
            propagation_delay: duration("propagation_delay", "0s", "1h", default.propagation_delay),
            ttl: duration("ttl", "1s", "1d", default.ttl),
        }
    }
}

/// The domains of a provider; one that another has is reported.
fn domains(reader: &Reader<'_>, table: &Table<'_>, before: &Dns) -> Vec<Arc<str>> {
    let list = table.require("domains", "[\"example.com\"]");
    let Some(list) = list.and_then(|value| value.list(DOMAINS, |text| domain("domains", text)))
    else {
        return Vec::new();
    };
    if list.is_empty {
        let problem = Problem::new("`domains` is empty, so the provider would write nothing");
        let help = "write domains = [\"example.com\"], or name the provider in [acme.dns] itself, for everything that no other has";
        reader.report.add(list.at, problem.help(help));
    }
    let mut known: Vec<Arc<str>> = Vec::new();
    for one in list.values {
        let taken = before
            .zones
            .iter()
            .any(|it| it.domains.contains(&one.value));
        if taken || known.contains(&one.value) {
            let problem = Problem::new(format!("the domain {} has a provider already", one.value));
            reader
                .report
                .add(one.at, problem.help("remove it from one of the lists"));
        }
        known.push(one.value);
    }
    known
}

/// DNS servers.
pub(in crate::config) fn addresses(table: &Table<'_>, key: &'static str) -> Vec<SocketAddr> {
    let list = table.get(key).and_then(|v| v.list(ADDRESSES, dns_address));
    let values = list.map(|list| list.values).unwrap_or_default();
    values.into_iter().map(|one| one.value).collect()
}

/// A DNS server: an address, with a port where it is not 53.
fn dns_address(text: &str) -> Result<SocketAddr, Problem> {
    let ip = text.trim_matches(['[', ']']).parse::<IpAddr>();
    let with_port = ip.map(|ip| SocketAddr::new(ip, DNS_PORT));
    with_port.or_else(|_| text.parse()).map_err(|_| {
        Problem::new(format!("{text:?} is not the address of a DNS server"))
            .help("write it as \"192.0.2.53\", \"192.0.2.53:5353\" or \"[2001:db8::53]:5353\"")
    })
}

/// The provider's keys. `None`: one is missing or wrong, and reported.
fn settings(reader: &Reader<'_>, table: &Table<'_>, provider: &'static str) -> Option<Settings> {
    let mut settings = Settings::default();
    let mut whole = true;
    for key in keys_of(provider).unwrap_or_default() {
        match setting(reader, table, provider, key) {
            Ok(Some(setting)) => {
                settings.0.insert(key.name, setting);
            }
            Ok(None) => {}
            Err(Reported) => whole = false,
        }
    }
    whole.then_some(settings)
}

/// What is wrong is in the report.
struct Reported;

fn setting(
    reader: &Reader<'_>,
    table: &Table<'_>,
    provider: &'static str,
    key: &Key,
) -> Result<Option<Setting>, Reported> {
    let file = match key.form {
        Form::Secret(file) => table.get(file),
        Form::Text | Form::Flag => None,
    };
    let text = match (table.get(key.name), file) {
        (Some(_), Some(file)) => {
            let problem = Problem::new(format!("`{0}` and `{0}_file` are both set", key.name));
            reader
                .report
                .add(file.at, problem.help("remove one of them"));
            return Err(Reported);
        }
        (Some(value), None) if key.form == Form::Flag => value.boolean().map(|it| it.to_string()),
        (Some(value), None) => value
            .parse(TEXT, |text| reader.secret(key.name, text))
            .map(|text| text.value),
        (None, Some(file)) => from_file(reader, file, key.name),
        (None, None) if key.required => {
            reader.report.add(table.at, missing(table, provider, key));
            return Err(Reported);
        }
        (None, None) => return Ok(None),
    };
    Ok(Some(Setting {
        text: text.ok_or(Reported)?,
        is_secret: matches!(key.form, Form::Secret(_)),
    }))
}

fn missing(table: &Table<'_>, provider: &str, key: &Key) -> Problem {
    let header = table.header();
    let Key { name, form, .. } = key;
    let problem = Problem::new(format!("the DNS provider {provider:?} needs `{name}`"));
    match form {
        Form::Secret(file) => problem.help(format!(
            "add {file} = \"FILE\" or {name} = \"${{ENV_NAME}}\" to {header}"
        )),
        Form::Text | Form::Flag => problem.help(format!("add {name} = \"...\" to {header}")),
    }
}

fn from_file(reader: &Reader<'_>, value: Value<'_>, key: &str) -> Option<String> {
    let path = value.parse(PATH, |text| file_path(text, reader.base))?;
    let read = (reader.environment.read_text)(&path.value);
    let text = read.map(|text| text.trim().to_owned()).map_err(|error| {
        Problem::new(format!("cannot read {}: {error}", path.value.display())).help(format!(
            "the file holds `{key}` and must be readable for the server's user"
        ))
    });
    let text = text.and_then(|text| match text.is_empty() {
        true => Err(Problem::new(format!("{} is empty", path.value.display()))
            .help(format!("the file holds `{key}`"))),
        false => Ok(text),
    });
    reader.report.keep(path.at, text)
}

/// Of a whole set of settings.
fn writer(
    reader: &Reader<'_>,
    table: &Table<'_>,
    name: &Located<&'static str>,
    settings: Settings,
) -> Option<(DnsWriter, Option<Located<PathBuf>>)> {
    match name.value {
        EXEC => {
            let program = table.get("program")?;
            let program = program.parse(PATH, |text| file_path(text, reader.base))?;
            let writer = DnsWriter::Exec {
                program: program.value.clone(),
                timeout: exec_timeout(table)?,
            };
            Some((writer, Some(program)))
        }
        ACME_DNS => Some((
            DnsWriter::AcmeDns(acme_dns::accounts(reader.report, table, &settings)?),
            None,
        )),
        other => {
            let provider = DnsProvider {
                name: other,
                settings,
            };
            // What its client finds wrong is known now, and not at the first order.
            let built = provider.updater();
            let at = built
                .as_ref()
                .err()
                .and_then(|cause| key_at(table, other, cause));
            let built = built.map_err(|cause| {
                Problem::new(format!(
                    "the DNS provider {other:?} cannot be used: {cause}"
                ))
            });
            reader.report.keep(at.unwrap_or(name.at), built)?;
            Some((DnsWriter::Provider(provider), None))
        }
    }
}

/// Where the key stands that is wrong, if the cause begins with one.
fn key_at(table: &Table<'_>, provider: &str, cause: &str) -> Option<usize> {
    let (name, _) = cause.strip_prefix('`')?.split_once('`')?;
    let mut keys = keys_of(provider)?.iter();
    let key = keys.find(|key| key.name == name)?;
    let value = names_of(key).find_map(|name| table.get(name))?;
    Some(value.at)
}

fn exec_timeout(table: &Table<'_>) -> Option<Duration> {
    let Some(value) = table.get("timeout") else {
        return Some(DEFAULT_EXEC_TIMEOUT);
    };
    let parsed = value.parse(DURATION, |text| duration_between(text, "1s", "1h"));
    parsed.map(|duration| duration.value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_provider_has_a_key_of_all_providers_or_a_name_twice() {
        let mut names = all_names();
        names.dedup();
        assert_eq!(names.len(), PROVIDERS.len() + 2);
        for provider in PROVIDERS {
            let mut keys: Vec<_> = provider.keys.iter().flat_map(names_of).collect();
            let sections = [&DNS, &DNS_PROVIDERS];
            let of_all = |key: &&str| sections.iter().any(|section| section.has(key));
            assert!(!keys.iter().any(of_all), "{}", provider.name);
            let count = keys.len();
            keys.sort_unstable();
            keys.dedup();
            assert_eq!(keys.len(), count, "{}", provider.name);
        }
    }

    #[test]
    fn addresses_of_dns_servers() {
        for (text, address) in [
            ("192.0.2.1", "192.0.2.1:53"),
            ("192.0.2.1:54", "192.0.2.1:54"),
            ("2001:db8::1", "[2001:db8::1]:53"),
            ("[2001:db8::1]", "[2001:db8::1]:53"),
            ("[2001:db8::1]:54", "[2001:db8::1]:54"),
        ] {
            assert_eq!(dns_address(text).unwrap().to_string(), address);
        }
        for wrong in ["", "ns1.example.com", "192.0.2.1:x", "192.0.2"] {
            assert!(dns_address(wrong).is_err(), "{wrong}");
        }
    }
}
