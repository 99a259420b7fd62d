//! Policies by the objects that they apply to, read on every translation. Rules and routes are replaced one by one; any
//! other change, which is rare, rebuilds the whole.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use weft_core::names;

mod gateway_api;
mod replace;

pub(super) use replace::is_replaceable;
use replace::{age, insert, mesh_hosts};

pub(crate) use gateway_api::{GatewayApi, listener_host};
pub(super) use gateway_api::{parent_hosts, targets};

use super::{MESH_SUFFIX, Scope, fqdn};
use weft_policy::{
    Document, KubeService, MeshConfig, Object, PeerAuthentication, ServiceEntry, Sidecar, Subnet, VirtualService,
    WorkloadEntry, canonical, is_root, mesh_config,
};

/// The indexes. Every list is sorted by age: of two with the same claim, the first wins.
#[derive(Clone, Debug, Default)]
pub(crate) struct Policies {
    rules: BTreeMap<(String, String), Vec<Arc<Document>>>,
    /// By host; a client sees those that are exported to its namespace.
    routes: BTreeMap<String, Vec<Arc<Document>>>,
    gateways: Vec<Arc<Document>>,
    /// VirtualServices by the part of a gateway that they apply to, see [`gateway_host`]; their delegates are joined.
    gateway_routes: BTreeMap<String, Vec<Arc<Document>>>,
    /// The documents of Kubernetes' Gateway API.
    gateway_api: GatewayApi,
    /// By host, the oldest first: the oldest of each namespace, and those that join it.
    entries: BTreeMap<String, Vec<Arc<Document>>>,
    services: BTreeMap<String, Arc<Document>>,
    /// WorkloadEntries by namespace, and by each of their labels.
    workloads: BTreeMap<Labelled, Vec<Arc<Document>>>,
    /// ServiceEntries with a selector, by namespace and the first label that they select by.
    selecting_entries: BTreeMap<Labelled, Vec<Arc<Document>>>,
    authentications: Vec<Arc<Document>>,
    sidecars: Vec<Arc<Document>>,
    /// The settings of the whole mesh.
    mesh: Option<Arc<Document>>,
    /// Hosts that other data centres may call.
    exports: BTreeSet<String>,
    /// By destination: the hosts whose routes lead there, with the number of documents.
    dependents: BTreeMap<String, BTreeMap<String, usize>>,
    /// Services of type ExternalName, by the host of which they are an alias.
    aliases: BTreeMap<String, BTreeSet<String>>,
    /// Names of labels that documents select clients by, with the number of documents.
    client_labels: BTreeMap<String, usize>,
    /// ServiceEntries by the addresses of their endpoints.
    endpoints: BTreeMap<IpAddr, Vec<Arc<Document>>>,
    /// With the host and the namespace of the document that declares it.
    ranges: Vec<(Subnet, String, String)>,
    /// Number of documents for a wildcard within a label.
    partial: usize,
}

/// Namespace and, of a label, name and value.
type Labelled = (String, Option<(String, String)>);

fn labelled(namespace: &str, label: Option<(&String, &String)>) -> Labelled {
    (namespace.to_owned(), label.map(|(name, value)| (name.clone(), value.clone())))
}

