//! A configuration whose values are each valid, and not yet known to fit together. Both the file
//! and the command line are read into one, and only `assemble` makes a [`super::Config`] of it.

use std::path::PathBuf;
use std::time::Duration;

use http::{Method, StatusCode};

use super::access::AccessDraft;
use super::access_log::{AccessLogDraft, SiteLog};
use super::diagnostic::Located;
use super::dns::read::DnsDraft;
use super::limits::LimitsDraft;
use super::on_demand::OnDemandDraft;
use super::pool::PoolDraft;
use super::{
    AccountReference, AdminListen, CertificatePer, ChallengeType, ClientAuthMode, Coding,
    ErrorPages, ExternalAccount, FieldCondition, FieldRules, Files, Forwarded, Hsts, IdleTimeouts,
    IpPrefix, KeyType, Limit, ListenAddress, LogLevel, Member, MinRates, PathPattern,
    ProxyProtocol, ProxyProtocolFrom, SocketFile, Takeover, Template, TlsMode,
};
use crate::certificate::name::Name;

#[derive(Default)]
pub(super) struct Draft {
    /// The file it came from.
    pub(super) path: Option<PathBuf>,
    pub(super) server: ServerDraft,
    pub(super) certificates: CertificatesDraft,
    pub(super) tls: TlsDraft,
    pub(super) acme: AuthorityDraft,
    pub(super) dns: Option<DnsDraft>,
    pub(super) on_demand: Option<OnDemandDraft>,
    pub(super) fallbacks: Vec<AuthorityDraft>,
    pub(super) access_log: AccessLogDraft,
    pub(super) sites: Vec<SiteDraft>,
}

#[derive(Default)]
pub(super) struct ServerDraft {
    pub(super) http_listen: Listen,
    pub(super) https_listen: Listen,
    pub(super) socket_file: SocketFile,
    pub(super) accounts: Vec<AccountReference>,
    pub(super) admin_listen: Option<Located<AdminListen>>,
    pub(super) state_dir: Option<PathBuf>,
    pub(super) threads: Option<usize>,
    pub(super) grace_period: Option<Duration>,
    pub(super) trusted_proxies: Vec<IpPrefix>,
    pub(super) proxy_protocol_from: ProxyProtocolFrom,
    pub(super) max_connections: Option<usize>,
    pub(super) max_connections_per_client: Option<usize>,
    pub(super) min_rates: MinRates,
    pub(super) idle_timeouts: IdleTimeouts,
    pub(super) forwarded: Option<Forwarded>,
    pub(super) request_id: Option<Box<str>>,
    pub(super) resolvers: Vec<std::net::SocketAddr>,
    pub(super) log_level: Option<LogLevel>,
}

#[derive(Default)]
pub(super) enum Listen {
    #[default]
    Default,
    /// Written as an empty array, there.
    Nowhere(usize),
    On(Vec<Located<ListenAddress>>),
}

#[derive(Default)]
pub(super) struct CertificatesDraft {
    pub(super) directories: Vec<Located<PathBuf>>,
    pub(super) files: Vec<CertificateFilesDraft>,
    /// Whether any source of certificate files was written, be it a wrong one.
    pub(super) has_sources: bool,
    pub(super) poll_interval: Option<Duration>,
    pub(super) watch: Option<bool>,
    pub(super) default: Option<Name>,
    /// `None` inside is "off".
    pub(super) takeover: Option<Located<Option<Takeover>>>,
}

pub(super) struct CertificateFilesDraft {
    pub(super) certificate: Located<PathBuf>,
    pub(super) private_key: Option<Located<PathBuf>>,
    pub(super) password_file: Option<Located<PathBuf>>,
}

#[derive(Default)]
pub(super) struct AuthorityDraft {
    pub(super) directory: Option<Located<String>>,
    pub(super) email: Option<String>,
    pub(super) ca_certificate: Option<Located<PathBuf>>,
    pub(super) challenges: Option<Vec<Located<ChallengeType>>>,
    pub(super) key_type: Option<KeyType>,
    pub(super) profile: Option<String>,
    pub(super) address_profile: Option<String>,
    pub(super) preferred_chain: Option<String>,
    pub(super) agree_to_terms: Option<bool>,
    pub(super) limits: LimitsDraft,
    pub(super) parallel_orders: Option<u32>,
    /// `None` inside is "off".
    pub(super) order_rate: Option<Option<Limit>>,
    pub(super) reuse_key: Option<bool>,
    pub(super) check_revocation: Option<bool>,
    pub(super) external_account: Option<ExternalAccount>,
}

