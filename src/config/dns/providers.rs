//! The providers of the `dns-update` crate: their names, the keys that each of them has in
//! `[acme.dns]`, and how its client is made of these. Nothing here reads a file or sends anything.

use std::collections::HashMap;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use dns_update::providers::azuredns::{AzureDnsConfig, AzureEnvironment};
use dns_update::providers::bluecatv2::BluecatV2Config;
use dns_update::providers::edgedns::EdgeDnsConfig;
use dns_update::providers::google_cloud_dns::GoogleCloudDnsConfig;
use dns_update::providers::infoblox::InfobloxConfig;
use dns_update::providers::joker::JokerAuth;
use dns_update::providers::lightsail::LightsailConfig;
use dns_update::providers::oraclecloud::OracleCloudConfig;
use dns_update::providers::ovh::OvhEndpoint;
use dns_update::providers::route53::Route53Config;
use dns_update::providers::volcengine::VolcengineConfig;
use dns_update::providers::yandexcloud::YandexCloudConfig;
use dns_update::{DnsUpdater, Error, TsigAlgorithm};

use super::{RFC2136, SERVER, ServerName, Settings};

/// In place of a server whose address is not known yet; nothing is sent there.
const ANY_SERVER: &str = "192.0.2.1";
/// One request to a provider's API.
const API_TIMEOUT: Option<Duration> = Some(Duration::from_secs(30));

/// One provider.
pub(super) struct Provider {
    pub(super) name: &'static str,
    pub(super) keys: &'static [Key],
    build: fn(&Settings) -> Result<DnsUpdater, Error>,
}

/// One key of a provider, beside those that all of them have.
pub(super) struct Key {
    pub(super) name: &'static str,
    pub(super) form: Form,
    pub(super) required: bool,
}

/// How the value of a key is written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Text,
    /// True or false.
    Flag,
    /// Text that may also be in the file that this key names.
    Secret(&'static str),
}

/// Keys that must be there.
macro_rules! text {
    ($name:literal) => {
        Key {
            name: $name,
            form: Form::Text,
            required: true,
        }
    };
}
macro_rules! secret {
    ($name:literal) => {
        Key {
            name: $name,
            form: Form::Secret(concat!($name, "_file")),
            required: true,
        }
    };
}
/// Keys that may be left out.
macro_rules! optional {
    ($name:literal) => {
        Key {
            name: $name,
            form: Form::Text,
            required: false,
        }
    };
}
macro_rules! optional_secret {
    ($name:literal) => {
        Key {
            name: $name,
            form: Form::Secret(concat!($name, "_file")),
            required: false,
        }
    };
}
macro_rules! flag {
    ($name:literal) => {
        Key {
            name: $name,
            form: Form::Flag,
            required: false,
        }
    };
}

/// The keys of `exec` beside `timeout`, and those of `acme-dns`: not the crate's, but read alike.
pub(super) const EXEC_KEYS: &[Key] = &[text!("program"), optional!("timeout")];
pub(super) const ACME_DNS_KEYS: &[Key] = &[
    optional!("server"),
    optional!("username"),
    optional_secret!("password"),
    optional!("subdomain"),
    optional_secret!("accounts"),
];

