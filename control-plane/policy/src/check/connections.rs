//! Connection routes that are unreachable, because an earlier route takes all of their connections.

use std::collections::{BTreeMap, HashMap};

use crate::{Code, ConnectionMatch, ConnectionRoute, Document, Finding, VirtualService};

/// Bound on the earlier matches that a match is compared with.
const MOST: usize = 200;

/// The routes and matches of `service` for connections that have no effect.
pub(super) fn check<'a>(document: &'a Document, service: &'a VirtualService) -> Vec<Finding<'a>> {
    let mut findings = of_list(document, "tls", &service.tls);
    findings.extend(of_list(document, "tcp", &service.tcp));
    findings
}

/// Matches, each with the place and the line of its route.
type Matches<'a> = Vec<(&'a ConnectionMatch, (usize, u32))>;

fn of_list<'a>(document: &'a Document, list: &str, routes: &'a [ConnectionRoute]) -> Vec<Finding<'a>> {
    let mut findings = Vec::new();
    let mut earlier: Matches<'_> = Vec::new();
    // Most matches differ by their server names; equal ones are found whatever their number.
    let mut equal: HashMap<Vec<&str>, Matches<'_>> = HashMap::new();
    let mut all: Option<(usize, u32)> = None;
    for (n, route) in routes.iter().enumerate() {
        let here = (n, route.place.line);
        let mut covering: Vec<Option<(usize, u32)>> = Vec::new();
        for one in &route.matches {
            let same = equal.entry(names(one)).or_default();
            let compared = same.iter().chain(&earlier).take(2 * MOST);
            let by = compared.filter(|(other, _)| within(other, one)).map(|(_, at)| *at).min();
            covering.push(all.or(by));
            if same.len() < MOST {
                same.push((one, here));
            }
            if earlier.len() < MOST {
                earlier.push((one, here));
            }
        }
        let mut report =
            |path: String, text: String| findings.push(Finding::warning(document, path, Code::Unreachable, text));
        let first = if route.matches.is_empty() { all } else { covering.iter().copied().min().flatten() };
        if let Some((_, by)) = first.filter(|_| covering.iter().all(Option::is_some)) {
            report(format!("{list}[{n}]"), format!("never reached: the route at line {by} matches all that this does"));
        } else {
            for (m, (at, by)) in covering.iter().enumerate().filter_map(|(m, by)| Some((m, (*by)?))) {
                let text = match at == n {
                    true => "without effect: another match of this route takes all that this does".to_owned(),
                    false => format!("without effect: the route at line {by} matches all that this does"),
                };
                report(format!("{list}[{n}].match[{m}]"), text);
            }
        }
        if route.matches.is_empty() && all.is_none() {
            all = Some(here);
        }
    }
    findings
}

fn names(one: &ConnectionMatch) -> Vec<&str> {
    let mut names: Vec<&str> = one.server_names.iter().map(String::as_str).collect();
    names.sort_unstable();
    names
}

/// Whether `outer` takes every connection that `inner` does. Envoy looks server names up from the most to the least
/// specific, so that an earlier wildcard takes nothing from a later name within it.
fn within(outer: &ConnectionMatch, inner: &ConnectionMatch) -> bool {
    let has_name = |name: &String| outer.server_names.iter().any(|outer| outer == name);
    let subnets = |outer: &[String], inner: &[String]| {
        outer.is_empty() || !inner.is_empty() && inner.iter().all(|one| outer.contains(one))
    };
    let labels = |outer: &BTreeMap<String, String>| {
        outer.iter().all(|(name, value)| inner.source_labels.get(name) == Some(value))
    };
    (outer.server_names.is_empty() || !inner.server_names.is_empty() && inner.server_names.iter().all(has_name))
        && (outer.port.is_none() || outer.port == inner.port)
        && subnets(&outer.destinations, &inner.destinations)
        && (outer.source.is_empty() || outer.source == inner.source)
        && labels(&outer.source_labels)
        && (outer.source_namespace.is_empty() || outer.source_namespace == inner.source_namespace)
        && (outer.gateways.is_empty()
            || !inner.gateways.is_empty() && inner.gateways.iter().all(|one| outer.gateways.contains(one)))
}
