//! `[acme.dns]`: who writes the TXT records of DNS-01, and how they are looked for before the CA
//! is told. The providers and what each of them needs are one table, in `providers`.

mod acme_dns;
mod providers;
pub(super) mod read;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use dns_update::DnsUpdater;

use crate::certificate::name::Name;

/// What records are written and looked for with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dns {
    /// Recursive resolvers; empty: those of the system.
    pub resolvers: Vec<SocketAddr>,
    /// Each for its domains; with none no record can be written, and there is no DNS-01.
    pub zones: Vec<DnsZones>,
}

impl Dns {
    /// Who writes the records of a name that is to be proved, without the `*.` of a wildcard: the
    /// one with the longest of the domains that the name is or is below. Not where its aliases
    /// lead decides, for that may be nobody's business but the DNS server's.
    pub fn zones_of(&self, name: &str) -> Option<usize> {
        let each = self.zones.iter().enumerate();
        let domains = each.flat_map(|(index, zones)| {
            let domains = zones.domains.iter();
            domains.map(move |domain| (&**domain, index))
        });
        longest_suffix(name, domains)
    }

    /// Whether there is somebody who can write the records of this name.
    pub fn writes_for(&self, name: &str) -> bool {
        let zones = self.zones_of(name).and_then(|index| self.zones.get(index));
        zones.is_some_and(|zones| zones.writer.writes_for(name))
    }
}

/// What belongs to the longest of the domains that `name` is or is below; `""` is above all.
fn longest_suffix<'a, T>(name: &str, domains: impl Iterator<Item = (&'a str, T)>) -> Option<T> {
    let is_above = |domain: &str| {
        let rest = name.strip_suffix(domain);
        domain.is_empty() || rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    };
    let above = domains.filter(|(domain, _)| is_above(domain));
    let longest = above.max_by_key(|(domain, _)| domain.len());
    longest.map(|(_, what)| what)
}

/// One provider, and what is its alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsZones {
    /// It writes for these and for what is below them; `""` is everything.
    pub domains: Vec<Arc<str>>,
    pub writer: DnsWriter,
    /// Asked for the records instead of the servers that the zone's NS records name.
    pub nameservers: Vec<SocketAddr>,
    /// How long a record may take to be at every server.
    pub propagation_timeout: Duration,
    /// Waited once it is at all of them, for servers that nobody outside can ask one by one.
    pub propagation_delay: Duration,
    /// Of the records, in whole seconds.
    pub ttl: Duration,
}

/// Who writes the records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DnsWriter {
    /// A program: `PROGRAM present|cleanup NAME VALUE`.
    Exec { program: PathBuf, timeout: Duration },
    /// acme-dns servers (github.com/joohoi/acme-dns).
    AcmeDns(AcmeDns),
    /// A provider of the `dns-update` crate.
    Provider(DnsProvider),
}

impl DnsWriter {
    /// As `provider` in the configuration names it.
    pub fn name(&self) -> &'static str {
        match self {
            DnsWriter::Exec { .. } => EXEC,
            DnsWriter::AcmeDns(_) => ACME_DNS,
            DnsWriter::Provider(provider) => provider.name,
        }
    }

    fn writes_for(&self, name: &str) -> bool {
        match self {
            DnsWriter::AcmeDns(accounts) => {
                accounts.registers_at.is_some() || accounts.of(name).is_some()
            }
            DnsWriter::Exec { .. } | DnsWriter::Provider(_) => true,
        }
    }
}

/// Accounts at acme-dns servers, by the domains whose challenge names lead to them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcmeDns {
    accounts: BTreeMap<String, AcmeDnsAccount>,
    /// The server where an account is registered for a domain that has none.
    registers_at: Option<String>,
}

impl AcmeDns {
    /// The account for a name, or for the nearest domain above it.
    pub fn of(&self, name: &str) -> Option<&AcmeDnsAccount> {
        let accounts = self.accounts.iter();
        longest_suffix(name, accounts.map(|(domain, account)| (&**domain, account)))
    }