/// All providers of the crate.
pub(super) const PROVIDERS: &[Provider] = &[
    Provider {
        name: "alidns",
        keys: &[
            text!("access_key"),
            secret!("secret_key"),
            optional!("region"),
            optional_secret!("security_token"),
            optional!("line"),
        ],
        build: |s| {
            DnsUpdater::new_alidns(
                s.text("access_key"),
                s.text("secret_key"),
                s.optional("region"),
                s.optional("security_token"),
                s.optional("line"),
                API_TIMEOUT,
            )
        },
    },
    Provider {
        name: "arvancloud",
        keys: &[secret!("api_key")],
        build: |s| DnsUpdater::new_arvancloud(s.text("api_key"), API_TIMEOUT),
    },
    Provider {
        name: "autodns",
        keys: &[text!("username"), secret!("password"), optional!("context")],
        build: |s| {
            DnsUpdater::new_autodns(
                s.text("username"),
                s.text("password"),
                number(s, "context")?,
                API_TIMEOUT,
            )
        },
    },
    Provider {
        name: "azuredns",
        keys: &[
            text!("tenant_id"),
            text!("client_id"),
            secret!("client_secret"),
            text!("subscription_id"),
            text!("resource_group"),
            optional!("environment"),
        ],
        build: azure,
    },
    Provider {
        name: "baiducloud",
        keys: &[text!("access_key"), secret!("secret_key")],
        build: |s| {
            DnsUpdater::new_baiducloud(s.text("access_key"), s.text("secret_key"), API_TIMEOUT)
        },
    },
    Provider {
        name: "bluecatv2",
        keys: &[
            text!("server_url"),
            text!("username"),
            secret!("password"),
            text!("config_name"),
            text!("view_name"),
            flag!("skip_deploy"),
        ],
        build: bluecat,
    },
    Provider {
        name: "bunny",
        keys: &[secret!("api_key")],
        build: |s| DnsUpdater::new_bunny(s.text("api_key"), API_TIMEOUT),
    },
    Provider {
        name: "cloudflare",
        keys: &[secret!("api_token")],
        build: |s| DnsUpdater::new_cloudflare(s.text("api_token"), API_TIMEOUT),
    },
    Provider {
        name: "cloudns",
        keys: &[
            optional!("auth_id"),
            optional!("sub_auth_id"),
            secret!("auth_password"),
        ],
        build: |s| {
            DnsUpdater::new_cloudns(
                s.optional("auth_id"),
                s.optional("sub_auth_id"),
                s.text("auth_password"),
                API_TIMEOUT,
            )
        },
    },
    Provider {
        name: "constellix",
        keys: &[text!("api_key"), secret!("secret_key")],
        build: |s| DnsUpdater::new_constellix(s.text("api_key"), s.text("secret_key"), API_TIMEOUT),
    },
    Provider {
        name: "cpanel",
        keys: &[text!("base_url"), text!("username"), secret!("token")],
        build: |s| {
            DnsUpdater::new_cpanel(
                s.text("base_url"),
                s.text("username"),
                s.text("token"),
                API_TIMEOUT,
            )
        },
    },
    Provider {
        name: "ddnss",
        keys: &[secret!("key")],
        build: |s| DnsUpdater::new_ddnss(s.text("key"), API_TIMEOUT),
    },
    Provider {
        name: "desec",
        keys: &[secret!("token")],
        build: |s| DnsUpdater::new_desec(s.text("token"), API_TIMEOUT),
    },
    Provider {
        name: "digitalocean",
        keys: &[secret!("auth_token")],
        build: |s| DnsUpdater::new_digitalocean(s.text("auth_token"), API_TIMEOUT),
    },
    Provider {
        name: "dnsimple",
        keys: &[secret!("auth_token"), text!("account_id")],
        build: |s| {
            DnsUpdater::new_dnsimple(s.text("auth_token"), s.text("account_id"), API_TIMEOUT)
        },
    },
    Provider {
        name: "dnsmadeeasy",
        keys: &[text!("api_key"), secret!("api_secret")],
        build: |s| {
            DnsUpdater::new_dnsmadeeasy(s.text("api_key"), s.text("api_secret"), API_TIMEOUT)
        },
    },
    Provider {
        name: "domeneshop",
        keys: &[text!("api_token"), secret!("api_secret")],
        build: |s| {
            DnsUpdater::new_domeneshop(s.text("api_token"), s.text("api_secret"), API_TIMEOUT)
        },
    },
    Provider {
        name: "dreamhost",
        keys: &[secret!("api_key")],
        build: |s| DnsUpdater::new_dreamhost(s.text("api_key"), API_TIMEOUT),
    },
    Provider {
        name: "duckdns",
        keys: &[secret!("token")],
        build: |s| DnsUpdater::new_duckdns(s.text("token"), API_TIMEOUT),
    },
    Provider {
        name: "dynu",
        keys: &[secret!("api_key")],
        build: |s| DnsUpdater::new_dynu(s.text("api_key"), API_TIMEOUT),
    },
    Provider {
        name: "easydns",
        keys: &[text!("token"), secret!("key")],
        build: |s| DnsUpdater::new_easydns(s.text("token"), s.text("key"), API_TIMEOUT),
    },
    Provider {
        name: "edgedns",
        keys: &[
            text!("host"),
            text!("client_token"),
            secret!("client_secret"),
            secret!("access_token"),
            optional!("account_switch_key"),
        ],
        build: edge,
    },
    Provider {
        name: "exoscale",
        keys: &[text!("api_key"), secret!("api_secret")],
        build: |s| DnsUpdater::new_exoscale(s.text("api_key"), s.text("api_secret"), API_TIMEOUT),
    },
    Provider {
        name: "freemyip",
        keys: &[secret!("token")],
        build: |s| DnsUpdater::new_freemyip(s.text("token"), API_TIMEOUT),
    },
    Provider {
        name: "gandiv5",
        keys: &[secret!("personal_access_token")],
        build: |s| DnsUpdater::new_gandiv5(s.text("personal_access_token"), API_TIMEOUT),
    },
    Provider {
        name: "gcore",
        keys: &[secret!("api_token")],
        build: |s| DnsUpdater::new_gcore(s.text("api_token"), API_TIMEOUT),
    },
    Provider {
        name: "glesys",
        keys: &[text!("api_user"), secret!("api_key")],
        build: |s| DnsUpdater::new_glesys(s.text("api_user"), s.text("api_key"), API_TIMEOUT),
    },
    Provider {
        name: "godaddy",
        keys: &[text!("api_key"), secret!("api_secret")],
        build: |s| DnsUpdater::new_godaddy(s.text("api_key"), s.text("api_secret"), API_TIMEOUT),
    },
    Provider {
        name: "google-cloud-dns",
        keys: &[
            secret!("service_account_json"),
            text!("project_id"),
            optional!("managed_zone"),
            flag!("private_zone"),
            optional!("impersonate_service_account"),
        ],
        build: google,
    },
    Provider {
        name: "hetzner",
        keys: &[secret!("api_token")],
        build: |s| DnsUpdater::new_hetzner(s.text("api_token"), API_TIMEOUT),
    },
    Provider {
        name: "hostingde",
        keys: &[secret!("api_key")],
        build: |s| DnsUpdater::new_hostingde(s.text("api_key"), API_TIMEOUT),
    },
    Provider {
        name: "hostinger",
        keys: &[secret!("api_token")],
        build: |s| DnsUpdater::new_hostinger(s.text("api_token"), API_TIMEOUT),
    },
    Provider {
        name: "huaweicloud",
        keys: &[text!("access_key"), secret!("secret_key"), text!("region")],
        build: |s| {
            DnsUpdater::new_huaweicloud(
                s.text("access_key"),
                s.text("secret_key"),
                s.text("region"),
                API_TIMEOUT,
            )
        },
    },
    Provider {
        name: "hurricane",
        keys: &[secret!("tokens")],
        build: hurricane,
    },
    Provider {
        name: "ibmcloud",
        keys: &[text!("username"), secret!("api_key")],
        build: |s| DnsUpdater::new_ibmcloud(s.text("username"), s.text("api_key"), API_TIMEOUT),
    },
    Provider {
        name: "infoblox",
        keys: &[
            text!("host"),
            optional!("port"),
            text!("username"),
            secret!("password"),
            optional!("wapi_version"),
            optional!("dns_view"),
        ],
        build: infoblox,
    },
    Provider {
        name: "infomaniak",
        keys: &[secret!("access_token")],
        build: |s| DnsUpdater::new_infomaniak(s.text("access_token"), API_TIMEOUT),
    },
    Provider {
        name: "inwx",
        keys: &[text!("username"), secret!("password"), flag!("sandbox")],
        build: |s| {
            DnsUpdater::new_inwx(
                s.text("username"),
                s.text("password"),
                s.flag("sandbox"),
                API_TIMEOUT,
            )
        },
    },
    Provider {
        name: "ionos",
        keys: &[secret!("api_key")],
        build: |s| DnsUpdater::new_ionos(s.text("api_key"), API_TIMEOUT),
    },
    Provider {
        name: "ipv64",
        keys: &[secret!("api_key")],
        build: |s| DnsUpdater::new_ipv64(s.text("api_key"), API_TIMEOUT),
    },
    Provider {
        name: "joker",
        keys: &[
            optional_secret!("api_key"),
            optional!("username"),
            optional_secret!("password"),
        ],
        build: joker,
    },
    Provider {
        name: "lightsail",
        keys: &[
            text!("access_key_id"),
            secret!("secret_access_key"),
            optional_secret!("session_token"),
            optional!("region"),
            optional!("domain"),
        ],
        build: lightsail,
    },
    Provider {
        name: "linode",
        keys: &[secret!("auth_token")],
        build: |s| DnsUpdater::new_linode(s.text("auth_token"), API_TIMEOUT),
    },
    Provider {
        name: "luadns",
        keys: &[text!("api_username"), secret!("api_token")],
        build: |s| DnsUpdater::new_luadns(s.text("api_username"), s.text("api_token"), API_TIMEOUT),
    },
    Provider {
        name: "mythicbeasts",
        keys: &[text!("username"), secret!("password")],
        build: |s| {
            DnsUpdater::new_mythicbeasts(s.text("username"), s.text("password"), API_TIMEOUT)
        },
    },
    Provider {
        name: "namecheap",
        keys: &[
            text!("api_user"),
            secret!("api_key"),
            text!("client_ip"),
            optional!("username"),
        ],
        build: |s| {
            DnsUpdater::new_namecheap(
                s.text("api_user"),
                s.text("api_key"),
                s.text("client_ip"),
                s.optional("username"),
                API_TIMEOUT,
            )
        },
    },
    Provider {
        name: "namedotcom",
        keys: &[text!("username"), secret!("api_token")],
        build: |s| DnsUpdater::new_namedotcom(s.text("username"), s.text("api_token"), API_TIMEOUT),
    },
    Provider {
        name: "namesilo",
        keys: &[secret!("api_key")],
        build: |s| DnsUpdater::new_namesilo(s.text("api_key"), API_TIMEOUT),
    },
    Provider {
        name: "netcup",
        keys: &[
            text!("customer_number"),
            secret!("api_key"),
            secret!("api_password"),
        ],
        build: |s| {
            DnsUpdater::new_netcup(
                s.text("customer_number"),
                s.text("api_key"),
                s.text("api_password"),
                API_TIMEOUT,
            )
        },
    },
    Provider {
        name: "netlify",
        keys: &[secret!("access_token")],
        build: |s| DnsUpdater::new_netlify(s.text("access_token"), API_TIMEOUT),
    },
    Provider {
        name: "nifcloud",
        keys: &[text!("access_key"), secret!("secret_key")],
        build: |s| {
            DnsUpdater::new_nifcloud(s.text("access_key"), s.text("secret_key"), API_TIMEOUT)
        },
    },
    Provider {
        name: "ns1",
        keys: &[secret!("api_key")],
        build: |s| DnsUpdater::new_ns1(s.text("api_key"), API_TIMEOUT),
    },
    Provider {
        name: "oraclecloud",
        keys: &[
            text!("tenancy_ocid"),
            text!("user_ocid"),
            text!("fingerprint"),
            secret!("private_key_pem"),
            optional_secret!("private_key_password"),
            text!("region"),
            text!("compartment_ocid"),
        ],
        build: oracle,
    },
    Provider {
        name: "ovh",
        keys: &[
            text!("application_key"),
            secret!("application_secret"),
            secret!("consumer_key"),
            text!("endpoint"),
        ],
        build: |s| {
            DnsUpdater::new_ovh(
                s.text("application_key"),
                s.text("application_secret"),
                s.text("consumer_key"),
                s.text("endpoint").parse::<OvhEndpoint>()?,
                API_TIMEOUT,
            )
        },
    },
    Provider {
        name: "plesk",
        keys: &[text!("base_url"), secret!("api_key")],
        build: |s| DnsUpdater::new_plesk(s.text("base_url"), s.text("api_key"), API_TIMEOUT),
    },
    Provider {
        name: "porkbun",
        keys: &[secret!("api_key"), secret!("secret_api_key")],
        build: |s| {
            DnsUpdater::new_porkbun(s.text("api_key"), s.text("secret_api_key"), API_TIMEOUT)
        },
    },
    Provider {
        name: "powerdns",
        keys: &[
            secret!("api_key"),
            text!("endpoint"),
            optional!("server_name"),
        ],
        build: |s| {
            DnsUpdater::new_pdns(
                s.text("api_key"),
                s.optional("endpoint"),
                s.optional("server_name"),
                API_TIMEOUT,
            )
        },
    },
    Provider {
        name: RFC2136,
        keys: &[
            text!("server"),
            text!("key_name"),
            secret!("key"),
            optional!("algorithm"),
        ],
        build: rfc2136,
    },
    Provider {
        name: "route53",
        keys: &[
            text!("access_key_id"),
            secret!("secret_access_key"),
            optional_secret!("session_token"),
            optional!("region"),
            optional!("hosted_zone_id"),
            flag!("private_zone_only"),
            optional!("endpoint"),
        ],
        build: route53,
    },
    Provider {
        name: "safedns",
        keys: &[secret!("auth_token")],
        build: |s| DnsUpdater::new_safedns(s.text("auth_token"), API_TIMEOUT),
    },
    Provider {
        name: "scaleway",
        keys: &[secret!("api_token")],
        build: |s| DnsUpdater::new_scaleway(s.text("api_token"), API_TIMEOUT),
    },
    Provider {
        name: "selectel",
        keys: &[
            text!("username"),
            secret!("password"),
            text!("account_id"),
            text!("project_id"),
        ],
        build: |s| {
            DnsUpdater::new_selectel(
                s.text("username"),
                s.text("password"),
                s.text("account_id"),
                s.text("project_id"),
                API_TIMEOUT,
            )
        },
    },
    Provider {
        name: "simplycom",
        keys: &[text!("account_name"), secret!("api_key")],
        build: |s| {
            DnsUpdater::new_simplycom(s.text("account_name"), s.text("api_key"), API_TIMEOUT)
        },
    },
    Provider {
        name: "spaceship",
        keys: &[text!("api_key"), secret!("api_secret")],
        build: |s| DnsUpdater::new_spaceship(s.text("api_key"), s.text("api_secret"), API_TIMEOUT),
    },
    Provider {
        name: "tencentcloud",
        keys: &[
            text!("secret_id"),
            secret!("secret_key"),
            optional!("region"),
            optional_secret!("session_token"),
        ],
        build: |s| {
            DnsUpdater::new_tencentcloud(
                s.text("secret_id"),
                s.text("secret_key"),
                s.optional("region"),
                s.optional("session_token"),
                API_TIMEOUT,
            )
        },
    },
    Provider {
        name: "transip",
        keys: &[
            text!("login"),
            secret!("private_key_pem"),
            flag!("global_key"),
        ],
        build: |s| {
            DnsUpdater::new_transip(
                s.text("login"),
                s.text("private_key_pem"),
                s.flag("global_key"),
                API_TIMEOUT,
            )
        },
    },
    Provider {
        name: "ultradns",
        keys: &[
            text!("username"),
            secret!("password"),
            optional!("endpoint"),
        ],
        build: |s| {
            DnsUpdater::new_ultradns(
                s.text("username"),
                s.text("password"),
                s.optional_owned("endpoint"),
                API_TIMEOUT,
            )
        },
    },
    Provider {
        name: "vercel",
        keys: &[secret!("auth_token"), optional!("team_id")],
        build: |s| DnsUpdater::new_vercel(s.text("auth_token"), s.optional("team_id"), API_TIMEOUT),
    },
    Provider {
        name: "volcengine",
        keys: &[
            text!("access_key"),
            secret!("secret_key"),
            optional!("region"),
            optional!("host"),
            optional!("scheme"),
        ],
        build: volcengine,
    },
    Provider {
        name: "vultr",
        keys: &[secret!("api_key")],
        build: |s| DnsUpdater::new_vultr(s.text("api_key"), API_TIMEOUT),
    },
    Provider {
        name: "websupport",
        keys: &[text!("api_key"), secret!("secret")],
        build: |s| DnsUpdater::new_websupport(s.text("api_key"), s.text("secret"), API_TIMEOUT),
    },
    Provider {
        name: "yandexcloud",
        keys: &[secret!("iam_token_b64"), text!("folder_id")],
        build: yandex,
    },
    Provider {
        name: "zoneeu",
        keys: &[text!("username"), secret!("api_key")],
        build: |s| DnsUpdater::new_zoneeu(s.text("username"), s.text("api_key"), API_TIMEOUT),
    },
];

