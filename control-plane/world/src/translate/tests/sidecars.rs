use super::*;

fn sidecar(name: &str, namespace: &str, spec: &str) -> String {
    doc("Sidecar", name, namespace, spec)
}

fn entry(host: &str, namespace: &str, ports: &[u32]) -> String {
    let ports: Vec<String> =
        ports.iter().map(|port| format!("{{number: {port}, name: tcp-{port}, protocol: TCP}}")).collect();
    let spec = format!(
        "{{hosts: [{host}], ports: [{}], resolution: STATIC, endpoints: [{{address: 10.9.0.1}}]}}",
        ports.join(", ")
    );
    doc("ServiceEntry", host, namespace, &spec)
}

#[test]
fn a_client_reaches_the_hosts_that_its_sidecar_imports() {
    let mut world = world(&entry("a.example.com", "other", &[80, 81]), &orders());
    let sees = |world: &World, namespace: &str, labels: &[(&str, &str)], name: &str| {
        resolve(world, &clients::client(world, namespace, labels), name).is_some()
    };
    assert!(sees(&world, "shop", &[], "a.example.com"));
    let policies = |more: &str| documents(&(entry("a.example.com", "other", &[80, 81]) + more));
    let selected = "{workloadSelector: {labels: {app: front}}, egress: [{hosts: ['other/*']}]}";
    let own = sidecar("own", "shop", "{egress: [{hosts: ['./*']}]}");
    let all = sidecar("all", ROOT, "{egress: [{hosts: ['default/*']}]}");
    let changed = world.set_policies(policies(&(sidecar("front", "shop", selected) + &own + &all)), 0);
    assert!(changed.all && changed.names);
    for (namespace, labels, external, orders) in [
        ("shop", &[("app", "front")][..], true, false),
        ("shop", &[("app", "back")], false, false),
        ("elsewhere", &[], false, true),
    ] {
        let what = format!("{namespace} {labels:?}");
        assert_eq!(sees(&world, namespace, labels, "a.example.com"), external, "{what}");
        assert_eq!(sees(&world, namespace, labels, "order-service.default"), orders, "{what}");
        // It is no more visible by the address of an endpoint than by name.
        assert_eq!(sees(&world, namespace, labels, "10.0.0.1:8080"), orders, "{what}");
        assert_eq!(sees(&world, namespace, labels, "10.9.0.1:80"), external, "{what}");
    }
    // Port by port.
    let ports = "{egress: [{port: {number: 80}, hosts: ['other/*']}, {hosts: ['./*']}]}";
    world.set_policies(policies(&sidecar("ports", "shop", ports)), 0);
    let client = clients::client(&world, "shop", &[]);
    let numbers =
        service(&world, &client, "a.example.com").unwrap().ports.iter().map(|port| port.number).collect::<Vec<_>>();
    assert_eq!(numbers, [80]);
    assert_eq!(resolve(&world, &client, "10.9.0.1:81"), None);
}

const ROOT: &str = weft_policy::ROOT_NAMESPACE;

#[test]
fn destinations_of_imported_routes_are_reachable() {
    let route = |namespace: &str, host: &str, to: &str| {
        doc(
            "VirtualService",
            "r",
            namespace,
            &format!("{{hosts: [{host}], http: [{{route: [{{destination: {{host: {to}}}}}]}}]}}"),
        )
    };
    let own = sidecar("own", "shop", "{egress: [{hosts: ['./*', 'other/*']}]}");
    let world = world(
        &(entry("a.example.com", "other", &[80])
            + &route("other", "a.example.com", ORDER)
            + &route("hidden", ORDER, "absent.test")
            + &own),
        &orders(),
    );
    let client = clients::client(&world, "shop", &[]);
    assert_eq!(resolve(&world, &client, ORDER).as_deref(), Some(ORDER));
    assert_eq!(
        service(&world, &client, ORDER).unwrap().ports[0].routes,
        [],
        "a route of a namespace that is not imported"
    );
    assert_eq!(service(&world, &Scope::of("default"), ORDER).unwrap().ports[0].routes.len(), 1);
}

