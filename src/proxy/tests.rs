//! The proxy over real sockets: a plain listener that hands connections to it as the real one does,
//! and upstreams that answer with what they were asked.

use std::net::SocketAddr;
use std::sync::atomic::AtomicU16;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::routing::tests::{routing, site};
use super::*;
use crate::config::{self, TlsMode};
use crate::listener::drain::Drain;

/// A proxy under test.
struct Front {
    address: SocketAddr,
    metrics: Arc<Metrics>,
}

impl Front {
    async fn start(sites: &[config::Site]) -> Front {
        Front::with_challenges(sites, Challenges::default()).await
    }

    async fn with_challenges(sites: &[config::Site], challenges: Challenges) -> Front {
        Front::listen(sites, challenges, Speaks::Http1).await
    }

    async fn listen(sites: &[config::Site], challenges: Challenges, speaks: Speaks) -> Front {
        let metrics = Arc::new(Metrics::new());
        let proxy = Proxy::new(
            Arc::new(ArcSwap::from_pointee(routing(sites))),
            challenges,
            Arc::clone(&metrics),
            Arc::new(AtomicU16::new(8443)),
        );
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((stream, client)) = listener.accept().await {
                tokio::spawn(serve(proxy.clone(), stream, client, speaks));
            }
        });
        Front { address, metrics }
    }

    /// A plain site `a.test` with one route to these upstreams.
    async fn with_upstreams(upstreams: &[config::Upstream]) -> Front {
        Front::start(&[site(&["a.test"], TlsMode::Off, &[("/*", upstreams)])]).await
    }

    /// All that comes back for a whole request that ends its connection.
    async fn exchange(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut response = String::new();
        let read = stream.read_to_string(&mut response);
        tokio::time::timeout(Duration::from_secs(20), read)
            .await
            .expect("the connection is closed")
            .unwrap();
        response
    }

    async fn get(&self, host: &str, path: &str) -> String {
        self.exchange(&format!(
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        ))
        .await
    }
}

/// The real listener speaks HTTP/2 over TLS alone.
#[derive(Clone, Copy)]
enum Speaks {
    Http1,
    Http2,
}

async fn serve(proxy: Proxy, stream: TcpStream, client: SocketAddr, speaks: Speaks) {
    let local = stream.local_addr().unwrap();
    let info = ConnectionInfo::new(client, local);
    let (stream, drain) = (ClientStream::plain(stream), Drain::default());
    match speaks {
        Speaks::Http1 => proxy.serve_http1(stream, info.into(), drain).await,
        Speaks::Http2 => proxy.serve_http2(stream, info.into(), drain).await,
    }
}

/// An HTTP upstream that answers with the request's head, and its own name before it.
async fn echo(name: &'static str) -> SocketAddr {
    upstream(move |head| {
        let body = format!("{name}\n{head}");
        let length = body.len();
        format!("HTTP/1.1 200 OK\r\nServer: echo\r\nContent-Length: {length}\r\n\r\n{body}")
    })
    .await
}

/// An upstream that answers each request head on a connection; an empty answer closes it.
async fn upstream(answer: impl Fn(&str) -> String + Clone + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer = answer.clone();
            tokio::spawn(async move {
                while let Some(head) = read_head(&mut stream).await {
                    let response = answer(&head);
                    if response.is_empty() {
                        break;
                    }
                    stream.write_all(response.as_bytes()).await.unwrap();
                }
            });
        }
    });
    address
}

async fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    String::from_utf8(head).ok()
}

fn tcp(address: SocketAddr) -> config::Upstream {
    config::Upstream::Tcp {
        host: address.ip().to_string(),
        port: address.port(),
        tls: false,
        http2: false,
    }
}

/// An address where nobody listens.
async fn nobody() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap()
}

