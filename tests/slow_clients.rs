//! Clients that take their time to hold what others need: bodies that trickle in, answers that
//! trickle out, connections that are opened and not used, frames that ask for work.

use std::time::Duration;

use rustix::process::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::support::h2_frames::{self as frames, Frames, Outcome};
use crate::support::http1::KeepAlive;
use crate::support::perennial::Perennial;
use crate::support::place::Place;
use crate::support::scripted::{ScriptedUpstream, answer};
use crate::support::sites::FileTls;
use crate::support::wait::SOON;
use crate::support::wire::Wire;

const NAME: &str = "a.example.test";
const TRICKLE: Duration = Duration::from_millis(50);
/// More than sockets and buffers hold.
const LARGE: usize = 64 << 20;

struct Scene {
    perennial: Perennial,
    upstream: ScriptedUpstream,
}

/// One name, over TLS and without.
async fn scene(server: &str) -> Scene {
    let place = Place::new();
    let upstream = ScriptedUpstream::start(&place).await;
    let tls = FileTls::new(&place, &[NAME]);
    let site = |host: &str, mode: &str| {
        format!(
            "[[sites]]\nhosts = [\"{host}\"]\ntls = \"{mode}\"\nupstreams = [\"{}\"]\n",
            upstream.addr
        )
    };
    let rest = format!(
        "{server}\n{}{}{}",
        tls.pair.table(),
        site(NAME, "files"),
        site("plain.test", "off")
    );
    let mut perennial = Perennial::run(place, &rest).await;
    perennial.wait_ready().await;
    Scene {
        perennial,
        upstream,
    }
}

async fn plain(scene: &Scene) -> Wire<TcpStream> {
    let stream = TcpStream::connect(scene.perennial.place.http).await;
    Wire::new(stream.expect("a connection"))
}

const POST: &str = "POST / HTTP/1.1\r\nHost: plain.test\r\nContent-Length: 1000000\r\n\r\n";

/// Each byte comes well before any silence is too long.
#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_trickles_in_ends_with_408() {
    let scene = scene("min_request_rate = \"1KiB\"\nmin_rate_after = \"1s\"").await;
    let mut wire = plain(&scene).await;
    wire.send(POST).await.unwrap();
    let trickle = async {
        while wire.send("x").await.is_ok() && !wire.hears_within(TRICKLE).await {}
        wire.until(b"\r\n").await
    };
    let line = tokio::time::timeout(SOON, trickle).await.expect("in time");
    assert!(line.unwrap().starts_with(b"HTTP/1.1 408"));
    let reason = scene.perennial.wait_for_log("min_request_rate", SOON).await;
    assert!(reason.contains("plain.test"), "{reason}");
}

/// Whoever has sent a lot has earned its time, and an upstream's counts for nobody.
#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_was_fast_may_pause_and_an_upstream_may_think() {
    let scene = scene("min_request_rate = \"1KiB\"\nmin_rate_after = \"1s\"").await;
    let mut wire = plain(&scene).await;
    let body = vec![b'x'; 1 << 20];
    let head = format!(
        "POST / HTTP/1.1\r\nHost: plain.test\r\nContent-Length: {}\r\n\r\n",
        body.len() + 3
    );
    wire.send(head).await.unwrap();
    let sent = tokio::spawn(async move {
        wire.send(&body).await.unwrap();
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            wire.send("x").await.unwrap();
        }
        wire
    });
    let (mut peer, request) = scene.upstream.request().await;
    assert_eq!(request.body.len(), (1 << 20) + 3);
    let mut wire = sent.await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    peer.send(answer("200 OK", "thought")).await.unwrap();
    let response = wire.response("POST").await.unwrap();
    assert_eq!(response.text(), "thought");
}

