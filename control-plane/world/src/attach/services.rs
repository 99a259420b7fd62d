//! Routes of Services (GAMMA): the parent is the host and port that a caller dials.
//!
//! A route in the Service's namespace is a producer's, for all callers. One in another namespace is a consumer's: it replaces
//! the producers' for the callers of its own namespace. A VirtualService of the host takes precedence over all of them, and
//! of several kinds of routes of a port the first of [`PRECEDENCE`] over the others.

use std::sync::Arc;

use super::{Attached, Rejection, offered, order};
use crate::world::ports::{self, PortView};
use crate::world::{Host, Scope, World};
use weft_policy::{Document, Kind, ParentRef, fqdn};

/// The matches that apply to a client's requests to a port of `host`, in order; none: no route is attached.
pub(crate) fn of_service<'a>(
    world: &'a World,
    client: &Scope,
    host: &Host,
    number: u32,
    name: &str,
) -> Vec<Attached<'a>> {
    let attached = applied(world, &client.namespace, host, number, name);
    order::ordered(attached.into_iter().map(|document| (document, (false, 0))))
}

/// The TLSRoutes or TCPRoutes that apply to a client's connections to a port of `host`, the oldest first.
pub(crate) fn streams_of_service<'a>(
    world: &'a World,
    client: &Scope,
    host: &Host,
    number: u32,
    name: &str,
) -> Vec<&'a Arc<Document>> {
    let mut attached = applied(world, &client.namespace, host, number, name);
    attached.retain(|document| matches!(document.kind(), Kind::TLSRoute | Kind::TCPRoute));
    attached
}

/// The kinds of routes, of which a port has one.
const PRECEDENCE: [Kind; 4] = [Kind::GRPCRoute, Kind::HTTPRoute, Kind::TLSRoute, Kind::TCPRoute];

/// The routes that apply to a port for the callers of a namespace.
fn applied<'a>(world: &'a World, client_ns: &str, host: &Host, number: u32, name: &str) -> Vec<&'a Arc<Document>> {
    let all = world.policies().gateway_api().of_service(&host.name).iter();
    let covered = |document: &&'a Arc<Document>| parents(document, host).any(|parent| covers(parent, number, name));
    let of_port: Vec<&'a Arc<Document>> = all.filter(covered).collect();
    let of = |namespace: &str| -> Vec<&'a Arc<Document>> {
        of_port.iter().copied().filter(|document| document.namespace == namespace).collect()
    };
    let own = of(client_ns);
    let mut applied = if own.is_empty() { of(&host.namespace) } else { own };
    let kind = PRECEDENCE.into_iter().find(|kind| applied.iter().any(|document| document.kind() == *kind));
    applied.retain(|document| Some(document.kind()) == kind);
    applied
}

/// The entries of a route's `parentRefs` that name the Service of `host`.
fn parents<'d>(document: &'d Document, host: &'d Host) -> impl Iterator<Item = &'d ParentRef> {
    document.object.parents().iter().filter(|parent| parent.object.is_service() && host_of(parent) == host.name)
}

fn host_of(parent: &ParentRef) -> String {
    fqdn(&parent.object.name, &parent.object.namespace)
}

/// Whether a parentRef is for a port. Port 0 stands for the undeclared ports of a host: an explicit one is never it.
fn covers(parent: &ParentRef, number: u32, name: &str) -> bool {
    parent.port.is_none_or(|port| port == number) && (parent.section.is_empty() || parent.section == name)
}

/// The ports that routes of `host` name beside those that it declares, if it declares none.
pub(crate) fn named_ports(world: &World, host: &Host) -> Vec<u32> {
    let all = world.policies().gateway_api().of_service(&host.name).iter();
    all.flat_map(|document| parents(document, host).filter_map(|parent| parent.port)).collect()
}

/// Whether a route is attached to its parent, a Service.
pub(super) fn attach(world: &World, document: &Document, parent: &ParentRef) -> Result<(), Rejection> {
    let name = host_of(parent);
    let host = offered(world, &name, "NoMatchingParent")?;
    let ports: Vec<PortView> = ports::of(world, host)
        .into_iter()
        .map(|port| if port.number == 0 { PortView { number: parent.port.unwrap_or(0), ..port } } else { port })
        .filter(|port| covers(parent, port.number, &port.name))
        .collect();
    if ports.is_empty() {
        let what = if parent.section.is_empty() {
            parent.port.unwrap_or_default().to_string()
        } else {
            parent.section.clone()
        };
        return Err(Rejection::new("NoMatchingParent", format!("Service `{name}` has no port {what}")));
    }
    // As the callers see it that the route is for: all, or those of its own namespace.
    let client = Scope::of(&document.namespace);
    if let Some(first) = world.policies().routes(&client, &name) {
        let text =
            format!("{} has the routes of this host: it takes precedence over the Gateway API", first.reference());
        return Err(Rejection::new("Conflicted", text));
    }
    let applies = |port: &PortView| {
        applied(world, &document.namespace, host, port.number, &port.name)
            .iter()
            .any(|other| other.is_same_object(document))
    };
    if !ports.iter().any(applies) {
        let text = "a route of a kind that takes precedence has these ports: GRPCRoute, HTTPRoute, TLSRoute, TCPRoute";
        return Err(Rejection::new("Conflicted", text));
    }
    Ok(())
}
