//! The sidecar as the pod's Consul agent, with the real python-consul, and health checks it makes.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use weft_tests::{Mesh, Pod, python_of, served_by, statuses, tests_dir, wait_for};

use crate::Scenario;

pub(crate) fn all() -> Vec<Scenario> {
    scenarios![
        python_consul_in_three_pods_with_one_service_id,
        python_consul_uses_the_whole_agent,
        the_agent_answers_for_the_mesh_while_the_control_plane_is_away,
        programs_get_certificates_where_that_is_allowed,
        unhealthy_instances_are_not_called,
        programs_check_health_where_that_is_allowed,
        exec_runs_a_command_in_the_mesh,
    ]
}

fn python_consul_in_three_pods_with_one_service_id() -> Result<()> {
    let python = python_of("consul")?;
    let script = tests_dir().join("clients/register.py").to_string_lossy().into_owned();
    let mesh = Mesh::start(&[])?;
    let mut instances = Vec::new();
    let mut ips = Vec::new();
    for name in ["order1", "order2", "order3"] {
        let pod = mesh.pod(name)?;
        let app = pod.serve(8080, name)?;
        let sidecar = mesh.sidecar_with_redirection(&pod, "order-service", &[])?;
        let seen = pod.run(&python, &[&script, &pod.ip])?;
        ensure!(seen.contains(&format!("{} 8080", pod.ip)), "it finds itself: {seen}");
        ips.push(pod.ip.clone());
        instances.push((pod, app, sidecar));
    }
    let status = mesh.status();
    let registered = status.lines().filter(|l| l.contains(" healthy ") && l.contains(" order-1 on ")).count();
    ensure!(registered == 3, "three instances of one id:\n{status}");
    ensure!(status.contains("version=v1"), "the tag v1 is a version:\n{status}");
    let (front, _sidecar) = mesh.client("frontend")?;
    let services = front.curl(&["http://127.0.0.1:8500/v1/health/service/order-service?passing"])?;
    let services: serde_json::Value = serde_json::from_str(&services)?;
    let services = services.as_array().context("no array")?;
    ensure!(services.len() == 3, "{services:?}");
    for service in services {
        // A call to the address that it returns is mTLS, and measured.
        let (ip, port) = (&service["Service"]["Address"], &service["Service"]["Port"]);
        let url = format!("http://{}:{port}/", ip.as_str().context("no address")?);
        let answer = front.curl(&["-f", &url])?;
        ensure!(answer.contains("sa/frontend"), "{url}: {answer}");
    }
    let metrics = front.curl(&["http://127.0.0.1:15020/metrics"])?;
    let service = "destination_service=\"order-service.default.svc.cluster.local\"";
    ensure!(metrics.lines().any(|l| l.starts_with("istio_requests_total") && l.contains(service)), "{metrics}");
    Ok(())
}

fn python_consul_uses_the_whole_agent() -> Result<()> {
    let python = python_of("consul")?;
    let mesh = Mesh::start(&[])?;
    let pod = mesh.pod("order1")?;
    let _sidecar = mesh.sidecar_with_redirection(&pod, "order-service", &[])?;
    let script = tests_dir().join("clients/python_consul.py").to_string_lossy().into_owned();
    let out = pod.run(&python, &[&script, &pod.ip])?;
    print!("{out}");
    Ok(())
}

/// The response of the pod's agent: its head and its body.
fn query(pod: &Pod, method: &str, path: &str) -> Result<(String, String)> {
    let answer = pod.curl(&["-i", "--compressed", "-X", method, &format!("http://127.0.0.1:8500/v1/{path}")])?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
    Ok((head.to_lowercase(), body.to_owned()))
}

