//! Names: which host an application means, and by which names it may mean a host.

use std::net::{IpAddr, SocketAddr};

use crate::policy::covers;
use crate::world::{GATEWAY, Host, MESH_SUFFIX, Scope, World, fqdn};

/// The canonical host that `asked` means to a client: an authority without port, or an address with one (a
/// virtual IP or an endpoint).
pub fn resolve(world: &World, client: &Scope, asked: &str) -> Option<String> {
    meant(world, client, asked).map(|(host, _)| host.name.clone())
}

/// By what a name means a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// It is the host's own name.
    Own,
    /// A name without namespace: of the client's.
    OwnNamespace,
    /// A name without namespace: of `default`, as the client's has none such.
    DefaultNamespace,
    /// With the namespace.
    WithNamespace,
    /// One of Consul's.
    Consul,
    /// A wildcard covers it.
    Wildcard,
    /// A virtual IP, or an address that a document declares.
    Address,
    /// An endpoint's own address.
    Endpoint,
}

/// As [`resolve`], and by what.
pub(crate) fn meant<'a>(world: &'a World, client: &Scope, asked: &str) -> Option<(&'a Host, Meaning)> {
    if asked.starts_with(GATEWAY) {
        return world.host(asked).map(|host| (host, Meaning::Own));
    }
    if let Ok(address) = asked.parse::<SocketAddr>() {
        let (ip, port) = (address.ip(), address.port());
        let owner = world.host_of_address(client, ip, Some(port)).map(|host| (host, Meaning::Address));
        let seen = |host: &&Host| world.sees(client, host, Some(port.into()));
        let endpoint = || world.host_of_endpoint(client, ip, port).filter(seen).map(|host| (host, Meaning::Endpoint));
        return owner.or_else(endpoint);
    }
    if let Ok(address) = asked.trim_matches(['[', ']']).parse::<IpAddr>() {
        return world.host_of_address(client, address, None).map(|host| (host, Meaning::Address));
    }
    let asked = asked.strip_suffix('.').unwrap_or(asked).to_ascii_lowercase();
    let known: Vec<(&Host, Meaning)> = candidates(world, &client.namespace, &asked)
        .filter_map(|(name, by)| {
            Some((world.definition(client, &name).filter(|host| world.sees(client, host, None))?, by))
        })
        .filter(|(host, by)| {
            *by != Meaning::Wildcard || host.is_offered(world) || world.is_routed_wildcard(client, host)
        })
        .collect();
    known.iter().find(|(host, _)| host.live).or(known.first()).copied()
}

/// A host that `asked`, a name, would mean to a client who saw all.
pub(crate) fn hidden<'a>(world: &'a World, client: &Scope, asked: &str) -> Option<&'a Host> {
    let asked = asked.strip_suffix('.').unwrap_or(asked).to_ascii_lowercase();
    let candidates = candidates(world, &client.namespace, &asked);
    candidates.into_iter().find_map(|(name, _)| world.definitions(&name).find(|host| host.live))
}

/// Canonical names that `asked` may stand for, the most specific meaning first.
fn candidates(world: &World, client_ns: &str, asked: &str) -> impl Iterator<Item = (String, Meaning)> {
    let datacenter = world.datacenter();
    let both = move |service: &str| [fqdn(service, client_ns), fqdn(service, "default")];
    let by = |meaning: Meaning| move |name: String| (name, meaning);
    let full = asked.contains('.').then(|| asked.to_owned());
    let consul = consul_service(asked, datacenter).map(both);
    let with_svc = asked.ends_with(".svc").then(|| format!("{asked}.cluster.local"));
    let with_namespace = asked.contains('.').then(|| format!("{asked}{MESH_SUFFIX}"));
    let bare = (!asked.contains('.')).then(|| asked.to_owned());
    let wildcards = world.policies().patterns(asked).skip(1).filter(|wildcard| covers(wildcard, asked));
    full.into_iter()
        .map(by(Meaning::Own))
        .chain(consul.into_iter().flatten().map(by(Meaning::Consul)))
        .chain(with_svc.into_iter().chain(with_namespace).map(by(Meaning::WithNamespace)))
        .chain(both(asked).into_iter().zip([Meaning::OwnNamespace, Meaning::DefaultNamespace]))
        .chain(bare.map(by(Meaning::Own)))
        .chain(wildcards.map(by(Meaning::Wildcard)))
}

/// `order` of "order.service.consul" and, in dc1, "order.service.dc1.consul".
fn consul_service<'a>(asked: &'a str, datacenter: &str) -> Option<&'a str> {
    let name = asked.strip_suffix(".consul")?;
    name.strip_suffix(".service").or_else(|| name.strip_suffix(datacenter)?.strip_suffix('.')?.strip_suffix(".service"))
}

/// Authorities that mean `host` to a client, the canonical one first.
pub(super) fn of(world: &World, client: &Scope, host: &Host) -> Vec<String> {
    let mut names = vec![host.name.clone()];
    if let Some((service, namespace)) = host.name.strip_suffix(MESH_SUFFIX).and_then(|name| name.rsplit_once('.')) {
        let short = [
            format!("{service}.{namespace}.svc"),
            format!("{service}.{namespace}"),
            format!("{service}.service.consul"),
            service.to_owned(),
        ];
        // What means another host to this client, such as a service of the same name in its own namespace, is left out.
        names.extend(short.into_iter().filter(|name| resolve(world, client, name).as_ref() == Some(&host.name)));
    }
    names.extend(world.addresses_of(host).iter().map(IpAddr::to_string));
    names
}
