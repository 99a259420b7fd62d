//! Conversions between instances of the world, records of the store and messages.

use std::collections::BTreeMap;

use weft_proto::v1;

use super::Node;
use weft_world::{Instance, InstanceKey, derive_labels};

pub(super) fn registration_key(key: &InstanceKey) -> String {
    format!("{}/{}/{}", key.namespace, key.node, key.service_id)
}

/// Reads a registration's key.
pub(super) fn key_of(path: &str) -> Option<InstanceKey> {
    let mut parts = path.splitn(3, '/').map(str::to_owned);
    Some(InstanceKey { namespace: parts.next()?, node: parts.next()?, service_id: parts.next()? })
}

/// Consul's rule: critical if any check is; an instance in warning is still used. Unknown if the lease of the node
/// expired together with many others.
pub(super) fn health_of(checks: &[v1::Check], node_checks: &BTreeMap<String, v1::Check>, unknown: bool) -> v1::Health {
    let critical = checks.iter().chain(node_checks.values()).any(|c| c.status == "critical");
    match (unknown, critical) {
        (true, _) => v1::Health::Unknown,
        (_, true) => v1::Health::Unhealthy,
        (false, false) => v1::Health::Healthy,
    }
}

pub(super) fn stored_of(name: &str, node: &Node, instance: v1::Instance) -> v1::StoredInstance {
    v1::StoredInstance {
        namespace: node.namespace.clone(),
        node: name.to_owned(),
        identity: node.identity.clone(),
        workload: node.workload.clone(),
        locality: node.locality.clone(),
        labels: node.labels.clone().into_iter().collect(),
        instance: Some(instance),
    }
}

pub(super) fn instance_of(stored: &v1::StoredInstance) -> Option<Instance> {
    let registered = stored.instance.as_ref()?;
    let sidecar: BTreeMap<String, String> = stored.labels.clone().into_iter().collect();
    let meta: BTreeMap<String, String> = registered.meta.clone().into_iter().collect();
    Some(Instance {
        namespace: stored.namespace.clone(),
        node: stored.node.clone(),
        service_id: registered.service_id.clone(),
        service: registered.service.clone(),
        group: registered.group.clone(),
        port: u16::try_from(registered.port).ok()?,
        tags: registered.tags.clone(),
        labels: derive_labels(&sidecar, &meta, &registered.tags),
        meta,
        weight: registered.weight,
        tagged_addresses: registered.tagged_addresses.clone().into_iter().collect(),
        warning_weight: registered.warning_weight.unwrap_or(1),
        enable_tag_override: registered.enable_tag_override,
        eureka: registered.eureka.clone(),
        health: health_of(&registered.checks, &BTreeMap::new(), false),
        identity: stored.identity.clone(),
        workload: stored.workload.clone(),
        locality: stored.locality.clone(),
        checks: registered.checks.clone(),
        ..Instance::at(registered.address.parse().ok()?)
    })
}

/// An instance in its registered form.
pub(super) fn wire(instance: &Instance) -> v1::Instance {
    v1::Instance {
        service_id: instance.service_id.clone(),
        service: instance.service.clone(),
        address: instance.address.to_string(),
        port: u32::from(instance.port),
        tags: instance.tags.clone(),
        meta: instance.meta.clone().into_iter().collect(),
        weight: instance.weight,
        checks: instance.checks.clone(),
        enable_tag_override: instance.enable_tag_override,
        tagged_addresses: instance.tagged_addresses.clone().into_iter().collect(),
        warning_weight: Some(instance.warning_weight),
        eureka: instance.eureka.clone(),
        group: instance.group.clone(),
    }
}
