//! Warnings that need both the documents and the registry: hosts that are not registered, subsets without instances,
//! ports that a route leaves open. Never errors: the missing part may register in the next minute.

mod gateway_api;
mod reachability;
mod sidecars;

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use weft_core::names;

use crate::world::ports;
use crate::world::{Host, Scope, World, has_all};
use weft_policy::MESH_SUFFIX;
use weft_policy::{
    Code, DestinationRule, Document, Finding, Kind, Object, Problem, ServiceEntry, VirtualService, canonical,
    destinations, placed,
};

/// Bound on the hosts that one text names.
const MOST: usize = 3;

/// Warnings about the policies of `world`, sorted by file and place. `complete`: all registrations are known, so that
/// an unknown host does not exist.
pub fn warnings(world: &World, complete: bool) -> Vec<Problem> {
    of_documents(world, complete, &|_| true)
}

/// The warnings about the documents that `picked` selects, once all registrations are known.
pub fn warnings_of(world: &World, picked: &dyn Fn(&Document) -> bool) -> Vec<Problem> {
    of_documents(world, true, picked)
}

fn of_documents(world: &World, complete: bool, picked: &dyn Fn(&Document) -> bool) -> Vec<Problem> {
    let view = View { world, complete, elsewhere: OnceCell::new() };
    let mut findings = workloads(world);
    findings.extend(sidecars::conflicts(world));
    findings.retain(|finding| picked(finding.document));
    for document in world.documents().filter(|document| picked(document)) {
        match &document.object {
            Object::DestinationRule(rule) => view.of_rule(document, rule, &mut findings),
            Object::VirtualService(service) => {
                of_gateways(world, document, service, &mut findings);
                view.of_routes(document, service, &mut findings);
                reachability::of_routes(world, document, service, &mut findings);
            }
            Object::HTTPRoute(_) | Object::GRPCRoute(_) | Object::TLSRoute(_) | Object::TCPRoute(_) => {
                gateway_api::of_route(world, complete, document, &mut findings)
            }
            Object::BackendTLSPolicy(_) => gateway_api::of_backend_tls(world, complete, document, &mut findings),
            Object::KubernetesGateway(_) => gateway_api::of_gateway(world, document, &mut findings),
            Object::ServiceExport(_) if complete => view.of_export(document, &mut findings),
            _ => {}
        }
    }
    placed(findings)
}

/// Live hosts of the mesh by their service's name.
pub(crate) struct Elsewhere<'a>(BTreeMap<&'a str, BTreeSet<&'a str>>);

impl<'a> Elsewhere<'a> {
    pub(crate) fn of(world: &'a World) -> Self {
        let mut hosts: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for host in world.hosts().filter(|host| host.live && host.name.ends_with(MESH_SUFFIX)) {
            let service = host.name.split('.').next().unwrap_or_default();
            hosts.entry(service).or_default().insert(&host.name);
        }
        Self(hosts)
    }

    /// Hosts of other namespaces that `name`, which stands for no existing host, may have meant.
    pub(crate) fn hint(&self, name: &str) -> Option<String> {
        let hosts = self.0.get(name.split('.').next()?)?;
        // A host that only routes name is live too.
        let others = hosts.iter().filter(|host| **host != name);
        let others: Vec<String> = others.take(MOST).map(|host| format!("`{host}`")).collect();
        (!others.is_empty()).then(|| others.join(" and "))
    }
}

/// A VirtualService for gateways that no document defines, or that do not accept its hosts.
fn of_gateways<'a>(world: &World, document: &'a Document, service: &VirtualService, findings: &mut Vec<Finding<'a>>) {
    let of_gateways = service.gateways.iter().enumerate().filter(|(_, gateway)| *gateway != weft_policy::MESH);
    for (n, gateway) in of_gateways {
        let (namespace, name) = gateway.split_once('/').unwrap_or((&document.namespace, gateway));
        let Some(Object::Gateway(gateway)) =
            world.document(Kind::Gateway, namespace, name).map(|findings| &findings.object)
        else {
            let text =
                format!("gateway `{namespace}/{name}` does not exist: it serves no route of this VirtualService");
            findings.push(Finding::warning(document, format!("gateways[{n}]"), Code::UnknownGateway, text));
            continue;
        };
        let own = gateway.servers.iter().flat_map(|server| &server.hosts);
        let own: HashSet<&str> = own.map(|(_, host)| host.as_str()).collect();
        let any_within = |host: &str| own.iter().any(|own| names::is_within(own, host));
        for (m, host) in service.hosts.iter().enumerate() {
            let within = names::patterns(host, true).any(|pattern| own.contains(pattern.as_str()));
            if !(within || host.starts_with('*') && any_within(host)) {
                let text = format!(
                    "gateway `{namespace}/{name}` has no server for `{host}`: it serves no route of this VirtualService"
                );
                findings.push(Finding::warning(document, format!("hosts[{m}]"), Code::HostNotInGateway, text));
            }
        }
    }
}

