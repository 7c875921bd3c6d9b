//! Client certificates (mutual TLS): which site wants them, how they are verified, and that a
//! session made for one site is no way into another. Decides about handshakes; what a request may
//! reach over the connection is the proxy's to decide.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use boring::error::ErrorStack;
use boring::sha::Sha256;
use boring::ssl::{SslAlert, SslRef, SslVerifyError, SslVerifyMode};
use boring::stack::Stack;
use boring::x509::store::{X509Store, X509StoreBuilder};
use boring::x509::{X509, X509Ref, X509StoreContext, X509VerifyError};
use boring_sys as ffi;
use foreign_types::ForeignTypeRef;

use crate::certificate::anchors::{Bundle, RevocationLists, client_store};
use crate::certificate::certified_key::Fingerprint;
use crate::certificate::name::{self, Name};
use crate::config::{ClientAuth, ClientAuthMode};

/// More names of authorities than this are not sent to clients: the list is only a hint, and a
/// long one costs every handshake a few packets.
const MAX_HINTS: usize = 32;

/// What clients of one or more sites are verified against.
pub struct ClientTrust {
    store: X509Store,
    hints: Vec<X509>,
    /// Changes with the files: sessions made under others are not resumed.
    digest: [u8; 32],
}

impl ClientTrust {
    /// `digest` identifies the content of both files.
    pub fn new(
        bundle: Bundle,
        lists: Option<&RevocationLists>,
        digest: [u8; 32],
    ) -> Result<ClientTrust, ErrorStack> {
        let store = client_store(&bundle, lists)?;
        let mut hints = bundle.certificates;
        if hints.len() > MAX_HINTS {
            hints.clear();
        }
        Ok(ClientTrust {
            store,
            hints,
            digest,
        })
    }

    /// Trusts nobody.
    fn nobody() -> Result<ClientTrust, ErrorStack> {
        Ok(ClientTrust {
            store: X509StoreBuilder::new()?.build(),
            hints: Vec::new(),
            digest: [0; 32],
        })
    }

    fn verify(&self, leaf: &X509Ref, rest: Vec<X509>) -> Result<(), X509VerifyError> {
        self.try_verify(leaf, rest)
            // Out of memory; whatever it was, nothing was verified.
            .unwrap_or(Err(X509VerifyError::UNSPECIFIED))
    }

    fn try_verify(
        &self,
        leaf: &X509Ref,
        rest: Vec<X509>,
    ) -> Result<Result<(), X509VerifyError>, ErrorStack> {
        let mut chain = Stack::new()?;
        for certificate in rest {
            chain.push(certificate)?;
        }
        X509StoreContext::new()?.init(&self.store, leaf, &chain, |context| {
            Ok(match context.verify_cert()? {
                true => Ok(()),
                false => match context.verify_result() {
                    Err(error) => Err(error),
                    Ok(()) => Err(X509VerifyError::UNSPECIFIED),
                },
            })
        })
    }
}

/// A site's wish for client certificates and what it currently goes by.
pub struct SiteClientAuth {
    pub config: Arc<ClientAuth>,
    trust: Arc<ArcSwapOption<ClientTrust>>,
}

impl SiteClientAuth {
    /// Until something is stored in `trust` nobody is trusted: every certificate is refused.
    pub fn new(config: ClientAuth, trust: Arc<ArcSwapOption<ClientTrust>>) -> SiteClientAuth {
        SiteClientAuth {
            config: Arc::new(config),
            trust,
        }
    }

    fn trust(&self) -> Result<Arc<ClientTrust>, ErrorStack> {
        match self.trust.load_full() {
            Some(trust) => Ok(trust),
            None => ClientTrust::nobody().map(Arc::new),
        }
    }
}

/// Which server name wants which client certificates.
#[derive(Default)]
pub struct ClientAuthTable {
    /// Every host of every site, those without client authentication included: an exact name
    /// without it must hide a wildcard with it. Empty if no site has it.
    exact: HashMap<Box<str>, Option<Arc<SiteClientAuth>>>,
    wildcard: HashMap<Box<str>, Option<Arc<SiteClientAuth>>>,
    addresses: HashMap<IpAddr, Option<Arc<SiteClientAuth>>>,
}

