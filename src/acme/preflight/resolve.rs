//! Where a name leads, by DNS, and whether that is here.

use std::net::{IpAddr, UdpSocket};

use super::{Check, Topic, Verdict};
use crate::acme::dns::Lookup;
use crate::certificate::name::Name;

/// The addresses of a name, or what is wrong with it.
pub(super) async fn addresses(lookup: &Lookup, name: &Name) -> Result<Vec<IpAddr>, Check> {
    if let Name::Ip(ip) = name {
        return Ok(vec![*ip]);
    }
    match lookup.addresses(&name.to_string()).await {
        Ok(addresses) if addresses.is_empty() => Err(Check::fails(
            Topic::Address,
            format!("{name} has neither an A nor an AAAA record"),
            format!("add {name}. IN A (or AAAA) with an address of this host"),
        )),
        Ok(addresses) => Ok(addresses),
        Err(error) => Err(Check::warning(
            Topic::Address,
            format!("{name} cannot be looked up: {error}"),
            "look at the zone's name servers, and at this host's resolvers",
        )),
    }
}

/// Whether the addresses are this host's. `reached`: how asking ourselves there went; where a
/// router or a balancer stands in front, that alone can tell.
pub(super) fn judge(name: &Name, addresses: &[IpAddr], reached: Option<Verdict>) -> Check {
    let texts: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
    let leads = format!("{name} leads to {}", texts.join(", "));
    let (own, strange): (Vec<&IpAddr>, Vec<&IpAddr>) =
        addresses.iter().partition(|ip| is_own(**ip));
    if strange.is_empty() {
        return Check::ok(Topic::Address, format!("{leads}, of this host"));
    }
    if reached == Some(Verdict::Ok) {
        return Check::ok(Topic::Address, format!("{leads}, and so to this process"));
    }
    let cause = match own.is_empty() {
        true => format!("{leads}, which is no address of this host"),
        false => format!("{leads}, of which {} is none of this host", strange[0]),
    };
    Check::warning(
        Topic::Address,
        cause,
        "if no router or load balancer there leads here, change the record",
    )
}

/// A socket can be bound to the addresses of a host's own interfaces alone.
fn is_own(ip: IpAddr) -> bool {
    UdpSocket::bind((ip, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn here_elsewhere_and_behind_a_router() {
        let name = "a.test".parse().unwrap();
        let here: IpAddr = "127.0.0.1".parse().unwrap();
        // Of documentation (RFC 5737): nobody has it.
        let elsewhere: IpAddr = "192.0.2.1".parse().unwrap();
        let verdict = |addresses: &[IpAddr], reached| judge(&name, addresses, reached).verdict;
        assert_eq!(verdict(&[here], None), Verdict::Ok);
        assert_eq!(verdict(&[elsewhere], None), Verdict::Warning);
        assert_eq!(
            verdict(&[here, elsewhere], Some(Verdict::Warning)),
            Verdict::Warning
        );
        assert_eq!(verdict(&[elsewhere], Some(Verdict::Ok)), Verdict::Ok);
        let cause = judge(&name, &[here, elsewhere], None).cause;
        assert!(cause.contains("of which 192.0.2.1"), "{cause}");
    }
}
