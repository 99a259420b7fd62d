use weft_proto::v1::{Health, MtlsMode, Protocol, Tls, consistent_hash::Key, http_route::Action};

mod clients;
mod defaults;
mod export;
mod groups;
mod istio;
mod kube;
mod portless;
mod routes;
mod rules;
mod sidecars;
mod wildcards;

use weft_proto::v1;

use super::*;
use crate::world::{
    Instance, Scope, World,
    tests::{documents, instance},
};

const ORDER: &str = "order-service.default.svc.cluster.local";

const ISSUE: &str = "
apiVersion: networking.istio.io/v1alpha3
kind: DestinationRule
metadata: {name: order-service}
spec:
  host: order-service
  trafficPolicy:
    loadBalancer:
      consistentHash:
        httpHeaderName: user-id
    connectionPool:
      tcp: {maxConnections: 100}
      http: {http1MaxPendingRequests: 50, maxRequestsPerConnection: 2}
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
";

fn doc(kind: &str, name: &str, namespace: &str, spec: &str) -> String {
    let group = if kind == "PeerAuthentication" { "security" } else { "networking" };
    let version = match kind {
        "Service" => "v1".to_owned(),
        "ServiceExport" => "multicluster.x-k8s.io/v1alpha1".to_owned(),
        _ => format!("{group}.istio.io/v1"),
    };
    format!(
        "apiVersion: {version}\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n---\n"
    )
}

/// The endpoints of the first definition of a host.
fn endpoints(world: &World, host: &str) -> Option<weft_proto::v1::Endpoints> {
    world.host(host).map(|host| super::endpoints(world, host))
}

fn world(policies: &str, instances: &[Instance]) -> World {
    let mut world = World::new("cluster.local", 1);
    world.set_policies(documents(policies), 0);
    for instance in instances {
        world.upsert(instance.clone(), 0);
    }
    world
}

fn orders() -> Vec<Instance> {
    let mut one = instance("order-service", "order-1", "10.0.0.1", 8080);
    one.labels.insert("version".to_owned(), "v1".to_owned());
    let mut two = instance("order-service", "order-2", "10.0.0.2", 8080);
    two.labels.insert("version".to_owned(), "v2".to_owned());
    vec![one, two]
}

fn in_namespace(mut instance: Instance, namespace: &str) -> Instance {
    instance.namespace = namespace.to_owned();
    instance
}

fn cluster<'a>(service: &'a v1::Service, name: &str) -> &'a v1::Cluster {
    let names: Vec<&str> = service.clusters.iter().map(|cluster| cluster.name.as_str()).collect();
    service.clusters.iter().find(|cluster| cluster.name == name).unwrap_or_else(|| panic!("{name} not in {names:?}"))
}

fn max(service: &v1::Service, name: &str) -> u32 {
    cluster(service, name).connection_pool.as_ref().map_or(0, |pool| pool.max_connections)
}

#[test]
fn a_rule_for_a_client_and_service_is_translated() {
    let world = world(ISSUE, &orders());
    let service = service(&world, &Scope::of("default"), ORDER).unwrap();
    assert_eq!(service.addresses, ["240.240.100.127"]);
    assert_eq!(
        service.names,
        [
            ORDER,
            "order-service.default.svc",
            "order-service.default",
            "order-service.service.consul",
            "order-service",
            "240.240.100.127"
        ]
    );
    let [port] = &service.ports[..] else { panic!("{:?}", service.ports) };
    assert_eq!((port.number, port.protocol(), port.cluster, port.routes.len()), (0, Protocol::Unknown, 0, 0));
    let cluster = cluster(&service, &format!("outbound|0||{ORDER}"));
    assert_eq!(cluster.policy, "DestinationRule/default/order-service");
    assert_eq!((cluster.target_port, &*cluster.target_port_name, cluster.tls()), (0, "", Tls::Auto));
    let pool = v1::ConnectionPool {
        max_connections: 100,
        http1_max_pending_requests: 50,
        max_requests_per_connection: 2,
        ..Default::default()
    };
    assert_eq!(cluster.connection_pool, Some(pool));
    let key = cluster.load_balancer.clone().unwrap().consistent_hash.unwrap().key;
    assert_eq!(key, Some(Key::HttpHeaderName("user-id".to_owned())));
    let endpoints = endpoints(&world, ORDER).unwrap();
    let got: Vec<_> =
        endpoints.endpoints.iter().map(|e| (&*e.address, e.port, &*e.id, &*e.labels["version"])).collect();
    assert_eq!(got, [("10.0.0.1", 8080, "order-1", "v1"), ("10.0.0.2", 8080, "order-2", "v2")]);
}