/// The same block of a DestinationRule and of a Sidecar means the same, each field of it.
#[test]
fn inbound_traffic_has_the_whole_connection_pool() {
    const POOL: &str = "{tcp: {maxConnections: 5, connectTimeout: 3s, maxConnectionDuration: 60s, idleTimeout: 61s, \
                        tcpKeepalive: {probes: 3, time: 40s, interval: 7s}}, \
                        http: {http1MaxPendingRequests: 6, http2MaxRequests: 7, maxRequestsPerConnection: 8, maxRetries: 9, \
                        idleTimeout: 62s, h2UpgradePolicy: DO_NOT_UPGRADE, useClientProtocol: true, \
                        maxConcurrentStreams: 10, http2KeepAlive: {interval: 11s, timeout: 12s}}}";
    let rule = format!("{{host: order-service, trafficPolicy: {{connectionPool: {POOL}}}}}");
    let called = world(&doc("DestinationRule", "o", "default", &rule), &orders());
    let called = service(&called, &Scope::of("default"), "order-service.default.svc.cluster.local").unwrap();
    let called = weft_core::compile::service(&called).unwrap();
    let pool = &called.clusters[0].pool;
    for spec in [
        format!("{{inboundConnectionPool: {POOL}}}"),
        format!("{{ingress: [{{port: {{number: 8080, protocol: HTTP, name: a}}, connectionPool: {POOL}}}]}}"),
    ] {
        let world = world(&sidecar("s", "default", &spec), &orders());
        let made = inbound(&world, "default", &Default::default(), &[orders()[0].key()]);
        assert_eq!(weft_core::compile::inbound(&made).unwrap().pool(8080), *pool, "{spec}");
    }
}

#[test]
fn ingress_of_a_sidecar_configures_inbound_ports() {
    let rule = doc(
        "DestinationRule",
        "o",
        "default",
        "{host: order-service, trafficPolicy: {connectionPool: {tcp: {maxConnections: 9}}}}",
    );
    let spec = "{ingress: [{port: {number: 9080, protocol: HTTP2, name: a}, defaultEndpoint: '127.0.0.1:8080'}, \
                {port: {number: 9081, protocol: TCP, name: b}, connectionPool: {tcp: {maxConnections: 2}}}], \
                inboundConnectionPool: {tcp: {maxConnections: 5}}, outboundTrafficPolicy: {mode: REGISTRY_ONLY}}";
    let of = |policies: &str| {
        let world = world(policies, &orders());
        let made = inbound(&world, "default", &Default::default(), &[orders()[0].key()]);
        weft_core::compile::inbound(&made).unwrap()
    };
    let without = of(&rule);
    assert_eq!((without.pool(8080).max_connections, without.allow_any), (9, None));
    let with = of(&(rule + &sidecar("s", "default", spec)));
    assert_eq!(with.allow_any, Some(false));
    let connections = |port| with.pool(port).max_connections;
    assert_eq!((connections(8080), connections(9080), connections(9081), connections(1)), (5, 5, 2, 5));
    use weft_core::policy::Protocol;
    assert_eq!(
        (with.protocol(9080), with.protocol(9081), with.protocol(1)),
        (Protocol::Http2, Protocol::Tcp, Protocol::Unknown)
    );
    use weft_core::inbound::DeliverTo;
    let to = |text: &str| with.destination(text.parse().unwrap());
    let at = |text: &str| DeliverTo::Address(text.parse().unwrap());
    assert_eq!((to("10.0.0.1:9080"), to("10.0.0.1:9081")), (at("127.0.0.1:8080"), at("10.0.0.1:9081")));
    let unix = "{ingress: [{port: {number: 9080, protocol: HTTP, name: a}, defaultEndpoint: 'unix:///run/app.sock'}]}";
    let to = of(&sidecar("s", "default", unix)).destination("10.0.0.1:9080".parse().unwrap());
    assert_eq!(to, DeliverTo::Unix("/run/app.sock".into()));
}

