//! Listening on Unix sockets: served like any address, with the mode and group that are wanted,
//! in place of a file that nobody listens on, and gone at the end.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::process::Signal;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio_rustls::TlsConnector;

use crate::support::perennial::{Perennial, cli};
use crate::support::place::Place;
use crate::support::sites::FileTls;
use crate::support::tls;
use crate::support::upstream::Upstream;
use crate::support::wait::{SOON, wait_until};

const NAME: &str = "a.example.test";

struct Scene {
    perennial: Perennial,
    _upstream: Upstream,
    http: PathBuf,
    https: PathBuf,
}

/// Listens on nothing but Unix sockets; `server` continues the `[server]` table.
async fn scene(server: &str) -> Scene {
    let place = Place::new();
    let upstream = Upstream::start(&place, "app").await;
    let tls = FileTls::new(&place, &[NAME]);
    let (http, https) = (place.path("run/http.sock"), place.path("run/https.sock"));
    let text = format!(
        "[server]\nhttp_listen = [\"unix:{}\"]\nhttps_listen = [\"unix:run/https.sock\"]\n\
         admin_listen = \"{}\"\nstate_dir = \"{}\"\n{server}\n{}\
         [[sites]]\nhosts = [\"{NAME}\"]\ntls = \"files\"\nupstreams = [\"{}\"]\n",
        http.display(),
        place.admin,
        place.state().display(),
        tls.pair.table(),
        upstream.addr,
    );
    let mut perennial = Perennial::with_whole_config(place, &text);
    perennial.start_and_wait().await;
    perennial.wait_ready().await;
    Scene {
        perennial,
        _upstream: upstream,
        http,
        https,
    }
}

async fn ask(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> std::io::Result<String> {
    let request = format!("GET / HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    Ok(text)
}

async fn get(socket: &Path, header: &[u8]) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(socket).await?;
    stream.write_all(header).await?;
    let name = ServerName::try_from(NAME).unwrap();
    let connector = TlsConnector::from(std::sync::Arc::new(tls::accepting_anything()));
    ask(connector.connect(name, stream).await?).await
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_served_on_unix_sockets() {
    let mut scene = scene("").await;
    let answer = get(&scene.https, b"").await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(
        answer.contains("\"x-forwarded-for\":[\"127.0.0.1\"]"),
        "{answer}"
    );
    let plain = UnixStream::connect(&scene.http).await.unwrap();
    let answer = ask(plain).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 308"), "{answer}");
    assert_eq!(mode(&scene.https), 0o660);
    scene.perennial.signal(Signal::TERM);
    scene.perennial.wait_exit(SOON).await;
    assert!(
        !scene.http.exists() && !scene.https.exists(),
        "both are gone"
    );
}

/// nginx and Apache in the group `www-data` may connect, others may not.
#[tokio::test(flavor = "multi_thread")]
async fn mode_and_group_are_as_configured() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root may give a file away");
        return;
    }
    let scene =
        scene("socket_mode = \"0620\"\nsocket_owner = \"nobody\"\nsocket_group = \"daemon\"").await;
    let daemon = std::fs::read_to_string("/etc/group").unwrap();
    let daemon = daemon.lines().find(|line| line.starts_with("daemon:"));
    let gid: u32 = daemon.unwrap().split(':').nth(2).unwrap().parse().unwrap();
    for socket in [&scene.http, &scene.https] {
        let meta = std::fs::metadata(socket).unwrap();
        assert_eq!((mode(socket), meta.gid()), (0o620, gid));
        assert_ne!(meta.uid(), 0);
    }
    get(&scene.https, b"").await.expect("served");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_left_over_is_replaced_and_one_in_use_is_not() {
    let mut scene = scene("").await;
    let file = scene.perennial.place.path("perennial.toml");
    // A second process finds the sockets in use.
    let text = std::fs::read_to_string(&file).unwrap();
    let (admin, free) = (scene.perennial.place.admin, scene.perennial.place.free());
    let second = text.replace(&admin.to_string(), &free.to_string());
    let second = scene.perennial.place.write("second.toml", second);
    let run = cli(&["run", "--config", &second.display().to_string()]).await;
    assert!(
        run.stderr.contains("another process listens there"),
        "{run:?}"
    );
    get(&scene.https, b"").await.expect("served as before");
    // After a crash the files are still there, and nobody listens.
    scene.perennial.kill9();
    assert!(scene.https.exists());
    scene.perennial.start_and_wait().await;
    get(&scene.https, b"").await.expect("served again");
}

/// A local proxy that passes on TCP says who the client is.
#[tokio::test(flavor = "multi_thread")]
async fn the_proxy_protocol_is_spoken_on_them_too() {
    let scene = scene("proxy_protocol_from = [\"unix\"]").await;
    let header = b"PROXY TCP4 203.0.113.7 192.0.2.80 4711 443\r\n";
    let answer = get(&scene.https, header).await.unwrap();
    assert!(
        answer.contains("\"x-forwarded-for\":[\"203.0.113.7\"]"),
        "{answer}"
    );
    get(&scene.https, b"").await.expect_err("without a header");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_comes_and_goes_and_is_handed_over() {
    let mut scene = scene("").await;
    scene.perennial.upgrade().await;
    scene.perennial.wait_exit(SOON).await;
    get(&scene.https, b"")
        .await
        .expect("served by the new process");
    let file = scene.perennial.place.path("perennial.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let moved = text.replace("run/https.sock", "run/moved.sock");
    std::fs::write(&file, moved).unwrap();
    let new = scene.perennial.place.path("run/moved.sock");
    let served = async || get(&new, b"").await.ok();
    wait_until(SOON, "the new socket to be served", served).await;
    let gone = async || (!scene.https.exists()).then_some(());
    wait_until(SOON, "the old socket to be gone", gone).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_by_that_name_is_an_error() {
    let place = Place::new();
    let text = format!(
        "[server]\nhttp_listen = [\"unix:http.sock\"]\nhttps_listen = []\nadmin_listen = \"off\"\n\
         state_dir = \"{}\"\nsocket_group = \"nobody-by-this-name\"\n\
         [[sites]]\nhosts = [\"a.test\"]\ntls = \"off\"\nupstreams = [\"3000\"]\n",
        place.state().display(),
    );
    let mut perennial = Perennial::with_whole_config(place, &text);
    let file = perennial.place.path("perennial.toml").display().to_string();
    let checked = cli(&["check", "--config", &file]).await;
    assert_eq!(checked.code, Some(64));
    let expected = format!("{file}:6:16: this host has no group");
    assert!(checked.stderr.starts_with(&expected), "{checked:?}");
    perennial.start();
    assert_eq!(perennial.wait_exit(SOON).await.code(), Some(1));
    let error = perennial.log_lines_with("cannot listen on unix:").concat();
    assert!(
        error.contains("no group \"nobody-by-this-name\""),
        "{error}"
    );
}
