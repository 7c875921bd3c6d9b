//! Returning clients resume their sessions, also after the certificate was replaced; unless the
//! configuration says that they shall not.

use std::path::PathBuf;

use crate::reload::{EVENTS, NAME, wait_served};
use crate::support::certs::Leaf;
use crate::support::perennial::Perennial;
use crate::support::place::Place;
use crate::support::session::{Visit, Visitor};
use crate::support::sites::{FileTls, site};
use crate::support::wait::{SOON, wait_until};

struct Scene {
    perennial: Perennial,
    tls: FileTls,
    session: PathBuf,
}

async fn scene(tls_table: &str) -> Scene {
    let place = Place::new();
    let tls = FileTls::new(&place, &[NAME]);
    let session = place.path("session.pem");
    let site = site(NAME, "files", &["respond:hello"]);
    let rest = format!("{EVENTS}{}{tls_table}{site}", tls.pair.table());
    let perennial = Perennial::run(place, &rest).await;
    wait_served(&perennial, &tls.leaf, SOON).await;
    Scene {
        perennial,
        tls,
        session,
    }
}

impl Scene {
    async fn first_visit(&self, visitor: &Visitor) {
        let visitor = visitor.clone().keeping(&self.session);
        let visit = visitor.visit(self.perennial.place.https, NAME).await;
        visit.assert_answered().assert_new();
    }

    async fn next_visit(&self, visitor: &Visitor) -> Visit {
        let visitor = visitor.clone().offering(&self.session);
        let visit = visitor.visit(self.perennial.place.https, NAME).await;
        visit.assert_answered();
        visit
    }

    async fn swap(&self) -> Leaf {
        let new = self.tls.ca.leaf(&[NAME]);
        self.tls.pair.overwrite(&new);
        wait_served(&self.perennial, &new, SOON).await;
        new
    }
}

async fn resumes_after_a_swap(visitor: Visitor) {
    let scene = scene("").await;
    scene.first_visit(&visitor).await;
    scene.next_visit(&visitor).await.assert_reused();
    scene.swap().await;
    scene.next_visit(&visitor).await.assert_reused();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tls13_session_resumes_after_a_swap() {
    resumes_after_a_swap(Visitor::new()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tls12_session_resumes_after_a_swap() {
    resumes_after_a_swap(Visitor::new().tls12()).await;
}

async fn ends_with_its_certificate(visitor: Visitor) {
    let scene = scene("[tls]\nresume_after_swap = false\n").await;
    scene.first_visit(&visitor).await;
    scene.next_visit(&visitor).await.assert_reused();
    scene.swap().await;
    scene.next_visit(&visitor).await.assert_new();
    scene.first_visit(&visitor).await;
    scene.next_visit(&visitor).await.assert_reused();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tls13_session_ends_with_its_certificate_if_told_so() {
    ends_with_its_certificate(Visitor::new()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tls12_session_ends_with_its_certificate_if_told_so() {
    ends_with_its_certificate(Visitor::new().tls12()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_share_ticket_keys_share_sessions() {
    let keys = Place::new();
    let (one, two) = (
        keys.write("one.key", [1; 80]),
        keys.write("two.key", [2; 48]),
    );
    let table = format!("[tls]\nsession_ticket_key_files = [{one:?}, {two:?}]\n");
    let (here, there) = (scene(&table).await, scene(&table).await);
    let visitor = Visitor::new();
    here.first_visit(&visitor).await;
    let elsewhere = visitor.clone().offering(&here.session);
    let visit = elsewhere.visit(there.perennial.place.https, NAME).await;
    visit.assert_answered().assert_reused();

    // What encrypted until now still decrypts, where it is kept.
    keys.write("two.key", [1; 80]);
    keys.write("one.key", [3; 80]);
    here.perennial.admin_post("/reload").await;
    here.next_visit(&visitor).await.assert_reused();
    // A key that is no longer there resumes nothing; that is found without a request to look.
    keys.write("two.key", [4; 80]);
    wait_until(SOON, "the key to be forgotten", async || {
        let visit = here.next_visit(&visitor).await;
        (!visit.reused).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_key_of_the_wrong_size_is_named_and_the_last_good_one_stays() {
    let keys = Place::new();
    let key = keys.write("ticket.key", [7; 80]);
    let scene = scene(&format!("[tls]\nsession_ticket_key_files = [{key:?}]\n")).await;
    scene.first_visit(&Visitor::new()).await;
    keys.write("ticket.key", [8; 79]);
    let (_, body) = scene.perennial.admin_post("/reload").await;
    let status = scene.perennial.status_json().await;
    let file = &status["tls_files"][0];
    assert_eq!(file["purpose"], "session_ticket_key", "{body}");
    let error = file["last_error"].as_str().expect("an error");
    assert!(error.contains("has 79 bytes"), "{error}");
    let path = format!("path=\"{}\"", key.display());
    let failing = "perennial_tls_file_reload_failing";
    assert_eq!(scene.perennial.metric(failing, &[&path]).await, Some(1.0));
    scene.next_visit(&Visitor::new()).await.assert_reused();
}
