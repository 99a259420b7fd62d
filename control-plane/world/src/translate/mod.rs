//! World -> messages for sidecars. Pure: the same world gives the same messages, and discovery may compare them.
//!
//! `names` resolves hosts; `service` (with `attached` for routes of the Gateway API),
//! `endpoints` and `inbound` make the three resources; `settings` has the settings
//! that documents give to a client, `remotes` those of other data centres. `dry_run` and `warnings` report problems of
//! documents to their authors.

mod attached;
mod dry_run;
mod endpoints;
mod gateway;
mod inbound;
mod names;
mod remotes;
mod service;
mod settings;
mod warnings;

pub use dry_run::parse_policies;
pub use endpoints::endpoints;
pub(crate) use gateway::{NAME_LABEL, servers};
pub use inbound::inbound;
pub use names::resolve;
pub(crate) use names::{Meaning, hidden_host, lookup};
pub use remotes::{capacity, summaries};
pub use service::service;
pub(crate) use settings::audience::{Audience, Bar, List, RouteEntry};
pub(crate) use settings::mtls::accepted;
use settings::{audience, defaults, mtls, rules};
pub(crate) use warnings::Elsewhere;
pub use warnings::{warnings, warnings_of};

#[cfg(test)]
mod tests;
