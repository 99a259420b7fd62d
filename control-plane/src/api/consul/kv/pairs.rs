//! The key-value store of Consul's API.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;
use serde_json::{Value, json};
use weft_registry_api::error::ApiError;
use weft_registry_api::query::Query;
use weft_registry_api::reply::{self, Reply};

use crate::api::consul::{Caller, Consul, api_error, interrupted, select};
use crate::state::pairs::{MAX_VALUE, Only, Pair, Pairs};

/// `GET kv/:key`
pub(in crate::api::consul) async fn read(
    consul: &Consul,
    caller: &Caller,
    key: &str,
    query: &Query,
) -> Result<Reply, ApiError> {
    select::in_scope(consul, query)?;
    let namespace = &caller.namespace;
    let (keys, raw) = (query.has("keys"), query.has("raw"));
    let prefix = keys || query.has("recurse");
    if key.is_empty() && !prefix {
        return Err(ApiError::bad_request("Missing key name"));
    }
    if !prefix {
        caller.read_key(key)?;
    }
    if let Some((seen, wait)) = query.block().map_err(ApiError::bad_request)? {
        consul.mesh.wait_for_pairs(namespace, key, prefix, seen, wait).await;
    }
    let (found, index) = consul.mesh.read_pairs(|pairs| {
        if prefix {
            (under(pairs, caller, key, keys, query), pairs.prefix_index(namespace, key))
        } else {
            (pairs.get(namespace, key).map(|pair| Content::Pair(pair.clone())), pairs.index(namespace, key))
        }
    });
    let mut reply = match found {
        Some(Content::Pair(pair)) if raw => raw_value(pair),
        Some(Content::Pair(pair)) => reply::json(&json!([shape(key, &pair)]), query),
        Some(Content::List(list)) => reply::json(&Value::Array(list), query),
        None => {
            let mut none = reply::done();
            *none.status_mut() = StatusCode::NOT_FOUND;
            none
        }
    };
    reply::index_headers(&mut reply, index, query);
    Ok(reply)
}

enum Content {
    Pair(Pair),
    List(Vec<Value>),
}

/// All readable pairs, or keys, that begin with `prefix`. For the root there is always an answer.
fn under(pairs: &Pairs, caller: &Caller, prefix: &str, keys: bool, query: &Query) -> Option<Content> {
    let all = pairs.list(&caller.namespace, prefix).filter(|(key, _)| caller.reads_key(key));
    let list: Vec<Value> = if keys {
        let separator = query.value("separator").unwrap_or_default();
        let mut names: Vec<&str> = all.map(|(key, _)| up_to(key, prefix.len(), separator)).collect();
        names.dedup();
        names.into_iter().map(Value::from).collect()
    } else {
        all.map(|(key, pair)| shape(key, pair)).collect()
    };
    (!list.is_empty() || (keys && prefix.is_empty())).then_some(Content::List(list))
}

/// A key up to and including the first separator after its prefix.
fn up_to<'a>(key: &'a str, prefix: usize, separator: &str) -> &'a str {
    let after = key.get(prefix..).filter(|_| !separator.is_empty());
    match after.and_then(|after| after.find(separator)) {
        Some(at) => key.get(..prefix + at + separator.len()).unwrap_or(key),
        None => key,
    }
}

/// The value as written. A browser must not interpret a stored value as a page of this server.
fn raw_value(pair: Pair) -> Reply {
    let mut reply = Reply::new(pair.value.into());
    reply::set(&mut reply, "content-type", "text/plain");
    reply::set(&mut reply, "x-content-type-options", "nosniff");
    reply::set(&mut reply, "content-security-policy", "sandbox");
    reply
}

pub(in crate::api::consul) fn shape(key: &str, pair: &Pair) -> Value {
    let mut shape = json!({
        "LockIndex": pair.lock_index,
        "Key": key,
        "Flags": pair.flags,
        "Value": if pair.value.is_empty() { Value::Null } else { STANDARD.encode(&pair.value).into() },
        "CreateIndex": pair.create_index,
        "ModifyIndex": pair.modify_index,
    });
    if let (false, Some(map)) = (pair.session.is_empty(), shape.as_object_mut()) {
        map.insert("Session".into(), json!(pair.session));
    }
    shape
}

fn number(query: &Query, key: &str) -> Result<Option<u64>, ApiError> {
    let value = query.value(key).filter(|text| !text.is_empty());
    let wrong =
        |text| ApiError::bad_request(format!("Invalid query parameter: {key:?} must be an integer, got {text:?}"));
    value.map(|text| text.parse().map_err(|_| wrong(text))).transpose()
}

fn only(query: &Query) -> Result<Only, ApiError> {
    Ok(number(query, "cas")?.map_or(Only::Always, Only::IfIndex))
}

fn one_of(query: &Query, keys: &[&str]) -> Result<(), ApiError> {
    let given: Vec<&str> = keys.iter().copied().filter(|key| query.has(key)).collect();
    if given.len() > 1 {
        return Err(ApiError::bad_request(format!("Conflicting flags: {}", given.join(", "))));
    }
    Ok(())
}

/// `PUT kv/:key`
pub(in crate::api::consul) async fn put(
    consul: &Consul,
    caller: &Caller,
    key: &str,
    query: &Query,
    value: &[u8],
) -> Result<Reply, ApiError> {
    if key.is_empty() {
        return Err(ApiError::bad_request("Missing key name"));
    }
    one_of(query, &["cas", "acquire", "release"])?;
    caller.write_keys(key)?;
    if value.len() > MAX_VALUE {
        let text = format!("Request body({} bytes) too large, max size: {MAX_VALUE} bytes.", value.len());
        return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, text));
    }
    let (mesh, writer, flags) = (&consul.mesh, caller.writer(), number(query, "flags")?.unwrap_or(0));
    let done = match (query.value("acquire"), query.value("release")) {
        (Some(session), _) => mesh.lock_pair(writer, key, value, flags, session).await,
        (_, Some(session)) => mesh.unlock_pair(writer, key, value, flags, session).await,
        (None, None) => mesh.put_pair(writer, key, value, flags, only(query)?).await,
    };
    Ok(reply::json(&json!(done.map_err(api_error)?), query))
}

/// `DELETE kv/:key`
pub(in crate::api::consul) async fn delete(
    consul: &Consul,
    caller: &Caller,
    key: &str,
    query: &Query,
) -> Result<Reply, ApiError> {
    one_of(query, &["cas", "recurse"])?;
    caller.write_keys(key)?;
    let (mesh, namespace) = (&consul.mesh, &caller.namespace);
    if query.has("recurse") {
        mesh.delete_pairs(namespace, key).await.map_err(interrupted)?;
        return Ok(reply::json(&json!(true), query));
    }
    if key.is_empty() {
        return Err(ApiError::bad_request("Missing key name"));
    }
    let done = mesh.delete_pair(namespace, key, only(query)?).await.map_err(api_error)?;
    Ok(reply::json(&json!(done), query))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_end_at_the_separator() {
        for (key, prefix, separator, want) in [
            ("a/b/c", "a/", "/", "a/b/"),
            ("a/b", "a/", "/", "a/b"),
            ("a/b/c", "", "/", "a/"),
            ("a/b/c", "a", "", "a/b/c"),
            ("abc--d", "ab", "--", "abc--"),
        ] {
            assert_eq!(up_to(key, prefix.len(), separator), want, "{key}");
        }
    }
}
