//! Ten thousand connections that wait for their next request: each takes a bounded piece of memory,
//! none of them is in the way of another, and a stop does not wait for them.

use std::net::SocketAddr;
use std::time::Instant;

use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};

use crate::support::http1::KeepAlive;
use crate::support::perennial::Perennial;
use crate::support::place::Place;
use crate::support::sites::{FileTls, site};
use crate::support::wait::SOON;

const NAME: &str = "a.example.test";

const PLAIN: usize = 10_000;

/// A handshake costs the client of the test more than the server.
const TLS: usize = 500;

/// Descriptors of this process for everything else: other tests run beside this one.
const OTHERS: u64 = 2_000;

/// What waits is closed after a minute: the first must not be gone before the last is there.
const OPENING: std::time::Duration = std::time::Duration::from_secs(40);

/// In memory of the process for each, with what the allocator rounds up.
const MOST_PLAIN: u64 = 12 * 1024;
const MOST_TLS: u64 = 64 * 1024;

/// How many connections this process may have.
fn connections() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.unwrap_or(u64::MAX);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    // It may be all that there is already.
    let _ = setrlimit(Resource::Nofile, raised);
    let wanted = (PLAIN + TLS) as u64;
    let possible = most.saturating_sub(OTHERS).min(wanted);
    usize::try_from(possible)
        .unwrap_or(PLAIN)
        .saturating_sub(TLS)
}

/// Opens so many, each of which has had one answer. As many as there is time for.
async fn open(addr: SocketAddr, count: usize, tls: bool) -> Vec<KeepAlive> {
    const AT_ONCE: usize = 16;
    let begun = Instant::now();
    let tasks = (0..AT_ONCE).map(|_| {
        tokio::spawn(async move {
            let mut opened = Vec::new();
            while opened.len() < count / AT_ONCE && begun.elapsed() < OPENING {
                let connection = match tls {
                    true => KeepAlive::open(addr, NAME, None).await,
                    false => KeepAlive::open_plain(addr, NAME).await,
                };
                let mut connection = connection.expect("a connection");
                connection.get("/").await.expect("an answer");
                opened.push(connection);
            }
            opened
        })
    });
    let mut all = Vec::new();
    for task in tasks.collect::<Vec<_>>() {
        all.extend(task.await.expect("no panic"));
    }
    if all.len() < count / AT_ONCE * AT_ONCE {
        let came = all.len();
        eprintln!("*** THIS MACHINE IS SLOW: {came} connections in {OPENING:?}, not {count} ***");
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_wait_in_little_memory() {
    let wanted = connections();
    if wanted < PLAIN {
        eprintln!("*** TOO FEW DESCRIPTORS (ulimit -Hn): {wanted} connections, not {PLAIN} ***");
    }
    assert!(wanted >= 100, "{wanted} connections show nothing");
    let place = Place::new();
    let tls = FileTls::new(&place, &[NAME]);
    let rest = format!(
        "max_connections = 0\nmax_connections_per_client = 0\n{}{}",
        tls.pair.table(),
        site(NAME, "files", &["respond:hello"])
    );
    let mut perennial = Perennial::with_config(place, &rest).log_level(Some("warn"));
    perennial.start_and_wait().await;
    perennial.wait_ready().await;
    let (http, https) = (perennial.place.http, perennial.place.https);
    // What a process takes anyway.
    drop(open(https, 64, true).await);
    drop(open(http, 64, false).await);
    let before = perennial.resident_bytes();
    let mut secured = open(https, TLS, true).await;
    let with_tls = perennial.resident_bytes();
    let mut plain = open(http, wanted, false).await;
    let with_all = perennial.resident_bytes();
    let each = |after: u64, before: u64, count: usize| after.saturating_sub(before) / count as u64;
    let of_tls = each(with_tls, before, secured.len());
    let of_plain = each(with_all, with_tls, plain.len());
    eprintln!(
        "{of_plain} bytes for each of {}, {of_tls} with TLS",
        plain.len()
    );
    assert!(of_plain < MOST_PLAIN, "{of_plain} bytes each");
    assert!(of_tls < MOST_TLS, "{of_tls} bytes each");
    // They are open, and served; and so is somebody new.
    let last = plain.last_mut().expect("one at least");
    assert_eq!(last.get("/").await.expect("an answer").0, 308);
    let last = secured.last_mut().expect("one at least");
    assert_eq!(last.get("/").await.expect("an answer").0, 200);
    assert_eq!(open(https, 16, true).await.len(), 16);
    perennial.signal(Signal::TERM);
    assert_eq!(perennial.wait_exit(SOON).await.code(), Some(0));
}
