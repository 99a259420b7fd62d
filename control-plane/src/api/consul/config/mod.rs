//! Config entries: `service-router`, `service-splitter` and `service-resolver` become a VirtualService and a
//! DestinationRule, `consul-<service>`, as if these had been applied; other kinds are refused.
//!
//! Consul follows the entries of every service on a request's path. A VirtualService is evaluated once, for the host
//! that was called: so an entry that leads to a service with routes of its own is refused, whichever is written first.

mod entries;
mod policies;

use http::StatusCode;
use serde_json::{Value, json};
use weft_registry_api::decode::Fields;
use weft_registry_api::error::ApiError;
use weft_registry_api::query::Query;
use weft_registry_api::reply::{self, Reply};

use super::{Caller, Consul, api_error, select};
use crate::state::documents::StoredDocument;
use policies::Chain;
use weft_policy::{self, Document, Object, Severity, canonical};

/// The kinds that become policies.
const ROUTER: &str = "service-router";
const SPLITTER: &str = "service-splitter";
const RESOLVER: &str = "service-resolver";
/// The file that problems of these policies name.
const FILE: &str = "config entry";

/// The alternatives to the other kinds.
fn unsupported(kind: &str) -> ApiError {
    let instead = match kind {
        "service-defaults" | "proxy-defaults" => {
            "the protocol is set by the registration (metadata protocol) or detected"
        }
        "service-intentions" => "the mesh has no authorization policies yet",
        "exported-services" => "a ServiceExport sets it",
        "mesh" => "an IstioOperator's meshConfig sets it",
        _ => "gateways are Istio's Gateway and VirtualService",
    };
    ApiError::new(StatusCode::NOT_IMPLEMENTED, format!("Kind: {kind:?} is not supported by this mesh: {instead}"))
}

fn shape(stored: &StoredDocument) -> Value {
    let mut shape = stored.value.clone();
    if let Some(map) = shape.as_object_mut() {
        map.insert("CreateIndex".into(), stored.create_index.into());
        map.insert("ModifyIndex".into(), stored.modify_index.into());
    }
    shape
}

/// `GET config/:kind`, `GET config/:kind/:name`
pub(super) async fn read(
    consul: &Consul,
    caller: &Caller,
    kind: &str,
    name: Option<&str>,
    query: &Query,
) -> Result<Reply, ApiError> {
    select::in_scope(consul, query)?;
    if let Some((seen, wait)) = query.block().map_err(ApiError::bad_request)? {
        consul.mesh.wait_for_config(seen, wait).await;
    }
    let (all, index) = consul.mesh.read_config(|all| {
        let of_kind = all.list(&caller.namespace).into_iter().filter(|(_, entry)| entry.value["Kind"] == kind);
        let seen = of_kind.filter(|(_, entry)| caller.rights.read(entry.value["Name"].as_str().unwrap_or_default()));
        (seen.map(|(_, entry)| shape(entry)).collect::<Vec<_>>(), all.index())
    });
    let Some(name) = name else { return Ok(reply::indexed(&Value::Array(all), index, query)) };
    let found = all.into_iter().find(|entry| entry["Name"].as_str().is_some_and(|own| own.eq_ignore_ascii_case(name)));
    let missing = || {
        let text = format!("Config entry not found for \"{kind}\" / \"{name}\"");
        ApiError::new(StatusCode::NOT_FOUND, text)
    };
    Ok(reply::indexed(&found.ok_or_else(missing)?, index, query))
}

/// `PUT config`
pub(super) async fn put(consul: &Consul, caller: &Caller, query: &Query, body: &[u8]) -> Result<Reply, ApiError> {
    let given: Value =
        serde_json::from_slice(body).map_err(|e| ApiError::bad_request(format!("Request decoding failed: {e}")))?;
    let mut fields = Fields::of("the config entry", given.clone()).map_err(ApiError::bad_request)?;
    let kind = fields.text("kind").map_err(ApiError::bad_request)?;
    let service = fields.text("name").map_err(ApiError::bad_request)?.to_ascii_lowercase();
    if ![ROUTER, SPLITTER, RESOLVER].contains(&kind.as_str()) {
        return Err(unsupported(&kind));
    }
    if service.is_empty() {
        return Err(ApiError::bad_request("Name is required"));
    }
    caller.register(&service)?;
    let mut entry = given;
    if let Some(map) = entry.as_object_mut() {
        map.retain(|key, _| !key.eq_ignore_ascii_case("kind") && !key.eq_ignore_ascii_case("name"));
        map.insert("Kind".into(), kind.clone().into());
        map.insert("Name".into(), service.clone().into());
    }
    change(consul, caller, (&kind, &service), Some(entry), query).await
}

/// `DELETE config/:kind/:name`
pub(super) async fn delete(
    consul: &Consul,
    caller: &Caller,
    kind: &str,
    name: &str,
    query: &Query,
) -> Result<Reply, ApiError> {
    let service = name.to_ascii_lowercase();
    caller.register(&service)?;
    let reply = change(consul, caller, (kind, &service), None, query).await?;
    Ok(if query.has("cas") { reply } else { reply::json(&json!({}), query) })
}

