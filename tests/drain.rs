//! Stopping: what is under way is finished, what is idle is closed, and then it is over.

use std::time::Duration;

use rustix::process::Signal;

use crate::support::http1::{Answer, KeepAlive};
use crate::support::perennial::Perennial;
use crate::support::place::Place;
use crate::support::sites::{FileTls, site};
use crate::support::upstream::Upstream;
use crate::support::wait::{SOON, wait_until};

const NAME: &str = "a.example.test";
/// So long that whatever ends well before has not waited for it.
const GRACE: &str = "grace_period = \"1h\"\n";
/// An idle server has nothing to wait for.
const AT_ONCE: Duration = SOON;

struct Scene {
    perennial: Perennial,
    upstream: Upstream,
}

/// `server` continues the `[server]` table.
async fn scene(server: &str) -> Scene {
    let place = Place::new();
    let upstream = Upstream::start(&place, "app").await;
    let tls = FileTls::new(&place, &[NAME]);
    let site = site(NAME, "files", &[&upstream.addr.to_string()]);
    let rest = format!("{server}{}{site}", tls.pair.table());
    let mut perennial = Perennial::run(place, &rest).await;
    perennial.wait_ready().await;
    Scene {
        perennial,
        upstream,
    }
}

async fn open(scene: &Scene) -> KeepAlive {
    let https = scene.perennial.place.https;
    KeepAlive::open(https, NAME, None)
        .await
        .expect("a connection")
}

/// A request that has reached the upstream and waits there.
async fn held_request(scene: &Scene) -> tokio::task::JoinHandle<Result<Answer, String>> {
    let mut connection = open(scene).await;
    let request = tokio::spawn(async move { connection.get("/hold").await });
    let held = async || (scene.upstream.held() > 0).then_some(());
    wait_until(SOON, "the request to arrive", held).await;
    request
}

async fn finishes_what_is_under_way(signal: Signal) {
    let mut scene = scene(GRACE).await;
    let mut idle = open(&scene).await;
    idle.get("/").await.expect("served");
    let request = held_request(&scene).await;
    scene.perennial.signal(signal);
    let closed = async || idle.is_closed().then_some(());
    wait_until(SOON, "the idle connection to be closed", closed).await;
    let https = scene.perennial.place.https;
    let refused = async || KeepAlive::open(https, NAME, None).await.err();
    wait_until(SOON, "new connections to be refused", refused).await;
    assert!(
        scene.perennial.exited().is_none(),
        "one request is under way"
    );
    scene.upstream.release();
    let answer = request.await.expect("no panic");
    assert_eq!(answer, Ok((200, "released".to_owned())));
    let status = scene.perennial.wait_exit(AT_ONCE).await;
    assert_eq!(status.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_finishes_what_is_under_way() {
    finishes_what_is_under_way(Signal::TERM).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sigint_finishes_what_is_under_way() {
    finishes_what_is_under_way(Signal::INT).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_server_stops_at_once() {
    let mut scene = scene(GRACE).await;
    scene.perennial.signal(Signal::TERM);
    let status = scene.perennial.wait_exit(AT_ONCE).await;
    assert_eq!(status.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_grace_period_is_a_limit() {
    let mut scene = scene("grace_period = \"1s\"\n").await;
    let request = held_request(&scene).await;
    scene.perennial.signal(Signal::TERM);
    scene
        .perennial
        .wait_exit(Duration::from_secs(1) + AT_ONCE)
        .await;
    let answer = request.await.expect("no panic");
    assert!(answer.is_err(), "cut off: {answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_streams_are_finished_too() {
    use crate::support::{http2, upstream::text};
    use axum::body::Body;

    let mut scene = scene(GRACE).await;
    let https = scene.perennial.place.https;
    let mut sender = http2::open(https, NAME, None).await.expect("h2");
    let url = format!("https://{NAME}/hold");
    let request = hyper::Request::get(url)
        .body(Body::empty())
        .expect("a request");
    let answer = sender.send_request(request);
    let answer = tokio::spawn(answer);
    let held = async || (scene.upstream.held() > 0).then_some(());
    wait_until(SOON, "the request to arrive", held).await;
    scene.perennial.signal(Signal::TERM);
    let refused = async || KeepAlive::open(https, NAME, None).await.err();
    wait_until(SOON, "new connections to be refused", refused).await;
    scene.upstream.release();
    let response = answer.await.expect("no panic").expect("finished");
    assert_eq!(text(Body::new(response.into_body())).await, "released");
    let status = scene.perennial.wait_exit(AT_ONCE).await;
    assert_eq!(status.code(), Some(0));
}
