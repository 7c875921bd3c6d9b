//! What is sent leaves at once, however the engine joins its writes: each step here waits for the
//! one before, so that anything that is held back stops the test.

use hyper::body::Bytes;

use super::{Ask, NAME, scene};
use crate::support::scripted::answer;

/// Server-sent events, as HTTP/1.1 clients get them.
#[tokio::test(flavor = "multi_thread")]
async fn each_event_leaves_at_once() {
    let scene = scene().await;
    let mut client = scene.client().await;
    let ask = Ask::get().field("Accept", "text/event-stream");
    client.send(ask.http1()).await.expect("sent");
    let (mut peer, _) = scene.upstream.request().await;
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\
                Transfer-Encoding: chunked\r\n\r\n";
    peer.send(head).await.expect("sent");
    client.head().await.expect("before there is an event");
    for number in 0..50 {
        let event = format!("data: {number}\n\n");
        let chunk = format!("{:x}\r\n{event}\r\n", event.len());
        peer.send(chunk).await.expect("sent");
        let got = client.chunk().await.expect("before there is another");
        assert_eq!(got, event.as_bytes());
    }
    peer.send("0\r\n\r\n").await.expect("sent");
    assert_eq!(client.chunk().await.expect("the end"), b"");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_event_leaves_at_once_over_http2() {
    let scene = scene().await;
    let mut http2 = scene.http2().await;
    let response = http2.get("/events");
    let (mut peer, _) = scene.upstream.request().await;
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\
                Transfer-Encoding: chunked\r\n\r\n";
    peer.send(head).await.expect("sent");
    let mut body = response
        .await
        .expect("before there is an event")
        .into_body();
    for number in 0..50 {
        let event = format!("data: {number}\n\n");
        let chunk = format!("{:x}\r\n{event}\r\n", event.len());
        peer.send(chunk).await.expect("sent");
        let got = body.data().await.expect("before there is another");
        let got = got.expect("no error");
        assert_eq!(got, event.as_bytes());
        body.flow_control()
            .release_capacity(got.len())
            .expect("capacity");
    }
    peer.send("0\r\n\r\n").await.expect("sent");
    while let Some(data) = body.data().await {
        assert_eq!(data.expect("no error"), Bytes::new());
    }
}

/// A long poll: the header comes now, the body when there is news.
#[tokio::test(flavor = "multi_thread")]
async fn a_header_does_not_wait_for_its_body() {
    let scene = scene().await;
    for (head, body) in [
        ("Content-Length: 4\r\n", "news"),
        ("Transfer-Encoding: chunked\r\n", "4\r\nnews\r\n0\r\n\r\n"),
        ("Connection: close\r\n", "news"),
    ] {
        let mut client = scene.client().await;
        client.send(Ask::get().http1()).await.expect("sent");
        let (mut peer, _) = scene.upstream.request().await;
        peer.send(format!("HTTP/1.1 200 OK\r\n{head}\r\n"))
            .await
            .expect("sent");
        let got = client.head().await.expect("before there is a body");
        peer.send(body).await.expect("sent");
        if head.starts_with("Connection") {
            drop(peer);
        }
        let framing = got.response_framing("GET").expect("a framing");
        let answer = client.message(got, framing).await.expect("an answer");
        assert_eq!(answer.assert_whole().text(), "news", "{head:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_does_not_wait_for_its_body_over_http2() {
    let scene = scene().await;
    for (head, body) in [
        ("Content-Length: 4\r\n", "news"),
        ("Transfer-Encoding: chunked\r\n", "4\r\nnews\r\n0\r\n\r\n"),
        ("Connection: close\r\n", "news"),
    ] {
        let mut http2 = scene.http2().await;
        let response = http2.get("/poll");
        let (mut peer, _) = scene.upstream.request().await;
        peer.send(format!("HTTP/1.1 200 OK\r\n{head}\r\n"))
            .await
            .expect("sent");
        let mut got = response.await.expect("before there is a body").into_body();
        peer.send(body).await.expect("sent");
        let news = got.data().await.expect("a body").expect("no error");
        assert_eq!(news, "news", "{head:?}");
    }
}

/// A part of a body whose length is known leaves before the rest is there.
#[tokio::test(flavor = "multi_thread")]
async fn a_part_of_a_body_does_not_wait_for_the_rest() {
    let scene = scene().await;
    for head in ["Content-Length: 20\r\n", "Connection: close\r\n"] {
        let mut client = scene.client().await;
        client.send(Ask::get().http1()).await.expect("sent");
        let (mut peer, _) = scene.upstream.request().await;
        // Header and first part in one segment, for whoever joins them.
        peer.send(format!("HTTP/1.1 200 OK\r\n{head}\r\npart0"))
            .await
            .expect("sent");
        let got = client.head().await.expect("an answer");
        let chunked = got.get("transfer-encoding").is_some();
        for number in 0..4 {
            let part = format!("part{number}");
            let got = match chunked {
                true => client.chunk().await,
                false => client.exactly(5).await,
            };
            assert_eq!(
                got.expect("before there is more"),
                part.as_bytes(),
                "{head:?}"
            );
            if number < 3 {
                peer.send(format!("part{}", number + 1))
                    .await
                    .expect("sent");
            }
        }
    }
}

/// Each part of an upload leaves before the next is sent.
#[tokio::test(flavor = "multi_thread")]
async fn each_part_of_an_upload_leaves_at_once() {
    let scene = scene().await;
    let mut client = scene.client().await;
    let head = format!("POST / HTTP/1.1\r\nHost: {NAME}\r\nTransfer-Encoding: chunked\r\n\r\n");
    client.send(head).await.expect("sent");
    let mut peer = scene.upstream.accept().await;
    peer.head().await.expect("before there is a body");
    for number in 0..50 {
        client
            .send(format!("6\r\npart{number:02}\r\n"))
            .await
            .expect("sent");
        let got = peer.chunk().await.expect("before there is another");
        assert_eq!(got, format!("part{number:02}").as_bytes());
    }
    client.send("0\r\n\r\n").await.expect("sent");
    assert_eq!(
        peer.until(b"0\r\n\r\n").await.expect("the end"),
        b"0\r\n\r\n"
    );
    peer.send(answer("200 OK", "ok")).await.expect("sent");
    assert_eq!(
        client.response("POST").await.expect("an answer").text(),
        "ok"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn each_part_of_an_upload_leaves_at_once_over_http2() {
    let scene = scene().await;
    let mut http2 = scene.http2().await;
    let (response, mut body) = http2.post();
    let mut peer = scene.upstream.accept().await;
    peer.head().await.expect("before there is a body");
    for number in 0..50 {
        let part = Bytes::from(format!("part{number:02}"));
        body.send_data(part.clone(), false).expect("sent");
        assert_eq!(peer.chunk().await.expect("before there is another"), part);
    }
    body.send_data(Bytes::new(), true).expect("sent");
    assert_eq!(
        peer.until(b"0\r\n\r\n").await.expect("the end"),
        b"0\r\n\r\n"
    );
    peer.send(answer("200 OK", "ok")).await.expect("sent");
    assert_eq!(
        super::whole(response).await.expect("an answer").text(),
        "ok"
    );
}

/// Both directions at once: the answer begins while the body still comes.
#[tokio::test(flavor = "multi_thread")]
async fn both_bodies_flow_at_once() {
    let scene = scene().await;
    let mut client = scene.client().await;
    let head = format!("POST / HTTP/1.1\r\nHost: {NAME}\r\nTransfer-Encoding: chunked\r\n\r\n");
    client.send(head).await.expect("sent");
    let mut peer = scene.upstream.accept().await;
    peer.head().await.expect("before there is a body");
    peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        .await
        .expect("sent");
    client.head().await.expect("before the body has ended");
    for _ in 0..20 {
        client.send("4\r\nping\r\n").await.expect("sent");
        assert_eq!(peer.chunk().await.expect("at once"), b"ping");
        peer.send("4\r\npong\r\n").await.expect("sent");
        assert_eq!(client.chunk().await.expect("at once"), b"pong");
    }
    client.send("0\r\n\r\n").await.expect("sent");
    peer.until(b"0\r\n\r\n").await.expect("the end");
    peer.send("0\r\n\r\n").await.expect("sent");
    assert_eq!(client.chunk().await.expect("the end"), b"");
}
