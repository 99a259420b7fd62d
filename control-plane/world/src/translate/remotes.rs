//! Other data centres: the summary of local services for them, and the resources of their services for sidecars.

use std::collections::{BTreeMap, BTreeSet};

use weft_core::failover::Capacity;
use weft_proto::v1;

use super::{endpoints::here, rules::Rules};
use crate::world::{Host, Scope, World};
use weft_policy::MESH_SUFFIX;

/// The other data centres with a host. Of several with a subset the preferred one gets its requests.
pub(super) fn of(world: &World, host: &str) -> Vec<v1::Remote> {
    let mut taken = BTreeSet::new();
    let remotes = world.remotes_of(host).map(|remote| {
        let healthy = remote.subsets.iter().filter(|(_, presence)| presence.healthy > 0);
        let own = healthy.filter(|(name, _)| taken.insert(name.as_str()));
        let subset = |name: &str, identities: &[String]| {
            (name.to_owned(), v1::RemoteSubset { share: world.share(host, name), identities: identities.to_vec() })
        };
        v1::Remote {
            datacenter: remote.datacenter.to_owned(),
            gateways: remote.gateways.to_vec(),
            subsets: own.map(|(name, presence)| subset(name, &presence.identities)).collect(),
        }
    });
    remotes.filter(|remote| !remote.subsets.is_empty()).collect()
}

/// The trust bundles of other data centres, which sidecars use besides their own.
pub(super) fn trust(world: &World) -> Vec<v1::TrustBundle> {
    let bundle = |peer: &crate::world::Peering| v1::TrustBundle {
        trust_domain: peer.trust_domain.clone(),
        roots_der: vec![peer.root_der.clone()],
    };
    world.peers().iter().map(bundle).collect()
}

/// The local endpoints of a host, by subset; "" is all of it.
fn present(world: &World, host: &Host) -> BTreeMap<String, (Capacity, BTreeSet<String>)> {
    let found = here(world, host);
    let client = Scope::of(&host.namespace);
    let rules = Rules::of(world, &client, host);
    let none = BTreeMap::new();
    let subsets = std::iter::once(("", &none)).chain(rules.subsets().map(|s| (s.name.as_str(), &s.labels)));
    let of = |labels: &BTreeMap<String, String>| {
        let has = |endpoint: &&v1::Endpoint| labels.iter().all(|(k, v)| endpoint.labels.get(k) == Some(v));
        let (mut capacity, mut identities) = (Capacity { healthy: 0, total: 0 }, BTreeSet::new());
        for endpoint in found.iter().filter(has) {
            // A draining endpoint is about to leave and does not count.
            if endpoint.health() != v1::Health::Draining {
                capacity.total += 1;
            }
            if matches!(endpoint.health(), v1::Health::Healthy | v1::Health::Unknown) {
                capacity.healthy += 1;
            }
            if !endpoint.identity.is_empty() {
                identities.insert(endpoint.identity.clone());
            }
        }
        (capacity, identities)
    };
    subsets.map(|(name, labels)| (name.to_owned(), of(labels))).collect()
}

/// The number of local instances of a host by subset; empty for a host that is not local.
pub fn capacity(world: &World, host: &str) -> BTreeMap<String, Capacity> {
    let Some(host) = world.host(host) else { return BTreeMap::new() };
    present(world, host).into_iter().map(|(name, (capacity, _))| (name, capacity)).collect()
}

/// The summaries for other data centres: services, never instances. Only instances with an identity can be called from
/// there.
pub fn summaries(world: &World) -> Vec<v1::ServiceSummary> {
    let exported = world.policies().exports().iter().filter_map(|host| world.host(host)).filter(|host| host.live);
    let summary = |host: &Host| {
        let (name, namespace) = host.name.strip_suffix(MESH_SUFFIX)?.rsplit_once('.')?;
        let subset = |(name, (capacity, identities)): (String, (Capacity, BTreeSet<String>))| {
            let healthy = if identities.is_empty() { 0 } else { capacity.healthy };
            v1::SubsetSummary { name, healthy, total: capacity.total, identities: identities.into_iter().collect() }
        };
        Some(v1::ServiceSummary {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            subsets: present(world, host).into_iter().map(subset).collect(),
        })
    };
    exported.filter_map(summary).collect()
}
