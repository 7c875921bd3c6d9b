//! A new process takes over while an authority is about to look at a challenge: whichever process has
//! the order, whoever accepts connections answers for it.

use crate::support::client::{serial, served_patiently};
use crate::support::pebble::{Options, Pebble};
use crate::support::perennial::Perennial;
use crate::support::permission::{PermissionServer, Say};
use crate::support::place::Place;
use crate::support::scripted_ca::{Kind, ScriptedCa, Validation};
use crate::support::sites::site;
use crate::support::wait::{SOON, wait_until};

const NAME: &str = "a.example.test";
const ON_DEMAND: &str = "shop.customer.test";

/// The authority takes its time: it looks when the process that ordered has ended.
async fn looked_at_after_the_end_of_the_old_process(challenge: &str) {
    let place = Place::new();
    let ca = ScriptedCa::start(&place).await;
    ca.script(|script| script.validation = Validation::PendingForEver);
    let site = site(NAME, "acme", &["respond:hello"]);
    let only = format!("challenges = [\"{challenge}\"]\n");
    let mut perennial = Perennial::run(place, &format!("{}{only}{site}", ca.acme_table())).await;
    let told = async || (ca.count(Kind::Challenge) > 0).then_some(());
    wait_until(SOON, "the authority to be told", told).await;
    perennial.upgrade().await;
    assert_eq!(perennial.wait_exit(SOON).await.code(), Some(0));
    assert_eq!(ca.look(challenge).await, Ok(()));
    let https = perennial.place.https;
    let certificate = async || serial(https, NAME).await.ok();
    let served = wait_until(SOON, "the certificate", certificate).await;
    assert_eq!(ca.serials(), [served]);
    assert_eq!(ca.count(Kind::NewOrder), 1, "it goes on with that order");
}

#[tokio::test(flavor = "multi_thread")]
async fn http_01_is_answered_for_an_order_of_the_old_process() {
    looked_at_after_the_end_of_the_old_process("http-01").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_alpn_01_is_answered_for_an_order_of_the_old_process() {
    looked_at_after_the_end_of_the_old_process("tls-alpn-01").await;
}

/// What `[acme.on_demand]` says, and a site for every name.
fn on_demand(permission: &PermissionServer) -> String {
    format!(
        "[acme.on_demand]\nask = \"{}\"\nask_timeout = \"30s\"\n[[sites]]\nhosts = [\"*\"]\n\
         on_demand = true\nupstreams = [\"respond:hello\"]\n",
        permission.url
    )
}

/// A client waits in its handshake with the old process, whose order begins when the new one serves;
/// a second one, of the new process, waits until that may order.
async fn ordered_by_the_old_process_while_the_new_one_serves(
    place: Place,
    rest: &str,
    permission: &PermissionServer,
) -> Perennial {
    let mut perennial = Perennial::run(place, rest).await;
    let https = perennial.place.https;
    let first = tokio::spawn(served_patiently(https, ON_DEMAND));
    let asked = async || (!permission.asked().is_empty()).then_some(());
    wait_until(SOON, "the first handshake", asked).await;
    let admin = perennial.place.admin.to_string();
    let upgrade = tokio::spawn(async move {
        let upgrade = ["upgrade", "--admin", &admin];
        crate::support::perennial::cli(&upgrade).await
    });
    let serves = async || {
        let banners = perennial.log_lines_with("serving every other name");
        (banners.len() == 2).then_some(())
    };
    wait_until(SOON, "the new process to serve", serves).await;
    assert!(!first.is_finished());
    assert!(!upgrade.is_finished(), "the old one has a client");
    let second = tokio::spawn(served_patiently(https, "other.customer.test"));
    let asked = async || (permission.asked().len() == 2).then_some(());
    wait_until(SOON, "the second handshake", asked).await;
    permission.say(Say::Yes);
    for (client, name) in [(first, ON_DEMAND), (second, "other.customer.test")] {
        let served = client.await.expect("no panic").expect("a certificate");
        assert_eq!(served.names, [name]);
    }
    let upgraded = upgrade.await.expect("no panic").assert_success();
    let pid = upgraded.stdout.split_whitespace().nth(1).expect("its id");
    perennial.adopt(pid.parse().expect("a number"));
    assert_eq!(perennial.wait_exit(SOON).await.code(), Some(0));
    perennial
}

#[tokio::test(flavor = "multi_thread")]
async fn on_demand_orders_are_finished_by_the_old_process() {
    let place = Place::new();
    let ca = ScriptedCa::start(&place).await;
    ca.script(|script| script.validation = Validation::Real);
    let permission = PermissionServer::start(&place, Say::Wait).await;
    let rest = format!("{}{}", ca.acme_table(), on_demand(&permission));
    ordered_by_the_old_process_while_the_new_one_serves(place, &rest, &permission).await;
    assert_eq!(ca.count(Kind::NewOrder), 2);
    assert_eq!(ca.count(Kind::Finalize), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn pebble_finds_the_answers_of_the_old_process() {
    let place = Place::new();
    let Some(pebble) = Pebble::start(&place, Options::default()).await else {
        return;
    };
    let permission = PermissionServer::start(&place, Say::Wait).await;
    let rest = format!("{}{}", pebble.acme_table(), on_demand(&permission));
    ordered_by_the_old_process_while_the_new_one_serves(place, &rest, &permission).await;
    assert_eq!(pebble.orders(), 2, "{}", pebble.log());
}
