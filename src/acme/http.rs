//! HTTPS towards a CA: bounded in time and size, without redirects, trusting the system's roots
//! and those the configuration adds. It remembers what `instant-acme` drops: status, `Retry-After`
//! and `Link` of the last response, and the terms of `dns-persist-01`. It decides nothing.

use std::collections::HashMap;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration as StdDuration, Instant, SystemTime};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, DATE, HeaderMap, HeaderValue, LINK, RETRY_AFTER};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use instant_acme::{BodyWrapper, BytesResponse, HttpClient};
use time::{Duration, OffsetDateTime};

use super::dns::standing::Terms;
use super::error::{AcmeError, Class, Subproblem, classify, gravest};
use super::jws::AccountKey;
use super::patience;
use crate::clock;
use crate::http_client::{self, causes};

/// One exchange with a CA, from connecting to the last byte.
const REQUEST_TIMEOUT: StdDuration = StdDuration::from_secs(30);
const CONNECT_TIMEOUT: StdDuration = StdDuration::from_secs(10);
/// A directory, an order or a chain has some kilobytes.
const MAX_BODY_BYTES: usize = 1 << 20;
/// A nonce kept longer than this is likely to be refused.
const NONCE_LIFETIME: StdDuration = StdDuration::from_secs(60);
/// Calls of ours around `instant-acme`'s own three attempts at a refused nonce.
pub const NONCE_ATTEMPTS: u32 = 10;

/// What rustls says before the reason why it does not trust a server.
const DISTRUST: &str = "invalid peer certificate";
const REPLAY_NONCE: &str = "replay-nonce";
const PROBLEM_PREFIX: &str = "urn:ietf:params:acme:error:";

/// Calls until the nonce is accepted: `instant-acme` gives up after three, which is not enough
/// where a CA refuses many.
macro_rules! with_nonce {
    ($call:expr) => {{
        let mut attempt = 1;
        loop {
            match $call.await {
                Err(error)
                    if $crate::acme::http::is_bad_nonce(&error)
                        && attempt < $crate::acme::http::NONCE_ATTEMPTS =>
                {
                    attempt += 1;
                }
                result => break result,
            }
        }
    }};
}
pub(super) use with_nonce;

/// Whether the CA refused the nonce (RFC 8555 section 6.5).
pub fn is_bad_nonce(error: &instant_acme::Error) -> bool {
    matches!(error, instant_acme::Error::Api(problem)
        if problem.r#type.as_deref().and_then(|it| it.strip_prefix(PROBLEM_PREFIX))
            == Some("badNonce"))
}

/// Why there was no response.
#[derive(Clone, Debug, thiserror::Error)]
pub enum HttpError {
    #[error("cannot reach {url}: {cause}")]
    Unreachable { url: String, cause: String },
    #[error("{url} answered more than {limit} bytes")]
    TooLarge { url: String, limit: usize },
}

impl HttpError {
    /// Whether the server answered, with a certificate that nobody here trusts.
    pub fn is_distrust(&self) -> bool {
        matches!(self, HttpError::Unreachable { cause, .. } if cause.contains(DISTRUST))
    }
}

/// The connections to one CA. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Transport {
    client: reqwest::Client,
    nonces: Arc<Mutex<Vec<(String, Instant)>>>,
    /// By how much the CA's clock is ahead of ours, as its last response said.
    clock_offset: Arc<Mutex<Option<Duration>>>,
}

impl Transport {
    /// Reads the trust anchors: blocks on the disk.
    pub fn new(extra_roots: Option<&Path>) -> Result<Transport, String> {
        let roots = match extra_roots {
            Some(path) => read_roots(path)?,
            None => Vec::new(),
        };
        let client = builder().tls_certs_merge(roots.clone()).build();
        let client = match client {
            // A host without any roots of its own, as minimal containers are.
            Err(_) if !roots.is_empty() => builder().tls_certs_only(roots).build(),
            other => other,
        }
        .map_err(|error| {
            let cause = causes(&error);
            format!("cannot prepare HTTPS: {cause}; install the system's CA certificates or set `ca_certificate`")
        })?;
        Ok(Transport {
            client,
            nonces: Arc::default(),
            clock_offset: Arc::default(),
        })
    }

    /// By how much the CA's clock is ahead of ours; `None`: it has not told.
    pub fn clock_offset(&self) -> Option<Duration> {
        *lock(&self.clock_offset)
    }

