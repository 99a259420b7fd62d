//! Requests for another data centre (`?dc=`): forwarded to it unchanged, without the token of the caller.

use http::request::Parts;
use http::{HeaderName, HeaderValue, StatusCode};
use weft_proto::v1::{PeerQuestion, Question};
use weft_registry_api::error::ApiError;
use weft_registry_api::query::{Query, without};
use weft_registry_api::reply::Reply;

use super::route::{Endpoint, route};
use super::{Caller, Consul, Rights};
use crate::api::remote::NoAnswer;

/// The data centre that a query names, if it is another one.
pub(super) fn datacenter<'a>(consul: &Consul, query: &'a Query) -> Option<&'a str> {
    query.value("dc").filter(|dc| !dc.is_empty() && *dc != consul.federation.datacenter())
}

/// Whether a read of this path is forwarded to another data centre.
pub(crate) fn is_forwarded(path: &str) -> bool {
    let endpoint = route(&http::Method::GET, path);
    matches!(
        endpoint,
        Ok(Endpoint::HealthService(_)
            | Endpoint::HealthConnect(_)
            | Endpoint::HealthChecks(_)
            | Endpoint::HealthNode(_)
            | Endpoint::HealthState(_)
            | Endpoint::CatalogServices
            | Endpoint::CatalogService(_)
            | Endpoint::CatalogConnect(_)
            | Endpoint::CatalogNodes
            | Endpoint::CatalogNode(_)
            | Endpoint::CatalogNodeServices(_)
            | Endpoint::CoordinateNodes
            | Endpoint::CoordinateNode(_))
    )
}

/// The answer of `datacenter`.
///
/// # Errors
/// Consul's, if the data centre is unreachable.
pub(super) async fn ask(consul: &Consul, caller: &Caller, datacenter: &str, head: &Parts) -> Result<Reply, ApiError> {
    // A request of another data centre is not forwarded to a third.
    if matches!(caller.rights, Rights::Peer(_)) {
        return Err(no_path());
    }
    let question = Question {
        method: head.method.to_string(),
        path: head.uri.path().to_owned(),
        query: without(head.uri.query().unwrap_or_default(), &["token"]),
        ..Question::default()
    };
    let (namespace, read) = (caller.namespace.clone(), caller.rights.elsewhere());
    let question = PeerQuestion { question: Some(question), namespace, read };
    let answer = match consul.federation.ask(datacenter, question).await {
        Ok(answer) => answer,
        Err(NoAnswer::Busy) => {
            return Err(ApiError::new(StatusCode::TOO_MANY_REQUESTS, "Too many requests to another data centre"));
        }
        Err(error) => {
            tracing::debug!(datacenter, "{error}");
            return Err(no_path());
        }
    };
    let mut reply = http::Response::new(answer.body);
    let status = u16::try_from(answer.status).ok().and_then(|status| StatusCode::from_u16(status).ok());
    *reply.status_mut() = status.unwrap_or(StatusCode::BAD_GATEWAY);
    for (name, value) in &answer.headers {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            reply.headers_mut().insert(name, value);
        }
    }
    Ok(reply)
}

/// Consul's words.
fn no_path() -> ApiError {
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "No path to datacenter")
}
