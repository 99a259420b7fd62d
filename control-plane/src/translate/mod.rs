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
mod ports;
mod remotes;
mod rules;
mod service;
mod sidecars;
mod undialable;
mod warnings;

use weft_proto::v1;

use crate::policy::Route;

pub(crate) use audience::{Audience, Bar, Kept, List};
pub(crate) use dry_run::dry_run;
pub use endpoints::endpoints;
pub(crate) use gateway::servers;
pub use inbound::inbound;
pub(crate) use mtls::accepted;
pub use names::resolve;
pub(crate) use names::{Meaning, hidden, meant};
pub(crate) use ports::entry_dials;
pub use remotes::{capacity, summaries};
pub use service::service;
pub(crate) use warnings::Elsewhere;
pub use warnings::warnings;

/// Whether a route with these matches takes every request, so that no later one is ever reached.
pub fn is_catch_all(matches: &[v1::HttpMatch]) -> bool {
    matches.is_empty() || matches.iter().any(is_unconditional)
}

/// Whether a match takes every request.
fn is_unconditional(one: &v1::HttpMatch) -> bool {
    use v1::string_match::Kind;
    let uri = match one.uri.as_ref().and_then(|uri| uri.kind.as_ref()) {
        None | Some(Kind::Present(_)) => true,
        Some(Kind::Prefix(prefix)) => prefix.is_empty() || prefix == "/",
        Some(Kind::Regex(regex)) => regex == ".*",
        Some(Kind::Exact(_)) => false,
    };
    let rest = v1::HttpMatch { uri: None, ignore_uri_case: false, ..one.clone() };
    uri && rest == v1::HttpMatch::default()
}

/// Whether a route takes every request of every client.
pub fn takes_all(route: &Route) -> bool {
    let of_all = route.matches.iter().filter(|one| !one.is_of_some()).map(|one| one.http.clone());
    let of_all: Vec<v1::HttpMatch> = of_all.collect();
    route.matches.is_empty() || (!of_all.is_empty() && is_catch_all(&of_all))
}

#[cfg(test)]
mod tests;
