//! Which of several upstreams gets a request: by weight, by load, by key, by cookie.

use std::collections::HashMap;

use crate::support::client::{Version, http_client};
use crate::support::perennial::Perennial;
use crate::support::place::Place;
use crate::support::sites::FileTls;
use crate::support::upstream::Upstream;
use crate::support::wait::{SOON, wait_until};

const NAME: &str = "a.example.test";
const BOTH: [Version; 2] = [Version::Http1, Version::Http2];

struct Scene {
    perennial: Perennial,
    upstreams: Vec<Upstream>,
}

impl Scene {
    /// So many upstreams, `u0`, `u1` and so on. `rest` is what the site says beside its hosts;
    /// `{0}` is the first one's address.
    async fn start(count: usize, rest: &str) -> Scene {
        Scene::start_with("", count, rest).await
    }

    /// With more keys of `[server]`.
    async fn start_with(server: &str, count: usize, rest: &str) -> Scene {
        let place = Place::new();
        let mut upstreams = Vec::new();
        for number in 0..count {
            upstreams.push(Upstream::start(&place, &format!("u{number}")).await);
        }
        let tls = FileTls::new(&place, &[NAME]);
        let config = format!("{server}{}{}", tls.pair.table(), site(&upstreams, rest));
        let mut perennial = Perennial::run(place, &config).await;
        perennial.wait_ready().await;
        Scene {
            perennial,
            upstreams,
        }
    }

    fn client(&self, version: Version) -> reqwest::Client {
        http_client(NAME, self.perennial.place.https, None, version)
    }

    fn url(&self, path: &str) -> String {
        format!("https://{NAME}:{}{path}", self.perennial.place.https.port())
    }

    /// Who answers each of so many requests.
    async fn ask(
        &self,
        version: Version,
        count: usize,
        field: Option<(&str, &str)>,
    ) -> Vec<String> {
        let client = self.client(version);
        let mut names = Vec::new();
        for _ in 0..count {
            let mut request = client.get(self.url("/"));
            if let Some((name, value)) = field {
                request = request.header(name, value);
            }
            names.push(answered_by(request.send().await.expect("an answer")).await);
        }
        names
    }
}

fn site(upstreams: &[Upstream], rest: &str) -> String {
    let mut rest = rest.to_owned();
    for (number, upstream) in upstreams.iter().enumerate() {
        rest = rest.replace(&format!("{{{number}}}"), &upstream.addr.to_string());
    }
    format!("[[sites]]\nhosts = [\"{NAME}\"]\ntls = \"files\"\n{rest}\n")
}

async fn answered_by(response: reqwest::Response) -> String {
    assert_eq!(response.status(), 200);
    let told: serde_json::Value = response.json().await.expect("JSON");
    told["upstream"].as_str().expect("a name").to_owned()
}

fn counts(names: &[String]) -> HashMap<&str, usize> {
    let mut counts = HashMap::new();
    for name in names {
        *counts.entry(name.as_str()).or_default() += 1;
    }
    counts
}

