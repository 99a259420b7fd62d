use serde_json::Value;

use super::*;

fn object(value: Value) -> DynamicObject {
    serde_json::from_value(value).unwrap()
}

fn apply(cluster: &mut Cluster, resource: Resource, value: Value) {
    cluster.apply(resource, Change::Apply(Box::new(object(value))));
}

fn delete(cluster: &mut Cluster, resource: Resource, namespace: &str, name: &str) {
    let gone = object(json!({"metadata": {"namespace": namespace, "name": name}}));
    cluster.apply(resource, Change::Delete(Box::new(gone)));
}

fn service(spec: Value) -> Value {
    json!({"metadata": {"namespace": "shop", "name": "order", "creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": spec})
}

fn slice(name: &str, port: u16, endpoints: Value) -> Value {
    json!({
        "metadata": {"namespace": "shop", "name": name, "labels": {"kubernetes.io/service-name": "order"}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": port, "protocol": "TCP"}, {"name": "dns", "port": 53, "protocol": "UDP"}],
        "endpoints": endpoints,
    })
}

fn endpoint(pod: &str, address: &str, conditions: Value) -> Value {
    json!({
        "addresses": [address],
        "conditions": conditions,
        "nodeName": "node-1",
        "targetRef": {"kind": "Pod", "namespace": "shop", "name": pod, "uid": format!("uid-{pod}")},
    })
}

fn pod(name: &str, uid: &str, labels: Value, more: Value) -> Value {
    let mut metadata = json!({"namespace": "shop", "name": name, "uid": uid, "labels": labels});
    metadata.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let spec = json!({"serviceAccountName": "orders", "nodeName": "node-1"});
    json!({"metadata": metadata, "spec": spec, "status": {"phase": "Running"}})
}

fn ready() -> Value {
    json!({"ready": true})
}

const WEB: &str = r#"{"clusterIP": "10.96.0.7", "ports": [{"name": "http", "port": 80, "targetPort": "web"}]}"#;

/// A cluster with the Service, a pod with a sidecar, and its slice.
fn cluster() -> Cluster {
    let mut cluster = Cluster::new("cluster.local");
    apply(&mut cluster, Resource::Service, service(serde_json::from_str(WEB).unwrap()));
    let labels = json!({"topology.kubernetes.io/region": "eu", "topology.kubernetes.io/zone": "eu-a"});
    apply(&mut cluster, Resource::Node, json!({"metadata": {"name": "node-1", "labels": labels}}));
    let labels = json!({"app": "order", "version": "v1", "security.istio.io/tlsMode": "istio"});
    apply(&mut cluster, Resource::Pod, pod("order-1", "uid-order-1", labels, json!({})));
    apply(
        &mut cluster,
        Resource::EndpointSlice,
        slice("order-a", 8080, json!([endpoint("order-1", "10.244.0.5", ready())])),
    );
    cluster
}

fn only(delta: &Delta) -> &Instance {
    let [one] = &delta.upserts[..] else { panic!("{delta:?}") };
    one
}

#[test]
fn a_service_with_pods_is_a_host_with_endpoints() {
    let mut cluster = cluster();
    let delta = cluster.take_delta();
    let one = only(&delta);
    assert_eq!((one.host().as_str(), one.node.as_str()), ("order.shop.svc.cluster.local", "order-1.shop"));
    assert_eq!((one.address.to_string().as_str(), one.port), ("10.244.0.5", 8080));
    assert_eq!(one.identity, "spiffe://cluster.local/ns/shop/sa/orders");
    assert_eq!((one.locality.as_str(), one.labels["version"].as_str()), ("eu/eu-a", "v1"));
    assert_eq!((one.health, one.draining, one.origin), (Health::Healthy, false, Origin::Kubernetes));
    let documents = delta.policies.unwrap().documents;
    let Object::Service(found) = &documents[0].object else { panic!() };
    assert_eq!(found.ports[0].target, TargetPort::Name("http".into()), "slices have the port by this name");
    assert_eq!((found.ports[0].protocol, found.cluster_ip), (Protocol::Http, Some([10, 96, 0, 7].into())));
    assert!(cluster.take_delta().is_empty());
}

#[test]
fn an_endpoint_waits_for_its_own_pod() {
    let mut cluster = cluster();
    cluster.take_delta();
    let two = json!([endpoint("order-1", "10.244.0.5", ready()), endpoint("order-2", "10.244.0.6", ready())]);
    apply(&mut cluster, Resource::EndpointSlice, slice("order-a", 8080, two));
    assert!(cluster.take_delta().is_empty(), "the pod is not known yet");
    apply(&mut cluster, Resource::Pod, pod("order-2", "another", json!({}), json!({})));
    assert!(cluster.take_delta().upserts.is_empty(), "a pod of an earlier life of the name");
    apply(&mut cluster, Resource::Pod, pod("order-2", "uid-order-2", json!({}), json!({})));
    let delta = cluster.take_delta();
    assert_eq!((only(&delta).node.as_str(), only(&delta).identity.as_str()), ("order-2.shop", ""), "it has no sidecar");
    delete(&mut cluster, Resource::Pod, "shop", "order-2");
    assert_eq!(cluster.take_delta().removed.len(), 1);
}

#[test]
fn conditions_decide_health_and_draining() {
    for (conditions, deleting, health, draining) in [
        (json!({}), false, Health::Healthy, false),
        (json!({"ready": false}), false, Health::Unhealthy, false),
        (json!({"ready": false, "serving": true, "terminating": true}), false, Health::Healthy, true),
        (json!({"ready": false, "serving": false, "terminating": true}), false, Health::Unhealthy, false),
        (json!({"ready": true, "terminating": true}), false, Health::Healthy, false),
        (ready(), true, Health::Healthy, true),
    ] {
        let mut cluster = cluster();
        cluster.apply(Resource::EndpointSlice, Change::Reset(Vec::new()));
        cluster.take_delta();
        let more = if deleting { json!({"deletionTimestamp": "2026-01-01T00:00:00Z"}) } else { json!({}) };
        apply(&mut cluster, Resource::Pod, pod("order-1", "uid-order-1", json!({}), more));
        let endpoints = json!([endpoint("order-1", "10.244.0.5", conditions.clone())]);
        apply(&mut cluster, Resource::EndpointSlice, slice("order-a", 8080, endpoints));
        let delta = cluster.take_delta();
        assert_eq!((only(&delta).health, only(&delta).draining), (health, draining), "{conditions} {deleting}");
    }
}

#[test]
fn slices_of_one_service_are_united() {
    let mut cluster = cluster();
    cluster.take_delta();
    // While a rollout moves an endpoint between slices it is in both.
    apply(
        &mut cluster,
        Resource::EndpointSlice,
        slice("order-b", 8080, json!([endpoint("order-1", "10.244.0.5", ready())])),
    );
    assert!(cluster.take_delta().is_empty());
    delete(&mut cluster, Resource::EndpointSlice, "shop", "order-a");
    assert!(cluster.take_delta().is_empty());
    delete(&mut cluster, Resource::EndpointSlice, "shop", "order-b");
    assert_eq!(cluster.take_delta().removed.len(), 1);
    assert!(cluster.services_of.is_empty(), "{:?}", cluster.services_of);
    // Pods with another number for a port by name are in a slice of their own.
    apply(&mut cluster, Resource::Pod, pod("order-2", "uid-order-2", json!({}), json!({})));
    apply(
        &mut cluster,
        Resource::EndpointSlice,
        slice("order-a", 8080, json!([endpoint("order-1", "10.244.0.5", ready())])),
    );
    apply(
        &mut cluster,
        Resource::EndpointSlice,
        slice("order-b", 9090, json!([endpoint("order-2", "10.244.0.6", ready())])),
    );
    let ports: Vec<u16> = cluster.take_delta().upserts.iter().map(|one| one.ports["http"]).collect();
    assert_eq!(ports, [8080, 9090]);
}

#[test]
fn endpoints_made_by_hand_have_no_identity() {
    let mut cluster = cluster();
    cluster.apply(Resource::EndpointSlice, Change::Reset(Vec::new()));
    cluster.take_delta();
    let endpoints = json!([{"addresses": ["192.0.2.7"], "conditions": {}, "zone": "eu-b"}]);
    apply(&mut cluster, Resource::EndpointSlice, slice("by-hand", 8080, endpoints));
    let delta = cluster.take_delta();
    let one = only(&delta);
    assert_eq!((one.identity.as_str(), one.node.as_str(), one.locality.as_str()), ("", "192.0.2.7", "/eu-b"));
}

#[test]
fn a_list_replaces_what_was_known() {
    let mut cluster = cluster();
    cluster.take_delta();
    cluster.apply(Resource::Service, Change::Reset(Vec::new()));
    let delta = cluster.take_delta();
    assert_eq!((delta.removed.len(), delta.policies.map(|all| all.documents.len())), (1, Some(0)));
    // The slice is still there: the Service's return brings its endpoints back.
    apply(&mut cluster, Resource::Service, service(serde_json::from_str(WEB).unwrap()));
    assert_eq!(cluster.take_delta().upserts.len(), 1);
}

#[test]
fn services_of_all_types_are_read() {
    let read = |spec: Value| {
        let mut cluster = Cluster::new("cluster.local");
        apply(&mut cluster, Resource::Service, service(spec));
        let documents = cluster.take_delta().policies.unwrap().documents;
        let Object::Service(found) = documents[0].object.clone() else { panic!() };
        found
    };
    let headless = read(json!({"clusterIP": "None", "ports": [{"name": "tcp-db", "port": 5432}]}));
    assert!(headless.headless && headless.cluster_ip.is_none() && headless.ports[0].protocol == Protocol::Tcp);
    let alias = read(json!({"type": "ExternalName", "externalName": "API.Example.com.", "ports": [{"port": 80}]}));
    assert_eq!((alias.alias.as_deref(), alias.ports.len()), (Some("api.example.com"), 0));
    // Fields and values that are unknown here, or that files refuse, refuse no Service.
    let odd = read(json!({
        "type": "LoadBalancer", "clusterIP": "10.96.0.8", "sessionAffinity": "ClientIP", "trafficDistribution": "X",
        "ports": [{"name": "a", "port": 80, "appProtocol": "kubernetes.io/h2c"}, {"name": "b", "port": 53, "protocol": "UDP"}],
    }));
    assert_eq!(odd.ports.iter().map(|port| (port.number, port.protocol)).collect::<Vec<_>>(), [(80, Protocol::Http2)]);
}

#[test]
fn a_policy_with_an_error_keeps_its_last_valid_version() {
    let rule = |generation: i64, spec: Value| {
        json!({
            "metadata": {"namespace": "shop", "name": "order", "uid": "1", "generation": generation},
            "spec": spec,
        })
    };
    let mut cluster = Cluster::new("cluster.local");
    let resource = Resource::Policy(Kind::DestinationRule);
    apply(&mut cluster, resource, rule(1, json!({"host": "order"})));
    let AllPolicies { documents, problems } = cluster.take_delta().policies.unwrap();
    assert_eq!(documents[0].reference(), "DestinationRule/shop/order");
    assert!(problems.is_empty());
    apply(&mut cluster, resource, rule(2, json!({"host": "order", "trafficPolicy": {"loadBalancr": {}}})));
    let after = cluster.take_delta().policies.unwrap();
    assert!(Arc::ptr_eq(&documents[0], &after.documents[0]), "the last valid version applies");
    let problems: Vec<String> = after.problems.iter().map(ToString::to_string).collect();
    let want = "DestinationRule/shop/order: error: trafficPolicy.loadBalancr: unknown field `loadBalancr`, did you mean \
                `loadBalancer`?";
    assert_eq!(problems, [want]);
    // Its status changes, and the resource version with it: there is nothing to read again.
    apply(&mut cluster, resource, rule(2, json!({"host": "other"})));
    assert!(cluster.take_delta().is_empty());
    delete(&mut cluster, resource, "shop", "order");
    assert_eq!(cluster.take_delta().policies.map(|all| all.documents.len()), Some(0));
}

#[test]
fn a_status_is_reported_once_for_each_change_of_its_object_and_not_for_those_of_others() {
    let rule = |version: &str, status: Value| {
        json!({
            "metadata": {"namespace": "shop", "name": "order", "uid": "1", "generation": 1, "resourceVersion": version},
            "spec": {"host": "order"},
            "status": status,
        })
    };
    let world = World::new("cluster.local", 1);
    let mut cluster = cluster();
    cluster.take_delta();
    assert!(!cluster.has_reports(), "no policy has a status");
    let resource = Resource::Policy(Kind::DestinationRule);
    apply(&mut cluster, resource, rule("1", json!({})));
    let [report] = &cluster.take_reports(&world)[..] else { panic!() };
    assert_eq!((report.resource_version.as_str(), &report.status["conditions"][0]["status"]), ("1", &json!("True")));
    let written = rule("2", report.status.clone());
    assert!(!cluster.has_reports() && cluster.take_reports(&world).is_empty());
    // A rollout is none of its matter.
    apply(&mut cluster, Resource::Pod, pod("order-9", "u", json!({}), json!({})));
    assert!(!cluster.has_reports());
    apply(&mut cluster, resource, written);
    assert!(cluster.has_reports() && cluster.take_reports(&world).is_empty(), "it has the condition");
    // Something has removed it.
    apply(&mut cluster, resource, rule("3", json!({})));
    assert_eq!(cluster.take_reports(&world)[0].resource_version, "3");
}

#[test]
fn statuses_of_the_gateway_api_are_looked_at_when_services_or_policies_change() {
    let route = json!({
        "metadata": {"namespace": "shop", "name": "route", "uid": "1", "generation": 1},
        "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": "order"}], "rules": [{}]},
    });
    let world = World::new("cluster.local", 1);
    let mut cluster = cluster();
    cluster.take_delta();
    apply(&mut cluster, Resource::Policy(Kind::HTTPRoute), route);
    cluster.take_delta();
    let [report] = &cluster.take_reports(&world)[..] else { panic!() };
    assert_eq!(report.status["parents"][0]["conditions"][0]["reason"], "NoMatchingParent", "this world has no Service");
    apply(&mut cluster, Resource::Pod, pod("order-9", "u", json!({}), json!({})));
    cluster.take_delta();
    assert!(!cluster.has_reports(), "pods decide nothing");
    delete(&mut cluster, Resource::Service, "shop", "order");
    cluster.take_delta();
    assert!(cluster.has_reports());
}

