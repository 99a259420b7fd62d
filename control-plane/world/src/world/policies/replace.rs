//! Adds and removes single rules and routes.

use std::collections::BTreeMap;
use std::sync::Arc;

use weft_core::names;

use super::gateway_api::{gateway_prefixes, parent_hosts};
use super::{Policies, fqdn, gateway_hosts};
use weft_policy::{Document, Object, VirtualService, canonical};

impl Policies {
    /// Removes an existing document; only of [`is_replaceable`] kinds.
    fn remove(&mut self, document: &Arc<Document>) {
        let namespace = &document.namespace;
        self.count(document, false);
        match &document.object {
            Object::DestinationRule(rule) => {
                take_out(&mut self.rules, &(namespace.clone(), canonical(&rule.host, namespace)), document);
            }
            Object::VirtualService(service) => {
                for host in mesh_hosts(service, namespace) {
                    take_out(&mut self.routes, &host, document);
                }
                for host in gateway_hosts(service, namespace) {
                    take_out(&mut self.gateway_routes, &host, document);
                }
            }
            Object::HTTPRoute(_) | Object::GRPCRoute(_) | Object::TLSRoute(_) | Object::TCPRoute(_) => {
                self.gateway_api.remove(document);
            }
            _ => {}
        }
    }

    /// Replaces documents of [`is_replaceable`] kinds, at the cost of those alone.
    pub(in crate::world) fn replace(&mut self, gone: &[Arc<Document>], came: &[Arc<Document>]) {
        gone.iter().for_each(|document| self.remove(document));
        came.iter().for_each(|document| self.add(document));
    }

    /// Counts properties that several documents may share, when one is added or removed.
    pub(super) fn count(&mut self, document: &Document, comes: bool) {
        let namespace = &document.namespace;
        let partial = document.object.hosts().iter().any(|host| names::is_partial_wildcard(host));
        self.partial = if comes { self.partial + usize::from(partial) } else { self.partial - usize::from(partial) };
        match &document.object {
            Object::DestinationRule(rule) => {
                rule.selector.keys().for_each(|label| count(&mut self.client_labels, label, comes));
            }
            Object::Sidecar(sidecar) => {
                sidecar.selector.keys().for_each(|label| count(&mut self.client_labels, label, comes));
            }
            Object::VirtualService(service) => {
                let matches = service.http.iter().flat_map(|route| &route.matches);
                let labels = matches.flat_map(|one| one.source_labels.keys());
                let connections = service.tls.iter().chain(&service.tcp).flat_map(|route| &route.matches);
                let labels = labels.chain(connections.flat_map(|one| one.source_labels.keys()));
                labels.for_each(|label| count(&mut self.client_labels, label, comes));
                let hosts: Vec<String> =
                    mesh_hosts(service, namespace).chain(gateway_hosts(service, namespace)).collect();
                let destinations = service.destinations().map(|to| canonical(&to.host, namespace));
                self.count_dependents(&hosts, destinations, comes);
            }
            route @ (Object::HTTPRoute(_) | Object::GRPCRoute(_) | Object::TLSRoute(_) | Object::TCPRoute(_)) => {
                let hosts: Vec<String> = parent_hosts(route).chain(gateway_prefixes(route)).collect();
                let services = route.backends().into_iter().filter(|(_, backend)| backend.object.is_service());
                let destinations = services.map(|(_, backend)| fqdn(&backend.object.name, &backend.object.namespace));
                self.count_dependents(&hosts, destinations, comes);
            }
            _ => {}
        }
    }

    fn count_dependents(&mut self, hosts: &[String], destinations: impl Iterator<Item = String>, comes: bool) {
        for destination in destinations {
            let dependents = self.dependents.entry(destination.clone()).or_default();
            hosts.iter().for_each(|host| count(dependents, host, comes));
            if dependents.is_empty() {
                self.dependents.remove(&destination);
            }
        }
    }
}

/// Whether [`Policies::replace`] supports documents of this kind: no index of other kinds depends on them.
pub(in crate::world) fn is_replaceable(document: &Document) -> bool {
    match &document.object {
        Object::DestinationRule(_) | Object::VirtualService(_) => true,
        // The hosts of a gateway follow from all of its routes.
        route @ (Object::HTTPRoute(_) | Object::GRPCRoute(_) | Object::TLSRoute(_) | Object::TCPRoute(_)) => {
            route.parents().iter().all(|parent| !parent.object.is_gateway())
        }
        _ => false,
    }
}

/// The order of documents with the same claim: oldest first; of the same age by namespace and name.
pub(super) fn age(document: &Document) -> (u64, &str, &str) {
    (document.created, &document.namespace, &document.name)
}

/// Inserts a document at the place of its age.
pub(super) fn insert(list: &mut Vec<Arc<Document>>, document: &Arc<Document>) {
    let at = list.partition_point(|other| age(other) <= age(document));
    list.insert(at, document.clone());
}

pub(super) fn take_out<K: Ord>(index: &mut BTreeMap<K, Vec<Arc<Document>>>, key: &K, document: &Arc<Document>) {
    if let Some(list) = index.get_mut(key) {
        list.retain(|other| !Arc::ptr_eq(other, document));
        if list.is_empty() {
            index.remove(key);
        }
    }
}

/// Increments or decrements a count.
fn count(counts: &mut BTreeMap<String, usize>, name: &String, comes: bool) {
    if comes {
        *counts.entry(name.clone()).or_default() += 1;
    } else if let Some(count) = counts.get_mut(name) {
        *count -= 1;
        if *count == 0 {
            counts.remove(name);
        }
    }
}

/// The hosts of a VirtualService for callers in the mesh, in full.
pub(super) fn mesh_hosts<'a>(service: &'a VirtualService, namespace: &'a str) -> impl Iterator<Item = String> + 'a {
    let mesh = service.hosts.iter().filter(|_| service.of_mesh());
    mesh.map(move |host| canonical(host, namespace))
}
