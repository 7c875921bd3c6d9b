//! Perennial's configuration for each size.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;

use perennial_bench::certificates::name;

/// Which names there are sites for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sites {
    /// One, for every name.
    Wildcard,
    /// So many, each for one name of its own.
    Each(usize),
    /// One, for so many names that are written out.
    Hosts(usize),
}

/// What is not here is at its default.
pub struct Scale<'a> {
    pub threads: usize,
    pub sites: Sites,
    /// The pool of every site.
    pub upstreams: &'a [SocketAddr],
    pub certificates: &'a Path,
    pub state: &'a Path,
}

pub fn configuration(scale: &Scale<'_>, address: SocketAddr) -> String {
    let mut text = format!(
        // All clients are one, which by default has a part of the connections.
        "[server]\nhttp_listen = []\nhttps_listen = [\"{address}\"]\nadmin_listen = \"off\"\n\
         max_connections = 0\nmax_connections_per_client = 0\n\
         threads = {}\nstate_dir = {:?}\n[certificates]\ndirectories = [{:?}]\n",
        scale.threads, scale.state, scale.certificates,
    );
    let upstreams: Vec<String> = scale.upstreams.iter().map(SocketAddr::to_string).collect();
    let mut site = |hosts: &[String]| {
        let _ = writeln!(
            text,
            "[[sites]]\nhosts = {hosts:?}\ntls = \"files\"\nupstreams = {upstreams:?}"
        );
    };
    match scale.sites {
        Sites::Wildcard => site(&["*.bench.test".to_owned()]),
        Sites::Each(count) => (0..count).for_each(|number| site(&[name(number)])),
        Sites::Hosts(count) => site(&(0..count).map(name).collect::<Vec<_>>()),
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_site_has_its_name_and_the_whole_pool() {
        let upstreams = [
            "127.0.0.1:80".parse().unwrap(),
            "127.0.0.2:80".parse().unwrap(),
        ];
        let scale = |sites| Scale {
            threads: 2,
            sites,
            upstreams: &upstreams,
            certificates: Path::new("/c"),
            state: Path::new("/s"),
        };
        let hosts = |sites| -> Vec<Vec<String>> {
            let text = configuration(&scale(sites), "127.0.0.1:443".parse().unwrap());
            let table: toml::Table = text.parse().unwrap();
            assert_eq!(table["server"]["threads"].as_integer(), Some(2));
            let sites = table["sites"].as_array().unwrap();
            let both = |site: &toml::Value| site["upstreams"].as_array().unwrap().len() == 2;
            assert!(sites.iter().all(both));
            let hosts = |site: &toml::Value| site["hosts"].as_array().unwrap().clone();
            let text = |host: &toml::Value| host.as_str().unwrap().to_owned();
            let of_site = |site: &toml::Value| hosts(site).iter().map(text).collect();
            sites.iter().map(of_site).collect()
        };
        assert_eq!(hosts(Sites::Wildcard), [["*.bench.test"]]);
        assert_eq!(hosts(Sites::Each(2)), [[name(0)], [name(1)]]);
        assert_eq!(hosts(Sites::Hosts(2)), [[name(0), name(1)]]);
    }
}
