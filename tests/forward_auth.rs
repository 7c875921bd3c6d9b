//! Somebody else says who is let in: asked with what the client has sent, believed in what it says of
//! the client, and nobody is let in where it says nothing.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::any;

use crate::proxy::{NAME, proxy};
use crate::static_files::{VERSIONS, get};
use crate::support::perennial::Perennial;
use crate::support::place::Place;
use crate::support::recorder::{Recorder, Seen};
use crate::support::server::Server;
use crate::support::wait::{SOON, wait_until};

type Asked = Arc<Mutex<Vec<(String, HeaderMap)>>>;

struct Scene {
    perennial: Perennial,
    recorder: Recorder,
    asked: Asked,
    authority: Server,
}

/// `Cookie: session=good` is Alice, everybody else has to log in.
fn authority(asked: Asked) -> Router {
    let verify = move |request: Request| {
        let asked = Arc::clone(&asked);
        async move {
            let fields = request.headers().clone();
            let line = format!("{} {}", request.method(), request.uri());
            asked.lock().unwrap().push((line, fields.clone()));
            let cookie = fields.get("cookie").and_then(|cookie| cookie.to_str().ok());
            match cookie {
                Some(cookie) if cookie.contains("session=good") => alice(),
                Some("large") => (StatusCode::FORBIDDEN, vec![b'x'; 2 << 20]).into_response(),
                Some("slow") => std::future::pending().await,
                _ => login(),
            }
        }
    };
    Router::new().fallback(any(verify))
}

fn alice() -> Response {
    let fields = [
        ("Remote-User", "alice"),
        ("Remote-Groups", "staff"),
        ("X-Other", "no"),
    ];
    (fields, "").into_response()
}

fn login() -> Response {
    let fields = [
        ("Location", "https://login.test/"),
        ("Set-Cookie", "next=1; Secure"),
    ];
    (StatusCode::FOUND, fields, "log in first").into_response()
}

async fn scene() -> Scene {
    let place = Place::new();
    let recorder = Recorder::start(&place).await;
    let asked = Asked::default();
    let addr = place.free();
    let authority = Server::tcp(addr, authority(Arc::clone(&asked))).await;
    place.write("www/page.txt", "a file");
    let up = recorder.addr;
    let http = place.http;
    let text = format!(
        "[[sites]]\nhosts = [\"{NAME}\"]\ntls = \"files\"\nupstreams = [\"{up}\"]\n\
         forward_auth = {{ url = \"http://{addr}/verify?x=y\", copy_headers = [\"Remote-User\", \
         \"Remote-Groups\", \"Remote-Email\"], timeout = \"2s\" }}\n\
         request_headers = {{ set = {{ X-Who = \"{{header.remote-user}}\" }} }}\n\
         [[sites.routes]]\npath = \"/open/*\"\nupstreams = [\"{up}\"]\nforward_auth = \"off\"\n\
         [[sites.routes]]\npath = \"/files/*\"\nstrip_prefix = \"/files\"\nroot = \"www\"\n\
         [[sites.routes]]\npath = \"/circle/*\"\nrespond = \"never\"\n\
         forward_auth = \"http://{http}/around\"\n\
         [[sites]]\nhosts = [\"{}\"]\ntls = \"off\"\nrespond = \"never\"\n\
         forward_auth = \"http://{http}/around\"\n",
        place.ip
    );
    Scene {
        perennial: proxy(place, &text).await,
        recorder,
        asked,
        authority,
    }
}

