//! A log that nobody reads: no request waits for it, what is too much is counted, and the process still
//! ends.

use rustix::process::Signal;

use crate::support::http1::KeepAlive;
use crate::support::perennial::Perennial;
use crate::support::place::Place;
use crate::support::sites::site;
use crate::support::wait::{SOON, wait_until};

const NAME: &str = "a.example.test";

/// Each request that fails is a line. A pipe has room for 64 KiB of them, and for a while nobody reads.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_for_whoever_reads_stderr() {
    let place = Place::new();
    let site = site(NAME, "off", &["unix:/nowhere/at/all"]);
    let rest = format!("threads = 1\n{site}");
    let mut perennial = Perennial::run(place, &rest).await;
    let opened = KeepAlive::open_plain(perennial.place.http, NAME).await;
    let mut connection = opened.expect("a connection");
    let path = format!("/{}", "x".repeat(1000));
    perennial.read_log(false);
    let lost = async || {
        let name = "perennial_log_lost_lines_total";
        perennial.metric(name, &[]).await.unwrap_or_default()
    };
    wait_until(SOON * 4, "lines that are lost", async || {
        for _ in 0..50 {
            let answer = connection.get(&path).await.expect("an answer");
            assert_eq!(answer.0, 502);
        }
        (lost().await > 0.0).then_some(())
    })
    .await;
    // Now that it is read, it goes on, and says what is missing.
    perennial.read_log(true);
    perennial
        .wait_for_log("stderr is not read fast enough", SOON)
        .await;
    let before = perennial.log_lines_with("request failed").len();
    assert_eq!(connection.get("/again").await.expect("an answer").0, 502);
    wait_until(SOON, "another line", async || {
        let lines = perennial.log_lines_with("request failed");
        (lines.len() > before).then_some(())
    })
    .await;
    perennial.signal(Signal::TERM);
    assert_eq!(perennial.wait_exit(SOON).await.code(), Some(0));
}

/// Nobody reads at the end either.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_does_not_wait_for_a_reader() {
    let place = Place::new();
    let site = site(NAME, "off", &["unix:/nowhere/at/all"]);
    let mut perennial = Perennial::run(place, &format!("threads = 1\n{site}")).await;
    let opened = KeepAlive::open_plain(perennial.place.http, NAME).await;
    let mut connection = opened.expect("a connection");
    let path = format!("/{}", "x".repeat(1000));
    perennial.read_log(false);
    // More than the pipe has room for.
    for _ in 0..150 {
        assert_eq!(connection.get(&path).await.expect("an answer").0, 502);
    }
    perennial.signal(Signal::TERM);
    assert_eq!(perennial.wait_exit(SOON).await.code(), Some(0));
}

/// What was said last is there, however soon the end came.
#[tokio::test(flavor = "multi_thread")]
async fn the_last_line_is_written() {
    let place = Place::new();
    let rest = site(NAME, "off", &["respond:hello"]);
    let mut perennial = Perennial::run(place, &rest).await;
    perennial.signal(Signal::TERM);
    assert_eq!(perennial.wait_exit(SOON).await.code(), Some(0));
    let drained = perennial.log_lines_with("drained");
    assert!(!drained.is_empty(), "{:#?}", perennial.log());
}
