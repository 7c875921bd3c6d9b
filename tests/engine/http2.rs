//! What is HTTP/2's own: streams that are reset, windows that stay shut, many streams, floods, and
//! the orderly end of a connection.

use std::time::Duration;

use hyper::body::Bytes;
use rustix::process::Signal;

use super::{Ask, Http2, NAME, Scene, answered, scene, whole};
use crate::support::client::Version;
use crate::support::h2_frames::{self as frames, Frames, Outcome};
use crate::support::place::Place;
use crate::support::recorder::Recorder;
use crate::support::scripted::answer;
use crate::support::wait::{SOON, wait_until};

/// RFC 9113 section 7.
const NO_ERROR: u32 = 0;
const CANCEL: u32 = 8;

const GET: [(&[u8], &[u8]); 4] = [
    (b":method", b"GET"),
    (b":scheme", b"https"),
    (b":authority", NAME.as_bytes()),
    (b":path", b"/"),
];

async fn open(scene: &Scene) -> Frames {
    Frames::open(scene.perennial.place.https, NAME).await
}

async fn get(frames: &mut Frames, stream: u32) {
    let flags = frames::END_HEADERS | frames::END_STREAM;
    let sent = frames
        .send(frames::HEADERS, flags, stream, &frames::block(&GET))
        .await;
    sent.expect("sent");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_reset_lets_its_upstream_go() {
    let scene = scene().await;
    let mut frames = open(&scene).await;
    get(&mut frames, 1).await;
    let (mut waiting, _) = scene.upstream.request().await;
    let cancel = CANCEL.to_be_bytes();
    frames
        .send(frames::RST_STREAM, 0, 1, &cancel)
        .await
        .expect("sent");
    assert_eq!(waiting.rest().await.expect("closed").0, b"");
    // Within an answer, too.
    get(&mut frames, 3).await;
    let (mut answering, _) = scene.upstream.request().await;
    let part = "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nhello";
    answering.send(part).await.expect("sent");
    assert_eq!(frames.outcome(3).await, Outcome::Status(200));
    frames
        .send(frames::RST_STREAM, 0, 3, &cancel)
        .await
        .expect("sent");
    assert_eq!(answering.rest().await.expect("closed").0, b"");
    // The connection goes on.
    get(&mut frames, 5).await;
    let (mut peer, _) = scene.upstream.request().await;
    peer.send(answer("200 OK", "next")).await.expect("sent");
    assert_eq!(frames.outcome(5).await, Outcome::Status(200));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_reset_is_not_whole_upstream() {
    let scene = scene().await;
    for length in [None, Some("10")] {
        let mut http2 = scene.http2().await;
        let mut request = http::Request::post(format!("https://{NAME}/"));
        if let Some(length) = length {
            request = request.header("content-length", length);
        }
        let request = request.body(()).expect("a request");
        let (response, mut body) = http2.sender.send_request(request, false).expect("sent");
        body.send_data(Bytes::from("hello"), false).expect("sent");
        let mut peer = scene.upstream.accept().await;
        let head = peer.head().await.expect("a request");
        body.send_reset(h2::Reason::CANCEL);
        drop(response);
        let framing = head.request_framing().expect("a framing");
        let request = peer.message(head, framing).await.expect("a part");
        assert!(request.cut.is_some(), "{request:?}");
    }
}

/// One client that does not read must not stop the others, not even those on its connection.
#[tokio::test(flavor = "multi_thread")]
async fn a_window_that_stays_shut_holds_up_one_stream_alone() {
    let scene = scene().await;
    let mut builder = h2::client::Builder::new();
    builder
        .initial_window_size(10)
        .initial_connection_window_size(1 << 20);
    let mut http2 = Http2::open(&scene.perennial, &mut builder).await;
    let response = http2.get("/large");
    let (mut large, _) = scene.upstream.request().await;
    large
        .send(answer("200 OK", &"x".repeat(100)))
        .await
        .expect("sent");
    let mut shut = response.await.expect("an answer").into_body();
    let first = shut.data().await.expect("data").expect("no error");
    assert_eq!(first.len(), 10, "no more than the window");
    let asked = tokio::spawn(whole(http2.get("/small")));
    let (mut small, _) = scene.upstream.request().await;
    small.send(answer("200 OK", "small")).await.expect("sent");
    assert_eq!(answered(asked).await.assert_whole().text(), "small");
    // And the first goes on as soon as it is opened.
    let mut rest = 0;
    shut.flow_control().release_capacity(10).expect("capacity");
    while let Some(data) = shut.data().await {
        let data = data.expect("no error");
        rest += data.len();
        shut.flow_control()
            .release_capacity(data.len())
            .expect("capacity");
    }
    assert_eq!(rest, 90);
}

/// What the client does not take, the upstream may not send without end either.
#[tokio::test(flavor = "multi_thread")]
async fn a_window_that_stays_shut_holds_up_the_upstream() {
    let scene = scene().await;
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(10);
    let mut http2 = Http2::open(&scene.perennial, &mut builder).await;
    let response = http2.get("/endless");
    let (mut peer, _) = scene.upstream.request().await;
    peer.send("HTTP/1.1 200 OK\r\n\r\n").await.expect("sent");
    let _shut = response.await.expect("an answer");
    let mut taken = 0;
    let part = vec![b'x'; 64 * 1024];
    // Buffers of sockets take some megabytes; a proxy that reads on takes everything.
    let limit = 256 << 20;
    while taken < limit {
        let sent = peer.send(&part);
        match tokio::time::timeout(Duration::from_secs(2), sent).await {
            Ok(result) => result.expect("taken"),
            Err(_) => break,
        }
        taken += part.len();
    }
    assert!(taken < limit, "{taken} bytes for a client that takes none");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_streams_at_once_are_all_answered() {
    let place = Place::new();
    let recorder = Recorder::start(&place).await;
    let perennial = super::in_front_of(place, &[&recorder.addr.to_string()]).await;
    let mut http2 = Http2::open(&perennial, &mut h2::client::Builder::new()).await;
    // More than are allowed at once: those that are refused were not begun, and may be sent again
    // (RFC 9113 section 8.7).
    let mut missing = 300;
    while missing > 0 {
        let mut asked = Vec::new();
        for _ in 0..missing {
            let ready = http2.sender.clone().ready().await;
            http2.sender = ready.expect("the connection lives");
            asked.push(tokio::spawn(whole(http2.get("/"))));
        }
        for asked in asked {
            match asked.await.expect("no panic") {
                Ok(answer) => {
                    assert_eq!(answer.assert_whole().text(), "ok");
                    missing -= 1;
                }
                Err(why) => assert!(why.starts_with("REFUSED_STREAM"), "{why}"),
            }
        }
    }
    assert_eq!(recorder.take().len(), 300);
}

/// CVE-2023-44487: requests that are reset as soon as they are sent.
#[tokio::test(flavor = "multi_thread")]
async fn a_rapid_reset_harms_nobody_else() {
    let place = Place::new();
    let recorder = Recorder::start(&place).await;
    let perennial = super::in_front_of(place, &[&recorder.addr.to_string()]).await;
    let mut flood = Frames::open(perennial.place.https, NAME).await;
    let block = frames::block(&GET);
    let flags = frames::END_HEADERS | frames::END_STREAM;
    let mut bytes = Vec::new();
    for number in 0..20_000 {
        let stream = number * 2 + 1;
        bytes.extend(frames::frame(frames::HEADERS, flags, stream, &block));
        bytes.extend(frames::frame(
            frames::RST_STREAM,
            0,
            stream,
            &CANCEL.to_be_bytes(),
        ));
    }
    // The server may have had enough before.
    let _ = flood.send_all(&bytes).await;
    let mut gone = None;
    while let Ok(frame) = flood.next().await {
        if frame.kind == frames::GOAWAY {
            gone = Some(frame);
        }
    }
    let gone = gone.expect("the connection is ended and says why");
    assert_ne!(gone.payload[4..8], NO_ERROR.to_be_bytes(), "{gone:?}");
    // Most of them never got anywhere.
    let seen = recorder.take().len();
    assert!(seen < 2_000, "{seen} reached the upstream");
    let mut http2 = Http2::open(&perennial, &mut h2::client::Builder::new()).await;
    assert_eq!(whole(http2.get("/")).await.expect("an answer").text(), "ok");
}

/// CVE-2024-27316 and its kin: a header that never ends.
#[tokio::test(flavor = "multi_thread")]
async fn an_endless_header_is_cut_off() {
    let scene = scene().await;
    let mut frames = open(&scene).await;
    let begun = frames::block(&GET);
    frames
        .send(frames::HEADERS, frames::END_STREAM, 1, &begun)
        .await
        .expect("sent");
    let field: &[(&[u8], &[u8])] = &[(b"x-more", &[b'x'; 16_000])];
    let more = frames::block(field);
    let mut sent = 0;
    while sent < 64 << 20 && frames.send(frames::CONTINUATION, 0, 1, &more).await.is_ok() {
        sent += more.len();
    }
    assert!(sent < 64 << 20, "{sent} bytes were taken");
    scene.upstream.assert_no_other();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_that_is_too_large_costs_its_stream_alone() {
    let scene = scene().await;
    let large: &'static str = Box::leak("x".repeat(100_000).into_boxed_str());
    let mut http2 = scene.http2().await;
    let (request, _) = Ask::get().field("x-large", large).http2();
    let (response, _) = http2.sender.send_request(request, true).expect("sent");
    let refused = whole(response).await;
    let status = refused.map(|answer| answer.status());
    assert!(matches!(status, Ok(431) | Err(_)), "{status:?}");
    let asked = tokio::spawn(whole(http2.get("/")));
    let (mut peer, _) = scene.upstream.request().await;
    peer.send(answer("200 OK", "next")).await.expect("sent");
    assert_eq!(answered(asked).await.text(), "next");
}

/// RFC 9113 section 6.8: what has begun is finished, what has not is told to go elsewhere.
#[tokio::test(flavor = "multi_thread")]
async fn a_drain_says_goaway_and_finishes() {
    let mut scene = scene().await;
    let mut frames = open(&scene).await;
    get(&mut frames, 1).await;
    let (mut peer, _) = scene.upstream.request().await;
    scene.perennial.signal(Signal::TERM);
    let frame = frames.next().await.expect("a frame");
    assert_eq!((frame.kind, frame.stream), (frames::GOAWAY, 0), "{frame:?}");
    assert_eq!(frame.payload[4..8], NO_ERROR.to_be_bytes());
    assert!(scene.perennial.exited().is_none(), "a stream is open");
    peer.send(answer("200 OK", "last")).await.expect("sent");
    let mut body = Vec::new();
    while let Ok(frame) = frames.next().await {
        if (frame.kind, frame.stream) == (frames::DATA, 1) {
            body.extend(frame.payload);
        }
    }
    assert_eq!(body, b"last");
    let status = scene.perennial.wait_exit(SOON).await;
    assert_eq!(status.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_finishes_an_http1_answer_and_closes() {
    let mut scene = scene().await;
    let mut client = scene.client().await;
    client.send(Ask::get().http1()).await.expect("sent");
    let (mut peer, _) = scene.upstream.request().await;
    peer.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")
        .await
        .expect("sent");
    let head = client.head().await.expect("an answer");
    scene.perennial.signal(Signal::TERM);
    let refused = async || {
        let opened = tokio::net::TcpStream::connect(scene.perennial.place.https).await;
        opened.is_err().then_some(())
    };
    wait_until(SOON, "new connections to be refused", refused).await;
    peer.send("world").await.expect("sent");
    let framing = head.response_framing("GET").expect("a framing");
    let answer = client.message(head, framing).await.expect("an answer");
    assert_eq!(answer.assert_whole().text(), "helloworld");
    assert_eq!(client.rest().await.expect("closed").0, b"");
    let status = scene.perennial.wait_exit(SOON).await;
    assert_eq!(status.code(), Some(0));
}

/// The answer of one stream is not held up by the silence of another.
#[tokio::test(flavor = "multi_thread")]
async fn streams_do_not_wait_for_each_other() {
    let scene = scene().await;
    let mut http2 = scene.http2().await;
    let slow = tokio::spawn(whole(http2.get("/slow")));
    let (mut slow_peer, _) = scene.upstream.request().await;
    let quick = tokio::spawn(whole(http2.get("/quick")));
    let (mut quick_peer, _) = scene.upstream.request().await;
    quick_peer
        .send(answer("200 OK", "quick"))
        .await
        .expect("sent");
    assert_eq!(answered(quick).await.text(), "quick");
    slow_peer
        .send(answer("200 OK", "slow"))
        .await
        .expect("sent");
    assert_eq!(answered(slow).await.text(), "slow");
}

/// A client of HTTP/2 cannot upgrade; what it says about that stays here.
#[tokio::test(flavor = "multi_thread")]
async fn te_trailers_is_all_that_te_may_say() {
    let scene = scene().await;
    let asked = scene.ask(Version::Http2, Ask::get().field("te", "trailers"));
    let (mut peer, request) = scene.upstream.request().await;
    let te = request.head.get("te");
    assert!(te.is_none(), "without a Connection that names it: {te:?}");
    peer.send(answer("200 OK", "ok")).await.expect("sent");
    assert_eq!(answered(asked).await.text(), "ok");
}

/// Its end would reach a client in the middle of its upload as a failure.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_answered_early_is_left_open_for_a_small_body() {
    let scene = scene().await;
    let mut frames = open(&scene).await;
    let trace = frames::block(&[(b":method", b"TRACE"), GET[1], GET[2], GET[3]]);
    let ask = async |frames: &mut Frames, flags: u8, stream: u32| {
        let flags = flags | frames::END_HEADERS;
        let sent = frames.send(frames::HEADERS, flags, stream, &trace).await;
        sent.expect("sent");
    };
    ask(&mut frames, 0, 1).await;
    assert_eq!(frames.outcome(1).await, Outcome::Status(405));
    let sent = frames
        .send(frames::DATA, frames::END_STREAM, 1, b"body")
        .await;
    sent.expect("sent");
    ask(&mut frames, frames::END_STREAM, 3).await;
    loop {
        let frame = frames.next().await.expect("a frame");
        assert!(
            frame.kind != frames::RST_STREAM || frame.stream != 1,
            "it was cut off"
        );
        if frame.stream == 3 {
            break;
        }
    }
}
