//! Renewal of certificates on demand: for names that are asked for, and with permission.

use std::time::Duration;

use crate::support::client::{self, served_patiently};
use crate::support::perennial::Perennial;
use crate::support::permission::{PermissionServer, Say};
use crate::support::place::Place;
use crate::support::scripted_ca::{RenewalInfoAnswer, ScriptedCa};
use crate::support::wait::{SOON, wait_until};

const NAME: &str = "shop.customer.test";

fn config(ca: &ScriptedCa, settings: &str) -> String {
    format!(
        "{}[acme.on_demand]\n{settings}\n[[sites]]\nhosts = [\"*\"]\non_demand = true\n\
         upstreams = [\"respond:hello\"]\n",
        ca.acme_table()
    )
}

/// A server with a certificate for one name, which is looked after.
async fn started() -> (Perennial, ScriptedCa, PermissionServer, String) {
    let place = Place::new();
    let ca = ScriptedCa::start(&place).await;
    let far = RenewalInfoAnswer::window("2090-01-01T00:00:00Z", "2090-01-02T00:00:00Z");
    ca.script(|script| script.renewal_info = Some(far));
    let permission = PermissionServer::start(&place, Say::Yes).await;
    let settings = format!("ask = \"{}\"\nask_timeout = \"1s\"", permission.url);
    let perennial = Perennial::run(place, &config(&ca, &settings)).await;
    let serial = serial_now(perennial.place.https, NAME).await;
    wait_until(SOON, "somebody who looks after it", async || {
        let row = perennial.certificate(NAME).await?;
        row["next_renewal"].is_string().then_some(())
    })
    .await;
    (perennial, ca, permission, serial)
}

/// The authority wants it renewed now, and is asked about that.
async fn becomes_due(perennial: &Perennial, ca: &ScriptedCa) {
    let past = RenewalInfoAnswer::window("2020-01-01T00:00:00Z", "2020-01-02T00:00:00Z");
    ca.script(|script| script.renewal_info = Some(past));
    let path = format!("/certificates/{NAME}/renew?if_due=true");
    let (status, body) = perennial.admin_post(&path).await;
    assert_eq!(status, 202, "{body}");
}

async fn renewed(perennial: &Perennial, ca: &ScriptedCa, first: &str) {
    wait_until(SOON, "a new certificate", async || {
        let now = serial_now(perennial.place.https, NAME).await;
        (now != first && ca.serials().get(1) == Some(&now)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn permission_is_asked_for_again() {
    let (perennial, ca, permission, first) = started().await;
    becomes_due(&perennial, &ca).await;
    renewed(&perennial, &ca, &first).await;
    let asked = permission.asked();
    assert_eq!(asked.len(), 2, "{asked:?}");
    assert_eq!(asked[1], format!("domain={NAME}"), "no client asks");
}

#[tokio::test(flavor = "multi_thread")]
async fn people_need_no_permission_to_have_one_renewed() {
    let (perennial, ca, permission, first) = started().await;
    permission.say(Say::Status(403));
    perennial.renew(NAME).await;
    renewed(&perennial, &ca, &first).await;
    assert_eq!(permission.asked().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_permitted_any_more_is_not_renewed() {
    let (perennial, ca, permission, first) = started().await;
    permission.say(Say::Status(403));
    becomes_due(&perennial, &ca).await;
    let error = perennial.last_error(NAME).await;
    assert!(
        error.contains("is not renewed: no permission: the answer is 403"),
        "{error}"
    );
    assert_eq!(permission.asked().len(), 2);
    // What there is is served.
    assert_eq!(serial_now(perennial.place.https, NAME).await, first);
    assert_eq!(ca.serials(), std::slice::from_ref(&first));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_whoever_permits_keeps_nothing_from_being_renewed() {
    let (perennial, ca, permission, first) = started().await;
    permission.stop().await;
    becomes_due(&perennial, &ca).await;
    renewed(&perennial, &ca, &first).await;
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
