//! Attachment of the Gateway API's routes to their parents: which rules apply to the requests of a Service's port or a
//! Gateway's listener, in which order, and which backends they may use.
//!
//! The translation is made of these decisions, and `conditions` reports them to the authors: nothing is decided twice.

mod backend_tls;
mod backends;
pub mod conditions;
pub(crate) mod listeners;
mod order;
mod services;

use std::sync::Arc;

use crate::world::{Host, World};
use weft_policy::{Document, HttpRoute, HttpRule, Object, RankedMatch, StreamRoute};

pub(crate) use backend_tls::of_port as backend_tls;
pub(crate) use backends::backend;
pub(crate) use services::{named_ports, of_service, streams_of_service};

/// One match of a rule that applies to a parent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attached<'a> {
    /// The route.
    pub(crate) document: &'a Arc<Document>,
    /// Its rule.
    pub(crate) rule: &'a HttpRule,
    /// The rule's match.
    pub(crate) one: &'a RankedMatch,
    /// The places of rule and match.
    pub(crate) at: (usize, usize),
    /// The most specific of the route's hostnames that applies: whether it is exact, and its characters.
    hostname: (bool, usize),
}

/// The reason why a route is not attached to a parent, or a backend is not used: that of a condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rejection {
    /// A word for programs.
    pub(crate) reason: &'static str,
    /// For the author.
    pub(crate) message: String,
}

/// The content of a TLSRoute or a TCPRoute.
pub(crate) fn stream(document: &Document) -> Option<&StreamRoute> {
    match &document.object {
        Object::TLSRoute(route) | Object::TCPRoute(route) => Some(route),
        _ => None,
    }
}

impl Rejection {
    fn new(reason: &'static str, message: impl Into<String>) -> Rejection {
        Rejection { reason, message: message.into() }
    }
}

/// The content of an HTTPRoute or a GRPCRoute.
fn route(document: &Document) -> Option<&HttpRoute> {
    match &document.object {
        Object::HTTPRoute(route) | Object::GRPCRoute(route) => Some(route),
        _ => None,
    }
}

/// The Service of a host, if it is registered or defined.
///
/// # Errors
/// With `reason`.
fn offered<'a>(world: &'a World, host: &str, reason: &'static str) -> Result<&'a Host, Rejection> {
    let found = world.host(host).filter(|found| found.live && found.is_offered(world));
    found.ok_or_else(|| Rejection::new(reason, format!("Service `{host}` is neither registered nor defined")))
}
