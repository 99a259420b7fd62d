//! Names: the host that an application's name stands for, and the names that stand for a host.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::world::{GATEWAY, Host, Instance, Scope, World};
use weft_policy::{MESH_SUFFIX, fqdn};
use weft_policy::{covers, is_label};

/// The canonical host of `authority` for a client: an authority without port, or an address with one (a virtual IP or
/// an endpoint).
pub fn resolve(world: &World, client: &Scope, authority: &str) -> Option<String> {
    lookup(world, client, authority).map(|(host, _)| host.name.clone())
}

/// The rule by which a name stands for a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// It is the host's own name.
    Own,
    /// A name without namespace: of the client's namespace.
    OwnNamespace,
    /// A name without namespace: of `default`, because the client's namespace has no such host.
    DefaultNamespace,
    /// With the namespace.
    WithNamespace,
    /// A name of Consul's DNS.
    Consul,
    /// An endpoint of a headless service: its own name, then the service's.
    EndpointName,
    /// A Service of type ExternalName that is an alias of the host.
    Alias,
    /// A wildcard covers it.
    Wildcard,
    /// A virtual IP, or an address that a document declares.
    Address,
    /// An endpoint's own address.
    Endpoint,
}

/// As [`resolve`], with the rule.
pub(crate) fn lookup<'a>(world: &'a World, client: &Scope, authority: &str) -> Option<(&'a Host, Meaning)> {
    if authority.starts_with(GATEWAY) {
        return world.host(authority).map(|host| (host, Meaning::Own));
    }
    if let Ok(address) = authority.parse::<SocketAddr>() {
        let (ip, port) = (address.ip(), address.port());
        let owner = world.host_of_address(client, ip, Some(port)).map(|host| (host, Meaning::Address));
        let seen = |host: &&Host| world.sees(client, host, Some(port.into()));
        let headless = || world.headless_of_endpoint(ip, port).find(seen).map(|host| (host, Meaning::Endpoint));
        let endpoint = || world.host_of_endpoint(client, ip, port).filter(seen).map(|host| (host, Meaning::Endpoint));
        return owner.or_else(headless).or_else(endpoint);
    }
    if let Ok(address) = authority.trim_matches(['[', ']']).parse::<IpAddr>() {
        return world.host_of_address(client, address, None).map(|host| (host, Meaning::Address));
    }
    let authority = authority.strip_suffix('.').unwrap_or(authority).to_ascii_lowercase();
    let known: Vec<(&Host, Meaning)> = candidates(world, &client.namespace, &authority)
        .filter_map(|(name, by)| {
            Some((world.definition(client, &name).filter(|host| world.sees(client, host, None))?, by))
        })
        .filter(|(host, by)| {
            *by != Meaning::Wildcard || host.is_offered(world) || world.is_routed_wildcard(client, host)
        })
        .collect();
    let wildcard = |(_, by): &&(&Host, Meaning)| *by == Meaning::Wildcard;
    let (wild, exact): (Vec<_>, Vec<_>) = known.iter().partition(|one| wildcard(one));
    let live = |known: &[&(&'a Host, Meaning)]| known.iter().find(|(host, _)| host.live).map(|one| **one);
    let found = live(&exact).or_else(|| endpoint_name(world, client, &authority)).or_else(|| live(&wild));
    let (host, by) = found.or(known.first().copied())?;
    if host.alias().is_none() {
        return Some((host, by));
    }
    let target = world.behind(client, host)?;
    world.sees(client, target, None).then_some((target, Meaning::Alias))
}

/// The headless service of `authority`, if that is `<endpoint>.<service>`.
fn endpoint_name<'a>(world: &'a World, client: &Scope, authority: &str) -> Option<(&'a Host, Meaning)> {
    let (label, service) = authority.split_once('.')?;
    let names = candidates(world, &client.namespace, service)
        .filter(|(_, by)| !matches!(by, Meaning::Wildcard | Meaning::Consul));
    let mut hosts = names.filter_map(|(name, _)| world.definition(client, &name));
    let host = hosts.find(|host| host.live && world.sees(client, host, None))?;
    let has = |instance: &Arc<Instance>| endpoint_names(instance).any(|name| name == label);
    (host.is_headless() && world.endpoints_of(host).any(has)).then_some((host, Meaning::EndpointName))
}

/// Names of an endpoint of a headless service, as `hostname` in an EndpointSlice: the host name of its pod, that of its
/// node, and the id that it registered with.
pub(super) fn endpoint_names(instance: &Instance) -> impl Iterator<Item = String> {
    let node = instance.node.split('.').next().unwrap_or_default().to_ascii_lowercase();
    // A sidecar's node is named "<host name>-<8 hex>".
    let is_random = |end: &str| end.len() == 8 && end.bytes().all(|b| b.is_ascii_hexdigit());
    let pod = node.rsplit_once('-').filter(|(_, end)| is_random(end)).map(|(pod, _)| pod.to_owned());
    let id = Some(instance.service_id.to_ascii_lowercase()).filter(|id| *id != node && pod.as_ref() != Some(id));
    [pod, Some(node), id].into_iter().flatten().filter(|name| is_label(name))
}

/// A host that `authority`, a name, would stand for if the client saw all hosts.
pub(crate) fn hidden_host<'a>(world: &'a World, client: &Scope, authority: &str) -> Option<&'a Host> {
    let authority = authority.strip_suffix('.').unwrap_or(authority).to_ascii_lowercase();
    let candidates = candidates(world, &client.namespace, &authority);
    candidates.into_iter().find_map(|(name, _)| world.definitions(&name).find(|host| host.live))
}

