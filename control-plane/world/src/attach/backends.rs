//! Backends of routes.

use super::{Rejection, offered};
use crate::world::{World, ports};
use weft_policy::{BackendRef, Destination, Document, GATEWAY_API, fqdn};

/// The destination of a backend. `granted`: one in another namespace needs a ReferenceGrant, as at Gateways; in the mesh it
/// needs none.
///
/// # Errors
/// The reason why its share of the requests gets an error.
pub(crate) fn backend(
    world: &World,
    document: &Document,
    backend: &BackendRef,
    granted: bool,
) -> Result<Destination, Rejection> {
    let object = &backend.object;
    if !object.is_service() {
        let text = format!("a backend is a Service, not `{}` of group `{}`", object.kind, object.group);
        return Err(Rejection::new("InvalidKind", text));
    }
    let host = fqdn(&object.name, &object.namespace);
    let permitted = || {
        let api = world.policies().gateway_api();
        api.permits(GATEWAY_API, document.kind().written(), &document.namespace, object)
    };
    if granted && !permitted() {
        let text =
            format!("no ReferenceGrant of namespace {} permits the reference to Service `{host}`", object.namespace);
        return Err(Rejection::new("RefNotPermitted", text));
    }
    let found = offered(world, &host, "BackendNotFound")?;
    let number = backend.port.unwrap_or_default();
    // A service without declared ports, and an alias of another host, have any port.
    let any = found.alias().is_some();
    if !any && !ports::of(world, found).iter().any(|port| port.number == 0 || port.number == number) {
        return Err(Rejection::new("BackendNotFound", format!("Service `{host}` has no port {number}")));
    }
    Ok(Destination {
        port: backend.port,
        weight: backend.weight,
        headers: backend.headers.clone(),
        ..Destination::to(&host, backend.place)
    })
}
