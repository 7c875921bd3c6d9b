//! Where requests go: pools of upstreams, which of them a request gets, and what is known of how
//! they are. It chooses; connecting is the business of `dial`.

mod balance;
mod budget;
pub mod check;
pub mod health;
mod load;
mod machine;
mod sticky;

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::StatusCode;

use super::address::{Address, Addresses, Transport};
use super::dns::Dns;
use super::resolver::Resolver;
use super::upstream_tls::{TlsTransport, UpstreamTrust};
use crate::certificate::name::Name;
use crate::config::{self, Forward, HashKey, Member, Policy, PoolSettings, Timeouts};
use crate::message::RequestHead;
use balance::{Candidate, Rules, View};
use budget::Budget;
use check::HealthChecks;
use health::{Health, State, Tick};
use load::{Held, Load, Queue};
use sticky::Cookies;

pub use load::Busy;

/// The upstreams of one route.
pub struct Pool {
    upstreams: Box<[Upstream]>,
    settings: PoolSettings,
    /// How many requests there were.
    turn: AtomicUsize,
    view: ArcSwap<View>,
    budget: Budget,
    queue: Arc<Queue>,
    /// Whether it matters how many requests are under way, be it to another pool.
    counts: Arc<AtomicBool>,
    cookies: Option<Cookies>,
}

/// What all pools share.
#[derive(Clone, Default)]
pub struct Services {
    pub checks: HealthChecks,
    pub dns: Dns,
}

/// One upstream as configured.
pub struct Upstream {
    label: String,
    target: Target,
    weight: u32,
    /// What stands for it where keys are hashed.
    identity: u64,
    health: Health,
    load: Load,
}

/// What an upstream leads to.
pub enum Target {
    Fixed(Arc<Addresses>),
    Named(Resolver),
    Respond(Bytes),
    /// It can never be dialled; why.
    Unusable(Arc<str>),
}

/// An address that one request has chosen.
pub struct Attempt {
    pub upstream: usize,
    addresses: Arc<Addresses>,
    address: usize,
    /// Counts as under way as long as this is there.
    held: Option<Held>,
}

/// What the choice for one request depends on.
#[derive(Default)]
pub struct Selection {
    turn: usize,
    key: Key,
    /// The first choice, until it is used.
    first: Option<(usize, Option<Held>)>,
    /// What it has tried in vain: the upstream and the address.
    tried: Vec<(usize, String)>,
    /// Upstreams of which nothing is left to be tried.
    exhausted: Vec<usize>,
}

/// What of a request decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Key {
    #[default]
    None,
    Hashed(u64),
    /// It was there before.
    Upstream(usize),
}

/// What came of looking for an upstream.
enum Picked {
    Upstream(usize, Option<Held>),
    /// There are some, but each has as many requests as it may have.
    Full,
    None,
}

/// Why there is no address to be dialled.
#[derive(Debug)]
pub enum Unchosen {
    /// What was wrong with each, where it is known.
    Nowhere(String),
    Busy(Busy),
}

impl Pool {
    /// No upstreams, and none is needed.
    pub fn none() -> Pool {
        Pool::with(&[], &PoolSettings::default(), None, &Services::default())
    }

    /// `trust` is for those upstreams that have TLS.
    pub fn new(forward: &Forward, trust: Option<&Arc<UpstreamTrust>>, services: &Services) -> Pool {
        Pool::with(&forward.members, &forward.settings, trust, services)
    }

    fn with(
        members: &[Member],
        settings: &PoolSettings,
        trust: Option<&Arc<UpstreamTrust>>,
        services: &Services,
    ) -> Pool {
        let check = settings.health_check.as_ref();
        let ejects = settings.ejection.is_some();
        let upstream = |member: &Member| {
            let machine = services.checks.machines().get(member, trust);
            let checked =
                check.and_then(|check| services.checks.get(member, trust, check, &services.dns));
            let health = Health::new(machine.clone(), ejects, checked);
            let load = Load::new(machine, member.max_connections);
            Upstream::new(member, trust, health, load, &services.dns)
        };
        let upstreams: Box<[Upstream]> = members.iter().map(upstream).collect();
        let policy = &settings.balancing.policy;
        let by_load = matches!(policy, Policy::LeastConnections | Policy::Random);
        let bounded = members
            .iter()
            .any(|member| member.max_connections.is_some());
        let cookies = match policy {
            Policy::Sticky(cookie) => {
                Some(Cookies::new(cookie, upstreams.iter().map(Upstream::label)))
            }
            _ => None,
        };
        let queue = Arc::new(Queue::new(settings.pending));
        let counts = bounded || (by_load && upstreams.len() > 1);
        let counts = Arc::new(AtomicBool::new(counts));
        for upstream in &upstreams {
            upstream.load.join(&queue, &counts);
        }
        Pool {
            counts,
            upstreams,
            settings: settings.clone(),
            turn: AtomicUsize::new(0),
            // Of no change: it is made when it is first needed.
            view: ArcSwap::from_pointee(View::outdated()),
            budget: Budget::new(settings.retries, Tick::now()),
            queue,
            cookies,
        }
    }

