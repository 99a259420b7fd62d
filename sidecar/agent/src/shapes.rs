//! The JSON that Consul's clients expect: every field that one of them reads, and lists that are never null.

use aws_lc_rs::digest;
use serde_json::{Value, json};
use weft_proto::v1::{self, CatalogInstance};

use super::definitions::Service;

/// The one datacenter.
pub const DATACENTER: &str = "dc1";

/// An item of `health/service`.
pub fn health_item(found: &CatalogInstance) -> Value {
    let instance = found.instance.clone().unwrap_or_default();
    let checks = std::iter::once(serf_health(&found.node)).chain(all_checks(found).map(|check| {
        let tags = if check.service_id.is_empty() { &[][..] } else { &instance.tags };
        let service = if check.service_id.is_empty() { "" } else { &instance.service };
        self::check(&found.node, check, service, tags, (found.create_index, found.modify_index))
    }));
    json!({
        "Node": node(&found.node, &found.node_address),
        "Service": {
            "ID": instance.service_id,
            "Service": instance.service,
            "Tags": instance.tags,
            "Address": instance.address,
            "TaggedAddresses": tagged(&instance),
            "Meta": instance.meta,
            "Port": instance.port,
            "Weights": { "Passing": instance.weight.max(1), "Warning": 1 },
            "EnableTagOverride": instance.enable_tag_override,
            "Proxy": {},
            "Connect": {},
            "PeerName": "",
            "CreateIndex": found.create_index,
            "ModifyIndex": found.modify_index,
        },
        "Checks": checks.collect::<Vec<_>>(),
    })
}

/// Checks of the instance and of its node.
pub fn all_checks(found: &CatalogInstance) -> impl Iterator<Item = &v1::Check> {
    found.node_checks.iter().chain(found.instance.iter().flat_map(|i| &i.checks))
}

/// Items of `health/checks`: those of the instance alone.
pub fn service_checks(found: &CatalogInstance) -> impl Iterator<Item = Value> + '_ {
    found.instance.iter().flat_map(move |instance| {
        let indexes = (found.create_index, found.modify_index);
        instance.checks.iter().map(move |c| check(&found.node, c, &instance.service, &instance.tags, indexes))
    })
}

/// An item of `catalog/service`.
pub fn catalog_item(found: &CatalogInstance) -> Value {
    let instance = found.instance.clone().unwrap_or_default();
    json!({
        "ID": node_id(&found.node),
        "Node": found.node,
        "Address": found.node_address,
        "Datacenter": DATACENTER,
        "TaggedAddresses": { "lan": found.node_address, "wan": found.node_address },
        "NodeMeta": {},
        "ServiceKind": "",
        "ServiceID": instance.service_id,
        "ServiceName": instance.service,
        "ServiceTags": instance.tags,
        "ServiceAddress": instance.address,
        "ServiceTaggedAddresses": tagged(&instance),
        "ServiceWeights": { "Passing": instance.weight.max(1), "Warning": 1 },
        "ServiceMeta": instance.meta,
        "ServicePort": instance.port,
        "ServiceSocketPath": "",
        "ServiceEnableTagOverride": instance.enable_tag_override,
        "ServiceProxy": {},
        "ServiceConnect": {},
        "CreateIndex": found.create_index,
        "ModifyIndex": found.modify_index,
    })
}

/// An item of `catalog/nodes`.
pub fn node(name: &str, address: &str) -> Value {
    json!({
        "ID": node_id(name),
        "Node": name,
        "Address": address,
        "Datacenter": DATACENTER,
        "TaggedAddresses": { "lan": address, "wan": address },
        "Meta": {},
        "CreateIndex": 1,
        "ModifyIndex": 1,
    })
}

/// An item of `agent/services`.
pub fn agent_service(service: &Service) -> Value {
    let instance = &service.instance;
    json!({
        "ID": instance.service_id,
        "Service": instance.service,
        "Tags": instance.tags,
        "Meta": instance.meta,
        "Port": instance.port,
        "Address": instance.address,
        "TaggedAddresses": service.tagged_addresses,
        "Weights": { "Passing": instance.weight.max(1), "Warning": service.warning_weight },
        "EnableTagOverride": instance.enable_tag_override,
        "Datacenter": DATACENTER,
    })
}

/// A check of this or another agent; `indexes` are those of creation and change.
pub fn check(node: &str, check: &v1::Check, service: &str, tags: &[String], indexes: (u64, u64)) -> Value {
    json!({
        "Node": node,
        "CheckID": check.check_id,
        "Name": check.name,
        "Status": check.status,
        "Notes": check.notes,
        "Output": check.output,
        "ServiceID": check.service_id,
        "ServiceName": service,
        "ServiceTags": tags,
        "Type": check.r#type,
        "Interval": check.interval,
        "Timeout": check.timeout,
        "ExposedPort": 0,
        "Definition": {},
        "CreateIndex": indexes.0,
        "ModifyIndex": indexes.1,
    })
}

/// The check that Consul makes of every node: an instance that is listed has a sidecar that lives.
fn serf_health(node: &str) -> Value {
    let alive = v1::Check {
        check_id: "serfHealth".into(),
        name: "Serf Health Status".into(),
        status: "passing".into(),
        output: "Agent alive and reachable".into(),
        ..Default::default()
    };
    check(node, &alive, "", &[], (1, 1))
}

/// `agent/self`.
pub fn agent_self(name: &str, address: &str) -> Value {
    json!({
        "Config": {
            "Datacenter": DATACENTER,
            "PrimaryDatacenter": DATACENTER,
            "NodeName": name,
            "NodeID": node_id(name),
            "Revision": "weft",
            "Server": false,
            "Version": env!("CARGO_PKG_VERSION"),
        },
        "DebugConfig": {},
        "Coord": { "Vec": [0, 0, 0, 0, 0, 0, 0, 0], "Error": 1.5, "Adjustment": 0, "Height": 0.00001 },
        "Member": member(name, address),
        "Meta": {},
        "Stats": {},
    })
}

/// An item of `agent/members`.
pub fn member(name: &str, address: &str) -> Value {
    json!({
        "Name": name,
        "Addr": address,
        "Port": 8301,
        "Tags": { "dc": DATACENTER, "role": "node", "id": node_id(name) },
        "Status": 1,
        "ProtocolMin": 1,
        "ProtocolMax": 5,
        "ProtocolCur": 2,
        "DelegateMin": 2,
        "DelegateMax": 5,
        "DelegateCur": 4,
    })
}

fn tagged(instance: &v1::Instance) -> Value {
    if instance.address.is_empty() {
        return json!({});
    }
    let family = if instance.address.contains(':') { "ipv6" } else { "ipv4" };
    let address = json!({ "Address": instance.address, "Port": instance.port });
    json!({ format!("lan_{family}"): address, format!("wan_{family}"): address })
}

/// A UUID that is the same wherever it is made from the same name.
fn node_id(name: &str) -> String {
    let hash = short_hash(name.as_bytes());
    let parts = [(0, 8), (8, 12), (12, 16), (16, 20), (20, 32)];
    parts.map(|(from, to)| hash.get(from..to).unwrap_or_default()).join("-")
}

/// 32 hexadecimal digits that change with `bytes`.
pub fn short_hash(bytes: &[u8]) -> String {
    let hash = digest::digest(&digest::SHA256, bytes);
    hash.as_ref().iter().take(16).map(|b| format!("{b:02x}")).collect()
}
