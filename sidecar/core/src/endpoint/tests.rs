//! Tests, and constructors of endpoints and clusters for the tests of other modules.

use super::*;
use crate::policy::{ConnectionPool, H2Upgrade, LoadBalancer, OutlierDetection, Protocol, Tls};
use std::time::Duration;

pub(crate) fn config(address: &str, weight: u32) -> EndpointConfig {
    let address: SocketAddr = address.parse().unwrap();
    EndpointConfig {
        address: Address::Ip(address.ip()),
        port: address.port(),
        ports: BTreeMap::new(),
        labels: BTreeMap::new(),
        weight,
        health: Health::Healthy,
        identity: None,
        id: "".into(),
        workload: "".into(),
        namespace: "".into(),
        locality: "".into(),
        hostnames: Vec::new(),
        remote: None,
    }
}

/// A gateway of the data centre dc2 with a host and its subset v2; `share`: percent of the requests.
pub(crate) fn gateway(address: &str, share: u32) -> EndpointConfig {
    let identities = vec!["spiffe://two/ns/a/sa/b".parse().unwrap()];
    let remote = Arc::new(Remote { datacenter: "dc2".into(), share, identities });
    let subsets = ["", "v2"].map(|subset| (subset.to_owned(), remote.clone()));
    EndpointConfig { remote: Some(Arc::new(subsets.into())), ..config(address, 1) }
}

pub(crate) fn cluster(load_balancer: LoadBalancer, outlier: Option<OutlierDetection>) -> Cluster {
    Cluster {
        dynamic_dns: false,
        headless: false,
        name: "outbound|80||a".into(),
        host: "a".into(),
        port: 80,
        subset: "".into(),
        labels: BTreeMap::new(),
        target_port: TargetPort::Registered,
        protocol: Protocol::Http,
        load_balancer,
        locality: crate::locality::Locality::Any,
        warmup: None,
        pool: ConnectionPool {
            max_connections: u32::MAX,
            connect_timeout: Duration::from_secs(10),
            max_pending_requests: u32::MAX,
            max_requests: u32::MAX,
            max_requests_per_connection: u32::MAX,
            max_retries: u32::MAX,
            retry_budget: None,
            http_idle_timeout: Duration::from_secs(3600),
            tcp_idle_timeout: Some(Duration::from_secs(3600)),
            max_connection_duration: None,
            tcp_keepalive: None,
            max_concurrent_streams: i32::MAX as u32,
            h2_upgrade: H2Upgrade::Default,
            use_client_protocol: false,
            http2_keepalive: None,
        },
        outlier,
        tls: Tls::Auto,
        proxy_protocol: None,
        tunnel: None,
        policy: "".into(),
        undefined: false,
        original_destination: false,
    }
}

/// Consecutive 5xx alone, otherwise Istio's defaults.
pub(crate) fn outlier(consecutive_5xx: u32, max_ejection_percent: u32) -> OutlierDetection {
    OutlierDetection {
        consecutive_5xx: Some(consecutive_5xx),
        consecutive_gateway_errors: None,
        interval: Duration::from_secs(10),
        base_ejection_time: Duration::from_secs(30),
        max_ejection_percent,
        min_health_percent: 0,
        split_external_local_origin_errors: false,
        consecutive_local_origin_failures: Some(5),
        error_codes: Vec::new(),
    }
}

/// 127.0.0.1:90, :91 and so on, with these weights.
pub(crate) fn endpoints(weights: &[u32]) -> Vec<Arc<Endpoint>> {
    let configs = weights.iter().enumerate();
    let configs: Vec<_> =
        configs.map(|(i, weight)| Arc::new(config(&format!("127.0.0.1:{}", 90 + i), *weight))).collect();
    for_cluster(&cluster(LoadBalancer::Random, Some(outlier(5, 10))), &configs, &[])
}

fn arcs(configs: impl IntoIterator<Item = EndpointConfig>) -> Vec<Arc<EndpointConfig>> {
    configs.into_iter().map(Arc::new).collect()
}

#[test]
fn a_subset_selects_endpoints_with_all_its_labels() {
    let labels = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
    let mut v1 = config("10.0.0.1:80", 1);
    v1.labels = labels(&[("version", "v1"), ("zone", "a")]);
    let mut v2 = config("10.0.0.2:80", 1);
    v2.labels = labels(&[("version", "v2")]);
    let configs = arcs([v1, v2, config("10.0.0.3:80", 1)]);
    let mut subset = cluster(LoadBalancer::LeastRequest, None);
    assert_eq!(for_cluster(&subset, &configs, &[]).len(), 3);
    subset.labels = labels(&[("version", "v1")]);
    let selection = for_cluster(&subset, &configs, &[]);
    assert_eq!(selection.iter().map(|e| &*e.key).collect::<Vec<_>>(), ["10.0.0.1:80"]);
    subset.labels = labels(&[("version", "v1"), ("zone", "b")]);
    assert!(for_cluster(&subset, &configs, &[]).is_empty());
}

