//! Answers of upstreams, usual and unusual: what reaches the client can be understood in one way
//! alone.

use super::{Ask, BOTH, Scene, answered, connect, scene};
use crate::support::client::Version;
use crate::support::scripted::answer;
use crate::support::wire::Message;

/// What the client gets when the upstream sends `sent`, and closes.
async fn after(scene: &Scene, version: Version, ask: Ask, sent: &[u8]) -> Message {
    let asked = scene.ask(version, ask);
    let (mut peer, _) = scene.upstream.request().await;
    // It may have heard enough before it has heard all.
    let _ = peer.send(sent).await;
    peer.finish().await;
    answered(asked).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_answer_is_502() {
    let scene = scene().await;
    for bad in [
        "\0\x01 no protocol of yours\r\n\r\n",
        "HTTP/3.7 200 OK\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 OK\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        "HTTP/1.1 200 OK\r\nContent-Length: 5, 6\r\n\r\nhello!",
        "HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nContent-Length: 0x5\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: a\rb\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX@Y: a\r\nContent-Length: 0\r\n\r\n",
    ] {
        for version in BOTH {
            let answer = after(&scene, version, Ask::get(), bad.as_bytes()).await;
            assert_eq!(answer.status(), 502, "{version:?} {bad:?}: {answer:?}");
            answer.assert_whole();
        }
    }
}

/// What RFC 9112 lets a recipient mend must be mended before it goes on: the client here reads
/// without any leniency.
#[tokio::test(flavor = "multi_thread")]
async fn what_can_be_mended_goes_on_mended() {
    let scene = scene().await;
    for odd in [
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\nhello",
        "HTTP/1.1 200 OK\nContent-Length: 5\n\nhello",
        "HTTP/1.1 200 OK\r\nContent-Length : 5\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 5\r\n\r\nhello",
    ] {
        for version in BOTH {
            let answer = after(&scene, version, Ask::get(), odd.as_bytes()).await;
            // To refuse is as good.
            let refused = answer.status() == 502;
            assert!(refused || answer.text() == "hello", "{odd:?}: {answer:?}");
            answer.assert_whole();
        }
    }
}

/// RFC 9112 section 6.3: the length counts for nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_coding_comes_before_a_length() {
    let scene = scene().await;
    let both = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n\
                5\r\nhello\r\n0\r\n\r\n";
    for version in BOTH {
        let answer = after(&scene, version, Ask::get(), both.as_bytes()).await;
        let refused = answer.status() == 502;
        assert!(
            refused || answer.text() == "hello",
            "{version:?}: {answer:?}"
        );
        answer.assert_whole();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_headers_pass_and_endless_ones_do_not() {
    let scene = scene().await;
    let with = |length: usize| {
        let value = "x".repeat(length);
        format!("HTTP/1.1 200 OK\r\nX-Large: {value}\r\nContent-Length: 5\r\n\r\nhello")
    };
    for version in BOTH {
        let large = after(&scene, version, Ask::get(), with(15_000).as_bytes()).await;
        assert_eq!(large.text(), "hello", "{version:?}");
        assert_eq!(large.head.get("x-large").map(str::len), Some(15_000));
        let endless = after(&scene, version, Ask::get(), with(3 << 20).as_bytes()).await;
        assert_eq!(endless.status(), 502, "{version:?}");
        let many = "X: y\r\n".repeat(10_000);
        let many = format!("HTTP/1.1 200 OK\r\n{many}Content-Length: 5\r\n\r\nhello");
        let many = after(&scene, version, Ask::get(), many.as_bytes()).await;
        assert_eq!(many.status(), 502, "{version:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn interim_responses_come_before_the_final_one() {
    let scene = scene().await;
    let hints = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n";
    for interim in [
        "HTTP/1.1 100 Continue\r\n\r\n",
        hints,
        "HTTP/1.1 102 Processing\r\n\r\n",
    ] {
        for version in BOTH {
            // At once, and with the final response behind it in the same segment.
            let sent = [interim, interim, &answer("200 OK", "final")].concat();
            let answer = after(&scene, version, Ask::get(), sent.as_bytes()).await;
            assert_eq!(answer.clone().assert_whole().text(), "final", "{answer:?}");
        }
    }
    // RFC 9110 section 15.2: a proxy forwards them.
    let mut client = scene.client().await;
    client.send(Ask::get().http1()).await.expect("sent");
    let (mut peer, _) = scene.upstream.request().await;
    peer.send(hints).await.expect("sent");
    let early = client
        .head()
        .await
        .expect("before there is a final response");
    assert_eq!(early.status(), Ok(103));
    assert_eq!(early.get("link"), Some("</a.css>; rel=preload"));
    assert_eq!(early.get("content-length"), None);
    peer.send(answer("200 OK", "final")).await.expect("sent");
    assert_eq!(
        client.response("GET").await.expect("an answer").text(),
        "final"
    );
}

/// They did not exist then (RFC 9110 section 15.2).
#[tokio::test(flavor = "multi_thread")]
async fn interim_responses_are_not_for_http_1_0() {
    let scene = scene().await;
    let mut client = scene.client().await;
    let request = format!("GET / HTTP/1.0\r\nHost: {}\r\n\r\n", super::NAME);
    client.send(request).await.expect("sent");
    let (mut peer, _) = scene.upstream.request().await;
    let interim = "HTTP/1.1 103 Early Hints\r\n\r\n".to_owned();
    peer.send(interim + &answer("200 OK", "final"))
        .await
        .expect("sent");
    let first = client.head().await.expect("an answer");
    assert_eq!(first.status(), Ok(200), "{first:?}");
}

/// RFC 9112 section 6.3: whatever their fields say.
#[tokio::test(flavor = "multi_thread")]
async fn some_answers_have_no_body() {
    let scene = scene().await;
    for (method, head) in [
        ("GET", "204 No Content\r\n"),
        (
            "GET",
            "304 Not Modified\r\nContent-Length: 1234\r\nETag: \"a\"\r\n",
        ),
        ("GET", "304 Not Modified\r\nTransfer-Encoding: chunked\r\n"),
        ("HEAD", "200 OK\r\nContent-Length: 1234\r\n"),
        ("HEAD", "200 OK\r\nTransfer-Encoding: chunked\r\n"),
        ("HEAD", "200 OK\r\n"),
        ("HEAD", "404 Not Found\r\nContent-Length: 9\r\n"),
    ] {
        for version in BOTH {
            let asked = scene.ask(version, Ask::new(method, "/"));
            let (mut peer, request) = scene.upstream.request().await;
            assert_eq!(request.asked(), (method, "/"));
            peer.send(format!("HTTP/1.1 {head}\r\n"))
                .await
                .expect("sent");
            let answer = answered(asked).await.assert_whole();
            assert_eq!(
                answer.head.status(),
                Ok(head[..3].parse().unwrap()),
                "{head:?}"
            );
            assert_eq!(answer.body, b"", "{version:?} {head:?}");
        }
    }
}

/// The client's connection is good for more after each of them.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_follows_an_answer_without_a_body() {
    let scene = scene().await;
    let mut client = scene.client().await;
    for (method, head) in [
        ("GET", "204 No Content\r\n"),
        ("GET", "304 Not Modified\r\nContent-Length: 1234\r\n"),
        ("HEAD", "200 OK\r\nContent-Length: 1234\r\n"),
        ("HEAD", "200 OK\r\nTransfer-Encoding: chunked\r\n"),
        ("GET", "200 OK\r\nContent-Length: 0\r\n"),
    ] {
        client
            .send(Ask::new(method, "/").http1())
            .await
            .expect("sent");
        let (mut peer, _) = scene.upstream.request().await;
        // Another connection each time: here it is only about the client's.
        let sent = format!("HTTP/1.1 {head}Connection: close\r\n\r\n");
        peer.send(sent).await.expect("sent");
        let answer = client.response(method).await.expect("an answer");
        assert_eq!(answer.clone().assert_whole().body, b"", "{answer:?}");
        assert_ne!(answer.head.get("connection"), Some("close"), "{answer:?}");
    }
    client.send(Ask::get().http1()).await.expect("sent");
    let (mut peer, _) = scene.upstream.request().await;
    peer.send(answer("200 OK", "next")).await.expect("sent");
    assert_eq!(
        client.response("GET").await.expect("an answer").text(),
        "next"
    );
}

/// RFC 9110 section 7.6.1: what is about the connection stays there.
#[tokio::test(flavor = "multi_thread")]
async fn fields_about_the_upstreams_connection_stay_there() {
    let scene = scene().await;
    let head = "HTTP/1.1 200 OK\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\n\
                Keep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nX-End: 1\r\n\
                Content-Length: 2\r\n\r\nok";
    for version in BOTH {
        let answer = after(&scene, version, Ask::get(), head.as_bytes()).await;
        assert_eq!(answer.text(), "ok", "{version:?}");
        assert_eq!(answer.head.get("x-end"), Some("1"));
        for gone in ["x-hop", "keep-alive", "proxy-connection"] {
            assert_eq!(answer.head.get(gone), None, "{version:?}: {answer:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_before_the_body_has_come_ends_the_request() {
    let scene = scene().await;
    let mut client = connect(&scene.perennial).await;
    let head = format!(
        "POST / HTTP/1.1\r\nHost: {}\r\nContent-Length: 10\r\n\r\n",
        super::NAME
    );
    client.send(head).await.expect("sent");
    let mut peer = scene.upstream.accept().await;
    let request = peer.head().await.expect("before the body");
    assert_eq!(request.get("content-length"), Some("10"));
    let refusal =
        "HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 3\r\n\r\n";
    peer.send(format!("{refusal}no\n")).await.expect("sent");
    let answer = client
        .response("POST")
        .await
        .expect("an answer")
        .assert_whole();
    assert_eq!((answer.status(), &*answer.text()), (413, "no\n"));
    // Neither connection is good for more. The proxy may wait a while for the client to close.
    assert_eq!(answer.head.get("connection"), Some("close"));
    client.finish().await;
    assert_eq!(client.rest().await.expect("closed").0, b"");
    assert_eq!(peer.rest().await.expect("closed").0, b"");
}
