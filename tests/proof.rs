//! The process shows that what it loaded is what it serves: a handshake of its own after each
//! swap, and three fingerprints in `/status`.

use std::fs;

use serde_json::Value;

use crate::reload::{EVENTS, start, wait_served};
use crate::support::certs::Leaf;
use crate::support::client::served;
use crate::support::perennial::Perennial;
use crate::support::place::Place;
use crate::support::sites::{FileTls, site};
use crate::support::wait::{SOON, wait_until};

const NAMES: [&str; 2] = ["a.example.test", "*.b.example.test"];
const HANDSHAKES: &str = "perennial_tls_handshakes_total";

async fn scene() -> (Perennial, FileTls) {
    let place = Place::new();
    let files = FileTls::new(&place, &NAMES);
    let perennial = start(place, &format!("{EVENTS}{}", files.pair.table())).await;
    (perennial, files)
}

/// The certificate's entry, once its leaf was seen on the listener.
async fn wait_proved(perennial: &Perennial, leaf: &Leaf) -> Value {
    let what = format!("{} to be seen on the listener", leaf.fingerprint);
    wait_until(SOON, &what, async || {
        let entry = perennial.certificate(NAMES[0]).await?;
        let served = entry["fingerprints"]["served"]["fingerprint"].as_str();
        (served == Some(&leaf.fingerprint)).then_some(entry)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_swap_the_process_proves_what_it_serves() {
    let (perennial, files) = scene().await;
    wait_proved(&perennial, &files.leaf).await;
    let new = files.ca.leaf(&NAMES);
    files.pair.overwrite(&new);
    let entry = wait_proved(&perennial, &new).await;
    for place in ["on_disk", "loaded", "served"] {
        let sighting = &entry["fingerprints"][place];
        assert_eq!(sighting["fingerprint"], new.fingerprint, "{place}: {entry}");
        assert!(sighting["seen_at"].is_string(), "{place}: {entry}");
    }
    assert_eq!(entry["difference"], Value::Null, "{entry}");
    for name in NAMES {
        wait_until(SOON, "both names to be looked at", async || {
            let label = format!("name=\"{name}\"");
            let metric = "perennial_certificate_served_differs";
            let differs = perennial.metric(metric, &[&label]).await?;
            (differs == 0.0).then_some(())
        })
        .await;
    }
    let line = perennial.wait_for_log("certificate replaced", SOON).await;
    for part in [&new.serial, &files.leaf.serial, "seen_ms", "not_after"] {
        assert!(line.contains(part), "{part} is not in {line}");
    }
    let shown = perennial.cli(&["certs", "show", NAMES[0]]).await;
    let shown = shown.assert_success().stdout;
    assert_eq!(shown.matches(&new.fingerprint).count(), 4, "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_that_wants_client_certificates_is_proved_as_well() {
    let place = Place::new();
    let files = FileTls::new(&place, &NAMES);
    let site = site(NAMES[0], "files", &["respond:hello"]);
    let auth = format!("[sites.client_auth]\nca = \"{}\"\n", files.root.display());
    let config = format!("{}{site}{auth}", files.pair.table());
    let perennial = Perennial::run(place, &config).await;
    let entry = wait_proved(&perennial, &files.leaf).await;
    assert_eq!(entry["difference"], Value::Null, "{entry}");
}

#[tokio::test(flavor = "multi_thread")]
async fn proof_follows_the_listener_to_a_new_address() {
    let (perennial, files) = scene().await;
    wait_proved(&perennial, &files.leaf).await;
    let site = site(NAMES[0], "files", &["respond:hello"]);
    let free = perennial.place.free();
    let server = perennial.place.server_table();
    let server = server.replace(&perennial.place.https.to_string(), &free.to_string());
    let text = format!("{server}{EVENTS}{}{site}", files.pair.table());
    perennial.place.write("perennial.toml", text);
    wait_until(SOON, "the new address", async || {
        served(free, Some(NAMES[0])).await.ok()
    })
    .await;
    let new = files.ca.leaf(&NAMES);
    files.pair.overwrite(&new);
    let entry = wait_proved(&perennial, &new).await;
    assert_eq!(entry["difference"], Value::Null, "{entry}");
}

#[tokio::test(flavor = "multi_thread")]
async fn its_own_handshakes_are_not_clients() {
    let (perennial, files) = scene().await;
    wait_proved(&perennial, &files.leaf).await;
    let own = wait_until(SOON, "its own handshakes to be counted", async || {
        perennial
            .metric(HANDSHAKES, &["result=\"self_check\""])
            .await
    })
    .await;
    assert!(own >= 1.0, "{own}");
    let ok = ["result=\"ok\""];
    assert_eq!(perennial.metric(HANDSHAKES, &ok).await, None);
    served(perennial.place.https, Some(NAMES[0]))
        .await
        .expect("served");
    let clients = wait_until(SOON, "a client to be counted", async || {
        perennial.metric(HANDSHAKES, &ok).await
    });
    assert_eq!(clients.await, 1.0);
    let loud = perennial.log().into_iter();
    let loud = loud.filter(|line| !line.contains("DEBUG") && line.contains("our own listener"));
    assert_eq!(loud.collect::<Vec<_>>(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_candidate_that_is_not_taken_is_a_difference() {
    let (perennial, files) = scene().await;
    wait_served(&perennial, &files.leaf, SOON).await;
    fs::write(&files.pair.certificate, "no certificate").expect("written");
    let entry = wait_until(SOON, "a difference", async || {
        let entry = perennial.certificate(NAMES[0]).await?;
        entry["difference"].is_string().then_some(entry)
    })
    .await;
    let fingerprints = &entry["fingerprints"];
    assert_eq!(
        fingerprints["loaded"]["fingerprint"],
        files.leaf.fingerprint
    );
    assert_eq!(
        fingerprints["on_disk"]["fingerprint"],
        Value::Null,
        "{entry}"
    );
    files.pair.overwrite(&files.leaf);
    wait_until(SOON, "the difference to go", async || {
        let entry = perennial.certificate(NAMES[0]).await?;
        entry["difference"].is_null().then_some(())
    })
    .await;
}
