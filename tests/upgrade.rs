//! A new process takes over from the old one: nobody is refused, nothing that is under way is cut,
//! and where the new one cannot run the old one goes on.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rustix::process::Signal;
use tokio::task::JoinSet;

use crate::support::http1::KeepAlive;
use crate::support::notify::ServiceManager;
use crate::support::perennial::{Perennial, program};
use crate::support::place::Place;
use crate::support::sites::{FileTls, site};
use crate::support::upstream::Upstream;
use crate::support::wait::{SOON, wait_until};

const NAME: &str = "a.example.test";
const UPGRADES: usize = 4;
const CLIENTS: usize = 6;

struct Scene {
    perennial: Perennial,
    upstream: Upstream,
    rest: String,
}

async fn scene() -> Scene {
    let place = Place::new();
    let upstream = Upstream::start(&place, "app").await;
    let tls = FileTls::new(&place, &[NAME]);
    let site = site(NAME, "files", &[&upstream.addr.to_string()]);
    let rest = format!("{}{site}", tls.pair.table());
    let perennial = Perennial::with_config(place, &rest);
    Scene {
        perennial,
        upstream,
        rest,
    }
}

/// Requests without a pause: on a new connection each, or on one for as long as it lives.
struct Load {
    clients: JoinSet<()>,
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    failures: Arc<std::sync::Mutex<Vec<String>>>,
}

impl Load {
    fn on(https: SocketAddr, http: SocketAddr) -> Load {
        let mut load = Load {
            clients: JoinSet::new(),
            stop: Arc::default(),
            answered: Arc::default(),
            failures: Arc::default(),
        };
        for number in 0..CLIENTS {
            let (stop, answered) = (load.stop.clone(), load.answered.clone());
            let failures = load.failures.clone();
            load.clients.spawn(async move {
                let mut kept = None;
                while !stop.load(Ordering::Relaxed) {
                    let asked = match number % 3 {
                        0 => ask(&mut None, https).await,
                        1 => ask(&mut kept, https).await,
                        _ => ask_plain(http).await,
                    };
                    match asked {
                        Ok(()) => answered.fetch_add(1, Ordering::Relaxed),
                        Err(error) => {
                            failures.lock().unwrap().push(error);
                            0
                        }
                    };
                }
            });
        }
        load
    }

    fn answered(&self) -> usize {
        self.answered.load(Ordering::Relaxed)
    }

    /// Until so many more are answered.
    async fn goes_on(&self) {
        let before = self.answered();
        let more = async || (self.answered() > before + 3 * CLIENTS).then_some(());
        wait_until(SOON, "more answers", more).await;
    }

    async fn end(mut self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        while self.clients.join_next().await.is_some() {}
        let failures = self.failures.lock().unwrap();
        failures.clone()
    }
}

async fn ask(kept: &mut Option<KeepAlive>, https: SocketAddr) -> Result<(), String> {
    let mut connection = match kept.take() {
        // It was closed after an answer that said so.
        Some(connection) if !connection.is_closed() => connection,
        _ => KeepAlive::open(https, NAME, None).await?,
    };
    match connection.get("/").await? {
        (200, _) => {
            *kept = Some(connection);
            Ok(())
        }
        other => Err(format!("{other:?}")),
    }
}

async fn ask_plain(http: SocketAddr) -> Result<(), String> {
    let mut connection = KeepAlive::open_plain(http, NAME).await?;
    match connection.get("/").await? {
        (308, _) => Ok(()),
        other => Err(format!("{other:?}")),
    }
}

