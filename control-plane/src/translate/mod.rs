//! World -> what a sidecar is told. Pure: the same world gives the same messages.

use std::collections::BTreeMap;

use weft_proto::v1;

use crate::world::{InstanceKey, World};

/// The canonical host that `asked` means to a client of `client_ns`: an authority without port, or `ip:port` (a virtual IP
/// or an endpoint).
pub fn resolve(world: &World, client_ns: &str, asked: &str) -> Option<String> {
    let _ = (world, client_ns, asked);
    None
}

/// Everything but the addresses that a request of a client in `client_ns` to `host` (canonical) needs.
pub fn service(world: &World, client_ns: &str, host: &str) -> Option<v1::Service> {
    let _ = (world, client_ns, host);
    None
}

/// The addresses of `host` (canonical), the unhealthy ones too.
pub fn endpoints(world: &World, host: &str) -> Option<v1::Endpoints> {
    let _ = (world, host);
    None
}

/// How the sidecar of a workload with `labels` in `namespace` treats what comes in for `instances`, which it registered.
pub fn inbound(
    world: &World,
    namespace: &str,
    labels: &BTreeMap<String, String>,
    instances: &[InstanceKey],
) -> v1::Inbound {
    let _ = (world, namespace, labels, instances);
    v1::Inbound::default()
}
