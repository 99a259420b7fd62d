//! Netflix Eureka's REST API, in JSON and XML, over the same services and checks as Consul's: registrations by one API
//! are visible in the other, in DNS and in the mesh.
//!
//! An application is a service, an instance is one of its instances, a lease is a TTL check, OUT_OF_SERVICE is the
//! service's maintenance mode, and metadata is metadata. Fields without an equivalent in Consul's model (pages, virtual
//! addresses, the data centre) are kept as Eureka's own document with the registration.
//!
//! [`route`] finds the endpoint; [`instance`] decodes and encodes instances, [`xml`] converts to the other format,
//! [`answers`] builds the documents around instances, and `write` changes registrations. Reads cover the whole mesh, so
//! the control plane answers them.

pub mod answers;
pub mod instance;
pub mod route;
#[cfg(test)]
mod tests;
mod write;
pub mod xml;

use bytes::Bytes;
use http::{StatusCode, request};

use crate::Agent;
use crate::error::ApiError;
use crate::query::Query;
use crate::reply::{self, Reply};
use route::{Endpoint, Missed};
pub use write::{ChangeLock, MAX_DOCUMENT, lease_id, service_id};

/// Responds to one request to the agent.
pub async fn answer(agent: &Agent, head: &request::Parts, query: &Query, body: Bytes) -> Reply {
    let reply = match route::route(&head.method, head.uri.path()) {
        Ok(Endpoint::Write(write)) => write::write(agent, write, query, &body).await,
        Ok(Endpoint::Read(_)) => agent.mesh.pass(head, query, body).await,
        Err(missed) => return missed_reply(missed, head),
    };
    reply.unwrap_or_else(|error| error_reply(&error))
}

/// The response to a request without an endpoint.
pub fn missed_reply(missed: Missed, head: &request::Parts) -> Reply {
    match missed {
        Missed::Method(allowed) => reply::wrong_method(&head.method, allowed),
        Missed::NoEndpoint(error) => error_reply(&error),
    }
}

/// An error as plain text; [`answers::in_format`] makes a document of it.
pub fn error_reply(error: &ApiError) -> Reply {
    reply::error(error, false, &Query::default())
}

/// The error for an instance that is not registered here.
fn unknown(app: &str, id: &str) -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, format!("no instance {id:?} of {app:?} is registered in this pod"))
}
