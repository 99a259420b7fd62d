//! Injected workloads: mutual TLS, rollouts, restarts of the control plane.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use weft_tests::{repository, wait_for};

use crate::Scenario;
use crate::node::{Node, READY, SPACE};

/// The page of the servers: the name of the pod, and the client's identity.
const ORDER: &str = "http://order/cgi-bin/name";

pub(crate) fn all() -> Vec<(&'static str, Scenario)> {
    vec![
        ("an_injected_deployment_is_called_with_mutual_tls", an_injected_deployment as Scenario),
        ("rolling_updates_under_load_fail_no_request", rolling_updates_under_load),
        ("a_control_plane_that_restarts_during_a_rollout_fails_no_request", a_control_plane_restarts_during_a_rollout),
        ("a_stateful_set_is_reached_by_the_names_of_its_pods", a_stateful_set_is_reached),
        ("a_job_with_an_init_container_completes", a_job_completes),
        ("the_demo_shows_what_it_claims", the_demo_shows_what_it_claims),
        ("a_namespace_that_is_deleted_leaves_the_mesh", a_namespace_is_deleted),
    ]
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

/// A Deployment "order" of three replicas and a client, in a namespace of their own, after the first successful call.
fn shop(node: &Node, namespace: &str) -> Result<()> {
    node.namespace(namespace)?;
    node.apply(namespace, &list(&[server("order", "v1", 3), service("order"), client("front")]))?;
    node.rolled_out(namespace, "order-v1")?;
    node.rolled_out(namespace, "front-v1")?;
    wait_for("a call", READY, || node.in_pod(namespace, "deploy/front-v1", &["wget", "-q", "-O-", ORDER]).map(drop))
}

/// Requests of the client, one after the other, until `work` is done.
///
/// # Errors
/// If one of them fails.
fn under_load(node: &Node, namespace: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let script = format!(
        "rm -f /tmp/stop; n=0; f=0; while [ ! -e /tmp/stop ]; do n=$((n+1)); \
         wget -q -O- {ORDER} >/dev/null 2>/tmp/error || {{ f=$((f+1)); date; cat /tmp/error; }}; done; echo \"$n sent, $f failed\""
    );
    let output = std::thread::scope(|scope| -> Result<String> {
        let load = scope.spawn(|| node.in_pod(namespace, "deploy/front-v1", &["sh", "-c", &script]));
        let done = work();
        node.in_pod(namespace, "deploy/front-v1", &["touch", "/tmp/stop"])?;
        let output = load.join().map_err(|_| anyhow::anyhow!("the load panicked"))?;
        done.and(output)
    })?;
    let sent: u32 = output.lines().last().and_then(|line| line.split(' ').next()?.parse().ok()).unwrap_or_default();
    ensure!(sent > 100 && output.contains(" 0 failed"), "{output}");
    Ok(())
}

fn restart(node: &Node, namespace: &str, name: &str) -> Result<()> {
    node.kubectl(&["-n", namespace, "rollout", "restart", &format!("deployment/{name}")])?;
    node.rolled_out(namespace, name)
}

fn rolling_updates_under_load(node: &Node) -> Result<()> {
    shop(node, "rolling")?;
    // WEFT_ROLLOUTS: more of them, for a search of rare failures.
    let count = std::env::var("WEFT_ROLLOUTS").ok().and_then(|text| text.parse().ok()).unwrap_or(2);
    for number in 1..=count {
        under_load(node, "rolling", || restart(node, "rolling", "order-v1"))
            .map_err(|e| e.context(format!("rollout {number} of {count}")))?;
    }
    Ok(())
}

fn a_control_plane_restarts_during_a_rollout(node: &Node) -> Result<()> {
    shop(node, "restarts")?;
    under_load(node, "restarts", || {
        node.kubectl(&["-n", "restarts", "rollout", "restart", "deployment/order-v1"])?;
        restart(node, SPACE, "weft-control-plane")?;
        node.rolled_out("restarts", "order-v1")
    })
}

fn a_stateful_set_is_reached(node: &Node) -> Result<()> {
    shop(node, "database")?;
    let mut database = server("db", "v1", 2);
    database["kind"] = json!("StatefulSet");
    database["metadata"]["name"] = json!("db");
    database["spec"]["serviceName"] = json!("db");
    let mut headless = service("db");
    headless["spec"]["clusterIP"] = json!("None");
    node.apply("database", &list(&[database, headless]))?;
    node.rolled_out("database", "statefulset/db")?;
    for name in ["db-0", "db-1"] {
        let url = format!("http://{name}.db:8080/cgi-bin/name");
        wait_for("the pod by its name", READY, || {
            let answer = node.in_pod("database", "deploy/front-v1", &["wget", "-q", "-O-", &url])?;
            ensure!(answer.starts_with(name) && answer.contains("/ns/database/sa/default"), "{answer}");
            Ok(())
        })?;
    }
    Ok(())
}

fn a_job_completes(node: &Node) -> Result<()> {
    shop(node, "jobs")?;
    // The init container runs before the redirection; the job itself is in the mesh, and ends its proxy.
    let script = format!("wget -q -O- {ORDER} && wget -q -O- --post-data= http://127.0.0.1:15020/quitquitquit");
    let container = |name: &str, command: Value| json!({ "name": name, "image": "localhost/app:test", "imagePullPolicy": "Never", "command": command });
    let job = json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": { "name": "once" },
        "spec": {
            "backoffLimit": 0,
            "template": { "spec": {
                "restartPolicy": "Never",
                "initContainers": [container("before", json!(["echo", "first"]))],
                "containers": [container("app", json!(["sh", "-c", script]))],
            }},
        },
    });
    node.apply("jobs", &job.to_string())?;
    let limit = format!("--timeout={}s", READY.as_secs());
    node.kubectl(&["-n", "jobs", "wait", "--for=condition=Complete", "job/once", &limit])?;
    let log = node.kubectl(&["-n", "jobs", "logs", "job/once", "-c", "app"])?;
    ensure!(log.contains("/ns/jobs/sa/default"), "{log}");
    Ok(())
}

fn the_demo_shows_what_it_claims(node: &Node) -> Result<()> {
    let demo = repository().join("deploy/demo/kubernetes/demo.sh").to_string_lossy().into_owned();
    let output = node.exec(&["env", "IMAGE=localhost/app:test", "PULL=Never", &demo], "")?;
    println!("{output}");
    ensure!(output.contains(" claims checked, 0 failed"), "{output}");
    Ok(())
}

fn a_namespace_is_deleted(node: &Node) -> Result<()> {
    shop(node, "leaving")?;
    node.kubectl(&["delete", "namespace", "leaving", "--timeout=120s"])?;
    wait_for("the end of its services and sidecars", READY, || {
        let status = node.in_pod(SPACE, "deploy/weft-control-plane", &["weftctl", "status"])?;
        ensure!(!status.contains("leaving"), "{status}");
        Ok(())
    })
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
        let answer = node.in_pod("shop", "deploy/front-v1", &["wget", "-q", "-O-", ORDER])?;
        ensure!(answer.starts_with("order-v1") && answer.contains("/ns/shop/sa/default"), "{answer}");
        Ok(())
    })
}
