//! The state of the control plane in memory: policies, instances, and the indexes between them.
//!
//! Pure: no clock, no store, no socket. One writer applies changes, and [`Changed`] names the hosts to translate again.
//! Time is an argument (Unix seconds).

mod assumptions;
mod definition;
mod groups;
mod instance;
mod lookup;
mod policies;
pub(crate) mod ports;
mod remotes;
mod replace;
mod scope;
mod virtual_ip;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

pub(crate) use groups::Workload;
pub use groups::{Member, Membership};
pub use instance::{Instance, InstanceKey, Origin, Pod, derive_labels};
pub use policies::has_all;
pub(crate) use policies::{GATEWAY, Policies, gateway_host, listener_host};
pub use remotes::{DEFAULT_DATACENTER, Peering, Presence, RemoteHost, sound};
pub use scope::Scope;
pub use virtual_ip::{Allocation, Keep, QUARANTINE_S, VirtualIps};

use replace::differ;

use weft_policy::{
    Document, Export, Kind, KubeService, MESH_SUFFIX, Object, ServiceEntry, canonical, fqdn, mesh_config,
};

/// The effects of a change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// Canonical hosts whose `Service`, `Endpoints` or instances' `Inbound` may differ now.
    pub hosts: BTreeSet<String>,
    /// Everything may differ.
    pub all: bool,
    /// Any name may resolve otherwise than before.
    pub names: bool,
    /// Hosts that were added or removed, and their aliases: names that begin with the same label may resolve otherwise.
    pub renamed: BTreeSet<String>,
    /// Addresses at which an endpoint or a virtual IP was added or removed: names that are one of them, with a port or
    /// without, may resolve otherwise.
    pub addresses: BTreeSet<IpAddr>,
    /// Nodes whose instances were added, removed or changed.
    pub nodes: BTreeSet<String>,
}

impl Changed {
    /// Adds the effects of another change.
    pub fn merge(&mut self, other: &Changed) {
        self.all |= other.all;
        self.names |= other.names;
        self.renamed.extend(other.renamed.iter().cloned());
        self.hosts.extend(other.hosts.iter().cloned());
        self.addresses.extend(&other.addresses);
        self.nodes.extend(other.nodes.iter().cloned());
    }
}

/// A host of the mesh, as one namespace defines it.
#[derive(Clone, Debug)]
pub struct Host {
    /// Canonical name.
    pub name: String,
    /// Namespace of the service or document.
    pub namespace: String,
    /// Kubernetes Service that names its ports.
    pub service: Option<Arc<Document>>,
    /// ServiceEntry that defines it.
    pub entry: Option<Arc<Document>>,
    /// Further entries of its namespace, older first, whose ports it has too.
    pub more_entries: Vec<Arc<Document>>,
    /// The namespaces whose clients see it. A host that only a ServiceEntry defines is seen where that is.
    pub export: Export,
    /// Whether instances are, or were within the last day, registered under it.
    pub registered: bool,
    /// False once the last instance left and no document names the host: callers still get 503 rather than "no such
    /// host" for as long as its virtual IP is kept, but a live host of the same short name takes precedence.
    pub live: bool,
    /// Whether its clients reach it by the virtual IP of its name.
    pub virtual_ip: bool,
}

impl Host {
    /// Its ServiceEntries, the oldest first.
    pub fn entries(&self) -> impl Iterator<Item = &ServiceEntry> {
        let documents = self.entry.iter().chain(&self.more_entries);
        documents.filter_map(|document| match &document.object {
            Object::ServiceEntry(entry) => Some(entry),
            _ => None,
        })
    }

    /// The Kubernetes Service of the host.
    pub(crate) fn kube(&self) -> Option<&KubeService> {
        match &self.service.as_ref()?.object {
            Object::Service(service) => Some(service),
            _ => None,
        }
    }

