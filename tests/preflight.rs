//! What is looked at before a certificate is ordered, and by `perennial doctor`: with a real DNS
//! server, a real authority, and the real ports where they can be had.

use std::net::{SocketAddr, TcpListener};

use serde_json::{Value, json};

use crate::support::bind::{Bind, Zone};
use crate::support::client::serial;
use crate::support::pebble::{Options, Pebble, issued_by_pebble};
use crate::support::perennial::{Perennial, cli};
use crate::support::place::Place;
use crate::support::scripted_ca::ScriptedCa;
use crate::support::sites::site;
use crate::support::wait::{SOON, wait_until};

const ZONE: &str = "example.test";

/// CAA is looked for up to the top-level domain.
const PARENT: Zone<'static> = Zone {
    name: "test",
    records: "",
    takes_updates: false,
};

async fn scene(records: &str) -> Option<(Place, Bind, Pebble)> {
    let place = Place::new();
    let zone = Zone {
        name: ZONE,
        records: &records.replace("HERE", &place.ip.to_string()),
        takes_updates: false,
    };
    let bind = Bind::start(&place, "bind", &[zone, PARENT]).await;
    let options = Options {
        dns: Some(bind.addr),
        ..Options::default()
    };
    let pebble = Pebble::start(&place, options).await?;
    Some((place, bind, pebble))
}

/// Sites with the challenges that connect to this host.
fn rest(bind: &Bind, pebble: &Pebble, names: &[&str]) -> String {
    let sites = names
        .iter()
        .map(|name| site(name, "acme", &["respond:hello"]));
    let sites: String = sites.collect();
    let challenges = "challenges = [\"tls-alpn-01\", \"http-01\"]\n";
    let dns = format!("[acme.dns]\nresolvers = [\"{}\"]\n", bind.addr);
    format!("{}{challenges}{dns}{sites}", pebble.acme_table())
}

async fn doctor(place: &Place, more: &[&str]) -> (Option<i32>, Vec<Value>) {
    let config = place.path("perennial.toml").display().to_string();
    let words = [&["doctor", "--json", "--config", &config], more].concat();
    let done = cli(&words).await;
    let findings = done.json();
    (done.code, findings.as_array().expect("a list").clone())
}

/// The finding on a topic about a name.
fn finding<'a>(findings: &'a [Value], name: &str, topic: &str) -> &'a Value {
    let is_it = |it: &&Value| {
        it["topic"] == topic
            && it["about"]
                .as_str()
                .is_some_and(|about| about.contains(name))
    };
    let mut all = findings.iter().filter(is_it);
    all.next()
        .unwrap_or_else(|| panic!("{topic} of {name}: {findings:#?}"))
}

fn assert_says(found: &Value, verdict: &str, parts: &[&str]) {
    assert_eq!(found["verdict"], verdict, "{found:#}");
    let text = found.to_string();
    for part in parts {
        assert!(text.contains(part), "{part}: {text}");
    }
}

const RECORDS: &str = "here IN A HERE\n\
                       elsewhere IN A 192.0.2.1\n\
                       forbidden IN A HERE\n\
                       forbidden IN CAA 0 issue \"other.test\"\n\
                       sub.forbidden IN A HERE\n\
                       permitted IN A HERE\n\
                       permitted IN CAA 0 issue \"pebble.letsencrypt.org; validationmethods=http-01\"\n\
                       dns-only IN A HERE\n\
                       dns-only IN CAA 0 issue \"pebble.letsencrypt.org; validationmethods=dns-01\"\n\
                       account IN A HERE\n\
                       account IN CAA 0 issue \"pebble.letsencrypt.org; accounturi=https://x.test/1\"";

/// Name or end of what it is about, topic, verdict, and what is said.
type Expected = (
    &'static str,
    &'static str,
    &'static str,
    &'static [&'static str],
);

