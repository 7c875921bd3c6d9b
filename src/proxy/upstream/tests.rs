use super::*;
use crate::config::{Balancing, Ejection};

fn tcp(host: &str, port: u16) -> config::Upstream {
    config::Upstream::Tcp {
        host: host.into(),
        port,
        tls: false,
        http2: false,
    }
}

fn pool(upstreams: Vec<config::Upstream>, settings: PoolSettings) -> Pool {
    let forward = Forward {
        members: upstreams.into_iter().map(Member::from).collect(),
        upstream_tls: None,
        settings,
    };
    Pool::new(&forward, None, &Services::default())
}

fn three() -> Pool {
    let upstreams = vec![
        tcp("192.0.2.1", 1),
        tcp("192.0.2.2", 2),
        tcp("2001:db8::3", 3),
    ];
    pool(upstreams, PoolSettings::default())
}

fn select(pool: &Pool) -> Selection {
    pool.select(&RequestHead::default(), "192.0.2.9")
}

/// All addresses that one request tries, in order, and why there is no other.
async fn tried(pool: &Pool, mut selection: Selection) -> (Vec<String>, String) {
    let mut order = Vec::new();
    loop {
        match pool.choose(&mut selection).await {
            Ok(attempt) => {
                order.push(attempt.address().label().to_owned());
                selection.note_tried(&attempt);
            }
            Err(Unchosen::Nowhere(reason)) => return (order, reason),
            Err(Unchosen::Busy(busy)) => return (order, busy.to_string()),
        }
    }
}

#[tokio::test]
async fn upstreams_take_turns_and_each_is_tried_once() {
    let pool = three();
    for turn in 0..4 {
        let all = ["192.0.2.1:1", "192.0.2.2:2", "[2001:db8::3]:3"];
        let expected: Vec<&str> = (0..3).map(|step| all[(turn + step) % 3]).collect();
        let (order, reason) = tried(&pool, select(&pool)).await;
        assert_eq!(
            (order, &*reason),
            (expected.iter().map(ToString::to_string).collect(), "")
        );
    }
}

#[tokio::test]
async fn what_cannot_be_dialled_is_the_last_resort() {
    let pool = three();
    let attempt = pool.choose(&mut select(&pool)).await.unwrap();
    let (upstream, time) = pool.dial_failed(&attempt).unwrap();
    assert_eq!(
        (upstream.label(), time),
        ("192.0.2.1:1", Duration::from_secs(10))
    );
    assert!(pool.dial_failed(&attempt).is_none(), "it is known already");
    assert!(!pool.upstreams()[0].is_healthy());
    for _ in 0..3 {
        let (order, _) = tried(&pool, select(&pool)).await;
        assert_eq!(order.last().unwrap(), "192.0.2.1:1");
    }
    assert!(pool.dialled(&attempt).is_some());
    assert!(pool.dialled(&attempt).is_none());
    let mut first = Vec::new();
    for _ in 0..3 {
        first.push(tried(&pool, select(&pool)).await.0.swap_remove(0));
    }
    assert!(
        first.iter().any(|label| label == "192.0.2.1:1"),
        "{first:?}"
    );
}

#[tokio::test]
async fn requests_that_fail_eject() {
    let settings = PoolSettings {
        ejection: Some(Ejection {
            failures: 2,
            ..Ejection::default()
        }),
        ..PoolSettings::default()
    };
    let pool = pool(vec![tcp("192.0.2.1", 1), tcp("192.0.2.2", 2)], settings);
    let attempt = pool.choose(&mut select(&pool)).await.unwrap();
    assert!(pool.failed(&attempt).is_none());
    let (upstream, turned) = pool.failed(&attempt).unwrap();
    assert!(matches!(turned, Turned::Ejected(time) if time == Duration::from_secs(10)));
    assert_eq!(upstream.trouble().unwrap(), "ejected: requests failed");
    for _ in 0..4 {
        let (order, _) = tried(&pool, select(&pool)).await;
        assert_eq!(order, ["192.0.2.2:2", "192.0.2.1:1"]);
    }
    let (_, turned) = pool.answered(&attempt, StatusCode::OK).unwrap();
    assert!(matches!(turned, Turned::Back) && pool.upstreams()[0].is_healthy());
}

