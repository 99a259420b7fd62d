//! Responses in the form that Consul's clients expect: JSON, the headers of indexed reads, errors as plain text.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Response, StatusCode, header};
use serde_json::Value;

use crate::filter::Filter;
use crate::query::Query;
use crate::refused::Refused;

/// An HTTP response of the API.
pub type Answered = Response<Bytes>;

/// The response to a write: status 200 without a body, which clients compare exactly.
pub fn done() -> Answered {
    Response::new(Bytes::new())
}

/// A JSON response.
pub fn json(body: &Value, query: &Query) -> Answered {
    let text = if query.has("pretty") { format!("{body:#}\n") } else { body.to_string() };
    let mut answer = Response::new(text.into());
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

/// A JSON response with the headers of Consul's indexed reads.
pub fn indexed(body: &Value, index: u64, query: &Query) -> Answered {
    let mut answer = json(body, query);
    index_headers(&mut answer, index, query);
    answer
}

/// Adds the headers of Consul's indexed reads.
pub fn index_headers(answer: &mut Answered, index: u64, query: &Query) {
    let consistency = match (query.has("stale"), query.has("consistent")) {
        (true, _) => "stale",
        (_, true) => "consistent",
        _ => "leader",
    };
    // One client treats 0 as an error.
    set(answer, "x-consul-index", &index.max(1).to_string());
    set(answer, "x-consul-knownleader", "true");
    set(answer, "x-consul-lastcontact", "0");
    set(answer, "x-consul-effective-consistency", consistency);
    set(answer, "x-consul-default-acl-policy", "allow");
}

/// An error as plain text. For a read it carries an index too: clients check the index before the status, and treat a
/// missing one as a broken server.
pub fn refusal(refused: &Refused, read: bool, query: &Query) -> Answered {
    let mut answer = text(refused.text.clone());
    *answer.status_mut() = refused.status;
    if read {
        index_headers(&mut answer, 0, query);
    }
    answer
}

/// A plain text response.
pub fn text(text: impl Into<Bytes>) -> Answered {
    let mut answer = Response::new(text.into());
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    answer
}

/// The response for a method that an endpoint does not support, and for OPTIONS. `allowed`: its methods,
/// comma-separated.
pub fn wrong_method(method: &Method, allowed: &'static str) -> Answered {
    let mut answer = if method == Method::OPTIONS {
        done()
    } else {
        let text = format!("method {method} not allowed");
        refusal(&Refused::new(StatusCode::METHOD_NOT_ALLOWED, text), false, &Query::default())
    };
    set(&mut answer, "allow", &format!("OPTIONS,{allowed}"));
    answer
}

/// Sets a header, if the value is valid.
pub fn set(answer: &mut Answered, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        answer.headers_mut().insert(HeaderName::from_static(name), value);
    }
}

/// The items that match the query's `filter`.
///
/// # Errors
/// If the filter is invalid or does not fit the items.
pub fn filtered(items: impl Iterator<Item = Value>, query: &Query) -> Result<Vec<Value>, Refused> {
    let Some(filter) = Filter::of(query)? else { return Ok(items.collect()) };
    let wanted = items.filter_map(|item| match filter.wants(&item) {
        Ok(wanted) => wanted.then_some(Ok(item)),
        Err(problem) => Some(Err(Refused::bad(problem))),
    });
    wanted.collect()
}

/// Converts a list to an object with each item under its own `key`.
pub fn by(items: Vec<Value>, key: &str) -> Value {
    Value::Object(items.into_iter().map(|item| (item[key].as_str().unwrap_or_default().to_owned(), item)).collect())
}
