//! The reload path and the ACME worker for somebody else's Pingora server: its own listeners, its
//! own [`ProxyHttp`](pingora::proxy::ProxyHttp), and certificates that never go stale. It is the
//! same code that the `perennial` program runs on; here is only the wiring.
//!
//! # Reload, in three lines
//!
//! ```no_run
//! # use std::time::Duration;
//! # use perennial::{Certificates, Source};
//! # use pingora::proxy::{ProxyHttp, http_proxy_service};
//! # struct MyProxy;
//! # #[async_trait::async_trait]
//! # impl ProxyHttp for MyProxy {
//! #     type CTX = ();
//! #     fn new_ctx(&self) {}
//! #     async fn upstream_peer(
//! #         &self, _: &mut pingora::proxy::Session, _: &mut (),
//! #     ) -> pingora::Result<Box<pingora::upstreams::peer::HttpPeer>> { unimplemented!() }
//! # }
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut server = pingora::server::Server::new(None)?;
//! server.bootstrap();
//! let mut proxy = http_proxy_service(&server.configuration, MyProxy);
//!
//! let certificates = Certificates::watch([Source::folder("/etc/ssl/sites")], Duration::from_secs(5))?;
//! proxy.add_tls_with_settings("0.0.0.0:443", None, certificates.tls_settings()?);
//! server.add_service(certificates.service());
//!
//! server.add_service(proxy);
//! server.run_forever();
//! # }
//! ```
//!
//! Whatever is put into the folder, replaced or taken out is served from the next handshake on;
//! open connections stay. What is broken is reported by the [`log`](https://docs.rs/log) crate or
//! [`tracing`], and the last good certificate stays in service.
//!
//! # ACME, in three more
//!
//! ```no_run
//! # use std::time::Duration;
//! # use perennial::{Acme, Certificates, Source};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let acme = Acme::new("/var/lib/my-proxy", ["example.com", "www.example.com"])?
//!     .email("ops@example.com")?;
//! let certificates = Certificates::watch([Source::folder("/etc/ssl/sites")], Duration::from_secs(5))?
//!     .with_acme(acme);
//! # Ok(())
//! # }
//! ```
//!
//! Names that a certificate file covers are left to whoever writes that; the others are ordered
//! and renewed. Control over a name is shown by TLS-ALPN-01 on the same listener, which needs
//! nothing else; with [`Certificates::offer_http_challenges`] also by HTTP-01.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use boring::error::ErrorStack;
use http::{HeaderName, Method};
use pingora::http::ResponseHeader;
use pingora::listeners::TlsAccept;
use pingora::listeners::tls::TlsSettings;
use pingora::prelude::{Session, background_service};
use pingora::protocols::tls::TlsRef;
use pingora::server::ShutdownWatch;
use pingora::services::background::{BackgroundService, GenBackgroundService};
use pingora::{ErrorType, OrErr};
use tokio_util::sync::CancellationToken;

use crate::acme::challenges::Challenges;
use crate::acme::on_demand_names::OnDemandNames;
use crate::acme::renewal::IssuerKind;
use crate::acme::subject::{Assignment, Subject};
use crate::acme::surroundings::Surroundings;
use crate::acme::worker::Worker;
use crate::certificate::name::{Name, NameError};
use crate::certificate::overdue::HostSet;
use crate::certificate::reloader::{IdleReloader, PairFiles, Reloader, Sources};
use crate::certificate::table::TableReader;
use crate::clock;
use crate::config::{CertificateAuthority, ChallengeType, Dns, Tls};
use crate::listener::accept::HANDSHAKE_DEADLINE;
use crate::listener::client_auth::ClientAuthTable;
use crate::listener::tickets::SessionTickets;
use crate::listener::tls::{self, SessionPolicy, Sessions};
use crate::proxy::{self, Answer};
use crate::store::StateDir;

/// What is wrong with what a server was told.
#[derive(Debug, thiserror::Error)]
pub enum EmbedError {
    /// A host name that is none.
    #[error("{name:?} {error}")]
    Name { name: String, error: NameError },
    /// An ACME setting.
    #[error("{0}")]
    Acme(String),
    /// BoringSSL refuses the settings.
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] ErrorStack),
    /// Pingora refuses the settings.
    #[error("cannot set up TLS: {0}")]
    Pingora(#[from] Box<pingora::Error>),
}