    fn compare_clocks(&self, headers: &HeaderMap, now: OffsetDateTime) {
        let date = headers.get(DATE).and_then(|date| date.to_str().ok());
        let date = date.and_then(|date| httpdate::parse_http_date(date).ok());
        if let Some(date) = date {
            *lock(&self.clock_offset) = Some(OffsetDateTime::from(date) - now);
        }
    }

    /// Keeps a nonce for the next request that needs one.
    fn keep_nonce(&self, headers: &HeaderMap) {
        if let Some(nonce) = headers
            .get(REPLAY_NONCE)
            .and_then(|nonce| nonce.to_str().ok())
        {
            lock(&self.nonces).push((nonce.to_owned(), Instant::now()));
        }
    }

    fn take_nonce(&self) -> Option<String> {
        let mut nonces = lock(&self.nonces);
        nonces.retain(|(_, at)| at.elapsed() < NONCE_LIFETIME);
        nonces.pop().map(|(nonce, _)| nonce)
    }
}

fn builder() -> reqwest::ClientBuilder {
    http_client::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(patience::up_to(REQUEST_TIMEOUT))
}

fn read_roots(path: &Path) -> Result<Vec<reqwest::Certificate>, String> {
    let pem = std::fs::read(path)
        .map_err(|error| format!("cannot read `ca_certificate` {}: {error}", path.display()))?;
    let roots = reqwest::Certificate::from_pem_bundle(&pem).map_err(|error| {
        format!(
            "`ca_certificate` {} is not PEM: {}",
            path.display(),
            causes(&error)
        )
    })?;
    if roots.is_empty() {
        return Err(format!(
            "`ca_certificate` {} has no certificate",
            path.display()
        ));
    }
    Ok(roots)
}

/// What the last response said beside its body.
#[derive(Clone, Debug, Default)]
pub struct Note {
    pub status: Option<u16>,
    pub retry_after: Option<OffsetDateTime>,
    /// `Link` headers, as they are (RFC 8288).
    pub links: Vec<String>,
}

/// The HTTP client of one job: shares connections with others, remembers for itself. Cheap to
/// clone; clones remember together.
#[derive(Clone)]
pub struct JobHttp {
    transport: Transport,
    directory: Option<Arc<(String, Bytes)>>,
    new_nonce: Option<Arc<str>>,
    /// Signs again what `instant-acme` has signed.
    signer: Option<Arc<AccountKey>>,
    last: Arc<Mutex<Note>>,
    /// What challenges say of the record that they want, by their URLs.
    terms: Arc<Mutex<HashMap<String, Terms>>>,
}

impl JobHttp {
    pub fn new(transport: Transport) -> JobHttp {
        JobHttp {
            transport,
            directory: None,
            new_nonce: None,
            signer: None,
            last: Arc::default(),
            terms: Arc::default(),
        }
    }

    /// Answers requests for the directory from memory, and those for a nonce too while one is
    /// left over.
    pub fn with_directory(mut self, url: &str, body: Bytes, new_nonce: &str) -> JobHttp {
        self.directory = Some(Arc::new((url.to_owned(), body)));
        self.new_nonce = Some(new_nonce.into());
        self
    }

    /// `instant-acme` signs with ES256 alone: what it has signed with another key is signed again
    /// with the account's own on its way out.
    pub(super) fn signing_again(mut self, key: AccountKey) -> JobHttp {
        self.signer = Some(Arc::new(key));
        self
    }

    /// The last response, or nothing where the last request got none.
    pub fn last(&self) -> Note {
        lock(&self.last).clone()
    }

    /// What the dns-persist-01 challenge with this URL has said of its record.
    pub(super) fn terms_of(&self, challenge: &str) -> Option<Terms> {
        lock(&self.terms).get(challenge).cloned()
    }

    /// A plain GET.
    pub async fn get(&self, url: &str) -> Result<(StatusCode, Bytes), HttpError> {
        let response = self
            .send(Method::GET, url, HeaderMap::new(), Bytes::new())
            .await?;
        Ok((response.status(), response.into_body()))
    }

    /// A plain GET, with what the answer says of itself.
    pub(super) async fn get_whole(&self, url: &str) -> Result<Response<Bytes>, HttpError> {
        self.send(Method::GET, url, HeaderMap::new(), Bytes::new())
            .await
    }

    /// A plain GET of something larger than ACME's documents.
    pub(super) async fn get_up_to(
        &self,
        url: &str,
        limit: usize,
    ) -> Result<(StatusCode, Bytes), HttpError> {
        let (method, headers) = (Method::GET, HeaderMap::new());
        let answer = self.send_up_to(method, url, headers, Bytes::new(), limit);
        let answer = answer.await?;
        Ok((answer.status(), answer.into_body()))
    }

