use std::sync::Arc;

use super::*;
use crate::translate::parse_policies;

/// An instance of `service` in "default", its node named after its id.
pub(crate) fn instance(service: &str, id: &str, address: &str, port: u16) -> Instance {
    Instance {
        namespace: "default".to_owned(),
        node: format!("node-{id}"),
        service_id: id.to_owned(),
        service: service.to_owned(),
        port,
        warning_weight: 1,
        health: weft_proto::v1::Health::Healthy,
        ..Instance::at(address.parse().unwrap())
    }
}

/// Documents of a text that must have no errors.
pub(crate) fn documents(text: &str) -> Vec<Arc<Document>> {
    let parsed = parse_policies("test.yaml", text);
    assert!(!parsed.has_errors(), "{:#?}", parsed.problems);
    parsed.documents.into_iter().map(Arc::new).collect()
}

const HOST: &str = "order.default.svc.cluster.local";

const ROUTES: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop}
spec:
  hosts: [shop]
  http:
  - route: [{destination: {host: order}}]
";

#[test]
fn instances_are_added_changed_and_removed() {
    let mut world = World::new("mesh", 41);
    assert_eq!(world.service_index("default", "order"), 41);
    world.at_revision(42);
    let changed = world.upsert(instance("order", "a", "10.0.0.1", 80), 0);
    let virtual_ip = world.virtual_ips().of(HOST).unwrap();
    let addresses = [IpAddr::from([10, 0, 0, 1]), virtual_ip.into()].into();
    let (hosts, renamed, nodes) = ([HOST.to_owned()].into(), [HOST.to_owned()].into(), changed.nodes.clone());
    assert_eq!(changed, Changed { hosts, renamed, addresses, nodes, ..Changed::default() });
    assert_eq!((world.version(), world.service_index("default", "order")), (2, 42));
    assert_eq!(world.take_changed_services(), [HOST.to_owned()].into());

    world.at_revision(43);
    let same = world.upsert(instance("order", "a", "10.0.0.1", 80), 0);
    assert_eq!((same, world.version()), (Changed::default(), 2), "nothing changed");
    assert_eq!(world.service_index("default", "order"), 42);
    assert!(world.take_changed_services().is_empty());

    let mut sick = instance("order", "a", "10.0.0.1", 80);
    sick.health = weft_proto::v1::Health::Unhealthy;
    let changed = world.upsert(sick.clone(), 0);
    assert!(!changed.names && changed.renamed.is_empty() && changed.hosts.contains(HOST));
    assert_eq!(world.service_index("default", "order"), 43);
    world.touch_node("other", "node-a");
    assert_eq!(world.service_index("default", "order"), 43, "a node of another namespace");
    world.at_revision(44);
    world.touch_node("default", "node-a");
    assert_eq!(world.service_index("default", "order"), 44);

    world.at_revision(45);
    let changed = world.remove(&sick.key(), 100);
    assert!(!changed.names && changed.renamed.contains(HOST) && changed.addresses.contains(&virtual_ip.into()));
    assert_eq!(world.service_index("default", "order"), 45, "never decreases");
    assert_eq!(world.remove(&sick.key(), 100), Changed::default());
    assert!(!world.host(HOST).unwrap().live, "still known: its callers get 503, not 'no such host'");
    assert!(world.host_of_endpoint(&Scope::of("default"), "10.0.0.1".parse().unwrap(), 80).is_none());

    let changed = world.upsert(instance("other", "b", "10.0.0.2", 80), 100 + QUARANTINE_S);
    assert!(changed.hosts.contains(HOST) && world.host(HOST).is_none(), "a day later it is forgotten");
    assert_eq!(world.service_index("default", "order"), 45);
}

