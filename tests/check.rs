//! `perennial check`: every mistake is named with its place, and every example is right.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::perennial::{Perennial, cli};
use crate::support::place::Place;
use crate::support::sites::site;
use crate::support::wait::SOON;

/// What sysexits.h calls EX_USAGE.
const REFUSED: i32 = 64;
/// So many mistakes at least are known.
const ENOUGH: usize = 20;

fn repository(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)
}

fn configurations(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
    let paths = entries.flatten().map(|entry| entry.path());
    let is_toml = |path: &PathBuf| {
        path.extension()
            .is_some_and(|extension| extension == "toml")
    };
    let mut found: Vec<_> = paths.filter(is_toml).collect();
    found.sort();
    found
}

/// What is wrong with the answer to one broken configuration, if anything.
async fn complaint(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).expect("readable");
    let expected = text.lines().next()?.strip_prefix("# expect: ");
    let Some(expected) = expected else {
        return Some("the first line is not `# expect: LINE:COLUMN: TEXT`".to_owned());
    };
    let mut parts = expected.splitn(3, ':');
    let (line, column) = (parts.next()?, parts.next()?);
    let substring = parts.next()?.trim();
    let file = path.display().to_string();
    let done = cli(&["check", "--config", &file]).await;
    let begin = format!("{file}:{line}:{column}:");
    let fits = |told: &str| told.starts_with(&begin) && told.contains(substring);
    match (done.code, done.stderr.lines().any(fits)) {
        (Some(REFUSED), true) => None,
        (Some(REFUSED), false) => Some(format!("expected {expected}, got:\n{}", done.stderr)),
        (code, _) => Some(format!(
            "exit code {code:?}, not {REFUSED}:\n{}",
            done.stderr
        )),
    }
}

/// Configurations that are wrong in themselves, that name files which are not there, that name files
/// which are no pair, and that a CA is known to refuse.
#[tokio::test(flavor = "multi_thread")]
async fn every_broken_configuration_is_named_with_its_place() {
    let folders = ["broken", "missing", "unservable", "unissuable"];
    let found = folders.map(|folder| configurations(&repository("tests/configs").join(folder)));
    assert!(found.iter().all(|files| !files.is_empty()), "{found:?}");
    let all = found.concat();
    assert!(all.len() >= ENOUGH, "only {} of them", all.len());
    let mut complaints = String::new();
    for path in &all {
        if let Some(complaint) = complaint(path).await {
            complaints += &format!("{}: {complaint}\n", path.display());
        }
    }
    assert!(complaints.is_empty(), "\n{complaints}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_example_is_accepted() {
    let all = configurations(&repository("examples"));
    assert!(all.len() >= 5, "only {} of them", all.len());
    let shipped = repository("config/perennial.toml");
    for path in all.iter().chain([&shipped]) {
        let done = cli(&["check", "--config", &path.display().to_string()]).await;
        assert_eq!(done.code, Some(0), "{}:\n{}", path.display(), done.stderr);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_binds_nothing_and_writes_nothing() {
    let place = Place::new();
    let text = format!(
        "{}{}",
        place.server_table(),
        site("localhost", "auto", &["3000"])
    );
    let file = place.write("perennial.toml", text).display().to_string();
    let _taken = [place.http, place.https, place.admin]
        .map(|addr| std::net::TcpListener::bind(addr).expect("free"));
    cli(&["check", "--config", &file]).await.assert_success();
    assert!(!place.state().exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_file_is_named() {
    let place = Place::new();
    let missing = place.path("nowhere.toml").display().to_string();
    let done = cli(&["check", "--config", &missing]).await;
    assert_ne!(done.code, Some(0));
    assert!(done.stderr.contains(&missing), "{}", done.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_configuration_ends_run_before_anything_is_bound() {
    let place = Place::new();
    let wrong = "[[sites]]\nhosts = [\"a.example.test\"]\nupstream = [\"3000\"]\n";
    let mut perennial = Perennial::with_config(place, wrong);
    perennial.start();
    let status = perennial.wait_exit(SOON).await;
    assert_eq!(status.code(), Some(REFUSED));
    let file = perennial.place.path("perennial.toml").display().to_string();
    let place_of_the_key = format!("{file}:8:1:");
    let line = perennial.wait_for_log(&place_of_the_key, SOON).await;
    assert!(line.starts_with(&place_of_the_key), "{line}");
    assert!(!perennial.place.state().exists());
}
