//! Who is let in: by address, by password, how often, and with how much.

use std::process::{Command, Stdio};

use axum::body::Body;
use futures_util::stream;
use http_body_util::BodyExt;
use hyper::Request;

use crate::proxy::{NAME, proxy};
use crate::support::client::{Version, http_client};
use crate::support::http1::KeepAlive;
use crate::support::perennial::{Perennial, program};
use crate::support::place::Place;
use crate::support::sites::site;
use crate::support::upstream::Upstream;
use crate::support::wait::{SOON, wait_until};

struct Scene {
    perennial: Perennial,
    upstream: Upstream,
}

/// `more` continues the `[[sites]]` table.
async fn scene(place: Place, more: &str) -> Scene {
    let upstream = Upstream::start(&place, "app").await;
    let sites = format!(
        "{}{more}",
        site(NAME, "files", &[&upstream.addr.to_string()])
    );
    let perennial = proxy(place, &sites).await;
    Scene {
        perennial,
        upstream,
    }
}

impl Scene {
    async fn send(
        &self,
        request: hyper::http::request::Builder,
        body: Body,
    ) -> (u16, hyper::HeaderMap) {
        let https = self.perennial.place.https;
        let mut connection = KeepAlive::open(https, NAME, None).await.expect("open");
        let request = request.header("host", NAME).body(body).expect("a request");
        let response = connection.send(request).await.expect("an answer");
        let (parts, body) = response.into_parts();
        body.collect().await.expect("a body");
        (parts.status.as_u16(), parts.headers)
    }

