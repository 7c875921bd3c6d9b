//! Bodies in every framing, both ways, and what comes after them.

use hyper::body::Bytes;

use super::{Ask, BOTH, NAME, Scene, answered, scene, whole};
use crate::support::client::Version;
use crate::support::scripted::answer;
use crate::support::wire::Message;

/// What the upstream gets of `sent`, the bytes of an HTTP/1.1 client.
async fn upstream_gets(scene: &Scene, sent: &str) -> Message {
    let mut client = scene.client().await;
    client.send(sent).await.expect("sent");
    let (mut peer, request) = scene.upstream.request().await;
    let last = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok";
    peer.send(last).await.expect("sent");
    let answer = client.response("POST").await.expect("an answer");
    assert_eq!(answer.assert_whole().text(), "ok");
    request.assert_whole()
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_keep_their_framing() {
    let scene = scene().await;
    for (sent, body, length, coding) in [
        (
            "POST / HTTP/1.1\r\nHost: a.example.test\r\nContent-Length: 5\r\n\r\nhello",
            "hello",
            Some("5"),
            None,
        ),
        (
            "POST / HTTP/1.1\r\nHost: a.example.test\r\nContent-Length: 0\r\n\r\n",
            "",
            Some("0"),
            None,
        ),
        (
            "GET / HTTP/1.1\r\nHost: a.example.test\r\nContent-Length: 5\r\n\r\nhello",
            "hello",
            Some("5"),
            None,
        ),
        (
            "DELETE / HTTP/1.1\r\nHost: a.example.test\r\nContent-Length: 2\r\n\r\nhi",
            "hi",
            Some("2"),
            None,
        ),
        (
            "GET / HTTP/1.1\r\nHost: a.example.test\r\n\r\n",
            "",
            None,
            None,
        ),
        (
            "POST / HTTP/1.1\r\nHost: a.example.test\r\nTransfer-Encoding: chunked\r\n\r\n\
             5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n",
            "hello world",
            None,
            Some("chunked"),
        ),
    ] {
        let request = upstream_gets(&scene, sent).await;
        assert_eq!(request.text(), body, "{sent:?}");
        assert_eq!(request.head.get("content-length"), length, "{sent:?}");
        assert_eq!(request.head.get("transfer-encoding"), coding, "{sent:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_chunked_body_is_an_empty_body() {
    let scene = scene().await;
    let sent =
        format!("POST / HTTP/1.1\r\nHost: {NAME}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n");
    assert_eq!(upstream_gets(&scene, &sent).await.body, b"");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_without_a_length_from_http2_is_chunked() {
    let scene = scene().await;
    let mut http2 = scene.http2().await;
    let (response, mut body) = http2.post();
    body.send_data(Bytes::from("hello "), false).expect("sent");
    body.send_data(Bytes::from("world"), true).expect("sent");
    let asked = tokio::spawn(whole(response));
    let (mut peer, request) = scene.upstream.request().await;
    assert_eq!(request.head.get("transfer-encoding"), Some("chunked"));
    assert_eq!(request.assert_whole().text(), "hello world");
    peer.send(answer("200 OK", "ok")).await.expect("sent");
    assert_eq!(answered(asked).await.text(), "ok");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_with_a_length_from_http2_keeps_it() {
    let scene = scene().await;
    let asked = scene.ask(Version::Http2, Ask::post("hello"));
    let (mut peer, request) = scene.upstream.request().await;
    assert_eq!(request.head.get("content-length"), Some("5"));
    assert_eq!(request.assert_whole().text(), "hello");
    peer.send(answer("200 OK", "ok")).await.expect("sent");
    answered(asked).await.assert_whole();
}

#[tokio::test(flavor = "multi_thread")]
async fn chunked_answers_come_whole() {
    let scene = scene().await;
    // In all the forms that RFC 9112 section 7.1 knows.
    let sent = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
                5\r\nhello\r\n1;name=value\r\n \r\n0005\r\nworld\r\n\
                A;q=\"x\"\r\n0123456789\r\n000\r\n\r\n";
    for version in BOTH {
        let asked = scene.ask(version, Ask::get());
        let (mut peer, _) = scene.upstream.request().await;
        // Byte by byte, so that every boundary is met once.
        for byte in sent.as_bytes() {
            peer.send([*byte]).await.expect("sent");
        }
        let answer = answered(asked).await.assert_whole();
        assert_eq!(answer.text(), "hello world0123456789", "{version:?}");
        assert_eq!(answer.head.get("content-length"), None);
    }
}

/// HTTP/1.0 does not know chunks (RFC 9112 section 7).
#[tokio::test(flavor = "multi_thread")]
async fn http_1_0_gets_no_chunks() {
    let scene = scene().await;
    for (more, sent) in [
        (
            "",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        ),
        (
            "Connection: keep-alive\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        ),
        ("", "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello"),
    ] {
        let mut client = scene.client().await;
        let request = format!("GET / HTTP/1.0\r\nHost: {NAME}\r\n{more}\r\n");
        client.send(request).await.expect("sent");
        let (mut peer, _) = scene.upstream.request().await;
        peer.send(sent).await.expect("sent");
        drop(peer);
        let answer = client
            .response("GET")
            .await
            .expect("an answer")
            .assert_whole();
        assert_eq!(answer.head.get("transfer-encoding"), None, "{answer:?}");
        assert_eq!(answer.text(), "hello", "{sent:?}");
    }
}

/// Trailers are for those who asked for them with `TE`, and may be dropped otherwise (RFC 9110
/// section 6.5.1). They must not change where a message ends.
#[tokio::test(flavor = "multi_thread")]
async fn trailers_of_answers_do_not_disturb() {
    let scene = scene().await;
    let sent = "HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n\
                5\r\nhello\r\n0\r\nX-Sum: 5\r\nX-More: 6\r\n\r\n";
    for version in BOTH {
        for _ in 0..2 {
            let asked = scene.ask(version, Ask::get().field("TE", "trailers"));
            let (mut peer, _) = scene.upstream.request().await;
            peer.send(sent).await.expect("sent");
            let answer = answered(asked).await.assert_whole();
            assert_eq!(answer.text(), "hello", "{version:?}");
            let sums = [("x-sum", "5"), ("x-more", "6")].map(|(n, v)| (n.into(), v.into()));
            assert_eq!(answer.trailers, sums, "{version:?}");
            drop(peer);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_of_requests_do_not_disturb() {
    let scene = scene().await;
    let mut client = scene.client().await;
    let first = format!(
        "POST /1 HTTP/1.1\r\nHost: {NAME}\r\nTransfer-Encoding: chunked\r\n\r\n\
         5\r\nhello\r\n0\r\nX-Sum: 5\r\nContent-Length: 100\r\n\r\n"
    );
    let second = format!("GET /2 HTTP/1.1\r\nHost: {NAME}\r\n\r\n");
    client.send(first + &second).await.expect("sent");
    let (mut peer, request) = scene.upstream.request().await;
    assert_eq!(
        (request.asked(), &*request.text()),
        (("POST", "/1"), "hello")
    );
    // What frames a message is nothing for trailers (RFC 9110 section 6.5.1).
    let sum = ("x-sum".to_owned(), "5".to_owned());
    assert_eq!(request.assert_whole().trailers, [sum]);
    peer.send(answer("200 OK", "1")).await.expect("sent");
    assert_eq!(
        client.response("POST").await.expect("an answer").text(),
        "1"
    );
    let request = scene.next_request(&mut peer).await;
    assert_eq!(request.asked(), ("GET", "/2"));
    peer.send(answer("200 OK", "2")).await.expect("sent");
    assert_eq!(client.response("GET").await.expect("an answer").text(), "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_of_http2_requests_do_not_disturb() {
    let scene = scene().await;
    let mut http2 = scene.http2().await;
    let (response, mut body) = http2.post();
    body.send_data(Bytes::from("hello"), false).expect("sent");
    let mut trailers = http::HeaderMap::new();
    trailers.insert("x-sum", http::HeaderValue::from_static("5"));
    body.send_trailers(trailers).expect("sent");
    let asked = tokio::spawn(whole(response));
    let (mut peer, request) = scene.upstream.request().await;
    let sum = ("x-sum".to_owned(), "5".to_owned());
    assert_eq!(
        (&*request.text(), &request.trailers[..]),
        ("hello", &[sum][..])
    );
    peer.send(answer("200 OK", "ok")).await.expect("sent");
    assert_eq!(answered(asked).await.assert_whole().text(), "ok");
}