pub(super) fn find(name: &str) -> Option<&'static Provider> {
    PROVIDERS.iter().find(|provider| provider.name == name)
}

pub(super) fn build(name: &str, settings: &Settings) -> Result<DnsUpdater, Error> {
    let unknown = || Error::Unsupported(format!("there is no provider {name:?}"));
    (find(name).ok_or_else(unknown)?.build)(settings)
}

fn number(settings: &Settings, key: &str) -> Result<Option<u32>, Error> {
    let wrong = |text: &str| Error::Parse(format!("`{key}` {text:?} is not a number"));
    let parse = |text: &str| text.parse().map_err(|_| wrong(text));
    settings.optional(key).map(parse).transpose()
}

fn azure(s: &Settings) -> Result<DnsUpdater, Error> {
    let environment = match s.optional("environment") {
        None | Some("public") => AzureEnvironment::Public,
        Some("china") => AzureEnvironment::China,
        Some("usgovernment") => AzureEnvironment::UsGovernment,
        Some(other) => {
            return Err(Error::Parse(format!(
                "`environment` {other:?} is none of public, china, usgovernment"
            )));
        }
    };
    DnsUpdater::new_azuredns(AzureDnsConfig {
        tenant_id: s.owned("tenant_id"),
        client_id: s.owned("client_id"),
        client_secret: s.owned("client_secret"),
        subscription_id: s.owned("subscription_id"),
        resource_group: s.owned("resource_group"),
        environment,
        request_timeout: API_TIMEOUT,
    })
}

