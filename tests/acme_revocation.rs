//! A certificate that its authority has revoked is found out by the list or the responder that it
//! names, and replaced at once.

use std::time::Duration;

use rcgen::RevocationReason;

use crate::support::client::{Served, serial, served};
use crate::support::perennial::Perennial;
use crate::support::place::Place;
use crate::support::scripted_ca::{Kind, Named, Revocation, ScriptedCa};
use crate::support::sites::site;
use crate::support::wait::{SOON, never_within, wait_until};

const NAME: &str = "a.example.test";

/// Started at an authority that names its list or its responder; `acme` continues the `[acme]`
/// table.
async fn start(revocation: Revocation, acme: &str) -> (Perennial, ScriptedCa) {
    let place = Place::new();
    let ca = ScriptedCa::start(&place).await;
    ca.script(|script| script.revocation = revocation);
    let site = site(NAME, "acme", &["respond:hello"]);
    let rest = format!("{}{acme}{site}", ca.acme_table());
    (Perennial::run(place, &rest).await, ca)
}

/// The certificate that the authority issued as its `number`th, once it is served.
async fn nth_served(perennial: &Perennial, ca: &ScriptedCa, number: usize) -> Served {
    let what = format!("certificate number {number}");
    wait_until(SOON, &what, async || {
        let served = served(perennial.place.https, Some(NAME)).await.ok()?;
        (ca.serials().get(number) == Some(&served.serial)).then_some(served)
    })
    .await
}

fn public_key(served: &Served) -> Vec<u8> {
    let (_, leaf) = x509_parser::parse_x509_certificate(&served.der).expect("X.509");
    leaf.public_key().raw.to_vec()
}

fn key_of(pem: &str) -> Vec<u8> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).expect("PEM");
    let leaf = pem.parse_x509().expect("X.509");
    leaf.public_key().raw.to_vec()
}

/// Revoked as soon as it is there, and replaced; by another one that is not.
async fn is_replaced(named: Named, reason: RevocationReason, acme: &str) -> (Vec<u8>, Vec<u8>) {
    let revocation = Revocation {
        named,
        first: Some(reason),
        forged: false,
    };
    let (perennial, ca) = start(revocation, acme).await;
    let second = nth_served(&perennial, &ca, 1).await;
    perennial
        .wait_for_log("the certificate is revoked", SOON)
        .await;
    // And that is the end of it: the successor is good.
    never_within(Duration::from_secs(1), async || {
        let number = ca.issued().len();
        (number != 2).then(|| format!("{number} certificates"))
    })
    .await;
    assert_eq!(perennial.status_field(NAME, "revoked").await, None);
    assert_eq!(perennial.status_field(NAME, "last_error").await, None);
    (key_of(&ca.issued()[0]), public_key(&second))
}

#[tokio::test(flavor = "multi_thread")]
async fn by_the_list_that_it_names() {
    let (first, second) = is_replaced(Named::InList, RevocationReason::Superseded, "").await;
    assert_ne!(first, second, "a new key for each");
}

#[tokio::test(flavor = "multi_thread")]
async fn by_the_responder_that_it_names() {
    is_replaced(Named::ByResponder, RevocationReason::Superseded, "").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compromised_key_is_not_used_again() {
    let reuse = "reuse_key = true\n";
    let superseded = RevocationReason::Superseded;
    let (first, second) = is_replaced(Named::InList, superseded, reuse).await;
    assert_eq!(first, second, "reuse_key");
    for named in [Named::InList, Named::ByResponder] {
        let compromise = RevocationReason::KeyCompromise;
        let (first, second) = is_replaced(named, compromise, reuse).await;
        assert_ne!(first, second, "{named:?}");
    }
}

/// What nobody can vouch for is shown, and leads to nothing.
async fn changes_nothing(named: Named) {
    let revocation = Revocation {
        named,
        first: Some(RevocationReason::KeyCompromise),
        forged: true,
    };
    let (mut perennial, ca) = start(revocation, "").await;
    let first = nth_served(&perennial, &ca, 0).await;
    let told = wait_until(SOON, "revocation_error in /status", async || {
        perennial.status_field(NAME, "revocation_error").await
    });
    let told = told.await.to_string();
    assert!(told.contains("its signature is not by"), "{told}");
    let asked = ca.count(Kind::Revocation);
    assert_eq!(asked, 1);
    // Nor does a loop of restarts ask more often.
    for _ in 0..3 {
        perennial.restart().await;
        wait_until(SOON, "revocation_error in /status", async || {
            perennial.status_field(NAME, "revocation_error").await
        })
        .await;
    }
    assert_eq!(ca.count(Kind::Revocation), asked);
    assert_eq!(ca.issued().len(), 1);
    assert_eq!(serial(perennial.place.https, NAME).await, Ok(first.serial));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_list_changes_nothing() {
    changes_nothing(Named::InList).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_response_changes_nothing() {
    changes_nothing(Named::ByResponder).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_asked_where_that_is_not_wanted() {
    let revocation = Revocation {
        named: Named::InList,
        first: Some(RevocationReason::KeyCompromise),
        forged: false,
    };
    let (perennial, ca) = start(revocation, "check_revocation = false\n").await;
    nth_served(&perennial, &ca, 0).await;
    never_within(Duration::from_secs(1), async || {
        let asked = ca.count(Kind::Revocation);
        (asked > 0).then(|| format!("{asked} requests"))
    })
    .await;
    assert_eq!(ca.issued().len(), 1);
}
