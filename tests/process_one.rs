//! As process 1, as in a container: signals mean what they mean elsewhere, and orphans are waited for.

use std::fs;
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};

use crate::support::client::served_patiently;
use crate::support::perennial::Perennial;
use crate::support::place::Place;
use crate::support::sites::{FileTls, site};
use crate::support::wait::{SOON, wait_until};

const NAME: &str = "a.example.test";

/// A process of its own kind, with a table of processes in which it is the first.
const NAMESPACE: [&str; 5] = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"];

/// What the shell leaves behind is an orphan of whatever the shell becomes.
const ORPHAN: &str = "(sleep 2 &); exec \"$@\"";

fn children(pid: u32) -> Vec<u32> {
    let mut found = Vec::new();
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    for task in tasks.flatten() {
        let text = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        found.extend(
            text.split_whitespace()
                .filter_map(|pid| pid.parse::<u32>().ok()),
        );
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn it_waits_for_orphans_and_hears_signals() {
    let tried = Command::new(NAMESPACE[0])
        .args(&NAMESPACE[1..])
        .arg("true")
        .output();
    if !tried.is_ok_and(|tried| tried.status.success()) {
        eprintln!("*** NO NAMESPACE OF PROCESSES MAY BE MADE HERE: process 1 is not tested ***");
        return;
    }
    let place = Place::new();
    let tls = FileTls::new(&place, &[NAME]);
    let site = site(NAME, "files", &["respond:hello"]);
    let rest = format!("{}{site}", tls.pair.table());
    let before = [&NAMESPACE[..], &["sh", "-c", ORPHAN, "sh"]].concat();
    let mut perennial = Perennial::with_config(place, &rest).through(&before);
    perennial.start_and_wait().await;
    perennial.wait_ready().await;
    let first = *children(perennial.process_id()).first().expect("a child");
    wait_until(SOON, "the orphan to be gone", async || {
        children(first).is_empty().then_some(())
    })
    .await;
    let hangup = Pid::from_raw(first.try_into().expect("an id")).expect("an id");
    kill_process(hangup, Signal::HUP).expect("it runs");
    perennial.wait_for_log("rescanned on SIGHUP", SOON).await;
    let served = served_patiently(perennial.place.https, NAME).await;
    assert_eq!(served.expect("a certificate").serial, tls.leaf.serial);
    // A new process cannot take the place of the first: its end is the end of all.
    let upgraded = perennial.cli(&["upgrade"]).await;
    assert_eq!(upgraded.code, Some(1), "{upgraded:?}");
    kill_process(hangup, Signal::TERM).expect("it runs");
    assert_eq!(perennial.wait_exit(SOON).await.code(), Some(0));
}
