//! The addresses behind an upstream's DNS name, looked up when a request needs them and again when
//! the answer is old. An answer that cannot be renewed stays in use: DNS may fail, serving not.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use futures_util::future::join_all;
use tokio::sync::Mutex;

use super::address::{Address, Addresses, Transport};
use super::dns::{Dns, Service};

/// An answer is good for as long as it says, within these: one of a moment would be asked for by every
/// request, and one of a day would outlive what it says, and a change in the file of hosts.
const LEAST_GOOD_FOR: Duration = Duration::from_secs(1);
const MOST_GOOD_FOR: Duration = Duration::from_secs(60);

/// How long an old answer stays in use that cannot be renewed.
const STALE_GOOD_FOR: Duration = Duration::from_secs(10);

/// Long enough that requests in a burst do not each ask for a name that does not resolve.
const BAD_FOR: Duration = Duration::from_secs(1);

/// As for a dial: the request waits for both.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(3);

/// Within so long after an answer has grown old a request takes it as it is, and has it renewed.
const USED_OLD_FOR: Duration = Duration::from_secs(60);

/// One name, and what it last resolved to. Clones share it.
#[derive(Clone)]
pub struct Resolver(Arc<Shared>);

struct Shared {
    question: Question,
    transport: Transport,
    dns: Dns,
    last: ArcSwapOption<Lookup>,
    /// Held during a look-up: there is one at a time.
    looking_up: Mutex<()>,
}

/// What is asked for.
enum Question {
    Host { host: String, port: u16 },
    Service(String),
}

struct Lookup {
    result: Result<Arc<Addresses>, Arc<str>>,
    fresh_until: Instant,
}

/// An address with its priority and weight.
type Ranked = (SocketAddr, (u16, u16));

impl Resolver {
    pub fn new(host: String, port: u16, transport: Transport, dns: Dns) -> Resolver {
        Resolver::of(Question::Host { host, port }, transport, dns)
    }

    /// The targets of the SRV records of a name.
    pub fn service(name: String, transport: Transport, dns: Dns) -> Resolver {
        Resolver::of(Question::Service(name), transport, dns)
    }

    fn of(question: Question, transport: Transport, dns: Dns) -> Resolver {
        Resolver(Arc::new(Shared {
            question,
            transport,
            dns,
            last: ArcSwapOption::empty(),
            looking_up: Mutex::new(()),
        }))
    }

    /// The addresses, or why there are none.
    pub async fn addresses(&self) -> Result<Arc<Addresses>, Arc<str>> {
        let shared = &self.0;
        if let Some(fresh) = shared.fresh() {
            return fresh;
        }
        if let Some(old) = shared.old() {
            let renewed = self.clone();
            tokio::spawn(async move { renewed.0.ask_alone().await });
            return Ok(old);
        }
        let _guard = match (shared.looking_up.try_lock(), shared.stale()) {
            (Ok(guard), _) => guard,
            (Err(_), Some(stale)) => return Ok(stale),
            (Err(_), None) => shared.looking_up.lock().await,
        };
        // Somebody else may have asked while this request waited.
        match shared.fresh() {
            Some(fresh) => fresh,
            None => shared.renew(shared.look_up().await),
        }
    }
}

impl Shared {
    fn fresh(&self) -> Option<Result<Arc<Addresses>, Arc<str>>> {
        let last = self.last.load();
        last.as_ref()
            .filter(|last| Instant::now() < last.fresh_until)
            .map(|last| last.result.clone())
    }

    fn stale(&self) -> Option<Arc<Addresses>> {
        self.last.load().as_ref()?.result.clone().ok()
    }

    /// What has grown old a short while ago.
    fn old(&self) -> Option<Arc<Addresses>> {
        let last = self.last.load();
        let last = last.as_ref()?;
        let recently = Instant::now() < last.fresh_until + USED_OLD_FOR;
        last.result.clone().ok().filter(|_| recently)
    }

    /// Unless somebody else is asking.
    async fn ask_alone(&self) {
        if let Ok(_guard) = self.looking_up.try_lock()
            && self.fresh().is_none()
        {
            // Whoever needs it finds it, or its failure, where it is kept.
            let _ = self.renew(self.look_up().await);
        }
    }

    /// Keeps the answer, or in place of a failure the addresses there were before.
    fn renew(
        &self,
        answer: Result<(Vec<Ranked>, Duration), String>,
    ) -> Result<Arc<Addresses>, Arc<str>> {
        let now = Instant::now();
        let (result, fresh_until) = match answer {
            Ok((addresses, good_for)) => {
                let good_for = good_for.clamp(LEAST_GOOD_FOR, MOST_GOOD_FOR);
                (Ok(self.dialable(addresses)), now + good_for)
            }
            Err(error) => match self.stale() {
                Some(stale) => {
                    let upstream = self.question.name();
                    tracing::warn!(upstream, %error, "the last known addresses stay in use");
                    (Ok(stale), now + STALE_GOOD_FOR)
                }
                None => (Err(error.into()), now + BAD_FOR),
            },
        };
        self.last.store(Some(Arc::new(Lookup {
            result: result.clone(),
            fresh_until,
        })));
        result
    }

