//! What operators see: the metrics.

pub mod metrics;
