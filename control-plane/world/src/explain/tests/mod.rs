use std::collections::{BTreeMap, HashMap};

use weft_core::locality::Location;
use weft_proto::v1::Health;

use super::report::{Destination, Verdict};
use super::*;
use crate::world::{
    Instance, World,
    tests::{documents, instance},
};

mod conformance;
mod names;
mod policies;

const SHOP: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: order}
spec:
  hosts: [order]
  gateways: [mesh, edge]
  http:
  - name: old
    match: [{uri: {prefix: /old/}}]
    redirect: {uri: /new, redirectCode: 302}
  - match: [{gateways: [edge]}]
    directResponse: {status: 500}
  - name: beta
    match:
    - {sourceNamespace: lab}
    - {headers: {x-user: {exact: b}}, method: {exact: GET}}
    - {sourceLabels: {app: front}, uri: {prefix: /front}}
    route: [{destination: {host: order, subset: v2}}]
  - match: [{uri: {exact: /teapot}}]
    directResponse: {status: 418, body: {string: short}}
  - name: split
    match: [{uri: {prefix: /api}}]
    timeout: 2s
    rewrite: {uri: /, authority: other.test}
    retries: {attempts: 3, retryOn: '5xx,503', perTryTimeout: 500ms}
    mirrors: [{destination: {host: order, subset: v2}, percentage: {value: 5}}]
    route:
    - {destination: {host: order, subset: v1}, weight: 75}
    - {destination: {host: order, subset: v2}, weight: 25}
  - match: [{uri: {prefix: /abort}}]
    fault: {abort: {httpStatus: 555, percentage: {value: 100}}}
    route: [{destination: {host: order}}]
  - match: [{uri: {prefix: /cors}}]
    corsPolicy: {allowOrigins: [{exact: 'https://a.test'}]}
    route: [{destination: {host: order}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: order}
spec:
  host: order
  trafficPolicy:
    loadBalancer: {consistentHash: {httpHeaderName: user-id}}
    connectionPool: {tcp: {maxConnections: 7}}
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}, trafficPolicy: {outlierDetection: {consecutive5xxErrors: 2}}}
";

fn with(policies: &str, instances: &[Instance]) -> World {
    let mut world = World::new("cluster.local", 1);
    world.set_policies(documents(policies), 0);
    for instance in instances {
        world.upsert(instance.clone(), 0);
    }
    world
}

fn version(id: &str, address: &str, version: &str) -> Instance {
    let mut one = instance("order", id, address, 8080);
    one.labels.insert("version".to_owned(), version.to_owned());
    one
}

fn orders() -> Vec<Instance> {
    vec![version("a", "10.0.0.1", "v1"), version("b", "10.0.0.2", "v1"), version("c", "10.0.0.3", "v2")]
}

fn shop() -> World {
    with(SHOP, &orders())
}

fn labelled(labels: &[(&str, &str)]) -> Client {
    let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Client { labels: labels.collect(), ..Client::of("default") }
}

/// `headers` in curl's form.
fn query(url: &str, headers: &[&str]) -> Query {
    let pair = |text: &&str| text.split_once(": ").map(|(name, value)| (name.to_owned(), value.to_owned())).unwrap();
    Query::new(url, "GET", &headers.iter().map(pair).collect::<Vec<_>>(), None).unwrap()
}

fn of(world: &World, client: &Client, query: &Query) -> Explanation {
    let explanation = explain(world, client, query, true, Instant::now()).unwrap();
    // Every explanation can be serialised, parsed and printed.
    assert_eq!(
        serde_json::from_str::<Explanation>(&serde_json::to_string(&explanation).unwrap()).unwrap(),
        explanation
    );
    assert!(explanation.to_string().ends_with(&format!("result    {}\n", explanation.verdict)));
    explanation
}

fn get(world: &World, url: &str, headers: &[&str]) -> Explanation {
    of(world, &Client::of("default"), &query(url, headers))
}

/// The matching route, and each other with its reason.
fn routes(explanation: &Explanation) -> (String, Vec<String>) {
    let routes = explanation.routes.clone().unwrap_or_default();
    let taken = routes.taken.map_or(String::new(), |taken| {
        let matched = taken.matched.map_or(String::new(), |at| format!(" match[{at}]"));
        format!("{} {}{matched}", taken.route, taken.name)
    });
    let not = routes.passed_over.iter().map(|not| format!("{} {}: {}", not.route, not.name, not.because.join("; ")));
    (taken, not.collect())
}

