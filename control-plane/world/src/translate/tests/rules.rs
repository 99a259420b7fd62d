//! DestinationRules of a host, and their settings for ports and subsets.

use super::*;

#[test]
fn the_first_namespace_with_a_rule_wins_entirely() {
    let rule = |name: &str, namespace: &str, host: &str, limit: u32| {
        let spec = format!("{{host: {host}, trafficPolicy: {{connectionPool: {{tcp: {{maxConnections: {limit}}}}}}}}}");
        doc("DestinationRule", name, namespace, &spec)
    };
    let policies = [
        rule("own", "shop", ORDER, 1),
        rule("theirs", "default", "order-service", 2),
        rule("wild", "default", "'*.default.svc.cluster.local'", 3),
        rule("root", "weft-system", "'*'", 4),
    ]
    .concat();
    let world = world(
        &policies,
        &[orders(), vec![instance("cart", "c", "10.0.0.3", 80), in_namespace(instance("x", "x", "10.0.0.4", 80), "x")]]
            .concat(),
    );
    let limit = |client: &str, host: &str| {
        max(&service(&world, &Scope::of(client), host).unwrap(), &format!("outbound|0||{host}"))
    };
    assert_eq!(limit("shop", ORDER), 1);
    assert_eq!(limit("default", ORDER), 2);
    assert_eq!(limit("elsewhere", ORDER), 2);
    assert_eq!(limit("default", "cart.default.svc.cluster.local"), 3);
    assert_eq!(limit("default", "x.x.svc.cluster.local"), 4);
}

#[test]
fn ports_replace_subsets_overlay_and_rules_join() {
    let policies = [
        doc("Service", "order-service", "default", "{ports: [{name: http-web, port: 80, targetPort: 8080}, {name: grpc-api, port: 90, targetPort: api}]}"),
        doc(
            "DestinationRule",
            "a",
            "default",
            "
  host: order-service
  trafficPolicy:
    connectionPool: {tcp: {maxConnections: 1}}
    outlierDetection: {consecutive5xxErrors: 1}
    portLevelSettings: [{port: {number: 90}, connectionPool: {tcp: {maxConnections: 9}}}]
  subsets:
  - name: v1
    labels: {version: v1}
    trafficPolicy:
      connectionPool: {http: {maxRetries: 7}}
      portLevelSettings: [{port: {number: 90}, tls: {mode: DISABLE}}]",
        ),
        doc("DestinationRule", "b", "default", "{host: order-service, trafficPolicy: {connectionPool: {tcp: {maxConnections: 66}}}, subsets: [{name: v1, labels: {x: y}}, {name: v2, labels: {version: v2}}]}"),
        doc(
            "VirtualService",
            "v",
            "default",
            "{hosts: [order-service], http: [{route: [{destination: {host: order-service, subset: v1}, weight: 1}, {destination: {host: order-service, subset: v2}, weight: 1}, {destination: {host: order-service, subset: v3}, weight: 1}]}]}",
        ),
    ]
    .concat();
    let world = world(&policies, &orders());
    let service = service(&world, &Scope::of("default"), ORDER).unwrap();
    let name = |port: u32, subset: &str| format!("outbound|{port}|{subset}|{ORDER}");
    assert_eq!(
        service.ports.iter().map(|port| (port.number, port.protocol())).collect::<Vec<_>>(),
        [(80, Protocol::Http), (90, Protocol::Grpc)]
    );

    let base = cluster(&service, &name(80, ""));
    assert_eq!((max(&service, &name(80, "")), base.outlier_detection.is_some(), base.target_port), (1, true, 8080));
    let port = cluster(&service, &name(90, ""));
    assert_eq!(
        (max(&service, &name(90, "")), port.outlier_detection.is_some()),
        (9, false),
        "the port inherits nothing"
    );
    assert_eq!((port.target_port, &*port.target_port_name), (0, "api"));

    let subset = cluster(&service, &name(80, "v1"));
    let pool = subset.connection_pool.unwrap();
    assert_eq!((pool.max_connections, pool.max_retries), (0, 7), "no merging inside a block");
    assert!(subset.outlier_detection.is_some(), "a block that the subset lacks is the rule's");
    assert_eq!(subset.labels["version"], "v1", "the older rule's subset stays");
    let subset_port = cluster(&service, &name(90, "v1"));
    assert_eq!((subset_port.tls(), subset_port.connection_pool), (Tls::Disable, None));
    assert_eq!(max(&service, &name(80, "v2")), 1, "subsets of the second rule join the first one's policy");
    assert!(cluster(&service, &name(80, "v3")).undefined);

    let endpoint = &endpoints(&world, ORDER).unwrap().endpoints[0];
    assert_eq!(endpoint.ports["api"], 8080);
}

/// Istio's `MergeSubsetTrafficPolicy`: a port's settings of the rule remove all settings that they lack, those of a
/// subset only settings that a port can have.
#[test]
fn settings_beyond_a_ports_are_dropped_for_the_rules_port_and_kept_for_the_subsets() {
    let policies = [
        doc(
            "Service",
            "order-service",
            "default",
            "{ports: [{name: tcp-a, port: 80}, {name: tcp-b, port: 90}, {name: tcp-c, port: 91}]}",
        ),
        doc(
            "DestinationRule",
            "a",
            "default",
            "
  host: order-service
  trafficPolicy:
    proxyProtocol: {version: V2}
    retryBudget: {percent: 7}
    portLevelSettings: [{port: {number: 90}, outlierDetection: {}}]
  subsets:
  - name: v1
    labels: {version: v1}
    trafficPolicy:
      proxyProtocol: {version: V1}
      portLevelSettings: [{port: {number: 91}, outlierDetection: {}}]",
        ),
        doc(
            "VirtualService",
            "v",
            "default",
            "{hosts: [order-service], tcp: [{route: [{destination: {host: order-service, subset: v1}}]}]}",
        ),
    ]
    .concat();
    let world = world(&policies, &orders());
    let service = service(&world, &Scope::of("default"), ORDER).unwrap();
    let of = |port: u32, subset: &str| {
        let cluster = cluster(&service, &format!("outbound|{port}|{subset}|{ORDER}"));
        (cluster.proxy_protocol(), cluster.connection_pool.and_then(|pool| pool.retry_budget).is_some())
    };
    use v1::ProxyProtocol::{None, V1, V2};
    assert_eq!([of(80, ""), of(90, ""), of(91, "")], [(V2, true), (None, false), (V2, true)]);
    assert_eq!([of(80, "v1"), of(90, "v1"), of(91, "v1")], [(V1, true), (V1, false), (V2, true)]);
}

#[test]
fn a_services_only_registered_port_has_port_settings() {
    let rule = doc(
        "DestinationRule",
        "a",
        "default",
        "{host: order-service, trafficPolicy: {portLevelSettings: [{port: {number: 8080}, connectionPool: {tcp: {maxConnections: 5}}}]}}",
    );
    let world = world(&rule, &orders());
    assert_eq!(max(&service(&world, &Scope::of("default"), ORDER).unwrap(), &format!("outbound|0||{ORDER}")), 5);
}
