//! Where requests go: pools of upstreams, whose turn it is, and which of them are better left
//! alone for a moment. It chooses; connecting is Pingora's.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;

use super::address::{Address, Addresses, Transport};
use super::resolver::Resolver;
use super::upstream_tls::{TlsTransport, UpstreamTrust};
use crate::certificate::name::Name;
use crate::config;

/// The upstreams of one route, used in turn.
pub struct Pool {
    upstreams: Box<[Upstream]>,
    turn: AtomicUsize,
}

/// One upstream as configured.
pub struct Upstream {
    label: String,
    target: Target,
    healthy: AtomicBool,
}

enum Target {
    Fixed(Arc<Addresses>),
    Named(Resolver),
    Respond(Bytes),
    /// It can never be dialled; why.
    Unusable(Arc<str>),
}

/// An address that one request has chosen.
pub struct Attempt {
    upstream: usize,
    addresses: Arc<Addresses>,
    address: usize,
}

/// What a request has tried in vain: the upstream's index and the address.
pub type Tried = Vec<(usize, String)>;

impl Pool {
    /// `trust` is for those upstreams that have TLS.
    pub fn new(upstreams: &[config::Upstream], trust: Option<&Arc<UpstreamTrust>>) -> Pool {
        let upstream = |upstream| Upstream::new(upstream, trust);
        Pool {
            upstreams: upstreams.iter().map(upstream).collect(),
            turn: AtomicUsize::new(0),
        }
    }

    pub fn upstreams(&self) -> &[Upstream] {
        &self.upstreams
    }

    /// Whose turn it is, for one request with all its attempts.
    pub fn take_turn(&self) -> usize {
        self.turn.fetch_add(1, Ordering::Relaxed)
    }

    /// The text, if it is a `respond:` upstream's turn.
    pub fn fixed_answer(&self, turn: usize) -> Option<&Bytes> {
        match &self
            .upstreams
            .get(turn.checked_rem(self.upstreams.len())?)?
            .target
        {
            Target::Respond(text) => Some(text),
            _ => None,
        }
    }

    /// The next address for a request: beginning with the upstream whose turn it is, first one
    /// that has not failed of late, then any that this request has not tried. The error says why
    /// there is none.
    pub async fn choose(&self, turn: usize, tried: &Tried) -> Result<Attempt, String> {
        let mut failures = Vec::new();
        for among_failed in [false, true] {
            failures.clear();
            for step in 0..self.upstreams.len() {
                let upstream = turn.wrapping_add(step) % self.upstreams.len();
                match self.upstreams[upstream].addresses().await {
                    Some(Ok(addresses)) => {
                        // Every upstream's own addresses take turns, too.
                        let first = turn / self.upstreams.len();
                        let wanted = |address: &Address| {
                            address.failed_recently() == among_failed
                                && !is_tried(tried, upstream, address)
                        };
                        if let Some(address) = addresses.find_from(first, wanted) {
                            return Ok(Attempt {
                                upstream,
                                addresses,
                                address,
                            });
                        }
                    }
                    Some(Err(failure)) => failures.push(failure),
                    None => {}
                }
            }
        }
        Err(failures.join("; "))
    }

    /// The attempt's dial succeeded. Returns the upstream if it counted as unhealthy until now.
    pub fn dialled(&self, attempt: &Attempt) -> Option<&Upstream> {
        attempt.address().clear_failure();
        let upstream = &self.upstreams[attempt.upstream];
        (!upstream.healthy.swap(true, Ordering::Relaxed)).then_some(upstream)
    }

    /// The attempt's dial failed. Returns the upstream if it counted as healthy until now, and
    /// none of its addresses is left.
    pub fn dial_failed(&self, attempt: &Attempt) -> Option<&Upstream> {
        attempt.address().note_failure();
        let upstream = &self.upstreams[attempt.upstream];
        let lost = attempt.addresses.iter().all(Address::failed_recently);
        (lost && upstream.healthy.swap(false, Ordering::Relaxed)).then_some(upstream)
    }
}

fn is_tried(tried: &Tried, upstream: usize, address: &Address) -> bool {
    tried
        .iter()
        .any(|(index, label)| *index == upstream && *label == address.label())
}

impl Attempt {
    pub fn address(&self) -> &Address {
        &self.addresses[self.address]
    }

    /// An entry for [`Tried`].
    pub fn as_tried(&self) -> (usize, String) {
        (self.upstream, self.address().label().to_owned())
    }
}

impl Upstream {
    fn new(upstream: &config::Upstream, trust: Option<&Arc<UpstreamTrust>>) -> Upstream {
        let target = match upstream {
            config::Upstream::Tcp { host, port, tls } => tcp(host, *port, *tls, trust),
            config::Upstream::Unix(path) => match Address::unix(path) {
                Ok(address) => Target::Fixed(Arc::new(Addresses::from(vec![address]))),
                Err(error) => Target::Unusable(error.into()),
            },
            config::Upstream::Respond(text) => Target::Respond(Bytes::from(text.clone())),
        };
        Upstream {
            label: label(upstream),
            target,
            healthy: AtomicBool::new(true),
        }
    }

    /// As in the configuration.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Whether it has an address, so that its health means something.
    pub fn is_dialled(&self) -> bool {
        !matches!(self.target, Target::Respond(_))
    }

    /// Whether the last dial succeeded; true before the first.
    pub fn is_healthy(&self) -> bool {
        self.healthy.load(Ordering::Relaxed)
    }

