//! Budgets for new names: by network, by registered domain, in total. What is known already costs
//! nothing.

use crate::support::client::served_patiently;
use crate::support::perennial::Perennial;
use crate::support::permission::{PermissionServer, Say};
use crate::support::place::Place;
use crate::support::scripted_ca::{Kind, ScriptedCa};

/// With one budget of two names, the others off: which of these names are had, in this order.
async fn budget(key: &str, names: &[(&str, bool)]) {
    let place = Place::new();
    let ca = ScriptedCa::start(&place).await;
    let permission = PermissionServer::start(&place, Say::Yes).await;
    let value = |budget: &str| if budget == key { "2/1d" } else { "off" };
    let budgets = ["per_client", "per_domain", "total"]
        .map(|budget| format!("{budget} = \"{}\"", value(budget)))
        .join("\n");
    let rest = format!(
        "{}[acme.on_demand]\nask = \"{}\"\n[acme.on_demand.budgets]\n{budgets}\n[[sites]]\n\
         hosts = [\"*\"]\non_demand = true\nupstreams = [\"respond:hello\"]\n",
        ca.acme_table(),
        permission.url
    );
    let perennial = Perennial::run(place, &rest).await;
    for (name, had) in names {
        let shown = served_patiently(perennial.place.https, name).await;
        let shown = shown.map(|served| served.serial);
        assert_eq!(shown.is_ok(), *had, "{name}: {shown:?}");
    }
    let new = names.iter().filter(|(_, had)| *had);
    let new: std::collections::BTreeSet<_> = new.collect();
    assert_eq!(
        permission.asked().len(),
        new.len(),
        "asked only with a budget"
    );
    assert_eq!(ca.count(Kind::NewOrder), new.len());
    let label = format!("budget=\"{key}\"");
    let metric = "perennial_on_demand_budget_refusals_total";
    let refusals = names.iter().filter(|(_, had)| !*had).count();
    let counted = perennial.metric(metric, &[&label]).await.expect("a metric");
    assert!(
        (counted - refusals as f64).abs() < f64::EPSILON,
        "{counted}"
    );
    let status = perennial.status_json().await;
    let budgets = status["on_demand"]["budgets"].as_array().expect("budgets");
    let own = budgets.iter().find(|one| one["name"] == key);
    assert_eq!(own.expect("this one")["limit"], "2 in 1d", "{budgets:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_one_network() {
    let names = [
        ("a.one.test", true),
        ("a.two.test", true),
        ("a.three.test", false),
        ("a.three.test", false),
        ("a.one.test", true),
    ];
    budget("per_client", &names).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn below_one_registered_domain() {
    let names = [
        ("a.one.test", true),
        ("b.x.one.test", true),
        ("c.one.test", false),
        ("a.two.test", true),
        ("b.x.one.test", true),
    ];
    budget("per_domain", &names).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_everybody() {
    let names = [
        ("a.one.test", true),
        ("a.two.test", true),
        ("a.three.test", false),
        ("a.two.test", true),
    ];
    budget("total", &names).await;
}
