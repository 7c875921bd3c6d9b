//! A server in Node as the upstream, in each of the three ways in which it speaks: kept connections,
//! bodies that flow, trailers, early hints, `Expect`, WebSockets.

use std::fmt::Write;

use futures_util::{SinkExt, StreamExt};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{self, protocol::Role};

use crate::engine::{self, NAME};
use crate::support::command::curl;
use crate::support::http2;
use crate::support::node::Node;
use crate::support::perennial::Perennial;
use crate::support::place::Place;
use crate::support::sites::FileTls;
use crate::support::wait::SOON;
use crate::support::websocket::WebSocket;
use crate::support::wire::{Message, Wire};

const WAYS: [&str; 3] = ["/http1", "/h2c", "/h2"];

/// HTTP/2, but for WebSockets.
const EITHER: &str = "/either";

struct Scene {
    perennial: Perennial,
    _node: Node,
}

impl Scene {
    /// One thread: each keeps connections of its own.
    async fn start() -> Scene {
        let place = Place::new();
        let tls = FileTls::new(&place, &[NAME]);
        let node = Node::start(&place, &tls.pair).await;
        let upstreams = [
            node.http1.to_string(),
            format!("h2c://{}", node.h2c),
            format!("h2://{}", node.h2),
            format!("h2://{}", node.either),
        ];
        let mut config = format!(
            "threads = 1\n{}[[sites]]\nhosts = [\"{NAME}\"]\ntls = \"files\"\n\
             upstream_tls = {{ ca = {:?}, server_name = \"{NAME}\" }}\n",
            tls.pair.table(),
            tls.root
        );
        for (way, upstream) in WAYS.iter().chain([&EITHER]).zip(upstreams) {
            let route = format!(
                "[[sites.routes]]\npath = \"{way}/*\"\nstrip_prefix = \"{way}\"\n\
                 upstreams = [\"{upstream}\"]\n"
            );
            config.push_str(&route);
        }
        let mut perennial = Perennial::run(place, &config).await;
        perennial.wait_ready().await;
        Scene {
            perennial,
            _node: node,
        }
    }

    async fn client(&self) -> Wire<TlsStream<TcpStream>> {
        engine::connect(&self.perennial).await
    }

    async fn get(&self, path: &str) -> Message {
        let mut client = self.client().await;
        client.send(head("GET", path, "")).await.expect("sent");
        let answer = client.response("GET").await.expect("an answer");
        client.finish().await;
        answer.assert_whole()
    }

    fn url(&self, path: &str) -> (String, String) {
        let https = self.perennial.place.https;
        let to = format!("{NAME}:{}:{}", https.port(), https.ip());
        (to, format!("https://{NAME}:{}{path}", https.port()))
    }
}

fn head(method: &str, path: &str, fields: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nHost: {NAME}\r\n{fields}\r\n")
}

