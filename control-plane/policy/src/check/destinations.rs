//! Subsets and ports that routes name, of hosts whose documents are present.

use std::collections::{BTreeSet, HashMap, HashSet};

use weft_core::names::patterns;

use crate::fqdn;
use crate::{
    Action, Code, Destination, DestinationRule, Document, Finding, Object, VirtualService, canonical, nearest,
};

/// Bound on the namespaces that are compared for one subset; policies written by people have fewer.
const MOST: usize = 16;

/// Findings of this module; `documents` are sorted by age.
pub(super) fn check<'a>(documents: &[&'a Document]) -> Vec<Finding<'a>> {
    let (rules, ports) = (Rules::of(documents), Ports::of(documents));
    let mut findings = Vec::new();
    for document in documents {
        match &document.object {
            Object::VirtualService(service) => {
                for (path, destination) in destinations(service) {
                    let host = canonical(&destination.host, &document.namespace);
                    findings.extend(rules.lacks(document, &path, &host, &destination.subset));
                    if let Some(number) = destination.port {
                        findings.extend(ports.lacks(&host, number).map(|text| {
                            Finding::error(document, format!("{path}.port.number"), Code::UndefinedPort, text)
                        }));
                    }
                }
            }
            Object::DestinationRule(rule) => findings.extend(ports.unused(document, rule)),
            _ => {}
        }
    }
    findings
}

/// Destinations of routes, with the paths of their fields.
pub fn destinations(service: &VirtualService) -> impl Iterator<Item = (String, &Destination)> {
    let http = service.http.iter().enumerate().filter_map(|(n, route)| match &route.action {
        Action::Forward(forward) => Some((n, forward)),
        _ => None,
    });
    let http = http.flat_map(|(n, forward)| {
        let requests = forward.destinations.iter().enumerate();
        let requests = requests.map(move |(m, to)| (format!("http[{n}].route[{m}].destination"), to));
        let copies = forward.mirrors.iter().enumerate();
        requests
            .chain(copies.map(move |(m, mirror)| (format!("http[{n}].mirrors[{m}].destination"), &mirror.destination)))
    });
    let bytes = [("tls", &service.tls), ("tcp", &service.tcp)].into_iter().flat_map(|(kind, routes)| {
        routes.iter().enumerate().flat_map(move |(n, route)| {
            let all = route.destinations.iter().enumerate();
            all.map(move |(m, to)| (format!("{kind}[{n}].route[{m}].destination"), to))
        })
    });
    http.chain(bytes)
}

/// The subsets that rules define, by host or pattern.
#[derive(Default)]
pub(super) struct Rules<'a> {
    /// By pattern, also of rules without subsets.
    subsets: HashMap<String, BTreeSet<&'a str>>,
    /// Namespaces of the rules that define a subset of a pattern.
    namespaces: HashMap<(String, &'a str), Vec<&'a str>>,
    /// Patterns and namespaces that have a rule.
    known: HashSet<(String, &'a str)>,
}

impl<'a> Rules<'a> {
    pub(super) fn of(documents: &[&'a Document]) -> Self {
        let mut rules = Rules::default();
        for document in documents {
            let Object::DestinationRule(rule) = &document.object else { continue };
            let pattern = canonical(&rule.host, &document.namespace);
            let subsets = rules.subsets.entry(pattern.clone()).or_default();
            subsets.extend(rule.subsets.iter().map(|subset| subset.name.as_str()));
            for subset in &rule.subsets {
                let namespaces = rules.namespaces.entry((pattern.clone(), &subset.name)).or_default();
                if namespaces.len() < MOST {
                    namespaces.push(&document.namespace);
                }
            }
            rules.known.insert((pattern, &document.namespace));
        }
        rules
    }

    /// The problem of a route to a subset of `host`; `None`: there is none.
    pub(super) fn lacks<'b>(
        &self,
        document: &'b Document,
        path: &str,
        host: &str,
        subset: &str,
    ) -> Option<Finding<'b>> {
        if subset.is_empty() {
            return None;
        }
        let path = format!("{path}.subset");
        let mut narrower: Vec<String> = Vec::new();
        let mut hidden = None;
        for pattern in patterns(host, true).filter(|pattern| self.subsets.contains_key(pattern)) {
            let key = (pattern, subset);
            for namespace in self.namespaces.get(&key).into_iter().flatten() {
                // In a namespace only the most specific rule applies.
                match narrower.iter().find(|narrow| self.known.contains(&((*narrow).clone(), *namespace))) {
                    None => return None,
                    Some(narrow) => hidden = Some((key.0.clone(), narrow.clone())),
                }
            }
            narrower.push(key.0);
        }
        if narrower.is_empty() {
            let text = format!("subset `{subset}`: no DestinationRule for `{host}` is among the given documents");
            return Some(Finding::warning(document, path, Code::MissingRule, text));
        }
        if let Some((wide, narrow)) = hidden {
            let text = format!(
                "the DestinationRule of `{narrow}` has no subset `{subset}`, and takes precedence over \
                 that of `{wide}`, which has it"
            );
            return Some(Finding::error(document, path, Code::UndefinedSubset, text));
        }
        let known = narrower.iter().filter_map(|pattern| self.subsets.get(pattern)).flatten();
        let known: Vec<&str> = known.take(MOST * MOST).copied().collect();
        let hint = match known.is_empty() {
            true => "; it has none".to_owned(),
            false => nearest::suggest(subset, &known, "it has"),
        };
        let text = format!("the DestinationRule of `{host}` has no subset `{subset}`{hint}");
        Some(Finding::error(document, path, Code::UndefinedSubset, text))
    }
}

