//! The internal CA's root goes into the system's trust and out again, and the manual is written.

use std::path::Path;
use std::process::Command;

use crate::support::command::{self, Finished};
use crate::support::perennial::{Perennial, cli, program};
use crate::support::place::Place;
use crate::support::sites::site;

/// With a system below the place, whose updating program writes down that it was called.
async fn with_system(place: &Place, words: &[&str]) -> Finished {
    let mut command = Command::new(program());
    command.args(words);
    command.env("PERENNIAL_TEST_SYSTEM_ROOT", place.path("system"));
    command.env("HOME", place.path("home"));
    let path = std::env::var("PATH").expect("PATH");
    command.env("PATH", format!("{}:{path}", place.path("bin").display()));
    command::run(command).await
}

fn updater(place: &Place) {
    use std::os::unix::fs::PermissionsExt;
    let log = place.path("called");
    let script = format!("#!/bin/sh\necho \"$0 $*\" >> {}\n", log.display());
    let path = place.write("bin/update-ca-certificates", script);
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("a program");
}

fn entries(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("a folder").flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_root_goes_in_and_out() {
    let site = site("a.localhost", "internal", &["respond:hello"]);
    let mut perennial = Perennial::run(Place::new(), &site).await;
    perennial.wait_ready().await;
    let place = &perennial.place;
    updater(place);
    let config = place.path("perennial.toml").display().to_string();
    let trust = ["trust", "--config", &config];
    let none = with_system(place, &trust).await;
    assert_eq!(none.code, Some(1), "{none:#?}");
    assert!(none.stderr.contains("--print"), "{none:#?}");

    let anchors = place.path("system/usr/local/share/ca-certificates");
    std::fs::create_dir_all(&anchors).expect("a folder");
    let done = with_system(place, &trust).await.assert_success();
    assert!(done.stdout.contains("trusted by the system"), "{done:#?}");
    let installed = entries(&anchors);
    assert_eq!(installed.len(), 1, "{installed:?}");
    let text = std::fs::read_to_string(anchors.join(&installed[0])).expect("a file");
    let root = std::fs::read_to_string(place.local_root()).expect("a root");
    assert_eq!(text.trim(), root.trim());
    let again = with_system(place, &trust).await.assert_success();
    assert!(again.stdout.contains("already"), "{again:#?}");
    std::fs::write(anchors.join("other.crt"), "somebody else's").expect("written");

    let untrust = ["untrust", "--config", &config];
    with_system(place, &untrust).await.assert_success();
    assert_eq!(entries(&anchors), ["other.crt"]);
    let called = std::fs::read_to_string(place.path("called")).expect("calls");
    assert_eq!(called.lines().count(), 2, "{called}");
    let printed = with_system(place, &["trust", "--print", "--config", &config]).await;
    assert_eq!(printed.assert_success().stdout.trim(), root.trim());
}

#[tokio::test(flavor = "multi_thread")]
async fn browsers_trust_it_where_their_tool_is() {
    if command::find("certutil").is_none() {
        eprintln!("CERTUTIL NOT FOUND: the trust of browsers is not proven");
        return;
    }
    let site = site("a.localhost", "internal", &["respond:hello"]);
    let mut perennial = Perennial::run(Place::new(), &site).await;
    perennial.wait_ready().await;
    let place = &perennial.place;
    updater(place);
    let anchors = place.path("system/usr/local/share/ca-certificates");
    let database = place.path("home/.pki/nssdb");
    for folder in [&anchors, &database] {
        std::fs::create_dir_all(folder).expect("a folder");
    }
    let store = format!("sql:{}", database.display());
    let certutil = async |words: &[&str]| {
        let mut command = Command::new("certutil");
        command.args(words).args(["-d", &store]);
        command::run(command).await.assert_success()
    };
    certutil(&["-N", "--empty-password"]).await;
    let config = place.path("perennial.toml").display().to_string();
    with_system(place, &["trust", "--config", &config])
        .await
        .assert_success();
    let listed = certutil(&["-L"]).await.stdout;
    assert!(listed.contains("Perennial Local Authority"), "{listed}");
    assert!(listed.contains("C,,"), "{listed}");
    with_system(place, &["untrust", "--config", &config])
        .await
        .assert_success();
    let listed = certutil(&["-L"]).await.stdout;
    assert!(!listed.contains("Perennial Local Authority"), "{listed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_root_or_without_rights_it_is_said() {
    let place = Place::new();
    let state = place.path("nothing").display().to_string();
    let none = cli(&["trust", "--state-dir", &state]).await;
    assert_eq!(none.code, Some(1));
    assert!(none.stderr.contains("tls = \"internal\""), "{none:#?}");
    let leaf = crate::support::certs::TestCa::new().leaf(&["a.test"]);
    let leaf = place.write("leaf.pem", leaf.chain_pem());
    let refused = cli(&["trust", &leaf.display().to_string()]).await;
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains("no root to trust"), "{refused:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_manual_has_a_page_for_each_command() {
    let page = cli(&["man"]).await.assert_success().stdout;
    assert!(page.contains(".TH perennial 1"), "{page}");
    let place = Place::new();
    let folder = place.path("man").display().to_string();
    cli(&["man", "--directory", &folder]).await.assert_success();
    let pages = entries(&place.path("man"));
    for wanted in ["perennial.1", "perennial-run.1", "perennial-certs-import.1"] {
        assert!(
            pages.iter().any(|page| page == wanted),
            "{wanted}: {pages:?}"
        );
    }
}
