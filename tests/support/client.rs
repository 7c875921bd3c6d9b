//! What a handshake shows, and HTTP clients over it.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use time::OffsetDateTime;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::wait::SOON;
use super::{certs, tls};

const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);

/// What one handshake showed.
#[derive(Clone, Debug)]
pub struct Served {
    pub serial: String,
    pub fingerprint: String,
    pub names: Vec<String>,
    pub not_after: OffsetDateTime,
    pub issuer: String,
    pub alpn: Option<String>,
    pub version: String,
    pub chain_len: usize,
    /// The leaf itself, DER.
    pub der: Vec<u8>,
}

/// A handshake that accepts any certificate and tells which it was. No SNI where `sni` is `None`.
pub async fn served(addr: SocketAddr, sni: Option<&str>) -> Result<Served, String> {
    served_with(addr, sni, &["h2", "http/1.1"]).await
}

/// The same, by a client that waits as long as it takes to order a certificate.
pub async fn served_patiently(addr: SocketAddr, sni: &str) -> Result<Served, String> {
    served_within(SOON, addr, Some(sni), &["h2", "http/1.1"]).await
}

pub async fn served_with(
    addr: SocketAddr,
    sni: Option<&str>,
    alpn: &[&str],
) -> Result<Served, String> {
    served_within(HANDSHAKE_LIMIT, addr, sni, alpn).await
}

async fn served_within(
    limit: Duration,
    addr: SocketAddr,
    sni: Option<&str>,
    alpn: &[&str],
) -> Result<Served, String> {
    let mut config = tls::accepting_anything();
    config.enable_sni = sni.is_some();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    let name = sni.unwrap_or("no-name.invalid");
    let stream = connect_within(limit, addr, name, config).await?;
    let (_, session) = stream.get_ref();
    let chain = session.peer_certificates().ok_or("no certificate")?;
    let alpn = session.alpn_protocol();
    let alpn = alpn.map(|name| String::from_utf8_lossy(name).into_owned());
    let version = format!("{:?}", session.protocol_version().ok_or("no version")?);
    describe(chain[0].as_ref(), chain.len(), alpn, version)
}

/// The serial alone: what most scenarios watch.
pub async fn serial(addr: SocketAddr, sni: &str) -> Result<String, String> {
    served(addr, Some(sni)).await.map(|served| served.serial)
}

/// The names of the first certificate in a PEM text.
pub fn names_of_pem(text: &str) -> Vec<String> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(text.as_bytes()).expect("PEM");
    let leaf = describe(&pem.contents, 1, None, String::new());
    leaf.expect("a certificate").names
}

/// A TLS stream, within a deadline.
pub async fn connect(
    addr: SocketAddr,
    name: &str,
    config: ClientConfig,
) -> Result<TlsStream<TcpStream>, String> {
    connect_within(HANDSHAKE_LIMIT, addr, name, config).await
}

async fn connect_within(
    limit: Duration,
    addr: SocketAddr,
    name: &str,
    config: ClientConfig,
) -> Result<TlsStream<TcpStream>, String> {
    let name = ServerName::try_from(name.to_owned()).map_err(|error| error.to_string())?;
    let handshake = async {
        let stream = TcpStream::connect(addr).await?;
        stream.set_nodelay(true)?;
        TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
    };
    match tokio::time::timeout(limit, handshake).await {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no handshake within {limit:?}")),
    }
}

fn describe(
    der: &[u8],
    chain_len: usize,
    alpn: Option<String>,
    version: String,
) -> Result<Served, String> {
    let parsed = x509_parser::parse_x509_certificate(der);
    let (_, certificate) = parsed.map_err(|error| error.to_string())?;
    let names = certificate.subject_alternative_name().ok().flatten();
    let names = names
        .iter()
        .flat_map(|extension| &extension.value.general_names);
    Ok(Served {
        serial: certs::serial_of(der),
        fingerprint: certs::fingerprint_of(der),
        names: names.filter_map(name_text).collect(),
        not_after: certificate.validity().not_after.to_datetime(),
        issuer: certificate.issuer().to_string(),
        alpn,
        version,
        chain_len,
        der: der.to_vec(),
    })
}

fn name_text(name: &x509_parser::extensions::GeneralName<'_>) -> Option<String> {
    use x509_parser::extensions::GeneralName;
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress([a, b, c, d]) => Some(format!("{a}.{b}.{c}.{d}")),
        GeneralName::IPAddress(bytes) => Some(certs::hex(bytes)),
        _ => None,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    Http1,
    Http2,
}

/// A client to which `host` is at `addr`. It trusts `ca` alone, or anybody where that is `None`,
/// and follows no redirect.
pub fn http_client(
    host: &str,
    addr: SocketAddr,
    ca: Option<&Path>,
    version: Version,
) -> reqwest::Client {
    let mut config = ca.map_or_else(tls::accepting_anything, tls::trusting);
    let builder = reqwest::Client::builder().no_proxy().resolve(host, addr);
    let builder = builder.redirect(reqwest::redirect::Policy::none());
    let builder = match version {
        Version::Http1 => {
            config.alpn_protocols = vec![b"http/1.1".to_vec()];
            builder.http1_only()
        }
        Version::Http2 => {
            config.alpn_protocols = vec![b"h2".to_vec()];
            builder.http2_prior_knowledge()
        }
    };
    let builder = builder.tls_backend_preconfigured(config);
    builder
        .timeout(Duration::from_secs(60))
        .build()
        .expect("a client")
}
