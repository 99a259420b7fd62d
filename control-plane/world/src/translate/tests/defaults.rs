//! Defaults of the mesh apply below every more specific setting.

use super::*;

fn mesh(config: &str) -> String {
    format!("apiVersion: install.istio.io/v1alpha1\nkind: IstioOperator\nspec: {{meshConfig: {config}}}\n---\n")
}

fn rule(spec: &str) -> String {
    doc("DestinationRule", "order", "default", &format!("{{host: order-service, {spec}}}"))
}

fn kube(protocol: &str) -> String {
    doc("Service", "order-service", "default", &format!("{{ports: [{{port: 80, name: {protocol}}}]}}"))
}

/// The service as translated for clients of `default`.
fn translated(policies: &str) -> v1::Service {
    service(&world(policies, &orders()), &Scope::of("default"), ORDER).unwrap()
}

fn own(service: &v1::Service) -> &v1::Cluster {
    &service.clusters[0]
}

#[test]
fn mesh_defaults_fill_absent_blocks() {
    let mesh = mesh(
        "{defaultTrafficPolicy: {connectionPool: {tcp: {maxConnections: 7}}, outlierDetection: {consecutive5xxErrors: 9}}}",
    );
    let errors = |cluster: &v1::Cluster| cluster.outlier_detection.as_ref().unwrap().consecutive_5xx_errors;
    for (rule, connections, consecutive, policy) in [
        ("", 7, Some(9), "IstioOperator/weft-system/mesh"),
        (
            "trafficPolicy: {connectionPool: {http: {maxRetries: 1}}}",
            0,
            Some(9),
            "DestinationRule/default/order+IstioOperator/weft-system/mesh",
        ),
        (
            "trafficPolicy: {outlierDetection: {}}",
            7,
            None,
            "DestinationRule/default/order+IstioOperator/weft-system/mesh",
        ),
        (
            "trafficPolicy: {connectionPool: {tcp: {maxConnections: 3}}, outlierDetection: {consecutive5xxErrors: 4}}",
            3,
            Some(4),
            "DestinationRule/default/order",
        ),
    ] {
        let rule = if rule.is_empty() { String::new() } else { super::defaults::rule(rule) };
        let service = translated(&(mesh.clone() + &rule));
        let cluster = own(&service);
        assert_eq!(cluster.connection_pool.unwrap().max_connections, connections, "{rule}");
        assert_eq!((errors(cluster), &*cluster.policy), (consecutive, policy), "{rule}");
    }
    // A port's own settings replace the rule's as a whole; missing ones are the mesh's.
    let port = "trafficPolicy: {connectionPool: {tcp: {maxConnections: 3}}, portLevelSettings: [{port: {number: 80}, \
                outlierDetection: {consecutive5xxErrors: 4}}]}";
    let service = translated(&(mesh.clone() + &kube("http") + &rule(port)));
    assert_eq!((own(&service).connection_pool.unwrap().max_connections, errors(own(&service))), (7, Some(4)));
}

#[test]
fn inbound_traffic_observes_the_default_pool() {
    let policies = mesh("{defaultTrafficPolicy: {connectionPool: {tcp: {maxConnections: 7}}}, connectTimeout: 2s}");
    let limits = |more: &str| {
        let world = world(&(policies.clone() + more), &orders());
        let key = orders()[0].key();
        let pool = inbound(&world, "default", &Default::default(), &[key]).services[0].connection_pool.unwrap();
        (pool.max_connections, pool.connect_timeout_ms)
    };
    assert_eq!(limits(""), (7, 2000));
    assert_eq!(limits(&rule("trafficPolicy: {connectionPool: {tcp: {maxConnections: 3}}}")), (3, 2000));
    let sidecar = "{inboundConnectionPool: {tcp: {maxConnections: 2, connectTimeout: 1s}}}";
    assert_eq!(limits(&doc("Sidecar", "s", "default", sidecar)), (2, 1000));
}

#[test]
fn mesh_defaults_fill_single_fields_of_a_pool() {
    let config = mesh("{connectTimeout: 2s, tcpKeepalive: {time: 60s}, h2UpgradePolicy: UPGRADE}");
    let pool = |rule: &str, protocol: &str| {
        let pool = own(&translated(&(config.clone() + &kube(protocol) + rule))).connection_pool.unwrap();
        (pool.connect_timeout_ms, pool.tcp_keepalive.unwrap().time_s, pool.h2_upgrade())
    };
    use v1::H2Upgrade::{DoNotUpgrade, H2Default, Upgrade};
    assert_eq!(pool("", "http"), (2000, 60, Upgrade));
    // Ports without a declared protocol.
    assert_eq!(pool("", "main"), (2000, 60, H2Default));
    assert_eq!(pool("", "tcp"), (2000, 60, H2Default));
    let own = "trafficPolicy: {connectionPool: {tcp: {connectTimeout: 1s, tcpKeepalive: {time: 5s}}, http: \
               {h2UpgradePolicy: DO_NOT_UPGRADE}}}";
    assert_eq!(pool(&rule(own), "http"), (1000, 5, DoNotUpgrade));
    let other = "trafficPolicy: {connectionPool: {tcp: {maxConnections: 1}}}";
    assert_eq!(pool(&rule(other), "http"), (2000, 60, Upgrade));
}

