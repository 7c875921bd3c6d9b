//! What the measurements share: certificates by the thousand, handshakes that show what is
//! served, and processes whose memory and processor time can be read.

pub mod certificates;
pub mod handshake;
pub mod process;
pub mod servers;
pub mod statistics;
