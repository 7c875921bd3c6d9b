//! From a [`Config`] to the TLS files it names and what each of them turns into: whom clients and
//! upstreams are verified against, what upstreams are shown, who is asked about requests, which keys
//! encrypt session tickets.

use std::collections::{BTreeMap, HashMap};
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
use crate::listener::tls::{SessionPolicy, Sessions};
use crate::proxy::forward_auth::AuthClient;
use crate::proxy::upstream_tls::{UpstreamCa, UpstreamIdentity, UpstreamTrusts};

/// What the listener and the proxy are given, and the thread that keeps it up to date.
pub struct Trust {
    pub files: TlsFiles,
    pub sessions: Sessions,
    pub upstreams: UpstreamTrusts,
    cells: Cells,
}

impl Trust {
    /// Reads every file once and watches them from then on.
    pub fn start(config: &Config) -> Result<(Trust, JoinHandle<()>), AppError> {
        let tickets = SessionTickets::new(config.tls.session_ticket_rotation, clock::now())?;
        let Plan {
            cells,
            sets,
            policy,
            upstreams,
        } = Plan::new(config, &tickets, &Cells::default());
        let rotating = tickets.clone();
        let (files, thread) = TlsFiles::start(
            sets,
            Box::new(move |now| rotating.rotate(now)),
            config.certificates.poll_interval,
            config.certificates.watch,
        )?;
        let policy = Arc::new(ArcSwap::from_pointee(policy));
        let trust = Trust {
            files,
            sessions: Sessions { tickets, policy },
            upstreams,
            cells,
        };
        Ok((trust, thread))
    }

    /// Changes over to another configuration. Files that both name keep their last good content;
    /// new ones are read before anything depends on them. `upstreams` is for the new routing.
    pub async fn reconfigure(&mut self, config: &Config) -> Result<(), AppError> {
        let tickets = &self.sessions.tickets;
        let plan = Plan::new(config, tickets, &self.cells);
        let tls = &config.tls;
        tickets.set_rotation(tls.session_ticket_rotation);
        self.files.replace(plan.sets).await;
        if tls.session_ticket_key_files.is_empty() {
            tickets.leave_files(clock::now())?;
        }
        self.sessions.policy.store(Arc::new(plan.policy));
        self.upstreams = plan.upstreams;
        self.cells = plan.cells;
        Ok(())
    }
}

/// Where the contents of files are published. One for each combination of files, whoever uses it:
/// it outlives a change of the configuration.
#[derive(Default)]
struct Cells {
    clients: BTreeMap<ClientFiles, Arc<ArcSwapOption<ClientTrust>>>,
    upstream_cas: BTreeMap<PathBuf, Arc<ArcSwapOption<UpstreamCa>>>,
    identities: BTreeMap<ClientIdentity, Arc<ArcSwapOption<UpstreamIdentity>>>,
    auth: BTreeMap<PathBuf, Arc<ArcSwapOption<AuthClient>>>,
}

/// The bundle and the revocation lists.
type ClientFiles = (PathBuf, Option<PathBuf>);

/// What a configuration comes to.
struct Plan {
    cells: Cells,
    sets: Vec<FileSet>,
    policy: SessionPolicy,
    upstreams: UpstreamTrusts,
}

impl Plan {
    fn new(config: &Config, tickets: &SessionTickets, before: &Cells) -> Plan {
        let cells = Cells::new(config, before);
        let clients = cells.clients.iter();
        let clients = clients.map(|(files, cell)| client_trust(files, cell.clone()));
        let cas = cells.upstream_cas.iter();
        let cas = cas.map(|(path, cell)| upstream_ca(path.clone(), cell.clone()));
        let identities = cells.identities.iter();
        let identities = identities.map(|(files, cell)| upstream_identity(files, cell.clone()));
        let auth = cells.auth.iter();
        let auth = auth.map(|(path, cell)| forward_auth_ca(path.clone(), cell.clone()));
        let sets = clients.chain(cas).chain(identities).chain(auth);
        let upstreams = UpstreamTrusts::new(
            config,
            |path| cells.upstream_cas.get(path).cloned().unwrap_or_default(),
            |files| cells.identities.get(files).cloned().unwrap_or_default(),
            cells.auth.clone(),
        );
        warn_of_unverified(&upstreams);
        Plan {
            sets: sets.chain(ticket_keys(config, tickets)).collect(),
            policy: SessionPolicy {
                resume_after_swap: config.tls.resume_after_swap,
                client_auth: client_auth(config, &cells),
            },
            upstreams,
            cells,
        }
    }
}

impl Cells {
    fn new(config: &Config, before: &Cells) -> Cells {
        let mut cells = Cells::default();
        for site in &config.sites {
            if let Some(auth) = &site.client_auth {
                let files = (auth.ca.clone(), auth.crl.clone());
                let cell = before.clients.get(&files).cloned().unwrap_or_default();
                cells.clients.insert(files, cell);
            }
            let asked = site.routes.iter().map(|route| &route.access.forward_auth);
            for path in asked.flatten().filter_map(|auth| auth.ca.as_ref()) {
                let cell = before.auth.get(path).cloned().unwrap_or_default();
                cells.auth.insert(path.clone(), cell);
            }
            for tls in site.routes.iter().filter_map(|r| r.upstream_tls()) {
                if let Some(path) = &tls.ca {
                    let cell = before.upstream_cas.get(path).cloned().unwrap_or_default();
                    cells.upstream_cas.insert(path.clone(), cell);
                }
                if let Some(files) = &tls.identity {
                    let cell = before.identities.get(files).cloned().unwrap_or_default();
                    cells.identities.insert(files.clone(), cell);
                }
            }
        }
        cells
    }
}

