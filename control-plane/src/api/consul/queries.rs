//! Prepared queries: a search for healthy instances of a service, stored under an id and a name, that continues in
//! other data centres if there are none locally.

mod template;

use std::sync::Arc;

use http::{Request, StatusCode};
use rand::seq::SliceRandom;
use serde_json::{Value, json};
use weft_registry_api::decode::{Fields, go_duration};
use weft_registry_api::error::ApiError;
use weft_registry_api::query::Query;
use weft_registry_api::reply::{self, Reply};

use super::select::{self, rows};
use super::{Caller, Consul, api_error, forward, shapes};
use crate::state::documents::{Documents, StoredDocument};
use crate::state::locks::uuid;
use crate::state::{Mesh, Node};
use weft_world::{Instance, World};

/// Longest text of a query, and most items of a list.
const MAX_TEXT: usize = 512;
const MAX_ITEMS: usize = 64;

/// `POST query`
pub(super) async fn create(consul: &Consul, caller: &Caller, query: &Query, body: &[u8]) -> Result<Reply, ApiError> {
    let id = uuid();
    let written = of_body(body, &id).map_err(ApiError::bad_request)?;
    caller.write_query(service_of(&written))?;
    consul.mesh.put_query(caller.writer(), &id, Some(&written), true).await.map_err(api_error)?;
    Ok(reply::json(&json!({ "ID": id }), query))
}

/// `PUT query/:id`
pub(super) async fn update(consul: &Consul, caller: &Caller, id: &str, body: &[u8]) -> Result<Reply, ApiError> {
    let written = of_body(body, id).map_err(ApiError::bad_request)?;
    caller.write_query(service_of(&written))?;
    caller.write_query(service_of(&stored_query(consul, caller, id)?.value))?;
    if !consul.mesh.put_query(caller.writer(), id, Some(&written), false).await.map_err(api_error)? {
        return Err(not_found());
    }
    Ok(reply::done())
}

/// `DELETE query/:id`
pub(super) async fn delete(consul: &Consul, caller: &Caller, id: &str) -> Result<Reply, ApiError> {
    caller.write_query(service_of(&stored_query(consul, caller, id)?.value))?;
    consul.mesh.put_query(caller.writer(), id, None, false).await.map_err(api_error)?;
    Ok(reply::done())
}

fn not_found() -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, "Query not found")
}

fn service_of(query: &Value) -> &str {
    query["Service"]["Service"].as_str().unwrap_or_default()
}

/// Reads a query, and refuses fields that are not supported here.
fn of_body(body: &[u8], id: &str) -> Result<Value, String> {
    let mut fields = Fields::of_body("the query", body)?;
    let template = template::of(fields.object("template", "Template")?)?;
    if fields.means("session") {
        return Err("Session: a query stays until it is deleted, and is not bound to a session".into());
    }
    if fields.means("token") {
        return Err("Token: the token of the request that executes a query decides the visible services".into());
    }
    fields.means("id");
    let name = text("Name", fields.text("name")?)?;
    let service = fields.object("service", "Service")?.ok_or("Must provide a Service name to query")?;
    let service = service_query(service)?;
    if template.is_object() {
        template::check(&service)?;
    }
    let ttl = fields.object("dns", "DNS")?.map(|mut dns| dns.text("ttl")).transpose()?.unwrap_or_default();
    if !ttl.is_empty() && go_duration(&ttl).is_none() {
        return Err(format!("Bad DNS TTL {ttl:?}: a duration such as \"10s\""));
    }
    fields.finish();
    Ok(json!({ "ID": id, "Name": name, "Template": template, "Service": service, "DNS": { "TTL": ttl } }))
}

fn text(field: &str, text: String) -> Result<String, String> {
    if text.len() > MAX_TEXT { Err(format!("{field} is too long: {MAX_TEXT} bytes at most")) } else { Ok(text) }
}

