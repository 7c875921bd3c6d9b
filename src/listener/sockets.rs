//! Listening sockets: bound before anything else happens, so that a port that is taken ends the
//! start with a clear word.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};

/// How many connections the kernel may hold for us before we accept them. The kernel lowers it to
/// `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// A socket that could not be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}{}", remedy(.source, .address))]
pub struct BindError {
    pub address: SocketAddr,
    pub source: io::Error,
}

fn remedy(error: &io::Error, address: &SocketAddr) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => format!(
            " (another process listens there; ss -ltnp 'sport = :{}' shows which)",
            address.port()
        ),
        io::ErrorKind::PermissionDenied => {
            " (ports below 1024 need root or the capability: setcap cap_net_bind_service=+ep PROGRAM)"
                .to_owned()
        }
        io::ErrorKind::AddrNotAvailable => " (no interface of this host has this address)".to_owned(),
        _ => String::new(),
    }
}

/// Binds and listens. `[::]` takes IPv4 too; on a host without IPv6 it becomes `0.0.0.0`.
pub fn bind(address: SocketAddr) -> Result<TcpListener, BindError> {
    let error = match try_bind(address) {
        Ok(listener) => return Ok(listener),
        Err(error) => error,
    };
    let any_v6 = address.is_ipv6() && address.ip().is_unspecified();
    if any_v6 && lacks_ipv6(&error) {
        let v4 = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), address.port());
        tracing::info!(%address, instead = %v4, "this host has no IPv6");
        return try_bind(v4).map_err(|source| BindError {
            address: v4,
            source,
        });
    }
    Err(BindError {
        address,
        source: error,
    })
}

fn lacks_ipv6(error: &io::Error) -> bool {
    use rustix::io::Errno;
    [Errno::AFNOSUPPORT, Errno::ADDRNOTAVAIL]
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

fn try_bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_named_with_its_cause() {
        let first = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = first.local_addr().unwrap();
        let message = bind(address).unwrap_err().to_string();
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
        let listener = bind("[::]:0".parse().unwrap()).unwrap();
        let port = listener.local_addr().unwrap().port();
        std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    }
}
