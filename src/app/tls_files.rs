//! From a [`Config`] to the TLS files it names and what each of them turns into: whom clients and
//! upstreams are verified against, what upstreams are shown, which keys encrypt session tickets.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use arc_swap::{ArcSwap, ArcSwapOption};
use boring::sha::Sha256;

use super::AppError;
use crate::certificate::anchors::{Bundle, Identity, RevocationLists};
use crate::certificate::observe::Digest;
use crate::certificate::trust::{Fault, FileSet, Parsed, Purpose, TlsFiles};
use crate::clock;
use crate::config::{ClientAuth, ClientIdentity, Config};
use crate::listener::client_auth::{ClientAuthTable, ClientTrust, SiteClientAuth};
use crate::listener::tickets::{SessionTickets, TicketKey, TicketKeys};
use crate::listener::tls::Sessions;
use crate::proxy::upstream_tls::{UpstreamCa, UpstreamIdentity, UpstreamTrust, UpstreamTrusts};

/// What the listener and the proxy are given, and the thread that keeps it up to date.
pub struct Trust {
    pub files: TlsFiles,
    pub sessions: Sessions,
    pub upstreams: UpstreamTrusts,
}

impl Trust {
    /// Reads every file once and watches them from then on.
    pub fn start(config: &Config) -> Result<(Trust, JoinHandle<()>), AppError> {
        let now = clock::now();
        let tickets = SessionTickets::new(config.tls.session_ticket_rotation, now)?;
        let upstreams = UpstreamTrusts::new(config);
        let (mut sets, table) = client_auth(config);
        sets.extend(ticket_keys(config, &tickets));
        sets.extend(upstreams.iter().flat_map(|trust| upstream(trust)));
        warn_of_unverified(&upstreams);
        let rotating = tickets.clone();
        let (files, thread) = TlsFiles::start(
            sets,
            Box::new(move |now| rotating.rotate(now)),
            config.certificates.poll_interval,
            config.certificates.watch,
        )?;
        let sessions = Sessions {
            tickets,
            resume_after_swap: config.tls.resume_after_swap,
            client_auth: Arc::new(ArcSwap::from_pointee(table)),
        };
        let trust = Trust {
            files,
            sessions,
            upstreams,
        };
        Ok((trust, thread))
    }
}

/// The files that could not be used and why, for `perennial check`.
pub fn wrong(config: &Config) -> Vec<(PathBuf, String)> {
    let now = clock::now();
    let upstreams = UpstreamTrusts::new(config);
    let (mut sets, _) = client_auth(config);
    sets.extend(upstreams.iter().flat_map(|trust| upstream(trust)));
    if let Ok(tickets) = SessionTickets::new(config.tls.session_ticket_rotation, now) {
        sets.extend(ticket_keys(config, &tickets));
    }
    sets.iter().filter_map(|set| set.check(now).err()).collect()
}

fn warn_of_unverified(upstreams: &UpstreamTrusts) {
    if upstreams.iter().any(|trust| !trust.settings.verify) {
        tracing::warn!(
            "verify = false in an upstream_tls: its upstreams' certificates are not verified, and \
             whoever is on the way to them can read and change everything"
        );
    }
}

fn ticket_keys(config: &Config, tickets: &SessionTickets) -> Option<FileSet> {
    let paths = &config.tls.session_ticket_key_files;
    if paths.is_empty() {
        return None;
    }
    let files = paths.iter().cloned();
    let files = files.map(|path| (Purpose::SessionTicketKey, path));
    let tickets = tickets.clone();
    Some(FileSet::new(files.collect(), move |contents, _| {
        let parse = |(file, bytes): (usize, &Vec<u8>)| {
            TicketKey::parse(bytes).map_err(|error| fault(file, error.to_string()))
        };
        let keys: Vec<_> = contents
            .iter()
            .enumerate()
            .map(parse)
            .collect::<Result<_, _>>()?;
        let tickets = tickets.clone();
        Ok(Parsed {
            weight: keys.len(),
            not_after: vec![None; keys.len()],
            publish: Box::new(move || tickets.publish(TicketKeys::fixed(keys, clock::now()))),
        })
    }))
}

