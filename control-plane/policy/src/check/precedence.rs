//! Documents that have no effect, or less effect, because an older one applies to the same host or workload.

use std::collections::{HashMap, HashSet};

use crate::kinds::mesh_config;
use crate::{Code, DestinationRule, Document, Export, Finding, Object, ServiceEntry, VirtualService, canonical};

/// Findings of this module; `documents` are sorted by age.
pub(super) fn check<'a>(documents: &[&'a Document]) -> Vec<Finding<'a>> {
    let mut findings = Vec::new();
    let mut owners = Owners::default();
    let mut rules = Rules::default();
    let mut entries: HashMap<(&str, &str), Entries<'_>> = HashMap::new();
    let mut public: HashMap<&str, &Document> = HashMap::new();
    let mut authentications: HashMap<_, &Document> = HashMap::new();
    let mut sidecars: HashMap<_, &Document> = HashMap::new();
    let mut mesh: Option<&Document> = None;
    for document in documents {
        match &document.object {
            Object::VirtualService(service) if service.of_mesh() => {
                findings.extend(owners.take(document, service));
            }
            Object::DestinationRule(rule) => findings.extend(rules.join(document, rule)),
            Object::ServiceEntry(entry) => {
                for (n, host) in entry.hosts.iter().enumerate() {
                    let key = (host.as_str(), document.namespace.as_str());
                    let all = entries.entry(key).or_insert_with(|| Entries::new(document, entry));
                    let first = all.first;
                    if let Some(why) = all.join(entry).filter(|_| is_other(first, document)) {
                        let text = format!("{} is older and defines host `{host}`: {why}", first.reference());
                        findings.push(Finding::warning(document, format!("hosts[{n}]"), Code::Overruled, text));
                    }
                    if !entry.export.is_public() {
                        continue;
                    }
                    let first = public.entry(host).or_insert(document);
                    if first.namespace != document.namespace {
                        let text = format!(
                            "{} is older and defines host `{host}` too: of the clients that see both only those in \
                             namespace `{}` have this one",
                            first.reference(),
                            document.namespace
                        );
                        findings.push(Finding::warning(document, format!("hosts[{n}]"), Code::Overruled, text));
                    }
                }
            }
            Object::PeerAuthentication(policy) => {
                let first = authentications.entry((&document.namespace, &policy.selector)).or_insert(document);
                if is_other(first, document) {
                    let text =
                        format!("{} is older and for the same workloads: this one is ignored", first.reference());
                    findings.push(Finding::warning(document, "", Code::Overruled, text));
                }
            }
            Object::Sidecar(sidecar) => {
                let first = sidecars.entry((&document.namespace, &sidecar.selector)).or_insert(document);
                if is_other(first, document) {
                    let of = if sidecar.selector.is_empty() {
                        "for all workloads of its namespace"
                    } else {
                        "for the same workloads"
                    };
                    let text =
                        format!("{} is older and {of} too: only one Sidecar may select a workload", first.reference());
                    findings.push(Finding::error(document, "workloadSelector", Code::ConflictingSidecars, text));
                }
            }
            Object::IstioOperator(_) if mesh_config::of(document).is_some() => {
                let first = mesh.get_or_insert(document);
                if is_other(first, document) {
                    let text =
                        format!("{} is older and has the settings of the mesh: this one is ignored", first.reference());
                    findings.push(Finding::warning(document, "meshConfig", Code::Overruled, text));
                }
            }
            _ => {}
        }
    }
    findings
}

/// The ServiceEntries of a host in one namespace, in the order of their age.
struct Entries<'a> {
    first: &'a Document,
    entry: &'a ServiceEntry,
    /// Numbers and names of the ports in effect.
    ports: HashMap<u32, &'a str>,
    names: HashSet<&'a str>,
}

impl<'a> Entries<'a> {
    fn new(first: &'a Document, entry: &'a ServiceEntry) -> Self {
        Entries { first, entry, ports: HashMap::new(), names: HashSet::new() }
    }

    /// Joins a younger entry; returns the part without effect, because an older one has its host; `None`: all of it
    /// takes effect.
    fn join(&mut self, entry: &'a ServiceEntry) -> Option<String> {
        if !self.entry.joins(entry) {
            return Some("this one, with another `resolution` or `location`, does not".to_owned());
        }
        let mut taken = None;
        for port in &entry.ports {
            match self.ports.get(&port.number) {
                // Its endpoints are added.
                Some(name) if *name == port.name => {}
                None if self.names.insert(&port.name) => {
                    self.ports.insert(port.number, &port.name);
                }
                _ => taken = taken.or(Some(port.number)),
            }
        }
        taken.map(|number| format!("port {number} of this one is ignored"))
    }
}