#[test]
fn the_matching_route_and_the_reasons_against_earlier_ones() {
    let world = shop();
    let by_gateway = "http[1] : it is for callers through gateway edge";
    let no_beta = "http[2] beta: it is for callers of namespace lab; header x-user is missing: exact \"b\" is wanted; it is \
                   for callers with the labels app=front";
    let front = labelled(&[("app", "front"), ("other", "x")]);
    let any_client = Client::of("default");
    for (client, url, headers, taken, not) in [
        (&any_client, "order/old/x", &[][..], "http[0] old match[0]", vec![]),
        (
            &any_client,
            "order/api",
            &[],
            "http[4] split match[0]",
            vec![
                "http[0] old: path \"/api\" is not prefix \"/old/\"",
                by_gateway,
                no_beta,
                "http[3] : path \"/api\" is not exact \"/teapot\"",
            ],
        ),
        (
            &any_client,
            "order/api",
            &["x-user: b"],
            "http[2] beta match[1]",
            vec!["http[0] old: path \"/api\" is not prefix \"/old/\"", by_gateway],
        ),
        (
            &front,
            "order/front/1",
            &["x-user: a"],
            "http[2] beta match[2]",
            vec!["http[0] old: path \"/front/1\" is not prefix \"/old/\"", by_gateway],
        ),
    ] {
        let explanation = of(&world, client, &query(url, headers));
        assert_eq!(routes(&explanation), (taken.to_owned(), not.into_iter().map(str::to_owned).collect()), "{url}");
        assert_eq!(explanation.routes.unwrap().policy, "VirtualService/default/order");
    }
    let none = get(&world, "order/none", &[]);
    let (taken, not) = routes(&none);
    assert_eq!((taken.as_str(), not.len()), ("", 7));
    assert_eq!(none.verdict.to_string(), "404 NR, no_route");
}

#[test]
fn responses_of_routes_and_effects_on_requests() {
    let world = shop();
    for (url, headers, effects, result) in [
        ("order:81/old/x?y", &[][..], "redirect: 302 to http://order:81/new?y", "answered 302 by redirect"),
        ("order/teapot", &[], "directResponse: 418 \"short\"", "answered 418 by directResponse"),
        (
            "order/abort",
            &[],
            "retries: 2 on connect-failure,refused-stream,cancelled,unavailable; fault.abort: 555 for 100 %",
            "555 FI, fault_injected; policy=VirtualService/default/order",
        ),
        (
            "order/api/x?y=1",
            &[],
            "timeout: 2s; retries: 3 on 5xx,503, 500ms each; rewrite.uri: //x?y=1; rewrite.authority: other.test; \
             mirror: 5 % to order.default.svc.cluster.local subset v2",
            "forwarded to an endpoint",
        ),
        (
            "order/api",
            &["x-envoy-upstream-rq-timeout-ms: 100", "x-envoy-max-retries: 1"],
            "timeout: 100ms (requested by its headers); retries: 1 on 5xx,503, 500ms each (requested by its headers); \
             rewrite.uri: /; rewrite.authority: other.test; mirror: 5 % to order.default.svc.cluster.local subset v2",
            "forwarded to an endpoint",
        ),
        ("order/%00", &[], "", "400 DPE, bad_request"),
    ] {
        let explanation = get(&world, url, headers);
        let written: Vec<String> =
            explanation.effects.iter().map(|one| format!("{}: {}", one.field, one.value)).collect();
        assert_eq!((written.join("; ").as_str(), explanation.verdict.to_string().as_str()), (effects, result), "{url}");
        assert_eq!(explanation.verdict.is_good(), !result.contains(", "), "{url}");
    }
    let preflight = ["origin: https://a.test", "access-control-request-method: PUT"].map(|text| {
        let (name, value) = text.split_once(": ").unwrap();
        (name.to_owned(), value.to_owned())
    });
    let options = Query::new("order/cors", "OPTIONS", &preflight, None).unwrap();
    let explanation = of(&world, &Client::of("default"), &options);
    assert_eq!(explanation.verdict, Verdict::Answered { status: 200, by: "corsPolicy".to_owned() });
}

fn keyed(destination: &Destination) -> (String, Option<String>, String) {
    let hash = destination.hash.clone().unwrap();
    (hash.by, hash.endpoint, hash.because)
}

