//! What clients of HTTP/1 do: slowly, in a row, and with a sudden end.

use super::{Ask, BOTH, NAME, answered, connect, in_front_of, scene};
use crate::support::client::Version;
use crate::support::place::Place;
use crate::support::recorder::{Recorder, Seen};
use crate::support::scripted::{answer, reset};
use crate::support::wire::End;

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_stops_halfway_is_not_whole_upstream() {
    let scene = scene().await;
    for framing in [
        "Content-Length: 10\r\n\r\nhello",
        "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    ] {
        for hard in [false, true] {
            let mut client = scene.client().await;
            let request = format!("POST / HTTP/1.1\r\nHost: {NAME}\r\n{framing}");
            client.send(request).await.expect("sent");
            let mut peer = scene.upstream.accept().await;
            let head = peer.head().await.expect("a request");
            let framing = head.request_framing().expect("a framing");
            if hard {
                let socket = socket2::SockRef::from(client.stream.get_ref().0);
                socket
                    .set_linger(Some(std::time::Duration::ZERO))
                    .expect("a socket");
            }
            drop(client);
            let request = peer.message(head, framing).await.expect("a part");
            assert!(request.cut.is_some(), "{request:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_lets_its_upstream_go() {
    let scene = scene().await;
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n";
    for sent in ["", head] {
        let mut client = scene.client().await;
        client.send(Ask::get().http1()).await.expect("sent");
        let (mut peer, _) = scene.upstream.request().await;
        peer.send(sent).await.expect("sent");
        if !sent.is_empty() {
            client.head().await.expect("the answer has begun");
        }
        drop(client);
        assert_eq!(peer.rest().await.expect("closed").0, b"");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_byte_at_a_time_is_a_request_too() {
    let scene = scene().await;
    let mut client = scene.client().await;
    for byte in Ask::post("hello").field("X-Slow", "yes").http1() {
        client.send([byte]).await.expect("sent");
    }
    let (mut peer, request) = scene.upstream.request().await;
    assert_eq!(request.head.get("x-slow"), Some("yes"));
    assert_eq!(request.assert_whole().text(), "hello");
    peer.send(answer("200 OK", "ok")).await.expect("sent");
    assert_eq!(
        client.response("POST").await.expect("an answer").text(),
        "ok"
    );
}

/// RFC 9112 section 9.3.2: answers in the order of the requests.
#[tokio::test(flavor = "multi_thread")]
async fn requests_in_a_row_are_answered_in_order() {
    let scene = scene().await;
    let mut client = scene.client().await;
    let asks = [
        Ask::new("GET", "/0"),
        Ask::new("POST", "/1").body("one"),
        Ask::new("POST", "/2").body(""),
        Ask::new("HEAD", "/3"),
        Ask::new("GET", "/4"),
    ];
    let row: Vec<u8> = asks.iter().flat_map(Ask::http1).collect();
    client.send(row).await.expect("sent");
    let mut peer = scene.upstream.accept().await;
    for (number, ask) in asks.iter().enumerate() {
        let request = scene.next_request(&mut peer).await;
        assert_eq!(request.asked(), (ask.method, ask.path));
        assert_eq!(Some(&*request.body), ask.body.as_deref().or(Some(b"")));
        let body = if ask.method == "HEAD" {
            ""
        } else {
            &*number.to_string()
        };
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nX-Number: {number}\r\n\r\n");
        peer.send(head + body).await.expect("sent");
        let answer = client.response(ask.method).await.expect("an answer");
        assert_eq!(answer.head.get("x-number"), Some(&*number.to_string()));
        assert_eq!(answer.text(), body);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connection_close_is_answered_and_done() {
    let scene = scene().await;
    for request in [
        format!("GET / HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nHost: {NAME}\r\nConnection: Foo, CLOSE\r\n\r\n"),
        format!("GET / HTTP/1.0\r\nHost: {NAME}\r\n\r\n"),
    ] {
        let mut client = scene.client().await;
        client.send(&request).await.expect("sent");
        let (mut peer, seen) = scene.upstream.request().await;
        assert_eq!(seen.head.get("connection"), None, "{request:?}");
        let last = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok";
        peer.send(last).await.expect("sent");
        let answer = client
            .response("GET")
            .await
            .expect("an answer")
            .assert_whole();
        assert_eq!(answer.head.get("connection"), Some("close"), "{request:?}");
        let rest = client.rest().await.expect("closed");
        assert_eq!(rest, (Vec::new(), End::Closed), "{request:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn http_1_0_may_ask_for_more() {
    let scene = scene().await;
    let mut client = scene.client().await;
    let request = format!("GET / HTTP/1.0\r\nHost: {NAME}\r\nConnection: keep-alive\r\n\r\n");
    client.send(&request).await.expect("sent");
    let (mut peer, _) = scene.upstream.request().await;
    peer.send(answer("200 OK", "one")).await.expect("sent");
    let first = client.response("GET").await.expect("an answer");
    assert_eq!(first.head.get("connection"), Some("keep-alive"));
    client.send(&request).await.expect("sent");
    scene.next_request(&mut peer).await;
    peer.send(answer("200 OK", "two")).await.expect("sent");
    assert_eq!(
        client.response("GET").await.expect("an answer").text(),
        "two"
    );
}

const EXPECT: &str = "POST / HTTP/1.1\r\nHost: a.example.test\r\nExpect: 100-continue\r\n\
                      Content-Length: 5\r\n\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn the_word_to_go_on_comes_from_upstream_at_once() {
    let scene = scene().await;
    let mut client = scene.client().await;
    client.send(EXPECT).await.expect("sent");
    let mut peer = scene.upstream.accept().await;
    let head = peer.head().await.expect("before the body");
    assert_eq!(head.get("expect"), Some("100-continue"));
    peer.send("HTTP/1.1 100 Continue\r\n\r\n")
        .await
        .expect("sent");
    let go_on = client.head().await.expect("before the body");
    assert_eq!(go_on.status(), Ok(100));
    client.send("hello").await.expect("sent");
    let framing = head.request_framing().expect("a framing");
    let request = peer.message(head, framing).await.expect("a body");
    assert_eq!(request.assert_whole().text(), "hello");
    peer.send(answer("200 OK", "ok")).await.expect("sent");
    let answer = client.response("POST").await.expect("an answer");
    assert_eq!((answer.status(), &*answer.text()), (200, "ok"));
}

/// The upstream does not say 100: the client waits for its answer, or sends the body unasked.
#[tokio::test(flavor = "multi_thread")]
async fn the_body_may_come_unasked() {
    let scene = scene().await;
    let mut client = scene.client().await;
    client
        .send(EXPECT.to_owned() + "hello")
        .await
        .expect("sent");
    let (mut peer, request) = scene.upstream.request().await;
    assert_eq!(request.assert_whole().text(), "hello");
    peer.send(answer("200 OK", "ok")).await.expect("sent");
    assert_eq!(
        client.response("POST").await.expect("an answer").text(),
        "ok"
    );
}

/// Whether the body comes after all is not clear then (RFC 9110 section 10.1.1): no second request
/// may be read where the body could be.
#[tokio::test(flavor = "multi_thread")]
async fn a_final_answer_instead_of_100_ends_the_connection() {
    let scene = scene().await;
    for refusal in ["417 Expectation Failed", "401 Unauthorized", "200 OK"] {
        let mut client = scene.client().await;
        client.send(EXPECT).await.expect("sent");
        let mut peer = scene.upstream.accept().await;
        peer.head().await.expect("before the body");
        let head = format!("HTTP/1.1 {refusal}\r\nConnection: close\r\n");
        peer.send(head + "Content-Length: 2\r\n\r\nno")
            .await
            .expect("sent");
        let answer = client
            .response("POST")
            .await
            .expect("an answer")
            .assert_whole();
        assert_eq!(answer.head.status(), Ok(refusal[..3].parse().unwrap()));
        assert_eq!(answer.head.get("connection"), Some("close"), "{refusal}");
        client
            .send(Ask::new("GET", "/smuggled").http1())
            .await
            .expect("sent");
        client.finish().await;
        assert_eq!(client.rest().await.expect("closed").0, b"");
        // What the client sends now may count as the body, and as nothing else.
        let (rest, _) = peer.rest().await.expect("closed");
        let rest = String::from_utf8_lossy(&rest).into_owned();
        assert!(rest.len() <= 5, "more than the body: {rest:?}");
    }
    scene.upstream.assert_no_other();
}

#[tokio::test(flavor = "multi_thread")]
async fn large_headers_pass_and_endless_ones_do_not() {
    let scene = scene().await;
    let large: &'static str = Box::leak("x".repeat(15_000).into_boxed_str());
    for version in BOTH {
        let asked = scene.ask(version, Ask::get().field("x-large", large));
        let (mut peer, request) = scene.upstream.request().await;
        assert_eq!(request.head.get("x-large"), Some(large), "{version:?}");
        let last = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
        peer.send(last).await.expect("sent");
        assert_eq!(answered(asked).await.status(), 200);
    }
    let many = "X: y\r\n".repeat(1_000);
    let endless = format!("X-Endless: {}\r\n", "x".repeat(3 << 20));
    for fields in [many, endless] {
        let mut client = scene.client().await;
        let request = format!("GET / HTTP/1.1\r\nHost: {NAME}\r\n{fields}\r\n");
        // It may have heard enough before it has heard all.
        let _ = client.send(request).await;
        let answer = client.response("GET").await;
        let status = answer.map(|answer| answer.status());
        assert!(matches!(status, Ok(400 | 431) | Err(_)), "{status:?}");
    }
    scene.upstream.assert_no_other();
}

/// RFC 9110 section 7.6.1.
#[tokio::test(flavor = "multi_thread")]
async fn fields_about_the_clients_connection_stay_there() {
    let scene = scene().await;
    let ask = Ask::get()
        .field("Connection", "keep-alive, X-Hop")
        .field("Connection", "x-other")
        .field("X-Hop", "1")
        .field("X-Other", "1")
        .field("Keep-Alive", "timeout=5")
        .field("Proxy-Connection", "keep-alive")
        .field("TE", "trailers, deflate")
        .field("Upgrade", "h2c")
        .field("HTTP2-Settings", "AAMAAABkAARAAAAAAAIAAAAA")
        .field("X-End", "1");
    let asked = scene.ask(Version::Http1, ask);
    let (mut peer, request) = scene.upstream.request().await;
    assert_eq!(request.head.get("x-end"), Some("1"));
    for gone in [
        "connection",
        "x-hop",
        "x-other",
        "keep-alive",
        "proxy-connection",
        "te",
        "upgrade",
        "http2-settings",
    ] {
        assert_eq!(request.head.get(gone), None, "{request:?}");
    }
    peer.send(answer("200 OK", "ok")).await.expect("sent");
    assert_eq!(answered(asked).await.text(), "ok");
}

/// Taking away what says where a request goes, who asked or where its body ends would change what
/// it means.
#[tokio::test(flavor = "multi_thread")]
async fn no_connection_option_takes_away_what_frames_a_request() {
    let place = Place::new();
    let recorder = Recorder::start(&place).await;
    let perennial = in_front_of(place, &[&recorder.addr.to_string()]).await;
    for named in [
        "Host",
        "X-Forwarded-For",
        "Content-Length",
        "Transfer-Encoding",
    ] {
        let mut client = connect(&perennial).await;
        let request = format!(
            "POST / HTTP/1.1\r\nHost: {NAME}\r\nConnection: close, {named}\r\n\
             Content-Length: 5\r\n\r\nhello"
        );
        client.send(request).await.expect("sent");
        let answer = client.response("POST").await.expect("an answer");
        // To refuse is as good as to pass on whole.
        match (answer.status(), &recorder.take()[..]) {
            (400, []) => {}
            (200, [Seen::Request(request)]) => {
                assert_eq!(request.head.get("x-forwarded-for"), Some("127.0.0.1"));
                assert_eq!(request.text(), "hello", "{named}");
            }
            other => panic!("{named}: {other:?}"),
        }
    }
}

/// A reset where an orderly end was due must not leave anything behind.
#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_resets_an_idle_connection_costs_no_request() {
    let scene = scene().await;
    for version in BOTH {
        let asked = scene.ask(version, Ask::get());
        let (mut peer, _) = scene.upstream.request().await;
        peer.send(answer("200 OK", "one")).await.expect("sent");
        assert_eq!(answered(asked).await.text(), "one");
        reset(peer);
        let asked = scene.ask(version, Ask::post("once"));
        let (mut peer, _) = scene.upstream.request().await;
        let last = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 3\r\n\r\ntwo";
        peer.send(last).await.expect("sent");
        assert_eq!(answered(asked).await.text(), "two");
    }
}
