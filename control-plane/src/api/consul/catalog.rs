//! `catalog/register` and `catalog/deregister`: registrations that a program writes on behalf of another. Their checks
//! are not probed, no session keeps them alive, and they have no identity: the mesh speaks plaintext to them.
//!
//! A token names the services that may be written. Changes of a node as a whole (its address, its own checks, its
//! removal) need the right to write every service on it.

use std::net::IpAddr;

use http::StatusCode;
use serde_json::json;
use weft_proto::v1::{Check, Instance};
use weft_registry_api::decode::Fields;
use weft_registry_api::error::ApiError;
use weft_registry_api::query::Query;
use weft_registry_api::reply::{self, Reply};
use weft_registry_api::service::{tagged_addresses, weights};

use super::{Caller, Consul, api_error, select};
use crate::identity::bounds;
use crate::registry;
use crate::registry::external;
use crate::state::catalog::{Entry, Removal};

/// Checks in one request, or of one instance.
const MAX_CHECKS: usize = 64;

/// `PUT catalog/register`
pub(super) async fn register(consul: &Consul, caller: &Caller, query: &Query, body: &[u8]) -> Result<Reply, ApiError> {
    select::in_scope(consul, query)?;
    allowed(consul)?;
    let entry = entry(consul, caller, body)?;
    may_write(consul, caller, &entry)?;
    consul.mesh.catalog_register(&entry).await.map_err(api_error)?;
    Ok(reply::json(&json!(true), query))
}

/// # Errors
/// If the caller's token does not name the written services, or the node is not in its namespace.
pub(super) fn may_write(consul: &Consul, caller: &Caller, entry: &Entry) -> Result<(), ApiError> {
    let node = consul.mesh.catalog_node(&entry.node, &caller.namespace).map_err(api_error)?;
    let services_of = |id: &str| {
        let new = entry.services.iter().find(|service| service.service_id == id);
        let existing = node.iter().flat_map(|(_, instances)| instances).find(|instance| instance.service_id == id);
        [new, existing].into_iter().flatten().map(|instance| instance.service.clone()).collect::<Vec<_>>()
    };
    let of_checks = entry.checks.iter().map(|check| check.service_id.as_str()).filter(|id| !id.is_empty());
    for id in entry.services.iter().map(|service| service.service_id.as_str()).chain(of_checks) {
        for service in services_of(id) {
            caller.register(&service)?;
        }
    }
    let moves = node.as_ref().is_some_and(|(node, _)| {
        entry.address.is_some_and(|address| address != node.address)
            || entry.meta.as_ref().is_some_and(|meta| *meta != node.labels)
    });
    if moves || node.is_none() || entry.checks.iter().any(|check| check.service_id.is_empty()) {
        whole(caller, &entry.node, node.iter().flat_map(|(_, instances)| instances).chain(&entry.services))?;
    }
    Ok(())
}

/// `PUT catalog/deregister`
pub(super) async fn deregister(
    consul: &Consul,
    caller: &Caller,
    query: &Query,
    body: &[u8],
) -> Result<Reply, ApiError> {
    select::in_scope(consul, query)?;
    allowed(consul)?;
    let mut fields = Fields::of_body("the deregistration", body).map_err(ApiError::bad_request)?;
    let mut text = |key: &str| fields.text(key).map_err(ApiError::bad_request);
    let (node, service, check) = (text("node")?, text("serviceid")?, text("checkid")?);
    here(consul, &text("datacenter")?)?;
    if node.is_empty() {
        return Err(ApiError::bad_request("Must provide node"));
    }
    let what = match (service.as_str(), check.as_str()) {
        ("", "") => Removal::Node,
        ("", _) => Removal::Check(check),
        _ => Removal::Service(service),
    };
    may_remove(consul, caller, &node, &what)?;
    consul.mesh.catalog_deregister(&node, &caller.namespace, &what).await.map_err(api_error)?;
    Ok(reply::json(&json!(true), query))
}

/// # Errors
/// If the caller's token does not name the removed services, or the node is not in its namespace.
pub(super) fn may_remove(consul: &Consul, caller: &Caller, node: &str, what: &Removal) -> Result<(), ApiError> {
    let Some((_, instances)) = consul.mesh.catalog_node(node, &caller.namespace).map_err(api_error)? else {
        return Ok(());
    };
    let affected: Vec<&Instance> = match what {
        Removal::Node => instances.iter().collect(),
        Removal::Service(id) => instances.iter().filter(|instance| instance.service_id == *id).collect(),
        Removal::Check(id) => {
            let of = |instance: &&Instance| instance.checks.iter().any(|check| check.check_id == *id);
            let of_services: Vec<&Instance> = instances.iter().filter(of).collect();
            // A check of the node itself concerns all services on it.
            if of_services.is_empty() { instances.iter().collect() } else { of_services }
        }
    };
    if !matches!(what, Removal::Service(_)) || !affected.is_empty() {
        whole(caller, node, affected.into_iter())?;
    }
    Ok(())
}

/// # Errors
/// If registration without a sidecar is disabled.
pub(super) fn allowed(consul: &Consul) -> Result<(), ApiError> {
    if consul.allow_external {
        return Ok(());
    }
    let text = "Permission denied: this control plane accepts no registrations (--allow-external); register with the sidecar \
                beside the service";
    Err(ApiError::new(StatusCode::FORBIDDEN, text))
}