impl ClientAuthTable {
    /// From all hosts of all sites.
    pub fn new<'n>(
        hosts: impl Iterator<Item = (&'n Name, Option<Arc<SiteClientAuth>>)>,
    ) -> ClientAuthTable {
        let mut table = ClientAuthTable::default();
        let mut wanted = false;
        for (host, auth) in hosts {
            wanted |= auth.is_some();
            match host {
                Name::Dns(name) => drop(table.exact.insert(Box::from(&**name), auth)),
                Name::Wildcard(parent) => drop(table.wildcard.insert(Box::from(&**parent), auth)),
                Name::Ip(ip) => drop(table.addresses.insert(*ip, auth)),
            }
        }
        match wanted {
            true => table,
            false => ClientAuthTable::default(),
        }
    }

    /// By the same rules as the certificate: the name in any case, with or without the trailing
    /// dot, the exact one before the wildcard; without a name the address that was dialled. Who gets
    /// the default certificate is asked for nothing, and reaches only sites that ask for nothing.
    pub fn get(&self, server_name: Option<&str>, local: IpAddr) -> Option<&Arc<SiteClientAuth>> {
        if self.exact.is_empty() && self.wildcard.is_empty() && self.addresses.is_empty() {
            return None;
        }
        let Some(name) = server_name else {
            return self.addresses.get(&local.to_canonical())?.as_ref();
        };
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        if let Some(exact) = self.exact.get(&*name) {
            return exact.as_ref();
        }
        if let Some(wildcard) = name::parent(&name).and_then(|parent| self.wildcard.get(parent)) {
            return wildcard.as_ref();
        }
        let ip = name.parse::<IpAddr>().ok()?;
        self.addresses.get(&ip.to_canonical())?.as_ref()
    }
}

/// What one handshake demands of its client.
#[derive(Clone)]
pub struct Demand {
    pub config: Arc<ClientAuth>,
    trust: Arc<ClientTrust>,
}

impl Demand {
    /// Asks the client of this handshake for its certificate.
    pub fn make(ssl: &mut SslRef, auth: &SiteClientAuth) -> Result<Demand, ErrorStack> {
        let trust = auth.trust()?;
        let mode = match auth.config.mode {
            ClientAuthMode::Require => SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT,
            ClientAuthMode::Request => SslVerifyMode::PEER,
        };
        let judge = trust.clone();
        ssl.set_custom_verify_callback(mode, move |ssl| {
            verify_peer(ssl, &judge).map_err(|error| SslVerifyError::Invalid(alert(error)))
        });
        for certificate in &trust.hints {
            // SAFETY: both are alive; the callee copies the subject's name.
            let added = unsafe { ffi::SSL_add_client_CA(ssl.as_ptr(), certificate.as_ptr()) };
            if added != 1 {
                return Err(ErrorStack::get());
            }
        }
        Ok(Demand {
            config: auth.config.clone(),
            trust,
        })
    }

    /// Whether the certificate of a resumed session would pass today. BoringSSL does not ask: a
    /// certificate or a revocation list may have expired since.
    pub fn still_met(&self, ssl: &SslRef) -> Result<(), X509VerifyError> {
        match (ssl.peer_certificate(), self.config.mode) {
            (None, ClientAuthMode::Request) => Ok(()),
            _ => verify_peer(ssl, &self.trust),
        }
    }
}

fn verify_peer(ssl: &SslRef, trust: &ClientTrust) -> Result<(), X509VerifyError> {
    let Some(leaf) = ssl.peer_certificate() else {
        return Err(X509VerifyError::UNSPECIFIED);
    };
    // On this side of a connection the chain comes without the leaf.
    let rest = ssl.peer_cert_chain().into_iter().flatten();
    trust.verify(&leaf, rest.map(|one| one.to_owned()).collect())
}

