//! So many connections in all, so many for each client, and what happens beyond: closed at once,
//! counted, said once in a while; and nobody else is harmed.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::support::http1::KeepAlive;
use crate::support::http2;
use crate::support::perennial::Perennial;
use crate::support::place::Place;
use crate::support::sites::{FileTls, site};
use crate::support::upstream::Upstream;
use crate::support::wait::{SOON, wait_until};

const NAME: &str = "a.example.test";

fn with(place: Place, server: &str) -> Perennial {
    let tls = FileTls::new(&place, &[NAME]);
    let site = site(NAME, "files", &["respond:hello"]);
    let rest = format!("{server}\n{}{site}", tls.pair.table());
    Perennial::with_config(place, &rest)
}

/// From another address of this host.
async fn connect_from(client: [u8; 4], to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((Ipv4Addr::from(client), 0).into()).unwrap();
    socket.connect(to).await.expect("the kernel takes it")
}

/// Closed without a word, and soon.
async fn is_refused(mut stream: TcpStream) {
    let read = tokio::time::timeout(SOON, stream.read(&mut [0; 1])).await;
    assert!(matches!(read, Ok(Ok(0) | Err(_))), "{read:?}");
}

async fn refused(perennial: &Perennial, reason: &str) -> f64 {
    let name = "perennial_connections_refused_total";
    let labels = [format!("reason=\"{reason}\"")];
    let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
    perennial.metric(name, &labels).await.unwrap_or_default()
}

/// A connection that is open, and has been seen to be.
async fn open(perennial: &Perennial) -> KeepAlive {
    let mut connection = KeepAlive::open_plain(perennial.place.http, NAME)
        .await
        .unwrap();
    assert_eq!(connection.get("/").await.unwrap().0, 308);
    connection
}

const OTHER: &str = "b.example.test";

/// With a site without TLS and an application behind it, too.
async fn with_app(server: &str) -> (Perennial, Upstream) {
    let place = Place::new();
    let upstream = Upstream::start(&place, "app").await;
    let other = site(OTHER, "off", &[&upstream.addr.to_string()]);
    let tls = FileTls::new(&place, &[NAME]);
    let site = site(NAME, "files", &["respond:hello"]);
    let rest = format!("{server}\n{}{site}{other}", tls.pair.table());
    let mut perennial = Perennial::with_config(place, &rest);
    perennial.start_and_wait().await;
    perennial.wait_ready().await;
    (perennial, upstream)
}

