//! Istio's behaviour that differs from a literal reading of a document.

use super::*;

fn world_of(texts: &[String]) -> World {
    world(&texts.concat(), &orders())
}

fn ports_and_routes(world: &World, host: &str) -> Vec<(u32, usize)> {
    let service = service(world, &Scope::of("default"), host).unwrap();
    service.ports.iter().map(|port| (port.number, port.routes.len())).collect()
}

#[test]
fn policies_of_istio_system_are_mesh_wide() {
    let rule = |namespace: &str, pending: u32| {
        let pool = format!("{{connectionPool: {{http: {{http1MaxPendingRequests: {pending}}}}}}}");
        doc("DestinationRule", "d", namespace, &format!("{{host: '*.local', trafficPolicy: {pool}}}"))
    };
    let pending = |texts: &[String]| {
        let service = service(&world_of(texts), &Scope::of("default"), ORDER).unwrap();
        service.clusters[0].connection_pool.map(|pool| pool.http1_max_pending_requests)
    };
    assert_eq!(pending(&[rule("istio-system", 7)]), Some(7));
    assert_eq!(pending(&[rule("istio-system", 7), rule("weft-system", 8)]), Some(8), "Weft's own name comes first");
    assert_eq!(pending(&[rule("elsewhere", 7)]), None);
    let strict = |namespace: &str, mode: &str| {
        doc("PeerAuthentication", "p", namespace, &format!("{{mtls: {{mode: {mode}}}}}"))
            .replace("networking.istio.io", "security.istio.io")
    };
    let mode = |texts: &[String]| inbound(&world_of(texts), "default", &Default::default(), &[]).mtls();
    assert_eq!(mode(&[strict("istio-system", "STRICT")]), v1::MtlsMode::Strict);
    assert_eq!(mode(&[strict("istio-system", "STRICT"), strict("default", "PERMISSIVE")]), v1::MtlsMode::Permissive);
    assert_eq!(
        mode(&[strict("istio-system", "STRICT"), strict("weft-system", "PERMISSIVE")]),
        v1::MtlsMode::Permissive
    );
    let sidecar = doc("Sidecar", "s", "istio-system", "{egress: [{hosts: [./*]}]}");
    assert_eq!(resolve(&world_of(&[sidecar]), &Scope::of("elsewhere"), ORDER), None);
}

#[test]
fn a_port_without_routes_is_served_by_the_host_itself() {
    let routes = doc(
        "VirtualService",
        "v",
        "default",
        &format!("{{hosts: [{ORDER}], http: [{{match: [{{port: 9090}}], directResponse: {{status: 418}}}}]}}"),
    );
    let declared =
        doc("Service", "order-service", "default", "{ports: [{name: http, port: 80}, {name: http-b, port: 9090}]}");
    let world = world_of(&[routes.clone(), declared]);
    assert_eq!(ports_and_routes(&world, ORDER), [(80, 0), (9090, 1)]);
    // Without declared ports, the port of a match has routes of its own.
    assert_eq!(ports_and_routes(&world_of(&[routes]), ORDER), [(9090, 1), (0, 0)]);
}

#[test]
fn a_wildcard_without_a_definition_is_routed_at_port_80() {
    let routes = doc(
        "VirtualService",
        "v",
        "default",
        "{hosts: ['*.example.com'], http: [{route: [{destination: {host: order-service}}]}]}",
    );
    let client = Scope::of("default");
    let world = world_of(std::slice::from_ref(&routes));
    assert_eq!(resolve(&world, &client, "a.example.com").as_deref(), Some("*.example.com"));
    assert_eq!(resolve(&world, &client, "example.com"), None);
    assert_eq!(ports_and_routes(&world, "*.example.com"), [(80, 1)]);
    let found = service(&world, &client, "*.example.com").unwrap();
    assert!(found.clusters.iter().any(|cluster| cluster.host == ORDER && !cluster.undefined), "{found:?}");
    assert_eq!(found.addresses, [""; 0], "the address is in the caller's own DNS");
    // The wildcard then applies to the offered hosts that it covers.
    let entry = doc("ServiceEntry", "e", "default", "{hosts: [b.example.com], ports: [{number: 80, name: http}]}");
    let world = world_of(&[routes, entry]);
    assert_eq!(resolve(&world, &client, "a.example.com"), None);
    assert_eq!(ports_and_routes(&world, "b.example.com"), [(80, 1)]);
    let inner =
        doc("VirtualService", "v", "default", "{hosts: ['*.default.svc.cluster.local'], http: [{redirect: {uri: /}}]}");
    assert_eq!(resolve(&world_of(&[inner]), &client, "nothing.default.svc.cluster.local"), None);
}

