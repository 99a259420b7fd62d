//! The subcommands of `weft-sidecar` that serve traffic.

pub mod exec;
pub mod run;
