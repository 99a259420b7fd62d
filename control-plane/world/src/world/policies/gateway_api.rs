//! Documents of Kubernetes' Gateway API by the objects that they concern. The oldest is first in every list.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::replace::{insert, take_out};
use super::{GATEWAY, gateway_host};
use weft_policy::{BackendTlsPolicy, CONTROLLER, Document, GatewayClass, Object, ObjectRef, fqdn};

/// The class of Gateways that is served without any GatewayClass.
const DEFAULT_CLASS: &str = "weft";

/// The indexes.
#[derive(Clone, Debug, Default)]
pub(crate) struct GatewayApi {
    /// Routes by the host of a parent Service.
    of_services: BTreeMap<String, Vec<Arc<Document>>>,
    /// Routes by namespace and name of a parent Gateway.
    of_gateways: BTreeMap<(String, String), Vec<Arc<Document>>>,
    gateways: BTreeMap<(String, String), Arc<Document>>,
    classes: BTreeMap<String, Arc<Document>>,
    /// By namespace.
    grants: BTreeMap<String, Vec<Arc<Document>>>,
    /// BackendTLSPolicies by the host of a target.
    backend_tls: BTreeMap<String, Vec<Arc<Document>>>,
    /// Labels of namespaces.
    namespaces: BTreeMap<String, BTreeMap<String, String>>,
    /// The hosts of listeners, see [`listener_host`]; more than those that routes are attached with.
    hosts: BTreeSet<String>,
}

impl GatewayApi {
    pub(super) fn add(&mut self, document: &Arc<Document>) {
        let key = (document.namespace.clone(), document.name.clone());
        match &document.object {
            Object::KubernetesGateway(_) => drop(self.gateways.insert(key, document.clone())),
            Object::GatewayClass(_) => drop(self.classes.insert(document.name.clone(), document.clone())),
            Object::BackendTLSPolicy(policy) => {
                for host in targets(policy) {
                    insert_once(self.backend_tls.entry(host).or_default(), document);
                }
            }
            Object::Namespace(namespace) => {
                self.namespaces.insert(document.name.clone(), namespace.labels.clone());
            }
            Object::ReferenceGrant(_) => {
                self.grants.entry(document.namespace.clone()).or_default().push(document.clone());
            }
            object => {
                for host in parent_hosts(object) {
                    insert_once(self.of_services.entry(host).or_default(), document);
                }
                for key in parent_gateways(object) {
                    insert_once(self.of_gateways.entry(key).or_default(), document);
                }
            }
        }
    }

    /// Removes a route.
    pub(super) fn remove(&mut self, document: &Arc<Document>) {
        for host in parent_hosts(&document.object) {
            take_out(&mut self.of_services, &host, document);
        }
        for key in parent_gateways(&document.object) {
            take_out(&mut self.of_gateways, &key, document);
        }
    }

    /// Finds the hosts of all listeners, once all documents are added.
    pub(super) fn find_hosts(&mut self) {
        let mut hosts = BTreeSet::new();
        for ((namespace, name), document) in &self.gateways {
            let Object::KubernetesGateway(gateway) = &document.object else { continue };
            for listener in &gateway.listeners {
                let own = if listener.hostname.is_empty() { "*" } else { &listener.hostname };
                let routes = self.of_gateway(namespace, name).iter();
                let routes = routes.flat_map(|document| listener.hostnames(document.object.hosts()));
                let all = routes.chain([own.to_owned()]);
                hosts.extend(all.map(|host| listener_host(namespace, name, &listener.name, &host)));
            }
        }
        self.hosts = hosts;
    }

    /// The hosts of listeners.
    pub(super) fn hosts(&self) -> impl Iterator<Item = &String> {
        self.hosts.iter()
    }

    /// The namespace of a listener's host.
    pub(super) fn namespace_of_host(&self, host: &str) -> Option<&str> {
        let (host, _) = self.hosts.get(host)?.strip_prefix(GATEWAY)?.split_once(':')?;
        Some(host)
    }

    /// The labels of a namespace.
    pub(crate) fn labels(&self, namespace: &str) -> Option<&BTreeMap<String, String>> {
        self.namespaces.get(namespace)
    }

    /// Routes with the Service of `host` as a parent.
    pub(crate) fn of_service(&self, host: &str) -> &[Arc<Document>] {
        self.of_services.get(host).map(Vec::as_slice).unwrap_or_default()
    }

    /// BackendTLSPolicies of the Service of `host`.
    pub(crate) fn backend_tls(&self, host: &str) -> &[Arc<Document>] {
        self.backend_tls.get(host).map(Vec::as_slice).unwrap_or_default()
    }

    /// Routes with this Gateway as a parent.
    pub(crate) fn of_gateway(&self, namespace: &str, name: &str) -> &[Arc<Document>] {
        let key = (namespace.to_owned(), name.to_owned());
        self.of_gateways.get(&key).map(Vec::as_slice).unwrap_or_default()
    }

    /// One Gateway.
    pub(crate) fn gateway(&self, namespace: &str, name: &str) -> Option<&Arc<Document>> {
        self.gateways.get(&(namespace.to_owned(), name.to_owned()))
    }

    /// Whether Gateways of a class are served here: by its GatewayClass, or by its name if there is no GatewayClass.
    pub(crate) fn serves(&self, class: &str) -> bool {
        match self.classes.get(class).map(|document| &document.object) {
            Some(Object::GatewayClass(GatewayClass { controller })) => controller == CONTROLLER,
            _ => self.classes.is_empty() && class == DEFAULT_CLASS,
        }
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
pub(in crate::world) fn parent_hosts(route: &Object) -> impl Iterator<Item = String> {
    let services = route.parents().iter().filter(|parent| parent.object.is_service());
    services.map(|parent| fqdn(&parent.object.name, &parent.object.namespace))
}

/// The key of a listener's routes for one hostname, `*` for any.
pub(crate) fn listener_host(namespace: &str, name: &str, listener: &str, hostname: &str) -> String {
    gateway_host(namespace, name, &format!("listener.{listener}"), hostname)
}

/// The hosts of the Services that a BackendTLSPolicy is for.
pub(in crate::world) fn targets(policy: &BackendTlsPolicy) -> impl Iterator<Item = String> {
    let services = policy.targets.iter().filter(|(target, _)| target.is_service());
    services.map(|(target, _)| fqdn(&target.name, &target.namespace))
}

/// The beginning of the hosts of the Gateways that are a route's parents.
pub(super) fn gateway_prefixes(route: &Object) -> impl Iterator<Item = String> {
    parent_gateways(route).map(|(namespace, name)| format!("{GATEWAY}{namespace}:{name}:"))
}

/// Namespace and name of the Gateways that are a route's parents.
fn parent_gateways(route: &Object) -> impl Iterator<Item = (String, String)> {
    let gateways = route.parents().iter().filter(|parent| parent.object.is_gateway());
    gateways.map(|parent| (parent.object.namespace.clone(), parent.object.name.clone()))
}