    async fn get(&self, path: &str, fields: &[(&str, &str)]) -> (u16, hyper::HeaderMap) {
        let mut request = Request::get(path);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        self.send(request, Body::empty()).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_are_let_in_or_not() {
    let route = |path: &str, more: &str| {
        format!("[[sites.routes]]\npath = \"{path}\"\nrespond = \"in\"\n{more}\n")
    };
    let routes = [
        route("/local", "allow = [\"127.0.0.0/8\", \"::1\"]"),
        route("/far", "allow = [\"192.0.2.0/24\"]"),
        route("/denied", "deny = [\"127.0.0.1\"]"),
        route("/both", "allow = [\"127.0.0.0/8\"]\ndeny = [\"127.0.0.1\"]"),
    ];
    let scene = scene(Place::new(), &routes.concat()).await;
    for (path, expected) in [
        ("/local", 200),
        ("/far", 403),
        ("/denied", 403),
        ("/both", 403),
    ] {
        assert_eq!(scene.get(path, &[]).await.0, expected, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_holds_for_each_key() {
    let limit = "rate_limit = { limit = \"2/1h\", by = \"header.X-Key\" }\n\
                 [[sites.routes]]\npath = \"/free/*\"\nrespond = \"in\"\nrate_limit = \"off\"\n\
                 [[sites.routes]]\npath = \"/all/*\"\nrespond = \"in\"\n\
                 rate_limit = { limit = \"2/1h\", by = \"everybody\" }\n";
    let scene = scene(Place::new(), limit).await;
    for (key, expected) in [("a", 200), ("a", 200), ("a", 429), ("b", 200), ("a", 429)] {
        let (status, fields) = scene.get("/", &[("X-Key", key)]).await;
        assert_eq!(status, expected, "{key}");
        let wait = fields
            .get("retry-after")
            .and_then(|value| value.to_str().ok()?.parse().ok());
        let wait: Option<u64> = wait;
        assert_eq!(
            wait.is_some_and(|wait| (1..=1801).contains(&wait)),
            expected == 429
        );
    }
    assert_eq!(scene.get("/free/x", &[("X-Key", "a")]).await.0, 200);
    for (key, expected) in [("a", 200), ("b", 200), ("c", 429)] {
        let (status, _) = scene.get("/all/x", &[("X-Key", key)]).await;
        assert_eq!(status, expected, "{key}");
    }
    assert_eq!(scene.upstream.requests(), 3);
}

/// What `perennial hash-password NAME` makes of it.
fn hashed(name: &str, password: &str) -> String {
    let mut command = Command::new(program());
    command.args(["hash-password", name]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("it starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    std::io::Write::write_all(&mut stdin, format!("{password}\n").as_bytes()).expect("written");
    drop(stdin);
    let output = child.wait_with_output().expect("its output");
    assert!(output.status.success());
    String::from_utf8(output.stdout).expect("a line")
}

#[tokio::test(flavor = "multi_thread")]
async fn users_say_who_they_are() {
    use base64::Engine as _;

    let place = Place::new();
    // By `htpasswd -nbB bob builder`.
    let bob = format!("bob:{}\n", bcrypt::hash("builder", 4).expect("a hash"));
    let users = format!(
        "# staff\n{}{}",
        hashed("ann", "secret:word"),
        bob.replace("$2b$", "$2y$")
    );
    place.write("users", users);
    let rules = "basic_auth = { users_file = \"users\", realm = \"staff only\" }\n\
                 [[sites.routes]]\npath = \"/open\"\nrespond = \"in\"\nbasic_auth = \"off\"\n\
                 [[sites.routes]]\npath = \"/me\"\nrespond = \"in\"\n\
                 response_headers = { set = { X-User = \"{user}\" } }\n";
    let scene = scene(place, rules).await;
    let basic = |text: &str| {
        let encoded = base64::prelude::BASE64_STANDARD.encode(text);
        format!("Basic {encoded}")
    };
    let (status, fields) = scene.get("/", &[]).await;
    assert_eq!(status, 401);
    assert_eq!(
        fields["www-authenticate"],
        "Basic realm=\"staff only\", charset=\"UTF-8\""
    );
    for (given, expected) in [
        ("ann:secret:word", 200),
        ("ann:secret:word", 200),
        ("bob:builder", 200),
        ("ann:builder", 401),
        ("eve:builder", 401),
    ] {
        let (status, _) = scene.get("/", &[("Authorization", &basic(given))]).await;
        assert_eq!(status, expected, "{given}");
    }
    assert_eq!(scene.upstream.requests(), 3);
    assert_eq!(scene.get("/open", &[]).await.0, 200);
    let (_, fields) = scene
        .get("/me", &[("Authorization", &basic("bob:builder"))])
        .await;
    assert_eq!(fields["x-user"], "bob");
    let log = wait_until(SOON, "the access log", async || {
        let lines = scene.perennial.log_lines_with("user=\"bob\"");
        (lines.len() >= 2).then(|| scene.perennial.log().join("\n"))
    })
    .await;
    assert!(
        !log.contains("builder") && !log.contains("$2"),
        "a secret is in the log"
    );

    // Another password, and the old one is over.
    let changed = hashed("ann", "another");
    scene.perennial.place.write("users", changed);
    wait_until(SOON, "the new password", async || {
        let (status, _) = scene
            .get("/", &[("Authorization", &basic("ann:another"))])
            .await;
        (status == 200).then_some(())
    })
    .await;
    let (status, _) = scene
        .get("/", &[("Authorization", &basic("ann:secret:word"))])
        .await;
    assert_eq!(status, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_have_a_limit() {
    let rules = "max_body = \"1KiB\"\n[[sites.routes]]\npath = \"/large\"\nmax_body = \"off\"\n";
    let place = Place::new();
    let upstream = Upstream::start(&place, "app").await;
    let address = upstream.addr.to_string();
    let sites = format!(
        "{}{rules}upstreams = [\"{address}\"]\n",
        site(NAME, "files", &[&address])
    );
    let perennial = proxy(place, &sites).await;
    let scene = Scene {
        perennial,
        upstream,
    };
    let chunked = |count: usize| {
        let parts = (0..count).map(|_| Ok::<_, std::io::Error>(vec![b'x'; 512]));
        Body::from_stream(stream::iter(parts))
    };
    for (path, body, expected) in [
        ("/count", Body::from(vec![b'x'; 1024]), 200),
        ("/count", Body::from(vec![b'x'; 1025]), 413),
        ("/count", chunked(2), 200),
        ("/count", chunked(3), 413),
        ("/large", chunked(300), 200),
    ] {
        let (status, _) = scene.send(Request::post(path), body).await;
        assert_eq!(status, expected, "{path}");
    }
    let https = scene.perennial.place.https;
    let client = http_client(NAME, https, None, Version::Http2);
    let url = format!("https://{NAME}:{}/count", https.port());
    let request = client.post(url).body(reqwest::Body::from(vec![b'x'; 5000]));
    assert_eq!(request.send().await.expect("an answer").status(), 413);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_users_that_is_none_is_an_error_of_check() {
    use crate::support::perennial::cli;

    let place = Place::new();
    let file = place.write(
        "p.toml",
        "[[sites]]\nhosts = [\"a.localhost\"]\nupstreams = [\"1\"]\nbasic_auth = \"users\"\n",
    );
    let check = async || cli(&["check", "--config", &file.display().to_string()]).await;
    for (users, expected) in [
        (None, "cannot read"),
        (
            Some("ann:plain"),
            "users:1: the hash of \"ann\" is neither argon2 nor bcrypt",
        ),
        (Some("# nobody\n"), "has no user"),
        (Some("\nann"), "users:2: it has no `:`"),
    ] {
        if let Some(users) = users {
            place.write("users", users);
        }
        let found = check().await;
        assert_eq!(found.code, Some(64), "{found:?}");
        assert!(
            found.stderr.contains(expected),
            "{expected}: {}",
            found.stderr
        );
        assert!(found.stderr.contains("p.toml:4:14:"), "{}", found.stderr);
    }
}
