//! Sessions of Consul's API.

use std::time::Duration;

use http::StatusCode;
use serde_json::{Value, json};
use weft_proto::v1::StoredSession;
use weft_registry_api::decode::{Fields, go_duration};
use weft_registry_api::error::ApiError;
use weft_registry_api::query::Query;
use weft_registry_api::reply::{self, Reply};

use crate::api::consul::{Caller, Consul, Rights, api_error, select};
use crate::state::locks::{SERF_HEALTH, Session, Sessions};

/// Bounds of a session's time to live, and of its lock delay: Consul's.
const TTL: std::ops::RangeInclusive<Duration> = Duration::from_secs(10)..=Duration::from_secs(86_400);
const MAX_LOCK_DELAY: Duration = Duration::from_secs(60);
const LOCK_DELAY: Duration = Duration::from_secs(15);

/// The requested sessions.
pub(in crate::api::consul) enum SessionFilter<'a> {
    /// One.
    Id(&'a str),
    /// The sessions of a node.
    Node(&'a str),
    /// All.
    All,
}

/// `session/info/:id`, `session/node/:node`, `session/list`
pub(in crate::api::consul) async fn read(
    consul: &Consul,
    caller: &Caller,
    wanted: SessionFilter<'_>,
    query: &Query,
) -> Result<Reply, ApiError> {
    select::in_scope(consul, query)?;
    if let Some((seen, wait)) = query.block().map_err(ApiError::bad_request)? {
        consul.mesh.wait_for_sessions(seen, wait).await;
    }
    let is_wanted = |id: &str, session: &Session| match wanted {
        SessionFilter::Id(wanted) => id == wanted,
        SessionFilter::Node(node) => session.stored.node == node,
        SessionFilter::All => true,
    };
    let (list, index) = consul.mesh.read_sessions(|all| {
        let visible = all.list(&caller.namespace).filter(|_| caller.reads_sessions());
        let found = visible.filter(|(id, session)| is_wanted(id, session));
        (found.map(|(id, session)| shape(id, session)).collect::<Vec<Value>>(), all.index())
    });
    Ok(reply::indexed(&Value::Array(reply::filtered(list.into_iter(), query)?), index, query))
}

fn shape(id: &str, Session { stored, create_index, modify_index, .. }: &Session) -> Value {
    json!({
        "ID": id,
        "Name": stored.name,
        "Node": stored.node,
        "LockDelay": stored.lock_delay_ms * 1_000_000,
        "Behavior": if stored.delete { "delete" } else { "release" },
        "TTL": if stored.ttl_ms == 0 { String::new() } else { format!("{}s", stored.ttl_ms as f64 / 1000.0) },
        "NodeChecks": stored.checks,
        "ServiceChecks": null,
        "Checks": stored.checks,
        "CreateIndex": create_index,
        "ModifyIndex": modify_index,
    })
}

/// `session/create`
pub(in crate::api::consul) async fn create(
    consul: &Consul,
    caller: &Caller,
    query: &Query,
    body: &[u8],
) -> Result<Reply, ApiError> {
    caller.write_sessions("")?;
    let own = consul.mesh.read_nodes(|nodes| caller.node(nodes).map(|(name, _)| name.to_owned()));
    let stored = requested(body, own.unwrap_or_default()).map_err(ApiError::bad_request)?;
    if stored.node.is_empty() {
        return Err(ApiError::bad_request("Must provide Node: this program has no sidecar, and no node of its own"));
    }
    let id = consul.mesh.create_session(caller.writer(), stored).await.map_err(api_error)?;
    Ok(reply::json(&json!({ "ID": id }), query))
}

/// The session that a body describes.
fn requested(body: &[u8], own_node: String) -> Result<StoredSession, String> {
    let mut fields = Fields::of_body("the session", if body.is_empty() { b"{}" } else { body })?;
    let node = Some(fields.text("node")?).filter(|node| !node.is_empty()).unwrap_or(own_node);
    let name = fields.text("name")?;
    // Without a list of checks it depends on its node; with an empty list on none.
    let lists = ["checks", "nodechecks"].map(|key| fields.has(key));
    let mut checks = fields.texts("checks")?;
    checks.extend(fields.texts("nodechecks")?);
    if !lists.contains(&true) {
        checks.push(SERF_HEALTH.into());
    }
    for mut check in fields.objects("servicechecks", "a service check")? {
        checks.push(check.text("id")?);
    }
    let behavior = fields.text("behavior")?;
    let delete = match behavior.as_str() {
        "" | "release" => false,
        "delete" => true,
        other => return Err(format!("Invalid Behavior setting {other:?}: release or delete")),
    };
    let ttl = match fields.text("ttl")?.as_str() {
        "" => Duration::ZERO,
        text => {
            let ttl = go_duration(text).ok_or_else(|| format!("Invalid Session TTL {text:?}: such as \"15s\""))?;
            if !ttl.is_zero() && !TTL.contains(&ttl) {
                return Err(format!("Invalid Session TTL '{}', must be between [10s=24h0m0s]", ttl.as_secs()));
            }
            ttl
        }
    };
    let lock_delay = if fields.has("lockdelay") { fields.lock_delay("lockdelay")? } else { LOCK_DELAY };
    fields.finish();
    Ok(StoredSession {
        name,
        node,
        checks,
        lock_delay_ms: milliseconds(lock_delay.min(MAX_LOCK_DELAY)),
        delete,
        ttl_ms: milliseconds(ttl),
        ..StoredSession::default()
    })
}

fn milliseconds(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

/// `session/destroy/:id`
pub(in crate::api::consul) async fn destroy(
    consul: &Consul,
    caller: &Caller,
    id: &str,
    query: &Query,
) -> Result<Reply, ApiError> {
    may_end(consul, caller, id)?;
    consul.mesh.destroy_session(&caller.namespace, id).await.map_err(api_error)?;
    Ok(reply::json(&json!(true), query))
}

/// The end of a session releases, or deletes, the keys that it holds: a caller without the right to write them may not
/// end it.
fn may_end(consul: &Consul, caller: &Caller, id: &str) -> Result<(), ApiError> {
    caller.write_sessions(id)?;
    if matches!(caller.rights, Rights::All) {
        return Ok(());
    }
    consul.mesh.read_pairs(|pairs| {
        let mut held = pairs.list(&caller.namespace, "").filter(|(_, pair)| pair.session == id);
        held.try_for_each(|(key, _)| caller.write_keys(key))
    })
}

/// `session/renew/:id`
pub(in crate::api::consul) async fn renew(
    consul: &Consul,
    caller: &Caller,
    id: &str,
    query: &Query,
) -> Result<Reply, ApiError> {
    caller.write_sessions(id)?;
    let unknown = || ApiError::new(StatusCode::NOT_FOUND, format!("Session id '{id}' not found"));
    if !consul.mesh.renew_session(&caller.namespace, id).await.map_err(api_error)? {
        return Err(unknown());
    }
    let shown = |all: &Sessions| all.get(&caller.namespace, id).map(|session| shape(id, session));
    let shown = consul.mesh.read_sessions(shown).ok_or_else(unknown)?;
    Ok(reply::json(&json!([shown]), query))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn session_requests_are_validated() {
        let of = |body: &str| requested(body.as_bytes(), "own".into());
        let plain = of("").unwrap();
        assert_eq!((plain.node.as_str(), plain.checks.as_slice()), ("own", &["serfHealth".to_owned()][..]));
        assert_eq!((plain.lock_delay_ms, plain.ttl_ms, plain.delete), (15_000, 0, false));
        let all = of(r#"{"Name":"n","node":"x","LockDelay":"20s","TTL":"30s","Behavior":"delete","Checks":["a"],
            "ServiceChecks":[{"ID":"s"}]}"#);
        let all = all.unwrap();
        assert_eq!((all.name.as_str(), all.node.as_str(), all.delete), ("n", "x", true));
        assert_eq!((all.lock_delay_ms, all.ttl_ms, all.checks), (20_000, 30_000, vec!["a".to_owned(), "s".to_owned()]));
        assert_eq!(of(r#"{"LockDelay":5}"#).unwrap().lock_delay_ms, 5000, "small numbers are seconds");
        assert_eq!(of(r#"{"LockDelay":5000000000}"#).unwrap().lock_delay_ms, 5000, "large ones nanoseconds");
        assert_eq!(of(r#"{"LockDelay":"1h"}"#).unwrap().lock_delay_ms, 60_000);
        assert!(of(r#"{"NodeChecks":[]}"#).unwrap().checks.is_empty());
        for bad in [r#"{"TTL":"1s"}"#, r#"{"TTL":"25h"}"#, r#"{"TTL":"x"}"#, r#"{"Behavior":"x"}"#, "[1]"] {
            assert!(of(bad).is_err(), "{bad}");
        }
    }
}
