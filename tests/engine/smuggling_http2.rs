//! The same over HTTP/2, where lengths and lines are no framing, but become one on the way to an
//! upstream of HTTP/1.1 (RFC 9113 sections 8.1.1, 8.2 and 10.3).

#![expect(clippy::too_many_lines, reason = "the functions are tables")]

use super::table::{Arrived, Row, arrived, judge};
use super::{Http2, NAME, whole};
use crate::support::h2_frames::{self as frames, Frames, Outcome};
use crate::support::perennial::Perennial;
use crate::support::recorder::Recorder;

pub(super) type Field = (Vec<u8>, Vec<u8>);

pub(super) struct Case {
    name: String,
    fields: Vec<Field>,
    body: Option<&'static [u8]>,
    trailers: Option<Vec<Field>>,
    right: Verdict,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Verdict {
    /// The stream or the connection is reset, or answered with 400; nothing whole upstream.
    Refused,
    /// Answered with this status; nothing upstream.
    Denied(u16),
    /// The upstream sees exactly this, as `METHOD TARGET BODY`.
    Passed(&'static str),
    Either(&'static Verdict, &'static Verdict),
}

use Verdict::{Denied, Either, Passed, Refused};

#[derive(Debug)]
pub(super) struct Observed {
    outcome: Outcome,
    seen: Vec<String>,
    malformed: Vec<String>,
}

impl Verdict {
    fn is_met(&self, observed: &Observed) -> bool {
        let Observed {
            outcome,
            seen,
            malformed,
        } = observed;
        malformed.is_empty()
            && match *self {
                Refused => {
                    let refused = matches!(
                        outcome,
                        Outcome::Reset(_) | Outcome::Gone(_) | Outcome::Status(400 | 431)
                    );
                    refused && seen.is_empty()
                }
                Denied(status) => *outcome == Outcome::Status(status) && seen.is_empty(),
                Passed(request) => *outcome == Outcome::Status(200) && *seen == [request],
                Either(one, other) => one.is_met(observed) || other.is_met(observed),
            }
    }
}

pub(super) fn field(name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Field {
    (name.as_ref().to_vec(), value.as_ref().to_vec())
}

pub(super) fn pseudo(method: &str, path: &str) -> Vec<Field> {
    vec![
        field(":method", method),
        field(":scheme", "https"),
        field(":authority", NAME),
        field(":path", path),
    ]
}

/// With a replaced pseudo-header field; without it where `value` is `None`.
pub(super) fn replaced(name: &str, value: Option<&[u8]>) -> Vec<Field> {
    let mut fields = pseudo("GET", "/");
    fields.retain(|(given, _)| given != name.as_bytes());
    fields.extend(value.map(|value| field(name, value)));
    fields
}

pub(super) fn case(name: impl Into<String>, fields: Vec<Field>, right: Verdict) -> Case {
    Case {
        name: name.into(),
        fields,
        body: None,
        trailers: None,
        right,
    }
}

/// A GET with one field more.
pub(super) fn get(name: impl Into<String>, extra: Field, right: Verdict) -> Case {
    let fields = [pseudo("GET", "/"), vec![extra]].concat();
    case(name, fields, right)
}

/// A POST of `hello` with more fields.
pub(super) fn post(name: impl Into<String>, extra: &[(&str, &str)], right: Verdict) -> Case {
    let extra = extra
        .iter()
        .map(|(name, value)| field(name, value))
        .collect();
    Case {
        body: Some(b"hello"),
        ..case(name, [pseudo("POST", "/"), extra].concat(), right)
    }
}

impl Case {
    /// The DATA that is sent.
    pub(super) fn body(self, body: &'static [u8]) -> Case {
        Case {
            body: Some(body),
            ..self
        }
    }

    pub(super) fn trailers(mut self, trailers: &[(&str, &str)]) -> Case {
        let trailers = trailers.iter().map(|(name, value)| field(name, value));
        self.trailers = Some(trailers.collect());
        self
    }
}

fn block(fields: &[Field]) -> Vec<u8> {
    let fields: Vec<(&[u8], &[u8])> = fields
        .iter()
        .map(|(name, value)| (&**name, &**value))
        .collect();
    frames::block(&fields)
}

async fn observe(perennial: &Perennial, recorder: &Recorder, case: &Case) -> Observed {
    let mut connection = Frames::open(perennial.place.https, NAME).await;
    let end = |last: bool| if last { frames::END_STREAM } else { 0 };
    let mut sent = frames::frame(
        frames::HEADERS,
        frames::END_HEADERS | end(case.body.is_none() && case.trailers.is_none()),
        1,
        &block(&case.fields),
    );
    if let Some(body) = case.body {
        sent.extend(frames::frame(
            frames::DATA,
            end(case.trailers.is_none()),
            1,
            body,
        ));
    }
    if let Some(trailers) = &case.trailers {
        let flags = frames::END_HEADERS | frames::END_STREAM;
        sent.extend(frames::frame(frames::HEADERS, flags, 1, &block(trailers)));
    }
    // It may have heard enough before it has heard all.
    let _ = connection.send_all(&sent).await;
    let outcome = connection.outcome(1).await;
    // Whatever was left on a connection to the upstream would spoil the next request.
    let mut http2 = Http2::open(perennial, &mut h2::client::Builder::new()).await;
    let next = whole(http2.get("/next")).await.expect("an answer");
    assert_eq!(next.assert_whole().text(), "ok", "behind {}", case.name);
    let Arrived { seen, malformed } = arrived(recorder, |request| {
        assert_eq!(request.head.all("host").len(), 1, "{}", case.name);
    });
    let mut observed = Observed {
        outcome,
        seen,
        malformed,
    };
    if observed.seen.pop().as_deref() != Some("GET /next") {
        observed
            .malformed
            .push("the next request was not the last".to_owned());
    }
    observed
}

impl Row for Case {
    type Verdict = Verdict;
    type Observed = Observed;

    fn name(&self) -> &str {
        &self.name
    }

    fn right(&self) -> &Verdict {
        &self.right
    }

    fn is_met(verdict: &Verdict, observed: &Observed) -> bool {
        verdict.is_met(observed)
    }

    async fn observe(&self, perennial: &Perennial, recorder: &Recorder) -> Observed {
        observe(perennial, recorder, self).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lengths() {
    const HELLO: Verdict = Passed("POST / hello");
    judge(vec![
        post("none", &[], HELLO),
        post("right", &[("content-length", "5")], HELLO),
        post("too short", &[("content-length", "3")], Refused),
        post("too long", &[("content-length", "6")], Refused),
        post("zero", &[("content-length", "0")], Refused),
        post(
            "twice",
            &[("content-length", "5"), ("content-length", "5")],
            Either(&Refused, &HELLO),
        ),
        post(
            "two",
            &[("content-length", "5"), ("content-length", "0")],
            Refused,
        ),
        post(
            "two, the other way",
            &[("content-length", "0"), ("content-length", "5")],
            Refused,
        ),
        post("a list", &[("content-length", "5, 0")], Refused),
        post("a plus", &[("content-length", "+5")], Refused),
        post("hexadecimal", &[("content-length", "0x5")], Refused),
        post("empty", &[("content-length", "")], Refused),
        post(
            "over 64 bits",
            &[("content-length", "18446744073709551621")],
            Refused,
        ),
        get("without a body", field("content-length", "5"), Refused),
        post("in the trailers", &[], Either(&Refused, &HELLO))
            .trailers(&[("content-length", "50")]),
        post("a coding in the trailers", &[], Either(&Refused, &HELLO))
            .trailers(&[("transfer-encoding", "chunked")]),
        // Malformed (RFC 9113 section 8.1); the h2 crate drops it unseen, so that it changes nothing.
        post(
            "a pseudo-header field in the trailers",
            &[],
            Either(&Refused, &HELLO),
        )
        .trailers(&[(":path", "/x")]),
        Case {
            body: Some(b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a.example.test\r\n\r\n"),
            ..post(
                "chunks within",
                &[],
                Passed("POST / 0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a.example.test"),
            )
        },
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fields() {
    const PASSED: Verdict = Passed("GET /");
    judge(vec![
        get("usual", field("x", "y"), PASSED),
        get(
            "transfer-encoding",
            field("transfer-encoding", "chunked"),
            Refused,
        ),
        post(
            "transfer-encoding of a body",
            &[("transfer-encoding", "chunked")],
            Refused,
        ),
        get("connection", field("connection", "close"), Refused),
        get(
            "connection that names",
            field("connection", "x-forwarded-for"),
            Refused,
        ),
        get("keep-alive", field("keep-alive", "timeout=5"), Refused),
        get(
            "proxy-connection",
            field("proxy-connection", "close"),
            Refused,
        ),
        get("upgrade", field("upgrade", "websocket"), Refused),
        get("te", field("te", "trailers"), PASSED),
        get("te that asks for more", field("te", "gzip"), Refused),
        get("a CRLF in a value", field("x", "y\r\nz: w"), Refused),
        get("a CR in a value", field("x", "y\rz"), Refused),
        get("a LF in a value", field("x", "y\nz: w"), Refused),
        get("a NUL in a value", field("x", "y\0z"), Refused),
        get(
            "a request in a value",
            field("x", "y\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n"),
            Refused,
        ),
        get(
            "a space before a value",
            field("x", " y"),
            Either(&Refused, &PASSED),
        ),
        get("beyond ASCII in a value", field("x", b"\xe4\xff"), PASSED),
        get("a capital", field("X", "y"), Refused),
        get("capitals", field("Transfer-Encoding", "chunked"), Refused),
        get("a space in a name", field("x y", "z"), Refused),
        get(
            "a space behind a name",
            field("transfer-encoding ", "chunked"),
            Refused,
        ),
        get("a colon in a name", field("x: y", "z"), Refused),
        get("a CRLF in a name", field("x\r\ny", "z"), Refused),
        get(
            "a request in a name",
            field("x: y\r\n\r\nget /smuggled http/1.1\r\nz", "w"),
            Refused,
        ),
        get("a NUL in a name", field("x\0", "z"), Refused),
        get("no name", field("", "z"), Refused),
        get("a name beyond ASCII", field(b"x\xe4", "z"), Refused),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pseudo_header_fields() {
    const PASSED: Verdict = Passed("GET /");
    let with = |extra: Field| [pseudo("GET", "/"), vec![extra]].concat();
    judge(vec![
        case("usual", pseudo("GET", "/"), PASSED),
        case("two paths", with(field(":path", "/other")), Refused),
        case("two methods", with(field(":method", "POST")), Refused),
        case(
            "two authorities",
            with(field(":authority", "b.example.test")),
            Refused,
        ),
        case("two schemes", with(field(":scheme", "http")), Refused),
        case("an unknown one", with(field(":x", "y")), Refused),
        case("a status", with(field(":status", "200")), Refused),
        case(
            "behind a field",
            [vec![field("x", "y")], pseudo("GET", "/")].concat(),
            Refused,
        ),
        case("no path", replaced(":path", None), Refused),
        case("no method", replaced(":method", None), Refused),
        case("no scheme", replaced(":scheme", None), Refused),
        case("no authority", replaced(":authority", None), Refused),
        case(
            "host alone",
            [replaced(":authority", None), vec![field("host", NAME)]].concat(),
            PASSED,
        ),
        case("host the same", with(field("host", NAME)), PASSED),
        case(
            "host another",
            with(field("host", "b.example.test")),
            Refused,
        ),
        case(
            "host another, twice",
            [
                with(field("host", NAME)),
                vec![field("host", "b.example.test")],
            ]
            .concat(),
            Refused,
        ),
        case("an empty path", replaced(":path", Some(b"")), Refused),
        case(
            "a path without a slash",
            replaced(":path", Some(b"x")),
            Refused,
        ),
        case(
            "a query for a path",
            replaced(":path", Some(b"?x")),
            Refused,
        ),
        case(
            "a URL for a path",
            replaced(":path", Some(b"https://b.example.test/")),
            Refused,
        ),
        case("a star for a path", replaced(":path", Some(b"*")), Refused),
        case(
            "a space in the path",
            replaced(":path", Some(b"/a b")),
            Refused,
        ),
        case(
            "a version in the path",
            replaced(":path", Some(b"/ HTTP/1.1")),
            Refused,
        ),
        case(
            "a request in the path",
            replaced(
                ":path",
                Some(b"/ HTTP/1.1\r\nHost: a.example.test\r\n\r\nGET /smuggled"),
            ),
            Refused,
        ),
        case(
            "a tab in the path",
            replaced(":path", Some(b"/a\tb")),
            Refused,
        ),
        case(
            "a LF in the path",
            replaced(":path", Some(b"/a\nb")),
            Refused,
        ),
        case(
            "a NUL in the path",
            replaced(":path", Some(b"/a\0b")),
            Refused,
        ),
        case(
            "a fragment",
            replaced(":path", Some(b"/a#b")),
            Either(&Refused, &Either(&Passed("GET /a#b"), &Passed("GET /a"))),
        ),
        case(
            "a space in the method",
            replaced(":method", Some(b"GET /smuggled")),
            Refused,
        ),
        case(
            "a request in the method",
            replaced(
                ":method",
                Some(b"GET / HTTP/1.1\r\nHost: a.example.test\r\n\r\nGET"),
            ),
            Refused,
        ),
        case("an empty method", replaced(":method", Some(b"")), Refused),
        case(
            "CONNECT",
            pseudo("CONNECT", "/"),
            Either(&Refused, &Denied(405)),
        ),
        case("TRACE", pseudo("TRACE", "/"), Denied(405)),
        case(
            "a CRLF in the authority",
            replaced(":authority", Some(b"a.example.test\r\nx: y")),
            Refused,
        ),
        case(
            "a space in the authority",
            replaced(":authority", Some(b"a.example.test b")),
            Refused,
        ),
        case(
            "a path in the authority",
            replaced(":authority", Some(b"a.example.test/x")),
            Refused,
        ),
        case(
            "user information",
            replaced(":authority", Some(b"b@a.example.test")),
            Refused,
        ),
        case(
            "an empty authority",
            replaced(":authority", Some(b"")),
            Refused,
        ),
        case(
            "another authority",
            replaced(":authority", Some(b"b.example.test")),
            Denied(421),
        ),
        case(
            "another scheme",
            replaced(":scheme", Some(b"http")),
            Either(&Refused, &PASSED),
        ),
        case(
            "a CRLF in the scheme",
            replaced(":scheme", Some(b"https\r\nx: y")),
            Refused,
        ),
        case(
            "a request in the scheme",
            replaced(":scheme", Some(b"http://b.example.test/?")),
            Refused,
        ),
    ])
    .await;
}