#[test]
fn names_resolve_in_the_clients_namespace_first() {
    let entries = doc(
        "ServiceEntry",
        "e",
        "default",
        "{hosts: [api.example.com, '*.example.com', '*.eu.example.com'], ports: [{number: 443, name: tls}]}",
    );
    let instances = [
        instance("order", "a", "10.0.0.1", 80),
        in_namespace(instance("order", "b", "10.0.0.2", 81), "shop"),
        instance("cart", "c", "10.0.0.3", 80),
    ];
    let world = world(&entries, &instances);
    let (default, shop) = ("order.default.svc.cluster.local", "order.shop.svc.cluster.local");
    let virtual_ip = world.virtual_ips().of(default).unwrap().to_string();
    for (client, name, want) in [
        ("default", "order", Some(default)),
        ("shop", "order", Some(shop)),
        ("elsewhere", "order", Some(default)),
        ("shop", "cart", Some("cart.default.svc.cluster.local")),
        ("default", "ORDER.Shop", Some(shop)),
        ("default", "order.shop.svc", Some(shop)),
        ("default", "order.shop.svc.cluster.local.", Some(shop)),
        ("shop", "order.service.consul", Some(shop)),
        ("default", "order.service.dc1.consul", Some(default)),
        ("default", "payment", None),
        ("default", "api.example.com", Some("api.example.com")),
        ("default", "x.example.com", Some("*.example.com")),
        ("default", "a.eu.example.com", Some("*.eu.example.com")),
        ("default", "example.com", None),
        ("default", "10.0.0.2:81", Some(shop)),
        ("default", "10.0.0.2:80", None),
        ("default", &format!("{virtual_ip}:9999"), Some(default)),
        ("default", &virtual_ip, Some(default)),
        ("default", "", None),
        ("default", "..", None),
    ] {
        assert_eq!(resolve(&world, &Scope::of(client), name).as_deref(), want, "{name} from {client}");
    }
    let names = service(&world, &Scope::of("shop"), default).unwrap().names;
    assert!(!names.contains(&"order".to_owned()), "the bare name is shop's own: {names:?}");
}

#[test]
fn routes_of_the_oldest_owner_until_a_catch_all() {
    let newer = doc("VirtualService", "b", "default", "{hosts: [order-service], http: [{redirect: {uri: /b}}]}");
    let older = doc(
        "VirtualService",
        "a",
        "default",
        "
  hosts: [order-service]
  http:
  - name: cart
    match: [{uri: {prefix: /cart}}]
    route:
    - {destination: {host: cart}, weight: 90}
    - {destination: {host: cart, port: {number: 7}}, weight: 10}
    - {destination: {host: nowhere}, weight: 0}
  - match: [{uri: {prefix: /gone}}]
    route: [{destination: {host: gone, port: {number: 80}}}]
  - match: [{uri: {prefix: /}}]
    route: [{destination: {host: order-service}}]
  - match: [{uri: {exact: /never}}]
    redirect: {uri: /}",
    );
    let cart = doc("Service", "cart", "default", "{ports: [{name: http, port: 80}]}");
    let world = world(&[newer, older, cart].concat(), &orders());
    let service = service(&world, &Scope::of("default"), ORDER).unwrap();
    let names: Vec<&str> = service.ports[0].routes.iter().map(|route| route.name.as_str()).collect();
    assert_eq!(names, ["VirtualService/default/a/cart", "VirtualService/default/a", "VirtualService/default/a"]);
    let targets = |route: usize| {
        let Some(Action::Forward(forward)) = &service.ports[0].routes[route].action else { panic!() };
        let one = |to: &v1::WeightedCluster| (service.clusters[to.cluster as usize].name.clone(), to.weight);
        forward.destinations.iter().map(one).collect::<Vec<_>>()
    };
    let cart = "cart.default.svc.cluster.local";
    // The last destination gets nothing, but the route has several destinations.
    let nowhere = "outbound|0||nowhere.default.svc.cluster.local".to_owned();
    assert_eq!(targets(0), [(format!("outbound|80||{cart}"), 90), (format!("outbound|7||{cart}"), 10), (nowhere, 0)]);
    assert!(cluster(&service, &format!("outbound|7||{cart}")).undefined, "cart has no port 7");
    assert_eq!(targets(1), [("outbound|80||gone.default.svc.cluster.local".to_owned(), 1)]);
    assert!(cluster(&service, "outbound|80||gone.default.svc.cluster.local").undefined);
    assert_eq!(targets(2), [(format!("outbound|0||{ORDER}"), 1)]);
    let Some(Action::Forward(forward)) = &service.ports[0].routes[2].action else { panic!() };
    assert_eq!(forward.retry, None, "the default of the mesh");
}