#[test]
fn pods_with_a_sidecar_are_known_with_their_locality_whether_a_service_has_them_or_not() {
    let mut cluster = cluster();
    let known =
        |delta: Delta| delta.pods.into_iter().filter_map(|((_, name), pod)| Some((name, pod?))).collect::<Vec<_>>();
    let pods = known(cluster.take_delta());
    let [(name, pod)] = &pods[..] else { panic!("{pods:?}") };
    assert_eq!((name.as_str(), pod.locality.as_str()), ("order-1.shop", "eu/eu-a"));
    assert_eq!(pod.identity, "spiffe://cluster.local/ns/shop/sa/orders");
    assert_eq!(pod.labels["version"], "v1");

    let injected = json!({"security.istio.io/tlsMode": "istio", "istio-locality": "us.us-b"});
    apply(&mut cluster, Resource::Pod, pod_of_labels("client", injected));
    apply(&mut cluster, Resource::Pod, pod_of_labels("plain", json!({})));
    let pods = known(cluster.take_delta());
    assert!(pods.len() == 1 && pods[0].0 == "client.shop" && pods[0].1.locality == "us/us-b", "{pods:?}");

    delete(&mut cluster, Resource::Pod, "shop", "client");
    assert_eq!(cluster.take_delta().pods, [(("shop".to_owned(), "client.shop".to_owned()), None)]);
}

fn pod_of_labels(name: &str, labels: Value) -> Value {
    pod(name, &format!("uid-{name}"), labels, json!({}))
}
