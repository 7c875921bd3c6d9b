//! The TLS options beside certificates, from draft to configuration: session tickets, client
//! authentication, TLS towards upstreams; what of them does not fit together, and their files.

use std::path::PathBuf;

use super::assemble::check_paths_differ;
use super::diagnostic::{Located, Problem, Report};
use super::draft::{ActionDraft, ClientAuthDraft, Draft, SiteDraft, TlsDraft, UpstreamTlsDraft};
use super::file_check::FilePurpose;
use super::{ClientAuth, ClientIdentity, Member, Tls, TlsMode, UpstreamTls};

pub(super) fn tls(draft: TlsDraft) -> Tls {
    let files = draft.session_ticket_key_files.into_iter();
    let rotation = draft.session_ticket_rotation;
    let default = Tls::default();
    Tls {
        session_ticket_key_files: files.map(|path| path.value).collect(),
        session_ticket_rotation: rotation
            .map_or(default.session_ticket_rotation, |rotation| rotation.value),
        resume_after_swap: draft.resume_after_swap.unwrap_or(default.resume_after_swap),
    }
}

/// Nothing where `ca` is missing, which is reported.
pub(super) fn client_auth(draft: ClientAuthDraft) -> Option<ClientAuth> {
    Some(ClientAuth {
        ca: draft.ca?.value,
        crl: draft.crl.map(|path| path.value),
        mode: draft.mode,
    })
}

pub(super) fn upstream(draft: UpstreamTlsDraft) -> UpstreamTls {
    let private_key = draft.private_key;
    let identity = draft.certificate.map(|certificate| ClientIdentity {
        private_key: private_key.map_or_else(|| certificate.value.clone(), |key| key.value),
        certificate: certificate.value,
    });
    UpstreamTls {
        ca: draft.ca.map(|path| path.value),
        identity,
        server_name: draft.server_name,
        verify: draft.verify.is_none_or(|verify| verify.value),
    }
}

pub(super) fn check(draft: &Draft, report: &Report<'_>) {
    let tls = &draft.tls;
    let keys = tls.session_ticket_key_files.iter();
    check_paths_differ("session ticket key", keys, report);
    if let Some(rotation) = &tls.session_ticket_rotation
        && !tls.session_ticket_key_files.is_empty()
    {
        let problem = Problem::new(
            "`session_ticket_rotation` has no effect: the keys come from `session_ticket_key_files`",
        );
        report.add(
            rotation.at,
            problem.help("remove one of the two; keys from files change when the files do"),
        );
    }
    for site in &draft.sites {
        check_client_auth(site, report);
        check_upstream_tls(site, report);
    }
}

fn check_client_auth(site: &SiteDraft, report: &Report<'_>) {
    let off = site
        .tls
        .as_ref()
        .is_some_and(|tls| tls.value == TlsMode::Off);
    if let Some(auth) = site.client_auth.as_ref().filter(|_| off) {
        let problem = Problem::new("`client_auth` needs TLS, but this site has tls = \"off\"");
        report.add(auth.at, problem.help("remove one of the two"));
    }
}

fn check_upstream_tls(site: &SiteDraft, report: &Report<'_>) {
    if let Some(tls) = &site.upstream_tls {
        let inherited = site.routes.iter().filter(|r| r.upstream_tls.is_none());
        let inherited = inherited.flat_map(|route| &route.action);
        let all = site.action.iter().chain(inherited);
        check_one_upstream_tls(tls, all.flat_map(ActionDraft::members), report);
    }
    for route in &site.routes {
        if let Some(tls) = &route.upstream_tls {
            let upstreams = route.action.iter().flat_map(ActionDraft::members);
            check_one_upstream_tls(tls, upstreams, report);
        }
    }
}

fn check_one_upstream_tls<'u>(
    tls: &Located<UpstreamTlsDraft>,
    mut members: impl Iterator<Item = &'u Member>,
    report: &Report<'_>,
) {
    if !members.any(|member| member.upstream.is_tls()) {
        let problem = Problem::new("`upstream_tls` is set, but no upstream here has TLS");
        report.add(
            tls.at,
            problem.help("write the upstream as https://host:port, or h2://host:port"),
        );
    }
    let draft = &tls.value;
    if let (Some(key), None) = (&draft.private_key, &draft.certificate) {
        let problem = Problem::new("`private_key` is set, but no `certificate` that it is for");
        report.add(key.at, problem.help("add certificate = \"FILE\""));
    }
    if let (Some(verify), Some(_)) = (&draft.verify, &draft.ca)
        && !verify.value
    {
        let problem = Problem::new("`ca` has no effect: verify = false trusts anybody");
        report.add(verify.at, problem.help("remove verify = false"));
    }
}

/// The files that the options name.
pub(super) fn files(draft: &Draft) -> impl Iterator<Item = (FilePurpose, &Located<PathBuf>)> {
    let keys = draft.tls.session_ticket_key_files.iter();
    let upstream = draft.sites.iter().flat_map(|site| {
        let routes = site.routes.iter().flat_map(|route| &route.upstream_tls);
        site.upstream_tls.iter().chain(routes)
    });
    keys.map(|path| (FilePurpose::SessionTicketKey, path))
        .chain(draft.sites.iter().flat_map(client_auth_files))
        .chain(upstream.flat_map(|tls| upstream_files(&tls.value)))
}

fn client_auth_files(site: &SiteDraft) -> impl Iterator<Item = (FilePurpose, &Located<PathBuf>)> {
    site.client_auth.iter().flat_map(|auth| {
        let ca = auth.value.ca.iter();
        ca.map(|path| (FilePurpose::ClientCa, path)).chain(
            auth.value
                .crl
                .iter()
                .map(|path| (FilePurpose::ClientCrl, path)),
        )
    })
}

fn upstream_files(
    draft: &UpstreamTlsDraft,
) -> impl Iterator<Item = (FilePurpose, &Located<PathBuf>)> {
    let key = draft.private_key.as_ref().or(draft.certificate.as_ref());
    [
        (FilePurpose::UpstreamCa, draft.ca.as_ref()),
        (FilePurpose::UpstreamCertificate, draft.certificate.as_ref()),
        (FilePurpose::UpstreamPrivateKey, key),
    ]
    .into_iter()
    .filter_map(|(purpose, path)| Some((purpose, path?)))
}
