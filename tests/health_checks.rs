//! Upstreams that are not well get no requests: found out by checks, and by requests that fail.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::any;

use crate::support::client::{Version, http_client};
use crate::support::perennial::Perennial;
use crate::support::place::Place;
use crate::support::server::Server;
use crate::support::sites::FileTls;
use crate::support::wait::{SOON, wait_until};

const NAME: &str = "a.example.test";

/// An upstream whose health the test decides.
struct Patient {
    addr: std::net::SocketAddr,
    server: Server,
    state: Arc<Condition>,
}

#[derive(Default)]
struct Condition {
    /// What `/healthz` answers; 0 is 200.
    health: AtomicU16,
    /// What everything else does.
    status: AtomicU16,
    checks: AtomicUsize,
    requests: AtomicUsize,
}

impl Patient {
    async fn start(place: &Place) -> Patient {
        let (addr, state) = (place.free(), Arc::<Condition>::default());
        let router = Router::new()
            .route("/healthz", any(health))
            .fallback(any(answer))
            .with_state(state.clone());
        let server = Server::tcp(addr, router).await;
        Patient {
            addr,
            server,
            state,
        }
    }

    fn requests(&self) -> usize {
        self.state.requests.load(Ordering::SeqCst)
    }

    fn checks(&self) -> usize {
        self.state.checks.load(Ordering::SeqCst)
    }
}

async fn health(State(state): State<Arc<Condition>>) -> (StatusCode, &'static str) {
    state.checks.fetch_add(1, Ordering::SeqCst);
    (code(&state.health), "all is well")
}

async fn answer(State(state): State<Arc<Condition>>) -> StatusCode {
    state.requests.fetch_add(1, Ordering::SeqCst);
    code(&state.status)
}

fn code(status: &AtomicU16) -> StatusCode {
    StatusCode::from_u16(status.load(Ordering::SeqCst).max(200)).expect("a status")
}

struct Scene {
    perennial: Perennial,
    patients: [Patient; 2],
    tls: FileTls,
}

impl Scene {
    async fn start(rest: &str) -> Scene {
        let place = Place::new();
        let patients = [Patient::start(&place).await, Patient::start(&place).await];
        let tls = FileTls::new(&place, &[NAME, "b.example.test"]);
        let config = format!("{}{}", tls.pair.table(), site(NAME, &patients, rest));
        let mut perennial = Perennial::run(place, &config).await;
        perennial.wait_ready().await;
        Scene {
            perennial,
            patients,
            tls,
        }
    }

    async fn get(&self) -> u16 {
        let https = self.perennial.place.https;
        let client = http_client(NAME, https, None, Version::Http1);
        let url = format!("https://{NAME}:{}/", https.port());
        client
            .get(url)
            .send()
            .await
            .expect("an answer")
            .status()
            .as_u16()
    }

    /// Whether an upstream is healthy by `/status` and by the metric, which agree sooner or later.
    async fn wait_healthy(&self, patient: usize, healthy: bool) {
        let label = self.patients[patient].addr.to_string();
        wait_until(SOON, "its health to change", async || {
            let status = self.perennial.status_json().await;
            let mut rows = status["upstreams"].as_array().expect("rows").iter();
            let row = rows.find(|row| row["upstream"] == *label).expect("a row");
            let labels = [&*format!("upstream=\"{label}\"")];
            let metric = self
                .perennial
                .metric("perennial_upstream_healthy", &labels)
                .await;
            let agree = row["healthy"] == healthy && metric == Some(f64::from(u8::from(healthy)));
            assert!(!agree || row["trouble"].is_string() != healthy, "{row}");
            agree.then_some(())
        })
        .await;
    }

    /// Which of the two get some of these requests.
    async fn served(&self, requests: usize) -> [bool; 2] {
        let before = [0, 1].map(|i| self.patients[i].requests());
        for _ in 0..requests {
            self.get().await;
        }
        [0, 1].map(|i| self.patients[i].requests() > before[i])
    }
}

fn site(name: &str, patients: &[Patient; 2], rest: &str) -> String {
    let upstreams = patients.each_ref().map(|patient| patient.addr.to_string());
    format!("[[sites]]\nhosts = [\"{name}\"]\ntls = \"files\"\nupstreams = {upstreams:?}\n{rest}\n")
}

