//! Certificates on demand: who may have one, what happens when there is none to be had, and what
//! a server still knows after a restart.

use std::time::{Duration, Instant};

use crate::support::client::{served, served_patiently};
use crate::support::perennial::Perennial;
use crate::support::permission::{PermissionServer, Say};
use crate::support::place::Place;
use crate::support::scripted_ca::{Kind, ScriptedCa, Validation};
use crate::support::sites::FileTls;
use crate::support::wait::{SOON, wait_until};

const NAME: &str = "shop.customer.test";

/// A site for every name; `settings` is what `[acme.on_demand]` says.
fn config(ca: &ScriptedCa, settings: &str) -> String {
    format!(
        "{}[acme.on_demand]\n{settings}\n[[sites]]\nhosts = [\"*\"]\non_demand = true\n\
         upstreams = [\"respond:hello\"]\n",
        ca.acme_table()
    )
}

fn ask(permission: &PermissionServer) -> String {
    format!("ask = \"{}\"\nask_timeout = \"1s\"", permission.url)
}

/// # Panics
/// If a certificate is shown, or another alert than that for unknown names.
async fn refused(perennial: &Perennial, name: &str) {
    let shown = served_patiently(perennial.place.https, name).await;
    let error = shown.map(|served| served.serial).expect_err(name);
    assert!(error.contains("UnrecognisedName"), "{name}: {error}");
}

async fn status(perennial: &Perennial) -> serde_json::Value {
    perennial.status_json().await["on_demand"].clone()
}

