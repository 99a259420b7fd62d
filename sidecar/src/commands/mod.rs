//! The subcommands of `weft-sidecar` that serve traffic, and the one that waits for it.

pub mod exec;
pub mod run;
pub mod wait;
