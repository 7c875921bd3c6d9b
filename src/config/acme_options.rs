//! `[acme]` and its fallbacks: defaults are filled in, and what does not fit together is reported.

use std::collections::HashMap;
use std::time::Duration;

use super::diagnostic::{Located, Problem, Report, Source};
use super::dns::read::DnsDraft;
use super::draft::{AuthorityDraft, Draft, SiteDraft};
use super::on_demand::{self, OnDemandDraft};
use super::{Acme, CertificateAuthority, ChallengeType, Dns, Limit, Limits, Spelling, TlsMode};
use crate::certificate::name::Name;

const DEFAULT_DIRECTORY: &str = "https://acme-v02.api.letsencrypt.org/directory";
const DEFAULT_CHALLENGES: [ChallengeType; 2] = [ChallengeType::TlsAlpn01, ChallengeType::Http01];

/// An order takes seconds, most of them the CA's: more at once are no faster for few certificates,
/// and for many these are thousands an hour.
const DEFAULT_PARALLEL_ORDERS: u32 = 8;
/// A few sites start together; a hundred thousand come at a pace that no CA notices.
const DEFAULT_ORDER_RATE: Limit = Limit {
    count: 60,
    per: Duration::from_secs(10),
};

pub(super) fn default_authority() -> CertificateAuthority {
    authority(AuthorityDraft::default(), false, Spelling::default())
}

pub(super) fn acme(
    draft: AuthorityDraft,
    fallbacks: Vec<AuthorityDraft>,
    dns: Option<DnsDraft>,
    on_demand: Option<OnDemandDraft>,
    source: &Source<'_>,
) -> Acme {
    let spelt = spelling(&draft, "[acme]", source);
    let first = authority(draft, has_provider(dns.as_ref()), spelt);
    let fallback = |draft: AuthorityDraft| {
        let mut spelt = spelling(&draft, "[[acme.fallback]]", source);
        if draft.ca_certificate.is_none() && first.ca_certificate.is_some() {
            spelt
                .ca_certificate
                .clone_from(&first.spelling.ca_certificate);
        }
        fallback(draft, &first, spelt)
    };
    let rest: Vec<_> = fallbacks.into_iter().map(fallback).collect();
    Acme {
        authorities: std::iter::once(first).chain(rest).collect(),
        dns: dns.map(|draft| draft.dns).unwrap_or_default(),
        on_demand: on_demand::on_demand(on_demand),
    }
}

fn spelling(draft: &AuthorityDraft, table: &str, source: &Source<'_>) -> Spelling {
    let spelt = |key: &str, option: &str, at: Option<usize>| match (source, at) {
        (Source::Arguments(_), _) => format!("`{option}`"),
        (Source::File { .. }, Some(at)) => format!("`{key}` ({})", source.place(at)),
        (Source::File { .. }, None) => format!("`{key}` in {table}"),
    };
    let (directory, root) = (draft.directory.as_ref(), draft.ca_certificate.as_ref());
    Spelling {
        directory: spelt("directory", "--acme-directory", directory.map(|it| it.at)),
        ca_certificate: spelt(
            "ca_certificate",
            "--acme-ca-certificate",
            root.map(|it| it.at),
        ),
    }
}

fn authority(draft: AuthorityDraft, has_dns: bool, spelling: Spelling) -> CertificateAuthority {
    let directory = draft
        .directory
        .map_or_else(|| DEFAULT_DIRECTORY.to_owned(), |url| url.value);
    CertificateAuthority {
        limits: draft.limits.over(Limits::known(&directory)),
        directory,
        email: draft.email,
        ca_certificate: draft.ca_certificate.map(|path| path.value),
        challenges: match draft.challenges {
            Some(challenges) => values(challenges),
            None => default_challenges(has_dns),
        },
        key_type: draft.key_type.unwrap_or_default(),
        profile: draft.profile,
        address_profile: draft.address_profile,
        preferred_chain: draft.preferred_chain,
        agree_to_terms: draft.agree_to_terms.unwrap_or(true),
        parallel_orders: draft.parallel_orders.unwrap_or(DEFAULT_PARALLEL_ORDERS),
        order_rate: draft.order_rate.unwrap_or(Some(DEFAULT_ORDER_RATE)),
        reuse_key: draft.reuse_key.unwrap_or(false),
        check_revocation: draft.check_revocation.unwrap_or(true),
        external_account: draft.external_account,
        spelling,
    }
}

