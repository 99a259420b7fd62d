mod errors;

use super::cluster::{connection_pool, outlier_detection};
use super::*;
use crate::hash::HashPolicy;
use crate::locality::{Failover, Label, Locality};
use crate::policy::Tls;
use crate::route::Action;
use v1::http_route::Action as Act;
use v1::string_match::Kind;

/// A service with two clusters and one port.
fn base() -> v1::Service {
    let cluster = |subset: &str| v1::Cluster {
        name: format!("outbound|80|{subset}|order"),
        host: "order".into(),
        port: 80,
        subset: subset.into(),
        ..v1::Cluster::default()
    };
    v1::Service {
        host: "order.default.svc.cluster.local".into(),
        namespace: "default".into(),
        addresses: vec!["240.240.0.7".into()],
        names: vec!["order".into()],
        ports: vec![v1::Port { number: 80, name: "http".into(), protocol: 1, ..v1::Port::default() }],
        clusters: vec![cluster(""), cluster("v2")],
        external: false,
        exported: false,
        routed_by_address: false,
        external_name: String::new(),
    }
}

fn exact(text: &str) -> Option<v1::StringMatch> {
    Some(v1::StringMatch { kind: Some(Kind::Exact(text.into())) })
}

fn regex(text: &str) -> Option<v1::StringMatch> {
    Some(v1::StringMatch { kind: Some(Kind::Regex(text.into())) })
}

fn pair(name: &str, value: &str) -> v1::HeaderValue {
    v1::HeaderValue { name: name.into(), value: value.into() }
}

fn to(destinations: &[(u32, u32)]) -> v1::Forward {
    let weighted =
        |(cluster, weight): &(u32, u32)| v1::WeightedCluster { cluster: *cluster, weight: *weight, headers: None };
    v1::Forward { destinations: destinations.iter().map(weighted).collect(), ..v1::Forward::default() }
}

fn forward_route(forward: v1::Forward) -> v1::HttpRoute {
    v1::HttpRoute {
        name: "VirtualService/default/order".into(),
        action: Some(Act::Forward(forward)),
        ..Default::default()
    }
}

fn with_route(route: v1::HttpRoute) -> v1::Service {
    let mut message = base();
    message.ports[0].routes = vec![route];
    message
}

fn with_lb(load_balancer: v1::LoadBalancer) -> v1::Service {
    let mut message = base();
    message.clusters[0].load_balancer = Some(load_balancer);
    message
}

fn hash(key: v1::consistent_hash::Key, minimum_ring_size: u64, maglev_table_size: u64) -> v1::LoadBalancer {
    let consistent_hash = Some(v1::ConsistentHash { key: Some(key), minimum_ring_size, maglev_table_size });
    v1::LoadBalancer { consistent_hash, ..v1::LoadBalancer::default() }
}

fn source_ip() -> v1::consistent_hash::Key {
    v1::consistent_hash::Key::UseSourceIp(true)
}

#[test]
fn defaults_are_applied_to_absent_fields() {
    let compiled = service(&base()).unwrap();
    let cluster = &compiled.clusters[0];
    assert_eq!(cluster.load_balancer, LoadBalancer::LeastRequest);
    assert_eq!(
        (cluster.outlier.as_ref(), &cluster.tls, &cluster.target_port),
        (None, &Tls::Auto, &TargetPort::Registered)
    );
    let pool = &cluster.pool;
    assert_eq!([pool.max_connections, pool.max_pending_requests, pool.max_requests, pool.max_retries], [u32::MAX; 4]);
    assert_eq!(pool.max_concurrent_streams, i32::MAX as u32);
    assert_eq!(
        (pool.connect_timeout, pool.tcp_idle_timeout),
        (Duration::from_secs(10), Some(Duration::from_secs(3600)))
    );
    assert_eq!(compiled.port(80).unwrap().routes.routes()[0].name.as_ref(), "default");
    assert!(compiled.port(81).is_none());
    assert_eq!(**cluster, **service(&base()).unwrap().cluster(0), "equal messages compile to equal clusters");
}

#[test]
fn port_zero_matches_any_port() {
    let mut message = base();
    message.ports.push(v1::Port { number: 0, name: "any".into(), ..v1::Port::default() });
    let compiled = service(&message).unwrap();
    let name = |number| compiled.port(number).unwrap().name.to_string();
    assert_eq!([name(80), name(81)], ["http", "any"]);
}