    pub fn upstreams(&self) -> &[Upstream] {
        &self.upstreams
    }

    pub fn timeouts(&self) -> &Timeouts {
        &self.settings.timeouts
    }

    /// How many requests wait for an upstream that has as many as it may have.
    pub fn waiting(&self) -> usize {
        self.queue.waiting()
    }

    /// The choice for one request with all its attempts. `client`: its address.
    pub fn select(&self, request: &RequestHead, client: &str) -> Selection {
        let mut selection = Selection {
            turn: self.turn.fetch_add(1, Ordering::Relaxed),
            key: self.key(request, client),
            ..Selection::default()
        };
        if let Picked::Upstream(upstream, held) = self.pick(&selection) {
            selection.first = Some((upstream, held));
        }
        selection
    }

    fn key(&self, request: &RequestHead, client: &str) -> Key {
        let hashed =
            |value: Option<&[u8]>| value.map_or(Key::None, |it| Key::Hashed(balance::hash(it)));
        match &self.settings.balancing.policy {
            Policy::Hash(HashKey::Client) => hashed(Some(client.as_bytes())),
            Policy::Hash(HashKey::Field(name)) => hashed(request.fields.named(name).next()),
            Policy::Hash(HashKey::Cookie(name)) => hashed(sticky::cookie(request, name)),
            Policy::Sticky(_) => self.pinned(request).map_or(Key::None, Key::Upstream),
            Policy::RoundRobin | Policy::LeastConnections | Policy::Random => Key::None,
        }
    }

    fn pinned(&self, request: &RequestHead) -> Option<usize> {
        self.cookies.as_ref()?.upstream(request)
    }

    /// The cookie for a client that was served by an upstream and has none that says so.
    /// `secure`: whether it has TLS.
    pub fn cookie(&self, selection: &Selection, upstream: usize, secure: bool) -> Option<String> {
        let cookies = self.cookies.as_ref()?;
        (selection.key != Key::Upstream(upstream)).then(|| cookies.set(upstream, secure))
    }

    /// The text, if a `respond:` upstream was chosen.
    pub fn fixed_answer(&self, selection: &Selection) -> Option<&Bytes> {
        match &self.upstreams[selection.first.as_ref()?.0].target {
            Target::Respond(text) => Some(text),
            _ => None,
        }
    }

    /// The first choice, where its addresses are known: most requests need no more, and are spared
    /// the memory of whatever may have to be waited for.
    pub fn choose_at_once(&self, selection: &mut Selection) -> Option<Attempt> {
        let first = selection.first.as_ref()?.0;
        let Target::Fixed(addresses) = &self.upstreams[first].target else {
            return None;
        };
        let addresses = Arc::clone(addresses);
        let (upstream, held) = selection.first.take()?;
        self.attempt(selection, upstream, addresses, held)
    }

    /// An address of this upstream, if one is left for the request.
    fn attempt(
        &self,
        selection: &mut Selection,
        upstream: usize,
        addresses: Arc<Addresses>,
        held: Option<Held>,
    ) -> Option<Attempt> {
        // Every upstream's own addresses take turns, too.
        let first = selection.turn / self.upstreams.len();
        let Some(address) = selection.address(upstream, &addresses, first) else {
            selection.exhausted.push(upstream);
            return None;
        };
        Some(Attempt {
            upstream,
            addresses,
            address,
            held,
        })
    }

