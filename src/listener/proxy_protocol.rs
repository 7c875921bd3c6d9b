//! The PROXY protocol (HAProxy's `proxy-protocol.txt`, versions 1 and 2): what a proxy says of its
//! client before anything else, read and written. Parsing and writing are pure; reading takes not a
//! byte more than the header.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::config::ProxyProtocol;

/// How long a proxy may take for its header, which it sends as soon as it has connected.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// What version 1 begins with.
const V1_START: &[u8] = b"PROXY ";

/// The longest header of version 1, its end included.
const V1_MAX: usize = 107;

/// What version 2 begins with: no other protocol does.
const V2_START: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// Signature, version and command, family, length.
const V2_FIXED: usize = 16;

/// Addresses and what else a proxy has to say (TLVs): certificates of clients are the longest of it.
const V2_MAX_REST: usize = 8 * 1024;

/// The type of the TLV with a checksum of the whole header.
const TLV_CRC32C: u8 = 0x03;

/// What a proxy says of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// Between these two it would be, without the proxy.
    Proxied {
        client: SocketAddr,
        local: SocketAddr,
    },
    /// It is the proxy's own (a health check), or nothing is known about the client.
    Local,
}

/// Why there is no header.
#[derive(Debug, thiserror::Error)]
pub enum ProxyProtocolError {
    #[error("no PROXY protocol header came within {HEADER_TIMEOUT:?}")]
    Timeout,
    #[error("what came is no PROXY protocol header: {0}")]
    Malformed(&'static str),
    #[error("the connection ended within the PROXY protocol header")]
    Closed,
    #[error("cannot read the PROXY protocol header: {0}")]
    Io(#[from] io::Error),
}

use ProxyProtocolError::Malformed;

/// Reads the header off the connection, and nothing of what follows.
pub async fn read(stream: &mut TcpStream) -> Result<Header, ProxyProtocolError> {
    match tokio::time::timeout(HEADER_TIMEOUT, read_header(stream)).await {
        Ok(header) => header,
        Err(_) => Err(ProxyProtocolError::Timeout),
    }
}

async fn read_header(stream: &mut TcpStream) -> Result<Header, ProxyProtocolError> {
    let mut header = Vec::new();
    let mut ahead = [0; V1_MAX];
    loop {
        let (before, wanted) = (header.len(), ahead.len());
        let seen = stream.peek(&mut ahead[..wanted]).await?;
        if seen == 0 {
            return Err(ProxyProtocolError::Closed);
        }
        header.extend_from_slice(&ahead[..seen]);
        let parsed = parse(&header)?;
        // Without a whole header everything that has come is part of it.
        let taken = match &parsed {
            Some((_, length)) => length - before,
            None => seen,
        };
        stream.read_exact(&mut ahead[..taken]).await?;
        if let Some((header, _)) = parsed {
            return Ok(header);
        }
    }
}

/// The header that `bytes` begin with, and its length. `None`: it may still become one.
pub fn parse(bytes: &[u8]) -> Result<Option<(Header, usize)>, ProxyProtocolError> {
    if starts_alike(bytes, V2_START) {
        return parse_v2(bytes);
    }
    if starts_alike(bytes, V1_START) {
        return parse_v1(bytes);
    }
    Err(Malformed("it begins in another way"))
}

/// Whether one of them begins with the other.
fn starts_alike(bytes: &[u8], start: &[u8]) -> bool {
    let length = bytes.len().min(start.len());
    bytes[..length] == start[..length]
}

fn parse_v1(bytes: &[u8]) -> Result<Option<(Header, usize)>, ProxyProtocolError> {
    let line = &bytes[..bytes.len().min(V1_MAX)];
    let Some(end) = line.windows(2).position(|pair| pair == b"\r\n") else {
        return match line.len() {
            V1_MAX => Err(Malformed("its line does not end")),
            _ => Ok(None),
        };
    };
    let text = std::str::from_utf8(&line[..end]).map_err(|_| Malformed("it is no text"))?;
    let words: Vec<&str> = text.split(' ').skip(1).collect();
    let header = match words[..] {
        ["UNKNOWN", ..] => Header::Local,
        ["TCP4", from, to, from_port, to_port] => {
            let ip = |text: &str| text.parse::<Ipv4Addr>().ok().map(IpAddr::V4);
            proxied(ip(from), ip(to), from_port, to_port)?
        }
        ["TCP6", from, to, from_port, to_port] => {
            let ip = |text: &str| text.parse::<Ipv6Addr>().ok().map(IpAddr::V6);
            proxied(ip(from), ip(to), from_port, to_port)?
        }
        _ => return Err(Malformed("it is neither of TCP4 nor of TCP6")),
    };
    Ok(Some((header, end + 2)))
}

fn proxied(
    from: Option<IpAddr>,
    to: Option<IpAddr>,
    from_port: &str,
    to_port: &str,
) -> Result<Header, ProxyProtocolError> {
    let port = |text: &str| {
        let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<u16>().ok().filter(|_| is_number)
    };
    match (from, to, port(from_port), port(to_port)) {
        (Some(from), Some(to), Some(from_port), Some(to_port)) => Ok(Header::Proxied {
            client: SocketAddr::new(from, from_port),
            local: SocketAddr::new(to, to_port),
        }),
        _ => Err(Malformed("an address in it is none")),
    }
}

fn parse_v2(bytes: &[u8]) -> Result<Option<(Header, usize)>, ProxyProtocolError> {
    let Some(fixed) = bytes.get(..V2_FIXED) else {
        return Ok(None);
    };
    let (command, family) = (fixed[12], fixed[13]);
    let rest_length = usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    if rest_length > V2_MAX_REST {
        return Err(Malformed("it is too long"));
    }
    let length = V2_FIXED + rest_length;
    let Some(whole) = bytes.get(..length) else {
        return Ok(None);
    };
    let rest = &whole[V2_FIXED..];
    let header = match command {
        0x20 => (Header::Local, rest.len()),
        0x21 => match family {
            // Unspecified, and Unix sockets: nothing that could be an address of the client.
            0x00 | 0x31 => (Header::Local, rest.len()),
            0x11 => (addresses::<4>(rest)?, 12),
            0x21 => (addresses::<16>(rest)?, 36),
            _ => return Err(Malformed("it is of another protocol than TCP")),
        },
        _ => return Err(Malformed("its version or command is unknown")),
    };
    let (header, addresses) = header;
    check_tlvs(whole, V2_FIXED + addresses)?;
    Ok(Some((header, length)))
}

/// Two addresses of so many bytes, and two ports.
fn addresses<const N: usize>(rest: &[u8]) -> Result<Header, ProxyProtocolError>
where
    IpAddr: From<[u8; N]>,
{
    let short = Malformed("it is too short for its addresses");
    let (Some(from), Some(to), Some(ports)) = (
        rest.first_chunk::<N>(),
        rest.get(N..).and_then(|rest| rest.first_chunk::<N>()),
        rest.get(2 * N..).and_then(|rest| rest.first_chunk::<4>()),
    ) else {
        return Err(short);
    };
    let port = |bytes: [u8; 2]| u16::from_be_bytes(bytes);
    Ok(Header::Proxied {
        client: SocketAddr::new(IpAddr::from(*from), port([ports[0], ports[1]])),
        local: SocketAddr::new(IpAddr::from(*to), port([ports[2], ports[3]])),
    })
}

/// Skips what else is said, which begins at `at`; the checksum has to be right if it is there.
fn check_tlvs(whole: &[u8], mut at: usize) -> Result<(), ProxyProtocolError> {
    while at < whole.len() {
        let Some([kind, high, low]) = whole.get(at..).and_then(|rest| rest.first_chunk::<3>())
        else {
            return Err(Malformed("what else it says does not end where it ends"));
        };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let Some(value) = whole.get(at + 3..at + 3 + length) else {
            return Err(Malformed("what else it says does not end where it ends"));
        };
        if *kind == TLV_CRC32C {
            let mut zeroed = whole.to_vec();
            zeroed[at + 3..at + 3 + length].fill(0);
            if value != crc32c(&zeroed).to_be_bytes() {
                return Err(Malformed("its checksum is wrong"));
            }
        }
        at += 3 + length;
    }
    Ok(())
}

/// RFC 3720, appendix B.4. Bit by bit: there is one short header a connection, and few have it.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            let carry = crc & 1;
            crc >>= 1;
            if carry == 1 {
                crc ^= 0x82f6_3b78;
            }
        }
    }
    !crc
}

