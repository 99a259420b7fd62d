//! `Endpoints`: the addresses of a host.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
};

use weft_proto::v1;

use super::{mtls, names, remotes};
use crate::world::ports::{self, Part};
use crate::world::{Host, Instance, Member, Workload, World};
use weft_policy::{Resolution, TargetPort, WorkloadEntry};

/// The addresses of `host`, as one namespace defines it, including the unhealthy ones. Of several definitions (see
/// [`World::definition`]) the first, the service's, also has the endpoints in other data centres.
pub fn endpoints(world: &World, host: &Host) -> v1::Endpoints {
    let first = world.host(&host.name).is_some_and(|first| first.namespace == host.namespace);
    let remotes = if first { remotes::of(world, &host.name) } else { Vec::new() };
    v1::Endpoints { host: host.name.clone(), endpoints: here(world, host), remotes }
}

/// The endpoints in this data centre.
pub(super) fn here(world: &World, host: &Host) -> Vec<v1::Endpoint> {
    let mut endpoints: Vec<v1::Endpoint> =
        instances(world, host).into_iter().map(|instance| of_instance(world, host, instance)).collect();
    endpoints.extend(of_entry(world, host));
    endpoints.sort_by(|a, b| (&a.address, a.port).cmp(&(&b.address, b.port)));
    endpoints
}

/// One instance for each address and port; those without a port have none. Of two registrations of one address the one
/// with checks is kept, else the newer: a program that registers itself is better informed than the command line that
/// started its sidecar.
fn instances<'a>(world: &'a World, host: &'a Host) -> Vec<&'a Arc<Instance>> {
    let fixed = |port: &weft_policy::KubePort| matches!(port.target, TargetPort::Number(_));
    let by_address = ports::kube(host).is_some_and(|service| service.ports.iter().all(fixed));
    let mut found: BTreeMap<(IpAddr, u16), &Arc<Instance>> = BTreeMap::new();
    let rank = |instance: &Instance| (!instance.checks.is_empty(), instance.create_index);
    for instance in world.endpoints_of(host).filter(|instance| ports::are_known(host, instance)) {
        let key = (instance.address, if by_address { 0 } else { instance.port });
        let kept = found.entry(key).or_insert(instance);
        if rank(instance) > rank(kept) {
            *kept = instance;
        }
    }
    found.into_values().collect()
}

fn of_instance(world: &World, host: &Host, instance: &Instance) -> v1::Endpoint {
    let port = u32::from(instance.port);
    let mode = mtls::Modes::of(world, &instance.namespace, &instance.labels).at(port);
    let external = ports::entry(host).is_some_and(|entry| entry.external);
    let published = ports::kube(host).is_some_and(|service| service.publishes_not_ready);
    let health = if published { v1::Health::Healthy } else { instance.health() };
    let hostnames = if host.is_headless() { names::endpoint_names(instance).collect() } else { Vec::new() };
    let plain = external || mode == v1::MtlsMode::MtlsDisable;
    v1::Endpoint {
        address: instance.address.to_string(),
        port,
        ports: ports::of_instance(host, instance).into_iter().collect(),
        labels: instance.labels.clone().into_iter().collect(),
        weight: instance.weight,
        health: health.into(),
        identity: if plain { String::new() } else { instance.identity.clone() },
        id: instance.service_id.clone(),
        workload: instance.workload.clone(),
        namespace: instance.namespace.clone(),
        locality: instance.locality.clone(),
        every_address: false,
        hostnames,
    }
}

fn of_entry(world: &World, host: &Host) -> Vec<v1::Endpoint> {
    let (Some(document), Some(entry)) = (&host.entry, ports::entry(host)) else { return Vec::new() };
    if !entry.resolution.has_endpoints() {
        return Vec::new();
    }
    ports::parts(host).iter().flat_map(|part| of_part(world, host, &document.namespace, part)).collect()
}

fn of_part(world: &World, host: &Host, namespace: &str, part: &Part<'_>) -> Vec<v1::Endpoint> {
    let entry = part.entry;
    let given = world.workloads(namespace, entry);
    // An address given by name belongs to a DNS entry; under STATIC a selected WorkloadEntry may still have one.
    let usable = |workload: &WorkloadEntry| match workload.is_unix() {
        true => !entry.resolution.is_dns(),
        false => entry.resolution.is_dns() || workload.address.parse::<IpAddr>().is_ok(),
    };
    let mut endpoints: Vec<v1::Endpoint> = given
        .filter(|workload| usable(workload.entry))
        .map(|workload| of_workload(world, namespace, part, workload))
        .collect();
    if endpoints.is_empty() && entry.resolution.is_dns() && entry.workload_selector.is_none() {
        // The host is its own endpoint.
        let itself = WorkloadEntry { address: host.name.clone(), ..WorkloadEntry::default() };
        let itself = Workload { name: "", entry: &itself, member: None };
        endpoints.push(of_workload(world, namespace, part, itself));
    }
    endpoints
}

fn of_workload(world: &World, namespace: &str, part: &Part<'_>, of: Workload<'_>) -> v1::Endpoint {
    let Workload { name, entry: workload, member } = of;
    // A Unix socket has no ports.
    let ports = if workload.is_unix() { BTreeMap::new() } else { ports::of_workload(part, workload) };
    let entry = part.entry;
    let port = part.ports.first().and_then(|first| ports.get(&first.name)).copied().unwrap_or_default();
    let registered = || {
        let mut there = world.at_address(workload.address.parse().ok()?);
        there.find(|instance| u32::from(instance.port) == port).map(|instance| instance.health())
    };
    let health = member.map(Member::health).or_else(registered).unwrap_or(v1::Health::Healthy);
    v1::Endpoint {
        address: workload.address.clone(),
        port,
        ports: ports.into_iter().collect::<HashMap<_, _>>(),
        labels: workload.labels.clone().into_iter().collect(),
        weight: workload.weight,
        health: health.into(),
        identity: if entry.external { String::new() } else { identity(world, namespace, workload, port) },
        id: name.to_owned(),
        workload: member.map_or(name, |member| &member.instance.workload).to_owned(),
        namespace: namespace.to_owned(),
        locality: workload.locality.clone(),
        every_address: entry.resolution == Resolution::Dns,
        hostnames: Vec::new(),
    }
}

/// The sidecar that owns the address, else the service account of an entry that declares mTLS, as in Istio.
fn identity(world: &World, namespace: &str, workload: &WorkloadEntry, port: u32) -> String {
    if mtls::Modes::of(world, namespace, &workload.labels).at(port) == v1::MtlsMode::MtlsDisable {
        return String::new();
    }
    let owner = workload.address.parse().map(|address| world.owner(address)).unwrap_or_default();
    let declared = workload.labels.get("security.istio.io/tlsMode").is_some_and(|mode| mode == "istio");
    match workload.service_account.as_str() {
        _ if !owner.is_empty() => owner.to_owned(),
        account if declared && !account.is_empty() => {
            weft_core::identity::uri(world.trust_domain(), namespace, account)
        }
        _ => String::new(),
    }
}