fn bluecat(s: &Settings) -> Result<DnsUpdater, Error> {
    DnsUpdater::new_bluecatv2(BluecatV2Config {
        server_url: s.owned("server_url"),
        username: s.owned("username"),
        password: s.owned("password"),
        config_name: s.owned("config_name"),
        view_name: s.owned("view_name"),
        skip_deploy: s.flag("skip_deploy"),
        request_timeout: API_TIMEOUT,
    })
}

fn edge(s: &Settings) -> Result<DnsUpdater, Error> {
    DnsUpdater::new_edgedns(EdgeDnsConfig {
        host: s.owned("host"),
        client_token: s.owned("client_token"),
        client_secret: s.owned("client_secret"),
        access_token: s.owned("access_token"),
        account_switch_key: s.optional_owned("account_switch_key"),
        request_timeout: API_TIMEOUT,
    })
}

fn google(s: &Settings) -> Result<DnsUpdater, Error> {
    DnsUpdater::new_google_cloud_dns(GoogleCloudDnsConfig {
        service_account_json: s.owned("service_account_json"),
        project_id: s.owned("project_id"),
        managed_zone: s.optional_owned("managed_zone"),
        private_zone: s.flag("private_zone"),
        impersonate_service_account: s.optional_owned("impersonate_service_account"),
        request_timeout: API_TIMEOUT,
    })
}

