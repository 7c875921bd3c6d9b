//! Files as answers, asked for by curl over HTTP/1.1 and HTTP/2: what is there, the parts of it, what
//! the client has already, what must not be had, and a file larger than any memory.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;

use crate::proxy::{NAME, proxy};
use crate::support::command::{Finished, curl};
use crate::support::perennial::Perennial;
use crate::support::place::Place;
use crate::support::wait::{SOON, wait_until};

pub const VERSIONS: [&str; 2] = ["--http1.1", "--http2"];

/// An answer as curl shows it.
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    /// The value of the only field of this name.
    pub fn field(&self, name: &str) -> Option<&str> {
        let mut values = self.head.lines().filter_map(|line| {
            let (given, value) = line.split_once(':')?;
            given.eq_ignore_ascii_case(name).then(|| value.trim())
        });
        let value = values.next();
        assert_eq!(values.next(), None, "{name} twice:\n{}", self.head);
        value
    }
}

/// A site with these keys, in front of the folder `www`.
pub async fn site(place: Place, keys: &str) -> Perennial {
    let root = place.path("www");
    let text = format!(
        "[[sites]]\nhosts = [\"{NAME}\"]\ntls = \"files\"\nroot = {:?}\n{keys}\n",
        root.display().to_string()
    );
    proxy(place, &text).await
}

pub async fn run(perennial: &Perennial, path: &str, arguments: &[&str]) -> Finished {
    let https = perennial.place.https;
    let resolve = format!("{NAME}:{}:{}", https.port(), https.ip());
    let url = format!("https://{NAME}:{}{path}", https.port());
    let all = ["--insecure", "--path-as-is", "--resolve", &resolve, &url];
    curl(&[&all[..], arguments].concat()).await
}

pub async fn get(perennial: &Perennial, path: &str, arguments: &[&str]) -> Answer {
    let done = run(perennial, path, &[&["--include"], arguments].concat()).await;
    let done = done.assert_success();
    let (head, body) = done.stdout.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    Answer {
        status: status.expect("a status"),
        head: head.to_owned(),
        body: body.to_owned(),
    }
}

pub fn write(place: &Place, files: &[(&str, &str)]) {
    for (name, text) in files {
        place.write(PathBuf::from("www").join(name), text);
    }
}

