//! Requests that two parties could read in two ways, sent raw over TLS. Each is either refused, the
//! connection with it, or passed on as exactly what RFC 9110 and RFC 9112 say that it is. The
//! upstream reads without any leniency and says what it saw.

#![expect(clippy::too_many_lines, reason = "the functions are tables")]

use super::table::{Row, arrived, judge};
use super::{NAME, connect};
use crate::support::perennial::Perennial;
use crate::support::recorder::Recorder;

/// One way to smuggle.
pub(super) struct Case {
    name: String,
    sent: Vec<u8>,
    right: Verdict,
}

/// What is to become of it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Verdict {
    /// Answered with 400 or what says it better, and the connection is closed. Nothing whole has
    /// reached the upstream.
    Refused,
    /// The same, but the connection may go on: where the request ends was never in doubt.
    Denied(u16),
    /// The upstream sees these, as `METHOD TARGET BODY`, and then whatever comes next.
    Passed(&'static [&'static str]),
    /// The upstream sees exactly these bytes, but for the fields that say who asked.
    Shown(&'static [&'static str]),
    /// These, and what comes behind them is refused.
    PassedThenRefused(&'static [&'static str]),
    /// It is not whole: no answer but a refusal, nothing whole upstream.
    Unfinished,
    /// As the first or as the second: the RFC leaves the choice.
    Either(&'static Verdict, &'static Verdict),
}

use Verdict::{Denied, Either, Passed, PassedThenRefused, Refused, Shown, Unfinished};

const HELLO: Verdict = Passed(&["POST / hello"]);
const REFUSED_OR_HELLO: Verdict = Either(&Refused, &HELLO);
pub(super) const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: a.example.test\r\n\r\n";

/// What came of a case.
#[derive(Debug)]
pub(super) struct Observed {
    statuses: Vec<u16>,
    /// What came behind the answers, if it was no answer.
    noise: Option<String>,
    /// A further request on the connection was answered, and arrived as it was sent.
    goes_on: bool,
    seen: Vec<String>,
    /// The same, byte for byte.
    raw: Vec<String>,
    malformed: Vec<String>,
}

impl Verdict {
    fn is_met(&self, observed: &Observed) -> bool {
        let sound = observed.malformed.is_empty() && observed.noise.is_none();
        let refusal = |status: &u16| matches!(status, 400 | 405 | 414 | 431 | 501 | 505);
        let refused = |statuses: &[u16]| {
            statuses.len() == 1 && statuses.iter().all(refusal) && !observed.goes_on
        };
        let statuses = &observed.statuses[..];
        sound
            && match *self {
                Refused => refused(statuses) && observed.seen.is_empty(),
                Denied(status) => statuses == [status] && observed.seen.is_empty(),
                Passed(requests) => {
                    statuses.iter().all(|status| *status == 200)
                        && statuses.len() == requests.len()
                        && observed.seen == requests
                }
                Shown(requests) => {
                    statuses.iter().all(|status| *status == 200)
                        && statuses.len() == requests.len()
                        && observed.raw == requests
                }
                PassedThenRefused(requests) => {
                    statuses.len() > requests.len()
                        && refused(&statuses[requests.len()..])
                        && observed.seen == requests
                }
                Unfinished => {
                    statuses.iter().all(refusal) && observed.seen.is_empty() && !observed.goes_on
                }
                Either(one, other) => one.is_met(observed) || other.is_met(observed),
            }
    }

    /// How many answers there are to wait for, at most.
    fn answers(&self) -> usize {
        match *self {
            Refused | Denied(_) => 1,
            Passed(requests) | Shown(requests) => requests.len(),
            PassedThenRefused(requests) => requests.len() + 1,
            Unfinished => 0,
            Either(one, other) => one.answers().max(other.answers()),
        }
    }
}

pub(super) fn case(name: impl Into<String>, sent: impl Into<Vec<u8>>, right: Verdict) -> Case {
    Case {
        name: name.into(),
        sent: sent.into(),
        right,
    }
}

