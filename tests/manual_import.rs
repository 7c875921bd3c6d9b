//! What certbot, lego, acme.sh and Caddy have is taken over: the certificate is served, and renewed
//! under the same account.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::acme_clients::{AcmeClient, Kind};
use crate::support::certs::serial_of_pem;
use crate::support::client::served;
use crate::support::command;
use crate::support::pebble::{Killed, Options, Pebble};
use crate::support::perennial::{Perennial, cli};
use crate::support::place::Place;
use crate::support::sites::site;
use crate::support::wait::{SOON, wait_until};

const NAME: &str = "a.example.test";

/// What a client has got, and where.
struct Theirs {
    client: &'static str,
    dir: PathBuf,
    serial: String,
    account: String,
}

async fn import(place: &Place, theirs: &Theirs, more: &[&str]) -> (bool, Value) {
    let config = place.path("perennial.toml").display().to_string();
    let dir = theirs.dir.display().to_string();
    let mut words = vec!["certs", "import", theirs.client, &dir, "--json"];
    words.extend(["--config", &config]);
    words.extend(more);
    let done = cli(&words).await;
    let success = done.success();
    assert!(success || done.stdout.is_empty(), "{done:#?}");
    let items = match success {
        true => done.json(),
        false => Value::String(done.stderr),
    };
    (success, items)
}

/// `OUTCOME WHAT` of all items, as short as they can be told apart.
fn outcomes(items: &Value) -> Vec<String> {
    let items = items.as_array().expect("a list").iter();
    let word = |item: &Value| {
        let what = item["what"].as_str().expect("a text");
        let what = what.split(' ').next().unwrap_or_default();
        format!("{} {what}", item["outcome"].as_str().expect("a text"))
    };
    items.map(word).collect()
}

fn account(place: &Place) -> Value {
    let mut accounts = std::fs::read_dir(place.state().join("accounts")).expect("a folder");
    let folder = accounts.next().expect("one CA").expect("readable").path();
    assert!(accounts.next().is_none(), "one CA alone");
    let file = std::fs::read(folder.join("account.json")).expect("an account");
    serde_json::from_slice(&file).expect("JSON")
}

fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt;
    let metadata = std::fs::metadata(path).expect("metadata");
    metadata.permissions().mode() & 0o777
}

/// The whole story of one client's directory; nobody else answers challenges any more.
async fn taken_over(place: Place, pebble: &Pebble, theirs: Theirs) {
    let site = site(NAME, "acme", &["respond:hello"]);
    let rest = format!("{}{site}", pebble.acme_table());
    let mut perennial = Perennial::with_config(place, &rest);
    let place = &perennial.place;

    let (_, dry) = import(place, &theirs, &["--dry-run"]).await;
    assert_eq!(
        outcomes(&dry),
        ["would-import account", "would-import certificate"]
    );
    assert!(!place.state().exists(), "a dry run writes nothing");
    let orders = pebble.orders();
    let (_, items) = import(place, &theirs, &[]).await;
    assert_eq!(
        outcomes(&items),
        ["imported account", "imported certificate"]
    );
    let (_, again) = import(place, &theirs, &[]).await;
    assert_eq!(
        outcomes(&again),
        ["unchanged account", "unchanged certificate"]
    );
    let key = place
        .state()
        .join(format!("certificates/{NAME}/p256/current/privkey.pem"));
    assert_eq!(mode(&key), 0o600);
    assert_eq!(account(place)["id"], theirs.account.as_str());

    perennial.start_and_wait().await;
    perennial.wait_ready().await;
    let first = served(perennial.place.https, Some(NAME))
        .await
        .expect("a handshake");
    assert_eq!(first.serial, theirs.serial);
    let (_, refused) = import(&perennial.place, &theirs, &[]).await;
    let refused = refused.as_str().expect("a refusal");
    assert!(refused.contains("a running perennial"), "{refused}");
    assert_eq!(pebble.orders(), orders, "nothing was ordered");

    perennial.renew(NAME).await;
    wait_until(SOON, "a renewal by ourselves", async || {
        if let Some(error) = perennial.status_field(NAME, "last_error").await {
            panic!("the renewal failed: {error}");
        }
        let served = served(perennial.place.https, Some(NAME)).await.ok()?;
        (served.serial != theirs.serial).then_some(())
    })
    .await;
    assert_eq!(account(&perennial.place)["id"], theirs.account.as_str());
    perennial.kill9();
    // What is newer stays.
    let (_, late) = import(&perennial.place, &theirs, &[]).await;
    assert_eq!(
        outcomes(&late),
        ["unchanged account", "skipped certificate"]
    );
    let cause = late[1]["cause"].as_str().expect("a cause");
    assert!(cause.contains("newer"), "{cause}");
}

/// HTTP-01 is asked for where the client answers it, TLS-ALPN-01 where Perennial does.
async fn pebble_for(place: &Place) -> Option<(Pebble, std::net::SocketAddr)> {
    let http = place.free();
    let options = Options {
        // certbot gives up where a nonce is refused twice.
        nonce_reject: 0,
        http_port: Some(http.port()),
        ..Options::default()
    };
    Some((Pebble::start(place, options).await?, http))
}

