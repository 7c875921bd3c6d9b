//! The library in somebody else's Pingora server: `examples/pingora_server.rs`, built and run.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::OnceCell;

use crate::reload::LIMIT;
use crate::support::certs::{Leaf, TestCa};
use crate::support::client::{serial, served};
use crate::support::command::{self, Lines};
use crate::support::http1::KeepAlive;
use crate::support::pebble::{Options, Pebble};
use crate::support::place::Place;
use crate::support::scripted_ca::{Kind, ScriptedCa, Validation};
use crate::support::upstream::Upstream;
use crate::support::wait::{SOON, wait_until};
use crate::support::writers::{Pair, cp};

const NAME: &str = "a.example.test";
const OTHER: &str = "b.example.test";

/// Built by cargo itself, which knows whether there is anything to do.
async fn built() -> &'static Path {
    static BUILT: OnceCell<PathBuf> = OnceCell::const_new();
    BUILT
        .get_or_init(|| async {
            let mut build = Command::new(env!("CARGO"));
            build.args([
                "build",
                "--locked",
                "--quiet",
                "--example",
                "pingora_server",
            ]);
            build.current_dir(env!("CARGO_MANIFEST_DIR"));
            command::run(build).await.assert_success();
            let tests = std::env::current_exe().expect("the path of this program");
            let profile = tests.ancestors().nth(2).expect("the profile's directory");
            profile.join("examples/pingora_server")
        })
        .await
}

/// Killed when dropped; its log is printed if the test has failed by then.
struct Application {
    place: Place,
    child: Child,
    log: Lines,
    _upstream: Upstream,
}

impl Application {
    async fn start(place: Place, rest: &[&str], environment: &[(&str, &str)]) -> Application {
        let upstream = Upstream::start(&place, "app").await;
        std::fs::create_dir_all(folder(&place)).expect("a folder");
        let mut command = Command::new(built().await);
        command.arg(place.https.to_string()).arg(folder(&place));
        command.arg(upstream.addr.to_string()).args(rest);
        command.envs(environment.iter().copied());
        command.stdin(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the example starts");
        let log = Lines::default();
        command::collect(child.stderr.take().expect("a pipe"), &log);
        Application {
            place,
            child,
            log,
            _upstream: upstream,
        }
    }

    async fn wait_served(&self, name: &str, wanted: &str) {
        let what = format!("serial {wanted} for {name}");
        wait_until(SOON, &what, async || {
            let found = serial(self.place.https, name).await.ok()?;
            (found == wanted).then_some(())
        })
        .await;
    }

    async fn wait_for_log(&self, text: &str) {
        wait_until(SOON, text, async || {
            let log = self.log.all();
            log.iter().any(|line| line.contains(text)).then_some(())
        })
        .await;
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = self.log.all();
            eprintln!("--- the application's log ---\n{}", log.join("\n"));
        }
    }
}

fn folder(place: &Place) -> PathBuf {
    place.path("certificates")
}

