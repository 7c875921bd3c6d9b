//! An upstream that stops in the middle: what the client has got must not look like a whole answer.

use super::{Ask, BOTH, Scene, answered, scene};
use crate::support::client::Version;
use crate::support::scripted::{answer, reset};
use crate::support::wire::Message;

/// What the client gets when the upstream sends `sent` and closes the connection.
async fn after(scene: &Scene, version: Version, sent: &str) -> Message {
    let asked = scene.ask(version, Ask::get());
    let (mut peer, _) = scene.upstream.request().await;
    peer.send(sent).await.expect("sent");
    drop(peer);
    answered(asked).await
}

#[tokio::test(flavor = "multi_thread")]
async fn before_the_header_is_whole_the_answer_is_502() {
    let scene = scene().await;
    for version in BOTH {
        for sent in ["H", "HTTP/1.1 200 OK\r\nContent-Le", "HTTP/1.1 200 OK\r\n"] {
            let answer = after(&scene, version, sent).await;
            assert_eq!(answer.status(), 502, "{version:?} {sent:?}: {answer:?}");
            answer.assert_whole();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn within_the_body_the_answer_is_cut_off() {
    let scene = scene().await;
    let head = "HTTP/1.1 200 OK\r\n";
    for (what, rest) in [
        ("length, nothing", "Content-Length: 10\r\n\r\n"),
        ("length, a part", "Content-Length: 10\r\n\r\nhello"),
        (
            "no last chunk",
            "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        ),
        ("no chunk", "Transfer-Encoding: chunked\r\n\r\n"),
        (
            "within a chunk",
            "Transfer-Encoding: chunked\r\n\r\n9\r\nhello",
        ),
        (
            "after a chunk",
            "Transfer-Encoding: chunked\r\n\r\n5\r\nhello",
        ),
        (
            "within a size",
            "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n1",
        ),
        (
            "no trailer end",
            "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
        ),
        (
            "no chunk at all",
            "Transfer-Encoding: chunked\r\n\r\nxyz\r\nhello\r\n0\r\n\r\n",
        ),
        (
            "chunk too long",
            "Transfer-Encoding: chunked\r\n\r\n3\r\nhello\r\n0\r\n\r\n",
        ),
        (
            "negative chunk",
            "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n-1\r\n\r\n",
        ),
    ] {
        for version in BOTH {
            let answer = after(&scene, version, &format!("{head}{rest}")).await;
            // Whoever has seen nothing but the header yet may also be told of the failure.
            let told = answer.status() == 502;
            assert!(
                told || answer.cut.is_some(),
                "{version:?}, {what}: {answer:?}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_clients_are_told_by_a_reset_stream() {
    let scene = scene().await;
    let mut http2 = scene.http2().await;
    let asked = tokio::spawn(super::whole(http2.get("/")));
    let (mut peer, _) = scene.upstream.request().await;
    let part = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello";
    peer.send(part).await.expect("sent");
    drop(peer);
    let cut = answered(asked).await.cut.expect("not whole");
    assert!(cut.contains("stream error received"), "{cut}");
    // The connection and its other streams go on.
    let asked = tokio::spawn(super::whole(http2.get("/")));
    let (mut peer, _) = scene.upstream.request().await;
    peer.send(answer("200 OK", "next")).await.expect("sent");
    assert_eq!(answered(asked).await.assert_whole().text(), "next");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_connection_is_cut_off_too() {
    let scene = scene().await;
    for version in BOTH {
        let asked = scene.ask(version, Ask::get());
        let (mut peer, _) = scene.upstream.request().await;
        let part = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n";
        peer.send(part).await.expect("sent");
        reset(peer);
        let answer = answered(asked).await;
        // The reset may overtake the header.
        let told = answer.status() == 502;
        assert!(told || answer.cut.is_some(), "{version:?}: {answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_without_a_length_ends_with_the_connection() {
    let scene = scene().await;
    for version in BOTH {
        for head in [
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.0 200 OK\r\nServer: old\r\n\r\n",
        ] {
            let answer = after(&scene, version, &format!("{head}all of it")).await;
            assert_eq!(
                answer.clone().assert_whole().text(),
                "all of it",
                "{version:?}"
            );
        }
        let short = "HTTP/1.0 200 OK\r\nContent-Length: 10\r\n\r\nhello";
        let answer = after(&scene, version, short).await;
        assert!(answer.cut.is_some(), "{version:?}: {answer:?}");
    }
}
