//! The admin API and the metrics. Reads the live state; of the two things it can set off, a rescan
//! and a renewal, it does neither itself.

pub mod api;
pub mod guard;
pub mod metrics;
pub mod server;
pub mod status;