impl Policies {
    pub(super) fn new<'a>(documents: impl Iterator<Item = &'a Arc<Document>>) -> Self {
        let mut sorted: Vec<&Arc<Document>> = documents.collect();
        sorted.sort_by(|a, b| age(a).cmp(&age(b)));
        let mut index = Self::default();
        for document in &sorted {
            index.add(document);
        }
        for document in sorted {
            if let Object::ServiceEntry(entry) = &document.object {
                index.add_endpoints(document, entry);
            }
        }
        index.gateway_api.find_hosts();
        index
    }

    fn add(&mut self, document: &Arc<Document>) {
        let namespace = &document.namespace;
        self.count(document, true);
        match &document.object {
            Object::DestinationRule(rule) => {
                let key = (namespace.clone(), canonical(&rule.host, namespace));
                insert(self.rules.entry(key).or_default(), document);
            }
            Object::VirtualService(service) => {
                for host in mesh_hosts(service, namespace) {
                    insert(self.routes.entry(host).or_default(), document);
                }
                for host in gateway_hosts(service, namespace) {
                    insert(self.gateway_routes.entry(host).or_default(), document);
                }
            }
            Object::Gateway(_) => self.gateways.push(document.clone()),
            Object::HTTPRoute(_)
            | Object::GRPCRoute(_)
            | Object::TLSRoute(_)
            | Object::TCPRoute(_)
            | Object::BackendTLSPolicy(_)
            | Object::KubernetesGateway(_)
            | Object::GatewayClass(_)
            | Object::Namespace(_)
            | Object::ReferenceGrant(_) => self.gateway_api.add(document),
            Object::ServiceEntry(entry) => {
                if let Some(selector) = &entry.workload_selector {
                    let key = labelled(namespace, selector.first_key_value());
                    self.selecting_entries.entry(key).or_default().push(document.clone());
                }
                for host in &entry.hosts {
                    self.ranges.extend(entry.addresses.iter().map(|range| (*range, host.clone(), namespace.clone())));
                    self.add_entry(host, document, entry);
                }
            }
            Object::Service(service) => self.add_service(document, service),
            Object::WorkloadEntry(workload) => {
                for label in workload.labels.iter().map(Some).chain([None]) {
                    self.workloads.entry(labelled(namespace, label)).or_default().push(document.clone());
                }
            }
            // Applied to the sidecars that join by it, see [`super::groups`].
            Object::WorkloadGroup(_) => {}
            Object::PeerAuthentication(_) => self.authentications.push(document.clone()),
            Object::Sidecar(_) => self.sidecars.push(document.clone()),
            Object::IstioOperator(_) => {
                if self.mesh.is_none() && mesh_config::of(document).is_some() {
                    self.mesh = Some(document.clone());
                }
            }
            Object::ServiceExport(_) => {
                self.exports.insert(fqdn(&document.name, namespace));
            }
        }
    }

    fn add_service(&mut self, document: &Arc<Document>, service: &KubeService) {
        let host = fqdn(&document.name, &document.namespace);
        if let Some(address) = service.cluster_ip {
            let prefix = if address.is_ipv4() { 32 } else { 128 };
            self.ranges.push((Subnet { address, prefix }, host.clone(), document.namespace.clone()));
        }
        if let Some(target) = &service.alias {
            self.aliases.entry(target.clone()).or_default().insert(host.clone());
        }
        self.services.insert(host, document.clone());
    }

    /// Of several ServiceEntries of a host in one namespace the oldest applies, and those that can join it.
    fn add_entry(&mut self, host: &str, document: &Arc<Document>, entry: &ServiceEntry) {
        let entries = self.entries.entry(host.to_owned()).or_default();
        let oldest = entries.iter().find(|first| first.namespace == document.namespace);
        let fits = match oldest.map(|first| (first, &first.object)) {
            Some((first, Object::ServiceEntry(older))) => first.name != document.name && older.joins(entry),
            _ => true,
        };
        if fits {
            entries.push(document.clone());
        }
    }

    fn add_endpoints(&mut self, document: &Arc<Document>, entry: &ServiceEntry) {
        let found: BTreeSet<IpAddr> = self
            .entry_endpoints(&document.namespace, entry)
            .filter_map(|(_, endpoint)| endpoint.address.parse().ok())
            .collect();
        for address in found {
            self.endpoints.entry(address).or_default().push(document.clone());
        }
    }

    /// The hosts and patterns whose documents may apply to `host`, the most specific first; see [`names::patterns`].
    pub(crate) fn patterns<'h>(&self, host: &'h str) -> impl Iterator<Item = String> + use<'h> {
        names::patterns(host, self.partial > 0)
    }

    /// Whether some document selects clients by this label.
    pub(super) fn selects_clients_by(&self, label: &str) -> bool {
        self.client_labels.contains_key(label)
    }

    /// DestinationRules of `namespace` for exactly the most specific pattern that covers `host`, of those that a client
    /// sees: those that select it, else those without a selector; the oldest of them, and those with the same audience.
    /// A namespace always sees its own; selectors select clients of the rule's own namespace.
    pub(crate) fn rules(&self, namespace: &str, client: &Scope, host: &str) -> Vec<&Arc<Document>> {
        let own = namespace == client.namespace;
        let seen = |document: &&Arc<Document>| match &document.object {
            Object::DestinationRule(rule) if !rule.selector.is_empty() => {
                own && has_all(&client.labels, &rule.selector)
            }
            _ => own || document.reaches(&client.namespace),
        };
        let to = |document: &Document| match &document.object {
            Object::DestinationRule(rule) => (rule.export.clone(), rule.selector.clone()),
            _ => Default::default(),
        };
        let of = |pattern: String| {
            let all = self.rules.get(&(namespace.to_owned(), pattern))?;
            let first = all.iter().filter(seen).min_by_key(|document| to(document).1.is_empty())?;
            Some(all.iter().filter(seen).filter(|document| to(document) == to(first)).collect())
        };
        self.patterns(host).find_map(of).unwrap_or_default()
    }

    /// The Sidecar of a workload: the oldest of its namespace that selects it, else the oldest there without a
    /// selector, else the oldest of the root namespace without a selector.
    pub(crate) fn sidecar(
        &self,
        namespace: &str,
        labels: &BTreeMap<String, String>,
    ) -> Option<(&Arc<Document>, &Sidecar)> {
        let all = self.sidecars.iter().filter_map(|document| match &document.object {
            Object::Sidecar(sidecar) => Some((document, &**sidecar)),
            _ => None,
        });
        let rank = |(document, sidecar): &(&Arc<Document>, &Sidecar)| {
            let (own, selects) = (document.namespace == namespace, !sidecar.selector.is_empty());
            match (own, selects) {
                (true, true) => has_all(labels, &sidecar.selector).then_some(0),
                (true, false) => Some(1),
                (false, false) => is_root(&document.namespace).then_some(2),
                (false, true) => None,
            }
        };
        all.filter_map(|one| Some((rank(&one)?, one))).min_by_key(|(rank, _)| *rank).map(|(_, one)| one)
    }

    /// The defaults of the mesh, and their document.
    pub(crate) fn mesh(&self) -> Option<(&Document, &MeshConfig)> {
        let document = self.mesh.as_deref()?;
        Some((document, mesh_config::of(document)?))
    }

    /// The VirtualService that owns `host` for a client: of those that it sees the oldest private one, else the oldest
    /// that names its namespace, else the oldest public one.
    pub(crate) fn routes(&self, client: &Scope, host: &str) -> Option<&Arc<Document>> {
        let client_ns = &client.namespace;
        let sidecar = self.sidecar(client_ns, &client.labels);
        // As in Istio, one imported host brings the whole VirtualService.
        let imported = |document: &Document| {
            sidecar.is_none_or(|(own, sidecar)| {
                sidecar.imports(&own.namespace, &document.namespace, host, None)
                    || sidecar.imports_routes(&own.namespace, document, None)
            })
        };
        let rank = |document: &&Arc<Document>| match document.object.export() {
            Some(export) if export.is_private() && document.namespace == *client_ns => 0,
            Some(export) if !export.is_public() => 1,
            _ => 2,
        };
        let of = |pattern: String| {
            let all = self.routes.get(&pattern)?.iter();
            all.filter(|document| document.reaches(client_ns) && imported(document)).min_by_key(rank)
        };
        self.patterns(host).find_map(of)
    }

    /// VirtualServices for calls within the mesh of exactly `host`.
    pub(super) fn routing(&self, host: &str) -> impl Iterator<Item = &Document> {
        self.routes.get(host).into_iter().flatten().map(|document| &**document)
    }

    /// Sidecars, the oldest first.
    pub(crate) fn sidecars(&self) -> &[Arc<Document>] {
        &self.sidecars
    }

    /// Whether a document restricts the hosts that a workload can reach.
    pub(super) fn has_sidecars(&self) -> bool {
        !self.sidecars.is_empty()
    }

    /// Hosts that other data centres may call.
    pub(crate) fn exports(&self) -> &BTreeSet<String> {
        &self.exports
    }

    /// The documents of Kubernetes' Gateway API.
    pub(crate) fn gateway_api(&self) -> &GatewayApi {
        &self.gateway_api
    }

    /// Gateways, oldest first.
    pub(crate) fn gateways(&self) -> &[Arc<Document>] {
        &self.gateways
    }

    /// VirtualServices for one host of a gateway, oldest first; see [`gateway_host`].
    pub(crate) fn gateway_routes(&self, host: &str) -> &[Arc<Document>] {
        self.gateway_routes.get(host).map(Vec::as_slice).unwrap_or_default()
    }

    /// The hosts of a gateway in VirtualServices: those that begin with `prefix`.
    pub(crate) fn gateway_hosts<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a str, &'a [Arc<Document>])> {
        let from = self.gateway_routes.range(prefix.to_owned()..);
        from.take_while(move |(host, _)| host.starts_with(prefix)).map(|(host, of)| (host.as_str(), of.as_slice()))
    }

    /// The ServiceEntries of exactly `host` in all namespaces, the oldest first.
    pub(crate) fn entries(&self, host: &str) -> &[Arc<Document>] {
        self.entries.get(host).map(Vec::as_slice).unwrap_or_default()
    }

    /// The Kubernetes Service of exactly `host`.
    pub(crate) fn service(&self, host: &str) -> Option<&Arc<Document>> {
        self.services.get(host)
    }

    /// Kubernetes Services of `namespace` whose selector picks `labels`, by host.
    pub(crate) fn selecting<'a>(
        &'a self,
        namespace: &'a str,
        labels: &'a BTreeMap<String, String>,
    ) -> impl Iterator<Item = &'a str> {
        self.services.iter().filter_map(move |(host, document)| match &document.object {
            Object::Service(service)
                if document.namespace == namespace
                    && !service.selector.is_empty()
                    && has_all(labels, &service.selector) =>
            {
                Some(host.as_str())
            }
            _ => None,
        })
    }

    /// Aliases of `host`, over any number of steps.
    pub(super) fn aliases_of(&self, host: &str) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        let mut open = vec![host.to_owned()];
        while let Some(next) = open.pop() {
            for alias in self.aliases.get(&next).into_iter().flatten() {
                if found.insert(alias.clone()) {
                    open.push(alias.clone());
                }
            }
        }
        found
    }

    /// A ServiceEntry's endpoints in documents: its own, or the WorkloadEntries of its namespace that it selects, with
    /// their names.
    pub(super) fn entry_endpoints<'a>(
        &'a self,
        namespace: &'a str,
        entry: &'a ServiceEntry,
    ) -> impl Iterator<Item = (&'a str, &'a WorkloadEntry)> {
        let selected = entry.workload_selector.as_ref().into_iter().flat_map(move |selector| {
            let with = |label| self.workloads.get(&labelled(namespace, label)).map_or(&[][..], Vec::as_slice);
            let fewest = selector.iter().map(|label| with(Some(label))).min_by_key(|with| with.len());
            let candidates = fewest.unwrap_or_else(|| with(None)).iter();
            candidates.filter_map(move |document| match &document.object {
                Object::WorkloadEntry(workload) if has_all(&workload.labels, selector) => {
                    Some((document.name.as_str(), workload))
                }
                _ => None,
            })
        });
        entry.endpoints.iter().map(|endpoint| ("", endpoint)).chain(selected)
    }

    /// Hosts of the ServiceEntries of `namespace` that select a WorkloadEntry with `labels`.
    pub(super) fn hosts_selecting(&self, namespace: &str, labels: &BTreeMap<String, String>) -> Vec<&String> {
        let by = labels.iter().map(Some).chain([None]);
        let entries =
            by.flat_map(|label| self.selecting_entries.get(&labelled(namespace, label)).into_iter().flatten());
        let hosts = entries.filter_map(|document| match &document.object {
            Object::ServiceEntry(entry) => {
                entry.workload_selector.as_ref().filter(|selector| has_all(labels, selector)).map(|_| &entry.hosts)
            }
            _ => None,
        });
        hosts.flatten().collect()
    }

    /// PeerAuthentications of `namespace`, oldest first.
    pub(crate) fn authentications<'a>(
        &'a self,
        namespace: &'a str,
    ) -> impl Iterator<Item = (&'a Document, &'a PeerAuthentication)> {
        self.authentications.iter().filter_map(move |document| match &document.object {
            Object::PeerAuthentication(policy) if document.namespace == namespace => Some((&**document, policy)),
            _ => None,
        })
    }

    /// Hosts with ServiceEntry endpoints at `address`.
    pub(super) fn hosts_at(&self, address: IpAddr) -> impl Iterator<Item = &String> {
        self.endpoints.get(&address).into_iter().flatten().flat_map(|document| match &document.object {
            Object::ServiceEntry(entry) => &entry.hosts[..],
            _ => &[],
        })
    }

    /// Hosts whose declared addresses cover `address`, with the namespace that declares it, the narrowest range first.
    pub(super) fn hosts_covering(&self, address: IpAddr) -> Vec<(&str, &str)> {
        let mut found: Vec<_> = self.ranges.iter().filter(|(range, ..)| range.contains(address)).collect();
        found.sort_by_key(|(range, ..)| std::cmp::Reverse(range.prefix));
        found.into_iter().map(|(_, host, namespace)| (host.as_str(), namespace.as_str())).collect()
    }

    /// Hosts (or patterns) of VirtualServices that send requests to `host`.
    pub(super) fn dependents(&self, host: &str) -> impl Iterator<Item = &String> {
        self.dependents.get(host).into_iter().flat_map(BTreeMap::keys)
    }

    /// Hosts that documents name: services, entries, and hosts that only a VirtualService has.
    pub(super) fn hosts(&self) -> impl Iterator<Item = &String> {
        let routed = self.routes.keys().filter(|host| is_routed(host));
        self.services
            .keys()
            .chain(self.entries.keys())
            .chain(routed)
            .chain(self.gateway_routes.keys())
            .chain(self.gateway_api.hosts())
    }

    /// Namespace of the VirtualService of exactly `host`.
    pub(super) fn routed(&self, host: &str) -> Option<&str> {
        let first = self.routes.get(host).filter(|_| is_routed(host)).and_then(|documents| documents.first());
        let document = first.or_else(|| self.gateway_routes(host).first());
        let namespace = || self.gateway_api.namespace_of_host(host);
        document.map(|document| document.namespace.as_str()).or_else(namespace)
    }
}