#[tokio::test(flavor = "multi_thread")]
async fn weights_are_kept_and_spread() {
    let rest = "upstreams = [{ to = \"{0}\", weight = 3 }, \"{1}\"]";
    let scene = Scene::start(2, rest).await;
    for version in BOTH {
        let names = scene.ask(version, 8, None).await;
        assert_eq!(counts(&names), HashMap::from([("u0", 6), ("u1", 2)]));
        // Not three in a row and then one: evenly.
        assert_eq!(names[..4], names[4..], "{names:?}");
        let between = names
            .windows(4)
            .all(|four| four.iter().any(|name| name == "u1"));
        assert!(between, "{names:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_least_busy_gets_the_next() {
    let rest = "upstreams = [\"{0}\", \"{1}\"]\nload_balancing = \"least_connections\"";
    let scene = Scene::start(2, rest).await;
    let (client, url) = (scene.client(Version::Http1), scene.url("/hold"));
    let held = tokio::spawn(async move { client.get(url).send().await });
    let busy = wait_until(SOON, "a request that is held", async || {
        scene
            .upstreams
            .iter()
            .position(|upstream| upstream.held() == 1)
    })
    .await;
    for version in BOTH {
        let names = scene.ask(version, 4, None).await;
        let idle = format!("u{}", 1 - busy);
        assert!(names.iter().all(|name| *name == idle), "{names:?}");
    }
    scene.upstreams[busy].release();
    held.await.expect("no panic").expect("an answer");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_stays_at_its_upstream_when_others_go() {
    let rest = "upstreams = [\"{0}\", \"{1}\", \"{2}\"]\n\
                load_balancing = { policy = \"hash\", by = \"header.X-User\" }";
    let scene = Scene::start(3, rest).await;
    let users: Vec<String> = (0..30).map(|number| format!("user-{number}")).collect();
    let mut homes = Vec::new();
    for user in &users {
        let field = Some(("X-User", user.as_str()));
        let names = scene.ask(Version::Http1, 2, field).await;
        let over_http2 = scene.ask(Version::Http2, 1, field).await;
        assert!(
            names[0] == names[1] && names[0] == over_http2[0],
            "{user}: {names:?}"
        );
        homes.push(names[0].clone());
    }
    assert_eq!(counts(&homes).len(), 3, "{homes:?}");
    scene.upstreams[0].server.stop().await;
    for (user, home) in users.iter().zip(&homes) {
        let now = scene.ask(Version::Http1, 1, Some(("X-User", user))).await;
        match home.as_str() {
            "u0" => assert_ne!(now[0], "u0"),
            home => assert_eq!(now[0], home, "{user} has moved"),
        }
    }
}

/// A key can be a cookie of the application, or the client: the one that a trusted proxy names.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_a_cookie_or_the_client() {
    for (by, name) in [("cookie.user", "Cookie"), ("client", "X-Forwarded-For")] {
        let rest = format!(
            "upstreams = [\"{{0}}\", \"{{1}}\", \"{{2}}\"]\n\
             load_balancing = {{ policy = \"hash\", by = \"{by}\" }}"
        );
        let scene = Scene::start_with("trusted_proxies = [\"127.0.0.0/8\"]\n", 3, &rest).await;
        let mut homes = Vec::new();
        for number in 1..=30 {
            let mut names = Vec::new();
            for turn in 0..3 {
                // What is around the key differs each time.
                let value = match name {
                    "Cookie" => format!("theme=t{turn}; user=u{number}; last={turn}"),
                    _ => format!("192.0.2.{turn}, 203.0.113.{number}"),
                };
                names.extend(scene.ask(Version::Http1, 1, Some((name, &value))).await);
            }
            assert!(
                names.iter().all(|it| *it == names[0]),
                "{number}: {names:?}"
            );
            homes.push(names[0].clone());
        }
        assert_eq!(counts(&homes).len(), 3, "{by}: {homes:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cookie_keeps_a_client_at_its_upstream() {
    let rest = "upstreams = [\"{0}\", \"{1}\", \"{2}\"]\n\
                load_balancing = { policy = \"sticky\", cookie = \"lb\", same_site = \"strict\" }";
    let scene = Scene::start(3, rest).await;
    for version in BOTH {
        let client = scene.client(version);
        let first = client.get(scene.url("/")).send().await.expect("an answer");
        let set = first.headers()["set-cookie"]
            .to_str()
            .expect("ASCII")
            .to_owned();
        let home = answered_by(first).await;
        assert!(
            set.ends_with("; Path=/; HttpOnly; SameSite=Strict; Secure"),
            "{set}"
        );
        let cookie = set.split(';').next().expect("a pair");
        assert!(
            !set.contains(&scene.perennial.place.ip.to_string()),
            "{set}"
        );
        for _ in 0..5 {
            let request = client
                .get(scene.url("/"))
                .header("Cookie", format!("a=b; {cookie}"));
            let response = request.send().await.expect("an answer");
            assert!(!response.headers().contains_key("set-cookie"));
            assert_eq!(answered_by(response).await, home);
        }
        let number: usize = home[1..].parse().expect("a number");
        scene.upstreams[number].server.stop().await;
        let request = client.get(scene.url("/")).header("Cookie", cookie);
        let response = request.send().await.expect("an answer");
        assert_ne!(
            response.headers()["set-cookie"].to_str().expect("ASCII"),
            set
        );
        assert_ne!(answered_by(response).await, home);
        scene.upstreams[number].server.start().await;
    }
}

/// A configuration that changes while it runs is in force without a restart.
#[tokio::test(flavor = "multi_thread")]
async fn weights_change_live() {
    let scene = Scene::start(2, "upstreams = [\"{0}\", \"{1}\"]").await;
    let names = scene.ask(Version::Http1, 4, None).await;
    assert_eq!(counts(&names).len(), 2);
    let tls = "[[certificates.files]]";
    let text = std::fs::read_to_string(scene.perennial.place.path("perennial.toml")).expect("it");
    let start = text.find(tls).expect("the certificate");
    let end = text.find("[[sites]]").expect("the site");
    let rest = "upstreams = [{ to = \"{0}\", weight = 50 }, { to = \"{1}\", weight = 1 }]";
    let config = format!("{}{}", &text[start..end], site(&scene.upstreams, rest));
    scene.perennial.rewrite_config(&config);
    wait_until(SOON, "the new weights", async || {
        let names = scene.ask(Version::Http1, 6, None).await;
        (counts(&names).get("u0") >= Some(&5)).then_some(())
    })
    .await;
}

/// Of two that chance names, never the one with more: what is busy gets nothing.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_at_random_the_less_busy_gets_the_next() {
    let rest = "upstreams = [\"{0}\", \"{1}\", \"{2}\"]\nload_balancing = \"random\"";
    let scene = Scene::start(3, rest).await;
    let (client, url) = (scene.client(Version::Http1), scene.url("/hold"));
    let held = tokio::spawn(async move { client.get(url).send().await });
    let busy = wait_until(SOON, "a request that is held", async || {
        let mut upstreams = scene.upstreams.iter();
        upstreams.position(|upstream| upstream.held() == 1)
    })
    .await;
    for version in BOTH {
        let names = scene.ask(version, 40, None).await;
        let counts = counts(&names);
        assert!(!counts.contains_key(&*format!("u{busy}")), "{names:?}");
        // Chance: that one of two gets none of 40 does not happen.
        assert_eq!(counts.len(), 2, "{names:?}");
    }
    scene.upstreams[busy].release();
    held.await.expect("no panic").expect("an answer");
    let names = scene.ask(Version::Http1, 60, None).await;
    assert_eq!(counts(&names).len(), 3, "{names:?}");
}

/// Who comes back begins with a tenth of its share; with an hour to grow in, it still has that when
/// this is over.
#[tokio::test(flavor = "multi_thread")]
async fn who_comes_back_gets_little_at_first() {
    let rest = "upstreams = [\"{0}\", \"{1}\"]\nejection = { time = \"1s\", max_time = \"1s\" }\n\
                load_balancing = { slow_start = \"1h\" }";
    let scene = Scene::start(2, rest).await;
    assert_eq!(counts(&scene.ask(Version::Http1, 22, None).await)["u1"], 11);
    scene.upstreams[1].server.stop().await;
    assert_eq!(counts(&scene.ask(Version::Http1, 4, None).await)["u0"], 4);
    scene.upstreams[1].server.start().await;
    wait_until(SOON, "it to be back", async || {
        scene.ask(Version::Http1, 1, None).await;
        let lines = scene.perennial.log_lines_with("upstream is back");
        (!lines.is_empty()).then_some(())
    })
    .await;
    let names = scene.ask(Version::Http1, 44, None).await;
    assert_eq!(counts(&names)["u1"], 4, "{names:?}");
}
