//! VirtualService: where a request to a host goes.

use weft_proto::v1;

use super::Place;

/// A VirtualService's `spec`.
#[derive(Clone, Debug, PartialEq)]
pub struct VirtualService {
    /// As written: short names, full ones or `*.suffix`.
    pub hosts: Vec<String>,
    /// In order; the first match wins.
    pub http: Vec<Route>,
}

/// One entry of `http`.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// For logs; empty: none.
    pub name: String,
    /// Any of them; empty: every request.
    pub matches: Vec<v1::HttpMatch>,
    /// What happens.
    pub action: Action,
    /// Header operations of the route.
    pub headers: Option<v1::HeaderOperations>,
    /// Where it is written.
    pub place: Place,
}

/// What a route does.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// `route`.
    Forward(Forward),
    /// `redirect`.
    Redirect(v1::Redirect),
    /// `directResponse`.
    Respond(v1::DirectResponse),
}

/// `route` with what belongs to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Forward {
    /// At least one.
    pub destinations: Vec<Destination>,
    /// Milliseconds; 0: none.
    pub timeout_ms: u64,
    /// `rewrite`.
    pub rewrite: Option<v1::Rewrite>,
    /// `retries`; absent: the default of the mesh.
    pub retry: Option<v1::RetryPolicy>,
}

/// One entry of `route`.
#[derive(Clone, Debug, PartialEq)]
pub struct Destination {
    /// As written.
    pub host: String,
    /// Empty: none.
    pub subset: String,
    /// `port.number`.
    pub port: Option<u32>,
    /// Share of the requests.
    pub weight: u32,
    /// Header operations of this destination.
    pub headers: Option<v1::HeaderOperations>,
    /// Where it is written.
    pub place: Place,
}
