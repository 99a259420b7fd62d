//! Wildcards: those within a label, and those that routes lead to.

use super::*;

/// A ServiceEntry of a host.
fn entry(name: &str, host: &str, more: &str) -> String {
    let ports = "ports: [{number: 80, name: http, protocol: HTTP}, {number: 443, name: tls, protocol: TLS}]";
    doc("ServiceEntry", name, "default", &format!("{{hosts: ['{host}'], {ports}, {more}}}"))
}

fn client() -> Scope {
    Scope::of("default")
}

#[test]
fn a_partial_wildcard_covers_hosts_with_its_suffix() {
    let documents = entry("a", "*-eu.example", "resolution: DYNAMIC_DNS")
        + &entry("b", "*.example", "resolution: DYNAMIC_DNS")
        + &entry("c", "*.a-eu.example", "resolution: DYNAMIC_DNS");
    let world = world(&documents, &[]);
    for (host, want) in [
        ("shop-eu.example", Some("*-eu.example")),
        ("b.shop-eu.example", Some("*-eu.example")),
        ("x.a-eu.example", Some("*.a-eu.example")),
        ("-eu.example", Some("*.example")),
        ("eu.example", Some("*.example")),
        ("example", None),
    ] {
        assert_eq!(resolve(&world, &client(), host).as_deref(), want, "{host}");
    }
}

#[test]
fn rules_and_routes_of_the_longest_wildcard() {
    let rule = |name: &str, host: &str, most: u32| {
        let spec =
            format!("{{host: '{host}', trafficPolicy: {{connectionPool: {{tcp: {{maxConnections: {most}}}}}}}}}");
        doc("DestinationRule", name, "default", &spec)
    };
    let routes = |name: &str, host: &str, status: u32| {
        doc(
            "VirtualService",
            name,
            "default",
            &format!("{{hosts: ['{host}'], http: [{{directResponse: {{status: {status}}}}}]}}"),
        )
    };
    let endpoints = "resolution: STATIC, endpoints: [{address: 10.1.0.1}]";
    let hosts = ["shop-eu.example", "shop.example", "eu.example", "a.eu.example"];
    let mut documents: String = hosts.iter().map(|host| entry(&host.replace('.', "-"), host, endpoints)).collect();
    // In Istio `*eu.example` covers `eu.example` too.
    for (n, host) in ["*.example", "*eu.example", "*-eu.example"].into_iter().enumerate() {
        documents += &rule(&format!("r{n}"), host, n as u32 + 1);
        documents += &routes(&format!("v{n}"), host, n as u32 + 201);
    }
    let world = world(&documents, &[]);
    for (host, want) in hosts.iter().zip([3, 1, 2, 2]) {
        let service = service(&world, &client(), host).unwrap();
        assert_eq!(max(&service, &format!("outbound|80||{host}")), want, "{host}");
        let Some(Action::DirectResponse(response)) = &service.ports[0].routes[0].action else { panic!("{service:?}") };
        assert_eq!(response.status, want + 200, "{host}");
    }
    let odd = warnings(&world, true);
    assert!(odd.is_empty(), "{odd:#?}");
}

#[test]
fn routes_for_a_partial_wildcard_apply_to_hosts_without_a_definition() {
    let spec = "{hosts: ['*-old.example'], http: [{directResponse: {status: 410}}]}";
    let world = world(&doc("VirtualService", "v", "default", spec), &[]);
    let host_of = |name: &str| resolve(&world, &client(), name);
    assert_eq!(host_of("shop-old.example").as_deref(), Some("*-old.example"));
    assert_eq!((host_of("old.example"), host_of("-old.example")), (None, None));
    // Private hosts of other namespaces are not offered to this client.
    let hidden = |namespace: &str| {
        let spec = "{hosts: [shop-old.example], exportTo: [.], ports: [{number: 80, name: http, protocol: HTTP}], resolution: DNS}";
        doc("ServiceEntry", "s", namespace, spec)
    };
    for (namespace, want) in [("lab", Some("*-old.example")), ("default", None)] {
        let world = super::world(&(doc("VirtualService", "v", "default", spec) + &hidden(namespace)), &[]);
        assert_eq!(resolve(&world, &client(), "b-old.example").as_deref(), want, "{namespace}");
    }
}

