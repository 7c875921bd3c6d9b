//! The access log in a file: its forms, what is left out of it, and that it follows whoever rotates
//! it. No request waits for it.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::process::Signal;
use serde_json::Value;

use crate::proxy::{NAME, proxy};
use crate::static_files::get;
use crate::support::admin_api::client;
use crate::support::perennial::Perennial;
use crate::support::place::Place;
use crate::support::wait::{SOON, wait_until};

/// A site of fixed answers; `log` is what `[access_log]` says beside the file.
async fn scene(log: &str) -> (Perennial, PathBuf) {
    let place = Place::new();
    let path = place.path("access.log");
    (proxy(place, &sites(&path, log)).await, path)
}

fn sites(path: &Path, log: &str) -> String {
    format!(
        "[access_log]\noutput = {:?}\n{log}\n\
         [[sites]]\nhosts = [\"{NAME}\"]\ntls = \"files\"\nrespond = \"hello\"\n\
         [[sites.routes]]\npath = \"/down\"\nupstreams = [\"unix:/nowhere/at/all\"]\n\
         [[sites.routes]]\npath = \"/gone\"\nrespond = \"gone\"\nstatus = 410\n\
         [[sites]]\nhosts = [\"quiet.wild.example.test\"]\ntls = \"files\"\nrespond = \"quiet\"\n\
         access_log = false\n\
         [[sites.routes]]\npath = \"/broken\"\nupstreams = [\"unix:/nowhere/at/all\"]\n",
        path.display().to_string()
    )
}

fn lines(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    // The last line may not be whole yet.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(str::to_owned).collect()
}