fn alert(error: X509VerifyError) -> SslAlert {
    match error {
        X509VerifyError::CERT_REVOKED => SslAlert::CERTIFICATE_REVOKED,
        X509VerifyError::CERT_HAS_EXPIRED | X509VerifyError::CERT_NOT_YET_VALID => {
            SslAlert::CERTIFICATE_EXPIRED
        }
        X509VerifyError::UNABLE_TO_GET_ISSUER_CERT
        | X509VerifyError::UNABLE_TO_GET_ISSUER_CERT_LOCALLY
        | X509VerifyError::UNABLE_TO_VERIFY_LEAF_SIGNATURE
        | X509VerifyError::SELF_SIGNED_CERT_IN_CHAIN
        | X509VerifyError::DEPTH_ZERO_SELF_SIGNED_CERT => SslAlert::UNKNOWN_CA,
        X509VerifyError::CERT_SIGNATURE_FAILURE => SslAlert::BAD_CERTIFICATE,
        _ => SslAlert::CERTIFICATE_UNKNOWN,
    }
}

/// The subject of the client's certificate, in RFC 4514's form as far as it is printable.
pub fn subject(ssl: &SslRef) -> Option<Arc<str>> {
    use x509_parser::prelude::{FromDer, X509Certificate};
    let der = ssl.peer_certificate()?.to_der().ok()?;
    let (_, certificate) = X509Certificate::from_der(&der).ok()?;
    Some(certificate.subject().to_string().into())
}

/// Ties the sessions of this handshake to what they were made under: a session resumes only where
/// the same is in force. `leaves` are the certificates it must not outlive; none if it may.
///
/// BoringSSL does not ask for which name a session was made, so without this a client that one
/// site let in would get into another with its ticket.
pub fn bind_sessions(
    ssl: &mut SslRef,
    demand: Option<&Demand>,
    leaves: impl Iterator<Item = Fingerprint>,
) -> Result<(), ErrorStack> {
    let mut hasher = Sha256::new();
    match demand {
        None => hasher.update(b"any client"),
        Some(demand) => {
            hasher.update(match demand.config.mode {
                ClientAuthMode::Require => b"require",
                ClientAuthMode::Request => b"request",
            });
            hasher.update(&demand.trust.digest);
        }
    }
    for leaf in leaves {
        hasher.update(&leaf.0);
    }
    let context = hasher.finish();
    // SAFETY: pointer and length describe `context`, which the callee copies; 32 bytes is the
    // longest it takes.
    let set =
        unsafe { ffi::SSL_set_session_id_context(ssl.as_ptr(), context.as_ptr(), context.len()) };
    match set {
        1 => Ok(()),
        _ => Err(ErrorStack::get()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn auth(ca: &str) -> Option<Arc<SiteClientAuth>> {
        let config = ClientAuth {
            ca: ca.into(),
            crl: None,
            mode: ClientAuthMode::Require,
        };
        Some(Arc::new(SiteClientAuth::new(config, Arc::default())))
    }

    fn found(table: &ClientAuthTable, name: Option<&str>) -> Option<String> {
        let local = "192.0.2.1".parse().unwrap();
        let auth = table.get(name, local)?;
        Some(auth.config.ca.display().to_string())
    }

    #[test]
    fn names_are_found_as_certificates_are() {
        let hosts: Vec<(Name, _)> = [
            ("a.test", auth("a")),
            ("*.w.test", auth("w")),
            ("open.w.test", None),
            ("192.0.2.1", auth("ip")),
        ]
        .map(|(name, auth)| (name.parse().unwrap(), auth))
        .into();
        let table = ClientAuthTable::new(hosts.iter().map(|(name, auth)| (name, auth.clone())));
        for (name, expected) in [
            (Some("a.test"), Some("a")),
            (Some("A.TEST."), Some("a")),
            (Some("x.w.test"), Some("w")),
            (Some("open.w.test"), None),
            (Some("x.y.w.test"), None),
            (Some("192.0.2.1"), Some("ip")),
            (None, Some("ip")),
            (Some("b.test"), None),
        ] {
            assert_eq!(found(&table, name).as_deref(), expected, "{name:?}");
        }
    }
}
