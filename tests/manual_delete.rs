//! Certificates are taken out of service: by hand, and by themselves when no site has had them for
//! a month. None is lost before it expires, and what is served stays served.

use std::path::{Path, PathBuf};

use crate::support::client::served;
use crate::support::perennial::Perennial;
use crate::support::place::Place;
use crate::support::sites::site;
use crate::support::wait::{SOON, wait_until};

const NAME: &str = "a.localhost";
const OTHER: &str = "b.localhost";

async fn with_two_sites() -> Perennial {
    let place = Place::new();
    let sites = [NAME, OTHER].map(|name| site(name, "internal", &["respond:hello"]));
    let mut perennial = Perennial::run(place, &sites.concat()).await;
    perennial.wait_ready().await;
    perennial
}

async fn serial(perennial: &Perennial, name: &str) -> String {
    let served = served(perennial.place.https, Some(name)).await;
    served.expect("a handshake").serial
}

fn directory(perennial: &Perennial, name: &str) -> PathBuf {
    let certificates = perennial.place.state().join("certificates");
    certificates.join(name).join("p256")
}

fn only_entry(path: &Path) -> PathBuf {
    let mut entries = std::fs::read_dir(path).expect("a folder");
    let entry = entries.next().expect("an entry").expect("readable").path();
    assert!(entries.next().is_none(), "one alone in {}", path.display());
    entry
}

#[tokio::test(flavor = "multi_thread")]
async fn by_hand_where_no_site_has_it() {
    let perennial = with_two_sites().await;
    let before = serial(&perennial, NAME).await;
    let refused = perennial.cli(&["certs", "delete", NAME]).await;
    assert!(!refused.success());
    assert!(
        refused.stderr.contains("is the name of a site"),
        "{}",
        refused.stderr
    );
    assert!(directory(&perennial, NAME).exists());

    perennial.rewrite_config(&site(OTHER, "internal", &["respond:hello"]));
    assert_eq!(perennial.admin_post("/reload").await.0, 200);
    let done = perennial.cli(&["certs", "delete", NAME]).await;
    let done = done.assert_success();
    let archived = only_entry(
        &perennial
            .place
            .state()
            .join("archive")
            .join(NAME)
            .join("p256"),
    );
    assert!(
        done.stdout.contains(&archived.display().to_string()),
        "{}",
        done.stdout
    );
    assert!(archived.join("current/privkey.pem").exists());
    assert!(!directory(&perennial, NAME).exists());
    // Nothing better has come, so it goes on being served.
    assert_eq!(serial(&perennial, NAME).await, before);
    let again = perennial.cli(&["certs", "delete", NAME]).await;
    assert!(
        again.stderr.contains("no certificate of ours"),
        "{}",
        again.stderr
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn by_force_and_then_a_new_one_comes() {
    let perennial = with_two_sites().await;
    let before = serial(&perennial, NAME).await;
    let done = perennial
        .cli(&["certs", "delete", NAME, "--force", "--json"])
        .await;
    let done = done.assert_success().json();
    assert_eq!(
        (&done["used"], done["archived"].as_array().map(Vec::len)),
        (&true.into(), Some(1))
    );
    wait_until(SOON, "a new certificate", async || {
        (serial(&perennial, NAME).await != before).then_some(())
    })
    .await;
}

/// The month is over before the process starts: what it keeps of that is written by the test.
#[tokio::test(flavor = "multi_thread")]
async fn by_itself_when_no_site_has_had_it_for_a_month() {
    let mut perennial = with_two_sites().await;
    let kept = serial(&perennial, OTHER).await;
    perennial.rewrite_config(&site(OTHER, "internal", &["respond:hello"]));
    perennial.restart().await;
    let note = perennial.place.state().join("ledger/unused.json");
    let text = wait_until(SOON, "a note of what is unused", async || {
        std::fs::read_to_string(&note).ok()
    })
    .await;
    let unused: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert!(unused.get(format!("{NAME}/p256")).is_some(), "{unused}");
    assert!(unused.get(format!("{OTHER}/p256")).is_none(), "{unused}");
    perennial.kill9();
    let month_ago = format!(r#"{{"{NAME}/p256": "2026-01-01T00:00:00Z"}}"#);
    std::fs::write(&note, month_ago).expect("written");
    let old = directory(&perennial, OTHER).join("20200101T000000Z-0001");
    let previous = directory(&perennial, OTHER).join("20200102T000000Z-0001");
    for path in [&old, &previous] {
        std::fs::create_dir(path).expect("a folder");
    }
    perennial.start_and_wait().await;
    perennial
        .wait_for_log("cleaned up the state directory", SOON)
        .await;
    assert!(!directory(&perennial, NAME).exists());
    only_entry(
        &perennial
            .place
            .state()
            .join("archive")
            .join(NAME)
            .join("p256"),
    );
    assert!(!old.exists() && previous.exists());
    assert_eq!(serial(&perennial, OTHER).await, kept);
}
