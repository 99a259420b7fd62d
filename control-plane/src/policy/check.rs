//! What only several documents together can have wrong.

use std::collections::{BTreeMap, BTreeSet};

use super::{Action, DestinationRule, Document, Object, Place, Problem, Severity, VirtualService, canonical};
use crate::world::patterns;

/// DestinationRules by canonical host, oldest first.
type Rules<'a> = BTreeMap<String, Vec<(&'a Document, &'a DestinationRule)>>;

/// Problems between `documents`, which is everything that is to be applied together.
pub fn check(documents: &[&Document]) -> Vec<Problem> {
    let mut problems = duplicates(documents);
    let sorted = by_age(documents);
    let mut rules = Rules::new();
    for document in &sorted {
        if let Object::DestinationRule(rule) = &document.object {
            rules.entry(canonical(&rule.host, &document.namespace)).or_default().push((document, rule));
        }
    }
    for (host, same_host) in &rules {
        problems.extend(rules_that_lose(host, same_host));
    }
    let mut owners: BTreeMap<String, Vec<&Document>> = BTreeMap::new();
    for document in sorted {
        match &document.object {
            Object::VirtualService(service) => {
                problems.extend(owned(document, service, &mut owners));
                problems.extend(routes(document, service, &rules));
            }
            Object::PeerAuthentication(policy)
                if document.namespace == super::ROOT_NAMESPACE && !policy.selector.is_empty() =>
            {
                let text = "a `selector` has no meaning in the root namespace: this policy is ignored, as in Istio";
                problems.push(problem(document, None, Severity::Warning, text.to_owned()));
            }
            _ => {}
        }
    }
    problems.sort_by(|a, b| (&a.file, a.place).cmp(&(&b.file, b.place)));
    problems
}

/// Takes the hosts of `service` that no older one owns.
fn owned<'a>(
    document: &'a Document,
    service: &VirtualService,
    owners: &mut BTreeMap<String, Vec<&'a Document>>,
) -> Vec<Problem> {
    let mut problems = Vec::new();
    // Gateways join the routes of several.
    let hosts = service.hosts.iter().filter(|_| service.of_mesh());
    for host in hosts.map(|host| canonical(host, &document.namespace)) {
        let all = owners.entry(host.clone()).or_default();
        // Which of two wins is another matter where one of them is for fewer.
        let same = |owner: &&&Document| owner.meets(document) && owner.object.export() == document.object.export();
        let owner = all.iter().find(same).filter(|owner| owner.key() != document.key());
        if let Some(owner) = owner {
            let owner = owner.reference();
            let text = format!("{owner} is older and owns host `{host}`: this one has no effect on it");
            problems.push(problem(document, None, Severity::Warning, text));
        }
        all.push(document);
    }
    problems
}

/// Oldest first; of the same age by namespace and name.
fn by_age<'a>(documents: &[&'a Document]) -> Vec<&'a Document> {
    let mut sorted = documents.to_vec();
    sorted.sort_by(|a, b| (a.created, &a.namespace, &a.name).cmp(&(b.created, &b.namespace, &b.name)));
    sorted
}

fn duplicates(documents: &[&Document]) -> Vec<Problem> {
    let mut seen: BTreeMap<_, &Document> = BTreeMap::new();
    let mut problems = Vec::new();
    for document in documents {
        if let Some(first) = seen.get(&document.key()) {
            let text = format!("{} is defined already at {}:{}", document.reference(), first.file, first.line);
            problems.push(problem(document, None, Severity::Error, text));
        } else {
            seen.insert(document.key(), document);
        }
    }
    problems
}

fn routes(document: &Document, service: &VirtualService, rules: &Rules<'_>) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut caught = None;
    for route in &service.http {
        if let Some(line) = caught {
            let text = format!("never reached: the route at line {line} matches every request");
            problems.push(problem(document, Some(route.place), Severity::Warning, text));
        } else if crate::translate::takes_all(route) {
            caught = Some(route.place.line);
        }
        let Action::Forward(forward) = &route.action else { continue };
        for destination in forward.destinations.iter().filter(|destination| !destination.subset.is_empty()) {
            let host = canonical(&destination.host, &document.namespace);
            let of_pattern = |pattern| rules.get(&pattern).into_iter().flatten();
            let rules: Vec<&DestinationRule> = patterns(&host).flat_map(of_pattern).map(|(_, rule)| *rule).collect();
            let subset = &destination.subset;
            if rules.iter().any(|rule| rule.subsets.iter().any(|known| known.name == *subset)) {
                continue;
            }
            let (severity, text) = if rules.is_empty() {
                (
                    Severity::Warning,
                    format!("subset `{subset}`: no DestinationRule for `{host}` is among the given documents"),
                )
            } else {
                let known: BTreeSet<&str> =
                    rules.iter().flat_map(|rule| &rule.subsets).map(|subset| subset.name.as_str()).collect();
                let known: Vec<&str> = known.into_iter().collect();
                let hint = if known.is_empty() {
                    "; it has none".to_owned()
                } else {
                    super::nearest::suggest(subset, &known, "it has")
                };
                (Severity::Error, format!("the DestinationRule of `{host}` has no subset `{subset}`{hint}"))
            };
            problems.push(problem(document, Some(destination.place), severity, text));
        }
    }
    problems
}

/// Rules of one host and namespace that the same namespaces see are joined: the oldest policy stays, and of two subsets of
/// one name the older one.
fn rules_that_lose(host: &str, rules: &[(&Document, &DestinationRule)]) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut policies: Vec<&Document> = Vec::new();
    let mut subsets: Vec<(&str, &Document)> = Vec::new();
    for (document, rule) in rules {
        let joined = |other: &Document| {
            other.namespace == document.namespace && other.object.export() == document.object.export()
        };
        for subset in &rule.subsets {
            let known = subsets.iter().find(|(name, other)| *name == subset.name && joined(other));
            let first = known.map_or(*document, |(_, first)| *first);
            subsets.push((&subset.name, document));
            if first.key() != document.key() {
                let first = first.reference();
                let text = format!("subset `{}` is ignored: {first}, which is older, defines it", subset.name);
                problems.push(problem(document, None, Severity::Warning, text));
            }
        }
        if rule.traffic_policy.is_some() {
            let first = policies.iter().find(|other| joined(other)).copied().unwrap_or(document);
            policies.push(document);
            if first.key() != document.key() {
                let first = first.reference();
                let text = format!("`trafficPolicy` is ignored: {first}, which is older, has one for `{host}`");
                problems.push(problem(document, None, Severity::Warning, text));
            }
        }
    }
    problems
}

fn problem(document: &Document, place: Option<Place>, severity: Severity, text: String) -> Problem {
    let place = place.unwrap_or(Place { line: document.line, column: 1 });
    Problem { file: document.file.clone(), place, severity, path: String::new(), text }
}

#[cfg(test)]
mod tests;
