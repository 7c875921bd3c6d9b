//! A state directory that nobody can write to: what is there, and what other people's files hold, is
//! served; what cannot be ordered is told with its cause, and once.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use crate::support::certs::TestCa;
use crate::support::client::serial;
use crate::support::perennial::Perennial;
use crate::support::place::Place;
use crate::support::sites::site;
use crate::support::wait::{SOON, never_within, wait_until};
use crate::support::writers::Pair;

const FROM_FILES: &str = "files.example.test";
const OURS: &str = "ours.example.test";
const TOLD: &str = "no certificate can be ordered";
/// Longer than the writer lock is left alone.
const ANOTHER_TRY: Duration = Duration::from_secs(6);

/// A site with files from a drop folder, and one that the internal CA is for.
fn rest(place: &Place) -> (String, String) {
    let leaf = TestCa::new().leaf(&[FROM_FILES]);
    let pair = Pair::write(&place.path("certs/files"), &leaf);
    // Nothing else is to be warned of.
    let private = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(&pair.key, private).expect("a mode");
    let folder = place.path("certs").display().to_string();
    let sites = [(FROM_FILES, "files"), (OURS, "internal")];
    let sites = sites.map(|(host, tls)| site(host, tls, &["respond:hello"]));
    let text = format!(
        "[certificates]\ndirectories = [{folder:?}]\n{}",
        sites.concat()
    );
    (text, leaf.serial)
}

async fn readyz(perennial: &Perennial) -> serde_json::Value {
    let (_, body) = perennial.admin_get("/readyz").await;
    serde_json::from_str(&body).expect("JSON")
}

/// Served, and told everywhere with its cause; `cause` is in each text.
async fn told_everywhere(perennial: &Perennial, leaf: &str, cause: &str) {
    wait_until(SOON, "the certificate of the files", async || {
        let served = serial(perennial.place.https, FROM_FILES).await.ok()?;
        (served == leaf).then_some(())
    })
    .await;
    let has = |text: &str| {
        assert!(text.contains("nothing can be written"), "{text}");
        assert!(text.contains(cause), "no {cause:?} in: {text}");
    };
    wait_until(SOON, "a warning", async || {
        let ready = readyz(perennial).await;
        ready["warnings"].as_array()?.first().cloned()
    })
    .await;
    let ready = readyz(perennial).await;
    has(&ready["warnings"].to_string());
    let reasons = ready["reasons"].to_string();
    assert!(
        reasons.contains(OURS) && !reasons.contains(FROM_FILES),
        "{reasons}"
    );
    has(&perennial.status_json().await["warnings"].to_string());
    has(&perennial.last_error(OURS).await);
    let renewed = perennial.cli(&["certs", "renew", OURS]).await;
    assert!(!renewed.success());
    has(&renewed.stderr);
    assert!(!renewed.stderr.contains("another process"), "{renewed:#?}");
    never_within(ANOTHER_TRY, async || {
        let lines = perennial.log_lines_with(TOLD);
        (lines.len() != 1).then(|| format!("not one line: {lines:#?}"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_written_is_no_other_process() {
    let place = Place::new();
    let (rest, leaf) = rest(&place);
    // Root may write anywhere, but not into a directory as if it were a file.
    let lock = place.state().join("perennial.lock");
    std::fs::create_dir_all(&lock).expect("a directory in its place");
    let perennial = Perennial::run(place, &rest).await;
    told_everywhere(&perennial, &leaf, "perennial.lock").await;
    // Mended, it goes on by itself.
    std::fs::remove_dir(&lock).expect("empty");
    wait_until(SOON, "a certificate of the internal CA", async || {
        let ready = readyz(&perennial).await;
        (ready["ready"] == true).then_some(())
    })
    .await;
    let ready = readyz(&perennial).await;
    assert_eq!(ready["warnings"].to_string(), "[]");
    assert_eq!(perennial.status_field(OURS, "last_error").await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_directory_that_cannot_be_made_stops_nobody() {
    let place = Place::new();
    let (rest, leaf) = rest(&place);
    // Nobody makes directories there, root included.
    let state = "/sys/perennial-e2e";
    let table = place.server_table();
    let table = table.replace(&place.state().display().to_string(), state);
    let mut perennial = Perennial::with_whole_config(place, &format!("{table}{rest}"));
    perennial.start_and_wait().await;
    told_everywhere(&perennial, &leaf, state).await;
}
