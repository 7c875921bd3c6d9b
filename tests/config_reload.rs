//! The configuration changes while the server runs: sites, upstreams, certificate sources and
//! addresses follow, a broken file changes nothing, and no connection pays for it.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::support::certs::TestCa;
use crate::support::client::{serial, served};
use crate::support::http1::KeepAlive;
use crate::support::perennial::Perennial;
use crate::support::place::Place;
use crate::support::sites::{FileTls, site};
use crate::support::upstream::Upstream;
use crate::support::wait::{SOON, never_within, wait_until};
use crate::support::writers::{Pair, dribble};

const A: &str = "a.example.test";
const B: &str = "b.example.test";
/// Nothing but events can find a change within the test.
const EVENTS: &str = "[certificates]\npoll_interval = \"1h\"\n";
const POLL: &str = "[certificates]\nwatch = false\npoll_interval = \"200ms\"\n";
/// Nothing but a request to reload can, once the file is no longer young.
const NEITHER: &str = "[certificates]\nwatch = false\npoll_interval = \"1h\"\n";
const SETTLED: Duration = Duration::from_secs(4);
const RELOADED: &str = "configuration reloaded";

async fn running(rest: &str) -> Perennial {
    let mut perennial = Perennial::run(Place::new(), rest).await;
    perennial.wait_ready().await;
    perennial
}

fn internal(host: &str, text: &str) -> String {
    site(host, "internal", &[&format!("respond:{text}")])
}

async fn get(https: SocketAddr, host: &str) -> Result<(u16, String), String> {
    KeepAlive::open(https, host, None).await?.get("/").await
}

async fn wait_answer(https: SocketAddr, host: &str, text: &str) {
    let what = format!("{host} to answer {text}");
    wait_until(SOON, &what, async || {
        let (_, body) = get(https, host).await.ok()?;
        (body == text).then_some(())
    })
    .await;
}

async fn error(perennial: &Perennial) -> Option<String> {
    let status = perennial.status_json().await;
    status["config_error"].as_str().map(ToOwned::to_owned)
}

async fn wait_error(perennial: &Perennial) -> String {
    wait_until(SOON, "a config_error", async || error(perennial).await).await
}

async fn wait_no_error(perennial: &Perennial) {
    let look = async || error(perennial).await.is_none().then_some(());
    wait_until(SOON, "no config_error", look).await;
}

async fn reload(perennial: &Perennial) -> Value {
    let (status, body) = perennial.admin_post("/reload").await;
    assert_eq!(status, 200, "{body}");
    serde_json::from_str(&body).expect("JSON")
}

