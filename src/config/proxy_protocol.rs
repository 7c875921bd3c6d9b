//! The PROXY protocol: from whom it is expected, and to whom it is spoken.

use super::IpPrefix;
use super::diagnostic::Problem;
use super::value::{Parsed, ip_prefix};

/// The version that an upstream gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProxyProtocol {
    V1,
    V2,
}

/// Whose connections begin with a header.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProxyProtocolFrom {
    pub networks: Vec<IpPrefix>,
    /// Those on Unix sockets.
    pub unix: bool,
}

impl FromIterator<Option<IpPrefix>> for ProxyProtocolFrom {
    /// `None` is a Unix socket.
    fn from_iter<I: IntoIterator<Item = Option<IpPrefix>>>(peers: I) -> ProxyProtocolFrom {
        let mut from = ProxyProtocolFrom::default();
        for peer in peers {
            match peer {
                Some(network) => from.networks.push(network),
                None => from.unix = true,
            }
        }
        from
    }
}

pub(super) fn peer(text: &str) -> Parsed<Option<IpPrefix>> {
    match text {
        "unix" => Ok(None),
        text => ip_prefix(text).map(Some),
    }
}

pub(super) fn version(text: &str) -> Parsed<Option<ProxyProtocol>> {
    match text {
        "v1" => Ok(Some(ProxyProtocol::V1)),
        "v2" => Ok(Some(ProxyProtocol::V2)),
        "off" => Ok(None),
        _ => Err(
            Problem::new(format!("{text:?} is no version of the PROXY protocol"))
                .help("it can be v1, v2, off"),
        ),
    }
}
