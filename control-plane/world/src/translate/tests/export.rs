//! `exportTo`: the namespaces that see a document.

use super::*;

/// The connection limit of a namespace's clients for the host.
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
        // The client's own namespace is looked at first, and sees its own rules in any case.
        (rule("a", "default", "['*']", 1) + &rule("b", "shop", "[other]", 2), [("shop", 2), ("other", 1)]),
        (rule("a", ROOT, "['*']", 1) + &rule("b", "default", "[.]", 2), [("default", 2), ("shop", 1)]),
        (rule("a", ROOT, "[default]", 1), [("default", 1), ("shop", 0)]),
        // Of one namespace, the oldest visible one.
        (rule("a", "default", "[shop]", 1) + &rule("b", "default", "['*']", 2), [("shop", 1), ("other", 2)]),
    ] {
        let world = world(&documents, &orders());
        for (client_ns, want) in limits {
            assert_eq!(limit(&world, client_ns), want, "{client_ns} {documents}");
        }
    }
}

const ROOT: &str = weft_policy::ROOT_NAMESPACE;

#[test]
fn rules_with_the_same_audience_are_joined() {
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
fn routes_of_visible_virtual_services_apply() {
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
fn private_hosts_are_hidden_from_other_namespaces() {
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

/// A ServiceEntry of `db.example`, named after its namespace, whose endpoint is `address`.
fn database(namespace: &str, export: &str, address: &str, more: &str) -> String {
    let spec = format!(
        "{{hosts: [db.example], exportTo: {export}, ports: [{{number: 80, name: http, protocol: HTTP}}], resolution: STATIC, \
         endpoints: [{{address: {address}}}]{more}}}"
    );
    doc("ServiceEntry", namespace, namespace, &spec)
}

/// The endpoints of a host for a client in a namespace; `None`: the client does not see the host.
fn addresses(world: &World, client_ns: &str, host: &str) -> Vec<String> {
    let client = Scope::of(client_ns);
    let Some((host, _)) = lookup(world, &client, host) else { return Vec::new() };
    let definition = world.definition(&client, &host.name).map(|host| super::super::endpoints(world, host));
    definition.into_iter().flat_map(|definition| definition.endpoints).map(|endpoint| endpoint.address).collect()
}

#[test]
fn each_namespace_has_its_own_service_entry_of_a_host() {
    let (one, two, three) = (["10.1.0.1"], ["10.2.0.1"], ["10.3.0.1"]);
    for (documents, want) in [
        // Private ones take precedence, whatever their age.
        (
            database("one", "[.]", one[0], "") + &database("two", "[.]", two[0], ""),
            [("one", &one[..]), ("two", &two), ("three", &[])],
        ),
        // Of several visible ones that of the client's own namespace, else the oldest.
        (
            database("one", "['*']", one[0], "") + &database("two", "['*']", two[0], ""),
            [("one", &one[..]), ("two", &two), ("three", &one)],
        ),
        (
            database("one", "[.]", one[0], "") + &database("two", "['*']", two[0], ""),
            [("one", &one[..]), ("two", &two), ("three", &two)],
        ),
        (
            database("one", "[three]", one[0], "")
                + &database("two", "[one]", two[0], "")
                + &database("three", "['~']", three[0], ""),
            [("one", &two[..]), ("two", &[]), ("three", &one)],
        ),
    ] {
        let world = world(&documents, &orders());
        for (client_ns, want) in want {
            assert_eq!(addresses(&world, client_ns, "db.example"), want, "{client_ns} {documents}");
            let route = doc(
                "VirtualService",
                "v",
                client_ns,
                &format!("{{hosts: [{ORDER}], http: [{{route: [{{destination: {{host: db.example}}}}]}}]}}"),
            );
            let routed = super::world(&(route + &documents), &orders());
            let service = service(&routed, &Scope::of(client_ns), ORDER).unwrap();
            let reached = service.clusters.iter().any(|cluster| cluster.host == "db.example" && !cluster.undefined);
            assert_eq!(reached, !want.is_empty(), "{client_ns}: by a route the same");
        }
    }
}

#[test]
fn a_virtual_ip_belongs_to_the_host_and_declared_addresses_to_its_definition() {
    let documents = database("one", "[.]", "10.1.0.1", "")
        + &database("two", "[.]", "10.2.0.1", "")
        + &database("three", "[.]", "10.3.0.1", ", addresses: [192.0.2.3]");
    let world = world(&documents, &[]);
    let of = |client_ns: &str| service(&world, &Scope::of(client_ns), "db.example").unwrap();
    let virtual_ip = of("one").addresses;
    assert_eq!((virtual_ip.len(), &of("two").addresses), (1, &virtual_ip));
    assert_eq!(of("three").addresses, ["192.0.2.3"]);
    for (name, clients) in [
        (format!("{}:80", virtual_ip[0]), [true, true, true]),
        ("192.0.2.3:80".to_owned(), [false, false, true]),
        ("10.1.0.1:80".to_owned(), [true, false, false]),
        ("10.3.0.1:80".to_owned(), [false, false, true]),
    ] {
        let means = ["one", "two", "three"].map(|ns| resolve(&world, &Scope::of(ns), &name).is_some());
        assert_eq!(means, clients, "{name}");
    }
    assert!(resolve(&world, &Scope::of("four"), &virtual_ip[0]).is_none());
}

#[test]
fn a_service_comes_before_the_service_entries_of_other_namespaces() {
    let entry = |namespace: &str| database(namespace, "['*']", "10.9.0.1", "").replace("db.example", ORDER);
    let with = |policies: &str| world(policies, &orders());
    let (joined, apart) = (with(&entry("default")), with(&entry("shop")));
    assert_eq!(addresses(&joined, "other", ORDER), ["10.0.0.1", "10.0.0.2", "10.9.0.1"]);
    assert_eq!(addresses(&apart, "other", ORDER), ["10.0.0.1", "10.0.0.2"]);
    assert_eq!(addresses(&apart, "shop", ORDER), ["10.9.0.1"]);
    // Without instances only the document's endpoints remain.
    assert_eq!(addresses(&world(&entry("shop"), &[]), "other", ORDER), ["10.9.0.1"]);
}

#[test]
fn a_sidecar_chooses_between_the_definitions_that_it_imports() {
    let sidecar = |host: &str| doc("Sidecar", "s", "three", &format!("{{egress: [{{hosts: ['{host}']}}]}}"));
    let databases = database("one", "['*']", "10.1.0.1", "") + &database("two", "['*']", "10.2.0.1", "");
    for (import, want) in [("*/*", "10.1.0.1"), ("two/*", "10.2.0.1"), ("two/db.example", "10.2.0.1")] {
        let world = world(&(databases.clone() + &sidecar(import)), &[]);
        assert_eq!(addresses(&world, "three", "db.example"), [want], "{import}");
    }
    assert!(addresses(&world(&(databases + &sidecar("four/*")), &[]), "three", "db.example").is_empty());
}