    /// A plain POST.
    pub(super) async fn post_up_to(
        &self,
        url: &str,
        media_type: &'static str,
        body: Vec<u8>,
        limit: usize,
    ) -> Result<(StatusCode, Bytes), HttpError> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
        let answer = self.send_up_to(Method::POST, url, headers, body.into(), limit);
        let answer = answer.await?;
        Ok((answer.status(), answer.into_body()))
    }

    /// Asks for a nonce and keeps it: shows that the CA is there (RFC 8555 section 7.2).
    pub async fn probe_nonce(&self, url: &str) -> Result<StatusCode, HttpError> {
        let response = self
            .send(Method::HEAD, url, HeaderMap::new(), Bytes::new())
            .await?;
        self.transport.keep_nonce(response.headers());
        Ok(response.status())
    }

    /// Has the CA answer, which tells its time of now.
    pub(super) async fn ask_the_time(&self) -> Result<(), HttpError> {
        if let Some(url) = self.new_nonce.as_deref() {
            self.probe_nonce(url).await?;
        }
        Ok(())
    }

    /// A nonce for one request of ours: one that is left over, or a new one (RFC 8555 section
    /// 7.2).
    pub(super) async fn nonce(&self) -> Result<Option<String>, HttpError> {
        if let Some(nonce) = self.transport.take_nonce() {
            return Ok(Some(nonce));
        }
        if let Some(url) = self.new_nonce.as_deref() {
            self.probe_nonce(url).await?;
        }
        Ok(self.transport.take_nonce())
    }

    /// A signed request (RFC 8555 section 6.2).
    pub(super) async fn post_jose(
        &self,
        url: &str,
        body: String,
    ) -> Result<Response<Bytes>, HttpError> {
        let mut headers = HeaderMap::new();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/jose+json"),
        );
        let answer = self
            .send(Method::POST, url, headers, Bytes::from(body))
            .await?;
        self.transport.keep_nonce(answer.headers());
        Ok(answer)
    }

    async fn send(
        &self,
        method: Method,
        url: &str,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Response<Bytes>, HttpError> {
        self.send_up_to(method, url, headers, body, MAX_BODY_BYTES)
            .await
    }

    async fn send_up_to(
        &self,
        method: Method,
        url: &str,
        headers: HeaderMap,
        body: Bytes,
        limit: usize,
    ) -> Result<Response<Bytes>, HttpError> {
        *lock(&self.last) = Note::default();
        let unreachable = |error: reqwest::Error| HttpError::Unreachable {
            url: url.to_owned(),
            cause: causes(&error.without_url()),
        };
        let request = self
            .transport
            .client
            .request(method, url)
            .headers(headers)
            .body(body);
        let mut response = request.send().await.map_err(unreachable)?;
        *lock(&self.last) = note(&response);
        self.transport
            .compare_clocks(response.headers(), clock::now());
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
            if body.len() + chunk.len() > limit {
                return Err(HttpError::TooLarge {
                    url: url.to_owned(),
                    limit,
                });
            }
            body.extend_from_slice(&chunk);
        }
        let mut answer = Response::new(Bytes::from(body));
        *answer.status_mut() = response.status();
        *answer.headers_mut() = std::mem::take(response.headers_mut());
        Ok(answer)
    }

    /// What is answered without asking: the directory, and a nonce that is left over.
    fn answer_from_memory(&self, method: &Method, url: &str) -> Option<Response<Bytes>> {
        let directory = self.directory.as_ref().filter(|it| it.0 == url);
        if let Some(directory) = directory.filter(|_| method == Method::GET) {
            return Some(Response::new(directory.1.clone()));
        }
        let wants_nonce = method == Method::HEAD && self.new_nonce.as_deref() == Some(url);
        let nonce = wants_nonce.then(|| self.transport.take_nonce()).flatten()?;
        let mut response = Response::new(Bytes::new());
        response
            .headers_mut()
            .insert(REPLAY_NONCE, nonce.parse().ok()?);
        Some(response)
    }

    async fn exchange(
        self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Result<BytesResponse, instant_acme::Error> {
        let (mut parts, body) = request.into_parts();
        let url = parts.uri.to_string();
        if let Some(response) = self.answer_from_memory(&parts.method, &url) {
            return Ok(BytesResponse::from(response.map(Full::new)));
        }
        // The body is in memory already, and its error type has no values.
        let body = body
            .collect()
            .await
            .map(|body| body.to_bytes())
            .unwrap_or_default();
        let signed_again = self.signer.as_ref().and_then(|key| key.sign_again(&body));
        let body = signed_again.unwrap_or(body);
        parts.headers.remove(http::header::USER_AGENT);
        let is_head = parts.method == Method::HEAD;
        let mut response = self
            .send(parts.method, &url, parts.headers, body)
            .await
            .map_err(|error| instant_acme::Error::Other(Box::new(error)))?;
        lock(&self.terms).extend(Terms::in_authorization(response.body()));
        if is_head && response.status() == StatusCode::NO_CONTENT {
            // Some CAs answer newNonce so for HEAD too, and instant-acme wants 200.
            *response.status_mut() = StatusCode::OK;
        }
        Ok(BytesResponse::from(response.map(Full::new)))
    }

    /// An `instant-acme` error with what this client remembers, as an error of ours.
    pub fn explain(&self, what: &str, error: instant_acme::Error) -> AcmeError {
        explain(what, error, &self.last())
    }
}

