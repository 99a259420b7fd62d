//! Subcommands of `weftctl`, one module each.

pub mod remote;
pub mod snapshot;
pub mod validate;
