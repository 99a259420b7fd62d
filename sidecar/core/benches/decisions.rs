//! Cost of the proxy's decisions, without sockets: `cargo bench -p weft-core`.

#![allow(clippy::expect_used, reason = "a benchmark with an invalid setup must fail")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use http::{HeaderMap, HeaderValue, Method};
use weft_core::balance::{Balancer, Inputs};
use weft_core::endpoint::{Endpoint, for_cluster};
use weft_core::http1::{Framing, Limits, parse_request, write_request};
use weft_core::limits::ClusterLimits;
use weft_core::locality::Location;
use weft_core::policy::Cluster;
use weft_core::request::RequestView;
use weft_core::service::Service;
use weft_core::{compile, hash::request_hash};
use weft_proto::v1;

fn main() {
    divan::main();
}

fn service(routes: Vec<v1::HttpRoute>) -> Service {
    let key = v1::consistent_hash::Key::HttpHeaderName("user-id".into());
    let ring = v1::ConsistentHash { key: Some(key), ..Default::default() };
    let cluster = v1::Cluster {
        name: "outbound|80||order".into(),
        host: "order".into(),
        port: 80,
        load_balancer: Some(v1::LoadBalancer { consistent_hash: Some(ring), ..Default::default() }),
        ..Default::default()
    };
    let port = v1::Port { number: 80, name: "http".into(), protocol: 1, routes, ..Default::default() };
    let message = v1::Service {
        host: "order.default.svc.cluster.local".into(),
        namespace: "default".into(),
        names: vec!["order".into()],
        ports: vec![port],
        clusters: vec![cluster],
        ..Default::default()
    };
    compile::service(&message).expect("a valid service")
}

fn cluster() -> Arc<Cluster> {
    service(vec![]).clusters[0].clone()
}

fn endpoints(count: usize) -> Vec<v1::Endpoint> {
    let address = |i: usize| format!("10.{}.{}.{}", i / 65536, i / 256 % 256, i % 256);
    (0..count).map(|i| v1::Endpoint { address: address(i), port: 8080, ..Default::default() }).collect()
}

#[allow(clippy::disallowed_methods, reason = "a benchmark takes the time from the system")]
fn balancer_of(cluster: &Cluster, endpoints: &[Arc<Endpoint>], previous: Option<&Balancer>) -> Balancer {
    Balancer::new(cluster, endpoints, Inputs { location: &Location::default(), now: Instant::now() }, previous)
}

fn compiled(cluster: &Cluster, endpoints: Vec<v1::Endpoint>, old: &[Arc<Endpoint>]) -> Vec<Arc<Endpoint>> {
    let message = v1::Endpoints { host: "order".into(), endpoints, remotes: Vec::new() };
    for_cluster(cluster, &compile::endpoints(&message).expect("valid endpoints"), old)
}

fn view<'a>(path: &'a str, headers: &'a HeaderMap) -> RequestView<'a> {
    let address = SocketAddr::from(([10, 0, 0, 1], 80));
    RequestView {
        method: &Method::GET,
        path_and_query: path,
        authority: "order",
        scheme: "http",
        headers,
        source: address,
        local: address,
    }
}

/// This number of rules, each for a prefix.
fn forwards(count: usize) -> Vec<v1::HttpRoute> {
    let rule = |i: usize| {
        let exact = v1::StringMatch { kind: Some(v1::string_match::Kind::Prefix(format!("/service-{i}/"))) };
        let forward = v1::Forward {
            destinations: vec![v1::WeightedCluster { cluster: 0, weight: 1, headers: None }],
            ..Default::default()
        };
        v1::HttpRoute {
            name: format!("VirtualService/default/order/{i}"),
            matches: vec![v1::HttpMatch { uri: Some(exact), ..Default::default() }],
            action: Some(v1::http_route::Action::Forward(forward)),
            cors: None,
            headers: None,
        }
    };
    (0..count).map(rule).collect()
}