fn fields<'m>(seen: &'m [Seen], name: &str) -> Vec<&'m str> {
    let [Seen::Request(request)] = seen else {
        panic!("{seen:?}")
    };
    request.head.all(name)
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_let_in_is_known_to_the_upstream() {
    let scene = scene().await;
    for version in VERSIONS {
        let forged = [
            "--header",
            "Remote-User: mallory",
            "--header",
            "remote_groups: admin",
            "--header",
            "Remote-Email: m@mallory.test",
            "--header",
            "X-Forwarded-Uri: /open/",
        ];
        let cookie = [
            "--header",
            "Cookie: session=good",
            "--data",
            "body",
            version,
        ];
        let arguments = [&forged[..], &cookie].concat();
        let answer = get(&scene.perennial, "/secret?q=1", &arguments).await;
        assert_eq!((answer.status, &*answer.body), (200, "ok"));
        let seen = scene.recorder.take();
        assert_eq!(fields(&seen, "remote-user"), ["alice"]);
        assert_eq!(fields(&seen, "remote-groups"), ["staff"]);
        assert_eq!(fields(&seen, "x-who"), ["alice"]);
        for gone in ["remote_groups", "remote-email", "x-other", "cdn-loop"] {
            assert!(fields(&seen, gone).is_empty(), "{gone}");
        }
        let (line, asked) = scene.asked.lock().unwrap().pop().expect("a question");
        assert_eq!(line, "GET /verify?x=y");
        let port = scene.perennial.place.https.port();
        let host = format!("{NAME}:{port}");
        for (name, value) in [
            ("x-forwarded-method", "POST"),
            ("x-forwarded-uri", "/secret?q=1"),
            ("x-forwarded-host", &*host),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-for", "127.0.0.1"),
            ("cookie", "session=good"),
        ] {
            let values: Vec<_> = asked.get_all(name).iter().collect();
            assert_eq!(values, [value], "{name}");
        }
        assert!(!asked.contains_key("content-length"), "{asked:?}");
        // Files are no way around.
        let cookie = ["--header", "Cookie: session=good", version];
        let answer = get(&scene.perennial, "/files/page.txt", &cookie).await;
        assert_eq!(answer.body, "a file");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn everybody_else_gets_its_answer() {
    let scene = scene().await;
    for version in VERSIONS {
        for path in ["/secret", "/files/page.txt", "/files/../secret", "//secret"] {
            let answer = get(&scene.perennial, path, &[version]).await;
            assert_eq!(
                (answer.status, &*answer.body),
                (302, "log in first"),
                "{path}"
            );
            assert_eq!(answer.field("location"), Some("https://login.test/"));
            assert_eq!(answer.field("set-cookie"), Some("next=1; Secure"));
        }
        let head = get(&scene.perennial, "/secret", &[version, "--head"]).await;
        assert_eq!((head.status, &*head.body), (302, ""));
    }
    assert!(scene.recorder.take().is_empty());
    let before = scene.asked.lock().unwrap().len();
    let open = get(&scene.perennial, "/open/x", &[]).await;
    assert_eq!((open.status, &*open.body), (200, "ok"));
    assert_eq!(scene.asked.lock().unwrap().len(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nobody_answers_nobody_is_let_in() {
    let scene = scene().await;
    let ask = async |cookie: &str| {
        let cookie = format!("Cookie: {cookie}");
        get(&scene.perennial, "/secret", &["--header", &cookie]).await
    };
    assert_eq!(ask("large").await.status, 502);
    scene
        .perennial
        .wait_for_log("the answer is larger than", SOON)
        .await;
    assert_eq!(ask("slow").await.status, 504);
    scene
        .perennial
        .wait_for_log("no answer within 2s", SOON)
        .await;
    scene.authority.stop().await;
    assert_eq!(ask("session=good").await.status, 502);
    scene
        .perennial
        .wait_for_log("verify?x=y: error sending request", SOON)
        .await;
    assert!(scene.recorder.take().is_empty());
    scene.authority.start().await;
    assert_eq!(ask("session=good").await.status, 200);
}

/// A question that comes back to where it was asked is asked once.
#[tokio::test(flavor = "multi_thread")]
async fn circles_are_seen() {
    let scene = scene().await;
    let answer = get(&scene.perennial, "/circle/x", &[]).await;
    assert_eq!(answer.status, 508, "{}", answer.body);
    scene.perennial.wait_for_log("asks itself", SOON).await;
}

/// Over a Unix socket, and over TLS with an authority of one's own, which may change.
#[tokio::test(flavor = "multi_thread")]
async fn it_may_be_a_socket_or_have_an_authority_of_its_own() {
    use crate::support::certs::TestCa;
    let place = Place::new();
    let asked = Asked::default();
    let socket = place.path("auth.sock");
    let _local = Server::unix(&socket, authority(Arc::clone(&asked))).await;
    let (first, second) = (TestCa::new(), TestCa::new());
    let addr = place.free();
    let leaf = second.leaf(&[&addr.ip().to_string()]);
    let config = crate::support::upstream::server_config(&leaf, None);
    let _secured = Server::tls(addr, authority(Arc::clone(&asked)), config).await;
    let ca = place.write("auth-ca.pem", &first.root_pem);
    let text = format!(
        "[[sites]]\nhosts = [\"{NAME}\"]\ntls = \"files\"\nrespond = \"in\"\n\
         forward_auth = \"unix:auth.sock:/verify?x=y\"\n\
         [[sites.routes]]\npath = \"/secured\"\nrespond = \"in\"\n\
         forward_auth = {{ url = \"https://{addr}/secured\", ca = {:?} }}\n",
        ca.display().to_string()
    );
    let perennial = proxy(place, &text).await;
    let good = ["--header", "Cookie: session=good"];
    let answer = get(&perennial, "/", &good).await;
    assert_eq!((answer.status, &*answer.body), (200, "in"));
    assert_eq!(get(&perennial, "/", &[]).await.status, 302);
    let lines: Vec<String> = asked
        .lock()
        .unwrap()
        .drain(..)
        .map(|(line, _)| line)
        .collect();
    assert_eq!(lines, ["GET /verify?x=y", "GET /verify?x=y"]);
    // Another authority has signed it: nobody is let in.
    assert_eq!(get(&perennial, "/secured", &good).await.status, 502);
    std::fs::write(&ca, &second.root_pem).expect("written");
    wait_until(SOON, "the new authority", async || {
        let answer = get(&perennial, "/secured", &good).await;
        (answer.status == 200).then_some(())
    })
    .await;
    // One that is broken leaves the one before.
    std::fs::write(&ca, "nothing").expect("written");
    let ca = ca.display().to_string();
    let failure = async || {
        let status = perennial.status_json().await;
        let files = status["tls_files"].as_array()?.clone();
        let file = files.into_iter().find(|file| file["path"] == *ca)?;
        assert_eq!(file["purpose"], "forward_auth_ca");
        file["last_error"].as_str().map(str::to_owned)
    };
    wait_until(SOON, "a look at it", failure).await;
    assert_eq!(get(&perennial, "/secured", &good).await.status, 200);
}

/// What was never readable lets nobody in: not by the system's authorities either.
#[tokio::test(flavor = "multi_thread")]
async fn without_its_authority_nobody_is_let_in() {
    let place = Place::new();
    let ca = place.write("auth-ca.pem", "nothing yet");
    let text = format!(
        "[[sites]]\nhosts = [\"{NAME}\"]\ntls = \"files\"\nrespond = \"in\"\n\
         forward_auth = {{ url = \"https://{}/\", ca = {:?} }}\n",
        place.free(),
        ca.display().to_string()
    );
    let perennial = proxy(place, &text).await;
    assert_eq!(get(&perennial, "/", &[]).await.status, 500);
    let pattern = "its ca could not be read so far";
    perennial.wait_for_log(pattern, SOON).await;
}
