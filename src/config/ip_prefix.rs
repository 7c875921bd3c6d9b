//! Networks of addresses.

use std::net::IpAddr;

/// The addresses that begin with the same bits. IPv4-mapped IPv6 addresses count as IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IpPrefix {
    /// With all bits behind the prefix zero.
    bits: u128,
    length: u8,
    is_ipv4: bool,
}

impl IpPrefix {
    /// `10.0.0.0/8`, or one address.
    pub fn parse(text: &str) -> Option<IpPrefix> {
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => {
                let is_number = length.bytes().all(|byte| byte.is_ascii_digit());
                (
                    address,
                    Some(length.parse::<u8>().ok().filter(|_| is_number)?),
                )
            }
            None => (text, None),
        };
        let address: IpAddr = address.parse().ok()?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let length = length.unwrap_or(most);
        (length <= most).then(|| IpPrefix::new(address, length))
    }

    fn new(address: IpAddr, length: u8) -> IpPrefix {
        let (bits, is_ipv4) = left_aligned(address);
        IpPrefix {
            bits: bits & mask(length),
            length,
            is_ipv4,
        }
    }

    /// The network of an address, of so many bits: whoever has one of its addresses has them all.
    pub fn around(address: IpAddr, ipv4_bits: u8, ipv6_bits: u8) -> IpPrefix {
        match address.to_canonical() {
            address @ IpAddr::V4(_) => IpPrefix::new(address, ipv4_bits),
            address @ IpAddr::V6(_) => IpPrefix::new(address, ipv6_bits),
        }
    }

    pub fn contains(&self, address: IpAddr) -> bool {
        let (bits, is_ipv4) = left_aligned(address.to_canonical());
        is_ipv4 == self.is_ipv4 && bits & mask(self.length) == self.bits
    }
}

fn left_aligned(address: IpAddr) -> (u128, bool) {
    match address {
        IpAddr::V4(address) => (u128::from(address.to_bits()) << 96, true),
        IpAddr::V6(address) => (address.to_bits(), false),
    }
}

fn mask(length: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_in_its_network() {
        for (network, address, expected) in [
            ("10.0.0.0/8", "10.255.0.1", true),
            ("10.1.2.3/8", "10.255.0.1", true),
            ("10.0.0.0/8", "11.0.0.0", false),
            ("10.0.0.0/8", "::ffff:10.0.0.1", true),
            ("0.0.0.0/0", "192.0.2.1", true),
            ("0.0.0.0/0", "::1", false),
            ("::/0", "::1", true),
            ("::/0", "192.0.2.1", false),
            ("192.0.2.1", "192.0.2.1", true),
            ("192.0.2.1", "192.0.2.2", false),
            ("2001:db8::/32", "2001:db8:ffff::", true),
            ("2001:db8::/32", "2001:db9::", false),
        ] {
            let prefix = IpPrefix::parse(network).unwrap();
            assert_eq!(
                prefix.contains(address.parse().unwrap()),
                expected,
                "{network} {address}"
            );
        }
    }

    #[test]
    fn other_texts_are_none() {
        for text in [
            "",
            "10",
            "10.0.0.0/33",
            "::/129",
            "10.0.0.0/-1",
            "10.0.0.0/+8",
            "a/8",
            "10.0.0.0/",
        ] {
            assert_eq!(IpPrefix::parse(text), None, "{text}");
        }
    }
}
