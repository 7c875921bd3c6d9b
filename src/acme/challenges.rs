//! What we answer while a CA validates: HTTP-01 tokens and TLS-ALPN-01 certificates. Only orders
//! write here; the plain listener and the TLS listener read. It is a table of its own, apart from
//! the live certificates, and nothing in it outlives the order that put it there.
//!
//! While another process takes over the sockets, a CA that looks finds that one: what is answered
//! here is copied to it ([`Challenges::copied`]).

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, RwLock};
use std::time::Duration as StdDuration;

use boring::pkey::PKey;
use boring::ssl::SslCredential;
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, DnType, KeyPair};
use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};
use tokio::sync::{mpsc, watch};

use crate::certificate::credential;
use crate::certificate::name::Name;

/// A challenge certificate is looked at within minutes; the rest is for clocks that disagree.
const CHALLENGE_VALIDITY: Duration = Duration::days(1);

/// How long an order waits until the process that takes over answers like this one. It is a matter of
/// milliseconds, unless that process is gone.
const COPY_TIMEOUT: StdDuration = StdDuration::from_secs(5);

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
    #[error("{0:?} is no name")]
    Name(String),
}

/// What a CA is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    #[serde(rename = "http-01")]
    Http01 {
        token: String,
        key_authorization: String,
    },
    #[serde(rename = "tls-alpn-01")]
    TlsAlpn01 {
        name: String,
        digest: Vec<u8>,
        /// Whether what an order answers for the same name goes first.
        yields: bool,
    },
}

/// What happens to answers, in this order. The number is the answer's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    Given(u64, Answer),
    TakenBack(u64),
}

/// All answers for another process, those of now first. Dropped: it needs no more of them.
pub struct Copies {
    challenges: Challenges,
    pub events: mpsc::UnboundedReceiver<Event>,
    /// The number of the last answer that the other process is known to give.
    pub known: watch::Sender<u64>,
}

impl Drop for Copies {
    fn drop(&mut self) {
        self.challenges.write().copier = None;
    }
}

/// The way to [`Copies`].
struct Copier {
    events: mpsc::UnboundedSender<Event>,
    /// The number of the last answer that was sent there.
    last: u64,
    known: watch::Receiver<u64>,
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
    given: BTreeMap<u64, Answer>,
    copier: Option<Copier>,
}

impl Challenges {
    pub fn new() -> Challenges {
        Challenges::default()
    }

    /// Has another process answer the same. There is one such at a time, the last.
    pub fn copied(&self) -> Copies {
        let (sender, events) = mpsc::unbounded_channel();
        let known = watch::Sender::new(0);
        let mut answers = self.write();
        let mut copier = Copier {
            events: sender,
            last: 0,
            known: known.subscribe(),
        };
        for (id, answer) in &answers.given {
            copier.give(*id, answer.clone());
        }
        answers.copier = Some(copier);
        drop(answers);
        Copies {
            challenges: self.clone(),
            events,
            known,
        }
    }

    /// Until every process that a CA could find gives the answers of now: only then the CA is told to
    /// look.
    pub async fn known_everywhere(&self) {
        let copier = {
            let answers = self.read();
            let copier = answers.copier.as_ref();
            copier.map(|copier| (copier.known.clone(), copier.last))
        };
        let Some((mut known, last)) = copier else {
            return;
        };
        let waited = known.wait_for(|known| *known >= last);
        // One that is gone, or deaf, is waited for in vain: its predecessor goes on.
        let _ = tokio::time::timeout(COPY_TIMEOUT, waited).await;
    }

    /// Answers as another process does.
    pub fn give(
        &self,
        answer: &Answer,
        now: OffsetDateTime,
    ) -> Result<ChallengeGuard, ChallengeError> {
        match answer {
            Answer::Http01 {
                token,
                key_authorization,
            } => Ok(self.provide_http01(token, key_authorization)),
            Answer::TlsAlpn01 {
                name,
                digest,
                yields,
            } => {
                let name = name
                    .parse()
                    .map_err(|_| ChallengeError::Name(name.clone()))?;
                self.answer_tls_alpn01(&name, digest, now, *yields)
            }
        }
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
        let id = answers.take_id(Answer::Http01 {
            token: token.to_owned(),
            key_authorization: key_authorization.to_owned(),
        });
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
        self.answer_tls_alpn01(name, digest, now, false)
    }