/// Writes an entry, and the policies that result from the service's entries.
async fn change(
    consul: &Consul,
    caller: &Caller,
    (kind, service): (&str, &str),
    entry: Option<Value>,
    query: &Query,
) -> Result<Reply, ApiError> {
    let namespace = &caller.namespace;
    let key = format!("{kind}/{service}");
    let all: Vec<Value> = consul.mesh.read_config(|all| {
        let others = all.list(namespace).into_iter().filter(|(held, _)| *held != key);
        others.map(|(_, stored)| stored.value.clone()).chain(entry.clone()).collect()
    });
    let chain = chain_of(&all, service).map_err(ApiError::bad_request)?;
    followed_once(&all, service, &chain).map_err(ApiError::bad_request)?;
    let documents = checked(consul, service, namespace, &chain)?;
    let only = match query.value("cas").filter(|text| !text.is_empty()) {
        None => None,
        Some(text) => Some(text.parse().map_err(|_| ApiError::bad_request("Invalid cas: an integer is required"))?),
    };
    let own = policies::name(service);
    let api = consul.mesh.policies().api;
    let stale: Vec<Document> = api
        .iter()
        .filter(|held| {
            held.name == own && held.namespace == *namespace && !documents.iter().any(|d| d.key() == held.key())
        })
        .map(|held| Document::clone(held))
        .collect();
    let written = consul.mesh.put_config(caller.writer(), &key, entry.as_ref(), only, (documents, &stale)).await;
    Ok(reply::json(&json!(written.map_err(api_error)?), query))
}

/// The entries of a service.
fn chain_of(all: &[Value], service: &str) -> Result<Chain, String> {
    let mut chain = Chain::default();
    for entry in all.iter().filter(|entry| entry["Name"] == service) {
        let mut fields = Fields::of("the config entry", entry.clone())?;
        match entry["Kind"].as_str().unwrap_or_default() {
            ROUTER => chain.router = Some(entries::router(&mut fields)?),
            SPLITTER => chain.splitter = Some(entries::splitter(&mut fields)?),
            _ => chain.resolver = Some(entries::resolver(&mut fields)?),
        }
        for known in ["kind", "name", "meta", "createindex", "modifyindex", "hash"] {
            fields.means(known);
        }
        fields.refuse_rest("")?;
    }
    Ok(chain)
}

/// # Errors
/// If a request would have to follow the entries of two services.
fn followed_once(all: &[Value], service: &str, chain: &Chain) -> Result<(), String> {
    let says = |from: &str, to: &str| {
        format!(
            "requests to {from:?} lead to {to:?}, which has routes of its own (service-router, service-splitter, or Redirect, \
             DefaultSubset or RequestTimeout of a service-resolver): a VirtualService is evaluated once"
        )
    };
    for other in chain.others(service) {
        if chain_of(all, &other)?.routes() {
            return Err(says(service, &other));
        }
    }
    if !chain.routes() {
        return Ok(());
    }
    let mut names: Vec<&str> =
        all.iter().filter_map(|entry| entry["Name"].as_str()).filter(|n| *n != service).collect();
    names.sort_unstable();
    names.dedup();
    for name in names {
        if chain_of(all, name)?.others(name).iter().any(|other| other == service) {
            return Err(says(name, service));
        }
    }
    Ok(())
}

/// The documents, if they are valid together with the existing ones.
fn checked(consul: &Consul, service: &str, namespace: &str, chain: &Chain) -> Result<Vec<Document>, ApiError> {
    let mut documents = Vec::new();
    for document in chain.documents(service, namespace) {
        let parsed = weft_world::parse_policies(FILE, &document.to_string());
        if let Some(problem) = parsed.problems.iter().find(|problem| problem.severity == Severity::Error) {
            return Err(ApiError::bad_request(problem.text.clone()));
        }
        documents.extend(parsed.documents);
    }
    let host = canonical(service, namespace);
    let held = consul.mesh.policies();
    let has_subset = |document: &Document, subset: &str| match &document.object {
        Object::DestinationRule(rule) => rule.subsets.iter().any(|own| own.name == subset),
        _ => false,
    };
    for subset in chain.undefined(service) {
        let mut about = held.all().filter(|held| held.name != policies::name(service) && is_about(held, &host));
        if !about.any(|held| has_subset(held, &subset)) {
            let text = format!("ServiceSubset: {service:?} has no subset {subset:?} (Subsets of its service-resolver)");
            return Err(ApiError::bad_request(text));
        }
    }
    let others = || held.all().filter(|held| held.name != policies::name(service));
    for document in &documents {
        let owner = others().find(|held| held.kind() == document.kind() && is_about(held, &host));
        if let Some(owner) = owner {
            let text = format!("{} already routes requests to {service:?}: remove it first", owner.reference());
            return Err(ApiError::new(StatusCode::CONFLICT, text));
        }
    }
    consul.mesh.date(&mut documents);
    let all: Vec<&Document> = documents.iter().chain(others().map(AsRef::as_ref)).collect();
    let before = held.all().filter(|held| held.name == policies::name(service)).map(AsRef::as_ref);
    let changed: Vec<&Document> = before.chain(&documents).collect();
    let problems = weft_policy::check_change(&changed, &all);
    match problems.iter().find(|problem| problem.severity == Severity::Error && problem.file == FILE) {
        Some(problem) => Err(ApiError::bad_request(problem.text.clone())),
        None => Ok(documents),
    }
}

fn is_about(document: &Document, host: &str) -> bool {
    match &document.object {
        Object::VirtualService(service) => service.hosts.iter().any(|own| canonical(own, &document.namespace) == host),
        Object::DestinationRule(rule) => canonical(&rule.host, &document.namespace) == host,
        _ => false,
    }
}
