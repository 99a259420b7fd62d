//! The documents that a change can affect: only those are checked again, so that the cost of one changed file does not
//! depend on the number of files.
//!
//! For DestinationRules and VirtualServices the compared documents are known: objects of the same name, rules and
//! routes of the same host, rules and ports of the hosts that routes lead to, and documents of other kinds, which never
//! depend on rules and routes. Any other change is checked against everything.

use std::collections::HashSet;

use weft_core::names::patterns;

use crate::{Action, Document, Object, VirtualService, canonical};

/// A part of the documents, checked together.
#[derive(Debug)]
pub struct Impact<'a> {
    /// The documents, in their order.
    pub documents: Vec<&'a Document>,
    /// The files whose problems the change can affect: the check of `documents` finds all problems of these files only.
    pub files: HashSet<&'a str>,
}

/// The impact of a change; `changed` are the old and the new versions, `all` are all documents that are applied
/// together. `None`: everything is checked.
pub fn impact<'a>(changed: &[&'a Document], all: &[&'a Document]) -> Option<Impact<'a>> {
    if !changed.iter().all(|document| is_plain(document)) {
        return None;
    }
    let names: HashSet<&str> = changed.iter().map(|document| document.name.as_str()).collect();
    let of_changed = Hosts::of(changed);
    let mut files: HashSet<&str> = changed.iter().map(|document| document.file.as_str()).collect();
    for document in all {
        let same = names.contains(document.name.as_str()) && changed.iter().any(|other| other.is_same_object(document));
        if same || of_changed.touches(document) {
            files.insert(&document.file);
        }
    }
    let of_files: Vec<&Document> =
        all.iter().filter(|document| files.contains(document.file.as_str())).copied().collect();
    let beside = Hosts::of(&of_files);
    let is_part = |document: &&&Document| {
        files.contains(document.file.as_str()) || !is_plain(document) || beside.is_compared_with(document)
    };
    Some(Impact { documents: all.iter().filter(is_part).copied().collect(), files })
}

fn first_label(host: &str) -> &str {
    host.split_once('.').map_or(host, |(label, _)| label)
}

/// A rule, or routes that neither are a delegate nor have one.
fn is_plain(document: &Document) -> bool {
    match &document.object {
        Object::DestinationRule(_) => true,
        Object::VirtualService(service) => !service.hosts.is_empty() && !delegates(service),
        _ => false,
    }
}

fn delegates(service: &VirtualService) -> bool {
    service.http.iter().any(|route| matches!(route.action, Action::Delegate(_)))
}

/// Up to this many first labels of hosts are compared one by one.
const FEW: usize = 32;

/// Hosts that rules and routes of some documents name, in full.
struct Hosts {
    rules: HashSet<String>,
    routes: HashSet<String>,
    /// Destinations of the routes.
    destinations: HashSet<String>,
    /// The first labels of all of these; `None`: any, because there are many or a wildcard.
    labels: Option<Vec<String>>,
}

impl Hosts {
    fn of(documents: &[&Document]) -> Self {
        let mut hosts =
            Hosts { rules: HashSet::new(), routes: HashSet::new(), destinations: HashSet::new(), labels: None };
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
                _ => {}
            }
        }
        let all = || hosts.rules.iter().chain(&hosts.routes).chain(&hosts.destinations);
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
        match &document.object {
            Object::DestinationRule(rule) => self.may_have(&rule.host) && self.rules.contains(&full(&rule.host)),
            Object::VirtualService(service) => {
                let leads = |host: String| patterns(&host, true).any(|pattern| self.rules.contains(&pattern));
                service.hosts.iter().any(|host| self.may_have(host) && self.routes.contains(&full(host)))
                    || service.destinations().any(|to| self.may_have(&to.host) && leads(full(&to.host)))
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
    use crate::{Problem, check, parse};

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

    fn file(dice: &mut Dice, number: usize) -> Vec<Document> {
        let mut texts = Vec::new();
        for n in 0..2 {
            let (subset, host, to) = (dice.roll(&["v1", "v2", "v3"]), dice.roll(&HOSTS), dice.roll(&HOSTS[..4]));
            let policy = dice.roll(&["", ", trafficPolicy: {tls: {mode: DISABLE}}"]);
            let export = dice.roll(&["", ", exportTo: ['.']"]);
            let (kind, spec) = match dice
                .roll(&["rule", "rule", "route", "route", "route", "entry", "peer", "delegate"])
            {
                "rule" => {
                    ("DestinationRule", format!("{{host: {host}, subsets: [{{name: {subset}}}]{policy}{export}}}"))
                }
                "entry" => (
                    "ServiceEntry",
                    format!(
                        "{{hosts: [x.example.com], resolution: DNS, ports: [{{number: {}, name: http}}]}}",
                        dice.roll(&["80", "81"])
                    ),
                ),
                "peer" => ("PeerAuthentication", "{mtls: {mode: STRICT}}".to_owned()),
                "delegate" => ("VirtualService", "{http: [{route: [{destination: {host: a}}]}]}".to_owned()),
                _ => (
                    "VirtualService",
                    format!(
                        "{{hosts: [{host}]{export}, http: [{{route: [{{destination: {{host: {to}, subset: {subset}}}}}]}}]}}"
                    ),
                ),
            };
            let meta = format!("{{name: n{number}x{n}, namespace: {}}}", dice.roll(&["default", "other"]));
            let group = if kind == "PeerAuthentication" { "security" } else { "networking" };
            texts.push(format!("apiVersion: {group}.istio.io/v1\nkind: {kind}\nmetadata: {meta}\nspec: {spec}\n"));
        }
        // A document with an error of its own is of no use here.
        parse(&format!("f{number}.yaml"), &texts.join("---\n")).documents
    }

    #[test]
    fn a_check_of_the_affected_finds_what_a_check_of_all_does() {
        let mut dice = Dice(7);
        let (mut narrowed, mut found) = (0, 0);
        for _ in 0..40 {
            let mut files: Vec<Vec<Document>> = (0..12).map(|number| file(&mut dice, number)).collect();
            for round in 0..12 {
                let before: Vec<Document> = files.concat();
                let number = (round * 7) % files.len();
                let old = std::mem::replace(&mut files[number], file(&mut dice, number));
                let after: Vec<Document> = files.concat();
                let changed: Vec<&Document> = old.iter().chain(&files[number]).collect();
                let all: Vec<&Document> = after.iter().collect();
                let Some(affected) = impact(&changed, &all) else { continue };
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
        assert!(narrowed > 50 && found > 50, "{narrowed} narrowed, {found} problems: the test is about something");
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
        let affected = impact(&changed, &all.iter().collect::<Vec<_>>()).expect("rules and routes");
        assert_eq!((affected.documents.len(), affected.files.len()), (2, 1));
    }
}
