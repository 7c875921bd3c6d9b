//! Sockets that listen already and were passed to this process: by a service manager
//! (sd_listen_fds(3)), or by the process that it takes over from. It binds nothing.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use listenfd::ListenFd;

use super::sockets::Socket;
use crate::config::ListenAddress;

/// What the sockets are called, in their order, colons between.
const LISTEN_FDNAMES: &str = "LISTEN_FDNAMES";

/// Passed sockets that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PassedError {
    #[error(
        "the file descriptor {name} that was passed cannot be used: {source} (it has to be a \
         listening TCP or Unix stream socket)"
    )]
    Unfit { name: String, source: io::Error },
    #[error(
        "the socket {address} that was passed as {name} is none that the configuration listens on: \
         {configured} (add it there, or take it out of the socket unit)"
    )]
    Unknown {
        address: ListenAddress,
        name: String,
        configured: String,
    },
}

/// The sockets that were passed.
#[derive(Debug, Default)]
pub struct Passed {
    sockets: Vec<Given>,
    /// Whether whoever passed them keeps them, too. Then they are kept here as well: an address
    /// that was dropped for a while could not be bound again.
    is_kept: bool,
}

#[derive(Debug)]
struct Given {
    socket: Socket,
    address: ListenAddress,
    name: String,
    taken: bool,
}

impl Passed {
    /// Those of a service manager. To be called once, before anything else opens files.
    pub fn from_service_manager() -> Result<Passed, PassedError> {
        let names = std::env::var(LISTEN_FDNAMES).unwrap_or_default();
        let mut names = names.split(':');
        let mut given = ListenFd::from_env();
        let mut sockets = Vec::new();
        for index in 0..given.len() {
            let name = match names.next() {
                Some(name) if !name.is_empty() => name.to_owned(),
                _ => format!("number {}", index + 3),
            };
            let socket = take(&mut given, index);
            sockets.push(Given::new(socket, name)?);
        }
        Ok(Passed {
            sockets,
            is_kept: true,
        })
    }

    /// Those of the process that this one takes over from.
    pub fn from_predecessor(sockets: Vec<OwnedFd>) -> Result<Passed, PassedError> {
        let sockets = sockets.into_iter().enumerate().map(|(index, fd)| {
            let socket = Socket::from_fd(fd);
            Given::new(socket, format!("socket {index} of the old process"))
        });
        Ok(Passed {
            sockets: sockets.collect::<Result<_, _>>()?,
            is_kept: false,
        })
    }

    /// The one for an address, if it was passed.
    pub fn take(&mut self, wanted: &ListenAddress) -> Option<Socket> {
        let fits: [fn(&ListenAddress, &ListenAddress) -> bool; 2] = [is_same, is_any_port];
        let index = fits.iter().find_map(|fits| {
            let mut sockets = self.sockets.iter();
            sockets.position(|one| (self.is_kept || !one.taken) && fits(&one.address, wanted))
        })?;
        if !self.is_kept {
            return Some(self.sockets.swap_remove(index).socket);
        }
        let one = &mut self.sockets[index];
        one.taken = true;
        // Without a descriptor to be had for it, binding fails with a better word.
        one.socket.try_clone().ok()
    }

    /// To be called once all that is configured was asked for. Of what another process listened on
    /// the rest is given up; what a service manager has passed has to be wanted.
    pub fn settle(&mut self, configured: &[ListenAddress]) -> Result<(), PassedError> {
        if !self.is_kept {
            self.sockets.clear();
        }
        match self.sockets.iter().find(|one| !one.taken) {
            None => Ok(()),
            Some(one) => Err(PassedError::Unknown {
                address: one.address.clone(),
                name: one.name.clone(),
                configured: in_words(configured),
            }),
        }
    }
}

impl Given {
    fn new(socket: io::Result<Socket>, name: String) -> Result<Given, PassedError> {
        let located = socket.and_then(|socket| Ok((socket.address()?, socket)));
        match located {
            Ok((address, socket)) => Ok(Given {
                socket,
                address,
                name,
                taken: false,
            }),
            Err(source) => Err(PassedError::Unfit { name, source }),
        }
    }
}