    /// The next address for a request: first of the upstreams that are well, then of any that this
    /// request has not tried.
    pub async fn choose(&self, selection: &mut Selection) -> Result<Attempt, Unchosen> {
        let mut failures = Vec::new();
        loop {
            let (upstream, held) = match selection.first.take() {
                Some(first) => first,
                None => match self.pick(selection) {
                    Picked::Upstream(upstream, held) => (upstream, held),
                    Picked::Full => {
                        // Boxed: hardly any request waits here.
                        Box::pin(self.wait(selection))
                            .await
                            .map_err(Unchosen::Busy)?
                    }
                    Picked::None => return Err(Unchosen::Nowhere(failures.join("; "))),
                },
            };
            match self.upstreams[upstream].target.addresses().await {
                Some(Ok(addresses)) => {
                    if let Some(attempt) = self.attempt(selection, upstream, addresses, held) {
                        return Ok(attempt);
                    }
                    continue;
                }
                Some(Err(failure)) => {
                    self.upstreams[upstream]
                        .health
                        .dial_failed(self.settings.ejection.as_ref(), Tick::now());
                    failures.push(failure.to_string());
                }
                None => {}
            }
            selection.exhausted.push(upstream);
        }
    }

    /// Waits until some upstream may have one more request.
    async fn wait(&self, selection: &Selection) -> Result<(usize, Option<Held>), Busy> {
        self.queue
            .wait(|| match self.pick(selection) {
                Picked::Upstream(upstream, held) => Some((upstream, held)),
                Picked::Full | Picked::None => None,
            })
            .await
    }

    fn pick(&self, selection: &Selection) -> Picked {
        let counts = self.counts.load(Ordering::Relaxed);
        if self.upstreams.len() == 1 && !counts {
            return match selection.exhausted.is_empty() {
                true => Picked::Upstream(0, None),
                false => Picked::None,
            };
        }
        loop {
            match self.look(selection, counts) {
                Ok(upstream) if !counts => return Picked::Upstream(upstream, None),
                // Somebody else may have taken the last place.
                Ok(upstream) => match self.upstreams[upstream].load.enter() {
                    Some(held) => return Picked::Upstream(upstream, Some(held)),
                    None => continue,
                },
                Err(true) => return Picked::Full,
                Err(false) => return Picked::None,
            }
        }
    }

    /// The error is whether there would be one, but for its load.
    fn look(&self, selection: &Selection, counts: bool) -> Result<usize, bool> {
        let full = std::cell::Cell::new(false);
        let accepts = |upstream: usize| {
            let open = !selection.exhausted.contains(&upstream);
            let room = !counts || self.upstreams[upstream].load.has_room();
            full.set(full.get() || (open && !room));
            open && room
        };
        let (view, trial) = self.view(selection.key);
        if let Some(upstream) = trial.filter(|upstream| accepts(*upstream)) {
            return Ok(upstream);
        }
        let turn = selection.turn;
        let load = |upstream: usize| self.upstreams[upstream].load.under_way();
        let chosen = match (&self.settings.balancing.policy, selection.key) {
            (_, Key::Upstream(upstream)) if view.has(upstream) && accepts(upstream) => {
                Some(upstream)
            }
            (_, Key::Hashed(key)) => view.by_key(key, |it| self.upstreams[it].identity, accepts),
            (Policy::LeastConnections, _) => view.least_loaded(turn, load, accepts),
            (Policy::Random, _) => view.of_two(rand::random(), load, accepts),
            _ => view.in_turn(turn, accepts),
        };
        // With places to wait for, what is well is worth waiting for.
        match chosen {
            Some(upstream) => Ok(upstream),
            None if full.get() => Err(true),
            None => view.last_resort(accepts).ok_or(full.get()),
        }
    }

    /// What is in use now, and an upstream that this request is to try because the time of its
    /// ejection is over. A request that belongs to an upstream tries no other.
    fn view(&self, key: Key) -> (arc_swap::Guard<Arc<View>>, Option<usize>) {
        let view = self.view.load();
        if view.is_valid(health::changes(), Tick::now) {
            return (view, None);
        }
        let now = Tick::now();
        let trial = match key {
            Key::None => self.begin_trial(now),
            Key::Hashed(_) | Key::Upstream(_) => None,
        };
        let balancing = &self.settings.balancing;
        let rules = Rules {
            panic_threshold: balancing.panic_threshold,
            slow_start: balancing.slow_start,
        };
        // Before the states are looked at: what changes after that makes another view.
        let changes = health::changes();
        let candidates: Vec<Candidate> = self.upstreams.iter().map(Upstream::candidate).collect();
        self.view
            .store(Arc::new(View::new(&candidates, rules, now, changes)));
        (self.view.load(), trial)
    }

    fn begin_trial(&self, now: Tick) -> Option<usize> {
        let over = |upstream: &Upstream| match upstream.health.state() {
            State::Ejected(until) | State::Unreachable(until) => {
                until <= now && upstream.health.begin_trial(until, now)
            }
            State::Up | State::Failing => false,
        };
        self.upstreams.iter().position(over)
    }

