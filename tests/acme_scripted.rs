//! Authorities that mostly work: validation as RFC 8555 and RFC 8737 say, refused nonces, rate
//! limits, certificates that are not what was ordered.

use std::path::Path;
use std::time::Duration;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::support::client::serial;
use crate::support::clock;
use crate::support::ledger;
use crate::support::perennial::Perennial;
use crate::support::place::Place;
use crate::support::scripted_ca::{
    CertificateFault, Fault, Kind, RenewalInfoAnswer, ScriptedCa, Validation, problem,
};
use crate::support::sites::site;
use crate::support::wait::{SOON, never_within, wait_until};

const NAME: &str = "a.example.test";

/// Started; `acme` continues the `[acme]` table.
async fn start(place: Place, ca: &ScriptedCa, acme: &str) -> Perennial {
    let site = site(NAME, "acme", &["respond:hello"]);
    Perennial::run(place, &format!("{}{acme}{site}", ca.acme_table())).await
}

async fn wait_for_certificate(perennial: &Perennial, ca: &ScriptedCa) -> String {
    wait_until(SOON, "the authority's newest certificate", async || {
        let served = serial(perennial.place.https, NAME).await.ok()?;
        (ca.serials().last() == Some(&served)).then_some(served)
    })
    .await
}

async fn validated_by(challenge: &str) {
    let place = Place::new();
    let ca = ScriptedCa::start(&place).await;
    ca.script(|script| script.validation = Validation::Real);
    let only = format!("challenges = [\"{challenge}\"]\n");
    let perennial = start(place, &ca, &only).await;
    wait_for_certificate(&perennial, &ca).await;
    let requests = ca.requests();
    let mut challenges = requests.iter().filter(|one| one.kind == Kind::Challenge);
    assert!(challenges.all(|one| one.path.ends_with(challenge)));
}