fn take(given: &mut ListenFd, index: usize) -> io::Result<Socket> {
    // Which of both it is says the socket itself.
    let fd: OwnedFd = match given.take_unix_listener(index) {
        Ok(Some(listener)) => listener.into(),
        _ => match given.take_tcp_listener(index)? {
            Some(listener) => listener.into(),
            None => return Err(io::ErrorKind::NotFound.into()),
        },
    };
    Socket::from_fd(fd)
}

/// On a host without IPv6 the address of all is IPv4's.
fn is_same(passed: &ListenAddress, wanted: &ListenAddress) -> bool {
    match (passed, wanted) {
        (ListenAddress::Tcp(passed), ListenAddress::Tcp(wanted)) => {
            let stands_in = passed.ip().is_unspecified()
                && wanted.ip().is_unspecified()
                && wanted.is_ipv6()
                && passed.port() == wanted.port();
            passed == wanted || stands_in
        }
        (passed, wanted) => passed == wanted,
    }
}

/// Where the system was to choose the port, it has chosen before.
fn is_any_port(passed: &ListenAddress, wanted: &ListenAddress) -> bool {
    let ip = |address: &SocketAddr| -> IpAddr { address.ip() };
    match (passed, wanted) {
        (ListenAddress::Tcp(passed), ListenAddress::Tcp(wanted)) => {
            wanted.port() == 0 && ip(passed) == ip(wanted)
        }
        _ => false,
    }
}

fn in_words(addresses: &[ListenAddress]) -> String {
    let texts: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    match texts.is_empty() {
        true => "it listens nowhere".to_owned(),
        false => texts.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::super::sockets::bind;
    use super::*;
    use crate::config::SocketFile;

    fn bound(text: &str) -> Socket {
        let address = ListenAddress::Tcp(text.parse().unwrap());
        bind(&address, &SocketFile::private()).unwrap()
    }

    fn passed(sockets: Vec<Socket>, is_kept: bool) -> Passed {
        let given = sockets.into_iter().map(|socket| {
            let given = Given::new(Ok(socket), "web".to_owned());
            given.unwrap()
        });
        Passed {
            sockets: given.collect(),
            is_kept,
        }
    }

    #[test]
    fn each_goes_to_its_own_address() {
        let (one, other) = (bound("127.0.0.1:0"), bound("127.0.0.1:0"));
        let addresses = [&one, &other].map(|socket| socket.address().unwrap());
        let mut passed = passed(vec![one, other], false);
        for address in &addresses {
            let socket = passed.take(address).unwrap();
            assert_eq!(socket.address().unwrap(), *address);
            assert!(passed.take(address).is_none(), "it is given once");
        }
    }

    #[test]
    fn a_port_that_the_system_chose_stays() {
        let socket = bound("127.0.0.1:0");
        let mut passed = passed(vec![socket], false);
        let any = ListenAddress::Tcp("127.0.0.1:0".parse().unwrap());
        assert!(passed.take(&any).is_some());
        assert!(passed.take(&any).is_none());
    }

    #[test]
    fn what_a_service_manager_passes_has_to_be_wanted() {
        let socket = bound("127.0.0.1:0");
        let address = socket.address().unwrap();
        let other = ListenAddress::Tcp("127.0.0.1:1".parse().unwrap());
        let mut passed = passed(vec![socket], true);
        assert!(passed.take(&other).is_none());
        let message = passed.settle(&[other]).unwrap_err().to_string();
        for part in [&address.to_string(), "as web", "127.0.0.1:1"] {
            assert!(message.contains(part), "{message}");
        }
        // And it may be asked for again, after it was dropped for a while.
        assert!(passed.take(&address).is_some());
        assert!(passed.take(&address).is_some());
        assert!(passed.settle(&[]).is_ok());
    }
}
