//! What answers in the place of a CA's directory, or has a certificate that is not trusted: what it
//! was, in words, and what the operator can do about it. Pure.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, LOCATION};
use http::{Response, StatusCode};

use super::Directory;
use crate::config::CertificateAuthority;

/// Of what a page says, so many characters are told.
const MAX_WORDS: usize = 60;
/// Of a page so much is read for that.
const MAX_READ: usize = 4096;

/// Why an answer is no directory.
#[derive(Debug, PartialEq, Eq)]
pub struct Unfit {
    pub(super) text: String,
    /// Whether it is for the CA to mend, or for time.
    pub(super) is_passing: bool,
    /// Where else the directory is said to be.
    location: Option<String>,
}

impl Unfit {
    /// What can be done, at the place where the configuration names the directory.
    pub(super) fn advice(&self, config: &CertificateAuthority) -> Option<String> {
        let setting = &config.spelling.directory;
        match &self.location {
            _ if self.is_passing => None,
            Some(location) => Some(format!(
                "check {setting}: redirects are not followed, and it may have to be {location}"
            )),
            None => Some(format!(
                "check {setting}: it has to be the whole URL of the CA's ACME directory"
            )),
        }
    }
}

/// The directory, or what was there instead.
pub(super) fn directory(answer: &Response<Bytes>) -> Result<Directory, Unfit> {
    let status = answer.status();
    let unfit = |text: String| Unfit {
        text,
        is_passing: is_passing(status),
        location: header(answer.headers(), &LOCATION).filter(|_| status.is_redirection()),
    };
    if !status.is_success() {
        let page = page(answer).map_or_else(String::new, |page| format!(" ({page})"));
        return Err(unfit(format!("the directory answers HTTP {status}{page}")));
    }
    let parsed = Directory::parse(answer.body().clone());
    parsed.map_err(|error| {
        let what = match page(answer) {
            Some(page) if !is_json(answer) => format!(", but {page}"),
            _ => format!(" ({error})"),
        };
        unfit(format!("its answer is no ACME directory{what}"))
    })
}

/// Whether another time may bring another answer.
fn is_passing(status: StatusCode) -> bool {
    status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS
}

fn is_json(answer: &Response<Bytes>) -> bool {
    answer.body().trim_ascii_start().starts_with(b"{")
}

/// `text/html: "Welcome to"`; nothing where there is neither a type nor a word.
fn page(answer: &Response<Bytes>) -> Option<String> {
    let kind = header(answer.headers(), &CONTENT_TYPE);
    let kind = kind.map(|it| printable(it.split(';').next().unwrap_or_default()));
    match (kind, first_words(answer.body())) {
        (Some(kind), Some(words)) => Some(format!("{kind}: {words:?}")),
        (Some(kind), None) => Some(kind),
        (None, words) => words.map(|words| format!("{words:?}")),
    }
}

fn header(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    let value = headers.get(name)?.to_str().ok()?;
    Some(value.trim().to_owned()).filter(|value| !value.is_empty())
}

/// What a person would read first, without tags and what is not to be seen.
fn first_words(body: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(&body[..body.len().min(MAX_READ)]);
    let mut words = printable(&without_tags(&text));
    if words.chars().count() > MAX_WORDS {
        words = words.chars().take(MAX_WORDS).collect::<String>() + "...";
    }
    Some(words).filter(|words| !words.is_empty())
}

fn without_tags(text: &str) -> String {
    let mut parts = text.split('<');
    let first = parts.next().unwrap_or_default();
    let after_tags = parts.filter_map(|part| {
        let (tag, after) = part.split_once('>')?;
        let is_seen = !["style", "script", "!--"]
            .iter()
            .any(|hidden| tag.to_ascii_lowercase().starts_with(hidden));
        is_seen.then_some(after)
    });
    std::iter::once(first)
        .chain(after_tags)
        .collect::<Vec<_>>()
        .join(" ")
}

