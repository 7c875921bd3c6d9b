//! What is said of upstreams as a whole: what it means, and what is wrong with it.

use super::*;
use std::collections::HashMap;

const START: &str = "[[sites]]\nhosts = [\"a.test\"]\n";

fn forwards(rest: &str) -> Vec<Forward> {
    let site = good(&format!("{START}{rest}")).sites.remove(0);
    let routes = site.routes.iter().map(|route| route.forward().cloned());
    routes.map(|forward| forward.expect("upstreams")).collect()
}

fn forward(rest: &str) -> Forward {
    forwards(rest).remove(0)
}

/// What is found wrong, without the file.
fn wrong(rest: &str) -> String {
    let found = parse(&format!("{START}{rest}")).expect_err(rest);
    let first = found[0].to_string();
    let line = first.lines().next().unwrap();
    line.strip_prefix("dir/p.toml:").unwrap().to_owned()
}

#[test]
fn upstreams_can_be_tables() {
    let forward = forward(
        "upstreams = [\"1\", { to = \"h2c://b.test:2\", weight = 3, max_connections = 9 }, \
         \"srv://_http._tcp.c.test\"]",
    );
    let [first, second, third] = &forward.members[..] else {
        panic!("three")
    };
    assert_eq!((first.weight, first.max_connections), (1, None));
    assert_eq!((second.weight, second.max_connections), (3, Some(9)));
    let h2c = Upstream::Tcp {
        host: "b.test".into(),
        port: 2,
        tls: false,
        http2: true,
    };
    assert_eq!(second.upstream, h2c);
    let services = |tls, http2| Upstream::Srv {
        name: "_http._tcp.c.test".into(),
        tls,
        http2,
    };
    assert_eq!(third.upstream, services(false, false));
    assert_eq!(forward.settings, PoolSettings::default());
    let others = "upstreams = [\"srv+https://_HTTP._tcp.c.test\", \
                  \"srv+h2c://_http._tcp.c.test\", \"srv+h2://_http._tcp.c.test/\"]";
    let others = forwards(others).remove(0).members;
    for (other, how) in others
        .iter()
        .zip([(true, false), (false, true), (true, true)])
    {
        assert_eq!(other.upstream, services(how.0, how.1));
    }
}

#[test]
fn a_route_says_otherwise_table_by_table() {
    let forwards = forwards(
        "upstreams = [\"1\"]\nload_balancing = \"random\"\nejection = \"off\"\n\
         timeouts = { dial = \"1s\", total = \"9s\", idle = \"off\" }\n\
         health_check = { path = \"/h\", status = [200, \"3xx\", \"404-406\"], fall = 9 }\n\
         [[sites.routes]]\npath = \"/own\"\nupstreams = [\"2\"]\nhealth_check = \"tcp\"\n\
         load_balancing = { policy = \"hash\", by = \"cookie.sid\", panic_threshold = 0 }\n\
         timeouts = { response_header = \"5s\" }\nretries = { budget = 5 }\n",
    );
    let [own, site] = &forwards[..] else {
        panic!("two")
    };
    assert_eq!(site.settings.balancing.policy, Policy::Random);
    let (one, nine) = (Duration::from_secs(1), Duration::from_secs(9));
    let timeouts = site.settings.timeouts;
    assert_eq!((timeouts.dial, timeouts.total), (one, Some(nine)));
    assert_eq!(timeouts.idle, Wait::Forever);
    assert_eq!(timeouts.ping, Some(Duration::from_secs(30)));
    assert_eq!(timeouts.response_header.limit(false), Some(Wait::USUAL));
    assert_eq!(timeouts.response_header.limit(true), None);
    let check = site.settings.health_check.as_ref().unwrap();
    assert_eq!((check.fall, check.rise), (9, 2));
    let CheckKind::Http(http) = &check.kind else {
        panic!("not HTTP")
    };
    let fits = |code| http.statuses.contains(StatusCode::from_u16(code).unwrap());
    let codes = [200, 201, 302, 404, 406, 407, 500].map(|code| (code, fits(code)));
    let expected = [
        (200, true),
        (201, false),
        (302, true),
        (404, true),
        (406, true),
        (407, false),
        (500, false),
    ];
    assert_eq!(HashMap::from(codes), HashMap::from(expected));

    assert_eq!(own.settings.ejection, None);
    let policy = Policy::Hash(HashKey::Cookie("sid".into()));
    assert_eq!(own.settings.balancing.policy, policy);
    assert_eq!(own.settings.balancing.panic_threshold, 0);
    assert_eq!(own.settings.timeouts.dial, Duration::from_secs(3));
    let header = own.settings.timeouts.response_header;
    assert_eq!(header.limit(true), Some(Duration::from_secs(5)));
    let check = own.settings.health_check.as_ref().unwrap();
    assert_eq!(check.kind, CheckKind::Tcp);
    let retries = own.settings.retries.unwrap();
    assert_eq!((retries.budget, retries.min_per_second), (5, 10));
}