/// Each record has a token of its own there: `NAME:TOKEN,NAME:TOKEN`.
fn hurricane(s: &Settings) -> Result<DnsUpdater, Error> {
    let wrong = || Error::Parse("`tokens` is not of the form NAME:TOKEN,NAME:TOKEN".to_owned());
    let pairs = s.text("tokens").split(',');
    let pair = |pair: &str| {
        let (name, token) = pair.trim().split_once(':')?;
        (!name.is_empty() && !token.is_empty()).then(|| (name.to_owned(), token.to_owned()))
    };
    let tokens: Option<HashMap<String, String>> = pairs.map(pair).collect();
    DnsUpdater::new_hurricane(tokens.ok_or_else(wrong)?, API_TIMEOUT)
}

fn infoblox(s: &Settings) -> Result<DnsUpdater, Error> {
    DnsUpdater::new_infoblox(InfobloxConfig {
        host: s.owned("host"),
        port: s.optional_owned("port"),
        username: s.owned("username"),
        password: s.owned("password"),
        wapi_version: s.optional_owned("wapi_version"),
        dns_view: s.optional_owned("dns_view"),
        request_timeout: API_TIMEOUT,
    })
}

fn joker(s: &Settings) -> Result<DnsUpdater, Error> {
    let auth = match (
        s.optional("api_key"),
        s.optional("username"),
        s.optional("password"),
    ) {
        (Some(key), None, None) => JokerAuth::api_key(key),
        (None, Some(username), Some(password)) => JokerAuth::username_password(username, password),
        _ => {
            return Err(Error::Parse(
                "it needs either `api_key`, or `username` and `password`".to_owned(),
            ));
        }
    };
    DnsUpdater::new_joker(auth, API_TIMEOUT)
}

