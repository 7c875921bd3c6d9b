//! Parts of files, what the client has already, and files that are compressed on disk.

use crate::static_files::{VERSIONS, get, run, site, write};
use crate::support::perennial::Perennial;
use crate::support::place::Place;

/// A file of 200,000 digits: more than is held at once.
async fn digits() -> (Perennial, String) {
    let place = Place::new();
    let digits = "0123456789".repeat(20_000);
    write(&place, &[("digits.txt", &digits)]);
    (site(place, "").await, digits)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_part() {
    let (perennial, digits) = digits().await;
    for version in VERSIONS {
        let part = get(&perennial, "/digits.txt", &[version, "--range", "5-14"]).await;
        assert_eq!((part.status, &*part.body), (206, "5678901234"));
        assert_eq!(part.field("content-range"), Some("bytes 5-14/200000"));
        assert_eq!(part.field("content-length"), Some("10"));
        let end = get(&perennial, "/digits.txt", &[version, "--range", "-3"]).await;
        assert_eq!((end.status, &*end.body), (206, "789"));
        // More than is held at once.
        let large = get(&perennial, "/digits.txt", &[version, "--range", "1-150000"]).await;
        assert!(large.body == digits[1..=150_000]);
        let beyond = get(&perennial, "/digits.txt", &[version, "--range", "200000-"]).await;
        assert_eq!(beyond.status, 416);
        assert_eq!(beyond.field("content-range"), Some("bytes */200000"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn several_parts() {
    let (perennial, _) = digits().await;
    for version in VERSIONS {
        let several = get(&perennial, "/digits.txt", &[version, "--range", "0-1,-2"]).await;
        assert_eq!(several.status, 206);
        let media = several.field("content-type").expect("a type");
        let boundary = media
            .strip_prefix("multipart/byteranges; boundary=")
            .expect(media);
        let part = |range: &str, text: &str| {
            format!(
                "\r\n--{boundary}\r\nContent-Type: text/plain; charset=utf-8\r\n\
                 Content-Range: bytes {range}/200000\r\n\r\n{text}"
            )
        };
        let expected = [
            part("0-1", "01"),
            part("199998-199999", "89"),
            format!("\r\n--{boundary}--\r\n"),
        ];
        assert_eq!(several.body, expected.concat());
        let length = several.body.len().to_string();
        assert_eq!(several.field("content-length"), Some(&*length));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_client_has_is_not_sent_again() {
    let (perennial, digits) = digits().await;
    for version in VERSIONS {
        let whole = get(&perennial, "/digits.txt", &[version]).await;
        assert!(whole.body == digits, "{} bytes", whole.body.len());
        assert_eq!(whole.field("accept-ranges"), Some("bytes"));
        let etag = whole.field("etag").expect("a tag").to_owned();
        let modified = whole.field("last-modified").expect("a date").to_owned();
        assert!(etag.starts_with('"'), "{etag}");
        let with = async |field: &str| {
            get(
                &perennial,
                "/digits.txt",
                &[version, "--range", "0-0", "--header", field],
            )
            .await
        };
        for (field, status) in [
            (format!("If-None-Match: {etag}"), 304),
            ("If-None-Match: \"other\"".to_owned(), 206),
            (format!("If-Modified-Since: {modified}"), 304),
            (
                "If-Modified-Since: Sun, 01 Nov 1998 12:00:00 GMT".to_owned(),
                206,
            ),
            (format!("If-Match: {etag}"), 206),
            ("If-Match: \"other\"".to_owned(), 412),
            (
                "If-Unmodified-Since: Sun, 01 Nov 1998 12:00:00 GMT".to_owned(),
                412,
            ),
            (format!("If-Range: {etag}"), 206),
            ("If-Range: \"other\"".to_owned(), 200),
        ] {
            let answer = with(&field).await;
            assert_eq!(answer.status, status, "{field}");
            if status == 304 {
                assert_eq!((&*answer.body, answer.field("etag")), ("", Some(&*etag)));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_goes_on_where_it_stopped() {
    let (perennial, digits) = digits().await;
    for version in VERSIONS {
        // curl's own way: it goes on where it stopped.
        let target = perennial.place.write("partial", &digits[..70_000]);
        let target = target.display().to_string();
        let resumed = run(
            &perennial,
            "/digits.txt",
            &[version, "-C", "-", "-o", &target],
        )
        .await;
        resumed.assert_success();
        assert!(std::fs::read_to_string(&target).expect("a file") == digits);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changes_is_another_file() {
    let (perennial, _) = digits().await;
    let before = get(&perennial, "/digits.txt", &[]).await;
    write(&perennial.place, &[("digits.txt", "new")]);
    let etag = before.field("etag").expect("a tag");
    let condition = format!("If-None-Match: {etag}");
    let after = get(&perennial, "/digits.txt", &["--header", &condition]).await;
    assert_eq!((after.status, &*after.body), (200, "new"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_compressed_already_is_sent_as_it_is() {
    let place = Place::new();
    write(
        &place,
        &[
            ("app.js", "plain"),
            ("app.js.br", "brotli"),
            ("app.js.gz", "gzip"),
            ("style.css", "plain"),
            ("style.css.gz", "stale"),
            ("a.png", "png"),
            ("a.png.gz", "not for pictures"),
        ],
    );
    // It was compressed before the file was written.
    let stale = std::fs::File::options()
        .write(true)
        .open(place.path("www/style.css.gz"));
    let hour_ago = std::fs::metadata(place.path("www/style.css")).and_then(|it| it.modified());
    let hour_ago = hour_ago.expect("a time") - std::time::Duration::from_secs(3600);
    stale
        .expect("a file")
        .set_modified(hour_ago)
        .expect("a time");
    let perennial = site(place, "").await;
    for (path, accept, body, coding) in [
        ("/app.js", "gzip, br", "brotli", Some("br")),
        ("/app.js", "gzip, br;q=0.5", "gzip", Some("gzip")),
        ("/app.js", "zstd", "plain", None),
        ("/app.js", "identity", "plain", None),
        ("/style.css", "gzip", "plain", None),
        ("/a.png", "gzip", "png", None),
    ] {
        let accept = format!("Accept-Encoding: {accept}");
        let answer = get(&perennial, path, &["--header", &accept]).await;
        assert_eq!(
            (answer.status, &*answer.body),
            (200, body),
            "{path} {accept}"
        );
        assert_eq!(answer.field("content-encoding"), coding);
        let vary = (path != "/a.png").then_some("Accept-Encoding");
        assert_eq!(answer.field("vary"), vary, "{path}");
        let etag = answer.field("etag").expect("a tag").to_owned();
        let condition = format!("If-None-Match: {etag}");
        let again = get(
            &perennial,
            path,
            &["--header", &accept, "--header", &condition],
        )
        .await;
        assert_eq!(again.status, 304);
        let plain = get(&perennial, path, &["--header", &condition]).await;
        assert_eq!(plain.status, if coding.is_some() { 200 } else { 304 });
    }
}