    /// The base URL of the server where an account is registered for a domain that has none.
    pub fn registers_at(&self) -> Option<&str> {
        self.registers_at.as_deref()
    }
}

/// An account at an acme-dns server: one name whose TXT records it may write.
#[derive(Clone, PartialEq, Eq)]
pub struct AcmeDnsAccount {
    /// Its base URL.
    pub server: String,
    pub username: String,
    /// Secret.
    pub password: String,
    pub subdomain: String,
    /// The subdomain with the server's domain, where that is known.
    pub full_domain: Option<String>,
}

impl std::fmt::Debug for AcmeDnsAccount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AcmeDnsAccount")
            .field("server", &self.server)
            .field("subdomain", &self.subdomain)
            .finish_non_exhaustive()
    }
}

/// A provider and its settings, which are known to be all that it needs.
#[derive(Clone, PartialEq, Eq)]
pub struct DnsProvider {
    name: &'static str,
    settings: Settings,
}

impl DnsProvider {
    /// The provider's client. Sends nothing. The error is free of secrets.
    pub fn updater(&self) -> Result<DnsUpdater, String> {
        self.updater_of(&self.settings)
    }

    /// The server that is given by name, and has to be resolved before each use.
    pub fn server_name(&self) -> Option<ServerName> {
        ServerName::of(self.name, &self.settings)
    }

    /// The client of a server that is given by name, at one of its addresses. Sends nothing.
    pub fn updater_at(
        &self,
        server: &ServerName,
        address: SocketAddr,
    ) -> Result<DnsUpdater, String> {
        let text = format!("{}://{address}", server.transport);
        let setting = Setting {
            text,
            is_secret: false,
        };
        let mut settings = self.settings.clone();
        settings.0.insert(SERVER, setting);
        self.updater_of(&settings)
    }

    fn updater_of(&self, settings: &Settings) -> Result<DnsUpdater, String> {
        providers::build(self.name, settings).map_err(|error| {
            let text = match error {
                // Whose words these are: the settings are what could not be parsed.
                dns_update::Error::Parse(cause) => cause,
                other => other.to_string(),
            };
            self.without_secrets(&text)
        })
    }

    /// A text of somebody else's, such as an error with a URL in it, without what is secret in the
    /// settings.
    pub fn without_secrets(&self, text: &str) -> String {
        self.settings.without_secrets(text)
    }
}

impl std::fmt::Debug for DnsProvider {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DnsProvider")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// A DNS server that takes updates, by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerName {
    transport: &'static str,
    pub host: String,
    pub port: u16,
}

impl ServerName {
    /// `None`: another provider, or the server is given by its address, or it is neither.
    fn of(provider: &str, settings: &Settings) -> Option<ServerName> {
        let server = settings.optional(SERVER).filter(|_| provider == RFC2136)?;
        let (transport, rest) = match server.split_once("://") {
            Some(("udp", rest)) => ("udp", rest),
            Some(("tcp", rest)) => ("tcp", rest),
            Some(_) => return None,
            None => ("udp", server),
        };
        let (host, port) = match rest.rsplit_once(':') {
            Some((host, port)) => (host, port.parse().ok()?),
            None => (rest, DNS_PORT),
        };
        match host.trim_end_matches('.').parse() {
            Ok(Name::Dns(host)) => Some(ServerName {
                transport,
                host: host.to_string(),
                port,
            }),
            _ => None,
        }
    }
}

