//! What is served now and will bite later is told: at the start, in `/status`, and by
//! `perennial check`.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use time::Duration;

use crate::support::certs::{KeyKind, Leaf, TestCa};
use crate::support::clock;
use crate::support::perennial::{Perennial, cli};
use crate::support::place::Place;
use crate::support::sites::{FileTls, site};
use crate::support::wait::{SOON, wait_until};
use crate::support::writers::Pair;

const NAME: &str = "a.example.test";

struct Scene {
    perennial: Perennial,
    ca: TestCa,
    pair: Pair,
    folder: PathBuf,
    config: String,
}

/// A pair that is overdue, and a folder. Not started yet.
fn scene() -> Scene {
    let place = Place::new();
    let ca = TestCa::new();
    let overdue = from(&ca, Duration::days(80));
    let pair = Pair::write(&place.path("tls"), &overdue);
    close(&pair.key);
    let folder = place.path("folder");
    std::fs::create_dir_all(&folder).expect("a folder");
    let config = format!(
        "[certificates]\ndirectories = [\"{}\"]\n{}{}",
        folder.display(),
        pair.table(),
        site(NAME, "files", &["respond:hello"])
    );
    Scene {
        perennial: Perennial::with_config(place, &config),
        ca,
        pair,
        folder,
        config,
    }
}

/// Valid for 90 days from so long ago.
fn from(ca: &TestCa, ago: Duration) -> Leaf {
    let begin = clock::now() - ago;
    ca.leaf_with(&[NAME], begin, begin + Duration::days(90), KeyKind::P256)
}

fn close(key: &Path) {
    set_mode(key, 0o600);
}

fn set_mode(key: &Path, mode: u32) {
    std::fs::set_permissions(key, Permissions::from_mode(mode)).expect("a mode");
}

impl Scene {
    async fn wait_warnings(&self, wanted: &[&str]) {
        let what = format!("exactly the warnings {wanted:?}");
        wait_until(SOON, &what, async || {
            let status = self.perennial.status_json().await;
            let warnings = status["warnings"].as_array()?.clone();
            let is_there = |part: &&str| {
                let mut texts = warnings.iter().filter_map(|it| it.as_str());
                texts.any(|text| text.contains(part))
            };
            (warnings.len() == wanted.len() && wanted.iter().all(is_there)).then_some(())
        })
        .await;
    }

    fn told(&self, pattern: &str) -> usize {
        self.perennial.log_lines_with(pattern).len()
    }
}

const OVERDUE: &str = "was due for renewal";
const OPEN: &str = "is open to others than its owner";
const CONTESTED: &str = "both have a valid certificate for";

#[tokio::test(flavor = "multi_thread")]
async fn what_will_bite_is_told_at_the_start_and_when_it_appears() {
    let mut scene = scene();
    set_mode(&scene.pair.key, 0o644);
    scene.perennial.start_and_wait().await;
    scene.wait_warnings(&[OVERDUE, OPEN]).await;
    assert_eq!(scene.told(OPEN), 1);

    let other = Pair::write(&scene.folder, &from(&scene.ca, Duration::days(70)));
    close(&other.key);
    scene
        .wait_warnings(&[OVERDUE, OVERDUE, OPEN, CONTESTED])
        .await;
    assert_eq!((scene.told(OPEN), scene.told(CONTESTED)), (1, 1));

    close(&scene.pair.key);
    scene.wait_warnings(&[OVERDUE, OVERDUE, CONTESTED]).await;
    other.overwrite(&from(&scene.ca, Duration::days(1)));
    scene.wait_warnings(&[CONTESTED]).await;
    let (code, body) = scene.perennial.admin_get("/readyz").await;
    assert_eq!(code, 200, "{body}");
    assert!(body.contains(CONTESTED), "{body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn check_prints_warnings_and_accepts() {
    let scene = scene();
    set_mode(&scene.pair.key, 0o640);
    let other = Pair::write(&scene.folder, &from(&scene.ca, Duration::days(70)));
    close(&other.key);
    let file = scene.perennial.place.path("perennial.toml");
    let done = cli(&["check", "--config", &file.display().to_string()]).await;
    let done = done.assert_success();
    for warning in [OVERDUE, OPEN, CONTESTED, "mode 0640"] {
        let fits = |line: &str| line.starts_with("warning: ") && line.contains(warning);
        assert!(done.stderr.lines().any(fits), "{warning}:\n{}", done.stderr);
    }
    assert!(scene.config.contains(NAME));
}

#[tokio::test(flavor = "multi_thread")]
async fn check_is_silent_about_what_is_in_order() {
    let place = Place::new();
    let files = FileTls::new(&place, &[NAME]);
    close(&files.pair.key);
    let site = site(NAME, "files", &["respond:hello"]);
    let text = format!("{}{}{site}", place.server_table(), files.pair.table());
    let file = place.write("perennial.toml", text);
    let done = cli(&["check", "--config", &file.display().to_string()]).await;
    assert_eq!(done.assert_success().stderr, "");
}

/// In a mount namespace of its own, with the certificate mounted on itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_mounted_by_itself_is_told() {
    let place = Place::new();
    let files = FileTls::new(&place, &[NAME]);
    close(&files.pair.key);
    let site = site(NAME, "files", &["respond:hello"]);
    let certificate = files.pair.certificate.display().to_string();
    let mount = "mount --bind \"$1\" \"$1\" && shift && exec \"$@\"";
    let before = ["unshare", "-rm", "sh", "-c", mount, "sh", &certificate];
    let config = format!("{}{site}", files.pair.table());
    let mut perennial = Perennial::with_config(place, &config).through(&before);
    perennial.start_and_wait().await;
    let line = perennial.wait_for_log("is mounted by itself", SOON).await;
    assert!(line.contains(&certificate), "{line}");
    let (_, body) = perennial.admin_get("/readyz").await;
    assert!(body.contains("is mounted by itself"), "{body}");
}