/// Canonical names that `authority` may stand for, the most specific first.
fn candidates(world: &World, client_ns: &str, authority: &str) -> impl Iterator<Item = (String, Meaning)> {
    let datacenter = world.datacenter();
    let both = move |service: &str| [fqdn(service, client_ns), fqdn(service, "default")];
    let by = |meaning: Meaning| move |name: String| (name, meaning);
    let full = authority.contains('.').then(|| authority.to_owned());
    let consul = consul_service(authority, datacenter).map(both);
    let with_svc = authority.ends_with(".svc").then(|| format!("{authority}.cluster.local"));
    let with_namespace = authority.contains('.').then(|| format!("{authority}{MESH_SUFFIX}"));
    let bare = (!authority.contains('.')).then(|| authority.to_owned());
    let wildcards = world.policies().patterns(authority).skip(1).filter(|wildcard| covers(wildcard, authority));
    full.into_iter()
        .map(by(Meaning::Own))
        .chain(consul.into_iter().flatten().map(by(Meaning::Consul)))
        .chain(with_svc.into_iter().chain(with_namespace).map(by(Meaning::WithNamespace)))
        .chain(both(authority).into_iter().zip([Meaning::OwnNamespace, Meaning::DefaultNamespace]))
        .chain(bare.map(by(Meaning::Own)))
        .chain(wildcards.map(by(Meaning::Wildcard)))
}

/// `order` of "order.service.consul" and, in dc1, "order.service.dc1.consul".
fn consul_service<'a>(authority: &'a str, datacenter: &str) -> Option<&'a str> {
    let name = authority.strip_suffix(".consul")?;
    name.strip_suffix(".service").or_else(|| name.strip_suffix(datacenter)?.strip_suffix('.')?.strip_suffix(".service"))
}

/// Authorities that stand for `host`, the canonical one first.
pub(super) fn of(world: &World, client: &Scope, host: &Host) -> Vec<String> {
    let mut names = vec![host.name.clone()];
    if let Some((service, namespace)) = host.name.strip_suffix(MESH_SUFFIX).and_then(|name| name.rsplit_once('.')) {
        let short = [
            format!("{service}.{namespace}.svc"),
            format!("{service}.{namespace}"),
            format!("{service}.service.consul"),
            service.to_owned(),
        ];
        // Names that stand for another host for this client, such as a service of the same name in its own namespace,
        // are left out.
        names.extend(short.into_iter().filter(|name| resolve(world, client, name).as_ref() == Some(&host.name)));
    }
    names.extend(world.addresses_of(host).iter().map(IpAddr::to_string));
    names
}
