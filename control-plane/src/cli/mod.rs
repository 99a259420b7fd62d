//! Subcommands of `weftctl`, one module each.

pub mod remote;
pub mod validate;
