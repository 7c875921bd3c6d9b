//! Connections that change their protocol (RFC 9110 section 7.8), and those that do not.

use super::{Ask, Client, NAME, Scene, scene};
use crate::support::certs::TestCa;
use crate::support::perennial::Perennial;
use crate::support::place::Place;
use crate::support::scripted::{Peer, ScriptedUpstream, answer};
use crate::support::sites::{FileTls, site};
use crate::support::upstream::Upstream;
use crate::support::wait::SOON;
use crate::support::websocket::WebSocket;
use crate::support::wire::Head;

const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
                      Upgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

fn web_socket() -> Ask {
    Ask::new("GET", "/ws")
        .field("Connection", "keep-alive, Upgrade")
        .field("Upgrade", "websocket")
        .field("Sec-WebSocket-Version", "13")
        .field("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
}

/// Both ends of a WebSocket, just switched.
async fn switched(scene: &Scene) -> (Client, Peer) {
    let mut client = scene.client().await;
    client.send(web_socket().http1()).await.expect("sent");
    let (mut peer, request) = scene.upstream.request().await;
    assert_upgrade(&request.head);
    assert!(request.head.get("sec-websocket-key").is_some());
    peer.send(SWITCH).await.expect("sent");
    let head = client.head().await.expect("an answer");
    assert_eq!(head.status(), Ok(101));
    assert_upgrade(&head);
    assert!(head.get("sec-websocket-accept").is_some());
    (client, peer)
}

#[track_caller]
fn assert_upgrade(head: &Head) {
    let lower = |name| head.get(name).map(str::to_ascii_lowercase);
    assert_eq!(lower("upgrade").as_deref(), Some("websocket"), "{head:?}");
    let connection = lower("connection").unwrap_or_default();
    assert!(connection.contains("upgrade"), "{head:?}");
    assert_eq!(head.all("content-length").len(), 0, "{head:?}");
    assert_eq!(head.all("transfer-encoding").len(), 0, "{head:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_go_both_ways_at_once() {
    let scene = scene().await;
    let (mut client, mut peer) = switched(&scene).await;
    for round in 0..100_u8 {
        client.send([0x81, 1, round]).await.expect("sent");
        assert_eq!(peer.exactly(3).await.expect("at once"), [0x81, 1, round]);
        peer.send([0x81, 2, round, round]).await.expect("sent");
        let got = client.exactly(4).await.expect("at once");
        assert_eq!(got, [0x81, 2, round, round]);
    }
    // Nobody has to wait for a turn.
    let large = vec![7; 1 << 20];
    let up = async {
        client.send(&large).await.expect("sent");
        client.exactly(large.len()).await.expect("all of it")
    };
    let down = async {
        let got = peer.exactly(large.len()).await.expect("all of it");
        peer.send(&got).await.expect("sent");
    };
    let (got, ()) = tokio::join!(up, down);
    assert_eq!(got, large);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_closes_closes_the_client() {
    let scene = scene().await;
    let (mut client, mut peer) = switched(&scene).await;
    peer.send("bye").await.expect("sent");
    drop(peer);
    assert_eq!(client.rest().await.expect("closed").0, b"bye");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_closes_closes_the_upstream() {
    let scene = scene().await;
    let (mut client, mut peer) = switched(&scene).await;
    client.send("bye").await.expect("sent");
    drop(client);
    assert_eq!(peer.rest().await.expect("closed").0, b"bye");
}

/// Either side may have said all it has to say while the other has not.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_sent_before_a_half_close_arrives() {
    let scene = scene().await;
    let (mut client, mut peer) = switched(&scene).await;
    let large = vec![7; 256 * 1024];
    peer.send(&large).await.expect("sent");
    peer.finish().await;
    assert_eq!(client.rest().await.expect("closed").0.len(), large.len());
    let (mut client, mut peer) = switched(&scene).await;
    client.send(&large).await.expect("sent");
    client.finish().await;
    assert_eq!(peer.rest().await.expect("closed").0.len(), large.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn data_in_the_segment_of_the_switch_is_not_lost() {
    let scene = scene().await;
    let mut client = scene.client().await;
    client.send(web_socket().http1()).await.expect("sent");
    let (mut peer, _) = scene.upstream.request().await;
    peer.send(SWITCH.to_owned() + "first frame")
        .await
        .expect("sent");
    client.head().await.expect("an answer");
    assert_eq!(client.exactly(11).await.expect("at once"), b"first frame");
    client.send("reply").await.expect("sent");
    assert_eq!(peer.exactly(5).await.expect("at once"), b"reply");
}

/// A client that does not wait for the switch.
#[tokio::test(flavor = "multi_thread")]
async fn data_behind_the_request_waits_for_the_switch() {
    let scene = scene().await;
    let mut client = scene.client().await;
    client
        .send([&web_socket().http1()[..], b"early"].concat())
        .await
        .expect("sent");
    let (mut peer, _) = scene.upstream.request().await;
    peer.send(SWITCH).await.expect("sent");
    client.head().await.expect("an answer");
    assert_eq!(peer.exactly(5).await.expect("after the switch"), b"early");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_upgrade_is_an_answer_like_any_other() {
    let scene = scene().await;
    let mut client = scene.client().await;
    for refusal in [
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno",
        "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno",
        "HTTP/1.1 426 Upgrade Required\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Content-Length: 2\r\n\r\nno",
        "HTTP/1.1 400 Bad Request\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n",
    ] {
        client.send(web_socket().http1()).await.expect("sent");
        let (mut peer, _) = scene.upstream.request().await;
        peer.send(refusal).await.expect("sent");
        let answer = client
            .response("GET")
            .await
            .expect("an answer")
            .assert_whole();
        assert_eq!(answer.text(), "no", "{refusal:?}");
        assert_eq!(answer.head.status(), Ok(refusal[9..12].parse().unwrap()));
        let upgrade = answer.head.get("upgrade");
        assert_eq!(upgrade.is_some(), refusal.contains("426"), "{answer:?}");
        drop(peer);
    }
    // The connection is one for requests still.
    client.send(Ask::get().http1()).await.expect("sent");
    let (mut peer, request) = scene.upstream.request().await;
    assert_eq!(request.asked(), ("GET", "/"));
    peer.send(answer("200 OK", "next")).await.expect("sent");
    assert_eq!(
        client.response("GET").await.expect("an answer").text(),
        "next"
    );
}

/// A tunnel that the upstream has not agreed to would hide requests from us (smuggling by upgrade).
#[tokio::test(flavor = "multi_thread")]
async fn what_follows_a_refused_upgrade_is_a_request() {
    let scene = scene().await;
    let mut client = scene.client().await;
    let two = [web_socket().http1(), Ask::new("GET", "/second").http1()].concat();
    client.send(two).await.expect("sent");
    let (mut peer, _) = scene.upstream.request().await;
    peer.send(answer("200 OK", "no")).await.expect("sent");
    assert_eq!(
        client.response("GET").await.expect("an answer").text(),
        "no"
    );
    let second = scene.next_request(&mut peer).await;
    assert_eq!(second.asked(), ("GET", "/second"));
    assert_eq!(second.head.get("x-forwarded-for"), Some("127.0.0.1"));
    peer.send(answer("200 OK", "second")).await.expect("sent");
    assert_eq!(
        client.response("GET").await.expect("an answer").text(),
        "second"
    );
}

/// The handshake of WebSockets alone goes on. Another protocol's request arrives as a plain one, which
/// RFC 9110 section 7.8 allows: whoever is asked may ignore `Upgrade`.
#[tokio::test(flavor = "multi_thread")]
async fn other_protocols_are_not_offered_to_the_upstream() {
    let scene = scene().await;
    for protocol in ["h2c", "TLS/1.0", "foo", "websocket, h2c", "IRC/6.9"] {
        let mut client = scene.client().await;
        let ask = Ask::get()
            .field("Connection", "Upgrade")
            .field("Upgrade", protocol);
        client.send(ask.http1()).await.expect("sent");
        let (mut peer, request) = scene.upstream.request().await;
        assert_eq!(request.head.get("upgrade"), None, "{protocol}");
        assert_eq!(request.head.get("connection"), None, "{protocol}");
        // It was not asked to switch: a 101 is no answer.
        peer.send(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: foo\r\n\r\n",
        )
        .await
        .expect("sent");
        let answer = client.response("GET").await.expect("an answer");
        assert_eq!(answer.status(), 502, "{protocol}: {answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_switch_that_nobody_asked_for_is_502() {
    let scene = scene().await;
    for version in super::BOTH {
        let asked = scene.ask(version, Ask::get());
        let (mut peer, _) = scene.upstream.request().await;
        peer.send(SWITCH.to_owned() + "data").await.expect("sent");
        let answer = super::answered(asked).await;
        assert_eq!(answer.status(), 502, "{version:?}: {answer:?}");
    }
}

/// `Upgrade` means nothing in HTTP/1.0 (RFC 9110 section 7.8).
#[tokio::test(flavor = "multi_thread")]
async fn http_1_0_does_not_upgrade() {
    let scene = scene().await;
    let mut client = scene.client().await;
    let request = format!(
        "GET /ws HTTP/1.0\r\nHost: {NAME}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    );
    client.send(request).await.expect("sent");
    let (mut peer, request) = scene.upstream.request().await;
    assert_eq!(request.head.get("upgrade"), None);
    peer.send(answer("200 OK", "plain")).await.expect("sent");
    assert_eq!(
        client.response("GET").await.expect("an answer").text(),
        "plain"
    );
}

/// Nothing is held back for as long as the other side is silent.
#[tokio::test(flavor = "multi_thread")]
async fn a_switched_connection_may_be_silent() {
    let scene = scene().await;
    let (mut client, mut peer) = switched(&scene).await;
    let quiet = std::time::Duration::from_millis(300);
    assert!(!client.hears_within(quiet).await);
    assert!(!peer.hears_within(quiet).await);
    client.send("still here").await.expect("sent");
    assert_eq!(peer.exactly(10).await.expect("at once"), b"still here");
}

/// However the upstream is reached.
#[tokio::test(flavor = "multi_thread")]
async fn web_sockets_go_through_tls_and_unix_sockets() {
    let place = Place::new();
    let ca = TestCa::new();
    let bundle = place.write("upstream-ca.pem", &ca.root_pem);
    let leaf = ca.leaf(&["app.internal"]);
    let secure = Upstream::start_tls(&place, "secure", &leaf).await;
    let socket = place.path("app.sock");
    let _local = Upstream::start_unix(&socket, "local").await;
    let tls = FileTls::new(&place, &[NAME, "b.example.test"]);
    let sites = [
        site(NAME, "files", &[&format!("https://{}", secure.addr)]),
        format!("upstream_tls = {{ ca = {bundle:?}, server_name = \"app.internal\" }}\n"),
        site(
            "b.example.test",
            "files",
            &[&format!("unix:{}", socket.display())],
        ),
    ];
    let rest = format!("{}{}", tls.pair.table(), sites.concat());
    let mut perennial = Perennial::run(place, &rest).await;
    perennial.wait_ready().await;
    for host in [NAME, "b.example.test"] {
        // Whether the switch holds is decided anew each time.
        for _ in 0..10 {
            let opened = WebSocket::open(perennial.place.https, host, "/ws", None).await;
            let mut socket = opened.expect("upgraded");
            assert_eq!(socket.exchange("one").await.as_deref(), Ok("one"), "{host}");
            assert_eq!(socket.exchange("two").await.as_deref(), Ok("two"), "{host}");
        }
    }
}

/// A refused connection costs an upgrade no more than any other request.
#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_that_is_refused_a_connection_goes_elsewhere() {
    let place = Place::new();
    let live = ScriptedUpstream::start(&place).await;
    let both = [&*place.free().to_string(), &live.addr.to_string()];
    let perennial = super::in_front_of(place, &both).await;
    let scene = Scene::new(perennial, live);
    for _ in 0..4 {
        let (mut client, mut peer) = switched(&scene).await;
        client.send("hello").await.expect("sent");
        assert_eq!(peer.exactly(5).await.expect("at once"), b"hello");
    }
    let place = Place::new();
    let nobody = place.free().to_string();
    let perennial = super::in_front_of(place, &[&nobody]).await;
    let mut client = super::connect(&perennial).await;
    client.send(web_socket().http1()).await.expect("sent");
    assert_eq!(
        client.response("GET").await.expect("an answer").status(),
        502
    );
    perennial.wait_for_log("connection refused", SOON).await;
}