/// The ports that documents declare, by host or pattern.
#[derive(Default)]
pub(super) struct Ports<'a> {
    documents: HashMap<String, &'a Document>,
    numbers: HashMap<String, BTreeSet<u32>>,
}

impl<'a> Ports<'a> {
    pub(super) fn of(documents: &[&'a Document]) -> Self {
        let mut ports = Ports::default();
        let services = documents.iter().filter(|document| matches!(document.object, Object::Service(_)));
        // A host's Service takes precedence over its ServiceEntry.
        for document in services.chain(documents) {
            let (hosts, numbers): (Vec<String>, Vec<u32>) = match &document.object {
                // Its ports are those of the host that it is an alias of, or of its instances.
                Object::Service(service) if service.ports.is_empty() => continue,
                Object::Service(service) => (
                    vec![fqdn(&document.name, &document.namespace)],
                    service.ports.iter().map(|port| port.number).collect(),
                ),
                Object::ServiceEntry(entry) => {
                    (entry.hosts.clone(), entry.ports.iter().map(|port| port.number).collect())
                }
                _ => continue,
            };
            for host in hosts {
                let first = *ports.documents.entry(host.clone()).or_insert(document);
                // ServiceEntries of a host and namespace are joined. Between namespaces the choice depends on the
                // client.
                if first.kind() == document.kind() {
                    ports.numbers.entry(host).or_default().extend(&numbers);
                }
            }
        }
        ports
    }

    fn get(&self, host: &str) -> Option<(&'a Document, &BTreeSet<u32>)> {
        patterns(host, true).find_map(|pattern| Some((*self.documents.get(&pattern)?, self.numbers.get(&pattern)?)))
    }

    /// Whether a document declares `host`.
    pub(super) fn has(&self, host: &str) -> bool {
        self.get(host).is_some()
    }

    /// The error for a port `number` that `host` does not have.
    pub(super) fn lacks(&self, host: &str, number: u32) -> Option<String> {
        let (document, numbers) = self.get(host).filter(|(_, numbers)| !numbers.contains(&number))?;
        let known: Vec<String> = numbers.iter().take(MOST).map(u32::to_string).collect();
        Some(format!("{} has no port {number}; it has {}", document.reference(), known.join(", ")))
    }

    /// Settings for ports that the host does not have. Another host of a pattern may have them.
    fn unused<'b>(&self, document: &'b Document, rule: &DestinationRule) -> Vec<Finding<'b>> {
        let host = canonical(&rule.host, &document.namespace);
        if host.starts_with('*') {
            return Vec::new();
        }
        let own = rule.traffic_policy.iter().map(|policy| ("trafficPolicy".to_owned(), policy));
        let of_subsets = rule.subsets.iter().enumerate();
        let of_subsets = of_subsets
            .filter_map(|(n, subset)| Some((format!("subsets[{n}].trafficPolicy"), subset.traffic_policy.as_ref()?)));
        let mut findings = Vec::new();
        for (path, policy) in own.chain(of_subsets) {
            for text in policy.ports.keys().filter_map(|number| self.lacks(&host, *number)) {
                let (path, text) =
                    (format!("{path}.portLevelSettings"), format!("{text}: these settings have no effect"));
                findings.push(Finding::warning(document, path, Code::UndefinedPort, text));
            }
        }
        findings
    }
}
