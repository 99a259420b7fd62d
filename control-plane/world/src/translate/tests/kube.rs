//! Headless Services and Services of type ExternalName.

use super::*;
use crate::translate::{Meaning, lookup};

const HEADLESS: &str = "{clusterIP: None, selector: {app: db}, ports: [{name: http, port: 80, targetPort: 8080}]}";

/// Instances of a service `shop`, which the headless `db` selects.
fn selected() -> Vec<Instance> {
    let one = |id: &str, address: &str| {
        let mut instance = instance("shop", id, address, 8080);
        instance.node = format!("{id}-0a1b2c3d");
        instance.service_id = "shop".to_owned();
        instance.labels.insert("app".to_owned(), "db".to_owned());
        instance
    };
    vec![one("db-0", "10.0.0.1"), one("db-1", "10.0.0.2")]
}

fn name_of(world: &World, name: &str) -> Option<(String, Meaning)> {
    lookup(world, &Scope::of("default"), name).map(|(host, by)| (host.name.clone(), by))
}

#[test]
fn a_headless_service_has_no_virtual_ip_and_endpoints_with_names() {
    let world = world(&doc("Service", "db", "default", HEADLESS), &selected());
    let db = service(&world, &Scope::of("default"), "db.default.svc.cluster.local").unwrap();
    assert!(db.addresses.is_empty() && db.clusters[0].headless, "{db:?}");
    let endpoints = endpoints(&world, "db.default.svc.cluster.local").unwrap().endpoints;
    let names: Vec<_> = endpoints.iter().map(|endpoint| (endpoint.address.as_str(), &endpoint.hostnames[..])).collect();
    let all = |name: &str| [name.to_owned(), format!("{name}-0a1b2c3d"), "shop".to_owned()];
    assert_eq!(names, [("10.0.0.1", &all("db-0")[..]), ("10.0.0.2", &all("db-1")[..])]);
    // The Service's own port, and that of the instance.
    let host = Some(("db.default.svc.cluster.local".to_owned(), Meaning::Endpoint));
    assert_eq!((name_of(&world, "10.0.0.1:80"), name_of(&world, "10.0.0.2:8080")), (host.clone(), host));
    assert_eq!(name_of(&world, "10.0.0.1:81"), None);
}

#[test]
fn an_endpoint_of_a_headless_service_resolves_by_its_name() {
    let mut world = world(&doc("Service", "db", "default", HEADLESS), &selected());
    let host = Some(("db.default.svc.cluster.local".to_owned(), Meaning::EndpointName));
    for name in ["db-0.db", "DB-1.db.default", "db-0.db.default.svc", "db-0.db.default.svc.cluster.local."] {
        assert_eq!(name_of(&world, name), host, "{name}");
    }
    for name in ["db-2.db", "db-0.shop", "db-0.db.other"] {
        assert_eq!(name_of(&world, name), None, "{name}");
    }
    let changed = world.remove(&selected()[0].key(), 0);
    assert!(
        changed.renamed.contains("db.default.svc.cluster.local"),
        "the name of the endpoint means nothing any more"
    );
    assert_eq!((name_of(&world, "db-0.db"), name_of(&world, "db-1.db")), (None, host));
}

#[test]
fn a_headless_service_without_ports_has_those_of_its_instances() {
    let world = world(&doc("Service", "shop", "default", "{clusterIP: None}"), &selected());
    let shop = service(&world, &Scope::of("default"), "shop.default.svc.cluster.local").unwrap();
    assert_eq!(shop.ports.iter().map(|port| port.number).collect::<Vec<_>>(), [0]);
    assert!(shop.addresses.is_empty() && shop.clusters[0].headless, "{shop:?}");
}

#[test]
fn instances_that_are_not_ready_are_published_if_the_service_allows_it() {
    let mut sick = selected();
    sick[0].health = Health::Unhealthy;
    for (spec, want) in [
        (HEADLESS.to_owned(), Health::Unhealthy),
        (HEADLESS.replace("clusterIP", "publishNotReadyAddresses: true, clusterIP"), Health::Healthy),
    ] {
        let world = world(&doc("Service", "db", "default", &spec), &sick);
        let endpoints = endpoints(&world, "db.default.svc.cluster.local").unwrap().endpoints;
        assert_eq!(endpoints[0].health(), want, "{spec}");
    }
}

fn alias(name: &str, target: &str) -> String {
    doc("Service", name, "default", &format!("{{type: ExternalName, externalName: {target}}}"))
}

#[test]
fn an_alias_resolves_to_its_target() {
    let text = [alias("a", "b.default.svc.cluster.local"), alias("b", ORDER)].concat();
    let mut world = world(&text, &orders());
    assert_eq!(name_of(&world, "a"), Some((ORDER.to_owned(), Meaning::Alias)));
    assert_eq!(name_of(&world, "b.default"), Some((ORDER.to_owned(), Meaning::Alias)));
    // An alias of a host outside the mesh is reported as such.
    world.set_policies(documents(&alias("a", "api.example.com")), 0);
    let a = service(&world, &Scope::of("default"), "a.default.svc.cluster.local").unwrap();
    assert_eq!((a.external_name.as_str(), a.addresses.len(), a.ports.len()), ("api.example.com", 0, 0));
    world.set_policies(
        documents(&[alias("a", "b.default.svc.cluster.local"), alias("b", "a.default.svc.cluster.local")].concat()),
        0,
    );
    assert_eq!(name_of(&world, "a"), None, "a loop leads nowhere");
}

#[test]
fn a_route_to_an_alias_leads_to_its_target() {
    let route =
        doc("VirtualService", "shop", "default", "{hosts: [shop], http: [{route: [{destination: {host: a}}]}]}");
    let mut world = world(&[route, alias("a", ORDER)].concat(), &orders());
    let shop = service(&world, &Scope::of("default"), "shop.default.svc.cluster.local").unwrap();
    assert!(shop.clusters.iter().any(|cluster| cluster.host == ORDER && !cluster.undefined), "{:?}", shop.clusters);
    let changed = world.upsert(instance("order-service", "order-3", "10.0.0.3", 9090), 0);
    assert!(changed.hosts.contains("shop.default.svc.cluster.local"), "{changed:?}");
}

/// Callers of a gateway dial no endpoint directly: as in Istio, requests are balanced.
#[test]
fn a_gateway_balances_the_endpoints_of_a_headless_service() {
    let route =
        "{hosts: [db.test], gateways: [front], http: [{route: [{destination: {host: db, port: {number: 80}}}]}]}";
    let gateway =
        "{selector: {app: front}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: [db.test]}]}";
    let text = [
        doc("Service", "db", "default", HEADLESS),
        doc("Gateway", "front", "default", gateway),
        doc("VirtualService", "db", "default", route),
    ];
    let world = world(&text.concat(), &selected());
    let host = crate::world::gateway_host("default", "front", "http", "db.test");
    let service = service(&world, &Scope::of("default"), &host).unwrap();
    assert!(service.clusters.iter().any(|cluster| cluster.host == "db.default.svc.cluster.local"), "{service:?}");
    assert!(service.clusters.iter().all(|cluster| !cluster.headless), "{service:?}");
}
