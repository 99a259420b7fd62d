//! Responses in the form that Consul's clients expect: JSON, the headers of indexed reads, errors as plain text.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Response, StatusCode, header};
use serde_json::Value;

use crate::error::ApiError;
use crate::filter::Filter;
use crate::query::Query;

/// An HTTP response of the API.
pub type Reply = Response<Bytes>;

/// The response to a write: status 200 without a body, which clients compare exactly.
pub fn done() -> Reply {
    Response::new(Bytes::new())
}

/// A JSON response.
pub fn json(body: &Value, query: &Query) -> Reply {
    let text = if query.has("pretty") { format!("{body:#}\n") } else { body.to_string() };
    let mut reply = Response::new(text.into());
    reply.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    reply
}

/// A JSON response with the headers of Consul's indexed reads.
pub fn indexed(body: &Value, index: u64, query: &Query) -> Reply {
    let mut reply = json(body, query);
    index_headers(&mut reply, index, query);
    reply
}

/// Adds the headers of Consul's indexed reads.
pub fn index_headers(reply: &mut Reply, index: u64, query: &Query) {
    let consistency = match (query.has("stale"), query.has("consistent")) {
        (true, _) => "stale",
        (_, true) => "consistent",
        _ => "leader",
    };
    // One client treats 0 as an error.
    set(reply, "x-consul-index", &index.max(1).to_string());
    set(reply, "x-consul-knownleader", "true");
    set(reply, "x-consul-lastcontact", "0");
    set(reply, "x-consul-effective-consistency", consistency);
    set(reply, "x-consul-default-acl-policy", "allow");
}

/// An error as plain text. For a read it carries an index too: clients check the index before the status, and treat a
/// missing one as a broken server.
pub fn error(error: &ApiError, read: bool, query: &Query) -> Reply {
    let mut reply = text(error.text.clone());
    *reply.status_mut() = error.status;
    if read {
        index_headers(&mut reply, 0, query);
    }
    reply
}

/// A plain text response.
pub fn text(text: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(text.into());
    reply.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    reply
}

/// The response for a method that an endpoint does not support, and for OPTIONS. `allowed`: its methods,
/// comma-separated.
pub fn wrong_method(method: &Method, allowed: &'static str) -> Reply {
    let mut reply = if method == Method::OPTIONS {
        done()
    } else {
        let text = format!("method {method} not allowed");
        error(&ApiError::new(StatusCode::METHOD_NOT_ALLOWED, text), false, &Query::default())
    };
    set(&mut reply, "allow", &format!("OPTIONS,{allowed}"));
    reply
}

/// Sets a header, if the value is valid.
pub fn set(reply: &mut Reply, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        reply.headers_mut().insert(HeaderName::from_static(name), value);
    }
}

/// The items that match the query's `filter`.
///
/// # Errors
/// If the filter is invalid or does not fit the items.
pub fn filtered(items: impl Iterator<Item = Value>, query: &Query) -> Result<Vec<Value>, ApiError> {
    let Some(filter) = Filter::of(query)? else { return Ok(items.collect()) };
    let wanted = items.filter_map(|item| match filter.wants(&item) {
        Ok(wanted) => wanted.then_some(Ok(item)),
        Err(problem) => Some(Err(ApiError::bad_request(problem))),
    });
    wanted.collect()
}

/// Converts a list to an object with each item under its own `key`.
pub fn by(items: Vec<Value>, key: &str) -> Value {
    Value::Object(items.into_iter().map(|item| (item[key].as_str().unwrap_or_default().to_owned(), item)).collect())
}
