use super::*;

fn virtual_service(name: &str, spec: &str) -> String {
    doc("VirtualService", name, "default", spec)
}

fn routes(world: &World) -> Vec<v1::HttpRoute> {
    service(world, &Scope::of("default"), ORDER).unwrap().ports[0].routes.clone()
}

#[test]
fn changing_a_delegate_changes_the_routes() {
    let root =
        virtual_service("root", &format!("{{hosts: [{ORDER}], http: [{{delegate: {{name: leaf}}, timeout: 2s}}]}}"));
    let leaf = |status: u32| {
        virtual_service("leaf", &format!("{{http: [{{name: a, directResponse: {{status: {status}}}}}]}}"))
    };
    let mut world = world(&root, &orders());
    assert_eq!(routes(&world), [], "a missing delegate has no routes");
    for status in [200, 201] {
        let changed = world.set_policies(documents(&(root.clone() + &leaf(status))), 0);
        assert!(changed.hosts.contains(ORDER), "{changed:?}");
        let routes = routes(&world);
        assert_eq!(routes[0].name, "VirtualService/default/root/a");
        let answer = v1::DirectResponse { status, body: Vec::new() };
        assert_eq!(routes[0].action, Some(Action::DirectResponse(answer)));
    }
}

#[test]
fn mirrors_have_clusters_of_their_own() {
    let rule = doc(
        "DestinationRule",
        "o",
        "default",
        &format!("{{host: {ORDER}, subsets: [{{name: v2, labels: {{version: v2}}}}]}}"),
    );
    let route = virtual_service(
        "o",
        &format!(
            "{{hosts: [{ORDER}], http: [{{route: [{{destination: {{host: {ORDER}}}}}], mirrors: [\
             {{destination: {{host: order-service, subset: v2}}, percentage: {{value: 5}}}}, \
             {{destination: {{host: absent}}}}, {{destination: {{host: {ORDER}}}, percentage: {{value: 0}}}}]}}]}}"
        ),
    );
    let world = world(&(rule + &route), &orders());
    let service = service(&world, &Scope::of("default"), ORDER).unwrap();
    let Some(Action::Forward(forward)) = &service.ports[0].routes[0].action else { panic!() };
    let names: Vec<_> = forward
        .mirrors
        .iter()
        .map(|mirror| (&*service.clusters[mirror.cluster as usize].subset, mirror.percent))
        .collect();
    assert_eq!(names, [("v2", 5.0), ("", 100.0)]);
    assert!(service.clusters[forward.mirrors[1].cluster as usize].undefined);
}

#[test]
fn routes_of_connections_are_for_ports_that_are_not_http() {
    let entry = doc(
        "ServiceEntry",
        "e",
        "default",
        "{hosts: [db.example.com], resolution: STATIC, endpoints: [{address: 10.9.0.1}], ports: [\
         {number: 80, name: http, protocol: HTTP}, {number: 443, name: tls, protocol: TLS}, {number: 9000, name: tcp, protocol: TCP}]}",
    );
    let to = "route: [{destination: {host: order-service}}]";
    let route = virtual_service(
        "r",
        &format!(
            "{{hosts: [db.example.com], tls: [{{match: [{{sniHosts: [db.example.com]}}, {{sniHosts: [db.example.com], port: 444}}], {to}}}], \
             tcp: [{{match: [{{port: 9000, sourceLabels: {{app: front}}, destinationSubnets: [10.0.0.0/8]}}, {{port: 81}}], {to}}}, \
             {{match: [{{port: 81}}], {to}}}]}}"
        ),
    );
    let world = world(&(entry + &route), &orders());
    let clusters_of = |labels: &[(&str, &str)]| {
        let service = service(&world, &clients::client(&world, "default", labels), "db.example.com").unwrap();
        assert!(weft_core::compile::service(&service).is_ok());
        let of = |port: &v1::Port| {
            let routes = port.connection_routes.iter();
            let to = |route: &v1::ConnectionRoute| {
                let hosts = route.destinations.iter().map(|to| &*service.clusters[to.cluster as usize].host);
                hosts.collect::<String>()
            };
            (port.number, routes.map(|route| (route.matches.clone(), to(route))).collect::<Vec<_>>())
        };
        service.ports.iter().map(of).collect::<Vec<_>>()
    };
    let tls = v1::ConnectionMatch { server_names: vec!["db.example.com".into()], ..Default::default() };
    let tcp = v1::ConnectionMatch { destination_subnets: vec!["10.0.0.0/8".into()], ..Default::default() };
    let tls = (443, vec![(vec![tls], ORDER.to_owned())]);
    assert_eq!(clusters_of(&[]), [(80, vec![]), tls.clone(), (9000, vec![])]);
    assert_eq!(clusters_of(&[("app", "front")]), [(80, vec![]), tls, (9000, vec![(vec![tcp], ORDER.to_owned())])]);
}

