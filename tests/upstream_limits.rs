//! How much an upstream is asked: places and those that wait for one, retries, timeouts.

use std::time::Instant;

use crate::support::client::{Version, http_client};
use crate::support::perennial::Perennial;
use crate::support::place::Place;
use crate::support::sites::FileTls;
use crate::support::upstream::Upstream;
use crate::support::wait::{SOON, wait_until};

const NAME: &str = "a.example.test";

struct Scene {
    perennial: Perennial,
    upstream: Upstream,
}

type Asked = tokio::task::JoinHandle<reqwest::Response>;

impl Scene {
    /// `{}` in `rest` is the upstream's address, `{dead}` one where nobody listens.
    async fn start(rest: &str) -> Scene {
        let place = Place::new();
        let upstream = Upstream::start(&place, "app").await;
        let tls = FileTls::new(&place, &[NAME]);
        let rest = rest.replace("{}", &upstream.addr.to_string());
        let rest = rest.replace("{dead}", &place.free().to_string());
        let site = format!("[[sites]]\nhosts = [\"{NAME}\"]\ntls = \"files\"\n{rest}\n");
        let mut perennial = Perennial::run(place, &format!("{}{site}", tls.pair.table())).await;
        perennial.wait_ready().await;
        Scene {
            perennial,
            upstream,
        }
    }

    fn ask(&self, version: Version, path: &str) -> Asked {
        let https = self.perennial.place.https;
        let client = http_client(NAME, https, None, version);
        let url = format!("https://{NAME}:{}{path}", https.port());
        tokio::spawn(async move { client.get(url).send().await.expect("an answer") })
    }

    async fn status(&self, version: Version, path: &str) -> u16 {
        self.ask(version, path)
            .await
            .expect("no panic")
            .status()
            .as_u16()
    }

    async fn wait_held(&self, count: usize) {
        wait_until(SOON, "requests that are held", async || {
            (self.upstream.held() == count).then_some(())
        })
        .await;
    }

