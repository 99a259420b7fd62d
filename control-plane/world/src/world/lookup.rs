//! Queries of the world: by kind and name, by service, by host, by address.

use std::{net::IpAddr, sync::Arc};

use super::{Host, Instance, InstanceKey, Keep, Origin, Pod, Policies, Scope, VirtualIps, World, fqdn, has_all};
use weft_policy::{Document, Kind, KubePort, MOST_ALIASES, Object, TargetPort};

impl World {
    /// Grows with every change.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Trust domain of the mesh.
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// All policies, by kind, namespace and name.
    pub fn documents(&self) -> impl Iterator<Item = &Arc<Document>> {
        self.documents.values()
    }

    /// One policy.
    pub fn document(&self, kind: Kind, namespace: &str, name: &str) -> Option<&Arc<Document>> {
        self.documents.get(&(kind, namespace.to_owned(), name.to_owned()))
    }

    pub(crate) fn policies(&self) -> &Policies {
        &self.policies
    }

    /// The Gateways, the oldest first.
    pub fn gateways(&self) -> &[Arc<Document>] {
        self.policies.gateways()
    }

    /// One instance.
    pub fn instance(&self, key: &InstanceKey) -> Option<&Arc<Instance>> {
        self.instances.get(key)
    }

    /// All instances of services.
    pub fn instances(&self) -> impl Iterator<Item = &Arc<Instance>> {
        self.registered().filter(|instance| instance.group.is_empty())
    }

    /// All registrations: instances of services, and sidecars that join by a WorkloadGroup.
    pub fn registered(&self) -> impl Iterator<Item = &Arc<Instance>> {
        self.instances.values()
    }

