//! Which names the intermediate may sign for (RFC 5280 section 4.2.1.10).
//!
//! A root that a person trusts on their machine is dangerous if its key leaks; constraints on the
//! intermediate, whose key is the one in daily use, keep that danger to names that no public site
//! has.
//!
//! Addresses are constrained too, since public resolvers are reached by address over HTTPS. OpenSSL,
//! NSS, GnuTLS, Go, Apple, Chrome and rustls read such constraints; a client that verifies with
//! BoringSSL's own X.509 code alone (gRPC, Envoy) knows none on addresses and refuses leaves for
//! addresses under them, never leaves for DNS names.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rcgen::{CidrSubnet, GeneralSubtree};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::X509Certificate;

use crate::certificate::name::Name;

/// More names than this outside the private ones, and the list would protect nobody while every
/// handshake carries it.
const MAX_EXTRA_NAMES: usize = 32;

/// A part of the name space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subtree {
    /// The domain and all below it.
    Dns(String),
    /// An address and the length of its prefix in bits.
    Ip(IpAddr, u8),
}

/// What an intermediate may sign for. `None`: anything.
pub type Permitted = Option<Vec<Subtree>>;

/// The private name space and, beside it, what of `names` is outside it.
pub fn permitted(names: &[Name]) -> Permitted {
    let mut subtrees = private();
    let private = subtrees.len();
    for name in names {
        if !subtrees.iter().any(|subtree| subtree.contains(name)) {
            subtrees.push(Subtree::of(name));
        }
    }
    (subtrees.len() - private <= MAX_EXTRA_NAMES).then_some(subtrees)
}

/// Whether all `names` are permitted.
pub fn permits(permitted: &Permitted, names: &[Name]) -> bool {
    permitted.as_ref().is_none_or(|subtrees| {
        names
            .iter()
            .all(|name| subtrees.iter().any(|subtree| subtree.contains(name)))
    })
}

/// The constraints of a certificate, as it has them.
pub fn of_certificate(certificate: &X509Certificate<'_>) -> Result<Permitted, String> {
    let constraints = certificate
        .name_constraints()
        .map_err(|error| format!("its name constraints are unreadable ({error})"))?;
    let Some(permitted) = constraints.and_then(|it| it.value.permitted_subtrees.as_ref()) else {
        return Ok(None);
    };
    Ok(Some(
        permitted
            .iter()
            .filter_map(|subtree| Subtree::of_general_name(&subtree.base))
            .collect(),
    ))
}

fn private() -> Vec<Subtree> {
    let v4 = |a, b, bits| Subtree::Ip(IpAddr::V4(Ipv4Addr::new(a, b, 0, 0)), bits);
    let v6 = |first, bits| Subtree::Ip(IpAddr::V6(Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, 0)), bits);
    let mut subtrees: Vec<Subtree> = ["localhost", "local", "internal", "home.arpa"]
        .map(|domain| Subtree::Dns(domain.to_owned()))
        .to_vec();
    subtrees.extend([
        v4(10, 0, 8),
        v4(172, 16, 12),
        v4(192, 168, 16),
        v4(127, 0, 8),
        v4(169, 254, 16),
        Subtree::Ip(IpAddr::V6(Ipv6Addr::LOCALHOST), 128),
        v6(0xfc00, 7),
        v6(0xfe80, 10),
    ]);
    subtrees
}

impl Subtree {
    /// The smallest that contains `name`.
    fn of(name: &Name) -> Subtree {
        match name {
            Name::Dns(dns) | Name::Wildcard(dns) => Subtree::Dns(dns.to_string()),
            Name::Ip(ip) => Subtree::Ip(*ip, if ip.is_ipv4() { 32 } else { 128 }),
        }
    }

    fn contains(&self, name: &Name) -> bool {
        match (self, name) {
            (Subtree::Dns(domain), Name::Dns(dns) | Name::Wildcard(dns)) => dns
                .strip_suffix(domain.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.ends_with('.')),
            (Subtree::Ip(IpAddr::V4(net), bits), Name::Ip(IpAddr::V4(ip))) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(*bits)).unwrap_or(0);
                (u32::from(*net) ^ u32::from(*ip)) & mask == 0
            }
            (Subtree::Ip(IpAddr::V6(net), bits), Name::Ip(IpAddr::V6(ip))) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(*bits)).unwrap_or(0);
                (u128::from(*net) ^ u128::from(*ip)) & mask == 0
            }
            _ => false,
        }
    }

    pub fn to_general(&self) -> GeneralSubtree {
        match self {
            Subtree::Dns(domain) => GeneralSubtree::DnsName(domain.clone()),
            Subtree::Ip(ip, bits) => {
                GeneralSubtree::IpAddress(CidrSubnet::from_addr_prefix(*ip, *bits))
            }
        }
    }

    fn of_general_name(name: &GeneralName<'_>) -> Option<Subtree> {
        match name {
            GeneralName::DNSName(domain) => Some(Subtree::Dns((*domain).to_owned())),
            GeneralName::IPAddress(bytes) if bytes.len() == 8 => {
                let ip = <[u8; 4]>::try_from(&bytes[..4]).ok()?;
                let mask = u32::from_be_bytes(bytes[4..].try_into().ok()?);
                Some(Subtree::Ip(ip.into(), mask.leading_ones() as u8))
            }
            GeneralName::IPAddress(bytes) if bytes.len() == 32 => {
                let ip = <[u8; 16]>::try_from(&bytes[..16]).ok()?;
                let mask = u128::from_be_bytes(bytes[16..].try_into().ok()?);
                Some(Subtree::Ip(ip.into(), mask.leading_ones() as u8))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(texts: &[&str]) -> Vec<Name> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn private_names_need_nothing_extra() {
        let all = names(&[
            "localhost",
            "a.localhost",
            "*.localhost",
            "printer.local",
            "x.internal",
            "nas.home.arpa",
            "10.1.2.3",
            "172.31.0.1",
            "192.168.0.1",
            "127.0.0.1",
            "169.254.1.1",
            "::1",
            "fd00::1",
            "fe80::1",
        ]);
        assert_eq!(permitted(&all), Some(private()));
        assert!(permits(&Some(private()), &all));
    }

    #[test]
    fn what_is_outside_is_outside() {
        for name in [
            "example.com",
            "notlocalhost",
            "mylocal",
            "arpa",
            "11.0.0.1",
            "172.32.0.1",
            "192.169.0.1",
            "::2",
            "2001:db8::1",
            "fec0::1",
        ] {
            assert!(!permits(&Some(private()), &names(&[name])), "{name}");
        }
    }

    #[test]
    fn names_outside_are_added_once_each() {
        let extra = names(&[
            "intranet",
            "*.corp.example",
            "a.corp.example",
            "203.0.113.7",
        ]);
        let permitted = permitted(&extra);
        assert_eq!(permitted.as_ref().unwrap().len(), private().len() + 3);
        assert!(permits(&permitted, &extra));
        assert!(permits(&permitted, &names(&["b.intranet"])));
        assert!(!permits(&permitted, &names(&["203.0.113.8"])));
        assert!(!permits(&permitted, &names(&["example"])));
    }

    #[test]
    fn too_many_names_are_unconstrained() {
        let texts: Vec<String> = (0..33).map(|n| format!("host{n}")).collect();
        let all: Vec<Name> = texts.iter().map(|text| text.parse().unwrap()).collect();
        assert!(permitted(&all[..32]).is_some());
        assert_eq!(permitted(&all), None);
        assert!(permits(&None, &all));
    }
}
