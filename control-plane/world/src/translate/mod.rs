//! World -> what a sidecar is told. Pure: the same world gives the same messages, and discovery may compare them.
//!
//! `names` says which host an application means; `service`, `endpoints` and `inbound` make the three resources; `ports`,
//! `rules`, `defaults`, `mtls` and `remotes` answer what a host's documents, its DestinationRules, the mesh as a whole, the
//! PeerAuthentications and other data centres say. `dry_run` and `warnings` tell the author of a document what would come of it.

mod audience;
mod defaults;
mod dry_run;
mod endpoints;
mod gateway;
mod inbound;
mod mtls;
mod names;
mod remotes;
mod rules;
mod service;
mod sidecars;
mod undialable;
mod warnings;

pub(crate) use audience::{Audience, Bar, Kept, List};
pub use dry_run::parse_policies;
pub use endpoints::endpoints;
pub(crate) use gateway::servers;
pub use inbound::inbound;
pub(crate) use mtls::accepted;
pub use names::resolve;
pub(crate) use names::{Meaning, hidden, meant};
pub use remotes::{capacity, summaries};
pub use service::service;
pub(crate) use warnings::Elsewhere;
pub use warnings::warnings;

#[cfg(test)]
mod tests;
