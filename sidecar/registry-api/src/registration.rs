//! What a sidecar and the registry agree on about the services of a node.

use weft_proto::v1::Instance;
use xxhash_rust::xxh64::xxh64;

/// A digest of service ids in any order: sidecar and registry use it to compare the registrations of a node.
pub fn digest<'a>(service_ids: impl Iterator<Item = &'a str>) -> u64 {
    // The number of ids is included, so that the sums of one and of no id differ even for a hash of 0.
    service_ids.fold(0, |sum: u64, id| sum.wrapping_add(xxh64(id.as_bytes(), 0)).wrapping_add(1))
}

/// The id under which a sidecar joins a WorkloadGroup; it joins at most one.
pub const GROUP_ID: &str = "_workload-group";

/// The registration of a sidecar that joins a WorkloadGroup.
pub fn group_member(group: &str) -> Instance {
    Instance { service_id: GROUP_ID.to_owned(), group: group.to_owned(), ..Default::default() }
}
