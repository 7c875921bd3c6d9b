//! The answers that are ours: short, plain, and without a word about what is behind or inside.

use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;
use http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HeaderName, HeaderValue, LOCATION,
};
use pingora::Result;
use pingora::http::ResponseHeader;
use pingora::proxy::Session;

use super::decision::Refusal;

/// RFC 9110 section 15.5.6 wants a 405 to name what would be allowed.
const ALLOWED_METHODS: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";

/// A whole response.
#[derive(Debug)]
pub struct Answer {
    status: StatusCode,
    header: Option<(HeaderName, HeaderValue)>,
    body: Bytes,
}

impl Answer {
    /// The text of a `respond:` upstream.
    pub fn fixed(text: &Bytes) -> Answer {
        Answer {
            status: StatusCode::OK,
            header: None,
            body: text.clone(),
        }
    }

    /// RFC 8555 section 8.3. The next one for the same token may be another.
    pub fn key_authorization(text: Arc<str>) -> Answer {
        Answer {
            status: StatusCode::OK,
            header: Some((CACHE_CONTROL, HeaderValue::from_static("no-store"))),
            body: Bytes::copy_from_slice(text.as_bytes()),
        }
    }

    /// 308: also for what is not GET, and for good.
    pub fn redirect(location: HeaderValue) -> Answer {
        Answer {
            status: StatusCode::PERMANENT_REDIRECT,
            header: Some((LOCATION, location)),
            body: Bytes::from_static(b"this site is served over https\n"),
        }
    }

    pub fn refusal(refusal: Refusal) -> Answer {
        let body = Bytes::from(format!("{refusal}\n"));
        let header = match refusal {
            Refusal::Method => Some((ALLOW, HeaderValue::from_static(ALLOWED_METHODS))),
            _ => None,
        };
        Answer {
            status: refusal.status(),
            header,
            body,
        }
    }

    /// The body says no more than the status does.
    pub fn failure(status: StatusCode) -> Answer {
        let reason = status.canonical_reason().unwrap_or("error");
        Answer {
            status,
            header: None,
            body: Bytes::from(format!("{} {reason}\n", status.as_u16())),
        }
    }

    fn response_header(&self) -> Result<ResponseHeader> {
        let mut header = ResponseHeader::build(self.status, Some(6))?;
        header.insert_header(
            CONTENT_TYPE,
            HeaderValue::from_static("text/plain; charset=utf-8"),
        )?;
        header.insert_header(CONTENT_LENGTH, HeaderValue::from(self.body.len()))?;
        if self.status.is_client_error() || self.status.is_server_error() {
            header.insert_header(CACHE_CONTROL, HeaderValue::from_static("no-store"))?;
        }
        if let Some((name, value)) = &self.header {
            header.insert_header(name.clone(), value.clone())?;
        }
        Ok(header)
    }

    /// Sends it; to HEAD without its body. The connection stays usable, unless the client waits
    /// for a word before it sends its body (RFC 9110 section 10.1.1): then it would be unclear
    /// what comes next.
    pub async fn send(self, session: &mut Session) -> Result<()> {
        let header = self.response_header()?;
        let body_may_not_come = session.req_header().headers.contains_key(EXPECT);
        session.set_close_on_response_before_downstream_finish(body_may_not_come);
        let body = match session.req_header().method {
            http::Method::HEAD => None,
            _ => Some(self.body).filter(|body| !body.is_empty()),
        };
        let sent = async {
            session
                .write_response_header(Box::new(header), body.is_none())
                .await?;
            session.write_response_body(body, true).await
        };
        sent.await.map_err(|error| error.into_down())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header<'a>(header: &'a ResponseHeader, name: &str) -> Option<&'a str> {
        header
            .headers
            .get(name)
            .map(|value| value.to_str().unwrap())
    }

    #[test]
    fn errors_are_short_plain_and_not_stored() {
        for answer in [
            Answer::failure(StatusCode::BAD_GATEWAY),
            Answer::refusal(Refusal::UnknownHost),
        ] {
            let response = answer.response_header().unwrap();
            assert_eq!(
                header(&response, "content-type"),
                Some("text/plain; charset=utf-8")
            );
            assert_eq!(header(&response, "cache-control"), Some("no-store"));
            let length = answer.body.len().to_string();
            assert_eq!(header(&response, "content-length"), Some(&*length));
            assert_eq!(header(&response, "server"), None);
            assert!(answer.body.len() < 80 && answer.body.ends_with(b"\n"));
        }
    }

    #[test]
    fn a_refused_method_names_the_others() {
        let response = Answer::refusal(Refusal::Method).response_header().unwrap();
        assert_eq!(response.status, 405);
        assert_eq!(header(&response, "allow"), Some(ALLOWED_METHODS));
    }

    #[test]
    fn redirects_may_be_stored() {
        let response = Answer::redirect(HeaderValue::from_static("https://a.test/"))
            .response_header()
            .unwrap();
        assert_eq!(response.status, 308);
        assert_eq!(header(&response, "location"), Some("https://a.test/"));
        assert_eq!(header(&response, "cache-control"), None);
    }
}