fn the_agent_answers_for_the_mesh_while_the_control_plane_is_away() -> Result<()> {
    let mut mesh = Mesh::start(&[])?;
    let near = ["--locality", "eu/b", "--label", "team=shop"];
    let _far = mesh.instance("order1", "order-service", 8080, &["--locality", "eu/a"])?;
    let _near = mesh.instance("order2", "order-service", 8080, &near)?;
    let pod = mesh.pod("frontend")?;
    let _sidecar = mesh.sidecar(&pod, "frontend", &["--locality", "eu/b"])?;
    let json = |path: &str| -> Result<serde_json::Value> { Ok(serde_json::from_str(&query(&pod, "GET", path)?.1)?) };
    wait_for("both instances", Duration::from_secs(15), || {
        let all = json("health/service/order-service?near=_agent")?;
        ensure!(all.as_array().map(Vec::len) == Some(2), "{all}");
        ensure!(all[0]["Node"]["Meta"]["team"] == "shop", "the close one comes first: {all}");
        Ok(())
    })?;
    let (head, body) = query(&pod, "GET", "health/service/order-service")?;
    ensure!(head.contains("content-encoding: gzip") && body.starts_with('['), "{head}");
    let nodes = json("catalog/nodes")?;
    ensure!(nodes.as_array().map(Vec::len) == Some(3), "{nodes}");
    let node = nodes.as_array().into_iter().flatten().find(|n| n["Meta"]["team"] == "shop").context("no such node")?;
    let name = node["Node"].as_str().context("no name")?;
    let of_node = json(&format!("catalog/node/{name}"))?;
    ensure!(of_node["Services"]["order-service-8080"]["Port"] == 8080, "{of_node}");
    let leader = json("status/leader")?;
    ensure!(leader == format!("{}:15012", mesh.center.ip).as_str(), "{leader}");
    ensure!(query(&pod, "PUT", "catalog/register")?.0.contains(" 403 "), "without --allow-external");
    ensure!(query(&pod, "PUT", "txn")?.0.contains(" 400 "), "an empty transaction");
    ensure!(query(&pod, "PUT", "acl/bootstrap")?.0.contains(" 501 "), "not supported");
    ensure!(query(&pod, "OPTIONS", "catalog/nodes")?.0.contains("allow: options,get"));

    mesh.control_plane.take().map_or(Ok(()), |c| c.signal("KILL"))?;
    let (head, cached) = query(&pod, "GET", "health/service/order-service")?;
    ensure!(head.contains(" 200 ") && head.contains("x-cache: hit") && head.contains("age: "), "{head}");
    ensure!(cached == body, "{cached}");
    for (method, path) in [
        ("GET", "health/service/order-service?consistent"),
        ("GET", "health/service/cart"),
        ("PUT", "catalog/register"),
    ] {
        let (head, text) = query(&pod, method, path)?;
        ensure!(head.contains(" 500 ") && text == "No cluster leader", "{method} {path}: {head} {text}");
    }
    mesh.start_control_plane()?;
    wait_for("fresh answers", Duration::from_secs(15), || {
        let (head, _) = query(&pod, "GET", "health/service/order-service")?;
        ensure!(head.contains(" 200 ") && !head.contains("x-cache"), "{head}");
        Ok(())
    })
}

/// A program with its own mutual TLS, which bypasses its sidecar.
fn programs_get_certificates_where_that_is_allowed() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    mesh.strict()?;
    let order = mesh.instance("order1", "order-service", 8080, &[])?;
    let (plain, program) = (mesh.pod("plain")?, mesh.pod("frontend")?);
    let _plain = mesh.sidecar(&plain, "frontend", &[])?;
    let (head, text) = query(&plain, "GET", "agent/connect/ca/leaf/frontend")?;
    ensure!(head.contains(" 403 ") && text.contains("--connect-leaf"), "{head} {text}");
    let _sidecar = mesh.sidecar(&program, "frontend", &["--connect-leaf"])?;
    let (head, text) = query(&program, "GET", "agent/connect/ca/leaf/order-service")?;
    ensure!(head.contains(" 403 ") && text.contains("may be: frontend"), "{head} {text}");
    let script = tests_dir().join("clients/leaf.py").to_string_lossy().into_owned();
    let answer = program.run("python3", &[&script, "frontend", &order.pod.ip, "8080"])?;
    let answer: serde_json::Value = serde_json::from_str(&answer)?;
    let is_named = answer["uri"] == "spiffe://cluster.local/ns/default/sa/frontend";
    let known = answer["body"].as_str().is_some_and(|body| body.contains("sa/frontend"));
    ensure!(is_named && known && answer["status"] == 200, "{answer}");
    let shown = query(&program, "GET", "health/connect/order-service")?.1;
    ensure!(shown.contains("order-service-8080"), "{shown}");
    Ok(())
}

fn unhealthy_instances_are_not_called() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    let check = ["--health-path", "/health", "--health-interval", "1"];
    let _a = mesh.instance("order1", "order-service", 8080, &check)?;
    let b = mesh.instance("order2", "order-service", 8080, &check)?;
    let (front, _sidecar) = mesh.client("frontend")?;
    let vip = mesh.vip("order-service")?;
    let plan = json!({"url": format!("http://{vip}/"), "count": 40, "headers": {"Host": "order-service"}});
    let both = |wanted: bool| {
        wait_for("health", Duration::from_secs(20), || {
            let results = front.requests(&plan)?;
            ensure!(statuses(&results).len() == 1, "{:?}", statuses(&results));
            let second = served_by(&results).iter().any(|s| s == "order2");
            ensure!(second == wanted, "order2 is called: {second}");
            Ok(())
        })
    };
    both(true)?;
    b.pod.curl(&["-X", "POST", "http://127.0.0.1:8080/sick"])?;
    both(false)?;
    ensure!(mesh.status().contains("unhealthy"), "{}", mesh.status());
    b.pod.curl(&["-X", "POST", "http://127.0.0.1:8080/well"])?;
    both(true)?;
    // The application alone is killed: its checks fail, and callers fail over.
    b.app.signal("KILL")?;
    both(false)
}

