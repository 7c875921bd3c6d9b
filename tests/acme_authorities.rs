//! Several authorities, and what each of them offers: failover and the way back, profiles, chains.

use std::path::Path;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::support::client::served;
use crate::support::clock;
use crate::support::pebble::{Options, Pebble};
use crate::support::perennial::Perennial;
use crate::support::place::Place;
use crate::support::scripted_ca::{Fault, Kind, ScriptedCa, problem};
use crate::support::sites::site;
use crate::support::wait::{SOON, wait_until};

const NAME: &str = "a.example.test";

async fn wait_for(perennial: &Perennial, ca: &ScriptedCa) {
    wait_until(SOON, "a certificate by that authority", async || {
        let served = served(perennial.place.https, Some(NAME)).await.ok()?;
        (ca.serials().last() == Some(&served.serial)).then_some(())
    })
    .await;
}

/// The second authority issues at once, and the first has its turn again at the next renewal.
async fn falls_over_at_once(kind: Kind, fault: Fault) {
    let place = Place::new();
    let first = ScriptedCa::start(&place).await;
    let second = ScriptedCa::start(&place).await;
    first.script(|script| script.break_one(kind, fault));
    let fallback = format!("[[acme.fallback]]\ndirectory = \"{}\"\n", second.directory);
    let site = site(NAME, "acme", &["respond:hello"]);
    let text = format!("{}{fallback}{site}", first.acme_table());
    let perennial = Perennial::run(place, &text).await;
    wait_for(&perennial, &second).await;
    assert_eq!(first.count(kind), 1, "it was asked once");
    first.script(|script| script.behave());
    if kind == Kind::NewOrder {
        perennial.renew(NAME).await;
        wait_for(&perennial, &first).await;
        assert_eq!(second.issued().len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_limit_at_one_is_an_order_at_the_next() {
    let retry_after = Some("7200".to_owned());
    falls_over_at_once(Kind::NewOrder, Fault::TooMany { retry_after }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_by_one_is_an_order_at_the_next() {
    let refusal = problem(403, "caa", "CAA record forbids issuance");
    falls_over_at_once(Kind::NewOrder, Fault::Refuse(refusal)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_account_at_one_is_an_order_at_the_next() {
    let refusal = problem(403, "externalAccountRequired", "bind your account");
    falls_over_at_once(Kind::NewAccount, Fault::Refuse(refusal)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_profile_that_does_not_exist_is_told_with_those_that_do() {
    for (profiles, expected) in [
        (vec!["classic", "shortlived"], "but classic, shortlived"),
        (vec![], "nor any other"),
    ] {
        let place = Place::new();
        let ca = ScriptedCa::start(&place).await;
        ca.script(|script| script.profiles = profiles);
        let site = site(NAME, "acme", &["respond:hello"]);
        let acme = format!("{}profile = \"shortlive\"\n", ca.acme_table());
        let perennial = Perennial::run(place, &format!("{acme}{site}")).await;
        let error = perennial.last_error(NAME).await;
        assert!(error.contains("no profile \"shortlive\""), "{error}");
        assert!(error.contains(expected), "{error}");
        assert_eq!(ca.count(Kind::NewOrder), 0, "nothing was ordered in vain");
    }
}

/// Names and addresses of one host, with no word of profiles in the configuration, and with one.
#[tokio::test(flavor = "multi_thread")]
async fn an_address_is_ordered_under_a_profile_of_its_own() {
    const ADDRESS: &str = "192.0.2.1";
    for (acme, of_the_name, of_the_address) in [
        ("", None, "shortlived"),
        (
            "profile = \"classic\"\naddress_profile = \"days\"\n",
            Some("classic"),
            "days",
        ),
    ] {
        let place = Place::new();
        let ca = ScriptedCa::start(&place).await;
        ca.script(|script| script.profiles = vec!["classic", "shortlived", "days"]);
        let sites = [NAME, ADDRESS].map(|host| site(host, "acme", &["respond:hello"]));
        let text = format!("{}{acme}{}", ca.acme_table(), sites.concat());
        let _perennial = Perennial::run(place, &text).await;
        wait_until(SOON, "both certificates", async || {
            (ca.issued().len() == 2).then_some(())
        })
        .await;
        let mut ordered = ca.ordered_profiles();
        ordered.sort();
        let mut expected = [of_the_name, Some(of_the_address)].map(|it| it.map(str::to_owned));
        expected.sort();
        assert_eq!(ordered, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_profile_that_the_ca_has_by_now_is_ordered() {
    let place = Place::new();
    let ca = ScriptedCa::start(&place).await;
    ca.script(|script| script.profiles = vec!["classic"]);
    let site = site(NAME, "acme", &["respond:hello"]);
    let acme = format!("{}profile = \"shortlived\"\n", ca.acme_table());
    let perennial = Perennial::run(place, &format!("{acme}{site}")).await;
    let error = perennial.last_error(NAME).await;
    assert!(error.contains("but classic"), "{error}");
    ca.script(|script| script.profiles = vec!["classic", "shortlived"]);
    wait_until(SOON, "an order with the new profile", async || {
        // In the first seconds the answer of before counts.
        perennial.renew(NAME).await;
        (!ca.issued().is_empty()).then_some(())
    })
    .await;
    assert_eq!(ca.ordered_profiles(), [Some("shortlived".to_owned())]);
}

/// Not by each of them.
#[tokio::test(flavor = "multi_thread")]
async fn many_names_ask_together_for_a_profile_that_is_missing() {
    const NAMES: usize = 12;
    let place = Place::new();
    let ca = ScriptedCa::start(&place).await;
    ca.script(|script| script.profiles = vec!["classic"]);
    let names: Vec<String> = (0..NAMES).map(|n| format!("n{n}.example.test")).collect();
    let sites = names
        .iter()
        .map(|name| site(name, "acme", &["respond:hello"]));
    let sites: String = sites.collect();
    let acme = format!("{}profile = \"shortlived\"\n", ca.acme_table());
    let perennial = Perennial::run(place, &format!("{acme}{sites}")).await;
    for name in &names {
        let error = perennial.last_error(name).await;
        assert!(error.contains("but classic"), "{error}");
    }
    let asked = ca.count(Kind::Directory);
    assert!(asked < NAMES, "{asked} requests for the directory");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_profile_that_exists_is_ordered() {
    let place = Place::new();
    let ca = ScriptedCa::start(&place).await;
    ca.script(|script| script.profiles = vec!["classic", "shortlived"]);
    let site = site(NAME, "acme", &["respond:hello"]);
    let acme = format!("{}profile = \"shortlived\"\n", ca.acme_table());
    let perennial = Perennial::run(place, &format!("{acme}{site}")).await;
    wait_for(&perennial, &ca).await;
    assert_eq!(ca.ordered_profiles(), [Some("shortlived".to_owned())]);
}

async fn with_preferred_chain(place: Place, pebble: &Pebble, issuer: &str) -> Perennial {
    let site = site(NAME, "acme", &["respond:hello"]);
    let acme = format!("{}preferred_chain = \"{issuer}\"\n", pebble.acme_table());
    Perennial::run(place, &format!("{acme}{site}")).await
}

/// The issuer of the last certificate of the chain on disk.
fn issuer_on_disk(state: &Path) -> String {
    let current = state.join(format!("certificates/{NAME}/p256/current/fullchain.pem"));
    let text = std::fs::read(current).expect("a chain");
    let last = x509_parser::pem::Pem::iter_from_buffer(&text).last();
    let last = last.expect("a certificate").expect("PEM");
    last.parse_x509().expect("X.509").issuer().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_chain_with_the_preferred_issuer_is_kept() {
    for number in [0, 2] {
        let place = Place::new();
        let options = Options {
            alternate_roots: 2,
            ..Options::default()
        };
        let Some(pebble) = Pebble::start(&place, options).await else {
            return;
        };
        let issuer = pebble.root_name(number).await;
        let mut perennial = with_preferred_chain(place, &pebble, &issuer).await;
        perennial.wait_ready().await;
        let found = issuer_on_disk(&perennial.place.state());
        assert!(found.contains(&issuer), "{found} is not {issuer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alternate_that_is_missing_never_costs_the_primary() {
    let place = Place::new();
    let ca = ScriptedCa::start(&place).await;
    ca.script(|script| script.missing_alternate = true);
    let site = site(NAME, "acme", &["respond:hello"]);
    let acme = format!("{}preferred_chain = \"No Such Root\"\n", ca.acme_table());
    let perennial = Perennial::run(place, &format!("{acme}{site}")).await;
    wait_for(&perennial, &ca).await;
    perennial
        .wait_for_log("cannot fetch an alternate chain", SOON)
        .await;
    let kept = "no chain of the CA leads to the preferred issuer";
    perennial.wait_for_log(kept, SOON).await;
}

/// Somebody who asks for a renewal is told until when there is none.
async fn a_renewal_has_to_wait(perennial: &Perennial) {
    let path = format!("/certificates/{NAME}/renew");
    wait_until(SOON, "the answer that it has to wait", async || {
        // Until then the order before it may be ending.
        let (_, body) = perennial.admin_post(&path).await;
        body.to_string().contains("until").then_some(())
    })
    .await;
}

/// `next_attempt` in /status.
async fn next_attempt(perennial: &Perennial) -> OffsetDateTime {
    let next = wait_until(SOON, "next_attempt in /status", async || {
        perennial.status_field(NAME, "next_attempt").await
    })
    .await;
    OffsetDateTime::parse(next.as_str().expect("a text"), &Rfc3339).expect("RFC 3339")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_would_break_a_limit_is_not_sent_and_its_date_is_told() {
    let place = Place::new();
    let ca = ScriptedCa::start(&place).await;
    let site = site(NAME, "acme", &["respond:hello"]);
    let limits = "[acme.limits]\nduplicate_certificates = \"2/7d\"\n";
    let text = format!("{}{limits}{site}", ca.acme_table());
    let mut perennial = Perennial::run(place, &text).await;
    wait_for(&perennial, &ca).await;
    perennial.renew(NAME).await;
    wait_until(SOON, "a second certificate", async || {
        (ca.issued().len() == 2).then_some(())
    })
    .await;
    wait_for(&perennial, &ca).await;
    a_renewal_has_to_wait(&perennial).await;
    // A crash forgets nothing, and a lost certificate is no reason to break a limit.
    perennial.kill9();
    std::fs::remove_dir_all(perennial.place.state().join("certificates")).expect("lost");
    std::fs::remove_dir_all(perennial.place.state().join("ledger/subjects")).expect("lost");
    perennial.start_and_wait().await;
    let error = perennial.last_error(NAME).await;
    assert!(
        error.contains("2 in 7d certificates for the same names"),
        "{error}"
    );
    let wait = next_attempt(&perennial).await - clock::now();
    assert!(
        wait > time::Duration::hours(7 * 24 - 1) && wait <= time::Duration::days(7),
        "{wait}"
    );
    assert_eq!(ca.count(Kind::NewOrder), 2);
}

/// A limit that is known beforehand is no worse than one that the authority has to speak of.
#[tokio::test(flavor = "multi_thread")]
async fn a_limit_at_one_is_an_order_at_the_next() {
    let place = Place::new();
    let first = ScriptedCa::start(&place).await;
    let second = ScriptedCa::start(&place).await;
    let limits = "[acme.limits]\nduplicate_certificates = \"1/7d\"\n";
    let fallback = format!(
        "[[acme.fallback]]\ndirectory = \"{}\"\nlimits = {{ duplicate_certificates = \"1/7d\" }}\n",
        second.directory
    );
    let site = site(NAME, "acme", &["respond:hello"]);
    let text = format!("{}{limits}{fallback}{site}", first.acme_table());
    let perennial = Perennial::run(place, &text).await;
    wait_for(&perennial, &first).await;
    perennial.renew(NAME).await;
    wait_for(&perennial, &second).await;
    assert_eq!(first.count(Kind::NewOrder), 1);
    assert_eq!(second.count(Kind::NewOrder), 1);
    // Where no authority is left, the order waits.
    a_renewal_has_to_wait(&perennial).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_validations_are_counted_for_their_name() {
    let place = Place::new();
    let ca = ScriptedCa::start(&place).await;
    ca.script(|script| script.failing = vec!["http-01", "tls-alpn-01"]);
    let site = site(NAME, "acme", &["respond:hello"]);
    let limits = "[acme.limits]\nfailed_validations = \"1/1h\"\n";
    let text = format!("{}{limits}{site}", ca.acme_table());
    let perennial = Perennial::run(place, &text).await;
    perennial.last_error(NAME).await;
    a_renewal_has_to_wait(&perennial).await;
    assert_eq!(ca.count(Kind::NewOrder), 1);
}

/// Let's Encrypt pauses names that failed for months; the operator has to go somewhere first.
#[tokio::test(flavor = "multi_thread")]
async fn a_paused_name_is_told_with_the_address_that_ends_the_pause() {
    let place = Place::new();
    let ca = ScriptedCa::start(&place).await;
    let words = "Your account is temporarily prevented from requesting certificates for \
                 a.example.test, please visit: https://portal.example.test/unpause?jwt=x.y.z";
    let paused = Fault::Refuse(problem(429, "rateLimited", words));
    ca.script(|script| script.break_one(Kind::NewOrder, paused));
    let site = site(NAME, "acme", &["respond:hello"]);
    let perennial = Perennial::run(place, &format!("{}{site}", ca.acme_table())).await;
    let error = perennial.last_error(NAME).await;
    let remedy = "visit https://portal.example.test/unpause?jwt=x.y.z to end the pause";
    assert!(error.contains(remedy), "{error}");
    assert_eq!(ca.count(Kind::NewOrder), 1);
}