#[tokio::test]
async fn requests_reach_the_upstream_with_their_origin() {
    let front = Front::with_upstreams(&[tcp(echo("one").await)]).await;
    let response = front
        .exchange(
            "GET http://a.test/x?y=z HTTP/1.1\r\nHost: a.test\r\nX-Forwarded-For: 203.0.113.9\r\n\
             X-Real-IP: 203.0.113.9\r\nKeep-Alive: 5\r\nConnection: close\r\n\r\n",
        )
        .await;
    assert!(response.starts_with("HTTP/1.1 200 OK\r\n"), "{response}");
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("Server: echo"), "{head}");
    assert!(body.starts_with("one\nGET /x?y=z HTTP/1.1\r\n"), "{body}");
    let body = body.to_lowercase();
    for header in [
        "host: a.test\r\n",
        "x-forwarded-for: 127.0.0.1\r\n",
        "x-forwarded-proto: http\r\n",
        "x-forwarded-host: a.test\r\n",
    ] {
        assert!(body.contains(header), "{header} is not in {body}");
    }
    for gone in ["203.0.113.9", "keep-alive", "connection:"] {
        assert!(!body.contains(gone), "{gone} is in {body}");
    }
}

#[tokio::test]
async fn upstreams_take_turns_and_dead_ones_are_passed_over() {
    let (one, two) = (echo("one").await, echo("two").await);
    let dead = nobody().await;
    let front = Front::with_upstreams(&[tcp(dead), tcp(one), tcp(two)]).await;
    let mut names = Vec::new();
    for _ in 0..6 {
        let response = front.get("a.test", "/").await;
        let body = response.split_once("\r\n\r\n").unwrap().1;
        names.push(body.lines().next().unwrap().to_owned());
    }
    assert_eq!(names, ["one", "two", "one", "two", "one", "two"]);
    let metrics = front.metrics.render();
    for line in [
        format!(r#"perennial_upstream_healthy{{site="a.test",upstream="{dead}"}} 0"#),
        format!(r#"perennial_upstream_healthy{{site="a.test",upstream="{one}"}} 1"#),
        r#"perennial_requests_total{site="a.test",status="200"} 6"#.to_owned(),
    ] {
        assert!(metrics.contains(&line), "{line} is not in {metrics}");
    }
}

#[tokio::test]
async fn a_body_survives_a_failed_dial() {
    let upstream = upstream(|head| match head.contains("content-length: 5") {
        true => "HTTP/1.1 201 Created\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".into(),
        false => String::new(),
    });
    let upstream = upstream.await;
    let front = Front::with_upstreams(&[tcp(nobody().await), tcp(upstream)]).await;
    let response = front
        .exchange("POST / HTTP/1.1\r\nHost: a.test\r\ncontent-length: 5\r\nConnection: close\r\n\r\nhello")
        .await;
    assert!(response.starts_with("HTTP/1.1 201 "), "{response}");
}

#[tokio::test]
async fn failures_are_short_and_tell_nothing() {
    let silent = upstream(|_| String::new()).await;
    let nonsense = upstream(|_| "nonsense\r\n\r\n".into()).await;
    let unknown = config::Upstream::Tcp {
        host: "name.invalid".into(),
        port: 80,
        tls: false,
        http2: false,
    };
    for (upstream, status) in [
        (tcp(nobody().await), "502 Bad Gateway"),
        (tcp(silent), "502 Bad Gateway"),
        (tcp(nonsense), "502 Bad Gateway"),
        (
            config::Upstream::Unix("/nonexistent/socket".into()),
            "502 Bad Gateway",
        ),
        (unknown, "503 Service Unavailable"),
    ] {
        let front = Front::with_upstreams(std::slice::from_ref(&upstream)).await;
        let response = front.get("a.test", "/").await;
        let (head, body) = response.split_once("\r\n\r\n").unwrap();
        assert!(
            head.starts_with(&format!("HTTP/1.1 {status}\r\n")),
            "{upstream:?}: {head}"
        );
        assert!(head.contains("Cache-Control: no-store"), "{head}");
        assert!(!head.to_lowercase().contains("server:"), "{head}");
        assert_eq!(body, format!("{status}\n"), "{upstream:?}");
    }
}

#[tokio::test]
async fn own_answers_keep_the_connection() {
    let respond = &[config::Upstream::Respond("hello".into())];
    let challenges = Challenges::default();
    let _answer = challenges.provide_http01("known-token", "known-token.thumbprint");
    let sites = [
        site(&["a.test"], TlsMode::Off, &[("/*", respond)]),
        site(&["tls.test"], TlsMode::Auto, &[("/*", respond)]),
    ];
    let front = Front::with_challenges(&sites, challenges).await;
    let requests = [
        "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n",
        "HEAD / HTTP/1.1\r\nHost: a.test\r\n\r\n",
        "POST /p?q HTTP/1.1\r\nHost: TLS.test\r\nContent-Length: 3\r\n\r\nabc",
        "GET / HTTP/1.1\r\nHost: unknown.test\r\n\r\n",
        "TRACE / HTTP/1.1\r\nHost: a.test\r\n\r\n",
        "GET /.well-known/acme-challenge/known-token HTTP/1.1\r\nHost: unknown.test\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a b\r\nConnection: close\r\n\r\n",
    ];
    let responses = front.exchange(&requests.concat()).await;
    let statuses: Vec<&str> = responses
        .split("HTTP/1.1 ")
        .skip(1)
        .map(|response| &response[..3])
        .collect();
    assert_eq!(
        statuses,
        ["200", "200", "308", "421", "405", "200", "400"],
        "{responses}"
    );
    assert_eq!(responses.matches("hello").count(), 1, "{responses}");
    assert!(responses.contains("Content-Length: 5\r\n"), "{responses}");
    assert!(
        responses.contains("Location: https://tls.test:8443/p?q\r\n"),
        "{responses}"
    );
    assert!(responses.contains("known-token.thumbprint"), "{responses}");
    assert!(!responses.to_lowercase().contains("pingora"), "{responses}");
    let metrics = front.metrics.render();
    assert!(
        metrics.contains(r#"{site="-",status="421"} 1"#),
        "{metrics}"
    );
    assert!(
        metrics.contains(r#"{site="tls.test",status="308"} 1"#),
        "{metrics}"
    );
}

#[tokio::test]
async fn connect_is_refused_with_an_answer_of_ours() {
    let front = Front::with_upstreams(&[tcp(nobody().await)]).await;
    let response = front
        .exchange("CONNECT a.test:80 HTTP/1.1\r\nHost: a.test:80\r\nConnection: close\r\n\r\n")
        .await;
    assert!(response.starts_with("HTTP/1.1 405 "), "{response}");
    assert!(response.contains("Allow: GET"), "{response}");
    assert!(!response.contains("Pingora"), "{response}");
}

#[tokio::test]
async fn upstreams_may_be_named_and_on_unix_sockets() {
    let address = echo("named").await;
    let named = config::Upstream::Tcp {
        host: "localhost".into(),
        port: address.port(),
        tls: false,
        http2: false,
    };
    // `localhost` may be `::1` first, where nobody listens.
    let front = Front::with_upstreams(&[named]).await;
    for _ in 0..3 {
        let response = front.get("a.test", "/").await;
        assert!(response.contains("\r\n\r\nnamed\n"), "{response}");
    }

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("upstream.sock");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nunix";
        stream.write_all(answer).await.unwrap();
        tokio::time::sleep(Duration::from_secs(20)).await;
    });
    let front = Front::with_upstreams(&[config::Upstream::Unix(path)]).await;
    let response = front.get("a.test", "/").await;
    assert!(response.ends_with("\r\n\r\nunix"), "{response}");
}

#[tokio::test]
async fn a_kept_connection_that_was_closed_is_replaced() {
    // Every connection is good for one answer, but the upstream does not say so.
    let upstream = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = upstream.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = upstream.accept().await {
            tokio::spawn(async move {
                read_head(&mut stream).await;
                let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
                stream.write_all(answer).await.unwrap();
                read_head(&mut stream).await;
            });
        }
    });
    let front = Front::with_upstreams(&[tcp(address)]).await;
    for _ in 0..4 {
        let response = front.get("a.test", "/").await;
        assert!(response.ends_with("\r\n\r\nok"), "{response}");
    }
}

