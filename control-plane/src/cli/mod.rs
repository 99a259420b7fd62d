//! Subcommands of `weftctl`, one module each.

mod files;
pub mod remote;
pub mod route;
pub mod snapshot;
pub mod validate;
