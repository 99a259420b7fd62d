//! Which route a request takes, and what the route does with it: forwards it (with weights, rewrites, header changes,
//! hashing and retries), redirects it, or answers it.
//!
//! A route with several matches is several entries here, as in Envoy, because a prefix rewrite depends on the match that
//! hit. Entries of one route share its action.

pub mod matcher;
mod redirect;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http::uri::Authority;

use crate::cors::Cors;
use crate::fault::Fault;
use crate::hash::HashPolicy;
use crate::headers::HeaderOps;
use crate::request::RequestView;
use crate::retry::{RetryPolicy, scale};

use matcher::Matcher;
pub use redirect::{Redirect, RedirectPort};

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
    pub rewrite: Option<String>,
    /// Which outcomes are tried again.
    pub retry: RetryPolicy,
    /// A retry may go to an endpoint that was tried already.
    pub retries_anywhere: bool,
    /// What is done to some requests first.
    pub fault: Option<Fault>,
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
    /// The path and query to send upstream, where the route changes it. The matched prefix is replaced, or the whole path
    /// where the match was exact or by regex; the query stays.
    pub fn rewritten_path(&self, forward: &Forward, req: &RequestView<'_>) -> Option<String> {
        let replacement = forward.rewrite.as_deref()?;
        let path = req.path();
        let rest = &req.path_and_query[path.len()..];
        let kept = self.matcher.after_matched_path(path);
        let slash =
            if replacement.starts_with('/') || (replacement.is_empty() && kept.starts_with('/')) { "" } else { "/" };
        Some([slash, replacement, kept, rest].concat())
    }
}

impl Forward {
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

    /// Whether a retry looks for an endpoint that was not tried ([`crate::balance::Balancer::pick_avoiding`]): always
    /// but for a single hashed destination, whose requests belong to one endpoint.
    pub fn avoids_tried(&self) -> bool {
        !self.retries_anywhere && (self.destinations.len() > 1 || self.hash.is_empty())
    }
}

#[cfg(test)]
mod tests;
