//! Where to listen: TCP addresses and Unix sockets.

use std::net::{AddrParseError, IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::diagnostic::{Diagnostic, Place, Problem};
use super::value::{Parsed, listen_address, socket_path};

/// A socket file's mode where none is configured: whoever is in its group may connect.
const DEFAULT_MODE: u32 = 0o660;

/// Where connections are accepted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ListenAddress {
    Tcp(SocketAddr),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

/// TCP alone: paths depend on what they are relative to.
impl FromStr for ListenAddress {
    type Err = AddrParseError;

    fn from_str(text: &str) -> Result<ListenAddress, AddrParseError> {
        text.parse().map(ListenAddress::Tcp)
    }
}

/// Who may connect to the Unix sockets that requests come in on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketFile {
    pub mode: u32,
    /// A name or a number; whoever runs the server if `None`.
    pub owner: Option<Box<str>>,
    pub group: Option<Box<str>>,
}

impl Default for SocketFile {
    fn default() -> SocketFile {
        SocketFile {
            mode: DEFAULT_MODE,
            owner: None,
            group: None,
        }
    }
}

impl SocketFile {
    /// For whoever runs the server alone.
    pub fn private() -> SocketFile {
        SocketFile {
            mode: 0o600,
            ..SocketFile::default()
        }
    }
}

/// A user or a group that a configuration names, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccountReference {
    pub kind: AccountKind,
    pub name: Box<str>,
    pub place: Place,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccountKind {
    User,
    Group,
}

impl AccountReference {
    /// A diagnostic about it, in the form of all others.
    pub fn diagnostic(&self, message: String) -> Diagnostic {
        Diagnostic {
            place: self.place.clone(),
            message,
            help: Some("make it, or name another; a number is taken as it is".to_owned()),
        }
    }
}

/// `unix:PATH` or an address and a port.
pub(super) fn listen(text: &str, base: &Path) -> Parsed<ListenAddress> {
    match text.strip_prefix("unix:") {
        Some(path) => socket_path(path, base).map(ListenAddress::Unix),
        None => listen_address(text).map(ListenAddress::Tcp),
    }
}

/// As chmod takes it.
pub(super) fn socket_mode(text: &str) -> Parsed<u32> {
    let is_octal = !text.is_empty() && text.bytes().all(|byte| matches!(byte, b'0'..=b'7'));
    let mode = u32::from_str_radix(text, 8)
        .ok()
        .filter(|mode| is_octal && *mode <= 0o777);
    match mode {
        Some(mode) if mode & 0o600 == 0o600 => Ok(mode),
        Some(_) => Err(
            Problem::new(format!("{text:?} keeps the owner itself out of the socket"))
                .help("write for example \"0660\""),
        ),
        None => Err(Problem::new(format!("{text:?} is no file mode"))
            .help("write it in octal digits, such as \"0660\"")),
    }
}

/// The name of a user or a group, or a number.
pub(super) fn account_name(text: &str) -> Parsed<Box<str>> {
    let is_name = !text.is_empty()
        && !text.starts_with('-')
        && !text.contains(|c: char| c.is_whitespace() || c.is_control() || c == ':');
    match is_name {
        true => Ok(text.into()),
        false => Err(
            Problem::new(format!("{text:?} is no name of a user or a group"))
                .help("write a name such as \"www-data\", or a number"),
        ),
    }
}

/// Whether two sockets cannot both listen there. Port 0 lets the system choose, and never clashes.
pub(super) fn overlap(a: &ListenAddress, b: &ListenAddress) -> bool {
    match (a, b) {
        (ListenAddress::Tcp(a), ListenAddress::Tcp(b)) => overlap_tcp(*a, *b),
        (a, b) => a == b,
    }
}

fn overlap_tcp(a: SocketAddr, b: SocketAddr) -> bool {
    let (x, y) = (a.ip().to_canonical(), b.ip().to_canonical());
    // An IPv6 socket on the unspecified address takes IPv4 connections as well.
    let takes = |ip: IpAddr, other: IpAddr| {
        ip == Ipv6Addr::UNSPECIFIED || (ip == Ipv4Addr::UNSPECIFIED && other.is_ipv4())
    };
    a.port() == b.port() && a.port() != 0 && (x == y || takes(x, y) || takes(y, x))
}
