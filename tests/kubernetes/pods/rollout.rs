//! Injected workloads: mutual TLS, rollouts, restarts of the control plane.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use weft_tests::wait_for;

use crate::Scenario;
use crate::node::{Node, READY};

pub(crate) fn all() -> Vec<(&'static str, Scenario)> {
    vec![("an_injected_deployment_is_called_with_mutual_tls", an_injected_deployment as Scenario)]
}

/// A Deployment of the application image that serves at port 8080.
pub(crate) fn server(name: &str, version: &str, replicas: u32) -> Value {
    let command = ["httpd", "-f", "-p", "8080", "-h", "/www"];
    deployment(
        name,
        version,
        replicas,
        &json!(command),
        &json!({ "httpGet": { "path": "/cgi-bin/name", "port": 8080 } }),
    )
}

/// A Deployment whose pods do nothing by themselves.
pub(crate) fn client(name: &str) -> Value {
    deployment(name, "v1", 1, &json!(["sleep", "100000"]), &Value::Null)
}

fn deployment(name: &str, version: &str, replicas: u32, command: &Value, probe: &Value) -> Value {
    let mut container = json!({
        "name": "app",
        "image": "localhost/app:test",
        "imagePullPolicy": "Never",
        "command": command,
    });
    if !probe.is_null() {
        container["readinessProbe"] = probe.clone();
        container["readinessProbe"]["periodSeconds"] = json!(1);
    }
    let labels = json!({ "app": name, "version": version });
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": { "name": format!("{name}-{version}") },
        "spec": {
            "replicas": replicas,
            "selector": { "matchLabels": labels },
            "template": {
                "metadata": { "labels": labels },
                "spec": { "containers": [container], "terminationGracePeriodSeconds": 10 },
            },
        },
    })
}

/// A Service of the pods with the label `app: NAME`.
pub(crate) fn service(name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": name },
        "spec": { "selector": { "app": name }, "ports": [{ "name": "http", "port": 80, "targetPort": 8080 }] },
    })
}

/// A list of objects.
pub(crate) fn list(items: &[Value]) -> String {
    json!({ "apiVersion": "v1", "kind": "List", "items": items }).to_string()
}

fn an_injected_deployment(node: &Node) -> Result<()> {
    node.namespace("shop")?;
    let strict = json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "PeerAuthentication",
        "metadata": { "name": "default" },
        "spec": { "mtls": { "mode": "STRICT" } },
    });
    node.apply("shop", &list(&[server("order", "v1", 2), service("order"), client("front"), strict]))?;
    node.rolled_out("shop", "order-v1")?;
    node.rolled_out("shop", "front-v1")?;
    wait_for("a call with an identity", READY, || {
        let answer = node.in_pod("shop", "deploy/front-v1", &["wget", "-q", "-O-", "http://order/cgi-bin/name"])?;
        ensure!(answer.starts_with("order-v1") && answer.contains("/ns/shop/sa/default"), "{answer}");
        Ok(())
    })
}