/// Where certificates come from. Nothing of it has to exist yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A folder, searched to a depth of 3. Which key belongs to which certificate is found by
    /// content; PEM, DER and PKCS#12 are read.
    Folder(PathBuf),
    /// A certificate with its chain, and its key. Both may be in one file.
    Pair {
        certificate: PathBuf,
        private_key: PathBuf,
        /// Its first line opens the key, or the PKCS#12 file.
        password_file: Option<PathBuf>,
    },
}

impl Source {
    /// See [`Source::Folder`].
    pub fn folder(path: impl Into<PathBuf>) -> Source {
        Source::Folder(path.into())
    }

    /// A [`Source::Pair`] whose key is not encrypted.
    pub fn pair(certificate: impl Into<PathBuf>, private_key: impl Into<PathBuf>) -> Source {
        Source::Pair {
            certificate: certificate.into(),
            private_key: private_key.into(),
            password_file: None,
        }
    }
}

/// Certificates of a Pingora server, before that runs.
pub struct Certificates {
    reloader: Reloader,
    idle: IdleReloader,
    challenges: Challenges,
    sessions: Sessions,
    acme: Option<Acme>,
}

impl Certificates {
    /// Serves what is in `sources` and looks for changes every `poll_interval` at the latest; file
    /// events find them at once. Clients that ask for no name or for an unknown one are refused:
    /// see [`watch_with_default`](Self::watch_with_default).
    ///
    /// No file is read before the server runs, so a server that becomes a daemon or changes its
    /// user may call this first.
    pub fn watch(
        sources: impl IntoIterator<Item = Source>,
        poll_interval: Duration,
    ) -> Result<Certificates, EmbedError> {
        Certificates::prepare(sources, poll_interval, None)
    }

    /// Like [`watch`](Self::watch); where nothing else fits, the certificate of `default_name` is
    /// served.
    pub fn watch_with_default(
        sources: impl IntoIterator<Item = Source>,
        poll_interval: Duration,
        default_name: &str,
    ) -> Result<Certificates, EmbedError> {
        Certificates::prepare(sources, poll_interval, Some(parse_name(default_name)?))
    }

    fn prepare(
        sources: impl IntoIterator<Item = Source>,
        poll_interval: Duration,
        default_name: Option<Name>,
    ) -> Result<Certificates, EmbedError> {
        let mut wanted = Sources {
            pairs: Vec::new(),
            folders: Vec::new(),
            generations: None,
            on_demand: None,
            default_name,
            takeover: HostSet::default(),
            poll_interval,
            watch: true,
        };
        for source in sources {
            match source {
                Source::Folder(path) => wanted.folders.push(path),
                Source::Pair {
                    certificate,
                    private_key,
                    password_file,
                } => wanted.pairs.push(PairFiles {
                    certificate,
                    private_key,
                    password_file,
                }),
            }
        }
        let (reloader, idle) = Reloader::prepare(wanted);
        let policy = SessionPolicy {
            resume_after_swap: true,
            client_auth: ClientAuthTable::default(),
        };
        let rotation = Tls::default().session_ticket_rotation;
        Ok(Certificates {
            reloader,
            idle,
            challenges: Challenges::new(),
            sessions: Sessions {
                tickets: SessionTickets::new(rotation, clock::now())?,
                policy: Arc::new(ArcSwap::from_pointee(policy)),
            },
            acme: None,
        })
    }

    /// Orders and renews certificates for the names that no file covers.
    pub fn with_acme(mut self, acme: Acme) -> Certificates {
        self.idle
            .add_generations(StateDir::certificates_in(&acme.state_dir));
        self.acme = Some(acme);
        self
    }

