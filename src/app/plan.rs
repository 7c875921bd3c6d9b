//! What has to be done to get from one configuration to another. Pure: nothing here touches a
//! socket or a file.

use crate::config::{Config, ListenAddress, Site, TlsMode};
use crate::listener::accept::Protocol;

/// An address as configured, and what is spoken there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    pub address: ListenAddress,
    pub protocol: Protocol,
    /// Whether only sites are served there that say so.
    pub own: bool,
}

/// What differs between two configurations, as far as it takes more than using the new one.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    pub bind: Vec<Endpoint>,
    pub drop: Vec<Endpoint>,
    /// Whether the admin API moves.
    pub admin: bool,
    /// What cannot change while the server runs, and why: then nothing of the new one is taken.
    pub immutable: Vec<String>,
}

/// Where a configuration wants to listen. Without a site that uses TLS, `https_listen` is not used.
/// One with addresses of its own uses it for the challenges of a CA alone.
pub(super) fn endpoints(config: &Config) -> Vec<Endpoint> {
    let with = |protocol| {
        move |address: &ListenAddress| Endpoint {
            address: address.clone(),
            protocol,
            own: false,
        }
    };
    let wants_tls = config.sites.iter().any(|site| match site.listen[..] {
        [] => site.tls != TlsMode::Off,
        _ => may_be_validated(site),
    });
    let https: &[ListenAddress] = match wants_tls {
        true => &config.server.https_listen,
        false => &[],
    };
    let plain = config.server.http_listen.iter().map(with(Protocol::Http));
    let mut endpoints: Vec<Endpoint> = plain
        .chain(https.iter().map(with(Protocol::Https)))
        .collect();
    for own in config.sites.iter().flat_map(own_endpoints) {
        // Several sites may say the same.
        if !endpoints.contains(&own) {
            endpoints.push(own);
        }
    }
    endpoints
}

fn own_endpoints(site: &Site) -> impl Iterator<Item = Endpoint> {
    let protocol = match site.tls {
        TlsMode::Off => Protocol::Http,
        _ => Protocol::Https,
    };
    site.listen.iter().map(move |address| Endpoint {
        address: address.clone(),
        protocol,
        own: true,
    })
}

/// Whether a CA may look at it from outside, which it does at the usual ports.
fn may_be_validated(site: &Site) -> bool {
    let is_public = || site.any_host || site.hosts.iter().any(|host| !host.is_private());
    matches!(site.tls, TlsMode::Acme) || (site.tls == TlsMode::Auto && is_public())
}

impl Plan {
    pub fn new(old: &Config, new: &Config) -> Plan {
        let mut plan = Plan {
            drop: endpoints(old),
            admin: old.server.admin_listen != new.server.admin_listen,
            ..Plan::default()
        };
        for endpoint in endpoints(new) {
            // An address with port 0 can stand there several times.
            match plan.drop.iter().position(|old| *old == endpoint) {
                Some(same) => drop(plan.drop.remove(same)),
                None => plan.bind.push(endpoint),
            }
        }
        let (before, after) = (&old.server.state_dir, &new.server.state_dir);
        if before != after {
            plan.immutable.push(format!(
                "state_dir cannot change from {} to {} while the server runs: its lock, its \
                 accounts and the orders under way are in the old one; restart, or put it back",
                before.display(),
                after.display()
            ));
        }
        if old.server.threads != new.server.threads {
            plan.immutable.push(format!(
                "threads cannot change from {} to {} while the server runs: connections are \
                 spread over the threads that it started with; restart, or put it back",
                old.server.threads, new.server.threads
            ));
        }
        plan
    }

    /// The dropped endpoints that have to be closed before `new` can be bound.
    pub fn in_the_way_of(&self, new: &Endpoint) -> impl Iterator<Item = &Endpoint> {
        let new = new.address.clone();
        let dropped = self.drop.iter();
        dropped.filter(move |old| clash(&old.address, &new))
    }
}

