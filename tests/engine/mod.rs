//! What any HTTP engine between listener and upstream must do, judged from outside: the program is
//! spawned, upstreams are scripted byte by byte, clients speak raw HTTP/1.1 or HTTP/2.

mod bodies;
mod clients;
mod desync;
mod http2;
mod responses;
mod retries;
mod smuggling;
mod smuggling_http2;
mod smuggling_http2_published;
mod smuggling_published;
mod streaming;
mod table;
mod truncation;
mod upgrades;

use std::any::Any;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use h2::client::SendRequest;
use http::{HeaderMap, Request};
use hyper::body::Bytes;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::client::TlsStream;

use crate::support::client::{self, Version};
use crate::support::perennial::Perennial;
use crate::support::place::Place;
use crate::support::scripted::{Peer, ScriptedUpstream};
use crate::support::sites::{FileTls, site};
use crate::support::tls;
use crate::support::wait::SOON;
use crate::support::wire::{Head, Message, Wire};

pub const NAME: &str = "a.example.test";
pub const BOTH: [Version; 2] = [Version::Http1, Version::Http2];

/// A connection of a client that writes its bytes itself.
pub type Client = Wire<TlsStream<TcpStream>>;

/// The program in front of scripted upstreams.
pub struct Scene {
    pub perennial: Perennial,
    pub upstream: ScriptedUpstream,
    /// What the connections of clients hang on: one that is closed too soon after its answer is
    /// taken for one that was given up.
    open: Open,
}

/// A request that was sent beside the test.
pub type Asked = JoinHandle<Result<Message, String>>;

type Open = Arc<Mutex<Vec<Box<dyn Any + Send>>>>;

/// One upstream.
pub async fn scene() -> Scene {
    let place = Place::new();
    let upstream = ScriptedUpstream::start(&place).await;
    let perennial = in_front_of(place, &[&upstream.addr.to_string()]).await;
    Scene::new(perennial, upstream)
}

/// The program with a site for [`NAME`]. One thread serves it: each keeps connections to upstreams
/// of its own, and the tests want to know which one comes next.
pub async fn in_front_of(place: Place, upstreams: &[&str]) -> Perennial {
    let tls = FileTls::new(&place, &[NAME]);
    let site = site(NAME, "files", upstreams);
    let rest = format!("threads = 1\n{}{site}", tls.pair.table());
    let mut perennial = Perennial::run(place, &rest).await;
    perennial.wait_ready().await;
    perennial
}

impl Scene {
    pub fn new(perennial: Perennial, upstream: ScriptedUpstream) -> Scene {
        Scene {
            perennial,
            upstream,
            open: Open::default(),
        }
    }

    /// The next request: on this connection, or on another if the pool has given this one up.
    pub async fn next_request(&self, peer: &mut Peer) -> Message {
        match peer.request().await {
            Ok(request) => request,
            Err(_) => {
                let (other, request) = self.upstream.request().await;
                *peer = other;
                request
            }
        }
    }

    pub async fn client(&self) -> Client {
        connect(&self.perennial).await
    }

    pub async fn http2(&self) -> Http2 {
        Http2::open(&self.perennial, &mut h2::client::Builder::new()).await
    }

    /// Sends a request on a connection of its own, and waits for the answer beside the test.
    pub fn ask(&self, version: Version, ask: Ask) -> Asked {
        let (addr, open) = (self.perennial.place.https, Arc::clone(&self.open));
        tokio::spawn(async move { ask.send(addr, version, &open).await })
    }
}

/// A client of HTTP/1.1.
pub async fn connect(perennial: &Perennial) -> Client {
    let mut config = tls::accepting_anything();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let stream = client::connect(perennial.place.https, NAME, config).await;
    Wire::new(stream.expect("a connection"))
}

/// A request that a test sends in either version.
#[derive(Clone, Debug, Default)]
pub struct Ask {
    method: &'static str,
    path: &'static str,
    fields: Vec<(&'static str, &'static str)>,
    body: Option<Bytes>,
}

impl Ask {
    pub fn new(method: &'static str, path: &'static str) -> Ask {
        Ask {
            method,
            path,
            ..Ask::default()
        }
    }

    pub fn get() -> Ask {
        Ask::new("GET", "/")
    }

    pub fn post(body: impl Into<Bytes>) -> Ask {
        Ask::new("POST", "/").body(body)
    }

    /// Sent with its length.
    pub fn body(mut self, body: impl Into<Bytes>) -> Ask {
        self.body = Some(body.into());
        self
    }

    pub fn field(mut self, name: &'static str, value: &'static str) -> Ask {
        self.fields.push((name, value));
        self
    }