#[test]
fn dns_names_are_one_endpoint_or_one_per_address() {
    for (resolution, every) in [("DNS", true), ("DNS_ROUND_ROBIN", false)] {
        let spec = format!(
            "{{hosts: [api.example.com], resolution: {resolution}, ports: [{{number: 80, name: http}}], subjectAltNames: [api]}}"
        );
        let rule = |more: &str| format!("{{host: api.example.com, trafficPolicy: {{tls: {{mode: SIMPLE{more}}}}}}}");
        for (more, names) in [("", "api"), (", subjectAltNames: [own]", "own")] {
            let rule = doc("DestinationRule", "api", "default", &rule(more));
            let world = world(&(doc("ServiceEntry", "api", "default", &spec) + &rule), &[]);
            let endpoints = endpoints(&world, "api.example.com").unwrap().endpoints;
            assert_eq!(
                (endpoints.len(), &*endpoints[0].address, endpoints[0].every_address),
                (1, "api.example.com", every)
            );
            let service = service(&world, &Scope::of("default"), "api.example.com").unwrap();
            assert_eq!(service.clusters[0].tls_origination.as_ref().unwrap().subject_alt_names, [names]);
        }
    }
}

#[test]
fn a_gateway_has_the_hosts_of_its_virtual_services() {
    let server = |port: u32, protocol: &str, hosts: &str, tls: &str| {
        format!("{{port: {{number: {port}, name: p{port}, protocol: {protocol}}}, hosts: {hosts}{tls}}}")
    };
    let servers = [
        server(80, "HTTP", "['*.example.com']", ""),
        server(81, "HTTP", "[other/*]", ""),
        server(443, "TLS", "['*']", ", tls: {mode: PASSTHROUGH}"),
        server(9000, "TCP", "['*']", ""),
    ];
    let route = |host: &str| format!("[{{route: [{{destination: {{host: {host}}}}}]}}]");
    let policies = [
        doc("Gateway", "edge", "default", &format!("{{selector: {{istio: g}}, servers: [{}]}}", servers.join(", "))),
        doc(
            "VirtualService",
            "a",
            "default",
            &format!("{{hosts: ['*'], gateways: [edge], http: {}}}", route("order-service")),
        ),
        doc(
            "VirtualService",
            "a2",
            "default",
            &format!("{{hosts: [b.example.com], gateways: [edge], http: {}}}", route("order-service")),
        ),
        doc(
            "VirtualService",
            "b",
            "default",
            "{hosts: [b.example.com], gateways: [default/edge, mesh], http: [{match: [{uri: {prefix: /x}}], directResponse: {status: 418}}]}",
        ),
        doc(
            "VirtualService",
            "c",
            "default",
            "{hosts: ['*'], gateways: [edge], tls: [{match: [{sniHosts: [s.example.com]}], route: [{destination: {host: order-service}}]}], \
             tcp: [{match: [{port: 9000}], route: [{destination: {host: order-service}}]}]}",
        ),
    ];
    let world = world(&policies.concat(), &orders());
    let labels = |value: &str| [("istio".to_owned(), value.to_owned())].into();
    assert!(inbound(&world, "default", &labels("other"), &[]).servers.is_empty());
    let servers = inbound(&world, "elsewhere", &labels("g"), &[]).servers;
    let domains = |at: usize| -> Vec<(&str, &str)> {
        servers[at].virtual_hosts.iter().map(|host| (host.domain.as_str(), host.service.as_str())).collect()
    };
    assert_eq!(
        domains(0),
        [
            ("*.example.com", "gateway:default:edge:http:*"),
            ("b.example.com", "gateway:default:edge:http:b.example.com")
        ]
    );
    assert!(domains(1).is_empty(), "another namespace's");
    assert_eq!(domains(2), [("s.example.com", "gateway:default:edge:tls:s.example.com")]);
    assert_eq!(domains(3), [("*", "gateway:default:edge:tcp:9000")]);
    // The routes of both, with the one that takes all requests at the end.
    let name = resolve(&world, &Scope::of("default"), "gateway:default:edge:http:b.example.com").unwrap();
    let joined = service(&world, &Scope::of("default"), &name).unwrap();
    let names: Vec<&str> = joined.ports[0].routes.iter().map(|route| route.name.as_str()).collect();
    assert_eq!(names, ["VirtualService/default/b", "VirtualService/default/a2"]);
    assert!(joined.clusters.iter().any(|cluster| cluster.host == ORDER));
    assert!(weft_core::compile::service(&joined).is_ok());
    assert!(
        service(&world, &Scope::of("default"), "b.example.com").is_some_and(|s| s.ports[0].routes.len() == 1),
        "in the mesh b alone"
    );
    assert!(
        world.host("*").is_none()
            && service(&world, &Scope::of("default"), "gateway:default:edge:http:absent").is_none()
    );
}
