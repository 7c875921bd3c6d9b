//! Certificate files that cannot be used: what was good stays served, and somebody is told, once.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::support::certs::{KeyKind, Leaf, TestCa};
use crate::support::client::serial;
use crate::support::clock;
use crate::support::perennial::Perennial;
use crate::support::place::Place;
use crate::support::sites::{FileTls, site};
use crate::support::wait::{SOON, never_within, wait_until};
use crate::support::writers::Pair;

pub const NAME: &str = "a.example.test";
const OTHER: &str = "b.example.test";
pub const POLL: &str = "[certificates]\nwatch = false\npoll_interval = \"200ms\"\n";
/// Ten polls.
const SEVERAL_POLLS: Duration = Duration::from_secs(2);
const FAILING: &str = "perennial_certificate_reload_failing";

pub struct Scene {
    pub perennial: Perennial,
    pub ca: TestCa,
    pub good: Leaf,
    pub pair: Pair,
}

impl Scene {
    async fn start() -> Scene {
        let place = Place::new();
        let FileTls { ca, leaf, pair, .. } = FileTls::new(&place, &[NAME]);
        let site = site(NAME, "files", &["respond:hello"]);
        let rest = format!("{POLL}{}{site}", pair.table());
        let perennial = Perennial::with_config(place, &rest);
        let mut scene = Scene {
            perennial,
            ca,
            good: leaf,
            pair,
        };
        scene.perennial.start_and_wait().await;
        scene.perennial.wait_ready().await;
        scene
    }

    pub async fn wait_served(&self, leaf: &Leaf) {
        wait_until(SOON, "the certificate to be served", async || {
            let served = serial(self.perennial.place.https, NAME).await.ok()?;
            (served == leaf.serial).then_some(())
        })
        .await;
    }

    /// After something was broken: all that must hold until it is mended, and then that.
    async fn assert_kept_told_and_mended(&self, file: &Path) {
        self.wait_reported(file).await;
        self.assert_told_once(file).await;
        let mended = self.ca.leaf(&[NAME]);
        self.pair.overwrite(&mended);
        self.wait_served(&mended).await;
        wait_until(SOON, "the failure to be over", async || {
            let error = self.perennial.certificate(NAME).await?["last_error"].clone();
            let failing = self.perennial.metric(FAILING, &[]).await.unwrap_or(0.0);
            (error.is_null() && failing == 0.0).then_some(())
        })
        .await;
    }

    /// `/status` names the file and a cause, the metric is 1.
    pub async fn wait_reported(&self, file: &Path) {
        let file = file.display().to_string();
        wait_until(SOON, "/status and the metric to tell", async || {
            let entry = self.perennial.certificate(NAME).await?;
            let told = entry["last_error"].as_str()?.contains(&file);
            let failing = self.perennial.metric(FAILING, &[]).await;
            (told && failing == Some(1.0)).then_some(())
        })
        .await;
    }

    /// However many polls find the same, the log says it once; the good one is served meanwhile.
    async fn assert_told_once(&self, file: &Path) {
        // It was written before, and is read by another thread.
        let before = wait_until(SOON, "the log to name it", async || {
            let lines = loud_lines(&self.perennial, file);
            (!lines.is_empty()).then_some(lines)
        })
        .await;
        never_within(SEVERAL_POLLS, async || {
            let served = serial(self.perennial.place.https, NAME).await;
            (served.as_ref() != Ok(&self.good.serial)).then(|| format!("served: {served:?}"))
        })
        .await;
        assert_eq!(
            loud_lines(&self.perennial, file),
            before,
            "it says it again and again"
        );
    }
}

