//! How requests are spread over the upstreams of a route, and how these are treated:
//! `load_balancing`, `health_check`, `ejection`, `retries`, `pending` and `timeouts` of a site or a
//! route, and the tables among `upstreams`.

mod check;
mod read;

use std::time::Duration;

use http::StatusCode;

use super::{Upstream, UpstreamTls};

pub(super) use check::check;
pub(super) use read::PoolDraft;

/// Where the requests of a route go, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// Never empty.
    pub members: Vec<Member>,
    pub upstream_tls: Option<UpstreamTls>,
    pub settings: PoolSettings,
}

/// An upstream in its place among others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub upstream: Upstream,
    /// How many requests it gets while one of weight 1 gets one; at least 1.
    pub weight: u32,
    /// How many requests it has at once, from this route.
    pub max_connections: Option<usize>,
}

impl From<Upstream> for Member {
    fn from(upstream: Upstream) -> Member {
        Member {
            upstream,
            weight: 1,
            max_connections: None,
        }
    }
}

/// What a route says of its upstreams as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolSettings {
    pub balancing: Balancing,
    pub health_check: Option<HealthCheck>,
    pub ejection: Option<Ejection>,
    pub retries: Option<Retries>,
    pub pending: Pending,
    pub timeouts: Timeouts,
}

impl Default for PoolSettings {
    fn default() -> PoolSettings {
        PoolSettings {
            balancing: Balancing::default(),
            health_check: None,
            ejection: Some(Ejection::default()),
            retries: Some(Retries::default()),
            pending: Pending::default(),
            timeouts: Timeouts::default(),
        }
    }
}

/// `load_balancing`: which upstream gets a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Balancing {
    pub policy: Policy,
    /// Per cent: where more of the upstreams are unhealthy, all of them are used.
    pub panic_threshold: u8,
    /// How long an upstream that has come back gets fewer requests than its weight says.
    pub slow_start: Duration,
}

impl Default for Balancing {
    fn default() -> Balancing {
        Balancing {
            policy: Policy::RoundRobin,
            panic_threshold: 50,
            slow_start: Duration::ZERO,
        }
    }
}

/// How one of several upstreams is chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// In turn, those with more weight more often.
    #[default]
    RoundRobin,
    /// The one with the fewest requests under way for its weight.
    LeastConnections,
    /// Of two that chance names, the one with fewer.
    Random,
    /// Always the same for the same key, as far as it is there.
    Hash(HashKey),
    /// The one that a cookie of ours names.
    Sticky(StickyCookie),
}

/// What of a request its upstream follows from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashKey {
    /// The client's address.
    Client,
    Field(Box<str>),
    Cookie(Box<str>),
}

/// The cookie that keeps a client at its upstream.
#[derive(Clone, PartialEq, Eq)]
pub struct StickyCookie {
    pub name: Box<str>,
    pub path: Box<str>,
    /// `None`: where the client has TLS.
    pub secure: Option<bool>,
    pub same_site: SameSite,
    /// `None`: until the browser is closed.
    pub max_age: Option<Duration>,
    /// Makes what the cookie says of an upstream a guess for everybody else. Secret.
    pub secret: Option<Box<str>>,
}

impl std::fmt::Debug for StickyCookie {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StickyCookie")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// `SameSite` of a cookie (RFC 6265bis section 5.6.7).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SameSite {
    Strict,
    #[default]
    Lax,
    None,
}

impl SameSite {
    pub fn as_str(self) -> &'static str {
        match self {
            SameSite::Strict => "Strict",
            SameSite::Lax => "Lax",
            SameSite::None => "None",
        }
    }
}

/// `health_check`: upstreams are asked how they are, off the way of requests.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HealthCheck {
    pub kind: CheckKind,
    pub interval: Duration,
    pub timeout: Duration,
    /// So many good answers in a row make an upstream healthy; at least 1.
    pub rise: u32,
    /// So many bad ones make it unhealthy; at least 1.
    pub fall: u32,
}

/// What a good answer is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum CheckKind {
    /// A connection, over TLS where the upstream has it.
    Tcp,
    Http(HttpCheck),
}

/// A GET and what is to be answered.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HttpCheck {
    pub path: Box<str>,
    /// `None`: as the upstream is called.
    pub host: Option<Box<str>>,
    pub statuses: Statuses,
    /// A text that the body has to contain.
    pub body: Option<Box<str>>,
}

/// Some status codes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Statuses(Vec<(u16, u16)>);

impl Statuses {
    pub fn contains(&self, status: StatusCode) -> bool {
        let status = status.as_u16();
        let mut ranges = self.0.iter();
        ranges.any(|(first, last)| (*first..=*last).contains(&status))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// `ejection`: an upstream that fails requests gets none for a while.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ejection {
    /// So many failures in a row; at least 1.
    pub failures: u32,
    /// Responses that count as failures.
    pub statuses: Statuses,
    /// For how long, the first time; twice as long whenever it fails again at once.
    pub time: Duration,
    pub max_time: Duration,
}

impl Default for Ejection {
    fn default() -> Ejection {
        Ejection {
            failures: 5,
            statuses: Statuses::default(),
            time: Duration::from_secs(10),
            max_time: Duration::from_secs(300),
        }
    }
}

/// `retries`: how many requests may be sent a second time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retries {
    /// Per cent of the requests of the last 10 s.
    pub budget: u32,
    /// So many a second in any case.
    pub min_per_second: u32,
}

impl Default for Retries {
    fn default() -> Retries {
        Retries {
            budget: 20,
            min_per_second: 10,
        }
    }
}

/// `pending`: requests that wait for an upstream that has as many as it may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pending {
    /// So many; the next is refused.
    pub max: usize,
    /// For so long.
    pub timeout: Duration,
}

impl Default for Pending {
    fn default() -> Pending {
        Pending {
            max: 100,
            timeout: Duration::from_secs(5),
        }
    }
}

/// `timeouts`: how long an upstream may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// For a connection, with TLS.
    pub dial: Duration,
    /// From the end of the request to the response's head.
    pub response_header: Wait,
    /// Without anything moving, while bodies do.
    pub idle: Wait,
    /// For everything from the request's head to the end of the response.
    pub total: Option<Duration>,
    /// Of silence, before an upstream of HTTP/2 is asked whether it is there; and for its answer.
    pub ping: Option<Duration>,
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts {
            dial: Duration::from_secs(3),
            response_header: Wait::Usual,
            idle: Wait::Usual,
            total: None,
            ping: Some(Duration::from_secs(30)),
        }
    }
}

/// How long is waited for something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wait {
    /// For [`Wait::USUAL`], but forever where silence is a part of the matter.
    #[default]
    Usual,
    AtMost(Duration),
    Forever,
}

impl Wait {
    /// Longer than a bad radio link is silent, or a page takes to make.
    pub const USUAL: Duration = Duration::from_secs(60);

    /// `patient`: whether silence is a part of the matter.
    pub fn limit(self, patient: bool) -> Option<Duration> {
        match self {
            Wait::Usual if patient => None,
            Wait::Usual => Some(Wait::USUAL),
            Wait::AtMost(limit) => Some(limit),
            Wait::Forever => None,
        }
    }
}
