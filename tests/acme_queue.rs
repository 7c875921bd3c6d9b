//! More names than may be ordered at once: they wait for their turn, and that is shown; keys are
//! new for each certificate unless they are to be kept.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::support::perennial::Perennial;
use crate::support::place::Place;
use crate::support::scripted_ca::{Kind, ScriptedCa, Validation};
use crate::support::sites::site;
use crate::support::wait::{SOON, wait_until};

fn names(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("n{n}.example.test")).collect()
}

fn config(ca: &ScriptedCa, acme: &str, names: &[String]) -> String {
    let sites: String = names
        .iter()
        .map(|name| site(name, "acme", &["respond:hello"]))
        .collect();
    format!("{}{acme}{sites}", ca.acme_table())
}

fn of_orders(status: &Value) -> Option<Value> {
    let lanes = status["queue"].as_array()?.iter();
    let mut orders = lanes.filter(|lane| lane["work"] == "orders" && lane["ca"] != "internal");
    orders.next().cloned()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_at_a_time_and_the_others_wait_their_turn() {
    let place = Place::new();
    let ca = ScriptedCa::start(&place).await;
    ca.script(|script| script.validation = Validation::PendingForEver);
    let names = names(9);
    let text = config(&ca, "parallel_orders = 2\n", &names);
    let perennial = Perennial::run(place, &text).await;
    let orders = wait_until(SOON, "two that run and seven that wait", async || {
        let orders = of_orders(&perennial.status_json().await)?;
        (orders["running"] == 2 && orders["waiting"]["missing"] == 7).then_some(orders)
    })
    .await;
    assert_eq!(orders["ca"], ca.directory.as_str());
    wait_until(SOON, "two orders", async || {
        (ca.count(Kind::NewOrder) == 2).then_some(())
    })
    .await;
    let labels = ["work=\"orders\"", "priority=\"missing\"", &ca.directory];
    let waiting = perennial.metric("perennial_acme_queue_waiting", &labels);
    assert_eq!(waiting.await, Some(7.0));
    let labels = ["work=\"orders\"", &ca.directory];
    let running = perennial.metric("perennial_acme_queue_running", &labels);
    assert_eq!(running.await, Some(2.0));
    let certificates = perennial.status_json().await;
    let certificates = certificates["certificates"].as_array().expect("a list");
    let queued = certificates.iter().filter(|it| it["queued"] == "missing");
    assert_eq!(queued.count(), 7);
    let shown = perennial.cli(&["status"]).await;
    assert!(
        shown.stdout.contains("2 running, waiting: 7 missing"),
        "{}",
        shown.stdout
    );
    // As soon as the first are done, the others follow, all of them.
    ca.script(|script| script.validation = Validation::Always);
    ca.fail_pending();
    wait_until(SOON, "a certificate for each of the seven", async || {
        let served: BTreeSet<String> = ca.serials().into_iter().collect();
        (served.len() >= 7).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_of_three_lets_three_begin() {
    let place = Place::new();
    let ca = ScriptedCa::start(&place).await;
    let names = names(6);
    let text = config(&ca, "order_rate = \"3/1d\"\n", &names);
    let perennial = Perennial::run(place, &text).await;
    wait_until(SOON, "three certificates and three that wait", async || {
        let orders = of_orders(&perennial.status_json().await)?;
        let waits = orders["running"] == 0 && orders["waiting"]["missing"] == 3;
        (waits && ca.issued().len() == 3).then_some(())
    })
    .await;
    // A configuration with another pace is taken at once.
    perennial.rewrite_config(&config(&ca, "order_rate = \"off\"\n", &names));
    wait_until(SOON, "the other three", async || {
        (ca.issued().len() == 6).then_some(())
    })
    .await;
    assert_eq!(ca.count(Kind::NewOrder), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_of_the_account_is_shown_with_its_date() {
    let place = Place::new();
    let ca = ScriptedCa::start(&place).await;
    let names = names(4);
    let limits = "[acme.limits]\nnew_orders = \"2/12h\"\n";
    let text = config(&ca, limits, &names);
    let perennial = Perennial::run(place, &text).await;
    let orders = wait_until(SOON, "two that a limit holds back", async || {
        let orders = of_orders(&perennial.status_json().await)?;
        let held = orders["held_by"].as_str()?.contains("2 in 12h new orders");
        (held && orders["waiting"]["missing"] == 2 && ca.issued().len() == 2).then_some(orders)
    })
    .await;
    let mut held = 0;
    for name in &names {
        if perennial.status_field(name, "queued").await.is_none() {
            continue;
        }
        held += 1;
        let until = perennial.status_field(name, "next_attempt").await;
        assert_eq!(until.as_ref(), orders.get("held_until"), "{name}");
        let error = perennial.last_error(name).await;
        assert!(error.contains("2 in 12h new orders"), "{error}");
    }
    assert_eq!(held, 2);
    assert_eq!(ca.count(Kind::NewOrder), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_is_shown_taken_apart() {
    use crate::support::scripted_ca::{Fault, problem};
    let place = Place::new();
    let ca = ScriptedCa::start(&place).await;
    let refusal = Fault::Refuse(problem(403, "caa", "CAA says no"));
    ca.script(|script| script.break_one(Kind::NewOrder, refusal));
    let names = names(1);
    let perennial = Perennial::run(place, &config(&ca, "", &names)).await;
    perennial.last_error(&names[0]).await;
    let error = perennial
        .status_field(&names[0], "error")
        .await
        .expect("an object");
    assert_eq!(error["class"], "permanent");
    assert_eq!(error["problem"], "caa");
    assert_eq!(error["detail"], "CAA says no");
    let remedy = error["remedy"].as_str().expect("a text");
    assert!(remedy.contains("CAA record"), "{remedy}");
    let shown = perennial.cli(&["certs", "show", &names[0]]).await.stdout;
    assert!(
        shown.contains("permanent: the CA will say the same"),
        "{shown}"
    );
    assert!(
        shown.contains("allow this CA in the name's CAA record"),
        "{shown}"
    );
}
