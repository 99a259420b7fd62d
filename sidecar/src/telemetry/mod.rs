//! Metrics and the access log.

pub mod access_log;
mod guards;
pub mod labels;
pub mod metrics;