    /// Instances registered as `service` in `namespace`.
    pub fn service_instances<'a>(
        &'a self,
        namespace: &str,
        service: &str,
    ) -> impl Iterator<Item = &'a Arc<Instance>> + use<'a> {
        self.members_of(&fqdn(service, namespace))
    }

    /// Instances registered under `host`.
    pub fn members_of<'a>(&'a self, host: &str) -> impl Iterator<Item = &'a Arc<Instance>> + use<'a> {
        self.members.get(host).into_iter().flatten().filter_map(|key| self.instances.get(key))
    }

    /// Whether instances here or another data centre offer `host` (canonical), whatever documents define.
    pub fn offers(&self, host: &str) -> bool {
        self.members_of(host).next().is_some() || self.is_imported(host)
    }

    /// Instances that are endpoints of `host`: registered under it, or selected by its Kubernetes Service.
    pub fn endpoints_of<'a>(&'a self, host: &'a Host) -> impl Iterator<Item = &'a Arc<Instance>> {
        let selector = match host.service.as_ref().map(|document| &document.object) {
            Some(Object::Service(service)) if !service.selector.is_empty() => Some(&service.selector),
            _ => None,
        };
        let picked = move |instance: &&'a Arc<Instance>, selector| {
            instance.namespace == host.namespace && has_all(&instance.labels, selector) && instance.host() != host.name
        };
        let selected = selector
            .into_iter()
            .flat_map(move |selector| self.instances().filter(move |instance| picked(instance, selector)));
        let registered = host.registered.then(|| self.members_of(&host.name));
        registered.into_iter().flatten().chain(selected)
    }

    /// The registrations of the sidecar `node` of a namespace.
    pub fn instances_of_node<'a>(
        &'a self,
        namespace: &'a str,
        node: &'a str,
    ) -> impl Iterator<Item = &'a Arc<Instance>> {
        let first = InstanceKey { namespace: namespace.to_owned(), node: node.to_owned(), service_id: String::new() };
        let of_node = move |(key, _): &(&InstanceKey, _)| key.namespace == namespace && key.node == node;
        self.instances.range(first..).take_while(of_node).map(|(_, instance)| instance)
    }

    /// Those of them that are registrations.
    pub fn registered_of_node<'a>(
        &'a self,
        namespace: &'a str,
        node: &'a str,
    ) -> impl Iterator<Item = &'a Arc<Instance>> {
        self.instances_of_node(namespace, node).filter(|instance| instance.origin == Origin::Registry)
    }

    /// Whether a service is one of a Kubernetes cluster, whose endpoints are its pods.
    pub fn is_of_cluster(&self, host: &str) -> bool {
        self.host(host).and_then(Host::kube).is_some_and(|service| service.is_of_cluster)
    }

    /// The pod of a sidecar: it is named as its node, and has its identity.
    pub fn pod(&self, namespace: &str, node: &str, identity: &str) -> Option<&Pod> {
        let pod = self.pods.get(&(namespace.to_owned(), node.to_owned()));
        pod.filter(|pod| pod.identity == identity)
    }

    /// Instances at an address, whatever the port.
    pub fn at_address(&self, address: IpAddr) -> impl Iterator<Item = &Arc<Instance>> {
        self.addresses.get(&address).into_iter().flatten().filter_map(|key| self.instances.get(key))
    }

    /// Revision of the last change of a service's instances (Consul's index): it never decreases, not even when the
    /// service is removed.
    pub fn service_index(&self, namespace: &str, service: &str) -> u64 {
        self.service_indexes.get(&fqdn(service, namespace)).copied().unwrap_or(self.pruned_index)
    }

    /// Revision of the last change of any instance.
    pub fn catalog_index(&self) -> u64 {
        self.catalog_index
    }

    /// Revision of the last change of any node, or of any instance.
    pub fn nodes_index(&self) -> u64 {
        self.nodes_index.max(self.catalog_index)
    }

    /// A host by its canonical name: its service's definition, else that of the oldest ServiceEntry; see
    /// [`World::definition`].
    pub fn host(&self, host: &str) -> Option<&Host> {
        self.hosts.get(host)
    }

    /// A host by its canonical name, or the longest wildcard that covers it and is offered: a wildcard that only a
    /// VirtualService names leads nowhere by itself.
    pub fn host_or_wildcard(&self, host: &str) -> Option<&Host> {
        let found = self.policies.patterns(host).filter_map(|pattern| self.hosts.get(&pattern));
        found.into_iter().find(|found| !found.name.starts_with('*') || found.is_offered(self))
    }

    /// Whether a wildcard that only a VirtualService names is a host for a client: as in Istio it is one if it covers
    /// no host that is offered to the client, else it applies to the covered hosts.
    pub(crate) fn is_routed_wildcard(&self, client: &Scope, host: &Host) -> bool {
        let covers = |other: &&String| **other != host.name && weft_policy::covers(&host.name, other);
        let offered =
            |other: &String| self.definition(client, other).is_some_and(|other| other.live && other.is_offered(self));
        !self.hosts.keys().filter(covers).any(offered)
    }

    /// All hosts.
    pub fn hosts(&self) -> impl Iterator<Item = &Host> {
        self.hosts.values()
    }

    /// The host that owns a virtual IP or declares the address, of those that a client sees.
    pub fn host_of_address(&self, client: &Scope, address: IpAddr, port: Option<u16>) -> Option<&Host> {
        let seen = |host: &&Host| self.sees(client, host, port.map(u32::from));
        if let IpAddr::V4(v4) = address
            && let Some(host) = self.virtual_ips.host(v4)
        {
            return self.definition(client, host).filter(seen);
        }
        // Only if the client has the definition that declares it.
        let declared =
            self.policies.hosts_covering(address).into_iter().filter_map(|(host, namespace)| {
                self.definition(client, host).filter(|host| host.namespace == namespace)
            });
        let declared: Vec<&Host> = declared.filter(seen).collect();
        let serves = |host: &&&Host| port.is_none_or(|port| has_port(host, port));
        declared.iter().find(serves).or(declared.first()).copied()
    }

    /// The host of which `host` is an alias for a client, if it is a Service of type ExternalName: the end of the chain
    /// of aliases, even if no host in the mesh has its name. `None`: the chain has more than [`MOST_ALIASES`] steps, or
    /// is a loop.
    pub(crate) fn behind<'a>(&'a self, client: &Scope, host: &'a Host) -> Option<&'a Host> {
        let mut at = host;
        for _ in 0..=MOST_ALIASES {
            let Some(target) = at.alias() else { return Some(at) };
            // A host that the client does not see is still a host: its name does not lead out of the mesh.
            match self.definition(client, target).or_else(|| self.hosts.get(target)) {
                Some(next) => at = next,
                None => return Some(at),
            }
        }
        None
    }

    /// Headless services that `instance` is an endpoint of: those that select it, and the one that it registered as.
    pub(super) fn headless_hosts<'a>(&'a self, instance: &'a Instance) -> impl Iterator<Item = &'a Host> {
        let selecting = self.policies.selecting(&instance.namespace, &instance.labels).map(str::to_owned);
        let hosts = selecting.chain([instance.host()]).filter(|_| instance.group.is_empty());
        hosts.filter_map(|host| self.hosts.get(&host)).filter(|host| host.is_headless())
    }

    /// The headless services of which `address:port` is an endpoint, by its own port or by the service's.
    pub(crate) fn headless_of_endpoint(&self, address: IpAddr, port: u16) -> impl Iterator<Item = &Host> {
        let of = move |instance: &'_ Arc<Instance>, host: &Host| {
            instance.port == port
                || host.kube().is_some_and(|service| {
                    let number = u32::from(port);
                    let has = |known: &KubePort| known.number == number || known.target == TargetPort::Number(number);
                    service.ports.iter().any(has)
                })
        };
        self.at_address(address)
            .flat_map(move |instance| self.headless_hosts(instance).filter(move |host| of(instance, host)))
    }

    /// The host of which `address:port` is an endpoint to a client; of several, the one that registered first.
    pub fn host_of_endpoint(&self, client: &Scope, address: IpAddr, port: u16) -> Option<&Host> {
        let oldest = self
            .at_address(address)
            .filter(|instance| instance.port == port)
            .min_by_key(|instance| instance.create_index);
        let of = |instance: &Arc<Instance>| {
            let own = self.hosts.get(&instance.host())?;
            self.definition(client, &own.name).filter(|host| host.namespace == own.namespace)
        };
        oldest.and_then(of).or_else(|| {
            let joined = self.at_address(address).filter(|instance| !instance.group.is_empty());
            let joined = joined.flat_map(|instance| self.hosts_of(instance));
            let hosts = self.policies.hosts_at(address).cloned().chain(joined);
            hosts
                .filter_map(|host| self.definition(client, &host))
                .find(|host| super::ports::entry_dials(self, host, address, port))
        })
    }

    /// As [`World::owner`], of an address as text; a name has none.
    pub(crate) fn owner_of(&self, address: &str) -> &str {
        address.parse().map(|address| self.owner(address)).unwrap_or_default()
    }

    /// SPIFFE ID of the sidecar that owns `address`; empty: none. A sidecar that is not a member of its WorkloadGroup
    /// owns nothing.
    pub fn owner(&self, address: IpAddr) -> &str {
        self.at_address(address)
            .filter(|instance| instance.group.is_empty() || self.joined(instance).is_some())
            .map(|instance| instance.identity.as_str())
            .find(|id| !id.is_empty())
            .unwrap_or_default()
    }

    /// Virtual IPs of a host: its own, and those that its documents declare.
    pub fn addresses_of(&self, host: &Host) -> Vec<IpAddr> {
        let mut addresses = Vec::new();
        if host.is_headless() || host.alias().is_some() {
            return addresses;
        }
        let kept = host.virtual_ip.then(|| self.virtual_ips.of(&host.name)).flatten();
        let declared = host.entries().flat_map(|entry| &entry.addresses);
        addresses.extend(declared.filter(|range| range.is_single()).map(|range| range.address));
        if let Some(Object::Service(service)) = host.service.as_ref().map(|document| &document.object) {
            addresses.extend(service.cluster_ip);
        }
        kept.map(IpAddr::V4).into_iter().chain(addresses).collect()
    }

    /// The virtual IPs, for the store.
    pub fn virtual_ips(&self) -> &VirtualIps {
        &self.virtual_ips
    }

    /// Virtual IPs that changed since the last call, for the store; see [`VirtualIps::take_changed`].
    pub fn take_changed_virtual_ips(&mut self) -> Vec<Keep> {
        self.virtual_ips.take_changed()
    }

    /// Returns virtual IPs that could not be stored: they count as changed again.
    pub fn put_back_virtual_ips(&mut self, all: impl IntoIterator<Item = Keep>) {
        self.virtual_ips.put_back(all);
    }
}

fn has_port(host: &Host, port: u16) -> bool {
    let of_service = match host.service.as_ref().map(|document| &document.object) {
        Some(Object::Service(service)) => &service.ports[..],
        _ => &[],
    };
    let of_entries = host.entries().flat_map(|entry| &entry.ports).map(|port| port.number);
    of_service.iter().map(|port| port.number).chain(of_entries).any(|number| number == u32::from(port))
}
