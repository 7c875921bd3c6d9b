//! Peers that others have written: a conformance suite for HTTP/2, a server in Python, bodies of a
//! size that no memory should hold.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use tokio::net::TcpStream;

use crate::support::command::{self, curl};
use crate::support::nginx::Nginx;
use crate::support::perennial::Perennial;
use crate::support::place::Place;
use crate::support::upstream::Upstream;
use crate::support::wait::{SOON, wait_until};

/// One site at the server's address, with a certificate of the internal CA for that.
async fn proxy(place: Place, upstream: &str) -> Perennial {
    proxy_with(place, upstream, "").await
}

async fn proxy_with(place: Place, upstream: &str, more: &str) -> Perennial {
    let ip = place.ip;
    let rest = format!(
        "[certificates]\ndefault = \"{ip}\"\n\
         [[sites]]\nhosts = [\"{ip}\"]\nupstreams = [\"{upstream}\"]\n{more}"
    );
    let mut perennial = Perennial::run(place, &rest).await;
    perennial.wait_ready().await;
    perennial
}

/// All that RFC 9113 and RFC 7541 demand of a server, as far as <https://github.com/summerwind/h2spec>
/// asks for it. The upstream reads each request to its end: an answer that comes before a fault in
/// the request is no fault, but the suite takes it for one.
#[tokio::test(flavor = "multi_thread")]
async fn h2spec_finds_nothing() {
    let Some(h2spec) = command::find("h2spec") else {
        eprintln!(
            "no h2spec (make test installs it where Go is): our own frames alone test HTTP/2"
        );
        return;
    };
    let place = Place::new();
    let upstream = Upstream::start(&place, "patient").await;
    let perennial = proxy(place, &upstream.addr.to_string()).await;
    let https = perennial.place.https;
    let mut command = Command::new(h2spec);
    command.args(["-t", "-k", "--timeout", "20", "-h", &https.ip().to_string()]);
    command.args(["-p", &https.port().to_string(), "-P", "/whole"]);
    let done = command::run(command).await;
    assert!(done.success(), "{}{}", done.stdout, done.stderr);
    assert!(done.stdout.contains(" 0 failed"), "{}", done.stdout);
}

/// Killed when dropped.
struct Python(Child);

impl Drop for Python {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const SERVER: &str = r#"
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self):
        if self.path != "/chunks":
            return self.answer(f"{self.command} {self.path}".encode())
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number in range(100):
            chunk = f"{number}\n".encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
        self.wfile.write(b"0\r\n\r\n")

    do_HEAD = do_GET

    def do_PUT(self):
        left = int(self.headers["Content-Length"])
        while left > 0:
            left -= len(self.rfile.read(min(left, 65536)))
        self.answer(b"taken")

    def do_POST(self):
        self.answer(self.rfile.read(int(self.headers["Content-Length"])))

host, port = sys.argv[1:]
ThreadingHTTPServer((host, int(port)), Handler).serve_forever()
"#;