/// The files that could not be used and why, for `perennial check`.
pub fn wrong(config: &Config) -> Vec<(PathBuf, String)> {
    let now = clock::now();
    let Ok(tickets) = SessionTickets::new(config.tls.session_ticket_rotation, now) else {
        return Vec::new();
    };
    let plan = Plan::new(config, &tickets, &Cells::default());
    let wrong = plan.sets.iter().filter_map(|set| set.check(now).err());
    wrong.collect()
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

/// Sites with equal settings share connections and sessions.
fn client_auth(config: &Config, cells: &Cells) -> ClientAuthTable {
    let mut known: HashMap<&ClientAuth, Arc<SiteClientAuth>> = HashMap::new();
    let mut hosts = Vec::new();
    for site in &config.sites {
        let auth = site.client_auth.as_ref().map(|auth| {
            let shared = known.entry(auth).or_insert_with(|| {
                let files = (auth.ca.clone(), auth.crl.clone());
                let trust = cells.clients.get(&files).cloned().unwrap_or_default();
                Arc::new(SiteClientAuth::new(auth.clone(), trust))
            });
            shared.clone()
        });
        hosts.extend(site.hosts.iter().map(|host| (host, auth.clone())));
    }
    ClientAuthTable::new(hosts.into_iter())
}

fn client_trust(files: &ClientFiles, trust: Arc<ArcSwapOption<ClientTrust>>) -> FileSet {
    let ca = (Purpose::ClientCa, files.0.clone());
    let crl = files.1.clone().map(|path| (Purpose::ClientCrl, path));
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

/// Without names or identities to show: a client that trusts these authorities is all there is.
fn forward_auth_ca(path: PathBuf, slot: Arc<ArcSwapOption<AuthClient>>) -> FileSet {
    FileSet::new(vec![(Purpose::ForwardAuthCa, path)], move |contents, _| {
        let bundle = Bundle::parse(&contents[0]).map_err(|cause| fault(0, cause))?;
        let fresh = AuthClient::trusting(&contents[0]).map_err(|cause| fault(0, cause))?;
        let slot = slot.clone();
        Ok(Parsed {
            weight: bundle.certificates.len(),
            not_after: vec![bundle.not_after],
            publish: Box::new(move || slot.store(Some(Arc::new(fresh)))),
        })
    })
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn ca() -> String {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::default();
        params.self_signed(&key).unwrap().pem()
    }

    fn config(folder: &Path, rest: &str) -> Config {
        let site = "[[sites]]\nhosts = [\"a.test\"]\nupstreams = [\"3000\"]\n";
        let text = format!("[certificates]\nwatch = false\n{rest}\n{site}");
        let file = folder.join("p.toml");
        std::fs::write(&file, text).unwrap();
        Config::load(&file).unwrap_or_else(|error| panic!("{error}"))
    }

    fn closed(host: &str, rest: &str) -> String {
        format!(
            "[[sites]]\nhosts = [\"{host}\"]\nupstreams = [\"3000\"]\nclient_auth = {{ {rest} }}\n"
        )
    }

    #[tokio::test]
    async fn another_configuration_keeps_the_last_good_content_of_files_that_it_shares() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (folder.path().join("one.pem"), folder.path().join("two.pem"));
        std::fs::write(&one, ca()).unwrap();
        std::fs::write(&two, ca()).unwrap();
        let before = closed("b.test", "ca = \"one.pem\"");
        let (mut trust, thread) = Trust::start(&config(folder.path(), &before)).unwrap();
        std::fs::write(&one, "broken").unwrap();
        trust.files.rescan().await;
        let after = [
            closed("b.test", "ca = \"one.pem\", mode = \"request\""),
            closed("c.test", "ca = \"two.pem\""),
        ];
        let after = config(folder.path(), &after.concat());
        trust.reconfigure(&after).await.unwrap();
        let report = trust.files.report();
        assert_eq!(report.len(), 2);
        assert!(report.iter().all(|file| file.loaded_at.is_some()));
        assert!(
            trust
                .cells
                .clients
                .values()
                .all(|cell| cell.load().is_some())
        );
        let local = "192.0.2.1".parse().unwrap();
        let policy = trust.sessions.policy.load();
        for (host, wanted) in [("a.test", false), ("b.test", true), ("c.test", true)] {
            let auth = policy.client_auth.get(Some(host), local);
            assert_eq!(auth.is_some(), wanted, "{host}");
        }
        trust.reconfigure(&config(folder.path(), "")).await.unwrap();
        assert!(trust.files.report().is_empty());
        trust.files.stop();
        thread.join().unwrap();
    }
}