    /// TLS 1.2 and 1.3 with HTTP/2 and HTTP/1.1, for one endpoint; ask again for each. What else
    /// Pingora's settings can do may be set, other than the choice of the certificate and ALPN.
    pub fn tls_settings(&self) -> Result<TlsSettings, EmbedError> {
        let table = self.reloader.table().clone();
        let policy = self.sessions.policy.clone();
        let late = LateChoice {
            table: table.clone(),
            policy,
            reported: AtomicBool::new(false),
        };
        let mut settings = TlsSettings::with_callbacks(Box::new(late))?;
        tls::install(
            &mut settings,
            tls::Certificates::new(table, self.challenges.clone()),
            self.sessions.clone(),
        )?;
        Ok(settings)
    }

    /// Lets the CA choose HTTP-01 as well: the server then has to listen on port 80 and pass what
    /// is asked there to [`HttpChallenges::answer`]. Does nothing without
    /// [`with_acme`](Self::with_acme), which comes first.
    pub fn offer_http_challenges(&mut self) -> HttpChallenges {
        if let Some(acme) = &mut self.acme
            && !acme.authority.challenges.contains(&ChallengeType::Http01)
        {
            acme.authority.challenges.push(ChallengeType::Http01);
        }
        HttpChallenges(self.challenges.clone())
    }

    /// What keeps them fresh. Until the server runs it, every handshake waits.
    pub fn service(self) -> GenBackgroundService<CertificateService> {
        let service = CertificateService(Mutex::new(Some(self)));
        background_service("certificates", service)
    }
}

/// Certificates to order.
#[derive(Clone, Debug)]
pub struct Acme {
    state_dir: PathBuf,
    names: Vec<Name>,
    authority: CertificateAuthority,
}

impl Acme {
    /// One certificate for each of `names`, from Let's Encrypt, whose terms of service are agreed
    /// to. Accounts, keys and certificates are kept in `state_dir`, which is made if it is missing
    /// and is the `perennial` program's format; several processes may share it.
    pub fn new<N: AsRef<str>>(
        state_dir: impl AsRef<Path>,
        names: impl IntoIterator<Item = N>,
    ) -> Result<Acme, EmbedError> {
        let names = names.into_iter().map(|name| {
            let name = parse_name(name.as_ref())?;
            match name.is_wildcard() {
                true => Err(EmbedError::Acme(format!(
                    "{name} cannot be ordered: a wildcard needs the dns-01 challenge, which this \
                     version does not have; name its hosts one by one"
                ))),
                false => Ok(name),
            }
        });
        let mut authority = CertificateAuthority::lets_encrypt();
        authority.challenges = vec![ChallengeType::TlsAlpn01];
        Ok(Acme {
            state_dir: state_dir.as_ref().to_owned(),
            names: names.collect::<Result<_, _>>()?,
            authority,
        })
    }

    /// Whom the CA writes to.
    pub fn email(mut self, email: &str) -> Result<Acme, EmbedError> {
        self.authority.set_email(email).map_err(EmbedError::Acme)?;
        Ok(self)
    }

    /// Another CA's directory URL (RFC 8555 section 7.1.1).
    pub fn directory(mut self, url: &str) -> Result<Acme, EmbedError> {
        self.authority
            .set_directory(url)
            .map_err(EmbedError::Acme)?;
        Ok(self)
    }

    /// A PEM file with the root that the CA's own HTTPS leads to, for a private one.
    pub fn ca_certificate(mut self, path: impl Into<PathBuf>) -> Acme {
        self.authority.ca_certificate = Some(path.into());
        self
    }

    fn assignment(&self) -> Assignment {
        let subject = |name: &Name| Subject {
            name: name.clone(),
            names: vec![name.clone()],
            issuer: IssuerKind::Acme,
            auto: true,
            takeover: None,
            only_takeover: false,
            key_type: self.authority.key_type,
            wildcards: false,
        };
        Assignment {
            authorities: vec![self.authority.clone()],
            dns: Dns::default(),
            subjects: self.names.iter().map(subject).collect(),
            on_demand: OnDemandNames::default(),
        }
    }
}

fn parse_name(text: &str) -> Result<Name, EmbedError> {
    text.parse().map_err(|error| EmbedError::Name {
        name: text.to_owned(),
        error,
    })
}

