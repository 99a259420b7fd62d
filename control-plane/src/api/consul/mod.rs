//! Consul's HTTP API, without the parts of a single agent: the same answers for requests that sidecars forward
//! (`crate::api::catalog`) and for the listener of the control plane.
//!
//! [`route`] finds the endpoint, `Caller` decides the visible services and the permitted changes, `read` selects
//! instances and nodes and answers reads, `block` waits; `kv` is the key-value store with its sessions and
//! transactions, `queries` and `events` the prepared queries and events, `config` the config entries, which become
//! policies. Queries, filters, headers and errors, which agents need too, are in `weft_registry_api`.

mod authorize;
mod block;
mod catalog;
mod config;
pub mod connect;
mod events;
mod forward;
mod kv;
mod queries;
mod read;
pub mod route;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use weft_registry_api::error::ApiError;
use weft_registry_api::query::Query;
use weft_registry_api::reply::{self, Reply};

use crate::api::remote::RemoteReads;
use crate::identity::caller::{Caller, Rights};
use crate::state::{Mesh, Refusal};
use crate::store::batch::Interrupted;
pub(crate) use forward::is_forwarded;
use kv::{pairs, sessions, txn};
pub use queries::{QueryResult, prepared};
use read::{near, select, shapes};
use route::{Endpoint, RouteError};

/// The data that answers are made of.
pub struct Consul {
    /// The registry.
    pub mesh: Arc<Mesh>,
    /// Address of this control plane for sidecars.
    pub address: SocketAddr,
    /// The mesh's authority.
    pub roots: connect::Roots,
    /// The other data centres.
    pub federation: Arc<dyn RemoteReads>,
    /// Whether programs without a sidecar may register, with a token.
    pub allow_external: bool,
}

async fn write(
    consul: &Consul,
    caller: &Caller,
    (method, endpoint): (&Method, Endpoint),
    query: &Query,
    body: &[u8],
) -> Result<Reply, ApiError> {
    select::in_scope(consul, query)?;
    match endpoint {
        Endpoint::Pair(key) if method == Method::DELETE => pairs::delete(consul, caller, &key, query).await,
        Endpoint::Pair(key) => pairs::put(consul, caller, &key, query, body).await,
        Endpoint::CatalogRegister => catalog::register(consul, caller, query, body).await,
        Endpoint::CatalogDeregister => catalog::deregister(consul, caller, query, body).await,
        Endpoint::SessionCreate => sessions::create(consul, caller, query, body).await,
        Endpoint::SessionDestroy(id) => sessions::destroy(consul, caller, &id, query).await,
        Endpoint::SessionRenew(id) => sessions::renew(consul, caller, &id, query).await,
        Endpoint::Authorize => authorize::authorize(consul, query, body),
        Endpoint::Queries => queries::create(consul, caller, query, body).await,
        Endpoint::Query(id) if method == Method::DELETE => queries::delete(consul, caller, &id).await,
        Endpoint::Query(id) => queries::update(consul, caller, &id, body).await,
        Endpoint::EventFire(name) => events::fire(consul, caller, &name, query, body).await,
        Endpoint::Config => config::put(consul, caller, query, body).await,
        Endpoint::ConfigEntry(kind, name) => config::delete(consul, caller, &kind, &name, query).await,
        Endpoint::Transaction => txn::transact(consul, caller, query, body).await,
        _ => Err(ApiError::bad_request("not a write endpoint")),
    }
}

/// A refusal of the store or the registry, in the form of Consul's errors.
fn api_error(refusal: Refusal) -> ApiError {
    match refusal {
        Refusal::Because(text) => ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, text),
        Refusal::Exceeded(exceeded) => ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, exceeded.0),
        Refusal::SessionOver => ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, refusal.to_string()),
        Refusal::Store(e) => ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, format!("No cluster leader: {e}")),
    }
}

fn interrupted(interrupted: Interrupted) -> ApiError {
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, format!("No cluster leader: {interrupted}"))
}

/// Answers one request; a blocking query when its result has changed, or its wait is over.
pub async fn answer(consul: &Consul, caller: &Caller, request: Request<Bytes>) -> Reply {
    let (head, body) = request.into_parts();
    let query = Query::parse(head.uri.query().unwrap_or_default());
    if head.method == Method::GET
        && let Err(text) = query.consistency()
    {
        return reply::error(&ApiError::bad_request(text), true, &query);
    }
    if let Some(datacenter) = forward::datacenter(consul, &query)
        && head.method == Method::GET
        && is_forwarded(head.uri.path())
    {
        let reply = forward::ask(consul, caller, datacenter, &head).await;
        return reply.unwrap_or_else(|error| reply::error(&error, true, &query));
    }
    let reply = match route::route(&head.method, head.uri.path()) {
        Ok(endpoint) if head.method == Method::GET => read::read(consul, caller, endpoint, &query).await,
        Ok(endpoint) => write(consul, caller, (&head.method, endpoint), &query, &body).await,
        Err(RouteError::Method(allowed)) => return reply::wrong_method(&head.method, allowed),
        Err(RouteError::NoEndpoint(error)) => Err(error),
    };
    reply.unwrap_or_else(|error| {
        if error.status == StatusCode::PAYLOAD_TOO_LARGE {
            tracing::warn!(identity = caller.identity, address = %caller.address, path = head.uri.path(), "refused: {}", error.text);
            consul.mesh.out_of_bounds.fetch_add(1, Ordering::Relaxed);
        }
        reply::error(&error, head.method == Method::GET, &query)
    })
}
