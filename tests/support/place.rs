//! A place of its own for each test: a directory, and a loopback address on which every port is
//! free, so that tests run side by side without asking each other.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use tempfile::TempDir;

/// Removed with everything in it when dropped.
pub struct Place {
    directory: TempDir,
    pub ip: Ipv4Addr,
    pub http: SocketAddr,
    pub https: SocketAddr,
    pub admin: SocketAddr,
    given: Mutex<Vec<SocketAddr>>,
}

impl Place {
    pub fn new() -> Place {
        let ip = unused_loopback_address();
        let mut given = Vec::new();
        let [http, https, admin] = [(); 3].map(|()| free_address(ip, &mut given));
        Place {
            directory: TempDir::with_prefix("perennial-e2e-").expect("a temporary directory"),
            ip,
            http,
            https,
            admin,
            given: Mutex::new(given),
        }
    }

    pub fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.directory.path().join(relative)
    }

    pub fn state(&self) -> PathBuf {
        self.path("state")
    }

    /// The internal CA's root certificate, once it has been made.
    pub fn local_root(&self) -> PathBuf {
        self.state().join("local-ca/root.pem")
    }

    /// An address of this place that nobody listens on, another one each time.
    pub fn free(&self) -> SocketAddr {
        free_address(self.ip, &mut self.given.lock().unwrap())
    }

    /// Writes a file, making the directories above it.
    pub fn write(&self, relative: impl AsRef<Path>, contents: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(relative);
        let parent = path.parent().expect("below the place");
        std::fs::create_dir_all(parent).expect("directories of the place");
        std::fs::write(&path, contents).expect("a file of the place");
        path
    }

    /// The `[server]` table for this place; what is appended to it continues that table.
    pub fn server_table(&self) -> String {
        format!(
            "[server]\nhttp_listen = [\"{}\"]\nhttps_listen = [\"{}\"]\nadmin_listen = \"{}\"\nstate_dir = \"{}\"\n",
            self.http,
            self.https,
            self.admin,
            self.state().display()
        )
    }
}

/// A random address out of 127.16.0.0 and above: two tests draw the same one in ten million.
fn unused_loopback_address() -> Ipv4Addr {
    let [b, c, d] = rand::random::<[u8; 3]>();
    Ipv4Addr::new(127, b.max(16), c, d.clamp(1, 254))
}

/// The kernel names a port that no socket holds, not even one on the wildcard address. It may name
/// one twice: what was given away is not bound yet.
fn free_address(ip: Ipv4Addr, given: &mut Vec<SocketAddr>) -> SocketAddr {
    loop {
        let named = TcpListener::bind((ip, 0)).and_then(|listener| listener.local_addr());
        let named = named.expect("a free port on a loopback address");
        if !given.contains(&named) {
            given.push(named);
            return named;
        }
    }
}
