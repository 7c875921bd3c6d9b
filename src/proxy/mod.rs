//! From a request to an answer: which site, which upstream, which fields, and the bytes both ways.
//! It owns no listening sockets and no certificates, and never waits for a CA.
//!
//! A connection is [`http1`] or [`http2`]; either gives its requests to an [`exchange`], which
//! decides, chooses an upstream and has a [`relay`] pass both bodies on.

mod access;
pub mod access_log;
mod address;
mod answered;
mod answering;
mod changes;
mod client;
mod coding;
mod compress;
mod connection;
mod context;
mod decision;
mod dial;
mod dns;
mod exchange;
mod failure;
mod files;
pub mod forward_auth;
mod forwarded;
mod forwarded_http2;
mod heard;
mod host;
mod http1;
mod http2;
mod intake;
mod kept;
mod login;
mod multiplexed;
mod origin;
mod pace;
mod path;
mod patience;
mod progress;
mod rate_limit;
mod relay;
mod relay_http2;
mod resolver;
mod respond;
mod routing;
mod stream_socket;
mod tunnel;
mod upstream;
pub mod upstream_tls;
mod watchdog;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use http::{Method, StatusCode};

use crate::acme::challenges::Challenges;
use crate::admin::metrics::Metrics;
use crate::listener::ConnectionInfo;
use crate::listener::drain::Drain;
use crate::listener::stream::ClientStream;
use crate::message::{HeadError, RequestHead};

use answering::send_answer;
use decision::{Decision, Handshake, Surroundings};
use exchange::Exchange;
use http1::{Http1, Incoming};
use http2::Http2;
use kept::Kept;
use multiplexed::Multiplexed;

pub use respond::Answer;
pub use routing::{Route, Routing, Site};
pub use upstream::check::HealthChecks;
pub use upstream::{Pool, Upstream};

/// How long a client may take for an answer of ours.
const CLIENT_WRITE_TIMEOUT: Duration = Duration::from_secs(60);

/// The proxy, for connections with and without TLS. Clones share everything.
#[derive(Clone)]
pub struct Proxy {
    routing: Arc<ArcSwap<Routing>>,
    challenges: Challenges,
    metrics: Arc<Metrics>,
    /// Where redirects lead; known once the listener is bound.
    https_port: Arc<AtomicU16>,
    kept: Kept,
    multiplexed: Multiplexed,
}

impl Proxy {
    /// Whoever stores another [`Routing`] later calls [`Routing::register`] for it.
    pub fn new(
        routing: Arc<ArcSwap<Routing>>,
        challenges: Challenges,
        metrics: Arc<Metrics>,
        https_port: Arc<AtomicU16>,
    ) -> Proxy {
        routing.load().register(&metrics);
        Proxy {
            routing,
            challenges,
            metrics,
            https_port,
            kept: Kept::default(),
            multiplexed: Multiplexed::default(),
        }
    }

    /// The same proxy for another thread: each keeps connections to upstreams of its own.
    pub fn for_worker(&self) -> Proxy {
        Proxy {
            kept: Kept::default(),
            multiplexed: Multiplexed::default(),
            ..self.clone()
        }
    }

    /// Serves a connection until it ends. After `drain` it ends as soon as nothing is under way.
    pub async fn serve(&self, stream: ClientStream, connection: ConnectionInfo, drain: Drain) {
        if stream.is_http2() {
            // Boxed: it is larger by far, and would be a part of every connection's memory.
            Box::pin(self.serve_http2(stream, connection, drain)).await;
        } else {
            self.serve_http1(stream, connection, drain).await;
        }
    }