fn has_provider(dns: Option<&DnsDraft>) -> bool {
    dns.is_some_and(|dns| dns.provider_at.is_some())
}

fn values(challenges: Vec<Located<ChallengeType>>) -> Vec<ChallengeType> {
    challenges.into_iter().map(|one| one.value).collect()
}

fn default_challenges(has_dns: bool) -> Vec<ChallengeType> {
    let dns = has_dns.then_some(ChallengeType::Dns01);
    DEFAULT_CHALLENGES.into_iter().chain(dns).collect()
}

/// A profile, a chain, limits and an external account belong to one CA alone; everything else is
/// inherited.
fn fallback(
    draft: AuthorityDraft,
    first: &CertificateAuthority,
    spelling: Spelling,
) -> CertificateAuthority {
    let directory = draft
        .directory
        .map_or_else(|| first.directory.clone(), |url| url.value);
    CertificateAuthority {
        limits: draft.limits.over(Limits::known(&directory)),
        directory,
        email: draft.email.or_else(|| first.email.clone()),
        ca_certificate: draft
            .ca_certificate
            .map(|path| path.value)
            .or_else(|| first.ca_certificate.clone()),
        challenges: draft
            .challenges
            .map_or_else(|| first.challenges.clone(), values),
        key_type: draft.key_type.unwrap_or(first.key_type),
        profile: draft.profile,
        address_profile: draft.address_profile,
        preferred_chain: draft.preferred_chain,
        agree_to_terms: draft.agree_to_terms.unwrap_or(first.agree_to_terms),
        parallel_orders: draft.parallel_orders.unwrap_or(first.parallel_orders),
        order_rate: draft.order_rate.unwrap_or(first.order_rate),
        reuse_key: draft.reuse_key.unwrap_or(first.reuse_key),
        check_revocation: draft.check_revocation.unwrap_or(first.check_revocation),
        external_account: draft.external_account,
        spelling,
    }
}

fn authorities(draft: &Draft) -> impl Iterator<Item = &AuthorityDraft> {
    std::iter::once(&draft.acme).chain(&draft.fallbacks)
}

fn written_challenges(draft: &Draft) -> impl Iterator<Item = &Located<ChallengeType>> {
    authorities(draft).flat_map(|authority| authority.challenges.iter().flatten())
}

/// Whether some CA can be asked for wildcards, which DNS alone can show control over.
pub(super) fn can_order_wildcards(draft: &Draft) -> bool {
    let default = draft.acme.challenges.is_none() && has_provider(draft.dns.as_ref());
    let proves_wildcards = |one: &Located<ChallengeType>| one.value.proves_wildcards();
    default || written_challenges(draft).any(proves_wildcards)
}

pub(super) fn wildcard_problem(name: &Name) -> Problem {
    Problem::new(format!(
        "a certificate for the wildcard {name} needs the challenge dns-01, which is not configured"
    ))
    .help(
        "add [acme.dns] with your DNS provider; or list the hosts one by one, or set \
         tls = \"files\" with a certificate of your own, or tls = \"internal\"",
    )
}

pub(super) fn check(draft: &Draft, report: &Report<'_>) {
    check_directories_differ(draft, report);
    check_dns(draft, report);
}

fn check_directories_differ(draft: &Draft, report: &Report<'_>) {
    let first = match &draft.acme.directory {
        Some(url) => (url.value.as_str(), Some(url.at)),
        None => (DEFAULT_DIRECTORY, None),
    };
    let mut seen = HashMap::from([first]);
    for url in draft.fallbacks.iter().filter_map(|f| f.directory.as_ref()) {
        if let Some(first) = seen.insert(&url.value, Some(url.at)) {
            let whence = match first {
                Some(at) => report.source.reference(at),
                None => "the default of [acme]".to_owned(),
            };
            let problem = Problem::new(format!(
                "the directory {:?} is already in use ({whence})",
                url.value
            ));
            report.add(url.at, problem.help("a fallback needs a CA of its own"));
        }
    }
}

/// The addresses of a site that an ACME CA is to issue for.
pub(super) fn orders_addresses(site: &SiteDraft) -> impl Iterator<Item = &Located<Name>> {
    let orders = match site.tls.as_ref().map(|tls| tls.value) {
        Some(TlsMode::Acme) => |_: &Name| true,
        Some(TlsMode::Auto) => |host: &Name| !host.is_private(),
        _ => |_: &Name| false,
    };
    let hosts = site.hosts.iter();
    hosts.filter(move |host| matches!(host.value, Name::Ip(_)) && orders(&host.value))
}

