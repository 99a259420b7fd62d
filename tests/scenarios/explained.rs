//! The explanation of a request by `weftctl route`, compared with the request itself.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weft_tests::{Mesh, Pod, wait_for};

use crate::Scenario;

pub(crate) fn all() -> Vec<Scenario> {
    scenarios![weftctl_route_predicts_the_response,]
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

/// The explanation of a request.
fn explain(mesh: &Mesh, args: &[&str]) -> Result<Value> {
    Ok(serde_json::from_str(&mesh.weftctl(&[&["route", "--output", "json"], args].concat())?)?)
}

/// The subset of the explanation's only destination, and the endpoint of the request's key.
fn key(explanation: &Value) -> Result<(String, String)> {
    let to = &explanation["destinations"][0];
    let endpoint = to["hash"]["endpoint"].as_str().with_context(|| format!("no endpoint: {explanation:#}"))?;
    Ok((to["subset"].as_str().unwrap_or_default().to_owned(), endpoint.to_owned()))
}

fn weftctl_route_predicts_the_response() -> Result<()> {
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

    // The endpoint of a key serves it, and far endpoints get no request.
    let mut seen = BTreeSet::new();
    for user in 0..12 {
        let header = format!("user-id: user-{user}");
        let explanation = explain(&mesh, &["order-service/v1/x", "--from", "front", "-H", &header])?;
        let (subset, endpoint) = key(&explanation)?;
        let served = served_by(&front, "/v1/x", &header)?;
        ensure!(subset == "v1" && names.get(&endpoint) == Some(&served.as_str()), "{served}, not {explanation:#}");
        seen.insert(served);
    }
    ensure!(seen.iter().map(String::as_str).collect::<Vec<_>>() == ["order1", "order2"], "{seen:?}");
    // By the route of a header, and of the caller's labels; the key is the caller's own address.
    for (pod, header, matched) in [(&front, "x-beta: yes", 0), (&lab, "x-beta: no", 1)] {
        let explanation = explain(&mesh, &["order-service/v1", "--from", &pod.name, "-H", header])?;
        let (subset, endpoint) = key(&explanation)?;
        let served = served_by(pod, "/v1", header)?;
        ensure!(subset == "v2" && names.get(&endpoint) == Some(&served.as_str()), "{served}, not {explanation:#}");
        ensure!(
            explanation["routes"]["taken"]
                == serde_json::json!({"route": "http[1]", "name": "beta", "matched": matched})
        );
    }

    let text = mesh.weftctl(&["route", "order-service/teapot", "--from", "default/front"])?;
    ensure!(text.contains("answered 418 by directResponse"), "{text}");
    // An explained failure has the client's reason.
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