/// A connection whose request is under way, until the application is told to answer it.
async fn busy(perennial: &Perennial, upstream: &Upstream) -> TcpStream {
    let before = upstream.held();
    let mut stream = TcpStream::connect(perennial.place.http)
        .await
        .expect("taken");
    let request = format!("GET /hold HTTP/1.1\r\nHost: {OTHER}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("sent");
    wait_until(SOON, "a request that is held", async || {
        (upstream.held() > before).then_some(())
    })
    .await;
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_the_limit_connections_are_closed_at_once() {
    let server = "max_connections = 3\nmax_connections_per_client = 0";
    let (perennial, upstream) = with_app(server).await;
    let (http, https) = (perennial.place.http, perennial.place.https);
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(busy(&perennial, &upstream).await);
    }
    for address in [http, https, http, https] {
        is_refused(TcpStream::connect(address).await.unwrap()).await;
    }
    assert_eq!(refused(&perennial, "max_connections").await, 4.0);
    let said = perennial.log_lines_with("connections are refused");
    assert_eq!(said.len(), 1, "{said:?}");
    // Looking at ourselves takes no place, and is not turned away.
    let looks = async || {
        let name = "perennial_tls_handshakes_total";
        let looks = perennial.metric(name, &["result=\"self_check\""]).await;
        looks.unwrap_or_default()
    };
    let before = looks().await;
    let tls = FileTls::new(&perennial.place, &[NAME]);
    let serial = tls.leaf.serial.clone();
    let proved = async || {
        let log = perennial.log_lines_with(&format!("serial=\"{serial}\""));
        (!log.is_empty()).then_some(())
    };
    wait_until(SOON, "the new certificate", proved).await;
    let looked = async || (looks().await > before).then_some(());
    wait_until(SOON, "a look at ourselves", looked).await;
    // Those that are open are served, and the place of one that ends is free.
    upstream.release();
    let mut answers = Vec::new();
    for stream in &mut held {
        answers.push(Box::pin(async {
            let mut head = [0; 12];
            stream.read_exact(&mut head).await.map(|_| head)
        }));
    }
    let (first, _, others) = futures_util::future::select_all(answers).await;
    assert_eq!(&first.expect("an answer"), b"HTTP/1.1 200");
    drop(others);
    let served = async || {
        let mut connection = KeepAlive::open(https, NAME, None).await.ok()?;
        connection.get("/").await.ok()
    };
    let answer = wait_until(SOON, "a place", served).await;
    assert_eq!(answer, (200, "hello".to_owned()));
}

/// At the limit what waits for a request goes, the one that has waited longest first; what is under
/// way stays.
#[tokio::test(flavor = "multi_thread")]
async fn what_waits_makes_room() {
    let server = "max_connections = 3\nmax_connections_per_client = 0";
    let (perennial, upstream) = with_app(server).await;
    let https = perennial.place.https;
    let mut under_way = busy(&perennial, &upstream).await;
    let http2 = http2::open(https, NAME, None).await;
    let mut http2 = http2.expect("a connection");
    let request = http::Request::get(format!("https://{NAME}/")).body(axum::body::Body::empty());
    let answer = http2.send_request(request.expect("a request")).await;
    assert_eq!(answer.expect("an answer").status(), 200);
    let first = open(&perennial).await;
    let closed = async || {
        let name = "perennial_connections_idle_closed_total";
        perennial.metric(name, &[]).await.unwrap_or_default()
    };
    assert_eq!(closed().await, 0.0);
    // The one of HTTP/2 has waited longest.
    let second = open(&perennial).await;
    wait_until(SOON, "its end", async || http2.is_closed().then_some(())).await;
    assert_eq!((closed().await, first.is_closed()), (1.0, false));
    let mut third = open(&perennial).await;
    wait_until(SOON, "its end", async || first.is_closed().then_some(())).await;
    assert_eq!((closed().await, second.is_closed()), (2.0, false));
    // Whoever is heard of again has not waited long.
    assert_eq!(third.get("/").await.unwrap().0, 308);
    let _fourth = open(&perennial).await;
    wait_until(SOON, "its end", async || second.is_closed().then_some(())).await;
    assert_eq!((closed().await, third.is_closed()), (3.0, false));
    assert_eq!(refused(&perennial, "max_connections").await, 0.0);
    upstream.release();
    let mut head = [0; 12];
    under_way.read_exact(&mut head).await.expect("an answer");
    assert_eq!(&head, b"HTTP/1.1 200");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_client_does_not_keep_the_others_out() {
    let mut perennial = with(
        Place::new(),
        "max_connections_per_client = 2\ntrusted_proxies = [\"127.9.9.9\"]",
    );
    perennial.start_and_wait().await;
    let http = perennial.place.http;
    let first = [
        connect_from([127, 1, 1, 1], http).await,
        connect_from([127, 1, 1, 1], http).await,
    ];
    is_refused(connect_from([127, 1, 1, 1], http).await).await;
    assert_eq!(refused(&perennial, "max_connections_per_client").await, 1.0);
    let line = perennial
        .wait_for_log("connections are refused", SOON)
        .await;
    assert!(line.contains("127.1.1.1"), "{line}");
    assert_eq!(open(&perennial).await.get("/").await.unwrap().0, 308);
    // A proxy's connections are many clients'.
    let mut proxied = Vec::new();
    for _ in 0..4 {
        let mut stream = connect_from([127, 9, 9, 9], http).await;
        answers(&mut stream).await;
        proxied.push(stream);
    }
    drop(first);
    let again = async || {
        let mut stream = connect_from([127, 1, 1, 1], http).await;
        let asked = ask(&mut stream).await;
        asked.ok().filter(|length| *length > 0)
    };
    wait_until(SOON, "a place for the first again", again).await;
}

async fn ask(stream: &mut TcpStream) -> std::io::Result<usize> {
    let request = format!("GET / HTTP/1.1\r\nHost: {NAME}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    stream.read(&mut [0; 512]).await
}

async fn answers(stream: &mut TcpStream) {
    let length = tokio::time::timeout(SOON, ask(stream)).await;
    assert!(matches!(length, Ok(Ok(1..))), "{length:?}");
}

/// A limit that changes holds from the next connection on.
#[tokio::test(flavor = "multi_thread")]
async fn limits_change_live() {
    let (perennial, upstream) = with_app("max_connections = 1").await;
    let _one = busy(&perennial, &upstream).await;
    is_refused(TcpStream::connect(perennial.place.http).await.unwrap()).await;
    let file = perennial.place.path("perennial.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(
        &file,
        text.replace("max_connections = 1", "max_connections = 5"),
    )
    .unwrap();
    perennial.wait_for_log("configuration reloaded", SOON).await;
    let _two = busy(&perennial, &upstream).await;
    let _three = busy(&perennial, &upstream).await;
}

/// Without descriptors nobody new is served, the processor has its peace, and it passes.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_without_descriptors_recovers() {
    const DESCRIPTORS: usize = 80;
    let limit = format!("--nofile={DESCRIPTORS}:{DESCRIPTORS}");
    let server = "max_connections = 0\nmax_connections_per_client = 0\nthreads = 1";
    let mut perennial = with(Place::new(), server).through(&["prlimit", &limit]);
    perennial.start_and_wait().await;
    let http = perennial.place.http;
    let mut held = Vec::new();
    for _ in 0..2 * DESCRIPTORS {
        held.push(TcpStream::connect(http).await.unwrap());
    }
    let line = perennial
        .wait_for_log("connections are refused", SOON)
        .await;
    assert!(line.contains("Too many open files"), "{line}");
    let before = processor_time(perennial.pid());
    let began = std::time::Instant::now();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let spent = processor_time(perennial.pid()) - before;
    assert!(
        spent < began.elapsed() / 4,
        "{spent:?} of {:?}",
        began.elapsed()
    );
    drop(held);
    let served = async || {
        let mut connection = KeepAlive::open_plain(http, NAME).await.ok()?;
        let answer = tokio::time::timeout(Duration::from_secs(5), connection.get("/")).await;
        answer.ok()?.ok()
    };
    assert_eq!(wait_until(SOON, "an answer", served).await.0, 308);
}

fn processor_time(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let fields: Vec<&str> = fields.split(' ').collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    // USER_HZ is 100 on every Linux.
    Duration::from_millis(ticks * 10)
}