#[test]
fn destinations_without_a_port_take_the_requests() {
    let ports = "{ports: [{name: http-a, port: 80}, {name: http-b, port: 81}]}";
    let policies = [
        doc("Service", "a", "default", ports),
        doc("Service", "b", "default", ports),
        doc("VirtualService", "v", "default", "{hosts: [a], http: [{route: [{destination: {host: b}}]}]}"),
    ]
    .concat();
    let service = service(&world(&policies, &[]), &Scope::of("default"), "a.default.svc.cluster.local").unwrap();
    for (port, want) in service
        .ports
        .iter()
        .zip(["outbound|80||b.default.svc.cluster.local", "outbound|81||b.default.svc.cluster.local"])
    {
        let Some(Action::Forward(forward)) = &port.routes[0].action else { panic!() };
        assert_eq!(service.clusters[forward.destinations[0].cluster as usize].name, want);
    }
}

#[test]
fn service_entries() {
    let policies = [
        doc("ServiceEntry", "static", "default", "{hosts: [db.example.com], addresses: [10.9.0.1, 10.8.0.0/16], ports: [{number: 5432, name: tcp-db}], resolution: STATIC, endpoints: [{address: 1.2.3.4, ports: {tcp-db: 6000}, labels: {a: b}, weight: 3, locality: r/z}]}"),
        doc("ServiceEntry", "dns", "default", "{hosts: [api.example.com], ports: [{number: 443, name: https, protocol: TLS}, {number: 80, name: http, protocol: HTTP, targetPort: 8080}], resolution: DNS}"),
        doc("ServiceEntry", "none", "default", "{hosts: ['*.any.com'], ports: [{number: 80, name: http}]}"),
        doc("ServiceEntry", "vm", "default", "{hosts: [vm.mesh], location: MESH_INTERNAL, ports: [{number: 80, name: http}], resolution: STATIC, workloadSelector: {labels: {app: vm}}}"),
        doc("WorkloadEntry", "vm-1", "default", "{address: 10.5.0.1, labels: {app: vm, security.istio.io/tlsMode: istio}, serviceAccount: vm}"),
        doc("WorkloadEntry", "vm-2", "default", "{address: 10.5.0.2, labels: {app: other}}"),
    ]
    .concat();
    let world = world(&policies, &[]);
    let all = |host: &str| {
        (service(&world, &Scope::of("default"), host).unwrap(), endpoints(&world, host).unwrap().endpoints)
    };

    let (db, endpoints) = all("db.example.com");
    assert!(db.external && db.ports[0].protocol() == Protocol::Tcp);
    assert_eq!(db.addresses, ["10.9.0.1"], "an own address is not replaced by a virtual one");
    let got: Vec<_> =
        endpoints.iter().map(|e| (&*e.address, e.port, e.ports["tcp-db"], e.weight, &*e.locality)).collect();
    assert_eq!(got, [("1.2.3.4", 6000, 6000, 3, "r/z")]);
    assert_eq!(cluster(&db, "outbound|5432||db.example.com").target_port_name, "tcp-db");
    for (host, want) in
        [("10.9.0.1:5432", true), ("10.8.3.4:5432", true), ("1.2.3.4:6000", true), ("1.2.3.4:5432", false)]
    {
        assert_eq!(resolve(&world, &Scope::of("default"), host).as_deref() == Some("db.example.com"), want, "{host}");
    }

    let (api, endpoints) = all("api.example.com");
    assert_eq!((api.addresses.len(), api.ports.len()), (1, 2));
    assert_eq!(
        (&*endpoints[0].address, endpoints[0].ports["http"], endpoints[0].ports["https"]),
        ("api.example.com", 8080, 443)
    );

    let (none, endpoints) = all("*.any.com");
    assert!(none.addresses.is_empty() && endpoints.is_empty() && none.clusters[0].original_destination);

    let (vm, endpoints) = all("vm.mesh");
    assert!(!vm.external);
    let got: Vec<_> = endpoints.iter().map(|e| (&*e.address, &*e.workload, &*e.identity)).collect();
    assert_eq!(got, [("10.5.0.1", "vm-1", "spiffe://cluster.local/ns/default/sa/vm")]);
}

