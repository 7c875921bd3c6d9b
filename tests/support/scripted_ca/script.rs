//! What the scripted authority does wrong, settable while it runs.

use std::time::Duration;

use axum::body::Body;
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};

use super::problem::{Problem, problem};
use super::revocation::Revocation;

/// Where everything is once it has moved.
pub(super) const MOVED: &str = "/moved";

/// What a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Directory,
    NewNonce,
    NewAccount,
    /// The account's own URL.
    Account,
    NewOrder,
    Order,
    Authorization,
    Challenge,
    Finalize,
    Certificate,
    Revoke,
    RenewalInfo,
    /// A revocation list or an OCSP responder.
    Revocation,
    Other,
}

impl Kind {
    pub(super) fn of(path: &str) -> Kind {
        let path = path.strip_prefix(MOVED).unwrap_or(path);
        match path.split('/').nth(1).unwrap_or_default() {
            "directory" => Kind::Directory,
            "new-nonce" => Kind::NewNonce,
            "new-account" => Kind::NewAccount,
            "account" => Kind::Account,
            "new-order" => Kind::NewOrder,
            "order" => Kind::Order,
            "authorization" => Kind::Authorization,
            "challenge" => Kind::Challenge,
            "finalize" => Kind::Finalize,
            "certificate" => Kind::Certificate,
            "revoke" => Kind::Revoke,
            "renewal-info" => Kind::RenewalInfo,
            "crl" | "ocsp" => Kind::Revocation,
            _ => Kind::Other,
        }
    }

    /// Whether the directory says where it is, so that it can move.
    pub(super) fn is_in_the_directory(self) -> bool {
        let resources = [Kind::NewNonce, Kind::NewAccount, Kind::NewOrder];
        resources.contains(&self) || matches!(self, Kind::Revoke | Kind::RenewalInfo)
    }
}

pub struct Script {
    /// The first that fits a request decides; `None` fits all.
    pub faults: Vec<(Option<Kind>, Fault)>,
    /// How many of the next signed requests are refused with `badNonce`.
    pub bad_nonces: u32,
    pub validation: Validation,
    /// Challenges of these types are invalid at once, however others end.
    pub failing: Vec<&'static str>,
    /// What the directory lists; none: it lists nothing.
    pub profiles: Vec<&'static str>,
    /// Certificates come with a link to an alternate chain, which answers 404.
    pub missing_alternate: bool,
    /// The types of challenges, as authorizations list them.
    pub challenges: Vec<&'static str>,
    /// A finalised order never gets its certificate.
    pub stuck_in_processing: bool,
    pub certificate: CertificateFault,
    /// Of certificates issued from now on.
    pub lifetime: Duration,
    /// By so much the authority's time is before this host's, by its certificates and, if that is
    /// told, by the date of its answers.
    pub behind: Duration,
    pub behind_is_told: bool,
    /// `None`: the directory does not offer renewal information.
    pub renewal_info: Option<RenewalInfoAnswer>,
    pub revocation: Revocation,
    /// Orders with `replaces` are refused so.
    pub refuse_replaces: Option<Problem>,
    /// What the directory names is elsewhere; where it was before, everything answers 404.
    pub moved: bool,
}

impl Script {
    pub fn break_everything(&mut self, fault: Fault) {
        self.faults = vec![(None, fault)];
    }

    pub fn break_one(&mut self, kind: Kind, fault: Fault) {
        self.faults.push((Some(kind), fault));
    }

    pub fn behave(&mut self) {
        self.faults.clear();
    }

    pub(super) fn fault_for(&self, kind: Kind) -> Option<Fault> {
        let fits = |only: &Option<Kind>| only.is_none_or(|only| only == kind);
        let found = self.faults.iter().find(|(only, _)| fits(only));
        found.map(|(_, fault)| fault.clone())
    }
}

#[derive(Clone, Debug)]
pub enum Fault {
    /// What a load balancer says when there is nobody behind it.
    Html500,
    /// 200, by whoever stands in for the CA.
    Page,
    /// 200, and not what was asked for.
    Garbage,
    /// Never answers.
    Hang,
    /// 429 `rateLimited`.
    TooMany {
        retry_after: Option<String>,
    },
    /// 503, as a load balancer says it.
    Unavailable {
        retry_after: Option<String>,
    },
    /// 404, and not a word more.
    Missing,
    Refuse(Problem),
}

impl Fault {
    pub(super) async fn respond(self) -> Response {
        match self {
            Fault::Html500 => {
                let page = "<html><h1>500 Internal Server Error</h1></html>";
                let kind = [(header::CONTENT_TYPE, "text/html")];
                (StatusCode::INTERNAL_SERVER_ERROR, kind, page).into_response()
            }
            Fault::Page => Html("<html><h1>Maintenance</h1></html>").into_response(),
            Fault::Garbage => {
                let kind = [(header::CONTENT_TYPE, "application/json")];
                (kind, "{\"newNonce\": [42, \u{1}").into_response()
            }
            Fault::Hang => std::future::pending::<Response<Body>>().await,
            Fault::TooMany { retry_after } => {
                let response = problem(429, "rateLimited", "too many of everything");
                later(response.into_response(), retry_after)
            }
            Fault::Unavailable { retry_after } => {
                let page = "<html><h1>503 Service Unavailable</h1></html>";
                let kind = [(header::CONTENT_TYPE, "text/html")];
                let response = (StatusCode::SERVICE_UNAVAILABLE, kind, page);
                later(response.into_response(), retry_after)
            }
            Fault::Missing => StatusCode::NOT_FOUND.into_response(),
            Fault::Refuse(problem) => problem.into_response(),
        }
    }
}

fn later(mut response: Response, retry_after: Option<String>) -> Response {
    if let Some(value) = retry_after {
        let value = value.parse().expect("a header value");
        response.headers_mut().insert(header::RETRY_AFTER, value);
    }
    response
}

/// How a challenge ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validation {
    /// Valid at once, without looking.
    Always,
    /// By connecting to the proxy as RFC 8555 section 8.3 and RFC 8737 say.
    Real,
    /// Never ends.
    PendingForEver,
    /// Invalid at once.
    Never,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CertificateFault {
    None,
    /// For a key that nobody has.
    OtherKey,
    /// For names that nobody ordered.
    OtherNames,
    /// The PEM ends in the middle of the leaf.
    Truncated,
    /// The PEM ends in the middle of the intermediate.
    CutShort,
    /// With the intermediate of another authority.
    WrongChain,
}

/// The answer about every certificate.
#[derive(Clone, Debug)]
pub struct RenewalInfoAnswer {
    /// JSON or not.
    pub body: String,
    pub retry_after: Option<String>,
}

impl RenewalInfoAnswer {
    /// A well-formed one (RFC 9773 section 4.2) with two RFC 3339 times.
    pub fn window(start: &str, end: &str) -> RenewalInfoAnswer {
        let window = serde_json::json!({"suggestedWindow": {"start": start, "end": end}});
        RenewalInfoAnswer {
            body: window.to_string(),
            retry_after: Some("21600".to_owned()),
        }
    }
}
