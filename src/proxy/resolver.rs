//! The addresses behind an upstream's DNS name, looked up when a request needs them and again when
//! the answer is old. An answer that cannot be renewed stays in use: DNS may fail, serving not.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use tokio::sync::Mutex;

use super::address::{Address, Addresses, Transport};

/// The system's resolver does not say how long an answer is good for.
const GOOD_FOR: Duration = Duration::from_secs(10);

/// Long enough that requests in a burst do not each ask for a name that does not resolve.
const BAD_FOR: Duration = Duration::from_secs(1);

/// As for a dial: the request waits for both.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(3);

/// One name, and what it last resolved to.
pub struct Resolver {
    host: String,
    port: u16,
    transport: Transport,
    last: ArcSwapOption<Lookup>,
    /// Held during a look-up: there is one at a time.
    looking_up: Mutex<()>,
}

struct Lookup {
    result: Result<Arc<Addresses>, Arc<str>>,
    fresh_until: Instant,
}

impl Resolver {
    pub fn new(host: String, port: u16, transport: Transport) -> Resolver {
        Resolver {
            host,
            port,
            transport,
            last: ArcSwapOption::empty(),
            looking_up: Mutex::new(()),
        }
    }

    /// The targets of the SRV records of a name.
    pub fn srv(name: String) -> Resolver {
        Resolver::new(name, 0, Transport::Plain)
    }

    /// The addresses, or why there are none.
    pub async fn addresses(&self) -> Result<Arc<Addresses>, Arc<str>> {
        if let Some(fresh) = self.fresh() {
            return fresh;
        }
        let _guard = match (self.looking_up.try_lock(), self.stale()) {
            (Ok(guard), _) => guard,
            (Err(_), Some(stale)) => return Ok(stale),
            (Err(_), None) => self.looking_up.lock().await,
        };
        // Somebody else may have asked while this request waited.
        match self.fresh() {
            Some(fresh) => fresh,
            None => self.renew(self.look_up().await),
        }
    }

    fn fresh(&self) -> Option<Result<Arc<Addresses>, Arc<str>>> {
        let last = self.last.load();
        last.as_ref()
            .filter(|last| Instant::now() < last.fresh_until)
            .map(|last| last.result.clone())
    }

    fn stale(&self) -> Option<Arc<Addresses>> {
        self.last.load().as_ref()?.result.clone().ok()
    }

    /// Keeps the answer, or in place of a failure the addresses there were before.
    fn renew(&self, answer: Result<Vec<SocketAddr>, String>) -> Result<Arc<Addresses>, Arc<str>> {
        let now = Instant::now();
        let (result, fresh_until) = match answer {
            Ok(addresses) => (Ok(self.dialable(addresses)), now + GOOD_FOR),
            Err(error) => match self.stale() {
                Some(stale) => {
                    tracing::warn!(upstream = %self.host, %error, "the last known addresses stay in use");
                    (Ok(stale), now + GOOD_FOR)
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

    fn dialable(&self, addresses: Vec<SocketAddr>) -> Arc<Addresses> {
        let addresses: Vec<Address> = addresses
            .into_iter()
            .map(|address| Address::tcp(address, &self.transport))
            .collect();
        Arc::new(Addresses::from(addresses))
    }

    async fn look_up(&self) -> Result<Vec<SocketAddr>, String> {
        let failed = |cause: &str| format!("{} does not resolve: {cause}", self.host);
        let lookup = tokio::net::lookup_host((self.host.as_str(), self.port));
        let addresses: Vec<_> = match tokio::time::timeout(LOOKUP_TIMEOUT, lookup).await {
            Ok(Ok(addresses)) => addresses.collect(),
            Ok(Err(error)) => return Err(failed(&error.to_string())),
            Err(_) => return Err(failed("no answer within 3 s")),
        };
        let mut seen = HashSet::new();
        let addresses: Vec<_> = addresses
            .into_iter()
            .filter(|it| seen.insert(*it))
            .collect();
        match addresses.is_empty() {
            true => Err(failed("it has no addresses")),
            false => Ok(addresses),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolver(host: &str) -> Resolver {
        Resolver::new(host.into(), 80, Transport::Plain)
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
        let resolver = resolver("a.test");
        assert_eq!(labels(resolver.renew(Err("refused".into()))), ["refused"]);
        assert!(resolver.stale().is_none());
        let answer = Ok(vec!["192.0.2.1:80".parse().unwrap()]);
        assert_eq!(labels(resolver.renew(answer)), ["192.0.2.1:80"]);
        assert_eq!(
            labels(resolver.renew(Err("timeout".into()))),
            ["192.0.2.1:80"]
        );
    }

    #[tokio::test]
    async fn while_one_asks_the_others_use_what_is_there() {
        let resolver = resolver("a.test");
        let old = Lookup {
            result: Ok(resolver.dialable(vec!["192.0.2.1:80".parse().unwrap()])),
            fresh_until: Instant::now(),
        };
        resolver.last.store(Some(Arc::new(old)));
        let _asking = resolver.looking_up.lock().await;
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