#[tokio::test]
async fn both_directions_of_an_upgrade_flow() {
    let upstream = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = upstream.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = upstream.accept().await.unwrap();
        let head = read_head(&mut stream).await.unwrap();
        assert!(head.to_lowercase().contains("upgrade: websocket"), "{head}");
        let answer = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
                       Connection: Upgrade\r\n\r\nfirst";
        stream.write_all(answer).await.unwrap();
        let mut received = [0; 4];
        stream.read_exact(&mut received).await.unwrap();
        stream.write_all(&received).await.unwrap();
    });
    let front = Front::with_upstreams(&[tcp(address)]).await;
    let mut stream = TcpStream::connect(front.address).await.unwrap();
    let request = b"GET / HTTP/1.1\r\nHost: a.test\r\nUpgrade: websocket\r\n\
                    Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let head = read_head(&mut stream).await.unwrap();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    let mut first = [0; 5];
    stream.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"first");
    stream.write_all(b"ping").await.unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b"ping");
}

#[tokio::test]
async fn an_answer_is_passed_on_as_it_comes() {
    let upstream = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = upstream.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = upstream.accept().await.unwrap();
        read_head(&mut stream).await;
        let start = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n";
        stream.write_all(start).await.unwrap();
        // It never ends: what the client sees was not waited for.
        tokio::time::sleep(Duration::from_secs(60)).await;
    });
    let front = Front::with_upstreams(&[tcp(address)]).await;
    let mut stream = TcpStream::connect(front.address).await.unwrap();
    let request = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n";
    stream.write_all(request).await.unwrap();
    read_head(&mut stream).await.unwrap();
    let mut chunk = [0; 10];
    let read = stream.read_exact(&mut chunk);
    tokio::time::timeout(Duration::from_secs(5), read)
        .await
        .expect("the chunk is not held back")
        .unwrap();
    assert_eq!(&chunk, b"5\r\nfirst\r\n");
}