#[test]
fn http_idle_timeout_defaults_to_the_tcp_one() {
    for (http, tcp, http_s, tcp_s) in [
        (0, None, 3600, Some(3600)),
        (0, Some(5_000), 5, Some(5)),
        (7_000, Some(5_000), 7, Some(5)),
        (0, Some(0), 3600, None),
    ] {
        let pool = v1::ConnectionPool { http_idle_timeout_ms: http, tcp_idle_timeout_ms: tcp, ..Default::default() };
        let pool = connection_pool(Some(&pool)).unwrap();
        assert_eq!(pool.http_idle_timeout, Duration::from_secs(http_s));
        assert_eq!(pool.tcp_idle_timeout, tcp_s.map(Duration::from_secs));
    }
}

#[test]
fn empty_outlier_detection_ejects_after_five_errors() {
    let policy = outlier_detection(&v1::OutlierDetection::default()).unwrap();
    assert_eq!(
        policy,
        OutlierDetection {
            consecutive_5xx: Some(5),
            consecutive_gateway_errors: None,
            interval: Duration::from_secs(10),
            base_ejection_time: Duration::from_secs(30),
            max_ejection_percent: 10,
            min_health_percent: 0,
            split_external_local_origin_errors: false,
            consecutive_local_origin_failures: Some(5),
            error_codes: Vec::new(),
        }
    );
    let off = v1::OutlierDetection { consecutive_5xx_errors: Some(0), ..v1::OutlierDetection::default() };
    assert_eq!(outlier_detection(&off).unwrap().consecutive_5xx, None);
}

#[test]
fn load_balancers_are_compiled() {
    let first = |message| service(&message).unwrap().clusters[0].clone();
    let ring = first(with_lb(hash(source_ip(), 0, 0)));
    assert_eq!(ring.load_balancer, LoadBalancer::RingHash { policy: HashPolicy::SourceIp, minimum_size: 1024 });
    let maglev = first(with_lb(hash(source_ip(), 0, 65537)));
    assert_eq!(maglev.load_balancer, LoadBalancer::Maglev { policy: HashPolicy::SourceIp, table_size: 65537 });
    let passthrough = first(with_lb(v1::LoadBalancer { simple: 3, ..Default::default() }));
    assert!(passthrough.original_destination);
}

#[test]
fn hash_policies_of_all_destinations_are_combined() {
    let mut message = with_lb(hash(source_ip(), 0, 0));
    message.clusters[1].load_balancer = Some(hash(v1::consistent_hash::Key::HttpHeaderName("X-User".into()), 0, 0));
    for (destinations, count, avoids) in [(vec![(0, 1)], 1, false), (vec![(0, 1), (1, 1)], 2, true)] {
        message.ports[0].routes = vec![forward_route(to(&destinations))];
        let compiled = service(&message).unwrap();
        let Action::Forward(forward) = &*compiled.ports[0].routes.routes()[0].action else { panic!("a forward") };
        assert_eq!((forward.hash.len(), forward.retry_selection.other_endpoints), (count, avoids));
    }
}

#[test]
fn retry_policies_are_compiled() {
    let compile = |timeout_ms, retry| {
        let compiled = service(&with_route(forward_route(v1::Forward { timeout_ms, retry, ..to(&[(0, 0)]) }))).unwrap();
        let Action::Forward(forward) = &*compiled.ports[0].routes.routes()[0].action else { panic!("a forward") };
        forward.retry.clone()
    };
    use crate::retry::RetryPolicy;
    let policy = |attempts, per_try_timeout_ms| {
        Some(v1::RetryPolicy { attempts, per_try_timeout_ms, ..v1::RetryPolicy::default() })
    };
    assert_eq!(compile(0, None), RetryPolicy::default());
    assert_eq!(compile(0, policy(0, 0)).attempts, 0);
    let one_second = Some(Duration::from_secs(1));
    assert_eq!(
        compile(0, policy(3, 1000)),
        RetryPolicy { attempts: 3, per_try_timeout: one_second, ..RetryPolicy::default() }
    );
    assert_eq!(compile(1001, policy(3, 1000)).per_try_timeout, one_second);
    assert_eq!(compile(1000, policy(3, 1000)).per_try_timeout, None, "not shorter than the route's timeout");
}

