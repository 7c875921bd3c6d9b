//! A Pingora application of its own, with certificates that reload by themselves and, if names
//! are given, come from an ACME CA:
//!
//! ```text
//! cargo run --example pingora_server -- LISTEN FOLDER UPSTREAM
//! cargo run --example pingora_server -- LISTEN FOLDER UPSTREAM STATE_DIR NAME...
//! ```
//!
//! For example `0.0.0.0:8443 /etc/ssl/sites 127.0.0.1:3000`. Put another certificate into the
//! folder, and the next handshake gets it. `ACME_DIRECTORY` and `ACME_ROOT` in the environment name
//! another CA than Let's Encrypt and the root of its own HTTPS, `HTTP_LISTEN` an address where
//! HTTP-01 challenges are answered as well.

use std::env;
use std::error::Error;
use std::time::Duration;

use async_trait::async_trait;
use perennial::{Acme, Certificates, HttpChallenges, Source};
use pingora::prelude::{HttpPeer, ProxyHttp, Server, Session, http_proxy_service};

/// Passes every request on to one upstream.
struct Application {
    upstream: String,
    challenges: HttpChallenges,
}

#[async_trait]
impl ProxyHttp for Application {
    type CTX = ();

    fn new_ctx(&self) {}

    async fn request_filter(&self, session: &mut Session, _: &mut ()) -> pingora::Result<bool> {
        self.challenges.answer(session).await
    }

    async fn upstream_peer(&self, _: &mut Session, _: &mut ()) -> pingora::Result<Box<HttpPeer>> {
        let peer = HttpPeer::new(&*self.upstream, false, String::new());
        Ok(Box::new(peer))
    }
}

fn acme(state_dir: &str, names: &[String]) -> Result<Acme, Box<dyn Error>> {
    let mut acme = Acme::new(state_dir, names)?;
    if let Ok(directory) = env::var("ACME_DIRECTORY") {
        acme = acme.directory(&directory)?;
    }
    if let Ok(root) = env::var("ACME_ROOT") {
        acme = acme.ca_certificate(root);
    }
    Ok(acme)
}

fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .init();
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [listen, folder, upstream, rest @ ..] = &arguments[..] else {
        return Err("usage: pingora_server LISTEN FOLDER UPSTREAM [STATE_DIR NAME...]".into());
    };

    let mut server = Server::new(None)?;
    server.bootstrap();

    let mut certificates = Certificates::watch([Source::folder(folder)], Duration::from_secs(5))?;
    if let [state_dir, names @ ..] = rest {
        certificates = certificates.with_acme(acme(state_dir, names)?);
    }
    let http_listen = env::var("HTTP_LISTEN").ok();
    let challenges = match &http_listen {
        Some(_) => certificates.offer_http_challenges(),
        None => HttpChallenges::default(),
    };

    let application = Application {
        upstream: upstream.clone(),
        challenges,
    };
    let mut proxy = http_proxy_service(&server.configuration, application);
    proxy.add_tls_with_settings(listen, None, certificates.tls_settings()?);
    if let Some(address) = http_listen {
        proxy.add_tcp(&address);
    }
    server.add_service(certificates.service());
    server.add_service(proxy);
    server.run_forever();
}
