//! Listening sockets: bound before anything else happens, so that an address that is taken ends the
//! start with a clear word.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::net::AddressFamily;
use socket2::{Domain, Protocol, Type};

use crate::config::{AccountKind, ListenAddress, SocketFile};

/// How many connections the kernel may hold for us before we accept them. The kernel lowers it to
/// `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// What others may do with a socket's file between its making and its mode: nothing.
const NEW_SOCKET_UMASK: u32 = 0o077;

/// A socket that could not be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}{}", remedy(.source, .address))]
pub struct BindError {
    pub address: ListenAddress,
    pub source: io::Error,
}

fn remedy(error: &io::Error, address: &ListenAddress) -> String {
    match (address, error.kind()) {
        (ListenAddress::Tcp(address), io::ErrorKind::AddrInUse) => format!(
            " (another process listens there; ss -ltnp 'sport = :{}' shows which)",
            address.port()
        ),
        (ListenAddress::Unix(path), io::ErrorKind::AddrInUse) => format!(
            " (another process listens there; ss -lxp src {} shows which)",
            path.display()
        ),
        (ListenAddress::Tcp(_), io::ErrorKind::PermissionDenied) => {
            " (ports below 1024 need root or the capability: setcap cap_net_bind_service=+ep PROGRAM)"
                .to_owned()
        }
        (ListenAddress::Unix(path), io::ErrorKind::PermissionDenied) => format!(
            " (this user may not write to the directory of {})",
            path.display()
        ),
        (_, io::ErrorKind::AddrNotAvailable) => {
            " (no interface of this host has this address)".to_owned()
        }
        _ => String::new(),
    }
}

/// A socket that listens.
#[derive(Debug)]
pub enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Socket {
    /// What was passed by somebody else. The error says what it is instead of a listening socket.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Socket> {
        let unfit = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, what.to_owned());
        if !rustix::net::sockopt::socket_acceptconn(&fd).map_err(|_| unfit("it is no socket"))? {
            return Err(unfit("it does not listen"));
        }
        rustix::io::ioctl_fionbio(&fd, true)?;
        rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)?;
        match rustix::net::sockopt::socket_domain(&fd)? {
            AddressFamily::INET | AddressFamily::INET6 => Ok(Socket::Tcp(fd.into())),
            AddressFamily::UNIX => Ok(Socket::Unix(fd.into())),
            _ => Err(unfit("it is neither a TCP nor a Unix socket")),
        }
    }

    /// Where it listens. A Unix socket that has no path is found nowhere.
    pub fn address(&self) -> io::Result<ListenAddress> {
        match self {
            Socket::Tcp(listener) => Ok(ListenAddress::Tcp(listener.local_addr()?)),
            Socket::Unix(listener) => {
                let address = listener.local_addr()?;
                let path = address.as_pathname().unwrap_or(Path::new(""));
                Ok(ListenAddress::Unix(path.to_owned()))
            }
        }
    }

    pub fn try_clone(&self) -> io::Result<Socket> {
        match self {
            Socket::Tcp(listener) => listener.try_clone().map(Socket::Tcp),
            Socket::Unix(listener) => listener.try_clone().map(Socket::Unix),
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Socket::Tcp(listener) => listener.as_fd(),
            Socket::Unix(listener) => listener.as_fd(),
        }
    }
}

/// Binds and listens; `file` is for Unix sockets.
pub fn bind(address: &ListenAddress, file: &SocketFile) -> Result<Socket, BindError> {
    match address {
        ListenAddress::Tcp(address) => bind_tcp(*address).map(Socket::Tcp),
        ListenAddress::Unix(path) => match bind_unix(path, file) {
            Ok(listener) => Ok(Socket::Unix(listener)),
            Err(source) => Err(BindError {
                address: address.clone(),
                source,
            }),
        },
    }
}

/// `[::]` takes IPv4 too; on a host without IPv6 it becomes `0.0.0.0`.
fn bind_tcp(address: SocketAddr) -> Result<TcpListener, BindError> {
    let failed = |address: SocketAddr, source| BindError {
        address: ListenAddress::Tcp(address),
        source,
    };
    let error = match try_bind(address) {
        Ok(listener) => return Ok(listener),
        Err(error) => error,
    };
    let any_v6 = address.is_ipv6() && address.ip().is_unspecified();
    if any_v6 && lacks_ipv6(&error) {
        let v4 = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), address.port());
        tracing::info!(%address, instead = %v4, "this host has no IPv6");
        return try_bind(v4).map_err(|source| failed(v4, source));
    }
    Err(failed(address, error))
}