/// The header for an upstream. Of two addresses of different families, IPv6 has room for both.
pub fn write(version: ProxyProtocol, client: SocketAddr, local: SocketAddr) -> Vec<u8> {
    let (from, to) = (client.ip().to_canonical(), local.ip().to_canonical());
    let (from, to) = match (from, to) {
        (IpAddr::V4(_), IpAddr::V4(_)) => (from, to),
        (from, to) => (IpAddr::V6(as_v6(from)), IpAddr::V6(as_v6(to))),
    };
    match version {
        ProxyProtocol::V1 => {
            let family = if from.is_ipv4() { "TCP4" } else { "TCP6" };
            let (from_port, to_port) = (client.port(), local.port());
            format!("PROXY {family} {from} {to} {from_port} {to_port}\r\n").into_bytes()
        }
        ProxyProtocol::V2 => {
            let mut header = V2_START.to_vec();
            let (family, length) = if from.is_ipv4() {
                (0x11, 12)
            } else {
                (0x21, 36)
            };
            header.extend_from_slice(&[0x21, family, 0, length]);
            for ip in [from, to] {
                match ip {
                    IpAddr::V4(ip) => header.extend_from_slice(&ip.octets()),
                    IpAddr::V6(ip) => header.extend_from_slice(&ip.octets()),
                }
            }
            header.extend_from_slice(&client.port().to_be_bytes());
            header.extend_from_slice(&local.port().to_be_bytes());
            header
        }
    }
}

