//! Looking at the proxy as an authority does.

use std::net::SocketAddr;

use aws_lc_rs::digest::{SHA256, digest};

use crate::support::client;
use crate::support::http1::KeepAlive;

/// id-pe-acmeIdentifier (RFC 8737 section 6.1).
const ACME_IDENTIFIER: &str = "1.3.6.1.5.5.7.1.31";

/// RFC 8555 section 8.3.
pub async fn http01(
    addr: SocketAddr,
    name: &str,
    token: &str,
    expected: &str,
) -> Result<(), String> {
    let mut connection = KeepAlive::open_plain(addr, name).await?;
    let path = format!("/.well-known/acme-challenge/{token}");
    let (status, body) = connection.get(&path).await?;
    match (status, body.trim_end() == expected) {
        (200, true) => Ok(()),
        (200, false) => Err(format!("{path} answered {body:?}")),
        (status, _) => Err(format!("{path} answered {status}")),
    }
}

/// RFC 8737 section 3.
pub async fn tls_alpn01(addr: SocketAddr, name: &str, expected: &str) -> Result<(), String> {
    let served = client::served_with(addr, Some(name), &["acme-tls/1"]).await?;
    if served.alpn.as_deref() != Some("acme-tls/1") {
        return Err(format!("negotiated {:?}", served.alpn));
    }
    if served.names != [name] {
        return Err(format!("the names are {:?}", served.names));
    }
    let parsed = x509_parser::parse_x509_certificate(&served.der);
    let (_, certificate) = parsed.map_err(|error| error.to_string())?;
    let mut extensions = certificate.extensions().iter();
    let extension = extensions.find(|one| one.oid.to_id_string() == ACME_IDENTIFIER);
    let extension = extension.ok_or("no acmeIdentifier extension")?;
    // An OCTET STRING of 32 bytes: tag, length, digest.
    let mut wanted = vec![0x04, 0x20];
    wanted.extend_from_slice(digest(&SHA256, expected.as_bytes()).as_ref());
    match (extension.critical, extension.value == wanted) {
        (true, true) => Ok(()),
        (false, _) => Err("acmeIdentifier is not critical".to_owned()),
        (_, false) => Err("acmeIdentifier holds another digest".to_owned()),
    }
}