/// The first line with this text.
async fn line(path: &Path, text: &str) -> String {
    wait_until(SOON, text, async || {
        lines(path).into_iter().find(|line| line.contains(text))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn json_says_what_failed_and_no_secret() {
    let (perennial, path) = scene("format = \"json\"\nquery = true\nredact = [\"invite\"]").await;
    let agent = [
        "--user-agent",
        "test/1",
        "--header",
        "Authorization: Bearer SECRET",
    ];
    let secret = "/a?x=1&access_token=SECRET&%49nvite=SECRET&y=2";
    assert_eq!(get(&perennial, secret, &agent).await.body, "hello");
    let found: Value = serde_json::from_str(&line(&path, "/a").await).expect("JSON");
    assert_eq!(found["path"], "/a");
    assert_eq!(
        found["query"],
        "x=1&access_token=REDACTED&%49nvite=REDACTED&y=2"
    );
    assert_eq!(found["status"], 200);
    assert_eq!(found["user_agent"], "test/1");
    assert_eq!(
        get(&perennial, "/down", &["--header", "Cookie: a=SECRET"])
            .await
            .status,
        502
    );
    let found: Value = serde_json::from_str(&line(&path, "/down").await).expect("JSON");
    assert_eq!(found["upstream"], "unix:/nowhere/at/all");
    let error = found["error"].as_str().expect("a reason");
    assert!(error.starts_with("unix:/nowhere/at/all: "), "{error}");
    let text = std::fs::read_to_string(&path).expect("a file");
    assert!(!text.contains("SECRET"), "{text}");
    let mode = path.metadata().expect("a file").permissions().mode();
    assert_eq!(mode & 0o777 & !0o640, 0, "{mode:o}");
    // A file has all requests, and stderr none any more.
    assert!(perennial.log_lines_with("perennial::access").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_combined_form_is_what_others_read() {
    let (perennial, path) = scene("format = \"combined\"").await;
    let fields = [
        "--http1.1",
        "--user-agent",
        "a \"b\"",
        "--referer",
        "https://b.test/x?token=SECRET",
    ];
    assert_eq!(
        get(&perennial, "/a?token=SECRET", &fields).await.body,
        "hello"
    );
    let found = line(&path, "/a").await;
    let (start, rest) = found.split_once(" [").expect("a time");
    let (time, rest) = rest.split_once("] ").expect("its end");
    assert_eq!(start, "127.0.0.1 - -");
    assert!(time.ends_with(" +0000") && time.len() == 26, "{time}");
    assert_eq!(
        rest,
        "\"GET /a HTTP/1.1\" 200 5 \"https://b.test/x\" \"a \\x22b\\x22\""
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn sites_may_be_left_out_and_requests_are_sampled() {
    let (perennial, path) = scene("format = \"json\"\nsample = \"1/1000000\"").await;
    let https = perennial.place.https;
    let quiet = "quiet.wild.example.test";
    let mut connection = crate::support::http1::KeepAlive::open(https, quiet, None)
        .await
        .expect("a connection");
    // It would be logged, since it fails, if the site were.
    assert_eq!(connection.get("/broken").await.expect("an answer").0, 502);
    for _ in 0..5 {
        assert_eq!(get(&perennial, "/sampled", &[]).await.body, "hello");
    }
    assert_eq!(get(&perennial, "/down", &[]).await.status, 502);
    assert_eq!(get(&perennial, "/gone", &[]).await.status, 410);
    // What fails is always there, and came last.
    line(&path, "/down").await;
    line(&path, "/gone").await;
    let text = std::fs::read_to_string(&path).expect("a file");
    assert!(
        !text.contains("/sampled") && !text.contains("/broken"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn it_follows_whoever_rotates_it() {
    let (perennial, path) = scene("").await;
    let moved = path.with_extension("1");
    let ask = async |path: &str| assert_eq!(get(&perennial, path, &[]).await.body, "hello");
    ask("/first").await;
    line(&path, "/first").await;
    // logrotate with `create`, by the file alone ...
    std::fs::rename(&path, &moved).expect("renamed");
    ask("/second").await;
    line(&path, "/second").await;
    assert_eq!(lines(&moved).len(), 1);
    // ... with `copytruncate` ...
    let truncated = std::fs::File::options().write(true).open(&path);
    truncated.expect("a file").set_len(0).expect("truncated");
    ask("/third").await;
    line(&path, "/third").await;
    let text = std::fs::read(&path).expect("a file");
    assert_ne!(text[0], 0, "no hole");
    // ... removed ...
    std::fs::remove_file(&path).expect("removed");
    ask("/fourth").await;
    line(&path, "/fourth").await;
    // ... and told.
    perennial.signal(Signal::HUP);
    perennial.wait_for_log("rescanned on SIGHUP", SOON).await;
    ask("/fifth").await;
    line(&path, "/fifth").await;
    // Another configuration, another file.
    let other = perennial.place.path("other.log");
    let text = std::fs::read_to_string(perennial.place.path("perennial.toml")).expect("a file");
    let text = text.replace("access.log", "other.log");
    perennial.place.write("perennial.toml", text);
    wait_until(SOON, "the other file", async || {
        ask("/sixth").await;
        (!lines(&other).is_empty()).then_some(())
    })
    .await;
}

async fn lost_lines(perennial: &Perennial) -> u64 {
    let url = format!("http://{}/metrics", perennial.place.admin);
    let response = client().get(&url).send().await.expect("metrics");
    let text = response.text().await.expect("text");
    let mut lines = text.lines();
    let line = lines.find(|line| line.starts_with("perennial_access_log_lost_lines_total "));
    let lost = line.and_then(|line| line.split(' ').nth(1)?.parse().ok());
    lost.expect("a number")
}

/// A full disk, and one that takes nothing at all.
#[tokio::test(flavor = "multi_thread")]
async fn no_request_waits_for_it() {
    let place = Place::new();
    let full = Path::new("/dev/full");
    let perennial = proxy(place, &sites(full, "format = \"json\"")).await;
    for _ in 0..3 {
        assert_eq!(get(&perennial, "/", &[]).await.body, "hello");
    }
    let told = perennial
        .wait_for_log("/dev/full cannot be written", SOON)
        .await;
    assert!(told.contains("lost="), "{told}");
    wait_until(SOON, "the metric", async || {
        (lost_lines(&perennial).await >= 3).then_some(())
    })
    .await;

    let place = Place::new();
    let pipe = place.path("pipe");
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RWXU).expect("a pipe");
    let mut perennial = proxy(place, &sites(&pipe, "format = \"json\"")).await;
    // Nobody has opened its other end, and more comes than may wait.
    let https = perennial.place.https;
    let connection = crate::support::http1::KeepAlive::open(https, NAME, None).await;
    let mut connection = connection.expect("a connection");
    let long = format!("/{}", "x".repeat(16 * 1024));
    for _ in 0..350 {
        assert_eq!(connection.get(&long).await.expect("an answer").0, 200);
    }
    assert!(lost_lines(&perennial).await > 0);
    perennial.signal(Signal::TERM);
    perennial.wait_exit(SOON).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_may_have_a_file_of_its_own() {
    let place = Place::new();
    let (shared, own) = (place.path("access.log"), place.path("own.log"));
    let with = |log: &str| {
        let text = sites(&shared, "format = \"combined\"");
        text.replace("access_log = false", log)
    };
    let named = format!("access_log = {:?}", own.display().to_string());
    let perennial = proxy(place, &with(&named)).await;
    let quiet = "quiet.wild.example.test";
    let https = perennial.place.https;
    let ask = async |path: &str| {
        let connection = crate::support::http1::KeepAlive::open(https, quiet, None).await;
        let mut connection = connection.expect("a connection");
        assert_eq!(connection.get(path).await.expect("an answer").0, 200);
    };
    ask("/own").await;
    assert_eq!(get(&perennial, "/shared", &[]).await.body, "hello");
    assert!(line(&own, "GET /own").await.contains("\" 200 5 "));
    line(&shared, "GET /shared").await;
    let text = |path: &Path| std::fs::read_to_string(path).expect("a file");
    assert!(!text(&own).contains("/shared") && !text(&shared).contains("/own"));
    // Taken back while it runs.
    let config = perennial.place.path("perennial.toml");
    let before = std::fs::read_to_string(&config).expect("a file");
    std::fs::write(&config, before.replace(&named, "access_log = true")).expect("written");
    perennial.wait_for_log("configuration reloaded", SOON).await;
    ask("/again").await;
    line(&shared, "GET /again").await;
    assert!(!text(&own).contains("/again"));
}
