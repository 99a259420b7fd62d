//! Programs without a sidecar: Consul's API at the control plane, by curl over HTTPS with tokens.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use weft_tests::{Mesh, Pod, python_of, served_by, statuses, tests_dir, wait_for};

use crate::Scenario;

const SOON: Duration = Duration::from_secs(15);

pub(crate) fn all() -> Vec<Scenario> {
    scenarios![programs_without_a_sidecar_register_at_the_control_plane,]
}

/// The control plane's response to a pod: status and body.
fn ask(mesh: &Mesh, pod: &Pod, token: &str, method: &str, path: &str, body: &Value) -> Result<(u16, String)> {
    let root = mesh.data_dir().join("root.pem").to_string_lossy().into_owned();
    let url = format!("https://{}:8501/v1/{path}", mesh.center.ip);
    let (token, body) = (format!("X-Consul-Token: {token}"), body.to_string());
    let mut args = vec!["--cacert", &root, "-X", method, "-H", &token, "-w", "\n%{http_code}", &url];
    if method != "GET" {
        args.extend(["-d", &body]);
    }
    let text = pod.curl(&args)?;
    let (body, status) = text.rsplit_once('\n').context("no status")?;
    Ok((status.parse()?, body.to_owned()))
}

fn token(mesh: &Mesh, args: &[&str]) -> Result<String> {
    let all = [&["token", "create", "--api", "--ttl", "1h"], args].concat();
    Ok(mesh.weftctl(&all)?.trim().to_owned())
}

/// Waits until exactly these instances answer calls in the mesh.
fn calls(mesh: &Mesh, front: &Pod, expected: &[&str]) -> Result<()> {
    wait_for("calls", SOON, || {
        let url = format!("http://{}/", mesh.vip("order")?);
        let results = front.requests(&json!({ "url": url, "count": 20, "headers": { "Host": "order" } }))?;
        ensure!(statuses(&results).keys().all(|status| *status == 200), "{results:?}");
        let mut servers = served_by(&results);
        servers.sort();
        servers.dedup();
        ensure!(servers == expected, "{servers:?}, not {expected:?}");
        Ok(())
    })
}

fn programs_without_a_sidecar_register_at_the_control_plane() -> Result<()> {
    let mut mesh = Mesh::network(&[])?;
    let listen = format!("{}:8501", mesh.center.ip);
    mesh.control_plane_args = ["--http-listen", &listen, "--allow-external"].map(str::to_owned).into();
    mesh.start_control_plane()?;
    let (front, _sidecar) = mesh.client("frontend")?;
    let order = token(&mesh, &["--service", "order"])?;
    let payment = token(&mesh, &["--service", "payment"])?;

    // Two hosts, one id.
    let mut pods = Vec::new();
    let registration = json!({
        "Name": "order", "ID": "order-1", "Port": 8080,
        "Check": { "HTTP": "http://localhost:8080/health", "Interval": "1s", "Timeout": "1s" },
    });
    for name in ["legacy1", "legacy2"] {
        let pod = mesh.pod(name)?;
        let app = pod.serve(8080, name)?;
        let answer = ask(&mesh, &pod, &order, "PUT", "agent/service/register", &registration)?;
        ensure!(answer == (200, String::new()), "{answer:?}");
        pods.push((pod, app));
    }
    let [(one, _), (two, _)] = &pods[..] else { anyhow::bail!("two pods") };

    // Forbidden registrations are refused with a reason.
    let null = Value::Null;
    let mut elsewhere = registration.clone();
    elsewhere["Address"] = json!(two.ip);
    let mut probe = registration.clone();
    probe["Check"]["HTTP"] = json!(format!("http://{}:15012/", mesh.center.ip));
    for (token, method, path, body, status, words) in [
        ("", "GET", "catalog/services", &null, 403, "Permission denied: this address is answered with a token only"),
        ("weftapi1.a.b", "GET", "catalog/services", &null, 403, "ACL not found"),
        (&*payment, "PUT", "agent/service/register", &registration, 403, "Permission denied"),
        (&payment, "PUT", "agent/service/deregister/order-1", &null, 403, "Permission denied"),
        (&order, "PUT", "agent/service/register", &elsewhere, 400, "is not an address of the program that asks"),
        (&order, "PUT", "agent/service/register", &probe, 400, "is not an address of the program that asks"),
        (&order, "PUT", "kv/a", &json!("x"), 403, "Permission denied"),
    ] {
        let (got, text) = ask(&mesh, one, token, method, path, body)?;
        ensure!(got == status && text.contains(words), "{method} {path}: {got} {text}");
    }

    // The mesh routes calls to both, by the results of their checks.
    calls(&mesh, &front, &["legacy1", "legacy2"])?;
    one.curl(&["-f", "http://127.0.0.1:8080/sick"])?;
    calls(&mesh, &front, &["legacy2"])?;
    let (_, passing) = ask(&mesh, two, &payment, "GET", "health/service/order?passing", &null)?;
    let passing: Value = serde_json::from_str(&passing)?;
    let node = format!("ext-{}", two.ip.replace('.', "-"));
    ensure!(passing[0]["Node"]["Node"] == node && passing[0]["Service"]["Address"] == two.ip, "{passing}");
    ensure!(passing.as_array().is_some_and(|all| all.len() == 1), "{passing}");
    one.curl(&["-f", "http://127.0.0.1:8080/well"])?;
    calls(&mesh, &front, &["legacy1", "legacy2"])?;

    // No program registers again after a restart, and checks go on.
    mesh.control_plane.take().context("it runs")?.signal("KILL")?;
    mesh.start_control_plane()?;
    calls(&mesh, &front, &["legacy1", "legacy2"])?;
    two.curl(&["-f", "http://127.0.0.1:8080/sick"])?;
    calls(&mesh, &front, &["legacy1"])?;
    let answer = ask(&mesh, two, &order, "PUT", "agent/service/deregister/order-1", &null)?;
    ensure!(answer.0 == 200, "{answer:?}");
    let (_, left) = ask(&mesh, two, &payment, "GET", "catalog/service/order", &null)?;
    let left: Value = serde_json::from_str(&left)?;
    ensure!(left.as_array().is_some_and(|all| all.len() == 1) && left[0]["Address"] == one.ip, "{left}");
    written_by_others(&mesh, &front, one, &order)?;
    eureka(&mesh, &front, &order)
}