/// Each answer that is no yes: the handshake is refused, nothing is ordered, and the next one for
/// the name asks nobody.
async fn not_permitted(say: Say, answer: &str) {
    const HANDSHAKES: usize = 3;
    let place = Place::new();
    let ca = ScriptedCa::start(&place).await;
    let permission = PermissionServer::start(&place, say).await;
    let perennial = Perennial::run(place, &config(&ca, &ask(&permission))).await;
    for _ in 0..HANDSHAKES {
        refused(&perennial, NAME).await;
    }
    // That nobody could say anything holds for some seconds only.
    let questions = permission.asked().len();
    let most = if answer == "no" { 1 } else { HANDSHAKES - 1 };
    assert!((1..=most).contains(&questions), "{questions} questions");
    assert_eq!(ca.count(Kind::NewOrder), 0);
    let status = status(&perennial).await;
    assert_eq!(status["refusals"][0]["name"], NAME, "{status}");
    let cause = status["refusals"][0]["cause"].as_str().expect("a text");
    assert!(cause.starts_with("no permission"), "{cause}");
    let answers = format!("answer=\"{answer}\"");
    let metric = "perennial_on_demand_questions_total";
    let counted = perennial.metric(metric, &[&answers]).await;
    assert_eq!(counted, Some(questions as f64));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_no_is_a_no() {
    not_permitted(Say::Status(403), "no").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_is_not_followed() {
    not_permitted(Say::Redirect, "no").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_is_no_permission() {
    not_permitted(Say::Status(500), "unknown").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_is_no_permission() {
    not_permitted(Say::Nothing, "unknown").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_serves_from_disk_and_asks_nobody() {
    let place = Place::new();
    let ca = ScriptedCa::start(&place).await;
    let permission = PermissionServer::start(&place, Say::Yes).await;
    let mut perennial = Perennial::run(place, &config(&ca, &ask(&permission))).await;
    let https = perennial.place.https;
    let first = served_patiently(https, NAME).await.expect("a certificate");
    assert_eq!(ca.serials(), std::slice::from_ref(&first.serial));
    ca.stop().await;
    permission.stop().await;
    perennial.restart().await;
    assert_eq!(
        status(&perennial).await["loaded"],
        0,
        "not before it is asked for"
    );
    let second = served_patiently(https, NAME).await.expect("from disk");
    assert_eq!(second.serial, first.serial);
    assert_eq!(permission.asked().len(), 1);
    let metric = "perennial_on_demand_total";
    let from_disk = perennial.metric(metric, &["result=\"disk\""]).await;
    assert_eq!(from_disk, Some(1.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_whose_order_failed_is_not_ordered_for_each_handshake() {
    let place = Place::new();
    let ca = ScriptedCa::start(&place).await;
    ca.script(|script| {
        script.validation = Validation::Never;
        // One challenge: after it there is nothing else to try.
        script.challenges = vec!["http-01"];
    });
    let permission = PermissionServer::start(&place, Say::Yes).await;
    let mut perennial = Perennial::run(place, &config(&ca, &ask(&permission))).await;
    for _ in 0..5 {
        refused(&perennial, NAME).await;
    }
    let orders = ca.count(Kind::NewOrder);
    assert_eq!((orders, permission.asked().len()), (1, 1));
    let seen = status(&perennial).await;
    assert_eq!(seen["refused_names"], 1, "{seen}");
    let cause = seen["refusals"][0]["cause"].as_str().expect("a text");
    assert!(cause.contains("the script says no"), "{cause}");
    let printed = perennial.cli(&["status"]).await.assert_success().stdout;
    assert!(printed.contains("1 name(s) refused"), "{printed}");
    assert!(
        printed.contains(NAME) && printed.contains("the script says no"),
        "{printed}"
    );
    // Neither does a restart, which forgets the refusal and not the ledger.
    perennial.restart().await;
    refused(&perennial, NAME).await;
    assert_eq!(ca.count(Kind::NewOrder), 1);
    assert_eq!(permission.asked().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_authority_costs_the_wait_and_nobody_else_anything() {
    const WAIT: Duration = Duration::from_secs(12);
    let place = Place::new();
    let ca = ScriptedCa::start(&place).await;
    ca.script(|script| script.validation = Validation::PendingForEver);
    let tls = FileTls::new(&place, &["known.test"]);
    let files = format!(
        "threads = 1\n[[certificates.files]]\ncertificate = {:?}\nprivate_key = {:?}\n",
        tls.pair.certificate, tls.pair.key
    );
    let known =
        "[[sites]]\nhosts = [\"known.test\"]\ntls = \"files\"\nupstreams = [\"respond:hi\"]\n";
    let settings = "allow = [\"customer.test\"]\nwait = \"12s\"";
    let rest = format!("{files}{}{known}", config(&ca, settings));
    let perennial = Perennial::run(place, &rest).await;
    let https = perennial.place.https;
    wait_until(SOON, "the known site", async || {
        served(https, Some("known.test")).await.ok()
    })
    .await;

    let begun = Instant::now();
    let waiting = tokio::spawn(served_patiently(https, NAME));
    wait_until(SOON, "a handshake that waits", async || {
        (status(&perennial).await["waiting"] == 1).then_some(())
    })
    .await;
    // The only thread serves others meanwhile.
    served(https, Some("known.test")).await.expect("served");
    assert!(!waiting.is_finished());
    let error = waiting.await.expect("no panic").expect_err("in vain");
    assert!(error.contains("UnrecognisedName"), "{error}");
    assert!(begun.elapsed() >= WAIT, "{:?}", begun.elapsed());
    assert_eq!(status(&perennial).await["waiting"], 0);
    let metric = "perennial_on_demand_total";
    let timeouts = perennial.metric(metric, &["result=\"timeout\""]).await;
    assert_eq!(timeouts, Some(1.0));
    // The order goes on behind it.
    assert_eq!(status(&perennial).await["fetching"], 1);
    assert_eq!(ca.count(Kind::NewOrder), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_neither_allowed_nor_a_name_never_reaches_an_authority() {
    let place = Place::new();
    let ca = ScriptedCa::start(&place).await;
    let settings = "allow = [\"customer.test\"]";
    let own = "[[sites]]\nhosts = [\"own.customer.test\"]\ntls = \"internal\"\nupstreams = [\"respond:hi\"]\n";
    let rest = format!("{}{own}", config(&ca, settings));
    let mut perennial = Perennial::run(place, &rest).await;
    perennial.wait_ready().await;
    let https = perennial.place.https;
    for name in [
        "other.test",
        "customer.test.evil.test",
        "notcustomer.test",
        "host",
    ] {
        refused(&perennial, name).await;
    }
    let error = served(https, None).await.expect_err("no name");
    assert!(error.contains("UnrecognisedName"), "{error}");
    // A site of its own comes first.
    let own = served(https, Some("own.customer.test"))
        .await
        .expect("served");
    assert!(!own.issuer.contains("e2e"), "{own:?}");
    assert_eq!(ca.requests().len(), 0);
    let shown = served_patiently(https, "deep.shop.customer.test").await;
    assert_eq!(shown.expect("allowed").names, ["deep.shop.customer.test"]);
    let status = status(&perennial).await;
    assert_eq!(status["refused_names"], 0, "{status}");
    assert_eq!(ca.count(Kind::NewOrder), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_default_certificate_is_for_those_that_have_none_on_demand() {
    let place = Place::new();
    let ca = ScriptedCa::start(&place).await;
    let tls = FileTls::new(&place, &["known.test"]);
    let files = format!(
        "[certificates]\ndefault = \"known.test\"\n[[certificates.files]]\ncertificate = {:?}\nprivate_key = {:?}\n",
        tls.pair.certificate, tls.pair.key
    );
    let rest = format!("{files}{}", config(&ca, "allow = [\"customer.test\"]"));
    let perennial = Perennial::run(place, &rest).await;
    let https = perennial.place.https;
    let shown = served_patiently(https, NAME).await.expect("its own");
    assert_eq!(shown.names, [NAME]);
    let other = served(https, Some("other.test"))
        .await
        .expect("the default");
    assert_eq!(other.names, ["known.test"]);
    // Nor does a failure leave the client with less.
    ca.stop().await;
    let failed = served_patiently(https, "next.customer.test").await;
    assert_eq!(failed.expect("the default").names, ["known.test"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_can_be_had_as_soon_as_a_new_configuration_allows_them() {
    let place = Place::new();
    let ca = ScriptedCa::start(&place).await;
    let perennial = Perennial::run(place, &config(&ca, "allow = [\"other.test\"]")).await;
    let https = perennial.place.https;
    refused(&perennial, NAME).await;
    perennial.rewrite_config(&config(&ca, "allow = [\"other.test\", \"customer.test\"]"));
    let (code, body) = perennial.admin_post("/reload").await;
    assert_eq!(code, 200, "{body}");
    let shown = served_patiently(https, NAME).await.expect("allowed now");
    assert_eq!(shown.names, [NAME]);
    // Without on-demand there is nothing left of it.
    let plain =
        "[[sites]]\nhosts = [\"own.test\"]\ntls = \"internal\"\nupstreams = [\"respond:hi\"]\n";
    perennial.rewrite_config(&format!("{}{plain}", ca.acme_table()));
    let (code, body) = perennial.admin_post("/reload").await;
    assert_eq!(code, 200, "{body}");
    refused(&perennial, NAME).await;
    assert!(status(&perennial).await.is_null());
    assert_eq!(ca.count(Kind::NewOrder), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limits_of_an_authority_hold_for_strangers_names() {
    let place = Place::new();
    let ca = ScriptedCa::start(&place).await;
    let limits = "[acme.limits]\nnew_orders = \"1/1d\"\n";
    let rest = config(&ca, "allow = [\"customer.test\"]");
    let perennial = Perennial::run(
        place,
        &rest.replacen("[acme.on_demand]", &format!("{limits}[acme.on_demand]"), 1),
    )
    .await;
    let shown = served_patiently(perennial.place.https, NAME).await;
    assert_eq!(shown.expect("the first").names, [NAME]);
    for _ in 0..3 {
        refused(&perennial, "next.customer.test").await;
    }
    assert_eq!(ca.count(Kind::NewOrder), 1);
    let seen = status(&perennial).await;
    let cause = seen["refusals"][0]["cause"].as_str().expect("a text");
    assert!(cause.contains("limit of 1 in 1d new orders"), "{cause}");
}

/// The handshake is on a connection of the old process: nobody else can finish it.
#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_that_waits_during_a_hand_over_is_finished() {
    let place = Place::new();
    let ca = ScriptedCa::start(&place).await;
    let permission = PermissionServer::start(&place, Say::Wait).await;
    let settings = format!("ask = \"{}\"\nask_timeout = \"10s\"", permission.url);
    let mut perennial = Perennial::run(place, &config(&ca, &settings)).await;
    let https = perennial.place.https;
    let waits = tokio::spawn(async move { served_patiently(https, NAME).await });
    wait_until(SOON, "the question", async || {
        (!permission.asked().is_empty()).then_some(())
    })
    .await;
    let admin = perennial.place.admin.to_string();
    let upgraded = tokio::spawn(async move {
        crate::support::perennial::cli(&["upgrade", "--admin", &admin]).await
    });
    // The new one could take over now, and waits for the old one.
    wait_until(SOON, "the new process to be ready", async || {
        let loads = perennial.log_lines_with("first load done");
        (loads.len() == 2).then_some(())
    })
    .await;
    permission.say(Say::Yes);
    let served = waits.await.expect("no panic").expect("a certificate");
    assert_eq!(ca.count(Kind::NewOrder), 1, "{}", served.serial);
    let upgraded = upgraded.await.expect("no panic").assert_success();
    let pid = upgraded.stdout.split_whitespace().nth(1).expect("its id");
    perennial.adopt(pid.parse().expect("a number"));
    // The new one has it from disk.
    let again = served_patiently(https, NAME).await.expect("a certificate");
    assert_eq!(again.serial, served.serial);
    assert_eq!(perennial.wait_exit(SOON).await.code(), Some(0));
}