fn loud_lines(perennial: &Perennial, file: &Path) -> Vec<String> {
    let loud = |line: &String| line.contains("WARN") || line.contains("ERROR");
    let lines = perennial.log_lines_with(&file.display().to_string());
    lines.into_iter().filter(loud).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncated_certificate() {
    let scene = Scene::start().await;
    let whole = scene.ca.leaf(&[NAME]).chain_pem();
    fs::write(&scene.pair.certificate, &whole[..whole.len() / 3]).expect("written");
    scene
        .assert_kept_told_and_mended(&scene.pair.certificate)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_does_not_match() {
    let scene = Scene::start().await;
    fs::write(&scene.pair.key, scene.ca.leaf(&[NAME]).key_pem).expect("written");
    scene.assert_kept_told_and_mended(&scene.pair.key).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_with_nothing_in_it() {
    let scene = Scene::start().await;
    fs::write(&scene.pair.key, "").expect("written");
    scene.assert_kept_told_and_mended(&scene.pair.key).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_where_a_file_was() {
    let scene = Scene::start().await;
    fs::remove_file(&scene.pair.key).expect("removed");
    fs::create_dir(&scene.pair.key).expect("a folder");
    scene.wait_reported(&scene.pair.key).await;
    scene.assert_told_once(&scene.pair.key).await;
    fs::remove_dir(&scene.pair.key).expect("removed");
    scene.pair.overwrite(&scene.good);
    scene.wait_served(&scene.good).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_certificate() {
    let scene = Scene::start().await;
    let end = clock::now() - time::Duration::HOUR;
    let begin = end - time::Duration::DAY;
    let expired = scene.ca.leaf_with(&[NAME], begin, end, KeyKind::P256);
    scene.pair.overwrite(&expired);
    scene
        .assert_kept_told_and_mended(&scene.pair.certificate)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_are_gone() {
    let scene = Scene::start().await;
    fs::remove_file(&scene.pair.certificate).expect("removed");
    fs::remove_file(&scene.pair.key).expect("removed");
    scene
        .assert_kept_told_and_mended(&scene.pair.certificate)
        .await;
}

/// A drop folder that somebody has emptied.
#[tokio::test(flavor = "multi_thread")]
async fn an_emptied_folder() {
    let place = Place::new();
    let tls = FileTls::new(&place, &[NAME]);
    let folder = tls.pair.key.parent().expect("a folder").to_owned();
    let site = site(NAME, "files", &["respond:hello"]);
    let rest = format!("{POLL}directories = [{folder:?}]\n{site}");
    let mut perennial = Perennial::run(place, &rest).await;
    perennial.wait_ready().await;
    fs::remove_file(&tls.pair.certificate).expect("removed");
    fs::remove_file(&tls.pair.key).expect("removed");
    never_within(SEVERAL_POLLS, async || {
        let served = serial(perennial.place.https, NAME).await;
        (served.as_ref() != Ok(&tls.leaf.serial)).then(|| format!("served: {served:?}"))
    })
    .await;
    let folder_text = folder.display().to_string();
    wait_until(SOON, "/status to name the folder", async || {
        let error = perennial.status_field(NAME, "last_error").await?;
        error.as_str()?.contains(&folder_text).then_some(())
    })
    .await;
    assert!(!loud_lines(&perennial, &folder).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_with_a_broken_pair_serves_the_others() {
    let place = Place::new();
    let tls = FileTls::new(&place, &[OTHER]);
    let good = tls.ca.leaf(&[NAME]);
    let broken = Pair::write(&place.path("broken"), &good);
    fs::write(&broken.key, "-----BEGIN PRIVATE KEY-----\nMIG").expect("written");
    let sites = [NAME, OTHER].map(|name| site(name, "files", &["respond:hello"]));
    let tables = [POLL, &broken.table(), &tls.pair.table()].concat();
    let perennial = Perennial::run(place, &format!("{tables}{}", sites.concat())).await;
    let https = perennial.place.https;
    wait_until(SOON, "the good one", async || {
        serial(https, OTHER).await.ok()
    })
    .await;
    assert!(serial(https, NAME).await.is_err());
    let (ready, reasons) = perennial.admin_get("/readyz").await;
    assert_eq!(ready, 503);
    assert!(reasons.contains(NAME), "{reasons}");
    broken.overwrite(&good);
    wait_until(SOON, "the mended one", async || {
        serial(https, NAME).await.ok()
    })
    .await;
}
