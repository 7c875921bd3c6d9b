//! Asking somebody else whether a request is let in: one GET with the client's fields, that says what
//! was asked for. 2xx lets it in; any other answer is the client's.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use http::StatusCode;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use tokio::sync::Semaphore;

use super::answered;
use super::decision::origin_form;
use super::origin::Origin;
use super::respond::Answer;
use super::upstream_tls::UpstreamTrusts;
use crate::config::ForwardAuth;
use crate::http_client::{self, causes};
use crate::message::{Fields, Known, RequestHead, ResponseHead};

/// A page to log in at is smaller, in bytes.
const MAX_ANSWER: usize = 1024 * 1024;

/// Questions under way at the same time, of all routes; more are refused at once.
static QUESTIONS: Semaphore = Semaphore::const_new(1024);

/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// What a question of ours has on it, and no client can know (RFC 8586): one that comes back to us is
/// asked in circles.
static LOOP_MARK: LazyLock<String> =
    LazyLock::new(|| format!("perennial-{:016x}", rand::random::<u64>()));

/// For all routes without authorities of their own: connections are kept between questions. One for
/// each Unix socket, and one for everybody else.
static CLIENTS: LazyLock<Mutex<HashMap<Option<PathBuf>, reqwest::Client>>> =
    LazyLock::new(Mutex::default);

/// What somebody is asked with who is known by a bundle of authorities.
pub struct AuthClient(reqwest::Client);

/// Who is asked, and with what.
pub struct Asker {
    auth: ForwardAuth,
    /// Where the client for its `ca` is, once that was read.
    trusting: Option<Arc<ArcSwapOption<AuthClient>>>,
}

/// Fields of a request, in place of any that its client has sent.
#[derive(Debug)]
pub struct Granted {
    names: Vec<Box<str>>,
    pub fields: Fields,
}

/// What came of a question.
pub enum Verdict {
    Granted(Option<Arc<Granted>>),
    /// What the client is told instead.
    Refused(Answer),
}

/// Why there is no verdict: nobody is let in then.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    #[error("forward_auth cannot be prepared: {0}")]
    Client(String),
    #[error("forward_auth {url} asks itself: its own requests come back here")]
    Loop { url: Box<str> },
    #[error("forward_auth {url}: too many requests wait for it")]
    Busy { url: Box<str> },
    #[error("forward_auth {url}: no answer within {timeout:?}")]
    Timeout { url: Box<str>, timeout: Duration },
    #[error("forward_auth {url}: {cause}")]
    Failed { url: Box<str>, cause: String },
    #[error("forward_auth {url}: the answer is larger than {MAX_ANSWER} bytes")]
    TooLarge { url: Box<str> },
}

impl AuthError {
    /// What the client is told.
    pub fn status(&self) -> StatusCode {
        match self {
            AuthError::Client(_) => StatusCode::INTERNAL_SERVER_ERROR,
            AuthError::Loop { .. } => StatusCode::LOOP_DETECTED,
            AuthError::Busy { .. } => StatusCode::SERVICE_UNAVAILABLE,
            AuthError::Timeout { .. } => StatusCode::GATEWAY_TIMEOUT,
            AuthError::Failed { .. } | AuthError::TooLarge { .. } => StatusCode::BAD_GATEWAY,
        }
    }
}

impl Granted {
    /// Whether a client's field of this name does not count. What descends from CGI does not tell
    /// `_` from `-`.
    pub fn replaces(&self, name: &[u8]) -> bool {
        let same = |known: &str| {
            let plain = |byte: u8| match byte.to_ascii_lowercase() {
                b'_' => b'-',
                byte => byte,
            };
            known.len() == name.len()
                && known
                    .bytes()
                    .zip(name)
                    .all(|(known, given)| plain(known) == plain(*given))
        };
        self.names.iter().any(|known| same(known))
    }
}

impl AuthClient {
    /// Trusts these authorities, in PEM, and no others.
    pub fn trusting(pem: &[u8]) -> Result<AuthClient, String> {
        let authorities = reqwest::Certificate::from_pem_bundle(pem);
        let authorities = authorities.map_err(|error| causes(&error))?;
        let built = builder().tls_certs_only(authorities).build();
        built.map(AuthClient).map_err(|error| causes(&error))
    }
}

impl Asker {
    pub fn new(auth: &ForwardAuth, trusts: &UpstreamTrusts) -> Asker {
        Asker {
            trusting: auth.ca.as_deref().map(|ca| trusts.auth(ca)),
            auth: auth.clone(),
        }
    }