/// ServiceEntries that select no WorkloadEntry, and WorkloadEntries that none selects.
fn workloads(world: &World) -> Vec<Finding<'_>> {
    let mut findings = Vec::new();
    let mut used: HashSet<(&str, &str)> = HashSet::new();
    for document in world.documents() {
        let Object::ServiceEntry(entry) = &document.object else { continue };
        if entry.workload_selector.is_none() {
            continue;
        }
        let picked: Vec<&str> = world.workloads(&document.namespace, entry).map(|workload| workload.name).collect();
        if picked.is_empty() && !is_awaited(world, document, entry) {
            let text = "no WorkloadEntry of its namespace has these labels: it has no endpoint";
            findings.push(Finding::warning(document, "workloadSelector", Code::NoWorkload, text));
        }
        used.extend(picked.into_iter().map(|name| (document.namespace.as_str(), name)));
    }
    for document in world.documents().filter(|document| document.kind() == Kind::WorkloadEntry) {
        if !used.contains(&(document.namespace.as_str(), document.name.as_str())) {
            let text = "no ServiceEntry of its namespace selects it: it is not an endpoint of any host";
            findings.push(Finding::warning(document, "labels", Code::NoWorkload, text));
        }
    }
    findings
}

/// Whether sidecars that join a WorkloadGroup will be endpoints of a ServiceEntry.
fn is_awaited(world: &World, document: &Document, entry: &ServiceEntry) -> bool {
    let labels = world.documents().filter_map(|other| match &other.object {
        Object::WorkloadGroup(group) if other.namespace == document.namespace => Some(&group.template.labels),
        _ => None,
    });
    let selector = entry.workload_selector.as_ref();
    selector.is_some_and(|selector| labels.into_iter().any(|labels| has_all(labels, selector)))
}

struct View<'a> {
    world: &'a World,
    complete: bool,
    elsewhere: OnceCell<Elsewhere<'a>>,
}

impl<'a> View<'a> {
    /// See [`Elsewhere::hint`].
    fn hint(&self, name: &str) -> Option<String> {
        self.elsewhere.get_or_init(|| Elsewhere::of(self.world)).hint(name)
    }

    /// An export of a service that does not exist here.
    fn of_export(&self, document: &'a Document, findings: &mut Vec<Finding<'a>>) {
        let host = weft_policy::fqdn(&document.name, &document.namespace);
        if self.world.host(&host).is_none_or(|host| !host.live) {
            let hint = self.hint(&host).map(|hint| format!("; there is {hint}")).unwrap_or_default();
            let text = format!("`{host}`, which this exports, is neither registered nor defined{hint}");
            findings.push(Finding::warning(document, "metadata.name", Code::UnknownHost, text));
        }
    }