    async fn serve_http1(&self, stream: ClientStream, connection: ConnectionInfo, drain: Drain) {
        let mut client = Http1::new(stream, drain);
        let mut request = RequestHead::default();
        loop {
            let idle_timeout = self.routing.load().idle_timeouts.http1;
            let (status, reason) = match client.next(&mut request, idle_timeout).await {
                Incoming::Request => {
                    let exchange = Exchange {
                        proxy: self,
                        connection: &connection,
                        request: &request,
                        client: &mut client,
                    };
                    exchange.run().await;
                    match client.finish().await {
                        true => continue,
                        false => break,
                    }
                }
                Incoming::Malformed(error) => (status_of(error), error.to_string()),
                Incoming::TooSlow => (StatusCode::REQUEST_TIMEOUT, "it came too slowly".into()),
                Incoming::End => break,
            };
            let refuse = self.refuse(&mut client, &connection, status, &reason);
            Box::pin(refuse).await;
            break;
        }
        client.close().await;
    }

    /// Answers what is no request.
    async fn refuse(
        &self,
        client: &mut Http1,
        connection: &ConnectionInfo,
        status: StatusCode,
        reason: &str,
    ) {
        // If this fails, the client is gone.
        let _ = send_answer(client, Answer::failure(status), &Method::GET).await;
        self.metrics.request("-", status, None);
        access_log::record_malformed(connection, status, reason);
    }

    async fn serve_http2(&self, stream: ClientStream, connection: ConnectionInfo, drain: Drain) {
        let (client, connection) = (connection.client, Arc::new(connection));
        let idle_timeout = || self.routing.load().idle_timeouts.http2;
        let served = http2::connection(stream, drain, idle_timeout, |begun| {
            let (proxy, connection) = (self.clone(), Arc::clone(&connection));
            // Boxed, so that it stays where it was made: to spawn and to end a task moves what it
            // runs half a dozen times.
            let served = Box::pin(async move { proxy.serve_stream(begun, &connection).await });
            tokio::spawn(served);
        });
        if let Err(error) = served.await {
            tracing::debug!(%client, %error, "HTTP/2 connection");
        }
    }

    async fn serve_stream(&self, begun: http2::Begun, connection: &ConnectionInfo) {
        let (request, respond) = begun;
        let (parts, body) = request.into_parts();
        let ends = body.is_end_stream();
        let websocket = http2::is_websocket(&parts);
        let mut client = Http2::new(body, respond, websocket);
        let request = match websocket {
            true => RequestHead::from_extended_connect(&parts, &websocket_key()),
            false => RequestHead::from_http2(&parts, ends),
        };
        let Some(request) = request else {
            return client.refuse();
        };
        drop(parts);
        let has_end = !websocket && request.framing.is_empty();
        if has_end && client.expect_end().await.is_err() {
            return client.refuse();
        }
        let exchange = Exchange {
            proxy: self,
            connection,
            request: &request,
            client: &mut client,
        };
        exchange.run().await;
        client.forgo_rest().await;
        client.finish();
    }

    fn decide(&self, request: &RequestHead, connection: &ConnectionInfo) -> Decision {
        let tls = connection.tls.as_ref();
        let served = tls.and_then(|tls| tls.served.as_ref());
        let covers = |name: &_| served.is_some_and(|served| served.covers(name));
        let surroundings = Surroundings {
            routing: &self.routing.load(),
            key_authorization: &|token| self.challenges.http01(token),
            tls: tls.map(|tls| Handshake {
                server_name: tls.server_name.as_deref(),
                client_auth: tls.client_auth.as_deref(),
                covers: &covers,
            }),
            scope: connection.scope.as_deref(),
            https_port: self.https_port.load(Ordering::Relaxed),
        };
        decision::decide(request, &surroundings)
    }
}

/// RFC 6455 section 4.1: 16 bytes of chance.
fn websocket_key() -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(rand::random::<[u8; 16]>())
}

fn status_of(error: HeadError) -> StatusCode {
    match error {
        HeadError::TooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        HeadError::Version => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
        _ => StatusCode::BAD_REQUEST,
    }
}

/// The answer to a request that is a CA's look at an HTTP-01 challenge. `None`: it is none that we
/// know.
pub fn challenge_answer(method: &Method, path: &str, challenges: &Challenges) -> Option<Answer> {
    let token = decision::challenge_token(method, path.as_bytes())?;
    challenges.http01(token).map(Answer::key_authorization)
}