#[test]
fn server_names_by_a_partial_wildcard() {
    let spec = "{hosts: ['*.example'], tls: [{match: [{sniHosts: ['*-eu.example']}], route: [{destination: {host: eu.test}}]}]}";
    let documents = entry("a", "*.example", "resolution: NONE") + &doc("VirtualService", "v", "default", spec);
    let service = service(&world(&documents, &[]), &client(), "*.example").unwrap();
    let tls = service.ports.iter().find(|port| port.number == 443).unwrap();
    assert_eq!(tls.connection_routes[0].matches[0].server_names, ["*-eu.example"]);
}

/// Routes of requests, TLS and TCP connections to a wildcard.
fn to_wildcard(resolution: &str, destination: &str) -> (World, String) {
    let to = |port: u32| format!("[{{destination: {{host: '{destination}', port: {{number: {port}}}}}}}]");
    let spec = format!(
        "{{hosts: [shop.test], http: [{{route: {}}}], tls: [{{match: [{{sniHosts: [shop.test]}}], route: {}}}], tcp: [{{match: \
         [{{port: 9000}}], route: {}}}]}}",
        to(80),
        to(443),
        to(443)
    );
    let shop = "{hosts: [shop.test], resolution: STATIC, endpoints: [{address: 10.1.0.1}], ports: [{number: 80, name: http, \
                protocol: HTTP}, {number: 443, name: tls, protocol: TLS}, {number: 9000, name: tcp, protocol: TCP}]}";
    let documents = doc("VirtualService", "v", "default", &spec)
        + &doc("ServiceEntry", "s", "default", shop)
        + &entry("w", "*.example", resolution);
    (world(&documents, &[]), documents)
}

#[test]
fn a_route_to_a_wildcard_leads_to_the_service_entry_of_the_same_host() {
    for (resolution, original, dynamic) in [
        ("resolution: NONE", true, false),
        ("resolution: DYNAMIC_DNS", false, true),
        ("resolution: STATIC, endpoints: [{address: 10.2.0.1}]", false, false),
    ] {
        let (world, _) = to_wildcard(resolution, "*.example");
        let service = service(&world, &client(), "shop.test").unwrap();
        for port in &service.ports {
            let of_requests = port.routes.iter().map(|route| match &route.action {
                Some(Action::Forward(forward)) => forward.destinations[0].cluster,
                other => panic!("{other:?}"),
            });
            let of_connections = port.connection_routes.iter().map(|route| route.destinations[0].cluster);
            let to: Vec<u32> = of_requests.chain(of_connections).collect();
            assert_eq!(to.len(), 1, "{port:?}");
            let to = &service.clusters[to[0] as usize];
            assert_eq!(to.name, format!("outbound|{}||*.example", if port.number == 80 { 80 } else { 443 }));
            assert_eq!(
                (to.original_destination, to.dynamic_dns, to.undefined),
                (original, dynamic, false),
                "{resolution}"
            );
        }
        let odd: Vec<_> =
            warnings(&world, true).iter().map(|problem| (problem.code.name(), problem.path.clone())).collect();
        // Port 9000 is declared TCP.
        let of_bytes = [("undialable", "tcp[0].route[0].destination.host".to_owned())];
        assert_eq!(odd, if dynamic { &of_bytes[..] } else { &[] }, "{resolution}");
    }
}

#[test]
fn destinations_that_callers_cannot_dial_are_warned_of() {
    let gateway = |protocol: &str| {
        let tls = if protocol == "TLS" { ", tls: {mode: PASSTHROUGH}" } else { "" };
        let server = format!("{{port: {{number: 9000, name: p, protocol: {protocol}}}, hosts: ['*']{tls}}}");
        doc("Gateway", "edge", "default", &format!("{{selector: {{app: edge}}, servers: [{server}]}}"))
    };
    let http = "http: [{route: [{destination: {host: '*.example', port: {number: 80}}}]}]";
    let tcp = "tcp: [{match: [{port: 9000}], route: [{destination: {host: '*.example', port: {number: 443}}}]}]";
    let elsewhere = tcp.replace("9000", "9001");
    for (resolution, gateways, protocol, routes, want) in [
        ("resolution: NONE", "edge", "HTTP", http, 1),
        ("resolution: NONE", "mesh, edge", "TCP", tcp, 1),
        ("resolution: NONE", "mesh", "HTTP", http, 0),
        ("resolution: STATIC, endpoints: [{address: 10.2.0.1}]", "edge", "HTTP", http, 0),
        ("resolution: DYNAMIC_DNS", "edge", "HTTP", http, 0),
        ("resolution: DYNAMIC_DNS", "edge", "TCP", tcp, 1),
        ("resolution: DYNAMIC_DNS", "edge", "TCP", &elsewhere, 0),
        ("resolution: DYNAMIC_DNS", "edge", "TLS", tcp, 0),
    ] {
        let spec = format!("{{hosts: [shop.test], gateways: [{gateways}], {routes}}}");
        let documents =
            gateway(protocol) + &doc("VirtualService", "v", "default", &spec) + &entry("w", "*.example", resolution);
        let odd = warnings(&world(&documents, &[]), true);
        let found = odd.iter().filter(|problem| problem.code.name() == "undialable").count();
        assert_eq!(found, want, "{resolution} {gateways} {protocol} {routes}: {odd:#?}");
    }
}