/// In one line, for a log.
fn printable(text: &str) -> String {
    let text = text.replace(char::is_control, " ");
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What can be done about a server whose certificate is not trusted, for this `cause`.
pub(super) fn distrust(cause: &str, config: &CertificateAuthority) -> String {
    let (directory, setting) = (&config.spelling.directory, &config.spelling.ca_certificate);
    match &config.ca_certificate {
        _ if cause.contains("not valid for name") => {
            format!("check {directory}: the certificate there is for other names")
        }
        _ if cause.contains("xpired") || cause.contains("not valid yet") => {
            "the CA's own certificate is not valid now: ask whoever runs it, and compare this host's \
             clock"
                .to_owned()
        }
        None => format!("for a private CA, set {setting} to its root"),
        Some(file) if cause.contains("CaUsedAsEndEntity") => format!(
            "the server shows a certificate that is a CA's itself, which then has to be in {}: see \
             {setting}",
            file.display()
        ),
        Some(file) => format!(
            "{} has no root that the server's certificate leads to: see {setting}",
            file.display()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(status: u16, headers: &[(HeaderName, &str)], body: &str) -> Unfit {
        let mut answer = Response::new(Bytes::from(body.to_owned()));
        *answer.status_mut() = StatusCode::from_u16(status).unwrap();
        for (name, value) in headers {
            answer.headers_mut().insert(name, value.parse().unwrap());
        }
        directory(&answer).unwrap_err()
    }

    #[test]
    fn what_it_was_is_told() {
        let html = [(CONTENT_TYPE, "text/html; charset=utf-8")];
        let page =
            "<html><head><style>p {x}</style><title>Welcome\n to nginx!</title></head></html>";
        for (status, body, expected) in [
            (
                200,
                page,
                "no ACME directory, but text/html: \"Welcome to nginx!\"",
            ),
            (
                404,
                page,
                "answers HTTP 404 Not Found (text/html: \"Welcome to nginx!\")",
            ),
            (502, "", "answers HTTP 502 Bad Gateway (text/html)"),
        ] {
            let unfit = told(status, &html, body);
            assert!(unfit.text.contains(expected), "{}", unfit.text);
            assert_eq!(unfit.is_passing, status == 502);
        }
        let json = told(200, &[(CONTENT_TYPE, "application/json")], "{\"a\": 1}");
        assert!(json.text.contains("newNonce"), "{}", json.text);
        assert_eq!(
            told(404, &[], "").text,
            "the directory answers HTTP 404 Not Found"
        );
        let long = told(200, &[], &"a\u{7}b ".repeat(100)).text;
        assert!(
            long.contains("a b a b") && long.ends_with("...\""),
            "{long}"
        );
    }

    #[test]
    fn the_remedy_names_the_setting() {
        let mut config = CertificateAuthority::lets_encrypt();
        config.spelling.directory = "`--acme-directory`".to_owned();
        config.spelling.ca_certificate = "`--acme-ca-certificate`".to_owned();
        let advice = told(404, &[], "").advice(&config).unwrap();
        assert!(advice.contains("check `--acme-directory`"), "{advice}");
        let moved = told(308, &[(LOCATION, "https://ca.test/dir")], "");
        let advice = moved.advice(&config).unwrap();
        assert!(
            advice.contains("may have to be https://ca.test/dir"),
            "{advice}"
        );
        assert_eq!(told(503, &[], "").advice(&config), None);
        let cause = "invalid peer certificate: UnknownIssuer";
        let advice = distrust(cause, &config);
        assert!(advice.contains("set `--acme-ca-certificate`"), "{advice}");
        config.ca_certificate = Some("/etc/root.pem".into());
        for (cause, expected) in [
            (cause, "/etc/root.pem has no root"),
            (
                "Other(OtherError(CaUsedAsEndEntity))",
                "has to be in /etc/root.pem",
            ),
            (
                "certificate not valid for name \"a\"",
                "check `--acme-directory`",
            ),
            ("certificate expired: verification time 1", "clock"),
        ] {
            let advice = distrust(cause, &config);
            assert!(advice.contains(expected), "{advice}");
            assert!(!advice.contains("set `--acme-ca-certificate`"), "{advice}");
        }
    }
}
