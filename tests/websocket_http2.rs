//! WebSockets over HTTP/2 (RFC 8441), with an upstream that knows them over HTTP/1.1.

use axum::body::Body;
use futures_util::{SinkExt, StreamExt};
use hyper::ext::Protocol;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::support::http2;
use crate::support::perennial::Perennial;
use crate::support::place::Place;
use crate::support::sites::{FileTls, site};
use crate::support::upstream::Upstream;
use crate::support::wait::SOON;

const NAME: &str = "a.example.test";

fn connect(path: &str) -> http::Request<Body> {
    http::Request::connect(format!("https://{NAME}{path}"))
        .extension(Protocol::from_static("websocket"))
        .header("sec-websocket-version", "13")
        .header("origin", "https://a.example.test")
        .body(Body::empty())
        .expect("a request")
}

#[tokio::test(flavor = "multi_thread")]
async fn several_share_a_connection_with_requests() {
    let place = Place::new();
    let upstream = Upstream::start(&place, "app").await;
    let tls = FileTls::new(&place, &[NAME]);
    let site = site(NAME, "files", &[&upstream.addr.to_string()]);
    let mut perennial = Perennial::run(place, &format!("{}{site}", tls.pair.table())).await;
    perennial.wait_ready().await;
    let https = perennial.place.https;
    let mut sender = http2::open(https, NAME, None).await.expect("a connection");

    let mut sockets = Vec::new();
    for _ in 0..2 {
        let response = sender
            .send_request(connect("/ws"))
            .await
            .expect("an answer");
        assert_eq!(response.status(), 200);
        assert!(!response.headers().contains_key("sec-websocket-accept"));
        let upgraded = hyper::upgrade::on(response).await.expect("a tunnel");
        let io = TokioIo::new(upgraded);
        sockets.push(WebSocketStream::from_raw_socket(io, Role::Client, None).await);
    }
    for round in 0..3 {
        for (number, socket) in sockets.iter_mut().enumerate() {
            let text = Message::text(format!("{round} {number}"));
            socket.send(text.clone()).await.expect("sent");
            let echo = tokio::time::timeout(SOON, socket.next())
                .await
                .expect("in time");
            assert_eq!(echo.expect("open").expect("no error"), text);
        }
    }
    // An upstream that does not switch must not look like one that does.
    let response = sender
        .send_request(connect("/no-websocket"))
        .await
        .expect("an answer");
    assert_eq!(response.status(), 502);
    let request = http::Request::get(format!("https://{NAME}/")).body(Body::empty());
    let response = sender
        .send_request(request.expect("a request"))
        .await
        .expect("an answer");
    assert_eq!(response.status(), 200);
    sockets[0].close(None).await.expect("closed");
}
