//! The servers' configurations. What is not set is as it is shipped; what is set is so that all do
//! the same work.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use super::{Kind, Service, Setup};
use crate::certificates::{files, name};

pub fn configuration(setup: &Setup<'_>, address: SocketAddr) -> String {
    match (setup.kind, setup.service) {
        (Kind::Perennial, service) => perennial(setup, service, address),
        (Kind::Nginx, service) => nginx(setup, service, address),
        (Kind::HaProxy, service) => haproxy(setup, service, address),
        (Kind::Caddy, service) => caddy(setup, service, address),
    }
}

fn perennial(setup: &Setup<'_>, service: Service, address: SocketAddr) -> String {
    let (threads, host, upstream) = match service {
        Service::Fixed => (0, name(0), "respond:x".to_owned()),
        // As many names as there are certificates: one site has them all.
        Service::Proxy { upstream } => (
            setup.cores.len(),
            "*.bench.test".to_owned(),
            upstream.to_string(),
        ),
    };
    format!(
        // All clients are one, which by default has a part of the connections.
        "[server]\nhttp_listen = []\nhttps_listen = [\"{address}\"]\nadmin_listen = \"off\"\n\
         max_connections = 0\nmax_connections_per_client = 0\n\
         threads = {threads}\nstate_dir = {:?}\n[certificates]\ndirectories = [{:?}]\n\
         [[sites]]\nhosts = [\"{host}\"]\ntls = \"files\"\nupstreams = [\"{upstream}\"]\n",
        setup.directory.join("state"),
        setup.certificates,
    )
}

fn nginx(setup: &Setup<'_>, service: Service, address: SocketAddr) -> String {
    let (workers, connections, http, listen, answer) = match service {
        Service::Fixed => ("auto".to_owned(), 1024, String::new(), "ssl", "return 200;"),
        Service::Proxy { upstream } => (
            setup.cores.len().to_string(),
            16_384,
            // Without these it closes connections to clients and upstream after 1,000 requests,
            // and speaks HTTP/1.0 without keep-alive to the upstream.
            format!(
                "keepalive_requests 1000000000;\nproxy_http_version 1.1;\n\
                 proxy_set_header Connection \"\";\nproxy_set_header Host $host;\n\
                 upstream u {{ server {upstream}; keepalive 1024; \
                 keepalive_requests 1000000000; }}\n"
            ),
            "ssl http2",
            "location / { proxy_pass http://u; }",
        ),
    };
    let mut text = format!(
        "worker_processes {workers};\nworker_rlimit_nofile {};\nerror_log stderr;\n\
         pid nginx.pid;\nevents {{ worker_connections {connections}; }}\n\
         http {{\naccess_log off;\nssl_protocols TLSv1.2 TLSv1.3;\n\
         server_names_hash_max_size {};\nserver_names_hash_bucket_size 128;\n{http}",
        connections + 1024,
        (2 * setup.count).next_power_of_two().max(512),
    );
    for number in 0..setup.count {
        let (certificate, key) = files(setup.certificates, number);
        let _ = writeln!(
            text,
            "server {{ listen {address} {listen}; server_name {}; ssl_certificate {}; \
             ssl_certificate_key {}; {answer} }}",
            name(number),
            certificate.display(),
            key.display(),
        );
    }
    text + "}\n"
}

fn haproxy(setup: &Setup<'_>, service: Service, address: SocketAddr) -> String {
    combine_all(setup);
    let (global, alpn, answer) = match service {
        Service::Fixed => (
            String::new(),
            "",
            "  http-request return status 200\n".to_owned(),
        ),
        Service::Proxy { upstream } => (
            // It wants two descriptors for each connection, which is more than there may be.
            format!(
                "  nbthread {}\n  maxconn 16384\n  no strict-limits\n",
                setup.cores.len()
            ),
            " alpn h2,http/1.1",
            // Its default, `safe`, opens a connection to the upstream for each client's first
            // request, which none of the others does.
            format!("  default_backend b\nbackend b\n  http-reuse always\n  server s {upstream}\n"),
        ),
    };
    format!(
        "global\n{global}  ssl-default-bind-options ssl-min-ver TLSv1.2\ndefaults\n  mode http\n  \
         timeout client 60s\n  timeout server 60s\n  timeout connect 3s\nfrontend f\n  \
         bind {address} ssl crt {}{alpn}\n{answer}",
        setup.directory.join("crt").display(),
    )
}

fn combine_all(setup: &Setup<'_>) {
    fs::create_dir_all(setup.directory.join("crt")).expect("a folder");
    for number in 0..setup.count {
        combine(setup.certificates, setup.directory, number);
    }
}

/// HAProxy wants certificate and key in one file, and so does Caddy where it reads a folder.
pub fn combine(certificates: &Path, directory: &Path, number: usize) {
    let (certificate, key) = files(certificates, number);
    let both = [
        fs::read(certificate).expect("read"),
        fs::read(key).expect("read"),
    ]
    .concat();
    fs::write(directory.join("crt").join(name(number) + ".pem"), both).expect("written");
}

pub fn admin_of(address: SocketAddr) -> SocketAddr {
    SocketAddr::new([127, 0, 0, 2].into(), address.port())
}

/// A Caddyfile would make a site of each certificate; a folder is what scales.
fn caddy(setup: &Setup<'_>, service: Service, address: SocketAddr) -> String {
    combine_all(setup);
    let handler = match service {
        Service::Fixed => r#""handler": "static_response", "status_code": 200"#.to_owned(),
        Service::Proxy { upstream } => {
            format!(r#""handler": "reverse_proxy", "upstreams": [{{"dial": "{upstream}"}}]"#)
        }
    };
    let admin = admin_of(address);
    format!(
        r#"{{"admin": {{"listen": "{admin}", "origins": ["{admin}"]}},
"apps": {{
 "tls": {{"certificates": {{"load_folders": [{:?}]}}}},
 "http": {{"servers": {{"s": {{
  "listen": ["{address}"], "protocols": ["h1", "h2"],
  "automatic_https": {{"disable": true}}, "tls_connection_policies": [{{}}],
  "routes": [{{"handle": [{{{handler}}}]}}]
 }}}}}}
}}}}"#,
        setup.directory.join("crt"),
    )
}