#[test]
fn changes_of_no_store_advance_the_index_beside_those_of_the_store() {
    let mut world = World::new("mesh", 41);
    let index = |world: &mut World, address| {
        world.upsert(instance("order", "a", address, 80), 0);
        world.service_index("default", "order")
    };
    world.at_next_index();
    assert_eq!(index(&mut world, "10.0.0.1"), 42);
    world.at_next_index();
    assert_eq!(index(&mut world, "10.0.0.2"), 43);
    world.at_revision(42);
    assert_eq!(index(&mut world, "10.0.0.3"), 44, "a change of the store is another change");
}

#[test]
fn the_pod_of_a_sidecar_has_its_name_and_identity() {
    let mut world = World::new("mesh", 1);
    let pod = Pod { identity: "spiffe://mesh/ns/shop/sa/order".into(), locality: "eu/a".into(), ..Pod::default() };
    let changed = world.set_pod("shop", "order-1", Some(pod.clone()));
    assert_eq!(changed, Changed { nodes: ["order-1".to_owned()].into(), ..Changed::default() });
    assert_eq!(world.set_pod("shop", "order-1", Some(pod.clone())), Changed::default(), "nothing changed");
    assert_eq!(world.pod("shop", "order-1", &pod.identity), Some(&pod));
    assert_eq!(world.pod("shop", "order-1", "spiffe://mesh/ns/shop/sa/other"), None);
    assert_eq!(world.pod("other", "order-1", &pod.identity), None);
    world.set_pod("shop", "order-1", None);
    assert_eq!(world.pod("shop", "order-1", &pod.identity), None);
}

#[test]
fn an_instance_may_change_its_service_and_address() {
    let mut world = World::new("mesh", 1);
    world.upsert(instance("order", "a", "10.0.0.1", 80), 0);
    let changed = world.upsert(instance("cart", "a", "10.0.0.9", 81), 0);
    assert!(changed.hosts.contains(HOST) && changed.hosts.contains("cart.default.svc.cluster.local"));
    assert_eq!(world.service_instances("default", "order").count(), 0);
    assert_eq!(world.at_address("10.0.0.1".parse().unwrap()).count(), 0);
    assert_eq!(
        world.host_of_endpoint(&Scope::of("default"), "10.0.0.9".parse().unwrap(), 81).unwrap().name,
        "cart.default.svc.cluster.local"
    );
}

#[test]
fn virtual_ips_are_stable_and_survive_a_restart() {
    let mut world = World::new("mesh", 1);
    world.upsert(instance("order", "a", "10.0.0.1", 80), 0);
    world.upsert(instance("cart", "b", "10.0.0.2", 80), 0);
    let (order, cart) = (world.virtual_ips().of(HOST), world.virtual_ips().of("cart.default.svc.cluster.local"));
    world.remove(&instance("order", "a", "10.0.0.1", 80).key(), 10);
    assert_eq!(world.host_of_address(&Scope::of("default"), IpAddr::V4(order.unwrap()), None).unwrap().name, HOST);
    world.upsert(instance("order", "c", "10.0.0.3", 80), 20);
    assert_eq!(world.virtual_ips().of(HOST), order);

    let mut again = World::new("mesh", 9);
    for (host, kept) in world.virtual_ips().iter() {
        again.adopt_virtual_ip(kept.address, Some((host.to_owned(), Allocation { modified: 5, ..kept })));
    }
    again.upsert(instance("cart", "b", "10.0.0.2", 80), 30);
    assert_eq!(again.virtual_ips().of("cart.default.svc.cluster.local"), cart);
    again.upsert(instance("new", "d", "10.0.0.4", 80), 30);
    assert_eq!(again.virtual_ips().host(order.unwrap()), Some(HOST), "a host that may come back keeps its address");
}

