//! The objects of a cluster and the part of the mesh that they make, without I/O.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use kube::api::DynamicObject;
use serde_json::json;
use weft_policy::{Document, Export, Kind, KubePort, KubeService, Object, Problem, TargetPort, protocol};
use weft_proto::v1::{Health, Protocol};
use weft_world::{Instance, InstanceKey, Origin, World};

use crate::objects::{
    Key, Pod, Service, ServicePort, Slice, SliceEndpoint, address, key, namespace_labels, node_locality,
};
use crate::policies::Policies;
use crate::status::Report;

/// A kind of object that is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Resource {
    /// `v1` Service.
    Service,
    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice,
    /// `v1` Pod.
    Pod,
    /// `v1` Node.
    Node,
    /// Istio's kinds and those of other groups that policies are made of.
    Policy(Kind),
}

/// What a watch reports.
#[derive(Debug)]
pub enum Change {
    /// All objects there are: others are gone.
    Reset(Vec<DynamicObject>),
    /// An object is new or has changed.
    Apply(Box<DynamicObject>),
    /// An object is gone.
    Delete(Box<DynamicObject>),
}

/// The difference between two states of the mesh's part.
#[derive(Debug, Default)]
pub struct Delta {
    /// Instances that are new or have changed.
    pub upserts: Vec<Instance>,
    /// Instances that are gone.
    pub removed: Vec<InstanceKey>,
    /// Pods with a sidecar that are new, have changed or, without a value, are gone, by namespace and node.
    pub pods: Vec<(Key, Option<weft_world::Pod>)>,
    /// All policies; `None`: they are the same.
    pub policies: Option<AllPolicies>,
}

/// The documents of a cluster, and the problems of its policies.
#[derive(Debug, Default)]
pub struct AllPolicies {
    /// The last valid version of each object.
    pub documents: Vec<Arc<Document>>,
    /// Errors of versions that are not applied, and warnings.
    pub problems: Vec<Problem>,
}

impl Delta {
    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        self.upserts.is_empty() && self.removed.is_empty() && self.pods.is_empty() && self.policies.is_none()
    }
}

/// The state of all objects that are watched.
#[derive(Debug, Default)]
pub struct Cluster {
    trust_domain: String,
    services: BTreeMap<Key, Service>,
    slices: BTreeMap<Key, Slice>,
    pods: BTreeMap<Key, Pod>,
    /// `region/zone/subzone` by node.
    nodes: BTreeMap<String, String>,
    /// Slices by their Service.
    slices_of: BTreeMap<Key, BTreeSet<Key>>,
    /// Services by the pods that their slices refer to.
    services_of: BTreeMap<Key, BTreeSet<Key>>,
    /// Namespaces that are not about to end, with their labels.
    namespaces: BTreeMap<String, BTreeMap<String, String>>,
    policies: Policies,
    /// The result: a document for each Service.
    documents: BTreeMap<Key, Arc<Document>>,
    /// The result: instances by Service.
    instances: BTreeMap<Key, BTreeMap<InstanceKey, Instance>>,
    /// Services whose result may have changed.
    dirty: BTreeSet<Key>,
    /// Pods that may have changed.
    dirty_pods: BTreeSet<Key>,
    documents_changed: bool,
}

impl Cluster {
    /// A cluster of a mesh with this trust domain, without an object.
    pub fn new(trust_domain: &str) -> Cluster {
        Cluster { trust_domain: trust_domain.to_owned(), ..Cluster::default() }
    }

    /// Applies a change of an object, or a list of all.
    pub fn apply(&mut self, resource: Resource, change: Change) {
        match change {
            Change::Reset(objects) => {
                let there: BTreeSet<Key> = objects.iter().map(key).collect();
                let gone: Vec<Key> = self.keys(resource).filter(|key| !there.contains(key)).collect();
                gone.iter().for_each(|key| self.set(resource, key, None));
                objects.iter().for_each(|object| self.set(resource, &key(object), Some(object)));
            }
            Change::Apply(object) => self.set(resource, &key(&object), Some(&object)),
            Change::Delete(object) => self.set(resource, &key(&object), None),
        }
    }

    /// The namespaces that are not about to end, with their labels.
    pub fn namespaces(&self) -> &BTreeMap<String, BTreeMap<String, String>> {
        &self.namespaces
    }

    /// Whether the status of a policy may differ from the one that it should have.
    pub fn has_reports(&self) -> bool {
        self.policies.has_reports()
    }

