//! What a person sees at the start: where things are served, and how to trust the internal CA.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use super::Sockets;
use crate::acme::renewal::IssuerKind;
use crate::acme::subject::subjects;
use crate::admin::server::AdminListener;
use crate::certificate::name::Name;
use crate::config::{AdminListen, Config, Site, TlsMode};
use crate::listener::accept::Protocol;

/// Prints the addresses. They go to stderr, where the log goes.
pub(super) fn print(config: &Config, sockets: &Sockets) {
    if let Some(note) = &config.server.state_dir_note {
        tracing::info!("{note}");
    }
    for site in &config.sites {
        for host in &site.hosts {
            if let Some(url) = url(site, host, sockets) {
                tracing::info!(tls = ?site.tls, "serving {url}");
            }
        }
        if site.any_host {
            let how = if site.on_demand { ", on demand" } else { "" };
            tracing::info!(tls = ?site.tls, "serving every other name{how}");
        }
    }
    match (&sockets.admin, &config.server.admin_listen) {
        (Some(AdminListener::Tcp(_, address)), _) => {
            tracing::info!("admin API at http://{address}")
        }
        (Some(AdminListener::Unix(_)), AdminListen::Unix(path)) => {
            tracing::info!("admin API at unix:{}", path.display());
        }
        _ => {}
    }
    let internal = subjects(config)
        .iter()
        .any(|subject| subject.may_be_issued_by(IssuerKind::Internal));
    if internal {
        explain_trust(&config.server.state_dir.join("local-ca/root.pem"));
    }
}

fn explain_trust(root: &Path) {
    let root = std::path::absolute(root).unwrap_or_else(|_| root.to_owned());
    let root = root.display();
    tracing::info!("internal CA: clients have to trust its root, {root}");
    tracing::info!("  for one request: curl --cacert {root} URL");
    tracing::info!(
        "  for this host:   sudo cp {root} /usr/local/share/ca-certificates/perennial.crt && \
         sudo update-ca-certificates (browsers: import it under Authorities)"
    );
}

fn url(site: &Site, host: &Name, sockets: &Sockets) -> Option<String> {
    let (scheme, default_port, protocol) = match site.tls {
        TlsMode::Off => ("http", 80, Protocol::Http),
        _ => ("https", 443, Protocol::Https),
    };
    let address = sockets.first(protocol, &site.listen)?;
    let host = match host {
        Name::Ip(IpAddr::V6(ip)) => format!("[{ip}]"),
        other => other.to_string(),
    };
    let port = if address.port() == default_port {
        String::new()
    } else {
        format!(":{}", address.port())
    };
    let note = where_from(address);
    Some(format!("{scheme}://{host}{port}{note}"))
}

/// A listener on one address alone is worth a word.
fn where_from(address: SocketAddr) -> String {
    match address.ip() {
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) | IpAddr::V4(Ipv4Addr::UNSPECIFIED) => String::new(),
        ip => format!(" (on {ip} only)"),
    }
}