/// Off is off.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_rate_any_is_fast_enough() {
    let scene = scene("min_request_rate = \"off\"\nmin_rate_after = \"1s\"").await;
    let mut wire = plain(&scene).await;
    wire.send("POST / HTTP/1.1\r\nHost: plain.test\r\nContent-Length: 30\r\n\r\n")
        .await
        .unwrap();
    for _ in 0..30 {
        tokio::time::sleep(2 * TRICKLE).await;
        wire.send("x").await.unwrap();
    }
    let (mut peer, request) = scene.upstream.request().await;
    assert_eq!(request.body.len(), 30);
    peer.send(answer("200 OK", "at last")).await.unwrap();
    assert_eq!(wire.response("POST").await.unwrap().text(), "at last");
}

async fn answer_at_length(scene: &Scene) {
    let (mut peer, _) = scene.upstream.request().await;
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {LARGE}\r\n\r\n");
    peer.send(head).await.unwrap();
    let chunk = vec![b'x'; 1 << 20];
    // Until nobody takes it any more.
    while peer.stream.write_all(&chunk).await.is_ok() {}
}

/// A response that is read byte by byte holds an upstream's connection no longer than it may.
#[tokio::test(flavor = "multi_thread")]
async fn a_response_that_trickles_out_is_cut() {
    let scene = scene("min_response_rate = \"64MiB\"\nmin_rate_after = \"1s\"").await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(16 * 1024).unwrap();
    let mut stream = socket.connect(scene.perennial.place.http).await.unwrap();
    let request = b"GET / HTTP/1.1\r\nHost: plain.test\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let reader = tokio::spawn(async move {
        let mut byte = [0; 1];
        while let Ok(1) = stream.read(&mut byte).await {
            tokio::time::sleep(TRICKLE).await;
        }
    });
    let sent = tokio::time::timeout(SOON, answer_at_length(&scene)).await;
    sent.expect("the upstream is let go");
    scene
        .perennial
        .wait_for_log("min_response_rate", SOON)
        .await;
    reader.abort();
}

/// The same with a stream of HTTP/2, whose window is opened by one byte at a time.
#[tokio::test(flavor = "multi_thread")]
async fn a_window_that_opens_byte_by_byte_is_too_slow() {
    let scene = scene("min_response_rate = \"64MiB\"\nmin_rate_after = \"1s\"").await;
    let mut frames = Frames::open(scene.perennial.place.https, NAME).await;
    let block = frames::block(&GET);
    let flags = frames::END_HEADERS | frames::END_STREAM;
    frames
        .send(frames::HEADERS, flags, 1, &block)
        .await
        .unwrap();
    let opening = tokio::spawn(async move {
        let one = 1_u32.to_be_bytes();
        // Until the connection is gone, or the test is over.
        while frames.send(frames::WINDOW_UPDATE, 0, 1, &one).await.is_ok() {
            tokio::time::sleep(TRICKLE).await;
        }
    });
    let sent = tokio::time::timeout(SOON, answer_at_length(&scene)).await;
    sent.expect("the upstream is let go");
    scene
        .perennial
        .wait_for_log("min_response_rate", SOON)
        .await;
    opening.abort();
}

