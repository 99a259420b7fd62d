//! What the documents and the registry show only together: hosts that nobody offers, subsets that nobody is in, ports that
//! a route leaves open. Warnings, never errors: what is missing may register in the next minute.

use std::collections::{BTreeMap, BTreeSet};

use super::ports;
use crate::{
    policy::{DestinationRule, Document, Kind, Object, Place, Problem, Severity, VirtualService, canonical},
    world::{MESH_SUFFIX, World, has_all},
};

/// What is odd about the policies of `world`, sorted by file and place. `complete`: the world knows all registrations, so
/// that what it does not know is not there.
pub fn warnings(world: &World, complete: bool) -> Vec<Problem> {
    let elsewhere = Elsewhere::of(world);
    let mut found = Vec::new();
    gateways_that_are_not(world, &mut found);
    for document in world.documents() {
        match &document.object {
            Object::DestinationRule(rule) => of_rule(world, &elsewhere, document, rule, &mut found),
            Object::VirtualService(service) => of_routes(world, &elsewhere, document, service, complete, &mut found),
            Object::ServiceExport if complete => of_export(world, &elsewhere, document, &mut found),
            _ => {}
        }
    }
    found.sort_by(|a, b| (&a.file, a.place).cmp(&(&b.file, b.place)));
    found.dedup();
    found
}

/// Live hosts of the mesh by their service's name.
struct Elsewhere<'a>(BTreeMap<&'a str, BTreeSet<&'a str>>);

impl<'a> Elsewhere<'a> {
    fn of(world: &'a World) -> Self {
        let mut hosts: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for host in world.hosts().filter(|host| host.live && host.name.ends_with(MESH_SUFFIX)) {
            let service = host.name.split('.').next().unwrap_or_default();
            hosts.entry(service).or_default().insert(&host.name);
        }
        Self(hosts)
    }

    /// Hosts of other namespaces that `name`, which means a host that is not there, may have meant.
    fn hint(&self, name: &str) -> Option<String> {
        let hosts = self.0.get(name.split('.').next()?)?;
        let hosts: Vec<String> = hosts.iter().map(|host| format!("`{host}`")).collect();
        Some(hosts.join(" and "))
    }
}

/// VirtualServices for gateways that no document defines.
fn gateways_that_are_not(world: &World, found: &mut Vec<Problem>) {
    for document in world.documents() {
        let Object::VirtualService(service) = &document.object else { continue };
        for (namespace, name) in service.of_gateways(&document.namespace) {
            if world.document(Kind::Gateway, namespace, name).is_none() {
                let text = format!("gateway `{namespace}/{name}` is not there: nothing of this is served by it");
                found.push(warning(document, None, text));
            }
        }
    }
}

/// An export of what is not here.
fn of_export(world: &World, elsewhere: &Elsewhere<'_>, document: &Document, found: &mut Vec<Problem>) {
    let host = crate::world::fqdn(&document.name, &document.namespace);
    if world.host(&host).is_none_or(|host| !host.live) {
        let hint = elsewhere.hint(&host).map(|hint| format!("; there is {hint}")).unwrap_or_default();
        found.push(warning(document, None, format!("`{host}`, which this exports, nobody offers{hint}")));
    }
}

fn known(world: &World, host: &str) -> bool {
    host.starts_with('*') || world.host_or_wildcard(host).is_some_and(|host| host.live)
}

fn of_rule(
    world: &World,
    elsewhere: &Elsewhere<'_>,
    document: &Document,
    rule: &DestinationRule,
    found: &mut Vec<Problem>,
) {
    let host = canonical(&rule.host, &document.namespace);
    if !known(world, &host) {
        if let Some(hint) = elsewhere.hint(&host) {
            let text = format!("host `{}` means `{host}`, which nobody offers; there is {hint}", rule.host);
            found.push(warning(document, None, text));
        }
        return;
    }
    let Some(host) = world.host(&host) else { return };
    let entry = ports::entry(host).zip(host.entry.as_ref());
    let of_entry = || entry.into_iter().flat_map(|(e, d)| world.policies().entry_endpoints(&d.namespace, e));
    let all = || world.endpoints_of(host).map(|i| &i.labels).chain(of_entry().map(|(_, endpoint)| &endpoint.labels));
    if all().next().is_none() {
        return;
    }
    for subset in &rule.subsets {
        if !all().any(|labels| has_all(labels, &subset.labels)) {
            let labels: Vec<String> = subset.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
            let text = format!("subset `{}`: no instance of `{}` has {}", subset.name, host.name, labels.join(", "));
            found.push(warning(document, None, text));
        }
    }
}

fn of_routes(
    world: &World,
    elsewhere: &Elsewhere<'_>,
    document: &Document,
    service: &VirtualService,
    complete: bool,
    found: &mut Vec<Problem>,
) {
    for destination in service.destinations() {
        let name = canonical(&destination.host, &document.namespace);
        let host = world.host_or_wildcard(&name).filter(|host| host.live);
        // One that only routes name is live too, and offered by nobody.
        let offered = host.filter(|host| {
            host.service.is_some() || host.entry.is_some() || world.members_of(&host.name).next().is_some()
        });
        let Some(host) = offered else {
            if host.is_some() && !name.ends_with(MESH_SUFFIX) {
                // Outside the mesh: where the caller's own DNS says.
                continue;
            }
            let hint = elsewhere.hint(&name).filter(|_| host.is_none());
            let text = format!("host `{}` means `{name}`, which nobody offers", destination.host);
            match hint {
                Some(hint) => {
                    found.push(warning(document, Some(destination.place), format!("{text}; there is {hint}")))
                }
                None if complete => found.push(warning(document, Some(destination.place), text)),
                None => {}
            }
            continue;
        };
        let ports = ports::of(world, host);
        if destination.port.is_none() && ports.len() > 1 {
            let numbers: Vec<String> = ports.iter().map(|port| port.number.to_string()).collect();
            let text = format!(
                "`{name}` has the ports {}: without `port.number` a request keeps the port that it came for, and gets \
                 503 where there is none such",
                numbers.join(", ")
            );
            found.push(warning(document, Some(destination.place), text));
        }
    }
}

fn warning(document: &Document, place: Option<Place>, text: String) -> Problem {
    Problem {
        file: document.file.clone(),
        place: place.unwrap_or(Place { line: document.line, column: 1 }),
        severity: Severity::Warning,
        path: String::new(),
        text,
    }
}
