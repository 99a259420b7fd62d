//! Documents that are for some clients only, or for requests through some gateways.

use std::collections::BTreeMap;

use super::*;

pub(super) fn client(world: &World, namespace: &str, labels: &[(&str, &str)]) -> Scope {
    let labels: BTreeMap<String, String> = labels.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
    world.scope(namespace, &labels)
}

#[test]
fn a_scope_has_the_labels_that_documents_select_by() {
    let rule = doc("DestinationRule", "r", "shop", "{host: a, workloadSelector: {matchLabels: {app: front}}}");
    let world = world(&rule, &[]);
    let labels = [("app", "back"), ("version", "v1")];
    assert_eq!(client(&world, "shop", &labels).labels.into_iter().collect::<Vec<_>>(), [("app".into(), "back".into())]);
}

#[test]
fn a_rule_for_some_clients_is_before_one_for_all() {
    let rule = |name: &str, namespace: &str, selector: &str, connections: u32| {
        let spec = format!(
            "{{host: {ORDER}, {selector}trafficPolicy: {{connectionPool: {{tcp: {{maxConnections: {connections}}}}}}}}}"
        );
        doc("DestinationRule", name, namespace, &spec)
    };
    let front = "workloadSelector: {matchLabels: {app: front}}, ";
    let documents = rule("a", "shop", "", 1) + &rule("b", "shop", front, 2) + &rule("c", "default", front, 3);
    let world = world(&documents, &orders());
    let name = format!("outbound|0||{ORDER}");
    for (namespace, labels, want) in [
        ("shop", &[("app", "front")][..], 2),
        ("shop", &[("app", "back")], 1),
        ("shop", &[], 1),
        // Clients of its own namespace only.
        ("other", &[("app", "front")], 0),
        ("default", &[("app", "front")], 3),
        ("default", &[], 0),
    ] {
        let service = service(&world, &client(&world, namespace, labels), ORDER).unwrap();
        assert_eq!(max(&service, &name), want, "{namespace} {labels:?}");
    }
    // Inbound traffic is subject to the rules that are for all clients.
    let inbound = inbound(&world, "default", &BTreeMap::new(), &[orders()[0].key()]);
    assert_eq!(inbound.services[0].connection_pool, None);
}

#[test]
fn matches_for_some_clients_and_gateways() {
    let routes = doc(
        "VirtualService",
        "v",
        "default",
        &format!(
            "{{hosts: [{ORDER}], gateways: [mesh, edge], http: [\
             {{name: labels, match: [{{sourceLabels: {{app: front}}, uri: {{prefix: /l}}}}], directResponse: {{status: 200}}}}, \
             {{name: namespace, match: [{{sourceNamespace: shop}}], directResponse: {{status: 200}}}}, \
             {{name: gateway, match: [{{gateways: [edge]}}, {{gateways: [other/edge]}}], directResponse: {{status: 200}}}}, \
             {{name: mesh, match: [{{gateways: [mesh], port: 80}}], directResponse: {{status: 200}}}}, \
             {{name: rest, directResponse: {{status: 200}}}}]}}"
        ),
    );
    let edge = "{selector: {istio: edge}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}]}";
    let world = world(&(routes + &doc("Gateway", "edge", "default", edge)), &orders());
    let names = |service: v1::Service| -> Vec<String> {
        let routes = service.ports[0].routes.iter();
        routes.map(|route| route.name.rsplit('/').next().unwrap_or_default().to_owned()).collect()
    };
    for (namespace, labels, want) in [
        ("default", &[][..], &["mesh", "rest"][..]),
        ("default", &[("app", "front")], &["labels", "mesh", "rest"]),
        // Matches after one that takes all requests are unreachable.
        ("shop", &[("app", "back")], &["namespace"]),
    ] {
        let service = service(&world, &client(&world, namespace, labels), ORDER).unwrap();
        assert_eq!(names(service), want, "{namespace} {labels:?}");
    }
    let through = crate::world::gateway_host("default", "edge", "http", ORDER);
    let service = service(&world, &client(&world, "default", &[("app", "front")]), &through).unwrap();
    assert_eq!(names(service), ["labels", "gateway"]);
}