fn chunk(data: &str) -> String {
    let mut text = String::new();
    write!(text, "{:x}\r\n{data}\r\n", data.len()).expect("a string takes all");
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn it_sees_what_was_asked_and_by_whom() {
    let scene = Scene::start().await;
    for (way, version) in WAYS.into_iter().zip(["1.1", "2.0", "2.0"]) {
        for http in ["--http1.1", "--http2"] {
            let (to, url) = scene.url(&format!("{way}/a%20b?c=d"));
            let done = curl(&["--insecure", "--fail", http, "--resolve", &to, &url]).await;
            let seen = done.assert_success().json();
            assert_eq!(seen["method"], "GET", "{way} {http}");
            assert_eq!(seen["url"], "/a%20b?c=d", "{way} {http}");
            assert_eq!(seen["version"], version, "{way} {http}");
            assert_eq!(seen["by"], "https", "{way} {http}");
            let host = seen["host"].as_str().unwrap_or_default();
            assert!(host.starts_with(NAME), "{way} {http}: {seen}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_kept_and_their_end_costs_nobody_a_request() {
    let scene = Scene::start().await;
    for way in WAYS {
        let mut used = Vec::new();
        for _ in 0..10 {
            let answer = scene.get(&format!("{way}/connection")).await.text();
            used.push(answer.split(' ').next().map(str::to_owned));
        }
        used.dedup();
        assert_eq!(used.len(), 1, "{way}: {used:?}");
    }
    // Node closes it right behind the answer.
    for round in 0..20 {
        assert_eq!(scene.get("/http1/close").await.text(), "closing", "{round}");
        assert_eq!(scene.get("/http1/204").await.status(), 204, "{round}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_flow_both_ways_at_once() {
    let scene = Scene::start().await;
    for way in WAYS {
        let mut client = scene.client().await;
        let chunked = "Transfer-Encoding: chunked\r\n";
        let request = head("POST", &format!("{way}/echo"), chunked) + &chunk("0");
        client.send(request).await.expect("sent");
        let answer = client.head().await.expect("before the body has ended");
        assert_eq!(answer.status(), Ok(200), "{way}");
        assert_eq!(client.chunk().await.expect("at once"), b"0", "{way}");
        for round in 1..50 {
            let data = round.to_string();
            client.send(chunk(&data)).await.expect("sent");
            let echo = client.chunk().await.expect("at once");
            assert_eq!(echo, data.as_bytes(), "{way}");
        }
        client.send("0\r\n\r\n").await.expect("sent");
        assert_eq!(client.chunk().await.expect("an end"), b"", "{way}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_bodies_come_back_as_they_were() {
    let scene = Scene::start().await;
    let sent = "0123456789abcdef".repeat(1 << 18);
    let file = scene.perennial.place.write("sent", &sent);
    let received = scene.perennial.place.path("received");
    let (data, into) = (format!("@{}", file.display()), received.display());
    for way in WAYS {
        for http in ["--http1.1", "--http2"] {
            let (to, url) = scene.url(&format!("{way}/echo"));
            let into = into.to_string();
            let arguments = ["--insecure", "--fail", http, "--resolve", &to];
            let body = ["--data-binary", &data, "--output", &into, &url];
            curl(&[&arguments[..], &body].concat())
                .await
                .assert_success();
            let received = std::fs::read(&received).expect("a file");
            assert!(received == sent.as_bytes(), "{way} {http}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_go_both_ways() {
    // Of `hello`.
    const SUM: &str = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
    let scene = Scene::start().await;
    for way in WAYS {
        let mut client = scene.client().await;
        let fields = "Transfer-Encoding: chunked\r\nTE: trailers\r\nTrailer: X-Told\r\n";
        let request = head("POST", &format!("{way}/trailers"), fields);
        let body = chunk("hello") + "0\r\nX-Told: everything\r\n\r\n";
        client.send(request + &body).await.expect("sent");
        let answer = client.response("POST").await.expect("an answer");
        assert_eq!(answer.clone().assert_whole().text(), "hello", "{way}");
        let trailer = |name: &str| {
            let mut trailers = answer.trailers.iter();
            let found = trailers.find(|(given, _)| given == name);
            found.map(|(_, value)| value.as_str())
        };
        assert_eq!(trailer("x-sum"), Some(SUM), "{way}: {answer:?}");
        assert_eq!(trailer("x-told"), Some("everything"), "{way}: {answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn early_hints_come_before_the_answer() {
    let scene = Scene::start().await;
    for way in WAYS {
        let mut client = scene.client().await;
        let request = head("GET", &format!("{way}/hints"), "");
        client.send(request).await.expect("sent");
        let hints = client.head().await.expect("hints");
        assert_eq!(hints.status(), Ok(103), "{way}");
        assert_eq!(hints.get("link"), Some("</a.css>; rel=preload"), "{way}");
        let answer = client.response("GET").await.expect("an answer");
        assert_eq!(answer.assert_whole().text(), "hinted", "{way}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_word_to_go_on_comes_from_it_and_so_does_a_refusal() {
    let scene = Scene::start().await;
    for way in WAYS {
        let expecting = |path: &str| {
            let fields = "Expect: 100-continue\r\nContent-Length: 5\r\n";
            head("POST", &format!("{way}{path}"), fields)
        };
        let mut client = scene.client().await;
        client.send(expecting("/echo")).await.expect("sent");
        let go_on = client.head().await.expect("before the body");
        assert_eq!(go_on.status(), Ok(100), "{way}");
        client.send("hello").await.expect("sent");
        let answer = client.response("POST").await.expect("an answer");
        assert_eq!(answer.assert_whole().text(), "hello", "{way}");
        let mut client = scene.client().await;
        client.send(expecting("/refused")).await.expect("sent");
        let answer = client.response("POST").await.expect("an answer");
        assert_eq!((answer.status(), &*answer.text()), (413, "no\n"), "{way}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_without_a_body_are_followed_by_others() {
    let scene = Scene::start().await;
    for way in WAYS {
        let mut client = scene.client().await;
        for (method, path, status) in [
            ("GET", "/204", 204),
            ("GET", "/304", 304),
            ("HEAD", "/seen", 200),
            ("HEAD", "/echo", 200),
            ("GET", "/204", 204),
        ] {
            let request = head(method, &format!("{way}{path}"), "");
            client.send(request).await.expect("sent");
            let answer = client.response(method).await.expect("an answer");
            assert_eq!(answer.status(), status, "{way} {method} {path}");
            assert_eq!(answer.assert_whole().body, b"", "{way} {method} {path}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn web_sockets_are_opened_whatever_it_speaks() {
    let scene = Scene::start().await;
    let https = scene.perennial.place.https;
    for way in WAYS.into_iter().chain([EITHER]) {
        let path = format!("{way}/ws");
        for round in ["first", "second"] {
            let socket = WebSocket::open(https, NAME, &path, None).await;
            let mut socket = socket.unwrap_or_else(|error| panic!("{way}: {error}"));
            for text in ["one", "two", round] {
                assert_eq!(socket.exchange(text).await.as_deref(), Ok(text), "{way}");
            }
        }
        // Requests beside them go as they went.
        let seen = scene.get(&format!("{way}/seen")).await.text();
        let version = if way == "/http1" { "1.1" } else { "2.0" };
        let version = format!("\"version\":\"{version}\"");
        assert!(seen.contains(&version), "{way}: {seen}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn web_sockets_of_http2_clients_are_opened_too() {
    let scene = Scene::start().await;
    let https = scene.perennial.place.https;
    let sender = http2::open(https, NAME, None).await;
    let mut sender = sender.expect("a connection");
    for way in WAYS.into_iter().chain([EITHER]) {
        let request = http::Request::connect(format!("https://{NAME}{way}/ws"))
            .extension(hyper::ext::Protocol::from_static("websocket"))
            .header("sec-websocket-version", "13")
            .body(axum::body::Body::empty());
        let response = sender.send_request(request.expect("a request")).await;
        let response = response.expect("an answer");
        assert_eq!(response.status(), 200, "{way}");
        let upgraded = hyper::upgrade::on(response).await.expect("a tunnel");
        let io = TokioIo::new(upgraded);
        let mut socket = WebSocketStream::from_raw_socket(io, Role::Client, None).await;
        for text in ["one", "two"] {
            let text = tungstenite::Message::text(text);
            socket.send(text.clone()).await.expect("sent");
            let echo = tokio::time::timeout(SOON, socket.next()).await;
            let echo = echo.expect("in time").expect("open").expect("no error");
            assert_eq!(echo, text, "{way}");
        }
    }
}

/// What an upstream of HTTP/2 answers instead goes on as it is.
#[tokio::test(flavor = "multi_thread")]
async fn a_web_socket_that_is_refused_is_an_answer() {
    let scene = Scene::start().await;
    for way in ["/h2c", "/h2"] {
        let fields = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                      Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
        let mut client = scene.client().await;
        let request = head("GET", &format!("{way}/forbidden"), fields);
        client.send(request).await.expect("sent");
        let answer = client.response("GET").await.expect("an answer");
        let answer = answer.assert_whole();
        assert_eq!((answer.status(), &*answer.text()), (403, "no"), "{way}");
    }
}
