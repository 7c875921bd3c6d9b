//! Renewal of certificates on demand: for names that are asked for, and with permission.

use std::time::Duration;

use crate::support::client::{self, served_patiently};
use crate::support::perennial::Perennial;
use crate::support::permission::{PermissionServer, Say};
use crate::support::place::Place;
use crate::support::scripted_ca::ScriptedCa;
use crate::support::wait::{SOON, wait_until};

const NAME: &str = "shop.customer.test";

fn config(ca: &ScriptedCa, settings: &str) -> String {
    format!(
        "{}[acme.on_demand]\n{settings}\n[[sites]]\nhosts = [\"*\"]\non_demand = true\n\
         upstreams = [\"respond:hello\"]\n",
        ca.acme_table()
    )
}

/// A server with a short-lived certificate for one name.
async fn started(say: Say) -> (Perennial, ScriptedCa, PermissionServer, String) {
    let place = Place::new();
    let ca = ScriptedCa::start(&place).await;
    ca.script(|script| script.lifetime = Duration::from_secs(16));
    let permission = PermissionServer::start(&place, say).await;
    let settings = format!("ask = \"{}\"\nask_timeout = \"1s\"", permission.url);
    let perennial = Perennial::run(place, &config(&ca, &settings)).await;
    let serial = serial_now(perennial.place.https, NAME).await;
    (perennial, ca, permission, serial)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_permitted_any_more_is_not_renewed() {
    let (perennial, ca, permission, first) = started(Say::Yes).await;
    permission.say(Say::Status(403));
    let error = wait_until(SOON, "the refusal of a renewal", async || {
        // Somebody asks all the time.
        serial_now(perennial.place.https, NAME).await;
        let error = perennial.status_field(NAME, "last_error").await?;
        let error = error.as_str()?.to_owned();
        error.contains("is not renewed").then_some(error)
    })
    .await;
    assert!(error.contains("the answer is 403"), "{error}");
    assert_eq!(ca.serials(), std::slice::from_ref(&first));
    let asked = permission.asked();
    assert_eq!(asked.len(), 2, "{asked:?}");
    assert_eq!(asked[1], format!("domain={NAME}"));
    assert_eq!(serial_now(perennial.place.https, NAME).await, first);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_whoever_permits_keeps_nothing_from_being_renewed() {
    let (perennial, _ca, permission, first) = started(Say::Yes).await;
    permission.stop().await;
    wait_until(SOON, "a renewal", async || {
        let now = serial_now(perennial.place.https, NAME).await;
        (now != first).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_nobody_asks_for_any_more_is_not_renewed() {
    const LIFETIME: Duration = Duration::from_secs(16);
    let place = Place::new();
    let ca = ScriptedCa::start(&place).await;
    ca.script(|script| script.lifetime = LIFETIME);
    let perennial = Perennial::run(place, &config(&ca, "allow = [\"customer.test\"]")).await;
    let https = perennial.place.https;
    let idle = served_patiently(https, "idle.customer.test")
        .await
        .expect("one");
    let busy = served_patiently(https, "busy.customer.test")
        .await
        .expect("one");
    let issued_for = |name: &str| {
        let chains = ca.issued();
        let has = |pem: &&String| client::names_of_pem(pem).iter().any(|one| one == name);
        chains.iter().filter(has).count()
    };
    wait_until(
        LIFETIME * 4,
        "busy.customer.test to be renewed twice",
        async || {
            let now = served_patiently(https, "busy.customer.test").await;
            assert!(now.is_ok(), "served without a gap: {now:?}");
            let expired =
                idle.not_after.unix_timestamp() < crate::support::clock::now().unix_timestamp();
            (issued_for("busy.customer.test") >= 3 && expired).then_some(())
        },
    )
    .await;
    assert_eq!(issued_for("idle.customer.test"), 1);
    assert_ne!(serial_now(https, "busy.customer.test").await, busy.serial);
    // Whoever asks again waits for a new one, rather than be shown what has expired.
    let again = served_patiently(https, "idle.customer.test")
        .await
        .expect("a new one");
    assert_ne!(again.serial, idle.serial);
    assert_eq!(issued_for("idle.customer.test"), 2);
}

async fn serial_now(https: std::net::SocketAddr, name: &str) -> String {
    served_patiently(https, name).await.expect("served").serial
}