fn json(path: &Path) -> Value {
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&bytes).expect("JSON")
}

fn find(dir: &Path, name: &str) -> Option<PathBuf> {
    let entries = std::fs::read_dir(dir)
        .ok()?
        .flatten()
        .map(|entry| entry.path());
    let mut folders = Vec::new();
    for path in entries {
        if path.file_name().is_some_and(|own| own == name) {
            return Some(path);
        }
        folders.extend(path.is_dir().then_some(path));
    }
    folders.iter().find_map(|folder| find(folder, name))
}

async fn issued(kind: Kind, place: &Place, pebble: &Pebble, http: std::net::SocketAddr) -> Theirs {
    let client = AcmeClient::new(kind, NAME, place, pebble, http);
    client.issue().await;
    let chain = std::fs::read_to_string(client.pair().certificate).expect("a certificate");
    let dir = client.folder().parent().expect("its root").to_owned();
    let account = match kind {
        Kind::Certbot => json(&find(&dir, "regr.json").expect("an account"))["uri"].clone(),
        Kind::Lego => {
            json(&find(&dir, "account.json").expect("an account"))["registration"]["uri"].clone()
        }
    };
    Theirs {
        client: match kind {
            Kind::Certbot => "certbot",
            Kind::Lego => "lego",
        },
        dir,
        serial: serial_of_pem(&chain).expect("PEM"),
        account: account.as_str().expect("a URL").to_owned(),
    }
}

