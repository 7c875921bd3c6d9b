use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::turn::whose_turn;
use super::*;
use crate::acme::renewal::Attempts;
use crate::acme::surroundings::Coverage;
use crate::config::{
    Acme, AdminListen, CertificateAuthority, CertificatePer, Certificates, ChallengeType, Config,
    KeyType, LogLevel, Server, Site, Takeover, TlsMode,
};
use crate::store::generation;

/// How a scripted CA answers every request.
#[derive(Clone, Copy, Debug)]
enum Script {
    Page502,
    Nonsense,
    Hang,
}

/// A CA that is none, and counts what it is asked.
struct ScriptedCa {
    url: String,
    requests: Arc<AtomicU32>,
}

impl ScriptedCa {
    async fn start(script: Script) -> ScriptedCa {
        let requests = Arc::new(AtomicU32::new(0));
        let counter = Arc::clone(&requests);
        let answer = move || {
            counter.fetch_add(1, Ordering::SeqCst);
            async move {
                match script {
                    Script::Page502 => (http::StatusCode::BAD_GATEWAY, "<html>bad gateway</html>"),
                    Script::Nonsense => (http::StatusCode::OK, "{\"nonsense\": true}"),
                    Script::Hang => std::future::pending().await,
                }
            }
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/directory", listener.local_addr().unwrap());
        tokio::spawn(async move {
            axum::serve(listener, axum::Router::new().fallback(answer))
                .await
                .unwrap();
        });
        ScriptedCa { url, requests }
    }

    fn requests(&self) -> u32 {
        self.requests.load(Ordering::SeqCst)
    }
}

fn site(hosts: &[&str], tls: TlsMode) -> Site {
    Site {
        hosts: hosts.iter().map(|host| host.parse().unwrap()).collect(),
        tls,
        listen: Vec::new(),
        any_host: false,
        on_demand: false,
        certificate_per: CertificatePer::Host,
        client_auth: None,
        takeover: None,
        routes: Vec::new(),
        hsts: None,
        access_log: crate::config::SiteLog::Shared,
        error_pages: crate::config::ErrorPages::default(),
    }
}

fn config(directory: &str, sites: Vec<Site>) -> Arc<Config> {
    Arc::new(Config {
        path: None,
        server: Server {
            http_listen: Vec::new(),
            https_listen: Vec::new(),
            socket_file: crate::config::SocketFile::default(),
            admin_listen: AdminListen::Off,
            state_dir: PathBuf::new(),
            state_dir_note: None,
            threads: 0,
            log_level: LogLevel::Info,
            grace_period: StdDuration::from_secs(1),
            trusted_proxies: Vec::new(),
            proxy_protocol_from: crate::config::ProxyProtocolFrom::default(),
            max_connections: None,
            max_connections_per_client: None,
            min_rates: crate::config::MinRates::default(),
            idle_timeouts: crate::config::IdleTimeouts::default(),
            forwarded: crate::config::Forwarded::default(),
            request_id: None,
            resolvers: Vec::new(),
        },
        certificates: Certificates {
            directories: Vec::new(),
            poll_interval: StdDuration::from_secs(5),
            watch: false,
            default: None,
            takeover: None,
            files: Vec::new(),
        },
        tls: crate::config::Tls::default(),
        acme: Acme {
            on_demand: None,
            authorities: vec![CertificateAuthority {
                directory: directory.to_owned(),
                email: None,
                ca_certificate: None,
                challenges: vec![ChallengeType::TlsAlpn01],
                key_type: KeyType::P256,
                profile: None,
                address_profile: None,
                preferred_chain: None,
                agree_to_terms: true,
                limits: crate::config::Limits::default(),
                parallel_orders: 4,
                order_rate: None,
                reuse_key: false,
                check_revocation: false,
                external_account: None,
                spelling: crate::config::Spelling::default(),
            }],
            dns: crate::config::Dns::default(),
        },
        access_log: crate::config::AccessLog::default(),
        sites,
        file_references: Vec::new(),
        account_references: Vec::new(),
        ca_references: Default::default(),
    })
}

const NOWHERE: &str = "http://127.0.0.1:9/directory";

/// A worker in a task of its own.
struct Running {
    handle: WorkerHandle,
    shutdown: CancellationToken,
    task: tokio::task::JoinHandle<()>,
    hints: Arc<AtomicU32>,
    loaded: Arc<AtomicBool>,
}

fn start(dir: &Path, config: Arc<Config>, file_valid_until: Option<OffsetDateTime>) -> Running {
    start_loading(dir, config, file_valid_until, true)
}

fn start_loading(
    dir: &Path,
    config: Arc<Config>,
    file_valid_until: Option<OffsetDateTime>,
    loaded: bool,
) -> Running {
    let coverage = Coverage {
        file_valid_until,
        ..Coverage::default()
    };
    start_covered(dir, config, coverage, loaded)
}

fn start_covered(dir: &Path, config: Arc<Config>, coverage: Coverage, loaded: bool) -> Running {
    let hints = Arc::new(AtomicU32::new(0));
    let loaded = Arc::new(AtomicBool::new(loaded));
    let (hint, is_loaded) = (Arc::clone(&hints), Arc::clone(&loaded));
    let surroundings = Surroundings {
        coverage: Arc::new(move |_| Coverage {
            loaded: is_loaded.load(Ordering::SeqCst),
            ..coverage
        }),
        may_renew: Arc::new(|_| Box::pin(std::future::ready(Ok(())))),
        asked: Arc::new(|_: &Name| None),
        reload_hint: Arc::new(move |_| {
            hint.fetch_add(1, Ordering::SeqCst);
        }),
        ordered: Arc::new(|_, _| {}),
        swaps: None,
    };
    let state = StateDir::open(dir).unwrap();
    let (worker, handle) = Worker::new(
        Assignment::from(&*config),
        state,
        Challenges::new(),
        surroundings,
    );
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(worker.run(shutdown.clone()));
    Running {
        handle,
        shutdown,
        task,
        hints,
        loaded,
    }
}

impl Running {
    async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.unwrap();
    }