/// # Errors
/// If one of the services may not be registered, or there is none, and the token names none either.
fn whole<'a>(caller: &Caller, node: &str, services: impl Iterator<Item = &'a Instance>) -> Result<(), ApiError> {
    let mut any = false;
    for instance in services {
        any = true;
        caller.register(&instance.service)?;
    }
    if any || caller.rights.registers_any() { Ok(()) } else { Err(caller.denied("node:write", node)) }
}

fn here(consul: &Consul, datacenter: &str) -> Result<(), ApiError> {
    if datacenter.is_empty() || datacenter == consul.federation.datacenter() {
        return Ok(());
    }
    Err(ApiError::new(StatusCode::NOT_IMPLEMENTED, "the catalog of another datacenter is read-only here"))
}

fn entry(consul: &Consul, caller: &Caller, body: &[u8]) -> Result<Entry, ApiError> {
    let mut fields = Fields::of_body("the registration", body).map_err(ApiError::bad_request)?;
    let datacenter = fields.text("datacenter").map_err(ApiError::bad_request)?;
    here(consul, &datacenter)?;
    read(&mut fields, &caller.namespace).map_err(ApiError::bad_request)
}

fn read(fields: &mut Fields, namespace: &str) -> Result<Entry, String> {
    let node = fields.text("node")?;
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    if node.is_empty() || node.len() > 253 || !node.bytes().all(plain) {
        return Err("Must provide node: a name of letters, digits, '-', '_' and '.'".into());
    }
    if external::is_node(&node) {
        return Err(format!(
            "the node name {node} is reserved for programs that register at the control plane themselves"
        ));
    }
    let keeps = fields.flag("skipnodeupdate")?;
    let address = address(&fields.text("address")?, "address")?;
    if address.is_none() && !keeps {
        return Err("Must provide address if SkipNodeUpdate is not set".into());
    }
    let meta = fields.has("nodemeta").then(|| fields.text_map("nodemeta")).transpose()?;
    let service = fields.object("service", "Service")?.map(|mut given| service(&mut given)).transpose()?;
    let mut given: Vec<Fields> = fields.object("check", "Check")?.into_iter().collect();
    given.extend(fields.objects("checks", "Checks")?);
    if given.len() > MAX_CHECKS {
        return Err(format!("at most {MAX_CHECKS} checks in one request"));
    }
    let checks = given.into_iter().map(|mut given| check(&mut given)).collect::<Result<Vec<_>, _>>()?;
    let (address, meta) = (address.filter(|_| !keeps), meta.filter(|_| !keeps));
    let services = service.into_iter().collect();
    Ok(Entry { node, namespace: namespace.to_owned(), address, meta, services, checks })
}

/// An address that a service can have.
pub(super) fn address(text: &str, field: &str) -> Result<Option<IpAddr>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let parsed: IpAddr = text.parse().map_err(|_| format!("Invalid {field}: {text:?} is not an IP address"))?;
    let ip = parsed.to_canonical();
    let reserved = match ip {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    if ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || reserved {
        return Err(format!("Invalid {field}: {ip} is no address by which others reach it"));
    }
    Ok(Some(ip))
}

pub(super) fn service(fields: &mut Fields) -> Result<Instance, String> {
    let name = fields.text("service")?;
    if name.trim().is_empty() {
        return Err("Must provide service name (Service.Service)".into());
    }
    let mut id = fields.text("id")?;
    if id.is_empty() {
        id.clone_from(&name);
    }
    let kind = fields.text("kind")?;
    if !kind.is_empty() && kind != "typical" {
        return Err(format!("Invalid service kind: {kind:?} is not supported yet"));
    }
    let address = address(&fields.text("address")?, "service address")?;
    let (weight, warning) = weights(fields)?;
    let instance = Instance {
        service_id: id,
        service: name,
        address: address.map_or_else(String::new, |ip| ip.to_string()),
        port: fields.number("port")?,
        tags: fields.texts("tags")?,
        meta: fields.text_map("meta")?.into_iter().collect(),
        weight,
        checks: Vec::new(),
        enable_tag_override: fields.flag("enabletagoverride")?,
        tagged_addresses: tagged_addresses(fields)?.into_iter().collect(),
        warning_weight: Some(warning),
        eureka: String::new(),
        group: String::new(),
    };
    registry::fits(&instance)?;
    bounds::instance(&instance)?;
    Ok(instance)
}

pub(super) fn check(fields: &mut Fields) -> Result<Check, String> {
    let (mut check_id, mut name) = (fields.text("checkid")?, fields.text("name")?);
    if check_id.is_empty() {
        check_id.clone_from(&name);
    }
    if check_id.is_empty() {
        return Err("Must provide a check's CheckID or Name".into());
    }
    if name.is_empty() {
        name.clone_from(&check_id);
    }
    let mut status = fields.text("status")?;
    if status.is_empty() {
        status = "critical".into();
    }
    if !["passing", "warning", "critical"].contains(&status.as_str()) {
        return Err("Status for checks must 'passing', 'warning', 'critical'".into());
    }
    let check = Check {
        check_id,
        name,
        status,
        output: fields.text("output")?,
        notes: fields.text("notes")?,
        service_id: fields.text("serviceid")?,
        ..Check::default()
    };
    let long = [&check.check_id, &check.name, &check.service_id].iter().any(|text| text.len() > 253);
    if long || check.output.len() > 4096 || check.notes.len() > 4096 {
        return Err("a check is too long: at most 253 bytes of ID and name, 4096 of output and notes".into());
    }
    Ok(check)
}
