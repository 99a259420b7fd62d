//! The documents that a change can affect: only those are checked again, so that the cost of one changed file does not
//! depend on the number of files.
//!
//! For DestinationRules and VirtualServices the compared documents are known: objects of the same name, rules and
//! routes of the same host, rules and ports of the hosts that routes lead to, and documents of other kinds, which never
//! depend on rules and routes. A declaration (of hosts, workloads, gateways) is compared with the other declarations, and
//! with rules and routes of its hosts. Any other change is checked against everything.

use std::collections::HashSet;

use weft_core::names::patterns;

use crate::{Action, Document, Object, Problem, VirtualService, canonical, check, fqdn};

/// A part of the documents, checked together.
#[derive(Debug)]
pub struct Impact<'a> {
    /// The documents, in their order.
    pub documents: Vec<&'a Document>,
    /// The files whose problems the change can affect: the check of `documents` finds all problems of these files only.
    pub files: HashSet<&'a str>,
}

/// The impact of a change; `changed` are the old and the new versions, `all` are all documents that are applied
/// together.
pub fn impact<'a>(changed: &[&'a Document], all: &[&'a Document]) -> Impact<'a> {
    let scopes = || changed.iter().map(|document| Scope::of(document));
    if scopes().any(|scope| scope == Scope::All) {
        let files = changed.iter().chain(all).map(|document| document.file.as_str()).collect();
        return Impact { documents: all.to_vec(), files };
    }
    let declares = scopes().any(|scope| scope == Scope::Declarations);
    let names: HashSet<&str> = changed.iter().map(|document| document.name.as_str()).collect();
    let of_changed = Hosts::of(changed);
    let mut files: HashSet<&str> = changed.iter().map(|document| document.file.as_str()).collect();
    for document in all {
        let same = names.contains(document.name.as_str()) && changed.iter().any(|other| other.is_same_object(document));
        if same || of_changed.touches(document) || declares && !is_plain(document) {
            files.insert(&document.file);
        }
    }
    let of_files: Vec<&Document> =
        all.iter().filter(|document| files.contains(document.file.as_str()) && is_plain(document)).copied().collect();
    let beside = Hosts::of(&of_files);
    let is_part = |document: &&&Document| {
        files.contains(document.file.as_str()) || !is_plain(document) || beside.is_compared_with(document)
    };
    Impact { documents: all.iter().filter(is_part).copied().collect(), files }
}

/// The problems of the files that a change can affect, as a check of `all` finds them; `changed` are the old and the new
/// versions, `all` are all documents that are applied together.
pub fn check_change(changed: &[&Document], all: &[&Document]) -> Vec<Problem> {
    let impact = impact(changed, all);
    let mut problems = check(&impact.documents);
    problems.retain(|problem| impact.files.contains(problem.file.as_str()));
    problems
}

fn first_label(host: &str) -> &str {
    host.split_once('.').map_or(host, |(label, _)| label)
}

/// The documents that the checks compare a document with.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    /// Those of the same hosts.
    Hosts,
    /// All but rules and routes, and rules and routes of the same hosts.
    Declarations,
    /// All.
    All,
}

impl Scope {
    fn of(document: &Document) -> Scope {
        match &document.object {
            Object::DestinationRule(_) => Scope::Hosts,
            // The Gateway API reports conflicts as conditions, not as errors of documents.
            Object::HTTPRoute(_)
            | Object::GRPCRoute(_)
            | Object::TLSRoute(_)
            | Object::TCPRoute(_)
            | Object::BackendTLSPolicy(_)
            | Object::KubernetesGateway(_)
            | Object::GatewayClass(_)
            | Object::Namespace(_)
            | Object::ReferenceGrant(_) => Scope::Hosts,
            Object::VirtualService(service) if !service.hosts.is_empty() && !delegates(service) => Scope::Hosts,
            // A delegate is a part of other routes; the others apply to a namespace, or to the mesh.
            Object::VirtualService(_) | Object::PeerAuthentication(_) | Object::IstioOperator(_) => Scope::All,
            Object::Gateway(_)
            | Object::ServiceEntry(_)
            | Object::Service(_)
            | Object::ServiceExport(_)
            | Object::WorkloadEntry(_)
            | Object::WorkloadGroup(_)
            | Object::Sidecar(_) => Scope::Declarations,
        }
    }
}

