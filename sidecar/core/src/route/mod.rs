//! Routing of requests, and the actions of routes: forwarding (with weights, rewrites, header operations, hashing and
//! retries), redirects and direct responses.
//!
//! A route with several matches is several entries here, as in Envoy, because a prefix rewrite depends on the match
//! that applied. The entries of one route share its action.

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

use crate::balance::RetrySelection;
use crate::filter::Filter;
use crate::filter::fault::Share;
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
    /// Takes the routes in order of precedence.
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
    /// Match conditions.
    pub matcher: Matcher,
    /// Action on matching requests.
    pub action: Arc<Action>,
    /// Operations on the response of a redirect or direct response. Those of a forward belong to its destinations.
    pub headers: HeaderOps,
    /// HTTP filters, in order of execution.
    pub filters: Arc<[Filter]>,
}

/// Action of a route.
#[derive(Debug)]
pub enum Action {
    /// Forwards the request to an endpoint.
    Forward(Forward),
    /// Responds with a redirect.
    Redirect(Redirect),
    /// Responds directly.
    DirectResponse(DirectResponse),
}

/// Forwards the request to an endpoint of one of the destinations.
#[derive(Debug)]
pub struct Forward {
    /// At least one.
    pub destinations: Vec<Destination>,
    /// Sum of the destinations' weights, above 0.
    pub(crate) total_weight: u64,
    /// From the end of the request to the end of the response's headers, including retries; `None`: no timeout.
    pub timeout: Option<Duration>,
    /// See [`Route::rewritten_path`].
    pub rewrite: Option<Rewrite>,
    /// Retry policy.
    pub retry: RetryPolicy,
    /// Endpoint selection of retries.
    pub retry_selection: RetrySelection,
    /// Destinations of copies.
    pub mirrors: Vec<Mirror>,
    /// The hash inputs of all destinations' clusters, in order.
    pub hash: Vec<HashPolicy>,
    /// Status of requests whose cluster is undefined.
    pub undefined_status: StatusCode,
}

/// A weighted destination.
#[derive(Debug)]
pub struct Destination {
    /// Index of the cluster in its service.
    pub cluster: usize,
    /// Share of the requests; 0: none.
    pub weight: u32,
    /// Header operations, level after level: apply each in order, to the request and later to the response.
    pub headers: Vec<HeaderOps>,
    /// Authority for the upstream, replacing the client's.
    pub authority: Option<Authority>,
    /// Whether the upstream receives the client's authority (`x-envoy-original-host`): not with an authority set by one
    /// of several destinations, as in Envoy.
    pub sends_original_host: bool,
}

/// Copies of some requests, whose responses are discarded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// Index of the cluster in its service.
    pub cluster: usize,
    /// Share of the requests that are copied.
    pub share: Share,
}

/// A response without an upstream.
#[derive(Debug)]
pub struct DirectResponse {
    /// Its status.
    pub status: StatusCode,
    /// Its body, at most 1 MiB.
    pub body: Bytes,
}

impl Route {
    /// The path and query for the upstream, if the route changes the path; the query stays.
    pub fn rewritten_path(&self, forward: &Forward, req: &RequestView<'_>) -> Option<String> {
        forward.rewrite.as_ref().map(|rewrite| rewrite.path_and_query(&self.matcher, req))
    }
}

impl Forward {
    /// A destination's percentage of the requests.
    pub fn percent(&self, destination: &Destination) -> f64 {
        match self.destinations.len() {
            1 => 100.0,
            _ => f64::from(destination.weight) * 100.0 / self.total_weight as f64,
        }
    }

    /// Chooses the destination of a request, by weight.
    pub fn choose(&self, random: u64) -> &Destination {
        let mut point = scale(random, self.total_weight);
        for destination in &self.destinations {
            let weight = u64::from(destination.weight);
            if point < weight {
                return destination;
            }
            point -= weight;
        }
        // A single destination gets all requests, whatever its weight.
        &self.destinations[0]
    }
}

#[cfg(test)]
mod tests;