fn service_query(mut fields: Fields) -> Result<Value, String> {
    let service = text("Service", fields.text("service")?)?;
    if service.is_empty() {
        return Err("Must provide a Service name to query".into());
    }
    let mut failover = json!({ "NearestN": 0, "Datacenters": [] });
    if let Some(mut given) = fields.object("failover", "Failover")? {
        if given.means("targets") {
            return Err("Service.Failover.Targets: clusters are not peered; name Datacenters".into());
        }
        failover = json!({ "NearestN": given.number("nearestn")?, "Datacenters": items("Datacenters", given.texts("datacenters")?)? });
    }
    let written = json!({
        "Service": service,
        "Failover": failover,
        "OnlyPassing": fields.flag("onlypassing")?,
        "IgnoreCheckIDs": items("IgnoreCheckIDs", fields.texts("ignorecheckids")?)?,
        "Near": text("Near", fields.text("near")?)?,
        "Tags": items("Tags", fields.texts("tags")?)?,
        "NodeMeta": fields.text_map("nodemeta")?,
        "ServiceMeta": fields.text_map("servicemeta")?,
        "Connect": fields.flag("connect")?,
    });
    fields.finish();
    Ok(written)
}

fn items(field: &str, all: Vec<String>) -> Result<Vec<String>, String> {
    if all.len() > MAX_ITEMS || all.iter().any(|item| item.len() > MAX_TEXT) {
        return Err(format!("Service.{field}: {MAX_ITEMS} items of {MAX_TEXT} bytes at most"));
    }
    Ok(all)
}

fn shape(stored: &StoredDocument) -> Value {
    let mut shape = stored.value.clone();
    if let Some(map) = shape.as_object_mut() {
        map.insert("Session".into(), "".into());
        map.insert("Token".into(), "".into());
        if map.get("Template").is_none_or(Value::is_null) {
            map.insert("Template".into(), json!({ "Type": "", "Regexp": "", "RemoveEmptyTags": false }));
        }
        map.insert("CreateIndex".into(), stored.create_index.into());
        map.insert("ModifyIndex".into(), stored.modify_index.into());
    }
    shape
}

/// A query by its id that the caller may see.
fn stored_query(consul: &Consul, caller: &Caller, id: &str) -> Result<StoredDocument, ApiError> {
    let held = consul.mesh.read_queries(|all| all.get(&caller.namespace, id).cloned());
    held.filter(|stored| caller.rights.read(service_of(&stored.value))).ok_or_else(not_found)
}

/// A prepared query by its id or its name, in the caller's namespace and then in "default".
fn find_query(consul: &Consul, caller: &Caller, id: &str) -> Result<StoredDocument, ApiError> {
    let found = consul.mesh.read_queries(|all| find(all, &caller.namespace, id).or_else(|| find(all, "default", id)));
    found.filter(|stored| caller.rights.read(service_of(&stored.value))).ok_or_else(not_found)
}

/// By id, by name (the names of DNS have any case), and by the template whose name is the longest prefix of it.
fn find(all: &Documents, namespace: &str, id: &str) -> Option<StoredDocument> {
    if id.is_empty() {
        return None;
    }
    let is_template = |stored: &StoredDocument| stored.value["Template"].is_object();
    // A template cannot be used without a name.
    if let Some(by_id) = all.get(namespace, id).filter(|stored| !is_template(stored)) {
        return Some(by_id.clone());
    }
    let list = all.list(namespace);
    let is_named =
        |stored: &StoredDocument| stored.value["Name"].as_str().is_some_and(|name| name.eq_ignore_ascii_case(id));
    if let Some((_, by_name)) = list.iter().find(|(_, stored)| !is_template(stored) && is_named(stored)) {
        return Some((*by_name).clone());
    }
    let (_, best) =
        list.into_iter().max_by_key(|(_, stored)| template::fits(&stored.value, id).map_or(0, |n| n + 1))?;
    template::fits(&best.value, id)?;
    Some(StoredDocument { value: template::render(&best.value, id), ..best.clone() })
}