    /// Whether it has no virtual IP: clients choose an endpoint and connect to it.
    pub(crate) fn is_headless(&self) -> bool {
        self.kube().is_some_and(|service| service.headless)
    }

    /// The host of which it is an alias (`type: ExternalName`); see [`World::behind`].
    pub(crate) fn alias(&self) -> Option<&str> {
        self.kube()?.alias.as_deref()
    }

    /// Whether it is offered by a document, registered instances or another data centre. Otherwise only a
    /// VirtualService names it.
    pub(crate) fn is_offered(&self, world: &World) -> bool {
        self.service.is_some() || self.entry.is_some() || self.registered || world.is_imported(&self.name)
    }

    /// Whether clients of a namespace see it.
    pub fn reaches(&self, client_ns: &str) -> bool {
        self.export.reaches(&self.namespace, client_ns)
    }
}

/// The state.
#[derive(Clone, Debug, Default)]
pub struct World {
    trust_domain: String,
    version: u64,
    documents: BTreeMap<(Kind, String, String), Arc<Document>>,
    /// The same with delegates joined: the documents that policies are made of.
    joined: BTreeMap<(Kind, String, String), Arc<Document>>,
    policies: Policies,
    instances: BTreeMap<InstanceKey, Arc<Instance>>,
    /// By namespace and name.
    pods: BTreeMap<(String, String), Pod>,
    /// The members of WorkloadGroups.
    groups: BTreeMap<InstanceKey, Member>,
    members: BTreeMap<String, BTreeSet<InstanceKey>>,
    addresses: BTreeMap<IpAddr, BTreeSet<InstanceKey>>,
    /// By name: the service's definition, else that of the oldest ServiceEntry.
    hosts: BTreeMap<String, Host>,
    /// By name: the definitions of the same hosts by ServiceEntries of further namespaces, the oldest first.
    others: BTreeMap<String, Vec<Host>>,
    virtual_ips: VirtualIps,
    /// Index of the current change: the store's revision, and the number of changes from elsewhere.
    revision: u64,
    /// Changes that are in no store; see [`World::at_next_index`].
    unstored: u64,
    service_indexes: BTreeMap<String, u64>,
    /// Services whose index has grown since the last call of [`World::take_changed_services`].
    touched: BTreeSet<String>,
    /// Index of every service without one of its own: never below an index that was reported for it before.
    pruned_index: u64,
    catalog_index: u64,
    nodes_index: u64,
    remotes: remotes::Remotes,
}

impl World {
    /// An empty world. `trust_domain` is that of the identities of WorkloadEntries. `revision` is that of the store at
    /// the start: no index is below it, so that the indexes that clients hold stay valid over a restart.
    pub fn new(trust_domain: &str, revision: u64) -> Self {
        let revision = revision.max(1);
        Self {
            trust_domain: trust_domain.to_owned(),
            version: 1,
            revision,
            pruned_index: revision,
            catalog_index: revision,
            ..Self::default()
        }
    }

    /// Sets the revision of the store for the following changes: it is Consul's index.
    pub fn at_revision(&mut self, revision: u64) {
        self.revision = self.revision.max(revision + self.unstored);
    }

    /// Advances the index for changes that are in no store: those of a Kubernetes cluster. A restart begins without them, and
    /// the index is smaller then: a blocking query with another index than the current one is answered at once.
    pub fn at_next_index(&mut self) {
        self.unstored += 1;
        self.revision += 1;
    }

    /// Adopts the holder of a virtual IP in the store at revision `modified`; `None`: the address is free.
    pub fn adopt_virtual_ip(&mut self, address: Ipv4Addr, kept: Option<(String, Allocation)>) -> Changed {
        let before = kept.as_ref().and_then(|(host, _)| self.virtual_ips.of(host));
        let hosts = self.virtual_ips.adopt(address, kept);
        let mut changed = Changed::default();
        if hosts.is_empty() {
            return changed;
        }
        self.version += 1;
        let now = hosts.iter().filter_map(|host| self.virtual_ips.of(host));
        changed.addresses = now.chain(before).chain([address]).map(IpAddr::V4).collect();
        hosts.iter().for_each(|host| self.rename(host, &mut changed));
        changed.hosts = hosts.into_iter().collect();
        changed
    }

