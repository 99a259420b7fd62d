//! Subcommands of `weftctl`, one module each.

pub mod validate;
