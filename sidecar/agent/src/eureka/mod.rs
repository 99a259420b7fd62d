//! Netflix Eureka's REST API, in JSON and XML, over the same services and checks as Consul's: what registers by the one is
//! seen by the other, by DNS and by the mesh.
//!
//! An application is a service, an instance one of it, a lease a TTL check, OUT_OF_SERVICE the service's maintenance mode,
//! and metadata are metadata. What Consul's model has no place for (pages, virtual addresses, the data centre) stays with
//! the registration as Eureka's own document.
//!
//! [`route`] finds the endpoint; [`instance`] reads and shows instances, [`xml`] is the other format, [`answers`] has the
//! documents around instances, and `write` changes what is registered. Reads are of the whole mesh: the control plane
//! answers them.

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
use crate::answer::{self, Answered};
use crate::query::Query;
use crate::refused::Refused;
use route::{Endpoint, Missed};
pub use write::{MAX_DOCUMENT, Turn, lease_id, service_id};

/// Answers one request to the agent.
pub async fn answer(agent: &Agent, head: &request::Parts, query: &Query, body: Bytes) -> Answered {
    let answered = match route::route(&head.method, head.uri.path()) {
        Ok(Endpoint::Write(write)) => write::write(agent, write, query, &body).await,
        Ok(Endpoint::Read(_)) => agent.mesh.pass(head, query, body).await,
        Err(missed) => return missed_answer(missed, head),
    };
    answered.unwrap_or_else(|refused| refusal(&refused))
}

/// To those who reach no endpoint.
pub fn missed_answer(missed: Missed, head: &request::Parts) -> Answered {
    match missed {
        Missed::Method(allowed) => answer::wrong_method(&head.method, allowed),
        Missed::Refused(refused) => refusal(&refused),
    }
}

/// A refusal, as plain text: [`answers::in_format`] makes a document of it.
pub fn refusal(refused: &Refused) -> Answered {
    answer::refusal(refused, false, &Query::default())
}

/// There is no such instance here.
fn unknown(app: &str, id: &str) -> Refused {
    Refused::new(StatusCode::NOT_FOUND, format!("no instance {id:?} of {app:?} is registered in this pod"))
}