fn exec_runs_a_command_in_the_mesh() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    let pod = mesh.pod("order1")?;
    let token = mesh.token("order-service")?.to_string_lossy().into_owned();
    let server = tests_dir().join("apps/server.py").to_string_lossy().into_owned();
    let control = format!("{}:15012", mesh.center.ip);
    let sidecar = weft_tests::binary("weft-sidecar")?;
    let data = format!("/run/exec-{}", pod.name);
    let common = ["--control-plane", &control, "--token-file", &token, "--data-dir", &data];
    let args = [
        &["exec"][..],
        &common,
        &["--service", "order-service", "--port", "8080", "--redirect", "--", "python3", &server, "8080", "order1"],
    ]
    .concat();
    let mut process = pod.spawn("exec", &sidecar, &args)?;
    mesh.wait_healthy(&pod.ip)?;
    let (front, _sidecar) = mesh.client("frontend")?;
    let vip = mesh.vip("order-service")?;
    let url = format!("http://{vip}/sleep/2000");
    let answer = front.curl(&["-f", "-H", "Host: order-service", &format!("http://{vip}/")])?;
    ensure!(answer.contains("sa/frontend"), "{answer}");
    // Sidecar and application end together, and the request in progress is still answered.
    let load =
        front.requests_meanwhile(&json!({"url": url, "method": "POST", "headers": {"Host": "order-service"}}))?;
    wait_for("the request in progress", Duration::from_secs(10), || {
        let metrics = pod.curl(&["http://127.0.0.1:15020/metrics"])?;
        ensure!(metrics.contains("weft_inbound_active 1\n"), "it has not arrived");
        Ok(())
    })?;
    process.signal("TERM")?;
    ensure!(statuses(&load.results()?).contains_key(&200), "the request in progress was cut off");
    let code = process.wait(Duration::from_secs(20))?;
    ensure!(code == 0, "the application handles SIGTERM: {code}\n{}", process.output());
    // A command that ends by itself takes the sidecar along, with its exit code.
    let args = [&["exec"][..], &common, &["--service", "order-service", "--port", "8080", "--", "sh", "-c", "exit 7"]]
        .concat();
    let mut process = pod.spawn("exec-2", &sidecar, &args)?;
    let code = process.wait(Duration::from_secs(20))?;
    ensure!(code == 7, "{code}\n{}", process.output());
    Ok(())
}

/// Script checks, under `exec`, which reaps orphans and must not reap these; and refused unless they are turned on.
fn programs_check_health_where_that_is_allowed() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    let pod = mesh.pod("order1")?;
    let token = mesh.token("order-service")?.to_string_lossy().into_owned();
    let control = format!("{}:15012", mesh.center.ip);
    let data = pod.folder("exec").to_string_lossy().into_owned();
    let args = ["exec", "--control-plane", &control, "--token-file", &token, "--data-dir", &data];
    let args = [
        &args[..],
        &["--enable-script-checks", "--", "sh", "-c", "while kill -0 $PPID; do (sleep 0.01 &) ; sleep 0.02; done"],
    ]
    .concat();
    let _process = pod.spawn("exec", weft_tests::binary("weft-sidecar")?, &args)?;
    mesh.wait_ready(&pod)?;
    let register = |pod: &weft_tests::Pod, code: u32| {
        let body = format!(
            "{{\"Name\":\"order-service\",\"Port\":8080,\"Check\":{{\"Args\":[\"sh\",\"-c\",\"echo said; exit {code}\"],\"Interval\":\"1s\"}}}}"
        );
        let url = "http://127.0.0.1:8500/v1/agent/service/register";
        pod.curl(&["-X", "PUT", "-d", &body, "-w", "%{http_code}", url])
    };
    for (code, status) in [(1, "warning"), (0, "passing"), (2, "critical")] {
        let answer = register(&pod, code)?;
        ensure!(answer == "200", "{answer}");
        wait_for(status, Duration::from_secs(10), || {
            let checks = pod.curl(&["-f", "http://127.0.0.1:8500/v1/health/checks/order-service"])?;
            let checks: serde_json::Value = serde_json::from_str(&checks)?;
            let check = &checks[0];
            ensure!(check["Status"] == status && check["Output"] == "said\n" && check["Type"] == "script", "{check}");
            Ok(())
        })?;
    }
    let plain = mesh.pod("order2")?;
    let _sidecar = mesh.sidecar(&plain, "order-service", &[])?;
    let refused = register(&plain, 0)?;
    ensure!(refused.ends_with("400") && refused.contains("--enable-script-checks"), "{refused}");
    Ok(())
}
