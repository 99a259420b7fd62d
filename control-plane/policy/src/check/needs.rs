//! Documents that others need: requests that succeed now would fail without them.

use std::collections::{BTreeMap, HashMap, HashSet};

use weft_core::names::patterns;

use super::destinations::{Ports, Rules, destinations};
use crate::fqdn;
use crate::{Action, Document, Kind, Object, VirtualService, canonical};

/// Kind, namespace and name of a document.
pub type Key = (Kind, String, String);

/// The reason why a document is needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    /// Reference of the document that needs it.
    pub by: String,
    /// Field of that document.
    pub path: String,
    /// The needed part, such as "its subset `v1`".
    pub what: String,
}

impl std::fmt::Display for Need {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} needs {} ({})", self.by, self.what, self.path)
    }
}

/// The documents of `withdrawn` that documents of `rest` need, with the first need of each: a subset or a port that a
/// route names, a host that a route leads to, a gateway or a delegate that a VirtualService names. Nothing that `rest`
/// contains itself is needed, nor is a host that the registry has by `offers`. The time is linear in the size of the
/// documents.
pub fn needs(withdrawn: &[&Document], rest: &[&Document], offers: &dyn Fn(&str) -> bool) -> BTreeMap<Key, Need> {
    let mut needs_by_key = BTreeMap::new();
    if withdrawn.is_empty() {
        return needs_by_key;
    }
    let before: Vec<&Document> = withdrawn.iter().chain(rest).copied().collect();
    let index = Index {
        withdrawn: Withdrawn::of(withdrawn),
        before: (Rules::of(&before), Ports::of(&before)),
        after: (Rules::of(rest), Ports::of(rest)),
        rest: rest.iter().map(|document| (document.kind(), &*document.namespace, &*document.name)).collect(),
        offers,
    };
    for document in rest {
        if let Object::VirtualService(service) = &document.object {
            index.of_routes(document, service, &mut needs_by_key);
            index.of_names(document, service, &mut needs_by_key);
        }
    }
    needs_by_key
}

/// The withdrawn documents, by the parts that others may need.
#[derive(Default)]
struct Withdrawn<'a> {
    /// Rules by host or pattern, with the subsets that they define.
    rules: HashMap<String, Vec<(&'a Document, HashSet<&'a str>)>>,
    /// ServiceEntries and Services by host.
    hosts: HashMap<String, Vec<&'a Document>>,
    /// By kind, namespace and name.
    names: HashMap<(Kind, &'a str, &'a str), &'a Document>,
}

impl<'a> Withdrawn<'a> {
    fn of(documents: &[&'a Document]) -> Self {
        let mut withdrawn = Withdrawn::default();
        for document in documents {
            withdrawn.names.insert((document.kind(), &document.namespace, &document.name), document);
            match &document.object {
                Object::DestinationRule(rule) => {
                    let subsets = rule.subsets.iter().map(|subset| subset.name.as_str()).collect();
                    let rules = withdrawn.rules.entry(canonical(&rule.host, &document.namespace)).or_default();
                    rules.push((document, subsets));
                }
                Object::ServiceEntry(entry) => {
                    for host in &entry.hosts {
                        withdrawn.hosts.entry(host.clone()).or_default().push(document);
                    }
                }
                Object::Service(_) => {
                    let host = fqdn(&document.name, &document.namespace);
                    withdrawn.hosts.entry(host).or_default().push(document);
                }
                _ => {}
            }
        }
        withdrawn
    }

    /// The withdrawn rules that define a subset for `host`.
    fn with_subset(&self, host: &str, subset: &str) -> Vec<&'a Document> {
        let rules = patterns(host, true).filter_map(|pattern| self.rules.get(&pattern)).flatten();
        rules.filter(|(_, subsets)| subsets.contains(subset)).map(|(document, _)| *document).collect()
    }

    /// The withdrawn documents that define `host`.
    fn with_host(&self, host: &str) -> Vec<&'a Document> {
        patterns(host, true).filter_map(|pattern| self.hosts.get(&pattern)).flatten().copied().collect()
    }
}

