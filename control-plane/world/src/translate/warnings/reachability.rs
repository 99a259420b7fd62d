//! Destinations without an address for some callers of a route: the connection is closed, or the request gets 503.

use std::collections::HashMap;

use weft_proto::v1;

use crate::world::ports;
use crate::world::{Host, Scope, World};
use weft_policy::{Code, Document, Finding, Kind, MESH, Object, Resolution, VirtualService, canonical, destinations};

/// The destinations of `document`'s routes that cannot be dialed.
pub(super) fn of_routes<'a>(
    world: &'a World,
    document: &'a Document,
    service: &VirtualService,
    findings: &mut Vec<Finding<'a>>,
) {
    let client = Scope::of(&document.namespace);
    // Many routes lead to few hosts.
    let mut hosts: HashMap<String, Option<&Host>> = HashMap::new();
    for (path, destination) in destinations(service) {
        let name = canonical(&destination.host, &document.namespace);
        let known = |name: &String| world.definition(&client, name).or_else(|| world.host(name));
        let host = *hosts.entry(name).or_insert_with_key(known);
        if let Some(text) = host.and_then(|host| of_destination(world, document, service, &path, host)) {
            findings.push(Finding::warning(document, format!("{path}.host"), Code::Undialable, text));
        }
    }
}

fn of_destination(
    world: &World,
    document: &Document,
    service: &VirtualService,
    path: &str,
    host: &Host,
) -> Option<String> {
    let entry = ports::entry(host)?;
    match entry.resolution {
        Resolution::None => {
            let gateway = service.gateways.iter().find(|gateway| *gateway != MESH)?;
            Some(format!(
                "`{}` has `resolution: NONE`: the original destination is dialed, which for callers of gateway \
                 `{gateway}` is the gateway itself. Write DYNAMIC_DNS for a wildcard, DNS for a host",
                host.name
            ))
        }
        Resolution::DynamicDns => {
            let port = nameless(world, document, service, path)?;
            Some(format!(
                "`{}` has `resolution: DYNAMIC_DNS`: the host that the caller names is dialed, but {port} is declared \
                 TCP, without a name: connections are closed. Declare the port TLS or HTTP, or name a host",
                host.name
            ))
        }
        _ => None,
    }
}

/// A port that is declared TCP, through which connections reach the `tcp` route at `path`.
fn nameless(world: &World, document: &Document, service: &VirtualService, path: &str) -> Option<String> {
    let number: usize = path.strip_prefix("tcp[")?.split_once(']')?.0.parse().ok()?;
    let route = service.tcp.get(number)?;
    let wanted = |port: u32| {
        route.matches.is_empty() || route.matches.iter().any(|matched| matched.port.is_none_or(|own| own == port))
    };
    let client = Scope::of(&document.namespace);
    let of_mesh = service.hosts.iter().filter(|_| service.of_mesh()).find_map(|written| {
        let name = canonical(written, &document.namespace);
        let host = world.definition(&client, &name).or_else(|| world.host(&name))?;
        let declared = ports::of(world, host);
        let found = declared.iter().find(|port| port.protocol == v1::Protocol::Tcp && wanted(port.number))?;
        Some(format!("port {} of `{name}`", found.number))
    });
    of_mesh.or_else(|| {
        service.of_gateways(&document.namespace).find_map(|(namespace, name)| {
            let Object::Gateway(gateway) = &world.document(Kind::Gateway, namespace, name)?.object else { return None };
            let is_nameless = |protocol| protocol == v1::GatewayProtocol::GatewayTcp;
            let found = gateway.servers.iter().find(|server| is_nameless(server.protocol) && wanted(server.port))?;
            Some(format!("port {} of gateway `{namespace}/{name}`", found.port))
        })
    })
}
