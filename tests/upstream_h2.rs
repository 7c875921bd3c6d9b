//! Upstreams that speak HTTP/2: streams of many requests on few connections, what they refuse, how
//! they end, and that neither side gets more than it takes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{HeaderMap, Request, Response};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::support::client::{self, Version, http_client};
use crate::support::perennial::Perennial;
use crate::support::place::Place;
use crate::support::sites::FileTls;
use crate::support::tls;
use crate::support::wait::{SOON, wait_until};
use crate::support::websocket::WebSocket;
use crate::support::wire::Wire;

const NAME: &str = "a.example.test";
const BOTH: [Version; 2] = [Version::Http1, Version::Http2];

/// A stream that the upstream has got.
struct Stream {
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
    /// Has its connection say that it takes no more.
    goaway: mpsc::UnboundedSender<()>,
}

/// An upstream that does with each stream what the test says.
struct Scripted {
    addr: SocketAddr,
    streams: mpsc::UnboundedReceiver<Stream>,
    connections: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Scripted {
    async fn start(place: &Place, max_streams: u32) -> Scripted {
        let addr = place.free();
        let listener = TcpListener::bind(addr).await.expect("a free address");
        let (sender, streams) = mpsc::unbounded_channel();
        let connections = Arc::new(AtomicUsize::new(0));
        let count = connections.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                let _ = stream.set_nodelay(true);
                let sender = sender.clone();
                tokio::spawn(async move {
                    let mut builder = h2::server::Builder::new();
                    builder.max_concurrent_streams(max_streams);
                    let Ok(mut connection) = builder.handshake::<_, Bytes>(stream).await else {
                        return;
                    };
                    let (goaway, mut told) = mpsc::unbounded_channel();
                    loop {
                        tokio::select! {
                            accepted = connection.accept() => {
                                let Some(Ok((request, respond))) = accepted else { return };
                                let goaway = goaway.clone();
                                let _ = sender.send(Stream { request, respond, goaway });
                            }
                            _ = told.recv() => connection.graceful_shutdown(),
                        }
                    }
                });
            }
        });
        Scripted {
            addr,
            streams,
            connections,
            task,
        }
    }

    async fn next(&mut self) -> Stream {
        let next = tokio::time::timeout(SOON, self.streams.recv()).await;
        next.expect("a stream in time").expect("the upstream runs")
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

impl Stream {
    /// Answers with a body, and trailers if there are any.
    fn answer(mut self, body: &str, trailers: &[(&'static str, &'static str)]) {
        let response = Response::builder()
            .header("x-from", "h2")
            .body(())
            .expect("it");
        let mut stream = self.respond.send_response(response, false).expect("sent");
        let body = Bytes::copy_from_slice(body.as_bytes());
        stream.send_data(body, trailers.is_empty()).expect("sent");
        if !trailers.is_empty() {
            let mut map = HeaderMap::new();
            for (name, value) in trailers {
                map.insert(*name, value.parse().expect("ASCII"));
            }
            stream.send_trailers(map).expect("sent");
        }
    }

    async fn body(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        let body = self.request.body_mut();
        while let Some(data) = body.data().await {
            let data = data.expect("no error");
            let _ = body.flow_control().release_capacity(data.len());
            all.extend_from_slice(&data);
        }
        all
    }
}

struct Scene {
    perennial: Perennial,
    upstream: Scripted,
}

impl Scene {
    /// One worker: each has connections of its own.
    async fn start(max_streams: u32, rest: &str) -> Scene {
        let place = Place::new();
        let upstream = Scripted::start(&place, max_streams).await;
        let tls = FileTls::new(&place, &[NAME]);
        let site = format!(
            "[[sites]]\nhosts = [\"{NAME}\"]\ntls = \"files\"\nupstreams = [\"h2c://{}\"]\n{rest}\n",
            upstream.addr
        );
        let rest = format!("threads = 1\n{}{site}", tls.pair.table());
        let mut perennial = Perennial::run(place, &rest).await;
        perennial.wait_ready().await;
        Scene {
            perennial,
            upstream,
        }
    }

    fn ask(&self, version: Version, body: Option<&'static [u8]>) -> JoinHandle<reqwest::Response> {
        let https = self.perennial.place.https;
        let client = http_client(NAME, https, None, version);
        let url = format!("https://{NAME}:{}/a?b=c", https.port());
        let request = match body {
            None => client.get(url),
            Some(body) => client.post(url).body(body),
        };
        let request = request
            .header("X-Own", "1")
            .header("X-Forwarded-For", "6.6.6.6");
        tokio::spawn(async move { request.send().await.expect("an answer") })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_and_responses_are_the_same_in_the_other_way() {
    let mut scene = Scene::start(100, "").await;
    for version in BOTH {
        let asked = scene.ask(version, Some(b"a body"));
        let mut stream = scene.upstream.next().await;
        let head = &stream.request;
        assert_eq!(head.method(), "POST");
        let port = scene.perennial.place.https.port();
        assert_eq!(
            head.uri().to_string(),
            format!("http://{NAME}:{port}/a?b=c")
        );
        assert_eq!(head.headers()["x-own"], "1");
        assert_eq!(head.headers()["content-length"], "6");
        assert_eq!(head.headers()["x-forwarded-for"], "127.0.0.1");
        assert!(!head.headers().contains_key("connection") && !head.headers().contains_key("host"));
        assert_eq!(stream.body().await, b"a body");
        stream.answer("an answer", &[]);
        let response = asked.await.expect("no panic");
        assert_eq!(
            (response.status().as_u16(), &response.headers()["x-from"]),
            (200, &"h2".parse().expect("ASCII"))
        );
        assert_eq!(response.text().await.expect("a body"), "an answer");
    }
    assert_eq!(scene.upstream.connections(), 1);
}

/// As HTTP/1.1 has them: chunked, with `TE: trailers`, and interim responses before.
#[tokio::test(flavor = "multi_thread")]
async fn clients_of_http1_get_trailers_and_interim_responses() {
    let mut scene = Scene::start(100, "").await;
    let mut config = tls::accepting_anything();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let connected = client::connect(scene.perennial.place.https, NAME, config).await;
    let mut wire = Wire::new(connected.expect("a connection"));
    let head = format!(
        "PUT / HTTP/1.1\r\nHost: {NAME}\r\nTE: trailers\r\nConnection: TE\r\n\
         Transfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n"
    );
    wire.send(head).await.expect("sent");
    let mut stream = scene.upstream.next().await;
    assert_eq!(stream.request.headers()["te"], "trailers");
    let hint = Response::builder()
        .status(103)
        .header("link", "</a>")
        .body(())
        .expect("it");
    stream.respond.send_informational(hint).expect("sent");
    let interim = wire.until(b"\r\n\r\n").await.expect("an interim response");
    assert!(
        interim.starts_with(b"HTTP/1.1 103"),
        "{}",
        String::from_utf8_lossy(&interim)
    );
    wire.send("3\r\nabc\r\n0\r\nX-Sum: 7\r\n\r\n")
        .await
        .expect("sent");
    assert_eq!(stream.body().await, b"abc");
    let trailers = stream
        .request
        .body_mut()
        .trailers()
        .await
        .expect("no error");
    assert_eq!(trailers.expect("some")["x-sum"], "7");
    stream.answer("done", &[("x-end", "8")]);
    let answer = wire.response("PUT").await.expect("an answer");
    assert_eq!((answer.status(), &*answer.text()), (200, "done"));
    assert_eq!(answer.trailers, [("x-end".to_owned(), "8".to_owned())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_requests_share_a_connection_until_it_is_full() {
    let mut scene = Scene::start(4, "").await;
    // The first tells how many streams there may be.
    let first = scene.ask(Version::Http1, None);
    scene.upstream.next().await.answer("", &[]);
    first.await.expect("no panic");
    let asked: Vec<_> = (0..6).map(|_| scene.ask(Version::Http1, None)).collect();
    let mut streams = Vec::new();
    for _ in 0..6 {
        streams.push(scene.upstream.next().await);
    }
    assert_eq!(scene.upstream.connections(), 2);
    for stream in streams {
        stream.answer("", &[]);
    }
    for asked in asked {
        assert_eq!(asked.await.expect("no panic").status(), 200);
    }
}

/// A refused stream was not worked on, whatever was asked.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_is_sent_again() {
    let mut scene = Scene::start(100, "").await;
    for version in BOTH {
        let asked = scene.ask(version, Some(b"once"));
        let mut refused = scene.upstream.next().await;
        refused.respond.send_reset(Reason::REFUSED_STREAM);
        let mut again = scene.upstream.next().await;
        assert_eq!(again.body().await, b"once");
        again.answer("", &[]);
        assert_eq!(asked.await.expect("no panic").status(), 200);

        let asked = scene.ask(version, Some(b"once"));
        let mut failed = scene.upstream.next().await;
        failed.respond.send_reset(Reason::INTERNAL_ERROR);
        assert_eq!(asked.await.expect("no panic").status(), 502);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_ends_gets_no_more_and_finishes_what_it_has() {
    let mut scene = Scene::start(100, "").await;
    let first = scene.ask(Version::Http2, Some(b"first"));
    let stream = scene.upstream.next().await;
    stream.goaway.send(()).expect("told");
    // What is on its way when the word comes is still served there; what comes after it is not.
    let begun = std::time::Instant::now();
    while scene.upstream.connections() < 2 {
        assert!(begun.elapsed() < SOON, "no other connection");
        let next = scene.ask(Version::Http1, Some(b"next"));
        let mut other = scene.upstream.next().await;
        assert_eq!(other.body().await, b"next");
        other.answer("next", &[]);
        let response = next.await.expect("no panic");
        assert_eq!(response.text().await.expect("a body"), "next");
    }
    stream.answer("first", &[]);
    let response = first.await.expect("no panic");
    assert_eq!(response.text().await.expect("a body"), "first");
}

/// The upstream may send no more than the client takes, and the client than the upstream.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_sent_more_than_is_taken() {
    const MOST: usize = 8 * 1024 * 1024;
    let mut scene = Scene::start(100, "").await;
    let mut http2 = crate::support::http2::open(scene.perennial.place.https, NAME, None)
        .await
        .expect("a connection");
    let request = Request::get(format!("https://{NAME}/")).body(axum::body::Body::empty());
    let response = tokio::spawn(http2.send_request(request.expect("a request")));
    let mut stream = scene.upstream.next().await;
    let head = Response::new(());
    let mut body = stream.respond.send_response(head, false).expect("sent");
    // The client holds its response in its hand, and does not read it.
    let response = response.await.expect("no panic").expect("an answer");
    let mut sent = 0;
    let stuck = loop {
        body.reserve_capacity(64 * 1024);
        let room = std::future::poll_fn(|cx| body.poll_capacity(cx));
        match tokio::time::timeout(std::time::Duration::from_secs(2), room).await {
            Ok(room) => {
                let room = room.expect("open").expect("no error");
                body.send_data(Bytes::from(vec![b'x'; room]), false)
                    .expect("sent");
                sent += room;
            }
            Err(_) => break true,
        }
        if sent > MOST {
            break false;
        }
    };
    assert!(stuck, "{sent} bytes went to somebody who takes none");
    drop(response);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_does_not_speak_it_is_named() {
    let place = Place::new();
    let tls = FileTls::new(&place, &[NAME]);
    let app = crate::support::upstream::Upstream::start_tls(&place, "app", &tls.leaf).await;
    let site = format!(
        "[[sites]]\nhosts = [\"{NAME}\"]\ntls = \"files\"\nupstreams = [\"h2://{}\"]\n\
         upstream_tls = {{ ca = {:?}, server_name = \"{NAME}\" }}\n",
        app.addr, tls.root
    );
    let mut perennial = Perennial::run(place, &format!("{}{site}", tls.pair.table())).await;
    perennial.wait_ready().await;
    let https = perennial.place.https;
    let client = http_client(NAME, https, None, Version::Http1);
    let url = format!("https://{NAME}:{}/", https.port());
    let response = client.get(url).send().await.expect("an answer");
    assert_eq!(response.status(), 502);
    wait_until(SOON, "the reason in the log", async || {
        let lines = perennial.log_lines_with("it does not speak HTTP/2");
        (!lines.is_empty()).then_some(())
    })
    .await;
}

/// A server that speaks HTTP/1.1 and HTTP/2 on one port, and takes WebSockets over the former alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_web_socket_goes_over_http1_where_http2_takes_none() {
    let place = Place::new();
    let app = crate::support::upstream::Upstream::start(&place, "app").await;
    let site = format!(
        "[[sites]]\nhosts = [\"{NAME}\"]\ntls = \"files\"\nupstreams = [\"h2c://{}\"]\n",
        app.addr
    );
    let tls = FileTls::new(&place, &[NAME]);
    let rest = format!("threads = 1\n{}{site}", tls.pair.table());
    let mut perennial = Perennial::run(place, &rest).await;
    perennial.wait_ready().await;
    let https = perennial.place.https;
    for text in ["first", "second"] {
        let socket = WebSocket::open(https, NAME, "/ws", None).await;
        let mut socket = socket.expect("upgraded");
        assert_eq!(socket.exchange(text).await.as_deref(), Ok(text));
        let client = http_client(NAME, https, None, Version::Http2);
        let url = format!("https://{NAME}:{}/", https.port());
        let response = client.get(url).send().await.expect("an answer");
        let seen: serde_json::Value = response.json().await.expect("JSON");
        assert_eq!(seen["version"], "HTTP/2.0", "{seen}");
    }
}

/// One that speaks HTTP/2 alone takes no WebSockets: that is said, and no reason to leave it alone.
#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_of_http2_alone_takes_no_web_sockets() {
    let rest = "ejection = { failures = 1, time = \"1h\", max_time = \"1h\" }\n";
    let mut scene = Scene::start(100, rest).await;
    let https = scene.perennial.place.https;
    for _ in 0..3 {
        let socket = WebSocket::open(https, NAME, "/ws", None).await;
        let error = socket.map(|_| ()).expect_err("there is none");
        assert!(error.contains("502"), "{error}");
    }
    let reason =
        "takes no WebSockets over HTTP/2 (RFC 8441), and does not answer as one of HTTP/1.1";
    scene.perennial.wait_for_log(reason, SOON).await;
    let ejected = scene.perennial.log_lines_with("is ejected");
    assert!(ejected.is_empty(), "{ejected:?}");
    let asked = scene.ask(Version::Http2, None);
    scene.upstream.next().await.answer("well", &[]);
    assert_eq!(asked.await.expect("no panic").status(), 200);
}

/// Takes requests, and then hangs: its host is there, its program is not.
struct Hanging {
    addr: SocketAddr,
    connections: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Drop for Hanging {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Hanging {
    async fn start(place: &Place) -> Hanging {
        let addr = place.free();
        let listener = TcpListener::bind(addr).await.expect("a free address");
        let connections = Arc::new(AtomicUsize::new(0));
        let count = connections.clone();
        let task = tokio::spawn(async move {
            let mut held = Vec::new();
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                let opened = h2::server::handshake(stream).await;
                let mut connection = opened.expect("a connection");
                let stream = connection.accept().await;
                // Nobody reads it any more.
                held.push((connection, stream));
            }
        });
        Hanging {
            addr,
            connections,
            task,
        }
    }
}

/// A call that may be silent for ever has no other end: PINGs find out that nobody is there.
#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_hangs_is_found_out() {
    let place = Place::new();
    let hanging = Hanging::start(&place).await;
    let tls = FileTls::new(&place, &[NAME]);
    let site = format!(
        "[[sites]]\nhosts = [\"{NAME}\"]\ntls = \"files\"\nupstreams = [\"h2c://{}\"]\n\
         timeouts = {{ ping = \"200ms\" }}\n",
        hanging.addr
    );
    let rest = format!("threads = 1\n{}{site}", tls.pair.table());
    let mut perennial = Perennial::run(place, &rest).await;
    perennial.wait_ready().await;
    let https = perennial.place.https;
    let client = http_client(NAME, https, None, Version::Http1);
    for connections in 1..=2 {
        let url = format!("https://{NAME}:{}/", https.port());
        let request = client.post(url).header("content-type", "application/grpc");
        let response = tokio::time::timeout(SOON, request.send()).await;
        let response = response.expect("in time").expect("an answer");
        assert_eq!(response.status(), 502);
        assert_eq!(hanging.connections.load(Ordering::SeqCst), connections);
    }
    let told = perennial.log_lines_with("does not answer a PING");
    assert_eq!(told.len(), 2, "{told:?}");
}
