//! Sockets, TLS and the accept loop. Reads the live certificate table and the challenge table on
//! each handshake; it never reads a file and never changes either table.

pub mod accept;
pub mod admission;
pub mod client_auth;
pub mod connection;
pub mod drain;
pub mod idle;
pub mod passed;
pub mod proxy_protocol;
pub mod self_check;
pub mod sockets;
pub mod stream;
pub mod tickets;
pub mod tls;
pub mod workers;

pub use connection::{ConnectionInfo, TlsInfo};
