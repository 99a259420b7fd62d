//! Classic sidecars of Jobs and of applications that call at once.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use weft_tests::wait_for;

use crate::Scenario;
use crate::node::{Node, READY};
use crate::rollout::{list, server, service};

pub(crate) fn all() -> Vec<(&'static str, Scenario)> {
    vec![("a_job_calls_the_mesh_in_its_first_moment_and_completes", a_job_calls_and_completes as Scenario)]
}

/// A Job that runs a script once.
fn job(name: &str, script: &str) -> Value {
    let container = json!({
        "name": "app",
        "image": "localhost/app:test",
        "imagePullPolicy": "Never",
        "command": ["sh", "-c", script],
    });
    json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": { "name": name },
        "spec": {
            "backoffLimit": 0,
            "template": { "spec": { "restartPolicy": "Never", "containers": [container] } },
        },
    })
}

fn a_job_calls_and_completes(node: &Node) -> Result<()> {
    node.namespace("jobs")?;
    let strict = json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "PeerAuthentication",
        "metadata": { "name": "default" },
        "spec": { "mtls": { "mode": "STRICT" } },
    });
    node.apply("jobs", &list(&[server("stock", "v1", 1), service("stock"), strict]))?;
    node.rolled_out("jobs", "stock-v1")?;
    // A call before the proxy is ready would be refused under STRICT.
    let script =
        "wget -q -O- http://stock/cgi-bin/name && wget -q -O- --post-data= http://127.0.0.1:15020/quitquitquit";
    node.apply("jobs", &list(&[job("import", script)]))?;
    wait_for("the Job's end", READY, || {
        let job = node.get("jobs", "job", "import")?;
        ensure!(
            job["status"]["failed"].as_u64().unwrap_or(0) == 0 && job["status"]["succeeded"] == 1,
            "{}",
            job["status"]
        );
        Ok(())
    })?;
    let output = node.kubectl(&["-n", "jobs", "logs", "job/import", "-c", "app"])?;
    ensure!(output.starts_with("stock-v1") && output.contains("/ns/jobs/sa/default"), "{output}");
    ensure!(output.contains("the sidecar stops"), "{output}");
    Ok(())
}
