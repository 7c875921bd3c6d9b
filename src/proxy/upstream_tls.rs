//! TLS towards upstreams: whom to trust, what to show, which name to ask for. The files behind it
//! may change at any time: each request takes what is in service when it dials.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use boring::x509::X509;
use pingora::protocols::tls::SslDigest;
use pingora::upstreams::peer::HttpPeer;
use pingora::utils::tls::CertKey;
use pingora::{Error, ErrorType, Result};

use super::forward_auth::AuthClient;
use crate::certificate::anchors::{Bundle, Identity};
use crate::certificate::name::Name;
use crate::config::{ClientIdentity, Config, UpstreamTls};

/// The authorities that an upstream's certificate may come from.
pub struct UpstreamCa {
    certificates: Arc<Box<[X509]>>,
    version: u64,
}

impl UpstreamCa {
    /// `version` changes with the content.
    pub fn new(bundle: Bundle, version: u64) -> UpstreamCa {
        UpstreamCa {
            certificates: Arc::new(bundle.certificates.into()),
            version,
        }
    }
}

/// A client certificate for upstreams.
pub struct UpstreamIdentity {
    certificate: Arc<CertKey>,
    version: u64,
}

impl UpstreamIdentity {
    /// `version` changes with the content.
    pub fn new(identity: Identity, version: u64) -> UpstreamIdentity {
        UpstreamIdentity {
            certificate: Arc::new(CertKey::new(identity.certificates, identity.key)),
            version,
        }
    }
}

/// One `upstream_tls` and what its files hold.
pub struct UpstreamTrust {
    pub settings: UpstreamTls,
    ca: Arc<ArcSwapOption<UpstreamCa>>,
    identity: Arc<ArcSwapOption<UpstreamIdentity>>,
}

impl UpstreamTrust {
    fn new(
        settings: UpstreamTls,
        ca: Arc<ArcSwapOption<UpstreamCa>>,
        identity: Arc<ArcSwapOption<UpstreamIdentity>>,
    ) -> UpstreamTrust {
        UpstreamTrust {
            settings,
            ca,
            identity,
        }
    }

    /// Fills in what is in service now.
    pub fn apply(&self, peer: &mut HttpPeer) {
        if self.settings.ca.is_some() {
            // Without a bundle that could be read nobody is trusted, the system's CAs least of all.
            peer.options.ca = Some(match &*self.ca.load() {
                Some(ca) => ca.certificates.clone(),
                None => Arc::default(),
            });
        }
        if let Some(identity) = &*self.identity.load() {
            peer.client_cert_key = Some(identity.certificate.clone());
        }
    }

    /// Changes with what [`UpstreamTrust::apply`] fills in: kept connections that were made under
    /// anything else are left alone.
    pub fn version(&self) -> u64 {
        let ca = self.ca.load().as_ref().map(|ca| ca.version);
        let identity = self
            .identity
            .load()
            .as_ref()
            .map(|identity| identity.version);
        let mut hasher = DefaultHasher::new();
        (ca, identity).hash(&mut hasher);
        hasher.finish()
    }
}

/// Every different `upstream_tls` of a configuration, and every `ca` of its `forward_auth`.
#[derive(Clone, Default)]
pub struct UpstreamTrusts {
    upstreams: HashMap<UpstreamTls, Arc<UpstreamTrust>>,
    auth: BTreeMap<PathBuf, Arc<ArcSwapOption<AuthClient>>>,
}

impl UpstreamTrusts {
    /// `ca`, `identity` and `auth` are where the contents of files are, or will be.
    pub fn new(
        config: &Config,
        ca: impl Fn(&Path) -> Arc<ArcSwapOption<UpstreamCa>>,
        identity: impl Fn(&ClientIdentity) -> Arc<ArcSwapOption<UpstreamIdentity>>,
        auth: BTreeMap<PathBuf, Arc<ArcSwapOption<AuthClient>>>,
    ) -> UpstreamTrusts {
        let routes = config.sites.iter().flat_map(|site| &site.routes);
        let all = routes.filter_map(|route| route.upstream_tls());
        let trust = |settings: &UpstreamTls| {
            let ca = settings.ca.as_deref().map(&ca).unwrap_or_default();
            let identity = settings.identity.as_ref().map(&identity);
            let trust = UpstreamTrust::new(settings.clone(), ca, identity.unwrap_or_default());
            (settings.clone(), Arc::new(trust))
        };
        UpstreamTrusts {
            upstreams: all.map(trust).collect(),
            auth,
        }
    }

    pub fn get(&self, settings: &UpstreamTls) -> Option<Arc<UpstreamTrust>> {
        self.upstreams.get(settings).cloned()
    }