fn lacks_ipv6(error: &io::Error) -> bool {
    use rustix::io::Errno;
    [Errno::AFNOSUPPORT, Errno::ADDRNOTAVAIL]
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

fn try_bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket2::Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    // Restarting must not wait for the connections of the run before to time out.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Takes the place of a socket file that nobody listens on any more, and of nothing else.
fn bind_unix(path: &Path, file: &SocketFile) -> io::Result<UnixListener> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    match std::fs::symlink_metadata(path) {
        Ok(meta) if meta.file_type().is_socket() => {
            if UnixStream::connect(path).is_ok() {
                let reason = "another process listens there";
                return Err(io::Error::new(io::ErrorKind::AddrInUse, reason));
            }
            std::fs::remove_file(path)?;
        }
        Ok(_) => {
            let reason = "there is a file that is no socket; move it out of the way";
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, reason));
        }
        Err(_) => {}
    }
    let id = |kind, name: &Option<Box<str>>| {
        let name = name.as_ref();
        name.map(|name| account_id(kind, name)).transpose()
    };
    let owner = id(AccountKind::User, &file.owner)?;
    let group = id(AccountKind::Group, &file.group)?;
    let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    let umask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(NEW_SOCKET_UMASK));
    let bound = socket.bind(&socket2::SockAddr::unix(path)?);
    rustix::process::umask(umask);
    bound?;
    std::os::unix::fs::chown(path, owner, group)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(file.mode))?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// The number of a user or a group by name, or by number.
pub fn account_id(kind: AccountKind, name: &str) -> io::Result<u32> {
    if let Ok(id) = name.parse() {
        return Ok(id);
    }
    let (what, id) = match kind {
        AccountKind::User => {
            let user = nix::unistd::User::from_name(name)?;
            ("user", user.map(|user| user.uid.as_raw()))
        }
        AccountKind::Group => {
            let group = nix::unistd::Group::from_name(name)?;
            ("group", group.map(|group| group.gid.as_raw()))
        }
    };
    id.ok_or_else(|| nobody(what, name))
}

fn nobody(what: &str, name: &str) -> io::Error {
    let message = format!("this host has no {what} {name:?}");
    io::Error::new(io::ErrorKind::NotFound, message)
}

/// The file of a Unix socket of ours, which is removed with this, unless another has taken its place
/// by then.
#[derive(Debug)]
pub struct SocketPath {
    path: PathBuf,
    /// Which file it is.
    file: Identity,
}

impl SocketPath {
    /// `None`: there is none.
    pub fn of(address: &ListenAddress) -> Option<SocketPath> {
        let ListenAddress::Unix(path) = address else {
            return None;
        };
        Some(SocketPath {
            path: path.clone(),
            file: identity(path)?,
        })
    }

    /// Somebody else listens there from now on.
    pub fn leave(self) {
        std::mem::forget(self);
    }
}

impl Drop for SocketPath {
    fn drop(&mut self) {
        if identity(&self.path) == Some(self.file) {
            // Whoever connects to it would only find nobody there; a file that stays does no harm.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Device, inode, and when it was made: the inode of a file that is gone is given to the next one.
type Identity = (u64, u64, i64, i64);

fn identity(path: &Path) -> Option<Identity> {
    let meta = std::fs::symlink_metadata(path).ok()?;
    Some((meta.dev(), meta.ino(), meta.mtime(), meta.mtime_nsec()))
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ListenAddress::Tcp(address) => address.fmt(f),
            ListenAddress::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(text: &str) -> ListenAddress {
        ListenAddress::Tcp(text.parse().unwrap())
    }

    #[test]
    fn a_taken_port_is_named_with_its_cause() {
        let first = bind(&tcp("127.0.0.1:0"), &SocketFile::private()).unwrap();
        let address = first.address().unwrap();
        let message = bind(&address, &SocketFile::private())
            .unwrap_err()
            .to_string();
        assert!(
            message.starts_with(&format!("cannot listen on {address}: ")),
            "{message}"
        );
        assert!(
            message.contains("another process listens there"),
            "{message}"
        );
    }

    #[test]
    fn the_unspecified_v6_address_takes_v4() {
        let listener = bind(&tcp("[::]:0"), &SocketFile::private()).unwrap();
        let ListenAddress::Tcp(address) = listener.address().unwrap() else {
            panic!("not TCP");
        };
        std::net::TcpStream::connect(("127.0.0.1", address.port())).unwrap();
    }

    #[test]
    fn a_socket_file_is_replaced_once_nobody_listens_and_removed_at_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("below/http.sock");
        let address = ListenAddress::Unix(path.clone());
        let file = &SocketFile::default();
        let first = bind(&address, file).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
        let message = bind(&address, file).unwrap_err().to_string();
        assert!(message.contains("another process listens"), "{message}");
        let old_file = SocketPath::of(&address).unwrap();
        drop(first);
        let second = bind(&address, file).unwrap();
        drop(old_file);
        assert!(path.exists(), "it is another's");
        let new_file = SocketPath::of(&address);
        drop((second, new_file));
        assert!(!path.exists());
        std::fs::write(&path, "precious").unwrap();
        assert!(bind(&address, file).is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn what_does_not_listen_is_no_listening_socket() {
        let (one, _other) = UnixStream::pair().unwrap();
        let error = Socket::from_fd(one.into()).unwrap_err();
        assert_eq!(error.to_string(), "it does not listen");
        let file = std::fs::File::open("/dev/null").unwrap();
        let error = Socket::from_fd(file.into()).unwrap_err();
        assert_eq!(error.to_string(), "it is no socket");
    }
}