    /// The statuses that policies do not have, of those that may differ since the last call: conditions of their own, or of
    /// the Gateway API by the decisions of `world`.
    pub fn take_reports(&mut self, world: &World) -> Vec<Report> {
        self.policies.take_reports(world)
    }

    /// The difference since the last call.
    pub fn take_delta(&mut self) -> Delta {
        let mut delta = Delta::default();
        for service in std::mem::take(&mut self.dirty) {
            self.refresh(&service, &mut delta);
        }
        let pods = std::mem::take(&mut self.dirty_pods);
        let found = pods.into_iter().map(|key| ((key.0.clone(), node(&key.0, &key.1)), self.pod(&key)));
        delta.pods = found.collect();
        if std::mem::take(&mut self.documents_changed) | self.policies.take_changed() {
            // A Service may be the parent or the backend of a route.
            self.policies.conditions_are_due();
            delta.policies = Some(AllPolicies {
                documents: self.documents.values().chain(self.policies.documents()).cloned().collect(),
                problems: self.policies.problems().cloned().collect(),
            });
        }
        delta
    }

    fn keys(&self, resource: Resource) -> Box<dyn Iterator<Item = Key> + '_> {
        match resource {
            Resource::Service => Box::new(self.services.keys().cloned()),
            Resource::EndpointSlice => Box::new(self.slices.keys().cloned()),
            Resource::Pod => Box::new(self.pods.keys().cloned()),
            Resource::Node => Box::new(self.nodes.keys().map(|name| (String::new(), name.clone()))),
            Resource::Policy(kind) => Box::new(self.policies.keys(kind).cloned()),
        }
    }

    fn set(&mut self, resource: Resource, key: &Key, object: Option<&DynamicObject>) {
        match resource {
            Resource::Service => {
                replace(&mut self.services, key, object.map(Service::of));
                self.dirty.insert(key.clone());
            }
            Resource::EndpointSlice => self.set_slice(key, object.map(Slice::of)),
            Resource::Pod => {
                if replace(&mut self.pods, key, object.and_then(Pod::of)) {
                    self.dirty.extend(self.services_of.get(key).into_iter().flatten().cloned());
                    self.dirty_pods.insert(key.clone());
                }
            }
            Resource::Node => {
                if replace(&mut self.nodes, &key.1, object.map(node_locality)) {
                    // Rare: a node comes, goes, or is relabelled.
                    self.dirty.extend(self.services.keys().cloned());
                    self.dirty_pods.extend(self.pods.keys().cloned());
                }
            }
            Resource::Policy(kind) => {
                if kind == Kind::Namespace {
                    replace(&mut self.namespaces, &key.1, object.and_then(namespace_labels));
                }
                self.policies.set(kind, key, object);
            }
        }
    }

    fn set_slice(&mut self, key: &Key, slice: Option<Slice>) {
        let service_of = |slice: &Slice| (key.0.clone(), slice.service.clone());
        let old = self.slices.get(key).cloned();
        if !replace(&mut self.slices, key, slice) {
            return;
        }
        if let Some(old) = &old {
            let service = service_of(old);
            if let Some(slices) = self.slices_of.get_mut(&service) {
                slices.remove(key);
            }
            self.dirty.insert(service);
        }
        if let Some(slice) = self.slices.get(key) {
            let service = service_of(slice);
            for pod in slice.endpoints.iter().filter_map(pod_of) {
                self.services_of.entry(pod).or_default().insert(service.clone());
            }
            self.slices_of.entry(service.clone()).or_default().insert(key.clone());
            self.dirty.insert(service);
        }
        for pod in old.iter().flat_map(|old| &old.endpoints).filter_map(pod_of) {
            self.forget_pod(&pod);
        }
    }

    /// Removes a pod from the index once no slice refers to it.
    fn forget_pod(&mut self, pod: &Key) {
        let Some(services) = self.services_of.get(pod) else { return };
        let refers = |slice: &Key| {
            let endpoints = self.slices.get(slice).into_iter().flat_map(|slice| &slice.endpoints);
            endpoints.filter_map(pod_of).any(|one| one == *pod)
        };
        let used = |service: &&Key| self.slices_of.get(*service).is_some_and(|slices| slices.iter().any(refers));
        let left: BTreeSet<Key> = services.iter().filter(used).cloned().collect();
        if left.is_empty() {
            self.services_of.remove(pod);
        } else {
            self.services_of.insert(pod.clone(), left);
        }
    }

    /// Makes the result of a Service anew.
    fn refresh(&mut self, service: &Key, delta: &mut Delta) {
        let document = self.services.get(service).map(|found| document(service, found));
        let same = match (&document, self.documents.get(service)) {
            (Some(new), Some(old)) => new.object == old.object && new.created == old.created,
            (new, old) => new.is_none() && old.is_none(),
        };
        if !same {
            match document {
                Some(document) => drop(self.documents.insert(service.clone(), Arc::new(document))),
                None => drop(self.documents.remove(service)),
            }
            self.documents_changed = true;
        }
        let new = self.services.get(service).map(|found| self.endpoints(service, found)).unwrap_or_default();
        let old = self.instances.remove(service).unwrap_or_default();
        delta.removed.extend(old.keys().filter(|key| !new.contains_key(key)).cloned());
        delta.upserts.extend(new.iter().filter(|(key, one)| old.get(key) != Some(*one)).map(|(_, one)| one.clone()));
        if !new.is_empty() {
            self.instances.insert(service.clone(), new);
        }
    }

    /// The instances of a Service. An endpoint may be in two slices for a moment, or have its ports in several: they are
    /// united.
    fn endpoints(&self, service: &Key, spec: &Service) -> BTreeMap<InstanceKey, Instance> {
        let mut found: BTreeMap<InstanceKey, Instance> = BTreeMap::new();
        let slices = || self.slices_of.get(service).into_iter().flatten().filter_map(|key| self.slices.get(key));
        let family = spec.spec.ip_families.first().map_or("IPv4", String::as_str);
        let has_family = slices().any(|slice| slice.family == family);
        let other = if family == "IPv4" { "IPv6" } else { "IPv4" };
        let family = if has_family { family } else { other };
        for slice in slices().filter(|slice| slice.family == family && !slice.ports.is_empty()) {
            for endpoint in &slice.endpoints {
                let Some(instance) = self.instance(service, slice, endpoint) else { continue };
                let ports = &slice.ports;
                let kept = found.entry(instance.key()).or_insert(instance);
                kept.ports.extend(ports.iter().map(|(name, port)| (name.clone(), *port)));
            }
        }
        for instance in found.values_mut() {
            instance.port = instance.ports.values().next().copied().unwrap_or_default();
        }
        found
    }

    /// An endpoint as an instance; `None`: its pod is not known yet, or is another one by now. Without the pod neither
    /// identity nor TLS mode are known, and plaintext to a STRICT pod would fail.
    fn instance(&self, service: &Key, slice: &Slice, endpoint: &SliceEndpoint) -> Option<Instance> {
        let address = address(endpoint)?;
        let pod = match pod_of(endpoint) {
            Some(key) => {
                let uid = endpoint.target_ref.as_ref().map_or("", |target| target.uid.as_str());
                Some(self.pods.get(&key).filter(|pod| uid.is_empty() || pod.uid == uid)?)
            }
            None => None,
        };
        let name = endpoint.target_ref.as_ref().filter(|_| pod.is_some()).map(|target| target.name.clone());
        let ready = endpoint.conditions.ready.unwrap_or(true);
        let serving = endpoint.conditions.serving.unwrap_or(ready);
        let ending = endpoint.conditions.terminating.unwrap_or(false) && !ready;
        let deleting = pod.is_some_and(|pod| pod.deleting) && !self.publishes_not_ready(service);
        Some(Instance {
            namespace: service.0.clone(),
            // Names of nodes are the mesh's, those of pods their namespace's.
            node: name.map_or_else(|| address.to_string(), |name| node(&service.0, &name)),
            service_id: service.1.clone(),
            service: service.1.clone(),
            address,
            ports: slice.ports.clone(),
            origin: Origin::Kubernetes,
            labels: pod.map(|pod| pod.labels.clone()).unwrap_or_default(),
            health: if ready || ending && serving { Health::Healthy } else { Health::Unhealthy },
            draining: ending && serving || deleting,
            identity: pod.map(|pod| self.identity(&service.0, pod)).unwrap_or_default(),
            workload: pod.map(|pod| pod.workload.clone()).unwrap_or_default(),
            locality: self.locality(pod, endpoint),
            ..Instance::at(IpAddr::from([0, 0, 0, 0]))
        })
    }

    /// A pod with a sidecar.
    fn pod(&self, key: &Key) -> Option<weft_world::Pod> {
        let pod = self.pods.get(key)?;
        let identity = self.identity(&key.0, pod);
        let locality = self.locality(Some(pod), &SliceEndpoint::default());
        (!identity.is_empty()).then(|| weft_world::Pod { identity, labels: pod.labels.clone(), locality })
    }

    fn publishes_not_ready(&self, service: &Key) -> bool {
        self.services.get(service).is_some_and(|service| service.spec.publish_not_ready_addresses)
    }

    /// The SPIFFE ID of a pod's sidecar; empty: it has none. Pods on the node's network share its address, which
    /// identifies none of them.
    fn identity(&self, namespace: &str, pod: &Pod) -> String {
        let account = if pod.service_account.is_empty() { "default" } else { &pod.service_account };
        match pod.injected && !pod.host_network {
            true => format!("spiffe://{}/ns/{namespace}/sa/{account}", self.trust_domain),
            false => String::new(),
        }
    }

    fn locality(&self, pod: Option<&Pod>, endpoint: &SliceEndpoint) -> String {
        let node = endpoint.node_name.as_ref().or_else(|| pod.map(|pod| &pod.node));
        let of_node = || node.and_then(|node| self.nodes.get(node)).filter(|text| !text.is_empty()).cloned();
        let of_zone = || endpoint.zone.as_ref().map(|zone| format!("/{zone}"));
        pod.and_then(Pod::locality).or_else(of_node).or_else(of_zone).unwrap_or_default()
    }
}