    /// Marks a change of a node's data that are returned with its instances: a check of the node.
    pub fn touch_node(&mut self, namespace: &str, node: &str) {
        let of_services = self.instances_of_node(namespace, node).filter(|i| i.group.is_empty());
        let hosts: Vec<String> = of_services.map(|i| i.host()).collect();
        for host in hosts {
            self.touch_service(host);
        }
    }

    /// Marks a node as added, removed or changed.
    pub fn touch_nodes(&mut self) {
        self.nodes_index = self.revision;
    }

    /// Services whose index has grown since the last call, by canonical name.
    pub fn take_changed_services(&mut self) -> BTreeSet<String> {
        std::mem::take(&mut self.touched)
    }

    fn touch_service(&mut self, host: String) {
        self.service_indexes.insert(host.clone(), self.revision);
        self.catalog_index = self.revision;
        self.touched.insert(host);
    }

    /// Replaces all policies by `documents`. Of two with one kind, namespace and name the first stays. Documents that
    /// are the same (`Arc`) as before cost next to nothing.
    pub fn set_policies(&mut self, documents: Vec<Arc<Document>>, now: u64) -> Changed {
        match self.replace_policies(&documents, now) {
            Some(changed) => changed,
            None => self.rebuild_policies(documents, now),
        }
    }

    fn rebuild_policies(&mut self, documents: Vec<Arc<Document>>, now: u64) -> Changed {
        let mut new = BTreeMap::new();
        for document in documents {
            new.entry(document.key()).or_insert(document);
        }
        let of_all = weft_policy::join(exported(&new));
        let joined: BTreeMap<_, _> = of_all.into_iter().map(|document| (document.key(), document)).collect();
        let differs = |document: &Arc<Document>, other: &BTreeMap<_, Arc<Document>>| {
            other.get(&document.key()).is_none_or(|other| differ(other, document))
        };
        let removed: Vec<_> = self.joined.values().filter(|document| differs(document, &joined)).cloned().collect();
        let came: Vec<_> = joined.values().filter(|document| differs(document, &self.joined)).cloned().collect();
        (self.documents, self.joined) = (new, joined);
        let mut changed = Changed::default();
        if removed.is_empty() && came.is_empty() {
            return changed;
        }
        self.version += 1;
        removed.iter().for_each(|document| self.touch(document, &mut changed));
        self.policies = Policies::new(self.joined.values());
        self.look_at_members(&mut changed);
        let known: BTreeSet<String> = self.hosts.keys().chain(self.policies.hosts()).cloned().collect();
        for host in known {
            self.refresh_named(&host, now, &mut changed);
        }
        removed.iter().chain(&came).for_each(|document| self.touch(document, &mut changed));
        // The addresses of hosts are names too.
        let routes_tell = self.policies.has_sidecars();
        let addressed = |document: &Arc<Document>| match document.kind() {
            Kind::ServiceEntry | Kind::WorkloadEntry | Kind::Service => true,
            // Clients that import a host also see its routes' destinations and the other hosts of its routes.
            Kind::VirtualService => routes_tell,
            _ => false,
        };
        changed.names |= removed.iter().chain(&came).any(addressed);
        self.release_unknown(now);
        self.settle(changed, now)
    }

    /// Adds or replaces an instance.
    pub fn upsert(&mut self, instance: Instance, now: u64) -> Changed {
        let key = instance.key();
        let old = self.instances.get(&key).cloned();
        if old.as_deref() == Some(&instance) {
            return Changed::default();
        }
        self.version += 1;
        if let Some(old) = &old {
            self.unlink(&key, old);
        }
        if instance.group.is_empty() {
            self.members.entry(instance.host()).or_default().insert(key.clone());
        }
        self.addresses.entry(instance.address).or_default().insert(key.clone());
        let place = |instance: &Instance| (instance.address, instance.port, instance.host());
        let moved = old.as_deref().map(place) != Some(place(&instance));
        let instance = Arc::new(instance);
        self.instances.insert(key.clone(), instance.clone());
        self.instance_changed(&key, old.as_deref().into_iter().chain([&*instance]), moved, now)
    }