#[test]
fn target_ports_are_resolved_by_number_and_name() {
    let mut plain = config("10.0.0.1:80", 1);
    plain.ports.insert("http".into(), 8080);
    let mut by_name = config("10.0.0.1:80", 1);
    by_name.address = Address::Name("db.example.com".into());
    let mut v6 = config("[::1]:80", 1);
    v6.ports.insert("http".into(), 8081);
    let configs = arcs([plain, by_name, v6]);
    let named_port = |otherwise| TargetPort::Named { name: "http".into(), otherwise };
    for (target_port, keys) in [
        (TargetPort::Registered, vec!["10.0.0.1:80", "db.example.com:80", "[::1]:80"]),
        (TargetPort::Number(9), vec!["10.0.0.1:9", "db.example.com:9", "[::1]:9"]),
        (named_port(None), vec!["10.0.0.1:8080", "[::1]:8081"]),
        (named_port(Some(7)), vec!["10.0.0.1:8080", "db.example.com:7", "[::1]:8081"]),
    ] {
        let cluster = Cluster { target_port, ..cluster(LoadBalancer::LeastRequest, None) };
        let selection = for_cluster(&cluster, &configs, &[]);
        assert_eq!(selection.iter().map(|e| &*e.key).collect::<Vec<_>>(), keys);
    }
}