async fn is_served(scene: &Scene) {
    let https = scene.perennial.place.https;
    assert_eq!(ask(&mut None, https).await, Ok(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_refused_across_upgrades() {
    let mut scene = scene().await;
    scene.perennial.start_and_wait().await;
    let place = &scene.perennial.place;
    let load = Load::on(place.https, place.http);
    load.goes_on().await;
    let mut pids = vec![scene.perennial.pid()];
    for _ in 0..UPGRADES {
        let pid = scene.perennial.upgrade().await;
        assert!(!pids.contains(&pid), "{pid} in {pids:?}");
        pids.push(pid);
        load.goes_on().await;
    }
    scene.perennial.wait_exit(SOON).await;
    load.goes_on().await;
    assert_eq!(load.end().await, Vec::<String>::new());
    // Each has drained and ended but the last.
    let (last, before) = pids.split_last().unwrap();
    let ended = async || (!before.iter().any(|pid| runs(*pid))).then_some(());
    wait_until(SOON, "the old processes to end", ended).await;
    assert!(runs(*last));
    // The last is the writer now.
    let table = scene.perennial.status_json().await;
    assert!(table["uptime_seconds"].as_u64().is_some(), "{table}");
}

fn runs(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // A zombie is waited for by its parent, and has ended.
    !status.is_empty() && !status.contains(") Z ")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_under_way_is_finished_by_the_old_one() {
    let mut scene = scene().await;
    scene.perennial.start_and_wait().await;
    let https = scene.perennial.place.https;
    let mut connection = KeepAlive::open(https, NAME, None).await.unwrap();
    let request = tokio::spawn(async move { connection.get("/hold").await });
    let held = async || (scene.upstream.held() > 0).then_some(());
    wait_until(SOON, "the request to arrive", held).await;
    scene.perennial.upgrade().await;
    is_served(&scene).await;
    assert!(scene.perennial.exited().is_none(), "it has a request");
    scene.upstream.release();
    let answer = request.await.expect("no panic");
    assert_eq!(answer, Ok((200, "released".to_owned())));
    let status = scene.perennial.wait_exit(SOON).await;
    assert_eq!(status.code(), Some(0));
    is_served(&scene).await;
}

/// SIGQUIT is the same without an answer.
#[tokio::test(flavor = "multi_thread")]
async fn sigquit_hands_over_too() {
    let mut scene = scene().await;
    scene.perennial.start_and_wait().await;
    scene.perennial.signal(Signal::QUIT);
    let line = scene.perennial.wait_for_log("has taken over", SOON).await;
    let pid = line.split("pid=").nth(1).expect("its id");
    scene.perennial.adopt(pid.trim().parse().expect("a number"));
    assert_eq!(scene.perennial.wait_exit(SOON).await.code(), Some(0));
    is_served(&scene).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_configuration_leaves_the_old_one_in_place() {
    let mut scene = scene().await;
    scene.perennial.start_and_wait().await;
    let broken = format!("grace_periode = \"1s\"\n{}", scene.rest);
    scene.perennial.rewrite_config(&broken);
    let upgraded = scene.perennial.cli(&["upgrade"]).await;
    assert_eq!(upgraded.code, Some(1));
    for part in ["exit status: 64", "unknown key `grace_periode`"] {
        assert!(upgraded.stderr.contains(part), "{upgraded:?}");
    }
    is_served(&scene).await;
    assert!(scene.perennial.exited().is_none());
    scene.perennial.rewrite_config(&scene.rest);
    scene.perennial.upgrade().await;
    is_served(&scene).await;
}

/// The program's file was replaced: it is the new one that runs. One that ends at once, or says
/// nothing that is understood, changes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn the_file_of_today_is_what_runs() {
    let Scene {
        perennial,
        upstream,
        rest,
    } = scene().await;
    let file = perennial.place.path("bin/perennial");
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::copy(program(), &file).unwrap();
    let mut scene = Scene {
        perennial: perennial.program_file(&file),
        upstream,
        rest,
    };
    scene.perennial.start_and_wait().await;
    replace(&file, "#!/bin/sh\nexit 3\n");
    let upgraded = scene.perennial.cli(&["upgrade"]).await;
    assert!(upgraded.stderr.contains("exit status: 3"), "{upgraded:?}");
    is_served(&scene).await;
    let script = format!("#!/bin/sh\nRELEASE=next exec {} \"$@\"\n", program());
    replace(&file, &script);
    let pid = scene.perennial.upgrade().await;
    let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
    let environment = String::from_utf8_lossy(&environment).into_owned();
    assert!(environment.contains("RELEASE=next"), "{environment}");
    scene.perennial.wait_exit(SOON).await;
    is_served(&scene).await;
}

/// As a package manager does it.
fn replace(file: &Path, text: &str) {
    let new: PathBuf = file.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::rename(new, file).unwrap();
}

/// The service manager hears of the new main process by the old one, and from the new one after it.
#[tokio::test(flavor = "multi_thread")]
async fn the_service_manager_knows_the_new_main_process() {
    let mut scene = scene().await;
    let manager = ServiceManager::new(&scene.perennial.place);
    scene.perennial.set_env("NOTIFY_SOCKET", &manager.name());
    scene.perennial.set_env("WATCHDOG_USEC", "300000");
    scene.perennial.start_and_wait().await;
    manager.wait_for("READY=1").await;
    manager.forget();
    let pid = scene.perennial.upgrade().await;
    manager
        .wait_for_after(&format!("MAINPID={pid}"), "READY=1")
        .await;
    let heard = manager.heard();
    assert!(!heard.iter().any(|it| it.contains("STOPPING")), "{heard:?}");
    // Signs of life are the new one's from here on.
    scene.perennial.wait_exit(SOON).await;
    manager.forget();
    manager.wait_for("WATCHDOG=1").await;
}

/// The new process orders and writes as soon as the old one has let go of the lock, and answers on
/// the admin socket.
#[tokio::test(flavor = "multi_thread")]
async fn the_new_process_is_the_writer() {
    let place = Place::new();
    let socket = place.path("admin.sock");
    let table = place.server_table();
    let admin = format!("admin_listen = \"{}\"", place.admin);
    let unix = format!("admin_listen = \"unix:{}\"", socket.display());
    let site = site("localhost", "internal", &["respond:hello"]);
    let text = format!("{}{site}", table.replace(&admin, &unix));
    let mut perennial = Perennial::with_whole_config(place, &text);
    perennial.start();
    let admin = format!("unix:{}", socket.display());
    let renewed = async || {
        let renew = ["certs", "renew", "localhost", "--admin", &admin];
        let renewed = crate::support::perennial::cli(&renew).await;
        renewed.success().then_some(())
    };
    wait_until(SOON, "the old process to write", renewed).await;
    let upgrade = ["upgrade", "--admin", &admin];
    let upgraded = crate::support::perennial::cli(&upgrade)
        .await
        .assert_success();
    let pid = upgraded.stdout.split_whitespace().nth(1).expect("its id");
    perennial.adopt(pid.parse().expect("a number"));
    perennial.wait_exit(SOON).await;
    assert!(socket.exists(), "it is the new one's");
    wait_until(SOON, "the new process to write", renewed).await;
}