struct Index<'a> {
    withdrawn: Withdrawn<'a>,
    before: (Rules<'a>, Ports<'a>),
    after: (Rules<'a>, Ports<'a>),
    rest: HashSet<(Kind, &'a str, &'a str)>,
    offers: &'a dyn Fn(&str) -> bool,
}

impl<'a> Index<'a> {
    /// Needs of the destinations of a VirtualService.
    fn of_routes(&self, document: &Document, service: &VirtualService, needs_by_key: &mut BTreeMap<Key, Need>) {
        for (path, to) in destinations(service) {
            let host = canonical(&to.host, &document.namespace);
            let mut need = |withdrawn: Vec<&Document>, path: String, what: String| {
                for withdrawn in withdrawn {
                    let need = || Need { by: document.reference(), path: path.clone(), what: what.clone() };
                    needs_by_key.entry(withdrawn.key()).or_insert_with(need);
                }
            };
            let rules = if to.subset.is_empty() { Vec::new() } else { self.withdrawn.with_subset(&host, &to.subset) };
            let lacks = |(rules, _): &(Rules<'a>, Ports<'a>)| rules.lacks(document, &path, &host, &to.subset).is_some();
            if !rules.is_empty() && lacks(&self.after) && !lacks(&self.before) {
                need(rules, format!("{path}.subset"), format!("its subset `{}`", to.subset));
            }
            let hosts = self.withdrawn.with_host(&host);
            if hosts.is_empty() {
                continue;
            }
            let lacks = |(_, ports): &(Rules<'a>, Ports<'a>), number| ports.lacks(&host, number).is_some();
            if !self.after.1.has(&host) {
                if !(self.offers)(&host) {
                    need(hosts, format!("{path}.host"), format!("its host `{host}`"));
                }
            } else if let Some(number) = to.port
                && lacks(&self.after, number)
                && !lacks(&self.before, number)
            {
                need(hosts, format!("{path}.port.number"), format!("its port {number}"));
            }
        }
    }