impl HttpClient for JobHttp {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, instant_acme::Error>> + Send>> {
        Box::pin(self.clone().exchange(request))
    }
}

fn note(response: &reqwest::Response) -> Note {
    Note {
        status: Some(response.status().as_u16()),
        retry_after: response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok())
            .and_then(|text| parse_retry_after(text, clock::now())),
        links: response
            .headers()
            .get_all(LINK)
            .iter()
            .filter_map(|value| value.to_str().ok().map(str::to_owned))
            .collect(),
    }
}

/// `Retry-After`: seconds or an HTTP date (RFC 9110 section 10.2.3).
pub fn parse_retry_after(text: &str, now: OffsetDateTime) -> Option<OffsetDateTime> {
    let text = text.trim();
    match text.parse::<u32>() {
        Ok(seconds) => Some(now + Duration::seconds(seconds.into())),
        Err(_) => {
            let at: SystemTime = httpdate::parse_http_date(text).ok()?;
            Some(OffsetDateTime::from(at))
        }
    }
}

fn explain(what: &str, error: instant_acme::Error, note: &Note) -> AcmeError {
    let server_error = note.status.is_some_and(|status| status >= 500);
    let mut explained = match error {
        instant_acme::Error::Api(problem) => of_problem(what, &problem, note.status),
        instant_acme::Error::Json(error) => {
            let status = note
                .status
                .map_or("nothing".to_owned(), |status| format!("HTTP {status}"));
            let detail = format!("the CA answered {status} and no ACME document ({error})");
            let class = classify(None, note.status);
            AcmeError {
                unreachable: class != Class::RateLimited,
                ..AcmeError::new(class, what, detail)
            }
        }
        instant_acme::Error::Other(error) => AcmeError {
            unreachable: error.is::<HttpError>(),
            ..AcmeError::new(Class::Retryable, what, error.to_string())
        },
        error => {
            let detail = match note.status {
                Some(status) if status >= 400 => format!("{error} (HTTP {status})"),
                _ => error.to_string(),
            };
            AcmeError::new(classify(None, note.status), what, detail)
        }
    };
    explained.unreachable |= server_error;
    explained.gone = matches!(note.status, Some(404 | 405 | 410));
    explained.retry_after = note
        .retry_after
        .filter(|_| note.status.is_some_and(|it| it >= 400));
    explained
}