/// A POST with these field lines, `\r\n` between them.
pub(super) fn post(fields: &str, body: &str) -> String {
    format!("POST / HTTP/1.1\r\nHost: {NAME}\r\n{fields}\r\n\r\n{body}")
}

pub(super) fn get(fields: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: {NAME}\r\n{fields}\r\n\r\n")
}

pub(super) fn chunked(body: &str) -> String {
    post("Transfer-Encoding: chunked", body)
}

async fn observe(perennial: &Perennial, recorder: &Recorder, case: &Case) -> Observed {
    let mut client = connect(perennial).await;
    let mut observed = Observed {
        statuses: Vec::new(),
        noise: None,
        goes_on: false,
        seen: Vec::new(),
        raw: Vec::new(),
        malformed: Vec::new(),
    };
    // Some are refused before they are sent.
    let _ = client.send(&case.sent).await;
    while observed.statuses.len() < case.right.answers() {
        match client.response("GET").await {
            Ok(answer) => observed.statuses.push(answer.status()),
            Err(why) if why.ends_with("unread: \"\"") => break,
            Err(why) => {
                observed.noise = Some(why);
                break;
            }
        }
    }
    if !matches!(case.right, Unfinished) {
        let next = format!("GET /next HTTP/1.1\r\nHost: {NAME}\r\n\r\n");
        let sent = client.send(next).await;
        if let (Ok(()), Ok(answer)) = (sent, client.response("GET").await) {
            observed.goes_on = answer.status() == 200;
            if !observed.goes_on {
                observed.statuses.push(answer.status());
            }
        }
    }
    client.finish().await;
    match client.rest().await {
        Ok((rest, _)) if rest.is_empty() => {}
        Ok((rest, _)) if matches!(case.right, Unfinished) => {
            let text = String::from_utf8_lossy(&rest).into_owned();
            observed.statuses.extend(
                text.get(9..12)
                    .and_then(|status| status.parse::<u16>().ok()),
            );
        }
        Ok((rest, _)) => observed.noise = Some(String::from_utf8_lossy(&rest).into_owned()),
        Err(why) => observed.noise = Some(why),
    }
    let reached = arrived(recorder, |_| {});
    observed.seen = reached.seen;
    observed.malformed = reached.malformed;
    observed.raw = recorder.take_raw().iter().map(|it| shown(it)).collect();
    if observed.goes_on {
        observed.raw.pop();
    }
    if observed.goes_on && observed.seen.pop().as_deref() != Some("GET /next") {
        observed.noise = Some("an answer to another request".to_owned());
    }
    observed
}