    /// Who is asked by `forward_auth` with this bundle of authorities.
    pub fn auth(&self, ca: &Path) -> Arc<ArcSwapOption<AuthClient>> {
        self.auth.get(ca).cloned().unwrap_or_default()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<UpstreamTrust>> {
        self.upstreams.values()
    }
}

/// How to talk TLS to one upstream.
#[derive(Clone)]
pub struct TlsTransport {
    /// Asked for and verified.
    server_name: Name,
    trust: Option<Arc<UpstreamTrust>>,
}

/// The name that is asked for, and the settings. Connections of one are none of another.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct TlsTerms(Name, Option<UpstreamTls>);

/// What the certificate of a connection is not good for.
struct WrongAddress(IpAddr);

impl TlsTransport {
    /// For an upstream's `host`, unless the settings name another server.
    pub fn new(host: Name, trust: Option<Arc<UpstreamTrust>>) -> TlsTransport {
        let named = trust
            .as_ref()
            .and_then(|trust| trust.settings.server_name.clone());
        TlsTransport {
            server_name: named.unwrap_or(host),
            trust,
        }
    }

    pub fn server_name(&self) -> String {
        self.server_name.to_string()
    }

    /// What connections are made under that does not change with the files.
    pub fn terms(&self) -> TlsTerms {
        let settings = self.trust.as_ref().map(|trust| trust.settings.clone());
        TlsTerms(self.server_name.clone(), settings)
    }

    /// What does not change with the files.
    pub fn prepare(&self, peer: &mut HttpPeer) {
        if self
            .trust
            .as_ref()
            .is_some_and(|trust| !trust.settings.verify)
        {
            peer.options.verify_cert = false;
            peer.options.verify_hostname = false;
        } else if let Name::Ip(ip) = self.server_name {
            // Pingora compares the name with DNS names alone. The chain it verifies; the address
            // is compared here, and `verify_address` ends the connection before it is used.
            peer.options.verify_hostname = false;
            peer.options.upstream_tls_handshake_complete_hook = Some(Arc::new(move |ssl| {
                let certificate = ssl.peer_certificate();
                let fits = certificate
                    .and_then(|certificate| certificate.check_ip_asc(&ip.to_string()).ok());
                match fits {
                    Some(true) => None,
                    _ => Some(Arc::new(WrongAddress(ip))),
                }
            }));
        }
    }

    /// What does.
    pub fn apply(&self, peer: &mut HttpPeer) {
        if let Some(trust) = &self.trust {
            trust.apply(peer);
        }
    }

    /// Changes with what [`TlsTransport::apply`] fills in.
    pub fn version(&self) -> u64 {
        self.trust.as_ref().map_or(0, |trust| trust.version())
    }
}

/// Refuses a connection whose certificate is not for the address that was dialled. Nothing has
/// been sent on it yet.
pub fn verify_address(tls: Option<&SslDigest>) -> Result<()> {
    match tls.and_then(|tls| tls.extension.get::<WrongAddress>()) {
        None => Ok(()),
        Some(wrong) => {
            let ip = wrong.0;
            Err(Error::explain(
                ErrorType::InvalidCert,
                format!("the upstream's certificate is not for the address {ip}"),
            )
            .into_up())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trust(ca: Option<&str>, verify: bool) -> Arc<UpstreamTrust> {
        let settings = UpstreamTls {
            ca: ca.map(Into::into),
            identity: None,
            server_name: Some("name.test".parse().unwrap()),
            verify,
        };
        Arc::new(UpstreamTrust::new(settings, Arc::default(), Arc::default()))
    }

    fn peer(host: &str, trust: Option<&Arc<UpstreamTrust>>) -> HttpPeer {
        let transport = TlsTransport::new(host.parse().unwrap(), trust.cloned());
        let mut peer = HttpPeer::new("192.0.2.1:443", true, transport.server_name());
        transport.prepare(&mut peer);
        transport.apply(&mut peer);
        peer
    }

    fn bundle() -> Bundle {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["ca.test".to_owned()]).unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Bundle::parse(certificate.pem().as_bytes()).unwrap()
    }

    #[test]
    fn names_are_verified_unless_it_says_otherwise() {
        let verified = peer("a.test", Some(&trust(None, true)));
        assert_eq!(verified.sni, "name.test");
        assert!(verified.options.verify_cert && verified.options.verify_hostname);
        let unverified = peer("a.test", Some(&trust(None, false)));
        assert_eq!(unverified.sni, "name.test");
        assert!(!unverified.options.verify_cert && !unverified.options.verify_hostname);
    }

    #[test]
    fn addresses_are_verified_in_the_handshake() {
        let peer = peer("192.0.2.1", None);
        assert!(peer.options.verify_cert && !peer.options.verify_hostname);
        assert!(peer.options.upstream_tls_handshake_complete_hook.is_some());
    }

    #[test]
    fn a_bundle_that_was_never_read_trusts_nobody() {
        let peer = peer("a.test", Some(&trust(Some("ca.pem"), true)));
        assert!(peer.options.ca.unwrap().is_empty());
    }

    #[test]
    fn connections_are_kept_for_what_they_were_made_under() {
        let trust = trust(Some("ca.pem"), true);
        let mut versions = vec![trust.version()];
        for version in [1, 2] {
            trust
                .ca
                .store(Some(Arc::new(UpstreamCa::new(bundle(), version))));
            versions.push(trust.version());
            assert_eq!(trust.version(), versions[versions.len() - 1]);
        }
        let count = versions.len();
        versions.sort_unstable();
        versions.dedup();
        assert_eq!(versions.len(), count);
    }
}