#[test]
fn a_route_to_a_wildcard_without_its_service_entry_is_an_error_and_leads_nowhere() {
    // More specific, less specific and partial wildcards are other hosts.
    for destination in ["*.a.example", "*e.example", "*-a.example", "*.test"] {
        let (world, _) = to_wildcard("resolution: NONE", destination);
        let service = service(&world, &client(), "shop.test").unwrap();
        assert!(cluster(&service, &format!("outbound|80||{destination}")).undefined, "{destination}");
        let odd = warnings(&world, true);
        let text = format!("no ServiceEntry has the host `{destination}`: its requests get 503");
        assert_eq!(odd.iter().filter(|problem| problem.to_string().contains(&text)).count(), 1, "{odd:#?}");
        assert!(odd.iter().all(|problem| problem.severity == weft_policy::Severity::Error), "{odd:#?}");
    }
}

#[test]
fn gateways_serve_partial_wildcards_within_their_hosts() {
    let gateway = "{servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*.shop.example', foo.example]}, {port: \
                   {number: 443, name: tls, protocol: TLS}, hosts: ['*.shop.example'], tls: {mode: PASSTHROUGH}}]}";
    let routes = |name: &str, host: &str| {
        let to = "route: [{destination: {host: a.test}}]";
        let spec = format!(
            "{{hosts: ['{host}'], gateways: [g], http: [{{{to}}}], tls: [{{match: [{{sniHosts: ['{host}']}}], {to}}}]}}"
        );
        doc("VirtualService", name, "default", &spec)
    };
    let documents = doc("Gateway", "g", "default", gateway)
        + &routes("a", "*-eu.shop.example")
        + &routes("b", "*example")
        + &routes("c", "*foo.example")
        + &routes("d", "*.other");
    let world = world(&documents, &[]);
    let servers = servers(&world, "default", &Default::default());
    let of = |at: usize| -> Vec<&str> { servers[at].virtual_hosts.iter().map(|host| host.domain.as_str()).collect() };
    // If both are wildcards, the more specific of the two.
    assert_eq!(of(0), ["*-eu.shop.example", "*.shop.example", "foo.example", "foo.example"]);
    assert_eq!(of(1), ["*-eu.shop.example", "*.shop.example"]);
    let odd: Vec<String> = warnings(&world, true).iter().map(ToString::to_string).collect();
    let unserved: Vec<&String> = odd.iter().filter(|text| text.contains("has no server for")).collect();
    assert!(unserved.len() == 1 && unserved[0].contains("`*.other`"), "{odd:#?}");
}

#[test]
fn hosts_that_only_a_virtual_service_names() {
    let policies = [
        doc(
            "VirtualService",
            "in",
            "default",
            "{hosts: [front], http: [{route: [{destination: {host: order-service}}]}]}",
        ),
        doc(
            "VirtualService",
            "out",
            "default",
            "{hosts: [www.example.com], http: [{timeout: 1s, route: [{destination: {host: www.example.com}}]}]}",
        ),
    ]
    .concat();
    let world = world(&policies, &orders());
    let front =
        service(&world, &Scope::of("default"), &resolve(&world, &Scope::of("default"), "front").unwrap()).unwrap();
    assert_eq!(front.addresses.len(), 1, "callers find it by its virtual IP");
    assert!(front.clusters[front.ports[0].cluster as usize].undefined);
    let out = service(&world, &Scope::of("default"), "www.example.com").unwrap();
    assert!(out.addresses.is_empty() && out.clusters[0].original_destination, "its real address stays");
}
