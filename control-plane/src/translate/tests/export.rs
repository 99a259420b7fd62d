//! `exportTo`: who sees which documents.

use super::*;

/// The limit of connections that clients of a namespace have to the host.
fn limit(world: &World, client_ns: &str) -> u32 {
    max(&service(world, &Scope::of(client_ns), ORDER).unwrap(), &format!("outbound|0||{ORDER}"))
}

fn rule(name: &str, namespace: &str, export: &str, connections: u32) -> String {
    let spec = format!(
        "{{host: {ORDER}, exportTo: {export}, trafficPolicy: {{connectionPool: {{tcp: {{maxConnections: {connections}}}}}}}}}"
    );
    doc("DestinationRule", name, namespace, &spec)
}

#[test]
fn rules_reach_the_namespaces_that_they_are_exported_to() {
    for (documents, limits) in [
        // The service's own rule, for itself alone.
        (rule("a", "default", "[.]", 1), [("default", 1), ("shop", 0)]),
        (rule("a", "default", "[shop]", 1), [("shop", 1), ("other", 0)]),
        // One's own namespace is looked at first, and sees its own whoever else does.
        (rule("a", "default", "['*']", 1) + &rule("b", "shop", "[other]", 2), [("shop", 2), ("other", 1)]),
        (rule("a", ROOT, "['*']", 1) + &rule("b", "default", "[.]", 2), [("default", 2), ("shop", 1)]),
        (rule("a", ROOT, "[default]", 1), [("default", 1), ("shop", 0)]),
        // Of one namespace, the oldest that is seen.
        (rule("a", "default", "[shop]", 1) + &rule("b", "default", "['*']", 2), [("shop", 1), ("other", 2)]),
    ] {
        let world = world(&documents, &orders());
        for (client_ns, want) in limits {
            assert_eq!(limit(&world, client_ns), want, "{client_ns} {documents}");
        }
    }
}

const ROOT: &str = crate::policy::ROOT_NAMESPACE;

#[test]
fn rules_are_joined_where_the_same_namespaces_see_them() {
    let subset = |name: &str, export: &str| {
        let spec =
            format!("{{host: {ORDER}, exportTo: {export}, subsets: [{{name: {name}, labels: {{version: {name}}}}}]}}");
        doc("DestinationRule", name, "default", &spec)
    };
    let routes = doc(
        "VirtualService",
        "v",
        "default",
        &format!(
            "{{hosts: [{ORDER}], http: [{{route: [{{destination: {{host: {ORDER}, subset: v1}}, weight: 1}}, {{destination: \
             {{host: {ORDER}, subset: v2}}, weight: 1}}]}}]}}"
        ),
    );
    for (first, second, undefined) in [("['*']", "['*']", 0), ("['*']", "[shop]", 1)] {
        let world = world(&(subset("v1", first) + &subset("v2", second) + &routes), &orders());
        let service = service(&world, &Scope::of("shop"), ORDER).unwrap();
        assert_eq!(service.clusters.iter().filter(|cluster| cluster.undefined).count(), undefined, "{first} {second}");
    }
}

#[test]
fn routes_of_whom_a_client_sees() {
    let routes = |name: &str, namespace: &str, export: &str, status: u32| {
        let spec =
            format!("{{hosts: [{ORDER}], exportTo: {export}, http: [{{directResponse: {{status: {status}}}}}]}}");
        doc("VirtualService", name, namespace, &spec)
    };
    let documents = routes("a", "default", "['*']", 200)
        + &routes("b", "default", "[shop]", 201)
        + &routes("c", "shop", "[.]", 202)
        + &routes("d", "other", "[third]", 203);
    let world = world(&documents, &orders());
    for (client_ns, want) in [("default", 200), ("shop", 202), ("third", 203), ("other", 200)] {
        let service = service(&world, &Scope::of(client_ns), ORDER).unwrap();
        let [route] = &service.ports[0].routes[..] else { panic!("{client_ns}: {:?}", service.ports) };
        let Some(Action::DirectResponse(response)) = &route.action else { panic!("{route:?}") };
        assert_eq!(response.status, want, "{client_ns}");
    }
}

#[test]
fn hosts_that_are_not_for_everybody() {
    let entry = |export: &str| {
        let spec = format!(
            "{{hosts: [db.example], exportTo: {export}, addresses: [192.0.2.9], ports: [{{number: 80, name: http, protocol: \
             HTTP}}], resolution: STATIC, endpoints: [{{address: 10.1.0.1}}]}}"
        );
        let routes = format!(
            "{{hosts: [{ORDER}], http: [{{route: [{{destination: {{host: db.example, port: {{number: 80}}}}}}]}}]}}"
        );
        doc("ServiceEntry", "db", "default", &spec) + &doc("VirtualService", "v", "default", &routes)
    };
    for (export, client_ns, seen) in [
        ("['*']", "shop", true),
        ("[.]", "shop", false),
        ("[.]", "default", true),
        ("[shop]", "shop", true),
        ("['~']", "default", false),
    ] {
        let world = world(&entry(export), &orders());
        for name in ["db.example", "192.0.2.9", "192.0.2.9:80", "10.1.0.1:80"] {
            assert_eq!(resolve(&world, &Scope::of(client_ns), name).is_some(), seen, "{export} {client_ns} {name}");
        }
        let service = service(&world, &Scope::of(client_ns), ORDER).unwrap();
        let cluster = cluster(&service, "outbound|80||db.example");
        assert_eq!(cluster.undefined, !seen, "{export} {client_ns}: no way to it by a route either");
    }
}
