//! The forms of Netflix Eureka's REST API, in JSON and XML.
//!
//! [`route`] finds the endpoint; [`instance`] decodes and encodes instances, [`xml`] converts to the other format, and
//! [`documents`] builds the documents around instances.

pub mod documents;
pub mod instance;
pub mod route;
pub mod xml;

use http::request;

use crate::error::ApiError;
use crate::query::Query;
use crate::reply::{self, Reply};
use route::Missed;

/// Maximum size of the document stored with a registration, in bytes.
pub const MAX_DOCUMENT: usize = 16 << 10;
/// The service id of an application's instance. Eureka's key has both parts: Netflix's client uses the machine's name
/// as the id for every application.
pub fn service_id(app: &str, id: &str) -> String {
    format!("{}:{id}", app.to_lowercase())
}

/// The check that represents a service's lease.
pub fn lease_id(service_id: &str) -> String {
    format!("eureka:{service_id}")
}

/// The response to a request without an endpoint.
pub fn missed_reply(missed: Missed, head: &request::Parts) -> Reply {
    match missed {
        Missed::Method(allowed) => reply::wrong_method(&head.method, allowed),
        Missed::NoEndpoint(error) => error_reply(&error),
    }
}

/// An error as plain text; [`documents::in_format`] makes a document of it.
pub fn error_reply(error: &ApiError) -> Reply {
    reply::error(error, false, &Query::default())
}
