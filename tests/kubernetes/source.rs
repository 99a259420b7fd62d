//! Kubernetes as a source of services and policies.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use weft_policy::Kind;
use weft_tests::{document, served_by, statuses, wait_for};

use crate::Scenario;
use crate::cluster::{Cluster, SOON};

pub(crate) fn all() -> Vec<(&'static str, Scenario)> {
    vec![
        ("pods_of_a_service_are_its_endpoints", pods_of_a_service_are_its_endpoints as Scenario),
        ("a_policy_object_has_a_status_and_keeps_its_last_valid_version", a_policy_object_has_a_status),
        ("calls_go_on_while_the_api_server_is_away", calls_go_on_while_the_api_server_is_away),
    ]
}

pub(crate) fn service(name: &str, namespace: &str) -> String {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": name, "namespace": namespace },
        "spec": {
            "selector": { "app": name },
            "ports": [{ "name": "http", "port": 80, "targetPort": 8080 }],
        },
    })
    .to_string()
}

/// Waits until exactly these pods serve requests to a name.
pub(crate) fn serve(front: &weft_tests::Pod, name: &str, expected: &[&str]) -> Result<()> {
    wait_for("calls", SOON, || {
        let url = format!("http://{name}/");
        let results = front.requests(&json!({ "url": url, "count": 20 }))?;
        ensure!(statuses(&results).keys().all(|status| *status == 200), "{results:?}");
        let mut servers = served_by(&results);
        servers.sort();
        servers.dedup();
        ensure!(servers == expected, "{servers:?}, not {expected:?}");
        Ok(())
    })
}

fn pods_of_a_service_are_its_endpoints(cluster: &Cluster) -> Result<()> {
    let mesh = &cluster.mesh;
    cluster.namespace("shop")?;
    let (front, _sidecar) = mesh.client("front1")?;
    let (one, two) = (mesh.pod("order1")?, mesh.pod("order2")?);
    let (_app_one, _app_two) = (one.serve(8080, "order1")?, two.serve(8080, "order2")?);
    cluster.apply(&service("order", "shop"))?;
    for pod in [&one, &two] {
        cluster.register_pod("shop", pod, &json!({ "app": "order" }))?;
    }
    serve(&front, "order.shop", &["order1", "order2"])?;
    // Traffic that passes the sidecar by needs an address that the cluster has.
    let ip = cluster.get("shop", "service", "order")?["spec"]["clusterIP"].clone();
    let resolved = front.run("getent", &["ahostsv4", "order.shop"])?;
    let addresses: BTreeSet<&str> = resolved.lines().filter_map(|line| line.split_whitespace().next()).collect();
    ensure!(Some(&addresses) == ip.as_str().map(|ip| BTreeSet::from([ip])).as_ref(), "{resolved}, not {ip}");
    cluster.set_ready("shop", &two, false)?;
    serve(&front, "order.shop", &["order1"])?;
    cluster.set_ready("shop", &two, true)?;
    serve(&front, "order.shop", &["order1", "order2"])?;
    cluster.kubectl(&["-n", "shop", "delete", "pod", "order1", "--force", "--grace-period=0"], "")?;
    serve(&front, "order.shop", &["order2"])?;
    // The name is gone with its Service.
    cluster.kubectl(&["-n", "shop", "delete", "service", "order"], "")?;
    wait_for("the end of the name", SOON, || {
        let status = mesh.status();
        ensure!(!status.contains("service order.shop"), "{status}");
        Ok(())
    })
}

fn accepted(cluster: &Cluster, name: &str) -> Result<Value> {
    let object = cluster.get("policies", "destinationrule", name)?;
    let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let own = conditions.into_iter().find(|one| one["type"] == "weft.dev/Accepted");
    let own = own.ok_or_else(|| anyhow::anyhow!("no condition: {object}"))?;
    ensure!(own["observedGeneration"] == object["metadata"]["generation"], "{own}");
    Ok(own)
}

fn a_policy_object_has_a_status(cluster: &Cluster) -> Result<()> {
    let mesh = &cluster.mesh;
    cluster.namespace("policies")?;
    let rule = |policy: Value| {
        let yaml = document(Kind::DestinationRule, "limit", json!({ "host": "order", "trafficPolicy": policy }));
        cluster.kubectl(&["-n", "policies", "apply", "-f", "-"], &yaml)
    };
    rule(json!({ "connectionPool": { "tcp": { "maxConnections": 7 } } }))?;
    wait_for("acceptance", SOON, || {
        let condition = accepted(cluster, "limit")?;
        ensure!(condition["status"] == "True", "{condition}");
        Ok(())
    })?;
    let shown = |expected: &str| {
        let text = mesh.weftctl(&["get", "dr/policies/limit", "-o", "yaml"])?;
        ensure!(text.contains(expected), "{text}");
        Ok(())
    };
    wait_for("the object", SOON, || shown("7"))?;
    rule(json!({ "connectionPool": { "tcp": { "maxConections": 8 } } }))?;
    wait_for("a refusal", SOON, || {
        let condition = accepted(cluster, "limit")?;
        ensure!(condition["status"] == "False" && condition["reason"] == "Invalid", "{condition}");
        let message = condition["message"].as_str().unwrap_or_default();
        ensure!(message.contains("did you mean `maxConnections`"), "{message}");
        Ok(())
    })?;
    shown("7")?;
    rule(json!({ "connectionPool": { "tcp": { "maxConnections": 9 } } }))?;
    wait_for("the new version", SOON, || {
        ensure!(accepted(cluster, "limit")?["status"] == "True", "not accepted");
        shown("9")
    })?;
    // The cluster owns the object.
    let file = mesh.center.folder("limit").with_extension("yaml");
    std::fs::write(&file, cluster.kubectl(&["-n", "policies", "get", "dr", "limit", "-o", "yaml"], "")?)?;
    let applied = mesh.weftctl(&["apply", "-f", &file.to_string_lossy()]);
    let error = applied.err().map(|error| error.to_string()).unwrap_or_default();
    ensure!(error.contains("belongs to the Kubernetes cluster; use kubectl"), "{error}");
    cluster.kubectl(&["-n", "policies", "delete", "dr", "limit"], "")?;
    wait_for("its end", SOON, || {
        ensure!(mesh.weftctl(&["get", "dr/policies/limit"]).is_err(), "it is still there");
        Ok(())
    })
}

fn calls_go_on_while_the_api_server_is_away(cluster: &Cluster) -> Result<()> {
    let mesh = &cluster.mesh;
    cluster.namespace("away")?;
    let (front, _sidecar) = mesh.client("front2")?;
    let (one, two) = (mesh.pod("stock1")?, mesh.pod("stock2")?);
    let (_app_one, _app_two) = (one.serve(8080, "stock1")?, two.serve(8080, "stock2")?);
    cluster.apply(&service("stock", "away"))?;
    cluster.register_pod("away", &one, &json!({ "app": "stock" }))?;
    serve(&front, "stock.away", &["stock1"])?;
    cluster.stop_api_server()?;
    for _ in 0..3 {
        serve(&front, "stock.away", &["stock1"])?;
    }
    cluster.start_api_server()?;
    cluster.register_pod("away", &two, &json!({ "app": "stock" }))?;
    serve(&front, "stock.away", &["stock1", "stock2"])
}