#[tokio::test]
async fn a_client_that_is_still_sending_gets_its_answer() {
    let front = Front::with_upstreams(&[tcp(nobody().await)]).await;
    let mut stream = TcpStream::connect(front.address).await.unwrap();
    let head = b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 4000000\r\n\r\n";
    stream.write_all(head).await.unwrap();
    stream.write_all(&vec![b'x'; 4_000_000]).await.unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).await.unwrap();
    assert!(response.starts_with("HTTP/1.1 502 "), "{response}");
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl std::io::Write for Log {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn subscriber(&self) -> impl tracing::Subscriber + use<> {
        let log = self.clone();
        tracing_subscriber::fmt()
            .with_writer(move || log.clone())
            .with_ansi(false)
            .with_max_level(tracing::Level::INFO)
            .finish()
    }
}

/// Everything logged while it lives, on this thread: the proxy's tasks run on the test's.
fn captured_log() -> (Log, tracing::subscriber::DefaultGuard) {
    // With one subscriber alone, tracing asks the thread that reaches an event first whether
    // anybody wants it, and believes that for all threads: tests run side by side.
    static SECOND: LazyLock<tracing::Dispatch> =
        LazyLock::new(|| tracing::Dispatch::new(Log::default().subscriber()));
    LazyLock::force(&SECOND);
    let log = Log::default();
    let guard = tracing::subscriber::set_default(log.subscriber());
    (log, guard)
}

#[tokio::test]
async fn each_request_is_logged_once_and_each_failure_with_its_reason() {
    let (log, _guard) = captured_log();
    let (dead, alive) = (nobody().await, echo("one").await);
    let both = Front::with_upstreams(&[tcp(dead), tcp(alive)]).await;
    both.get("a.test", "/after-a-failure?secret=1").await;
    both.get("a.test", "/without-one").await;
    let none = Front::with_upstreams(&[tcp(dead)]).await;
    none.get("a.test", "/in-vain").await;
    let silent = upstream(|_| String::new()).await;
    let silent = Front::with_upstreams(&[tcp(silent)]).await;
    silent.get("a.test", "/silent").await;

    let log = log.text();
    let lines = |wanted: &[&str]| {
        let matches = |line: &&str| wanted.iter().all(|wanted| line.contains(wanted));
        log.lines().filter(matches).count()
    };
    for path in ["after-a-failure", "without-one", "in-vain", "silent"] {
        assert_eq!(lines(&["INFO perennial::access", path]), 1, "{log}");
    }
    let dead = format!("{dead}: connection refused");
    assert_eq!(
        lines(&["WARN", "another answered", "after-a-failure", &dead]),
        1,
        "{log}"
    );
    assert_eq!(
        lines(&["WARN", "request failed", "in-vain", "502", &dead]),
        1,
        "{log}"
    );
    assert_eq!(
        lines(&["WARN", "request failed", "silent", "connection closed"]),
        1,
        "{log}"
    );
    // Each of the two sites has found out by itself.
    assert_eq!(lines(&["WARN", "upstream cannot be dialled"]), 2, "{log}");
    assert_eq!(lines(&["WARN"]), 5, "{log}");
    assert_eq!(lines(&[]), 9, "{log}");
    assert!(!log.contains("secret"), "{log}");
}