/// `GET query`
pub(super) async fn list(consul: &Consul, caller: &Caller, query: &Query) -> Result<Reply, ApiError> {
    select::in_scope(consul, query)?;
    wait(consul, query).await?;
    let (all, index) = consul.mesh.read_queries(|all| {
        let seen = all.list(&caller.namespace).into_iter().filter(|(_, q)| caller.rights.read(service_of(&q.value)));
        (seen.map(|(_, stored)| shape(stored)).collect::<Vec<_>>(), all.index())
    });
    Ok(reply::indexed(&Value::Array(all), index, query))
}

/// `GET query/:id`
pub(super) async fn read(consul: &Consul, caller: &Caller, id: &str, query: &Query) -> Result<Reply, ApiError> {
    select::in_scope(consul, query)?;
    wait(consul, query).await?;
    let stored = stored_query(consul, caller, id)?;
    Ok(reply::indexed(&json!([shape(&stored)]), consul.mesh.read_queries(Documents::index), query))
}

async fn wait(consul: &Consul, query: &Query) -> Result<(), ApiError> {
    if let Some((seen, wait)) = query.block().map_err(ApiError::bad_request)? {
        consul.mesh.wait_for_queries(seen, wait).await;
    }
    Ok(())
}

/// `GET query/:id/explain`
pub(super) fn explain(consul: &Consul, caller: &Caller, id: &str, query: &Query) -> Result<Reply, ApiError> {
    let stored = find_query(consul, caller, id)?;
    Ok(reply::indexed(&json!({ "Query": shape(&stored) }), stored.modify_index, query))
}

/// `GET query/:id/execute`
pub(super) async fn execute(consul: &Consul, caller: &Caller, id: &str, query: &Query) -> Result<Reply, ApiError> {
    select::in_scope(consul, query)?;
    let limit = match query.value("limit").filter(|text| !text.is_empty()) {
        None => usize::MAX,
        Some(text) => {
            text.parse().map_err(|_| ApiError::bad_request(format!("Bad limit: {text:?} is not a whole number")))?
        }
    };
    let stored = find_query(consul, caller, id)?;
    let wanted = &stored.value["Service"];
    let service = service_of(&stored.value);
    let connect = query.has("connect") || wanted["Connect"] == true;
    let mut nodes = at_home(consul, caller, service, wanted, (connect, query));
    let (mut datacenter, mut failovers) = (consul.federation.datacenter().to_owned(), 0);
    for other in if nodes.is_empty() { datacenters(consul, wanted) } else { Vec::new() } {
        failovers += 1;
        nodes = in_datacenter(consul, caller, &other, service, (wanted, connect)).await;
        if !nodes.is_empty() {
            datacenter = other;
            break;
        }
    }
    nodes.truncate(if limit == 0 { usize::MAX } else { limit });
    let body = json!({
        "Service": service,
        "Nodes": nodes,
        "DNS": stored.value["DNS"],
        "Datacenter": datacenter,
        "Failovers": failovers,
    });
    Ok(reply::indexed(&body, stored.modify_index, query))
}

/// Shuffled anew each time, unless the query or the request has a `near`.
fn at_home(
    consul: &Consul,
    caller: &Caller,
    service: &str,
    wanted: &Value,
    (connect, query): (bool, &Query),
) -> Vec<Value> {
    let mut instances = consul.mesh.read(|world| caller.instances_of(world, service));
    instances.retain(|instance| !connect || !instance.identity.is_empty());
    instances.shuffle(&mut rand::rng());
    let near = query.value("near").or(wanted["Near"].as_str()).filter(|near| !near.is_empty());
    let near = near.map_or_else(Query::default, |near| Query::of("near", near));
    let rows = rows(consul, caller, instances, &near);
    rows.iter().map(shapes::health_item).filter(|item| is_found(item, wanted)).collect()
}

/// The data centres to ask if there is no local instance: the nearest, in the order of the peers, then the named ones.
fn datacenters(consul: &Consul, wanted: &Value) -> Vec<String> {
    let own = consul.federation.datacenter();
    let others: Vec<&str> = consul.federation.datacenters().into_iter().filter(|other| *other != own).collect();
    failover(wanted, own, &others)
}

