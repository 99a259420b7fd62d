//! Subcommands of `weftctl`, one module each.

pub mod completion;
mod files;
pub mod inject;
pub mod install;
mod kinds;
pub mod objects;
pub mod remote;
pub mod route;
pub mod snapshot;
pub mod status;
mod style;
pub mod validate;
