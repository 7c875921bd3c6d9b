//! The spellings by which requests have been smuggled past other proxies, as they were published: CL.TE,
//! TE.CL, TE.TE, CL.0, 0.CL, TE.0, what chunks and line ends allow, upgrades to HTTP/2, `Expect`.
//! Where a spelling has one byte that varies, each of the 256 is sent. What is let through is
//! compared byte for byte with what the upstream was shown.

#![expect(clippy::too_many_lines, reason = "the functions are tables")]

use super::NAME;
use super::smuggling::Verdict::{Denied, Either, Passed, Refused, Shown, Unfinished};
use super::smuggling::{Case, SMUGGLED, Verdict, case, chunked, get, post};
use super::table::judge;

const BAD: Verdict = Either(&Refused, &Denied(400));

/// A POST with a length of five, as it goes on.
const FIVE: &str = "POST / HTTP/1.1\r\nHost: a.example.test\r\nContent-Length: 5\r\n\r\nhello";
const HELLO: Verdict = Shown(&[FIVE]);

/// The same in chunks.
const CHUNKS: &str = "POST / HTTP/1.1\r\nHost: a.example.test\r\n\
                      Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
const CHUNKED: Verdict = Shown(&[CHUNKS]);

const PLAIN: &str = "GET / HTTP/1.1\r\nHost: a.example.test\r\n\r\n";

