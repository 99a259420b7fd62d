//! The JSON objects that Consul's clients expect from an agent: every field that some client reads, and lists that are
//! never null. The catalog's objects are the control plane's.

use serde_json::{Map, Value, json};
use weft_core::hex;
use weft_proto::v1::{self, Instance};

use aws_lc_rs::digest::{SHA256, digest};

/// An item of `agent/services`.
pub fn agent_service(instance: &Instance, datacenter: &str) -> Value {
    json!({
        "ID": instance.service_id,
        "Service": instance.service,
        "Tags": instance.tags,
        "Meta": instance.meta,
        "Port": instance.port,
        "Address": instance.address,
        "TaggedAddresses": tagged_addresses(&instance.tagged_addresses),
        "Weights": { "Passing": instance.weight.max(1), "Warning": instance.warning_weight.unwrap_or(1) },
        "EnableTagOverride": instance.enable_tag_override,
        "Datacenter": datacenter,
    })
}

/// A check of this or another agent; `indexes`: those of creation and last change.
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

/// `agent/self`.
pub fn agent_self(name: &str, address: &str, datacenter: &str) -> Value {
    json!({
        "Config": {
            "Datacenter": datacenter,
            "PrimaryDatacenter": datacenter,
            "NodeName": name,
            "NodeID": node_id(name),
            "Revision": "weft",
            "Server": false,
            "Version": env!("CARGO_PKG_VERSION"),
        },
        "DebugConfig": {},
        "Coord": { "Vec": [0, 0, 0, 0, 0, 0, 0, 0], "Error": 1.5, "Adjustment": 0, "Height": 0.00001 },
        "Member": member(name, address, datacenter),
        "Meta": {},
        "Stats": {},
    })
}

/// An item of `agent/members`.
pub fn member(name: &str, address: &str, datacenter: &str) -> Value {
    json!({
        "Name": name,
        "Addr": address,
        "Port": 8301,
        "Tags": { "dc": datacenter, "role": "node", "id": node_id(name) },
        "Status": 1,
        "ProtocolMin": 1,
        "ProtocolMax": 5,
        "ProtocolCur": 2,
        "DelegateMin": 2,
        "DelegateMax": 5,
        "DelegateCur": 4,
    })
}

/// Consul's `TaggedAddresses`.
pub fn tagged_addresses<'a>(all: impl IntoIterator<Item = (&'a String, &'a v1::TaggedAddress)>) -> Map<String, Value> {
    let shown = |at: &v1::TaggedAddress| json!({ "Address": at.address, "Port": at.port });
    all.into_iter().map(|(name, at)| (name.clone(), shown(at))).collect()
}

/// `agent/version`
pub fn version() -> Value {
    let version = env!("CARGO_PKG_VERSION");
    json!({ "SHA": "", "BuildDate": "", "HumanVersion": format!("{version}+weft"), "FIPS": "" })
}

/// A UUID derived from a name.
pub fn node_id(name: &str) -> String {
    let hash = short_hash(name.as_bytes());
    let parts = [(0, 8), (8, 12), (12, 16), (16, 20), (20, 32)];
    parts.map(|(from, to)| hash.get(from..to).unwrap_or_default()).join("-")
}

/// 32 hexadecimal digits of a digest of `bytes`.
pub fn short_hash(bytes: &[u8]) -> String {
    hex::encode(&digest(&SHA256, bytes).as_ref()[..16])
}