/// A problem document (RFC 7807) as an error of ours.
pub fn of_problem(what: &str, problem: &instant_acme::Problem, status: Option<u16>) -> AcmeError {
    let kind = problem.r#type.as_deref().map(short_type);
    let mut error = AcmeError::new(
        classify(kind.as_deref(), problem.status.or(status)),
        what,
        problem
            .detail
            .clone()
            .unwrap_or_else(|| "the CA gives no detail".to_owned()),
    );
    error.problem = kind;
    error.subproblems = problem
        .subproblems
        .iter()
        .map(|sub| Subproblem {
            identifier: sub
                .identifier
                .as_ref()
                .map(|it| it.authorized(false).to_string()),
            problem: sub.r#type.as_deref().map(short_type),
            detail: sub.detail.clone().unwrap_or_default(),
        })
        .collect();
    if error.is("compound") {
        let problems = problem.subproblems.iter();
        let kinds = problems.map(|sub| sub.r#type.as_deref().map(short_type));
        error.class = gravest(kinds.map(|kind| classify(kind.as_deref(), None)));
    }
    if let [only] = error.subproblems.as_slice() {
        error.identifier.clone_from(&only.identifier);
    }
    error
}

fn short_type(urn: &str) -> String {
    urn.strip_prefix(PROBLEM_PREFIX).unwrap_or(urn).to_owned()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind these locks is replaced whole, so a panic cannot have left half of it.
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    const NOW: OffsetDateTime = datetime!(2026-11-23 6:00 UTC);

    #[test]
    fn retry_after_in_both_forms() {
        for (text, expected) in [
            ("120", Some(NOW + Duration::minutes(2))),
            (" 0 ", Some(NOW)),
            (
                "Mon, 23 Nov 2026 07:00:00 GMT",
                Some(datetime!(2026-11-23 7:00 UTC)),
            ),
            ("soon", None),
            ("-1", None),
            ("", None),
        ] {
            assert_eq!(parse_retry_after(text, NOW), expected, "{text:?}");
        }
    }

    fn note(status: u16, retry_after: Option<OffsetDateTime>) -> Note {
        Note {
            status: Some(status),
            retry_after,
            links: Vec::new(),
        }
    }

    fn json_error() -> instant_acme::Error {
        serde_json::from_str::<u8>("<html>").unwrap_err().into()
    }

    #[test]
    fn a_page_instead_of_json_keeps_its_status() {
        let error = explain("order", json_error(), &note(502, Some(NOW)));
        assert!(error.unreachable && error.class == Class::Retryable);
        assert!(error.to_string().contains("HTTP 502"), "{error}");
        assert_eq!(error.retry_after, Some(NOW));
        let error = explain("order", json_error(), &note(429, Some(NOW)));
        assert_eq!(
            (error.class, error.unreachable),
            (Class::RateLimited, false)
        );
    }

    #[test]
    fn problems_keep_what_they_say() {
        let problem = serde_json::from_str(
            r#"{"type": "urn:ietf:params:acme:error:rejectedIdentifier", "detail": "no",
                "subproblems": [{"type": "urn:ietf:params:acme:error:caa", "detail": "CAA",
                    "identifier": {"type": "dns", "value": "a.example"}}]}"#,
        );
        let problem: instant_acme::Problem = problem.unwrap();
        let error = explain("order for a.example", problem.into(), &note(403, None));
        assert_eq!(error.class, Class::Permanent);
        assert!(error.is("rejectedIdentifier"));
        assert_eq!(error.identifier.as_deref(), Some("a.example"));
        assert_eq!(error.subproblems[0].problem.as_deref(), Some("caa"));
    }

    #[test]
    fn no_answer_is_no_fault_of_the_order() {
        let http = HttpError::Unreachable {
            url: "https://ca.test/dir".to_owned(),
            cause: "connection refused".to_owned(),
        };
        let error = explain(
            "order",
            instant_acme::Error::Other(Box::new(http)),
            &Note::default(),
        );
        assert!(error.unreachable);
        assert!(
            error
                .to_string()
                .contains("https://ca.test/dir: connection refused"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn the_directory_and_a_spare_nonce_come_from_memory() {
        let transport = Transport::new(None).unwrap();
        let mut headers = HeaderMap::new();
        headers.insert(REPLAY_NONCE, "spare".parse().unwrap());
        transport.keep_nonce(&headers);
        let (directory, nonce) = ("https://ca.invalid/dir", "https://ca.invalid/nonce");
        let http = JobHttp::new(transport).with_directory(directory, "{}".into(), nonce);
        let get = http.answer_from_memory(&Method::GET, directory).unwrap();
        assert_eq!(get.into_body(), "{}");
        let head = http.answer_from_memory(&Method::HEAD, nonce).unwrap();
        assert_eq!(head.headers()[REPLAY_NONCE], "spare");
        assert!(
            http.answer_from_memory(&Method::HEAD, nonce).is_none(),
            "a nonce is good once"
        );
        assert!(http.answer_from_memory(&Method::POST, directory).is_none());
    }

    #[test]
    fn roots_that_are_none_are_errors() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("root.pem");
        assert!(
            Transport::new(Some(&path))
                .unwrap_err()
                .contains("root.pem")
        );
        std::fs::write(&path, "nothing").unwrap();
        assert!(
            Transport::new(Some(&path))
                .unwrap_err()
                .contains("root.pem")
        );
    }
}