const GET: [(&[u8], &[u8]); 4] = [
    (b":method", b"GET"),
    (b":scheme", b"https"),
    (b":authority", NAME.as_bytes()),
    (b":path", b"/"),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_trickles_in_over_http2_ends_with_408() {
    let scene = scene("min_request_rate = \"1KiB\"\nmin_rate_after = \"1s\"").await;
    let mut frames = Frames::open(scene.perennial.place.https, NAME).await;
    let mut post = GET;
    post[0] = (b":method", b"POST");
    let block = frames::block(&post);
    let flags = frames::END_HEADERS;
    frames
        .send(frames::HEADERS, flags, 1, &block)
        .await
        .unwrap();
    let trickle = async {
        loop {
            let _ = frames.send(frames::DATA, 0, 1, b"x").await;
            let outcome = tokio::time::timeout(TRICKLE, frames.outcome(1)).await;
            if let Ok(outcome) = outcome {
                return outcome;
            }
        }
    };
    let outcome = tokio::time::timeout(SOON, trickle).await.expect("in time");
    assert_eq!(outcome, Outcome::Status(408));
}

/// While somebody else is slow.
async fn others_are_served(scene: &Scene) {
    let https = scene.perennial.place.https;
    let asked = tokio::spawn(async move {
        let mut connection = KeepAlive::open(https, NAME, None).await?;
        connection.get("/").await
    });
    let (mut peer, _) = scene.upstream.request().await;
    peer.send(answer("200 OK", "served")).await.unwrap();
    assert_eq!(asked.await.unwrap(), Ok((200, "served".to_owned())));
}

/// Slowloris: a head that never ends, many times. Others are served meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn heads_that_never_end_are_not_waited_for() {
    let scene = scene("").await;
    let mut slow = Vec::new();
    for _ in 0..200 {
        let mut wire = plain(&scene).await;
        wire.send("GET / HTTP/1.1\r\nHost: plain.test\r\n")
            .await
            .unwrap();
        slow.push(wire);
    }
    others_are_served(&scene).await;
    let ended = async {
        for (index, wire) in slow.iter_mut().enumerate() {
            // Some are still at it.
            let _ = wire.send(format!("X-{index}: 1\r\n")).await;
            wire.until(b"HTTP/1.1 408").await.expect("408");
        }
    };
    tokio::time::timeout(SOON, ended).await.expect("in time");
}

/// A handshake that never comes, or that stops halfway. Others are served meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn handshakes_that_never_end_are_not_waited_for() {
    let scene = scene("").await;
    let https = scene.perennial.place.https;
    let silent = TcpStream::connect(https).await.expect("a connection");
    let half = TcpStream::connect(https).await.expect("a connection");
    let mut slow = [Wire::new(silent), Wire::new(half)];
    // The beginning of a ClientHello, which says that there is more.
    slow[1].send(b"\x16\x03\x01\x02\x00\x01\x00").await.unwrap();
    others_are_served(&scene).await;
    for wire in &mut slow {
        let rest = tokio::time::timeout(SOON, wire.rest()).await;
        rest.expect("closed in time").expect("closed");
    }
}

/// Answers to pings and settings are owed one at a time: whoever does not read them is not read
/// from, and costs no memory.
#[tokio::test(flavor = "multi_thread")]
async fn floods_of_pings_and_settings_cost_nothing() {
    let scene = scene("").await;
    for (kind, payload) in [(frames::PING, &[0; 8][..]), (frames::SETTINGS, &[][..])] {
        let mut flood = Frames::open(scene.perennial.place.https, NAME).await;
        let bytes = frames::frame(kind, 0, 0, payload).repeat(1000);
        let before = resident(scene.perennial.pid());
        // Until it takes no more, or has had enough.
        for _ in 0..20_000 {
            let sent = tokio::time::timeout(Duration::from_secs(1), flood.send_all(&bytes)).await;
            if !matches!(sent, Ok(Ok(()))) {
                break;
            }
        }
        let grown = resident(scene.perennial.pid()).saturating_sub(before);
        assert!(grown < 32 << 20, "{kind}: {grown} bytes more");
        others_are_served(&scene).await;
    }
}

fn resident(pid: u32) -> usize {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap();
    let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

/// A client of HTTP/2 that does not react to GOAWAY does not keep the process.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_leave_is_left() {
    let mut scene = scene("grace_period = \"1h\"").await;
    let mut deaf = Frames::open(scene.perennial.place.https, NAME).await;
    let block = frames::block(&GET);
    let flags = frames::END_HEADERS | frames::END_STREAM;
    deaf.send(frames::HEADERS, flags, 1, &block).await.unwrap();
    let (mut peer, _) = scene.upstream.request().await;
    peer.send(answer("200 OK", "")).await.unwrap();
    assert_eq!(deaf.outcome(1).await, Outcome::Status(200));
    scene.perennial.signal(Signal::TERM);
    // It answers no ping from here on: nobody reads.
    let status = scene.perennial.wait_exit(SOON).await;
    assert_eq!(status.code(), Some(0));
}