#[test]
fn destinations_by_share_with_the_endpoint_of_a_key() {
    let world = shop();
    let explanation = get(&world, "order/api", &["user-id: alice"]);
    let [one, two] = &explanation.destinations[..] else { panic!("{explanation:#?}") };
    assert_eq!((one.percent, two.percent), (75.0, 25.0));
    assert_eq!((&*one.subset, &*two.subset, &*one.policy), ("v1", "v2", "DestinationRule/default/order"));
    assert_eq!(one.labels, BTreeMap::from([("version".to_owned(), "v1".to_owned())]));
    assert_eq!(one.balancer, "ring hash by header user-id, 1024 entries at least");
    assert_eq!(one.limits, [Setting::new("maxConnections", 7)]);
    assert!(one.outlier_detection.is_empty() && two.outlier_detection[0] == Setting::new("consecutive5xxErrors", 2));
    assert_eq!(two.locality, "the nearest first");
    let addresses: Vec<&str> = one.endpoints.iter().map(|endpoint| &*endpoint.address).collect();
    assert_eq!(addresses, ["10.0.0.1:8080", "10.0.0.2:8080"]);
    assert_eq!(keyed(two), ("header user-id".to_owned(), Some("10.0.0.3:8080".to_owned()), String::new()));
    // Some users are of one subset, the others of the other, and each always of the same.
    let mut seen = HashMap::new();
    for user in 0..40 {
        let header = format!("user-id: {user}");
        let picked = || keyed(&get(&world, "order/api", &[&header]).destinations[0]).1.unwrap();
        assert_eq!(picked(), picked());
        *seen.entry(picked()).or_insert(0) += 1;
    }
    assert_eq!(seen.len(), 2, "{seen:?}");
    let without = get(&world, "order/api", &[]);
    assert_eq!(keyed(&without.destinations[0]).1, None);
    assert_eq!(keyed(&without.destinations[0]).2, "the request has no hash key: any endpoint");
}

#[test]
fn callers_are_connected_workloads() {
    let mut own = instance("front", "f", "10.0.0.9", 80);
    own.node = "front-1".to_owned();
    own.identity = "spiffe://cluster.local/ns/default/sa/front".to_owned();
    own.labels.insert("version".to_owned(), "v3".to_owned());
    let world = with("", &[own]);
    let workloads = [("front-1", "front", "default"), ("pay-1", "pay", "default"), ("pay-2", "pay", "lab")];
    let labels = |name: &str| BTreeMap::from([("app".to_owned(), name.to_owned())]);
    let identity = |name: &str, namespace: &str| format!("spiffe://cluster.local/ns/{namespace}/sa/{name}");
    let workloads = workloads.map(|(node, name, ns)| (node, name, ns, identity(name, ns), labels(name)));
    let connected: Vec<Workload<'_>> = workloads
        .iter()
        .map(|(node, name, namespace, identity, labels)| Workload {
            node,
            name,
            namespace,
            identity,
            address: "10.0.0.9".parse().unwrap(),
            locality: "eu/a",
            labels,
        })
        .collect();
    let find_client = |text: &str| {
        let ejected = |node: &str| [(node.to_owned(), "10.0.0.1:80".to_owned())].into();
        find(&Name::parse(text).unwrap(), &connected, &world, ejected)
    };
    let front = find_client("front").unwrap();
    assert_eq!((front.namespace.as_str(), front.address), ("default", Some("10.0.0.9".parse().unwrap())));
    assert_eq!(front.labels.get("version").map(String::as_str), Some("v3"), "including labels of its registrations");
    // The locality is not an option of the proxy here.
    let location = Location { locality: "eu/a".into(), labels: [("app".to_owned(), "front".to_owned())].into() };
    assert_eq!(front.location, location);
    assert!(front.ejected.contains(&("front-1".to_owned(), "10.0.0.1:80".to_owned())));
    for (text, namespace) in
        [("pay.lab", "lab"), ("default/pay", "default"), ("pay-2", "lab"), ("front-1.default", "default")]
    {
        assert_eq!(find_client(text).unwrap().namespace, namespace, "{text}");
    }
    for (text, error) in [
        ("pay", "--from: `pay` is in the namespaces default and lab: use pay.default"),
        ("gone", "--from: no sidecar of a workload `gone` is connected; there are front, pay"),
        (
            "frnt.default",
            "--from: no sidecar of a workload `frnt` of namespace default is connected, did you mean `front`?",
        ),
    ] {
        assert_eq!(find_client(text).unwrap_err(), error);
    }
    for wrong in ["", "a.", "/a", "a/", "a/b/c", ".a"] {
        assert!(Name::parse(wrong).is_err(), "{wrong}");
    }
}