const FAST: &str = "interval = \"100ms\", timeout = \"20s\"";

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_check_takes_an_upstream_out_until_it_passes() {
    let check = format!("health_check = {{ path = \"/healthz\", body = \"is well\", {FAST} }}");
    let scene = Scene::start(&check).await;
    assert_eq!(scene.served(4).await, [true, true]);
    for (status, healthy) in [(503, false), (200, true), (404, false), (204, true)] {
        // A 204 has no body, and so not the text.
        let healthy = healthy && status != 204;
        scene.patients[0]
            .state
            .health
            .store(status, Ordering::SeqCst);
        scene.wait_healthy(0, healthy).await;
        assert_eq!(scene.served(4).await, [healthy, true], "{status}");
    }
    let address = scene.patients[0].addr.to_string();
    let failed = scene.perennial.log_lines_with("health check failed");
    assert_eq!(failed.len(), 2, "each change is told once: {failed:?}");
    assert!(
        failed[0].contains(&address) && failed[0].contains("it answers 503"),
        "{failed:?}"
    );
    assert_eq!(scene.perennial.log_lines_with("it is well again").len(), 1);
}

/// Both ways it takes so many answers in a row.
#[tokio::test(flavor = "multi_thread")]
async fn one_answer_is_not_enough_where_more_are_wanted() {
    let check = format!("health_check = {{ path = \"/healthz\", fall = 6, rise = 6, {FAST} }}");
    let scene = Scene::start(&check).await;
    let state = &scene.patients[0].state;
    wait_until(SOON, "the first check", async || {
        (state.checks.load(Ordering::SeqCst) > 1).then_some(())
    })
    .await;
    for (status, healthy) in [(503, false), (200, true)] {
        let before = state.checks.load(Ordering::SeqCst);
        state.health.store(status, Ordering::SeqCst);
        scene.wait_healthy(0, healthy).await;
        let asked = state.checks.load(Ordering::SeqCst) - before;
        // One may have been under way.
        assert!(asked >= 5, "{status}: {asked}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_is_a_check_too() {
    let scene = Scene::start("health_check = { interval = \"100ms\", timeout = \"20s\" }").await;
    scene.patients[0].server.stop().await;
    scene.wait_healthy(0, false).await;
    // Nobody had to fail for that.
    assert!(scene.perennial.log_lines_with("request failed").is_empty());
    scene.patients[0].server.start().await;
    scene.wait_healthy(0, true).await;
    assert_eq!(scene.served(4).await, [true, true]);
}

#[tokio::test(flavor = "multi_thread")]
async fn sites_share_a_check_and_it_ends_with_the_last() {
    let check = format!("health_check = {{ path = \"/healthz\", {FAST} }}");
    let scene = Scene::start(&check).await;
    let both = [NAME, "b.example.test"].map(|name| site(name, &scene.patients, &check));
    let config = |sites: &str| format!("{}{sites}", scene.tls.pair.table());
    scene.perennial.rewrite_config(&config(&both.concat()));
    scene
        .perennial
        .wait_for_log("configuration reloaded", SOON)
        .await;
    // With the check of one site alone: it goes on although that site has changed, once at a time.
    let none = [NAME, "b.example.test"].map(|name| site(name, &scene.patients, ""));
    scene.perennial.rewrite_config(&config(&none.concat()));
    wait_until(SOON, "the checks to end", async || {
        let reloads = scene
            .perennial
            .log_lines_with("configuration reloaded")
            .len();
        if reloads < 2 {
            return None;
        }
        let before = scene.patients[0].checks();
        // Ten times the interval: one that runs is seen.
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        (scene.patients[0].checks() == before).then_some(())
    })
    .await;
    assert!(scene.patients[0].checks() > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_count_as_failures_eject_for_a_while() {
    let rest = "ejection = { failures = 3, statuses = [503], time = \"2s\" }";
    let scene = Scene::start(rest).await;
    scene.patients[0].state.status.store(503, Ordering::SeqCst);
    wait_until(SOON, "an ejection", async || {
        scene.get().await;
        let lines = scene.perennial.log_lines_with("upstream is ejected");
        (!lines.is_empty()).then_some(())
    })
    .await;
    assert!(scene.patients[0].requests() >= 3);
    scene.wait_healthy(0, false).await;
    scene.patients[0].state.status.store(200, Ordering::SeqCst);
    // When the time is over, one request finds out that it is well.
    wait_until(SOON, "it to be back", async || {
        assert!([200, 503].contains(&scene.get().await));
        let lines = scene.perennial.log_lines_with("upstream is back");
        (!lines.is_empty()).then_some(())
    })
    .await;
    scene.wait_healthy(0, true).await;
    assert_eq!(scene.served(4).await, [true, true]);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_too_many_are_ejected_all_are_used() {
    let rest = "ejection = { failures = 1, statuses = [\"5xx\"], time = \"1h\", max_time = \"1h\" }\n\
                load_balancing = { panic_threshold = 50 }";
    let scene = Scene::start(rest).await;
    scene.patients[0].state.status.store(500, Ordering::SeqCst);
    scene.served(4).await;
    scene.wait_healthy(0, false).await;
    assert_eq!(scene.served(4).await, [false, true]);
    scene.patients[1].state.status.store(502, Ordering::SeqCst);
    scene.served(2).await;
    scene.wait_healthy(1, false).await;
    assert_eq!(scene.served(6).await, [true, true]);
}

/// How often an upstream was ejected for this.
async fn ejections(scene: &Scene, patient: usize, cause: &str) -> f64 {
    let upstream = format!("upstream=\"{}\"", scene.patients[patient].addr);
    let cause = format!("cause=\"{cause}\"");
    let name = "perennial_upstream_ejections_total";
    let value = scene.perennial.metric(name, &[&upstream, &cause]).await;
    value.unwrap_or_default()
}

impl Scene {
    async fn get_path(&self, path: &str) -> u16 {
        let https = self.perennial.place.https;
        let client = http_client(NAME, https, None, Version::Http1);
        let url = format!("https://{NAME}:{}{path}", https.port());
        let response = client.get(url).send().await.expect("an answer");
        response.status().as_u16()
    }
}

/// The same upstream in two routes is one machine: where it is, and whether it speaks, both know.
/// What it answers is each route's own.
#[tokio::test(flavor = "multi_thread")]
async fn routes_share_what_is_known_of_a_machine() {
    const EJECTION: &str = "ejection = { failures = 1, statuses = [503], time = \"1h\", max_time = \"1h\" }\n\
                            load_balancing = { panic_threshold = 100 }\n";
    let mut scene = Scene::start(EJECTION).await;
    let upstreams = scene
        .patients
        .each_ref()
        .map(|patient| patient.addr.to_string());
    let route = format!(
        "{EJECTION}[[sites.routes]]\npath = \"/other\"\nupstreams = {upstreams:?}\n{EJECTION}"
    );
    let config = format!(
        "{}{}",
        scene.tls.pair.table(),
        site(NAME, &scene.patients, &route)
    );
    scene.perennial.rewrite_config(&config);
    scene.perennial.restart().await;
    scene.perennial.wait_ready().await;
    // Answers.
    scene.patients[0].state.status.store(503, Ordering::SeqCst);
    let mut answers = Vec::new();
    for _ in 0..4 {
        answers.push(scene.get_path("/other").await);
    }
    answers.sort_unstable();
    assert_eq!(answers, [200, 200, 200, 503]);
    assert_eq!(ejections(&scene, 0, "statuses").await, 1.0);
    scene.patients[0].state.status.store(200, Ordering::SeqCst);
    assert_eq!(scene.served(4).await, [true, true]);
    // The machine.
    scene.patients[1].server.stop().await;
    for _ in 0..4 {
        assert_eq!(scene.get_path("/").await, 200);
    }
    assert_eq!(ejections(&scene, 1, "dial").await, 1.0);
    let before = scene.perennial.log_lines_with("cannot be dialled").len();
    assert_eq!(before, 1);
    // It is the one that is left to this route, and is known to be away: it comes after the one
    // that has answered badly, without a single dial.
    scene.patients[1].server.start().await;
    let [first, second] = [0, 1].map(|i| scene.patients[i].requests());
    for _ in 0..4 {
        assert_eq!(scene.get_path("/other").await, 200);
    }
    assert_eq!(scene.patients[0].requests(), first + 4);
    assert_eq!(scene.patients[1].requests(), second);
}