#[test]
fn a_selector_adds_instances_of_other_names() {
    let policies = doc(
        "Service",
        "shop",
        "default",
        "{selector: {app: shop}, clusterIP: 10.96.0.1, ports: [{name: http, port: 80, targetPort: 8080}]}",
    );
    let mut other = instance("something", "s", "10.0.0.7", 9000);
    other.labels.insert("app".to_owned(), "shop".to_owned());
    let world = world(
        &policies,
        &[other.clone(), instance("shop", "t", "10.0.0.8", 8080), instance("shop", "u", "10.0.0.8", 8081)],
    );
    let host = "shop.default.svc.cluster.local";
    let got: Vec<_> = endpoints(&world, host).unwrap().endpoints.into_iter().map(|e| e.address).collect();
    assert_eq!(got, ["10.0.0.7", "10.0.0.8"], "one per address where targetPort is fixed");
    assert_eq!(resolve(&world, &Scope::of("x"), "10.96.0.1:80").as_deref(), Some(host));
    let inbound = inbound(&world, "default", &other.labels, &[other.key()]);
    let got: Vec<_> = inbound.services.iter().map(|s| (&*s.host, s.port, s.protocol())).collect();
    assert_eq!(got, [(host, 8080, Protocol::Http), ("something.default.svc.cluster.local", 9000, Protocol::Unknown)]);
}

#[test]
fn two_registrations_of_an_address_are_one_endpoint() {
    let line = instance("order-service", "line", "10.0.0.1", 8080);
    let mut api = instance("order-service", "api", "10.0.0.1", 8080);
    api.checks.push(v1::Check::default());
    api.draining = true;
    for order in [[line.clone(), api.clone()], [api, line]] {
        let endpoints = endpoints(&world("", &order), ORDER).unwrap().endpoints;
        assert_eq!(endpoints.iter().map(|e| (&*e.id, e.health())).collect::<Vec<_>>(), [("api", Health::Draining)]);
    }
}

#[test]
fn protocols_of_instances_must_agree() {
    let with = |id: &str, address: &str, protocol: &str| {
        let mut one = instance("order-service", id, address, 80);
        one.meta.insert("protocol".to_owned(), protocol.to_owned());
        one
    };
    let protocol = |instances: &[Instance]| {
        service(&world("", instances), &Scope::of("default"), ORDER).unwrap().ports[0].protocol()
    };
    assert_eq!(protocol(&[with("a", "10.0.0.1", "grpc"), with("b", "10.0.0.2", "GRPC")]), Protocol::Grpc);
    assert_eq!(protocol(&[with("a", "10.0.0.1", "grpc"), with("b", "10.0.0.2", "tcp")]), Protocol::Unknown);
}

