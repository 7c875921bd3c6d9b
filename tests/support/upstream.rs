//! The application behind the proxy: tells what reached it, echoes, streams, holds answers back
//! until the test lets them go, speaks WebSocket.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Query, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use futures_util::{SinkExt, StreamExt, stream};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::certs::Leaf;
use super::place::Place;
use super::server::Server;

const CHUNK: usize = 64 * 1024;

/// Stopped when dropped.
pub struct Upstream {
    pub addr: SocketAddr,
    pub server: Server,
    seen: Arc<Seen>,
}

struct Seen {
    name: String,
    requests: AtomicUsize,
    held: AtomicUsize,
    let_go: Semaphore,
}

impl Upstream {
    pub async fn start(place: &Place, name: &str) -> Upstream {
        let (addr, seen) = (place.free(), Seen::new(name));
        let server = Server::tcp(addr, router(&seen)).await;
        Upstream { addr, server, seen }
    }

    /// Behind TLS with this certificate.
    pub async fn start_tls(place: &Place, name: &str, leaf: &Leaf) -> Upstream {
        let (addr, seen) = (place.free(), Seen::new(name));
        let server = Server::tls(addr, router(&seen), server_config(leaf, None)).await;
        Upstream { addr, server, seen }
    }

    /// The same, for clients with a certificate from the authority in this PEM text alone.
    pub async fn start_mutual_tls(
        place: &Place,
        name: &str,
        leaf: &Leaf,
        clients: &str,
    ) -> Upstream {
        let (addr, seen) = (place.free(), Seen::new(name));
        let config = server_config(leaf, Some(clients));
        let server = Server::tls(addr, router(&seen), config).await;
        Upstream { addr, server, seen }
    }

    /// On a Unix socket; `addr` means nothing then.
    pub async fn start_unix(path: &Path, name: &str) -> Upstream {
        let seen = Seen::new(name);
        let server = Server::unix(path, router(&seen)).await;
        let addr = SocketAddr::from(([0, 0, 0, 0], 0));
        Upstream { addr, server, seen }
    }

    pub fn requests(&self) -> usize {
        self.seen.requests.load(Ordering::SeqCst)
    }

    /// Requests that wait in `/hold` or `/stream` or have waited there.
    pub fn held(&self) -> usize {
        self.seen.held.load(Ordering::SeqCst)
    }

    /// Lets one held answer go.
    pub fn release(&self) {
        self.seen.let_go.add_permits(1);
    }
}

impl Seen {
    fn new(name: &str) -> Arc<Seen> {
        Arc::new(Seen {
            name: name.to_owned(),
            requests: AtomicUsize::new(0),
            held: AtomicUsize::new(0),
            let_go: Semaphore::new(0),
        })
    }

    async fn wait_for_release(&self) {
        self.held.fetch_add(1, Ordering::SeqCst);
        let permit = self.let_go.acquire().await.expect("never closed");
        permit.forget();
    }
}

type Shared = State<Arc<Seen>>;

fn router(seen: &Arc<Seen>) -> Router {
    Router::new()
        .route("/ws", get(web_socket))
        .route("/hold", get(hold))
        .route("/stream", get(stream_in_two_parts))
        .route("/bytes", get(bytes))
        .route("/count", post(count_body))
        .route("/echo", post(echo_body))
        .route("/whole", any(count_body))
        .fallback(any(tell))
        .layer(axum::extract::DefaultBodyLimit::disable())
        .with_state(Arc::clone(seen))
}

/// What reached the upstream, as JSON.
async fn tell(State(seen): Shared, request: Request) -> axum::Json<Value> {
    seen.requests.fetch_add(1, Ordering::SeqCst);
    let mut headers = serde_json::Map::new();
    for (name, value) in request.headers() {
        let all = headers.entry(name.as_str()).or_insert_with(|| json!([]));
        let value = json!(String::from_utf8_lossy(value.as_bytes()));
        all.as_array_mut().expect("an array").push(value);
    }
    axum::Json(json!({
        "upstream": seen.name,
        "method": request.method().as_str(),
        "path": request.uri().path_and_query().map(|path| path.as_str()),
        "headers": headers,
        "version": format!("{:?}", request.version()),
    }))
}