#[test]
fn a_change_affects_the_hosts_that_lead_to_it() {
    let mut world = World::new("mesh", 1);
    let changed = world.set_policies(documents(ROUTES), 0);
    let shop = "shop.default.svc.cluster.local";
    assert!(changed.renamed.contains(shop) && changed.hosts.contains(shop));
    let changed = world.upsert(instance("order", "a", "10.0.0.1", 80), 0);
    assert!(changed.hosts.contains("shop.default.svc.cluster.local"), "its routes lead to order");

    assert_eq!(world.set_policies(documents(ROUTES), 0), Changed::default());
    let rule = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: o}\nspec: {host: order}\n";
    let changed = world.set_policies(documents(&format!("{ROUTES}---\n{rule}")), 0);
    assert_eq!(changed.hosts, [HOST.to_owned(), "shop.default.svc.cluster.local".to_owned()].into());
    assert!(!changed.all && !changed.names);

    let strict = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: o}\nspec: {mtls: {mode: STRICT}}\n";
    assert!(world.set_policies(documents(strict), 0).all);
    assert!(world.host("shop.default.svc.cluster.local").is_none(), "it was only a route");
}

#[test]
fn a_wildcard_rule_affects_all_hosts() {
    let mut world = World::new("mesh", 1);
    world.upsert(instance("order", "a", "10.0.0.1", 80), 0);
    let rule = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: o}\nspec: {host: '*.default.svc.cluster.local'}\n";
    assert!(world.set_policies(documents(rule), 0).all);
}

#[test]
fn an_instance_that_takes_over_a_service_entry_s_name_is_a_change_of_names() {
    let entry = format!(
        "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: e, namespace: shop}}
spec: {{hosts: [{HOST}], exportTo: [.], ports: [{{number: 80, name: http}}], resolution: DNS}}
"
    );
    let mut world = World::new("mesh", 1);
    world.set_policies(documents(&entry), 0);
    let seen = |world: &World| ["shop", "other"].map(|ns| world.definition(&Scope::of(ns), HOST).is_some());
    assert_eq!(seen(&world), [true, false]);
    let address = world.addresses_of(world.host(HOST).unwrap());
    let changed = world.upsert(instance("order", "a", "10.0.0.1", 80), 0);
    assert!(changed.renamed.contains(HOST) && seen(&world) == [true, true]);
    let namespaces: Vec<&str> = world.definitions(HOST).map(|host| host.namespace.as_str()).collect();
    assert_eq!(namespaces, ["default", "shop"]);
    assert!(world.definitions(HOST).all(|host| world.addresses_of(host) == address), "the address is the name's");
    let gone = world.remove(&instance("order", "a", "10.0.0.1", 80).key(), 5);
    assert!(gone.renamed.contains(HOST) && world.definition(&Scope::of("other"), HOST).is_some_and(|host| !host.live));
    world.set_policies(Vec::new(), 6);
    assert_eq!(world.definitions(HOST).count(), 1);
    // A service that left is forgotten after a day, whatever else has its name.
    let mut world = World::new("mesh", 1);
    world.set_policies(documents(&entry.replace("DNS", "NONE")), 0);
    world.upsert(instance("order", "a", "10.0.0.1", 80), 0);
    world.remove(&instance("order", "a", "10.0.0.1", 80).key(), 5);
    world.upsert(instance("pay", "b", "10.0.0.2", 80), 5 + QUARANTINE_S - 1);
    assert_eq!(world.definitions(HOST).count(), 2);
    let changed = world.upsert(instance("pay", "c", "10.0.0.3", 80), 5 + QUARANTINE_S);
    assert!(changed.names && changed.hosts.contains(HOST));
    assert_eq!((world.definitions(HOST).count(), seen(&world)), (1, [true, false]));
}