/// Its account has an RSA key.
#[tokio::test(flavor = "multi_thread")]
async fn of_certbot() {
    let place = Place::new();
    let Some((pebble, http)) = pebble_for(&place).await else {
        return;
    };
    let theirs = issued(Kind::Certbot, &place, &pebble, http).await;
    taken_over(place, &pebble, theirs).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_lego() {
    let place = Place::new();
    let Some((pebble, http)) = pebble_for(&place).await else {
        return;
    };
    let theirs = issued(Kind::Lego, &place, &pebble, http).await;
    taken_over(place, &pebble, theirs).await;
}

/// Laid out as its documentation says, with an account and a certificate that lego has got.
#[tokio::test(flavor = "multi_thread")]
async fn of_acme_sh() {
    let place = Place::new();
    let Some((pebble, http)) = pebble_for(&place).await else {
        return;
    };
    let lego = issued(Kind::Lego, &place, &pebble, http).await;
    let pair = AcmeClient::new(Kind::Lego, NAME, &place, &pebble, http).pair();
    let account_key = find(&lego.dir, "keys").expect("a folder");
    let account_key = std::fs::read_dir(account_key).expect("keys").next();
    let account_key = account_key.expect("a key").expect("readable").path();
    let read = |path: &Path| std::fs::read(path).expect("a file");
    let ca = format!("acme.sh/ca/{}/dir", place.ip);
    place.write(format!("{ca}/account.key"), read(&account_key));
    place.write(
        format!("{ca}/account.json"),
        r#"{"status": "valid", "contact": []}"#,
    );
    let conf = format!("ACCOUNT_URL='{}'\nCA_KEY_HASH='x'\n", lego.account);
    place.write(format!("{ca}/ca.conf"), conf);
    let folder = format!("acme.sh/{NAME}_ecc");
    let conf = format!(
        "Le_Domain='{NAME}'\nLe_API='{}'\nLe_Keylength='ec-256'\n",
        pebble.directory
    );
    place.write(format!("{folder}/{NAME}.conf"), conf);
    place.write(format!("{folder}/{NAME}.key"), read(&pair.key));
    place.write(format!("{folder}/fullchain.cer"), read(&pair.certificate));
    place.write("acme.sh/account.conf", "LOG_FILE=''\n");
    let theirs = Theirs {
        client: "acme.sh",
        dir: place.path("acme.sh"),
        ..lego
    };
    taken_over(place, &pebble, theirs).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_caddy() {
    let Some(program) = command::find("caddy") else {
        eprintln!("CADDY NOT FOUND: taking its certificates over is not proven");
        return;
    };
    let place = Place::new();
    let options = Options::default();
    let Some(pebble) = Pebble::start(&place, options).await else {
        return;
    };
    let storage = place.path("caddy");
    let caddyfile = format!(
        "{{\n admin off\n storage file_system {}\n acme_ca {}\n acme_ca_root {}\n \
         email ops@example.test\n http_port {}\n https_port {}\n skip_install_trust\n}}\n\
         {NAME} {{\n bind {}\n respond hi\n}}\n",
        storage.display(),
        pebble.directory,
        pebble.ca_certificate.display(),
        place.http.port(),
        place.https.port(),
        place.ip,
    );
    let caddyfile = place.write("Caddyfile", caddyfile);
    let mut caddy = Command::new(program);
    caddy
        .args(["run", "--adapter", "caddyfile", "--config"])
        .arg(caddyfile);
    caddy
        .env("HOME", place.path("home"))
        .env("XDG_CONFIG_HOME", place.path("home"));
    caddy
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let caddy = Killed(caddy.spawn().expect("caddy"));
    // The metadata is written last.
    let meta = wait_until(SOON, "Caddy's certificate", async || {
        let certificates = storage.join("certificates");
        find(&certificates, &format!("{NAME}.json")).filter(|path| !json_of(path).is_null())
    })
    .await;
    drop(caddy);
    let chain = std::fs::read_to_string(meta.with_extension("crt")).expect("a certificate");
    let account = json(&find(&storage, "ops.json").expect("an account"));
    let theirs = Theirs {
        client: "caddy",
        dir: storage,
        serial: serial_of_pem(&chain).expect("PEM"),
        account: account["location"].as_str().expect("a URL").to_owned(),
    };
    taken_over(place, &pebble, theirs).await;
}

/// What may still be being written.
fn json_of(path: &Path) -> Value {
    let bytes = std::fs::read(path).unwrap_or_default();
    serde_json::from_slice(&bytes).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_taken_over_is_said() {
    let place = Place::new();
    let site = site(NAME, "acme", &["respond:hello"]);
    place.write("perennial.toml", format!("{}{site}", place.server_table()));
    let config = place.path("perennial.toml").display().to_string();
    let empty = place.path("").display().to_string();
    let nothing = cli(&["certs", "import", "certbot", &empty, "--config", &config]).await;
    assert_eq!(nothing.code, Some(1));
    assert!(
        nothing.stderr.contains("/etc/letsencrypt"),
        "{}",
        nothing.stderr
    );
    let unknown = cli(&["certs", "import", "getssl", &empty]).await;
    assert_eq!(unknown.code, Some(64));
    // An account that is broken is told, and nothing else is kept from being taken over.
    let folder = "letsencrypt/accounts/ca.example.test/dir/1";
    place.write(
        format!("{folder}/private_key.json"),
        r#"{"kty": "RSA", "n": "secret"}"#,
    );
    let dir = place.path("letsencrypt").display().to_string();
    let broken = cli(&["certs", "import", "certbot", &dir, "--config", &config]).await;
    assert_eq!(broken.code, Some(1));
    let text = format!("{}{}", broken.stdout, broken.stderr);
    assert!(
        text.contains("private_key.json") && text.contains("FAILED"),
        "{text}"
    );
    assert!(!text.contains("secret"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn beside_a_running_server_nothing_is_written_and_the_remedy_is_said() {
    let site = site("a.localhost", "internal", &["respond:hello"]);
    let perennial = Perennial::run(Place::new(), &site).await;
    let folder = "letsencrypt/accounts/ca.example.test/dir/1";
    let place = &perennial.place;
    place.write(format!("{folder}/private_key.json"), "{}");
    let dir = place.path("letsencrypt").display().to_string();
    let config = place.path("perennial.toml").display().to_string();
    let words = ["certs", "import", "certbot", &dir, "--config", &config];
    let refused = cli(&words).await;
    assert_eq!(refused.code, Some(1));
    for part in ["a running perennial", "stop it, import, and start it again"] {
        assert!(refused.stderr.contains(part), "{}", refused.stderr);
    }
    let looked = cli(&[&words[..], &["--dry-run"]].concat()).await;
    assert!(looked.stdout.contains("private_key.json"), "{looked:?}");
}

/// Root may read what another client keeps to itself; what is written is the service's own.
#[tokio::test(flavor = "multi_thread")]
async fn what_root_imports_belongs_to_the_owner_of_the_state_directory() {
    use std::os::unix::fs::MetadataExt;
    if !rustix::process::geteuid().is_root() {
        eprintln!("NOT ROOT: the owner of what root imports is not proven");
        return;
    }
    let place = Place::new();
    let Some((pebble, http)) = pebble_for(&place).await else {
        return;
    };
    let theirs = issued(Kind::Lego, &place, &pebble, http).await;
    let site = site(NAME, "acme", &["respond:hello"]);
    let (server, acme) = (place.server_table(), pebble.acme_table());
    place.write("perennial.toml", format!("{server}{acme}{site}"));
    // The service reaches its directory.
    for path in [place.path(""), place.state()] {
        use std::os::unix::fs::PermissionsExt;
        std::fs::create_dir_all(&path).expect("a folder");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o711)).expect("mode");
    }
    std::os::unix::fs::chown(place.state(), Some(65534), Some(65534)).expect("chown");
    let (success, items) = import(&place, &theirs, &[]).await;
    assert!(success, "{items}");
    for item in items.as_array().expect("a list") {
        let to = item["to"].as_str().expect("a place");
        let owner = std::fs::metadata(to).expect("metadata").uid();
        assert_eq!(
            (owner, &item["outcome"]),
            (65534, &"imported".into()),
            "{to}"
        );
    }
}