/// Files, and what must not be had.
fn tree() -> Place {
    let place = Place::new();
    write(
        &place,
        &[
            ("index.html", "<h1>top</h1>"),
            ("docs/index.html", "<h1>docs</h1>"),
            ("docs/a b.txt", "text"),
            ("empty/x/y.bin", "bytes"),
            (".env", "SECRET"),
            (".git/config", "SECRET"),
            (".well-known/security.txt", "Contact: us"),
            ("locked.txt", "locked"),
        ],
    );
    place.write("secret.txt", "SECRET");
    let www = place.path("www");
    symlink("../secret.txt", www.join("out.txt")).expect("a link");
    symlink(place.path("secret.txt"), www.join("absolute.txt")).expect("a link");
    symlink("docs/a b.txt", www.join("inside.txt")).expect("a link");
    let pipe = www.join("pipe");
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RWXU).expect("a pipe");
    std::os::unix::net::UnixListener::bind(www.join("socket")).expect("a socket");
    place
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_there_is_served() {
    let perennial = site(tree(), "").await;
    for version in VERSIONS {
        for (path, status, media, body) in [
            ("/", 200, "text/html; charset=utf-8", "<h1>top</h1>"),
            (
                "/index.html?x=y",
                200,
                "text/html; charset=utf-8",
                "<h1>top</h1>",
            ),
            ("/docs/", 200, "text/html; charset=utf-8", "<h1>docs</h1>"),
            ("/docs/a%20b.txt", 200, "text/plain; charset=utf-8", "text"),
            (
                "/x/../docs//a%20b.txt",
                200,
                "text/plain; charset=utf-8",
                "text",
            ),
            ("/empty/x/y.bin", 200, "application/octet-stream", "bytes"),
            ("/inside.txt", 200, "text/plain; charset=utf-8", "text"),
            (
                "/.well-known/security.txt",
                200,
                "text/plain; charset=utf-8",
                "Contact: us",
            ),
        ] {
            let answer = get(&perennial, path, &[version]).await;
            assert_eq!((answer.status, &*answer.body), (status, body), "{path}");
            assert_eq!(answer.field("content-type"), Some(media), "{path}");
            let length = body.len().to_string();
            assert_eq!(answer.field("content-length"), Some(&*length));
            assert_eq!(answer.field("accept-ranges"), Some("bytes"));
            assert!(
                answer
                    .field("last-modified")
                    .is_some_and(|date| date.ends_with(" GMT"))
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_else_is() {
    let perennial = site(tree(), "").await;
    for version in VERSIONS {
        for path in [
            "/missing.html",
            "/empty/",
            "/index.html/",
            "/index.html/x",
            "/.env",
            "/%2eenv",
            "/.git/config",
            "/out.txt",
            "/absolute.txt",
            "/pipe",
            "/socket",
            "/../secret.txt",
            "/..%2fsecret.txt",
            "/docs/%2e%2e/%2e%2e/secret.txt",
            "/docs/..%00/secret.txt",
            "/docs%5c..%5c..%5csecret.txt",
            &format!("/{}", "a".repeat(300)),
        ] {
            let answer = get(&perennial, path, &[version]).await;
            assert_eq!(answer.status, 404, "{path}: {}", answer.body);
            assert!(!answer.body.contains("SECRET"), "{path}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn directories_and_methods() {
    let perennial = site(tree(), "").await;
    for version in VERSIONS {
        let answer = get(&perennial, "/docs?a=b", &[version]).await;
        assert_eq!(answer.status, 308);
        assert_eq!(answer.field("location"), Some("/docs/?a=b"));
        let answer = get(&perennial, "//docs", &[version]).await;
        assert_eq!(answer.field("location"), Some("/docs/"));
        let answer = get(
            &perennial,
            "/",
            &[version, "--request", "POST", "--data", "x"],
        )
        .await;
        assert_eq!(answer.status, 405);
        assert_eq!(answer.field("allow"), Some("GET, HEAD"));
        let answer = get(&perennial, "/docs/", &[version, "--head"]).await;
        assert_eq!((answer.status, &*answer.body), (200, ""));
        assert_eq!(answer.field("content-length"), Some("13"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_of_one_page_has_a_fallback() {
    let place = Place::new();
    write(
        &place,
        &[
            ("index.html", "the app"),
            ("app.js", "js"),
            ("img/a.png", "png"),
        ],
    );
    let keys = "fallback = \"/index.html\"\nerror_pages = { 404 = \"404.html\" }\n\
                response_headers = { default = { Cache-Control = \"no-cache\" } }\n";
    place.write("404.html", "no such file");
    let perennial = site(place, keys).await;
    for (path, accept, status, body) in [
        ("/", "*/*", 200, "the app"),
        ("/users/7", "*/*", 200, "the app"),
        ("/img/", "*/*", 200, "the app"),
        ("/app.js", "*/*", 200, "js"),
        // A script that is missing is not a page, but a page may have a dot in its name.
        ("/old.js", "*/*", 404, "no such file"),
        ("/users/j.doe", "text/html,*/*;q=0.8", 200, "the app"),
        ("/.env", "text/html", 404, "no such file"),
    ] {
        let accept = format!("Accept: {accept}");
        let answer = get(&perennial, path, &["--header", &accept]).await;
        assert_eq!((answer.status, &*answer.body), (status, body), "{path}");
        if status == 200 {
            assert_eq!(answer.field("cache-control"), Some("no-cache"));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn routes_have_folders_of_their_own_and_change_while_it_runs() {
    let place = Place::new();
    place.write("one/a.txt", "one");
    place.write("two/a.txt", "two");
    place.write("shared.txt", "shared");
    symlink("../shared.txt", place.path("one/link.txt")).expect("a link");
    symlink("one", place.path("current")).expect("a link");
    let rest = |root: &str| {
        format!(
            "[[sites]]\nhosts = [\"{NAME}\"]\ntls = \"files\"\nrespond = \"top\"\n\
             [[sites.routes]]\npath = \"/files/*\"\nstrip_prefix = \"/files\"\nroot = \"{root}\"\n\
             follow_symlinks = true\n\
             [[sites.routes]]\npath = \"/new/*\"\nmethods = [\"GET\"]\nstrip_prefix = \"/new\"\n\
             rewrite = \"/a.txt\"\nroot = \"current\"\n"
        )
    };
    let tls = crate::support::sites::FileTls::new(&place, &[NAME]);
    let table = tls.pair.table();
    let mut perennial = Perennial::run(place, &format!("{table}{}", rest("one"))).await;
    perennial.wait_ready().await;
    assert_eq!(get(&perennial, "/x", &[]).await.body, "top");
    assert_eq!(get(&perennial, "/files/a.txt", &[]).await.body, "one");
    assert_eq!(get(&perennial, "/files/link.txt", &[]).await.body, "shared");
    assert_eq!(get(&perennial, "/new/whatever", &[]).await.body, "one");
    let answer = get(&perennial, "/files", &[]).await;
    assert_eq!(answer.field("location"), Some("/files/"));
    // The root is looked up for each request: a release is put in place by a link.
    symlink("two", perennial.place.path("next")).expect("a link");
    let (next, current) = (
        perennial.place.path("next"),
        perennial.place.path("current"),
    );
    std::fs::rename(next, current).expect("renamed");
    assert_eq!(get(&perennial, "/new/whatever", &[]).await.body, "two");

    perennial.rewrite_config(&format!("{table}{}", rest("two")));
    wait_until(SOON, "the other root", async || {
        (get(&perennial, "/files/a.txt", &[]).await.body == "two").then_some(())
    })
    .await;
    // A root that is not there is our fault, and said.
    let gone = perennial.place.path("two");
    std::fs::rename(&gone, perennial.place.path("elsewhere")).expect("renamed");
    assert_eq!(get(&perennial, "/files/a.txt", &[]).await.status, 500);
    perennial.wait_for_log("cannot be opened", SOON).await;
}

/// Without any configuration: `perennial proxy HOST=FOLDER`.
#[tokio::test(flavor = "multi_thread")]
async fn a_folder_is_a_site() {
    let place = Place::new();
    write(&place, &[("index.html", "hello"), ("locked.txt", "x")]);
    let locked = place.path("www/locked.txt");
    std::fs::set_permissions(&locked, PermissionsExt::from_mode(0o000)).expect("a mode");
    let site = format!("{NAME}={}", place.path("www").display());
    let mut perennial = Perennial::with_proxy(place, &[&site, "--internal"]);
    perennial.start_and_wait().await;
    perennial.wait_ready().await;
    let answer = get(&perennial, "/", &[]).await;
    assert_eq!((answer.status, &*answer.body), (200, "hello"));
    // Root reads everything.
    if !rustix::process::geteuid().is_root() {
        assert_eq!(get(&perennial, "/locked.txt", &[]).await.status, 403);
    }
}

/// Larger than any memory: it has holes, so that it takes no room on the disk.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_ten_gibibytes_is_read_a_piece_at_a_time() {
    const SIZE: u64 = 10 << 30;
    let place = Place::new();
    place.write("www/large.bin", "begin");
    let file = std::fs::File::options()
        .write(true)
        .open(place.path("www/large.bin"));
    file.expect("a file").set_len(SIZE).expect("a size");
    let perennial = site(place, "").await;
    // The first and the last of it, from both ends of the file.
    let end = format!("{}-", SIZE - 3);
    let part = get(&perennial, "/large.bin", &["--range", &end]).await;
    assert_eq!((part.status, &*part.body), (206, "\0\0\0"));
    let before = perennial.resident_bytes();
    for version in VERSIONS {
        // Twice what may be held, of all that there is.
        let arguments = [version, "--output", "/dev/null", "--range", "0-134217727"];
        run(&perennial, "/large.bin", &arguments)
            .await
            .assert_success();
    }
    let grown = perennial.resident_bytes().saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes more");
}

/// A file that becomes shorter is cut off, and the client sees that.
#[tokio::test(flavor = "multi_thread")]
async fn a_truncated_file_never_looks_whole() {
    const SIZE: u64 = 64 << 20;
    let place = Place::new();
    place.write("www/large.bin", "begin");
    let path = place.path("www/large.bin");
    let file = std::fs::File::options()
        .write(true)
        .open(&path)
        .expect("a file");
    file.set_len(SIZE).expect("a size");
    let perennial = site(place, "").await;
    for version in VERSIONS {
        file.set_len(SIZE).expect("a size");
        // Slowly, so that most of it is still to be read.
        let arguments = [version, "--output", "/dev/null", "--limit-rate", "4M"];
        let reading = run(&perennial, "/large.bin", &arguments);
        let shorten = async {
            wait_until(SOON, "the file to be open", async || {
                perennial.has_open(&path).then_some(())
            })
            .await;
            file.set_len(100).expect("a size");
        };
        let (done, ()) = tokio::join!(reading, shorten);
        assert!(matches!(done.code, Some(18 | 92 | 56)), "{done:?}");
        perennial.wait_for_log("became shorter", SOON).await;
    }
}

/// An example as it stands, but for the addresses of this place and of others.
async fn example(name: &str, place: Place, others: &[(&str, String)]) -> Perennial {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("examples");
    let text = std::fs::read_to_string(folder.join(name)).expect("an example");
    let (before, rest) = text.split_once("[server]\n").expect("a [server] table");
    let (_, rest) = rest.split_once("\n\n").expect("its end");
    let mut text = format!("{before}{}\n{rest}", place.server_table());
    let root = |folder: &PathBuf| format!("root = \"{}/", folder.display());
    text = text.replace("root = \"", &root(&folder));
    for (theirs, ours) in others {
        assert!(text.contains(theirs), "{theirs}");
        text = text.replace(theirs, ours);
    }
    let mut perennial = Perennial::with_whole_config(place, &text);
    perennial.start_and_wait().await;
    perennial.wait_ready().await;
    perennial
}

async fn get_of(perennial: &Perennial, host: &str, path: &str, arguments: &[&str]) -> Answer {
    let header = format!("Host: {host}");
    let https = perennial.place.https;
    let resolve = format!("{host}:{}:{}", https.port(), https.ip());
    let url = format!("https://{host}:{}{path}", https.port());
    let all = [
        "--insecure",
        "--include",
        "--resolve",
        &resolve,
        &url,
        "--header",
        &header,
    ];
    let done = curl(&[&all[..], arguments].concat()).await.assert_success();
    let (head, body) = done.stdout.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    Answer {
        status: status.expect("a status"),
        head: head.to_owned(),
        body: body.to_owned(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_of_a_static_site() {
    let perennial = example("static-site.toml", Place::new(), &[]).await;
    let host = "docs.localhost";
    let page = get_of(&perennial, host, "/", &[]).await;
    assert!(
        page.status == 200 && page.body.contains("It works"),
        "{}",
        page.head
    );
    assert_eq!(page.field("cache-control"), Some("no-cache"));
    assert_eq!(page.field("x-content-type-options"), Some("nosniff"));
    let style = get_of(&perennial, host, "/assets/style.css", &[]).await;
    let forever = "public, max-age=31536000, immutable";
    assert_eq!(style.field("cache-control"), Some(forever));
    let logged = "\"GET /assets/style.css HTTP/2\" 200 ";
    perennial.wait_for_log(logged, SOON).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_of_an_application_with_an_api() {
    let place = Place::new();
    let api = crate::support::upstream::Upstream::start(&place, "api").await;
    let login = crate::support::upstream::Upstream::start(&place, "login").await;
    let others = [
        ("127.0.0.1:4000", api.addr.to_string()),
        ("127.0.0.1:9000", login.addr.to_string()),
    ];
    let perennial = example("spa-with-api.toml", place, &others).await;
    let host = "app.localhost";
    for path in ["/", "/users/7"] {
        let page = get_of(&perennial, host, path, &[]).await;
        assert!(
            page.body.contains("An application of one page"),
            "{}",
            page.head
        );
    }
    assert_eq!(get_of(&perennial, host, "/old.js", &[]).await.status, 404);
    let told = get_of(&perennial, host, "/api/users?x", &[]).await;
    let told: serde_json::Value = serde_json::from_str(&told.body).expect("JSON");
    assert_eq!(
        (&told["upstream"], &told["path"]),
        (&"api".into(), &"/users?x".into())
    );
    assert_eq!(login.requests(), 1);
    login.server.stop().await;
    assert_eq!(
        get_of(&perennial, host, "/api/users", &[]).await.status,
        502
    );
    assert_eq!(api.requests(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn directories_are_listed_where_that_is_said() {
    let place = tree();
    write(&place, &[("list/<b>&.txt", "12345"), ("list/sub/x", "")]);
    let www = place.path("www");
    write(&place, &[("list/.hidden", "SECRET")]);
    symlink("../../secret.txt", www.join("list/out")).expect("a link");
    symlink("sub/x", www.join("list/link")).expect("a link");
    let perennial = site(place, "browse = true").await;
    for version in VERSIONS {
        let page = get(&perennial, "/list/", &[version]).await;
        assert_eq!(page.status, 200);
        assert_eq!(page.field("content-type"), Some("text/html; charset=utf-8"));
        assert_eq!(page.field("vary"), Some("Accept"));
        for shown in [
            "<title>/list</title>",
            "<a href=\"./%3Cb%3E%26.txt\">&lt;b&gt;&amp;.txt</a></td><td>5</td>",
            "<a href=\"./sub/\">sub/</a>",
            "<a href=\"./link\">link</a>",
            "<a href=\"../\">../</a>",
        ] {
            assert!(page.body.contains(shown), "{shown}: {}", page.body);
        }
        for hidden in ["hidden", "out", "<b>"] {
            assert!(!page.body.contains(hidden), "{hidden}: {}", page.body);
        }
        let json = ["--header", "Accept: application/json", version];
        let listed = get(&perennial, "/list/", &json).await;
        assert_eq!(listed.field("content-type"), Some("application/json"));
        let rows: serde_json::Value = serde_json::from_str(&listed.body).expect("JSON");
        let rows: Vec<_> = rows
            .as_array()
            .expect("rows")
            .iter()
            .map(|row| (&row["name"], &row["type"], &row["size"]))
            .map(|(name, kind, size)| format!("{name} {kind} {size}"))
            .collect();
        let expected = [
            "\"sub\" \"directory\" null",
            "\"<b>&.txt\" \"file\" 5",
            "\"link\" \"file\" 0",
        ];
        assert_eq!(rows, expected);
        let head = get(&perennial, "/list/", &["--head", version]).await;
        assert_eq!((head.status, &*head.body), (200, ""));
        // An index is served, and a directory is one.
        assert_eq!(get(&perennial, "/", &[version]).await.body, "<h1>top</h1>");
        assert_eq!(get(&perennial, "/list", &[version]).await.status, 308);
        assert_eq!(get(&perennial, "/.git/", &[version]).await.status, 404);
    }
}
