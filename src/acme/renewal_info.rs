//! ACME renewal information (RFC 9773): the CA's own word on when to renew. It asks and reads
//! leniently; what follows from the answer is [`renewal`](super::renewal)'s business.

use instant_acme::CertificateIdentifier;
use rustls_pki_types::CertificateDer;
use serde::Deserialize;
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

use super::error::{AcmeError, Class, classify};
use super::http::JobHttp;
use super::renewal::SuggestedWindow;

/// RFC 9773 section 4.3.2: a CA that asks for more or less often is not believed.
const MIN_WAIT: Duration = Duration::minutes(1);
const MAX_WAIT: Duration = Duration::days(1);
/// After an answer that says nothing useful (RFC 9773 section 4.3.3).
const DEFAULT_WAIT: Duration = Duration::hours(6);

/// A useful answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub window: SuggestedWindow,
    pub explanation_url: Option<String>,
    pub retry_after: Option<OffsetDateTime>,
}

/// The name of a certificate in renewal information and in `replaces` (RFC 9773 section 4.1).
/// `None`: it has no authority key identifier, and so no such name.
pub fn certificate_id(leaf_der: &[u8]) -> Option<CertificateIdentifier<'static>> {
    let der = CertificateDer::from(leaf_der);
    CertificateIdentifier::try_from(&der).ok()
}