/// The values of a provider's keys; some are secret, so none is ever shown.
#[derive(Clone, Default, PartialEq, Eq)]
struct Settings(BTreeMap<&'static str, Setting>);

#[derive(Clone, PartialEq, Eq)]
struct Setting {
    text: String,
    is_secret: bool,
}

impl Settings {
    /// Empty where the key is optional and missing.
    fn text(&self, key: &str) -> &str {
        self.optional(key).unwrap_or_default()
    }

    fn optional(&self, key: &str) -> Option<&str> {
        Some(&self.0.get(key)?.text)
    }

    fn owned(&self, key: &str) -> String {
        self.text(key).to_owned()
    }

    fn optional_owned(&self, key: &str) -> Option<String> {
        self.optional(key).map(str::to_owned)
    }

    fn flag(&self, key: &str) -> bool {
        self.optional(key) == Some("true")
    }

    fn without_secrets(&self, text: &str) -> String {
        let secrets = self.0.values().filter(|setting| setting.is_secret);
        secrets.fold(text.to_owned(), |text, secret| without(&text, &secret.text))
    }
}

/// `text` without `secret`, plain or percent-encoded as it stands in a URL.
pub(crate) fn without(text: &str, secret: &str) -> String {
    if secret.is_empty() {
        return text.to_owned();
    }
    let encoded: String = secret
        .bytes()
        .map(|byte| match byte {
            b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
            byte if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
            byte => format!("%{byte:02X}"),
        })
        .collect();
    text.replace(secret, "***").replace(&encoded, "***")
}

const RFC2136: &str = "rfc2136";
/// Its key for where updates go.
const SERVER: &str = "server";
const DNS_PORT: u16 = 53;
const EXEC: &str = "exec";
const ACME_DNS: &str = "acme-dns";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_leave_no_trace_in_texts_and_debug() {
        let setting = |text: &str, is_secret| Setting {
            text: text.to_owned(),
            is_secret,
        };
        let provider = DnsProvider {
            name: "duckdns",
            settings: Settings(BTreeMap::from([
                ("token", setting("to ken/1", true)),
                ("user", setting("me", false)),
            ])),
        };
        let shown = provider.without_secrets("me: https://x/?t=to%20ken%2F1 to ken/1");
        assert_eq!(shown, "me: https://x/?t=*** ***");
        assert!(!format!("{provider:?}").contains("ken"));
        let account = AcmeDnsAccount {
            server: "https://auth.test".to_owned(),
            username: "u".to_owned(),
            password: "pass-word".to_owned(),
            subdomain: "s".to_owned(),
            full_domain: None,
        };
        assert!(!format!("{account:?}").contains("pass-word"));
    }

    #[test]
    fn the_longest_domain_above_a_name_decides() {
        let find = |name: &str, domains: &[&'static str]| {
            longest_suffix(name, domains.iter().map(|domain| (*domain, *domain)))
        };
        let domains = ["", "example.com", "b.example.com", "ample.com"];
        for (name, domain) in [
            ("example.com", "example.com"),
            ("a.example.com", "example.com"),
            ("b.example.com", "b.example.com"),
            ("a.b.example.com", "b.example.com"),
            ("notexample.com", ""),
            ("com", ""),
        ] {
            assert_eq!(find(name, &domains), Some(domain), "{name}");
        }
        assert_eq!(find("other.test", &domains[1..]), None);
    }

    #[test]
    fn servers_by_name() {
        let of = |server: &str| {
            let setting = Setting {
                text: server.to_owned(),
                is_secret: false,
            };
            let settings = Settings(BTreeMap::from([(SERVER, setting)]));
            assert_eq!(ServerName::of("powerdns", &settings), None);
            let name = ServerName::of(RFC2136, &settings)?;
            Some(format!("{} {} {}", name.transport, name.host, name.port))
        };
        for (server, name) in [
            ("ns1.example.com", "udp ns1.example.com 53"),
            ("tcp://NS1.example.com.:5353", "tcp ns1.example.com 5353"),
            ("localhost:53", "udp localhost 53"),
        ] {
            assert_eq!(of(server).as_deref(), Some(name), "{server}");
        }
        for other in [
            "192.0.2.1",
            "192.0.2.1:54",
            "udp://[2001:db8::1]:53",
            "http://ns1.example.com",
            "ns1.example.com:x",
            "*.example.com",
            "a b",
            "",
        ] {
            assert_eq!(of(other), None, "{other}");
        }
    }
}