#[test]
fn a_port_without_routes_has_default_retries() {
    let compile = |retry| {
        let mut message = base();
        message.ports[0].retry = retry;
        service(&message)
    };
    let policy = v1::RetryPolicy { attempts: 4, previous_hosts: true, other_localities: true, ..Default::default() };
    for (retry, want) in [(None, (2, true, false)), (Some(policy), (4, false, true))] {
        let compiled = compile(retry).unwrap();
        let Action::Forward(forward) = &*compiled.ports[0].routes.routes()[0].action else { panic!("a forward") };
        assert_eq!(
            (forward.retry.attempts, forward.retry_selection.other_endpoints, forward.retry_selection.other_levels),
            want
        );
    }
    let wrong = v1::RetryPolicy { attempts: 1, retry_on: vec!["6xx".into()], ..Default::default() };
    assert_eq!(compile(Some(wrong)).unwrap_err().field, "ports[0].retry.retry_on");
}

#[test]
fn dynamic_dns_accepts_hosts_within_the_wildcard() {
    let mut message = base();
    message.clusters[0] =
        v1::Cluster { host: "*.Example.com".into(), dynamic_dns: true, ..message.clusters[0].clone() };
    let compiled = service(&message).unwrap();
    let host_of = |authority| compiled.clusters[0].dynamic_host(authority).map(|host| host.into_owned());
    for (authority, want) in [
        ("a.example.com", Some("a.example.com")),
        ("A.b.Example.Com.:8080", Some("a.b.example.com")),
        ("example.com", None),
        ("a.example.com.evil.test", None),
        (".example.com", None),
        ("a\0.example.com", None),
        ("a@.example.com", None),
        ("10.0.0.1", None),
        ("", None),
    ] {
        assert_eq!(host_of(authority).as_deref(), want, "{authority}");
    }
    assert_eq!(host_of(&format!("{}.example.com", "a".repeat(250))), None);
    assert!(!compiled.clusters[0].has_endpoints() && compiled.clusters[1].has_endpoints());
    assert_eq!(compiled.clusters[1].dynamic_host("order"), None);
}

#[test]
fn authority_of_rewrite_wins_over_route_and_destination() {
    let ops = |value: &str| {
        let change = v1::HeaderChange { set: vec![pair("Host", value)], ..v1::HeaderChange::default() };
        Some(v1::HeaderOperations { request: Some(change), response: None })
    };
    for (rewrite, route, expected) in
        [(Some("rewrite"), Some("route"), "rewrite"), (None, Some("route"), "route"), (None, None, "destination")]
    {
        let mut forward = to(&[(0, 0)]);
        forward.destinations[0].headers = ops("destination");
        forward.rewrite = Some(v1::Rewrite { authority: rewrite.map(str::to_owned), ..Default::default() });
        let route = v1::HttpRoute { headers: route.and_then(ops), ..forward_route(forward) };
        let compiled = service(&with_route(route)).unwrap();
        let Action::Forward(forward) = &*compiled.ports[0].routes.routes()[0].action else { panic!("a forward") };
        assert_eq!(forward.destinations[0].authority.as_ref().unwrap(), expected);
        assert!(forward.destinations[0].headers.is_empty(), "the authority is not a header change");
    }
}

#[test]
fn endpoints_are_compiled() {
    let plain = v1::Endpoint { address: "10.0.0.1".into(), port: 80, ..v1::Endpoint::default() };
    let compile =
        |endpoint| endpoints(&v1::Endpoints { host: "a".into(), endpoints: vec![endpoint], remotes: Vec::new() });
    let good =
        compile(v1::Endpoint { identity: "spiffe://cluster.local/ns/a/sa/b".into(), health: 3, ..plain.clone() });
    let good = good.unwrap();
    assert_eq!((good[0].weight, good[0].health), (1, Health::Unknown));
    assert_eq!(good[0].identity.as_ref().unwrap().service_account(), "b");
    let by_name = compile(v1::Endpoint { address: "DB.example.com".into(), ..plain.clone() }).unwrap();
    assert_eq!(by_name[0].address, Address::Name("db.example.com".into()));
    let unix = v1::Endpoint { address: "unix:///run/A.sock".into(), ..v1::Endpoint::default() };
    assert_eq!(compile(unix).unwrap()[0].address, Address::Unix("/run/A.sock".into()));
    for (endpoint, field) in [
        (v1::Endpoint { address: "unix://a".into(), ..plain.clone() }, "endpoints[0].address"),
        (v1::Endpoint { address: "unix:///a\0".into(), ..plain.clone() }, "endpoints[0].address"),
        (v1::Endpoint { address: "a b".into(), ..plain.clone() }, "endpoints[0].address"),
        (v1::Endpoint { port: 0, ..plain.clone() }, "endpoints[0].port"),
        (v1::Endpoint { identity: "bob".into(), ..plain.clone() }, "endpoints[0].identity"),
        (v1::Endpoint { health: 4, ..plain.clone() }, "endpoints[0].health"),
    ] {
        assert_eq!(compile(endpoint).unwrap_err().field, field);
    }
}

