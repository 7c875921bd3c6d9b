//! What we answer while a CA validates: HTTP-01 tokens and TLS-ALPN-01 certificates. Only orders
//! write here; the plain listener and the TLS listener read. It is a table of its own, apart from
//! the live certificates, and nothing in it outlives the order that put it there.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, RwLock};

use boring::pkey::PKey;
use boring::ssl::SslCredential;
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, DnType, KeyPair};
use time::{Duration, OffsetDateTime};

use crate::certificate::credential;
use crate::certificate::name::Name;

/// A challenge certificate is looked at within minutes; the rest is for clocks that disagree.
const CHALLENGE_VALIDITY: Duration = Duration::days(1);

/// Why no challenge certificate could be made.
#[derive(Debug, thiserror::Error)]
pub enum ChallengeError {
    #[error("cannot make the TLS-ALPN-01 certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    #[error("cannot use the TLS-ALPN-01 key: {0}")]
    Key(#[from] boring::error::ErrorStack),
    #[error("cannot use the TLS-ALPN-01 certificate: {0}")]
    Credential(#[from] credential::CredentialError),
    #[error("{0} is a wildcard, which TLS-ALPN-01 does not cover (RFC 8737 section 3)")]
    Wildcard(Name),
}

/// The answers of all orders that run. Cheap to clone.
#[derive(Clone, Default)]
pub struct Challenges {
    answers: Arc<RwLock<Answers>>,
}

#[derive(Default)]
struct Answers {
    next_id: u64,
    http01: HashMap<String, Vec<(u64, Arc<str>)>>,
    tls_alpn01: HashMap<String, Vec<(u64, Arc<SslCredential>)>>,
}

impl Challenges {
    pub fn new() -> Challenges {
        Challenges::default()
    }

    /// Whether no order waits for a CA to look.
    pub fn is_empty(&self) -> bool {
        let answers = self.read();
        answers.http01.is_empty() && answers.tls_alpn01.is_empty()
    }

    /// The key authorization to answer `/.well-known/acme-challenge/<token>` with
    /// (RFC 8555 section 8.3).
    pub fn http01(&self, token: &str) -> Option<Arc<str>> {
        let answers = self.read();
        let (_, newest) = answers.http01.get(token)?.last()?;
        Some(Arc::clone(newest))
    }

    /// The certificate for a handshake that offers `acme-tls/1` alone (RFC 8737). `server_name`:
    /// lower-case ASCII, for an address its reverse-DNS form (RFC 8738 section 6).
    pub fn tls_alpn01(&self, server_name: &str) -> Option<Arc<SslCredential>> {
        let answers = self.read();
        let (_, newest) = answers.tls_alpn01.get(server_name)?.last()?;
        Some(Arc::clone(newest))
    }

    /// Answers an HTTP-01 challenge for as long as the guard lives.
    pub fn provide_http01(&self, token: &str, key_authorization: &str) -> ChallengeGuard {
        let mut answers = self.write();
        let id = answers.take_id();
        let answer = (id, Arc::from(key_authorization));
        answers
            .http01
            .entry(token.to_owned())
            .or_default()
            .push(answer);
        self.guard(id, Key::Token(token.to_owned()))
    }

    /// Answers a TLS-ALPN-01 challenge for as long as the guard lives. `digest`: the SHA-256 of
    /// the key authorization.
    pub fn provide_tls_alpn01(
        &self,
        name: &Name,
        digest: &[u8],
        now: OffsetDateTime,
    ) -> Result<ChallengeGuard, ChallengeError> {
        // The last one is what a handshake gets.
        self.answer_tls_alpn01(name, digest, now, Vec::push)
    }

    /// Answers for a look at ourselves: whatever an order answers for the same name goes first.
    pub(super) fn probe_tls_alpn01(
        &self,
        name: &Name,
        digest: &[u8],
        now: OffsetDateTime,
    ) -> Result<ChallengeGuard, ChallengeError> {
        self.answer_tls_alpn01(name, digest, now, |answers, answer| {
            answers.insert(0, answer)
        })
    }

    fn answer_tls_alpn01(
        &self,
        name: &Name,
        digest: &[u8],
        now: OffsetDateTime,
        add: impl FnOnce(&mut Vec<(u64, Arc<SslCredential>)>, (u64, Arc<SslCredential>)),
    ) -> Result<ChallengeGuard, ChallengeError> {
        let credential = Arc::new(challenge_credential(name, digest, now)?);
        let server_name = challenge_server_name(name);
        let mut answers = self.write();
        let id = answers.take_id();
        let entry = answers.tls_alpn01.entry(server_name.clone()).or_default();
        add(entry, (id, credential));
        Ok(self.guard(id, Key::ServerName(server_name)))
    }

    fn guard(&self, id: u64, key: Key) -> ChallengeGuard {
        ChallengeGuard {
            challenges: self.clone(),
            id,
            key,
        }
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Answers> {
        // Each change is one insertion or removal: a panic cannot leave half of one.
        self.answers
            .read()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Answers> {
        self.answers
            .write()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Answers {
    fn take_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }
}

enum Key {
    Token(String),
    ServerName(String),
}

/// One answer of one order: dropping it takes that answer back and no other.
#[must_use = "the challenge is answered only while the guard lives"]
pub struct ChallengeGuard {
    challenges: Challenges,
    id: u64,
    key: Key,
}

impl Drop for ChallengeGuard {
    fn drop(&mut self) {
        let mut answers = self.challenges.write();
        match &self.key {
            Key::Token(token) => remove(&mut answers.http01, token, self.id),
            Key::ServerName(name) => remove(&mut answers.tls_alpn01, name, self.id),
        }
    }
}

fn remove<T>(map: &mut HashMap<String, Vec<(u64, T)>>, key: &str, id: u64) {
    if let Some(entries) = map.get_mut(key) {
        entries.retain(|(own, _)| *own != id);
        if entries.is_empty() {
            map.remove(key);
        }
    }
}

/// The name in the ClientHello of a TLS-ALPN-01 validation: the name itself, or an address in
/// reverse-DNS form (RFC 8738 section 6).
pub fn challenge_server_name(name: &Name) -> String {
    match name {
        Name::Dns(dns) => dns.to_string(),
        Name::Wildcard(parent) => parent.to_string(),
        Name::Ip(IpAddr::V4(ip)) => {
            let [a, b, c, d] = ip.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        Name::Ip(IpAddr::V6(ip)) => {
            let mut text = String::with_capacity(72);
            for byte in ip.octets().iter().rev() {
                text.push_str(&format!("{:x}.{:x}.", byte & 0xf, byte >> 4));
            }
            text + "ip6.arpa"
        }
    }
}

/// Self-signed, one name, and the digest in a critical extension (RFC 8737 section 3).
fn challenge_credential(
    name: &Name,
    digest: &[u8],
    now: OffsetDateTime,
) -> Result<SslCredential, ChallengeError> {
    if name.is_wildcard() {
        return Err(ChallengeError::Wildcard(name.clone()));
    }
    let mut params = CertificateParams::new(vec![name.to_string()])?;
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, "ACME challenge");
    params.not_before = now - CHALLENGE_VALIDITY;
    params.not_after = now + CHALLENGE_VALIDITY;
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    let private_key = PKey::private_key_from_pkcs8(key.serialized_der())?;
    Ok(credential::x509(&[certificate.der()], &private_key)?)
}

#[cfg(test)]
mod tests {
    use boring::ssl::{SslConnector, SslMethod, SslVerifyMode};
    use time::macros::datetime;

    use super::*;

    const NOW: OffsetDateTime = datetime!(2026-11-23 6:00 UTC);
    const DIGEST: [u8; 32] = [7; 32];

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    #[test]
    fn an_answer_lives_as_long_as_its_guard() {
        let challenges = Challenges::new();
        assert!(challenges.http01("t").is_none());
        let guard = challenges.provide_http01("t", "t.thumb");
        let reader = challenges.clone();
        assert_eq!(reader.http01("t").as_deref(), Some("t.thumb"));
        drop(guard);
        assert!(reader.http01("t").is_none());

        let guard = challenges
            .provide_tls_alpn01(&name("example.com"), &DIGEST, NOW)
            .unwrap();
        assert!(reader.tls_alpn01("example.com").is_some());
        assert!(reader.tls_alpn01("example.org").is_none());
        drop(guard);
        assert!(reader.tls_alpn01("example.com").is_none());
        assert!(challenges.read().tls_alpn01.is_empty());
    }

    #[test]
    fn several_orders_do_not_disturb_each_other() {
        let challenges = Challenges::new();
        let first = challenges.provide_http01("t", "first");
        let second = challenges.provide_http01("t", "second");
        let other = challenges.provide_http01("u", "other");
        assert_eq!(challenges.http01("t").as_deref(), Some("second"));
        drop(first);
        assert_eq!(challenges.http01("t").as_deref(), Some("second"));
        drop(second);
        assert!(challenges.http01("t").is_none());
        assert_eq!(challenges.http01("u").as_deref(), Some("other"));
        drop(other);

        let host = name("example.com");
        let first = challenges.provide_tls_alpn01(&host, &DIGEST, NOW).unwrap();
        let second = challenges.provide_tls_alpn01(&host, &[8; 32], NOW).unwrap();
        drop(second);
        assert!(
            challenges.tls_alpn01("example.com").is_some(),
            "the first order's answer is back"
        );
        drop(first);
        assert!(challenges.tls_alpn01("example.com").is_none());
    }

    #[test]
    fn addresses_are_asked_for_in_reverse() {
        assert_eq!(
            challenge_server_name(&name("192.0.2.1")),
            "1.2.0.192.in-addr.arpa"
        );
        assert_eq!(
            challenge_server_name(&name("2001:db8::1")),
            "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa"
        );
        let challenges = Challenges::new();
        let _guard = challenges
            .provide_tls_alpn01(&name("192.0.2.1"), &DIGEST, NOW)
            .unwrap();
        assert!(challenges.tls_alpn01("1.2.0.192.in-addr.arpa").is_some());
    }

    #[test]
    fn a_wildcard_is_refused() {
        let error = Challenges::new().provide_tls_alpn01(&name("*.example.com"), &DIGEST, NOW);
        assert!(matches!(error, Err(ChallengeError::Wildcard(_))));
    }

    /// Serves the credential over a socket pair and reads the certificate that arrives.
    fn served(credential: &SslCredential) -> Vec<u8> {
        let (client, server) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut acceptor =
            boring::ssl::SslAcceptor::mozilla_intermediate_v5(SslMethod::tls()).unwrap();
        acceptor.add_credential(credential).unwrap();
        let acceptor = acceptor.build();
        let serving = std::thread::spawn(move || acceptor.accept(server).map(|_| ()).is_ok());
        let mut connector = SslConnector::builder(SslMethod::tls()).unwrap();
        connector.set_verify(SslVerifyMode::NONE);
        let mut configuration = connector.build().configure().unwrap();
        configuration.set_verify_hostname(false);
        let stream = configuration.connect("example.com", client).unwrap();
        let der = stream.ssl().peer_certificate().unwrap().to_der().unwrap();
        drop(stream);
        assert!(serving.join().unwrap());
        der
    }

    #[test]
    fn the_certificate_is_what_rfc_8737_asks_for() {
        use x509_parser::prelude::{FromDer, X509Certificate};
        let challenges = Challenges::new();
        for host in ["example.com", "192.0.2.1"] {
            let host = name(host);
            let _guard = challenges.provide_tls_alpn01(&host, &DIGEST, NOW).unwrap();
            let credential = challenges
                .tls_alpn01(&challenge_server_name(&host))
                .unwrap();
            let der = served(&credential);
            let leaf = crate::store::leaf::Leaf::parse(&der).unwrap();
            assert_eq!(leaf.names, [host]);
            let (_, certificate) = X509Certificate::from_der(&der).unwrap();
            let extension = certificate
                .extensions()
                .iter()
                .find(|extension| extension.oid.to_id_string() == "1.3.6.1.5.5.7.1.31")
                .unwrap();
            assert!(extension.critical);
            assert_eq!(extension.value, [&[0x04, 0x20][..], &DIGEST].concat());
        }
    }
}