#[test]
fn peer_authentication_narrows() {
    let policies = [
        doc("PeerAuthentication", "mesh", "weft-system", "{mtls: {mode: STRICT}}"),
        doc("PeerAuthentication", "ignored", "weft-system", "{selector: {matchLabels: {app: a}}, mtls: {mode: DISABLE}}"),
        doc("PeerAuthentication", "namespace", "default", "{mtls: {mode: PERMISSIVE}}"),
        doc("PeerAuthentication", "work", "default", "{selector: {matchLabels: {app: a}}, mtls: {mode: DISABLE}, portLevelMtls: {9000: {mode: STRICT}, '9001': {mode: UNSET}}}"),
        doc("PeerAuthentication", "unset", "quiet", "{mtls: {mode: UNSET}}"),
    ]
    .concat();
    let world = world(&policies, &[]);
    let app = |name: &str| [("app".to_owned(), name.to_owned())].into();
    let of = |namespace: &str, name: &str| {
        let found = inbound(&world, namespace, &app(name), &[]);
        (found.mtls(), found.policy)
    };
    let want = |mode, policy: &str| (mode, format!("PeerAuthentication/{policy}"));
    assert_eq!(of("x", "a"), want(MtlsMode::Strict, "weft-system/mesh"));
    assert_eq!(of("default", "b"), want(MtlsMode::Permissive, "default/namespace"));
    assert_eq!(of("default", "a"), want(MtlsMode::MtlsDisable, "default/work"));
    assert_eq!(of("quiet", "a"), want(MtlsMode::Strict, "weft-system/mesh"));
    let ports = inbound(&world, "default", &app("a"), &[]).port_mtls;
    assert_eq!((ports[&9000], ports[&9001]), (MtlsMode::Strict.into(), MtlsMode::MtlsDisable.into()));
}

#[test]
fn an_endpoint_that_refuses_mtls_has_no_identity_for_callers() {
    let mut one = orders().remove(0);
    one.identity = "spiffe://cluster.local/ns/default/sa/order".to_owned();
    let identity =
        |policies: &str| endpoints(&world(policies, &[one.clone()]), ORDER).unwrap().endpoints[0].identity.clone();
    assert_eq!(identity(""), one.identity);
    assert_eq!(identity(&doc("PeerAuthentication", "p", "default", "{mtls: {mode: DISABLE}}")), "");
}

#[test]
fn the_server_observes_the_pool_of_its_service() {
    let world = world(ISSUE, &orders());
    let instance = &orders()[0];
    let inbound = inbound(&world, "default", &instance.labels, &[instance.key()]);
    let [served] = &inbound.services[..] else { panic!("{:?}", inbound.services) };
    assert_eq!(
        (&*served.host, served.port, served.connection_pool.as_ref().unwrap().max_connections),
        (ORDER, 8080, 100)
    );
}