    /// `None` for an upstream that is not dialled.
    async fn addresses(&self) -> Option<Result<Arc<Addresses>, Arc<str>>> {
        match &self.target {
            Target::Fixed(addresses) => Some(Ok(Arc::clone(addresses))),
            Target::Named(resolver) => Some(resolver.addresses().await),
            Target::Unusable(reason) => Some(Err(Arc::clone(reason))),
            Target::Respond(_) => None,
        }
    }
}

fn tcp(host: &str, port: u16, tls: bool, trust: Option<&Arc<UpstreamTrust>>) -> Target {
    let host = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(host);
    let transport = match (tls, host.parse::<Name>()) {
        (false, _) => Transport::Plain,
        (true, Ok(name)) => Transport::Tls(TlsTransport::new(name, trust.cloned())),
        (true, Err(error)) => return Target::Unusable(format!("{host} {error}").into()),
    };
    match host.parse::<std::net::IpAddr>() {
        Ok(ip) => {
            let address = Address::tcp((ip, port).into(), &transport);
            Target::Fixed(Arc::new(Addresses::from(vec![address])))
        }
        Err(_) => Target::Named(Resolver::new(host.to_owned(), port, transport)),
    }
}

fn label(upstream: &config::Upstream) -> String {
    match upstream {
        config::Upstream::Tcp { host, port, tls } => {
            let scheme = if *tls { "https://" } else { "" };
            let bare_ipv6 = host.contains(':') && !host.starts_with('[');
            match bare_ipv6 {
                true => format!("{scheme}[{host}]:{port}"),
                false => format!("{scheme}{host}:{port}"),
            }
        }
        config::Upstream::Unix(path) => format!("unix:{}", path.display()),
        config::Upstream::Respond(_) => "respond".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(host: &str, port: u16) -> config::Upstream {
        config::Upstream::Tcp {
            host: host.into(),
            port,
            tls: false,
        }
    }

    fn three() -> Pool {
        Pool::new(
            &[
                tcp("192.0.2.1", 1),
                tcp("192.0.2.2", 2),
                tcp("2001:db8::3", 3),
            ],
            None,
        )
    }

    async fn chosen(pool: &Pool, turn: usize, tried: &Tried) -> Result<String, String> {
        let attempt = pool.choose(turn, tried).await?;
        Ok(attempt.address().label().to_owned())
    }

    #[tokio::test]
    async fn upstreams_take_turns() {
        let pool = three();
        let mut order = Vec::new();
        for _ in 0..4 {
            order.push(
                chosen(&pool, pool.take_turn(), &Tried::new())
                    .await
                    .unwrap(),
            );
        }
        let expected = [
            "192.0.2.1:1",
            "192.0.2.2:2",
            "[2001:db8::3]:3",
            "192.0.2.1:1",
        ];
        assert_eq!(order, expected);
    }

    #[tokio::test]
    async fn each_is_tried_once() {
        let pool = three();
        let mut tried = Tried::new();
        for expected in ["192.0.2.2:2", "[2001:db8::3]:3", "192.0.2.1:1"] {
            let attempt = pool.choose(1, &tried).await.unwrap();
            assert_eq!(attempt.address().label(), expected);
            tried.push(attempt.as_tried());
        }
        assert_eq!(pool.choose(1, &tried).await.err().as_deref(), Some(""));
    }

    #[tokio::test]
    async fn what_has_failed_is_the_last_resort() {
        let pool = three();
        let attempt = pool.choose(0, &Tried::new()).await.unwrap();
        assert_eq!(pool.dial_failed(&attempt).unwrap().label(), "192.0.2.1:1");
        assert!(pool.dial_failed(&attempt).is_none(), "it is known already");
        assert!(!pool.upstreams()[0].is_healthy());
        let mut tried = Tried::new();
        for expected in ["192.0.2.2:2", "[2001:db8::3]:3", "192.0.2.1:1"] {
            let attempt = pool.choose(0, &tried).await.unwrap();
            assert_eq!(attempt.address().label(), expected);
            tried.push(attempt.as_tried());
        }
        assert!(pool.dialled(&attempt).is_some());
        assert!(pool.dialled(&attempt).is_none());
        assert_eq!(
            chosen(&pool, 0, &Tried::new()).await.unwrap(),
            "192.0.2.1:1"
        );
    }

    #[tokio::test]
    async fn fixed_answers_take_their_turn() {
        let pool = Pool::new(
            &[config::Upstream::Respond("hi".into()), tcp("192.0.2.1", 1)],
            None,
        );
        assert_eq!(pool.fixed_answer(0).unwrap(), "hi");
        assert!(pool.fixed_answer(1).is_none());
        assert_eq!(
            chosen(&pool, 0, &Tried::new()).await.unwrap(),
            "192.0.2.1:1"
        );
    }

    #[tokio::test]
    async fn a_path_that_no_socket_can_have_is_named() {
        let path = "/".to_owned() + &"x".repeat(200);
        let pool = Pool::new(&[config::Upstream::Unix(path.clone().into())], None);
        let error = chosen(&pool, 0, &Tried::new()).await.unwrap_err();
        assert!(error.contains(&path), "{error}");
    }

    #[test]
    fn labels_are_as_configured() {
        let https = config::Upstream::Tcp {
            host: "a.test".into(),
            port: 443,
            tls: true,
        };
        assert_eq!(label(&https), "https://a.test:443");
        assert_eq!(label(&tcp("::1", 80)), "[::1]:80");
        assert_eq!(label(&tcp("[::1]", 80)), "[::1]:80");
        assert_eq!(
            label(&config::Upstream::Unix("/run/a".into())),
            "unix:/run/a"
        );
    }
}
