//! Answers in the form that Consul's clients expect: JSON, the headers of indexed reads, refusals as plain text.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Response, StatusCode, header};
use serde_json::Value;

use crate::filter::Filter;
use crate::query::Query;
use crate::refused::Refused;

/// An answer.
pub type Answered = Response<Bytes>;

/// What a write is answered with: status 200 and no body, which clients compare exactly.
pub fn done() -> Answered {
    Response::new(Bytes::new())
}

/// An answer of JSON.
pub fn json(body: &Value, query: &Query) -> Answered {
    let text = if query.has("pretty") { format!("{body:#}\n") } else { body.to_string() };
    let mut answer = Response::new(text.into());
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

/// An answer of JSON with the headers of Consul's indexed reads.
pub fn indexed(body: &Value, index: u64, query: &Query) -> Answered {
    let mut answer = json(body, query);
    index_headers(&mut answer, index, query);
    answer
}

/// Adds them.
pub fn index_headers(answer: &mut Answered, index: u64, query: &Query) {
    let consistency = match (query.has("stale"), query.has("consistent")) {
        (true, _) => "stale",
        (_, true) => "consistent",
        _ => "leader",
    };
    // One client takes 0 for an error.
    set(answer, "x-consul-index", &index.max(1).to_string());
    set(answer, "x-consul-knownleader", "true");
    set(answer, "x-consul-lastcontact", "0");
    set(answer, "x-consul-effective-consistency", consistency);
    set(answer, "x-consul-default-acl-policy", "allow");
}

/// A refusal, as plain text. That of a read carries an index too: clients look for it before they look at the status, and
/// take its absence for a broken server.
pub fn refusal(refused: &Refused, read: bool, query: &Query) -> Answered {
    let mut answer = text(refused.text.clone());
    *answer.status_mut() = refused.status;
    if read {
        index_headers(&mut answer, 0, query);
    }
    answer
}

/// An answer of plain text.
pub fn text(text: impl Into<Bytes>) -> Answered {
    let mut answer = Response::new(text.into());
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    answer
}

/// To a method that an endpoint does not take, and to OPTIONS. `allowed`: those that it takes, with commas.
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

/// Sets a header, where the value can be one.
pub fn set(answer: &mut Answered, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        answer.headers_mut().insert(HeaderName::from_static(name), value);
    }
}

/// The items that the query's `filter` wants.
///
/// # Errors
/// When it is no expression, or one that does not fit the items.
pub fn filtered(items: impl Iterator<Item = Value>, query: &Query) -> Result<Vec<Value>, Refused> {
    let Some(filter) = Filter::of(query)? else { return Ok(items.collect()) };
    let wanted = items.filter_map(|item| match filter.wants(&item) {
        Ok(wanted) => wanted.then_some(Ok(item)),
        Err(problem) => Some(Err(Refused::bad(problem))),
    });
    wanted.collect()
}

/// Items as an object, each under its own `key`.
pub fn by(items: Vec<Value>, key: &str) -> Value {
    Value::Object(items.into_iter().map(|item| (item[key].as_str().unwrap_or_default().to_owned(), item)).collect())
}