/// A service outside the mesh is written into the catalog, by python-consul.
fn written_by_others(mesh: &Mesh, front: &Pod, from: &Pod, token: &str) -> Result<()> {
    let third = mesh.pod("legacy3")?;
    let _app = third.serve(8080, "legacy3")?;
    let root = mesh.data_dir().join("root.pem").to_string_lossy().into_owned();
    let write = |call: &str| {
        let script = format!(
            "import consul; c = consul.Consul({:?}, 8501, scheme='https', verify={root:?}, token={token:?}); assert c.catalog.{call}",
            mesh.center.ip
        );
        from.run(&python_of("consul")?, &["-c", &script])
    };
    let service = "{'Service': 'order', 'ID': 'order-3', 'Port': 8080}";
    write(&format!("register('outside', {:?}, service={service})", third.ip))?;
    calls(mesh, front, &["legacy1", "legacy3"])?;
    let check = "{'Name': 'up', 'ServiceID': 'order-3', 'Status': 'critical'}";
    write(&format!("register('outside', {:?}, check={check})", third.ip))?;
    calls(mesh, front, &["legacy1"])?;
    // Its `deregister` sends no token.
    let gone = ask(mesh, from, token, "PUT", "catalog/deregister", &json!({ "Node": "outside" }))?;
    ensure!(gone.0 == 200, "{gone:?}");
    let (_, nodes) = ask(mesh, from, token, "GET", "catalog/nodes", &Value::Null)?;
    ensure!(!nodes.contains("outside"), "{nodes}");
    Ok(())
}

/// py_eureka_client registers with a token as its password, over HTTPS.
fn eureka(mesh: &Mesh, front: &Pod, token: &str) -> Result<()> {
    let pod = mesh.pod("legacy4")?;
    let _app = pod.serve(8080, "legacy4")?;
    let root = mesh.data_dir().join("root.pem").to_string_lossy().into_owned();
    let server = format!("https://weft:{token}@{}:8501/eureka/", mesh.center.ip);
    let script = tests_dir().join("clients/py_eureka.py").to_string_lossy().into_owned();
    let environment = [("SSL_CERT_FILE".to_owned(), root)];
    let args = [&*script, "run", &server, "order", &pod.ip, "8080"];
    let client = pod.spawn_with("py-eureka", python_of("eureka")?, &args, &environment)?;
    calls(mesh, front, &["legacy1", "legacy4"]).map_err(|e| e.context(client.output()))?;
    client.signal("TERM")?;
    calls(mesh, front, &["legacy1"])
}
