//! Upstreams: clusters, their connection pools, and connections to endpoints.

pub mod cluster;
pub mod dial;
pub mod dynamic_hosts;
pub mod endpoints;
pub mod pool;
pub mod resolution;
pub mod tunnel;
