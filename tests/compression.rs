//! Bodies that are compressed on their way: which, in what, for whom; and streams, of which whatever
//! has come can be read before more comes.

use std::convert::Infallible;
use std::io::Read;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get as on_get;
use futures_util::{StreamExt, stream};
use hyper::Request;
use tokio::sync::Semaphore;

use crate::proxy::{NAME, proxy};
use crate::static_files::{VERSIONS, get, run};
use crate::streaming::send;
use crate::support::client::Version;
use crate::support::perennial::Perennial;
use crate::support::place::Place;
use crate::support::server::Server;
use crate::support::wait::SOON;

const CODINGS: [&str; 3] = ["gzip", "br", "zstd"];

/// Long enough, and it repeats itself.
fn page() -> String {
    (0..500)
        .map(|line| format!("<p>line {line} of the page</p>\n"))
        .collect()
}

struct Scene {
    perennial: Perennial,
    _upstream: Server,
    let_go: Arc<Semaphore>,
}

/// A site before an application that sends one page in many ways.
async fn scene(keys: &str) -> Scene {
    let place = Place::new();
    let addr = place.free();
    let let_go = Arc::new(Semaphore::new(0));
    let upstream = Server::tcp(addr, application(Arc::clone(&let_go))).await;
    place.write("www/page.html", page());
    let text = format!(
        "[[sites]]\nhosts = [\"{NAME}\"]\ntls = \"files\"\nupstreams = [\"{addr}\"]\n{keys}\n\
         [[sites.routes]]\npath = \"/files/*\"\nstrip_prefix = \"/files\"\nroot = \"www\"\n\
         [[sites.routes]]\npath = \"/off/*\"\nupstreams = [\"{addr}\"]\nstrip_prefix = \"/off\"\n\
         compress = false\n\
         [[sites.routes]]\npath = \"/fixed\"\nrespond = \"\"\"{}\"\"\"\n",
        page()
    );
    Scene {
        perennial: proxy(place, &text).await,
        _upstream: upstream,
        let_go,
    }
}

const HTML: (&str, &str) = ("content-type", "text/html; charset=utf-8");

fn application(let_go: Arc<Semaphore>) -> Router {
    let with = |more: (&'static str, &'static str)| {
        on_get(move || async move { ([HTML, more], page()).into_response() })
    };
    let large = || async {
        let lines = stream::iter(0..60_000).map(|n| Ok::<_, Infallible>(format!("line {n}\n")));
        ([("content-type", "text/plain")], Body::from_stream(lines))
    };
    let conditional = |fields: HeaderMap| async move {
        let known = fields
            .get("if-none-match")
            .is_some_and(|tag| tag == "W/\"v1\"");
        match known {
            true => (StatusCode::NOT_MODIFIED, [("etag", "\"v1\"")]).into_response(),
            false => ([HTML, ("etag", "\"v1\"")], page()).into_response(),
        }
    };
    Router::new()
        .route("/page", on_get(conditional))
        .route("/small", on_get(move || async move { ([HTML], "small") }))
        .route("/coded", with(("content-encoding", "identity")))
        .route("/final", with(("cache-control", "no-transform")))
        .route("/varies", with(("vary", "Cookie")))
        .route("/large", on_get(large))
        .route(
            "/part",
            on_get(move || async move {
                let range = ("content-range", "bytes 0-17499/17500");
                (StatusCode::PARTIAL_CONTENT, [HTML, range], page())
            }),
        )
        .route(
            "/picture",
            on_get(|| async { ([("content-type", "image/png")], page()) }),
        )
        .route(
            "/stream",
            on_get(move || in_parts(Arc::clone(&let_go), "text/html")),
        )
        .route(
            "/events",
            on_get(|| in_parts(Arc::new(Semaphore::new(9)), "text/event-stream")),
        )
}

