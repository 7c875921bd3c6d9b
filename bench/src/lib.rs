//! What the measurements share: certificates by the thousand, handshakes that show what is
//! served, processes whose memory and processor time can be read, and a client and an upstream
//! that cost little beside the server between them.

pub mod certificates;
pub mod cores;
pub mod handshake;
pub mod load;
pub mod process;
pub mod servers;
pub mod statistics;
pub mod upstream;
pub mod window;
