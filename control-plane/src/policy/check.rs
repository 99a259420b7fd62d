//! What only several documents together can have wrong.

use std::collections::{BTreeMap, BTreeSet};

use super::{Action, DestinationRule, Document, Object, Place, Problem, Severity, VirtualService, canonical, covers};

/// Problems between `documents`, which is everything that is to be applied together.
pub fn check(documents: &[&Document]) -> Vec<Problem> {
    let mut problems = duplicates(documents);
    let mut owners: BTreeMap<String, &Document> = BTreeMap::new();
    for document in by_age(documents) {
        match &document.object {
            Object::VirtualService(service) => {
                for host in &service.hosts {
                    let host = canonical(host, &document.namespace);
                    if let Some(owner) = owners.get(&host) {
                        let owner = owner.reference();
                        let text = format!("{owner} is older and owns host `{host}`: this one has no effect on it");
                        problems.push(problem(document, None, Severity::Warning, text));
                    } else {
                        owners.insert(host, document);
                    }
                }
                problems.extend(routes(document, service, documents));
            }
            Object::DestinationRule(rule) => problems.extend(subset_overlap(document, rule, documents)),
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

/// Oldest first; of the same age by namespace and name.
pub(crate) fn by_age<'a>(documents: &[&'a Document]) -> Vec<&'a Document> {
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

fn routes(document: &Document, service: &VirtualService, documents: &[&Document]) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut caught = None;
    for route in &service.http {
        if let Some(line) = caught {
            let text = format!("never reached: the route at line {line} matches every request");
            problems.push(problem(document, Some(route.place), Severity::Warning, text));
        } else if crate::translate::is_catch_all(&route.matches) {
            caught = Some(route.place.line);
        }
        let Action::Forward(forward) = &route.action else { continue };
        for destination in forward.destinations.iter().filter(|destination| !destination.subset.is_empty()) {
            let host = canonical(&destination.host, &document.namespace);
            let rules: Vec<&DestinationRule> = rules_of(&host, documents).collect();
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
                    super::fields::suggest(subset, &known, "it has")
                };
                (Severity::Error, format!("the DestinationRule of `{host}` has no subset `{subset}`{hint}"))
            };
            problems.push(problem(document, Some(destination.place), severity, text));
        }
    }
    problems
}

fn rules_of<'a>(host: &'a str, documents: &'a [&Document]) -> impl Iterator<Item = &'a DestinationRule> {
    documents.iter().filter_map(move |document| match &document.object {
        Object::DestinationRule(rule) if covers(&canonical(&rule.host, &document.namespace), host) => Some(rule),
        _ => None,
    })
}

/// Two rules of one host and namespace are merged; of two subsets of one name the older rule's stays.
fn subset_overlap(document: &Document, rule: &DestinationRule, documents: &[&Document]) -> Vec<Problem> {
    let host = canonical(&rule.host, &document.namespace);
    let older = by_age(documents).into_iter().take_while(|other| other.key() != document.key());
    let mut problems = Vec::new();
    for other in older.filter(|other| other.namespace == document.namespace) {
        let Object::DestinationRule(first) = &other.object else { continue };
        if canonical(&first.host, &other.namespace) != host {
            continue;
        }
        let reference = other.reference();
        for subset in rule.subsets.iter().filter(|subset| first.subsets.iter().any(|known| known.name == subset.name)) {
            let text = format!("subset `{}` is ignored: {reference}, which is older, defines it", subset.name);
            problems.push(problem(document, None, Severity::Warning, text));
        }
        if rule.traffic_policy.is_some() && first.traffic_policy.is_some() {
            let text = format!("`trafficPolicy` is ignored: {reference}, which is older, has one for `{host}`");
            problems.push(problem(document, None, Severity::Warning, text));
        }
    }
    problems
}

fn problem(document: &Document, place: Option<Place>, severity: Severity, text: String) -> Problem {
    let place = place.unwrap_or(Place { line: document.line, column: 1 });
    Problem { file: document.file.clone(), place, severity, path: String::new(), text }
}