#[test]
fn warnings_combine_policies_and_registrations() {
    let warning_lines = |policies: &[String], complete| -> Vec<String> {
        let world = world(&policies.concat(), &orders());
        warnings(&world, complete).iter().map(|problem| problem.text.clone()).collect()
    };
    let rule = |namespace, spec: &str| doc("DestinationRule", "r", namespace, spec);
    let to = |namespace, destination: &str| {
        let spec = format!("{{hosts: [front], http: [{{route: [{{destination: {destination}}}]}}]}}");
        doc("VirtualService", "v", namespace, &spec)
    };
    let good = [rule("default", "{host: order-service, subsets: [{name: v1, labels: {version: v1}}]}")];
    assert_eq!(warning_lines(&good, true), Vec::<String>::new());
    let empty = [rule("default", "{host: order-service, subsets: [{name: v9, labels: {version: v9}}]}")];
    assert_eq!(warning_lines(&empty, true), [format!("subset `v9`: no instance of `{ORDER}` has version=v9")]);
    let moved = "host `order-service` means `order-service.shop.svc.cluster.local`, which is neither registered nor defined; there is";
    for policy in [rule("shop", "{host: order-service}"), to("shop", "{host: order-service}")] {
        assert_eq!(warning_lines(&[policy], false), [format!("{moved} `{ORDER}`")]);
    }
    let unknown = [to("default", "{host: absent}")];
    let here =
        "host `absent` means `absent.default.svc.cluster.local`, which no document here defines: it must be registered";
    assert_eq!(warning_lines(&unknown, false), [here]);
    assert_eq!(warning_lines(&[rule("default", "{host: absent}")], false), [here]);
    assert_eq!(
        warning_lines(&unknown, true),
        ["host `absent` means `absent.default.svc.cluster.local`, which is neither registered nor defined"]
    );
    let twice = "{hosts: [front], http: [{route: [{destination: {host: absent}}], mirror: {host: absent}}]}";
    assert_eq!(
        warning_lines(&[doc("VirtualService", "v", "default", twice)], false),
        [here],
        "a host is reported once"
    );
    let gateway = doc(
        "Gateway",
        "g",
        "default",
        "{selector: {a: b}, servers: [{port: {number: 80, name: a, protocol: HTTP}, hosts: [a.x, '*.y', z/b.x]}]}",
    );
    let routed = |host: &str| {
        let spec = format!("{{hosts: ['{host}'], gateways: [g], http: [{{redirect: {{uri: /}}}}]}}");
        [gateway.clone(), doc("VirtualService", "v", "default", &spec)]
    };
    for (host, served) in [
        ("a.x", true),
        ("b.x", true),
        ("c.x", false),
        ("c.y", true),
        ("y", false),
        ("*", true),
        ("*.x", true),
        ("*.z", false),
    ] {
        let want = format!("gateway `default/g` has no server for `{host}`: it serves no route of this VirtualService");
        assert_eq!(warning_lines(&routed(host), false), if served { vec![] } else { vec![want] }, "{host}");
    }
    let entry = doc(
        "ServiceEntry",
        "e",
        "default",
        "{hosts: [e.x], ports: [{number: 80, name: http}], resolution: STATIC, workloadSelector: {labels: {app: e}}}",
    );
    let workload =
        |app: &str| doc("WorkloadEntry", "w", "default", &format!("{{address: 10.0.0.9, labels: {{app: {app}}}}}"));
    assert_eq!(warning_lines(&[entry.clone(), workload("e")], false), Vec::<String>::new());
    assert_eq!(
        warning_lines(&[entry, workload("f")], false),
        [
            "no WorkloadEntry of its namespace has these labels: it has no endpoint",
            "no ServiceEntry of its namespace selects it: it is not an endpoint of any host",
        ]
    );
    let export = |name: &str, namespace| [doc("ServiceExport", name, namespace, "{}")];
    assert_eq!(warning_lines(&export("order-service", "default"), true), Vec::<String>::new());
    assert_eq!(warning_lines(&export("absent", "default"), false), Vec::<String>::new());
    let absent = "`absent.default.svc.cluster.local`, which this exports, is neither registered nor defined";
    assert_eq!(warning_lines(&export("absent", "default"), true), [absent]);
    assert!(
        warning_lines(&export("order-service", "shop"), true)[0]
            .ends_with(&format!("is neither registered nor defined; there is `{ORDER}`"))
    );
    let outside = "{hosts: [www.example.com], http: [{route: [{destination: {host: www.example.com}}]}]}";
    assert_eq!(warning_lines(&[doc("VirtualService", "v", "default", outside)], true), Vec::<String>::new());
    let two_ports = doc("Service", "order-service", "default", "{ports: [{name: a, port: 80}, {name: b, port: 81}]}");
    let open = warning_lines(&[two_ports.clone(), to("default", "{host: order-service}")], true);
    assert!(open.len() == 1 && open[0].contains("has the ports 80, 81: without `port.number`"), "{open:?}");
    assert_eq!(
        warning_lines(&[two_ports, to("default", "{host: order-service, port: {number: 81}}")], true),
        Vec::<String>::new()
    );
}

#[test]
fn hosts_that_requests_name_have_no_endpoints() {
    let entry = "{hosts: ['*.example.com'], resolution: DYNAMIC_DNS, ports: [{number: 80, name: http, targetPort: 8080}, \
                 {number: 443, name: tls, protocol: TLS}]}";
    let rule = "{host: '*.example.com', trafficPolicy: {tls: {mode: SIMPLE}}}";
    let world =
        world(&(doc("ServiceEntry", "e", "default", entry) + &doc("DestinationRule", "e", "default", rule)), &[]);
    let client = Scope::of("default");
    assert_eq!(resolve(&world, &client, "a.example.com").as_deref(), Some("*.example.com"));
    let service = service(&world, &client, "*.example.com").unwrap();
    assert_eq!(service.addresses, Vec::<String>::new());
    let dials: Vec<_> = service.clusters.iter().map(|c| (c.dynamic_dns, c.target_port, &*c.target_port_name)).collect();
    assert_eq!(dials, [(true, 8080, ""), (true, 443, "")]);
    assert!(!service.clusters[0].original_destination && service.clusters[0].tls() == Tls::Originate);
    assert_eq!(endpoints(&world, "*.example.com").unwrap().endpoints, []);
    let compiled = weft_core::compile::service(&service).unwrap();
    let weft_core::policy::Tls::Originate(origination) = &compiled.clusters[0].tls else { panic!("no TLS") };
    assert_eq!(&*origination.server_name, "*.example.com");
}