/// Asks. `base`: the directory's `renewalInfo`.
pub async fn fetch(http: &JobHttp, base: &str, certificate_id: &str) -> Result<Answer, AcmeError> {
    let what = "renewal information";
    let url = format!("{}/{certificate_id}", base.trim_end_matches('/'));
    let (status, body) = http.get(&url).await.map_err(|error| AcmeError {
        unreachable: true,
        ..AcmeError::new(Class::Retryable, what, error.to_string())
    })?;
    let note = http.last();
    if !status.is_success() {
        return Err(AcmeError {
            unreachable: status.is_server_error(),
            retry_after: note.retry_after,
            ..AcmeError::new(
                classify(None, Some(status.as_u16())),
                what,
                format!("the CA answered HTTP {status}"),
            )
        });
    }
    parse(&body, note.retry_after).map_err(|cause| AcmeError {
        retry_after: note.retry_after,
        ..AcmeError::new(Class::Retryable, what, cause)
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    suggested_window: DocumentWindow,
    #[serde(rename = "explanationURL", default)]
    explanation_url: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct DocumentWindow {
    start: String,
    end: String,
}

/// Reads an answer (RFC 9773 section 4.2).
fn parse(body: &[u8], retry_after: Option<OffsetDateTime>) -> Result<Answer, String> {
    let document: Document = serde_json::from_slice(body)
        .map_err(|error| format!("the answer is no renewal information ({error})"))?;
    let instant = |text: &str| {
        OffsetDateTime::parse(text.trim(), &Rfc3339)
            .map_err(|error| format!("{text:?} in the suggested window is no time ({error})"))
    };
    let start = instant(&document.suggested_window.start)?;
    let end = instant(&document.suggested_window.end)?;
    let window = SuggestedWindow::new(start, end)
        .ok_or_else(|| "the suggested window does not end after it starts".to_owned())?;
    Ok(Answer {
        window,
        explanation_url: document
            .explanation_url
            .and_then(|url| url.as_str().map(str::to_owned)),
        retry_after,
    })
}

/// When to ask again. `failures`: in a row, this one included.
pub fn next_fetch(
    now: OffsetDateTime,
    result: Result<&Answer, &AcmeError>,
    failures: u32,
) -> OffsetDateTime {
    let asked = |at: Option<OffsetDateTime>| at.map(|at| (at - now).clamp(MIN_WAIT, MAX_WAIT));
    let wait = match result {
        Ok(answer) => asked(answer.retry_after).unwrap_or(DEFAULT_WAIT),
        Err(error) if error.unreachable => {
            let doubled = MIN_WAIT * (1_i32 << failures.saturating_sub(1).min(16));
            let backoff = doubled.min(DEFAULT_WAIT);
            asked(error.retry_after).map_or(backoff, |asked| asked.max(backoff))
        }
        Err(error) => {
            asked(error.retry_after).map_or(DEFAULT_WAIT, |asked| asked.max(DEFAULT_WAIT))
        }
    };
    now + wait
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    const NOW: OffsetDateTime = datetime!(2026-11-23 6:00 UTC);

    #[test]
    fn answers_are_read_leniently() {
        let body = br#"{"suggestedWindow": {"start": "2026-12-01T00:00:00Z",
            "end": " 2026-12-02T01:00:00.25+01:00"}, "explanationURL": "https://ca.test/why",
            "more": 1}"#;
        let answer = parse(body, Some(NOW)).unwrap();
        assert_eq!(answer.window.start(), datetime!(2026-12-01 0:00 UTC));
        assert_eq!(answer.window.end(), datetime!(2026-12-02 0:00:00.25 UTC));
        assert_eq!(
            answer.explanation_url.as_deref(),
            Some("https://ca.test/why")
        );
        let odd = br#"{"suggestedWindow": {"start": "2026-12-01T00:00:00Z",
            "end": "2026-12-02T00:00:00Z"}, "explanationURL": 7}"#;
        assert_eq!(parse(odd, None).unwrap().explanation_url, None);
    }

    #[test]
    fn what_is_no_answer() {
        for body in [
            "",
            "<html>",
            "{}",
            r#"{"suggestedWindow": {}}"#,
            r#"{"suggestedWindow": {"start": "soon", "end": "2026-12-02T00:00:00Z"}}"#,
            r#"{"suggestedWindow": {"start": "2026-12-02T00:00:00Z", "end": "2026-12-02T00:00:00Z"}}"#,
            r#"{"suggestedWindow": {"start": "2026-12-02T00:00:00Z", "end": "2026-12-01T00:00:00Z"}}"#,
        ] {
            assert!(parse(body.as_bytes(), None).is_err(), "{body}");
        }
    }

    #[test]
    fn when_to_ask_again() {
        let answer = |wait: Option<Duration>| Answer {
            window: SuggestedWindow::new(NOW, NOW + Duration::DAY).unwrap(),
            explanation_url: None,
            retry_after: wait.map(|wait| NOW + wait),
        };
        for (asked, wait) in [
            (Some(Duration::hours(3)), Duration::hours(3)),
            (Some(Duration::ZERO), Duration::minutes(1)),
            (Some(Duration::hours(-3)), Duration::minutes(1)),
            (Some(Duration::days(30)), Duration::days(1)),
            (None, Duration::hours(6)),
        ] {
            assert_eq!(
                next_fetch(NOW, Ok(&answer(asked)), 0),
                NOW + wait,
                "{asked:?}"
            );
        }
        let mut error = AcmeError::new(Class::Retryable, "x", "y");
        assert_eq!(next_fetch(NOW, Err(&error), 1), NOW + Duration::hours(6));
        error.unreachable = true;
        for (failures, minutes) in [(1, 1), (2, 2), (5, 16), (10, 360), (99, 360)] {
            let at = NOW + Duration::minutes(minutes);
            assert_eq!(next_fetch(NOW, Err(&error), failures), at, "{failures}");
        }
        error.retry_after = Some(NOW + Duration::minutes(30));
        assert_eq!(next_fetch(NOW, Err(&error), 1), NOW + Duration::minutes(30));
    }

    #[test]
    fn the_identifier_is_that_of_the_rfc() {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut ca = rcgen::CertificateParams::default();
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let aki =
            b"\x69\x88\x5b\x6b\x87\x46\x40\x41\xe1\xb3\x7b\x84\x7b\xa0\xae\x2c\xde\x01\xc8\xd4";
        ca.key_identifier_method = rcgen::KeyIdMethod::PreSpecified(aki.to_vec());
        let issuer = rcgen::Issuer::new(ca, key);
        let mut params = rcgen::CertificateParams::new(vec!["example.com".to_owned()]).unwrap();
        params.serial_number = Some(vec![0x87, 0x65, 0x43, 0x21].into());
        params.use_authority_key_identifier_extension = true;
        let leaf = params
            .signed_by(&rcgen::KeyPair::generate().unwrap(), &issuer)
            .unwrap();
        let id = certificate_id(leaf.der()).unwrap().to_string();
        assert_eq!(id, "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE");
        let bare = rcgen::CertificateParams::new(vec!["a".to_owned()]).unwrap();
        let bare = bare
            .self_signed(&rcgen::KeyPair::generate().unwrap())
            .unwrap();
        assert!(certificate_id(bare.der()).is_none());
    }
}
