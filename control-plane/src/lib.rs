//! Control plane of Weft: sources -> `world` -> `translate` -> discovery, one direction.
//!
//! A library, so that `weft-control-plane`, `weftctl` and the tests run the same code.

pub mod access;
pub mod admin;
pub mod bounds;
pub mod ca;
pub mod catalog;
pub mod cli;
pub mod consul;
pub mod discovery;
pub mod dns;
pub mod eureka;
pub mod explain;
pub mod external;
pub mod federation;
pub mod grants;
pub mod http_api;
pub mod identity;
pub mod mesh;
pub(crate) mod pattern;
pub mod peer;
pub mod policy;
pub mod rates;
pub mod registry;
pub mod server;
pub mod snapshot;
mod sockets;
pub mod store;
pub mod telemetry;
pub mod token;
pub mod translate;
pub mod world;
pub mod yaml;
