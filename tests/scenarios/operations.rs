//! Operations: what an administrator does to a sidecar, and what an accident does, while its application goes on.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weft_tests::{Mesh, Pod, wait_for};

use crate::Scenario;

pub(crate) fn all() -> Vec<Scenario> {
    vec![("registrations_survive_a_restart_of_the_sidecar", registrations_survive)]
}

/// Limit for what takes a moment.
const SOON: Duration = Duration::from_secs(15);

/// Consul's API of the pod's sidecar.
fn put(pod: &Pod, path: &str, body: &Value) -> Result<String> {
    let url = format!("http://127.0.0.1:8500/v1/agent/{path}");
    let body = body.to_string();
    pod.curl(&["-w", "%{http_code}", "-X", "PUT", "--data-binary", &body, &url])
}

fn get(pod: &Pod, path: &str) -> Result<Value> {
    Ok(serde_json::from_str(&pod.curl(&["-f", &format!("http://127.0.0.1:8500/v1/agent/{path}")])?)?)
}

fn ids(pod: &Pod) -> Result<Vec<String>> {
    let services = get(pod, "services")?;
    Ok(services.as_object().context("no object")?.keys().cloned().collect())
}

fn registrations_survive() -> Result<()> {
    use serde_json::json;
    let mut mesh = Mesh::start(&[])?;
    let pod = mesh.pod("order1")?;
    let _app = pod.serve(8080, "order1")?;
    let data = format!("/run/survive-{}", pod.name);
    let start = |mesh: &Mesh| mesh.sidecar(&pod, "order-service", &["--data-dir", &data]);
    let sidecar = start(&mesh)?;
    let service = |id: &str, port: u16, check: Value| json!({"name": "order-service", "id": id, "port": port, "tags": ["v1"], "check": check});
    let http = json!({"http": "http://localhost:8080/health", "interval": "1s"});
    ensure!(put(&pod, "service/register", &service("by-http", 8080, http))? == "200");
    ensure!(put(&pod, "service/register", &service("by-ttl", 8081, json!({"ttl": "60s"})))? == "200");
    ensure!(put(&pod, "service/register", &service("gone", 8082, json!({"ttl": "60s"})))? == "200");
    ensure!(put(&pod, "check/pass/service:by-ttl", &Value::Null)? == "200");
    ensure!(put(&pod, "service/deregister/gone", &Value::Null)? == "200");
    let healthy = |mesh: &Mesh| {
        wait_for("both instances", SOON, || {
            let status = mesh.status();
            let found = |id: &str| status.lines().any(|l| l.contains(" healthy ") && l.contains(&format!(" {id} on ")));
            ensure!(found("by-http") && found("by-ttl") && !status.contains(" gone on "), "{status}");
            Ok(())
        })
    };
    healthy(&mesh)?;
    // The state of checks is saved within a second.
    let file = Path::new(&data).join("agent.json");
    wait_for("the file", SOON, || {
        let text = std::fs::read_to_string(&file)?;
        ensure!(text.matches("\"passing\"").count() >= 2 && !text.contains("\"gone\""), "{text}");
        Ok(())
    })?;

    // Killed: nobody asks the application to register again, and its TTL report still counts.
    sidecar.signal("KILL")?;
    drop(sidecar);
    let sidecar = start(&mesh)?;
    ensure!(ids(&pod)? == ["by-http", "by-ttl"], "{:?}", ids(&pod)?);
    ensure!(get(&pod, "checks")?["service:by-ttl"]["Status"] == "passing");
    healthy(&mesh)?;
    // The checks run again.
    pod.curl(&["-X", "POST", "http://127.0.0.1:8080/sick"])?;
    wait_for("the check", SOON, || {
        let status = mesh.status();
        ensure!(status.lines().any(|l| l.contains(" by-http on ") && l.contains("unhealthy")), "{status}");
        Ok(())
    })?;
    pod.curl(&["-X", "POST", "http://127.0.0.1:8080/well"])?;
    healthy(&mesh)?;

    // Killed with the control plane: what was registered meanwhile is known to both when they are back.
    mesh.control_plane.take().map_or(Ok(()), |c| c.signal("KILL"))?;
    sidecar.signal("KILL")?;
    drop(sidecar);
    let sidecar = start(&mesh)?;
    let never = json!({"ttl": "60s", "status": "passing"});
    wait_for("the loss to be noticed", SOON, || {
        ensure!(put(&pod, "service/register", &service("meanwhile", 8083, never.clone()))? == "200");
        Ok(())
    })?;
    let refused = put(&pod, "service/register", &json!({"name": "billing", "port": 1}))?;
    ensure!(refused.ends_with("403") && refused.contains("its token names [\"order-service\"]"), "{refused}");
    // Port 0 is what only the control plane refuses.
    ensure!(put(&pod, "service/register", &service("wrong", 0, Value::Null))? == "200");
    sidecar.signal("KILL")?;
    drop(sidecar);
    let mut sidecar = start(&mesh)?;
    mesh.start_control_plane()?;
    healthy(&mesh)?;
    wait_for("what was registered meanwhile", SOON, || {
        let status = mesh.status();
        ensure!(status.contains(" meanwhile on "), "{status}");
        Ok(())
    })?;
    wait_for("the refusal to be shown", SOON, || {
        let check = get(&pod, "checks")?["_registration:wrong"].clone();
        let output = check["Output"].as_str().unwrap_or_default();
        ensure!(check["Status"] == "critical" && output.contains("0 is not a port"), "{check}");
        Ok(())
    })?;
    ensure!(put(&pod, "service/deregister/wrong", &Value::Null)? == "200");
    ensure!(get(&pod, "checks")?["_registration:wrong"].is_null());

    // Stopped in order: gone from the mesh, and back with the sidecar.
    sidecar.signal("TERM")?;
    let code = sidecar.wait(Duration::from_secs(20))?;
    ensure!(code == 0, "exit code {code}");
    let status = mesh.status();
    ensure!(!status.contains(" by-http on "), "{status}");
    let sidecar = start(&mesh)?;
    healthy(&mesh)?;
    let mode = weft_tests::run("stat", &["-c", "%a", &file.to_string_lossy()])?;
    ensure!(mode.trim() == "600", "{mode}");

    // Damaged: said, set aside, and the sidecar goes on.
    sidecar.signal("KILL")?;
    drop(sidecar);
    std::fs::write(&file, "{\"services\": [{\"regis")?;
    let sidecar = start(&mesh)?;
    let log = sidecar.output();
    ensure!(log.contains(&*file.to_string_lossy()) && log.contains("have to register again"), "{log}");
    ensure!(file.with_extension("damaged").exists());
    ensure!(ids(&pod)?.is_empty(), "{:?}", ids(&pod)?);
    let again = service("by-ttl", 8081, json!({"ttl": "60s", "status": "passing"}));
    ensure!(put(&pod, "service/register", &again)? == "200");
    mesh.wait_healthy(&pod.ip)
}