/// Whether the kernel refuses to have both.
fn clash(one: &ListenAddress, other: &ListenAddress) -> bool {
    let (ListenAddress::Tcp(one), ListenAddress::Tcp(other)) = (one, other) else {
        return one == other;
    };
    let all = one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() != 0 && one.port() == other.port() && (one.ip() == other.ip() || all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(server: &str, tls: &str) -> Config {
        Config::of_text(&format!(
            "[server]\n{server}\n[[sites]]\nhosts = [\"a.test\"]\ntls = \"{tls}\"\nupstreams = [\"3000\"]\n"
        ))
    }

    fn plan(old: &str, new: &str) -> Plan {
        Plan::new(&config(old, "internal"), &config(new, "internal"))
    }

    fn shown(endpoints: &[Endpoint]) -> Vec<String> {
        let show = |e: &Endpoint| format!("{:?} {}", e.protocol, e.address);
        endpoints.iter().map(show).collect()
    }

    #[test]
    fn what_stays_is_left_alone() {
        let server = "http_listen = [\"127.0.0.1:0\", \"127.0.0.1:0\"]\ngrace_period = \"1s\"";
        let other = server.replace("1s", "2s");
        assert_eq!(plan(server, &other), Plan::default());
    }

    #[test]
    fn addresses_come_and_go_one_by_one() {
        let plan = plan(
            "http_listen = [\"127.0.0.1:0\", \"127.0.0.1:0\"]\nhttps_listen = [\":8443\"]",
            "http_listen = [\"127.0.0.1:0\", \":8080\"]\nhttps_listen = [\":8443\", \":9443\"]",
        );
        assert_eq!(shown(&plan.bind), ["Http [::]:8080", "Https [::]:9443"]);
        assert_eq!(shown(&plan.drop), ["Http 127.0.0.1:0"]);
        assert!(!plan.admin && plan.immutable.is_empty());
    }

    #[test]
    fn without_a_site_that_uses_tls_nobody_listens_for_it() {
        let plan = Plan::new(&config("", "internal"), &config("", "off"));
        assert_eq!(shown(&plan.drop), ["Https [::]:443"]);
        assert!(plan.bind.is_empty());
        let plan = Plan::new(&config("", "off"), &config("", "internal"));
        assert_eq!(shown(&plan.bind), ["Https [::]:443"]);
    }

    #[test]
    fn what_stands_in_the_way_is_known() {
        let in_the_way = |old: &str, new: &str| {
            let plan = plan(old, new);
            let found = plan.bind.iter().flat_map(|new| plan.in_the_way_of(new));
            shown(&found.cloned().collect::<Vec<_>>())
        };
        let old = "http_listen = [\"127.0.0.1:80\", \"127.0.0.1:81\"]";
        assert_eq!(
            in_the_way(old, "http_listen = [\"0.0.0.0:80\"]"),
            ["Http 127.0.0.1:80"]
        );
        let swapped = "http_listen = [\"127.0.0.1:82\"]\nhttps_listen = [\"127.0.0.1:81\"]";
        assert_eq!(in_the_way(old, swapped), ["Http 127.0.0.1:81"]);
        assert!(in_the_way(old, "http_listen = [\"127.0.0.2:80\"]").is_empty());
    }

    #[test]
    fn what_needs_a_restart_is_said_with_the_reason() {
        let plan = plan(
            "state_dir = \"/a\"\nthreads = 1",
            "state_dir = \"/b\"\nthreads = 2\nadmin_listen = \"off\"",
        );
        let [state_dir, threads] = &plan.immutable[..] else {
            panic!("{:?}", plan.immutable)
        };
        assert!(state_dir.starts_with("state_dir cannot change from /a to /b while"));
        assert!(threads.starts_with("threads cannot change from 1 to 2 while"));
        assert!(plan.admin);
    }
}