/// A rule, or routes that neither are a delegate nor have one.
fn is_plain(document: &Document) -> bool {
    Scope::of(document) == Scope::Hosts
}

fn delegates(service: &VirtualService) -> bool {
    service.http.iter().any(|route| matches!(route.action, Action::Delegate(_)))
}

/// Up to this many first labels of hosts are compared one by one.
const FEW: usize = 32;

/// Hosts that some documents name, in full.
#[derive(Default)]
struct Hosts {
    rules: HashSet<String>,
    routes: HashSet<String>,
    /// Destinations of the routes.
    destinations: HashSet<String>,
    /// Hosts that ServiceEntries and Services declare.
    declared: HashSet<String>,
    /// The first labels of all of these; `None`: any, because there are many or a wildcard.
    labels: Option<Vec<String>>,
}

impl Hosts {
    fn of(documents: &[&Document]) -> Self {
        let mut hosts = Hosts::default();
        for document in documents {
            let full = |host: &String| canonical(host, &document.namespace);
            match &document.object {
                Object::DestinationRule(rule) => {
                    hosts.rules.insert(full(&rule.host));
                }
                Object::VirtualService(service) => {
                    hosts.routes.extend(service.hosts.iter().map(full));
                    hosts.destinations.extend(service.destinations().map(|to| full(&to.host)));
                }
                Object::ServiceEntry(entry) => hosts.declared.extend(entry.hosts.iter().cloned()),
                Object::Service(_) => {
                    hosts.declared.insert(fqdn(&document.name, &document.namespace));
                }
                _ => {}
            }
        }
        let all = || hosts.rules.iter().chain(&hosts.routes).chain(&hosts.destinations).chain(&hosts.declared);
        if all().all(|host| !host.starts_with('*')) {
            let labels: HashSet<&str> = all().map(|host| first_label(host)).collect();
            hosts.labels = (labels.len() <= FEW).then(|| labels.iter().map(|label| (*label).to_owned()).collect());
        }
        hosts
    }

    /// Whether `host` as written may be one of these. Most hosts are not, which is decided without building full names.
    fn may_have(&self, host: &str) -> bool {
        let is_label = |label: &String| label.eq_ignore_ascii_case(first_label(host));
        self.labels.as_ref().is_none_or(|labels| host.starts_with('*') || labels.iter().any(is_label))
    }

    /// Whether these documents can change the problems of `document`.
    fn touches(&self, document: &Document) -> bool {
        let full = |host: &String| canonical(host, &document.namespace);
        let is_declared = |host: &str| patterns(host, true).any(|pattern| self.declared.contains(&pattern));
        match &document.object {
            Object::DestinationRule(rule) if !self.may_have(&rule.host) => false,
            Object::DestinationRule(rule) => {
                let host = full(&rule.host);
                self.rules.contains(&host) || is_declared(&host)
            }
            Object::VirtualService(service) => {
                let leads = |host: &str| patterns(host, true).any(|pattern| self.rules.contains(&pattern));
                let is_of = |host: String| self.routes.contains(&host) || self.declared.contains(&host);
                let leads_here = |host: String| leads(&host) || is_declared(&host);
                service.hosts.iter().any(|host| self.may_have(host) && is_of(full(host)))
                    || service.destinations().any(|to| self.may_have(&to.host) && leads_here(full(&to.host)))
            }
            _ => false,
        }
    }