    async fn send(
        self,
        addr: SocketAddr,
        version: Version,
        open: &Open,
    ) -> Result<Message, String> {
        let keep = |connection| open.lock().unwrap().push(connection);
        match version {
            Version::Http1 => {
                let mut config = tls::accepting_anything();
                config.alpn_protocols = vec![b"http/1.1".to_vec()];
                let mut client = Wire::new(client::connect(addr, NAME, config).await?);
                client.send(self.http1()).await?;
                let response = client.response(self.method).await;
                keep(Box::new(client));
                response
            }
            Version::Http2 => {
                let mut http2 = Http2::connect(addr, &mut h2::client::Builder::new()).await?;
                let (request, body) = self.http2();
                let sent = http2.sender.send_request(request, body.is_none());
                let (response, mut stream) = sent.map_err(describe)?;
                keep(Box::new(http2));
                if let Some(body) = body {
                    // A refusal may come before the body was taken.
                    let _ = stream.send_data(body, true);
                }
                whole(response).await
            }
        }
    }

    /// As an HTTP/1.1 client writes it.
    pub fn http1(&self) -> Vec<u8> {
        let mut text = format!("{} {} HTTP/1.1\r\nHost: {NAME}\r\n", self.method, self.path);
        for (name, value) in &self.fields {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        if let Some(body) = &self.body {
            text.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        let body = self.body.as_deref().unwrap_or_default();
        [text.as_bytes(), b"\r\n", body].concat()
    }

    pub fn http2(&self) -> (Request<()>, Option<Bytes>) {
        let url = format!("https://{NAME}{}", self.path);
        let mut request = Request::builder().method(self.method).uri(url);
        for (name, value) in &self.fields {
            request = request.header(*name, *value);
        }
        if let Some(body) = &self.body {
            request = request.header("content-length", body.len());
        }
        (request.body(()).expect("a request"), self.body.clone())
    }
}

/// A connection of a client of HTTP/2 that keeps the rules.
pub struct Http2 {
    pub sender: SendRequest<Bytes>,
    driver: JoinHandle<Result<(), h2::Error>>,
}

impl Drop for Http2 {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Http2 {
    pub async fn open(perennial: &Perennial, builder: &mut h2::client::Builder) -> Http2 {
        let opened = Http2::connect(perennial.place.https, builder).await;
        opened.expect("a connection")
    }

    async fn connect(addr: SocketAddr, builder: &mut h2::client::Builder) -> Result<Http2, String> {
        let mut config = tls::accepting_anything();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let stream = client::connect(addr, NAME, config).await?;
        let opened = builder.handshake(stream).await;
        let (sender, connection) = opened.map_err(|error| error.to_string())?;
        let driver = tokio::spawn(connection);
        let sender = sender.ready().await.map_err(|error| error.to_string())?;
        Ok(Http2 { sender, driver })
    }

    /// A request without a body.
    pub fn get(&mut self, path: &str) -> h2::client::ResponseFuture {
        let request = Request::get(format!("https://{NAME}{path}")).body(());
        let sent = self.sender.send_request(request.expect("a request"), true);
        sent.expect("sent").0
    }

    /// A request to `/` whose body is still to be sent.
    pub fn post(&mut self) -> (h2::client::ResponseFuture, h2::SendStream<Bytes>) {
        let request = Request::post(format!("https://{NAME}/")).body(());
        let sent = self.sender.send_request(request.expect("a request"), false);
        sent.expect("sent")
    }
}

/// Body and trailers of a response; one that is cut off says so.
pub async fn whole(response: h2::client::ResponseFuture) -> Result<Message, String> {
    let received = async {
        let (parts, mut body) = response.await.map_err(describe)?.into_parts();
        let mut message = Message {
            head: Head {
                start: format!("HTTP/2 {}", parts.status.as_u16()),
                fields: fields(&parts.headers),
            },
            body: Vec::new(),
            trailers: Vec::new(),
            cut: None,
        };
        while let Some(data) = body.data().await {
            match data {
                Ok(data) => {
                    message.body.extend_from_slice(&data);
                    let _ = body.flow_control().release_capacity(data.len());
                }
                Err(error) => {
                    message.cut = Some(describe(error));
                    return Ok(message);
                }
            }
        }
        match body.trailers().await {
            Ok(trailers) => message.trailers = trailers.as_ref().map(fields).unwrap_or_default(),
            Err(error) => message.cut = Some(describe(error)),
        }
        Ok(message)
    };
    match tokio::time::timeout(SOON, received).await {
        Ok(result) => result,
        Err(_) => Err(format!("no whole response within {SOON:?}")),
    }
}

fn describe(error: h2::Error) -> String {
    match error.reason() {
        Some(reason) => format!("{reason:?}: {error}"),
        None => error.to_string(),
    }
}

fn fields(headers: &HeaderMap) -> Vec<(String, String)> {
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let fields = headers.iter();
    fields
        .map(|(name, value)| (name.as_str().to_owned(), text(value)))
        .collect()
}

/// The answer of a request sent beside the test.
pub async fn answered(asked: Asked) -> Message {
    let result = asked.await.expect("no panic");
    result.expect("an answer")
}
