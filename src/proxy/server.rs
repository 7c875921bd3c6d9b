//! Pingora's server side around the proxy: limits and retries that its defaults leave open.

use std::time::Duration;

use pingora::apps::HttpServerOptions;
use pingora::protocols::http::v2::server::default_h2_options;
use pingora::proxy::HttpProxy;
use pingora::server::configuration::ServerConf;

use super::Proxy;

/// How often one request may be sent on its way: dials that failed, and kept connections that
/// turned out to be closed.
const MAX_ATTEMPTS: usize = 16;

/// Idle connections to all upstreams together.
const UPSTREAM_POOL_SIZE: usize = 1024;

/// How long an HTTP/2 connection without a stream stays open.
const H2_IDLE_TIMEOUT: Duration = Duration::from_secs(180);

/// For `HttpProxy::new`. `threads` spreads what workers wait on: the number of worker threads.
pub fn server_conf(threads: usize) -> ServerConf {
    ServerConf {
        threads,
        max_retries: MAX_ATTEMPTS,
        upstream_keepalive_pool_size: UPSTREAM_POOL_SIZE,
        ..ServerConf::default()
    }
}

/// The proxy as an application that connections can be handed to.
pub fn http_proxy(proxy: Proxy, threads: usize) -> HttpProxy<Proxy> {
    let mut http_proxy = HttpProxy::new(proxy, server_conf(threads).into());
    http_proxy.server_options = Some(server_options());
    http_proxy.h2_options = Some(default_h2_options());
    http_proxy.handle_init_modules();
    http_proxy
}

fn server_options() -> HttpServerOptions {
    let mut options = HttpServerOptions::default();
    options.h2_idle_timeout = Some(H2_IDLE_TIMEOUT);
    // The proxy refuses CONNECT itself, with an answer of its own.
    options.allow_connect_method_proxying = true;
    options
}
