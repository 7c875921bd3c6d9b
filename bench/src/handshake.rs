//! A TLS client that asks for a name and looks at what is served. It believes everything: what is
//! measured is the server.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme};

/// One client's settings, shared by its handshakes; it never resumes a session.
#[derive(Clone)]
pub struct Client {
    config: Arc<ClientConfig>,
}

impl Client {
    pub fn new() -> Client {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .expect("versions")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Gullible {
                provider,
                checks_signatures: true,
            }))
            .with_no_client_auth();
        config.resumption = rustls::client::Resumption::disabled();
        Client {
            config: Arc::new(config),
        }
    }

    /// The DER of the leaf that is served for a name.
    pub fn leaf(&self, address: SocketAddr, name: &str) -> Result<Vec<u8>, String> {
        let text = |error: &dyn std::error::Error| error.to_string();
        let mut stream = TcpStream::connect(address).map_err(|error| text(&error))?;
        stream.set_nodelay(true).map_err(|error| text(&error))?;
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .map_err(|error| text(&error))?;
        let server_name = ServerName::try_from(name.to_owned()).map_err(|error| text(&error))?;
        let mut connection = ClientConnection::new(self.config.clone(), server_name)
            .map_err(|error| text(&error))?;
        while connection.is_handshaking() {
            connection
                .complete_io(&mut stream)
                .map_err(|error| text(&error))?;
        }
        let leaf = connection
            .peer_certificates()
            .and_then(|chain| chain.first());
        leaf.map(|leaf| leaf.to_vec())
            .ok_or_else(|| "no certificate".to_owned())
    }

    /// How long it takes until the leaf is another than `before`; handshakes follow each other.
    pub fn time_to_change(
        &self,
        address: SocketAddr,
        name: &str,
        before: &[u8],
        since: Instant,
    ) -> Duration {
        loop {
            let leaf = self.leaf(address, name);
            if leaf.is_ok_and(|leaf| leaf != before) {
                return since.elapsed();
            }
            assert!(
                since.elapsed() < Duration::from_secs(600),
                "{name} is never replaced"
            );
        }
    }
}

impl Default for Client {
    fn default() -> Self {
        Client::new()
    }
}

/// Takes any certificate.
#[derive(Debug)]
pub(crate) struct Gullible {
    provider: Arc<rustls::crypto::CryptoProvider>,
    checks_signatures: bool,
}

impl Gullible {
    /// Takes any signature as well: a client that is to cost little.
    pub(crate) fn without_signatures(provider: Arc<rustls::crypto::CryptoProvider>) -> Gullible {
        Gullible {
            provider,
            checks_signatures: false,
        }
    }
}

impl ServerCertVerifier for Gullible {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if !self.checks_signatures {
            return Ok(HandshakeSignatureValid::assertion());
        }
        // A mixed pair would show here.
        let supported = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, supported)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