    /// Whether one more request may be sent a second time.
    pub fn may_retry(&self) -> bool {
        self.budget
            .spend(self.turn.load(Ordering::Relaxed), Tick::now())
    }

    /// The attempt's dial succeeded. Returns the upstream if it counted as unreachable until now.
    pub fn dialled(&self, attempt: &Attempt) -> Option<&Upstream> {
        attempt.address().clear_failure();
        let upstream = &self.upstreams[attempt.upstream];
        upstream.health.dialled(Tick::now()).then_some(upstream)
    }

    /// The attempt's dial failed. Returns the upstream if it counted as reachable until now, and
    /// none of its addresses is left; and for how long it is left alone.
    pub fn dial_failed(&self, attempt: &Attempt) -> Option<(&Upstream, Duration)> {
        attempt.address().note_failure();
        if !attempt.addresses.iter().all(Address::failed_recently) {
            return None;
        }
        let upstream = &self.upstreams[attempt.upstream];
        let policy = self.settings.ejection.as_ref();
        let time = upstream.health.dial_failed(policy, Tick::now())?;
        Some((upstream, time))
    }

    /// An upstream answered. Returns it if it is ejected for that now, or back.
    pub fn answered(&self, attempt: &Attempt, status: StatusCode) -> Option<(&Upstream, Turned)> {
        let policy = self.settings.ejection.as_ref()?;
        let upstream = &self.upstreams[attempt.upstream];
        if !policy.statuses.is_empty() && policy.statuses.contains(status) {
            let time = upstream.health.answered_badly(policy, Tick::now())?;
            return Some((upstream, Turned::Ejected(time)));
        }
        (upstream.health.is_marked() && upstream.health.succeeded(Tick::now()))
            .then_some((upstream, Turned::Back))
    }

    /// An upstream failed a request. Returns it if it is ejected for that now.
    pub fn failed(&self, attempt: &Attempt) -> Option<(&Upstream, Turned)> {
        let policy = self.settings.ejection.as_ref()?;
        let upstream = &self.upstreams[attempt.upstream];
        let time = upstream.health.failed(policy, Tick::now())?;
        Some((upstream, Turned::Ejected(time)))
    }
}

/// What became of an upstream.
pub enum Turned {
    Ejected(Duration),
    Back,
}

impl Selection {
    /// Where a request goes on to after its last attempt came to nothing.
    pub fn note_tried(&mut self, attempt: &Attempt) {
        self.tried
            .push((attempt.upstream, attempt.address().label().to_owned()));
    }

    /// One that has not failed of late, else any that was not tried.
    fn address(&self, upstream: usize, addresses: &Addresses, first: usize) -> Option<usize> {
        let untried = |address: &Address| {
            let mut tried = self.tried.iter();
            !tried.any(|(index, label)| *index == upstream && *label == address.label())
        };
        addresses
            .find_from(first, |address| {
                !address.failed_recently() && untried(address)
            })
            .or_else(|| addresses.find_from(first, untried))
    }
}

impl Attempt {
    pub fn address(&self) -> &Address {
        &self.addresses[self.address]
    }

    /// The request is under way no more.
    pub fn release(&mut self) {
        self.held = None;
    }
}

impl Upstream {
    fn new(
        member: &Member,
        trust: Option<&Arc<UpstreamTrust>>,
        health: Health,
        load: Load,
        dns: &Dns,
    ) -> Upstream {
        let label = label(&member.upstream);
        Upstream {
            target: Target::new(&member.upstream, trust, dns),
            weight: member.weight,
            identity: balance::hash(label.as_bytes()),
            label,
            health,
            load,
        }
    }

