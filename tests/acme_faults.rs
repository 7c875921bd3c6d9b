//! What a CA can do wrong, each a row: refusals with and without a date, HTML, silence, things that
//! never end, renewal information of every odd kind, a directory that moves. What is served stays,
//! the message says what happened, and the CA is not asked more than is due.

use std::time::{Duration, SystemTime};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::support::client::serial;
use crate::support::clock;
use crate::support::perennial::Perennial;
use crate::support::place::Place;
use crate::support::scripted_ca::{
    Fault, Kind, RenewalInfoAnswer, ScriptedCa, Validation, problem,
};
use crate::support::sites::site;
use crate::support::wait::{SOON, never_within, wait_until};

const NAME: &str = "a.example.test";
/// Shortens the deadlines of debug builds: in milliseconds, for every wait for a CA.
const PATIENCE: (&str, &str) = ("PERENNIAL_TEST_PATIENCE_MS", "2000");
const TWO_HOURS: u64 = 7200;

struct Scene {
    perennial: Perennial,
    ca: ScriptedCa,
}

impl Scene {
    /// `acme` continues the `[acme]` table.
    async fn start(acme: &str, script: impl FnOnce(&ScriptedCa)) -> Scene {
        let place = Place::new();
        let ca = ScriptedCa::start(&place).await;
        script(&ca);
        let site = site(NAME, "acme", &["respond:hello"]);
        let text = format!("{}{acme}{site}", ca.acme_table());
        let mut perennial = Perennial::with_config(place, &text).env(PATIENCE.0, PATIENCE.1);
        perennial.start_and_wait().await;
        Scene { perennial, ca }
    }

    async fn with_certificate(acme: &str, script: impl FnOnce(&ScriptedCa)) -> Scene {
        let scene = Scene::start(acme, script).await;
        scene.wait_for_certificates(1).await;
        scene
    }

    async fn wait_for_certificates(&self, count: usize) {
        wait_until(SOON, "the authority's newest certificate", async || {
            let serials = self.ca.serials();
            let served = serial(self.perennial.place.https, NAME).await.ok()?;
            (serials.len() == count && serials.last() == Some(&served)).then_some(())
        })
        .await;
    }

    async fn time(&self, field: &str) -> OffsetDateTime {
        let time = wait_until(SOON, field, async || {
            self.perennial.status_field(NAME, field).await
        });
        let time = time.await;
        OffsetDateTime::parse(time.as_str().expect("a text"), &Rfc3339).expect("RFC 3339")
    }

    /// The fault is over, and an operator does not want to wait.
    async fn recovers(&self) {
        self.ca.script(|script| script.behave());
        self.perennial.renew(NAME).await;
        self.wait_for_certificates(1).await;
    }
}

/// One request of an order fails so; the error says so; then it goes well. Answers the scene and
/// the error.
async fn broken_at(kind: Kind, fault: Fault, told: &str) -> Scene {
    let scene = Scene::start("", |ca| ca.script(|script| script.break_one(kind, fault))).await;
    let error = scene.perennial.last_error(NAME).await;
    assert!(error.contains(told), "{error}");
    scene
}

async fn broken_at_and_mended(kind: Kind, fault: Fault, told: &str) {
    let scene = broken_at(kind, fault, told).await;
    scene.recovers().await;
}

