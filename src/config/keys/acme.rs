//! `[acme]` and what is in it.

use super::Shape::{Duration, Flag, Limit, List, Path, Table, Tables, Text, Whole, Words};
use super::{Section, Shape, URL, key};

const CHALLENGES: Shape = List(&Words(&[
    "tls-alpn-01",
    "http-01",
    "dns-01",
    "dns-persist-01",
]));
const KEY_TYPES: Shape = Words(&["p256", "p384", "rsa2048", "rsa3072", "rsa4096"]);

/// The keys of `[acme]` that a fallback has, too.
macro_rules! authority_keys {
    ($($more:expr),* $(,)?) => {
        &[
            key("email", Text("an e-mail address"), "", "Where the CA sends what it has to say."),
            key("ca_certificate", Path, "", "Trust for the CA's own HTTPS, on top of the system's."),
            key("challenges", CHALLENGES, "", "How control over a name is shown, in order of preference. Default: `tls-alpn-01`, `http-01`, and `dns-01` where there is a provider."),
            key("key_type", KEY_TYPES, r#""p256""#, "The type of the certificates' keys."),
            key("profile", Text("a profile's name"), "", "One of the CA's certificate profiles."),
            key("preferred_chain", Text("a common name"), "", "The issuer that the chain should lead to, where the CA has several chains."),
            key("agree_to_terms", Flag, "true", "Whether an account may be made at a CA that has terms of service."),
            key("limits", Table(&LIMITS), "", "How much the CA lets one ask for."),
            key("parallel_orders", Whole(1, 256), "8", "How many orders run at this CA at the same time; for names on demand as many again, so that neither waits for the other."),
            key("order_rate", Limit, r#""60/10s""#, "How fast orders are begun: so many at once, and so many again after so long; for names on demand as many again."),
            key("reuse_key", Flag, "false", "Whether a renewal keeps the private key. Not where the CA says that it is compromised."),
            key("check_revocation", Flag, "true", "Whether the CRLs and OCSP responders that our certificates name are asked, so that a revoked one is replaced at once."),
            key("external_account", Table(&EXTERNAL_ACCOUNT), "", "For CAs that want an account bound to one with them."),
            $($more),*
        ]
    };
}

pub(in crate::config) const ACME: Section = Section {
    header: "[acme]",
    id: "acme",
    doc: "Where certificates are ordered for sites that no file covers. More in [acme.md](acme.md).",
    keys: authority_keys![
        key(
            "directory",
            URL,
            r#""https://acme-v02.api.letsencrypt.org/directory""#,
            "The CA, as the URL of its directory.",
        ),
        key(
            "dns",
            Table(&DNS),
            "",
            "Who writes the TXT records of `dns-01`."
        ),
        key(
            "on_demand",
            Table(&ON_DEMAND),
            "",
            "Certificates that are ordered when a client asks for their name."
        ),
        key("fallback", Tables(&FALLBACK), "", "Further CAs."),
    ],
};

pub(in crate::config) const FALLBACK: Section = Section {
    header: "[[acme.fallback]]",
    id: "acme_fallback",
    doc: "A further CA, tried when those before it fail. What it does not say it takes from `[acme]`, except `external_account`, `profile`, `preferred_chain` and `limits`.",
    keys: authority_keys![key(
        "directory",
        URL,
        "",
        "The CA, as the URL of its directory. Required.",
    )],
};

pub(in crate::config) const EXTERNAL_ACCOUNT: Section = Section {
    header: "[acme.external_account]",
    id: "external_account",
    doc: "External account binding (RFC 8555 section 7.3.4).",
    keys: &[
        key(
            "kid",
            Text("an identifier"),
            "",
            "The key identifier that the CA gave with the key. Required.",
        ),
        key(
            "hmac_key",
            Text("base64url, or `${NAME}` of the environment"),
            "",
            "The key.",
        ),
        key(
            "hmac_key_file",
            Path,
            "",
            "A file with the key, instead of `hmac_key`.",
        ),
    ],
};

pub(in crate::config) const LIMITS: Section = Section {
    header: "[acme.limits]",
    id: "acme_limits",
    doc: "How much the CA lets one ask for; what would be too much is not sent. Those of Let's Encrypt are built in, other CAs are taken to have none.",
    keys: &[
        key("new_orders", Limit, "", "Orders of the account."),
        key(
            "certificates_per_domain",
            Limit,
            "",
            "Certificates below one registered domain.",
        ),
        key(
            "duplicate_certificates",
            Limit,
            "",
            "Certificates for exactly the same names.",
        ),
        key(
            "failed_validations",
            Limit,
            "",
            "Failed validations of one name.",
        ),
        key("new_accounts", Limit, "", "Accounts from one address."),
    ],
};

/// Beside these it has the keys of its provider.
pub(in crate::config) const DNS: Section = Section {
    header: "[acme.dns]",
    id: "acme_dns",
    doc: "Who writes the TXT records of `dns-01`, but for the domains of other `providers`. Each provider has further keys: see [acme.md](acme.md).",
    keys: &[
        key(
            "provider",
            Text("a provider's name"),
            "",
            "A DNS provider, `rfc2136`, `acme-dns`, or `exec` for a program of yours.",
        ),
        key(
            "resolvers",
            List(&Text("an address")),
            "",
            "DNS servers to ask instead of the system's.",
        ),
        key(
            "nameservers",
            List(&Text("an address")),
            "",
            "Where to look for the record, instead of the servers that the zone names.",
        ),
        key(
            "propagation_timeout",
            Duration,
            r#""2m""#,
            "How long a record may take to be at every server of its zone.",
        ),
        key(
            "propagation_delay",
            Duration,
            r#""0s""#,
            "How long to wait after that.",
        ),
        key(
            "ttl",
            Duration,
            r#""60s""#,
            "How long resolvers may keep the record.",
        ),
        key(
            "providers",
            Tables(&DNS_PROVIDERS),
            "",
            "Other providers, each for its domains.",
        ),
    ],
};

/// Beside these it has the keys of its provider.
pub(in crate::config) const DNS_PROVIDERS: Section = Section {
    header: "[[acme.dns.providers]]",
    id: "acme_dns_providers",
    doc: "A provider for some domains, with further keys as in `[acme.dns]`. What it leaves out is as there, but for `nameservers`.",
    keys: &[
        key(
            "domains",
            List(&Text("a domain")),
            "",
            "The names of certificates that it writes for, and all below them; needed. Of several providers the one with the longest has a name.",
        ),
        key(
            "provider",
            Text("a provider's name"),
            "",
            "As in `[acme.dns]`; needed.",
        ),
        key(
            "nameservers",
            List(&Text("an address")),
            "",
            "Where to look for the record, instead of the servers that the zone names.",
        ),
        key(
            "propagation_timeout",
            Duration,
            "",
            "How long a record may take to be at every server of its zone.",
        ),
        key(
            "propagation_delay",
            Duration,
            "",
            "How long to wait after that.",
        ),
        key(
            "ttl",
            Duration,
            "",
            "How long resolvers may keep the record.",
        ),
    ],
};

pub(in crate::config) const ON_DEMAND: Section = Section {
    header: "[acme.on_demand]",
    id: "on_demand",
    doc: "For sites with `on_demand = true`. One of `ask` and `allow` is needed.",
    keys: &[
        key(
            "ask",
            URL,
            "",
            "A URL that answers 2xx to `?domain=NAME&client=ADDRESS` where the name may be had.",
        ),
        key(
            "ask_timeout",
            Duration,
            "",
            "How long it may take. Default: 5s",
        ),
        key(
            "allow",
            List(&Text("a domain")),
            "",
            "Domains, which stand for themselves and all names below them.",
        ),
        key(
            "wait",
            Duration,
            r#""30s""#,
            "How long a handshake waits for its certificate; from 1s to 5m.",
        ),
        key(
            "max_loaded",
            Whole(1, 1_000_000),
            "10000",
            "How many certificates are in memory; the others are on disk alone.",
        ),
        key(
            "budgets",
            Table(&ON_DEMAND_BUDGETS),
            "",
            "How many new names may be asked about.",
        ),
    ],
};

pub(in crate::config) const ON_DEMAND_BUDGETS: Section = Section {
    header: "[acme.on_demand.budgets]",
    id: "on_demand_budgets",
    doc: "How many new names may be asked about.",
    keys: &[
        key(
            "per_client",
            Limit,
            r#""30/10m""#,
            "By the clients of one network (/24, /56).",
        ),
        key(
            "per_domain",
            Limit,
            r#""50/1h""#,
            "Below one registered domain.",
        ),
        key("total", Limit, r#""300/1h""#, "In total."),
    ],
};
