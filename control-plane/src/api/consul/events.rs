//! `event/fire` and `event/list`: short messages to watching programs.
//!
//! Consul's agents spread events by gossip and keep the last 256. Here the store keeps them for each namespace, so that
//! every control plane has them in one order. As in Consul, a request through the sidecar of a node lists the events
//! for that node; the index is that of the last event's id, which Go's client computes in the same way.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;
use regex::{Regex, RegexBuilder};
use serde_json::{Value, json};
use tokio::time::Instant;
use weft_registry_api::error::ApiError;
use weft_registry_api::query::Query;
use weft_registry_api::reply::{self, Reply};

use super::{Caller, Consul, api_error, select};
use crate::state::documents::StoredDocument;
use crate::state::locks::uuid;

/// Longest payload, bytes: Consul's `user_event_size_limit`.
const MAX_PAYLOAD: usize = 512;
/// Longest name and filter, bytes.
const MAX_TEXT: usize = 253;
/// Largest compiled filter, bytes.
const MAX_FILTER: usize = 64 << 10;

/// `PUT event/fire/:name`
pub(super) async fn fire(
    consul: &Consul,
    caller: &Caller,
    name: &str,
    query: &Query,
    payload: &[u8],
) -> Result<Reply, ApiError> {
    caller.write_events(name)?;
    if payload.len() > MAX_PAYLOAD {
        let text = format!("user event exceeds configured limit of {MAX_PAYLOAD} bytes");
        return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, text));
    }
    let filter = |key: &str| query.value(key).unwrap_or_default().to_owned();
    let (node, service, tag) = (filter("node"), filter("service"), filter("tag"));
    for (key, text) in [("name", name), ("node", &*node), ("service", &*service), ("tag", &*tag)] {
        if text.len() > MAX_TEXT {
            return Err(ApiError::bad_request(format!("{key} is too long: {MAX_TEXT} bytes at most")));
        }
    }
    for (key, text) in [("node", &node), ("service", &service), ("tag", &tag)] {
        compiled(text).map_err(|e| ApiError::bad_request(format!("Invalid {key} filter: {e}")))?;
    }
    if !tag.is_empty() && service.is_empty() {
        return Err(ApiError::bad_request("Cannot provide tag filter without service filter"));
    }
    let id = uuid();
    let payload = if payload.is_empty() { Value::Null } else { STANDARD.encode(payload).into() };
    let event = json!({
        "ID": id,
        "Name": name,
        "Payload": payload,
        "NodeFilter": node,
        "ServiceFilter": service,
        "TagFilter": tag,
        "Version": 1,
        "LTime": 0,
    });
    consul.mesh.fire_event(&caller.namespace, &id, &event).await.map_err(api_error)?;
    Ok(reply::json(&event, query))
}

fn compiled(text: &str) -> Result<Regex, regex::Error> {
    RegexBuilder::new(text).size_limit(MAX_FILTER).build()
}

/// `GET event/list`
pub(super) async fn list(consul: &Consul, caller: &Caller, query: &Query) -> Result<Reply, ApiError> {
    select::in_scope(consul, query)?;
    caller.read_events()?;
    let (node, name) = (node_of(consul, caller), query.value("name").unwrap_or_default());
    let filtered = ["node", "service", "tag"].map(|key| query.value(key).unwrap_or_default());
    let is_wanted = |stored: &StoredDocument| {
        let event = &stored.value;
        let same = ["NodeFilter", "ServiceFilter", "TagFilter"].iter().zip(filtered);
        (name.is_empty() || event["Name"] == name)
            && same.into_iter().all(|(key, wanted)| wanted.is_empty() || event[*key] == wanted)
            && node.as_ref().is_none_or(|node| node.is_meant(event))
    };
    let block = query.block().map_err(ApiError::bad_request)?;
    let end = block.map(|(_, wait)| Instant::now() + wait);
    loop {
        // Filters are compiled outside the lock.
        let (all, version) = consul.mesh.read_events(|events| {
            let all = events.list(&caller.namespace).into_iter().map(|(_, stored)| stored.clone());
            (all.collect::<Vec<StoredDocument>>(), events.index())
        });
        let events: Vec<Value> = all.iter().filter(|stored| is_wanted(stored)).map(shape).collect();
        let index = index_of(&events);
        let left = end.map(|end| end.saturating_duration_since(Instant::now())).unwrap_or_default();
        if block.is_none_or(|(seen, _)| seen != index) || left.is_zero() {
            return Ok(reply::indexed(&Value::Array(events), index, query));
        }
        consul.mesh.wait_for_events(version, left).await;
    }
}

fn shape(stored: &StoredDocument) -> Value {
    let mut event = stored.value.clone();
    if let Some(map) = event.as_object_mut() {
        map.insert("LTime".into(), stored.create_index.into());
    }
    event
}

/// The index of the last event, as Go's client computes it from an id; 1: there is no event.
fn index_of(events: &[Value]) -> u64 {
    events.last().and_then(|event| id_to_index(event["ID"].as_str()?)).unwrap_or(1)
}

fn id_to_index(id: &str) -> Option<u64> {
    let digits: String = id.chars().filter(|c| *c != '-').collect();
    let half = |from: usize| u64::from_str_radix(digits.get(from..from + 16)?, 16).ok();
    Some((half(0)? ^ half(16)?).max(1))
}

/// The caller's node and its instances: name and tags.
struct Node {
    name: String,
    services: Vec<(String, Vec<String>)>,
}

fn node_of(consul: &Consul, caller: &Caller) -> Option<Node> {
    let name = consul.mesh.read_nodes(|nodes| caller.node(nodes).map(|(name, _)| name.to_owned()))?;
    let instances = consul.mesh.read(|world| caller.instances_of_node(world, &name));
    Some(Node { name, services: instances.iter().map(|i| (i.service.clone(), i.tags.clone())).collect() })
}

impl Node {
    /// Whether an event is for this node, by its filters.
    fn is_meant(&self, event: &Value) -> bool {
        let filter =
            |key: &str| event[key].as_str().filter(|text| !text.is_empty()).and_then(|text| compiled(text).ok());
        let of_service = |service: &Regex, (name, tags): &(String, Vec<String>)| {
            service.is_match(name) && filter("TagFilter").is_none_or(|tag| tags.iter().any(|own| tag.is_match(own)))
        };
        filter("NodeFilter").is_none_or(|node| node.is_match(&self.name))
            && filter("ServiceFilter").is_none_or(|service| self.services.iter().any(|own| of_service(&service, own)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_event_index_matches_gos_client() {
        assert_eq!(
            id_to_index("b54fe110-7af5-cafc-d1fb-afc8ba432b1c"),
            Some(0xb54f_e110_7af5_cafc ^ 0xd1fb_afc8_ba43_2b1c)
        );
        assert_eq!((id_to_index("short"), index_of(&[])), (None, 1));
    }

    #[test]
    fn event_filters_select_nodes() {
        let node = Node { name: "web-1".into(), services: vec![("order".into(), vec!["v1".into()])] };
        let event = |node: &str, service: &str, tag: &str| json!({ "NodeFilter": node, "ServiceFilter": service, "TagFilter": tag });
        for (event, meant) in [
            (event("", "", ""), true),
            (event("^web-", "", ""), true),
            (event("^db-", "", ""), false),
            (event("", "order", ""), true),
            (event("", "order", "v1"), true),
            (event("", "order", "v2"), false),
            (event("", "cart", ""), false),
        ] {
            assert_eq!(node.is_meant(&event), meant, "{event}");
        }
    }
}