#[test]
fn state_survives_a_new_snapshot() {
    let with = cluster(LoadBalancer::LeastRequest, Some(outlier(1, 100)));
    let before = for_cluster(&with, &arcs([config("10.0.0.1:80", 1), config("10.0.0.2:80", 1)]), &[]);
    let _in_flight = before[0].state.enter();
    let after = for_cluster(&with, &arcs([config("10.0.0.3:80", 1), config("10.0.0.1:80", 7)]), &before);
    assert_eq!(after.iter().map(|e| e.state.in_flight()).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(after[1].config.weight, 7);
    assert!(Arc::ptr_eq(&after[1].state, &before[0].state));
    let same = for_cluster(&with, &[after[1].config.clone()], &after);
    assert!(Arc::ptr_eq(&same[0], &after[1]), "an unchanged endpoint is reused");
    drop(_in_flight);
    assert_eq!(after[1].state.in_flight(), 0);
}

/// Open connections belong to the previous workload at the address.
#[test]
fn another_identity_at_an_address_starts_with_fresh_state() {
    let plain = cluster(LoadBalancer::LeastRequest, None);
    let with = |identity: Option<&str>| EndpointConfig {
        identity: identity.map(|id| id.parse().unwrap()),
        ..config("10.0.0.1:80", 1)
    };
    let mut before = for_cluster(&plain, &arcs([with(None)]), &[]);
    for (identity, anew) in [
        (None, false),
        (Some("spiffe://one/ns/a/sa/b"), true),
        (Some("spiffe://one/ns/a/sa/b"), false),
        (Some("spiffe://one/ns/a/sa/c"), true),
        (None, true),
    ] {
        let after = for_cluster(
            &plain,
            &arcs([EndpointConfig { weight: before[0].config.weight + 1, ..with(identity) }]),
            &before,
        );
        assert_eq!(after[0].state.id() != before[0].state.id(), anew, "{identity:?}");
        before = after;
    }
}

#[test]
fn removing_outlier_detection_ends_ejections() {
    use crate::outcome::Outcome;
    use crate::outlier::Detector;
    let with = cluster(LoadBalancer::LeastRequest, Some(outlier(1, 100)));
    let configs = arcs([config("10.0.0.1:80", 1)]);
    let before = for_cluster(&with, &configs, &[]);
    let detector = Detector::new(outlier(1, 100), before.clone(), None);
    let now = crate::outlier::tests::now();
    assert!(detector.record(&before[0], &Outcome::ConnectFailure, now).is_some());
    assert!(for_cluster(&with, &configs, &before)[0].is_ejected());
    assert!(!for_cluster(&cluster(LoadBalancer::LeastRequest, None), &configs, &before)[0].is_ejected());
}

#[test]
fn duplicate_addresses_are_one_endpoint_found_whatever_its_health() {
    let mut draining = config("10.0.0.2:80", 1);
    draining.health = Health::Draining;
    let configs = arcs([config("10.0.0.1:80", 1), config("10.0.0.1:80", 2), draining]);
    let selection = for_cluster(&cluster(LoadBalancer::LeastRequest, None), &configs, &[]);
    assert_eq!(selection.iter().map(|e| e.is_eligible()).collect::<Vec<_>>(), [true, false]);
    let plain = cluster(LoadBalancer::LeastRequest, None);
    let find = |text: &str| super::find(&plain, &selection, text.parse().unwrap()).map(|e| e.key.to_string());
    assert_eq!(find("10.0.0.2:80").as_deref(), Some("10.0.0.2:80"));
    assert_eq!(find("10.0.0.2:81"), None);
}

#[test]
fn remote_gateways_belong_to_subsets_by_name() {
    let mut cluster = cluster(LoadBalancer::RoundRobin, None);
    cluster.target_port = TargetPort::Number(8080);
    let configs = [Arc::new(config("10.0.0.1:80", 1)), Arc::new(gateway("10.9.0.1:15443", 7))];
    let keys = |cluster: &Cluster| -> Vec<String> {
        for_cluster(cluster, &configs, &[]).iter().map(|e| e.key.to_string()).collect()
    };
    assert_eq!(keys(&cluster), ["10.0.0.1:8080", "10.9.0.1:15443"]);
    cluster.labels = [("version".to_owned(), "v2".to_owned())].into();
    cluster.subset = "v2".into();
    assert_eq!(keys(&cluster), ["10.9.0.1:15443"]);
    let selection = for_cluster(&cluster, &configs, &[]);
    assert_eq!(selection[0].identities()[0].trust_domain(), "two");
    for changed in [
        Cluster { subset: "v3".into(), ..cluster.clone() },
        Cluster { tls: Tls::Disable, ..cluster.clone() },
        Cluster { original_destination: true, ..cluster.clone() },
    ] {
        assert_eq!(keys(&changed), [""; 0]);
    }
    // A changed share makes another endpoint with the same state.
    let moved = for_cluster(&cluster, &[Arc::new(gateway("10.9.0.1:15443", 8))], &selection);
    assert_eq!(moved[0].remote.as_ref().unwrap().share, 8);
    assert!(Arc::ptr_eq(&moved[0].state, &selection[0].state));
}

#[test]
fn a_unix_socket_is_an_endpoint_whatever_the_port() {
    let unix = EndpointConfig { address: Address::Unix("/run/a.sock".into()), port: 0, ..config("10.0.0.1:80", 1) };
    let configs = [Arc::new(unix)];
    for target_port in
        [TargetPort::Registered, TargetPort::Number(8080), TargetPort::Named { name: "http".into(), otherwise: None }]
    {
        let cluster = Cluster { target_port, ..cluster(LoadBalancer::LeastRequest, None) };
        let selection = for_cluster(&cluster, &configs, &[]);
        assert_eq!((&*selection[0].key, &selection[0].target), ("/run/a.sock", &Target::Unix("/run/a.sock".into())));
        assert!(Arc::ptr_eq(&selection[0], &for_cluster(&cluster, &configs, &selection)[0]), "its state is kept");
    }
}

#[test]
fn each_resolved_address_of_a_name_is_an_endpoint() {
    let mut by_name = config("10.0.0.1:80", 3);
    by_name.address = Address::EachOf("db.test".into());
    let configs = [Arc::new(config("10.0.0.9:80", 1)), Arc::new(by_name)];
    assert!(matches!(resolved(&configs, &HashMap::new()), std::borrow::Cow::Borrowed(_)));
    let addresses: Vec<IpAddr> = ["10.0.0.1", "::1"].map(|address| address.parse().unwrap()).into();
    let selection = resolved(&configs, &[("db.test".into(), addresses)].into());
    let cluster = cluster(LoadBalancer::Random, None);
    let endpoints: Vec<_> =
        for_cluster(&cluster, &selection, &[]).iter().map(|e| (e.key.to_string(), e.config.weight)).collect();
    assert_eq!(endpoints, [("10.0.0.9:80".into(), 1), ("10.0.0.1:80".into(), 3), ("[::1]:80".into(), 3)]);
    let before: Vec<_> = for_cluster(&cluster, &configs, &[]).iter().map(|e| e.key.to_string()).collect();
    assert_eq!(before, ["10.0.0.9:80", "db.test:80"]);
}