/// DNS cannot show control over an address (RFC 8738).
pub(super) fn check_addresses(site: &SiteDraft, draft: &Draft, report: &Report<'_>) {
    let mut written = written_challenges(draft).peekable();
    let possible = written.peek().is_none() || written.any(|one| one.value.proves_addresses());
    for host in orders_addresses(site).filter(|_| !possible) {
        let problem = Problem::new(format!(
            "a certificate for the address {} needs tls-alpn-01 or http-01, and `challenges` has neither",
            host.value
        ));
        report.add(host.at, problem.help("add \"tls-alpn-01\" to `challenges`"));
    }
}

/// A name that DNS-01 alone can prove needs somebody who writes its records.
pub(super) fn check_providers(site: &SiteDraft, draft: &Draft, report: &Report<'_>) {
    let Some(dns) = draft
        .dns
        .as_ref()
        .filter(|dns| has_provider(Some(dns)) && dns.is_whole)
    else {
        return;
    };
    let orders = |host: &Name| match site.tls.as_ref().map(|tls| tls.value) {
        _ if site.on_demand_at().is_some() => false,
        Some(TlsMode::Acme) => true,
        Some(TlsMode::Auto) => !host.is_private() && !draft.certificates.has_sources,
        _ => false,
    };
    for host in site.hosts.iter().filter(|host| orders(&host.value)) {
        let (name, is_wildcard) = match &host.value {
            Name::Dns(name) => (name, false),
            Name::Wildcard(parent) => (parent, true),
            Name::Ip(_) => continue,
        };
        let can_prove = |kind: ChallengeType| match kind {
            ChallengeType::Dns01 => dns.dns.writes_for(name),
            ChallengeType::DnsPersist01 => true,
            ChallengeType::Http01 | ChallengeType::TlsAlpn01 => !is_wildcard,
        };
        let mut challenges = effective_challenges(draft).into_iter();
        if !challenges.any(can_prove) {
            report.add(host.at, no_provider(&dns.dns, &host.value, name));
        }
    }
}

fn no_provider(dns: &Dns, host: &Name, name: &str) -> Problem {
    let zones = dns.zones_of(name).and_then(|index| dns.zones.get(index));
    match zones {
        Some(zones) => Problem::new(format!(
            "a certificate for {host} needs dns-01, and the DNS provider {:?} has no account for {name}",
            zones.writer.name()
        ))
        .help(format!(
            "register one under \"{name}\" in its accounts_file, and lead _acme-challenge.{name} there by a CNAME"
        )),
        None => Problem::new(format!(
            "a certificate for {host} needs dns-01, and no DNS provider is for {name}"
        ))
        .help(format!(
            "add \"{name}\" to `domains` of a provider in [[acme.dns.providers]], or a `provider` for everything else to [acme.dns]"
        )),
    }
}

/// Those of all CAs together.
fn effective_challenges(draft: &Draft) -> Vec<ChallengeType> {
    let default = default_challenges(has_provider(draft.dns.as_ref()));
    let written = written_challenges(draft).map(|one| one.value);
    match draft.acme.challenges {
        Some(_) => written.collect(),
        None => default.into_iter().chain(written).collect(),
    }
}

/// DNS-01 and the provider that it needs come together or not at all.
fn check_dns(draft: &Draft, report: &Report<'_>) {
    let dns01 = |one: &&Located<ChallengeType>| one.value == ChallengeType::Dns01;
    let wanted = written_challenges(draft).find(dns01);
    let provider_at = draft.dns.as_ref().and_then(|dns| dns.provider_at);
    match (wanted, provider_at) {
        (Some(wanted), None) => {
            let problem = Problem::new("the challenge dns-01 needs a DNS provider");
            report.add(
                wanted.at,
                problem.help("add [acme.dns] with provider = \"...\" and its keys"),
            );
        }
        (None, Some(at)) if draft.acme.challenges.is_some() => {
            let problem = Problem::new(
                "[acme.dns] has a provider, but no CA has dns-01 among its `challenges`",
            );
            report.add(at, problem.help("add \"dns-01\" to `challenges` in [acme]"));
        }
        _ => {}
    }
}
