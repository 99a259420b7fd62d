//! Names: which host an application means, and by which names it may mean a host.

use std::net::{IpAddr, SocketAddr};

use crate::world::{GATEWAY, Host, MESH_SUFFIX, Scope, World, fqdn, patterns};

/// The canonical host that `asked` means to a client: an authority without port, or an address with one (a
/// virtual IP or an endpoint).
pub fn resolve(world: &World, client: &Scope, asked: &str) -> Option<String> {
    if asked.starts_with(GATEWAY) {
        return world.host(asked).map(|host| host.name.clone());
    }
    if let Ok(address) = asked.parse::<SocketAddr>() {
        let (ip, port) = (address.ip(), address.port());
        return world
            .host_of_address(client, ip, Some(port))
            .or_else(|| world.host_of_endpoint(ip, port).filter(|host| world.sees(client, host, Some(port.into()))))
            .map(|host| host.name.clone());
    }
    if let Ok(address) = asked.trim_matches(['[', ']']).parse::<IpAddr>() {
        return world.host_of_address(client, address, None).map(|host| host.name.clone());
    }
    let asked = asked.strip_suffix('.').unwrap_or(asked).to_ascii_lowercase();
    let known: Vec<&Host> = candidates(&client.namespace, &asked, world.datacenter())
        .filter_map(|name| world.host(&name).filter(|host| world.sees(client, host, None)))
        .collect();
    known.iter().find(|host| host.live).or(known.first()).map(|host| host.name.clone())
}

/// Canonical names that `asked` may stand for, the most specific meaning first.
fn candidates(client_ns: &str, asked: &str, datacenter: &str) -> impl Iterator<Item = String> {
    let both = move |service: &str| [fqdn(service, client_ns), fqdn(service, "default")];
    let full = asked.contains('.').then(|| asked.to_owned());
    let consul = consul_service(asked, datacenter).map(both);
    let with_svc = asked.ends_with(".svc").then(|| format!("{asked}.cluster.local"));
    let with_namespace = asked.contains('.').then(|| format!("{asked}{MESH_SUFFIX}"));
    let bare = (!asked.contains('.')).then(|| asked.to_owned());
    full.into_iter()
        .chain(consul.into_iter().flatten())
        .chain(with_svc)
        .chain(with_namespace)
        .chain(both(asked))
        .chain(bare)
        .chain(patterns(asked).skip(1))
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
