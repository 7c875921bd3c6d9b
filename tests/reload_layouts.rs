//! The layouts that certificate files come in: Kubernetes secrets, certbot's links, drop folders,
//! one file for both.

use std::fs;
use std::time::Instant;

use crate::reload::{EVENTS, LIMIT, NAME, POLL, start, wait_served};
use crate::support::certs::{Leaf, TestCa};
use crate::support::client::serial;
use crate::support::handshakes::Handshakes;
use crate::support::place::Place;
use crate::support::wait::SOON;
use crate::support::writers::{Certbot, SecretVolume, cp};

async fn secret_volume_is_swapped(certificates: &str) {
    let (place, ca) = (Place::new(), TestCa::new());
    let old = ca.leaf(&[NAME]);
    let mut volume = SecretVolume::new(&place.path("secret"), &old);
    let folder = format!("{certificates}directories = [{:?}]\n", volume.root);
    let perennial = start(place, &folder).await;
    wait_served(&perennial, &old, SOON).await;
    let handshakes = Handshakes::start(perennial.place.https, NAME);
    let new = ca.leaf(&[NAME]);
    volume.update(&new);
    let written = Instant::now();
    wait_served(&perennial, &new, SOON).await;
    let took = written.elapsed();
    handshakes.stop(&[&old.serial, &new.serial]).await;
    assert!(took < LIMIT, "served {took:?} after the swap");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kubernetes_secret_is_swapped_with_events() {
    secret_volume_is_swapped(EVENTS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kubernetes_secret_is_swapped_with_the_poll() {
    secret_volume_is_swapped(POLL).await;
}

async fn certbot_relinks(certificates: &str) {
    let (place, ca) = (Place::new(), TestCa::new());
    let old = ca.leaf(&[NAME]);
    let mut certbot = Certbot::new(&place.path("letsencrypt"), NAME, &old);
    let table = certbot.live().table();
    let perennial = start(place, &format!("{certificates}{table}")).await;
    wait_served(&perennial, &old, SOON).await;
    let handshakes = Handshakes::start(perennial.place.https, NAME);
    let new = ca.leaf(&[NAME]);
    certbot.renew(&new);
    let written = Instant::now();
    wait_served(&perennial, &new, SOON).await;
    let took = written.elapsed();
    handshakes.stop(&[&old.serial, &new.serial]).await;
    assert!(took < LIMIT, "served {took:?} after the last link");
}

#[tokio::test(flavor = "multi_thread")]
async fn certbot_relinks_with_events() {
    certbot_relinks(EVENTS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn certbot_relinks_with_the_poll() {
    certbot_relinks(POLL).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drop_folder_is_searched_by_content() {
    let (place, ca) = (Place::new(), TestCa::new());
    let folder = place.path("drop");
    fs::create_dir_all(&folder).expect("a folder");
    let table = format!("{EVENTS}directories = [{folder:?}]\n");
    let perennial = start(place, &table).await;
    let refused = serial(perennial.place.https, NAME).await;
    assert!(refused.is_err(), "nothing is there yet: {refused:?}");

    let (wanted, other) = (ca.leaf(&[NAME]), ca.leaf(&["other.example.test"]));
    let below = folder.join("team/web");
    fs::create_dir_all(&below).expect("folders");
    fs::write(folder.join("README.txt"), "no certificate").expect("written");
    fs::write(below.join("1.key"), &other.key_pem).expect("written");
    fs::write(below.join("2.key"), &wanted.key_pem).expect("written");
    fs::write(below.join("site.crt"), wanted.chain_pem()).expect("written");
    wait_served(&perennial, &wanted, SOON).await;

    let newer = ca.leaf(&[NAME]);
    fs::write(below.join("2.key"), &newer.key_pem).expect("written");
    fs::write(below.join("site.crt"), newer.chain_pem()).expect("written");
    wait_served(&perennial, &newer, SOON).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn certificate_and_key_in_one_file() {
    let (place, ca) = (Place::new(), TestCa::new());
    let both = |leaf: &Leaf| format!("{}{}", leaf.key_pem, leaf.chain_pem());
    let old = ca.leaf(&[NAME]);
    let file = place.write("combined.pem", both(&old));
    let table = format!("{EVENTS}[[certificates.files]]\ncertificate = {file:?}\n");
    let perennial = start(place, &table).await;
    wait_served(&perennial, &old, SOON).await;
    let new = ca.leaf(&[NAME]);
    cp(&both(&new), &file).await;
    wait_served(&perennial, &new, SOON).await;
}