/// istio/istio#37087: importing any host of a VirtualService imports the whole VirtualService.
#[test]
fn importing_a_host_imports_the_other_hosts_of_its_virtual_service() {
    let hosts = "hosts: [a.example.com, b.example.com, only-routed.example.com]";
    let routes = format!("{{{hosts}, http: [{{route: [{{destination: {{host: a.example.com}}}}]}}]}}");
    let entries = entry("a.example.com", "other", &[80]) + &entry("b.example.com", "other", &[80, 81]);
    let scope = |egress: &str| sidecar("s", "shop", &format!("{{egress: [{egress}]}}"));
    let of = |egress: &str, routes: &str| {
        world(&(entries.clone() + &scope(egress) + &doc("VirtualService", "both", "other", routes)), &[])
    };
    let shop = |world: &World| world.scope("shop", &Default::default());
    let known = |world: &World, name: &str| resolve(world, &shop(world), name).is_some();
    let import = "{hosts: ['other/a.example.com']}";
    let world = of(import, &routes);
    for name in ["a.example.com", "b.example.com", "only-routed.example.com"] {
        assert!(known(&world, name), "{name}");
        let service = service(&world, &shop(&world), name).unwrap();
        let http: Vec<_> = service.ports.iter().flat_map(|port| &port.connection_routes).collect();
        let routed = service.ports.iter().any(|port| !port.routes.is_empty()) || !http.is_empty();
        // TCP ports have no routes for requests.
        assert!(routed || name != "only-routed.example.com", "{name}: {service:?}");
    }
    // Only at a port of the import, and without excluded names.
    let at_port = of("{port: {number: 80}, hosts: ['other/a.example.com']}", &routes);
    let ports = service(&at_port, &shop(&at_port), "b.example.com").unwrap().ports;
    assert_eq!(ports.iter().map(|port| port.number).collect::<Vec<_>>(), [80]);
    assert!(!known(&of("{hosts: ['other/a.example.com', '~other/b.example.com']}", &routes), "b.example.com"));
    // A VirtualService that is not exported to this namespace adds nothing, nor does one of a host that is not
    // imported.
    let private = routes.replace("{hosts", "{exportTo: ['.'], hosts");
    assert!(!known(&of(import, &private), "b.example.com"));
    assert!(!known(&of("{hosts: ['elsewhere/a.example.com']}", &routes), "b.example.com"));
    // Clients are notified when the routes arrive.
    let mut later = of(import, &private);
    let all = entries.clone() + &scope(import) + &doc("VirtualService", "both", "other", &routes);
    assert!(later.set_policies(documents(&all), 0).names && known(&later, "b.example.com"));
}

/// Istio's IST0110.
#[test]
fn sidecars_that_select_one_workload_are_reported() {
    let of = |name: &str, labels: &str| {
        let spec = format!("{{workloadSelector: {{labels: {{{labels}}}}}, egress: [{{hosts: ['*/*']}}]}}");
        sidecar(name, "default", &spec)
    };
    let both = of("a", "version: v1") + &of("b", "app: order") + &of("c", "app: other");
    let warning_lines = |policies: &str, instances: &[Instance]| -> Vec<String> {
        let found = warnings(&world(policies, instances), true);
        let mine = found.iter().filter(|problem| problem.code == weft_policy::Code::ConflictingSidecars);
        mine.map(|problem| problem.text.clone()).collect()
    };
    let mut orders = orders();
    assert_eq!(warning_lines(&both, &orders), Vec::<String>::new(), "none has the labels of two");
    for order in &mut orders {
        order.labels.insert("app".to_owned(), "order".to_owned());
        order.workload = "order".to_owned();
    }
    let found = warning_lines(&both, &orders);
    let text = "workload `order` on node-order-1 is also selected by Sidecar/default/a, which is older";
    assert!(found.len() == 1 && found[0].starts_with(text), "{found:?}");
    // Workloads of another namespace are not selected.
    let elsewhere: Vec<Instance> = orders.iter().map(|order| in_namespace(order.clone(), "shop")).collect();
    assert_eq!(warning_lines(&both, &elsewhere), Vec::<String>::new());
    let entry = doc("WorkloadEntry", "w", "default", "{address: 10.0.0.9, labels: {version: v1, app: order}}");
    let found = warning_lines(&(both + &entry), &[]);
    assert!(found.len() == 1 && found[0].starts_with("WorkloadEntry/default/w is also selected"), "{found:?}");
}