/// The name of a pod's sidecar as a node of the mesh.
fn node(namespace: &str, pod: &str) -> String {
    format!("{pod}.{namespace}")
}

/// The pod behind an endpoint.
fn pod_of(endpoint: &SliceEndpoint) -> Option<Key> {
    let target = endpoint.target_ref.as_ref().filter(|target| target.kind == "Pod")?;
    Some((target.namespace.clone(), target.name.clone()))
}

/// Sets or removes a value; `false`: it is what it was.
fn replace<K: Ord + Clone, V: PartialEq>(map: &mut BTreeMap<K, V>, key: &K, value: Option<V>) -> bool {
    if map.get(key) == value.as_ref() {
        return false;
    }
    match value {
        Some(value) => drop(map.insert(key.clone(), value)),
        None => drop(map.remove(key)),
    }
    true
}

/// The document of a Service.
fn document((namespace, name): &Key, service: &Service) -> Document {
    let spec = &service.spec;
    let headless = spec.cluster_ip == "None";
    let alias = (spec.r#type == "ExternalName").then(|| spec.external_name.trim_end_matches('.').to_ascii_lowercase());
    let ports = spec.ports.iter().filter(|port| port.protocol.is_empty() || port.protocol == "TCP");
    let yaml = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": name, "namespace": namespace },
        "spec": {
            "clusterIP": spec.cluster_ip,
            "ports": spec.ports.iter().map(|port| json!({ "name": port.name, "port": port.port })).collect::<Vec<_>>(),
        },
    });
    Document {
        namespace: namespace.clone(),
        name: name.clone(),
        object: Object::Service(KubeService {
            export: Export::of_annotations(&service.annotations),
            ports: if alias.is_some() { Vec::new() } else { ports.map(port).collect() },
            // The endpoints are those of the slices.
            selector: BTreeMap::new(),
            cluster_ip: spec.cluster_ip.parse().ok(),
            headless,
            alias: alias.filter(|alias| !alias.is_empty()),
            is_of_cluster: true,
            publishes_not_ready: spec.publish_not_ready_addresses,
        }),
        yaml: yaml.to_string(),
        file: format!("Service/{namespace}/{name}"),
        line: 0,
        created: service.created,
    }
}

fn port(port: &ServicePort) -> KubePort {
    let declared = match protocol::from_name(&port.app_protocol) {
        Protocol::Unknown => protocol::from_port_name(&port.name),
        known => known,
    };
    let protocol = match declared {
        Protocol::Unknown => protocol::of_well_known_port(port.port.into()),
        known => known,
    };
    // Slices have the port of each endpoint under the name of the Service's port.
    KubePort {
        number: port.port.into(),
        name: port.name.clone(),
        protocol,
        target: TargetPort::Name(port.name.clone()),
    }
}

#[cfg(test)]
mod tests;