pub(super) struct SiteDraft {
    pub(super) hosts: Vec<Located<Name>>,
    /// Where `*`, every other name, is one of the hosts.
    pub(super) any_host: Option<usize>,
    pub(super) on_demand: Option<Located<bool>>,
    /// Nothing where it was written and could not be read.
    pub(super) tls: Option<Located<TlsMode>>,
    /// Where it is served alone, if it was written, be it wrongly.
    pub(super) listen: Option<Vec<Located<ListenAddress>>>,
    pub(super) certificate_per: CertificatePer,
    pub(super) client_auth: Option<Located<ClientAuthDraft>>,
    /// `None` inside is "off".
    pub(super) takeover: Option<Located<Option<Takeover>>>,
    pub(super) hsts: Option<Located<Hsts>>,
    pub(super) security_headers: bool,
    pub(super) request_fields: FieldRules,
    pub(super) response_fields: FieldRules,
    pub(super) error_pages: ErrorPages,
    pub(super) access_log: Option<Located<SiteLog>>,
    pub(super) access: AccessDraft,
    pub(super) compress: Option<Vec<Coding>>,
    /// What happens to requests that no route is for.
    pub(super) action: Option<ActionDraft>,
    /// `None` inside is "off".
    pub(super) proxy_protocol: Option<Located<Option<ProxyProtocol>>>,
    pub(super) upstream_tls: Option<Located<UpstreamTlsDraft>>,
    pub(super) pool: PoolDraft,
    pub(super) routes: Vec<RouteDraft>,
}

impl SiteDraft {
    pub(super) fn new(hosts: Vec<Located<Name>>, tls: Option<Located<TlsMode>>) -> SiteDraft {
        SiteDraft {
            hosts,
            any_host: None,
            on_demand: None,
            tls,
            listen: None,
            certificate_per: CertificatePer::default(),
            client_auth: None,
            takeover: None,
            hsts: None,
            security_headers: false,
            request_fields: FieldRules::default(),
            response_fields: FieldRules::default(),
            error_pages: ErrorPages::default(),
            access_log: None,
            access: AccessDraft::default(),
            compress: None,
            action: None,
            proxy_protocol: None,
            upstream_tls: None,
            pool: PoolDraft::default(),
            routes: Vec::new(),
        }
    }

    /// Where the site's certificates are said to be had on demand.
    pub(super) fn on_demand_at(&self) -> Option<usize> {
        let on_demand = self.on_demand.as_ref().filter(|it| it.value);
        on_demand.map(|it| it.at)
    }
}

pub(super) struct RouteDraft {
    pub(super) path: Located<PathPattern>,
    pub(super) methods: Vec<Method>,
    pub(super) conditions: Vec<FieldCondition>,
    pub(super) strip_prefix: Option<Located<Box<str>>>,
    pub(super) rewrite: Option<Template>,
    pub(super) request_fields: FieldRules,
    pub(super) response_fields: FieldRules,
    pub(super) access: AccessDraft,
    /// Nothing where the site says it.
    pub(super) compress: Option<Vec<Coding>>,
    /// Nothing where it could not be read.
    pub(super) action: Option<ActionDraft>,
    pub(super) proxy_protocol: Option<Located<Option<ProxyProtocol>>>,
    pub(super) upstream_tls: Option<Located<UpstreamTlsDraft>>,
    pub(super) pool: PoolDraft,
}

impl RouteDraft {
    /// All requests for a path, unchanged.
    pub(super) fn new(path: Located<PathPattern>, action: ActionDraft) -> RouteDraft {
        RouteDraft {
            path,
            methods: Vec::new(),
            conditions: Vec::new(),
            strip_prefix: None,
            rewrite: None,
            request_fields: FieldRules::default(),
            response_fields: FieldRules::default(),
            access: AccessDraft::default(),
            compress: None,
            action: Some(action),
            proxy_protocol: None,
            upstream_tls: None,
            pool: PoolDraft::default(),
        }
    }
}

pub(super) enum ActionDraft {
    Forward(Vec<Member>),
    Redirect {
        status: StatusCode,
        location: Template,
    },
    Respond {
        status: StatusCode,
        body: Box<str>,
    },
    Files {
        files: Files,
        /// Where the root is named.
        at: usize,
    },
}

impl ActionDraft {
    pub(super) fn members(&self) -> &[Member] {
        match self {
            ActionDraft::Forward(members) => members,
            _ => &[],
        }
    }

    /// The folder that is served, and where it is named.
    pub(super) fn root(&self) -> Option<Located<PathBuf>> {
        match self {
            ActionDraft::Files { files, at } => Some(Located {
                value: files.root.clone(),
                at: *at,
            }),
            _ => None,
        }
    }
}

#[derive(Default)]
pub(super) struct TlsDraft {
    pub(super) session_ticket_key_files: Vec<Located<PathBuf>>,
    pub(super) session_ticket_rotation: Option<Located<Duration>>,
    pub(super) resume_after_swap: Option<bool>,
}

/// Without a `ca` that could be read it is reported already.
pub(super) struct ClientAuthDraft {
    pub(super) ca: Option<Located<PathBuf>>,
    pub(super) crl: Option<Located<PathBuf>>,
    pub(super) mode: ClientAuthMode,
}

pub(super) struct UpstreamTlsDraft {
    pub(super) ca: Option<Located<PathBuf>>,
    pub(super) certificate: Option<Located<PathBuf>>,
    pub(super) private_key: Option<Located<PathBuf>>,
    pub(super) server_name: Option<Name>,
    pub(super) verify: Option<Located<bool>>,
}
