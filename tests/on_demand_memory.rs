//! What strangers can make a server remember: certificates that make room for each other, names
//! that come by the hundred.

use crate::support::client::served_patiently;
use crate::support::perennial::Perennial;
use crate::support::permission::{PermissionServer, Say};
use crate::support::place::Place;
use crate::support::scripted_ca::{Kind, ScriptedCa};

fn config(ca: &ScriptedCa, settings: &str) -> String {
    format!(
        "{}[acme.on_demand]\n{settings}\n[[sites]]\nhosts = [\"*.customers.test\"]\n\
         on_demand = true\nupstreams = [\"respond:hello\"]\n",
        ca.acme_table()
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn the_least_recently_used_certificate_makes_room_and_comes_back_from_disk() {
    let place = Place::new();
    let ca = ScriptedCa::start(&place).await;
    let permission = PermissionServer::start(&place, Say::Yes).await;
    let settings = format!("ask = \"{}\"\nmax_loaded = 2", permission.url);
    let perennial = Perennial::run(place, &config(&ca, &settings)).await;
    let serial = async |name: &str| {
        let name = format!("{name}.customers.test");
        let shown = served_patiently(perennial.place.https, &name).await;
        shown
            .unwrap_or_else(|error| panic!("{name}: {error}"))
            .serial
    };
    let (a, b) = (serial("a").await, serial("b").await);
    // Now b is the one that was asked for longest ago.
    assert_eq!(serial("a").await, a);
    let c = serial("c").await;
    let on_demand = perennial.status_json().await["on_demand"].clone();
    assert_eq!(
        (&on_demand["loaded"], &on_demand["evictions"]),
        (&2.into(), &1.into())
    );
    assert!(perennial.certificate("a.customers.test").await.is_some());
    assert!(perennial.certificate("b.customers.test").await.is_none());

    ca.stop().await;
    permission.stop().await;
    assert_eq!(serial("b").await, b, "from disk");
    assert_eq!(serial("c").await, c);
    assert_eq!(serial("a").await, a, "from disk, in the place of b");
    assert_eq!(ca.count(Kind::NewOrder), 3);
    assert_eq!(permission.asked().len(), 3);
    let metric = perennial
        .metric("perennial_on_demand_evictions_total", &[])
        .await;
    assert_eq!(metric, Some(3.0));
    assert_eq!(
        perennial.metric("perennial_on_demand_loaded", &[]).await,
        Some(2.0)
    );
    // No time series for what clients ask for.
    let text = perennial.metrics_text().await;
    assert!(!text.contains("customers.test\",source"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_names_costs_a_bounded_number_of_questions_and_lines() {
    const FLOOD: usize = 300;
    let place = Place::new();
    let ca = ScriptedCa::start(&place).await;
    let permission = PermissionServer::start(&place, Say::Status(404)).await;
    let settings = format!(
        "ask = \"{}\"\nbudgets = {{ per_client = \"off\", per_domain = \"off\", total = \"5/1h\" }}",
        permission.url
    );
    let mut perennial =
        Perennial::with_config(place, &config(&ca, &settings)).log_level(Some("info"));
    perennial.start_and_wait().await;
    let lines = perennial.log().len();
    let https = perennial.place.https;
    let handshakes = (0..FLOOD).map(|number| {
        let name = format!("n{number}.customers.test");
        tokio::spawn(async move { served_patiently(https, &name).await })
    });
    for handshake in handshakes.collect::<Vec<_>>() {
        assert!(handshake.await.expect("no panic").is_err());
    }
    assert_eq!(permission.asked().len(), 5);
    assert_eq!(ca.requests().len(), 0);
    let status = perennial.status_json().await["on_demand"].clone();
    assert_eq!(status["refused_names"], 5, "{status}");
    assert_eq!(
        (&status["waiting"], &status["fetching"]),
        (&0.into(), &0.into())
    );
    let more = perennial.log().len() - lines;
    assert!(more < 10, "{more} lines for {FLOOD} names");
    let told = perennial.log_lines_with("a budget for names on demand is spent");
    assert_eq!(told.len(), 1, "{told:?}");
}