/// Answers HTTP-01 challenges (RFC 8555 section 8.3); the default one knows none. Cheap to clone.
#[derive(Clone, Default)]
pub struct HttpChallenges(Challenges);

impl HttpChallenges {
    /// Answers the request if it is a CA's look at a challenge. To be called first in
    /// [`ProxyHttp::request_filter`](pingora::proxy::ProxyHttp::request_filter), which returns what
    /// this returns: `true` means that the request is answered.
    pub async fn answer(&self, session: &mut Session) -> pingora::Result<bool> {
        let request = session.req_header();
        let path = request.uri.path();
        let Some(answer) = proxy::challenge_answer(&request.method, path, &self.0) else {
            return Ok(false);
        };
        let Answer { head, body } = answer;
        let mut header = ResponseHeader::build(head.status, Some(head.fields.len()))?;
        for field in head.fields.iter() {
            let name = HeaderName::from_bytes(field.name);
            let name = name.or_err(ErrorType::InternalError, "a field name of ours")?;
            header.append_header(name, field.value)?;
        }
        let body = Some(body).filter(|_| request.method != Method::HEAD);
        session
            .write_response_header(Box::new(header), body.is_none())
            .await?;
        session.write_response_body(body, true).await?;
        Ok(true)
    }
}

/// Runs the reloader, the rotation of session ticket keys, and the ACME worker. Made by
/// [`Certificates::service`].
pub struct CertificateService(Mutex<Option<Certificates>>);

/// How often it is looked whether a session ticket key is due.
const TICKETS_EVERY: Duration = Duration::from_secs(60);

#[async_trait]
impl BackgroundService for CertificateService {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let certificates = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(certificates) = certificates else {
            return;
        };
        let Certificates {
            reloader,
            idle,
            challenges,
            sessions,
            acme,
        } = certificates;
        let thread = match idle.start() {
            Ok(thread) => thread,
            Err(error) => {
                tracing::error!(%error, "certificates are not loaded: no thread can be started");
                return;
            }
        };
        let stop = CancellationToken::new();
        let working = acme.and_then(|acme| acme.start(&reloader, challenges, stop.clone()));
        let mut tickets = tokio::time::interval(TICKETS_EVERY);
        loop {
            tokio::select! {
                // An error means that the server is gone.
                _ = shutdown.changed() => break,
                _ = tickets.tick() => drop(sessions.tickets.rotate(clock::now())),
            }
        }
        stop.cancel();
        reloader.stop();
        if let Some(working) = working {
            // It panicked if it cannot be joined, and said so.
            let _ = working.await;
        }
        let _ = tokio::task::spawn_blocking(move || thread.join()).await;
    }
}

impl Acme {
    /// `None`: the state directory cannot be used.
    fn start(
        self,
        reloader: &Reloader,
        challenges: Challenges,
        stop: CancellationToken,
    ) -> Option<tokio::task::JoinHandle<()>> {
        let state = StateDir::open(&self.state_dir)
            .inspect_err(|error| tracing::error!(%error, "no certificate can be ordered"))
            .ok()?;
        let surroundings = Surroundings::of(reloader, |_, _| {});
        let (worker, _) = Worker::new(self.assignment(), state, challenges, surroundings);
        Some(tokio::spawn(worker.run(stop)))
    }
}

/// Waits for the first load where the early callback could not find the certificate.
struct LateChoice {
    table: TableReader,
    policy: Arc<ArcSwap<SessionPolicy>>,
    reported: AtomicBool,
}