    /// As `kill -9` does: nothing is recorded, nothing is put away.
    async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }

    async fn until(&self, what: &str, mut good: impl FnMut(&[SubjectStatus]) -> bool) {
        for _ in 0..500 {
            if good(&self.handle.status()) {
                return;
            }
            tokio::time::sleep(StdDuration::from_millis(10)).await;
        }
        panic!("never {what}: {:?}", self.handle.status());
    }
}

fn serial(dir: &Path, name: &str) -> Option<String> {
    let state = StateDir::open(dir).unwrap();
    let dir = state.certificate_dir(&name.parse().unwrap(), KeyType::P256);
    Some(generation::read_current(&dir).unwrap()?.leaf.serial)
}

fn all_issued(statuses: &[SubjectStatus]) -> bool {
    !statuses.is_empty() && statuses.iter().all(|status| status.not_after.is_some())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_internal_ca_issues_once() {
    let directory = tempfile::tempdir().unwrap();
    let hosts = [
        "localhost",
        "a.localhost",
        "10.0.0.1",
        "b.internal",
        "c.internal",
        "intranet",
    ];
    let config = config(NOWHERE, vec![site(&hosts, TlsMode::Auto)]);
    let first = start(directory.path(), Arc::clone(&config), None);
    first.until("issued", all_issued).await;
    assert_eq!(first.hints.load(Ordering::SeqCst), 6);
    let statuses = first.handle.status();
    let names: Vec<String> = statuses
        .iter()
        .map(|status| status.name.to_string())
        .collect();
    assert_eq!(names, hosts, "in the order of the configuration");
    assert!(
        statuses
            .iter()
            .all(|status| status.next_renewal > Some(clock::now()))
    );
    first.stop().await;
    let before = serial(directory.path(), "localhost");
    assert!(before.is_some());

    let second = start(directory.path(), config, None);
    second.until("loaded", all_issued).await;
    tokio::time::sleep(StdDuration::from_millis(100)).await;
    assert_eq!(second.hints.load(Ordering::SeqCst), 0);
    second.stop().await;
    assert_eq!(serial(directory.path(), "localhost"), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_decided_before_the_first_load_and_files_that_cover_win() {
    let directory = tempfile::tempdir().unwrap();
    let sites = vec![
        site(&["localhost"], TlsMode::Auto),
        site(&["b.localhost"], TlsMode::Internal),
    ];
    let until = clock::now() + Duration::days(30);
    let worker = start_loading(directory.path(), config(NOWHERE, sites), Some(until), false);
    worker.until("shown", |statuses| statuses.len() == 2).await;
    tokio::time::sleep(StdDuration::from_millis(300)).await;
    assert_eq!(serial(directory.path(), "b.localhost"), None);
    worker.loaded.store(true, Ordering::SeqCst);
    worker
        .until("issued", |statuses| statuses[1].not_after.is_some())
        .await;
    worker
        .until("covered", |statuses| {
            statuses[0].covered_by_files_until == Some(until)
        })
        .await;
    worker.stop().await;
    assert_eq!(serial(directory.path(), "localhost"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_takeover_begins_when_the_files_are_due_and_not_without_files() {
    let directory = tempfile::tempdir().unwrap();
    let taken_over = |host, tls, takeover| Site {
        takeover,
        ..site(&[host], tls)
    };
    let internal = Some(Takeover::Internal);
    let sites = vec![
        taken_over("a.example.com", TlsMode::Auto, internal),
        taken_over("b.example.com", TlsMode::Files, internal),
        taken_over("c.localhost", TlsMode::Auto, None),
    ];
    let config = config(NOWHERE, sites);
    let none = Coverage::default();
    let worker = start_covered(directory.path(), Arc::clone(&config), none, true);
    let issued_at_all =
        |statuses: &[SubjectStatus]| statuses.iter().any(|it| it.not_after.is_some());
    worker.until("c is issued", issued_at_all).await;
    assert_eq!(worker.handle.status().len(), 2, "b waits for files");
    worker.stop().await;

    let due = clock::now() + Duration::seconds(2);
    let covered = Coverage {
        file_valid_until: Some(clock::now() + Duration::days(30)),
        file_due_at: Some(due),
        file_known: true,
        loaded: true,
    };
    let worker = start_covered(directory.path(), config, covered, true);
    let wait = |statuses: &[SubjectStatus]| {
        let covered = statuses
            .iter()
            .filter(|it| it.covered_by_files_until == Some(due));
        covered.count() == 2
    };
    worker.until("covered until the due date", wait).await;
    for host in ["a.example.com", "b.example.com"] {
        assert_eq!(serial(directory.path(), host), None);
    }
    let issued = |statuses: &[SubjectStatus]| {
        let taken = statuses
            .iter()
            .filter(|it| it.name.to_string().ends_with(".com"));
        taken.filter(|it| it.not_after.is_some()).count() == 2
    };
    worker.until("issued", issued).await;
    assert!(clock::now() >= due);
    let by = worker.handle.status().into_iter().map(|it| it.issuer);
    assert!(by.into_iter().all(|issuer| issuer == IssuerKind::Internal));
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wildcard_is_refused_without_a_request() {
    let ca = ScriptedCa::start(Script::Nonsense).await;
    let directory = tempfile::tempdir().unwrap();
    let config = config(&ca.url, vec![site(&["*.a.test"], TlsMode::Acme)]);
    let worker = start(directory.path(), config, None);
    let says_why = |statuses: &[SubjectStatus]| {
        statuses.iter().any(|status| {
            status
                .last_error
                .as_ref()
                .is_some_and(|error| error.contains("dns-01"))
        })
    };
    worker.until("refused", says_why).await;
    let name: Name = "*.a.test".parse().unwrap();
    let answer = worker.handle.renew(&name, RenewMode::Force).await;
    assert!(matches!(answer, Err(RenewError::Refused(_))), "{answer:?}");
    worker.stop().await;
    assert_eq!(ca.requests(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_kills_send_no_more_than_one_run() {
    for script in [Script::Page502, Script::Nonsense, Script::Hang] {
        let ca = ScriptedCa::start(script).await;
        let directory = tempfile::tempdir().unwrap();
        let hosts = ["a.test", "b.test", "c.test", "d.test", "e.test", "f.test"];
        let config = config(&ca.url, vec![site(&hosts, TlsMode::Acme)]);
        for kill in 0..20 {
            let worker = start(directory.path(), Arc::clone(&config), None);
            // The first is killed when it has asked, the others wherever they are.
            for _ in 0..500 {
                tokio::time::sleep(StdDuration::from_millis(60)).await;
                if kill > 0 || ca.requests() > 0 {
                    break;
                }
            }
            worker.kill().await;
        }
        assert!(ca.requests() <= 1, "{script:?}: {} requests", ca.requests());
        let worker = start(directory.path(), config, None);
        worker
            .until("waiting", |statuses| {
                statuses.len() == 6
                    && statuses.iter().all(|status| {
                        status.last_error.is_some()
                            && status.next_attempt > Some(clock::now())
                            && status.attempts == 1
                    })
            })
            .await;
        worker.stop().await;
        assert!(ca.requests() <= 1, "{script:?}: {} requests", ca.requests());
    }
}

/// The real worker, disk and HTTP; the simulation does the same with every kind of CA.
#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_kills_send_no_more_than_the_plan_allows() {
    let ca = ScriptedCa::start(Script::Page502).await;
    let directory = tempfile::tempdir().unwrap();
    let config = config(&ca.url, vec![site(&["a.test", "b.test"], TlsMode::Acme)]);
    let began = std::time::Instant::now();
    for kill in 0..1000_u32 {
        let worker = start(directory.path(), Arc::clone(&config), None);
        if kill == 0 {
            worker.until("it has asked", |_| ca.requests() > 0).await;
        } else if kill % 50 == 0 {
            // Now and then it gets as far as it can.
            let decided = |statuses: &[SubjectStatus]| {
                let mut all = statuses.iter();
                statuses.len() == 2 && all.all(|it| it.next_attempt.is_some())
            };
            worker.until("decided", decided).await;
        } else {
            for _ in 0..kill % 40 {
                tokio::task::yield_now().await;
            }
        }
        worker.kill().await;
        // The next one is to order, too: what was killed may still be about to take the lock.
        let state = StateDir::open(directory.path()).unwrap();
        while state.try_lock_writer().unwrap().is_none() {
            tokio::time::sleep(StdDuration::from_millis(1)).await;
        }
    }
    // At once, then 1, 2, 4 ... minutes after each other, should the machine be that slow.
    let minutes = began.elapsed().as_secs() / 60;
    let allowed = 1 + (minutes + 1).ilog2();
    let sent = ca.requests();
    assert!(sent <= allowed, "{sent} of {allowed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clean_shutdown_in_the_middle_is_no_failure() {
    let ca = ScriptedCa::start(Script::Hang).await;
    let directory = tempfile::tempdir().unwrap();
    let config = config(&ca.url, vec![site(&["a.test"], TlsMode::Acme)]);
    for attempt in 1..=3 {
        let worker = start(directory.path(), Arc::clone(&config), None);
        for _ in 0..200 {
            if ca.requests() == attempt {
                break;
            }
            tokio::time::sleep(StdDuration::from_millis(10)).await;
        }
        assert_eq!(ca.requests(), attempt);
        worker.stop().await;
    }
    // But a loop of restarts is.
    let worker = start(directory.path(), config, None);
    worker
        .until("waiting", |statuses| {
            statuses.iter().any(|it| it.next_attempt.is_some())
        })
        .await;
    worker.stop().await;
    assert_eq!(ca.requests(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_process_orders_and_the_other_serves() {
    let directory = tempfile::tempdir().unwrap();
    let config = config(NOWHERE, vec![site(&["localhost"], TlsMode::Internal)]);
    let first = start(directory.path(), Arc::clone(&config), None);
    first.until("issued", all_issued).await;
    let second = start(directory.path(), config, None);
    second.until("read", all_issued).await;
    let name: Name = "localhost".parse().unwrap();
    let answer = second.handle.renew(&name, RenewMode::Force).await;
    assert_eq!(answer, Err(RenewError::NotWriter));
    first.stop().await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn renewals_on_request() {
    let directory = tempfile::tempdir().unwrap();
    let config = config(NOWHERE, vec![site(&["localhost"], TlsMode::Internal)]);
    let worker = start(directory.path(), config, None);
    worker.until("issued", all_issued).await;
    let before = serial(directory.path(), "localhost");
    let name: Name = "localhost".parse().unwrap();
    let answer = worker.handle.renew(&name, RenewMode::IfDue).await;
    assert!(matches!(answer, Ok(Decision::NotDue { .. })), "{answer:?}");
    let answer = worker.handle.renew(&name, RenewMode::Force).await;
    assert_eq!(
        answer,
        Ok(Decision::Ordering {
            reason: "requested"
        })
    );
    worker
        .until("renewed", |_| {
            serial(directory.path(), "localhost") != before
        })
        .await;
    let other: Name = "other.test".parse().unwrap();
    let answer = worker.handle.renew(&other, RenewMode::Force).await;
    assert_eq!(answer, Err(RenewError::UnknownName(other)));
    let handle = worker.handle.clone();
    worker.stop().await;
    assert_eq!(
        handle.renew(&name, RenewMode::Force).await,
        Err(RenewError::Stopped)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_configuration_leaves_what_is_the_same_alone() {
    let directory = tempfile::tempdir().unwrap();
    let one = config(NOWHERE, vec![site(&["localhost"], TlsMode::Internal)]);
    let two = config(
        NOWHERE,
        vec![site(&["localhost", "intranet"], TlsMode::Internal)],
    );
    let worker = start(directory.path(), Arc::clone(&one), None);
    worker.until("issued", all_issued).await;
    let before = serial(directory.path(), "localhost");
    worker.handle.reassign(Assignment::from(&*two)).await;
    worker
        .until("issued", |statuses| {
            statuses.len() == 2 && all_issued(statuses)
        })
        .await;
    worker.handle.reassign(Assignment::from(&*one)).await;
    worker.until("fewer", |statuses| statuses.len() == 1).await;
    worker.stop().await;
    assert_eq!(serial(directory.path(), "localhost"), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_issuer_is_another_certificate() {
    let directory = tempfile::tempdir().unwrap();
    let internal = config(NOWHERE, vec![site(&["a.test"], TlsMode::Internal)]);
    let worker = start(directory.path(), internal, None);
    worker.until("issued", all_issued).await;
    let acme = config(NOWHERE, vec![site(&["a.test"], TlsMode::Acme)]);
    worker.handle.reassign(Assignment::from(&*acme)).await;
    worker
        .until("tried at the CA", |statuses| {
            // There is none while the configuration changes.
            statuses.first().is_some_and(|status| {
                status.issuer == IssuerKind::Acme
                    && status.last_error.is_some()
                    && status.not_after.is_some()
            })
        })
        .await;
    worker.stop().await;
    assert!(
        serial(directory.path(), "a.test").is_some(),
        "the old one stays until then"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_refuses_is_an_error_and_no_loop() {
    let directory = tempfile::tempdir().unwrap();
    let config = config(NOWHERE, vec![site(&["localhost"], TlsMode::Internal)]);
    std::fs::create_dir_all(directory.path().join("certificates")).unwrap();
    std::fs::write(
        directory.path().join("certificates/localhost"),
        "in the way",
    )
    .unwrap();
    let worker = start(directory.path(), config, None);
    worker
        .until("failed", |statuses| {
            statuses.iter().any(|status| status.last_error.is_some())
        })
        .await;
    let error = worker.handle.status()[0].last_error.clone().unwrap();
    assert!(error.contains("certificates/localhost"), "{error}");
    worker.stop().await;
}

#[test]
fn whose_turn_it_is() {
    let now = time::macros::datetime!(2026-11-23 6:00 UTC);
    let none = Attempts::default();
    let failed = |failures, minutes| Attempts {
        failures,
        last: Some(now - Duration::minutes(minutes)),
        ..Attempts::default()
    };
    let refused = |minutes| Attempts {
        elsewhere: true,
        ..failed(1, minutes)
    };
    for (attempts, expected) in [
        (vec![], 0),
        (vec![(none, none), (none, none)], 0),
        (vec![(failed(1, 1), none), (none, none)], 0),
        (vec![(failed(2, 1), none), (none, none)], 1),
        // Unreachable, until it may be asked again.
        (vec![(none, failed(3, 1)), (none, none)], 1),
        (vec![(none, failed(3, 5)), (none, none)], 0),
        (
            vec![(failed(2, 1), none), (failed(1, 1), none), (none, none)],
            1,
        ),
        // What this CA will not do, the next is asked for at once.
        (vec![(refused(1), none), (none, none)], 1),
        (vec![(none, refused(0)), (none, none)], 1),
        (vec![(none, refused(5)), (none, none)], 0),
        (vec![(refused(1), none)], 0),
        // All given up: the one whose failure is longest ago.
        (vec![(failed(2, 9), none), (failed(2, 3), none)], 0),
        (vec![(failed(3, 1), none), (failed(2, 3), none)], 1),
    ] {
        assert_eq!(whose_turn(&attempts, now), expected, "{attempts:?}");
    }
}