    /// Needs of a VirtualService by name: gateways and delegates.
    fn of_names(&self, document: &Document, service: &VirtualService, needs_by_key: &mut BTreeMap<Key, Need>) {
        let mut need = |kind: Kind, namespace: &str, name: &str, path: String, what: &str| {
            let key = (kind, namespace, name);
            let withdrawn = self.withdrawn.names.get(&key).filter(|_| !self.rest.contains(&key));
            // Only a VirtualService without hosts is a delegate.
            if let Some(withdrawn) =
                withdrawn.filter(|withdrawn| kind != Kind::VirtualService || withdrawn.object.hosts().is_empty())
            {
                let need = || Need { by: document.reference(), path, what: what.to_owned() };
                needs_by_key.entry(withdrawn.key()).or_insert_with(need);
            }
        };
        for (namespace, name) in service.of_gateways(&document.namespace) {
            need(Kind::Gateway, namespace, name, "gateways".to_owned(), "its servers");
        }
        for (n, route) in service.http.iter().enumerate() {
            if let Action::Delegate(delegate) = &route.action {
                let (namespace, name) = delegate.key(&document.namespace);
                need(Kind::VirtualService, &namespace, &name, format!("http[{n}].delegate"), "its routes");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse;

    fn documents(texts: &[(&str, &str, &str)]) -> Vec<Document> {
        let one = |(kind, name, spec): &(&str, &str, &str)| {
            format!("apiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {spec}\n")
        };
        let parsed = parse("f.yaml", &texts.iter().map(one).collect::<Vec<_>>().join("---\n"));
        assert!(!parsed.has_errors(), "{:#?}", parsed.problems);
        parsed.documents
    }

    /// The needs of all other documents for the first one.
    fn needed(all: &[(&str, &str, &str)]) -> Option<String> {
        let all = documents(all);
        let rest: Vec<&Document> = all[1..].iter().collect();
        needs(&[&all[0]], &rest, &|host| host.starts_with("registered."))
            .into_values()
            .next()
            .map(|need| need.to_string())
    }

    const RULE: (&str, &str, &str) = ("DestinationRule", "r", "{host: a, subsets: [{name: v1}]}");
    const TO_V1: (&str, &str, &str) =
        ("VirtualService", "v", "{hosts: [a], http: [{route: [{destination: {host: a, subset: v1}}]}]}");
    const ENTRY: (&str, &str, &str) = (
        "ServiceEntry",
        "e",
        "{hosts: [api.example.com], ports: [{number: 80, name: http, protocol: HTTP}], resolution: DNS}",
    );

    #[test]
    fn a_rule_is_needed_while_a_route_leads_to_its_subset() {
        let want = "VirtualService/default/v needs its subset `v1` (http[0].route[0].destination.subset)";
        assert_eq!(needed(&[RULE, TO_V1]).as_deref(), Some(want));
        let other = ("DestinationRule", "s", "{host: a, subsets: [{name: v1}]}");
        assert_eq!(needed(&[RULE, TO_V1, other]), None, "another rule defines it");
        let whole = ("VirtualService", "v", "{hosts: [a], http: [{route: [{destination: {host: a}}]}]}");
        assert_eq!(needed(&[RULE, whole]), None);
        let never = ("VirtualService", "v", "{hosts: [a], http: [{route: [{destination: {host: a, subset: v9}}]}]}");
        assert_eq!(needed(&[RULE, never]), None, "requests fail with it too");
    }

    #[test]
    fn an_entry_is_needed_while_a_route_leads_to_its_host_or_port() {
        let to = |host: &'static str| ("VirtualService", "v", host);
        let route = to("{hosts: [a], http: [{route: [{destination: {host: api.example.com}}]}]}");
        let want = "VirtualService/default/v needs its host `api.example.com` (http[0].route[0].destination.host)";
        assert_eq!(needed(&[ENTRY, route]).as_deref(), Some(want));
        let tcp = to("{hosts: [a], tcp: [{route: [{destination: {host: api.example.com}}]}]}");
        assert!(needed(&[ENTRY, tcp]).is_some());
        let registered =
            ("ServiceEntry", "e", "{hosts: [registered.default.svc.cluster.local], ports: [{number: 80, name: http}]}");
        let route = to("{hosts: [a], http: [{route: [{destination: {host: registered}}]}]}");
        assert_eq!(needed(&[registered, route]), None, "the registry has it");

        let mut all = documents(&[
            ENTRY,
            to("{hosts: [a], http: [{route: [{destination: {host: api.example.com, port: {number: 80}}}]}]}"),
        ]);
        let less = documents(&[(
            "ServiceEntry",
            "e",
            "{hosts: [api.example.com], ports: [{number: 81, name: http}], resolution: DNS}",
        )]);
        let (old, route) = (all.remove(0), all.remove(0));
        let needs_by_key = needs(&[&old], &[&less[0], &route], &|_| false);
        assert_eq!(needs_by_key[&old.key()].what, "its port 80", "a new version without the port");
    }

    #[test]
    fn gateways_and_delegates_are_needed_by_name() {
        let gateway = ("Gateway", "g", "{servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}]}");
        let by = (
            "VirtualService",
            "v",
            "{hosts: [a.example.com], gateways: [g], http: [{route: [{destination: {host: a}}]}]}",
        );
        assert_eq!(needed(&[gateway, by]).as_deref(), Some("VirtualService/default/v needs its servers (gateways)"));
        let delegate = ("VirtualService", "d", "{http: [{route: [{destination: {host: a}}]}]}");
        let root = ("VirtualService", "v", "{hosts: [a], http: [{delegate: {name: d}}]}");
        let want = "VirtualService/default/v needs its routes (http[0].delegate)";
        assert_eq!(needed(&[delegate, root]).as_deref(), Some(want));
        assert_eq!(needed(&[root, delegate]), None);
    }
}
