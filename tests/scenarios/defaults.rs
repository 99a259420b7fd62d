//! Mesh-wide settings: `meshConfig` of an IstioOperator.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use weft_tests::{Kind, Mesh, document, statuses, wait_for};

use crate::Scenario;

pub(crate) fn all() -> Vec<Scenario> {
    scenarios![what_the_mesh_has_as_defaults,]
}

const SOON: Duration = Duration::from_secs(10);

const MESH: &str = "
apiVersion: install.istio.io/v1alpha1
kind: IstioOperator
metadata: {name: installation, namespace: istio-system}
spec:
  profile: default
  meshConfig:
    accessLogFile: /dev/stdout
    outboundTrafficPolicy: {mode: REGISTRY_ONLY}
    defaultHttpRetryPolicy: {attempts: 3, retryOn: '503'}
    defaultTrafficPolicy:
      connectionPool:
        tcp: {maxConnections: 1}
        http: {http1MaxPendingRequests: 1}
";

const RULE: &str = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: order}
spec: {host: order-service, trafficPolicy: {connectionPool: {tcp: {maxConnections: 10}}}}
";

fn what_the_mesh_has_as_defaults() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    let order = mesh.instance("order1", "order-service", 8080, &[])?;
    let outside = mesh.pod("outside")?;
    let _outside = outside.serve(8080, "outside")?;
    let (front, _sidecar) = mesh.client("frontend")?;
    let vip = mesh.vip("order-service")?;
    let outside_url = format!("http://{}:8080/", outside.ip);
    let outside = |case: &str, wanted: &str| {
        wait_for(case, SOON, || {
            let answer = front.curl(&["-i", &outside_url])?;
            ensure!(answer.contains(wanted), "{answer}");
            Ok(())
        })
    };
    outside("passthrough of an unknown destination", "\"name\": \"outside\"")?;

    let file = mesh.center.folder("applied").with_extension("yaml");
    std::fs::write(&file, MESH)?;
    let output = mesh.weftctl(&["apply", "-f", &file.to_string_lossy()])?;
    ensure!(output.contains("IstioOperator/istio-system/installation created"), "{output}");
    ensure!(output.contains("warning: `meshConfig.accessLogFile` does not concern the traffic: skipped"), "{output}");
    outside("refusal of an unknown destination", " 502 ")?;

    // No document names the service: its limits are the mesh's, and so are its retries.
    let plan = json!({
        "url": format!("http://{vip}/sleep/50"), "count": 30, "concurrency": 3, "headers": {"Host": "order-service"}
    });
    let refused = wait_for("the limit", SOON, || {
        let answers = front.requests(&plan)?;
        answers.into_iter().find(|answer| answer["status"] == 503).context("no request was refused")
    })?;
    let why = "overflow; policy=IstioOperator/istio-system/installation; limit=http1MaxPendingRequests=1";
    ensure!(refused["headers"]["x-weft-reason"] == why, "{refused}");
    let requests = || -> Result<u64> {
        let text = order.pod.curl(&["http://127.0.0.1:15020/metrics"])?;
        let lines = text.lines().filter(|line| line.starts_with("istio_requests_total{"));
        let of_code = lines.filter(|line| line.contains("\"destination\"") && line.contains("response_code=\"503\""));
        Ok(of_code.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum())
    };
    let before = requests()?;
    let url = format!("http://{vip}/status/503");
    let answer = front.curl(&["-i", "-H", "Host: order-service", &url])?;
    ensure!(answer.contains(" 503 "), "{answer}");
    wait_for("three retries", SOON, || {
        let attempts = requests()? - before;
        ensure!(attempts == 4, "{attempts} attempts");
        Ok(())
    })?;

    // A more specific setting takes precedence.
    mesh.policy("order.yaml", RULE)?;
    wait_for("the service's own limit", SOON, || {
        let counts = statuses(&front.requests(&plan)?);
        ensure!(counts == HashMap::from([(200, 30)]), "{counts:?}");
        Ok(())
    })?;
    let allow_any = json!({"outboundTrafficPolicy": {"mode": "ALLOW_ANY"}});
    mesh.policy("sidecar.yaml", &document(Kind::Sidecar, "all", allow_any))?;
    outside("a Sidecar's own mode", "\"name\": \"outside\"")?;

    // A second document is reported, another trust domain is refused.
    std::fs::write(&file, MESH.replace("name: installation", "name: second"))?;
    let output = mesh.weftctl(&["apply", "-f", &file.to_string_lossy()])?;
    let ignored =
        "IstioOperator/istio-system/installation is older and has the settings of the mesh: this one is ignored";
    ensure!(output.contains(ignored), "{output}");
    std::fs::write(&file, MESH.replace("    accessLogFile: /dev/stdout", "    trustDomain: other.example"))?;
    let refused = mesh.weftctl(&["apply", "-f", &file.to_string_lossy()]);
    let refused = format!("{:#}", refused.err().context("another trust domain was accepted")?);
    ensure!(refused.contains("`trustDomain` is") && refused.contains("not `other.example`: leave it out"), "{refused}");
    Ok(())
}
