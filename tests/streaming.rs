//! Bodies flow both ways while they are being written; nothing waits for an end.

use std::any::Any;
use std::convert::Infallible;

use axum::body::{Body, Bytes};
use futures_util::{Stream, StreamExt, stream};
use hyper::body::Incoming;
use hyper::{Request, Response};
use tokio::sync::mpsc;

use crate::support::client::{Version, http_client};
use crate::support::http1::KeepAlive;
use crate::support::http2;
use crate::support::perennial::Perennial;
use crate::support::place::Place;
use crate::support::sites::{FileTls, site};
use crate::support::upstream::Upstream;
use crate::support::websocket::WebSocket;

const NAME: &str = "a.example.test";
const LARGE: usize = 20 * 1024 * 1024 + 17;

async fn scene() -> (Perennial, Upstream) {
    let place = Place::new();
    let upstream = Upstream::start(&place, "app").await;
    let tls = FileTls::new(&place, &[NAME]);
    let site = site(NAME, "files", &[&upstream.addr.to_string()]);
    let mut perennial = Perennial::run(place, &format!("{}{site}", tls.pair.table())).await;
    perennial.wait_ready().await;
    (perennial, upstream)
}

/// One request on a connection of its own, which lives as long as the second value.
pub async fn send(
    perennial: &Perennial,
    version: Version,
    mut request: Request<Body>,
) -> (Response<Incoming>, Box<dyn Any>) {
    let https = perennial.place.https;
    let host = NAME.parse().expect("a header value");
    match version {
        Version::Http1 => {
            request.headers_mut().insert("host", host);
            let mut connection = KeepAlive::open(https, NAME, None).await.expect("connected");
            let response = connection.send(request).await.expect("an answer");
            (response, Box::new(connection))
        }
        Version::Http2 => {
            let url = format!("https://{NAME}{}", request.uri());
            *request.uri_mut() = url.parse().expect("a URL");
            let mut sender = http2::open(https, NAME, None).await.expect("connected");
            (
                sender.send_request(request).await.expect("an answer"),
                Box::new(sender),
            )
        }
    }
}

/// Nothing more comes; HTTP/2 may end with an empty frame.
async fn assert_ends(body: &mut (impl Stream<Item = Result<Bytes, axum::Error>> + Unpin)) {
    while let Some(chunk) = body.next().await {
        assert!(chunk.expect("no error").is_empty());
    }
}

