//! `Inbound`: the settings of a sidecar for inbound traffic.

use std::collections::{BTreeMap, BTreeSet};

use weft_proto::v1;

use super::{defaults::Defaults, gateway, mtls::Modes, remotes, rules::Rules};
use crate::world::ports;
use crate::world::{Host, Instance, InstanceKey, Member, Scope, World};
use weft_policy::Ingress;

/// The settings of the sidecar of a workload with `labels` in `namespace` for the inbound traffic of `instances`, which
/// it registered.
pub fn inbound(
    world: &World,
    namespace: &str,
    labels: &BTreeMap<String, String>,
    instances: &[InstanceKey],
) -> v1::Inbound {
    let modes = Modes::of(world, namespace, labels);
    let mut services: BTreeMap<(String, u32), v1::InboundService> = BTreeMap::new();
    for instance in instances.iter().filter_map(|key| world.instance(key)) {
        let own = instance.host();
        let hosts: BTreeSet<&str> =
            world.policies().selecting(&instance.namespace, &instance.labels).chain([own.as_str()]).collect();
        for host in hosts.into_iter().filter_map(|host| world.host(host)) {
            for service in served(world, host, instance) {
                services.entry((service.host.clone(), service.port)).or_insert(service);
            }
        }
    }
    let member = instances.iter().find_map(|key| world.group_member(key));
    if let Some(Member { instance, joined: Ok(joined) }) = member {
        // As defined by its own namespace: objects that select it are of this namespace.
        let own = |host: &String| world.definitions(host).find(|one| one.namespace == instance.namespace);
        for host in world.hosts_of(instance).iter().filter_map(own) {
            let numbers = ports::parts(host).iter().flat_map(|part| ports::of_workload(part, &joined.entry)).collect();
            for service in served_at(world, host, &numbers, 0).into_iter().filter(|_| ports::entry(host).is_some()) {
                services.entry((service.host.clone(), service.port)).or_insert(service);
            }
        }
    }
    let sidecar = world.policies().sidecar(namespace, labels).map(|(_, sidecar)| sidecar);
    let defaults = Defaults::of(world);
    let own_pool = sidecar.and_then(|sidecar| sidecar.inbound_pool).and_then(|pool| defaults.pool(Some(pool)));
    // The Sidecar's settings for all ports take precedence over those of the service's rule.
    for service in services.values_mut() {
        service.connection_pool = own_pool.or(service.connection_pool);
    }
    let own = sidecar.map(|sidecar| sidecar.outbound).filter(|own| *own != v1::OutboundPolicy::OutboundUnset);
    let ingress = sidecar.into_iter().flat_map(|sidecar| &sidecar.ingress);
    v1::Inbound {
        outbound_policy: own.unwrap_or(defaults.outbound()).into(),
        ingress: ingress.map(|ingress| listener(ingress, &defaults)).collect(),
        connection_pool: own_pool,
        mtls: modes.mode.into(),
        port_mtls: modes.ports.iter().map(|(port, mode)| (*port, (*mode).into())).collect(),
        services: services.into_values().collect(),
        policy: modes.policy,
        servers: gateway::servers(world, namespace, labels),
        trust: remotes::trust(world),
        group: member.map(group),
        termination_drain_ms: defaults.termination_drain_ms(),
        locality: String::new(),
    }
}

/// The result of joining a WorkloadGroup.
fn group(member: &Member) -> v1::JoinedGroup {
    let name = member.instance.group.clone();
    match &member.joined {
        Ok(joined) => v1::JoinedGroup { name, refused: String::new(), probe: joined.probe.clone() },
        Err(why) => v1::JoinedGroup { name, refused: why.clone(), probe: None },
    }
}

fn listener(ingress: &Ingress, defaults: &Defaults<'_>) -> v1::Ingress {
    v1::Ingress {
        port: ingress.port,
        protocol: ingress.protocol.into(),
        deliver_to: ingress.to.clone().unwrap_or_default(),
        connection_pool: ingress.pool.and_then(|pool| defaults.pool(Some(pool))),
    }
}

/// The ports on which `instance` serves `host`. The server too observes the connection pool of the service's rule.
fn served(world: &World, host: &Host, instance: &Instance) -> Vec<v1::InboundService> {
    let mut services = served_at(world, host, &ports::of_instance(host, instance), u32::from(instance.port));
    // A host without declared ports has one, with the registered protocol.
    if ports::kube(host).is_none() && ports::entry(host).is_none() {
        services.iter_mut().for_each(|service| service.protocol = instance.protocol().into());
    }
    services
}

/// The ports of `host` on a workload with ports of these names; `registered` is the one that it registered.
fn served_at(world: &World, host: &Host, numbers: &BTreeMap<String, u32>, registered: u32) -> Vec<v1::InboundService> {
    let rules = Rules::of(world, &Scope::of(&host.namespace), host);
    let service = |port: ports::PortView| {
        let number = match numbers.get(&port.target_name) {
            Some(number) => *number,
            None if port.target != 0 => port.target,
            None => registered,
        };
        v1::InboundService {
            host: host.name.clone(),
            port: number,
            protocol: port.protocol.into(),
            connection_pool: rules.decide(&port, "").settings.connection_pool,
            namespace: host.namespace.clone(),
            exported: world.is_exported(&host.name),
        }
    };
    // An instance without a port serves only ports that a document names.
    ports::of(world, host).into_iter().map(service).filter(|service| service.port != 0).collect()
}
