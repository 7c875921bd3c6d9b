//! What a site makes of requests beside passing them on: conditions, rewrites, redirects, answers,
//! and what is changed of fields on both ways.

use std::collections::BTreeMap;

use axum::body::Body;
use http_body_util::BodyExt;
use hyper::Request;

use crate::proxy::{NAME, proxy};
use crate::support::client::{Version, http_client};
use crate::support::http1::KeepAlive;
use crate::support::perennial::Perennial;
use crate::support::place::Place;
use crate::support::recorder::{Recorder, Seen};
use crate::support::sites::{FileTls, site};
use crate::support::wait::{SOON, wait_until};
use crate::support::wire::Message;

/// A site in front of a recorder; `more` continues the `[[sites]]` table.
struct Scene {
    perennial: Perennial,
    recorder: Recorder,
}

/// Status, fields by lower-case name, body.
type Answer = (u16, BTreeMap<String, String>, String);

impl Scene {
    async fn start(server: &str, more: impl Fn(&str) -> String) -> Scene {
        let place = Place::new();
        let recorder = Recorder::start(&place).await;
        let upstream = recorder.addr.to_string();
        let sites = format!(
            "{server}{}{}",
            site(NAME, "files", &[&upstream]),
            more(&upstream)
        );
        Scene {
            perennial: proxy(place, &sites).await,
            recorder,
        }
    }

    /// Its certificate is from files; `keys` come before all tables.
    async fn with_server_keys(keys: &str) -> Scene {
        let place = Place::new();
        let recorder = Recorder::start(&place).await;
        let upstream = recorder.addr.to_string();
        let tls = FileTls::new(&place, &[NAME]);
        let site = site(NAME, "files", &[&upstream]);
        let mut perennial =
            Perennial::run(place, &format!("{keys}{}{site}", tls.pair.table())).await;
        perennial.wait_ready().await;
        Scene {
            perennial,
            recorder,
        }
    }

    async fn send(&self, method: &str, target: &str, fields: &[(&str, &str)]) -> Answer {
        let https = self.perennial.place.https;
        let mut connection = KeepAlive::open(https, NAME, None).await.expect("open");
        let mut request = Request::builder().method(method).uri(target);
        request = request.header("host", NAME);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::empty()).expect("a request");
        let response = connection.send(request).await.expect("an answer");
        let status = response.status().as_u16();
        let fields = response.headers().iter().map(|(name, value)| {
            let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
            (name.as_str().to_owned(), value)
        });
        let fields = fields.collect();
        let body = response.into_body().collect().await.expect("a body");
        let body = String::from_utf8_lossy(&body.to_bytes()).into_owned();
        (status, fields, body)
    }

    /// What reached the upstream of one GET.
    async fn passed(&self, target: &str, fields: &[(&str, &str)]) -> Message {
        let (status, _, body) = self.send("GET", target, fields).await;
        assert_eq!((status, &*body), (200, "ok"), "{target}");
        match &self.recorder.take()[..] {
            [Seen::Request(request)] => request.clone(),
            other => panic!("{other:?}"),
        }
    }
}