/// The same, of those `others` that exist.
fn failover(wanted: &Value, own: &str, others: &[&str]) -> Vec<String> {
    let nearest = usize::try_from(wanted["Failover"]["NearestN"].as_u64().unwrap_or_default()).unwrap_or(usize::MAX);
    let mut all: Vec<String> = others.iter().take(nearest).map(|other| (*other).to_owned()).collect();
    for named in wanted["Failover"]["Datacenters"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if named != own && !all.iter().any(|seen| seen == named) {
            all.push(named.to_owned());
        }
    }
    all
}

/// A data centre that cannot be queried has no instances.
async fn in_datacenter(
    consul: &Consul,
    caller: &Caller,
    datacenter: &str,
    service: &str,
    (wanted, connect): (&Value, bool),
) -> Vec<Value> {
    let what = if connect { "connect" } else { "service" };
    let escaped: String = service.bytes().map(escaped).collect();
    let Ok(request) = Request::get(format!("/v1/health/{what}/{escaped}")).body(()) else { return Vec::new() };
    let reply = forward::ask(consul, caller, datacenter, &request.into_parts().0).await;
    let body = match reply {
        Ok(reply) if reply.status() == StatusCode::OK => reply.into_body(),
        Ok(reply) => {
            tracing::debug!(datacenter, service, status = %reply.status(), "the other data centre refuses a prepared query");
            return Vec::new();
        }
        Err(e) => {
            tracing::debug!(datacenter, service, "the other data centre does not answer a prepared query: {}", e.text);
            return Vec::new();
        }
    };
    let items: Vec<Value> = serde_json::from_slice(&body).unwrap_or_default();
    items.into_iter().filter(|item| is_found(item, wanted)).collect()
}

/// A byte of a path's segment.
fn escaped(byte: u8) -> String {
    let plain = byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    if plain { char::from(byte).to_string() } else { format!("%{byte:02X}") }
}

/// The result of a prepared query.
#[derive(Debug, Clone)]
pub struct QueryResult {
    /// Available instances in this data centre.
    pub instances: Vec<Arc<Instance>>,
    /// Its service, for the search in other data centres.
    pub service: String,
    /// Data centres to ask, in order.
    pub datacenters: Vec<String>,
    /// Time to live of its answers in seconds; `None`: the default.
    pub ttl: Option<u32>,
}

/// The result of a query for DNS, where only the namespace of the caller is known.
pub fn prepared(mesh: &Mesh, namespace: &str, name: &str, others: &[&str]) -> Option<QueryResult> {
    let stored = mesh.read_queries(|all| find(all, namespace, name).or_else(|| find(all, "default", name)))?;
    let (wanted, service) = (&stored.value["Service"], service_of(&stored.value));
    let of =
        |world: &World, namespace: &str| -> Vec<_> { world.service_instances(namespace, service).cloned().collect() };
    let mut instances = mesh.read(|world| {
        let own = of(world, namespace);
        if own.is_empty() { of(world, "default") } else { own }
    });
    instances.retain(|instance| wanted["Connect"] != true || !instance.identity.is_empty());
    let found = |instance: &Instance, node: Option<&Node>| {
        let checks = node.into_iter().flat_map(|node| node.checks.values()).chain(&instance.checks);
        let checks: Vec<Value> = checks.map(|c| json!({ "CheckID": c.check_id, "Status": c.status })).collect();
        let item = json!({
            "Node": { "Meta": node.map(|node| &node.labels) },
            "Service": { "Tags": instance.tags, "Meta": instance.meta },
            "Checks": checks,
        });
        !instance.draining && is_found(&item, wanted)
    };
    mesh.read_nodes(|nodes| instances.retain(|instance| found(instance, nodes.get(&instance.node))));
    let ttl = stored.value["DNS"]["TTL"].as_str().and_then(go_duration);
    let own = mesh.read(|world| world.datacenter().to_owned());
    // Other data centres are queried for a name, which holds at most one tag: an answer without the other conditions
    // would be wrong.
    let elsewhere = as_name(wanted, service);
    Some(QueryResult {
        instances,
        datacenters: elsewhere.as_ref().map(|_| failover(wanted, &own, others)).unwrap_or_default(),
        service: elsewhere.unwrap_or_else(|| service.to_owned()),
        ttl: ttl.map(|ttl| u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX)),
    })
}

