//! What `weftctl route` says of a request, and what becomes of the request.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weft_tests::{Mesh, Pod, wait_for};

use crate::Scenario;

pub(crate) fn all() -> Vec<Scenario> {
    scenarios![a_request_gets_what_weftctl_route_says,]
}

const POLICY: &str = r#"
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: order}
spec:
  host: order-service
  trafficPolicy:
    loadBalancer: {consistentHash: {httpHeaderName: user-id}}
    outlierDetection: {}
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}, trafficPolicy: {loadBalancer: {consistentHash: {useSourceIp: true}}}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: order}
spec:
  hosts: [order-service]
  http:
  - match: [{uri: {exact: /teapot}}]
    directResponse: {status: 418}
  - name: beta
    match: [{headers: {x-beta: {exact: "yes"}}}, {sourceLabels: {app: lab}}]
    route: [{destination: {host: order-service, subset: v2}}]
  - match: [{uri: {prefix: /v1}}]
    route: [{destination: {host: order-service, subset: v1}}]
"#;

/// What is said of a request.
fn told(mesh: &Mesh, args: &[&str]) -> Result<Value> {
    Ok(serde_json::from_str(&mesh.weftctl(&[&["route", "--output", "json"], args].concat())?)?)
}

/// Its one destination's subset, and the endpoint that its key gets.
fn key(told: &Value) -> Result<(String, String)> {
    let to = &told["destinations"][0];
    let endpoint = to["hash"]["endpoint"].as_str().with_context(|| format!("no endpoint: {told:#}"))?;
    Ok((to["subset"].as_str().unwrap_or_default().to_owned(), endpoint.to_owned()))
}

fn a_request_gets_what_weftctl_route_says() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    mesh.policy("order.yaml", POLICY)?;
    let zone = |name: &str, version: &str, locality: &str| {
        mesh.instance(name, "order-service", 8080, &["--label", &format!("version={version}"), "--locality", locality])
    };
    let instances = [
        zone("order1", "v1", "eu/a")?,
        zone("order2", "v1", "eu/a")?,
        // Too far for clients in eu.
        zone("order3", "v1", "us/a")?,
        zone("order4", "v2", "eu/a")?,
        zone("order5", "v2", "eu/a")?,
    ];
    let names: BTreeMap<String, &str> =
        instances.iter().map(|one| (format!("{}:8080", one.pod.ip), one.pod.name.as_str())).collect();
    let client = |name: &str| -> Result<_> {
        let pod = mesh.pod(name)?;
        let label = format!("app={name}");
        let sidecar =
            mesh.sidecar_with_redirection(&pod, name, &["--workload", name, "--label", &label, "--locality", "eu/a"])?;
        Ok((pod, sidecar))
    };
    let (front, _front) = client("front")?;
    let (lab, _lab) = client("lab")?;
    let vip = mesh.vip("order-service")?;
    let served_by = |pod: &Pod, path: &str, header: &str| -> Result<String> {
        let url = format!("http://{vip}{path}");
        let shown = ["-o", "/dev/null", "-w", "%header{x-served-by}"];
        pod.curl(&[&["-f", "-H", "Host: order-service", "-H", header, &url][..], &shown].concat())
    };
    wait_for("the route", Duration::from_secs(10), || {
        let url = format!("http://{vip}/teapot");
        let answer = front.curl(&["-i", "-H", "Host: order-service", &url])?;
        ensure!(answer.starts_with("HTTP/1.1 418"), "{answer}");
        Ok(())
    })?;

    // A key's endpoint is the one that serves it, and far ones get no request.
    let mut seen = BTreeSet::new();
    for user in 0..12 {
        let header = format!("user-id: user-{user}");
        let told = told(&mesh, &["order-service/v1/x", "--from", "front", "-H", &header])?;
        let (subset, endpoint) = key(&told)?;
        let served = served_by(&front, "/v1/x", &header)?;
        ensure!(subset == "v1" && names.get(&endpoint) == Some(&served.as_str()), "{served}, not {told:#}");
        seen.insert(served);
    }
    ensure!(seen.iter().map(String::as_str).collect::<Vec<_>>() == ["order1", "order2"], "{seen:?}");
    // By the route of a header, and of the caller's labels; the key is the caller's own address.
    for (pod, header, matched) in [(&front, "x-beta: yes", 0), (&lab, "x-beta: no", 1)] {
        let told = told(&mesh, &["order-service/v1", "--from", &pod.name, "-H", header])?;
        let (subset, endpoint) = key(&told)?;
        let served = served_by(pod, "/v1", header)?;
        ensure!(subset == "v2" && names.get(&endpoint) == Some(&served.as_str()), "{served}, not {told:#}");
        ensure!(told["routes"]["taken"] == serde_json::json!({"route": "http[1]", "name": "beta", "matched": matched}));
    }

    let text = mesh.weftctl(&["route", "order-service/teapot", "--from", "default/front"])?;
    ensure!(text.contains("answered 418 by directResponse"), "{text}");
    // What fails, fails with what the client would be told.
    let fails = |args: &[&str], wanted: &str| match mesh.weftctl(&[&["route"], args].concat()) {
        Err(e) if e.to_string().contains(wanted) => Ok(()),
        other => Err(anyhow::anyhow!("{args:?}: {other:?}, not {wanted}")),
    };
    fails(&["order-service/none", "--from", "front"], "404 NR, no_route")?;
    let url = format!("http://{vip}/none");
    let answer = front.curl(&["-i", "-H", "Host: order-service", &url])?;
    ensure!(answer.starts_with("HTTP/1.1 404") && answer.contains("x-weft-reason: no_route"), "{answer}");
    fails(&["unknown/", "--from", "front"], "unknown host")?;
    fails(&["order-service/", "--from", "frnt"], "no sidecar of a workload `frnt` is connected, did you mean `front`?")
}