/// The next part comes only once the test lets it go.
async fn in_parts(let_go: Arc<Semaphore>, media: &'static str) -> Response {
    let parts = stream::unfold(0, move |part| {
        let let_go = Arc::clone(&let_go);
        async move {
            if part > 0 {
                let_go.acquire().await.expect("never closed").forget();
            }
            let text = format!("<p>part {part}</p>\n");
            (part < 3).then(|| (Ok::<_, Infallible>(Bytes::from(text)), part + 1))
        }
    });
    ([("content-type", media)], Body::from_stream(parts)).into_response()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_becomes_smaller_is_sent_in_what_the_client_likes_best() {
    let scene = scene("compress = true").await;
    let page = page();
    for version in VERSIONS {
        for coding in CODINGS {
            let accept = format!("Accept-Encoding: {coding}");
            for path in ["/page", "/files/page.html", "/fixed?x", "/varies"] {
                let arguments = [version, "--compressed", "--header", &accept];
                let answer = get(&scene.perennial, path, &arguments).await;
                if path == "/fixed?x" {
                    // Its type is plain text.
                    assert_eq!(
                        answer.field("content-type"),
                        Some("text/plain; charset=utf-8")
                    );
                }
                assert!(
                    answer.body == page,
                    "{version} {coding} {path}: {}",
                    answer.head
                );
                assert_eq!(answer.field("content-encoding"), Some(coding), "{path}");
                assert_eq!(answer.field("content-length"), None);
                assert_eq!(answer.field("accept-ranges"), None);
                assert!(answer.head.to_lowercase().contains("vary: accept-encoding"));
                let etag = answer.field("etag");
                assert!(etag.is_none_or(|etag| etag.starts_with("W/\"")), "{etag:?}");
            }
            // Small on the wire, and the log says how small.
            let arguments = [version, "--header", &accept, "--output", "/dev/null"];
            let size = ["--write-out", "%{size_download}"];
            let done = run(
                &scene.perennial,
                "/page?size",
                &[&arguments[..], &size].concat(),
            )
            .await;
            let size: usize = done.assert_success().stdout.parse().expect("a number");
            assert!(size < page.len() / 4, "{size} of {}", page.len());
            let logged = format!("bytes={size} ");
            scene.perennial.wait_for_log(&logged, SOON).await;
        }
        for (accept, coding) in [
            ("gzip, br, zstd", Some("zstd")),
            ("gzip, br", Some("br")),
            ("gzip;q=0.9, br;q=0.8", Some("gzip")),
            ("deflate", None),
            ("identity, gzip;q=0", None),
        ] {
            let accept = format!("Accept-Encoding: {accept}");
            let answer = get(
                &scene.perennial,
                "/page",
                &[version, "--compressed", "-H", &accept],
            )
            .await;
            assert_eq!(answer.field("content-encoding"), coding, "{accept}");
            assert_eq!(answer.field("vary"), Some("Accept-Encoding"));
            assert!(answer.body == page);
        }
        let tag = [
            "--header",
            "If-None-Match: W/\"v1\"",
            "--compressed",
            version,
        ];
        let answer = get(&scene.perennial, "/page", &tag).await;
        assert_eq!((answer.status, &*answer.body), (304, ""));
        assert_eq!(answer.field("vary"), Some("Accept-Encoding"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_else_is_left_alone() {
    let scene = scene("compress = true").await;
    let accept = "Accept-Encoding: gzip, br, zstd";
    for version in VERSIONS {
        for path in [
            "/small",
            "/final",
            "/part",
            "/picture",
            "/events",
            "/off/page",
            "/missing",
        ] {
            let answer = get(&scene.perennial, path, &[version, "--header", accept]).await;
            assert_eq!(answer.field("content-encoding"), None, "{path}");
            assert_eq!(answer.field("vary"), None, "{path}");
        }
        let coded = get(&scene.perennial, "/coded", &[version, "--header", accept]).await;
        assert_eq!(coded.field("content-encoding"), Some("identity"));
        let range = [version, "--header", accept, "--range", "0-99"];
        let part = get(&scene.perennial, "/files/page.html", &range).await;
        assert_eq!((part.status, part.body.len()), (206, 100));
        assert_eq!(part.field("content-encoding"), None);
        let head = [version, "--head", "--header", accept];
        let head = get(&scene.perennial, "/page", &head).await;
        assert_eq!(head.field("content-encoding"), None);
        assert_eq!(head.field("vary"), Some("Accept-Encoding"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_compressed_unless_it_is_asked_for() {
    let scene = scene("").await;
    let answer = get(&scene.perennial, "/page", &["--compressed"]).await;
    assert_eq!(answer.field("content-encoding"), None);
    assert_eq!(answer.field("etag"), Some("\"v1\""));
    // And is, from the moment on that it is.
    let text = std::fs::read_to_string(scene.perennial.place.path("perennial.toml"));
    let text = text.expect("a file").replacen(
        "tls = \"files\"",
        "tls = \"files\"\ncompress = [\"gzip\"]",
        1,
    );
    scene.perennial.place.write("perennial.toml", text);
    crate::support::wait::wait_until(SOON, "a compressed page", async || {
        let answer = get(&scene.perennial, "/page", &["--compressed"]).await;
        (answer.field("content-encoding") == Some("gzip")).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_body_arrives_whole() {
    let scene = scene("compress = true").await;
    let expected: String = (0..60_000).map(|n| format!("line {n}\n")).collect();
    for version in VERSIONS {
        for coding in CODINGS {
            let accept = format!("Accept-Encoding: {coding}");
            let arguments = [version, "--compressed", "--header", &accept];
            let answer = get(&scene.perennial, "/large", &arguments).await;
            assert!(answer.body == expected, "{version} {coding}");
        }
    }
}

/// What has come so far, decoded.
fn decoded(coding: &str, mut data: &[u8]) -> String {
    let mut reader: Box<dyn Read> = match coding {
        "gzip" => Box::new(flate2::read::GzDecoder::new(&mut data)),
        "br" => Box::new(brotli::Decompressor::new(&mut data, 4096)),
        _ => Box::new(zstd::stream::read::Decoder::new(&mut data).expect("a decoder")),
    };
    let (mut out, mut piece) = (Vec::new(), [0; 1000]);
    while let Ok(length @ 1..) = reader.read(&mut piece) {
        out.extend_from_slice(&piece[..length]);
    }
    String::from_utf8(out).expect("text")
}

#[tokio::test(flavor = "multi_thread")]
async fn each_part_of_a_stream_can_be_read_before_the_next_comes() {
    let scene = scene("compress = true").await;
    for version in [Version::Http1, Version::Http2] {
        for coding in CODINGS {
            let request = Request::get("/stream").header("accept-encoding", coding);
            let request = request.body(Body::empty()).expect("a request");
            let (response, _connection) = send(&scene.perennial, version, request).await;
            assert_eq!(response.headers()["content-encoding"], coding);
            let mut body = Body::new(response.into_body()).into_data_stream();
            let (mut data, mut expected) = (Vec::new(), String::new());
            for part in 0..3 {
                expected += &format!("<p>part {part}</p>\n");
                while decoded(coding, &data) != expected {
                    let more = tokio::time::timeout(SOON, body.next()).await;
                    let more = more.unwrap_or_else(|_| panic!("{version:?} {coding}: {expected}"));
                    data.extend_from_slice(&more.expect("not the end").expect("no error"));
                }
                scene.let_go.add_permits(1);
            }
            while let Some(more) = body.next().await {
                data.extend_from_slice(&more.expect("no error"));
            }
            assert_eq!(decoded(coding, &data), expected);
        }
    }
}