/// Documents with few names, so that they refer to each other; deterministic for a seed.
fn some_policies(seed: &mut u64, name: usize) -> Vec<Arc<Document>> {
    let mut roll = |of: &[&'static str]| {
        *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        of[(*seed >> 33) as usize % of.len()]
    };
    let host = roll(&["a", "b", "x.example.com", "'*.example.com'", "'*-eu.example.com'"]);
    let created = roll(&["2024-01-01T00:00:00Z", "2024-01-02T00:00:00Z"]);
    let (kind, spec) = match roll(&[
        "rule",
        "selecting",
        "route",
        "route",
        "gateway",
        "delegating",
        "delegate",
        "entry",
        "sidecar",
        "none",
    ]) {
        "sidecar" => {
            ("Sidecar", format!("{{egress: [{{hosts: ['./{}']}}]}}", roll(&["*", "a.default.svc.cluster.local"])))
        }
        "rule" => ("DestinationRule", format!("{{host: {host}}}")),
        "selecting" => (
            "DestinationRule",
            format!("{{host: {host}, workloadSelector: {{matchLabels: {{{}: x}}}}}}", roll(&["l1", "l2"])),
        ),
        "route" => (
            "VirtualService",
            format!(
                "{{hosts: [{host}], http: [{{match: [{{sourceLabels: {{{}: x}}}}], route: [{{destination: {{host: {}}}}}]}}]}}",
                roll(&["l1", "l3"]),
                roll(&["a", "b", "c"])
            ),
        ),
        "gateway" => (
            "VirtualService",
            format!(
                "{{hosts: [{host}], gateways: [mesh, g], http: [{{route: [{{destination: {{host: {}}}}}]}}]}}",
                roll(&["a", "c"])
            ),
        ),
        "delegating" => ("VirtualService", format!("{{hosts: [{host}], http: [{{delegate: {{name: n1}}}}]}}")),
        "delegate" => ("VirtualService", "{http: [{route: [{destination: {host: b}}]}]}".to_owned()),
        "entry" => {
            ("ServiceEntry", "{hosts: [x.example.com], resolution: DNS, ports: [{number: 80, name: http}]}".to_owned())
        }
        _ => return Vec::new(),
    };
    let meta = format!("{{name: n{name}, creationTimestamp: '{created}'}}");
    documents(&format!("apiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata: {meta}\nspec: {spec}\n"))
}

#[test]
fn replacing_single_policies_equals_a_rebuild() {
    let mut seed = 11;
    let mut files: Vec<Vec<Arc<Document>>> = (0..12).map(|name| some_policies(&mut seed, name)).collect();
    let mut world = World::new("cluster.local", 1);
    world.upsert(instance("a", "a1", "10.0.0.1", 80), 0);
    world.set_policies(files.concat(), 0);
    let mut replaced = 0;
    for round in 0..800 {
        let at = round * 5 % files.len();
        files[at] = some_policies(&mut seed, at);
        let mut rebuilt = world.clone();
        let want = rebuilt.rebuild_policies(files.concat(), 0);
        let got = world.replace_policies(&files.concat(), 0);
        replaced += usize::from(got.is_some());
        match got {
            Some(got) => assert_eq!(got, want, "round {round}"),
            None => drop(world.rebuild_policies(files.concat(), 0)),
        }
        assert_eq!(format!("{:?}", world.policies), format!("{:?}", rebuilt.policies), "round {round}");
        assert_eq!(format!("{:?}", world.hosts), format!("{:?}", rebuilt.hosts), "round {round}");
    }
    assert!(replaced > 150, "{replaced}");
}

#[test]
fn replacing_a_policy_of_two_thousand_costs_that_policy_alone() {
    let rule = |n: usize, most: u32| {
        documents(&format!(
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: s{n}}}\n\
             spec: {{host: s{n}, trafficPolicy: {{connectionPool: {{tcp: {{maxConnections: {most}}}}}}}}}\n"
        ))
        .remove(0)
    };
    let mut all: Vec<_> = (0..2_000).map(|n| rule(n, 1)).collect();
    let mut world = World::new("cluster.local", 1);
    world.set_policies(all.clone(), 0);
    all[77] = rule(77, 2);
    let changed = world.replace_policies(&all, 0).expect("nothing else depends on it");
    assert_eq!(changed.hosts, BTreeSet::from(["s77.default.svc.cluster.local".to_owned()]));
    assert!(!changed.all && !changed.names);
}
