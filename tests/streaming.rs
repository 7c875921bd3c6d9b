//! Bodies flow both ways while they are being written; nothing waits for an end.

use std::any::Any;
use std::convert::Infallible;

use axum::body::{Body, Bytes};
use futures_util::{Stream, StreamExt, stream};
use hyper::body::Incoming;
use hyper::{Request, Response};
use tokio::sync::mpsc;

use crate::support::client::{Version, http_client};
use crate::support::http1::KeepAlive;
use crate::support::http2;
use crate::support::perennial::Perennial;
use crate::support::place::Place;
use crate::support::sites::{FileTls, site};
use crate::support::upstream::Upstream;
use crate::support::websocket::WebSocket;

const NAME: &str = "a.example.test";
const LARGE: usize = 20 * 1024 * 1024 + 17;

async fn scene() -> (Perennial, Upstream) {
    let place = Place::new();
    let upstream = Upstream::start(&place, "app").await;
    let tls = FileTls::new(&place, &[NAME]);
    let site = site(NAME, "files", &[&upstream.addr.to_string()]);
    let mut perennial = Perennial::run(place, &format!("{}{site}", tls.pair.table())).await;
    perennial.wait_ready().await;
    (perennial, upstream)
}

/// One request on a connection of its own, which lives as long as the second value.
async fn send(
    perennial: &Perennial,
    version: Version,
    mut request: Request<Body>,
) -> (Response<Incoming>, Box<dyn Any>) {
    let https = perennial.place.https;
    let host = NAME.parse().expect("a header value");
    match version {
        Version::Http1 => {
            request.headers_mut().insert("host", host);
            let mut connection = KeepAlive::open(https, NAME, None).await.expect("connected");
            let response = connection.send(request).await.expect("an answer");
            (response, Box::new(connection))
        }
        Version::Http2 => {
            let url = format!("https://{NAME}{}", request.uri());
            *request.uri_mut() = url.parse().expect("a URL");
            let mut sender = http2::open(https, NAME, None).await.expect("connected");
            (
                sender.send_request(request).await.expect("an answer"),
                Box::new(sender),
            )
        }
    }
}

/// Nothing more comes; HTTP/2 may end with an empty frame.
async fn assert_ends(body: &mut (impl Stream<Item = Result<Bytes, axum::Error>> + Unpin)) {
    while let Some(chunk) = body.next().await {
        assert!(chunk.expect("no error").is_empty());
    }
}

async fn next(body: &mut (impl Stream<Item = Result<Bytes, axum::Error>> + Unpin)) -> String {
    let limit = crate::support::wait::SOON;
    let chunk = tokio::time::timeout(limit, body.next()).await;
    let chunk = chunk
        .expect("a chunk in time")
        .expect("not the end")
        .expect("no error");
    String::from_utf8_lossy(&chunk).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_chunk_arrives_before_the_last_is_sent() {
    let (perennial, upstream) = scene().await;
    for version in [Version::Http1, Version::Http2] {
        let request = Request::get("/stream")
            .body(Body::empty())
            .expect("a request");
        let (response, _connection) = send(&perennial, version, request).await;
        let mut body = Body::new(response.into_body()).into_data_stream();
        assert_eq!(next(&mut body).await, "data: first\n\n", "{version:?}");
        upstream.release();
        assert_eq!(next(&mut body).await, "data: last\n\n", "{version:?}");
        assert_ends(&mut body).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_reaches_the_upstream_piece_by_piece() {
    let (perennial, _upstream) = scene().await;
    for version in [Version::Http1, Version::Http2] {
        let (pieces, source) = mpsc::channel::<&'static str>(4);
        let source = stream::unfold(source, |mut source| async {
            let piece = source.recv().await?;
            Some((Ok::<_, Infallible>(Bytes::from(piece)), source))
        });
        let request = Request::post("/echo").body(Body::from_stream(source));
        pieces.send("one").await.expect("taken");
        let (response, _connection) = send(&perennial, version, request.expect("a request")).await;
        let mut body = Body::new(response.into_body()).into_data_stream();
        assert_eq!(next(&mut body).await, "one", "{version:?}");
        pieces.send("two").await.expect("taken");
        assert_eq!(next(&mut body).await, "two", "{version:?}");
        drop(pieces);
        assert_ends(&mut body).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_bodies_arrive_whole() {
    let (perennial, _upstream) = scene().await;
    let base = format!("https://{NAME}:{}", perennial.place.https.port());
    for version in [Version::Http1, Version::Http2] {
        let client = http_client(NAME, perennial.place.https, None, version);
        let down = client.get(format!("{base}/bytes?n={LARGE}")).send().await;
        let down = down.expect("an answer").bytes().await.expect("a body");
        assert_eq!(down.len(), LARGE, "{version:?}");
        let up = client.post(format!("{base}/count")).body(down).send().await;
        let counted = up.expect("an answer").text().await.expect("a body");
        assert_eq!(counted, LARGE.to_string(), "{version:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_web_socket_echoes_and_outlives_a_reload() {
    let (perennial, _upstream) = scene().await;
    let https = perennial.place.https;
    let mut socket = WebSocket::open(https, NAME, "/ws", None)
        .await
        .expect("upgraded");
    assert_eq!(socket.exchange("before").await.as_deref(), Ok("before"));
    let (status, body) = perennial.admin_post("/reload").await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(socket.exchange("after").await.as_deref(), Ok("after"));
}