fn lightsail(s: &Settings) -> Result<DnsUpdater, Error> {
    DnsUpdater::new_lightsail(LightsailConfig {
        access_key_id: s.owned("access_key_id"),
        secret_access_key: s.owned("secret_access_key"),
        session_token: s.optional_owned("session_token"),
        region: s.optional_owned("region"),
        domain: s.optional_owned("domain"),
        request_timeout: API_TIMEOUT,
    })
}

fn oracle(s: &Settings) -> Result<DnsUpdater, Error> {
    DnsUpdater::new_oraclecloud(OracleCloudConfig {
        tenancy_ocid: s.owned("tenancy_ocid"),
        user_ocid: s.owned("user_ocid"),
        fingerprint: s.owned("fingerprint"),
        private_key_pem: s.owned("private_key_pem"),
        private_key_password: s.optional_owned("private_key_password"),
        region: s.owned("region"),
        compartment_ocid: s.owned("compartment_ocid"),
        request_timeout: API_TIMEOUT,
    })
}

fn rfc2136(s: &Settings) -> Result<DnsUpdater, Error> {
    let key = BASE64_STANDARD
        .decode(s.text("key").trim())
        .map_err(|_| Error::Parse("`key` is not base64, as tsig-keygen writes it".to_owned()))?;
    let algorithm = tsig_algorithm(s.optional("algorithm").unwrap_or("hmac-sha256"))?;
    let server = s.text(SERVER);
    // What belongs to the name is known when it is used; everything else can be wrong now.
    let by_name = ServerName::of(RFC2136, s).map(|_| ANY_SERVER);
    let address = by_name.unwrap_or(server);
    DnsUpdater::new_rfc2136_tsig(address, s.text("key_name"), key, algorithm).map_err(|error| {
        match error {
            Error::Parse(_) => Error::Parse(format!(
                "`server` {server:?} is neither a name nor an IP address, as in \"ns1.example.com\", \"192.0.2.1:53\" or \"tcp://[2001:db8::1]:53\""
            )),
            other => other,
        }
    })
}