#[test]
fn a_secret_may_be_in_the_environment_and_is_not_shown() {
    let forward = forward(
        "upstreams = [\"1\"]\n\
         load_balancing = { policy = \"sticky\", cookie = \"c\", secret = \"${EAB_KEY}\" }",
    );
    let Policy::Sticky(cookie) = &forward.settings.balancing.policy else {
        panic!("not sticky")
    };
    assert_eq!(cookie.secret.as_deref(), Some("c2VjcmV0LWtleQ"));
    assert!(!format!("{forward:?}").contains("c2VjcmV0"));
}

/// Each case is what a site says, and what is found.
#[track_caller]
fn check(cases: &[(&str, &str)]) {
    for (rest, expected) in cases {
        assert_eq!(wrong(rest), *expected, "{rest}");
    }
}

#[test]
fn upstreams_that_are_none() {
    check(&[
        (
            "upstreams = [{ weight = 2 }]",
            "3:14: a table of `upstreams` has no `to`",
        ),
        (
            "upstreams = [{ to = \"1\", weight = 0 }]",
            "3:35: `weight` cannot be 0",
        ),
        (
            "upstreams = [{ to = \"1\", wait = 1 }]",
            "3:26: unknown key `wait` in a table of `upstreams`",
        ),
        (
            "upstreams = [{ to = \"respond:x\", max_connections = 1 }]",
            "3:52: `max_connections` of a `respond:` has no effect",
        ),
        (
            "upstreams = [\"srv://example.com\"]",
            "3:14: \"srv://example.com\" is not an upstream: it names no SRV records",
        ),
        (
            "upstreams = [1]",
            "3:14: an element of `upstreams` must be an upstream in quotes, or a table, not a whole number",
        ),
    ]);
}

#[test]
fn what_is_wrong_is_named_with_its_place() {
    check(&[
        (
            "upstreams = [\"1\"]\nload_balancing = \"hash\"",
            "4:18: the policy \"hash\" needs to know what to hash",
        ),
        (
            "upstreams = [\"1\"]\nload_balancing = \"leastconn\"",
            "4:18: \"leastconn\" is no policy",
        ),
        (
            "upstreams = [\"1\"]\nload_balancing = { by = \"client\" }",
            "4:25: `by` goes with policy = \"hash\"",
        ),
        (
            "upstreams = [\"1\"]\nload_balancing = { policy = \"hash\", by = \"query.x\" }",
            "4:42: \"query.x\" is nothing to hash",
        ),
        (
            "upstreams = [\"1\"]\nhealth_check = { body = \"ok\" }",
            "4:25: `body` has no effect without `path`",
        ),
        (
            "upstreams = [\"1\"]\nhealth_check = { path = \"/\", status = [\"6xx\"] }",
            "4:40: \"6xx\" is no status code",
        ),
        (
            "upstreams = [\"1\"]\nejection = { time = \"1m\", max_time = \"1s\" }",
            "4:12: `max_time` is shorter than `time`",
        ),
        (
            "upstreams = [\"1\"]\nretries = \"on\"",
            "4:11: \"on\" is neither a table nor \"off\"",
        ),
        (
            "upstreams = [\"1\"]\npending = { max = 5 }",
            "4:11: `pending` has no effect: no upstream has `max_connections`",
        ),
        (
            "respond = \"x\"\ntimeouts = { dial = \"1s\" }",
            "4:12: `timeouts` has no effect: no upstream is here",
        ),
        (
            "tls = \"off\"\nupstreams = [\"1\"]\n\
             load_balancing = { policy = \"sticky\", secure = true }",
            "5:18: browsers drop a secure cookie of a site with tls = \"off\"",
        ),
    ]);
    assert!(wrong("upstreams = [\"1\"]\ntimeouts = { total = \"0s\" }").contains("out of bounds"));
}

/// A connection that says whose it is cannot be shared, and a check is nobody's.
#[test]
fn announced_connections_are_one_clients_alone() {
    check(&[
        (
            "upstreams = [\"h2c://a.test:1\"]\nproxy_protocol = \"v2\"",
            "4:18: `proxy_protocol` does not go with an upstream of HTTP/2",
        ),
        (
            "upstreams = [\"1\"]\nproxy_protocol = \"v2\"\nhealth_check = { path = \"/\" }",
            "5:16: `health_check` with `path` does not go with `proxy_protocol`",
        ),
    ]);
    good(&format!(
        "{START}upstreams = [\"1\"]\nproxy_protocol = \"v1\"\nhealth_check = \"tcp\"\n"
    ));
}