    /// "host `a` means `a.default.svc.cluster.local`, which is not registered", and similar names.
    fn unknown(&self, document: &'a Document, path: impl Into<String>, written: &str, host: &str) -> Finding<'a> {
        let text = self.unknown_text(written, host);
        // A host that only the registry can offer is not a mistake in files: Istio, which knows its services, reports
        // nothing either.
        let of_registry = !self.complete && host.ends_with(MESH_SUFFIX) && self.hint(host).is_none();
        match of_registry {
            true => Finding::info(document, path, Code::UnknownHost, text),
            false => Finding::warning(document, path, Code::UnknownHost, text),
        }
    }

    fn unknown_text(&self, written: &str, host: &str) -> String {
        let means =
            if written == host { format!("host `{host}`,") } else { format!("host `{written}` means `{host}`,") };
        match self.hint(host) {
            Some(hint) => format!("{means} which is neither registered nor defined; there is {hint}"),
            None if self.complete => format!("{means} which is neither registered nor defined"),
            None => format!("{means} which no document here defines: it must be registered"),
        }
    }

    fn of_rule(&self, document: &'a Document, rule: &DestinationRule, findings: &mut Vec<Finding<'a>>) {
        let name = canonical(&rule.host, &document.namespace);
        if name.starts_with('*') {
            return;
        }
        if !self.world.host_or_wildcard(&name).is_some_and(|host| host.live) {
            findings.push(self.unknown(document, "host", &rule.host, &name));
            return;
        }
        let own = self.world.definition(&Scope::of(&document.namespace), &name);
        let Some(host) = own.or(self.world.host(&name)) else { return };
        let members = Members::of(self.world, host);
        if members.all.is_empty() {
            return;
        }
        let mut empty: HashMap<&BTreeMap<String, String>, bool> = HashMap::new();
        for (n, subset) in rule.subsets.iter().enumerate() {
            if *empty.entry(&subset.labels).or_insert_with(|| !members.some_has(&subset.labels)) {
                let labels: Vec<String> = subset.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
                let text =
                    format!("subset `{}`: no instance of `{}` has {}", subset.name, host.name, labels.join(", "));
                findings.push(Finding::warning(document, format!("subsets[{n}].labels"), Code::EmptySubset, text));
            }
        }
    }

    fn of_routes(&self, document: &'a Document, service: &VirtualService, findings: &mut Vec<Finding<'a>>) {
        // Many routes lead to few hosts, and each host is reported once.
        let mut open: HashMap<String, Option<String>> = HashMap::new();
        for (path, destination) in destinations(service) {
            let name = canonical(&destination.host, &document.namespace);
            if let Some(ports) = open.get(&name) {
                findings.extend(
                    ports
                        .iter()
                        .filter(|_| destination.port.is_none())
                        .map(|text| Finding::warning(document, path.clone(), Code::OpenPort, text.as_str())),
                );
                continue;
            }
            if name.starts_with('*') && !self.world.definitions(&name).any(|host| host.entry.is_some()) {
                let text = format!(
                    "no ServiceEntry has the host `{name}`: its requests get 503. Write one with \
                     `resolution: DYNAMIC_DNS` or NONE, or name a host"
                );
                findings.push(Finding::error(document, format!("{path}.host"), Code::UnknownHost, text));
                open.insert(name, None);
                continue;
            }
            let client = Scope::of(&document.namespace);
            let own = self.world.definition_or_wildcard(&client, &name);
            let written = own.or_else(|| self.world.host_or_wildcard(&name)).filter(|host| host.live);
            let host = written.and_then(|host| self.world.behind(&client, host));
            // A host that only routes name is live too, but not offered.
            let offered = host.filter(|host| {
                let documented = host.service.is_some() || host.entry.is_some();
                documented || self.world.is_imported(&host.name) || self.world.members_of(&host.name).next().is_some()
            });
            let Some(host) = offered else {
                open.insert(name.clone(), None);
                // The address of a host outside the mesh that routes name is the caller's DNS's.
                if host.is_none() || name.ends_with(MESH_SUFFIX) {
                    findings.push(self.unknown(document, format!("{path}.host"), &destination.host, &name));
                }
                continue;
            };
            if !host.reaches(&document.namespace) {
                let text = format!(
                    "`{}` is not exported to namespace `{}`, in which this is: callers there get 503",
                    host.name, document.namespace
                );
                findings.push(Finding::warning(document, format!("{path}.host"), Code::NotExported, text));
            }
            let ports = ports::of(self.world, host);
            let text = (ports.len() > 1).then(|| {
                let numbers: Vec<String> = ports.iter().map(|port| port.number.to_string()).collect();
                format!(
                    "`{name}` has the ports {}: without `port.number` a request keeps its original port, and gets \
                     503 if the host does not have it",
                    numbers.join(", ")
                )
            });
            if destination.port.is_none() {
                findings.extend(
                    text.iter().map(|text| Finding::warning(document, path.clone(), Code::OpenPort, text.as_str())),
                );
            }
            open.insert(name, text);
        }
    }
}

/// Labels of the endpoints of a host, indexed for many subsets.
struct Members<'a> {
    all: Vec<&'a BTreeMap<String, String>>,
    by_label: HashMap<(&'a str, &'a str), Vec<&'a BTreeMap<String, String>>>,
}

impl<'a> Members<'a> {
    fn of(world: &'a World, host: &'a Host) -> Self {
        let namespace = host.entry.as_ref().map_or("", |document| document.namespace.as_str());
        let of_entry = host.entries().flat_map(|entry| world.workloads(namespace, entry));
        let instances = world.endpoints_of(host).map(|instance| &instance.labels);
        let all: Vec<_> = instances.chain(of_entry.map(|workload| &workload.entry.labels)).collect();
        let mut by_label: HashMap<(&str, &str), Vec<_>> = HashMap::new();
        for labels in &all {
            for (key, value) in *labels {
                by_label.entry((key, value)).or_default().push(*labels);
            }
        }
        Members { all, by_label }
    }

    fn some_has(&self, wanted: &BTreeMap<String, String>) -> bool {
        let rarest = wanted
            .iter()
            .map(|(key, value)| self.by_label.get(&(key.as_str(), value.as_str())).map_or(&[][..], Vec::as_slice));
        rarest
            .min_by_key(|members| members.len())
            .map_or(!self.all.is_empty(), |members| members.iter().any(|labels| has_all(labels, wanted)))
    }
}