    fn candidate(&self) -> Candidate {
        Candidate {
            weight: self.weight,
            state: self.health.state(),
            back_at: self.health.back_at(),
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

    /// Whether nothing that requests or checks have met speaks against it.
    pub fn is_healthy(&self) -> bool {
        self.health.is_healthy()
    }

    /// Why it is not well, in words.
    pub fn trouble(&self) -> Option<Cow<'static, str>> {
        match self.health.state() {
            State::Ejected(_) => Some("ejected: requests failed".into()),
            State::Unreachable(_) => Some("ejected: it cannot be dialled".into()),
            State::Failing => {
                let checked = self.health.checked();
                let cause = checked.and_then(|checked| checked.last_error());
                Some(
                    format!(
                        "its health check fails: {}",
                        cause.as_deref().unwrap_or("?")
                    )
                    .into(),
                )
            }
            State::Up if !self.is_healthy() => Some("it cannot be dialled".into()),
            State::Up => None,
        }
    }

    /// Requests under way from all routes, where that is counted.
    pub fn under_way(&self) -> usize {
        self.load.under_way()
    }
}

impl Target {
    pub fn new(
        upstream: &config::Upstream,
        trust: Option<&Arc<UpstreamTrust>>,
        dns: &Dns,
    ) -> Target {
        match upstream {
            config::Upstream::Tcp {
                host,
                port,
                tls,
                http2,
            } => tcp(host, *port, (*tls, *http2), trust, dns),
            config::Upstream::Unix(path) => match Address::unix(path) {
                Ok(address) => Target::Fixed(Arc::new(Addresses::from(vec![address]))),
                Err(error) => Target::Unusable(error.into()),
            },
            config::Upstream::Srv { name, tls, http2 } => {
                services(name, (*tls, *http2), trust, dns)
            }
            config::Upstream::Respond(text) => Target::Respond(Bytes::from(text.clone())),
        }
    }

    /// `None` for one that is not dialled.
    pub async fn addresses(&self) -> Option<Result<Arc<Addresses>, Arc<str>>> {
        match self {
            Target::Fixed(addresses) => Some(Ok(Arc::clone(addresses))),
            Target::Named(resolver) => Some(resolver.addresses().await),
            Target::Unusable(reason) => Some(Err(Arc::clone(reason))),
            Target::Respond(_) => None,
        }
    }
}

fn tcp(
    host: &str,
    port: u16,
    (tls, http2): (bool, bool),
    trust: Option<&Arc<UpstreamTrust>>,
    dns: &Dns,
) -> Target {
    let host = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(host);
    let transport = match transport(host, (tls, http2), trust) {
        Ok(transport) => transport,
        Err(error) => return Target::Unusable(error.into()),
    };
    match host.parse::<std::net::IpAddr>() {
        Ok(ip) => {
            let address = Address::tcp((ip, port).into(), &transport);
            Target::Fixed(Arc::new(Addresses::from(vec![address])))
        }
        Err(_) => Target::Named(Resolver::new(host.to_owned(), port, transport, dns.clone())),
    }
}

/// `host`: who has to be there, where there is TLS.
fn transport(
    host: &str,
    (tls, http2): (bool, bool),
    trust: Option<&Arc<UpstreamTrust>>,
) -> Result<Transport, String> {
    let tls = match tls {
        true => {
            let name: Name = host.parse().map_err(|error| format!("{host} {error}"))?;
            Some(TlsTransport::new(name, trust.cloned()))
        }
        false => None,
    };
    Ok(match (tls, http2) {
        (tls, true) => Transport::Http2(tls),
        (Some(tls), false) => Transport::Tls(tls),
        (None, false) => Transport::Plain,
    })
}

/// Anybody who can change an answer of DNS can name a target: what a certificate has to say is the
/// domain that was asked for (RFC 9525 section 6.1), behind service and protocol.
fn services(
    name: &str,
    how: (bool, bool),
    trust: Option<&Arc<UpstreamTrust>>,
    dns: &Dns,
) -> Target {
    let domain = name.splitn(3, '.').nth(2).unwrap_or(name);
    match transport(domain, how, trust) {
        Ok(transport) => {
            let resolver = Resolver::service(name.to_owned(), transport, dns.clone());
            Target::Named(resolver)
        }
        Err(error) => Target::Unusable(error.into()),
    }
}

/// As it is written, with its port.
pub fn label(upstream: &config::Upstream) -> String {
    match upstream {
        config::Upstream::Tcp {
            host,
            port,
            tls,
            http2,
        } => {
            let scheme = match (tls, http2) {
                (false, false) => "",
                (true, false) => "https://",
                (false, true) => "h2c://",
                (true, true) => "h2://",
            };
            let bare_ipv6 = host.contains(':') && !host.starts_with('[');
            match bare_ipv6 {
                true => format!("{scheme}[{host}]:{port}"),
                false => format!("{scheme}{host}:{port}"),
            }
        }
        config::Upstream::Unix(path) => format!("unix:{}", path.display()),
        config::Upstream::Srv { name, tls, http2 } => match (tls, http2) {
            (false, false) => format!("srv://{name}"),
            (true, false) => format!("srv+https://{name}"),
            (false, true) => format!("srv+h2c://{name}"),
            (true, true) => format!("srv+h2://{name}"),
        },
        config::Upstream::Respond(_) => "respond".to_owned(),
    }
}

#[cfg(test)]
mod tests;
