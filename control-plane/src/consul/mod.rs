//! Consul's HTTP API, as much of it as is of the mesh and not of one agent: one answer for all callers, whether a sidecar
//! passes their requests on (`crate::catalog`) or they come to a listener of the control plane.
//!
//! [`route`] finds the endpoint, `select` the instances and nodes that a query means, `block` waits, `read` and `shapes`
//! answer. What agents need too (queries, filters, headers, refusals) is `weft_agent`'s.

mod block;
mod near;
mod read;
pub mod route;
mod select;
mod shapes;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request};
use weft_agent::answer::{self, Answered};
use weft_agent::query::Query;

use crate::mesh::Mesh;
use route::Missed;

/// What answers are made of.
pub struct Consul {
    /// What is registered.
    pub mesh: Arc<Mesh>,
    /// Where sidecars reach this control plane.
    pub address: SocketAddr,
}

/// Who asks.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Its namespace: names are looked up there first, then in "default".
    pub namespace: String,
    /// Its SPIFFE ID; empty: it has no sidecar.
    pub identity: String,
    /// Where it asks from.
    pub address: IpAddr,
}

/// Answers one request; a blocking query when what it asks for has changed, or its wait is over.
pub async fn answer(consul: &Consul, caller: &Caller, request: Request<Bytes>) -> Answered {
    let (head, _) = request.into_parts();
    let query = Query::parse(head.uri.query().unwrap_or_default());
    let answered = match route::route(&head.method, head.uri.path()) {
        Ok(endpoint) => read::read(consul, caller, endpoint, &query).await,
        Err(Missed::Method(allowed)) => return answer::wrong_method(&head.method, allowed),
        Err(Missed::Refused(refused)) => Err(refused),
    };
    answered.unwrap_or_else(|refused| answer::refusal(&refused, head.method == Method::GET, &query))
}