    /// Those that there are already, where nothing has changed: what is known of them stays known.
    fn dialable(&self, mut found: Vec<Ranked>) -> Arc<Addresses> {
        // Servers answer in another order each time.
        found.sort();
        let addresses: Vec<Address> = found
            .into_iter()
            .map(|(address, (priority, weight))| {
                Address::tcp(address, &self.transport).ranked(priority, weight)
            })
            .collect();
        let addresses = Arc::new(Addresses::from(addresses));
        match self.stale() {
            Some(old) if old.is_same(&addresses) => old,
            _ => addresses,
        }
    }

    async fn look_up(&self) -> Result<(Vec<Ranked>, Duration), String> {
        let name = self.question.name();
        let failed = |cause: &str| format!("{name} does not resolve: {cause}");
        let found = match tokio::time::timeout(LOOKUP_TIMEOUT, self.ask()).await {
            Ok(found) => found.map_err(|cause| failed(&cause))?,
            Err(_) => return Err(failed("no answer within 3 s")),
        };
        let (addresses, good_for) = found;
        let mut seen = HashSet::new();
        let addresses: Vec<_> = addresses
            .into_iter()
            .filter(|(address, _)| seen.insert(*address))
            .collect();
        match addresses.is_empty() {
            true => Err(failed("it has no addresses")),
            false => Ok((addresses, good_for)),
        }
    }

    async fn ask(&self) -> Result<(Vec<Ranked>, Duration), String> {
        let name = match &self.question {
            Question::Host { host, port } => {
                let found = self.dns.addresses(host).await?;
                let addresses = found.values.into_iter();
                let addresses = addresses.map(|ip| (SocketAddr::new(ip, *port), (0, 0)));
                return Ok((addresses.collect(), found.good_for));
            }
            Question::Service(name) => name,
        };
        let services = self.dns.services(name).await?;
        let mut good_for = services.good_for;
        let (mut all, mut last_error) = (Vec::new(), None);
        let hosts = services
            .values
            .iter()
            .map(|it| self.dns.addresses(&it.host));
        for (service, found) in services.values.iter().zip(join_all(hosts).await) {
            match found {
                Ok(found) => {
                    good_for = good_for.min(found.good_for);
                    all.extend(ranked(service, &found.values));
                }
                Err(error) => last_error = Some(format!("its target {}: {error}", service.host)),
            }
        }
        match last_error.filter(|_| all.is_empty()) {
            Some(error) => Err(error),
            None => Ok((all, good_for)),
        }
    }
}

/// A weight of 0 is a very small one (RFC 2782), and no rank at all means that all are alike.
fn ranked<'s>(
    service: &'s Service,
    ips: &'s [std::net::IpAddr],
) -> impl Iterator<Item = Ranked> + 's {
    let rank = (service.priority, service.weight.max(1));
    ips.iter()
        .map(move |ip| (SocketAddr::new(*ip, service.port), rank))
}

impl Question {
    fn name(&self) -> &str {
        match self {
            Question::Host { host, .. } => host,
            Question::Service(name) => name,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolver(host: &str) -> Resolver {
        Resolver::new(host.into(), 80, Transport::Plain, Dns::default())
    }

    fn labels(addresses: Result<Arc<Addresses>, Arc<str>>) -> Vec<String> {
        addresses.map_or_else(
            |error| vec![error.to_string()],
            |addresses| addresses.iter().map(|it| it.label().to_owned()).collect(),
        )
    }

    #[tokio::test]
    async fn an_answer_is_used_again() {
        let resolver = resolver("localhost");
        let first = resolver
            .addresses()
            .await
            .unwrap_or_else(|error| panic!("{error}"));
        let second = resolver
            .addresses()
            .await
            .unwrap_or_else(|error| panic!("{error}"));
        assert!(Arc::ptr_eq(&first, &second));
        assert!(!first.is_empty());
    }

    #[test]
    fn a_failure_keeps_the_last_addresses() {
        let resolver = resolver("a.test").0;
        assert_eq!(labels(resolver.renew(Err("refused".into()))), ["refused"]);
        assert!(resolver.stale().is_none());
        let answer = |port| {
            let address = SocketAddr::from(([192, 0, 2, 1], port));
            Ok((vec![(address, (0, 0))], Duration::from_secs(5)))
        };
        let first = resolver
            .renew(answer(80))
            .unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(labels(Ok(first.clone())), ["192.0.2.1:80"]);
        let failed = resolver.renew(Err("timeout".into()));
        assert_eq!(labels(failed), ["192.0.2.1:80"]);
        // The same answer again is the same addresses, with what is known of them.
        let again = resolver
            .renew(answer(80))
            .unwrap_or_else(|error| panic!("{error}"));
        assert!(Arc::ptr_eq(&first, &again));
        assert_eq!(labels(resolver.renew(answer(81))), ["192.0.2.1:81"]);
    }

    #[tokio::test]
    async fn while_one_asks_the_others_use_what_is_there() {
        let resolver = resolver("a.test");
        let address = SocketAddr::from(([192, 0, 2, 1], 80));
        let old = Lookup {
            result: Ok(resolver.0.dialable(vec![(address, (0, 0))])),
            fresh_until: Instant::now(),
        };
        resolver.0.last.store(Some(Arc::new(old)));
        let _asking = resolver.0.looking_up.lock().await;
        assert_eq!(labels(resolver.addresses().await), ["192.0.2.1:80"]);
    }

    #[tokio::test]
    async fn what_does_not_resolve_is_named() {
        let error = labels(resolver("name.invalid").addresses().await);
        assert!(
            error[0].starts_with("name.invalid does not resolve: "),
            "{error:?}"
        );
    }
}
