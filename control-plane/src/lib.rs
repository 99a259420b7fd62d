//! Control plane of Weft: sources -> `world` -> `translate` -> discovery, one direction.
//!
//! A library, so that `weft-control-plane`, `weftctl` and the tests run the same code.

pub mod cli;
pub mod policy;
pub mod translate;
pub mod world;
pub mod yaml;
