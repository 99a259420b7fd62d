//! Documents of Kubernetes' Gateway API by the objects that they concern. The oldest is first in every list.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::replace::{insert, take_out};
use weft_policy::{Document, HttpRoute, Object, ObjectRef, fqdn};

/// The indexes.
#[derive(Clone, Debug, Default)]
pub(crate) struct GatewayApi {
    /// Routes by the host of a parent Service.
    of_services: BTreeMap<String, Vec<Arc<Document>>>,
    /// By namespace.
    grants: BTreeMap<String, Vec<Arc<Document>>>,
}

impl GatewayApi {
    pub(super) fn add(&mut self, document: &Arc<Document>) {
        match &document.object {
            Object::HTTPRoute(route) | Object::GRPCRoute(route) => {
                for host in parent_hosts(route) {
                    insert_once(self.of_services.entry(host).or_default(), document);
                }
            }
            Object::ReferenceGrant(_) => {
                self.grants.entry(document.namespace.clone()).or_default().push(document.clone());
            }
            _ => {}
        }
    }

    /// Removes a route.
    pub(super) fn remove(&mut self, document: &Arc<Document>) {
        let (Object::HTTPRoute(route) | Object::GRPCRoute(route)) = &document.object else { return };
        for host in parent_hosts(route) {
            take_out(&mut self.of_services, &host, document);
        }
    }

    /// Routes with the Service of `host` as a parent.
    pub(crate) fn of_service(&self, host: &str) -> &[Arc<Document>] {
        self.of_services.get(host).map(Vec::as_slice).unwrap_or_default()
    }

    /// Whether an object of `group`, `kind` and `namespace` may refer to `target`.
    pub(crate) fn permits(&self, group: &str, kind: &str, namespace: &str, target: &ObjectRef) -> bool {
        let permits = |document: &Arc<Document>| match &document.object {
            Object::ReferenceGrant(grant) => grant.permits(group, kind, namespace, target),
            _ => false,
        };
        namespace == target.namespace || self.grants.get(&target.namespace).into_iter().flatten().any(permits)
    }
}

/// A route may name a parent several times, with different ports.
fn insert_once(list: &mut Vec<Arc<Document>>, document: &Arc<Document>) {
    if !list.iter().any(|other| Arc::ptr_eq(other, document)) {
        insert(list, document);
    }
}

/// The hosts of the Services that are a route's parents.
pub(in crate::world) fn parent_hosts(route: &HttpRoute) -> impl Iterator<Item = String> {
    let services = route.parents.iter().filter(|parent| parent.object.is_service());
    services.map(|parent| fqdn(&parent.object.name, &parent.object.namespace))
}