/// Sites with equal settings share one trust.
fn client_auth(config: &Config) -> (Vec<FileSet>, ClientAuthTable) {
    let mut sets = Vec::new();
    let mut known: HashMap<&ClientAuth, Arc<SiteClientAuth>> = HashMap::new();
    for auth in config
        .sites
        .iter()
        .filter_map(|site| site.client_auth.as_ref())
    {
        known.entry(auth).or_insert_with(|| {
            let trust = Arc::default();
            sets.push(client_trust(auth, &trust));
            Arc::new(SiteClientAuth::new(auth.clone(), trust))
        });
    }
    let hosts = config.sites.iter().flat_map(|site| {
        let auth = site.client_auth.as_ref().and_then(|auth| known.get(auth));
        site.hosts.iter().map(move |host| (host, auth.cloned()))
    });
    let table = ClientAuthTable::new(hosts);
    (sets, table)
}

fn client_trust(auth: &ClientAuth, trust: &Arc<ArcSwapOption<ClientTrust>>) -> FileSet {
    let ca = (Purpose::ClientCa, auth.ca.clone());
    let crl = auth.crl.clone().map(|path| (Purpose::ClientCrl, path));
    let trust = trust.clone();
    let files = std::iter::once(ca).chain(crl).collect();
    FileSet::new(files, move |contents, digests| {
        let bundle = Bundle::parse(&contents[0]).map_err(|cause| fault(0, cause))?;
        let lists = contents
            .get(1)
            .map(|bytes| RevocationLists::parse(bytes))
            .transpose()
            .map_err(|cause| fault(1, cause))?;
        let mut not_after = vec![bundle.not_after];
        not_after.extend(lists.as_ref().map(|lists| lists.next_update));
        let weight = bundle.certificates.len() + lists.as_ref().map_or(0, RevocationLists::len);
        let fresh = ClientTrust::new(bundle, lists.as_ref(), joined(digests))
            .map_err(|error| fault(0, format!("is refused by the TLS library: {error}")))?;
        let trust = trust.clone();
        Ok(Parsed {
            weight,
            not_after,
            publish: Box::new(move || trust.store(Some(Arc::new(fresh)))),
        })
    })
}

fn upstream(trust: &UpstreamTrust) -> Vec<FileSet> {
    let ca = trust.settings.ca.clone();
    let identity = trust.settings.identity.as_ref();
    let ca = ca.map(|path| upstream_ca(path, trust.ca.clone()));
    let identity = identity.map(|identity| upstream_identity(identity, trust.identity.clone()));
    ca.into_iter().chain(identity).collect()
}

fn upstream_ca(path: PathBuf, slot: Arc<ArcSwapOption<UpstreamCa>>) -> FileSet {
    FileSet::new(
        vec![(Purpose::UpstreamCa, path)],
        move |contents, digests| {
            let bundle = Bundle::parse(&contents[0]).map_err(|cause| fault(0, cause))?;
            let (weight, not_after) = (bundle.certificates.len(), vec![bundle.not_after]);
            let fresh = UpstreamCa::new(bundle, version(digests));
            let slot = slot.clone();
            Ok(Parsed {
                weight,
                not_after,
                publish: Box::new(move || slot.store(Some(Arc::new(fresh)))),
            })
        },
    )
}

fn upstream_identity(
    identity: &ClientIdentity,
    slot: Arc<ArcSwapOption<UpstreamIdentity>>,
) -> FileSet {
    let files = vec![
        (Purpose::UpstreamCertificate, identity.certificate.clone()),
        (Purpose::UpstreamPrivateKey, identity.private_key.clone()),
    ];
    FileSet::new(files, move |contents, digests| {
        let parsed = Identity::parse(&contents[0], &contents[1])
            .map_err(|error| fault(usize::from(error.in_key_file), error.cause))?;
        let (weight, not_after) = (parsed.certificates.len(), vec![parsed.not_after, None]);
        let fresh = UpstreamIdentity::new(parsed, version(digests));
        let slot = slot.clone();
        Ok(Parsed {
            weight,
            not_after,
            publish: Box::new(move || slot.store(Some(Arc::new(fresh)))),
        })
    })
}

fn fault(file: usize, cause: String) -> Fault {
    Fault { file, cause }
}

/// One checksum for the contents of all files, however they are divided.
fn joined(digests: &[Digest]) -> Digest {
    let mut hasher = Sha256::new();
    for digest in digests {
        hasher.update(digest);
    }
    hasher.finish()
}

fn version(digests: &[Digest]) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = joined(digests);
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}
