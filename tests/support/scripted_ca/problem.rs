//! Saying no (RFC 7807, RFC 8555 section 6.7).

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

/// A problem document of an ACME kind.
#[derive(Clone, Debug)]
pub struct Problem {
    pub status: u16,
    /// Without `urn:ietf:params:acme:error:`.
    pub kind: &'static str,
    pub detail: String,
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = json!({
            "type": format!("urn:ietf:params:acme:error:{}", self.kind),
            "detail": self.detail,
            "status": self.status,
        });
        let status = StatusCode::from_u16(self.status).expect("a status");
        let media = [(header::CONTENT_TYPE, "application/problem+json")];
        (status, media, body.to_string()).into_response()
    }
}

pub fn problem(status: u16, kind: &'static str, detail: impl Into<String>) -> Problem {
    let detail = detail.into();
    Problem {
        status,
        kind,
        detail,
    }
}

pub fn malformed(detail: impl Into<String>) -> Problem {
    problem(400, "malformed", detail)
}