#[test]
fn a_gateway_without_a_selector_applies_to_every_gateway() {
    let gateway =
        doc("Gateway", "g", "default", "{servers: [{port: {number: 80, name: a, protocol: HTTP}, hosts: ['*']}]}");
    let world = world_of(&[gateway]);
    for labels in [&[][..], &[("istio", "edge")]] {
        let labels = labels.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        assert_eq!(inbound(&world, "default", &labels, &[]).servers.len(), 1);
    }
}

#[test]
fn service_entries_of_one_host_and_namespace_are_joined() {
    let entry = |name: &str, namespace: &str, spec: &str| {
        doc("ServiceEntry", name, namespace, &format!("{{hosts: [a.example.com], resolution: STATIC, {spec}}}"))
    };
    let plain = entry(
        "a",
        "default",
        "ports: [{number: 80, name: http}], addresses: [10.8.0.1], endpoints: [{address: 10.9.0.1}]",
    );
    let more = entry(
        "b",
        "default",
        "ports: [{number: 443, name: tls}, {number: 80, name: other}], endpoints: [{address: 10.9.0.2}]",
    );
    let world = world_of(&[plain.clone(), more.clone()]);
    let client = Scope::of("default");
    let found = service(&world, &client, "a.example.com").unwrap();
    let ports: Vec<_> = found.ports.iter().map(|port| (port.number, port.name.as_str())).collect();
    assert_eq!(ports, [(80, "http"), (443, "tls")], "of one number the older is kept");
    assert_eq!(found.addresses, ["10.8.0.1"]);
    let endpoints_at = |number: u16| {
        let service = weft_core::compile::service(&found).unwrap();
        let configs = weft_core::compile::endpoints(&endpoints(&world, "a.example.com").unwrap()).unwrap();
        let cluster = service.cluster(service.port(number).unwrap().cluster).clone();
        let endpoints = weft_core::endpoint::for_cluster(&cluster, &configs, &[]);
        endpoints.iter().map(|endpoint| endpoint.key.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(
        (endpoints_at(80), endpoints_at(443)),
        (vec!["10.9.0.1:80".to_owned()], vec!["10.9.0.2:443".to_owned()])
    );
    let problems = |texts: &[String]| {
        let parsed = weft_policy::parse("f.yaml", &texts.concat());
        let all: Vec<&weft_policy::Document> = parsed.documents.iter().collect();
        weft_policy::check(&all).iter().map(|problem| problem.text.clone()).collect::<Vec<_>>()
    };
    let text = "ServiceEntry/default/a is older and defines host `a.example.com`: port 80 of this one is ignored";
    assert_eq!(problems(&[plain.clone(), more]), [text]);
    let alone = entry("b", "default", "ports: [{number: 443, name: tls}], endpoints: [{address: 10.9.0.2}]");
    assert_eq!(problems(&[plain, alone]), [""; 0]);
}

#[test]
fn probable_hosts_are_info_and_hidden_hosts_a_warning() {
    let warning_lines = |texts: &[String], complete: bool| {
        let found = warnings(&world(&texts.concat(), &[]), complete);
        found.iter().map(|problem| (problem.severity.name(), problem.code.name())).collect::<Vec<_>>()
    };
    let rule = |host: &str| doc("DestinationRule", "r", "default", &format!("{{host: {host}}}"));
    assert_eq!(warning_lines(&[rule("registered-later")], false), [("info", "unknown-host")]);
    assert_eq!(warning_lines(&[rule("registered-later")], true), [("warning", "unknown-host")]);
    assert_eq!(
        warning_lines(&[rule("api.example.com")], false),
        [("warning", "unknown-host")],
        "no registry offers it"
    );
    let there = doc("Service", "a", "other", "{ports: [{port: 80}]}");
    assert_eq!(
        warning_lines(&[rule("a"), there.clone()], false),
        [("warning", "unknown-host")],
        "another namespace has it"
    );
    let to = |host: &str| {
        let spec = format!("{{hosts: [b.example], http: [{{route: [{{destination: {{host: {host}}}}}]}}]}}");
        doc("VirtualService", "v", "default", &spec)
    };
    let host = "a.other.svc.cluster.local";
    let private = there.replace("{name: a,", "{name: a, annotations: {networking.istio.io/exportTo: .},");
    assert_eq!(warning_lines(&[to(host), private], false), [("warning", "not-exported")]);
    assert_eq!(warning_lines(&[to(host), there], false), []);
}
