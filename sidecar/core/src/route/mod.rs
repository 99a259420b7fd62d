//! Which route a request takes, and what the route does with it: forwards it (with weights, rewrites, header changes,
//! hashing and retries), redirects it, or answers it.
//!
//! A route with several matches is several entries here, as in Envoy, because a prefix rewrite depends on the match that
//! hit. Entries of one route share its action.

mod connection;
pub mod matcher;
mod redirect;
mod rewrite;
mod unmet;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http::uri::Authority;

use crate::balance::Again;
use crate::cors::Cors;
use crate::fault::{Fault, Share};
use crate::hash::HashPolicy;
use crate::headers::HeaderOps;
use crate::request::RequestView;
use crate::retry::{RetryPolicy, scale};

pub use connection::{Connection, ConnectionMatch, ConnectionRoute, ConnectionRoutes, Routed, UnmetByConnection};
use matcher::Matcher;
pub use redirect::{Redirect, RedirectPath, RedirectPort};
pub use rewrite::{RegexRewrite, Rewrite};

/// The routes of a port, in order.
#[derive(Debug, Clone, Default)]
pub struct RouteTable {
    routes: Vec<Arc<Route>>,
}

impl RouteTable {
    /// Of routes in order of precedence.
    pub fn new(routes: Vec<Arc<Route>>) -> Self {
        RouteTable { routes }
    }

    /// The first route that matches; `None`: 404 NR.
    pub fn find(&self, req: &RequestView<'_>) -> Option<&Arc<Route>> {
        self.routes.iter().find(|route| route.matcher.matches(req))
    }

    /// All routes in order, for administration.
    pub fn routes(&self) -> &[Arc<Route>] {
        &self.routes
    }
}

/// One route, with one of its matches.
#[derive(Debug)]
pub struct Route {
    /// `VirtualService/<namespace>/<name>[/<route>]`; `default` for a port without routes.
    pub name: Arc<str>,
    /// Which requests take it.
    pub matcher: Matcher,
    /// What is done with them.
    pub action: Arc<Action>,
    /// Changes to the answer of a redirect or a direct response. Those of a forward are in its destinations.
    pub headers: HeaderOps,
    /// What browsers may do from elsewhere.
    pub cors: Option<Arc<Cors>>,
}

/// What a route does.
#[derive(Debug)]
pub enum Action {
    /// Sends the request to an endpoint.
    Forward(Forward),
    /// Answers with a redirect.
    Redirect(Redirect),
    /// Answers.
    DirectResponse(DirectResponse),
}

/// Sends the request to an endpoint of one of the destinations.
#[derive(Debug)]
pub struct Forward {
    /// At least one.
    pub destinations: Vec<Destination>,
    /// Sum of the destinations' weights, above 0.
    pub(crate) total_weight: u64,
    /// From the end of the request to the end of the response's headers, retries included; `None`: none.
    pub timeout: Option<Duration>,
    /// See [`Route::rewritten_path`].
    pub rewrite: Option<Rewrite>,
    /// Which outcomes are tried again.
    pub retry: RetryPolicy,
    /// Where a retry goes.
    pub again: Again,
    /// What is done to some requests first.
    pub fault: Option<Fault>,
    /// Who gets copies.
    pub mirrors: Vec<Mirror>,
    /// The hash inputs of all destinations' clusters, in order.
    pub hash: Vec<HashPolicy>,
}

/// A weighted destination.
#[derive(Debug)]
pub struct Destination {
    /// Index of the cluster in its service.
    pub cluster: usize,
    /// Share of the requests; 0: none.
    pub weight: u32,
    /// Header changes, level after level: apply each in order, to the request and later to the response.
    pub headers: Vec<HeaderOps>,
    /// The authority that the upstream sees instead of the client's.
    pub authority: Option<Authority>,
    /// The upstream is told the client's (`x-envoy-original-host`): not of an authority that one of several destinations
    /// sets itself, as in Envoy.
    pub tells_original_host: bool,
}

/// Copies of some requests, whose answers nobody waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// Index of the cluster in its service.
    pub cluster: usize,
    /// Of which requests.
    pub share: Share,
}

/// An answer without an upstream.
#[derive(Debug)]
pub struct DirectResponse {
    /// Its status.
    pub status: StatusCode,
    /// Its body, at most 1 MiB.
    pub body: Bytes,
}

impl Route {
    /// The path and query to send upstream, where the route changes it; the query stays.
    pub fn rewritten_path(&self, forward: &Forward, req: &RequestView<'_>) -> Option<String> {
        forward.rewrite.as_ref().map(|rewrite| rewrite.path_and_query(&self.matcher, req))
    }
}

impl Forward {
    /// Percent of the requests that a destination gets.
    pub fn percent(&self, destination: &Destination) -> f64 {
        match self.destinations.len() {
            1 => 100.0,
            _ => f64::from(destination.weight) * 100.0 / self.total_weight as f64,
        }
    }

    /// The destination of a request, by weight.
    pub fn choose(&self, random: u64) -> &Destination {
        let mut point = scale(random, self.total_weight);
        for destination in &self.destinations {
            let weight = u64::from(destination.weight);
            if point < weight {
                return destination;
            }
            point -= weight;
        }
        // One destination gets all, whatever its weight.
        &self.destinations[0]
    }
}

#[cfg(test)]
mod tests;
