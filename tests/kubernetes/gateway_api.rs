//! Objects of the Gateway API: they are read when their kinds appear, and get a status.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use weft_policy::Kind;
use weft_tests::{document, wait_for};

use crate::Scenario;
use crate::cluster::{Cluster, SOON};

pub(crate) fn all() -> Vec<(&'static str, Scenario)> {
    vec![("routes_of_the_gateway_api_have_a_status", routes_of_the_gateway_api_have_a_status as Scenario)]
}

/// A definition without a schema: this API server is older than the rules in the project's own.
fn definition(kind: Kind) -> String {
    let descriptor = kind.descriptor();
    let any = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": format!("{}.{}", descriptor.plural, descriptor.group),
            "annotations": { "api-approved.kubernetes.io": "https://github.com/kubernetes-sigs/gateway-api" },
        },
        "spec": {
            "group": descriptor.group,
            "scope": if kind == Kind::GatewayClass { "Cluster" } else { "Namespaced" },
            "names": { "kind": kind.written(), "plural": descriptor.plural },
            "versions": [{
                "name": "v1", "served": true, "storage": true, "subresources": { "status": {} },
                "schema": { "openAPIV3Schema": { "type": "object", "properties": { "spec": any, "status": any } } },
            }],
        },
    })
    .to_string()
}

/// The conditions of a list by their types: `True`, or the reason.
fn states(conditions: &Value) -> Vec<String> {
    let one = |condition: &Value| match condition["status"].as_str() {
        Some("True") => condition["type"].as_str().unwrap_or_default().to_owned(),
        _ => format!(
            "{}={}",
            condition["type"].as_str().unwrap_or_default(),
            condition["reason"].as_str().unwrap_or_default()
        ),
    };
    conditions.as_array().into_iter().flatten().map(one).collect()
}

fn routes_of_the_gateway_api_have_a_status(cluster: &Cluster) -> Result<()> {
    cluster.namespace("routes")?;
    for kind in [Kind::GatewayClass, Kind::KubernetesGateway, Kind::HTTPRoute] {
        cluster.kubectl(&["create", "--validate=false", "-f", "-"], &definition(kind))?;
    }
    cluster.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=20s"], "")?;
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "order", "namespace": "routes" },
        "spec": { "ports": [{ "name": "http", "port": 80 }] },
    });
    cluster.apply(&service.to_string())?;
    let class = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass", "metadata": { "name": "weft" },
        "spec": { "controllerName": "weft.dev/gateway-controller" },
    });
    let listeners = json!([{ "name": "http", "port": 8080, "protocol": "HTTP" }]);
    let gateway = json!({ "gatewayClassName": "weft", "listeners": listeners });
    let route_of = |name: &str, backend: &str| {
        let parents = json!([{ "name": "edge" }, { "group": "", "kind": "Service", "name": "order" }]);
        let rules = json!([{ "backendRefs": [{ "name": backend, "port": 80 }] }]);
        document(Kind::HTTPRoute, &format!("routes/{name}"), json!({ "parentRefs": parents, "rules": rules }))
    };
    let route = |backend: &str| route_of("order", backend);
    let create = |text: &str| cluster.kubectl(&["apply", "--validate=false", "-f", "-"], text);
    create(&class.to_string())?;
    create(&document(Kind::KubernetesGateway, "routes/edge", gateway))?;
    create(&route("none"))?;
    let status = |kind: &str, name: &str| Ok::<_, anyhow::Error>(cluster.get("routes", kind, name)?["status"].clone());
    let parents = |expected: [&str; 2]| {
        wait_for("the route's status", SOON, || {
            let status = status("httproute", "order")?;
            for parent in [0, 1] {
                let states = states(&status["parents"][parent]["conditions"]);
                ensure!(states == expected, "{status}");
            }
            Ok(())
        })
    };
    parents(["Accepted", "ResolvedRefs=BackendNotFound"])?;
    create(&route("order"))?;
    parents(["Accepted", "ResolvedRefs"])?;
    wait_for("the Gateway's status", SOON, || {
        let status = status("gateway", "edge")?;
        let listener = &status["listeners"][0];
        ensure!(states(&status["conditions"]) == ["Accepted", "Programmed"], "{status}");
        ensure!(listener["attachedRoutes"] == 1 && listener["supportedKinds"][0]["kind"] == "HTTPRoute", "{status}");
        let class = cluster.get("default", "gatewayclass", "weft")?;
        ensure!(states(&class["status"]["conditions"]) == ["Accepted"], "{class}");
        Ok(())
    })?;
    // A status that does not differ is not written again, whatever else changes.
    let version =
        || Ok::<_, anyhow::Error>(cluster.get("routes", "httproute", "order")?["metadata"]["resourceVersion"].clone());
    let before = version()?;
    create(&route_of("second", "order"))?;
    wait_for("another route", SOON, || {
        let status = status("httproute", "second")?;
        ensure!(status["parents"][0]["controllerName"] == "weft.dev/gateway-controller", "{status}");
        Ok(())
    })?;
    ensure!(version()? == before, "the status is written again and again");
    Ok(())
}