#[test]
fn inbound_is_compiled() {
    let message = v1::Inbound { port_mtls: [(8080, 1), (9090, 2)].into(), ..v1::Inbound::default() };
    let compiled = inbound(&message).unwrap();
    let modes = [80, 8080, 9090].map(|port| compiled.mode_for(port));
    assert_eq!(modes, [MtlsMode::Permissive, MtlsMode::Strict, MtlsMode::Disable]);
    assert!(compiled.service(80).is_none());
    // An mTLS mode of a later version must not be mistaken for a lax one.
    assert_eq!(inbound(&v1::Inbound { mtls: 3, ..Default::default() }).unwrap_err().field, "mtls");
    let service = |port: u32, exported| v1::InboundService { host: "a.b".into(), port, exported, ..Default::default() };
    let services = vec![service(80, false), service(80, true), service(81, false)];
    let compiled = inbound(&v1::Inbound { services, ..Default::default() }).unwrap();
    assert_eq!([80, 81, 82].map(|port| compiled.allows_federated_peers(port)), [true, false, false]);
    let bundle =
        |domain: &str, roots: usize| v1::TrustBundle { trust_domain: domain.into(), roots_der: vec![vec![1]; roots] };
    for (trust, want) in [
        (vec![bundle("a", 1), bundle("b", 2)], None),
        (vec![bundle("a", 1), bundle("a", 1)], Some("trust[1].trust_domain")),
        (vec![bundle("A", 1)], Some("trust[0].trust_domain")),
        (vec![bundle("a", 0)], Some("trust[0].roots_der")),
    ] {
        let compiled = inbound(&v1::Inbound { trust, ..Default::default() });
        assert_eq!(compiled.err().map(|e| e.field).as_deref(), want);
    }
    let bad = v1::Inbound { port_mtls: [(0, 1)].into(), ..v1::Inbound::default() };
    assert_eq!(inbound(&bad).unwrap_err().field, "port_mtls[0]");
}

#[test]
fn presence_matches_have_several_notations() {
    use crate::request::tests::view;
    let matches = |value: Option<v1::StringMatch>, text: Option<&'static str>| {
        let headers = vec![v1::NamedMatch { name: "X-A".into(), value }];
        let route = v1::HttpRoute {
            matches: vec![v1::HttpMatch { headers, ..v1::HttpMatch::default() }],
            ..forward_route(to(&[(0, 0)]))
        };
        let compiled = service(&with_route(route)).unwrap();
        let mut headers = http::HeaderMap::new();
        if let Some(text) = text {
            headers.insert("x-a", http::HeaderValue::from_static(text));
        }
        compiled.ports[0].routes.find(&view("/", "order", &headers)).is_some()
    };
    let present = |is| Some(v1::StringMatch { kind: Some(Kind::Present(is)) });
    for value in [None, Some(v1::StringMatch { kind: None }), present(true), regex("*")] {
        assert_eq!([matches(value.clone(), Some("")), matches(value, None)], [true, false]);
    }
    assert_eq!([matches(present(false), Some("")), matches(present(false), None)], [false, true]);
    assert_eq!([matches(exact(""), Some("")), matches(exact(""), None)], [true, false]);
}

#[test]
fn remote_gateways_are_compiled() {
    let subset = |share, identity: &str| v1::RemoteSubset { share, identities: vec![identity.into()] };
    let compile = |subset: v1::RemoteSubset, gateway: &str, port| {
        let gateways = vec![v1::GatewayAddress { address: gateway.into(), port }];
        let subsets = [("v2".to_owned(), subset), ("v3".to_owned(), v1::RemoteSubset::default())].into();
        let remotes = vec![v1::Remote { datacenter: "dc2".into(), gateways, subsets }];
        endpoints(&v1::Endpoints { host: "a".into(), remotes, ..v1::Endpoints::default() })
    };
    let good = compile(subset(30, "spiffe://two/ns/a/sa/b"), "10.9.0.1", 15443).unwrap();
    let [gateway] = &good[..] else { panic!() };
    let behind = gateway.remote.as_ref().unwrap();
    assert_eq!((gateway.port, behind.len(), behind["v2"].share), (15443, 1, 30));
    assert_eq!((&*behind["v2"].datacenter, behind["v2"].identities[0].trust_domain()), ("dc2", "two"));
    for (subset, gateway, port, want) in [
        (subset(101, "spiffe://two/ns/a/sa/b"), "10.9.0.1", 1, "remotes[0].subsets[\"v2\"].share"),
        (subset(1, "bob"), "10.9.0.1", 1, "remotes[0].subsets[\"v2\"].identities"),
        (subset(1, "spiffe://two/ns/a/sa/b"), "a b", 1, "remotes[0].gateways[0].address"),
        // A peer reports its gateways' addresses itself and must not make the sidecar open local files.
        (subset(1, "spiffe://two/ns/a/sa/b"), "unix:///run/a", 1, "remotes[0].gateways[0].address"),
        (subset(1, "spiffe://two/ns/a/sa/b"), "a", 0, "remotes[0].gateways[0].port"),
    ] {
        assert_eq!(compile(subset, gateway, port).unwrap_err().field, want);
    }
}