fn as_v6(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(client: &str, local: &str) -> Header {
        Header::Proxied {
            client: client.parse().unwrap(),
            local: local.parse().unwrap(),
        }
    }

    fn whole(bytes: &[u8]) -> Result<(Header, usize), String> {
        // Whatever comes in pieces is not judged before it is whole, and judged as if it were.
        let judged = parse(bytes).map_err(|error| error.to_string());
        if let Ok(Some((_, length))) = &judged {
            for end in 0..*length {
                assert!(matches!(parse(&bytes[..end]), Ok(None)), "{end}");
            }
        }
        judged.and_then(|parsed| parsed.ok_or("more".to_owned()))
    }

    #[test]
    fn version_1_is_a_line() {
        for (text, expected) in [
            (
                "PROXY TCP4 192.0.2.1 198.51.100.2 4711 443\r\nGET",
                Some(header("192.0.2.1:4711", "198.51.100.2:443")),
            ),
            (
                "PROXY TCP6 2001:db8::1 2001:db8::2 1 65535\r\n",
                Some(header("[2001:db8::1]:1", "[2001:db8::2]:65535")),
            ),
            ("PROXY UNKNOWN\r\n", Some(Header::Local)),
            ("PROXY UNKNOWN ff:: :: 1 2\r\n", Some(Header::Local)),
            ("PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n", None),
            ("PROXY TCP4 192.0.2.1 198.51.100.2 +1 443\r\n", None),
            ("PROXY TCP4 192.0.2.1 198.51.100.2 4711 65536\r\n", None),
            ("PROXY TCP4  192.0.2.1 198.51.100.2 4711 443\r\n", None),
            ("PROXY UDP4 192.0.2.1 198.51.100.2 4711 443\r\n", None),
            ("PROXY TCP4 192.0.2.1 198.51.100.2 4711\r\n", None),
            ("GET / HTTP/1.1\r\n", None),
        ] {
            let parsed = whole(text.as_bytes()).ok().map(|(header, _)| header);
            assert_eq!(parsed, expected, "{text:?}");
        }
        assert_eq!(whole(b"PROXY UNKNOWN\r\nGET").unwrap().1, 15);
        let endless = [b"PROXY UNKNOWN ".as_slice(), &[b'x'; 200]].concat();
        assert!(whole(&endless).unwrap_err().contains("does not end"));
    }

    fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [&V2_START[..], &[command, family], &length, rest].concat()
    }

    const V4: [u8; 12] = [192, 0, 2, 1, 198, 51, 100, 2, 0x12, 0x67, 1, 0xbb];

    #[test]
    fn version_2_is_binary_and_tlvs_are_skipped() {
        let expected = header("192.0.2.1:4711", "198.51.100.2:443");
        let plain = v2(0x21, 0x11, &V4);
        assert_eq!(whole(&plain), Ok((expected, 28)));
        let tlv = [&V4[..], &[0x02, 0, 3], b"a.b"].concat();
        assert_eq!(whole(&v2(0x21, 0x11, &tlv)), Ok((expected, 34)));
        let mut v6 = [0; 36];
        v6[15] = 1;
        v6[31] = 2;
        v6[33] = 9;
        let expected = header("[::1]:9", "[::2]:0");
        assert_eq!(whole(&v2(0x21, 0x21, &v6)), Ok((expected, 52)));
        for (command, family, rest) in [
            (0x20, 0x00, &b""[..]),
            (0x20, 0x11, &V4[..]),
            (0x21, 0x00, &b""[..]),
            (0x21, 0x31, &[0; 216][..]),
        ] {
            let length = V2_FIXED + rest.len();
            let parsed = whole(&v2(command, family, rest));
            assert_eq!(parsed, Ok((Header::Local, length)), "{command} {family}");
        }
    }

    #[test]
    fn what_is_wrong_with_version_2_is_said() {
        let truncated = [&V4[..], &[0x02, 0, 30], b"a.b"].concat();
        for (bytes, expected) in [
            (v2(0x11, 0x11, &V4), "version or command"),
            (v2(0x22, 0x11, &V4), "version or command"),
            (v2(0x21, 0x12, &V4), "another protocol"),
            (v2(0x21, 0x11, &V4[..11]), "too short"),
            (v2(0x21, 0x11, &truncated), "does not end where"),
            (v2(0x21, 0x00, &vec![0; V2_MAX_REST + 1]), "too long"),
        ] {
            let error = whole(&bytes).unwrap_err();
            assert!(error.contains(expected), "{expected}: {error}");
        }
    }

    #[test]
    fn a_checksum_is_looked_at() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        let with = |checksum: [u8; 4]| {
            let tlv = [&V4[..], &[TLV_CRC32C, 0, 4], &checksum].concat();
            v2(0x21, 0x11, &tlv)
        };
        let right = crc32c(&with([0; 4]));
        assert!(whole(&with(right.to_be_bytes())).is_ok());
        let wrong = whole(&with([1, 2, 3, 4])).unwrap_err();
        assert!(wrong.contains("checksum"), "{wrong}");
    }

    #[test]
    fn what_is_written_is_what_is_read() {
        for (client, local, as_read) in [
            ("192.0.2.1:4711", "198.51.100.2:443", None),
            ("[2001:db8::1]:4711", "[2001:db8::2]:443", None),
            (
                "[2001:db8::1]:4711",
                "198.51.100.2:443",
                Some(("[2001:db8::1]:4711", "[::ffff:198.51.100.2]:443")),
            ),
        ] {
            let (from, to) = as_read.unwrap_or((client, local));
            for version in [ProxyProtocol::V1, ProxyProtocol::V2] {
                let written = write(version, client.parse().unwrap(), local.parse().unwrap());
                let expected = (header(from, to), written.len());
                assert_eq!(whole(&written), Ok(expected), "{version:?}");
            }
        }
    }
}