/// Without the fields that say who asked, each of which has to be there once.
fn shown(raw: &[u8]) -> String {
    let mut text: String = raw.iter().map(|&byte| char::from(byte)).collect();
    for name in ["X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host"] {
        let lines = text.matches(&format!("\r\n{name}: ")).count();
        let Some(start) = text.find(&format!("{name}: ")).filter(|_| lines == 1) else {
            return format!("{lines} times {name}: {text}");
        };
        let length = text[start..].find("\r\n").map_or(0, |length| length + 2);
        text.replace_range(start..start + length, "");
    }
    text
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
    let length = |value: &str| post(&format!("Content-Length: {value}"), "hello");
    judge(vec![
        case("one length", length("5"), HELLO),
        case("white space around it", length(" \t5\t "), HELLO),
        case("leading zeros", length("005"), HELLO),
        case(
            "given twice",
            post("Content-Length: 5\r\nContent-Length: 5", "hello"),
            REFUSED_OR_HELLO,
        ),
        case("a list of the same", length("5, 5"), REFUSED_OR_HELLO),
        case(
            "two",
            post("Content-Length: 5\r\nContent-Length: 0", "hello"),
            Refused,
        ),
        case(
            "two, the other way",
            post("Content-Length: 0\r\nContent-Length: 5", "hello"),
            Refused,
        ),
        case("a list", length("5, 0"), Refused),
        case("a list, the other way", length("0, 5"), Refused),
        case("a plus", length("+5"), Refused),
        case("negative", length("-5"), Refused),
        case("minus zero", length("-0"), Refused),
        case("hexadecimal", length("0x5"), Refused),
        case("hexadecimal digits", length("a"), Refused),
        case("a fraction", length("5.0"), Refused),
        case("an exponent", length("5e0"), Refused),
        case("a space within", length("1 5"), Refused),
        case("empty", length(""), Refused),
        case("a comma alone", length(","), Refused),
        case("a comma behind", length("5,"), Refused),
        case("quoted", length("\"5\""), Refused),
        case("a separator", length("1_0"), Refused),
        case("other digits", length("\u{665}"), Refused),
        case("over 64 bits", length("18446744073709551621"), Refused),
        case(
            "far over 64 bits",
            length("99999999999999999999999999999999"),
            Refused,
        ),
        case("a vertical tab", length("\x0b5"), Refused),
        case("a NUL", length("5\0"), Refused),
        case("too long", length("6"), Unfinished),
        case(
            "too short",
            post("Content-Length: 3", "hello there\r\n\r\n"),
            PassedThenRefused(&["POST / hel"]),
        ),
        case(
            "none, and a body",
            get("X: y") + "hello there\r\n\r\n",
            PassedThenRefused(&["GET /"]),
        ),
        case(
            "zero, and a request",
            post("Content-Length: 0", SMUGGLED),
            Passed(&["POST /", "GET /smuggled"]),
        ),
        case(
            "none, and a request",
            get("X: y") + SMUGGLED,
            Passed(&["GET /", "GET /smuggled"]),
        ),
        case(
            "a request within",
            post(&format!("Content-Length: {}", SMUGGLED.len()), SMUGGLED),
            Passed(&["POST / GET /smuggled HTTP/1.1\r\nHost: a.example.test"]),
        ),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn codings() {
    let chunks = "5\r\nhello\r\n0\r\n\r\n";
    let coding = |fields: &str| post(fields, chunks);
    // To whoever does not see the coding, the length is five and the rest another request.
    let both = |fields: &str| {
        post(
            &format!("Content-Length: 5\r\n{fields}"),
            &format!("0\r\n\r\n{SMUGGLED}"),
        )
    };
    judge(vec![
        case("chunked", coding("Transfer-Encoding: chunked"), HELLO),
        case("in capitals", coding("TRANSFER-ENCODING: CHUNKED"), HELLO),
        case(
            "without a space",
            coding("Transfer-Encoding:chunked"),
            HELLO,
        ),
        case(
            "with more space",
            coding("Transfer-Encoding: \t chunked \t"),
            HELLO,
        ),
        case(
            "a length before",
            both("Transfer-Encoding: chunked"),
            Refused,
        ),
        case(
            "a length behind",
            post(
                "Transfer-Encoding: chunked\r\nContent-Length: 5",
                &format!("0\r\n\r\n{SMUGGLED}"),
            ),
            Refused,
        ),
        case(
            "a right length",
            post("Content-Length: 15\r\nTransfer-Encoding: chunked", chunks),
            Refused,
        ),
        case(
            "a length and no chunked",
            both("Transfer-Encoding: identity"),
            Refused,
        ),
        case("xchunked", coding("Transfer-Encoding: xchunked"), Refused),
        case("chunkedx", coding("Transfer-Encoding: chunkedx"), Refused),
        case(
            "chunked, identity",
            coding("Transfer-Encoding: chunked, identity"),
            Refused,
        ),
        case(
            "identity, chunked",
            coding("Transfer-Encoding: identity, chunked"),
            Refused,
        ),
        case(
            "gzip, chunked",
            coding("Transfer-Encoding: gzip, chunked"),
            Refused,
        ),
        case("gzip", coding("Transfer-Encoding: gzip"), Refused),
        case("identity", coding("Transfer-Encoding: identity"), Refused),
        case(
            "chunked twice",
            coding("Transfer-Encoding: chunked, chunked"),
            Refused,
        ),
        case(
            "two fields",
            coding("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"),
            Refused,
        ),
        case(
            "two fields, identity last",
            coding("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity"),
            Refused,
        ),
        case(
            "two fields, identity first",
            coding("Transfer-Encoding: identity\r\nTransfer-Encoding: chunked"),
            Refused,
        ),
        case(
            "two fields, one empty",
            coding("Transfer-Encoding:\r\nTransfer-Encoding: chunked"),
            Refused,
        ),
        case("empty", coding("Transfer-Encoding:"), Refused),
        case(
            "a comma behind",
            coding("Transfer-Encoding: chunked,"),
            Refused,
        ),
        case(
            "a comma before",
            coding("Transfer-Encoding: ,chunked"),
            Refused,
        ),
        case(
            "a parameter",
            coding("Transfer-Encoding: chunked;q=1"),
            Refused,
        ),
        case("quoted", coding("Transfer-Encoding: \"chunked\""), Refused),
        case(
            "a vertical tab before",
            coding("Transfer-Encoding: \x0bchunked"),
            Refused,
        ),
        case(
            "a vertical tab behind",
            coding("Transfer-Encoding: chunked\x0b"),
            Refused,
        ),
        case(
            "a form feed",
            coding("Transfer-Encoding: \x0cchunked"),
            Refused,
        ),
        case(
            "a no-break space",
            coding("Transfer-Encoding: \u{a0}chunked"),
            Refused,
        ),
        case("a NUL", coding("Transfer-Encoding: chunked\0"), Refused),
        case(
            "a space before the colon",
            both("Transfer-Encoding : chunked"),
            Refused,
        ),
        case(
            "a tab before the colon",
            both("Transfer-Encoding\t: chunked"),
            Refused,
        ),
        case(
            "a space in the name",
            both("Transfer Encoding: chunked"),
            Refused,
        ),
        case(
            "a space before the name",
            both(" Transfer-Encoding: chunked"),
            Refused,
        ),
        case(
            "a tab before the name",
            both("\tTransfer-Encoding: chunked"),
            Refused,
        ),
        case(
            "a NUL in the name",
            both("Transfer\0-Encoding: chunked"),
            Refused,
        ),
        case("a colon more", both("Transfer-Encoding:: chunked"), Refused),
        case("folded", both("Transfer-Encoding:\r\n chunked"), Refused),
        case(
            "behind a fold",
            both("X: y\r\n Transfer-Encoding: chunked"),
            Refused,
        ),
        case(
            "behind a bare LF",
            both("X: y\nTransfer-Encoding: chunked"),
            Refused,
        ),
        case(
            "behind a bare CR",
            both("X: y\rTransfer-Encoding: chunked"),
            Refused,
        ),
        case(
            "behind CR CR LF",
            both("X: y\r\r\nTransfer-Encoding: chunked"),
            Refused,
        ),
        case(
            "behind a NUL",
            both("X: y\0Transfer-Encoding: chunked"),
            Refused,
        ),
        case(
            "before a bare LF",
            both("Transfer-Encoding: chunked\nX: y"),
            Refused,
        ),
        case(
            "with an underscore it is another field",
            post("Content-Length: 5\r\nTransfer_Encoding: chunked", "hello"),
            REFUSED_OR_HELLO,
        ),
        case(
            "in HTTP/1.0",
            coding("Transfer-Encoding: chunked").replace("HTTP/1.1", "HTTP/1.0"),
            Refused,
        ),
        case(
            "in HTTP/1.0 that is kept alive",
            coding("Connection: keep-alive\r\nTransfer-Encoding: chunked")
                .replace("HTTP/1.1", "HTTP/1.0"),
            Refused,
        ),
        case(
            "of a GET",
            chunked(chunks).replace("POST", "GET"),
            Passed(&["GET / hello"]),
        ),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks() {
    judge(vec![
        case("plain", chunked("5\r\nhello\r\n0\r\n\r\n"), HELLO),
        case("two", chunked("2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"), HELLO),
        case(
            "leading zeros",
            chunked("005\r\nhello\r\n000\r\n\r\n"),
            HELLO,
        ),
        case(
            "an extension",
            chunked("5;a=b;c=\"d\"\r\nhello\r\n0;e\r\n\r\n"),
            REFUSED_OR_HELLO,
        ),
        case(
            "a trailer",
            chunked("5\r\nhello\r\n0\r\nX: y\r\n\r\n"),
            HELLO,
        ),
        case(
            "a length in the trailers",
            chunked("5\r\nhello\r\n0\r\nContent-Length: 50\r\n\r\n"),
            REFUSED_OR_HELLO,
        ),
        case(
            "a request behind",
            chunked(&format!("5\r\nhello\r\n0\r\n\r\n{SMUGGLED}")),
            Passed(&["POST / hello", "GET /smuggled"]),
        ),
        case(
            "over 64 bits",
            chunked("10000000000000005\r\nhello\r\n0\r\n\r\n"),
            Refused,
        ),
        case(
            "all of 64 bits",
            chunked("ffffffffffffffff\r\nhello\r\n0\r\n\r\n"),
            Refused,
        ),
        case(
            "nearly all of 64 bits",
            chunked("fffffffffffffffe\r\nhello\r\n0\r\n\r\n"),
            Refused,
        ),
        case("negative", chunked("-5\r\nhello\r\n0\r\n\r\n"), Refused),
        case("a plus", chunked("+5\r\nhello\r\n0\r\n\r\n"), Refused),
        case("0x", chunked("0x5\r\nhello\r\n0\r\n\r\n"), Refused),
        case(
            "0x at the end",
            chunked("5\r\nhello\r\n0x0\r\n\r\n"),
            Refused,
        ),
        case("a suffix", chunked("5h\r\nhello\r\n0\r\n\r\n"), Refused),
        case("a separator", chunked("0_5\r\nhello\r\n0\r\n\r\n"), Refused),
        case(
            "a space before",
            chunked(" 5\r\nhello\r\n0\r\n\r\n"),
            Refused,
        ),
        case(
            "a space behind",
            chunked("5 \r\nhello\r\n0\r\n\r\n"),
            REFUSED_OR_HELLO,
        ),
        case(
            "a space within",
            chunked("0 5\r\nhello\r\n0\r\n\r\n"),
            Refused,
        ),
        case("a NUL", chunked("5\0\r\nhello\r\n0\r\n\r\n"), Refused),
        case("no size", chunked(&format!("\r\n\r\n{SMUGGLED}")), Refused),
        case(
            "no size but an extension",
            chunked(&format!(";a\r\n\r\n{SMUGGLED}")),
            Refused,
        ),
        case(
            "no size behind a chunk",
            chunked("5\r\nhello\r\n\r\n\r\n"),
            Refused,
        ),
        case(
            "a bare LF behind the size",
            chunked("5\nhello\r\n0\r\n\r\n"),
            Refused,
        ),
        case(
            "a bare CR behind the size",
            chunked("5\rhello\r\n0\r\n\r\n"),
            Refused,
        ),
        case(
            "a bare LF in an extension",
            chunked("5;a\nb\r\nhello\r\n0\r\n\r\n"),
            Refused,
        ),
        case(
            "a bare CR in an extension",
            chunked("5;a\rb\r\nhello\r\n0\r\n\r\n"),
            Refused,
        ),
        case(
            "a NUL in an extension",
            chunked("5;a\0b\r\nhello\r\n0\r\n\r\n"),
            Refused,
        ),
        case(
            "a bare LF behind the data",
            chunked("5\r\nhello\n0\r\n\r\n"),
            Refused,
        ),
        case(
            "a bare CR behind the data",
            chunked("5\r\nhello\r0\r\n\r\n"),
            Refused,
        ),
        case(
            "two bytes behind the data",
            chunked("5\r\nhelloXX0\r\n\r\n"),
            Refused,
        ),
        case(
            "nothing behind the data",
            chunked("5\r\nhello0\r\n\r\n"),
            Refused,
        ),
        case(
            "more data than that",
            chunked("3\r\nhello\r\n0\r\n\r\n"),
            Refused,
        ),
        case(
            "less data than that",
            chunked("7\r\nhello\r\n0\r\n\r\n"),
            Refused,
        ),
        case(
            "bare LF at the end",
            chunked("5\r\nhello\r\n0\n\n"),
            Refused,
        ),
        case(
            "a bare LF for the last line",
            chunked("5\r\nhello\r\n0\r\n\n"),
            Refused,
        ),
        case(
            "a bare LF in the trailers",
            chunked("5\r\nhello\r\n0\r\nX: y\nZ: z\r\n\r\n"),
            Refused,
        ),
        case(
            "no colon in the trailers",
            chunked("5\r\nhello\r\n0\r\nnothing\r\n\r\n"),
            Refused,
        ),
        case("no last CRLF", chunked("5\r\nhello\r\n0\r\n"), Unfinished),
        case("no last chunk", chunked("5\r\nhello\r\n"), Unfinished),
        case("half a chunk", chunked("5\r\nhel"), Unfinished),
        case("half a size", chunked("5\r\nhello\r\n0"), Unfinished),
        case("nothing", chunked(""), Unfinished),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fields() {
    let value = |value: &[u8]| {
        let start = format!("GET / HTTP/1.1\r\nHost: {NAME}\r\nX: ");
        [start.as_bytes(), value, b"\r\n\r\n"].concat()
    };
    const PASSED: Verdict = Passed(&["GET /"]);
    judge(vec![
        case("no value", get("X:"), PASSED),
        case("a tab in a value", value(b"a\tb"), PASSED),
        case("bytes beyond ASCII", value(b"a\xe4\xffb"), PASSED),
        case("a NUL in a value", value(b"a\0b"), Refused),
        case("a bare CR in a value", value(b"a\rb"), Refused),
        case("a bare LF in a value", value(b"a\nb: c"), Refused),
        case("a bare LF and no colon", value(b"a\nb"), Refused),
        case("DEL in a value", value(b"a\x7fb"), Refused),
        case("a control character in a value", value(b"a\x01b"), Refused),
        case("folded", get("X: a\r\n b"), Refused),
        case("folded with a tab", get("X: a\r\n\tb"), Refused),
        case(
            "folded before the first",
            format!("GET / HTTP/1.1\r\n X: y\r\nHost: {NAME}\r\n\r\n"),
            Refused,
        ),
        case("a fold of nothing", get("X: a\r\n \r\nY: z"), Refused),
        case("a space before the colon", get("X : a"), Refused),
        case("a space in the name", get("X Y: a"), Refused),
        case("no name", get(": a"), Refused),
        case("no colon", get("X"), Refused),
        case("an at sign in the name", get("X@Y: a"), Refused),
        case("brackets in the name", get("X[Y]: a"), Refused),
        case("beyond ASCII in the name", get("X\u{e4}: a"), Refused),
        case("a bare CR in the name", get("X\rY: a"), Refused),
        case(
            "lines that end in LF",
            get("X: a").replace("\r\n", "\n"),
            Refused,
        ),
        case(
            "the last line ends in LF",
            format!("GET / HTTP/1.1\r\nHost: {NAME}\r\n\n"),
            Refused,
        ),
        case(
            "the last field ends in LF",
            format!("GET / HTTP/1.1\r\nHost: {NAME}\n\r\n"),
            Refused,
        ),
        case(
            "the first line ends in LF",
            format!("GET / HTTP/1.1\nHost: {NAME}\r\n\r\n"),
            Refused,
        ),
        case(
            "lines that end in CR",
            get("X: a").replace("\r\n", "\r") + "\r\n\r\n",
            Refused,
        ),
        case("lines that end in CR CR LF", get("X: a\r"), Refused),
        case(
            "no end",
            format!("GET / HTTP/1.1\r\nHost: {NAME}\r\n"),
            Unfinished,
        ),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts() {
    let with = |start: &str, fields: &str| format!("{start}\r\n{fields}\r\n");
    let host = |value: &str| with("GET / HTTP/1.1", &format!("Host: {value}\r\n"));
    const PASSED: Verdict = Passed(&["GET /"]);
    const BAD: Verdict = Either(&Refused, &Denied(400));
    judge(vec![
        case("one", host("a.example.test"), PASSED),
        case("with a port", host("a.example.test:8443"), PASSED),
        case("in capitals", host("A.EXAMPLE.TEST"), PASSED),
        case("none", with("GET / HTTP/1.1", ""), BAD),
        case("none in HTTP/1.0", with("GET / HTTP/1.0", ""), BAD),
        case("empty", host(""), BAD),
        case("two", host("a.example.test\r\nHost: b.example.test"), BAD),
        case(
            "the same twice",
            host("a.example.test\r\nHost: a.example.test"),
            BAD,
        ),
        case(
            "twice, in other letters",
            host("a.example.test\r\nhOST: b.example.test"),
            BAD,
        ),
        case("a list", host("a.example.test, b.example.test"), BAD),
        case("two words", host("a.example.test b.example.test"), BAD),
        case("with a path", host("a.example.test/x"), BAD),
        case(
            "with user information",
            host("a.example.test@b.example.test"),
            BAD,
        ),
        case("with a port that is none", host("a.example.test:80x"), BAD),
        case("with two ports", host("a.example.test:80:80"), BAD),
        case("with a URL", host("https://a.example.test/"), BAD),
        case("a tab in it", host("a.example\t.test"), BAD),
        case("beyond ASCII", host("a.ex\u{e4}mple.test"), BAD),
        case(
            "a space before the colon",
            with("GET / HTTP/1.1", "Host : a.example.test\r\n"),
            Refused,
        ),
        case("folded", host("\r\n a.example.test"), Refused),
        case("another one", host("b.example.test"), Denied(421)),
        case(
            "absolute",
            with(
                "GET https://a.example.test/x HTTP/1.1",
                "Host: a.example.test\r\n",
            ),
            Passed(&["GET /x"]),
        ),
        case(
            "absolute, without a path",
            with(
                "GET https://a.example.test HTTP/1.1",
                "Host: a.example.test\r\n",
            ),
            PASSED,
        ),
        case(
            "absolute, another host",
            with(
                "GET https://a.example.test/x HTTP/1.1",
                "Host: b.example.test\r\n",
            ),
            Either(&BAD, &Passed(&["GET /x"])),
        ),
        case(
            "absolute, another host, the other way",
            with(
                "GET https://b.example.test/x HTTP/1.1",
                "Host: a.example.test\r\n",
            ),
            Either(&BAD, &Denied(421)),
        ),
        case(
            "absolute, no Host",
            with("GET https://a.example.test/x HTTP/1.1", ""),
            BAD,
        ),
        case(
            "absolute, with user information",
            with(
                "GET https://b@a.example.test/ HTTP/1.1",
                "Host: a.example.test\r\n",
            ),
            BAD,
        ),
        case(
            "absolute, with a backslash",
            with(
                "GET https:\\\\b.example.test/ HTTP/1.1",
                "Host: a.example.test\r\n",
            ),
            BAD,
        ),
        case(
            "absolute, one slash",
            with(
                "GET https:/b.example.test/ HTTP/1.1",
                "Host: a.example.test\r\n",
            ),
            BAD,
        ),
        case(
            "of another scheme",
            with(
                "GET ftp://b.example.test/ HTTP/1.1",
                "Host: a.example.test\r\n",
            ),
            BAD,
        ),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn request_lines() {
    let line = |line: &str| format!("{line}\r\nHost: {NAME}\r\n\r\n");
    const PASSED: Verdict = Passed(&["GET /"]);
    const BAD: Verdict = Either(&Refused, &Denied(400));
    judge(vec![
        case("usual", line("GET / HTTP/1.1"), PASSED),
        case(
            "an empty line before",
            "\r\n".to_owned() + &line("GET / HTTP/1.1"),
            Either(&Refused, &PASSED),
        ),
        case(
            "empty lines before",
            "\r\n\r\n".to_owned() + &line("GET / HTTP/1.1"),
            Either(&Refused, &PASSED),
        ),
        case(
            "a bare LF before",
            "\n".to_owned() + &line("GET / HTTP/1.1"),
            Refused,
        ),
        case(
            "a bare CR before",
            "\r".to_owned() + &line("GET / HTTP/1.1"),
            Refused,
        ),
        case("a space before", line(" GET / HTTP/1.1"), Refused),
        case(
            "a field before",
            "X: y\r\n".to_owned() + &line("GET / HTTP/1.1"),
            Refused,
        ),
        case("two spaces", line("GET  / HTTP/1.1"), BAD),
        case(
            "two spaces before the version",
            line("GET /  HTTP/1.1"),
            BAD,
        ),
        case("a space behind", line("GET / HTTP/1.1 "), BAD),
        case("a tab behind the method", line("GET\t/ HTTP/1.1"), BAD),
        case("a tab before the version", line("GET /\tHTTP/1.1"), BAD),
        case("a tab in the target", line("GET /a\tb HTTP/1.1"), BAD),
        case("a space in the target", line("GET /a b HTTP/1.1"), BAD),
        case("two versions", line("GET / HTTP/1.1 HTTP/1.1"), BAD),
        case("a NUL in the target", line("GET /a\0b HTTP/1.1"), BAD),
        case("a bare CR in the target", line("GET /a\rb HTTP/1.1"), BAD),
        case("a bare LF in the target", line("GET /a\nb HTTP/1.1"), BAD),
        case(
            "a bare CR behind the version",
            line("GET / HTTP/1.1\r"),
            Refused,
        ),
        case("no version", line("GET /"), Refused),
        case("no target", line("GET HTTP/1.1"), BAD),
        case("a word for a target", line("GET x HTTP/1.1"), BAD),
        case(
            "a host for a target",
            line("GET b.example.test:80 HTTP/1.1"),
            BAD,
        ),
        case("a query for a target", line("GET ?x HTTP/1.1"), BAD),
        case("a star for a target", line("GET * HTTP/1.1"), BAD),
        case(
            "a star for OPTIONS",
            line("OPTIONS * HTTP/1.1"),
            Passed(&["OPTIONS *"]),
        ),
        case(
            "a fragment",
            line("GET /a#b HTTP/1.1"),
            Either(&BAD, &Passed(&["GET /a"])),
        ),
        case(
            "dots",
            line("GET /a/../b HTTP/1.1"),
            Passed(&["GET /a/../b"]),
        ),
        case(
            "two slashes",
            line("GET //b.example.test/ HTTP/1.1"),
            Passed(&["GET //b.example.test/"]),
        ),
        case(
            "an escaped line",
            line("GET /%0d%0aX:%20y HTTP/1.1"),
            Passed(&["GET /%0d%0aX:%20y"]),
        ),
        case(
            "a method in small letters",
            line("get / HTTP/1.1"),
            Passed(&["get /"]),
        ),
        case(
            "a method of its own",
            line("BREW / HTTP/1.1"),
            Passed(&["BREW /"]),
        ),
        case(
            "a method that is no token",
            line("GE(T / HTTP/1.1"),
            Refused,
        ),
        case("no method", line("/ HTTP/1.1"), Refused),
        case("TRACE", line("TRACE / HTTP/1.1"), Denied(405)),
        case(
            "CONNECT",
            line("CONNECT a.example.test:443 HTTP/1.1"),
            Either(&Refused, &Denied(405)),
        ),
        case("HTTP/0.9", line("GET / HTTP/0.9"), Refused),
        case("HTTP/1.2", line("GET / HTTP/1.2"), Refused),
        case("HTTP/2.0", line("GET / HTTP/2.0"), Refused),
        case("HTTP/1.10", line("GET / HTTP/1.10"), Refused),
        case("HTTP/01.1", line("GET / HTTP/01.1"), Refused),
        case("http/1.1", line("GET / http/1.1"), Refused),
        case("another protocol", line("GET / ICAP/1.1"), Refused),
        case(
            "the preface of HTTP/2",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            Refused,
        ),
    ])
    .await;
}