    /// Asks.
    pub async fn ask(
        &self,
        request: &RequestHead,
        origin: &Origin<'_>,
        request_id: Option<(&str, &str)>,
    ) -> Result<Verdict, AuthError> {
        let auth = &self.auth;
        let url = || auth.url.clone();
        if comes_from_us(&request.fields) {
            return Err(AuthError::Loop { url: url() });
        }
        let client = self.client().map_err(AuthError::Client)?;
        let Ok(_turn) = QUESTIONS.try_acquire() else {
            return Err(AuthError::Busy { url: url() });
        };
        let failed = |error: reqwest::Error| match error.is_timeout() {
            true => AuthError::Timeout {
                url: url(),
                timeout: auth.timeout,
            },
            false => AuthError::Failed {
                url: url(),
                cause: causes(&error.without_url()),
            },
        };
        let question = client
            .get(&*auth.asked)
            .timeout(auth.timeout)
            .headers(question(request, origin, request_id));
        let mut response = question.send().await.map_err(failed)?;
        if response.status().is_success() {
            return Ok(Verdict::Granted(granted(auth, response.headers())));
        }
        let mut body = Vec::new();
        while let Some(piece) = response.chunk().await.map_err(failed)? {
            if body.len() + piece.len() > MAX_ANSWER {
                return Err(AuthError::TooLarge { url: url() });
            }
            body.extend_from_slice(&piece);
        }
        Ok(Verdict::Refused(refusal(&response, body)))
    }

    fn client(&self) -> Result<reqwest::Client, String> {
        let Some(trusting) = &self.trusting else {
            return usual_client(self.auth.socket.as_ref());
        };
        match &*trusting.load() {
            Some(client) => Ok(client.0.clone()),
            // Nobody is trusted then, the system's authorities least of all.
            None => Err("its ca could not be read so far".to_owned()),
        }
    }
}

/// For a Unix socket, or for everybody whom the system's authorities vouch for.
fn usual_client(socket: Option<&PathBuf>) -> Result<reqwest::Client, String> {
    let socket = socket.cloned();
    // Every change is whole: a panic elsewhere leaves nothing half done.
    let mut clients = CLIENTS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(client) = clients.get(&socket) {
        return Ok(client.clone());
    }
    let builder = || match &socket {
        Some(socket) => builder().unix_socket(socket.as_path()),
        None => builder(),
    };
    // A host without any roots of its own, as minimal containers are, has http:// at least.
    let built = builder()
        .build()
        .or_else(|_| builder().tls_certs_only([]).build());
    let client = built.map_err(|error| causes(&error))?;
    clients.insert(socket, client.clone());
    Ok(client)
}

/// No redirects: they are the client's to follow.
fn builder() -> reqwest::ClientBuilder {
    let builder = http_client::builder().connect_timeout(CONNECT_TIMEOUT);
    builder.no_proxy()
}

fn comes_from_us(fields: &Fields) -> bool {
    fields.named("cdn-loop").any(|value| {
        let mut members = value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
        members.any(|member| member == LOOP_MARK.as_bytes())
    })
}

/// The client's own fields, without what is about its connection, its body, or what it has stored,
/// and what was asked for.
fn question(
    request: &RequestHead,
    origin: &Origin<'_>,
    request_id: Option<(&str, &str)>,
) -> HeaderMap {
    let mut fields = HeaderMap::new();
    let mut add = |name: &[u8], value: &[u8]| {
        // Both were checked when they were read, or are ours.
        let name = HeaderName::from_bytes(name);
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(value)) {
            fields.append(name, value);
        }
    };
    let id = request_id.map(|(name, _)| name.as_bytes());
    for field in answered::passed(&request.fields) {
        let is_id = id.is_some_and(|id| id.eq_ignore_ascii_case(field.name));
        if is_asked_with(field.known, field.name) && !is_id {
            add(field.name, field.value);
        }
    }
    let cookies: Vec<&[u8]> = request.fields.all(Known::Cookie).collect();
    if !cookies.is_empty() {
        // HTTP/2 clients may split them (RFC 9113 section 8.2.3).
        add(b"cookie", &cookies.join(&b"; "[..]));
    }
    add(b"x-forwarded-method", request.method.as_str().as_bytes());
    add(b"x-forwarded-proto", origin.scheme().as_bytes());
    add(b"x-forwarded-host", origin.host);
    add(b"x-forwarded-uri", origin_form(request.target()));
    add(b"x-forwarded-for", origin.way().as_bytes());
    add(b"cdn-loop", LOOP_MARK.as_bytes());
    if let Some((name, id)) = request_id {
        add(name.as_bytes(), id.as_bytes());
    }
    fields
}

