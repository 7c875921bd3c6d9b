//! One HTTP/2 connection (RFC 9113) that the test holds in its hand.

use std::net::SocketAddr;
use std::path::Path;

use axum::body::Body;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};

use super::{client, tls};

/// The sender of a new connection; trusts `ca` alone, or anybody where it is `None`.
pub async fn open(
    addr: SocketAddr,
    sni: &str,
    ca: Option<&Path>,
) -> Result<SendRequest<Body>, String> {
    let mut config = ca.map_or_else(tls::accepting_anything, tls::trusting);
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = client::connect(addr, sni, config).await?;
    if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
        return Err("the server does not speak h2".to_owned());
    }
    let opened = handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
    let (sender, connection) = opened.map_err(|error| error.to_string())?;
    tokio::spawn(async move {
        let _ = connection.await;
    });
    Ok(sender)
}