    async fn wait_pending(&self, count: u32) {
        wait_until(SOON, "requests that wait", async || {
            let pending = self
                .perennial
                .metric("perennial_upstream_pending_requests", &[NAME]);
            (pending.await == Some(f64::from(count))).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_finds_no_place_waits_for_one() {
    let rest = "upstreams = [{ to = \"{}\", max_connections = 1 }]\n\
                pending = { max = 1, timeout = \"1h\" }";
    for version in [Version::Http1, Version::Http2] {
        let scene = Scene::start(rest).await;
        let first = scene.ask(version, "/hold");
        scene.wait_held(1).await;
        let second = scene.ask(version, "/hold");
        scene.wait_pending(1).await;
        let third = scene.ask(version, "/hold").await.expect("no panic");
        assert_eq!(third.status(), 503);
        assert_eq!(third.headers()["retry-after"], "1");
        assert_eq!(scene.upstream.held(), 1);
        scene.upstream.release();
        assert_eq!(first.await.expect("no panic").status(), 200);
        scene.wait_held(2).await;
        scene.upstream.release();
        assert_eq!(second.await.expect("no panic").status(), 200);
        scene.wait_pending(0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_longer_than_is_said() {
    let rest = "upstreams = [{ to = \"{}\", max_connections = 1 }]\n\
                pending = { timeout = \"300ms\" }";
    let scene = Scene::start(rest).await;
    let first = scene.ask(Version::Http1, "/hold");
    scene.wait_held(1).await;
    let second = scene.ask(Version::Http1, "/").await.expect("no panic");
    assert_eq!(second.status(), 503);
    assert!(second.headers().contains_key("retry-after"));
    scene.upstream.release();
    assert_eq!(first.await.expect("no panic").status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn retries_have_a_budget() {
    // Nothing is ejected, so that every other request meets the dead one first.
    let rest = "upstreams = [\"{dead}\", \"{}\"]\nejection = \"off\"\n\
                retries = { budget = 10, min_per_second = 0 }";
    let scene = Scene::start(rest).await;
    let mut seen = std::collections::HashMap::new();
    for _ in 0..80 {
        *seen
            .entry(scene.status(Version::Http1, "/").await)
            .or_insert(0) += 1;
    }
    // Half of them meet the dead one, and a tenth of all at most is sent to the other then.
    assert!((32..=40).contains(&seen[&502]), "{seen:?}");
    let log = &scene.perennial;
    let lines = log.log_lines_with("the budget for retries is spent");
    let lines = lines.iter().filter(|line| line.contains("request failed"));
    assert_eq!(lines.count(), seen[&502]);
    let metric = async |name: &str| {
        let name = format!("perennial_upstream_{name}_total");
        let value = scene.perennial.metric(&name, &[NAME]).await;
        value.unwrap_or_default() as usize
    };
    assert_eq!(metric("retries_refused").await, seen[&502]);
    assert_eq!(metric("retries").await, 40 - seen[&502]);
    assert_eq!(metric("ejections").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_retries_a_failed_dial_is_the_answer() {
    let rest = "upstreams = [\"{dead}\", \"{}\"]\nretries = \"off\"";
    let scene = Scene::start(rest).await;
    assert_eq!(scene.status(Version::Http1, "/").await, 502);
    // It is left alone from then on.
    for _ in 0..4 {
        assert_eq!(scene.status(Version::Http1, "/").await, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_has_so_much_time() {
    let rest = "upstreams = [\"{}\"]\ntimeouts = { response_header = \"300ms\" }\n\
                [[sites.routes]]\npath = \"/stream\"\nupstreams = [\"{}\"]\n\
                timeouts = { total = \"5s\", idle = \"off\", response_header = \"off\" }";
    let scene = Scene::start(rest).await;
    for version in [Version::Http1, Version::Http2] {
        let begun = Instant::now();
        assert_eq!(scene.status(version, "/hold").await, 504);
        assert!(begun.elapsed().as_millis() >= 300);
        // It has begun in time, and does not end in time: it is cut off.
        let response = scene.ask(version, "/stream").await.expect("no panic");
        assert_eq!(response.status(), 200);
        assert!(response.bytes().await.is_err());
    }
    let overdue = scene
        .perennial
        .log_lines_with("no whole answer in the time");
    let told = overdue
        .iter()
        .filter(|line| line.contains("request failed"));
    assert_eq!(told.count(), 2, "{overdue:?}");
}

/// The same upstream in two routes is one machine: what one of them sends there, the other sees.
#[tokio::test(flavor = "multi_thread")]
async fn routes_share_the_places_of_an_upstream() {
    let rest = "upstreams = [{ to = \"{}\", max_connections = 1 }]\n\
                pending = { max = 1, timeout = \"1h\" }\n\
                [[sites.routes]]\npath = \"/hold\"\nupstreams = [\"{}\"]\n\
                [[sites.routes]]\npath = \"/count\"\n\
                upstreams = [{ to = \"{}\", max_connections = 2 }]\n\
                pending = \"off\"\n";
    let scene = Scene::start(rest).await;
    // The route for that has no bound of its own.
    let first = scene.ask(Version::Http1, "/hold");
    scene.wait_held(1).await;
    let second = scene.ask(Version::Http1, "/");
    scene.wait_pending(1).await;
    // It is full for the one that takes a single request, and not for the one that takes two.
    assert_eq!(scene.status(Version::Http2, "/other").await, 503);
    assert_eq!(scene.status(Version::Http2, "/count").await, 405);
    let other = scene.ask(Version::Http1, "/hold");
    scene.wait_held(2).await;
    assert_eq!(scene.status(Version::Http2, "/count").await, 503);
    for _ in 0..2 {
        scene.upstream.release();
    }
    for asked in [first, second, other] {
        assert_eq!(asked.await.expect("no panic").status(), 200);
    }
    let refused = async |cause: &str| {
        let name = "perennial_upstream_pending_refused_total";
        let labels = [NAME, &*format!("cause=\"{cause}\"")];
        scene.perennial.metric(name, &labels).await
    };
    assert_eq!(
        (refused("full").await, refused("timeout").await),
        (Some(2.0), None)
    );
}