    /// Removes an instance.
    pub fn remove(&mut self, key: &InstanceKey, now: u64) -> Changed {
        let Some(old) = self.instances.remove(key) else { return Changed::default() };
        self.version += 1;
        self.unlink(key, &old);
        self.instance_changed(key, [&*old].into_iter(), true, now)
    }

    /// Sets or removes a pod.
    pub fn set_pod(&mut self, namespace: &str, name: &str, pod: Option<Pod>) -> Changed {
        let key = (namespace.to_owned(), name.to_owned());
        if self.pods.get(&key) == pod.as_ref() {
            return Changed::default();
        }
        match pod {
            Some(pod) => self.pods.insert(key, pod),
            None => self.pods.remove(&key),
        };
        self.version += 1;
        Changed { nodes: [name.to_owned()].into(), ..Changed::default() }
    }

    fn unlink(&mut self, key: &InstanceKey, old: &Instance) {
        remove_from(&mut self.members, &old.host(), key);
        remove_from(&mut self.addresses, &old.address, key);
    }

    /// `moved`: an endpoint was added to or removed from the addresses of `versions`.
    fn instance_changed<'a>(
        &mut self,
        key: &InstanceKey,
        versions: impl Iterator<Item = &'a Instance>,
        moved: bool,
        now: u64,
    ) -> Changed {
        let mut changed = Changed { nodes: [key.node.clone()].into(), ..Changed::default() };
        self.look_at_member(key, &mut changed);
        for instance in versions {
            // Names of a headless service's endpoints change with them.
            if moved {
                self.headless_hosts(instance).for_each(|host| self.rename(&host.name, &mut changed));
            }
            changed.hosts.extend(self.policies.hosts_at(instance.address).cloned());
            changed.addresses.extend(moved.then_some(instance.address));
            if !instance.group.is_empty() {
                continue;
            }
            let host = instance.host();
            self.touch_service(host.clone());
            self.refresh_named(&host, now, &mut changed);
            changed.hosts.insert(host);
            changed.hosts.extend(self.policies.selecting(&instance.namespace, &instance.labels).map(str::to_owned));
        }
        self.settle(changed, now)
    }

    /// Adds the hosts that `document` applies to to `changed`.
    fn touch(&self, document: &Document, changed: &mut Changed) {
        // A pattern causes everything to be translated anew, see [`World::settle`].
        let mut pattern = |pattern: String| {
            changed.hosts.insert(pattern);
        };
        match &document.object {
            Object::DestinationRule(rule) => pattern(canonical(&rule.host, &document.namespace)),
            Object::VirtualService(service) => {
                if service.of_mesh() {
                    service.hosts.iter().for_each(|host| pattern(canonical(host, &document.namespace)));
                }
                changed.hosts.extend(policies::gateway_hosts(service, &document.namespace));
                // Gateways receive the list of hosts.
                changed.all |= service.of_gateways(&document.namespace).next().is_some();
            }
            route @ (Object::HTTPRoute(_) | Object::GRPCRoute(_) | Object::TLSRoute(_) | Object::TCPRoute(_)) => {
                changed.hosts.extend(policies::parent_hosts(route));
                // Gateways receive the list of hosts.
                changed.all |= route.parents().iter().any(|parent| parent.object.is_gateway());
            }
            Object::Gateway(_) => changed.all = true,
            Object::BackendTLSPolicy(policy) => changed.hosts.extend(policies::targets(policy)),
            // They decide which routes have which hosts at gateways.
            Object::KubernetesGateway(_)
            | Object::GatewayClass(_)
            | Object::Namespace(_)
            | Object::ReferenceGrant(_) => changed.all = true,
            Object::ServiceEntry(entry) => changed.hosts.extend(entry.hosts.iter().cloned()),
            Object::Service(_) | Object::ServiceExport(_) => {
                changed.hosts.insert(fqdn(&document.name, &document.namespace));
            }
            Object::WorkloadEntry(workload) => {
                let hosts = self.policies.hosts_selecting(&document.namespace, &workload.labels);
                changed.hosts.extend(hosts.into_iter().cloned());
            }
            Object::WorkloadGroup(_) => groups::mark_changed(&document.namespace, &document.name, changed),
            // They apply to some clients, or to all, for any host.
            Object::Sidecar(_) | Object::IstioOperator(_) => (changed.all, changed.names) = (true, true),
            // It also decides whether callers may use mTLS.
            Object::PeerAuthentication(_) => changed.all = true,
        }
    }

    /// Adds the hosts whose routes lead to a changed one: a `Service` holds the clusters of all its destinations.
    fn settle(&mut self, mut changed: Changed, now: u64) -> Changed {
        for host in self.virtual_ips.expire(now) {
            let Some(known) = self.hosts.get_mut(&host).filter(|known| !known.live) else { continue };
            // ServiceEntries of other namespaces may still define the host.
            known.registered = false;
            self.refresh(&host, now);
            if let Some(index) = self.service_indexes.remove(&host) {
                self.pruned_index = self.pruned_index.max(index);
            }
            changed.names = true;
            changed.hosts.insert(host);
        }
        let mut more = BTreeSet::new();
        let mut wild = BTreeSet::new();
        for host in &changed.hosts {
            // A route may name a host under a wildcard entry: rare enough to translate everything anew.
            changed.all |= host.starts_with('*');
            let aliases = self.policies.aliases_of(host);
            for dependent in aliases.iter().chain([host]).flat_map(|host| self.policies.dependents(host)) {
                if dependent.starts_with('*') {
                    wild.insert(dependent);
                }
                if dependent.starts_with(GATEWAY) && dependent.ends_with(':') {
                    // All hosts of a Gateway.
                    let all = self.hosts.range(dependent.clone()..).map(|(host, _)| host);
                    more.extend(all.take_while(|host| host.starts_with(dependent)).cloned());
                }
                more.insert(dependent.clone());
            }
        }
        if !wild.is_empty() {
            let covered = |known: &&String| self.policies.patterns(known).any(|pattern| wild.contains(&pattern));
            more.extend(self.hosts.keys().filter(covered).cloned());
        }
        changed.hosts.extend(more);
        changed
    }

    /// Virtual IPs restored for hosts that did not return are released after a day like all others.
    fn release_unknown(&mut self, now: u64) {
        let unknown: Vec<String> = self
            .virtual_ips
            .iter()
            .filter(|(host, _)| !self.hosts.contains_key(*host))
            .map(|(h, _)| h.to_owned())
            .collect();
        unknown.iter().for_each(|host| self.virtual_ips.release(host, now));
    }
}

/// All documents, with the mesh's `exportTo` in those without one.
fn exported(documents: &BTreeMap<(Kind, String, String), Arc<Document>>) -> Vec<Arc<Document>> {
    let config = mesh_config::in_force(documents.values().map(|document| &**document)).map(|(_, config)| config);
    let one = |document: &Arc<Document>| {
        config.and_then(|config| config.export(document)).map_or_else(|| document.clone(), Arc::new)
    };
    documents.values().map(one).collect()
}

fn remove_from<K: Ord>(index: &mut BTreeMap<K, BTreeSet<InstanceKey>>, at: &K, key: &InstanceKey) {
    if let Some(keys) = index.get_mut(at) {
        keys.remove(key);
        if keys.is_empty() {
            index.remove(at);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
