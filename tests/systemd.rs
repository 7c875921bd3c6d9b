//! A service manager is told what is going on, passes sockets, and has units that it understands.

use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use crate::support::client;
use crate::support::command;
use crate::support::http1::KeepAlive;
use crate::support::notify::ServiceManager;
use crate::support::perennial::Perennial;
use crate::support::place::Place;
use crate::support::sites::{FileTls, site};
use crate::support::wait::{SOON, wait_until};

const NAME: &str = "a.example.test";

fn served(place: &Place) -> String {
    let tls = FileTls::new(place, &[NAME]);
    format!(
        "{}{}",
        tls.pair.table(),
        site(NAME, "files", &["respond:hello"])
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_manager_is_told_what_is_going_on() {
    let place = Place::new();
    let manager = ServiceManager::new(&place);
    let rest = served(&place);
    let mut perennial = Perennial::with_config(place, &rest)
        .env("NOTIFY_SOCKET", &manager.name())
        .env("WATCHDOG_USEC", "300000");
    perennial.start();
    let ready = manager.wait_for("READY=1").await;
    assert!(ready.contains("STATUS=Serving 1 sites"), "{ready}");
    // Ready means ready: no waiting here.
    let place = &perennial.place;
    let served = client::served(place.https, Some(NAME)).await;
    served.expect("its certificate is served");
    manager.wait_for("WATCHDOG=1").await;
    manager.forget();
    manager.wait_for("WATCHDOG=1").await;

    let before = monotonic_usec();
    perennial.signal(Signal::HUP);
    let reloading = manager.wait_for("RELOADING=1").await;
    let usec = reloading.lines().find_map(|line| {
        let usec = line.strip_prefix("MONOTONIC_USEC=")?;
        usec.parse::<u64>().ok()
    });
    let usec = usec.unwrap_or_else(|| panic!("{reloading}"));
    assert!((before..=monotonic_usec()).contains(&usec), "{reloading}");
    manager.wait_for_after("RELOADING=1", "READY=1").await;

    perennial.signal(Signal::TERM);
    manager.wait_for("STOPPING=1").await;
    perennial.wait_exit(SOON).await;
}

fn monotonic_usec() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap() * 1_000_000 + u64::try_from(now.tv_nsec).unwrap() / 1000
}

/// In containers the socket has no path.
#[tokio::test(flavor = "multi_thread")]
async fn the_socket_may_be_an_abstract_one() {
    let place = Place::new();
    let name = format!("perennial-test-{}", place.https);
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let socket = UnixDatagram::bind_addr(&address).unwrap();
    let manager = ServiceManager::over(socket, &format!("@{name}"));
    let rest = served(&place);
    let mut perennial = Perennial::with_config(place, &rest).env("NOTIFY_SOCKET", &manager.name());
    perennial.start();
    manager.wait_for("READY=1").await;
}

/// What nobody can load in time is not ready: the first load is waited for.
#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_that_cannot_run_is_a_status() {
    let place = Place::new();
    let manager = ServiceManager::new(&place);
    let rest = served(&place);
    let mut perennial = Perennial::with_config(place, &rest).env("NOTIFY_SOCKET", &manager.name());
    perennial.start_and_wait().await;
    manager.wait_for("READY=1").await;
    perennial.rewrite_config("nonsense = true\n");
    perennial.signal(Signal::HUP);
    manager
        .wait_for("the configuration on disk cannot run")
        .await;
    perennial.rewrite_config(&rest);
    perennial.signal(Signal::HUP);
    manager.wait_for_after("cannot run", "READY=1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn passed_sockets_are_used() {
    let place = Place::new();
    // A connection that comes before the program runs waits for it.
    let http = TcpListener::bind(place.http).unwrap();
    let https = TcpListener::bind(place.https).unwrap();
    let early = tokio::spawn(async_get(place.https));
    let rest = served(&place);
    let mut perennial = Perennial::with_config(place, &rest)
        .pass("web", http.try_clone().unwrap())
        .pass("secure", https.try_clone().unwrap());
    perennial.start_and_wait().await;
    assert_eq!(early.await.unwrap(), Ok((200, "hello".to_owned())));
    let place = &perennial.place;
    let mut plain = KeepAlive::open_plain(place.http, NAME).await.unwrap();
    assert_eq!(plain.get("/").await.unwrap().0, 308);
    // The program is gone, and its clients wait for the next one: the sockets are somebody else's.
    perennial.kill9();
    let waiting = tokio::spawn(async_get(perennial.place.https));
    perennial.start_and_wait().await;
    assert_eq!(waiting.await.unwrap(), Ok((200, "hello".to_owned())));
}

async fn async_get(https: std::net::SocketAddr) -> Result<(u16, String), String> {
    let mut connection = KeepAlive::open(https, NAME, None).await?;
    connection.get("/").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_passed_socket_that_fits_nothing_is_an_error() {
    let place = Place::new();
    let other = TcpListener::bind(place.free()).unwrap();
    let address = other.local_addr().unwrap().to_string();
    let rest = served(&place);
    let mut perennial = Perennial::with_config(place, &rest).pass("web", other);
    perennial.start();
    let status = perennial.wait_exit(SOON).await;
    assert_eq!(status.code(), Some(1));
    let configured = perennial.place.https.to_string();
    let error = perennial.log_lines_with("that was passed as web").concat();
    assert!(
        error.contains(&address) && error.contains(&configured),
        "{error}"
    );
}

/// It listens again after it was dropped for a while, although somebody else has it bound.
#[tokio::test(flavor = "multi_thread")]
async fn a_passed_socket_is_there_for_a_later_configuration() {
    let place = Place::new();
    let http = TcpListener::bind(place.http).unwrap();
    let rest = served(&place);
    let address = place.http;
    let mut perennial = Perennial::with_config(place, &rest).pass("web", http);
    perennial.start_and_wait().await;
    let table = perennial.place.server_table();
    let without = table.replace(&format!("\"{address}\""), "");
    let file = perennial.place.path("perennial.toml");
    std::fs::write(&file, format!("{without}{rest}")).unwrap();
    perennial.signal(Signal::HUP);
    perennial
        .wait_for_log(&format!("dropped=\"{address}\""), SOON)
        .await;
    std::fs::write(&file, format!("{table}{rest}")).unwrap();
    let served = async || {
        let mut plain = KeepAlive::open_plain(address, NAME).await.ok()?;
        tokio::time::timeout(Duration::from_secs(1), plain.get("/"))
            .await
            .ok()?
            .ok()
    };
    let answer = wait_until(SOON, "the address to be served again", served).await;
    assert_eq!(answer.0, 308);
}

#[tokio::test(flavor = "multi_thread")]
async fn systemd_understands_the_units() {
    if command::find("systemd-analyze").is_none() {
        eprintln!("SKIPPED: there is no systemd-analyze here");
        return;
    }
    let place = Place::new();
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/systemd");
    for unit in ["perennial.service", "perennial.socket"] {
        let text = std::fs::read_to_string(units.join(unit)).expect(unit);
        // The program is not installed here.
        let text = text.replace("/usr/bin/perennial", crate::support::perennial::program());
        place.write(format!("units/{unit}"), text);
    }
    let mut verify = Command::new("systemd-analyze");
    verify.args(["verify", "--man=no"]);
    verify.arg(place.path("units/perennial.service"));
    verify.arg(place.path("units/perennial.socket"));
    let verified = command::run(verify).await;
    let ours = |line: &&str| line.contains("perennial");
    let complaints: Vec<&str> = verified.stderr.lines().filter(ours).collect();
    assert!(verified.success() && complaints.is_empty(), "{verified:?}");
}
