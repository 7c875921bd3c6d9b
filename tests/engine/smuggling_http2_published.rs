//! The spellings by which requests have been smuggled out of HTTP/2 into HTTP/1.1, as they were
//! published: H2.CL, H2.TE, lines in names, values and pseudo-header fields, tunnels. Where a
//! spelling has one byte that varies, each of the 256 is sent.

#![expect(clippy::too_many_lines, reason = "the functions are tables")]

use super::smuggling_http2::Verdict::{Denied, Either, Passed, Refused};
use super::smuggling_http2::{Case, Field, Verdict, case, field, get, post, pseudo, replaced};
use super::table::judge;

const PASSED: Verdict = Passed("GET /");
const HELLO: Verdict = Passed("POST / hello");

fn leaked(text: String) -> &'static str {
    Box::leak(text.into_boxed_str())
}

fn every_byte(name: &str, row: impl Fn(String, u8) -> Case) -> Vec<Case> {
    let bytes = 0..=255;
    bytes
        .map(|byte: u8| row(format!("{name} {byte:#04x}"), byte))
        .collect()
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn around(before: &str, byte: u8, behind: &str) -> Vec<u8> {
    [before.as_bytes(), &[byte], behind.as_bytes()].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_byte_of_a_field() {
    let mut cases = every_byte("in a name", |name, byte| {
        let passes = is_token(byte) && !byte.is_ascii_uppercase();
        let right = if passes { PASSED } else { Refused };
        get(name, field(around("x", byte, "y"), "z"), right)
    });
    cases.extend(every_byte("behind transfer-encoding", |name, byte| {
        let passes = is_token(byte) && !byte.is_ascii_uppercase();
        let right = if passes { PASSED } else { Refused };
        get(
            name,
            field(around("transfer-encoding", byte, ""), "chunked"),
            right,
        )
    }));
    cases.extend(every_byte("in a value", |name, byte| {
        let right = match byte {
            0..=8 | 10..=31 | 127 => Refused,
            _ => PASSED,
        };
        get(name, field("x", around("y", byte, "z")), right)
    }));
    judge(cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_byte_of_a_pseudo_header_field() {
    let mut cases = every_byte("in the path", |name, byte| {
        let path = around("/a", byte, "b");
        let right = match byte {
            0..=32 | 127 => Refused,
            b'#' => Either(&Refused, &Passed("GET /a")),
            byte => {
                let shown = Passed(leaked(format!("GET /a{}b", char::from(byte))));
                Either(&Refused, Box::leak(Box::new(shown)))
            }
        };
        case(name, replaced(":path", Some(&path)), right)
    });
    cases.extend(every_byte("in the method", |name, byte| {
        let method = around("GE", byte, "T");
        let right = match is_token(byte) {
            true => Passed(leaked(format!("GE{}T /", char::from(byte)))),
            false => Refused,
        };
        case(name, replaced(":method", Some(&method)), right)
    }));
    cases.extend(every_byte("behind the authority", |name, byte| {
        let authority = around("a.example.test", byte, "");
        // A name that is rooted, and a port that is empty, may be the same; any other is not.
        let right = match byte {
            b'.' | b':' => Either(&Either(&Refused, &Denied(421)), &PASSED),
            _ => Either(&Refused, &Denied(421)),
        };
        case(name, replaced(":authority", Some(&authority)), right)
    }));
    cases.extend(every_byte("in the scheme", |name, byte| {
        let scheme = around("http", byte, "");
        // It goes no further: to the upstream it is no matter.
        let right = match byte {
            byte if byte.is_ascii_alphanumeric() || b"+-.~".contains(&byte) => {
                Either(&Refused, &PASSED)
            }
            _ => Refused,
        };
        case(name, replaced(":scheme", Some(&scheme)), right)
    }));
    judge(cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lengths_that_data_belies() {
    const GIVEN: &[u8] = b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a.example.test\r\nX: y";
    let length =
        |name: &'static str, value: &str, right| post(name, &[("content-length", value)], right);
    judge(vec![
        length("h2.cl zero", "0", Refused).body(GIVEN),
        length("h2.cl less", "5", Refused).body(GIVEN),
        length("h2.cl more", "500", Refused).body(GIVEN),
        length("h2.cl a plus", "+5", Refused),
        length("h2.cl a list", "5,5", Refused),
        length("h2.cl a space within", "5 5", Refused),
        length("h2.cl a line", "5\r\nx: y", Refused),
        length("h2.cl negative", "-1", Refused),
        length("h2.cl 2^64 + 5", "18446744073709551621", Refused),
        length("h2.cl leading zeros", "005", Either(&Refused, &HELLO)),
        length("h2.cl a space before", " 5", Either(&Refused, &HELLO)),
        length("h2.cl a space behind", "5 ", Either(&Refused, &HELLO)),
        post("h2.cl an underscore", &[("content_length", "0")], HELLO),
        post("h2.te", &[("transfer-encoding", "chunked")], Refused).body(GIVEN),
        post(
            "h2.te identity",
            &[("transfer-encoding", "identity")],
            Refused,
        ),
        post("h2.te empty", &[("transfer-encoding", "")], Refused),
        post(
            "h2.te twice",
            &[
                ("transfer-encoding", "identity"),
                ("transfer-encoding", "chunked"),
            ],
            Refused,
        ),
        post(
            "h2.te with a length",
            &[("content-length", "5"), ("transfer-encoding", "chunked")],
            Refused,
        ),
        post(
            "h2.te an underscore",
            &[("transfer_encoding", "chunked")],
            HELLO,
        ),
        post("te: chunked", &[("te", "chunked")], Refused),
        post(
            "te: trailers, chunked",
            &[("te", "trailers, chunked")],
            Refused,
        ),
        post("a host in the trailers", &[], Either(&Refused, &HELLO))
            .trailers(&[("host", "b.example.test")]),
        post(
            "a connection in the trailers",
            &[],
            Either(&Refused, &HELLO),
        )
        .trailers(&[("connection", "close")]),
        post(
            "a quotation mark in the trailers",
            &[],
            Either(&Refused, &HELLO),
        )
        .trailers(&[("x\"y", "z")]),
        post("a line in the trailers", &[], Refused).trailers(&[("x", "y\r\nz: w")]),
        post("a capital in the trailers", &[], Refused).trailers(&[("X", "y")]),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_and_connections_within() {
    let request = "\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a.example.test\r\n\r\n";
    let host = |value: &str| -> Vec<Field> {
        [replaced(":authority", None), vec![field("host", value)]].concat()
    };
    let connect = |protocol: &str, extra: &[Field]| -> Vec<Field> {
        let protocol = vec![field(":protocol", protocol)];
        [pseudo("CONNECT", "/"), protocol, extra.to_vec()].concat()
    };
    let mut cases = vec![
        get(
            "a request in a cookie",
            field("cookie", format!("a=b{request}")),
            Refused,
        ),
        get("a LF in a cookie", field("cookie", "a=b\nx: y"), Refused),
        get(
            "a line in a name",
            field("x: y\r\ntransfer-encoding", "chunked"),
            Refused,
        ),
        get(
            "a request in a name",
            field(format!("x: y{request}z"), "w"),
            Refused,
        ),
        get(
            "http2-settings",
            field("http2-settings", "AAMAAABkAAQAAP__"),
            Either(&Refused, &PASSED),
        ),
        get("upgrade: h2c", field("upgrade", "h2c"), Refused),
        get(
            "connection: upgrade",
            field("connection", "upgrade"),
            Refused,
        ),
        get(
            "proxy-connection",
            field("proxy-connection", "keep-alive"),
            Refused,
        ),
        get(
            "an odd expectation",
            field("expect", "y 100-continue"),
            PASSED,
        ),
        get("a pseudo field in capitals", field(":PATH", "/x"), Refused),
        get("a colon for a name", field(":", "x"), Refused),
        get(
            "another pseudo field",
            field(":host", "b.example.test"),
            Refused,
        ),
        get(
            "a protocol without CONNECT",
            field(":protocol", "websocket"),
            Refused,
        ),
        case(
            "a line in the host",
            host("a.example.test\r\nx: y"),
            Refused,
        ),
        case("another host", host("b.example.test"), Denied(421)),
        case("a host with a path", host("a.example.test/x"), Refused),
        case(
            "a host with user information",
            host("b@a.example.test"),
            Refused,
        ),
        case(
            "a list of hosts",
            host("a.example.test, b.example.test"),
            Refused,
        ),
        case(
            "h2c by CONNECT",
            connect("h2c", &[]),
            Either(&Refused, &Either(&Denied(405), &Denied(501))),
        ),
        case(
            "UDP by CONNECT",
            connect("connect-udp", &[]),
            Either(&Refused, &Either(&Denied(405), &Denied(501))),
        ),
        case(
            "a length in a CONNECT",
            connect("websocket\r\nx: y", &[]),
            Either(&Refused, &Denied(405)),
        ),
    ];
    for scheme in [
        "", "HTTPS", "ftp", "https:", "https://", "://", " https", "http\0",
    ] {
        let name = format!("the scheme {scheme:?}");
        let fields = replaced(":scheme", Some(scheme.as_bytes()));
        cases.push(case(name, fields, Either(&Refused, &PASSED)));
    }
    for path in [
        "//b.example.test/",
        "/..",
        "/%0d%0aX:%20y",
        "/a;b",
        "/a?b?c",
        "/a//b",
        "/\\b.example.test",
        "/@b.example.test",
        "/http://b.example.test/",
    ] {
        let shown = Passed(leaked(format!("GET {path}")));
        let right = Either(&Refused, Box::leak(Box::new(shown)));
        let fields = replaced(":path", Some(path.as_bytes()));
        cases.push(case(format!("the path {path:?}"), fields, right));
    }
    for path in [
        "",
        "x",
        "?x",
        "*",
        "http://b.example.test/",
        "/ /",
        "/\t",
        "\\",
    ] {
        let fields = replaced(":path", Some(path.as_bytes()));
        cases.push(case(format!("the path {path:?}"), fields, Refused));
    }
    for authority in [
        "a.example.test:80:80",
        "a.example.test:x",
        "a.example.test,b.example.test",
        "a.example.test#b.example.test",
        "a.example.test?b.example.test",
        "a.example.test\\b.example.test",
        "b.example.test@a.example.test",
        "a.example.test@b.example.test",
        "[::1",
        "..",
    ] {
        let fields = replaced(":authority", Some(authority.as_bytes()));
        let right = Either(&Refused, &Denied(421));
        cases.push(case(format!("the authority {authority:?}"), fields, right));
    }
    judge(cases).await;
}