fn is_asked_with(known: Known, name: &[u8]) -> bool {
    // The last four are what others call the method and the URL.
    const LEFT_OUT: [&str; 6] = [
        "accept-encoding",
        "range",
        "x-original-method",
        "x-original-uri",
        "x-original-url",
        "x-rewrite-url",
    ];
    let starts = |prefix: &[u8]| {
        let start = name.get(..prefix.len());
        start.is_some_and(|start| start.eq_ignore_ascii_case(prefix))
    };
    let is_left_out = LEFT_OUT
        .iter()
        .any(|other| name.eq_ignore_ascii_case(other.as_bytes()));
    let is_ours = matches!(
        known,
        Known::Host | Known::Claim | Known::Cookie | Known::Expect | Known::Trailer
    );
    !is_ours && !is_left_out && !starts(b"if-") && !starts(b"sec-websocket-")
}

fn granted(auth: &ForwardAuth, answer: &HeaderMap) -> Option<Arc<Granted>> {
    if auth.copy_headers.is_empty() {
        return None;
    }
    let mut fields = Fields::default();
    for name in &auth.copy_headers {
        for value in answer.get_all(&**name) {
            fields.push(name.as_bytes(), value.as_bytes());
        }
    }
    Some(Arc::new(Granted {
        names: auth.copy_headers.clone(),
        fields,
    }))
}

/// The answer as it came, for the client.
fn refusal(response: &reqwest::Response, body: Vec<u8>) -> Answer {
    let mut given = Fields::default();
    for (name, value) in response.headers() {
        given.push(name.as_str().as_bytes(), value.as_bytes());
    }
    let mut head = ResponseHead::new(response.status());
    for field in answered::passed(&given) {
        head.fields.push(field.name, field.value);
    }
    let length = body.len().to_string();
    head.fields.push(b"Content-Length", length.as_bytes());
    if head.fields.named("cache-control").next().is_none() {
        head.fields.push(b"Cache-Control", b"no-store");
    }
    Answer {
        head,
        body: body.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::listener::ConnectionInfo;

    fn asked(fields: &[(&str, &str)]) -> Vec<String> {
        let mut request = RequestHead::default();
        request.method = http::Method::POST;
        request.fields.push(b"Host", b"a.test");
        for (name, value) in fields {
            request.fields.push(name.as_bytes(), value.as_bytes());
        }
        let client = "192.0.2.7:4711".parse().unwrap();
        let connection = ConnectionInfo::new(client, "192.0.2.9:80".parse().unwrap());
        let origin = Origin::of(&request, &connection, &[]);
        let question = question(&request, &origin, Some(("x-id", "7")));
        let fields = question.iter().filter(|(name, _)| *name != "cdn-loop");
        let mut fields: Vec<String> = fields
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        fields.sort();
        fields
    }

    #[test]
    fn the_question_says_what_was_asked_for_and_nothing_forged() {
        let found = asked(&[
            ("Authorization", "Bearer x"),
            ("Cookie", "a=1"),
            ("Cookie", "b=2"),
            ("Content-Length", "5"),
            ("Transfer-Encoding", "chunked"),
            ("Connection", "X-Hop, Upgrade"),
            ("X-Hop", "1"),
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Key", "x"),
            ("If-None-Match", "*"),
            ("Range", "bytes=0-1"),
            ("Accept-Encoding", "gzip"),
            ("X-Forwarded-For", "203.0.113.1"),
            ("X-Forwarded-Uri", "/public"),
            ("X-Forwarded-Method", "GET"),
            ("X-Original-URL", "/public"),
            ("X-Id", "forged"),
        ]);
        let expected = [
            "authorization: Bearer x",
            "cookie: a=1; b=2",
            "x-forwarded-for: 192.0.2.7",
            "x-forwarded-host: a.test",
            "x-forwarded-method: POST",
            "x-forwarded-proto: http",
            "x-forwarded-uri: ",
            "x-id: 7",
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn no_spelling_of_a_granted_name_gets_past() {
        let granted = Granted {
            names: vec!["Remote-User".into()],
            fields: Fields::default(),
        };
        for (name, expected) in [
            ("remote-user", true),
            ("REMOTE_USER", true),
            ("Remote-Users", false),
            ("RemoteUser", false),
        ] {
            assert_eq!(granted.replaces(name.as_bytes()), expected, "{name}");
        }
    }

    #[test]
    fn our_own_questions_are_known() {
        let mut fields = Fields::default();
        fields.push(b"CDN-Loop", b"other, perennial-0");
        assert!(!comes_from_us(&fields));
        fields.push(b"cdn-loop", format!("x, {}", *LOOP_MARK).as_bytes());
        assert!(comes_from_us(&fields));
    }
}
