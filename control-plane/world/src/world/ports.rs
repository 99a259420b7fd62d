//! Ports of a host, from the document that declares them, and the ports of its endpoints.

use std::{collections::BTreeMap, net::IpAddr};

use weft_proto::v1;

use super::{Host, Instance, World};
use weft_policy::{
    EntryPort, KubePort, KubeService, MESH_SUFFIX, Object, Resolution, ServiceEntry, TargetPort, WorkloadEntry,
};

/// A port for callers.
#[derive(Clone, Debug)]
pub(crate) struct PortView {
    /// 0: any.
    pub(crate) number: u32,
    pub(crate) name: String,
    pub(crate) protocol: v1::Protocol,
    /// Port to dial, unless `target_name` names it. Both unset: the port that the endpoint registered.
    pub(crate) target: u32,
    pub(crate) target_name: String,
    /// Number that a DestinationRule's port settings are looked up by.
    pub(crate) policy_number: u32,
}

/// The Kubernetes Service of a host.
pub(crate) fn kube(host: &Host) -> Option<&KubeService> {
    host.kube()
}

/// The ServiceEntry of a host.
pub(crate) fn entry(host: &Host) -> Option<&ServiceEntry> {
    match &host.entry.as_ref()?.object {
        Object::ServiceEntry(entry) => Some(entry),
        _ => None,
    }
}

/// A ServiceEntry of a host, with those of its ports that belong to the host: its endpoints serve these.
#[derive(Debug)]
pub(crate) struct Part<'a> {
    pub(crate) entry: &'a ServiceEntry,
    pub(crate) ports: Vec<&'a EntryPort>,
}

/// The ServiceEntries of a host, the oldest first. Of two ports of one number or of one name the older is the host's; a
/// younger one that is equal in both adds endpoints.
pub(crate) fn parts(host: &Host) -> Vec<Part<'_>> {
    let (mut numbers, mut names) = (BTreeMap::new(), BTreeMap::new());
    let mut is_eureka_path = |port: &EntryPort| {
        let (number, name) = (port.number, port.name.clone());
        match (numbers.get(&number), names.get(&name)) {
            (None, None) => {
                numbers.insert(number, name.clone());
                names.insert(name, number);
                true
            }
            (known, _) => known == Some(&name),
        }
    };
    host.entries()
        .map(|entry| Part { entry, ports: entry.ports.iter().filter(|port| is_eureka_path(port)).collect() })
        .collect()
}

/// Ports of `host`, ascending. A host without a document has one, number 0, that stands for any.
pub(crate) fn of(world: &World, host: &Host) -> Vec<PortView> {
    if let Some(service) = kube(host).filter(|service| !service.ports.is_empty() || service.alias.is_some()) {
        let view = |port: &KubePort| {
            let (target, target_name) = match &port.target {
                TargetPort::Number(number) => (*number, String::new()),
                TargetPort::Name(name) => (0, name.clone()),
            };
            let (number, name) = (port.number, port.name.clone());
            PortView { number, name, protocol: port.protocol, target, target_name, policy_number: number }
        };
        return service.ports.iter().map(view).collect();
    }
    if let Some(entry) = entry(host) {
        // Endpoints may map a port, so that each carries its own numbers by name. Endpoints that requests name carry
        // none.
        let view = |port: &EntryPort| {
            let (target, target_name) = match entry.resolution {
                Resolution::DynamicDns => (port.target_port.unwrap_or(port.number), String::new()),
                _ => (0, port.name.clone()),
            };
            let (number, name) = (port.number, port.name.clone());
            PortView { number, name, protocol: port.protocol, target, target_name, policy_number: number }
        };
        let mut ports: Vec<PortView> = parts(host).iter().flat_map(|part| &part.ports).map(|port| view(port)).collect();
        // Stable: the older of two comes first.
        ports.sort_by_key(|port| port.number);
        ports.dedup_by_key(|port| port.number);
        return ports;
    }
    if !host.is_offered(world) && !host.name.ends_with(MESH_SUFFIX) {
        // As in Istio: a host that only a VirtualService names is routed at the default port of HTTP.
        return vec![PortView {
            number: 80,
            name: String::new(),
            protocol: v1::Protocol::Unknown,
            target: 0,
            target_name: String::new(),
            policy_number: 80,
        }];
    }
    let mut instances = world.members_of(&host.name).filter(|instance| instance.port != 0);
    let first = instances.next().map(|first| (first.protocol(), u32::from(first.port)));
    let (mut protocol, mut port) = first.unwrap_or_default();
    for instance in instances {
        if instance.protocol() != protocol {
            protocol = v1::Protocol::Unknown;
        }
        if u32::from(instance.port) != port {
            port = 0;
        }
    }
    // For a service without declared ports, "portLevelSettings" can only refer to the registered one.
    vec![PortView {
        number: 0,
        name: String::new(),
        protocol,
        target: 0,
        target_name: String::new(),
        policy_number: port,
    }]
}

/// Ports of an instance by the names that the host's documents give them.
pub(crate) fn of_instance(host: &Host, instance: &Instance) -> BTreeMap<String, u32> {
    let registered = u32::from(instance.port);
    if let Some(service) = kube(host) {
        let targets = service.ports.iter().filter_map(|port| match &port.target {
            TargetPort::Name(name) if instance.ports.is_empty() => Some((name.clone(), registered)),
            TargetPort::Name(name) => Some((name.clone(), u32::from(*instance.ports.get(name)?))),
            TargetPort::Number(_) => None,
        });
        return targets.collect();
    }
    let parts = parts(host);
    let ports = parts.iter().flat_map(|part| &part.ports);
    ports.map(|port| (port.name.clone(), port.target_port.unwrap_or(registered))).collect()
}

/// Whether callers of `host` can dial a port of `instance`: the one that it registered, or those that the host's
/// documents name by number.
pub(crate) fn are_known(host: &Host, instance: &Instance) -> bool {
    let fixed = |port: &KubePort| matches!(port.target, TargetPort::Number(_));
    instance.port != 0
        || match (kube(host), entry(host)) {
            (Some(service), _) => service.ports.iter().all(fixed),
            (None, Some(entry)) => entry.ports.iter().all(|port| port.target_port.is_some()),
            (None, None) => false,
        }
}

/// Ports of a ServiceEntry's endpoint by name.
pub(crate) fn of_workload(part: &Part<'_>, workload: &WorkloadEntry) -> BTreeMap<String, u32> {
    let number = |port: &EntryPort| workload.ports.get(&port.name).copied().or(port.target_port).unwrap_or(port.number);
    part.ports.iter().map(|port| (port.name.clone(), number(port))).collect()
}

/// Whether `host`, a ServiceEntry's, dials `address:port` for one of its endpoints.
pub(crate) fn entry_dials(world: &World, host: &Host, address: IpAddr, port: u16) -> bool {
    let (Some(document), Some(entry)) = (&host.entry, entry(host)) else { return false };
    if !entry.resolution.has_endpoints() {
        return false;
    }
    let dials = |part: &Part<'_>, workload: &WorkloadEntry| {
        workload.address.parse() == Ok(address)
            && of_workload(part, workload).values().any(|number| *number == u32::from(port))
    };
    let workloads = |entry| world.workloads(&document.namespace, entry).map(|workload| workload.entry);
    parts(host).iter().any(|part| workloads(part.entry).any(|workload| dials(part, workload)))
}