macro_rules! at_each_request {
    ($($module:ident: $fault:expr, $told:expr;)*) => {$(
        mod $module {
            use super::*;

            #[tokio::test(flavor = "multi_thread")]
            async fn at_the_directory() {
                broken_at_and_mended(Kind::Directory, $fault, $told).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn at_new_nonce() {
                broken_at_and_mended(Kind::NewNonce, $fault, $told).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn at_new_account() {
                broken_at_and_mended(Kind::NewAccount, $fault, $told).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn at_new_order() {
                broken_at_and_mended(Kind::NewOrder, $fault, $told).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn at_the_authorization() {
                broken_at_and_mended(Kind::Authorization, $fault, $told).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn at_the_challenge() {
                broken_at_and_mended(Kind::Challenge, $fault, $told).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn at_finalize() {
                broken_at_and_mended(Kind::Finalize, $fault, $told).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn at_the_certificate() {
                broken_at_and_mended(Kind::Certificate, $fault, $told).await;
            }
        }
    )*};
}

at_each_request! {
    html_500: Fault::Html500, "500";
    silence: Fault::Hang, "timed out";
}

/// How long the program says that it waits after this refusal of an order.
async fn wait_after(kind: Kind, fault: Fault) -> time::Duration {
    let scene = broken_at(kind, fault, "").await;
    let wait = scene.time("next_attempt").await - clock::now();
    assert_eq!(scene.ca.count(kind), 1);
    wait
}

fn assert_soon(wait: time::Duration) {
    assert!(wait < time::Duration::minutes(3), "{wait}");
}

fn assert_as_asked(wait: time::Duration) {
    let asked = time::Duration::seconds(TWO_HOURS.cast_signed());
    assert!(wait > asked * 0.9 && wait < asked * 1.2, "{wait}");
}

fn in_two_hours() -> Option<String> {
    Some(TWO_HOURS.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_without_a_date() {
    let fault = Fault::TooMany { retry_after: None };
    assert_soon(wait_after(Kind::NewOrder, fault).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_until_a_date() {
    let at = SystemTime::from(clock::now()) + Duration::from_secs(TWO_HOURS);
    let retry_after = Some(httpdate::fmt_http_date(at));
    let fault = Fault::TooMany { retry_after };
    assert_as_asked(wait_after(Kind::NewOrder, fault).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_at_the_directory() {
    let retry_after = in_two_hours();
    let fault = Fault::TooMany { retry_after };
    assert_as_asked(wait_after(Kind::Directory, fault).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn unavailable_without_a_date() {
    let fault = Fault::Unavailable { retry_after: None };
    assert_soon(wait_after(Kind::NewOrder, fault).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn unavailable_for_two_hours() {
    let retry_after = in_two_hours();
    let fault = Fault::Unavailable { retry_after };
    assert_as_asked(wait_after(Kind::NewOrder, fault).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn unavailable_as_a_whole_for_two_hours() {
    let retry_after = in_two_hours();
    let fault = Fault::Unavailable { retry_after };
    assert_as_asked(wait_after(Kind::Directory, fault).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_date_that_is_none_is_not_waited_for() {
    let retry_after = Some("when it suits us".to_owned());
    let fault = Fault::Unavailable { retry_after };
    assert_soon(wait_after(Kind::NewOrder, fault).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_nonce_is_ever_good() {
    let scene = Scene::start("", |ca| ca.script(|script| script.bad_nonces = u32::MAX)).await;
    let error = scene.perennial.last_error(NAME).await;
    assert!(error.contains("badNonce"), "{error}");
    let requests = scene.ca.requests().len();
    assert!(requests < 150, "{requests} requests");
    scene.ca.script(|script| script.bad_nonces = 0);
    scene.recovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authorization_that_stays_pending() {
    let pending = |ca: &ScriptedCa| {
        ca.script(|script| script.validation = Validation::PendingForEver);
    };
    let scene = Scene::start("", pending).await;
    let error = scene.perennial.last_error(NAME).await;
    assert!(error.contains("did not validate within"), "{error}");
    scene
        .ca
        .script(|script| script.validation = Validation::Always);
    scene.recovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_stays_in_processing_is_not_ordered_twice() {
    let stuck = |ca: &ScriptedCa| ca.script(|script| script.stuck_in_processing = true);
    let scene = Scene::start("", stuck).await;
    let error = scene.perennial.last_error(NAME).await;
    assert!(error.contains("did not issue within"), "{error}");
    scene.ca.finish_processing();
    scene.perennial.renew(NAME).await;
    scene.wait_for_certificates(1).await;
    assert_eq!(scene.ca.count(Kind::NewOrder), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_that_is_not_known_any_more_is_made_anew() {
    let scene = Scene::with_certificate("", |_| ()).await;
    scene.ca.forget_accounts();
    scene.perennial.renew(NAME).await;
    scene.wait_for_certificates(2).await;
    scene
        .perennial
        .wait_for_log("the CA does not know our account", SOON)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_moves() {
    let scene = Scene::with_certificate("", |_| ()).await;
    scene.ca.script(|script| script.moved = true);
    scene.perennial.renew(NAME).await;
    scene.wait_for_certificates(2).await;
    let moved = |path: &str| path.starts_with("/moved/new-order");
    assert!(scene.ca.requests().iter().any(|one| moved(&one.path)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_moves_while_the_program_is_down() {
    let mut scene = Scene::with_certificate("", |_| ()).await;
    scene.perennial.kill9();
    scene.ca.script(|script| script.moved = true);
    scene.perennial.start_and_wait().await;
    scene.perennial.wait_ready().await;
    scene.perennial.renew(NAME).await;
    scene.wait_for_certificates(2).await;
}

fn far() -> RenewalInfoAnswer {
    RenewalInfoAnswer::window("2090-01-01T00:00:00Z", "2090-01-02T00:00:00Z")
}

/// A CA that takes offence at `replaces` gets an order without.
async fn refused_predecessor(status: u16, kind: &'static str) {
    let with_info = |ca: &ScriptedCa| ca.script(|script| script.renewal_info = Some(far()));
    let scene = Scene::with_certificate("", with_info).await;
    let refusal = problem(status, kind, "not that one");
    scene
        .ca
        .script(|script| script.refuse_replaces = Some(refusal));
    scene.perennial.renew(NAME).await;
    scene.wait_for_certificates(2).await;
    assert_eq!(scene.ca.replaces(), [None, None]);
    assert_eq!(scene.ca.count(Kind::NewOrder), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_predecessor_that_was_replaced_before() {
    refused_predecessor(409, "alreadyReplaced").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_predecessor_that_the_ca_has_lost() {
    refused_predecessor(404, "malformed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_predecessor_over_which_the_ca_stumbles() {
    refused_predecessor(500, "serverInternal").await;
}

/// A certificate, no room for another, and a CA that refuses what the next one replaces.
async fn refused_predecessor_at_the_limit(status: u16, kind: &'static str) -> Scene {
    let limit = "[acme.limits]\nduplicate_certificates = \"1/7d\"\n";
    let with_info = |ca: &ScriptedCa| ca.script(|script| script.renewal_info = Some(far()));
    let scene = Scene::with_certificate(limit, with_info).await;
    // The CA has been asked, so that it is known to take `replaces`.
    wait_until(SOON, "renewal information", async || {
        (scene.ca.count(Kind::RenewalInfo) > 0).then_some(())
    })
    .await;
    let refusal = problem(status, kind, "not that one");
    let past = RenewalInfoAnswer::window("2020-01-01T00:00:00Z", "2020-01-02T00:00:00Z");
    scene.ca.script(|script| {
        script.refuse_replaces = Some(refusal);
        script.renewal_info = Some(past);
    });
    let path = format!("/certificates/{NAME}/renew?if_due=true");
    let (status, body) = scene.perennial.admin_post(&path).await;
    assert_eq!(status, 202, "{body}");
    scene
}

/// With `replaces` it was exempt from limits; without it is one more, and one too many. Nobody has
/// failed: it waits for the date of the limit, whatever happens meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_predecessor_waits_for_the_date_of_the_limit() {
    let mut scene = refused_predecessor_at_the_limit(409, "alreadyReplaced").await;
    for _ in 0..2 {
        let error = scene.perennial.last_error(NAME).await;
        assert!(error.contains("certificates for the same names"), "{error}");
        let wait = scene.time("next_attempt").await - clock::now();
        let (shortest, longest) = (time::Duration::days(6), time::Duration::days(7));
        assert!(wait > shortest && wait <= longest, "{wait}");
        let path = format!("/certificates/{NAME}/renew");
        let (_, body) = scene.perennial.admin_post(&path).await;
        assert!(body.contains("but waiting"), "{body}");
        assert_eq!(scene.ca.count(Kind::NewOrder), 2, "one of them refused");
        scene.perennial.restart().await;
    }
}

/// A CA that stumbles says nothing about the predecessor: its order is tried again as it was.
#[tokio::test(flavor = "multi_thread")]
async fn a_predecessor_over_which_the_ca_stumbles_at_the_limit() {
    let scene = refused_predecessor_at_the_limit(500, "serverInternal").await;
    let error = scene.perennial.last_error(NAME).await;
    assert!(error.contains("not that one"), "{error}");
    scene.ca.script(|script| script.refuse_replaces = None);
    scene.perennial.renew(NAME).await;
    scene.wait_for_certificates(2).await;
    assert!(scene.ca.replaces()[1].is_some());
}

/// The CA is asked once and not again at once, nothing is ordered, and the renewal stays where the
/// lifetime puts it.
async fn odd_renewal_info(answer: RenewalInfoAnswer) {
    let told = |ca: &ScriptedCa| ca.script(|script| script.renewal_info = Some(answer));
    let scene = Scene::with_certificate("", told).await;
    says_nothing(&scene).await;
    // Nothing was ordered because nothing was due, not because nobody is at work any more.
    scene.perennial.renew(NAME).await;
    scene.wait_for_certificates(2).await;
}

async fn says_nothing(scene: &Scene) {
    wait_until(SOON, "a question", async || {
        (scene.ca.count(Kind::RenewalInfo) > 0).then_some(())
    })
    .await;
    never_within(Duration::from_secs(1), async || {
        let (asked, ordered) = (
            scene.ca.count(Kind::RenewalInfo),
            scene.ca.count(Kind::NewOrder),
        );
        ((asked, ordered) != (1, 1)).then(|| format!("{asked} questions, {ordered} orders"))
    })
    .await;
    let in_days = (scene.time("next_renewal").await - clock::now()).whole_days();
    assert!((55..=86).contains(&in_days), "{in_days} days, of 90");
}

fn answer(body: &str) -> RenewalInfoAnswer {
    RenewalInfoAnswer {
        body: body.to_owned(),
        retry_after: Some("21600".to_owned()),
    }
}

macro_rules! odd_answers {
    ($($name:ident: $answer:expr;)*) => {
        mod renewal_info {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $name() {
                    odd_renewal_info($answer).await;
                }
            )*
        }
    };
}

odd_answers! {
    that_is_empty: answer("");
    that_is_html: answer("<html>Welcome</html>");
    without_a_window: answer("{}");
    with_half_a_window: answer(r#"{"suggestedWindow": {"start": "2026-01-01T00:00:00Z"}}"#);
    with_numbers_for_times: answer(r#"{"suggestedWindow": {"start": 1, "end": 2}}"#);
    with_dates_for_times: answer(r#"{"suggestedWindow": {"start": "2020-01-01", "end": "2020-01-02"}}"#);
    that_ends_before_it_starts: RenewalInfoAnswer::window("2020-01-02T00:00:00Z", "2020-01-01T00:00:00Z");
    that_ends_as_it_starts: RenewalInfoAnswer::window("2020-01-01T00:00:00Z", "2020-01-01T00:00:00Z");
    long_after_the_expiry: far();
    to_be_asked_again_at_once: RenewalInfoAnswer { retry_after: Some("0".to_owned()), ..far() };
    to_be_asked_again_never: RenewalInfoAnswer { retry_after: Some("4000000000".to_owned()), ..far() };
    without_a_time_to_ask_again: RenewalInfoAnswer { retry_after: None, ..far() };
    with_nonsense_for_an_explanation: answer(
        r#"{"suggestedWindow": {"start": "2090-01-01T00:00:00Z", "end": "2090-01-02T00:00:00Z"}, "explanationURL": [1]}"#
    );
}

async fn broken_renewal_info(fault: Fault) {
    let told = |ca: &ScriptedCa| {
        ca.script(|script| {
            script.renewal_info = Some(far());
            script.break_one(Kind::RenewalInfo, fault);
        });
    };
    let scene = Scene::with_certificate("", told).await;
    says_nothing(&scene).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn renewal_info_that_is_not_found() {
    broken_renewal_info(Fault::Refuse(problem(404, "malformed", "what?"))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn renewal_info_that_is_broken() {
    broken_renewal_info(Fault::Html500).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn renewal_info_that_hangs() {
    broken_renewal_info(Fault::Hang).await;
}

/// A CA that says "now" about every certificate, the new one, too.
#[tokio::test(flavor = "multi_thread")]
async fn renewal_info_that_is_always_in_the_past_renews_once() {
    let past = RenewalInfoAnswer::window("2020-01-01T00:00:00Z", "2020-01-02T00:00:00Z");
    let told = |ca: &ScriptedCa| ca.script(|script| script.renewal_info = Some(past));
    let scene = Scene::start("", told).await;
    scene.wait_for_certificates(2).await;
    never_within(Duration::from_secs(2), async || {
        let ordered = scene.ca.count(Kind::NewOrder);
        (ordered > 2).then(|| format!("{ordered} orders"))
    })
    .await;
}