fn field<'m>(message: &'m Message, name: &str) -> Vec<&'m str> {
    let fields = message.head.fields.iter();
    let fields = fields.filter(|(known, _)| known == name);
    fields.map(|(_, value)| value.as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn conditions_choose_among_routes_for_the_same_path() {
    let scene = Scene::start("", |_| {
        let respond = |path: &str, text: &str, more: &str| {
            format!("[[sites.routes]]\npath = \"{path}\"\nrespond = \"{text}\"\n{more}\n")
        };
        [
            respond("/a/*", "posted", "methods = [\"POST\"]"),
            respond("/a/*", "beta", "headers = { X-Beta = \"yes\" }"),
            respond("/a/*", "read", "methods = [\"GET\"]"),
            respond("/a/*.txt", "text", ""),
            respond("/admin/*", "admin", "status = 403"),
        ]
        .concat()
    })
    .await;
    let beta = &[("X-Beta", "yes")][..];
    for (method, target, fields, expected) in [
        ("GET", "/a/b", &[][..], "read"),
        ("POST", "/a/b", &[], "posted"),
        ("PUT", "/a/b", &[], "ok"),
        ("PUT", "/a/b", beta, "beta"),
        ("GET", "/a/b.txt", &[], "text"),
        ("GET", "/a/c/b.txt", &[], "read"),
        ("GET", "/admin/x", &[], "admin"),
        // No spelling leads past a route.
        ("GET", "/%61dmin/x", &[], "admin"),
        ("GET", "//admin/x", &[], "admin"),
        ("GET", "/x/../admin/x", &[], "admin"),
        ("GET", "/x/%2e%2e/admin/x", &[], "admin"),
    ] {
        let (status, _, body) = scene.send(method, target, fields).await;
        assert_eq!(body, expected, "{method} {target}");
        assert_eq!(status, if expected == "admin" { 403 } else { 200 });
    }
    // HEAD is asked of whoever answers GET.
    let (status, fields, body) = scene.send("HEAD", "/a/b", &[]).await;
    assert_eq!((status, &*fields["content-length"], &*body), (200, "4", ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_method_that_no_route_is_for_is_named_the_others() {
    let place = Place::new();
    let route = |methods: &str| {
        format!("[[sites.routes]]\npath = \"/a\"\nmethods = {methods}\nrespond = \"a\"\n")
    };
    let rest = format!(
        "[[sites]]\nhosts = [\"{NAME}\"]\ntls = \"files\"\n{}{}",
        route("[\"GET\"]"),
        route("[\"PUT\", \"DELETE\"]")
    );
    let recorder = Recorder::start(&place).await;
    let scene = Scene {
        perennial: proxy(place, &rest).await,
        recorder,
    };
    for (method, target, status) in [
        ("GET", "/a", 200),
        ("PUT", "/a", 200),
        ("POST", "/a", 405),
        ("OPTIONS", "/a", 405),
        ("POST", "/b", 404),
    ] {
        let (found, fields, _) = scene.send(method, target, &[]).await;
        assert_eq!(found, status, "{method} {target}");
        let allow = (status == 405).then_some("GET, PUT, DELETE, HEAD");
        assert_eq!(fields.get("allow").map(|allow| &**allow), allow);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_are_rewritten_and_the_query_stays() {
    let scene = Scene::start("", |upstream| {
        let route = |path: &str, more: &str| {
            format!("[[sites.routes]]\npath = \"{path}\"\nupstreams = [\"{upstream}\"]\n{more}\n")
        };
        [
            route("/api/*", "strip_prefix = \"/api\""),
            route(
                "/old/*",
                "strip_prefix = \"/old\"\nrewrite = \"/new{path}\"",
            ),
            route("/one", "rewrite = \"/index.php\""),
        ]
        .concat()
    })
    .await;
    for (target, expected) in [
        ("/api/users?a=b", "GET /users?a=b HTTP/1.1"),
        ("/api", "GET / HTTP/1.1"),
        ("/api/", "GET / HTTP/1.1"),
        ("/api?x", "GET /?x HTTP/1.1"),
        ("//api/%41?x", "GET /A?x HTTP/1.1"),
        ("/api/a%2Fb", "GET /a%2Fb HTTP/1.1"),
        ("/old/x?y", "GET /new/x?y HTTP/1.1"),
        ("/one?y=1", "GET /index.php?y=1 HTTP/1.1"),
        ("/apix", "GET /apix HTTP/1.1"),
    ] {
        assert_eq!(scene.passed(target, &[]).await.head.start, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_lead_where_they_say() {
    let scene = Scene::start("", |_| {
        format!(
            "[[sites.routes]]\npath = \"/moved/*\"\nredirect = \"https://b.test{{uri}}\"\n\
             status = 308\n\
             [[sites.routes]]\npath = \"/up/*\"\nstrip_prefix = \"/up\"\nredirect = \"/{{path}}\"\n\
             [[sites]]\nhosts = [\"special.wild.example.test\"]\ntls = \"files\"\n\
             redirect = \"https://{NAME}{{uri}}\"\nstatus = 301\n"
        )
    })
    .await;
    for (target, status, location) in [
        ("/moved/a?b=c", 308, "https://b.test/moved/a?b=c"),
        ("/up/a", 302, "/a"),
        // Two slashes would be another host.
        ("/up/%2Fevil.test", 302, "/%2Fevil.test"),
        ("/up//evil.test", 302, "/evil.test"),
    ] {
        let (found, fields, _) = scene.send("GET", target, &[]).await;
        assert_eq!(
            (found, &*fields["location"]),
            (status, location),
            "{target}"
        );
    }
    let https = scene.perennial.place.https;
    let host = "special.wild.example.test";
    let client = http_client(host, https, None, Version::Http2);
    let url = format!("https://{host}:{}/x?y", https.port());
    let response = client.get(url).send().await.expect("an answer");
    assert_eq!(response.status(), 301);
    let location = response.headers()["location"].to_str().expect("ASCII");
    assert_eq!(location, format!("https://{NAME}/x?y"));
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_are_changed_on_both_ways() {
    let rules = "request_headers = { remove = [\"Cookie\"], set = { X-From = \"{client_ip} {scheme} \
                 {host} {method} {path} {query} {server_name} {tls_version} {header.x-in}\", \
                 Host = \"inner.test\" }, default = { X-Default = \"ours\" } }\n\
                 response_headers = { set = { X-Path = \"{path}\" }, add = { X-More = \"1\" }, \
                 remove = [\"Content-Type\"], default = { Cache-Control = \"no-cache\" } }\n\
                 hsts = { max_age = \"365d\", include_subdomains = true }\nsecurity_headers = true\n";
    let scene = Scene::start("", |upstream| {
        format!(
            "{rules}[[sites.routes]]\npath = \"/own/*\"\nupstreams = [\"{upstream}\"]\n\
             response_headers = {{ remove = [\"X-More\", \"X-Frame-Options\"] }}\n\
             [[sites.routes]]\npath = \"/fixed\"\nrespond = \"fixed\"\n"
        )
    })
    .await;
    let sent = &[
        ("Cookie", "a=b"),
        ("X-In", "in"),
        ("X-From", "forged"),
        ("X-Default", "theirs"),
    ];
    let passed = scene.passed("/a?q=1", sent).await;
    let from = format!("127.0.0.1 https {NAME} GET /a q=1 {NAME} TLSv1.3 in");
    assert_eq!(field(&passed, "x-from"), [from]);
    assert_eq!(field(&passed, "host"), ["inner.test"]);
    assert_eq!(field(&passed, "x-forwarded-host"), [NAME]);
    assert_eq!(field(&passed, "cookie"), Vec::<&str>::new());
    assert_eq!(field(&passed, "x-default"), ["theirs"]);
    let passed = scene.passed("/a", &[]).await;
    assert_eq!(field(&passed, "x-default"), ["ours"]);

    let (_, fields, _) = scene.send("GET", "/a", &[]).await;
    for (name, value) in [
        ("x-path", "/a"),
        ("x-more", "1"),
        ("cache-control", "no-cache"),
        (
            "strict-transport-security",
            "max-age=31536000; includeSubDomains",
        ),
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "SAMEORIGIN"),
    ] {
        assert_eq!(
            fields.get(name).map(|v| &**v),
            Some(value),
            "{name}: {fields:?}"
        );
    }
    let (_, fields, _) = scene.send("GET", "/own/a", &[]).await;
    assert!(!fields.contains_key("x-more") && !fields.contains_key("x-frame-options"));
    assert_eq!(fields["x-path"], "/own/a");
    let (_, fields, body) = scene.send("GET", "/fixed", &[]).await;
    assert_eq!(body, "fixed");
    assert_eq!(fields["x-path"], "/fixed");
    assert!(!fields.contains_key("content-type"));
    assert!(fields.contains_key("strict-transport-security"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trusted_proxy_says_who_asked() {
    let keys = "trusted_proxies = [\"127.0.0.0/8\"]\nforwarded = \"both\"\nrequest_id = \"X-Request-Id\"\n";
    let scene = Scene::with_server_keys(keys).await;

    let said = &[
        ("X-Forwarded-For", "9.9.9.9, 203.0.113.7, 127.0.0.2"),
        ("X-Forwarded-Proto", "http"),
        ("X-Forwarded-Host", "outer.test"),
        ("X-Request-Id", "theirs-1"),
    ];
    let passed = scene.passed("/a", said).await;
    assert_eq!(
        field(&passed, "x-forwarded-for"),
        ["203.0.113.7, 127.0.0.2, 127.0.0.1"]
    );
    assert_eq!(field(&passed, "x-forwarded-proto"), ["http"]);
    assert_eq!(field(&passed, "x-forwarded-host"), ["outer.test"]);
    assert_eq!(field(&passed, "x-request-id"), ["theirs-1"]);
    let forwarded = "for=203.0.113.7;host=\"outer.test\";proto=http, for=127.0.0.2, for=127.0.0.1";
    assert_eq!(field(&passed, "forwarded"), [forwarded]);
    let line = wait_until(SOON, "a line in the access log", async || {
        let lines = scene.perennial.log_lines_with("perennial::access");
        lines.into_iter().find(|line| line.contains("path=\"/a\""))
    })
    .await;
    assert!(line.contains("client=203.0.113.7"), "{line}");
    assert!(line.contains("request_id=\"theirs-1\""), "{line}");

    let (_, fields, _) = scene.send("GET", "/b", &[]).await;
    let own = &fields["x-request-id"];
    assert!(
        own.len() == 32 && own.bytes().all(|b| b.is_ascii_hexdigit()),
        "{own}"
    );
    let (_, fields, _) = scene.send("GET", "/b", &[]).await;
    assert_ne!(&fields["x-request-id"], own);
}

/// What a stranger says in the form that is not used is dropped as well.
#[tokio::test(flavor = "multi_thread")]
async fn upstreams_are_told_in_the_form_that_is_chosen() {
    const OLD: [&str; 3] = ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host"];
    let ours = format!("for=127.0.0.1;host={NAME};proto=https");
    for (form, expected) in [("rfc7239", &[&*ours][..]), ("off", &[])] {
        let scene = Scene::with_server_keys(&format!("forwarded = \"{form}\"\n")).await;
        let said = &[
            ("X-Forwarded-For", "9.9.9.9"),
            ("X-Forwarded-Proto", "http"),
            ("X-Forwarded-Host", "outer.test"),
            ("Forwarded", "for=9.9.9.9"),
        ];
        let passed = scene.passed("/a", said).await;
        for name in OLD {
            assert!(field(&passed, name).is_empty(), "{form}: {name}");
        }
        let told: Vec<String> = field(&passed, "forwarded")
            .iter()
            .map(|it| it.replace('"', ""))
            .collect();
        assert_eq!(told, expected, "{form}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_have_the_pages_of_the_site_and_pages_reload() {
    let place = Place::new();
    let nowhere = place.free();
    let page = place.write("pages/404.html", "<h1>not here</h1>");
    place.write("pages/5xx.html", "<h1>broken</h1>");
    let rest = format!(
        "[[sites]]\nhosts = [\"{NAME}\"]\ntls = \"files\"\n\
         error_pages = {{ 404 = \"pages/404.html\", 5xx = \"pages/5xx.html\" }}\n\
         [[sites.routes]]\npath = \"/down/*\"\nupstreams = [\"{nowhere}\"]\n"
    );
    let recorder = Recorder::start(&place).await;
    let scene = Scene {
        perennial: proxy(place, &rest).await,
        recorder,
    };
    let (status, fields, body) = scene.send("GET", "/", &[]).await;
    assert_eq!((status, &*body), (404, "<h1>not here</h1>"));
    assert_eq!(fields["content-type"], "text/html; charset=utf-8");
    let (status, _, body) = scene.send("GET", "/down/x", &[]).await;
    assert_eq!((status, &*body), (502, "<h1>broken</h1>"));

    std::fs::write(page, "<h1>gone</h1>").expect("written");
    wait_until(SOON, "the new page", async || {
        let (_, _, body) = scene.send("GET", "/", &[]).await;
        (body == "<h1>gone</h1>").then_some(())
    })
    .await;
}

/// `hosts = ["*"]` has every name and address that no other site has, whoever terminates TLS.
#[tokio::test(flavor = "multi_thread")]
async fn a_site_may_be_for_every_other_host() {
    let place = Place::new();
    let tls = FileTls::new(&place, &["*.example.test"]);
    let more = |upstream: &str, tls: &str| {
        format!(
            "[[sites]]\nhosts = [\"*\"]\ntls = \"{tls}\"\nrespond = \"default\"\n\
             [[sites]]\nhosts = [\"own.example.test\"]\ntls = \"{tls}\"\nrespond = \"{upstream}\"\n"
        )
    };
    let rest = format!("{}{}", tls.pair.table(), more("own", "off"));
    let mut perennial = Perennial::run(place, &rest).await;
    let plain = async |host: &str| {
        let http = perennial.place.http;
        let mut connection = KeepAlive::open_plain(http, host).await.expect("open");
        connection.get("/").await.expect("an answer")
    };
    for (host, body) in [
        ("other.example.test", "default"),
        ("nobody.invalid:8080", "default"),
        ("192.0.2.7", "default"),
        ("[2001:db8::7]:80", "default"),
        ("own.example.test", "own"),
    ] {
        assert_eq!(plain(host).await, (200, body.to_owned()), "{host}");
    }
    perennial.rewrite_config(&format!("{}{}", tls.pair.table(), more("own", "files")));
    perennial.restart().await;
    perennial.wait_ready().await;
    for (host, body) in [
        ("other.example.test", "default"),
        ("own.example.test", "own"),
    ] {
        let https = perennial.place.https;
        let mut connection = KeepAlive::open(https, host, None).await.expect("open");
        let answer = connection.get("/").await;
        assert_eq!(answer, Ok((200, body.to_owned())), "{host}");
    }
    let http = perennial.place.http;
    let connection = KeepAlive::open_plain(http, "other.example.test").await;
    let (status, _) = connection.expect("open").get("/").await.expect("an answer");
    assert_eq!(status, 308);
}