#[tokio::test]
async fn http2_is_served_as_well() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let (alive, dead) = (echo("one").await, nobody().await);
    let sites = [
        site(
            &["a.test"],
            TlsMode::Off,
            &[("/dead", &[tcp(dead)]), ("/*", &[tcp(alive)])],
        ),
        site(&["tls.test"], TlsMode::Auto, &[("/*", &[tcp(alive)])]),
    ];
    let front = Front::listen(&sites, Challenges::default(), Speaks::Http2).await;
    let client = reqwest::Client::builder()
        .http2_prior_knowledge()
        .redirect(reqwest::redirect::Policy::none())
        .resolve("a.test", front.address)
        .resolve("tls.test", front.address)
        .resolve("unknown.test", front.address)
        .build()
        .unwrap();
    let port = front.address.port();
    let url = |host: &str, path: &str| format!("http://{host}:{port}{path}");

    let request = client.post(url("a.test", "/x")).header("cookie", "a=1");
    let request = request.header("cookie", "b=2").body("hello");
    let response = request.send().await.unwrap();
    assert_eq!(response.version(), http::Version::HTTP_2);
    let body = response.text().await.unwrap().to_lowercase();
    assert!(body.starts_with("one\npost /x http/1.1\r\n"), "{body}");
    assert!(body.contains(&format!("host: a.test:{port}\r\n")), "{body}");
    assert!(body.contains("cookie: a=1; b=2\r\n"), "{body}");

    for (host, path, status) in [
        ("a.test", "/dead", 502),
        ("unknown.test", "/", 421),
        ("tls.test", "/", 308),
    ] {
        let response = client.get(url(host, path)).send().await.unwrap();
        assert_eq!(response.status(), status, "{host}{path}");
        assert!(response.headers().get("server").is_none());
        let response = client.head(url(host, path)).send().await.unwrap();
        assert_eq!(response.status(), status, "HEAD {host}{path}");
    }
}

#[tokio::test]
async fn upstream_certificates_are_verified() {
    let (log, _guard) = captured_log();
    let port = self_signed_upstream();
    let upstream = config::Upstream::Tcp {
        host: "localhost".into(),
        port,
        tls: true,
        http2: false,
    };
    let front = Front::with_upstreams(&[upstream]).await;
    let response = front.get("a.test", "/").await;
    assert!(response.starts_with("HTTP/1.1 502 "), "{response}");
    let log = log.text();
    assert!(log.contains("CERTIFICATE_VERIFY_FAILED"), "{log}");
}

/// An HTTPS upstream on the loopback address that nobody has reason to trust; its port.
fn self_signed_upstream() -> u16 {
    use boring::ssl::{SslAcceptor, SslMethod};
    use std::io::{Read, Write};

    let issued = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let certificate = boring::x509::X509::from_der(issued.cert.der()).unwrap();
    let key = issued.signing_key.serialize_pem();
    let key = boring::pkey::PKey::private_key_from_pem(key.as_bytes()).unwrap();
    let mut acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls()).unwrap();
    acceptor.set_certificate(&certificate).unwrap();
    acceptor.set_private_key(&key).unwrap();
    let acceptor = acceptor.build();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            if let Ok(mut stream) = acceptor.accept(stream) {
                let _ = stream.read(&mut [0; 4096]);
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
            }
        }
    });
    port
}
