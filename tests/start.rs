//! Starting: from nothing with the internal CA, on several addresses, and not at all where an
//! address is taken.

use std::net::{Ipv6Addr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::support::client::served;
use crate::support::command::curl;
use crate::support::perennial::{Perennial, cli};
use crate::support::place::Place;
use crate::support::sites::site;
use crate::support::wait::SOON;

pub async fn localhost() -> Perennial {
    let place = Place::new();
    let mut perennial = Perennial::with_proxy(place, &["localhost=respond:hello from here"]);
    perennial.start_and_wait().await;
    perennial.wait_ready().await;
    perennial
}

/// By curl: body, and on stderr `HTTP-VERSION STATUS LOCATION`.
pub async fn fetch(perennial: &Perennial, url: &str, more: &[&str]) -> (String, String) {
    let place = &perennial.place;
    let at = |addr: SocketAddr| format!("localhost:{}:{}", addr.port(), addr.ip());
    let (http, https) = (at(place.http), at(place.https));
    let root = place.local_root().display().to_string();
    let format = "%{stderr}%{http_version} %{http_code} %{redirect_url}";
    let mut arguments = vec!["--cacert", &root, "--resolve", &http, "--resolve", &https];
    arguments.extend(["-w", format, url]);
    arguments.extend(more);
    let done = curl(&arguments).await.assert_success();
    (done.stdout, done.stderr)
}

#[tokio::test(flavor = "multi_thread")]
async fn localhost_with_the_internal_ca_over_http1_and_http2() {
    let perennial = localhost().await;
    let url = format!("https://localhost:{}/", perennial.place.https.port());
    for (option, told) in [("--http1.1", "1.1 200 "), ("--http2", "2 200 ")] {
        let answer = fetch(&perennial, &url, &[option]).await;
        assert_eq!(answer, ("hello from here".into(), told.into()));
    }
    let served = served(perennial.place.https, Some("localhost")).await;
    let served = served.expect("a handshake");
    assert_eq!(served.names, ["localhost"]);
    assert_eq!(served.alpn.as_deref(), Some("h2"));
    assert_eq!(served.version, "TLSv1_3");
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_http_is_redirected_with_308() {
    let perennial = localhost().await;
    let (http, https) = (perennial.place.http.port(), perennial.place.https.port());
    let url = format!("http://localhost:{http}/a/b?c=d");
    let (_, told) = fetch(&perennial, &url, &["-X", "POST"]).await;
    let location = format!("https://localhost:{https}/a/b?c=d");
    assert_eq!(told, format!("1.1 308 {location}"));
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path)
        .expect("it is there")
        .permissions()
        .mode()
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_on_disk_are_for_their_owner_alone() {
    let perennial = localhost().await;
    let mut folders = vec![perennial.place.state()];
    let mut files = 0;
    while let Some(folder) = folders.pop() {
        assert_eq!(mode(&folder) & 0o777, 0o700, "{}", folder.display());
        for entry in std::fs::read_dir(&folder).expect("readable").flatten() {
            let (path, kind) = (entry.path(), entry.file_type().expect("a type"));
            let name = path.display().to_string();
            if kind.is_dir() {
                folders.push(path);
            } else if name.ends_with(".key") || name.ends_with("privkey.pem") {
                files += 1;
                assert_eq!(mode(&path) & 0o777, 0o600, "{name}");
            }
        }
    }
    assert!(
        files >= 3,
        "root, intermediate and leaf have keys; found {files}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_in_use_ends_the_start() {
    for taken in [0, 1, 2] {
        let place = Place::new();
        let addr = [place.http, place.https, place.admin][taken];
        let _holder = TcpListener::bind(addr).expect("free");
        let mut perennial = Perennial::with_proxy(place, &["localhost=respond:hello"]);
        perennial.start();
        let status = perennial.wait_exit(SOON).await;
        let code = status.code().expect("it ends by itself");
        assert_ne!(code, 0);
        let line = perennial.wait_for_log(&addr.to_string(), SOON).await;
        let cause = line.to_lowercase();
        assert!(cause.contains("in use"), "{line}");
        assert!(!perennial.log().join("\n").contains("panicked"));
    }
}

fn whole_config(place: &Place, https: &[String]) -> String {
    let state = place.state();
    let server = format!(
        "[server]\nhttp_listen = [\"{}\"]\nhttps_listen = {https:?}\nadmin_listen = \"{}\"\nstate_dir = {state:?}\n",
        place.http, place.admin
    );
    format!(
        "{server}{}",
        site("localhost", "internal", &["respond:hello"])
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn several_addresses_ipv4_and_ipv6() {
    let v6 = TcpListener::bind((Ipv6Addr::LOCALHOST, 0));
    let Ok(v6) = v6.and_then(|listener| listener.local_addr()) else {
        eprintln!("NO IPv6 HERE: proven for IPv4 alone");
        return;
    };
    let place = Place::new();
    let addresses = [place.https, place.free(), v6];
    let text = whole_config(&place, &addresses.map(|addr| addr.to_string()));
    let mut perennial = Perennial::with_whole_config(place, &text);
    perennial.start_and_wait().await;
    perennial.wait_ready().await;
    for addr in addresses {
        served(addr, Some("localhost"))
            .await
            .expect("served everywhere");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_wildcard_address_serves_ipv4_too() {
    let place = Place::new();
    let port = place.https.port();
    let text = whole_config(&place, &[format!("[::]:{port}")]);
    let mut perennial = Perennial::with_whole_config(place, &text);
    perennial.start_and_wait().await;
    perennial.wait_ready().await;
    let addr = SocketAddr::from(([127, 0, 0, 1], port));
    served(addr, Some("localhost"))
        .await
        .expect("served over IPv4");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_tells_its_version() {
    let told = cli(&["--version"]).await.assert_success().stdout;
    assert_eq!(
        told.trim(),
        concat!("perennial ", env!("CARGO_PKG_VERSION"))
    );
    cli(&["--help"]).await.assert_success();
}
