//! Answers of an upstream that say two things about where they end. Whatever is left over belongs to
//! nobody: the next request on the way never gets it (response queue poisoning).

use super::{Ask, BOTH, Scene, answered, connect, scene};
use crate::support::client::Version;
use crate::support::scripted::answer;

/// What would be taken for the answer to the next request.
const EVIL: &str = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";

/// One answer that is not all that comes.
struct Row {
    name: &'static str,
    method: &'static str,
    /// Of the upstream's answer, before what is left over.
    answer: &'static str,
    /// What the client gets: the status, and the body if the answer is whole.
    status: u16,
    body: &'static str,
}

const fn row(
    name: &'static str,
    method: &'static str,
    answer: &'static str,
    status: u16,
    body: &'static str,
) -> Row {
    Row {
        name,
        method,
        answer,
        status,
        body,
    }
}

const ROWS: [Row; 17] = [
    row(
        "more than its length",
        "GET",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        200,
        "ok",
    ),
    row(
        "a body of no length",
        "GET",
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        200,
        "",
    ),
    row("204", "GET", "HTTP/1.1 204 No Content\r\n\r\n", 204, ""),
    row(
        "204 with a length",
        "GET",
        "HTTP/1.1 204 No Content\r\nContent-Length: 51\r\n\r\n",
        204,
        "",
    ),
    row(
        "304 with a length",
        "GET",
        "HTTP/1.1 304 Not Modified\r\nContent-Length: 51\r\n\r\n",
        304,
        "",
    ),
    row(
        "304 in chunks",
        "GET",
        "HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n",
        304,
        "",
    ),
    row(
        "HEAD with a body",
        "HEAD",
        "HTTP/1.1 200 OK\r\nContent-Length: 51\r\n\r\n",
        200,
        "",
    ),
    row(
        "HEAD in chunks",
        "HEAD",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        200,
        "",
    ),
    row(
        "behind the last chunk",
        "GET",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        200,
        "ok",
    ),
    row(
        "behind the trailers",
        "GET",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX: y\r\n\r\n",
        200,
        "ok",
    ),
    row(
        "a length and chunks",
        "GET",
        "HTTP/1.1 200 OK\r\nContent-Length: 12\r\nTransfer-Encoding: chunked\r\n\r\n\
         2\r\nok\r\n0\r\n\r\n",
        200,
        "ok",
    ),
    row(
        "two lengths",
        "GET",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
        502,
        "",
    ),
    row(
        "a coding that is none",
        "GET",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: identity\r\n\r\nok",
        502,
        "",
    ),
    row(
        "chunks of HTTP/1.0",
        "GET",
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        502,
        "",
    ),
    row(
        "lines that end in LF",
        "GET",
        "HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
        200,
        "ok",
    ),
    row(
        "a switch that nobody asked for",
        "GET",
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
        502,
        "",
    ),
    row(
        "an interim response with a body",
        "GET",
        "HTTP/1.1 103 Early Hints\r\nContent-Length: 2\r\n\r\nok",
        502,
        "",
    ),
];

/// The next request reaches the upstream on a connection of its own, and gets its own answer.
async fn assert_next_is_its_own(scene: &Scene, version: Version, name: &str) {
    let asked = scene.ask(version, Ask::new("GET", "/next"));
    let (mut peer, request) = scene.upstream.request().await;
    assert_eq!(request.asked(), ("GET", "/next"), "{name}");
    let own = answer("200 OK", "own").replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n");
    peer.send(own).await.expect("sent");
    let got = answered(asked).await.assert_whole();
    assert_eq!((got.status(), &*got.text()), (200, "own"), "{name}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_over_is_nobodys() {
    let scene = scene().await;
    for Row {
        name,
        method,
        answer,
        status,
        body,
    } in ROWS
    {
        for version in BOTH {
            let asked = scene.ask(version, Ask::new(method, "/"));
            let (mut peer, _) = scene.upstream.request().await;
            // It may have heard enough before it has heard all.
            let _ = peer.send(format!("{answer}{EVIL}")).await;
            let got = answered(asked).await.assert_whole();
            assert_eq!(got.status(), status, "{version:?} {name}: {got:?}");
            if status != 502 {
                assert_eq!(got.text(), body, "{version:?} {name}");
            }
            assert_next_is_its_own(&scene, version, name).await;
            assert_eq!(peer.rest().await.expect("closed").0, b"", "{name}");
        }
    }
}

/// The same, but it comes when the connection has been put aside.
#[tokio::test(flavor = "multi_thread")]
async fn what_comes_unasked_is_nobodys() {
    let scene = scene().await;
    for version in BOTH {
        let asked = scene.ask(version, Ask::get());
        let (mut peer, _) = scene.upstream.request().await;
        peer.send(answer("200 OK", "ok")).await.expect("sent");
        assert_eq!(answered(asked).await.text(), "ok");
        peer.send(EVIL).await.expect("sent");
        assert_next_is_its_own(&scene, version, "unasked").await;
        assert_eq!(peer.rest().await.expect("closed").0, b"");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_interim_responses_is_no_answer() {
    let scene = scene().await;
    for version in BOTH {
        let asked = scene.ask(version, Ask::get());
        let (mut peer, _) = scene.upstream.request().await;
        let flood = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n".repeat(1000);
        let _ = peer.send(flood + EVIL).await;
        assert_eq!(answered(asked).await.status(), 502, "{version:?}");
        assert_next_is_its_own(&scene, version, "a flood").await;
    }
}

/// What is still to come of the request would be the next one to an upstream that has answered.
#[tokio::test(flavor = "multi_thread")]
async fn an_early_answer_ends_the_connection() {
    let scene = scene().await;
    let mut client = connect(&scene.perennial).await;
    let head = "POST / HTTP/1.1\r\nHost: a.example.test\r\nContent-Length: 90\r\n\r\n";
    client.send(head).await.expect("sent");
    let mut peer = scene.upstream.accept().await;
    peer.head().await.expect("before the body");
    peer.send(answer("200 OK", "early")).await.expect("sent");
    let got = client.response("POST").await.expect("an answer");
    assert_eq!(got.assert_whole().text(), "early");
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: a.example.test\r\n\r\n";
    let _ = client.send(smuggled).await;
    client.finish().await;
    assert_eq!(client.rest().await.expect("closed").0, b"");
    assert_next_is_its_own(&scene, Version::Http1, "early").await;
    let (rest, _) = peer.rest().await.expect("closed");
    assert!(rest.len() < 90, "{}", String::from_utf8_lossy(&rest));
}

/// An upstream that was told to expect a body, and answers without having asked for it, may not have
/// read it: it would take it for the next request.
#[tokio::test(flavor = "multi_thread")]
async fn an_expectation_that_is_passed_over_ends_the_connection() {
    let scene = scene().await;
    for version in BOTH {
        let ask = Ask::post("hello").field("expect", "100-continue");
        let asked = scene.ask(version, ask);
        let (mut peer, request) = scene.upstream.request().await;
        assert_eq!(request.head.get("expect"), Some("100-continue"));
        peer.send(answer("200 OK", "ok")).await.expect("sent");
        assert_eq!(answered(asked).await.text(), "ok", "{version:?}");
        assert_next_is_its_own(&scene, version, "expecting").await;
        assert_eq!(peer.rest().await.expect("closed").0, b"");
    }
}
