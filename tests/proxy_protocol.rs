//! The PROXY protocol: from proxies in front, whose word about the client counts from the first
//! byte on, and to upstreams.

use std::net::SocketAddr;

use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::support::perennial::Perennial;
use crate::support::place::Place;
use crate::support::scripted::{ScriptedUpstream, answer};
use crate::support::sites::{FileTls, site};
use crate::support::tls;
use crate::support::upstream::Upstream;
use crate::support::wait::{SOON, wait_until};
use crate::support::wire::Wire;

const NAME: &str = "a.example.test";
const ANNOUNCED: &str = "203.0.113.7";

/// A server that takes the word of everybody on this host.
async fn scene(server: &str, upstream: Option<SocketAddr>) -> Perennial {
    let place = Place::new();
    let tls = FileTls::new(&place, &[NAME]);
    let upstream = upstream.map_or("respond:hello".to_owned(), |addr| addr.to_string());
    let site = site(NAME, "files", &[&upstream]);
    let rest = format!(
        "proxy_protocol_from = [\"127.0.0.0/8\"]\n{server}\n{}{site}",
        tls.pair.table()
    );
    let mut perennial = Perennial::run(place, &rest).await;
    perennial.wait_ready().await;
    perennial
}

fn v1() -> Vec<u8> {
    format!("PROXY TCP4 {ANNOUNCED} 192.0.2.80 4711 443\r\n").into_bytes()
}

fn v2(command: u8) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
    // With a TLV behind the addresses.
    header.extend_from_slice(&[command, 0x11, 0, 12 + 6]);
    header.extend_from_slice(&[203, 0, 113, 7, 192, 0, 2, 80, 0x12, 0x67, 1, 0xbb]);
    header.extend_from_slice(&[0x02, 0, 3, b'a', b'.', b'b']);
    header
}

/// A TLS connection that begins with these bytes.
async fn secure_after(https: SocketAddr, header: &[u8]) -> Result<TlsStream<TcpStream>, String> {
    let words = |error: std::io::Error| error.to_string();
    let mut stream = TcpStream::connect(https).await.map_err(words)?;
    stream.write_all(header).await.map_err(words)?;
    let name = ServerName::try_from(NAME).unwrap();
    let connector = TlsConnector::from(std::sync::Arc::new(tls::accepting_anything()));
    let handshake = connector.connect(name, stream);
    let stream = tokio::time::timeout(SOON, handshake).await;
    stream.map_err(|_| "no handshake")?.map_err(words)
}