/// Whether a VirtualService alone defines the host that it names. Within the mesh a wildcard applies to existing
/// services only.
fn is_routed(host: &str) -> bool {
    !host.starts_with('*') || !host.ends_with(MESH_SUFFIX)
}

/// Prefix of hosts of gateways.
pub(crate) const GATEWAY: &str = "gateway:";

/// The key of a gateway's routes for one host: no valid host looks like it. `kind` is `http`, `tls` or `tcp`, `what` a
/// host as written, a server name, or a port.
pub(crate) fn gateway_host(namespace: &str, name: &str, kind: &str, what: &str) -> String {
    format!("{GATEWAY}{namespace}:{name}:{kind}:{what}")
}

/// The gateway hosts of a VirtualService in `namespace`.
pub(crate) fn gateway_hosts(service: &VirtualService, namespace: &str) -> Vec<String> {
    let of = |(ns, name): (&str, &str)| {
        let http = service.hosts.iter().filter(|_| !service.http.is_empty());
        let http = http.map(|host| gateway_host(ns, name, "http", &host.to_ascii_lowercase()));
        let tls = service.tls.iter().flat_map(|route| &route.matches).flat_map(|one| &one.server_names);
        let tls = tls.map(|server| gateway_host(ns, name, "tls", server));
        let tcp = service.tcp.iter().flat_map(|route| match &route.matches[..] {
            [] => vec![0],
            matches => matches.iter().map(|one| one.port.unwrap_or_default()).collect(),
        });
        let tcp = tcp.map(|port| gateway_host(ns, name, "tcp", &port.to_string()));
        http.chain(tls).chain(tcp).collect::<Vec<_>>()
    };
    service.of_gateways(namespace).flat_map(of).collect()
}

/// Whether `labels` contains all of `wanted`.
pub fn has_all(labels: &BTreeMap<String, String>, wanted: &BTreeMap<String, String>) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}