const EXPECTED: [Expected; 14] = [
    ("here", "address", "ok", &["of this host"]),
    (
        "elsewhere",
        "address",
        "warning",
        &["192.0.2.1", "no address of this host"],
    ),
    (
        "nowhere",
        "address",
        "warning",
        &["neither an A nor an AAAA", "add nowhere", "not public"],
    ),
    ("here", "reachable", "warning", &["no running perennial"]),
    ("here", "caa", "ok", &["no CAA record"]),
    (
        "forbidden",
        "caa",
        "fails",
        &["other.test", "CAA 0 issue \\\"pebble.letsencrypt.org"],
    ),
    // The parent's records count.
    (
        "sub.forbidden",
        "caa",
        "fails",
        &["of forbidden.example.test"],
    ),
    ("permitted", "caa", "ok", &["permit the CA"]),
    (
        "dns-only",
        "caa",
        "fails",
        &["none of the configured challenges"],
    ),
    ("account", "caa", "fails", &["another account"]),
    ("here", "limits", "ok", &[]),
    ("/dir", "clock", "ok", &["the CA's"]),
    ("/dir", "directory", "ok", &[]),
    ("/state", "state-directory", "ok", &["can be written to"]),
];

#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_says_what_dns_has_to_say() {
    let Some((place, bind, pebble)) = scene(RECORDS).await else {
        return;
    };
    let names = [
        "here",
        "elsewhere",
        "nowhere",
        "forbidden",
        "sub.forbidden",
        "permitted",
    ];
    let names = [&names[..], &["dns-only", "account"]].concat();
    let names: Vec<String> = names.iter().map(|name| format!("{name}.{ZONE}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let text = format!("{}{}", place.server_table(), rest(&bind, &pebble, &names));
    place.write("perennial.toml", text);
    std::fs::create_dir_all(place.state()).expect("a state directory");
    let (code, findings) = doctor(&place, &[]).await;
    assert_eq!(code, Some(1), "some of it fails");
    for (name, topic, verdict, parts) in EXPECTED {
        let about = match name.starts_with('/') {
            true => name.to_owned(),
            false => format!("{name}.{ZONE}"),
        };
        let exact = findings.iter().filter(|it| {
            let told = it["about"].as_str().unwrap_or_default();
            told.split(' ').next() == Some(&about) || name.starts_with('/')
        });
        let exact: Vec<Value> = exact.cloned().collect();
        assert_says(finding(&exact, &about, topic), verdict, parts);
    }
    // One name that is well, and one that nobody orders.
    let (code, findings) = doctor(&place, &[names[0]]).await;
    assert_eq!(code, Some(0), "{findings:#?}");
    let config = place.path("perennial.toml").display().to_string();
    let unknown = cli(&["doctor", "x.example", "--config", &config]).await;
    assert!(
        unknown.stderr.contains("no site of the configuration"),
        "{unknown:#?}"
    );
}

/// Ports 80 and 443 of the place, where this user may have them.
fn public_ports(place: &mut Place) -> bool {
    let [http, https] = [80, 443].map(|port| SocketAddr::from((place.ip, port)));
    let free = |address: SocketAddr| TcpListener::bind(address).is_ok();
    if !free(http) || !free(https) {
        eprintln!("PORTS 80 AND 443 CANNOT BE BOUND: reaching oneself there is not proven");
        return false;
    }
    (place.http, place.https) = (http, https);
    true
}

#[tokio::test(flavor = "multi_thread")]
async fn the_running_process_is_asked_whether_it_reaches_itself() {
    let mut place = Place::new();
    let public = public_ports(&mut place);
    let zone = Zone {
        name: ZONE,
        records: &format!("here IN A {}\nelsewhere IN A 127.0.0.9", place.ip),
        takes_updates: false,
    };
    let bind = Bind::start(&place, "bind", &[zone, PARENT]).await;
    let options = Options {
        dns: Some(bind.addr),
        ..Options::default()
    };
    let Some(pebble) = Pebble::start(&place, options).await else {
        return;
    };
    let (here, elsewhere) = ("here.example.test", "elsewhere.example.test");
    let perennial = Perennial::run(place, &rest(&bind, &pebble, &[here, elsewhere])).await;
    issued_by_pebble(&perennial, here).await;
    let (_, findings) = doctor(&perennial.place, &[]).await;
    let reached = finding(&findings, here, "reachable");
    match public {
        true => assert_says(reached, "ok", &["by tls-alpn-01"]),
        false => assert_says(reached, "warning", &["port 80", "port 443"]),
    }
    assert_says(
        finding(&findings, elsewhere, "reachable"),
        "warning",
        &["127.0.0.9", "not public"],
    );
    // What was seen before the first order stands beside what came of it.
    let seen = wait_until(SOON, "the preflight in /status", async || {
        perennial.renew(here).await;
        let checks = perennial.status_field(here, "preflight").await?;
        checks.as_array().filter(|it| !it.is_empty()).cloned()
    })
    .await;
    let topics: Vec<&str> = seen.iter().filter_map(|it| it["topic"].as_str()).collect();
    for topic in ["address", "reachable", "caa", "clock", "state-directory"] {
        assert!(topics.contains(&topic), "{topic}: {topics:?}");
    }
}

/// What CAA forbids one authority the next one is asked for at once.
#[tokio::test(flavor = "multi_thread")]
async fn an_order_without_hope_goes_to_the_fallback() {
    let Some((place, bind, pebble)) = scene(RECORDS).await else {
        return;
    };
    let fallback = ScriptedCa::start(&place).await;
    let second = fallback.acme_table().replace("[acme]", "[[acme.fallback]]");
    let name = "forbidden.example.test";
    let rest = format!("{}{second}", rest(&bind, &pebble, &[name]));
    let perennial = Perennial::with_config(place, &rest);
    let mut perennial = perennial.env("PERENNIAL_TEST_PUBLIC_CA", &pebble.directory);
    perennial.start_and_wait().await;
    wait_until(SOON, "a certificate of the fallback", async || {
        let served = serial(perennial.place.https, name).await.ok()?;
        fallback.serials().contains(&served).then_some(())
    })
    .await;
    assert_eq!(pebble.orders(), 0);
    assert_eq!(perennial.log_lines_with("put off by a preflight").len(), 1);
}

/// At a public authority an order that CAA forbids is not sent at once; what is only doubtful is.
#[tokio::test(flavor = "multi_thread")]
async fn an_order_without_hope_is_put_off() {
    let Some((place, bind, pebble)) = scene(RECORDS).await else {
        return;
    };
    let (forbidden, here) = ("forbidden.example.test", "here.example.test");
    let rest = rest(&bind, &pebble, &[forbidden, here]);
    let perennial = Perennial::with_config(place, &rest);
    let mut perennial = perennial.env("PERENNIAL_TEST_PUBLIC_CA", &pebble.directory);
    perennial.start_and_wait().await;
    issued_by_pebble(&perennial, here).await;
    let error = perennial.last_error(forbidden).await;
    assert!(error.contains("put off by a preflight"), "{error}");
    assert!(error.contains("other.test"), "{error}");
    let next = perennial.status_field(forbidden, "next_attempt").await;
    assert!(next.is_some(), "it is tried again");
    assert_eq!(pebble.orders(), 1, "that of the other name");
    let typed = perennial.status_field(forbidden, "error").await;
    let typed = typed.expect("taken apart");
    assert_eq!(
        (&typed["class"], &typed["problem"]),
        (&json!("operator"), &json!("caa"))
    );
    let remedy = typed["remedy"].as_str().expect("a remedy");
    assert!(
        remedy.contains("IN CAA 0 issue \"pebble.letsencrypt.org\""),
        "{remedy}"
    );
    // Twice, and then the authority has the last word: Pebble does not look at CAA.
    for _ in 0..2 {
        perennial.renew(forbidden).await;
        wait_until(SOON, "the answer of the order", async || {
            let running = perennial.log_lines_with("put off by a preflight").len();
            (running >= 2).then_some(())
        })
        .await;
    }
    wait_until(SOON, "the order after all", async || {
        (pebble.orders() >= 2).then_some(())
    })
    .await;
}
