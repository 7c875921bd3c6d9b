//! A gRPC service (tonic) of texts and numbers, and its client, without generated code: on the wire
//! all kinds of calls are streams both ways.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::{Stream, StreamExt, stream};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;
use tonic::metadata::MetadataMap;
use tonic::server::StreamingService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use super::certs::Leaf;
use super::place::Place;
use super::{client, tls};

/// A message of either direction.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Text {
    #[prost(string, tag = "1")]
    pub text: String,
    #[prost(uint32, tag = "2")]
    pub number: u32,
}

impl Text {
    pub fn new(text: &str, number: u32) -> Text {
        Text {
            text: text.to_owned(),
            number,
        }
    }
}

/// The server. Stopped when dropped.
pub struct Service {
    pub addr: SocketAddr,
    pub seen: Arc<Seen>,
    task: JoinHandle<()>,
}

#[derive(Default)]
pub struct Seen {
    /// Connections that were accepted.
    pub connections: AtomicUsize,
    /// Calls of `Hang` that began, and those of them that were cancelled.
    pub hanging: AtomicUsize,
    pub cancelled: AtomicUsize,
    /// Calls that came with `grpc-timeout`.
    pub with_deadline: AtomicUsize,
}

impl Drop for Service {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Service {
    /// By prior knowledge, or with TLS.
    pub async fn start(place: &Place, leaf: Option<&Leaf>) -> Service {
        let (addr, seen) = (place.free(), Arc::<Seen>::default());
        let listener = TcpListener::bind(addr).await.expect("a free address");
        let acceptor = leaf.map(|leaf| {
            let mut config = super::upstream::server_config(leaf, None);
            config.alpn_protocols = vec![b"h2".to_vec()];
            TlsAcceptor::from(Arc::new(config))
        });
        let state = seen.clone();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let _ = stream.set_nodelay(true);
                state.connections.fetch_add(1, Ordering::SeqCst);
                let (acceptor, state) = (acceptor.clone(), state.clone());
                connections.spawn(async move {
                    match acceptor {
                        None => serve(stream, state).await,
                        Some(acceptor) => match acceptor.accept(stream).await {
                            Ok(stream) => serve(stream, state).await,
                            Err(error) => eprintln!("upstream handshake: {error}"),
                        },
                    }
                });
            }
        });
        Service { addr, seen, task }
    }
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, seen: Arc<Seen>) {
    let answer = hyper::service::service_fn(move |request| answer(request, seen.clone()));
    let connection =
        http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), answer);
    let _ = connection.await;
}

async fn answer(
    request: http::Request<Incoming>,
    seen: Arc<Seen>,
) -> Result<http::Response<tonic::body::Body>, Infallible> {
    assert_eq!(request.headers()["te"], "trailers");
    if request.headers().contains_key("grpc-timeout") {
        seen.with_deadline.fetch_add(1, Ordering::SeqCst);
    }
    let path = request.uri().path().to_owned();
    let mut grpc = tonic::server::Grpc::new(ProstCodec::<Text, Text>::default());
    Ok(grpc.streaming(Method { path, seen }, request).await)
}

struct Method {
    path: String,
    seen: Arc<Seen>,
}

type Texts = Pin<Box<dyn Stream<Item = Result<Text, Status>> + Send>>;
type Answer = Pin<Box<dyn Future<Output = Result<Response<Texts>, Status>> + Send>>;

impl StreamingService<Text> for Method {
    type Response = Text;
    type ResponseStream = Texts;
    type Future = Answer;

    fn call(&mut self, request: Request<Streaming<Text>>) -> Answer {
        let (path, seen) = (self.path.clone(), self.seen.clone());
        let mut texts = request.into_inner();
        Box::pin(async move {
            let answer: Texts = match path.as_str() {
                "/test.Texts/Echo" => {
                    let text = texts.message().await?.expect("one");
                    Box::pin(stream::iter([Ok(text)]))
                }
                "/test.Texts/Fail" => {
                    let mut trailers = MetadataMap::new();
                    trailers.insert("x-why", "because".parse().expect("ASCII"));
                    let code = tonic::Code::FailedPrecondition;
                    return Err(Status::with_metadata(code, "no luck", trailers));
                }
                "/test.Texts/FailLate" => {
                    let late = [Ok(Text::new("first", 1)), Err(Status::aborted("then not"))];
                    Box::pin(stream::iter(late))
                }
                "/test.Texts/Count" => {
                    let last = texts.message().await?.expect("one").number;
                    Box::pin(stream::iter((0..last).map(|n| Ok(Text::new("n", n)))))
                }
                "/test.Texts/Sum" => {
                    let mut sum = 0;
                    while let Some(text) = texts.message().await? {
                        sum += text.number;
                    }
                    Box::pin(stream::iter([Ok(Text::new("sum", sum))]))
                }
                // Each goes back when it arrives, before the next one is awaited.
                "/test.Texts/Chat" => Box::pin(texts.map(|text| {
                    let text = text?;
                    Ok(Text::new(&text.text.to_uppercase(), text.number))
                })),
                "/test.Texts/Hang" => {
                    seen.hanging.fetch_add(1, Ordering::SeqCst);
                    let _cancelled = Cancelled(seen);
                    std::future::pending::<Texts>().await
                }
                other => return Err(Status::unimplemented(other)),
            };
            Ok(Response::new(answer))
        })
    }
}

struct Cancelled(Arc<Seen>);

impl Drop for Cancelled {
    fn drop(&mut self) {
        self.0.cancelled.fetch_add(1, Ordering::SeqCst);
    }
}

/// A client of the service, through the proxy, over one connection with TLS.
pub fn channel(proxy: SocketAddr, name: &'static str) -> Channel {
    let connect = tower::service_fn(move |_: http::Uri| async move {
        let mut config = tls::accepting_anything();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let stream = client::connect(proxy, name, config).await;
        stream.map(TokioIo::new).map_err(std::io::Error::other)
    });
    let endpoint = Endpoint::from_shared(format!("http://{name}")).expect("a URL");
    endpoint.connect_with_connector_lazy(connect)
}

/// One call with all kinds of streams.
pub async fn call(
    channel: &Channel,
    method: &'static str,
    texts: Request<impl Stream<Item = Text> + Send + 'static>,
) -> Result<Response<Streaming<Text>>, Status> {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready()
        .await
        .map_err(|error| Status::unknown(error.to_string()))?;
    let path = http::uri::PathAndQuery::from_static(method);
    grpc.streaming(texts, path, ProstCodec::<Text, Text>::default())
        .await
}

/// A call with one message each way.
pub async fn unary(
    channel: &Channel,
    method: &'static str,
    text: Request<Text>,
) -> Result<Response<Text>, Status> {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready()
        .await
        .map_err(|error| Status::unknown(error.to_string()))?;
    let path = http::uri::PathAndQuery::from_static(method);
    grpc.unary(text, path, ProstCodec::<Text, Text>::default())
        .await
}
