//! DNS-01: records at a real authoritative server, written by RFC 2136, by a program and through
//! acme-dns, validated by a real CA, and gone afterwards however it went.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;

use crate::support::bind::{Bind, ZONE, Zone};
use crate::support::command::find;
use crate::support::pebble::{Killed, Pebble, issued_by_pebble, start_dns};
use crate::support::perennial::{Perennial, cli};
use crate::support::place::Place;
use crate::support::server::Server;
use crate::support::wait::{SOON, never_within, wait_until};

const CHALLENGE: &str = "_acme-challenge.example.test";

fn site(hosts: &[&str]) -> String {
    format!(
        "[[sites]]\nhosts = {hosts:?}\ntls = \"acme\"\ncertificate_per = \"site\"\nupstreams = [\"respond:hello\"]\n"
    )
}

fn config(pebble: &Pebble, dns: &str, hosts: &[&str]) -> String {
    let acme = pebble.acme_table();
    format!("{acme}challenges = [\"dns-01\"]\n{dns}{}", site(hosts))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wildcard_and_its_parent_by_rfc_2136() {
    let place = Place::new();
    let bind = Bind::of_place(&place).await;
    let Some(pebble) = Pebble::asking(&place, bind.addr).await else {
        return;
    };
    let hosts = ["example.test", "*.example.test"];
    let perennial = Perennial::run(place, &config(&pebble, &bind.dns_table(), &hosts)).await;
    let served = issued_by_pebble(&perennial, "any.example.test").await;
    let mut names = served.names;
    names.sort();
    assert_eq!(names, ["*.example.test", "example.test"]);
    assert_eq!(pebble.orders(), 1);
    // Both names have the same record name: two values stood there at once.
    let log = bind.log();
    let added = log.iter().filter(|line| line.contains("adding an RR at"));
    assert_eq!(added.count(), 2, "{log:#?}");
    bind.wait_until_empty(CHALLENGE).await;
    let journal = perennial.place.state().join("ledger/dns");
    let left = std::fs::read_dir(journal).expect("a journal").count();
    assert_eq!(left, 0, "nothing is left to remove");
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_of_their_own_for_a_wildcard_and_its_parent_at_once() {
    let place = Place::new();
    let bind = Bind::of_place(&place).await;
    let Some(pebble) = Pebble::asking(&place, bind.addr).await else {
        return;
    };
    let hosts = ["example.test", "*.example.test"];
    let acme = format!("{}challenges = [\"dns-01\"]\n", pebble.acme_table());
    let site = format!("[[sites]]\nhosts = {hosts:?}\nupstreams = [\"respond:hello\"]\n");
    let text = format!("{acme}{}{site}", bind.dns_table());
    let perennial = Perennial::run(place, &text).await;
    for (name, expected) in [("example.test", hosts[0]), ("x.example.test", hosts[1])] {
        let served = issued_by_pebble(&perennial, name).await;
        assert_eq!(served.names, [expected]);
    }
    assert_eq!(pebble.orders(), 2);
    bind.wait_until_empty(CHALLENGE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delegated_challenge_is_written_where_the_alias_leads() {
    let place = Place::new();
    // The zone itself takes no updates: whoever wrote there would fail.
    let records = format!(
        "@ IN A {}\n_acme-challenge IN CNAME here.acme.test.",
        place.ip
    );
    let zones = [
        Zone {
            name: ZONE,
            records: &records,
            takes_updates: false,
        },
        Zone {
            name: "acme.test",
            records: "",
            takes_updates: true,
        },
    ];
    let bind = Bind::start(&place, "bind", &zones).await;
    let Some(pebble) = Pebble::asking(&place, bind.addr).await else {
        return;
    };
    let text = config(&pebble, &bind.dns_table(), &["example.test"]);
    let perennial = Perennial::run(place, &text).await;
    issued_by_pebble(&perennial, "example.test").await;
    bind.wait_until_empty("here.acme.test").await;
}

/// A second server of the zone that never gets the record.
async fn with_a_server_that_lags(limit: &str) -> Option<(Perennial, Pebble, Bind, Bind)> {
    let place = Place::new();
    let bind = Bind::of_place(&place).await;
    let static_zone = Zone {
        name: ZONE,
        records: "",
        takes_updates: true,
    };
    let lagging = Bind::start(&place, "lagging", &[static_zone]).await;
    let pebble = Pebble::asking(&place, bind.addr).await?;
    let servers = format!("nameservers = [\"{}\", \"{}\"]", bind.addr, lagging.addr);
    let only = format!("nameservers = [\"{}\"]", bind.addr);
    let dns = bind.dns_table().replace(&only, &servers);
    let dns = format!("{dns}propagation_timeout = \"{limit}\"\n");
    let perennial = Perennial::run(place, &config(&pebble, &dns, &["example.test"])).await;
    Some((perennial, pebble, bind, lagging))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ca_is_told_only_when_every_server_has_the_record() {
    let Some((perennial, pebble, bind, lagging)) = with_a_server_that_lags("60s").await else {
        return;
    };
    let value = bind.wait_for_txt(CHALLENGE).await;
    never_within(Duration::from_secs(2), async || {
        let log = pebble.log();
        log.contains("Pulled a task").then_some(log)
    })
    .await;
    lagging
        .update(&format!("update add {CHALLENGE} 60 TXT {value}"))
        .await;
    issued_by_pebble(&perennial, "example.test").await;
    bind.wait_until_empty(CHALLENGE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_does_not_arrive_fails_in_words_and_is_removed() {
    let Some((perennial, pebble, bind, lagging)) = with_a_server_that_lags("1s").await else {
        return;
    };
    let error = perennial.last_error("example.test").await;
    let lacks = format!("{} has none", lagging.addr);
    assert!(
        error.contains(CHALLENGE) && error.contains(&lacks),
        "{error}"
    );
    assert!(!pebble.log().contains("Pulled a task"), "{}", pebble.log());
    bind.wait_until_empty(CHALLENGE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_in_the_middle_removes_the_record() {
    let Some((mut perennial, _pebble, bind, _lagging)) = with_a_server_that_lags("60s").await
    else {
        return;
    };
    bind.wait_for_txt(CHALLENGE).await;
    perennial.signal(Signal::TERM);
    perennial.wait_exit(SOON).await;
    assert!(bind.txt(CHALLENGE).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_crash_left_is_removed_by_the_next_start() {
    let Some((mut perennial, _pebble, bind, _lagging)) = with_a_server_that_lags("60s").await
    else {
        return;
    };
    bind.wait_for_txt(CHALLENGE).await;
    perennial.kill9();
    assert!(!bind.txt(CHALLENGE).await.is_empty());
    // Nothing is ordered any more: only the journal knows of the record.
    let site = "[[sites]]\nhosts = [\"example.test\"]\ntls = \"internal\"\nupstreams = [\"respond:hello\"]\n";
    perennial.rewrite_config(&format!("{}{site}", bind.dns_table()));
    perennial.start_and_wait().await;
    bind.wait_until_empty(CHALLENGE).await;
}

/// A program that writes by nsupdate(1), and writes down how it was called.
fn hook(place: &Place, bind: &Bind, ending: &str) -> std::path::PathBuf {
    let (ip, port) = (bind.addr.ip(), bind.addr.port());
    let script = format!(
        "#!/bin/sh\nset -eu\necho \"$@\" >> {calls}\ncase $1 in\n\
         present) change=\"update add $2. 60 TXT $3\" ;;\n\
         cleanup) change=\"update delete $2. TXT $3\" ;;\nesac\n\
         printf 'server {ip} {port}\\nkey hmac-sha256:perennial {secret}\\n%s\\nsend\\n' \"$change\" | nsupdate\n{ending}\n",
        calls = place.path("calls").display(),
        secret = bind.secret,
    );
    let path = place.write("hook.sh", script);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("executable");
    path
}

fn exec_table(bind: &Bind, program: &Path, more: &str) -> String {
    format!(
        "[acme.dns]\nprovider = \"exec\"\nprogram = \"{}\"\nresolvers = [\"{1}\"]\nnameservers = [\"{1}\"]\n{more}",
        program.display(),
        bind.addr
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_writes_and_removes_the_record() {
    let place = Place::new();
    let bind = Bind::of_place(&place).await;
    let Some(pebble) = Pebble::asking(&place, bind.addr).await else {
        return;
    };
    let program = hook(&place, &bind, "");
    let text = config(
        &pebble,
        &exec_table(&bind, &program, ""),
        &["*.example.test"],
    );
    let perennial = Perennial::run(place, &text).await;
    issued_by_pebble(&perennial, "x.example.test").await;
    bind.wait_until_empty(CHALLENGE).await;
    let calls = std::fs::read_to_string(perennial.place.path("calls")).expect("calls");
    let calls: Vec<&str> = calls.lines().collect();
    let [present, cleanup] = calls[..] else {
        panic!("{calls:?}")
    };
    let value = present.strip_prefix(&format!("present {CHALLENGE} "));
    assert_eq!(cleanup, format!("cleanup {CHALLENGE} {}", value.unwrap()));
}

/// Servers that are configured are asked for the record; who answers for the zone is then nobody's
/// business: this DNS server has neither SOA nor NS records.
#[tokio::test(flavor = "multi_thread")]
async fn with_servers_of_its_own_a_program_needs_no_zone() {
    let place = Place::new();
    let (dns, management) = (place.free(), place.free());
    let Some(program) = find("pebble-challtestsrv") else {
        eprintln!("NO PEBBLE-CHALLTESTSRV: nothing is proven");
        return;
    };
    let _server = Killed(start_dns(&program, &place, dns, management));
    let Some(pebble) = Pebble::asking(&place, dns).await else {
        return;
    };
    let script = format!(
        "#!/bin/sh\nset -eu\ncase $1 in\n\
         present) curl -sS --fail -d '{{\"host\":\"'$2'.\",\"value\":\"'$3'\"}}' http://{management}/set-txt ;;\n\
         cleanup) curl -sS --fail -d '{{\"host\":\"'$2'.\"}}' http://{management}/clear-txt; echo $2 >> {calls} ;;\n\
         esac\n",
        calls = place.path("cleaned").display(),
    );
    let program = place.write("hook.sh", script);
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("executable");
    let table = format!(
        "[acme.dns]\nprovider = \"exec\"\nprogram = \"{}\"\nresolvers = [\"{dns}\"]\nnameservers = [\"{dns}\"]\n",
        program.display(),
    );
    let text = config(&pebble, &table, &["*.example.test"]);
    let perennial = Perennial::run(place, &text).await;
    issued_by_pebble(&perennial, "x.example.test").await;
    let cleaned = perennial.place.path("cleaned");
    wait_until(SOON, "the record removed", async || {
        let names = std::fs::read_to_string(&cleaned).ok()?;
        (names.trim() == CHALLENGE).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_fails_is_quoted_and_one_that_hangs_is_ended() {
    for (ending, more, expected) in [
        ("echo no zone for you >&2; exit 3", "", "no zone for you"),
        (
            "sleep 600 & echo $! > $0.sleeping; wait",
            "timeout = \"1s\"\n",
            "no answer within 1s",
        ),
    ] {
        let place = Place::new();
        let bind = Bind::of_place(&place).await;
        let Some(pebble) = Pebble::asking(&place, bind.addr).await else {
            return;
        };
        let program = hook(&place, &bind, ending);
        let dns = exec_table(&bind, &program, more);
        let text = config(&pebble, &dns, &["example.test"]);
        let perennial = Perennial::run(place, &text).await;
        let error = perennial.last_error("example.test").await;
        assert!(error.contains(expected), "{error}");
        assert!(!pebble.log().contains("Pulled a task"));
        // What it started is gone as well.
        if let Ok(id) = std::fs::read_to_string(perennial.place.path("hook.sh.sleeping")) {
            let process = Path::new("/proc").join(id.trim());
            wait_until(SOON, "the sleeping program to be gone", async || {
                let status = std::fs::read_to_string(process.join("stat"));
                status.map_or(true, |it| it.contains(") Z ")).then_some(())
            })
            .await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn through_an_acme_dns_server() {
    let place = Place::new();
    let records = format!(
        "@ IN A {}\n_acme-challenge IN CNAME 8e5700ea.auth.test.",
        place.ip
    );
    let zones = [
        Zone {
            name: ZONE,
            records: &records,
            takes_updates: false,
        },
        Zone {
            name: "auth.test",
            records: "",
            takes_updates: true,
        },
    ];
    let bind = std::sync::Arc::new(Bind::start(&place, "bind", &zones).await);
    let Some(pebble) = Pebble::asking(&place, bind.addr).await else {
        return;
    };
    let api = place.free();
    let _api = acme_dns(api, &bind).await;
    let table = |subdomain: &str| {
        format!(
            "[acme.dns]\nprovider = \"acme-dns\"\nserver = \"http://{api}\"\nusername = \"me\"\npassword = \"a secret\"\nsubdomain = \"{subdomain}\"\nresolvers = [\"{0}\"]\nnameservers = [\"{0}\"]\n",
            bind.addr
        )
    };
    let text = config(&pebble, &table("another"), &["example.test"]);
    let mut perennial = Perennial::run(place, &text).await;
    let error = perennial.last_error("example.test").await;
    let remedy = "_acme-challenge.example.test CNAME another.DOMAIN";
    assert!(error.contains(remedy), "{error}");
    perennial.kill9();
    std::fs::remove_dir_all(perennial.place.state().join("ledger")).expect("no backoff");
    perennial.rewrite_config(&config(&pebble, &table("8e5700ea"), &["example.test"]));
    perennial.start_and_wait().await;
    issued_by_pebble(&perennial, "example.test").await;
}

/// No account is there: one is registered, the log, the error and the doctor say which record leads
/// to it, and once that is there the certificate comes.
#[tokio::test(flavor = "multi_thread")]
async fn an_account_at_an_acme_dns_server_is_registered() {
    let place = Place::new();
    let own = format!("@ IN A {}", place.ip);
    let zone = |name, records| Zone {
        name,
        records,
        takes_updates: true,
    };
    let zones = [zone(ZONE, own.as_str()), zone("auth.test", "")];
    let bind = std::sync::Arc::new(Bind::start(&place, "bind", &zones).await);
    let Some(pebble) = Pebble::asking(&place, bind.addr).await else {
        return;
    };
    let api = place.free();
    let server = acme_dns(api, &bind).await;
    let dns = format!(
        "[acme.dns]\nprovider = \"acme-dns\"\nserver = \"http://{api}\"\nresolvers = [\"{0}\"]\nnameservers = [\"{0}\"]\n",
        bind.addr
    );
    let hosts = ["example.test", "*.example.test"];
    let mut perennial = Perennial::with_config(place, &config(&pebble, &dns, &hosts));
    std::fs::create_dir_all(perennial.place.state()).expect("a state directory");
    let doctor = async |perennial: &Perennial| {
        let file = perennial.place.path("perennial.toml").display().to_string();
        cli(&["doctor", "--config", &file]).await.stdout
    };
    let told = doctor(&perennial).await;
    assert!(told.contains("has no account at http://"), "{told}");
    perennial.start_and_wait().await;
    let error = perennial.last_error("example.test").await;
    let remedy = "add the record _acme-challenge.example.test CNAME registered1.auth.test (it";
    assert!(error.contains(remedy), "{error}");
    let told = doctor(&perennial).await;
    let record = "add _acme-challenge.example.test. IN CNAME registered1.auth.test\n";
    assert!(told.contains(record), "{told}");
    let file = perennial.place.state().join("acme-dns.json");
    let mode = std::fs::metadata(&file).expect("a file").permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
    let log = perennial.log_lines_with("registered an account at the acme-dns server");
    assert!(
        log.len() == 1 && log[0].contains("registered1.auth.test"),
        "{log:?}"
    );
    bind.update("update add _acme-challenge.example.test. 1 CNAME registered1.auth.test.")
        .await;
    perennial.restart().await;
    perennial.renew("example.test").await;
    issued_by_pebble(&perennial, "any.example.test").await;
    let told = doctor(&perennial).await;
    assert!(told.contains("leads to acme-dns"), "{told}");
    assert!(!perennial.log().join("\n").contains("a secret"));
    let kept = std::fs::read_to_string(&file).expect("a file");
    assert!(
        kept.contains("registered1") && !kept.contains("registered2"),
        "{kept}"
    );
    drop(server);
}

/// As goacmedns, which lego and others keep their accounts with, writes it.
fn accounts(api: SocketAddr, of: &[(&str, &str)]) -> String {
    let account = |(domain, subdomain): &(&str, &str)| {
        let account = serde_json::json!({
            "fulldomain": format!("{subdomain}.auth.test"),
            "subdomain": subdomain,
            "username": format!("of {subdomain}"),
            "password": "a secret",
            "server_url": format!("http://{api}"),
        });
        ((*domain).to_owned(), account)
    };
    let all: serde_json::Map<_, _> = of.iter().map(account).collect();
    serde_json::Value::from(all).to_string()
}

/// One takes updates at a server that is given by name, one has an account for each domain, and one
/// for all that is above them fails whatever it is asked for.
#[tokio::test(flavor = "multi_thread")]
async fn several_providers_each_for_its_domains() {
    let place = Place::new();
    let own = format!("@ IN A {0}\n* IN A {0}", place.ip);
    let aliases =
        "_acme-challenge IN CNAME aaaa.auth.test.\n_acme-challenge.b IN CNAME bbbb.auth.test.\n";
    let other = format!("{own}\n{aliases}");
    let zone = |name, records, takes_updates| Zone {
        name,
        records,
        takes_updates,
    };
    let zones = [
        zone(ZONE, own.as_str(), true),
        zone("other.test", other.as_str(), false),
        zone("auth.test", "", true),
        zone("else.test", "", false),
    ];
    let bind = std::sync::Arc::new(Bind::start(&place, "bind", &zones).await);
    let Some(pebble) = Pebble::asking(&place, bind.addr).await else {
        return;
    };
    let api = place.free();
    let _api = acme_dns(api, &bind).await;
    let noted = accounts(api, &[("other.test", "aaaa"), ("b.other.test", "bbbb")]);
    place.write("accounts.json", noted);
    place.write("tsig.key", &bind.secret);
    let dns = format!(
        "[acme.dns]\nresolvers = [\"{addr}\"]\n\
         [[acme.dns.providers]]\ndomains = [\"test\"]\nprovider = \"exec\"\nprogram = \"/bin/false\"\n\
         [[acme.dns.providers]]\ndomains = [\"{ZONE}\"]\nprovider = \"rfc2136\"\n\
         server = \"ns1.{ZONE}:{port}\"\nkey_name = \"perennial\"\nkey_file = \"tsig.key\"\n\
         nameservers = [\"{addr}\"]\n\
         [[acme.dns.providers]]\ndomains = [\"other.test\"]\nprovider = \"acme-dns\"\n\
         accounts_file = \"accounts.json\"\nnameservers = [\"{addr}\"]\n",
        addr = bind.addr,
        port = bind.addr.port(),
    );
    let text = config(&pebble, &dns, &["*.example.test", "other.test"]);
    let text = format!(
        "{text}{}{}",
        site(&["b.other.test"]),
        site(&["www.else.test"])
    );
    let perennial = Perennial::run(place, &text).await;
    let served = issued_by_pebble(&perennial, "x.example.test").await;
    let mut names = served.names;
    names.sort();
    assert_eq!(
        names,
        ["*.example.test", "other.test"],
        "one order, two providers"
    );
    issued_by_pebble(&perennial, "b.other.test").await;
    let error = perennial.last_error("www.else.test").await;
    assert!(
        error.contains("exec did not take the TXT record"),
        "{error}"
    );
    bind.wait_until_empty(CHALLENGE).await;
    let log = perennial.log().join("\n");
    assert!(!log.contains("a secret") && !log.contains(&bind.secret));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_name_leads_nowhere_is_told() {
    let place = Place::new();
    let bind = Bind::of_place(&place).await;
    let Some(pebble) = Pebble::asking(&place, bind.addr).await else {
        return;
    };
    let by_name = "server = \"gone.elsewhere.test\"\n";
    let dns = bind.dns_table();
    let dns = dns.replace(&format!("server = \"{}\"\n", bind.addr), by_name);
    let perennial = Perennial::run(place, &config(&pebble, &dns, &["example.test"])).await;
    let error = perennial.last_error("example.test").await;
    assert!(
        error.contains("`server` \"gone.elsewhere.test\""),
        "{error}"
    );
    assert!(!pebble.log().contains("Pulled a task"));
}

/// A name that nobody writes for is proved in another way, and where there is none, `check` says so.
#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_no_provider_is_for() {
    let place = Place::new();
    let bind = Bind::of_place(&place).await;
    let Some(pebble) = Pebble::asking(&place, bind.addr).await else {
        return;
    };
    let other = "[[acme.dns.providers]]\ndomains = [\"other.test\"]\nprovider = \"exec\"\nprogram = \"/bin/false\"\n";
    let challenges = |kinds: &str| {
        let acme = pebble.acme_table();
        format!(
            "{acme}challenges = {kinds}\n{other}{}",
            site(&["example.test"])
        )
    };
    let perennial = Perennial::run(place, &challenges("[\"dns-01\", \"http-01\"]")).await;
    issued_by_pebble(&perennial, "example.test").await;
    let file = perennial
        .place
        .write("alone.toml", challenges("[\"dns-01\"]"));
    let checked = cli(&["check", "--config", &file.display().to_string()]).await;
    assert_eq!(checked.code, Some(64));
    let told =
        "a certificate for example.test needs dns-01, and no DNS provider is for example.test";
    assert!(checked.stderr.contains(told), "{}", checked.stderr);
}

/// What acme-dns does with an update: the newest value of the subdomain; and with a registration.
async fn acme_dns(addr: SocketAddr, bind: &std::sync::Arc<Bind>) -> Server {
    let bind = std::sync::Arc::clone(bind);
    let update = move |headers: axum::http::HeaderMap, body: axum::Json<serde_json::Value>| {
        let bind = std::sync::Arc::clone(&bind);
        async move {
            let header = |name: &str| headers.get(name).and_then(|it| it.to_str().ok());
            let text = |key: &str| body[key].as_str().unwrap_or_default().to_owned();
            let own = format!("of {}", text("subdomain"));
            let user = header("x-api-user").filter(|user| *user == "me" || *user == own);
            if user.is_none() || header("x-api-key") != Some("a secret") {
                return axum::http::StatusCode::UNAUTHORIZED;
            }
            let name = format!("{}.auth.test.", text("subdomain"));
            bind.update(&format!("update add {name} 1 TXT {}", text("txt")))
                .await;
            axum::http::StatusCode::OK
        }
    };
    let registered = std::sync::Arc::new(std::sync::atomic::AtomicU32::new(0));
    let register = move || {
        let number = registered.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
        let subdomain = format!("registered{number}");
        let account = serde_json::json!({
            "username": format!("of {subdomain}"),
            "password": "a secret",
            "fulldomain": format!("{subdomain}.auth.test"),
            "subdomain": subdomain,
            "allowfrom": [],
        });
        std::future::ready((axum::http::StatusCode::CREATED, axum::Json(account)))
    };
    let router = axum::Router::new()
        .route("/update", axum::routing::post(update))
        .route("/register", axum::routing::post(register));
    Server::tcp(addr, router).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_update_is_told_without_the_key() {
    let place = Place::new();
    let bind = Bind::of_place(&place).await;
    let Some(pebble) = Pebble::asking(&place, bind.addr).await else {
        return;
    };
    let wrong = "d3JvbmcgLSB3cm9uZyAtIHdyb25n";
    let dns = bind.dns_table().replace(&bind.secret, wrong);
    let perennial = Perennial::run(place, &config(&pebble, &dns, &["example.test"])).await;
    let error = perennial.last_error("example.test").await;
    assert!(
        error.contains("rfc2136 did not take the TXT record"),
        "{error}"
    );
    let log = perennial.log().join("\n");
    assert!(!error.contains(wrong) && !log.contains(wrong));
}

/// The shipped example, with the addresses and the key of this test.
#[tokio::test(flavor = "multi_thread")]
async fn the_example_orders_a_wildcard() {
    let place = Place::new();
    let bind = Bind::of_place(&place).await;
    let Some(pebble) = Pebble::asking(&place, bind.addr).await else {
        return;
    };
    let example = std::fs::read_to_string("examples/wildcard-dns-01.toml").expect("the example");
    let key = place.write("tsig.key", &bind.secret);
    let ours = [
        ("example.com", ZONE),
        ("192.0.2.53:53", &bind.addr.to_string()),
        ("certs/sample-tsig.key", &key.display().to_string()),
        ("[acme]\n", &pebble.acme_table()),
        ("\"127.0.0.1:3000\"", "\"respond:hello\""),
        ("# resolvers", "resolvers"),
        ("# nameservers", "nameservers"),
    ];
    let text = ours.iter().fold(example, |text, (theirs, ours)| {
        assert!(text.contains(theirs), "the example has no {theirs}");
        text.replace(theirs, ours)
    });
    let perennial = Perennial::run(place, &text).await;
    let served = issued_by_pebble(&perennial, "any.example.test").await;
    assert!(served.names.contains(&"*.example.test".to_owned()));
    let text = std::fs::read_to_string(perennial.place.path("perennial.toml")).expect("ours");
    let file = perennial.place.write("check.toml", text);
    let checked = cli(&["check", "--config", &file.display().to_string()]).await;
    checked.assert_success();
}