    /// Answers for a look at ourselves: whatever an order answers for the same name goes first.
    pub(super) fn probe_tls_alpn01(
        &self,
        name: &Name,
        digest: &[u8],
        now: OffsetDateTime,
    ) -> Result<ChallengeGuard, ChallengeError> {
        self.answer_tls_alpn01(name, digest, now, true)
    }

    fn answer_tls_alpn01(
        &self,
        name: &Name,
        digest: &[u8],
        now: OffsetDateTime,
        yields: bool,
    ) -> Result<ChallengeGuard, ChallengeError> {
        let credential = Arc::new(challenge_credential(name, digest, now)?);
        let server_name = challenge_server_name(name);
        let mut answers = self.write();
        let id = answers.take_id(Answer::TlsAlpn01 {
            name: name.to_string(),
            digest: digest.to_vec(),
            yields,
        });
        let entry = answers.tls_alpn01.entry(server_name.clone()).or_default();
        // The last one is what a handshake gets.
        let at = if yields { 0 } else { entry.len() };
        entry.insert(at, (id, credential));
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
    /// Its number.
    fn take_id(&mut self, answer: Answer) -> u64 {
        self.next_id += 1;
        if let Some(copier) = &mut self.copier {
            copier.give(self.next_id, answer.clone());
        }
        self.given.insert(self.next_id, answer);
        self.next_id
    }

    fn take_back(&mut self, id: u64, key: &Key) {
        match key {
            Key::Token(token) => remove(&mut self.http01, token, id),
            Key::ServerName(name) => remove(&mut self.tls_alpn01, name, id),
        }
        self.given.remove(&id);
        if let Some(copier) = &self.copier {
            // Whoever copied is about to be dropped, if nobody receives.
            let _ = copier.events.send(Event::TakenBack(id));
        }
    }
}

impl Copier {
    fn give(&mut self, id: u64, answer: Answer) {
        self.last = id;
        // As above.
        let _ = self.events.send(Event::Given(id, answer));
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
        self.challenges.write().take_back(self.id, &self.key);
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
    fn another_process_hears_of_every_answer_in_order() {
        let (here, there) = (Challenges::new(), Challenges::new());
        let gone = here.provide_http01("gone", "gone.thumb");
        let host = name("example.com");
        let probe = here.probe_tls_alpn01(&host, &DIGEST, NOW).unwrap();
        drop(gone);
        let mut copies = here.copied();
        let order = here.provide_http01("t", "t.thumb");
        drop(probe);
        let mut guards = HashMap::new();
        let mut heard = Vec::new();
        while let Ok(event) = copies.events.try_recv() {
            // As it goes from one process to another.
            let text = serde_json::to_string(&event).unwrap();
            assert_eq!(serde_json::from_str::<Event>(&text).unwrap(), event);
            match &event {
                Event::Given(id, answer) => {
                    guards.insert(*id, there.give(answer, NOW).unwrap());
                }
                Event::TakenBack(id) => assert!(guards.remove(id).is_some()),
            }
            heard.push(event);
        }
        assert_eq!(heard.len(), 3, "{heard:?}");
        assert!(matches!(
            &heard[0],
            Event::Given(_, Answer::TlsAlpn01 { yields: true, .. })
        ));
        assert_eq!(there.http01("t").as_deref(), Some("t.thumb"));
        assert!(there.http01("gone").is_none());
        assert!(there.tls_alpn01("example.com").is_none());
        drop((copies, order));
        assert!(here.read().copier.is_none() && here.read().given.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_ca_is_told_to_look_once_the_other_process_answers() {
        let challenges = Challenges::new();
        challenges.known_everywhere().await;
        let copies = challenges.copied();
        challenges.known_everywhere().await;
        let _guard = challenges.provide_http01("t", "t.thumb");
        let told = challenges.clone();
        let told = tokio::spawn(async move { told.known_everywhere().await });
        tokio::task::yield_now().await;
        assert!(!told.is_finished());
        copies.known.send_replace(1);
        told.await.unwrap();
        // One that is gone holds nobody up.
        let _guard = challenges.provide_http01("u", "u.thumb");
        drop(copies);
        challenges.known_everywhere().await;
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