async fn python(addr: SocketAddr) -> Python {
    let python = command::find("python3")
        .expect("this test needs python3: install it with `apt-get install python3`");
    let mut command = Command::new(python);
    command.args([
        "-c",
        SERVER,
        &addr.ip().to_string(),
        &addr.port().to_string(),
    ]);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let child = Python(command.spawn().expect("python starts"));
    wait_until(SOON, "the server", async || {
        TcpStream::connect(addr).await.ok()
    })
    .await;
    child
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_in_python_is_an_upstream() {
    let place = Place::new();
    let addr = place.free();
    let _python = python(addr).await;
    let sent = place.write("sent", "0123456789abcdef".repeat(1 << 17));
    let received = place.path("received");
    let perennial = proxy(place, &addr.to_string()).await;
    let url = |path: &str| format!("https://{}{path}", perennial.place.https);
    let lines: String = (0..100).map(|number| format!("{number}\n")).collect();
    let (data, into) = (
        format!("@{}", sent.display()),
        received.display().to_string(),
    );
    for version in ["--http1.1", "--http2"] {
        let get = async |arguments: &[&str]| {
            let done = curl(&[&["--insecure", "--fail", version], arguments].concat()).await;
            done.assert_success().stdout
        };
        assert_eq!(get(&[&url("/a?b=c")]).await, "GET /a?b=c");
        assert_eq!(get(&[&url("/chunks")]).await, lines);
        let head = get(&["--head", &url("/four")]).await.to_lowercase();
        assert!(head.contains("content-length: 10\r\n"), "{head}");
        // Above a megabyte curl waits for the word to go on.
        get(&["--data-binary", &data, "--output", &into, &url("/post")]).await;
        let [sent, received] = [&sent, &received].map(|file| std::fs::read(file).unwrap());
        assert!(sent == received, "{} bytes came back", received.len());
    }
}

/// The most memory that a process has had, and what it has now, in KiB.
fn memory(process: u32) -> [u64; 2] {
    let path = format!("/proc/{process}/status");
    let text = std::fs::read_to_string(path).expect("a process");
    ["VmHWM:", "VmRSS:"].map(|key| {
        let line = text.lines().find_map(|line| line.strip_prefix(key));
        let number = line.and_then(|line| line.split_whitespace().next());
        number.expect("a number").parse().expect("a number")
    })
}

/// Parts of what an upstream has are between it and the client, compression or not.
#[tokio::test(flavor = "multi_thread")]
async fn ranges_are_the_upstreams_to_answer() {
    let place = Place::new();
    let text: String = (0..400).map(|number| format!("{number:04}\n")).collect();
    place.write("nginx/www/text.txt", &text);
    let nginx = Nginx::start(&place).await;
    let more = "compress = true\n";
    let perennial = proxy_with(place, &nginx.addr.to_string(), more).await;
    let url = format!("https://{}/www/text.txt", perennial.place.https);
    let direct = format!("http://{}/www/text.txt", nginx.addr);
    // A tag that was made weak on the way means that bytes may differ: no part of it is to be had.
    let plain = curl(&["--fail", "--head", &direct]).await.assert_success();
    let field = |head: &str, name: &str| {
        let mut lines = head.lines().map(str::to_lowercase);
        lines.find_map(|line| line.strip_prefix(name).map(|value| value.trim().to_owned()))
    };
    let etag = field(&plain.stdout, "etag:").expect("a tag");
    for version in ["--http1.1", "--http2"] {
        let accept = "Accept-Encoding: gzip";
        for (range, condition, status) in [
            ("bytes=0-4", "X: y".to_owned(), 206),
            ("bytes=-5", "X: y".to_owned(), 206),
            ("bytes=5-9", format!("If-Range: {etag}"), 206),
            ("bytes=5-9", "If-Range: \"other\"".to_owned(), 200),
            ("bytes=2000-", "X: y".to_owned(), 416),
        ] {
            let range_field = format!("Range: {range}");
            let ask = async |url: &str, more: &[&str]| {
                let fields = ["--header", &range_field, "--header", &condition];
                let shown = ["--silent", "--include", "--insecure", url];
                let done = curl(&[&fields[..], &shown, more].concat()).await;
                done.assert_success().stdout
            };
            let (own, through) = (ask(&direct, &[]).await, ask(&url, &[version]).await);
            let what = format!("{version} {range} {condition}");
            for answer in [&own, &through] {
                let line = answer.lines().next().unwrap_or_default();
                assert!(line.contains(&format!(" {status}")), "{what}: {line}");
            }
            let name = "content-range:";
            assert_eq!(field(&through, name), field(&own, name), "{what}");
            let body = |answer: &str| {
                answer
                    .split_once("\r\n\r\n")
                    .map(|(_, body)| body.to_owned())
            };
            if status != 416 {
                assert_eq!(body(&through), body(&own), "{what}");
            }
            if status == 206 {
                let coded = ask(&url, &[version, "--header", accept]).await;
                assert_eq!(field(&coded, "content-encoding:"), None, "{what}");
                assert_eq!(body(&coded), body(&own), "{what}");
            }
        }
    }
}

/// Bodies that come as fast as anybody takes them.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_body_takes_no_memory() {
    const SIZE: u64 = 128 << 20;
    const MORE: u64 = 24 << 10;
    let place = Place::new();
    let body = place.write("nginx/www/body", "");
    let file = std::fs::OpenOptions::new().write(true).open(&body);
    file.unwrap().set_len(SIZE).unwrap();
    let nginx = Nginx::start(&place).await;
    let taker = place.free();
    let _python = python(taker).await;
    let route = format!("[[sites.routes]]\npath = \"/up\"\nupstreams = [\"{taker}\"]\n");
    let perennial = proxy_with(place, &nginx.addr.to_string(), &route).await;
    let url = |path: &str| format!("https://{}{path}", perennial.place.https);
    let curl = async |arguments: &[&str]| {
        let patient = ["--insecure", "--fail", "--max-time", "300"];
        let quiet = [
            "--output",
            "/dev/null",
            "--write-out",
            "%{size_download} %{size_upload}",
        ];
        let done = curl(&[&patient, &quiet, arguments].concat()).await;
        done.assert_success().stdout
    };
    // The first request is what a process takes anyway.
    curl(&[&url("/")]).await;
    let [_, before] = memory(perennial.process_id());
    let body = body.display().to_string();
    for version in ["--http1.1", "--http2"] {
        let down = curl(&[version, &url("/www/body")]).await;
        assert_eq!(down, format!("{SIZE} 0"));
        let up = curl(&[
            version,
            "--request",
            "POST",
            "--upload-file",
            &body,
            &url("/up"),
        ])
        .await;
        assert_eq!(up.split(' ').next_back(), Some(SIZE.to_string().as_str()));
    }
    let [most, _] = memory(perennial.process_id());
    assert!(most < before + MORE, "{before} KiB became {most}");
}