/// Whether the two are different objects: two versions of one object are reported as duplicates elsewhere.
fn is_other(first: &Document, second: &Document) -> bool {
    (first.kind(), &first.namespace, &first.name) != (second.kind(), &second.namespace, &second.name)
}

/// The VirtualService in effect by host and audience: for a client's namespace a private one takes precedence over one
/// that names the namespace, and that over a public one.
#[derive(Default)]
struct Owners<'a>(HashMap<(String, Audience<'a>), &'a Document>);

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Audience<'a> {
    Public,
    Named(&'a str),
    Own(&'a str),
}

impl<'a> Audience<'a> {
    fn all(document: &'a Document, export: &'a Export) -> Vec<Audience<'a>> {
        match export.namespaces() {
            None => vec![Audience::Public],
            Some(namespaces) => namespaces
                .filter(|name| *name != "~")
                .map(|name| match name {
                    "." => Audience::Own(&document.namespace),
                    name if export.is_private() && name == document.namespace => Audience::Own(name),
                    name => Audience::Named(name),
                })
                .collect(),
        }
    }
}

impl<'a> Owners<'a> {
    fn take(&mut self, document: &'a Document, service: &'a VirtualService) -> Vec<Finding<'a>> {
        let mut findings = Vec::new();
        for (n, host) in service.hosts.iter().enumerate() {
            let host = canonical(host, &document.namespace);
            let audiences = Audience::all(document, &service.export);
            let (mut first, mut lost) = (None, Vec::new());
            for audience in &audiences {
                let owner = self.0.entry((host.clone(), *audience)).or_insert(document);
                if is_other(owner, document) {
                    first.get_or_insert(*owner);
                    lost.push(*audience);
                }
            }
            let Some(owner) = first else { continue };
            let of = match lost[..] {
                [Audience::Named(one) | Audience::Own(one)] if audiences.len() > 1 => {
                    format!(" for clients of namespace `{one}`")
                }
                _ if lost.len() < audiences.len() => " for some of its clients".to_owned(),
                _ => String::new(),
            };
            let owner = owner.reference();
            let text = format!("{owner} is older and owns host `{host}`: this one has no effect on it{of}");
            findings.push(Finding::warning(document, format!("hosts[{n}]"), Code::Overruled, text));
        }
        findings
    }
}

/// Rules of one host and namespace with the same audience are joined: the oldest policy stays, and of two subsets of
/// one name the older one.
#[derive(Default)]
struct Rules<'a> {
    policies: HashMap<RuleKey<'a>, &'a Document>,
    subsets: HashMap<(RuleKey<'a>, &'a str), &'a Document>,
}

/// The common properties of rules that are joined.
#[derive(Clone, PartialEq, Eq, Hash)]
struct RuleKey<'a> {
    namespace: &'a str,
    host: String,
    export: &'a Export,
    selector: &'a std::collections::BTreeMap<String, String>,
}

impl<'a> Rules<'a> {
    fn join(&mut self, document: &'a Document, rule: &'a DestinationRule) -> Vec<Finding<'a>> {
        let mut findings = Vec::new();
        let host = canonical(&rule.host, &document.namespace);
        let joined = RuleKey { namespace: &document.namespace, host, export: &rule.export, selector: &rule.selector };
        for (n, subset) in rule.subsets.iter().enumerate() {
            let first = self.subsets.entry((joined.clone(), &subset.name)).or_insert(document);
            if is_other(first, document) {
                let first = first.reference();
                let text = format!("subset `{}` is ignored: {first}, which is older, defines it", subset.name);
                findings.push(Finding::warning(document, format!("subsets[{n}].name"), Code::Overruled, text));
            }
        }
        if rule.traffic_policy.is_some() {
            let first = self.policies.entry(joined.clone()).or_insert(document);
            if is_other(first, document) {
                let (first, host) = (first.reference(), &joined.host);
                let text = format!("`trafficPolicy` is ignored: {first}, which is older, has one for `{host}`");
                findings.push(Finding::warning(document, "trafficPolicy", Code::Overruled, text));
            }
        }
        findings
    }
}
