//! The answers that are ours: short, plain, and without a word about what is behind or inside.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, StatusCode};

use super::access::Denial;
use super::decision::Refusal;
use crate::clock;
use crate::message::ResponseHead;

/// RFC 9110 section 15.5.6 wants a 405 to name what would be allowed.
const ALLOWED_METHODS: &[u8] = b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";

/// A whole response.
#[derive(Debug)]
pub struct Answer {
    pub head: ResponseHead,
    pub body: Bytes,
}

impl Answer {
    fn new(status: StatusCode, body: Bytes) -> Answer {
        let mut head = ResponseHead::new(status);
        let fields = &mut head.fields;
        let date = httpdate::fmt_http_date(clock::now().into());
        fields.push(b"Date", date.as_bytes());
        fields.push(b"Content-Type", b"text/plain; charset=utf-8");
        fields.push(b"Content-Length", body.len().to_string().as_bytes());
        if status.is_client_error() || status.is_server_error() {
            fields.push(b"Cache-Control", b"no-store");
        }
        Answer { head, body }
    }

    /// The text of a `respond:` upstream.
    pub fn fixed(text: &Bytes) -> Answer {
        Answer::new(StatusCode::OK, text.clone())
    }

    /// RFC 8555 section 8.3. The next one for the same token may be another.
    pub fn key_authorization(text: Arc<str>) -> Answer {
        let body = Bytes::copy_from_slice(text.as_bytes());
        let mut answer = Answer::new(StatusCode::OK, body);
        answer.head.fields.push(b"Cache-Control", b"no-store");
        answer
    }

    /// 308: also for what is not GET, and for good.
    pub fn redirect(location: &HeaderValue) -> Answer {
        let body = Bytes::from_static(b"this site is served over https\n");
        let mut answer = Answer::new(StatusCode::PERMANENT_REDIRECT, body);
        answer.head.fields.push(b"Location", location.as_bytes());
        answer
    }

    /// What a route answers.
    pub fn respond(status: StatusCode, body: Bytes) -> Answer {
        Answer::new(status, body)
    }

    /// Where a route sends its clients.
    pub fn elsewhere(status: StatusCode, location: &[u8]) -> Answer {
        let mut answer = Answer::failure(status);
        answer.head.fields.push(b"Location", location);
        answer
    }

    /// A page in place of the text of an error.
    pub fn with_page(mut self, html: &str) -> Answer {
        let length = html.len().to_string();
        let fields = &mut self.head.fields;
        fields.set(b"Content-Type", b"text/html; charset=utf-8");
        fields.set(b"Content-Length", length.as_bytes());
        self.body = Bytes::copy_from_slice(html.as_bytes());
        self
    }

    /// Why a request is not let in.
    pub fn denial(denial: &Denial) -> Answer {
        match denial {
            Denial::Address => Answer::failure(StatusCode::FORBIDDEN),
            Denial::TooLarge => Answer::failure(StatusCode::PAYLOAD_TOO_LARGE),
            Denial::TooMany { retry_after } => {
                let mut answer = Answer::failure(StatusCode::TOO_MANY_REQUESTS);
                let seconds = retry_after.to_string();
                answer.head.fields.push(b"Retry-After", seconds.as_bytes());
                answer
            }
            Denial::Login { realm } => {
                let mut answer = Answer::failure(StatusCode::UNAUTHORIZED);
                let challenge = format!("Basic realm=\"{realm}\", charset=\"UTF-8\"");
                let fields = &mut answer.head.fields;
                fields.push(b"WWW-Authenticate", challenge.as_bytes());
                answer
            }
        }
    }

    /// Says in how many seconds to ask again.
    pub fn with_retry_after(mut self, seconds: u64) -> Answer {
        let seconds = seconds.to_string();
        self.head.fields.push(b"Retry-After", seconds.as_bytes());
        self
    }

    pub fn refusal(refusal: Refusal) -> Answer {
        let body = Bytes::from(format!("{refusal}\n"));
        let mut answer = Answer::new(refusal.status(), body);
        if refusal == Refusal::Method {
            answer.head.fields.push(b"Allow", ALLOWED_METHODS);
        }
        answer
    }

    /// RFC 9110 section 15.5.6: what would be allowed is said.
    pub fn not_allowed(methods: &[u8]) -> Answer {
        let mut answer = Answer::failure(StatusCode::METHOD_NOT_ALLOWED);
        answer.head.fields.push(b"Allow", methods);
        answer
    }

    /// The body says no more than the status does.
    pub fn failure(status: StatusCode) -> Answer {
        let reason = status.canonical_reason().unwrap_or("error");
        Answer::new(status, format!("{} {reason}\n", status.as_u16()).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header<'a>(answer: &'a Answer, name: &str) -> Option<&'a str> {
        let mut fields = answer.head.fields.iter();
        let field = fields.find(|field| field.name.eq_ignore_ascii_case(name.as_bytes()))?;
        Some(std::str::from_utf8(field.value).unwrap())
    }

    #[test]
    fn errors_are_short_plain_and_not_stored() {
        for answer in [
            Answer::failure(StatusCode::BAD_GATEWAY),
            Answer::refusal(Refusal::UnknownHost),
        ] {
            let plain = "text/plain; charset=utf-8";
            assert_eq!(header(&answer, "content-type"), Some(plain));
            assert_eq!(header(&answer, "cache-control"), Some("no-store"));
            let length = answer.body.len().to_string();
            assert_eq!(header(&answer, "content-length"), Some(&*length));
            assert_eq!(header(&answer, "server"), None);
            assert!(answer.body.len() < 80 && answer.body.ends_with(b"\n"));
        }
    }

    #[test]
    fn a_refused_method_names_the_others() {
        let answer = Answer::refusal(Refusal::Method);
        assert_eq!(answer.head.status, 405);
        let allowed = std::str::from_utf8(ALLOWED_METHODS).unwrap();
        assert_eq!(header(&answer, "allow"), Some(allowed));
    }

    #[test]
    fn redirects_may_be_stored() {
        let answer = Answer::redirect(&HeaderValue::from_static("https://a.test/"));
        assert_eq!(answer.head.status, 308);
        assert_eq!(header(&answer, "location"), Some("https://a.test/"));
        assert_eq!(header(&answer, "cache-control"), None);
    }
}