#[test]
fn localities_and_automatic_tls() {
    let config = mesh("{localityLbSetting: {enabled: false}, enableAutoMtls: false}");
    let service = translated(&config);
    assert!(own(&service).load_balancer.as_ref().unwrap().locality.as_ref().unwrap().disabled);
    assert_eq!(own(&service).tls(), Tls::Disable);
    let nearer = "trafficPolicy: {loadBalancer: {simple: RANDOM, localityLbSetting: {failoverPriority: [a]}}, tls: {mode: \
                  ISTIO_MUTUAL}, outlierDetection: {}}";
    let service = translated(&(config.clone() + &rule(nearer)));
    let balancer = own(&service).load_balancer.as_ref().unwrap();
    assert_eq!(balancer.locality.as_ref().unwrap().failover_priority, ["a"]);
    assert_eq!(own(&service).tls(), Tls::IstioMutual);
    let service = translated(&(config + &rule("trafficPolicy: {loadBalancer: {simple: RANDOM}}")));
    let balancer = own(&service).load_balancer.as_ref().unwrap();
    assert!(balancer.locality.as_ref().unwrap().disabled && balancer.simple() == v1::load_balancer::Simple::Random);
}

#[test]
fn default_retries_apply_to_routes_and_hosts_without_a_policy() {
    let config = mesh("{defaultHttpRetryPolicy: {attempts: 5, perTryTimeout: 1s, retryOn: 5xx}}");
    let attempts = |retry: &Option<v1::RetryPolicy>| retry.as_ref().map(|retry| retry.attempts);
    let service = translated(&config);
    assert_eq!((attempts(&service.ports[0].retry), service.ports[0].routes.len()), (Some(5), 0));
    assert_eq!(translated(&(config.clone() + &kube("tcp"))).ports[0].retry, None);
    let to = "route: [{destination: {host: order-service}}]";
    let routes = format!(
        "{{hosts: [order-service], http: [{{match: [{{uri: {{exact: /a}}}}], retries: {{attempts: 1}}, {to}}}, {{{to}}}]}}"
    );
    let routes = doc("VirtualService", "order", "default", &routes);
    let of_routes = |policies: &str| {
        let forwards = translated(policies).ports.remove(0).routes.into_iter().map(|route| match route.action {
            Some(Action::Forward(forward)) => attempts(&forward.retry),
            other => panic!("{other:?}"),
        });
        forwards.collect::<Vec<_>>()
    };
    assert_eq!(translated(&(config.clone() + &routes)).ports[0].retry, None);
    assert_eq!(of_routes(&(config + &routes)), [Some(1), Some(5)]);
    assert_eq!(of_routes(&routes), [Some(1), None]);
}

#[test]
fn unknown_destinations() {
    use v1::OutboundPolicy::{AllowAny, OutboundUnset, RegistryOnly};
    let registry_only = mesh("{outboundTrafficPolicy: {mode: REGISTRY_ONLY}}");
    let allow_any = doc("Sidecar", "s", "default", "{outboundTrafficPolicy: {mode: ALLOW_ANY}}");
    let silent = doc("Sidecar", "s", "default", "{egress: [{hosts: ['*/*']}]}");
    for (policies, want) in [
        (String::new(), OutboundUnset),
        (registry_only.clone(), RegistryOnly),
        (registry_only.clone() + &silent, RegistryOnly),
        (registry_only + &allow_any, AllowAny),
    ] {
        let inbound = inbound(&world(&policies, &[]), "default", &Default::default(), &[]);
        assert_eq!(inbound.outbound_policy(), want, "{policies}");
    }
}

#[test]
fn proxies_receive_the_termination_drain_duration() {
    let drain_ms =
        |policies: &str| inbound(&world(policies, &[]), "default", &Default::default(), &[]).termination_drain_ms;
    assert_eq!(drain_ms(&mesh("{defaultConfig: {terminationDrainDuration: 20s}}")), Some(20_000));
    assert_eq!(drain_ms(&mesh("{defaultConfig: {terminationDrainDuration: 0s}}")), Some(0));
    assert_eq!(drain_ms(&mesh("{defaultConfig: {}}")), None);
    assert_eq!(drain_ms(""), None);
}

#[test]
fn default_export_to_applies_to_documents_without_one() {
    let config =
        mesh("{defaultServiceExportTo: [.], defaultDestinationRuleExportTo: [.], defaultVirtualServiceExportTo: [.]}");
    let open = doc("Service", "open", "default", "{ports: [{port: 80}]}")
        .replace("{name: open,", "{name: open, annotations: {networking.istio.io/exportTo: '*'},");
    let entry = doc("ServiceEntry", "e", "default", "{hosts: [a.test], ports: [{number: 80, name: http}]}");
    let instances = [orders(), vec![instance("open", "open-1", "10.0.0.9", 80)]].concat();
    let mut known = world(&(open.clone() + &entry), &instances);
    let sees = |world: &World, client_ns: &str, name: &str| resolve(world, &Scope::of(client_ns), name).is_some();
    assert!(sees(&known, "shop", "order-service.default") && sees(&known, "shop", "a.test"));
    let changed = known.set_policies(documents(&(config + &open + &entry)), 0);
    assert!(changed.all && changed.names);
    for (client_ns, name, want) in [
        ("default", "order-service", true),
        ("shop", "order-service.default", false),
        ("shop", "10.0.0.1:8080", false),
        ("default", "a.test", true),
        ("shop", "a.test", false),
        ("shop", "open.default", true),
    ] {
        assert_eq!(sees(&known, client_ns, name), want, "{client_ns} {name}");
    }
    // A later registration is treated alike.
    known.upsert(instance("late", "late-1", "10.0.0.8", 80), 0);
    assert!(sees(&known, "default", "late") && !sees(&known, "shop", "late.default"));
}
