//! Questions to DNS for upstreams: addresses and services, and how long the answers are good for. The
//! file of hosts comes first, as everywhere on the system.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{NameServerConfig, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::RData;

/// What says whom to ask, and what is known without asking.
const FILES: [&str; 2] = ["/etc/resolv.conf", "/etc/hosts"];

/// The system's own resolver does not say how long an answer is good for.
const SYSTEM_GOOD_FOR: Duration = Duration::from_secs(10);

/// Whom upstreams' names are asked of. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Dns {
    /// Empty for the system's.
    servers: Arc<[SocketAddr]>,
    current: Arc<Mutex<Option<Current>>>,
}

/// A resolver, and the state of the files that it was made from.
#[derive(Clone)]
struct Current {
    resolver: TokioResolver,
    files: [Option<SystemTime>; FILES.len()],
}

impl std::fmt::Debug for Current {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Current").finish_non_exhaustive()
    }
}

/// An answer, and how long it is good for.
pub struct Found<T> {
    pub values: Vec<T>,
    pub good_for: Duration,
}

/// The target of a service (RFC 2782).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub host: String,
    pub port: u16,
    pub priority: u16,
    pub weight: u16,
}

impl Dns {
    /// `servers`: empty for the system's.
    pub fn new(servers: &[SocketAddr]) -> Dns {
        Dns {
            servers: servers.into(),
            current: Arc::default(),
        }
    }

    /// The addresses of a host. What DNS does not know the system may: it has other ways, too.
    pub async fn addresses(&self, host: &str) -> Result<Found<IpAddr>, String> {
        let asked = match self.resolver() {
            Ok(resolver) => resolver
                .lookup_ip(host)
                .await
                .map_err(|error| error.to_string()),
            Err(error) => Err(error),
        };
        match asked {
            Ok(found) => Ok(Found {
                values: found.iter().collect(),
                good_for: left(found.valid_until()),
            }),
            Err(_) if self.servers.is_empty() => by_system(host).await,
            Err(error) => Err(error),
        }
    }

    /// The targets of a service, in no order.
    pub async fn services(&self, name: &str) -> Result<Found<Service>, String> {
        let found = self.resolver()?.srv_lookup(name).await;
        let found = found.map_err(|error| error.to_string())?;
        let records = found
            .answers()
            .iter()
            .filter_map(|record| match &record.data {
                RData::SRV(srv) => Some(Service {
                    host: srv.target.to_ascii(),
                    port: srv.port,
                    priority: srv.priority,
                    weight: srv.weight,
                }),
                _ => None,
            });
        let values: Vec<Service> = records.collect();
        // A single "." says that there is no such service here.
        match values.iter().all(|service| service.host == ".") {
            true => Err("it says that there is no such service".to_owned()),
            false => Ok(Found {
                values,
                good_for: left(found.valid_until()),
            }),
        }
    }

    /// Made anew when the files behind it have changed.
    fn resolver(&self) -> Result<TokioResolver, String> {
        let modified = |path: &&str| std::fs::metadata(path).and_then(|it| it.modified()).ok();
        let files = FILES.each_ref().map(modified);
        // Every change is whole: a panic elsewhere leaves nothing half done.
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(current) = current.as_ref().filter(|current| current.files == files) {
            return Ok(current.resolver.clone());
        }
        let resolver = build(&self.servers).map_err(|error| error.to_string())?;
        *current = Some(Current {
            resolver: resolver.clone(),
            files,
        });
        Ok(resolver)
    }
}

fn build(servers: &[SocketAddr]) -> Result<TokioResolver, hickory_resolver::net::NetError> {
    let mut builder = match servers.is_empty() {
        true => TokioResolver::builder_tokio()?,
        false => {
            let servers = servers.iter().map(|address| {
                let mut server = NameServerConfig::udp_and_tcp(address.ip());
                for connection in &mut server.connections {
                    connection.port = address.port();
                }
                server
            });
            let config = ResolverConfig::from_parts(None, Vec::new(), servers.collect());
            let mut builder =
                TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
            *builder.options_mut() = ResolverOpts::default();
            builder
        }
    };
    // Answers are kept where they are used.
    builder.options_mut().cache_size = 0;
    builder.build()
}

async fn by_system(host: &str) -> Result<Found<IpAddr>, String> {
    let found = tokio::net::lookup_host((host, 0)).await;
    let found = found.map_err(|error| error.to_string())?;
    Ok(Found {
        values: found.map(|address| address.ip()).collect(),
        good_for: SYSTEM_GOOD_FOR,
    })
}

fn left(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now())
}