async fn next(body: &mut (impl Stream<Item = Result<Bytes, axum::Error>> + Unpin)) -> String {
    let limit = crate::support::wait::SOON;
    let chunk = tokio::time::timeout(limit, body.next()).await;
    let chunk = chunk
        .expect("a chunk in time")
        .expect("not the end")
        .expect("no error");
    String::from_utf8_lossy(&chunk).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_chunk_arrives_before_the_last_is_sent() {
    let (perennial, upstream) = scene().await;
    for version in [Version::Http1, Version::Http2] {
        let request = Request::get("/stream")
            .body(Body::empty())
            .expect("a request");
        let (response, _connection) = send(&perennial, version, request).await;
        let mut body = Body::new(response.into_body()).into_data_stream();
        assert_eq!(next(&mut body).await, "data: first\n\n", "{version:?}");
        upstream.release();
        assert_eq!(next(&mut body).await, "data: last\n\n", "{version:?}");
        assert_ends(&mut body).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_reaches_the_upstream_piece_by_piece() {
    let (perennial, _upstream) = scene().await;
    for version in [Version::Http1, Version::Http2] {
        let (pieces, source) = mpsc::channel::<&'static str>(4);
        let source = stream::unfold(source, |mut source| async {
            let piece = source.recv().await?;
            Some((Ok::<_, Infallible>(Bytes::from(piece)), source))
        });
        let request = Request::post("/echo").body(Body::from_stream(source));
        pieces.send("one").await.expect("taken");
        let (response, _connection) = send(&perennial, version, request.expect("a request")).await;
        let mut body = Body::new(response.into_body()).into_data_stream();
        assert_eq!(next(&mut body).await, "one", "{version:?}");
        pieces.send("two").await.expect("taken");
        assert_eq!(next(&mut body).await, "two", "{version:?}");
        drop(pieces);
        assert_ends(&mut body).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_bodies_arrive_whole() {
    let (perennial, _upstream) = scene().await;
    let base = format!("https://{NAME}:{}", perennial.place.https.port());
    for version in [Version::Http1, Version::Http2] {
        let client = http_client(NAME, perennial.place.https, None, version);
        let down = client.get(format!("{base}/bytes?n={LARGE}")).send().await;
        let down = down.expect("an answer").bytes().await.expect("a body");
        assert_eq!(down.len(), LARGE, "{version:?}");
        let up = client.post(format!("{base}/count")).body(down).send().await;
        let counted = up.expect("an answer").text().await.expect("a body");
        assert_eq!(counted, LARGE.to_string(), "{version:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_web_socket_echoes_and_outlives_a_reload() {
    let (perennial, _upstream) = scene().await;
    let https = perennial.place.https;
    let mut socket = WebSocket::open(https, NAME, "/ws", None)
        .await
        .expect("upgraded");
    assert_eq!(socket.exchange("before").await.as_deref(), Ok("before"));
    let (status, body) = perennial.admin_post("/reload").await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(socket.exchange("after").await.as_deref(), Ok("after"));
}

/// Counts the TLS records (RFC 8446 section 5.1) that come in.
struct Counting {
    socket: std::net::TcpStream,
    received: Vec<u8>,
}

impl std::io::Read for Counting {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let length = self.socket.read(buffer)?;
        self.received.extend_from_slice(&buffer[..length]);
        Ok(length)
    }
}

impl std::io::Write for Counting {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.socket.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.socket.flush()
    }
}

impl Counting {
    fn take_records(&mut self) -> usize {
        let received = std::mem::take(&mut self.received);
        let (mut rest, mut records) = (&received[..], 0);
        while let [_, _, _, high, low, following @ ..] = rest {
            rest = &following[usize::from(u16::from_be_bytes([*high, *low]))..];
            records += 1;
        }
        records
    }
}

/// Asks twice, and returns how many records the second response took and how long its body was.
fn records_of_a_response(perennial: &Perennial, path: &str) -> (usize, usize) {
    use std::io::{Read, Write};
    let mut config = crate::support::tls::accepting_anything();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let name = NAME.try_into().expect("a name");
    let session = rustls::ClientConnection::new(std::sync::Arc::new(config), name);
    let socket = std::net::TcpStream::connect(perennial.place.https).expect("connected");
    let socket = Counting {
        socket,
        received: Vec::new(),
    };
    let mut stream = rustls::StreamOwned::new(session.expect("a session"), socket);
    let mut counted = (0, 0);
    // The first is in the company of session tickets.
    for _ in 0..2 {
        stream.sock.take_records();
        let request = format!("GET {path} HTTP/1.1\r\nHost: {NAME}\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("written");
        let mut response = Vec::new();
        let mut buffer = [0; 4096];
        let length = loop {
            let read = stream.read(&mut buffer).expect("a response");
            response.extend_from_slice(&buffer[..read]);
            if let Some(length) = whole_body(&response) {
                break length;
            }
        };
        counted = (stream.sock.take_records(), length);
    }
    counted
}

/// The length of the body of a response that is there as a whole.
fn whole_body(response: &[u8]) -> Option<usize> {
    let response = std::str::from_utf8(response).expect("text");
    let (head, body) = response.split_once("\r\n\r\n")?;
    let head = head.to_ascii_lowercase();
    let length = head.split("content-length: ").nth(1).expect("a length");
    let length = length.lines().next()?.parse().expect("a number");
    (body.len() == length).then_some(length)
}

#[tokio::test(flavor = "multi_thread")]
async fn header_and_body_of_a_small_response_leave_as_one_record() {
    let (perennial, _upstream) = scene().await;
    let counts = tokio::task::spawn_blocking(move || {
        let long = format!("/?{}", "x".repeat(6000));
        ["/", &long].map(|path| records_of_a_response(&perennial, path))
    });
    for (records, length) in counts.await.expect("no panic") {
        assert_eq!(records, 1, "for {length} bytes");
    }
}