fn tsig_algorithm(name: &str) -> Result<TsigAlgorithm, Error> {
    match name.trim_end_matches('.') {
        "hmac-sha1" => Ok(TsigAlgorithm::HmacSha1),
        "hmac-sha224" => Ok(TsigAlgorithm::HmacSha224),
        "hmac-sha256" => Ok(TsigAlgorithm::HmacSha256),
        "hmac-sha384" => Ok(TsigAlgorithm::HmacSha384),
        "hmac-sha512" => Ok(TsigAlgorithm::HmacSha512),
        other => Err(Error::Parse(format!(
            "`algorithm` {other:?} is none of hmac-sha256, hmac-sha384, hmac-sha512, hmac-sha224, hmac-sha1"
        ))),
    }
}

fn route53(s: &Settings) -> Result<DnsUpdater, Error> {
    DnsUpdater::new_route53(Route53Config {
        access_key_id: s.owned("access_key_id"),
        secret_access_key: s.owned("secret_access_key"),
        session_token: s.optional_owned("session_token"),
        region: s.optional_owned("region"),
        hosted_zone_id: s.optional_owned("hosted_zone_id"),
        private_zone_only: s.optional("private_zone_only").map(|text| text == "true"),
        endpoint: s.optional_owned("endpoint"),
    })
}

