//! TLS client settings: rustls with aws-lc-rs, trusting one authority, or anybody and telling.

use std::path::Path;
use std::sync::{Arc, Once};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

/// reqwest and rustls ask for a process-wide provider.
pub fn install_provider() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| drop(aws_lc_rs::default_provider().install_default()));
}

/// Trusts the certificates in one PEM file and nobody else.
pub fn trusting(pem_file: &Path) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(pem_file)
        .unwrap_or_else(|error| panic!("{}: {error}", pem_file.display()));
    for certificate in certificates {
        roots.add(certificate.expect("PEM")).expect("a root");
    }
    with_roots(roots)
}

pub fn trusting_nothing() -> ClientConfig {
    with_roots(RootCertStore::empty())
}

fn with_roots(roots: RootCertStore) -> ClientConfig {
    install_provider();
    let builder = ClientConfig::builder();
    builder.with_root_certificates(roots).with_no_client_auth()
}

/// Accepts whatever the server shows: for looking, never for trusting.
pub fn accepting_anything() -> ClientConfig {
    install_provider();
    let verifier = Arc::new(AcceptAnything(aws_lc_rs::default_provider()));
    let mut config = ClientConfig::builder()
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    // A resumed session shows no certificate.
    config.resumption = rustls::client::Resumption::disabled();
    config
}

#[derive(Debug)]
struct AcceptAnything(CryptoProvider);

impl ServerCertVerifier for AcceptAnything {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    // The signature is checked: a key that does not fit the certificate must not pass.
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let supported = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, supported)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let supported = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, supported)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
