//! Names that are had on demand and have a certificate from elsewhere: from files, from an import,
//! from the time when a site had the name. And the way back.

use serde_json::Value;
use time::{Duration, OffsetDateTime};

use crate::support::certs::{KeyKind, TestCa};
use crate::support::client::{served, served_patiently};
use crate::support::perennial::Perennial;
use crate::support::place::Place;
use crate::support::scripted_ca::{Kind, RenewalInfoAnswer, ScriptedCa};
use crate::support::sites::site;
use crate::support::wait::{SOON, wait_until};
use crate::support::writers::Pair;

const NAME: &str = "shop.customer.test";

/// A site for every name in the domain.
fn on_demand(ca: &ScriptedCa) -> String {
    format!(
        "{}[acme.on_demand]\nallow = [\"customer.test\"]\n[[sites]]\nhosts = [\"*\"]\n\
         on_demand = true\nupstreams = [\"respond:hello\"]\n",
        ca.acme_table()
    )
}

/// The serial number of what is served, once there is anything.
async fn any(perennial: &Perennial) -> String {
    wait_until(SOON, "a certificate", async || {
        let shown = served(perennial.place.https, Some(NAME)).await.ok()?;
        Some(shown.serial)
    })
    .await
}

async fn another(perennial: &Perennial, than: &str) -> String {
    wait_until(SOON, "another certificate", async || {
        let serial = served(perennial.place.https, Some(NAME)).await.ok()?.serial;
        (serial != than).then_some(serial)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_file_does_not_stand_in_the_way() {
    let place = Place::new();
    let ca = ScriptedCa::start(&place).await;
    let now = OffsetDateTime::now_utc();
    let (begin, end) = (now - Duration::days(90), now - Duration::DAY);
    let expired = TestCa::new().leaf_with(&[NAME], begin, end, KeyKind::P256);
    let files = Pair::write(&place.path("tls"), &expired).table();
    let perennial = Perennial::run(place, &format!("{files}{}", on_demand(&ca))).await;
    let shown = served_patiently(perennial.place.https, NAME).await;
    let shown = shown.expect("a certificate");
    assert_eq!(ca.serials(), [shown.serial]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_site_had_is_had_on_demand_and_by_a_site_again() {
    let place = Place::new();
    let ca = ScriptedCa::start(&place).await;
    let of_site = format!("{}{}", ca.acme_table(), site(NAME, "acme", &["respond:hi"]));
    let mut perennial = Perennial::run(place, &of_site).await;
    let https = perennial.place.https;
    let first = any(&perennial).await;

    perennial.rewrite_config(&on_demand(&ca));
    perennial.restart().await;
    // Nobody has asked for it since the start.
    perennial.renew(NAME).await;
    wait_until(SOON, "a second certificate", async || {
        (ca.serials().len() == 2).then_some(())
    })
    .await;
    let second = another(&perennial, &first).await;
    let state = perennial.place.state();
    assert!(
        state
            .join(format!("on-demand/{NAME}/p256/current"))
            .exists()
    );
    assert!(!state.join(format!("certificates/{NAME}")).exists());

    // A reload does as well.
    perennial.rewrite_config(&of_site);
    let own = state.join(format!("certificates/{NAME}/p256/current"));
    wait_until(SOON, "it to be the site's", async || {
        own.exists().then_some(())
    })
    .await;
    perennial.restart().await;
    perennial.wait_ready().await;
    let third = served(https, Some(NAME)).await.expect("a certificate");
    assert_eq!(third.serial, second);
    assert_eq!(ca.count(Kind::NewOrder), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_revoked_is_replaced_when_somebody_asks() {
    let place = Place::new();
    let ca = ScriptedCa::start(&place).await;
    let mut perennial = Perennial::run(place, &on_demand(&ca)).await;
    let https = perennial.place.https;
    let first = served_patiently(https, NAME).await.expect("a certificate");
    perennial.restart().await;
    let revoke = ["certs", "revoke", NAME, "--reason", "keyCompromise"];
    perennial.cli(&revoke).await.assert_success();
    another(&perennial, &first.serial).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_another_type_of_key_is_what_the_first_of_this_type_replaces() {
    let place = Place::new();
    let ca = ScriptedCa::start(&place).await;
    let far = RenewalInfoAnswer::window("2090-01-01T00:00:00Z", "2090-01-02T00:00:00Z");
    ca.script(|script| script.renewal_info = Some(far));
    let sites = site(NAME, "acme", &["respond:hi"]);
    let with = |key_type: &str| format!("{}key_type = \"{key_type}\"\n{sites}", ca.acme_table());
    let mut perennial = Perennial::run(place, &with("p256")).await;
    let first = any(&perennial).await;
    perennial.rewrite_config(&with("p384"));
    perennial.restart().await;
    another(&perennial, &first).await;
    let replaces = ca.replaces();
    assert!(matches!(&replaces[..], [None, Some(_)]), "{replaces:?}");
    let ledger = perennial.place.state().join("ledger/subjects");
    let ledger = std::fs::read(ledger.join(format!("{NAME}.p384.json"))).expect("a ledger");
    let ledger: Value = serde_json::from_slice(&ledger).expect("JSON");
    let reasons: Vec<&Value> = ledger["records"]
        .as_array()
        .expect("records")
        .iter()
        .filter(|record| record["kind"] == "order")
        .map(|record| &record["reason"])
        .collect();
    assert_eq!(reasons, ["key-type-changed"]);
}
