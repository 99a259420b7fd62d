//! Sidecars that join by Istio's WorkloadGroup.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;
use weft_tests::{Kind, Mesh, document, wait_for};

use crate::Scenario;

const SOON: Duration = Duration::from_secs(20);

pub(crate) fn all() -> Vec<Scenario> {
    scenarios![a_sidecar_joins_by_a_workload_group,]
}

fn group(account: &str, version: &str) -> String {
    let spec = json!({
        "metadata": {"labels": {"app": "legacy", "version": version}},
        "template": {"serviceAccount": account, "ports": {"http": 8080}},
        "probe": {"periodSeconds": 1, "failureThreshold": 2, "httpGet": {"path": "/health", "port": 8080}},
    });
    document(Kind::WorkloadGroup, "vms", spec)
}

const HOST: &str = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: legacy}
spec:
  hosts: [legacy.test]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP}]
  workloadSelector: {labels: {app: legacy}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: legacy}
spec:
  host: legacy.test
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: legacy}
spec:
  hosts: [legacy.test]
  http:
  - match: [{uri: {prefix: /v2}}]
    route: [{destination: {host: legacy.test, subset: v2}}]
  - route: [{destination: {host: legacy.test, subset: v1}}]
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict}
spec: {mtls: {mode: STRICT}}
";

fn a_sidecar_joins_by_a_workload_group() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    mesh.policy("host.yaml", HOST)?;
    let (front, _sidecar) = mesh.client("frontend")?;
    let vm = mesh.pod("vm")?;
    let _app = vm.serve(8080, "vm")?;
    let sidecar = mesh.sidecar_with_redirection(&vm, "legacy", &["--workload-group", "vms"])?;
    let logs = |words: &str| {
        wait_for(words, SOON, || {
            ensure!(sidecar.output().contains(words), "{}", sidecar.output());
            Ok(())
        })
    };
    let status = |words: &str| {
        wait_for(words, SOON, || {
            let status = mesh.status();
            ensure!(status.contains(words), "{status}");
            Ok(())
        })
    };
    let answers = |path: &str, words: &str| {
        wait_for(words, SOON, || {
            let answer = front.curl(&["-i", &format!("http://legacy.test{path}")])?;
            ensure!(answer.contains(words), "{path}: {answer}");
            Ok(())
        })
    };
    // The group is created later, and first for another service account.
    logs("there is no WorkloadGroup default/vms yet")?;
    status("NOT JOINED: there is no WorkloadGroup default/vms yet")?;
    answers("/", " 503 ")?;
    mesh.policy("group.yaml", &group("other", "v1"))?;
    logs("is for the service account `other`")?;
    status("NOT JOINED: WorkloadGroup default/vms is for the service account `other`")?;
    answers("/", " 503 ")?;
    mesh.policy("group.yaml", &group("legacy", "v1"))?;
    status(&format!("vms-{} healthy", vm.ip))?;
    // Its sidecar accepts mutual TLS alone, and forwards the caller's identity.
    answers("/", "sa/frontend")?;
    answers("/v2", " 503 ")?;

    // Another label of the group is another subset.
    mesh.policy("group.yaml", &group("legacy", "v2"))?;
    answers("/v2", "X-Served-By: vm")?;
    answers("/", " 503 ")?;

    // The probe removes an unhealthy workload from load balancing, and brings it back.
    vm.curl(&["-X", "POST", "http://127.0.0.1:8080/sick"])?;
    status(&format!("vms-{} unhealthy", vm.ip))?;
    vm.curl(&["-X", "POST", "http://127.0.0.1:8080/well"])?;
    status(&format!("vms-{} healthy", vm.ip))?;
    answers("/v2", "X-Served-By: vm")?;

    // A restarted sidecar keeps its membership.
    sidecar.signal("KILL")?;
    let mut sidecar = mesh.sidecar(&vm, "legacy", &["--workload-group", "vms"])?;
    answers("/v2", "X-Served-By: vm")?;
    status(&format!("vms-{} healthy", vm.ip))?;

    // It leaves with its sidecar.
    sidecar.signal("TERM")?;
    ensure!(sidecar.wait(SOON)? == 0, "{}", sidecar.output());
    ensure!(sidecar.output().contains("deregistered"), "{}", sidecar.output());
    answers("/v2", " 503 ")
}