#[tokio::test]
async fn a_client_keeps_its_upstream() {
    let settings = PoolSettings {
        balancing: Balancing {
            policy: Policy::Hash(HashKey::Client),
            ..Balancing::default()
        },
        ..PoolSettings::default()
    };
    let upstreams = (1..9).map(|port| tcp("192.0.2.1", port)).collect();
    let pool = pool(upstreams, settings);
    let mut seen = std::collections::HashSet::new();
    for number in 0..40 {
        let client = format!("198.51.100.{number}");
        let selection = || pool.select(&RequestHead::default(), &client);
        let mut labels = Vec::new();
        for _ in 0..3 {
            let attempt = pool.choose(&mut selection()).await.unwrap();
            labels.push(attempt.address().label().to_owned());
        }
        assert!(labels.iter().all(|label| *label == labels[0]), "{labels:?}");
        seen.insert(labels.swap_remove(0));
    }
    assert!(seen.len() > 4, "{seen:?}");
}

#[tokio::test]
async fn places_are_counted() {
    let members = [1, 2].map(|port| Member {
        max_connections: Some(1),
        ..Member::from(tcp("192.0.2.1", port))
    });
    let settings = PoolSettings {
        pending: config::Pending {
            max: 0,
            ..config::Pending::default()
        },
        ..PoolSettings::default()
    };
    let forward = Forward {
        members: members.to_vec(),
        upstream_tls: None,
        settings,
    };
    let pool = Pool::new(&forward, None, &Services::default());
    let mut attempt = pool.choose(&mut select(&pool)).await.unwrap();
    let other = pool.choose(&mut select(&pool)).await.unwrap();
    assert_ne!(attempt.address().label(), other.address().label());
    let refused = pool.choose(&mut select(&pool)).await.err();
    assert!(
        matches!(refused, Some(Unchosen::Busy(Busy::Full(0)))),
        "{refused:?}"
    );
    attempt.release();
    let again = pool.choose(&mut select(&pool)).await.unwrap();
    assert_eq!(again.address().label(), attempt.address().label());
}

#[tokio::test]
async fn fixed_answers_take_their_turn() {
    let pool = pool(
        vec![config::Upstream::Respond("hi".into()), tcp("192.0.2.1", 1)],
        PoolSettings::default(),
    );
    let first = select(&pool);
    assert_eq!(pool.fixed_answer(&first).unwrap(), "hi");
    assert!(pool.fixed_answer(&select(&pool)).is_none());
    assert_eq!(tried(&pool, first).await.0, ["192.0.2.1:1"]);
}

#[tokio::test]
async fn a_path_that_no_socket_can_have_is_named() {
    let path = "/".to_owned() + &"x".repeat(200);
    let pool = pool(
        vec![config::Upstream::Unix(path.clone().into())],
        PoolSettings::default(),
    );
    let (_, error) = tried(&pool, select(&pool)).await;
    assert!(error.contains(&path), "{error}");
}

#[test]
fn labels_are_as_configured() {
    let of = |tls, http2| {
        label(&config::Upstream::Tcp {
            host: "a.test".into(),
            port: 443,
            tls,
            http2,
        })
    };
    assert_eq!(of(true, false), "https://a.test:443");
    assert_eq!(of(true, true), "h2://a.test:443");
    assert_eq!(of(false, true), "h2c://a.test:443");
    assert_eq!(label(&tcp("::1", 80)), "[::1]:80");
    assert_eq!(label(&tcp("[::1]", 80)), "[::1]:80");
    assert_eq!(
        label(&config::Upstream::Unix("/run/a".into())),
        "unix:/run/a"
    );
}
