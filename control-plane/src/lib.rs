//! Control plane of Weft: sources -> `world` -> `translate` -> discovery, one direction.
//!
//! A library, so that `weft-control-plane`, `weftctl` and the tests run the same code.

pub mod access;
pub mod admin;
pub mod bounds;
pub mod ca;
pub mod catalog;
pub mod consul;
pub mod discovery;
pub mod dns;
pub mod eureka;
pub mod external;
pub mod federation;
pub mod grants;
pub mod http_api;
pub mod identity;
pub mod mesh;
pub(crate) mod pattern;
pub mod peer;
pub mod rates;
pub mod registry;
pub mod server;
pub mod snapshot;
mod sockets;
pub mod sources;
pub mod store;
pub mod telemetry;
#[cfg(test)]
mod testing;
pub mod token;
