//! A real application in Node as an upstream, over HTTP/1.1, HTTP/2 by prior knowledge and HTTP/2
//! over TLS.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use tokio::net::TcpStream;

use super::command;
use super::place::Place;
use super::wait::{SOON, wait_until};
use super::writers::Pair;

/// What it does is in the file.
const SERVER: &str = include_str!("node_server.js");

/// Killed when dropped.
pub struct Node {
    pub http1: SocketAddr,
    pub h2c: SocketAddr,
    pub h2: SocketAddr,
    /// HTTP/2 over TLS without WebSockets, or HTTP/1.1 with them.
    pub either: SocketAddr,
    child: Child,
}

impl Node {
    /// `pair`: for TLS.
    pub async fn start(place: &Place, pair: &Pair) -> Node {
        let program = command::find("node").expect(
            "this test needs Node: install it with `apt-get install nodejs` (make test does)",
        );
        let [http1, h2c, h2, either] = std::array::from_fn(|_| place.free());
        let mut command = Command::new(program);
        command.arg(place.write("server.js", SERVER));
        command.arg(http1.ip().to_string());
        command.args([http1, h2c, h2, either].map(|addr| addr.port().to_string()));
        command.args([&pair.key, &pair.certificate]);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.spawn().expect("node starts");
        let node = Node {
            http1,
            h2c,
            h2,
            either,
            child,
        };
        for addr in [http1, h2c, h2, either] {
            wait_until(SOON, "node", async || TcpStream::connect(addr).await.ok()).await;
        }
        node
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
