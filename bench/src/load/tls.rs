//! The client's side of TLS: version 1.3, one cipher suite and the same groups for every server,
//! so that all do the same work. Nothing is verified: what is measured is the server.

use std::sync::Arc;

use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, kx_group};

use super::Protocol;
use crate::handshake::Gullible;

/// The key exchanges that are offered, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Groups {
    /// X25519 alone: what every server can do.
    X25519,
    /// X25519MLKEM768 first, as browsers have it, then X25519.
    Hybrid,
}

pub fn config(groups: Groups, protocol: Protocol, resume: bool) -> Arc<ClientConfig> {
    let provider = Arc::new(CryptoProvider {
        cipher_suites: vec![cipher_suite::TLS13_AES_128_GCM_SHA256],
        kx_groups: match groups {
            Groups::X25519 => vec![kx_group::X25519],
            Groups::Hybrid => vec![kx_group::X25519MLKEM768, kx_group::X25519],
        },
        ..default_provider()
    });
    let verifier = Arc::new(Gullible::without_signatures(provider.clone()));
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("versions")
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = vec![match protocol {
        Protocol::Http1 => b"http/1.1".to_vec(),
        Protocol::Http2 => b"h2".to_vec(),
    }];
    if !resume {
        config.resumption = Resumption::disabled();
    }
    Arc::new(config)
}
