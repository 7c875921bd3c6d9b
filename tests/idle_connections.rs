//! Connections of clients that wait for their next request longer than they may.

use std::time::{Duration, Instant};

use tokio::net::TcpStream;

use crate::support::h2_frames::{self as frames, Frames};
use crate::support::perennial::Perennial;
use crate::support::place::Place;
use crate::support::scripted::{ScriptedUpstream, answer};
use crate::support::sites::FileTls;
use crate::support::wait::SOON;
use crate::support::wire::{End, Wire};

const NAME: &str = "a.example.test";
const SHORT: Duration = Duration::from_secs(1);

struct Scene {
    perennial: Perennial,
    upstream: ScriptedUpstream,
    /// The configuration behind the keys of `[server]`.
    sites: String,
}

/// One name, over TLS and without.
async fn scene(server: &str) -> Scene {
    let place = Place::new();
    let upstream = ScriptedUpstream::start(&place).await;
    let mut sites = FileTls::new(&place, &[NAME]).pair.table();
    for (host, tls) in [(NAME, "files"), ("plain.test", "off")] {
        sites += &format!(
            "[[sites]]\nhosts = [\"{host}\"]\ntls = \"{tls}\"\nupstreams = [\"{}\"]\n",
            upstream.addr
        );
    }
    let mut perennial = Perennial::run(place, &format!("{server}\n{sites}")).await;
    perennial.wait_ready().await;
    Scene {
        perennial,
        upstream,
        sites,
    }
}

impl Scene {
    async fn plain(&self) -> Wire<TcpStream> {
        let stream = TcpStream::connect(self.perennial.place.http).await;
        Wire::new(stream.expect("a connection"))
    }

    async fn answer_one(&self) {
        let (mut peer, _) = self.upstream.request().await;
        peer.send(answer("200 OK", "ok")).await.unwrap();
    }

    async fn exchange(&self, wire: &mut Wire<TcpStream>) {
        wire.send(GET).await.unwrap();
        self.answer_one().await;
        assert_eq!(wire.response("GET").await.unwrap().text(), "ok");
    }
}

const GET: &str = "GET / HTTP/1.1\r\nHost: plain.test\r\n\r\n";

async fn get(frames: &mut Frames, stream: u32) {
    let fields: [(&[u8], &[u8]); 4] = [
        (b":method", b"GET"),
        (b":scheme", b"https"),
        (b":authority", NAME.as_bytes()),
        (b":path", b"/"),
    ];
    let flags = frames::END_HEADERS | frames::END_STREAM;
    let block = frames::block(&fields);
    let sent = frames.send(frames::HEADERS, flags, stream, &block).await;
    sent.unwrap();
}

/// Everything until the connection is closed, after `begun` and a whole second at least.
async fn closed(wire: &mut Wire<TcpStream>, begun: Instant) {
    let rest = tokio::time::timeout(SOON, wire.rest()).await;
    assert_eq!(rest.expect("in time"), Ok((Vec::new(), End::Closed)));
    let waited = begun.elapsed();
    assert!(waited >= SHORT, "{waited:?}");
}

/// Before the first request and after one, but never while one is under way.
#[tokio::test(flavor = "multi_thread")]
async fn of_http1() {
    let scene = scene("http1_idle_timeout = \"1s\"").await;
    let mut busy = scene.plain().await;
    busy.send(GET).await.unwrap();
    let (mut peer, _) = scene.upstream.request().await;

    let begun = Instant::now();
    let mut fresh = scene.plain().await;
    let mut used = scene.plain().await;
    scene.exchange(&mut used).await;
    closed(&mut fresh, begun).await;
    closed(&mut used, begun).await;

    peer.send(answer("200 OK", "ok")).await.unwrap();
    assert_eq!(busy.response("GET").await.unwrap().text(), "ok");
}

/// They are told (GOAWAY), and have a moment for what they had sent already. The stream of another
/// connection that waits for its upstream meanwhile does not count as idle.
#[tokio::test(flavor = "multi_thread")]
async fn of_http2() {
    let scene = scene("http2_idle_timeout = \"1s\"").await;
    let https = scene.perennial.place.https;
    let mut busy = Frames::open(https, NAME).await;
    get(&mut busy, 1).await;
    let (mut peer, _) = scene.upstream.request().await;

    let begun = Instant::now();
    let mut idle = Frames::open(https, NAME).await;
    get(&mut idle, 1).await;
    scene.answer_one().await;
    let goaway = async {
        loop {
            let frame = idle.next().await.expect("GOAWAY before the end");
            if frame.kind == frames::GOAWAY {
                return frame;
            }
        }
    };
    let goaway = tokio::time::timeout(SOON, goaway).await.expect("in time");
    // NO_ERROR.
    assert_eq!(goaway.payload[4..8], [0; 4]);
    let waited = begun.elapsed();
    assert!(waited >= SHORT, "{waited:?}");
    let end = async { while idle.next().await.is_ok() {} };
    tokio::time::timeout(SOON, end).await.expect("closed");

    peer.send(answer("200 OK", "ok")).await.unwrap();
    assert_eq!(busy.outcome(1).await, frames::Outcome::Status(200));
}

/// From the next wait on, without a new connection.
#[tokio::test(flavor = "multi_thread")]
async fn the_time_changes_live() {
    let scene = scene("").await;
    let mut open = scene.plain().await;
    scene.exchange(&mut open).await;
    let short = format!("http1_idle_timeout = \"1s\"\n{}", scene.sites);
    scene.perennial.rewrite_config(&short);
    let log = scene.perennial.wait_for_log("configuration reloaded", SOON);
    log.await;
    let begun = Instant::now();
    scene.exchange(&mut open).await;
    closed(&mut open, begun).await;
}
