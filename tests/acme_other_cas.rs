//! Certificates from authorities that are not Pebble, issued and renewed: Caddy's `acme_server`, for
//! an address, and step-ca, for a name; each by HTTP-01 and by TLS-ALPN-01.

use crate::support::client::{Served, served};
use crate::support::other_cas::OtherCa;
use crate::support::perennial::Perennial;
use crate::support::place::Place;
use crate::support::sites::site;
use crate::support::wait::{SOON, wait_until};

const CADDY: &str = "Caddy Local Authority";
const STEP_CA: &str = "Perennial test intermediate";

/// By this authority, and another one than `before`.
async fn wait_for(perennial: &Perennial, sni: Option<&str>, issuer: &str, before: &str) -> Served {
    wait_until(SOON, "a certificate by that authority", async || {
        let served = served(perennial.place.https, sni).await.ok()?;
        (served.issuer.contains(issuer) && served.serial != before).then_some(served)
    })
    .await
}

async fn issued_and_renewed(place: Place, ca: &OtherCa, name: &str, issuer: &str, challenge: &str) {
    // Clients name no address.
    let sni = Some(name).filter(|name| name.parse::<std::net::IpAddr>().is_err());
    let only = format!("challenges = [\"{challenge}\"]\n");
    let site = site(name, "acme", &["respond:hello"]);
    let text = format!("{}{only}{site}", ca.acme_table());
    let perennial = Perennial::run(place, &text).await;
    let first = wait_for(&perennial, sni, issuer, "").await;
    assert_eq!(first.names, [name]);
    assert!(first.chain_len > 1, "an intermediate comes with it");
    perennial.renew(name).await;
    let second = wait_for(&perennial, sni, issuer, &first.serial).await;
    assert_eq!(second.names, [name]);
    let error = perennial.status_field(name, "last_error").await;
    assert_eq!(error, None);
}

async fn by_caddy(challenge: &str) {
    let mut place = Place::new();
    let Some(ca) = OtherCa::caddy(&mut place).await else {
        return;
    };
    let name = place.ip.to_string();
    issued_and_renewed(place, &ca, &name, CADDY, challenge).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn caddys_acme_server_by_http_01() {
    by_caddy("http-01").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn caddys_acme_server_by_tls_alpn_01() {
    by_caddy("tls-alpn-01").await;
}

async fn by_step_ca(challenge: &str) {
    let place = Place::new();
    let Some(ca) = OtherCa::step_ca(&place).await else {
        return;
    };
    issued_and_renewed(place, &ca, "a.example.test", STEP_CA, challenge).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn step_ca_by_http_01() {
    by_step_ca("http-01").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn step_ca_by_tls_alpn_01() {
    by_step_ca("tls-alpn-01").await;
}