async fn replace(pair: &Pair, leaf: &Leaf) {
    cp(&leaf.chain_pem(), &pair.certificate).await;
    cp(&leaf.key_pem, &pair.key).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_file_is_served_without_a_restart_and_connections_stay() {
    let place = Place::new();
    let ca = TestCa::new();
    let (old, new) = (ca.leaf(&[NAME]), ca.leaf(&[NAME]));
    let pair = Pair::write(&folder(&place), &old);
    let application = Application::start(place, &[], &[]).await;
    application.wait_served(NAME, &old.serial).await;
    let https = application.place.https;
    let mut connection = KeepAlive::open(https, NAME, None).await.expect("open");
    assert_eq!(connection.get("/one").await.expect("an answer").0, 200);

    replace(&pair, &new).await;
    wait_until(LIMIT, "the new certificate", async || {
        let found = serial(https, NAME).await.ok()?;
        (found == new.serial).then_some(())
    })
    .await;
    assert_eq!(connection.get("/two").await.expect("an answer").0, 200);
    let http2 = served(https, Some(NAME)).await.expect("a handshake");
    assert_eq!(http2.alpn.as_deref(), Some("h2"));

    std::fs::write(&pair.certificate, "broken").expect("written");
    application
        .wait_for_log("the last good one stays in service")
        .await;
    assert_eq!(serial(https, NAME).await.as_ref(), Ok(&new.serial));
}

#[tokio::test(flavor = "multi_thread")]
async fn names_come_and_unknown_ones_are_refused() {
    let place = Place::new();
    let ca = TestCa::new();
    let (first, second) = (ca.leaf(&[NAME]), ca.leaf(&[OTHER]));
    Pair::write(&folder(&place), &first);
    let application = Application::start(place, &[], &[]).await;
    application.wait_served(NAME, &first.serial).await;
    // Before that a name may still come, and Pingora has no way to say that it did not.
    application.wait_for_log("first load done").await;
    let https = application.place.https;
    let refused = served(https, Some(OTHER)).await.expect_err("refused");
    assert!(refused.contains("UnrecognisedName"), "{refused}");
    let nameless = served(https, None).await.expect_err("refused");
    assert!(nameless.contains("UnrecognisedName"), "{nameless}");
    Pair::write(&folder(&application.place).join("second"), &second);
    application.wait_served(OTHER, &second.serial).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_ends_when_it_is_told_to() {
    let place = Place::new();
    let leaf = TestCa::new().leaf(&[NAME]);
    Pair::write(&folder(&place), &leaf);
    let mut application = Application::start(place, &[], &[]).await;
    application.wait_served(NAME, &leaf.serial).await;
    let pid = i32::try_from(application.child.id()).expect("a process id");
    // Pingora's quick end; its graceful one waits for five minutes.
    kill_process(Pid::from_raw(pid).expect("a process id"), Signal::INT).expect("it runs");
    let status = wait_until(SOON, "its end", async || {
        application.child.try_wait().expect("its status")
    });
    assert!(status.await.success());
}

async fn ordered_by(challenge: &'static str, http_listen: Option<SocketAddr>, place: Place) {
    let ca = ScriptedCa::start(&place).await;
    ca.script(|script| {
        script.validation = Validation::Real;
        script.challenges = vec![challenge];
    });
    let state = place.state().display().to_string();
    let http = http_listen.map(|address| address.to_string());
    let mut environment = vec![("ACME_DIRECTORY", &*ca.directory)];
    environment.extend(http.as_deref().map(|address| ("HTTP_LISTEN", address)));
    let own = TestCa::new().leaf(&[OTHER]);
    Pair::write(&folder(&place), &own);
    let application = Application::start(place, &[&state, NAME, OTHER], &environment).await;
    application.wait_served(OTHER, &own.serial).await;
    wait_until(SOON, "the authority's certificate", async || {
        let served = serial(application.place.https, NAME).await.ok()?;
        ca.serials().contains(&served).then_some(())
    })
    .await;
    // The name that a file covers was left to its file.
    assert_eq!(ca.count(Kind::NewOrder), 1);
    assert_eq!(serial(application.place.https, OTHER).await, Ok(own.serial));
}

#[tokio::test(flavor = "multi_thread")]
async fn names_without_a_file_are_ordered_by_tls_alpn_01() {
    ordered_by("tls-alpn-01", None, Place::new()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_without_a_file_are_ordered_by_http_01() {
    let place = Place::new();
    let http = place.http;
    ordered_by("http-01", Some(http), place).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pebble_issues_for_it() {
    let place = Place::new();
    let Some(pebble) = Pebble::start(&place, Options::default()).await else {
        return;
    };
    let state = place.state().display().to_string();
    let root = pebble.ca_certificate.display().to_string();
    let environment = [("ACME_DIRECTORY", &*pebble.directory), ("ACME_ROOT", &root)];
    let application = Application::start(place, &[&state, NAME], &environment).await;
    wait_until(SOON, "a certificate by Pebble", async || {
        let served = served(application.place.https, Some(NAME)).await.ok()?;
        served.issuer.contains("Pebble").then_some(())
    })
    .await;
}
