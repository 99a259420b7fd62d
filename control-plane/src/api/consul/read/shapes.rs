//! The JSON of the catalog and of health, with every field that one of Consul's clients reads; lists are never null.

use serde_json::{Map, Value, json};
use weft_proto::v1::Check;
use weft_registry_api::shapes::{check, node_id, tagged_addresses};

use crate::api::consul::select::{NodeView, Row};
use weft_world::Instance;

/// An item of `health/service`.
pub(in crate::api::consul) fn health_item(row: &Row) -> Value {
    let checks: Vec<Value> = node_checks(&row.node).chain(service_checks(row)).collect();
    json!({ "Node": node(&row.node), "Service": service(row), "Checks": checks })
}

/// An instance in the form of `health/service` and `catalog/node`.
pub(in crate::api::consul) fn service(row: &Row) -> Value {
    let instance = &row.instance;
    json!({
        "ID": instance.service_id,
        "Service": instance.service,
        "Tags": instance.tags,
        "Address": instance.address.to_string(),
        "TaggedAddresses": tagged(instance),
        "Meta": instance.meta,
        "Port": instance.port,
        "Weights": weights(instance),
        "EnableTagOverride": instance.enable_tag_override,
        "Proxy": {},
        "Connect": {},
        "PeerName": "",
        "CreateIndex": instance.create_index,
        "ModifyIndex": instance.modify_index,
    })
}

/// An item of `catalog/service`.
pub(in crate::api::consul) fn catalog_item(row: &Row) -> Value {
    let (instance, node) = (&row.instance, &row.node);
    json!({
        "ID": node_id(&node.name),
        "Node": node.name,
        "Address": node.address.to_string(),
        "Datacenter": node.datacenter,
        "TaggedAddresses": node_addresses(node),
        "NodeMeta": node.meta,
        "ServiceKind": "",
        "ServiceID": instance.service_id,
        "ServiceName": instance.service,
        "ServiceTags": instance.tags,
        "ServiceAddress": instance.address.to_string(),
        "ServiceTaggedAddresses": tagged(instance),
        "ServiceWeights": weights(instance),
        "ServiceMeta": instance.meta,
        "ServicePort": instance.port,
        "ServiceSocketPath": "",
        "ServiceEnableTagOverride": instance.enable_tag_override,
        "ServiceProxy": {},
        "ServiceConnect": {},
        "CreateIndex": instance.create_index,
        "ModifyIndex": instance.modify_index,
    })
}

/// An item of `catalog/nodes`.
pub(in crate::api::consul) fn node(node: &NodeView) -> Value {
    json!({
        "ID": node_id(&node.name),
        "Node": node.name,
        "Address": node.address.to_string(),
        "Datacenter": node.datacenter,
        "TaggedAddresses": node_addresses(node),
        "Meta": node.meta,
        "CreateIndex": 1,
        "ModifyIndex": 1,
    })
}

/// Checks of an instance alone.
pub(in crate::api::consul) fn service_checks(row: &Row) -> impl Iterator<Item = Value> + '_ {
    let Row { instance, node } = row;
    let indexes = (instance.create_index, instance.modify_index);
    instance.checks.iter().map(move |c| check(&node.name, c, &instance.service, &instance.tags, indexes))
}

/// Checks of a node alone: first Consul's own, that the node is alive. Every listed node is.
pub(in crate::api::consul) fn node_checks(node: &NodeView) -> impl Iterator<Item = Value> + '_ {
    let alive = Check {
        check_id: "serfHealth".into(),
        name: "Serf Health Status".into(),
        status: "passing".into(),
        output: "Agent alive and reachable".into(),
        ..Default::default()
    };
    let of_node = move |c: &Check| check(&node.name, c, "", &[], (1, 1));
    std::iter::once(of_node(&alive)).chain(node.checks.iter().map(of_node))
}

fn weights(instance: &Instance) -> Value {
    json!({ "Passing": instance.weight.max(1), "Warning": instance.warning_weight })
}

fn node_addresses(node: &NodeView) -> Value {
    let address = node.address.to_string();
    let family = if node.address.is_ipv6() { "ipv6" } else { "ipv4" };
    json!({ "lan": address, format!("lan_{family}"): address, "wan": address, format!("wan_{family}"): address })
}

/// As registered; Consul adds the address itself by its family.
fn tagged(instance: &Instance) -> Value {
    let family = if instance.address.is_ipv6() { "ipv6" } else { "ipv4" };
    let own = json!({ "Address": instance.address.to_string(), "Port": instance.port });
    let mut all: Map<String, Value> = tagged_addresses(&instance.tagged_addresses);
    for reach in ["lan", "wan"] {
        all.entry(format!("{reach}_{family}")).or_insert_with(|| own.clone());
    }
    Value::Object(all)
}