#[async_trait]
impl TlsAccept for LateChoice {
    async fn certificate_callback(&self, ssl: &mut TlsRef) {
        let choice = tls::late_choice(ssl, &self.table, &self.policy);
        match tokio::time::timeout(HANDSHAKE_DEADLINE, choice).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "cannot choose a certificate"),
            // Without a certificate BoringSSL ends the handshake.
            Err(_) if self.reported.swap(true, Ordering::Relaxed) => {}
            Err(_) => tracing::error!(
                "no certificate was loaded within {HANDSHAKE_DEADLINE:?}: either the files take \
                 that long, or the service of the certificates was not added to the server"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::pin::pin;

    use boring::ssl::{SslConnector, SslMethod, SslVerifyMode};
    use pingora::protocols::l4::stream::Stream;
    use pingora::protocols::tls::server::handshake_with_callback;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::certificate::testing::Request;

    /// Starts the reloader when the early callback has come and gone.
    struct StartsLate {
        idle: Mutex<Option<IdleReloader>>,
        late: LateChoice,
    }

    #[async_trait]
    impl TlsAccept for StartsLate {
        async fn certificate_callback(&self, ssl: &mut TlsRef) {
            if let Some(idle) = self.idle.lock().unwrap().take() {
                idle.start().unwrap();
            }
            self.late.certificate_callback(ssl).await;
        }
    }

    /// The certificate (PEM) that a client gets which came before the first load.
    async fn early_client(folder: &Path, name: &str) -> Result<Vec<u8>, String> {
        let sources = [Source::folder(folder)];
        let certificates = Certificates::watch(sources, Duration::from_secs(3600)).unwrap();
        let (table, sessions) = (
            certificates.reloader.table().clone(),
            certificates.sessions.clone(),
        );
        let late = LateChoice {
            table: table.clone(),
            policy: sessions.policy.clone(),
            reported: AtomicBool::new(false),
        };
        let acceptor =
            tls::acceptor(tls::Certificates::new(table, Challenges::new()), sessions).unwrap();
        let callbacks = StartsLate {
            idle: Mutex::new(Some(certificates.idle)),
            late,
        };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = async {
            let stream: Stream = listener.accept().await.unwrap().0.into();
            handshake_with_callback(&acceptor, stream, &callbacks).await
        };
        let client = async {
            let mut connector = SslConnector::builder(SslMethod::tls()).unwrap();
            connector.set_verify(SslVerifyMode::NONE);
            let stream = TcpStream::connect(address).await.unwrap();
            let ssl = connector
                .build()
                .configure()
                .unwrap()
                .into_ssl(name)
                .unwrap();
            let mut stream = pingora::protocols::tls::SslStream::new(ssl, stream).unwrap();
            pin!(&mut stream)
                .connect()
                .await
                .map_err(|error| error.to_string())?;
            let leaf = stream.ssl().peer_certificate().unwrap();
            Ok(leaf.to_pem().unwrap())
        };
        let (_, served) = tokio::join!(server, client);
        certificates.reloader.stop();
        served
    }

    #[tokio::test]
    async fn a_handshake_before_the_first_load_gets_what_that_brings() {
        let folder = tempfile::tempdir().unwrap();
        let pair = Request::new(&["a.test"], clock::now()).issue();
        std::fs::write(folder.path().join("a.pem"), &pair.certificate).unwrap();
        std::fs::write(folder.path().join("a.key"), &pair.key).unwrap();
        let served = early_client(folder.path(), "a.test").await;
        let served = boring::x509::X509::from_pem(&served.unwrap()).unwrap();
        let written = boring::x509::X509::from_pem(pair.certificate.as_bytes()).unwrap();
        assert_eq!(served.to_der().unwrap(), written.to_der().unwrap());
        assert!(early_client(folder.path(), "b.test").await.is_err());
    }

    #[test]
    fn what_is_wrong_is_said_before_the_server_runs() {
        let said = |result: Result<Acme, EmbedError>| result.unwrap_err().to_string();
        let acme = || Acme::new("state", ["a.test"]).unwrap();
        let wildcard = said(Acme::new("state", ["*.a.test"]));
        assert!(
            wildcard.contains("needs the dns-01 challenge"),
            "{wildcard}"
        );
        let name = said(Acme::new("state", ["a b"]));
        assert!(name.starts_with("\"a b\" "), "{name}");
        let url = said(acme().directory("http://ca.example.com/dir"));
        assert!(
            url.contains("plain http is for a CA on this host alone"),
            "{url}"
        );
        let email = said(acme().email("mailto:ops@example.com"));
        assert!(email.contains("leave the mailto: out"), "{email}");
        let default = Certificates::watch_with_default([], Duration::from_secs(5), "");
        assert!(matches!(default, Err(EmbedError::Name { .. })));
    }
}
