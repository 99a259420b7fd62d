//! One registered instance.

use std::{collections::BTreeMap, net::IpAddr};

use weft_proto::v1;

/// The identity of an instance: three pods may all run a program that registers itself as "order-1".
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceKey {
    /// Namespace of the sidecar or registrant.
    pub namespace: String,
    /// Sidecar's or agent's node name.
    pub node: String,
    /// Id on that node.
    pub service_id: String,
}

/// The source of an instance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Origin {
    /// A registration: a record of the store.
    #[default]
    Registry,
    /// An endpoint of a Kubernetes Service: it is in no store.
    Kubernetes,
}

/// A pod of a Kubernetes cluster with a sidecar. It may be an endpoint of several Services, or of none.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pod {
    /// SPIFFE ID of its sidecar.
    pub identity: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// `region/zone/subzone`; empty: unknown.
    pub locality: String,
}

/// One instance of a service.
#[derive(Clone, Debug, PartialEq)]
pub struct Instance {
    /// Namespace of the service.
    pub namespace: String,
    /// Node that registered it.
    pub node: String,
    /// Id on that node.
    pub service_id: String,
    /// Name of the service; empty: none, see `group`.
    pub service: String,
    /// WorkloadGroup by which the sidecar joins, without a service and a port; empty: it is of a service.
    pub group: String,
    /// Address on which it listens.
    pub address: IpAddr,
    /// Port on which it listens.
    pub port: u16,
    /// Its ports by the names that its Kubernetes Service gives them; empty: it has one.
    pub ports: BTreeMap<String, u16>,
    /// Its source.
    pub origin: Origin,
    /// As registered.
    pub tags: Vec<String>,
    /// As registered.
    pub meta: BTreeMap<String, String>,
    /// See [`derive_labels`].
    pub labels: BTreeMap<String, String>,
    /// 0: 1.
    pub weight: u32,
    /// Consul's `TaggedAddresses`, kept for API clients.
    pub tagged_addresses: BTreeMap<String, v1::TaggedAddress>,
    /// Consul's `Weights.Warning`, kept for API clients.
    pub warning_weight: u32,
    /// Consul's `EnableTagOverride`, kept for API clients.
    pub enable_tag_override: bool,
    /// Eureka's document of it, kept for API clients; empty: not registered through Eureka's API.
    pub eureka: String,
    /// From its checks and its lease.
    pub health: v1::Health,
    /// SPIFFE ID of the sidecar that owns the address; empty: none.
    pub identity: String,
    /// Workload's name, for metrics.
    pub workload: String,
    /// `region/zone/subzone`.
    pub locality: String,
    /// About to leave: it gets no new requests.
    pub draining: bool,
    /// Revision of the store that created it.
    pub create_index: u64,
    /// Revision of the store that changed it last.
    pub modify_index: u64,
    /// Its checks.
    pub checks: Vec<v1::Check>,
}

impl Instance {
    /// An instance at `address` without a service, a port and anything else.
    pub fn at(address: IpAddr) -> Self {
        Instance {
            namespace: String::new(),
            node: String::new(),
            service_id: String::new(),
            service: String::new(),
            group: String::new(),
            address,
            port: 0,
            ports: BTreeMap::new(),
            origin: Origin::Registry,
            tags: Vec::new(),
            meta: BTreeMap::new(),
            labels: BTreeMap::new(),
            weight: 0,
            tagged_addresses: BTreeMap::new(),
            warning_weight: 0,
            enable_tag_override: false,
            eureka: String::new(),
            health: v1::Health::Unknown,
            identity: String::new(),
            workload: String::new(),
            locality: String::new(),
            draining: false,
            create_index: 0,
            modify_index: 0,
            checks: Vec::new(),
        }
    }

    /// Its key.
    pub fn key(&self) -> InstanceKey {
        InstanceKey { namespace: self.namespace.clone(), node: self.node.clone(), service_id: self.service_id.clone() }
    }

    /// Canonical name of its service.
    pub fn host(&self) -> String {
        super::fqdn(&self.service, &self.namespace)
    }

    /// The protocol in its metadata `protocol`.
    pub fn protocol(&self) -> v1::Protocol {
        self.meta.get("protocol").map_or(v1::Protocol::Unknown, |name| weft_policy::protocol::from_name(name))
    }

    /// Its health on the wire: a draining instance is DRAINING whatever its checks report.
    pub fn health(&self) -> v1::Health {
        if self.draining { v1::Health::Draining } else { self.health }
    }
}

/// Labels of an instance, by which subsets and selectors select: the sidecar's own, then the service's metadata, then
/// tags written `key=value`. A tag such as `v1` is `version: v1` if no other label has a version, so that services
/// registered through Consul's API have subsets without Kubernetes labels.
pub fn derive_labels(
    sidecar: &BTreeMap<String, String>,
    meta: &BTreeMap<String, String>,
    tags: &[String],
) -> BTreeMap<String, String> {
    let mut labels = sidecar.clone();
    labels.extend(meta.iter().map(|(key, value)| (key.clone(), value.clone())));
    for (key, value) in tags.iter().filter_map(|tag| tag.split_once('=')) {
        labels.insert(key.trim().to_owned(), value.trim().to_owned());
    }
    if !labels.contains_key("version")
        && let Some(version) = tags.iter().find(|tag| is_version(tag))
    {
        labels.insert("version".to_owned(), version.clone());
    }
    labels
}

/// `v1`, `v2-canary`, `v1.3`: a `v`, digits, and any suffix after a dot or hyphen.
fn is_version(tag: &str) -> bool {
    let Some(rest) = tag.strip_prefix('v') else { return false };
    let after = rest.trim_start_matches(|c: char| c.is_ascii_digit());
    after.len() < rest.len() && (after.is_empty() || after.starts_with(['.', '-'])) && !tag.contains('=')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn labels_come_from_sidecar_metadata_and_tags() {
        let tags = |tags: &[&str]| tags.iter().map(|tag| (*tag).to_owned()).collect::<Vec<_>>();
        let none = BTreeMap::new();
        let cases = [
            (
                derive_labels(&map(&[("app", "a"), ("zone", "x")]), &map(&[("zone", "y")]), &[]),
                map(&[("app", "a"), ("zone", "y")]),
            ),
            (derive_labels(&none, &none, &tags(&["zone=z", "v1"])), map(&[("zone", "z"), ("version", "v1")])),
            (derive_labels(&none, &none, &tags(&["version=v2", "v1"])), map(&[("version", "v2")])),
            (derive_labels(&none, &map(&[("version", "v3")]), &tags(&["v1"])), map(&[("version", "v3")])),
            (derive_labels(&none, &none, &tags(&["v2-canary"])), map(&[("version", "v2-canary")])),
            (derive_labels(&none, &none, &tags(&["video", "v", "v1x", "1"])), none.clone()),
        ];
        for (got, want) in cases {
            assert_eq!(got, want);
        }
    }
}