    /// Whether the problems of these documents may depend on `document`.
    fn is_compared_with(&self, document: &Document) -> bool {
        let full = |host: &String| canonical(host, &document.namespace);
        match &document.object {
            Object::DestinationRule(rule) if !self.may_have(&rule.host) => false,
            Object::DestinationRule(rule) => {
                let host = full(&rule.host);
                host.starts_with('*') || self.rules.contains(&host) || self.destinations.contains(&host)
            }
            Object::VirtualService(service) => {
                service.hosts.iter().any(|host| self.may_have(host) && self.routes.contains(&full(host)))
            }
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{needs, parse};

    /// Random documents with few names, so that they refer to each other; deterministic for a seed.
    struct Dice(u64);

    impl Dice {
        fn roll<'a>(&mut self, of: &[&'a str]) -> &'a str {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            of[(self.0 >> 33) as usize % of.len()]
        }
    }

    const HOSTS: [&str; 6] =
        ["a", "b", "c.other.svc.cluster.local", "'*.default.svc.cluster.local'", "x.example.com", "'*'"];
    const TO: [&str; 4] = ["a", "b", "c.other.svc.cluster.local", "x.example.com"];
    const KINDS: [&str; 12] =
        ["rule", "rule", "rule", "route", "route", "route", "entry", "service", "alias", "gateway", "peer", "delegate"];

    fn file(dice: &mut Dice, file: usize) -> Vec<Document> {
        let mut texts = Vec::new();
        for n in 0..2 {
            let (subset, host, to) = (dice.roll(&["v1", "v2", "v3"]), dice.roll(&HOSTS), dice.roll(&TO));
            let policy = dice.roll(&["", ", trafficPolicy: {tls: {mode: DISABLE}}"]);
            let export = dice.roll(&["", ", exportTo: ['.']"]);
            let number = dice.roll(&["80", "81"]);
            let port = dice.roll(&["", ", port: {number: 80}", ", port: {number: 81}"]);
            let own = format!("n{file}x{n}");
            let (kind, name, spec) = match dice.roll(&KINDS) {
                "rule" => (
                    "networking.istio.io/v1\nkind: DestinationRule",
                    own,
                    format!("{{host: {host}, subsets: [{{name: {subset}}}]{policy}{export}}}"),
                ),
                "entry" => {
                    let host = dice.roll(&["x.example.com", "'*.example.com'"]);
                    let ports = format!("[{{number: {number}, name: http}}]");
                    let spec = format!("{{hosts: [{host}], resolution: NONE, ports: {ports}}}");
                    ("networking.istio.io/v1\nkind: ServiceEntry", own, spec)
                }
                "service" => {
                    let name = dice.roll(&["a", "b", "c"]).to_owned();
                    ("v1\nkind: Service", name, format!("{{ports: [{{port: {number}, name: http}}]}}"))
                }
                "alias" => {
                    let target = dice.roll(&["x.example.com", "b.default.svc.cluster.local"]);
                    let name = dice.roll(&["a", "b", "c"]).to_owned();
                    ("v1\nkind: Service", name, format!("{{type: ExternalName, externalName: {target}}}"))
                }
                "gateway" => {
                    let protocol = dice.roll(&["HTTP", "TCP"]);
                    let server = format!("{{port: {{number: 80, name: p, protocol: {protocol}}}, hosts: ['*']}}");
                    ("networking.istio.io/v1\nkind: Gateway", own, format!("{{servers: [{server}]}}"))
                }
                "peer" => ("security.istio.io/v1\nkind: PeerAuthentication", own, "{mtls: {mode: STRICT}}".to_owned()),
                "delegate" => {
                    let spec = "{http: [{route: [{destination: {host: a}}]}]}".to_owned();
                    ("networking.istio.io/v1\nkind: VirtualService", own, spec)
                }
                _ => {
                    let route = format!("{{route: [{{destination: {{host: {to}, subset: {subset}{port}}}}}]}}");
                    let spec = format!("{{hosts: [{host}]{export}, http: [{route}]}}");
                    ("networking.istio.io/v1\nkind: VirtualService", own, spec)
                }
            };
            let namespace = dice.roll(&["default", "other"]);
            let metadata = format!("{{name: {name}, namespace: {namespace}}}");
            texts.push(format!("apiVersion: {kind}\nmetadata: {metadata}\nspec: {spec}\n"));
        }
        // A document with an error of its own is of no use here.
        parse(&format!("f{file}.yaml"), &texts.join("---\n")).documents
    }

    #[test]
    fn a_check_of_the_affected_finds_what_a_check_of_all_does() {
        let mut dice = Dice(7);
        let (mut narrowed, mut found, mut needs_found) = (0, 0, 0);
        for _ in 0..40 {
            let mut files: Vec<Vec<Document>> = (0..12).map(|number| file(&mut dice, number)).collect();
            for round in 0..12 {
                let before: Vec<Document> = files.concat();
                let number = (round * 7) % files.len();
                let old = std::mem::replace(&mut files[number], file(&mut dice, number));
                let after: Vec<Document> = files.concat();
                let changed: Vec<&Document> = old.iter().chain(&files[number]).collect();
                let all: Vec<&Document> = after.iter().collect();
                let affected = impact(&changed, &all);
                // Documents of the old version that stay under their key: the new version may lack a part of them.
                let stays = |old: &&Document| files[number].iter().any(|new| new.is_same_object(old));
                let replaced: Vec<&Document> = old.iter().filter(stays).collect();
                let needed = needs(&replaced, &all, &|_| false);
                needs_found += needed.len();
                assert_eq!(needs(&replaced, &affected.documents, &|_| false), needed);
                let is_of = |problem: &Problem| affected.files.contains(problem.file.as_str());
                let mut got = check(&before.iter().collect::<Vec<_>>());
                got.retain(|problem| !is_of(problem));
                let fresh = check(&affected.documents);
                found += fresh.iter().filter(|problem| is_of(problem)).count();
                got.extend(fresh.into_iter().filter(is_of));
                crate::sort_problems(&mut got);
                assert_eq!(got, check(&all));
                narrowed += usize::from(affected.documents.len() < all.len());
            }
        }
        assert!(
            narrowed > 50 && found > 50 && needs_found > 0,
            "{narrowed} narrowed, {found} problems, {needs_found} needs: the test is about something"
        );
    }

    #[test]
    fn a_changed_file_of_two_thousand_is_checked_with_related_documents_only() {
        let pair = |n: usize, weight: u32| {
            let text = format!(
                "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: s{n}}}\nspec: {{host: s{n}, subsets: [{{name: v1}}]}}\n---\n\
                 apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: s{n}}}\nspec: {{hosts: [s{n}], http: [{{timeout: {weight}s, route: [{{destination: {{host: s{n}, subset: v1}}}}]}}]}}\n"
            );
            parse(&format!("f{n}.yaml"), &text).documents
        };
        let all: Vec<Document> = (0..2_000).flat_map(|n| pair(n, 1)).collect();
        let new = pair(77, 2);
        let changed: Vec<&Document> = new.iter().collect();
        let affected = impact(&changed, &all.iter().collect::<Vec<_>>());
        assert_eq!((affected.documents.len(), affected.files.len()), (2, 1));
        let entry = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: e}\n\
            spec: {hosts: [s77.default.svc.cluster.local], ports: [{number: 80, name: http}]}\n";
        let entry = parse("entry.yaml", entry).documents;
        let all: Vec<&Document> = all.iter().chain(&entry).collect();
        let affected = impact(&entry.iter().collect::<Vec<_>>(), &all);
        assert_eq!(
            (affected.documents.len(), affected.files.len()),
            (3, 2),
            "with the rule and the routes of its host"
        );
    }
}
