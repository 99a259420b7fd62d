//! Control plane of Weft: sources and registry -> state -> discovery and the APIs, one direction.
//!
//! A library, so that `weft-control-plane` and the tests run the same code. `ARCHITECTURE.md` says which folder may
//! import which.

pub mod admin;
pub mod api;
mod clock;
pub mod discovery;
pub mod federation;
pub mod identity;
pub mod kubernetes;
pub mod registry;
pub mod server;
mod sockets;
pub mod sources;
pub mod state;
pub mod store;
pub mod telemetry;
#[cfg(test)]
mod testing;
pub mod webhook;