/// The beginning of a DNS name, `[tag.]service`, that is equivalent to a query, if there is one.
fn as_name(wanted: &Value, service: &str) -> Option<String> {
    let is_empty = |key: &str| match &wanted[key] {
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Bool(flag) => !flag,
        _ => true,
    };
    if !["OnlyPassing", "IgnoreCheckIDs", "NodeMeta", "ServiceMeta", "Connect"].into_iter().all(is_empty) {
        return None;
    }
    match wanted["Tags"].as_array().map(Vec::as_slice).unwrap_or_default() {
        [] => Some(service.to_owned()),
        [tag] => tag.as_str().filter(|tag| !tag.starts_with('!')).map(|tag| format!("{tag}.{service}")),
        _ => None,
    }
}

/// Whether an item of `health/service` fulfils a query.
fn is_found(item: &Value, wanted: &Value) -> bool {
    let texts = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(|one| one.as_str().map(str::to_owned)).collect()
    };
    let ignored = texts(&wanted["IgnoreCheckIDs"]);
    let only_passing = wanted["OnlyPassing"] == true;
    let serves = |check: &Value| {
        let status = check["Status"].as_str().unwrap_or_default();
        let id = check["CheckID"].as_str().unwrap_or_default();
        ignored.iter().any(|ignored| ignored == id)
            || if only_passing { status == "passing" } else { status != "critical" }
    };
    let tags = texts(&item["Service"]["Tags"]);
    let has = |tag: &str| tags.iter().any(|own| own.eq_ignore_ascii_case(tag));
    let fits = |tag: &String| tag.strip_prefix('!').map_or_else(|| has(tag), |unwanted| !has(unwanted));
    let meta = |wanted: &Value, found: &Value| {
        wanted.as_object().into_iter().flatten().all(|(key, value)| found.get(key) == Some(value))
    };
    item["Checks"].as_array().into_iter().flatten().all(serves)
        && texts(&wanted["Tags"]).iter().all(fits)
        && meta(&wanted["NodeMeta"], &item["Node"]["Meta"])
        && meta(&wanted["ServiceMeta"], &item["Service"]["Meta"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prepared_query_becomes_a_dns_name_if_equivalent() {
        let query = |more: &str| {
            let body = format!(r#"{{"Service":{{"Service":"web"{more}}}}}"#);
            of_body(body.as_bytes(), "1").unwrap()["Service"].clone()
        };
        for (more, name) in [
            ("", Some("web")),
            (r#","Tags":["v1"]"#, Some("v1.web")),
            (r#","Tags":["v1","v2"]"#, None),
            (r#","Tags":["!v1"]"#, None),
            (r#","OnlyPassing":true"#, None),
            (r#","NodeMeta":{"a":"b"}"#, None),
            (r#","IgnoreCheckIDs":["a"]"#, None),
        ] {
            assert_eq!(as_name(&query(more), "web").as_deref(), name, "{more}");
        }
    }

    #[test]
    fn other_data_centres_are_asked_once_each_and_in_order() {
        let wanted =
            |nearest: u64, named: &[&str]| json!({ "Failover": { "NearestN": nearest, "Datacenters": named } });
        for (nearest, named, order) in [
            (0, &[][..], &[][..]),
            (1, &[], &["b"]),
            (9, &[], &["b", "c"]),
            (1, &["c", "b", "a", "d"], &["b", "c", "d"]),
        ] {
            assert_eq!(failover(&wanted(nearest, named), "a", &["b", "c"]), order, "{nearest} {named:?}");
        }
    }
}