async fn hold(State(seen): Shared) -> String {
    seen.requests.fetch_add(1, Ordering::SeqCst);
    seen.wait_for_release().await;
    "released".to_owned()
}

/// As server-sent events do: the second part comes only once the test lets it go.
async fn stream_in_two_parts(State(seen): Shared) -> Response {
    let parts = stream::unfold(0, move |part| {
        let seen = Arc::clone(&seen);
        async move {
            let data = match part {
                0 => "data: first\n\n",
                1 => {
                    seen.wait_for_release().await;
                    "data: last\n\n"
                }
                _ => return None,
            };
            Some((Ok::<_, Infallible>(Bytes::from(data)), part + 1))
        }
    });
    let kind = [(header::CONTENT_TYPE, "text/event-stream")];
    (kind, Body::from_stream(parts)).into_response()
}

#[derive(serde::Deserialize)]
struct Amount {
    n: usize,
}

async fn bytes(Query(Amount { n }): Query<Amount>) -> Body {
    let full = std::iter::repeat_n(CHUNK, n / CHUNK).chain([n % CHUNK]);
    let chunks = full.map(|size| Ok::<_, Infallible>(Bytes::from(vec![b'x'; size])));
    Body::from_stream(stream::iter(chunks))
}

async fn count_body(body: Body) -> Result<String, StatusCode> {
    let mut frames = body.into_data_stream();
    let mut length = 0;
    while let Some(chunk) = frames.next().await {
        length += chunk.map_err(|_| StatusCode::BAD_REQUEST)?.len();
    }
    Ok(length.to_string())
}

/// Each chunk goes back when it arrives, before the next one is awaited.
async fn echo_body(body: Body) -> Body {
    Body::from_stream(body.into_data_stream())
}

async fn web_socket(mut request: Request) -> Response {
    let Some(key) = request.headers().get(header::SEC_WEBSOCKET_KEY).cloned() else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let Ok(upgraded) = upgrade.await else { return };
        let io = TokioIo::new(upgraded);
        let mut socket = WebSocketStream::from_raw_socket(io, Role::Server, None).await;
        while let Some(Ok(message)) = socket.next().await {
            if message.is_text() && socket.send(message).await.is_err() {
                break;
            }
        }
    });
    let accept = derive_accept_key(key.as_bytes());
    let headers = [
        (header::CONNECTION, "upgrade".to_owned()),
        (header::UPGRADE, "websocket".to_owned()),
        (header::SEC_WEBSOCKET_ACCEPT, accept),
    ];
    (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
}

pub fn server_config(leaf: &Leaf, clients: Option<&str>) -> rustls::ServerConfig {
    use rustls_pki_types::pem::PemObject;
    use rustls_pki_types::{CertificateDer, PrivateKeyDer};
    super::tls::install_provider();
    let chain_pem = leaf.chain_pem();
    let chain = CertificateDer::pem_slice_iter(chain_pem.as_bytes());
    let chain = chain.collect::<Result<_, _>>().expect("PEM");
    let key = PrivateKeyDer::from_pem_slice(leaf.key_pem.as_bytes()).expect("a key");
    let builder = rustls::ServerConfig::builder();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(pem) => {
            let mut roots = rustls::RootCertStore::empty();
            for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
                roots.add(certificate.expect("PEM")).expect("a root");
            }
            let verifier = rustls::server::WebPkiClientVerifier::builder(Arc::new(roots));
            builder.with_client_cert_verifier(verifier.build().expect("a verifier"))
        }
    };
    builder.with_single_cert(chain, key).expect("a pair")
}

/// The whole body as text.
pub async fn text(body: Body) -> String {
    let bytes = body.collect().await.expect("a body").to_bytes();
    String::from_utf8_lossy(&bytes).into_owned()
}
