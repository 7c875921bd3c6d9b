//! `[acme.dns]`: who writes the TXT records of DNS-01, and how they are looked for before the CA
//! is told. The providers and what each of them needs are one table, in `providers`.

mod providers;
pub(super) mod read;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use dns_update::DnsUpdater;

/// Most providers are done within seconds; secondaries that are told by NOTIFY within a minute.
const DEFAULT_PROPAGATION_TIMEOUT: Duration = Duration::from_secs(120);
/// Short, because resolvers that have seen an old value keep it for as long.
const DEFAULT_TTL: Duration = Duration::from_secs(60);

/// What a record is written and looked for with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dns {
    /// `None`: no record can be written, and there is no DNS-01.
    pub writer: Option<DnsWriter>,
    /// Recursive resolvers; empty: those of the system.
    pub resolvers: Vec<SocketAddr>,
    /// Asked for the records instead of the servers that the zone's NS records name.
    pub nameservers: Vec<SocketAddr>,
    /// How long a record may take to be at every server.
    pub propagation_timeout: Duration,
    /// Waited once it is at all of them, for servers that nobody outside can ask one by one.
    pub propagation_delay: Duration,
    /// Of the records, in whole seconds.
    pub ttl: Duration,
}

impl Default for Dns {
    fn default() -> Dns {
        Dns {
            writer: None,
            resolvers: Vec::new(),
            nameservers: Vec::new(),
            propagation_timeout: DEFAULT_PROPAGATION_TIMEOUT,
            propagation_delay: Duration::ZERO,
            ttl: DEFAULT_TTL,
        }
    }
}

/// Who writes the records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DnsWriter {
    /// A program: `PROGRAM present|cleanup NAME VALUE`.
    Exec { program: PathBuf, timeout: Duration },
    /// An acme-dns server (github.com/joohoi/acme-dns).
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
}

/// An account at an acme-dns server: one name whose TXT records it may write.
#[derive(Clone, PartialEq, Eq)]
pub struct AcmeDns {
    /// Its base URL.
    pub server: String,
    pub username: String,
    /// Secret.
    pub password: String,
    pub subdomain: String,
}

impl std::fmt::Debug for AcmeDns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AcmeDns")
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
        providers::build(self.name, &self.settings)
            .map_err(|error| self.without_secrets(&error.to_string()))
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
        let account = AcmeDns {
            server: "https://auth.test".to_owned(),
            username: "u".to_owned(),
            password: "pass-word".to_owned(),
            subdomain: "s".to_owned(),
        };
        assert!(!format!("{account:?}").contains("pass-word"));
    }
}