/// Tables live as long as the test's process.
fn leaked(requests: &[String]) -> &'static [&'static str] {
    let leak = |text: &String| &*Box::leak(text.clone().into_boxed_str());
    Box::leak(requests.iter().map(leak).collect::<Vec<_>>().into())
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// With the byte in place of `@`; its text is Latin-1.
fn with_byte(text: &str, byte: u8) -> Vec<u8> {
    let bytes = text.bytes();
    bytes.map(|it| if it == b'@' { byte } else { it }).collect()
}

fn every_byte(name: &str, text: &str, right: impl Fn(u8) -> Verdict) -> Vec<Case> {
    let bytes = 0..=255;
    let cases = bytes.map(|byte: u8| {
        let name = format!("{name} {byte:#04x}");
        case(name, with_byte(text, byte), right(byte))
    });
    cases.collect()
}

/// To whoever sees the coding, the body ends at once and the rest is another request; to whoever
/// sees the length, five bytes later.
fn clte(fields: &str) -> String {
    let body = format!("0\r\n\r\n{SMUGGLED}");
    post(&format!("Content-Length: 5\r\n{fields}"), &body)
}

#[tokio::test(flavor = "multi_thread")]
async fn codings_in_every_disguise() {
    let refused = |name: &'static str, fields: &str| case(name, clte(fields), Refused);
    let mut cases = vec![
        refused(
            "dualchunk",
            "Transfer-Encoding: chunked\r\nTransfer-encoding: cow",
        ),
        refused(
            "revdualchunk",
            "Transfer-Encoding: cow\r\nTransfer-Encoding: chunked",
        ),
        refused("commacow", "Transfer-Encoding: chunked, cow"),
        refused("cowcomma", "Transfer-Encoding: cow, chunked"),
        refused("cowspace", "Transfer-Encoding: cow chunked"),
        refused("nested", "Transfer-Encoding: identity, chunked, identity"),
        refused("aposed", "Transfer-Encoding: 'chunked'"),
        refused("lazygrep", "Transfer-Encoding: chunk"),
        refused("linewrapped", "Transfer-Encoding:\n chunked"),
        refused("linewrapped CR", "Transfer-Encoding:\r chunked"),
        refused("gareth", "Transfer-Encoding\n : chunked"),
        refused("gareth CRLF", "Transfer-Encoding\r\n : chunked"),
        refused("spacejoin", "Transfer Encoding: chunked"),
        refused("0dspam", "Trans\rfer-Encoding: chunked"),
        refused("0dsuffix", "Transfer-Encoding: chunked\r"),
        refused("badsetup CR", "Foo: bar\rTransfer-Encoding: chunked"),
        refused("badwrap", " Transfer-Encoding: chunked\r\nX: y"),
        refused("vertwrap", "X: y\r\n\x0bTransfer-Encoding: chunked"),
        refused("tabwrap", "X: y\r\n\tTransfer-Encoding: chunked"),
        refused("a colon before", ":Transfer-Encoding: chunked"),
        refused("two colons", "Transfer-Encoding::chunked"),
        refused("an escaped end", "Transfer-Encoding: chunked\\r\\nX: y"),
        refused("an escaped byte", "Transfer-Encoding: %63hunked"),
        refused("an accent", "Transf\u{e9}r-Encoding: chunked"),
        refused("an accent in the value", "Transfer-Encoding: chunk\u{e9}d"),
        refused("small capital", "Transfer-Encoding: chun\u{212a}ed"),
        // These are names of something else, and so the length counts.
        case(
            "encode",
            clte("Transfer-%45ncoding: chunked"),
            Passed(&["POST / 0", "GET /smuggled"]),
        ),
        case(
            "contentenc",
            clte("Content-Encoding: chunked"),
            Passed(&["POST / 0", "GET /smuggled"]),
        ),
        case(
            "underjoin",
            clte("Transfer_Encoding: chunked"),
            Passed(&["POST / 0", "GET /smuggled"]),
        ),
        // The two lengths of TE.CL.
        case(
            "te.cl",
            post(
                "Content-Length: 4\r\nTransfer-Encoding: chunked",
                "5c\r\nGPOST / HTTP/1.1\r\n\r\n0\r\n\r\n",
            ),
            Refused,
        ),
    ];
    let name = |byte| match is_token(byte) {
        true => Passed(&["POST / 0", "GET /smuggled"]),
        false => Refused,
    };
    cases.extend(every_byte(
        "before the value",
        &clte("Transfer-Encoding: @chunked"),
        |_| Refused,
    ));
    cases.extend(every_byte(
        "behind the value",
        &clte("Transfer-Encoding: chunked@"),
        |_| Refused,
    ));
    cases.extend(every_byte(
        "behind the name",
        &clte("Transfer-Encoding@: chunked"),
        |byte| match byte {
            // A field of this name with the value `: chunked`.
            b':' => Refused,
            byte => name(byte),
        },
    ));
    cases.extend(every_byte(
        "before the name",
        &clte("@Transfer-Encoding: chunked"),
        name,
    ));
    judge(cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lengths_in_every_disguise() {
    // What is not the length that it looks like leaves a request without a body, and one behind it.
    let hidden = |fields: &str| post(fields, SMUGGLED);
    let refused = |name: &'static str, fields: &str| case(name, hidden(fields), Refused);
    let length = SMUGGLED.len();
    let whole = |method: &str| {
        let head = format!("{method} /a.css HTTP/1.1\r\nHost: {NAME}\r\nContent-Length: {length}");
        format!("{head}\r\n\r\n{SMUGGLED}")
    };
    let mut cases = vec![
        refused("0.cl folded", "Content-Length:\r\n 47"),
        refused("0.cl folded by LF", "Content-Length:\n 47"),
        refused("0.cl a space before", " Content-Length: 47"),
        refused(
            "0.cl a space before the second",
            "X: y\r\n Content-Length: 47",
        ),
        refused("0.cl a space behind", "Content-Length : 47"),
        refused("0.cl a split name", "Content-\r\nLength: 47"),
        refused("0.cl behind LF", "X: y\nContent-Length: 47"),
        refused("0.cl behind CR", "X: y\rContent-Length: 47"),
        refused(
            "0.cl hidden by NUL",
            "X: y\0Content-Length: 47\r\nContent-Length: 0",
        ),
        refused("a list of the same", "Content-Length: 47, 47"),
        refused("a list", "Content-Length: 0, 47"),
        refused("a list without a space", "Content-Length: 47,0"),
        refused("twice the same", "Content-Length: 47\r\nContent-Length: 47"),
        refused(
            "in other letters",
            "Content-Length: 47\r\ncONTENT-lENGTH: 0",
        ),
        refused("a semicolon", "Content-Length: 47;0"),
        refused("an octal", "Content-Length: 0o57"),
        refused("a binary", "Content-Length: 0b101111"),
        refused("a sum", "Content-Length: 40+7"),
        refused("a word", "Content-Length: five"),
        refused("minus one", "Content-Length: -1"),
        refused("not a number", "Content-Length: NaN"),
        refused("2^64", "Content-Length: 18446744073709551616"),
        refused("2^64 + 47", "Content-Length: 18446744073709551663"),
        case(
            "an underscore makes another field",
            hidden("Content_Length: 47"),
            Shown(leaked(&[
                format!("POST / HTTP/1.1\r\nHost: {NAME}\r\nContent_Length: 47\r\n\r\n"),
                SMUGGLED.to_owned(),
            ])),
        ),
        // CL.0: whoever takes these for requests without a body sees the next one.
        case("cl.0 POST", whole("POST"), Shown(leaked(&[whole("POST")]))),
        case("cl.0 GET", whole("GET"), Shown(leaked(&[whole("GET")]))),
        case(
            "cl.0 OPTIONS",
            whole("OPTIONS"),
            Shown(leaked(&[whole("OPTIONS")])),
        ),
        case(
            "cl.0 DELETE",
            whole("DELETE"),
            Shown(leaked(&[whole("DELETE")])),
        ),
        case(
            "cl.0 nominated",
            whole("GET").replace("\r\nContent", "\r\nConnection: Content-Length\r\nContent"),
            Shown(leaked(&[whole("GET")])),
        ),
        // TE.0.
        case(
            "te.0",
            chunked("5\r\nhello\r\n0\r\n\r\n").replace("POST", "OPTIONS"),
            Shown(leaked(&[CHUNKS.replace("POST", "OPTIONS")])),
        ),
        case(
            "te.0 nominated",
            post(
                "Connection: Transfer-Encoding\r\nTransfer-Encoding: chunked",
                "5\r\nhello\r\n0\r\n\r\n",
            ),
            CHUNKED,
        ),
    ];
    let digits = |byte: u8| match byte {
        // White space around it is none of the value.
        b'\t' | b' ' => HELLO,
        b'0' => HELLO,
        b'1'..=b'9' => Unfinished,
        _ => Refused,
    };
    cases.extend(every_byte(
        "before the length",
        &post("Content-Length: @5", "hello"),
        digits,
    ));
    cases.extend(every_byte(
        "behind the length",
        &post("Content-Length: 5@", "hello"),
        |byte| match byte {
            b'\t' | b' ' => HELLO,
            b'0'..=b'9' => Unfinished,
            _ => Refused,
        },
    ));
    cases.extend(every_byte(
        "within the length",
        &post("Content-Length: 0@5", "hello"),
        |byte| match byte {
            b'0' => HELLO,
            b'1'..=b'9' => Unfinished,
            _ => Refused,
        },
    ));
    judge(cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_in_every_disguise() {
    let rest = "\r\nhello\r\n0\r\n\r\n";
    let size = |size: &str| chunked(&format!("{size}{rest}"));
    let mut cases = vec![
        case("as it goes on", size("5"), CHUNKED),
        case("sixteen digits", size("0000000000000005"), CHUNKED),
        case("twenty digits", size("00000000000000000005"), CHUNKED),
        case("2^64 + 5", size("10000000000000005"), Refused),
        case("2^63", size("8000000000000000"), Refused),
        case("2^63 - 1", size("7fffffffffffffff"), Refused),
        case("2^32 + 5 is that much", size("100000005"), Unfinished),
        case("a list", size("5,0"), Refused),
        case("two", size("5 0"), Refused),
        case("underscores", size("0_5"), Refused),
        case("a plus", size("+5"), Refused),
        case("a minus", size("-5"), Refused),
        case("0x", size("0x5"), Refused),
        case("0X", size("0X5"), Refused),
        case("quoted", size("\"5\""), Refused),
        case("a next line", size("5\u{85}"), Refused),
        case("empty", size(""), Refused),
        case("empty, and an extension", size(";a=b"), Refused),
        // Extensions: one recipient ends them at the first LF or CR, the other at CRLF.
        case("an extension", size("5;a=b"), CHUNKED),
        case("an empty extension", size("5;"), CHUNKED),
        case("term.ext", size("5;\nxx"), Refused),
        case("ext.term", size("5;\rxx"), Refused),
        case("a LF in an extension", size("5;a=\"\n\""), Refused),
        case("a NUL in an extension", size("5;a\0"), Refused),
        case(
            "a CRLF in quotes ends it",
            chunked("5;a=\"\r\nhello\r\n0\r\n\r\n"),
            CHUNKED,
        ),
        case("one.two", chunked("5\nhello\r\n0\r\n\r\n"), Refused),
        case("two.one", chunked("5\r\nhello\n0\r\n\r\n"), Refused),
        case("spill", chunked("5\r\nhelloXX0\r\n\r\n"), Refused),
        case("zero.two", chunked("5\r\nhello0\r\n\r\n"), Refused),
        case("cr alone", chunked("5\r\nhello\r0\r\n\r\n"), Refused),
        case("lines that end in LF", chunked("5\nhello\n0\n\n"), Refused),
        case(
            "crlf twice behind the data",
            chunked("5\r\nhello\r\n\r\n0\r\n\r\n"),
            Refused,
        ),
        case(
            "a request behind the last chunk",
            chunked(&format!("0\r\n\r\n{SMUGGLED}")),
            Shown(&[
                "POST / HTTP/1.1\r\nHost: a.example.test\r\n\
                 Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
                SMUGGLED,
            ]),
        ),
        // Trailers that would say where the message ends, or for whom it is.
        case(
            "a length in the trailers",
            chunked("5\r\nhello\r\n0\r\nContent-Length: 50\r\n\r\n"),
            CHUNKED,
        ),
        case(
            "a coding in the trailers",
            chunked("5\r\nhello\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n"),
            CHUNKED,
        ),
        case(
            "a host in the trailers",
            chunked("5\r\nhello\r\n0\r\nHost: b.example.test\r\n\r\n"),
            CHUNKED,
        ),
        case(
            "who asked in the trailers",
            chunked("5\r\nhello\r\n0\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n"),
            CHUNKED,
        ),
        case(
            "a fold in the trailers",
            chunked("5\r\nhello\r\n0\r\nX: y\r\n z\r\n\r\n"),
            Refused,
        ),
        case(
            "a space before the trailers",
            chunked("5\r\nhello\r\n0\r\n X: y\r\n\r\n"),
            Refused,
        ),
        case(
            "trailer.term",
            chunked(&format!("5\r\nhello\r\n0\r\nX: y\n\n{SMUGGLED}")),
            Refused,
        ),
        case(
            "a space before the colon of a trailer",
            chunked("5\r\nhello\r\n0\r\nX : y\r\n\r\n"),
            Refused,
        ),
    ];
    // A longer size would need more data; 05 is five.
    cases.extend(every_byte(
        "before the size",
        &size("@5"),
        |byte| match byte {
            b'0' => CHUNKED,
            b'1'..=b'9' | b'a'..=b'f' | b'A'..=b'F' => Unfinished,
            _ => Refused,
        },
    ));
    cases.extend(every_byte(
        "behind the size",
        &size("5@"),
        |byte| match byte {
            b';' => CHUNKED,
            b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F' => Unfinished,
            _ => Refused,
        },
    ));
    cases.extend(every_byte(
        "in an extension",
        &size("5;a@b"),
        |byte| match byte {
            0..=8 | 10..=31 | 127 => Refused,
            _ => Either(&Refused, &CHUNKED),
        },
    ));
    cases.extend(every_byte(
        "behind the data",
        &chunked("5\r\nhello@\r\n0\r\n\r\n"),
        |_| Refused,
    ));
    judge(cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_byte_of_a_line() {
    let shown = |target: &str| {
        let text = format!("GET {target} HTTP/1.1\r\nHost: {NAME}\r\n\r\n");
        Shown(leaked(&[text]))
    };
    let value = |byte: u8| {
        let text = format!(
            "GET / HTTP/1.1\r\nHost: {NAME}\r\nX: a{}b\r\n\r\n",
            char::from(byte)
        );
        Shown(leaked(&[text]))
    };
    let line = |line: &str| format!("{line}\r\nHost: {NAME}\r\n\r\n");
    let mut cases = every_byte("in a value", &get("X: a@b"), |byte| match byte {
        0..=8 | 10..=31 | 127 => Refused,
        byte => value(byte),
    });
    cases.extend(every_byte("in a name", &get("X@Y: a"), |byte| match byte {
        // The first colon ends the name.
        b':' => Shown(leaked(&[format!(
            "GET / HTTP/1.1\r\nHost: {NAME}\r\nX: Y: a\r\n\r\n"
        )])),
        byte if is_token(byte) => {
            let name = format!("X{}Y", char::from(byte));
            let text = format!("GET / HTTP/1.1\r\nHost: {NAME}\r\n{name}: a\r\n\r\n");
            Shown(leaked(&[text]))
        }
        _ => Refused,
    }));
    cases.extend(every_byte(
        "in the target",
        &line("GET /a@b HTTP/1.1"),
        |byte| match byte {
            0..=32 | b'#' | 127 => BAD,
            byte => shown(&format!("/a{}b", char::from(byte))),
        },
    ));
    cases.extend(every_byte(
        "before the target",
        &line("GET @/ HTTP/1.1"),
        |byte| match byte {
            b'/' => shown("//"),
            _ => BAD,
        },
    ));
    cases.extend(every_byte(
        "behind the version",
        &line("GET / HTTP/1.1@"),
        |_| Refused,
    ));
    cases.extend(every_byte(
        "before the request",
        &format!("@{}", line("GET / HTTP/1.1")),
        |byte| match is_token(byte) {
            true => Passed(leaked(&[format!("{}GET /", char::from(byte))])),
            false => Refused,
        },
    ));
    cases.extend(every_byte(
        "for a CR",
        &line("GET / HTTP/1.1").replace("HTTP/1.1\r", "HTTP/1.1@"),
        |byte| match byte {
            b'\r' => Shown(&[PLAIN]),
            _ => Refused,
        },
    ));
    judge(cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_and_lines() {
    let line = |line: &str| format!("{line}\r\nHost: {NAME}\r\n\r\n");
    let refused = [
        "GET /",
        "GET / ",
        "GET",
        "GET / HTTP/1",
        "GET / HTTP/1.",
        "GET / HTTP/.1",
        "GET / HTTP/1.1.1",
        "GET / HTTP/1,1",
        "GET / HTTP/1.1x",
        "GET / HTTP/11",
        "GET / HTTP/-1.1",
        "GET / HTTP/+1.1",
        "GET / HTTP/1.01",
        "GET / HTTP/1.2",
        "GET / HTTP/2",
        "GET / HTTP/2.0",
        "GET / HTTP/3.0",
        "GET / HTTP/9.9",
        "GET / HTTP/4294967297.1",
        "GET / hTTP/1.1",
        "GET / http/1.1",
        "GET / HTTPS/1.1",
        "GET / HTTP /1.1",
        "GET / HTTP/ 1.1",
        "GET / HTTP/1 .1",
        "GET / HTTP\\1.1",
        "GET / SIP/2.0",
        "GET / RTSP/1.0",
        "HTTP/1.1 200 OK",
        "GET\u{a0}/ HTTP/1.1",
        "GET /\u{a0}HTTP/1.1",
        "GET\x0b/ HTTP/1.1",
        "GET\x0c/ HTTP/1.1",
    ];
    let mut cases: Vec<Case> = refused
        .iter()
        .map(|text| case(*text, line(text), BAD))
        .collect();
    cases.extend([
        case("HTTP/0.9 alone", "GET /\r\n", Unfinished),
        case(
            "HTTP/0.9 with another behind",
            format!("GET /\r\n{PLAIN}"),
            Refused,
        ),
        case("an empty version and fields", line("GET / "), Refused),
        case(
            "HTTP/1.0 says no to the next",
            format!("GET / HTTP/1.0\r\nHost: {NAME}\r\n\r\n{SMUGGLED}"),
            Passed(&["GET /"]),
        ),
        case(
            "HTTP/1.0 and a Connection that names a field",
            format!(
                "GET / HTTP/1.0\r\nHost: {NAME}\r\nConnection: keep-alive, X-A\r\nX-A: 1\r\n\r\n"
            ),
            Shown(&[PLAIN]),
        ),
    ]);
    judge(cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn authorities() {
    let host = |value: &str| format!("GET / HTTP/1.1\r\nHost: {value}\r\n\r\n");
    let target = |target: &str| format!("GET {target} HTTP/1.1\r\nHost: {NAME}\r\n\r\n");
    let denied = Either(&BAD, &Denied(421));
    let denied = &*Box::leak(Box::new(denied));
    let mut cases = Vec::new();
    for value in [
        "a.example.test:80:443",
        "a.example.test:-1",
        "a.example.test:+443",
        "a.example.test:99999",
        "a.example.test:4 3",
        "a.example.test#",
        "a.example.test?x",
        "a.example.test\\b.example.test",
        "a.example.test%00.b.example.test",
        "a.example.test%0d%0aX:%20y",
        "a.example.test,b.example.test",
        "a.example.test;b.example.test",
        "a.example.test\tb.example.test",
        "b.example.test:@a.example.test",
        "a.example.test:443@b.example.test",
        "[a.example.test]",
        "[::1]a.example.test",
        "\"a.example.test\"",
        "<a.example.test>",
        "..",
        ".",
        "-",
        "b.example.test",
        "127.0.0.1",
        "localhost",
        "a.example.test.b.example.test",
    ] {
        cases.push(case(value, host(value), Either(&BAD, denied)));
    }
    for odd in [
        "https://a.example.test:443/x",
        "https://a.example.test./x",
        "https://b.example.test/x",
        "https://a.example.test@b.example.test/x",
        "https://b.example.test#@a.example.test/x",
        "https://b.example.test\\@a.example.test/x",
        "https:///x",
        "https:a.example.test/x",
        "https:/a.example.test/x",
        "https//a.example.test/x",
        "httpx://a.example.test/x",
        "file:///etc/passwd",
        "javascript:x",
        "@b.example.test/x",
        ":80/x",
        "a.example.test",
        "a.example.test:443",
        "b.example.test:443",
        "\\\\b.example.test\\x",
        "*/x",
        "**",
    ] {
        cases.push(case(odd, target(odd), Either(&BAD, denied)));
    }
    let shown = |target: &str| {
        Shown(leaked(&[format!(
            "GET {target} HTTP/1.1\r\nHost: {NAME}\r\n\r\n"
        )]))
    };
    cases.extend([
        case(
            "absolute",
            target("https://a.example.test/x?y"),
            shown("/x?y"),
        ),
        case(
            "absolute, in capitals",
            target("HTTPS://A.EXAMPLE.TEST/x"),
            shown("/x"),
        ),
        case(
            "absolute, a query alone",
            target("https://a.example.test?y"),
            shown("/?y"),
        ),
        case(
            "absolute, two slashes",
            target("https://a.example.test//b.example.test/"),
            shown("//b.example.test/"),
        ),
        case(
            "a URL for a path",
            target("/https://b.example.test/"),
            shown("/https://b.example.test/"),
        ),
        case(
            "a Host that Connection names",
            get("Connection: Host"),
            Shown(&[PLAIN]),
        ),
        case(
            "other words for it",
            get("X-Host: b.example.test\r\nX-Forwarded-Host: b.example.test\r\nX-Original-URL: /b"),
            Shown(&[
                "GET / HTTP/1.1\r\nHost: a.example.test\r\nX-Host: b.example.test\r\n\
                 X-Original-URL: /b\r\n\r\n",
            ]),
        ),
    ]);
    judge(cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn upgrades_do_not_tunnel() {
    let h2c = "Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n";
    let web_socket = "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                      Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";
    let offered = "GET / HTTP/1.1\r\nHost: a.example.test\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
                   Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    judge(vec![
        case(
            "h2c",
            get(&format!("{h2c}Connection: Upgrade, HTTP2-Settings")),
            Shown(&[PLAIN]),
        ),
        case(
            "h2c, the settings not named",
            get(&format!("{h2c}Connection: Upgrade")),
            Shown(&[PLAIN]),
        ),
        case(
            "h2c, not named at all",
            get(h2c.trim_end()),
            Shown(&[PLAIN]),
        ),
        case(
            "h2c, and its preface behind it",
            get(&format!("{h2c}Connection: Upgrade, HTTP2-Settings"))
                + "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            Either(&Refused, &Verdict::PassedThenRefused(&["GET /"])),
        ),
        case(
            "h2c of a POST",
            post(
                &format!("{h2c}Connection: Upgrade, HTTP2-Settings\r\nContent-Length: 5"),
                "hello",
            ),
            HELLO,
        ),
        case(
            "two protocols",
            get("Connection: Upgrade\r\nUpgrade: websocket, h2c"),
            Shown(&[PLAIN]),
        ),
        case(
            "two fields",
            get("Connection: Upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c"),
            Shown(&[PLAIN]),
        ),
        case(
            "TLS",
            get("Connection: Upgrade\r\nUpgrade: TLS/1.0"),
            Shown(&[PLAIN]),
        ),
        // What is not answered with 101 has not switched: the next request is one.
        case(
            "a WebSocket that is not one",
            get(&format!("Connection: Upgrade\r\n{web_socket}")),
            Shown(leaked(&[offered.to_owned()])),
        ),
        case(
            "a WebSocket that is not one, and a request behind it",
            get(&format!("Connection: Upgrade\r\n{web_socket}")) + SMUGGLED,
            Shown(leaked(&[offered.to_owned(), SMUGGLED.to_owned()])),
        ),
        case(
            "a WebSocket with a body",
            post(
                "Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 5",
                "hello",
            ),
            HELLO,
        ),
        case(
            "a WebSocket in chunks",
            post(
                "Connection: Upgrade\r\nUpgrade: websocket\r\nTransfer-Encoding: chunked",
                "5\r\nhello\r\n0\r\n\r\n",
            ),
            CHUNKED,
        ),
    ])
    .await;
}

/// The expectation goes on in the one form that there is, and where there is a body, or not at all:
/// in any other, one party waits for a body that the other has taken for the next request.
#[tokio::test(flavor = "multi_thread")]
async fn expectations() {
    let expecting = |value: &str| {
        let fields = format!("Expect: {value}\r\nContent-Length: 5");
        post(&fields, "hello")
    };
    let passed = Shown(leaked(&[
        FIVE.replace("Content", "Expect: 100-continue\r\nContent")
    ]));
    let mut cases = vec![
        case("as the RFC has it", expecting("100-continue"), passed),
        case("in capitals", expecting("100-CONTINUE"), passed),
        case("space around it", expecting("\t 100-continue "), passed),
        case("of no body", get("Expect: 100-continue"), Shown(&[PLAIN])),
        case(
            "of an empty body",
            post("Expect: 100-continue\r\nContent-Length: 0", ""),
            Shown(&["POST / HTTP/1.1\r\nHost: a.example.test\r\nContent-Length: 0\r\n\r\n"]),
        ),
        case(
            "twice",
            post(
                "Expect: 100-continue\r\nExpect: 100-continue\r\nContent-Length: 5",
                "hello",
            ),
            passed,
        ),
        case(
            "in HTTP/1.0",
            expecting("100-continue").replace("HTTP/1.1", "HTTP/1.0"),
            HELLO,
        ),
        case(
            "a space before the colon",
            post("Expect : 100-continue\r\nContent-Length: 5", "hello"),
            Refused,
        ),
        case(
            "folded",
            post("Expect:\r\n 100-continue\r\nContent-Length: 5", "hello"),
            Refused,
        ),
    ];
    for odd in [
        "y 100-continue",
        "100-continue y",
        "100-continue, y",
        "y, 100-continue",
        "100-continue;q=1",
        "\"100-continue\"",
        "100_continue",
        "100 continue",
        "100-continu",
        "x=\"y 100-continue\"",
        "200-ok",
        "100",
        "",
    ] {
        cases.push(case(format!("{odd:?}"), expecting(odd), HELLO));
    }
    cases.extend(every_byte(
        "behind it",
        &expecting("100-continue@"),
        |byte| match byte {
            b' ' | b'\t' => Shown(leaked(&[
                FIVE.replace("Content", "Expect: 100-continue\r\nContent")
            ])),
            0..=31 | 127 => Refused,
            _ => HELLO,
        },
    ));
    judge(cases).await;
}