#[tokio::test(flavor = "multi_thread")]
async fn http_01_as_the_rfc_says() {
    validated_by("http-01").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_alpn_01_as_the_rfc_says() {
    validated_by("tls-alpn-01").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_nonces_are_tried_again() {
    let place = Place::new();
    let ca = ScriptedCa::start(&place).await;
    ca.script(|script| script.bad_nonces = 6);
    let perennial = start(place, &ca, "").await;
    wait_for_certificate(&perennial, &ca).await;
    assert_eq!(ca.issued().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_limit_is_waited_for_as_long_as_it_says() {
    let place = Place::new();
    let ca = ScriptedCa::start(&place).await;
    let retry_after = Some("7200".to_owned());
    ca.script(|script| script.break_one(Kind::NewOrder, Fault::TooMany { retry_after }));
    let perennial = start(place, &ca, "").await;
    perennial.last_error(NAME).await;
    let next = perennial
        .status_field(NAME, "next_attempt")
        .await
        .expect("a time");
    let next = OffsetDateTime::parse(next.as_str().expect("a text"), &Rfc3339).expect("RFC 3339");
    let wait = next - clock::now();
    assert!(
        wait > time::Duration::seconds(7000),
        "Retry-After was 7200 s, not {wait}"
    );
    assert_eq!(ca.count(Kind::NewOrder), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_told_in_the_authoritys_words() {
    let place = Place::new();
    let ca = ScriptedCa::start(&place).await;
    let words = "CAA record for a.example.test prevents issuance";
    let refusal = Fault::Refuse(problem(403, "caa", words));
    ca.script(|script| script.break_one(Kind::NewOrder, refusal));
    let perennial = start(place, &ca, "").await;
    let error = perennial.last_error(NAME).await;
    assert!(error.contains(words), "{error}");
    perennial.wait_for_log(words, SOON).await;
    assert_eq!(ca.count(Kind::NewOrder), 1);
}

async fn a_bad_certificate_replaces_nothing(fault: CertificateFault) {
    let place = Place::new();
    let ca = ScriptedCa::start(&place).await;
    let perennial = start(place, &ca, "").await;
    let good = wait_for_certificate(&perennial, &ca).await;
    ca.script(|script| script.certificate = fault);
    perennial.renew(NAME).await;
    let error = perennial.last_error(NAME).await;
    assert!(!error.is_empty());
    never_within(Duration::from_secs(1), async || {
        let served = serial(perennial.place.https, NAME).await;
        (served.as_ref() != Ok(&good)).then(|| format!("served: {served:?}"))
    })
    .await;
    // The CA has issued it, and counts it; so do we.
    let orders = ledger::orders(&perennial.place);
    assert!(orders.len() > 1, "{orders:?}");
    assert!(orders.iter().all(|order| order.issued), "{orders:?}");
    assert!(orders[1].failed && !orders[0].failed, "{orders:?}");
    ca.script(|script| script.certificate = CertificateFault::None);
    perennial.renew(NAME).await;
    wait_for_certificate(&perennial, &ca).await;
}

/// Another one would be the third of the week: the CA would refuse it.
#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_is_of_no_use_takes_its_place_within_the_limits() {
    let place = Place::new();
    let ca = ScriptedCa::start(&place).await;
    let limits = "[acme.limits]\nduplicate_certificates = \"2/7d\"\n";
    let perennial = start(place, &ca, limits).await;
    wait_for_certificate(&perennial, &ca).await;
    ca.script(|script| script.certificate = CertificateFault::OtherKey);
    perennial.renew(NAME).await;
    perennial.last_error(NAME).await;
    ca.script(|script| script.certificate = CertificateFault::None);
    let (status, body) = perennial
        .admin_post(&format!("/certificates/{NAME}/renew"))
        .await;
    assert_eq!(status, 202, "{body}");
    let answer: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    let until = answer["until"].as_str().expect("a date");
    let until = OffsetDateTime::parse(until, &Rfc3339).expect("RFC 3339");
    assert!(until - clock::now() > time::Duration::days(6), "{body}");
    assert_eq!(ca.count(Kind::NewOrder), 2);
}

/// Stuck at the authority, with no room for another.
async fn stuck_in_processing() -> (Perennial, ScriptedCa) {
    let place = Place::new();
    let ca = ScriptedCa::start(&place).await;
    ca.script(|script| script.stuck_in_processing = true);
    let site = site(NAME, "acme", &["respond:hello"]);
    let limits = "[acme.limits]\nduplicate_certificates = \"1/7d\"\n";
    let text = format!("{}{limits}{site}", ca.acme_table());
    let perennial = Perennial::with_config(place, &text);
    // Milliseconds, for every wait for a CA.
    let mut perennial = perennial.env("PERENNIAL_TEST_PATIENCE_MS", "2000");
    perennial.start_and_wait().await;
    let error = perennial.last_error(NAME).await;
    assert!(error.contains("did not issue within"), "{error}");
    (perennial, ca)
}

/// It counts, and nobody goes on with it: the next one waits for the date of the limit.
async fn counts_as_a_certificate(perennial: &Perennial, ca: &ScriptedCa) {
    perennial.renew(NAME).await;
    wait_until(SOON, "the limit in /status", async || {
        let error = perennial.status_field(NAME, "last_error").await?;
        let error = error.as_str()?.to_owned();
        error
            .contains("certificates for the same names")
            .then_some(())
    })
    .await;
    let next = perennial.status_field(NAME, "next_attempt").await;
    let next = next.expect("a date");
    let next = OffsetDateTime::parse(next.as_str().expect("a text"), &Rfc3339).expect("RFC 3339");
    assert!(next - clock::now() > time::Duration::days(6), "{next}");
    let orders = ledger::orders(&perennial.place);
    assert!(orders[0].issued && orders[0].failed, "{orders:?}");
    assert_eq!(ca.count(Kind::NewOrder), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_is_processed_for_days_and_dropped_may_be_a_certificate() {
    let (mut perennial, ca) = stuck_in_processing().await;
    perennial.kill9();
    let pending = format!("certificates/{NAME}/p256/pending/order.json");
    let pending = perennial.place.state().join(pending);
    let text = std::fs::read(&pending).expect("an order");
    let mut order: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
    let before = clock::now() - time::Duration::days(2);
    order["created_at"] = before.format(&Rfc3339).expect("RFC 3339").into();
    std::fs::write(&pending, order.to_string()).expect("written");
    perennial.start_and_wait().await;
    counts_as_a_certificate(&perennial, &ca).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_is_lost_while_it_is_processed_may_be_a_certificate() {
    let (perennial, ca) = stuck_in_processing().await;
    let lost = Fault::Refuse(problem(404, "malformed", "no such order"));
    ca.script(|script| script.break_one(Kind::Order, lost));
    counts_as_a_certificate(&perennial, &ca).await;
}

/// The authority's own word: there is room for another.
#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_is_invalid_after_all_is_no_certificate() {
    let (perennial, ca) = stuck_in_processing().await;
    ca.fail_processing();
    ca.script(|script| script.stuck_in_processing = false);
    perennial.renew(NAME).await;
    wait_for_certificate(&perennial, &ca).await;
    let orders = ledger::orders(&perennial.place);
    assert!(orders[0].failed && !orders[0].issued, "{orders:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_the_authority_will_not_finalize_is_no_certificate() {
    let place = Place::new();
    let ca = ScriptedCa::start(&place).await;
    let refusal = Fault::Refuse(problem(400, "badCSR", "not with that key"));
    ca.script(|script| script.break_one(Kind::Finalize, refusal));
    let limits = "[acme.limits]\nduplicate_certificates = \"1/7d\"\n";
    let perennial = start(place, &ca, limits).await;
    let error = perennial.last_error(NAME).await;
    assert!(error.contains("not with that key"), "{error}");
    ca.script(|script| script.behave());
    perennial.renew(NAME).await;
    wait_for_certificate(&perennial, &ca).await;
    let orders = ledger::orders(&perennial.place);
    assert!(orders[0].failed && !orders[0].issued, "{orders:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_order_that_the_ca_has_no_more_is_placed_anew() {
    let place = Place::new();
    let ca = ScriptedCa::start(&place).await;
    let site = site(NAME, "acme", &["respond:hello"]);
    let text = format!("{}{site}", ca.acme_table());
    let perennial = Perennial::with_config(place, &text);
    let mut perennial = perennial.env("PERENNIAL_TEST_ABORT_AFTER", "order-url");
    perennial.start();
    perennial.wait_exit(SOON).await;
    perennial.forget_env();
    ca.script(|script| script.break_one(Kind::Order, Fault::Missing));
    perennial.start_and_wait().await;
    // Who asks for it does not wait as the program does after a crash.
    perennial.renew(NAME).await;
    wait_until(SOON, "another order", async || {
        (ca.count(Kind::NewOrder) == 2).then_some(())
    })
    .await;
    ca.script(|script| script.behave());
    perennial.renew(NAME).await;
    wait_for_certificate(&perennial, &ca).await;
}

/// The next start finds it on disk: it is the one order for which there is a place.
#[tokio::test(flavor = "multi_thread")]
async fn an_order_whose_url_a_crash_kept_from_the_history_needs_no_other_place() {
    let place = Place::new();
    let ca = ScriptedCa::start(&place).await;
    let site = site(NAME, "acme", &["respond:hello"]);
    let limits = "[acme.limits]\nnew_orders = \"1/3h\"\n";
    let text = format!("{}{limits}{site}", ca.acme_table());
    let perennial = Perennial::with_config(place, &text);
    let mut perennial = perennial.env("PERENNIAL_TEST_ABORT_AFTER", "order-url");
    perennial.start();
    perennial.wait_exit(SOON).await;
    assert_eq!(ledger::orders(&perennial.place)[0].url, None);
    perennial.forget_env();
    perennial.start_and_wait().await;
    // Who asks for it does not wait as the program does after a crash.
    perennial.renew(NAME).await;
    wait_for_certificate(&perennial, &ca).await;
    assert_eq!(ca.count(Kind::NewOrder), 1);
    let orders = ledger::orders(&perennial.place);
    assert!(orders[0].url.is_some() && orders[0].issued, "{orders:?}");
}

/// What looks expired here and is good by the authority's own clock is a good certificate: it is
/// kept for the hour in which this clock is right, and no other is ordered meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn under_a_clock_that_is_ahead_no_second_certificate_is_ordered() {
    let place = Place::new();
    let ca = ScriptedCa::start(&place).await;
    ca.script(|script| script.behind = Duration::from_secs(400 * 86_400));
    let mut perennial = start(place, &ca, "").await;
    let told = "check this host's clock";
    let error = perennial.last_error(NAME).await;
    assert!(error.contains(told), "{error}");
    perennial.wait_for_log(told, SOON).await;
    let error = perennial.status_field(NAME, "error").await;
    assert_eq!(error.expect("a report")["class"], "operator");
    renew_in_vain(&perennial, told).await;
    perennial.kill9();
    perennial.start_and_wait().await;
    renew_in_vain(&perennial, told).await;
    assert_eq!((ca.count(Kind::NewOrder), ca.issued().len()), (1, 1));
    assert_eq!(ca.count(Kind::Certificate), 1, "it is on disk");
    let orders = ledger::orders(&perennial.place);
    assert!(orders[0].issued && !orders[0].failed, "{orders:?}");
    // Where the authority has the same time now, it is its certificate that is no good.
    ca.script(|script| script.behind_is_told = false);
    renew_in_vain(&perennial, told).await;
    assert_eq!((ca.count(Kind::NewOrder), ca.issued().len()), (2, 2));
    let orders = ledger::orders(&perennial.place);
    assert!(orders.iter().all(|it| it.issued && it.failed), "{orders:?}");
}

/// Has it renewed, and waits for the end of that, which is another failure for this reason.
async fn renew_in_vain(perennial: &Perennial, why: &str) {
    let before = perennial.log_lines_with(why).len();
    perennial.renew(NAME).await;
    wait_until(SOON, "one more failure", async || {
        let running = perennial.status_field(NAME, "in_progress").await;
        let failed = perennial.log_lines_with(why).len() > before;
        (failed && running != Some(true.into())).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_for_another_key() {
    a_bad_certificate_replaces_nothing(CertificateFault::OtherKey).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_for_other_names() {
    a_bad_certificate_replaces_nothing(CertificateFault::OtherNames).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_cut_short() {
    a_bad_certificate_replaces_nothing(CertificateFault::Truncated).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_cut_short() {
    a_bad_certificate_replaces_nothing(CertificateFault::CutShort).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_of_somebody_else() {
    a_bad_certificate_replaces_nothing(CertificateFault::WrongChain).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_window_in_the_past_renews_now_and_says_what_it_replaces() {
    let place = Place::new();
    let ca = ScriptedCa::start(&place).await;
    let far = RenewalInfoAnswer::window("2090-01-01T00:00:00Z", "2090-01-02T00:00:00Z");
    ca.script(|script| script.renewal_info = Some(far));
    let perennial = start(place, &ca, "").await;
    let first = wait_for_certificate(&perennial, &ca).await;
    let past = RenewalInfoAnswer::window("2020-01-01T00:00:00Z", "2020-01-02T00:00:00Z");
    ca.script(|script| script.renewal_info = Some(past));
    let path = format!("/certificates/{NAME}/renew?if_due=true");
    let (status, body) = perennial.admin_post(&path).await;
    assert_eq!(status, 202, "{body}");
    let second = wait_until(SOON, "the renewed certificate", async || {
        let served = serial(perennial.place.https, NAME).await.ok()?;
        (served != first).then_some(served)
    })
    .await;
    assert_eq!(ca.serials().get(1), Some(&second));
    let replaces = ca.replaces();
    assert_eq!(replaces[0], None);
    assert!(
        replaces[1].as_ref().is_some_and(|id| id.contains('.')),
        "{replaces:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn already_replaced_orders_again_without_saying_so() {
    let place = Place::new();
    let ca = ScriptedCa::start(&place).await;
    let far = RenewalInfoAnswer::window("2090-01-01T00:00:00Z", "2090-01-02T00:00:00Z");
    ca.script(|script| script.renewal_info = Some(far));
    let perennial = start(place, &ca, "").await;
    wait_for_certificate(&perennial, &ca).await;
    let refusal = problem(409, "alreadyReplaced", "that one was replaced before");
    ca.script(|script| script.refuse_replaces = Some(refusal));
    perennial.renew(NAME).await;
    wait_until(SOON, "a second certificate", async || {
        ca.issued().get(1).cloned()
    })
    .await;
    wait_for_certificate(&perennial, &ca).await;
    assert_eq!(ca.replaces(), [None, None]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_account_is_made_once_and_kept() {
    let place = Place::new();
    let ca = ScriptedCa::start(&place).await;
    let mut perennial = start(place, &ca, "").await;
    wait_for_certificate(&perennial, &ca).await;
    let accounts = perennial.place.state().join("accounts");
    let file = |folder: &Path| {
        let entry = std::fs::read_dir(folder).expect("a folder").next();
        let path = entry.expect("one authority").expect("readable").path();
        std::fs::read(path.join("account.json")).expect("an account")
    };
    let before = file(&accounts);
    perennial.restart().await;
    perennial.renew(NAME).await;
    wait_until(SOON, "a second certificate", async || {
        ca.issued().get(1).cloned()
    })
    .await;
    wait_for_certificate(&perennial, &ca).await;
    assert_eq!(ca.count(Kind::NewAccount), 1);
    assert!(file(&accounts) == before, "the account file has changed");
}