async fn site_comes_and_goes(certificates: &str) {
    let one = format!("{certificates}{}", internal(A, "a"));
    let perennial = running(&one).await;
    let https = perennial.place.https;
    let mut kept = KeepAlive::open(https, A, None).await.expect("connected");
    assert_eq!(kept.get("/").await, Ok((200, "a".to_owned())));

    perennial.rewrite_config(&format!("{one}{}", internal(B, "b")));
    wait_answer(https, B, "b").await;
    perennial.rewrite_config(&one);
    wait_until(SOON, "b to be gone", async || {
        let (status, _) = get(https, B).await.ok()?;
        (status == 421).then_some(())
    })
    .await;
    assert_eq!(kept.get("/").await, Ok((200, "a".to_owned())));
    let metric = perennial.metric("perennial_config_reloads_total", &["ok"]);
    assert_eq!(metric.await, Some(2.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_comes_and_goes_with_events() {
    site_comes_and_goes(EVENTS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_comes_and_goes_with_the_poll() {
    site_comes_and_goes(POLL).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_leaves_with_its_site() {
    let place = Place::new();
    let (a, b) = (FileTls::new(&place, &[A]), TestCa::new().leaf(&[B]));
    let pair = Pair::write(&place.path("b"), &b);
    let one = format!(
        "{EVENTS}{}{}",
        a.pair.table(),
        site(A, "files", &["respond:a"])
    );
    let both = format!(
        "{EVENTS}{}{}{}{}",
        a.pair.table(),
        pair.table(),
        site(A, "files", &["respond:a"]),
        site(B, "files", &["respond:b"])
    );
    let mut perennial = Perennial::run(place, &both).await;
    perennial.wait_ready().await;
    let https = perennial.place.https;
    assert_eq!(serial(https, B).await, Ok(b.serial));
    perennial.rewrite_config(&one);
    let refused = async || served(https, Some(B)).await.err();
    let error = wait_until(SOON, "b to be refused", refused).await;
    assert!(
        error.contains("UnrecognizedName") || error.contains("Unrecogni"),
        "{error}"
    );
    assert_eq!(perennial.certificate(B).await, None);
    assert_eq!(serial(https, A).await, Ok(a.leaf.serial));
}

#[tokio::test(flavor = "multi_thread")]
async fn certificate_sources_change() {
    let (place, ca) = (Place::new(), TestCa::new());
    let (old, new) = (ca.leaf(&[A]), ca.leaf(&[A]));
    Pair::write(&place.path("one"), &old);
    Pair::write(&place.path("two"), &new);
    let with = |folder| {
        let folder = place.path(folder);
        let site = site(A, "files", &["respond:a"]);
        format!("{EVENTS}directories = [{folder:?}]\ndefault = \"{A}\"\n{site}")
    };
    let (one, two) = (with("one"), with("two"));
    let mut perennial = Perennial::run(place, &one).await;
    perennial.wait_ready().await;
    let https = perennial.place.https;
    assert_eq!(serial(https, A).await, Ok(old.serial));
    perennial.rewrite_config(&two);
    perennial.wait_for_log(RELOADED, SOON).await;
    assert_eq!(serial(https, A).await, Ok(new.serial));
    // The new folder is watched like the first.
    let newest = ca.leaf(&[A]);
    Pair::write(&perennial.place.path("two"), &newest);
    wait_until(SOON, "the newest", async || {
        (serial(https, A).await.ok()? == newest.serial).then_some(())
    })
    .await;
    // The default name leaves, too.
    served(https, None).await.expect("the default certificate");
    perennial.rewrite_config(&two.replace(&format!("default = \"{A}\"\n"), ""));
    let refused = async || served(https, None).await.err();
    wait_until(SOON, "no default certificate", refused).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_request_of_an_open_connection_goes_to_the_new_upstream() {
    let place = Place::new();
    let one = Upstream::start(&place, "one").await;
    let two = Upstream::start(&place, "two").await;
    let config = |upstream: &Upstream| {
        let addr = upstream.addr.to_string();
        format!("{EVENTS}{}", site(A, "internal", &[&addr]))
    };
    let mut perennial = Perennial::run(place, &config(&one)).await;
    perennial.wait_ready().await;
    let https = perennial.place.https;
    let mut kept = KeepAlive::open(https, A, None).await.expect("connected");
    let (_, body) = kept.get("/").await.expect("answered");
    assert!(body.contains("\"one\""), "{body}");
    perennial.rewrite_config(&config(&two));
    perennial.wait_for_log(RELOADED, SOON).await;
    let (_, body) = kept.get("/").await.expect("the connection lives");
    assert!(body.contains("\"two\""), "{body}");
}

/// The place's configuration with other addresses.
fn with_addresses(perennial: &Perennial, http: SocketAddr, https: SocketAddr, rest: &str) {
    let place = &perennial.place;
    let table = place.server_table();
    let table = table.replace(&format!("http_listen = [\"{}\"]", place.http), "HTTP");
    let table = table.replace(&format!("https_listen = [\"{}\"]", place.https), "HTTPS");
    let table = table.replace("HTTPS", &format!("https_listen = [\"{https}\"]"));
    let table = table.replace("HTTP", &format!("http_listen = [\"{http}\"]"));
    place.write("perennial.toml", format!("{table}{rest}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_come_and_go() {
    let place = Place::new();
    let upstream = Upstream::start(&place, "app").await;
    let addr = upstream.addr.to_string();
    let rest = format!("{EVENTS}{}", site(A, "internal", &[&addr]));
    let mut perennial = Perennial::run(place, &rest).await;
    perennial.wait_ready().await;
    let (old, new) = (perennial.place.https, perennial.place.free());
    let mut idle = KeepAlive::open(old, A, None).await.expect("connected");
    idle.get("/").await.expect("answered");
    let mut busy = KeepAlive::open(old, A, None).await.expect("connected");
    let request = tokio::spawn(async move { busy.get("/hold").await });
    let held = async || (upstream.held() > 0).then_some(());
    wait_until(SOON, "the request to arrive", held).await;

    with_addresses(&perennial, perennial.place.http, new, &rest);
    let serves = async || get(new, A).await.ok();
    wait_until(SOON, "the new address", serves).await;
    let refused = async || tokio::net::TcpStream::connect(old).await.err();
    wait_until(SOON, "the old address to be closed", refused).await;
    let closed = async || idle.is_closed().then_some(());
    wait_until(SOON, "the idle connection to be closed", closed).await;
    assert!(!request.is_finished());
    upstream.release();
    let answer = request.await.expect("no panic");
    assert_eq!(answer, Ok((200, "released".to_owned())));

    let client = KeepAlive::open_plain(perennial.place.http, A).await;
    let mut request = client.expect("connected");
    let moved = hyper::Request::get("/").header("host", A);
    let moved = moved.body(axum::body::Body::empty()).expect("a request");
    let moved = request.send(moved).await.expect("answered");
    let location = moved.headers()["location"].to_str().expect("text");
    assert_eq!(location, format!("https://{A}:{}/", new.port()));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_addresses_trade_places() {
    let rest = format!("{EVENTS}{}", internal(A, "a"));
    let perennial = running(&rest).await;
    let (http, https) = (perennial.place.http, perennial.place.https);
    with_addresses(&perennial, https, http, &rest);
    wait_answer(http, A, "a").await;
    let mut plain = KeepAlive::open_plain(https, A).await.expect("connected");
    assert_eq!(plain.get("/").await.expect("answered").0, 308);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_dropped_address_does_not_finish_in_time_is_cut_off() {
    let place = Place::new();
    let upstream = Upstream::start(&place, "app").await;
    let addr = upstream.addr.to_string();
    let rest = format!(
        "grace_period = \"1s\"\n{EVENTS}{}",
        site(A, "internal", &[&addr])
    );
    let mut perennial = Perennial::run(place, &rest).await;
    perennial.wait_ready().await;
    let (old, new) = (perennial.place.https, perennial.place.free());
    let mut busy = KeepAlive::open(old, A, None).await.expect("connected");
    let request = tokio::spawn(async move { busy.get("/hold").await });
    let held = async || (upstream.held() > 0).then_some(());
    wait_until(SOON, "the request to arrive", held).await;
    with_addresses(&perennial, perennial.place.http, new, &rest);
    let answer = request.await.expect("no panic");
    assert!(answer.is_err(), "cut off: {answer:?}");
    get(new, A).await.expect("served");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_file_keeps_the_old_configuration() {
    let good = format!("{EVENTS}{}", internal(A, "a"));
    let perennial = running(&good).await;
    let https = perennial.place.https;
    perennial.rewrite_config(&format!("{good}upstream = [\"respond:wrong\"]\n"));
    let message = wait_error(&perennial).await;
    let file = perennial.place.path("perennial.toml");
    let (path, line) = (file.display(), 5 + 2 + 5);
    assert!(
        message.starts_with(&format!("{path}:{line}:1: unknown key")),
        "{message}"
    );
    assert!(message.contains("did you mean `upstreams`?"), "{message}");
    assert_eq!(get(https, A).await, Ok((200, "a".to_owned())));
    let failing = "perennial_config_reload_failing";
    assert_eq!(perennial.metric(failing, &[]).await, Some(1.0));
    // Looking again and again is no news.
    for _ in 0..3 {
        let answer = reload(&perennial).await;
        assert_eq!(answer["config"]["failed"], *message, "{answer}");
    }
    let said = perennial.log_lines_with("configuration not taken");
    assert_eq!(said.len(), 1, "{said:?}");
    let total = "perennial_config_reloads_total";
    assert_eq!(perennial.metric(total, &["failed"]).await, Some(1.0));
    let status = perennial.cli(&["status"]).await;
    assert!(status.stdout.contains("unknown key"), "{}", status.stdout);

    // Another mistake is news; so is its end.
    perennial.rewrite_config(&format!("{good}nonsense = 1\n"));
    let other = async || (error(&perennial).await? != message).then_some(());
    wait_until(SOON, "the other mistake", other).await;
    assert_eq!(perennial.log_lines_with("configuration not taken").len(), 2);
    perennial.rewrite_config(&good);
    wait_no_error(&perennial).await;
    assert_eq!(perennial.metric(failing, &[]).await, Some(0.0));
    perennial.rewrite_config(&good.replace("respond:a", "respond:mended"));
    wait_answer(https, A, "mended").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_gone_keeps_the_old_configuration() {
    let good = format!("{EVENTS}{}", internal(A, "a"));
    let perennial = running(&good).await;
    let file = perennial.place.path("perennial.toml");
    fs::remove_file(&file).expect("removed");
    let message = wait_error(&perennial).await;
    assert!(message.contains(&file.display().to_string()), "{message}");
    assert_eq!(
        get(perennial.place.https, A).await,
        Ok((200, "a".to_owned()))
    );
    perennial.rewrite_config(&good);
    wait_no_error(&perennial).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_is_taken_keeps_the_old_configuration() {
    let rest = format!("{EVENTS}{}", internal(A, "a"));
    let perennial = running(&rest).await;
    let (old, taken) = (perennial.place.https, perennial.place.free());
    let other = std::net::TcpListener::bind(taken).expect("bound");
    let changed = rest.replace("respond:a", "respond:new");
    with_addresses(&perennial, perennial.place.http, taken, &changed);
    let message = wait_error(&perennial).await;
    assert!(
        message.contains(&format!("cannot listen on {taken}")),
        "{message}"
    );
    assert!(
        message.contains("another process listens there"),
        "{message}"
    );
    assert_eq!(get(old, A).await, Ok((200, "a".to_owned())));
    drop(other);
    assert_eq!(reload(&perennial).await["config"], "reloaded");
    wait_answer(taken, A, "new").await;
    wait_no_error(&perennial).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_needs_a_restart_is_said_and_nothing_else_is_taken() {
    let rest = format!("{EVENTS}{}", internal(A, "a"));
    let perennial = running(&rest).await;
    let place = &perennial.place;
    let other = place.path("elsewhere").display().to_string();
    let table = place.server_table();
    let table = table.replace(&place.state().display().to_string(), &other);
    let changed = rest.replace("respond:a", "respond:new");
    place.write("perennial.toml", format!("{table}{changed}"));
    let message = wait_error(&perennial).await;
    assert!(
        message.contains("state_dir cannot change from"),
        "{message}"
    );
    assert!(message.contains("restart, or put it back"), "{message}");
    assert_eq!(get(place.https, A).await, Ok((200, "a".to_owned())));
    perennial.rewrite_config(&changed);
    wait_answer(place.https, A, "new").await;
}

async fn settled() -> (Perennial, String) {
    let rest = format!("{NEITHER}{}", internal(A, "a"));
    let perennial = running(&rest).await;
    tokio::time::sleep(SETTLED).await;
    perennial.rewrite_config(&rest.replace("respond:a", "respond:new"));
    let https = perennial.place.https;
    never_within(Duration::from_millis(500), async || {
        let answer = get(https, A).await;
        (answer != Ok((200, "a".to_owned()))).then(|| format!("{answer:?}"))
    })
    .await;
    (perennial, rest)
}

#[tokio::test(flavor = "multi_thread")]
async fn sighup_reloads_at_once() {
    let (perennial, _) = settled().await;
    perennial.signal(Signal::HUP);
    wait_answer(perennial.place.https, A, "new").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn post_reload_reloads_at_once_and_tells() {
    let (perennial, rest) = settled().await;
    assert_eq!(reload(&perennial).await["config"], "reloaded");
    let answer = get(perennial.place.https, A).await;
    assert_eq!(answer, Ok((200, "new".to_owned())));
    assert_eq!(reload(&perennial).await["config"], "unchanged");
    perennial.rewrite_config(&rest.replace("tls = ", "tsl = "));
    let answer = reload(&perennial).await;
    let said = answer["config"]["failed"].as_str().expect("a failure");
    assert!(said.contains("unknown key `tsl`"), "{said}");
    assert_eq!(answer["changes"], serde_json::json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_level_follows() {
    let place = Place::new();
    let rest = |level| format!("log_level = \"{level}\"\n{EVENTS}{}", internal(A, level));
    let mut perennial = Perennial::with_config(place, &rest("error")).log_level(None);
    perennial.start_and_wait().await;
    perennial.wait_ready().await;
    assert_eq!(perennial.log(), Vec::<String>::new());
    perennial.rewrite_config(&rest("debug"));
    let refused = "DEBUG perennial::listener::accept: TLS handshake";
    wait_until(SOON, refused, async || {
        let _ = serial(perennial.place.https, B).await;
        perennial.log_lines_with(refused).pop()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_level_of_the_command_line_wins() {
    let place = Place::new();
    let rest = |level| format!("log_level = \"{level}\"\n{EVENTS}{}", internal(A, level));
    let mut perennial = Perennial::with_config(place, &rest("error"));
    perennial.start_and_wait().await;
    perennial.rewrite_config(&rest("warn"));
    let note = "log_level is not used: --log-level was given";
    perennial.wait_for_log(note, SOON).await;
    wait_answer(perennial.place.https, A, "warn").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_file_is_not_taken() {
    let text = |body| format!("{POLL}{}{}", internal(A, body), internal(B, body));
    let perennial = running(&text("old")).await;
    let file = perennial.place.path("perennial.toml");
    let new = format!("{}{}", perennial.place.server_table(), text("new"));
    dribble(&new, &file, Duration::from_millis(20)).await;
    wait_answer(perennial.place.https, A, "new").await;
    let answer = get(perennial.place.https, B).await;
    assert_eq!(answer, Ok((200, "new".to_owned())));
    let total = "perennial_config_reloads_total";
    assert_eq!(perennial.metric(total, &["ok"]).await, Some(1.0));
    let failed = perennial.log_lines_with("configuration not taken");
    assert_eq!(failed, Vec::<String>::new());
}

/// `FILE -> ..data/FILE`, `..data -> ..TIME`, swapped by one rename.
async fn config_map_is_swapped(certificates: &str) {
    let place = Place::new();
    let text = |body| {
        format!(
            "{}{certificates}{}",
            place.server_table(),
            internal(A, body)
        )
    };
    let (old, new) = (text("a"), text("new"));
    let volume = place.path("volume");
    place.write("volume/..1/perennial.toml", &old);
    symlink("..1", volume.join("..data")).expect("a link");
    symlink("..data/perennial.toml", volume.join("perennial.toml")).expect("a link");
    let mut perennial = Perennial::with_config(place, "");
    perennial.place.write("perennial.toml", "");
    let file = perennial.place.path("perennial.toml");
    fs::remove_file(&file).expect("removed");
    symlink("volume/perennial.toml", &file).expect("a link");
    perennial.start_and_wait().await;
    perennial.wait_ready().await;
    perennial.place.write("volume/..2/perennial.toml", &new);
    symlink("..2", volume.join("..data_tmp")).expect("a link");
    fs::rename(volume.join("..data_tmp"), volume.join("..data")).expect("renamed");
    fs::remove_dir_all(volume.join("..1")).expect("removed");
    wait_answer(perennial.place.https, A, "new").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kubernetes_config_map_is_swapped_with_events() {
    config_map_is_swapped(EVENTS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kubernetes_config_map_is_swapped_with_the_poll() {
    config_map_is_swapped(POLL).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_file_is_part_of_the_configuration() {
    let place = Place::new();
    let key = place.write("eab.key", "c2VjcmV0LWtleQ");
    let acme = format!("[acme.external_account]\nkid = \"kid\"\nhmac_key_file = {key:?}\n");
    let rest = format!("{EVENTS}{acme}{}", internal(A, "a"));
    let mut perennial = Perennial::run(place, &rest).await;
    perennial.wait_ready().await;
    fs::remove_file(&key).expect("removed");
    let message = wait_error(&perennial).await;
    assert!(message.contains("eab.key"), "{message}");
    fs::write(&key, "YW5vdGhlci1rZXk").expect("written");
    perennial.wait_for_log(RELOADED, SOON).await;
    wait_no_error(&perennial).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_admin_api_moves() {
    let rest = format!("{EVENTS}{}", internal(A, "a"));
    let mut perennial = running(&rest).await;
    let (old, new) = (perennial.place.admin, perennial.place.free());
    perennial.place.admin = new;
    perennial.rewrite_config(&rest);
    perennial.wait_healthy().await;
    let refused = async || tokio::net::TcpStream::connect(old).await.err();
    wait_until(SOON, "the old address to be closed", refused).await;
    assert_eq!(reload(&perennial).await["config"], "unchanged");
}