/// Matches the last of this number of rules.
#[divan::bench(args = [1, 100, 10_000])]
fn route_match(bencher: divan::Bencher<'_, '_>, rules: usize) {
    let service = service(forwards(rules));
    let routes = &service.port(80).expect("a port").routes;
    let (path, headers) = (format!("/service-{}/x?y=z", rules - 1), HeaderMap::new());
    bencher.bench_local(|| routes.find(&view(&path, &headers)).expect("a route").name.len());
}

/// Hashes a header and looks up the endpoint on the ring.
#[divan::bench(args = [3, 100, 1000])]
fn ring_lookup(bencher: divan::Bencher<'_, '_>, count: usize) {
    let cluster = cluster();
    let balancer = balancer_of(&cluster, &compiled(&cluster, endpoints(count), &[]), None);
    let mut headers = HeaderMap::new();
    headers.insert("user-id", HeaderValue::from_static("alice"));
    let policies = cluster.load_balancer.hash_policies();
    bencher.bench_local(|| {
        let hash = request_hash(policies, &view("/", &headers)).hash;
        balancer.pick(hash, &mut || 4, 0).expect("an endpoint").key.len()
    });
}

/// One of a thousand endpoints becomes unhealthy: the whole rebuild.
#[divan::bench]
fn ring_rebuild(bencher: divan::Bencher<'_, '_>) {
    let cluster = cluster();
    let all = compiled(&cluster, endpoints(1000), &[]);
    let balancer = balancer_of(&cluster, &all, None);
    bencher.bench_local(|| {
        let mut changed = endpoints(1000);
        changed[500].health = v1::Health::Unhealthy.into();
        let changed = compiled(&cluster, changed, &all);
        balancer_of(&cluster, &changed, Some(&balancer)).hosts().count()
    });
}

/// A service of a thousand endpoints and a hundred rules is pushed with another policy: from the message to the routing
/// state.
#[divan::bench]
fn snapshot_replacement(bencher: divan::Bencher<'_, '_>) {
    let before = service(forwards(100));
    let all = compiled(&before.clusters[0], endpoints(1000), &[]);
    let balancer = balancer_of(&before.clusters[0], &all, None);
    bencher.with_inputs(|| (forwards(100), endpoints(1000))).bench_local_values(|(routes, changed)| {
        let after = service(routes);
        let all = compiled(&after.clusters[0], changed, &all);
        balancer_of(&after.clusters[0], &all, Some(&balancer)).hosts().count()
    });
}

/// Admits a request and ends it.
#[divan::bench]
fn admit(bencher: divan::Bencher<'_, '_>) {
    let limits = ClusterLimits::new();
    bencher.bench_local(|| limits.requests.try_acquire(1024).is_ok());
}

/// Compiles a service and its hundred endpoints from wire messages.
#[divan::bench]
fn compile_service(bencher: divan::Bencher<'_, '_>) {
    let all = endpoints(100);
    let message = v1::Endpoints { host: "order".into(), endpoints: all, remotes: Vec::new() };
    bencher.bench_local(|| (service(vec![]).clusters.len(), compile::endpoints(&message).map(|e| e.len())));
}

/// Parses and writes a request's head.
#[divan::bench]
fn http1_head(bencher: divan::Bencher<'_, '_>) {
    let input = b"GET /orders/17?full=true HTTP/1.1\r\nHost: order-service\r\nUser-Agent: curl/8.5\r\nAccept: */*\r\n\
        user-id: 17\r\nX-Request-Id: 0f8fad5b-d9cb-469f-a165-70867728950e\r\n\r\n";
    let mut out = Vec::with_capacity(1024);
    bencher.bench_local(|| {
        let (head, _) = parse_request(input, Limits::OUTSIDE).expect("a request").expect("whole");
        out.clear();
        write_request(&mut out, &head.parts, &head.origin, Framing::None);
        out.len()
    });
}
