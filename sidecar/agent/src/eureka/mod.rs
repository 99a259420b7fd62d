//! Netflix Eureka's REST API, over the same services and checks as Consul's: registrations by one API are visible in the
//! other, in DNS and in the mesh.
//!
//! An application is a service, an instance is one of its instances, a lease is a TTL check, OUT_OF_SERVICE is the
//! service's maintenance mode, and metadata is metadata. Fields without an equivalent in Consul's model (pages, virtual
//! addresses, the data centre) are kept as Eureka's own document with the registration.
//!
//! The documents and paths are in [`weft_registry_api::eureka`]; `write` changes registrations. Reads cover the whole mesh,
//! so the control plane answers them.

#[cfg(test)]
mod tests;
mod write;

use bytes::Bytes;
use http::{StatusCode, request};
use weft_registry_api::error::ApiError;
use weft_registry_api::eureka::route::{self, Endpoint};
use weft_registry_api::eureka::{error_reply, missed_reply};
use weft_registry_api::query::Query;
use weft_registry_api::reply::Reply;

use crate::Agent;
pub use write::ChangeLock;

/// Responds to one request to the agent.
pub async fn answer(agent: &Agent, head: &request::Parts, query: &Query, body: Bytes) -> Reply {
    let reply = match route::route(&head.method, head.uri.path()) {
        Ok(Endpoint::Write(write)) => write::write(agent, write, query, &body).await,
        Ok(Endpoint::Read(_)) => agent.mesh.pass(head, query, body).await,
        Err(missed) => return missed_reply(missed, head),
    };
    reply.unwrap_or_else(|error| error_reply(&error))
}

/// The error for an instance that is not registered here.
fn unknown(app: &str, id: &str) -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, format!("no instance {id:?} of {app:?} is registered in this pod"))
}