fn volcengine(s: &Settings) -> Result<DnsUpdater, Error> {
    DnsUpdater::new_volcengine(VolcengineConfig {
        access_key: s.owned("access_key"),
        secret_key: s.owned("secret_key"),
        region: s.optional_owned("region"),
        host: s.optional_owned("host"),
        scheme: s.optional_owned("scheme"),
        request_timeout: API_TIMEOUT,
    })
}

fn yandex(s: &Settings) -> Result<DnsUpdater, Error> {
    DnsUpdater::new_yandexcloud(YandexCloudConfig {
        iam_token_b64: s.owned("iam_token_b64"),
        folder_id: s.owned("folder_id"),
        request_timeout: API_TIMEOUT,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use super::super::Setting;
    use super::*;

    /// What a provider's own checks let pass.
    fn plausible(key: &Key) -> String {
        let text = match key.name {
            "server" => "192.0.2.1:53",
            "endpoint" => "ovh-eu",
            "context" | "customer_number" => "4",
            "key" => "c2VjcmV0",
            "tokens" => "_acme-challenge.example.com:secret",
            "region" => "eu-west-1",
            "base_url" | "server_url" => "https://192.0.2.1",
            "private_key_pem" => return rsa_key(),
            _ => "x",
        };
        text.to_owned()
    }

    fn rsa_key() -> String {
        static KEY: LazyLock<String> = LazyLock::new(|| {
            let key = crate::store::private_key::generate(crate::config::KeyType::Rsa2048);
            key.unwrap().serialize_pem()
        });
        KEY.clone()
    }

    fn settings(provider: &Provider, all: bool) -> Settings {
        let keys = provider.keys.iter().filter(|key| key.required || all);
        let setting = |key: &Key| Setting {
            text: match key.form {
                Form::Flag => "true".to_owned(),
                _ => plausible(key),
            },
            is_secret: false,
        };
        Settings(keys.map(|key| (key.name, setting(key))).collect())
    }

    #[test]
    fn every_provider_is_made_of_its_required_keys() {
        // One of two ways in has to be chosen.
        let choose = ["joker", "cloudns"];
        for provider in PROVIDERS {
            let built = build(provider.name, &settings(provider, false));
            let error = built.err().map(|error| error.to_string());
            assert_eq!(
                error.is_some(),
                choose.contains(&provider.name),
                "{}: {error:?}",
                provider.name
            );
        }
    }

    #[test]
    fn the_names_are_in_order() {
        assert!(PROVIDERS.is_sorted_by_key(|provider| provider.name));
        assert!(find("cloudflare").is_some() && find("cloudfare").is_none());
    }

    #[test]
    fn the_documentation_lists_every_provider_and_key() {
        let text = include_str!("../../../docs/acme.md");
        for provider in PROVIDERS {
            let begin = format!("| `{}` |", provider.name);
            let row = text.lines().find(|line| line.starts_with(&begin));
            let row = row.unwrap_or_else(|| panic!("{} is not in docs/acme.md", provider.name));
            for key in provider.keys {
                let name = format!("`{}`", key.name);
                assert!(row.contains(&name), "{}: {}", provider.name, key.name);
            }
        }
    }
}
