//! Istio's Sidecar.

use std::time::Duration;

use anyhow::{Result, ensure};
use weft_tests::{Mesh, tests_dir, wait_for};

use crate::Scenario;

pub(crate) fn all() -> Vec<Scenario> {
    scenarios![a_sidecar_resource_limits_egress_and_maps_ingress,]
}

const FRONT: &str = "
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: front}
spec:
  workloadSelector: {labels: {app: front}}
  egress: [{hosts: ['./order-service.default.svc.cluster.local']}]
  outboundTrafficPolicy: {mode: MODE}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: order}
spec:
  workloadSelector: {labels: {app: order}}
  ingress:
  - port: {number: 9080, protocol: HTTP, name: http}
    defaultEndpoint: 127.0.0.1:8080
    connectionPool: {http: {http2MaxRequests: 1}}
";

fn a_sidecar_resource_limits_egress_and_maps_ingress() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    // The application listens on loopback alone, at another port than the service's.
    let order = mesh.pod("order")?;
    let script = tests_dir().join("apps/server.py").to_string_lossy().into_owned();
    let _app = order.spawn("app", "python3", &[&script, "8080", "order", "127.0.0.1"])?;
    let _order = mesh.sidecar_with_redirection(
        &order,
        "order-service",
        &["--service", "order-service", "--port", "9080", "--label", "app=order"],
    )?;
    mesh.wait_healthy(&order.ip)?;
    let _payment = mesh.instance("payment1", "payment", 8080, &[])?;
    let outside = mesh.pod("outside")?;
    let _outside = outside.serve(8080, "outside")?;
    let (front, _sidecar) = mesh.client_with("frontend", &["--label", "app=front"])?;
    let (order_ip, payment_ip) = (mesh.vip("order-service")?, mesh.vip("payment")?);
    let ask = |host: &str, url: &str| {
        let host = format!("Host: {host}");
        front.curl(&["-i", "-H", &host, url])
    };
    let order_url = format!("http://{order_ip}/");
    let payment_url = format!("http://{payment_ip}/");
    let outside_url = format!("http://{}:8080/", outside.ip);
    wait_for("payment", Duration::from_secs(10), || {
        let answer = ask("payment", &payment_url)?;
        ensure!(answer.contains("payment1"), "{answer}");
        Ok(())
    })?;
    mesh.policy("front.yaml", &FRONT.replace("MODE", "REGISTRY_ONLY"))?;
    wait_for("payment is unknown", Duration::from_secs(10), || {
        let answer = ask("payment", &payment_url)?;
        ensure!(answer.contains(" 502 ") && answer.contains("x-weft-reason: unknown_host"), "{answer}");
        Ok(())
    })?;
    wait_for("the port of the policy", Duration::from_secs(10), || {
        let answer = ask("order-service", &order_url)?;
        ensure!(answer.contains(" 200 ") && answer.contains("\"name\": \"order\""), "{answer}");
        Ok(())
    })?;
    let refused = ask("outside", &outside_url)?;
    ensure!(refused.contains(" 502 "), "{refused}");
    // One request at a time: the port's own limit.
    let plan = serde_json::json!({
        "url": format!("{order_url}sleep/300"), "count": 3, "concurrency": 3, "headers": {"Host": "order-service"}
    });
    let statuses = weft_tests::statuses(&front.requests(&plan)?);
    ensure!(statuses.get(&200) == Some(&1) && statuses.get(&503) == Some(&2), "{statuses:?}");

    mesh.policy("front.yaml", &FRONT.replace("MODE", "ALLOW_ANY"))?;
    wait_for("passthrough of an unknown destination", Duration::from_secs(10), || {
        let answer = ask("outside", &outside_url)?;
        ensure!(answer.contains("\"name\": \"outside\""), "{answer}");
        Ok(())
    })?;
    std::fs::remove_file(mesh.policies.join("front.yaml"))?;
    wait_for("all hosts are visible again", Duration::from_secs(10), || {
        let answer = ask("payment", &payment_url)?;
        ensure!(answer.contains("payment1"), "{answer}");
        Ok(())
    })?;
    Ok(())
}