#[test]
fn locality_settings_and_warmup_are_compiled() {
    let compiled = |load_balancer: v1::LoadBalancer, ejects: bool| {
        let outlier_detection = ejects.then(v1::OutlierDetection::default);
        let load_balancer = Some(load_balancer);
        let host = "a".to_owned();
        super::cluster::cluster(&v1::Cluster {
            name: host.clone(),
            host,
            load_balancer,
            outlier_detection,
            ..Default::default()
        })
    };
    let with = |locality: v1::LocalityLb| v1::LoadBalancer { locality: Some(locality), ..Default::default() };
    let regions = Failover::Regions(BTreeMap::new());
    assert_eq!(compiled(v1::LoadBalancer::default(), true).unwrap().locality, Locality::Failover(regions));
    assert_eq!(compiled(v1::LoadBalancer::default(), false).unwrap().locality, Locality::Any);
    let off = with(v1::LocalityLb { disabled: true, ..Default::default() });
    assert_eq!(compiled(off, true).unwrap().locality, Locality::Any);
    let labels = with(v1::LocalityLb { failover_priority: vec!["a".into(), "b=c".into()], ..Default::default() });
    let label = |name: &str, value: Option<&str>| Label { name: name.into(), value: value.map(str::to_owned) };
    let want = Failover::Labels(vec![label("a", None), label("b", Some("c"))]);
    assert_eq!(compiled(labels, true).unwrap().locality, Locality::Failover(want));
    let failover = [("eu".to_owned(), "us".to_owned())];
    let both = with(v1::LocalityLb {
        failover_priority: vec!["a".into()],
        failover: failover.clone().into(),
        ..Default::default()
    });
    let want = Failover::Both(vec![label("a", None)], failover.into());
    assert_eq!(compiled(both, true).unwrap().locality, Locality::Failover(want));
    let shares = |from: &str, to: &[(&str, u32)]| {
        let to = to.iter().map(|(name, percent)| (name.to_string(), *percent)).collect();
        let distribute = vec![v1::LocalityShares { from: from.into(), to }];
        with(v1::LocalityLb { distribute, ..Default::default() })
    };
    let fine = compiled(shares("eu/*", &[("us", 20), ("eu", 80)]), false).unwrap().locality;
    assert!(matches!(&fine, Locality::Distribute(all) if all[0].to.len() == 2), "{fine:?}");
    for (from, to, field) in [
        ("eu", &[("us", 20)][..], "load_balancer.locality.distribute[0].to"),
        ("", &[("us", 100)], "load_balancer.locality.distribute[0].from"),
        ("eu", &[("u*", 100)], "load_balancer.locality.distribute[0].to[\"u*\"]"),
    ] {
        assert!(compiled(shares(from, to), false).unwrap_err().field.starts_with(field), "{from} {to:?}");
    }
    let warm = |duration_ms, minimum_percent, aggression| {
        let warmup = Some(v1::Warmup { duration_ms, minimum_percent, aggression });
        compiled(v1::LoadBalancer { warmup, ..Default::default() }, false).map(|cluster| cluster.warmup)
    };
    assert_eq!(warm(1000, 10.0, 1.0).unwrap().unwrap().duration, Duration::from_secs(1));
    for (duration, percent, aggression) in
        [(0, 10.0, 1.0), (1, 101.0, 1.0), (1, f64::NAN, 1.0), (1, 1.0, 0.5), (1, 1.0, f64::NAN)]
    {
        assert!(warm(duration, percent, aggression).is_err(), "{duration} {percent} {aggression}");
    }
}
