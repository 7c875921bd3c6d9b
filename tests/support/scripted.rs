//! An upstream that does byte by byte what the test says, connection by connection.

use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpStream};

use super::place::Place;
use super::wait::SOON;
use super::wire::{Message, Wire};

pub struct ScriptedUpstream {
    pub addr: SocketAddr,
    listener: TcpListener,
}

/// A connection from the proxy.
pub type Peer = Wire<TcpStream>;

impl ScriptedUpstream {
    pub async fn start(place: &Place) -> ScriptedUpstream {
        let addr = place.free();
        let listener = TcpListener::bind(addr).await.expect("a free address");
        ScriptedUpstream { addr, listener }
    }

    /// The next connection that the proxy opens.
    pub async fn accept(&self) -> Peer {
        let accepted = tokio::time::timeout(SOON, self.listener.accept()).await;
        let (stream, _) = accepted.expect("a connection in time").expect("accepted");
        stream.set_nodelay(true).expect("a socket");
        Wire::new(stream)
    }

    /// The next connection and the first request on it.
    pub async fn request(&self) -> (Peer, Message) {
        let mut peer = self.accept().await;
        let request = peer.request().await.expect("a request");
        (peer, request)
    }

    /// No connection is waiting to be accepted. Whoever asks has seen something that came after
    /// it would have been opened.
    pub fn assert_no_other(&self) {
        let waiting = rustix::net::accept(&self.listener);
        assert_eq!(waiting.err(), Some(rustix::io::Errno::AGAIN));
    }
}

/// Closes with a reset: what was not read or not sent is lost.
pub fn reset(peer: Peer) {
    let socket = socket2::SockRef::from(&peer.stream);
    socket
        .set_linger(Some(std::time::Duration::ZERO))
        .expect("a socket");
}

/// A response of this status with a length and a body.
pub fn answer(status: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{body}")
}