/// The answer on one.
async fn get_after(https: SocketAddr, header: &[u8]) -> Result<String, String> {
    let words = |error: std::io::Error| error.to_string();
    let mut stream = secure_after(https, header).await?;
    let request = format!("GET / HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.map_err(words)?;
    let mut text = String::new();
    // However it ends: what matters is in the text.
    let _ = stream.read_to_string(&mut text).await;
    Ok(text)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_announced_client_is_the_client() {
    let place = Place::new();
    let app = Upstream::start(&place, "app").await;
    let perennial = scene("", Some(app.addr)).await;
    for header in [v1(), v2(0x21)] {
        let answer = get_after(perennial.place.https, &header).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        // The application tells what reached it.
        let told = format!("\"x-forwarded-for\":[\"{ANNOUNCED}\"]");
        assert!(answer.contains(&told), "{answer}");
    }
    let logged = async || {
        let lines = perennial.log_lines_with(ANNOUNCED);
        (lines.len() >= 2).then_some(())
    };
    wait_until(SOON, "the client in the access log", logged).await;
    // Our own look at what is served is announced by nobody.
    let looks = "perennial_tls_handshakes_total";
    let looked = async || perennial.metric(looks, &["result=\"self_check\""]).await;
    wait_until(SOON, "a look at ourselves", looked).await;
    let differs = perennial.log_lines_with("what is served is not what is loaded");
    assert!(differs.is_empty(), "{differs:?}");
}

/// However it is cut into packets, nothing of the handshake behind it is lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_header_may_come_in_pieces() {
    let perennial = scene("", None).await;
    let http = perennial.place.http;
    for header in [v1(), v2(0x21)] {
        let request = format!("GET / HTTP/1.1\r\nHost: {NAME}\r\n\r\n");
        let bytes = [&header[..], request.as_bytes()].concat();
        for cut in [1, 5, 13, header.len() - 1, header.len(), header.len() + 3] {
            let stream = TcpStream::connect(http).await.unwrap();
            stream.set_nodelay(true).unwrap();
            let mut wire = Wire::new(stream);
            wire.send(&bytes[..cut]).await.unwrap();
            tokio::task::yield_now().await;
            wire.send(&bytes[cut..]).await.unwrap();
            let head = wire.until(b"\r\n\r\n").await.unwrap();
            assert!(head.starts_with(b"HTTP/1.1 308"), "{cut}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn health_checks_of_the_proxy_are_its_own() {
    let perennial = scene("", None).await;
    for header in [v2(0x20), b"PROXY UNKNOWN\r\n".to_vec()] {
        let answer = get_after(perennial.place.https, &header).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    // One that connects and hangs up is no news.
    drop(TcpStream::connect(perennial.place.https).await.unwrap());
    let answer = get_after(perennial.place.https, &v1()).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let refused = perennial.log_lines_with("connections are refused");
    assert!(refused.is_empty(), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_header_a_proxy_is_refused() {
    let perennial = scene("", None).await;
    let https = perennial.place.https;
    let wrong = b"PROXY TCP4 nonsense\r\n".as_slice();
    for header in [b"".as_slice(), wrong] {
        get_after(https, header).await.expect_err("refused");
    }
    // Whoever says nothing has its time for that.
    let mut silent = TcpStream::connect(https).await.unwrap();
    let read = tokio::time::timeout(SOON, silent.read(&mut [0; 1])).await;
    assert!(matches!(read, Ok(Ok(0) | Err(_))), "{read:?}");
    let line = perennial
        .wait_for_log("connections are refused", SOON)
        .await;
    assert!(line.contains("no PROXY protocol header"), "{line}");
    let refused = "perennial_connections_refused_total";
    let count = perennial
        .metric(refused, &["reason=\"proxy_protocol\""])
        .await;
    assert_eq!(count, Some(3.0));
}

/// Nobody else's word is taken: to others it is no beginning of a handshake, or of a request.
#[tokio::test(flavor = "multi_thread")]
async fn a_header_from_anybody_else_is_an_error() {
    let place = Place::new();
    let tls = FileTls::new(&place, &[NAME]);
    let site = site(NAME, "files", &["respond:hello"]);
    let rest = format!(
        "proxy_protocol_from = [\"192.0.2.0/24\"]\n{}{site}",
        tls.pair.table()
    );
    let mut perennial = Perennial::run(place, &rest).await;
    perennial.wait_ready().await;
    get_after(perennial.place.https, &v1())
        .await
        .expect_err("no TLS");
    let answer = get_after(perennial.place.https, b"").await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let stream = TcpStream::connect(perennial.place.http).await.unwrap();
    let mut wire = Wire::new(stream);
    wire.send(v1()).await.unwrap();
    wire.send("GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let head = wire.until(b"\r\n\r\n").await.unwrap();
    let head = String::from_utf8_lossy(&head);
    let refused = ["HTTP/1.1 400", "HTTP/1.1 505"];
    assert!(refused.iter().any(|it| head.starts_with(it)), "{head}");
}

/// Limits are for the announced client, and so are rules about addresses.
#[tokio::test(flavor = "multi_thread")]
async fn limits_and_rules_are_about_the_announced_client() {
    let perennial = scene("max_connections_per_client = 1", None).await;
    let file = perennial.place.path("perennial.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let rule = format!("hosts = [\"{NAME}\"]\ndeny = [\"203.0.113.8\"]");
    std::fs::write(&file, text.replace(&format!("hosts = [\"{NAME}\"]"), &rule)).unwrap();
    perennial.wait_for_log("configuration reloaded", SOON).await;
    let https = perennial.place.https;
    let denied = String::from_utf8(v1())
        .unwrap()
        .replace(ANNOUNCED, "203.0.113.8");
    let answer = get_after(https, denied.as_bytes()).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    // Its place is taken once the handshake is over.
    let _held = secure_after(https, &v1()).await.unwrap();
    let second = get_after(https, &v1()).await;
    second.expect_err("one client has one connection");
    let other = String::from_utf8(v1())
        .unwrap()
        .replace(ANNOUNCED, "203.0.113.9");
    let answer = get_after(https, other.as_bytes()).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

/// `perennial` passes requests on to `upstream`, and says so in this version.
async fn announces(perennial: &Perennial, version: &str, upstream: &str) {
    let file = perennial.place.path("perennial.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let text = text.replace("respond:hello", upstream);
    std::fs::write(&file, format!("{text}proxy_protocol = \"{version}\"\n")).unwrap();
    perennial.wait_for_log("configuration reloaded", SOON).await;
}

/// An upstream hears of the client on each connection, which is that client's alone.
#[tokio::test(flavor = "multi_thread")]
async fn upstreams_are_told() {
    let v2 = [
        &b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c"[..],
        &v2(0x21)[16..28],
    ]
    .concat();
    let v1_line = b"PROXY TCP4 203.0.113.7 192.0.2.80 4711 443\r\n".to_vec();
    for (version, expected) in [("v1", v1_line), ("v2", v2)] {
        let app = ScriptedUpstream::start(&Place::new()).await;
        let perennial = scene("", None).await;
        announces(&perennial, version, &app.addr.to_string()).await;
        for _ in 0..2 {
            let https = perennial.place.https;
            let asked = tokio::spawn(async move { get_after(https, &v1()).await });
            let mut peer = app.accept().await;
            let header = peer.exactly(expected.len()).await.unwrap();
            assert_eq!(header, expected, "{version}");
            let request = peer.request().await.unwrap();
            assert!(request.head.start.starts_with("GET /"), "{request:?}");
            peer.send(answer("200 OK", "told")).await.unwrap();
            assert!(asked.await.unwrap().unwrap().contains("told"));
        }
    }
}

/// Before TLS, where the upstream has it.
#[tokio::test(flavor = "multi_thread")]
async fn upstreams_with_tls_are_told_before_it() {
    let place = Place::new();
    let tls = FileTls::new(&place, &["u.example.test"]);
    let app = Upstream::start_tls(&place, "app", &tls.leaf).await;
    let front = tokio::net::TcpListener::bind((place.ip, 0)).await.unwrap();
    let address = front.local_addr().unwrap();
    let perennial = scene("", None).await;
    let trust = format!(
        "upstream_tls = {{ ca = \"{}\", server_name = \"u.example.test\" }}\n",
        tls.root.display()
    );
    let file = perennial.place.path("perennial.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let upstream = format!("https://{address}");
    let text = text.replace("respond:hello", &upstream);
    std::fs::write(&file, format!("{text}proxy_protocol = \"v1\"\n{trust}")).unwrap();
    perennial.wait_for_log("configuration reloaded", SOON).await;
    let https = perennial.place.https;
    let asked = tokio::spawn(async move { get_after(https, &v1()).await });
    let (mut stream, _) = front.accept().await.unwrap();
    let mut header = vec![0; v1().len()];
    stream.read_exact(&mut header).await.unwrap();
    assert_eq!(header, v1());
    let mut behind = TcpStream::connect(app.addr).await.unwrap();
    tokio::spawn(async move {
        let _ = tokio::io::copy_bidirectional(&mut stream, &mut behind).await;
    });
    let answer = asked.await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}
